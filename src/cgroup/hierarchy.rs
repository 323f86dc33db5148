//! Which cgroup hierarchies this host has and where they are mounted.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use cgroups_rs::fs::hierarchies::mountinfo_self;

use super::rootless::Denied;
use crate::error::{Error, Kind, Os, Result};

/// One hierarchy, as it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// As in /proc/self/cgroup: `cpu,cpuacct`, `name=systemd`; empty for cgroup2.
    pub(super) name: String,
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// The cgroup that is seen there: `/`, but where only a part of the hierarchy is mounted (containers without a
    /// cgroup namespace).
    root: PathBuf,
}

impl Hierarchy {
    /// Whether this is the v1 hierarchy of `controller`.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.name.split(',').any(|c| c == controller)
    }

    /// Whether this is cgroup2.
    pub(super) fn is_unified(&self) -> bool {
        self.name.is_empty()
    }

    /// The directory of the cgroup `path`, which is absolute.
    pub(super) fn dir(&self, path: &Path) -> PathBuf {
        self.mount.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The cgroup of the process `pid` in this hierarchy, the unified one, where that is below `path`.
    pub(super) fn below(&self, path: &Path, pid: u32) -> Result<Option<PathBuf>> {
        let name = format!("/proc/{pid}/cgroup");
        let text = std::fs::read(&name).os(|| format!("read {name}"))?;
        let own = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"0::"));
        let own = own.map(|own| Path::new(std::ffi::OsStr::from_bytes(own)));
        let full = self.full(path);
        Ok(own.and_then(|own| own.strip_prefix(full).ok()).map(|rest| path.join(rest)))
    }

    /// The full name of the cgroup `path`, as /proc/PID/cgroup has it.
    pub(super) fn full(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The path of the cgroup with this full name; `None` where the mount does not show it.
    pub(super) fn shown<'p>(&self, full: &'p Path) -> Option<&'p Path> {
        full.strip_prefix(&self.root).ok()
    }
}

/// Where a host's controllers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// In v1 hierarchies, beside which there may be a cgroup2 one without controllers (hybrid).
    V1,
    /// In the cgroup2 one.
    V2,
}

/// The hierarchies of this host: the v1 ones (none on a pure v2 host) and cgroup2 (none on a pure v1 host, without
/// controllers on a hybrid one). Made once; cheap to clone.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    pub(super) v1: Arc<[Hierarchy]>,
    pub(super) unified: Option<Arc<Hierarchy>>,
    /// Where the host's controllers are, whichever of them are left here.
    pub(super) version: Version,
    /// The caller is root of a user namespace alone: it does without what it may not do.
    pub(super) rootless: bool,
    /// Those of the host's in which it may not.
    pub(super) denied: Denied,
}

impl Hierarchies {
    /// Reads the mounts of the calling process.
    ///
    /// # Errors
    /// `FailedPrecondition` where no cgroup hierarchy is mounted at all.
    pub fn discover() -> Result<Self> {
        // cgroups-rs lists the v1 mounts only, hence the second look for cgroup2.
        let v1 = mountinfo_self().into_iter().filter_map(|m| {
            let name = v1_name(&m.super_opts)?;
            Some(Hierarchy { name, mount: unescape(&m.mount_point), root: unescape(&m.mount_root) })
        });
        let mountinfo = std::fs::read("/proc/self/mountinfo").os(|| "read /proc/self/mountinfo")?;
        Self::new(choose(v1), choose(mountinfo.split(|b| *b == b'\n').filter_map(cgroup2_mount)).pop())
    }

    pub(super) fn new(v1: Vec<Hierarchy>, unified: Option<Hierarchy>) -> Result<Self> {
        if v1.is_empty() && unified.is_none() {
            return Err(Error::new(Kind::FailedPrecondition, "no cgroup hierarchy is mounted"));
        }
        // A named v1 hierarchy (systemd's) has no controllers.
        let controllers = v1.iter().any(|h| !h.name.starts_with("name="));
        let version = if controllers || unified.is_none() { Version::V1 } else { Version::V2 };
        Ok(Self { v1: v1.into(), unified: unified.map(Arc::new), version, rootless: false, denied: Denied::default() })
    }

    /// Where the host's controllers are.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The controllers that there are: those with a v1 hierarchy, or what cgroup2 has where we are to begin with.
    ///
    /// # Errors
    /// That cgroup2's list cannot be read.
    pub fn controllers(&self) -> Result<Vec<String>> {
        let text = match (self.version, self.unified.as_deref()) {
            (Version::V2, Some(unified)) => {
                let path = unified.mount.join("cgroup.controllers");
                std::fs::read_to_string(&path).os(|| format!("read {}", path.display()))?
            }
            _ => self.v1.iter().map(|h| h.name.replace(',', " ")).collect::<Vec<_>>().join(" "),
        };
        Ok(text.split_ascii_whitespace().filter(|name| !name.starts_with("name=")).map(str::to_owned).collect())
    }

