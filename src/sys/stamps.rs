//! Moments that a child leaves for the process that has forked it, in a page of memory that both see: it costs a child no
//! system call and its parent no message, it is there up to execve(2), and it can be read while the child is at work, or
//! hangs, or has died.
//!
//! A page is one container's: its children, which programs of the container may take over, see no other ([`Stamps::in_child`]).
//! It is used again for the next child of the same, for a new one costs a good part of what a look at the clock must not.
//! A child that outlives its parent has its moments in a file.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    memory: Memory,
    clock: Clock,
    /// What that clock was ahead of ours when these were made.
    ahead: u64,
    /// Pages of other containers, which a child of this one is not to see.
    others: Vec<Weak<Page>>,
}

#[derive(Debug)]
enum Memory {
    Page(Rc<Page>),
    File(File),
}

/// A page of memory that is shared with every child that is forked while it is there.
#[derive(Debug)]
struct Page(NonNull<[AtomicU64; ROOM]>);

/// The page of the container that had a child last, to be used again, and all that there are.
#[derive(Debug, Default)]
pub struct Pages {
    last: Option<(String, Rc<Page>)>,
    all: Vec<Weak<Page>>,
}

const LENGTH: usize = size_of::<[AtomicU64; ROOM]>();

/// Maps moments, where the kernel finds room.
fn map(flags: libc::c_int, fd: RawFd) -> Result<NonNull<[AtomicU64; ROOM]>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, where there is none.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, access, libc::MAP_SHARED | flags, fd, 0) };
    match NonNull::new(memory).filter(|memory| memory.as_ptr() != libc::MAP_FAILED) {
        Some(memory) => Ok(memory.cast()),
        None => Err(std::io::Error::last_os_error()).os(|| "mmap stamps"),
    }
}

impl Page {
    fn new() -> Result<Self> {
        map(libc::MAP_ANONYMOUS, -1).map(Self)
    }

    fn moments(&self) -> &[AtomicU64; ROOM] {
        // SAFETY: the mapping is of a whole page, so aligned; all bytes are valid numbers; it is there as long as this is
        // (`drop`); others look at whole numbers, which is what atomics are for.
        unsafe { self.0.as_ref() }
    }

