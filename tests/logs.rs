//! Outputs that go to a logger (binary://, binary-v2://) or into a file (file://): nothing lost, and nobody held up.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::containerd::Containerd;
use common::scratch::Scratch;
use common::stdio::Io;
use common::world::{SOON, World, descriptors, leftovers, refused, status, until};
use containerd_shim_protos::api::Status;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use ttrpc::Code;

/// A logger for the tests: a script with the scratch directory as its `$0`'s.
struct Logger {
    dir: PathBuf,
    path: PathBuf,
}

impl Logger {
    /// `script` is run in a directory of its own. `ready` closes CONTAINER_WAIT; `ready2` writes its byte before.
    fn new(dir: &Path, name: &str, script: &str) -> Logger {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        let path = dir.join("logger");
        let text = format!(
            "#!/bin/busybox sh\ncd {} || exit 9\necho $$ >> pids\nready() {{ exec 5>&-; }}\n\
             ready2() {{ printf x >&5; exec 5>&-; }}\n{script}\n",
            dir.display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Logger { dir, path }
    }

    fn uri(&self, scheme: &str, query: &str) -> String {
        format!("{scheme}://{}{query}", self.path.display())
    }

    /// Both outputs to it.
    fn io(&self, scheme: &str) -> Io {
        both(self.uri(scheme, ""))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    fn pids(&self) -> Vec<i32> {
        self.text("pids").lines().map(|line| line.parse().unwrap()).collect()
    }

    #[track_caller]
    fn assert_gone(&self) {
        for pid in self.pids() {
            assert!(!is_running(pid), "logger {pid} lives");
        }
    }
}

/// One that writes what it gets, as it comes; a shell's `read`, so that it is one process.
const LINES: &str = "while read -r line <&3; do echo \"$line\" >> out; done";
/// Two that copy.
const COPY: &str = "cat <&3 >> out 5>&- & cat <&4 >> err 5>&- & exec 3<&- 4<&-; ready; wait";

fn both(uri: String) -> Io {
    let mut io = Io::null();
    (io.stdout, io.stderr) = (uri.clone(), uri);
    io
}

fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

/// Bytes without a period that a page, a pipe or a buffer could have.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// A container that has 64 MiB at /data/block.
fn with_block(bundle: Bundle, block: &[u8], script: &str) -> Bundle {
    let data = bundle.scratch().dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("block"), block).unwrap();
    let options = ["rbind", "ro"];
    bundle.mount(json!({"destination": "/data", "type": "bind", "source": data, "options": options})).script(script)
}

/// Create, Start, Wait, Delete; returns the exit status.
async fn run_to_end(world: &World, bundle: &Bundle, io: &Io) -> u32 {
    let world = world.within(Duration::from_secs(60));
    world.create(bundle, io).await.unwrap();
    let waiting = world.spawn_wait(&bundle.id, "").await;
    world.start(&bundle.id, "").await.unwrap();
    let status = waiting.await.unwrap().unwrap().exit_status;
    world.delete(&bundle.id, "").await.unwrap();
    status
}

/// A shim's descriptors once it has had a container: some that it keeps are opened for the first.
async fn settled_descriptors(world: &World) -> usize {
    let first = Bundle::new(&world.scratch, "first").args(&["true"]);
    assert_eq!(run_to_end(world, &first, &Io::null()).await, 0);
    descriptors(world.pid().await.unwrap())
}

#[test]
fn a_logger_gets_everything() {
    block_on(async {
        let block = noise((64 << 20) + 13);
        let script = "cat /data/block & head -c 1000003 /data/block >&2; wait; exit 5";
        let (world, bundle) = World::with("one", |b| with_block(b, &block, script)).await;
        let logger = Logger::new(world.scratch.dir(), "l", COPY);
        let shim = world.pid().await.unwrap();
        let before = settled_descriptors(&world).await;
        assert_eq!(run_to_end(&world, &bundle, &logger.io("binary")).await, 5);
        // Delete has waited for it.
        logger.assert_gone();
        assert_eq!(logger.pids().len(), 1, "one logger for both");
        assert!(fs::read(logger.file("out")).unwrap() == block, "stdout");
        assert!(fs::read(logger.file("err")).unwrap() == block[..1_000_003], "stderr");
        assert_eq!(descriptors(shim), before);
        assert_eq!(status(shim, "Threads"), 1);
        assert!(!bundle.log().contains("lost"));
        world.close().await;
    });
}

#[test]
fn a_logger_gets_its_arguments_its_environment_and_its_descriptors_and_no_others() {
    block_on(async {
        let (world, bundle) = World::with("one", sleeping).await;
        let script = "for arg; do echo \"[$arg]\"; done > args.tmp; tr '\\0' '\\n' < /proc/$$/environ > env
            (for fd in /proc/$$/fd/*; do echo \"${fd##*/} $(readlink $fd)\"; done > fds)
            grep -E '^(Sig(Blk|Ign)|CapEff|Seccomp)' /proc/$$/status > status; cat /proc/$$/oom_score_adj > oom
            mv args.tmp args; ready; while read -r line <&3; do :; done";
        let logger = Logger::new(world.scratch.dir(), "l", script);
        let query = "?first=1&second=a+b%2Fc&flag&first=again&env.LEVEL=debug%3D1&env.CONTAINER_ID=other";
        let io = both(logger.uri("binary", query));
        world.create(&bundle, &io).await.unwrap();
        assert_eq!(logger.text("args"), "[first]\n[1]\n[second]\n[a b/c]\n[flag]\n[]\n");
        let namespace = world.scratch.namespace();
        let expected = format!("CONTAINER_ID=one\nCONTAINER_NAMESPACE={namespace}\nLEVEL=debug=1\n");
        assert_eq!(logger.text("env"), expected);
        let fds = logger.text("fds");
        let fds: Vec<_> = fds.lines().map(|line| line.split_once(' ').unwrap()).collect();
        // A shell has its script open as well.
        let own = logger.path.to_str().unwrap();
        let fds: Vec<_> = fds.into_iter().filter(|(_, target)| *target != own).collect();
        let mut pipes = Vec::new();
        for (n, (number, target)) in fds.iter().enumerate().take(6) {
            assert_eq!(*number, n.to_string());
            match n {
                // The shim's own null device has no path.
                0..3 => assert!(target.ends_with("/null"), "{number} {target}"),
                _ => pipes.push(*target),
            }
        }
        assert!(fds.len() == 6 && pipes.iter().all(|pipe| pipe.starts_with("pipe:[")), "{fds:?}");
        assert!(pipes[0] != pipes[1] && pipes[1] != pipes[2], "{fds:?}");
        // A busybox shell ignores SIGQUIT itself.
        assert!(
            logger.text("status").contains("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000004\n"),
            "{}",
            logger.text("status")
        );
        // The container has the other ends of the pipes, and they are its user's.
        let pid = world.state("one", "").await.unwrap().pid;
        for (fd, pipe) in [(1, pipes[0]), (2, pipes[1])] {
            let theirs = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
            assert_eq!(theirs.to_str().unwrap(), pipe);
        }
        // An exec's logger is told the exec's id, as by containerd's own shim.
        world.start("one", "").await.unwrap();
        let second = Logger::new(world.scratch.dir(), "x", "echo $CONTAINER_ID > id; ready; cat <&3 >out");
        let mut io = second.io("binary");
        io.stderr.clear();
        let process = bundle.process(&["sh", "-c", "echo from exec; echo to stderr >&2"]);
        let exit = world.within(SOON).exec_to_exit("one", "run-1", &process, &io).await.unwrap();
        assert_eq!((exit.exit_status, &*second.text("id"), &*second.text("out")), (0, "run-1\n", "from exec\n"));
        assert_eq!(world.end("one").await, 137);
        logger.assert_gone();
        world.close().await;
    });
}

#[test]
fn the_owner_of_the_pipes_is_the_containers_user() {
    block_on(async {
        let change = |b: Bundle| {
            let b = b.script("echo by its path > /proc/self/fd/1; exit 0");
            b.edit(|spec| {
                spec["process"]["user"] = json!({"uid": 1234, "gid": 5678});
            })
        };
        let (world, bundle) = World::with("one", change).await;
        let logger = Logger::new(world.scratch.dir(), "l", COPY);
        assert_eq!(run_to_end(&world, &bundle, &logger.io("binary")).await, 0);
        assert_eq!(logger.text("out"), "by its path\n");
        world.close().await;
    });
}

#[test]
fn create_waits_until_the_logger_is_ready() {
    block_on(async {
        let (world, bundle) = World::with("one", sleeping).await;
        for (scheme, ready) in [("binary", "ready"), ("binary", "ready2"), ("binary-v2", "ready2")] {
            let script = format!("sleep 0.5; echo now > ready; {ready}; {LINES}");
            let logger = Logger::new(world.scratch.dir(), &format!("{scheme}-{ready}"), &script);
            world.within(SOON).create(&bundle, &logger.io(scheme)).await.unwrap();
            assert_eq!(logger.text("ready"), "now\n", "{scheme} {ready}");
            assert_eq!(world.end("one").await, 137);
            logger.assert_gone();
        }
        world.close().await;
    });
}

#[test]
fn a_logger_that_does_not_become_ready_fails_create() {
    block_on(async {
        let (world, other) = World::running("other", sleeping).await;
        let dir = world.scratch.dir();
        let shim = world.pid().await.unwrap();
        let before = descriptors(shim);
        let missing = dir.join("missing").to_str().unwrap().to_owned();
        let plain = dir.join("plain").to_str().unwrap().to_owned();
        fs::write(&plain, "no program").unwrap();
        let dies = Logger::new(dir, "dies", "exit 3");
        let silent = Logger::new(dir, "silent", "exec 5>&-; sleep 1000");
        let early = Logger::new(dir, "early", "kill -9 $$");
        let cases = [
            (format!("binary://{missing}?token=secret"), Code::NOT_FOUND, vec![&*missing, "no such file"]),
            (format!("binary-v2://{missing}"), Code::NOT_FOUND, vec![&missing, "no such file"]),
            (format!("binary://{plain}"), Code::INTERNAL, vec![&plain, "permission denied"]),
            (dies.uri("binary", ""), Code::UNAVAILABLE, vec!["dies/logger", "status 3"]),
            (dies.uri("binary-v2", ""), Code::UNAVAILABLE, vec!["dies/logger", "status 3"]),
            (early.uri("binary-v2", ""), Code::UNAVAILABLE, vec!["early/logger", "status 137"]),
            (silent.uri("binary-v2", ""), Code::UNAVAILABLE, vec!["silent/logger", "has not said"]),
            ("binary://relative".into(), Code::INVALID_ARGUMENT, vec!["not an absolute path"]),
            ("file://relative".into(), Code::INVALID_ARGUMENT, vec!["not an absolute path"]),
            (format!("file://{plain}/below/a/file"), Code::NOT_FOUND, vec![&plain, "not a directory"]),
            (format!("file://{}", dir.display()), Code::INTERNAL, vec!["is a directory"]),
            ("npipe:///x".into(), Code::UNIMPLEMENTED, vec!["npipe"]),
        ];
        for (uri, code, words) in cases {
            for exec in ["", "x"] {
                let io = both(uri.clone());
                let result = match exec {
                    "" => {
                        let bundle = Bundle::new(&world.scratch, "one").args(&["true"]);
                        let result = world.within(SOON).create(&bundle, &io).await.map(|_| ());
                        fs::remove_dir_all(bundle.dir()).unwrap();
                        result
                    }
                    _ => {
                        world.exec("other", "x", &other.process(&["true"]), &io).await.unwrap();
                        let result = world.within(SOON).start("other", "x").await.map(|_| ());
                        world.delete("other", "x").await.unwrap();
                        result
                    }
                };
                assert!(!format!("{result:?}").contains("secret"), "{result:?}");
                refused(result, code, &words);
            }
        }
        for logger in [&dies, &silent, &early] {
            logger.assert_gone();
        }
        assert_eq!(descriptors(shim), before);
        assert_eq!(world.end("other").await, 137);
        world.close().await;
    });
}

#[test]
fn a_logger_that_never_gets_ready_is_not_waited_for_for_ever() {
    block_on(async {
        let (world, _) = World::running("other", sleeping).await;
        let bundle = Bundle::new(&world.scratch, "one").args(&["true"]);
        let logger = Logger::new(world.scratch.dir(), "l", "sleep 1000 & wait");
        let creating = tokio::spawn({
            let (task, io) = (world.within(Duration::from_secs(60)), logger.io("binary"));
            let request = task.request_for(&bundle, &io);
            async move { task.create_request(request).await }
        });
        until("the logger", || !logger.pids().is_empty()).await;
        // Nobody else waits.
        let quick = world.within(Duration::from_secs(2));
        assert_eq!(quick.status("other", "").await.unwrap(), Status::RUNNING);
        refused(creating.await.unwrap(), Code::DEADLINE_EXCEEDED, &["logger", "not ready within 10 s"]);
        logger.assert_gone();
        assert_eq!(world.end("other").await, 137);
        // With what it had started.
        world.close().await;
    });
}

#[test]
fn a_logger_that_dies_is_started_again_and_the_container_does_not_notice() {
    block_on(async {
        let script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 6";
        let (world, bundle) = World::with("one", |b| b.script(script)).await;
        let logger = Logger::new(world.scratch.dir(), "l", &format!("ready2; {LINES}"));
        world.create(&bundle, &logger.io("binary-v2")).await.unwrap();
        let waiting = world.spawn_wait("one", "").await;
        world.start("one", "").await.unwrap();
        until("output", || logger.text("out").contains("line 50\n")).await;
        for n in 1..=2 {
            let pid = *logger.pids().last().unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            until("another logger", || logger.pids().len() > n).await;
        }
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 6);
        world.delete("one", "").await.unwrap();
        let text = logger.text("out");
        let lines: Vec<_> = text.lines().collect();
        // What each of the dead had read and not written is gone with it: a line at most, since it reads by the byte.
        let there = (0..400).filter(|i| lines.contains(&&*format!("line {i}"))).count();
        assert!(there >= 396 && text.ends_with("line 399\n"), "{there} lines");
        assert_eq!(logger.pids().len(), 3);
        let log = bundle.log();
        assert_eq!(log.matches("has ended with status 137").count(), 2, "{log}");
        world.close().await;
    });
}

