//! What of the shim's memory a child keeps: nothing but what it still needs.
//!
//! A child is a copy of the shim, and so of what the shim holds of other containers, their environments and
//! specifications among it, in live values and in freed ones. Being non-dumpable keeps others out of it, but not who has
//! CAP_SYS_PTRACE over it: programs in a container that is given that capability, once such a child is in their pid
//! namespace. [`keep_only`] makes a copy of the little that is needed up to execve(2), and gives the rest back to the
//! kernel:
//!
//! - the heap, which is one range of addresses ([`in_one_heap`]). The copies are in an arena of their own, from which all
//!   that this crate allocates comes from then on; libc's own malloc must not be called any more;
//! - the stack, both what lies above (the frames of the shim, to which nobody returns) and below (what former calls left);
//! - the command line and the environment that this program was started with, which the kernel shows in /proc too, the former
//!   to everybody. Their variables and words are empty from then on.
//!
//! The arena never frees: there is an execve(2) ahead.

use std::alloc::{GlobalAlloc, Layout, System};
use std::convert::Infallible;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::error::{Error, Kind, Os, Result};

use super::fork::{PANICKED, exit_now};

/// libc's allocator; in a child that forgets, the arena.
struct Memory;

#[global_allocator]
static MEMORY: Memory = Memory;

/// The next free address of the arena, or one of the two numbers below.
static NEXT: AtomicUsize = AtomicUsize::new(UNUSED);

/// Nothing has been allocated yet.
const UNUSED: usize = 0;
/// There is no arena: libc's heap serves.
const HEAP: usize = 1;

/// Where the arena ends.
static END: AtomicUsize = AtomicUsize::new(0);

/// Where libc's heap begins: behind the thread's own block, for which libc has moved the break too.
static HEAP_START: AtomicUsize = AtomicUsize::new(0);

/// How much the arena takes at a time. What is not touched costs nothing.
const CHUNK: usize = 256 * 1024;

// SAFETY: libc's allocator is one, and is passed what it was asked and what it gave. The arena's pieces are aligned as asked
// for, inside of a mapping that is never undone, and never given twice (`bump`). A value of either is never given back to
// the other: in the arena's time nothing is given back at all.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match NEXT.load(Relaxed) {
            // SAFETY: the caller's promise.
            HEAP => unsafe { System.alloc(layout) },
            UNUSED => first(layout),
            _ => bump(layout),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match NEXT.load(Relaxed) {
            // SAFETY: the caller's promise.
            HEAP => unsafe { System.alloc_zeroed(layout) },
            // SAFETY: the same. It is the beginning of the program: once.
            UNUSED => unsafe { drop_zeroed(first(layout), layout) },
            // Pages of a new mapping, used once.
            _ => bump(layout),
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if NEXT.load(Relaxed) == HEAP {
            // SAFETY: the caller's promise; without an arena it is libc's.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if NEXT.load(Relaxed) == HEAP {
            // SAFETY: the caller's promise; without an arena it is libc's.
            return unsafe { System.realloc(pointer, layout, size) };
        }
        if size <= layout.size() {
            return pointer;
        }
        // SAFETY: the caller's promise: `size`, rounded up to the alignment, does not overflow.
        let new = bump(unsafe { Layout::from_size_align_unchecked(size, layout.align()) });
        if !new.is_null() {
            // SAFETY: the old value is as long as its layout says, the new one is longer, and they do not overlap: it is new.
            unsafe { std::ptr::copy_nonoverlapping(pointer, new, layout.size()) };
        }
        new
    }
}

/// The first allocation of the program, which finds out where the heap begins: libc has allocated before, and freed.
#[cold]
fn first(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's promise (`alloc`).
    let pointer = unsafe { System.alloc(layout) };
    let (end, size) = end_and_size();
    HEAP_START.store(end - size, Relaxed);
    NEXT.store(HEAP, Relaxed);
    pointer
}

