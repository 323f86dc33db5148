//! CRIU, which writes processes to images and makes them of images again (<https://criu.org>).
//!
//! It is run as runc runs it: as a child, `criu swrk 3`, that is asked once over a socket and tells what it does on the way
//! (notifications), each of which waits for an answer. What it restores becomes our child and not its own.
//!
//! ```text
//!   dray                                 criu
//!    |  spawn, with its socket            |
//!    |  request ------------------------> |
//!    |<--------------------- notification |  } as often as there are some
//!    |  answer -------------------------> |  }
//!    |<---------------------------- answer|
//!    |  closes the socket                 |  ends
//! ```
//!
//! It is never killed while it writes, but at a bound that is an hour: a process whose memory is being read has code of
//! CRIU's in it, which only CRIU takes out again. A restore is given up together with what it has made. It sees by the
//! socket that the shim has died.

mod log;
pub(super) mod mounts;
pub(super) mod restrictions;
mod settings;
pub mod wire;

use std::ffi::{CString, OsStr, OsString};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Kind, Os, Result};
use crate::sys::exec::find;
use crate::sys::spawn::Program;

use super::Engine;
use super::create::SET_UP_BOUND;
use super::program::{EndedWithThis, Running};
use super::ready::watch;
pub use settings::Settings;
pub(super) use settings::{Places, config_file, make_directory};
use wire::{Message, Options, Request};

/// How long CRIU may be at work without a word: writing much memory to a slow disk takes its time, and that of a container
/// whose pages go to another machine first takes longer.
const BOUND: Duration = Duration::from_secs(3600);

/// How long it may take to end once it has answered.
const END_BOUND: Duration = Duration::from_secs(10);

/// The largest message: names of notifications, and words about an error.
const MAX: usize = 40 * 1024;

/// Where programs are where nobody says it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// CRIU under way.
pub(super) struct Criu {
    running: Running,
    socket: AsyncFd<OwnedFd>,
}

/// A notification, with what comes with it.
pub(super) struct Notification {
    /// Its name.
    pub name: String,
    /// The root of the tree that is being restored.
    pub pid: Option<i32>,
    /// The master of a terminal.
    pub fd: Option<OwnedFd>,
}

fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| PATH.into())
}

/// The program: the one that is named, or the first on our PATH.
///
/// # Errors
/// `FailedPrecondition` where there is none.
pub(super) fn program(named: Option<&Path>) -> Result<PathBuf> {
    let name = named.unwrap_or(Path::new("criu"));
    if name.components().count() > 1 {
        return std::path::absolute(name).os(|| format!("criu at {}", name.display()));
    }
    let path = search_path();
    find(name, &path).ok_or_else(|| {
        let text = format!(
            "{}: executable file not found in $PATH: checkpoint and restore need CRIU, 3.15 or later",
            name.display()
        );
        Error::new(Kind::FailedPrecondition, text)
    })
}

/// The number that a descriptor of `extra` has in CRIU.
pub(super) fn extra_number(index: usize) -> i32 {
    // After its standard streams and the socket.
    4 + index as i32
}

impl Engine {
    /// Starts it with these standard streams and further descriptors. `last` is done in its process before it is executed.
    pub(super) fn run_criu(
        &self,
        program: &Path,
        streams: [OwnedFd; 3],
        extra: Vec<OwnedFd>,
        last: impl FnOnce() -> Result<()>,
    ) -> Result<Criu> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).os(|| "socketpair")?;
        rustix::io::ioctl_fionbio(&ours, true).os(|| "ioctl FIONBIO")?;
        let words = |word: &OsStr| CString::new(word.as_bytes());
        let text = |word: &OsStr| words(word).map_err(|_| Error::new(Kind::InvalidArgument, format!("{word:?}")));
        let mut environment = OsString::from("PATH=");
        environment.push(search_path());
        let program = Program {
            path: text(program.as_os_str())?,
            args: ["criu", "swrk", "3"].iter().map(|word| text(OsStr::new(word))).collect::<Result<_>>()?,
            env: vec![text(&environment)?],
            fds: streams.into_iter().chain([theirs]).chain(extra).collect(),
            cwd: Some(c"/".to_owned()),
            die_with_parent: false,
        };
        let running = self.run_program_after(&program, last)?;
        Ok(Criu { running, socket: watch(ours, Interest::READABLE)? })
    }
}

impl Criu {
    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What ends it by its own end, however that comes: for a restore, in which it reads no process's memory.
    pub(super) fn ended_with_this(&self) -> Result<EndedWithThis> {
        self.running.ended_with_this()
    }

