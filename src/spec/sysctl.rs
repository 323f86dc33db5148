//! linux.sysctl: the kernel parameters that a container may set, which are those of its own namespaces.

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::path::PathBuf;

use super::namespaces::namespace;
use super::validate::{invalid, no_nul};
use crate::error::{Error, Result};

/// The parameters of an IPC namespace below kernel/ (ipc/ipc_sysctl.c of Linux 5.10); those of its message queues are
/// below fs/mqueue/.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// One parameter and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Its file below /proc/sys.
    pub path: PathBuf,
    /// The namespace whose parameter it is.
    pub namespace: LinuxNamespaceType,
    /// What is written.
    pub value: String,
}

/// The specification's parameters, in the order of their names, since the document has none.
///
/// # Errors
/// `InvalidArgument`, naming the parameter, for one that is not of a namespace which the specification lists: it would
/// be the host's.
pub fn sysctls(spec: &Spec) -> Result<Vec<Sysctl>> {
    let listed = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let mut sysctls = Vec::new();
    for (name, value) in listed.into_iter().flatten() {
        let refuse = |why: &str| -> Error { invalid(format!("linux.sysctl: {name:?} {why}")) };
        no_nul("linux.sysctl", name)?;
        no_nul(&format!("linux.sysctl[{name}]"), value)?;
        let path = path(name).ok_or_else(|| refuse("is not the name of a parameter"))?;
        let typ = owner(&path).ok_or_else(|| refuse("is not of a namespace: it would be the host's too"))?;
        if namespace(spec, typ).is_none() {
            return Err(refuse("is the host's: linux.namespaces has no namespace of its kind"));
        }
        // It has a field of its own, and the two may differ.
        if path == "kernel/hostname" {
            return Err(refuse("is what the field hostname is for"));
        }
        sysctls.push(Sysctl { path: path.into(), namespace: typ, value: value.clone() });
    }
    sysctls.sort_by(|a, b| a.path.cmp(&b.path));
    match sysctls.windows(2).find(|pair| pair[0].path == pair[1].path) {
        Some(pair) => Err(invalid(format!("linux.sysctl: {} is there twice", pair[0].path.display()))),
        None => Ok(sysctls),
    }
}

/// The file of a parameter, as sysctl(8) reads its name: the separator is `.` or `/`, whichever comes first, and the other
/// one is part of a name (`net.ipv4.conf.eth0/100.forwarding`, `net/ipv4/conf/eth0.100/forwarding`).
fn path(name: &str) -> Option<String> {
    let path: String = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => name.to_owned(),
        _ => name.chars().map(swapped).collect(),
    };
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(plain).then_some(path)
}

fn swapped(letter: char) -> char {
    match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

/// The namespace of which this file shows the reader's own; runc's list (libcontainer/configs/validate).
fn owner(path: &str) -> Option<LinuxNamespaceType> {
    match path {
        path if path.starts_with("net/") => Some(LinuxNamespaceType::Network),
        path if path.starts_with("fs/mqueue/") || IPC.contains(&path) => Some(LinuxNamespaceType::Ipc),
        "kernel/domainname" | "kernel/hostname" => Some(LinuxNamespaceType::Uts),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(name: &str, namespaces: &[&str]) -> Result<Vec<Sysctl>> {
        let namespaces: Vec<_> = namespaces.iter().map(|typ| json!({ "type": typ })).collect();
        let linux = json!({ "namespaces": namespaces, "sysctl": { name: "1" } });
        sysctls(&serde_json::from_value(json!({ "ociVersion": "1.0.2", "linux": linux })).unwrap())
    }

    #[test]
    fn both_separators_name_the_same_file() {
        let cases = [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
            ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ];
        for (name, file) in cases {
            assert_eq!(judge(name, &["network"]).unwrap()[0].path, PathBuf::from(file), "{name}");
        }
    }

    #[test]
    fn a_parameter_is_set_in_a_namespace_of_its_kind_only() {
        let all = ["network", "ipc", "uts", "mount", "pid"];
        for (name, kind) in [
            ("net.core.somaxconn", "network"),
            ("kernel.msgmax", "ipc"),
            ("kernel.shm_rmid_forced", "ipc"),
            ("fs.mqueue.msg_max", "ipc"),
            ("kernel.domainname", "uts"),
        ] {
            judge(name, &[kind]).unwrap_or_else(|e| panic!("{name}: {e}"));
            let others: Vec<_> = all.into_iter().filter(|other| *other != kind).collect();
            let error = judge(name, &others).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("the host's"), "{name}: {error}");
        }
        for name in ["kernel.core_pattern", "kernel.hostname", "vm.swappiness", "kernel.semx", "kernel", "net", ""] {
            assert!(judge(name, &all).unwrap_err().to_string().contains(&format!("{name:?}")), "{name}");
        }
    }

    /// `net/../kernel/core_pattern` begins as one of the network's.
    #[test]
    fn no_name_climbs() {
        let all = ["network", "ipc", "uts"];
        for name in ["net/../kernel/core_pattern", "net.//.kernel", "net/./x", "net//x", "net/x/", "/net/x", "net.x."] {
            let error = judge(name, &all).unwrap_err().to_string();
            assert!(error.contains("is not the name"), "{name}: {error}");
        }
    }

    #[test]
    fn one_parameter_has_one_value() {
        let linux = json!({
            "namespaces": [{ "type": "network" }],
            "sysctl": { "net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0" },
        });
        let spec = serde_json::from_value(json!({ "ociVersion": "1.0.2", "linux": linux })).unwrap();
        assert!(sysctls(&spec).unwrap_err().to_string().contains("twice"));
    }
}
