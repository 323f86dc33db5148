//! linux.sysctl: set in the container's namespaces, never in the host's.

use std::fs;

use common::container::{refused, run_script};
use serde_json::{Value, json};
use ttrpc::Code;

fn set(sysctls: Value) -> impl FnOnce(&mut Value) {
    move |spec| spec["linux"]["sysctl"] = sysctls
}

/// The value in the test's own namespaces.
fn ours(file: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{file}")).unwrap_or_else(|e| panic!("{file}: {e}"))
}

const READ: &str = "cd /proc/sys; cat kernel/shmmax kernel/msgmax fs/mqueue/msg_max net/ipv4/ping_group_range \
                    net/ipv4/conf/lo/forwarding kernel/domainname";

/// Proves: linux.sysctl
#[test]
fn each_kind_is_set_in_the_container_and_nowhere_else() {
    let files = ["kernel/shmmax", "kernel/msgmax", "fs/mqueue/msg_max", "kernel/domainname"];
    let before = files.map(ours);
    let ended = run_script(
        READ,
        set(json!({
            "kernel.shmmax": "123456",
            "kernel/msgmax": "12345",
            "fs.mqueue.msg_max": "77",
            "net.ipv4.ping_group_range": "5 6",
            "net/ipv4/conf/lo/forwarding": "1",
            "kernel.domainname": "example.org",
        })),
    );
    assert_eq!(ended.lines(), ["123456", "12345", "77", "5\t6", "1", "example.org"]);
    assert_eq!(files.map(ours), before);
}

/// Before the identity and the capabilities are the container's, of which none allows it.
#[test]
fn it_takes_no_right_of_the_containers() {
    let ended = run_script("cd /proc/sys/net/ipv4; cat ip_default_ttl; echo 64 >ip_default_ttl", |spec| {
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "77"});
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["process"]["capabilities"] = Value::Null;
    });
    assert_eq!(ended.stdout, "77\n");
    assert!(ended.status != 0, "{ended:#?}");
}

#[test]
fn what_is_the_hosts_is_refused_by_its_name() {
    for (name, without) in [
        ("kernel.core_pattern", None),
        ("vm.swappiness", None),
        ("kernel.hostname", None),
        ("net.ipv4.ip_forward", Some("network")),
        ("kernel.shmmax", Some("ipc")),
        ("fs.mqueue.msg_max", Some("ipc")),
        ("net/../kernel/core_pattern", None),
    ] {
        let refusal = refused(|bundle| {
            let bundle = bundle.edit(set(json!({name: "1"})));
            without.into_iter().fold(bundle, |bundle, kind| bundle.without_namespace(kind))
        });
        refusal.names(Code::INVALID_ARGUMENT, &["linux.sysctl", name]);
    }
}

/// Joined by a path, a namespace may be the host's all the same: directly, or by a bind mount of it.
#[test]
fn the_hosts_namespace_joined_by_a_path_is_the_hosts() {
    let before = ours("net/ipv4/ip_forward");
    let refusal = refused(|bundle| {
        bundle.edit(|spec| {
            for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!("/proc/self/ns/net");
                }
            }
            let other = if before.trim() == "1" { "0" } else { "1" };
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": other});
        })
    });
    refusal.names(Code::INVALID_ARGUMENT, &["linux.sysctl", "ip_forward"]);
    assert_eq!(ours("net/ipv4/ip_forward"), before);
}

#[test]
fn what_the_kernel_does_not_take_is_an_error_with_its_name() {
    let refusal = refused(|bundle| bundle.edit(set(json!({"net.ipv4.no_such_thing": "1"}))));
    refusal.names(Code::INVALID_ARGUMENT, &["net/ipv4/no_such_thing", "no such file"]);
    let refusal = refused(|bundle| bundle.edit(set(json!({"net.ipv4.ip_forward": "many"}))));
    refusal.names(Code::INVALID_ARGUMENT, &["net/ipv4/ip_forward=many"]);
}
