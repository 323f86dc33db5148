//! Both ends of one of containerd's fifos.
//!
//! An open of a fifo waits for the other end, a write without a reader fails and a read without a writer is an end of
//! file. Holding both ends takes all three away: containerd may restart, its ends vanish and come back, and what is in
//! the fifo stays there.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Os, Result};

/// The two ends of a fifo, both non-blocking.
pub(super) struct Fifo {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
}

impl Fifo {
    /// Opens both ends; never waits, whoever has it open or not.
    ///
    /// # Errors
    /// `NotFound` when there is no such file, `InvalidArgument` when it is not a fifo.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = file(path)?;
        let end = |access| end(&file, access).os(|| format!("open {}", path.display()));
        // In this order: the write end's open fails with ENXIO without a reader, the read end's needs nobody.
        let read = end(OFlags::RDONLY)?;
        let write = end(OFlags::WRONLY)?;
        Ok(Self { read, write })
    }
}

/// The fifo itself, neither end. By O_PATH: opening a device or a terminal has effects, and the type is known only afterwards.
fn file(path: &Path) -> Result<OwnedFd> {
    let shown = path.display();
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let e = Error::os(errno, format!("open {shown}"));
        if errno == Errno::NOENT { e.with_kind(Kind::NotFound) } else { e }
    })?;
    let stat = rustix::fs::fstat(&file).os(|| format!("fstat {shown}"))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Ok(file),
        _ => Err(Error::new(Kind::InvalidArgument, format!("{shown}: not a fifo"))),
    }
}

/// A further open of the fifo that `file` is of, which does not wait.
fn end(file: impl AsFd, access: OFlags) -> rustix::io::Result<OwnedFd> {
    let same = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(&same, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// Whether anyone has the read end of `write`'s fifo open (poll(2): POLLERR on a write end without readers).
pub(super) fn has_reader(write: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&write, PollFlags::empty())];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => !fds[0].revents().contains(PollFlags::ERR),
        // Without an answer keep the data: the caller asks again.
        Err(_) => false,
    }
}

/// Whether two descriptors are of one fifo, by whatever paths it was opened.
pub(super) fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    let place = |fd: rustix::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((place(one.as_fd()), place(other.as_fd())), (Ok(one), Ok(other)) if one == other)
}

/// A further read end of the fifo that `write` is of.
pub(super) fn read_end(write: impl AsFd) -> Result<OwnedFd> {
    end(write, OFlags::RDONLY).os(|| "open a fifo")
}

/// A write end of the fifo at `path`, where somebody reads it or waits in open(2) for a writer; `Some(None)` where nobody
/// does, `None` for what cannot be opened or is no fifo.
pub(super) fn writer_if_read(path: &Path) -> Option<Option<OwnedFd>> {
    match end(file(path).ok()?, OFlags::WRONLY) {
        Ok(writer) => Some(Some(writer)),
        Err(Errno::NXIO) => Some(None),
        Err(_) => None,
    }
}
