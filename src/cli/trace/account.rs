//! Who was at work, and how long.

use crate::engine::trace::{Operation, Span, Who};

/// The time of an operation, in nanoseconds, divided by who was at work. A step of waiting is not work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The shim alone.
    pub shim: u64,
    /// The child alone.
    pub child: u64,
    /// Both at once.
    pub both: u64,
    /// Nobody, until the client said that it should go on.
    pub client: u64,
    /// Nobody: a process is woken, another container has the processor, or what is done has no step.
    pub nobody: u64,
}

impl Account {
    /// Of an operation.
    pub fn of(operation: &Operation) -> Self {
        let mut moments: Vec<u64> = operation.steps.iter().flat_map(|step| [step.start_ns, step.end_ns()]).collect();
        moments.extend([0, operation.took_ns]);
        moments.retain(|moment| *moment <= operation.took_ns);
        moments.sort_unstable();
        moments.dedup();
        let mut account = Self::default();
        for (from, to) in moments.iter().zip(moments.iter().skip(1)) {
            let there = |step: &&Span| step.start_ns <= *from && step.end_ns() >= *to;
            let works = |who| operation.steps.iter().filter(there).any(|step| step.who == who && !step.waits);
            let part = match (works(Who::Shim), works(Who::Child)) {
                (true, true) => &mut account.both,
                (true, false) => &mut account.shim,
                (false, true) => &mut account.child,
                _ if operation.steps.iter().filter(there).any(Span::waits_for_client) => &mut account.client,
                _ => &mut account.nobody,
            };
            *part += to - from;
        }
        account
    }
}

/// The steps that are worth a line, by their beginning, and the number and the time of the others: most of what a step does
/// is to see that there is nothing to do.
pub fn lines(operation: &Operation) -> (Vec<&Span>, usize, u64) {
    let (mut lines, short): (Vec<_>, Vec<_>) = operation.steps.iter().partition(|step| step.took_ns >= SHORT);
    // Who began is first, whoever was at it later.
    lines.sort_by_key(|step| (step.start_ns, step.who == Who::Child));
    (lines, short.len(), short.iter().map(|step| step.took_ns).sum())
}

/// Shorter steps, in nanoseconds, have no line of their own.
pub const SHORT: u64 = 1000;
