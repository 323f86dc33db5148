//! systemd's cgroup driver, as far as it can be done without a connection: what a container's unit is called and where its
//! cgroup is, which properties it has, and the messages by which systemd is asked for it. Pure; the engine has the
//! connection.
//!
//! - [`unit`]: `slice:prefix:name` -> a unit, its slice and its cgroup's path;
//! - [`property`], [`limits`], [`devices`]: a container's resources and annotations -> properties;
//! - [`manager`]: calls and signals of systemd's manager;
//! - [`message`], [`wire`]: D-Bus, as little of it as that needs.

mod devices;
mod limits;
pub mod manager;
pub mod message;
pub mod property;
pub mod unit;
pub mod wire;

pub use limits::Host;
pub use property::{Property, Value};
pub use unit::Unit;

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;

use super::adopt::Before;
use super::hierarchy::Version;
use super::knobs::{self, Knob};
use crate::error::Result;

/// What makes the unit of the container `id` with the process `pid`, beside its limits.
///
/// `Delegate`: what is below is the container's, and systemd does not touch it. No dependencies: it is neither stopped
/// before the daemon that has it nor ordered against anything. One that has failed (an OOM kill) does not stay behind.
pub fn scope(unit: &Unit, id: &str, pid: u32, host: &Host<'_>) -> Vec<Property> {
    let io = if host.version == Version::V2 { "IOAccounting" } else { "BlockIOAccounting" };
    let mut properties = vec![
        Property::new("Description", Value::Text(format!("dray container {id}"))),
        Property::new("Slice", Value::Text(unit.slice.clone())),
        Property::new("Delegate", Value::Bool(true)),
        Property::new("PIDs", Value::U32s(vec![pid])),
        Property::new("DefaultDependencies", Value::Bool(false)),
    ];
    let accounting = ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io];
    properties.extend(accounting.map(|name| Property::new(name, Value::Bool(true))));
    if host.systemd >= 236 {
        properties.push(Property::new("CollectMode", Value::Text("inactive-or-failed".to_owned())));
    }
    properties
}

/// The limits, and the devices where `with_devices`. `before` is what they change.
///
/// # Errors
/// Those of the knobs that `resources` are.
pub fn limits(
    resources: &LinuxResources,
    before: &Before,
    with_devices: bool,
    host: &Host<'_>,
) -> Result<Vec<Property>> {
    let mut properties = limits::properties(&knobs::limit_knobs(resources, host.version)?, &before.knobs, host)?;
    if with_devices {
        properties.extend(devices::properties(resources.devices().as_deref().unwrap_or_default(), host));
    }
    Ok(properties)
}

/// What a change of limits to `resources` takes beside these: what is not idle any more, and is given no weight, has the
/// usual one, where systemd would have it idle still.
///
/// # Errors
/// As [`limits`].
pub fn no_longer_idle(before: &Before, resources: &LinuxResources, host: &Host<'_>) -> Result<Option<Property>> {
    let has = |knobs: &[Knob], value: &str| knobs.iter().any(|knob| knob.file == "cpu.idle" && knob.value == value);
    let knobs = knobs::limit_knobs(resources, host.version)?;
    let weighs = knobs.iter().any(|knob| knob.file == "cpu.weight");
    let woken = host.systemd >= 252 && has(&before.knobs, "1") && has(&knobs, "0") && !weighs;
    Ok(woken.then(|| Property::new("CPUWeight", Value::U64(u64::MAX))))
}

/// The properties by which a change to `new` is taken back.
///
/// # Errors
/// As [`limits`].
pub fn former(before: &Before, new: &[Property], host: &Host<'_>) -> Result<Vec<Property>> {
    let mut former = limits::properties(&before.knobs, &[], host)?;
    // An empty file is a set that is not the cgroup's own.
    let set = |property: &&Property| matches!(property.value, Value::Bytes(_));
    for property in new.iter().filter(set) {
        if !former.iter().any(|known| known.name == property.name) {
            former.push(Property::new(&property.name, Value::Bytes(Vec::new())));
        }
    }
    Ok(former)
}

/// The properties that a container's annotations ask for, sorted by their names.
///
/// # Errors
/// `InvalidArgument` for one that is none.
pub fn of_annotations(annotations: &HashMap<String, String>) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    for (key, value) in annotations {
        properties.extend(property::of_annotation(key, value)?);
    }
    properties.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(properties)
}

/// `properties`, but for those that `others` has, and then these: they have the last word.
pub fn overridden_by(mut properties: Vec<Property>, others: Vec<Property>) -> Vec<Property> {
    properties.retain(|property| others.iter().all(|other| other.name != property.name));
    properties.extend(others);
    properties
}
