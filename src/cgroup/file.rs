//! Reading and writing the files of a cgroup directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Os, Result};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory below `at`.
pub(super) fn open_dir(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, name, DIRECTORY, Mode::empty())
}

/// Opens a file for writing. Never creates: in a directory that is no cgroup (any more) there would be a plain file
/// afterwards.
pub(super) fn open_write(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Writes `value` with one write(2), as control files want it.
pub(super) fn write_fd(fd: impl AsFd, value: &str) -> rustix::io::Result<()> {
    // A pending signal interrupts the write of a memory limit; nothing has changed then.
    match retry_on_intr(|| rustix::io::write(fd.as_fd(), value.as_bytes()))? {
        n if n == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Writes `value` into the existing file `dir`/`name`.
pub(super) fn write(dir: &Path, name: &str, value: &str) -> Result<()> {
    let path = dir.join(name);
    open_write(CWD, &path).and_then(|fd| write_fd(fd, value)).os(|| format!("write \"{value}\" to {}", path.display()))
}

/// The whole file below `at`, in the text of `buf`.
///
/// A file of cgroup.procs' length is made anew by the kernel at each open only, so that there is no reading of a kept
/// fd again.
pub(super) fn read(at: impl AsFd, name: impl rustix::path::Arg, buf: &mut Vec<u8>) -> rustix::io::Result<&str> {
    let fd = openat(at, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    buf.clear();
    loop {
        buf.reserve(4096);
        if retry_on_intr(|| rustix::io::read(&fd, rustix::buffer::spare_capacity(buf)))? == 0 {
            break;
        }
    }
    std::str::from_utf8(buf).map_err(|_| Errno::ILSEQ)
}

/// The value of `key` in a flat keyed file, such as cgroup.events: is it not 0?
pub(super) fn flag(text: &str, key: &str) -> bool {
    number(text, key).is_some_and(|n| n != 0)
}

/// The number of `key` in a flat keyed file.
pub(super) fn number(text: &str, key: &str) -> Option<u64> {
    let (_, value) = text.lines().filter_map(|l| l.split_once(' ')).find(|(k, _)| *k == key)?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_never_creates_a_file() {
        let dir = std::env::temp_dir().join(format!("dray-test-file-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let e = write(&dir, "pids.max", "7").unwrap_err();
        assert!(e.to_string().contains("\"7\"") && e.to_string().contains("pids.max"), "{e}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn reads_a_file_longer_than_one_buffer() {
        let path = std::env::temp_dir().join(format!("dray-test-read-{}", std::process::id()));
        let long = "123456\n".repeat(5000);
        std::fs::write(&path, &long).unwrap();
        let mut buf = Vec::new();
        assert_eq!(read(CWD, &path, &mut buf).unwrap(), long);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn flags_of_cgroup_events() {
        assert!(flag("populated 1\nfrozen 0\n", "populated"));
        assert!(!flag("populated 1\nfrozen 0\n", "frozen"));
        assert!(!flag("", "frozen"));
        assert_eq!(number("oom_kill_disable 0\nunder_oom 0\noom_kill 12\n", "oom_kill"), Some(12));
    }
}
