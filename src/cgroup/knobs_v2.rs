//! `linux.resources` to the files of cgroup2 and what to write into them, in order. Pure.

use oci_spec::runtime::LinuxResources;

use super::knobs::Knob;
use crate::error::Result;

/// Everything to write but for the devices, which are a program's.
pub(super) fn limit_knobs(resources: &LinuxResources) -> Result<Vec<Knob>> {
    let mut knobs = Vec::new();
    if let Some(limit) = resources.memory().and_then(|memory| memory.limit()).filter(|limit| *limit != 0) {
        let value = if limit < 0 { "max".to_owned() } else { limit.to_string() };
        knobs.push(Knob::new("memory", "memory.max", value));
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            limit @ 1.. => knobs.push(Knob::new("pids", "pids.max", limit)),
            _ => knobs.push(Knob::new("pids", "pids.max", "max").optional(true)),
        }
    }
    Ok(knobs)
}
