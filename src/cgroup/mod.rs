//! A container's cgroup: made, limited, joined, killed, removed. v1 and hybrid hosts (v1 controllers beside a cgroup2
//! tree without them), and pure v2 ones.
//!
//! A cgroup here is one path in every hierarchy of the host. On a hybrid host that includes the cgroup2 tree: it
//! limits nothing, but it has `cgroup.kill`, `cgroup.events` and CLONE_INTO_CGROUP, which v1 has not.
//!
//! Nothing here waits: what takes more than one attempt (killing until nobody is left, removing what is still
//! busy) is one round for each call, and the engine decides when to call again.

mod adopt;
mod below;
mod controllers;
mod create;
mod delegate;
mod device_filter;
mod device_program;
mod devices;
mod file;
mod freezer;
mod hierarchy;
mod hugepages;
mod io_knobs;
mod io_knobs_v2;
mod kill;
mod knobs;
mod knobs_v2;
mod oom;
mod path;
pub mod resctrl;
mod rootless;
pub mod stats;
pub mod systemd;
#[cfg(test)]
mod tests;
mod tree;
mod unified;
mod update;
mod view;

use std::borrow::Cow;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;

use crate::error::{Error, Kind, Os, Result};
use hierarchy::Hierarchy;
use knobs::Knob;

pub use adopt::Before;
pub use below::Below;
pub use hierarchy::{Hierarchies, Version};
pub use kill::Killed;
pub use oom::{Bell, Limit, Oom, OomWatch};
pub use path::{Place, place};
pub use rootless::{Denied, Unset};
pub use tree::Removed;
pub use view::{UnifiedView, View};

/// One cgroup in all hierarchies. Only what [`Cgroup::create`] made, in this process or in one before, is ever
/// limited, killed or removed.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    path: PathBuf,
}

/// How a process gets into the cgroup.
#[derive(Debug, Default)]
pub struct Joins {
    /// For v1: the path (for messages) and an fd of each `tasks` file, into which the process itself, while it has
    /// one thread, writes "0". Before it unshares a cgroup namespace, whose root is where the process is at that
    /// time.
    ///
    /// `tasks` and not `cgroup.procs`, and by itself and not by its pid: since Linux 5.5 that is the one migration
    /// which does not take the kernel's lock over all thread groups for writing. On a host where nothing was moved
    /// lately that lock costs an RCU grace period, 7 to 15 ms for the first of these writes; without it a write takes
    /// 10 us.
    pub tasks: Vec<(String, OwnedFd)>,
    /// For cgroup2: an O_PATH fd of the directory, for clone3's CLONE_INTO_CGROUP. Where that is refused, "0" written
    /// to `cgroup.procs` below it does the same, at the price of that grace period (cgroup2 has no `tasks`).
    pub unified: Option<OwnedFd>,
}

/// Moves the calling process, which has one thread, into the cgroup `path` of every hierarchy that has it.
///
/// # Errors
/// `InvalidArgument` where none has it, and for a path that leaves the hierarchy.
pub fn join(hierarchies: &Hierarchies, path: &Path) -> Result<()> {
    let wrong = |why: &str| Error::new(Kind::InvalidArgument, format!("cgroup {}: {why}", path.display()));
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(wrong("not below the root"));
    }
    let mut joined = false;
    for hierarchy in hierarchies.all() {
        let name = if hierarchy.is_unified() { "cgroup.procs" } else { "tasks" };
        let file = hierarchy.dir(path).join(name);
        match file::open_write(CWD, &file) {
            Ok(fd) => file::write_fd(&fd, "0").os(|| format!("write 0 to {}", file.display()))?,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e).os(|| format!("open {}", file.display())),
        }
        joined = true;
    }
    if joined { Ok(()) } else { Err(wrong("no hierarchy has it")) }
}

/// Whether `resources` can be applied as far as that can be told before there is a cgroup: to be asked before any effect.
///
/// # Errors
/// Those of [`Cgroup::apply`], but for what only the kernel can judge.
pub fn check(hierarchies: &Hierarchies, resources: &LinuxResources) -> Result<()> {
    let knobs = knobs::knobs(resources, hierarchies.version())?;
    if hierarchies.version() == Version::V2 {
        device_program::device_program(resources.devices().as_deref().unwrap_or_default())?;
    }
    hugepages::check(resources)?;
    // Who is rootless learns later what cannot be set, and goes on.
    if hierarchies.rootless { Ok(()) } else { hierarchies.check_controllers(&knobs) }
}

