//! Loading a seccomp filter that was compiled beforehand.

use std::os::fd::RawFd;

use crate::error::{Error, Os, Result};

/// A filter program and how it is to be loaded (seccomp(2)).
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    /// SECCOMP_FILTER_FLAG_*
    pub flags: u32,
    program: Vec<Instruction>,
}

/// `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip where a test holds.
    pub jt: u8,
    /// How many where it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Filter {
    /// Of the instructions `prologue`, and after them `program` as the kernel reads it (seccomp_export_bpf(3)).
    ///
    /// # Errors
    /// EINVAL for what is no program: of odd length, empty, or too long.
    pub fn new(flags: u32, prologue: &[Instruction], program: &[u8]) -> Result<Self> {
        let (instructions, rest) = program.as_chunks::<8>();
        let decode = |&[a, b, jt, jf, k @ ..]: &[u8; 8]| Instruction {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes(k),
        };
        let program: Vec<_> = prologue.iter().copied().chain(instructions.iter().map(decode)).collect();
        if !rest.is_empty() || instructions.is_empty() || program.len() > libc::BPF_MAXINSNS as usize {
            return Err(Error::os(libc::EINVAL, format!("a seccomp filter of {} instructions", program.len())));
        }
        Ok(Self { flags, program })
    }

    /// It is to be loaded with a listener, which is told of calls and answers them (seccomp_unotify(2)).
    pub fn has_listener(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 != 0
    }

    /// Loads it for this process, for ever. The next system call is under it.
    ///
    /// Returns the number of the listener's descriptor, where there is one. It is close-on-exec, and a number only: the
    /// filter may not let the caller even close it.
    ///
    /// # Errors
    /// EACCES without no_new_privs and without CAP_SYS_ADMIN.
    pub fn load(&self) -> Result<Option<RawFd>> {
        let program = libc::sock_fprog {
            len: self.program.len() as u16,
            filter: self.program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
        };
        // SAFETY: `program` describes `len` initialised instructions of `struct sock_filter`'s layout, at most BPF_MAXINSNS
        // (`new`); the kernel only reads them, and before the call returns.
        let done =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const program) };
        match done {
            listener @ 0.. if self.has_listener() => Ok(Some(listener as RawFd)),
            0 => Ok(None),
            -1 => Err(std::io::Error::last_os_error()).os(|| "seccomp SECCOMP_SET_MODE_FILTER"),
            thread => Err(Error::os(libc::ESRCH, format!("seccomp: thread {thread} has other filters"))),
        }
    }
}

/// Whether this kernel knows the flags `flags` (SECCOMP_FILTER_FLAG_*). Loads nothing.
pub fn knows(flags: u32) -> bool {
    // SAFETY: the program's address is null, at which the kernel fails (EFAULT) after it has looked at the flags (EINVAL).
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::null::<libc::sock_fprog>())
    };
    done == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a filter of {} instructions, flags {:#x}", self.program.len(), self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_of_no_kernel_is_not_known() {
        assert!(knows(libc::SECCOMP_FILTER_FLAG_LOG as u32));
        assert!(!knows(1 << 31));
    }
}
