//! `dray exec`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Starts a further process in a container.
#[derive(Debug, Args)]
pub struct Exec {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Exec) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "exec is not there yet"))
}
