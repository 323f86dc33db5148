//! The process of a log: a program that the client names, or a child of ours that writes a file.
//!
//! The protocol is containerd's (core/runtime/v2/logging): descriptors 3 and 4 are the read ends of stdout and stderr, and
//! 5, CONTAINER_WAIT, is a pipe's write end by which a program says that it is ready: it closes it, or, for `binary-v2`,
//! writes a byte before, without which its end is a failure.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::log_file;
use super::uri::{Binary, Log};
use crate::engine::Engine;
use crate::engine::events::Exit;
use crate::engine::program::Running;
use crate::engine::ready::watch;
use crate::error::{Error, Kind, Os, Result};
use crate::init::sync::{self, Heard, ParentEnd};
use crate::sys::spawn::Program;
use crate::sys::{fork, null, pidfd};

/// How long one may take to be ready. containerd's own shim waits for ever, and the client with it.
const READY_BOUND: Duration = Duration::from_secs(10);
/// How long the end of a process may take that is certain.
const END_BOUND: Duration = Duration::from_secs(2);

/// Whose log it is.
pub(super) struct Owner {
    pub(super) engine: Rc<Engine>,
    /// For our own log.
    pub(super) name: String,
    /// What CONTAINER_ID says: the exec's own id for an exec, as in containerd's own shim.
    pub(super) id: String,
}

/// A logger under way.
pub(super) struct Logger {
    process: Process,
    /// Kept as long as it lives: a byte written to a pipe that nobody reads would kill it.
    channel: Option<Channel>,
    /// What its end was, once it is known.
    ended: Option<End>,
}

/// How a logger has ended.
#[derive(Clone)]
pub(super) struct End {
    /// In its own opinion it was done.
    pub(super) done: bool,
    pub(super) text: String,
}

enum Process {
    Program(Running),
    Writer { child: fork::Child, exited: oneshot::Receiver<Exit> },
}

enum Channel {
    /// The read end of CONTAINER_WAIT, and whether a byte is to come.
    Wait(AsyncFd<OwnedFd>, bool),
    /// What the file's writer says.
    Sync(AsyncFd<ParentEnd>),
}

impl Logger {
    /// Starts the one that `log` asks for; it reads `pipes`.
    ///
    /// # Errors
    /// When it cannot be forked.
    pub(super) fn start(owner: &Owner, log: &Log, pipes: &[OwnedFd; 2]) -> Result<Self> {
        let (process, channel) = match log {
            Log::Binary(binary) => run_program(owner, binary, pipes)?,
            Log::File(path) => {
                let (ours, theirs) = sync::pair()?;
                let [out, err] = pipes;
                let child = fork::fork(0, None, None, |_| log_file::run(path, [out, err], &theirs))?;
                let exited = owner.engine.note_helper(child.pid);
                (Process::Writer { child, exited }, Channel::Sync(watch(ours, Interest::READABLE)?))
            }
        };
        Ok(Self { process, channel: Some(channel), ended: None })
    }

