//! `dray trace`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Shows where the time of a create, start or exec went.
#[derive(Debug, Args)]
pub struct Trace {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Trace) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "trace is not there yet"))
}
