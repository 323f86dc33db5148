//! Running hooks: one runner for all, and the steps at which a container's child comes to them.
//!
//! The runner waits, so it is for a process that has nothing else to do: the child itself for the hooks in its
//! namespaces, a helper of the shim's for those in the runtime's, the action `delete` for the last ones of a dead shim's.
//!
//! A hook gets nothing but its arguments and environment, the state on its stdin (a memory file: whoever does not read it
//! holds up nobody), and one pipe as stdout and stderr, of which the end is told when it fails. Output is read as it
//! comes, so that no hook waits for us; and no longer than the hook itself lives, so that we wait for nothing that it
//! leaves behind. At its timeout it is killed with its process group.

use std::ffi::CString;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::hooks::{About, Hook};
use crate::sys::cred;
use crate::sys::fork::Birth;
use crate::sys::spawn::{self, Program, Spawned};

use super::kept::Kept;
use super::plan::{Hooks, Work};
use super::rootfs;
use super::seccomp;
use super::steps::Born;

/// How much of a hook's output an error tells: its end.
const TAIL: usize = 4096;

/// How much is still read when the hook has ended: what a pipe holds. Something that it has left behind may go on writing.
const LAST_READ: usize = 64 * 1024;

/// How long a hook may take to die.
const DYING_BOUND: Duration = Duration::from_secs(5);

/// The file mode creation mask of the hooks that do not have the container's.
const UMASK: u32 = 0o022;

/// Runs hooks in the runtime's namespaces, in order, until one fails. `pid` is the container's, if it has one. When `shim`
/// hangs up they are given up, and ended with their process group; without it they live on by themselves.
///
/// # Errors
/// What failed: the hook by its place and its path, how it ended, and the last of its output.
pub fn run_outside(hooks: &[Hook], about: &About, pid: Option<i32>, shim: Option<BorrowedFd<'_>>) -> Result<()> {
    // A bundle can be gone before its container's last hooks.
    let cwd = if about.bundle.is_dir() { &about.bundle } else { Path::new("/") };
    for hook in hooks {
        let start = |program: &Program| spawn::spawn(program);
        let env = hook.env.clone().unwrap_or_else(search_path);
        let tie = Tie { die_with_parent: shim.is_some(), shim };
        run(hook, env, Some(cwd), tie, &about.state(hook.point, pid), start)?;
    }
    Ok(())
}

/// Hooks that are not given an environment have the PATH that the runtime was started with: some rely on it, because runc
/// and crun give them all that they have themselves. By the specification it would be empty.
fn search_path() -> Vec<CString> {
    let variable = |value: std::ffi::OsString| CString::new([b"PATH=", value.as_bytes()].concat()).ok();
    std::env::var_os("PATH").and_then(variable).into_iter().collect()
}

fn plan<'a>(born: &Born<'a>) -> Option<&'a Hooks> {
    match &born.plan.work {
        Work::Create(create) => create.hooks.as_ref(),
        Work::Exec(_) => None,
    }
}

/// The hooks of create, where there are any, the shim's or the container's.
fn of_create<'a>(born: &Born<'a>) -> Option<&'a Hooks> {
    plan(born).filter(|hooks| hooks.outside || !hooks.create_container.is_empty())
}

/// Lets the shim run its hooks of create. In a container that has none nothing is said.
pub fn wait_for_shims(born: &mut Born<'_>) -> Result<()> {
    of_create(born).map_or(Ok(()), |_| born.sync.wait_for_hooks())
}

/// Runs the container's hooks of create.
pub fn at_create(born: &mut Born<'_>) -> Result<()> {
    let Some(hooks) = of_create(born) else { return Ok(()) };
    // As with runc: in the root file system as the hook sees it, by the host's path.
    let cwd = rootfs::plan(born).map(|rootfs| rootfs.path.as_path());
    run_inside(born.birth, &born.plan.process.env, &hooks.about, &hooks.create_container, cwd, || {
        // The devices are made with none.
        cred::set_umask(UMASK);
        Ok(())
    })
}

