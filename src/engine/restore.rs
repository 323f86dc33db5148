//! Restore: a container whose processes are not born but made by CRIU, of the images of a checkpoint.
//!
//! As with runc and containerd's own shim, Create makes what is around them (root file system, cgroup, streams) and Start
//! the processes; until then there is none, and its pid is 0.
//!
//! CRIU is put into the container's cgroup, where what it makes is born, and into a mount namespace of its own, where the
//! root file system is mounted once more as it wants it: nothing of that is left when it has ended.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::OFlags;

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Os, Result};
use crate::init::namespaces::{UNIFIED, write_into};
use crate::init::plan::{self, Streams};
use crate::spec::namespaces::{self, namespace};
use crate::spec::net_devices::net_devices;
use crate::sys::fork::Child;
use crate::sys::mount::{self, Mount};
use crate::sys::ns::{self, Birthplace, Namespace};
use crate::sys::path::{self, Root};
use crate::sys::{net, null, pidfd};

use super::Engine;
use super::checkpoint::{EMPTY, EXTERNAL_NAMESPACES, names_of};
use super::console;
use super::container::{Container, Process};
use super::create::{Judged, cgroup_views, owner_of_cgroup};
use super::criu::mounts::Points;
use super::criu::restrictions::Restrictions;
use super::criu::{self, Notification, Places, Settings, wire};
use super::descriptors;
use super::exec::BirthUnderWay;
use super::helper;
use super::hooks::Hooks;
use super::listener::Listener;
use super::oom::Oom;
use super::place::{Making, Site};
use super::remains::{KILL_BOUND, Remains, kill_all};
use super::restoring::UnderWay;
use super::state::{Identity, Saved, StateDir};

/// The name of the log, which runc's clients know.
const LOG: &str = "restore.log";

/// How long bringing up one interface may take.
const LOOPBACK_BOUND: Duration = Duration::from_secs(10);

/// How the processes are to be made.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What a checkpoint has, too.
    pub settings: Settings,
    /// Another profile of the security module.
    pub lsm_profile: Option<String>,
    /// Another context of mounts.
    pub lsm_mount_context: Option<String>,
}

/// A container as far as Create has come with it.
pub(super) struct Prepared {
    /// Its init to be.
    pub init: Rc<Process>,
    /// What becomes init's standard streams.
    pub streams: Streams,
    /// Its cgroup.
    pub making: Making,
    /// What is on disk of it.
    pub saved: Saved,
    /// Its hooks.
    pub hooks: Option<Hooks>,
    /// What would become its init, were it born.
    pub process: plan::Process,
}

