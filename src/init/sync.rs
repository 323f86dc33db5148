//! The protocol between the shim and a child that is becoming a container's process, both ends.
//!
//! One sequenced-packet socket pair a child: messages keep their bounds, and the end of either side is seen as one.
//!
//! ```text
//!   shim                                 child
//!    |  clone3                             |
//!    |------------------------------------>|  closes descriptors, joins its cgroups
//!    |  oom_score_adj, by /proc/CHILD      |
//!    |  Go ------------------------------->|  namespaces, mounts, ids ... (init/steps.rs)
//!    |                                     |
//!    |<------------------------------ Ready|  created: all done but execve          } init
//!    |  state is saved, Create answered    |  waits; ends if the shim does           } only
//!    |  Release -------------------------->|                                         }
//!    |                                     |
//!    |<------------------------------- EOF |  execve: the socket is close-on-exec
//! ```
//!
//! At any point the child may send `Failed` with the step, the errno and the text, and exit instead. A created init can
//! also be held by a fifo ([`Hold::Fifo`]): for a creator that exits, whoever opens the fifo and writes a byte releases.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::error::{Error, Kind, Os, Result};
use crate::sys::cred;

/// The largest record: a step, a path or two of PATH_MAX, and words.
const MAX: usize = 16 * 1024;

const GO: u8 = b'G';
const RELEASE: u8 = b'S';
const READY: u8 = b'R';
const FAILED: u8 = b'E';

/// What a created init waits for.
#[derive(Debug)]
pub enum Hold {
    /// `Release` on the socket; the end of the shim ends it.
    Socket,
    /// `Release` on the socket (its creator has saved the state), then one byte from this fifo, held open for reading
    /// and writing so that it has no end.
    Fifo(OwnedFd),
}

/// The shim's end. Non-blocking: wait for readability, then [`ParentEnd::receive`].
#[derive(Debug)]
pub struct ParentEnd(OwnedFd);

/// The child's end. Blocking.
#[derive(Debug)]
pub struct ChildEnd(OwnedFd);

/// What the shim hears of a child.
#[derive(Debug)]
pub enum Heard {
    /// Nothing yet.
    Nothing,
    /// It is created, and waits; a helper is done.
    Ready,
    /// It is the container's program now (or has died: waitpid tells).
    Executed,
    /// It could not go on; it exits.
    Failed(Error),
}

/// A connected pair, close-on-exec.
pub fn pair() -> Result<(ParentEnd, ChildEnd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).os(|| "socketpair")?;
    rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK).os(|| "fcntl F_SETFL")?;
    Ok((ParentEnd(ours), ChildEnd(theirs)))
}

impl ParentEnd {
    /// Lets the child do its set-up.
    pub fn go(&self) -> Result<()> {
        self.tell(GO)
    }

    /// Lets a created init become its program.
    pub fn release(&self) -> Result<()> {
        self.tell(RELEASE)
    }

    fn tell(&self, word: u8) -> Result<()> {
        // MSG_NOSIGNAL: a child that has died is its own message, not SIGPIPE.
        send(self.0.as_raw_fd(), &[word], MsgFlags::MSG_NOSIGNAL).map(drop).os(|| "send to the child")
    }

    /// What has arrived, without waiting.
    ///
    /// # Errors
    /// When the socket fails, or says what no child of ours says.
    pub fn receive(&self) -> Result<Heard> {
        let mut buffer = vec![0; MAX];
        let length = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(Heard::Nothing),
            // The child died with our word unread.
            Err(nix::errno::Errno::ECONNRESET) => 0,
            Err(e) => return Err(Error::os(e, "recv from the child")),
        };
        match &buffer[..length] {
            [] => Ok(Heard::Executed),
            [READY] => Ok(Heard::Ready),
            [FAILED, record @ ..] => Ok(Heard::Failed(decode(record))),
            _ => Err(Error::new(Kind::Internal, "a child sent a message that is none")),
        }
    }
}

impl AsFd for ParentEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ParentEnd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl ChildEnd {
    /// Waits until the parent has done its part.
    pub fn wait_for_go(&self) -> Result<()> {
        self.wait_for(GO)
    }

    /// Says that a helper's work is done.
    pub fn done(&self) {
        let _ = send(self.0.as_raw_fd(), &[READY], MsgFlags::MSG_NOSIGNAL);
    }

