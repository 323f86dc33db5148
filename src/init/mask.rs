//! Read-only and masked paths: the parts of /proc and /sys that are the host's, whatever container looks at them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::FileType;

use crate::error::{Context, Error, Kind, Result};
use crate::sys::mount::{FileSystem, Mount};
use crate::sys::path::{self, Root};

use super::label::CONTEXT;
use super::rootfs;
use super::steps::Born;

/// Binds each path onto itself, read-only. One that is not there needs no protection.
pub fn read_only(born: &mut Born<'_>) -> Result<()> {
    let (Some(plan), Some(root)) = (rootfs::plan(born), &born.root) else { return Ok(()) };
    for path in &plan.readonly_paths {
        let Some(target) = existing(root, path)? else { continue };
        // The copy too, which would be another peer.
        let make = || Mount::clone_fd(target.as_fd(), true)?.attach_with(target.as_fd(), libc::MOUNT_ATTR_RDONLY, 0);
        rootfs::keep_inside(born, &target, make).context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Covers each file with the container's /dev/null and each directory with an empty read-only tmpfs, one for all.
pub fn masked(born: &mut Born<'_>) -> Result<()> {
    let (Some(plan), Some(root)) = (rootfs::plan(born), &born.root) else { return Ok(()) };
    let mut null = None;
    let mut empty = None;
    for path in &plan.masked_paths {
        let Some(target) = existing(root, path)? else { continue };
        let cover = || match path::is_dir(&target)? {
            true => cover(&mut empty, &target, || empty_directory(plan.label.as_deref())),
            false => cover(&mut null, &target, || copy(&null_device(root)?)),
        };
        rootfs::keep_inside(born, &target, cover).context(|| path.display().to_string())?;
    }
    Ok(())
}

fn existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    match root.resolve(path) {
        Ok(target) => Ok(Some(target)),
        Err(e) if matches!(e.errno(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Mounts what `make` makes on `target`, and a copy of it the next time: a copy of one that is mounted, for nothing can be
/// copied from a mount that is nowhere before Linux 6.15.
fn cover(first: &mut Option<Mount>, target: &OwnedFd, make: impl FnOnce() -> Result<Mount>) -> Result<()> {
    match first {
        Some(first) => copy(first)?.attach(target.as_fd()),
        None => first.insert(make()?).attach(target.as_fd()),
    }
}

fn copy(mount: &impl AsFd) -> Result<Mount> {
    Mount::clone_fd(mount.as_fd(), false)
}

/// The image may have put something else at /dev/null, a link to the host's among it: it is used only if it is the
/// character device 1:3, by the descriptor that was looked at (CVE-2025-31133). It is the container's own node rather
/// than the host's, whose mode a container's root could change through the mask.
fn null_device(root: &Root) -> Result<OwnedFd> {
    let null = root.resolve_no_links(Path::new("/dev/null"))?;
    let stat = path::stat(&null)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::CharacterDevice || stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Error::new(Kind::InvalidArgument, "/dev/null in the rootfs is not the null device"));
    }
    Ok(null)
}

fn empty_directory(label: Option<&str>) -> Result<Mount> {
    let fs = FileSystem::open("tmpfs")?;
    label.map_or(Ok(()), |label| fs.set(CONTEXT, Some(label)))?;
    // It holds nothing and costs next to nothing: one block, one inode.
    fs.set("nr_blocks", Some("1"))?;
    fs.set("nr_inodes", Some("1"))?;
    let attrs = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    fs.mount(attrs)
}
