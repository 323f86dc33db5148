//! Which namespaces a specification makes and which it joins, and what follows from that.

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::path::Path;

/// One entry of `linux.namespaces`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace<'a> {
    /// Its type.
    pub typ: LinuxNamespaceType,
    /// The namespace to join; `None` makes a new one. An empty path in the document is no path, as Go's `omitempty`
    /// has it.
    pub path: Option<&'a Path>,
}

/// The entries of `linux.namespaces`, in the document's order.
pub fn namespaces(spec: &Spec) -> impl Iterator<Item = Namespace<'_>> {
    let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    listed.iter().map(|namespace| Namespace {
        typ: namespace.typ(),
        path: namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()),
    })
}

/// The entry of one type; `None` where the container stays in the shim's namespace of that type.
pub fn namespace(spec: &Spec, typ: LinuxNamespaceType) -> Option<Namespace<'_>> {
    namespaces(spec).find(|namespace| namespace.typ == typ)
}

/// Whether the container has a PID namespace of its own: then the kernel ends every process with its init. Otherwise
/// (no entry, or one that joins) the container's processes are those of its cgroup, and killing it means killing
/// those.
pub fn has_private_pid_ns(spec: &Spec) -> bool {
    namespace(spec, LinuxNamespaceType::Pid).is_some_and(|namespace| namespace.path.is_none())
}

/// Whether the container's mount namespace is somebody else's. Then its mounts are that one's too: init joins it and
/// must not mount, make devices, mask, or pivot there, since every other member would see it; `root` and `mounts`
/// describe the namespace's state, made by who made the namespace.
pub fn joins_mount_ns(spec: &Spec) -> bool {
    namespace(spec, LinuxNamespaceType::Mount).is_some_and(|namespace| namespace.path.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(namespaces: serde_json::Value) -> Spec {
        serde_json::from_value(json!({ "ociVersion": "1.0.2", "linux": { "namespaces": namespaces } })).unwrap()
    }

    #[test]
    fn a_path_joins_and_an_empty_one_does_not() {
        let made = spec(json!([{ "type": "pid", "path": "" }, { "type": "mount" }]));
        assert!(has_private_pid_ns(&made));
        assert!(!joins_mount_ns(&made));

        let joined = spec(json!([{ "type": "pid", "path": "/proc/7/ns/pid" }, { "type": "mount", "path": "/run/m" }]));
        assert!(!has_private_pid_ns(&joined));
        assert!(joins_mount_ns(&joined));
        let pid = namespace(&joined, LinuxNamespaceType::Pid).unwrap();
        assert_eq!(pid.path, Some(Path::new("/proc/7/ns/pid")));
    }

    #[test]
    fn without_an_entry_the_container_stays_where_it_is() {
        let none: Spec = serde_json::from_value(json!({ "ociVersion": "1.0.2" })).unwrap();
        assert_eq!(namespaces(&none).count(), 0);
        assert!(!has_private_pid_ns(&none), "the host's PID namespace is not the container's own");
        assert!(!joins_mount_ns(&none));
    }
}
