//! What this program implements, in the specification's own form (features.md): containerd asks for it by `-info`, and
//! decides by it what it may put into a container's specification.
//!
//! Made of the tables by which things are done or refused, so that it cannot say otherwise than they do.

use oci_spec::runtime::LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
use oci_spec::runtime::{Arch, LinuxSeccompFilterFlag};
use serde_json::{Value, json};

use super::capabilities::CAPABILITIES;
use super::validate::{namespace_name, refuses};
use super::{hooks, memory_policy, mount_options, seccomp};

/// The versions of the specification whose configurations are judged in full: everything up to the last is either done or
/// refused by its name.
pub const OCI_VERSIONS: (&str, &str) = ("1.0.0", "1.3.0");

/// What of seccomp is not ours to know: the library's and the kernel's part.
#[derive(Debug)]
pub struct Abilities {
    /// Architectures that the library knows.
    pub archs: Vec<Arch>,
    /// Flags that the kernel knows.
    pub flags: Vec<LinuxSeccompFilterFlag>,
    /// The library's version.
    pub library: String,
}

/// The features document.
pub fn features(abilities: &Abilities) -> Value {
    let hooks: Vec<_> = hooks::Point::ALL.map(hooks::Point::name).into();
    let namespaces = [Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts];
    let namespaces = namespaces.map(namespace_name);
    json!({
        "ociVersionMin": OCI_VERSIONS.0,
        "ociVersionMax": OCI_VERSIONS.1,
        "hooks": hooks,
        "mountOptions": mount_options::supported().collect::<Vec<_>>(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": CAPABILITIES.as_slice(),
            "cgroup": {
                "v1": true,
                "v2": has("linux.resources.unified"),
                "systemd": true,
                "systemdUser": true,
                "rdma": has("linux.resources.rdma"),
            },
            "seccomp": {
                "enabled": true,
                "actions": seccomp::ACTIONS,
                "operators": seccomp::OPERATORS,
                "archs": abilities.archs,
                "knownFlags": seccomp::FLAGS,
                "supportedFlags": abilities.flags,
            },
            "apparmor": { "enabled": has("process.apparmorProfile") },
            "selinux": { "enabled": has("process.selinuxLabel") },
            "intelRdt": {
                "enabled": has("linux.intelRdt"),
                "schemata": has("linux.intelRdt"),
                "monitoring": has("linux.intelRdt"),
            },
            "netDevices": { "enabled": has("linux.netDevices") },
            "memoryPolicy": {
                "modes": memory_policy::modes().collect::<Vec<_>>(),
                "flags": memory_policy::flags().collect::<Vec<_>>(),
            },
            "mountExtensions": { "idmap": { "enabled": mount_options::supported().any(|word| word == "idmap") } },
        },
        // As the specification's own example has it (features.md, "Annotations").
        "annotations": { "io.github.seccomp.libseccomp.version": abilities.library },
        // What a client should not let just anybody write: properties of the container's scope.
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
    })
}

