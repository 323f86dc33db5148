//! `ctr containers checkpoint` and `restore` through each containerd: see tests/checkpoint.rs for where CRIU does anything.

use std::process::Stdio;

use common::containerd::{Containerd, eventually, text};
use common::criu::usable;

common::on_each_containerd! {
    a_container_is_checkpointed_and_restored,
}

/// Counts in a file of its writable layer.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /new; mv /new /count; sleep 0.1; done";

fn count(containerd: &Containerd, exec: &str) -> u64 {
    let output = containerd.exec("one", exec, &[], &["cat", "/count"]);
    text(&output.stdout).trim().parse().unwrap_or(0)
}

/// Waits until it counts beyond `number`; returns how far it is.
#[track_caller]
fn counts_beyond(containerd: &Containerd, name: &str, number: u64) -> u64 {
    let mut found = 0;
    let mut tries = 0;
    let counts = eventually(|| {
        tries += 1;
        found = count(containerd, &format!("{name}{tries}"));
        found > number
    });
    assert!(counts, "{name}: {found} is not beyond {number}");
    found
}

fn a_container_is_checkpointed_and_restored(containerd: Containerd) {
    if !usable("a_container_is_checkpointed_and_restored") {
        return;
    }
    containerd.run_detached("one", &[], &["sh", "-c", COUNT]);
    let before = counts_beyond(&containerd, "a", 2);
    // ctr pauses it meanwhile, and resumes it.
    let image = "localhost/checkpoint:latest";
    containerd.ctr_ok(&["containers", "checkpoint", "--rw", "--image", "--task", "one", image]);
    let before = counts_beyond(&containerd, "b", before);
    containerd.remove("one");

    let mut restored = containerd.command(&["containers", "restore", "--rw", "--live", "one", image]);
    // ctr wires its streams through, and stays until the container ends.
    let mut restored = restored.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let runs = eventually(|| containerd.task("one").is_some_and(|task| task.status == "RUNNING"));
    assert!(runs, "{:?}", containerd.task("one"));
    let after = counts_beyond(&containerd, "c", 3);
    assert!(after < before + 1000, "it has gone on where it was, and did not begin");
    let first = count(&containerd, "first");
    counts_beyond(&containerd, "d", first);
    containerd.ctr_ok(&["task", "kill", "--signal", "KILL", "one"]);
    restored.wait().unwrap();
    if containerd.task("one").is_some() {
        containerd.delete_task("one");
    }
    containerd.ctr_ok(&["container", "delete", "one"]);
    containerd.assert_nothing_left();
}
