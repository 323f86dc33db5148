//! A restore that does not come to an end, for CRIU says nothing: nobody else takes its container, and whoever asks for its
//! end gets it. CRIU is a program that sleeps, but for the last test.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use common::bundle::Bundle;
use common::cgroup::by_systemd;
use common::criu::usable;
use common::dray::{Dray, fails, ok, text, wait_until};
use common::driver::{Shim, StartOptions, open_pid};
use common::events::EventSink;
use common::scratch::Scratch;
use common::stdio::Io;
use common::world::{SOON, World, all_gone, hold, living, until};
use common::{block_on, skipped};
use containerd_shim_protos::api::Status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A directory with images, as far as they are looked at before CRIU is, and CRIU: it has a child, and neither ends.
struct Images(PathBuf);

impl Images {
    fn new(scratch: &Scratch) -> Images {
        let images = scratch.dir().join("images");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("descriptors.json"), "[]").unwrap();
        let (criu, pids) = (images.join("criu"), images.join("pids"));
        let pids = pids.display();
        let script = format!("#!/bin/sh\nsleep 1000 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nwait\n");
        fs::write(&criu, script).unwrap();
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
        Images(images)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    /// CRIU and its child, once they are there.
    fn criu(&self) -> Option<Vec<OwnedFd>> {
        let text = fs::read_to_string(self.0.join("pids")).ok()?;
        let pids = text.split_whitespace().map(|pid| pid.parse().expect("pid"));
        Some(pids.filter_map(open_pid).collect())
    }
}

/// `dray restore` under way.
struct Stage {
    dray: Dray,
    bundle: Bundle,
    restore: Child,
    criu: Vec<OwnedFd>,
}

impl Stage {
    fn new(detached: bool) -> Stage {
        let dray = Dray::new();
        let bundle = dray.bundle("one").args(&["sleep", "1000"]);
        let images = Images::new(dray.scratch());
        let program = images.0.join("criu");
        let mut args = vec!["--criu", program.to_str().unwrap(), "restore", "--image-path", images.path()];
        args.extend(if detached { &["-d", "one"][..] } else { &["one"] });
        let said = fs::File::create(dray.scratch().dir().join("said")).unwrap();
        let mut command = dray.command(&args);
        let restore = command.current_dir(bundle.dir()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        wait_until("CRIU runs", || images.criu().is_some());
        let criu = images.criu().unwrap();
        assert_eq!(living(&criu), 2);
        Stage { dray, bundle, restore, criu }
    }

    fn is_under_way(&mut self) -> bool {
        self.restore.try_wait().unwrap().is_none() && living(&self.criu) == 2
    }

    /// It has ended, and says so: nothing is left of the container.
    #[track_caller]
    fn ends(mut self) {
        wait_until("the restore ends", || self.restore.try_wait().unwrap().is_some());
        assert_eq!(self.restore.wait().unwrap().code(), Some(1));
        let said = fs::read_to_string(self.dray.scratch().dir().join("said")).unwrap();
        assert!(said.starts_with("dray: ") && said.contains("given up at signal"), "{said}");
        all_gone(&self.criu);
        assert!(!self.dray.state_dir("one").exists());
        assert_eq!(self.dray.scratch().leftovers(), [""; 0]);
        // The id is free.
        self.dray.started(&self.bundle);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.restore.kill();
        let _ = self.restore.wait();
    }
}

#[test]
fn nobody_else_takes_a_container_that_is_being_restored() {
    let mut stage = Stage::new(true);
    let run = |stage: &Stage, args: &[&str]| stage.dray.run_in(stage.bundle.dir(), args);
    let said = fails(&run(&stage, &["run", "-d", "one"]), 1);
    assert!(said.contains("already exists"), "{said}");
    assert!(stage.is_under_way());
    fails(&run(&stage, &["delete", "one"]), 1);
    assert!(stage.is_under_way());
    // There is no process yet to be sent a signal.
    let said = fails(&run(&stage, &["kill", "one", "TERM"]), 1);
    assert!(said.contains("container not running"), "{said}");
    assert!(stage.is_under_way());
    let state: Value = serde_json::from_str(&ok(&run(&stage, &["state", "one"]))).unwrap();
    assert_eq!((&state["status"], &state["pid"]), (&"creating".into(), &0.into()), "{state}");
    let list: Value = serde_json::from_str(&ok(&run(&stage, &["list", "--format", "json"]))).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&"one".into(), &"creating".into()), "{list}");
    assert!(stage.is_under_way());
}

#[test]
fn a_restore_gives_up_at_a_signal_that_asks_for_its_end() {
    for (detached, signal) in [(true, Signal::SIGTERM), (false, Signal::SIGINT)] {
        let stage = Stage::new(detached);
        kill(Pid::from_raw(stage.restore.id() as i32), signal).unwrap();
        stage.ends();
    }
}

#[test]
fn a_kill_ends_a_restore() {
    let stage = Stage::new(true);
    ok(&stage.dray.run(&["kill", "one", "KILL"]));
    stage.ends();
}

#[test]
fn a_forced_delete_ends_a_restore() {
    let stage = Stage::new(true);
    ok(&stage.dray.run(&["delete", "--force", "one"]));
    // It returns when nothing of the container is left.
    assert!(!stage.dray.state_dir("one").exists());
    stage.ends();
}

