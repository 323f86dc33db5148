//! Hooks in the runtime's namespaces, and the time that the container's own may take.
//!
//! Each is run by a helper of the shim's ([`crate::init::hooks`]), so that the shim answers meanwhile. A container that is
//! being created is not to be seen yet: State and Kill say `NotFound` of it, and so does Delete when it has given the
//! create up, by which a hook that has no timeout can be ended.
//!
//! Hooks die with the shim, with what they have started in their process group: the helper that runs them hears of its
//! end. The `delete` action undoes what they did: by the poststop hooks, which are on disk before the first hook is run.
//! Those themselves live on without the shim. Each is taken note of before it is run, so that it is never run twice, and
//! the `delete` action runs the ones after it.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use oci_spec::runtime::{Hook as Entry, Spec};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::init::hooks::run_outside;
use crate::init::plan;
use crate::init::sync::Heard;
use crate::spec::hooks::{About, Hook, Point, entries, hooks};
use crate::sys::cred;

use super::Engine;
use super::container::{Container, Process};
use super::create::SET_UP_BOUND;
use super::remains::{KILL_BOUND, Unmount};
use super::state::StateDir;
use super::trace::Step;

/// All hooks of a container.
pub struct Hooks {
    about: About,
    /// prestart and createRuntime, in this order.
    at_create: Vec<Hook>,
    create_container: Vec<Hook>,
    start_container: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Entry>,
}

/// The hooks that are run when a container is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poststop {
    about: About,
    hooks: Vec<Entry>,
    /// How many of them have been begun.
    begun: usize,
}

impl Hooks {
    /// Those of a specification; none where it has none.
    pub fn of(id: &str, bundle: &std::path::Path, spec: &Spec) -> Result<Option<Self>> {
        if Point::ALL.into_iter().all(|point| entries(spec, point).is_empty()) {
            return Ok(None);
        }
        let at = |point| hooks(point, entries(spec, point));
        Ok(Some(Self {
            about: About::new(id, bundle, spec),
            at_create: [at(Point::Prestart)?, at(Point::CreateRuntime)?].concat(),
            create_container: at(Point::CreateContainer)?,
            start_container: at(Point::StartContainer)?,
            poststart: at(Point::Poststart)?,
            poststop: entries(spec, Point::Poststop).to_vec(),
        }))
    }

    /// What the container's child has to do with them.
    pub fn plan(&self) -> plan::Hooks {
        plan::Hooks {
            about: self.about.clone(),
            outside: !self.at_create.is_empty(),
            create_container: self.create_container.clone(),
            start_container: self.start_container.clone(),
        }
    }

    /// What is to be run when the container is gone.
    pub fn poststop(&self) -> Option<Poststop> {
        let poststop = || Poststop { about: self.about.clone(), hooks: self.poststop.clone(), begun: 0 };
        (!self.poststop.is_empty()).then(poststop)
    }

    /// How long start may take.
    pub fn start_bound(&self) -> Option<Duration> {
        bound(&self.start_container)
    }
}

/// How long the child may take when it runs `hooks` on its way: as long as they may, which without a timeout is for ever.
fn bound(hooks: &[Hook]) -> Option<Duration> {
    hooks.iter().try_fold(SET_UP_BOUND, |bound, hook| Some(bound.saturating_add(hook.timeout?)))
}

impl Engine {
    /// Runs the hooks of create, the child's among them; returns what is heard of the child after them.
    pub(super) async fn run_create_hooks(self: &Rc<Self>, hooks: &Hooks, child: &Rc<Process>) -> Result<Heard> {
        let pid = Some(child.pid() as i32);
        if !hooks.at_create.is_empty() {
            child.at(Step::Hooks);
            let work = |shim: BorrowedFd<'_>| run_outside(&hooks.at_create, &hooks.about, pid, Some(shim));
            self.in_child_told("running the hooks of create", work).await?;
        }
        self.hooks_done(child)?;
        child.at(Step::Waiting);
        self.heard(child, bound(&hooks.create_container)).await
    }

    /// Runs those hooks of create that runc runs for a container that is restored: the runtime's own.
    pub(super) async fn run_restore_hooks(&self, hooks: &Hooks, pid: i32) -> Result<()> {
        if hooks.at_create.is_empty() {
            return Ok(());
        }
        let work = |shim: BorrowedFd<'_>| run_outside(&hooks.at_create, &hooks.about, Some(pid), Some(shim));
        self.in_child_told("running the hooks of create", work).await
    }

    /// Runs the hooks that follow the start of the container's program. One that fails ends the container
    /// (runtime.md, "Lifecycle", step 9).
    pub(super) async fn run_poststart_hooks(&self, container: &Rc<Container>) -> Result<()> {
        let Some(hooks) = container.hooks.take().filter(|hooks| !hooks.poststart.is_empty()) else { return Ok(()) };
        container.init.at(Step::Poststart);
        let pid = Some(container.init.pid() as i32);
        let work = |shim: BorrowedFd<'_>| run_outside(&hooks.poststart, &hooks.about, pid, Some(shim));
        let Err(error) = self.in_child_told("running the poststart hooks", work).await else { return Ok(()) };
        match Self::kill_process(container, &container.init, libc::SIGKILL as u32) {
            Err(e) if e.kind() != Kind::NotFound => log::error!("{e}"),
            _ => {}
        }
        if tokio::time::timeout(KILL_BOUND, container.init.wait()).await.is_err() {
            log::error!("{}: process {} does not end", container.init, container.init.pid());
        }
        Err(error.context("OCI runtime start failed"))
    }
}

impl Poststop {
    /// Runs those that have not been begun. One that fails is a warning, and the others are run all the same.
    pub(super) async fn run(&mut self, state: Option<&StateDir>, beside: &Unmount<'_>) {
        let Self { about, hooks: entries, begun } = self;
        let warn = |e: Error| log::warn!("container {}: {e}", about.id);
        let all = hooks(Point::Poststop, entries).map_err(warn).unwrap_or_default();
        while let Some(hook) = all.get(*begun..).and_then(<[Hook]>::first) {
            *begun += 1;
            let noted = state.map_or(Ok(()), |state| note(state, *begun));
            noted.unwrap_or_else(|e| warn(e.context("taking note of a hook")));
            let hook = std::slice::from_ref(hook);
            let run = match beside {
                Unmount::Here => run_outside(hook, about, None, None),
                Unmount::Beside(engine) => {
                    let work = || {
                        cred::die_with_parent(false)?;
                        run_outside(hook, about, None, None)
                    };
                    engine.in_child("running a poststop hook", Duration::MAX, work).await
                }
            };
            run.unwrap_or_else(warn);
        }
    }
}

fn note(state: &StateDir, begun: usize) -> Result<()> {
    let Some(mut saved) = state.load()? else { return Ok(()) };
    if let Some(poststop) = &mut saved.poststop {
        poststop.begun = begun;
    }
    state.save(&saved)
}
