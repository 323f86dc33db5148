//! Kill: whom a signal reaches, and that a container is ended as a whole, and nothing beside it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::{is_v2, on};
use common::scratch::{cgroup_mounts, mounts_below, remove_cgroup};
use common::stdio::Io;
use common::world::{Bystander, SOON, World, all_gone, hold, living, refused, until};
use containerd_shim_protos::api::Status;
use serde_json::json;
use ttrpc::Code;

/// No directory.
const NONE: [PathBuf; 0] = [];

/// Leaves children of every sort: of its own group, of another session, orphans.
const BROOD: &str = "sleep 1000 & setsid sleep 1000 & (sleep 1000 &) ; (setsid sleep 1000 & exit)";

/// A container that is not bounded by a pid namespace of its own: `joined` is the one to join, none is the host's.
fn unbounded(bundle: Bundle, joined: Option<u32>) -> Bundle {
    let bundle = bundle.without_namespace("pid");
    match joined {
        None => bundle,
        Some(pid) => bundle.edit(|spec| {
            let joined = json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(joined);
        }),
    }
}

/// Waits until the container has so many processes, and holds them.
async fn processes(world: &World, id: &str, count: usize) -> Vec<OwnedFd> {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let pids = world.pids(id).await.unwrap();
        if pids.len() == count {
            return hold(&pids);
        }
        assert!(std::time::Instant::now() < deadline, "{id} has {pids:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A cgroup beside this container's in every hierarchy, to be removed by `remove_cgroup`. Not the parent of both: v2 takes no
/// process in a cgroup that limits those below.
fn neighbours(bundle: &Bundle) -> Vec<PathBuf> {
    let neighbour = |dir: &PathBuf| {
        let beside = dir.with_file_name("beside");
        fs::create_dir(&beside).unwrap_or_else(|e| panic!("{}: {e}", beside.display()));
        if dir.to_str().unwrap().contains("cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(beside.join(file), fs::read(dir.join(file)).unwrap()).unwrap();
            }
        }
        beside
    };
    bundle.cgroups().iter().map(neighbour).collect()
}

/// The file that freezes a cgroup.
fn freezer_file() -> &'static str {
    on("freezer.state", "cgroup.freeze")
}

/// A world with a container `host`, in whose pid namespace others may live.
async fn world_with_host() -> (World, Bundle, u32) {
    let (world, host) = World::with("host", |b| b.args(&["sleep", "1000"])).await;
    let pid = world.run(&host).await;
    (world, host, pid)
}

#[test]
fn sigkill_ends_all_of_a_container_without_a_pid_namespace() {
    block_on(async {
        let (world, host, host_pid) = world_with_host().await;
        let mut beside = Bystander::new();
        let around = neighbours(&host);
        beside.join(&around);
        for (number, (joined, all)) in
            [(None, false), (None, true), (Some(host_pid), false), (Some(host_pid), true)].into_iter().enumerate()
        {
            let id = format!("c{number}");
            let script = format!("{BROOD}; sleep 1000");
            let bundle = unbounded(Bundle::new(&world.scratch, &id), joined).script(&script);
            world.run(&bundle).await;
            world.exec(&id, "x", &bundle.process(&["sleep", "1000"]), &Io::null()).await.unwrap();
            world.start(&id, "x").await.unwrap();
            let of_container = processes(&world, &id, 6).await;
            world.kill(&id, "", libc::SIGKILL, all).await.unwrap();
            assert_eq!(world.wait(&id, "").await.unwrap().exit_status, 137);
            // When the exit is told, nothing runs any more.
            assert_eq!(living(&of_container), 0, "{id}");
            world.delete(&id, "").await.unwrap();
            assert_eq!(bundle.cgroups(), NONE);
        }
        assert!(beside.is_alive());
        assert_eq!(world.status("host", "").await.unwrap(), Status::RUNNING);
        assert_eq!(world.end("host").await, 137);
        assert!(beside.is_alive());
        drop(beside);
        around.iter().for_each(|dir| remove_cgroup(dir));
        world.close().await;
    });
}

