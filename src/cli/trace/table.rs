//! A trace as lines.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use crate::engine::trace::{Operation, Span, Who};
use crate::shim::logrus::Rfc3339;

use super::account::{Account, SHORT, lines};
use super::{headline, micros, plain};

/// How wide the bars are together.
const BAR: u64 = 40;

/// The operations, one after the other.
pub fn of(operations: &[Operation]) -> String {
    operations.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(operation: &Operation) -> String {
    let mut text = String::new();
    let began = UNIX_EPOCH.checked_add(Duration::from_micros(operation.began_us)).unwrap_or(UNIX_EPOCH);
    let _ = writeln!(text, "{} ({})", headline(operation), Rfc3339(began));
    let _ = writeln!(text, "{:>10} {:>10}  {:5}  {:50}", "START µs", "TOOK µs", "WHO", "STEP");
    let (lines, short, together) = lines(operation);
    for step in lines {
        let who = match step.who {
            Who::Shim => "shim",
            Who::Child => "child",
        };
        let (start, took) = (micros(step.start_ns), micros(step.took_ns));
        let _ = writeln!(text, "{start:>10} {took:>10}  {who:5}  {:50} {}", plain(&step.step), bar(step, operation));
    }
    if short != 0 {
        let bound = micros(SHORT);
        let _ = writeln!(text, "{:10} {:>10}         {short} steps of less than {bound} µs each", "", micros(together));
    }
    let Account { shim, child, both, client, nobody } = Account::of(operation);
    let parts = [
        ("the shim alone", shim),
        ("the child alone", child),
        ("both at once", both),
        ("waiting for the client", client),
        (nobodys(operation), nobody),
    ];
    for (what, time) in parts.into_iter().filter(|(_, time)| *time != 0) {
        let percent = time.saturating_mul(100) / operation.took_ns.max(1);
        let _ = writeln!(text, "{:10} {:>10}         {percent:>3} %  {what}", "", micros(time));
    }
    text
}

/// What is meant by nobody.
fn nobodys(operation: &Operation) -> &'static str {
    let waits = operation.steps.iter().any(|step| step.waits && !step.waits_for_client());
    match waits && operation.steps.iter().all(|step| step.who == Who::Shim) {
        true => "waiting for a child whose steps are not known",
        false => "nobody (waking up, other work of the shim, what has no step)",
    }
}

/// Where in the operation a step lies: `-` where it waits.
fn bar(step: &Span, operation: &Operation) -> String {
    let column = |moment: u64| {
        let at = u128::from(moment.min(operation.took_ns)) * u128::from(BAR) / u128::from(operation.took_ns.max(1));
        at as usize
    };
    let start = column(step.start_ns).min(BAR as usize - 1);
    let length = (column(step.end_ns()) - column(step.start_ns)).max(1);
    let of = if step.waits { "-" } else { "#" };
    format!("{}{}", " ".repeat(start), of.repeat(length))
}
