//! Kernel parameters of the container's namespaces, written where nobody else has a hand in it.
//!
//! Not by the container's own /proc: that an image's link or a mount covers it, so that the write goes elsewhere, is
//! CVE-2025-52881. A procfs of our own, never attached, has nothing on it.

use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::sysctl::Sysctl;
use crate::sys::mount::FileSystem;
use crate::sys::path::Root;

use super::plan::Work;
use super::steps::Born;

/// Writes each parameter. The kernel takes them for the namespaces that we are in.
///
/// # Errors
/// With the parameter's name; `InvalidArgument` for one that this kernel does not have, or a value that it does not take.
pub fn write_all(born: &mut Born<'_>) -> Result<()> {
    let Work::Create(create) = &born.plan.work else { return Ok(()) };
    if create.sysctls.is_empty() {
        return Ok(());
    }
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let proc = Root::from_fd(FileSystem::open("proc")?.mount(attributes)?.into());
    create.sysctls.iter().try_for_each(|sysctl| {
        let named = || format!("sysctl {}={}", sysctl.path.display(), sysctl.value);
        write(&proc, sysctl).context(named).map_err(|e| match e.errno() {
            Some(libc::ENOENT | libc::EINVAL | libc::ERANGE) => e.with_kind(Kind::InvalidArgument),
            _ => e,
        })
    })
}

fn write(proc: &Root, sysctl: &Sysctl) -> Result<()> {
    let file = proc.open_beneath(&Path::new("sys").join(&sysctl.path), OFlags::WRONLY)?;
    // In one write: the kernel takes each for a whole value.
    match rustix::io::write(&file, sysctl.value.as_bytes()).os(|| "write")? {
        written if written == sysctl.value.len() => Ok(()),
        _ => Err(Error::os(libc::EINVAL, "write")),
    }
}
