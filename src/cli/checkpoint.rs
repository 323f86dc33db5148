//! `dray checkpoint`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Writes the state of a running container to files, by CRIU.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Checkpoint) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "checkpoint is not there yet"))
}
