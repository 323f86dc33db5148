//! Who a process is: ids, capabilities, limits, and the flags that go with them.

use rustix::process::{DumpableBehavior, Gid, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Error, Os, Result};

/// The capability sets of capabilities(7), as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// The highest capability number that this program knows (CAP_CHECKPOINT_RESTORE); a newer kernel may have more.
const LAST_KNOWN: u32 = 40;

/// Limits the bounding set to `keep`: what is not in it cannot be had again, not even by a set-user-ID program.
///
/// Every capability that the kernel has is asked for, also those that this program does not know: an unknown one must
/// not stay.
pub fn limit_bounding(keep: u64) -> Result<()> {
    for number in 0..64 {
        if keep & (1 << number) != 0 {
            continue;
        }
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the kernel's last capability. Known ones exist on every kernel that we run on.
            Err(rustix::io::Errno::INVAL) if number > LAST_KNOWN - 3 => return Ok(()),
            Err(e) => return Err(Error::os(e, format!("prctl PR_CAPBSET_DROP {number}"))),
        }
    }
    Ok(())
}

/// The bit of CAP_SYS_ADMIN.
pub const SYS_ADMIN: u64 = 1 << 21;

/// The bit of CAP_SYS_NICE.
pub const SYS_NICE: u64 = 1 << 23;

/// Our own permitted capabilities, as bits.
pub fn permitted() -> Result<u64> {
    rustix::thread::capabilities(None).map(|sets| sets.permitted.bits()).os(|| "capget")
}

/// Sets effective, permitted and inheritable; the ambient set loses what is no longer in the latter two.
pub fn capset(caps: &Capabilities) -> Result<()> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(caps.effective),
        permitted: CapabilitySet::from_bits_retain(caps.permitted),
        inheritable: CapabilitySet::from_bits_retain(caps.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).os(|| "capset")
}

/// Sets effective, permitted and inheritable, then the ambient set.
pub fn set_capabilities(caps: &Capabilities) -> Result<()> {
    capset(caps)?;
    rustix::thread::clear_ambient_capability_set().os(|| "prctl PR_CAP_AMBIENT_CLEAR_ALL")?;
    for number in (0..64).filter(|n| caps.ambient & (1 << n) != 0) {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .os(|| format!("prctl PR_CAP_AMBIENT_RAISE {number}"))?;
    }
    Ok(())
}

/// Makes the next change to a user id other than 0 keep the permitted capabilities, or not.
pub fn keep_capabilities(keep: bool) -> Result<()> {
    rustix::thread::set_keep_capabilities(keep).os(|| "prctl PR_SET_KEEPCAPS")
}

/// Sets the supplementary groups, where they are not to stay, then all group ids, then all user ids: the order in which each
/// is still allowed.
pub fn set_ids(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<()> {
    // In a single-threaded process the thread's credentials are the process's.
    if let Some(groups) = groups {
        let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        rustix::thread::set_thread_groups(&groups).os(|| "setgroups")?;
    }
    let gid = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).os(|| format!("setresgid {gid}"))?;
    let uid = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).os(|| format!("setresuid {uid}"))
}

/// Sets PR_SET_NO_NEW_PRIVS; there is no way back.
pub fn no_new_privileges() -> Result<()> {
    rustix::thread::set_no_new_privs(true).os(|| "prctl PR_SET_NO_NEW_PRIVS")
}

/// Nobody without CAP_SYS_PTRACE over us reads our memory or our /proc/self/exe (CVE-2016-9962). Lost at execve(2) and
/// at every change of ids.
pub fn not_dumpable() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).os(|| "prctl PR_SET_DUMPABLE")
}

/// SIGKILL for us when the parent's thread ends, or no longer. Lost at every change of ids.
pub fn die_with_parent(die: bool) -> Result<()> {
    let signal = die.then_some(Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal).os(|| "prctl PR_SET_PDEATHSIG")
}

/// The same for a child of `parent`, in whose pid namespace it is; false where that has ended before it could be asked for.
pub fn die_with(parent: rustix::process::Pid) -> Result<bool> {
    die_with_parent(true)?;
    Ok(rustix::process::getppid() == Some(parent))
}

/// Orphans below us become our children.
pub fn become_subreaper() -> Result<()> {
    let us = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(us)).os(|| "prctl PR_SET_CHILD_SUBREAPER")
}

/// The name that ps shows (PR_SET_NAME; 15 bytes).
pub fn set_name(name: &std::ffi::CStr) -> Result<()> {
    rustix::thread::set_name(name).os(|| "prctl PR_SET_NAME")
}

/// Sets the file mode creation mask.
pub fn set_umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// Sets a resource limit of this process: `resource` is an RLIMIT_* number (setrlimit(2)).
///
/// # Errors
/// EPERM where the hard limit would rise and CAP_SYS_RESOURCE is missing.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    // 0 is the caller.
    prlimit(0, resource, Some(&libc::rlimit64 { rlim_cur: soft, rlim_max: hard })).map(drop)
}

/// Raises the hard limit of process `pid` to `hard` where it is lower, so that the process itself can have it: in a user
/// namespace no capability lets it.
///
/// # Errors
/// As [`set_rlimit`].
pub fn make_room(pid: u32, resource: u32, hard: u64) -> Result<()> {
    let now = prlimit(pid, resource, None)?;
    if now.rlim_max >= hard {
        return Ok(());
    }
    prlimit(pid, resource, Some(&libc::rlimit64 { rlim_max: hard, ..now })).map(drop)
}

/// prlimit(2): sets a limit where there is a `new` one, and returns what it was.
fn prlimit(pid: u32, resource: u32, new: Option<&libc::rlimit64>) -> Result<libc::rlimit64> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `new` is null or outlives the call, as does `old`, where the kernel stores what it was. A number that is no
    // resource answers EINVAL.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, new, &raw mut old) };
    if done == 0 { Ok(old) } else { Err(std::io::Error::last_os_error()).os(|| "prlimit64") }
}

/// A new session, with no controlling terminal.
pub fn new_session() -> Result<()> {
    rustix::process::setsid().map(drop).os(|| "setsid")
}

/// A new, empty session keyring (keyctl(2)): with the inherited one a process possesses the keys of the host's session and
/// of every other container's.
///
/// It has no name, unlike runc's: one by a name can be made beforehand by any process of the same user.
///
/// # Errors
/// EDQUOT when the user has too many keys. A kernel without keyrings has nothing to keep apart.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for a keyring without one; no memory is touched.
    let done =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match std::io::Error::last_os_error() {
        _ if done >= 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error).os(|| "keyctl KEYCTL_JOIN_SESSION_KEYRING"),
    }
}

/// A new core scheduling cookie for this process, which its children inherit: none of them shares a core with a process
/// of another cookie (linux: admin-guide/hw-vuln/core-scheduling.rst; Linux 5.14).
///
/// # Errors
/// EINVAL where the kernel is built without it, ENODEV on a machine without SMT.
pub fn new_scheduling_cookie() -> Result<()> {
    const PIDTYPE_TGID: libc::c_ulong = 1;
    // SAFETY: pid 0 is the caller, and no address is given for an answer.
    let done = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, PIDTYPE_TGID, 0) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).os(|| "prctl PR_SCHED_CORE_CREATE") }
}
