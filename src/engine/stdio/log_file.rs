//! What a forked child does for `file://`: it appends to the file what comes out of a process's pipes, until they end.
//!
//! A child, because a write to a regular file may take as long as its disk or its server does, and the loop waits for
//! nobody. It takes from the pipes whatever becomes of the file: a full disk loses output, and never stops a container.
//! Not even the shim's death ends it before it has written what there is.

use std::convert::Infallible;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;

use crate::error::{Error, Kind, Os, Result};
use crate::init::sync::ChildEnd;
use crate::sys::fork::exit_now;
use crate::sys::{cred, fd};

/// What is read and written at a time. Small, for the pages that it takes are this process's own.
const CHUNK: usize = 16 << 10;

/// Says by `answer` that the file is open, writes until the ends of `pipes`, and leaves. Failures to write go to `answer`
/// too.
pub(super) fn run(path: &Path, pipes: [&OwnedFd; 2], answer: &ChildEnd) -> Infallible {
    let work = || {
        fd::close_all_but(&[pipes[0].as_fd(), pipes[1].as_fd(), answer.as_fd()])?;
        // Out of the shim's process group: a signal to that is not for it.
        cred::new_session()?;
        let _ = rustix::thread::set_name(c"dray-log");
        let file = open(path)?;
        answer.done();
        append(&mut Log { file, answer, lost: 0 }, pipes)
    };
    let panicked = |_| Err(Error::new(Kind::Internal, "panic"));
    match catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked) {
        Ok(()) => exit_now(0),
        Err(error) => answer.fail("log file", &error),
    }
    exit_now(1)
}

/// As containerd's own shim does, and with its modes.
fn open(path: &Path) -> Result<File> {
    let shown = path.display();
    if let Some(parent) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(parent);
        made.os(|| format!("mkdir {}", parent.display()))?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).custom_flags(libc::O_NOCTTY);
    options.open(path).os(|| format!("open {shown}"))
}

/// The file, and what it did not take since it last took something.
struct Log<'a> {
    file: File,
    answer: &'a ChildEnd,
    lost: u64,
}

impl Log<'_> {
    fn write(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            match self.file.write(data) {
                Ok(n) => {
                    data = &data[n..];
                    self.tell_lost();
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    // Once, and not for each line.
                    if self.lost == 0 {
                        let error = Error::os(e.raw_os_error().unwrap_or(libc::EIO), "write");
                        self.answer.fail("output is being lost", &error);
                    }
                    self.lost += data.len() as u64;
                    return;
                }
            }
        }
    }

    fn tell_lost(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            self.answer.fail("log file", &Error::new(Kind::Unavailable, format!("{lost} bytes of output were lost")));
        }
    }
}

fn append(log: &mut Log<'_>, pipes: [&OwnedFd; 2]) -> Result<()> {
    let mut open = pipes.to_vec();
    let mut buffer = [0; CHUNK];
    while !open.is_empty() {
        // The last first: what has ended is taken out on the way.
        for index in readable(&open)?.into_iter().rev() {
            match retry_on_intr(|| rustix::io::read(open[index], &mut buffer)).os(|| "read")? {
                0 => drop(open.remove(index)),
                n => log.write(&buffer[..n]),
            }
        }
    }
    log.tell_lost();
    Ok(())
}

/// Waits until some of `pipes` have something to read, or have ended.
fn readable(pipes: &[&OwnedFd]) -> Result<Vec<usize>> {
    let mut fds: Vec<_> = pipes.iter().map(|pipe| PollFd::new(*pipe, PollFlags::IN)).collect();
    retry_on_intr(|| poll(&mut fds, None)).os(|| "poll")?;
    Ok((0..fds.len()).filter(|&index| !fds[index].revents().is_empty()).collect())
}
