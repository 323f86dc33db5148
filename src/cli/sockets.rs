//! Descriptors that are sent to whoever has asked for them, as runc sends them: a message with a name and the descriptor.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::error::{Os, Result};

/// A connection to the socket at `path`.
///
/// # Errors
/// That there is none, or that nobody listens.
pub fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).os(|| format!("connect {}", path.display()))
}

/// Sends a descriptor by one message.
///
/// # Errors
/// That nobody is there.
pub fn send(socket: &UnixStream, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(name.as_bytes())], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .os(|| format!("sendmsg of {name}"))
}
