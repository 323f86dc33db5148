//! `dray pause`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Makes a container stand still.
#[derive(Debug, Args)]
pub struct Pause {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Pause) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "pause is not there yet"))
}
