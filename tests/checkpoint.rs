//! Checkpoint and restore by CRIU: what ran goes on where it was, in what is around it now.
//!
//! CRIU is of the machine, and may not be able to do anything with its kernel: these tests are skipped then, with the reason,
//! and run in the guest of `scripts/test --vm`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::criu::usable;
use common::stdio::Io;
use common::world::{SOON, World, refused, until};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use serde_json::json;
use ttrpc::Code;

/// CRIU takes its time in an emulated guest.
const LONG: Duration = Duration::from_secs(60);

/// Counts on stdout.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo n$i.; sleep 0.1; done";

fn counting(bundle: Bundle) -> Bundle {
    bundle.script(COUNT)
}

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

fn images(world: &World) -> PathBuf {
    world.scratch.dir().join("images")
}

fn exit() -> CheckpointOptions {
    CheckpointOptions { exit: true, ..Default::default() }
}

/// The numbers in an output.
fn numbers(output: &str) -> Vec<u64> {
    output.split(['n', '.', '\n', '\r']).filter_map(|word| word.parse().ok()).collect()
}

/// Ends by the checkpoint, and goes on to be deleted.
async fn dump_and_delete(world: &World, bundle: &Bundle, options: CheckpointOptions) {
    let waiting = world.spawn_wait(&bundle.id, "").await;
    if let Err(e) = world.within(LONG).checkpoint_with(&bundle.id, &images(world), options).await {
        panic!("{e}\n{}", fs::read_to_string(bundle.dir().join("criu-dump.log")).unwrap_or_default());
    }
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
    world.delete(&bundle.id, "").await.unwrap();
}

/// Create by the images, without a process.
async fn create_restored(world: &World, bundle: &Bundle, io: &Io) {
    let mut request = world.request_for(bundle, io);
    request.checkpoint = images(world).to_str().unwrap().to_owned();
    assert_eq!(world.create_request(request).await.unwrap().pid, 0);
}

/// Both; returns the pid.
async fn restore(world: &World, bundle: &Bundle, io: &Io) -> u32 {
    create_restored(world, bundle, io).await;
    match world.within(LONG).start(&bundle.id, "").await {
        Ok(started) => started.pid,
        Err(e) => panic!("{e}\n{}", fs::read_to_string(bundle.dir().join("criu-restore.log")).unwrap_or_default()),
    }
}

/// Output and status of a command in the container.
async fn exec(world: &World, bundle: &Bundle, id: &str, script: &str) -> (u32, String) {
    let mut io = Io::fifos(&world.scratch, id);
    world.exec(&bundle.id, id, &bundle.process(&["sh", "-c", script]), &io).await.unwrap();
    world.start(&bundle.id, id).await.unwrap();
    let status = world.within(SOON).wait(&bundle.id, id).await.unwrap().exit_status;
    let output = io.stdout(SOON).await.unwrap();
    world.delete(&bundle.id, id).await.unwrap();
    (status, output)
}

#[test]
fn a_container_goes_on_where_it_was_with_other_pipes() {
    if !usable("a_container_goes_on_where_it_was_with_other_pipes") {
        return;
    }
    block_on(async {
        let (world, bundle) = World::with("one", counting).await;
        let mut io = Io::fifos(&world.scratch, "first");
        world.create(&bundle, &io).await.unwrap();
        refused(world.checkpoint_with("one", &images(&world), exit()).await, Code::FAILED_PRECONDITION, &["started"]);
        world.start("one", "").await.unwrap();
        io.stdout_with("n3.", SOON).await.unwrap();
        dump_and_delete(&world, &bundle, exit()).await;
        let before = numbers(&io.stdout(SOON).await.unwrap());

        let mut io = Io::fifos(&world.scratch, "second");
        create_restored(&world, &bundle, &io).await;
        // As containerd's own shim has it: there is nothing to exec in, to stop or to dump yet.
        assert_eq!(world.status("one", "").await.unwrap(), Status::CREATED);
        let process = bundle.process(&["true"]);
        refused(world.exec("one", "e", &process, &Io::null()).await, Code::FAILED_PRECONDITION, &["one", "restored"]);
        refused(world.pause("one").await, Code::FAILED_PRECONDITION, &["not running"]);
        refused(world.kill("one", "", 9, false).await, Code::FAILED_PRECONDITION, &["not started"]);
        refused(world.checkpoint_with("one", &images(&world), exit()).await, Code::FAILED_PRECONDITION, &["started"]);
        let pid = world.within(LONG).start("one", "").await.unwrap().pid;
        let last = *before.last().unwrap();
        io.stdout_with(&format!("n{}.", last + 5), SOON).await.unwrap();
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        assert!(world.pids("one").await.unwrap().contains(&pid));
        // In its namespaces, its time among them, and in its cgroup; lo is up, though its network was not written.
        let (status, seen) =
            exec(&world, &bundle, "look", "readlink /proc/1/ns/time; readlink /proc/self/ns/time; ifconfig lo").await;
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!((status, lines[0]), (0, lines[1]), "{seen}");
        assert!(seen.contains("UP"), "{seen}");
        assert_eq!(world.end("one").await, 137);
        let after = numbers(&io.stdout(SOON).await.unwrap());
        assert_eq!(after[0], last + 1, "{before:?} {after:?}");
        let deletes = || world.sink.topics("one").iter().filter(|topic| *topic == "delete").count();
        until("its second delete is told", || deletes() == 2).await;
        let topics = world.sink.topics("one");
        let told: Vec<_> = topics.iter().filter(|topic| !topic.starts_with("exec-")).collect();
        let life = ["create", "start", "checkpointed", "exit", "delete", "create", "start", "exit", "exit", "delete"];
        let mut sorted = told.clone();
        sorted.sort();
        let mut meant = life.to_vec();
        meant.sort();
        assert_eq!(sorted, meant.iter().collect::<Vec<_>>(), "{told:?}");
        world.close().await;
    });
}

