use super::account::Account;
use super::*;
use crate::engine::trace::{Outcome, Span, Who};

fn span(step: &str, who: Who, start_ns: u64, took_ns: u64, waits: bool) -> Span {
    Span { step: step.into(), who, start_ns, took_ns, waits }
}

fn operation(kind: Operated, exec: &str, steps: Vec<Span>) -> Operation {
    let (container, exec) = ("c".into(), exec.into());
    Operation { kind, container, exec, began_us: 1_763_800_000_000_000, took_ns: 10_000, outcome: Outcome::Done, steps }
}

fn usual() -> Operation {
    let steps = vec![
        span("planning", Who::Shim, 0, 3000, false),
        span("waiting for the child", Who::Shim, 3000, 6000, true),
        span("announcing it", Who::Shim, 9000, 1000, false),
        span("closing descriptors", Who::Child, 2000, 3500, false),
        span("nothing", Who::Child, 5500, 10, false),
        span("waiting for the shim", Who::Child, 5510, 490, true),
        span("executing the program", Who::Child, 6000, 2500, false),
    ];
    operation(Operated::Exec, "e", steps)
}

fn hostile() -> Operation {
    let mut operation = usual();
    operation.container = "</text><script>alert(1)</script>&\"'\u{1b}[2J\n\u{0}\u{ffff}".into();
    operation.exec = "]]>\r\u{7f}\u{85}\u{202e}".into();
    operation
}

/// All that a reader of XML would trip over: characters that there are none of, tags that are not closed in their order.
fn assert_is_xml(text: &str) {
    let body = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("declaration");
    assert!(!body.chars().any(|c| (c.is_control() && c != '\n') || matches!(c, '\u{fffe}' | '\u{ffff}')), "{body:?}");
    let mut open = Vec::new();
    let mut rest = body;
    while let Some((text, behind)) = rest.split_once('<') {
        let entities = ["amp;", "lt;", "gt;", "quot;", "#39;"];
        assert!(text.split('&').skip(1).all(|after| entities.iter().any(|e| after.starts_with(e))), "{text}");
        let (tag, behind) = behind.split_once('>').expect("the end of a tag");
        assert!(!tag.contains('<') && tag.matches('"').count() % 2 == 0, "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        assert!(["svg", "style", "rect", "text", "title", "line"].contains(&name), "{tag}");
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name)),
            (_, false) => open.push(name),
            _ => {}
        }
        rest = behind;
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
}

#[test]
fn time_is_accounted_for_and_what_is_not_is_said() {
    let account = Account::of(&usual());
    let parts = [account.shim, account.child, account.both, account.client, account.nobody];
    assert_eq!(parts, [3000, 2510 + 2500, 1000, 0, 990]);
    let client = span("waiting for the client to start it", Who::Shim, 1000, 9000, true);
    let account = Account::of(&operation(Operated::Exec, "", vec![span("x", Who::Shim, 0, 1000, false), client]));
    assert_eq!((account.shim, account.client, account.nobody), (1000, 9000, 0));
    // What lies outside of it is not of it.
    let account = Account::of(&operation(Operated::Exec, "", vec![span("x", Who::Child, 9000, u64::MAX, false)]));
    assert_eq!((account.child, account.nobody), (1000, 9000));
}

#[test]
fn a_table_has_a_line_for_a_step_and_sums() {
    let text = table::of(&[usual()]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "exec c e: 10.0 µs (2025-11-22T08:26:40.000000000Z)");
    assert_eq!(
        lines[2].trim_end(),
        format!("{:>10} {:>10}  shim   {:50} {}", "0.0", "3.0", "planning", "#".repeat(12))
    );
    let waiting = format!("{:50} {}{}", "waiting for the child", " ".repeat(12), "-".repeat(24));
    assert_eq!(lines[4], format!("{:>10} {:>10}  shim   {waiting}", "3.0", "6.0"));
    let mut quoted = usual();
    quoted.steps[0].step = "the container's \"own\"".into();
    assert!(table::of(&[quoted]).contains("the container's \"own\" "));
    assert!(text.contains("2 steps of less than 1.0 µs each"), "{text}");
    assert!(text.contains("9 %  nobody"), "{text}");
}

#[test]
fn of_the_operations_the_last_of_each_kind_are_shown() {
    let all = || {
        let of = |kind, exec: &str| operation(kind, exec, Vec::new());
        vec![of(Operated::Create, ""), of(Operated::Start, ""), of(Operated::Exec, "1"), of(Operated::Exec, "2")]
    };
    let execs = |chosen: Vec<Operation>| chosen.into_iter().map(|operation| operation.exec).collect::<Vec<_>>();
    assert_eq!(execs(choose(all(), None, false)), ["", "", "2"]);
    assert_eq!(execs(choose(all(), Some(2), false)), ["1", "2"]);
    assert_eq!(choose(all(), Some(9), false).len(), 4);
    assert_eq!(choose(all(), None, true).len(), 4);
}

#[test]
fn a_picture_is_xml_whatever_the_ids_are() {
    for operations in [vec![usual()], vec![hostile(), usual()], vec![]] {
        assert_is_xml(&svg::of(&operations));
    }
    let picture = svg::of(&[usual()]);
    for step in ["planning", "waiting for the child", "executing the program"] {
        assert!(picture.contains(&format!("{step}</text>")), "{step}");
    }
    assert!(!svg::of(&[hostile()]).contains("<script"));
    let mut long = usual();
    (long.took_ns, long.steps[0].took_ns) = (u64::MAX, u64::MAX);
    assert_is_xml(&svg::of(&[long.clone()]));
    table::of(&[long.clone()]);
    long.took_ns = 0;
    assert_is_xml(&svg::of(&[long.clone()]));
    table::of(&[long]);
}

#[test]
fn a_table_of_hostile_ids_has_as_many_lines() {
    let text = table::of(&[hostile()]);
    assert_eq!(text.lines().count(), table::of(&[usual()]).lines().count());
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(!text.contains('\u{202e}'), "{text:?}");
}

#[test]
fn chrome_gets_complete_events_in_microseconds() {
    let mut later = hostile();
    later.began_us += 500;
    let document: serde_json::Value = serde_json::from_str(&chrome::of(&[usual(), later])).unwrap();
    let events = document["traceEvents"].as_array().unwrap();
    let of = |name: &str, pid: u64| {
        events.iter().find(|event| event["name"] == name && event["pid"] == pid && event["ph"] == "X").unwrap()
    };
    let executing = of("executing the program", 1);
    assert_eq!((executing["ts"].as_f64(), executing["dur"].as_f64()), (Some(6.0), Some(2.5)));
    assert_eq!((executing["tid"].as_u64(), executing["cat"].as_str()), (Some(2), Some("work")));
    assert_eq!(of("planning", 2)["ts"].as_f64(), Some(500.0));
    assert_eq!(events.iter().filter(|event| event["ph"] == "X").count(), 2 * (usual().steps.len() + 1));
}
