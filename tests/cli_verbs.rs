//! The verbs that look at a container and change it: `dray state`, `list`, `ps`, `pause`, `resume`, `update`, `events` and
//! `exec`, in the containers of a living shim, of one that has died, and of the command line. Their forms are runc's:
//! tests/data/runc has what runc 1.1.5 has printed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::bundle::Bundle;
use common::dray::{Dray, fails, ok, text, wait_until};
use common::driver::{await_exit, open_pid};
use common::pty::Client;
use common::stdio::Io;
use common::world::{SOON, World, until};
use common::{block_on, cgroup, patience, shim_binary};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const SLEEP: [&str; 2] = ["sleep", "1000"];

/// A shell that does what it is told line by line, and does not play with its terminal.
const LINES: &str = "trap 'echo caught' INT; while :; do read -r line && eval \"$line\"; done";

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&SLEEP)
}

/// What runc has printed.
fn recorded(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/runc").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The keys of an object in the order in which they stand in its text.
fn keys(text: &str, indent: &str) -> Vec<String> {
    let key = |line: &str| line.strip_prefix(indent)?.strip_prefix('"')?.split('"').next().map(str::to_owned);
    text.lines().filter_map(key).collect()
}

/// `dray` for the containers of a shim.
struct Verbs {
    binary: PathBuf,
    root: PathBuf,
}

impl Verbs {
    fn of(world: &World) -> Verbs {
        let binary = world.scratch.dir().join("dray");
        if !binary.exists() {
            symlink(shim_binary(), &binary).unwrap();
        }
        Verbs { binary, root: PathBuf::from("/run/dray").join(world.scratch.namespace()) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The same of what leaves something behind that has its streams.
    fn left(&self, args: &[&str]) {
        let status = self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{args:?}: {status}");
    }

    fn status(&self, id: &str) -> String {
        parsed(&ok(&self.run(&["state", id])))["status"].as_str().unwrap().to_owned()
    }
}

fn finish(mut child: Child) -> Output {
    let pidfd = open_pid(child.id() as i32).unwrap();
    if let Err(e) = await_exit(&pidfd, SOON) {
        let _ = child.kill();
        panic!("{e}: {}", text(&child.wait_with_output().unwrap().stderr));
    }
    child.wait_with_output().unwrap()
}

fn is_frozen(bundle: &Bundle) -> bool {
    let (file, frozen) = cgroup::on(("freezer.state", "FROZEN"), ("cgroup.freeze", "1"));
    bundle.knob(file) == frozen
}

fn memory_limit(bundle: &Bundle) -> String {
    bundle.knob(cgroup::on("memory.limit_in_bytes", "memory.max"))
}

/// One descriptor.
fn receive(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(patience(SOON))).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds: Vec<OwnedFd> = fds.flatten().collect();
    assert_eq!(fds.len(), 1);
    fds.remove(0)
}

#[test]
fn state_is_runcs_document_through_a_containers_life() {
    block_on(async {
        let annotated = |bundle: Bundle| bundle.edit(|spec| spec["annotations"] = json!({"a": "b"}));
        let (world, bundle) = World::with("one", |bundle| annotated(sleeping(bundle))).await;
        let dray = Verbs::of(&world);
        let missing = fails(&dray.run(&["state", "one"]), 1);
        assert_eq!(missing, "dray: container one: container does not exist\n");
        let pid = world.create(&bundle, &Io::null()).await.unwrap().pid;
        assert_eq!(dray.status("one"), "created");
        world.start("one", "").await.unwrap();

        let printed = ok(&dray.run(&["state", "one"]));
        assert_eq!(keys(&printed, "  "), keys(&recorded("state.json"), "  "));
        assert!(!printed.ends_with('\n'), "as runc's");
        let state = parsed(&printed);
        let created = state["created"].as_str().unwrap();
        assert!(created.len() > 20 && created.ends_with('Z') && created.contains('T'), "{created}");
        let rootfs = bundle.rootfs_dir();
        let wanted = json!({"ociVersion": state["ociVersion"], "id": "one", "pid": pid, "status": "running",
            "bundle": bundle.dir(), "rootfs": rootfs, "created": created, "annotations": {"a": "b"}, "owner": ""});
        assert_eq!(state, wanted);

        world.pause("one").await.unwrap();
        assert_eq!(dray.status("one"), "paused");
        world.resume("one").await.unwrap();
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        world.wait("one", "").await.unwrap();
        let state = parsed(&ok(&dray.run(&["state", "one"])));
        assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
        world.delete("one", "").await.unwrap();
        fails(&dray.run(&["state", "one"]), 1);
        world.close().await;
    });
}

#[test]
fn list_has_runcs_members_and_says_whose_they_are() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let printed = ok(&dray.run(&["list", "--format", "json"]));
        assert!(printed.ends_with("]\n") && printed.lines().count() == 1, "{printed}");
        let all = parsed(&printed);
        let runc = parsed(&recorded("list.json"));
        let mut wanted: Vec<_> = runc[0].as_object().unwrap().keys().filter(|key| *key != "annotations").collect();
        let own = ["namespace".to_owned(), "shim".to_owned()];
        wanted.extend(&own);
        wanted.sort();
        let mut has: Vec<_> = all[0].as_object().unwrap().keys().collect();
        has.sort();
        assert_eq!(has, wanted);
        assert_eq!(
            (&all[0]["id"], &all[0]["status"], &all[0]["owner"]),
            (&json!("one"), &json!("running"), &json!("root"))
        );
        assert_eq!(all[0]["namespace"], json!(world.scratch.namespace()));
        let shim = world.shim.pid().await.unwrap();
        assert_eq!(all[0]["shim"], json!({"id": "one", "pid": shim}));

        let table = ok(&dray.run(&["list"]));
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 2, "{table}");
        let head: Vec<_> = lines[0].split_whitespace().collect();
        assert_eq!(head, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER", "NAMESPACE", "SHIM"]);
        assert!(lines[0].starts_with("ID          PID         STATUS      BUNDLE   "), "{table}");
        let fields: Vec<_> = lines[1].split_whitespace().collect();
        let bundle_dir = bundle.dir().to_str().unwrap();
        assert_eq!((fields[0], fields[2], fields[3], fields[5]), ("one", "running", bundle_dir, "root"));
        assert_eq!(fields[7..].join(" "), format!("one ({shim})"));

        assert_eq!(ok(&dray.run(&["list", "-q"])), "one\n");
        // By its namespace among all others: there is no --root.
        let everything = Command::new(&dray.binary).args(["list", "-f", "json"]).output().unwrap();
        let namespaces = |member: &Value| member["namespace"] == json!(world.scratch.namespace());
        assert_eq!(parsed(&ok(&everything)).as_array().unwrap().iter().filter(|m| namespaces(m)).count(), 1);
        world.end("one").await;
        assert_eq!(ok(&dray.run(&["list", "-f", "json"])), "null\n");
        fails(&dray.run(&["list", "-f", "yaml"]), 1);
        world.close().await;
    });
}

