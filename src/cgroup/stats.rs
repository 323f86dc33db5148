//! What a cgroup has used, in the kernel's numbers, v1. Files that this kernel has not are passed over: what they would
//! have told is 0 or empty.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir};
use rustix::io::Errno;

use super::{Cgroup, file};
use crate::error::{Error, Kind, Os, Result};

/// The unit of cpuacct.stat, USER_HZ: 100 a second on every architecture that is supported (proc(5), sysconf(3)).
const TICK_NANOSECONDS: u64 = 1_000_000_000 / 100;

/// Names and numbers as a flat keyed file has them.
pub type Flat = Vec<(String, u64)>;

/// The whole.
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
    /// RDMA devices: name, HCA handles, HCA objects; now, and at most.
    pub rdma: [Vec<(String, u32, u32)>; 2],
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
    /// memory.stat, by its own names.
    pub stat: Flat,
    /// User memory.
    pub usage: Usage,
    /// With swap.
    pub swap: Usage,
    /// The kernel's.
    pub kernel: Usage,
    /// Its TCP buffers.
    pub kernel_tcp: Usage,
    /// memory.oom_control, by its own names.
    pub oom: Flat,
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
    pub page_size: String,
    /// Now.
    pub usage: u64,
    /// The highest so far.
    pub max: u64,
    /// How often the limit was reached.
    pub failures: u64,
}

impl Cgroup {
    /// Reads them.
    ///
    /// # Errors
    /// `NotFound` when the cgroup is gone.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        let mut found = false;
        for hierarchy in self.hierarchies.v1.iter() {
            let dir = match file::open_dir(CWD, hierarchy.dir(&self.path)) {
                Err(Errno::NOENT) => continue,
                dir => Reader::new(dir.os(|| format!("open {}", hierarchy.dir(&self.path).display()))?),
            };
            found = true;
            hierarchy.name.split(',').try_for_each(|controller| stats.read(controller, dir.clone()))?;
        }
        match found {
            true => Ok(stats),
            false => Err(Error::new(Kind::NotFound, format!("cgroup {} is gone", self.path.display()))),
        }
    }
}

impl Stats {
    fn read(&mut self, controller: &str, mut dir: Reader) -> Result<()> {
        match controller {
            "cpuacct" => {
                self.cpu.total = dir.number("cpuacct.usage")?;
                let per_cpu = dir.text("cpuacct.usage_percpu")?.split_ascii_whitespace();
                self.cpu.per_cpu = per_cpu.filter_map(|n| n.parse().ok()).collect();
                let stat = dir.text("cpuacct.stat")?;
                let ticks = |key| file::number(stat, key).unwrap_or(0).saturating_mul(TICK_NANOSECONDS);
                (self.cpu.user, self.cpu.kernel) = (ticks("user"), ticks("system"));
            }
            "cpu" => {
                let stat = dir.text("cpu.stat")?;
                let of = |key| file::number(stat, key).unwrap_or(0);
                self.cpu.periods = of("nr_periods");
                self.cpu.throttled_periods = of("nr_throttled");
                self.cpu.throttled = of("throttled_time");
            }
            "memory" => {
                self.memory.stat = flat(dir.text("memory.stat")?);
                self.memory.oom = flat(dir.text("memory.oom_control")?);
                self.memory.usage = dir.usage("memory")?;
                self.memory.swap = dir.usage("memory.memsw")?;
                self.memory.kernel = dir.usage("memory.kmem")?;
                self.memory.kernel_tcp = dir.usage("memory.kmem.tcp")?;
            }
            "pids" => {
                let (current, limit) = (dir.number("pids.current")?, dir.number("pids.max")?);
                self.pids = Pids { current, limit };
            }
            "blkio" => self.blkio = dir.blkio()?,
            "hugetlb" => self.hugetlb = dir.hugetlb()?,
            "rdma" => self.rdma = [rdma(dir.text("rdma.current")?), rdma(dir.text("rdma.max")?)],
            _ => {}
        }
        Ok(())
    }
}

/// A directory's files, one at a time.
struct Reader {
    dir: std::rc::Rc<OwnedFd>,
    buf: Vec<u8>,
}

impl Clone for Reader {
    fn clone(&self) -> Self {
        Self { dir: self.dir.clone(), buf: Vec::new() }
    }
}

impl Reader {
    fn new(dir: OwnedFd) -> Self {
        Self { dir: dir.into(), buf: Vec::new() }
    }