#[test]
fn what_init_leaves_behind_ends_with_it() {
    block_on(async {
        let (world, _host, host_pid) = world_with_host().await;
        for (number, joined) in [None, Some(host_pid)].into_iter().enumerate() {
            let id = format!("c{number}");
            let script = format!("{BROOD}; read line; exit 3");
            let bundle = unbounded(Bundle::new(&world.scratch, &id), joined).script(&script);
            let io = Io::null().with_stdin(&world.scratch, &id);
            world.create(&bundle, &io).await.unwrap();
            world.start(&id, "").await.unwrap();
            let of_container = processes(&world, &id, 5).await;
            std::io::Write::write_all(&mut io.open_stdin(SOON).await.unwrap(), b"go\n").unwrap();
            assert_eq!(world.wait(&id, "").await.unwrap().exit_status, 3);
            assert_eq!(living(&of_container), 0, "{id}");
            world.delete(&id, "").await.unwrap();
            assert_eq!(bundle.cgroups(), NONE);
        }
        assert_eq!(world.status("host", "").await.unwrap(), Status::RUNNING);
        assert_eq!(world.end("host").await, 137);
        world.close().await;
    });
}

#[test]
fn cgroups_below_the_containers_are_part_of_it() {
    block_on(async {
        let script = "sleep 1000 & sleep 1000 & sleep 1000";
        let (world, bundle) = World::running("one", |b| unbounded(b, None).script(script)).await;
        let of_container = processes(&world, "one", 3).await;
        let pids = world.pids("one").await.unwrap();
        let mut beside = Bystander::new();
        let around = neighbours(&bundle);
        beside.join(&around);
        for dir in bundle.cgroups() {
            let deep = dir.join("sub/deeper");
            fs::create_dir_all(&deep).unwrap();
            if dir.to_str().unwrap().contains("cpuset") {
                for (file, level) in ["cpuset.cpus", "cpuset.mems"].iter().flat_map(|f| [(f, "sub"), (f, "sub/deeper")])
                {
                    fs::write(dir.join(level).join(file), fs::read(dir.join(file)).unwrap()).unwrap();
                }
            }
            fs::write(deep.join("cgroup.procs"), pids[1].to_string()).unwrap();
            fs::write(deep.parent().unwrap().join("cgroup.procs"), pids[2].to_string()).unwrap();
            // Frozen, it takes no SIGKILL.
            if deep.join(freezer_file()).exists() {
                fs::write(deep.join(freezer_file()), on("FROZEN", "1")).unwrap();
            }
        }
        assert_eq!(world.pids("one").await.unwrap(), pids);
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 137);
        assert_eq!(living(&of_container), 0);
        world.delete("one", "").await.unwrap();
        assert_eq!(bundle.cgroups(), NONE);
        assert!(beside.is_alive());
        drop(beside);
        around.iter().for_each(|dir| remove_cgroup(dir));
        world.close().await;
    });
}

/// A privileged container, or an operator, may move a process elsewhere: where it is now belongs to others.
#[test]
fn init_is_killed_wherever_it_is_and_its_new_neighbours_are_not() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| unbounded(b, None).args(&["sleep", "1000"])).await;
        let pid = world.run(&bundle).await;
        let mut beside = Bystander::new();
        let around = neighbours(&bundle);
        beside.join(&around);
        for dir in &around {
            fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        assert_eq!(world.pids("one").await.unwrap(), [pid]);
        assert_eq!(world.end("one").await, 137);
        assert!(beside.is_alive());
        drop(beside);
        around.iter().for_each(|dir| remove_cgroup(dir));
        world.close().await;
    });
}

#[test]
fn other_signals_go_to_init_alone() {
    block_on(async {
        for private in [true, false] {
            let script = "trap 'echo caught' TERM; sleep 1000 & echo ready; while :; do wait; done";
            let change = |b: Bundle| if private { b } else { unbounded(b, None) }.script(script);
            let (world, bundle) = World::with("one", change).await;
            let mut io = Io::fifos(&world.scratch, "one");
            world.create(&bundle, &io).await.unwrap();
            world.start("one", "").await.unwrap();
            io.stdout_with("ready\n", SOON).await.unwrap();
            let both = processes(&world, "one", 2).await;
            world.kill("one", "", libc::SIGTERM, true).await.unwrap();
            io.stdout_with("ready\ncaught\n", SOON).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(living(&both), 2, "private: {private}");
            assert_eq!(world.end("one").await, 137);
            all_gone(&both);
            world.close().await;
        }
    });
}

/// Forks as fast as it can, for ever: awk goes on where a shell ends because it cannot fork.
const BOMB: &str = r#"awk 'BEGIN { for (;;) system(ENVIRON["BOMB"] " &") }'"#;

