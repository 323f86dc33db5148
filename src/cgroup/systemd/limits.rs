//! Limits as properties of a unit. Pure.
//!
//! They are made of the very knobs that are turned in the cgroup's files, `unified` among them, so that what systemd writes
//! there when it comes to it (a `daemon-reload`, a change of a unit above) is what is there already, but for its rounding.
//! What systemd has no property for is in the files alone, which it leaves alone.

use std::path::PathBuf;

use super::property::{Property, Value};
use crate::cgroup::hierarchy::Version;
use crate::cgroup::knobs::Knob;
use crate::error::Result;
use crate::spec::number_list;

/// No limit, in every property that is one (systemd: CGROUP_LIMIT_MAX, USEC_INFINITY).
const INFINITY: u64 = u64::MAX;

/// The period of a quota for which none is given, in microseconds: the kernel's, and systemd's.
const DEFAULT_PERIOD: u64 = 100_000;

/// The systemd and the host that properties are made for.
pub struct Host<'a> {
    /// Which files the knobs are of.
    pub version: Version,
    /// systemd's version: a property that it does not know would fail the whole call.
    pub systemd: u32,
    /// The text of /proc/devices.
    pub proc_devices: &'a str,
    /// The path of a block device's node, by its `8:0`.
    pub block_device: &'a dyn Fn(&str) -> Option<PathBuf>,
}

/// The properties that `knobs` are; `before` is what they change.
///
/// # Errors
/// `InvalidArgument` for a list of CPUs that is none.
pub fn properties(knobs: &[Knob], before: &[Knob], host: &Host<'_>) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    for knob in knobs {
        match host.version {
            Version::V2 => v2(knob, host, &mut properties)?,
            Version::V1 => v1(knob, &mut properties),
        }
    }
    properties.extend(cpu_quota(knobs, before, host));
    // What is idle has no weight of its own.
    if host.systemd >= 252 && knobs.iter().any(|knob| knob.file == "cpu.idle" && knob.value == "1") {
        replace(&mut properties, "CPUWeight", Value::U64(0));
    }
    Ok(properties)
}

fn v2(knob: &Knob, host: &Host<'_>, properties: &mut Vec<Property>) -> Result<()> {
    let value = knob.value.trim();
    let (name, since) = match &*knob.file {
        "memory.max" => ("MemoryMax", 231),
        "memory.high" => ("MemoryHigh", 231),
        "memory.low" => ("MemoryLow", 231),
        "memory.min" => ("MemoryMin", 240),
        "memory.swap.max" => ("MemorySwapMax", 232),
        "memory.zswap.max" => ("MemoryZSwapMax", 253),
        "pids.max" => ("TasksMax", 227),
        "cpu.weight" => ("CPUWeight", 232),
        "cpuset.cpus" if host.systemd >= 244 => return list("AllowedCPUs", value, properties),
        "cpuset.mems" if host.systemd >= 244 => return list("AllowedMemoryNodes", value, properties),
        "io.weight" | "io.bfq.weight" => {
            let weight = knob.files().find(|(file, _)| *file == "io.weight");
            match weight {
                Some((_, value)) => io_weight(value, |weight| weight, host, properties),
                None => io_weight(value, of_bfq_weight, host, properties),
            }
            return Ok(());
        }
        "io.max" | "io.latency" => {
            io_limits(value, host, properties);
            return Ok(());
        }
        _ => return Ok(()),
    };
    if let Some(number) = number(value).filter(|_| host.systemd >= since) {
        replace(properties, name, Value::U64(number));
    }
    Ok(())
}

/// The names that systemd has for v1's files only (until 258, which has no v1).
fn v1(knob: &Knob, properties: &mut Vec<Property>) {
    let name = match &*knob.file {
        "memory.limit_in_bytes" => "MemoryLimit",
        "cpu.shares" => "CPUShares",
        "blkio.weight" => "BlockIOWeight",
        "pids.max" => "TasksMax",
        _ => return,
    };
    if let Some(number) = number(&knob.value) {
        replace(properties, name, Value::U64(number));
    }
}

/// A number, or what stands for none: `max`, and v1's -1.
fn number(text: &str) -> Option<u64> {
    match text {
        "max" | "-1" => Some(INFINITY),
        text => text.parse().ok(),
    }
}

