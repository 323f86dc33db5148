//! Update: new limits for a container that is there.

use oci_spec::runtime::LinuxResources;

use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Kind, Result};
use crate::spec::{load, validate};

use super::Engine;
use super::lifecycle::State;

/// Says which of the limits that a container `id` has been given the kernel does nothing about.
pub(super) fn warn_of_ignored(id: &str, cgroup: &Cgroup, resources: &LinuxResources) {
    match cgroup.ignored(resources) {
        Ok(ignored) => ignored.iter().for_each(|ignored| log::warn!("container {id}: {ignored}")),
        Err(e) => log::warn!("container {id}: {e}"),
    }
}

impl Engine {
    /// Sets the limits that `resources` gives, a JSON document like `linux.resources`.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unimplemented` for the document, by the rules for a specification;
    /// `FailedPrecondition` when the container has stopped. Then nothing has changed.
    pub fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        let container = self.container(id)?;
        let name = || format!("container {id}: update");
        if container.init_reaped.get() || container.init.state() == State::Stopped {
            return Err(Error::new(Kind::FailedPrecondition, "it has stopped")).context(name);
        }
        let resources = load::load_resources(resources).context(name)?;
        validate::validate_resources(&resources).context(name)?;
        container.cgroup.update(&resources).context(name)?;
        warn_of_ignored(id, &container.cgroup, &resources);
        Ok(())
    }
}
