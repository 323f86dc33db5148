//! The order of a container process's set-up, on one screen. Each row says why it stands where it does.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use crate::error::{Error, Kind, Result};
use crate::sys::fork::Birth;
use crate::sys::mount::Mount;
use crate::sys::path::Root;
use crate::sys::stamps::{ROOM, Stamper};
use crate::sys::{cred, fd, signal};

use super::kept::{self, Kept};
use super::plan::{Plan, Work};
use super::sources::{self, Received};
use super::sync::ChildEnd;
use super::{
    console, devices, home, hooks, identity, label, mask, mounts, namespaces, rootfs, seccomp, sysctl, treatment,
};

/// A process of a container while it is still this program.
pub struct Born<'a> {
    /// What it is to become.
    pub plan: &'a Plan,
    /// How it was born.
    pub birth: Birth,
    /// The way to the shim.
    pub sync: &'a ChildEnd,
    /// Where it leaves the moments of its steps.
    pub stamper: Stamper,
    /// The container's root file system, from `opening the rootfs` on.
    pub root: Option<Root>,
    /// Copies of the host's mounts that stay the host's peers, by the index of the mount: from `opening the rootfs` to `mounting`.
    pub shared: Vec<(usize, Mount)>,
    /// There were some: what is mounted on them now appears on the host's side too.
    pub shares: bool,
    /// What the host has opened for it, in a user namespace, from `receiving the host's sources` on.
    pub sources: Option<Received>,
    /// The slave of its terminal, where it has one, from `making the terminal` to `connecting stdio`.
    pub console: Option<OwnedFd>,
    /// `HOME=...` where the environment has none, from `finding the home directory` on.
    pub home: Option<CString>,
    /// The program's path, from `finding the program` on.
    pub program: CString,
}

/// One step: its name as errors show it, and what it does.
pub struct Step(pub &'static str, pub fn(&mut Born<'_>) -> Result<()>);

