//! The numbers of v1 hierarchies (Documentation/admin-guide/cgroup-v1).

use super::{Files, Rdma, counters, rdma};
use crate::cgroup::{file, hugepages};
use crate::error::Result;

/// Those that have any.
pub(super) const CONTROLLERS: [&str; 7] = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma"];

/// The unit of cpuacct.stat, USER_HZ: 100 a second on every architecture that is supported (proc(5), sysconf(3)).
const TICK_NANOSECONDS: u64 = 1_000_000_000 / 100;

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Tasks.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages, by their size.
    pub hugetlb: Vec<Hugetlb>,
    /// RDMA devices: now, and at most.
    pub rdma: [Vec<Rdma>; 2],
}

/// Processor time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All of it.
    pub total: u64,
    /// In user mode, by ticks.
    pub user: u64,
    /// In the kernel, by ticks.
    pub kernel: u64,
    /// By processor.
    pub per_cpu: Vec<u64>,
    /// Periods of the quota that have passed.
    pub periods: u64,
    /// Those in which it was used up.
    pub throttled_periods: u64,
    /// Time spent waiting for the next one.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// memory.stat.
    pub stat: MemoryStat,
    /// User memory.
    pub usage: Usage,
    /// With swap.
    pub swap: Usage,
    /// The kernel's.
    pub kernel: Usage,
    /// Its TCP buffers.
    pub kernel_tcp: Usage,
    /// memory.oom_control.
    pub oom: OomControl,
}

counters! {
    /// memory.stat, as far as somebody wants it.
    MemoryStat {
        cache rss rss_huge mapped_file dirty writeback pgpgin pgpgout pgfault pgmajfault inactive_anon active_anon
        inactive_file active_file unevictable hierarchical_memory_limit hierarchical_memsw_limit
        total_cache total_rss total_rss_huge total_mapped_file total_dirty total_writeback total_pgpgin total_pgpgout
        total_pgfault total_pgmajfault total_inactive_anon total_active_anon total_inactive_file total_active_file
        total_unevictable
    }
}

counters! {
    /// memory.oom_control.
    OomControl { oom_kill_disable under_oom oom_kill }
}

/// A counter of bytes with a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// At most.
    pub limit: u64,
    /// Now.
    pub usage: u64,
    /// The highest so far.
    pub max: u64,
    /// How often the limit was reached.
    pub failures: u64,
}

/// Tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// Now.
    pub current: u64,
    /// At most; 0 without a limit.
    pub limit: u64,
}

/// Block devices. What a kernel tells depends on its I/O scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blkio {
    /// Bytes.
    pub service_bytes: Vec<Io>,
    /// Requests.
    pub serviced: Vec<Io>,
    /// Requests that wait.
    pub queued: Vec<Io>,
    /// Nanoseconds from dispatch to completion.
    pub service_time: Vec<Io>,
    /// Nanoseconds in the queue.
    pub wait_time: Vec<Io>,
    /// Requests that were merged.
    pub merged: Vec<Io>,
    /// Milliseconds of the device.
    pub time: Vec<Io>,
    /// Sectors.
    pub sectors: Vec<Io>,
}

/// One line: a device, what was done (Read, Write...; empty for a file that does not tell), a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// What.
    pub op: String,
    /// How much.
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// As the files name it: `2MB`.
    pub page_size: &'static str,
    /// Now.
    pub usage: u64,
    /// The highest so far.
    pub max: u64,
    /// How often the limit was reached.
    pub failures: u64,
}

impl Stats {
    pub(super) fn read(&mut self, controller: &str, files: &mut Files) -> Result<()> {
        match controller {
            "cpuacct" => {
                self.cpu.total = files.number("cpuacct.usage")?;
                let per_cpu = files.text("cpuacct.usage_percpu")?.unwrap_or_default().split_ascii_whitespace();
                self.cpu.per_cpu = per_cpu.filter_map(|n| n.parse().ok()).collect();
                let stat = files.text("cpuacct.stat")?.unwrap_or_default();
                let ticks = |key| file::number(stat, key).unwrap_or(0).saturating_mul(TICK_NANOSECONDS);
                (self.cpu.user, self.cpu.kernel) = (ticks("user"), ticks("system"));
            }
            "cpu" => {
                let stat = files.text("cpu.stat")?.unwrap_or_default();
                let of = |key| file::number(stat, key).unwrap_or(0);
                self.cpu.periods = of("nr_periods");
                self.cpu.throttled_periods = of("nr_throttled");
                self.cpu.throttled = of("throttled_time");
            }
            "memory" => {
                self.memory = Memory {
                    stat: files.text("memory.stat")?.map(MemoryStat::of).unwrap_or_default(),
                    oom: files.text("memory.oom_control")?.map(OomControl::of).unwrap_or_default(),
                    usage: files.usage("memory")?,
                    swap: files.usage("memory.memsw")?,
                    kernel: files.usage("memory.kmem")?,
                    kernel_tcp: files.usage("memory.kmem.tcp")?,
                }
            }
            "pids" => {
                let (current, limit) = (files.number("pids.current")?, files.number("pids.max")?);
                self.pids = Pids { current, limit };
            }
            "blkio" => self.blkio = files.blkio()?,
            "hugetlb" => self.hugetlb = files.hugetlb(hugepages::known())?,
            "rdma" => self.rdma = [rdma(files.text("rdma.current")?), rdma(files.text("rdma.max")?)],
            _ => {}
        }
        Ok(())
    }
}

