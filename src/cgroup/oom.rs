//! The kernel's word that a cgroup has run out of memory: a bell, and a counter that is exact.
//!
//! The counter rises before the victim gets its SIGKILL (mm/oom_kill.c), so whoever has seen the death sees the count.
//!
//! On cgroup2 it is `oom_kill` of memory.events, which has the victims below too; it rings by poll(2) after the count, at most
//! once in 10 ms. On v1 it is `oom_kill` of memory.oom_control, of one directory, hence the sum over those below; an eventfd
//! rings, before the kill, and also for a cgroup above that is out of memory and may kill elsewhere.

mod limit;
mod others;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;

use super::hierarchy::Version;
use super::{Cgroup, file, tree};
use crate::error::{Os, Result};
pub use limit::{Limit, Limits};
use others::Others;

/// Watches one cgroup for the OOM killer.
#[derive(Debug)]
pub struct OomWatch {
    counter: Counter,
    limits: Limits,
    others: Others,
}

#[derive(Debug)]
enum Counter {
    /// The directory, and the eventfd where the kernel has such a thing.
    V1(PathBuf, Option<Rc<OwnedFd>>),
    /// memory.events.
    V2(Rc<OwnedFd>),
}

/// What can be waited for.
#[derive(Clone, Debug)]
pub enum Bell {
    /// An eventfd, to be read when it is readable. Rings before the kill.
    Eventfd(Rc<OwnedFd>),
    /// A file with an exceptional condition (POLLPRI) until [`OomWatch::look`] reads it. Rings after the kill, also for what is
    /// none.
    Events(Rc<OwnedFd>),
}

/// What the kernel says at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oom {
    /// Processes that the OOM killer has ended, in all.
    pub kills: u64,
    /// Something waits for memory for which nothing will be killed, as the killer is disabled (v1).
    pub stuck: bool,
}

impl Cgroup {
    /// Begins to watch; to be called while nothing is in the cgroup. `None` where it has no memory controller.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let Some(dir) = self.dir_of("memory") else { return Ok(None) };
        let counter = match self.hierarchies.version() {
            Version::V1 => {
                let bell = v1_bell(&dir)?;
                Counter::V1(dir, bell)
            }
            Version::V2 => {
                let events = dir.join(EVENTS);
                match open(&events, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                    Err(Errno::NOENT) => return Ok(None),
                    events_fd => Counter::V2(events_fd.os(|| format!("open {}", events.display()))?.into()),
                }
            }
        };
        Ok(Some(OomWatch { counter, limits: self.memory_limits()?, others: Others::of(self) }))
    }
}

/// Without it (a kernel may drop it; one above may not be ours to write to) there still is the counter.
fn v1_bell(dir: &std::path::Path) -> Result<Option<Rc<OwnedFd>>> {
    let control = dir.join("memory.oom_control");
    let control =
        open(&control, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).os(|| format!("open {}", control.display()))?;
    let registry = match file::open_write(CWD, dir.join("cgroup.event_control")) {
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ROFS) => return Ok(None),
        registry => registry.os(|| format!("open {}/cgroup.event_control", dir.display()))?,
    };
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).os(|| "eventfd")?;
    let line = format!("{} {}", bell.as_raw_fd(), control.as_raw_fd());
    file::write_fd(&registry, &line).os(|| format!("write to {}/cgroup.event_control", dir.display()))?;
    Ok(Some(bell.into()))
}

impl OomWatch {
    /// What rings when memory has run out; none where the kernel has no such thing.
    pub fn bell(&self) -> Option<Bell> {
        match &self.counter {
            Counter::V1(_, bell) => bell.clone().map(Bell::Eventfd),
            Counter::V2(events) => Some(Bell::Events(events.clone())),
        }
    }

    /// Whether there may be something to see: on v1, whether the bell has rung and nobody has read it. True also where one
    /// cannot know without a look: where there is no bell, or one that may ring a while after the kill.
    pub fn is_ringing(&self) -> bool {
        let Counter::V1(_, Some(bell)) = &self.counter else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)) != Ok(0)
    }

    /// What has happened so far; `None` when the cgroup is gone.
    pub fn look(&self) -> Result<Option<Oom>> {
        match &self.counter {
            Counter::V1(dir, _) => {
                let mut all = None;
                let mut buf = Vec::new();
                tree::walk(dir, |dir| {
                    if let Some(one) = look_v1(dir, &mut buf)? {
                        let all = all.get_or_insert(Oom::default());
                        all.kills += one.kills;
                        all.stuck |= one.stuck;
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                Ok(all)
            }
            Counter::V2(events) => {
                let mut text = [0; 256]; // Six lines of a name and a number.
                let length = match rustix::io::pread(events, &mut text, 0) {
                    Err(Errno::NODEV) => return Ok(None),
                    length => length.os(|| "read memory.events")?,
                };
                let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
                Ok(Some(Oom { kills: file::number(text, "oom_kill").unwrap_or(0), stuck: false }))
            }
        }
    }

    /// Whose limit was met since the last call, or since the watch began: to be asked when there was a kill.
    pub fn limit_met(&self) -> Result<Limit> {
        self.limits.met()
    }

    /// It rang, and for no kill here: that is not to be taken for the next one's reason.
    pub fn forget(&self) {
        self.limits.forget();
    }

    /// Takes note of what has been killed elsewhere, where `own` is what has been seen here: the nearer to the cgroup's end that
    /// is, the surer is [`OomWatch::missed`]. The bell rings on.
    pub fn note_others(&self, own: u64) {
        self.others.note(own);
    }

    /// Where the cgroup is gone, which had counted `own` kills when it was last looked at: how many more were probably its own,
    /// and whose limit was met. The bell rings on.
    pub fn missed(&self, own: u64) -> Result<Option<(u64, Limit)>> {
        let file = match &self.counter {
            Counter::V1(..) => "memory.oom_control",
            Counter::V2(_) => EVENTS,
        };
        // The file, which goes before its directory; and no read of it, after which the bell would not ring for what that has seen.
        let there = self.limits.cgroup.dir_of("memory").is_some_and(|dir| dir.join(file).exists());
        let missed = if there { 0 } else { self.others.missed(own) };
        if missed == 0 {
            return Ok(None);
        }
        Ok(Some(match self.limit_met()? {
            Limit::Host => (missed, Limit::Unknown),
            limit => (missed, limit),
        }))
    }
}

/// cgroup2's counts, of a cgroup with all below it.
const EVENTS: &str = "memory.events";

fn look_v1(dir: impl AsFd, buf: &mut Vec<u8>) -> Result<Option<Oom>> {
    let text = match file::read(dir, c"memory.oom_control", buf) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
        text => text.os(|| "read memory.oom_control")?,
    };
    let stuck = file::flag(text, "oom_kill_disable") && file::flag(text, "under_oom");
    Ok(Some(Oom { kills: file::number(text, "oom_kill").unwrap_or(0), stuck }))
}
