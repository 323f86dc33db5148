//! Seccomp profiles: from the specification's names to a program for the kernel, compiled once, by the parent.
//!
//! libseccomp knows the numbers of the system calls of every architecture and makes the program; loading it is the child's
//! (`steps`), which calls no library between a fork and an execve.

use std::fs::File;
use std::io::{Read, Seek};
use std::mem::ManuallyDrop;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use rustix::fs::MemfdFlags;

use crate::error::{Error, Kind, Os, Result};
use crate::spec::features::Abilities;
use crate::spec::seccomp::{ARCHS, FLAGS, notifies};
use crate::sys::cred::{self, Capabilities};
use crate::sys::mailbox::Mailbox;
use crate::sys::seccomp::{Filter, Instruction};
use crate::sys::stamps::Stamper;
use crate::sys::{fork, tty};

use super::kept::Kept;
use super::plan::Plan;

/// Loads the container's filter: the last act before execve, which is all that it need allow.
///
/// A listener is the shim's to inform: from the load on any call of ours may wait for an answer of it, so that we make
/// none until the shim has taken the descriptor out of our hands ([`crate::sys::mailbox`]). It goes with the execve.
///
/// The kernel wants no_new_privs or CAP_SYS_ADMIN; without the former the latter was kept, as permitted, until now
/// (`identity::change`). Nothing of it is left: execve(2) makes the sets anew, and neither the permitted nor the effective
/// one has a part in that (capabilities(7)).
pub fn load_filter(kept: &Kept) -> Result<()> {
    let Some(filter) = &kept.seccomp else { return Ok(()) };
    if kept.filter_early {
        return Ok(());
    }
    load_now(filter, kept)
}

/// Loads the filter before the process is born in the container's pid namespace, where it would take CAP_SYS_ADMIN with it
/// only to load it: who has CAP_SYS_PTRACE there could take that over.
pub fn load_filter_early(kept: &mut Kept) -> Result<()> {
    let Some(filter) = kept.seccomp.as_ref().filter(|_| kept.filter_early) else { return Ok(()) };
    let before = cred::permitted()?;
    load_now(filter, kept)?;
    let permitted = before & (!cred::SYS_ADMIN | kept.capabilities.permitted);
    cred::capset(&Capabilities { permitted, ..kept.capabilities })
}

/// Whether the plan's filter can be loaded before the hop: it takes a capability that is better not kept, and lets through
/// what is left to be done (`steps::LAST` and what follows).
pub fn is_early(plan: &Plan) -> bool {
    let calls = [
        libc::SYS_capset,
        libc::SYS_pipe2,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_dup3,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_recvfrom,
        libc::SYS_read,
        libc::SYS_exit_group,
        libc::SYS_setsid,
        libc::SYS_prlimit64,
        libc::SYS_capget,
        libc::SYS_sched_setattr,
        libc::SYS_newfstatat,
        libc::SYS_faccessat2,
        libc::SYS_mmap,
        libc::SYS_close_range,
        libc::SYS_execve,
    ];
    let allows_all = |filter: &Filter| {
        fork::may_hop(filter)
            && tty::may_take_control(filter)
            && calls.iter().all(|&call| filter.allows(call, &[]))
            && filter.allows(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as u64])
    };
    plan.hops() && needed(plan) != 0 && plan.seccomp.as_deref().is_some_and(allows_all)
}

fn load_now(filter: &Filter, kept: &Kept) -> Result<()> {
    // A system call where the vdso has no clock.
    if !filter.allows(libc::SYS_clock_gettime, &[]) {
        kept.stamper.set(Stamper::none());
    }
    // Never dropped: closing it is a call.
    let mailbox = filter.has_listener().then(Mailbox::new).transpose()?.map(ManuallyDrop::new);
    if let Some(mailbox) = &mailbox {
        kept.sync.wait_to_load(mailbox)?;
    }
    if !kept.no_new_privileges {
        let Capabilities { permitted, effective, .. } = kept.capabilities;
        let (permitted, effective) = (permitted | cred::SYS_ADMIN, effective | cred::SYS_ADMIN);
        cred::capset(&Capabilities { permitted, effective, ..kept.capabilities })?;
    }
    if let (Some(listener), Some(mailbox)) = (filter.load()?, &mailbox) {
        mailbox.send(listener);
    }
    Ok(())
}

/// The capability that loading the plan's filter takes.
pub fn needed(plan: &Plan) -> u64 {
    if plan.seccomp.is_some() && !plan.process.no_new_privileges { cred::SYS_ADMIN } else { 0 }
}

