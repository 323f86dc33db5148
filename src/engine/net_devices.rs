//! The host's network devices that a container is to have.

use std::time::Duration;

use crate::error::Result;
use crate::init::net_devices::{Owner, move_all};
use crate::spec::net_devices::NetDevice;

use super::Engine;
use super::container::Process;
use super::create::sync_of;

/// How long the moves may take: the kernel does them under a lock of all network namespaces.
const BOUND: Duration = Duration::from_secs(60);

impl Engine {
    /// Moves them into the network namespace of a new container, whose init waits for them.
    pub(super) async fn move_devices(&self, init: &Process, devices: &[NetDevice], owner: Owner) -> Result<()> {
        let pid = init.child_pid();
        self.in_child("moving network devices", BOUND, || move_all(devices, pid, owner)).await?;
        sync_of(init)?.get_ref().devices_moved()
    }
}
