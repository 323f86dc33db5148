//! How a container's process is born: one clone3(2) from the single-threaded shim, no re-execution.
//!
//! The child is a copy of the shim that must never behave as one. [`fork`] therefore runs a function that cannot
//! return, catches its panics, and leaves by `_exit` alone, so that no destructor or atexit handler of the parent's
//! runs twice. It refuses to run in a process with threads: a lock held by another thread would stay locked in the
//! child for ever (fork(2), NOTES).

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::error::{Error, Kind, Os, Result};
use crate::sys::ns::{Birthplace, Namespace, Visit};
use crate::sys::seccomp::Filter;

/// A child of this process, held by pid and pidfd from its first moment.
#[derive(Debug)]
pub struct Child {
    /// Its pid, in our pid namespace. Ours to wait for: it cannot be reused before that.
    pub pid: i32,
    /// Refers to the process whatever becomes of the number.
    pub pidfd: OwnedFd,
}

/// What the child is told about its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// It was born in the cgroup asked for, by CLONE_INTO_CGROUP; otherwise it has to move there itself.
    pub in_cgroup: bool,
    /// It was born in the namespaces that it is to join, by [`fork_inside`].
    pub joined: bool,
}

/// The exit status of a child whose function panicked past its own guard.
pub const PANICKED: i32 = 70;

/// The number of threads of this process.
///
/// /proc/self/task has one subdirectory a thread, so its link count says it in one stat(2) without reading a list.
///
/// # Errors
/// When /proc is not mounted.
pub fn thread_count() -> Result<u64> {
    let stat = rustix::fs::stat("/proc/self/task").os(|| "stat /proc/self/task")?;
    Ok((stat.st_nlink as u64).saturating_sub(2))
}

/// Clones this process with the namespace flags `namespaces` (CLONE_NEW*), into the cgroup v2 directory `cgroup` where
/// the kernel can, and runs `child` in it. It is born in the namespaces of `place`, where that is not our own.
///
/// Signals must be blocked and none handled in the caller (the child would run the parent's handler).
///
/// # Errors
/// `FailedPrecondition` when this process has more than one thread; else what clone3(2) says: EBUSY for a cgroup that hands
/// controllers down, and so takes no process.
pub fn fork<F: FnOnce(Birth) -> std::convert::Infallible>(
    namespaces: u64,
    place: Option<Birthplace<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
    child: F,
) -> Result<Child> {
    // Before the visit: /proc is the container's there.
    refuse_threads()?;
    let visit = place.map(Visit::to).transpose()?;
    let (result, birth) = clone(namespaces, cgroup)?;
    match result {
        Some(child) => {
            drop(visit);
            Ok(child)
        }
        None => {
            // The parent's to undo.
            std::mem::forget(visit);
            let _ = catch_unwind(AssertUnwindSafe(|| child(birth)));
            exit_now(PANICKED)
        }
    }
}

fn refuse_threads() -> Result<()> {
    match thread_count()? {
        1 => Ok(()),
        threads => Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "refusing to fork: this process has {threads} threads, and the child of a threaded process may hang"
            ),
        )),
    }
}

/// The same, but the child is born inside of the namespaces `joined`, entered in that order: so that the pid namespace
/// which the clone makes is that of a user namespace among them, or with the capabilities that a user namespace which the
/// clone makes would take away.
///
/// We cannot visit a user namespace, from which nobody comes back: a helper enters it and gives birth to a sibling of its
/// own (CLONE_PARENT), which is our child. It is done when this returns. The same is so of every namespace for one that is
/// root of a user namespace alone, and is itself in the host's: hence also `time`, the offsets of a time namespace that the
/// helper makes after it has entered the others.
///
/// # Errors
/// As [`fork`], and what setns(2) says.
pub fn fork_inside<F: FnOnce(Birth) -> std::convert::Infallible>(
    joined: &[(Namespace, OwnedFd)],
    time: Option<&str>,
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: F,
) -> Result<Child> {
    refuse_threads()?;
    let (mut answer, tell) = UnixStream::pair().os(|| "socketpair")?;
    answer.set_read_timeout(Some(IN_REACH_BOUND)).os(|| "setsockopt SO_RCVTIMEO")?;
    let Some(helper) = clone(0, None)?.0 else {
        let _ = catch_unwind(AssertUnwindSafe(|| midwife(joined, time, namespaces, cgroup, tell, child)));
        exit_now(PANICKED)
    };
    drop(tell);
    let mut record = [0; 12];
    let told = answer.read_exact(&mut record);
    end(&helper)?;
    told.os(|| "read from the process that joins namespaces")?;
    let [pid, errno, at] =
        [0, 4, 8].map(|n| i32::from_le_bytes([record[n], record[n + 1], record[n + 2], record[n + 3]]));
    match (pid, joined.get(at as usize)) {
        // A child of ours that nobody has waited for: the number is its own.
        (1.., _) => super::pidfd::open(pid).map(|pidfd| Child { pid, pidfd }),
        (_, Some((kind, _))) => Err(Error::os(errno, format!("setns {}", kind.name()))),
        (_, None) if at as usize > joined.len() => {
            Err(super::ns::time_error(Error::os(errno, "making a time namespace"), time.unwrap_or_default()))
        }
        (_, None) => Err(Error::os(errno, "clone3 in the joined namespaces")),
    }
}

