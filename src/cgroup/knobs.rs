//! `linux.resources` to the files of the v1 controllers and what to write into them, in order. Pure.
//!
//! Zero means "not set" where a limit of zero would make no sense, as in runc: clients fill it in for what they leave
//! out.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::devices::device_knobs;
use crate::error::{Error, Kind, Result};

/// One write of a value into a controller's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Knob {
    pub(super) controller: &'static str,
    pub(super) file: &'static str,
    pub(super) value: String,
    /// The kernel checks this value against the one that the next knob sets, and which of the two must come first
    /// depends on what they are now. Refused (EINVAL), it is written again after the next: no reading of the old
    /// values needed.
    pub(super) with_next: bool,
    /// The value takes a limit away: where the file is missing there is none.
    pub(super) optional: bool,
}

impl Knob {
    pub(super) fn new(controller: &'static str, file: &'static str, value: impl ToString) -> Self {
        Self { controller, file, value: value.to_string(), with_next: false, optional: false }
    }

    fn with_next(self) -> Self {
        Self { with_next: true, ..self }
    }

    fn optional(self, optional: bool) -> Self {
        Self { optional, ..self }
    }
}

/// Everything to write for `resources`, v1.
///
/// # Errors
/// `InvalidArgument` for what can be told to be wrong without the kernel.
pub(super) fn knobs(resources: &LinuxResources) -> Result<Vec<Knob>> {
    // Devices first: they are the security boundary, the others are limits.
    let mut knobs = device_knobs(resources.devices().as_deref().unwrap_or_default())?;
    knobs.extend(limit_knobs(resources)?);
    Ok(knobs)
}

/// The same without the devices.
pub(super) fn limit_knobs(resources: &LinuxResources) -> Result<Vec<Knob>> {
    let mut knobs = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_knobs(memory, &mut knobs)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_knobs(cpu, &mut knobs);
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

fn memory_knobs(memory: &LinuxMemory, knobs: &mut Vec<Knob>) -> Result<()> {
    let limit = set(memory.limit());
    // Unlimited memory with a limit on memory and swap together is no state the kernel accepts: the swap limit goes
    // with it, as in runc.
    let swap = set(memory.swap()).or(limit.filter(|l| *l < 0));
    if let Some(limit) = limit {
        // memsw is at least limit at any time: raising both must begin with memsw, lowering both with limit.
        let knob = Knob::new("memory", "memory.limit_in_bytes", bytes(limit));
        knobs.push(if swap.is_some() { knob.with_next() } else { knob });
    }
    if let Some(swap) = swap {
        knobs.push(Knob::new("memory", "memory.memsw.limit_in_bytes", bytes(swap)).optional(swap < 0));
    }
    if let Some(reservation) = set(memory.reservation()) {
        knobs.push(Knob::new("memory", "memory.soft_limit_in_bytes", bytes(reservation)));
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("linux.resources.memory.swappiness {swappiness}: must be 0 to 100"),
            ));
        }
        knobs.push(Knob::new("memory", "memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        knobs.push(Knob::new("memory", "memory.oom_control", 1));
    }
    Ok(())
}

fn cpu_knobs(cpu: &LinuxCpu, knobs: &mut Vec<Knob>) {
    if let Some(shares) = cpu.shares().filter(|s| *s != 0) {
        knobs.push(Knob::new("cpu", "cpu.shares", shares));
    }
    // A quota is checked as a fraction of its period (against the parent's), hence the pairs.
    let (period, quota) = (cpu.period().filter(|p| *p != 0), set(cpu.quota()));
    push_pair(
        knobs,
        period.map(|p| Knob::new("cpu", "cpu.cfs_period_us", p)),
        quota.map(|q| Knob::new("cpu", "cpu.cfs_quota_us", if q < 0 { -1 } else { q })),
    );
    let (period, runtime) = (cpu.realtime_period().filter(|p| *p != 0), set(cpu.realtime_runtime()));
    push_pair(
        knobs,
        period.map(|p| Knob::new("cpu", "cpu.rt_period_us", p)),
        runtime.map(|r| Knob::new("cpu", "cpu.rt_runtime_us", r)),
    );
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|l| !l.is_empty()) {
            knobs.push(Knob::new("cpuset", file, list));
        }
    }
}

