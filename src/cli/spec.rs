//! `dray spec`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Writes a specification to begin with.
#[derive(Debug, Args)]
pub struct Spec {}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Spec) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "spec is not there yet"))
}
