//! Pods, by containerd's CRI plugin, as the kubelet runs them: their life, and what is said of it. Each test has a
//! containerd of its own and ends with a look at what is left. What a pod is made of: tests/cri_pod.rs.

use common::containerd::{PATIENCE, cgroup_value, describe, eventually, parent_of, send_signal};
use common::cri::grpc::{DEADLINE_EXCEEDED, NOT_FOUND};
use common::cri::{BY_PATH, Cri, IDLE, Output, log_lines};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Instant;

common::on_each_containerd! {
    a_pod_has_one_shim,
    a_runtime_path_in_runcs_place_is_as_good,
    exec_sync_returns_output_and_status,
    exec_sync_ends_what_outlives_its_timeout,
    many_probes_at_once_do_not_mix,
    exec_streams_both_ways,
    attach_reaches_the_container,
    logs_are_tagged_and_reopened,
    stats_tell_of_each_container_and_the_pod,
    too_much_memory_is_reported_as_oomkilled,
    a_container_is_stopped_by_sigterm_then_sigkill,
    a_container_that_cannot_start_is_reported_and_replaced,
    pods_survive_containerds_death,
    a_killed_shim_leaves_nothing,
    many_short_containers_report_their_exits,
    pods_live_side_by_side,
    a_flood_of_output_is_logged_whole,
    a_shim_killed_while_containerd_is_away_leaves_nothing,
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
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
    let id = cri.run(&pod, "container", IDLE, json!({"linux": {"resources": {"memory_limit_in_bytes": "67108864"}}}));
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
    let namespace = fs::read_link(format!("/proc/{}/ns/pid", cri.pid(&id))).unwrap();
    assert_eq!(cri.sh(&id, "readlink /proc/self/ns/pid"), namespace.to_str().unwrap());
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
    session.write("until stty size 2>/dev/null | grep -q '37 91'; do sleep 0.1; done; echo re''sized; exit\n");
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
    let status = cri.status(&id);
    for line in [("stdout", "got one"), ("stderr", "err two")] {
        let is_there = || cri.log_lines(&status).contains(&(line.0.into(), line.1.into()));
        assert!(eventually(is_there), "{line:?} {:?}", cri.log_lines(&status));
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
    assert!(eventually(|| log_lines(Path::new(&path)).len() == 3), "{path}");
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

fn too_much_memory_is_reported_as_oomkilled(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let limit = json!({"linux": {"resources": {"memory_limit_in_bytes": "16777216"}}});
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
    assert_eq!(cri.finished_log(&status).last().unwrap().1, "bye");
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

fn many_short_containers_report_their_exits(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (cri, pod) = (&cri, &pod);
            scope.spawn(move || {
                for round in 0..5 {
                    let name = format!("short-{thread}-{round}");
                    let id = cri.run(pod, &name, &format!("echo {name}; exit {round}"), json!({}));
                    let status = cri.wait(&id);
                    assert_eq!(status["exit_code"], round, "{status}");
                    assert_eq!(cri.finished_log(&status), [("stdout".to_string(), name)]);
                    cri.call("RemoveContainer", &json!({"container_id": id}));
                }
            });
        }
    });
    cri.remove_all(&[pod]);
}

fn pods_live_side_by_side(cri: Cri) {
    let life = |name: String| {
        let pod = cri.run_pod(&name, json!({}));
        let ids = ["one", "two"].map(|container| cri.run(&pod, container, IDLE, json!({})));
        for id in &ids {
            assert_eq!(cri.sh(id, "hostname"), name);
        }
        (pod, parent_of(cri.pid(&ids[0])).unwrap())
    };
    let pods: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|i| scope.spawn(move || life(format!("pod-{i}")))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (mut pods, mut shims): (Vec<_>, Vec<_>) = pods.into_iter().unzip();
    shims.sort_unstable();
    let mut all = cri.containerd.shims();
    all.sort_unstable();
    assert_eq!(shims, all);
    // One goes, and its shim alone.
    let gone = pods.remove(0);
    cri.call("StopPodSandbox", &json!({"pod_sandbox_id": gone.id}));
    cri.call("RemovePodSandbox", &json!({"pod_sandbox_id": gone.id}));
    assert!(eventually(|| cri.containerd.shims().len() == 5), "{:?}", cri.containerd.shims());
    cri.remove_all(&pods);
}

fn a_flood_of_output_is_logged_whole(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let id = cri.run(&pod, "flood", "seq 200000; seq 200000 >&2", json!({}));
    let log = cri.finished_log(&cri.wait(&id));
    for stream in ["stdout", "stderr"] {
        let lines = log.iter().filter(|line| line.0 == stream).map(|line| &line.1);
        assert!(lines.eq(&(1..=200_000).map(|i| i.to_string()).collect::<Vec<_>>()), "{stream}: {} lines", log.len());
    }
    cri.remove_all(&[pod]);
}

fn a_shim_killed_while_containerd_is_away_leaves_nothing(mut cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let id = cri.run(&pod, "container", "sleep 1000 & sleep 1001; sleep 1002", json!({}));
    let pids = [&pod.id, &id].map(|id| cri.pid(id));
    let shim = cri.containerd.shims()[0];
    cri.containerd.kill();
    send_signal(Signal::KILL, shim);
    assert!(eventually(|| !alive(shim)));
    cri.containerd.restart();
    cri.wait_until_ready();
    let code = cri.wait(&id)["exit_code"].take();
    assert!(code == 137 || code == 255, "{code}");
    assert!(eventually(|| !pids.iter().any(|pid| alive(*pid))));
    // Another takes its place, as the kubelet sees to.
    let again = cri.run_pod("pod", json!({"metadata": {"attempt": 1}}));
    let next = cri.run(&again, "next", IDLE, json!({}));
    assert_eq!(cri.sh(&next, "echo hello"), "hello");
    cri.remove_all(&[pod, again]);
}
