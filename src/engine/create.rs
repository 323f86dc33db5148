//! Create: from a request to a container whose init is parked right before its execve.

use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{Either, select};
use oci_spec::runtime::Spec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::cgroup::resctrl::Resctrl;
use crate::cgroup::{self, Cgroup};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::init::label;
use crate::init::mounts;
use crate::init::namespaces::UNIFIED;
use crate::init::net_devices::Owner;
use crate::init::plan::{self, Plan, Streams, Work};
use crate::init::sources::Sources;
use crate::init::sync::{Heard, Hold, ParentEnd};
use crate::spec::id_map::IdMaps;
use crate::spec::{self, load, namespaces, validate};
use crate::sys::lsm;
use crate::sys::ns::{Birthplace, Namespace};
use crate::sys::seccomp::Filter;
use crate::sys::userns::Own;

use super::Engine;
use super::capabilities::warn_of_unknown;
use super::checkpoint;
use super::console;
use super::container::{Container, Process};
use super::events::{Event, RootfsMount, StdioUris};
use super::exec::BirthUnderWay;
use super::fifo;
use super::handed::{Handed, HandedStreams};
use super::helper::Child;
use super::hooks::Hooks;
use super::lifecycle::{self, State};
use super::listener::Listener;
use super::oom::Oom;
use super::options::Options;
use super::place::{Making, Site};
use super::ready::watch;
use super::remains::{KILL_BOUND, Remains, Unmount, remove_saved};
use super::restore::{self, Prepared};
use super::rootfs;
use super::state::{FIFO, Identity, Saved, StateDir, Taken};
use super::trace::{self, Step, UnderWay};
use super::userns::{self, Outside};

/// How long a child may take to be created or to reach its execve: mounts of the user's choice are among it, and one of
/// a server that does not answer would otherwise keep the container's id for ever.
pub(super) const SET_UP_BOUND: Duration = Duration::from_secs(120);

/// How long a create waits for another process that removes what is left of a container of this id, and how long between
/// its looks.
const TAKE_BOUND: Duration = Duration::from_secs(5);
const TAKE_PAUSE: Duration = Duration::from_millis(10);

/// What a client wants.
#[derive(Debug)]
pub struct Request {
    /// Id of the container to be.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// Mounts of its root file system; none where the bundle's own directory is it.
    pub rootfs: Vec<RootfsMount>,
    /// Where its streams go.
    pub stdio: StdioUris,
    /// What else is asked for.
    pub options: Options,
    /// Its processes are to be made of a checkpoint.
    pub restore: Option<restore::Request>,
    /// What the command line asks for, where that is who does.
    pub command: Option<ByCommand>,
}

/// What the command line asks for.
#[derive(Debug)]
pub struct ByCommand {
    /// What the container's init is handed; its streams, where that is told, instead of what the request says of them.
    pub handed: Handed,
    /// Its creator exits: it is held by a fifo in its state directory.
    pub fifo: bool,
}

/// The request after everything that can be judged about it without an effect.
pub(super) struct Judged {
    pub(super) request: Request,
    pub(super) spec: Spec,
    /// The document of it.
    config: Vec<u8>,
    /// What init is handed.
    handed: Option<HandedStreams>,
    /// The root file system: `root.path`.
    pub(super) rootfs: PathBuf,
    /// The request's mounts.
    rootfs_mounts: Vec<rootfs::Planned>,
    /// Where they go: always the bundle's own directory (containerd: runc.NewContainer), for what is
    /// mounted there is taken away until nothing is, and `root.path` may be any path of the host's.
    mount_point: PathBuf,
    pub(super) site: Rc<Site>,
    pub(super) state: StateDir,
    pub(super) resctrl: Option<Resctrl>,
    pub(super) seccomp: Option<Rc<Filter>>,
    pub(super) id_maps: Option<IdMaps>,
    /// The namespaces that it joins, open: their paths may lead to others by the time.
    pub(super) joined: Vec<(Namespace, OwnedFd)>,
    /// How far the create is.
    trace: Rc<UnderWay>,
}

