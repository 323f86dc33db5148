//! `dray features`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Prints what this runtime can do, as the runtime specification has it.
#[derive(Debug, Args)]
pub struct Features {}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Features) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "features is not there yet"))
}
