//! The actions, every call in every state of a container, and what many of them cost: codes, messages, descriptors.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::driver::{Shim, StartOptions, TASK_V2, TASK_V3, code, open_pid, start_action};
use common::events::EventSink;
use common::scratch::{Scratch, mounts_below};
use common::stdio::Io;
use common::world::{SOON, World, all_gone, descriptors, hold, leftovers, refused, status, until};
use containerd_shim_protos::api::Status;
use serde_json::json;
use ttrpc::Code;

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

#[test]
fn the_reply_of_start_is_an_address_and_nothing_else() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one");
        let start = || {
            let output = start_action(&common::shim_binary(), &bundle, &sink, &StartOptions::default()).unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let address = start();
        let path = address.strip_prefix("unix:///run/containerd/s/").expect("an address");
        assert!(path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit()), "{address:?}");
        let path = address.strip_prefix("unix://").unwrap();
        let socket = fs::metadata(path).unwrap();
        assert!(socket.file_type().is_socket());
        assert_eq!(socket.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(bundle.dir().join("address")).unwrap(), address);

        let shims = scratch.shims();
        assert_eq!(shims.len(), 1);
        assert_eq!(start(), address, "while the shim lives there is no second one");
        assert_eq!(scratch.shims(), shims);

        // A shim that died leaves its socket behind, on which nobody listens.
        let shim = open_pid(shims[0]).expect("the shim");
        rustix::process::pidfd_send_signal(&shim, rustix::process::Signal::KILL).unwrap();
        all_gone(&[shim]);
        assert!(fs::exists(path).unwrap());
        assert_eq!(start(), address);
        let successors = scratch.shims();
        assert!(successors.len() == 1 && successors != shims, "{successors:?}");
        let client = ttrpc::asynchronous::Client::connect(&address).await;
        assert!(client.is_ok(), "nobody listens");
        fs::remove_file(path).unwrap();
        fs::remove_file(format!("{path}.dray")).unwrap();
    });
}

#[test]
fn a_stale_socket_is_removed_by_the_delete_action_and_a_living_one_is_not() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let socket = world.address.strip_prefix("unix://").unwrap().to_string();
        // Not something that containerd does, but an operator may: nothing is harmed.
        let refusal = world.delete_action().unwrap_err();
        assert!(refusal.contains("container one") && refusal.contains("alive"), "{refusal}");
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        assert!(fs::exists(&socket).unwrap() && !bundle.cgroups().is_empty());
        world.kill_shim().await.unwrap();
        let deleted = world.delete_action().unwrap();
        assert_eq!(deleted.exit_status, 137);
        assert!(deleted.pid > 0 && deleted.exited_at.seconds > 1_600_000_000, "{deleted:?}");
        assert!(!fs::exists(&socket).unwrap());
        assert_eq!(leftovers(&world.scratch), [""; 0]);
        // containerd may ask again after its own restart.
        assert_eq!(world.delete_action().unwrap().exit_status, 137);
        let _listener = UnixListener::bind(&socket).unwrap();
        world.delete_action().unwrap();
        assert!(fs::exists(&socket).unwrap(), "another's socket was removed");
        fs::remove_file(socket).unwrap();
    });
}

#[test]
fn the_version_is_printed_and_wrong_flags_are_named() {
    let run = |args: &[&str]| Command::new(common::shim_binary()).args(args).output().unwrap();
    let version = run(&["-v"]);
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(version.status.success() && text.contains(env!("CARGO_PKG_VERSION")), "{text}");
    assert!(version.stderr.is_empty());
    for (args, word) in [
        (&["-id", "x", "start"][..], "-namespace"),
        (&["-namespace", "x", "start"], "-id"),
        (&["-namespace", "x", "-id", "y", "dance"], "dance"),
        // The server itself is not to be run by hand: it is unsealed and has no socket.
        (&["-namespace", "x", "-id", "y"], "start"),
    ] {
        let output = run(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(word), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn both_names_of_the_task_service_answer_and_what_is_missing_says_so() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        for name in [TASK_V2, TASK_V3] {
            let task = world.service(name);
            assert!(task.connect("one").await.unwrap().task_pid > 0);
            refused(task.checkpoint("none", "/tmp".as_ref()).await, Code::NOT_FOUND, &["none"]);
            refused(task.call_raw("Dance", Vec::new()).await, Code::UNIMPLEMENTED, &["Dance"]);
        }
        // containerd probes these, and goes without where it is told that they are not there.
        for name in ["containerd.runtime.sandbox.v1.Sandbox", "containerd.services.streaming.v1.TTRPCStreaming"] {
            let answer = world.service(name).call_raw("Platform", Vec::new()).await;
            refused(answer, Code::UNIMPLEMENTED, &["Platform"]);
        }
        world.service("no.such.Service").call_raw("Create", Vec::new()).await.unwrap_err();
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
    });
}