#[test]
fn a_container_whose_logger_is_gone_for_good_goes_on_without_it() {
    block_on(async {
        // More than the pipes hold, from the first death on.
        let script = "head -c 3000000 /dev/zero; echo >&2; head -c 1000000 /dev/zero >&2; echo done > /run/done
            while [ ! -e /run/end ]; do sleep 0.01; done; exit 7";
        let (world, bundle) = World::with("one", |b| b.script(script)).await;
        let logger = Logger::new(world.scratch.dir(), "l", "rm logger; ready; exec sleep 0.3");
        let pid = world.create(&bundle, &logger.io("binary")).await.unwrap().pid;
        world.start("one", "").await.unwrap();
        let run = PathBuf::from(format!("/proc/{pid}/root/run"));
        until("the container's writes", || run.join("done").exists()).await;
        let quick = world.within(Duration::from_secs(2));
        assert_eq!(quick.status("one", "").await.unwrap(), Status::RUNNING);
        fs::write(run.join("end"), "").unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 7);
        world.within(SOON).delete("one", "").await.unwrap();
        let log = bundle.log();
        assert!(log.contains("has ended with status 0") && log.contains("no such file or directory"), "{log}");
        let lost = log.lines().filter_map(|line| line.split_once(" bytes of output were lost")?.0.rsplit(' ').next());
        let lost: u64 = lost.map(|number| number.parse::<u64>().unwrap()).sum();
        assert_eq!(lost, 4_000_001, "{log}");
        world.close().await;
    });
}

