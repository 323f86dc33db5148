//! io.containerd.cgroups.v1.Metrics.

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    NetworkStat, PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use containerd_shim_protos::protobuf::MessageField;

use crate::cgroup::stats::v1::{Blkio, Cpu, Hugetlb, Io, Memory, Stats, Usage};
use crate::cgroup::stats::{Rdma, block_devices};
use crate::engine::stats::Interface;

/// Every part is there, also those that are all zeros: `ctr task metrics` reads them unasked. But for `cgroup_stats`, which
/// no shim of containerd's own fills: it would be a walk over all tasks in the kernel.
pub(super) fn message(stats: Stats, network: Vec<Interface>) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.cpu = MessageField::some(cpu(stats.cpu));
    let oom = &stats.memory.oom;
    metrics.memory_oom_control = MessageField::some(MemoryOomControl {
        oom_kill_disable: oom.oom_kill_disable,
        under_oom: oom.under_oom,
        oom_kill: oom.oom_kill,
        ..Default::default()
    });
    metrics.memory = MessageField::some(memory(stats.memory));
    let (current, limit) = (stats.pids.current, stats.pids.limit);
    metrics.pids = MessageField::some(PidsStat { current, limit, ..Default::default() });
    metrics.blkio = MessageField::some(blkio(stats.blkio));
    metrics.hugetlb = stats.hugetlb.into_iter().map(hugetlb).collect();
    let [current, limit] = stats.rdma.map(|entries| entries.into_iter().map(rdma).collect());
    metrics.rdma = MessageField::some(RdmaStat { current, limit, ..Default::default() });
    metrics.network = network.into_iter().map(interface).collect();
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
    let stat = &from.stat;
    MemoryStat {
        cache: stat.cache,
        rss: stat.rss,
        rss_huge: stat.rss_huge,
        mapped_file: stat.mapped_file,
        dirty: stat.dirty,
        writeback: stat.writeback,
        pg_pg_in: stat.pgpgin,
        pg_pg_out: stat.pgpgout,
        pg_fault: stat.pgfault,
        pg_maj_fault: stat.pgmajfault,
        inactive_anon: stat.inactive_anon,
        active_anon: stat.active_anon,
        inactive_file: stat.inactive_file,
        active_file: stat.active_file,
        unevictable: stat.unevictable,
        hierarchical_memory_limit: stat.hierarchical_memory_limit,
        hierarchical_swap_limit: stat.hierarchical_memsw_limit,
        total_cache: stat.total_cache,
        total_rss: stat.total_rss,
        total_rss_huge: stat.total_rss_huge,
        total_mapped_file: stat.total_mapped_file,
        total_dirty: stat.total_dirty,
        total_writeback: stat.total_writeback,
        total_pg_pg_in: stat.total_pgpgin,
        total_pg_pg_out: stat.total_pgpgout,
        total_pg_fault: stat.total_pgfault,
        total_pg_maj_fault: stat.total_pgmajfault,
        total_inactive_anon: stat.total_inactive_anon,
        total_active_anon: stat.total_active_anon,
        total_inactive_file: stat.total_inactive_file,
        total_active_file: stat.total_active_file,
        total_unevictable: stat.total_unevictable,
        usage: entry(&from.usage),
        swap: entry(&from.swap),
        kernel: entry(&from.kernel),
        kernel_tcp: entry(&from.kernel_tcp),
        ..Default::default()
    }
}

fn entry(from: &Usage) -> MessageField<MemoryEntry> {
    let Usage { limit, usage, max, failures } = *from;
    MessageField::some(MemoryEntry { limit, usage, max, failcnt: failures, ..Default::default() })
}

fn blkio(from: Blkio) -> BlkIOStat {
    let names = if from == Blkio::default() { Vec::new() } else { block_devices() };
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

fn hugetlb(from: Hugetlb) -> HugetlbStat {
    let Hugetlb { page_size, usage, max, failures } = from;
    HugetlbStat { usage, max, failcnt: failures, pagesize: page_size.to_owned(), ..Default::default() }
}

fn rdma(from: Rdma) -> RdmaEntry {
    let Rdma { device, handles, objects } = from;
    RdmaEntry { device, hca_handles: handles, hca_objects: objects, ..Default::default() }
}

fn interface(from: Interface) -> NetworkStat {
    let Interface { name, received, sent } = from;
    NetworkStat {
        name,
        rx_bytes: received.bytes,
        rx_packets: received.packets,
        rx_errors: received.errors,
        rx_dropped: received.dropped,
        tx_bytes: sent.bytes,
        tx_packets: sent.packets,
        tx_errors: sent.errors,
        tx_dropped: sent.dropped,
        ..Default::default()
    }
}
