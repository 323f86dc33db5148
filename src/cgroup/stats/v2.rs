//! The numbers of a cgroup2 directory (Documentation/admin-guide/cgroup-v2.rst).

use super::{Files, Rdma, counters, rdma};
use crate::cgroup::hugepages;
use crate::error::Result;

/// All of them. What is unlimited (`max`) is `u64::MAX`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// pids.current.
    pub pids: u64,
    /// pids.max.
    pub pids_limit: u64,
    /// cpu.stat, which is there without the controller too.
    pub cpu: Cpu,
    /// cpu.pressure.
    pub cpu_pressure: Option<Pressure>,
    /// memory.
    pub memory: Memory,
    /// memory.events.
    pub memory_events: Option<MemoryEvents>,
    /// memory.pressure.
    pub memory_pressure: Option<Pressure>,
    /// io.stat.
    pub io: Vec<Io>,
    /// io.pressure.
    pub io_pressure: Option<Pressure>,
    /// rdma.current and rdma.max.
    pub rdma: [Vec<Rdma>; 2],
    /// hugetlb, by the size of pages.
    pub hugetlb: Vec<Hugetlb>,
}

counters! {
    /// Processor time.
    Cpu { usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec nr_bursts burst_usec }
}

counters! {
    /// memory.stat, as far as somebody wants it. Since Linux 5.9 the `workingset_` ones are told by `_anon` and `_file`.
    MemoryStat {
        anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp inactive_anon active_anon
        inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault pgmajfault
        workingset_refault workingset_refault_anon workingset_refault_file
        workingset_activate workingset_activate_anon workingset_activate_file workingset_nodereclaim
        pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed thp_fault_alloc thp_collapse_alloc
    }
}

counters! {
    /// How often a limit of memory was met, and by what it was answered.
    MemoryEvents { low high max oom oom_kill oom_group_kill }
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// memory.stat.
    pub stat: MemoryStat,
    /// memory.current.
    pub usage: u64,
    /// memory.max.
    pub limit: u64,
    /// memory.peak, since Linux 5.19.
    pub max_usage: u64,
    /// memory.swap.current.
    pub swap_usage: u64,
    /// memory.swap.max.
    pub swap_limit: u64,
    /// memory.swap.peak, since Linux 6.5.
    pub swap_max_usage: u64,
}

/// A pressure file: the share of time that was lost by waiting (Documentation/accounting/psi.rst).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    /// By some tasks.
    pub some: Option<Stall>,
    /// By all at once; for the processor since Linux 5.13.
    pub full: Option<Stall>,
}

/// One line of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stall {
    /// Per cent, in the last 10 seconds.
    pub avg10: f64,
    /// In the last minute.
    pub avg60: f64,
    /// In the last 5 minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// What a block device has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// Bytes read.
    pub rbytes: u64,
    /// Bytes written.
    pub wbytes: u64,
    /// Reads.
    pub rios: u64,
    /// Writes.
    pub wios: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// As the files name it: `2MB`.
    pub page_size: &'static str,
    /// hugetlb.SIZE.current.
    pub usage: u64,
    /// hugetlb.SIZE.max.
    pub limit: u64,
    /// How often the limit was met: hugetlb.SIZE.events.
    pub failures: u64,
}

counters! {
    /// hugetlb.SIZE.events.
    HugetlbEvents { max }
}

impl Stats {
    pub(super) fn read(&mut self, files: &mut Files) -> Result<()> {
        self.cpu = files.text("cpu.stat")?.map(Cpu::of).unwrap_or_default();
        self.cpu_pressure = files.text("cpu.pressure")?.map(pressure);
        (self.pids, self.pids_limit) = (files.number("pids.current")?, files.limit("pids.max")?);
        // Not there is the whole controller, or nothing of it: its other files are not looked for.
        if let Some(stat) = files.text("memory.stat")?.map(MemoryStat::of) {
            self.memory = Memory {
                stat,
                usage: files.number("memory.current")?,
                limit: files.limit("memory.max")?,
                max_usage: files.number("memory.peak")?,
                swap_usage: files.number("memory.swap.current")?,
                swap_limit: files.limit("memory.swap.max")?,
                swap_max_usage: files.number("memory.swap.peak")?,
            };
            self.memory_events = files.text("memory.events")?.map(MemoryEvents::of);
        }
        // Pressure is there without controllers.
        self.memory_pressure = files.text("memory.pressure")?.map(pressure);
        self.io = files.text("io.stat")?.map(|text| text.lines().filter_map(io).collect()).unwrap_or_default();
        self.io_pressure = files.text("io.pressure")?.map(pressure);
        if let Some(current) = files.text("rdma.current")? {
            self.rdma = [rdma(Some(current)), rdma(files.text("rdma.max")?)];
        }
        self.hugetlb = hugetlb(files, hugepages::known())?;
        Ok(())
    }
}

impl Files<'_> {
    /// A number, or `max`: none, which containerd wants as the largest one.
    fn limit(&mut self, name: &str) -> Result<u64> {
        Ok(self.text(name)?.map_or(0, |text| match text.trim_end() {
            "max" => u64::MAX,
            number => number.parse().unwrap_or(0),
        }))
    }
}

