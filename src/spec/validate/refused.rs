//! The list of what the specification (1.3) defines and this version does not implement, each refused by its JSON path.
//!
//! A field that is ignored is a promise broken without a word: a container without the seccomp profile that it was to
//! have. So every field is either implemented or a row here, which a test compares with the fields that the types
//! have. A row goes when its field is implemented. A value that asks for nothing (an empty list, 0, false, "") is not
//! refused: clients write them. Unknown fields and annotations pass, as the specification demands.

use super::unsupported;
use crate::error::Result;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

/// A field's JSON path, and whether a document asks for it.
type Row<T> = (&'static str, fn(&T) -> bool);

const SPEC: &[Row<Spec>] = &[
    ("solaris", |spec| spec.solaris().is_some()),
    ("vm", |spec| spec.vm().is_some()),
    ("windows", |spec| spec.windows().is_some()),
    ("zos", |spec| spec.zos().is_some()),
    // And "freebsd", which the types do not have: `load` refuses it.
];

const PROCESS: &[Row<Process>] = &[
    ("process.user.username", |process| text(process.user().username())),
    ("process.commandLine", |process| text(process.command_line())),
];

/// Refuses what a specification asks for and this version does not have.
pub(super) fn in_spec(spec: &Spec) -> Result<()> {
    refuse(SPEC, Some(spec))?;
    spec.process().as_ref().map_or(Ok(()), in_process)
}

/// Refuses what a process asks for and this version does not have.
pub(super) fn in_process(process: &Process) -> Result<()> {
    refuse(PROCESS, Some(process))
}

fn refuse<T>(rows: &[Row<T>], value: Option<&T>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    match rows.iter().find(|(_, asked)| asked(value)) {
        Some((name, _)) => Err(unsupported(name)),
        None => Ok(()),
    }
}

/// Whether a field is refused by a row of the list, by its JSON path.
pub(in crate::spec) fn refuses(field: &str) -> bool {
    fn has<T>(rows: &[Row<T>], field: &str) -> bool {
        rows.iter().any(|(name, _)| *name == field)
    }
    has(SPEC, field) || has(PROCESS, field)
}

/// A namespace's type as `linux.namespaces[].type` has it; the crate's own text is that of /proc/PID/ns.
pub(in crate::spec) fn namespace_name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn text(field: &Option<String>) -> bool {
    field.as_ref().is_some_and(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use oci_spec::runtime::{self as oci, Linux};
    use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
    use serde_json::{Value, json};

    /// A document that passes, with the value at a path of keys (`a.b.c`) replaced.
    fn with(path: &str, value: &Value) -> Value {
        let mut document: Value = serde_json::from_str(include_str!("../../../tests/data/ctr-default.json")).unwrap();
        let mut at = &mut document;
        for key in path.split('.') {
            at = at.as_object_mut().unwrap().entry(key).or_insert_with(|| json!({}));
        }
        *at = value.clone();
        document
    }

    /// The list again, as documents: what asks for each field, and what does not.
    fn examples() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
        let words = || (vec![json!("x")], vec![json!(""), Value::Null]);
        let pairs = |(name, (asks, passes))| (name, asks, passes);
        let several = [("process.user.username", words()), ("process.commandLine", words())];
        let one = |name, asks: Value, passes: Value| (name, vec![asks], vec![passes]);
        several
            .map(pairs)
            .into_iter()
            .chain([
                one("solaris", json!({}), Value::Null),
                one("vm", json!({ "kernel": { "path": "/k" } }), Value::Null),
                one("windows", json!({ "servicing": true }), Value::Null),
                one("zos", json!({}), Value::Null),
            ])
            .collect()
    }

    fn judge(document: &Value) -> Result<()> {
        super::super::validate(&serde_json::from_value(document.clone()).unwrap())
    }

    #[test]
    fn each_row_is_refused_by_its_name_and_passes_when_it_asks_for_nothing() {
        for (name, asks, passes) in examples() {
            for value in asks {
                let error = judge(&with(name, &value)).expect_err(&format!("{name}: {value} was accepted"));
                assert_eq!(error.kind(), Kind::Unimplemented, "{name}");
                assert_eq!(error.to_string(), format!("{name} is not supported by this version of dray"));
            }
            for value in passes {
                judge(&with(name, &value)).unwrap_or_else(|error| panic!("{name}: {value}: {error}"));
            }
        }
    }

    #[test]
    fn each_row_has_an_example() {
        fn names<T>(rows: &[Row<T>]) -> Vec<&'static str> {
            rows.iter().map(|(name, _)| *name).collect()
        }
        let mut rows = [names(SPEC), names(PROCESS)].concat();
        let mut examples: Vec<_> = examples().into_iter().map(|(name, ..)| name).collect();
        rows.sort_unstable();
        examples.sort_unstable();
        assert_eq!(rows, examples);
    }

    /// A deserializer that has no data and tells the names of the fields which a type asks it for.
    struct Fields<'a>(&'a mut Vec<&'static str>);

    impl<'de> Deserializer<'de> for Fields<'_> {
        type Error = serde_json::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> std::result::Result<V::Value, Self::Error> {
            Err(Self::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> std::result::Result<V::Value, Self::Error> {
            self.0.extend(fields);
            Err(Self::Error::custom("no data"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    /// The fields of `T` that neither this version implements, by the words of `implemented`, nor the list refuses.
    fn undecided<'de, T: Deserialize<'de>>(prefix: &str, implemented: &str) -> Vec<String> {
        let mut fields = Vec::new();
        assert!(T::deserialize(Fields(&mut fields)).is_err());
        assert!(!fields.is_empty(), "{prefix}");
        for word in implemented.split_whitespace() {
            assert!(fields.contains(&word), "{prefix}{word} is no field");
        }
        let refused: Vec<_> = examples().into_iter().map(|(name, ..)| name).collect();
        let paths = fields.into_iter().filter(|field| !implemented.split_whitespace().any(|word| word == *field));
        paths.map(|field| format!("{prefix}{field}")).filter(|path| !refused.contains(&path.as_str())).collect()
    }

    /// An update of the crate that brings new fields fails here until each is decided on.
    #[test]
    fn every_field_of_the_types_is_implemented_or_refused() {
        let all = [
            // The last two have never been in the specification: the crate has dropped them from its own use.
            undecided::<Spec>(
                "",
                "ociVersion root mounts process hostname domainname hooks annotations linux uidMappings gidMappings",
            ),
            undecided::<oci::Root>("root.", "path readonly"),
            undecided::<oci::Mount>("mounts.", "destination type source options uidMappings gidMappings"),
            undecided::<oci::Hooks>(
                "hooks.",
                "prestart createRuntime createContainer startContainer poststart poststop",
            ),
            undecided::<oci::Hook>("hooks.*.", "path args env timeout"),
            undecided::<Process>(
                "process.",
                "terminal consoleSize user args env cwd capabilities rlimits noNewPrivileges oomScoreAdj \
                 scheduler ioPriority execCPUAffinity apparmorProfile selinuxLabel",
            ),
            undecided::<oci::Scheduler>("process.scheduler.", "policy nice priority flags runtime deadline period"),
            undecided::<oci::LinuxIOPriority>("process.ioPriority.", "class priority"),
            undecided::<oci::ExecCPUAffinity>("process.execCPUAffinity.", "initial final"),
            undecided::<oci::User>("process.user.", "uid gid umask additionalGids"),
            undecided::<oci::LinuxCapabilities>(
                "process.capabilities.",
                "bounding effective inheritable permitted ambient",
            ),
            undecided::<oci::PosixRlimit>("process.rlimits.", "type hard soft"),
            undecided::<Linux>(
                "linux.",
                "resources cgroupsPath namespaces uidMappings gidMappings devices maskedPaths readonlyPaths sysctl seccomp \
                 rootfsPropagation personality timeOffsets mountLabel memoryPolicy intelRdt netDevices",
            ),
            undecided::<oci::LinuxNetDevice>("linux.netDevices.*.", "name"),
            // The last two are no fields of the specification, which writes CMT and MBM: `load` refuses those.
            undecided::<oci::LinuxIntelRdt>(
                "linux.intelRdt.",
                "closID schemata l3CacheSchema memBwSchema enableMonitoring enableCmt enableMbm",
            ),
            undecided::<oci::LinuxTimeOffset>("linux.timeOffsets.*.", "secs nanosecs"),
            undecided::<oci::LinuxMemoryPolicy>("linux.memoryPolicy.", "mode nodes flags"),
            undecided::<oci::LinuxPersonality>("linux.personality.", "domain flags"),
            undecided::<oci::LinuxSeccomp>(
                "linux.seccomp.",
                "defaultAction defaultErrnoRet architectures flags syscalls listenerPath listenerMetadata",
            ),
            undecided::<oci::LinuxSyscall>("linux.seccomp.syscalls.", "names action errnoRet args"),
            undecided::<oci::LinuxSeccompArg>("linux.seccomp.syscalls.args.", "index value valueTwo op"),
            undecided::<oci::LinuxNamespace>("linux.namespaces.", "type path"),
            undecided::<oci::LinuxDevice>("linux.devices.", "path type major minor fileMode uid gid"),
            undecided::<oci::LinuxResources>(
                "linux.resources.",
                "devices memory cpu pids blockIO hugepageLimits network rdma unified",
            ),
            undecided::<oci::LinuxDeviceCgroup>("linux.resources.devices.", "allow type major minor access"),
            undecided::<oci::LinuxMemory>(
                "linux.resources.memory.",
                "limit reservation swap swappiness disableOOMKiller kernel kernelTCP useHierarchy checkBeforeUpdate",
            ),
            undecided::<oci::LinuxCpu>(
                "linux.resources.cpu.",
                "shares quota period realtimeRuntime realtimePeriod cpus mems burst idle",
            ),
            undecided::<oci::LinuxBlockIo>(
                "linux.resources.blockIO.",
                "weight leafWeight weightDevice throttleReadBpsDevice throttleWriteBpsDevice throttleReadIOPSDevice \
                 throttleWriteIOPSDevice",
            ),
            undecided::<oci::LinuxWeightDevice>(
                "linux.resources.blockIO.weightDevice.",
                "major minor weight leafWeight",
            ),
            undecided::<oci::LinuxThrottleDevice>("linux.resources.blockIO.throttle*.", "major minor rate"),
            undecided::<oci::LinuxHugepageLimit>("linux.resources.hugepageLimits.", "pageSize limit"),
            undecided::<oci::LinuxNetwork>("linux.resources.network.", "classID priorities"),
            undecided::<oci::LinuxInterfacePriority>("linux.resources.network.priorities.", "name priority"),
            undecided::<oci::LinuxRdma>("linux.resources.rdma.", "hcaHandles hcaObjects"),
            undecided::<oci::LinuxPids>("linux.resources.pids.", "limit"),
        ];
        assert_eq!(all.concat(), [] as [String; 0]);
        assert_eq!(undecided::<oci::ExecCPUAffinity>("", "initial final"), [] as [String; 0]);
    }
}
