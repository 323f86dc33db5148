//! The kernel: what of it this program uses, tried.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::absent;
use super::finding::Area::Kernel;
use super::finding::Report;
use crate::cgroup::Hierarchies;
use crate::error::{Error, Os, Result};
use crate::sys::mount::{FileSystem, Mount, kind_at};
use crate::sys::ns::{self, Namespace};
use crate::sys::{cred, pidfd, probe, sched, userns};

/// The oldest kernel that this is made for.
const OLDEST: (u32, u32) = (5, 10);

/// Where containerd and Docker keep what containers are made of: owners are mapped on its file system.
const LAYERS: [&str; 3] = ["/var/lib/containerd", "/var/lib/docker", "/"];

/// A feature, whether it is needed, how it is tried, and what its absence costs.
type Row = (&'static str, bool, fn() -> Result<String>, &'static str);

const CALLS: &[Row] = &[
    ("Linux", true, version, "this program is made for Linux 5.10 and later"),
    ("/proc", true, procfs, "it is where a process is looked at: no container can be made"),
    ("openat2", true, openat2, "paths of a container cannot be resolved inside of it"),
    ("pidfd", true, pidfds, "processes cannot be told from others that have got their numbers"),
    ("fsopen, fsmount", true, fsopen, "no file system can be mounted for a container"),
    ("open_tree, move_mount", true, open_tree, "nothing can be bound into a container"),
    (
        "clone3",
        false,
        || probe::clone3().map(nothing),
        "the older clone is called, and each process moves into its cgroup itself",
    ),
    ("clone into a cgroup", false, into_cgroup, "each process moves into its cgroup itself, which takes longer"),
    (
        "close_range",
        false,
        || probe::close_range().map(nothing),
        "descriptors are closed one by one, which takes longer",
    ),
    (
        "mount_setattr",
        false,
        mount_setattr,
        "attributes of all mounts below one (rro, rnosuid), and recursively read-only mounts of Kubernetes, are refused",
    ),
    (
        "idmapped mounts",
        false,
        || idmapped(layers()),
        "mounts and root file systems with mapped owners, and Kubernetes' pods with user namespaces, are refused",
    ),
    (
        "idmapped tmpfs",
        false,
        || idmapped(None),
        "mapped owners are refused of volumes in memory, as Kubernetes' secrets are",
    ),
    ("cgroup.kill", false, cgroup_kill, "the processes of a container without a pid namespace are killed one by one"),
    (
        "overlay",
        false,
        || file_system("overlay"),
        "containerd's usual snapshotter does not work: root file systems are copied",
    ),
    (
        "loop devices",
        false,
        || there("/dev/loop-control"),
        "root file systems from files (the mount option loop) are refused",
    ),
    ("memory policies", false, memory_policy, "linux.memoryPolicy is refused"),
    ("core scheduling", false, core_scheduling, "SCHED_CORE of containerd has no effect"),
    ("resctrl", false, resctrl, "linux.intelRdt is refused"),
];

/// Namespaces, whether one is needed, and what its absence costs.
const NAMESPACES: &[(Namespace, &str, bool, &str)] = &[
    (Namespace::Mount, "mount namespaces", true, "no container can have a root of its own"),
    (
        Namespace::Pid,
        "pid namespaces",
        true,
        "containers see the processes of the host: clients ask for one by default",
    ),
    (
        Namespace::Network,
        "network namespaces",
        true,
        "containers have the host's network: clients ask for one by default",
    ),
    (Namespace::Ipc, "ipc namespaces", true, "containers share the host's queues: clients ask for one by default"),
    (Namespace::Uts, "uts namespaces", true, "containers have the host's name: clients ask for one by default"),
    (
        Namespace::Cgroup,
        "cgroup namespaces",
        false,
        "containers see the cgroups of the host, and specifications that ask for one fail",
    ),
    (
        Namespace::User,
        "user namespaces",
        false,
        "root of a container is root of the host, and pods with hostUsers: false fail",
    ),
    (Namespace::Time, "time namespaces", false, "linux.timeOffsets is refused"),
];

/// Tries all.
pub fn look(report: &mut Report) {
    for (name, needed, attempt, cost) in CALLS {
        match needed {
            true => report.need(Kernel, name, attempt(), cost),
            false => report.want(Kernel, name, attempt(), cost),
        }
    }
    for (kind, name, needed, cost) in NAMESPACES {
        let made = probe::in_child("unshare", None, |_| ns::unshare(kind.flag())).map(nothing);
        match needed {
            true => report.need(Kernel, name, made, cost),
            false => report.want(Kernel, name, made, cost),
        }
    }
    let cost = "user namespaces are switched off by this number";
    report.want(Kernel, "user.max_user_namespaces", max_user_namespaces(), cost);
}

/// There is no more to say than that it works.
fn nothing<T>(_: T) -> String {
    String::new()
}

fn version() -> Result<String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if newer(&release, OLDEST) { Ok(release) } else { Err(absent(release)) }
}

fn procfs() -> Result<String> {
    match rustix::fs::statfs("/proc").os(|| "statfs /proc")?.f_type {
        rustix::fs::PROC_SUPER_MAGIC => Ok(String::new()),
        _ => Err(absent("not mounted")),
    }
}

fn openat2() -> Result<String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::IN_ROOT).map(nothing).os(|| "openat2")
}

