//! Namespaces: which there are, entering them, and the one case where the shim's own thread enters one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::error::{Error, Kind, Os, Result};

/// A kind of namespace, by its CLONE_NEW* flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// CLONE_NEWNS
    Mount,
    /// CLONE_NEWCGROUP
    Cgroup,
    /// CLONE_NEWUTS
    Uts,
    /// CLONE_NEWIPC
    Ipc,
    /// CLONE_NEWPID
    Pid,
    /// CLONE_NEWNET
    Network,
}

impl Namespace {
    /// The flag for clone(2), unshare(2) and setns(2).
    pub fn flag(self) -> u64 {
        (match self {
            Self::Mount => libc::CLONE_NEWNS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
        }) as u64
    }

    /// The name below /proc/pid/ns (namespaces(7)).
    pub fn name(self) -> &'static str {
        match self {
            Self::Mount => "mnt",
            Self::Cgroup => "cgroup",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Pid => "pid",
            Self::Network => "net",
        }
    }

    fn link(self) -> LinkNameSpaceType {
        match self {
            Self::Mount => LinkNameSpaceType::Mount,
            Self::Cgroup => LinkNameSpaceType::ControlGroup,
            Self::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Self::Pid => LinkNameSpaceType::ProcessID,
            Self::Network => LinkNameSpaceType::Network,
        }
    }
}

/// Opens a namespace by path and makes sure that it is one, of this kind, before anything depends on it.
///
/// # Errors
/// `InvalidArgument` when the path is not there or is something else.
pub fn open_path(kind: Namespace, path: &std::path::Path) -> Result<OwnedFd> {
    let wrong = |why: &str| {
        let text = format!("{} namespace path {} {why}", kind.name(), path.display());
        Error::new(Kind::InvalidArgument, text)
    };
    // O_NONBLOCK: the path is the user's and may be a fifo.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = open(path, flags, Mode::empty()).map_err(|e| wrong(&format!("cannot be opened: {e}")))?;
    // SAFETY: NS_GET_NSTYPE takes no argument and returns a number (ioctl_ns(2)); on another file it fails.
    let found = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), NS_GET_NSTYPE) };
    match found {
        -1 => Err(wrong("is not a namespace")),
        flag if flag as u64 == kind.flag() => Ok(fd),
        _ => Err(wrong("is a namespace of another kind")),
    }
}

/// _IO(0xb7, 0x3), ioctl_ns(2).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Moves the calling thread into the namespace `fd` (setns(2)).
pub fn enter(fd: BorrowedFd<'_>, kind: Namespace) -> Result<()> {
    move_into_link_name_space(fd, Some(kind.link())).os(|| format!("setns {}", kind.name()))
}

/// Moves the calling thread into the namespaces `flags` (CLONE_NEW* bits) of the process `pidfd`, all or none (setns(2),
/// Linux 5.8).
pub fn enter_process(pidfd: BorrowedFd<'_>, flags: u64) -> Result<()> {
    let set = ThreadNameSpaceType::from_bits_retain(flags as u32);
    move_into_thread_name_spaces(pidfd, set).os(|| format!("setns of a process, {flags:#x}"))
}

/// Leaves the namespaces `flags` (CLONE_NEW* bits) for new ones (unshare(2)).
pub fn unshare(flags: u64) -> Result<()> {
    // SAFETY: rustix marks this unsafe for CLONE_FILES and its like, which would split what the threads of a process
    // share; only namespace flags are passed and the process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::from_bits_retain(flags as u32)) }
        .os(|| format!("unshare {flags:#x}"))
}

/// While it lives, children of this thread are born in another pid namespace; then it is set back.
///
/// setns(2) with CLONE_NEWPID changes nothing for the caller but where its next children go, which makes it the one
/// namespace that the shim itself may enter. It must come back whatever happens: a shim that cannot is one that would
/// put the next container into this one's namespace, so the guard tries twice and then aborts.
#[derive(Debug)]
pub struct PidNamespace<'a> {
    own: BorrowedFd<'a>,
}

impl<'a> PidNamespace<'a> {
    /// `target` is a pidfd or a /proc/pid/ns/pid descriptor, `own` the descriptor of our own pid namespace.
    ///
    /// # Errors
    /// What setns(2) says; then nothing has changed.
    pub fn enter(target: BorrowedFd<'_>, own: BorrowedFd<'a>) -> Result<Self> {
        enter_either(target)?;
        Ok(Self { own })
    }

    /// Opens this process's own pid namespace, for `enter`.
    pub fn own() -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        open("/proc/self/ns/pid", flags, Mode::empty()).os(|| "open /proc/self/ns/pid")
    }
}

impl Drop for PidNamespace<'_> {
    fn drop(&mut self) {
        if enter_either(self.own).is_err() && enter_either(self.own.as_fd()).is_err() {
            eprintln!("dray: cannot leave a container's pid namespace");
            std::process::abort();
        }
    }
}

/// Both a pidfd and an nsfs descriptor are taken by setns with CLONE_NEWPID.
fn enter_either(fd: BorrowedFd<'_>) -> Result<()> {
    move_into_link_name_space(fd, Some(LinkNameSpaceType::ProcessID)).os(|| "setns pid")
}
