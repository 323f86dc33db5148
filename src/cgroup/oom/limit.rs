//! Whose limit it was that had a process killed for lack of memory.
//!
//! cgroup2 counts it where the limit is: `oom` of memory.events.local. v1 has no such counter (failcnt is of what was met
//! without a kill too, and some kernels do not count it), but it rings the bells of the cgroup that is out of memory and of
//! all below it: one in the parent tells what is above from what is not.

use std::cell::RefCell;
use std::fmt;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

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
    /// None above it, of a cgroup that is gone.
    Unknown,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Own => write!(f, "its own limit"),
            Limit::Below => write!(f, "the limit of a cgroup made in it"),
            Limit::Above(path) => write!(f, "the limit of {}, above its own", path.display()),
            Limit::Host => write!(f, "the host's memory"),
            Limit::Unknown => write!(f, "its own limit or the host's memory"),
        }
    }
}

/// What tells them apart.
#[derive(Debug)]
pub struct Limits {
    pub(super) cgroup: Cgroup,
    marks: Marks,
}

#[derive(Debug)]
enum Marks {
    /// The parent's bell, where the parent is not the root, which has no limit.
    V1(Option<Rc<OwnedFd>>),
    /// Of the cgroup and those above it, in the order of [`line`]; and of all below it together.
    V2(RefCell<(Vec<u64>, u64)>),
}

impl Cgroup {
    /// Begins to count. One that is new has counted nothing yet, but those above it may have.
    pub(super) fn memory_limits(&self) -> Result<Limits> {
        let mut above = line(self).skip(1).map(|(_, dir)| dir);
        let marks = match self.hierarchies.version() {
            Version::V1 => Marks::V1(above.next().map(|dir| super::v1_bell(&dir)).transpose()?.flatten()),
            Version::V2 => {
                let counts = std::iter::once(Ok(0)).chain(above.map(|dir| ooms_in(&dir, LOCAL)));
                Marks::V2((counts.collect::<Result<_>>()?, 0).into())
            }
        };
        Ok(Limits { cgroup: self.clone(), marks })
    }
}

/// A cgroup and those above it but for the root: path and directory.
pub(super) fn line(cgroup: &Cgroup) -> impl Iterator<Item = (&Path, PathBuf)> {
    let hierarchy = cgroup.hierarchies.of("memory");
    let line = cgroup.path.ancestors().filter(|path| path.parent().is_some());
    hierarchy.into_iter().flat_map(move |hierarchy| line.clone().map(|path| (path, hierarchy.dir(path))))
}

impl Limits {
    /// Whose limit was met since the last call, for a kill that has been seen.
    pub(super) fn met(&self) -> Result<Limit> {
        match &self.marks {
            Marks::V1(bell) => self.met_v1(bell.as_deref()),
            Marks::V2(seen) => self.met_v2(seen),
        }
    }

    /// Nothing was killed here, whatever has rung.
    pub(super) fn forget(&self) {
        if let Marks::V1(Some(bell)) = &self.marks {
            rings(bell);
        }
    }

    fn met_v1(&self, bell: Option<&OwnedFd>) -> Result<Limit> {
        if bell.is_some_and(rings) {
            for (path, dir) in line(&self.cgroup).skip(1) {
                if was_full(&dir)? {
                    return Ok(Limit::Above(path.to_owned()));
                }
            }
        }
        let Some((_, dir)) = line(&self.cgroup).next() else { return Ok(Limit::Host) };
        if was_full(&dir)? {
            return Ok(Limit::Own);
        }
        let mut below = false;
        tree::walk(&dir, |dir| {
            below = was_full_in(dir).os(|| "read the limits of a cgroup below")?;
            Ok(if below { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(if below { Limit::Below } else { Limit::Host })
    }

    fn met_v2(&self, seen: &RefCell<(Vec<u64>, u64)>) -> Result<Limit> {
        let counts = line(&self.cgroup).map(|(_, dir)| ooms_in(&dir, LOCAL)).collect::<Result<Vec<_>>>()?;
        // memory.events has them all, those of cgroups that are gone among them: no walk, which a container makes as long as it
        // likes. (Mounted with memory_localevents, a host has nothing that tells.)
        let all = line(&self.cgroup).next().map_or(Ok(0), |(_, dir)| ooms_in(&dir, super::EVENTS))?;
        let below = all.saturating_sub(counts.first().copied().unwrap_or(0));
        let (counts_before, below_before) = seen.replace((counts.clone(), below));
        // The lowest: what it killed for was within it.
        if below > below_before {
            return Ok(Limit::Below);
        }
        let risen = counts.iter().zip(&counts_before).position(|(now, before)| now > before);
        Ok(match risen.and_then(|index| line(&self.cgroup).nth(index)) {
            Some((path, _)) if path == self.cgroup.path => Limit::Own,
            Some((path, _)) => Limit::Above(path.to_owned()),
            None => Limit::Host,
        })
    }
}

/// Whether a bell has rung since the last time.
fn rings(bell: &OwnedFd) -> bool {
    rustix::io::read(bell, &mut [0; 8]).is_ok()
}

/// Whether a v1 cgroup has ever used all that it may, with or without swap.
fn was_full(dir: &Path) -> Result<bool> {
    match file::open_dir(CWD, dir) {
        Err(Errno::NOENT) => Ok(false),
        opened => opened.and_then(was_full_in).os(|| format!("read the limits of {}", dir.display())),
    }
}

fn was_full_in(dir: impl AsFd) -> rustix::io::Result<bool> {
    let mut buf = Vec::new();
    let mut number = |name: &str| match file::read(dir.as_fd(), name, &mut buf) {
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
        text => text.map(|text| text.trim_end().parse::<u64>().ok()),
    };
    for prefix in ["memory", "memory.memsw"] {
        let limit = number(&format!("{prefix}.limit_in_bytes"))?;
        let most = number(&format!("{prefix}.max_usage_in_bytes"))?;
        // The kernel takes memory in batches of 64 pages and gives back what it had taken for the last, greater one.
        if let (Some(limit), Some(most)) = (limit, most)
            && most.saturating_add(BATCH) >= limit
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// MEMCG_CHARGE_BATCH of 4 KiB pages.
const BATCH: u64 = 64 * 4096;

/// How often a cgroup2 directory's own limit left nothing but the OOM killer.
fn ooms_in(dir: &Path, name: &str) -> Result<u64> {
    let path = dir.join(name);
    match file::read(CWD, &path, &mut Vec::new()) {
        // The controller is not there, or the cgroup is going.
        Err(Errno::NOENT | Errno::NODEV) => Ok(0),
        text => text.map(|text| file::number(text, "oom").unwrap_or(0)).os(|| format!("read {}", path.display())),
    }
}

/// The file with a cgroup's own numbers alone.
const LOCAL: &str = "memory.events.local";
