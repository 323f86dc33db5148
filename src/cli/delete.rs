//! `dray delete`

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;

use super::target::{self, Found, Owner};
use super::{Global, runtime};
use crate::engine::Engine;
use crate::engine::adopt::{Status, status_of};
use crate::engine::remains::{Unmount, cgroup_of, remove_saved};
use crate::engine::state::StateDir;
use crate::error::{Error, Kind, Result};
use crate::shim::client::{self, Client};
use crate::sys::pidfd;

/// How long a container of a shim's may take to die.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// Removes a container that has stopped.
#[derive(Debug, Args)]
pub struct Delete {
    /// Kill it if it runs; no error if there is none
    #[arg(short, long)]
    force: bool,
    /// The container.
    pub id: String,
}

/// Runs it.
///
/// # Errors
/// In runc's words for one that runs; what could not be removed.
pub fn run(global: &Global, args: Delete) -> Result<ExitCode> {
    let deleted = match target::find(global, &args.id) {
        Ok(found) => delete(global, found, args.force),
        Err(missing) if missing.kind() == Kind::NotFound => {
            let aborted = remove_aborted(global, &args.id)?;
            if aborted || args.force { Ok(()) } else { Err(missing) }
        }
        Err(error) => Err(error),
    };
    match deleted {
        // Somebody else has deleted it meanwhile.
        Err(e) if args.force && e.kind() == Kind::NotFound => Ok(ExitCode::SUCCESS),
        deleted => deleted.map(|()| ExitCode::SUCCESS),
    }
}

fn delete(global: &Global, found: Found, force: bool) -> Result<()> {
    target::with_engine(global, found, async |found, engine, mut signals| {
        // What is half removed can be removed by another delete.
        runtime::unless_ended(&mut signals, delete_by(&engine, found, force)).await
    })
}

async fn delete_by(engine: &Rc<Engine>, found: Found, force: bool) -> Result<()> {
    let id = found.saved.id.clone();
    if force {
        end_holder(engine, &found).await?;
    }
    let target = found.open().await?;
    match target.owner {
        Owner::Shim(client) => by_shim(&client, &id, force).await,
        Owner::Nobody(_lock) => {
            let Found { state, saved, .. } = &target.found;
            let status = status_of(engine.hierarchies(), state, saved);
            // One that is being created is on its way from a `run` to its program, or from a `restore`.
            let may = matches!(status, Status::Created | Status::Stopped);
            if !may && !force {
                return Err(not_stopped(&id, status.name()));
            }
            remove(engine, state).await.map_err(|e| e.context(format!("container {id}")))
        }
    }
}

async fn remove(engine: &Rc<Engine>, state: &StateDir) -> Result<()> {
    remove_saved(engine.hierarchies(), state, Unmount::Beside(engine)).await.map(drop)
}

/// Who makes or starts a container has it locked until that is done, which with a hook that hangs is never.
async fn end_holder(engine: &Engine, found: &Found) -> Result<()> {
    let saved = &found.saved;
    if found.is_a_shims() || found.state.lock_within(Duration::ZERO).await.is_ok() {
        return Ok(());
    }
    // A create undoes what it has done.
    if let Some(creator) = saved.owner.open().filter(|_| saved.by_command) {
        let _ = pidfd::kill(&creator, libc::SIGTERM as u32);
    }
    // A start hears of the end of its container.
    if let Some(init) = saved.init.and_then(|init| init.open()) {
        let _ = pidfd::kill(&init, libc::SIGKILL as u32);
        // In the v1 freezer it would not die.
        cgroup_of(engine.hierarchies(), saved)?.map_or(Ok(()), |cgroup| cgroup.thaw())?;
    }
    Ok(())
}

/// What containerd would ask for: the shim tells it that the container is gone.
async fn by_shim(client: &Client, id: &str, force: bool) -> Result<()> {
    let status = client.state(id, "").await?.status;
    match status {
        client::Status::Stopped | client::Status::Created => {}
        _ if force => {
            match client.kill(id, "", libc::SIGKILL as u32, true).await {
                Err(e) if e.kind() != Kind::NotFound => return Err(e),
                _ => {}
            }
            let text = || Error::new(Kind::DeadlineExceeded, format!("container {id}: it does not end"));
            tokio::time::timeout(KILL_BOUND, client.wait(id, "")).await.map_err(|_| text())??;
        }
        other => return Err(not_stopped(id, &format!("{other:?}").to_lowercase())),
    }
    client.delete(id, "").await.map(drop)
}

fn not_stopped(id: &str, status: &str) -> Error {
    let text = format!("cannot delete container {id} that is not stopped: {status}");
    Error::new(Kind::FailedPrecondition, text)
}

/// Removes what a create has left that did not come so far as to have a state; whether there was something.
fn remove_aborted(global: &Global, id: &str) -> Result<bool> {
    let (root, namespace) = global.place()?;
    let mut found = false;
    for namespace in target::namespaces(&root, namespace)? {
        let state = StateDir::new(&root, &namespace, id)?;
        if let Some(_lock) = state.lock()?
            && state.load()?.is_none()
        {
            state.remove_aborted().map_err(|e| e.context(format!("container {id}")))?;
            found = true;
        }
    }
    Ok(found)
}
