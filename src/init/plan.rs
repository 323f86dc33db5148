//! What a process of a container is to be, as values: made of the specification by the parent, carried out by the child.
//!
//! Everything that can be decided, converted or refused is, before the fork. The child finds C strings, numbers and open
//! descriptors.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Process as SpecProcess, Spec};
use rustix::fs::FileType;

use crate::error::{Context, Error, Kind, Result};
use crate::spec::hooks::{About, Hook};
use crate::spec::mount_options::{self, MountOptions, Propagation};
use crate::spec::mounts::{IdMapping, MountKind};
use crate::spec::net_devices::{self, NetDevice};
use crate::spec::sysctl::{self, Sysctl};
use crate::spec::{mounts, namespaces, time};
use crate::sys::cred::Capabilities;
use crate::sys::mount::FileSystem;
use crate::sys::ns::{self, Namespace};
use crate::sys::path;
use crate::sys::seccomp::Filter;
use crate::sys::tty::Size;

use super::identity_plan::{self, Rlimit};
use super::label;
use super::sources::Sources;
use super::sync::Hold;
use super::treatment::Treatment;

/// One process.
#[derive(Debug)]
pub struct Plan {
    /// What it does before it becomes the program.
    pub work: Work,
    /// The program and who runs it.
    pub process: Process,
    /// stdin, stdout and stderr.
    pub streams: Streams,
    /// `tasks` files (v1) and `cgroup.procs` (v2) to write "0" into, open for writing, with the names that errors give them.
    pub cgroup_files: Vec<(String, OwnedFd)>,
    /// What a created init waits for.
    pub hold: Hold,
    /// The container's seccomp filter.
    pub seccomp: Option<Rc<Filter>>,
}

/// What becomes descriptors 0, 1 and 2.
#[derive(Debug)]
pub enum Streams {
    /// These: pipes, mostly.
    Pipes([OwnedFd; 3]),
    /// A terminal, which the child makes, of this size.
    Terminal(Option<Size>),
}

/// First process or a further one.
#[derive(Debug)]
pub enum Work {
    /// The first: makes the container.
    Create(Box<Create>),
    /// A further one: joins it.
    Exec(Exec),
}

/// What makes a container.
#[derive(Debug, Default)]
pub struct Create {
    /// Namespaces to make.
    pub new: Vec<Namespace>,
    /// Namespaces to join, open.
    pub joined: Vec<(Namespace, OwnedFd)>,
    /// The root file system; `None` where another container's mount namespace is joined, whose root it then shares.
    pub rootfs: Option<Rootfs>,
    /// Host name, of the container's own uts namespace.
    pub hostname: Option<String>,
    /// NIS domain name, of the same.
    pub domainname: Option<String>,
    /// Network devices that the shim moves into its network namespace.
    pub net_devices: Vec<NetDevice>,
    /// Kernel parameters of its namespaces.
    pub sysctls: Vec<Sysctl>,
    /// Lines for /proc/self/timens_offsets, of a new time namespace.
    pub time_offsets: Option<String>,
    /// What the host opens for it, in a user namespace.
    pub sources: Option<Rc<Sources>>,
    /// Its hooks, where it has any.
    pub hooks: Option<Hooks>,
    /// The shim is root of a user namespace alone.
    pub rootless: bool,
}

/// The option of procfs for the pid namespace that it shows (Linux 6.17).
const PIDNS: &str = "pidns";

impl Create {
    /// It joins a user namespace by path.
    pub fn joins_user_namespace(&self) -> bool {
        self.joined.iter().any(|(kind, _)| *kind == Namespace::User)
    }

    /// It joins a pid namespace by path, in which others see it, and can be made outside of that. Not with hooks, which are
    /// told its pid while it is made; nor in a new user namespace, from which it could not join; nor where the kernel mounts a
    /// procfs of one's own pid namespace alone (before 6.17).
    pub fn hops(&self) -> bool {
        let joins = self.joined.iter().any(|(kind, _)| *kind == Namespace::Pid);
        let mounts = self.rootfs.iter().flat_map(|rootfs| &rootfs.mounts);
        let mut procs = mounts.filter(|mount| matches!(mount.source, Source::FileSystem { kind: "proc", .. }));
        let by_helper = self.rootless && self.time_offsets.is_some();
        let can = self.hooks.is_none() && !self.new.contains(&Namespace::User) && !by_helper;
        joins && can && procs.all(|proc| proc.options.data.iter().any(|(key, _)| key == PIDNS))
    }