/// A child about to be born.
pub(super) struct Unborn {
    /// What it does.
    pub plan: Plan,
    /// The cgroup v2 directory to be born in.
    pub cgroup: Option<OwnedFd>,
    /// The namespaces to be born in (CLONE_NEW* flags), where those are not new ones or ours: a pidfd of a process that
    /// is in them, or the one itself.
    pub place: Option<(OwnedFd, u64)>,
}

/// A create under way.
#[derive(Default)]
pub(super) struct Creating {
    given_up: Notify,
    ended: Notify,
}

/// Keeps an id from being created twice at a time.
struct Reservation<'a> {
    engine: &'a Engine,
    id: String,
    creating: Rc<Creating>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.engine.creating.borrow_mut().remove(&self.id);
        self.creating.ended.notify_waiters();
    }
}

impl Engine {
    /// Creates a container; returns the pid of its init.
    ///
    /// # Errors
    /// `AlreadyExists` for a taken id, `InvalidArgument` and `Unimplemented` for a specification that cannot be. Whatever
    /// the error, a panic in our own code among it, nothing of the container is left.
    pub async fn create(self: Rc<Self>, request: Request) -> Result<u32> {
        let id = request.id.clone();
        let name = |e: Error| e.context(format!("container {id}"));
        let trace = self.traces.begin(trace::Kind::Create, &id, "", Step::Judging);
        let reservation = self.reserve(&id).map_err(name)?;
        let (judged, process) = self.judge(request, trace.clone()).map_err(name)?;
        let mut judged = judged;
        let saved = self.first_state(&judged).map_err(name)?;
        trace.at(Step::Taking);
        let lock = self.take_directory(&judged, &saved).await.map_err(name)?;
        // A shim's is nobody else's as long as it lives.
        let lock = judged.request.command.is_some().then_some(lock);
        let mut remains = Remains { state: Some(judged.state.clone()), ..Remains::default() };
        let (mut init, mut oom) = (None, None);
        let made = {
            let make = self.make(&mut judged, process, saved, &mut remains, &mut init, &mut oom);
            let make = AssertUnwindSafe(make).catch_unwind();
            match select(pin!(make), pin!(reservation.creating.given_up.notified())).await {
                Either::Left((made, _)) => made,
                Either::Right(_) => Ok(Err(Error::new(Kind::Unavailable, "deleted while it was being created"))),
            }
        };
        let error = match made {
            Ok(Ok(container)) => {
                if let Some(pending) = &mut *container.restore.borrow_mut() {
                    pending.lock = lock;
                }
                drop(reservation);
                trace.at(Step::Announcing);
                let pid = self.created(container, judged.request);
                trace.done();
                return Ok(pid);
            }
            Ok(Err(error)) => match &oom {
                Some(oom) => oom.explain(&id, 0, error),
                None => error,
            },
            Err(_) => Error::panicked(),
        };
        trace.at(Step::GivingUp);
        self.undo(init, &mut remains).await.unwrap_or_else(|e| log::error!("container {id}: undoing create: {e}"));
        Err(name(error))
    }

