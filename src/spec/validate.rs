//! Every rule a specification must satisfy before anything is done about it. `init` and `cgroup` rely on them.
//!
//! First comes what this version does not implement, refused by name (`refused.rs` holds the list), then the
//! specification's own rules and those of the kernel that can be judged from the document alone. What depends on the
//! system (that a path exists, that a capability may be had, a cgroup's name) fails where it is done.

mod limits;
mod refused;

pub(super) use refused::{namespace_name, refuses};

use super::mount_options;
use super::namespaces::{namespace, namespaces};
use crate::error::{Context, Error, Kind, Result};
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, LinuxResources, PosixRlimit, Process,
    Spec, User,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Judges a whole specification. `Unimplemented` for what this version refuses, `InvalidArgument` for the rest; the
/// message names the field. Returns the process, which every specification has that is good for a container.
pub fn validate(spec: &Spec) -> Result<&Process> {
    refused::in_spec(spec)?;
    oci_version(spec.version())?;
    let root = spec.root().as_ref().map(|root| root.path()).filter(|path| !path.as_os_str().is_empty());
    no_nul("root.path", root.ok_or_else(|| invalid("root.path is required"))?)?;
    let first = spec.process().as_ref().ok_or_else(|| invalid("process is required"))?;
    process(first)?;
    let user_namespace = namespace(spec, LinuxNamespaceType::User).is_some();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        super::mounts::validate(mount, user_namespace).context(|| format!("mounts[{index}]"))?;
    }
    namespace_list(spec)?;
    if let Some(maps) = super::id_map::new_maps(spec)? {
        super::id_map::judge_ids(spec, &maps)?;
    }
    uts_name(spec, "hostname", spec.hostname())?;
    uts_name(spec, "domainname", spec.domainname())?;
    super::net_devices::net_devices(spec)?;
    super::sysctl::sysctls(spec)?;
    super::time::offsets(spec)?;
    super::hooks::validate(spec)?;
    super::seccomp::in_spec(spec)?;
    spec.linux().as_ref().map_or(Ok(()), linux)?;
    Ok(first)
}

/// Judges the process document of an exec, by the same rules as `process` of a whole specification.
pub fn validate_process(document: &Process) -> Result<()> {
    refused::in_process(document)?;
    process(document)
}

/// Judges the resources of an update, by the same rules as `linux.resources` of a whole specification.
pub fn validate_resources(document: &LinuxResources) -> Result<()> {
    resources(document)
}

/// The error for a field that this version does not implement.
pub(super) fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unimplemented, format!("{what} is not supported by this version of dray"))
}

pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, what)
}

/// The kernel's strings end at a NUL: what comes after it would be lost without a word.
pub(super) fn no_nul(field: &str, text: impl AsRef<OsStr>) -> Result<()> {
    match text.as_ref().as_bytes().contains(&0) {
        true => Err(invalid(format!("{field} contains a NUL: {:?}", text.as_ref()))),
        false => Ok(()),
    }
}

pub(super) fn absolute(field: &str, path: &Path) -> Result<()> {
    no_nul(field, path)?;
    match path.is_absolute() {
        true => Ok(()),
        false => Err(invalid(format!("{field} is not an absolute path: {path:?}"))),
    }
}

/// Any 1.x, by semantic versioning: what a later minor version adds is either known here and judged, or unknown and
/// ignored as the specification demands ("Extensibility").
fn oci_version(version: &str) -> Result<()> {
    match version.split_once('.') {
        _ if version.is_empty() => Err(invalid("ociVersion is required")),
        Some(("1", minor)) if minor.starts_with(|first: char| first.is_ascii_digit()) => Ok(()),
        _ => Err(invalid(format!("ociVersion {version:?} is not a version 1.x"))),
    }
}

fn process(process: &Process) -> Result<()> {
    // An empty one is looked for, and not found, as in a shell: clients tell that from a bad specification (Docker: 127, not 125).
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(invalid("process.args is required, with the program as its first element"));
    }
    for (index, arg) in args.iter().enumerate() {
        no_nul(&format!("process.args[{index}]"), arg)?;
    }
    for (index, variable) in process.env().iter().flatten().enumerate() {
        no_nul(&format!("process.env[{index}]"), variable)?;
    }
    absolute("process.cwd", process.cwd())?;
    user(process.user())?;
    rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    super::scheduling::validate(process)?;
    process.apparmor_profile().iter().try_for_each(|profile| no_nul("process.apparmorProfile", profile))?;
    process.selinux_label().iter().try_for_each(|label| no_nul("process.selinuxLabel", label))?;
    console_size(process)?;
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(invalid(format!("process.oomScoreAdj is not in -1000..1000: {score}")))
        }
        _ => Ok(()),
    }
}

