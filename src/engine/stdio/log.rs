//! Outputs that someone else reads in our place: a logger of the client's, or a child of ours that writes a file.
//!
//! ```text
//!   process's stdout, stderr -> pipe -> logger's 3, 4      no relay: the logger needs no shim, and outlives it
//!   process's terminal -> relay -> pipe -> logger's 3
//! ```
//!
//! The shim holds the read ends too, so that the death of a logger is no SIGPIPE for the container, and gives them to the
//! next one: a logger that ends before its streams do is started again, at once for the first time and then ever later
//! up to [`PAUSE`], however often that is. What comes meanwhile stays in the pipe; when it is full it is emptied, the
//! bytes are lost, counted and told of: nothing of this ever stops the container. A logger that lives and does not read
//! does, as the protocol wants it; and so does one that closes its descriptor, for nobody can tell the two apart.
//!
//! A logger sees the end of its streams by itself, and has what is left of Delete's bound to write its last lines. One that
//! does not go is sent SIGTERM, as by containerd's own shim, and SIGKILL, with its process group, [`LAST`] later.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, select};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{SpliceFlags, splice};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::log_process::{End, Logger, Owner};
use super::uri;
use crate::error::{Context, Error, Kind, Result};

/// The first pause that is one, and the longest, between a logger's end and its next start.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// A logger that has lived so long begins again with no pause.
const STEADY: Duration = Duration::from_secs(30);
/// Between two looks at a pipe that nobody reads: when it was not full, and when it was.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(5));
/// How long a logger may still live that has read everything, before it is told to end.
const GRACE: Duration = Duration::from_secs(1);
/// From the latest SIGTERM to SIGKILL.
const LAST: Duration = Duration::from_secs(2);

/// One logger's streams, and who looks after it.
pub(super) struct Log {
    what: uri::Log,
    /// The read ends of stdout and stderr.
    pipes: [OwnedFd; 2],
    /// The write ends that no process has (yet). One that stays here ends with the process, not before: a logger may
    /// take the first end for the end of everything.
    writers: RefCell<[Option<OwnedFd>; 2]>,
    owner: OnceCell<Owner>,
    /// Launched, and not looked after yet.
    logger: RefCell<Option<Logger>>,
    supervised: Cell<bool>,
    /// When it will be told to end.
    limit: Cell<Option<Instant>>,
    ending: Notify,
    finished: Notify,
}

impl Log {
    pub(super) fn new(what: uri::Log) -> Result<Rc<Self>> {
        let (out, err) = (super::pipe()?, super::pipe()?);
        Ok(Rc::new(Self {
            what,
            pipes: [out.0, err.0],
            writers: RefCell::new([Some(out.1), Some(err.1)]),
            owner: OnceCell::new(),
            logger: RefCell::default(),
            supervised: Cell::default(),
            limit: Cell::default(),
            ending: Notify::new(),
            finished: Notify::new(),
        }))
    }

    /// The write end of stdout (0) or stderr (1), once each, where this is the log of `what`.
    pub(super) fn take(&self, what: &uri::Log, stream: usize) -> Option<OwnedFd> {
        if self.what == *what { self.writers.borrow_mut()[stream].take() } else { None }
    }

    /// A further read end of stdout.
    pub(super) fn reader(&self) -> Result<OwnedFd> {
        use crate::error::Os;
        self.pipes[0].try_clone().os(|| "dup")
    }

    /// Starts the logger, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Logger::ready`]; then nothing of it is left.
    pub(super) async fn launch(&self, owner: Owner) -> Result<()> {
        let what = self.to_string();
        let owner = self.owner.get_or_init(|| owner);
        let mut logger = Logger::start(owner, &self.what, &self.pipes).context(|| what.clone())?;
        logger.ready().await.context(|| what)?;
        *self.logger.borrow_mut() = Some(logger);
        Ok(())
    }

    /// Looks after a logger that was launched, until its streams and it have ended. Must be called in the loop's
    /// `LocalSet`; a second call does nothing.
    pub(super) fn supervise(self: &Rc<Self>) {
        let logger = self.logger.borrow_mut().take();
        let (Some(logger), Some(owner)) = (logger, self.owner.get()) else { return };
        self.supervised.set(true);
        let (log, name) = (self.clone(), format!("{}: {self}", owner.name));
        tokio::task::spawn_local(async move {
            let over = Over(log.clone());
            log.run(logger, &name).await;
            tell_lost(&name, log.pipes.iter().map(held).sum());
            drop(over);
        });
    }

    /// The process has ended: nothing comes by a stream that it did not use.
    pub(super) fn process_ended(&self) {
        self.writers.borrow_mut().fill_with(|| None);
    }

    /// Lets it come to its end: it is told to at `bound` at the latest.
    pub(super) fn end(self: &Rc<Self>, bound: Duration) {
        self.process_ended();
        let limit = Instant::now() + bound;
        if self.limit.get().is_none_or(|earlier| limit < earlier) {
            self.limit.set(Some(limit));
        }
        self.supervise();
        self.ending.notify_waiters();
    }

    /// Waits for the end that [`Log::end`] has begun.
    pub(super) async fn ended(&self) {
        while self.supervised.get() {
            self.finished.notified().await;
        }
    }

