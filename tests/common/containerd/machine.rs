//! What the tests ask of the machine: processes, cgroups, and patience.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a thing may take that is done in milliseconds on a quiet machine. A bound against hanging, not a speed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until it is so; false when patience has an end.
pub fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > crate::patience(PATIENCE) {
            return false;
        }
        sleep(Duration::from_millis(20));
    }
    true
}

/// Bytes as text, whatever they are.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends a signal to one process, which may have ended already. Not by kill(1): a minimal Debian has none.
pub fn send_signal(signal: Signal, pid: u32) {
    let pid = Pid::from_raw(pid as i32).expect("a pid");
    let _ = kill_process(pid, signal);
}

/// The parent of a process, if that is there: of a container's init, its shim.
pub fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Where cgroups are mounted, and with which controllers: `memory`, or "" for version 2.
pub fn cgroup_hierarchies() -> Vec<(PathBuf, Vec<String>)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchy = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let controllers = match words[2] {
            "cgroup" => words[3].split(',').map(Into::into).collect(),
            "cgroup2" => vec![String::new()],
            _ => return None,
        };
        Some((PathBuf::from(words[1]), controllers))
    };
    mounts.lines().filter_map(hierarchy).collect()
}

/// The content of a file of a cgroup, by its name in version 1 or, where the controller is not there, in version 2.
#[track_caller]
pub fn cgroup_value(cgroup: &str, controller: &str, v1: &str, v2: &str) -> String {
    let hierarchies = cgroup_hierarchies();
    let with = |name: &str| hierarchies.iter().find(|(_, names)| names.iter().any(|n| n == name)).map(|(root, _)| root);
    let (root, file) = match with(controller) {
        Some(root) => (root, v1),
        None => (with("").expect("a cgroup2 mount"), v2),
    };
    let path = root.join(&cgroup[1..]).join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_string()
}

/// All processes.
pub fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// containerd itself and its clients are no leftovers.
pub fn is_tool(pid: u32) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // An empty name: it has ended meanwhile.
    matches!(comm.trim_end(), "containerd" | "ctr" | "timeout" | "")
}

/// A process in words, for a message.
pub fn describe(pid: u32) -> String {
    let command = text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ");
    let state = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = state.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
    format!("{pid} {command} {state}")
}

/// Adds the directories below one, the deepest first.
pub fn subdirectories(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            subdirectories(&entry.path(), found);
            found.push(entry.path());
        }
    }
}

/// The upper layer of an overlay cannot lie on an overlay itself.
pub fn can_overlay(dir: &Path) -> bool {
    let probe = dir.join("probe");
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(probe.join(name)).unwrap();
    }
    let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", probe.display());
    let merged = probe.join("merged");
    let mount = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).output().unwrap();
    let can = mount.status.success() && Command::new("umount").arg(&merged).status().unwrap().success();
    fs::remove_dir_all(probe).unwrap();
    can
}