    fn reserve(&self, id: &str) -> Result<Reservation<'_>> {
        if self.closed.get() {
            return Err(Error::new(Kind::Unavailable, "this shim is ending"));
        }
        let mut all = self.creating.borrow_mut();
        if self.containers.borrow().contains_key(id) || all.contains_key(id) {
            return Err(Error::new(Kind::AlreadyExists, "already exists"));
        }
        let creating = Rc::new(Creating::default());
        all.insert(id.to_owned(), creating.clone());
        Ok(Reservation { engine: self, id: id.to_owned(), creating })
    }

    /// Gives up the create of `id`, if there is one under way, and waits until nothing is left of it. containerd asks for
    /// a Delete when its own client has given up waiting, which for a hook without a timeout is the only end.
    pub async fn give_up_create(&self, id: &str) {
        let creating = self.creating.borrow().get(id).cloned();
        if let Some(creating) = creating {
            let ended = creating.ended.notified();
            creating.given_up.notify_one();
            ended.await;
        }
    }

    fn judge(&self, request: Request, trace: Rc<UnderWay>) -> Result<(Judged, plan::Process)> {
        let state = StateDir::new(&self.state_root, &self.namespace, &request.id)?;
        let mut unknown = Vec::new();
        let (spec, config) = load::load_kept(&request.bundle, &mut unknown)?;
        warn_of_unknown(&format!("container {}", request.id), &unknown);
        let process = validate::validate(&spec)?;
        mounts::refuse_unknown(&spec)?;
        let rootfs_mounts = rootfs::plan(&request.rootfs)?;
        let joined = plan::joined(&spec)?;
        let id_maps = userns::maps(&spec, &joined)?;
        let linux = spec.linux().as_ref();
        let site = Site::judge(&request.id, &spec, &request.options, &self.hierarchies, self.own)?;
        let rdt = linux.and_then(|linux| linux.intel_rdt().as_ref());
        let resctrl = rdt.map(|rdt| Resctrl::plan(rdt, &request.id)).transpose()?;
        let profile = linux.and_then(|linux| linux.seccomp().as_ref());
        let seccomp = profile.map(|profile| self.filters.get(profile)).transpose()?;
        console::agree(request.stdio.terminal, process.terminal())?;
        let mut process = plan::process(process, linux)?;
        linux.map(|linux| label::mount_label(linux, lsm::enabled)).transpose()?;
        let name = format!("container {}", request.id);
        self.take_ungrantable(&name, id_maps.as_ref(), &mut process.capabilities);
        self.leave_groups(&name, &mut process);
        process.session_keyring = !request.options.no_new_keyring;
        if let Some(checkpoint) = &request.restore {
            restore::judge(self, checkpoint, &spec, &request.bundle)?;
        }
        let mut request = request;
        let handed = request.command.as_mut().map(|command| command.handed.take(&mut process)).transpose()?;
        if request.command.as_ref().is_some_and(|command| command.fifo)
            && Listener::of(&request.id, &request.bundle, &spec).is_some()
        {
            let text = "linux.seccomp.listenerPath: by create and start, which are two processes: run does it";
            return Err(Error::new(Kind::Unimplemented, text));
        }
        let rootfs = load::rootfs(&request.bundle, &spec);
        let mount_point = request.bundle.join("rootfs");
        let judged = Judged {
            request,
            spec,
            config,
            handed: handed.flatten(),
            rootfs,
            rootfs_mounts,
            mount_point,
            site: Rc::new(site),
            resctrl,
            state,
            seccomp,
            id_maps,
            joined,
            trace,
        };
        Ok((judged, process))
    }

    /// What is to be known of the container before anything of it is made.
    fn first_state(&self, judged: &Judged) -> Result<Saved> {
        let request = &judged.request;
        let mut saved = Saved::new(&request.id, &request.bundle)?;
        (saved.shim, saved.socket) = self.shim.get().cloned().unzip();
        judged.site.note(&mut saved);
        saved.rootfs = (!request.rootfs.is_empty()).then(|| judged.mount_point.clone());
        saved.by_command = request.command.is_some();
        saved.options = request.options;
        saved.resctrl = judged.resctrl.as_ref().map(Resctrl::own).unwrap_or_default();
        Ok(saved)
    }

    /// Makes the state directory. One that is there already is a living container's, or the leftover of one whose shim
    /// died: that is removed first.
    async fn take_directory(&self, judged: &Judged, saved: &Saved) -> Result<File> {
        let exists = || format!("already exists, in {}", judged.state.path().display());
        let deadline = Instant::now() + TAKE_BOUND;
        loop {
            match judged.state.take(saved)? {
                Taken::Ours(lock) => return Ok(lock),
                Taken::Busy if Instant::now() >= deadline => {
                    return Err(Error::new(Kind::AlreadyExists, "another process is making or removing it"))
                        .context(exists);
                }
                // Not by a lock that waits: the delete of another shim's container may take its time.
                Taken::Busy => tokio::time::sleep(TAKE_PAUSE).await,
                Taken::Theirs(_lock) => {
                    refuse_made(&judged.state).context(exists)?;
                    let removed = remove_saved(&self.hierarchies, &judged.state, Unmount::Beside(self)).await;
                    let living = |e: Error| match e.kind() {
                        Kind::FailedPrecondition => e.with_kind(Kind::AlreadyExists),
                        _ => e,
                    };
                    removed.map_err(living).context(exists)?;
                }
            }
        }
    }

    /// Every effect, each in `remains` before it is made.
    async fn make(
        self: &Rc<Self>,
        judged: &mut Judged,
        process: plan::Process,
        mut saved: Saved,
        remains: &mut Remains,
        init: &mut Option<Rc<Process>>,
        oom: &mut Option<Rc<Oom>>,
    ) -> Result<Rc<Container>> {
        let handed = judged.handed.take();
        let judged = &*judged;
        let request = &judged.request;
        if request.command.is_some() {
            judged.state.keep_config(&judged.config)?;
        }
        let listener = Listener::of(&request.id, &request.bundle, &judged.spec);
        if let Some(listener) = &listener {
            judged.trace.at(Step::Listener);
            self.look_for(listener).await?;
        }
        remains.rootfs = saved.rootfs.clone();
        let mut note = |child: Option<(i32, OwnedFd)>| {
            let Some((pid, pidfd)) = child else {
                (saved.mounting, remains.mounting) = (None, None);
                return Ok(());
            };
            remains.mounting = Some(pidfd);
            saved.mounting = Some(Identity::of(pid)?);
            judged.state.save(&saved)
        };
        judged.trace.at(Step::Mounting);
        self.mount_rootfs(&judged.rootfs_mounts, &judged.mount_point, &mut note).await?;
        let child = Process::new(&request.id, "", request.stdio.clone(), State::Creating);
        child.trace.replace(Some(judged.trace.clone()));
        child.at(Step::Stdio);
        child.handed.replace(handed);
        let (stdio, streams) = console::open_streams(
            self,
            &child,
            &process,
            request.options.pipe_owner(&process, judged.id_maps.as_ref()),
        )
        .await?;
        *child.stdio.borrow_mut() = Some(Rc::new(stdio));

        child.at(Step::Cgroup);
        let mut making = self.make_cgroup(&judged.site, &judged.state, &mut saved, remains).await?;
        let cgroup = making.cgroup.clone();
        judged.resctrl.as_ref().map_or(Ok(()), |resctrl| resctrl.make(&mut remains.resctrl))?;

        child.at(Step::Planning);
        let hooks = Hooks::of(&request.id, &request.bundle, &judged.spec)?;
        if let Some(checkpoint) = &request.restore {
            let prepared = Prepared { init: child, streams, making, saved, hooks, process };
            return self.restorable(judged, checkpoint, prepared, remains);
        }
        let treatment = process.treatment.clone();
        saved.descriptors = checkpoint::names_of(&streams);
        let mut unborn = plan_init(self.own, judged, process, streams, &making, hooks.as_ref().map(Hooks::plan))?;
        unborn.plan.seccomp = judged.seccomp.clone();
        let held = request.command.as_ref().is_some_and(|command| command.fifo);
        if held {
            unborn.plan.hold = Hold::Fifo(fifo::make(&judged.state.path().join(FIFO))?);
            child.stamps.replace(trace::stamps_for(&unborn.plan, judged.state.path()));
        }
        let outside = Outside::of(&unborn.plan, judged.id_maps.as_ref());
        let sources = unborn.plan.sources();
        let net_devices = unborn.plan.net_devices().to_vec();
        // Where the birth fails half-way a child may be there that nobody knows.
        remains.kill = true;
        let _birth = unborn.plan.hops().then(|| BirthUnderWay::of(self));
        self.birth(&child, &unborn)?;
        drop(unborn);
        *init = Some(child.clone());
        child.at(if making.is_by_systemd() { Step::Settling } else { Step::Joining });
        self.settle(&judged.site, &mut making, &request.id, child.child_pid(), remains).await?;
        if let Some(owner) = owner_of_cgroup(judged) {
            cgroup.delegate(owner)?;
        }
        // From here on: what is killed before it is told that the container is there is told after that.
        *oom = cgroup.watch_oom()?.map(Oom::new).map(Rc::new);
        judged.resctrl.as_ref().map_or(Ok(()), |resctrl| resctrl.join(child.child_pid()))?;
        let oom_score_adj = judged.spec.process().as_ref().and_then(|process| process.oom_score_adj());
        child.at(Step::Adjusting);
        self.go(&child, oom_score_adj, &outside)?;
        child.at(Step::Waiting);
        let failed = || "OCI runtime create failed: unable to start container process";
        let mut heard = self.heard(&child, Some(SET_UP_BOUND)).await.context(failed)?;
        if let Heard::WantsDevices = heard {
            let joins = judged.joined.iter().any(|(kind, _)| *kind == Namespace::Network);
            let owner = if joins { Owner::Others } else { Owner::Container };
            child.at(Step::Devices);
            self.move_devices(&child, &net_devices, owner).await.context(failed)?;
            child.at(Step::Waiting);
            heard = self.heard(&child, Some(SET_UP_BOUND)).await.context(failed)?;
        }
        if let (Heard::WantsSources, Some(sources)) = (&heard, sources) {
            child.at(Step::Sources);
            self.send_sources(&child, &sources).await.context(failed)?;
            child.at(Step::Waiting);
            heard = self.heard(&child, Some(SET_UP_BOUND)).await.context(failed)?;
        }
        let poststop = hooks.as_ref().and_then(Hooks::poststop);
        if let (Heard::Hooks, Some(hooks)) = (&heard, &hooks) {
            // From the first of them on there may be something to undo, and more processes than the child.
            saved.poststop = poststop.clone();
            child.at(Step::Saving);
            note_child(&child, &cgroup, judged, &mut saved, remains)?;
            heard = self.run_create_hooks(hooks, &child).await.context(failed)?;
        }
        match heard {
            Heard::Ready => {}
            // The end of the socket alone: it was killed on its way.
            _ => return Err(Error::new(Kind::Internal, "it has died; is its memory limit too low?")).context(failed),
        }

        saved.poststop = poststop;
        child.at(Step::Saving);
        note_child(&child, &cgroup, judged, &mut saved, remains)?;
        if held {
            // With this process its tie to it would end, and by that it.
            sync_of(&child)?.get_ref().release()?;
            let Heard::Alone = self.heard(&child, Some(SET_UP_BOUND)).await.context(failed)? else {
                return Err(Error::new(Kind::Internal, "it was killed")).context(failed);
            };
        }
        Ok(Rc::new(Container {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            namespaces: plan::namespace_flags(&judged.spec).into(),
            id_maps: judged.id_maps.clone(),
            private_pid_ns: namespaces::has_private_pid_ns(&judged.spec),
            oom_score_adj,
            options: request.options,
            cgroup,
            scope: saved.scope,
            updating: Default::default(),
            resctrl: judged.resctrl.clone(),
            init: child,
            seccomp: judged.seccomp.clone(),
            listener,
            treatment,
            execs: Default::default(),
            exec_ended: Default::default(),
            init_reaped: Default::default(),
            freezer: Default::default(),
            resumed: Default::default(),
            in_checkpoint: Default::default(),
            restoring: Default::default(),
            restore: Default::default(),
            stats: Default::default(),
            oom: oom.take().map(OnceCell::from).unwrap_or_default(),
            fifo: held.then(|| judged.state.path().join(FIFO)),
            hooks: std::cell::RefCell::new(hooks.map(Box::new)),
            deleting: Default::default(),
            remains: std::cell::RefCell::new(std::mem::take(remains)),
        }))
    }

    /// Forks, and takes note of the child in the same breath: no exit can come between. One that hops is not yet the process.
    pub(super) fn birth(&self, process: &Rc<Process>, unborn: &Unborn) -> Result<()> {
        process.at(Step::Forking);
        let stamps = process.stamps.take().or_else(|| self.traces.stamps(&process.container, &unborn.plan));
        let place = unborn.place.as_ref();
        let place = place.map(|(target, flags)| Birthplace { target: target.as_fd(), flags: *flags, home: &self.home });
        let cgroup = unborn.cgroup.as_ref().map(AsFd::as_fd);
        let (child, sync) = crate::init::spawn(&unborn.plan, place, cgroup, stamps.as_deref())?;
        if let Some(trace) = &*process.trace.borrow() {
            trace.child(stamps.clone());
        }
        process.stamps.replace(stamps);
        if unborn.plan.hops() {
            self.children.borrow_mut().insert(child.pid, Child::Maker);
            process.maker.replace(Some(child));
        } else {
            self.children.borrow_mut().insert(child.pid, Child::Process(process.clone()));
            process.born(child);
        }
        *process.sync.borrow_mut() = Some(Rc::new(watch(sync, Interest::READABLE)?));
        Ok(())
    }

    /// Does the parent's part of the set-up, and lets the child do its own.
    pub(super) fn go(&self, process: &Process, oom_score_adj: Option<i32>, outside: &Outside) -> Result<()> {
        set_oom_score_adj(process.child_pid(), oom_score_adj)?;
        outside.apply(process.child_pid())?;
        sync_of(process)?.get_ref().go()
    }

    /// Waits until the child says that it is created, or has become its program; at most for `bound`.
    ///
    /// # Errors
    /// What the child says; that it died without a word; that the bound was reached.
    pub(super) async fn heard(self: &Rc<Self>, process: &Rc<Process>, bound: Option<Duration>) -> Result<Heard> {
        let sync = sync_of(process)?;
        let listen = async {
            loop {
                let mut ready = sync.readable().await.os(|| "epoll_wait")?;
                match sync.get_ref().receive()? {
                    Heard::Nothing => ready.clear_ready(),
                    Heard::Console(master) => console::connect(process, master)?,
                    Heard::Born { by, child } => self.note_birth(process, by, child)?,
                    Heard::Failed(error) => return Err(error),
                    other => return Ok(other),
                }
            }
        };
        let Some(bound) = bound else { return listen.await };
        tokio::time::timeout(bound, listen).await.unwrap_or_else(|_| {
            let text = format!("no answer from the container's process within {} s", bound.as_secs());
            Err(Error::new(Kind::DeadlineExceeded, text))
        })
    }

    /// Lets the child go on after the shim's hooks.
    pub(super) fn hooks_done(&self, process: &Process) -> Result<()> {
        match sync_of(process)?.get_ref().hooks_done() {
            // It has died meanwhile: what is heard of it next tells how.
            Err(e) if e.errno() == Some(libc::EPIPE) => Ok(()),
            other => other,
        }
    }

    fn created(self: &Rc<Self>, container: Rc<Container>, request: Request) -> u32 {
        let init = container.init.clone();
        // Its exit will tell, if nothing else does.
        self.watch_oom(&container).unwrap_or_else(|e| log::warn!("{init}: {e}"));
        self.containers.borrow_mut().insert(container.id.clone(), container);
        if let Some(stdio) = &*init.stdio.borrow() {
            stdio.start();
        }
        self.emit(Event::Create {
            id: request.id,
            bundle: request.bundle.to_string_lossy().into_owned(),
            rootfs: request.rootfs,
            stdio: request.stdio,
            pid: init.pid(),
        });
        if let Err(e) = init.advance(lifecycle::Event::Created) {
            log::error!("{e}");
        }
        // It may have been killed between its word and ours.
        self.exited(&init);
        init.trace.take();
        init.pid()
    }

    async fn undo(&self, init: Option<Rc<Process>>, remains: &mut Remains) -> Result<()> {
        if let Some(init) = &init {
            init.give_up_birth();
        }
        if let Some(init) = init.filter(|init| init.pid() != 0) {
            let _ = init.signal(libc::SIGKILL as u32);
            if tokio::time::timeout(KILL_BOUND, init.wait()).await.is_err() {
                log::error!("{init}: process {} does not end", init.pid());
            }
        }
        remains.remove(Unmount::Beside(self)).await
    }
}

