//! The specification's mounts, in its order: each made detached, its destination resolved in-root after the mounts
//! before it, and attached to that descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::error::{Context, Error, Kind, Result};
use crate::spec::mount_options::{Attributes, MountOptions, Propagation};
use crate::spec::mounts::MountKind;
use crate::sys::mount::{self, FileSystem, Mount};
use crate::sys::path::{self, Root};

use super::cgroup_mounts::{cgroup_v1, cgroup2};
use super::copy_up;
use super::label::{self, CONTEXT};
use super::plan::{Mapped, MountPlan, Rootfs, Source};
use super::rootfs;
use super::sources::Received;
use super::steps::Born;

/// Files in /proc that a container may have replaced by a bind mount: lxcfs' and the like, which tell of the machine and
/// change nothing in it (runc: checkProcMount). Nothing else may be mounted inside /proc, where security attributes and
/// sysctls are written later (CVE-2019-16884, CVE-2023-27561).
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Where mounts go.
pub(super) struct Place<'a> {
    pub(super) root: &'a Root,
    /// Some that are there already have peers on the host.
    shares: bool,
}

impl Place<'_> {
    /// Does `attach`, which mounts on `target`. What a specification mounts into a volume that is shared with the host is the
    /// container's, and would stay on the host after its end (runc leaves it there; and so is it before Linux 5.15).
    pub(super) fn on(&self, target: &OwnedFd, attach: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.shares { mount::attach_unseen(target.as_fd(), false, attach) } else { attach() }
    }
}

/// Refuses file systems that the kernel does not have, before anything is done. It looks for a module by itself.
///
/// # Errors
/// `InvalidArgument`, with the mount's place and the type.
pub fn refuse_unknown(spec: &Spec) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())?;
        if MountKind::of(mount, &options) != Some(MountKind::Other) {
            continue;
        }
        let opened = FileSystem::open(mount.typ().as_deref().unwrap_or_default());
        opened.context(|| format!("mounts[{index}]")).map_err(|e| match e.errno() {
            Some(libc::ENODEV) => e.with_kind(Kind::InvalidArgument),
            _ => e,
        })?;
    }
    Ok(())
}

/// Mounts everything.
pub fn mount_all(born: &mut Born<'_>) -> Result<()> {
    let mut sources = born.sources.take();
    let (Some(plan), Some(root)) = (rootfs::plan(born), &born.root) else { return Ok(()) };
    let place = Place { root, shares: born.shares };
    let mut shared = std::mem::take(&mut born.shared).into_iter().peekable();
    for (index, mount) in plan.mounts.iter().enumerate() {
        let shared = shared.next_if(|(at, _)| *at == index).map(|(_, mount)| mount);
        mount_one(&place, mount, shared, &mut sources).context(|| mount.destination.display().to_string())?;
    }
    born.sources = sources;
    Ok(())
}

/// The sources of those bind mounts whose mounts are to appear on the host's side too: peers of the host's mounts, of
/// which the others become slaves. They are those that ask for it (`rshared`), and where the rootfs is to be shared
/// those that do not ask for anything else.
pub fn open_shared(plan: &Rootfs) -> Result<Vec<(usize, Mount)>> {
    let root_is = matches!(plan.propagation, Some((Propagation::Shared, _)));
    let mut shared = Vec::new();
    for (index, mount) in plan.mounts.iter().enumerate() {
        let Source::Bind(source) = &mount.source else { continue };
        if mount.options.propagation.map_or(root_is, |(kind, _)| kind == Propagation::Shared) {
            let opened = open_source(source, mount.options.recursive_bind, mount.mapped.as_ref(), None)
                .context(|| mount.destination.display().to_string())?;
            shared.push((index, opened));
        }
    }
    Ok(shared)
}

fn mount_one(place: &Place<'_>, plan: &MountPlan, shared: Option<Mount>, sources: &mut Option<Received>) -> Result<()> {
    match &plan.source {
        Source::Bind(source) => match sources {
            Some(sources) => bind(place, plan, &Mount::from(sources.take()?)).map_err(locked),
            None => {
                let open = || open_source(source, plan.options.recursive_bind, plan.mapped.as_ref(), None);
                bind(place, plan, &shared.map_or_else(open, Ok)?)
            }
        },
        Source::Remount => remount(place.root, plan),
        Source::FileSystem { kind, name } => {
            let made = file_system(place, plan, kind, name);
            if sources.is_some() { made.map_err(|e| foreign(e, kind)) } else { made }
        }
        Source::Other(kind, name) => file_system(place, plan, kind, name),
        Source::CgroupV1(hierarchies) => cgroup_v1(place, plan, hierarchies),
        Source::Cgroup2(unified) => cgroup2(place, plan, unified),
    }
}

