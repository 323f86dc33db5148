//! The root file system's mounts, as containerd's Create request asks for them: made on the bundle's directory, in the
//! host's mount namespace, where others expect to find them (a snapshotter's cleanup, `nerdctl cp`).

use std::path::Path;

use crate::error::{Context, Error, Kind, Result};
use crate::spec::mount_options::MountOptions;
use crate::sys::mount;

use super::events::RootfsMount;

/// Types that never block in the kernel for long, on local layers. Others need a process of their own to wait in.
const KINDS: &[&str] = &["overlay", "bind"];

/// mount(2) takes one page of data, its final NUL included.
const MAX_DATA: usize = 4095;

/// Refuses what [`mount_all`] could not do, before any effect.
pub fn check(mounts: &[RootfsMount]) -> Result<()> {
    for (index, mount) in mounts.iter().enumerate() {
        let refuse = |kind, why: String| Err(Error::new(kind, format!("rootfs mount {index}: {why}")));
        if !KINDS.contains(&mount.kind.as_str()) && !is_bind(mount) {
            return refuse(Kind::Unimplemented, format!("type {:?} is not supported", mount.kind));
        }
        if !mount.target.is_empty() {
            return refuse(Kind::Unimplemented, "a target below the rootfs is not supported".into());
        }
        let options = MountOptions::parse(&mount.options).context(|| format!("rootfs mount {index}"))?;
        if options.data_string().len() > MAX_DATA {
            return refuse(Kind::Unimplemented, format!("options of more than {MAX_DATA} bytes are not supported"));
        }
    }
    Ok(())
}

/// Mounts all on `target`, in order.
///
/// # Errors
/// Names the mount; those made stay, for the caller to take away with [`unmount`].
pub fn mount_all(mounts: &[RootfsMount], target: &Path) -> Result<()> {
    for (index, mount) in mounts.iter().enumerate() {
        mount_one(mount, target).context(|| format!("rootfs mount {index}"))?;
    }
    Ok(())
}

fn is_bind(mount: &RootfsMount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

fn mount_one(mount: &RootfsMount, target: &Path) -> Result<()> {
    let options = MountOptions::parse(&mount.options)?;
    if !is_bind(mount) {
        let flags = u64::from(options.ms_flags().bits());
        return mount::mount(&mount.source, target, &mount.kind, flags, &options.data_string());
    }
    let tree = mount::Mount::clone_path(None, Path::new(&mount.source), options.recursive_bind)?;
    let root = crate::sys::path::Root::open(target)?;
    tree.attach_with(std::os::fd::AsFd::as_fd(&root), options.attr_set, options.attr_clr)
}

/// Takes away everything that is mounted on `target`, however deep it is stacked.
pub fn unmount(target: &Path) -> Result<()> {
    loop {
        match mount::detach(target) {
            Ok(()) => {}
            Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::ENOENT)) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}