    /// Has each procfs show the pid namespace that is joined, where the kernel can mount one from outside of it.
    fn show_joined_pid_namespace(&mut self) {
        let Some((_, pid)) = self.joined.iter().find(|(kind, _)| *kind == Namespace::Pid) else { return };
        // By the descriptor, which the child has by the same number.
        let path = format!("/proc/self/fd/{}", pid.as_raw_fd());
        if !FileSystem::open("proc").is_ok_and(|proc| proc.set(PIDNS, Some(&path)).is_ok()) {
            return;
        }
        for mount in self.rootfs.iter_mut().flat_map(|rootfs| &mut rootfs.mounts) {
            if matches!(mount.source, Source::FileSystem { kind: "proc", .. }) {
                mount.options.data.push((PIDNS.to_owned(), Some(path.clone())));
            }
        }
    }

    /// It is in a user namespace that is not the host's.
    pub fn in_user_namespace(&self) -> bool {
        self.new.contains(&Namespace::User) || self.joins_user_namespace()
    }
}

/// What the child has to do with hooks.
#[derive(Debug, Default)]
pub struct Hooks {
    /// What they are told.
    pub about: About,
    /// The shim has some to run during create.
    pub outside: bool,
    /// Those in the container's namespaces, by the host's paths.
    pub create_container: Vec<Hook>,
    /// Those in the container.
    pub start_container: Vec<Hook>,
}

impl Hooks {
    /// A copy of what is left of them when the container has been created.
    pub fn of_start(&self) -> Self {
        let (about, start_container) = (self.about.clone(), self.start_container.clone());
        Self { about, start_container, ..Self::default() }
    }
}

/// What joins a container.
#[derive(Debug)]
pub struct Exec {
    /// A pidfd of the container's init.
    pub init: OwnedFd,
    /// CLONE_NEW* flags of the namespaces in which the container is not the host.
    pub namespaces: u64,
}

/// The root file system and everything on it.
#[derive(Debug, Default)]
pub struct Rootfs {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Read-only, but for what is mounted on it.
    pub readonly: bool,
    /// Entered by moving its mount and chroot(2) instead of pivot_root(2).
    pub no_pivot: bool,
    /// How mounts spread between it and others, and whether that is for all mounts on it too.
    pub propagation: Option<(Propagation, bool)>,
    /// The mounts, in order.
    pub mounts: Vec<MountPlan>,
    /// The nodes of /dev; `None` where /dev is the host's, by a bind mount.
    pub devices: Option<Vec<Device>>,
    /// They are the host's, bound: the shim may make none.
    pub host_devices: bool,
    /// SELinux' context of the file systems that are made for it.
    pub label: Option<String>,
    /// Paths to be covered.
    pub masked_paths: Vec<PathBuf>,
    /// Paths to be made read-only.
    pub readonly_paths: Vec<PathBuf>,
}

/// One mount.
#[derive(Debug)]
pub struct MountPlan {
    /// Where, in the container.
    pub destination: PathBuf,
    /// What.
    pub source: Source,
    /// How.
    pub options: MountOptions,
    /// Other owners for its files.
    pub mapped: Option<Mapped>,
}

/// Other owners for a bind's files.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// What is asked for.
    pub mapping: IdMapping,
    /// The user namespace that has the mapping, open; `None` for the container's own, which is not made yet.
    pub users: Option<Rc<OwnedFd>>,
}

/// What is mounted.
#[derive(Debug)]
pub enum Source {
    /// A path of the host's.
    Bind(PathBuf),
    /// What is there already.
    Remount,
    /// A new file system.
    FileSystem {
        /// Its type.
        kind: &'static str,
        /// What /proc/mounts shows as its source.
        name: String,
    },
    /// Another one, of which nothing is known here: its type, and what it is mounted of.
    Other(String, String),
    /// The container's cgroups, version 1.
    CgroupV1(Vec<CgroupHierarchy>),
    /// The container's cgroup in the unified hierarchy.
    Cgroup2(UnifiedCgroup),
}

