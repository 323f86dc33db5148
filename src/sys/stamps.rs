//! Moments that a child leaves for the process that has forked it, in a page of memory that both see: it costs a child no
//! system call and its parent no message, it is there up to execve(2), and it can be read while the child is at work, or
//! hangs, or has died.
//!
//! The parent has a descriptor of the memory and never maps it: what it maps every later child of its would have too. The
//! child maps it first of all, loses the descriptor with all others, and the mapping with its execve.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, Kind, Os, Result};

/// How many moments there is room for.
pub const ROOM: usize = 128;

/// statfs(2).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// A clock of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// CLOCK_MONOTONIC: another one in another time namespace.
    Monotonic,
    /// CLOCK_REALTIME, which is everywhere the same and may be set.
    Real,
}

impl Clock {
    /// Nanoseconds. Mostly no system call (vdso(7)).
    pub fn now(self) -> u64 {
        let id = match self {
            Self::Monotonic => libc::CLOCK_MONOTONIC,
            Self::Real => libc::CLOCK_REALTIME,
        };
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: it writes to `now` alone. It knows both clocks (and a seccomp filter that forbids the call leaves zeroes).
        unsafe { libc::clock_gettime(id, &raw mut now) };
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    /// How much it is ahead of CLOCK_MONOTONIC, as this process sees that.
    fn ahead(self) -> u64 {
        match self {
            Self::Monotonic => 0,
            Self::Real => Self::Real.now().saturating_sub(Self::Monotonic.now()),
        }
    }
}

/// The parent's side.
#[derive(Debug)]
pub struct Stamps {
    memory: File,
    clock: Clock,
    /// What that clock was ahead of ours when these were made.
    ahead: u64,
}

impl Stamps {
    /// New ones, by a clock that is the child's as well.
    ///
    /// # Errors
    /// Without memory or descriptors.
    pub fn new(clock: Clock) -> Result<Self> {
        let memory = File::from(memfd_create("stamps", MemfdFlags::CLOEXEC).os(|| "memfd_create stamps")?);
        Self::of_file(memory, clock)
    }

    /// New ones that outlive us, in a file that is none yet.
    ///
    /// # Errors
    /// Where its directory is of a file system on which a child could have to wait for its page, or be killed for lack of
    /// one: of all but tmpfs.
    pub fn create(path: &Path, clock: Clock) -> Result<Self> {
        let name = || path.display();
        let directory = path.parent().unwrap_or(Path::new("/"));
        if rustix::fs::statfs(directory).os(|| format!("statfs {}", directory.display()))?.f_type != TMPFS_MAGIC {
            return Err(Error::new(Kind::Unimplemented, format!("{}: not on a tmpfs", name())));
        }
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
        Self::of_file(file.os(|| format!("open {}", name()))?, clock)
    }

    /// Those that another process has created.
    ///
    /// # Errors
    /// Where there are none.
    pub fn open(path: &Path, clock: Clock) -> Result<Self> {
        let memory = File::open(path).os(|| format!("open {}", path.display()))?;
        Ok(Self { memory, clock, ahead: clock.ahead() })
    }

    fn of_file(memory: File, clock: Clock) -> Result<Self> {
        // Rather than ftruncate: the page is there for the child, and on our account.
        memory.write_all_at(&[0; ROOM * size_of::<u64>()], 0).os(|| "write stamps")?;
        Ok(Self { memory, clock, ahead: clock.ahead() })
    }

    /// What the child has left so far, by our CLOCK_MONOTONIC; 0 is nothing. Whoever takes over the child can write any
    /// number.
    pub fn read(&self) -> [u64; ROOM] {
        let mut bytes = [[0; size_of::<u64>()]; ROOM];
        // A child that has made it shorter has left nothing.
        let _ = self.memory.read_exact_at(bytes.as_flattened_mut(), 0);
        bytes.map(|bytes| u64::from_ne_bytes(bytes).saturating_sub(self.ahead))
    }

    /// The child's side, in the child. Without memory it leaves no moments.
    pub fn in_child(&self) -> Stamper {
        let (access, length) = (libc::PROT_READ | libc::PROT_WRITE, size_of::<[AtomicU64; ROOM]>());
        // SAFETY: a new mapping, where the kernel finds room, of a file that is open.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, self.memory.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Stamper::none();
        }
        // SAFETY: the mapping is of a whole page, so aligned; all bytes are valid numbers; nobody unmaps it, and neither the
        // parent nor this process shortens the file; others look at whole numbers, which is what atomics are for.
        Stamper { moments: Some(unsafe { &*memory.cast() }), clock: self.clock }
    }
}

/// The child's side.
#[derive(Clone, Copy, Debug)]
pub struct Stamper {
    moments: Option<&'static [AtomicU64; ROOM]>,
    clock: Clock,
}

impl Stamper {
    /// One that leaves nothing.
    pub const fn none() -> Self {
        Self { moments: None, clock: Clock::Monotonic }
    }

    /// Leaves this moment under a number.
    pub fn stamp(&self, number: usize) {
        if let Some(moment) = self.moments.and_then(|moments| moments.get(number)) {
            moment.store(self.clock.now(), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_leaves_is_read_at_any_time_by_our_clock() {
        for clock in [Clock::Monotonic, Clock::Real] {
            let stamps = Stamps::new(clock).unwrap();
            let child = stamps.in_child();
            assert_eq!(stamps.read(), [0; ROOM]);
            let before = Clock::Monotonic.now();
            child.stamp(3);
            let after = Clock::Monotonic.now();
            let read = stamps.read();
            // The wall clock may be slewed against the other meanwhile.
            let slack = if clock == Clock::Real { 1_000_000 } else { 0 };
            assert!((before - slack..=after + slack).contains(&read[3]), "{clock:?}: {before} {} {after}", read[3]);
            assert_eq!(read.iter().filter(|moment| **moment != 0).count(), 1);
            child.stamp(ROOM);
            Stamper::none().stamp(0);
            assert_eq!(stamps.read(), read);
        }
    }

    #[test]
    fn what_outlives_us_is_found_and_is_on_a_tmpfs_alone() {
        let path = Path::new("/dev/shm").join(format!("dray-stamps-{}", std::process::id()));
        let stamps = Stamps::create(&path, Clock::Monotonic).unwrap();
        let child = stamps.in_child();
        assert!(Stamps::create(&path, Clock::Monotonic).is_err(), "there is one");
        drop(stamps);
        child.stamp(5);
        let found = Stamps::open(&path, Clock::Monotonic).unwrap().read();
        std::fs::remove_file(&path).unwrap();
        assert_ne!(found[5], 0);
        let error = Stamps::create(Path::new("/proc/stamps"), Clock::Monotonic).unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
    }

    #[test]
    fn a_child_that_cuts_the_memory_has_left_nothing() {
        let stamps = Stamps::new(Clock::Monotonic).unwrap();
        stamps.in_child().stamp(0);
        stamps.memory.set_len(8).unwrap();
        assert_eq!(stamps.read()[1..], [0; ROOM - 1]);
    }
}
