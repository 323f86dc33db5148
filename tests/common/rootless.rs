//! A place like that of a rootless containerd: root of a user namespace with mount, network and perhaps cgroup namespaces
//! of its own, as rootlesskit or `unshare -Ur` makes it. A test is run there by running its own binary in it.
#![allow(unsafe_code)] // What a child does between fork and execve.

use std::fs;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::containerd::{describe, pids, subdirectories, text};
use super::driver::open_pid;
use super::scratch::{cgroup_mounts, remove_cgroup};

/// The user to whom root is mapped: on the host it may do nothing.
const USER: u32 = 1000;

/// Says to a test that it is there already.
pub const INSIDE: &str = "DRAY_ROOTLESS";

/// A mount of the host's with nosuid, nodev and noexec, which are locked there.
pub const LOCKED: &std::ffi::CStr = c"/mnt";

/// The ids that are mapped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ids {
    /// Root, and others as newuidmap(1) gives them: enough for a container that maps 65536 of them anew.
    Many,
    /// Root alone, and no groups: what a user can have without any help.
    One,
}

/// What of the host's cgroups is given to the user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cgroups {
    /// Nothing.
    Denied,
    /// A subtree in every hierarchy, which a cgroup namespace shows as all there is. Its processes are in `daemons`.
    Delegated,
    /// The same in the unified hierarchy alone.
    Unified,
    /// A subtree in which a systemd of the user's own makes units, as where a rootless containerd is a service of it. The
    /// cgroup namespace is the host's.
    Systemd,
    /// The same for a daemon that is elsewhere, as in a login session: it may not move processes into that subtree.
    Session,
}

/// Runs `body` there: the test calls this first, in the process that cargo has started, which runs the same test again in
/// namespaces that are new, and looks at what it leaves.
#[track_caller]
pub fn rootless(ids: Ids, cgroups: Cgroups, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let thread = std::thread::current();
    let place = Place::make(ids, cgroups);
    let output = place.run(thread.name().expect("a test's name"));
    print!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "inside of {ids:?} {cgroups:?}: {}", output.status);
    assert_eq!(place.left(), [""; 0]);
}

/// The namespaces, kept by a process that sleeps.
struct Place {
    ids: Ids,
    keeper: Child,
    cgroups: Vec<PathBuf>,
    /// The cgroup.procs of where those are who are in it.
    daemons: Vec<PathBuf>,
    systemd: Option<Systemd>,
}