/// The bind's source is opened as the host, in the host's tree, of which this mount namespace still is a copy; and its
/// owners are mapped, which the kernel does as long as it is nowhere. `own` is the container's user namespace, where that
/// has a mapping that is asked for.
pub(super) fn open_source(
    source: &Path,
    recursive: bool,
    mapped: Option<&Mapped>,
    own: Option<BorrowedFd<'_>>,
) -> Result<Mount> {
    let mount = Mount::clone_path(None, source, recursive)
        .map_err(|e| if e.errno() == Some(libc::ENOENT) { e.with_kind(Kind::InvalidArgument) } else { e })?;
    if let Some(Mapped { mapping, users }) = mapped {
        let users = users.as_deref().map(AsFd::as_fd).or(own);
        let users = users.ok_or_else(|| Error::new(Kind::Internal, "there is no user namespace to map owners by"))?;
        mount.map_ids(users, mapping.recursive).map_err(|e| match e.errno() {
            Some(libc::EINVAL) => e.context(mount::kind_at(source).unwrap_or_default()),
            _ => e,
        })?;
    }
    Ok(mount)
}

/// Changes what is mounted at the destination by an earlier entry; under its own name, so that an image does not lead what
/// is to be loosened here to another mount.
fn remount(root: &Root, plan: &MountPlan) -> Result<()> {
    let target = root.resolve_no_links(&plan.destination)?;
    if !path::is_mount_root(&target)? {
        return Err(Error::new(Kind::InvalidArgument, "remount: nothing is mounted there"));
    }
    let mount = Mount::from(target);
    let (own, tree) = (postponed(plan, plan.options.attrs), postponed(plan, plan.options.recursive));
    mount.restrict(own.set, own.clear).map_err(locked)?;
    if !tree.is_empty() {
        mount.restrict_tree(tree.set, tree.clear).map_err(locked)?;
    }
    propagate(&mount, &plan.options)
}

/// A read-only /dev becomes so when its devices are made (init/devices.rs).
fn postponed(plan: &MountPlan, mut attrs: Attributes) -> Attributes {
    if is_dev(&plan.destination) {
        attrs.set &= !libc::MOUNT_ATTR_RDONLY;
    }
    attrs
}

fn bind(place: &Place<'_>, plan: &MountPlan, mount: &Mount) -> Result<()> {
    let root = place.root;
    let target =
        if path::is_dir(mount)? { root.mkdir_all(&plan.destination)? } else { root.create_file(&plan.destination)? };
    refuse_by_link(root, plan, &target)?;
    refuse_in_proc(plan, &target, path::is_procfs(mount)?)?;
    place.on(&target, || attach(mount, &target, &plan.options))?;
    propagate(mount, &plan.options)
}

/// What the host's mount has set stays set in a user namespace: asking to clear it is an error there, as with runc.
fn locked(error: Error) -> Error {
    match error.errno() {
        Some(libc::EPERM) => error.context(
            "the source's mount has a flag (ro, nosuid, nodev, noexec or atime's) that a user namespace cannot clear",
        ),
        _ => error,
    }
}

/// In a user namespace the kernel mounts what shows a namespace that is the user namespace's own, and no other.
fn foreign(error: Error, kind: &str) -> Error {
    let namespace = match kind {
        "proc" => "pid",
        "sysfs" => "network",
        "mqueue" => "ipc",
        _ => return error,
    };
    match error.errno() {
        Some(libc::EPERM) => {
            error.context(format!("{kind} needs a {namespace} namespace that is of the container's user namespace"))
        }
        _ => error,
    }
}

