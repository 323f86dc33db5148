//! Making a cgroup: in every hierarchy, or in none.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;

use super::hierarchy::{Hierarchies, Hierarchy, Version};
use super::tree::Removed;
use super::{Cgroup, controllers, file, frozen, populated, tree};
use crate::error::{Error, Kind, Os, Result};

/// How often a parent may vanish under us before that is an error: somebody else's container in the same parent ends.
const TRIES: usize = 10;

impl Cgroup {
    /// Makes the cgroup `path` in every hierarchy. It is ours: new and empty, without limits of its own.
    ///
    /// An empty leftover of that name (of a create that was killed) is removed and made again, so that no old limit
    /// stays.
    ///
    /// # Errors
    /// `InvalidArgument` and `FailedPrecondition`, before any effect, for the root and for cgroups in or below which
    /// the caller lives; `FailedPrecondition` for one that has processes or is frozen. Nothing is left then but parents.
    pub fn create(hierarchies: &Hierarchies, path: &Path) -> Result<Self> {
        hierarchies.refuse_own(path)?;
        let mut made = Made::default();
        let mut existing = Vec::new();
        let allowed = hierarchies.where_allowed(|hierarchy| {
            hierarchies.refuse_unreachable(hierarchy, path)?;
            if !made.make(hierarchy, path)? {
                hierarchies.refuse_others(hierarchy, path)?;
                existing.push(hierarchy);
            }
            Ok(())
        })?;
        if !existing.is_empty() {
            // All are looked at before the first is touched: one that is in use in a single hierarchy is in use.
            existing.iter().try_for_each(|hierarchy| refuse_used(hierarchy, path))?;
            existing.iter().try_for_each(|hierarchy| made.replace(hierarchy, path))?;
        }
        let hierarchies = allowed.where_allowed(|hierarchy| {
            // One that cannot be used is no more: it is new, and nobody is in it.
            prepare(&allowed, hierarchy, path).inspect_err(|_| {
                let _ = rustix::fs::rmdir(hierarchy.dir(path));
            })
        })?;
        made.keep();
        Ok(Self { hierarchies, path: path.to_owned() })
    }
}

/// Makes a new cgroup one that can be joined and limited.
fn prepare(hierarchies: &Hierarchies, hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    if hierarchy.has("cpuset") {
        inherit_cpuset(hierarchy, path)?;
    }
    if hierarchy.has("memory") {
        count_below(&hierarchy.dir(path))?;
    }
    // A process that joins would stop before it could say anything, and the create with it.
    if frozen(hierarchy, path)? {
        return Err(refused(path, hierarchy, "a cgroup above it is frozen"));
    }
    if hierarchy.is_unified() {
        if hierarchies.version() == Version::V2 {
            controllers::enable_above(hierarchy, path)?;
        }
        // Else a process could not be born in it, nor move there.
        if let Some(why) = controllers::make_usable(hierarchy, path)? {
            return Err(refused(path, hierarchy, &why));
        }
    }
    Ok(())
}

/// The leaves made so far. Dropped, they are removed again.
#[derive(Default)]
pub(super) struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for dir in &self.0 {
            // New and ours, so nobody is in it; if somebody is, it is not ours to remove.
            let _ = rustix::fs::rmdir(dir);
        }
    }
}

impl Made {
    /// Makes the leaf and, where they are missing, its parents; false when the leaf is there already.
    ///
    /// Parents stay, also when the container goes, as runc leaves them: others make their cgroups in them at any
    /// time, and somebody may have set limits there.
    pub(super) fn make(&mut self, hierarchy: &Hierarchy, path: &Path) -> Result<bool> {
        let dir = hierarchy.dir(path);
        let mut tries = 0;
        loop {
            match mkdir(&dir) {
                Ok(()) => break,
                Err(Errno::EXIST) => return Ok(false),
                // NODEV: the parent is being removed.
                Err(Errno::NOENT | Errno::NODEV) if tries < TRIES => make_parents(hierarchy, path)?,
                Err(e) => return Err(e).os(|| format!("mkdir {}", dir.display())),
            }
            tries += 1;
        }
        self.0.push(dir);
        Ok(true)
    }

    /// They are not removed any more.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }

    pub(super) fn replace(&mut self, hierarchy: &Hierarchy, path: &Path) -> Result<()> {
        let removed = tree::remove(&hierarchy.dir(path), usize::MAX)?;
        if removed != Removed::All || !self.make(hierarchy, path)? {
            return Err(refused(path, hierarchy, "it is in use by somebody else"));
        }
        Ok(())
    }
}

fn make_parents(hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    let mut parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| p.parent().is_some()).collect();
    while let Some(parent) = parents.pop() {
        let dir = hierarchy.dir(parent);
        match mkdir(&dir) {
            Ok(()) | Err(Errno::EXIST) => {}
            // One above has vanished since: the caller begins again.
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(e) => return Err(e).os(|| format!("mkdir {}", dir.display())),
        }
    }
    Ok(())
}

fn mkdir(dir: &Path) -> rustix::io::Result<()> {
    mkdirat(CWD, dir, Mode::from_raw_mode(0o755))
}

pub(super) fn refuse_used(hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    if populated(hierarchy, path)? {
        return Err(refused(path, hierarchy, "it has processes already"));
    }
    if frozen(hierarchy, path)? {
        return Err(refused(path, hierarchy, "it is frozen"));
    }
    Ok(())
}

pub(super) fn refused(path: &Path, hierarchy: &Hierarchy, why: &str) -> Error {
    let name = if hierarchy.is_unified() { "cgroup2" } else { &hierarchy.name };
    Error::new(Kind::FailedPrecondition, format!("cgroup {} ({name}): {why}", path.display()))
}

/// Before Linux 5.11 a v1 memory cgroup counts what is below it only where that is switched on, which systemd does at the
/// root and others need not: a cgroup that the container makes below its own would be without its limit. Where the
/// kernel does not let it be switched on, it stays as the host has it.
pub(super) fn count_below(dir: &Path) -> Result<()> {
    const FILE: &str = "memory.use_hierarchy";
    let mut buf = Vec::new();
    match file::read(CWD, dir.join(FILE), &mut buf) {
        Ok(value) if value.trim_end() == "0" => {
            let _ = file::write(dir, FILE, "1");
            Ok(())
        }
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).os(|| format!("read {}", dir.join(FILE).display())),
    }
}

/// A new v1 cpuset has neither CPUs nor memory nodes, and then no process can join (ENOSPC). It gets its parent's; so
/// do parents that are empty, made just now or by somebody who has not come to it yet.
pub(super) fn inherit_cpuset(hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    let mut buf = Vec::new();
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let mut empty = vec![path];
        let mut value = "";
        for above in path.ancestors().skip(1) {
            let file = hierarchy.dir(above).join(name);
            value = file::read(CWD, &file, &mut buf).os(|| format!("read {}", file.display()))?.trim();
            if !value.is_empty() {
                break;
            }
            empty.push(above);
        }
        for level in empty.iter().rev() {
            file::write(&hierarchy.dir(level), name, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By files that are not the kernel's: no kernel since 5.11 takes a 0.
    #[test]
    fn what_is_below_is_counted_where_it_was_not() {
        let dir = std::env::temp_dir().join(format!("dray-use-hierarchy-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let file = dir.join("memory.use_hierarchy");
        count_below(&dir).unwrap();
        assert!(!file.exists(), "a kernel without the switch");
        for before in ["0\n", "1\n"] {
            std::fs::write(&file, before).unwrap();
            count_below(&dir).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n", "{before:?}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
