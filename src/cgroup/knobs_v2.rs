//! `linux.resources` to the files of cgroup2 and what to write into them, in order. Pure.
//!
//! The specification's numbers are cgroup v1's. Where cgroup2 counts otherwise they are converted as runc and crun do it
//! (opencontainers/cgroups: utils.go), for whom the specification leaves it open. What has no counterpart is refused, but
//! for hints and for parts of what another limit counts, which are told of (`Cgroup::ignored`).

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources};

use super::io_knobs::rdma_knobs;
use super::io_knobs_v2::{hugepage_knobs, io_knobs};
use super::knobs::{Knob, SHARES, cpuset_knobs, pids_knobs, push_chain, set, share_knobs};
use super::unified::unified_knobs;
use crate::error::{Error, Kind, Result};

/// Everything to write but for the devices, which are a program's.
///
/// # Errors
/// `InvalidArgument` for what can be told to be wrong without the kernel; `FailedPrecondition` for what cgroup v1 alone has.
pub(super) fn limit_knobs(resources: &LinuxResources) -> Result<Vec<Knob>> {
    refuse_v1_only(resources)?;
    let mut knobs = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_knobs(memory, &mut knobs)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_knobs(cpu, &mut knobs)?;
    }
    if let Some(io) = resources.block_io() {
        io_knobs(io, &mut knobs)?;
    }
    hugepage_knobs(resources.hugepage_limits().as_deref().unwrap_or_default(), &mut knobs);
    if let Some(rdma) = resources.rdma() {
        rdma_knobs(rdma, &mut knobs);
    }
    if let Some(pids) = resources.pids() {
        pids_knobs(pids, &mut knobs);
    }
    // The last: who names a file knows better (runtime-spec: config-linux.md, "Unified").
    if let Some(files) = resources.unified() {
        unified_knobs(files, &mut knobs)?;
    }
    Ok(knobs)
}

/// A limit that cgroup2 has no file for. The clients' zeroes and empty lists ask for nothing.
fn refuse_v1_only(resources: &LinuxResources) -> Result<()> {
    let realtime =
        |cpu: &LinuxCpu| cpu.realtime_period().is_some_and(|p| p != 0) || set(cpu.realtime_runtime()).is_some();
    let leaf = |io: &LinuxBlockIo| {
        let device = io.weight_device().iter().flatten().any(|device| device.leaf_weight().is_some_and(|w| w != 0));
        device || io.leaf_weight().is_some_and(|weight| weight != 0)
    };
    let class = |network: &LinuxNetwork| network.class_id().is_some_and(|id| id != 0);
    let priorities = |network: &LinuxNetwork| network.priorities().as_ref().is_some_and(|list| !list.is_empty());
    let oom = |memory: &LinuxMemory| memory.disable_oom_killer() == Some(true);
    for (field, asked) in [
        ("cpu.realtimeRuntime and realtimePeriod", resources.cpu().as_ref().is_some_and(realtime)),
        ("blockIO.leafWeight", resources.block_io().as_ref().is_some_and(leaf)),
        ("network.classID", resources.network().as_ref().is_some_and(class)),
        ("network.priorities", resources.network().as_ref().is_some_and(priorities)),
        ("memory.disableOOMKiller", resources.memory().as_ref().is_some_and(oom)),
    ] {
        if asked {
            let text = format!("linux.resources.{field}: cgroup v1's, and this host's controllers are cgroup v2's");
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
    }
    Ok(())
}

/// What `resources` asks for that nothing is written for, and why that is no error: a hint, and parts of what memory.max
/// counts in any case.
#[allow(deprecated)] // As in `knobs`.
pub(super) fn ignored(memory: &LinuxMemory) -> Vec<&'static str> {
    let mut ignored = Vec::new();
    if memory.kernel().is_some_and(|limit| limit > 0) {
        ignored.push("linux.resources.memory.kernel: cgroup v2 limits all memory together only");
    }
    if memory.kernel_tcp().is_some_and(|limit| limit > 0) {
        ignored.push("linux.resources.memory.kernelTCP: cgroup v2 limits all memory together only");
    }
    if memory.swappiness().is_some() {
        ignored.push("linux.resources.memory.swappiness: cgroup v2 has none for a cgroup");
    }
    ignored
}

fn memory_knobs(memory: &LinuxMemory, knobs: &mut Vec<Knob>) -> Result<()> {
    let limit = set(memory.limit());
    if let Some(swap) = swap(limit, set(memory.swap()))? {
        // Without swap accounting there is no file, and most such hosts have no swap; the kubelet says for each container
        // that it is to have none.
        let optional = swap.is_none_or(|bytes| bytes == 0);
        knobs.push(Knob::new("memory", "memory.swap.max", or_max(swap)).optional(optional));
    }
    if let Some(limit) = limit {
        knobs.push(Knob::new("memory", "memory.max", size(limit)));
    }
    if let Some(reservation) = set(memory.reservation()) {
        knobs.push(Knob::new("memory", "memory.low", size(reservation)));
    }
    Ok(())
}