impl Place {
    fn make(ids: Ids, cgroups: Cgroups) -> Self {
        let systemd = [Cgroups::Systemd, Cgroups::Session].contains(&cgroups).then(Systemd::start);
        let is_session = cgroups == Cgroups::Session;
        let cgroups = match cgroups {
            Cgroups::Denied => Vec::new(),
            Cgroups::Systemd | Cgroups::Session => systemd.iter().map(Systemd::delegate).collect(),
            Cgroups::Delegated => cgroup_mounts().iter().map(|root| delegate(root)).collect(),
            Cgroups::Unified => {
                let unified = |root: &&PathBuf| root.join("cgroup.procs").exists() && !root.join("tasks").exists();
                cgroup_mounts().iter().filter(unified).map(|root| delegate(root)).collect()
            }
        };
        let mut flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET;
        let daemons: Vec<PathBuf> =
            cgroups.iter().filter(|_| !is_session).map(|dir| dir.join("daemons/cgroup.procs")).collect();
        let mut joins = daemons.clone();
        if !cgroups.is_empty() && systemd.is_none() {
            flags |= libc::CLONE_NEWCGROUP;
            joins = cgroups.iter().map(|dir| dir.join("cgroup.procs")).collect();
        }
        let mut keeper = Command::new("sleep");
        keeper.arg("1000000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: system calls alone, and what a write of a file allocates, in a child of which nobody else knows.
        unsafe {
            keeper.pre_exec(move || {
                // In them when the cgroup namespace is made, whose root they then are.
                joins.iter().try_for_each(|procs| fs::write(procs, "0"))?;
                done(libc::unshare(libc::CLONE_NEWNS))?;
                let (none, locked) = (std::ptr::null(), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
                done(libc::mount(none, c"/".as_ptr(), none, libc::MS_SLAVE | libc::MS_REC, none.cast()))?;
                done(libc::mount(c"locked".as_ptr(), LOCKED.as_ptr(), c"tmpfs".as_ptr(), locked, none.cast()))?;
                done(libc::unshare(flags))
            });
        }
        let place = Self { ids, keeper: keeper.spawn().expect("sleep"), cgroups, daemons, systemd };
        place.map_ids();
        // No internal processes: they make way for the containers.
        for procs in &place.daemons {
            fs::write(procs, place.keeper.id().to_string()).expect("daemons");
        }
        place.mount();
        place
    }

    fn map_ids(&self) {
        let write = |file: &str, value: &str| {
            let path = format!("/proc/{}/{file}", self.keeper.id());
            fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
        };
        let map = match self.ids {
            Ids::Many => format!("0 {USER} 1\n1 100000 262144\n"),
            Ids::One => {
                write("setgroups", "deny");
                format!("0 {USER} 1\n")
            }
        };
        write("uid_map", &map);
        write("gid_map", &map);
    }

    /// What rootlesskit has by `--copy-up=/run`, and a /tmp that nobody else sees.
    fn mount(&self) {
        let mut script = String::from("set -e\nmount -t tmpfs -o mode=1777 tmp /tmp\n");
        // What is to be seen below /run is kept elsewhere while that is made anew.
        let kept = self.systemd.iter().flat_map(|systemd| [Path::new(BOOTED), &systemd.runtime]);
        let kept: Vec<_> = kept.map(|path| (path, path.file_name().expect("a name").display())).collect();
        for (path, name) in &kept {
            script += &format!("mkdir /tmp/{name}; mount --rbind {} /tmp/{name}\n", path.display());
        }
        script += "mount -t tmpfs -o mode=755 run /run\n";
        for (path, name) in &kept {
            script += &format!("mkdir -p {0}; mount --rbind /tmp/{name} {0}; umount -l /tmp/{name}\n", path.display());
        }
        for dir in self.cgroups.iter().filter(|_| self.systemd.is_none()) {
            let root = dir.parent().expect("a hierarchy");
            let name = root.file_name().expect("a name").to_string_lossy();
            let options = match dir.join("tasks").exists() {
                false => "-t cgroup2".to_owned(),
                true if name == "systemd" => "-t cgroup -o none,name=systemd".to_owned(),
                true => format!("-t cgroup -o {name}"),
            };
            // Over something else: the same file system is not mounted twice in one place.
            script += &format!("mount -t tmpfs cgroup {0}; mount {options} cgroup {0}\n", root.display());
        }
        let output = self.command("sh").args(["-c", &script]).output().expect("sh");
        assert!(output.status.success(), "{script}: {output:?}");
    }

    /// A command in it, as its root.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let pidfd = open_pid(self.keeper.id() as i32).expect("the keeper");
        let joins = self.daemons.clone();
        let groups = self.ids == Ids::Many;
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/");
        let mut flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET;
        if !joins.is_empty() && self.systemd.is_none() {
            flags |= libc::CLONE_NEWCGROUP;
        }
        command.envs(self.systemd.iter().map(|systemd| (RUNTIME_DIR, &systemd.runtime)));
        // SAFETY: as above.
        unsafe {
            command.pre_exec(move || {
                joins.iter().try_for_each(|procs| fs::write(procs, "0"))?;
                done(libc::setgroups(0, std::ptr::null()))?;
                done(libc::setns(pidfd.as_raw_fd(), flags))?;
                if groups {
                    done(libc::setgroups(0, std::ptr::null()))?;
                }
                done(libc::setresgid(0, 0, 0))?;
                done(libc::setresuid(0, 0, 0))
            });
        }
        command
    }

    fn run(&self, test: &str) -> Output {
        let mut command = self.command(std::env::current_exe().expect("the test's binary"));
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
        let kept = std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            name.starts_with("DRAY_") && !name.starts_with("DRAY_SKIPPED") || name == "RUST_BACKTRACE"
        });
        command.envs(kept);
        command.stdin(Stdio::null()).output().expect("the test's binary")
    }

    /// What is there beside the process that keeps it, once that has had the time to end.
    fn left(&self) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let processes = self.others().into_iter().map(|pid| format!("process {}", describe(pid)));
            let mut cgroups = Vec::new();
            self.cgroups.iter().for_each(|dir| subdirectories(dir, &mut cgroups));
            // A user's systemd has services and slices of its own.
            let ours = |dir: &&PathBuf| match self.systemd {
                Some(_) => dir.extension().is_some_and(|kind| kind == "scope") && !dir.ends_with("init.scope"),
                None => !dir.ends_with("daemons"),
            };
            let cgroups = cgroups.iter().filter(ours).map(|dir| format!("cgroup {}", dir.display()));
            let left: Vec<String> = processes.chain(cgroups).collect();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The processes in its mount namespace, and in those that were made of that in its user namespace.
    fn others(&self) -> Vec<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let ours = namespace(self.keeper.id());
        pids().filter(|pid| *pid != self.keeper.id() && namespace(*pid) == ours).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.others() {
            if let Some(pidfd) = open_pid(pid as i32) {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        if self.systemd.is_none() {
            self.cgroups.iter().for_each(|dir| remove_cgroup(dir));
        }
    }
}

