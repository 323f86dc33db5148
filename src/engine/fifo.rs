//! The fifo that holds a created container whose creator has exited, in its state directory.
//!
//! The container's init has it open until it is its program. So who opens it for writing finds a reader as long as the
//! container is created and not started, whoever asks; and who reads it hears its end when it is started, or why it is
//! not ([`crate::init::sync`]).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Kind, Os, Result};
use crate::init::sync::{FIFO_WORD, heard_of_fifo};

use super::ready::watch;

/// Makes it; returns what the child is to hold.
pub(super) fn make(path: &Path) -> Result<OwnedFd> {
    let name = || path.display();
    rustix::fs::mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).os(|| format!("mkfifo {}", name()))?;
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).os(|| format!("open {}", name()))
}

/// Whether it holds a container.
pub fn holds(path: &Path) -> bool {
    writer(path).is_ok_and(|writer| writer.is_some())
}

/// Its end for writing, where somebody has it open for reading.
fn writer(path: &Path) -> Result<Option<File>> {
    match rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(writer) => Ok(Some(writer.into())),
        Err(Errno::NXIO | Errno::NOENT) => Ok(None),
        Err(e) => Err(e).os(|| format!("open {}", path.display())),
    }
}

/// The fifo of a container that it holds.
pub(super) struct Held<'a> {
    path: &'a Path,
    writer: File,
    reader: AsyncFd<File>,
}

/// Opens it where it holds a container: until it is released that is as it was.
///
/// # Errors
/// `FailedPrecondition` where it holds none.
pub(super) fn open(path: &Path) -> Result<Held<'_>> {
    let Some(writer) = writer(path)? else {
        return Err(Error::new(Kind::FailedPrecondition, "it waits for nothing"));
    };
    // Opened before the word is said: its end is to be heard even where it comes at once.
    let reader = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let reader = watch(File::from(reader.os(|| format!("open {}", path.display()))?), Interest::READABLE)?;
    Ok(Held { path, writer, reader })
}

/// Lets the container go; returns when it is its program.
///
/// # Errors
/// Why it is not; `DeadlineExceeded`.
pub(super) async fn release(held: Held<'_>, bound: Option<Duration>) -> Result<()> {
    let Held { path, mut writer, reader } = held;
    writer.write_all(&FIFO_WORD).os(|| format!("write {}", path.display()))?;
    drop(writer);
    let ended = async {
        loop {
            let mut ready = reader.readable().await.os(|| "epoll_wait")?;
            if ready.ready().is_read_closed() {
                return Ok::<_, Error>(());
            }
            ready.clear_ready();
        }
    };
    match bound {
        None => ended.await?,
        Some(bound) => tokio::time::timeout(bound, ended).await.unwrap_or_else(|_| {
            let text = format!("no answer from the container's process within {} s", bound.as_secs());
            Err(Error::new(Kind::DeadlineExceeded, text))
        })?,
    }
    let mut record = Vec::new();
    reader.get_ref().read_to_end(&mut record).os(|| format!("read {}", path.display()))?;
    // What is told is told; from here on there is nobody to be held.
    let _ = std::fs::remove_file(path);
    heard_of_fifo(&record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release_with(name: &str, child: impl FnOnce(File) + Send + 'static) -> Result<()> {
        let path = std::env::temp_dir().join(format!("dray-fifo-{name}-{}", std::process::id()));
        let held = File::from(make(&path).unwrap());
        assert!(holds(&path));
        let child = std::thread::spawn(move || child(held));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let released = runtime.block_on(async { release(open(&path)?, Some(Duration::from_secs(20))).await });
        child.join().unwrap();
        assert!(!holds(&path) && !path.exists());
        released
    }

    fn hear(mut held: &File) {
        let mut word = [0];
        held.read_exact(&mut word).unwrap();
        assert_eq!(word, FIFO_WORD);
    }

    #[test]
    fn its_end_is_the_programs_beginning() {
        release_with("end", |held| {
            hear(&held);
            std::thread::sleep(Duration::from_millis(50));
        })
        .unwrap();
    }

    #[test]
    fn who_ends_without_having_heard_has_not_started() {
        let error = release_with("unheard", drop).unwrap_err();
        assert!(error.to_string().contains("killed") || error.to_string().contains("waits for nothing"), "{error}");
    }

    #[test]
    fn a_container_that_is_not_held_is_not_released() {
        let path = std::env::temp_dir().join(format!("dray-fifo-none-{}", std::process::id()));
        drop(make(&path).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async { release(open(&path)?, None).await }).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
    }
}
