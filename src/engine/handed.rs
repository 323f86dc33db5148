//! What a process is handed by whoever starts it, where nothing is relayed: by the command line, whose own streams are
//! the container's, or whose caller has asked for the master of its terminal.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Gid, Uid};
use rustix::io::Errno;

use crate::error::{Error, Kind, Os, Result};
use crate::init::plan;
use crate::sys::{fd, path};

/// For one process.
#[derive(Debug)]
pub struct Handed {
    /// Its streams, until they are taken.
    pub streams: Option<HandedStreams>,
    /// How many descriptors, from 3 on, it has of ours as they are.
    pub descriptors: u32,
    /// Variables of its environment, behind the specification's.
    pub env: Vec<std::ffi::CString>,
}

impl Handed {
    /// Adds to a plan what is no stream; returns the streams.
    ///
    /// # Errors
    /// `InvalidArgument` where the descriptors that are to be handed on are not there.
    pub(super) fn take(&mut self, process: &mut plan::Process) -> Result<Option<HandedStreams>> {
        for number in 0..self.descriptors {
            if !fd::is_inherited(3 + number as i32) {
                let text = format!("unable to stat preserved-fd {number} (of {}): it is not open", self.descriptors);
                return Err(Error::new(Kind::InvalidArgument, text));
            }
        }
        process.handed = self.descriptors;
        process.env.append(&mut self.env);
        Ok(self.streams.take())
    }
}

/// Its streams.
pub enum HandedStreams {
    /// stdin, stdout and stderr.
    Own([OwnedFd; 3]),
    /// A terminal, whose master is taken by this.
    Console(Box<dyn FnOnce(OwnedFd) -> Result<()> + Send>),
}

impl HandedStreams {
    /// Copies of our own 0 to 2.
    ///
    /// # Errors
    /// EBADF where one of them is closed.
    pub fn ours() -> Result<Self> {
        let copy = |fd: std::os::fd::BorrowedFd<'_>, name: &str| fd.try_clone_to_owned().os(|| format!("dup {name}"));
        Ok(Self::Own([
            copy(rustix::stdio::stdin(), "stdin")?,
            copy(rustix::stdio::stdout(), "stdout")?,
            copy(rustix::stdio::stderr(), "stderr")?,
        ]))
    }
}

impl fmt::Debug for HandedStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(streams) => f.debug_tuple("Own").field(streams).finish(),
            Self::Console(_) => f.write_str("Console"),
        }
    }
}

/// Makes streams the process's user's, who may then open /proc/self/fd/1, as runc and crun do; but for devices, /dev/null
/// and terminals among them, which are not its alone.
pub(super) fn give(streams: &[OwnedFd; 3], uid: u32, gid: u32) -> Result<()> {
    for stream in streams {
        let stat = path::stat(stream)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice || stat.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(stream.as_fd(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
            // One that cannot be given away (of a read-only file system, a memory file) is as good as it is.
            Err(Errno::PERM | Errno::ROFS | Errno::INVAL) => {}
            given => given.os(|| format!("fchown of a stream to {uid}:{gid}"))?,
        }
    }
    Ok(())
}
