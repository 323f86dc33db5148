//! Pods, by containerd's CRI plugin, as the kubelet runs them: what they are made of, and what is said of them. Each test
//! has a containerd of its own and ends with a look at what is left.

mod common;

use common::containerd::{PATIENCE, cgroup_value, describe, eventually, parent_of, send_signal};
use common::cri::grpc::{DEADLINE_EXCEEDED, NOT_FOUND};
use common::cri::{BY_PATH, Cri, IDLE, Output, Pod, log_lines};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Instant;

on_each_containerd! {
    a_pod_has_one_shim,
    a_runtime_path_in_runcs_place_is_as_good,
    exec_sync_returns_output_and_status,
    exec_sync_ends_what_outlives_its_timeout,
    many_probes_at_once_do_not_mix,
    exec_streams_both_ways,
    attach_reaches_the_container,
    logs_are_tagged_and_reopened,
    stats_tell_of_each_container_and_the_pod,
    resources_are_set_and_updated,
    a_container_is_told_its_surroundings,
    containers_of_a_pod_share_what_it_says,
    the_pid_namespace_of_a_pod_or_container_is_shared,
    the_hosts_namespaces_are_joined,
    the_security_context_is_obeyed,
    a_privileged_container_has_the_hosts_devices,
    sysctls_are_the_pods,
    too_much_memory_is_reported_as_oomkilled,
    a_container_is_stopped_by_sigterm_then_sigkill,
    a_container_that_cannot_start_is_reported_and_replaced,
    pods_survive_containerds_death,
    a_killed_shim_leaves_nothing,
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The link that names a namespace of a process.
fn namespace(pid: u32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().to_str().unwrap().into()
}

/// A namespace of the host's.
fn host(name: &str) -> String {
    namespace(std::process::id(), name)
}

/// A container's part of a configuration: its security context.
fn secured(context: Value) -> Value {
    json!({"linux": {"security_context": context}})
}

fn limited(resources: Value) -> Value {
    json!({"linux": {"resources": resources}})
}

fn a_pod_has_one_shim(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let shims = cri.containerd.shims();
    assert_eq!(shims.len(), 1, "{:?}", shims.iter().map(|pid| describe(*pid)).collect::<Vec<_>>());
    let first = cri.run(&pod, "first", IDLE, json!({}));
    let second = cri.run(&pod, "second", IDLE, json!({}));
    assert_eq!(cri.containerd.shims(), shims);
    for id in [&pod.id, &first, &second] {
        assert_eq!(parent_of(cri.pid(id)), Some(shims[0]));
    }
    let pod_status = &cri.call("PodSandboxStatus", &json!({"pod_sandbox_id": pod.id}))["status"];
    assert_eq!(pod_status["state"], "SANDBOX_READY", "{pod_status}");
    assert_eq!(pod_status["network"]["ip"], "198.51.100.2");
    for id in [&first, &second] {
        let status = cri.status(id);
        assert_eq!(status["state"], "CONTAINER_RUNNING", "{status}");
        assert!(status["started_at"].as_str().unwrap() >= status["created_at"].as_str().unwrap(), "{status}");
    }
    // One ends; the pod and the other live on.
    cri.call("StopContainer", &json!({"container_id": first, "timeout": "20"}));
    assert_eq!(cri.status(&first)["state"], "CONTAINER_EXITED");
    cri.call("RemoveContainer", &json!({"container_id": first}));
    assert_eq!(cri.try_call("ContainerStatus", &json!({"container_id": first})).unwrap_err().code, NOT_FOUND);
    assert_eq!(cri.sh(&second, "echo alive"), "alive");
    assert_eq!(cri.containerd.shims(), shims);
    // Removed by the pod, though it runs.
    cri.remove_all(&[pod]);
}

fn a_runtime_path_in_runcs_place_is_as_good(cri: Cri) {
    if cri.containerd.module() == "containerd_1_6" {
        return cri.containerd.skip("its CRI plugin takes no notice of runtime_path");
    }
    let pod = cri.run_pod_by(BY_PATH, "pod", json!({}));
    let shims = cri.containerd.shims();
    // The shim is that of the path, not runc's of the name: its executable is a mount or a memfd of its own.
    let command = describe(shims[0]);
    assert!(command.contains(" containerd-shim-dray-v2 "), "{command}");
    let id = cri.run(&pod, "container", IDLE, limited(json!({"memory_limit_in_bytes": "67108864"})));
    assert_eq!(cri.containerd.shims(), shims);
    assert_eq!(cri.sh(&id, "echo hello"), "hello");
    let limit = cgroup_value(&cri.containerd.cgroup_of(&id), "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, "67108864");
    cri.remove_all(&[pod]);
}

fn exec_sync_returns_output_and_status(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let id =
        cri.run(&pod, "container", IDLE, json!({"envs": [{"key": "FROM", "value": "spec"}], "working_dir": "/tmp"}));
    let output = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output, Output { code: 7, stdout: "out\n".into(), stderr: "err\n".into() });
    assert_eq!(cri.sh(&id, "echo $FROM; pwd; id -u"), "spec\n/tmp\n0");
    // It is in the container, in its cgroup too.
    assert_eq!(cri.sh(&id, "readlink /proc/self/ns/pid"), namespace(cri.pid(&id), "pid"));
    assert!(cri.sh(&id, "cat /proc/self/cgroup").contains("memory"), "no cgroup");
    let lines: String = (0..100_000).map(|i| format!("{}\n", i + 1)).collect();
    assert!(cri.exec(&id, &["seq", "100000"]).stdout == lines);
    assert_eq!(cri.exec(&id, &["sh", "-c", "kill -KILL $$"]).code, 137);
    let missing = cri.try_exec(&id, &["nosuchprogram"], 0).unwrap_err();
    assert!(missing.message.contains("nosuchprogram") && missing.message.contains("not found"), "{missing:?}");
    // It has ended with its container.
    cri.call("StopContainer", &json!({"container_id": id, "timeout": "20"}));
    assert!(cri.try_exec(&id, &["true"], 0).is_err());
    cri.remove_all(&[pod]);
}

fn exec_sync_ends_what_outlives_its_timeout(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let id = cri.run(&pod, "container", IDLE, json!({}));
    let script = ["sh", "-c", "echo $$ >/tmp/probe; trap '' TERM INT; while :; do :; done"];
    let start = Instant::now();
    let refused = cri.try_exec(&id, &script, 1).unwrap_err();
    assert_eq!(refused.code, DEADLINE_EXCEEDED, "{refused:?}");
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    let probe = cri.sh(&id, "cat /tmp/probe");
    assert_eq!(cri.sh(&id, &format!("test ! -e /proc/{probe} || grep State /proc/{probe}/status")), "");
    // One that ends in time is not touched by the limit.
    assert_eq!(cri.try_exec(&id, &["true"], 60).unwrap().code, 0);
    assert_eq!(cri.status(&id)["state"], "CONTAINER_RUNNING");
    cri.remove_all(&[pod]);
}

fn many_probes_at_once_do_not_mix(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let ids = ["a", "b"].map(|name| cri.run(&pod, name, IDLE, json!({"envs": [{"key": "NAME", "value": name}]})));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (cri, id, name) = (&cri, &ids[thread % 2], ["a", "b"][thread % 2]);
            scope.spawn(move || {
                for round in 0..10 {
                    let output = cri.exec(id, &["sh", "-c", &format!("echo $NAME {thread}.{round}; exit {round}")]);
                    let expected = format!("{name} {thread}.{round}\n");
                    assert_eq!(output, Output { code: round, stdout: expected, stderr: String::new() });
                }
            });
        }
    });
    cri.remove_all(&[pod]);
}

