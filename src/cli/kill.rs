//! `dray kill`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Sends a signal to a container.
#[derive(Debug, Args)]
pub struct Kill {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Kill) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "kill is not there yet"))
}