    async fn run(&self, mut logger: Logger, name: &str) {
        let (mut pause, mut last_try) = (Duration::ZERO, false);
        loop {
            logger.report(name.to_owned());
            let since = Instant::now();
            let mut end = self.attend(&mut logger).await;
            if since.elapsed() >= STEADY {
                pause = Duration::ZERO;
            }
            logger = loop {
                // One that wants no more when no more comes need not have read everything.
                let content = self.is_at_end() || (end.done && self.has_no_writers());
                if content || last_try || self.is_past(Duration::ZERO) {
                    return;
                }
                // A delete waits for one more, which may find the last lines.
                last_try = self.limit.get().is_some();
                log::warn!("{name}: {} before its streams; next start in {} ms", end.text, pause.as_millis());
                tell_lost(name, self.hold(pause).await);
                pause = (pause * 2).clamp(PAUSE.0, PAUSE.1);
                match self.restart() {
                    Ok(logger) => break logger,
                    Err(e) => end = End { done: false, text: e.to_string() },
                }
            };
        }
    }

    fn restart(&self) -> Result<Logger> {
        let owner = self.owner.get().ok_or_else(|| Error::new(Kind::Internal, "a log of nobody"))?;
        Logger::start(owner, &self.what, &self.pipes)
    }

    /// Waits for the logger's end, which it brings about where the streams have ended and the logger has not.
    async fn attend(&self, logger: &mut Logger) -> End {
        let ending = async {
            while self.limit.get().is_none() {
                self.ending.notified().await;
            }
        };
        if let Either::Left((end, _)) = select(pin!(logger.end()), pin!(ending)).await {
            return end;
        }
        let (mut told, mut at_end) = (false, None);
        loop {
            if let Ok(end) = tokio::time::timeout(LOOK.0, logger.end()).await {
                return end;
            }
            if self.is_at_end() {
                at_end.get_or_insert_with(Instant::now);
            }
            let idle = at_end.is_some_and(|since| since.elapsed() >= GRACE);
            if !told && (idle || self.is_past(Duration::ZERO)) {
                logger.terminate();
                told = true;
            }
            if self.is_past(LAST) {
                logger.kill();
                let end = tokio::time::timeout(LAST, logger.end()).await;
                return end.unwrap_or_else(|_| End { done: false, text: "does not end, even killed".to_owned() });
            }
        }
    }

    /// Whether the limit is `by` behind us.
    fn is_past(&self, by: Duration) -> bool {
        self.limit.get().is_some_and(|limit| limit + by <= Instant::now())
    }

    /// Whether the writers of both streams are gone, and nothing is left of what they wrote.
    fn is_at_end(&self) -> bool {
        self.pipes.iter().all(|pipe| {
            let events = events(pipe, PollFlags::IN);
            events.contains(PollFlags::HUP) && !events.contains(PollFlags::IN)
        })
    }

    fn has_no_writers(&self) -> bool {
        self.pipes.iter().all(|pipe| events(pipe, PollFlags::IN).contains(PollFlags::HUP))
    }

    /// Keeps the process's writes from waiting while there is no logger, until the next is due; returns how many bytes
    /// that has cost.
    async fn hold(&self, pause: Duration) -> u64 {
        let (until, mut all) = (Instant::now() + pause, 0);
        loop {
            let lost: u64 = self.pipes.iter().filter(|pipe| is_full(pipe)).map(discard).sum();
            all += lost;
            let now = Instant::now();
            if now >= until || self.is_at_end() || self.limit.get().is_some() {
                return all;
            }
            let look = if lost > 0 { LOOK.1 } else { LOOK.0 };
            tokio::time::sleep(look.min(until - now)).await;
        }
    }
}

fn tell_lost(name: &str, lost: u64) {
    if lost > 0 {
        log::warn!("{name}: {lost} bytes of output were lost");
    }
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.what {
            uri::Log::Binary(binary) => write!(f, "logger {}", binary.path.to_string_lossy()),
            uri::Log::File(path) => write!(f, "log file {}", path.display()),
        }
    }
}

/// Its drop says that a log is over, also after a panic.
struct Over(Rc<Log>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.supervised.set(false);
        self.0.finished.notify_waiters();
    }
}

fn events(end: &OwnedFd, interest: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(end, interest)];
    // Without an answer: no event.
    let _ = poll(&mut fds, Some(&Timespec::default()));
    fds[0].revents()
}

/// How many bytes are in a pipe.
fn held(pipe: &OwnedFd) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0)
}

/// Whether a writer would have to wait. Only a write end says that: a pipe is full when all its pages have something, which may
/// be much less than they hold.
fn is_full(pipe: &OwnedFd) -> bool {
    let same = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(same, flags, Mode::empty()) {
        Ok(writer) => !events(&writer, PollFlags::OUT).contains(PollFlags::OUT),
        // The pipe is the container's user's, and we are not root: then rather lose something than stop it.
        Err(_) => held(pipe) > 0,
    }
}

/// Empties a pipe; returns how much was in it. Never waits: what a dead logger has left behind may read it too.
fn discard(pipe: &OwnedFd) -> u64 {
    let Ok(null) = crate::sys::null::open(OFlags::WRONLY) else { return 0 };
    let (all, mut lost) = (held(pipe), 0);
    while lost < all {
        match splice(pipe, None, &null, None, (all - lost) as usize, SpliceFlags::NONBLOCK) {
            Ok(n @ 1..) => lost += n as u64,
            _ => break,
        }
    }
    lost
}