#[test]
fn what_does_not_exist_is_not_found() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let process = json!({"args": ["true"], "cwd": "/"});
        for id in ["two", "../one", "one/", ""] {
            let words = &["container", id, "not found"][..];
            refused(world.start(id, "").await, Code::NOT_FOUND, words);
            refused(world.wait(id, "").await, Code::NOT_FOUND, words);
            refused(world.state(id, "").await, Code::NOT_FOUND, words);
            refused(world.kill(id, "", 9, true).await, Code::NOT_FOUND, words);
            refused(world.delete(id, "").await, Code::NOT_FOUND, words);
            refused(world.pids(id).await, Code::NOT_FOUND, words);
            refused(world.close_io(id, "").await, Code::NOT_FOUND, words);
            refused(world.exec(id, "x", &process, &Io::null()).await, Code::NOT_FOUND, words);
            // containerd asks its shim, by the shim's id, before there is a container.
            let connect = world.connect(id).await.unwrap();
            assert!(connect.shim_pid > 0 && connect.task_pid == 0, "{connect:?}");
        }
        let words = &["container one", "exec x", "not found"][..];
        refused(world.start("one", "x").await, Code::NOT_FOUND, words);
        refused(world.wait("one", "x").await, Code::NOT_FOUND, words);
        refused(world.state("one", "x").await, Code::NOT_FOUND, words);
        refused(world.kill("one", "x", 9, false).await, Code::NOT_FOUND, words);
        refused(world.delete("one", "x").await, Code::NOT_FOUND, words);
        refused(world.close_io("one", "x").await, Code::NOT_FOUND, words);
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
    });
}

