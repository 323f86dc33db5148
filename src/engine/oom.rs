//! Out of memory: what the kernel kills for it is told, once, and before the exit that it leads to.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use crate::cgroup::OomWatch;
use crate::error::Result;

use super::Engine;
use super::container::Container;
use super::events::Event;
use super::lifecycle::State;
use super::ready::watch;

/// How often the counter is looked at after the bell: it rings before the kill, and also for one elsewhere. The last of
/// the pauses between is half a second.
const LOOKS: u32 = 10;

/// A container's watch, and what has been told of what it saw.
#[derive(Debug)]
pub struct Oom {
    watch: OomWatch,
    /// Kills that have been told.
    told: Cell<u64>,
    /// The bell has rung, and what for is being looked for.
    looking: Cell<bool>,
    /// Who listens to the bell.
    listener: RefCell<Option<AbortHandle>>,
}

impl Oom {
    /// Of a container about to run.
    pub fn new(watch: OomWatch) -> Self {
        Self { watch, told: Cell::default(), looking: Cell::default(), listener: RefCell::default() }
    }
}

impl Drop for Oom {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
    }
}

impl Engine {
    /// Sees to it that a container's lack of memory is told while nothing of it ends.
    pub(super) fn watch_oom(self: &Rc<Self>, container: &Rc<Container>) -> Result<()> {
        let Some(oom) = &container.oom else { return Ok(()) };
        let Some(bell) = oom.watch.bell() else { return Ok(()) };
        let bell = watch(bell, Interest::READABLE)?;
        let (engine, weak) = (self.clone(), Rc::downgrade(container));
        let listener = tokio::task::spawn_local(async move {
            while ring(&bell).await {
                engine.look_for_oom(&weak).await;
            }
        });
        *oom.listener.borrow_mut() = Some(listener.abort_handle());
        Ok(())
    }

    /// The bell has rung: looks until it is seen what for.
    async fn look_for_oom(&self, weak: &Weak<Container>) {
        let mut pause = Duration::from_millis(1);
        let mut looks = 0;
        while let Some(container) = weak.upgrade() {
            let Some(oom) = &container.oom else { return };
            let starting = container.init.state() == State::Starting;
            // The victim may be what has just been started: after its start event, unless there always is another one.
            let early = starting || looks < LOOKS && container.has_starting_execs();
            // The kernel rings for the last time when the cgroup is removed.
            let over = container.deleting.get() || !early && self.tell_oom(&container, true) || looks == LOOKS;
            oom.looking.set(!over);
            if over {
                return;
            }
            drop(container);
            tokio::time::sleep(pause).await;
            if !starting {
                looks += 1;
                pause *= 2;
            }
        }
    }

    /// Before an exit is told. A kill by the OOM killer has been counted before its victim could die.
    pub(super) fn tell_oom_before_exit(&self, container: &Container, status: u32) {
        let Some(oom) = &container.oom else { return };
        // That one, or one that has rung the bell. A look costs more than an exec's exit should.
        if status == 128 + libc::SIGKILL as u32 || oom.looking.get() || oom.watch.is_ringing() {
            self.tell_oom(container, false);
        }
    }

    /// Tells of what has not been told; true when there was something. Where nothing will be killed each ring is told.
    fn tell_oom(&self, container: &Container, rung: bool) -> bool {
        let Some(oom) = &container.oom else { return false };
        let seen = oom.watch.look().unwrap_or_else(|e| {
            log::warn!("container {}: {e}", container.id);
            Default::default()
        });
        let killed = seen.kills > oom.told.get();
        oom.told.set(seen.kills);
        if killed || rung && seen.stuck {
            self.emit(Event::Oom { container: container.id.clone() });
            return true;
        }
        false
    }
}

/// Waits for the bell; false when it cannot ring any more.
async fn ring(bell: &AsyncFd<Rc<OwnedFd>>) -> bool {
    let Ok(mut ready) = bell.readable().await else { return false };
    let _ = rustix::io::read(bell.get_ref(), &mut [0; 8]);
    ready.clear_ready();
    true
}
