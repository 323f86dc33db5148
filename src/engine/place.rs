//! A container's cgroup: made by us before its first process is born, or by systemd for it, when there is a process to put
//! there.

use std::collections::HashMap;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use crate::cgroup::systemd::{self as units, Property, Unit};
use crate::cgroup::{self, Before, Cgroup, Hierarchies, Joins, Place};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::userns::Own;

use super::Engine;
use super::options::Options;
use super::remains::Remains;
use super::state::{Saved, StateDir};
use super::systemd::{self, Instance, Manager};
use super::update::{warn_of_ignored, warn_of_unset};

/// A unit of systemd's that is, or may be, a container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Its name.
    pub unit: String,
    /// Whose unit it is.
    pub instance: Instance,
}

/// Where a container is to be, judged.
pub(super) struct Site {
    place: Place,
    instance: Instance,
    resources: LinuxResources,
    /// Properties that the specification's annotations ask for.
    asked: Vec<Property>,
}

/// A cgroup on its way to be.
pub(super) struct Making {
    /// It.
    pub cgroup: Cgroup,
    /// systemd, where it is to make it.
    manager: Option<(Manager, Unit)>,
}

impl Site {
    /// Where the specification, or the runtime options, want it.
    ///
    /// # Errors
    /// For what cannot be, as far as that can be told before there is anything.
    pub fn judge(id: &str, spec: &Spec, options: &Options, hierarchies: &Hierarchies, own: Own) -> Result<Self> {
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
        let instance = Instance::of(own);
        let place = cgroup::place(path, id, options.systemd_cgroup, instance.default_slice())?;
        let mut asked = Vec::new();
        if let Place::Unit(_) = place {
            let wanted = || path.map_or("SystemdCgroup".to_owned(), |path| format!("cgroupsPath {path:?}"));
            systemd::require().context(wanted)?;
            asked = units::of_annotations(spec.annotations().as_ref().unwrap_or(&HashMap::new()))?;
        }
        // Without resources too: devices are denied by default.
        let resources = linux.and_then(|linux| linux.resources().clone());
        if let Some(resources) = &resources {
            cgroup::check(hierarchies, resources)?;
        }
        Ok(Self { place, instance, resources: resources.unwrap_or_default(), asked })
    }

    /// What is to be known of it before there is any of it.
    pub fn note(&self, saved: &mut Saved) {
        match &self.place {
            Place::Path(path) => saved.cgroup = Some(path.clone()),
            Place::Unit(unit) => saved.scope = Some(Scope { unit: unit.name.clone(), instance: self.instance }),
        }
    }
}

impl Engine {
    /// Makes and limits the cgroup, as far as that can be done without a process.
    pub(super) async fn make_cgroup(
        &self,
        site: &Site,
        state: &StateDir,
        saved: &mut Saved,
        remains: &mut Remains,
    ) -> Result<Making> {
        match &site.place {
            Place::Path(path) => {
                let cgroup = Cgroup::create(&self.hierarchies, path)?;
                remains.cgroup = Some(cgroup.clone());
                limit(&saved.id, &cgroup, &site.resources)?;
                Ok(Making { cgroup, manager: None })
            }
            Place::Unit(unit) => {
                let manager = Manager::connect(site.instance, &unit.name).await?;
                let path = unit.path(&manager.cgroup)?;
                let cgroup = Cgroup::open(&self.hierarchies, &path)?;
                saved.cgroup = Some(path);
                state.save(saved)?;
                Ok(Making { cgroup, manager: Some((manager, unit.clone())) })
            }
        }
    }