impl Cgroup {
    /// The directory in the v1 hierarchy of `controller`, where that is mounted.
    fn v1_dir(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchies.v1.iter().find(|h| h.has(controller)).map(|h| h.dir(&self.path))
    }

    /// The directory in which `controller` has its files for this cgroup.
    fn dir_of(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchies.of(controller).map(|h| h.dir(&self.path))
    }

    /// A cgroup made earlier, perhaps by a process that has died since. Any of its directories may be missing.
    ///
    /// # Errors
    /// For a path that [`Cgroup::create`] would refuse as the root or the caller's own: a damaged state must not turn
    /// a kill against the host.
    pub fn open(hierarchies: &Hierarchies, path: &Path) -> Result<Self> {
        hierarchies.refuse_own(path)?;
        Ok(Self { hierarchies: hierarchies.ours(path), path: path.to_owned() })
    }

    /// What tells this cgroup from an earlier or later one of the same path: the inode of its directory in the unified
    /// hierarchy, or the first v1 one that has it. The kernel never uses it again. `None` when it is gone.
    pub fn inode(&self) -> Result<Option<u64>> {
        for hierarchy in self.hierarchies.unified_first() {
            let dir = hierarchy.dir(&self.path);
            match rustix::fs::stat(&dir) {
                Ok(stat) => return Ok(Some(stat.st_ino)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::os(e, format!("stat {}", dir.display()))),
            }
        }
        Ok(None)
    }

    /// The path from the hierarchies' roots.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Each controller's name, or that of a hierarchy without one, and the cgroup's full name there, as /proc/PID/cgroup has
    /// them.
    pub fn names(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for hierarchy in self.hierarchies.all() {
            let full = hierarchy.full(&self.path).to_string_lossy().into_owned();
            all.extend(hierarchy.name.split(',').map(|name| (name.to_owned(), full.clone())));
        }
        all
    }

    /// Sets the limits and the device rules. Devices are denied but for runc's default list also when `resources` has
    /// no rules, so this is called for each container, with `LinuxResources::default()` if need be.
    ///
    /// # Errors
    /// `InvalidArgument` for a value that is wrong or that the kernel refuses, `FailedPrecondition` for one whose
    /// controller or file this host has not: a limit that is asked for and cannot be set is never passed over, but where
    /// the caller is rootless. Those are what is returned.
    pub fn apply(&self, resources: &LinuxResources) -> Result<Unset> {
        let version = self.hierarchies.version();
        let mut knobs = knobs::knobs(resources, version)?;
        if self.hierarchies.rootless {
            // Rules for devices are for the host's root to set. In a user namespace nobody makes a device.
            knobs.retain(|knob| knob.controller != "devices");
            // What is missing is told with the limits that are not set.
            let _ = self.require(&knobs);
            return self.turn_all(&knobs);
        }
        self.require(&knobs)?;
        if version == Version::V2 {
            self.filter_devices(resources.devices().as_deref().unwrap_or_default())?;
        }
        self.turn_all(&knobs)
    }

    /// On v2, sees to it that the cgroup has the controllers that `knobs` are of.
    fn require(&self, knobs: &[Knob]) -> Result<()> {
        let (Version::V2, Some(unified)) = (self.hierarchies.version(), &self.hierarchies.unified) else {
            return Ok(());
        };
        let needed = || knobs.iter().filter(|knob| !knob.optional && knob.controller != CORE);
        let mut controllers: Vec<&str> = needed().map(|knob| &*knob.controller).collect();
        controllers.dedup();
        if controllers.is_empty() {
            return Ok(());
        }
        let missing = controllers::require(unified, &self.path, &controllers)?;
        let of = |(controller, why): (&str, String)| {
            needed().find(|knob| knob.controller == controller).map(|knob| unavailable(knob, &why))
        };
        missing.and_then(of).map_or(Ok(()), Err)
    }

    fn turn_all(&self, knobs: &[Knob]) -> Result<Unset> {
        let mut unset = Unset::default();
        let mut opened = None;
        let mut deferred: Vec<&Knob> = Vec::new();
        for knob in knobs {
            match self.turn(knob, &mut opened) {
                Err(e) if knob.with_next && e.errno() == Some(libc::EINVAL) => deferred.push(knob),
                turned => self.hierarchies.pass_over(knob, turned, &mut unset)?,
            }
            if !knob.with_next {
                deferred.drain(..).try_for_each(|knob| self.turn(knob, &mut opened))?;
            }
        }
        Ok(unset)
    }