#[test]
fn loggers_outlive_their_shim_and_end_with_the_container() {
    block_on(async {
        let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
        let (world, bundle) = World::with("one", |b| b.script(script)).await;
        let logger = Logger::new(world.scratch.dir(), "l", &format!("ready; {LINES}; echo end >> out"));
        let path = world.scratch.dir().join("log");
        let mut io = logger.io("binary");
        io.stderr = format!("file://{}", path.display());
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        until("output", || logger.text("out").contains("line 10\n")).await;
        world.kill_shim().await.unwrap();
        let lines = logger.text("out").lines().count();
        until("more output", || logger.text("out").lines().count() > lines + 50).await;
        assert_eq!(world.delete_action().unwrap().exit_status, 137);
        until("the logger's end", || logger.text("out").ends_with("\nend\n")).await;
        assert!(path.exists());
        until("the end of everything", || leftovers(&world.scratch).is_empty()).await;
    });
}

#[test]
fn a_logger_that_does_not_read_holds_up_its_container_and_nobody_else() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.script("yes; exit 0")).await;
        // Not by a SIGTERM either.
        let logger = Logger::new(world.scratch.dir(), "l", "trap '' TERM; ready; while :; do sleep 0.1; done");
        world.create(&bundle, &logger.io("binary")).await.unwrap();
        world.start("one", "").await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let other = Bundle::new(&world.scratch, "other").args(&["sleep", "1000"]);
        world.run(&other).await;
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 137);
        let since = Instant::now();
        let deleting = tokio::spawn({
            let task = world.within(Duration::from_secs(60));
            async move { task.delete("one", "").await }
        });
        let quick = world.within(Duration::from_secs(2));
        assert_eq!(quick.status("one", "").await.unwrap(), Status::STOPPED);
        assert_eq!(quick.status("other", "").await.unwrap(), Status::RUNNING);
        deleting.await.unwrap().unwrap();
        assert!(since.elapsed() < Duration::from_secs(40), "{:?}", since.elapsed());
        logger.assert_gone();
        let log = bundle.log();
        assert!(log.contains("bytes of output were lost"), "{log}");
        assert_eq!(world.end("other").await, 137);
        world.close().await;
    });
}