/// Refuses the id of a container that the command line has made, until it is deleted; also one that has stopped, as runc does,
/// and one that has no process yet, while its maker lives.
fn refuse_made(state: &StateDir) -> Result<()> {
    match state.load()? {
        Some(saved) if saved.by_command && (saved.init.is_some() || saved.owner.is_alive()) => {
            Err(Error::new(Kind::AlreadyExists, "container with given ID already exists"))
        }
        _ => Ok(()),
    }
}

/// Saves that there is something to be ended and undone when the container goes, by this process or by another.
fn note_child(
    child: &Process,
    cgroup: &Cgroup,
    judged: &Judged,
    saved: &mut Saved,
    remains: &mut Remains,
) -> Result<()> {
    saved.init = Some(Identity::of(child.pid() as i32)?);
    saved.cgroup_inode = cgroup.inode()?;
    saved.cgroup = cgroup.is_anywhere().then(|| cgroup.path().to_owned());
    judged.state.save(saved)?;
    remains.poststop = saved.poststop.clone();
    remains.kill = !namespaces::has_private_pid_ns(&judged.spec);
    Ok(())
}

fn plan_init(
    own: Own,
    judged: &Judged,
    process: plan::Process,
    streams: Streams,
    making: &Making,
    hooks: Option<plan::Hooks>,
) -> Result<Unborn> {
    let views = cgroup_views(&making.cgroup);
    let joined = judged.joined.iter().map(|(kind, fd)| Ok((*kind, fd.try_clone().os(|| "dup")?)));
    let joined = joined.collect::<Result<_>>()?;
    let mut create = plan::create(&judged.spec, &judged.request.bundle, &judged.rootfs, &views, joined)?;
    create.hooks = hooks;
    create.rootless = own.rootless;
    if let Some(rootfs) = &mut create.rootfs {
        rootfs.no_pivot = judged.request.options.no_pivot_root;
        rootfs.host_devices = own.rootless;
    }
    userns::map_owners(&mut create, judged.id_maps.as_ref())?;
    if let Some(maps) = &judged.id_maps {
        create.sources = Sources::of(&create, maps)?.map(Rc::new);
    }
    let joined = create.joined.iter().find(|(kind, _)| *kind == Namespace::Pid);
    // Who is rootless has a helper enter it (`Plan::born_inside`).
    let joined = joined.filter(|_| !create.hops() && !own.rootless);
    let pid_ns = joined.map(|(kind, fd)| fd.try_clone().map(|fd| (fd, kind.flag()))).transpose().os(|| "dup")?;
    unborn(Work::Create(Box::new(create)), process, streams, making.joins()?, pid_ns)
}

