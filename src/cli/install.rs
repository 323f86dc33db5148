//! `dray install`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Puts the binary in place, and tells containerd, Docker and Kubernetes of it.
#[derive(Debug, Args)]
pub struct Install {}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: Install) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "install is not there yet"))
}
