//! `dray start`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Starts the program of a created container.
#[derive(Debug, Args)]
pub struct Start {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Start) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "start is not there yet"))
}
