//! A null device that is nobody's but this program's.
//!
//! A process gets it for a stream that goes nowhere. The host's /dev/null would do, but root of a container may change the
//! mode, the owner and the times of what it holds a descriptor of (runc reopens it in the container: reOpenDevNull; but in
//! the container anything may be at /dev/null when an exec comes).

use std::cell::OnceCell;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use crate::error::{Error, Os, Result};
use crate::sys::mount::{FileSystem, Mount};

const NAME: &str = "null";

/// Opens it; `access` is how.
///
/// # Errors
/// What the making of a tmpfs says, the first time. Where we may not make devices (EPERM) it is the host's: a container
/// that we can start then has nobody in it who owns that.
pub fn open(access: OFlags) -> Result<OwnedFd> {
    thread_local!(static DIRECTORY: OnceCell<Mount> = const { OnceCell::new() });
    let flags = access | OFlags::CLOEXEC;
    DIRECTORY.with(|cell| {
        if cell.get().is_none() {
            match make() {
                Ok(directory) => drop(cell.set(directory)),
                Err(e) if e.errno() == Some(libc::EPERM) => {
                    return rustix::fs::openat(CWD, "/dev/null", flags, Mode::empty()).os(|| "open /dev/null");
                }
                Err(e) => return Err(e),
            }
        }
        let directory = cell.get().ok_or_else(|| Error::os(libc::ENOENT, "open our null device"))?;
        rustix::fs::openat(directory, NAME, flags, Mode::empty()).os(|| "openat our null device")
    })
}

/// A tmpfs that is mounted nowhere, with the device in it.
fn make() -> Result<Mount> {
    let fs = FileSystem::open("tmpfs")?;
    fs.set("nr_inodes", Some("2"))?;
    fs.set("mode", Some("555"))?;
    let mount = fs.mount(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(&mount, NAME, FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3)).os(|| "mknodat")?;
    // Whatever the umask has left of it.
    rustix::fs::chmodat(&mount, NAME, mode, AtFlags::empty()).os(|| "fchmodat")?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn it_is_a_null_device_and_not_the_hosts() {
        let mut file = std::fs::File::from(open(OFlags::RDWR).unwrap());
        file.write_all(b"x").unwrap();
        assert_eq!(file.read(&mut [0]).unwrap(), 0);
        let (ours, host) = (file.metadata().unwrap(), std::fs::metadata("/dev/null").unwrap());
        assert_eq!((ours.rdev(), ours.mode()), (host.rdev(), 0o20666));
        assert_ne!((ours.dev(), ours.ino()), (host.dev(), host.ino()));
    }
}
