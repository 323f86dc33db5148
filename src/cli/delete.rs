//! `dray delete`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Removes a container that has stopped.
#[derive(Debug, Args)]
pub struct Delete {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Delete) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "delete is not there yet"))
}