fn user(user: &User) -> Result<()> {
    let ids = [("uid", user.uid()), ("gid", user.gid())];
    let groups = user.additional_gids().iter().flatten().map(|gid| ("additionalGids", *gid));
    for (field, id) in ids.into_iter().chain(groups) {
        // setresuid(2) takes it for "leave as it is": the process would stay root.
        if id == u32::MAX {
            return Err(invalid(format!("process.user.{field} is not an id: {id}")));
        }
    }
    match user.umask() {
        Some(umask) if umask > 0o777 => Err(invalid(format!("process.user.umask is larger than 0777: 0{umask:o}"))),
        _ => Ok(()),
    }
}

/// A terminal's numbers are 16 bits wide. Without a terminal the size is to be ignored ("MUST", the specification says).
fn console_size(process: &Process) -> Result<()> {
    let Some(size) = process.console_size().filter(|_| process.terminal() == Some(true)) else { return Ok(()) };
    let (width, height) = (size.width(), size.height());
    match width.max(height) > u64::from(u16::MAX) {
        true => Err(invalid(format!("process.consoleSize is larger than a terminal: {width} by {height}"))),
        false => Ok(()),
    }
}

fn rlimits(rlimits: &[PosixRlimit]) -> Result<()> {
    for (index, rlimit) in rlimits.iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if rlimits[..index].iter().any(|earlier| earlier.typ() == rlimit.typ()) {
            return Err(invalid(format!("{field}: {} is there twice", rlimit.typ())));
        }
        if rlimit.soft() > rlimit.hard() {
            let (typ, soft, hard) = (rlimit.typ(), rlimit.soft(), rlimit.hard());
            return Err(invalid(format!("{field}: {typ}: soft is larger than hard: {soft} > {hard}")));
        }
    }
    Ok(())
}

fn namespace_list(spec: &Spec) -> Result<()> {
    for (index, entry) in namespaces(spec).enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if namespaces(spec).take(index).any(|earlier| earlier.typ == entry.typ) {
            return Err(invalid(format!("{field}: the type {} is there twice", refused::namespace_name(entry.typ))));
        }
        if let Some(path) = entry.path {
            absolute(&format!("{field}.path"), path)?;
        }
    }
    // Without one, pivot_root and every mount would be done to the host.
    match namespace(spec, LinuxNamespaceType::Mount) {
        Some(_) => Ok(()),
        None => Err(invalid("linux.namespaces: a mount namespace is required")),
    }
}

/// The name would be the host's own without a UTS namespace, hence the rule; the length is sethostname(2)'s, and
/// setdomainname(2)'s.
fn uts_name(spec: &Spec, field: &str, name: &Option<String>) -> Result<()> {
    const LONGEST: usize = 64;
    let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { return Ok(()) };
    no_nul(field, name)?;
    if name.len() > LONGEST {
        return Err(invalid(format!("{field} is longer than {LONGEST} bytes: {name:?}")));
    }
    match namespace(spec, LinuxNamespaceType::Uts) {
        Some(_) => Ok(()),
        None => Err(invalid(format!("{field} needs a uts namespace in linux.namespaces"))),
    }
}

fn linux(linux: &Linux) -> Result<()> {
    for (index, path) in linux.masked_paths().iter().flatten().enumerate() {
        absolute(&format!("linux.maskedPaths[{index}]"), Path::new(path))?;
    }
    for (index, path) in linux.readonly_paths().iter().flatten().enumerate() {
        absolute(&format!("linux.readonlyPaths[{index}]"), Path::new(path))?;
    }
    linux.mount_label().iter().try_for_each(|label| no_nul("linux.mountLabel", label))?;
    linux.cgroups_path().iter().try_for_each(|path| no_nul("linux.cgroupsPath", path))?;
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => {}
        Some(word) if mount_options::propagation(word).is_some() => {}
        Some(word) => return Err(invalid(format!("linux.rootfsPropagation is no propagation: {word:?}"))),
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        node(device).context(|| format!("linux.devices[{index}]"))?;
    }
    linux.personality().as_ref().map(super::scheduling::personality).transpose()?;
    linux.memory_policy().as_ref().map(super::memory_policy::memory_policy).transpose()?;
    linux.seccomp().as_ref().map_or(Ok(()), super::seccomp::validate)?;
    linux.resources().as_ref().map_or(Ok(()), resources)
}

