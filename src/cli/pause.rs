//! `dray pause`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use super::status::not_running;
use super::target::{self, Owner};
use crate::engine::adopt::Status;
use crate::error::Result;

/// Makes a container stand still.
#[derive(Debug, Args)]
pub struct Pause {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// "container not running", also of one that is paused already.
pub fn run(global: &Global, args: Pause) -> Result<ExitCode> {
    target::change(global, &args.id, async |target, engine, _| {
        match target.found.status().await? {
            Status::Created | Status::Running => {}
            _ => return Err(not_running(&args.id)),
        }
        match target.owner {
            Owner::Shim(shim) => shim.pause(&args.id).await,
            Owner::Nobody(_) => engine.pause(args.id.clone()).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
