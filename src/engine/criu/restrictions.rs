//! What restricts a container's processes, when they come back: CRIU makes them of the images alone, and not every version of
//! it knows everything that the specification asks for.

use crate::error::{Error, Kind, Os, Result};
use crate::init::plan::Process;
use crate::sys::cred;

/// Of a container's init.
pub(in crate::engine) struct Restrictions {
    no_new_privileges: bool,
    /// Capabilities that it may have, at most.
    bounding: u64,
    /// It is under a seccomp profile.
    filtered: bool,
    /// It has a session keyring of its own.
    session_keyring: bool,
}

impl Restrictions {
    /// Of one that is planned like this.
    pub fn of(process: &Process, filtered: bool) -> Self {
        let &Process { no_new_privileges, ref capabilities, session_keyring, .. } = process;
        Self { no_new_privileges, bounding: capabilities.bounding, filtered, session_keyring }
    }

    /// In CRIU's own process, before it is executed: what everything inherits that it makes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn impose(&self) -> Result<()> {
        if self.session_keyring {
            cred::new_session_keyring()?;
        }
        // Before 3.19 CRIU knows nothing of it (checkpoint-restore/criu pull request 2228).
        if self.no_new_privileges { cred::no_new_privileges() } else { Ok(()) }
    }

    /// Looks at a process that CRIU has made and still holds.
    ///
    /// # Errors
    /// `FailedPrecondition` for one that is less restricted than its specification has it.
    pub fn check(&self, pid: i32) -> Result<()> {
        let path = format!("/proc/{pid}/status");
        self.check_status(&std::fs::read_to_string(&path).os(|| format!("read {path}"))?)
    }

    /// The same by the text of /proc/PID/status (proc(5)).
    fn check_status(&self, status: &str) -> Result<()> {
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(str::trim).unwrap_or_default()
        };
        let lacks = |what: &str| {
            let text = format!("what has been restored is less restricted than the specification has it: {what}");
            Err(Error::new(Kind::FailedPrecondition, text))
        };
        if self.no_new_privileges && field("NoNewPrivs") != "1" {
            return lacks("process.noNewPrivileges");
        }
        // SECCOMP_MODE_FILTER.
        if self.filtered && field("Seccomp") != "2" {
            return lacks("linux.seccomp");
        }
        match u64::from_str_radix(field("CapBnd"), 16) {
            Ok(bounding) if bounding & !self.bounding == 0 => Ok(()),
            _ => lacks("process.capabilities.bounding"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_less_restricted_is_named() {
        let restrictions =
            Restrictions { no_new_privileges: true, bounding: 0b101, filtered: true, session_keyring: true };
        let status = |nnp, seccomp, bounding| {
            format!(
                "Name:\tx\nCapEff:\tffff\nCapBnd:\t{bounding}\nNoNewPrivs:\t{nnp}\nSeccomp:\t{seccomp}\nSeccomp_filters:\t2\n"
            )
        };
        let check = |status: &str| restrictions.check_status(status).map_err(|e| e.to_string());
        for bounding in ["0000000000000005", "0000000000000001", "0000000000000000"] {
            check(&status(1, 2, bounding)).unwrap();
        }
        for (status, word) in [
            (status(0, 2, "5"), "noNewPrivileges"),
            (status(1, 0, "5"), "seccomp"),
            (status(1, 2, "7"), "bounding"),
            (status(1, 2, "none"), "bounding"),
            (String::new(), "noNewPrivileges"),
        ] {
            let said = check(&status).unwrap_err();
            assert!(said.contains(word), "{status:?}: {said}");
        }
        // Nothing is asked for.
        let restrictions =
            Restrictions { no_new_privileges: false, bounding: u64::MAX, filtered: false, session_keyring: false };
        restrictions.check_status(&status(0, 0, "ffff")).unwrap();
    }
}
