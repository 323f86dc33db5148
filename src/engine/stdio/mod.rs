//! The standard streams of a container's process: three, or a terminal ([`terminal`]).
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
//!
//! containerd and its clients open their ends in the background, and close them at once when they are told of the exit,
//! whether or not all is read. So a process is born when its outputs have readers ([`await_readers`]), and its exit is
//! told when they have read everything ([`Stdio::delivered`]); each with a bound.
//!
//! A [`log`] has readers of its own.

mod fifo;
mod log;
mod log_file;
mod log_process;
mod relay;
mod terminal;
#[cfg(test)]
mod tests;
mod uri;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use crate::engine::ready::watch;
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use ::log::warn;

use self::fifo::{Fifo, has_reader, is_same};
use self::log::Log;
use self::log_process::Owner;
use self::terminal::Terminal;
use self::uri::Target;
use crate::engine::Engine;
use crate::engine::container::Process;
use crate::engine::events::StdioUris;
use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::tty::Size;

/// First and last pause between two looks for a reader of a finished stream.
const READER_POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How long a client may take to open what a process is to write to. containerd's own shim waits for ever.
const READER_BOUND: Duration = Duration::from_secs(2);

/// How long an exit is held back for readers that are behind.
const DELIVERY_BOUND: Duration = Duration::from_secs(2);

/// Between two looks at a reader.
const DELIVERY_POLL: Duration = Duration::from_millis(1);

/// How long a logger whose process nobody deletes, or never was, may write its last lines.
const ABANDONED: Duration = Duration::from_secs(1);

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
    logs: Vec<Rc<Log>>,
    started: Cell<bool>,
    ended: Cell<bool>,
    /// The fifos of a terminal that is still to come.
    awaiting: Cell<Option<TerminalFifos>>,
    terminal: RefCell<Option<Rc<Terminal>>>,
}

/// containerd's side of a terminal.
struct TerminalFifos {
    stdin: Option<AsyncFd<OwnedFd>>,
    stdout: Option<Rc<OutputFifo>>,
}

/// The write end, and the read end that keeps it from failing while nobody reads.
struct OutputFifo {
    fifo: AsyncFd<OwnedFd>,
    /// Its share of the read end, until its stream has ended.
    reader: RefCell<Option<Rc<Reader>>>,
    /// The same, also when its stream has ended before the other's into the same fifo.
    ours: Weak<Reader>,
    /// All that will ever come is in the fifo.
    relayed: Cell<bool>,
}

/// Our read end of a fifo: one, also where two streams go into it, so that it can be told from a client's.
struct Reader(RefCell<Option<OwnedFd>>);

/// One direction of one stream, with the pipe and the fifo in the order in which the bytes flow.
enum Relay {
    Input { fifo: AsyncFd<OwnedFd>, pipe: AsyncFd<OwnedFd> },
    Output { pipe: Rc<AsyncFd<OwnedFd>>, fifo: Rc<OutputFifo> },
    TerminalInput { fifo: AsyncFd<OwnedFd>, terminal: Rc<Terminal> },
    TerminalOutput { terminal: Rc<Terminal>, fifo: Option<Rc<OutputFifo>> },
}

/// The outputs.
#[derive(Default)]
struct Outputs {
    /// How many have not yet been relayed to their end.
    unfinished: Cell<usize>,
    finished: Notify,
    flows: RefCell<Vec<Flow>>,
}

/// An output that goes into a fifo, as long as it lasts.
struct Flow {
    /// What it comes from; none for a terminal.
    pipe: Option<Weak<AsyncFd<OwnedFd>>>,
    fifo: Weak<OutputFifo>,
}

impl Outputs {
    /// Whether there is something that a reader will read.
    fn in_flight(&self) -> bool {
        self.flows.borrow().iter().any(|flow| {
            let Some(fifo) = flow.fifo.upgrade() else { return false };
            let waiting = match &flow.pipe {
                Some(pipe) => pipe.upgrade().is_some_and(|pipe| unread(&*pipe)),
                None => !fifo.relayed.get(),
            };
            (waiting || unread(&fifo.fifo)) && fifo.has_foreign_reader()
        })
    }
}

