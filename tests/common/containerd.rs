//! A containerd of the test's own: its root, state, sockets and configuration lie in a scratch directory, its shims are
//! those of this tree. When it is dropped, nothing of it is left; whether something was left before, `leftovers` says.
//!
//! `scripts/test` sets what is needed: DRAY_SHIM, the shim's binary, DRAY_IMAGE, an image to import, DRAY_RUNTIME, and where
//! each version of containerd is.

// Each test binary has this module for itself and uses its part of it.
#![allow(dead_code)]

mod attached;
mod events;
mod machine;
pub mod version;

pub use events::Events;
pub use machine::*;
use version::{Driven, Version};

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

/// The name of the image within DRAY_IMAGE: busybox with all its applets.
pub const IMAGE: &str = "localhost/busybox:latest";
/// A running containerd, or one that was ended and can be started again.
pub struct Containerd {
    /// Its scratch directory.
    pub dir: PathBuf,
    /// The parent of its containers' cgroups, in every hierarchy; begins with '/'.
    pub cgroup: String,
    /// Its namespace of containerd: the state below /run of containers of another containerd is not to be met.
    pub namespace: String,
    /// The test's name, with its module: for `skip`.
    test: String,
    version: &'static Version,
    bin: PathBuf,
    /// The runtime under test.
    pub runtime: String,
    /// The snapshotter that works in its directory.
    pub snapshotter: &'static str,
    daemon: Option<Child>,
    ids: Mutex<BTreeSet<String>>,
}

impl Containerd {
    /// Starts one whose programs are in `bin`, and imports the image. Its containers are in a namespace of the caller's
    /// or one of their own; `config` makes its configuration.
    pub fn start_with(
        version: &'static Version,
        bin: PathBuf,
        test: String,
        namespace: Option<&str>,
        config: fn(&Self) -> String,
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dray-ctr.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Below /tmp whatever TMPDIR says: the path of a socket has 107 bytes at most.
        let dir = Path::new("/tmp").join(&name);
        fs::create_dir(&dir).expect("a new scratch directory");
        let runtime = std::env::var("DRAY_RUNTIME").unwrap_or_else(|_| "io.containerd.dray.v2".into());
        let snapshotter = if can_overlay(&dir) { "overlayfs" } else { "native" };
        let (cgroup, namespace, ids) = (format!("/{name}"), namespace.map_or(name, Into::into), Mutex::default());
        let mut containerd =
            Self { dir, cgroup, namespace, test, version, bin, runtime, snapshotter, daemon: None, ids };
        fs::write(containerd.dir.join("config.toml"), config(&containerd)).unwrap();
        containerd.restart();
        let image = variable("DRAY_IMAGE");
        let local: &[&str] = if version.has_transfer() { &["--local"] } else { &[] };
        containerd.ctr_ok(&[&["image", "import", "--snapshotter", snapshotter], local, &[&image]].concat());
        containerd
    }

    /// Makes `leftovers` look for a container that `run_args` did not name.
    pub fn expect_id(&self, id: &str) {
        self.ids.lock().unwrap().insert(id.to_string());
    }