/// The shim of a pod, whose second container has no address of its own in its bundle, as with containerd 2.
#[test]
fn a_second_container_of_a_shim_is_found_by_its_state() {
    block_on(async {
        let (world, _one) = World::running("one", sleeping).await;
        let two = sleeping(Bundle::new(&world.scratch, "two"));
        assert!(!two.dir().join("address").exists());
        world.run(&two).await;
        let dray = Verbs::of(&world);
        ok(&dray.run(&["pause", "two"]));
        assert!(is_frozen(&two));
        world.sink.wait_topic("paused", "two", SOON).await.unwrap();
        ok(&dray.run(&["resume", "two"]));
        assert_eq!(parsed(&ok(&dray.run(&["list", "-f", "json"])))[1]["shim"]["id"], json!("one"));
        world.end("two").await;
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn ps_lists_the_containers_processes_and_no_others() {
    block_on(async {
        let (world, _bundle) = World::running("one", |bundle| bundle.script("sleep 999 & sleep 1000; true")).await;
        let dray = Verbs::of(&world);
        let mut pids = Vec::new();
        for _ in 0..1000 {
            pids = world.pids("one").await.unwrap();
            if pids.len() == 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        pids.sort();
        assert_eq!(parsed(&ok(&dray.run(&["ps", "-f", "json", "one"]))), json!(pids));
        let table = ok(&dray.run(&["ps", "one"]));
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("UID") && lines.len() == 4, "{table}");
        assert!(lines[1..].iter().all(|line| line.contains("sleep ")), "{table}");
        let table = ok(&dray.run(&["ps", "one", "-e", "-o", "pid,args"]));
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>()[..2], ["PID", "COMMAND"]);
        // What is a flag of ours as well is ps's behind the id.
        assert!(ok(&dray.run(&["ps", "one", "-f", "-e"])).starts_with("UID"));
        assert!(fails(&dray.run(&["ps", "one", "-o", "args"]), 1).contains("couldn't find PID field in ps output"));
        let wrong = fails(&dray.run(&["ps", "one", "--no-such-option"]), 1);
        assert!(wrong.contains("exit status 1"), "{wrong}");
        let lost = dray.command(&["ps", "one"]).env("PATH", "/nonexistent").output().unwrap();
        assert!(fails(&lost, 1).contains("executable file not found in $PATH"));
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn pause_and_resume_are_the_shims_to_do() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        assert!(fails(&dray.run(&["resume", "one"]), 1).contains("container not paused"));
        ok(&dray.run(&["pause", "one"]));
        assert!(is_frozen(&bundle));
        assert!(fails(&dray.run(&["pause", "one"]), 1).contains("container not running"));
        assert!(fails(&dray.run(&["exec", "one", "true"]), 255).contains("cannot exec in a paused container"));
        ok(&dray.run(&["resume", "one"]));
        assert!(!is_frozen(&bundle));
        // containerd hears of it.
        world.sink.wait_topic("resumed", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "start", "paused", "resumed"]);
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn update_changes_a_shims_container_by_flags_and_by_document() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        ok(&dray.run(&["update", "--memory", "32m", "--pids-limit", "77", "--cpu-share", "512", "one"]));
        assert_eq!((memory_limit(&bundle), bundle.knob("pids.max")), ((32 << 20).to_string(), "77".to_owned()));
        assert_eq!(bundle.knob(cgroup::on("cpu.shares", "cpu.weight")), cgroup::on("512", "59"));
        let mut child = dray.command(&["update", "-r", "-", "one"]);
        let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let document = json!({"pids": {"limit": 55}, "memory": {"limit": -1}});
        child.stdin.take().unwrap().write_all(document.to_string().as_bytes()).unwrap();
        ok(&finish(child));
        let unlimited = cgroup::on("9223372036854771712", "max");
        assert_eq!((memory_limit(&bundle).as_str(), bundle.knob("pids.max").as_str()), (unlimited, "55"));
        let file = world.scratch.dir().join("resources.json");
        fs::write(&file, r#"{"pids": {"limit": 44}}"#).unwrap();
        ok(&dray.run(&["update", "--pids-limit", "33", "--resources", file.to_str().unwrap(), "one"]));
        assert_eq!(bundle.knob("pids.max"), "44", "the file is all that counts");

        let warned = dray.run(&["update", "--kernel-memory", "1m", "one"]);
        ok(&warned);
        assert!(text(&warned.stderr).contains("Setting --kernel-memory is ignored"), "{}", text(&warned.stderr));
        for (args, why) in [
            (["--memory", "20x"], "invalid value for memory: invalid size: '20x'"),
            (["--cpu-quota", "a"], "invalid value for cpu-quota"),
            (["--l3-cache-schema", "L3:0=f"], "Intel RDT/CAT: l3 cache schema is not enabled"),
            (["--mem-bw-schema", "MB:0=20"], "Intel RDT/MBA: memory bandwidth schema is not enabled"),
            (["-r", "/nonexistent"], "no such file or directory"),
        ] {
            let error = fails(&dray.run(&["update", args[0], args[1], "one"]), 1);
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(bundle.knob("pids.max"), "44");
        world.end("one").await;
        world.close().await;
    });
}

/// Paths of all members that an object of runc's has: lists and names of devices, pages and counters are the machine's.
fn members(value: &Value, path: &str, all: &mut Vec<String>) {
    let Some(object) = value.as_object() else { return all.push(path.to_owned()) };
    if object.is_empty() || path.ends_with("/raw") {
        return all.push(path.to_owned());
    }
    object.iter().for_each(|(key, value)| members(value, &format!("{path}/{key}"), all));
}

#[test]
fn stats_have_runcs_members_and_the_kernels_numbers() {
    block_on(async {
        let limited = |bundle: Bundle| {
            sleeping(bundle).edit(|spec| {
                spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
                spec["linux"]["resources"]["pids"] = json!({"limit": 20});
            })
        };
        let (world, bundle) = World::running("one", limited).await;
        let dray = Verbs::of(&world);
        let printed = ok(&dray.run(&["events", "--stats", "one"]));
        assert_eq!(printed.lines().count(), 1, "{printed}");
        let event = parsed(&printed);
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("one")));
        let data = &event["data"];
        assert_eq!(data["pids"], json!({"current": 1, "limit": 20}));
        assert_eq!(data["memory"]["usage"]["limit"], json!(64 << 20));
        assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
        let raw = data["memory"]["raw"].as_object().unwrap();
        let stat = bundle.knob("memory.stat");
        assert_eq!(raw.len(), stat.lines().count(), "{raw:?}");
        if !cgroup::is_v2() {
            let runc = parsed(&recorded("events-v1.json"));
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            members(&runc["data"], "", &mut theirs);
            members(data, "", &mut ours);
            // 0 is left out, and runc has no interfaces of a container's.
            for path in theirs.iter().filter(|path| !["/memory/cache", "/network_interfaces"].contains(&path.as_str()))
            {
                assert!(ours.contains(path), "no {path} in {ours:?}");
            }
            let cpus = bundle.knob("cpuset.cpus");
            assert!(data["cpuset"]["cpus"].as_array().is_some_and(|list| !list.is_empty()), "{cpus}: {data}");
        }
        assert!(fails(&dray.run(&["events", "--interval", "0s", "one"]), 1).contains("must be greater than 0"));
        fails(&dray.run(&["events", "--interval", "soon", "one"]), 1);
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        world.wait("one", "").await.unwrap();
        let stopped = fails(&dray.run(&["events", "--stats", "one"]), 1);
        assert_eq!(stopped, "dray: container with id one is not running\n");
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// The lines of `events` as they come.
fn follow(mut command: Command) -> (Child, std::sync::mpsc::Receiver<Value>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, events) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(parsed(&line)))));
    (child, events)
}