/// One that systemd refuses has not come into the cgroup by which all else of a container is ended.
#[test]
fn a_restore_that_gets_no_scope_leaves_no_criu() {
    if !by_systemd() {
        skipped("a_restore_that_gets_no_scope_leaves_no_criu", "there is no systemd to refuse a scope");
        return;
    }
    let (one, two) = (Dray::new(), Dray::new());
    let path = format!("system.slice:{}:one", one.scratch().namespace());
    let with = |dray: &Dray| {
        let bundle = dray.bundle("one").args(&["sleep", "1000"]);
        bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path))
    };
    one.started(&with(&one));
    let (bundle, images) = (with(&two), Images::new(two.scratch()));
    let program = images.0.join("criu");
    let args = ["--criu", program.to_str().unwrap(), "restore", "-d", "--image-path", images.path(), "one"];
    let said = fails(&two.run_in(bundle.dir(), &args), 1);
    assert!(said.contains("processes in"), "{said}");
    // It may be on its way to be CRIU.
    wait_until("its process ends", || !is_among_arguments(two.scratch().dir()));
}

/// Whether a process has this path among its arguments.
fn is_among_arguments(path: &Path) -> bool {
    let path = path.to_str().expect("UTF-8");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok()).any(|args| text(&args).contains(path))
}

type Starting = JoinHandle<ttrpc::Result<containerd_shim_protos::api::StartResponse>>;

/// A shim whose Start of "one" is under way, which is asked by another connection.
async fn starting() -> (World, Starting, Vec<OwnedFd>) {
    let scratch = Scratch::new();
    let sink = EventSink::start(&scratch);
    let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
    let images = Images::new(&scratch);
    let env = vec![("PATH", format!("{}:/usr/bin:/bin", images.path()))];
    let options = StartOptions { env, ..StartOptions::default() };
    let shim = Shim::start_with(&common::shim_binary(), &bundle, &sink, options).await.unwrap();
    let world = World { shim, sink, scratch };
    let mut request = world.request_for(&bundle, &Io::null());
    request.checkpoint = images.path().to_owned();
    world.create_request(request).await.unwrap();
    let task = world.reconnect().await.unwrap().within(SOON);
    let start = tokio::spawn(async move { task.start("one", "").await });
    until("CRIU runs", || images.criu().is_some()).await;
    (world, start, images.criu().unwrap())
}

/// Start fails, in few words that say why.
async fn has_failed(start: Starting) {
    let error = start.await.unwrap().expect_err("it was given up").to_string();
    assert!(error.contains("OCI runtime restore failed: it was killed or deleted meanwhile"), "{error}");
}

#[test]
fn kill_ends_a_restore_and_its_end_is_told() {
    for all in [false, true] {
        block_on(async {
            let (world, start, criu) = starting().await;
            let waiting = world.spawn_wait("one", "").await;
            assert_eq!(world.status("one", "").await.unwrap(), Status::CREATED);
            world.kill("one", "", libc::SIGKILL, all).await.unwrap();
            assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
            has_failed(start).await;
            all_gone(&criu);
            assert_eq!(world.status("one", "").await.unwrap(), Status::STOPPED);
            assert_eq!(world.delete("one", "").await.unwrap().exit_status, 137);
            until("its delete is told", || world.sink.topics("one").contains(&"delete".to_owned())).await;
            assert_eq!(world.sink.topics("one"), ["create", "exit", "delete"]);
            world.close().await;
        });
    }
}

#[test]
fn delete_ends_a_restore() {
    block_on(async {
        let (world, start, criu) = starting().await;
        world.delete("one", "").await.unwrap();
        all_gone(&criu);
        has_failed(start).await;
        world.close().await;
    });
}

#[test]
fn a_forced_delete_ends_the_restore_of_a_shim() {
    block_on(async {
        let (world, start, criu) = starting().await;
        let dray = Dray::new();
        let root = Path::new("/run/dray").join(world.scratch.namespace());
        let mut command = dray.plain();
        let command = command.arg("--root").arg(&root).args(["delete", "--force", "one"]);
        let output = command.output().unwrap();
        ok(&output);
        all_gone(&criu);
        has_failed(start).await;
        world.close().await;
    });
}

/// CRIU itself has made processes by then, and waits for an answer.
#[test]
fn what_criu_has_made_ends_with_its_restore() {
    if !usable("what_criu_has_made_ends_with_its_restore") {
        return;
    }
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("sleep 1000 & sleep 1000");
    let images = dray.scratch().dir().join("images");
    let images = images.to_str().unwrap();
    dray.started(&bundle);
    ok(&dray.run_in(bundle.dir(), &["checkpoint", "--image-path", images, "one"]));
    let seen = dray.scratch().dir().join("hook");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", seen.display());
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let bundle = bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": hook}));
    for delete in [false, true] {
        let args = ["restore", "-d", "--image-path", images, "one"];
        let mut command = dray.command(&args);
        let said = fs::File::create(dray.scratch().dir().join("said")).unwrap();
        let mut restore = command.current_dir(bundle.dir()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        wait_until("the hook runs", || seen.exists());
        let hook = open_pid(fs::read_to_string(&seen).unwrap().trim().parse().unwrap());
        let ps: Vec<u32> = serde_json::from_str(&ok(&dray.run(&["ps", "--format", "json", "one"]))).unwrap();
        // CRIU, and at least one of what it makes.
        assert!(ps.len() >= 2, "{ps:?}");
        let processes = hold(&ps);
        match delete {
            true => drop(ok(&dray.run(&["delete", "--force", "one"]))),
            false => kill(Pid::from_raw(restore.id() as i32), Signal::SIGTERM).unwrap(),
        }
        wait_until("the restore ends", || restore.try_wait().unwrap().is_some());
        assert_eq!(restore.wait().unwrap().code(), Some(1));
        all_gone(&processes);
        all_gone(hook.as_slice());
        assert!(!dray.state_dir("one").exists());
        assert_eq!(dray.scratch().leftovers(), [""; 0]);
        fs::remove_file(&seen).unwrap();
    }
}
