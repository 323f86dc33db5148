//! The standard streams of a container's process, while it has no terminal.
//!
//! The process gets pipes of ours, never containerd's fifos: it could change their owner, their size or their flags for
//! everybody, and its open of `/proc/self/fd/1` would need their permissions. The loop relays between the two:
//!
//! ```text
//!   client -> fifo  (both ends held) -> relay -> pipe -> process's stdin
//!   process's stdout, stderr -> pipe -> relay -> fifo (both ends held) -> client
//! ```
//!
//! How an output ends, once the process's pipe has given its end of file and everything is in the fifo: our read end is
//! let go of; with a reader at the fifo the write end is closed, and the reader sees its end of file at once (`ctr` waits
//! for that before it asks for Delete). Without one (containerd is being restarted) the write end stays open, because a
//! fifo that nobody has open forgets its data, until a reader has come or the [`Stdio`] is dropped. Nobody waits for that.

mod fifo;
mod relay;
#[cfg(test)]
mod tests;
mod uri;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use crate::engine::ready::watch;
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use self::fifo::{Fifo, has_reader};
use self::uri::Target;
use crate::engine::events::StdioUris;
use crate::error::{Context, Error, Kind, Os, Result};

/// First and last pause between two looks for a reader of a finished stream.
const READER_POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What becomes descriptors 0, 1 and 2 of the process. All blocking and close-on-exec; to be dropped after the fork, else
/// no stream of the process ever ends.
#[derive(Debug)]
pub struct ChildEnds {
    /// Read end.
    pub stdin: OwnedFd,
    /// Write end.
    pub stdout: OwnedFd,
    /// Write end.
    pub stderr: OwnedFd,
}

/// Our side of one process's streams. Dropping it ends the relays and closes everything.
pub struct Stdio {
    /// What [`Stdio::start`] will run.
    relays: RefCell<Vec<Relay>>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
    /// The write end of stdin's fifo: while it is held the stream cannot end.
    stdin_hold: Cell<Option<OwnedFd>>,
    outputs: Rc<Outputs>,
}

/// One direction of one stream, with the pipe and the fifo in the order in which the bytes flow.
enum Relay {
    Input { fifo: AsyncFd<OwnedFd>, pipe: AsyncFd<OwnedFd> },
    Output { pipe: AsyncFd<OwnedFd>, fifo: AsyncFd<OwnedFd>, reader: OwnedFd },
}

/// How many outputs have not yet been relayed to their end.
#[derive(Default)]
struct Outputs {
    unfinished: Cell<usize>,
    finished: Notify,
}

impl Stdio {
    /// Opens containerd's side of `uris` and makes the process's; `uid` and `gid` are its user as the host sees it. Must be
    /// called in the runtime. Never waits for whoever has the other ends.
    ///
    /// # Errors
    /// `NotFound` for a fifo that is not there, `InvalidArgument` for one that is not a fifo, `Unimplemented` for a
    /// terminal and for other kinds of stream.
    pub fn open(uris: &StdioUris, uid: u32, gid: u32) -> Result<(Self, ChildEnds)> {
        if uris.terminal {
            return Err(Error::new(Kind::Unimplemented, "terminal is not supported"));
        }
        let mut relays = Vec::new();
        let (stdin, stdin_hold) = open_input(&uris.stdin, uid, gid, &mut relays).context(|| "stdin")?;
        // The same fifo for both is opened twice: the one that ends last is then the last to let go of it.
        let stdout = open_output(&uris.stdout, uid, gid, &mut relays).context(|| "stdout")?;
        let stderr = open_output(&uris.stderr, uid, gid, &mut relays).context(|| "stderr")?;
        let stdio = Self {
            relays: RefCell::new(relays),
            tasks: RefCell::default(),
            stdin_hold: Cell::new(stdin_hold),
            outputs: Rc::default(),
        };
        Ok((stdio, ChildEnds { stdin, stdout, stderr }))
    }

    /// Starts relaying. Must be called in the loop's `LocalSet`; a second call does nothing.
    pub fn start(&self) {
        for relay in self.relays.take() {
            let task = match relay {
                Relay::Input { fifo, pipe } => tokio::task::spawn_local(run_input(fifo, pipe)),
                Relay::Output { pipe, fifo, reader } => {
                    let running = Running::new(&self.outputs);
                    tokio::task::spawn_local(run_output(pipe, fifo, reader, running))
                }
            };
            self.tasks.borrow_mut().push(task);
        }
    }

