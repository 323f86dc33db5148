//! A cgroup given to a container to divide (runtime-spec: config-linux.md, "Cgroup ownership").

use rustix::fs::{AtFlags, CWD, Uid, chownat};
use rustix::io::Errno;

use super::Cgroup;
use super::file;
use super::hierarchy::Version;
use crate::error::{Os, Result};

/// The files that go with a cgroup that is handed over, as the kernel lists them (cgroup-v2.rst, "Model of Delegation").
const LIST: &str = "/sys/kernel/cgroup/delegate";

/// Those of kernels without the list.
const FILES: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

impl Cgroup {
    /// Makes `uid`, of the host, the owner of the cgroup on v2: of the directory, and of the files by which it is divided, but
    /// not of its limits. On v1, where a cgroup cannot be handed over safely, nothing.
    pub fn delegate(&self, uid: u32) -> Result<()> {
        let (Version::V2, Some(unified)) = (self.hierarchies.version(), &self.hierarchies.unified) else {
            return Ok(());
        };
        let dir = unified.dir(&self.path);
        let mut buf = Vec::new();
        let files = match file::read(CWD, LIST, &mut buf) {
            Err(Errno::NOENT) => FILES,
            files => files.os(|| format!("read {LIST}"))?,
        };
        for file in std::iter::once("").chain(files.lines()) {
            let path = if file.is_empty() { dir.clone() } else { dir.join(file) };
            match chownat(CWD, &path, Some(Uid::from_raw(uid)), None, AtFlags::SYMLINK_NOFOLLOW) {
                // Of a controller that the cgroup has not.
                Err(Errno::NOENT) if !file.is_empty() => {}
                done => done.os(|| format!("chown {}", path.display()))?,
            }
        }
        Ok(())
    }
}
