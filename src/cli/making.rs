//! What `create` and `run` have in common: their flags, and the request that these make.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;

use clap::Args;
use futures::future::{Either, select};
use tokio::sync::oneshot;

use super::global::Global;
use super::runtime::{Signals, asked_to_end};
use super::sockets;
use crate::engine::Engine;
use crate::engine::container::Process;
use crate::engine::create::{ByCommand, Request};
use crate::engine::events::StdioUris;
use crate::engine::handed::{Handed, HandedStreams};
use crate::engine::options::Options;
use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::load;

/// Flags of the verbs that make a container.
#[derive(Debug, Args)]
pub struct Making {
    /// Directory of the bundle [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Unix socket that the master of the container's terminal is sent to
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that a pidfd of the container's init is sent to
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the pid of the container's init to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Change the root without pivot_root(2): for a host whose root is a ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Stay in the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// How many descriptors, from 3 on, the container gets
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

/// Who has the master of a container's terminal.
pub enum Terminal {
    /// There is none.
    None,
    /// Who listens at the console socket.
    Sent,
    /// This process.
    Ours(oneshot::Receiver<OwnedFd>),
}

impl Making {
    /// The request for the container `id`; who makes it leaves it alone when `detached`, before its start where `held`.
    ///
    /// # Errors
    /// What cannot be, in runc's words where it has some.
    pub fn request(&self, global: &Global, id: &str, detached: bool, held: bool) -> Result<(Request, Terminal)> {
        judge_id(id)?;
        let bundle = self.bundle.as_deref().unwrap_or(Path::new("."));
        let bundle = std::path::absolute(bundle).os(|| format!("bundle {}", bundle.display()))?;
        let spec = load::load(&bundle, &mut Vec::new())?;
        let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
        let Streamed { streams, terminal: of_terminal } = streams(self.console_socket.as_deref(), terminal, detached)?;
        let (listening, env) = listening()?;
        let handed = Handed { streams: Some(streams), descriptors: descriptors(listening, self.preserve_fds)?, env };
        let request = Request {
            id: id.to_owned(),
            bundle,
            rootfs: Vec::new(),
            stdio: StdioUris { terminal, ..StdioUris::default() },
            options: Options {
                no_pivot_root: self.no_pivot,
                no_new_keyring: self.no_new_keyring,
                systemd_cgroup: global.systemd_cgroup,
                ..Options::default()
            },
            restore: None,
            command: Some(ByCommand { handed, fifo: held }),
        };
        Ok((request, of_terminal))
    }

    /// Makes the container, and tells who wants to know of its init. Gives up at a signal that asks for it. On any error
    /// nothing of it is left.
    ///
    /// # Errors
    /// As [`Engine::create`]; what could not be told.
    pub async fn make(&self, engine: &Rc<Engine>, request: Request, signals: &mut Signals) -> Result<Rc<Process>> {
        let id = request.id.clone();
        let pidfd_socket = self.pidfd_socket.as_deref().map(sockets::connect).transpose();
        let pidfd_socket = pidfd_socket.context(|| "--pidfd-socket")?;
        let creating = pin!(engine.clone().create(request));
        match select(creating, pin!(asked_to_end(signals))).await {
            Either::Left((created, _)) => drop(created?),
            Either::Right((signal, creating)) => {
                // It may have come to its end all the same.
                let (created, ()) = futures::join!(creating, engine.give_up_create(&id));
                created.context(|| format!("given up at signal {signal}"))?;
            }
        }
        let init = engine.process(&id, "")?;
        let told = tell(&init, pidfd_socket.as_ref(), self.pid_file.as_deref());
        if told.is_err()
            && let Err(e) = engine.clone().delete(id, String::new()).await
        {
            log::error!("{e}");
        }
        told.map(|()| init)
    }
}

/// The streams of a process, and who has its terminal.
pub struct Streamed {
    /// For the engine.
    pub streams: HandedStreams,
    /// The terminal.
    pub terminal: Terminal,
}

/// What becomes of the streams of a process, which may want a terminal, and may be left alone.
///
/// # Errors
/// For a terminal that nobody would have, and a socket for none, in runc's words; that nobody listens at the socket.
pub fn streams(console_socket: Option<&Path>, terminal: bool, detached: bool) -> Result<Streamed> {
    let wrong = |text: &str| Err(Error::new(Kind::InvalidArgument, text));
    let (streams, terminal) = match (console_socket, terminal, detached) {
        (None, true, true) => {
            return wrong("cannot allocate tty if dray will detach without setting console socket");
        }
        (Some(_), false, _) | (Some(_), _, false) => {
            return wrong("cannot use console socket if dray will not detach or allocate tty");
        }
        (None, false, _) => (HandedStreams::ours()?, Terminal::None),
        (Some(path), true, true) => {
            let socket = sockets::connect(path).context(|| "--console-socket")?;
            let send = move |master: OwnedFd| sockets::send(&socket, "/dev/ptmx", master.as_fd());
            (HandedStreams::Console(Box::new(send)), Terminal::Sent)
        }
        (None, true, false) => {
            let (sender, master) = oneshot::channel();
            // Nobody hears of it when the process has been given up.
            let keep = move |master| {
                drop(sender.send(master));
                Ok(())
            };
            (HandedStreams::Console(Box::new(keep)), Terminal::Ours(master))
        }
    };
    Ok(Streamed { streams, terminal })
}

/// Tells who wants to know of a process.
///
/// # Errors
/// That it could not be told.
pub fn tell(process: &Process, pidfd_socket: Option<&UnixStream>, pid_file: Option<&Path>) -> Result<()> {
    if let Some(socket) = pidfd_socket {
        // As runc names it, by who has opened it: of a container's init and of an exec alike "standard".
        sockets::send(socket, "standard", process.pidfd()?.as_fd()).context(|| "--pidfd-socket")?;
    }
    pid_file.map_or(Ok(()), |path| write_pid(path, process.pid())).context(|| "--pid-file")
}

/// An id becomes a name in many places; runc's rule.
fn judge_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if id.is_empty() || id == "." || id == ".." || !id.chars().all(good) {
        return Err(Error::new(Kind::InvalidArgument, format!("invalid id format: {id:?}")));
    }
    Ok(())
}

