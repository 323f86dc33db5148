//! The device program of a cgroup2 cgroup: put there, and replaced.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::LinuxDeviceCgroup;
use rustix::fs::CWD;

use super::device_program::device_program;
use super::{Cgroup, file};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::bpf::Program;

/// What our program is told by from those of others (systemd's for DeviceAllow=), which stay: all of them must allow.
const NAME: &CStr = c"dray_devices";

impl Cgroup {
    /// The device rules of a cgroup2 host.
    pub(super) fn filter_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<()> {
        let Some(dir) = self.dir_of("devices") else { return Ok(()) };
        let fd = file::open_dir(CWD, &dir).os(|| format!("open {}", dir.display()))?;
        filter(fd.as_fd(), rules)
    }
}

/// Makes `rules` those of the cgroup `dir`: by a program of ours, in the place of the one that it has of us. There is no
/// moment without the one or the other. One that answers the same stays.
///
/// # Errors
/// `InvalidArgument` for a rule that is none. `FailedPrecondition`, with the kernel's errno, where programs cannot be had:
/// EPERM without the rights (in a user namespace nobody has them), ENOSYS or EINVAL from a kernel without them.
pub(super) fn filter(dir: BorrowedFd<'_>, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let instructions = device_program(rules)?;
    let program = Program::load(NAME, &instructions).map_err(|e| match e.errno() {
        Some(libc::EPERM) => {
            unavailable(e, "it takes CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN outside of user namespaces")
        }
        Some(libc::EINVAL | libc::ENOSYS) => unavailable(e, "this kernel may be without CONFIG_CGROUP_BPF"),
        _ => unavailable(e, "no device program"),
    })?;
    put(dir, &program).map_err(|e| unavailable(e, "no device program"))
}

fn put(dir: BorrowedFd<'_>, program: &Program) -> Result<()> {
    let wanted = program.identity()?;
    for attached in Program::attached(dir)? {
        let identity = attached.identity()?;
        if identity.has_name(NAME) {
            return if identity.is_same_program(&wanted) { Ok(()) } else { program.replace(dir, &attached) };
        }
    }
    program.attach(dir).context(|| "attaching it beside those of others, which may allow none")
}

fn unavailable(e: Error, why: &str) -> Error {
    e.context(format!("linux.resources.devices: {why}")).with_kind(Kind::FailedPrecondition)
}
