//! Namespaces: which there are, entering them, and the one case where the shim's own thread enters some.

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
    /// CLONE_NEWUSER
    User,
    /// CLONE_NEWTIME
    Time,
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
            Self::User => libc::CLONE_NEWUSER,
            Self::Time => libc::CLONE_NEWTIME,
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
            Self::User => "user",
            Self::Time => "time",
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
            Self::User => LinkNameSpaceType::User,
            Self::Time => LinkNameSpaceType::Time,
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

/// Moves the calling thread to the root of the mount namespace that it is in, out of any chroot (setns(2)). Looks at
/// /proc, the host's.
pub fn enter_own_mount_namespace() -> Result<()> {
    enter(own(Namespace::Mount)?.as_fd(), Namespace::Mount)
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

/// The shim's own namespaces and root, to come back to.
#[derive(Debug)]
pub struct Home {
    namespaces: Vec<(Namespace, OwnedFd)>,
    root: OwnedFd,
}

/// What [`Visit`] may enter. Not the cgroup namespace: a child moves into its cgroups in the view of the host first, and
/// enters that one after. Not the user namespace: there is no way back from it.
const VISITED: [Namespace; 5] = [Namespace::Mount, Namespace::Uts, Namespace::Ipc, Namespace::Network, Namespace::Pid];

/// Opens the namespace that the calling process is in.
fn own(kind: Namespace) -> Result<OwnedFd> {
    let path = format!("/proc/self/ns/{}", kind.name());
    open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).os(|| format!("open {path}"))
}

impl Home {
    /// Of the calling process, which is at home now.
    pub fn here() -> Result<Self> {
        let mut namespaces = Vec::with_capacity(VISITED.len());
        for kind in VISITED {
            namespaces.push((kind, own(kind)?));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open("/", flags, Mode::empty()).os(|| "open /")?;
        Ok(Self { namespaces, root })
    }

    fn come_back(&self, flags: u64) -> Result<()> {
        for (kind, fd) in self.namespaces.iter().filter(|(kind, _)| flags & kind.flag() != 0) {
            enter(fd.as_fd(), *kind)?;
        }
        if flags & Namespace::Mount.flag() != 0 {
            // setns(2) leaves us at the root of the namespace, which need not be ours.
            rustix::process::fchdir(&self.root).os(|| "fchdir /")?;
            rustix::process::chroot(".").os(|| "chroot")?;
        }
        Ok(())
    }
}

/// Where a child is to be born: in the namespaces `flags` of what `target` refers to.
#[derive(Clone, Copy, Debug)]
pub struct Birthplace<'a> {
    /// A pidfd of a process; or a /proc/pid/ns descriptor, for the one flag that it is of.
    pub target: BorrowedFd<'a>,
    /// CLONE_NEW* bits, of which the cgroup namespace's is passed over.
    pub flags: u64,
    /// Where the parent comes back to.
    pub home: &'a Home,
}

/// While it lives this thread is in other namespaces, so that its children are born there; then it comes back.
///
/// For a helper that is to open paths where a container's process is; and for an init in a joined pid namespace that cannot
/// be made outside of it. Every other process joins by itself, unseen there ([`super::fork::hop`]).
///
/// It must come back whatever happens: a shim that cannot is one that would put the next container into this one's
/// namespaces, so the guard tries twice and then aborts. Nothing may resolve a path while it lives.
#[derive(Debug)]
pub struct Visit<'a> {
    home: &'a Home,
    flags: u64,
    /// Our own time namespace, where that is left: few visits do, so that it is opened for each and not kept by the shim.
    time: Option<OwnedFd>,
}

impl<'a> Visit<'a> {
    /// # Errors
    /// What setns(2) says; then nothing has changed.
    pub fn to(place: Birthplace<'a>) -> Result<Self> {
        let time = place.flags & Namespace::Time.flag();
        let flags = place.flags & VISITED.iter().fold(time, |bits, kind| bits | kind.flag());
        let time = if time == 0 { None } else { Some(own(Namespace::Time)?) };
        let visit = std::mem::ManuallyDrop::new(Self { home: place.home, flags, time });
        // Who is root of a user namespace alone may not enter those of the host's that it is in: then it does not leave them.
        visit.come_back().map_err(|e| e.context("there is no way back to our own namespaces"))?;
        if flags != 0 {
            enter_process(place.target, flags)?;
        }
        Ok(std::mem::ManuallyDrop::into_inner(visit))
    }

    fn come_back(&self) -> Result<()> {
        if let Some(time) = &self.time {
            enter(time.as_fd(), Namespace::Time)?;
        }
        self.home.come_back(self.flags)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        come_back_or_abort("a container's namespaces", || self.come_back());
    }
}

/// Tries twice.
fn come_back_or_abort(from: &str, come_back: impl Fn() -> Result<()>) {
    if come_back().is_err() && come_back().is_err() {
        eprintln!("dray: cannot leave {from}");
        std::process::abort();
    }
}

/// While it lives, children of this process are born in a new time namespace; the process itself is not in it
/// (time_namespaces(7)).
///
/// unshare(2) and not a flag of clone3(2): the offsets can only be written before there is a process in it. The end is the
/// same as of [`Visit`], and for the same reason: it must come.
#[derive(Debug)]
pub struct NewTime {
    own: OwnedFd,
}

impl NewTime {
    /// `offsets` are lines of /proc/self/timens_offsets, which may be none.
    ///
    /// # Errors
    /// `FailedPrecondition` on a kernel without time namespaces; `InvalidArgument` for a time that cannot be.
    pub fn with(offsets: &str) -> Result<Self> {
        let own = own(Namespace::Time).map_err(|e| match e.errno() {
            Some(libc::ENOENT) => e.with_kind(Kind::FailedPrecondition).context("this kernel has no time namespaces"),
            _ => e,
        })?;
        enter(own.as_fd(), Namespace::Time).map_err(|e| e.context("there is no way back to our own namespaces"))?;
        let new = Self { own };
        new_time(offsets)?;
        Ok(new)
    }
}

/// Makes a time namespace for the children of the calling process, which does not come back to its own.
///
/// # Errors
/// As [`NewTime::with`].
pub fn new_time(offsets: &str) -> Result<()> {
    unshare(Namespace::Time.flag()).map_err(|e| time_error(e, offsets))?;
    if offsets.is_empty() {
        return Ok(());
    }
    let path = "/proc/self/timens_offsets";
    let written = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::write(&file, offsets.as_bytes()));
    written.os(|| format!("write to {path}")).map(drop).map_err(|e| time_error(e, offsets))
}

/// What it means that a time namespace was not made.
pub(super) fn time_error(error: Error, offsets: &str) -> Error {
    match error.errno() {
        Some(libc::ERANGE | libc::EINVAL) => {
            error.with_kind(Kind::InvalidArgument).context(format!("linux.timeOffsets {offsets:?}"))
        }
        _ => error,
    }
}

impl Drop for NewTime {
    fn drop(&mut self) {
        come_back_or_abort("a container's time namespace", || enter(self.own.as_fd(), Namespace::Time));
    }
}
