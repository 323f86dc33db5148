//! What a process of a container keeps of the shim's memory when it has done all that takes the specification: what is
//! left to do on the way to execve(2), which may be hours away, takes no more than this, nor any descriptor but these.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::AsFd;

use crate::error::Result;
use crate::sys::cred::Capabilities;
use crate::sys::fork::Birth;
use crate::sys::sched::Attributes;
use crate::sys::seccomp::Filter;
use crate::sys::stamps::Stamper;
use crate::sys::{exec, fd, memory};

use super::identity_plan::Rlimit;
use super::plan::{Hooks, Streams, Work};
use super::steps::{self, Born, LastStep};
use super::sync::{ChildEnd, Hold};
use super::{guarded, home, identity, seccomp, treatment};

/// A process of a container that has forgotten the rest.
pub struct Kept {
    /// The steps that are left, each part with the number of its first.
    pub steps: [(usize, &'static [LastStep]); 2],
    /// How it was born.
    pub birth: Birth,
    /// The way to the shim.
    pub sync: ChildEnd,
    /// Where it leaves the moments of its steps, as long as its seccomp filter lets it look at a clock.
    pub stamper: Cell<Stamper>,
    /// It is to be born anew, in the container's pid namespace.
    pub hops: bool,
    /// What a created init waits for.
    pub hold: Hold,
    /// The hooks of start.
    pub hooks: Option<Hooks>,
    /// Its scheduler, where that is set last.
    pub scheduler: Option<Attributes>,
    /// Its resource limits.
    pub limits: Vec<Rlimit>,
    /// How many descriptors behind 0 to 2 it is handed.
    pub handed: u32,
    /// Its stdin is its terminal.
    pub terminal: bool,
    /// The program's path, from `finding the program` on.
    pub program: CString,
    /// Its arguments.
    pub args: Vec<CString>,
    /// Its environment.
    pub env: Vec<CString>,
    /// `HOME=...` where that has none.
    pub home: Option<CString>,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// PR_SET_NO_NEW_PRIVS was set.
    pub no_new_privileges: bool,
    /// Its seccomp filter.
    pub seccomp: Option<Filter>,
    /// That is loaded before the hop.
    pub filter_early: bool,
}

impl Kept {
    /// Copies, of all but the descriptors.
    fn of(born: &Born<'_>) -> Self {
        let process = &born.plan.process;
        Self {
            steps: steps::left(born.plan),
            birth: born.birth,
            hops: born.plan.hops(),
            sync: born.sync.same(),
            stamper: Cell::new(born.stamper),
            hold: born.plan.hold.same(),
            hooks: match &born.plan.work {
                Work::Create(create) => create.hooks.as_ref().map(Hooks::of_start),
                Work::Exec(_) => None,
            },
            scheduler: treatment::last(born.plan).copied(),
            limits: process.rlimits.clone(),
            handed: process.handed,
            terminal: matches!(born.plan.streams, Streams::Terminal(_)),
            program: born.program.clone(),
            args: process.args.clone(),
            env: process.env.clone(),
            home: born.home.clone(),
            capabilities: process.capabilities,
            no_new_privileges: process.no_new_privileges,
            seccomp: born.plan.seccomp.as_deref().cloned(),
            filter_early: seccomp::is_early(born.plan),
        }
    }
}

/// Forgets everything else, does the steps that are left and becomes the program.
///
/// # Errors
/// Without memory for the copies. What fails later is told by what is kept.
pub fn go_on(born: &Born<'_>) -> Result<Infallible> {
    // The shim's is in what is forgotten.
    std::panic::set_hook(Box::new(|_| ()));
    memory::keep_only(|| Kept::of(born), run)
}

/// What the set-up had open, ways to change its cgroups and the host's files among it, is not for who can come near it now. Its
/// owners are among what is forgotten.
fn close_the_rest(kept: &Kept) -> Result<()> {
    let hold = match &kept.hold {
        Hold::Socket => None,
        Hold::Fifo(fifo) => Some(fifo.as_fd()),
    };
    let keep: Vec<_> = hold.into_iter().chain([kept.sync.as_fd()]).collect();
    fd::close_all_behind(kept.handed, &keep)
}

fn run(mut kept: Kept) -> Infallible {
    let sync = kept.sync.same();
    guarded(&sync, |at| {
        *at = steps::FORGETTING;
        close_the_rest(&kept)?;
        for (number, LastStep(name, step)) in kept.steps.into_iter().flat_map(|(first, steps)| (first..).zip(steps)) {
            *at = name;
            kept.stamper.get().stamp(number);
            step(&mut kept)?;
        }
        *at = steps::EXECUTING;
        kept.stamper.get().stamp(steps::EXECUTING_AT);
        let env = home::environment(&kept.env, kept.home.take());
        exec::execve(&kept.program, &kept.args, &env).map_err(|e| identity::exec_error(&kept.args[0], e))
    })
}
