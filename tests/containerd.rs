//! The life of containers through the real containerd and its client ctr: run, exec, kill, delete, events, streams, and
//! what is left when something dies. Each test has a containerd of its own, so that "nothing left" can mean nothing.

use common::cgroup::on;
use common::containerd::{Containerd, eventually, parent_of, send_signal, text};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::Signal;

const SLEEP: &[&str] = &["sleep", "1000"];

common::on_each_containerd! {
    run_prints_the_output_and_returns_the_status,
    a_killed_container_ends_with_128_and_the_signal,
    stdin_reaches_the_container_and_ends,
    a_detached_container_is_listed_entered_killed_and_deleted,
    exec_runs_in_the_container_and_returns_output_and_status,
    an_exec_id_in_use_is_refused_and_its_exec_lives_on,
    a_missing_binary_fails_by_name_and_leaves_nothing,
    a_second_container_of_the_same_id_is_refused_and_the_first_lives_on,
    events_come_in_the_order_in_which_things_are_true,
    the_exits_of_execs_come_before_that_of_init,
    a_reader_that_goes_away_does_not_keep_the_container,
    output_of_64_megabytes_arrives_as_it_was_written,
    containerd_killed_and_restarted_loses_no_output_and_keeps_the_task,
    containerd_killed_and_restarted_finds_its_tasks_as_they_were,
    a_shim_killed_while_containerd_is_away_is_cleaned_up_when_it_is_back,
    the_containers_of_a_pod_share_a_shim,
    the_shim_answers_in_the_daemon_s_own_words,
    an_exit_while_containerd_is_away_is_told_when_it_is_back,
    a_killed_shim_is_cleaned_up_after,
    a_shim_killed_at_any_moment_leaves_nothing,
    garbage_on_its_socket_does_a_shim_no_harm,
    twenty_containers_at_once_do_not_mix,
    in_a_joined_pid_namespace_the_whole_container_ends_with_its_init,
    without_a_pid_namespace_the_whole_container_ends_with_its_init,
    a_task_is_paused_measured_updated_and_resumed,
}

fn sh(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What `ctr task ps` lists.
fn processes_of(containerd: &Containerd, id: &str) -> Vec<u32> {
    let listed = containerd.ctr_ok(&["task", "ps", id]);
    listed.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
}

fn command_of(pid: u32) -> String {
    text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ").trim_end().into()
}

fn run_prints_the_output_and_returns_the_status(containerd: Containerd) {
    let output = containerd.run("zero", &[], &sh("echo out; echo err >&2"));
    assert_eq!((output.status.code(), &*text(&output.stdout), &*text(&output.stderr)), (Some(0), "out\n", "err\n"));
    let output = containerd.run("seven", &[], &sh("exit 7"));
    assert_eq!((output.status.code(), output.stdout, output.stderr), (Some(7), vec![], vec![]));
    containerd.assert_nothing_left();
}

fn a_killed_container_ends_with_128_and_the_signal(containerd: Containerd) {
    let ctr = containerd.run_attached("killed", &[], SLEEP);
    let init = containerd.task("killed").unwrap().pid;
    // An init without a handler is not ended by SIGTERM: the kernel drops it.
    containerd.ctr_ok(&["task", "kill", "killed"]);
    sleep(Duration::from_millis(200));
    assert!(alive(init));
    containerd.ctr_ok(&["task", "kill", "--signal", "KILL", "killed"]);
    assert_eq!(ctr.wait_with_output().unwrap().status.code(), Some(137));
    assert!(!alive(init));
    // One that has a handler gets the signal that was asked for.
    let mut ctr =
        containerd.run_attached("handled", &[], &sh("trap 'exit 42' USR1; echo ready; while :; do sleep 0.02; done"));
    let mut ready = String::new();
    BufReader::new(ctr.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    containerd.ctr_ok(&["task", "kill", "--signal", "USR1", "handled"]);
    assert_eq!(ctr.wait().unwrap().code(), Some(42));
    containerd.assert_nothing_left();
}

fn stdin_reaches_the_container_and_ends(containerd: Containerd) {
    // It stays a while: what ctr has not read at the exit is lost.
    let mut ctr = containerd.run_attached("stdin", &[], &sh("cat; echo end; sleep 0.5"));
    let mut stdin = ctr.stdin.take().unwrap();
    let lines: String = (0..100_000).map(|i| format!("{i}\n")).collect();
    let writer = {
        let lines = lines.clone();
        std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap())
    };
    let output = ctr.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout) == lines + "end\n", "{} bytes came back", output.stdout.len());
    containerd.assert_nothing_left();
}

