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
//!    |<------------------------ WantDevices|  in its network namespace             } with network
//!    |  moves them there                   |                                       } devices
//!    |  Devices -------------------------->|                                       }
//!    |                                     |
//!    |<------------------------ WantSources|  in its namespaces, nobody to the host  } in a user
//!    |  Sources + their descriptors ------>|  mounts them                            } namespace
//!    |                                     |
//!    |<------------------------------ Hooks|  mounts are made; waits                } with hooks
//!    |  runs prestart, createRuntime       |                                         } of create
//!    |  Hooks ---------------------------->|  runs createContainer                   } only
//!    |                                     |
//!    |<----------- Console + the pty master|  its slave is the session's terminal   } with a
//!    |  relays to and from it              |                                         } terminal
//!    |                                     |
//!    |                                     |  forgets the shim's memory (init/kept.rs)
//!    |                                     |
//!    |<-------------- Born + its pidfd ----|  has given birth to a sibling in the    } who joins a pid
//!    |  it is the process now              |  container's pid namespace, and ends;   } namespace: it
//!    |                                     |  the sibling goes on                    } hops
//!    |                                     |
//!    |<------------------------------ Ready|  created: all done but execve          } init
//!    |  state is saved, Create answered    |  waits; ends if the shim does           } only
//!    |  Release -------------------------->|                                         }
//!    |                                     |
//!    |<------------------------------ Alone|  lives on without its creator, which   } held by a
//!    |  exits                              |  exits; waits for the fifo             } fifo
//!    |                                     |
//!    |<---------------- Listener + a memfd |  it is about to load its filter        } with a
//!    |  connects to the listener           |                                        } seccomp
//!    |  Load ----------------------------->|  loads it; makes no call from here on  } listener
//!    |<- - - - -  number, in the memory - -|  looks at the memory                   }
//!    |  takes the descriptor of that       |                                        }
//!    |  number, and hands it over          |                                        }
//!    |- - - - - -  taken, in the memory - >|                                        }
//!    |                                     |
//!    |<------------------------------- EOF |  execve: the socket is close-on-exec
//! ```
//!
//! Who hops is seen by nobody in the container while it has rights there that the container has not, and paths, and the
//! shim's memory; its sibling has none of these (`steps::LAST`). The sibling too has the way to the shim, and may be taken
//! over in the container: so the shim asks the kernel who it is that says `Born`.
//!
//! At any point the child may send `Failed` with the step, the errno and the text, and exit instead. A created init can
//! also be held by a fifo ([`Hold::Fifo`]): for a creator that exits. Whoever opens the fifo and writes a byte releases it,
//! and learns by the end of the fifo that it is its program; what fails until then is told there.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::error::{Error, Kind, Os, Result};
use crate::sys::fork::Child;
use crate::sys::mailbox::{Mailbox, Receiver};
use crate::sys::{cred, fd};

/// The largest record: a step, a path or two of PATH_MAX, and words.
const MAX: usize = 16 * 1024;

const GO: u8 = b'G';
const RELEASE: u8 = b'S';
const READY: u8 = b'R';
const HOOKS: u8 = b'H';
const CONSOLE: u8 = b'C';
const BORN: u8 = b'B';
const WANT_SOURCES: u8 = b'W';
const SOURCES: u8 = b'O';
const WANT_DEVICES: u8 = b'D';
const DEVICES: u8 = b'M';
const LISTENER: u8 = b'N';
const LOAD: u8 = b'L';
const FAILED: u8 = b'E';
const ALONE: u8 = b'A';

/// How many descriptors a message takes (SCM_MAX_FD is 253).
const MAX_DESCRIPTORS: usize = 250;

/// What a created init waits for.
#[derive(Debug)]
pub enum Hold {
    /// `Release` on the socket; the end of the shim ends it.
    Socket,
    /// `Release` on the socket (its creator has saved the state), then one byte from this fifo, held open for reading
    /// and writing so that it has no end until execve(2) closes it.
    Fifo(OwnedFd),
}