#[test]
fn delete_waits_for_a_loggers_last_lines() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.script("echo one; echo two")).await;
        let slow =
            Logger::new(world.scratch.dir(), "slow", &format!("ready; sleep 0.7; {LINES}; sleep 0.7; echo end >> out"));
        assert_eq!(run_to_end(&world, &bundle, &slow.io("binary")).await, 0);
        assert_eq!(slow.text("out"), "one\ntwo\nend\n");
        // One that takes no end of file for its own end gets the signal that it waits for.
        let script = format!("trap 'echo terminated >> out; exit' TERM; ready; {LINES}; while :; do sleep 0.1; done");
        let deaf = Logger::new(world.scratch.dir(), "deaf", &script);
        let since = Instant::now();
        assert_eq!(run_to_end(&world, &bundle, &deaf.io("binary")).await, 0);
        assert_eq!(deaf.text("out"), "one\ntwo\nterminated\n");
        assert!(since.elapsed() < Duration::from_secs(9), "not as soon as it had nothing left to read");
        slow.assert_gone();
        deaf.assert_gone();
        world.close().await;
    });
}

#[test]
fn a_create_that_fails_afterwards_leaves_no_logger() {
    block_on(async {
        let missing = json!({"destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["bind"]});
        let (world, bundle) = World::with("one", |b| b.mount(missing)).await;
        let logger = Logger::new(world.scratch.dir(), "l", "trap '' TERM; ready; cat <&3; sleep 1000");
        let created = world.create(&bundle, &logger.io("binary")).await;
        assert!(created.unwrap_err().to_string().contains("/no/such/source"));
        assert_eq!(logger.pids().len(), 1);
        until("the logger's end", || logger.pids().iter().all(|&pid| !is_running(pid))).await;
        world.close().await;
    });
}

#[test]
fn the_logger_of_an_exec_that_nobody_deletes_ends_with_the_container() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let logger = Logger::new(world.scratch.dir(), "l", "trap '' TERM; ready; while :; do sleep 0.1; done");
        world.exec("one", "x", &bundle.process(&["true"]), &logger.io("binary")).await.unwrap();
        world.start("one", "x").await.unwrap();
        assert_eq!(world.wait("one", "x").await.unwrap().exit_status, 0);
        assert_eq!(world.end("one").await, 137);
        until("the logger's end", || logger.pids().iter().all(|&pid| !is_running(pid))).await;
        world.close().await;
    });
}

