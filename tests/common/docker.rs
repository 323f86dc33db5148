//! A dockerd of the test's own, on a containerd of its own, all in a scratch directory: nothing of a Docker that the machine
//! has is used or touched. When it is dropped nothing of it is left.
//!
//! The programs are Debian's, unpacked (`scripts/daemons`: DRAY_DOCKER, DRAY_CONTAINERD_2_1), the shim is DRAY_SHIM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::process::Signal;
use serde_json::json;

use super::containerd::version::{V1_6, V2_1, Version};
use super::containerd::{
    can_overlay, cgroup_hierarchies, describe, eventually, pids, remove_mounts_and_cgroups, send_signal,
    subdirectories, text, variable,
};
use super::docker_cli::Cli;
use super::skipped;

/// Docker's own namespace in containerd (moby: daemon/config).
const NAMESPACE: &str = "moby";

/// Both daemons, running unless they were ended, and the client.
pub struct Docker {
    /// The scratch directory.
    pub dir: PathBuf,
    /// `docker`, at this daemon.
    pub cli: Cli,
    programs: Programs,
    containerd: Option<Child>,
    dockerd: Option<Child>,
}

struct Programs {
    /// Like /usr: bin/docker, sbin/dockerd.
    docker: PathBuf,
    version: &'static Version,
    containerd: PathBuf,
    /// For `--init`; where there is none, dockerd looks for its docker-init.
    init: Option<PathBuf>,
    /// Where containerd finds the shim, and dockerd everything.
    path: String,
}

impl Programs {
    /// Or the reason why there is no Docker.
    fn find() -> Result<Programs, String> {
        let docker = variable("DRAY_DOCKER");
        if !docker.starts_with('/') {
            return Err(docker);
        }
        // Debian 12's Docker has that of 1.6.
        let (version, bin) = match V2_1.bin() {
            Ok(bin) => (&V2_1, bin),
            Err(_) => (&V1_6, V1_6.bin()?),
        };
        let shims = PathBuf::from(variable("DRAY_SHIM"));
        let (shims, own) = (shims.parent().expect("a directory").display(), std::env::var("PATH").unwrap());
        let init = std::env::var("DRAY_TINI").ok().filter(|tini| tini.starts_with('/'));
        Ok(Programs {
            version,
            containerd: bin.join("containerd"),
            init: init.map(|tini| Path::new(&tini).join("bin/tini-static")),
            path: format!("{shims}:{}:{docker}/bin:{docker}/sbin:{own}", bin.display()),
            docker: docker.into(),
        })
    }
}

