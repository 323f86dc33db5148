//! Files that others read at any moment, replaced whole: whoever opens one has the old text or the new one, and a machine that
//! stops in between has one of them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, XattrFlags};

use crate::error::{Error, Kind, Os, Result};

/// The largest file of text that is read.
const MAX_FILE: u64 = 4 << 20;

/// The text of `path`; `None` where nothing is there.
///
/// # Errors
/// `InvalidArgument` for what is not a file of text.
pub fn read(path: &Path) -> Result<Option<String>> {
    // Opening a fifo would wait for a writer.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound && path.symlink_metadata().is_err() => return Ok(None),
        opened => opened.os(|| format!("open {}", path.display()))?,
    };
    let invalid = |why: &str| Error::new(Kind::InvalidArgument, format!("{}: {why}", path.display()));
    if !file.metadata().os(|| "fstat")?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).os(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(invalid("too large"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| invalid("not UTF-8"))
}

/// Makes `new` the text of `path`, which was `old` when it was read. Mode, owner and extended attributes stay; where `path` is
/// a link, the file it leads to is replaced. Where there is none, its directory is made too.
///
/// # Errors
/// `FailedPrecondition` where it has been changed since it was read.
pub fn write(path: &Path, old: Option<&str>, new: &str) -> Result<()> {
    let path = real(path)?;
    let dir = parent(&path);
    if old.is_none() {
        std::fs::create_dir_all(dir).os(|| format!("mkdir {}", dir.display()))?;
    }
    let lock = lock(dir)?;
    expect(&path, old)?;
    let mode = Permissions::from_mode(0o644);
    new_file(&path, |file| {
        file.write_all(new.as_bytes()).os(|| format!("write {}", path.display()))?;
        match old {
            Some(_) => keep_attributes(&path, file),
            None => file.set_permissions(mode).os(|| "fchmod"),
        }
    })?;
    rustix::fs::fsync(&lock).os(|| format!("fsync {}", dir.display()))
}

/// Removes the file `path`, whose text was `old`, and its directory where that has nothing else.
///
/// # Errors
/// As [`write`].
pub fn remove(path: &Path, old: &str) -> Result<()> {
    let path = real(path)?;
    let dir = parent(&path);
    let _lock = lock(dir)?;
    expect(&path, Some(old))?;
    std::fs::remove_file(&path).os(|| format!("unlink {}", path.display()))?;
    // Fails where there is something else.
    let _ = std::fs::remove_dir(dir);
    Ok(())
}

/// Makes the file `path` anew: `fill` writes it under another name, and then it has its own. What was there before goes on
/// being the file of who has it open or runs from it.
///
/// # Errors
/// What a step says; then nothing has changed.
pub fn new_file(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let temporary = temporary(path);
    // Of one that was killed in the middle.
    let _ = std::fs::remove_file(&temporary);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let mut file = made.os(|| format!("create {}", temporary.display()))?;
    let filled = fill(&mut file)
        .and_then(|()| file.sync_all().os(|| format!("fsync {}", temporary.display())))
        .and_then(|()| std::fs::rename(&temporary, path).os(|| format!("rename {}", path.display())));
    if filled.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    filled
}

/// A name beside `path` that nobody reads: containerd imports by `*.toml`.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".dray-new");
    path.with_file_name(name)
}

/// Two installations at a time write one after the other.
pub fn lock(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir_fd = rustix::fs::open(dir, flags, Mode::empty()).os(|| format!("open {}", dir.display()))?;
    rustix::fs::flock(&dir_fd, FlockOperation::LockExclusive).os(|| format!("flock {}", dir.display()))?;
    Ok(dir_fd)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Behind all links; one that leads nowhere is an error.
fn real(path: &Path) -> Result<PathBuf> {
    match path.symlink_metadata() {
        Ok(_) => std::fs::canonicalize(path).os(|| format!("realpath {}", path.display())),
        Err(_) => std::path::absolute(path).os(|| format!("getcwd for {}", path.display())),
    }
}

fn expect(path: &Path, old: Option<&str>) -> Result<()> {
    if read(path)?.as_deref() == old {
        return Ok(());
    }
    let text = format!("{} has been changed in the meantime: try again", path.display());
    Err(Error::new(Kind::FailedPrecondition, text))
}

/// Gives a new file what makes the old one readable, by whom. Labels of SELinux and access lists are extended attributes.
fn keep_attributes(path: &Path, file: &File) -> Result<()> {
    let old = File::open(path).os(|| format!("open {}", path.display()))?;
    let metadata = old.metadata().os(|| "fstat")?;
    std::os::unix::fs::fchown(file, Some(metadata.uid()), Some(metadata.gid())).os(|| "fchown")?;
    file.set_permissions(metadata.permissions()).os(|| "fchmod")?;
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(&old, &mut names) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        length => length.os(|| "flistxattr")?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = rustix::fs::fgetxattr(&old, name, &mut value).os(|| "fgetxattr")?;
        rustix::fs::fsetxattr(file, name, &value[..length], XattrFlags::empty()).os(|| "fsetxattr")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_since_it_was_read_is_not_written() {
        let dir = std::env::temp_dir().join(format!("dray-replace.{}", std::process::id()));
        let file = dir.join("a/b.toml");
        write(&file, None, "one").unwrap();
        assert_eq!(write(&file, Some("another"), "two").unwrap_err().kind(), Kind::FailedPrecondition);
        assert_eq!(write(&file, None, "two").unwrap_err().kind(), Kind::FailedPrecondition);
        assert_eq!(remove(&file, "two").unwrap_err().kind(), Kind::FailedPrecondition);
        write(&file, Some("one"), "two").unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("two"));
        // A failure in the middle leaves all as it was.
        let failed = new_file(&file, |file| {
            file.write_all(b"thr").unwrap();
            Err(Error::new(Kind::Internal, "no more"))
        });
        assert!(failed.is_err() && !temporary(&file).exists());
        assert_eq!(read(&file).unwrap().as_deref(), Some("two"));
        remove(&file, "two").unwrap();
        assert!(!dir.join("a").exists());
        std::fs::remove_dir(&dir).unwrap();
    }
}
