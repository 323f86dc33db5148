//! Descriptors: what a child keeps, and what it must not see.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, RawDir};

use crate::error::{Os, Result};

/// The descriptor `fd` for a new owner, where the old one is forgotten with the memory that it is in
/// ([`super::memory::keep_only`]) and will not be dropped.
pub fn same(fd: BorrowedFd<'_>) -> OwnedFd {
    // SAFETY: it is open, and no other value will close it: see above.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd.as_raw_fd()) }
}

/// Closes every descriptor of this process but 0 to 2 and `keep`, running no destructor.
///
/// This is a forked child's first act, and its last but execve(2). Whatever the parent had open, another container's pipes
/// and the epoll instance among it, is gone before anything of the container's can run (CVE-2016-9962, CVE-2024-21626).
///
/// # Errors
/// Only where neither close_range(2) nor /proc/self/fd is to be had.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<()> {
    close_all_behind(0, keep)
}

/// The same, but for the first `handed` of them behind 0 to 2: who has started us wants the program to have those.
///
/// # Errors
/// As [`close_all_but`].
pub fn close_all_behind(handed: u32, keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut first = 3 + handed as RawFd;
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).filter(|&fd| fd >= first).collect();
    keep.sort_unstable();
    for &fd in &keep {
        if fd > first {
            close_range(first as u32, fd as u32 - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first as u32, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: closing descriptors touches no memory. The owners of those closed are values of the parent's, or of this
    // process, that it will never drop (it leaves by execve or _exit).
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match std::io::Error::last_os_error() {
        _ if done == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ENOSYS) => each_open(first, last),
        error => Err(error).os(|| "close_range"),
    }
}

/// The descriptors that are tried one by one where a container has no /proc to list them. The child's own are low: it has
/// closed all but those of its plan (and at its first close /proc is there: the fork has looked at it).
const TRIED: u32 = 1 << 16;

/// The same through /proc/self/fd, for where close_range (Linux 5.9) is taken away.
fn each_open(first: u32, last: u32) -> Result<()> {
    for fd in listed()
        .unwrap_or_else(|_| (first..=last.min(TRIED)).collect())
        .into_iter()
        .filter(|fd| (first..=last).contains(fd))
    {
        // SAFETY: as above. The directory's own descriptor is in the list and already closed: EBADF is expected.
        unsafe { libc::close(fd as RawFd) };
    }
    Ok(())
}

/// The open descriptors. Without libc's opendir(3), which allocates behind our back (sys/memory.rs).
fn listed() -> rustix::io::Result<Vec<u32>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
    let mut space = [std::mem::MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut space);
    let mut all = Vec::new();
    while let Some(entry) = entries.next() {
        all.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(all)
}

/// Makes the number of `fd` another name of `by`, close-on-exec (dup3(2)). Its owner owns that then.
pub fn replace(fd: BorrowedFd<'_>, by: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: dup3 touches no memory, and both are open. `fd` stays an open descriptor of its owner's.
    match unsafe { libc::dup3(by.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) } {
        -1 => Err(std::io::Error::last_os_error()).os(|| "dup3"),
        _ => Ok(()),
    }
}

/// Whether whoever has started this program has given it the descriptor `number`: what we open ourselves is close-on-exec.
pub fn is_inherited(number: RawFd) -> bool {
    // SAFETY: F_GETFD touches no memory and tells whether the descriptor is open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

/// Lets `fd` survive execve(2), for a program that is told its number.
pub fn survive_exec(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).os(|| "fcntl F_SETFD")
}

/// Takes the descriptor `number` that this process has inherited, and marks it close-on-exec.
///
/// # Errors
/// EBADF when it has inherited none.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_SETFD touches no memory and tells whether the descriptor is open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(std::io::Error::last_os_error()).os(|| format!("descriptor {number}"));
    }
    // SAFETY: it is open, and was so before this program ran any code of ours: no value owns it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) })
}
