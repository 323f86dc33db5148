//! A user namespace's ids, from outside of it (user_namespaces(7)).

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags, open};

use crate::error::{Error, Os, Result};

use super::fork::{IN_REACH_BOUND, end, exit_now, fork};
use super::ns::{self, Namespace};
use super::{cred, fd};

/// What this process's own user namespace leaves it. All that anything here does differently for one that is rootless
/// follows from this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// It is root of a user namespace alone, and not of the host, for not all ids are mapped: with every capability over what
    /// is the namespace's, and none over anything else.
    pub rootless: bool,
    /// The groups of a process are what they are and cannot be set (user_namespaces(7), "The /proc/PID/setgroups file"):
    /// nobody had the right to give the namespace more than its maker's group.
    pub denies_groups: bool,
}

/// Looks at the user namespace that this process is in.
///
/// # Errors
/// When /proc is not mounted.
pub fn own() -> Result<Own> {
    let read = |path: &str| std::fs::read_to_string(path).os(|| format!("read {path}"));
    let rootless = !is_whole(&read("/proc/self/uid_map")?);
    Ok(Own { rootless, denies_groups: rootless && read("/proc/self/setgroups")?.trim_end() == "deny" })
}

/// The map of the initial user namespace, in which each id is itself, or one like it.
fn is_whole(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// The texts of uid_map and gid_map of the namespace, with ids as our own sees them.
///
/// The kernel shows them of a process alone: a child enters it, and ends once they have been read.
///
/// # Errors
/// What setns(2) says.
pub fn maps(namespace: BorrowedFd<'_>) -> Result<[String; 2]> {
    let (mut ours, theirs) = UnixStream::pair().os(|| "socketpair")?;
    ours.set_read_timeout(Some(IN_REACH_BOUND)).os(|| "setsockopt SO_RCVTIMEO")?;
    let child = fork(0, None, None, |_| {
        let entered =
            fd::close_all_but(&[namespace, theirs.as_fd()]).and_then(|()| ns::enter(namespace, Namespace::User));
        let errno = entered.map_or_else(|e| e.errno().unwrap_or(libc::EIO), |()| 0);
        let _ = (&theirs).write_all(&errno.to_le_bytes());
        let _ = (&theirs).read(&mut [0]);
        exit_now(0)
    })?;
    drop(theirs);
    let mut read = || {
        let mut errno = [0; 4];
        ours.read_exact(&mut errno).os(|| "read from the process that joins a user namespace")?;
        match i32::from_le_bytes(errno) {
            0 => {}
            errno => return Err(Error::os(errno, "setns user")),
        }
        let map = |file: &str| {
            let path = format!("/proc/{}/{file}", child.pid);
            std::fs::read_to_string(&path).os(|| format!("read {path}"))
        };
        Ok([map("uid_map")?, map("gid_map")?])
    };
    let maps = read();
    end(&child)?;
    maps
}

/// A new user namespace with these maps (`inside outside count`, a line each). Nobody is in it.
///
/// # Errors
/// EINVAL and EPERM for maps that the kernel does not take; ENOSPC where there are too many user namespaces.
pub fn with_maps(uids: &str, gids: &str) -> Result<OwnedFd> {
    let us = rustix::process::getpid();
    let child = fork(libc::CLONE_NEWUSER as u64, None, None, |_| {
        while matches!(cred::die_with(us), Ok(true)) {
            nix::unistd::pause();
        }
        exit_now(0)
    })?;
    let path = format!("/proc/{}/ns/user", child.pid);
    let opened = write_maps(child.pid.unsigned_abs(), uids, gids)
        .and_then(|()| open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).os(|| format!("open {path}")));
    end(&child)?;
    opened
}

/// Gives the new user namespace of process `pid` its maps. Each can be written once, and at once only.
///
/// # Errors
/// EPERM without CAP_SETUID and CAP_SETGID over all the host's ids.
pub fn write_maps(pid: u32, uids: &str, gids: &str) -> Result<()> {
    for (file, text) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{pid}/{file}");
        let map = open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).os(|| format!("open {path}"))?;
        let written = rustix::io::write(&map, text.as_bytes());
        written.os(|| format!("write {} to {path}", text.trim_end().replace('\n', ", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_all_ids_onto_themselves_is_no_confinement() {
        assert!(is_whole("         0          0 4294967295\n"));
        for map in
            ["", "0 1000 1\n", "0 1000 1\n1 100000 65536\n", "0 0 65536\n", "0 1 4294967295\n", "0 0 4294967295 \n 1"]
        {
            assert!(!is_whole(map), "{map:?}");
        }
    }

    /// The tests run as the host's root.
    #[test]
    fn the_hosts_root_is_not_rootless() {
        assert_eq!(own().unwrap(), Own::default());
    }
}
