//! Out of memory: what the kernel kills for it is told, once, and before the exit that it leads to.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use crate::cgroup::{self, Bell, OomWatch};
use crate::error::{Error, Result};

use super::Engine;
use super::container::{Container, Process};
use super::events::Event;
use super::lifecycle::State;
use super::ready::watch;

/// How often the counter is looked at after a bell that rings before the kill, and also for one elsewhere. The last of
/// the pauses between is half a second.
const LOOKS: u32 = 10;

/// How long a bell is left alone that has rung for what is no kill: one at its limit may make room for itself without end,
/// and a kill that ends what is waited for is told before its exit at any rate.
const REST: Duration = Duration::from_millis(100);

/// A container's watch, and what has been told of what it saw.
#[derive(Debug)]
pub struct Oom {
    watch: OomWatch,
    /// Kills that have been told.
    told: Cell<u64>,
    /// Those of them whose victim has not been named.
    nameless: Cell<u64>,
    /// Whose limit it was, the last time.
    whose: RefCell<String>,
    /// The bell has rung, and what for is being looked for.
    looking: Cell<bool>,
    /// Who listens to the bell.
    listener: RefCell<Option<AbortHandle>>,
}

impl Oom {
    /// Of a container about to run.
    pub fn new(watch: OomWatch) -> Self {
        Self {
            watch,
            told: Cell::default(),
            nameless: Cell::default(),
            whose: RefCell::default(),
            looking: Cell::default(),
            listener: RefCell::default(),
        }
    }

    /// Takes note of kills since the last time: how many.
    fn look(&self, id: &str) -> (u64, cgroup::Oom) {
        let seen = self.watch.look().unwrap_or_else(|e| {
            log::warn!("container {id}: {e}");
            None
        });
        let Some(seen) = seen else { return Default::default() };
        let kills = seen.kills.saturating_sub(self.told.replace(seen.kills));
        if kills > 0 {
            self.nameless.update(|nameless| nameless + kills);
            let whose = self.watch.limit_met().map_or_else(|e| e.to_string(), |limit| limit.to_string());
            log::warn!("container {id}: out of memory ({whose}): the kernel has killed {kills} of its processes");
            *self.whose.borrow_mut() = whose;
            self.watch.note_others(self.told.get());
        }
        (kills, seen)
    }

    /// Takes note of kills, once, that probably were here and could not be seen, as the cgroup is gone; true when there were
    /// some. They may have been in another one that has the same above it: it is for the caller to know that something of this
    /// container has died that way.
    fn look_back(&self, id: &str) -> bool {
        let (kills, whose) = match self.watch.missed(self.told.get()) {
            Ok(None) => return false,
            Ok(Some((kills, limit))) => (kills, limit.to_string()),
            Err(e) => {
                log::warn!("container {id}: {e}");
                return false;
            }
        };
        self.told.update(|told| told + kills);
        // The one that there is a word of. Of how many were others' nothing is known.
        self.nameless.set(1);
        log::warn!(
            "container {id}: probably out of memory ({whose}): its cgroup is gone, and the kernel has killed in those above"
        );
        *self.whose.borrow_mut() = whose;
        true
    }

    /// It rang for no kill here.
    fn forget(&self) {
        self.watch.forget();
        self.watch.note_others(self.told.get());
    }

    /// How many kills there were so far, for [`Oom::explain`].
    pub fn mark(&self) -> u64 {
        self.told.get()
    }

    /// An error, with the kill that may be why; of an operation that has begun at `mark`.
    pub fn explain(&self, id: &str, mark: u64, error: Error) -> Error {
        self.look(id);
        let why = match self.watch.missed(self.told.get()) {
            _ if self.told.get() > mark => self.whose.borrow().clone(),
            Ok(Some((_, limit))) => limit.to_string(),
            _ => return error,
        };
        error.context(format!("possibly killed for lack of memory ({why})"))
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
        let Some(oom) = container.oom.get() else { return Ok(()) };
        let Some(bell) = oom.watch.bell() else { return Ok(()) };
        let (bell, kind) = match bell {
            Bell::Eventfd(bell) => (watch(bell, Interest::READABLE)?, Interest::READABLE),
            Bell::Events(bell) => (watch(bell, Interest::PRIORITY)?, Interest::PRIORITY),
        };
        let (engine, weak) = (self.clone(), Rc::downgrade(container));
        let listener = tokio::task::spawn_local(async move {
            while ring(&bell, kind).await && engine.look_for_oom(&weak, kind).await {}
        });
        *oom.listener.borrow_mut() = Some(listener.abort_handle());
        Ok(())
    }

