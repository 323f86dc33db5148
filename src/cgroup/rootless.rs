//! What a caller that is root of a user namespace alone does without: hierarchies in which it may make no cgroup, and limits
//! whose controllers it has not been given.
//!
//! For everybody else each of these is an error. As with runc, what is passed over is what the kernel denies; a value that it
//! takes to be wrong is an error here too.

use std::path::{Component, Path};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::Cgroup;
use super::hierarchy::{Hierarchies, Hierarchy};
use super::knobs::Knob;
use crate::error::{Error, Kind, Os, Result};

/// The hierarchies in which a cgroup is not, as the caller may not make one there. None for the host's root.
#[derive(Clone, Debug, Default)]
pub struct Denied {
    names: Vec<String>,
    why: String,
}

impl Denied {
    fn add(&mut self, hierarchy: &Hierarchy, error: &Error) {
        if self.names.is_empty() {
            self.why = error.to_string();
        }
        self.names.push(if hierarchy.is_unified() { "cgroup2".to_owned() } else { hierarchy.name.clone() });
    }

    /// All of them, and why the first.
    pub fn text(&self) -> Option<String> {
        (!self.names.is_empty()).then(|| format!("{} ({})", self.names.join(", "), self.why))
    }
}

/// Limits that were asked for and have not been set, by their files. Always none for the host's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unset(Vec<String>);

impl Unset {
    /// Each once.
    pub fn files(&self) -> &[String] {
        &self.0
    }

    /// What is left undone is an error to who has asked for this and nothing else.
    pub(super) fn refuse(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let text = format!("{}: this rootless runtime has not been given the controller", self.0.join(", "));
        Err(Error::new(Kind::FailedPrecondition, text))
    }
}

impl Cgroup {
    /// One that is no more: nobody is in it, whatever is at its path.
    pub fn nowhere(hierarchies: &Hierarchies, path: &std::path::Path) -> Self {
        Self { hierarchies: hierarchies.only(|_| false), path: path.to_owned() }
    }

    /// In which hierarchies it is not.
    pub fn denied(&self) -> &Denied {
        &self.hierarchies.denied
    }

    /// Whether the kernel lets us move our processes there. Always so for the host's root.
    pub fn is_in_reach(&self) -> bool {
        self.hierarchies.all().all(|hierarchy| self.hierarchies.refuse_unreachable(hierarchy, &self.path).is_ok())
    }

    /// Whether there is a directory of it: else nobody is in it, and it is good for nothing.
    pub fn is_anywhere(&self) -> bool {
        self.hierarchies.all().next().is_some()
    }
}

impl Hierarchies {
    /// The same for a caller that is root of a user namespace alone, or is not.
    pub fn rootless(mut self, rootless: bool) -> Self {
        self.rootless = rootless;
        self
    }

    /// Those for which `attempt` succeeds, which know why it did not for the others. To the host's root the first failure is the
    /// end.
    pub(super) fn where_allowed<'h>(&'h self, mut attempt: impl FnMut(&'h Hierarchy) -> Result<()>) -> Result<Self> {
        let mut denied = self.denied.clone();
        let mut names = Vec::new();
        for hierarchy in self.all() {
            match attempt(hierarchy) {
                Err(e) if self.rootless && is_denied(&e) => {
                    denied.add(hierarchy, &e);
                    names.push(&hierarchy.name);
                }
                tried => tried?,
            }
        }
        Ok(Self { denied, ..self.only(|hierarchy| !names.contains(&&hierarchy.name)) })
    }

    /// Those in which a cgroup of ours can be at `path`: a directory that is not ours to write to is another's.
    pub(super) fn ours(&self, path: &Path) -> Self {
        if !self.rootless {
            return self.clone();
        }
        self.only(|hierarchy| self.refuse_others(hierarchy, path).is_ok())
    }

    fn only(&self, keep: impl Fn(&Hierarchy) -> bool) -> Self {
        let mut left = self.clone();
        if !self.all().all(&keep) {
            left.v1 = self.v1.iter().filter(|hierarchy| keep(hierarchy)).cloned().collect();
            left.unified = self.unified.clone().filter(|hierarchy| keep(hierarchy));
        }
        left
    }

