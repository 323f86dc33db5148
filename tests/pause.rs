//! Pause and Resume: all of a container stands still, nothing is started in it, and it can still be asked about, killed
//! and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::{is_v2, number_of, on, read};
use common::driver::open_pid;
use common::patience;
use common::stdio::Io;
use common::world::{SOON, World, all_gone, hold, leftovers, refused, status, until};
use containerd_shim_protos::api::Status;
use ttrpc::Code;

/// Long enough for a process that is not frozen to be seen running.
const A_WHILE: Duration = Duration::from_millis(300);

/// Counts in a file that can be read from outside.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; done";

/// Four loops that fork without end.
const FORKS: &str = "for n in 1 2 3 4; do while :; do (true); done & done; wait";

fn counting(bundle: Bundle) -> Bundle {
    bundle.script(COUNT)
}

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

fn count(bundle: &Bundle) -> u64 {
    let text = fs::read_to_string(bundle.rootfs_dir().join("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Waits until it counts on.
async fn counts_on(bundle: &Bundle) {
    let before = count(bundle);
    until("it counts", || count(bundle) > before).await;
}

/// The container's cgroup that freezes it.
fn freezer(bundle: &Bundle) -> PathBuf {
    bundle.cgroup_file(on("freezer.state", "cgroup.freeze")).parent().unwrap().to_path_buf()
}

/// Whether this cgroup is frozen, all of it, or not at all.
fn is_frozen(freezer: &Path) -> bool {
    if is_v2() {
        return number_of(&read(&freezer.join("cgroup.events")), "frozen") == 1;
    }
    match &*read(&freezer.join("freezer.state")) {
        "FROZEN" => true,
        "THAWED" => false,
        state => panic!("{}: {state}", freezer.display()),
    }
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    block_on(async {
        let (world, bundle) = World::running("one", counting).await;
        let io = Io::null();
        world.exec("one", "e", &bundle.process(&["sleep", "1000"]), &io).await.unwrap();
        let exec = world.start("one", "e").await.unwrap().pid;
        counts_on(&bundle).await;

        world.pause("one").await.unwrap();
        let before = count(&bundle);
        assert!(is_frozen(&freezer(&bundle)));
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(count(&bundle), before);
        for exec_id in ["", "e"] {
            assert_eq!(world.status("one", exec_id).await.unwrap(), Status::PAUSED);
        }
        // It is all there still.
        assert!(world.pids("one").await.unwrap().contains(&exec));
        refused(world.pause("one").await, Code::FAILED_PRECONDITION, &["one", "paused already"]);
        refused(world.delete("one", "").await, Code::FAILED_PRECONDITION, &["running"]);
        assert_eq!(count(&bundle), before);

        world.resume("one").await.unwrap();
        counts_on(&bundle).await;
        assert!(!is_frozen(&freezer(&bundle)));
        for exec_id in ["", "e"] {
            assert_eq!(world.status("one", exec_id).await.unwrap(), Status::RUNNING);
        }
        refused(world.resume("one").await, Code::FAILED_PRECONDITION, &["one", "not paused"]);

        // Again: no state is left of the first time.
        world.pause("one").await.unwrap();
        world.resume("one").await.unwrap();
        counts_on(&bundle).await;
        assert_eq!(world.end("one").await, 137);
        world.sink.wait_topic("delete", "one", SOON).await.unwrap();
        let topics = world.sink.topics("one");
        let told: Vec<_> = topics.iter().filter(|topic| !topic.starts_with("exec-")).collect();
        let twice = ["paused", "resumed", "paused", "resumed"];
        assert_eq!(told, [&["create", "start"], &twice[..], &["exit", "exit", "delete"]].concat());
        assert!(world.sink.events().iter().all(|event| event.fault.is_none()), "{:?}", world.sink.events());
        world.close().await;
    });
}

#[test]
fn nothing_is_started_in_a_paused_container() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let (process, io) = (bundle.process(&["true"]), Io::null());
        world.exec("one", "before", &process, &io).await.unwrap();
        world.pause("one").await.unwrap();
        refused(world.exec("one", "e", &process, &io).await, Code::FAILED_PRECONDITION, &["one", "paused"]);
        refused(world.start("one", "before").await, Code::FAILED_PRECONDITION, &["before", "paused"]);
        refused(world.start("one", "").await, Code::FAILED_PRECONDITION, &["one", "paused"]);
        // The refusal has used up neither: both work afterwards.
        world.resume("one").await.unwrap();
        let waiting = world.spawn_wait("one", "before").await;
        world.start("one", "before").await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 0);
        assert_eq!(world.exec_to_exit("one", "e", &process, &io).await.unwrap().exit_status, 0);
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn only_what_runs_is_paused() {
    block_on(async {
        let (world, bundle) = World::with("one", sleeping).await;
        refused(world.pause("one").await, Code::NOT_FOUND, &["one"]);
        refused(world.resume("one").await, Code::NOT_FOUND, &["one"]);
        world.create(&bundle, &Io::null()).await.unwrap();
        refused(world.pause("one").await, Code::FAILED_PRECONDITION, &["one", "not running"]);
        refused(world.resume("one").await, Code::FAILED_PRECONDITION, &["one", "not paused"]);
        world.start("one", "").await.unwrap();
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        world.wait("one", "").await.unwrap();
        refused(world.pause("one").await, Code::FAILED_PRECONDITION, &["one", "not running"]);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn a_paused_container_is_killed() {
    block_on(async {
        let private = |bundle: Bundle| bundle.script("sleep 1000 & sleep 1000");
        let shared = |bundle: Bundle| private(bundle).without_namespace("pid");
        for change in [&private as &dyn Fn(Bundle) -> Bundle, &shared] {
            let (world, bundle) = World::running("one", change).await;
            world.exec("one", "e", &bundle.process(&["sleep", "1000"]), &Io::null()).await.unwrap();
            world.start("one", "e").await.unwrap();
            let members = || fs::read_to_string(freezer(&bundle).join("cgroup.procs")).unwrap().lines().count();
            // The shell executes the last of its commands.
            until("all are there", || members() == 3).await;
            let processes = hold(&world.pids("one").await.unwrap());
            world.pause("one").await.unwrap();
            assert_eq!(world.end("one").await, 137);
            all_gone(&processes);
            assert!(world.sink.topics("one").iter().all(|topic| topic != "resumed" && topic != "oom"));
            world.close().await;
            assert_eq!(bundle.cgroups(), [""; 0].map(PathBuf::from));
        }
    });
}

/// The Pause must not freeze again what is to die.
#[test]
fn a_kill_ends_a_pause_under_way() {
    block_on(async {
        for private in [true, false] {
            let forking = |bundle: Bundle| bundle.script(FORKS);
            let change = |bundle| if private { forking(bundle) } else { forking(bundle).without_namespace("pid") };
            let (world, bundle) = World::with("one", change).await;
            for round in 0..20 {
                world.run(&bundle).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
                let task = world.task.clone();
                let pausing = tokio::spawn(async move { task.pause("one").await });
                // From before it has begun until after it is done.
                tokio::time::sleep(Duration::from_micros(200 * round)).await;
                assert_eq!(world.end("one").await, 137, "round {round}");
                let _ = pausing.await.unwrap();
            }
            world.close().await;
        }
    });
}

#[test]
fn another_signal_waits_for_the_resume() {
    block_on(async {
        let script = "trap 'exit 42' TERM; touch /tmp/count; while :; do sleep 0.02; done";
        let (world, bundle) = World::running("one", |bundle| bundle.script(script)).await;
        until("the trap is set", || bundle.rootfs_dir().join("tmp/count").exists()).await;
        world.pause("one").await.unwrap();
        world.kill("one", "", libc::SIGTERM, false).await.unwrap();
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(world.status("one", "").await.unwrap(), Status::PAUSED);
        assert!(is_frozen(&freezer(&bundle)));
        let waiting = world.spawn_wait("one", "").await;
        world.resume("one").await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 42);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn a_container_that_forks_without_end_is_paused_while_others_ask() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| bundle.script(FORKS)).await;
        until("it forks", || status(pid_of(&bundle), "Threads") > 0).await;
        let quick = world.within(Duration::from_secs(2));
        for round in 0..10 {
            let task = world.task.clone();
            let pausing = tokio::spawn(async move { task.pause("one").await });
            while !pausing.is_finished() {
                let seen = quick.status("one", "").await.unwrap();
                assert!(matches!(seen, Status::RUNNING | Status::PAUSING | Status::PAUSED), "{seen:?}");
                tokio::task::yield_now().await;
            }
            pausing.await.unwrap().unwrap_or_else(|e| panic!("round {round}: {e}"));
            assert!(is_frozen(&freezer(&bundle)));
            let members = || fs::read_to_string(freezer(&bundle).join("cgroup.procs")).unwrap();
            let before = members();
            tokio::time::sleep(Duration::from_millis(30)).await;
            assert_eq!(members(), before);
            quick.resume("one").await.unwrap();
        }
        world.end("one").await;
        world.close().await;
    });
}

/// A process of the container's that is in its freezer.
fn pid_of(bundle: &Bundle) -> i32 {
    let procs = fs::read_to_string(freezer(bundle).join("cgroup.procs")).unwrap();
    procs.lines().next().and_then(|pid| pid.parse().ok()).expect("a process")
}

#[test]
fn of_two_pauses_at_a_time_one_is_refused() {
    block_on(async {
        let (world, _bundle) = World::running("one", |bundle| bundle.script(FORKS)).await;
        let pause = |task: common::driver::Task| tokio::spawn(async move { task.pause("one").await });
        let (first, second) = (pause(world.task.clone()), pause(world.task.clone()));
        let answers = [first.await.unwrap(), second.await.unwrap()];
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
        let [refusal] = answers.into_iter().filter(Result::is_err).collect::<Vec<_>>().try_into().unwrap();
        refused(refusal, Code::FAILED_PRECONDITION, &["one", "paused"]);
        assert_eq!(world.status("one", "").await.unwrap(), Status::PAUSED);
        world.end("one").await;
        world.close().await;
    });
}

/// A freezer of the container's own is its own business.
#[test]
fn what_the_container_has_frozen_itself_stays_so() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let own = freezer(&bundle).join("own");
        fs::create_dir(&own).unwrap();
        fs::write(own.join(on("freezer.state", "cgroup.freeze")), on("FROZEN", "1")).unwrap();
        world.pause("one").await.unwrap();
        world.resume("one").await.unwrap();
        assert_eq!(read(&own.join(on("freezer.state", "cgroup.freeze"))), on("FROZEN", "1"));
        assert!(!is_frozen(&freezer(&bundle)));
        world.end("one").await;
        world.close().await;
    });
}

/// containerd gives the action 5 s.
#[test]
fn a_paused_container_whose_shim_has_died_is_removed() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let init = open_pid(world.state("one", "").await.unwrap().pid as i32).unwrap();
        world.pause("one").await.unwrap();
        world.kill_shim().await.unwrap();
        assert!(is_frozen(&freezer(&bundle)));
        let begun = Instant::now();
        assert_eq!(world.delete_action().unwrap().exit_status, 137);
        assert!(begun.elapsed() < patience(Duration::from_secs(4)), "{:?}", begun.elapsed());
        all_gone(&[init]);
        assert_eq!(leftovers(&world.scratch), [""; 0]);
    });
}