/// Compiles a profile.
///
/// # Errors
/// `InvalidArgument` for one that libseccomp does not take: an architecture of other byte order, say.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default).map_err(|e| wrong("defaultAction", e))?;
    // A binary tree over the numbers rather than a list: this program runs at each system call.
    context.set_ctl_optimize(2).map_err(|e| wrong("optimization", e))?;
    let mut archs = vec![ScmpArch::native()];
    for listed in profile.architectures().iter().flatten() {
        let arch = arch(*listed).unwrap_or(archs[0]);
        context.add_arch(arch).map_err(|e| wrong(&format!("architectures: {listed}"), e))?;
        archs.push(arch);
    }
    archs.sort_unstable_by_key(|arch| format!("{arch:?}"));
    archs.dedup();
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = action(rule.action(), rule.errno_ret());
        // libseccomp refuses it as superfluous.
        if action == default {
            continue;
        }
        for name in rule.names() {
            // What this libseccomp does not know cannot be filtered; profiles name calls of kernels to come (runc:
            // seccomp_linux.go, matchCall).
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            add(&mut context, action, call, rule.args().as_deref().unwrap_or_default())
                .map_err(|e| wrong(&format!("syscalls[{index}]: {name}"), e))?;
        }
    }
    Filter::new(flags(profile)?, &newer_calls(profile, default, &archs), &export(&context)?)
}

fn wrong(what: &str, error: libseccomp::error::SeccompError) -> Error {
    Error::new(Kind::InvalidArgument, format!("linux.seccomp.{what}: {error}"))
}

/// Conditions on different arguments must all hold, of several on one argument any one: as runc has it, and the profiles
/// that were written for it.
fn add(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    args: &[LinuxSeccompArg],
) -> std::result::Result<(), libseccomp::error::SeccompError> {
    let conditions: Vec<_> = args.iter().map(condition).collect();
    let twice = |(at, arg): (usize, &LinuxSeccompArg)| args[..at].iter().any(|other| other.index() == arg.index());
    if args.is_empty() {
        context.add_rule(action, call)?;
    } else if args.iter().enumerate().any(twice) {
        for condition in conditions {
            context.add_rule_conditional(action, call, &[condition])?;
        }
    } else {
        context.add_rule_conditional(action, call, &conditions)?;
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(arg.index() as u32, operator, datum)
}

/// EPERM where the profile says no error.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    let value = errno.unwrap_or(libc::EPERM as u32) as u16;
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(value.into()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(value),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    }
}

/// `None` for the native one.
fn arch(arch: Arch) -> Option<ScmpArch> {
    use ScmpArch as S;
    Some(match arch {
        Arch::ScmpArchNative => return None,
        Arch::ScmpArchX86 => S::X86,
        Arch::ScmpArchX86_64 => S::X8664,
        Arch::ScmpArchX32 => S::X32,
        Arch::ScmpArchArm => S::Arm,
        Arch::ScmpArchAarch64 => S::Aarch64,
        Arch::ScmpArchMips => S::Mips,
        Arch::ScmpArchMips64 => S::Mips64,
        Arch::ScmpArchMips64n32 => S::Mips64N32,
        Arch::ScmpArchMipsel => S::Mipsel,
        Arch::ScmpArchMipsel64 => S::Mipsel64,
        Arch::ScmpArchMipsel64n32 => S::Mipsel64N32,
        Arch::ScmpArchPpc => S::Ppc,
        Arch::ScmpArchPpc64 => S::Ppc64,
        Arch::ScmpArchPpc64le => S::Ppc64Le,
        Arch::ScmpArchS390 => S::S390,
        Arch::ScmpArchS390x => S::S390X,
        Arch::ScmpArchParisc => S::Parisc,
        Arch::ScmpArchParisc64 => S::Parisc64,
        Arch::ScmpArchRiscv64 => S::Riscv64,
        Arch::ScmpArchLoongarch64 => S::Loongarch64,
        Arch::ScmpArchM68k => S::M68k,
        Arch::ScmpArchSh => S::Sh,
        Arch::ScmpArchSheb => S::Sheb,
    })
}