/// By rename: who waits for the file finds all of it.
///
/// # Errors
/// That it cannot be written.
pub fn write_pid(path: &Path, pid: u32) -> Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::new(Kind::InvalidArgument, format!("{} is no file's name", path.display())))?;
    let new = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut file = match File::create_new(&new) {
        // Of one of our pid that was killed.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(&new).os(|| format!("unlink {}", new.display()))?;
            File::create_new(&new)
        }
        file => file,
    }
    .os(|| format!("open {}", new.display()))?;
    let written = file.write_all(pid.to_string().as_bytes()).and_then(|()| std::fs::rename(&new, path));
    written.os(|| format!("write {}", path.display())).inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}

/// How many descriptors from 3 on are handed over.
///
/// # Errors
/// For more than there can be.
pub fn descriptors(listening: u32, preserved: u32) -> Result<u32> {
    let too_many =
        || format!("--preserve-fds {preserved} and LISTEN_FDS={listening}: there are not so many descriptors");
    listening.checked_add(preserved).ok_or_else(|| Error::new(Kind::InvalidArgument, too_many()))
}

/// The sockets that systemd has opened for the container, where it has started us for them (sd_listen_fds(3)): how many, and
/// what their new owner is told.
///
/// # Errors
/// For names that cannot be told.
pub fn listening() -> Result<(u32, Vec<CString>)> {
    let variable = |name: &str| std::env::var(name).ok();
    let own = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
    let count = variable("LISTEN_FDS").and_then(|count| count.parse::<u32>().ok()).filter(|count| own && *count > 0);
    let Some(count) = count else { return Ok((0, Vec::new())) };
    let mut env = vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()];
    env.extend(variable("LISTEN_FDNAMES").map(|names| format!("LISTEN_FDNAMES={names}")));
    let nul = |_| Error::new(Kind::InvalidArgument, "LISTEN_FDNAMES has a NUL byte");
    let env = env.into_iter().map(CString::new).collect::<Result<_, _>>();
    Ok((count, env.map_err(nul)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_runcs() {
        for good in ["a", "A-b_c.d+1", "0"] {
            judge_id(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a b", "\u{e9}", "a:b"] {
            assert!(judge_id(bad).unwrap_err().to_string().contains("invalid id format"), "{bad}");
        }
    }

    #[test]
    fn descriptors_are_counted_as_far_as_numbers_go() {
        assert_eq!(descriptors(1, 2).unwrap(), 3);
        let error = descriptors(2, u32::MAX - 1).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("--preserve-fds 4294967294"), "{error}");
    }

    #[test]
    fn a_pid_file_is_there_as_a_whole() {
        let dir = std::env::temp_dir().join(format!("dray-pid-file-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("pid");
        std::fs::write(&path, "what was there").unwrap();
        write_pid(&path, 123).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "123");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        let left = dir.join(format!(".pid.{}", std::process::id()));
        std::fs::write(&left, "of one that was killed").unwrap();
        write_pid(&path, 4).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4");
        assert!(!left.exists());
        assert!(write_pid(&dir.join("none/pid"), 1).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