/// The container's cgroups on the host, for mounts that show them.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    /// The v1 hierarchies.
    pub v1: Vec<CgroupHierarchy>,
    /// The unified one.
    pub unified: Option<UnifiedCgroup>,
    /// The controllers are in the unified one.
    pub is_v2: bool,
}

/// The unified hierarchy as a container sees it.
#[derive(Clone, Debug)]
pub struct UnifiedCgroup {
    /// Where the host has it.
    pub mount: PathBuf,
    /// The container's own directory on the host.
    pub directory: PathBuf,
    /// That, from `mount`.
    pub path: PathBuf,
    /// The container has a cgroup namespace of its own.
    pub own_namespace: bool,
}

/// One cgroup v1 hierarchy as a container sees it.
#[derive(Clone, Debug)]
pub struct CgroupHierarchy {
    /// The name of its directory, `cpu,cpuacct`.
    pub name: String,
    /// Links to it, `cpu` and `cpuacct`.
    pub links: Vec<String>,
    /// How to mount it, in a cgroup namespace of the container's own; else `directory` is bound.
    pub options: Option<Vec<(String, Option<String>)>>,
    /// The container's own directory on the host.
    pub directory: PathBuf,
}

/// A node to make.
#[derive(Clone, Debug)]
pub struct Device {
    /// Where, in the container.
    pub path: PathBuf,
    /// Character or block device, or fifo.
    pub kind: FileType,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The program and who runs it.
#[derive(Debug)]
pub struct Process {
    /// Arguments; the first is looked up.
    pub args: Vec<CString>,
    /// Environment.
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: PathBuf,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; `None` where they stay the shim's, as nobody may set them.
    pub groups: Option<Vec<u32>>,
    /// File mode creation mask.
    pub umask: u32,
    /// Capabilities; none where the specification has none (runtime-spec: config.md, "capabilities").
    pub capabilities: Capabilities,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// A session keyring of its own, and not the shim's.
    pub session_keyring: bool,
    /// How the kernel is to treat it.
    pub treatment: Treatment,
    /// How many descriptors, from 3 on, it has of whoever has started us.
    pub handed: u32,
    /// The size that its terminal is to have; `None` for that of a new one, 0 by 0.
    pub console_size: Option<Size>,
}

impl Plan {
    /// The namespaces that the clone itself makes: the pid namespace, which is where one is born, and the user namespace,
    /// which must be there before it to own it.
    pub fn clone_flags(&self) -> u64 {
        let Work::Create(create) = &self.work else { return 0 };
        let born_in = |kind: &&Namespace| matches!(kind, Namespace::Pid | Namespace::User);
        create.new.iter().filter(born_in).fold(0, |flags, kind| flags | kind.flag())
    }

    /// The namespaces to be in before the clone: where a new pid namespace is to be that of a joined user namespace, and
    /// where a new user namespace takes away the capabilities with which others are joined. (The parent itself visits
    /// a pid namespace.)
    pub fn born_inside(&self) -> Option<&[(Namespace, OwnedFd)]> {
        let Work::Create(create) = &self.work else { return None };
        let makes = |kind| create.new.contains(&kind);
        let joins_others = || create.joined.iter().any(|(kind, _)| *kind != Namespace::Pid);
        let inside =
            (create.joins_user_namespace() && makes(Namespace::Pid)) || (makes(Namespace::User) && joins_others());
        // Who is rootless and leaves its own pid or time namespace does not come back.
        let visits = || create.joined.iter().any(|(kind, _)| *kind == Namespace::Pid) && !create.hops();
        let leaves = create.time_offsets.is_some() || visits();
        (inside || create.rootless && leaves).then_some(&create.joined)
    }

    /// The shim is root of a user namespace alone.
    pub fn is_rootless(&self) -> bool {
        matches!(&self.work, Work::Create(create) if create.rootless)
    }

    /// It is to be in a container's pid namespace, and born there last of all (`init/steps.rs`).
    pub fn hops(&self) -> bool {
        match &self.work {
            Work::Create(create) => create.hops(),
            Work::Exec(exec) => exec.namespaces & Namespace::Pid.flag() != 0,
        }
    }

    /// What makes a session, and what is set exactly, is left to the last part (`steps`): of an exec, and of who hops.
    pub fn has_last_part(&self) -> bool {
        matches!(self.work, Work::Exec(_)) || self.hops()
    }

