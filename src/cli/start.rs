//! `dray start`

use std::fs::File;
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use futures::future::{Either, select};

use super::target::{self, Owner};
use super::trace::Tracing;
use super::{Global, runtime};
use crate::engine::Engine;
use crate::engine::adopt::{Status, status_of};
use crate::error::{Error, Kind, Result};

/// How long a container that is killed may take to be no more.
const KILL_BOUND: Duration = Duration::from_secs(10);

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
    target::with_engine(global, found, async |found, engine, mut signals| {
        let target = runtime::unless_ended(&mut signals, found.open()).await?;
        match target.owner {
            Owner::Shim(client) => {
                let started = runtime::unless_ended(&mut signals, client.start(&args.id, "")).await;
                args.tracing.show_last(&client, &args.id, "").await;
                started?;
            }
            Owner::Nobody(lock) => {
                let status = status_of(engine.hierarchies(), &target.found.state, &target.found.saved);
                refuse(status).map_err(|e| e.context(format!("container {}", args.id)))?;
                engine.adopt(&target.found.state)?;
                let mut lock = Some(lock);
                let started = start(&engine, &args.id, &mut lock, &mut signals).await;
                match lock {
                    Some(_) => args.tracing.told(started, &engine, &target.found.state, &args.id)?,
                    // Its directory may be another's by now.
                    None => {
                        args.tracing.show(engine.traced(&args.id, None).unwrap_or_default());
                        started?
                    }
                };
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Has it started. A hook may take for ever: a signal that asks for an end is the container's; and one that has ended
/// meanwhile is anybody's to delete, while its hooks are still run.
async fn start(engine: &Rc<Engine>, id: &str, lock: &mut Option<File>, signals: &mut runtime::Signals) -> Result<u32> {
    let init = engine.process(id, "")?;
    let mut starting = pin!(engine.clone().start(id.to_owned(), String::new()));
    let unlocked = async {
        init.wait().await;
        lock.take();
        std::future::pending::<()>().await
    };
    let signal = {
        let asked = pin!(runtime::asked_to_end(signals));
        match select(starting.as_mut(), select(asked, pin!(unlocked))).await {
            Either::Left((started, _)) => return started,
            Either::Right((Either::Left((signal, _)), _)) => signal,
            Either::Right((Either::Right(_), _)) => unreachable!("it is pending"),
        }
    };
    match engine.kill(id, "", libc::SIGKILL as u32) {
        Err(e) if e.kind() != Kind::NotFound => log::error!("{e}"),
        _ => {}
    }
    if tokio::time::timeout(KILL_BOUND, init.wait()).await.is_err() {
        log::error!("container {id}: process {} does not end", init.pid());
    }
    Err(runtime::given_up(signal).context(format!("container {id}")))
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
