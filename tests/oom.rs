//! The OOM killer in a container, on either version of cgroups: that it is told, before the exit that it leads to, and whose
//! limit it was.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::{by_systemd, skipped_on_v1};
use common::scratch::cgroup_mounts;
use common::stdio::Io;
use common::world::{SOON, World, refused, until};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use ttrpc::Code;

/// Wants 64 MiB at once.
const HOG: &str = "dd if=/dev/zero of=/dev/null count=1 bs=64M 2>/dev/null";

const LIMIT: u64 = 16 << 20;

fn limited(bundle: Bundle) -> Bundle {
    bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": LIMIT, "swap": LIMIT}))
}

/// A hook that is a script of the shell; those of these tests are run in the container's cgroup.
fn with_hook(bundle: Bundle, kind: &str, script: &str) -> Bundle {
    let hook: Value = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
    bundle.edit(|spec| spec["hooks"][kind] = json!([hook]))
}

/// The container's directory in the hierarchy with the memory controller.
fn memory(bundle: &Bundle) -> PathBuf {
    let dirs = bundle.cgroups();
    let has = |dir: &&PathBuf| ["memory.limit_in_bytes", "memory.max"].iter().any(|file| dir.join(file).exists());
    dirs.iter().find(has).unwrap_or_else(|| panic!("none of {dirs:?} has memory")).clone()
}

/// Limits a cgroup to 16 MiB without swap.
fn limit(dir: &Path) {
    limit_to(dir, LIMIT);
}

fn limit_to(dir: &Path, limit: u64) {
    let limit = limit.to_string();
    for (file, value) in [
        ("memory.limit_in_bytes", &*limit),
        ("memory.memsw.limit_in_bytes", &limit),
        ("memory.max", &limit),
        ("memory.swap.max", "0"),
    ] {
        if dir.join(file).exists() {
            fs::write(dir.join(file), value).unwrap_or_else(|e| panic!("{file}: {e}"));
        }
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
}

/// Waits until a container's cgroups are gone. systemd takes them away as soon as nobody is in them; elsewhere the test does.
async fn gone(dirs: &[PathBuf]) {
    until("its cgroup is gone", || dirs.iter().all(|dir| fs::remove_dir(dir).is_ok() || !dir.exists())).await;
}

/// Its end, by `end`, and that of its cgroup while the shim stands still, so that it cannot look; returns the exit status.
async fn end_unseen(world: &World, bundle: &Bundle, end: impl FnOnce()) -> u32 {
    let waiting = world.spawn_wait(&bundle.id, "").await;
    let dirs = bundle.cgroups();
    assert!(!dirs.is_empty());
    let shim = world.pid().await.unwrap();
    signal(shim, Signal::SIGSTOP);
    end();
    gone(&dirs).await;
    signal(shim, Signal::SIGCONT);
    let status = waiting.await.unwrap().unwrap().exit_status;
    world.sink.wait_topic("exit", &bundle.id, SOON).await.unwrap();
    status
}

async fn exec(world: &World, bundle: &Bundle, exec: &str, script: &str) -> u32 {
    let process = bundle.process(&["sh", "-c", script]);
    world.exec_to_exit("one", exec, &process, &Io::null()).await.unwrap().exit_status
}

/// The log's lines about memory, when it has as many.
async fn log(bundle: &Bundle, lines: usize) -> Vec<String> {
    let mut log = String::new();
    let mut about = Vec::new();
    let mut read = || {
        log += &bundle.log();
        about = log.lines().filter(|line| line.contains(" memory")).map(str::to_owned).collect();
        about.len() >= lines
    };
    until("the log", &mut read).await;
    assert_eq!(about.len(), lines, "{about:?}");
    about
}

#[test]
fn a_kill_by_its_own_limit_is_told_once_and_with_the_process() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| limited(bundle.args(&["sleep", "1000"]))).await;
        assert_eq!(exec(&world, &bundle, "greedy", &format!("exec {HOG}")).await, 137);
        assert_eq!(exec(&world, &bundle, "parent", &format!("{HOG}; exit 3")).await, 3);
        assert_eq!(exec(&world, &bundle, "modest", "exit 137").await, 137);
        let killed = ["exec-added", "exec-started", "oom", "exit"];
        let told = [&["create", "start"], &killed[..], &killed, &["exec-added", "exec-started", "exit"]].concat();
        world.sink.wait_for(|events| events.len() >= told.len(), SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), told);
        // The last two: one kill has no exit of its own, and the third exec was killed by nobody but says so.
        let log = log(&bundle, 4).await;
        assert!(log[0].contains("container one: out of memory (its own limit): "), "{log:?}");
        assert!(log[1].contains("container one: exec greedy: killed"), "{log:?}");
        assert!(log[2].contains("(its own limit)"), "{log:?}");
        world.end("one").await;
        world.close().await;
    });
}