/// `some avg10=0.00 avg60=0.12 avg300=1.50 total=12345`
fn pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let line = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        let stall = line.insert(Stall::default());
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let share = || value.parse().unwrap_or(0.0);
            match key {
                "avg10" => stall.avg10 = share(),
                "avg60" => stall.avg60 = share(),
                "avg300" => stall.avg300 = share(),
                "total" => stall.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`
///
/// Some kernels put the numbers of devices that have nothing to tell before it on its line: the last is whose it is. A
/// device that tells nothing at all is left out.
fn io(line: &str) -> Option<Io> {
    let device = line.split_ascii_whitespace().take_while(|word| !word.contains('=')).last()?;
    let (major, minor) = device.split_once(':')?;
    let mut io = Io { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Io::default() };
    let mut tells = false;
    for (key, value) in line.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
        tells = true;
        let field = match key {
            "rbytes" => &mut io.rbytes,
            "wbytes" => &mut io.wbytes,
            "rios" => &mut io.rios,
            "wios" => &mut io.wios,
            _ => continue,
        };
        *field = value.parse().unwrap_or(0);
    }
    tells.then_some(io)
}

fn hugetlb(files: &mut Files, sizes: &'static [String]) -> Result<Vec<Hugetlb>> {
    let mut all = Vec::new();
    for page_size in sizes {
        // Not there for one is not there for any: it is the controller's.
        let Some(usage) = files.text(&format!("hugetlb.{page_size}.current"))? else { break };
        let usage = usage.trim_end().parse().unwrap_or(0);
        let limit = files.limit(&format!("hugetlb.{page_size}.max"))?;
        let events = files.text(&format!("hugetlb.{page_size}.events"))?.map(HugetlbEvents::of);
        all.push(Hugetlb { page_size, usage, limit, failures: events.map_or(0, |events| events.max) });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::Stats as Any;
    use super::super::tests::Directory;
    use super::*;
    use crate::cgroup::hierarchy::Version;

    #[test]
    fn what_the_files_say_is_what_is_told() {
        let files = [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_bursts 2\nburst_usec 9\nnr_new 5\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.01 total=77\n"),
            ("memory.stat", "anon 4096\nworkingset_refault_file 6\nthp_collapse_alloc 8\nhugetlb 1\n"),
            ("memory.current", "1\n"),
            ("memory.max", "67108864\n"),
            ("memory.peak", "2\n"),
            ("memory.swap.current", "3\n"),
            ("memory.swap.max", "max\n"),
            ("memory.swap.peak", "4\n"),
            ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=99.99 avg60=0.00 avg300=0.00 total=6\n",
            ),
            ("io.stat", "7:0 7:1 8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0 \n"),
            ("rdma.current", "mlx5_0 hca_handle=2 hca_object=20\n"),
            ("rdma.max", "mlx5_0 hca_handle=max hca_object=2000\n"),
        ];
        let dir = Directory::new("v2", &files);
        let Any::V2(stats) = dir.source(Version::V2, "").read().unwrap() else { unreachable!() };
        let stall = |avg10, total| Some(Stall { avg10, total, ..Stall::default() });
        let told = Stats {
            pids: 3,
            pids_limit: u64::MAX,
            cpu: Cpu { usage_usec: 7, user_usec: 4, system_usec: 3, nr_bursts: 2, burst_usec: 9, ..Cpu::default() },
            cpu_pressure: Some(Pressure {
                some: Some(Stall { avg10: 1.5, avg60: 0.25, avg300: 0.01, total: 77 }),
                full: None,
            }),
            memory: Memory {
                stat: MemoryStat {
                    anon: 4096,
                    workingset_refault_file: 6,
                    thp_collapse_alloc: 8,
                    ..MemoryStat::default()
                },
                usage: 1,
                limit: 64 << 20,
                max_usage: 2,
                swap_usage: 3,
                swap_limit: u64::MAX,
                swap_max_usage: 4,
            },
            memory_events: Some(MemoryEvents { low: 1, high: 2, max: 3, oom: 4, oom_kill: 5, oom_group_kill: 6 }),
            memory_pressure: Some(Pressure { some: stall(0.0, 5), full: stall(99.99, 6) }),
            io: vec![Io { major: 8, minor: 16, rbytes: 1, wbytes: 2, rios: 3, wios: 4 }],
            io_pressure: None,
            rdma: [(2, 20), (u32::MAX, 2000)]
                .map(|(handles, objects)| vec![Rdma { device: "mlx5_0".into(), handles, objects }]),
            hugetlb: Vec::new(),
        };
        assert_eq!(*stats, told);
    }

    #[test]
    fn huge_pages_are_told_by_their_size() {
        let files = [
            ("hugetlb.2MB.current", "4194304\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 3\n"),
            ("hugetlb.2MB.events.local", "max 1\n"),
            ("hugetlb.1GB.current", "0\n"),
            ("hugetlb.1GB.max", "1073741824\n"),
        ];
        let dir = Directory::new("huge", &files);
        let source = dir.source(Version::V2, "");
        let sizes: &[String] = Box::leak(Box::new(["2MB".to_owned(), "1GB".to_owned()]));
        let of = |sizes| source.with_files(|files| hugetlb(files, sizes)).unwrap();
        let small = Hugetlb { page_size: "2MB", usage: 4 << 20, limit: u64::MAX, failures: 3 };
        assert_eq!(of(sizes), [small, Hugetlb { page_size: "1GB", usage: 0, limit: 1 << 30, failures: 0 }]);
    }

    #[test]
    fn a_cgroup_without_controllers_tells_its_processor_time() {
        let dir = Directory::new("bare", &[("cpu.stat", "usage_usec 7\n")]);
        let Any::V2(stats) = dir.source(Version::V2, "").read().unwrap() else { unreachable!() };
        let cpu = Cpu { usage_usec: 7, ..Cpu::default() };
        assert_eq!(*stats, Stats { cpu, ..Stats::default() });
    }
}
