//! The kernel's word that a cgroup has run out of memory, v1: an eventfd that rings, and a counter that is exact.
//!
//! The eventfd rings before the kill, and also for a cgroup above that is out of memory and may kill elsewhere. The counter
//! rises before the victim gets its SIGKILL (mm/oom_kill.c), so whoever has seen the death sees the count. On v1 it counts
//! the victims of one directory, hence the sum over those below.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;

use super::{Cgroup, file, tree};
use crate::error::{Os, Result};

/// Watches one cgroup for the OOM killer.
#[derive(Debug)]
pub struct OomWatch {
    dir: PathBuf,
    bell: Option<Rc<OwnedFd>>,
}

/// What the kernel says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oom {
    /// Processes that the OOM killer has ended, in all.
    pub kills: u64,
    /// Something waits for memory for which nothing will be killed, as the killer is disabled.
    pub stuck: bool,
}

impl Cgroup {
    /// Begins to watch. `None` where memory is not a v1 controller.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let Some(dir) = self.v1_dir("memory") else { return Ok(None) };
        let control = dir.join("memory.oom_control");
        let control = open(&control, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .os(|| format!("open {}", control.display()))?;
        // Without it (a kernel may drop it) there still is the counter.
        let registry = match file::open_write(CWD, dir.join("cgroup.event_control")) {
            Err(Errno::NOENT) => return Ok(Some(OomWatch { dir, bell: None })),
            registry => registry.os(|| format!("open {}/cgroup.event_control", dir.display()))?,
        };
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).os(|| "eventfd")?;
        let line = format!("{} {}", bell.as_raw_fd(), control.as_raw_fd());
        file::write_fd(&registry, &line).os(|| format!("write to {}/cgroup.event_control", dir.display()))?;
        Ok(Some(OomWatch { dir, bell: Some(bell.into()) }))
    }
}

impl OomWatch {
    /// An eventfd that is readable when memory has run out; none where the kernel has no such thing.
    pub fn bell(&self) -> Option<Rc<OwnedFd>> {
        self.bell.clone()
    }

    /// Whether it has rung and nobody has read it; true also where there is none, as one cannot know.
    pub fn is_ringing(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let rings = |bell| poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)) != Ok(0);
        self.bell.as_ref().is_none_or(rings)
    }

    /// What has happened so far. Nothing, when the cgroup is gone.
    pub fn look(&self) -> Result<Oom> {
        let mut all = Oom::default();
        let mut buf = Vec::new();
        tree::walk(&self.dir, |dir| {
            let one = look(dir, &mut buf)?;
            all.kills += one.kills;
            all.stuck |= one.stuck;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }
}

fn look(dir: impl AsFd, buf: &mut Vec<u8>) -> Result<Oom> {
    let text = match file::read(dir, c"memory.oom_control", buf) {
        Err(Errno::NOENT | Errno::NODEV) => "",
        text => text.os(|| "read memory.oom_control")?,
    };
    let stuck = file::flag(text, "oom_kill_disable") && file::flag(text, "under_oom");
    Ok(Oom { kills: file::number(text, "oom_kill").unwrap_or(0), stuck })
}
