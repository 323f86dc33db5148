//! The mounts of a container that CRIU is not to make itself: what they show is the host's. At a dump each gets a name, by
//! which it is told at a restore what is to be shown there. The name is the destination that the specification has, as it
//! is with runc, whose images so are ours and ours its.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::init::plan::Cgroups;
use crate::spec::mount_options::{Attributes, MountOptions};
use crate::spec::mounts::{self, IdMapping, MountKind};
use crate::spec::namespaces::namespace;
use crate::sys::mount;
use crate::sys::path::{self, Root};

/// Files that are covered with a device: runc's are the host's, under this name.
const NULL: &str = "/dev/null";

/// The devices that are bound where the container may not make them.
const DEVICES: [&str; 6] = [NULL, "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// One line of /proc/PID/mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    id: u64,
    /// The number of the file system's device, by which it is told from others.
    device: String,
    /// What of it is shown.
    root: String,
    /// Where, for the process.
    point: String,
    /// Its own attributes, `MOUNT_ATTR_*`.
    attributes: u64,
}

impl Mounted {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let id = words.next()?.parse().ok()?;
        let mut words = words.skip(1);
        let mut next = || words.next().map(unescape);
        let (device, root, point) = (next()?, next()?, next()?);
        let attributes = MountOptions::parse(words.next()?.split(',')).ok()?.attrs.set;
        Some(Self { id, device, root, point, attributes })
    }
}

/// Blanks and the like are three octal digits there.
fn unescape(word: &str) -> String {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[3..]).0,
            None => (bytes.push(*first), rest = tail).0,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn options(mount: &Mount) -> Result<MountOptions> {
    MountOptions::parse(mount.options().as_deref().unwrap_or_default())
}

/// A specification's mounts, each as what it is.
fn each(spec: &Spec) -> Result<Vec<(&Mount, MountKind, PathBuf)>> {
    let mut all = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let options = options(mount)?;
        let destination = mounts::destination(mount);
        if IdMapping::of(mount, &options)?.is_some() {
            let text = format!("{}: CRIU knows no mounts with mapped owners", destination.display());
            return Err(Error::new(Kind::Unimplemented, text));
        }
        all.extend(MountKind::of(mount, &options).map(|kind| (mount, kind, clean(&destination))));
    }
    Ok(all)
}

/// Without what `/./` and `//` have too much.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// It sees its cgroups from within, and its mounts of them are its own.
fn has_cgroup_namespace(spec: &Spec) -> bool {
    namespace(spec, LinuxNamespaceType::Cgroup).is_some()
}

/// Whether the container has a mount namespace of its own, and so any mounts.
pub(in crate::engine) fn has_own(spec: &Spec) -> bool {
    namespace(spec, LinuxNamespaceType::Mount).is_some_and(|namespace| namespace.path.is_none())
}

