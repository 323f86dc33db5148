//! Delete: a stopped container, a created one after a kill, an exec that has ended.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::error::{Error, Kind, Result};

use super::Engine;
use super::container::{Container, Process};
use super::events::{Event, Exit};
use super::lifecycle::{self, State};
use super::remains::{KILL_BOUND, Remains, Unmount};
use super::trace::{self, Step};

/// How long output may still be relayed when its process is deleted: containerd's own shim waits as long.
const DRAIN_BOUND: Duration = Duration::from_secs(10);

/// What was deleted.
#[derive(Clone, Copy, Debug)]
pub struct Deleted {
    /// The pid that it had; 0 for an exec that was never started.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

/// A delete under way. However it ends, in a panic too, what could not be removed is the container's again, and it can be
/// deleted again.
struct Deleting<'a> {
    container: &'a Container,
    remains: Remains,
}

impl Drop for Deleting<'_> {
    fn drop(&mut self) {
        self.container.remains.replace(std::mem::take(&mut self.remains));
        self.container.deleting.set(false);
    }
}

impl Engine {
    /// Deletes a container (`exec` empty) or an exec. Can be called again after an error, and goes on where it was.
    ///
    /// # Errors
    /// `NotFound`; of a container that is being created too, when that has been given up. One that is being restored, which
    /// has not been started, is given up and deleted.
    /// `FailedPrecondition` while it runs; what could not be removed.
    pub async fn delete(self: Rc<Self>, id: String, exec: String) -> Result<Deleted> {
        if exec.is_empty() {
            self.give_up_create(&id).await;
            if let Ok(container) = self.container(&id) {
                container.end_restore().await;
            }
        }
        let container = self.container(&id)?;
        let process = container.process(&exec)?;
        process.state().after(lifecycle::Event::Delete).map_err(|e| e.context(process.to_string()))?;
        if !exec.is_empty() {
            return Ok(Self::delete_exec(&container, &process).await);
        }
        if container.deleting.replace(true) {
            return Err(Error::new(Kind::FailedPrecondition, format!("{process}: it is being deleted")));
        }
        let mut deleting = Deleting { remains: container.remains.take(), container: &container };
        let deleted = self.delete_container(&container, &mut deleting.remains).await;
        drop(deleting);
        deleted.map_err(|e| e.context(process.to_string()))
    }

    async fn delete_exec(container: &Container, exec: &Process) -> Deleted {
        drain(exec).await;
        container.execs.borrow_mut().remove(&exec.exec);
        Deleted { pid: exec.pid(), exit: Self::end_of(exec) }
    }

    /// An exec that was never started has no end either; whoever waits for it is told that it is over.
    fn end_of(exec: &Process) -> Exit {
        let exit = exec.exit().unwrap_or(Exit { status: 0, at: SystemTime::now() });
        exec.set_exit(exit);
        exit
    }

    async fn delete_container(&self, container: &Container, remains: &mut Remains) -> Result<Deleted> {
        let trace = self.traces.begin(trace::Kind::Delete, &container.id, "", Step::Ending);
        let init = &container.init;
        if init.pid() == 0 {
            // To be restored, and never was: there is nothing to end. Of a restore that was given up the end is told anyhow.
            container.restore.take();
            if init.reaped.get().is_none() {
                init.set_exit(Exit { status: 0, at: SystemTime::now() });
            }
        } else if init.state() == State::Created {
            match init.signal(libc::SIGKILL as u32) {
                Err(e) if e.kind() != Kind::NotFound => return Err(e),
                _ => {}
            }
        }
        let Ok(exit) = tokio::time::timeout(KILL_BOUND, init.wait()).await else {
            let text = format!("process {} has not ended {} s after SIGKILL", init.pid(), KILL_BOUND.as_secs());
            return Err(Error::new(Kind::DeadlineExceeded, text));
        };
        trace.at(Step::Draining);
        drain(init).await;
        trace.at(Step::Removing);
        remains.remove(Unmount::Beside(self)).await?;
        self.containers.borrow_mut().remove(&container.id);
        for exec in container.execs.borrow().values() {
            Self::end_of(exec);
        }
        self.emit(Event::Delete { id: container.id.clone(), pid: init.pid(), exit });
        trace.done();
        Ok(Deleted { pid: init.pid(), exit })
    }
}

/// Gives the streams their time to end, and closes them.
async fn drain(process: &Process) {
    let stdio = process.stdio.borrow().clone();
    if let Some(stdio) = stdio
        && !stdio.drained(DRAIN_BOUND).await
    {
        let bound = DRAIN_BOUND.as_secs();
        log::warn!("{process}: output was still coming {bound} s after its end; what is left is lost");
    }
    process.stdio.borrow_mut().take();
}