fn exec_streams_both_ways(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let id = cri.run(&pod, "container", IDLE, json!({}));
    let mut session =
        cri.exec_stream(&id, &["sh", "-c", "echo ready; read line; echo got $line; echo err >&2; exit 9"], false);
    session.wait_for("ready");
    session.write("from afar\n");
    let session = session.finish();
    assert_eq!((&*session.stdout, &*session.stderr), ("ready\ngot from afar\n", "err\n"));
    // metav1.Status, with the code among its causes.
    let status: Value = serde_json::from_str(&session.status.expect("a status")).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "9", "{status}");

    let mut session = cri.exec_stream(&id, &["sh"], true);
    session.write("tty; echo ready\n");
    session.wait_for("/dev/pts/");
    session.wait_for("ready\r\n");
    session.resize(91, 37);
    // The size comes by another way than the command.
    session.write("until stty size | grep -q '37 91'; do sleep 0.1; done; echo re''sized; exit\n");
    session.wait_for("resized");
    let session = session.finish();
    let status: Value = serde_json::from_str(&session.status.expect("a status")).unwrap();
    assert_eq!(status["status"], "Success", "{status}");
    cri.remove_all(&[pod]);
}

fn attach_reaches_the_container(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let script = "while read line; do echo got $line; echo err $line >&2; done; sleep 1000";
    let id = cri.run(&pod, "container", script, json!({"stdin": true}));
    for name in ["one", "two"] {
        let mut session = cri.attach(&id, false);
        session.write(&format!("{name}\n"));
        session.wait_for(&format!("got {name}\n"));
    }
    let terminal = cri.run(&pod, "terminal", "tty; exec sh", json!({"stdin": true, "tty": true}));
    let mut session = cri.attach(&terminal, true);
    session.write("echo at''tached; exit 5\n");
    session.wait_for("attached\r\n");
    session.finish();
    assert_eq!(cri.wait(&terminal)["exit_code"], 5);
    // What went to an attached client is in the log as well.
    let log = cri.log_lines(&cri.status(&id));
    for line in [("stdout", "got one"), ("stderr", "err two")] {
        assert!(log.contains(&(line.0.into(), line.1.into())), "{line:?} {log:?}");
    }
    cri.remove_all(&[pod]);
}

