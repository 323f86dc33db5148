//! `dray completions`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Prints what a shell needs to complete this command line.
#[derive(Debug, Args)]
pub struct Completions {}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Completions) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "completions is not there yet"))
}
