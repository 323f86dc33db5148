//! Terminals: which process has one, and how large it is.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::error::{Error, Kind, Result};
use crate::init::plan::{Process as ProcessPlan, Streams};
use crate::sys::tty::Size;

use super::Engine;
use super::container::Process;
use super::handed::{self, HandedStreams};
use super::lifecycle::State;
use super::stdio::{Stdio, await_readers};

/// Opens our side of a process's streams, and says what its own side is. Pipes are made `owner`'s (user, group).
///
/// # Errors
/// As [`Stdio::open`] and [`Stdio::launch`].
pub(super) async fn open_streams(
    engine: &Rc<Engine>,
    process: &Process,
    planned: &ProcessPlan,
    (uid, gid): (u32, u32),
) -> Result<(Stdio, Streams)> {
    if let Some(handed) = process.handed.take() {
        let streams = match handed {
            HandedStreams::Own(streams) => {
                handed::give(&streams, uid, gid)?;
                Streams::Pipes(streams)
            }
            console @ HandedStreams::Console(_) => {
                process.handed.replace(Some(console));
                Streams::Terminal(process.size.get().or(planned.console_size))
            }
        };
        return Ok((Stdio::nothing(), streams));
    }
    let _until_opened = await_readers(&process.uris).await;
    if process.uris.terminal {
        let stdio = Stdio::open_terminal(&process.uris)?;
        stdio.launch(engine, process).await?;
        return Ok((stdio, Streams::Terminal(process.size.get().or(planned.console_size))));
    }
    let (stdio, ends) = Stdio::open(&process.uris, uid, gid)?;
    stdio.launch(engine, process).await?;
    Ok((stdio, Streams::Pipes([ends.stdin, ends.stdout, ends.stderr])))
}

/// A new container's init has a terminal where both the request and the specification say so.
///
/// runc too refuses what differs, and for a reason: with one that is not expected nobody reads it, and without one that
/// is, the client has put its own terminal into raw mode for nothing. Of an exec the request alone decides, as in
/// containerd's own shim.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn agree(requested: bool, specified: Option<bool>) -> Result<()> {
    if requested == specified.unwrap_or(false) {
        return Ok(());
    }
    let text = format!("process.terminal is {}, but the request says {requested}", !requested);
    Err(Error::new(Kind::InvalidArgument, text))
}

/// Takes the master that a child has sent.
///
/// # Errors
/// `Internal` when it had no reason to, or sent something else.
pub(super) fn connect(process: &Process, master: OwnedFd) -> Result<()> {
    if let Some(HandedStreams::Console(take)) = process.handed.take() {
        return take(master);
    }
    let stdio = process.stdio.borrow().clone();
    match stdio {
        Some(stdio) => stdio.connect(master, process.size.get()),
        None => Err(Error::new(Kind::Internal, "a terminal without streams")),
    }
}

impl Engine {
    /// Sets the size of a process's terminal: now, or when there is one. A process without a terminal has no size to
    /// set, which is no error (containerd's own shim).
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` once it has stopped; `InvalidArgument` for a size that no terminal has.
    pub fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        let process = self.process(id, exec)?;
        let name = |e: Error| e.context(process.to_string());
        if process.state() == State::Stopped || process.reaped.get().is_some() {
            return Err(name(Error::new(Kind::FailedPrecondition, "cannot resize a stopped process")));
        }
        let (Ok(width), Ok(height)) = (u16::try_from(width), u16::try_from(height)) else {
            let text = format!("not the size of a terminal: {width} by {height}");
            return Err(name(Error::new(Kind::InvalidArgument, text)));
        };
        let size = Size { width, height };
        process.size.set(Some(size));
        let stdio = process.stdio.borrow().clone();
        stdio.map_or(Ok(()), |stdio| stdio.resize(size)).map_err(name)
    }
}