    /// Lets stdin end (containerd's CloseIO): the process sees its end of file when the client's writers are gone and
    /// everything they wrote has been relayed.
    pub fn close_stdin(&self) {
        drop(self.stdin_hold.take());
    }

    /// Waits until everything that the process wrote is in containerd's fifos, at most for `bound`; then what is left is
    /// dropped, stdin included, and everything is closed. Returns whether nothing was lost. A process that was left
    /// behind in the background with the pipe, and a reader that does not read, use up the bound.
    pub async fn drained(&self, bound: Duration) -> bool {
        let all = async {
            while self.outputs.unfinished.get() > 0 {
                self.outputs.finished.notified().await;
            }
        };
        let done = tokio::time::timeout(bound, all).await.is_ok();
        if !done {
            self.abort();
        }
        done
    }

    fn abort(&self) {
        self.relays.borrow_mut().clear();
        self.close_stdin();
        for task in self.tasks.borrow_mut().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.abort();
    }
}

/// An output that is not finished; its drop says that it is, also after a panic or an abort.
struct Running(Rc<Outputs>);

impl Running {
    fn new(outputs: &Rc<Outputs>) -> Self {
        outputs.unfinished.set(outputs.unfinished.get() + 1);
        Self(outputs.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.unfinished.set(self.0.unfinished.get() - 1);
        self.0.finished.notify_waiters();
    }
}

/// The process's end, and the fifo's write end that keeps the stream open.
fn open_input(uri: &str, uid: u32, gid: u32, relays: &mut Vec<Relay>) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let path = match Target::parse(uri)? {
        Target::Null => return Ok((crate::sys::null::open(OFlags::RDONLY)?, None)),
        Target::Fifo(path) => path,
    };
    let fifo = Fifo::open(&path)?;
    let (theirs, ours) = pipe()?;
    give(&theirs, uid, gid)?;
    nonblocking(&ours)?;
    relays.push(Relay::Input { fifo: watch(fifo.read, Interest::READABLE)?, pipe: watch(ours, Interest::WRITABLE)? });
    Ok((theirs, Some(fifo.write)))
}

/// The process's end.
fn open_output(uri: &str, uid: u32, gid: u32, relays: &mut Vec<Relay>) -> Result<OwnedFd> {
    let path = match Target::parse(uri)? {
        Target::Null => return crate::sys::null::open(OFlags::WRONLY),
        Target::Fifo(path) => path,
    };
    let fifo = Fifo::open(&path)?;
    let (ours, theirs) = pipe()?;
    give(&theirs, uid, gid)?;
    nonblocking(&ours)?;
    relays.push(Relay::Output {
        pipe: watch(ours, Interest::READABLE)?,
        fifo: watch(fifo.write, Interest::WRITABLE)?,
        reader: fifo.read,
    });
    Ok(theirs)
}

async fn run_input(fifo: AsyncFd<OwnedFd>, pipe: AsyncFd<OwnedFd>) {
    match relay::relay(&fifo, &pipe).await {
        // The process has closed its stdin: with our read end the client's next write fails too.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(e) => log::warn!("stdin ends early: {e}"),
        Ok(()) => {}
    }
}

async fn run_output(pipe: AsyncFd<OwnedFd>, fifo: AsyncFd<OwnedFd>, reader: OwnedFd, running: Running) {
    if let Err(e) = relay::relay(&pipe, &fifo).await {
        log::warn!("an output stream ends early: {e}");
    }
    drop((pipe, reader));
    drop(running);
    let write = fifo.into_inner();
    let mut pause = READER_POLL.0;
    // A reader's open wakes no one who polls the write end, so look.
    while !has_reader(&write) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(READER_POLL.1);
    }
}

/// A pipe, (read end, write end).
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).os(|| "pipe2")
}

/// Makes our end non-blocking; the process's is another open file and stays blocking, as programs expect.
fn nonblocking(end: &OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(end).os(|| "fcntl F_GETFL of a pipe")?;
    rustix::fs::fcntl_setfl(end, flags | OFlags::NONBLOCK).os(|| "fcntl F_SETFL of a pipe")
}

/// Makes the pipe the process's user's, who may then open `/proc/self/fd/1`, `/dev/stdout`, as programs do.
fn give(end: &OwnedFd, uid: u32, gid: u32) -> Result<()> {
    use rustix::fs::{Gid, Uid};
    match rustix::fs::fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        // Unprivileged, we cannot give it away; the process then goes without that open, as in runc.
        Err(rustix::io::Errno::PERM) => Ok(()),
        other => other.os(|| format!("fchown of a pipe to {uid}:{gid}")),
    }
}
