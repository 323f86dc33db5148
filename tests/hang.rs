//! A file system that stops answering (tests/common/fuse.rs) holds up the container that is on it, and no other of the same
//! shim: containerd gives State 2 s, and takes a shim that does not answer for dead.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::driver::{Task, code};
use common::fuse::Fuse;
use common::scratch::mounts_below;
use common::stdio::Io;
use common::world::{SOON, World, descriptors, until};
use containerd_shim_protos::api::{CreateTaskResponse, Mount, Status};
use serde_json::json;
use tokio::task::JoinHandle;
use ttrpc::Code;

/// How long one watches the others while something hangs.
const WATCHED: Duration = Duration::from_millis(700);

/// What most answers have to keep within; where the machine is so busy that this says nothing, five times what they took
/// before anything hung.
const MOST: Duration = Duration::from_millis(100);

/// What each has to: containerd's own bound for State.
const EACH: Duration = Duration::from_secs(2);

/// No path.
const NONE: [PathBuf; 0] = [];

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

/// A shim with a container that has nothing to do with the file system, and the file system. Dropped in this order: what hangs is to end first.
struct Stage {
    fuse: Fuse,
    world: World,
    one: Bundle,
    shim: i32,
    descriptors: usize,
    /// What most answers take while nothing hangs.
    quiet: Option<Duration>,
}

impl Stage {
    async fn new() -> Stage {
        let (world, one) = World::running("one", sleeping).await;
        let fuse = Fuse::mount(one.busybox(), &world.scratch.dir().join("fuse"));
        let shim = world.pid().await.unwrap();
        let mut stage = Stage { fuse, world, one, shim, descriptors: 0, quiet: None };
        stage.quiet = Some(stage.others_are_served().await);
        stage.descriptors = descriptors(shim);
        stage
    }

    /// The bundle "two", to be changed.
    fn two(&self) -> Bundle {
        sleeping(Bundle::new(&self.world.scratch, "two"))
    }

    fn on_fuse(&self, path: &str) -> String {
        self.fuse.path().join(path).to_str().unwrap().to_string()
    }