/// A later knob of a file has the last word there too.
fn replace(properties: &mut Vec<Property>, name: &str, value: Value) {
    properties.retain(|property| property.name != name);
    properties.push(Property::new(name, value));
}

/// The set as systemd takes it: a byte for each eight numbers. An empty one is no set of its own.
fn list(name: &str, text: &str, properties: &mut Vec<Property>) -> Result<()> {
    let words = if text.is_empty() { Vec::new() } else { number_list::mask(name, text)? };
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    replace(properties, name, Value::Bytes(bytes));
    Ok(())
}

/// A quota as time for each second, which systemd rounds down to a hundredth: so it is rounded up before, as runc does, or
/// the container could not hand all of it on to a cgroup below.
///
/// The kernel keeps what is not given of the quota and its period; systemd has another number for both then.
fn cpu_quota(knobs: &[Knob], before: &[Knob], host: &Host<'_>) -> Vec<Property> {
    let (quota, period) = quota_and_period(knobs);
    if quota.is_none() && period.is_none() {
        return Vec::new();
    }
    let (quota_before, period_before) = quota_and_period(before);
    let (quota, period) = (quota.or(quota_before), period.or(period_before).filter(|period| *period > 0));
    let mut properties = Vec::new();
    if let Some(period) = period.filter(|_| host.systemd >= 242) {
        properties.push(Property::new("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if let Some(quota) = quota {
        let each_second = match quota {
            INFINITY => INFINITY,
            quota => {
                let exact = u128::from(quota) * 1_000_000 / u128::from(period.unwrap_or(DEFAULT_PERIOD));
                u64::try_from(exact.next_multiple_of(10_000)).unwrap_or(INFINITY)
            }
        };
        properties.push(Property::new("CPUQuotaPerSecUSec", Value::U64(each_second)));
    }
    properties
}

/// In microseconds, each where one is given.
fn quota_and_period(knobs: &[Knob]) -> (Option<u64>, Option<u64>) {
    let (mut quota, mut period) = (None, None);
    for knob in knobs {
        let mut words = knob.value.split_ascii_whitespace();
        match &*knob.file {
            "cpu.max" if knob.second => period = words.next().and_then(number).or(period),
            "cpu.max" => {
                quota = words.next().and_then(number);
                period = words.next().and_then(number).or(period);
            }
            "cpu.cfs_quota_us" => quota = words.next().and_then(number),
            "cpu.cfs_period_us" => period = words.next().and_then(number),
            _ => {}
        }
    }
    (quota, period)
}

/// `default 100`, `100`, or `8:0 100` for a device.
fn io_weight(value: &str, scale: fn(u64) -> u64, host: &Host<'_>, properties: &mut Vec<Property>) {
    let (key, weight) = value.split_once(' ').unwrap_or(("default", value));
    if key == "default" {
        if let Ok(weight) = weight.parse() {
            replace(properties, "IOWeight", Value::U64(scale(weight)));
        }
        return;
    }
    if let (Some(device), Ok(weight)) = ((host.block_device)(key), weight.parse()) {
        push_limit(properties, "IODeviceWeight", device, scale(weight));
    }
}

/// The weight of which systemd makes this one of BFQ's (its BFQ_WEIGHT): 1 to 100 is the same, 100 to 1000 is 100 to 10000.
fn of_bfq_weight(weight: u64) -> u64 {
    if weight <= 100 { weight } else { 100 + weight.saturating_sub(100).saturating_mul(11) }
}

/// `8:0 rbps=1048576 wiops=max`, `8:0 target=75`
fn io_limits(value: &str, host: &Host<'_>, properties: &mut Vec<Property>) {
    let mut words = value.split_ascii_whitespace();
    let Some(device) = words.next().and_then(host.block_device) else { return };
    for (key, limit) in words.filter_map(|word| word.split_once('=')) {
        let name = match key {
            "rbps" => "IOReadBandwidthMax",
            "wbps" => "IOWriteBandwidthMax",
            "riops" => "IOReadIOPSMax",
            "wiops" => "IOWriteIOPSMax",
            "target" if host.systemd >= 240 => "IODeviceLatencyTargetUSec",
            _ => continue,
        };
        if let Some(limit) = number(limit) {
            push_limit(properties, name, device.clone(), limit);
        }
    }
}

fn push_limit(properties: &mut Vec<Property>, name: &str, device: PathBuf, limit: u64) {
    let device = device.to_string_lossy().into_owned();
    let list = properties.iter_mut().find(|property| property.name == name);
    match list.map(|property| &mut property.value) {
        Some(Value::Limits(limits)) => {
            limits.retain(|(other, _)| *other != device);
            limits.push((device, limit));
        }
        _ => properties.push(Property::new(name, Value::Limits(vec![(device, limit)]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(version: Version, systemd: u32) -> Host<'static> {
        let block_device = &|number: &str| number.starts_with("8:").then(|| format!("/dev/block/{number}").into());
        Host { version, systemd, proc_devices: "", block_device }
    }

    fn from(host: &Host<'_>, knobs: &[(&'static str, &str)]) -> Vec<(String, Value)> {
        let knobs: Vec<Knob> = knobs.iter().map(|(file, value)| Knob::new("x", *file, value)).collect();
        properties(&knobs, &[], host).unwrap().into_iter().map(|p| (p.name, p.value)).collect()
    }

    fn numbers(rows: &[(&str, u64)]) -> Vec<(String, Value)> {
        rows.iter().map(|(name, number)| ((*name).to_owned(), Value::U64(*number))).collect()
    }

    #[test]
    fn files_of_v2_are_properties() {
        let v2 = host(Version::V2, 252);
        let knobs = [
            ("memory.max", "1048576"),
            ("memory.high", "2"),
            ("memory.low", "3"),
            ("memory.min", "4"),
            ("memory.swap.max", "max"),
            ("pids.max", "7"),
            ("cpu.weight", "100"),
            ("io.weight", "default 50"),
            ("cpu.max", "150000 100000"),
            ("hugetlb.2MB.max", "1"),
        ];
        let rows = [
            ("MemoryMax", 1_048_576),
            ("MemoryHigh", 2),
            ("MemoryLow", 3),
            ("MemoryMin", 4),
            ("MemorySwapMax", u64::MAX),
            ("TasksMax", 7),
            ("CPUWeight", 100),
            ("IOWeight", 50),
            ("CPUQuotaPeriodUSec", 100_000),
            ("CPUQuotaPerSecUSec", 1_500_000),
        ];
        assert_eq!(from(&v2, &knobs), numbers(&rows));
        // Twice, as `unified` may have it: the last counts, as in the file.
        assert_eq!(from(&v2, &[("memory.max", "5"), ("memory.max", "6")]), numbers(&[("MemoryMax", 6)]));
    }

    #[test]
    fn a_quota_is_rounded_up_to_what_systemd_can_keep() {
        let v2 = host(Version::V2, 252);
        for (value, rows) in [
            ("5001 100000", &[("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", 60_000)][..]),
            ("1000 1000000", &[("CPUQuotaPeriodUSec", 1_000_000), ("CPUQuotaPerSecUSec", 10_000)]),
            ("50000", &[("CPUQuotaPerSecUSec", 500_000)]),
            ("max 50000", &[("CPUQuotaPeriodUSec", 50_000), ("CPUQuotaPerSecUSec", u64::MAX)]),
            ("18446744073709551614 1", &[("CPUQuotaPeriodUSec", 1), ("CPUQuotaPerSecUSec", u64::MAX)]),
            ("1 0", &[("CPUQuotaPerSecUSec", 10_000)]),
        ] {
            assert_eq!(from(&v2, &[("cpu.max", value)]), numbers(rows), "{value}");
        }
        // What is not given is what it was.
        let before = [Knob::new("cpu", "cpu.max", "20000 50000")];
        let change = |knob: Knob| {
            let properties = properties(&[knob], &before, &v2).unwrap();
            properties.into_iter().map(|p| (p.name, p.value)).collect::<Vec<_>>()
        };
        let rows = [("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", 200_000)];
        assert_eq!(change(Knob::new("cpu", "cpu.max", "100000").second()), numbers(&rows));
        let rows = [("CPUQuotaPeriodUSec", 50_000), ("CPUQuotaPerSecUSec", 800_000)];
        assert_eq!(change(Knob::new("cpu", "cpu.max", "40000")), numbers(&rows));
        assert_eq!(change(Knob::new("pids", "pids.max", "1")), numbers(&[("TasksMax", 1)]));
    }

    #[test]
    fn what_is_idle_has_no_weight() {
        let knobs = [("cpu.weight", "200"), ("cpu.idle", "1")];
        assert_eq!(from(&host(Version::V2, 252), &knobs), numbers(&[("CPUWeight", 0)]));
        assert_eq!(from(&host(Version::V2, 251), &knobs), numbers(&[("CPUWeight", 200)]));
        let knobs = [("cpu.idle", "0"), ("cpu.weight", "200")];
        assert_eq!(from(&host(Version::V2, 252), &knobs), numbers(&[("CPUWeight", 200)]));
    }

    #[test]
    fn cpus_are_a_mask_of_bytes() {
        let v2 = host(Version::V2, 252);
        let cpus = |list| from(&v2, &[("cpuset.cpus", list)]);
        assert_eq!(cpus("0-1,9"), [("AllowedCPUs".to_owned(), Value::Bytes(vec![3, 2]))]);
        assert_eq!(cpus(""), [("AllowedCPUs".to_owned(), Value::Bytes(vec![]))]);
        let nodes = from(&v2, &[("cpuset.mems", "0")]);
        assert_eq!(nodes, [("AllowedMemoryNodes".to_owned(), Value::Bytes(vec![1]))]);
        assert_eq!(from(&host(Version::V2, 243), &[("cpuset.cpus", "0")]), []);
        assert!(properties(&[Knob::new("cpuset", "cpuset.cpus", "a")], &[], &v2).is_err());
    }

    #[test]
    fn devices_have_their_limits() {
        let knobs = [
            ("io.max", "8:0 rbps=1 wbps=2"),
            ("io.max", "8:16 rbps=max riops=3 wiops=4"),
            ("io.max", "9:0 rbps=1"),
            ("io.weight", "8:0 70"),
            ("io.bfq.weight", "200"),
            ("io.latency", "8:0 target=75"),
        ];
        let limits = |name: &str, rows: &[(&str, u64)]| {
            let rows = rows.iter().map(|(number, limit)| (format!("/dev/block/{number}"), *limit));
            (name.to_owned(), Value::Limits(rows.collect()))
        };
        let expected = [
            limits("IOReadBandwidthMax", &[("8:0", 1), ("8:16", u64::MAX)]),
            limits("IOWriteBandwidthMax", &[("8:0", 2)]),
            limits("IOReadIOPSMax", &[("8:16", 3)]),
            limits("IOWriteIOPSMax", &[("8:16", 4)]),
            limits("IODeviceWeight", &[("8:0", 70)]),
            ("IOWeight".to_owned(), Value::U64(1200)),
            limits("IODeviceLatencyTargetUSec", &[("8:0", 75)]),
        ];
        assert_eq!(from(&host(Version::V2, 252), &knobs), expected);
    }

    #[test]
    fn an_older_systemd_is_told_what_it_knows() {
        let knobs = [("memory.min", "1"), ("memory.zswap.max", "1"), ("cpu.max", "50000 100000")];
        assert_eq!(from(&host(Version::V2, 239), &knobs), numbers(&[("CPUQuotaPerSecUSec", 500_000)]));
        assert_eq!(from(&host(Version::V2, 257), &knobs).len(), 4);
    }

    #[test]
    fn files_of_v1_are_properties_of_their_time() {
        let knobs = [
            ("memory.limit_in_bytes", "-1"),
            ("cpu.shares", "512"),
            ("blkio.weight", "300"),
            ("pids.max", "max"),
            ("memory.max", "1"),
            ("cpu.cfs_period_us", "50000"),
            ("cpu.cfs_quota_us", "-1"),
        ];
        let rows = [
            ("MemoryLimit", u64::MAX),
            ("CPUShares", 512),
            ("BlockIOWeight", 300),
            ("TasksMax", u64::MAX),
            ("CPUQuotaPeriodUSec", 50_000),
            ("CPUQuotaPerSecUSec", u64::MAX),
        ];
        assert_eq!(from(&host(Version::V1, 252), &knobs), numbers(&rows));
    }
}
