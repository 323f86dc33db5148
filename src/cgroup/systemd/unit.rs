//! Names of units and slices, and where systemd makes their cgroups (systemd.unit(5), systemd.slice(5)). Pure.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The slice of containers for which none is named, as runc has it.
pub const SYSTEM_SLICE: &str = "system.slice";
/// The same for those of a user's own systemd.
pub const USER_SLICE: &str = "user.slice";

/// Before a container's id in a unit's name where none is asked for.
const PREFIX: &str = "dray";

/// The longest name of a unit (systemd: UNIT_NAME_MAX).
const MAX_NAME: usize = 255;

/// A container's scope: a unit of which somebody else makes the processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// `cri-containerd-abc.scope`
    pub name: String,
    /// `kubepods-besteffort.slice`
    pub slice: String,
}

impl Unit {
    /// Out of `slice:prefix:name`, as containerd, nerdctl, Docker and the kubelet write it. Without a slice it is in
    /// `default_slice`.
    ///
    /// # Errors
    /// `InvalidArgument` for names that systemd would refuse, after the first effects.
    pub fn parse(given: &str, default_slice: &str) -> Result<Self> {
        let wrong = |why: &str| invalid(given, why);
        let parts: Vec<&str> = given.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(wrong("the systemd cgroup driver takes the form slice:prefix:name"));
        };
        let slice = if slice.is_empty() { default_slice } else { slice };
        expand(slice).map_err(|why| wrong(&why))?;
        if name.is_empty() {
            return Err(wrong("no name"));
        }
        if name.ends_with(".slice") {
            return Err(wrong("a slice has no processes of its own, which a container has"));
        }
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        check(&name).map_err(|why| wrong(&why))?;
        Ok(Self { name, slice: slice.to_owned() })
    }

    /// The one of the container `id`, where no path is given.
    ///
    /// # Errors
    /// As [`Unit::parse`].
    pub fn of_id(id: &str, default_slice: &str) -> Result<Self> {
        if id.contains(':') {
            return Err(invalid(id, "a container's id has no colon where it is to be a unit's name"));
        }
        Self::parse(&format!(":{PREFIX}:{id}"), default_slice)
    }

    /// Its cgroup, below the one that its systemd has (`/` that of the machine).
    ///
    /// # Errors
    /// `InvalidArgument` for a slice that is none.
    pub fn path(&self, manager: &Path) -> Result<PathBuf> {
        let slices = expand(&self.slice).map_err(|why| invalid(&self.slice, &why))?;
        let mut path = Path::new("/").join(manager);
        let names = slices.iter().chain([&self.name]).map(|name| escaped(name));
        path.extend(names.map(|name| PathBuf::from(&*name)));
        Ok(path)
    }
}

/// The controllers of systemd (cgroup_controller_to_string).
const CONTROLLERS: [&str; 13] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "io",
    "blkio",
    "memory",
    "devices",
    "pids",
    "bpf-firewall",
    "bpf-devices",
    "bpf-foreign",
    "bpf-socket-bind",
    "bpf-restrict-network-interfaces",
];

/// The name of a unit's cgroup: what could be taken for a file of a cgroup has a `_` before it (cg_escape), as `memory.slice`.
fn escaped(unit: &str) -> Cow<'_, str> {
    let of = unit.rsplit_once('.').map_or("", |(of, _)| of);
    match unit.starts_with(['_', '.']) || unit.starts_with("cgroup.") || CONTROLLERS.contains(&of) {
        true => format!("_{unit}").into(),
        false => unit.into(),
    }
}

/// The slices in which a slice is, and it, the outermost first: the dashes of its name are their order.
fn expand(slice: &str) -> Result<Vec<String>, String> {
    let Some(name) = slice.strip_suffix(".slice") else { return Err(format!("{slice:?} is no slice")) };
    if name == "-" {
        return Ok(Vec::new());
    }
    check(slice)?;
    let parts: Vec<&str> = name.split('-').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(format!("{slice:?}: a dash without a slice's name before or after it"));
    }
    Ok((1..=parts.len()).map(|length| format!("{}.slice", parts[..length].join("-"))).collect())
}