fn logs_are_tagged_and_reopened(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let script = "echo out; echo err >&2; head -c 40000 /dev/zero | tr '\\0' x; echo
                  until test -e /tmp/go; do sleep 0.1; done; echo after; printf unfinished; exit 3";
    let id = cri.run(&pod, "container", script, json!({}));
    let path = cri.status(&id)["log_path"].as_str().unwrap().to_string();
    let line = |stream: &str, content: &str| (stream.to_string(), content.to_string());
    let long = line("stdout", &"x".repeat(40000));
    assert!(eventually(|| log_lines(Path::new(&path)).contains(&long)), "{path}");
    let mut log = log_lines(Path::new(&path));
    log.sort();
    assert_eq!(log, [line("stderr", "err"), line("stdout", "out"), long]);
    // As the kubelet rotates it.
    let rotated = format!("{path}.1");
    fs::rename(&path, &rotated).unwrap();
    cri.call("ReopenContainerLog", &json!({"container_id": id}));
    let before = fs::read(&rotated).unwrap();
    cri.sh(&id, "touch /tmp/go");
    let status = cri.wait(&id);
    assert_eq!(status["exit_code"], 3);
    assert!(eventually(|| log_lines(Path::new(&path)).len() == 2), "{:?}", log_lines(Path::new(&path)));
    assert_eq!(log_lines(Path::new(&path)), [line("stdout", "after"), line("stdout", "unfinished")]);
    assert!(fs::read(&rotated).unwrap() == before);
    cri.remove_all(&[pod]);
}

/// A number of 64 bits, which JSON has as text.
fn number(value: &Value) -> u64 {
    value["value"].as_str().unwrap_or_else(|| panic!("no number: {value}")).parse().unwrap()
}

