//! linux.namespaces: new ones, the host's, and ones joined by path; hostname.

use std::fs::File;
use std::os::fd::AsRawFd;

use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, namespace_of, refused, run_script};
use serde_json::{Value, json};
use ttrpc::Code;

/// The types of the specification and the names in /proc/PID/ns.
const KINDS: [(&str, &str); 6] =
    [("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("mount", "mnt"), ("network", "net"), ("cgroup", "cgroup")];

fn set_namespaces(spec: &mut Value, namespaces: &[(&str, Option<&str>)]) {
    let entry = |(kind, path): &(&str, Option<&str>)| match path {
        Some(path) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    };
    spec["linux"]["namespaces"] = namespaces.iter().map(entry).collect();
}

/// All kinds new, but one by path.
fn join_one(spec: &mut Value, joined: &str, path: &str) {
    let entry = |(kind, _): &(&'static str, &str)| (*kind, (*kind == joined).then_some(path));
    set_namespaces(spec, &KINDS.iter().map(entry).collect::<Vec<_>>());
}

#[test]
fn new_namespaces_are_not_the_hosts_and_init_is_pid_1() {
    block_on(async {
        let host = Host::new();
        let all = KINDS.map(|(kind, _)| (kind, None));
        let bundle = host.bundle("one").edit(|spec| set_namespaces(spec, &all)).script("echo $$");
        let container = host.create(&bundle).await;
        for (_, name) in KINDS {
            assert_ne!(container.namespace(name), namespace_of("self", name));
        }
        assert_eq!(container.run().await.ok(), "1\n");
    });
}

#[test]
fn namespaces_that_are_not_listed_are_the_hosts() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").edit(|spec| set_namespaces(spec, &[("mount", None)])).script("echo $$");
        let container = host.create(&bundle).await;
        for (kind, name) in KINDS {
            assert_eq!(container.namespace(name) == namespace_of("self", name), kind != "mount", "{kind}");
        }
        assert_eq!(container.namespace("user"), namespace_of("self", "user"));
        let pid = container.pid;
        assert_eq!(container.run().await.ok(), format!("{pid}\n"));
    });
}

#[test]
fn the_loopback_interface_of_a_new_network_namespace_is_up() {
    let script = "ip -o link | cut -d' ' -f2,3; ping -c 1 -W 10 127.0.0.1 | grep received";
    let out = run_script(script, |_| ()).ok();
    // One interface (some kernels add tunnels, down), up.
    assert!(out.starts_with("lo: <LOOPBACK,UP,LOWER_UP>\n"), "{out}");
    assert!(out.contains("1 packets received"), "{out}");
}

