//! Read-only and masked paths: the parts of /proc and /sys that are the host's, whatever container looks at them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::FileType;

use crate::error::{Context, Error, Kind, Result};
use crate::sys::mount::{FileSystem, Mount};
use crate::sys::path::{self, Root};

use super::rootfs;
use super::steps::Born;

/// Binds each path onto itself, read-only. One that is not there needs no protection.
pub fn read_only(born: &mut Born<'_>) -> Result<()> {
    let (Some(plan), Some(root)) = (rootfs::plan(born), &born.root) else { return Ok(()) };
    for path in &plan.readonly_paths {
        let Some(target) = existing(root, path)? else { continue };
        let make = || Mount::clone_fd(target.as_fd(), true)?.attach_with(target.as_fd(), libc::MOUNT_ATTR_RDONLY, 0);
        make().context(|| path.display().to_string())?;
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
        let mut cover = || {
            if path::is_dir(&target)? {
                get_or_make(&mut empty, empty_directory)?.attach_copy(&target)
            } else {
                get_or_make(&mut null, || null_device(root))?.attach_copy(&target)
            }
        };
        cover().context(|| path.display().to_string())?;
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

fn get_or_make(slot: &mut Option<Cover>, make: impl FnOnce() -> Result<Cover>) -> Result<&Cover> {
    if slot.is_none() {
        *slot = Some(make()?);
    }
    slot.as_ref().ok_or_else(|| Error::new(Kind::Internal, "just made"))
}

/// What covers a masked path.
struct Cover(OwnedFd);

impl Cover {
    fn attach_copy(&self, target: &OwnedFd) -> Result<()> {
        Mount::clone_fd(self.0.as_fd(), false)?.attach(target.as_fd())
    }
}

/// The image may have put something else at /dev/null, a link to the host's among it: it is used only if it is the
/// character device 1:3, by the descriptor that was looked at (CVE-2025-31133). It is the container's own node rather
/// than the host's, whose mode a container's root could change through the mask.
fn null_device(root: &Root) -> Result<Cover> {
    let null = root.resolve_no_links(Path::new("/dev/null"))?;
    let stat = path::stat(&null)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::CharacterDevice || stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Error::new(Kind::InvalidArgument, "/dev/null in the rootfs is not the null device"));
    }
    Ok(Cover(null))
}

fn empty_directory() -> Result<Cover> {
    let fs = FileSystem::open("tmpfs")?;
    // It holds nothing and costs next to nothing: one block, one inode.
    fs.set("nr_blocks", Some("1"))?;
    fs.set("nr_inodes", Some("1"))?;
    let attrs = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    Ok(Cover(fs.mount(attrs)?.into()))
}
