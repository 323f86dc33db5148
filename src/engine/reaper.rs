//! The only waiter. SIGCHLD, then waitpid until there is nothing to wait for; each exit goes to the process whose it is.
//!
//! A child is in the engine's table from its birth, in the same step of the one thread that forks it, so no exit comes
//! before its owner is known. The one exception is a process in a joined pid namespace, to which a child of ours gives birth: exits of the
//! unknown are kept while there is such a birth under way. What else is not in the table is an orphan that the subreaper
//! inherited, and is only reaped.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use rustix::process::{WaitOptions, WaitStatus};

use crate::error::{Error, Kind, Result};
use crate::sys::{fork, pidfd};

use super::Engine;
use super::container::{Container, Process};
use super::events::{Event, Exit};
use super::helper::Child;
use super::lifecycle::{self, State};
use super::remains::{KILL_BOUND, kill_all};

/// How long init's exit is held back for execs that were killed with it and whose exits have not been seen.
const EXEC_BOUND: Duration = Duration::from_secs(5);

impl Engine {
    /// Reaps every child that has ended.
    pub fn reap(self: &Rc<Self>) {
        // Not by nix: it turns a death by a real-time signal into an error, after having reaped it.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let exit = Exit { status: exit_status(status), at: SystemTime::now() };
            let child = self.children.borrow_mut().remove(&pid.as_raw_nonzero().get());
            match child {
                Some(Child::Process(process)) => self.reaped(&process, exit),
                Some(Child::Maker) => {}
                Some(Child::Helper(done)) => drop(done.send(exit)),
                None if self.births.get() > 0 => {
                    self.strangers.borrow_mut().insert(pid.as_raw_nonzero().get(), exit);
                }
                None => {}
            }
        }
    }

    /// Takes note of how a process has ended.
    pub(super) fn reaped(self: &Rc<Self>, process: &Rc<Process>, exit: Exit) {
        process.reaped.set(Some(exit));
        if let Some(stdio) = &*process.stdio.borrow() {
            stdio.process_ended();
        }
        self.exited(process);
    }

    /// Takes note of a process of which its maker has told; it may have ended since.
    ///
    /// # Errors
    /// `Internal` where it is not the maker who tells: the process itself has the same socket, in reach of who can take it
    /// over in its container.
    pub(super) fn note_birth(self: &Rc<Self>, process: &Rc<Process>, by: i32, child: fork::Child) -> Result<()> {
        if process.maker.borrow().as_ref().is_none_or(|maker| maker.pid != by) {
            return Err(Error::new(
                Kind::Internal,
                format!("process {by} tells of a birth that is not its to tell of"),
            ));
        }
        process.maker.take();
        let pid = child.pid;
        // Where it has ended and can still be waited for, an exit of that number was another's.
        let reaped = pidfd::has_exited(&child.pidfd) && !pidfd::can_be_waited_for(&child.pidfd);
        process.born(child);
        match self.strangers.borrow_mut().remove(&pid).filter(|_| reaped) {
            Some(exit) => self.reaped(process, exit),
            None => drop(self.children.borrow_mut().insert(pid, Child::Process(process.clone()))),
        }
        Ok(())
    }

    /// Takes note of an exit, as soon as that is in order: after the start that it belongs to.
    pub(super) fn exited(self: &Rc<Self>, process: &Rc<Process>) {
        let Some(exit) = process.reaped.get() else { return };
        let Ok(container) = self.container(&process.container) else {
            // A create that is failing waits for this.
            process.set_exit(exit);
            return;
        };
        // One of a former container of this id, whose removal did not wait for it.
        if !container.process(&process.exec).is_ok_and(|own| Rc::ptr_eq(&own, process)) {
            process.set_exit(exit);
            return;
        }
        if process.exec.is_empty() {
            container.init_reaped.set(true);
            // Their makers are in its cgroup, and not in its pid namespace, which has ended.
            container.execs.borrow().values().for_each(|exec| exec.give_up_birth());
            container.thaw_to_die().unwrap_or_else(|e| log::warn!("{process}: {e}"));
        }
        // Whoever starts it calls this again when the start event is out. Stopped is an exec that has failed to start: there
        // is nothing to tell.
        if matches!(process.state(), State::Starting | State::Stopped) {
            return;
        }
        match process.exec.as_str() {
            "" => self.init_exited(container, exit),
            _ => self.finish_when_delivered(container, process.clone(), exit),
        }
    }

    /// Tells the exit when the process's output has been read, which mostly it has.
    fn finish_when_delivered(self: &Rc<Self>, container: Rc<Container>, process: Rc<Process>, exit: Exit) {
        let stdio = process.stdio.borrow().clone().filter(|stdio| !stdio.is_delivered());
        let Some(stdio) = stdio else { return self.finish(&container, &process, exit) };
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            stdio.delivered().await;
            engine.finish(&container, &process, exit);
        });
    }

    /// Init's exit is the last that the world hears of: after all execs', and when nothing of the container runs.
    fn init_exited(self: &Rc<Self>, container: Rc<Container>, exit: Exit) {
        if container.private_pid_ns && !container.has_running_execs() {
            let init = container.init.clone();
            return self.finish_when_delivered(container, init, exit);
        }
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            // Without a pid it was never restored.
            if !container.private_pid_ns
                && container.init.pid() != 0
                && let Err(e) = kill_what_is_left(&container).await
            {
                log::warn!("container {}: its init has exited: {e}", container.id);
            }
            let execs = async {
                while container.has_running_execs() {
                    container.exec_ended.notified().await;
                }
            };
            if tokio::time::timeout(EXEC_BOUND, execs).await.is_err() {
                log::warn!("container {}: its init has exited, but not its execs", container.id);
            }
            let init = container.init.clone();
            engine.finish_when_delivered(container, init, exit);
        });
    }

    fn finish(&self, container: &Container, process: &Process, exit: Exit) {
        if let Err(e) = process.advance(lifecycle::Event::Exited) {
            log::error!("{e}");
            return;
        }
        self.tell_oom_before_exit(container, process, exit.status);
        let id = if process.exec.is_empty() { &process.container } else { &process.exec };
        self.emit(Event::Exit { container: process.container.clone(), id: id.clone(), pid: process.pid(), exit });
        process.set_exit(exit);
        container.exec_ended.notify_waiters();
    }
}

/// Another process may have removed a container that is not ours alone, and its cgroup's path be the next one's.
async fn kill_what_is_left(container: &Container) -> Result<()> {
    if !container.remains.borrow().has_its_cgroup()? {
        return Ok(());
    }
    kill_all(&container.cgroup, KILL_BOUND).await
}

/// As a shell has it: the exit status, or 128 and the signal's number.
fn exit_status(status: WaitStatus) -> u32 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.unwrap_or(255) as u32
}