/// Runs the container's hooks of start: programs of its own, as its user and under its seccomp filter, as with runc.
pub fn at_start(kept: &mut Kept) -> Result<()> {
    let Some(hooks) = &kept.hooks else { return Ok(()) };
    run_inside(kept.birth, &kept.env, &hooks.about, &hooks.start_container, None, || seccomp::load_filter(kept))
}

/// Runs hooks in the container's namespaces; `last` is done in each one's process. `env` is the environment of those that
/// have none of their own.
fn run_inside(
    birth: Birth,
    env: &[CString],
    about: &About,
    hooks: &[Hook],
    cwd: Option<&Path>,
    last: impl Fn() -> Result<()>,
) -> Result<()> {
    for hook in hooks {
        // Its pid as the container has it (runtime.md, "State").
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let start = |program: &Program| spawn::spawn_again(birth, program, &last);
        let env = hook.env.as_deref().unwrap_or(env).to_vec();
        // This process dies with the shim; what is in the container's pid namespace or cgroup dies with this process.
        let tie = Tie { die_with_parent: true, shim: None };
        run(hook, env, cwd, tie, &about.state(hook.point, Some(pid)), start)?;
    }
    Ok(())
}

/// What a hook ends with.
#[derive(Clone, Copy)]
struct Tie<'a> {
    /// The process that runs it.
    die_with_parent: bool,
    /// Whoever has the other end of this.
    shim: Option<BorrowedFd<'a>>,
}

fn run(
    hook: &Hook,
    env: Vec<CString>,
    cwd: Option<&Path>,
    tie: Tie<'_>,
    state: &[u8],
    start: impl FnOnce(&Program) -> Result<Spawned>,
) -> Result<()> {
    let run = || -> Result<()> {
        let (output, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).os(|| "pipe2")?;
        rustix::fs::fcntl_setfl(&output, rustix::fs::OFlags::NONBLOCK).os(|| "fcntl F_SETFL")?;
        let fds = vec![input(state)?, writer.try_clone().os(|| "dup")?, writer];
        let cwd = cwd.and_then(|cwd| CString::new(cwd.as_os_str().as_bytes()).ok());
        let (path, args, die_with_parent) = (hook.path.clone(), hook.args.clone(), tie.die_with_parent);
        let program = Program { path, args, env, fds, cwd, die_with_parent };
        let spawned = start(&program)?;
        // With it our copies of its descriptors: the pipe ends with the hook.
        drop(program);
        supervise(&spawned, output, hook.timeout, tie.shim)
    };
    run().context(|| format!("hooks.{}[{}]: {}", hook.point.name(), hook.index, hook.path.to_string_lossy()))
}

/// The state, as a file to be read from its beginning.
fn input(state: &[u8]) -> Result<OwnedFd> {
    let create = |flags| rustix::fs::memfd_create("state.json", flags | MemfdFlags::CLOEXEC);
    let memfd = match create(MemfdFlags::NOEXEC_SEAL) {
        // Linux 6.3; before it there is no sysctl that refuses the other kind.
        Err(Errno::INVAL) => create(MemfdFlags::empty()),
        other => other,
    };
    let mut file = File::from(memfd.os(|| "memfd_create")?);
    file.write_all(state).and_then(|()| file.rewind()).os(|| "write of the state")?;
    Ok(file.into())
}

