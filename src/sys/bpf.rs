//! Device programs: eBPF of the type BPF_PROG_TYPE_CGROUP_DEVICE, which cgroup2 asks at each open and mknod of a device
//! by a process of the cgroup (bpf(2); linux: admin-guide/cgroup-v2.rst, "Device controller").

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Os, Result};

// linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type, and the flags of BPF_PROG_ATTACH.
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;

/// How many programs of a type a cgroup may have (linux: kernel/bpf/cgroup.c, BPF_CGROUP_MAX_PROGS).
const MAX_PROGRAMS: usize = 64;

/// `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// The destination in the lower four bits, the source in the upper ones (both of our architectures are little endian).
    pub registers: u8,
    /// How many instructions to skip, or where in memory.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// `union bpf_attr` of BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME],
}

/// BPF_OBJ_NAME_LEN
const NAME: usize = 16;

/// `union bpf_attr` of BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    cgroup: RawFd,
    program: RawFd,
    kind: u32,
    flags: u32,
    replaced: RawFd,
}

/// `union bpf_attr` of BPF_PROG_QUERY, with all that any kernel writes: Linux 6.17 stores the revision without a look at
/// the size that it was given.
#[repr(C)]
#[derive(Default)]
struct Query {
    cgroup: RawFd,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    attach_flags_of_each: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `union bpf_attr` of BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// `union bpf_attr` of BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct ByFd {
    program: RawFd,
    length: u32,
    info: u64,
}

/// The start of `struct bpf_prog_info`: all that Linux 4.15 had.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    addresses: [u64; 2],
    load_time: u64,
    created_by_uid: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; NAME],
}

/// A device program that the kernel has taken. It lasts as long as this, or as a cgroup has it.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// What tells a program from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    name: [u8; NAME],
    tag: [u8; 8],
}

impl Identity {
    /// Whether it was loaded by the name `name`.
    pub fn has_name(&self, name: &CStr) -> bool {
        CStr::from_bytes_until_nul(&self.name).is_ok_and(|own| own == name)
    }

    /// Whether it has the same instructions (by their SHA-1) as `other`.
    pub fn is_same_program(&self, other: &Identity) -> bool {
        self.tag == other.tag
    }
}

impl Program {
    /// Has the kernel verify and take `instructions`, by the name `name`: at most 15 letters, digits, `_` and `.`.
    ///
    /// # Errors
    /// EPERM without CAP_BPF and CAP_NET_ADMIN (before Linux 5.8: CAP_SYS_ADMIN) in the first user namespace; EINVAL from a
    /// kernel without device programs, ENOSYS from one without any; EACCES, EINVAL, E2BIG for a program that it refuses.
    pub fn load(name: &CStr, instructions: &[Instruction]) -> Result<Self> {
        let load = || {
            let mut attr = Load {
                kind: PROG_TYPE_CGROUP_DEVICE,
                instructions: instructions.len() as u32,
                program: instructions.as_ptr() as u64,
                license: c"Apache-2.0".as_ptr() as u64,
                ..Load::default()
            };
            attr.name.iter_mut().zip(name.to_bytes()).take(NAME - 1).for_each(|(to, from)| *to = *from);
            // SAFETY: `program` is the address of `instructions` values of `struct bpf_insn`'s layout, `license` that of a
            // string with its end; the kernel reads both before it returns. There is no log for it to write.
            unsafe { bpf(PROG_LOAD, &mut attr) }
        };
        let loaded = match load() {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => unlimited(load),
            loaded => loaded,
        };
        loaded.map(|fd| Self(owned(fd))).os(|| format!("bpf BPF_PROG_LOAD of {} instructions", instructions.len()))
    }

