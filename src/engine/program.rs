//! Programs beside the containers: loggers, reaped as every child is. (Hooks are run by a process that waits for them,
//! [`crate::init::hooks`].)

use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Os, Result};
use crate::sys::fork::Child;
use crate::sys::pidfd;
use crate::sys::spawn::{self, Program, Spawned};

use super::Engine;
use super::events::Exit;
use super::ready::watch;

/// A program that the shim has started.
pub(super) struct Running {
    spawned: Spawned,
    exited: oneshot::Receiver<Exit>,
}

impl Engine {
    /// Starts `program`, and takes note of its process in the same breath.
    pub(super) fn run_program(&self, program: &Program) -> Result<Running> {
        self.run_program_after(program, || Ok(()))
    }

    /// The same with something done in its process before it is executed, with no descriptors but the program's.
    pub(super) fn run_program_after(&self, program: &Program, last: impl FnOnce() -> Result<()>) -> Result<Running> {
        let spawned = spawn::spawn_after(program, last)?;
        let exited = self.note_helper(spawned.child.pid);
        Ok(Running { spawned, exited })
    }
}

impl Running {
    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.spawned.child.pid as u32
    }

    /// Waits for its end. May be given up and called again, until it has returned.
    ///
    /// # Errors
    /// That it could not be executed.
    pub(super) async fn end(&mut self) -> Result<Exit> {
        let lost = |_| Error::new(Kind::Internal, "nobody has waited for the program");
        let exit = (&mut self.exited).await.map_err(lost)?;
        self.spawned.refused().map_or(Ok(exit), Err)
    }

    /// Waits until it is executed.
    ///
    /// # Errors
    /// That it could not be.
    pub(super) async fn executed(&mut self) -> Result<()> {
        let verdict = watch(self.spawned.verdict(), Interest::READABLE)?;
        verdict.readable().await.os(|| "epoll_wait").map(drop)?;
        drop(verdict);
        self.spawned.refused().map_or(Ok(()), Err)
    }

    /// Sends a signal to it alone.
    pub(super) fn signal(&self, signal: u32) {
        // Gone already: its end will tell.
        let _ = pidfd::kill(&self.spawned.child.pidfd, signal);
    }

    /// What ends it, and its process group, by its own end.
    pub(super) fn ended_with_this(&self) -> Result<EndedWithThis> {
        let Child { pid, pidfd } = &self.spawned.child;
        Ok(EndedWithThis(Child { pid: *pid, pidfd: pidfd.try_clone().os(|| "dup")? }))
    }

    /// SIGKILL for it and its process group, unless it has been reaped.
    pub(super) fn kill(&self) {
        self.spawned.kill_group();
    }
}

/// SIGKILL for a program and its process group when this is dropped, unless it has been reaped.
pub(super) struct EndedWithThis(Child);

impl Drop for EndedWithThis {
    fn drop(&mut self) {
        spawn::kill_group(&self.0);
    }
}
