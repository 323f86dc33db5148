//! Making a process of a container: the plan, the fork, and what the child does until it becomes the program.
//!
//! [`plan`] turns a specification into values that the child needs no thought to carry out; [`spawn`] forks;
//! [`steps`] is the order of things on one screen; [`kept`] is what is left of the shim in its last part; [`sync`] is how the
//! two sides talk. What runs after the fork is
//! straight-line code on prepared data: it cannot import tokio, log or the engine (`scripts/check` sees to that).
//!
//! The namespaces other than the pid namespace and the user namespace, which owns it, are made by unshare(2) in the child rather than by flags of clone3: a
//! network namespace alone costs the kernel a good part of a millisecond, which would be spent in the parent's clone
//! call, with every other container of the pod waiting. In the child it runs beside the parent.

mod cgroup_mounts;
pub mod console;
pub mod copy_up;
pub mod devices;
pub mod home;
pub mod hooks;
pub mod identity;
pub mod identity_plan;
pub mod kept;
pub mod label;
pub mod mask;
pub mod mounts;
pub mod namespaces;
pub mod net_devices;
pub mod plan;
pub mod rootfs;
pub mod seccomp;
pub mod sources;
pub mod steps;
pub mod sync;
pub mod sysctl;
pub mod treatment;

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Kind, Result};
use crate::sys::fork::{self, Child, exit_now};
use crate::sys::ns::{Birthplace, NewTime};
use crate::sys::stamps::{Stamper, Stamps};
use plan::Plan;
use sync::{ChildEnd, ParentEnd};

/// The exit status of a child that could not become its program. Its error record says why.
const FAILED: i32 = 1;

/// Forks the process that `plan` describes. It waits for [`ParentEnd::go`] before anything that the parent has a part in.
///
/// `place` is where it is born: a pid namespace that an init joins. `stamps` is where it leaves the moments at which it begins
/// each of its steps, under the step's number ([`steps::name`]).
///
/// # Errors
/// What the fork says; `FailedPrecondition` when the pid namespace is dead, that is when its init has exited.
pub fn spawn(
    plan: &Plan,
    place: Option<Birthplace<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
    stamps: Option<&Stamps>,
) -> Result<(Child, ParentEnd)> {
    let (parent, child) = sync::pair()?;
    let run = |birth| {
        let stamper = stamps.map_or(Stamper::none(), Stamps::in_child);
        guarded(&child, |at| steps::run(plan, &child, birth, stamper, at))
    };
    // Dropped by the parent alone: the child does not return.
    let (inside, time) = (plan.born_inside(), plan.time_offsets());
    let (of_helper, of_parent) = if inside.is_some() && plan.is_rootless() { (time, None) } else { (None, time) };
    let _time = of_parent.map(NewTime::with).transpose()?;
    let born = match inside {
        Some(joined) => fork::fork_inside(joined, of_helper, plan.clone_flags(), cgroup, run),
        None => fork::fork(plan.clone_flags(), place, cgroup, run),
    };
    match born {
        Ok(child) => Ok((child, parent)),
        Err(e) if place.is_some() => Err(namespaces::init_has_exited(e)),
        Err(e) => Err(e),
    }
}

/// Does `body`, which says what it is at. Its error goes to the parent as a record; nothing returns or unwinds from here.
fn guarded(sync: &ChildEnd, body: impl FnOnce(&mut &'static str) -> Result<Infallible>) -> Infallible {
    let mut at = "being born";
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&mut at)));
    let error = match outcome {
        Ok(Err(error)) => error,
        Ok(Ok(never)) => match never {},
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Error::new(Kind::Internal, format!("panic: {text}"))
        }
    };
    sync.fail(at, &error);
    exit_now(FAILED)
}

/// The descriptors that the child keeps.
fn kept<'a>(plan: &'a Plan, sync: &'a ChildEnd) -> Vec<BorrowedFd<'a>> {
    let mut keep = plan.descriptors();
    keep.push(sync.as_fd());
    keep
}
