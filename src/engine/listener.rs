//! Seccomp notification: the descriptor on which calls are told and answered (seccomp_unotify(2)), from a container's
//! process to the listener that its specification names (config-linux.md, "The Container Process State").
//!
//! Each process has a filter of its own, and with it a descriptor: init, and every exec. The process is held until the
//! listener has it, so that a program never runs whose calls nobody will answer; [`crate::sys::mailbox`] tells how it is
//! held without a call that the filter might have an opinion about. Taking the descriptor needs CAP_SYS_PTRACE, since the
//! process is not dumpable.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::fs::FileType;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with, sockopt,
};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::init::sync::Heard;
use crate::spec::features::OCI_VERSIONS;
use crate::spec::hooks::About;
use crate::spec::seccomp::notifies;
use crate::sys::mailbox::Receiver;
use crate::sys::pidfd;

use super::Engine;
use super::container::{Container, Process};
use super::create::sync_of;

/// How long a listener may take to accept a connection, and a file system to find its path.
const CONNECT_BOUND: Duration = Duration::from_secs(10);

/// How long a child may take to load its filter, which it does at once.
const LOAD_BOUND: Duration = Duration::from_secs(30);

/// How often its mailbox is looked at. It is not to wait for long: it waits by looking, too.
const LOOK: Duration = Duration::from_millis(1);

/// Who answers a container's calls.
pub struct Listener {
    path: PathBuf,
    metadata: Option<String>,
    about: About,
}

impl Listener {
    /// The one of a specification; `None` where it has no call to answer.
    pub fn of(id: &str, bundle: &std::path::Path, spec: &Spec) -> Option<Self> {
        let profile = spec.linux().as_ref()?.seccomp().as_ref().filter(|profile| notifies(profile))?;
        let path = profile.listener_path().clone()?;
        let metadata = profile.listener_metadata().clone().filter(|metadata| !metadata.is_empty());
        Some(Self { path, metadata, about: About::new(id, bundle, spec) })
    }

    fn name(&self) -> String {
        format!("linux.seccomp.listenerPath {}", self.path.display())
    }

    /// What it is told with the descriptor. `creating` stands for init and `running` for an exec, as with runc: by that
    /// listeners tell them apart.
    fn state(&self, process: &Process, init: u32) -> String {
        let status = if process.exec.is_empty() { "creating" } else { "running" };
        let mut state = serde_json::json!({
            "ociVersion": OCI_VERSIONS.1,
            "fds": ["seccompFd"],
            "pid": process.pid(),
            "state": self.about.state_as(status, Some(init as i32)),
        });
        if let Some(metadata) = &self.metadata {
            state["metadata"] = metadata.as_str().into();
        }
        state.to_string()
    }
}

impl Engine {
    /// Sees to it that there is a socket at its path, before a container is made that could not start. Whether anybody
    /// listens is seen then: a connection without a message is none that a listener expects.
    pub(super) async fn look_for(&self, listener: &Listener) -> Result<()> {
        let look = || {
            let stat = rustix::fs::stat(&listener.path).os(|| "stat")?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Socket => Ok(()),
                _ => Err(Error::new(Kind::FailedPrecondition, "is not a socket")),
            }
        };
        let looked = self.in_child("looking for the listener", CONNECT_BOUND, look).await;
        looked.map_err(|e| e.with_kind(Kind::FailedPrecondition)).context(|| listener.name())
    }

    /// Has the child load its filter and hands the descriptor of that to the listener.
    ///
    /// # Errors
    /// With the listener's path, when it does not take it. The child is held still then, and is to be killed.
    pub(super) async fn hand_over(&self, container: &Container, process: &Process, mailbox: Receiver) -> Result<()> {
        let missing = || Error::new(Kind::Internal, "a filter with a listener that the profile does not have");
        let listener = container.listener.as_ref().ok_or_else(missing)?;
        let state = listener.state(process, container.init.pid());
        let connected = self.connect(listener, state.len()).await;
        let connection = connected.map_err(|e| e.with_kind(Kind::FailedPrecondition)).context(|| listener.name())?;
        sync_of(process)?.get_ref().load_filter()?;
        let loaded = tokio::time::timeout(LOAD_BOUND, loaded(process, &mailbox)).await;
        let late = |_| Err(Error::new(Kind::DeadlineExceeded, "the seccomp filter was not loaded in time"));
        let number = loaded.unwrap_or_else(late)?;
        let descriptor = pidfd::descriptor(process.pidfd()?, number)?;
        is_notification(&descriptor)?;
        send(&connection, state.as_bytes(), descriptor.as_fd()).context(|| listener.name())?;
        // By a helper: who has taken the child over in its container can hold whoever writes to its memory.
        let file = [mailbox.as_fd()];
        self.in_child_at("letting the process go on", LOAD_BOUND, None, &file, || mailbox.taken()).await
    }

    /// A connection to it that takes a message of `length` bytes at once. The listener sees a helper of ours as its peer.
    async fn connect(&self, listener: &Listener, length: usize) -> Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let socket = socket.os(|| "socket AF_UNIX")?;
        let address = SocketAddrUnix::new(&listener.path).os(|| "socket address")?;
        let enough = 2 * length + 64 * 1024;
        if sockopt::socket_send_buffer_size(&socket).os(|| "getsockopt SO_SNDBUF")? < enough {
            sockopt::set_socket_send_buffer_size_force(&socket, enough).os(|| "setsockopt SO_SNDBUFFORCE")?;
        }
        let work = || connect(&socket, &address).os(|| "connect");
        self.in_child_at("connecting", CONNECT_BOUND, None, &[socket.as_fd()], work).await?;
        Ok(socket)
    }
}

/// A process that has been taken over in its container may say any number: what goes to the listener, which may have more
/// rights, is what it expects.
fn is_notification(descriptor: &OwnedFd) -> Result<()> {
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    match std::fs::read_link(&path).os(|| format!("readlink {path}"))?.as_os_str().as_encoded_bytes() {
        b"anon_inode:seccomp notify" => Ok(()),
        _ => Err(Error::new(Kind::Internal, "the process has another file where its seccomp listener is to be")),
    }
}

/// Waits for the number of the descriptor in the child.
async fn loaded(process: &Process, mailbox: &Receiver) -> Result<i32> {
    let sync = sync_of(process)?;
    loop {
        if let Some(number) = mailbox.number()? {
            return Ok(number);
        }
        match sync.get_ref().receive()? {
            Heard::Nothing => {}
            Heard::Failed(error) => return Err(error),
            _ => return Err(Error::new(Kind::Internal, "it has died while it loaded its seccomp filter")),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// By one sendmsg(2), without waiting: the connection is new and has room.
fn send(connection: &OwnedFd, state: &[u8], descriptor: BorrowedFd<'_>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = sendmsg(connection, &[IoSlice::new(state)], &mut control, flags).os(|| "sendmsg")?;
    match sent == state.len() {
        true => Ok(()),
        false => Err(Error::new(Kind::Internal, format!("took {sent} bytes of {}", state.len()))),
    }
}
