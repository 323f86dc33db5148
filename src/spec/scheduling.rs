//! `process.scheduler`, `process.ioPriority`, `process.execCPUAffinity` and `linux.personality`: their rules, and the
//! kernel's numbers for their words.

use super::load::RESPELLED;
use super::number_list;
use super::validate::{invalid, unsupported};
use crate::error::Result;
use oci_spec::runtime as oci;
use oci_spec::runtime::LinuxSchedulerFlag as Flag;
use oci_spec::runtime::LinuxSchedulerPolicy as Policy;

/// The policies, with linux/sched.h's numbers. That of SCHED_ISO is reserved, and no kernel has it.
const POLICIES: [(Policy, u32); 6] = [
    (Policy::SchedOther, 0),
    (Policy::SchedFifo, 1),
    (Policy::SchedRr, 2),
    (Policy::SchedBatch, 3),
    (Policy::SchedIdle, 5),
    (Policy::SchedDeadline, 6),
];

/// Their flags.
const FLAGS: [(Flag, u64); 7] = [
    (Flag::SchedResetOnFork, 0x01),
    (Flag::SchedFlagReclaim, 0x02),
    (Flag::SchedFlagDLOverrun, 0x04),
    (Flag::SchedFlagKeepPolicy, 0x08),
    (Flag::SchedFlagKeepParams, 0x10),
    (Flag::SchedFlagUtilClampMin, 0x20),
    (Flag::SchedFlagUtilClampMax, 0x40),
];

/// The classes of linux/ioprio.h.
const IO_CLASSES: [(oci::IOPriorityClass, u16); 3] = [
    (oci::IOPriorityClass::IoprioClassRt, 1),
    (oci::IOPriorityClass::IoprioClassBe, 2),
    (oci::IOPriorityClass::IoprioClassIdle, 3),
];

/// The domains, with linux/personality.h's numbers.
const DOMAINS: [(oci::LinuxPersonalityDomain, u32); 2] =
    [(oci::LinuxPersonalityDomain::PerLinux, 0), (oci::LinuxPersonalityDomain::PerLinux32, 8)];

/// The scheduling policies that there are, by name.
pub fn policies() -> impl Iterator<Item = String> {
    POLICIES.iter().map(|(policy, _)| name(policy))
}

/// Their flags, by the names that the specification has for them.
pub fn flags() -> impl Iterator<Item = String> {
    let specified = |types: String| {
        let respelled = RESPELLED.iter().find(|(_, theirs)| *theirs == types);
        respelled.map_or(types, |(ours, _)| (*ours).to_owned())
    };
    FLAGS.iter().map(move |(flag, _)| specified(name(flag)))
}

/// The classes of disk priority, by name.
pub fn io_classes() -> impl Iterator<Item = String> {
    IO_CLASSES.iter().map(|(class, _)| name(class))
}

/// The domains of a personality, by name.
pub fn domains() -> impl Iterator<Item = String> {
    DOMAINS.iter().map(|(domain, _)| name(domain))
}

/// A value's name in the specification.
fn name(value: &impl serde::Serialize) -> String {
    let name = serde_json::to_value(value).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}

/// The kernel's number for a value of `field`.
fn number<V: PartialEq + serde::Serialize, N: Copy>(field: &str, table: &[(V, N)], value: &V) -> Result<N> {
    let known = table.iter().find(|(known, _)| known == value);
    known.map(|(_, number)| *number).ok_or_else(|| unsupported(format_args!("{field}: {}", name(value))))
}

/// What sched_setattr(2) is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduler {
    /// SCHED_* of linux/sched.h.
    pub policy: u32,
    /// SCHED_FLAG_* of linux/sched.h.
    pub flags: u64,
    /// Of SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// Of SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Of SCHED_DEADLINE, in nanoseconds, and the next two.
    pub runtime: u64,
    /// When the runtime must have been had.
    pub deadline: u64,
    /// When it is to be had again; 0 is the deadline.
    pub period: u64,
}

