//! The shim is killed, at every moment: the `delete` action finds what there was, and leaves nothing. containerd is away: what
//! it is to hear waits for it.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::driver::{StartOptions, await_exit, open_pid, start_action};
use common::stdio::Io;
use common::world::{Bystander, SOON, World, all_gone, hold, leftovers};
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::json;

/// A shim that is about to be killed. Its containers carry the scratch directory in their environment, by which a process
/// of theirs that lives on is found wherever it is.
async fn doomed(change: impl FnOnce(Bundle) -> Bundle) -> (World, Bundle, OwnedFd) {
    let (world, bundle) = World::with("one", |bundle| {
        let mark = format!("MARK={}/", bundle.scratch().dir().display());
        let bundle = bundle.args(&["sleep", "1000"]);
        change(bundle.edit(|spec| spec["process"]["env"].as_array_mut().unwrap().push(json!(mark))))
    })
    .await;
    let shim = open_pid(world.pid().await.unwrap()).unwrap();
    (world, bundle, shim)
}

/// In turn: without a pid namespace of its own, with one, with a user namespace too.
fn kind(bundle: Bundle, round: u32) -> Bundle {
    match round % 3 {
        0 => bundle.without_namespace("pid"),
        1 => bundle,
        _ => bundle.user_namespace(100_000),
    }
}

fn kill_9(shim: &OwnedFd) {
    pidfd_send_signal(shim, Signal::KILL).unwrap();
    await_exit(shim, SOON).unwrap();
}

/// What containerd does when the connection breaks, twice.
fn deleted(world: &World, when: &str) {
    for _ in 0..2 {
        let deleted = world.delete_action().unwrap_or_else(|e| panic!("{when}: {e}"));
        assert_eq!(deleted.exit_status, 137, "{when}");
        // A helper of the shim's that was unmounting when it died ends as soon as the kernel lets go of it.
        let since = Instant::now();
        while !leftovers(&world.scratch).is_empty() && since.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(leftovers(&world.scratch), [""; 0], "{when}");
    }
    let socket = world.address.strip_prefix("unix://").unwrap();
    assert!(!fs::exists(socket).unwrap(), "{when}: {socket}");
}

/// Lets a call that has been spawned reach the socket, then waits for so long, blocking.
async fn send_and_wait(wait: Duration) {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    std::thread::sleep(wait);
}

/// Moments that differ from round to round, and from run to run.
fn moment(round: u32, rounds: u32, span: Duration) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    span * round / rounds + Duration::from_nanos(u64::from(now.subsec_nanos()) % 200_000)
}

#[test]
fn before_there_is_a_container() {
    block_on(async {
        let (world, _bundle, shim) = doomed(|b| b).await;
        kill_9(&shim);
        deleted(&world, "after start");
    });
}

#[test]
fn while_a_container_is_created() {
    block_on(async {
        const ROUNDS: u32 = 60;
        let (mut answered, mut lost) = (0, 0);
        for round in 0..ROUNDS {
            let (world, bundle, shim) = doomed(|b| kind(b, round)).await;
            let (task, request) = (world.task.clone(), world.request_for(&bundle, &Io::null()));
            let creating = tokio::spawn(async move { task.create_request(request).await });
            let moment = moment(round, ROUNDS, Duration::from_millis(12));
            send_and_wait(moment).await;
            kill_9(&shim);
            *(if creating.await.unwrap().is_ok() { &mut answered } else { &mut lost }) += 1;
            deleted(&world, &format!("{moment:?} into create"));
        }
        assert!(lost > 0, "all {answered} creates were faster than the kill");
    });
}

