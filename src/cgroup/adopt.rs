//! A cgroup that systemd has made for a unit: what is done to it beside systemd.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::create::{Made, count_below, inherit_cpuset, refuse_used, refused};
use super::devices::device_knobs;
use super::hierarchy::{Hierarchy, Version};
use super::knobs::{Knob, limit_knobs};
use super::{Cgroup, controllers, file, frozen};
use crate::error::{Error, Kind, Os, Result};

impl Cgroup {
    /// Refuses a cgroup in which the process `pid` is not, which systemd was to move there: then it is not ours.
    ///
    /// # Errors
    /// `FailedPrecondition`.
    pub fn refuse_unless_moved(&self, pid: u32) -> Result<()> {
        let joined = cgroups_of(pid)?;
        let managed = |hierarchy: &&Hierarchy| hierarchy.name == "name=systemd" || hierarchy.is_unified();
        if self.hierarchies.all().filter(managed).any(|hierarchy| hierarchy.is_of(&self.path, &joined)) {
            return Ok(());
        }
        let text = format!("cgroup {}: systemd has not moved process {pid} there", self.path.display());
        Err(Error::new(Kind::FailedPrecondition, text))
    }

    /// Has the process `pid`, which systemd has moved here, in this cgroup of every hierarchy: on v1 systemd makes it where
    /// it manages the controller. On cgroup2 the controllers that systemd does not know (hugetlb, rdma, misc) are handed
    /// down as for a cgroup of our own.
    ///
    /// # Errors
    /// What [`Cgroup::create`] says.
    pub fn adopt(&self, pid: u32) -> Result<()> {
        let joined = cgroups_of(pid)?;
        let missing = self.hierarchies.all().filter(|hierarchy| !hierarchy.is_of(&self.path, &joined));
        let mut made = Made::default();
        for hierarchy in missing {
            self.complete(hierarchy, pid, &mut made)?;
        }
        for hierarchy in self.hierarchies.all() {
            // The process would stop before it could say anything, and the create with it.
            if frozen(hierarchy, &self.path)? {
                return Err(refused(&self.path, hierarchy, "a cgroup above it is frozen"));
            }
        }
        if let (Version::V2, Some(unified)) = (self.hierarchies.version(), &self.hierarchies.unified) {
            controllers::enable_above(unified, &self.path)?;
        }
        made.keep();
        Ok(())
    }

    fn complete(&self, hierarchy: &Hierarchy, pid: u32, made: &mut Made) -> Result<()> {
        if !made.make(hierarchy, &self.path)? {
            refuse_used(hierarchy, &self.path)?;
            made.replace(hierarchy, &self.path)?;
        }
        if hierarchy.has("cpuset") {
            inherit_cpuset(hierarchy, &self.path)?;
        }
        let dir = hierarchy.dir(&self.path);
        if hierarchy.has("memory") {
            count_below(&dir)?;
        }
        file::write(&dir, "cgroup.procs", &pid.to_string())
    }
}

/// What the kernel says of a process's cgroups.
fn cgroups_of(pid: u32) -> Result<Vec<u8>> {
    let name = format!("/proc/{pid}/cgroup");
    std::fs::read(&name).os(|| format!("read {name}"))
}

impl Hierarchy {
    /// Whether the process of this /proc/PID/cgroup is in the cgroup `path`.
    fn is_of(&self, path: &Path, proc_pid_cgroup: &[u8]) -> bool {
        proc_pid_cgroup.split(|byte| *byte == b'\n').any(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
            let (Some(name), Some(own)) = (fields.next(), fields.next()) else { return false };
            name == self.name.as_bytes() && Path::new(OsStr::from_bytes(own)) == self.full(path)
        })
    }
}

/// Limits as they were before a change. By default there were none.
#[derive(Default)]
pub struct Before {
    pub(super) knobs: Vec<Knob>,
    /// The quota of CPU time, changed or not.
    quota: Vec<Knob>,
}

impl Cgroup {
    /// What an update with `resources` is about to change.
    ///
    /// # Errors
    /// As [`Cgroup::update`].
    pub fn before(&self, resources: &LinuxResources) -> Result<Before> {
        let knobs = limit_knobs(resources, self.hierarchies.version())?;
        let quota = match self.hierarchies.version() {
            Version::V1 => Knob::new("cpu", "cpu.cfs_quota_us", ""),
            Version::V2 => Knob::new("cpu", "cpu.max", ""),
        };
        Ok(Before { knobs: self.present(&knobs)?, quota: self.present(&[quota])? })
    }

    /// Writes the quota of before: systemd writes its own rounding of it along with other properties.
    pub fn restore_quota(&self, before: &Before) {
        self.restore(before.quota.clone());
    }

    /// Writes the limits of before, as far as the kernel takes them.
    pub fn restore_to(&self, before: Before) {
        self.restore_quota(&before);
        self.restore(before.knobs);
    }

    /// Whether systemd need not be told of the device rules of `resources`: on v1 it would deny everything for a moment, in
    /// the middle of the container's work.
    ///
    /// # Errors
    /// `InvalidArgument` for a rule that is none.
    pub fn devices_in_force(&self, resources: &LinuxResources) -> Result<bool> {
        let rules = resources.devices().as_deref().unwrap_or_default();
        match self.hierarchies.version() {
            Version::V1 => Ok(rules.is_empty() || self.in_force(&device_knobs(rules)?)?),
            Version::V2 => Ok(rules.is_empty()),
        }
    }
}
