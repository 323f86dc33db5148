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
    // The kernel's own call, since signal(3) refuses the two numbers that glibc keeps for itself (32 and 33), and its
    // posix_spawn(3) starts programs with these ignored.
    // All zero is SIG_DFL, without flags and mask, however an architecture orders the fields of its `struct sigaction`.
    let default = [0_u64; 4];
    let no_old = std::ptr::null_mut::<u64>();
    for number in 1..=64 {
        // SAFETY: `default` is as large as the kernel's `struct sigaction` (handler, flags, restorer, a mask of 8 bytes)
        // and outlives the call; SIG_DFL runs no code of ours. SIGKILL and SIGSTOP answer EINVAL and are default always.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), no_old, 8_usize) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).os(|| "sigprocmask")
}
