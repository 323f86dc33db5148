//! Kill: whom a signal reaches.

use crate::error::{Error, Kind, Result};
use crate::sys::pidfd;

use super::Engine;
use super::container::{Container, Process};
use super::lifecycle::State;

const SIGKILL: u32 = libc::SIGKILL as u32;

impl Engine {
    /// Sends `signal` to an exec, or to the container: to its init alone, but SIGKILL to all of a container that has no
    /// pid namespace of its own, whose other processes would outlive init.
    ///
    /// Nothing changes here by a signal being sent: only an exit that the reaper sees does. What one round of killing
    /// leaves, where the kernel has no cgroup.kill, dies with init, whose exit kills until the cgroup is empty; nothing
    /// goes on killing on its own, as the cgroup's path may be another container's by then.
    ///
    /// An init that is being restored may have no process yet: SIGKILL ends the restore, and by that it.
    ///
    /// A paused container is thawed by SIGKILL, for in the v1 freezer it would not die. Any other signal, and one for an
    /// exec, waits until it is resumed.
    ///
    /// # Errors
    /// `NotFound` for what has ended.
    pub fn kill(&self, id: &str, exec: &str, signal: u32) -> Result<()> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Self::kill_process(&container, &process, signal)
    }

    /// Sends `signal` to every process of a container; none is no error. One that is born meanwhile may go without.
    ///
    /// # Errors
    /// `NotFound` for the container; what kill(2) says.
    pub fn kill_everyone(&self, id: &str, signal: u32) -> Result<()> {
        let container = self.container(id)?;
        if signal == SIGKILL && container.give_up_restore() {
            return Ok(());
        }
        if container.init.pid() == 0 && container.init.state() != State::Stopped {
            // To be restored: what is where its cgroup is to be may be another's.
            return container.init.signal(signal);
        }
        let name = |e: Error| e.context(format!("container {id}: kill"));
        if signal == SIGKILL && container.cgroup.is_anywhere() {
            return container.cgroup.kill().and_then(|_| container.thaw_to_die()).map_err(name);
        }
        // One that has ended has none to send it to: that is no error, for who sends it to whatever there is.
        let mut sent = match container.init.state() {
            State::Stopped => Ok(()),
            _ => container.init.signal(signal),
        };
        for pid in container.cgroup.procs().map_err(name)?.into_iter().filter(|pid| *pid != container.init.pid()) {
            let Ok(pidfd) = pidfd::open(pid as i32) else { continue };
            // The number may be another's by now: whose the pidfd is, is in the cgroup, or was.
            if container.cgroup.procs().map_err(name)?.contains(&pid) && signal != 0 {
                sent = sent.and(pidfd::kill(&pidfd, signal));
            }
        }
        match sent {
            Err(e) if e.kind() != Kind::NotFound => Err(name(e)),
            _ => Ok(()),
        }
    }

    /// The same, of a process of this container.
    pub(super) fn kill_process(container: &Container, process: &Process, signal: u32) -> Result<()> {
        let (id, exec) = (&container.id, &process.exec);
        if exec.is_empty() && signal == SIGKILL && container.give_up_restore() {
            return Ok(());
        }
        if !exec.is_empty() || signal != SIGKILL || container.private_pid_ns {
            process.signal(signal)?;
            return match exec.is_empty() && signal == SIGKILL {
                true => container.thaw_to_die(),
                false => Ok(()),
            };
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
        if !container.cgroup.is_anywhere() {
            log::warn!("container {id}: without a cgroup and a pid namespace of its own only its init can be killed");
        }
        let killed = container.cgroup.kill().and_then(|_| container.thaw_to_die());
        killed.map_err(|e| e.context(format!("container {id}: kill")))
    }
}
