//! Capabilities and resource limits, from the specification's names to the kernel's numbers.

use oci_spec::runtime::{Capabilities as Names, LinuxCapabilities, PosixRlimit, PosixRlimitType};

use crate::spec::capabilities;
use crate::sys::cred::Capabilities;

/// A resource limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// RLIMIT_* of setrlimit(2).
    pub resource: u32,
    /// Its name, for errors.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// The sets as bits; a set that is absent is empty. Nothing is inheritable by default (CVE-2022-29162).
pub fn capabilities(spec: Option<&LinuxCapabilities>) -> Capabilities {
    let Some(spec) = spec else { return Capabilities::default() };
    Capabilities {
        bounding: bits(spec.bounding()),
        effective: bits(spec.effective()),
        permitted: bits(spec.permitted()),
        inheritable: bits(spec.inheritable()),
        ambient: bits(spec.ambient()),
    }
}

fn bits(names: &Option<Names>) -> u64 {
    names.iter().flatten().fold(0, |bits, name| bits | capabilities::bit(name))
}

/// The limits with the kernel's numbers.
pub fn rlimits(spec: &[PosixRlimit]) -> Vec<Rlimit> {
    let convert = |limit: &PosixRlimit| {
        let (resource, name) = resource(limit.typ());
        Rlimit { resource, name: name.to_owned(), soft: limit.soft(), hard: limit.hard() }
    };
    spec.iter().map(convert).collect()
}

fn resource(typ: PosixRlimitType) -> (u32, &'static str) {
    use PosixRlimitType::*;
    match typ {
        RlimitCpu => (libc::RLIMIT_CPU, "RLIMIT_CPU"),
        RlimitFsize => (libc::RLIMIT_FSIZE, "RLIMIT_FSIZE"),
        RlimitData => (libc::RLIMIT_DATA, "RLIMIT_DATA"),
        RlimitStack => (libc::RLIMIT_STACK, "RLIMIT_STACK"),
        RlimitCore => (libc::RLIMIT_CORE, "RLIMIT_CORE"),
        RlimitRss => (libc::RLIMIT_RSS, "RLIMIT_RSS"),
        RlimitNproc => (libc::RLIMIT_NPROC, "RLIMIT_NPROC"),
        RlimitNofile => (libc::RLIMIT_NOFILE, "RLIMIT_NOFILE"),
        RlimitMemlock => (libc::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK"),
        RlimitAs => (libc::RLIMIT_AS, "RLIMIT_AS"),
        RlimitLocks => (libc::RLIMIT_LOCKS, "RLIMIT_LOCKS"),
        RlimitSigpending => (libc::RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING"),
        RlimitMsgqueue => (libc::RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE"),
        RlimitNice => (libc::RLIMIT_NICE, "RLIMIT_NICE"),
        RlimitRtprio => (libc::RLIMIT_RTPRIO, "RLIMIT_RTPRIO"),
        RlimitRttime => (libc::RLIMIT_RTTIME, "RLIMIT_RTTIME"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// capability.h is in the order of kernel history and the crate's enum in the alphabet's: the names tell.
    #[test]
    fn capability_numbers_are_the_kernels() {
        let names: Names = serde_json::from_str(r#"["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]"#).unwrap();
        assert_eq!(bits(&Some(names)), 1 | 1 << 21 | 1 << 40);
        assert_eq!(capabilities(None), Capabilities::default());
    }
}
