//! A restore under way: it is given up when its container is to be killed or deleted, for CRIU may say nothing for ever.

use std::pin::pin;
use std::rc::Rc;
use std::time::SystemTime;

use futures::future::{Either, select};
use tokio::sync::Notify;

use crate::error::{Error, Kind, Result};

use super::container::Container;
use super::events::Exit;

/// As a shell has it of what SIGKILL has ended.
const KILLED: u32 = 128 + libc::SIGKILL as u32;

/// Who asks for its end, and who waits for that.
#[derive(Default)]
pub(super) struct Restoring {
    given_up: Notify,
    ended: Notify,
}

/// The restore of a container, which is under way until this is dropped.
pub(super) struct UnderWay<'c> {
    container: &'c Container,
    restoring: Rc<Restoring>,
}

impl<'c> UnderWay<'c> {
    pub(super) fn of(container: &'c Container) -> Self {
        let restoring = Rc::new(Restoring::default());
        container.restoring.replace(Some(restoring.clone()));
        Self { container, restoring }
    }

    /// Does `work`, which is dropped when it is given up.
    ///
    /// # Errors
    /// What `work` says; `Unavailable` when it is given up. An init that has no process yet has ended then, as it would have
    /// with one.
    pub(super) async fn unless_given_up(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        if let Either::Left((done, _)) = select(pin!(work), pin!(self.restoring.given_up.notified())).await {
            return done;
        }
        let init = &self.container.init;
        if init.pid() == 0 {
            init.reaped.set(Some(Exit { status: KILLED, at: SystemTime::now() }));
        }
        Err(Error::new(Kind::Unavailable, "it was killed or deleted meanwhile"))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.container.restoring.take();
        self.restoring.ended.notify_waiters();
    }
}

impl Container {
    /// Gives up a restore that is under way; false where none is.
    pub(super) fn give_up_restore(&self) -> bool {
        let restoring = self.restoring.borrow();
        restoring.as_ref().map(|restoring| restoring.given_up.notify_one()).is_some()
    }

    /// The same, and waits until it has ended.
    pub(super) async fn end_restore(&self) {
        let restoring = self.restoring.borrow().clone();
        if let Some(restoring) = restoring {
            let ended = restoring.ended.notified();
            restoring.given_up.notify_one();
            ended.await;
        }
    }
}