/// Puts a plan together: work, program, streams, cgroups.
pub(super) fn unborn(
    work: Work,
    process: plan::Process,
    streams: Streams,
    joins: cgroup::Joins,
    place: Option<(OwnedFd, u64)>,
) -> Result<Unborn> {
    let plan = Plan { work, process, streams, cgroup_files: Vec::new(), hold: Hold::Socket, seccomp: None };
    let mut unborn = Unborn { plan, cgroup: None, place };
    unborn.joins(joins)?;
    Ok(unborn)
}

impl Unborn {
    /// Has it join a cgroup, and no other that it was to join.
    pub fn joins(&mut self, joins: cgroup::Joins) -> Result<()> {
        self.plan.cgroup_files = joins.tasks;
        if let Some(unified) = &joins.unified {
            // For a kernel that does not give birth into it.
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            let procs = rustix::fs::openat(unified, "cgroup.procs", flags, rustix::fs::Mode::empty());
            self.plan.cgroup_files.push((UNIFIED.to_owned(), procs.os(|| "openat cgroup.procs")?));
        }
        self.cgroup = joins.unified;
        Ok(())
    }
}

pub(super) fn sync_of(process: &Process) -> Result<Rc<AsyncFd<ParentEnd>>> {
    let sync = process.sync.borrow().clone();
    sync.ok_or_else(|| Error::new(Kind::Internal, format!("{process}: no child to talk to")))
}