    /// Whether it has the file open.
    pub fn has_open(&self, path: &Path) -> bool {
        let pid = self.daemon.as_ref().expect("containerd runs").id();
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|open| open == path)
    }

    /// The version of its configuration's format.
    pub fn config_version(&self) -> u32 {
        self.version.config
    }

    /// The module of its tests, which says its version.
    pub fn module(&self) -> &'static str {
        self.version.module
    }

    /// Says that the test cannot run here.
    pub fn skip(&self, why: &str) {
        crate::skipped(&self.test, why);
    }

    /// Its socket.
    pub fn address(&self) -> String {
        format!("{}/c.sock", self.dir.display())
    }

    /// Starts it on the same directories, when it was stopped or killed.
    pub fn restart(&mut self) {
        assert!(self.daemon.is_none(), "containerd is running");
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let shims = PathBuf::from(variable("DRAY_SHIM"));
        let shims = shims.parent().unwrap().display();
        // First those that a test has given other names.
        let path = format!("{}/shims:{shims}:{}", self.dir.display(), std::env::var("PATH").unwrap());
        let daemon = Command::new(self.bin.join("containerd"))
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("containerd");
        self.daemon = Some(daemon);
        assert!(
            eventually(|| self.ctr(&["version"]).status.success()),
            "containerd does not answer: {}",
            fs::read_to_string(self.dir.join("log")).unwrap_or_default()
        );
    }

    /// Ends it as an operator would, by SIGTERM.
    pub fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Ends it as a crash would, by SIGKILL.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut daemon) = self.daemon.take() {
            send_signal(signal, daemon.id());
            let _ = daemon.wait();
        }
    }

    /// The command `ctr ARGS`, to be run against this containerd.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("ctr"));
        command.args(self.connection()).args(args).stdin(Stdio::null());
        command
    }

    fn connection(&self) -> [String; 4] {
        ["--address".into(), self.address(), "--namespace".into(), self.namespace.clone()]
    }

    /// Runs `ctr ARGS`. It has `PATIENCE` and more to end by itself.
    pub fn ctr(&self, args: &[&str]) -> Output {
        self.bounded(args).output().expect("timeout, ctr")
    }

    fn bounded(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120"]).arg(self.bin.join("ctr")).args(self.connection()).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `ctr ARGS` to its end with all of its process's output. `args` gets a directory for `--fifo-dir`.
    fn ctr_attached(&self, args: impl FnOnce(&str) -> Vec<String>) -> Output {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let fifos = self.dir.join(format!("fifos.{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let args = args(fifos.to_str().unwrap());
        attached::run(self.bounded(&args.iter().map(String::as_str).collect::<Vec<_>>()), &fifos)
    }

    /// Runs `ctr ARGS`, which must succeed, and returns its output.
    #[track_caller]
    pub fn ctr_ok(&self, args: &[&str]) -> String {
        let output = self.ctr(args);
        assert!(output.status.success(), "ctr {args:?}: {output:?}");
        text(&output.stdout)
    }

    /// The arguments of `ctr run` for this runtime, snapshotter and cgroup.
    pub fn run_args(&self, id: &str, options: &[&str], command: &[&str]) -> Vec<String> {
        self.ids.lock().unwrap().insert(id.to_string());
        let cgroup = self.cgroup_of(id);
        let mut args = vec!["run", "--runtime", &self.runtime, "--cgroup", &cgroup];
        args.extend(options);
        match command.split_first() {
            // With --config the command, the rootfs and the cgroup are the file's.
            _ if options.contains(&"--config") => args.push(id),
            // With --rootfs the first word of the command is the directory.
            Some((dir, command)) if options.contains(&"--rootfs") => args.extend([&[dir, id], command].concat()),
            _ => args.extend([&["--snapshotter", self.snapshotter, IMAGE, id], command].concat()),
        }
        args.into_iter().map(Into::into).collect()
    }

    /// `ctr run --rm OPTIONS image id COMMAND`: runs it to its end.
    pub fn run(&self, id: &str, options: &[&str], command: &[&str]) -> Output {
        self.ctr_attached(|fifos| {
            let options = [&["--rm", "--fifo-dir", fifos], options].concat();
            self.run_args(id, &options, command)
        })
    }

    /// The same, which must succeed with nothing on stderr, and returns its output.
    #[track_caller]
    pub fn run_ok(&self, id: &str, options: &[&str], command: &[&str]) -> String {
        let output = self.run(id, options, command);
        assert!(output.status.success() && output.stderr.is_empty(), "{id} {options:?} {command:?}: {output:?}");
        text(&output.stdout)
    }

    /// The same, in the background, with pipes at its stdin, stdout and stderr; returns when the task is running.
    #[track_caller]
    pub fn run_attached(&self, id: &str, options: &[&str], command: &[&str]) -> Child {
        let options = [&["--rm"], options].concat();
        let args = self.run_args(id, &options, command);
        let mut command = self.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        assert!(eventually(|| self.task(id).is_some_and(|task| task.status == "RUNNING")), "{id} does not run");
        child
    }

    /// `ctr run --detach --null-io`, which must succeed; returns the pid of the container's init.
    #[track_caller]
    pub fn run_detached(&self, id: &str, options: &[&str], command: &[&str]) -> u32 {
        let options = [&["--detach", "--null-io"], options].concat();
        let args = self.run_args(id, &options, command);
        self.ctr_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        self.task(id).expect("a task that was just started").pid
    }

    /// `ctr task exec`: runs COMMAND in the container, attached, to its end.
    pub fn exec(&self, id: &str, exec: &str, options: &[&str], command: &[&str]) -> Output {
        self.ctr_attached(|fifos| {
            let args = [&["task", "exec", "--fifo-dir", fifos, "--exec-id", exec], options, &[id], command].concat();
            args.into_iter().map(Into::into).collect()
        })
    }

    /// What `ctr task ls` says of the container.
    pub fn task(&self, id: &str) -> Option<Task> {
        let list = text(&self.ctr(&["task", "ls"]).stdout);
        list.lines().skip(1).find_map(|line| {
            let mut words = line.split_whitespace();
            let found = words.next()? == id;
            let task = Task { pid: words.next()?.parse().ok()?, status: words.next()?.to_string() };
            found.then_some(task)
        })
    }

    /// Kills the container, deletes its task and itself.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        let _ = self.ctr(&["task", "kill", "--signal", "KILL", id]);
        assert!(
            eventually(|| self.task(id).is_none_or(|task| task.status == "STOPPED")),
            "{id} is killed and does not stop: {:?}",
            self.task(id)
        );
        self.delete_task(id);
        self.ctr_ok(&["container", "delete", id]);
    }

    /// Deletes the task of a stopped container; returns the status with which it ended.
    #[track_caller]
    pub fn delete_task(&self, id: &str) -> u32 {
        let output = self.ctr(&["task", "delete", id]);
        assert!(output.status.success() && self.task(id).is_none(), "task delete {id}: {output:?}");
        // Told as a warning: `task x exit with non-zero exit code 137`.
        let status = text(&output.stderr)
            .split_once("exit code ")
            .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap());
        status.unwrap_or(0)
    }

    /// Options that run a command by a whole specification of the test's own: ctr's default, given to `edit`.
    pub fn config(&self, id: &str, command: &[&str], edit: impl FnOnce(&mut serde_json::Value)) -> Vec<String> {
        let mut spec: serde_json::Value = serde_json::from_str(&self.ctr_ok(&["oci", "spec"])).unwrap();
        spec["root"]["path"] = self.rootfs_dir().to_str().unwrap().into();
        spec["process"]["args"] = command.into();
        spec["process"]["cwd"] = "/".into();
        spec["process"]["env"] = ["PATH=/bin"].as_slice().into();
        spec["linux"]["cgroupsPath"] = self.cgroup_of(id).into();
        edit(&mut spec);
        let file = self.dir.join(format!("{id}.json"));
        fs::write(&file, spec.to_string()).unwrap();
        vec!["--config".into(), file.to_str().unwrap().into()]
    }

    /// A directory to be given to `--rootfs`: busybox with all its applets, as in the image.
    pub fn rootfs_dir(&self) -> PathBuf {
        let rootfs = self.dir.join("rootfs");
        if rootfs.exists() {
            return rootfs;
        }
        for name in ["bin", "dev", "proc", "run", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        let applets = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
        for applet in text(&applets).lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        rootfs
    }

    /// Starts to collect events; returns when they are seen.
    pub fn events(&self) -> Events {
        Events::collect(self)
    }

    /// The container's bundle directory.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task").join(&self.namespace).join(id)
    }

    /// Where the shims keep the state of this containerd's containers.
    fn state(&self) -> PathBuf {
        Path::new("/run/dray").join(&self.namespace)
    }

    /// The container's cgroup, in every hierarchy.
    pub fn cgroup_of(&self, id: &str) -> String {
        format!("{}/{id}", self.cgroup)
    }

    /// The shims: what has left containerd, which started it, and is in no container.
    pub fn shims(&self) -> Vec<u32> {
        let processes = self.processes();
        let daemon = self.daemon.as_ref().map(Child::id);
        let parent_is_known =
            |pid| parent_of(pid).is_none_or(|parent| Some(parent) == daemon || processes.contains(&parent));
        processes.iter().copied().filter(|pid| !parent_is_known(*pid)).collect()
    }

    /// The socket of the container's shim (containerd: pkg/shim SocketAddress).
    pub fn socket(&self, id: &str) -> PathBuf {
        let sum = Command::new("sh")
            .args(["-c", "printf %s \"$1\" | sha256sum", "sh", &format!("{}/{}/{id}", self.address(), self.namespace)])
            .output()
            .unwrap();
        Path::new("/run/containerd/s").join(&text(&sum.stdout)[..64])
    }

    /// Whether containerd has connected to the container's shim: a connection has the address of its listener.
    pub fn is_connected(&self, id: &str) -> bool {
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        sockets.matches(self.socket(id).to_str().unwrap()).count() > 1
    }

    /// What is there of containers and shims, each named; empty when every container is gone without a trace.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|pid| format!("process {}", describe(pid))).collect();
        left.extend(self.mounts().into_iter().map(|mount| format!("mount {mount}")));
        left.extend(self.cgroups().into_iter().map(|dir| format!("cgroup {}", dir.display())));
        let listening = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        for id in self.ids.lock().unwrap().iter() {
            let socket = self.socket(id);
            if listening.contains(socket.to_str().unwrap()) {
                left.push(format!("a listener at the socket of {id}"));
            }
            let state = self.state().join(id);
            left.extend(
                [socket.with_extension("dray"), socket, state, self.bundle(id)]
                    .into_iter()
                    .filter(|p| p.exists())
                    .map(|p| p.display().to_string()),
            );
        }
        left
    }

    /// The directories of a container's cgroup that exist.
    pub fn cgroups_of(&self, id: &str) -> Vec<PathBuf> {
        let dirs = cgroup_hierarchies().into_iter().map(|(root, _)| root.join(&self.cgroup_of(id)[1..]));
        dirs.filter(|dir| dir.exists()).collect()
    }

    /// Fails when something is left, after the time that a shim may take to end.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        eventually(|| self.leftovers().is_empty());
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }

    /// Shims by their arguments, environment or directory, and containers' processes by their cgroup.
    fn processes(&self) -> Vec<u32> {
        let dir = format!("{}/", self.dir.display());
        let mentions = |path: PathBuf| text(&fs::read(path).unwrap_or_default()).contains(&dir);
        pids()
            .filter(|pid| {
                let proc = PathBuf::from(format!("/proc/{pid}"));
                let is_shim = mentions(proc.join("cmdline"))
                    || mentions(proc.join("environ"))
                    || fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&self.dir));
                let is_container = text(&fs::read(proc.join("cgroup")).unwrap_or_default()).lines().any(|line| {
                    line.splitn(3, ':').nth(2).is_some_and(|cgroup| Path::new(cgroup).starts_with(&self.cgroup))
                });
                (is_shim || is_container) && !is_tool(*pid)
            })
            .collect()
    }

    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let ids = self.ids.lock().unwrap();
        let ours = |point: &&str| {
            Path::new(point).starts_with(&self.dir)
                || ids.iter().any(|id| Path::new(point).starts_with(self.state().join(id)))
        };
        points.filter(ours).map(Into::into).collect()
    }

    /// Directories of containers' cgroups, the deepest first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for (root, _) in cgroup_hierarchies() {
            // The parent itself is ours to remove, not the shim's.
            subdirectories(&root.join(&self.cgroup[1..]), &mut found);
        }
        found
    }

    fn clean(&mut self) {
        if self.daemon.is_some() {
            let ids = text(&self.ctr(&["container", "ls", "-q"]).stdout);
            for id in ids.lines() {
                let _ = self.ctr(&["task", "rm", "--force", id]);
                let _ = self.ctr(&["container", "rm", id]);
            }
        }
        self.stop();
        eventually(|| {
            let processes = self.processes();
            processes.iter().for_each(|pid| send_signal(Signal::KILL, *pid));
            // What is frozen does not die.
            for dir in self.cgroups() {
                let _ = fs::write(dir.join("freezer.state"), "THAWED")
                    .or_else(|_| fs::write(dir.join("cgroup.freeze"), "0"));
            }
            processes.is_empty()
        });
        remove_mounts_and_cgroups(self.mounts(), self.cgroups(), &self.cgroup);
        for id in self.ids.lock().unwrap().iter() {
            let socket = self.socket(id);
            let _ = fs::remove_file(socket.with_extension("dray"));
            let _ = fs::remove_file(socket);
            let _ = fs::remove_dir_all(self.state().join(id));
        }
        let _ = fs::remove_dir(self.state());
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Driven for Containerd {
    fn start(version: &'static Version, bin: PathBuf, test: String) -> Self {
        Self::start_with(version, bin, test, None, |it| it.version.config(&it.dir, &it.address()))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let tail = log.lines().rev().filter(|line| !line.contains("loading plugin")).take(12).collect::<Vec<_>>();
            eprintln!("the end of containerd's log:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
        self.clean();
    }
}

/// A line of `ctr task ls`.
#[derive(Debug, PartialEq)]
pub struct Task {
    /// The container's init.
    pub pid: u32,
    /// RUNNING, CREATED, STOPPED...
    pub status: String,
}

pub fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run scripts/test, or eval \"$(scripts/test --env)\""))
}

/// What a daemon's containers have left of these, and the cgroup `parent` that was for them all.
pub fn remove_mounts_and_cgroups(mounts: Vec<String>, cgroups: Vec<PathBuf>, parent: &str) {
    for mount in mounts.into_iter().rev() {
        let _ = Command::new("umount").args(["-l", &mount]).status();
    }
    for dir in cgroups {
        let _ = fs::remove_dir(dir);
    }
    for (root, _) in cgroup_hierarchies() {
        let _ = fs::remove_dir(root.join(&parent[1..]));
    }
}
