//! The root file system: found, made the root of its own mount tree, entered.

use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Context, Os, Result};
use crate::sys::mount::{self, Mount};
use crate::sys::path::{self, Root};

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
    // The host's mounts may still come in (an autofs, a late NFS), ours do not go out: runc's default as well. It also
    // makes pivot_root(2) possible, which refuses a shared parent.
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
    born.root = Some(root);
    born.sources = sources;
    Ok(())
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
        let mount = root.as_fd().try_clone_to_owned().os(|| "dup")?;
        Mount::from(mount).restrict(libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    if plan.no_pivot {
        mount::move_root(root.as_fd(), &plan.path, born.sources.is_some())
    } else {
        mount::pivot_root(root.as_fd())
    }
}