    /// Has systemd put the process `pid`, which waits, into its cgroup, and sets the limits there.
    pub(super) async fn settle(
        &self,
        site: &Site,
        making: &mut Making,
        id: &str,
        pid: u32,
        remains: &mut Remains,
    ) -> Result<()> {
        let Some((mut manager, unit)) = making.manager.take() else { return Ok(()) };
        let host = manager.host(self.hierarchies.version());
        let mut properties = units::scope(&unit, id, pid, &host);
        properties.extend(units::limits(&site.resources, &Before::default(), site.instance.limits_devices(), &host)?);
        let properties = units::overridden_by(properties, site.asked.clone());
        if making.cgroup.populated()? {
            // By another unit of this name; or it is nobody's that systemd knows, which would make us its neighbours.
            let text = format!(
                "systemd: starting {}: there are processes in {} already",
                unit.name,
                making.cgroup.path().display()
            );
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        // Before: nobody comes back here when the create is given up while systemd is at work.
        remains.scope = Some((Scope { unit: unit.name.clone(), instance: site.instance }, making.cgroup.clone()));
        let started = manager.start(&unit, &properties).await;
        if started.as_ref().is_err_and(|e| e.kind() == Kind::AlreadyExists) {
            remains.scope = None;
        }
        started?;
        making.cgroup.refuse_unless_moved(pid)?;
        // From here on all that is in it is ours.
        remains.cgroup = Some(making.cgroup.clone());
        making.cgroup.adopt(pid)?;
        limit(id, &making.cgroup, &site.resources)
    }
}

/// Sets the limits, and says which of them are none.
fn limit(id: &str, cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    warn_of_unset(id, cgroup, &cgroup.apply(resources)?);
    warn_of_ignored(id, cgroup, resources);
    Ok(())
}

impl Making {
    /// systemd is to make it, with the process.
    pub fn is_by_systemd(&self) -> bool {
        self.manager.is_some()
    }

    /// How the process joins: not at all where it is moved.
    pub fn joins(&self) -> Result<Joins> {
        if self.manager.is_some() { Ok(Joins::default()) } else { self.cgroup.joins() }
    }
}

impl Scope {
    /// Sets limits, in the unit and in the files: by the first alone what systemd rounds would be wrong, by the second
    /// alone they would be gone when systemd next looks at the unit.
    ///
    /// `is_there` is asked each time that systemd has been waited for: the path may be another container's by then.
    ///
    /// # Errors
    /// Then all is as it was before, as far as systemd and the kernel let us take back what they took.
    pub async fn update(
        &self,
        hierarchies: &Hierarchies,
        cgroup: &Cgroup,
        resources: &LinuxResources,
        is_there: impl Fn() -> Result<()>,
    ) -> Result<()> {
        cgroup.check_update(resources)?;
        let mut manager = Manager::connect(self.instance, &self.unit).await?;
        is_there()?;
        let before = cgroup.before(resources)?;
        let host = manager.host(hierarchies.version());
        let with_devices = self.instance.limits_devices() && !cgroup.devices_in_force(resources)?;
        let mut properties = units::limits(resources, &before, with_devices, &host)?;
        properties.extend(units::no_longer_idle(&before, resources, &host)?);
        let former = units::former(&before, &properties, &host)?;
        if !properties.is_empty() {
            manager.set(&properties).await?;
            is_there()?;
            cgroup.restore_quota(&before);
        }
        let Err(error) = cgroup.update(resources) else { return Ok(()) };
        if !former.is_empty()
            && let Err(e) = manager.set(&former).await
        {
            log::warn!("{e}");
        }
        is_there()?;
        cgroup.restore_to(before);
        Err(error)
    }

    /// Moves a process of ours, which waits, into its cgroup.
    ///
    /// # Errors
    /// What systemd says.
    pub async fn attach(&self, pid: u32) -> Result<()> {
        Manager::connect(self.instance, &self.unit).await?.attach(pid).await
    }

    /// Ends it, whose cgroup is this, with systemd's knowledge. One that is not there is no error.
    ///
    /// # Errors
    /// What systemd says, or that it says nothing.
    pub async fn stop(&self, cgroup: &Cgroup, bound: Duration) -> Result<()> {
        systemd::stop(self.instance, &self.unit, cgroup.path(), bound).await
    }
}