    /// The offsets of the time namespace to be born in, where that is a new one.
    pub fn time_offsets(&self) -> Option<&str> {
        match &self.work {
            Work::Create(create) => create.time_offsets.as_deref(),
            Work::Exec(_) => None,
        }
    }

    /// It comes into a time namespace, where clocks are others.
    pub fn changes_time(&self) -> bool {
        match &self.work {
            Work::Create(create) => {
                let joins = create.joined.iter().any(|(kind, _)| *kind == Namespace::Time);
                joins || create.time_offsets.is_some() || create.new.contains(&Namespace::Time)
            }
            Work::Exec(exec) => exec.namespaces & Namespace::Time.flag() != 0,
        }
    }

    /// What the host opens for it, in a user namespace.
    pub fn sources(&self) -> Option<Rc<Sources>> {
        match &self.work {
            Work::Create(create) => create.sources.clone(),
            Work::Exec(_) => None,
        }
    }

    /// The host's network devices that it is to have.
    pub fn net_devices(&self) -> &[NetDevice] {
        match &self.work {
            Work::Create(create) => &create.net_devices,
            Work::Exec(_) => &[],
        }
    }

    /// Every descriptor of the plan: what the child keeps.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = Vec::new();
        if let Streams::Pipes(pipes) = &self.streams {
            all.extend(pipes.iter().map(AsFd::as_fd));
        }
        all.extend(self.cgroup_files.iter().map(|(_, fd)| fd.as_fd()));
        match &self.work {
            Work::Create(create) => {
                all.extend(create.joined.iter().map(|(_, fd)| fd.as_fd()));
                let mounts = create.rootfs.iter().flat_map(|rootfs| &rootfs.mounts);
                all.extend(mounts.filter_map(|mount| mount.mapped.as_ref()?.users.as_deref()).map(AsFd::as_fd));
            }
            Work::Exec(exec) => all.push(exec.init.as_fd()),
        }
        if let Hold::Fifo(fifo) = &self.hold {
            all.push(fifo.as_fd());
        }
        all
    }
}

/// Opens the namespaces that a specification names by path, in the order in which they are to be joined. What is judged
/// of them is then true of what is joined, wherever the paths lead by that time.
///
/// # Errors
/// `InvalidArgument` for a path that is none of such a namespace, and for a host's own whose parameters are to be set.
pub fn joined(spec: &Spec) -> Result<Vec<(Namespace, OwnedFd)>> {
    let mut joined = Vec::new();
    for (index, namespace) in namespaces::namespaces(spec).enumerate() {
        let kind = kind_of(namespace.typ);
        if let Some(path) = namespace.path {
            let opened = ns::open_path(kind, path).context(|| format!("linux.namespaces[{index}].path"))?;
            joined.push((kind, opened));
        }
    }
    for sysctl in sysctl::sysctls(spec)? {
        let kind = kind_of(sysctl.namespace);
        refuse_ours(kind, &joined).context(|| format!("linux.sysctl: {}", sysctl.path.display()))?;
    }
    if !net_devices::net_devices(spec)?.is_empty() {
        refuse_ours(Namespace::Network, &joined).context(|| "linux.netDevices")?;
    }
    // A joined mount namespace late: it takes the host's paths away. A user namespace last: it takes the capabilities
    // away with which every other can be joined, whosever it is.
    joined.sort_by_key(|(kind, _)| match kind {
        Namespace::User => 2,
        Namespace::Mount => 1,
        _ => 0,
    });
    Ok(joined)
}

/// What a validated specification's container is made of, with the namespaces that it joins.
///
/// `rootfs` is the root file system's path; `bundle` is where relative sources of bind mounts start; `cgroups` are the
/// hierarchies that a mount of type cgroup or cgroup2 shows, with the options to mount each in a cgroup namespace.
///
/// # Errors
/// A value that no kernel takes.
pub fn create(
    spec: &Spec,
    bundle: &Path,
    rootfs: &Path,
    cgroups: &Cgroups,
    joined: Vec<(Namespace, OwnedFd)>,
) -> Result<Create> {
    let new = namespaces::namespaces(spec).filter(|namespace| namespace.path.is_none());
    let mut create = Create {
        new: new.map(|namespace| kind_of(namespace.typ)).collect(),
        joined,
        net_devices: net_devices::net_devices(spec)?,
        hostname: spec.hostname().clone(),
        domainname: spec.domainname().clone(),
        sysctls: sysctl::sysctls(spec)?,
        time_offsets: time::offsets(spec)?,
        ..Create::default()
    };
    if !namespaces::joins_mount_ns(spec) {
        let own_cgroup_ns = create.new.contains(&Namespace::Cgroup);
        create.rootfs = Some(plan_rootfs(spec, bundle, rootfs, cgroups, own_cgroup_ns)?);
        create.show_joined_pid_namespace();
    }
    Ok(create)
}

