//! `linux.resources` to the files of the v1 controllers and what to write into them, in order. Pure.
//!
//! Zero means "not set" where a limit of zero would make no sense, as in runc: clients fill it in for what they leave
//! out.

use std::borrow::Cow;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::devices::device_knobs;
use super::hierarchy::Version;
use super::io_knobs::{block_io_knobs, hugepage_knobs, network_knobs, rdma_knobs};
use super::knobs_v2;
use crate::error::{Error, Kind, Result};

/// The limit of the kernel's own part of the memory. Newer kernels have the file, take any number and do nothing.
pub(super) const KERNEL_LIMIT: &str = "memory.kmem.limit_in_bytes";

/// One write of a value into a controller's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Knob {
    pub(super) controller: Cow<'static, str>,
    pub(super) file: Cow<'static, str>,
    /// What the file is called on kernels that have no `file`, and the value as that one takes it.
    pub(super) also: Option<(&'static str, String)>,
    pub(super) value: String,
    /// The kernel checks this value against the one that the next knob sets, and which of the two must come first
    /// depends on what they are now. Refused (EINVAL), it is written again after the next that is not of this kind: no
    /// reading of the old values needed.
    pub(super) with_next: bool,
    /// The value takes a limit away: where the file is missing there is none.
    pub(super) optional: bool,
    /// The file holds one value for each key (a device, an interface), which is the first word of `value`. This, after
    /// the key, takes the key's value away.
    pub(super) reset: Option<&'static str>,
    /// The file holds two words, of which `value` is the second. The first stays as it is.
    pub(super) second: bool,
}

impl Knob {
    pub(super) fn new(
        controller: impl Into<Cow<'static, str>>,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> Self {
        let (controller, file, value) = (controller.into(), file.into(), value.to_string());
        Self { controller, file, also: None, value, with_next: false, optional: false, reset: None, second: false }
    }

    /// The names that its file may have, the better one first, with the value for it.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::once((&*self.file, &*self.value)).chain(self.also.iter().map(|(file, value)| (*file, &**value)))
    }

    pub(super) fn with_next(self) -> Self {
        Self { with_next: true, ..self }
    }

    pub(super) fn optional(self, optional: bool) -> Self {
        Self { optional, ..self }
    }

    pub(super) fn also(self, file: &'static str) -> Self {
        let value = self.value.clone();
        self.also_as(file, value)
    }

    pub(super) fn also_as(self, file: &'static str, value: impl ToString) -> Self {
        Self { also: Some((file, value.to_string())), ..self }
    }

    pub(super) fn reset(self, reset: &'static str) -> Self {
        Self { reset: Some(reset), ..self }
    }

    pub(super) fn second(self) -> Self {
        Self { second: true, ..self }
    }
}

/// Everything to write for `resources`.
///
/// # Errors
/// `InvalidArgument` for what can be told to be wrong without the kernel; `FailedPrecondition` for `unified`, whose files
/// are cgroup2's.
pub(super) fn knobs(resources: &LinuxResources, version: Version) -> Result<Vec<Knob>> {
    // Devices first: they are the security boundary, the others are limits.
    let mut knobs = match version {
        Version::V1 => device_knobs(resources.devices().as_deref().unwrap_or_default())?,
        Version::V2 => Vec::new(),
    };
    knobs.extend(limit_knobs(resources, version)?);
    Ok(knobs)
}

