//! Containers: their lifecycle, and every operation on them.
//!
//! One thread, one owner: everything here lives in a `LocalSet`, shared by `Rc`, and no borrow is held across an await.
//! An operation waits only for the process or the file that it is about, so a container that is slow to be created, or
//! to die, holds up no other and not even questions about itself.
//!
//! [`lifecycle`] says what may happen when; [`create`], [`exec`], [`signal`] and [`delete`] do it; [`checkpoint`] and
//! [`restore`] take it to a file and back, which [`restoring`] gives up; [`place`] is where it is among cgroups, by
//! [`systemd`] if need be; [`adopt`] takes over what another process has made, [`fifo`] holds what its creator leaves,
//! [`handed`] is what a process has of its caller, and [`host`] what an engine's own process is; [`pause`] and [`update`]
//! change it while it runs; [`hooks`] are run on its way; [`reaper`] is the only one who waits for children, [`oom`] hears
//! of lack of memory; [`remains`] takes away what is left of a container, whoever made it; [`state`] is what of it is on
//! disk; [`trace`] tells where the time of all that went.

pub mod adopt;
mod capabilities;
pub mod checkpoint;
mod console;
pub mod container;
pub mod create;
pub mod criu;
pub mod delete;
mod descriptors;
pub mod events;
pub mod exec;
pub mod fifo;
mod filters;
pub mod handed;
mod helper;
pub mod hooks;
pub mod host;
pub mod lifecycle;
mod listener;
mod net_devices;
pub mod oom;
pub mod options;
pub mod pause;
pub mod place;
mod program;
pub mod ready;
pub mod reaper;
pub mod remains;
pub mod restore;
mod restoring;
pub mod rootfs;
pub mod signal;
pub mod start;
pub mod state;
pub mod stats;
pub mod stdio;
pub mod systemd;
pub mod trace;
pub mod update;
mod userns;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::cgroup::Hierarchies;
use crate::error::{Error, Kind, Result};
use crate::sys::ns::Home;
use crate::sys::userns::Own;
use container::{Container, Process};
use events::{Event, Exit};

/// All containers of one shim.
pub struct Engine {
    /// containerd's namespace.
    namespace: String,
    /// The shim's id, by which containerd asks for its removal, and its socket; none where no shim is.
    shim: OnceCell<(String, PathBuf)>,
    /// Where state is kept ([`state::ROOT`], elsewhere in tests).
    state_root: PathBuf,
    hierarchies: Hierarchies,
    /// What our user namespace leaves us.
    own: Own,
    /// Our namespaces, to come back to after the birth of a child in others.
    home: Home,
    publish: Box<dyn Fn(Event)>,
    containers: RefCell<HashMap<String, Rc<Container>>>,
    /// No container is created any more.
    closed: Cell<bool>,
    /// Ids on their way into `containers`.
    creating: RefCell<HashMap<String, Rc<create::Creating>>>,
    /// Our children by pid, from the moment of their birth until they are reaped.
    children: RefCell<HashMap<i32, helper::Child>>,
    /// Births that are under way in containers' pid namespaces, of which we hear after the fact.
    births: Cell<usize>,
    /// Exits of children that were not known meanwhile.
    strangers: RefCell<HashMap<i32, Exit>>,
    /// The seccomp filters of its containers.
    filters: filters::Filters,
    /// The capabilities that we have to grant, from the first container on.
    capabilities: OnceCell<u64>,
    /// Where the time of its last operations went.
    traces: trace::Traces,
}

impl Engine {
    /// An engine without containers, whose events go to `publish` in their order.
    ///
    /// # Errors
    /// When the host has no cgroups that can be used.
    pub fn new(namespace: &str, state_root: PathBuf, publish: Box<dyn Fn(Event)>) -> Result<Rc<Self>> {
        Self::new_with(namespace, state_root, publish, None)
    }

    /// The same where it is said, and not to be found out, whether it goes without the cgroups that are not its to write to.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn new_with(
        namespace: &str,
        state_root: PathBuf,
        publish: Box<dyn Fn(Event)>,
        without_cgroups: Option<bool>,
    ) -> Result<Rc<Self>> {
        let own = crate::sys::userns::own()?;
        Ok(Rc::new(Self {
            namespace: namespace.to_owned(),
            shim: OnceCell::new(),
            state_root,
            hierarchies: Hierarchies::discover()?.rootless(without_cgroups.unwrap_or(own.rootless)),
            own,
            home: Home::here()?,
            publish,
            containers: RefCell::default(),
            closed: Cell::default(),
            creating: RefCell::default(),
            children: RefCell::default(),
            births: Cell::default(),
            strangers: RefCell::default(),
            filters: filters::Filters::default(),
            capabilities: OnceCell::new(),
            traces: trace::Traces::default(),
        }))
    }

    /// Writes the id of the shim that this is, and where it listens, into the state of every container to come.
    pub fn serve_as(&self, shim: &str, socket: &Path) {
        let _ = self.shim.set((shim.to_owned(), socket.to_owned()));
    }

    /// The host's cgroups, as this process may use them.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The container `id`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn container(&self, id: &str) -> Result<Rc<Container>> {
        self.containers
            .borrow()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::new(Kind::NotFound, format!("container {id}: not found")))
    }

    /// The init (`exec` empty) or an exec of a container.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn process(&self, id: &str, exec: &str) -> Result<Rc<Process>> {
        self.container(id)?.process(exec)
    }

    /// The pids of everything in a container, with the id of the exec that a pid is the process of.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn pids(&self, id: &str) -> Result<Vec<(u32, Option<String>)>> {
        let container = self.container(id)?;
        let mut pids = container.cgroup.procs().map_err(|e| e.context(format!("container {id}")))?;
        // A shim whose list is empty is taken for one that has leaked and is removed by a containerd that starts (from 1.7
        // on: loadShim), with the exit status that was not asked for yet. So init is in it: a living one even where something
        // has moved it out of its cgroup, one that has ended until it is deleted, as in State.
        let init = container.init.pid();
        if !pids.contains(&init) && (container.init.reaped.get().is_none() || pids.is_empty()) {
            pids.push(init);
        }
        let execs = container.execs.borrow();
        let exec_of = |pid| execs.values().find(|exec| exec.pid() == pid && exec.reaped.get().is_none());
        Ok(pids.into_iter().map(|pid| (pid, exec_of(pid).map(|exec| exec.exec.clone()))).collect())
    }

    /// Takes no container any more, where there is none and none is on its way. Returns whether that is so from now on:
    /// not when it was so before.
    pub fn close(&self) -> bool {
        self.is_empty() && !self.closed.replace(true)
    }

    /// True when there is no container, and none on its way.
    pub fn is_empty(&self) -> bool {
        self.containers.borrow().is_empty() && self.creating.borrow().is_empty()
    }

    fn emit(&self, event: Event) {
        (self.publish)(event);
    }

    /// One line a process, for the log of an operator who asks (SIGUSR1).
    pub fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for container in self.containers.borrow().values() {
            for process in container.processes() {
                lines.push(format!("{}: {:?}, pid {}", process, process.state(), process.pid()));
            }
        }
        lines.sort();
        lines
    }
}
