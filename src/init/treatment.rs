//! How the kernel is to treat a process: scheduler, disk priority, CPUs, memory, personality, labels.

use oci_spec::runtime::{Linux, Process};

use crate::error::{Context, Kind, Result};
use crate::spec::memory_policy::{self, MemoryPolicy};
use crate::spec::scheduling;
use crate::sys::cred::{self, Capabilities};
use crate::sys::lsm;
use crate::sys::sched::{self, Attributes};

use super::kept::Kept;
use super::label::Labels;
use super::plan::Plan;
use super::steps::Born;

/// What is asked for; `None` leaves a thing as it is inherited, which is the shim's.
#[derive(Clone, Debug, Default)]
pub struct Treatment {
    /// Scheduling policy and its attributes.
    pub scheduler: Option<Attributes>,
    /// Priority at block devices.
    pub io_priority: Option<u16>,
    /// CPUs of an exec before it is in the container's cgroups, as a mask.
    pub initial_cpus: Option<Vec<u64>>,
    /// The same after.
    pub final_cpus: Option<Vec<u64>>,
    /// Execution domain.
    pub personality: Option<u32>,
    /// Nodes of memory.
    pub memory: Option<MemoryPolicy>,
    /// Security labels.
    pub labels: Labels,
}

impl Treatment {
    /// Of a validated process and, for a container's first, what its `linux` says of all its processes.
    pub fn of(process: &Process, linux: Option<&Linux>) -> Result<Self> {
        let scheduler = process.scheduler().as_ref().map(scheduling::scheduler).transpose()?;
        let [initial_cpus, final_cpus] =
            process.exec_cpu_affinity().as_ref().map(scheduling::affinity).transpose()?.unwrap_or_default();
        let memory = linux.and_then(|linux| linux.memory_policy().as_ref());
        let personality = linux.and_then(|linux| linux.personality().as_ref());
        Ok(Self {
            scheduler: scheduler.map(|s| Attributes {
                policy: s.policy,
                flags: s.flags,
                nice: s.nice,
                priority: s.priority,
                runtime: s.runtime,
                deadline: s.deadline,
                period: s.period,
            }),
            io_priority: process.io_priority().as_ref().map(scheduling::io_priority).transpose()?,
            initial_cpus,
            final_cpus,
            personality: personality.map(scheduling::personality).transpose()?,
            memory: memory.map(memory_policy::memory_policy).transpose()?,
            labels: Labels::of(process, lsm::enabled)?,
        })
    }

    /// With the container's for what an exec's own document does not say, as runc has it.
    pub fn or(self, container: &Self) -> Self {
        // One of the two given is all that is asked for.
        let none = self.initial_cpus.is_none() && self.final_cpus.is_none();
        let cpus = |own, container: &Option<Vec<u64>>| if none { container.clone() } else { own };
        Self {
            scheduler: self.scheduler.or(container.scheduler),
            io_priority: self.io_priority.or(container.io_priority),
            initial_cpus: cpus(self.initial_cpus, &container.initial_cpus),
            final_cpus: cpus(self.final_cpus, &container.final_cpus),
            personality: self.personality.or(container.personality),
            memory: self.memory.or_else(|| container.memory.clone()),
            labels: self.labels.or(&container.labels),
        }
    }
}

/// The CPUs of an exec that is not in the container's cgroups yet.
pub fn initial_cpus(born: &mut Born<'_>) -> Result<()> {
    set_cpus(born.plan.process.treatment.initial_cpus.as_deref(), "process.execCPUAffinity.initial")
}

/// The CPUs of an exec that is in them.
pub fn final_cpus(born: &mut Born<'_>) -> Result<()> {
    set_cpus(born.plan.process.treatment.final_cpus.as_deref(), "process.execCPUAffinity.final")
}

fn set_cpus(mask: Option<&[u64]>, field: &str) -> Result<()> {
    let Some(mask) = mask else { return Ok(()) };
    sched::set_affinity(mask).context(|| field).map_err(|e| match e.errno() {
        // None of them is there for it.
        Some(libc::EINVAL) => e.with_kind(Kind::InvalidArgument),
        _ => e,
    })
}

/// The field, with what else the kernel asks for, since its EPERM does not tell.
fn scheduler_hint(policy: u32) -> &'static str {
    match policy {
        1 | 2 => "process.scheduler (which, in a cgroup of the cpu controller, may need resources.cpu.realtimeRuntime)",
        6 => "process.scheduler (which needs all CPUs: no resources.cpu.cpus, nor an affinity)",
        _ => "process.scheduler",
    }
}

fn set_scheduler(attributes: &Attributes) -> Result<()> {
    sched::set_attributes(attributes).context(|| scheduler_hint(attributes.policy))
}

/// The scheduler of a process that hops, where it would not go with it: one of SCHED_DEADLINE has no children, and one may
/// be asked for that they do not inherit (sched(7)).
pub fn last(plan: &Plan) -> Option<&Attributes> {
    const SCHED_DEADLINE: u32 = 6;
    const SCHED_FLAG_RESET_ON_FORK: u64 = 1;
    let alone = |s: &&Attributes| s.policy == SCHED_DEADLINE || s.flags & SCHED_FLAG_RESET_ON_FORK != 0;
    plan.process.treatment.scheduler.as_ref().filter(|_| plan.hops()).filter(alone)
}

/// The capability that it may take to set that one.
pub fn needed(plan: &Plan) -> u64 {
    if last(plan).is_some() { cred::SYS_NICE } else { 0 }
}

/// Sets it, and gives the capability back.
pub fn apply_last(kept: &mut Kept) -> Result<()> {
    let Some(attributes) = &kept.scheduler else { return Ok(()) };
    let own = cred::permitted()?;
    let sets = |permitted, more| Capabilities {
        permitted,
        effective: kept.capabilities.effective | more,
        ..kept.capabilities
    };
    cred::capset(&sets(own, cred::SYS_NICE))?;
    set_scheduler(attributes)?;
    cred::capset(&sets(own & (!cred::SYS_NICE | kept.capabilities.permitted), 0))
}

/// The rest, while it may still be raised.
pub fn apply(born: &mut Born<'_>) -> Result<()> {
    let treatment = &born.plan.process.treatment;
    if let Some(attributes) = treatment.scheduler.as_ref().filter(|_| last(born.plan).is_none()) {
        set_scheduler(attributes)?;
    }
    if let Some(priority) = treatment.io_priority {
        sched::set_io_priority(priority).context(|| "process.ioPriority")?;
    }
    if let Some(policy) = &treatment.memory {
        sched::set_memory_policy(policy.mode, &policy.nodes).context(|| "linux.memoryPolicy").map_err(|e| {
            match e.errno() {
                Some(libc::EINVAL) => e.with_kind(Kind::InvalidArgument),
                _ => e,
            }
        })?;
    }
    treatment.personality.map_or(Ok(()), sched::set_personality)
}
