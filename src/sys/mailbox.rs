//! One number from a process that may make no system call any more to one that may, and the word that it has been taken.
//!
//! A process under a new seccomp filter does not know which calls are left to it: each may fail, kill it, or wait for a
//! listener which nobody has yet. Memory has no such limits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::error::{Error, Kind, Os, Result};

/// How often the sender looks for the answer: seconds of its own CPU's time. The receiver is there and needs a millisecond
/// or two; if it has died, nobody else would ever end the sender.
const LOOKS: u32 = 1 << 28;

/// Where the two numbers are in the shared file: the one that is sent, and the answer. 0 is none.
const SENT: usize = 0;
const TAKEN: usize = 1;
const NUMBER: usize = size_of::<i32>();

/// The sender's side.
#[derive(Debug)]
pub struct Mailbox {
    file: OwnedFd,
    numbers: &'static [AtomicI32; 2],
}

/// The receiver's side.
#[derive(Debug)]
pub struct Receiver(OwnedFd);

impl Mailbox {
    /// A new one. Its memory stays mapped until the process ends or becomes another program.
    pub fn new() -> Result<Self> {
        let file = memfd_create("mailbox", MemfdFlags::CLOEXEC).os(|| "memfd_create mailbox")?;
        ftruncate(&file, 2 * NUMBER as u64).os(|| "ftruncate mailbox")?;
        let (access, length) = (libc::PROT_READ | libc::PROT_WRITE, size_of::<[AtomicI32; 2]>());
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new mapping, where the kernel finds room, of a file that is open.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd, 0) };
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).os(|| "mmap mailbox");
        }
        // SAFETY: the mapping is of a whole page, so aligned; all zeroes are valid numbers; nobody shortens the file (it has
        // two holders, this one and the receiver, who reads and writes within it) nor unmaps it; others change it by whole
        // numbers, which is what atomics are for.
        let numbers = unsafe { &*memory.cast::<[AtomicI32; 2]>() };
        Ok(Self { file, numbers })
    }

    /// What the receiver is to be given.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Sends `number` and returns when it has been taken, without a system call in between. Where that does not come to
    /// be the process dies, by a trap: it could not say so.
    pub fn send(&self, number: RawFd) {
        self.numbers[SENT].store(number, Ordering::Release);
        for _ in 0..LOOKS {
            if self.numbers[TAKEN].load(Ordering::Acquire) != 0 {
                return;
            }
            std::hint::spin_loop();
        }
        trap()
    }
}

/// Ends the process without a system call.
fn trap() -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an instruction that is none, by definition: the kernel ends the process with SIGILL, which it has not handled.
    unsafe {
        std::arch::asm!("ud2", options(noreturn))
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("udf #0", options(noreturn))
    }
}

impl Receiver {
    /// Of the descriptor that the sender has handed over. It is one of memory, which alone has seals (F_GET_SEALS) and is
    /// read without waiting: a file of somebody else's might make us wait.
    pub fn new(file: OwnedFd) -> Result<Self> {
        rustix::fs::fcntl_get_seals(&file).os(|| "a mailbox that is none: fcntl F_GET_SEALS")?;
        Ok(Self(file))
    }

    /// What has been sent, if it has.
    pub fn number(&self) -> Result<Option<RawFd>> {
        let mut number = [0; NUMBER];
        let length = rustix::io::pread(&self.0, &mut number, (SENT * NUMBER) as u64).os(|| "pread mailbox")?;
        match (length, i32::from_ne_bytes(number)) {
            (NUMBER, 0) => Ok(None),
            (NUMBER, number) => Ok(Some(number)),
            _ => Err(Error::new(Kind::Internal, "a mailbox that is none")),
        }
    }

    /// What the number is read from.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Lets the sender go on. May wait for who writes to the same memory, as a sender that is not what it was may do for as
    /// long as it likes (userfaultfd(2)): for a process that has nothing else to do.
    pub fn taken(&self) -> Result<()> {
        let done = rustix::io::pwrite(&self.0, &1i32.to_ne_bytes(), (TAKEN * NUMBER) as u64);
        done.map(drop).os(|| "pwrite mailbox")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_goes_on_when_its_number_has_been_taken() {
        let mailbox = Mailbox::new().unwrap();
        let receiver = Receiver::new(mailbox.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(receiver.number().unwrap(), None);
        let sender = std::thread::spawn(move || mailbox.send(7));
        let number = loop {
            if let Some(number) = receiver.number().unwrap() {
                break number;
            }
        };
        assert_eq!(number, 7);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!sender.is_finished(), "not held");
        receiver.taken().unwrap();
        sender.join().unwrap();
    }

    #[test]
    fn a_pipe_is_no_mailbox() {
        let (read, _write) = std::io::pipe().unwrap();
        assert_eq!(Receiver::new(read.into()).unwrap_err().errno(), Some(libc::EINVAL));
    }
}