impl Stdio {
    /// Opens containerd's side of `uris` and makes the process's; `uid` and `gid` are its user as the host sees it. Must be
    /// called in the runtime. Never waits for whoever has the other ends.
    ///
    /// # Errors
    /// `NotFound` for a fifo that is not there, `InvalidArgument` for one that is not a fifo, `Unimplemented` for
    /// other kinds of stream.
    pub fn open(uris: &StdioUris, uid: u32, gid: u32) -> Result<(Self, ChildEnds)> {
        let mut relays = Vec::new();
        let (stdin, stdin_hold) = open_input(&uris.stdin, uid, gid, &mut relays).context(|| "stdin")?;
        let (out, err) = Target::outputs(uris)?;
        let mut logs = Vec::new();
        // The same fifo for both is opened twice: the one that ends last is then the last to let go of it.
        let stdout = open_output(&out, 0, (uid, gid), &mut relays, &mut logs).context(|| "stdout")?;
        let stderr = open_output(&err, 1, (uid, gid), &mut relays, &mut logs).context(|| "stderr")?;
        let stdio = Self::new(relays, stdin_hold, None, logs);
        Ok((stdio, ChildEnds { stdin, stdout, stderr }))
    }

    /// Opens containerd's side of a terminal's `uris`, of which stderr is not used; [`Stdio::connect`] brings the terminal.
    ///
    /// # Errors
    /// As [`Stdio::open`].
    pub fn open_terminal(uris: &StdioUris) -> Result<Self> {
        let (stdin, stdin_hold) = match open_fifo(&uris.stdin).context(|| "stdin")? {
            Some(fifo) => (Some(watch(fifo.read, Interest::READABLE)?), Some(fifo.write)),
            None => (None, None),
        };
        let mut logs = Vec::new();
        let stdout = open_terminal_output(&uris.stdout, &mut logs).context(|| "stdout")?;
        Ok(Self::new(Vec::new(), stdin_hold, Some(TerminalFifos { stdin, stdout }), logs))
    }

    /// Starts the loggers of `process`, whose streams these are, and waits until they are ready.
    ///
    /// # Errors
    /// `NotFound`, `DeadlineExceeded`; that one has ended.
    pub async fn launch(&self, engine: &Rc<Engine>, process: &Process) -> Result<()> {
        for log in &self.logs {
            let id = if process.exec.is_empty() { &process.container } else { &process.exec };
            log.launch(Owner { engine: engine.clone(), name: process.to_string(), id: id.clone() }).await?;
        }
        Ok(())
    }

    /// Of a process whose streams are not ours.
    pub fn nothing() -> Self {
        Self::new(Vec::new(), None, None, Vec::new())
    }

    fn new(
        relays: Vec<Relay>,
        stdin_hold: Option<OwnedFd>,
        awaiting: Option<TerminalFifos>,
        logs: Vec<Rc<Log>>,
    ) -> Self {
        Self {
            relays: RefCell::new(relays),
            tasks: RefCell::default(),
            stdin_hold: Cell::new(stdin_hold),
            outputs: Rc::default(),
            logs,
            started: Cell::default(),
            ended: Cell::default(),
            awaiting: Cell::new(awaiting),
            terminal: RefCell::default(),
        }
    }

    /// Takes the terminal that [`Stdio::open_terminal`] expects, by its master, and gives it its size where one was asked
    /// for meanwhile.
    ///
    /// # Errors
    /// When none is expected, or what comes is none.
    pub fn connect(&self, master: OwnedFd, size: Option<Size>) -> Result<()> {
        let unexpected = || Error::new(Kind::Internal, "a terminal that was not asked for");
        let fifos = self.awaiting.take().ok_or_else(unexpected)?;
        let terminal = Rc::new(Terminal::new(master)?);
        *self.terminal.borrow_mut() = Some(terminal.clone());
        size.map_or(Ok(()), |size| terminal.resize(size))?;
        if self.ended.get() {
            terminal.end();
        }
        let mut relays = self.relays.borrow_mut();
        relays.extend(fifos.stdin.map(|fifo| Relay::TerminalInput { fifo, terminal: terminal.clone() }));
        relays.push(Relay::TerminalOutput { terminal, fifo: fifos.stdout });
        drop(relays);
        if self.started.get() {
            self.start();
        }
        Ok(())
    }

