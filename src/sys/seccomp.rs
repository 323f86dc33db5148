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

// linux/bpf_common.h and linux/filter.h
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const GO: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_NOT_LESS: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_ANY: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Our own architecture as filters are told it (linux/audit.h): little endian, 64 bits, and the ELF machine.
const AUDIT_ARCH: u32 = 0xc000_0000 | if cfg!(target_arch = "aarch64") { 183 } else { 62 };

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

    /// Whether it certainly lets the call `number` with these arguments through: false too where it takes an instruction that
    /// libseccomp does not use to find out, and for a filter with a listener, which is still to be handed over.
    pub fn allows(&self, number: libc::c_long, args: &[u64]) -> bool {
        let mut data = [0u32; 16]; // struct seccomp_data
        (data[0], data[1]) = (number as u32, AUDIT_ARCH);
        for (at, &arg) in args.iter().enumerate() {
            let halves = [arg as u32, (arg >> 32) as u32];
            data[4 + 2 * at..6 + 2 * at].copy_from_slice(&halves);
        }
        let action = self.run(&data).map(|action| action & libc::SECCOMP_RET_ACTION_FULL);
        !self.has_listener() && matches!(action, Some(libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG))
    }

    /// What it answers (linux: networking/filter.rst); jumps go forward alone.
    fn run(&self, data: &[u32; 16]) -> Option<u32> {
        let (mut at, mut a) = (0, 0u32);
        loop {
            let Instruction { code, jt, jf, k } = *self.program.get(at)?;
            at += 1;
            let jump = |holds| usize::from(if holds { jt } else { jf });
            match u32::from(code) {
                LOAD => a = *data.get(k as usize / 4)?,
                AND => a &= k,
                GO => at += k as usize,
                IF_EQUAL => at += jump(a == k),
                IF_GREATER => at += jump(a > k),
                IF_NOT_LESS => at += jump(a >= k),
                IF_ANY => at += jump(a & k != 0),
                RETURN => return Some(k),
                _ => return None,
            }
        }
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

    /// Every instruction, by a program that takes each of them; and what it does not know is not allowed.
    #[test]
    fn what_a_filter_allows_is_found_out() {
        let instruction = |code: u32, jt, jf, k| Instruction { code: code as u16, jt, jf, k };
        let allow = instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
        let deny = instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | 1);
        let filter = |flags, program: &[Instruction]| {
            let bytes: Vec<u8> = [0, 0, 0, 0].into_iter().chain([0; 4]).collect();
            let mut filter = Filter::new(flags, program, &bytes).unwrap();
            filter.program.pop();
            filter
        };
        // Of our architecture, number 7 with its second argument's upper half 1, or of a number above 100 with bit 1 set.
        let program = [
            instruction(LOAD, 0, 0, 4),
            instruction(IF_EQUAL, 1, 0, AUDIT_ARCH),
            deny,
            instruction(LOAD, 0, 0, 0),
            instruction(IF_EQUAL, 0, 4, 7),
            instruction(LOAD, 0, 0, 16 + 8 + 4),
            instruction(AND, 0, 0, 3),
            instruction(IF_NOT_LESS, 3, 0, 1),
            deny,
            instruction(IF_GREATER, 0, 3, 100),
            instruction(IF_ANY, 0, 2, 2),
            instruction(GO, 0, 0, 0),
            allow,
            deny,
        ];
        let all = filter(0, &program);
        assert!(all.allows(7, &[0, 5 << 32]) && !all.allows(7, &[5 << 32, 4 << 32]) && !all.allows(7, &[]));
        assert!(all.allows(102, &[]) && !all.allows(101, &[]) && !all.allows(98, &[]) && !all.allows(100, &[]));
        assert!(!filter(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32, &[allow]).allows(7, &[]));
        assert!(filter(0, &[allow]).allows(7, &[]));
        let other = instruction(libc::BPF_LDX | libc::BPF_IMM, 0, 0, 0);
        assert!(!filter(0, &[other, allow]).allows(7, &[]));
        assert!(!filter(0, &[instruction(GO, 0, 0, 9)]).allows(7, &[]));
    }

    #[test]
    fn a_flag_of_no_kernel_is_not_known() {
        assert!(knows(libc::SECCOMP_FILTER_FLAG_LOG as u32));
        assert!(!knows(1 << 31));
    }
}
