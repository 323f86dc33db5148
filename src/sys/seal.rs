//! Our own executable, sealed: a container process that is still a copy of this program (between fork and execve, or by
//! a `#!/proc/self/exe` entrypoint) must have no way to write to the file that the host runs (CVE-2019-5736).
//!
//! The seal is a read-only overlay with two lower directories, ours and an empty one: it has no upper layer to write
//! to, costs no copy, and shares the text pages of all shims. Where the kernel refuses it (the directory is itself on a
//! deep overlay, has a name too long for fsconfig(2) or, before Linux 6.5, with a comma in it, or no longer holds the
//! file) the executable is copied to a memfd and that is sealed. "Text file busy" is no protection: it ends with the last
//! process that runs the file.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};

use crate::error::{Error, Kind, Os, Result};
use crate::sys::mount::FileSystem;

/// What must hold of a sealed memfd.
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// The executable of this process behind a seal, to be given to execveat(2). `empty` is a directory of ours that stays
/// empty; it is made where missing. Without one it is a copy.
///
/// # Errors
/// When neither form of seal is to be had.
pub fn own_executable(empty: Option<&Path>) -> Result<OwnedFd> {
    empty.and_then(|empty| overlay(empty).ok()).map_or_else(memfd, Ok)
}

/// Is the executable that this process runs behind a seal?
///
/// # Errors
/// When /proc/self/exe cannot be looked at.
pub fn is_sealed() -> Result<bool> {
    let exe = open_exe()?;
    if rustix::fs::fcntl_get_seals(&exe).is_ok_and(|seals| seals.contains(SEALS)) {
        return Ok(true);
    }
    let fs = rustix::fs::fstatfs(&exe).os(|| "fstatfs /proc/self/exe")?;
    let flags = rustix::fs::fstatvfs(&exe).os(|| "fstatvfs /proc/self/exe")?.f_flag;
    Ok(fs.f_type == OVERLAYFS_SUPER_MAGIC && flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// statfs(2).
const OVERLAYFS_SUPER_MAGIC: rustix::fs::FsWord = 0x794c_7630;

fn open_exe() -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/proc/self/exe", flags, Mode::empty()).os(|| "open /proc/self/exe")
}

fn overlay(empty: &Path) -> Result<OwnedFd> {
    let path = rustix::fs::readlink("/proc/self/exe", Vec::new()).os(|| "readlink /proc/self/exe")?;
    let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes())).to_owned();
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(Kind::Internal, "/proc/self/exe has no directory"));
    };
    // The parents are the state's: nobody else's to write to, whatever the umask.
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(empty).os(|| format!("mkdir {}", empty.display()))?;
    let fs = FileSystem::open("overlay")?;
    let lower = format!("{}:{}", escape(dir)?, escape(empty)?);
    fs.set("lowerdir", Some(&lower))?;
    let attrs = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let mount = fs.mount(attrs)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let sealed = rustix::fs::openat(&mount, name, flags, Mode::empty()).os(|| "openat sealed executable")?;
    // An install may have renamed a new file over ours since we started: that one is not us.
    let (ours, theirs) = (super::path::stat(open_exe()?)?, super::path::stat(&sealed)?);
    if (ours.st_ino, ours.st_size) != (theirs.st_ino, theirs.st_size) {
        return Err(Error::new(Kind::Internal, "the executable was replaced"));
    }
    Ok(sealed)
}

/// overlayfs splits lowerdir at ':' and takes '\' as an escape; fsconfig(2) takes 255 bytes.
fn escape(dir: &Path) -> Result<String> {
    let dir = dir.to_str().ok_or_else(|| Error::new(Kind::Internal, "directory is not UTF-8"))?;
    Ok(dir.replace('\\', "\\\\").replace(':', "\\:"))
}

fn memfd() -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = match rustix::fs::memfd_create("containerd-shim-dray-v2", flags | MemfdFlags::EXEC) {
        // MFD_EXEC is Linux 6.3; before it every memfd is executable.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("containerd-shim-dray-v2", flags),
        other => other,
    };
    let memfd = memfd.os(|| "memfd_create")?;
    let exe = open_exe()?;
    let size = super::path::stat(&exe)?.st_size as usize;
    let mut copied = 0;
    while copied < size {
        match rustix::fs::sendfile(memfd.as_fd(), exe.as_fd(), None, size - copied).os(|| "sendfile")? {
            0 => return Err(Error::new(Kind::Internal, "the executable became shorter")),
            n => copied += n,
        }
    }
    rustix::fs::fcntl_add_seals(&memfd, SEALS).os(|| "fcntl F_ADD_SEALS")?;
    Ok(memfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_directories_are_escaped() {
        assert_eq!(escape(Path::new(r"/a:b\c")).unwrap(), r"/a\:b\\c");
    }

    #[test]
    fn neither_seal_can_be_written() {
        let empty = std::env::temp_dir().join(format!("dray-seal-{}", std::process::id()));
        for sealed in [overlay(&empty).unwrap(), memfd().unwrap()] {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&sealed));
            let written = std::fs::OpenOptions::new().write(true).open(&path).and_then(|mut f| {
                use std::io::Write;
                f.write_all(b"x")
            });
            assert!(written.is_err(), "the sealed executable was written to");
            assert!(std::fs::read(&path).unwrap() == std::fs::read("/proc/self/exe").unwrap());
        }
        assert!(!is_sealed().unwrap());
        std::fs::remove_dir(empty).unwrap();
    }
}