/// The numbers, by the rules of sched(7), as runc has them too.
pub fn scheduler(scheduler: &oci::Scheduler) -> Result<Scheduler> {
    let policy = *scheduler.policy();
    let flag = |word| number("process.scheduler.flags", &FLAGS, word);
    let flags = scheduler.flags().iter().flatten().try_fold(0, |bits, word| Ok(bits | flag(word)?))?;
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(invalid(format!("process.scheduler.nice is not in -20..19: {nice}")));
    }
    let numbers = Scheduler {
        policy: number("process.scheduler.policy", &POLICIES, &policy)?,
        flags,
        nice,
        priority: priority(policy, flags & KEEP != 0, scheduler.priority().unwrap_or(0))?,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    };
    deadline(policy, &numbers)?;
    Ok(numbers)
}

/// KEEP_POLICY and KEEP_PARAMS: what goes with them is not looked at.
const KEEP: u64 = 0x18;

fn priority(policy: Policy, kept: bool, priority: i32) -> Result<u32> {
    match (policy, priority) {
        (Policy::SchedFifo | Policy::SchedRr, 1..=99) => Ok(priority as u32),
        (Policy::SchedFifo | Policy::SchedRr, 0) if kept => Ok(0),
        (Policy::SchedFifo | Policy::SchedRr, _) => {
            Err(invalid(format!("process.scheduler.priority is not in 1..99, for {policy}: {priority}")))
        }
        (_, 0) => Ok(0),
        _ => Err(invalid(format!("process.scheduler.priority is for SCHED_FIFO and SCHED_RR, not for {policy}"))),
    }
}

fn deadline(policy: Policy, numbers: &Scheduler) -> Result<()> {
    let Scheduler { runtime, deadline, period, .. } = *numbers;
    match policy {
        Policy::SchedDeadline if numbers.flags & KEEP != 0 => Ok(()),
        // The kernel's least runtime is 1024 ns, and its most of each 2^63.
        Policy::SchedDeadline
            if runtime < 1024
                || deadline < runtime
                || (period != 0 && period < deadline)
                || deadline.max(period) >> 63 != 0 =>
        {
            Err(invalid(format!(
                "process.scheduler: not 1024 <= runtime <= deadline <= period: {runtime}, {deadline}, {period}"
            )))
        }
        Policy::SchedDeadline => Ok(()),
        _ if (runtime, deadline, period) == (0, 0, 0) => Ok(()),
        _ => Err(invalid(format!(
            "process.scheduler: runtime, deadline and period are for SCHED_DEADLINE, not for {policy}"
        ))),
    }
}

/// What ioprio_set(2) is told: the class, and the priority in it.
pub fn io_priority(spec: &oci::LinuxIOPriority) -> Result<u16> {
    let class = number("process.ioPriority.class", &IO_CLASSES, &spec.class())?;
    match spec.priority() {
        priority @ 0..=7 => Ok(class << 13 | priority as u16),
        priority => Err(invalid(format!("process.ioPriority.priority is not in 0..7: {priority}"))),
    }
}

/// On which CPUs an exec runs: before it is in the container's cgroup, and after. `None` is as it comes.
pub type Affinity = [Option<Vec<u64>>; 2];

/// The masks of an exec.
pub fn affinity(spec: &oci::ExecCPUAffinity) -> Result<Affinity> {
    let mask = |field: &str, text: &Option<String>| {
        text.as_deref().filter(|text| !text.is_empty()).map(|text| number_list::mask(field, text)).transpose()
    };
    Ok([
        mask("process.execCPUAffinity.initial", spec.initial())?,
        mask("process.execCPUAffinity.final", spec.cpu_affinity_final())?,
    ])
}

/// What personality(2) is told. The specification has no value for its flags yet ("Currently no flag values are
/// supported").
pub fn personality(spec: &oci::LinuxPersonality) -> Result<u32> {
    if let Some(flag) = spec.flags().iter().flatten().next() {
        return Err(unsupported(format_args!("linux.personality.flags: {flag:?}")));
    }
    number("linux.personality.domain", &DOMAINS, &spec.domain())
}

