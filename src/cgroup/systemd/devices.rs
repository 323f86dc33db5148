//! Device rules as systemd has them: all is denied but what a list allows. Pure.
//!
//! systemd's rules are in force beside ours: what either denies is denied. On v1 they are the same file, which systemd writes
//! anew at its time.

use oci_spec::runtime::LinuxDeviceCgroup;

use super::limits::Host;
use super::property::{Property, Value};
use crate::cgroup::devices::device_knobs;
use crate::cgroup::hierarchy::Version;
use crate::cgroup::knobs::Knob;

/// DevicePolicy and DeviceAllow for these rules.
///
/// Where systemd cannot say what they say, it says less on v1, where it is to allow no more than they do, and nothing on
/// v2, where our own program judges every access.
pub fn properties(rules: &[LinuxDeviceCgroup], host: &Host<'_>) -> Vec<Property> {
    let knobs = device_knobs(rules).unwrap_or_default();
    let (policy, allow) = match &knobs[..] {
        [all] if all.file == "devices.allow" => ("auto", Vec::new()),
        [all, allowed @ ..] if all.file == "devices.deny" => {
            let entries: Vec<_> = allowed.iter().map(|knob| entry(knob, host.proc_devices)).collect();
            if host.version == Version::V2 && entries.contains(&None) {
                ("auto", Vec::new())
            } else {
                ("strict", entries.into_iter().flatten().collect())
            }
        }
        _ if host.version == Version::V2 => ("auto", Vec::new()),
        _ => ("strict", Vec::new()),
    };
    // The list is added to: an empty one empties it.
    let mut properties = vec![
        Property::new("DevicePolicy", Value::Text(policy.to_owned())),
        Property::new("DeviceAllow", Value::Pairs(Vec::new())),
    ];
    if !allow.is_empty() {
        properties.push(Property::new("DeviceAllow", Value::Pairs(allow)));
    }
    properties
}

/// A line of devices.allow (`c 1:3 rwm`) as an entry of DeviceAllow: by the path that systemd reads a number from, by the
/// name of the driver's whole group, or all of a kind.
fn entry(knob: &Knob, proc_devices: &str) -> Option<(String, String)> {
    let mut words = knob.value.split(' ');
    let (kind, number, access) = (words.next()?, words.next()?, words.next()?);
    let kind = if kind == "b" { "block" } else { "char" };
    let device = match number.split_once(':')? {
        ("*", "*") => format!("{kind}-*"),
        ("*", _) => return None,
        (major, "*") => format!("{kind}-{}", group(proc_devices, kind, major)?),
        (major, minor) => format!("/dev/{kind}/{major}:{minor}"),
    };
    Some((device, access.to_owned()))
}

/// The name under which /proc/devices has a major number. It must be the only one of that name, which systemd goes by.
fn group<'t>(proc_devices: &'t str, kind: &str, major: &str) -> Option<&'t str> {
    let title = if kind == "block" { "Block devices:" } else { "Character devices:" };
    let lines = proc_devices.lines().skip_while(|line| line.trim() != title).skip(1);
    let rows: Vec<(&str, &str)> =
        lines.take_while(|line| !line.trim().is_empty()).filter_map(|line| line.trim().split_once(' ')).collect();
    let mut names = rows.iter().filter(|(number, _)| *number == major).map(|(_, name)| *name);
    let (name, another) = (names.next()?, names.next());
    let alone = rows.iter().filter(|(_, other)| *other == name).count() == 1;
    // systemd takes it for a pattern (fnmatch(3)).
    (another.is_none() && alone && !name.contains(['*', '?', '[', '\\'])).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxResources;

    const PROC_DEVICES: &str = "Character devices:\n  1 mem\n  4 /dev/vc/0\n  4 tty\n  5 ttyS\n  6 ttyS\n136 pts\n\n\
                                Block devices:\n  7 loop\n  8 sd\n";

    fn of(version: Version, rules: &str) -> (String, Vec<(String, String)>) {
        let resources: LinuxResources = serde_json::from_str(&format!(r#"{{"devices":{rules}}}"#)).unwrap();
        let host = Host { version, systemd: 252, proc_devices: PROC_DEVICES, block_device: &|_| None };
        let properties = properties(resources.devices().as_deref().unwrap_or_default(), &host);
        let Value::Text(policy) = &properties[0].value else { panic!("{properties:?}") };
        assert_eq!(properties[1], Property::new("DeviceAllow", Value::Pairs(vec![])), "the list is emptied first");
        let allow = match properties.get(2).map(|property| &property.value) {
            Some(Value::Pairs(pairs)) => pairs.clone(),
            None => vec![],
            other => panic!("{other:?}"),
        };
        (policy.clone(), allow)
    }

    fn has(list: &[(String, String)], device: &str, access: &str) -> bool {
        list.contains(&(device.to_owned(), access.to_owned()))
    }

    const DENY_ALL: &str = r#"{"allow":false,"access":"rwm"}"#;

    #[test]
    fn allowed_devices_are_a_list() {
        let rules = format!(
            r#"[{DENY_ALL},{{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}},
                {{"allow":true,"type":"b","major":8,"access":"rw"}}]"#
        );
        for version in [Version::V1, Version::V2] {
            let (policy, allow) = of(version, &rules);
            assert_eq!(policy, "strict");
            let rows = [
                ("/dev/char/1:11", "r"),
                ("block-sd", "rw"),
                ("char-*", "m"),
                ("block-*", "m"),
                ("/dev/char/1:3", "rwm"),
                ("char-pts", "rwm"),
            ];
            for (device, access) in rows {
                assert!(has(&allow, device, access), "{device} in {allow:?}");
            }
            assert!(!allow.iter().any(|(device, _)| device == "/dev/char/5:1"), "the host's console");
        }
    }

    #[test]
    fn all_devices_are_no_list() {
        assert_eq!(of(Version::V1, r#"[{"allow":true,"access":"rwm"}]"#), ("auto".to_owned(), vec![]));
    }

    /// What systemd cannot say: on v1 less than asked for, never more; on v2 it is left to our program.
    #[test]
    fn what_systemd_cannot_say_is_not_opened() {
        let no_name = |major: u32| format!(r#"[{DENY_ALL},{{"allow":true,"type":"c","major":{major},"access":"rw"}}]"#);
        // Unknown; of two names; of a name that is another's too.
        for rules in [no_name(99), no_name(4), no_name(5)] {
            let (policy, allow) = of(Version::V1, &rules);
            assert!(
                policy == "strict" && has(&allow, "char-pts", "rwm") && !has(&allow, "char-tty", "rw"),
                "{allow:?}"
            );
            assert!(!has(&allow, "char-ttyS", "rw"), "{allow:?}");
            assert_eq!(of(Version::V2, &rules), ("auto".to_owned(), vec![]), "{rules}");
        }
        let but_one = r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"w"}]"#;
        assert_eq!(of(Version::V1, but_one), ("strict".to_owned(), vec![]));
        assert_eq!(of(Version::V2, but_one), ("auto".to_owned(), vec![]));
        // What v1 cannot say at all.
        let hole =
            r#"[{"allow":true,"type":"c","access":"rwm"},{"allow":false,"type":"c","major":1,"minor":3,"access":"w"}]"#;
        assert_eq!(of(Version::V1, hole), ("strict".to_owned(), vec![]));
        assert_eq!(of(Version::V2, hole), ("auto".to_owned(), vec![]));
    }
}