#[test]
fn calls_by_the_state_of_the_container() {
    block_on(async {
        let (world, bundle) = World::with("one", sleeping).await;
        let process = bundle.process(&["true"]);
        let pid = world.create(&bundle, &Io::null()).await.unwrap().pid;

        // Created.
        refused(world.create(&bundle, &Io::null()).await, Code::ALREADY_EXISTS, &["container one", "already exists"]);
        let state = world.state("one", "").await.unwrap();
        assert_eq!((state.pid, state.status.enum_value(), state.exit_status), (pid, Ok(Status::CREATED), 0));
        assert_eq!(state.bundle, bundle.dir().to_str().unwrap());
        assert!(state.exited_at.is_none());
        assert_eq!(world.pids("one").await.unwrap(), [pid]);
        assert_eq!(world.connect("one").await.unwrap().task_pid, pid);
        world.kill("one", "", 0, false).await.unwrap();
        let early = world.spawn_wait("one", "").await;

        // Running.
        assert_eq!(world.start("one", "").await.unwrap().pid, pid);
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        refused(world.start("one", "").await, Code::FAILED_PRECONDITION, &["container one", "already running"]);
        refused(world.delete("one", "").await, Code::FAILED_PRECONDITION, &["container one", "delete a running"]);
        refused(world.create(&bundle, &Io::null()).await, Code::ALREADY_EXISTS, &["container one"]);
        world.shutdown("one", true).await.unwrap(); // With containers it is no more than a question.
        let late: Vec<_> = futures::future::join_all((0..50).map(|_| world.spawn_wait("one", ""))).await;
        assert!(!early.is_finished());
        world.exec("one", "left", &process, &Io::null()).await.unwrap();
        let of_left = world.spawn_wait("one", "left").await;
        world.kill("one", "", libc::SIGTERM, false).await.unwrap(); // sleep as init ignores it,
        world.kill("one", "", libc::SIGKILL, false).await.unwrap(); // but not this.

        // Stopped. Everyone who waited is told the same, and who comes later too.
        let exit = early.await.unwrap().unwrap();
        assert_eq!(exit.exit_status, 137);
        for waiting in late {
            assert_eq!(waiting.await.unwrap().unwrap().exited_at, exit.exited_at);
        }
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 137);
        let state = world.state("one", "").await.unwrap();
        assert_eq!((state.pid, state.status.enum_value(), state.exit_status), (pid, Ok(Status::STOPPED), 137));
        assert_eq!(state.exited_at, exit.exited_at);
        // Its own pid, so that a containerd that comes back does not take the shim for a leaked one.
        assert_eq!(world.pids("one").await.unwrap(), [pid]);
        refused(world.start("one", "").await, Code::FAILED_PRECONDITION, &["container one", "exited"]);
        for signal in [libc::SIGKILL, libc::SIGTERM, 0] {
            let killed = world.kill("one", "", signal, true).await;
            refused(killed, Code::NOT_FOUND, &["container one", "process already finished"]);
        }
        let exec = world.exec("one", "x", &process, &Io::null()).await;
        refused(exec, Code::FAILED_PRECONDITION, &["container one", "exec x", "stopped"]);
        refused(world.start("one", "left").await, Code::FAILED_PRECONDITION, &["exec left", "exited"]);

        // Deleted, and with it the exec that nobody started: who waits for that is not left waiting.
        let deleted = world.delete("one", "").await.unwrap();
        assert_eq!((deleted.pid, deleted.exit_status, deleted.exited_at), (pid, 137, exit.exited_at));
        tokio::time::timeout(SOON, of_left).await.expect("a Wait without end").unwrap().unwrap();
        refused(world.delete("one", "").await, Code::NOT_FOUND, &["container one"]);
        world.sink.wait_topic("delete", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "start", "exec-added", "exit", "delete"]);
        world.close().await;
    });
}