    /// The bell has rung: looks until it is seen what for. False when there is nothing to come.
    async fn look_for_oom(&self, weak: &Weak<Container>, kind: Interest) -> bool {
        let before_the_kill = kind == Interest::READABLE;
        let mut pause = Duration::from_millis(1);
        let mut looks = 0;
        while let Some(container) = weak.upgrade() {
            let Some(oom) = container.oom.get() else { return false };
            let starting = container.init.state() == State::Starting;
            // The victim may be what has just been started: after its start event, unless there always is another one.
            let early = starting || looks < LOOKS && container.has_starting_execs();
            // The kernel rings for the last time when the cgroup is removed.
            let gone = container.deleting.get();
            let told = !gone && !early && self.tell_oom(&container, true);
            let over = gone || told || !early && !before_the_kill || looks == LOOKS;
            oom.looking.set(!over);
            if over && !told {
                oom.forget();
            }
            drop(container);
            if gone {
                return before_the_kill;
            }
            if over && !told && !before_the_kill {
                tokio::time::sleep(REST).await;
            }
            if over {
                return true;
            }
            tokio::time::sleep(pause).await;
            if !starting {
                looks += 1;
                pause *= 2;
            }
        }
        false
    }

    /// Before an exit is told. A kill by the OOM killer has been counted before its victim could die.
    pub(super) fn tell_oom_before_exit(&self, container: &Container, process: &Process, status: u32) {
        let Some(oom) = container.oom.get() else { return };
        let killed = status == 128 + libc::SIGKILL as u32;
        // That one, or one that has rung the bell. A look may cost more than an exec's exit should.
        if killed || oom.looking.get() || oom.watch.is_ringing() {
            self.tell_oom(container, false);
        }
        if killed && process.exec.is_empty() && oom.nameless.get() == 0 {
            self.tell_missed_oom(container);
        }
        if killed && oom.nameless.get() > 0 {
            oom.nameless.update(|kills| kills - 1);
            log::warn!("{process}: killed for lack of memory");
        }
    }

    /// After the end of init, by SIGKILL or on its way to its program, that nothing explains: its cgroup may have been taken away
    /// before it could be asked.
    pub(super) fn tell_missed_oom(&self, container: &Container) {
        let Some(oom) = container.oom.get() else { return };
        if !container.init.was_killed() && oom.look_back(&container.id) {
            self.told_oom(container);
        }
    }

    /// Tells of what has not been told; true when there was something. Where nothing will be killed each ring is told.
    pub(super) fn tell_oom(&self, container: &Container, rung: bool) -> bool {
        let Some(oom) = container.oom.get() else { return false };
        let (kills, seen) = oom.look(&container.id);
        if kills > 0 || rung && seen.stuck {
            self.told_oom(container);
            return true;
        }
        false
    }

    fn told_oom(&self, container: &Container) {
        self.emit(Event::Oom { container: container.id.clone() });
        // For the others of a pod, whose limits are the same, this was elsewhere.
        for other in self.containers.borrow().values().filter(|other| other.id != container.id) {
            if let Some(oom) = other.oom.get() {
                oom.watch.note_others(oom.told.get());
            }
        }
    }
}

/// Waits for the bell; false when it cannot ring any more.
async fn ring(bell: &AsyncFd<Rc<OwnedFd>>, kind: Interest) -> bool {
    let Ok(mut ready) = bell.ready(kind).await else { return false };
    // The other kind is reset by the look, which reads the same file.
    if kind == Interest::READABLE {
        let _ = rustix::io::read(bell.get_ref(), &mut [0; 8]);
    }
    ready.clear_ready();
    true
}