fn pidfds() -> Result<String> {
    let us = pidfd::open(std::process::id() as i32)?;
    // To who is not stopped, and has no handler, it is nothing.
    pidfd::kill(&us, libc::SIGCONT as u32).map(nothing)
}

/// A file system that is attached nowhere, and gone when this is.
fn new_mount() -> Result<Mount> {
    FileSystem::open("tmpfs")?.mount(0)
}

/// Where a container's mounts are made: in a mount namespace of its own, which is all that one without privileges has.
fn mounting(what: &str, work: impl FnOnce() -> Result<()>) -> Result<String> {
    probe::in_child(what, None, |_| ns::unshare(Namespace::Mount.flag()).and_then(|()| work())).map(nothing)
}

fn fsopen() -> Result<String> {
    mounting("fsopen", || new_mount().map(drop))
}

fn open_tree() -> Result<String> {
    mounting("open_tree", || Mount::clone_path(None, Path::new("/"), true).map(drop))
}

fn mount_setattr() -> Result<String> {
    mounting("mount_setattr", || new_mount()?.restrict_tree(libc::MOUNT_ATTR_RDONLY, 0))
}

fn layers() -> Option<&'static str> {
    LAYERS.into_iter().find(|dir| Path::new(dir).is_dir())
}

/// Of the file system of a directory; of tmpfs without one.
fn idmapped(dir: Option<&'static str>) -> Result<String> {
    let name = dir.map_or_else(|| Some("tmpfs".to_owned()), |dir| kind_at(Path::new(dir))).unwrap_or_default();
    mounting(&format!("mount_setattr MOUNT_ATTR_IDMAP, {name}"), || {
        let users = userns::with_maps("0 0 1\n", "0 0 1\n")?;
        let mount = dir.map_or_else(new_mount, |dir| Mount::clone_path(None, Path::new(dir), true))?;
        mount.map_ids(users.as_fd(), false)
    })?;
    Ok(name)
}

fn into_cgroup() -> Result<String> {
    let own = Hierarchies::discover()?.own_unified().ok_or_else(|| absent("cgroup2 is not mounted"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&own, flags, Mode::empty()).os(|| format!("open {}", own.display()))?;
    let born = probe::in_child("clone3", Some(dir.as_fd()), |birth| match birth.in_cgroup {
        true => Ok(()),
        false => Err(Error::os(libc::EOPNOTSUPP, "clone3")),
    });
    born.map(nothing)
}

/// The root cgroup has no such file, every other one has it.
fn cgroup_kill() -> Result<String> {
    let own = Hierarchies::discover()?.own_unified().ok_or_else(|| absent("cgroup2 is not mounted"))?;
    let below = std::fs::read_dir(&own).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut dirs = [own].into_iter().chain(below).filter(|dir| dir.join("cgroup.type").exists()).peekable();
    match (dirs.peek().is_none(), dirs.any(|dir| dir.join("cgroup.kill").exists())) {
        // Nothing to look at: by its version (linux: 5.14).
        (true, _) => version().and_then(|release| match newer(&release, (5, 14)) {
            true => Ok(String::new()),
            false => Err(absent("Linux 5.14 has it")),
        }),
        (false, true) => Ok(String::new()),
        (false, false) => Err(absent("Linux 5.14 has it")),
    }
}

fn newer(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) >= than
}

/// Registered, or a module that would be loaded; it is not loaded for the question.
fn file_system(name: &str) -> Result<String> {
    let known = std::fs::read_to_string("/proc/filesystems").os(|| "read /proc/filesystems")?;
    if known.lines().any(|line| line.split_ascii_whitespace().next_back() == Some(name)) {
        return Ok(String::new());
    }
    let modules = format!("/lib/modules/{}/modules.dep", rustix::system::uname().release().to_string_lossy());
    let modules = std::fs::read_to_string(modules).unwrap_or_default();
    match modules.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{name}.ko")))) {
        true => Ok("a module that is not loaded yet".to_owned()),
        false => Err(absent("not in /proc/filesystems, and no module")),
    }
}

fn there(path: &str) -> Result<String> {
    std::fs::metadata(path).map(nothing).os(|| format!("stat {path}"))
}

fn memory_policy() -> Result<String> {
    // MPOL_DEFAULT
    probe::in_child("set_mempolicy", None, |_| sched::set_memory_policy(0, &[])).map(nothing)
}

fn core_scheduling() -> Result<String> {
    let tried = probe::in_child("prctl", None, |_| cred::new_scheduling_cookie());
    tried.map(nothing).map_err(|e| match e.errno() {
        Some(libc::ENODEV) => absent("no SMT on this machine"),
        _ => absent("not in this kernel"),
    })
}

fn resctrl() -> Result<String> {
    match kind_at(Path::new("/sys/fs/resctrl")) {
        Some(kind) if kind.starts_with("resctrl ") => Ok(String::new()),
        _ => Err(absent("not mounted at /sys/fs/resctrl")),
    }
}

fn max_user_namespaces() -> Result<String> {
    const FILE: &str = "/proc/sys/user/max_user_namespaces";
    let number = std::fs::read_to_string(FILE).os(|| format!("read {FILE}"))?;
    match number.trim() {
        "0" => Err(absent("0")),
        number => Ok(number.to_owned()),
    }
}
