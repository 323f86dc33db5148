//! Kill: whom a signal reaches.

use std::rc::Rc;
use std::time::Duration;

use crate::error::{Error, Kind, Result};

use super::Engine;
use super::lifecycle::State;
use super::remains::kill_all;

/// How long the processes of a container without a pid namespace are pursued in the background after a SIGKILL.
const PURSUIT: Duration = Duration::from_secs(30);

const SIGKILL: u32 = libc::SIGKILL as u32;

impl Engine {
    /// Sends `signal` to an exec, or to the container: to its init alone, but SIGKILL to all of a container that has no
    /// pid namespace of its own, whose other processes would outlive init.
    ///
    /// Nothing changes here by a signal being sent: only an exit that the reaper sees does.
    ///
    /// # Errors
    /// `NotFound` for what has ended.
    pub fn kill(self: &Rc<Self>, id: &str, exec: &str, signal: u32) -> Result<()> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if !exec.is_empty() || signal != SIGKILL || container.private_pid_ns {
            return process.signal(signal);
        }
        if process.state() == State::Stopped {
            return Err(Error::new(Kind::NotFound, format!("{process}: process already finished")));
        }
        // It may have left its cgroup (a privileged container can, or an operator moves it), and dies there too; what is
        // around it there is not ours.
        match process.signal(SIGKILL) {
            Err(e) if e.kind() != Kind::NotFound => return Err(e),
            _ => {}
        }
        // One round now, so that the caller hears of a failure; the rest, should the cgroup not be empty by then, beside.
        container.cgroup.kill().map_err(|e| e.context(format!("container {id}: kill")))?;
        let pursued = container.clone();
        tokio::task::spawn_local(async move {
            if let Err(e) = kill_all(&pursued.cgroup, PURSUIT).await {
                log::warn!("container {}: {e}", pursued.id);
            }
        });
        Ok(())
    }
}
