//! `tmpcopyup`: a tmpfs that begins with a copy of the directory that it is going to cover.
//!
//! What is copied is the image's and may be changed while it is (a volume among it is also somebody else's): each name is
//! opened once, as a handle that follows no link, and everything is read through that handle. What is written is a mount
//! that is nowhere yet, where nobody else can change a name.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Os, Result};
use crate::sys::path;

/// Directories within directories that are followed. Each holds three descriptors, of which there are 1024 mostly.
const MAX_DEPTH: usize = 256;

/// Copies what is in the directory `source` into the directory `target`: files, directories, links, fifos, sockets and
/// devices, with their owners, modes and extended attributes, as runc's tmpcopyup does. What is mounted below is copied
/// too. Hard links become files of their own. The directory itself stays as it was made.
///
/// Looks at /proc, the host's.
///
/// # Errors
/// With the path of what could not be copied: ENOSPC where the tmpfs is too small, EPERM for a device in a user namespace.
pub fn copy(source: impl AsFd, target: impl AsFd) -> Result<()> {
    copy_directory(source.as_fd(), target.as_fd(), 0)
}

fn copy_directory(source: BorrowedFd<'_>, target: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::os(libc::ENAMETOOLONG, "copying"));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = rustix::fs::openat(source, ".", flags, Mode::empty()).os(|| "openat")?;
    for entry in Dir::new(entries).os(|| "readdir")? {
        let entry = entry.os(|| "getdents64")?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(source, target, name, depth)
            .context(|| OsStr::from_bytes(name.to_bytes()).to_string_lossy().into_owned())?;
    }
    Ok(())
}

fn copy_entry(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(source, name, flags, Mode::empty()) {
        // It has been removed meanwhile.
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.os(|| "openat")?,
    };
    let stat = path::stat(&file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(target, name, Mode::RWXU).os(|| "mkdirat")?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(target, name, flags, Mode::empty()).os(|| "openat")?;
            copy_directory(file.as_fd(), made.as_fd(), depth + 1)?;
        }
        FileType::Symlink => {
            let text = rustix::fs::readlinkat(&file, "", Vec::new()).os(|| "readlinkat")?;
            rustix::fs::symlinkat(&text, target, name).os(|| "symlinkat")?;
        }
        FileType::RegularFile => copy_content(&file, target, name)?,
        _ => rustix::fs::mknodat(target, name, kind, Mode::RUSR, stat.st_rdev).os(|| "mknodat")?,
    }
    copy_inode(&file, &stat, target, name)
}

/// The handle is of a regular file, so that opening it neither waits nor does anything to a device.
fn copy_content(source: &OwnedFd, target: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let source = rustix::fs::open(handle(source), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).os(|| "open")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR).os(|| "openat")?;
    const AT_ONCE: usize = 1 << 30;
    while rustix::fs::sendfile(&target, &source, None, AT_ONCE).os(|| "sendfile")? > 0 {}
    Ok(())
}

/// The owner first: with it the set-id bits and the capabilities of a file go.
fn copy_inode(source: &OwnedFd, stat: &Stat, target: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(target, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).os(|| "fchownat")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        rustix::fs::chmodat(target, name, mode, AtFlags::empty()).os(|| "fchmodat")?;
    }
    copy_attributes(source, target, name)
}

/// The longest list of names, and the longest value, that the kernel has (linux/limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX).
const ATTRIBUTES_MAX: usize = 65536;

/// Those that the tmpfs can have and that we may set: user attributes from Linux 6.6 on, and in a user namespace not those
/// of the host's root.
fn copy_attributes(source: &OwnedFd, target: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let source = handle(source);
    let mut names = Vec::with_capacity(ATTRIBUTES_MAX);
    match rustix::fs::listxattr(&source, spare_capacity(&mut names)) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        listed => listed.os(|| "listxattr")?,
    };
    for attribute in names.split(|byte| *byte == 0).filter(|attribute| !attribute.is_empty()) {
        let mut value = Vec::with_capacity(ATTRIBUTES_MAX);
        match rustix::fs::getxattr(&source, attribute, spare_capacity(&mut value)) {
            // It has been removed meanwhile.
            Err(Errno::NODATA) => continue,
            got => got.os(|| format!("getxattr {}", attribute.escape_ascii()))?,
        };
        let file = [handle(target).as_bytes(), b"/", name.to_bytes()].concat();
        match rustix::fs::lsetxattr(file, attribute, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(Error::os(e, format!("lsetxattr {}", attribute.escape_ascii()))),
        }
    }
    Ok(())
}

/// The file that a handle names, for the calls that take no handle.
fn handle(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