/// Without any in the profile, as runc has it: the mitigation of Speculative Store Bypass stays as the process has it
/// elsewhere. SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is about notifications: the kernel refuses it without a listener.
fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    let listener = notifies(profile);
    let own = if listener { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
    let Some(listed) = profile.flags() else { return Ok(own | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32) };
    let mut bits = own;
    for flag in listed {
        let bit = match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if !listener => continue,
            // Else the call could return a thread's number as well as a descriptor's.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync if listener => {
                bit(*flag) | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH as u32
            }
            _ => bit(*flag),
        };
        if !crate::sys::seccomp::knows(own | bit) {
            let text = format!("linux.seccomp.flags: this kernel does not know {flag}");
            return Err(Error::new(Kind::Unimplemented, text));
        }
        bits |= bit;
    }
    Ok(bits)
}

fn bit(flag: LinuxSeccompFilterFlag) -> u32 {
    (match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    }) as u32
}

/// What the library and this kernel know.
pub fn abilities() -> Abilities {
    let known = |listed: &Arch| {
        let arch = arch(*listed).unwrap_or(ScmpArch::native());
        ScmpSyscall::from_name_by_arch("read", arch).is_ok()
    };
    let supported = |flag: &LinuxSeccompFilterFlag| {
        // Only with a listener the kernel takes it.
        let with = match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32,
            _ => 0,
        };
        crate::sys::seccomp::knows(bit(*flag) | with)
    };
    Abilities {
        archs: ARCHS.iter().copied().filter(known).collect(),
        flags: FLAGS.iter().copied().filter(supported).collect(),
        library: library_version(),
    }
}

/// libseccomp's own, `2.5.4`.
pub fn library_version() -> String {
    libseccomp::ScmpVersion::current().map(|version| version.to_string()).unwrap_or_default()
}

/// The program, by a file: libseccomp writes it to a buffer from 2.6 on only.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>> {
    let memfd = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC).os(|| "memfd_create seccomp")?;
    let mut file = File::from(memfd);
    context.export_bpf(&file).map_err(|e| Error::new(Kind::Internal, format!("seccomp_export_bpf: {e}")))?;
    let mut program = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut program)).os(|| "read seccomp filter")?;
    Ok(program)
}

/// What comes before the profile's own program: a call with a number higher than that of any call which the profile
/// mentions is one that its author did not know. Its answer is ENOSYS, on which C libraries fall back to older calls, where
/// the default of the profile would be EPERM, on which they fail (runc: libcontainer/seccomp/patchbpf). A profile
/// that lets by default everything happen has nothing to add.
fn newer_calls(profile: &LinuxSeccomp, default: ScmpAction, archs: &[ScmpArch]) -> Vec<Instruction> {
    if matches!(default, ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_))
        || default == ScmpAction::Errno(libc::ENOSYS)
    {
        return Vec::new();
    }
    let highest = |arch| {
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok());
        // A call that the architecture has not has a number below 0.
        numbers.filter_map(|call| u32::try_from(call.as_raw_syscall()).ok()).max()
    };
    let mut program = vec![load(ARCH)];
    for (arch, token) in TOKENS.iter().filter(|(arch, _)| archs.contains(arch)) {
        let Some(last) = highest(*arch) else { continue };
        let mut test = vec![load(NUMBER)];
        if *arch == ScmpArch::X8664 {
            // x32 has the same token and a bit in its numbers; where it is not listed the profile's program kills.
            let last = archs.contains(&ScmpArch::X32).then(|| highest(ScmpArch::X32)).flatten();
            test.push(jump(libc::BPF_JGE, X32_BIT, 0, 1));
            test.push(jump(libc::BPF_JGT, last.unwrap_or(u32::MAX), 1, 2));
        }
        test.push(jump(libc::BPF_JGT, last, 0, 1));
        test.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
        // For the next test here.
        test.push(load(ARCH));
        program.push(jump(libc::BPF_JEQ, *token, 0, test.len() as u8));
        program.extend(test);
    }
    program
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// __X32_SYSCALL_BIT of asm/unistd.h.
const X32_BIT: u32 = 0x4000_0000;

/// AUDIT_ARCH_* (linux/audit.h) of the machines that we run on, and of the programs that they can run. Of another one the
/// profile's own answer is the answer.
const TOKENS: [(ScmpArch, u32); 4] = [
    (ScmpArch::X8664, 0xc000_003e),
    (ScmpArch::X86, 0x4000_0003),
    (ScmpArch::Aarch64, 0xc000_00b7),
    (ScmpArch::Arm, 0x4000_0028),
];

fn load(offset: u32) -> Instruction {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn statement(code: u32, k: u32) -> Instruction {
    Instruction { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt, jf, k }
}
