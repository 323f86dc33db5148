//! `dray pause`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use super::status::{Status, not_running};
use super::target::{self, Owner};
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
    target::block_on(async {
        let target = target::open(global, &args.id).await?;
        match target.found.status().await? {
            Status::Created | Status::Running => {}
            _ => return Err(not_running(&args.id)),
        }
        match target.owner {
            Owner::Shim(shim) => shim.pause(&args.id).await,
            Owner::Nobody(_) => target.engine()?.pause(args.id).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
