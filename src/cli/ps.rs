//! `dray ps`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Lists the processes of a container.
#[derive(Debug, Args)]
pub struct Ps {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Ps) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "ps is not there yet"))
}
