//! Pause and resume: a container's cgroup frozen and thawed.
//!
//! Freezing takes its time: a task in the middle of a fork, or waiting for a disk, stops later. Only the Pause waits for
//! it, and it gives up when somebody resumes or kills the container meanwhile.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

use super::Engine;
use super::container::Container;
use super::events::Event;
use super::lifecycle::{FreezerEvent, FreezerState, State};

/// How long a container may take to stand still.
const FREEZE_BOUND: Duration = Duration::from_secs(2);

/// The longest time between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// After so many looks the v1 freezer is let go for a moment: it can wait for ever for a task that waits for one which is
/// frozen already (runc: libcontainer/cgroups/fs/freezer.go).
const TRIES: usize = 8;

impl Engine {
    /// Freezes a running container; returns when all of it stands still.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not running, paused already, or resumed or killed meanwhile; `DeadlineExceeded` when
    /// it does not stand still in time. Then it runs on.
    pub async fn pause(self: Rc<Self>, id: String) -> Result<()> {
        let container = self.container(&id)?;
        let name = |e: Error| e.context(format!("container {id}"));
        if container.init.state() != State::Running || container.init_reaped.get() {
            return Err(name(Error::new(Kind::FailedPrecondition, "cannot pause a container that is not running")));
        }
        container.refuse_in_checkpoint().map_err(name)?;
        container.freezer_says(FreezerEvent::Pause).map_err(name)?;
        match freeze(&container).await {
            Ok(true) => {
                container.freezer_says(FreezerEvent::Frozen).map_err(name)?;
                self.emit(Event::Paused { id });
                Ok(())
            }
            // Perhaps another Pause has begun since: there is nothing to take back.
            Ok(false) => Err(name(Error::new(Kind::FailedPrecondition, "resumed or killed before it was paused"))),
            Err(e) => {
                container.freezer_says(FreezerEvent::Failed).map_err(name)?;
                container.cgroup.unfreeze().map_err(name)?;
                Err(name(e))
            }
        }
    }

    /// Lets a paused container run again; also one that is still on its way to be.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is not paused.
    pub fn resume(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let name = |e: Error| e.context(format!("container {id}"));
        let was = container.freezer.get();
        was.after(FreezerEvent::Resume).map_err(name)?;
        container.refuse_in_checkpoint().map_err(name)?;
        container.cgroup.unfreeze().map_err(name)?;
        container.freezer_says(FreezerEvent::Resume).map_err(name)?;
        if was == FreezerState::Frozen {
            self.emit(Event::Resumed { id: id.to_owned() });
        }
        Ok(())
    }
}

impl Container {
    /// Refuses a new process in a container that stands still, or is about to.
    ///
    /// # Errors
    /// `FailedPrecondition`.
    pub fn refuse_if_paused(&self) -> Result<()> {
        match self.freezer.get() {
            FreezerState::Thawed => Ok(()),
            _ => Err(Error::new(Kind::FailedPrecondition, "cannot start a process in a paused container")),
        }
    }

    /// After SIGKILL, or the end of init: it is no longer paused, and must run to die (in the v1 freezer nothing does that
    /// is frozen). Also where it was not we who have frozen it, but CRIU, or somebody by hand.
    pub(super) fn thaw_to_die(&self) -> Result<()> {
        match self.freezer.get() {
            FreezerState::Thawed if !self.cgroup.is_frozen().unwrap_or(false) => return Ok(()),
            FreezerState::Thawed => {}
            _ => self.freezer_says(FreezerEvent::Resume)?,
        }
        self.cgroup.thaw()
    }

    /// Moves on; whoever waits for the frozen state learns that it will not come.
    fn freezer_says(&self, event: FreezerEvent) -> Result<()> {
        self.freezer.set(self.freezer.get().after(event)?);
        if event == FreezerEvent::Resume {
            self.resumed.notify_waiters();
        }
        Ok(())
    }
}

/// True when it stands still, false when somebody has resumed or killed it meanwhile.
async fn freeze(container: &Container) -> Result<bool> {
    let deadline = Instant::now() + FREEZE_BOUND;
    let mut pause = Duration::from_millis(1);
    let mut tries = 0;
    loop {
        tries += 1;
        // An exec on its way to its program goes first: its Start would wait for a process that stands still.
        if !container.has_starting_execs() && container.cgroup.freeze()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            let text = format!("not all of it stands still after {} s", FREEZE_BOUND.as_secs());
            return Err(Error::new(Kind::DeadlineExceeded, text));
        }
        if tries % TRIES == 0 {
            container.cgroup.unfreeze()?;
        }
        if tokio::time::timeout(pause, container.resumed.notified()).await.is_ok() {
            return Ok(false);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