/// Where the range that libc's heap is in ends, and how large the heap is.
fn end_and_size() -> (usize, usize) {
    // SAFETY: neither changes anything.
    unsafe { (libc::sbrk(0) as usize, libc::mallinfo2().arena) }
}

/// The range of libc's heap.
///
/// # Errors
/// Where a part of it is elsewhere: libc resorts to that when the range cannot grow.
fn heap() -> Result<Range<usize>> {
    let (start, (end, size)) = (HEAP_START.load(Relaxed), end_and_size());
    match start + size == end {
        true => Ok(start..end),
        false => Err(Error::new(Kind::Internal, "libc's heap is not in one piece")),
    }
}

/// # Safety
/// `pointer` is null or of `layout`.
unsafe fn drop_zeroed(pointer: *mut u8, layout: Layout) -> *mut u8 {
    if !pointer.is_null() {
        // SAFETY: the caller's promise.
        unsafe { pointer.write_bytes(0, layout.size()) };
    }
    pointer
}

/// A piece of the arena; null where the kernel has no memory left.
fn bump(layout: Layout) -> *mut u8 {
    let start = |next: usize| next.next_multiple_of(layout.align());
    let mut at = start(NEXT.load(Relaxed));
    if at + layout.size() > END.load(Relaxed) {
        if extend(layout.size() + layout.align()).is_err() {
            return std::ptr::null_mut();
        }
        at = start(NEXT.load(Relaxed));
    }
    NEXT.store(at + layout.size(), Relaxed);
    std::ptr::with_exposed_provenance_mut(at)
}

/// A new piece of memory, of which the arena goes on.
fn extend(least: usize) -> Result<()> {
    let length = least.next_multiple_of(CHUNK);
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the kernel chooses a place where nothing is.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).os(|| "mmap");
    }
    let start = mapped.expose_provenance();
    END.store(start + length, Relaxed);
    NEXT.store(start, Relaxed);
    Ok(())
}

/// How much free memory the heap keeps at its end, in bytes: glibc's own default, to begin with.
const SPARE: libc::c_int = 128 << 10;

/// Keeps all that is allocated from now on in one range of addresses: no mapping of its own for what is large. For a
/// process whose children are to forget; what is allocated before is small.
///
/// And has the end of it given back when it is free. By default the allocator takes each large buffer that is freed as a
/// sign that there will be more, and keeps up to twice the largest (mallopt(3), M_MMAP_THRESHOLD): after one request or
/// document of some MiB an idle shim would be as much larger for months.
///
/// # Errors
/// When the allocator is not glibc's.
pub fn in_one_heap() -> Result<()> {
    for (name, parameter, value) in
        [("M_MMAP_MAX", libc::M_MMAP_MAX, 0), ("M_TRIM_THRESHOLD", libc::M_TRIM_THRESHOLD, SPARE)]
    {
        // SAFETY: it sets a number of libc's allocator.
        if unsafe { libc::mallopt(parameter, value) } != 1 {
            return Err(Error::new(Kind::Internal, format!("mallopt {name}")));
        }
    }
    Ok(())
}

/// Forgets everything but what `keep` makes, and does `then` with it. For a child of a fork; nothing returns from here.
///
/// What `keep` makes must own all that it refers to: it is made of copies. Neither it nor `then` may reach what was
/// allocated before through a static, nor call libc's malloc (opendir(3), for one).
///
/// # Errors
/// Without memory for the copies, or where not all would be forgotten; nothing is then.
pub fn keep_only<T>(keep: impl FnOnce() -> T, then: fn(T) -> Infallible) -> Result<Infallible> {
    let (heap, strings) = (heap()?, strings()?);
    extend(CHUNK)?;
    let kept = Box::into_raw(Box::new(keep()));
    let mark = 0u8;
    forget_and(heap, strings, &raw const mark as usize, kept, then)
}

