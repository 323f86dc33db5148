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
    // The kernel's struct sigaction: SIG_DFL, no flags, no restorer, an empty mask. Its own call, because libc's refuses
    // the two numbers that it has reserved for itself, and those are inherited ignored as any other.
    let default = [0u64; 4];
    for number in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours, `default` is at least as large as the structure of any architecture,
        // and no old action is asked for. SIGKILL and SIGSTOP answer EINVAL, and can be neither ignored nor handled.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null_mut::<u8>(), 8usize) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).os(|| "sigprocmask")
}