/// A namespace that is joined by a path may be the host's own, whose parameters are the host's.
fn refuse_ours(kind: Namespace, joined: &[(Namespace, OwnedFd)]) -> Result<()> {
    let Some((_, fd)) = joined.iter().find(|(joined, _)| *joined == kind) else { return Ok(()) };
    let ours = ns::open_path(kind, &Path::new("/proc/self/ns").join(kind.name()))?;
    // By number: through a bind mount of it (ip-netns(8)) it is the same namespace in another mount.
    let place = |fd: &OwnedFd| path::stat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    match place(fd)? == place(&ours)? {
        false => Ok(()),
        true => Err(Error::new(Kind::InvalidArgument, "is the host's: so is the namespace that the container joins")),
    }
}

/// The CLONE_NEW* flags of every namespace that the specification lists: what an exec has to join.
pub fn namespace_flags(spec: &Spec) -> u64 {
    namespaces::namespaces(spec).fold(0, |flags, namespace| flags | kind_of(namespace.typ).flag())
}

fn kind_of(typ: LinuxNamespaceType) -> Namespace {
    match typ {
        LinuxNamespaceType::Mount => Namespace::Mount,
        LinuxNamespaceType::Cgroup => Namespace::Cgroup,
        LinuxNamespaceType::Uts => Namespace::Uts,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Network => Namespace::Network,
        LinuxNamespaceType::User => Namespace::User,
        LinuxNamespaceType::Time => Namespace::Time,
    }
}

fn plan_rootfs(spec: &Spec, bundle: &Path, rootfs: &Path, cgroups: &Cgroups, own_cgroup_ns: bool) -> Result<Rootfs> {
    let linux = spec.linux().as_ref();
    let paths = |list: Option<&Option<Vec<String>>>| -> Vec<PathBuf> {
        list.and_then(Option::as_ref).into_iter().flatten().map(PathBuf::from).collect()
    };
    let mut plan = Rootfs {
        path: rootfs.to_owned(),
        readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        propagation: linux.and_then(|linux| mount_options::propagation(linux.rootfs_propagation().as_deref()?)),
        masked_paths: paths(linux.map(|linux| linux.masked_paths())),
        readonly_paths: paths(linux.map(|linux| linux.readonly_paths())),
        label: linux.and_then(|linux| linux.mount_label().clone()).filter(|label| !label.is_empty()),
        ..Rootfs::default()
    };
    let host_ipc = namespaces::namespace(spec, LinuxNamespaceType::Ipc).is_none();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let mut mount = plan_mount(mount, bundle, cgroups, own_cgroup_ns).context(|| format!("mounts[{index}]"))?;
        label::label_mount(&mut mount, plan.label.as_deref(), host_ipc);
        plan.mounts.push(mount);
    }
    let host_dev = plan
        .mounts
        .iter()
        .any(|mount| super::mounts::is_dev(&mount.destination) && matches!(mount.source, Source::Bind(_)));
    if !host_dev {
        plan.devices = Some(devices(linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default())?);
    }
    Ok(plan)
}