/// Its init: the exit is the container's.
#[test]
fn a_kill_by_a_limit_above_is_told_for_the_container_with_its_name() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| {
            let script = format!("read go < /tmp/go; exec {HOG}");
            let memory = json!({"limit": LIMIT * 16, "swap": LIMIT * 16});
            bundle.script(&script).edit(|spec| spec["linux"]["resources"]["memory"] = memory)
        })
        .await;
        world.create(&bundle, &Io::null()).await.unwrap();
        let go = bundle.rootfs_dir().join("tmp/go");
        mkfifo(&go, Mode::from_bits_truncate(0o666)).unwrap();
        world.start("one", "").await.unwrap();
        let waiting = world.spawn_wait("one", "").await;
        let above = memory(&bundle).parent().unwrap().to_owned();
        limit(&above);
        fs::write(&go, "go\n").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        world.sink.wait_topic("exit", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "start", "oom", "exit"]);
        let log = log(&bundle, 2).await;
        let root = cgroup_mounts().into_iter().find(|root| above.starts_with(root)).unwrap();
        let name = format!("(the limit of /{}, above its own)", above.strip_prefix(root).unwrap().display());
        assert!(log[0].contains(&name), "{name}: {log:?}");
        assert!(log[1].contains("container one: killed"), "{log:?}");
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// The container's own limit is met no time. (On v1 nothing rings for it but the death of a process that is known.)
#[test]
fn a_kill_by_a_limit_that_was_set_below_is_told() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        let go = bundle.rootfs_dir().join("tmp/go");
        mkfifo(&go, Mode::from_bits_truncate(0o666)).unwrap();
        let process = bundle.process(&["sh", "-c", &format!("read go < /tmp/go; exec {HOG}")]);
        world.exec("one", "e", &process, &Io::null()).await.unwrap();
        let waiting = world.spawn_wait("one", "e").await;
        let pid = world.start("one", "e").await.unwrap().pid;
        let own = memory(&bundle);
        let below = ["others", "below"].map(|name| own.join(name));
        below.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let members = fs::read_to_string(own.join("cgroup.procs")).unwrap();
        for member in members.lines() {
            let to = if member == pid.to_string() { &below[1] } else { &below[0] };
            fs::write(to.join("cgroup.procs"), member).unwrap();
        }
        if own.join("cgroup.subtree_control").exists() {
            fs::write(own.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        limit(&below[1]);
        fs::write(&go, "go\n").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        world.sink.wait_topic("exit", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "start", "exec-added", "exec-started", "oom", "exit"]);
        let log = log(&bundle, 2).await;
        assert!(log[0].contains("(the limit of a cgroup made in it)"), "{log:?}");
        world.end("one").await;
        world.close().await;
    });
}

/// The hook's own child: the container is created all the same.
#[test]
fn a_kill_before_the_container_is_there_is_told_after_its_creation() {
    block_on(async {
        let hog = |bundle| with_hook(limited(bundle), "createContainer", &format!("{HOG}; exit 0"));
        let (world, bundle) = World::with("one", |bundle| hog(bundle.args(&["sleep", "1000"]))).await;
        world.create(&bundle, &Io::null()).await.unwrap();
        world.sink.wait_topic("oom", "one", SOON).await.unwrap();
        world.start("one", "").await.unwrap();
        world.sink.wait_topic("start", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "oom", "start"]);
        world.end("one").await;
        world.sink.wait_topic("delete", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "oom", "start", "exit", "delete"]);
        world.close().await;
    });
}