#[test]
fn both_outputs_go_to_one_file_which_is_appended_to() {
    block_on(async {
        let script = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; exit 4";
        let (world, bundle) = World::with("one", |b| b.script(script)).await;
        let path = world.scratch.dir().join("a dir/below/log");
        let uri = format!("file://{}", path.display()).replace(' ', "%20");
        for runs in 1..=2 {
            assert_eq!(run_to_end(&world, &bundle, &both(uri.clone())).await, 4);
            let text = fs::read_to_string(&path).unwrap();
            for (stream, other) in [("out", "err"), ("err", "out")] {
                let lines: Vec<_> = text.lines().filter(|line| !line.starts_with(other)).collect();
                let expected: Vec<_> = (0..runs * 500).map(|i| format!("{stream} {}", i % 500)).collect();
                assert!(lines == expected, "{stream}: {} lines", lines.len());
            }
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o644, 0o755));
        // Or two files, and an exec's.
        let sleeper = Bundle::new(&world.scratch, "two").args(&["sleep", "1000"]);
        world.run(&sleeper).await;
        let (out, err) = (world.scratch.dir().join("out"), world.scratch.dir().join("err"));
        let mut io = Io::null();
        (io.stdout, io.stderr) = (format!("file://{}", out.display()), format!("file://{}", err.display()));
        let process = sleeper.process(&["sh", "-c", "echo 1; echo 2 >&2"]);
        world.exec_to_exit("two", "x", &process, &io).await.unwrap();
        assert_eq!((&*fs::read_to_string(out).unwrap(), &*fs::read_to_string(err).unwrap()), ("1\n", "2\n"));
        assert_eq!(world.end("two").await, 137);
        world.close().await;
    });
}

