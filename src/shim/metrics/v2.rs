//! io.containerd.cgroups.v2.Metrics.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PSIData, PSIStats, PidsStat,
    RdmaEntry, RdmaStat,
};
use containerd_shim_protos::protobuf::MessageField;

use crate::cgroup::stats::Rdma;
use crate::cgroup::stats::v2::{self, Cpu, Hugetlb, Io, Memory, Pressure, Stall, Stats};
use crate::engine::stats::Interface;

/// Every part is there that containerd's own shim has always, also where it is all zeros: clients read them unasked.
pub(super) fn message(stats: Stats, network: Vec<Interface>) -> Metrics {
    let mut metrics = Metrics::new();
    let (current, limit) = (stats.pids, stats.pids_limit);
    metrics.pids = MessageField::some(PidsStat { current, limit, ..Default::default() });
    metrics.cpu = MessageField::some(cpu(stats.cpu, stats.cpu_pressure));
    metrics.memory = MessageField::some(memory(stats.memory, stats.memory_pressure));
    metrics.memory_events = stats.memory_events.map(memory_events).into();
    let usage = stats.io.into_iter().map(io).collect();
    metrics.io = MessageField::some(IOStat { usage, psi: pressure(stats.io_pressure), ..Default::default() });
    let [current, limit] = stats.rdma.map(|entries| entries.into_iter().map(rdma).collect());
    metrics.rdma = MessageField::some(RdmaStat { current, limit, ..Default::default() });
    metrics.hugetlb = stats.hugetlb.into_iter().map(hugetlb).collect();
    metrics.network = network.into_iter().map(interface).collect();
    metrics
}

fn cpu(from: Cpu, psi: Option<Pressure>) -> CPUStat {
    CPUStat {
        usage_usec: from.usage_usec,
        user_usec: from.user_usec,
        system_usec: from.system_usec,
        nr_periods: from.nr_periods,
        nr_throttled: from.nr_throttled,
        throttled_usec: from.throttled_usec,
        nr_bursts: from.nr_bursts,
        burst_usec: from.burst_usec,
        psi: pressure(psi),
        ..Default::default()
    }
}

fn memory(from: Memory, psi: Option<Pressure>) -> MemoryStat {
    let stat = &from.stat;
    MemoryStat {
        anon: stat.anon,
        file: stat.file,
        kernel_stack: stat.kernel_stack,
        slab: stat.slab,
        sock: stat.sock,
        shmem: stat.shmem,
        file_mapped: stat.file_mapped,
        file_dirty: stat.file_dirty,
        file_writeback: stat.file_writeback,
        anon_thp: stat.anon_thp,
        inactive_anon: stat.inactive_anon,
        active_anon: stat.active_anon,
        inactive_file: stat.inactive_file,
        active_file: stat.active_file,
        unevictable: stat.unevictable,
        slab_reclaimable: stat.slab_reclaimable,
        slab_unreclaimable: stat.slab_unreclaimable,
        pgfault: stat.pgfault,
        pgmajfault: stat.pgmajfault,
        workingset_nodereclaim: stat.workingset_nodereclaim,
        pgrefill: stat.pgrefill,
        pgscan: stat.pgscan,
        pgsteal: stat.pgsteal,
        pgactivate: stat.pgactivate,
        pgdeactivate: stat.pgdeactivate,
        pglazyfree: stat.pglazyfree,
        pglazyfreed: stat.pglazyfreed,
        thp_fault_alloc: stat.thp_fault_alloc,
        thp_collapse_alloc: stat.thp_collapse_alloc,
        // The kernel has one or the other.
        workingset_refault: stat.workingset_refault + stat.workingset_refault_anon + stat.workingset_refault_file,
        workingset_activate: stat.workingset_activate + stat.workingset_activate_anon + stat.workingset_activate_file,
        usage: from.usage,
        usage_limit: from.limit,
        swap_usage: from.swap_usage,
        swap_limit: from.swap_limit,
        max_usage: from.max_usage,
        swap_max_usage: from.swap_max_usage,
        psi: pressure(psi),
        ..Default::default()
    }
}

fn memory_events(from: v2::MemoryEvents) -> MemoryEvents {
    let v2::MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill } = from;
    MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill, ..Default::default() }
}

fn pressure(from: Option<Pressure>) -> MessageField<PSIStats> {
    let data = |stall: Stall| {
        let Stall { avg10, avg60, avg300, total } = stall;
        PSIData { avg10, avg60, avg300, total, ..Default::default() }
    };
    let message = |from: Pressure| PSIStats {
        some: from.some.map(data).into(),
        full: from.full.map(data).into(),
        ..Default::default()
    };
    from.map(message).into()
}

fn io(from: Io) -> IOEntry {
    let Io { major, minor, rbytes, wbytes, rios, wios } = from;
    IOEntry { major, minor, rbytes, wbytes, rios, wios, ..Default::default() }
}

fn hugetlb(from: Hugetlb) -> HugeTlbStat {
    let Hugetlb { page_size, usage, limit, failures } = from;
    HugeTlbStat { current: usage, max: limit, pagesize: page_size.to_owned(), failcnt: failures, ..Default::default() }
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