/// `above` is in the caller's frame, behind which the frames begin that nobody comes back to. The arguments are in
/// registers, or above that.
#[inline(never)]
fn forget_and<T>(
    heap: Range<usize>,
    strings: Range<usize>,
    above: usize,
    kept: *mut T,
    then: fn(T) -> Infallible,
) -> ! {
    forget_heap(heap);
    forget_strings(strings);
    forget_stack(above);
    // The caller's handlers are among what is forgotten: a panic ends here.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `keep_only` has made it of a Box, for us alone.
        then(*unsafe { Box::from_raw(kept) })
    }));
    exit_now(PANICKED)
}

/// Values of the shim's lie there, and of this process before it has copied what it keeps. Neither are used again: nothing
/// returns from [`keep_only`], and no destructor runs.
fn forget_heap(Range { start, end }: Range<usize>) {
    // The first page is shared with libc's own.
    let pages = start.next_multiple_of(page_size());
    // SAFETY: see above; it is libc's heap.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(start).write_bytes(0, pages.min(end) - start) };
    if end > pages && !give_back(pages, end) {
        // Locked in memory.
        // SAFETY: the same.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(pages).write_bytes(0, end - pages) };
    }
}

/// Gives whole pages back to the kernel, after which they are zero; false where some are not to be had.
fn give_back(start: usize, end: usize) -> bool {
    let pages = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: both callers say why nothing there is used again.
    unsafe { libc::madvise(pages, end - start, libc::MADV_DONTNEED) == 0 }
}

fn page_size() -> usize {
    // SAFETY: it returns a number.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

unsafe extern "C" {
    /// The stack pointer when the program began: all frames are below, arguments and environment above.
    static __libc_stack_end: *const libc::c_void;

    /// The first word of the command line.
    static program_invocation_name: *const libc::c_char;
}

/// The words of the command line and the variables of the environment: one behind the other, and behind them the path of the
/// program, as the kernel puts them there at each execve(2) (fs/exec.c, `bprm_execve`; getauxval(3), AT_EXECFN).
///
/// # Errors
/// Where they are elsewhere.
fn strings() -> Result<Range<usize>> {
    // SAFETY: libc has set both before the program began, and nobody changes them; the call returns a number.
    let (frames, start, end) = unsafe {
        (__libc_stack_end as usize, program_invocation_name as usize, libc::getauxval(libc::AT_EXECFN) as usize)
    };
    match frames < start && start < end {
        true => Ok(start..end),
        false => Err(Error::new(Kind::Internal, "the command line is not where the kernel puts it")),
    }
}

/// What the pointers to them find is the empty string, in libc and std as well.
fn forget_strings(Range { start, end }: Range<usize>) {
    // SAFETY: they are on the stack, which is writable, above all that else is there but the path of the program (`strings`). No
    // value of ours refers to them (`std::env` copies), and no other thread looks at them: there is none.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(start).write_bytes(0, end - start) };
}

/// How far below the deepest frame the stack is written over rather than given back: room for the calls that give back.
const MARGIN: usize = 16 * 1024;

fn forget_stack(above: usize) {
    // SAFETY: libc has set it before the program began, and nobody changes it.
    let end = unsafe { __libc_stack_end } as usize;
    // SAFETY: frames of functions to which nobody returns (`keep_only`). No other thread looks at them: there is none.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(above).write_bytes(0, end - above) };
    scrub();
    let page = page_size();
    let mut end = (&raw const page as usize - MARGIN / 2) / page * page;
    let step = 16 * page;
    // Until below the stack's end. There are no frames that far below this one's; and what the kernel keeps free behind the
    // end (the stack guard gap, 256 pages) is more than a step.
    while give_back(end - step, end) {
        end -= step;
    }
}

/// Writes over what former calls have left below the caller's frame.
#[inline(never)]
fn scrub() {
    std::hint::black_box(&mut [0u8; MARGIN]);
}