#[test]
fn a_file_gets_everything_by_a_process_of_its_own() {
    block_on(async {
        let block = noise((64 << 20) + 13);
        let script = "cat /data/block; while [ ! -e /run/end ]; do sleep 0.01; done";
        let (world, bundle) = World::with("one", |b| with_block(b, &block, script)).await;
        let path = world.scratch.dir().join("log");
        let shim = world.pid().await.unwrap();
        let before = settled_descriptors(&world).await;
        let pid = world.create(&bundle, &both(format!("file://{}", path.display()))).await.unwrap().pid;
        world.start("one", "").await.unwrap();
        until("the block", || fs::metadata(&path).is_ok_and(|file| file.len() == block.len() as u64)).await;
        // The file is not the container's, not the shim's; the writer has it and three descriptors more.
        let has_it = |pid: i32| {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target == path)
        };
        let writer = world.scratch.shims().into_iter().find(|&pid| pid != shim).expect("a writer");
        assert!(has_it(writer) && !has_it(shim) && !has_it(pid as i32));
        assert_eq!(descriptors(writer), 3 + 4);
        assert_eq!((status(shim, "Threads"), status(writer, "Threads")), (1, 1));
        let memory = fs::read_to_string(format!("/proc/{writer}/smaps_rollup")).unwrap();
        let private = memory.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        let private: u64 = private.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(private < 512, "{private} KiB of its own");
        fs::write(format!("/proc/{pid}/root/run/end"), "").unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 0);
        world.delete("one", "").await.unwrap();
        assert!(!is_running(writer));
        assert!(fs::read(&path).unwrap() == block);
        assert_eq!(descriptors(shim), before);
        world.close().await;
    });
}

