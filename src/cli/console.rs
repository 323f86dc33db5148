//! The caller's terminal, while a container that has one of its own runs in the foreground: what is typed goes to that, what
//! it says comes out here, and its size follows.
//!
//! The descriptors are the caller's, shared with it: their flags are left alone, so every read and write is preceded by a
//! look whether it would wait. What is no terminal, nor a pipe (a file, /dev/null), never does.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::select;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};
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

/// How much may come out once a program has ended, as slowly as the caller takes it: more than a pty holds (its flip buffers,
/// 640 KiB by tty_buffer.c's TTYB_DEFAULT_MEM_LIMIT). What goes on after that is of something in the background.
const TAIL: usize = 1 << 20;

/// The caller's terminal in raw mode; as it was when this is dropped.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Of the first of our streams that is a terminal; `None` where none is, and in its background: there it is another's.
    ///
    /// # Errors
    /// What tcsetattr(3) says.
    pub fn of_ours() -> Result<Option<Self>> {
        let Some(terminal) = ours().filter(is_ours_to_change) else { return Ok(None) };
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
        if is_ours_to_change(&self.terminal) {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        }
    }
}

/// Not in the background of a terminal. The kernel does not keep us from changing it there: SIGTTOU is blocked here. One that
/// is not our controlling terminal (ENOTTY) has no such thing.
fn is_ours_to_change(terminal: &impl AsFd) -> bool {
    tcgetpgrp(terminal).map_or(true, |foreground| foreground == getpgrp())
}

/// The caller's terminal: the first of our streams that is one.
pub fn ours() -> Option<BorrowedFd<'static>> {
    [rustix::stdio::stderr(), rustix::stdio::stdout(), rustix::stdio::stdin()].into_iter().find(|stream| isatty(stream))
}

/// The size of the caller's terminal, where it has one: of none, as a new pty is, it says nothing.
pub fn size() -> Option<Size> {
    let size = tcgetwinsize(ours()?).ok()?;
    (size.ws_col > 0 || size.ws_row > 0).then_some(Size { width: size.ws_col, height: size.ws_row })
}

/// The container's terminal.
pub struct Console {
    /// None once it is hung up.
    master: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    hung_up: Notify,
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
        let master = Rc::new(watch(master, Interest::READABLE | Interest::WRITABLE)?);
        let console = Rc::new(Self {
            master: RefCell::new(Some(master)),
            hung_up: Notify::new(),
            ended: Cell::new(false),
            end: Notify::new(),
        });
        console.follow_size();
        Ok(console)
    }

    /// Gives it the size of the caller's terminal.
    pub fn follow_size(&self) {
        if let (Some(master), Some(size)) = (self.master.borrow().as_ref(), size()) {
            let _ = tty::resize(&**master, size);
        }
    }

    /// Relays what is typed, until there is no more or the terminal is hung up.
    pub async fn relay_input(self: Rc<Self>) {
        // In this order: what it holds of the master it has let go of when this returns.
        select(pin!(self.hung_up.notified()), pin!(self.relay_typed())).await;
    }

    async fn relay_typed(&self) {
        let Some(master) = self.master.borrow().clone() else { return };
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
            if write(&master, &buffer[..length]).await.is_err() {
                return;
            }
        }
    }

    /// Relays what the container says until its process has ended and all is out. Where the caller takes no more it is hung
    /// up: who writes to it is not to wait for ever, nor is who waits for him.
    pub async fn relay_output(self: Rc<Self>) {
        if let Err(e) = self.relay_said().await {
            log::debug!("stdout: {e}");
            self.hang_up();
        }
    }

    async fn relay_said(&self) -> rustix::io::Result<()> {
        let Some(master) = self.master.borrow().clone() else { return Ok(()) };
        let stdout = Ours::new(rustix::stdio::stdout(), Interest::WRITABLE);
        let mut buffer = [0; CHUNK];
        let mut tail = TAIL;
        while tail > 0 {
            let ended = self.ended.get();
            match rustix::io::read(&*master, &mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    stdout.write(&buffer[..length]).await?;
                    tail = if ended { tail.saturating_sub(length) } else { TAIL };
                }
                // Nobody has the other side open: that may be before somebody has, or between two who have (EIO).
                Err(Errno::AGAIN | Errno::IO) if ended => break,
                // To be asked for its readiness it would be ready for ever.
                Err(Errno::IO) => self.pause().await,
                Err(Errno::AGAIN) => {
                    let readable = async {
                        if let Ok(mut ready) = master.readable().await {
                            ready.clear_ready();
                        }
                    };
                    select(pin!(readable), pin!(self.end.notified())).await;
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Lets go of the master: the container's terminal is gone for it (SIGHUP, EIO), as for what runc has started when that
    /// dies of SIGPIPE.
    fn hang_up(&self) {
        self.master.take();
        self.hung_up.notify_one();
    }

    /// Until its process has ended, or a moment.
    async fn pause(&self) {
        let _ = tokio::time::timeout(PAUSE, self.end.notified()).await;
    }

    /// The container's process has ended; waits for `output`, which relays what it has said, as long as the caller takes for
    /// that.
    pub async fn finish(&self, output: tokio::task::JoinHandle<()>) {
        self.ended.set(true);
        self.end.notify_one();
        let _ = output.await;
    }
}

async fn write(master: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = master.async_io(Interest::WRITABLE, |master| Ok(rustix::io::write(master, bytes)?)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
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
