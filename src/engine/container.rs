//! A container and its processes, as the shim holds them.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::{Notify, watch};

use crate::cgroup::resctrl::Resctrl;
use crate::cgroup::stats::Source;
use crate::cgroup::{Below, Cgroup};
use crate::error::{Error, Kind, Os, Result};
use crate::init::plan::Process as ProcessPlan;
use crate::init::sync::ParentEnd;
use crate::init::treatment::Treatment;
use crate::spec::id_map::IdMaps;
use crate::sys::fork::Child;
use crate::sys::pidfd;
use crate::sys::seccomp::Filter;
use crate::sys::stamps::Stamps;
use crate::sys::tty::Size;

use super::events::{Exit, StdioUris};
use super::handed::HandedStreams;
use super::hooks::Hooks;
use super::lifecycle::{Event, FreezerState, State};
use super::listener::Listener;
use super::oom::Oom;
use super::options::Options;
use super::place::Scope;
use super::remains::Remains;
use super::restore::Pending;
use super::restoring::Restoring;
use super::stdio::Stdio;
use super::trace::{Step, UnderWay};
use tokio::io::unix::AsyncFd;

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// CLONE_NEW* flags of the namespaces in which it is not the host.
    pub namespaces: Cell<u64>,
    /// The maps of its user namespace, where that is not the host's.
    pub id_maps: Option<IdMaps>,
    /// It has a pid namespace of its own: the kernel ends all of it with its init. Else its cgroup is its only bound.
    pub private_pid_ns: bool,
    /// oom_score_adj of its init, for execs that have none.
    pub oom_score_adj: Option<i32>,
    /// What it was asked to be beside its specification; execs follow it.
    pub options: Options,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The unit that it is, where it is systemd's.
    pub scope: Option<Scope>,
    /// An update of that is under way.
    pub updating: tokio::sync::Mutex<()>,
    /// Its groups in the resctrl file system, which execs join too.
    pub resctrl: Option<Resctrl>,
    /// Its first process.
    pub init: Rc<Process>,
    /// Its seccomp filter, for execs.
    pub seccomp: Option<Rc<Filter>>,
    /// Who answers the calls that the filter leaves to be answered.
    pub listener: Option<Listener>,
    /// How the kernel treats its init, for execs that say nothing else.
    pub treatment: Treatment,
    /// Further processes, by exec id.
    pub execs: RefCell<BTreeMap<String, Rc<Process>>>,
    /// Rings when an exec has ended.
    pub exec_ended: Notify,
    /// Init has been reaped: no more execs, whatever is still to be done before the world is told.
    pub init_reaped: Cell<bool>,
    /// Whether it stands still.
    pub freezer: Cell<FreezerState>,
    /// Rings when it is not to stand still any more.
    pub resumed: Notify,
    /// CRIU is writing it to images.
    pub in_checkpoint: Cell<bool>,
    /// Its restore, while that is under way.
    pub(super) restoring: RefCell<Option<Rc<Restoring>>>,
    /// What its init is to be made of, where that is images, until it is.
    pub(super) restore: RefCell<Option<Box<Pending>>>,
    /// What its numbers are read from, from the first question for them on.
    pub stats: OnceCell<Source>,
    /// Its watch for the OOM killer, where the host has one; that of one to be restored not before it has its cgroup.
    pub oom: OnceCell<Rc<Oom>>,
    /// What it is held by until it is started, where its creator has exited.
    pub fifo: Option<PathBuf>,
    /// Its hooks, until it has been started: their environment may hold secrets.
    pub hooks: RefCell<Option<Box<Hooks>>>,
    /// A delete is under way.
    pub deleting: Cell<bool>,
    /// What is to be taken away at its end.
    pub remains: RefCell<Remains>,
}

impl Container {
    /// Its init (`exec` empty) or an exec.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn process(&self, exec: &str) -> Result<Rc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let missing = || Error::new(Kind::NotFound, format!("container {}: exec {exec}: not found", self.id));
        self.execs.borrow().get(exec).cloned().ok_or_else(missing)
    }

    /// Refuses a container in which nothing can be started any more.
    ///
    /// # Errors
    /// `FailedPrecondition`.
    pub fn refuse_if_ending(&self) -> Result<()> {
        match (self.init_reaped.get(), self.deleting.get()) {
            (false, false) => Ok(()),
            (true, _) => Err(Error::new(
                Kind::FailedPrecondition,
                "cannot start a process in a container that has stopped: its init has exited",
            )),
            _ => Err(Error::new(Kind::FailedPrecondition, "the container is being deleted")),
        }
    }

    /// Its init and all execs.
    pub fn processes(&self) -> Vec<Rc<Process>> {
        std::iter::once(self.init.clone()).chain(self.execs.borrow().values().cloned()).collect()
    }

    /// True while an exec is on its way to its program.
    pub fn has_starting_execs(&self) -> bool {
        self.execs.borrow().values().any(|exec| exec.state() == State::Starting)
    }

    /// True while an exec has a process that has not been reaped.
    pub fn has_running_execs(&self) -> bool {
        self.execs.borrow().values().any(|exec| exec.pid() != 0 && exec.exit().is_none())
    }
}