    /// Waits until it is CRIU, and has done what was to be done before.
    ///
    /// # Errors
    /// What could not be done; `DeadlineExceeded`, for the file systems that it is done on may not answer.
    pub(super) async fn executed(&mut self) -> Result<()> {
        tokio::time::timeout(SET_UP_BOUND, self.running.executed()).await.unwrap_or_else(|_| {
            let text = format!("criu: not executed within {} s", SET_UP_BOUND.as_secs());
            Err(Error::new(Kind::DeadlineExceeded, text))
        })
    }

    /// Asks for something, answers the notifications by `on`, and waits for the answer and for its end.
    ///
    /// # Errors
    /// What `on` says; why CRIU has failed, by its log.
    pub(super) async fn ask(
        mut self,
        what: Request,
        options: &Options,
        log: &Path,
        on: impl AsyncFnMut(Notification) -> Result<()>,
    ) -> Result<Message> {
        let asked = self.converse(&wire::request(what, options), on).await;
        let Self { mut running, socket } = self;
        // It waits for more otherwise.
        drop(socket);
        let failed = |words: String| Err(failure(words, log));
        let end = match tokio::time::timeout(END_BOUND, running.end()).await {
            Ok(end) => end,
            Err(_) => {
                running.kill();
                return failed("it does not end".to_owned());
            }
        };
        let exit = end?;
        match asked? {
            Some(message) if message.success && (exit.status == 0 || what == Request::PreDump) => Ok(message),
            Some(message) if message.success => failed(format!("it ended with status {}", exit.status)),
            Some(Message { words: Some(words), .. }) if !words.trim().is_empty() => failed(words.trim().to_owned()),
            Some(message) => failed(message.errno.map(|errno| Error::os(errno, "").to_string()).unwrap_or_default()),
            None => failed(format!("it ended without an answer, with status {}", exit.status)),
        }
    }

    /// Its answer; `None` where it ends without one.
    async fn converse(
        &mut self,
        request: &[u8],
        mut on: impl AsyncFnMut(Notification) -> Result<()>,
    ) -> Result<Option<Message>> {
        let mut first = Ok(());
        match self.send(request) {
            Err(e) if matches!(e.errno(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                let text =
                    format!("a request of {} bytes, as one with very many mounts has: it is too long", request.len());
                return Err(e.context(text));
            }
            // Its end tells why.
            Err(_) => return Ok(None),
            Ok(()) => {}
        }
        loop {
            let Ok(received) = tokio::time::timeout(BOUND, self.receive()).await else {
                self.running.kill();
                let text = format!("criu: no word for {} s", BOUND.as_secs());
                return Err(Error::new(Kind::DeadlineExceeded, text));
            };
            let Some((message, fd)) = received? else { return first.map(|()| None) };
            if !message.is_notification() {
                // What made us refuse to go on is the reason, and not that it has not gone on.
                return first.map(|()| Some(message));
            }
            let (name, pid) = (message.notification.unwrap_or_default(), message.pid);
            let done = match &first {
                Ok(()) => on(Notification { name, pid, fd }).await,
                Err(_) => Ok(()),
            };
            let answer = wire::notified(first.is_ok() && done.is_ok());
            first = first.and(done);
            if self.send(&answer).is_err() {
                return first.map(|()| None);
            }
        }
    }

    /// It reads each message before it says anything: there is always room for one.
    fn send(&self, message: &[u8]) -> Result<()> {
        let mut control = SendAncillaryBuffer::default();
        sendmsg(self.socket.get_ref(), &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)
            .map(drop)
            .os(|| "sendmsg to criu")
    }

    async fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        let mut buffer = vec![0; MAX];
        loop {
            let mut ready = self.socket.readable().await.os(|| "epoll_wait")?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(self.socket.get_ref(), &mut [IoSliceMut::new(&mut buffer)], &mut control, flags);
            let length = match received {
                Ok(message) => message.bytes,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                    ready.clear_ready();
                    continue;
                }
                Err(rustix::io::Errno::CONNRESET) => 0,
                Err(e) => return Err(Error::os(e, "recvmsg from criu")),
            };
            let mut fd = None;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                    fd = fds.next();
                }
            }
            return match length {
                0 => Ok(None),
                length => wire::read(&buffer[..length]).map(|message| Some((message, fd))),
            };
        }
    }
}

/// Why CRIU has failed: in its own words, as few as there are, with those of its log.
fn failure(words: String, log: &Path) -> Error {
    let mut text = "criu has failed".to_owned();
    for part in [words].into_iter().filter(|words| !words.is_empty()).chain(log::errors(log)) {
        text += &format!(": {part}");
    }
    Error::new(Kind::Internal, text)
}