fn resources(resources: &LinuxResources) -> Result<()> {
    for (index, rule) in resources.devices().iter().flatten().enumerate() {
        device_rule(rule).context(|| format!("linux.resources.devices[{index}]"))?;
    }
    limits::validate(resources)?;
    match resources.memory().and_then(|memory| memory.swappiness()) {
        Some(swappiness) if swappiness > 100 => {
            Err(invalid(format!("linux.resources.memory.swappiness is not in 0..100: {swappiness}")))
        }
        _ => Ok(()),
    }
}

/// The numbers are required but for a fifo. The crate's type cannot tell an absent number from 0; no device is 0:0,
/// which overlayfs takes for a whiteout.
fn node(device: &LinuxDevice) -> Result<()> {
    absolute("path", device.path())?;
    let (major, minor) = (device.major(), device.minor());
    match device.typ() {
        LinuxDeviceType::P => Ok(()),
        LinuxDeviceType::A => Err(invalid("the type \"a\" is a rule's, not a device's")),
        _ if (major, minor) == (0, 0) => Err(invalid("major and minor are required")),
        _ => number("major", major, 0, MAX_MAJOR).and_then(|()| number("minor", minor, 0, MAX_MINOR)),
    }
}

/// Of Linux' `dev_t`: 12 bits and 20 bits.
const MAX_MAJOR: i64 = (1 << 12) - 1;
const MAX_MINOR: i64 = (1 << 20) - 1;

fn number(field: &str, number: i64, least: i64, most: i64) -> Result<()> {
    match (least..=most).contains(&number) {
        true => Ok(()),
        false => Err(invalid(format!("{field} is not in {least}..{most}: {number}"))),
    }
}