#[test]
fn with_a_created_and_with_a_running_container() {
    block_on(async {
        for private in [true, false] {
            for running in [false, true] {
                let script = "sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &); sleep 1000";
                let change = |b: Bundle| if private { b } else { b.without_namespace("pid") }.script(script);
                let (world, bundle, shim) = doomed(change).await;
                let mut beside = Bystander::new();
                let pid = world.create(&bundle, &Io::fifos(&world.scratch, "one")).await.unwrap().pid;
                let parents = bundle.cgroups();
                let parents: Vec<_> = parents.iter().map(|dir| dir.parent().unwrap()).collect();
                beside.join(&parents);
                if running {
                    world.start("one", "").await.unwrap();
                    world.exec("one", "x", &bundle.process(&["sleep", "1000"]), &Io::null()).await.unwrap();
                    world.start("one", "x").await.unwrap();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let processes = hold(&world.pids("one").await.unwrap());
                assert_eq!(processes.len(), if running { 5 } else { 1 });
                kill_9(&shim);
                deleted(&world, &format!("private {private}, running {running}, pid {pid}"));
                all_gone(&processes);
                assert!(beside.is_alive());
                drop(beside);
            }
        }
    });
}

#[test]
fn while_a_container_is_started() {
    block_on(async {
        for round in 0..30 {
            let (world, bundle, shim) = doomed(|b| b).await;
            let init = hold(&[world.create(&bundle, &Io::null()).await.unwrap().pid]);
            let task = world.task.clone();
            let starting = tokio::spawn(async move { task.start("one", "").await });
            let moment = moment(round, 30, Duration::from_millis(3));
            send_and_wait(moment).await;
            kill_9(&shim);
            let _ = starting.await.unwrap();
            deleted(&world, &format!("{moment:?} into start"));
            all_gone(&init);
        }
    });
}

#[test]
fn while_an_exec_is_started() {
    block_on(async {
        for round in 0..30 {
            let (world, bundle, shim) = doomed(|b| kind(b, round)).await;
            let init = hold(&[world.run(&bundle).await]);
            world.exec("one", "x", &bundle.process(&["sleep", "1000"]), &Io::null()).await.unwrap();
            let task = world.task.clone();
            let starting = tokio::spawn(async move { task.start("one", "x").await });
            let moment = moment(round, 30, Duration::from_millis(4));
            send_and_wait(moment).await;
            kill_9(&shim);
            let _ = starting.await.unwrap();
            deleted(&world, &format!("{moment:?} into an exec"));
            all_gone(&init);
        }
    });
}

#[test]
fn while_a_container_is_deleted() {
    block_on(async {
        for round in 0..30 {
            let stopped = round % 2 > 0;
            let (world, bundle, shim) = doomed(|b| if stopped { b.args(&["true"]) } else { b }).await;
            world.create(&bundle, &Io::null()).await.unwrap();
            if stopped {
                world.start("one", "").await.unwrap();
                world.wait("one", "").await.unwrap();
            }
            let task = world.task.clone();
            let deleting = tokio::spawn(async move { task.delete("one", "").await });
            let moment = moment(round, 30, Duration::from_millis(6));
            send_and_wait(moment).await;
            kill_9(&shim);
            let _ = deleting.await.unwrap();
            deleted(&world, &format!("{moment:?} into delete"));
        }
    });
}

/// containerd had no time for the delete action, or it failed: the id is not lost for that.
#[test]
fn the_next_shim_of_the_same_id_clears_up_first() {
    block_on(async {
        for private in [true, false] {
            let (world, bundle, shim) = doomed(|b| if private { b } else { b.without_namespace("pid") }).await;
            world.run(&bundle).await;
            let old = hold(&world.pids("one").await.unwrap());
            kill_9(&shim);
            let reply = start_action(&common::shim_binary(), &bundle, &world.sink, &StartOptions::default()).unwrap();
            assert_eq!(String::from_utf8(reply.stdout).unwrap(), world.address);
            let next = world.reconnect().await.unwrap();
            next.create(&bundle, &Io::null()).await.unwrap();
            all_gone(&old);
            next.start("one", "").await.unwrap();
            next.kill("one", "", libc::SIGKILL, false).await.unwrap();
            next.wait("one", "").await.unwrap();
            next.delete("one", "").await.unwrap();
            let left = leftovers(&world.scratch);
            assert!(left.len() == 1 && left[0].starts_with("shim"), "{left:?}");
        }
    });
}

/// A pod: the delete action is asked for each of the shim's containers.
#[test]
fn with_several_containers() {
    block_on(async {
        let (world, bundle, shim) = doomed(|b| b).await;
        let second = Bundle::new(&world.scratch, "two").args(&["sleep", "1000"]);
        let pids = [world.run(&bundle).await, world.run(&second).await];
        let processes = hold(&pids);
        kill_9(&shim);
        world.delete_action_for("two", second.dir()).unwrap();
        assert_eq!(common::world::living(&processes), 1, "only its own");
        deleted(&world, "with another");
        all_gone(&processes);
    });
}

/// A privileged container, or an operator, may have moved it; its new neighbours are others'.
#[test]
fn with_an_init_that_has_left_its_cgroup() {
    block_on(async {
        for private in [true, false] {
            let (world, bundle, shim) = doomed(|b| if private { b } else { b.without_namespace("pid") }).await;
            let pid = world.run(&bundle).await;
            let cgroups = bundle.cgroups();
            let parents: Vec<_> = cgroups.iter().map(|dir| dir.parent().unwrap()).collect();
            let mut beside = Bystander::new();
            beside.join(&parents);
            for dir in &parents {
                fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
            }
            let init = hold(&[pid]);
            kill_9(&shim);
            deleted(&world, "moved");
            all_gone(&init);
            assert!(beside.is_alive());
            drop(beside);
        }
    });
}

#[test]
fn nothing_is_lost_while_containerd_is_away_for_a_minute() {
    block_on(async {
        let away = Duration::from_secs(60);
        let (mut world, bundle) = World::running("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        world.sink.wait_topic("start", "one", SOON).await.unwrap();
        world.sink.stop();
        let since = Instant::now();
        let mut lives = 0;
        let second = Bundle::new(&world.scratch, "two");
        while since.elapsed() < away {
            let exec = format!("x{lives}");
            world.exec_to_exit("one", &exec, &bundle.process(&["true"]), &Io::null()).await.unwrap();
            world.run(&second).await;
            world.wait("two", "").await.unwrap();
            world.delete("two", "").await.unwrap();
            lives += 1;
            tokio::time::sleep(away / 20).await;
        }
        assert_eq!(world.end("one").await, 137);
        world.sink.restart();
        world.sink.wait_topic("delete", "one", Duration::from_secs(60)).await.unwrap();
        let expected: Vec<_> = (0..lives).flat_map(|_| ["create", "start", "exit", "delete"]).collect();
        assert_eq!(world.sink.topics("two"), expected);
        for life in 0..lives {
            assert_eq!(world.sink.topics_of_exec(&format!("x{life}")), ["exec-added", "exec-started", "exit"]);
        }
        world.close().await;
    });
}