fn stats_tell_of_each_container_and_the_pod(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    // A file in a tmpfs is memory of whoever wrote it.
    let busy = "head -c 20000000 /dev/zero >/dev/shm/fill; i=0; while test $i -lt 300000; do i=$((i+1)); done; touch /tmp/done";
    let busy = cri.run(&pod, "busy", &format!("{busy}; {IDLE}"), json!({}));
    let idle = cri.run(&pod, "idle", IDLE, json!({}));
    assert!(eventually(|| cri.exec(&busy, &["test", "-e", "/tmp/done"]).code == 0));
    let stats = cri.call("ContainerStats", &json!({"container_id": busy}))["stats"].take();
    assert_eq!(stats["attributes"]["id"], *busy);
    let cpu = number(&stats["cpu"]["usage_core_nano_seconds"]);
    assert!((1_000_000..60_000_000_000).contains(&cpu), "{stats}");
    let memory = number(&stats["memory"]["working_set_bytes"]);
    assert!((20_000_000..200_000_000).contains(&memory), "{stats}");
    let list = cri.call("ListContainerStats", &json!({}))["stats"].take();
    let stats_of = |id: &str| {
        let found = list.as_array().unwrap().iter().find(|stats| stats["attributes"]["id"] == id);
        found.unwrap_or_else(|| panic!("{id}: {list}")).clone()
    };
    assert!(number(&stats_of(&busy)["memory"]["working_set_bytes"]) >= 20_000_000);
    assert!((1..20_000_000).contains(&number(&stats_of(&idle)["memory"]["working_set_bytes"])), "{list}");
    let stats = cri.call("PodSandboxStats", &json!({"pod_sandbox_id": pod.id}))["stats"].take();
    assert!(number(&stats["linux"]["cpu"]["usage_core_nano_seconds"]) >= cpu, "{stats}");
    assert!(number(&stats["linux"]["memory"]["working_set_bytes"]) >= memory, "{stats}");
    assert_eq!(stats["linux"]["containers"].as_array().map(Vec::len), Some(2), "{stats}");
    cri.remove_all(&[pod]);
}