/// The same without the devices.
pub(super) fn limit_knobs(resources: &LinuxResources, version: Version) -> Result<Vec<Knob>> {
    if version == Version::V2 {
        return knobs_v2::limit_knobs(resources);
    }
    let mut knobs = Vec::new();
    if resources.unified().as_ref().is_some_and(|files| !files.is_empty()) {
        let text = "linux.resources.unified: its files are cgroup2's, and this host's controllers are cgroup v1's";
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    if let Some(memory) = resources.memory() {
        memory_knobs(memory, &mut knobs)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_knobs(cpu, &mut knobs)?;
    }
    if let Some(io) = resources.block_io() {
        block_io_knobs(io, &mut knobs);
    }
    hugepage_knobs(resources.hugepage_limits().as_deref().unwrap_or_default(), &mut knobs);
    if let Some(network) = resources.network() {
        network_knobs(network, &mut knobs);
    }
    if let Some(rdma) = resources.rdma() {
        rdma_knobs(rdma, &mut knobs);
    }
    if let Some(pids) = resources.pids() {
        pids_knobs(pids, &mut knobs);
    }
    Ok(knobs)
}

/// Nothing for `checkBeforeUpdate`: v1 refuses a limit that is below what is used and cannot be reclaimed by itself.
#[allow(deprecated)] // `kernel` is deprecated for those who write configurations, not for those who read them.
fn memory_knobs(memory: &LinuxMemory, knobs: &mut Vec<Knob>) -> Result<()> {
    if memory.use_hierarchy() == Some(true) {
        knobs.push(Knob::new("memory", "memory.use_hierarchy", 1));
    }
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
    for (file, limit) in [(KERNEL_LIMIT, memory.kernel()), ("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp())] {
        if let Some(limit) = set(limit) {
            knobs.push(Knob::new("memory", file, bytes(limit)).optional(limit < 0));
        }
    }
    Ok(())
}

/// The kernel makes of others the nearest of these, without a word (kernel/sched: MIN_SHARES, MAX_SHARES).
pub(super) const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

fn cpu_knobs(cpu: &LinuxCpu, knobs: &mut Vec<Knob>) -> Result<()> {
    share_knobs(cpu, knobs, |shares| Knob::new("cpu", "cpu.shares", shares))?;
    // A quota is checked as a fraction of its period (against the parent's), and a burst is at most the quota: hence
    // together.
    let (period, quota) = (cpu.period().filter(|p| *p != 0), set(cpu.quota()));
    push_chain(
        knobs,
        [
            period.map(|p| Knob::new("cpu", "cpu.cfs_period_us", p)),
            cpu.burst().map(|b| Knob::new("cpu", "cpu.cfs_burst_us", b).optional(b == 0)),
            quota.map(|q| Knob::new("cpu", "cpu.cfs_quota_us", if q < 0 { -1 } else { q })),
        ],
    );
    let (period, runtime) = (cpu.realtime_period().filter(|p| *p != 0), set(cpu.realtime_runtime()));
    push_chain(
        knobs,
        [
            period.map(|p| Knob::new("cpu", "cpu.rt_period_us", p)),
            runtime.map(|r| Knob::new("cpu", "cpu.rt_runtime_us", r)),
        ],
    );
    cpuset_knobs(cpu, knobs);
    Ok(())
}

/// The share of the processors, as what `knob` makes of it, and idleness.
pub(super) fn share_knobs(cpu: &LinuxCpu, knobs: &mut Vec<Knob>, knob: impl Fn(u64) -> Knob) -> Result<()> {
    let idle = cpu.idle().map(|idle| Knob::new("cpu", "cpu.idle", idle).optional(idle == 0));
    // What is idle has no share of its own: it is set before it, or after it is not any more.
    let (before, after) = if cpu.idle() == Some(0) { (idle, None) } else { (None, idle) };
    knobs.extend(before);
    knobs.extend(shares(cpu)?.map(knob));
    knobs.extend(after);
    Ok(())
}

/// Sets of processors and memory nodes; an empty list is none that is asked for.
pub(super) fn cpuset_knobs(cpu: &LinuxCpu, knobs: &mut Vec<Knob>) {
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            knobs.push(Knob::new("cpuset", file, list));
        }
    }
}

/// The limit of tasks.
pub(super) fn pids_knobs(pids: &LinuxPids, knobs: &mut Vec<Knob>) {
    match pids.limit() {
        0 => {}
        limit @ 1.. => knobs.push(Knob::new("pids", "pids.max", limit)),
        _ => knobs.push(Knob::new("pids", "pids.max", "max").optional(true)),
    }
}

fn shares(cpu: &LinuxCpu) -> Result<Option<u64>> {
    match cpu.shares().filter(|shares| *shares != 0) {
        Some(shares) if !SHARES.contains(&shares) => {
            let text = format!("linux.resources.cpu.shares is not in {}..{}: {shares}", SHARES.start(), SHARES.end());
            Err(Error::new(Kind::InvalidArgument, text))
        }
        shares => Ok(shares),
    }
}