#[test]
fn calls_by_the_state_of_an_exec() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let process = bundle.process(&["sleep", "1000"]);
        world.exec("one", "x", &process, &Io::null()).await.unwrap();
        let again = world.exec("one", "x", &process, &Io::null()).await;
        refused(again, Code::ALREADY_EXISTS, &["container one", "exec x", "already exists"]);
        for bad in ["", "one"] {
            let exec = world.exec("one", bad, &process, &Io::null()).await;
            refused(exec, Code::INVALID_ARGUMENT, &["container one"]);
        }

        // Recorded.
        let state = world.state("one", "x").await.unwrap();
        assert_eq!((state.pid, state.status.enum_value()), (0, Ok(Status::CREATED)));
        assert_eq!((state.id.as_str(), state.exec_id.as_str()), ("one", "x"));
        refused(world.kill("one", "x", 9, false).await, Code::FAILED_PRECONDITION, &["exec x", "not started"]);
        let waiting = world.spawn_wait("one", "x").await;

        // Running.
        let pid = world.start("one", "x").await.unwrap().pid;
        assert_eq!(world.state("one", "x").await.unwrap().pid, pid);
        assert_eq!(world.status("one", "x").await.unwrap(), Status::RUNNING);
        assert!(world.pids("one").await.unwrap().contains(&pid));
        refused(world.start("one", "x").await, Code::FAILED_PRECONDITION, &["exec x", "already running"]);
        refused(world.delete("one", "x").await, Code::FAILED_PRECONDITION, &["exec x", "delete a running"]);
        // SIGKILL of an exec is the exec's alone.
        world.kill("one", "x", libc::SIGKILL, true).await.unwrap();

        // Stopped.
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        assert_eq!(world.status("one", "x").await.unwrap(), Status::STOPPED);
        refused(world.kill("one", "x", 9, false).await, Code::NOT_FOUND, &["exec x", "already finished"]);
        refused(world.start("one", "x").await, Code::FAILED_PRECONDITION, &["exec x"]);
        let deleted = world.delete("one", "x").await.unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
        refused(world.delete("one", "x").await, Code::NOT_FOUND, &["exec x"]);
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);

        // Its id is free again; one that was never started can go, and one whose start failed.
        world.exec("one", "x", &process, &Io::null()).await.unwrap();
        world.delete("one", "x").await.unwrap();
        world.exec("one", "x", &bundle.process(&["no-such-program"]), &Io::null()).await.unwrap();
        let started = world.start("one", "x").await.unwrap_err().to_string();
        assert!(started.contains("exec x") && started.contains("no-such-program"), "{started}");
        world.wait("one", "x").await.unwrap();
        world.delete("one", "x").await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_created_container_is_deleted_with_its_process() {
    block_on(async {
        for private in [true, false] {
            let change = |b: Bundle| if private { b } else { b.without_namespace("pid") };
            let (world, bundle) = World::with("one", change).await;
            let pid = world.create(&bundle, &Io::null()).await.unwrap().pid;
            let init = hold(&[pid]);
            let waiting = world.spawn_wait("one", "").await;
            assert_eq!(world.delete("one", "").await.unwrap().exit_status, 137);
            assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
            all_gone(&init);
            world.sink.wait_topic("delete", "one", SOON).await.unwrap();
            assert_eq!(world.sink.topics("one"), ["create", "exit", "delete"]);

            // Killed by itself, and then deleted.
            let second = Bundle::new(&world.scratch, "two");
            world.create(&second, &Io::null()).await.unwrap();
            world.kill("two", "", libc::SIGKILL, false).await.unwrap();
            assert_eq!(world.wait("two", "").await.unwrap().exit_status, 137);
            let started = world.start("two", "").await;
            refused(started, Code::FAILED_PRECONDITION, &["container two", "exited"]);
            world.delete("two", "").await.unwrap();
            world.close().await;
        }
    });
}

#[test]
fn ended_ids_can_be_used_again() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b).await;
        for _ in 0..3 {
            world.run(&bundle).await;
            world.wait("one", "").await.unwrap();
            world.delete("one", "").await.unwrap();
        }
        world.close().await;
    });
}

/// A bind mount's source on a FUSE whose server never answers: what touches it waits in the kernel.
struct Hanging(std::path::PathBuf, Option<fs::File>);

impl Hanging {
    fn new(scratch: &Scratch) -> Hanging {
        use nix::mount::{MsFlags, mount};
        use std::os::fd::AsRawFd;
        let dir = scratch.dir().join("hanging");
        fs::create_dir(&dir).unwrap();
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("hanging"), &dir, Some("fuse"), MsFlags::empty(), Some(data.as_str())).expect("mount fuse");
        Hanging(dir, Some(device))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.1.take(); // Aborts the connection, and whoever waits.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_create_that_hangs_holds_up_no_one_else() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let mut hanging = Hanging::new(&world.scratch);
        let source = hanging.0.join("source").display().to_string();
        let bind = json!({"destination": "/mnt", "type": "bind", "source": source, "options": ["rbind"]});
        let second = Bundle::new(&world.scratch, "two").mount(bind);
        let (task, request) = (world.task.clone(), world.request_for(&second, &Io::null()));
        let creating = tokio::spawn(async move { task.create_request(request).await });
        // It is there when its process is born: the cgroup has it.
        until("the process", || {
            let has_process = |dir: &std::path::PathBuf| {
                fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
            };
            second.cgroups().iter().any(has_process)
        })
        .await;
        let quick = world.within(Duration::from_secs(2));
        for _ in 0..5 {
            assert_eq!(quick.status("one", "").await.unwrap(), Status::RUNNING);
            refused(quick.state("two", "").await, Code::NOT_FOUND, &["two"]);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!creating.is_finished(), "the test hangs nothing");
        refused(world.create(&second, &Io::null()).await, Code::ALREADY_EXISTS, &["two"]);
        assert_eq!(world.end("one").await, 137);
        hanging.1.take();
        let error = creating.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("container two") && error.contains("/mnt"), "{error}");
        drop(hanging);
        world.close().await;
    });
}