fn a_detached_container_is_listed_entered_killed_and_deleted(containerd: Containerd) {
    let init = containerd.run_detached("detached", &[], &sh("sleep 1000 & exec sleep 1001"));
    assert_eq!(containerd.task("detached").unwrap().status, "RUNNING");
    assert!(containerd.socket("detached").exists());
    // ps: all of its processes, by their pids outside.
    let listed = processes_of(&containerd, "detached");
    assert!(listed.contains(&init) && listed.len() == 2, "{listed:?}, init is {init}");
    assert!(listed.iter().any(|pid| command_of(*pid) == "sleep 1000"), "{listed:?}");
    // A running task is not deleted.
    let output = containerd.ctr(&["task", "delete", "detached"]);
    assert!(!output.status.success() && alive(init), "{output:?}");
    containerd.ctr_ok(&["task", "kill", "--signal", "KILL", "detached"]);
    assert!(eventually(|| containerd.task("detached").unwrap().status == "STOPPED"));
    // Killed twice is an error that says that it is gone.
    let output = containerd.ctr(&["task", "kill", "--signal", "KILL", "detached"]);
    let told = text(&output.stderr);
    assert!(told.contains("not found") || told.contains("process already finished"), "{output:?}");
    assert_eq!(containerd.delete_task("detached"), 137);
    containerd.assert_nothing_left();
}

fn exec_runs_in_the_container_and_returns_output_and_status(containerd: Containerd) {
    let init = containerd.run_detached("host", &["--env", "FROM=spec"], SLEEP);
    let output = containerd.exec("host", "e1", &[], &sh("echo out; echo err >&2; exit 5"));
    assert_eq!((output.status.code(), &*text(&output.stdout), &*text(&output.stderr)), (Some(5), "out\n", "err\n"));
    // The same namespaces and cgroups as init.
    let output = containerd.exec(
        "host",
        "e2",
        &[],
        &sh("for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup"),
    );
    let mut expected: String = ["cgroup", "ipc", "mnt", "net", "pid", "uts"]
        .map(|ns| format!("{}\n", fs::read_link(format!("/proc/{init}/ns/{ns}")).unwrap().display()))
        .concat();
    expected += &fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    assert_eq!(text(&output.stdout), expected, "{output:?}");
    let output = containerd.exec("host", "e3", &["--cwd", "/tmp", "--user", "1000"], &sh("pwd; id -u; echo $FROM"));
    assert_eq!(text(&output.stdout), "/tmp\n1000\nspec\n", "{output:?}");
    let output = containerd.exec("host", "e4", &[], &sh("kill -9 $$"));
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    let output = containerd.exec("host", "e5", &[], &["/no/such/binary"]);
    assert!(!output.status.success() && text(&output.stderr).contains("/no/such/binary"), "{output:?}");
    // An id is free again once its exec was deleted, which ctr does.
    let output = containerd.exec("host", "e1", &[], &sh("exit 6"));
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert_eq!(containerd.task("host").unwrap().pid, init);
    containerd.remove("host");
    containerd.assert_nothing_left();
}

fn an_exec_id_in_use_is_refused_and_its_exec_lives_on(containerd: Containerd) {
    containerd.run_detached("twice", &[], SLEEP);
    containerd.ctr_ok(&["task", "exec", "--detach", "--exec-id", "same", "twice", "sleep", "2000"]);
    let output = containerd.exec("twice", "same", &[], &["true"]);
    assert!(!output.status.success() && text(&output.stderr).contains("already exists"), "{output:?}");
    let listed = containerd.ctr_ok(&["task", "ps", "twice"]);
    assert!(listed.contains("same"), "ps does not name the exec of a process:\n{listed}");
    // Killed by its id, the exec alone ends.
    containerd.ctr_ok(&["task", "kill", "--signal", "KILL", "--exec-id", "same", "twice"]);
    assert!(eventually(|| !containerd.ctr_ok(&["task", "ps", "twice"]).contains("same")));
    assert_eq!(containerd.task("twice").unwrap().status, "RUNNING");
    containerd.remove("twice");
    containerd.assert_nothing_left();
}

