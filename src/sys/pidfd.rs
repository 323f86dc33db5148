//! Processes by pidfd: signals that cannot hit a reused pid, and a process's identity across restarts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_send_signal};

use crate::error::{Error, Kind, Os, Result};

/// Opens a pidfd for `pid` (pidfd_open(2)).
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn open(pid: i32) -> Result<OwnedFd> {
    let number = Pid::from_raw(pid).ok_or_else(|| Error::new(Kind::InvalidArgument, format!("no such pid: {pid}")))?;
    rustix::process::pidfd_open(number, PidfdFlags::empty()).os(|| format!("pidfd_open {pid}")).map_err(gone)
}

/// Sends signal number `signal` (1 to 64, real-time ones included).
///
/// # Errors
/// `InvalidArgument` for a number that is no signal, `NotFound` when the process has been reaped.
pub fn kill(pidfd: impl AsFd, signal: u32) -> Result<()> {
    let number = i32::try_from(signal).ok().filter(|n| (1..=64).contains(n));
    let number = number.ok_or_else(|| Error::new(Kind::InvalidArgument, format!("{signal} is not a signal number")))?;
    // SAFETY: the number is in the kernel's range; rustix asks for care only because libc reserves some real-time
    // signals for its own handlers, and the receiver is another process.
    let number = unsafe { Signal::from_raw_unchecked(number) };
    pidfd_send_signal(pidfd, number).os(|| format!("pidfd_send_signal {signal}")).map_err(gone)
}

/// A copy of another process's descriptor (pidfd_getfd(2), Linux 5.6), close-on-exec.
///
/// # Errors
/// EPERM without the rights of ptrace(2) over it.
pub fn descriptor(pidfd: impl AsFd, number: i32) -> Result<OwnedFd> {
    rustix::process::pidfd_getfd(pidfd, number, rustix::process::PidfdGetfdFlags::empty())
        .os(|| format!("pidfd_getfd {number}"))
        .map_err(gone)
}

/// True when the process has ended, reaped or not: a pidfd polls readable then (pidfd_open(2)).
pub fn has_exited(pidfd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
}

/// True when a child of ours has ended and has not been reaped (waitid(2), P_PIDFD); it still is not.
pub fn can_be_waited_for(pidfd: impl AsFd) -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::PidFd(pidfd.as_fd()), options), Ok(Some(_)))
}

/// True when the process is a child of ours that has not been reaped, alive or not (waitid(2), P_PIDFD).
pub fn is_child(pidfd: impl AsFd) -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), options).is_ok()
}

/// When the process started, in clock ticks after boot: with the pid it names one process for all time (proc(5),
/// /proc/pid/stat field 22).
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: i32) -> Result<u64> {
    stat_field(pid, 22)
}

/// True when the process is on its way out or has ended: the kernel says so (PF_EXITING, include/linux/sched.h) before
/// it closes its descriptors, so that whoever sees such an end knows whether it was meant.
pub fn is_exiting(pid: i32) -> bool {
    const PF_EXITING: u64 = 0x4;
    stat_field(pid, 9).map_or(true, |flags| flags & PF_EXITING != 0)
}

/// A number of /proc/pid/stat, counted as proc(5) does.
fn stat_field(pid: i32, number: usize) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).os(|| format!("open {path}")).map_err(gone)?;
    // The command name in parentheses, the second, may hold anything, parentheses too: count from the last one.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(number - 3))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| Error::new(Kind::Internal, format!("{path} has no field {number}")))
}

fn gone(error: Error) -> Error {
    match error.errno() {
        Some(libc::ESRCH | libc::ENOENT) => error.with_kind(Kind::NotFound),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_process_and_notices_its_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let pidfd = open(pid).unwrap();
        assert!(start_time(pid).unwrap() > start_time(1).unwrap());
        assert!(!has_exited(&pidfd));
        kill(&pidfd, 9).unwrap();
        child.wait().unwrap();
        assert!(has_exited(&pidfd));
        assert_eq!(kill(&pidfd, 9).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(start_time(pid).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(kill(&pidfd, 65).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