    /// Writes one knob. The file stays open for the next: a list of devices goes into one file, line by line.
    fn turn<'k>(&self, knob: &'k Knob, opened: &mut Option<Opened<'k>>) -> Result<()> {
        let Some(hierarchy) = self.hierarchies.of(&knob.controller) else {
            return if knob.optional { Ok(()) } else { Err(unavailable(knob, NOT_MOUNTED)) };
        };
        let dir = hierarchy.dir(&self.path);
        let Opened { file, also, fd } = match opened.take() {
            Some(open) if open.file == knob.file => open,
            _ => match open_first(&dir, knob) {
                Ok(open) => open,
                Err(Errno::NOENT) if knob.optional => return Ok(()),
                Err(Errno::NOENT) => return Err(unavailable(knob, "the cgroup has no such file")),
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if self.hierarchies.rootless => {
                    return Err(unavailable(knob, "the file is not the runtime's to write to"));
                }
                Err(e) => return Err(e).os(|| format!("open {}", dir.join(&*knob.file).display())),
            },
        };
        let (name, value) = knob.files().nth(usize::from(also)).unwrap_or((&knob.file, &knob.value));
        let path = dir.join(name);
        let value = match knob.second {
            true => format!("{} {value}", first_word(&path)?).into(),
            false => Cow::Borrowed(value),
        };
        let what = || format!("write \"{value}\" to {}", path.display());
        let written = file::write_fd(&fd, &value);
        *opened = Some(Opened { file, also, fd });
        if knob.file == knobs::KERNEL_LIMIT && written == Err(Errno::OPNOTSUPP) {
            // As good as one that takes it and does nothing: the caller is told by `ignored`.
            return Ok(());
        }
        written.os(what).map_err(|e| match e.errno() {
            // What the kernel says to numbers out of range, and to CPUs or devices that the parent or the host has not.
            Some(libc::EINVAL | libc::ERANGE | libc::EACCES | libc::EPERM | libc::ENODEV) => {
                e.with_kind(Kind::InvalidArgument)
            }
            // A limit below what is used already; a weight for a device whose scheduler knows none.
            Some(libc::EBUSY | libc::EOPNOTSUPP) => e.with_kind(Kind::FailedPrecondition),
            _ => e,
        })
    }

    /// What of `resources`, now applied, the kernel does nothing about, and why: a warning, as runc has it. Since 5.16 there
    /// is no limit of its own for what the kernel itself uses, which the limit of all memory counts too. First the kernel said
    /// so (EOPNOTSUPP), later it took the number and did nothing.
    pub fn ignored(&self, resources: &LinuxResources) -> Result<Vec<&'static str>> {
        let Some(memory) = resources.memory() else { return Ok(Vec::new()) };
        if self.hierarchies.version() == Version::V2 {
            return Ok(knobs_v2::ignored(memory));
        }
        #[allow(deprecated)] // As in `knobs`.
        let wanted = memory.kernel().filter(|limit| *limit > 0);
        let (Some(wanted), Some(dir)) = (wanted, self.v1_dir("memory")) else { return Ok(Vec::new()) };
        let mut buf = Vec::new();
        let holds: Option<i64> = read_or_gone(&dir.join(knobs::KERNEL_LIMIT), &mut buf)?.trim_end().parse().ok();
        // It rounds down to pages.
        let ignored = holds.is_some_and(|holds| holds > wanted);
        let text = "linux.resources.memory.kernel: this kernel limits all memory together only";
        Ok(ignored.then_some(text).into_iter().collect())
    }

    /// What a process needs to join: fds only, so that a child can do it after a fork.
    ///
    /// # Errors
    /// When a directory is missing: a cgroup is joined in all hierarchies or not at all.
    pub fn joins(&self) -> Result<Joins> {
        self.joins_at(|_| self.path.clone())
    }

    /// The same, at a path that each hierarchy has for it.
    fn joins_at(&self, path: impl Fn(&Hierarchy) -> PathBuf) -> Result<Joins> {
        let mut tasks = Vec::with_capacity(self.hierarchies.v1.len());
        for hierarchy in self.hierarchies.v1.iter() {
            let path = hierarchy.dir(&path(hierarchy)).join("tasks");
            let fd = file::open_write(CWD, &path).os(|| format!("open {}", path.display()))?;
            tasks.push((path.to_string_lossy().into_owned(), fd));
        }
        let unified = match &self.hierarchies.unified {
            None => None,
            Some(hierarchy) => {
                let dir = hierarchy.dir(&path(hierarchy));
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Some(open(&dir, flags, Mode::empty()).os(|| format!("open {}", dir.display()))?)
            }
        };
        Ok(Joins { tasks, unified })
    }

    /// Gives birth to one more process beside `init`: `birth` is told how it joins. It is asked once more where the container
    /// has divided its cgroup between the look at it and the birth.
    ///
    /// # Errors
    /// Those of `birth`, and of the look.
    pub fn beside<T>(&self, init: u32, mut birth: impl FnMut(Joins) -> Result<T>) -> Result<T> {
        match birth(self.joins_beside(init)?) {
            // By then its processes are below.
            Err(e) if e.errno() == Some(libc::EBUSY) => birth(self.joins_beside(init)?),
            born => born,
        }
    }

    /// As [`Cgroup::joins`], for one more process beside `init`: a container that has divided its cgroup on v2, as a systemd or
    /// a docker in it does, has moved its processes below, and the cgroup itself takes none any more. Then it is the cgroup
    /// that its init is in now.
    fn joins_beside(&self, init: u32) -> Result<Joins> {
        let (Version::V2, Some(unified)) = (self.hierarchies.version(), &self.hierarchies.unified) else {
            return self.joins();
        };
        if !controllers::is_divided(unified, &self.path)? {
            return self.joins();
        }
        match unified.below(&self.path, init)? {
            Some(path) => Self { path, ..self.clone() }.joins(),
            // Somebody has moved it out: that is no reason for others to leave.
            None => self.joins(),
        }
    }

    /// The cgroup2 `cgroup.events`, for poll(POLLPRI): it changes when the cgroup with all below it becomes empty.
    /// `None` without cgroup2, and when the cgroup is gone.
    ///
    /// Read it (or ask [`Cgroup::populated`], by another fd) after each wake-up, from the start; the first poll of a
    /// new fd returns at once. The kernel delays a notification until 10 ms after the one before, so ask first and
    /// wait only if need be.
    pub fn events(&self) -> Result<Option<File>> {
        let Some(hierarchy) = &self.hierarchies.unified else { return Ok(None) };
        let path = hierarchy.dir(&self.path).join("cgroup.events");
        match open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(e) => Err(e).os(|| format!("open {}", path.display())),
        }
    }

    /// Whether a live process is in it or below it, in any hierarchy. Zombies do not count.
    pub fn populated(&self) -> Result<bool> {
        // cgroup2 knows it by one read: first, for the usual answer is yes.
        for hierarchy in self.hierarchies.unified_first() {
            if populated(hierarchy, &self.path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The processes in it and below it, in all hierarchies together, sorted. Those of other pid namespaces than the
    /// caller's and its descendants have no number and are not among them.
    pub fn procs(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        let mut buf = Vec::new();
        for hierarchy in self.hierarchies.all() {
            tree::walk(&hierarchy.dir(&self.path), |dir| {
                pids.extend(members(dir, &mut buf)?);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Removes it in all hierarchies, with the cgroups below it. One attempt: true when nothing is left, false while
    /// a process is still in it. What is gone already is no error.
    pub fn remove(&self) -> Result<bool> {
        Ok(self.remove_at_most(usize::MAX)? == Removed::All)
    }

    /// One round of [`Cgroup::remove`], which ends after some hundred cgroups: a container may have made any number of them,
    /// and to remove one takes the kernel up to 50 us.
    pub fn remove_some(&self) -> Result<Removed> {
        self.remove_at_most(ROUND)
    }

    fn remove_at_most(&self, most: usize) -> Result<Removed> {
        let (mut gone, mut below) = (true, 0);
        for hierarchy in self.hierarchies.all() {
            match tree::remove(&hierarchy.dir(&self.path), most - below)? {
                Removed::All => {}
                Removed::Below(removed) => (gone, below) = (false, below + removed),
            }
            if below >= most {
                return Ok(Removed::Below(below));
            }
        }
        Ok(if gone { Removed::All } else { Removed::Below(below) })
    }
}

/// How many cgroups a round of removal ends after.
const ROUND: usize = 500;

/// The processes of one directory. Zombies are not listed (since Linux 5.2).
fn members(dir: impl AsFd, buf: &mut Vec<u8>) -> Result<Vec<u32>> {
    match file::read(&dir, c"cgroup.procs", buf) {
        Ok(text) => Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid != 0).collect()),
        Err(Errno::NOENT | Errno::NODEV) => Ok(Vec::new()),
        // A threaded cgroup says what threads are in it, and not whose they are.
        Err(Errno::OPNOTSUPP) => members_by_threads(dir, buf),
        Err(e) => Err(e).os(|| "read cgroup.procs"),
    }
}

fn members_by_threads(dir: impl AsFd, buf: &mut Vec<u8>) -> Result<Vec<u32>> {
    let threads: Vec<u32> = match file::read(dir, c"cgroup.threads", buf) {
        Ok(text) => text.lines().filter_map(|l| l.parse().ok()).filter(|tid| *tid != 0).collect(),
        // OPNOTSUPP: one that can have none ("domain invalid").
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Vec::new(),
        Err(e) => return Err(e).os(|| "read cgroup.threads"),
    };
    let mut processes: Vec<u32> = threads.into_iter().filter_map(process_of).collect();
    processes.sort_unstable();
    processes.dedup();
    Ok(processes)
}

/// The process of a thread; `None` when it has ended.
fn process_of(thread: u32) -> Option<u32> {
    let mut buf = Vec::new();
    let status = file::read(CWD, format!("/proc/{thread}/status"), &mut buf).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// Whether a live process is in the cgroup `path` of `hierarchy` or below it.
fn populated(hierarchy: &Hierarchy, path: &Path) -> Result<bool> {
    let dir = hierarchy.dir(path);
    let mut buf = Vec::new();
    if hierarchy.is_unified() {
        return Ok(file::flag(read_or_gone(&dir.join("cgroup.events"), &mut buf)?, "populated"));
    }
    let mut populated = false;
    tree::walk(&dir, |dir| {
        populated = !members(dir, &mut buf)?.is_empty();
        Ok(if populated { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(populated)
}

/// Whether processes of the cgroup are kept from running, by itself or by one above it.
fn frozen(hierarchy: &Hierarchy, path: &Path) -> Result<bool> {
    let dir = hierarchy.dir(path);
    let mut buf = Vec::new();
    if hierarchy.is_unified() {
        return Ok(file::flag(read_or_gone(&dir.join("cgroup.events"), &mut buf)?, "frozen"));
    }
    if !hierarchy.has("freezer") {
        return Ok(false);
    }
    let state = read_or_gone(&dir.join("freezer.state"), &mut buf)?.trim_end();
    Ok(matches!(state, "FREEZING" | "FROZEN"))
}

/// A file's text; empty when the cgroup is not there.
fn read_or_gone<'b>(path: &Path, buf: &'b mut Vec<u8>) -> Result<&'b str> {
    match file::read(CWD, path, buf) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(""),
        text => text.os(|| format!("read {}", path.display())),
    }
}

impl Hierarchies {
    /// Refuses what needs a controller that is not mounted, or that the top of the unified hierarchy has not.
    fn check_controllers(&self, knobs: &[Knob]) -> Result<()> {
        let mut needed = knobs.iter().filter(|knob| !knob.optional);
        if let (Version::V2, Some(unified)) = (self.version(), &self.unified) {
            let has = controllers::of_top(unified)?;
            let missing = |knob: &&Knob| knob.controller != CORE && !has.iter().any(|c| *c == *knob.controller);
            let why = || format!("this host's controllers are: {}", has.join(" "));
            return needed.find(missing).map_or(Ok(()), |knob| Err(unavailable(knob, &why())));
        }
        let missing = |knob: &&Knob| self.of(&knob.controller).is_none();
        needed.find(missing).map_or(Ok(()), |knob| Err(unavailable(knob, NOT_MOUNTED)))
    }
}

/// What cgroup2's own files begin with, which every cgroup has.
const CORE: &str = "cgroup";

const NOT_MOUNTED: &str = "the controller is not mounted";

/// A knob's file that is open.
struct Opened<'k> {
    /// The knob's name for it.
    file: &'k str,
    /// It is the knob's other one.
    also: bool,
    fd: OwnedFd,
}

/// The file by the first of its names that there is.
fn open_first<'k>(dir: &Path, knob: &'k Knob) -> rustix::io::Result<Opened<'k>> {
    let mut opened = Err(Errno::NOENT);
    for (index, (name, _)) in knob.files().enumerate() {
        opened = file::open_write(CWD, dir.join(name)).map(|fd| Opened { file: &knob.file, also: index > 0, fd });
        if !matches!(opened, Err(Errno::NOENT)) {
            break;
        }
    }
    opened
}

fn first_word(path: &Path) -> Result<String> {
    let mut buf = Vec::new();
    let text = file::read(CWD, path, &mut buf).os(|| format!("read {}", path.display()))?;
    Ok(text.split_ascii_whitespace().next().unwrap_or_default().to_owned())
}

fn unavailable(knob: &Knob, why: &str) -> Error {
    Error::new(
        Kind::FailedPrecondition,
        format!("cgroup controller {}, {} \"{}\": {why}", knob.controller, knob.file, knob.value),
    )
}