#[test]
fn fifty_containers_at_once_in_shims_of_their_own() {
    block_on(async {
        let worlds = futures::future::join_all((0..50).map(|number| async move {
            let (world, bundle) = World::with(&format!("c{number}"), |b| b.args(&["sleep", "1000"])).await;
            world.run(&bundle).await;
            (world, bundle)
        }));
        let worlds = worlds.await;
        let ends = worlds.into_iter().map(|(world, bundle)| async move {
            assert_eq!(world.status(&bundle.id, "").await.unwrap(), Status::RUNNING);
            assert_eq!(world.end(&bundle.id).await, 137);
            world.close().await;
        });
        futures::future::join_all(ends).await;
    });
}

#[test]
fn fifty_containers_at_once_in_one_shim_leave_it_as_it_was() {
    block_on(async {
        let (world, first) = World::with("c0", sleeping).await;
        let shim = world.pid().await.unwrap();
        let others = (1..50).map(|number| sleeping(Bundle::new(&world.scratch, &format!("c{number}"))));
        let bundles: Vec<_> = std::iter::once(first).chain(others).collect();
        let before = descriptors(shim);
        let round = async |number: usize| {
            futures::future::join_all(bundles.iter().map(|bundle| world.run(bundle))).await;
            assert_eq!(status(shim, "Threads"), 1);
            for bundle in &bundles {
                assert_eq!(world.status(&bundle.id, "").await.unwrap(), Status::RUNNING);
                assert_eq!(world.pids(&bundle.id).await.unwrap().len(), 1);
            }
            futures::future::join_all(bundles.iter().map(|bundle| world.end(&bundle.id))).await;
            world.sink.wait_for(|seen| seen.len() >= number * 50 * 4, SOON).await.unwrap();
            // The connection to containerd came with the first event, the null device with the first stream.
            until("descriptors as before", || descriptors(shim) <= before + 2).await;
        };
        round(1).await;
        for bundle in &bundles {
            assert_eq!(world.sink.topics(&bundle.id), ["create", "start", "exit", "delete"]);
        }
        let warm = status(shim, "VmRSS");
        for number in [2, 3] {
            round(number).await;
        }
        let grown = status(shim, "VmRSS").saturating_sub(warm);
        assert!(grown < 512, "100 containers more cost {grown} KiB");
        world.close().await;
    });
}

