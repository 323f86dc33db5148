//! A container's numbers in the form of runc's `events` (runc: types/events.go), field for field.
//!
//! What is 0 or empty is left out where runc leaves it out. On cgroup2 runc puts what it reads in the places of v1, and so
//! it is here: swap with memory, bytes and requests of block devices as Read and Write.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::cgroup::stats::{self, v1, v2};
use crate::engine::stats::Interface;
use crate::error::Result;

/// `data` of an event of the type `stats`.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, Hugetlb>,
    /// runc fills it where resctrl is mounted; the kernel's files have more.
    intel_rdt: Empty,
    /// `null` for a container of the host's network.
    network_interfaces: Option<Vec<NetworkInterface>>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Empty {}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu_user: Vec<u64>,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(rename = "throttledPeriods", skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    #[serde(rename = "throttledTime", skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Blkio {
    #[serde(rename = "ioServiceBytesRecursive", skip_serializing_if = "Vec::is_empty")]
    service_bytes: Vec<Io>,
    #[serde(rename = "ioServicedRecursive", skip_serializing_if = "Vec::is_empty")]
    serviced: Vec<Io>,
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    queued: Vec<Io>,
    #[serde(rename = "ioServiceTimeRecursive", skip_serializing_if = "Vec::is_empty")]
    service_time: Vec<Io>,
    #[serde(rename = "ioWaitTimeRecursive", skip_serializing_if = "Vec::is_empty")]
    wait_time: Vec<Io>,
    #[serde(rename = "ioMergedRecursive", skip_serializing_if = "Vec::is_empty")]
    merged: Vec<Io>,
    #[serde(rename = "ioTimeRecursive", skip_serializing_if = "Vec::is_empty")]
    time: Vec<Io>,
    #[serde(rename = "sectorsRecursive", skip_serializing_if = "Vec::is_empty")]
    sectors: Vec<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Io {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    op: String,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Pressure {
    #[serde(skip_serializing_if = "Option::is_none")]
    some: Option<Stall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full: Option<Stall>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Stall {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkInterface {
    name: String,
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Stats {
    /// Of a container's cgroup and the interfaces of its network namespace.
    ///
    /// # Errors
    /// `NotFound` when the cgroup is gone.
    pub fn read(cgroup: &Cgroup, source: &stats::Source, interfaces: Option<Vec<Interface>>) -> Result<Self> {
        let text = |controller: &str, file: &str| cgroup.text(controller, file);
        let mut stats = match source.read()? {
            stats::Stats::V1(stats) => Self::v1(*stats, &text)?,
            stats::Stats::V2(stats) => Self::v2(*stats),
        };
        stats.memory.raw = numbers(&text("memory", "memory.stat")?);
        stats.network_interfaces = interfaces.map(|all| all.into_iter().map(interface).collect());
        Ok(stats)
    }

    fn v1(stats: v1::Stats, text: &dyn Fn(&str, &str) -> Result<String>) -> Result<Self> {
        let v1::Stats { cpu, memory, pids, blkio, hugetlb, .. } = stats;
        let (percpu_user, percpu_kernel) = per_cpu(&text("cpuacct", "cpuacct.usage_all")?);
        let number = |file: &str| Ok::<u64, crate::error::Error>(text("cpuset", file)?.trim().parse().unwrap_or(0));
        let list = |file: &str| Ok::<_, crate::error::Error>(members(&text("cpuset", file)?));
        let entry = |usage: v1::Usage| MemoryEntry {
            limit: usage.limit,
            usage: usage.usage,
            max: usage.max,
            failcnt: usage.failures,
        };
        let of = |all: Vec<v1::Io>| all.into_iter().map(|io| io_entry(io.major, io.minor, &io.op, io.value)).collect();
        let huge =
            |h: v1::Hugetlb| (h.page_size.to_owned(), Hugetlb { usage: h.usage, max: h.max, failcnt: h.failures });
        Ok(Self {
            cpu: Cpu {
                usage: CpuUsage {
                    total: cpu.total,
                    percpu: cpu.per_cpu,
                    percpu_kernel,
                    percpu_user,
                    kernel: cpu.kernel,
                    user: cpu.user,
                },
                throttling: Throttling {
                    periods: cpu.periods,
                    throttled_periods: cpu.throttled_periods,
                    throttled_time: cpu.throttled,
                },
                psi: None,
            },
            cpuset: CpuSet {
                cpus: list("cpuset.cpus")?,
                cpu_exclusive: number("cpuset.cpu_exclusive")?,
                mems: list("cpuset.mems")?,
                mem_hardwall: number("cpuset.mem_hardwall")?,
                mem_exclusive: number("cpuset.mem_exclusive")?,
                memory_migrate: number("cpuset.memory_migrate")?,
                memory_spread_page: number("cpuset.memory_spread_page")?,
                memory_spread_slab: number("cpuset.memory_spread_slab")?,
                memory_pressure: number("cpuset.memory_pressure")?,
                sched_load_balance: number("cpuset.sched_load_balance")?,
                sched_relax_domain_level: text("cpuset", "cpuset.sched_relax_domain_level")?
                    .trim()
                    .parse()
                    .unwrap_or(0),
            },
            memory: Memory {
                cache: memory.stat.cache,
                usage: entry(memory.usage),
                swap: entry(memory.swap),
                kernel: entry(memory.kernel),
                kernel_tcp: entry(memory.kernel_tcp),
                ..Memory::default()
            },
            pids: Pids { current: pids.current, limit: pids.limit },
            blkio: Blkio {
                service_bytes: of(blkio.service_bytes),
                serviced: of(blkio.serviced),
                queued: of(blkio.queued),
                service_time: of(blkio.service_time),
                wait_time: of(blkio.wait_time),
                merged: of(blkio.merged),
                time: of(blkio.time),
                sectors: of(blkio.sectors),
                psi: None,
            },
            hugetlb: hugetlb.into_iter().map(huge).collect(),
            ..Self::default()
        })
    }

    fn v2(stats: v2::Stats) -> Self {
        let v2::Stats { cpu, memory, io, hugetlb, .. } = stats;
        let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
        let usage =
            MemoryEntry { limit: memory.limit, usage: memory.usage, max: memory.max_usage, ..MemoryEntry::default() };
        let swap = MemoryEntry {
            // The largest number is no limit.
            limit: memory.swap_limit.saturating_add(if memory.swap_limit == u64::MAX { 0 } else { memory.limit }),
            usage: memory.swap_usage.saturating_add(memory.usage),
            ..MemoryEntry::default()
        };
        let of = |read: fn(&v2::Io) -> u64, written: fn(&v2::Io) -> u64| {
            let both = |device: &v2::Io| {
                let entry = |op, value| io_entry(device.major, device.minor, op, value);
                [entry("Read", read(device)), entry("Write", written(device))]
            };
            io.iter().flat_map(both).collect()
        };
        let huge = |h: v2::Hugetlb| (h.page_size.to_owned(), Hugetlb { usage: h.usage, max: 0, failcnt: h.failures });
        Self {
            cpu: Cpu {
                usage: CpuUsage {
                    total: nanoseconds(cpu.usage_usec),
                    kernel: nanoseconds(cpu.system_usec),
                    user: nanoseconds(cpu.user_usec),
                    ..CpuUsage::default()
                },
                throttling: Throttling {
                    periods: cpu.nr_periods,
                    throttled_periods: cpu.nr_throttled,
                    throttled_time: nanoseconds(cpu.throttled_usec),
                },
                psi: stats.cpu_pressure.map(pressure),
            },
            memory: Memory {
                cache: memory.stat.file,
                usage,
                swap,
                psi: stats.memory_pressure.map(pressure),
                ..Memory::default()
            },
            pids: Pids { current: stats.pids, limit: if stats.pids_limit == u64::MAX { 0 } else { stats.pids_limit } },
            blkio: Blkio {
                service_bytes: of(|io| io.rbytes, |io| io.wbytes),
                serviced: of(|io| io.rios, |io| io.wios),
                psi: stats.io_pressure.map(pressure),
                ..Blkio::default()
            },
            hugetlb: hugetlb.into_iter().map(huge).collect(),
            ..Self::default()
        }
    }
}

fn io_entry(major: u64, minor: u64, op: &str, value: u64) -> Io {
    Io { major, minor, op: op.to_owned(), value }
}

fn pressure(from: v2::Pressure) -> Pressure {
    let stall = |s: v2::Stall| Stall { avg10: s.avg10, avg60: s.avg60, avg300: s.avg300, total: s.total };
    // runc leaves out one that has never been anything.
    let told = |stall: &v2::Stall| *stall != v2::Stall::default();
    Pressure { some: from.some.filter(told).map(stall), full: from.full.filter(told).map(stall) }
}

fn interface(from: Interface) -> NetworkInterface {
    let Interface { name, received, sent } = from;
    NetworkInterface {
        name,
        rx_bytes: received.bytes,
        rx_packets: received.packets,
        rx_errors: received.errors,
        rx_dropped: received.dropped,
        tx_bytes: sent.bytes,
        tx_packets: sent.packets,
        tx_errors: sent.errors,
        tx_dropped: sent.dropped,
    }
}

/// Lines of a name and a number.
fn numbers(text: &str) -> BTreeMap<String, u64> {
    let number = |line: &str| line.split_once(' ').and_then(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
    text.lines().filter_map(number).collect()
}

/// cpuacct.usage_all: a title `cpu user system`, then a line for each.
fn per_cpu(text: &str) -> (Vec<u64>, Vec<u64>) {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1).map(|word| word.parse::<u64>().ok());
        Some((words.next()??, words.next()??))
    };
    text.lines().skip(1).filter_map(line).unzip()
}

/// A list of a cpuset's, `0-3,7`.
fn members(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_and_tables_are_read() {
        assert_eq!(members("0-2,7\n"), [0, 1, 2, 7]);
        assert!(members("\n").is_empty());
        assert_eq!(per_cpu("cpu user system\n0 1 2\n1 3 4\n"), (vec![1, 3], vec![2, 4]));
        assert_eq!(numbers("cache 4096\nodd\n"), [("cache".to_owned(), 4096)].into());
    }

    #[test]
    fn cgroup2_has_the_places_of_v1() {
        let mut stats = v2::Stats { pids: 3, pids_limit: u64::MAX, ..v2::Stats::default() };
        stats.cpu.usage_usec = 5;
        stats.memory =
            v2::Memory { usage: 10, limit: 100, swap_usage: 1, swap_limit: 50, max_usage: 20, ..v2::Memory::default() };
        stats.io = vec![v2::Io { major: 8, rbytes: 4096, wios: 2, ..v2::Io::default() }];
        let stall = v2::Stall { avg10: 0.5, total: 9, ..v2::Stall::default() };
        stats.cpu_pressure = Some(v2::Pressure { some: Some(stall), full: Some(v2::Stall::default()) });
        let told = serde_json::to_value(Stats::v2(stats)).unwrap();
        assert_eq!(told["cpu"]["usage"], json!({ "total": 5000, "kernel": 0, "user": 0 }));
        assert_eq!(told["cpu"]["psi"], json!({ "some": { "avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 9 } }));
        assert_eq!(told["memory"]["usage"], json!({ "limit": 100, "usage": 10, "max": 20, "failcnt": 0 }));
        assert_eq!(told["memory"]["swap"], json!({ "limit": 150, "usage": 11, "failcnt": 0 }));
        assert_eq!(told["pids"], json!({ "current": 3 }));
        let bytes = json!([{ "major": 8, "op": "Read", "value": 4096 }, { "major": 8, "op": "Write" }]);
        assert_eq!(told["blkio"]["ioServiceBytesRecursive"], bytes);
        assert_eq!((&told["intel_rdt"], &told["network_interfaces"]), (&json!({}), &json!(null)));
    }
}
