//! What the rooted tests and the bench share: a shim driven as containerd drives it, bundles, and containerd itself.
//!
//! A crate, since each test file is one: it is compiled once for all of them.
#![allow(missing_docs)] // Of what says by its name what it is.
#![allow(clippy::new_without_default)] // What is made here is on the machine, and not by the way.

pub mod attacker;
pub mod bundle;
pub mod cgroup;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod criu;
pub mod docker;
pub mod docker_cli;
pub mod docker_scenarios;
pub mod dray;
pub mod driver;
pub mod events;
pub mod floor;
pub mod fuse;
pub mod listener;
pub mod memory;
pub mod mountinfo;
pub mod pty;
pub mod rootless;
pub mod scratch;
pub mod seccomp;
pub mod stdio;
pub mod user;
pub mod victim;
pub mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The shim under test: the release binary that `scripts/test` names (DRAY_SHIM), else the one that cargo built beside the
/// test. DRAY_TEST_SHIM names another one (the Go shim, to check a test itself).
pub fn shim_binary() -> PathBuf {
    let named = std::env::var_os("DRAY_TEST_SHIM").or_else(|| std::env::var_os("DRAY_SHIM"));
    // cargo has tests in target/PROFILE/deps.
    let beside = || {
        let test = std::env::current_exe().expect("our own path");
        test.parent().and_then(Path::parent).expect("target/PROFILE").join("containerd-shim-dray-v2")
    };
    named.map_or_else(beside, PathBuf::from)
}

/// Says that a test, or a part of it, cannot run here; `scripts/test` lists it at its end.
pub fn skipped(name: &str, why: &str) {
    println!("SKIPPED {name}: {why}");
    if let Some(path) = std::env::var_os("DRAY_SKIPPED") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        std::io::Write::write_all(&mut file.expect("DRAY_SKIPPED"), format!("{name}: {why}\n").as_bytes())
            .expect("write");
    }
}

/// A bound for waiting, times DRAY_TEST_PATIENCE: an emulated guest is 20 times slower than a machine.
pub fn patience(bound: Duration) -> Duration {
    let factor = std::env::var("DRAY_TEST_PATIENCE").map_or(1, |factor| factor.parse().expect("DRAY_TEST_PATIENCE"));
    bound * factor
}

/// The version of this kernel.
pub fn linux() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.trim().parse().expect("a number"));
    (numbers.next().expect("major"), numbers.next().expect("minor"))
}

/// Runs a test on a runtime like the shim's own: one thread, no tokio feature that the tested binary has not.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio runtime");
    runtime.block_on(future)
}