#[test]
fn events_tell_of_oom_kills_and_numbers_until_the_container_ends() {
    block_on(async {
        let limit = 16 << 20;
        let limited = |bundle: Bundle| {
            sleeping(bundle).edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": limit, "swap": limit}))
        };
        let (world, bundle) = World::running("one", limited).await;
        let dray = Verbs::of(&world);
        let (mut child, events) = follow(dray.command(&["events", "--interval", "300ms", "one"]));
        let next = |wanted: &str| loop {
            let event = events.recv_timeout(patience(SOON)).unwrap_or_else(|e| panic!("no {wanted}: {e}"));
            if event["type"] == wanted {
                return event;
            }
        };
        // It listens.
        assert_eq!(next("stats")["data"]["pids"]["current"], json!(1));
        let hog = "dd if=/dev/zero of=/dev/null count=1 bs=64M 2>/dev/null; exit 3";
        let process = bundle.process(&["sh", "-c", hog]);
        assert_eq!(world.exec_to_exit("one", "hog", &process, &Io::null()).await.unwrap().exit_status, 3);
        assert_eq!(next("oom"), json!({"type": "oom", "id": "one"}));
        next("stats");
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        await_exit(&open_pid(child.id() as i32).unwrap(), SOON).expect("events ends with the container");
        assert!(child.wait().unwrap().success());
        world.wait("one", "").await.unwrap();
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// What is left of execs in the state directory of a container.
fn exec_leftovers(dray: &Verbs, id: &str) -> Vec<String> {
    let entries = fs::read_dir(dray.root.join(id)).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.contains("dray-")).collect()
}

#[test]
fn an_exec_goes_through_the_shim_with_its_streams_and_status() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let done = dray.run(&["exec", "one", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!(
            (done.status.code(), text(&done.stdout), text(&done.stderr)),
            (Some(7), "out\n".into(), "err\n".into())
        );
        let flags = ["-e", "A=1", "--env", "B=2", "--cwd", "/tmp", "-u", "1000:1001", "-g", "5", "one"];
        let script = "echo $A$B $(pwd) $(id -u) $(id -g) $(id -G)";
        let done = dray.run(&[&["exec"], &flags[..], &["sh", "-c", script]].concat());
        assert_eq!(ok(&done), "12 /tmp 1000 1001 1001 5\n");
        let pid_file = world.scratch.dir().join("pid");
        let path = pid_file.to_str().unwrap();
        let pid = ok(&dray.run(&["exec", "--pid-file", path, "one", "cat", "/proc/self/stat"]));
        assert!(fs::read_to_string(&pid_file).unwrap().parse::<u32>().unwrap() > 1, "{pid}");
        // containerd hears of each.
        world.sink.wait_for(|events| events.len() >= 2 + 3 * 3, SOON).await.unwrap();
        assert_eq!(world.sink.topics("one")[2..5], ["exec-added", "exec-started", "exit"]);

        let missing = fails(&dray.run(&["exec", "one", "nonono"]), 255);
        assert!(missing.starts_with("dray: exec failed: "), "{missing}");
        assert!(missing.ends_with("exec: \"nonono\": executable file not found in $PATH\n"), "{missing}");
        fails(&dray.run(&["exec", "one"]), 255);
        fails(&dray.run(&["exec", "nobody", "true"]), 255);
        assert_eq!(exec_leftovers(&dray, "one"), [""; 0]);
        world.end("one").await;
        world.close().await;
    });
}

/// More than fits into any pipe on the way, by a caller who takes his time.
#[test]
fn all_that_an_exec_says_comes_out_and_all_that_it_is_told_goes_in() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let mut command = dray.command(&["exec", "one", "sh", "-c", "cat; echo end"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let (mut stdin, bytes) = (child.stdin.take().unwrap(), sent.clone());
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let mut got = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(got.len(), sent.len() + 4);
        assert!(got.starts_with(&sent) && got.ends_with(b"end\n"));
        // Much at its very end, and a reader who comes after that.
        let mut command = dray.command(&["exec", "one", "sh", "-c", "head -c 190000 /dev/zero"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(3));
        let mut got = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(got.len(), 190_000);
        // One that leaves something behind which has its streams is over all the same.
        let done = finish(
            dray.command(&["exec", "one", "sh", "-c", "sleep 1000 & echo x"]).stdout(Stdio::piped()).spawn().unwrap(),
        );
        assert_eq!(ok(&done), "x\n");
        assert_eq!(exec_leftovers(&dray, "one"), [""; 0]);
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn signals_are_the_execs() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let script = "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.05; done";
        let mut child = dray.command(&["exec", "one", "sh", "-c", script]);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::USR1).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "got");
        await_exit(&open_pid(child.id() as i32).unwrap(), SOON).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9));
        let killed = dray.run(&["exec", "one", "sh", "-c", "kill -TERM $$"]);
        assert_eq!(killed.status.code(), Some(128 + libc::SIGTERM));
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn an_execs_terminal_is_the_callers() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let mut client = Client::new(&dray.command(&["exec", "-t", "one", "sh", "-c", LINES]));
        client.types("tty; echo $((6*7))\n");
        client.shows("/dev/pts/0");
        client.shows("42");
        client.has_size((101, 31), "stty size\n", "31 101");
        // Keys are the program's: ^C does not end the client.
        client.types("\u{3}");
        client.shows("caught\r\n");
        client.types("exit 5\n");
        assert_eq!(client.ends(), Some(5));
        assert_eq!(exec_leftovers(&dray, "one"), [""; 0]);
        world.end("one").await;
        world.close().await;
    });
}