/// One step of a process that has forgotten the shim's memory ([`kept`]).
pub struct LastStep(pub &'static str, pub fn(&mut Kept) -> Result<()>);

/// The last of them, which does not return: what follows has a table of its own.
pub const FORGETTING: &str = "forgetting the shim";

/// Where a created init stands until it is started.
pub const CREATED_AND_WAITING: &str = "waiting to be started";

/// The last act of all.
pub const EXECUTING: &str = "executing the program";

const WAITING_FOR_SHIM: &str = "waiting for the shim";
const WAITING_FOR_DEVICES: &str = "waiting for network devices";
const WAITING_FOR_SOURCES: &str = "receiving the host's sources";
const WAITING_FOR_HOOKS: &str = "waiting for the shim's hooks";

/// The steps in which the child does nothing but wait for the shim.
pub const WAITS: [&str; 5] =
    [WAITING_FOR_SHIM, WAITING_FOR_DEVICES, WAITING_FOR_SOURCES, WAITING_FOR_HOOKS, CREATED_AND_WAITING];

/// The first process of a container.
pub const CREATE: &[Step] = &[
    // First act of all: until here every descriptor of the shim's is open in this process.
    Step("closing descriptors", close_descriptors),
    Step("resetting signals", |_| signal::reset()),
    // Unstarted, it must not outlive the shim. Before the first wait; lost with the ids, and set again there.
    Step("tying it to the shim", |_| cred::die_with_parent(true)),
    // Before any namespace: the host's cgroups are reached by descriptors, and a new cgroup namespace takes the cgroup
    // that we are in for its root.
    Step("joining cgroups", namespaces::join_cgroups),
    // oom_score_adj and the id maps are the parent's to write; everything above ran beside it.
    Step(WAITING_FOR_SHIM, |born| born.sync.wait_for_go()),
    Step("starting a session", start_session),
    // As the host's root, whose quota of keys is large.
    Step("making a session keyring", identity::session_keyring),
    // Joined ones first: their files were opened in the host's view.
    Step("joining namespaces", namespaces::join),
    // What it makes from here on is its user namespace's and owned by the root there, whom the maps have made possible.
    Step("becoming root of the user namespace", namespaces::become_root),
    Step("making namespaces", namespaces::make),
    Step("bringing up the loopback interface", namespaces::loopback),
    // The shim moves them, from where they are. Before the kernel parameters, some of which are theirs.
    Step(WAITING_FOR_DEVICES, namespaces::devices),
    Step("setting the host name", namespaces::hostname),
    Step("setting the domain name", namespaces::domainname),
    // With the capabilities over the namespaces that identity takes away, and before anything of the image's is looked at.
    Step("setting kernel parameters", sysctl::write_all),
    // Opened in the mount namespace that was made above, by one who still is root on the host.
    Step(WAITING_FOR_SOURCES, sources::receive),
    // From here to `entering the rootfs` paths are the container's, resolved in-root; sources are the host's.
    Step("opening the rootfs", rootfs::open),
    Step("mounting", mounts::mount_all),
    // After the mounts: /dev is one of them.
    Step("making devices", devices::make),
    // With the host's root still there, before anything is covered or made read-only (runtime-spec: config.md, "Prestart").
    Step(WAITING_FOR_HOOKS, hooks::wait_for_shims),
    Step("running the createContainer hooks", hooks::at_create),
    // After the devices: one that the image or the specification has at /dev/console is covered. As root, who may open
    // the pty whatever the devpts says, and before the root is the container's and its /dev read-only.
    Step("making the terminal", console::make),
    Step("making /dev read-only", devices::make_read_only),
    // After the mounts too: it may be on one.
    Step("making the working directory", rootfs::working_directory),
    // Last of what is under the root: they cover what is there by now.
    Step("making paths read-only", mask::read_only),
    Step("masking paths", mask::masked),
    Step("entering the rootfs", rootfs::enter),
    // As root, who may read what the user may not.
    Step("finding the home directory", home::find),
    // Limits may need CAP_SYS_RESOURCE, which the ids and capabilities below take away.
    Step("setting resource limits", identity::limits),
    // Above the default they need CAP_SYS_NICE. After the hooks, to which a process of SCHED_DEADLINE cannot give birth.
    Step("setting scheduling, memory policy and personality", treatment::apply),
    // While it may make the procfs to write to.
    Step("setting security labels", label::set),
    Step("changing identity", identity::change),
    // As the user that will run it, in the working directory: create fails where start would.
    Step("finding the program", identity::find_program),
    Step("connecting stdio", identity::stdio),
    // From here on it is in reach of programs of the container's: those of execs before its start, and its hooks.
    Step(FORGETTING, |born| kept::go_on(born).map(drop)),
];

/// A further process of a container.
pub const EXEC: &[Step] = &[
    Step("closing descriptors", close_descriptors),
    Step("resetting signals", |_| signal::reset()),
    Step("tying it to the shim", |_| cred::die_with_parent(true)),
    // What a process in a cpuset would not be let do before it was in it (runtime-spec: config.md, "execCPUAffinity").
    Step("setting its first CPUs", treatment::initial_cpus),
    // Before it enters anything that the container could use to stop it: limits hold from here on.
    Step("joining cgroups", namespaces::join_cgroups),
    // The cpuset has given it its own.
    Step("setting its CPUs", treatment::final_cpus),
    Step(WAITING_FOR_SHIM, |born| born.sync.wait_for_go()),
    // As the host's root, whose quota of keys is large.
    Step("making a session keyring", identity::session_keyring),
    // In the host's view, in which this process has a place in /proc. What it executes has them, by whatever hop.
    Step("setting security labels", label::set),
    // After its cgroups, which are joined in the host's view. In no pid namespace of the container's as yet: unseen there.
    Step("joining the container's namespaces", namespaces::enter_container),
    // Last of them: with the host's capabilities it could enter the others. Before the terminal, which is its root's.
    Step("joining the container's user namespace", namespaces::enter_user),
    // As root, and in the container's mount namespace: its devpts, not the host's.
    Step("making the terminal", console::make),
    Step("finding the home directory", home::find),
    Step("setting resource limits", identity::limits),
    Step("setting scheduling, memory policy and personality", treatment::apply),
    Step("changing identity", identity::change),
    Step("connecting stdio", identity::stdio),
    Step(FORGETTING, |born| kept::go_on(born).map(drop)),
];

/// The last part of who hops, and of every exec, before it is what it is to be.
///
/// Who joins a pid namespace by its path, as every exec does, is seen there by others from `being born ...` on, in reach of
/// those who have CAP_SYS_PTRACE or CAP_KILL: a process with the rights, the root and the memory that it is to have, and no
/// others. But for one: where no_new_privs is not set, a filter that cannot be loaded that early (it has a listener, or
/// forbids one of the calls that are left) is loaded with a CAP_SYS_ADMIN that is permitted until then.
const LAST: &[LastStep] = &[
    // Where it can be borne that early, and would take a capability later.
    LastStep("loading the seccomp filter", seccomp::load_filter_early),
    LastStep("being born in the container's pid namespace", namespaces::hop),
    LastStep("starting a session", |_| cred::new_session()),
    LastStep("taking control of the terminal", console::take_control),
    LastStep("setting resource limits", identity::lower_limits),
    LastStep("setting the scheduler", treatment::apply_last),
    LastStep("finding the program", identity::find_program_last),
];

/// The first process of a container, from `forgetting the shim` (and `LAST`) on.
const CREATED: &[LastStep] = &[
    // The sibling of who hopped is not, as yet.
    LastStep("tying it to the shim", |_| cred::die_with_parent(true)),
    LastStep(CREATED_AND_WAITING, |kept| kept.sync.ready(&kept.hold)),
    // As its user, as with runc; the shim's death ends it still.
    LastStep("running the startContainer hooks", hooks::at_start),
    // It lives by itself now. Also the last defence: nothing of ours survives the execve but 0, 1, 2.
    LastStep("leaving the shim", leave),
    // The filter judges every call after it, and need not know ours.
    LastStep("loading the seccomp filter", |kept| seccomp::load_filter(kept)),
];

/// A further process of a container, from `forgetting the shim` and `LAST` on.
const JOINED: &[LastStep] = &[
    LastStep("leaving the shim", leave),
    // The filter judges every call after it, and need not know ours.
    LastStep("loading the seccomp filter", |kept| seccomp::load_filter(kept)),
];

/// What is left to be done after `forgetting the shim`, each part with the number of its first step.
pub fn left(plan: &Plan) -> [(usize, &'static [LastStep]); 2] {
    let last = if plan.has_last_part() { LAST } else { &[] };
    match plan.work {
        Work::Create(_) => [(LAST_AT, last), (CREATED_AT, CREATED)],
        Work::Exec(_) => [(LAST_AT, last), (JOINED_AT, JOINED)],
    }
}

// The rows of all tables are numbered through, in an order in which no process comes from one to an earlier one.
const EXEC_AT: usize = CREATE.len();
const LAST_AT: usize = EXEC_AT + EXEC.len();
const CREATED_AT: usize = LAST_AT + LAST.len();
const JOINED_AT: usize = CREATED_AT + CREATED.len();

/// The number of the execve.
pub const EXECUTING_AT: usize = JOINED_AT + JOINED.len();

const _: () = assert!(EXECUTING_AT < ROOM);

/// The name of a step, by its number among those of all tables.
pub fn name(number: usize) -> Option<&'static str> {
    match number {
        EXECUTING_AT => Some(EXECUTING),
        JOINED_AT.. => JOINED.get(number - JOINED_AT).map(|step| step.0),
        CREATED_AT.. => CREATED.get(number - CREATED_AT).map(|step| step.0),
        LAST_AT.. => LAST.get(number - LAST_AT).map(|step| step.0),
        EXEC_AT.. => EXEC.get(number - EXEC_AT).map(|step| step.0),
        _ => CREATE.get(number).map(|step| step.0),
    }
}

/// Does every step; the last becomes the program. `at` is the step under way, for the error's sake.
pub fn run(plan: &Plan, sync: &ChildEnd, birth: Birth, stamper: Stamper, at: &mut &'static str) -> Result<Infallible> {
    let mut born = Born {
        plan,
        birth,
        sync,
        stamper,
        root: None,
        shared: Vec::new(),
        shares: false,
        sources: None,
        console: None,
        home: None,
        program: CString::default(),
    };
    let (first, steps) = match plan.work {
        Work::Create(_) => (0, CREATE),
        Work::Exec(_) => (EXEC_AT, EXEC),
    };
    for (number, Step(name, step)) in (first..).zip(steps) {
        *at = name;
        stamper.stamp(number);
        step(&mut born)?;
    }
    Err(Error::new(Kind::Internal, "the last step returned"))
}

/// One that hops makes it at last.
fn start_session(born: &mut Born<'_>) -> Result<()> {
    if born.plan.has_last_part() { Ok(()) } else { cred::new_session() }
}

fn close_descriptors(born: &mut Born<'_>) -> Result<()> {
    fd::close_all_behind(born.plan.process.handed, &super::kept(born.plan, born.sync))
}

/// Closed rather than marked close-on-exec, which close_range(2) can do from Linux 5.11 on only. The way to the shim stays
/// open until execve, and is close-on-exec from its birth.
fn leave(kept: &mut Kept) -> Result<()> {
    cred::die_with_parent(false)?;
    fd::close_all_behind(kept.handed, &[std::os::fd::AsFd::as_fd(&kept.sync)])
}
