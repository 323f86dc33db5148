//! A scratch directory with a containerd namespace of its own, and the cleaning up after a test that failed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The directory that stands for containerd's state. Clones share it; the last one removes it, with the shims,
/// mounts and cgroups that a failed test left.
#[derive(Clone)]
pub struct Scratch(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    namespace: String,
}

impl Scratch {
    /// A new directory and a namespace that no other test has: state directories and cgroups are named after it.
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("dray-test.{}.{number}", std::process::id());
        let dir = std::env::temp_dir().join(&namespace);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
        // A container of an unprivileged user must pass through to its rootfs, as below containerd's state (0711).
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("chmod scratch");
        Scratch(Arc::new(Inner { dir, namespace }))
    }

    /// Where everything of this test lies.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The containerd namespace, which is also the parent of the containers' cgroups.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// What goes to the shim as -address. No one listens there.
    pub fn grpc_address(&self) -> PathBuf {
        self.0.dir.join("containerd.sock")
    }

    /// Shims that were started for this scratch directory and still live.
    pub fn shims(&self) -> Vec<i32> {
        self.0.shims()
    }

    /// What is left of containers and shims: mounts, cgroups, processes, one line each. Empty after a proper end.
    pub fn leftovers(&self) -> Vec<String> {
        let mounts = mounts_below(&self.0.dir).into_iter().map(|path| format!("mount {}", path.display()));
        let shims = self.0.shims().into_iter().map(|pid| format!("shim {pid}"));
        let cgroups = self
            .0
            .cgroups()
            .into_iter()
            .flat_map(|parent| children(&parent))
            .map(|path| format!("cgroup {}", path.display()));
        mounts.chain(shims).chain(cgroups).collect()
    }
}

impl Inner {
    /// A shim carries the scratch path in its arguments (-address) or its environment (TTRPC_ADDRESS).
    fn shims(&self) -> Vec<i32> {
        let needle = self.dir.as_os_str().as_bytes();
        let names_us = |pid: i32, file: &str| {
            fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|text| text.windows(needle.len() + 1).any(|w| w.starts_with(needle) && w.ends_with(b"/")))
        };
        let own = std::process::id() as i32;
        let pids = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|&pid| pid != own && (names_us(pid, "cmdline") || names_us(pid, "environ"))).collect()
    }

    /// The parent of our containers' cgroups in every hierarchy that has it.
    fn cgroups(&self) -> Vec<PathBuf> {
        let parent = super::cgroup::parent_of(&self.namespace);
        cgroup_mounts().into_iter().map(|root| root.join(&parent)).filter(|dir| dir.is_dir()).collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for pid in self.shims() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for dir in self.cgroups() {
            remove_cgroup(&dir);
        }
        for path in mounts_below(&self.dir).iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
        for state in ["/run/dray", "/run/containerd/runc"] {
            let _ = fs::remove_dir_all(Path::new(state).join(&self.namespace));
        }
        // Never through a mount that would not go: it may be a bind mount of something that is not ours.
        match mounts_below(&self.dir) {
            left if left.is_empty() => drop(fs::remove_dir_all(&self.dir)),
            left => eprintln!("{} stays, mounted below it: {left:?}", self.dir.display()),
        }
    }
}

/// Mount points below a directory, parents first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    mountinfo(|_| true).into_iter().filter(|path| path.starts_with(dir)).collect()
}

/// The mount points of every cgroup hierarchy, v1 and v2.
pub fn cgroup_mounts() -> Vec<PathBuf> {
    mountinfo(|fstype| fstype == "cgroup" || fstype == "cgroup2")
}

/// Mount points by file system type, proc_pid_mountinfo(5). The scratch paths hold nothing that is escaped there.
fn mountinfo(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = |line: &str| {
        let fstype = line.split(" - ").nth(1)?.split(' ').next()?;
        wanted(fstype).then(|| line.split(' ').nth(4).map(PathBuf::from))?
    };
    table.lines().filter_map(line).collect()
}

/// Sub-cgroups of a cgroup.
fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Kills what lives in a cgroup of ours and removes it, sub-cgroups first.
pub fn remove_cgroup(dir: &Path) {
    for child in children(dir) {
        remove_cgroup(&child);
    }
    for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if dir.join(file).exists() {
            let _ = fs::write(dir.join(file), thawed);
        }
    }
    let deadline = Instant::now() + super::patience(Duration::from_secs(5));
    loop {
        let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid: &i32| pid > 1) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) if e.kind() != ErrorKind::NotFound => return eprintln!("rmdir {}: {e}", dir.display()),
            _ => return,
        }
    }
}