#[test]
fn a_create_that_fails_by_it_says_so() {
    block_on(async {
        let hog = |bundle| with_hook(limited(bundle), "createContainer", &format!("exec {HOG}"));
        let (world, bundle) = World::with("one", hog).await;
        let words = ["one", "killed for lack of memory", "its own limit", "createContainer"];
        refused(world.create(&bundle, &Io::null()).await, Code::INTERNAL, &words);
        let other = Bundle::new(&world.scratch, "two");
        let other = with_hook(limited(other), "createContainer", "exit 9");
        let failed = world.create(&other, &Io::null()).await.unwrap_err();
        // Of a scope that is gone, and its slice with it, no more is known than that there was a kill somewhere: of other tests.
        assert!(by_systemd() || !failed.to_string().contains("memory"), "{failed}");
        assert!(world.sink.events().is_empty(), "{:?}", world.sink.events());
        world.close().await;
    });
}

#[test]
fn a_start_that_fails_by_it_says_so() {
    block_on(async {
        let hog = |bundle| with_hook(limited(bundle), "startContainer", &format!("exec {HOG}"));
        let (world, bundle) = World::with("one", hog).await;
        world.create(&bundle, &Io::null()).await.unwrap();
        let words = ["one", "killed for lack of memory", "its own limit", "startContainer"];
        refused(world.start("one", "").await, Code::INTERNAL, &words);
        world.wait("one", "").await.unwrap();
        world.sink.wait_topic("exit", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "oom", "exit"]);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// Two in one limit: who was not killed is not told of it, and not blamed on it when its own limit is met later.
#[test]
fn a_kill_next_door_is_nobodys_here() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| limited(bundle.args(&["sleep", "1000"]))).await;
        let other = Bundle::new(&world.scratch, "two").script(&format!("read go < /tmp/go; exec {HOG}"));
        world.create(&other, &Io::null()).await.unwrap();
        let go = other.rootfs_dir().join("tmp/go");
        mkfifo(&go, Mode::from_bits_truncate(0o666)).unwrap();
        let above = memory(&bundle).parent().unwrap().to_owned();
        limit_to(&above, LIMIT * 2);
        world.start("two", "").await.unwrap();
        fs::write(&go, "go\n").unwrap();
        assert_eq!(world.wait("two", "").await.unwrap().exit_status, 137);
        world.sink.wait_topic("exit", "two", SOON).await.unwrap();
        assert_eq!(world.sink.topics("two"), ["create", "start", "oom", "exit"]);
        world.delete("two", "").await.unwrap();
        // As long as the shim looks for one of ours.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        assert_eq!(exec(&world, &bundle, "greedy", &format!("exec {HOG}")).await, 137);
        let told = ["create", "start", "exec-added", "exec-started", "oom", "exit"];
        world.sink.wait_topic("exit", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), told);
        let log = log(&bundle, 4).await;
        assert!(log[0].contains("container two") && log[0].contains("above its own"), "{log:?}");
        assert!(log[2].contains("container one") && log[2].contains("(its own limit)"), "{log:?}");
        world.end("one").await;
        world.close().await;
    });
}

/// A bundle whose init begins to want memory when it reads a line from the fifo that is returned.
fn hog_on_command(bundle: Bundle) -> (Bundle, PathBuf) {
    let go = bundle.rootfs_dir().join("tmp/go");
    (limited(bundle.script(&format!("read go < /tmp/go; exec {HOG}"))), go)
}

