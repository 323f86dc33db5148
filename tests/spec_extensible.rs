//! What a specification may have that this version does not know: annotations and unknown fields pass, unknown values of
//! known fields are refused by their names.

use common::container::{refused, run};
use serde_json::{Value, json};
use ttrpc::Code;

/// The value at a path of keys and indices (`a.b.0.c`), made where it is missing.
fn at<'a>(spec: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(spec, |value, key| match key.parse::<usize>() {
        Ok(index) => {
            if value.is_null() {
                *value = json!([]);
            }
            let list = value.as_array_mut().expect("a list");
            if list.len() <= index {
                list.resize(index + 1, Value::Null);
            }
            &mut list[index]
        }
        Err(_) => &mut value[key],
    })
}

/// In every object that a default specification has, and the container is none the worse.
///
/// Proves: annotations
#[test]
fn annotations_and_unknown_fields_pass() {
    fn extend(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(extend);
                map.insert("org.example.unknown".into(), json!({"of": ["any", {"shape": 1}]}));
            }
            Value::Array(list) => list.iter_mut().for_each(extend),
            _ => {}
        }
    }
    let ended = run(|bundle| {
        bundle.script("echo $0; hostname").edit(|spec| {
            spec["hostname"] = json!("known");
            spec["hooks"] = json!({"poststart": [{"path": "/bin/true", "args": ["true"]}]});
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
            extend(spec);
            spec["annotations"] = json!({"org.example/one": "", "two": "\u{e4}\n", "three": "x".repeat(100_000)});
        })
    });
    assert_eq!(ended.ok(), "sh\nknown\n");
}

/// Proves: ociVersion
#[test]
fn every_version_1_passes_and_no_other() {
    for version in ["1.0.0", "1.0.2-dev", "1.3.0", "1.99.0"] {
        assert_eq!(
            run(|bundle| bundle.script("echo ran").edit(|spec| spec["ociVersion"] = json!(version))).ok(),
            "ran\n"
        );
    }
    for version in ["", "1", "0.9.0", "2.0.0", "one"] {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["ociVersion"] = json!(version)));
        refusal.names(Code::INVALID_ARGUMENT, &["ociVersion", version]);
    }
}

/// Before any effect (`refused` sees to it). The field's last name and the value are in the message; what is no list of
/// names, such as a mount's options, is the file system's to judge. (seccomp and time have tests of their own.)
#[test]
fn unknown_values_of_known_fields_are_refused_by_name() {
    for (path, value, code, words) in [
        ("linux.namespaces.0.type", json!("moon"), Code::INVALID_ARGUMENT, ["linux.namespaces[0].type", "moon"]),
        (
            "process.rlimits.0.type",
            json!("RLIMIT_LUCK"),
            Code::INVALID_ARGUMENT,
            ["process.rlimits[0].type", "RLIMIT_LUCK"],
        ),
        (
            "process.scheduler",
            json!({"policy": "SCHED_LUCK"}),
            Code::INVALID_ARGUMENT,
            ["process.scheduler.policy", "SCHED_LUCK"],
        ),
        (
            "process.scheduler",
            json!({"policy": "SCHED_ISO"}),
            Code::UNIMPLEMENTED,
            ["process.scheduler.policy", "SCHED_ISO"],
        ),
        (
            "process.scheduler",
            json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_LUCK"]}),
            Code::INVALID_ARGUMENT,
            ["process.scheduler.flags[0]", "SCHED_FLAG_LUCK"],
        ),
        (
            "process.ioPriority",
            json!({"class": "IOPRIO_CLASS_LUCK", "priority": 0}),
            Code::INVALID_ARGUMENT,
            ["process.ioPriority.class", "IOPRIO_CLASS_LUCK"],
        ),
        (
            "linux.personality",
            json!({"domain": "LINUX64"}),
            Code::INVALID_ARGUMENT,
            ["linux.personality.domain", "LINUX64"],
        ),
        (
            "linux.memoryPolicy",
            json!({"mode": "MPOL_LUCK"}),
            Code::INVALID_ARGUMENT,
            ["linux.memoryPolicy.mode", "MPOL_LUCK"],
        ),
        (
            "linux.memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_LUCK"]}),
            Code::INVALID_ARGUMENT,
            ["linux.memoryPolicy.flags[0]", "MPOL_F_LUCK"],
        ),
        ("linux.rootfsPropagation", json!("lucky"), Code::INVALID_ARGUMENT, ["linux.rootfsPropagation", "lucky"]),
        (
            "linux.devices",
            json!([{"path": "/dev/x", "type": "x", "major": 1, "minor": 1}]),
            Code::INVALID_ARGUMENT,
            ["linux.devices[0].type", "`x`"],
        ),
        (
            "linux.resources.devices",
            json!([{"allow": true, "type": "x", "access": "r"}]),
            Code::INVALID_ARGUMENT,
            ["linux.resources.devices[0].type", "`x`"],
        ),
        (
            "linux.resources.devices",
            json!([{"allow": true, "access": "rx"}]),
            Code::INVALID_ARGUMENT,
            ["linux.resources.devices[0]", "'x'"],
        ),
        ("mounts.1.type", json!("luckyfs"), Code::INVALID_ARGUMENT, ["mounts[1]", "luckyfs"]),
        (
            "mounts.1",
            json!({"destination": "/x", "type": "bind", "source": "/tmp", "options": ["rbind", "lucky"]}),
            Code::INVALID_ARGUMENT,
            ["mounts[1]", "lucky"],
        ),
    ] {
        let refusal = refused(|bundle| bundle.edit(|spec| *at(spec, path) = value));
        refusal.names(code, &words);
    }
    // What a file system of its own has no word for, the kernel says.
    let tmpfs = json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["lucky=1"]});
    let refusal = refused(|bundle| bundle.mount(tmpfs));
    assert!(refusal.message.contains("/x") && refusal.message.contains("lucky"), "{refusal:?}");
}