/// Where a user's systemd is looked for.
const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

/// By which everybody knows that systemd runs here.
const BOOTED: &str = "/run/systemd";

/// A systemd of the user's own, a service of the machine's. It has no session: none is needed for units.
struct Systemd {
    service: String,
    runtime: PathBuf,
}

impl Systemd {
    fn start() -> Self {
        let name = format!("dray-user-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let systemd = Self { service: format!("{name}.service"), runtime: Path::new("/run").join(name) };
        fs::create_dir(&systemd.runtime).expect("a runtime directory");
        chown(&systemd.runtime, Some(USER), Some(USER)).expect("chown");
        let runtime = format!("{RUNTIME_DIR}={}", systemd.runtime.display());
        let ids = [format!("--uid={USER}"), format!("--gid={USER}")];
        let output = Command::new("systemd-run")
            .args(["--quiet", "--collect", "--service-type=notify", "--property=Delegate=yes", "--unit"])
            .args([&systemd.service, &ids[0], &ids[1], "--setenv", &runtime, "--setenv", "HOME=/nonexistent"])
            .args(["/lib/systemd/systemd", "--user"])
            .output()
            .expect("systemd-run");
        assert!(output.status.success(), "systemd of a user: {}", text(&output.stderr));
        systemd
    }

    /// Its cgroup, with one below for daemons that are not its own.
    fn delegate(&self) -> PathBuf {
        let output = Command::new("systemctl")
            .args(["show", &self.service, "--property=ControlGroup", "--value"])
            .output()
            .expect("systemctl");
        let dir = Path::new("/sys/fs/cgroup").join(text(&output.stdout).trim().trim_start_matches('/'));
        let daemons = dir.join("daemons");
        fs::create_dir(&daemons).unwrap_or_else(|e| panic!("mkdir {}: {e}", daemons.display()));
        give(&daemons);
        dir
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.service]).status();
        let _ = fs::remove_dir_all(&self.runtime);
    }
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Makes a cgroup that is the user's, as systemd does for `Delegate=`, with one below for the daemons.
fn delegate(root: &Path) -> PathBuf {
    let dir = root.join(format!("dray-rootless.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    // On v2 what the host hands down to it.
    let controllers = read("cgroup.controllers").split_whitespace().map(|name| format!("+{name}")).collect::<Vec<_>>();
    for controller in controllers {
        let _ = fs::write(root.join("cgroup.subtree_control"), controller);
    }
    for dir in [&dir, &dir.join("daemons")] {
        fs::create_dir(dir).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if dir.join("tasks").exists() && dir.join(file).exists() {
                fs::write(dir.join(file), read(file).trim()).expect(file);
            }
        }
        give(dir);
    }
    dir
}

/// Makes a cgroup the user's.
fn give(dir: &Path) {
    chown(dir, Some(USER), Some(USER)).expect("chown");
    for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
        if dir.join(file).exists() {
            chown(dir.join(file), Some(USER), Some(USER)).expect(file);
        }
    }
}

fn done(result: libc::c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