/// Waits for the hook's end, and reads what it says meanwhile.
fn supervise(
    spawned: &Spawned,
    output: OwnedFd,
    timeout: Option<Duration>,
    mut shim: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let mut tail = Tail(Vec::new());
    let mut output = Some(output);
    let mut deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut killed = false;
    loop {
        match wait(spawned, output.as_ref(), shim, deadline)? {
            Woken::Output => {
                if output.as_ref().is_some_and(|output| tail.read(output, LAST_READ)) {
                    output = None;
                }
            }
            Woken::Ended => break,
            Woken::Abandoned => {
                spawned.kill_group();
                shim = None;
                deadline = Some(Instant::now() + DYING_BOUND);
            }
            Woken::Deadline if killed => return Err(late(timeout).context("and it does not die")),
            Woken::Deadline => {
                spawned.kill_group();
                killed = true;
                deadline = Some(Instant::now() + DYING_BOUND);
            }
        }
    }
    if let Some(output) = &output {
        tail.read(output, LAST_READ);
    }
    let pid = Pid::from_raw(spawned.child.pid);
    let waited = rustix::io::retry_on_intr(|| rustix::process::waitpid(pid, WaitOptions::empty()));
    let status = waited.os(|| "waitpid")?.map(|(_, status)| status);
    if killed {
        return Err(tail.told(late(timeout)));
    }
    if let Some(error) = spawned.refused() {
        // The specification is at fault, not the shim.
        return Err(match error.errno() {
            Some(libc::ENOENT | libc::EACCES | libc::ENOEXEC | libc::ENOTDIR | libc::ELOOP) => {
                error.with_kind(Kind::InvalidArgument)
            }
            _ => error,
        });
    }
    let failed = |how: String| Err(tail.told(Error::new(Kind::Internal, how)));
    match status.map(|status: WaitStatus| (status.exit_status(), status.terminating_signal())) {
        Some((Some(0), _)) => Ok(()),
        Some((Some(status), _)) => failed(format!("exit status {status}")),
        Some((_, Some(signal))) => failed(format!("killed by signal {signal}")),
        _ => failed("no exit status".to_owned()),
    }
}

fn late(timeout: Option<Duration>) -> Error {
    let seconds = timeout.unwrap_or_default().as_secs();
    Error::new(Kind::DeadlineExceeded, format!("killed at its timeout of {seconds} s"))
}

/// What there is to be done about a hook.
enum Woken {
    Output,
    Ended,
    Abandoned,
    Deadline,
}

fn wait(
    spawned: &Spawned,
    output: Option<&OwnedFd>,
    shim: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> Result<Woken> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::new(&spawned.child.pidfd, PollFlags::IN)];
        // Its end is told unasked.
        fds.extend(shim.map(|shim| PollFd::from_borrowed_fd(shim, PollFlags::empty())));
        fds.extend(output.map(|output| PollFd::new(output, PollFlags::IN)));
        match poll(&mut fds, left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::os(e, "poll")),
            Ok(0) => return Ok(Woken::Deadline),
            // First: what it has left behind may write without end.
            Ok(_) if !fds[0].revents().is_empty() => return Ok(Woken::Ended),
            Ok(_) if shim.is_some() && !fds[1].revents().is_empty() => return Ok(Woken::Abandoned),
            // As it may itself.
            Ok(_) if left.is_some_and(|left| left == Timespec::default()) => return Ok(Woken::Deadline),
            Ok(_) => return Ok(Woken::Output),
        }
    }
}

/// The last of what a hook has said.
struct Tail(Vec<u8>);

impl Tail {
    /// Reads what is there, about `most` bytes; true at the end of it all.
    fn read(&mut self, output: &OwnedFd, most: usize) -> bool {
        let mut buffer = [0; TAIL];
        let mut read = 0;
        while read < most {
            match rustix::io::read(output.as_fd(), &mut buffer) {
                Ok(0) => return true,
                Ok(length) => {
                    self.0.extend_from_slice(&buffer[..length]);
                    self.0.drain(..self.0.len().saturating_sub(TAIL));
                    read += length;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    fn told(&self, error: Error) -> Error {
        match String::from_utf8_lossy(&self.0).trim() {
            "" => error,
            text => Error::new(error.kind(), format!("{error}; it said: {text}")),
        }
    }
}