    /// Waits until it is ready. One that is not is killed.
    ///
    /// # Errors
    /// `NotFound` for a program that is not there, `DeadlineExceeded`; what it says; that it has ended.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let late = || Error::new(Kind::DeadlineExceeded, format!("not ready within {} s", READY_BOUND.as_secs()));
        let ready = tokio::time::timeout(READY_BOUND, self.hear()).await.unwrap_or_else(|_| Err(late()));
        if ready.is_err() {
            self.kill();
            let _ = tokio::time::timeout(END_BOUND, self.end()).await;
        }
        ready
    }

    async fn hear(&mut self) -> Result<()> {
        match &self.channel {
            Some(Channel::Sync(channel)) => match next(channel).await? {
                Heard::Ready => return Ok(()),
                Heard::Failed(error) => return Err(not_found(error)),
                _ => {}
            },
            Some(Channel::Wait(wait, says_ready)) => {
                let spoke = spoke(wait).await?;
                // Its end closes the pipe too.
                let gone = !spoke && pidfd::is_exiting(self.pid());
                if spoke || (!says_ready && !gone) {
                    return Ok(());
                }
            }
            None => return Ok(()),
        }
        if let Process::Program(running) = &mut self.process
            && let Ok(end) = tokio::time::timeout(END_BOUND, running.end()).await
        {
            self.ended = Some(described(&end));
            let status = end.map_err(not_found)?.status;
            return Err(Error::new(Kind::Unavailable, format!("not ready: it has ended with status {status}")));
        }
        Err(Error::new(Kind::Unavailable, "has not said that it is ready"))
    }

    /// Waits for its end, and says what that was. May be given up and called again.
    pub(super) async fn end(&mut self) -> End {
        if let Some(end) = &self.ended {
            return end.clone();
        }
        let end = match &mut self.process {
            Process::Program(running) => described(&running.end().await),
            Process::Writer { exited, .. } => {
                described(&exited.await.map_err(|e| Error::new(Kind::Internal, e.to_string())))
            }
        };
        self.ended = Some(end.clone());
        end
    }

    /// Tells it to come to an end, where it does not see that itself.
    pub(super) fn terminate(&self) {
        if let (Process::Program(running), None) = (&self.process, &self.ended) {
            running.signal(libc::SIGTERM as u32);
        }
    }

    /// Ends it.
    pub(super) fn kill(&self) {
        match (&self.process, &self.ended) {
            (_, Some(_)) => {}
            (Process::Program(running), None) => running.kill(),
            (Process::Writer { child, .. }, None) => drop(pidfd::kill(&child.pidfd, libc::SIGKILL as u32)),
        }
    }

    fn pid(&self) -> i32 {
        match &self.process {
            Process::Program(running) => running.pid() as i32,
            Process::Writer { child, .. } => child.pid,
        }
    }

    /// Lets our own log have what a file's writer complains of from now on, until its end.
    pub(super) fn report(&mut self, name: String) {
        let Some(Channel::Sync(channel)) = self.channel.take_if(|channel| matches!(channel, Channel::Sync(_))) else {
            return;
        };
        tokio::task::spawn_local(async move {
            loop {
                match next(&channel).await {
                    Ok(Heard::Failed(error)) => log::warn!("{name}: {error}"),
                    // That it has been started again.
                    Ok(Heard::Ready) => {}
                    _ => return,
                }
            }
        });
    }
}

/// However it comes: nobody would end it any more.
impl Drop for Logger {
    fn drop(&mut self) {
        self.kill();
    }
}

fn run_program(owner: &Owner, binary: &Binary, pipes: &[OwnedFd; 2]) -> Result<(Process, Channel)> {
    let (wait, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).os(|| "pipe2")?;
    rustix::fs::fcntl_setfl(&wait, OFlags::NONBLOCK).os(|| "fcntl F_SETFL of a pipe")?;
    let mut fds = vec![null::open(OFlags::RDONLY)?, null::open(OFlags::WRONLY)?, null::open(OFlags::WRONLY)?];
    for pipe in pipes {
        // As it was made, whatever a logger before this one has done to it.
        rustix::fs::fcntl_setfl(pipe, OFlags::empty()).os(|| "fcntl F_SETFL of a pipe")?;
        fds.push(pipe.try_clone().os(|| "dup")?);
    }
    fds.push(theirs);
    let text = |text: String| CString::new(text).map_err(|_| Error::new(Kind::InvalidArgument, "NUL in an id"));
    let mut env = vec![
        text(format!("CONTAINER_ID={}", owner.id))?,
        text(format!("CONTAINER_NAMESPACE={}", owner.engine.namespace))?,
    ];
    env.extend(binary.env.iter().cloned());
    let mut args = vec![binary.path.clone()];
    args.extend(binary.args.iter().cloned());
    let program = Program { path: binary.path.clone(), args, env, fds, cwd: None, die_with_parent: false };
    let running = owner.engine.run_program(&program)?;
    Ok((Process::Program(running), Channel::Wait(watch(wait, Interest::READABLE)?, binary.says_ready)))
}

/// Whether a byte came before the end.
async fn spoke(wait: &AsyncFd<OwnedFd>) -> Result<bool> {
    loop {
        let mut ready = wait.readable().await.os(|| "epoll_wait")?;
        match rustix::io::read(wait, &mut [0]) {
            Err(Errno::AGAIN) => ready.clear_ready(),
            other => return other.map(|n| n > 0).os(|| "read of CONTAINER_WAIT"),
        }
    }
}

async fn next(channel: &AsyncFd<ParentEnd>) -> Result<Heard> {
    loop {
        let mut ready = channel.readable().await.os(|| "epoll_wait")?;
        match channel.get_ref().receive()? {
            Heard::Nothing => ready.clear_ready(),
            heard => return Ok(heard),
        }
    }
}

fn described(end: &Result<Exit>) -> End {
    match end {
        Ok(exit) => End { done: exit.status == 0, text: format!("has ended with status {}", exit.status) },
        Err(e) => End { done: false, text: e.to_string() },
    }
}

fn not_found(error: Error) -> Error {
    match error.errno() {
        Some(libc::ENOENT | libc::ENOTDIR) => error.with_kind(Kind::NotFound),
        _ => error,
    }
}