/// One whose caller takes a line and no more (`| head -1`) is over, by this signal.
#[track_caller]
fn ends_with_its_reader(mut command: Command, signal: i32) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"abcdefgh");
    let done = finish(child);
    assert_eq!(done.status.code(), Some(128 + signal), "{}", text(&done.stderr));
}

#[test]
fn an_exec_whose_caller_takes_no_more_ends() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        ends_with_its_reader(dray.command(&["exec", "one", "yes", "abcdefgh"]), libc::SIGPIPE);
        ends_with_its_reader(dray.command(&["exec", "-t", "one", "yes", "abcdefgh"]), libc::SIGHUP);
        world.end("one").await;
        world.close().await;
    });
    let dray = Dray::new();
    dray.started(&sleeping(dray.bundle("own")));
    ends_with_its_reader(dray.command(&["exec", "own", "yes", "abcdefgh"]), libc::SIGPIPE);
    ends_with_its_reader(dray.command(&["exec", "-t", "own", "yes", "abcdefgh"]), libc::SIGHUP);
}

/// Its fifos have no names while it runs: one that is killed leaves none.
#[test]
fn a_killed_exec_leaves_no_fifos() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let mut command = dray.command(&["exec", "one", "sh", "-c", "echo ready; cat; echo over"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        wait_until("the fifos' removal", || exec_leftovers(&dray, "one").is_empty());
        child.stdin.take().unwrap().write_all(b"typed ").unwrap();
        assert_eq!(ok(&finish(child)), "typed over\n");
        world.end("one").await;
        world.close().await;
    });
}