fn a_missing_binary_fails_by_name_and_leaves_nothing(containerd: Containerd) {
    for (id, name) in
        [("path", "/no/such/binary"), ("word", "nosuchword"), ("directory", "/etc"), ("mode", "/etc/passwd")]
    {
        let output = containerd.run(id, &[], &[name]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(name), "{output:?}");
        containerd.assert_nothing_left();
    }
}

fn a_second_container_of_the_same_id_is_refused_and_the_first_lives_on(containerd: Containerd) {
    let init = containerd.run_detached("same", &[], SLEEP);
    let output = containerd.run("same", &[], &["true"]);
    assert!(!output.status.success() && text(&output.stderr).contains("already exists"), "{output:?}");
    assert_eq!(containerd.exec("same", "e", &[], &["true"]).status.code(), Some(0));
    assert_eq!(containerd.task("same").unwrap().pid, init);
    containerd.remove("same");
    containerd.assert_nothing_left();
}

fn events_come_in_the_order_in_which_things_are_true(containerd: Containerd) {
    let events = containerd.events();
    // The shortest life that there is, several times: its exit must not overtake its start.
    for i in 0..10 {
        let id = format!("short{i}");
        containerd.run_ok(&id, &[], &["true"]);
        assert_eq!(events.topics_until(&id, "delete"), ["create", "start", "exit", "delete"]);
    }
    let init = containerd.run_detached("long", &[], SLEEP);
    let output = containerd.exec("long", "e", &[], &sh("exit 3"));
    assert_eq!(output.status.code(), Some(3));
    containerd.remove("long");
    assert_eq!(
        events.topics_until("long", "delete"),
        ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
    );
    let of_long = events.of("long");
    let exits: Vec<_> = of_long.iter().filter(|e| e.topic == "/tasks/exit").collect();
    assert_eq!((exits[0].text("id"), exits[0].number("exit_status")), ("e", 3));
    assert_eq!(
        (exits[1].text("id"), exits[1].number("exit_status"), exits[1].number("pid")),
        ("long", 137, init.into())
    );
    containerd.assert_nothing_left();
}

fn the_exits_of_execs_come_before_that_of_init(containerd: Containerd) {
    let events = containerd.events();
    containerd.run_detached("several", &[], SLEEP);
    for exec in ["a", "b", "c"] {
        containerd.ctr_ok(&["task", "exec", "--detach", "--exec-id", exec, "several", "sleep", "2000"]);
    }
    containerd.remove("several");
    events.topics_until("several", "delete");
    let of_several = events.of("several");
    let mut exits: Vec<_> = of_several.iter().filter(|e| e.topic == "/tasks/exit").map(|e| e.text("id")).collect();
    assert_eq!(exits.pop(), Some("several"));
    exits.sort();
    assert_eq!(exits, ["a", "b", "c"]);
    containerd.assert_nothing_left();
}

/// The lines 0 to `count`, one number each: where bytes are lost or doubled, the difference shows it.
fn numbered(count: u32) -> Vec<u8> {
    (0..count).flat_map(|i| format!("{i}\n").into_bytes()).collect()
}

fn a_reader_that_goes_away_does_not_keep_the_container(containerd: Containerd) {
    // `yes` fills every buffer; the client, which reads them, is ended.
    let mut ctr = containerd.run_attached("unread", &[], &["yes"]);
    ctr.kill().unwrap();
    ctr.wait().unwrap();
    sleep(Duration::from_millis(200));
    containerd.remove("unread");
    containerd.assert_nothing_left();
}

/// The fifo NAME below DIR, where ctr makes a directory of its own for each process.
fn find_fifo(dir: &Path, name: &str) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path().join(name));
    entries.filter(|path| path.exists()).last().unwrap_or_else(|| panic!("no {name} in {}", dir.display()))
}

/// Runs a script detached, with this test as the only reader of its output from the first byte on: ctr itself, when it is
/// detached, reads for as long as it lives, and when it is attached it drops what it has not read at the exit.
fn run_read(containerd: &Containerd, id: &str, script: &str) -> BufReader<fs::File> {
    let shared = containerd.dir.join("shared");
    fs::create_dir(&shared).unwrap();
    let mount = format!("type=bind,src={},dst=/shared,options=rbind:rw", shared.display());
    let fifos = containerd.dir.join("fifos");
    let script = format!("until [ -e /shared/go ]; do sleep 0.02; done; {script}");
    let options = ["--detach", "--fifo-dir", fifos.to_str().unwrap(), "--mount", &mount];
    let args = containerd.run_args(id, &options, &sh(&script));
    containerd.ctr_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let output = BufReader::new(fs::File::open(find_fifo(&fifos, &format!("{id}-stdout"))).unwrap());
    fs::write(shared.join("go"), "").unwrap();
    output
}