/// Writes the OOM killer's adjustment of a child, which cannot do so itself once it is non-dumpable and not root.
///
/// Without one in the specification it is 0: what the child would inherit is the shim's, which containerd has raised or
/// lowered for the shim. Where that needs a capability which is not there (CAP_SYS_RESOURCE) the inherited one stays, as
/// it does with runc; a value that the specification asks for is an error then, as with runc.
fn set_oom_score_adj(pid: u32, wanted: Option<i32>) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let written = std::fs::write(&path, wanted.unwrap_or(0).to_string());
    match (written, wanted) {
        (Err(e), None) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        (written, _) => written.os(|| format!("write {} to {path}", wanted.unwrap_or(0))),
    }
}

/// Whose the cgroup is to be, on the host, where that is the container's to divide and not root's as it is.
pub(super) fn owner_of_cgroup(judged: &Judged) -> Option<u32> {
    let user = judged.spec.process().as_ref().map_or(0, |process| process.user().uid());
    let owner = judged.id_maps.as_ref().map_or(Some(user), |maps| maps.uids.host(user));
    owner.filter(|owner| *owner != 0 && spec::mounts::gives_cgroup(&judged.spec))
}

/// The hierarchies as a mount of type cgroup shows them.
pub(super) fn cgroup_views(cgroup: &Cgroup) -> plan::Cgroups {
    let view = |view: cgroup::View| plan::CgroupHierarchy {
        links: view.controllers.iter().filter(|name| **name != view.directory_name).cloned().collect(),
        options: Some(view.options),
        name: view.directory_name,
        directory: view.directory,
    };
    let unified = cgroup.unified_view();
    let is_v2 = unified.as_ref().is_some_and(|(_, version)| *version == cgroup::Version::V2);
    let unified = unified.map(|(cgroup::UnifiedView { mount, directory, path }, _)| plan::UnifiedCgroup {
        mount,
        directory,
        path,
        own_namespace: false,
    });
    plan::Cgroups { v1: cgroup.v1_views().into_iter().map(view).collect(), unified, is_v2 }
}

