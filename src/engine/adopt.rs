//! A container that another process has made, which is no more, or was the command line: known by its state on disk, its
//! specification, and what the kernel says of it.
//!
//! Its init is no child of ours. That it has ended is seen by its pidfd, and how is not known here.

use std::cell::{OnceCell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use tokio::io::Interest;

use crate::cgroup::resctrl::Resctrl;
use crate::cgroup::{Cgroup, Hierarchies};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::init::plan;
use crate::init::treatment::Treatment;
use crate::spec::id_map::{self, IdMap, IdMaps};
use crate::spec::{load, namespaces, validate};
use crate::sys::fork::Child;
use crate::sys::ns::{self, Namespace};
use crate::sys::{pidfd, userns};

use super::Engine;
use super::container::{Container, Process};
use super::events::{Exit, StdioUris};
use super::fifo;
use super::hooks::Hooks;
use super::lifecycle::{FreezerState, State};
use super::listener::Listener;
use super::oom::Oom;
use super::ready::watch;
use super::remains::{self, Remains};
use super::restore::own_time_namespace;
use super::state::{FIFO, Identity, Saved, StateDir};
use super::trace;

/// How a process that was no child of ours is said to have ended.
const UNKNOWN: u32 = 255;

/// What is to be said of a container (runtime.md, "State"), with runc's `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is being made.
    Creating,
    /// Made, and not started.
    Created,
    /// Its program runs.
    Running,
    /// It stands still.
    Paused,
    /// Its program has ended.
    Stopped,
}

impl Status {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// Where a container is in its life, by its state on disk and what the kernel says. Asks nobody, and waits for nobody.
pub fn status_of(hierarchies: &Hierarchies, state: &StateDir, saved: &Saved) -> Status {
    let Some(init) = saved.init.filter(Identity::is_alive) else {
        let making = saved.init.is_none() && saved.owner.is_alive();
        return if making { Status::Creating } else { Status::Stopped };
    };
    if is_held(state, saved, init) {
        return Status::Created;
    }
    // A `run` is about to start it, which is nobody else's to do.
    if saved.by_command && is_no_program_yet(saved, init) {
        return Status::Creating;
    }
    match remains::cgroup_of(hierarchies, saved) {
        Ok(Some(cgroup)) if cgroup.is_frozen().unwrap_or(false) => Status::Paused,
        _ => Status::Running,
    }
}

/// Whether its init waits to be started, by whoever does it: at a fifo; or by its shim, which holds it by a socket.
fn is_held(state: &StateDir, saved: &Saved, init: Identity) -> bool {
    match saved.by_command {
        true => fifo::holds(&state.path().join(FIFO)),
        false => is_no_program_yet(saved, init),
    }
}

/// Whether its init still is a copy of its owner.
fn is_no_program_yet(saved: &Saved, init: Identity) -> bool {
    let executable = |pid: i32| std::fs::metadata(format!("/proc/{pid}/exe")).map(|exe| (exe.dev(), exe.ino())).ok();
    saved.owner.is_alive() && executable(init.pid).is_some_and(|exe| executable(saved.owner.pid) == Some(exe))
}

/// The specification of a container: the command line's copy, or what is in the bundle.
///
/// # Errors
/// As [`load::load`].
pub fn spec_of(state: &StateDir, saved: &Saved) -> Result<Spec> {
    let directory = if saved.by_command { state.path() } else { &saved.bundle };
    load::load(directory, &mut Vec::new())
}

fn saved_in(state: &StateDir) -> Result<Saved> {
    state.load()?.ok_or_else(|| Error::new(Kind::NotFound, "container does not exist"))
}

impl Engine {
    /// Takes over the container whose state this is. Its directory is to be locked by the caller, as long as it changes
    /// anything: to send it a signal is no change.
    ///
    /// # Errors
    /// `NotFound` where there is none; `FailedPrecondition` where its shim lives, or it is being made; what is wrong with its
    /// specification.
    pub fn adopt(self: &Rc<Self>, state: &StateDir) -> Result<Rc<Container>> {
        let saved = saved_in(state)?;
        if saved.has_living_shim() {
            let text = format!("its shim, process {}, is alive", saved.owner.pid);
            return Err(Error::new(Kind::FailedPrecondition, text)).context(|| format!("container {}", saved.id));
        }
        self.adopt_saved(state, &saved)
    }

    /// The same of a container whose shim may be alive: for an exec that a shim cannot be asked for, and nothing else.
    ///
    /// # Errors
    /// As [`Engine::adopt`]'s.
    pub fn adopt_beside_owner(self: &Rc<Self>, state: &StateDir) -> Result<Rc<Container>> {
        self.adopt_saved(state, &saved_in(state)?)
    }

    fn adopt_saved(self: &Rc<Self>, state: &StateDir, saved: &Saved) -> Result<Rc<Container>> {
        let name = || format!("container {}", saved.id);
        if saved.init.is_none() && saved.owner.is_alive() {
            return Err(Error::new(Kind::FailedPrecondition, "it is being created")).context(name);
        }
        let spec = spec_of(state, saved).context(name)?;
        let container = self.container_of(state, saved, &spec).context(name)?;
        self.containers.borrow_mut().insert(container.id.clone(), container.clone());
        if container.init.state() != State::Stopped {
            self.hear_of_end(&container.init)?;
            self.watch_oom(&container).unwrap_or_else(|e| log::warn!("{}: {e}", container.init));
        }
        Ok(container)
    }

