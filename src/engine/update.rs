//! Update: new limits for a container that is there.

use oci_spec::runtime::LinuxResources;

use crate::cgroup::{Cgroup, Unset};
use crate::error::{Context, Error, Kind, Result};
use crate::spec::{load, validate};

use super::Engine;
use super::lifecycle::State;

/// Says, once for a container `id`, what the host has not given us the right to set.
pub(super) fn warn_of_unset(id: &str, cgroup: &Cgroup, unset: &Unset) {
    if !cgroup.is_anywhere() {
        log::warn!("container {id}: rootless, and without any cgroup: it has no limits and cannot be paused");
    }
    if let Some(denied) = cgroup.denied().text() {
        log::warn!("container {id}: rootless, cgroups that could not be made: {denied}");
    }
    if !unset.files().is_empty() {
        log::warn!("container {id}: rootless, limits that could not be set: {}", unset.files().join(", "));
    }
}

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
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        let container = self.container(id)?;
        let name = || format!("container {id}: update");
        let is_there = || match container.init_reaped.get() || container.init.state() == State::Stopped {
            true => Err(Error::new(Kind::FailedPrecondition, "it has stopped")),
            false => Ok(()),
        };
        is_there().context(name)?;
        let resources = load::load_resources(resources).context(name)?;
        validate::validate_resources(&resources).context(name)?;
        match &container.scope {
            None => container.cgroup.update(&resources).context(name)?,
            Some(scope) => {
                // One after the other, or the unit would have the limits of one and the files those of another.
                let _turn = container.updating.lock().await;
                is_there().context(name)?;
                scope.update(&self.hierarchies, &container.cgroup, &resources, is_there).await.context(name)?;
            }
        }
        warn_of_ignored(id, &container.cgroup, &resources);
        Ok(())
    }
}
