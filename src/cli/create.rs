//! `dray create`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Makes a container, whose program waits for `start`.
#[derive(Debug, Args)]
pub struct Create {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Create) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "create is not there yet"))
}
