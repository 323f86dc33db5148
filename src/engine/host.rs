//! The process in which an engine lives, a shim's server or a run of the command line: what it has to be so that it may
//! fork without a following execve of its own (the crate's documentation, "The process model").

use std::rc::Rc;

use nix::sys::signal::SigSet;
use tokio::io::Interest;
use tokio::task::LocalSet;

use crate::error::{Os, Result};
use crate::sys::{cred, memory, signal};

use super::Engine;
use super::ready::watch;

/// To be called first of all: from here on signals are read, never handled (a child would inherit the handler), and what is
/// allocated is where a child forgets it.
///
/// # Errors
/// Of an old kernel.
pub fn begin() -> Result<()> {
    signal::block_all()?;
    memory::in_one_heap()
}

/// Keeps others out of this process, whose memory has seen containers' environments; and, where `subreaper`, has the orphans
/// below it become its children.
///
/// # Errors
/// Of an old kernel.
pub fn guard(subreaper: bool) -> Result<()> {
    cred::not_dumpable()?;
    if subreaper { cred::become_subreaper() } else { Ok(()) }
}

/// Has the place of a panic logged. In a forked child the log is closed, and the panic becomes an error record (init/mod.rs).
pub fn log_panics() {
    let own_pid = std::process::id();
    std::panic::set_hook(Box::new(move |panic| {
        if std::process::id() == own_pid {
            log::error!("{panic}");
        }
    }));
}

/// Runs the loop until `work` is done.
///
/// # Errors
/// What `work` says.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().os(|| "epoll_create")?;
    LocalSet::new().block_on(&runtime, work)
}

/// Reads signals: children's ends are the engine's, and others `on`'s, by their numbers. To be spawned.
///
/// # Errors
/// When they cannot be read.
pub fn read_signals(engine: Rc<Engine>, on: impl Fn(&Rc<Engine>, i32)) -> Result<impl Future<Output = ()>> {
    let signals = watch(signal::signalfd(&SigSet::all())?, Interest::READABLE)?;
    Ok(async move {
        loop {
            let Ok(mut ready) = signals.readable().await else { return };
            while let Ok(Some(info)) = signals.get_ref().read_signal() {
                match info.ssi_signo as i32 {
                    libc::SIGCHLD => engine.reap(),
                    number => on(&engine, number),
                }
            }
            ready.clear_ready();
        }
    })
}
