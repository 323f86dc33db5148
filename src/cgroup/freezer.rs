//! Freezing a cgroup: by the v1 freezer where it is mounted, else by cgroup2's own.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::{Cgroup, file, frozen, tree};
use crate::error::{Error, Kind, Os, Result};

impl Cgroup {
    /// Asks the kernel to stop everything in the cgroup and below it; true when all of it has stopped. To be called again
    /// until it is true: each call asks the v1 freezer anew, which leaves out what was being forked meanwhile.
    ///
    /// # Errors
    /// `FailedPrecondition` without a freezer, or when the cgroup is gone.
    pub fn freeze(&self) -> Result<bool> {
        let (hierarchy, file, value) = if let Some(v1) = self.hierarchies.v1.iter().find(|h| h.has("freezer")) {
            (v1, "freezer.state", "FROZEN")
        } else if let Some(unified) = self.hierarchies.unified.as_deref() {
            (unified, "cgroup.freeze", "1")
        } else {
            return Err(Error::new(Kind::FailedPrecondition, "this host has no freezer for cgroups"));
        };
        let dir = hierarchy.dir(&self.path);
        file::write(&dir, file, value).map_err(|e| match e.errno() {
            Some(libc::ENOENT | libc::ENODEV) => e.with_kind(Kind::FailedPrecondition),
            _ => e,
        })?;
        match hierarchy.is_unified() {
            true => frozen(hierarchy, &self.path),
            // FREEZING is not enough here.
            false => Ok(super::read_or_gone(&dir.join(file), &mut Vec::new())?.trim_end() == "FROZEN"),
        }
    }

    /// The directory by which it is frozen, where there is a freezer.
    pub fn freezer(&self) -> Option<PathBuf> {
        let unified = || self.hierarchies.unified.as_deref().map(|unified| unified.dir(&self.path));
        self.v1_freezer().or_else(unified)
    }

    /// Whether all of it stands still, by itself or by one above it.
    pub fn is_frozen(&self) -> Result<bool> {
        if let Some(freezer) = self.v1_freezer() {
            let state = freezer.join("freezer.state");
            return Ok(super::read_or_gone(&state, &mut Vec::new())?.trim_end() == "FROZEN");
        }
        self.hierarchies.unified.as_deref().map_or(Ok(false), |unified| frozen(unified, &self.path))
    }

    /// Takes [`Cgroup::freeze`] back, and leaves alone what is frozen by itself below: a container may have its own
    /// reasons.
    pub fn unfreeze(&self) -> Result<()> {
        match self.v1_freezer() {
            Some(freezer) => thaw(CWD, freezer.join("freezer.state"), "THAWED", &self.path),
            None => self.unfreeze_unified(),
        }
    }

    /// Lets run again what is frozen: the cgroup, and in the v1 freezer also what is frozen by itself below it (a
    /// SIGKILL ends what cgroup2 has frozen, but not what v1 has).
    pub fn thaw(&self) -> Result<()> {
        if let Some(freezer) = self.v1_freezer() {
            tree::walk(&freezer, |dir| {
                thaw(dir, c"freezer.state", "THAWED", &self.path).map(|()| ControlFlow::Continue(()))
            })?;
        }
        self.unfreeze_unified()
    }

    fn unfreeze_unified(&self) -> Result<()> {
        match &self.hierarchies.unified {
            Some(unified) => thaw(CWD, unified.dir(&self.path).join("cgroup.freeze"), "0", &self.path),
            None => Ok(()),
        }
    }

    fn v1_freezer(&self) -> Option<PathBuf> {
        self.v1_dir("freezer")
    }
}

fn thaw(at: impl AsFd, file: impl rustix::path::Arg, value: &str, cgroup: &Path) -> Result<()> {
    match file::open_write(at, file).and_then(|fd| file::write_fd(fd, value)) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(e) => Err(e).os(|| format!("thaw cgroup {}", cgroup.display())),
    }
}