    /// Whether cgroup2 is mounted.
    pub fn has_unified(&self) -> bool {
        self.unified.is_some()
    }

    /// The directory of our own cgroup in cgroup2, where that is mounted and shows it.
    pub fn own_unified(&self) -> Option<PathBuf> {
        let unified = self.unified.as_deref()?;
        let own = unified.below(Path::new("/"), std::process::id()).ok()??;
        Some(unified.dir(&own))
    }

    /// The hierarchy of `controller`: on v2 always the unified one, whose cgroups may have it or not.
    pub(super) fn of(&self, controller: &str) -> Option<&Hierarchy> {
        match self.version() {
            Version::V1 => self.v1.iter().find(|h| h.has(controller)),
            Version::V2 => self.unified.as_deref(),
        }
    }

    /// All of them; cgroup2 is the first.
    pub(super) fn unified_first(&self) -> impl Iterator<Item = &Hierarchy> {
        self.unified.as_deref().into_iter().chain(self.v1.iter())
    }

    /// All of them; cgroup2 is the last.
    pub(super) fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v1.iter().chain(self.unified.as_deref())
    }

    /// Refuses what is never a container's: the root, and any cgroup that the calling process itself lives in or
    /// below. A kill of such a cgroup would end the caller, its limits would bind it.
    pub(super) fn refuse_own(&self, path: &Path) -> Result<()> {
        let own = std::fs::read("/proc/self/cgroup").os(|| "read /proc/self/cgroup")?;
        self.refuse_own_in(path, &own)
    }

    fn refuse_own_in(&self, path: &Path, proc_self_cgroup: &[u8]) -> Result<()> {
        let plain = path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
        if !plain || path == Path::new("/") {
            return Err(Error::new(Kind::InvalidArgument, format!("cgroup {}: not a container's", path.display())));
        }
        for line in proc_self_cgroup.split(|b| *b == b'\n') {
            // "4:memory:/a/b", "0::/a/b"
            let mut fields = line.splitn(3, |b| *b == b':').skip(1);
            let (Some(name), Some(own)) = (fields.next(), fields.next()) else { continue };
            let own = Path::new(std::ffi::OsStr::from_bytes(own));
            if self.all().any(|h| h.name.as_bytes() == name && own.starts_with(h.full(path))) {
                return Err(Error::new(
                    Kind::FailedPrecondition,
                    format!("cgroup {}: the runtime itself runs in it ({})", path.display(), own.display()),
                ));
            }
        }
        Ok(())
    }
}

/// The name of a v1 hierarchy out of its super block's options, in the order of /proc/self/cgroup. `None` for a named
/// one other than systemd's, which hold no container of runc's either.
fn v1_name(super_opts: &[String]) -> Option<String> {
    let option = |o: &str| {
        matches!(o, "rw" | "ro" | "none" | "all" | "xattr" | "noprefix" | "clone_children" | "cpuset_v2_mode")
            || matches!(o, "favordynmods" | "nofavordynmods")
            || o.starts_with("release_agent=")
    };
    let names: Vec<&str> = super_opts.iter().map(String::as_str).filter(|o| !option(o)).collect();
    let foreign = names.iter().any(|n| n.starts_with("name=") && *n != "name=systemd");
    (!names.is_empty() && !foreign).then(|| names.join(","))
}

/// The cgroup2 mount in a line of mountinfo, proc_pid_mountinfo(5).
fn cgroup2_mount(line: &[u8]) -> Option<Hierarchy> {
    let line = std::str::from_utf8(line).ok()?;
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, mount) = (fields.next()?, fields.next()?);
    (right.split(' ').next() == Some("cgroup2")).then(|| Hierarchy {
        name: String::new(),
        mount: unescape(Path::new(mount)),
        root: unescape(Path::new(root)),
    })
}

/// One mount for each hierarchy: it may be mounted many times (bind mounts of it in containers' directories), whole
/// or in part. The first that shows it whole, else the first. A mount above our cgroup namespace's root ("/..") is
/// passed over: where in it we are cannot be told.
fn choose(mounts: impl Iterator<Item = Hierarchy>) -> Vec<Hierarchy> {
    let mut chosen: Vec<Hierarchy> = Vec::new();
    for mount in mounts.filter(|m| !m.root.starts_with("/..")) {
        match chosen.iter_mut().find(|c| c.name == mount.name) {
            None => chosen.push(mount),
            Some(c) if c.root != Path::new("/") && mount.root == Path::new("/") => *c = mount,
            Some(_) => {}
        }
    }
    chosen
}