    /// Denies a directory that is there and in which we may do nothing.
    pub(super) fn refuse_others(&self, hierarchy: &Hierarchy, path: &Path) -> Result<()> {
        if !self.rootless {
            return Ok(());
        }
        match may_write(&hierarchy.dir(path)) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
            answer => answer,
        }
    }

    /// Denies a cgroup2 path into which the kernel would not let our processes move: whoever moves them must be allowed to
    /// write to the cgroup.procs of the nearest cgroup that is above both places (cgroups(7), "cgroup delegation").
    pub(super) fn refuse_unreachable(&self, hierarchy: &Hierarchy, path: &Path) -> Result<()> {
        if !self.rootless || !hierarchy.is_unified() {
            return Ok(());
        }
        let own = std::fs::read_to_string("/proc/self/cgroup").os(|| "read /proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let shared = shared(Path::new(own), &hierarchy.full(path));
        // From the root of the mount, outside of which nothing can be looked at.
        match shared.as_deref().and_then(|shared| hierarchy.shown(shared)) {
            Some(above) => may_write(&hierarchy.dir(above)),
            None => {
                Err(Error::os(libc::EACCES, format!("the runtime's own cgroup {own} is outside of what is mounted")))
            }
        }
    }

    /// Takes note of a limit that was not set, where we may do without. `turned` is what came of it.
    pub(super) fn pass_over(&self, knob: &Knob, turned: Result<()>, unset: &mut Unset) -> Result<()> {
        match turned {
            // Without an errno: the controller or the file is not there, or not for us.
            Err(e) if self.rootless && e.kind() == Kind::FailedPrecondition && e.errno().is_none() => {
                if !unset.0.iter().any(|file| *file == knob.file) {
                    unset.0.push(knob.file.to_string());
                }
                Ok(())
            }
            turned => turned,
        }
    }
}

fn may_write(dir: &Path) -> Result<()> {
    let procs = dir.join("cgroup.procs");
    accessat(CWD, &procs, Access::WRITE_OK, AtFlags::EACCESS).os(|| format!("write to {}", procs.display()))
}

/// The nearest cgroup above both, or that is one and above the other. `None` where `own` is outside of our cgroup namespace.
fn shared(own: &Path, other: &Path) -> Option<std::path::PathBuf> {
    if own.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let common = own.components().zip(other.components()).take_while(|(a, b)| a == b);
    Some(common.map(|(part, _)| part).collect())
}

/// What the kernel says to one who may not: no right, a file system that is read-only, or (ENOENT, where a directory is made)
/// that is hidden by what has been mounted above it.
pub(super) fn is_denied(error: &Error) -> bool {
    matches!(error.errno(), Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(of: &str) -> impl Fn(&Hierarchy) -> Result<()> {
        move |hierarchy| if hierarchy.name == of { Err(Error::os(libc::EACCES, "mkdir /c")) } else { Ok(()) }
    }

    fn names(all: &Hierarchies) -> Vec<&str> {
        all.all().map(|hierarchy| &*hierarchy.name).collect()
    }

    #[test]
    fn a_hierarchy_that_is_denied_is_an_error_or_done_without() {
        let host = Hierarchies::discover().unwrap();
        let first = host.all().next().unwrap().name.clone();
        assert_eq!(host.where_allowed(denied(&first)).unwrap_err().errno(), Some(libc::EACCES), "to the host's root");
        let host = host.rootless(true);
        let left = host.where_allowed(denied(&first)).unwrap();
        assert_eq!(names(&left), names(&host)[1..]);
        assert_eq!(left.version(), host.version());
        assert!(left.denied.text().unwrap().contains("(mkdir /c: permission denied)"));
        // Whatever else is wrong is wrong for everybody.
        let wrong = host.where_allowed(|_| Err(Error::os(libc::ENOSPC, "mkdir /c")));
        assert_eq!(wrong.unwrap_err().errno(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_limit_that_is_not_to_be_had_is_an_error_or_noted_once() {
        let host = Hierarchies::discover().unwrap();
        let knob = Knob::new("memory", "memory.max", 1);
        let missing = || Err(Error::new(Kind::FailedPrecondition, "controller memory: not mounted"));
        let mut unset = Unset::default();
        assert!(host.pass_over(&knob, missing(), &mut unset).is_err() && unset.files().is_empty());
        let host = host.rootless(true);
        for _ in 0..2 {
            host.pass_over(&knob, missing(), &mut unset).unwrap();
        }
        assert_eq!(unset.files(), ["memory.max"]);
        assert!(unset.clone().refuse().unwrap_err().to_string().contains("memory.max"));
        // The kernel has taken a look at the value.
        let busy = Err(Error::os(libc::EBUSY, "write").with_kind(Kind::FailedPrecondition));
        assert!(host.pass_over(&knob, busy, &mut unset).is_err());
    }

    #[test]
    fn the_nearest_cgroup_above_both_is_found() {
        let above = |own: &str, other: &str| shared(Path::new(own), Path::new(other));
        assert_eq!(above("/user/daemons", "/user/one").unwrap(), Path::new("/user"));
        assert_eq!(above("/daemons", "/default/one").unwrap(), Path::new("/"));
        assert_eq!(above("/user", "/user/one").unwrap(), Path::new("/user"));
        assert_eq!(above("/users", "/user/one").unwrap(), Path::new("/"));
        assert_eq!(above("/../elsewhere", "/one"), None);
    }
}
