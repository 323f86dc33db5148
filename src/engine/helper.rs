//! Work that may block in the kernel, done by a forked child while the loop goes on.
//!
//! The last unmount of an overlay writes out the file system below it, which takes as long as the disk does; other
//! containers of the pod, and containerd's questions about them (2 s for State), must not wait for it.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Os, Result};
use crate::init::sync::{self, ChildEnd, Heard, ParentEnd};
use crate::sys::fork::{self, exit_now};
use crate::sys::ns::Birthplace;
use crate::sys::{cred, fd, pidfd};

use super::Engine;
use super::container::Process;
use super::events::Exit;

/// Whose a child is.
pub(super) enum Child {
    /// A container's process.
    Process(Rc<Process>),
    /// One that makes a container's process, and of whose end that process tells.
    Maker,
    /// A helper, and who waits for it.
    Helper(oneshot::Sender<Exit>),
}

impl Engine {
    /// Does `work` in a child of its own, and waits for it at most for `bound`; then the child is killed, which takes
    /// effect when the kernel lets go of it.
    ///
    /// `work` runs with all descriptors closed.
    ///
    /// # Errors
    /// What `work` says; `DeadlineExceeded`.
    pub(super) async fn in_child(
        &self,
        what: &'static str,
        bound: Duration,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.in_child_at(what, bound, None, &[], work).await
    }

    /// The same with the child told to `note`, for who gives up waiting and has to know when it is gone, and for who comes
    /// after the shim: what a killed child does in the kernel it may still bring to its end.
    pub(super) async fn in_child_noted(
        &self,
        what: &'static str,
        bound: Duration,
        note: impl FnOnce(i32, OwnedFd) -> Result<()>,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let child = self.fork_helper(what, None, &[], work)?;
        if let Some(pidfd) = &child.pidfd {
            note(child.pid, pidfd.0.try_clone().os(|| "dup")?)?;
        }
        child.done(what, bound).await
    }

    /// The same in other namespaces, with the descriptors `keep` left open.
    pub(super) async fn in_child_at(
        &self,
        what: &'static str,
        bound: Duration,
        place: Option<Birthplace<'_>>,
        keep: &[BorrowedFd<'_>],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.fork_helper(what, place, keep, work)?.done(what, bound).await
    }

    /// The same without a bound, for work that has something to end of its own: where nobody waits any more, and where
    /// the shim dies, the child is not killed but told so, by a hang-up of the descriptor that `work` is given.
    pub(super) async fn in_child_told(
        &self,
        what: &'static str,
        work: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        let (ours, theirs) = sync::pair()?;
        let child = fork::fork(0, None, None, |_| run(what, || work(theirs.as_fd()), &[], &theirs, None))?;
        let exited = self.note_helper(child.pid);
        Helper { pid: child.pid, pidfd: None, exited, answer: ours }.done(what, Duration::MAX).await
    }

    fn fork_helper(
        &self,
        what: &'static str,
        place: Option<Birthplace<'_>>,
        keep: &[BorrowedFd<'_>],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Helper> {
        let (ours, theirs) = sync::pair()?;
        let us = rustix::process::getpid();
        let child = fork::fork(0, place, None, |_| run(what, work, keep, &theirs, Some(us)))?;
        let exited = self.note_helper(child.pid);
        Ok(Helper { pid: child.pid, pidfd: Some(KilledOnDrop(child.pidfd)), exited, answer: ours })
    }

    /// Takes note of a child that has just been forked, and is no container's process; returns where its end will be told.
    pub(super) fn note_helper(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (done, exited) = oneshot::channel();
        self.children.borrow_mut().insert(pid, Child::Helper(done));
        exited
    }
}

/// A helper under way.
struct Helper {
    pid: i32,
    /// None for one that ends by itself.
    pidfd: Option<KilledOnDrop>,
    exited: oneshot::Receiver<Exit>,
    answer: ParentEnd,
}

impl Helper {
    async fn done(self, what: &'static str, bound: Duration) -> Result<()> {
        if tokio::time::timeout(bound, self.exited).await.is_err() {
            let text = format!("{what}: not done within {} s", bound.as_secs());
            return Err(Error::new(Kind::DeadlineExceeded, text));
        }
        match self.answer.receive()? {
            Heard::Ready => Ok(()),
            Heard::Failed(error) => Err(error),
            _ => Err(Error::new(Kind::Internal, format!("{what}: the helper died without a word"))),
        }
    }
}

/// A helper for which nobody waits any more is to end. To one that has ended it is nothing.
struct KilledOnDrop(OwnedFd);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = pidfd::kill(&self.0, libc::SIGKILL as u32);
    }
}

/// Dies with `parent`, where there is one.
fn run(
    what: &str,
    work: impl FnOnce() -> Result<()>,
    keep: &[BorrowedFd<'_>],
    answer: &ChildEnd,
    parent: Option<Pid>,
) -> Infallible {
    let all = || {
        fd::close_all_but(&[keep, &[answer.as_fd()]].concat())?;
        if let Some(parent) = parent
            && !cred::die_with(parent)?
        {
            // Whoever cleans up after the shim does the work.
            exit_now(0);
        }
        work()
    };
    let panicked = |_| Err(Error::new(Kind::Internal, "panic"));
    match catch_unwind(AssertUnwindSafe(all)).unwrap_or_else(panicked) {
        Ok(()) => answer.done(),
        Err(error) => answer.fail(what, &error),
    }
    exit_now(0)
}
