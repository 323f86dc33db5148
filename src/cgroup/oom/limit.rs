//! Whose limit it was that had a process killed for lack of memory.
//!
//! cgroup2 counts it where the limit is: `oom` of memory.events.local. v1 counts there how often a limit was met (failcnt),
//! also when room was made by reclaim and nothing was killed, so that two that were met cannot be told apart.

use std::cell::RefCell;
use std::fmt;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

use crate::cgroup::hierarchy::Version;
use crate::cgroup::{Cgroup, file, tree};
use crate::error::{Os, Result};

/// A limit of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The cgroup's own.
    Own,
    /// That of a cgroup below it, made in the container.
    Below,
    /// That of the cgroup of this path, above it.
    Above(PathBuf),
    /// The host's memory.
    Host,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Own => write!(f, "its own limit"),
            Limit::Below => write!(f, "the limit of a cgroup made in it"),
            Limit::Above(path) => write!(f, "the limit of {}, above its own", path.display()),
            Limit::Host => write!(f, "the host's memory"),
        }
    }
}

/// The counters of a cgroup, of those below and of each above it.
#[derive(Debug)]
pub struct Limits {
    cgroup: Cgroup,
    seen: RefCell<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    below: u64,
    /// Of the cgroup and those above it, in the order of [`Limits::line`].
    line: Vec<u64>,
}

impl Cgroup {
    /// Begins to count. One that is new has counted nothing yet, but those above it may have.
    pub(super) fn memory_limits(&self) -> Result<Limits> {
        let limits = Limits { cgroup: self.clone(), seen: RefCell::default() };
        let above = limits.line().skip(1).map(|(_, dir)| limits.count_of(&dir));
        let line = std::iter::once(Ok(0)).chain(above).collect::<Result<_>>()?;
        limits.seen.borrow_mut().line = line;
        Ok(limits)
    }
}

impl Limits {
    /// The cgroup and those above it but for the root, which has no limit: path and directory.
    fn line(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        let hierarchy = self.cgroup.hierarchies.of("memory");
        let line = self.cgroup.path.ancestors().filter(|path| path.parent().is_some());
        hierarchy.into_iter().flat_map(move |hierarchy| line.clone().map(|path| (path, hierarchy.dir(path))))
    }

    pub(super) fn met(&self) -> Result<Vec<Limit>> {
        let line = self.line().map(|(_, dir)| self.count_of(&dir)).collect::<Result<Vec<_>>>()?;
        let mut all = 0;
        if let Some((_, dir)) = self.line().next() {
            tree::walk(&dir, |dir| {
                all += self.count(dir).os(|| "read the counters of a cgroup below")?;
                Ok(ControlFlow::Continue(()))
            })?;
        }
        let below = all.saturating_sub(line.first().copied().unwrap_or(0));
        let now = Counts { below, line };
        let before = self.seen.replace(now);
        let now = self.seen.borrow();
        let mut met = Vec::new();
        if now.below > before.below {
            met.push(Limit::Below);
        }
        for ((path, _), (now, before)) in self.line().zip(now.line.iter().zip(&before.line)) {
            match now > before {
                true if path == self.cgroup.path => met.push(Limit::Own),
                true => met.push(Limit::Above(path.to_owned())),
                false => {}
            }
        }
        if met.is_empty() {
            met.push(Limit::Host);
        }
        if self.version() == Version::V2 {
            // The lowest: what it killed for was within it, and within ours.
            met.truncate(1);
        }
        Ok(met)
    }

    fn version(&self) -> Version {
        self.cgroup.hierarchies.version()
    }

    fn count_of(&self, dir: &Path) -> Result<u64> {
        let opened = match file::open_dir(CWD, dir) {
            Err(Errno::NOENT) => return Ok(0),
            opened => opened.os(|| format!("open {}", dir.display()))?,
        };
        self.count(opened).os(|| format!("read the counters of {}", dir.display()))
    }

    fn count(&self, dir: impl AsFd) -> rustix::io::Result<u64> {
        let mut buf = Vec::new();
        let mut read = |name: &str| match file::read(dir.as_fd(), name, &mut buf) {
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(0),
            Ok(text) if self.version() == Version::V2 => Ok(file::number(text, "oom").unwrap_or(0)),
            Ok(text) => Ok(text.trim_end().parse().unwrap_or(0)),
            Err(e) => Err(e),
        };
        match self.version() {
            Version::V1 => Ok(read("memory.failcnt")? + read("memory.memsw.failcnt")?),
            Version::V2 => read("memory.events.local"),
        }
    }
}