impl Files<'_> {
    fn usage(&mut self, prefix: &str) -> Result<Usage> {
        Ok(Usage {
            limit: self.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: self.number(&format!("{prefix}.usage_in_bytes"))?,
            max: self.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failures: self.number(&format!("{prefix}.failcnt"))?,
        })
    }

    /// From whoever has seen any: CFQ (until Linux 4.20), BFQ, else the throttler, which sees all but counts the two of
    /// its own only.
    fn blkio(&mut self) -> Result<Blkio> {
        for scheduler in ["blkio", "blkio.bfq"] {
            // Who has not this one, which all have, has no other.
            let Some(serviced) = self.text(&format!("{scheduler}.io_serviced_recursive"))? else { continue };
            let serviced = io(serviced);
            if serviced.is_empty() {
                continue;
            }
            let mut of = |what| self.io(&format!("{scheduler}.{what}_recursive"));
            return Ok(Blkio {
                serviced,
                service_bytes: of("io_service_bytes")?,
                queued: of("io_queued")?,
                service_time: of("io_service_time")?,
                wait_time: of("io_wait_time")?,
                merged: of("io_merged")?,
                time: of("time")?,
                sectors: of("sectors")?,
            });
        }
        let mut of = |what| match self.io(&format!("blkio.throttle.{what}_recursive"))? {
            // Since Linux 5.0 only.
            none if none.is_empty() => self.io(&format!("blkio.throttle.{what}")),
            some => Ok(some),
        };
        let (serviced, service_bytes) = (of("io_serviced")?, of("io_service_bytes")?);
        Ok(Blkio { serviced, service_bytes, ..Blkio::default() })
    }

    fn io(&mut self, name: &str) -> Result<Vec<Io>> {
        Ok(self.text(name)?.map(io).unwrap_or_default())
    }

    fn hugetlb(&mut self, sizes: &'static [String]) -> Result<Vec<Hugetlb>> {
        let stat = |page_size: &'static String| {
            let mut of = |file| self.number(&format!("hugetlb.{page_size}.{file}"));
            let (usage, max, failures) = (of("usage_in_bytes")?, of("max_usage_in_bytes")?, of("failcnt")?);
            Ok(Hugetlb { page_size, usage, max, failures })
        };
        sizes.iter().map(stat).collect()
    }
}

fn io(text: &str) -> Vec<Io> {
    text.lines().filter_map(io_line).collect()
}

