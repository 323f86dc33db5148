//! `dray check`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Says what this host offers, what it lacks, and what that costs.
#[derive(Debug, Args)]
pub struct Check {}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Check) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "check is not there yet"))
}
