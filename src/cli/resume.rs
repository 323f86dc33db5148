//! `dray resume`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Lets a paused container go on.
#[derive(Debug, Args)]
pub struct Resume {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Resume) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "resume is not there yet"))
}
