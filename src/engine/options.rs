//! What a container is asked to be beside its specification.

use crate::init::plan;

/// The choices that containerd's runtime options leave to whoever runs the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Change the root by moving the mount and chroot(2): for a host whose root is the initramfs, which pivot_root(2)
    /// refuses to leave.
    pub no_pivot_root: bool,
    /// Stay in the session keyring of the shim.
    pub no_new_keyring: bool,
    /// Owner of the pipes of its standard streams, where it is not the process's user.
    pub io_uid: Option<u32>,
    /// Group of the same.
    pub io_gid: Option<u32>,
}

impl Options {
    /// Whose the pipes of a process are.
    pub fn pipe_owner(&self, process: &plan::Process) -> (u32, u32) {
        (self.io_uid.unwrap_or(process.uid), self.io_gid.unwrap_or(process.gid))
    }
}
