//! Asking another program a question, as `containerd --version`: with a bound, since it may be anything.

use std::ffi::{CString, OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::error::{Error, Kind, Os, Result};
use crate::sys::spawn::{Program, Spawned, spawn};

/// What is read of an answer.
const MAX_ANSWER: u64 = 64 << 10;

/// What a program has said, on stdout and stderr together, and its exit status; a signal is none.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The bytes that are no UTF-8 are replaced.
    pub text: String,
    /// `None` where a signal ended it.
    pub status: Option<i32>,
}

impl Answer {
    /// Whether it says that all is well.
    pub fn is_success(&self) -> bool {
        self.status == Some(0)
    }
}

/// Runs `path` with `args` and our environment, stdin null.
///
/// # Errors
/// That it cannot be executed; `DeadlineExceeded` after `bound`, when it and its process group have been killed.
pub fn ask(path: &Path, args: &[&str], bound: Duration) -> Result<Answer> {
    let (answer, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).os(|| "pipe2")?;
    let null =
        rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).os(|| "open /dev/null")?;
    let stderr = theirs.try_clone().os(|| "dup")?;
    let program = Program {
        path: c_string(path.as_os_str())?,
        args: [path.as_os_str()].into_iter().chain(args.iter().map(OsStr::new)).map(c_string).collect::<Result<_>>()?,
        env: std::env::vars_os().map(|(name, value)| variable(&name, &value)).collect::<Result<_>>()?,
        fds: vec![null, theirs, stderr],
        cwd: None,
        die_with_parent: true,
    };
    // A signal between the fork and the reset of its dispositions would be handled as ours are.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).os(|| "sigprocmask")?;
    let spawned = spawn(&program);
    mask.thread_set_mask().os(|| "sigprocmask")?;
    let spawned = spawned?;
    // Else the end of its answer would never be seen.
    drop(program);
    let heard = listen(answer, &spawned, Instant::now() + bound);
    if heard.is_err() {
        spawned.kill_group();
    }
    let status = wait(&spawned)?;
    if let Some(refused) = spawned.refused() {
        return Err(refused);
    }
    match heard? {
        Some(text) => Ok(Answer { text, status }),
        None => Err(Error::new(Kind::DeadlineExceeded, format!("{}: no answer", path.display()))),
    }
}

/// Reads until nobody writes any more and the program has ended; `None`, and it is killed, where that is not so in time.
fn listen(answer: OwnedFd, spawned: &Spawned, until: Instant) -> Result<Option<String>> {
    let mut text = Vec::new();
    let mut answer = Some(std::fs::File::from(answer));
    let mut lives = true;
    while answer.is_some() || lives {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            spawned.kill_group();
            return Ok(None);
        }
        let (reads, ends) = match &answer {
            Some(file) => {
                wait_for(&[file.as_fd(), spawned.child.pidfd.as_fd()], left).map(|ready| (ready[0], ready[1]))
            }
            None => wait_for(&[spawned.child.pidfd.as_fd()], left).map(|ready| (false, ready[0])),
        }?;
        if let (true, Some(file)) = (reads, &mut answer) {
            let mut part = [0; 4096];
            let read = file.read(&mut part).os(|| "read what a program says")?;
            text.extend_from_slice(&part[..read]);
            if read == 0 || text.len() as u64 > MAX_ANSWER {
                answer = None;
            }
        } else if ends {
            // What it left behind in the background may hold the pipe: the answer was its own.
            lives = false;
            answer = None;
        }
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

fn wait_for(fds: &[rustix::fd::BorrowedFd<'_>], left: Duration) -> Result<Vec<bool>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    rustix::io::retry_on_intr(|| poll(&mut polled, Some(&left))).os(|| "poll")?;
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

fn wait(spawned: &Spawned) -> Result<Option<i32>> {
    let pid = Pid::from_raw(spawned.child.pid);
    let waited = rustix::io::retry_on_intr(|| waitpid(pid, WaitOptions::empty())).os(|| "waitpid")?;
    Ok(waited.and_then(|(_, status)| status.exit_status()))
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::new(Kind::InvalidArgument, format!("{text:?} contains a NUL")))
}

fn variable(name: &OsStr, value: &OsStr) -> Result<CString> {
    c_string(&OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat()))
}
