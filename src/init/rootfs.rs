//! The root file system: found, made the root of its own mount tree, entered.

use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Context, Os, Result};
use crate::spec::mount_options::Propagation;
use crate::sys::mount::{self, Mount};
use crate::sys::path::{self, Root};

use super::mounts;
use super::plan::{Rootfs, Work};
use super::steps::Born;

/// The rootfs plan of a container that has its own mount namespace; one that joins another's uses what is there.
pub fn plan<'a>(born: &Born<'a>) -> Option<&'a Rootfs> {
    match &born.plan.work {
        Work::Create(create) => create.rootfs.as_ref(),
        Work::Exec(_) => None,
    }
}

/// Cuts the new mount namespace off from the host's and opens the rootfs in it.
pub fn open(born: &mut Born<'_>) -> Result<()> {
    let mut sources = born.sources.take();
    let Some(plan) = plan(born) else { return Ok(()) };
    // Before they are cut off: what is to be shared with the host. In a user namespace all are slaves already, and the
    // sources are the host's to open (mount_namespaces(7)).
    let shared = if sources.is_none() { mounts::open_shared(plan)? } else { Vec::new() };
    // The host's mounts may still come in (an autofs, a late NFS), ours do not go out: runc's default as well. It also
    // makes pivot_root(2) possible, which refuses a shared parent. And whatever propagation is asked for, what is being
    // mounted on the rootfs here must not appear on the host's.
    mount::propagation(Path::new("/"), libc::MS_SLAVE | libc::MS_REC)?;
    let root = match &mut sources {
        Some(sources) => Root::from_fd(sources.take()?),
        None => Root::open(&plan.path)?,
    };
    // In a user namespace's copy of the host's mounts each is locked in its place (mount_namespaces(7)), and pivot_root(2)
    // refuses it.
    let root = if sources.is_none() && path::is_mount_root(&root)? {
        root
    } else {
        // pivot_root(2) wants a mount: a plain directory is bound onto itself.
        let mount = Mount::clone_fd(root.as_fd(), true)?;
        mount.attach(root.as_fd())?;
        Root::from_fd(mount.into())
    };
    // No master either: what the host mounts in the bundle later is not the container's (runc: rootfsParentMountPrivate).
    mount_of(&root)?.propagate(libc::MS_PRIVATE, false)?;
    born.root = Some(root);
    born.shares = !shared.is_empty();
    born.shared = shared;
    born.sources = sources;
    Ok(())
}

/// Does `attach`, which mounts something of our own on `target`: it covers a part of the container, and none of the host's,
/// to which a volume that is shared would take it (runc does not prevent that).
///
/// Before Linux 5.15 the price is that what the container mounts on that very mount does not appear on the host either.
pub fn keep_inside(born: &Born<'_>, target: impl AsFd, attach: impl FnOnce() -> Result<()>) -> Result<()> {
    if born.shares { mount::attach_unseen(target.as_fd(), true, attach) } else { attach() }
}

/// Makes the working directory where the image lacks it, as runc does.
pub fn working_directory(born: &mut Born<'_>) -> Result<()> {
    let (Some(_), Some(root)) = (plan(born), &born.root) else { return Ok(()) };
    let cwd = &born.plan.process.cwd;
    root.mkdir_all(cwd).map(drop).context(|| format!("working directory {}", cwd.display()))
}

/// Makes the rootfs the root, read-only where asked, and lets go of the host's tree.
pub fn enter(born: &mut Born<'_>) -> Result<()> {
    let (Some(plan), Some(root)) = (plan(born), &born.root) else { return Ok(()) };
    if plan.readonly {
        // This namespace's view of the mount only; what is mounted below it stays as its own options say. By the
        // descriptor and not by the path again: that finds what has been mounted on it since.
        mount_of(root)?.restrict(libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    if plan.no_pivot {
        mount::move_root(root.as_fd(), &plan.path, born.sources.is_some())?;
    } else {
        mount::pivot_root(root.as_fd())?;
    }
    propagate(plan)
}

/// The mount that this is the root of.
fn mount_of(root: &Root) -> Result<Mount> {
    root.as_fd().try_clone_to_owned().map(Mount::from).os(|| "dup")
}

/// Gives the root its propagation: now that it is the root, no peer of it is the host's.
///
/// Like runc's, `rshared`, `rslave` and `runbindable` are for all mounts in the container, and `rprivate` is for none that
/// asks for another propagation itself: all are cut off from the host's to begin with.
fn propagate(plan: &Rootfs) -> Result<()> {
    let Some((kind, recursive)) = plan.propagation else { return Ok(()) };
    let recursive = recursive && kind != Propagation::Private;
    let recursive = if recursive { libc::MS_REC } else { 0 };
    mount::propagation(Path::new("/"), u64::from(kind.flag().bits()) | recursive)
}