/// What Start needs.
pub(super) struct Pending {
    request: Request,
    streams: Streams,
    making: Making,
    site: Rc<Site>,
    saved: Saved,
    state: StateDir,
    rootfs: PathBuf,
    mounts: Vec<(String, String)>,
    points: Points,
    readonly: bool,
    restrictions: Restrictions,
    /// Whose the cgroup is to be.
    owner: Option<u32>,
    /// Namespaces of others, by CRIU's name.
    namespaces: Vec<(&'static str, OwnedFd)>,
    /// Those that are joined by path, by kind.
    joined: Vec<(String, String)>,
    config_file: Option<String>,
    new_network: bool,
    /// Of its directory, of a container of the command line's: it is nobody else's before it is restored.
    pub lock: Option<File>,
}

/// Judges a request, before any effect.
///
/// # Errors
/// `NotFound` for images that are not there; `Unimplemented` for what CRIU cannot restore.
pub(super) fn judge(engine: &Engine, request: &Request, spec: &oci_spec::runtime::Spec, bundle: &Path) -> Result<()> {
    let refuse = |why: &str| Err(Error::new(Kind::Unimplemented, format!("restore: {why}")));
    if engine.own.rootless {
        return refuse("CRIU needs to be root on the host, and we are in a user namespace alone");
    }
    if !criu::mounts::has_own(spec) {
        return refuse("its mount namespace is not its own, which CRIU cannot restore");
    }
    if Listener::of("", bundle, spec).is_some() {
        return refuse("CRIU knows nothing of the listener of a seccomp profile");
    }
    if !net_devices(spec)?.is_empty() {
        return refuse("linux.netDevices: no device of the host's comes into a network namespace that CRIU makes");
    }
    Points::of(spec, bundle).context(|| "restore")?;
    descriptors::read(&request.settings.images).map(drop)
}

impl Engine {
    /// The container, without a process.
    pub(super) fn restorable(
        &self,
        judged: &Judged,
        request: &Request,
        prepared: Prepared,
        remains: &mut Remains,
    ) -> Result<Rc<Container>> {
        let Prepared { init, streams, making, mut saved, hooks, process } = prepared;
        let (spec, bundle, state) = (&judged.spec, &judged.request.bundle, &judged.state);
        let cgroup = making.cgroup.clone();
        saved.poststop = hooks.as_ref().and_then(Hooks::poststop);
        saved.descriptors = names_of(&streams);
        // Of systemd's there is none yet: what is at its path is another's.
        saved.cgroup_inode = if making.is_by_systemd() { None } else { cgroup.inode()? };
        saved.cgroup = cgroup.is_anywhere().then(|| cgroup.path().to_owned());
        state.save(&saved)?;
        remains.poststop = saved.poststop.clone();
        remains.kill = true;
        let pending = Pending {
            request: request.clone(),
            streams,
            making,
            site: judged.site.clone(),
            saved,
            state: state.clone(),
            rootfs: judged.rootfs.clone(),
            mounts: criu::mounts::of_restore(spec, bundle, &cgroup_views(&cgroup))?,
            points: Points::of(spec, bundle)?,
            readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            restrictions: Restrictions::of(&process, judged.seccomp.is_some()),
            owner: owner_of_cgroup(judged),
            namespaces: external_namespaces(judged)?,
            joined: joined(judged)?,
            config_file: criu::config_file(spec),
            new_network: namespace(spec, oci_spec::runtime::LinuxNamespaceType::Network)
                .is_some_and(|network| network.path.is_none()),
            lock: None,
        };
        Ok(Rc::new(Container {
            id: judged.request.id.clone(),
            bundle: bundle.clone(),
            namespaces: plan::namespace_flags(spec).into(),
            id_maps: judged.id_maps.clone(),
            private_pid_ns: namespaces::has_private_pid_ns(spec),
            oom_score_adj: spec.process().as_ref().and_then(|process| process.oom_score_adj()),
            options: judged.request.options,
            scope: pending.saved.scope.clone(),
            cgroup,
            updating: Default::default(),
            resctrl: judged.resctrl.clone(),
            init,
            seccomp: judged.seccomp.clone(),
            listener: None,
            treatment: process.treatment,
            execs: Default::default(),
            exec_ended: Default::default(),
            init_reaped: Default::default(),
            freezer: Default::default(),
            resumed: Default::default(),
            in_checkpoint: Default::default(),
            restoring: Default::default(),
            restore: RefCell::new(Some(Box::new(pending))),
            stats: Default::default(),
            oom: Default::default(),
            fifo: None,
            hooks: RefCell::new(hooks.map(Box::new)),
            deleting: Default::default(),
            remains: RefCell::new(std::mem::take(remains)),
        }))
    }

    /// Has CRIU make the container's processes.
    ///
    /// # Errors
    /// What CRIU says; nothing that it has made is left then.
    pub(super) async fn restore(self: &Rc<Self>, container: &Rc<Container>) -> Result<()> {
        let pending = container.restore.take();
        let mut pending =
            pending.ok_or_else(|| Error::new(Kind::FailedPrecondition, "it has failed to be restored before"))?;
        // Until what a failure leaves has been ended, too.
        let _lock = pending.lock.take();
        let _birth = BirthUnderWay::of(self);
        let mount_point = pending.state.path().join("criu-root");
        let under_way = UnderWay::of(container);
        let restored = under_way.unless_given_up(self.restore_at(container, *pending, &mount_point)).await;
        if mount_point.exists() {
            std::fs::remove_dir(&mount_point).unwrap_or_else(|e| log::warn!("rmdir {}: {e}", mount_point.display()));
        }
        // What runs in one that is not ours yet is another's.
        let ours = container.remains.borrow().cgroup.is_some();
        if restored.is_err() && ours {
            // What CRIU has not ended itself.
            kill_all(&container.cgroup, KILL_BOUND).await.unwrap_or_else(|e| log::error!("{}: {e}", container.init));
        }
        restored.context(|| "OCI runtime restore failed")
    }

