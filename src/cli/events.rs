//! `dray events`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Prints what happens to a container, and its numbers.
#[derive(Debug, Args)]
pub struct Events {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Events) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "events is not there yet"))
}
