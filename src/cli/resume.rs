//! `dray resume`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use super::runtime::unless_ended;
use super::target::{self, Owner};
use crate::engine::adopt::Status;
use crate::error::{Error, Kind, Result};

/// Lets a paused container go on.
#[derive(Debug, Args)]
pub struct Resume {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// "container not paused".
pub fn run(global: &Global, args: Resume) -> Result<ExitCode> {
    target::change(global, &args.id, async |target, engine, mut signals| {
        if unless_ended(&mut signals, target.found.status()).await? != Status::Paused {
            return Err(Error::new(Kind::FailedPrecondition, format!("container {}: container not paused", args.id)));
        }
        match target.owner {
            Owner::Shim(shim) => unless_ended(&mut signals, shim.resume(&args.id)).await,
            Owner::Nobody(_) => engine.resume(&args.id),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
