//! Time namespaces: new ones with linux.timeOffsets, joined ones, those of execs; and the shim, which stays where it is.

use std::fs;

use common::block_on;
use common::bundle::Bundle;
use common::container::{Container, Host, namespace_of, refused};
use serde_json::{Value, json};
use ttrpc::Code;

/// A year, which no test host has been up for long enough to be mistaken for.
const YEAR: i64 = 365 * 86400;
const READ: &str = "cut -d' ' -f1 /proc/uptime; tr -s ' ' < /proc/self/timens_offsets; readlink /proc/self/ns/time";

fn timed(bundle: Bundle, path: Option<&str>, offsets: Value) -> Bundle {
    bundle.edit(|spec| {
        let entry = path.map_or(json!({"type": "time"}), |path| json!({"type": "time", "path": path}));
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(entry);
        spec["linux"]["timeOffsets"] = offsets;
    })
}

/// Both clocks, differently.
fn offsets() -> Value {
    json!({"boottime": {"secs": YEAR, "nanosecs": 7}, "monotonic": {"secs": 1000}})
}

/// That a process's lines are of a namespace with those offsets; returns the namespace.
#[track_caller]
fn offset(lines: &[String]) -> String {
    let host: f64 = fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap();
    let ahead = lines[0].parse::<f64>().unwrap() - YEAR as f64 - host;
    assert!(ahead.abs() < 60.0, "{lines:?} on a host that is up for {host}");
    assert_eq!(lines[1..3], ["monotonic 1000 0", &format!("boottime {YEAR} 7")]);
    lines[3].clone()
}

async fn shim_is_home(container: &Container<'_>) {
    let shim = container.shim.pid().await.unwrap().to_string();
    for name in ["time", "time_for_children"] {
        assert_eq!(namespace_of(&shim, name), namespace_of("self", "time"), "{name}");
    }
}

/// Proves: linux.timeOffsets.{secs,nanosecs}
#[test]
fn clocks_are_offset_in_a_new_namespace_and_in_its_execs() {
    block_on(async {
        let host = Host::new();
        let bundle = timed(host.bundle("one"), None, offsets()).script(&format!("{READ}; exec sleep 1000"));
        let mut container = host.start(&bundle).await;
        container.says("time:").await;
        shim_is_home(&container).await;
        let inside = container.namespace("time");
        assert_ne!(inside, namespace_of("self", "time"));
        assert_eq!(offset(&container.exec_script("a", READ).await.lines()), inside);
        shim_is_home(&container).await;
        // Of another container in the same shim's reach: joined.
        let path = format!("/proc/{}/ns/time", container.pid);
        let other = Host::new();
        let second = timed(other.bundle("two"), Some(&path), json!({})).args(&["sleep", "1000"]);
        let second = other.start(&second).await;
        assert_eq!(offset(&second.exec_script("b", READ).await.lines()), inside);
        shim_is_home(&second).await;
        second.end().await;
        container.end().await;
    });
}

#[test]
fn the_first_process_sees_the_offsets_and_without_any_the_hosts_clocks() {
    block_on(async {
        let host = Host::new();
        offset(&host.run(&timed(host.bundle("one"), None, offsets()).script(READ)).await.lines());
        let none = host.run(&timed(host.bundle("two"), None, Value::Null).script(READ)).await.lines();
        assert_eq!(none[1..3], ["monotonic 0 0", "boottime 0 0"]);
        assert_ne!(none[3], namespace_of("self", "time"));
        let ordinary = host.run(&host.bundle("three").script(READ)).await.lines();
        assert_eq!(ordinary[3], namespace_of("self", "time"));
    });
}

/// New, with it; and joined, with a pid namespace of its own in it, for which a helper is born in between.
#[test]
fn a_time_namespace_goes_with_a_user_namespace() {
    block_on(async {
        let host = Host::new();
        let bundle = timed(host.bundle("one").user_namespace(100_000), None, offsets()).args(&["sleep", "1000"]);
        let first = host.start(&bundle).await;
        let inside = first.namespace("time");
        assert_eq!(offset(&first.exec_script("a", READ).await.lines()), inside);
        let path = format!("/proc/{}/ns/user", first.pid);
        let other = Host::new();
        let second = timed(other.bundle("two").user_namespace(100_000), None, offsets()).edit(|spec| {
            for entry in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                if entry["type"] == "user" {
                    entry["path"] = json!(path);
                }
            }
            let linux = spec["linux"].as_object_mut().unwrap();
            linux.remove("uidMappings");
            linux.remove("gidMappings");
        });
        let second = second.args(&["sleep", "1000"]);
        let second = other.start(&second).await;
        assert_eq!(second.namespace("user"), first.namespace("user"));
        let own = offset(&second.exec_script("b", READ).await.lines());
        assert!(own == second.namespace("time") && own != inside);
        shim_is_home(&second).await;
        second.end().await;
        first.end().await;
    });
}

#[test]
fn offsets_that_cannot_be_are_refused() {
    let unknown = refused(|bundle| timed(bundle, None, json!({"realtime": {"secs": 1}})));
    unknown.names(Code::INVALID_ARGUMENT, &["linux.timeOffsets", "realtime"]);
    let joined = refused(|bundle| timed(bundle, Some("/proc/self/ns/time"), offsets()));
    joined.names(Code::INVALID_ARGUMENT, &["linux.timeOffsets", "joined"]);
    let alone = refused(|bundle| bundle.edit(|spec| spec["linux"]["timeOffsets"] = offsets()));
    alone.names(Code::INVALID_ARGUMENT, &["linux.timeOffsets", "time namespace"]);
    // Before the machine was started: the kernel's to refuse, after the shim has left its own.
    let before = refused(|bundle| timed(bundle, None, json!({"boottime": {"secs": -100 * YEAR}})));
    before.names(Code::INVALID_ARGUMENT, &["linux.timeOffsets", "timens_offsets"]);
}
