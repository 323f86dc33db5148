//! The terminal of a process: a pty of the container's own devpts, whose master goes to the shim.
//!
//! Nothing here takes a path twice, and the slave has none at all: it is opened through its master and bound by
//! descriptor (CVE-2025-52565).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::Uid;

use crate::error::{Context, Os, Result};
use crate::sys::mount::Mount;
use crate::sys::path::Root;
use crate::sys::tty;

use super::devices;
use super::kept::Kept;
use super::plan::{Streams, Work};
use super::rootfs;
use super::steps::Born;

/// Opens the pty, makes it the session's terminal, where that is made by now, and hands its master to the shim. An init of a
/// container that has its own mounts gets it as /dev/console too.
pub fn make(born: &mut Born<'_>) -> Result<()> {
    let Streams::Terminal(size) = &born.plan.streams else { return Ok(()) };
    // Of an exec, and of an init in another container's mount namespace, the root is the container's already.
    let root = match &born.root {
        Some(root) => root,
        None => &Root::open(Path::new("/"))?,
    };
    let devpts = root.resolve(Path::new("/dev/pts"))?;
    let master = tty::open_master(&devpts).context(|| "/dev/pts, which a terminal needs")?;
    let slave = tty::open_slave(&master)?;
    if let Some(size) = size {
        tty::resize(&master, *size)?;
    }
    // To its user alone: the group is the one that the devpts was mounted with, tty mostly.
    rustix::fs::fchown(&slave, Some(Uid::from_raw(born.plan.process.uid)), None).os(|| "fchown of the terminal")?;
    if !born.plan.has_last_part() {
        tty::take_control(&slave)?;
    }
    if matches!(born.plan.work, Work::Create(_)) && rootfs::plan(born).is_some() {
        bind_console(born, root, &slave).context(|| "/dev/console")?;
    }
    born.sync.console(&master)?;
    born.console = Some(slave);
    Ok(())
}

/// Makes the terminal, stdin by now, the session's.
pub fn take_control(kept: &mut Kept) -> Result<()> {
    if kept.terminal { tty::take_control(rustix::stdio::stdin()) } else { Ok(()) }
}

/// Binds the slave onto /dev/console (runtime-spec: config-linux.md, "Default devices"), made where it is missing.
fn bind_console(born: &Born<'_>, root: &Root, slave: &OwnedFd) -> Result<()> {
    // As for the devices: /dev may be anything in an image.
    let dev = root.resolve_no_links(Path::new("/dev"))?;
    let target = devices::mount_point(&dev, "console".as_ref())?;
    rootfs::keep_inside(born, &target, || Mount::clone_fd(slave.as_fd(), false)?.attach(target.as_fd()))
}
