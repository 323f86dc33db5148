//! Intel RDT: a container's group in the resctrl file system, with its part of the cache and of the memory's bandwidth,
//! and one to monitor it (the kernel's filesystems/resctrl.rst; config-linux.md, "IntelRdt").
//!
//! A group is a directory, which mkdir(2) fills with its files. A process joins by its pid in `tasks`, and its children
//! are born in its groups.

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use rustix::fs::{CWD, Mode, mkdirat, rmdir};
use rustix::io::Errno;

use super::file;
use crate::error::{Context, Error, Kind, Os, Result};

/// The groups of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resctrl {
    /// The class of service.
    group: PathBuf,
    /// It is to be made, where it is not there.
    makes: bool,
    /// What to write into it once it is made; what one that is there must have.
    schemata: Vec<String>,
    /// The group to monitor the container.
    monitor: Option<PathBuf>,
    /// The group is the container's alone: it goes with it.
    own: bool,
}

impl Resctrl {
    /// What `rdt` asks for, judged against what there is; nothing is done yet.
    ///
    /// # Errors
    /// `FailedPrecondition` where no resctrl is mounted, a class that is to be there is not or is another than described,
    /// or a group of the container's name is there already; `InvalidArgument` for a `closID` that is no name.
    pub fn plan(rdt: &LinuxIntelRdt, id: &str) -> Result<Self> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").os(|| "read /proc/self/mountinfo")?;
        let mount = mountinfo.lines().find_map(mount_point);
        let missing = || Error::new(Kind::FailedPrecondition, "linux.intelRdt: no resctrl file system is mounted");
        Self::plan_in(&mount.ok_or_else(missing)?, rdt, id).context(|| "linux.intelRdt")
    }

    fn plan_in(mount: &Path, rdt: &LinuxIntelRdt, id: &str) -> Result<Self> {
        let schemata = schemata(rdt);
        let class = rdt.clos_id().as_deref().filter(|class| !class.is_empty());
        let group = match class {
            // The default class.
            Some("/") => mount.to_owned(),
            Some("." | "..") => return Err(wrong_class(class)),
            Some(name) if name.contains(['/', '\n', '\0']) => return Err(wrong_class(class)),
            name => mount.join(name.unwrap_or(id)),
        };
        let monitor = (*rdt.enable_monitoring() == Some(true)).then(|| group.join("mon_groups").join(id));
        let refused =
            |path: &Path, why: &str| Err(Error::new(Kind::FailedPrecondition, format!("{}: {why}", path.display())));
        let own = class.is_none();
        match (group.is_dir(), class) {
            (true, None) => return refused(&group, "somebody has a class of the container's name already"),
            (true, Some(_)) => compare(&group, &schemata)?,
            (false, Some(_)) if schemata.is_empty() => return refused(&group, "there is no such class"),
            (false, _) => {}
        }
        if let Some(monitor) = monitor.as_deref().filter(|monitor| monitor.is_dir()) {
            return refused(monitor, "somebody has a group of the container's name already");
        }
        let makes = !group.is_dir();
        Ok(Self { group, makes, schemata, monitor, own })
    }

    /// The directories that are to be removed after the container, in this order: those that are its own. A class that
    /// has been given a name may have other members, so it stays, as with runc.
    pub fn own(&self) -> Vec<PathBuf> {
        self.monitor.iter().chain(self.own.then_some(&self.group)).cloned().collect()
    }

    /// Makes the groups.
    ///
    /// # Errors
    /// The kernel's: it has few classes (ENOSPC), and checks each schema. What has been made by then is in `made`, for
    /// [`remove`].
    pub fn make(&self, made: &mut Vec<PathBuf>) -> Result<()> {
        if self.makes {
            mkdir(&self.group)?;
            if self.own {
                made.push(self.group.clone());
            }
            self.limit().inspect_err(|_| {
                // Nobody's, and not as it was to be.
                let _ = rmdir(&self.group);
            })?;
        }
        if let Some(monitor) = &self.monitor {
            mkdir(monitor)?;
            made.insert(0, monitor.clone());
        }
        Ok(())
    }

    fn limit(&self) -> Result<()> {
        if !self.makes || self.schemata.is_empty() {
            return Ok(());
        }
        let lines: String = self.schemata.iter().flat_map(|line| [line, "\n"]).collect();
        write_schemata(&self.group, &lines)
    }

    /// Puts a process with one thread into the groups.
    pub fn join(&self, pid: u32) -> Result<()> {
        file::write(&self.group, "tasks", &pid.to_string())?;
        self.monitor.as_deref().map_or(Ok(()), |monitor| file::write(monitor, "tasks", &pid.to_string()))
    }
}