/// Knobs whose values are checked against one another.
pub(super) fn push_chain<const N: usize>(knobs: &mut Vec<Knob>, chain: [Option<Knob>; N]) {
    let mut chain = chain.into_iter().flatten().peekable();
    while let Some(knob) = chain.next() {
        knobs.push(if chain.peek().is_some() { knob.with_next() } else { knob });
    }
}

pub(super) fn set(value: Option<i64>) -> Option<i64> {
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
    fn from(json: &str) -> Vec<(String, String, bool, bool)> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let knobs = knobs(&resources, Version::V1).unwrap();
        knobs
            .into_iter()
            .filter(|k| k.controller != "devices")
            .inspect(|k| assert!(k.file.starts_with(&*k.controller)))
            .map(|k| (k.file.into_owned(), k.value, k.with_next, k.optional))
            .collect()
    }

    fn row(file: &str, value: &str) -> (String, String, bool, bool) {
        (file.to_owned(), value.to_owned(), false, false)
    }

    fn refused(json: &str) -> Error {
        knobs(&serde_json::from_str(json).unwrap(), Version::V1).unwrap_err()
    }

    #[test]
    fn nothing_asked_is_nothing_but_devices() {
        assert_eq!(from("{}"), []);
        assert_eq!(from(r#"{"memory":{},"cpu":{},"pids":{"limit":0}}"#), []);
        assert_eq!(from(r#"{"memory":{"limit":0,"swap":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":""}}"#), []);
        assert!(!knobs(&LinuxResources::default(), Version::V1).unwrap().is_empty());
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
            ("memory.limit_in_bytes".to_owned(), "-1".to_owned(), true, false),
            ("memory.memsw.limit_in_bytes".to_owned(), "-1".to_owned(), false, true),
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
        assert_eq!(refused(r#"{"memory":{"swappiness":101}}"#).kind(), Kind::InvalidArgument);
        assert_eq!(
            from(r#"{"memory":{"useHierarchy":true,"kernel":8192,"kernelTCP":4096,"checkBeforeUpdate":true}}"#),
            [
                row("memory.use_hierarchy", "1"),
                row("memory.kmem.limit_in_bytes", "8192"),
                row("memory.kmem.tcp.limit_in_bytes", "4096"),
            ]
        );
        assert_eq!(from(r#"{"memory":{"useHierarchy":false,"kernel":0,"kernelTCP":0,"checkBeforeUpdate":false}}"#), []);
    }

    #[test]
    fn a_burst_goes_with_its_quota_and_what_is_idle_has_no_shares() {
        let with_next = |row: (String, String, bool, bool)| (row.0, row.1, true, row.3);
        let optional = |row: (String, String, bool, bool)| (row.0, row.1, row.2, true);
        assert_eq!(
            from(r#"{"cpu":{"shares":512,"quota":50000,"period":100000,"burst":20000,"idle":1}}"#),
            [
                row("cpu.shares", "512"),
                row("cpu.idle", "1"),
                with_next(row("cpu.cfs_period_us", "100000")),
                with_next(row("cpu.cfs_burst_us", "20000")),
                row("cpu.cfs_quota_us", "50000"),
            ]
        );
        assert_eq!(
            from(r#"{"cpu":{"shares":512,"burst":0,"idle":0}}"#),
            [optional(row("cpu.idle", "0")), row("cpu.shares", "512"), optional(row("cpu.cfs_burst_us", "0"))]
        );
        for shares in [1, 262_145] {
            let error = refused(&format!(r#"{{"cpu":{{"shares":{shares}}}}}"#));
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains("linux.resources.cpu.shares"), "{error}");
        }
        assert_eq!(from(r#"{"cpu":{"shares":2}}"#).len() + from(r#"{"cpu":{"shares":262144}}"#).len(), 2);
    }

    #[test]
    fn unified_is_for_another_host() {
        assert_eq!(from(r#"{"unified":{}}"#), []);
        let error = refused(r#"{"unified":{"memory.high":"1"}}"#);
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("linux.resources.unified"), "{error}");
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
        assert_eq!(from(r#"{"pids":{"limit":-1}}"#), [("pids.max".to_owned(), "max".to_owned(), false, true)]);
    }
}