/// Its streams lead nowhere, to a device of the shim's; it is paused all the while, and runs on.
#[test]
fn a_container_that_is_left_running_is_as_it_was() {
    if !usable("a_container_that_is_left_running_is_as_it_was") {
        return;
    }
    block_on(async {
        let script = "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.1; done";
        let (world, bundle) = World::running("one", |bundle| bundle.script(script)).await;
        let count = || {
            let text = fs::read_to_string(bundle.rootfs_dir().join("tmp/count")).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or(0)
        };
        common::world::until("it counts", || count() > 2).await;
        let pid = world.pids("one").await.unwrap()[0];
        world.within(LONG).checkpoint_with("one", &images(&world), CheckpointOptions::default()).await.unwrap();
        let before = count();
        common::world::until("it counts on", || count() > before + 1).await;
        assert_eq!(world.pids("one").await.unwrap()[0], pid);
        world.sink.wait_topic("checkpointed", "one", SOON).await.unwrap();
        assert!(!bundle.dir().join("criu-dump.log").exists() && images(&world).join("inventory.img").exists());

        world.pause("one").await.unwrap();
        world.within(LONG).checkpoint_with("one", &images(&world), CheckpointOptions::default()).await.unwrap();
        assert_eq!(world.status("one", "").await.unwrap(), Status::PAUSED);
        let still = count();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(count(), still);
        world.resume("one").await.unwrap();
        common::world::until("it counts on", || count() > still + 1).await;
        assert_eq!(world.end("one").await, 137);

        restore(&world, &bundle, &Io::null()).await;
        common::world::until("it goes on", || count() > still + 1).await;
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn what_is_bound_and_what_is_in_memory_is_there_again() {
    if !usable("what_is_bound_and_what_is_in_memory_is_there_again") {
        return;
    }
    block_on(async {
        let script = "echo kept > /dev/shm/file; while :; do cat /data/word /dev/shm/file; sleep 0.1; done";
        let with = |bundle: Bundle| {
            let data = bundle.scratch().dir().join("data");
            fs::create_dir(&data).unwrap();
            fs::write(data.join("word"), "bound\n").unwrap();
            let bind = json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "ro"]});
            let file = json!({"destination": "/data/../etc/word", "type": "bind", "source": data.join("word"),
                "options": ["bind"]});
            bundle.script(script).mount(bind).mount(file)
        };
        let (world, bundle) = World::with("one", with).await;
        let mut io = Io::fifos(&world.scratch, "first");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        io.stdout_with("kept", SOON).await.unwrap();
        dump_and_delete(&world, &bundle, exit()).await;
        fs::write(world.scratch.dir().join("data/word"), "other\n").unwrap();

        let mut io = Io::fifos(&world.scratch, "second");
        restore(&world, &bundle, &io).await;
        let seen = io.stdout_with("other", SOON).await.unwrap();
        io.stdout_with("kept", SOON).await.unwrap_or_else(|e| panic!("{e} {seen}"));
        let look = "cat /etc/word; echo x > /data/new; cat /proc/kcore | wc -c; grep ' /data ' /proc/self/mountinfo";
        let (_, seen) = exec(&world, &bundle, "look", look).await;
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!(lines[..2], ["other", "0"], "{seen}");
        assert!(lines[2].contains(" ro"), "{seen}");
        assert!(!world.scratch.dir().join("data/new").exists());
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_terminal_comes_back_to_its_client() {
    if !usable("a_terminal_comes_back_to_its_client") {
        return;
    }
    block_on(async {
        let script = "n=0; while read line; do n=$((n+1)); echo \"<$n $line>\"; done";
        let terminal = |bundle: Bundle| bundle.script(script).edit(|spec| spec["process"]["terminal"] = json!(true));
        let (world, bundle) = World::with("one", terminal).await;
        let mut io = Io::terminal(&world.scratch, "first");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        let mut stdin = io.open_stdin(SOON).await.unwrap();
        stdin.write_all(b"a\n").unwrap();
        io.stdout_with("<1 a>", SOON).await.unwrap();
        dump_and_delete(&world, &bundle, exit()).await;

        let mut io = Io::terminal(&world.scratch, "second");
        restore(&world, &bundle, &io).await;
        let mut stdin = io.open_stdin(SOON).await.unwrap();
        stdin.write_all(b"b\n").unwrap();
        io.stdout_with("<2 b>", SOON).await.unwrap();
        world.resize_pty("one", "", 77, 33).await.unwrap();
        let (_, size) = exec(&world, &bundle, "size", "stty -F /dev/console size").await;
        assert_eq!(size.trim(), "33 77");
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_failure_leaves_the_container_and_says_why() {
    if !usable("a_failure_leaves_the_container_and_says_why") {
        return;
    }
    block_on(async {
        // A connection is something that CRIU takes along only where it is told to.
        let script = "(sleep 1000 | nc -l -p 7000) & sleep 1; (sleep 1000 | nc 127.0.0.1 7000) &
            until grep -q ' 01 ' /proc/net/tcp; do sleep 0.1; done; echo connected; wait";
        let (world, bundle) = World::with("one", |bundle| bundle.script(script)).await;
        let mut io = Io::fifos(&world.scratch, "first");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        io.stdout_with("connected", SOON).await.unwrap();
        let failed = world.within(LONG).checkpoint_with("one", &images(&world), exit()).await;
        refused(failed, Code::INTERNAL, &["container one", "criu-dump.log", "Error (criu/", "--tcp-established"]);
        assert!(fs::read_to_string(bundle.dir().join("criu-dump.log")).unwrap().contains("Error"));
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        assert_eq!(exec(&world, &bundle, "look", "echo here").await, (0, "here\n".to_owned()));
        assert!(!world.sink.topics("one").contains(&"checkpointed".to_owned()));
        // A second time it is told.
        let with_tcp = CheckpointOptions { open_tcp: true, ..exit() };
        dump_and_delete(&world, &bundle, with_tcp).await;

        // What is not there is told at Create, what is not right at Start; and then there is nothing of it.
        fs::rename(images(&world), world.scratch.dir().join("away")).unwrap();
        let mut request = world.request_for(&bundle, &Io::null());
        request.checkpoint = images(&world).to_str().unwrap().to_owned();
        refused(world.create_request(request).await, Code::NOT_FOUND, &["one", "no checkpoint"]);
        fs::rename(world.scratch.dir().join("away"), images(&world)).unwrap();
        for entry in fs::read_dir(images(&world)).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("core-") {
                fs::write(entry.path(), "no image").unwrap();
            }
        }
        create_restored(&world, &bundle, &Io::null()).await;
        let failed = world.within(LONG).start("one", "").await;
        refused(failed, Code::INTERNAL, &["one", "restore failed", "criu-restore.log", "Error (criu/"]);
        assert_eq!(world.status("one", "").await.unwrap(), Status::CREATED);
        refused(world.start("one", "").await, Code::FAILED_PRECONDITION, &["failed to be restored"]);
        assert_eq!(world.delete("one", "").await.unwrap().pid, 0);
        world.close().await;
    });
}

/// Without CRIU at all; needs none.
#[test]
fn without_criu_it_says_so_and_the_container_runs_on() {
    block_on(async {
        let (world, bundle) = common_without_criu().await;
        let failed = world.checkpoint_with("one", &images(&world), exit()).await;
        refused(failed, Code::FAILED_PRECONDITION, &["one", "executable file not found in $PATH", "CRIU"]);
        assert!(!images(&world).exists());
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        assert_eq!(exec(&world, &bundle, "look", "echo here").await, (0, "here\n".to_owned()));
        assert_eq!(world.end("one").await, 137);

        fs::create_dir(images(&world)).unwrap();
        fs::write(images(&world).join("descriptors.json"), "[]").unwrap();
        create_restored(&world, &bundle, &Io::null()).await;
        refused(world.start("one", "").await, Code::FAILED_PRECONDITION, &["one", "not found in $PATH"]);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// A shim whose PATH has nothing in it, with a running container.
async fn common_without_criu() -> (World, Bundle) {
    let scratch = common::scratch::Scratch::new();
    let sink = common::events::EventSink::start(&scratch);
    let bundle = sleeping(Bundle::new(&scratch, "one"));
    let env = vec![("PATH", scratch.dir().to_str().unwrap().to_owned())];
    let options = common::driver::StartOptions { env, ..Default::default() };
    let shim = common::driver::Shim::start_with(&common::shim_binary(), &bundle, &sink, options).await.unwrap();
    let world = World { shim, sink, scratch };
    world.run(&bundle).await;
    (world, bundle)
}