fn output_of_64_megabytes_arrives_as_it_was_written(containerd: Containerd) {
    let count = 9_000_000;
    let mut output = run_read(&containerd, "large", &format!("exec seq 0 {}", count - 1));
    let mut read = Vec::new();
    // To the end of file, which comes with the exit.
    output.read_to_end(&mut read).unwrap();
    let expected = numbered(count);
    assert!(expected.len() > 64 << 20);
    assert_eq!(read.len(), expected.len());
    assert_eq!(read.iter().zip(&expected).position(|(a, b)| a != b), None);
    assert!(eventually(|| containerd.task("large").unwrap().status == "STOPPED"));
    assert_eq!(containerd.delete_task("large"), 0);
    containerd.assert_nothing_left();
}

fn containerd_killed_and_restarted_loses_no_output_and_keeps_the_task(mut containerd: Containerd) {
    let script = "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); [ $((i % 200)) -ne 0 ] || sleep 0.02; done
        exec sleep 1000";
    let output = run_read(&containerd, "kept", script);
    let task = containerd.task("kept").unwrap();
    for (i, line) in output.lines().take(60_000).enumerate() {
        assert_eq!(line.unwrap(), format!("line {i}"));
        match i {
            10_000 => containerd.kill(),
            30_000 => containerd.restart(),
            _ => (),
        }
    }
    assert_eq!(containerd.task("kept"), Some(task));
    assert_eq!(containerd.exec("kept", "after", &[], &sh("exit 4")).status.code(), Some(4));
    containerd.remove("kept");
    containerd.assert_nothing_left();
}

/// One that runs, with execs in it, and one that is paused are as they were.
fn containerd_killed_and_restarted_finds_its_tasks_as_they_were(mut containerd: Containerd) {
    containerd.run_detached("runs", &[], SLEEP);
    containerd.ctr_ok(&["task", "exec", "--detach", "--exec-id", "stays", "runs", "sleep", "2000"]);
    containerd.ctr_ok(&["task", "exec", "--detach", "--exec-id", "goes", "runs", "sleep", "3000"]);
    containerd.run_detached("frozen", &[], SLEEP);
    containerd.ctr_ok(&["task", "pause", "frozen"]);
    let before = [containerd.task("runs").unwrap(), containerd.task("frozen").unwrap()];
    assert_eq!((&*before[0].status, &*before[1].status), ("RUNNING", "PAUSED"));
    let shims = containerd.shims();
    for round in 0..3 {
        let goes = processes_of(&containerd, "runs").into_iter().find(|pid| command_of(*pid) == "sleep 3000");
        containerd.kill();
        if round == 1 {
            send_signal(Signal::KILL, goes.expect("an exec's process"));
        }
        containerd.restart();
        assert_eq!([containerd.task("runs").unwrap(), containerd.task("frozen").unwrap()], before);
        let listed = containerd.ctr_ok(&["task", "ps", "runs"]);
        assert!(listed.contains("stays") && listed.contains("goes") == (round == 0), "{listed}");
        assert_eq!(containerd.exec("runs", "new", &[], &sh("exit 6")).status.code(), Some(6));
        containerd.ctr_ok(&["task", "metrics", "runs"]);
    }
    assert_eq!(containerd.shims(), shims);
    containerd.ctr_ok(&["task", "resume", "frozen"]);
    assert_eq!(containerd.task("frozen").unwrap().status, "RUNNING");
    // Both exit events reach the containerd that is there now.
    let events = containerd.events();
    for id in ["runs", "frozen"] {
        containerd.remove(id);
        let topics = events.topics_until(id, "delete");
        assert_eq!(topics.last().map(String::as_str), Some("delete"), "{id}: {topics:?}");
        assert!(topics.iter().any(|topic| topic == "exit"), "{id}: {topics:?}");
    }
    containerd.assert_nothing_left();
}

