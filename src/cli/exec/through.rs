//! An exec in a living shim's container: the shim gives birth to it, and relays its streams by fifos that are made for it
//! here; between those and the caller's streams this process relays, and hands on signals and the size of the terminal.
//!
//! The fifos are in the container's state directory, which is root's alone and goes with the container, and lose their names
//! once the shim has them open: whatever end this process comes to, nothing stays.
//!
//! A caller who takes no more (`| head -1`) is to the exec what a reader of its own that has gone would be: it is sent SIGPIPE,
//! or SIGHUP where it has a terminal. The shim has no words for the closing of an output, and keeps the fifos readable itself:
//! closed here, the exec would wait in its write for ever. What it says although it was told so is dropped.

use std::cell::Cell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use futures::future::{Either, select};
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::engine::ready::watch;
use crate::error::{Context, Os, Result};
use crate::shim::client::{Client, Streams};

use super::super::console::{CHUNK, Ours, Raw, size};
use super::super::making::write_pid;
use super::super::runtime::{Signals, is_an_end, is_of_our_own};
use super::super::target::Found;
use super::super::trace::Tracing;

/// Between two looks at whether more comes from a process that has ended.
const LOOK: Duration = Duration::from_millis(100);

/// After so many looks in which nothing came nothing will: what still has the streams open is not the exec.
const LOOKS: u32 = 10;

/// Runs the exec to its end; its exit status is the program's.
///
/// # Errors
/// What keeps it from being started.
pub async fn run(
    client: &Client,
    found: &Found,
    mut process: Value,
    pid_file: Option<&Path>,
    tracing: &Tracing,
    signals: Signals,
) -> Result<ExitCode> {
    let id = found.saved.id.as_str();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let exec = format!("dray-{}-{:x}", std::process::id(), since.as_nanos());
    let terminal = process["terminal"] == json!(true);
    let fifos = Fifos::make(&found.state.path().join(format!(".{exec}")), terminal)?;
    if let Some(size) = size().filter(|_| terminal) {
        process["consoleSize"] = json!({ "width": size.width, "height": size.height });
    }
    client.exec(id, &exec, process.to_string().into_bytes(), &fifos.streams()).await?;
    // The wait is asked for when it runs: an exit stays known until the delete below.
    let started = client.start(id, &exec).await;
    tracing.show_last(client, id, &exec).await;
    let pid = match started {
        Ok(pid) => pid,
        Err(e) => {
            let _ = client.delete(id, &exec).await;
            return Err(e);
        }
    };
    fifos.remove_names();
    let told = pid_file.map_or(Ok(()), |path| write_pid(path, pid)).context(|| "--pid-file");
    if let Err(e) = told {
        // Nobody will ask for it any more.
        let _ = client.kill(id, &exec, libc::SIGKILL as u32, false).await;
        let _ = client.wait(id, &exec).await;
        let _ = client.delete(id, &exec).await;
        return Err(e);
    }
    let raw = if terminal { Raw::of_ours()? } else { None };
    let status = relay(client, (id, &exec), &fifos, signals).await;
    drop(raw);
    Ok(ExitCode::from(status? as u8))
}

async fn relay(client: &Client, (id, exec): (&str, &str), fifos: &Fifos, mut signals: Signals) -> Result<u32> {
    let moved = Moved::default();
    let input = async {
        let ended = fifos.relay_stdin().await;
        ended.unwrap_or_else(|e| log::debug!("stdin: {e}"));
        // What it was given so far it may read; its terminal has no end.
        if !fifos.terminal {
            let _ = client.close_stdin(id, exec).await;
        }
        std::future::pending::<()>().await
    };
    let outputs = async {
        let hang_up = async || {
            let signal = if fifos.terminal { libc::SIGHUP } else { libc::SIGPIPE };
            // It may have ended just now.
            let _ = client.kill(id, exec, signal as u32, false).await;
        };
        let stderr = async {
            if let Some(stderr) = &fifos.stderr {
                relay_output(stderr, rustix::stdio::stderr(), &moved, &hang_up).await;
            }
        };
        futures::future::join(relay_output(&fifos.stdout, rustix::stdio::stdout(), &moved, &hang_up), stderr).await;
        moved.ended.set(true);
        std::future::pending::<()>().await
    };
    let hand_on = async {
        while let Some(signal) = signals.recv().await {
            match (signal, fifos.terminal) {
                (libc::SIGWINCH, true) => {
                    let Some(size) = size() else { continue };
                    let _ = client.resize(id, exec, size.width.into(), size.height.into()).await;
                }
                (signal, _) if is_of_our_own(signal) => {}
                // Only a caller who does not take what it has said is waited for.
                (signal, _) if moved.exited.get() && is_an_end(signal) => moved.ended.set(true),
                // It may have ended just now.
                (signal, _) => drop(client.kill(id, exec, signal as u32, false).await),
            }
        }
        std::future::pending::<()>().await
    };
    let ended = async {
        let status = client.wait(id, exec).await?;
        moved.exited.set(true);
        moved.until_idle().await;
        // Now whatever else has its streams open loses them: the shim lets go of its ends.
        client.delete(id, exec).await.map_err(|e| log::warn!("{e}")).ok();
        moved.until_idle().await;
        Ok(status)
    };
    let beside = pin!(futures::future::join3(input, outputs, hand_on));
    match select(pin!(ended), beside).await {
        Either::Left((status, _)) => status,
        Either::Right((((), (), ()), ended)) => ended.await,
    }
}

