//! The allocator.

use crate::error::{Error, Kind, Result};

/// The size from which on a buffer is a mapping of its own, in bytes: glibc's own default, to begin with.
const LARGE: libc::c_int = 128 << 10;

/// Has large buffers given back when they are freed. By default the allocator takes each that is freed as a sign that there
/// will be more, and keeps up to twice the largest (mallopt(3), M_MMAP_THRESHOLD): after one request or document of some MiB
/// an idle shim would be as much larger for months.
///
/// # Errors
/// When the allocator is not glibc's.
pub fn give_back_large_buffers() -> Result<()> {
    // SAFETY: mallopt only sets a number in the allocator; it is called before there is a second thread.
    match unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) } {
        1 => Ok(()),
        _ => Err(Error::new(Kind::Internal, "mallopt M_MMAP_THRESHOLD")),
    }
}
