//! `dray state`

use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Result};

/// Prints the state of a container, as the runtime specification has it.
#[derive(Debug, Args)]
pub struct State {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `Unimplemented`.
pub fn run(_global: &Global, _args: State) -> Result<ExitCode> {
    Err(Error::new(Kind::Unimplemented, "state is not there yet"))
}