/// `8:0 Read 4096`, `8:0 12`; not the sum at the end, `Total 4096`.
fn io_line(line: &str) -> Option<Io> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (op, value) = match (words.next()?, words.next()) {
        (op, Some(value)) => (op, value),
        (value, None) => ("", value),
    };
    Some(Io { major: major.parse().ok()?, minor: minor.parse().ok()?, op: op.into(), value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::super::Stats as Any;
    use super::super::tests::Directory;
    use super::*;
    use crate::cgroup::hierarchy::Version;

    fn stats(name: &str, files: &[(&str, &str)]) -> Stats {
        let dir = Directory::new(name, files);
        let source = dir.source(Version::V1, "cpuacct,cpu,memory,pids,blkio,hugetlb,rdma,freezer");
        let Any::V1(stats) = source.read().unwrap() else { unreachable!() };
        *stats
    }

    #[test]
    fn what_the_files_say_is_what_is_told() {
        let files = [
            ("cpuacct.usage", "123456789\n"),
            ("cpuacct.usage_percpu", "100 23 \n"),
            ("cpuacct.stat", "user 3\nsystem 2\n"),
            ("cpu.stat", "nr_periods 7\nnr_throttled 4\nthrottled_time 99\nnr_bursts 0\n"),
            ("memory.stat", "cache 4096\nrss 8192\nhierarchical_memory_limit 9223372036854771712\n"),
            ("memory.usage_in_bytes", "1\n"),
            ("memory.max_usage_in_bytes", "2\n"),
            ("memory.limit_in_bytes", "3\n"),
            ("memory.failcnt", "4\n"),
            ("memory.memsw.usage_in_bytes", "5\n"),
            ("memory.kmem.tcp.usage_in_bytes", "6\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 8\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("blkio.io_service_bytes_recursive", "8:16 Read 4096\n8:16 Write 0\n8:16 Total 4096\nTotal 4096\n"),
            ("blkio.io_serviced_recursive", "8:16 Read 1\n"),
            ("blkio.sectors_recursive", "8:0 12\n"),
            ("rdma.current", "mlx5_0 hca_handle=2 hca_object=20\n"),
            ("rdma.max", "mlx5_0 hca_handle=max hca_object=2000\n"),
        ];
        let stats = stats("v1", &files);
        let cpu = Cpu {
            total: 123_456_789,
            user: 30_000_000,
            kernel: 20_000_000,
            per_cpu: vec![100, 23],
            periods: 7,
            throttled_periods: 4,
            throttled: 99,
        };
        assert_eq!(stats.cpu, cpu);
        let stat = &stats.memory.stat;
        assert_eq!((stat.cache, stat.rss, stat.hierarchical_memory_limit), (4096, 8192, 9_223_372_036_854_771_712));
        assert_eq!(stats.memory.oom, OomControl { oom_kill: 8, ..OomControl::default() });
        assert_eq!(stats.memory.usage, Usage { limit: 3, usage: 1, max: 2, failures: 4 });
        assert_eq!((stats.memory.swap.usage, stats.memory.kernel_tcp.usage), (5, 6));
        assert_eq!(stats.memory.kernel, Usage::default(), "a file that is not there");
        assert_eq!(stats.pids, Pids { current: 3, limit: 0 });
        let io = |op: &str, value| Io { major: 8, minor: 16, op: op.to_owned(), value };
        assert_eq!(stats.blkio.service_bytes, [io("Read", 4096), io("Write", 0), io("Total", 4096)]);
        assert_eq!(stats.blkio.sectors, [Io { major: 8, value: 12, ..Io::default() }]);
        let rdma = |handles, objects| vec![Rdma { device: "mlx5_0".to_owned(), handles, objects }];
        assert_eq!(stats.rdma, [rdma(2, 20), rdma(u32::MAX, 2000)]);
    }

    #[test]
    fn huge_pages_are_told_by_their_size() {
        let files = [
            ("hugetlb.2MB.usage_in_bytes", "10\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "11\n"),
            ("hugetlb.2MB.failcnt", "12\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "13\n"),
        ];
        let dir = Directory::new("v1-huge", &files);
        let sizes: &[String] = Box::leak(Box::new(["2MB".to_owned()]));
        let told = dir.source(Version::V1, "hugetlb").with_files(|files| files.hugetlb(sizes)).unwrap();
        assert_eq!(told, [Hugetlb { page_size: "2MB", usage: 10, max: 11, failures: 12 }]);
    }

    #[test]
    fn block_devices_are_told_by_who_has_seen_them() {
        let throttler = [
            ("blkio.throttle.io_serviced", "8:0 Read 1\n"),
            ("blkio.throttle.io_service_bytes", "8:0 Read 4096\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 8192\n"),
        ];
        let told = stats("throttler", &throttler).blkio;
        assert_eq!((told.serviced[0].value, told.service_bytes[0].value), (1, 8192));
        let scheduler = [
            ("blkio.bfq.io_serviced_recursive", "8:0 Read 2\n8:0 Total 2\nTotal 2\n"),
            ("blkio.bfq.io_service_bytes_recursive", "8:0 Read 512\n"),
            ("blkio.bfq.io_merged_recursive", "8:0 Read 3\n"),
        ];
        let told = stats("scheduler", &[&throttler[..], &scheduler].concat()).blkio;
        assert_eq!((told.serviced[0].value, told.service_bytes[0].value, told.merged[0].value), (2, 512, 3));
        let idle = [("blkio.bfq.io_serviced_recursive", "Total 0\n")];
        assert_eq!(stats("idle", &[&throttler[..], &idle].concat()).blkio.serviced[0].value, 1);
    }
}
