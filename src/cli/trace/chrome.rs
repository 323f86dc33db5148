//! A trace in Chrome's trace event format, as chrome://tracing and Perfetto read it: an operation is a process there, with a
//! thread for each side.

use serde_json::{Value, json};

use crate::engine::trace::{Operation, Span, Who};

use super::title;

/// The numbers of the threads; the operation as a whole has one too.
const WHOLE: u32 = 0;
const SHIM: u32 = 1;
const CHILD: u32 = 2;

/// The document.
pub fn of(operations: &[Operation]) -> String {
    // Numbers of such a size as its readers have no trouble with.
    let first = operations.iter().map(|operation| operation.began_us).min().unwrap_or_default();
    let events: Vec<Value> =
        (1u32..).zip(operations).flat_map(|(pid, operation)| events(pid, operation, first)).collect();
    let began = json!({"began_us": first});
    format!("{}\n", json!({"traceEvents": events, "displayTimeUnit": "ns", "otherData": began}))
}

fn events(pid: u32, operation: &Operation, first: u64) -> Vec<Value> {
    let name = |what: &str, tid: u32, name: &str| json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}});
    let at = (operation.began_us - first) as f64;
    let whole = title(operation);
    let mut events = vec![name("process_name", WHOLE, &whole)];
    events.extend(
        [(WHOLE, "operation"), (SHIM, "shim"), (CHILD, "child")].map(|(tid, who)| name("thread_name", tid, who)),
    );
    let args = json!({"container": operation.container, "exec": operation.exec, "outcome": operation.outcome});
    events.push(complete(&whole, "operation", at, operation.took_ns, (pid, WHOLE), &args));
    let event = |step: &Span| {
        let tid = if step.who == Who::Shim { SHIM } else { CHILD };
        let category = if step.waits { "wait" } else { "work" };
        complete(&step.step, category, at + micros(step.start_ns), step.took_ns, (pid, tid), &json!({}))
    };
    events.extend(operation.steps.iter().map(event));
    events
}

fn complete(name: &str, category: &str, ts: f64, took: u64, (pid, tid): (u32, u32), args: &Value) -> Value {
    json!({"ph": "X", "name": name, "cat": category, "ts": ts, "dur": micros(took), "pid": pid, "tid": tid, "args": args})
}

/// The format's unit, of which it takes fractions.
fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}