    async fn restore_at(self: &Rc<Self>, container: &Rc<Container>, pending: Pending, at: &Path) -> Result<()> {
        let Pending { request, streams, mut making, site, mut saved, state, rootfs, .. } = pending;
        let Request { settings, lsm_profile, lsm_mount_context } = request;
        let program = criu::program(settings.program.as_deref())?;
        let (own, kept) = (state.path().join("criu-work"), container.bundle.join("criu-restore.log"));
        let places = Places::make(&settings, &own, LOG, kept)?;
        let given = Given::new(&settings.images, streams, pending.namespaces)?;
        criu::make_directory(at)?;
        let joins = !making.is_by_systemd();
        let last = || {
            if joins {
                join(&container.cgroup)?;
            }
            mount_root(&rootfs, at, &pending.points, pending.readonly)?;
            pending.restrictions.impose()
        };
        let mut criu = self.run_criu(&program, given.streams, given.extra, last)?;
        let _ended = criu.ended_with_this()?;
        let mut remains = Returned { remains: container.remains.take(), container };
        self.settle(&site, &mut making, &container.id, criu.pid(), &mut remains.remains).await?;
        drop(remains);
        if let Some(owner) = pending.owner {
            container.cgroup.delegate(owner)?;
        }
        if let Some(oom) = container.cgroup.watch_oom()?.map(Oom::new).map(Rc::new) {
            // None is restored twice.
            let _ = container.oom.set(oom);
            self.watch_oom(container)?;
        }
        container.resctrl.as_ref().map_or(Ok(()), |resctrl| resctrl.join(criu.pid()))?;
        // From here on there may be something to be ended.
        saved.cgroup_inode = container.cgroup.inode()?;
        saved.cgroup = container.cgroup.is_anywhere().then(|| container.cgroup.path().to_owned());
        state.save(&saved)?;
        criu.executed().await?;
        let (options, _opened) = places.open(Some(criu.pid()))?;
        let options = wire::Options {
            root: Some(at.to_string_lossy().into_owned()),
            sibling: true,
            evasive_devices: true,
            mounts: pending.mounts,
            inherited: given.inherited,
            joined: pending.joined,
            cgroup_roots: container.cgroup.names(),
            empty_ns: EMPTY,
            lsm_profile,
            lsm_mount_context,
            config_file: pending.config_file,
            ..settings.with(options)
        };
        let heard = async |notification: Notification| {
            let Notification { name, pid, fd } = notification;
            match (name.as_str(), pid, fd) {
                ("setup-namespaces", Some(pid), _) => self.set_up(container, pid, pending.new_network).await,
                ("orphan-pts-master", _, Some(master)) => console::connect(&container.init, master),
                ("post-restore", Some(pid), _) => self.restored(container, pid, &state, &mut saved),
                // Not before: credentials and filters come last.
                ("pre-resume", ..) => check(&container.init, &pending.restrictions),
                _ => Ok(()),
            }
        };
        let log = places.log();
        places.done(criu.ask(wire::Request::Restore, &options, &log, heard).await)?;
        match container.init.pid() {
            0 => Err(Error::new(Kind::Internal, "criu has not told whom it has restored")),
            _ => Ok(()),
        }
    }

    /// In the namespaces that have been made: what a new network needs, and the hooks.
    async fn set_up(&self, container: &Container, pid: i32, new_network: bool) -> Result<()> {
        if new_network {
            let target = pidfd::open(pid)?;
            let place = Birthplace { target: target.as_fd(), flags: Namespace::Network.flag(), home: &self.home };
            self.in_child_at("bringing up lo", LOOPBACK_BOUND, Some(place), &[], net::loopback_up).await?;
        }
        let hooks = container.hooks.take();
        let run = match &hooks {
            Some(hooks) => self.run_restore_hooks(hooks, pid).await,
            None => Ok(()),
        };
        // With the poststart ones, which as with runc are for a start alone, they have been.
        drop(hooks);
        run
    }

    /// Takes note of the container's init, which CRIU still holds.
    fn restored(self: &Rc<Self>, container: &Container, pid: i32, state: &StateDir, saved: &mut Saved) -> Result<()> {
        let pidfd = pidfd::open(pid)?;
        if !pidfd::is_child(&pidfd) {
            return Err(Error::new(Kind::Internal, format!("criu: process {pid} is not our child")));
        }
        saved.init = Some(Identity::of(pid)?);
        state.save(saved)?;
        container.namespaces.update(|flags| flags | own_time_namespace(pid));
        self.children.borrow_mut().insert(pid, helper::Child::Process(container.init.clone()));
        container.init.born(Child { pid, pidfd });
        container.remains.borrow_mut().kill = !container.private_pid_ns;
        Ok(())
    }
}

/// Ends an init that is not as restricted as it is to be, before it goes on: CRIU would let it.
fn check(init: &Process, restrictions: &Restrictions) -> Result<()> {
    let checked = restrictions.check(init.pid() as i32);
    if checked.is_err() {
        init.signal(libc::SIGKILL as u32).unwrap_or_else(|e| log::error!("{init}: {e}"));
    }
    checked
}

/// The remains of a container that others are to find again, however this ends.
struct Returned<'c> {
    remains: Remains,
    container: &'c Container,
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        self.container.remains.replace(std::mem::take(&mut self.remains));
    }
}

/// What CRIU is given of ours.
struct Given {
    streams: [OwnedFd; 3],
    extra: Vec<OwnedFd>,
    inherited: Vec<(String, i32)>,
}

