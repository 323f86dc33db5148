//! What this kernel, and whoever confines us, lets us do: found out by doing it, where nothing of it stays.

use std::os::fd::BorrowedFd;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::fork::{Birth, exit_now, fork};
use crate::error::{Error, Os, Result};

/// Does `work`, by the name `what`, in a child that is born in `cgroup` and ends with it.
///
/// # Errors
/// What the birth says, and the errno of `work`'s.
pub fn in_child(what: &str, cgroup: Option<BorrowedFd<'_>>, work: impl FnOnce(Birth) -> Result<()>) -> Result<()> {
    // An errno is less than 134 (linux: asm-generic/errno.h), and so an exit status.
    let status = |done: Result<()>| done.map_or_else(|e| e.errno().unwrap_or(libc::EIO), |()| 0);
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).os(|| "sigprocmask")?;
    let child = fork(0, None, cgroup, |birth| exit_now(status(work(birth))));
    mask.thread_set_mask().os(|| "sigprocmask")?;
    let pid = Pid::from_raw(child?.pid);
    let waited = rustix::io::retry_on_intr(|| waitpid(pid, WaitOptions::empty())).os(|| "waitpid")?;
    match waited.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        Some(errno) => Err(Error::os(errno, what)),
        None => Err(Error::os(libc::EIO, format!("{what}: the child that was to try it was killed"))),
    }
}

/// clone3(2): without a structure it does nothing but say whether it is there.
///
/// # Errors
/// ENOSYS.
pub fn clone3() -> Result<()> {
    // SAFETY: with a size of 0 the kernel looks at no memory, and fails with EINVAL.
    let done = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::clone_args>(), 0usize) };
    refused_as(done, libc::EINVAL, "clone3")
}

/// close_range(2), of a number that no descriptor has.
///
/// # Errors
/// ENOSYS.
pub fn close_range() -> Result<()> {
    // SAFETY: the highest number there is, which RLIMIT_NOFILE lets no descriptor have.
    let done = unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).os(|| "close_range") }
}

/// Whether filters can have the action `action` (SECCOMP_RET_*).
///
/// # Errors
/// EOPNOTSUPP; EINVAL, ENOSYS from a kernel without filters.
pub fn seccomp_action(action: u32) -> Result<()> {
    // SAFETY: the action outlives the call, which reads it.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).os(|| "seccomp SECCOMP_GET_ACTION_AVAIL") }
}

/// A call that is there fails as it is meant to, one that is not in another way.
fn refused_as(done: libc::c_long, errno: i32, call: &str) -> Result<()> {
    match std::io::Error::last_os_error() {
        error if done == -1 && error.raw_os_error() == Some(errno) => Ok(()),
        error => Err(error).os(|| call),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_kernel_of_ours_has_is_found() {
        clone3().unwrap();
        close_range().unwrap();
        seccomp_action(libc::SECCOMP_RET_USER_NOTIF).unwrap();
        assert_eq!(seccomp_action(0x1234_0000).unwrap_err().errno(), Some(libc::EOPNOTSUPP));
    }
}