/// What the helper of [`fork_inside`] does, and the child that it gives birth to.
fn midwife<F: FnOnce(Birth) -> std::convert::Infallible>(
    joined: &[(Namespace, OwnedFd)],
    time: Option<&str>,
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    mut tell: UnixStream,
    child: F,
) -> std::convert::Infallible {
    let enter_all = || {
        let (mut cgroup, mut moved) = (cgroup, false);
        for (at, (kind, fd)) in joined.iter().enumerate() {
            if let Some(directory) = cgroup.take_if(|_| *kind == Namespace::Cgroup) {
                moved = join_cgroup(directory).is_ok();
            }
            super::ns::enter(fd.as_fd(), *kind).map_err(|e| (at, e))?;
        }
        time.map_or(Ok(()), super::ns::new_time).map_err(|e| (joined.len() + 1, e))?;
        let born = clone(namespaces | libc::CLONE_PARENT as u64, cgroup).map_err(|e| (joined.len(), e));
        born.map(|(child, birth)| (child, Birth { in_cgroup: birth.in_cgroup || moved, ..birth }))
    };
    let (pid, errno, at) = match enter_all() {
        Ok((None, birth)) => {
            let _ = catch_unwind(AssertUnwindSafe(|| child(Birth { joined: true, ..birth })));
            exit_now(PANICKED)
        }
        Ok((Some(born), _)) => (born.pid, 0, 0),
        Err((at, e)) => (0, e.errno().unwrap_or(libc::EIO), at as i32),
    };
    let _ = tell.write_all([pid, errno, at].map(i32::to_le_bytes).as_flattened());
    exit_now(0)
}

/// Moves into a cgroup v2 directory, for a child to be born in it. From a cgroup namespace that does not show it, the
/// kernel lets nobody be born into it (clone3: ENOENT). Where this fails the child does it by itself, or says why not.
fn join_cgroup(directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    let procs = openat(directory, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&procs, b"0").map(drop)
}

/// How long a child of ours that enters a user namespace may take for what is done at once. It is waited for where it is
/// forked, and in reach of whoever has CAP_KILL in that namespace and sees it, in a pid namespace of the host's: stopped
/// by them it must not stop us, nor for longer than containerd waits for an answer.
pub(super) const IN_REACH_BOUND: Duration = Duration::from_secs(2);

/// Ends and reaps a child that has nothing more to do. SIGKILL ends a stopped one too.
pub(super) fn end(child: &Child) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(child.pid);
    // It may have ended; or that call has been taken away (seccomp), and then it would be waited for for ever. The number is its
    // own until then.
    if let (Err(_), Some(pid)) = (super::pidfd::kill(&child.pidfd, libc::SIGKILL as u32), pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let waited = rustix::io::retry_on_intr(|| rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()));
    waited.map(drop).os(|| "waitpid")
}

/// The same in a child of [`fork`], for one of its own in its own namespaces: it has one thread by construction, and may be
/// where no /proc tells so. Its [`Birth`] is the proof that it is one.
///
/// # Errors
/// What clone3(2) says.
pub fn fork_again<F: FnOnce() -> std::convert::Infallible>(_: Birth, child: F) -> Result<Child> {
    match clone(0, None)?.0 {
        Some(child) => Ok(child),
        None => {
            let _ = catch_unwind(AssertUnwindSafe(child));
            exit_now(PANICKED)
        }
    }
}

const HOP: u64 = libc::CLONE_PARENT as u64;

/// Whether `filter` would allow a [`hop`].
pub fn may_hop(filter: &Filter) -> bool {
    filter.allows(libc::SYS_clone, &[legacy_flags(HOP)])
}

