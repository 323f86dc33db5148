//! A trace as a picture: a line for each step, its bar where it lies in time. One file that needs no other.

use std::fmt::Write;

use crate::engine::trace::{Operation, Span, Who};

use super::account::{Account, lines};
use super::{headline, micros};

/// Pixels.
const WIDTH: f64 = 1100.0;
const LABELS: f64 = 390.0;
const NUMBERS: f64 = 90.0;
const CHART: f64 = WIDTH - LABELS - NUMBERS - 2.0 * MARGIN;
const MARGIN: f64 = 16.0;
const LINE: f64 = 18.0;
const HEAD: f64 = 62.0;
const FOOT: f64 = 34.0;

/// About how many lines of time there are.
const TICKS: u64 = 8;

/// The document.
pub fn of(operations: &[Operation]) -> String {
    let mut body = String::new();
    let mut top = MARGIN;
    for operation in operations {
        top = draw(&mut body, operation, top);
    }
    let height = top + MARGIN;
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n{STYLE}\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

const STYLE: &str = "<style>.shim{fill:#2f6db3}.child{fill:#c9651b}.wait{fill-opacity:.18}.tick{stroke:#ddd}\
                     .head{font-size:15px;font-weight:bold}.dim{fill:#666}.num{text-anchor:end}</style>\n";

/// Draws one operation from `top` on; returns where it ends.
fn draw(body: &mut String, operation: &Operation, top: f64) -> f64 {
    let (lines, short, together) = lines(operation);
    text(body, "head", MARGIN, top + 18.0, &headline(operation));
    text(body, "dim", MARGIN, top + 36.0, &sums(operation));
    let first = top + HEAD;
    let bottom = first + LINE * lines.len() as f64;
    ticks(body, operation, first, bottom);
    for (at, step) in lines.iter().enumerate() {
        line(body, operation, step, first + LINE * at as f64);
    }
    if short != 0 {
        let rest = format!("{short} steps of less than 1 µs each: {} µs", micros(together));
        text(body, "dim", MARGIN, bottom + 14.0, &rest);
    }
    bottom + FOOT
}

fn sums(operation: &Operation) -> String {
    let Account { shim, child, both, client, nobody } = Account::of(operation);
    let parts =
        [("shim", shim), ("child", child), ("both", both), ("waiting for the client", client), ("nobody", nobody)];
    let parts = parts.into_iter().filter(|(_, time)| *time != 0);
    parts.map(|(who, time)| format!("{who} {} µs", micros(time))).collect::<Vec<_>>().join(" · ")
}

fn ticks(body: &mut String, operation: &Operation, top: f64, bottom: f64) {
    let every = distance(operation.took_ns);
    let mut at = 0;
    while at <= operation.took_ns {
        let x = place(at, operation);
        let _ = writeln!(
            body,
            "<line class=\"tick\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>",
            top - 4.0
        );
        text(body, "dim", x, top - 8.0, micros(at).trim_end_matches(".0"));
        let Some(next) = at.checked_add(every) else { break };
        at = next;
    }
}

/// 1, 2 or 5 with zeroes, so that there are at most [`TICKS`] of it.
fn distance(took: u64) -> u64 {
    let powers = std::iter::successors(Some(100u64), |power| power.checked_mul(10));
    let mut steps = powers.flat_map(|power| [1, 2, 5].map(|factor| power.saturating_mul(factor)));
    steps.find(|step| step.saturating_mul(TICKS) >= took).unwrap_or(u64::MAX)
}

fn line(body: &mut String, operation: &Operation, step: &Span, top: f64) {
    let who = match step.who {
        Who::Shim => "shim",
        Who::Child => "child",
    };
    let label = format!("{}{}", if step.who == Who::Child { "\u{2003}" } else { "" }, step.step);
    text(body, if step.waits { "dim" } else { "" }, MARGIN, top + 13.0, &label);
    text(body, "num", MARGIN + LABELS + NUMBERS - 12.0, top + 13.0, &micros(step.took_ns));
    let (x, end) = (place(step.start_ns, operation), place(step.end_ns(), operation));
    let (width, wait) = ((end - x).max(1.0), if step.waits { " wait" } else { "" });
    let told = format!("{} ({who}): from {} µs, {} µs", step.step, micros(step.start_ns), micros(step.took_ns));
    let _ = writeln!(
        body,
        "<rect class=\"{who}{wait}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
        top + 3.0,
        LINE - 5.0,
        escape(&told)
    );
}

/// Where a moment is.
fn place(moment: u64, operation: &Operation) -> f64 {
    let part = moment.min(operation.took_ns) as f64 / operation.took_ns.max(1) as f64;
    MARGIN + LABELS + NUMBERS + part * CHART
}

fn text(body: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let _ = writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
}

/// For text and attributes of XML 1.0, which has no way at all to write most control characters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