    /// The same for a child, which leaves by execve or _exit: no page is dropped there.
    fn for_ever(self: &Rc<Self>) -> &'static [AtomicU64; ROOM] {
        std::mem::forget(self.clone());
        // SAFETY: as above; there is one owner more than will ever be dropped.
        unsafe { self.0.as_ref() }
    }

    /// Takes it away from a child, which is not to have it.
    fn forget(self: &Rc<Self>) {
        std::mem::forget(self.clone());
        // SAFETY: the owners are values of the parent's, which a child does not touch; nobody else has a reference.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the last who had it is gone.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

impl Pages {
    /// New stamps for a child of `container`, by a clock that is the child's as well.
    ///
    /// # Errors
    /// Without memory.
    pub fn stamps(&mut self, container: &str, clock: Clock) -> Result<Stamps> {
        let again = self.last.take().filter(|(id, page)| id == container && Rc::strong_count(page) == 1);
        self.all.retain(|page| page.strong_count() != 0);
        let page = match again {
            Some((_, page)) => page,
            None => {
                let page = Rc::new(Page::new()?);
                self.all.push(Rc::downgrade(&page));
                page
            }
        };
        page.moments().iter().for_each(|moment| moment.store(0, Relaxed));
        self.last = Some((container.to_owned(), page.clone()));
        let others = self.all.iter().filter(|other| !std::ptr::eq(other.as_ptr(), Rc::as_ptr(&page)));
        let others = others.cloned().collect();
        Ok(Stamps { memory: Memory::Page(page), clock, ahead: clock.ahead(), others })
    }
}

impl Stamps {
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
        let file = file.os(|| format!("open {}", name()))?;
        // Rather than ftruncate: the page is there for the child.
        file.write_all_at(&[0; LENGTH], 0).os(|| format!("write {}", name()))?;
        Ok(Self::of_file(file, clock))
    }

    /// Those that another process has created.
    ///
    /// # Errors
    /// Where there are none.
    pub fn open(path: &Path, clock: Clock) -> Result<Self> {
        File::open(path).os(|| format!("open {}", path.display())).map(|file| Self::of_file(file, clock))
    }

    fn of_file(file: File, clock: Clock) -> Self {
        Self { memory: Memory::File(file), clock, ahead: clock.ahead(), others: Vec::new() }
    }

    /// What the child has left so far, by our CLOCK_MONOTONIC; 0 is nothing. Whoever takes over the child can write any
    /// number.
    pub fn read(&self) -> [u64; ROOM] {
        let mut moments = [0; ROOM];
        match &self.memory {
            Memory::Page(page) => {
                moments.iter_mut().zip(page.moments()).for_each(|(read, moment)| *read = moment.load(Relaxed));
            }
            Memory::File(file) => {
                let mut bytes = [[0; size_of::<u64>()]; ROOM];
                // A child that has made it shorter has left nothing.
                let _ = file.read_exact_at(bytes.as_flattened_mut(), 0);
                moments = bytes.map(u64::from_ne_bytes);
            }
        }
        moments.map(|moment| moment.saturating_sub(self.ahead))
    }

    /// The child's side, in the child. Without memory it leaves no moments.
    pub fn in_child(&self) -> Stamper {
        self.others.iter().filter_map(Weak::upgrade).for_each(|other| other.forget());
        let moments = match &self.memory {
            Memory::Page(page) => Some(page.for_ever()),
            // SAFETY: as in `Page::moments`; nobody unmaps it, and nobody who is not trusted has the file, to shorten it.
            Memory::File(file) => map(0, file.as_raw_fd()).ok().map(|memory| unsafe { memory.as_ref() }),
        };
        Stamper { moments, clock: self.clock }
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
            let stamps = Pages::default().stamps("a", clock).unwrap();
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

    fn page(stamps: &Stamps) -> *const Page {
        match &stamps.memory {
            Memory::Page(page) => Rc::as_ptr(page),
            Memory::File(_) => panic!("a file"),
        }
    }

    #[test]
    fn a_page_is_used_again_for_the_same_container_alone_and_by_one_child_at_a_time() {
        let mut pages = Pages::default();
        let first = pages.stamps("a", Clock::Monotonic).unwrap();
        first.in_child().stamp(1);
        let at_once = pages.stamps("a", Clock::Monotonic).unwrap();
        assert_ne!(page(&first), page(&at_once));
        assert_eq!(at_once.read(), [0; ROOM]);
        let kept = page(&at_once);
        at_once.in_child();
        // A child keeps what it has; here, where there is none, that has to be undone.
        let Memory::Page(own) = &at_once.memory else { panic!("a file") };
        // SAFETY: the count that `in_child` has forgotten.
        unsafe { Rc::decrement_strong_count(Rc::as_ptr(own)) };
        drop(at_once);
        let again = pages.stamps("a", Clock::Monotonic).unwrap();
        assert_eq!(page(&again), kept);
        assert_eq!((again.read(), again.others.len()), ([0; ROOM], 1), "what the one before has left is gone");
        drop(again);
        let unused = pages.last.as_ref().map(|(_, page)| Rc::downgrade(page)).unwrap();
        let other = pages.stamps("b", Clock::Monotonic).unwrap();
        assert!(unused.upgrade().is_none(), "it is not kept for a container that has had no child since");
        assert_eq!(other.others.len(), 1);
    }

    #[test]
    fn what_outlives_us_is_found_and_is_on_a_tmpfs_alone() {
        let path = Path::new("/dev/shm").join(format!("dray-stamps-{}", std::process::id()));
        let stamps = Stamps::create(&path, Clock::Monotonic).unwrap();
        let child = stamps.in_child();
        assert!(Stamps::create(&path, Clock::Monotonic).is_err(), "there is one");
        drop(stamps);
        child.stamp(5);
        let found = Stamps::open(&path, Clock::Monotonic).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(LENGTH as u64 / 2).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_ne!(found.read()[5], 0);
        let error = Stamps::create(Path::new("/proc/stamps"), Clock::Monotonic).unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
    }
}