#[test]
fn a_fork_bomb_is_ended_and_the_shim_answers_meanwhile() {
    block_on(async {
        for private in [true, false] {
            let change = |b: Bundle| {
                let b = if private { b } else { unbounded(b, None) };
                b.script(&format!("exec {BOMB}")).edit(|spec| {
                    spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("BOMB={BOMB}")));
                    spec["linux"]["resources"]["pids"] = json!({"limit": 60});
                })
            };
            let (world, bundle) = World::running("one", change).await;
            let count = || {
                let procs = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                bundle.cgroups().iter().map(|dir| procs(dir).lines().count()).max().unwrap_or(0)
            };
            until("the bomb goes", || count() > 40).await;
            for _ in 0..5 {
                let status = world.within(Duration::from_secs(2)).status("one", "").await;
                assert_eq!(status.unwrap(), Status::RUNNING);
            }
            world.kill("one", "", libc::SIGKILL, true).await.unwrap();
            let exit = world.wait("one", "").await.unwrap();
            assert_eq!(exit.exit_status, 137, "private: {private}");
            assert_eq!(count(), 0, "private: {private}");
            world.delete("one", "").await.unwrap();
            world.close().await;
        }
    });
}

#[test]
fn a_fork_bomb_whose_init_ends_by_itself_ends_with_it() {
    block_on(async {
        let change = |b: Bundle| {
            unbounded(b, None).script(&format!("{BOMB} & sleep 1; exit 5")).edit(|spec| {
                spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("BOMB={BOMB}")));
                spec["linux"]["resources"]["pids"] = json!({"limit": 60});
            })
        };
        let (world, _bundle) = World::running("one", change).await;
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 5);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// These directories and all below them.
fn tree(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut ahead = dirs.to_vec();
    while let Some(dir) = ahead.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        ahead.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        found.push(dir);
    }
    found.sort();
    found
}

#[test]
fn a_cgroup_that_is_not_ours_is_refused_and_left_alone() {
    block_on(async {
        let (world, _first) = World::running("one", |b| b.args(&["sleep", "1000"])).await;
        let namespace = world.scratch.namespace().to_string();
        let roots: Vec<_> = cgroup_mounts().into_iter().map(|root| root.join(&namespace)).collect();
        // The shim in a cgroup of its own, as a service manager starts containerd.
        let shim = world.pid().await.unwrap().to_string();
        let make = |name: &str| {
            let dirs: Vec<_> = roots.iter().map(|root| root.join(name)).collect();
            for (root, dir) in roots.iter().zip(&dirs) {
                fs::create_dir(dir).unwrap();
                for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| dir.join(file).exists()) {
                    if root.to_str().unwrap().contains("cpuset") {
                        fs::write(dir.join(file), fs::read(root.join(file)).unwrap()).unwrap();
                    }
                }
            }
            dirs
        };
        for dir in make("daemon") {
            fs::write(dir.join("cgroup.procs"), &shim).unwrap();
        }
        let mut inside = Bystander::new();
        inside.join(&make("used"));
        let mut in_one = Bystander::new();
        let freezer = |dir: &&PathBuf| is_v2() || dir.to_str().unwrap().contains("freezer");
        in_one.join(&[make("used-in-one").iter().find(freezer).unwrap()]);
        let frozen = make("frozen");
        fs::write(frozen.iter().find(freezer).unwrap().join(freezer_file()), on("FROZEN", "1")).unwrap();
        let frozen = make("frozen-parent");
        fs::write(frozen.iter().find(freezer).unwrap().join(freezer_file()), on("FROZEN", "1")).unwrap();

        let before = tree(&roots);
        for (number, (path, wanted)) in [
            ("/".to_string(), Code::INVALID_ARGUMENT),
            ("/..".to_string(), Code::INVALID_ARGUMENT),
            (format!("/{namespace}/x/../.."), Code::INVALID_ARGUMENT),
            (format!("/{namespace}"), Code::FAILED_PRECONDITION),
            (format!("/{namespace}/daemon"), Code::FAILED_PRECONDITION),
            (format!("/{namespace}/used"), Code::FAILED_PRECONDITION),
            (format!("/{namespace}/used-in-one"), Code::FAILED_PRECONDITION),
            (format!("/{namespace}/frozen"), Code::FAILED_PRECONDITION),
            (format!("/{namespace}/frozen-parent/x"), Code::FAILED_PRECONDITION),
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("c{number}");
            let bundle = Bundle::new(&world.scratch, &id).edit(|spec| spec["linux"]["cgroupsPath"] = json!(path));
            refused(world.create(&bundle, &Io::null()).await, wanted, &[&format!("container {id}"), "cgroup", &path]);
            assert_eq!(mounts_below(bundle.dir()), NONE, "{path}");
            assert!(!Path::new("/run/dray").join(&namespace).join(&id).exists(), "{path}");
            assert_eq!(tree(&roots), before, "{path}");
        }
        assert!(inside.is_alive() && in_one.is_alive());
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);

        // An empty leftover is no one's.
        make("left");
        let bundle =
            Bundle::new(&world.scratch, "left").edit(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
        world.run(&bundle).await;
        assert_eq!(world.end("left").await, 137);
        assert_eq!(tree(&roots), before);
    });
}

