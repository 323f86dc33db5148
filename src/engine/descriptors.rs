//! `descriptors.json`, which runc has among the images of a checkpoint: which of the container's open files are its standard
//! streams, by the names that CRIU has for them.
//!
//! The directory is the caller's, and what is in it may be of somebody who means harm: a restore's is unpacked from an image,
//! a checkpoint's may have been made before, in /tmp. Nothing there that waits is waited for, and no link is followed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::load;

/// Its name.
const NAME: &str = "descriptors.json";

/// That of one that is being written.
const NEW: &str = ".descriptors.json.new";

/// The largest that is read, in bytes: three names of less than a hundred are in it.
const MAX: u64 = 64 << 10;

/// Writes it, for root alone; one that is there is replaced.
///
/// # Errors
/// What the kernel says.
pub(super) fn write(images: &Path, names: &[String]) -> Result<()> {
    let (new, path) = (images.join(NEW), images.join(NAME));
    let text = serde_json::to_vec(names).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).os(|| format!("unlink {}", new.display())),
        _ => {}
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(&new, flags, Mode::from(0o600)).os(|| format!("open {}", new.display()))?;
    File::from(file).write_all(&text).os(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, &path).os(|| format!("rename {}", path.display()))
}

/// Reads it.
///
/// # Errors
/// `NotFound` where there is no checkpoint; `InvalidArgument` for what is none.
pub(super) fn read(images: &Path) -> Result<Vec<String>> {
    let path = images.join(NAME);
    let invalid = |why: &str| Error::new(Kind::InvalidArgument, format!("{}: {why}", path.display()));
    let opened = load::open_regular(&path, OFlags::NOFOLLOW).context(|| "no checkpoint");
    let (file, _) = opened.map_err(|e| match e.errno() {
        Some(libc::ENOENT) => e.with_kind(Kind::NotFound),
        Some(libc::ENOTDIR | libc::ELOOP | libc::ENXIO) => e.with_kind(Kind::InvalidArgument),
        _ => e,
    })?;
    let mut text = Vec::new();
    // Not by st_size: a file can grow.
    file.take(MAX + 1).read_to_end(&mut text).os(|| format!("read {}", path.display()))?;
    if text.len() as u64 > MAX {
        return Err(invalid("it is larger than any"));
    }
    serde_json::from_slice(&text).map_err(|e| invalid(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;

    use rustix::fs::FileType;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("dray-descriptors-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn fifo(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    }

    /// Whoever makes the directory first decides what is in it.
    #[test]
    fn what_is_written_replaces_what_is_there_and_goes_nowhere_else() {
        let dir = scratch("write");
        let names = vec!["pipe:[7]".to_owned(), String::new()];
        std::fs::write(dir.join("precious"), "kept").unwrap();
        for place in [NAME, NEW] {
            symlink(dir.join("precious"), dir.join(place)).unwrap();
        }
        write(&dir, &names).unwrap();
        assert_eq!(read(&dir).unwrap(), names);
        assert_eq!(std::fs::symlink_metadata(dir.join(NAME)).unwrap().mode() & 0o170777, 0o100600);
        assert_eq!(std::fs::read_to_string(dir.join("precious")).unwrap(), "kept");
        for place in [NAME, NEW] {
            let _ = std::fs::remove_file(dir.join(place));
            fifo(&dir.join(place));
        }
        write(&dir, &names).unwrap();
        assert_eq!(read(&dir).unwrap(), names);
        write(&dir, &names[1..]).unwrap();
        assert_eq!(read(&dir).unwrap(), names[1..]);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "it and what is precious");
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// An image's tar holds whatever its author likes.
    #[test]
    fn only_a_small_regular_file_is_read() {
        let dir = scratch("read");
        let refused = |kind, word: &str| {
            let error = read(&dir).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(word) && error.to_string().contains(NAME), "{error}");
            let _ = std::fs::remove_file(dir.join(NAME));
        };
        refused(Kind::NotFound, "no checkpoint");
        fifo(&dir.join(NAME));
        refused(Kind::InvalidArgument, "regular");
        symlink("/dev/zero", dir.join(NAME)).unwrap();
        refused(Kind::InvalidArgument, "symbolic links");
        std::fs::write(dir.join(NAME), " ".repeat(MAX as usize) + "[]").unwrap();
        refused(Kind::InvalidArgument, "larger");
        std::fs::write(dir.join(NAME), "{}").unwrap();
        refused(Kind::InvalidArgument, "invalid type");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
