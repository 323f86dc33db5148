//! `dray man`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Writes the manual pages.
#[derive(Debug, Args)]
pub struct Man {}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Man) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "man is not there yet"))
}
