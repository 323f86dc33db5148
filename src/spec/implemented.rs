//! What of the specification is implemented, by its JSON path: every field that has an effect, and every value of those
//! that have a list of values.
//!
//! One list for three: `validate`'s test holds it against the types (what is not here is refused there), the features
//! document is compared with it, and the tests that run containers name what of it they prove (tests/features.rs).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{mount_options, mounts, scheduling};

/// The fields by what they are in: a path as a prefix, and the names behind it. `*` is any key or index.
pub const FIELDS: &[(&str, &str)] = &[
    ("", "ociVersion root mounts process hostname domainname hooks annotations linux"),
    ("root.", "path readonly"),
    ("mounts.", "destination type source options uidMappings gidMappings"),
    ("hooks.", "prestart createRuntime createContainer startContainer poststart poststop"),
    ("hooks.*.", "path args env timeout"),
    (
        "process.",
        "terminal consoleSize user args env cwd capabilities rlimits noNewPrivileges oomScoreAdj scheduler ioPriority \
         execCPUAffinity apparmorProfile selinuxLabel",
    ),
    ("process.consoleSize.", "width height"),
    ("process.scheduler.", "policy nice priority flags runtime deadline period"),
    ("process.ioPriority.", "class priority"),
    ("process.execCPUAffinity.", "initial final"),
    ("process.user.", "uid gid umask additionalGids"),
    ("process.capabilities.", "bounding effective inheritable permitted ambient"),
    ("process.rlimits.", "type hard soft"),
    (
        "linux.",
        "resources cgroupsPath namespaces uidMappings gidMappings devices maskedPaths readonlyPaths sysctl seccomp \
         rootfsPropagation personality timeOffsets mountLabel memoryPolicy intelRdt netDevices",
    ),
    ("linux.uidMappings.", "containerID hostID size"),
    ("linux.netDevices.*.", "name"),
    ("linux.intelRdt.", "closID schemata l3CacheSchema memBwSchema enableMonitoring"),
    ("linux.timeOffsets.", "secs nanosecs"),
    ("linux.memoryPolicy.", "mode nodes flags"),
    ("linux.personality.", "domain flags"),
    ("linux.seccomp.", "defaultAction defaultErrnoRet architectures flags syscalls listenerPath listenerMetadata"),
    ("linux.seccomp.syscalls.", "names action errnoRet args"),
    ("linux.seccomp.syscalls.args.", "index value valueTwo op"),
    ("linux.namespaces.", "type path"),
    ("linux.devices.", "path type major minor fileMode uid gid"),
    ("linux.resources.", "devices memory cpu pids blockIO hugepageLimits network rdma unified"),
    ("linux.resources.devices.", "allow type major minor access"),
    (
        "linux.resources.memory.",
        "limit reservation swap swappiness disableOOMKiller kernel kernelTCP useHierarchy checkBeforeUpdate",
    ),
    ("linux.resources.cpu.", "shares quota period realtimeRuntime realtimePeriod cpus mems burst idle"),
    (
        "linux.resources.blockIO.",
        "weight leafWeight weightDevice throttleReadBpsDevice throttleWriteBpsDevice throttleReadIOPSDevice \
         throttleWriteIOPSDevice",
    ),
    ("linux.resources.blockIO.weightDevice.", "major minor weight leafWeight"),
    ("linux.resources.blockIO.throttle*.", "major minor rate"),
    ("linux.resources.hugepageLimits.", "pageSize limit"),
    ("linux.resources.network.", "classID priorities"),
    ("linux.resources.network.priorities.", "name priority"),
    ("linux.resources.rdma.", "hcaHandles hcaObjects"),
    ("linux.resources.pids.", "limit"),
];

/// Lists of the features document: a field, and the place of the list of its values.
const LISTS: &[(&str, &str)] = &[
    ("mounts.options", "/mountOptions"),
    ("linux.namespaces.type", "/linux/namespaces"),
    ("linux.memoryPolicy.mode", "/linux/memoryPolicy/modes"),
    ("linux.memoryPolicy.flags", "/linux/memoryPolicy/flags"),
    ("linux.seccomp.flags", "/linux/seccomp/knownFlags"),
    ("linux.seccomp.syscalls.action", "/linux/seccomp/actions"),
    ("linux.seccomp.syscalls.args.op", "/linux/seccomp/operators"),
];