fn an_exit_while_containerd_is_away_is_told_when_it_is_back(mut containerd: Containerd) {
    let script = sh("trap 'exit 9' TERM; while :; do sleep 0.02; done");
    for (id, killed) in [("stopped", false), ("killed", true)] {
        let init = containerd.run_detached(id, &[], &script);
        if killed {
            containerd.kill()
        } else {
            containerd.stop()
        }
        send_signal(Signal::TERM, init);
        assert!(eventually(|| !alive(init)));
        sleep(Duration::from_millis(500));
        containerd.restart();
        assert!(eventually(|| containerd.task(id).is_some_and(|task| task.status == "STOPPED")));
        assert_eq!(containerd.delete_task(id), 9);
        containerd.assert_nothing_left();
    }
}

fn a_shim_killed_while_containerd_is_away_is_cleaned_up_when_it_is_back(mut containerd: Containerd) {
    let init = containerd.run_detached("orphan", &[], &sh("sleep 1000 & exec sleep 1001"));
    containerd.kill();
    send_signal(Signal::KILL, parent_of(init).unwrap());
    containerd.restart();
    assert!(eventually(|| containerd.task("orphan").is_none()), "{:?}", containerd.task("orphan"));
    containerd.assert_nothing_left();
    containerd.ctr_ok(&["container", "delete", "orphan"]);
    containerd.run_ok("orphan", &[], &["true"]);
    containerd.assert_nothing_left();
}

/// The annotation of a pod makes its containers tasks of one shim, which lives for as long as one of them.
fn the_containers_of_a_pod_share_a_shim(mut containerd: Containerd) {
    let mut inits = Vec::new();
    for id in ["pod", "first", "second"] {
        let options = containerd.config(id, SLEEP, |spec| {
            spec["annotations"]["io.kubernetes.cri.sandbox-id"] = "pod".into();
            let kind = if id == "pod" { "sandbox" } else { "container" };
            spec["annotations"]["io.kubernetes.cri.container-type"] = kind.into();
        });
        inits.push(containerd.run_detached(id, &options.iter().map(String::as_str).collect::<Vec<_>>(), &[]));
    }
    let shims = containerd.shims();
    assert_eq!(shims.len(), 1, "{shims:?}");
    assert!(inits.iter().all(|init| parent_of(*init) == Some(shims[0])));
    // One goes; the others, and a containerd that comes back, do not mind.
    containerd.remove("first");
    containerd.kill();
    containerd.restart();
    for (id, init) in [("pod", inits[0]), ("second", inits[2])] {
        assert_eq!(containerd.task(id).unwrap().pid, init);
        assert_eq!(containerd.exec(id, "e", &[], &sh("exit 4")).status.code(), Some(4));
    }
    // The shim's death is that of all of them, and all are cleaned up after.
    send_signal(Signal::KILL, shims[0]);
    assert!(eventually(|| ["pod", "second"].iter().all(|id| containerd.task(id).is_none())));
    containerd.assert_nothing_left();
}

/// What each version of it says to `start`, and what it is answered, as a script in between sees it.
fn the_shim_answers_in_the_daemon_s_own_words(containerd: Containerd) {
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' start '*) echo \"$MAX_SHIM_VERSION\" >{0}/newest; {1} \"$@\" | tee {0}/answer;;
        *) exec {1} \"$@\";; esac\n",
        containerd.dir.display(),
        common::shim_binary().display(),
    );
    let between = containerd.dir.join("containerd-shim-between-v2");
    fs::write(&between, script).unwrap();
    fs::set_permissions(&between, fs::Permissions::from_mode(0o755)).unwrap();
    containerd.run_detached("asked", &["--runtime", between.to_str().unwrap()], SLEEP);
    let address = format!("unix://{}", containerd.socket("asked").display());
    let told = ["newest", "answer"].map(|file| fs::read_to_string(containerd.dir.join(file)).unwrap());
    if containerd.module() == "containerd_1_6" {
        assert_eq!(told, ["\n", &address]);
    } else {
        let answer: serde_json::Value = serde_json::from_str(&told[1]).unwrap();
        let expected = serde_json::json!({ "version": 2, "address": address, "protocol": "ttrpc" });
        assert_eq!((&*told[0], answer), ("2\n", expected));
    }
    containerd.remove("asked");
    containerd.assert_nothing_left();
}

