//! `dray update`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Changes the limits of a container.
#[derive(Debug, Args)]
pub struct Update {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Update) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "update is not there yet"))
}
