//! The test's own binary as the program of a container, for what busybox cannot do. Each test file that uses it has an
//! ignored test `inside_the_container`, which does what [`attack`] says.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::bundle::Bundle;

/// What the program is to try, and on what.
const ATTACK: &str = "DRAY_TEST_ATTACK";

const ARGS: [&str; 4] = ["/attacker", "--exact", "inside_the_container", "--ignored"];

/// The bundle with this very binary as its program, doing `attack`.
pub fn attacker(bundle: Bundle, attack: &str) -> Bundle {
    let exe = std::env::current_exe().expect("own path");
    bundle
        .mount(json!({"destination": "/attacker", "type": "bind", "source": exe, "options": ["rbind", "ro"]}))
        .edit(|spec| become_attacker(&mut spec["process"], attack))
}

/// An exec in such a container that does another `attack`.
pub fn attacking_process(bundle: &Bundle, attack: &str) -> Value {
    let mut process = bundle.process(&[]);
    become_attacker(&mut process, attack);
    process
}

fn become_attacker(process: &mut Value, attack: &str) {
    process["args"] = json!([&ARGS[..], &["--nocapture"]].concat());
    let env = process["env"].as_array_mut().expect("env");
    env.retain(|variable| !variable.as_str().is_some_and(|text| text.starts_with(ATTACK)));
    env.push(json!(format!("{ATTACK}={attack}")));
}

/// Inside: what to do, in words.
pub fn attack() -> Option<Vec<String>> {
    let text = std::env::var(ATTACK).ok()?;
    Some(text.split(' ').map(str::to_owned).collect())
}

/// Inside: looks at every process that appears, as early as it can be seen, until `/stop` is there; returns how many there
/// were.
pub fn watch_newcomers(mut look: impl FnMut(u32)) -> usize {
    let mut next = std::process::id() + 1;
    let mut seen = 0;
    while !Path::new("/stop").exists() {
        for _ in 0..1000 {
            // Threads and processes that came and went leave holes.
            let Some(pid) = (next..next + 8).find(|pid| Path::new(&format!("/proc/{pid}")).exists()) else {
                continue;
            };
            next = pid + 1;
            seen += 1;
            // From here on it is ours to look at for as long as we like: CAP_KILL is a default capability.
            let process = Pid::from_raw(pid as i32).expect("a pid");
            let _ = kill_process(process, Signal::STOP);
            look(pid);
            let _ = kill_process(process, Signal::CONT);
        }
    }
    seen
}

/// Inside: counts those that `caught` says yes of, and says so.
pub fn watch(caught: impl Fn(u32) -> bool) {
    println!("watching");
    let mut found = 0;
    let seen = watch_newcomers(|pid| found += u32::from(caught(pid)));
    println!("seen={seen} caught={found}");
}

/// With CAP_SYS_PTRACE, to which processes that are not dumpable are open.
pub fn with_ptrace(bundle: Bundle) -> Bundle {
    with_capability(bundle, "CAP_SYS_PTRACE")
}

/// With one capability more than ctr's default.
pub fn with_capability(bundle: Bundle, name: &str) -> Bundle {
    bundle.edit(|spec| {
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set].as_array_mut().expect("a set").push(json!(name));
        }
    })
}