/// What a shim cannot be asked for is done beside it, and it does not hear of it.
#[test]
fn an_exec_beside_the_shim_has_what_the_shim_cannot_give() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let path = |name: &str| world.scratch.dir().join(name);
        let cgroups = "cat /proc/self/cgroup; cat /proc/1/cgroup";

        // Left alone, with a pid that is told.
        let pid_file = path("pid");
        dray.left(&["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), "one", "sleep", "998"]);
        let pid: u32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
        assert!(world.pids("one").await.unwrap().contains(&pid), "it is in the container's cgroup");
        let same = |ns: &str| {
            let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
            of(pid) == of(parsed(&ok(&dray.run(&["state", "one"])))["pid"].as_u64().unwrap() as u32)
        };
        assert!(["pid", "mnt", "net", "ipc", "uts"].into_iter().all(same));
        let confined = |pid: u32, field: &str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().find(|line| line.starts_with(field)).unwrap().to_owned()
        };
        assert_eq!(confined(pid, "CapBnd"), "CapBnd:\t00000000a80425fb");

        // A descriptor.
        fs::write(path("handed"), "handed over").unwrap();
        let file = File::open(path("handed")).unwrap();
        let shell = format!(
            "exec 3<&{}; exec {} --root {} exec --preserve-fds 1 one cat /proc/self/fd/3",
            file.as_raw_fd(),
            dray.binary.display(),
            dray.root.display()
        );
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        assert_eq!(ok(&Command::new("bash").args(["-c", &shell]).output().unwrap()), "handed over");
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC).unwrap();

        // A pidfd, and the master of a terminal.
        let listener = UnixListener::bind(path("pidfd.sock")).unwrap();
        let child =
            dray.command(&["exec", "--pidfd-socket", path("pidfd.sock").to_str().unwrap(), "one", "sleep", "997"]);
        let mut child = { child }.spawn().unwrap();
        let pidfd = receive(&listener);
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(137));
        let listener = UnixListener::bind(path("console.sock")).unwrap();
        ok(&dray.run(&[
            "exec",
            "-dt",
            "--console-socket",
            path("console.sock").to_str().unwrap(),
            "one",
            "sh",
            "-c",
            "tty; sleep 1",
        ]));
        let mut master = File::from(receive(&listener));
        let mut said = [0; 64];
        let length = master.read(&mut said).unwrap();
        assert_eq!(text(&said[..length]), "/dev/pts/0\r\n");

        // A cgroup below the container's.
        for dir in bundle.cgroups() {
            fs::create_dir(dir.join("sub")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
            // A new cpuset has nothing in it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if !cgroup::is_v2() && dir.join(file).exists() {
                    fs::copy(dir.join(file), dir.join("sub").join(file)).unwrap();
                }
            }
        }
        let said = ok(&dray.run(&["exec", "--cgroup", "/sub", "one", "sh", "-c", cgroups]));
        let below = said.lines().filter(|line| line.ends_with("/one/sub")).count();
        assert_eq!(below * 2, said.lines().count(), "{said}");
        let none = fails(&dray.run(&["exec", "--cgroup", "none", "one", "true"]), 255);
        assert!(none.contains("/one/none") && none.contains("no such file or directory"), "{none}");
        let out = fails(&dray.run(&["exec", "--cgroup", "../..", "one", "true"]), 255);
        assert!(out.contains("is not a sub cgroup path"), "{out}");
        if !cgroup::is_v2() {
            let said = ok(&dray.run(&["exec", "--cgroup", "pids:sub", "one", "cat", "/proc/self/cgroup"]));
            let below: Vec<_> = said.lines().filter(|line| line.ends_with("/one/sub")).collect();
            assert!(below.len() == 1 && below[0].contains(":pids:"), "{said}");
            let unknown = fails(&dray.run(&["exec", "--cgroup", "nope:sub", "one", "true"]), 255);
            assert!(unknown.contains("unknown controller nope"), "{unknown}");
        }

        // While it stands still.
        world.pause("one").await.unwrap();
        let waiting = dray
            .command(&["exec", "--ignore-paused", "one", "echo", "resumed"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
        world.resume("one").await.unwrap();
        assert_eq!(ok(&finish(waiting)), "resumed\n");

        assert_eq!(world.sink.topics("one"), ["create", "start", "paused", "resumed"]);
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn flags_that_contradict_each_other_are_refused_before_any_effect() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let sock = world.scratch.dir().join("none.sock");
        let sock = sock.to_str().unwrap();
        for (args, why) in [
            (&["-dt", "one", "sh"][..], "cannot allocate tty if dray will detach without setting console socket"),
            (
                &["-d", "--console-socket", sock, "one", "sh"],
                "cannot use console socket if dray will not detach or allocate tty",
            ),
            (
                &["-t", "--console-socket", sock, "one", "sh"],
                "cannot use console socket if dray will not detach or allocate tty",
            ),
            (&["-dt", "--console-socket", sock, "one", "sh"], "no such file or directory"),
            (&["--pidfd-socket", sock, "one", "sh"], "no such file or directory"),
            (&["--preserve-fds", "7", "one", "sh"], "preserved-fd"),
            (&["--process", "/nonexistent", "one"], "no such file or directory"),
            (&["--user", "a", "one", "sh"], "bad uid"),
            (&["--cwd", "tmp", "one", "sh"], "Cwd must be an absolute path"),
        ] {
            let error = fails(&dray.run(&[&["exec"], args].concat()), 255);
            assert!(error.contains(why), "{args:?}: {error}");
        }
        assert_eq!(world.pids("one").await.unwrap().len(), 1);
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn a_document_of_a_process_is_all_of_it() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let mut process = bundle.process(&["sh", "-c", "id -u; echo $A; pwd"]);
        process["user"] = json!({"uid": 7, "gid": 8});
        process["cwd"] = json!("/tmp");
        process["env"].as_array_mut().unwrap().push(json!("A=said"));
        let path = world.scratch.dir().join("process.json");
        fs::write(&path, process.to_string()).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(ok(&dray.run(&["exec", "--process", path, "one"])), "7\nsaid\n/tmp\n");
        assert_eq!(ok(&dray.run(&["exec", "-p", path, "--cgroup", "/", "one"])), "7\nsaid\n/tmp\n", "beside the shim");
        let capabilities = "grep ^CapEff /proc/self/status";
        let more = ok(&dray.run(&["exec", "--cap", "CAP_SYS_ADMIN", "one", "sh", "-c", capabilities]));
        assert_eq!(more, "CapEff:\t00000000a82425fb\n");
        world.end("one").await;
        world.close().await;
    });
}