/// Goes on as a sibling of the calling process, a child of the same parent, in the pid namespace that it has entered for its
/// children (setns(2)): returns there when the caller has done `tell` with it, and ends where that has failed, or the caller
/// has died before: of a process that nobody has been told of nobody would hear again. The caller ends.
///
/// Who is born in a container's pid namespace is seen by the processes of the container from then on, and with
/// CAP_SYS_PTRACE taken over. So all that takes more rights than the container's, and memory of the shim's, is done before.
///
/// # Errors
/// What clone(2) says, to the caller: ENOMEM where the init of the pid namespace has exited.
pub fn hop(_: Birth, tell: impl FnOnce(&Child) -> Result<()>) -> Result<()> {
    let (told, telling) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).os(|| "pipe2")?;
    // The older call: it says all that is to be said, and a container's filter, which may be loaded, knows it.
    let Some(child) = clone_legacy(HOP).os(|| "clone")? else {
        drop(telling);
        return match rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut [0u8; 1])) {
            Ok(1) => Ok(()),
            _ => exit_now(0),
        };
    };
    if let Ok(Ok(())) = catch_unwind(AssertUnwindSafe(|| tell(&child))) {
        let _ = rustix::io::write(&telling, b"t");
    }
    // The shim waits for the end of the socket, which is not to wait for that of our memory.
    let _ = super::fd::close_all_but(&[]);
    exit_now(0)
}

/// `None` in the child.
fn clone(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<(Option<Child>, Birth)> {
    if let Some(cgroup) = cgroup {
        match clone3(namespaces, Some(cgroup)) {
            Ok(child) => return Ok((child, Birth { in_cgroup: true, joined: false })),
            // No such call or flag (< 5.7, or filtered), or a cgroup that takes no process this way (threaded, another
            // owner's): the child moves itself, or says why it cannot. One that has been divided (EBUSY) takes it in no
            // way, and the caller may know another.
            Err(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP | libc::EACCES) => {}
            Err(errno) => return Err(Error::os(errno, "clone3 into a cgroup")),
        }
    }
    let birth = Birth { in_cgroup: false, joined: false };
    match clone3(namespaces, None) {
        Ok(child) => Ok((child, birth)),
        Err(libc::ENOSYS) => clone_legacy(namespaces).map(|child| (child, birth)).os(|| "clone"),
        Err(errno) => Err(Error::os(errno, "clone3")),
    }
}

/// linux/sched.h; libc's constant is of a type too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> std::result::Result<Option<Child>, i32> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is a plain C structure for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // A sibling's is its parent's, and clone3 wants none to be named.
    args.exit_signal = if namespaces & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of this address space and stack, so both sides return from
    // here and go on; `args` and `pidfd` outlive the call; the process has one thread (`fork` checks it, and a child of it has no other), so no lock
    // of libc's is held by anyone.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    finish(pid, pidfd)
}

/// clone(2), for where clone3 is taken away (a seccomp profile that predates it answers ENOSYS).
fn clone_legacy(namespaces: u64) -> std::result::Result<Option<Child>, i32> {
    let mut pidfd: libc::c_int = -1;
    let flags = legacy_flags(namespaces);
    // SAFETY: as for clone3; a null stack means the copy of ours, CLONE_PIDFD stores through the third argument, and
    // the zero arguments behind it are unused without CLONE_SETTLS and CLONE_CHILD_*TID on every architecture.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, &raw mut pidfd, 0usize, 0usize) };
    finish(pid, pidfd)
}

fn legacy_flags(namespaces: u64) -> u64 {
    namespaces | libc::CLONE_PIDFD as u64 | libc::SIGCHLD as u64
}

fn finish(pid: libc::c_long, pidfd: libc::c_int) -> std::result::Result<Option<Child>, i32> {
    match pid {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        0 => Ok(None),
        pid => {
            // SAFETY: CLONE_PIDFD made this descriptor for us, close-on-exec, and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Child { pid: pid as i32, pidfd }))
        }
    }
}

/// Ends this process at once: no destructors, no atexit handlers, no flushing of the parent's buffers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test harness has threads, which is the case that must be refused.
    #[test]
    fn refuses_to_fork_a_threaded_process() {
        let (tx, rx) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || rx.recv());
        let error = fork(0, None, None, |_| exit_now(0)).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("threads"), "{error}");
        drop(tx);
        other.join().unwrap().unwrap_err();
    }
}
