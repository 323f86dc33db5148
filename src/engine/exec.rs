//! Exec: a further process, recorded first and born at its start: by a child of ours that has joined the container, as a
//! sibling of its own, which so is our child too.

use std::rc::Rc;

use crate::cgroup::{Below, Joins};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::init::plan::{self, Work};
use crate::spec::{load, validate};

use super::Engine;
use super::capabilities::warn_of_unknown;
use super::console;
use super::container::{Container, Process};
use super::create::{SET_UP_BOUND, unborn};
use super::events::{Event, StdioUris};
use super::handed::{Handed, HandedStreams};
use super::lifecycle::State;
use super::trace::{self, Step};
use super::userns::Outside;

/// How an exec of the command line differs from those that containerd asks for.
#[derive(Debug)]
pub struct Apart {
    /// Its streams and what else it is given.
    pub handed: Handed,
    /// Also in a container that is paused: it runs when that is resumed.
    pub even_if_paused: bool,
    /// A cgroup that somebody has made below the container's.
    pub below: Option<Below>,
}

impl Engine {
    /// Records an exec: `spec` is the process's specification, a JSON document.
    ///
    /// # Errors
    /// `AlreadyExists` for a taken exec id, `InvalidArgument` and `Unimplemented` for the specification,
    /// `FailedPrecondition` when the container has stopped.
    pub fn exec(&self, id: &str, exec: &str, spec: &[u8], uris: StdioUris) -> Result<()> {
        self.record(id, exec, spec, uris, None)
    }

    /// The same, as the command line wants it.
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub fn exec_apart(&self, id: &str, exec: &str, spec: &[u8], apart: Apart) -> Result<()> {
        let terminal = matches!(apart.handed.streams, Some(HandedStreams::Console(_)));
        self.record(id, exec, spec, StdioUris { terminal, ..StdioUris::default() }, Some(apart))
    }

    fn record(&self, id: &str, exec: &str, spec: &[u8], uris: StdioUris, apart: Option<Apart>) -> Result<()> {
        let container = self.container(id)?;
        let trace = self.traces.begin(trace::Kind::Exec, id, exec, Step::Judging);
        let name = |e: Error| e.context(format!("container {id}: exec {exec}"));
        if exec.is_empty() || exec == id {
            return Err(name(Error::new(Kind::InvalidArgument, "not an id for an exec")));
        }
        if container.execs.borrow().contains_key(exec) {
            return Err(name(Error::new(Kind::AlreadyExists, "already exists")));
        }
        container.refuse_if_ending().map_err(name)?;
        container.refuse_in_checkpoint().map_err(name)?;
        if container.init.pid() == 0 {
            return Err(name(Error::new(
                Kind::FailedPrecondition,
                "cannot exec in a container that is to be restored",
            )));
        }
        if !apart.as_ref().is_some_and(|apart| apart.even_if_paused) {
            container.refuse_if_paused().map_err(name)?;
        }
        let mut unknown = Vec::new();
        let mut spec = load::load_process(spec, &mut unknown).map_err(name)?;
        // Whatever it says itself (containerd: process.Init.exec).
        spec.set_terminal(Some(uris.terminal));
        validate::validate_process(&spec).map_err(name)?;
        container.id_maps.as_ref().map_or(Ok(()), |maps| maps.judge_process(&spec)).map_err(name)?;
        let mut planned = plan::process(&spec, None).map_err(name)?;
        planned.treatment = planned.treatment.or(&container.treatment);
        let of = format!("container {id}: exec {exec}");
        warn_of_unknown(&of, &unknown);
        self.take_ungrantable(&of, container.id_maps.as_ref(), &mut planned.capabilities);
        self.leave_groups(&of, &mut planned);
        planned.session_keyring = !container.options.no_new_keyring;
        let process = Process::new(id, exec, uris, State::Created);
        if let Some(mut apart) = apart {
            process.handed.replace(apart.handed.take(&mut planned).map_err(name)?);
            process.below.replace(apart.below);
            process.even_if_paused.set(apart.even_if_paused);
        }
        *process.planned.borrow_mut() = Some((planned, spec.oom_score_adj()));
        trace.at(Step::Client);
        process.trace.replace(Some(trace));
        container.execs.borrow_mut().insert(exec.to_owned(), process);
        self.emit(Event::ExecAdded { container: id.to_owned(), exec: exec.to_owned() });
        Ok(())
    }

    /// Gives birth to a recorded exec.
    pub(super) async fn start_exec(self: &Rc<Self>, container: &Rc<Container>, process: &Rc<Process>) -> Result<()> {
        let planned = process.planned.borrow_mut().take();
        let (planned, oom_score_adj) =
            planned.ok_or_else(|| Error::new(Kind::FailedPrecondition, "it has failed to start before"))?;
        process.at(Step::Stdio);
        let owner = container.options.pipe_owner(&planned, container.id_maps.as_ref());
        let (stdio, streams) = console::open_streams(self, process, &planned, owner).await?;
        stdio.start();
        *process.stdio.borrow_mut() = Some(Rc::new(stdio));
        process.at(Step::Planning);
        let init = container.init.pidfd()?;
        let work =
            Work::Exec(plan::Exec { init: init.try_clone().os(|| "dup")?, namespaces: container.namespaces.get() });
        let mut unborn = unborn(work, planned, streams, Joins::default(), None)?;
        unborn.plan.seccomp = container.seccomp.clone();
        let outside = Outside::of(&unborn.plan, container.id_maps.as_ref());
        let _birth = BirthUnderWay::of(self);
        // A user's systemd has made the cgroup, perhaps where we may not move processes, as from a login session.
        let by_systemd = container.scope.as_ref().filter(|_| !container.cgroup.is_in_reach());
        let below = process.below.take();
        if below.is_some() && by_systemd.is_some() {
            let text = "its cgroup is a user's systemd's: no process can be put into one below it";
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        container.cgroup.beside(container.init.child_pid(), |joins| {
            let joins = below.as_ref().map_or(Ok(joins), |below| container.cgroup.joins_below(below))?;
            unborn.joins(if by_systemd.is_some() { Joins::default() } else { joins })?;
            if unborn.plan.process.treatment.initial_cpus.is_some() {
                // It has to be out of the container's cgroup first: it moves itself.
                unborn.cgroup = None;
            }
            self.birth(process, &unborn)
        })?;
        drop(unborn);
        process.at(Step::Joining);
        if let Some(scope) = by_systemd {
            scope.attach(process.child_pid()).await?;
        }
        container.resctrl.as_ref().map_or(Ok(()), |resctrl| resctrl.join(process.child_pid()))?;
        process.at(Step::Adjusting);
        self.go(process, oom_score_adj.or(container.oom_score_adj), &outside)?;
        self.executed(container, process, Some(SET_UP_BOUND))
            .await
            .context(|| "OCI runtime exec failed: exec failed: unable to start container process")
    }
}

/// While there is one, exits of unknown children are kept: one may be of the process that we are to hear of.
pub(super) struct BirthUnderWay<'a>(&'a Engine);

impl<'a> BirthUnderWay<'a> {
    pub fn of(engine: &'a Engine) -> Self {
        engine.births.update(|births| births + 1);
        Self(engine)
    }
}

impl Drop for BirthUnderWay<'_> {
    fn drop(&mut self) {
        self.0.births.update(|births| births - 1);
        if self.0.births.get() == 0 {
            self.0.strangers.borrow_mut().clear();
        }
    }
}