    /// Says that the container is created, and waits to be released.
    pub fn ready(&self, hold: &Hold) -> Result<()> {
        send(self.0.as_raw_fd(), &[READY], MsgFlags::MSG_NOSIGNAL).os(|| "send to the shim")?;
        self.wait_for(RELEASE)?;
        match hold {
            Hold::Socket => Ok(()),
            Hold::Fifo(fifo) => {
                // Released by its creator, which exits now: it is on its own until the fifo speaks.
                cred::die_with_parent(false)?;
                let mut byte = [0];
                rustix::io::retry_on_intr(|| rustix::io::read(fifo, &mut byte)).map(drop).os(|| "read exec fifo")
            }
        }
    }

    fn wait_for(&self, word: u8) -> Result<()> {
        let mut buffer = [0; 1];
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other.os(|| "recv from the shim")?,
            }
        };
        match (length, buffer[0] == word) {
            (1, true) => Ok(()),
            (0, _) => Err(Error::new(Kind::Unavailable, "the shim is gone")),
            _ => Err(Error::new(Kind::Internal, "the shim said something else")),
        }
    }

    /// Sends the record of a failure at `step`. Nobody may be listening any more.
    pub fn fail(&self, step: &str, error: &Error) {
        let mut record = vec![FAILED];
        record.extend(error.errno().unwrap_or(0).to_le_bytes());
        record.push(encode_kind(error.kind()));
        record.extend(format!("{step}: {error}").as_bytes());
        record.truncate(MAX);
        let _ = send(self.0.as_raw_fd(), &record, MsgFlags::MSG_NOSIGNAL);
    }
}

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const KINDS: [Kind; 8] = [
    Kind::Internal,
    Kind::InvalidArgument,
    Kind::NotFound,
    Kind::AlreadyExists,
    Kind::FailedPrecondition,
    Kind::Unimplemented,
    Kind::DeadlineExceeded,
    Kind::Unavailable,
];

fn encode_kind(kind: Kind) -> u8 {
    KINDS.iter().position(|&k| k == kind).unwrap_or(0) as u8
}

fn decode(record: &[u8]) -> Error {
    let Some(([a, b, c, d, kind], text)) = record.split_first_chunk::<5>() else {
        return Error::new(Kind::Internal, "a child failed without saying how");
    };
    let errno = i32::from_le_bytes([*a, *b, *c, *d]);
    let kind = KINDS.get(usize::from(*kind)).copied().unwrap_or(Kind::Internal);
    Error::new(kind, String::from_utf8_lossy(text)).with_errno((errno != 0).then_some(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(parent: &ParentEnd) -> Heard {
        loop {
            match parent.receive().unwrap() {
                Heard::Nothing => std::thread::sleep(std::time::Duration::from_millis(1)),
                other => return other,
            }
        }
    }

    #[test]
    fn a_created_child_is_held_until_released() {
        let (parent, child) = pair().unwrap();
        parent.go().unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            child.wait_for_go().unwrap();
            child.ready(&Hold::Socket).unwrap();
            tx.send(()).unwrap();
        });
        assert!(matches!(hear(&parent), Heard::Ready));
        assert!(rx.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "not held");
        parent.release().unwrap();
        rx.recv().unwrap();
        thread.join().unwrap();
        assert!(matches!(hear(&parent), Heard::Executed));
    }

    #[test]
    fn a_fifo_holds_without_the_socket() {
        let path = std::env::temp_dir().join(format!("dray-hold-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let both = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (parent, child) = pair().unwrap();
        let thread = std::thread::spawn(move || child.ready(&Hold::Fifo(both.into())).unwrap());
        assert!(matches!(hear(&parent), Heard::Ready));
        parent.release().unwrap();
        drop(parent);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!thread.is_finished(), "the creator's end must not release");
        std::fs::write(&path, b"S").unwrap();
        thread.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_failure_keeps_its_kind_and_errno() {
        let (parent, child) = pair().unwrap();
        child.fail("mounting /x", &Error::os(libc::EPERM, "move_mount").with_kind(Kind::InvalidArgument));
        let Heard::Failed(error) = hear(&parent) else { panic!("not a failure") };
        assert_eq!(error.to_string(), "mounting /x: move_mount: operation not permitted");
        assert_eq!((error.errno(), error.kind()), (Some(libc::EPERM), Kind::InvalidArgument));
    }

    #[test]
    fn the_end_of_the_shim_ends_the_wait() {
        let (parent, child) = pair().unwrap();
        drop(parent);
        assert_eq!(child.wait_for_go().unwrap_err().kind(), Kind::Unavailable);
    }
}
