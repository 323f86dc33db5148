//! What this process may do: as whom it runs, and by which capabilities.

use super::absent;
use super::finding::Area::Privileges;
use super::finding::Report;
use crate::error::Result;
use crate::spec::capabilities::CAPABILITIES;
use crate::sys::{cred, userns};

/// Without these no container is made of what clients ask for by default.
const NEEDED: [(&str, &str); 6] = [
    ("CAP_SYS_ADMIN", "nothing can be mounted, and no namespace made"),
    ("CAP_SYS_CHROOT", "the mount namespaces of containers cannot be entered"),
    ("CAP_SETGID", "processes cannot be given their groups"),
    ("CAP_SETPCAP", "capabilities cannot be taken away from a container"),
    ("CAP_MKNOD", "the devices that every container has cannot be made"),
    ("CAP_NET_ADMIN", "containers with a network of their own, in which lo is to be up, fail"),
];

/// What others are used for, besides being given to containers.
const USED: [(&str, &str); 8] = [
    (
        "CAP_SYS_RESOURCE",
        "a specification that raises a hard limit (process.rlimits) or lowers an OOM score is refused",
    ),
    ("CAP_SETUID", "processes of other users than root fail"),
    ("CAP_KILL", "processes of other users cannot be signalled"),
    ("CAP_CHOWN", "output and terminals cannot be given to users other than root"),
    (
        "CAP_DAC_OVERRIDE",
        "directories that nobody may write to cannot be used, as the roots of v1's cgroup hierarchies are",
    ),
    ("CAP_SYS_PTRACE", "processes of other users cannot be looked at"),
    ("CAP_SYS_NICE", "process.scheduler and process.ioPriority are refused where they ask for more than the usual"),
    ("CAP_BPF", "device rules of cgroup v2 need CAP_SYS_ADMIN in its place"),
];

/// Looks at this process.
pub fn look(report: &mut Report) {
    let cost =
        "cgroups, devices and ids of the host are out of reach: containers run without what they would need them for";
    report.want(Privileges, "root of the host", root(), cost);
    let effective = rustix::thread::capabilities(None).map_or(0, |sets| sets.effective.bits());
    for (number, capability) in CAPABILITIES.iter().enumerate() {
        let name = format!("CAP_{capability}");
        let has = match effective & (1 << number) != 0 {
            true => Ok(""),
            false => Err(absent("not in the effective set")),
        };
        let cost = |rows: &[(&str, &'static str)]| rows.iter().find(|(row, _)| *row == name).map(|(_, cost)| *cost);
        if let Some(cost) = cost(&NEEDED) {
            report.need(Privileges, &name, has, cost);
        } else if has.is_err() || cost(&USED).is_some() {
            report.want(
                Privileges,
                &name,
                has,
                cost(&USED).unwrap_or("no container can have it: it runs without, and the log says so"),
            );
        }
    }
}

fn root() -> Result<String> {
    let uid = rustix::process::geteuid().as_raw();
    match userns::own()?.rootless {
        true => Err(absent(format!("uid {uid} of a user namespace"))),
        false if uid != 0 => Err(absent(format!("uid {uid}"))),
        false => cred::permitted().map(|_| String::new()),
    }
}