/// Attributes that keep a container from something.
const RESTRICTIONS: [(u64, &str); 5] = [
    (libc::MOUNT_ATTR_RDONLY, "ro"),
    (libc::MOUNT_ATTR_NOSUID, "nosuid"),
    (libc::MOUNT_ATTR_NODEV, "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, "noexec"),
    (libc::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
];

/// The attributes that the specification asks for at a destination: those of the mount that is made there last, with what
/// changes it afterwards.
fn asked(all: &[(&Mount, MountKind, PathBuf)], at: &Path) -> Result<Attributes> {
    let mut asked = Attributes::default();
    for (mount, kind, _) in all.iter().filter(|(.., destination)| destination == at) {
        let own = options(mount)?.top();
        asked = if *kind == MountKind::Remount { asked.then(own) } else { own };
    }
    Ok(asked)
}

/// The processes of the container may have moved the directory that it is in, or put a link in its place, so that another
/// mount is at the destination. Its source would be shown with the attributes of that.
fn refuse_unrestricted(mount: &Mounted, asked: u64, name: &str) -> Result<()> {
    match RESTRICTIONS.iter().find(|(flag, _)| asked & !mount.attributes & flag != 0) {
        None => Ok(()),
        Some((_, word)) => {
            let text =
                format!("{name}: the mount that is there now is not {word}, as this one is to be: it is another");
            Err(Error::new(Kind::FailedPrecondition, text))
        }
    }
}

fn mountinfo(process: &str) -> Result<Vec<Mounted>> {
    let name = format!("/proc/{process}/mountinfo");
    let text = std::fs::read(&name).os(|| format!("read {name}"))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(Mounted::parse).collect())
}

/// Where paths lead to: which mounts there are, and which of them a path is on.
struct Seen<F> {
    mounted: Vec<Mounted>,
    at: F,
}

impl<F: Fn(&Path) -> Option<u64>> Seen<F> {
    fn mount_at(&self, path: &Path) -> Option<&Mounted> {
        (self.at)(path).and_then(|id| self.mounted.iter().find(|mount| mount.id == id))
    }
}

/// Those of a container whose init is the process `pid`: mount point and name.
///
/// # Errors
/// `Unimplemented` for what CRIU cannot restore; `FailedPrecondition` for a mount whose place another has taken that may do
/// more; when the process has ended.
pub(in crate::engine) fn of_dump(
    spec: &Spec,
    bundle: &Path,
    pid: u32,
    cgroups: &Cgroups,
) -> Result<Vec<(String, String)>> {
    if !has_own(spec) {
        return Ok(Vec::new());
    }
    let root = Root::open(Path::new(&format!("/proc/{pid}/root")))?;
    let at = |path: &Path| root.resolve(path).and_then(path::mount_id).ok();
    let container = Seen { mounted: mountinfo(&pid.to_string())?, at };
    let host_root = Root::open(Path::new("/"))?;
    let at = |path: &Path| host_root.resolve(path).and_then(path::mount_id).ok();
    let host = Seen { mounted: mountinfo("self")?, at };
    found(spec, bundle, &container, &host, cgroups)
}

fn found(
    spec: &Spec,
    bundle: &Path,
    container: &Seen<impl Fn(&Path) -> Option<u64>>,
    host: &Seen<impl Fn(&Path) -> Option<u64>>,
    cgroups: &Cgroups,
) -> Result<Vec<(String, String)>> {
    let mount_at = |path: &Path| container.mount_at(path);
    // Of a file system of which the container has the root it has more: CRIU binds the part from the whole.
    let whole: HashSet<&str> =
        container.mounted.iter().filter(|mount| mount.root == "/").map(|mount| mount.device.as_str()).collect();
    let is_part = |mount: &&Mounted| !whole.contains(mount.device.as_str());
    let mut all = Vec::new();
    let mut add = |mount: Option<&Mounted>, asked: u64, name: String| {
        let Some(mount) = mount.filter(|mount| mount.point != "/") else { return Ok(()) };
        refuse_unrestricted(mount, asked, &name)?;
        all.push((mount.point.clone(), name));
        Ok::<_, Error>(())
    };
    let specified = each(spec)?;
    for (mount, kind, destination) in &specified {
        let asked = asked(&specified, destination)?;
        match kind {
            MountKind::Bind => {
                let source = host.mount_at(&source(mount, bundle)).map_or(0, |source| source.attributes);
                let kept = source & libc::MOUNT_ATTR_RDONLY & !asked.clear;
                add(mount_at(destination), asked.set | kept, text(destination))?;
            }
            MountKind::Cgroup | MountKind::Cgroup2 if has_cgroup_namespace(spec) => {
                add(mount_at(destination).filter(is_part), asked.set, text(destination))?;
            }
            MountKind::Cgroup | MountKind::Cgroup2 => {
                for (below, name, always) in of_host_cgroups(*kind, destination, cgroups) {
                    add(mount_at(&below), asked.set | always, name)?;
                }
            }
            _ => {}
        }
    }
    let linux = spec.linux().as_ref();
    for path in linux.and_then(|linux| linux.masked_paths().as_ref()).into_iter().flatten() {
        add(mount_at(Path::new(path)).filter(|mount| mount.point == *path).filter(is_part), 0, NULL.to_owned())?;
    }
    let listed = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    for path in listed.map(|device| device.path().as_path()).chain(DEVICES.iter().map(Path::new)) {
        add(mount_at(path).filter(|mount| Path::new(&mount.point) == path).filter(is_part), 0, text(path))?;
    }
    Ok(all)
}

/// The mounts of the host's hierarchies that one mount of cgroups is: where, by what name, and with what attributes whatever
/// is asked for.
fn of_host_cgroups(kind: MountKind, destination: &Path, cgroups: &Cgroups) -> Vec<(PathBuf, String, u64)> {
    if kind == MountKind::Cgroup && !cgroups.is_v2 {
        let below = |hierarchy: &crate::init::plan::CgroupHierarchy| destination.join(&hierarchy.name);
        return cgroups.v1.iter().map(below).map(|path| (path.clone(), text(path), 0)).collect();
    }
    let Some(unified) = &cgroups.unified else { return Vec::new() };
    let own = destination.join(unified.path.strip_prefix("/").unwrap_or(&unified.path));
    vec![(destination.to_owned(), text(destination), libc::MOUNT_ATTR_RDONLY), (own, own_name(destination), 0)]
}

/// Of the container's own directory in the host's hierarchy, which may be at another path when it is restored.
fn own_name(destination: &Path) -> String {
    text(destination.join(":own"))
}

/// Those of a container to be restored: name and source. More than there are do no harm.
///
/// # Errors
/// As [`of_dump`].
pub(in crate::engine) fn of_restore(spec: &Spec, bundle: &Path, cgroups: &Cgroups) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for (mount, kind, destination) in each(spec)? {
        match kind {
            MountKind::Bind => all.push((text(&destination), text(source(mount, bundle)))),
            MountKind::Cgroup if !cgroups.is_v2 => {
                let all_of_it = cgroups.v1.iter();
                let pair = all_of_it.map(|one| (text(destination.join(&one.name)), text(&one.directory)));
                all.extend(pair);
            }
            MountKind::Cgroup | MountKind::Cgroup2 => {
                let Some(unified) = &cgroups.unified else { continue };
                let own = text(&unified.directory);
                let whole = if has_cgroup_namespace(spec) { own.clone() } else { text(&unified.mount) };
                all.extend([(text(&destination), whole), (own_name(&destination), own)]);
            }
            _ => {}
        }
    }
    let listed = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
    for path in listed.map(|device| text(device.path())).chain(DEVICES.map(str::to_owned)) {
        if !all.iter().any(|(name, _)| *name == path) {
            all.push((path.clone(), path));
        }
    }
    Ok(all)
}