/// A container lives on without its shim. Then it is nobody's, and what is to be done is done by this program.
#[test]
fn a_container_whose_shim_has_died_is_changed_without_it() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        world.shim.kill_shim().await.unwrap();
        assert_eq!(dray.status("one"), "running");
        assert_eq!(parsed(&ok(&dray.run(&["list", "-f", "json"])))[0]["shim"], Value::Null);
        let done = dray.run(&["exec", "one", "sh", "-c", "echo here; exit 4"]);
        assert_eq!((done.status.code(), text(&done.stdout)), (Some(4), "here\n".into()));
        ok(&dray.run(&["pause", "one"]));
        assert!(is_frozen(&bundle));
        assert_eq!(dray.status("one"), "paused");
        ok(&dray.run(&["resume", "one"]));
        ok(&dray.run(&["update", "--pids-limit", "66", "one"]));
        assert_eq!(bundle.knob("pids.max"), "66");
    });
}

/// One that does not answer is waited for with a bound, and nothing is done behind its back.
#[test]
fn a_shim_that_hangs_is_an_error_and_not_passed_over() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let dray = Verbs::of(&world);
        let shim = Pid::from_raw(world.shim.pid().await.unwrap()).unwrap();
        kill_process(shim, Signal::STOP).unwrap();
        let error = dray.run(&["pause", "one"]);
        let listed = dray.run(&["list", "-f", "json"]);
        kill_process(shim, Signal::CONT).unwrap();
        let error = fails(&error, 1);
        assert!(error.contains(&format!("shim of pid {}", shim.as_raw_nonzero())), "{error}");
        assert!(!is_frozen(&bundle));
        assert_eq!(parsed(&ok(&listed))[0]["status"], json!("running"), "by what the kernel says");
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn an_id_that_is_in_two_namespaces_is_nobodys() {
    let dray = Dray::new();
    let bundle = sleeping(dray.bundle("twice"));
    dray.started(&bundle);
    let other = dray.root().with_file_name("other");
    let id = format!("twice-{}", std::process::id());
    fs::create_dir_all(&other).unwrap();
    let verbs = |root: &PathBuf, args: &[&str]| dray.plain().arg("--root").arg(root).args(args).output().unwrap();
    assert!(fails(&verbs(&other, &["state", "twice"]), 1).contains("container does not exist"));
    assert!(fails(&verbs(&other, &["state", "../x"]), 1).contains("is not a name"));
    assert!(fails(&dray.plain().args(["state", &id]).output().unwrap(), 1).contains("container does not exist"));
    ok(&dray.run(&["state", "twice"]));
}