fn a_killed_shim_is_cleaned_up_after(containerd: Containerd) {
    let events = containerd.events();
    let init = containerd.run_detached("orphan", &[], &sh("sleep 1000 & exec sleep 1001"));
    containerd.ctr_ok(&["task", "exec", "--detach", "--exec-id", "e", "orphan", "sleep", "2000"]);
    let shim = parent_of(init).unwrap();
    assert_eq!(containerd.shims(), [shim]);
    send_signal(Signal::KILL, shim);
    assert!(eventually(|| containerd.task("orphan").is_none()), "{:?}", containerd.task("orphan"));
    containerd.assert_nothing_left();
    events.topics_until("orphan", "delete");
    let exit = events.of("orphan").into_iter().find(|e| e.topic == "/tasks/exit" && e.text("id") == "orphan").unwrap();
    assert_eq!(exit.number("exit_status"), 137);
    // The id is free again.
    containerd.ctr_ok(&["container", "delete", "orphan"]);
    containerd.run_ok("orphan", &[], &["true"]);
    containerd.assert_nothing_left();
}

fn a_shim_killed_at_any_moment_leaves_nothing(containerd: Containerd) {
    for (round, delay) in [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 80].into_iter().enumerate() {
        let id = format!("moment{round}");
        let args = containerd.run_args(&id, &[], &sh("while :; do sleep 0.001; done"));
        let mut ctr = containerd.command(&args.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap();
        // From the moment on when containerd can notice: before, it does not call the delete action.
        assert!(eventually(|| containerd.is_connected(&id)));
        sleep(Duration::from_millis(delay));
        containerd.shims().into_iter().for_each(|shim| send_signal(Signal::KILL, shim));
        let _ = ctr.wait();
        assert!(eventually(|| containerd.task(&id).is_none()), "{:?}", containerd.task(&id));
        let _ = containerd.ctr(&["container", "delete", &id]);
        containerd.assert_nothing_left();
    }
}

fn garbage_on_its_socket_does_a_shim_no_harm(containerd: Containerd) {
    let init = containerd.run_detached("garbage", &[], SLEEP);
    let shim = parent_of(init);
    let connect = || UnixStream::connect(containerd.socket("garbage")).unwrap();
    // A ttrpc header is length, stream (both big endian), type and flags.
    let frames: [&[u8]; 5] = [
        b"GET / HTTP/1.0\r\n\r\n",
        &[0xff; 4096],
        // More than a message may have, and less than was said.
        b"\x7f\xff\xff\xff\x00\x00\x00\x01\x01\x00",
        b"\x00\x00\x10\x00\x00\x00\x00\x01\x01\x00half",
        // No protobuf.
        b"\x00\x00\x00\x04\x00\x00\x00\x01\x01\x00\xff\xff\xff\xff",
    ];
    let mut kept = Vec::new();
    for frame in frames {
        // The other end may have hung up in the middle.
        let _ = connect().write_all(frame);
        let mut open = connect();
        let _ = open.write_all(frame);
        kept.push(open);
    }
    assert_eq!(containerd.exec("garbage", "e", &[], &sh("exit 4")).status.code(), Some(4));
    assert_eq!(parent_of(init), shim);
    drop(kept);
    containerd.remove("garbage");
    containerd.assert_nothing_left();
}

fn twenty_containers_at_once_do_not_mix(containerd: Containerd) {
    std::thread::scope(|scope| {
        for i in 0..20 {
            let containerd = &containerd;
            scope.spawn(move || {
                let output = containerd.run(&format!("many{i}"), &[], &sh(&format!("echo from {i}; exit {i}")));
                assert_eq!(
                    (output.status.code(), text(&output.stdout)),
                    (Some(i), format!("from {i}\n")),
                    "{output:?}"
                );
            });
        }
    });
    containerd.assert_nothing_left();
}

fn run_with<T>(
    options: impl Fn(&str, &[&str]) -> Vec<String>,
    id: &str,
    script: &str,
    run: impl FnOnce(&[&str], &[&str]) -> T,
) -> T {
    let command = sh(script);
    let options = options(id, &command);
    run(&options.iter().map(String::as_str).collect::<Vec<_>>(), &command)
}

/// The whole container ends with its init where it has no pid namespace of its own. `options` says how it has none, for
/// an id and a command.
fn ends_with_its_init(containerd: &Containerd, options: impl Fn(&str, &[&str]) -> Vec<String>) {
    // By itself: the shells and sleeps that it leaves are killed before its exit is told.
    let script = "sleep 1000 & (sleep 1000 & sleep 1000) & sleep 0.2; exit 8";
    let output = run_with(&options, "itself", script, |options, command| containerd.run("itself", options, command));
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    assert_eq!(containerd.cgroups_of("itself"), Vec::<PathBuf>::new());
    // By SIGKILL, while processes go on being made.
    let script =
        "for b in 1 2 3; do (while :; do (sleep 1000 & sleep 1000 &); sleep 0.02; done) & done; exec sleep 1000";
    let init =
        run_with(&options, "breeder", script, |options, command| containerd.run_detached("breeder", options, command));
    sleep(Duration::from_millis(500));
    let some = containerd.ctr_ok(&["task", "ps", "breeder"]).lines().count();
    assert!(some > 10, "the breeder does not breed: {some}");
    containerd.ctr_ok(&["task", "kill", "--signal", "KILL", "breeder"]);
    assert!(eventually(|| !alive(init)));
    assert!(eventually(|| containerd.task("breeder").unwrap().status == "STOPPED"));
    assert_eq!(containerd.delete_task("breeder"), 137);
    assert_eq!(containerd.cgroups_of("breeder"), Vec::<PathBuf>::new());
    containerd.ctr_ok(&["container", "delete", "breeder"]);
    // Any other signal goes to init alone, `all` or not.
    let script = "sleep 1000 & trap 'kill %1 && exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let mut ctr =
        run_with(&options, "term", script, |options, command| containerd.run_attached("term", options, command));
    let mut ready = [0; 6];
    ctr.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    containerd.ctr_ok(&["task", "kill", "--signal", "TERM", "term"]);
    assert_eq!(ctr.wait().unwrap().code(), Some(5), "the sleep was there to be killed by init");
    assert_eq!(containerd.cgroups_of("term"), Vec::<PathBuf>::new());
}

fn in_a_joined_pid_namespace_the_whole_container_ends_with_its_init(containerd: Containerd) {
    let owner = containerd.run_detached("owner", &[], SLEEP);
    ends_with_its_init(&containerd, |_, _| vec!["--with-ns".into(), format!("pid:/proc/{owner}/ns/pid")]);
    assert_eq!(containerd.task("owner").unwrap().pid, owner);
    containerd.remove("owner");
    containerd.assert_nothing_left();
}

fn without_a_pid_namespace_the_whole_container_ends_with_its_init(containerd: Containerd) {
    let options = |id: &str, command: &[&str]| {
        containerd.config(id, command, |spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        })
    };
    ends_with_its_init(&containerd, options);
    containerd.assert_nothing_left();
}