/// Not those whose default is to be ignored, or to stop.
fn is_deadly(signal: i32) -> bool {
    let ignored = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
    let stopping = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    !ignored.contains(&signal) && !stopping.contains(&signal)
}

#[test]
fn every_signal_is_delivered_and_told_as_the_exit_status() {
    block_on(async {
        let (world, bundle) = World::running("one", |b| unbounded(b, None).args(&["sleep", "1000"])).await;
        for signal in (1..=64).filter(|&signal| is_deadly(signal)) {
            let exec = format!("x{signal}");
            world.exec("one", &exec, &bundle.process(&["sleep", "1000"]), &Io::null()).await.unwrap();
            world.start("one", &exec).await.unwrap();
            world.kill("one", &exec, signal, false).await.unwrap();
            let exit = world.wait("one", &exec).await.unwrap_or_else(|e| panic!("signal {signal}: {e}"));
            assert_eq!(exit.exit_status, 128 + signal as u32);
            world.delete("one", &exec).await.unwrap();
        }
        for signal in [65, 1000, -1] {
            refused(world.kill("one", "", signal, false).await, Code::INVALID_ARGUMENT, &["container one", "signal"]);
        }
        world.kill("one", "", 0, false).await.unwrap();
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        world.kill("one", "", libc::SIGRTMIN() + 6, false).await.unwrap();
        let exit = world.wait("one", "").await.unwrap();
        assert_eq!(exit.exit_status, 128 + libc::SIGRTMIN() as u32 + 6);
        let told = world.sink.wait_for(|events| events.iter().any(|e| e.raw_id == "one" && e.exit_status > 0), SOON);
        let told = told.await.unwrap();
        assert_eq!(told.last().unwrap().exit_status, exit.exit_status);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn stop_and_continue_pass() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.script("while :; do sleep 0.01; done")).await;
        let pid = world.run(&bundle).await;
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        world.kill("one", "", libc::SIGSTOP, false).await.unwrap();
        until("stopped", || state() == 'T').await;
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING, "a stopped process has not exited");
        world.kill("one", "", libc::SIGCONT, false).await.unwrap();
        until("continued", || state() != 'T').await;
        // Stopped again, it still dies.
        world.kill("one", "", libc::SIGSTOP, false).await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// A container that divides its cgroup decides how many cgroups are below it. Whoever asks for another container of the pod
/// is answered while they are being removed.
#[test]
fn very_many_cgroups_are_removed_beside_other_work() {
    const MANY: usize = 4000;
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        world.run(&Bundle::new(&world.scratch, "two").args(&["sleep", "1000"])).await;
        let dirs = bundle.cgroups();
        let dir = dirs.iter().find(|dir| dir.join("cgroup.events").exists()).unwrap_or(&dirs[0]);
        (0..MANY).for_each(|number| fs::create_dir(dir.join(format!("c{number}"))).unwrap());
        // As many as there are directories below; none when it has gone.
        let left = || fs::metadata(dir).map_or(0, |dir| dir.nlink() - 2) as usize;
        assert_eq!(left(), MANY);
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        world.wait("one", "").await.unwrap();
        let answers = async {
            let mut between = 0;
            while dir.exists() {
                let before = left();
                world.state("two", "").await.unwrap();
                between += usize::from(before < MANY && left() > 0);
            }
            between
        };
        let (deleted, between) = tokio::join!(world.delete("one", ""), answers);
        deleted.unwrap();
        assert!(between > 0, "it was answered after the removal alone");
        world.end("two").await;
        world.close().await;
    });
}