/// What is written into the fifo.
pub const FIFO_WORD: [u8; 1] = [RELEASE];

/// What a child that was held by a fifo has left there when it has let go of it: nothing where it is its program.
///
/// # Errors
/// Why it is not.
pub fn heard_of_fifo(record: &[u8]) -> Result<()> {
    match record {
        [] => Ok(()),
        [RELEASE] => Err(Error::new(Kind::Internal, "it was killed before it could start")),
        [FAILED, record @ ..] => Err(decode(record)),
        _ => Err(no_message()),
    }
}

impl Hold {
    /// The same for a child that forgets where it has been until now.
    pub(super) fn same(&self) -> Self {
        match self {
            Self::Socket => Self::Socket,
            Self::Fifo(fifo) => Self::Fifo(fd::same(fifo.as_fd())),
        }
    }
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
    /// The master of its terminal.
    Console(OwnedFd),
    /// It waits for its network devices.
    WantsDevices,
    /// It is about to load its seccomp filter, and will say by this what number the listener's descriptor has.
    Listener(Receiver),
    /// It has given birth to the process that it was to become, in the container's pid namespace, and ends.
    Born {
        /// Who says so, by the kernel's word.
        by: i32,
        /// The new child of ours.
        child: Child,
    },
    /// It waits for what the host has to open for it.
    WantsSources,
    /// It is at its hooks, and waits for the shim to run its own.
    Hooks,
    /// It is created, and waits; a helper is done.
    Ready,
    /// It lives on without us, and waits for its fifo.
    Alone,
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
    rustix::net::sockopt::set_socket_passcred(&ours, true).os(|| "setsockopt SO_PASSCRED")?;
    Ok((ParentEnd(ours), ChildEnd(theirs)))
}

impl ParentEnd {
    /// Lets the child do its set-up.
    pub fn go(&self) -> Result<()> {
        self.tell(GO)
    }

    /// Lets the child go on with its own hooks.
    pub fn hooks_done(&self) -> Result<()> {
        self.tell(HOOKS)
    }

    /// Lets the child go on, with its network devices.
    pub fn devices_moved(&self) -> Result<()> {
        self.tell(DEVICES)
    }

    /// Lets the child load its filter.
    pub fn load_filter(&self) -> Result<()> {
        self.tell(LOAD)
    }

    /// Lets a created init become its program.
    pub fn release(&self) -> Result<()> {
        self.tell(RELEASE)
    }

    /// Sends the descriptors that the child waits for.
    pub fn sources(&self, all: &[OwnedFd]) -> Result<()> {
        for some in all.chunks(MAX_DESCRIPTORS) {
            let some: Vec<_> = some.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&some));
            sendmsg(&self.0, &[IoSlice::new(&[SOURCES])], &mut control, SendFlags::NOSIGNAL)
                .map(drop)
                .os(|| "sendmsg to the child")?;
        }
        Ok(())
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags);
        let length = match received {
            // More descriptors than the one there may be: the kernel has closed them.
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => return Err(no_message()),
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::Nothing),
            // The child ended with our word unread. The kernel tells it once, and before what the child has said.
            Err(Errno::CONNRESET) => return self.receive(),
            Err(e) => return Err(Error::os(e, "recvmsg from the child")),
        };
        let (mut descriptors, mut by) = (Vec::new(), 0);
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(fds) => descriptors.extend(fds),
                RecvAncillaryMessage::ScmCredentials(sender) => by = sender.pid.as_raw_nonzero().get(),
                _ => {}
            }
        }
        match (&buffer[..length], descriptors.pop()) {
            ([CONSOLE], Some(master)) if descriptors.is_empty() => Ok(Heard::Console(master)),
            ([LISTENER], Some(memory)) if descriptors.is_empty() => Receiver::new(memory).map(Heard::Listener),
            (&[BORN, a, b, c, d], Some(pidfd)) if descriptors.is_empty() => {
                Ok(Heard::Born { by, child: Child { pid: i32::from_le_bytes([a, b, c, d]), pidfd } })
            }
            (_, Some(_)) => Err(no_message()),
            ([], None) => Ok(Heard::Executed),
            ([HOOKS], None) => Ok(Heard::Hooks),
            ([READY], None) => Ok(Heard::Ready),
            ([ALONE], None) => Ok(Heard::Alone),
            ([WANT_DEVICES], None) => Ok(Heard::WantsDevices),
            ([WANT_SOURCES], None) => Ok(Heard::WantsSources),
            ([FAILED, record @ ..], None) => Ok(Heard::Failed(decode(record))),
            _ => Err(no_message()),
        }
    }
}

