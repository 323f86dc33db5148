//! Update: new limits for a container that is there; and what it has used so far.

use crate::cgroup::stats::Stats;
use crate::error::{Context, Error, Kind, Result};
use crate::spec::{load, validate};

use super::Engine;
use super::lifecycle::State;

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
        container.cgroup.update(&resources).context(name)
    }

    /// What the container has used.
    ///
    /// # Errors
    /// `NotFound` also when its cgroup is gone.
    pub fn stats(&self, id: &str) -> Result<Stats> {
        self.container(id)?.cgroup.stats().context(|| format!("container {id}"))
    }
}
