//! System calls taken away by a seccomp filter, as an old kernel or a strict sandbox takes them away.
#![allow(unsafe_code)]
#![allow(dead_code)] // Every test file is a crate of its own and uses a part of this.

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};

/// A call that is to fail.
#[derive(Clone, Copy)]
pub struct Refused {
    /// SYS_*
    pub call: libc::c_long,
    /// Only where this argument has one of these bits set.
    pub with: Option<(usize, u32)>,
    /// What it answers.
    pub errno: i32,
}

/// A call that this kernel does not have.
pub const fn missing(call: libc::c_long) -> Refused {
    Refused { call, with: None, errno: libc::ENOSYS }
}

/// A flag in this argument of the call that this kernel does not know.
pub const fn missing_flag(call: libc::c_long, argument: usize, flag: u32) -> Refused {
    Refused { call, with: Some((argument, flag)), errno: libc::EINVAL }
}

/// What Linux 5.10, the oldest supported, does not have, and what sandboxes of newer ones refuse.
pub const OLD: &[Refused] = &[
    // Docker's default profile; old gVisor.
    missing(libc::SYS_clone3),
    // 5.9, and filtered by what does not know it.
    missing(libc::SYS_close_range),
    // 5.12
    missing(libc::SYS_mount_setattr),
    // 5.11
    missing(libc::SYS_epoll_pwait2),
    // 6.3
    missing_flag(libc::SYS_memfd_create, 1, libc::MFD_EXEC),
];

/// Linux 5.10 itself: close_range is there, CLOSE_RANGE_CLOEXEC came with 5.11.
pub const LINUX_5_10: &[Refused] = &[
    missing_flag(libc::SYS_close_range, 2, libc::CLOSE_RANGE_CLOEXEC),
    missing(libc::SYS_mount_setattr),
    missing(libc::SYS_epoll_pwait2),
    missing_flag(libc::SYS_memfd_create, 1, libc::MFD_EXEC),
];

/// Takes them away from the calling thread and all that it starts, for ever. Root only.
pub fn take_away(refused: &[Refused]) {
    let mut program = Vec::new();
    for Refused { call, with, errno } in refused {
        let mut test = vec![statement(BPF_LD | BPF_W | BPF_ABS, 0)];
        let answer = statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | *errno as u32);
        match with {
            None => test.push(jump(BPF_JEQ, *call as u32, 1)),
            Some((argument, bits)) => {
                test.push(jump(BPF_JEQ, *call as u32, 3));
                // seccomp_data: nr, arch, instruction pointer, then the arguments; little end first on what we run on.
                test.push(statement(BPF_LD | BPF_W | BPF_ABS, 16 + 8 * *argument as u32));
                test.push(jump(BPF_JSET, *bits, 1));
            }
        }
        test.push(answer);
        program.extend(test);
    }
    program.push(statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the filter, which outlives the call.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(done, 0, "PR_SET_SECCOMP: {}", std::io::Error::last_os_error());
    for Refused { call, with, errno } in refused.iter().filter(|refused| refused.with.is_none()) {
        // SAFETY: all arguments are 0, with which none of the calls of these lists does anything.
        let answer = unsafe { libc::syscall(*call, 0, 0, 0, 0, 0) };
        let error = std::io::Error::last_os_error().raw_os_error();
        assert!(answer == -1 && error == Some(*errno) && with.is_none(), "call {call} is still there");
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Goes on where the test holds, else skips `past` statements.
fn jump(test: u32, k: u32, past: u8) -> libc::sock_filter {
    libc::sock_filter { code: (BPF_JMP | test | BPF_K) as u16, jt: 0, jf: past, k }
}