// Containers of the command line.

#[test]
fn the_command_lines_own_containers_are_looked_at_and_changed() {
    let dray = Dray::new();
    let bundle = sleeping(dray.bundle("own")).edit(|spec| spec["annotations"] = json!({"a": "b"}));
    ok(&dray.run_in(bundle.dir(), &["create", "own"]));
    let status = || parsed(&ok(&dray.run(&["state", "own"])))["status"].as_str().unwrap().to_owned();
    assert_eq!(status(), "created");
    ok(&dray.run(&["start", "own"]));
    let printed = ok(&dray.run(&["state", "own"]));
    assert_eq!(keys(&printed, "  "), keys(&recorded("state.json"), "  "));
    let state = parsed(&printed);
    let wanted = json!({"ociVersion": state["ociVersion"], "id": "own", "pid": dray.pid("own"), "status": "running",
        "bundle": bundle.dir(), "rootfs": bundle.rootfs_dir(), "created": state["created"], "annotations": {"a": "b"},
        "owner": ""});
    assert_eq!(state, wanted);
    let all = parsed(&ok(&dray.run(&["list", "-f", "json"])));
    assert_eq!((&all[0]["id"], &all[0]["shim"], &all[0]["status"]), (&json!("own"), &Value::Null, &json!("running")));
    // It needs no bundle any more.
    bundle.write_config(b"gone");
    assert_eq!(ok(&dray.run(&["state", "own"])), printed);

    assert!(fails(&dray.run(&["resume", "own"]), 1).contains("container not paused"));
    ok(&dray.run(&["pause", "own"]));
    assert!(is_frozen(&bundle));
    assert_eq!(status(), "paused");
    assert!(fails(&dray.run(&["pause", "own"]), 1).contains("container not running"));
    assert!(fails(&dray.run(&["exec", "own", "true"]), 255).contains("cannot exec in a paused container"));
    let waiting =
        dray.command(&["exec", "--ignore-paused", "own", "echo", "resumed"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    ok(&dray.run(&["resume", "own"]));
    assert!(!is_frozen(&bundle));
    assert_eq!(ok(&finish(waiting)), "resumed\n");

    ok(&dray.run(&["update", "-m", "40m", "--pids-limit", "33", "own"]));
    assert_eq!((memory_limit(&bundle), bundle.knob("pids.max")), ((40 << 20).to_string(), "33".to_owned()));
    let stats = parsed(&ok(&dray.run(&["events", "--stats", "own"])));
    assert_eq!(stats["data"]["pids"], json!({"current": 1, "limit": 33}));
    assert_eq!(parsed(&ok(&dray.run(&["ps", "-f", "json", "own"]))), json!([dray.pid("own")]));

    ok(&dray.run(&["kill", "own", "KILL"]));
    wait_until("its end", || status() == "stopped");
    for (args, status, why) in [
        (&["pause", "own"][..], 1, "container not running"),
        (&["resume", "own"], 1, "container not paused"),
        (&["update", "--pids-limit", "5", "own"], 1, "container not running"),
        (&["events", "own"], 1, "container with id own is not running"),
        (&["exec", "own", "true"], 255, "cannot exec in a stopped container"),
    ] {
        let error = fails(&dray.run(args), status);
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(parsed(&ok(&dray.run(&["ps", "-f", "json", "own"]))), Value::Null);
}

#[test]
fn an_exec_in_the_command_lines_own_container() {
    let dray = Dray::new();
    let bundle = sleeping(dray.bundle("own"));
    dray.started(&bundle);
    let done = dray.run(&["exec", "own", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((done.status.code(), text(&done.stdout), text(&done.stderr)), (Some(7), "out\n".into(), "err\n".into()));
    let mut child = dray.command(&["exec", "own", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed").unwrap();
    assert_eq!(ok(&finish(child)), "typed");
    let flags = ["-e", "A=1", "--cwd", "/tmp", "-u", "1000:1001", "-g", "5", "--cap", "CAP_SYS_ADMIN", "own"];
    let script = "echo $A $(pwd) $(id -u) $(id -g) $(id -G); grep ^CapBnd /proc/self/status";
    let said = ok(&dray.run(&[&["exec"], &flags[..], &["sh", "-c", script]].concat()));
    assert_eq!(said, "1 /tmp 1000 1001 1001 5\nCapBnd:\t00000000a82425fb\n");
    assert_eq!(
        fails(&dray.run(&["exec", "own", "nonono"]), 255).matches("executable file not found in $PATH").count(),
        1
    );

    let mut client = Client::new(&dray.command(&["exec", "-t", "own", "sh", "-c", LINES]));
    client.types("tty; echo $((6*7))\n");
    client.shows("/dev/pts/0");
    client.shows("42");
    client.has_size((101, 31), "stty size\n", "31 101");
    client.types("exit 5\n");
    assert_eq!(client.ends(), Some(5));

    // While one is in the foreground others may do what they want.
    let child = dray.command(&["exec", "own", "sleep", "996"]).spawn().unwrap();
    wait_until("the exec", || ok(&dray.run(&["ps", "-f", "json", "own"])).contains(','));
    ok(&dray.run(&["update", "--pids-limit", "44", "own"]));
    ok(&dray.run(&["pause", "own"]));
    ok(&dray.run(&["resume", "own"]));
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::TERM).unwrap();
    assert_eq!(finish(child).status.code(), Some(128 + libc::SIGTERM));

    // And one that is left behind ends with the container.
    let pid_file = dray.scratch().dir().join("pid");
    ok(&dray.run_in(bundle.dir(), &["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), "own", "sleep", "995"]));
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let left = open_pid(pid).unwrap();
    ok(&dray.run(&["delete", "--force", "own"]));
    await_exit(&left, SOON).unwrap();
}

/// Its documents beside those of the runc that is installed, for one and the same bundle.
#[test]
fn documents_are_those_of_the_runc_that_is_here() {
    if Command::new("runc").arg("--version").output().is_err() {
        return common::skipped("documents_are_those_of_the_runc_that_is_here", "runc is not installed");
    }
    let dray = Dray::new();
    let bundle = sleeping(dray.bundle("both"));
    let root = dray.scratch().dir().join("runc");
    let runc = |args: &[&str]| {
        let out = dray.scratch().dir().join("runc.out");
        let mut command = Command::new("runc");
        command.arg("--root").arg(&root).args(args).current_dir(bundle.dir()).stdin(Stdio::null());
        let status = command.stdout(File::create(&out).unwrap()).stderr(Stdio::null()).status().unwrap();
        (status.code(), fs::read_to_string(&out).unwrap())
    };
    assert_eq!(runc(&["run", "-d", "both"]).0, Some(0));
    let theirs = [runc(&["state", "both"]).1, runc(&["list", "-f", "json"]).1, runc(&["events", "--stats", "both"]).1];
    let table = runc(&["list"]).1;
    let theirs_ps = runc(&["ps", "both", "-e", "-o", "pid,args"]).1;
    runc(&["delete", "-f", "both"]);
    dray.started(&bundle);
    let ours = [&["state", "both"][..], &["list", "-f", "json"], &["events", "--stats", "both"]];
    let ours = ours.map(|args| ok(&dray.run(args)));
    assert_eq!(keys(&theirs[0], "  "), keys(&ours[0], "  "));
    let [theirs, ours] = [theirs, ours].map(|documents| documents.map(|document| parsed(&document)));
    for key in ["id", "status", "bundle", "rootfs", "owner"] {
        assert_eq!(theirs[0][key], ours[0][key], "{key}");
        assert_eq!(theirs[1][0][key], ours[1][0][key], "{key}");
    }
    let member_paths = |document: &Value| {
        let mut all = Vec::new();
        members(&document["data"], "", &mut all);
        // What is 0 is left out; a later runc has more of the kernel's.
        all.retain(|path| !path.contains("/max") && path != "/memory/cache" && !path.starts_with("/blkio"));
        all
    };
    let (theirs_paths, ours_paths) = (member_paths(&theirs[2]), member_paths(&ours[2]));
    for path in &theirs_paths {
        assert!(ours_paths.contains(path), "no {path} in {ours_paths:?}");
    }
    let columns = |table: &str| table.lines().map(|line| line.split_whitespace().count()).collect::<Vec<_>>();
    assert_eq!(columns(&table)[..2], [6, 6]);
    let own = ok(&dray.run(&["list"]));
    let head = |table: &str| table.lines().next().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(head(&own)[..6], head(&table)[..]);
    let own_ps = ok(&dray.run(&["ps", "both", "-e", "-o", "pid,args"]));
    let program = |table: &str| {
        table.lines().map(|line| line.split_whitespace().skip(1).map(str::to_owned).collect()).collect::<Vec<Vec<_>>>()
    };
    assert_eq!(program(&own_ps), program(&theirs_ps));
}

/// The process whose own verbs these are: a debug build's `until` is used by others.
#[test]
fn a_status_is_seen_as_soon_as_it_is() {
    block_on(async {
        let (world, _bundle) = World::running("one", |bundle| bundle.args(&["sleep", "0.2"])).await;
        let dray = Verbs::of(&world);
        until("the end of the container", || dray.status("one") == "stopped").await;
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}