fn file_system(place: &Place<'_>, plan: &MountPlan, kind: &str, name: &str) -> Result<()> {
    let root = place.root;
    let covers = root.resolve(&plan.destination).is_ok();
    let target = match kind {
        // Real proc and sysfs, where the specification says, through no link of the image's (CVE-2019-19921).
        "proc" | "sysfs" => {
            root.mkdir_all(&plan.destination)?;
            root.resolve_no_links(&plan.destination)?
        }
        _ => root.mkdir_all(&plan.destination)?,
    };
    refuse_by_link(root, plan, &target)?;
    refuse_in_proc(plan, &target, kind == "proc")?;
    let fs = FileSystem::open(kind)?;
    configure(&fs, kind, &plan.options, name)?;
    if matches!(plan.source, Source::Other(..)) && plan.options.top().set & libc::MOUNT_ATTR_RDONLY != 0 {
        // As mount(2) has it: what is on a device that is read-only, or must not be written to, is not to try.
        fs.set("ro", None)?;
    }
    if kind == "tmpfs" && covers && !plan.options.data.iter().any(|(key, _)| key == "mode") {
        // A tmpfs that replaces a directory keeps its mode (runc does): /tmp stays sticky. Where there was none it has
        // tmpfs' own, 1777, so that any user of the container can write to it.
        fs.set("mode", Some(&format!("{:o}", path::stat(&target)?.st_mode & 0o7777)))?;
    }
    let attrs = postponed(plan, plan.options.top()).set;
    let copies = plan.options.tmpcopyup && covers;
    let label = (kind == "mqueue").then(|| label::context(&plan.options)).flatten();
    if !copies && label.is_none() {
        let mount = fs.mount(attrs)?;
        place.on(&target, || mount.attach(target.as_fd()))?;
        return propagate(&mount, &plan.options);
    }
    // Seen by nobody before it is complete.
    let mount = fs.mount(attrs & !libc::MOUNT_ATTR_RDONLY)?;
    if copies {
        copy_up::copy(&target, &mount).context(|| "tmpcopyup")?;
    }
    label.map_or(Ok(()), |label| label::label_root(&mount, label))?;
    place.on(&target, || mount.attach_with(target.as_fd(), attrs & libc::MOUNT_ATTR_RDONLY, 0))?;
    propagate(&mount, &plan.options)
}

fn configure(fs: &FileSystem, kind: &str, options: &MountOptions, name: &str) -> Result<()> {
    if !name.is_empty() {
        fs.set("source", Some(name))?;
    }
    for flag in &options.sb_flags {
        fs.set(flag, None)?;
    }
    // The queues of an ipc namespace have been there since it was made, and take no label as an option any more.
    for (key, value) in options.data.iter().filter(|(key, _)| kind != "mqueue" || key != CONTEXT) {
        fs.set(key, value.as_deref())?;
    }
    Ok(())
}

/// True for the destination /dev, however it is spelled.
pub fn is_dev(destination: &Path) -> bool {
    destination.components().eq(Path::new("/dev").components())
}

fn attach(mount: &Mount, target: &OwnedFd, options: &MountOptions) -> Result<()> {
    let tree = options.recursive;
    if !tree.is_empty() {
        mount.restrict_tree(tree.set, tree.clear)?;
    }
    let top = options.top();
    mount.attach_with(target.as_fd(), top.set, top.clear)
}

pub(super) fn propagate(mount: &Mount, options: &MountOptions) -> Result<()> {
    match options.propagation {
        Some((kind, recursive)) => mount.propagate(u64::from(kind.flag().bits()), recursive),
        None => Ok(()),
    }
}

/// Two places are covered under their own name or not at all. What is mounted on the root lies between it and who opens
/// the rootfs by its path; and /dev is filled with nodes and links of ours unless the specification binds a /dev of the
/// host's, which is judged by the words of the destination: an image must not lead another directory there.
pub(super) fn refuse_by_link(root: &Root, plan: &MountPlan, target: &OwnedFd) -> Result<()> {
    let on_dev = !is_dev(&plan.destination)
        && root.resolve_no_links(Path::new("/dev")).is_ok_and(|dev| path::is_same(target, &dev).unwrap_or(true));
    if !on_dev && !path::is_same(target, root)? {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidArgument, "it leads to the root or to /dev through a link"))
}

/// Judged by what the destination turned out to be, so that no link leads around it.
pub(super) fn refuse_in_proc(plan: &MountPlan, target: &OwnedFd, is_proc: bool) -> Result<()> {
    let destination: PathBuf = Path::new("/").join(&plan.destination).components().collect();
    let on_proc = destination == Path::new("/proc");
    let allowed = match (on_proc, path::is_procfs(target)?) {
        (true, _) => is_proc,
        (false, true) => PROC_FILES.iter().any(|file| destination == Path::new(file)),
        (false, false) => true,
    };
    if allowed {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidArgument, "only proc itself, and a few of its files, may be mounted over"))
}