/// Everything that is implemented, with the values that the features document (`features`) has: `root.readonly`,
/// `mounts.options=nosuid`. A field that has fields, or values, is there by those.
pub fn names(features: &Value) -> BTreeSet<String> {
    let mut names: BTreeSet<_> = FIELDS.iter().flat_map(|(prefix, words)| fields(prefix, words)).collect();
    let mut replace = |field: &str, values: Vec<String>| {
        assert!(names.remove(field), "{field} is no field");
        names.extend(values.into_iter().map(|value| format!("{field}={value}")));
    };
    for (field, place) in LISTS {
        let values = features.pointer(place).and_then(Value::as_array).into_iter().flatten();
        replace(field, values.filter_map(Value::as_str).map(str::to_owned).collect());
    }
    // Those that the document has no place for.
    replace("mounts.type", mounts::types().map(str::to_owned).collect());
    replace("process.scheduler.policy", scheduling::policies().collect());
    replace("process.scheduler.flags", scheduling::flags().collect());
    replace("process.ioPriority.class", scheduling::io_classes().collect());
    replace("linux.personality.domain", scheduling::domains().collect());
    replace("linux.rootfsPropagation", mount_options::propagations().map(str::to_owned).collect());
    names
}

/// The paths of the fields with this prefix that have no fields of their own.
fn fields(prefix: &str, words: &str) -> Vec<String> {
    let has_fields = |path: &str| {
        FIELDS.iter().any(|(prefix, _)| prefix.strip_prefix(path).is_some_and(|rest| rest == "." || rest == ".*."))
    };
    words.split_whitespace().map(|word| format!("{prefix}{word}")).filter(|path| !has_fields(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::features::{Abilities, features};
    use super::super::hooks::Point;
    use super::*;
    use oci_spec::runtime::Arch;

    fn document() -> Value {
        let abilities = Abilities { archs: vec![Arch::ScmpArchX86_64], flags: Vec::new(), library: "2.5.4".into() };
        features(&abilities)
    }

    /// What the document says yes or no to, and what it means by it.
    const SWITCHES: [(&str, &str); 11] = [
        ("/linux/cgroup/v1", "linux.cgroupsPath"),
        ("/linux/cgroup/v2", "linux.resources.unified"),
        ("/linux/cgroup/rdma", "linux.resources.rdma.hcaHandles"),
        ("/linux/seccomp/enabled", "linux.seccomp.defaultAction"),
        ("/linux/apparmor/enabled", "process.apparmorProfile"),
        ("/linux/selinux/enabled", "process.selinuxLabel"),
        ("/linux/intelRdt/enabled", "linux.intelRdt.closID"),
        ("/linux/intelRdt/schemata", "linux.intelRdt.schemata"),
        ("/linux/intelRdt/monitoring", "linux.intelRdt.enableMonitoring"),
        ("/linux/netDevices/enabled", "linux.netDevices.*.name"),
        ("/linux/mountExtensions/idmap/enabled", "mounts.options=idmap"),
    ];

    /// What it says besides: of itself, of libraries and kernels, of capabilities (one feature, as the sets that hold
    /// them), and of the host's cgroups.
    const OTHERS: [&str; 9] = [
        "/ociVersionMin",
        "/ociVersionMax",
        "/annotations",
        "/potentiallyUnsafeConfigAnnotations",
        "/linux/capabilities",
        "/linux/seccomp/archs",
        "/linux/seccomp/supportedFlags",
        "/linux/cgroup/systemd",
        "/linux/cgroup/systemdUser",
    ];

    /// The places of everything in a document that is not an object.
    fn leaves(at: &str, value: &Value) -> Vec<String> {
        match value {
            Value::Object(map) => map.iter().flat_map(|(key, value)| leaves(&format!("{at}/{key}"), value)).collect(),
            _ => vec![at.to_owned()],
        }
    }

    #[test]
    fn the_document_and_the_list_are_of_the_same_features() {
        let document = document();
        let names = names(&document);
        for (place, name) in SWITCHES {
            assert_eq!(document.pointer(place).unwrap(), names.contains(name), "{place} and {name}");
        }
        let hooks: Vec<_> = Point::ALL.map(|point| format!("hooks.{}", point.name())).into();
        assert_eq!(document["hooks"].as_array().unwrap().len(), hooks.len());
        assert!(hooks.iter().all(|hook| names.contains(hook)));
        let known: Vec<_> = LISTS.iter().chain(&SWITCHES.map(|(place, name)| (name, place))).map(|row| row.1).collect();
        for place in leaves("", &document) {
            let named = known.contains(&&*place) || place == "/hooks";
            let other = OTHERS.iter().any(|other| place.starts_with(other));
            assert!(named || other, "the features document's {place} is no field of the list");
        }
    }

    #[test]
    fn fields_are_there_by_their_fields_or_values() {
        let names = names(&document());
        for name in [
            "root.readonly",
            "hooks.poststop",
            "hooks.*.timeout",
            "process.user.additionalGids",
            "process.scheduler.policy=SCHED_DEADLINE",
            "mounts.options=rbind",
            "mounts.type=tmpfs",
            "linux.namespaces.type=time",
            "linux.timeOffsets.secs",
            "linux.rootfsPropagation=unbindable",
            "linux.resources.pids.limit",
        ] {
            assert!(names.contains(name), "{name}: {names:#?}");
        }
        for name in ["root", "hooks", "process.user", "mounts.options", "linux.timeOffsets", "linux.resources"] {
            assert!(!names.contains(name), "{name}");
        }
    }
}
