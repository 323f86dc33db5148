//! Containers of a rootless containerd: the shim is root of a user namespace, and on the host a user like others.

mod common;

use common::containerd::Containerd;
use common::containerd::version::{Driven, V1_6};
use common::rootless::{Cgroups, Ids, rootless};

fn ctr_runs() {
        let containerd = Containerd::start(&V1_6, V1_6.bin().unwrap(), "x".into());
        let out = containerd.run("a", &[], &["sh", "-c", "echo hi; id; exit 7"]);
        println!("{out:?}");
        let pid = containerd.run_detached("b", &[], &["sleep", "1000"]);
        println!("{pid}");
        let out = containerd.exec("b", "e", &[], &["sh", "-c", "cat /proc/self/cgroup; exit 3"]);
        println!("{out:?}");
        containerd.remove("b");
        containerd.assert_nothing_left();
}

#[test]
fn ctr_many() {
    rootless(Ids::Many, Cgroups::Denied, ctr_runs);
}
#[test]
fn ctr_one() {
    rootless(Ids::One, Cgroups::Denied, ctr_runs);
}
#[test]
fn ctr_deleg() {
    rootless(Ids::Many, Cgroups::Delegated, ctr_runs);
}
#[test]
#[ignore]
fn explore() {
    common::rootless::explore(Ids::Many, Cgroups::Delegated, &std::env::var("BINS").unwrap());
}