    /// Asks another connection about "one", again and again: State, Pids, Stats, a signal, an exec to its end. Returns within
    /// what time 9 of 10 are answered.
    async fn others_are_served(&self) -> Duration {
        let other = self.world.reconnect().await.unwrap().within(Duration::from_secs(5));
        let process = self.one.process(&["true"]);
        let began = Instant::now();
        let (mut times, mut execs) = (Vec::new(), 0);
        while began.elapsed() < WATCHED || times.len() < 30 {
            let asked = Instant::now();
            assert_eq!(other.status("one", "").await.unwrap(), Status::RUNNING);
            times.push(asked.elapsed());
            let asked = Instant::now();
            assert_ne!(other.pids("one").await.unwrap(), [0; 0]);
            other.stats("one").await.unwrap();
            other.kill("one", "", libc::SIGCONT, false).await.unwrap();
            times.push(asked.elapsed() / 3);
            if times.len() % 16 == 0 {
                other.exec_to_exit("one", &format!("x{execs}"), &process, &Io::null()).await.unwrap();
                execs += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.sort();
        let (most, worst) = (times[times.len() * 9 / 10], times[times.len() - 1]);
        println!("{} answers: 9 of 10 within {most:?}, the last after {worst:?}", times.len());
        let bound = self.quiet.map_or(EACH, |quiet| MOST.max(quiet * 5));
        assert!(most < bound && worst < EACH, "9 of 10 within {most:?}, the last after {worst:?}");
        assert!(execs > 0);
        most
    }

    /// A Create that hangs; others go on meanwhile; it is given up by a Delete, which ends when the server answers.
    async fn create_hangs(&self, two: &Bundle, io: &Io) {
        self.fuse.hang();
        let creating = self.creating(two, io).await;
        self.fuse.until_waited_for().await;
        self.others_are_served().await;
        let deleting = self.deleting("two").await;
        self.others_are_served().await;
        self.fuse.answer();
        assert_eq!(code(&creating.await.unwrap().unwrap_err()), Some(Code::UNAVAILABLE));
        assert_eq!(code(&deleting.await.unwrap().unwrap_err()), Some(Code::NOT_FOUND));
        self.nothing_is_left(two).await;
        // The id is free, and the server well.
        self.world.run(two).await;
        assert_eq!(self.world.end("two").await, 137);
        self.nothing_is_left(two).await;
    }

    async fn creating(&self, two: &Bundle, io: &Io) -> JoinHandle<ttrpc::Result<CreateTaskResponse>> {
        let task = self.world.reconnect().await.unwrap().within(Duration::from_secs(100));
        let request = task.request_for(two, io);
        tokio::spawn(async move { task.create_request(request).await })
    }

    async fn deleting(&self, id: &str) -> JoinHandle<ttrpc::Result<()>> {
        let (task, id) = (self.patient().await, id.to_string());
        tokio::spawn(async move { task.delete(&id, "").await.map(drop) })
    }

    async fn patient(&self) -> Task {
        self.world.reconnect().await.unwrap().within(Duration::from_secs(100))
    }

    async fn nothing_is_left(&self, two: &Bundle) {
        assert_eq!(mounts_below(two.dir()), NONE);
        assert_eq!(two.cgroups(), NONE);
        assert!(!Path::new("/run/dray").join(self.world.scratch.namespace()).join("two").exists());
        until("no child", || children(self.shim) == 1).await; // "one"
        until("descriptors as before", || descriptors(self.shim) <= self.descriptors).await;
    }

    async fn close(self) {
        let Stage { world, fuse, .. } = self;
        assert_eq!(world.end("one").await, 137);
        drop(fuse);
        world.close().await;
    }
}

/// The number of a process's children.
fn children(pid: i32) -> usize {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
    list.split_whitespace().count()
}

fn bind(source: String) -> Mount {
    Mount { type_: "bind".into(), source, options: vec!["rbind".into(), "ro".into()], ..Mount::default() }
}

#[test]
fn a_rootfs_that_is_bound_from_it() {
    block_on(async {
        let stage = Stage::new().await;
        let mut two = stage.two();
        // Below it: looking that up is a question to the server.
        two.rootfs = vec![bind(stage.on_fuse("."))];
        stage.create_hangs(&two, &Io::null()).await;
        stage.close().await;
    });
}

#[test]
fn a_rootfs_with_a_layer_on_it() {
    block_on(async {
        let stage = Stage::new().await;
        let mut two = stage.two();
        for option in &mut two.rootfs[0].options {
            if option.starts_with("lowerdir=") {
                *option = format!("lowerdir={}", stage.on_fuse(""));
            }
        }
        stage.create_hangs(&two, &Io::null()).await;
        // And as the first of several that are put together by paths of their own.
        for option in &mut two.rootfs[0].options {
            if option.starts_with("lowerdir=") {
                *option = format!("lowerdir={}:{}", stage.one.busybox().display(), stage.on_fuse("bin"));
            }
        }
        stage.create_hangs(&two, &Io::null()).await;
        stage.close().await;
    });
}

#[test]
fn a_rootfs_mount_whose_target_is_on_it() {
    block_on(async {
        let stage = Stage::new().await;
        let mut two = stage.two();
        let tmpfs = Mount { type_: "tmpfs".into(), source: "tmpfs".into(), target: "home".into(), ..Mount::default() };
        two.rootfs = vec![bind(stage.on_fuse("")), tmpfs];
        stage.create_hangs(&two, &Io::null()).await;
        stage.close().await;
    });
}

#[test]
fn a_root_path_on_it() {
    block_on(async {
        let stage = Stage::new().await;
        let root = stage.on_fuse("");
        let mut two = stage.two().edit(|spec| spec["root"] = json!({"path": root, "readonly": true}));
        two.rootfs.clear();
        stage.create_hangs(&two, &Io::null()).await;
        stage.close().await;
    });
}

/// A child that not even SIGKILL ends. The create is given up all the same, what it leaves is taken away when its id is used
/// again, and nobody else has waited.
#[test]
fn a_root_path_on_it_for_longer_than_anyone_waits() {
    block_on(async {
        let stage = Stage::new().await;
        let root = stage.on_fuse("");
        let mut two = stage.two().edit(|spec| spec["root"] = json!({"path": root, "readonly": true}));
        two.rootfs.clear();
        stage.fuse.hang();
        let creating = stage.creating(&two, &Io::null()).await;
        stage.fuse.until_waited_for().await;
        let deleting = stage.deleting("two").await;
        while !deleting.is_finished() {
            stage.others_are_served().await;
        }
        assert_eq!(code(&creating.await.unwrap().unwrap_err()), Some(Code::UNAVAILABLE));
        assert_eq!(code(&deleting.await.unwrap().unwrap_err()), Some(Code::NOT_FOUND));
        // Still it cannot: what the first has left is busy.
        let again = stage.patient().await.create(&two, &Io::null()).await.unwrap_err();
        assert!(again.to_string().contains("already exists"), "{again}");
        stage.fuse.answer();
        stage.world.run(&two).await;
        assert_eq!(stage.world.end("two").await, 137);
        stage.nothing_is_left(&two).await;
        stage.close().await;
    });
}

#[test]
fn a_mount_of_the_specification_from_it() {
    block_on(async {
        let stage = Stage::new().await;
        let source = stage.on_fuse("etc/passwd");
        let mount = json!({"destination": "/root/x", "type": "bind", "source": source, "options": ["bind", "ro"]});
        let two = stage.two().mount(mount);
        stage.create_hangs(&two, &Io::null()).await;
        // The host opens it where there is a user namespace.
        stage.create_hangs(&two.user_namespace(300_000), &Io::null()).await;
        stage.close().await;
    });
}

#[test]
fn a_log_or_a_logger_on_it() {
    block_on(async {
        let stage = Stage::new().await;
        let two = stage.two();
        for scheme in ["file", "binary"] {
            let mut io = Io::null();
            io.stdout = format!("{scheme}://{}", stage.on_fuse("bin/x/log"));
            stage.fuse.hang();
            let creating = stage.creating(&two, &io).await;
            stage.fuse.until_waited_for().await;
            stage.others_are_served().await;
            stage.fuse.answer();
            creating.await.unwrap().unwrap_err();
            stage.nothing_is_left(&two).await;
        }
        stage.close().await;
    });
}

#[test]
fn a_running_container_on_it_can_be_asked_about_killed_and_deleted() {
    block_on(async {
        let stage = Stage::new().await;
        let mut two = stage.two();
        two.rootfs = vec![bind(stage.on_fuse(""))];
        stage.world.run(&two).await;
        stage.fuse.hang();
        // A program there, whose lookup asks.
        stage.world.exec("two", "x", &two.process(&["ls", "/bin"]), &Io::null()).await.unwrap();
        let task = stage.patient().await;
        let starting = tokio::spawn(async move { task.start("two", "x").await });
        stage.fuse.until_waited_for().await;
        stage.others_are_served().await;
        let asked = Instant::now();
        assert_eq!(stage.world.status("two", "").await.unwrap(), Status::RUNNING);
        assert!(stage.world.pids("two").await.unwrap().len() >= 2);
        stage.world.stats("two").await.unwrap();
        assert_eq!(stage.world.status("two", "x").await.unwrap(), Status::CREATED);
        assert!(asked.elapsed() < EACH, "{:?}", asked.elapsed());
        // What has to do with the process that waits, and does not wait with it.
        let resources = json!({"cpu": {"shares": 512, "cpus": "0", "mems": "0"}, "memory": {"limit": 64 << 20}});
        stage.world.update("two", &resources).await.unwrap();
        let task = stage.patient().await;
        let pausing = tokio::spawn(async move { task.pause("two").await });
        stage.others_are_served().await;
        assert_eq!(code(&pausing.await.unwrap().unwrap_err()), Some(Code::DEADLINE_EXCEEDED));
        stage.world.kill("two", "", libc::SIGKILL, false).await.unwrap();
        stage.others_are_served().await;
        // The exec waits in the kernel, and init's end with it: the pid namespace is not empty.
        let deleting = stage.deleting("two").await;
        stage.others_are_served().await;
        stage.fuse.answer();
        // A child that is killed on its way to its program has become none, or is taken for one that has ended.
        let _ = starting.await.unwrap();
        // Either it was in time, or it has to be asked for again.
        if deleting.await.unwrap().is_err() {
            stage.world.wait("two", "").await.unwrap();
            stage.world.delete("two", "").await.unwrap();
        }
        stage.nothing_is_left(&two).await;
        stage.close().await;
    });
}

/// The child that mounts is not known to the dead shim's successor but by what was saved of it.
#[test]
fn a_shim_that_dies_while_it_mounts_leaves_nothing() {
    block_on(async {
        let stage = Stage::new().await;
        let mut two = stage.two();
        for option in &mut two.rootfs[0].options {
            if option.starts_with("lowerdir=") {
                *option = format!("lowerdir={}", stage.on_fuse(""));
            }
        }
        stage.fuse.hang();
        let creating = stage.creating(&two, &Io::null()).await;
        stage.fuse.until_waited_for().await;
        stage.world.kill_shim().await.unwrap();
        creating.await.unwrap().unwrap_err();
        // containerd gives it 5 s; it must not say that all is gone while that may still be mounted.
        let asked = Instant::now();
        let error = stage.world.delete_action_for("two", two.dir()).unwrap_err();
        assert!(error.contains("being mounted"), "{error}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        stage.fuse.answer();
        stage.world.delete_action_for("two", two.dir()).unwrap();
        // Long enough for what would mount it late.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(mounts_below(two.dir()), NONE);
        stage.world.delete_action().unwrap();
        let deadline = Instant::now() + SOON;
        while !common::world::leftovers(&stage.world.scratch).iter().all(|left| left.ends_with("/fuse")) {
            assert!(Instant::now() < deadline, "{:?}", common::world::leftovers(&stage.world.scratch));
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}
