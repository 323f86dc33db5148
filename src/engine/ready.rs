//! Descriptors on the loop's epoll instance.

use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Os, Result};

/// Watches `inner` for `interest`, until it is dropped.
///
/// tokio calls its constructors deprecated for types that only say `AsRawFd`, which may lie about owning a descriptor, and
/// offers unsafe ones instead. The bound on `AsFd` is that promise (std::os::fd, "I/O safety"), so the safe one is sound.
#[allow(deprecated)]
pub fn watch<T: AsFd + AsRawFd>(inner: T, interest: Interest) -> Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest).os(|| "epoll_ctl")
}
