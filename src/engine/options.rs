//! What a container is asked to be beside its specification.

use serde::{Deserialize, Serialize};

use crate::init::plan;
use crate::spec::id_map::{IdMap, IdMaps};

/// The choices that containerd's runtime options leave to whoever runs the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Change the root by moving the mount and chroot(2): for a host whose root is the initramfs, which pivot_root(2)
    /// refuses to leave.
    pub no_pivot_root: bool,
    /// Stay in the session keyring of the shim.
    pub no_new_keyring: bool,
    /// Have systemd make its cgroup, also where `cgroupsPath` does not say so.
    pub systemd_cgroup: bool,
    /// Owner of the pipes of its standard streams, where it is not the process's user.
    pub io_uid: Option<u32>,
    /// Group of the same.
    pub io_gid: Option<u32>,
}

impl Options {
    /// Whose the pipes of a process are, on the host; `maps` are those of its user namespace.
    pub fn pipe_owner(&self, process: &plan::Process, maps: Option<&IdMaps>) -> (u32, u32) {
        // Validation has seen to it that they are mapped.
        let outside = |map: fn(&IdMaps) -> &IdMap, id| maps.map_or(id, |maps| map(maps).host(id).unwrap_or(id));
        let uid = self.io_uid.unwrap_or_else(|| outside(|maps| &maps.uids, process.uid));
        (uid, self.io_gid.unwrap_or_else(|| outside(|maps| &maps.gids, process.gid)))
    }
}