/// The bundle must be an absolute path: the shim's own working directory is no container's.
pub fn absolute_bundle(bundle: &str) -> Result<PathBuf> {
    let path = Path::new(bundle);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(Error::new(Kind::InvalidArgument, format!("bundle {bundle:?} is not an absolute path")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One without a process is its maker's, and of one that died so it is what is left.
    #[test]
    fn the_id_of_a_container_that_is_being_restored_is_taken() {
        let root = std::env::temp_dir().join(format!("dray-refuse-made-{}", std::process::id()));
        let state = StateDir::new(&root, "cli", "one").unwrap();
        let living = Saved { by_command: true, ..Saved::new("one", Path::new("/b")).unwrap() };
        assert!(matches!(state.take(&living).unwrap(), Taken::Ours(_)));
        assert_eq!(refuse_made(&state).unwrap_err().kind(), Kind::AlreadyExists);
        let dead = Saved { owner: Identity { start_time: 1, ..living.owner }, ..living.clone() };
        state.save(&dead).unwrap();
        refuse_made(&state).unwrap();
        state.save(&Saved { init: Some(dead.owner), ..dead }).unwrap();
        assert_eq!(refuse_made(&state).unwrap_err().kind(), Kind::AlreadyExists, "it has stopped");
        std::fs::remove_dir_all(&root).unwrap();
    }
}