    /// Sets the size of the terminal, where there is one.
    pub fn resize(&self, size: Size) -> Result<()> {
        self.terminal.borrow().as_ref().map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Says that the process has ended: its terminal ends with it, whoever else has it open.
    pub fn process_ended(&self) {
        self.ended.set(true);
        if let Some(terminal) = &*self.terminal.borrow() {
            terminal.end();
        }
        self.logs.iter().for_each(|log| log.process_ended());
    }

    /// Starts relaying, a terminal when it is there. Must be called in the loop's `LocalSet`; a second call does nothing.
    pub fn start(&self) {
        self.started.set(true);
        self.logs.iter().for_each(Log::supervise);
        for relay in self.relays.take() {
            let task = match relay {
                Relay::Input { fifo, pipe } => tokio::task::spawn_local(run_input(fifo, pipe)),
                Relay::Output { pipe, fifo } => {
                    let flow = Flow { pipe: Some(Rc::downgrade(&pipe)), fifo: Rc::downgrade(&fifo) };
                    self.outputs.flows.borrow_mut().push(flow);
                    let running = Running::new(&self.outputs);
                    tokio::task::spawn_local(run_output(pipe, fifo, running))
                }
                Relay::TerminalInput { fifo, terminal } => tokio::task::spawn_local(run_terminal_input(fifo, terminal)),
                Relay::TerminalOutput { terminal, fifo } => {
                    let flow = fifo.as_ref().map(|fifo| Flow { pipe: None, fifo: Rc::downgrade(fifo) });
                    self.outputs.flows.borrow_mut().extend(flow);
                    let running = Running::new(&self.outputs);
                    tokio::task::spawn_local(run_terminal_output(terminal, fifo, running))
                }
            };
            self.tasks.borrow_mut().push(task);
        }
    }

    /// Lets stdin end (containerd's CloseIO): the process sees its end of file when the client's writers are gone and
    /// everything they wrote has been relayed. A terminal has no end of file: it goes on without a client.
    pub fn close_stdin(&self) {
        drop(self.stdin_hold.take());
    }

    /// Waits until everything that the process wrote is in containerd's fifos, at most for `bound`; then what is left is
    /// dropped, stdin included, and everything is closed. Returns whether nothing was lost. A process that was left
    /// behind in the background with the pipe, and a reader that does not read, use up the bound. A logger that does not
    /// end is told to at the bound, and killed a little later.
    pub async fn drained(&self, bound: Duration) -> bool {
        self.logs.iter().for_each(|log| log.end(bound));
        let all = async {
            while self.outputs.unfinished.get() > 0 {
                self.outputs.finished.notified().await;
            }
        };
        let done = tokio::time::timeout(bound, all).await.is_ok();
        if !done {
            self.abort();
        }
        for log in &self.logs {
            log.ended().await;
        }
        done
    }

    /// Whether whoever reads the process's outputs has read all that has come.
    pub fn is_delivered(&self) -> bool {
        !self.outputs.in_flight()
    }

    /// Waits for that, at most for [`DELIVERY_BOUND`]. An output that nobody has open for reading is not waited for.
    pub async fn delivered(&self) {
        read_out(|| !self.outputs.in_flight()).await;
    }

    fn abort(&self) {
        self.relays.borrow_mut().clear();
        self.awaiting.take();
        self.close_stdin();
        for task in self.tasks.borrow_mut().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.abort();
        self.logs.iter().for_each(|log| log.end(ABANDONED));
    }
}

impl OutputFifo {
    fn new(fifo: Fifo) -> Result<Rc<Self>> {
        Self::with(fifo.write, Rc::new(Reader(RefCell::new(Some(fifo.read)))))
    }

