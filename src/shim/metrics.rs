//! A container's numbers in containerd's messages: io.containerd.cgroups.v1.Metrics.

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use containerd_shim_protos::protobuf::MessageField;

use crate::cgroup::stats::{self, Cpu, Io, Memory, Stats, Usage, block_devices};

/// Its name, as containerd's typeurl has it.
pub const TYPE_URL: &str = "io.containerd.cgroups.v1.Metrics";

/// The message. Every part is there, also those that are all zeros: `ctr task metrics` reads them unasked.
pub fn message(stats: Stats) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.cpu = MessageField::some(cpu(stats.cpu));
    let mut oom = MemoryOomControl::new();
    for (name, value) in &stats.memory.oom {
        match name.as_str() {
            "oom_kill_disable" => oom.oom_kill_disable = *value,
            "under_oom" => oom.under_oom = *value,
            "oom_kill" => oom.oom_kill = *value,
            _ => {}
        }
    }
    metrics.memory_oom_control = MessageField::some(oom);
    metrics.memory = MessageField::some(memory(stats.memory));
    let (current, limit) = (stats.pids.current, stats.pids.limit);
    metrics.pids = MessageField::some(PidsStat { current, limit, ..Default::default() });
    metrics.blkio = MessageField::some(blkio(stats.blkio));
    metrics.hugetlb = stats.hugetlb.into_iter().map(hugetlb).collect();
    let [current, limit] = stats.rdma.map(|entries| entries.into_iter().map(rdma).collect());
    metrics.rdma = MessageField::some(RdmaStat { current, limit, ..Default::default() });
    metrics
}

fn cpu(from: Cpu) -> CPUStat {
    let Cpu { total, user, kernel, per_cpu, periods, throttled_periods, throttled } = from;
    let mut to = CPUStat::new();
    to.usage = MessageField::some(CPUUsage { total, user, kernel, per_cpu, ..Default::default() });
    let throttle = Throttle { periods, throttled_periods, throttled_time: throttled, ..Default::default() };
    to.throttling = MessageField::some(throttle);
    to
}

fn memory(from: Memory) -> MemoryStat {
    let mut to = MemoryStat::new();
    for (name, value) in &from.stat {
        if let Some(field) = memory_field(&mut to, name) {
            *field = *value;
        }
    }
    to.usage = entry(&from.usage);
    to.swap = entry(&from.swap);
    to.kernel = entry(&from.kernel);
    to.kernel_tcp = entry(&from.kernel_tcp);
    to
}

/// The field for a line of memory.stat; the kernel has more lines than the message has fields.
fn memory_field<'m>(to: &'m mut MemoryStat, name: &str) -> Option<&'m mut u64> {
    Some(match name {
        "cache" => &mut to.cache,
        "rss" => &mut to.rss,
        "rss_huge" => &mut to.rss_huge,
        "mapped_file" => &mut to.mapped_file,
        "dirty" => &mut to.dirty,
        "writeback" => &mut to.writeback,
        "pgpgin" => &mut to.pg_pg_in,
        "pgpgout" => &mut to.pg_pg_out,
        "pgfault" => &mut to.pg_fault,
        "pgmajfault" => &mut to.pg_maj_fault,
        "inactive_anon" => &mut to.inactive_anon,
        "active_anon" => &mut to.active_anon,
        "inactive_file" => &mut to.inactive_file,
        "active_file" => &mut to.active_file,
        "unevictable" => &mut to.unevictable,
        "hierarchical_memory_limit" => &mut to.hierarchical_memory_limit,
        "hierarchical_memsw_limit" => &mut to.hierarchical_swap_limit,
        "total_cache" => &mut to.total_cache,
        "total_rss" => &mut to.total_rss,
        "total_rss_huge" => &mut to.total_rss_huge,
        "total_mapped_file" => &mut to.total_mapped_file,
        "total_dirty" => &mut to.total_dirty,
        "total_writeback" => &mut to.total_writeback,
        "total_pgpgin" => &mut to.total_pg_pg_in,
        "total_pgpgout" => &mut to.total_pg_pg_out,
        "total_pgfault" => &mut to.total_pg_fault,
        "total_pgmajfault" => &mut to.total_pg_maj_fault,
        "total_inactive_anon" => &mut to.total_inactive_anon,
        "total_active_anon" => &mut to.total_active_anon,
        "total_inactive_file" => &mut to.total_inactive_file,
        "total_active_file" => &mut to.total_active_file,
        "total_unevictable" => &mut to.total_unevictable,
        _ => return None,
    })
}

fn entry(from: &Usage) -> MessageField<MemoryEntry> {
    let Usage { limit, usage, max, failures } = *from;
    MessageField::some(MemoryEntry { limit, usage, max, failcnt: failures, ..Default::default() })
}

fn blkio(from: stats::Blkio) -> BlkIOStat {
    let names = if from == stats::Blkio::default() { Vec::new() } else { block_devices() };
    let entry = |io: Io| {
        let name = names.iter().find(|(major, minor, _)| (*major, *minor) == (io.major, io.minor));
        let device = name.map(|(.., name)| format!("/dev/{name}")).unwrap_or_default();
        BlkIOEntry { op: io.op, device, major: io.major, minor: io.minor, value: io.value, ..Default::default() }
    };
    let entries = |lines: Vec<Io>| lines.into_iter().map(entry).collect();
    let mut to = BlkIOStat::new();
    to.io_service_bytes_recursive = entries(from.service_bytes);
    to.io_serviced_recursive = entries(from.serviced);
    to.io_queued_recursive = entries(from.queued);
    to.io_service_time_recursive = entries(from.service_time);
    to.io_wait_time_recursive = entries(from.wait_time);
    to.io_merged_recursive = entries(from.merged);
    to.io_time_recursive = entries(from.time);
    to.sectors_recursive = entries(from.sectors);
    to
}

fn hugetlb(from: stats::Hugetlb) -> HugetlbStat {
    let stats::Hugetlb { page_size, usage, max, failures } = from;
    HugetlbStat { usage, max, failcnt: failures, pagesize: page_size, ..Default::default() }
}

fn rdma((device, hca_handles, hca_objects): (String, u32, u32)) -> RdmaEntry {
    RdmaEntry { device, hca_handles, hca_objects, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own memory.stat: each field of the message that it has a line for is taken from that line.
    #[test]
    fn each_line_of_memory_stat_has_its_field() {
        let names = "cache rss rss_huge mapped_file dirty writeback pgpgin pgpgout pgfault pgmajfault inactive_anon \
                     active_anon inactive_file active_file unevictable hierarchical_memory_limit \
                     hierarchical_memsw_limit";
        let mut names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        names.extend(names[..15].iter().map(|name| format!("total_{name}")).collect::<Vec<_>>());
        let stat: stats::Flat = names.into_iter().zip(1..).collect();
        let message = memory(Memory { stat, ..Memory::default() });
        let text = format!("{message:?}");
        // In the order of the message, which is that of the kernel's file: each number once, in its place.
        let numbers: Vec<u64> = text
            .split(&[':', ',', '{', '}'])
            .filter_map(|word| word.trim().parse().ok())
            .filter(|number| *number != 0)
            .collect();
        assert_eq!(numbers, (1..=32).collect::<Vec<u64>>(), "{text}");
    }
}