fn plan_mount(
    mount: &oci_spec::runtime::Mount,
    bundle: &Path,
    cgroups: &Cgroups,
    own_cgroup_ns: bool,
) -> Result<MountPlan> {
    let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())?;
    let kind = MountKind::of(mount, &options)
        .ok_or_else(|| Error::new(Kind::Unimplemented, format!("type {:?} is not supported", mount.typ())))?;
    let name = mount.source().as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let file_system = |kind, name| Source::FileSystem { kind, name };
    let source = match kind {
        MountKind::Bind => Source::Bind(bundle.join(mount.source().as_deref().unwrap_or(Path::new("")))),
        MountKind::Remount => Source::Remount,
        MountKind::Proc => file_system("proc", name),
        MountKind::Sysfs => file_system("sysfs", name),
        MountKind::Tmpfs => file_system("tmpfs", name),
        MountKind::Devpts => file_system("devpts", name),
        MountKind::Mqueue => file_system("mqueue", name),
        MountKind::Other => Source::Other(mount.typ().clone().unwrap_or_default(), name),
        MountKind::Cgroup2 => unified(cgroups, own_cgroup_ns)?,
        MountKind::Cgroup if cgroups.is_v2 => unified(cgroups, own_cgroup_ns)?,
        MountKind::Cgroup => {
            let seen = |hierarchy: &CgroupHierarchy| CgroupHierarchy {
                options: hierarchy.options.clone().filter(|_| own_cgroup_ns),
                ..hierarchy.clone()
            };
            Source::CgroupV1(cgroups.v1.iter().map(seen).collect())
        }
    };
    let mapped = IdMapping::of(mount, &options)?.map(|mapping| Mapped { mapping, users: None });
    Ok(MountPlan { destination: mounts::destination(mount), source, options, mapped })
}

fn unified(cgroups: &Cgroups, own_namespace: bool) -> Result<Source> {
    let seen = cgroups.unified.clone().map(|unified| Source::Cgroup2(UnifiedCgroup { own_namespace, ..unified }));
    seen.ok_or_else(|| Error::new(Kind::FailedPrecondition, "cgroup2: this host has no unified hierarchy mounted"))
}

/// The devices that every container has (runtime-spec: config-linux.md, "Default devices").
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default devices and the specification's, which win.
fn devices(listed: &[LinuxDevice]) -> Result<Vec<Device>> {
    let mut devices = listed.iter().map(device).collect::<Result<Vec<_>>>()?;
    for (path, major, minor) in DEFAULT_DEVICES {
        let path = PathBuf::from(path);
        if !devices.iter().any(|device| device.path == path) {
            devices.push(Device { path, kind: FileType::CharacterDevice, major, minor, mode: 0o666, uid: 0, gid: 0 });
        }
    }
    Ok(devices)
}

fn device(device: &LinuxDevice) -> Result<Device> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            let text = format!("device {}: type \"a\" is no device", device.path().display());
            return Err(Error::new(Kind::InvalidArgument, text));
        }
    };
    let number = |number: i64| {
        let text = || format!("device {}: {number} is not a device number", device.path().display());
        u32::try_from(number).map_err(|_| Error::new(Kind::InvalidArgument, text()))
    };
    // A fifo has no numbers: validation lets them be absent.
    let (major, minor) = match kind {
        FileType::Fifo => (0, 0),
        _ => (number(device.major())?, number(device.minor())?),
    };
    Ok(Device {
        path: device.path().clone(),
        kind,
        major,
        minor,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// The program and its identity; of a container's first process, with what `linux` says of all of them.
pub fn process(spec: &SpecProcess, linux: Option<&Linux>) -> Result<Process> {
    let user = spec.user();
    let strings = |list: Option<&Vec<String>>, what: &str| -> Result<Vec<CString>> {
        let convert = |text: &String| {
            CString::new(text.as_bytes())
                .map_err(|_| Error::new(Kind::InvalidArgument, format!("{what} has a NUL byte: {text:?}")))
        };
        list.into_iter().flatten().map(convert).collect()
    };
    Ok(Process {
        args: strings(spec.args().as_ref(), "process.args")?,
        env: strings(spec.env().as_ref(), "process.env")?,
        cwd: spec.cwd().clone(),
        uid: user.uid(),
        gid: user.gid(),
        groups: Some(user.additional_gids().clone().unwrap_or_default()),
        umask: user.umask().unwrap_or(0o022),
        capabilities: identity_plan::capabilities(spec.capabilities().as_ref()),
        rlimits: identity_plan::rlimits(spec.rlimits().as_deref().unwrap_or_default()),
        no_new_privileges: spec.no_new_privileges().unwrap_or(false),
        session_keyring: true,
        handed: 0,
        treatment: Treatment::of(spec, linux)?,
        console_size: spec.console_size().map(|size| Size { width: size.width() as u16, height: size.height() as u16 }),
    })
}
