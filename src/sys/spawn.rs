//! Running a program that a user or the specification names: a hook, a logger. Never one of ours.
//!
//! It is born as a container's process is ([`fork`]), but stays outside: the shim's namespaces, ids and cgroup, a session
//! of its own, default signals, and no descriptor but those it is given.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use crate::error::{Error, Kind, Os, Result};
use crate::sys::fork::{self, Birth, Child, exit_now};
use crate::sys::{cred, exec, fd, signal};

/// The exit status of a child that could not become its program, as a shell has it for one that is not there.
const NOT_EXECUTED: i32 = 127;

/// As many bytes are told of what went wrong before that.
const WORDS: usize = 1024;

/// What is to be run.
#[derive(Debug)]
pub struct Program {
    /// An absolute path; it is not searched for.
    pub path: CString,
    /// Its arguments, its own name the first.
    pub args: Vec<CString>,
    /// All of its environment.
    pub env: Vec<CString>,
    /// Its descriptors, from 0 on.
    pub fds: Vec<OwnedFd>,
    /// Its working directory; none for the caller's.
    pub cwd: Option<CString>,
    /// It is killed when the shim dies.
    pub die_with_parent: bool,
}

/// A program under way.
#[derive(Debug)]
pub struct Spawned {
    /// Its process, which leads a session and a process group of its own: the caller waits for it.
    pub child: Child,
    failure: OwnedFd,
    name: String,
}

/// Starts `program`, and does not wait until it is executed: its file may lie where an open does not return.
///
/// # Errors
/// As [`fork::fork`]. That it cannot be executed is told by [`Spawned::refused`].
pub fn spawn(program: &Program) -> Result<Spawned> {
    spawn_after(program, || Ok(()))
}

/// The same; `last` is done right before the program is executed.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_after(program: &Program, last: impl FnOnce() -> Result<()>) -> Result<Spawned> {
    start(program, |tell, us| fork::fork(0, None, None, |_| become_program(program, tell, us, last)))
}

/// The same in a child of ours, in its namespaces and as its user. `last` is done right before the program is executed.
///
/// # Errors
/// As [`fork::fork_again`].
pub fn spawn_again(birth: Birth, program: &Program, last: impl FnOnce() -> Result<()>) -> Result<Spawned> {
    start(program, |tell, us| fork::fork_again(birth, || become_program(program, tell, us, last)))
}

fn start(program: &Program, fork: impl FnOnce(&OwnedFd, Pid) -> Result<Child>) -> Result<Spawned> {
    let (failure, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).os(|| "pipe2")?;
    let child = fork(&tell, rustix::process::getpid())?;
    Ok(Spawned { child, failure, name: program.path.to_string_lossy().into_owned() })
}

impl Spawned {
    /// Becomes readable when it is known whether the program is executed: then [`Spawned::refused`] says so.
    pub fn verdict(&self) -> BorrowedFd<'_> {
        self.failure.as_fd()
    }

    /// Why the program was not executed, once its process has ended; `None` where it was.
    pub fn refused(&self) -> Option<Error> {
        let mut record = [0; 4 + WORDS];
        let length = rustix::io::read(&self.failure, &mut record).ok()?;
        let (errno, words) = record[..length].split_first_chunk::<4>()?;
        let errno = i32::from_ne_bytes(*errno);
        Some(match String::from_utf8_lossy(words) {
            none if none.is_empty() => Error::os(errno, format!("executing {}", self.name)),
            words => Error::new(Kind::Internal, format!("before {}: {words}", self.name)).with_errno(Some(errno)),
        })
    }

    /// [`kill_group`] of it.
    pub fn kill_group(&self) {
        kill_group(&self.child);
    }
}

/// SIGKILL for a program and what it has started, as far as that is in its process group. Nothing once it has been waited
/// for: the number may be another's by then.
pub fn kill_group(child: &Child) {
    // First: until it has been waited for its pidfd takes signals, and the number is its own.
    if super::pidfd::kill(&child.pidfd, libc::SIGKILL as u32).is_err() {
        return;
    }
    if let Some(pid) = Pid::from_raw(child.pid) {
        // Not yet the leader of its group: then it is alone.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

fn become_program(program: &Program, tell: &OwnedFd, parent: Pid, last: impl FnOnce() -> Result<()>) -> Infallible {
    // Behind the program's descriptors, where nothing is put in its place.
    let Ok(tell) = above(program.fds.len(), tell.as_fd()) else { exit_now(NOT_EXECUTED) };
    let mut words = String::new();
    let done = prepare(program, &tell, parent).and_then(|()| {
        // Its failure is not the program's: it says itself what it is.
        last().inspect_err(|error| words = error.to_string())
    });
    let Err(error) = done.and_then(|()| exec::execve(&program.path, &program.args, &program.env));
    let mut record = error.errno().unwrap_or(libc::EIO).to_ne_bytes().to_vec();
    record.extend(words.bytes().take(WORDS));
    let _ = rustix::io::write(&tell, &record);
    exit_now(NOT_EXECUTED)
}

fn prepare(program: &Program, tell: &OwnedFd, parent: Pid) -> Result<()> {
    place(&program.fds)?;
    fd::close_all_but(&kept(program.fds.len(), tell))?;
    if program.die_with_parent && !cred::die_with(parent)? {
        // Nobody is there to be told.
        exit_now(NOT_EXECUTED);
    }
    cred::new_session()?;
    if let Some(cwd) = &program.cwd {
        rustix::process::chdir(cwd).os(|| "chdir")?;
    }
    signal::reset()
}

/// Makes `fds` the descriptors from 0 on.
fn place(fds: &[OwnedFd]) -> Result<()> {
    // First all out of the way, else one would be overwritten by another.
    let copies = fds.iter().map(|fd| above(fds.len(), fd.as_fd())).collect::<Result<Vec<_>>>()?;
    for (number, copy) in copies.iter().enumerate() {
        // SAFETY: dup2 touches no memory. What had the number is a value of the parent's, copied above if it is needed,
        // that this process never drops.
        if unsafe { libc::dup2(copy.as_raw_fd(), number as RawFd) } == -1 {
            return Err(std::io::Error::last_os_error()).os(|| format!("dup2 to {number}"));
        }
    }
    Ok(())
}

/// A copy of `fd` with a number of at least `number`.
fn above(number: usize, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, number as RawFd).os(|| "fcntl F_DUPFD_CLOEXEC")
}

/// What stays open.
fn kept(count: usize, tell: &OwnedFd) -> Vec<BorrowedFd<'_>> {
    // SAFETY: `place` has just opened each of these numbers, and nothing closes them before execve.
    let placed = (0..count).map(|number| unsafe { BorrowedFd::borrow_raw(number as RawFd) });
    placed.chain([tell.as_fd()]).collect()
}