    fn container_of(&self, state: &StateDir, saved: &Saved, spec: &Spec) -> Result<Rc<Container>> {
        let process = validate::validate(spec)?;
        let linux = spec.linux().as_ref();
        let flags = plan::namespace_flags(spec);
        let (init, living) = adopted_init(state, saved, flags);
        let mut remains = Remains { state: Some(state.clone()), ..Remains::default() };
        remains.of_saved(&self.hierarchies, saved)?;
        let cgroup = match remains::cgroup_of(&self.hierarchies, saved)? {
            Some(cgroup) => cgroup,
            // Its path may be another container's by now.
            None => Cgroup::nowhere(&self.hierarchies, saved.cgroup.as_deref().unwrap_or(saved.id.as_ref())),
        };
        let frozen = living.is_some() && cgroup.is_frozen()?;
        let oom = living.is_some().then(|| cgroup.watch_oom()).transpose()?.flatten();
        let profile = linux.and_then(|linux| linux.seccomp().as_ref());
        let rdt = linux.and_then(|linux| linux.intel_rdt().as_ref());
        Ok(Rc::new(Container {
            id: saved.id.clone(),
            bundle: saved.bundle.clone(),
            // One that was restored may have more of them.
            namespaces: (flags | living.map_or(0, own_time_namespace)).into(),
            id_maps: id_maps(spec, living)?,
            private_pid_ns: namespaces::has_private_pid_ns(spec),
            oom_score_adj: process.oom_score_adj(),
            options: saved.options,
            cgroup,
            scope: saved.scope.clone(),
            updating: Default::default(),
            resctrl: rdt.map(|rdt| Resctrl::plan(rdt, &saved.id)).transpose()?,
            init_reaped: std::cell::Cell::new(living.is_none()),
            init,
            seccomp: profile.map(|profile| self.filters.get(profile)).transpose()?,
            listener: Listener::of(&saved.id, &saved.bundle, spec),
            treatment: Treatment::of(process, linux)?,
            execs: Default::default(),
            exec_ended: Default::default(),
            freezer: std::cell::Cell::new(if frozen { FreezerState::Frozen } else { FreezerState::Thawed }),
            resumed: Default::default(),
            in_checkpoint: Default::default(),
            restoring: Default::default(),
            restore: Default::default(),
            stats: Default::default(),
            oom: oom.map(Oom::new).map(Rc::new).map(OnceCell::from).unwrap_or_default(),
            fifo: saved.by_command.then(|| state.path().join(FIFO)),
            hooks: RefCell::new(Hooks::of(&saved.id, &saved.bundle, spec)?.map(Box::new)),
            deleting: Default::default(),
            remains: RefCell::new(remains),
        }))
    }

    /// Waits for the end of a process that is no child of ours, beside all else.
    fn hear_of_end(self: &Rc<Self>, process: &Rc<Process>) -> Result<()> {
        let pidfd: OwnedFd = process.pidfd()?.try_clone().os(|| "dup")?;
        let ended = watch(pidfd, Interest::READABLE)?;
        let (engine, process) = (self.clone(), process.clone());
        tokio::task::spawn_local(async move {
            // The kernel lets it be polled, or the wait was never begun.
            let _ = ended.readable().await;
            engine.reaped(&process, unknown_exit());
        });
        Ok(())
    }
}

fn unknown_exit() -> Exit {
    Exit { status: UNKNOWN, at: SystemTime::now() }
}

/// Its init, and the pid of that where it lives.
fn adopted_init(state: &StateDir, saved: &Saved, namespaces: u64) -> (Rc<Process>, Option<i32>) {
    let found = saved.init.and_then(|init| Some((init, init.open()?)));
    let Some((init, pidfd)) = found.filter(|(_, pidfd)| !pidfd::has_exited(pidfd)) else {
        let process = Process::new(&saved.id, "", StdioUris::default(), State::Stopped);
        process.has_ended(saved.init.map_or(0, |init| init.pid as u32), unknown_exit());
        return (process, None);
    };
    let at = if is_held(state, saved, init) { State::Created } else { State::Running };
    let process = Process::new(&saved.id, "", StdioUris::default(), at);
    process.born(Child { pid: init.pid, pidfd });
    if at == State::Created {
        process.stamps.replace(trace::stamps_in(state.path(), namespaces));
    }
    (process, Some(init.pid))
}

/// The maps of its user namespace. One that it has joined by a path is looked at where it is now.
fn id_maps(spec: &Spec, living: Option<i32>) -> Result<Option<IdMaps>> {
    let joins = namespaces::namespace(spec, LinuxNamespaceType::User).is_some_and(|user| user.path.is_some());
    let (true, Some(pid)) = (joins, living) else { return id_map::new_maps(spec) };
    let users = ns::open_path(Namespace::User, &PathBuf::from(format!("/proc/{pid}/ns/user")))?;
    let [uids, gids] = userns::maps(users.as_fd())?.map(|text| {
        IdMap::parse(&text).ok_or_else(|| Error::new(Kind::Internal, format!("not a map of ids: {text:?}")))
    });
    Ok(Some(IdMaps { uids: uids?, gids: gids? }))
}