fn no_message() -> Error {
    Error::new(Kind::Internal, "a child sent a message that is none")
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
    /// The same for a child that forgets where it has been until now.
    pub(super) fn same(&self) -> Self {
        Self(fd::same(self.as_fd()))
    }

    /// Waits until the parent has done its part.
    pub fn wait_for_go(&self) -> Result<()> {
        self.wait_for(GO)
    }

    /// Says that it is time for hooks, and waits until the shim has run its own.
    pub fn wait_for_hooks(&self) -> Result<()> {
        self.say(HOOKS)?;
        self.wait_for(HOOKS)
    }

    /// Says that its network namespace is there, and waits until the shim has moved its devices into it.
    pub fn wait_for_devices(&self) -> Result<()> {
        self.say(WANT_DEVICES)?;
        self.wait_for(DEVICES)
    }

    /// Hands over the master of the terminal.
    pub fn console(&self, master: &OwnedFd) -> Result<()> {
        self.hand_over(&[CONSOLE], master.as_fd())
    }

    /// Says that the filter is about to be loaded, and waits until the shim is ready for what comes of that.
    pub fn wait_to_load(&self, mailbox: &Mailbox) -> Result<()> {
        self.hand_over(&[LISTENER], mailbox.as_fd())?;
        self.wait_for(LOAD)
    }

    /// Says who has been born in its stead.
    pub fn born(&self, child: &Child) -> Result<()> {
        let [a, b, c, d] = child.pid.to_le_bytes();
        self.hand_over(&[BORN, a, b, c, d], child.pidfd.as_fd())
    }

    fn hand_over(&self, message: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.0, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)
            .map(drop)
            .os(|| "sendmsg to the shim")
    }

    /// Asks for descriptors of the host's, and takes that many.
    pub fn sources(&self, count: usize) -> Result<Vec<OwnedFd>> {
        send(self.0.as_raw_fd(), &[WANT_SOURCES], MsgFlags::MSG_NOSIGNAL).os(|| "send to the shim")?;
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut word = [0];
            let received = rustix::io::retry_on_intr(|| {
                recvmsg(&self.0, &mut [IoSliceMut::new(&mut word)], &mut control, RecvFlags::CMSG_CLOEXEC)
            });
            let message = received.os(|| "recvmsg from the shim")?;
            if message.bytes == 0 {
                return Err(Error::new(Kind::Unavailable, "the shim is gone"));
            }
            let before = all.len();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    all.extend(fds);
                }
            }
            // Fewer than were sent: this process may not open as many.
            if word != [SOURCES] || message.flags.contains(ReturnFlags::CTRUNC) || all.len() == before {
                return Err(Error::new(Kind::Internal, "the shim said something else than the sources"));
            }
        }
        Ok(all)
    }

    /// Says that a helper's work is done.
    pub fn done(&self) {
        let _ = send(self.0.as_raw_fd(), &[READY], MsgFlags::MSG_NOSIGNAL);
    }

    /// Says that the container is created, and waits to be released.
    pub fn ready(&self, hold: &Hold) -> Result<()> {
        self.say(READY)?;
        self.wait_for(RELEASE)?;
        match hold {
            Hold::Socket => Ok(()),
            Hold::Fifo(fifo) => {
                // Released by its creator, which exits now: it is on its own until the fifo speaks.
                cred::die_with_parent(false)?;
                self.say(ALONE)?;
                let mut byte = [0];
                rustix::io::retry_on_intr(|| rustix::io::read(fifo, &mut byte)).os(|| "read exec fifo")?;
                // Who is at its other end is told from here on, and nobody is at the socket's.
                fd::replace(self.as_fd(), fifo.as_fd())
            }
        }
    }

    fn say(&self, word: u8) -> Result<()> {
        send(self.0.as_raw_fd(), &[word], MsgFlags::MSG_NOSIGNAL).map(drop).os(|| "send to the shim")
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
        if send(self.0.as_raw_fd(), &record, MsgFlags::MSG_NOSIGNAL) == Err(nix::errno::Errno::ENOTSOCK) {
            let _ = rustix::io::write(&self.0, &record);
        }
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
    fn a_child_that_fails_before_it_reads_the_first_word_is_heard() {
        let (parent, child) = pair().unwrap();
        parent.go().unwrap();
        child.fail("early", &Error::new(Kind::InvalidArgument, "why"));
        drop(child);
        let Heard::Failed(error) = hear(&parent) else { panic!("not heard") };
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::InvalidArgument, "early: why"));
        assert!(matches!(hear(&parent), Heard::Executed));
    }

    #[test]
    fn a_child_is_held_at_its_hooks_until_the_shims_are_done() {
        let (parent, child) = pair().unwrap();
        let thread = std::thread::spawn(move || child.wait_for_hooks());
        assert!(matches!(hear(&parent), Heard::Hooks));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!thread.is_finished(), "not held");
        parent.hooks_done().unwrap();
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_fifo_holds_without_the_socket() {
        let path = std::env::temp_dir().join(format!("dray-hold-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let both = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (parent, child) = pair().unwrap();
        let thread = std::thread::spawn(move || {
            child.ready(&Hold::Fifo(both.into())).unwrap();
            child
        });
        assert!(matches!(hear(&parent), Heard::Ready));
        parent.release().unwrap();
        assert!(matches!(hear(&parent), Heard::Alone));
        drop(parent);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!thread.is_finished(), "the creator's end must not release");
        std::fs::write(&path, FIFO_WORD).unwrap();
        let child = thread.join().unwrap();
        // The fifo has taken the socket's place.
        let mut reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        child.fail("late", &Error::os(libc::ENOEXEC, "execve"));
        let mut record = [0; MAX];
        let length = std::io::Read::read(&mut reader, &mut record).unwrap();
        let error = heard_of_fifo(&record[..length]).unwrap_err();
        assert_eq!(
            (error.errno(), error.to_string().as_str()),
            (Some(libc::ENOEXEC), "late: execve: exec format error")
        );
        assert!(heard_of_fifo(&[]).is_ok() && heard_of_fifo(&FIFO_WORD).is_err());
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
    fn a_descriptor_comes_with_the_console_and_with_nothing_else() {
        let (parent, child) = pair().unwrap();
        let (read, write) = std::io::pipe().unwrap();
        child.console(&write.into()).unwrap();
        let Heard::Console(ours) = hear(&parent) else { panic!("not a console") };
        assert!(rustix::io::fcntl_getfd(&ours).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        drop(ours);
        // Ours was the last: none is left over.
        assert_eq!(std::io::read_to_string(read).unwrap(), "");

        let (parent, child) = pair().unwrap();
        let fd = [child.as_fd(), child.as_fd()];
        for (word, fds) in [(READY, &fd[..1]), (CONSOLE, &fd[..0]), (CONSOLE, &fd)] {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(fds));
            sendmsg(&child.0, &[IoSlice::new(&[word])], &mut control, SendFlags::empty()).unwrap();
            let error = parent.receive().expect_err("a message that is none");
            assert_eq!(error.kind(), Kind::Internal, "{word} with {}", fds.len());
        }
    }

    #[test]
    fn the_end_of_the_shim_ends_the_wait() {
        let (parent, child) = pair().unwrap();
        drop(parent);
        assert_eq!(child.wait_for_go().unwrap_err().kind(), Kind::Unavailable);
    }
}