fn a_task_is_paused_measured_updated_and_resumed(containerd: Containerd) {
    let init = containerd.run_detached("paused", &[], SLEEP);
    let metrics = containerd.ctr_ok(&["task", "metrics", "paused"]);
    let v1 = ["memory.usage_in_bytes", "cpuacct.usage", "pids.current"];
    for name in on(v1, ["memory.usage", "cpu.usage_usec", "pids.current"]) {
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        assert!(value.and_then(|value| value.parse::<u64>().ok()).is_some_and(|value| value > 0), "{name}: {metrics}");
    }
    containerd.ctr_ok(&["task", "pause", "paused"]);
    assert_eq!(containerd.task("paused").unwrap().status, "PAUSED");
    let output = containerd.exec("paused", "e1", &[], &["true"]);
    assert!(!output.status.success() && text(&output.stderr).contains("paused"), "{output:?}");
    containerd.ctr_ok(&["task", "metrics", "paused"]);
    containerd.ctr_ok(&["task", "resume", "paused"]);
    assert_eq!(containerd.task("paused").unwrap().status, "RUNNING");
    assert!(containerd.exec("paused", "e2", &[], &["true"]).status.success());
    // And one that is paused when it is killed.
    containerd.ctr_ok(&["task", "pause", "paused"]);
    containerd.ctr_ok(&["task", "kill", "--signal", "KILL", "paused"]);
    assert!(eventually(|| containerd.task("paused").unwrap().status == "STOPPED"));
    assert!(!alive(init));
    assert_eq!(containerd.delete_task("paused"), 137);
    containerd.assert_nothing_left();
}
