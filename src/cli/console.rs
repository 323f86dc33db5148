//! The caller's terminal, while a container that has one of its own runs in the foreground: what is typed goes to that, what
//! it says comes out here, and its size follows.
//!
//! The descriptors are the caller's, shared with it: their flags are left alone, so every read and write is preceded by a
//! look whether it would wait. What is no terminal, nor a pipe (a file, /dev/null), never does.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::engine::ready::watch;
use crate::error::{Os, Result};
use crate::sys::tty::{self, Size};

/// How much is moved at a time. No more: a terminal takes as much without waiting when it is ready at all.
pub const CHUNK: usize = 1024;

/// Between two looks at a terminal that nobody has open.
const PAUSE: Duration = Duration::from_millis(20);

/// How long what a program has written as its last may take to come out.
const LAST_BOUND: Duration = Duration::from_secs(10);

/// The caller's terminal in raw mode; as it was when this is dropped.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Of the first of our streams that is a terminal; `None` where none is.
    ///
    /// # Errors
    /// What tcsetattr(3) says.
    pub fn of_ours() -> Result<Option<Self>> {
        let Some(terminal) = ours() else { return Ok(None) };
        let terminal = terminal.try_clone_to_owned().os(|| "dup of the terminal")?;
        let before = tcgetattr(&terminal).os(|| "tcgetattr")?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output is as the container's own terminal has made it (runc: console.SetRaw keeps it so, too).
        tcsetattr(&terminal, OptionalActions::Now, &raw).os(|| "tcsetattr")?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// The caller's terminal: the first of our streams that is one.
pub fn ours() -> Option<BorrowedFd<'static>> {
    [rustix::stdio::stderr(), rustix::stdio::stdout(), rustix::stdio::stdin()].into_iter().find(|stream| isatty(stream))
}

/// The container's terminal.
pub struct Console {
    master: AsyncFd<OwnedFd>,
    /// Its process has ended: what is there is all that will come.
    ended: Cell<bool>,
    end: Notify,
}

impl Console {
    /// By its master, of the size of the caller's terminal where that is one.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn new(master: OwnedFd) -> Result<Rc<Self>> {
        let flags = rustix::fs::fcntl_getfl(&master).os(|| "fcntl F_GETFL of a terminal")?;
        let nonblocking = flags | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&master, nonblocking).os(|| "fcntl F_SETFL of a terminal")?;
        let master = watch(master, Interest::READABLE | Interest::WRITABLE)?;
        let console = Rc::new(Self { master, ended: Cell::new(false), end: Notify::new() });
        console.follow_size();
        Ok(console)
    }

    /// Gives it the size of the caller's terminal.
    pub fn follow_size(&self) {
        let Some(size) = ours().and_then(|terminal| tcgetwinsize(terminal).ok()) else { return };
        // One of no size, as a new pty is, says nothing.
        if size.ws_col > 0 || size.ws_row > 0 {
            let _ = tty::resize(&self.master, Size { width: size.ws_col, height: size.ws_row });
        }
    }

    /// Relays what is typed, until there is no more.
    pub async fn relay_input(self: Rc<Self>) {
        let stdin = Ours::new(rustix::stdio::stdin(), Interest::READABLE);
        let mut buffer = [0; CHUNK];
        loop {
            stdin.ready(PollFlags::IN).await;
            let length = match rustix::io::read(stdin.fd, &mut buffer) {
                Ok(0) => return,
                Ok(length) => length,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(_) => return,
            };
            if self.write(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written =
                self.master.async_io(Interest::WRITABLE, |master| Ok(rustix::io::write(master, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Relays what the container says until its process has ended and all is out; nobody may be left who takes it.
    pub async fn relay_output(self: Rc<Self>) {
        let stdout = Ours::new(rustix::stdio::stdout(), Interest::WRITABLE);
        let mut buffer = [0; CHUNK];
        loop {
            let ended = self.ended.get();
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if stdout.write(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
                // Nobody has the other side open: that may be before somebody has, or between two who have (EIO).
                Err(Errno::AGAIN | Errno::IO) if ended => return,
                // To be asked for its readiness it would be ready for ever.
                Err(Errno::IO) => self.pause().await,
                Err(Errno::AGAIN) => {
                    let readable = async {
                        if let Ok(mut ready) = self.master.readable().await {
                            ready.clear_ready();
                        }
                    };
                    select(pin!(readable), pin!(self.end.notified())).await;
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Until its process has ended, or a moment.
    async fn pause(&self) {
        let _ = tokio::time::timeout(PAUSE, self.end.notified()).await;
    }

    /// The container's process has ended; waits for `output`, which relays what it has said.
    pub async fn finish(&self, output: tokio::task::JoinHandle<()>) {
        self.ended.set(true);
        self.end.notify_one();
        let _ = tokio::time::timeout(LAST_BOUND, output).await;
    }
}

/// A descriptor of the caller's.
pub struct Ours {
    /// Itself.
    pub fd: BorrowedFd<'static>,
    /// None for a file, which cannot be watched.
    watched: Option<AsyncFd<BorrowedFd<'static>>>,
}

impl Ours {
    /// One of 0 to 2, to be read or to be written to.
    pub fn new(fd: BorrowedFd<'static>, interest: Interest) -> Self {
        Self { fd, watched: watch(fd, interest).ok() }
    }

    /// Waits until it can be read or written without waiting, or has ended.
    pub async fn ready(&self, what: PollFlags) {
        let Some(watched) = &self.watched else { return };
        loop {
            let mut poll_fd = [PollFd::new(&self.fd, what)];
            if !matches!(poll(&mut poll_fd, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0)) {
                return;
            }
            let interest = if what == PollFlags::IN { Interest::READABLE } else { Interest::WRITABLE };
            let Ok(mut guard) = watched.ready(interest).await else { return };
            guard.clear_ready();
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// EPIPE, where nobody reads it any more, among others.
    pub async fn write(&self, mut bytes: &[u8]) -> rustix::io::Result<()> {
        while !bytes.is_empty() {
            self.ready(PollFlags::OUT).await;
            match rustix::io::write(self.fd.as_fd(), bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