/// Whether a field is implemented, by its JSON path.
fn has(field: &str) -> bool {
    !refuses(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Features, LinuxNamespaceType, Spec};

    fn features() -> Value {
        let archs = vec![Arch::ScmpArchX86_64];
        let flags = vec![LinuxSeccompFilterFlag::SeccompFilterFlagLog];
        super::features(&Abilities { archs, flags, library: "2.5.4".into() })
    }

    fn list(value: &Value) -> Vec<&str> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
    }

    /// The default document with something in place of what it has.
    fn judged(change: impl FnOnce(&mut Value)) -> bool {
        let mut document: Value = serde_json::from_str(include_str!("../../tests/data/ctr-default.json")).unwrap();
        change(&mut document);
        let spec: Spec = serde_json::from_value(document).unwrap();
        super::super::validate::validate(&spec).is_ok()
    }

    #[test]
    fn it_is_a_features_document() {
        let document: Features = serde_json::from_value(features()).unwrap();
        assert_eq!(serde_json::to_value(&document).unwrap()["linux"]["cgroup"]["v1"], true);
    }

    /// What it lists is accepted by validation, and what it leaves out is refused there.
    #[test]
    fn it_says_what_validation_does() {
        let features = features();
        for typ in ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"] {
            let namespaces = match typ {
                "mount" => json!([{ "type": "mount" }]),
                _ => json!([{ "type": "mount" }, { "type": typ }]),
            };
            let accepted = judged(|spec| {
                spec["linux"]["namespaces"] = namespaces;
                if typ == "user" {
                    let all = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
                    spec["linux"]["uidMappings"] = all.clone();
                    spec["linux"]["gidMappings"] = all;
                }
            });
            assert_eq!(list(&features["linux"]["namespaces"]).contains(&typ), accepted, "{typ}");
            assert!(serde_json::from_value::<LinuxNamespaceType>(json!(typ)).is_ok());
        }
        let options = list(&features["mountOptions"]);
        for word in ["ro", "rbind", "rprivate", "strictatime", "rro", "tmpcopyup", "idmap", "remount", "iversion"] {
            // What is for binds, and what is for file systems.
            let ids = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
            let bind = json!([{ "destination": "/a", "source": "/b", "options": ["bind", word],
                                "uidMappings": ids, "gidMappings": ids }]);
            let bare = json!([{ "destination": "/a", "source": "/b", "options": ["bind", word] }]);
            let tmpfs = json!([{ "destination": "/a", "type": "tmpfs", "options": [word] }]);
            let accepted = [bind, bare, tmpfs].into_iter().any(|mount| judged(|spec| spec["mounts"] = mount));
            assert_eq!(options.contains(&word), accepted, "{word}");
        }
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], options.contains(&"idmap"));
        for hook in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
            let accepted = judged(|spec| spec["hooks"] = json!({ hook: [{ "path": "/bin/true" }] }));
            assert_eq!(list(&features["hooks"]).contains(&hook), accepted, "{hook}");
        }
        let moves = judged(|spec| spec["linux"]["netDevices"] = json!({ "eth0": {} }));
        assert_eq!(features["linux"]["netDevices"]["enabled"], moves);
        let capabilities = list(&features["linux"]["capabilities"]);
        assert_eq!((capabilities[0], capabilities[21], capabilities.len()), ("CAP_CHOWN", "CAP_SYS_ADMIN", 41));
    }

    /// The same for where memory may be: every name is accepted, and there is no other.
    #[test]
    fn it_says_of_memory_policies_what_validation_does() {
        let features = features();
        let policy = &features["linux"]["memoryPolicy"];
        let accepted = |policy: Value| judged(|spec| spec["linux"]["memoryPolicy"] = policy);
        let modes = list(&policy["modes"]);
        for mode in &modes {
            assert!([Value::Null, json!("0")].iter().any(|nodes| accepted(json!({ "mode": mode, "nodes": nodes }))));
        }
        for flag in list(&policy["flags"]) {
            assert!(accepted(json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] })), "{flag}");
        }
        assert_eq!((modes.len(), list(&policy["flags"]).len()), (7, 3));
    }

    /// The same for what a profile may have.
    #[test]
    fn it_says_of_seccomp_what_validation_does() {
        let features = features();
        let seccomp = &features["linux"]["seccomp"];
        let profile = |change: (&str, Value)| {
            let mut profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x" });
            profile[change.0] = change.1;
            judged(|spec| spec["linux"]["seccomp"] = profile)
        };
        assert_eq!(
            seccomp["enabled"],
            judged(|spec| spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_LOG" }))
        );
        for action in ["ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRACE", "TRAP"] {
            let action = format!("SCMP_ACT_{action}");
            let rule = json!([{ "names": ["mkdir"], "action": action }]);
            assert_eq!(list(&seccomp["actions"]).contains(&&*action), profile(("syscalls", rule)), "{action}");
        }
        for operator in list(&seccomp["operators"]) {
            let args = json!([{ "index": 0, "value": 1, "op": operator }]);
            let rule = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_LOG", "args": args }]);
            assert!(profile(("syscalls", rule)), "{operator}");
        }
        assert_eq!(seccomp["operators"].as_array().unwrap().len(), 7);
        for flag in list(&seccomp["knownFlags"]) {
            assert!(profile(("flags", json!([flag]))), "{flag}");
        }
        assert_eq!(list(&seccomp["supportedFlags"]), ["SECCOMP_FILTER_FLAG_LOG"]);
        assert_eq!(list(&seccomp["archs"]), ["SCMP_ARCH_X86_64"]);
    }
}