/// cgroup2 counts swap for itself; the specification's limit is of memory and swap together. `Some(None)` is unlimited.
fn swap(limit: Option<i64>, swap: Option<i64>) -> Result<Option<Option<i64>>> {
    let wrong = |why: &str| Err(Error::new(Kind::InvalidArgument, format!("linux.resources.memory.swap: {why}")));
    match (limit, swap) {
        // As v1 has it: unlimited memory takes the swap limit with it.
        (Some(..0), None) | (_, Some(..0)) => Ok(Some(None)),
        (_, None) => Ok(None),
        (None, Some(_)) => wrong("with swap goes memory.limit, which it is the sum of"),
        (Some(..0), Some(swap)) => Ok(Some(Some(swap))),
        (Some(limit), Some(swap)) if swap < limit => wrong("less than memory.limit, which it is the sum of"),
        (Some(limit), Some(swap)) => Ok(Some(Some(swap - limit))),
    }
}

fn cpu_knobs(cpu: &LinuxCpu, knobs: &mut Vec<Knob>) -> Result<()> {
    share_knobs(cpu, knobs, |shares| Knob::new("cpu", "cpu.weight", weight(shares)))?;
    let max = match (set(cpu.quota()), cpu.period().filter(|period| *period != 0)) {
        (None, None) => None,
        // The kernel keeps the period that is not given.
        (Some(quota), None) => Some(Knob::new("cpu", "cpu.max", size(quota))),
        (Some(quota), Some(period)) => Some(Knob::new("cpu", "cpu.max", format!("{} {period}", size(quota)))),
        (None, Some(period)) => Some(Knob::new("cpu", "cpu.max", period).second()),
    };
    // At most the quota at any time.
    let burst = cpu.burst().map(|burst| Knob::new("cpu", "cpu.max.burst", burst).optional(burst == 0));
    push_chain(knobs, [burst, max]);
    cpuset_knobs(cpu, knobs);
    Ok(())
}