#[test]
fn the_writer_of_a_file_is_started_again_too_and_follows_a_rename_then() {
    block_on(async {
        let script = "echo one; while [ ! -e /run/end ]; do sleep 0.01; done; echo two";
        let (world, bundle) = World::with("one", |b| b.script(script)).await;
        let path = world.scratch.dir().join("log");
        let shim = world.pid().await.unwrap();
        let pid = world.create(&bundle, &both(format!("file://{}", path.display()))).await.unwrap().pid;
        world.start("one", "").await.unwrap();
        until("the first line", || fs::read_to_string(&path).is_ok_and(|text| text == "one\n")).await;
        fs::rename(&path, world.scratch.dir().join("log.1")).unwrap();
        let writers = || world.scratch.shims().into_iter().filter(|&pid| pid != shim && is_running(pid));
        let writer = writers().next().unwrap();
        kill_process(Pid::from_raw(writer).unwrap(), Signal::KILL).unwrap();
        until("another writer", || path.exists() && writers().any(|pid| pid != writer)).await;
        fs::write(format!("/proc/{pid}/root/run/end"), "").unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 0);
        world.delete("one", "").await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert!(bundle.log().contains("status 137"));
        world.close().await;
    });
}

#[test]
fn a_full_disk_loses_output_and_stops_no_container() {
    block_on(async {
        let script = "head -c 1000000 /dev/zero; touch /run/done; while [ ! -e /run/end ]; do sleep 0.01; done
            echo; echo last; exit 3";
        let (world, bundle) = World::with("one", |b| b.script(script)).await;
        let dir = world.scratch.dir().join("small");
        fs::create_dir(&dir).unwrap();
        mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), Some(c"size=64k")).unwrap();
        let path = dir.join("log");
        let pid = world.create(&bundle, &both(format!("file://{}", path.display()))).await.unwrap().pid;
        world.start("one", "").await.unwrap();
        let run = PathBuf::from(format!("/proc/{pid}/root/run"));
        until("the container's writes", || run.join("done").exists()).await;
        let mut log = String::new();
        until("a word of it", || {
            log += &bundle.log();
            log.contains("no space left on device")
        })
        .await;
        // There is room again.
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        fs::write(run.join("end"), "").unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 3);
        world.delete("one", "").await.unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("\nlast\n"));
        log += &bundle.log();
        assert_eq!(log.matches("no space left on device").count(), 1, "{log}");
        assert!(log.contains("bytes of output were lost"), "{log}");
        rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH).unwrap();
        world.close().await;
    });
}

