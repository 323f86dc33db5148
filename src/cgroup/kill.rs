//! Killing all that is in a cgroup, and nothing else.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Cgroup, file, members, populated, tree};
use crate::error::{Os, Result};

/// How often the members are listed in one round. Frozen, a second pass finds the children that were being born in
/// the first; against a kernel without a freezer it is a race, which the caller's next round goes on with.
const PASSES: usize = 16;

/// How many pidfds are held at a time: far below the usual limit of open files.
const BATCH: usize = 128;

/// How one round of [`Cgroup::kill`] was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killed {
    /// By the kernel's `cgroup.kill`: all in the cgroup and below, with what they fork meanwhile.
    Tree,
    /// One by one; so many of them.
    Members(usize),
}

impl Cgroup {
    /// Sends SIGKILL to every process in the cgroup and below it, once. To be called again until it is not
    /// [`Cgroup::populated`]; the processes die later than this returns.
    ///
    /// Thaws what is frozen in the v1 freezer: frozen there, a process would not die.
    pub fn kill(&self) -> Result<Killed> {
        // A process may be in a v1 hierarchy alone (moved by a privileged container): cgroup.kill does not reach it.
        // It comes when the cgroup2 side is empty.
        if let Some(unified) = self.hierarchies.unified.as_deref()
            && populated(unified, &self.path)?
        {
            let kill = unified.dir(&self.path).join("cgroup.kill");
            // Since Linux 5.14.
            match file::open_write(CWD, &kill).and_then(|fd| file::write_fd(fd, "1")) {
                Ok(()) => return self.thaw().map(|()| Killed::Tree),
                // OPNOTSUPP: a threaded cgroup, of whose processes other threads may be elsewhere.
                Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e).os(|| format!("write \"1\" to {}", kill.display())),
            }
        }
        self.kill_members().map(Killed::Members)
    }

    /// [`Cgroup::kill`] without `cgroup.kill`: freeze, list, signal by pidfd, thaw. Returns how many were signalled.
    pub fn kill_members(&self) -> Result<usize> {
        // Keeps a fork bomb from being faster than we are. Best effort: without it the kill needs more rounds.
        let _ = self.freeze();
        let killed = self.signal_members();
        // Also after an error: they have a SIGKILL pending, or go on as before.
        self.thaw()?;
        killed
    }

    fn signal_members(&self) -> Result<usize> {
        let mut done = BTreeSet::from([std::process::id()]);
        let mut killed = 0;
        for _ in 0..PASSES {
            let before = killed;
            for hierarchy in self.hierarchies.all() {
                tree::walk(&hierarchy.dir(&self.path), |dir| {
                    killed += signal_directory(dir, &mut done, &self.path)?;
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            if killed == before {
                break;
            }
        }
        Ok(killed)
    }
}

/// Signals the members of one directory that are not among `done`.
///
/// A number that was listed may be another process's by now. A pidfd does not change whom it means: opened first and
/// found in a list that was read later, it is a member's; if not, it is left alone.
fn signal_directory(dir: BorrowedFd, done: &mut BTreeSet<u32>, cgroup: &Path) -> Result<usize> {
    let what = |call: &str, pid: u32| format!("{call} {pid} of cgroup {}", cgroup.display());
    let mut buf = Vec::new();
    let mut killed = 0;
    let mut listed = members(dir, &mut buf)?;
    listed.retain(|pid| !done.contains(pid));
    for batch in listed.chunks(BATCH) {
        let mut opened = Vec::with_capacity(batch.len());
        for &pid in batch {
            let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            match pidfd_open(number, PidfdFlags::empty()) {
                Ok(fd) => opened.push((pid, fd)),
                // Ended. INVAL: the number is a thread's now.
                Err(Errno::SRCH | Errno::INVAL) => {}
                Err(e) => return Err(e).os(|| what("pidfd_open", pid)),
            }
        }
        let still: BTreeSet<u32> = members(dir, &mut buf)?.into_iter().collect();
        for (pid, fd) in opened.into_iter().filter(|(pid, _)| still.contains(pid)) {
            match pidfd_send_signal(&fd, Signal::KILL) {
                Ok(()) => killed += 1,
                Err(Errno::SRCH) => {}
                Err(e) => return Err(e).os(|| what("pidfd_send_signal", pid)),
            }
            done.insert(pid);
        }
    }
    Ok(killed)
}