fn resources_are_set_and_updated(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let resources = json!({"cpu_period": "100000", "cpu_quota": "50000", "cpu_shares": "512",
        "memory_limit_in_bytes": "134217728", "oom_score_adj": "900", "cpuset_cpus": "0"});
    let id = cri.run(&pod, "container", IDLE, limited(resources));
    let cgroup = cri.containerd.cgroup_of(&id);
    let value = |controller, v1, v2| cgroup_value(&cgroup, controller, v1, v2);
    let memory = || value("memory", "memory.limit_in_bytes", "memory.max");
    let quota = || value("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(memory(), "134217728");
    assert!(["50000", "50000 100000"].contains(&&*quota()));
    // runc's formula from shares to weight.
    assert!(["512", "20"].contains(&&*value("cpu", "cpu.shares", "cpu.weight")));
    assert_eq!(value("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(fs::read_to_string(format!("/proc/{}/oom_score_adj", cri.pid(&id))).unwrap().trim(), "900");
    let resources = json!({"cpu_period": "100000", "cpu_quota": "20000", "memory_limit_in_bytes": "201326592"});
    cri.call("UpdateContainerResources", &json!({"container_id": id, "linux": resources}));
    assert_eq!(memory(), "201326592");
    assert!(["20000", "20000 100000"].contains(&&*quota()));
    // Seen from inside, where the hierarchy is mounted read-only.
    let inside = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(cri.sh(&id, inside), "201326592");
    cri.remove_all(&[pod]);
}

fn a_container_is_told_its_surroundings(cri: Cri) {
    let pod = cri.run_pod("surroundings", json!({}));
    let volume = cri.containerd.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content").unwrap();
    let config = json!({
        "command": ["sh"], "args": ["-c", "hostname; cat /etc/hostname; echo $KEY $HOSTNAME; pwd; cat /volume/file; echo;
            echo x >/volume/new && echo yes; echo x 2>/dev/null >/fixed/new || echo no; ls -ld /work | cut -c1; grep -c . /etc/hosts"],
        "working_dir": "/work",
        "envs": [{"key": "KEY", "value": "a value"}],
        "mounts": [{"container_path": "/volume", "host_path": volume},
            {"container_path": "/fixed", "host_path": volume, "readonly": true},
            {"container_path": "/etc/hosts", "host_path": volume.join("file")}],
    });
    let output = cri.output(&pod, "container", "", config);
    assert_eq!(output, "surroundings\nsurroundings\na value surroundings\n/work\ncontent\nyes\nno\nd\n1\n");
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "x\n");
    cri.remove_all(&[pod]);
}

fn containers_of_a_pod_share_what_it_says(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let other = cri.run_pod("other", json!({}));
    let ids = ["one", "two"].map(|name| cri.run(&pod, name, IDLE, json!({})));
    let pids = [&pod.id, &ids[0], &ids[1]].map(|id| cri.pid(id));
    for name in ["net", "ipc", "uts"] {
        let of_pod = namespace(pids[0], name);
        assert_eq!(pids.map(|pid| namespace(pid, name)), [&*of_pod, &*of_pod, &*of_pod], "{name}");
        assert_ne!(of_pod, host(name), "{name}");
        assert_ne!(of_pod, namespace(cri.pid(&other.id), name), "{name}");
    }
    for name in ["pid", "mnt"] {
        let all = pids.map(|pid| namespace(pid, name));
        assert!(
            all[0] != all[1] && all[1] != all[2] && all[0] != all[2] && !all.contains(&host(name)),
            "{name} {all:?}"
        );
    }
    // What is in them: memory, and the network's loopback.
    cri.sh(&ids[0], "echo shared >/dev/shm/file");
    assert_eq!(cri.sh(&ids[1], "cat /dev/shm/file"), "shared");
    cri.sh(&ids[0], "nc -l -p 4711 -e echo by loopback >/dev/null 2>&1 &");
    let connect = "for i in $(seq 100); do nc 127.0.0.1 4711 </dev/null 2>/dev/null && break; sleep 0.1; done";
    assert_eq!(cri.sh(&ids[1], connect), "by loopback");
    cri.remove_all(&[pod, other]);
}

fn the_pid_namespace_of_a_pod_or_container_is_shared(cri: Cri) {
    let options = |pid: &str| json!({"linux": {"security_context": {"namespace_options": {"pid": pid}}}});
    let pod = cri.run_pod("pod", options("POD"));
    let ids = ["one", "two"].map(|name| cri.run(&pod, name, IDLE, options("POD")));
    let of_pod = namespace(cri.pid(&pod.id), "pid");
    assert_eq!(ids.each_ref().map(|id| namespace(cri.pid(id), "pid")), [&*of_pod, &*of_pod]);
    assert!(cri.sh(&ids[0], "cat /proc/1/cmdline | tr '\\0' ' '").contains("sleep 2147483647"));
    // A container's end is the end of all that it started, though the namespace lives on.
    let leaves = cri.run(&pod, "leaves", "sleep 3999 & echo $! >/tmp/pid; exit 0", options("POD"));
    assert_eq!(cri.wait(&leaves)["exit_code"], 0);
    let sleeping = |script: &str| cri.sh(&ids[0], script);
    assert!(eventually(|| !sleeping("ps -o args").contains("sleep 3999")), "{}", sleeping("ps"));
    assert_eq!(cri.sh(&ids[1], "echo alive"), "alive");

    let apart = cri.run_pod("apart", options("CONTAINER"));
    let target = cri.run(&apart, "target", IDLE, options("CONTAINER"));
    // An ephemeral container, for debugging.
    let namespaces = json!({"namespace_options": {"pid": "TARGET", "target_id": target}});
    let debug = cri.run(&apart, "debug", IDLE, secured(namespaces));
    assert_eq!(namespace(cri.pid(&debug), "pid"), namespace(cri.pid(&target), "pid"));
    cri.call("StopContainer", &json!({"container_id": debug, "timeout": "0"}));
    assert_eq!(cri.status(&target)["state"], "CONTAINER_RUNNING");
    cri.remove_all(&[pod, apart]);
}

fn the_hosts_namespaces_are_joined(cri: Cri) {
    let options = json!({"network": "NODE", "pid": "NODE", "ipc": "NODE"});
    let config = json!({"linux": {"security_context": {"namespace_options": options}}});
    let pod = cri.run_pod("pod", json!({"hostname": "", "linux": config["linux"]}));
    let id = cri.run(&pod, "container", "sleep 4999 & exec sleep 4998", config);
    let pid = cri.pid(&id);
    for name in ["net", "pid", "ipc", "uts"] {
        assert_eq!(namespace(pid, name), host(name), "{name}");
    }
    assert_ne!(namespace(pid, "mnt"), host("mnt"));
    // Without a namespace that the kernel would end.
    cri.call("StopContainer", &json!({"container_id": id, "timeout": "0"}));
    assert_eq!(cri.status(&id)["exit_code"], 137);
    cri.remove_all(&[pod]);
}

/// A line of /proc/self/status in a container.
fn status_of(cri: &Cri, pod: &Pod, name: &str, line: &str, context: Value) -> String {
    let output = cri.output(pod, name, &format!("grep ^{line}: /proc/self/status"), secured(context));
    output.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

fn the_security_context_is_obeyed(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let user = json!({"run_as_user": {"value": "1000"}, "run_as_group": {"value": "2000"}, "supplemental_groups": ["3000", "3001"]});
    let id = cri.run(&pod, "user", IDLE, secured(user));
    assert_eq!(
        cri.sh(&id, "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | xargs; grep CapEff /proc/self/status | cut -f2"),
        "1000\n2000\n2000 3000 3001\n0000000000000000"
    );
    let name = secured(json!({"run_as_username": "user"}));
    assert_eq!(cri.output(&pod, "name", "id -u; id -g", name), "1000\n1000\n");

    // Capabilities by capability.h: NET_RAW is 13, CHOWN 0, SYS_TIME 25.
    let bounding = |name, context| u64::from_str_radix(&status_of(&cri, &pod, name, "CapBnd", context), 16).unwrap();
    let default = bounding("default", json!({}));
    assert!(default & 1 << 13 != 0 && default & 1 << 25 == 0, "{default:x}");
    let capabilities = json!({"capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["CHOWN"]}});
    assert_eq!(bounding("chown", capabilities), 1);
    assert_eq!(status_of(&cri, &pod, "nnp", "NoNewPrivs", json!({"no_new_privs": true})), "1");
    assert_eq!(status_of(&cri, &pod, "privs", "NoNewPrivs", json!({})), "0");

    // 2 is a filter; what Docker's default profile is for: a new user namespace is not to be had.
    let seccomp =
        json!({"seccomp": {"profile_type": "RuntimeDefault"}, "capabilities": {"drop_capabilities": ["ALL"]}});
    assert_eq!(status_of(&cri, &pod, "filtered", "Seccomp", seccomp.clone()), "2");
    let unshare = "unshare -U true 2>&1 || true";
    assert!(cri.output(&pod, "unshare", unshare, secured(seccomp)).contains("Operation not permitted"));
    let unconfined = json!({"seccomp": {"profile_type": "Unconfined"}});
    assert_eq!(status_of(&cri, &pod, "unfiltered", "Seccomp", unconfined), "0");

    let read_only = "echo x 2>/dev/null >/file || echo no; echo x >/dev/shm/file && echo yes";
    assert_eq!(cri.output(&pod, "fixed", read_only, secured(json!({"readonly_rootfs": true}))), "no\nyes\n");
    let paths = json!({"masked_paths": ["/proc/timer_list", "/sys/firmware"], "readonly_paths": ["/proc/sys"]});
    let look =
        "wc -c </proc/timer_list; ls /sys/firmware | wc -l; echo x 2>/dev/null >/proc/sys/kernel/domainname || echo no";
    assert_eq!(cri.output(&pod, "masked", look, secured(paths)), "0\n0\nno\n");
    cri.remove_all(&[pod]);
}

fn a_privileged_container_has_the_hosts_devices(cri: Cri) {
    let pod = cri.run_pod("pod", json!({"linux": {"security_context": {"privileged": true}}}));
    let id = cri.run(&pod, "container", IDLE, secured(json!({"privileged": true})));
    let plain = cri.run(&pod, "plain", IDLE, json!({}));
    let count = |id: &str| cri.sh(id, "ls /dev | wc -l").parse::<u32>().unwrap();
    assert!(count(&id) > count(&plain), "{} {}", count(&id), count(&plain));
    // As much as containerd itself may, which has no more to give.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    assert_eq!(cri.sh(&id, "grep CapEff /proc/self/status | cut -f2"), own);
    // No path is masked, sysfs can be written, devices be opened.
    cri.sh(&id, "test -w /sys && mount -t tmpfs tmpfs /tmp && umount /tmp");
    cri.sh(&id, "mknod /tmp/null c 1 3 && echo x >/tmp/null");
    assert_eq!(cri.sh(&plain, "mount -t tmpfs tmpfs /tmp 2>/dev/null || echo no"), "no");
    cri.remove_all(&[pod]);
}

fn sysctls_are_the_pods(cri: Cri) {
    let sysctls = json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2000", "kernel.shm_rmid_forced": "1"});
    let pod = cri.run_pod("pod", json!({"linux": {"sysctls": sysctls}}));
    let id = cri.run(&pod, "container", IDLE, secured(json!({"run_as_user": {"value": "1000"}})));
    let read = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/shm_rmid_forced";
    assert_eq!(cri.sh(&id, read).split_whitespace().collect::<Vec<_>>(), ["0", "0", "2000", "1"]);
    // What it is for: a user's server at a port of root's, where there is no capability.
    let script = "nc -l -p 80 -e true & sleep 0.3; cat /proc/net/tcp* | grep -c :0050; kill $!";
    assert_eq!(cri.sh(&id, script), "1");
    cri.remove_all(&[pod]);
}

fn too_much_memory_is_reported_as_oomkilled(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let limit = limited(json!({"memory_limit_in_bytes": "16777216"}));
    let id = cri.run(&pod, "hungry", "exec tail /dev/zero", limit.clone());
    let status = cri.wait(&id);
    assert_eq!((&status["reason"], &status["exit_code"]), (&json!("OOMKilled"), &json!(137)), "{status}");
    // One that is killed by hand is not called so.
    let id = cri.run(&pod, "modest", "sleep 1000 & kill -KILL $!; wait; exit 9", limit);
    let status = cri.wait(&id);
    assert_eq!((&status["reason"], &status["exit_code"]), (&json!("Error"), &json!(9)), "{status}");
    cri.remove_all(&[pod]);
}

fn a_container_is_stopped_by_sigterm_then_sigkill(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let polite =
        cri.run(&pod, "polite", "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.1; done", json!({}));
    let deaf = cri.run(&pod, "deaf", "trap '' TERM; sleep 1000 & echo ready; wait; sleep 1000", json!({}));
    for id in [&polite, &deaf] {
        let ready = eventually(|| !cri.log_lines(&cri.status(id)).is_empty());
        assert!(ready, "{id} is not ready");
    }
    cri.call("StopContainer", &json!({"container_id": polite, "timeout": "100"}));
    let status = cri.status(&polite);
    assert_eq!((&status["exit_code"], &status["reason"]), (&json!(4), &json!("Error")), "{status}");
    assert_eq!(cri.log_lines(&status).last().unwrap().1, "bye");
    let pid = cri.pid(&deaf);
    let start = Instant::now();
    cri.call("StopContainer", &json!({"container_id": deaf, "timeout": "1"}));
    assert!(start.elapsed().as_millis() >= 1000 && start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert_eq!(cri.status(&deaf)["exit_code"], 137);
    assert!(!alive(pid));
    // Once more changes nothing.
    cri.call("StopContainer", &json!({"container_id": deaf, "timeout": "1"}));
    cri.remove_all(&[pod]);
}

fn a_container_that_cannot_start_is_reported_and_replaced(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let attempt = |number: u32, command: &str| {
        let config = json!({"metadata": {"name": "container", "attempt": number}, "command": [command]});
        let id = cri.create(&pod, "container", "", config);
        (cri.try_call("StartContainer", &json!({"container_id": id})), id)
    };
    let (started, id) = attempt(0, "/no/such/program");
    let message = started.unwrap_err().message;
    assert!(message.contains("/no/such/program") && message.contains("no such file"), "{message}");
    let status = cri.status(&id);
    assert_eq!((&status["state"], &status["reason"]), (&json!("CONTAINER_EXITED"), &json!("StartError")), "{status}");
    assert_eq!(status["exit_code"], 128);
    // The kubelet tries again, and again when that ended.
    for number in 1..4 {
        let (started, id) = attempt(number, "true");
        started.unwrap();
        assert_eq!(cri.wait(&id)["exit_code"], 0);
        cri.call("RemoveContainer", &json!({"container_id": id}));
    }
    // A created one that never runs is removed with the pod.
    cri.create(&pod, "never", "true", json!({}));
    assert_eq!(cri.containerd.shims().len(), 1);
    cri.remove_all(&[pod]);
}

fn pods_survive_containerds_death(mut cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let id = cri.run(&pod, "container", &format!("echo before; {IDLE}"), json!({}));
    let ends = cri.run(&pod, "ends", "until test -e /dev/shm/end; do sleep 0.1; done; exit 6", json!({}));
    let pids = [&pod.id, &id, &ends].map(|id| cri.pid(id));
    let shims = cri.containerd.shims();
    cri.containerd.kill();
    // One ends while nobody looks.
    fs::write(format!("/proc/{}/root/dev/shm/end", pids[1]), "").unwrap();
    assert!(eventually(|| !alive(pids[2])));
    cri.containerd.restart();
    cri.wait_until_ready();
    assert_eq!(cri.pid(&id), pids[1]);
    assert_eq!(cri.status(&id)["state"], "CONTAINER_RUNNING");
    let pods = cri.call("ListPodSandbox", &json!({"filter": {"state": {"state": "SANDBOX_READY"}}}));
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(1), "{pods}");
    // Later ones take a shim without a process of that container for one that leaks, and no longer ask it.
    let code = cri.wait(&ends)["exit_code"].take();
    assert!(code == 6 || code == 255 && cri.containerd.module() != "containerd_1_6", "{code}");
    assert_eq!(cri.sh(&id, "echo hello"), "hello");
    let later = cri.run(&pod, "later", "echo later", json!({}));
    assert_eq!(cri.wait(&later)["exit_code"], 0);
    assert_eq!(cri.containerd.shims(), shims);
    cri.call("StopContainer", &json!({"container_id": id, "timeout": "20"}));
    assert_eq!(cri.status(&id)["exit_code"], 0);
    cri.remove_all(&[pod]);
}

fn a_killed_shim_leaves_nothing(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let ids =
        ["one", "two"].map(|name| cri.run(&pod, name, "trap '' TERM; sleep 1000 & sleep 1001; sleep 1002", json!({})));
    let pids = [&pod.id, &ids[0], &ids[1]].map(|id| cri.pid(id));
    send_signal(Signal::KILL, cri.containerd.shims()[0]);
    for id in &ids {
        // 255 is containerd's word for a status that nobody can tell any more.
        let code = cri.wait(id)["exit_code"].take();
        assert!(code == 137 || code == 255, "{code}");
    }
    assert!(eventually(|| !pids.iter().any(|pid| alive(*pid))));
    let gone = || {
        let status = cri.call("PodSandboxStatus", &json!({"pod_sandbox_id": pod.id}));
        status["status"]["state"] == "SANDBOX_NOTREADY"
    };
    assert!(eventually(gone));
    cri.call("RemoveContainer", &json!({"container_id": ids[0]}));
    cri.remove_all(&[pod]);
}
