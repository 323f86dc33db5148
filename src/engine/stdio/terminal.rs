//! The shim's end of a process's terminal.
//!
//! A pty moves at most 4 KiB at a time (N_TTY_BUF_SIZE), so its bytes are read and written: splice(2) would gain nothing.
//!
//! The output ends with the process, when nothing that it wrote is left: a reader of a master that finds none has waited
//! for what was on its way (n_tty_read() flushes it). It does not end with the last slave that is closed, which programs
//! do and open it again (an init system, getty), nor does it last as long as a slave is open in the background: a client
//! waits for the end of the stream. So the shim holds a slave while the process lives, and looks no further after that.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PIPE_BUF;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::relay::{self, Step, TURN};
use crate::engine::ready::watch;
use crate::error::{Os, Result};
use crate::sys::tty::{self, Size};

/// Pause between two looks at a terminal that was hung up (vhangup(2)) while its process lives: what polls it is told of
/// the hang-up for ever.
const HUNG_UP_POLL: Duration = Duration::from_millis(100);

/// A terminal by its master.
pub(super) struct Terminal {
    pub(super) master: AsyncFd<OwnedFd>,
    slave: Cell<Option<OwnedFd>>,
    ended: Cell<bool>,
    end: Notify,
}

impl Terminal {
    /// # Errors
    /// When `master` is not the master of a pty.
    pub(super) fn new(master: OwnedFd) -> Result<Self> {
        let slave = tty::open_slave(&master)?;
        let flags = rustix::fs::fcntl_getfl(&master).os(|| "fcntl F_GETFL of a terminal")?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK).os(|| "fcntl F_SETFL of a terminal")?;
        Ok(Self {
            master: watch(master, Interest::READABLE | Interest::WRITABLE)?,
            slave: Cell::new(Some(slave)),
            ended: Cell::default(),
            end: Notify::new(),
        })
    }

    /// The process has ended.
    pub(super) fn end(&self) {
        self.ended.set(true);
        drop(self.slave.take());
        self.end.notify_waiters();
    }

    pub(super) fn resize(&self, size: Size) -> Result<()> {
        tty::resize(&self.master, size)
    }

    /// Relays what is typed until `fifo` ends; the terminal does not end with it, for its next client.
    ///
    /// # Errors
    /// As [`relay::relay`]; EIO where the terminal has ended is none.
    pub(super) async fn relay_input(&self, fifo: &AsyncFd<OwnedFd>) -> io::Result<()> {
        match relay::relay_by(fifo, &self.master, relay::copy).await {
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(()),
            other => other,
        }
    }

    /// Relays what the process and its children write until the process has ended and all of it is in `fifo`; without
    /// one it is dropped, so that nobody waits for a reader that there will never be.
    ///
    /// # Errors
    /// As [`relay::relay`].
    pub(super) async fn relay_output(&self, fifo: Option<&AsyncFd<OwnedFd>>) -> io::Result<()> {
        let mut held = Vec::new();
        for turn in 1_usize.. {
            // Whether it had ended before the attempt: then what the attempt does not find will never come.
            let ended = self.ended.get();
            let mut readable = if ended { None } else { self.readable().await? };
            let mut writable = match fifo {
                Some(fifo) => Some(fifo.writable().await?),
                None => None,
            };
            let step = match fifo {
                Some(fifo) => relay::copy(&self.master, fifo, &mut held),
                None => discard(&self.master),
            };
            match step {
                Ok(Step::Moved) => {}
                Ok(Step::OutputFull) => writable.iter_mut().for_each(|guard| guard.clear_ready()),
                Ok(Step::InputEmpty | Step::End) | Err(Errno::IO) if ended => break,
                Ok(Step::InputEmpty) if !readable.as_ref().is_some_and(|guard| guard.ready().is_read_closed()) => {
                    readable.iter_mut().for_each(|guard| guard.clear_ready());
                }
                Ok(Step::InputEmpty | Step::End) | Err(Errno::IO) => {
                    select(pin!(tokio::time::sleep(HUNG_UP_POLL)), pin!(self.end.notified())).await;
                }
                Err(e) => return Err(e.into()),
            }
            if turn.is_multiple_of(TURN) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// `None` when the process ends first.
    async fn readable(&self) -> io::Result<Option<tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>>> {
        match select(pin!(self.master.readable()), pin!(self.end.notified())).await {
            Either::Left((guard, _)) => guard.map(Some),
            Either::Right(_) => Ok(None),
        }
    }
}

fn discard(master: &AsyncFd<OwnedFd>) -> rustix::io::Result<Step> {
    match rustix::io::read(master, &mut [0; PIPE_BUF]) {
        Ok(0) => Ok(Step::End),
        Ok(_) => Ok(Step::Moved),
        Err(Errno::AGAIN) => Ok(Step::InputEmpty),
        Err(e) => Err(e),
    }
}