impl Given {
    fn new(images: &Path, streams: Streams, namespaces: Vec<(&str, OwnedFd)>) -> Result<Self> {
        let null = || null::open(OFlags::RDWR);
        let names = descriptors::read(images)?;
        let (mut extra, mut inherited) = (Vec::new(), Vec::new());
        for (name, namespace) in namespaces {
            inherited.push((name.to_owned(), criu::extra_number(extra.len())));
            extra.push(namespace);
        }
        let streams = match streams {
            Streams::Terminal(_) => return Ok(Self { streams: [null()?, null()?, null()?], extra, inherited }),
            Streams::Pipes(streams) => streams,
        };
        for (number, name) in names.iter().enumerate().take(streams.len()) {
            let is_first = names.iter().position(|other| other == name) == Some(number);
            let is_given = ["pipe:", "socket:", "file[", "tty["].iter().any(|kind| name.starts_with(kind));
            if !is_first || !is_given {
                continue;
            }
            // The last: what is written to is more likely to be so than what is read from.
            let last = names.iter().take(streams.len()).rposition(|other| other == name).unwrap_or(number);
            if last != number && name.starts_with("file[") && was_null(number, &streams[last])? {
                inherited.push((name.clone(), criu::extra_number(extra.len())));
                extra.push(null()?);
            } else {
                inherited.push((name.clone(), last as i32));
            }
        }
        Ok(Self { streams, extra, inherited })
    }
}

/// Whether one file for several streams, of which the `first` has this number, was a null device, to be read and written;
/// else it is what `>log 2>&1` makes of two. CRIU puts but a device in place of a device, and a file in place of a file.
fn was_null(first: usize, ours: &OwnedFd) -> Result<bool> {
    use rustix::fs::FileType;
    Ok(first == 0 || FileType::from_raw_mode(path::stat(ours)?.st_mode) != FileType::RegularFile)
}

/// Namespaces of others that CRIU enters by a descriptor.
fn external_namespaces(judged: &Judged) -> Result<Vec<(&'static str, OwnedFd)>> {
    let mut all = Vec::new();
    for (kind, fd) in &judged.joined {
        if let Some((_, _, key)) = EXTERNAL_NAMESPACES.iter().find(|(_, name, _)| *name == kind.name()) {
            all.push((*key, fd.try_clone().os(|| "dup")?));
        }
    }
    Ok(all)
}

/// Namespaces of others that it joins by path.
fn joined(judged: &Judged) -> Result<Vec<(String, String)>> {
    use oci_spec::runtime::LinuxNamespaceType as Type;
    let mut all = Vec::new();
    for namespace in namespaces::namespaces(&judged.spec) {
        let Some(path) = namespace.path else { continue };
        let kind = match namespace.typ {
            Type::Network | Type::Pid => continue,
            Type::Ipc => "ipc",
            Type::Uts => "uts",
            Type::User => "user",
            Type::Time => "time",
            Type::Cgroup | Type::Mount => {
                let text = format!("restore: CRIU joins no {} namespace", namespace.typ);
                return Err(Error::new(Kind::Unimplemented, text));
            }
        };
        all.push((kind.to_owned(), path.to_string_lossy().into_owned()));
    }
    Ok(all)
}

/// CLONE_NEWTIME where the process is in a time namespace that is not ours: CRIU makes one, so that its clocks go on where
/// they were.
pub(super) fn own_time_namespace(pid: i32) -> u64 {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/time")).ok();
    if of(&pid.to_string()) == of("self") { 0 } else { Namespace::Time.flag() }
}

/// Moves the calling process into the cgroup.
fn join(cgroup: &Cgroup) -> Result<()> {
    let joins = cgroup.joins()?;
    joins.tasks.iter().try_for_each(|(name, file)| write_into(name, file.as_fd()))?;
    let Some(unified) = &joins.unified else { return Ok(()) };
    let procs =
        rustix::fs::openat(unified, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty());
    write_into(UNIFIED, procs.os(|| "openat cgroup.procs")?.as_fd())
}

/// Mounts the root file system on `at`, in a mount namespace of the calling process's own: CRIU wants the root of a mount
/// that nothing else is mounted on.
fn mount_root(rootfs: &Path, at: &Path, points: &Points, readonly: bool) -> Result<()> {
    ns::unshare(Namespace::Mount.flag())?;
    mount::propagation(Path::new("/"), libc::MS_PRIVATE | libc::MS_REC)?;
    let tree = Mount::clone_path(None, rootfs, true)?;
    tree.attach(Root::open(at)?.as_fd())?;
    let root = Root::from_fd(tree.as_fd().try_clone_to_owned().os(|| "dup")?);
    points.make(&root).context(|| "mount points")?;
    // CRIU makes the container's root of this mount, and restores no flags of it (checkpoint-restore/criu issue 2632).
    if readonly { tree.restrict(libc::MOUNT_ATTR_RDONLY, 0) } else { Ok(()) }
}