#[test]
fn a_terminals_output_goes_to_a_logger_or_a_file() {
    block_on(async {
        let terminal = |b: Bundle| {
            let b = b.script("tty; read -r line; echo \"got $line\"; echo err >&2; seq 1 5000; exit 2");
            b.edit(|spec| spec["process"]["terminal"] = json!(true))
        };
        let (world, bundle) = World::with("one", terminal).await;
        let logger = Logger::new(world.scratch.dir(), "l", COPY);
        let path = world.scratch.dir().join("log");
        let targets = [(logger.uri("binary", ""), logger.file("out")), (format!("file://{}", path.display()), path)];
        for (n, (uri, file)) in targets.into_iter().enumerate() {
            let mut io = both(uri).with_stdin(&world.scratch, &n.to_string());
            io.terminal = true;
            world.create(&bundle, &io).await.unwrap();
            world.start("one", "").await.unwrap();
            io.open_stdin(SOON).await.unwrap().write_all(b"typed\n").unwrap();
            assert_eq!(world.wait("one", "").await.unwrap().exit_status, 2);
            world.delete("one", "").await.unwrap();
            let numbers: String = (1..=5000).map(|n| format!("{n}\r\n")).collect();
            let text = fs::read_to_string(file).unwrap();
            // The echo of what is typed may come before the first line.
            assert!(text.contains("/dev/pts/0\r\n") && text.contains("got typed\r\nerr\r\n"), "{text:.100}");
            assert!(text.ends_with(&numbers), "{} bytes", text.len());
        }
        logger.assert_gone();
        assert_eq!(logger.text("err"), "");
        world.close().await;
    });
}

common::on_each_containerd! { ctr_logs_to_a_file_and_to_a_logger }

fn ctr_logs_to_a_file_and_to_a_logger(containerd: Containerd) {
    let dir = Scratch::new();
    let command = ["sh", "-c", "echo out; echo err >&2; exit 7"];
    let file = dir.dir().join("logs/file");
    let output = containerd.run("file", &["--log-uri", &format!("file://{}", file.display())], &command);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let mut lines: Vec<_> = fs::read_to_string(&file).unwrap().lines().map(String::from).collect();
    lines.sort();
    assert_eq!(lines, ["err", "out"]);
    for scheme in ["binary", "binary-v2"] {
        let script = COPY.replace("ready", "ready2").replace("wait", "wait; echo $@ $CONTAINER_ID > args");
        let logger = Logger::new(dir.dir(), scheme, &script);
        let output = containerd.run(scheme, &["--log-uri", &logger.uri(scheme, "?key=value")], &command);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!((&*logger.text("out"), &*logger.text("err")), ("out\n", "err\n"));
        assert_eq!(logger.text("args"), format!("key value {scheme}\n"));
        logger.assert_gone();
    }
    containerd.assert_nothing_left();
}

/// A process that leads a group of its own, under a number that is free.
fn with_pid(wanted: i32) -> Option<Child> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string()).unwrap();
        let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        if child.id() as i32 == wanted {
            return Some(child);
        }
        child.kill().and_then(|()| child.wait()).unwrap();
    }
    None
}

/// A logger that has left its work, and CONTAINER_WAIT, to another process, is gone with its number when it is given up.
#[test]
fn a_logger_that_has_been_reaped_is_not_killed() {
    block_on(async {
        let (world, bundle) = World::with("one", sleeping).await;
        let logger = Logger::new(world.scratch.dir(), "l", "setsid sh -c 'echo $$ >> pids; exec sleep 1000' & exit 0");
        let creating = async {
            let result = world.within(SOON + SOON).create(&bundle, &logger.io("binary")).await;
            refused(result, Code::DEADLINE_EXCEEDED, &["not ready within"]);
        };
        let replacing = async {
            until("both processes", || logger.pids().len() == 2).await;
            let first = logger.pids()[0];
            until("the first one's end", || !Path::new(&format!("/proc/{first}")).exists()).await;
            with_pid(first)
        };
        let ((), other) = futures::join!(creating, replacing);
        kill_process(Pid::from_raw(logger.pids()[1]).unwrap(), Signal::KILL).unwrap();
        let Some(mut other) = other else {
            return common::skipped("a_logger_that_has_been_reaped_is_not_killed", "its number is another's already");
        };
        let ended = other.try_wait().unwrap();
        let _ = other.kill();
        other.wait().unwrap();
        assert_eq!(ended, None, "a process that is none of ours was killed");
        world.close().await;
    });
}