    /// For a second stream into the fifo of `first`.
    fn second(fifo: Fifo, first: &Self) -> Result<Rc<Self>> {
        match first.ours.upgrade() {
            Some(reader) => Self::with(fifo.write, reader),
            None => Self::new(fifo),
        }
    }

    fn with(write: OwnedFd, reader: Rc<Reader>) -> Result<Rc<Self>> {
        let ours = Rc::downgrade(&reader);
        let fifo = watch(write, Interest::WRITABLE)?;
        Ok(Rc::new(Self { fifo, reader: RefCell::new(Some(reader)), ours, relayed: Cell::new(false) }))
    }

    /// Whether anyone but us has it open for reading: without our own read end for a moment, in which nobody writes.
    fn has_foreign_reader(&self) -> bool {
        let reader = self.ours.upgrade();
        let ours = reader.as_ref().and_then(|reader| reader.0.take()).is_some();
        let found = has_reader(&self.fifo);
        if let Some(reader) = reader.filter(|_| ours) {
            reader.0.replace(fifo::read_end(&self.fifo).ok());
        }
        found
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

/// Of an input; `None` for the null device.
fn open_fifo(uri: &str) -> Result<Option<Fifo>> {
    match Target::parse(uri)? {
        Target::Null => Ok(None),
        Target::Fifo(path) => Fifo::open(&path).map(Some),
        Target::Log(_) => Err(Error::new(Kind::InvalidArgument, "a log is no input")),
    }
}

/// The process's end, and the fifo's write end that keeps the stream open.
fn open_input(uri: &str, uid: u32, gid: u32, relays: &mut Vec<Relay>) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let Some(fifo) = open_fifo(uri)? else { return Ok((crate::sys::null::open(OFlags::RDONLY)?, None)) };
    let (theirs, ours) = pipe()?;
    give(&theirs, uid, gid)?;
    nonblocking(&ours)?;
    relays.push(Relay::Input { fifo: watch(fifo.read, Interest::READABLE)?, pipe: watch(ours, Interest::WRITABLE)? });
    Ok((theirs, Some(fifo.write)))
}

/// The process's end of stdout (0) or stderr (1).
fn open_output(
    target: &Target,
    stream: usize,
    (uid, gid): (u32, u32),
    relays: &mut Vec<Relay>,
    logs: &mut Vec<Rc<Log>>,
) -> Result<OwnedFd> {
    let theirs = match target {
        Target::Null => return crate::sys::null::open(OFlags::WRONLY),
        Target::Log(what) => log_of(what, stream, logs)?.1,
        Target::Fifo(path) => {
            let fifo = Fifo::open(path)?;
            let first = relays.iter().find_map(|relay| match relay {
                Relay::Output { fifo: first, .. } if is_same(&first.fifo, &fifo.write) => Some(first),
                _ => None,
            });
            let fifo = match first {
                Some(first) => OutputFifo::second(fifo, first)?,
                None => OutputFifo::new(fifo)?,
            };
            let (ours, theirs) = pipe()?;
            nonblocking(&ours)?;
            relays.push(Relay::Output { pipe: Rc::new(watch(ours, Interest::READABLE)?), fifo });
            theirs
        }
    };
    give(&theirs, uid, gid)?;
    Ok(theirs)
}

/// The log of `what`, which is one for both outputs, and the write end of one of its streams.
fn log_of(what: &uri::Log, stream: usize, logs: &mut Vec<Rc<Log>>) -> Result<(Rc<Log>, OwnedFd)> {
    if let Some(shared) = logs.iter().find_map(|log| Some((log.clone(), log.take(what, stream)?))) {
        return Ok(shared);
    }
    let log = Log::new(what.clone())?;
    let writer = log.take(what, stream).ok_or_else(|| Error::new(Kind::Internal, "a log without streams"))?;
    logs.push(log.clone());
    Ok((log, writer))
}

/// Where a terminal's output goes: `None` for nowhere. A log's pipe is as good as a fifo, whose reader is always there.
fn open_terminal_output(uri: &str, logs: &mut Vec<Rc<Log>>) -> Result<Option<Rc<OutputFifo>>> {
    let fifo = match Target::parse(uri)? {
        Target::Null => return Ok(None),
        Target::Fifo(path) => Fifo::open(&path)?,
        Target::Log(what) => {
            let (log, write) = log_of(&what, 0, logs)?;
            nonblocking(&write)?;
            Fifo { read: log.reader()?, write }
        }
    };
    OutputFifo::new(fifo).map(Some)
}

async fn run_input(fifo: AsyncFd<OwnedFd>, pipe: AsyncFd<OwnedFd>) {
    match relay::relay(&fifo, &pipe).await {
        // The process has closed its stdin: with our read end the client's next write fails too.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(e) => warn!("stdin ends early: {e}"),
        Ok(()) => {}
    }
}

async fn run_output(pipe: Rc<AsyncFd<OwnedFd>>, output: Rc<OutputFifo>, running: Running) {
    if let Err(e) = relay::relay(&pipe, &output.fifo).await {
        warn!("an output stream ends early: {e}");
    }
    drop(pipe);
    end_output(output, running).await;
}

async fn run_terminal_input(fifo: AsyncFd<OwnedFd>, terminal: Rc<Terminal>) {
    if let Err(e) = terminal.relay_input(&fifo).await {
        warn!("stdin of a terminal ends early: {e}");
    }
}

async fn run_terminal_output(terminal: Rc<Terminal>, output: Option<Rc<OutputFifo>>, running: Running) {
    if let Err(e) = terminal.relay_output(output.as_ref().map(|output| &output.fifo)).await {
        warn!("the output of a terminal ends early: {e}");
    }
    drop(terminal);
    if let Some(output) = output {
        end_output(output, running).await;
    }
}

/// Lets a reader see the end, when there is one and it has read all: from then on nobody can tell whether it has.
async fn end_output(output: Rc<OutputFifo>, running: Running) {
    output.relayed.set(true);
    drop(output.reader.take());
    drop(running);
    let mut pause = READER_POLL.0;
    // A reader's open wakes no one who polls the write end, so look.
    while !has_reader(&output.fifo) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(READER_POLL.1);
    }
    read_out(|| !unread(&output.fifo)).await;
}

/// Waits until readers have come so far, at most for [`DELIVERY_BOUND`]. A reader's read wakes no one, so it looks.
async fn read_out(done: impl Fn() -> bool) {
    let until = Instant::now() + DELIVERY_BOUND;
    while !done() && Instant::now() < until {
        tokio::time::sleep(DELIVERY_POLL).await;
    }
}

/// Whether there is something in a pipe.
fn unread(end: impl AsFd) -> bool {
    rustix::io::ioctl_fionread(end).is_ok_and(|bytes| bytes > 0)
}

/// Waits until each output that is a fifo has a reader, at most for [`READER_BOUND`] in all. What is returned is to be held
/// until the fifos are opened for good: a reader that has seen a writer come and go has seen the end.
pub async fn await_readers(uris: &StdioUris) -> Vec<OwnedFd> {
    let until = Instant::now() + READER_BOUND;
    let mut found = Vec::new();
    let stderr = if uris.terminal { "" } else { &uris.stderr };
    for uri in [uris.stdout.as_str(), stderr] {
        // What is wrong with it is said by whoever opens it.
        let Ok(Target::Fifo(path)) = Target::parse(uri) else { continue };
        loop {
            match fifo::writer_if_read(&path) {
                Some(Some(writer)) => break found.push(writer),
                Some(None) if Instant::now() < until => tokio::time::sleep(DELIVERY_POLL).await,
                _ => break,
            }
        }
    }
    found
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