/// The weight of so many of v1's shares, of 2 to 262144: 1 for the least, 100 for the default of 1024, 10000 for the most,
/// and between them the power of ten of a quadratic function of their logarithm. The line that was used before (runc before
/// 1.3.2, crun before 1.23) made 39 of 1024, so that a container of the default share had less than whoever has no limit.
fn weight(shares: u64) -> u64 {
    if shares >= *SHARES.end() {
        return 10_000;
    }
    let log = (shares.max(*SHARES.start()) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Rounded up, and 100 is not to become 101 by the last bit of a float.
    (10f64.powf(exponent) - 1e-9).ceil() as u64
}

/// Any negative number is "unlimited".
fn size(value: i64) -> String {
    or_max((value >= 0).then_some(value))
}

fn or_max(value: Option<i64>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "file value" of each knob; marked where it is tried again after the next (`>`), may be missing (`?`), or keeps the
    /// first word of its file (`_`).
    fn from(json: &str) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let line = |knob: Knob| {
            assert!(knob.file.starts_with(&format!("{}.", knob.controller)), "{knob:?}");
            let mark = |set: bool, mark: &'static str| if set { mark } else { "" };
            let marks = [mark(knob.with_next, ">"), mark(knob.optional, "?"), mark(knob.second, "_")].concat();
            format!("{marks}{} {}", knob.file, knob.value)
        };
        limit_knobs(&resources).unwrap().into_iter().map(line).collect()
    }

    #[track_caller]
    fn refused(json: &str, kind: Kind, names: &str) {
        let error = limit_knobs(&serde_json::from_str(json).unwrap()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(names), "{error}");
    }

    #[test]
    fn nothing_asked_is_nothing() {
        assert_eq!(from("{}"), [""; 0]);
        let zeroes = r#"{"memory":{"limit":0,"swap":0,"reservation":0,"kernel":0,"kernelTCP":0,"disableOOMKiller":false,
            "useHierarchy":true},"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":"","realtimePeriod":0,
            "realtimeRuntime":0},"pids":{"limit":0},"blockIO":{"weight":0,"leafWeight":0,"weightDevice":[]},
            "network":{"classID":0,"priorities":[]},"hugepageLimits":[],"rdma":{},"unified":{}}"#;
        assert_eq!(from(zeroes), [""; 0]);
    }

    #[test]
    fn swap_is_counted_for_itself() {
        let memory = |fields: &str| from(&format!(r#"{{"memory":{{{fields}}}}}"#));
        assert_eq!(memory(r#""limit":1048576,"reservation":4096"#), ["memory.max 1048576", "memory.low 4096"]);
        assert_eq!(memory(r#""limit":1048576,"swap":3145728"#), ["memory.swap.max 2097152", "memory.max 1048576"]);
        // No swap at all.
        assert_eq!(memory(r#""limit":1048576,"swap":1048576"#), ["?memory.swap.max 0", "memory.max 1048576"]);
        assert_eq!(memory(r#""limit":1048576,"swap":-1"#), ["?memory.swap.max max", "memory.max 1048576"]);
        for unlimited in [r#""limit":-1"#, r#""limit":-5,"swap":-1"#] {
            assert_eq!(memory(unlimited), ["?memory.swap.max max", "memory.max max"]);
        }
        assert_eq!(memory(r#""swap":-1"#), ["?memory.swap.max max"]);
        assert_eq!(memory(r#""limit":-1,"swap":4096"#), ["memory.swap.max 4096", "memory.max max"]);
        assert_eq!(memory(r#""reservation":-1"#), ["memory.low max"]);
        refused(r#"{"memory":{"swap":4096}}"#, Kind::InvalidArgument, "memory.swap");
        refused(r#"{"memory":{"limit":8192,"swap":4096}}"#, Kind::InvalidArgument, "memory.swap");
    }

    #[test]
    fn shares_become_a_weight_that_keeps_least_default_and_most() {
        // What runc 1.3.2's and crun 1.23's conversions give; 1024 is the default, as 100 is.
        for (shares, weight) in
            [(2, 1), (3, 2), (102, 17), (512, 59), (1024, 100), (2048, 174), (262_143, 10000), (262_144, 10000)]
        {
            assert_eq!(from(&format!(r#"{{"cpu":{{"shares":{shares}}}}}"#)), [format!("cpu.weight {weight}")]);
        }
        let weights: Vec<u64> = (2..=262_144).map(weight).collect();
        assert!(weights.is_sorted() && weights[0] == 1 && weights[262_142] == 10_000);
        for shares in [1, 262_145] {
            refused(&format!(r#"{{"cpu":{{"shares":{shares}}}}}"#), Kind::InvalidArgument, "cpu.shares");
        }
    }

    #[test]
    fn quota_and_period_are_one_file_and_a_burst_goes_before_them() {
        let cpu = |fields: &str| from(&format!(r#"{{"cpu":{{{fields}}}}}"#));
        assert_eq!(cpu(r#""quota":50000"#), ["cpu.max 50000"]);
        assert_eq!(cpu(r#""quota":-1,"period":100000"#), ["cpu.max max 100000"]);
        assert_eq!(cpu(r#""period":50000"#), ["_cpu.max 50000"]);
        assert_eq!(cpu(r#""quota":50000,"burst":20000"#), [">cpu.max.burst 20000", "cpu.max 50000"]);
        assert_eq!(cpu(r#""burst":0"#), ["?cpu.max.burst 0"]);
        assert_eq!(cpu(r#""shares":1024,"idle":1"#), ["cpu.weight 100", "cpu.idle 1"]);
        assert_eq!(cpu(r#""shares":1024,"idle":0"#), ["?cpu.idle 0", "cpu.weight 100"]);
        assert_eq!(cpu(r#""cpus":"0-1","mems":"0""#), ["cpuset.cpus 0-1", "cpuset.mems 0"]);
        assert_eq!(from(r#"{"pids":{"limit":7}}"#), ["pids.max 7"]);
        assert_eq!(from(r#"{"pids":{"limit":-1}}"#), ["?pids.max max"]);
    }

    #[test]
    fn what_only_v1_has_is_refused_or_told_of() {
        for (json, field) in [
            (r#"{"cpu":{"realtimeRuntime":1000}}"#, "cpu.realtime"),
            (r#"{"cpu":{"realtimePeriod":1000}}"#, "cpu.realtime"),
            (r#"{"blockIO":{"leafWeight":10}}"#, "blockIO.leafWeight"),
            (r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"leafWeight":10}]}}"#, "blockIO.leafWeight"),
            (r#"{"network":{"classID":1}}"#, "network.classID"),
            (r#"{"network":{"priorities":[{"name":"lo","priority":0}]}}"#, "network.priorities"),
            (r#"{"memory":{"disableOOMKiller":true}}"#, "memory.disableOOMKiller"),
        ] {
            refused(json, Kind::FailedPrecondition, field);
        }
        let of = |json: &str| {
            let fields = |text: &'static str| text.split(':').next().unwrap().rsplit('.').next().unwrap();
            ignored(&serde_json::from_str(json).unwrap()).into_iter().map(fields).collect::<Vec<_>>()
        };
        assert_eq!(of(r#"{"kernel":4096,"kernelTCP":4096,"swappiness":0}"#), ["kernel", "kernelTCP", "swappiness"]);
        assert_eq!(of(r#"{"kernel":-1,"kernelTCP":0,"limit":4096}"#), [""; 0]);
    }

    #[test]
    fn named_files_are_the_last() {
        let json =
            r#"{"unified":{"memory.max":"4096","cpu.max":"5000 10000"},"memory":{"limit":8192},"pids":{"limit":3}}"#;
        assert_eq!(from(json), ["memory.max 8192", "pids.max 3", "cpu.max 5000 10000", "memory.max 4096"]);
    }
}
