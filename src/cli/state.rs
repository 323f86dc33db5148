//! `dray state`

use std::process::ExitCode;

use clap::Args;

use super::{Global, output, target};
use crate::engine::host;
use crate::error::Result;

/// Prints the state of a container, as the runtime specification has it.
#[derive(Debug, Args)]
pub struct State {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// `NotFound`.
pub fn run(global: &Global, args: State) -> Result<ExitCode> {
    let found = target::find(global, &args.id)?;
    let status = host::block_on(found.status())?;
    // As runc prints it: no line ends after it.
    output::print(&output::pretty(&found.shown(status))?)?;
    Ok(ExitCode::SUCCESS)
}
