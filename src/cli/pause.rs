//! `dray pause`

use std::pin::pin;
use std::process::ExitCode;

use clap::Args;
use futures::future::{Either, select};

use super::Global;
use super::runtime::{asked_to_end, given_up, unless_ended};
use super::status::not_running;
use super::target::{self, Owner};
use crate::engine::adopt::Status;
use crate::error::Result;

/// Makes a container stand still.
#[derive(Debug, Args)]
pub struct Pause {
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// "container not running", also of one that is paused already.
pub fn run(global: &Global, args: Pause) -> Result<ExitCode> {
    target::change(global, &args.id, async |target, engine, mut signals| {
        match unless_ended(&mut signals, target.found.status()).await? {
            Status::Created | Status::Running => {}
            _ => return Err(not_running(&args.id)),
        }
        match target.owner {
            Owner::Shim(shim) => unless_ended(&mut signals, shim.pause(&args.id)).await,
            Owner::Nobody(_) => {
                let pausing = pin!(engine.clone().pause(args.id.clone()));
                match select(pausing, pin!(asked_to_end(&mut signals))).await {
                    Either::Left((paused, _)) => paused,
                    // Nothing of it is left standing still.
                    Either::Right((signal, pausing)) => {
                        engine.resume(&args.id)?;
                        pausing.await.map_err(|e| e.context(given_up(signal).to_string()))
                    }
                }
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
