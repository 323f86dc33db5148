//! The kernel's own part of a container's life and of an exec, for scale: the same namespaces, mounts and process by
//! bare system calls, without cgroups, checks, state or anyone to talk to. What no runtime can go below by much.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, pivot_root};

use super::bundle::Bundle;
use super::driver::open_pid;

/// The bench's own flag for `run_child`.
pub const FLAG: &str = "--floor";

/// One life's kernel work for this bundle.
pub fn life(bundle: &Bundle) -> io::Result<Duration> {
    let options = bundle.rootfs[0].options.join(",");
    child(&["life", bundle.rootfs_dir().to_str().expect("UTF-8 path"), &options])
}

/// One exec's kernel work in the container of this init.
pub fn exec(init: u32) -> io::Result<Duration> {
    child(&["exec", &init.to_string()])
}

/// A process of its own does it, since it gives up its namespaces; starting that process is not counted.
fn child(args: &[&str]) -> io::Result<Duration> {
    let mut child = Command::new(std::env::current_exe()?).arg(FLAG).args(args).stdout(Stdio::piped()).spawn()?;
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text)?;
    child.wait()?;
    let nanoseconds = text.trim().parse().map_err(|_| io::Error::other("the floor's child failed"))?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// What the child does, by its arguments.
pub fn run_child(args: &[String]) -> nix::Result<()> {
    let since = Instant::now();
    match args {
        [kind, rootfs, options] if kind == "life" => enter_new(Path::new(rootfs), options)?,
        [_, init] => enter_container(init.parse().map_err(|_| nix::Error::EINVAL)?)?,
        _ => return Err(nix::Error::EINVAL),
    }
    let status = Command::new("/bin/true").status().map_err(|_| nix::Error::ENOEXEC)?;
    println!("{}", since.elapsed().as_nanos());
    status.success().then_some(()).ok_or(nix::Error::ENOEXEC)
}

fn namespaces() -> CloneFlags {
    let shared = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    shared | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID
}

fn enter_container(init: i32) -> nix::Result<()> {
    setns(open_pid(init).ok_or(nix::Error::ESRCH)?.as_fd(), namespaces())
}

/// The mounts of `ctr run`'s default specification, but /proc, which only a process in the new PID namespace may
/// mount: a tmpfs stands for it.
fn enter_new(rootfs: &Path, overlay: &str) -> nix::Result<()> {
    const MOUNTS: [(&str, &str, &str); 7] = [
        ("proc", "tmpfs", ""),
        ("dev", "tmpfs", "mode=755,size=65536k"),
        ("dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("dev/shm", "tmpfs", "mode=1777,size=65536k"),
        ("dev/mqueue", "mqueue", ""),
        ("sys", "sysfs", ""),
        ("run", "tmpfs", "mode=755,size=65536k"),
    ];
    unshare(namespaces())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some("overlay"), rootfs, Some("overlay"), MsFlags::empty(), Some(overlay))?;
    for (target, fstype, data) in MOUNTS {
        let target = rootfs.join(target);
        std::fs::create_dir_all(&target).map_err(|_| nix::Error::ENOTDIR)?;
        mount(Some(fstype), &target, Some(fstype), MsFlags::MS_NOSUID, Some(data))?;
    }
    chdir(rootfs)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}
