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
    use crate::spec::implemented::FIELDS;
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
        super::super::validate(&serde_json::from_value(document.clone()).unwrap()).map(drop)
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

    /// The fields of `T` that are neither in the list of what is implemented, nor refused.
    fn undecided<'de, T: Deserialize<'de>>(prefix: &'static str) -> Vec<String> {
        let mut fields = Vec::new();
        assert!(T::deserialize(Fields(&mut fields)).is_err());
        assert!(!fields.is_empty(), "{prefix}");
        let row = FIELDS.iter().find(|(known, _)| *known == prefix);
        let implemented: Vec<_> = row.unwrap_or_else(|| panic!("{prefix}")).1.split_whitespace().collect();
        for word in &implemented {
            assert!(fields.contains(word), "{prefix}{word} is no field");
        }
        let refused: Vec<_> = examples().into_iter().map(|(name, ..)| name).collect();
        let paths = fields.into_iter().filter(|field| !implemented.contains(field));
        let paths = paths.map(|field| format!("{prefix}{field}"));
        paths.filter(|path| !refused.contains(&&**path) && !ELSEWHERE.contains(&&**path)).collect()
    }

    /// They have never been in the specification: the crate has dropped the first two from its own use; the specification
    /// writes enableCMT and enableMBM, which `load` refuses.
    const ELSEWHERE: [&str; 4] = ["uidMappings", "gidMappings", "linux.intelRdt.enableCmt", "linux.intelRdt.enableMbm"];

    /// An update of the crate that brings new fields fails here until each is decided on.
    #[test]
    fn every_field_of_the_types_is_implemented_or_refused() {
        let all = [
            undecided::<Spec>(""),
            undecided::<oci::Root>("root."),
            undecided::<oci::Mount>("mounts."),
            undecided::<oci::Hooks>("hooks."),
            undecided::<oci::Hook>("hooks.*."),
            undecided::<Process>("process."),
            undecided::<oci::Box>("process.consoleSize."),
            undecided::<oci::Scheduler>("process.scheduler."),
            undecided::<oci::LinuxIOPriority>("process.ioPriority."),
            undecided::<oci::ExecCPUAffinity>("process.execCPUAffinity."),
            undecided::<oci::User>("process.user."),
            undecided::<oci::LinuxCapabilities>("process.capabilities."),
            undecided::<oci::PosixRlimit>("process.rlimits."),
            undecided::<Linux>("linux."),
            undecided::<oci::LinuxIdMapping>("linux.uidMappings."),
            undecided::<oci::LinuxNetDevice>("linux.netDevices.*."),
            undecided::<oci::LinuxIntelRdt>("linux.intelRdt."),
            undecided::<oci::LinuxTimeOffset>("linux.timeOffsets."),
            undecided::<oci::LinuxMemoryPolicy>("linux.memoryPolicy."),
            undecided::<oci::LinuxPersonality>("linux.personality."),
            undecided::<oci::LinuxSeccomp>("linux.seccomp."),
            undecided::<oci::LinuxSyscall>("linux.seccomp.syscalls."),
            undecided::<oci::LinuxSeccompArg>("linux.seccomp.syscalls.args."),
            undecided::<oci::LinuxNamespace>("linux.namespaces."),
            undecided::<oci::LinuxDevice>("linux.devices."),
            undecided::<oci::LinuxResources>("linux.resources."),
            undecided::<oci::LinuxDeviceCgroup>("linux.resources.devices."),
            undecided::<oci::LinuxMemory>("linux.resources.memory."),
            undecided::<oci::LinuxCpu>("linux.resources.cpu."),
            undecided::<oci::LinuxBlockIo>("linux.resources.blockIO."),
            undecided::<oci::LinuxWeightDevice>("linux.resources.blockIO.weightDevice."),
            undecided::<oci::LinuxThrottleDevice>("linux.resources.blockIO.throttle*."),
            undecided::<oci::LinuxHugepageLimit>("linux.resources.hugepageLimits."),
            undecided::<oci::LinuxNetwork>("linux.resources.network."),
            undecided::<oci::LinuxInterfacePriority>("linux.resources.network.priorities."),
            undecided::<oci::LinuxRdma>("linux.resources.rdma."),
            undecided::<oci::LinuxPids>("linux.resources.pids."),
        ];
        assert_eq!(all.len(), FIELDS.len());
        assert_eq!(all.concat(), [] as [String; 0]);
    }
}