/// Other schemata for a container that has a class of its own.
#[derive(Debug)]
pub struct Change {
    group: PathBuf,
    lines: String,
}

impl Change {
    /// What these flags of an update ask for, of a container whose groups are `own` ([`Resctrl::own`]).
    ///
    /// # Errors
    /// `FailedPrecondition`, in runc's words, where the host has not what they are about; and for a container without a
    /// class of its own: one with a name has other members.
    pub fn plan(own: &[PathBuf], l3: Option<&str>, bandwidth: Option<&str>) -> Result<Self> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").os(|| "read /proc/self/mountinfo")?;
        Self::plan_in(mountinfo.lines().find_map(mount_point).as_deref(), own, l3, bandwidth)
    }

    fn plan_in(mount: Option<&Path>, own: &[PathBuf], l3: Option<&str>, bandwidth: Option<&str>) -> Result<Self> {
        let refused = |why: &str| Error::new(Kind::FailedPrecondition, why);
        let offers = |resource: &str| mount.is_some_and(|mount| mount.join("info").join(resource).is_dir());
        if l3.is_some() && !offers("L3") {
            return Err(refused("Intel RDT/CAT: l3 cache schema is not enabled"));
        }
        if bandwidth.is_some() && !offers("MB") {
            return Err(refused("Intel RDT/MBA: memory bandwidth schema is not enabled"));
        }
        let group = own.iter().find(|group| group.parent() == mount);
        let group = group.ok_or_else(|| refused("Intel RDT: the container has no class of its own"))?.clone();
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_l3_cache_schema(l3.map(str::to_owned)).set_mem_bw_schema(bandwidth.map(str::to_owned));
        let lines = schemata(&rdt).iter().flat_map(|line| [line, "\n"]).collect();
        Ok(Self { group, lines })
    }

    /// Makes it.
    ///
    /// # Errors
    /// `InvalidArgument` for a schema that the kernel refuses.
    pub fn make(&self) -> Result<()> {
        write_schemata(&self.group, &self.lines)
    }
}

/// Removes groups, whose members are then of the default class again.
pub fn remove(groups: &[PathBuf]) -> Result<()> {
    groups.iter().try_for_each(|group| match rmdir(group) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed.os(|| format!("rmdir {}", group.display())),
    })
}

fn write_schemata(group: &Path, lines: &str) -> Result<()> {
    file::write(group, "schemata", lines).map_err(|e| match e.errno() {
        // What was wrong with it, the kernel tells beside the mount's root.
        Some(libc::EINVAL) => e.with_kind(Kind::InvalidArgument),
        _ => e,
    })
}

fn mkdir(group: &Path) -> Result<()> {
    mkdirat(CWD, group, Mode::from_raw_mode(0o755)).os(|| format!("mkdir {}", group.display()))
}

fn wrong_class(class: Option<&str>) -> Error {
    Error::new(Kind::InvalidArgument, format!("closID is no name: {:?}", class.unwrap_or_default()))
}

/// The lines for `schemata`. The list of that name is the whole; else the two fields are put together, of which the
/// second has the only `MB:` line.
fn schemata(rdt: &LinuxIntelRdt) -> Vec<String> {
    let lines = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    };
    if let Some(schemata) = rdt.schemata().as_ref().filter(|list| !list.is_empty()) {
        return schemata.clone();
    }
    let (mut cache, bandwidth) = (lines(rdt.l3_cache_schema()), lines(rdt.mem_bw_schema()));
    if !bandwidth.is_empty() {
        cache.retain(|line| !line.trim_start().starts_with("MB:"));
    }
    [cache, bandwidth].concat()
}