    /// Empty where there is no such file, or it has nothing to tell: NODEV when the cgroup is going, OPNOTSUPP for
    /// memory.memsw without swap accounting, INVAL for what needs another I/O scheduler.
    fn text(&mut self, name: &str) -> Result<&str> {
        match file::read(self.dir.as_fd(), name, &mut self.buf) {
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP | Errno::INVAL) => Ok(""),
            text => text.os(|| format!("read {name}")),
        }
    }

    /// 0 for a file without a number: pids.max may say `max`.
    fn number(&mut self, name: &str) -> Result<u64> {
        Ok(self.text(name)?.trim_end().parse().unwrap_or(0))
    }

    fn usage(&mut self, prefix: &str) -> Result<Usage> {
        Ok(Usage {
            limit: self.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: self.number(&format!("{prefix}.usage_in_bytes"))?,
            max: self.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failures: self.number(&format!("{prefix}.failcnt"))?,
        })
    }

    fn blkio(&mut self) -> Result<Blkio> {
        Ok(Blkio {
            service_bytes: self.io("io_service_bytes")?,
            serviced: self.io("io_serviced")?,
            queued: self.io("io_queued")?,
            service_time: self.io("io_service_time")?,
            wait_time: self.io("io_wait_time")?,
            merged: self.io("io_merged")?,
            time: self.io("time")?,
            sectors: self.io("sectors")?,
        })
    }

    /// From whoever has seen any: CFQ (until Linux 4.20), BFQ, else the throttler, which sees all but counts the two of
    /// its own only.
    fn io(&mut self, what: &str) -> Result<Vec<Io>> {
        for name in [
            format!("blkio.{what}_recursive"),
            format!("blkio.bfq.{what}_recursive"),
            format!("blkio.throttle.{what}_recursive"),
            format!("blkio.throttle.{what}"),
        ] {
            let lines: Vec<Io> = self.text(&name)?.lines().filter_map(io_line).collect();
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
        Ok(Vec::new())
    }

    fn hugetlb(&mut self) -> Result<Vec<Hugetlb>> {
        let mut sizes = Vec::new();
        for entry in Dir::read_from(self.dir.as_fd()).os(|| "read directory of hugetlb")? {
            let entry = entry.os(|| "getdents of hugetlb")?;
            let name = entry.file_name().to_string_lossy();
            let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".usage_in_bytes"));
            // "2MB.rsvd" is of reservations.
            sizes.extend(size.filter(|size| !size.contains('.')).map(str::to_owned));
        }
        sizes.sort_unstable();
        let stat = |page_size: String| {
            let mut of = |file| self.number(&format!("hugetlb.{page_size}.{file}"));
            let (usage, max, failures) = (of("usage_in_bytes")?, of("max_usage_in_bytes")?, of("failcnt")?);
            Ok(Hugetlb { page_size, usage, max, failures })
        };
        sizes.into_iter().map(stat).collect()
    }
}

fn flat(text: &str) -> Flat {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect()
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

/// `mlx5_0 hca_handle=2 hca_object=max`
fn rdma(text: &str) -> Vec<(String, u32, u32)> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let device = words.next()?.to_owned();
        let of = |key: &str| {
            let value = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            value.map_or(0, |value| value.parse().unwrap_or(u32::MAX))
        };
        Some((device, of("hca_handle"), of("hca_object")))
    };
    text.lines().filter_map(entry).collect()
}

/// The names of the host's block devices, by their numbers: /proc/partitions.
pub fn block_devices() -> Vec<(u64, u64, String)> {
    let text = std::fs::read_to_string(Path::new("/proc/partitions")).unwrap_or_default();
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [major, minor, _, name] = words[..] else { return None };
        Some((major.parse().ok()?, minor.parse().ok()?, name.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str, files: &[(&str, &str)]) -> (Reader, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("dray-test-stats-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        files.iter().for_each(|(file, text)| std::fs::write(path.join(file), text).unwrap());
        (Reader::new(file::open_dir(CWD, &path).unwrap()), path)
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
            ("blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:16 Read 4096\n8:16 Write 0\n8:16 Total 4096\nTotal 4096\n",
            ),
            ("blkio.sectors_recursive", "8:0 12\n"),
            ("hugetlb.2MB.usage_in_bytes", "10\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "11\n"),
            ("hugetlb.2MB.failcnt", "12\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "13\n"),
            ("rdma.current", "mlx5_0 hca_handle=2 hca_object=20\n"),
            ("rdma.max", "mlx5_0 hca_handle=max hca_object=2000\n"),
        ];
        let (dir, path) = directory("all", &files);
        let mut stats = Stats::default();
        for controller in ["cpuacct", "cpu", "memory", "pids", "blkio", "hugetlb", "rdma", "freezer"] {
            stats.read(controller, dir.clone()).unwrap();
        }
        std::fs::remove_dir_all(path).unwrap();
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
        assert_eq!(stats.memory.stat[1], ("rss".to_owned(), 8192));
        assert_eq!(stats.memory.stat.len(), 3);
        assert_eq!(stats.memory.oom[2], ("oom_kill".to_owned(), 8));
        assert_eq!(stats.memory.usage, Usage { limit: 3, usage: 1, max: 2, failures: 4 });
        assert_eq!((stats.memory.swap.usage, stats.memory.kernel_tcp.usage), (5, 6));
        assert_eq!(stats.memory.kernel, Usage::default(), "a file that is not there");
        assert_eq!(stats.pids, Pids { current: 3, limit: 0 });
        let io = |op: &str, value| Io { major: 8, minor: 16, op: op.to_owned(), value };
        assert_eq!(stats.blkio.service_bytes, [io("Read", 4096), io("Write", 0), io("Total", 4096)]);
        assert_eq!(stats.blkio.sectors, [Io { major: 8, value: 12, ..Io::default() }]);
        let hugetlb = Hugetlb { page_size: "2MB".to_owned(), usage: 10, max: 11, failures: 12 };
        assert_eq!(stats.hugetlb, [hugetlb]);
        assert_eq!(stats.rdma, [[("mlx5_0".to_owned(), 2, 20)], [("mlx5_0".to_owned(), u32::MAX, 2000)]]);
    }

    #[test]
    fn a_directory_without_files_is_all_zeros() {
        let (dir, path) = directory("none", &[]);
        let mut stats = Stats::default();
        for controller in ["cpuacct", "cpu", "memory", "pids", "blkio", "hugetlb", "rdma"] {
            stats.read(controller, dir.clone()).unwrap();
        }
        std::fs::remove_dir(path).unwrap();
        assert_eq!(stats, Stats::default());
    }
}
