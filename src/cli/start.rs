//! `dray start`

use std::process::ExitCode;

use clap::Args;

use super::target::{self, Owner};
use super::trace::Tracing;
use super::{Global, runtime};
use crate::engine::adopt::{Status, status_of};
use crate::error::{Error, Kind, Result};

/// Starts the program of a created container.
#[derive(Debug, Args)]
pub struct Start {
    #[command(flatten)]
    tracing: Tracing,
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// In runc's words for a container that is not to be started now.
pub fn run(global: &Global, args: Start) -> Result<ExitCode> {
    let found = target::find(global, &args.id)?;
    let (root, _) = global.place()?;
    let namespace = found.namespace.clone();
    runtime::run(global, (&root, &namespace), false, async |engine, _signals| {
        let target = found.open().await?;
        match target.owner {
            Owner::Shim(client) => {
                let started = client.start(&args.id, "").await;
                args.tracing.show_last(&client, &args.id, "").await;
                started?;
            }
            Owner::Nobody(_lock) => {
                let status = status_of(engine.hierarchies(), &target.found.state, &target.found.saved);
                refuse(status).map_err(|e| e.context(format!("container {}", args.id)))?;
                engine.adopt(&target.found.state)?;
                let started = engine.clone().start(args.id.clone(), String::new()).await;
                args.tracing.told(started, &engine, &target.found.state, &args.id)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn refuse(status: Status) -> Result<()> {
    let text = match status {
        Status::Created => return Ok(()),
        Status::Stopped => "cannot start a container that has stopped".to_owned(),
        Status::Running => "cannot start an already running container".to_owned(),
        other => format!("cannot start a container in the {} state", other.name()),
    };
    Err(Error::new(Kind::FailedPrecondition, text))
}
