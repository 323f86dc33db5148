//! Tests against the host's own cgroups, as root, each below a name of its own.

mod devices;
mod limits;
mod unified;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::hierarchy::Hierarchy;
use super::*;

/// A cgroup path nobody else has, and the end of all that is in it.
struct Scratch {
    all: Hierarchies,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes cgroups: run it as root");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("/dray-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { all: Hierarchies::discover().unwrap(), path: name.into() }
    }

    fn at(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }

    fn create(&self) -> Cgroup {
        Cgroup::create(&self.all, &self.at("c")).unwrap()
    }

    fn is_v2(&self) -> bool {
        self.all.version() == Version::V2
    }

    /// The hierarchy of a controller, or a named one of v1's: on v2 always the unified one.
    fn of(&self, controller: &str) -> &Hierarchy {
        self.all.of(controller).unwrap()
    }

    fn dir(&self, controller: &str, below: &str) -> PathBuf {
        self.of(controller).dir(&self.at(below))
    }

    /// Of a pair of v1's and v2's, this host's.
    fn one<T>(&self, v1: T, v2: T) -> T {
        if self.is_v2() { v2 } else { v1 }
    }

    fn seen(&self, controller: &str, v1: &str, v2: &str) -> String {
        read(&self.dir(controller, "c"), self.one(v1, v2))
    }

    /// Freezes the cgroup `below`, and waits.
    fn freeze(&self, below: &str) {
        let dir = self.dir("freezer", below);
        let (file, value) = self.one(("freezer.state", "FROZEN"), ("cgroup.freeze", "1"));
        std::fs::write(dir.join(file), value).unwrap();
        until("frozen", || match self.is_v2() {
            true => read(&dir, "cgroup.events").contains("frozen 1"),
            false => read(&dir, file) == value,
        });
    }

    fn unified(&self, below: &str) -> PathBuf {
        self.all.unified.as_ref().unwrap().dir(&self.at(below))
    }

    /// The directories of the scratch cgroup's `below` that exist.
    fn existing(&self, below: &str) -> Vec<PathBuf> {
        self.all.all().map(|h| h.dir(&self.at(below))).filter(|d| d.exists()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let all = Cgroup { hierarchies: self.all.clone(), path: self.path.clone() };
        let end = Instant::now() + Duration::from_secs(20);
        while !matches!(all.thaw().and_then(|()| all.kill()).and_then(|_| all.remove()), Ok(true)) {
            if Instant::now() > end {
                // A second panic would hide the first.
                assert!(std::thread::panicking(), "cannot remove {}", self.path.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    // A guest without KVM is twenty times slower.
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A shell that joins the cgroups of these directories and goes on with `script`.
fn spawn_in(dirs: &[PathBuf], script: &str) -> Child {
    let join = r#"for d in "$@"; do echo 0 > "$d/cgroup.procs" || exit 99; done; set --; "#;
    Command::new("/bin/sh")
        .args(["-c", &format!("{join}{script}"), "sh"])
        .args(dirs)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn sleeper(dirs: &[PathBuf]) -> Child {
    let child = spawn_in(dirs, "exec sleep 1000");
    let comm = format!("/proc/{}/comm", child.id());
    until("the sleeper sleeps", || std::fs::read_to_string(&comm).unwrap() == "sleep\n");
    child
}

/// Waits for the end of a process that should have been killed.
#[track_caller]
fn ended(mut child: Child) {
    until("the process has ended", || child.try_wait().unwrap().is_some());
}

/// A process in no test's cgroup, ended and reaped when dropped.
struct Outsider(Child);

impl Outsider {
    fn new() -> Self {
        Self(sleeper(&[]))
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

fn read(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap().trim_end().to_owned()
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_new_cgroup_is_everywhere_and_can_be_joined() {
    let scratch = Scratch::new();
    let path = scratch.at("deep/er/c");
    let cgroup = Cgroup::create(&scratch.all, &path).unwrap();
    assert_eq!(scratch.existing("deep/er/c").len(), scratch.all.all().count());
    for level in ["", "deep", "deep/er", "deep/er/c"] {
        // What v1 has to be told, v2 takes from above.
        let (cpus, mems) =
            scratch.one(("cpuset.cpus", "cpuset.mems"), ("cpuset.cpus.effective", "cpuset.mems.effective"));
        assert_eq!(read(&scratch.dir("cpuset", level), cpus), read(&scratch.of("cpuset").mount, cpus));
        assert_ne!(read(&scratch.dir("cpuset", level), mems), "");
    }

    // It joins as ours do: by itself, into the very files.
    let joins = cgroup.joins().unwrap();
    assert_eq!(joins.tasks.len(), scratch.all.v1.len());
    let own = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let mut script: String = joins.tasks.iter().map(|(_, fd)| format!("echo 0 > {} || exit 99; ", own(fd))).collect();
    script += &format!("echo 0 > {}/cgroup.procs || exit 99; exec sleep 1000", own(joins.unified.as_ref().unwrap()));
    let child = Outsider(spawn_in(&[], &script));
    until("it has joined", || cgroup.procs().unwrap() == [child.0.id()]);
    let comm = format!("/proc/{}/comm", child.0.id());
    until("the sleeper sleeps", || std::fs::read_to_string(&comm).unwrap() == "sleep\n");
    for (name, _) in &joins.tasks {
        assert!(name.ends_with("/deep/er/c/tasks"), "{name}");
    }

    let seen = std::fs::read_to_string(format!("/proc/{}/cgroup", child.0.id())).unwrap();
    for hierarchy in scratch.all.all() {
        let line = format!(":{}:{}", hierarchy.name, path.display());
        assert!(seen.lines().any(|l| l.ends_with(&line)), "{line} not in {seen}");
    }
    assert_eq!(cgroup.procs().unwrap(), [child.0.id()]);
    assert!(cgroup.populated().unwrap());
    assert!(!cgroup.remove().unwrap());
    drop(child);
    until("empty", || !cgroup.populated().unwrap());
    assert!(cgroup.remove().unwrap());
    assert!(scratch.existing("deep/er/c").is_empty());
    // Others may be making theirs in the parent.
    assert_eq!(scratch.existing("deep/er").len(), scratch.all.all().count());
    assert!(cgroup.remove().unwrap());
}

/// Of a resource: its controller, v1's file and what it says then, v2's and what that says.
type Row<'a> = (&'a str, (&'a str, &'a str), (&'a str, &'a str));

/// The memory limits in the order of v1's: of memory, of memory and swap together.
fn assert_rows(scratch: &Scratch, rows: &[Row]) {
    for (controller, v1, v2) in rows {
        let (file, value) = scratch.one(v1, v2);
        if !file.is_empty() {
            assert_eq!(read(&scratch.dir(controller, "c"), file), *value, "{file}");
        }
    }
}

#[test]
fn limits_are_in_the_kernels_files() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let oom = scratch.one(r#","disableOOMKiller":true"#, "");
    let json = format!(
        r#"{{"memory":{{"limit":67108864,"swap":134217728,"reservation":33554432,"swappiness":10{oom}}},
            "cpu":{{"shares":512,"quota":20000,"period":50000,"cpus":"0","mems":"0"}},"pids":{{"limit":77}}}}"#
    );
    cgroup.apply(&resources(&json)).unwrap();
    assert_rows(
        &scratch,
        &[
            ("memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
            ("memory", ("memory.memsw.limit_in_bytes", "134217728"), ("memory.swap.max", "67108864")),
            ("memory", ("memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432")),
            ("memory", ("memory.swappiness", "10"), ("", "")),
            ("cpu", ("cpu.shares", "512"), ("cpu.weight", "59")),
            ("cpu", ("cpu.cfs_quota_us", "20000"), ("cpu.max", "20000 50000")),
            ("cpu", ("cpu.cfs_period_us", "50000"), ("cpu.max", "20000 50000")),
            ("cpuset", ("cpuset.cpus", "0"), ("cpuset.cpus", "0")),
            ("cpuset", ("cpuset.mems", "0"), ("cpuset.mems", "0")),
            ("pids", ("pids.max", "77"), ("pids.max", "77")),
        ],
    );
    if !scratch.is_v2() {
        assert!(read(&scratch.dir("memory", "c"), "memory.oom_control").starts_with("oom_kill_disable 1"));
    }

    // Up and down again: with v1 each needs the other order of the two writes.
    for (limit, swap, both) in
        [("268435456", "268435456", "536870912"), ("4194304", "4194304", "8388608"), ("134217728", "0", "134217728")]
    {
        cgroup.apply(&resources(&format!(r#"{{"memory":{{"limit":{limit},"swap":{both}}}}}"#))).unwrap();
        assert_rows(
            &scratch,
            &[
                ("memory", ("memory.limit_in_bytes", limit), ("memory.max", limit)),
                ("memory", ("memory.memsw.limit_in_bytes", both), ("memory.swap.max", swap)),
            ],
        );
    }
    cgroup.apply(&resources(r#"{"memory":{"limit":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#)).unwrap();
    let unlimited =
        if scratch.is_v2() { String::new() } else { read(&scratch.of("memory").mount, "memory.limit_in_bytes") };
    assert_rows(
        &scratch,
        &[
            ("memory", ("memory.limit_in_bytes", &unlimited), ("memory.max", "max")),
            ("memory", ("memory.memsw.limit_in_bytes", &unlimited), ("memory.swap.max", "max")),
            ("cpu", ("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 50000")),
            ("pids", ("pids.max", "max"), ("pids.max", "max")),
        ],
    );
}

#[test]
fn device_rules_are_in_the_kernels_list() {
    let scratch = Scratch::new();
    if scratch.is_v2() {
        return; // A list is v1's.
    }
    let cgroup = scratch.create();
    let list = || {
        let mut lines: Vec<String> =
            read(&scratch.dir("devices", "c"), "devices.list").lines().map(String::from).collect();
        lines.sort();
        lines
    };
    assert_eq!(list(), ["a *:* rwm"]);
    let rules =
        r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"minor":0,"access":"rw"}]}"#;
    cgroup.apply(&resources(rules)).unwrap();
    let expected = [
        "b *:* m",
        "b 8:0 rw",
        "c *:* m",
        "c 10:200 rwm",
        "c 136:* rwm",
        "c 1:3 rwm",
        "c 1:5 rwm",
        "c 1:7 rwm",
        "c 1:8 rwm",
        "c 1:9 rwm",
        "c 5:0 rwm",
        "c 5:2 rwm",
    ];
    assert_eq!(list(), expected);

    // And they bind: /dev/zero opens, /dev/mem (1:1) does not, for root with all capabilities.
    let opens = |device: &str| {
        let script = format!("exec 9<{device}");
        spawn_in(&[scratch.dir("devices", "c")], &script).wait().unwrap().success()
    };
    assert!(opens("/dev/zero"));
    assert!(!opens("/dev/mem"));
    cgroup.apply(&resources(r#"{"devices":[{"allow":true,"type":"a","access":"rwm"}]}"#)).unwrap();
    assert_eq!(list(), ["a *:* rwm"]);
}

#[test]
fn a_limit_that_cannot_be_set_is_an_error_by_name() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let e = cgroup.apply(&resources(r#"{"cpu":{"cpus":"4000"}}"#)).unwrap_err();
    assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
    assert!(e.to_string().contains("\"4000\"") && e.to_string().contains("cpuset.cpus"), "{e}");

    if scratch.is_v2() {
        let e = cgroup.apply(&resources(r#"{"unified":{"memory.nothing":"1"}}"#)).unwrap_err();
        assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("memory.nothing"), "{e}");
        return;
    }
    let without_pids = scratch.all.without("pids");
    let cgroup = Cgroup::open(&without_pids, cgroup.path()).unwrap();
    let e = cgroup.apply(&resources(r#"{"pids":{"limit":5}}"#)).unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    assert!(e.to_string().contains("controller pids, pids.max \"5\""), "{e}");
    cgroup.apply(&resources(r#"{"pids":{"limit":-1}}"#)).unwrap();

    if !scratch.dir("cpu", "c").join("cpu.rt_runtime_us").exists() {
        let e = cgroup.apply(&resources(r#"{"cpu":{"realtimeRuntime":1000}}"#)).unwrap_err();
        assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("cpu.rt_runtime_us"), "{e}");
    }
}

/// Forty chains of processes, each of which makes the next and ends: no list of them is true for long. Each is a
/// shell anew, for a function that calls itself would run out of stack. They do not multiply: a shell ends when fork
/// fails, and at pids.max all would.
const BOMB: &str = r#"export B='sh -c "$B" &'; i=0; while [ $i -lt 40 ]; do sh -c "$B"; i=$((i + 1)); done"#;

fn fork_bomb(scratch: &Scratch) -> (Cgroup, [Child; 2]) {
    let cgroup = scratch.create();
    cgroup.apply(&resources(r#"{"pids":{"limit":500}}"#)).unwrap();
    let mut dirs = scratch.existing("c");
    let sub = scratch.dir("freezer", "c/sub");
    std::fs::create_dir(&sub).unwrap();
    let bomb = spawn_in(&dirs, BOMB);
    // One that sits in a sub-cgroup of one hierarchy.
    let freezer = dirs.iter_mut().find(|d| **d == scratch.dir("freezer", "c")).unwrap();
    *freezer = sub;
    let sitting = sleeper(&dirs);
    until("the bomb goes", || cgroup.procs().unwrap().len() > 20);
    (cgroup, [bomb, sitting])
}

#[test]
fn a_fork_bomb_is_killed_by_the_kernel() {
    let scratch = Scratch::new();
    let mut outside = Outsider::new();
    let (cgroup, bomb) = fork_bomb(&scratch);
    assert_eq!(cgroup.kill().unwrap(), Killed::Tree);
    until("empty", || !cgroup.populated().unwrap());
    bomb.into_iter().for_each(ended);
    assert!(cgroup.procs().unwrap().is_empty());
    until("removed", || cgroup.remove().unwrap());
    assert!(outside.0.try_wait().unwrap().is_none());
}

#[test]
fn a_fork_bomb_is_killed_member_by_member() {
    let scratch = Scratch::new();
    let mut outside = Outsider::new();
    let (cgroup, bomb) = fork_bomb(&scratch);
    let mut killed = 0;
    let mut rounds = 0;
    until("empty", || {
        killed += cgroup.kill_members().unwrap();
        rounds += 1;
        !cgroup.populated().unwrap()
    });
    bomb.into_iter().for_each(ended);
    // How many depends on who is alive when listed; one sits still.
    assert!(killed >= 1);
    assert!(rounds < 50, "{rounds} rounds");
    until("removed", || cgroup.remove().unwrap());
    assert!(outside.0.try_wait().unwrap().is_none());
}

#[test]
fn without_cgroup2_members_are_killed_one_by_one() {
    let scratch = Scratch::new();
    if scratch.is_v2() {
        return;
    }
    let v1_only = Hierarchies { unified: None, ..scratch.all.clone() };
    let cgroup = Cgroup::create(&v1_only, &scratch.at("c")).unwrap();
    let child = sleeper(&scratch.existing("c"));
    assert!(cgroup.joins().unwrap().unified.is_none());
    assert!(cgroup.events().unwrap().is_none());
    assert_eq!(cgroup.kill().unwrap(), Killed::Members(1));
    ended(child);
    assert!(cgroup.remove().unwrap());
}

#[test]
fn a_process_in_a_single_hierarchy_is_found_and_killed() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let child = sleeper(&[scratch.dir("pids", "c")]);
    assert!(cgroup.populated().unwrap());
    assert_eq!(cgroup.kill().unwrap(), scratch.one(Killed::Members(1), Killed::Tree));
    ended(child);
    until("empty", || !cgroup.populated().unwrap());
}

#[test]
fn frozen_processes_die_too() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let sub = scratch.dir("freezer", "c/sub");
    std::fs::create_dir(&sub).unwrap();
    let mut dirs = scratch.existing("c");
    let top = sleeper(&dirs);
    *dirs.iter_mut().find(|d| **d == scratch.dir("freezer", "c")).unwrap() = sub.clone();
    let below = sleeper(&dirs);
    // Frozen by itself, as a container could: a thaw of what is above does not thaw it.
    scratch.freeze("c/sub");
    scratch.freeze("c");
    assert_eq!(cgroup.kill().unwrap(), Killed::Tree);
    ended(top);
    ended(below);
    until("removed", || cgroup.remove().unwrap());
}

/// By the v1 freezer, and as on a host without it by cgroup2's own.
#[test]
fn what_is_frozen_stands_still_until_it_is_not() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let mut child = spawn_in(&scratch.existing("c"), "while :; do :; done");
    until("it has joined", || cgroup.procs().unwrap() == [child.id()]);
    let stat = format!("/proc/{}/stat", child.id());
    let ticks = || std::fs::read_to_string(&stat).unwrap().split(' ').nth(13).unwrap().parse::<u64>().unwrap();
    let freezer = scratch.dir("freezer", "c").join(scratch.one("freezer.state", "cgroup.freeze"));
    let files = [freezer, scratch.unified("c").join("cgroup.freeze")];
    let without = Cgroup::open(&scratch.all.without("freezer"), cgroup.path()).unwrap();
    let both =
        [(&cgroup, scratch.one(["FROZEN", "0"], ["1", "1"])), (&without, scratch.one(["THAWED", "1"], ["1", "1"]))];
    for (cgroup, states) in both {
        until("frozen", || cgroup.freeze().unwrap());
        assert_eq!(files.each_ref().map(|f| std::fs::read_to_string(f).unwrap().trim().to_owned()), states);
        let before = ticks();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(ticks(), before);
        cgroup.unfreeze().unwrap();
        until("it runs again", || ticks() > before);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    until("removed", || cgroup.remove().unwrap());
    assert_eq!(cgroup.freeze().unwrap_err().kind(), Kind::FailedPrecondition);
    cgroup.unfreeze().unwrap();
}

#[test]
fn a_zombie_is_no_process_and_no_obstacle() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let mut child = sleeper(&scratch.existing("c"));
    assert_eq!(cgroup.procs().unwrap(), [child.id()]);
    child.kill().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    until("a zombie", || std::fs::read_to_string(&stat).unwrap().contains(") Z "));
    assert!(!cgroup.populated().unwrap());
    assert!(cgroup.procs().unwrap().is_empty());
    assert!(cgroup.remove().unwrap());
    child.wait().unwrap();
}

#[test]
fn emptiness_can_be_awaited() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let child = sleeper(&scratch.existing("c"));
    let mut events = cgroup.events().unwrap().unwrap();
    let mut text = String::new();
    events.read_to_string(&mut text).unwrap();
    assert!(file::flag(&text, "populated"));
    let wait = |events: &File, seconds| {
        let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() == 1
    };
    assert!(!wait(&events, 0));
    assert_eq!(cgroup.kill().unwrap(), Killed::Tree);
    assert!(wait(&events, 20));
    assert!(!cgroup.populated().unwrap());
    ended(child);
    assert!(cgroup.remove().unwrap());
    assert!(cgroup.events().unwrap().is_none());
}

#[test]
fn removes_a_tree_deeper_than_any_path() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    for hierarchy in scratch.one(&["freezer", "name=systemd"][..], &["freezer"]) {
        let mut dir = file::open_dir(CWD, scratch.dir(hierarchy, "c")).unwrap();
        let name = "x".repeat(200);
        for _ in 0..40 {
            rustix::fs::mkdirat(&dir, "side", Mode::from_raw_mode(0o755)).unwrap();
            rustix::fs::mkdirat(&dir, &*name, Mode::from_raw_mode(0o755)).unwrap();
            dir = file::open_dir(&dir, &*name).unwrap();
        }
    }
    assert!(cgroup.remove().unwrap());
    assert!(scratch.existing("c").is_empty());
}

#[test]
fn removing_is_refused_while_a_process_is_far_below() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let below = scratch.dir("pids", "c/a/b");
    std::fs::create_dir_all(&below).unwrap();
    std::fs::create_dir(scratch.dir("pids", "c/other")).unwrap();
    let mut child = sleeper(std::slice::from_ref(&below));
    assert!(!cgroup.remove().unwrap());
    assert!(below.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(cgroup.remove().unwrap());
}

#[track_caller]
fn refused(scratch: &Scratch, path: &Path) -> String {
    let e = Cgroup::create(&scratch.all, path).unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition, "{e}");
    assert!(e.to_string().contains(&path.display().to_string()), "{e}");
    e.to_string()
}

#[test]
fn a_populated_cgroup_is_refused_and_untouched() {
    let scratch = Scratch::new();
    for below in ["c", "c/sub"] {
        let dir = scratch.dir("memory", below);
        std::fs::create_dir_all(&dir).unwrap();
        // On v2 the same.
        let empty = scratch.dir("cpu", "c");
        std::fs::create_dir_all(&empty).unwrap();
        let mut child = sleeper(std::slice::from_ref(&dir));
        let why = refused(&scratch, &scratch.at("c"));
        assert!(why.contains("processes") && why.contains(scratch.one("memory", "cgroup2")), "{why}");
        assert!(child.try_wait().unwrap().is_none());
        // What was there is there, what we made is not.
        let mut left = scratch.existing("c");
        left.sort();
        let mut there = vec![empty, scratch.dir("memory", "c")];
        there.dedup();
        assert_eq!(left, there);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_frozen_cgroup_is_refused() {
    let scratch = Scratch::new();
    let freezer = scratch.dir("freezer", "c");
    std::fs::create_dir_all(&freezer).unwrap();
    scratch.freeze("c");
    assert!(refused(&scratch, &scratch.at("c")).contains("it is frozen"));
    assert_eq!(scratch.existing("c"), [freezer]);
    // Below a frozen one: nothing stays but what was there.
    assert!(refused(&scratch, &scratch.at("c/d")).contains("above it is frozen"));
    assert!(scratch.existing("c/d").is_empty());
}

#[test]
fn a_cgroup_frozen_in_cgroup2_is_refused() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.unified("c")).unwrap();
    std::fs::write(scratch.unified("c").join("cgroup.freeze"), "1").unwrap();
    assert!(refused(&scratch, &scratch.at("c")).contains("(cgroup2): it is frozen"));
    assert!(refused(&scratch, &scratch.at("c/d")).contains("(cgroup2): a cgroup above it is frozen"));
    assert!(scratch.existing("c/d").is_empty());
}

#[test]
fn an_empty_leftover_is_replaced_with_its_limits() {
    let scratch = Scratch::new();
    scratch.create().apply(&resources(r#"{"pids":{"limit":5},"memory":{"limit":1048576}}"#)).unwrap();
    std::fs::create_dir_all(scratch.dir("pids", "c/sub/sub")).unwrap();
    if !scratch.is_v2() {
        std::fs::remove_dir(scratch.dir("cpu", "c")).unwrap();
    }
    let cgroup = scratch.create();
    assert_eq!(read(&scratch.dir("pids", "c"), "pids.max"), "max");
    assert_ne!(scratch.seen("memory", "memory.limit_in_bytes", "memory.max"), "1048576");
    assert!(!scratch.dir("pids", "c/sub").exists());
    assert_eq!(scratch.existing("c").len(), scratch.all.all().count());
    assert!(cgroup.remove().unwrap());
}

#[test]
fn the_root_is_refused() {
    let all = Hierarchies::discover().unwrap();
    for path in ["/", "", "/.."] {
        assert_eq!(Cgroup::create(&all, Path::new(path)).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(Cgroup::open(&all, Path::new(path)).unwrap_err().kind(), Kind::InvalidArgument);
    }
}

/// Runs [`refuses_own`] in a process that lives in a cgroup of ours, in one hierarchy only.
#[test]
fn own_ancestors_are_refused() {
    let scratch = Scratch::new();
    let own = scratch.dir("name=systemd", "own/cgroup");
    std::fs::create_dir_all(&own).unwrap();
    let exe = std::env::current_exe().unwrap();
    let test = "cgroup::rooted::refuses_own";
    let script = format!("DRAY_OWN={} exec {} --exact {test} --ignored", scratch.path.display(), exe.display());
    assert!(spawn_in(&[own], &script).wait().unwrap().success());
    for below in ["", "own", "own/cgroup"] {
        assert_eq!(scratch.existing(below), [scratch.dir("name=systemd", below)]);
    }
}

#[test]
#[ignore = "a part of own_ancestors_are_refused"]
fn refuses_own() {
    let path = PathBuf::from(std::env::var_os("DRAY_OWN").expect("run by own_ancestors_are_refused"));
    let all = Hierarchies::discover().unwrap();
    for own in [path.clone(), path.join("own"), path.join("own/cgroup")] {
        for e in [Cgroup::create(&all, &own).unwrap_err(), Cgroup::open(&all, &own).unwrap_err()] {
            assert_eq!(e.kind(), Kind::FailedPrecondition);
            assert!(e.to_string().contains("the runtime itself"), "{e}");
        }
    }
}

#[test]
fn a_parent_that_vanishes_is_made_again() {
    let scratch = Scratch::new();
    let parents: Vec<PathBuf> = scratch.all.all().map(|h| h.dir(&scratch.at("p"))).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                parents.iter().for_each(|p| drop(std::fs::remove_dir(p)));
                // As often as containers might end, not so often that nobody else gets a turn: also in a slow guest.
                std::thread::sleep(Duration::from_micros(scratch.one(100, 5000)));
            }
        });
        let result = std::panic::catch_unwind(|| {
            for _ in 0..100 {
                assert!(Cgroup::create(&scratch.all, &scratch.at("p/c")).unwrap().remove().unwrap());
            }
        });
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}
