//! A seccomp listener: a socket as linux.seccomp.listenerPath names it, and who answers the calls that are told there.
#![allow(unsafe_code)]
#![allow(dead_code)] // Every test file is a crate of its own and uses a part of this.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)` of linux/seccomp.h.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;

/// How a call is answered.
#[derive(Clone, Copy)]
pub enum Answer {
    /// It is done as if nobody had asked.
    Continue,
    /// It fails with this errno.
    Errno(i32),
    /// It succeeds and returns this.
    Value(i64),
    /// It never is.
    Never,
    /// By nobody: the descriptor is closed.
    Leave,
}

/// A call that is to be answered.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// SYS_*
    pub number: i64,
    /// Who makes it, in our pid namespace.
    pub pid: u32,
    pub args: [u64; 6],
}

type Judge = dyn Fn(Call) -> Answer + Send + Sync;

/// A listening socket and its thread, which ends with the test.
pub struct Listener {
    pub path: PathBuf,
    messages: Arc<Mutex<Vec<Value>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Listener {
    /// Listens in `dir` and answers all calls of all processes.
    pub fn start(dir: &Path, judge: impl Fn(Call) -> Answer + Send + Sync + 'static) -> Listener {
        let path = dir.join("listener.sock");
        let socket = UnixListener::bind(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let listener = Listener { path, messages: Arc::default(), calls: Arc::default() };
        let (messages, calls, judge) = (listener.messages.clone(), listener.calls.clone(), Arc::new(judge));
        std::thread::spawn(move || {
            for connection in socket.incoming() {
                let (message, descriptor) = receive(&connection.expect("accept"));
                messages.lock().unwrap().push(message);
                let (calls, judge) = (calls.clone(), judge.clone());
                std::thread::spawn(move || answer_all(descriptor, &calls, &*judge));
            }
        });
        listener
    }

    /// What it has been told of processes, in order.
    pub fn messages(&self) -> Vec<Value> {
        self.messages.lock().unwrap().clone()
    }

    /// The calls that it has been asked about.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Waits until it has been asked about a call.
    pub async fn is_asked(&self) -> Call {
        let deadline = Instant::now() + super::patience(Duration::from_secs(60));
        loop {
            if let Some(call) = self.calls().last() {
                return *call;
            }
            assert!(Instant::now() < deadline, "nobody asks");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The one message of a connection: JSON up to its end, with one descriptor.
fn receive(connection: &UnixStream) -> (Value, OwnedFd) {
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let mut buffer = vec![0; 1 << 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(connection, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags).expect("recvmsg");
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                assert!(text.is_empty(), "not with the first bytes");
                descriptors.extend(fds);
            }
        }
        match received.bytes {
            0 => break,
            length => text.extend(&buffer[..length]),
        }
    }
    let message = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{:?}: {e}", String::from_utf8_lossy(&text)));
    assert_eq!(descriptors.len(), 1, "{message}");
    (message, descriptors.remove(0))
}

/// Until nobody is left who could ask.
fn answer_all(descriptor: OwnedFd, calls: &Mutex<Vec<Call>>, judge: &Judge) {
    loop {
        let mut fds = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)).expect("poll");
        if fds[0].revents().contains(rustix::event::PollFlags::HUP) {
            return;
        }
        // SAFETY: a plain C structure, for which the kernel wants all zeroes.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: RECEIVE writes one seccomp_notif.
        if unsafe { libc::ioctl(descriptor.as_raw_fd(), RECEIVE, &raw mut asked) } == -1 {
            continue; // Who asked has died.
        }
        let call = Call { number: asked.data.nr.into(), pid: asked.pid, args: asked.data.args };
        calls.lock().unwrap().push(call);
        let (val, error, flags) = match judge(call) {
            Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
            Answer::Errno(errno) => (0, -errno, 0),
            Answer::Value(value) => (value, 0, 0),
            Answer::Never => continue,
            Answer::Leave => return,
        };
        let answer = libc::seccomp_notif_resp { id: asked.id, val, error, flags };
        // SAFETY: SEND reads one seccomp_notif_resp. It fails where who asked has died meanwhile.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), SEND, &raw const answer) };
    }
}