/// "If closID directory in mounted resctrl exists, runtimes MUST compare ... and generate an error if doesn't match."
fn compare(group: &Path, wanted: &[String]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut buf = Vec::new();
    let path = group.join("schemata");
    let has: Vec<_> = file::read(CWD, &path, &mut buf).os(|| format!("read {}", path.display()))?.lines().collect();
    let has: Vec<_> = has.into_iter().flat_map(domains).collect();
    for domain in wanted.iter().flat_map(|line| domains(line)) {
        if !has.contains(&domain) {
            let (resource, domain, value) = domain;
            let text = format!("{} has not {resource}:{domain}={value}", path.display());
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
    }
    Ok(())
}

/// `L3:0=ff;1=0f`: resource, domain, value. Masks are written with zeros in front by some.
fn domains(line: &str) -> Vec<(String, String, String)> {
    let Some((resource, domains)) = line.split_once(':') else { return Vec::new() };
    let parts = domains.split(';').filter_map(|domain| domain.split_once('='));
    let value = |value: &str| value.trim().trim_start_matches('0').to_ascii_lowercase();
    parts.map(|(domain, v)| (resource.trim().to_owned(), domain.trim().to_owned(), value(v))).collect()
}

/// In a line of mountinfo, proc_pid_mountinfo(5).
fn mount_point(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    (right.split(' ').next() == Some("resctrl")).then(|| left.split(' ').nth(4).map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A directory in the place of the mount; a group's files are there when the test makes them.
    struct Mount(PathBuf);

    impl Mount {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("dray-test-resctrl-{name}-{}", std::process::id()));
            std::fs::create_dir_all(dir.join("mon_groups")).unwrap();
            Self(dir)
        }

        fn plan(&self, rdt: serde_json::Value) -> Result<Resctrl> {
            Resctrl::plan_in(&self.0, &serde_json::from_value(rdt).unwrap(), "one")
        }

        /// As the kernel does after mkdir.
        fn fill(&self, group: &str, schemata: &str) {
            let dir = self.0.join(group);
            std::fs::create_dir_all(dir.join("mon_groups")).unwrap();
            std::fs::write(dir.join("schemata"), schemata).unwrap();
            std::fs::write(dir.join("tasks"), "").unwrap();
        }

        fn read(&self, file: &str) -> String {
            std::fs::read_to_string(self.0.join(file)).unwrap()
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_class_of_its_own_is_made_limited_joined_and_removed() {
        let mount = Mount::new("own");
        let rdt = json!({ "l3CacheSchema": "L3:0=f\nMB:0=10", "memBwSchema": "MB:0=70", "enableMonitoring": true });
        let plan = mount.plan(rdt.clone()).unwrap();
        assert_eq!(plan.own(), [mount.0.join("one/mon_groups/one"), mount.0.join("one")]);
        assert!(!mount.0.join("one").exists(), "a plan has no effect");
        // No kernel is here to fill the new directory, so this far only.
        let mut made = Vec::new();
        let e = plan.make(&mut made).unwrap_err();
        assert!(e.to_string().contains("one/schemata"), "{e}");
        assert_eq!((&made[..], mount.0.join("one").exists()), (&[mount.0.join("one")][..], false));
        mount.fill("one", "");
        plan.limit().unwrap();
        assert_eq!(mount.read("one/schemata"), "L3:0=f\nMB:0=70\n");
        mount.fill("one/mon_groups/one", "");
        plan.join(42).unwrap();
        assert_eq!(mount.read("one/tasks") + &mount.read("one/mon_groups/one/tasks"), "4242");
        assert_eq!(mount.plan(rdt).unwrap_err().kind(), Kind::FailedPrecondition);
        let empty = [mount.0.join("a/b"), mount.0.join("a")];
        std::fs::create_dir_all(&empty[0]).unwrap();
        remove(&empty).unwrap();
        assert!(!empty[1].exists());
        remove(&empty).unwrap();
    }

    #[test]
    fn a_class_of_its_own_is_changed() {
        let mount = Mount::new("change");
        let plan = |own: &[PathBuf], l3, bandwidth| Change::plan_in(Some(&mount.0), own, l3, bandwidth);
        let own = [mount.0.join("one/mon_groups/one"), mount.0.join("one")];
        let error = |plan: Result<Change>| plan.unwrap_err().to_string();
        assert_eq!(error(plan(&own, Some("L3:0=f"), None)), "Intel RDT/CAT: l3 cache schema is not enabled");
        std::fs::create_dir_all(mount.0.join("info/L3")).unwrap();
        assert_eq!(error(plan(&own, None, Some("MB:0=70"))), "Intel RDT/MBA: memory bandwidth schema is not enabled");
        assert_eq!(error(plan(&[], Some("L3:0=f"), None)), "Intel RDT: the container has no class of its own");
        mount.fill("one", "");
        plan(&own, Some("L3:0=f"), None).unwrap().make().unwrap();
        assert_eq!(mount.read("one/schemata"), "L3:0=f\n");
    }

    #[test]
    fn a_class_that_is_there_is_joined_if_it_is_as_described() {
        let mount = Mount::new("class");
        mount.fill("gold", "    L3:0=00ff0;1=fffff\n    MB:0=100;1= 50\n");
        for fine in [
            json!({ "closID": "gold" }),
            json!({ "closID": "gold", "l3CacheSchema": "L3:0=FF0" }),
            json!({ "closID": "gold", "schemata": ["L3:1=fffff", "MB:1=50;0=100"] }),
        ] {
            let plan = mount.plan(fine.clone()).unwrap_or_else(|e| panic!("{fine}: {e}"));
            let mut made = Vec::new();
            plan.make(&mut made).unwrap();
            assert_eq!((made, plan.own()), (vec![], vec![]));
            plan.join(7).unwrap();
            assert_eq!(mount.read("gold/tasks"), "7");
            assert!(mount.read("gold/schemata").starts_with("    L3:0=00ff0"), "it is not written");
        }
        let monitored = mount.plan(json!({ "closID": "gold", "enableMonitoring": true })).unwrap();
        let mut made = Vec::new();
        monitored.make(&mut made).unwrap();
        assert_eq!((&made, &made[..]), (&monitored.own(), &[mount.0.join("gold/mon_groups/one")][..]));
        assert!(monitored.own()[0].is_dir());
        remove(&monitored.own()).unwrap();
        let root = mount.plan(json!({ "closID": "/", "enableMonitoring": true })).unwrap();
        assert_eq!(root.own(), [mount.0.join("mon_groups/one")]);
        for (refused, kind) in [
            (json!({ "closID": "gold", "memBwSchema": "MB:0=70" }), Kind::FailedPrecondition),
            (json!({ "closID": "gold", "schemata": ["L2:0=f"] }), Kind::FailedPrecondition),
            (json!({ "closID": "silver" }), Kind::FailedPrecondition),
            (json!({ "closID": ".." }), Kind::InvalidArgument),
            (json!({ "closID": "a/b", "l3CacheSchema": "L3:0=f" }), Kind::InvalidArgument),
        ] {
            assert_eq!(mount.plan(refused.clone()).unwrap_err().kind(), kind, "{refused}");
        }
        // A new class of a given name stays.
        let silver = mount.plan(json!({ "closID": "silver", "l3CacheSchema": "L3:0=f" })).unwrap();
        assert_eq!((silver.makes, silver.own().len()), (true, 0));
    }

    #[test]
    fn the_mount_is_found_by_its_type() {
        let line = "41 31 0:38 / /sys/fs/resctrl rw,relatime shared:9 - resctrl resctrl rw,mba_MBps";
        assert_eq!(mount_point(line).unwrap(), Path::new("/sys/fs/resctrl"));
        assert_eq!(mount_point("41 31 0:38 / /resctrl rw - tmpfs resctrl rw"), None);
    }
}
