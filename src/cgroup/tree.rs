//! Walking a cgroup and the cgroups below it.
//!
//! A container that may write to cgroupfs decides how deep and how wide its tree is. Hence no recursion, no path that
//! grows past PATH_MAX and one directory fd at a time: down by name, up by "..", which in cgroupfs is the same
//! directory for ever (it renames within a parent only).

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, RawDir, unlinkat};
use rustix::io::Errno;

use super::file::open_dir;
use crate::error::{Os, Result};

/// Calls `enter` for the directory `top` and each one below it, parents first, until it breaks. A directory that is
/// not there (any more) has nothing to visit.
pub(super) fn walk(top: &Path, mut enter: impl FnMut(BorrowedFd) -> Result<ControlFlow<()>>) -> Result<()> {
    traverse(top, usize::MAX, |_, event| match event {
        Event::Enter(dir) => enter(dir),
        Event::Leave(..) => Ok(ControlFlow::Continue(())),
    })
}

/// What came of an attempt to remove a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// Nothing is left of it.
    All,
    /// So many of those below it are gone.
    Below(usize),
}

/// Removes the cgroup `top` with all that are below it, `most` of these. One attempt: something of it may be left (a
/// process, or a cgroup made meanwhile).
pub(super) fn remove(top: &Path, most: usize) -> Result<Removed> {
    // Most have no cgroup below.
    if remove_dir(CWD, top, top)? {
        return Ok(Removed::All);
    }
    let mut removed = 0;
    traverse(top, most, |top, event| {
        if let Event::Leave(parent, name) = event {
            removed += usize::from(remove_dir(parent, name, top)?);
        }
        Ok(if removed >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(if removed < most && remove_dir(CWD, top, top)? { Removed::All } else { Removed::Below(removed) })
}

/// rmdir; false when it is busy.
fn remove_dir(at: impl AsFd, name: impl rustix::path::Arg, top: &Path) -> Result<bool> {
    match unlinkat(at, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(e) => Err(e).os(|| format!("rmdir {}", top.display())),
    }
}

enum Event<'a> {
    /// The directory itself, before those below it.
    Enter(BorrowedFd<'a>),
    /// After those below it: its parent and its name in it. Not for the top.
    Leave(BorrowedFd<'a>, &'a CString),
}

/// A directory on the way from the top to where the walk is.
struct Level {
    name: CString,
    /// Directories in it still to be visited.
    below: Vec<CString>,
}

/// Of each directory it sees the first `most` below it.
fn traverse(top: &Path, most: usize, mut visit: impl FnMut(&Path, Event) -> Result<ControlFlow<()>>) -> Result<()> {
    let what = || format!("read directory {}", top.display());
    let mut dir = match open_dir(CWD, top) {
        Err(Errno::NOENT) => return Ok(()),
        dir => dir.os(what)?,
    };
    if visit(top, Event::Enter(dir.as_fd()))?.is_break() {
        return Ok(());
    }
    let mut levels = vec![Level { name: CString::default(), below: subdirectories(&dir, most).os(what)? }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.below.pop() {
            match open_dir(&dir, &name) {
                Err(Errno::NOENT | Errno::NODEV) => continue,
                child => dir = child.os(what)?,
            }
            if visit(top, Event::Enter(dir.as_fd()))?.is_break() {
                return Ok(());
            }
            levels.push(Level { name, below: subdirectories(&dir, most).os(what)? });
            continue;
        }
        let name = std::mem::take(&mut level.name);
        levels.pop();
        if !levels.is_empty() {
            dir = open_dir(&dir, c"..").os(what)?;
            if visit(top, Event::Leave(dir.as_fd(), &name))?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn subdirectories(dir: &OwnedFd, most: usize) -> rustix::io::Result<Vec<CString>> {
    let mut buf = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(dir, &mut buf);
    let mut names = Vec::new();
    while names.len() < most
        && let Some(entry) = entries.next()
    {
        let entry = match entry {
            // Removed since it was opened.
            Err(Errno::NOENT | Errno::NODEV) => break,
            entry => entry?,
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain directories behave as cgroupfs' do, but for EBUSY (they say ENOTEMPTY), so removing is tested with real
    /// ones.
    #[test]
    fn walks_every_directory_once_and_no_symlink() {
        let top = std::env::temp_dir().join(format!("dray-test-tree-{}", std::process::id()));
        for below in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(top.join(below)).unwrap();
        }
        std::fs::write(top.join("a/file"), "").unwrap();
        std::os::unix::fs::symlink("/", top.join("a/link")).unwrap();
        let mut inodes = Vec::new();
        walk(&top, |dir| {
            inodes.push(rustix::fs::fstat(dir).unwrap().st_ino);
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let inode = |p: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(top.join(p)).unwrap());
        let mut expected: Vec<u64> = ["", "a", "a/b", "a/b/c", "a/d", "e"].map(inode).into();
        assert_eq!(inodes[0], expected[0]);
        inodes.sort_unstable();
        expected.sort_unstable();
        assert_eq!(inodes, expected);

        let mut seen = 0;
        walk(&top, |_| {
            seen += 1;
            Ok(ControlFlow::Break(()))
        })
        .unwrap();
        assert_eq!(seen, 1);
        std::fs::remove_dir_all(&top).unwrap();
        walk(&top, |_| unreachable!()).unwrap();
    }
}