fn push_pair(knobs: &mut Vec<Knob>, first: Option<Knob>, second: Option<Knob>) {
    let first = if second.is_some() { first.map(Knob::with_next) } else { first };
    knobs.extend(first.into_iter().chain(second));
}

fn set(value: Option<i64>) -> Option<i64> {
    value.filter(|v| *v != 0)
}

/// A size for v1's memory files: any negative number is "unlimited", of which the kernel knows "-1" only.
fn bytes(value: i64) -> i64 {
    value.max(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (file, value, with_next, optional) of what a resources document gives, without the devices.
    fn from(json: &str) -> Vec<(&'static str, String, bool, bool)> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let knobs = knobs(&resources).unwrap();
        knobs
            .into_iter()
            .filter(|k| k.controller != "devices")
            .inspect(|k| assert!(k.file.starts_with(k.controller)))
            .map(|k| (k.file, k.value, k.with_next, k.optional))
            .collect()
    }

    fn row(file: &'static str, value: &str) -> (&'static str, String, bool, bool) {
        (file, value.to_owned(), false, false)
    }

    #[test]
    fn nothing_asked_is_nothing_but_devices() {
        assert_eq!(from("{}"), []);
        assert_eq!(from(r#"{"memory":{},"cpu":{},"pids":{"limit":0}}"#), []);
        assert_eq!(from(r#"{"memory":{"limit":0,"swap":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":""}}"#), []);
        assert!(!knobs(&LinuxResources::default()).unwrap().is_empty());
    }

    #[test]
    fn memory_and_swap_are_a_pair() {
        let mut limit = row("memory.limit_in_bytes", "1048576");
        assert_eq!(from(r#"{"memory":{"limit":1048576}}"#), [limit.clone()]);
        limit.2 = true;
        let swap = row("memory.memsw.limit_in_bytes", "2097152");
        assert_eq!(from(r#"{"memory":{"limit":1048576,"swap":2097152}}"#), [limit, swap]);
    }

    #[test]
    fn unlimited_memory_takes_the_swap_limit_with_it() {
        let expected = [
            ("memory.limit_in_bytes", "-1".to_owned(), true, false),
            ("memory.memsw.limit_in_bytes", "-1".to_owned(), false, true),
        ];
        assert_eq!(from(r#"{"memory":{"limit":-1}}"#), expected);
        assert_eq!(from(r#"{"memory":{"limit":-5,"swap":-1}}"#), expected);
    }

    #[test]
    fn the_other_memory_files() {
        assert_eq!(
            from(r#"{"memory":{"reservation":4096,"swappiness":0,"disableOOMKiller":true}}"#),
            [row("memory.soft_limit_in_bytes", "4096"), row("memory.swappiness", "0"), row("memory.oom_control", "1")]
        );
        assert_eq!(from(r#"{"memory":{"disableOOMKiller":false}}"#), []);
        let resources = serde_json::from_str(r#"{"memory":{"swappiness":101}}"#).unwrap();
        assert_eq!(knobs(&resources).unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn cpu_and_cpuset() {
        let mut period = row("cpu.cfs_period_us", "100000");
        period.2 = true;
        assert_eq!(
            from(r#"{"cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0-1","mems":"0"}}"#),
            [
                row("cpu.shares", "512"),
                period,
                row("cpu.cfs_quota_us", "50000"),
                row("cpuset.cpus", "0-1"),
                row("cpuset.mems", "0"),
            ]
        );
        assert_eq!(from(r#"{"cpu":{"quota":-1}}"#), [row("cpu.cfs_quota_us", "-1")]);
        assert_eq!(from(r#"{"cpu":{"period":5000}}"#), [row("cpu.cfs_period_us", "5000")]);
        assert_eq!(from(r#"{"cpu":{"realtimeRuntime":5000}}"#), [row("cpu.rt_runtime_us", "5000")]);
    }

    #[test]
    fn pids() {
        assert_eq!(from(r#"{"pids":{"limit":7}}"#), [row("pids.max", "7")]);
        assert_eq!(from(r#"{"pids":{"limit":-1}}"#), [("pids.max", "max".to_owned(), false, true)]);
    }
}