#[test]
fn a_thousand_execs_over_twenty_connections_leave_the_shim_as_it_was() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        let process = bundle.process(&["true"]);
        let mut events = 2 + 3;
        let mut round = async |name: &str| {
            let clients = (0..20).map(|client| {
                let (world, process) = (&world, &process);
                async move {
                    let task = world.reconnect().await.unwrap();
                    for number in 0..25 {
                        let exec = format!("{name}-{client}-{number}");
                        let exit = task.exec_to_exit("one", &exec, process, &Io::null()).await.unwrap();
                        assert_eq!(exit.exit_status, 0);
                    }
                }
            });
            futures::future::join_all(clients).await;
            // What waits to be sent is memory too.
            events += 3 * 500;
            world.sink.wait_for(|seen| seen.len() >= events, SOON).await.unwrap();
        };
        world.exec_to_exit("one", "warm", &process, &Io::null()).await.unwrap();
        world.sink.wait_for(|seen| seen.len() >= 2 + 3, SOON).await.unwrap();
        let before = descriptors(shim);
        round("first").await;
        let warm = status(shim, "VmRSS");
        for name in ["second", "third"] {
            round(name).await;
        }
        assert_eq!(status(shim, "Threads"), 1);
        until("descriptors as before", || descriptors(shim) <= before).await;
        let grown = status(shim, "VmRSS").saturating_sub(warm);
        assert!(grown < 512, "1000 execs more cost {grown} KiB");
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// A client that gives up (a deadline, a containerd that dies) is forgotten, though the container runs for months.
#[test]
fn waits_whose_clients_are_gone_leave_nothing() {
    block_on(async {
        let (world, _bundle) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        let give_up = async |times: usize| {
            let task = world.reconnect().await.unwrap().within(Duration::from_millis(50));
            for _ in 0..times {
                let waits = (0..100).map(|_| task.wait("one", ""));
                assert!(futures::future::join_all(waits).await.iter().all(Result::is_err));
            }
        };
        give_up(10).await;
        let before = status(shim, "VmRSS");
        give_up(50).await;
        let grown = status(shim, "VmRSS").saturating_sub(before);
        assert!(grown < 700, "5000 waits cost {grown} KiB");
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// A container that is asked for while the server is about to end is not lost with it: it is refused, and whoever starts a
/// shim from then on gets a new one.
#[test]
fn a_container_is_not_given_to_a_shim_that_is_ending() {
    block_on(async {
        let (mut world, bundle) = World::with("one", |b| b.args(&["true"])).await;
        world.run(&bundle).await;
        world.wait("one", "").await.unwrap();
        // Events that nobody takes keep the end waiting, for 3 s.
        world.sink.stop();
        world.delete("one", "").await.unwrap();
        let old = world.pid().await.unwrap();
        world.shutdown("one", false).await.unwrap();
        let socket = world.address.strip_prefix("unix://").unwrap();
        assert!(!fs::exists(socket).unwrap(), "the address is still there");
        refused(world.create(&bundle, &Io::null()).await, Code::UNAVAILABLE, &["container one", "is ending"]);
        assert_eq!((bundle.cgroups().len(), mounts_below(bundle.dir()).len()), (0, 0));

        world.sink.restart();
        let next = Shim::start(&common::shim_binary(), &bundle, &world.sink).await.expect("start action");
        assert_eq!(next.address, world.address);
        until("the end of the old shim", || !fs::exists(format!("/proc/{old}")).unwrap()).await;
        next.create(&bundle, &Io::null()).await.unwrap();
        next.start("one", "").await.unwrap();
        next.wait("one", "").await.unwrap();
        next.delete("one", "").await.unwrap();
        next.shutdown_and_wait(SOON).await.unwrap();
    });
}

/// Of two shims of a namespace that are to create one container at the same instant one does, and the other says that it
/// exists and leaves it alone.
#[test]
fn two_shims_that_create_one_id_at_once() {
    block_on(async {
        let (world, _first) = World::with("first", |bundle| bundle).await;
        let second = Bundle::new(&world.scratch, "second");
        let other = Shim::start(&common::shim_binary(), &second, &world.sink).await.unwrap();
        let contested = Bundle::new(&world.scratch, "contested").script("echo lives > /tmp/lives; exec sleep 1000");
        let io = Io::null();
        for round in 0..20 {
            let (ours, theirs) =
                futures::future::join(world.create(&contested, &io), other.create(&contested, &io)).await;
            let (winner, lost) = match (ours, theirs) {
                (Ok(_), Err(error)) => (&world.shim, error),
                (Err(error), Ok(_)) => (&other, error),
                both => panic!("round {round}: {both:?}"),
            };
            assert_eq!(code(&lost), Some(Code::ALREADY_EXISTS), "round {round}: {lost}");
            winner.start("contested", "").await.unwrap();
            let status = winner.exec_to_exit("contested", "look", &contested.process(&["ls", "/tmp"]), &io).await;
            assert_eq!(status.unwrap().exit_status, 0, "round {round}");
            let waiting = winner.spawn_wait("contested", "").await;
            winner.kill("contested", "", libc::SIGKILL, false).await.unwrap();
            assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
            winner.delete("contested", "").await.unwrap();
        }
        other.shutdown("second", false).await.unwrap();
        until("the other has ended", || world.scratch.shims().len() == 1).await;
        world.close().await;
    });
}