/// All of it, of a process.
pub(super) fn validate(process: &oci::Process) -> Result<()> {
    process.scheduler().as_ref().map(scheduler).transpose()?;
    process.io_priority().as_ref().map(io_priority).transpose()?;
    process.exec_cpu_affinity().as_ref().map(affinity).transpose().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn numbers(document: Value) -> Result<Scheduler> {
        scheduler(&serde_json::from_value(document).unwrap())
    }

    #[test]
    fn the_numbers_are_the_kernels() {
        let nice = numbers(json!({ "policy": "SCHED_BATCH", "nice": -20 })).unwrap();
        assert_eq!(nice, Scheduler { policy: 3, nice: -20, ..Scheduler::default() });
        let flags = json!(["SCHED_FLAG_RECLAIM", "SCHED_FLAG_UTIL_CLAMP_MAX"]);
        let all =
            json!({ "policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2048, "period": 4096, "flags": flags });
        let expected =
            Scheduler { policy: 6, flags: 0x42, runtime: 1024, deadline: 2048, period: 4096, ..Scheduler::default() };
        assert_eq!(numbers(all).unwrap(), expected);
        for (policy, number) in [("SCHED_FIFO", 1), ("SCHED_RR", 2)] {
            let scheduler = numbers(json!({ "policy": policy, "priority": 99 })).unwrap();
            assert_eq!((scheduler.policy, scheduler.priority), (number, 99));
        }
        assert_eq!(numbers(json!({ "policy": "SCHED_IDLE" })).unwrap().policy, 5);
        let io = |class: &str| {
            io_priority(&serde_json::from_value(json!({ "class": class, "priority": 5 })).unwrap()).unwrap()
        };
        let classes = ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"].map(io);
        assert_eq!(classes, [0x2005, 0x4005, 0x6005]);
        let domain = |domain: &str| personality(&serde_json::from_value(json!({ "domain": domain })).unwrap()).unwrap();
        assert_eq!([domain("LINUX"), domain("LINUX32")], [0, 8]);
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        let keeps = json!(["SCHED_FLAG_KEEP_PARAMS"]);
        numbers(json!({ "policy": "SCHED_FIFO", "flags": keeps })).unwrap();
        for (document, names) in [
            (json!({ "policy": "SCHED_ISO" }), "process.scheduler.policy: SCHED_ISO"),
            (json!({ "policy": "SCHED_OTHER", "nice": 20 }), "process.scheduler.nice is not in -20..19: 20"),
            (json!({ "policy": "SCHED_OTHER", "priority": 1 }), "process.scheduler.priority is for"),
            (json!({ "policy": "SCHED_FIFO" }), "process.scheduler.priority is not in 1..99, for SCHED_FIFO: 0"),
            (json!({ "policy": "SCHED_RR", "priority": 100 }), "process.scheduler.priority is not in 1..99"),
            (json!({ "policy": "SCHED_OTHER", "period": 1 }), "process.scheduler: runtime, deadline and period"),
            (json!({ "policy": "SCHED_DEADLINE" }), "process.scheduler: not 1024 <= runtime"),
            (json!({ "policy": "SCHED_DEADLINE", "runtime": 2048, "deadline": 2047 }), "2048, 2047, 0"),
            (json!({ "policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2, "period": 1 }), "1024, 2, 1"),
        ] {
            let error = numbers(document).unwrap_err().to_string();
            assert!(error.contains(names), "{names}: {error}");
        }
        let flags = json!({ "domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"] });
        let error = personality(&serde_json::from_value(flags).unwrap()).unwrap_err().to_string();
        assert!(error.contains("linux.personality.flags: \"ADDR_NO_RANDOMIZE\""), "{error}");
        for priority in [-1, 8] {
            let document = json!({ "class": "IOPRIO_CLASS_BE", "priority": priority });
            let error = io_priority(&serde_json::from_value(document).unwrap()).unwrap_err().to_string();
            assert!(error.contains("process.ioPriority.priority"), "{error}");
        }
    }
}
