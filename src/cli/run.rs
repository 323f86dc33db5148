//! `dray run`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Makes a container and starts its program.
#[derive(Debug, Args)]
pub struct Run {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Run) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "run is not there yet"))
}
