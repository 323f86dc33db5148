//! Filters of system calls, and security modules.

use super::absent;
use super::finding::Area::Security;
use super::finding::Report;
use crate::error::{Os, Result};
use crate::init::seccomp;
use crate::sys::lsm::{Lsm, enabled};
use crate::sys::{probe, seccomp as filter};

/// Of the modules that run.
const MODULES: &str = "/sys/kernel/security/lsm";

/// Looks at them.
pub fn look(report: &mut Report) {
    let library = format!("libseccomp {}", seccomp::library_version());
    let action = |action: u32| probe::seccomp_action(action);
    let cost = "linux.seccomp is refused, which clients ask for by default";
    report.want(Security, "seccomp filters", action(libc::SECCOMP_RET_KILL_PROCESS).map(|()| library), cost);
    let cost = "profiles with SCMP_ACT_NOTIFY are refused";
    report.want(Security, "seccomp notify", action(libc::SECCOMP_RET_USER_NOTIF).map(|()| ""), cost);
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let wait = if filter::knows(flags as u32) { Ok("") } else { Err(absent("Linux 5.19 has it")) };
    let cost = "profiles with SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV are refused";
    report.want(Security, "seccomp wait killable", wait, cost);
    for (lsm, cost) in [
        (Lsm::AppArmor, "process.apparmorProfile is refused: no profile confines containers"),
        (Lsm::SeLinux, "process.selinuxLabel and linux.mountLabel are refused: no label confines containers"),
    ] {
        let found = if enabled(lsm) { Ok("") } else { Err(absent("not enabled")) };
        report.want(Security, lsm.name(), found, cost);
    }
    let cost = "programs of that kind, as of tools that watch containers, cannot be loaded; dray has none";
    report.want(Security, "BPF LSM", bpf(), cost);
}

fn bpf() -> Result<String> {
    let modules = std::fs::read_to_string(MODULES).os(|| format!("read {MODULES}"))?;
    match modules.trim().split(',').any(|module| module == "bpf") {
        true => Ok(String::new()),
        false => Err(absent(format!("the modules are {}", modules.trim()))),
    }
}