fn source(mount: &Mount, bundle: &Path) -> PathBuf {
    bundle.join(mount.source().as_deref().unwrap_or(Path::new("")))
}

/// Mount points that the root file system needs before CRIU can mount anything on them: it makes none.
#[derive(Debug)]
pub(in crate::engine) struct Points(Vec<(PathBuf, Option<PathBuf>)>);

impl Points {
    /// Of a specification: each with its source where it is a bind.
    ///
    /// # Errors
    /// As [`of_dump`].
    pub fn of(spec: &Spec, bundle: &Path) -> Result<Self> {
        let all = each(spec)?;
        let tmpfs: Vec<_> = all.iter().filter(|(_, kind, _)| *kind == MountKind::Tmpfs).map(|(.., at)| at).collect();
        // What is on one of those comes with it.
        let on_tmpfs = |at: &Path| tmpfs.iter().any(|tmpfs| at != **tmpfs && at.starts_with(tmpfs));
        let made = all.iter().filter(|(_, kind, at)| *kind != MountKind::Remount && !on_tmpfs(at));
        let made =
            made.filter(|(_, kind, at)| !matches!(kind, MountKind::Cgroup | MountKind::Cgroup2) || !is_in_sys(at));
        let pairs =
            made.map(|(mount, kind, at)| (at.clone(), (*kind == MountKind::Bind).then(|| source(mount, bundle))));
        Ok(Self(pairs.collect()))
    }

    /// Makes those that are missing. A bind is mounted while those after it are made, which may be in it: in the mount
    /// namespace of the caller, who has nothing else there.
    ///
    /// # Errors
    /// With the destination.
    pub fn make(&self, root: &Root) -> Result<()> {
        let mut bound = Vec::new();
        for (at, source) in &self.0 {
            let target = match source {
                None => root.mkdir_all(at).context(|| text(at))?,
                Some(source) => {
                    let tree = mount::Mount::clone_path(None, source, true).context(|| text(at))?;
                    let is_dir = path::is_dir(&tree)?;
                    let target = if is_dir { root.mkdir_all(at) } else { root.create_file(at) }.context(|| text(at))?;
                    tree.attach(std::os::fd::AsFd::as_fd(&target)).context(|| text(at))?;
                    bound.push(tree);
                    target
                }
            };
            drop(target);
        }
        bound.iter().rev().try_for_each(mount::detach_mount)
    }
}

/// The kernel has its directories there as soon as sysfs is mounted.
fn is_in_sys(path: &Path) -> bool {
    path.starts_with("/sys")
}
