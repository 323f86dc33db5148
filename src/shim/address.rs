//! The socket on which containerd finds a shim.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Os, Result};

/// Where containerd's shims have their sockets (containerd: defaults.DefaultStateDir + "/s").
pub const DIRECTORY: &str = "/run/containerd/s";

/// The file in the bundle by which containerd 1.6 and 1.7 find a running shim after their restart.
pub const FILE: &str = "address";

/// A shim's socket.
#[derive(Clone, Debug)]
pub struct Address(PathBuf);

/// What came of wanting to listen.
pub enum Bound {
    /// It is ours.
    Listening(UnixListener),
    /// A shim of this group is there already, and answers. It may be of another version than this program.
    Taken(Speaks),
}

/// What the server at a socket speaks. It is kept beside the socket: `start` may be of a newer version than the server
/// whose address it answers with, after an update of the binary (containerd#10888).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaks {
    /// The newest version of the task API.
    pub version: u32,
    /// `ttrpc`
    pub protocol: String,
}

impl Speaks {
    /// A server of this program: both versions of the task service, of which containerd is told the newer.
    pub fn own() -> Self {
        Self { version: 3, protocol: "ttrpc".to_owned() }
    }
}

impl Address {
    /// Of the shim of the group `id` (a container's or a pod's) in `namespace` of the containerd at `containerd`: the name
    /// that containerd's own shim would use, a hash because a path would not fit (unix(7): 108 bytes).
    pub fn of(directory: &Path, containerd: &str, namespace: &str, id: &str) -> Self {
        // containerd_shim has the same format with the ids of its own making.
        let uri = containerd_shim::socket_address(containerd, namespace, id);
        let name = uri.rsplit('/').next().unwrap_or_default().to_owned();
        Self(directory.join(name))
    }

    /// At a path, with or without `unix://`.
    pub fn at(uri: &str) -> Self {
        Self(uri.strip_prefix("unix://").unwrap_or(uri).into())
    }

    /// Of a listening socket.
    pub fn of_listener(listener: &UnixListener) -> Result<Self> {
        let name = listener.local_addr().os(|| "getsockname")?;
        let path = name.as_pathname().ok_or_else(|| Error::new(Kind::Internal, "the socket has no path"))?;
        Ok(Self(path.to_owned()))
    }

    /// The one that `start` has left in a bundle, where it has.
    pub fn left_in(bundle: &Path) -> Option<Self> {
        let uri = std::fs::read_to_string(bundle.join(FILE)).ok()?;
        uri.starts_with("unix:///").then(|| Self::at(uri.trim()))
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// As containerd wants it in a reply.
    pub fn uri(&self) -> String {
        format!("unix://{}", self.0.display())
    }

    /// Listens, root only. A socket that nobody listens on any more is replaced.
    pub fn bind(&self) -> Result<Bound> {
        let directory = self.0.parent().unwrap_or(Path::new("/"));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .os(|| format!("mkdir {}", directory.display()))?;
        // Between bind(2) and listen(2) a socket looks like one that nobody listens on any more: another start for this
        // id would replace it, and two servers would run, one of them unknown to everybody.
        let lock = File::open(directory).os(|| format!("open {}", directory.display()))?;
        flock(&lock, FlockOperation::LockExclusive).os(|| format!("flock {}", directory.display()))?;
        // The socket is 0600 from its first moment (CVE-2020-15257 is what happens else).
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = self.bind_or_replace();
        rustix::process::umask(mask);
        bound
    }

    fn bind_or_replace(&self) -> Result<Bound> {
        for _ in 0..2 {
            match UnixListener::bind(&self.0) {
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
                other => {
                    let listener = other.os(|| format!("bind {}", self.0.display()))?;
                    self.record(&Speaks::own()).inspect_err(|_| drop(self.remove()))?;
                    return Ok(Bound::Listening(listener));
                }
            }
            if self.has_listener()? {
                return Ok(Bound::Taken(self.recorded()));
            }
            self.remove()?;
        }
        Err(Error::os(libc::EADDRINUSE, format!("bind {}", self.0.display())))
    }

    /// Whether anybody listens. Never waits for them: a server that hangs is one all the same.
    fn has_listener(&self) -> Result<bool> {
        let address = UnixAddr::new(&self.0).os(|| self.uri())?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).os(|| "socket AF_UNIX")?;
        match connect(client.as_raw_fd(), &address) {
            Ok(()) | Err(Errno::EAGAIN) => Ok(true),
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
            Err(e) => Err(e).os(|| format!("connect {}", self.0.display())),
        }
    }

    /// Where it is kept what the server speaks.
    fn record_path(&self) -> PathBuf {
        let mut path = OsString::from(&self.0);
        path.push(".dray");
        path.into()
    }

    fn record(&self, speaks: &Speaks) -> Result<()> {
        let path = self.record_path();
        let text = serde_json::to_vec(speaks).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        std::fs::write(&path, text).os(|| format!("write {}", path.display()))
    }

    /// What the living server speaks. One without a record is of a version before there were any, which spoke the same as
    /// this one.
    fn recorded(&self) -> Speaks {
        let text = std::fs::read(self.record_path()).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_else(Speaks::own)
    }

    /// Removes the socket, and what is beside it.
    pub fn remove(&self) -> Result<()> {
        for path in [self.record_path(), self.0.clone()] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => other.os(|| format!("unlink {}", path.display()))?,
            }
        }
        Ok(())
    }

    /// Removes the socket unless a shim listens on it.
    pub fn remove_stale(&self) -> Result<()> {
        match std::fs::symlink_metadata(&self.0) {
            Ok(meta) if meta.file_type().is_socket() && self.has_listener()? => Ok(()),
            Ok(meta) if !meta.file_type().is_socket() => Ok(()),
            // Gone, perhaps: what is beside it may be there still.
            _ => self.remove(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sha256 of the path /run/containerd/containerd.sock/default/a, as `printf %s ... | sha256sum` has it: containerd
    /// and its own shim agree on it (containerd: pkg/shim/util_unix.go SocketAddress).
    #[test]
    fn the_name_is_the_one_that_containerd_uses() {
        let address = Address::of(Path::new(DIRECTORY), "/run/containerd/containerd.sock", "default", "a");
        let hash = "82795ca4b9b166c1139546afbf9dfd59d74776e0b49c8edfbb195f9d8b9e94a6";
        assert_eq!(address.uri(), format!("unix:///run/containerd/s/{hash}"));
    }
}