/// What systemd allows in the name of a unit (unit_name_is_valid); none is a template or its instance.
fn check(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\');
    match name.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(format!("{name:?}: no unit's name has a {c:?}")),
        None if name.len() > MAX_NAME => Err(format!("{name:?} is longer than {MAX_NAME} bytes")),
        None => Ok(()),
    }
}

fn invalid(given: &str, why: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("cgroupsPath {given:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(given: &str) -> Result<(String, String)> {
        let unit = Unit::parse(given, SYSTEM_SLICE)?;
        Ok((unit.name.clone(), unit.path(Path::new("/"))?.to_string_lossy().into_owned()))
    }

    #[test]
    fn names_and_paths_are_those_of_systemd() {
        for (given, name, path) in [
            ("system.slice:docker:abc", "docker-abc.scope", "/system.slice/docker-abc.scope"),
            (":cri:abc", "cri-abc.scope", "/system.slice/cri-abc.scope"),
            ("-.slice:a:b", "a-b.scope", "/a-b.scope"),
            ("a-b-c.slice:x:y", "x-y.scope", "/a.slice/a-b.slice/a-b-c.slice/x-y.scope"),
            ("a.slice::y", "y.scope", "/a.slice/y.scope"),
            ("memory-io.slice::_x", "_x.scope", "/_memory.slice/memory-io.slice/__x.scope"),
            ("a.slice::cpu", "cpu.scope", "/a.slice/_cpu.scope"),
            ("a.slice::cpu.x", "cpu.x.scope", "/a.slice/cpu.x.scope"),
            ("a.slice::cgroup.x", "cgroup.x.scope", "/a.slice/_cgroup.x.scope"),
            ("a.slice::cpux", "cpux.scope", "/a.slice/cpux.scope"),
            (
                "kubepods-burstable-pod1_2.slice:cri-containerd:f00",
                "cri-containerd-f00.scope",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-f00.scope",
            ),
        ] {
            assert_eq!(unit(given).unwrap(), (name.to_owned(), path.to_owned()), "{given}");
        }
        let of_id = Unit::of_id("abc", USER_SLICE).unwrap();
        let manager = Path::new("/user.slice/user-7.slice/user@7.service");
        let path = "/user.slice/user-7.slice/user@7.service/user.slice/dray-abc.scope";
        assert_eq!(of_id.path(manager).unwrap(), Path::new(path));
        // What systemd says where it has the root itself.
        assert_eq!(of_id.path(Path::new("")).unwrap(), Path::new("/user.slice/dray-abc.scope"));
    }

    #[test]
    fn what_systemd_would_refuse_is_refused() {
        let long = format!("a.slice:x:{}", "y".repeat(250));
        for (given, why) in [
            ("/a/b", "slice:prefix:name"),
            ("a.slice:b", "slice:prefix:name"),
            ("a.slice:b:c:d", "slice:prefix:name"),
            ("a:b:c", "no slice"),
            ("/a.slice:b:c", "has a '/'"),
            ("-a.slice:b:c", "dash"),
            ("a-.slice:b:c", "dash"),
            ("a--b.slice:b:c", "dash"),
            (".slice:b:c", "dash"),
            ("a.slice:b:", "no name"),
            ("a.slice:b:../c", "has a '/'"),
            ("a.slice:b:c d", "has a ' '"),
            ("a.slice:b:c@d", "has a '@'"),
            ("a.slice:b:c.slice", "no processes"),
            (&long, "longer"),
        ] {
            let error = unit(given).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{given}");
            assert!(error.to_string().contains(why), "{given}: {error}");
        }
        assert!(Unit::of_id("a:b", SYSTEM_SLICE).is_err());
    }
}
