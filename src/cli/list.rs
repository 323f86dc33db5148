//! `dray list`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Lists containers.
#[derive(Debug, Args)]
pub struct List {}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: List) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "list is not there yet"))
}