    /// Adds it to the programs of the cgroup: an access is then to be allowed by each of these.
    ///
    /// # Errors
    /// EPERM where another has, or one above keeps, the cgroup for its own program alone; E2BIG where there are 64.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<()> {
        self.attach_as(cgroup, F_ALLOW_MULTI, 0)
    }

    /// Puts it in the place of `old`. There is no moment at which neither or both are asked.
    ///
    /// # Errors
    /// ENOENT where the cgroup has no `old`.
    pub fn replace(&self, cgroup: BorrowedFd<'_>, old: &Program) -> Result<()> {
        self.attach_as(cgroup, F_ALLOW_MULTI | F_REPLACE, old.0.as_raw_fd())
    }

    fn attach_as(&self, cgroup: BorrowedFd<'_>, flags: u32, replaced: RawFd) -> Result<()> {
        let (cgroup, program) = (cgroup.as_raw_fd(), self.0.as_raw_fd());
        let mut attr = Attach { cgroup, program, kind: CGROUP_DEVICE, flags, replaced };
        // SAFETY: it has no address in it.
        unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop).os(|| "bpf BPF_PROG_ATTACH")
    }

    /// The device programs that the cgroup itself has, not those above it, in the order of their attachment. One that is
    /// detached meanwhile is left out.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN in the first user namespace.
    pub fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<Self>> {
        let mut ids = [0u32; MAX_PROGRAMS];
        let mut attr = Query {
            cgroup: cgroup.as_raw_fd(),
            kind: CGROUP_DEVICE,
            ids: ids.as_mut_ptr() as u64,
            count: MAX_PROGRAMS as u32,
            ..Query::default()
        };
        // SAFETY: `ids` has room for the `count` numbers that the kernel may write; it sets `count` to how many there are.
        unsafe { bpf(PROG_QUERY, &mut attr) }.os(|| "bpf BPF_PROG_QUERY")?;
        ids.iter().take(attr.count as usize).filter_map(|&id| Self::by_id(id).transpose()).collect()
    }

    fn by_id(id: u32) -> Result<Option<Self>> {
        let mut attr = ById { id, next: 0, flags: 0 };
        // SAFETY: it has no address in it.
        match unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) } {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            fd => fd.map(|fd| Some(Self(owned(fd)))).os(|| format!("bpf BPF_PROG_GET_FD_BY_ID {id}")),
        }
    }

    /// Its name and its tag.
    pub fn identity(&self) -> Result<Identity> {
        let mut info = ProgramInfo::default();
        let length = size_of::<ProgramInfo>() as u32;
        let mut attr = ByFd { program: self.0.as_raw_fd(), length, info: &raw mut info as u64 };
        // SAFETY: `info` has `length` bytes, of which any value is one of a `ProgramInfo`, and the kernel writes no more;
        // the addresses in it are null, with lengths of zero, so that it writes nowhere else.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }.os(|| "bpf BPF_OBJ_GET_INFO_BY_FD")?;
        Ok(Identity { name: info.name, tag: info.tag })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// bpf(2).
///
/// # Safety
/// `attr` is laid out as `union bpf_attr` is for `command`, as long as what any kernel writes of it, and each address in
/// it is one that the kernel may use as the command does.
unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> std::io::Result<RawFd> {
    // SAFETY: `attr` is initialised memory of that many bytes; the rest is the caller's word.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) } {
        -1 => Err(std::io::Error::last_os_error()),
        answer => Ok(answer as RawFd),
    }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: bpf(2) has just made it, close-on-exec, for the caller.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `load` with no limit of locked memory, or the highest that may be had: before Linux 5.11 it counts all programs of a
/// user, root's too. What the limit was it is again afterwards: containers inherit it.
fn unlimited<T>(load: impl FnOnce() -> T) -> T {
    let limit = getrlimit(Resource::Memlock);
    if setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_err() {
        let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, ..limit });
    }
    let loaded = load();
    let _ = setrlimit(Resource::Memlock, limit);
    loaded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_the_kernels() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!((size_of::<Load>(), std::mem::offset_of!(Load, name)), (64, 48));
        assert_eq!((size_of::<Attach>(), size_of::<ById>(), size_of::<ByFd>()), (20, 12, 16));
        assert_eq!((size_of::<Query>(), std::mem::offset_of!(Query, revision)), (64, 56));
        assert_eq!((size_of::<ProgramInfo>(), std::mem::offset_of!(ProgramInfo, name)), (80, 64));
    }

    #[test]
    fn the_limit_of_locked_memory_is_lifted_for_the_load_only() {
        let before = getrlimit(Resource::Memlock);
        let low = Rlimit { current: Some(1 << 12), ..before };
        setrlimit(Resource::Memlock, low).unwrap();
        let during = unlimited(|| getrlimit(Resource::Memlock));
        let after = getrlimit(Resource::Memlock);
        setrlimit(Resource::Memlock, before).unwrap();
        // Without CAP_SYS_RESOURCE the hard limit is the highest.
        assert!(during.current.is_none() || during.current == before.maximum, "{during:?}");
        assert_eq!(after, low);
    }
}