/// As it is with systemd when the shim is not quick enough. The count of the cgroup above tells, and without that the host's.
#[test]
fn a_kill_whose_count_is_gone_is_told_before_the_exit() {
    block_on(async {
        for without_parent in [false, true] {
            let mut go = PathBuf::new();
            let (world, bundle) = World::with("one", |bundle| {
                let (bundle, fifo) = hog_on_command(bundle);
                go = fifo;
                bundle
            })
            .await;
            world.create(&bundle, &Io::null()).await.unwrap();
            mkfifo(&go, Mode::from_bits_truncate(0o666)).unwrap();
            world.start("one", "").await.unwrap();
            world.sink.wait_topic("start", "one", SOON).await.unwrap();
            let above = memory(&bundle).parent().unwrap().to_owned();
            let own = memory(&bundle);
            let end = || {
                fs::write(&go, "go\n").unwrap();
                let gone = |dir: &Path| fs::remove_dir(dir).is_ok() || !dir.exists();
                while without_parent && !(gone(&own) && gone(&above)) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            };
            assert_eq!(end_unseen(&world, &bundle, end).await, 137);
            assert_eq!(
                world.sink.topics("one"),
                ["create", "start", "oom", "exit"],
                "{without_parent} {}",
                bundle.log()
            );
            let log = log(&bundle, 2).await;
            assert!(
                log[0].contains("container one: probably out of memory (its own limit or the host's memory)"),
                "{log:?}"
            );
            assert!(log[1].contains("container one: killed for lack of memory"), "{log:?}");
            world.delete("one", "").await.unwrap();
            world.close().await;
        }
    });
}

/// Somebody else's SIGKILL after another container's lack of memory, and a client's after that of who is not the shim's.
#[test]
fn a_death_whose_cgroup_is_gone_is_no_kill_for_anothers_lack_of_memory() {
    // Where a cgroup above counts its own kills alone, the host's number is what is asked: of other tests too.
    if skipped_on_v1(
        "a_death_whose_cgroup_is_gone_is_no_kill_for_anothers_lack_of_memory",
        "the host's count is anyone's",
    ) {
        return;
    }
    block_on(async {
        let (world, one) = World::running("one", |bundle| limited(bundle.args(&["sleep", "1000"]))).await;
        let two = limited(Bundle::new(&world.scratch, "two").script(&format!("exec {HOG}")));
        world.create(&two, &Io::null()).await.unwrap();
        world.start("two", "").await.unwrap();
        world.sink.wait_topic("exit", "two", SOON).await.unwrap();
        assert_eq!(world.sink.topics("two"), ["create", "start", "oom", "exit"]);
        let init = world.state("one", "").await.unwrap().pid as i32;
        assert_eq!(end_unseen(&world, &one, || signal(init, Signal::SIGKILL)).await, 137);
        assert_eq!(world.sink.topics("one"), ["create", "start", "exit"]);

        // Its exit is not told before what it has written has been read.
        let three = limited(Bundle::new(&world.scratch, "three").script("echo something; exec sleep 1000"));
        let io = Io::fifos_unread(&world.scratch, "three");
        let readers = [&io.stdout, &io.stderr].map(|path| {
            let path = path.clone();
            std::thread::spawn(move || File::open(path).unwrap())
        });
        world.create(&three, &io).await.unwrap();
        let _readers = readers.map(|thread| thread.join().unwrap());
        world.start("three", "").await.unwrap();
        let dirs = three.cgroups();
        let beside = memory(&three).with_file_name("beside");
        fs::create_dir(&beside).unwrap();
        limit(&beside);
        assert_eq!(hog_in(&beside).to_string(), "signal: 9 (SIGKILL)");
        fs::remove_dir(&beside).unwrap();
        world.kill("three", "", libc::SIGKILL, false).await.unwrap();
        gone(&dirs).await;
        assert_eq!(world.wait("three", "").await.unwrap().exit_status, 137);
        world.sink.wait_topic("exit", "three", SOON).await.unwrap();
        assert_eq!(world.sink.topics("three"), ["create", "start", "exit"]);
        for id in ["one", "two", "three"] {
            world.delete(id, "").await.unwrap();
        }
        world.close().await;
    });
}

/// One that is in no container.
fn hog_in(dir: &Path) -> ExitStatus {
    let script = format!("echo $$ > {}/cgroup.procs; exec {HOG}", dir.display());
    Command::new("sh").args(["-c", &script]).status().unwrap()
}
