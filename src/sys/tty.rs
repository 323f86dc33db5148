//! Pseudo-terminals: a master of a given devpts, and what is asked of it (pty(7), ioctl_tty(2)).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::error::{Error, Kind, Os, Result};
use crate::sys::path;
use crate::sys::seccomp::Filter;

/// linux/magic.h
const DEVPTS_SUPER_MAGIC: u32 = 0x1cd1;

/// The major numbers of pty slaves (admin-guide/devices.txt: Unix98 PTY slaves).
const SLAVE_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;

/// Characters a line, and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters a line.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// A new pty's master, unlocked, from the devpts whose root is `directory`.
///
/// The node is that file system's own, whatever is mounted over it: `directory` may be of a container's choice.
///
/// # Errors
/// `InvalidArgument` when `directory` is not a devpts; what open(2) says, ENOSPC when it has no pty left among it.
pub fn open_master(directory: impl AsFd) -> Result<OwnedFd> {
    if !is_devpts(&directory)? {
        return Err(Error::new(Kind::InvalidArgument, "not a devpts"));
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat2(&directory, "ptmx", flags, Mode::empty(), resolve).os(|| "openat2 ptmx")?;
    let stat = path::stat(&master)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(Error::new(Kind::InvalidArgument, "ptmx is not the device 5:2"));
    }
    rustix::pty::unlockpt(&master).os(|| "ioctl TIOCSPTLCK")?;
    Ok(master)
}

/// The slave of `master`, opened without its path (TIOCGPTPEER), which others could lead elsewhere (CVE-2025-52565). It
/// does not become the caller's controlling terminal.
///
/// # Errors
/// ENOTTY for what is no master; `Internal` if what comes is no slave.
pub fn open_slave(master: impl AsFd) -> Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).os(|| "ioctl TIOCGPTPEER")?;
    let stat = path::stat(&slave)?;
    let is_slave = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && SLAVE_MAJORS.contains(&rustix::fs::major(stat.st_rdev));
    if is_slave && is_devpts(&slave)? {
        return Ok(slave);
    }
    Err(Error::new(Kind::Internal, "the peer of the pty master is not a pty slave"))
}

/// Makes the session's leader have `slave` as its controlling terminal.
///
/// # Errors
/// EPERM where the caller leads no session, or the terminal is another session's.
pub fn take_control(slave: impl AsFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave).os(|| "ioctl TIOCSCTTY")
}

/// Whether `filter` would allow [`take_control`].
pub fn may_take_control(filter: &Filter) -> bool {
    filter.allows(libc::SYS_ioctl, &[0, libc::TIOCSCTTY])
}

/// Sets the size of the window; a change sends SIGWINCH to the foreground processes.
pub fn resize(terminal: impl AsFd, size: Size) -> Result<()> {
    let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).os(|| "ioctl TIOCSWINSZ")
}

fn is_devpts(fd: impl AsFd) -> Result<bool> {
    Ok(rustix::fs::fstatfs(fd).os(|| "fstatfs")?.f_type as u32 == DEVPTS_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mount::FileSystem;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_pty_of_a_devpts_of_ones_own() {
        let devpts = FileSystem::open("devpts").unwrap().mount(0).unwrap();
        let master = open_master(&devpts).unwrap();
        let slave = open_slave(&master).unwrap();
        assert_eq!(path::stat(&slave).unwrap().st_dev, path::stat(&devpts).unwrap().st_dev, "another devpts");
        resize(&master, Size { width: 81, height: 26 }).unwrap();
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (81, 26));
        let (mut master, mut slave) = (File::from(master), File::from(slave));
        slave.write_all(b"to the master\n").unwrap();
        let mut line = [0; 64];
        let n = master.read(&mut line).unwrap();
        assert_eq!(&line[..n], b"to the master\r\n");
    }

    #[test]
    fn what_is_no_devpts_or_no_master_is_refused() {
        let tmp = File::open(std::env::temp_dir()).unwrap();
        assert_eq!(open_master(&tmp).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(open_slave(&tmp).unwrap_err().errno(), Some(libc::ENOTTY));
    }
}
