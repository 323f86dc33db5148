//! Entering cgroups and namespaces, joined or new, and what a new one needs before it is of use.

use crate::error::{Error, Kind, Os, Result};
use crate::sys::fork;
use crate::sys::ns::Namespace;
use crate::sys::{cred, net, ns};

use super::kept::Kept;
use super::plan::Work;
use super::steps::Born;

/// Moves into the container's cgroups, by the files that the parent opened.
///
/// "0" is the writer itself. Into v1's `tasks` a single-threaded process moves without the grace period that every other
/// migration waits for (10 ms on an idle host). The unified directory is skipped where the process was born in it.
pub fn join_cgroups(born: &mut Born<'_>) -> Result<()> {
    for (name, file) in &born.plan.cgroup_files {
        if name == UNIFIED && born.birth.in_cgroup {
            continue;
        }
        write_into(name, std::os::fd::AsFd::as_fd(file))?;
    }
    Ok(())
}

/// Moves the calling process into the cgroup whose file of tasks or processes this is.
pub fn write_into(name: &str, file: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    rustix::io::write(file, b"0").map(drop).os(|| format!("write 0 to {name}"))
}

/// The name under which a plan's list holds the cgroup v2 directory's `cgroup.procs`, if it does.
pub const UNIFIED: &str = "unified";

/// Joins the namespaces that the specification names by path.
pub fn join(born: &mut Born<'_>) -> Result<()> {
    let Work::Create(create) = &born.plan.work else { return Ok(()) };
    if born.birth.joined {
        return Ok(());
    }
    for (kind, fd) in &create.joined {
        // The parent was in the pid namespace when it cloned us; or our child is to be in it.
        if *kind != Namespace::Pid || born.plan.hops() {
            ns::enter(std::os::fd::AsFd::as_fd(fd), *kind)?;
        }
    }
    Ok(())
}

/// Makes the new ones, in one call.
pub fn make(born: &mut Born<'_>) -> Result<()> {
    let Work::Create(create) = &born.plan.work else { return Ok(()) };
    // It was born in those.
    let made = |kind: &&Namespace| !matches!(kind, Namespace::Pid | Namespace::User | Namespace::Time);
    let flags = create.new.iter().filter(made).fold(0, |bits, kind| bits | kind.flag());
    if flags == 0 { Ok(()) } else { ns::unshare(flags) }
}

/// Enters the namespaces in which the container is not the host, but for the user namespace. The pid namespace is its
/// children's.
pub fn enter_container(born: &mut Born<'_>) -> Result<()> {
    let Work::Exec(exec) = &born.plan.work else { return Ok(()) };
    match exec.namespaces & !Namespace::User.flag() {
        0 => Ok(()),
        flags => ns::enter_process(std::os::fd::AsFd::as_fd(&exec.init), flags).map_err(init_has_exited),
    }
}

/// The process is born anew, in the container's pid namespace: the last that is done outside of it.
pub fn hop(kept: &mut Kept) -> Result<()> {
    match kept.hops {
        false => Ok(()),
        true => fork::hop(kept.birth, |child| kept.sync.born(child)).map_err(|e| match e.errno() {
            // For a moment there are two.
            Some(libc::EAGAIN) => e.context("the container's limit of processes leaves no room"),
            _ => init_has_exited(e),
        }),
    }
}

/// Says what it means that a process is not there (setns(2)), or that its pid namespace takes no other (clone(2)).
pub(super) fn init_has_exited(error: Error) -> Error {
    match error.errno() {
        Some(libc::ESRCH | libc::ENOMEM) => {
            error.with_kind(Kind::FailedPrecondition).context("the init of the pid namespace has exited")
        }
        _ => error,
    }
}

/// Becomes root of the user namespace that it was born in or has joined. Until then it is the host's root there, who is
/// nobody, with every capability in the namespace and none outside.
pub fn become_root(born: &mut Born<'_>) -> Result<()> {
    match &born.plan.work {
        Work::Create(create) if create.in_user_namespace() => be_root(born),
        _ => Ok(()),
    }
}

/// Enters the container's user namespace, where it has one, as its root.
pub fn enter_user(born: &mut Born<'_>) -> Result<()> {
    let Work::Exec(exec) = &born.plan.work else { return Ok(()) };
    match exec.namespaces & Namespace::User.flag() {
        0 => Ok(()),
        flag => {
            ns::enter_process(std::os::fd::AsFd::as_fd(&exec.init), flag)?;
            be_root(born)
        }
    }
}

fn be_root(born: &Born<'_>) -> Result<()> {
    // A user namespace below one that denies it denies it too.
    cred::set_ids(0, 0, born.plan.process.groups.as_ref().map(|_| [].as_slice()))?;
    // Changing ids undid both (prctl(2)). We are still a copy of the shim (CVE-2016-9962).
    cred::not_dumpable()?;
    cred::die_with_parent(true)
}

/// A new network namespace has its loopback interface down.
pub fn loopback(born: &mut Born<'_>) -> Result<()> {
    match &born.plan.work {
        Work::Create(create) if create.new.contains(&Namespace::Network) => net::loopback_up(),
        _ => Ok(()),
    }
}

/// Waits until the shim has moved the host's network devices in.
pub fn devices(born: &mut Born<'_>) -> Result<()> {
    match &born.plan.work {
        Work::Create(create) if !create.net_devices.is_empty() => born.sync.wait_for_devices(),
        _ => Ok(()),
    }
}

/// sethostname(2), in the container's own uts namespace (validation sees to that).
pub fn hostname(born: &mut Born<'_>) -> Result<()> {
    match &born.plan.work {
        Work::Create(create) => match &create.hostname {
            Some(name) => nix::unistd::sethostname(name).map_err(|e| Error::os(e, format!("sethostname {name}"))),
            None => Ok(()),
        },
        Work::Exec(_) => Ok(()),
    }
}

/// setdomainname(2), the same.
pub fn domainname(born: &mut Born<'_>) -> Result<()> {
    match &born.plan.work {
        Work::Create(create) => match create.domainname.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => rustix::system::setdomainname(name.as_bytes()).os(|| format!("setdomainname {name}")),
            None => Ok(()),
        },
        Work::Exec(_) => Ok(()),
    }
}
