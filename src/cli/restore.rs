//! `dray restore`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Makes a container from a checkpoint.
#[derive(Debug, Args)]
pub struct Restore {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Restore) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "restore is not there yet"))
}
