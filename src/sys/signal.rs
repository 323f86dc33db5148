//! Signals are read from a descriptor, never handled: a handler inherited by a forked child would run in it.

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Os, Result};

/// Blocks every signal of this thread, and so of every process it clones until that undoes it.
pub fn block_all() -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).os(|| "sigprocmask")
}

/// A non-blocking descriptor that reads the signals `set` (signalfd(2)); they must be blocked.
pub fn signalfd(set: &SigSet) -> Result<SignalFd> {
    SignalFd::with_flags(set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).os(|| "signalfd")
}

/// Default dispositions and an empty mask, for a process about to become someone else's.
///
/// A signal that is ignored stays so over execve(2), and Rust's runtime ignores SIGPIPE: a container's `yes | head`
/// would never end. Others may be ignored by whoever started containerd (nohup).
pub fn reset() -> Result<()> {
    for number in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours. SIGKILL, SIGSTOP and libc's two reserved numbers answer EINVAL, and
        // those can be neither ignored nor handled, or are never touched by this program.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).os(|| "sigprocmask")
}
