//! How the kernel treats the calling process: its scheduler, disk priority, CPUs, personality, memory.

use crate::error::{Os, Result};

/// What sched_setattr(2) takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// SCHED_*
    pub policy: u32,
    /// SCHED_FLAG_*
    pub flags: u64,
    /// Nice value, of the policies that share.
    pub nice: i32,
    /// Static priority, of the policies of real time.
    pub priority: u32,
    /// Nanoseconds, of SCHED_DEADLINE, as the next two.
    pub runtime: u64,
    /// Relative deadline.
    pub deadline: u64,
    /// Period.
    pub period: u64,
}

/// linux/sched/types.h: struct sched_attr, SCHED_ATTR_SIZE_VER1 (Linux 5.3), which libc does not have.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// Sets scheduling policy and attributes of the calling process (sched_setattr(2)).
///
/// # Errors
/// EPERM without CAP_SYS_NICE, and for SCHED_DEADLINE in a cpuset that does not have all CPUs; EBUSY where the deadlines
/// cannot be kept.
pub fn set_attributes(attributes: &Attributes) -> Result<()> {
    let Attributes { policy, flags, nice, priority, runtime, deadline, period } = *attributes;
    let size = size_of::<SchedAttr>() as u32;
    let attr = SchedAttr { size, policy, flags, nice, priority, runtime, deadline, period, util_min: 0, util_max: 0 };
    // SAFETY: pid 0 is the caller; `attr` is of the layout and size that it says, and outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    checked(done, || format!("sched_setattr policy {policy}"))
}

/// Sets class and priority of the calling process at block devices (ioprio_set(2)), as one number.
///
/// # Errors
/// EPERM for the class of real time without CAP_SYS_NICE.
pub fn set_io_priority(priority: u16) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: numbers alone; 0 is the caller.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, libc::c_int::from(priority)) };
    checked(done, || format!("ioprio_set {priority:#x}"))
}

/// Sets the CPUs that the calling process runs on, as a bit mask (sched_setaffinity(2)). Those that it may not have are
/// left out by the kernel.
///
/// # Errors
/// EINVAL where none is left.
pub fn set_affinity(mask: &[u64]) -> Result<()> {
    // SAFETY: pid 0 is the caller; the mask outlives the call and is as long as is said.
    let done = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) };
    checked(done, || "sched_setaffinity".into())
}

/// Sets the execution domain (personality(2)).
pub fn set_personality(domain: u32) -> Result<()> {
    // SAFETY: a number alone.
    let done = unsafe { libc::personality(libc::c_ulong::from(domain)) };
    checked(done.into(), || format!("personality {domain}"))
}

/// Sets where the memory of the calling process comes from: MPOL_* with flags, and a bit mask of nodes (set_mempolicy(2)).
///
/// # Errors
/// EINVAL for a mode that this kernel does not know, and where none of the nodes may be had.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<()> {
    // The kernel takes one bit less than it is told (set_mempolicy(2), BUGS).
    let (mask, bits) = if nodes.is_empty() { (std::ptr::null(), 0) } else { (nodes.as_ptr(), nodes.len() * 64 + 1) };
    // SAFETY: the mask outlives the call and has as many bits as are read, or is null where none are.
    let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    checked(done, || format!("set_mempolicy {mode:#x}"))
}

fn checked(done: libc::c_long, what: impl FnOnce() -> String) -> Result<()> {
    match done {
        -1 => Err::<(), _>(std::io::Error::last_os_error()).os(what),
        _ => Ok(()),
    }
}