/// A number left out, or -1, is every number, as runc has it. Without a type, or with `a`, the rule is for every
/// device.
fn device_rule(rule: &LinuxDeviceCgroup) -> Result<()> {
    let access = rule.access().as_deref().unwrap_or_default();
    if let Some(letter) = access.chars().find(|letter| !"rwm".contains(*letter)) {
        return Err(invalid(format!("access has a letter that is none of r, w, m: {letter:?}")));
    }
    match rule.typ() {
        None | Some(LinuxDeviceType::A) => {}
        Some(LinuxDeviceType::B | LinuxDeviceType::C) if access.is_empty() => {
            return Err(invalid("access is required"));
        }
        Some(LinuxDeviceType::B | LinuxDeviceType::C) => {}
        Some(typ) => return Err(invalid(format!("the type {:?} is not one of a, b, c", typ.as_str()))),
    }
    number("major", rule.major().unwrap_or(-1), -1, MAX_MAJOR)?;
    number("minor", rule.minor().unwrap_or(-1), -1, MAX_MINOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const CTR: [&str; 3] = [
        include_str!("../../tests/data/ctr-default.json"),
        include_str!("../../tests/data/ctr-options.json"),
        include_str!("../../tests/data/ctr-privileged.json"),
    ];

    /// What ctr 1.6 writes by default, with some values replaced; `null` removes one.
    fn judge(changes: &[(&str, Value)]) -> Result<()> {
        let mut document: Value = serde_json::from_str(CTR[0]).unwrap();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            match value {
                Value::Null => drop(parent.remove(key)),
                _ => drop(parent.insert(key.to_owned(), value.clone())),
            }
        }
        validate(&serde_json::from_value(document).unwrap()).map(drop)
    }

    #[test]
    fn what_ctr_writes_passes() {
        for document in CTR {
            validate(&serde_json::from_str(document).unwrap()).unwrap();
        }
    }

    #[test]
    fn the_size_of_a_console_is_a_terminals_and_without_one_is_ignored() {
        let size = |width: u64| ("/process/consoleSize", json!({ "height": 24, "width": width }));
        let terminal = ("/process/terminal", json!(true));
        judge(&[size(65536)]).unwrap();
        judge(&[size(65535), terminal.clone()]).unwrap();
        let error = judge(&[size(65536), terminal]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("process.consoleSize") && error.to_string().contains("65536"), "{error}");
    }

    #[test]
    fn what_breaks_a_rule_is_refused_and_named() {
        let device = |device: Value| ("/linux/devices", json!([device]));
        let rule = |rule: Value| ("/linux/resources/devices", json!([rule]));
        let nofile = json!({ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 });
        let cases = [
            (("/ociVersion", Value::Null), "ociVersion is required"),
            (("/ociVersion", json!("2.0.0")), "ociVersion \"2.0.0\""),
            (("/ociVersion", json!("1")), "ociVersion \"1\""),
            (("/ociVersion", json!("10.0.0")), "ociVersion \"10.0.0\""),
            (("/root", Value::Null), "root.path is required"),
            (("/root/path", json!("")), "root.path is required"),
            (("/root/path", json!("/a\0b")), "root.path contains a NUL"),
            (("/process", Value::Null), "process is required"),
            (("/process/args", Value::Null), "process.args is required"),
            (("/process/args", json!([])), "process.args is required"),
            (("/process/args", json!(["a", "b\0"])), "process.args[1] contains a NUL"),
            (("/process/env", json!(["A=1", "B=\0"])), "process.env[1] contains a NUL"),
            (("/process/cwd", json!("")), "process.cwd is not an absolute path"),
            (("/process/cwd", json!("tmp")), "process.cwd is not an absolute path"),
            (("/process/cwd", json!("/\0")), "process.cwd contains a NUL"),
            (("/process/user/uid", json!(u32::MAX)), "process.user.uid"),
            (("/process/user/gid", json!(u32::MAX)), "process.user.gid"),
            (("/process/user/additionalGids", json!([1, u32::MAX])), "process.user.additionalGids"),
            (("/process/user/umask", json!(0o1000)), "process.user.umask"),
            (("/process/oomScoreAdj", json!(1001)), "process.oomScoreAdj"),
            (("/process/oomScoreAdj", json!(-1001)), "process.oomScoreAdj"),
            (("/process/rlimits", json!([nofile, nofile])), "process.rlimits[1]: RLIMIT_NOFILE is there twice"),
            (
                ("/process/rlimits", json!([{ "type": "RLIMIT_CPU", "soft": 2, "hard": 1 }])),
                "process.rlimits[0]: RLIMIT_CPU: soft is larger than hard: 2 > 1",
            ),
            (("/mounts", json!([{ "destination": "/", "type": "tmpfs" }])), "mounts[0]: the destination"),
            (("/hostname", json!("a".repeat(65))), "hostname is longer"),
            (("/hostname", json!("a\0")), "hostname contains a NUL"),
            (("/domainname", json!("a".repeat(65))), "domainname is longer"),
            (("/domainname", json!("a\0")), "domainname contains a NUL"),
            (("/process/scheduler", json!({ "policy": "SCHED_OTHER", "nice": -21 })), "process.scheduler.nice"),
            (
                ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_RT", "priority": 8 })),
                "process.ioPriority.priority",
            ),
            (("/process/execCPUAffinity", json!({ "initial": "2-1" })), "process.execCPUAffinity.initial"),
            (("/process/execCPUAffinity", json!({ "final": "32768" })), "process.execCPUAffinity.final"),
            (("/linux", Value::Null), "a mount namespace is required"),
            (("/linux/namespaces", json!([{ "type": "pid" }])), "a mount namespace is required"),
            (
                ("/linux/namespaces", json!([{ "type": "mount" }, { "type": "mount", "path": "/a" }])),
                "linux.namespaces[1]: the type mount is there twice",
            ),
            (
                ("/linux/namespaces", json!([{ "type": "mount" }, { "type": "network", "path": "a" }])),
                "linux.namespaces[1].path is not an absolute path",
            ),
            (("/hooks", json!({ "poststop": [{ "path": "a" }] })), "hooks.poststop[0].path is not an absolute path"),
            (("/linux/maskedPaths", json!(["/a", "b"])), "linux.maskedPaths[1] is not an absolute path"),
            (("/linux/readonlyPaths", json!(["/a", "/b\0"])), "linux.readonlyPaths[1] contains a NUL"),
            (("/linux/rootfsPropagation", json!("both")), "linux.rootfsPropagation is no propagation: \"both\""),
            (("/linux/rootfsPropagation", json!("rbind")), "linux.rootfsPropagation is no propagation: \"rbind\""),
            (("/linux/sysctl", json!({ "vm.swappiness": "1" })), "linux.sysctl: \"vm.swappiness\""),
            (("/process/apparmorProfile", json!("a\0")), "process.apparmorProfile contains a NUL"),
            (("/process/selinuxLabel", json!("a\0")), "process.selinuxLabel contains a NUL"),
            (("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND" })), "linux.memoryPolicy.nodes"),
            (("/linux/mountLabel", json!("a\0")), "linux.mountLabel contains a NUL"),
            (("/linux/cgroupsPath", json!("/a\0")), "linux.cgroupsPath contains a NUL"),
            (device(json!({ "path": "a", "type": "c", "major": 1, "minor": 3 })), "linux.devices[0]: path is not"),
            (device(json!({ "path": "/a", "type": "c" })), "linux.devices[0]: major and minor are required"),
            (device(json!({ "path": "/a", "type": "a", "major": 1, "minor": 3 })), "linux.devices[0]: the type \"a\""),
            (device(json!({ "path": "/a", "type": "b", "major": 4096, "minor": 0 })), "linux.devices[0]: major"),
            (device(json!({ "path": "/a", "type": "u", "major": 1, "minor": -1 })), "linux.devices[0]: minor"),
            (("/linux/resources/memory", json!({ "swappiness": 101 })), "linux.resources.memory.swappiness"),
            (rule(json!({ "allow": true, "access": "rwx" })), "linux.resources.devices[0]: access has a letter"),
            (rule(json!({ "allow": true, "type": "c" })), "linux.resources.devices[0]: access is required"),
            (rule(json!({ "allow": true, "type": "p", "access": "r" })), "linux.resources.devices[0]: the type \"p\""),
            (
                rule(json!({ "allow": true, "type": "c", "major": -2, "access": "r" })),
                "linux.resources.devices[0]: major",
            ),
        ];
        for (change, names) in cases {
            let text = format!("{change:?}");
            let error = judge(&[change]).expect_err(&text);
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}: {error}");
            assert!(error.to_string().contains(names), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_needs_a_uts_namespace_new_or_joined() {
        for field in ["hostname", "domainname"] {
            let pointer = format!("/{field}");
            let name = || (pointer.as_str(), json!("box"));
            let namespaces = |list| ("/linux/namespaces", list);
            let error = judge(&[name(), namespaces(json!([{ "type": "mount" }]))]).unwrap_err();
            assert!(error.to_string().contains(&format!("{field} needs a uts namespace")), "{error}");
            judge(&[name()]).unwrap();
            judge(&[name(), namespaces(json!([{ "type": "mount" }, { "type": "uts", "path": "/u" }]))]).unwrap();
            judge(&[(&pointer, json!("")), namespaces(json!([{ "type": "mount" }]))]).unwrap();
        }
    }

    #[test]
    fn what_stays_within_the_rules_passes() {
        let cases = [
            ("/ociVersion", json!("1.0.0")),
            ("/ociVersion", json!("1.9.0-rc.1+dev")),
            ("/root/path", json!("rootfs")),
            ("/process/user/umask", json!(0o777)),
            ("/process/oomScoreAdj", json!(-1000)),
            ("/process/user/uid", json!(u32::MAX - 1)),
            (
                "/linux/namespaces",
                json!([{ "type": "mount", "path": "/m" }, { "type": "cgroup" }, { "type": "pid", "path": "" }]),
            ),
            (
                "/linux/devices",
                json!([{ "path": "/p", "type": "p" }, { "path": "/b", "type": "b", "major": 7, "minor": 0 }]),
            ),
            (
                "/linux/resources/devices",
                json!([{ "allow": false }, { "allow": true, "type": "b", "major": -1, "access": "r" }]),
            ),
            ("/linux/resources/pids", json!({ "limit": -1 })),
            ("/linux/resources/memory", json!({ "limit": -1, "swappiness": 100, "disableOOMKiller": true })),
            ("/linux/rootfsPropagation", json!("")),
            ("/linux/rootfsPropagation", json!("runbindable")),
            ("/annotations", json!({ "a": "b" })),
            ("/anUnknownField", json!({ "seccomp": 1 })),
        ];
        for change in cases {
            let text = format!("{change:?}");
            judge(&[change]).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn an_exec_is_judged_as_the_process_of_a_specification() {
        let process = |extra: (&str, Value)| {
            let mut json = json!({ "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
            json[extra.0] = extra.1;
            validate_process(&serde_json::from_value(json).unwrap())
        };
        process(("env", json!(["A=B"]))).unwrap();
        assert_eq!(process(("cwd", json!("x"))).unwrap_err().kind(), Kind::InvalidArgument);
        let refused = process(("commandLine", json!("x"))).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unimplemented);
        assert!(refused.to_string().starts_with("process.commandLine "), "{refused}");
    }
}
