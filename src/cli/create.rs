//! `dray create`

use std::process::ExitCode;

use clap::Args;

use super::making::Making;
use super::trace::Tracing;
use super::{Global, runtime};
use crate::engine::state::StateDir;
use crate::error::Result;

/// Makes a container, whose program waits for `start`.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    making: Making,
    #[command(flatten)]
    tracing: Tracing,
    /// The container's id.
    pub id: String,
}

/// Runs it: the container's init is left behind, and waits at a fifo.
///
/// # Errors
/// As [`crate::engine::Engine::create`]. Then nothing of the container is left.
pub fn run(global: &Global, args: Create) -> Result<ExitCode> {
    runtime::seal()?;
    let (request, _) = args.making.request(global, &args.id, true, true)?;
    let (root, namespace) = runtime::new_place(global)?;
    let state = StateDir::new(&root, &namespace, &args.id)?;
    runtime::run(global, (&root, &namespace), true, async |engine, mut signals| {
        let made = args.making.make(&engine, request, &mut signals).await;
        args.tracing.told(made, &engine, &state, &args.id)?;
        Ok(ExitCode::SUCCESS)
    })
}