/// How far the outputs are.
#[derive(Default)]
struct Moved {
    bytes: Cell<usize>,
    /// How many of the outputs are being written to the caller, who takes his time.
    writing: Cell<usize>,
    /// The exec has ended.
    exited: Cell<bool>,
    /// So have the outputs, or nobody wants to wait for them.
    ended: Cell<bool>,
}

impl Moved {
    /// Waits until all is relayed that will come.
    async fn until_idle(&self) {
        let mut looks = 0;
        let mut bytes = self.bytes.get();
        while !self.ended.get() && looks < LOOKS {
            tokio::time::sleep(if looks == 0 { Duration::from_millis(1) } else { LOOK }).await;
            let now = self.bytes.get();
            looks = if now == bytes && self.writing.get() == 0 { looks + 1 } else { 0 };
            bytes = now;
        }
    }
}

/// The fifos of one exec, of which this end is held. Removed when it is dropped.
struct Fifos {
    directory: PathBuf,
    terminal: bool,
    /// Let go of with the caller's: it is a writer as well, without whose end there is none.
    stdin: Cell<Option<AsyncFd<OwnedFd>>>,
    stdout: AsyncFd<OwnedFd>,
    stderr: Option<AsyncFd<OwnedFd>>,
}

impl Fifos {
    fn make(directory: &Path, terminal: bool) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().mode(0o700).create(directory);
        made.os(|| format!("mkdir {}", directory.display()))?;
        Self::fill(directory, terminal).inspect_err(|_| drop(std::fs::remove_dir_all(directory)))
    }

    fn fill(directory: &Path, terminal: bool) -> Result<Self> {
        let fifo = |name: &str, access: OFlags, interest: Interest| {
            let path = directory.join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
                .os(|| format!("mkfifo {}", path.display()))?;
            let fd = rustix::fs::open(&path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
            watch(fd.os(|| format!("open {}", path.display()))?, interest)
        };
        Ok(Self {
            directory: directory.to_owned(),
            terminal,
            // Both ends: what is written before the shim has opened it is kept, and a write never fails.
            stdin: Cell::new(Some(fifo("stdin", OFlags::RDWR, Interest::WRITABLE)?)),
            stdout: fifo("stdout", OFlags::RDONLY, Interest::READABLE)?,
            stderr: (!terminal).then(|| fifo("stderr", OFlags::RDONLY, Interest::READABLE)).transpose()?,
        })
    }

    fn streams(&self) -> Streams {
        let path = |name: &str| self.directory.join(name).to_string_lossy().into_owned();
        let stderr = if self.terminal { String::new() } else { path("stderr") };
        Streams { stdin: path("stdin"), stdout: path("stdout"), stderr, terminal: self.terminal }
    }

    async fn relay_stdin(&self) -> Result<()> {
        let Some(fifo) = self.stdin.take() else { return Ok(()) };
        let caller = Ours::new(rustix::stdio::stdin(), Interest::READABLE);
        let mut buffer = [0; CHUNK];
        loop {
            caller.ready(PollFlags::IN).await;
            let count = match rustix::io::read(caller.fd, &mut buffer) {
                Ok(0) => return Ok(()),
                Err(Errno::AGAIN | Errno::INTR) => continue,
                read => read.os(|| "read stdin")?,
            };
            // No more than the pipe's atom: all of it goes, or none.
            while let Err(errno) = rustix::io::write(&fifo, &buffer[..count]) {
                if errno != Errno::AGAIN {
                    return Err(errno).os(|| "write stdin's fifo");
                }
                let Ok(mut ready) = fifo.writable().await else { return Ok(()) };
                ready.clear_ready();
            }
        }
    }

    /// Both sides have them open, and nobody opens them again.
    fn remove_names(&self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        self.remove_names();
    }
}

/// Until the end of the fifo. When the caller does not take it any more, `hang_up`, and the rest is dropped.
async fn relay_output(fifo: &AsyncFd<OwnedFd>, to: BorrowedFd<'static>, moved: &Moved, hang_up: &impl AsyncFn()) {
    let caller = Ours::new(to, Interest::WRITABLE);
    let mut buffer = [0; CHUNK];
    let mut taken = true;
    loop {
        let Ok(mut ready) = fifo.readable().await else { return };
        match rustix::io::read(fifo, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                moved.bytes.update(|bytes| bytes + count);
                if taken {
                    moved.writing.update(|writing| writing + 1);
                    taken = caller.write(&buffer[..count]).await.is_ok();
                    moved.writing.update(|writing| writing - 1);
                    if !taken && !moved.exited.get() {
                        hang_up().await;
                    }
                }
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(e) => return log::debug!("read of a fifo: {e}"),
        }
    }
}