/// Proves: hostname
#[test]
fn the_host_name_is_set_in_the_new_namespace_alone() {
    let before = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let name = "h".repeat(64);
    assert_eq!(run_script("hostname", |spec| spec["hostname"] = json!(name)).ok(), format!("{name}\n"));
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

/// Each kind alone, from a running container.
#[test]
fn each_kind_is_joined_by_path() {
    block_on(async {
        let host = Host::new();
        let all = KINDS.map(|(kind, _)| (kind, None));
        let first = host.bundle("one").edit(|spec| set_namespaces(spec, &all)).args(&["sleep", "1000"]);
        let first = host.start(&first).await;
        for (kind, name) in KINDS {
            let path = format!("/proc/{}/ns/{name}", first.pid);
            let other_host = Host::new();
            let bundle = other_host.bundle("two").edit(|spec| join_one(spec, kind, &path));
            let second = other_host.create(&bundle).await;
            for (other, other_name) in KINDS {
                let same = second.namespace(other_name) == first.namespace(other_name);
                assert_eq!(same, other == kind, "{other} of one that joins {kind}");
                assert_ne!(second.namespace(other_name), namespace_of("self", other_name), "{other}");
            }
            // The root of a joined mount namespace is the other container's, whose /proc tells nothing of this pid.
            second.run().await.ok();
        }
        first.end().await;
    });
}

#[test]
fn containers_that_share_a_pid_namespace_see_each_other() {
    block_on(async {
        let host = Host::new();
        let first = host.bundle("one").args(&["sleep", "1001"]);
        let first = host.start(&first).await;
        let path = format!("/proc/{}/ns/pid", first.pid);
        let script = "echo $$; cat /proc/1/cmdline | tr '\\0' ' '; ps -o pid,args | grep -c 'slee[p] 1001'";
        let other_host = Host::new();
        let second = other_host.bundle("two").edit(|spec| join_one(spec, "pid", &path)).script(script);
        let second = other_host.create(&second).await;
        let status = second.proc("status");
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("NSpid");
        let inner = pids.split_whitespace().nth(1).expect("nested pid").to_string();
        assert_ne!(inner, "1");
        assert_eq!(second.run().await.ok(), format!("{inner}\nsleep 1001 1\n"));
        // Its end was not the other's.
        assert_eq!(first.exec_script("alive", "echo yes").await.ok(), "yes\n");
        first.end().await;
    });
}

#[test]
fn a_joined_mount_namespace_brings_its_root() {
    block_on(async {
        let host = Host::new();
        let first = host.bundle("one").script("echo from one > /marker; echo ready; exec sleep 1000");
        let mut first = host.start(&first).await;
        first.says("ready").await;
        let path = format!("/proc/{}/ns/mnt", first.pid);
        let other_host = Host::new();
        let second = other_host.bundle("two").edit(|spec| join_one(spec, "mount", &path)).args(&["cat", "/marker"]);
        assert_eq!(other_host.run(&second).await.ok(), "from one\n");
        first.end().await;
    });
}

/// What cannot be joined fails the create with the path and the reason.
#[test]
fn paths_that_are_no_namespace_of_the_kind_are_refused() {
    block_on(async {
        let host = Host::new();
        let mut number = 0;
        let mut bundle = |kind: &str, path: &str| -> Bundle {
            number += 1;
            host.bundle(&format!("c{number}")).edit(|spec| join_one(spec, kind, path))
        };
        for (index, (kind, name)) in KINDS.into_iter().enumerate() {
            let other = format!("/proc/self/ns/{}", KINDS[(index + 1) % KINDS.len()].1);
            let refusal = host.refused(&bundle(kind, &other)).await;
            refusal.names(Code::INVALID_ARGUMENT, &[name, &other, "another kind"]);
        }
        for (path, why) in [("/etc/passwd", "is not a namespace"), ("/no/such/ns", "No such file")] {
            host.refused(&bundle("network", path)).await.names(Code::INVALID_ARGUMENT, &["net", path, why]);
        }
        let refusal = host.refused(&bundle("network", "proc/1/ns/net")).await;
        refusal.names(Code::INVALID_ARGUMENT, &["not an absolute path", "proc/1/ns/net"]);
    });
}

#[test]
fn a_pid_namespace_whose_init_is_dead_is_refused() {
    block_on(async {
        let host = Host::new();
        let first = host.bundle("one").args(&["sleep", "1000"]);
        let first = host.start(&first).await;
        // The descriptor keeps the namespace itself.
        let namespace = File::open(format!("/proc/{}/ns/pid", first.pid)).unwrap();
        first.end().await;
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        let second = host.bundle("two").edit(|spec| join_one(spec, "pid", &path));
        let refusal = host.refused(&second).await;
        refusal.names(Code::FAILED_PRECONDITION, &["the init of the pid namespace has exited"]);
        // The shim itself has come back from where it could not give birth: it was able to answer and to end.
    });
}

#[test]
fn a_namespace_listed_twice_or_missing_for_what_needs_it_is_refused() {
    let twice = refused(|bundle| bundle.edit(|spec| set_namespaces(spec, &[("mount", None), ("mount", None)])));
    twice.names(Code::INVALID_ARGUMENT, &["linux.namespaces[1]", "twice"]);
    let no_mount = refused(|bundle| bundle.without_namespace("mount"));
    no_mount.names(Code::INVALID_ARGUMENT, &["mount namespace is required"]);
    let no_uts = refused(|bundle| bundle.without_namespace("uts").edit(|spec| spec["hostname"] = json!("x")));
    no_uts.names(Code::INVALID_ARGUMENT, &["hostname", "uts"]);
}
