//! /dev: the default devices, the specification's, and the links that programs expect.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::mount::Mount;
use crate::sys::path::{self, Root};

use super::mounts::is_dev;
use super::plan::{Device, Source};
use super::rootfs;
use super::sources::is_made_by_host;
use super::steps::Born;

/// Links below /dev (runtime-spec: config-linux.md, "Default devices"; runc: setupDevSymlinks).
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes devices and links, unless the specification mounts a /dev of the host's: that is not ours to fill.
pub fn make(born: &mut Born<'_>) -> Result<()> {
    let mut sources = born.sources.take();
    let (Some(plan), Some(root)) = (rootfs::plan(born), &born.root) else { return Ok(()) };
    let Some(devices) = &plan.devices else { return Ok(()) };
    root.mkdir_all(Path::new("/dev"))?;
    // /dev may be anything in an image, a link into the host's tree among it (CVE-2026-41579).
    let dev = root.resolve_no_links(Path::new("/dev"))?;
    rustix::process::umask(Mode::empty());
    for device in devices {
        let made = match &mut sources {
            Some(sources) if is_made_by_host(device) => bind_device(root, device, sources.take()?),
            None if plan.host_devices && is_made_by_host(device) => {
                host_node(device).and_then(|node| bind_device(root, device, node))
            }
            _ => make_device(root, device),
        };
        made.context(|| device.path.display().to_string())?;
    }
    for (name, target) in LINKS {
        make_link(&dev, name, target)?;
    }
    born.sources = sources;
    Ok(())
}

/// In a user namespace, where mknod(2) is refused, the node is one that the host has made: bound onto an empty file, or
/// whatever else is there but a link.
fn bind_device(root: &Root, device: &Device, node: OwnedFd) -> Result<()> {
    let (dir, name) = root.parent(&device.path)?;
    let target = mount_point(&dir, name)?;
    Mount::from(node).attach(target.as_fd())
}

/// The host's node for a device, where we may make none: the same device at the same path, whatever its owner and mode are.
pub(super) fn host_node(device: &Device) -> Result<OwnedFd> {
    let node =
        OwnedFd::from(Mount::clone_path(None, &device.path, false).context(|| "a rootless runtime binds the host's")?);
    let stat = path::stat(&node)?;
    let number = rustix::fs::makedev(device.major, device.minor);
    if FileType::from_raw_mode(stat.st_mode) != device.kind || stat.st_rdev != number {
        let text = "a rootless runtime binds the host's, which is another device";
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    Ok(node)
}

/// The file `name` to mount on, made where it is missing.
pub(super) fn mount_point(dir: &OwnedFd, name: &std::ffi::OsStr) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::from(0o666)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(e) => return Err(Error::os(e, "openat")),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(dir, name, flags, Mode::empty()).os(|| "openat")?;
    match FileType::from_raw_mode(path::stat(&target)?.st_mode) {
        FileType::Symlink => Err(Error::new(Kind::InvalidArgument, "it is a link")),
        _ => Ok(target),
    }
}

fn make_device(root: &Root, device: &Device) -> Result<()> {
    let (dir, name) = root.parent(&device.path)?;
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(&dir, name, device.kind, Mode::from_raw_mode(device.mode), number) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(Error::os(e, "mknodat")),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(&dir, name, flags, Mode::empty()).os(|| "openat")?;
    let stat = path::stat(&node)?;
    let same_number = device.kind == FileType::Fifo || stat.st_rdev == number;
    if FileType::from_raw_mode(stat.st_mode) != device.kind || !same_number {
        return Err(Error::new(Kind::InvalidArgument, "the rootfs has something else there"));
    }
    // By the descriptor that was looked at: what is exchanged for it meanwhile keeps its owner.
    if (device.uid, device.gid) != (stat.st_uid, stat.st_gid) {
        path::chown(&node, device.uid, device.gid)?;
    }
    Ok(())
}

fn make_link(dev: &OwnedFd, name: &str, target: &str) -> Result<()> {
    match rustix::fs::symlinkat(target, dev, name) {
        Err(Errno::EXIST) if name == "ptmx" => {}
        Ok(()) | Err(Errno::EXIST) => return Ok(()),
        Err(e) => return Err(Error::os(e, format!("symlinkat /dev/{name}"))),
    }
    // A ptmx node of the image's would open the host's devpts; the container's own is the one in pts.
    rustix::fs::unlinkat(dev, name, AtFlags::empty()).os(|| "unlinkat /dev/ptmx")?;
    rustix::fs::symlinkat(target, dev, name).os(|| "symlinkat /dev/ptmx")
}

/// A /dev that the specification wants read-only could not be so until now.
pub fn make_read_only(born: &mut Born<'_>) -> Result<()> {
    let (Some(plan), Some(root)) = (rootfs::plan(born), &born.root) else { return Ok(()) };
    if plan.devices.is_none() {
        return Ok(());
    }
    let read_only = plan.mounts.iter().filter(|mount| is_dev(&mount.destination)).fold(false, |now, mount| {
        let wanted = mount.options.top();
        let stays = now && matches!(mount.source, Source::Remount) && wanted.clear & libc::MOUNT_ATTR_RDONLY == 0;
        stays || wanted.set & libc::MOUNT_ATTR_RDONLY != 0
    });
    if !read_only {
        return Ok(());
    }
    let dev = root.resolve_no_links(Path::new("/dev"))?;
    debug_assert!(path::is_mount_root(dev.as_fd()).unwrap_or(true));
    Mount::from(dev).restrict(libc::MOUNT_ATTR_RDONLY, 0)
}