/// Undoes mountinfo's octal escapes (`\040` for a space).
fn unescape(path: &Path) -> PathBuf {
    let escaped = path.as_os_str().as_bytes();
    let mut plain = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| byte == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal {
            Some(digits) => {
                plain.push(digits.iter().fold(0u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')));
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(name: &str, mount: &str, root: &str) -> Hierarchy {
        Hierarchy { name: name.into(), mount: mount.into(), root: root.into() }
    }

    fn opts(s: &str) -> Vec<String> {
        s.split(',').map(String::from).collect()
    }

    impl Hierarchies {
        /// As on a host without the v1 controller.
        pub(in crate::cgroup) fn without(&self, controller: &str) -> Self {
            let v1 = self.v1.iter().filter(|h| !h.has(controller)).cloned().collect();
            Self { v1, ..self.clone() }
        }

        /// As on a host that has the v1 controller, and that at `mount`.
        pub(in crate::cgroup) fn with(&self, controller: &str, mount: &Path) -> Self {
            let others = self.without(controller);
            let added = hierarchy(controller, &mount.to_string_lossy(), "/");
            Self { v1: others.v1.iter().cloned().chain([added]).collect(), ..others }
        }

        /// As on a host that has the unified hierarchy alone, at `mount`.
        pub(in crate::cgroup) fn unified_at(mount: &Path) -> Self {
            Self::new(Vec::new(), Some(hierarchy("", &mount.to_string_lossy(), "/"))).unwrap()
        }
    }

    #[test]
    fn names_of_v1_hierarchies() {
        assert_eq!(v1_name(&opts("rw,cpu,cpuacct")).unwrap(), "cpu,cpuacct");
        assert_eq!(v1_name(&opts("rw,xattr,release_agent=/x,name=systemd")).unwrap(), "name=systemd");
        assert_eq!(v1_name(&opts("rw,clone_children,cpuset")).unwrap(), "cpuset");
        assert_eq!(v1_name(&opts("rw,name=openrc")), None);
        assert_eq!(v1_name(&opts("rw")), None);
    }

    #[test]
    fn the_cgroup2_mount_is_found_by_its_type() {
        let line = b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(cgroup2_mount(line).unwrap(), hierarchy("", "/sys/fs/cgroup/unified", "/"));
        let line = br"41 31 0:38 /a\040b /mnt/with\040space rw - cgroup2 cgroup rw";
        assert_eq!(cgroup2_mount(line).unwrap(), hierarchy("", "/mnt/with space", "/a b"));
        assert_eq!(cgroup2_mount(b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs cgroup2 rw"), None);
        assert_eq!(cgroup2_mount(b""), None);
    }

    #[test]
    fn the_mount_that_shows_the_whole_hierarchy_is_chosen() {
        let mounts = [
            hierarchy("cpu", "/part", "/docker/x"),
            hierarchy("memory", "/above", "/.."),
            hierarchy("cpu", "/whole", "/"),
            hierarchy("cpu", "/again", "/"),
            hierarchy("memory", "/part", "/docker/x"),
        ];
        let chosen = choose(mounts.into_iter());
        assert_eq!(chosen, [hierarchy("cpu", "/whole", "/"), hierarchy("memory", "/part", "/docker/x")]);
    }

    #[test]
    fn own_cgroup_and_its_ancestors_are_refused() {
        let own = b"4:memory:/kube/pod/shim\n3:cpu,cpuacct:/docker/x/daemon\n1:name=systemd:/\n0::/system/containerd\n";
        let v1 = vec![
            hierarchy("memory", "/m", "/"),
            hierarchy("cpu,cpuacct", "/c", "/docker/x"),
            hierarchy("name=systemd", "/s", "/"),
        ];
        let all = Hierarchies::new(v1, Some(hierarchy("", "/u", "/"))).unwrap();
        let kind = |path: &str| all.refuse_own_in(Path::new(path), own).map_err(|e| e.kind());
        for refused in ["/kube", "/kube/pod", "/kube/pod/shim", "/system", "/system/containerd", "/daemon"] {
            assert_eq!(kind(refused), Err(Kind::FailedPrecondition), "{refused}");
        }
        for fine in ["/kube/pod/shim/container", "/kube/po", "/system/containerd2", "/docker", "/default/a"] {
            assert_eq!(kind(fine), Ok(()), "{fine}");
        }
        for malformed in ["/", "", "relative", "/a/../b"] {
            assert_eq!(kind(malformed), Err(Kind::InvalidArgument), "{malformed}");
        }
    }

    #[test]
    fn a_host_without_cgroups_says_so() {
        assert_eq!(Hierarchies::new(Vec::new(), None).unwrap_err().kind(), Kind::FailedPrecondition);
    }
}