/// A process of a container: its init or an exec.
pub struct Process {
    /// The container's id.
    pub container: String,
    /// The exec's id; empty for init.
    pub exec: String,
    /// Where its streams go.
    pub uris: StdioUris,
    state: Cell<State>,
    /// The child that does the set-up of one that is to be born in a container's pid namespace, until it is.
    pub maker: RefCell<Option<Child>>,
    pid: Cell<u32>,
    pidfd: OnceCell<OwnedFd>,
    /// An exit that the reaper has seen, before it may be told.
    pub reaped: Cell<Option<Exit>>,
    exit: watch::Sender<Option<Exit>>,
    killed: Cell<bool>,
    /// Its streams, from birth to delete.
    pub stdio: RefCell<Option<Rc<Stdio>>>,
    /// Its streams, where nothing is relayed.
    pub handed: RefCell<Option<HandedStreams>>,
    /// The cgroup below the container's that it is to be in.
    pub below: RefCell<Option<Below>>,
    /// It may be started in a container that is paused.
    pub even_if_paused: Cell<bool>,
    /// The size that its terminal has been given.
    pub size: Cell<Option<Size>>,
    /// The way to the child until it is the program.
    pub sync: RefCell<Option<Rc<AsyncFd<ParentEnd>>>>,
    /// What an exec will be, until it is started. Its environment may hold secrets: it is dropped then.
    pub planned: RefCell<Option<(ProcessPlan, Option<i32>)>>,
    /// What is under way with it, up to its program.
    pub trace: RefCell<Option<Rc<UnderWay>>>,
    /// Where the child leaves the moments of its steps, until it is the program.
    pub stamps: RefCell<Option<Rc<Stamps>>>,
}

impl Process {
    /// A process of `container` that has not been born.
    pub fn new(container: &str, exec: &str, uris: StdioUris, state: State) -> Rc<Self> {
        Rc::new(Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
            uris,
            state: Cell::new(state),
            maker: RefCell::default(),
            pid: Cell::new(0),
            pidfd: OnceCell::new(),
            reaped: Cell::new(None),
            exit: watch::Sender::new(None),
            killed: Cell::default(),
            stdio: RefCell::default(),
            handed: RefCell::default(),
            below: RefCell::default(),
            even_if_paused: Cell::default(),
            size: Cell::default(),
            sync: RefCell::default(),
            planned: RefCell::default(),
            trace: RefCell::default(),
            stamps: RefCell::default(),
        })
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Moves on.
    ///
    /// # Errors
    /// What [`State::after`] says, with the process's name.
    pub fn advance(&self, event: Event) -> Result<()> {
        self.state.set(self.state.get().after(event).map_err(|e| e.context(self.to_string()))?);
        Ok(())
    }

    /// What is under way with it has come to this step.
    pub fn at(&self, step: Step) {
        if let Some(trace) = &*self.trace.borrow() {
            trace.at(step);
        }
    }

    /// Its pid in the shim's pid namespace; 0 before its birth.
    pub fn pid(&self) -> u32 {
        self.pid.get()
    }

    /// The pid of the child that does its set-up: its own, but for one that is still to be born.
    pub fn child_pid(&self) -> u32 {
        self.maker.borrow().as_ref().map_or_else(|| self.pid(), |maker| maker.pid as u32)
    }

    /// A pidfd of the same.
    ///
    /// # Errors
    /// `FailedPrecondition` before any birth.
    pub fn child_pidfd(&self) -> Result<OwnedFd> {
        let maker = self.maker.borrow();
        let pidfd = maker.as_ref().map_or_else(|| self.pidfd(), |maker| Ok(&maker.pidfd))?;
        pidfd.try_clone().os(|| "dup")
    }

    /// It is not to be born any more.
    pub fn give_up_birth(&self) {
        if let Some(maker) = &*self.maker.borrow() {
            let _ = pidfd::kill(&maker.pidfd, libc::SIGKILL as u32); // It may have ended.
        }
    }

    /// It has been born.
    pub fn born(&self, child: Child) {
        self.pid.set(child.pid as u32);
        let _ = self.pidfd.set(child.pidfd);
    }

    /// It has ended before we knew of it.
    pub fn has_ended(&self, pid: u32, exit: Exit) {
        self.pid.set(pid);
        self.reaped.set(Some(exit));
        self.set_exit(exit);
    }

    /// Its pidfd.
    ///
    /// # Errors
    /// `FailedPrecondition` before its birth.
    pub fn pidfd(&self) -> Result<&OwnedFd> {
        self.pidfd.get().ok_or_else(|| Error::new(Kind::FailedPrecondition, format!("{self}: process not started")))
    }

    /// Sends a signal to this process alone; 0 asks only whether it is there (kill(2)).
    ///
    /// # Errors
    /// `NotFound`, in runc's words, when it has ended.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let gone = || Error::new(Kind::NotFound, format!("{self}: process already finished"));
        if self.reaped.get().is_some() {
            return Err(gone());
        }
        let pidfd = self.pidfd()?;
        // A zombie takes signals without complaint, and has ended all the same.
        if pidfd::has_exited(pidfd) {
            return Err(gone());
        }
        if signal == 0 {
            return Ok(());
        }
        pidfd::kill(pidfd, signal).map_err(|e| match e.kind() {
            Kind::NotFound => gone(),
            _ => e.context(self.to_string()),
        })?;
        self.killed.update(|killed| killed || signal == libc::SIGKILL as u32);
        Ok(())
    }

    /// It has been sent SIGKILL from here.
    pub fn was_killed(&self) -> bool {
        self.killed.get()
    }

    /// How it ended, once that may be told.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Tells everyone who waits.
    pub fn set_exit(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// Where its end will be told.
    pub fn exits(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut exits = self.exit.subscribe();
        loop {
            if let Some(exit) = *exits.borrow_and_update() {
                return exit;
            }
            // The sender is ours: it cannot go away.
            let _ = exits.changed().await;
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exec.as_str() {
            "" => write!(f, "container {}", self.container),
            exec => write!(f, "container {}: exec {exec}", self.container),
        }
    }
}