impl Docker {
    /// The one that all tests share which are running now; None, and said so, where there is no Docker.
    pub fn shared(test: &str) -> Option<Arc<Docker>> {
        static SHARED: Mutex<Weak<Docker>> = Mutex::new(Weak::new());
        // A test that failed in here leaves nothing in it.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(docker) = shared.upgrade() {
            return Some(docker);
        }
        let docker = Arc::new(Docker::start(test)?);
        *shared = Arc::downgrade(&docker);
        Some(docker)
    }

    /// One for this test alone, which ends its daemons in mid-flight.
    pub fn start(test: &str) -> Option<Docker> {
        Docker::start_with(test, false)
    }

    /// One whose containers have Docker's default network, a bridge. It is in a network namespace with dockerd.
    pub fn bridged(test: &str) -> Option<Docker> {
        let links = "ip link add b type bridge && ip link add v type veth";
        let tried = Command::new("unshare").args(["--net", "busybox", "sh", "-c", links]).output().expect("unshare");
        if !tried.status.success() {
            skipped(test, &format!("no bridge can be made: {}", text(&tried.stderr).trim()));
            return None;
        }
        Docker::start_with(test, true)
    }

    fn start_with(test: &str, bridged: bool) -> Option<Docker> {
        let programs = match Programs::find() {
            Ok(programs) => programs,
            Err(why) => {
                skipped(test, &why);
                return None;
            }
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dray-dkr.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Below /tmp whatever TMPDIR says: the path of a socket has 107 bytes at most.
        let dir = Path::new("/tmp").join(&name);
        fs::create_dir(&dir).expect("a new scratch directory");
        let socket = |file| format!("{}/{file}", dir.display());
        let cli = Cli {
            program: vec![
                format!("{}/bin/docker", programs.docker.display()),
                "-H".into(),
                format!("unix://{}", socket("d.sock")),
            ],
            env: vec![("DOCKER_CONFIG".into(), dir.join("client"))],
            runtime: std::env::var("DRAY_RUNTIME").unwrap_or_else(|_| "io.containerd.dray.v2".into()),
            image: "busybox".into(),
            options: vec![],
            without_network: true,
            namespace: NAMESPACE.into(),
            address: socket("c.sock"),
            cgroup: format!("/{name}"),
        };
        let mut docker = Docker { cli, dir, programs, containerd: None, dockerd: None };
        docker.cli.without_network = !bridged;
        docker.configure();
        docker.start_containerd();
        docker.start_dockerd();
        docker.cli.import(&docker.dir);
        Some(docker)
    }

    fn configure(&self) {
        let (dir, address) = (self.dir.display(), &self.cli.address);
        fs::write(self.dir.join("containerd.toml"), self.programs.version.config(&self.dir, address)).unwrap();
        let runtime = |name: &str, options: &str| {
            let path = self.dir.join(name);
            fs::write(&path, options).unwrap();
            json!({ "runtimeType": self.cli.runtime, "options": { "ConfigPath": path } })
        };
        let mut docker = json!({
            "containerd": address,
            "data-root": self.dir.join("droot"),
            "exec-root": self.dir.join("dexec"),
            "pidfile": self.dir.join("d.pid"),
            "hosts": [format!("unix://{dir}/d.sock")],
            "storage-driver": if can_overlay(&self.dir) { "overlay2" } else { "vfs" },
            "cgroup-parent": self.cli.cgroup,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            // Nothing of the machine's network is touched.
            "iptables": false, "ip6tables": false, "ip-forward": false, "ip-masq": false,
            "live-restore": true,
            "runtimes": {
                "configured": runtime("configured.toml", "IoUid = 1234\n"),
                "refusing": runtime("refusing.toml", "BinaryName = \"/usr/bin/something\"\n"),
            },
        });
        if self.cli.without_network {
            docker["bridge"] = json!("none");
        }
        if let Some(init) = &self.programs.init {
            docker["init-path"] = json!(init);
        }
        fs::write(self.dir.join("docker.json"), docker.to_string()).unwrap();
    }

    fn spawn(&self, program: &Path, args: &[&Path], log: &str) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.dir.join(log)).unwrap();
        let mut command = Command::new(program);
        command.args(args).env("PATH", &self.programs.path).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()))
    }

    /// Starts containerd, which was ended; dockerd connects to it again.
    pub fn start_containerd(&mut self) {
        assert!(self.containerd.is_none(), "containerd is running");
        let config = self.dir.join("containerd.toml");
        self.containerd =
            Some(self.spawn(&self.programs.containerd, &["--config".as_ref(), &config], "containerd.log"));
        let answers = eventually(|| {
            Command::new("ctr")
                .args(["--address", &self.cli.address, "version"])
                .env("PATH", &self.programs.path)
                .output()
                .is_ok_and(|output| output.status.success())
        });
        assert!(answers, "containerd does not answer: {}", self.log("containerd.log"));
    }

    /// Starts dockerd, which was ended.
    pub fn start_dockerd(&mut self) {
        assert!(self.dockerd.is_none(), "dockerd is running");
        let config = self.dir.join("docker.json");
        let dockerd = self.programs.docker.join("sbin/dockerd");
        let args: [&Path; 4] = ["--net".as_ref(), &dockerd, "--config-file".as_ref(), &config];
        // unshare(1) becomes the program.
        self.dockerd = Some(match self.cli.without_network {
            true => self.spawn(&dockerd, &args[2..], "docker.log"),
            false => self.spawn("unshare".as_ref(), &args, "docker.log"),
        });
        let answers = eventually(|| self.cli.call(&["version"]).status.success());
        assert!(answers, "dockerd does not answer: {}", self.log("docker.log"));
    }

    /// Ends containerd as a crash would.
    pub fn kill_containerd(&mut self) {
        end(&mut self.containerd, Signal::KILL);
    }

    /// Ends dockerd as an operator would, by SIGTERM.
    pub fn stop_dockerd(&mut self) {
        end(&mut self.dockerd, Signal::TERM);
    }

    /// Whether there is an init for `--init`.
    pub fn has_init(&self) -> bool {
        self.programs.init.as_ref().is_some_and(|init| init.exists())
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// What is there of containers: shims and processes, their cgroups, mounts.
    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|pid| format!("process {}", describe(pid))).collect();
        left.extend(self.cgroups().into_iter().map(|dir| format!("cgroup {}", dir.display())));
        // Docker's own (exec-root's netns) are not the runtime's.
        let bundles = self.dir.join("state");
        left.extend(self.mounts().into_iter().filter(|mount| Path::new(mount).starts_with(&bundles)));
        left
    }

    /// Shims by their arguments, environment or directory, and containers' processes by their cgroup.
    fn processes(&self) -> Vec<u32> {
        let dir = format!("{}/", self.dir.display());
        let mentions = |path: PathBuf| text(&fs::read(path).unwrap_or_default()).contains(&dir);
        let is_ours = |pid: &u32| {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let comm = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            let is_shim = mentions(proc.join("cmdline"))
                || mentions(proc.join("environ"))
                || fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&self.dir));
            let is_container = text(&fs::read(proc.join("cgroup")).unwrap_or_default()).lines().any(|line| {
                line.splitn(3, ':').nth(2).is_some_and(|cgroup| Path::new(cgroup).starts_with(&self.cli.cgroup))
            });
            (is_shim || is_container)
                && !matches!(comm.trim_end(), "containerd" | "dockerd" | "docker" | "ctr" | "timeout" | "setsid" | "")
        };
        pids().filter(is_ours).collect()
    }

    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| Path::new(point).starts_with(&self.dir)).map(Into::into).collect()
    }

    /// Directories of containers' cgroups, the deepest first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for (root, _) in cgroup_hierarchies() {
            subdirectories(&root.join(&self.cli.cgroup[1..]), &mut found);
        }
        found
    }

    fn clean(&mut self) {
        end(&mut self.dockerd, Signal::TERM);
        end(&mut self.containerd, Signal::TERM);
        eventually(|| {
            let processes = self.processes();
            processes.iter().for_each(|pid| send_signal(Signal::KILL, *pid));
            processes.is_empty()
        });
        remove_mounts_and_cgroups(self.mounts(), self.cgroups(), &self.cli.cgroup);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Those of a test that failed; it may not be this one.
        let ids = text(&self.cli.call(&["ps", "--all", "--quiet", "--no-trunc"]).stdout);
        let failed = std::thread::panicking() || !ids.is_empty();
        for id in ids.lines() {
            self.cli.call(&["rm", "--force", id]);
            let _ = fs::remove_dir_all(Path::new("/run/dray").join(NAMESPACE).join(id));
        }
        let nothing_left = failed || eventually(|| self.leftovers().is_empty());
        let left = if nothing_left { vec![] } else { self.leftovers() };
        if failed || !left.is_empty() {
            for log in ["containerd.log", "docker.log"] {
                let log = self.log(log);
                let lines =
                    log.lines().filter(|line| !line.contains("loading plugin") && !line.contains("level=debug"));
                let tail = lines.rev().take(8).collect::<Vec<_>>();
                tail.iter().rev().for_each(|line| eprintln!("  {line}"));
            }
        }
        self.clean();
        assert!(left.is_empty(), "left when all containers were removed: {left:?}");
    }
}

fn end(daemon: &mut Option<Child>, signal: Signal) {
    if let Some(mut daemon) = daemon.take() {
        send_signal(signal, daemon.id());
        let _ = daemon.wait();
    }
}
