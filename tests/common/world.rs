//! A shim with its containers, and what tests look at around them: codes, processes, descriptors, memory.

use std::fmt::Debug;
use std::fs;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::bundle::Bundle;
use super::driver::{Shim, StartOptions, await_exit, code, open_pid, runc_options};
use super::events::EventSink;
use super::patience;
use super::scratch::Scratch;
use super::shim_binary;
use super::stdio::Io;

/// A bound for what takes milliseconds on a quiet machine.
pub const SOON: Duration = Duration::from_secs(20);

/// A scratch directory, containerd's end of the events, and one shim; its calls are the shim's. Dropped in this order.
pub struct World {
    pub shim: Shim,
    pub sink: EventSink,
    pub scratch: Scratch,
}

impl World {
    /// Starts a shim whose first container is to be `id`, with what `change` makes of the default bundle.
    pub async fn with(id: &str, change: impl FnOnce(Bundle) -> Bundle) -> (World, Bundle) {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = change(Bundle::new(&scratch, id));
        let options = std::env::var_os("DRAY_TEST_SHIM").map(|_| runc_options(""));
        let options = StartOptions { options, ..StartOptions::default() };
        let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.expect("start action");
        (World { shim, sink, scratch }, bundle)
    }

    /// The same, with the container created and started without stdio.
    pub async fn running(id: &str, change: impl FnOnce(Bundle) -> Bundle) -> (World, Bundle) {
        let (world, bundle) = World::with(id, change).await;
        world.run(&bundle).await;
        (world, bundle)
    }

    /// Create and Start, without stdio; returns the pid.
    pub async fn run(&self, bundle: &Bundle) -> u32 {
        self.create(bundle, &Io::null()).await.expect("create");
        self.start(&bundle.id, "").await.expect("start").pid
    }

    /// SIGKILL, the exit, Delete; returns the exit status.
    pub async fn end(&self, id: &str) -> u32 {
        let waiting = self.spawn_wait(id, "").await;
        let _ = self.kill(id, "", libc::SIGKILL, false).await; // It may have ended.
        let status = waiting.await.expect("wait").expect("wait").exit_status;
        self.delete(id, "").await.expect("delete");
        status
    }

    /// Shutdown, after which nothing may be left.
    pub async fn close(self) {
        let World { shim, sink, scratch } = self;
        shim.shutdown_and_wait(SOON).await.expect("shutdown");
        assert_eq!(leftovers(&scratch), [""; 0]);
        drop(sink);
    }
}

impl Deref for World {
    type Target = Shim;

    fn deref(&self) -> &Shim {
        &self.shim
    }
}

/// What is left of shims and containers, their state included.
pub fn leftovers(scratch: &Scratch) -> Vec<String> {
    let mut left = scratch.leftovers();
    left.extend(states(scratch).into_iter().map(|path| format!("state {path}")));
    left
}

/// State directories of this namespace.
fn states(scratch: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(Path::new("/run/dray").join(scratch.namespace()));
    entries.into_iter().flatten().flatten().map(|entry| entry.path().display().to_string()).collect()
}

/// Asserts that a call was refused with this code, by a message with all these words.
#[track_caller]
pub fn refused<T: Debug>(result: ttrpc::Result<T>, wanted: ttrpc::Code, words: &[&str]) {
    let error = result.expect_err("must be refused");
    assert_eq!(code(&error), Some(wanted), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
}

/// Waits until `done`; panics with `what` at the bound.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let what = what.to_string();
    async move {
        let deadline = Instant::now() + patience(SOON);
        while !done() {
            assert!(Instant::now() < deadline, "{caller}: not within {SOON:?}: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A process that no shim has anything to do with. Its drop ends it.
pub struct Bystander(Child);

impl Bystander {
    /// Sleeps, in the cgroups of the test.
    pub fn new() -> Bystander {
        let sleep = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn();
        Bystander(sleep.expect("sleep"))
    }

    /// Moves it into these cgroups.
    pub fn join(&self, cgroups: &[impl AsRef<Path>]) {
        for dir in cgroups {
            let procs = dir.as_ref().join("cgroup.procs");
            fs::write(&procs, self.0.id().to_string()).unwrap_or_else(|e| panic!("{}: {e}", procs.display()));
        }
    }

    pub fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes of a container, held by pidfds.
pub fn hold(pids: &[u32]) -> Vec<OwnedFd> {
    pids.iter().filter_map(|&pid| open_pid(pid as i32)).collect()
}

/// Asserts that all of them are gone, or go in time.
#[track_caller]
pub fn all_gone(processes: &[OwnedFd]) {
    for process in processes {
        await_exit(process, SOON).expect("a process of the container");
    }
}

/// How many of them have not ended.
pub fn living(processes: &[OwnedFd]) -> usize {
    processes.iter().filter(|process| await_exit(process, Duration::ZERO).is_err()).count()
}

/// The number of open descriptors of a process.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("fd").count()
}

/// A number of /proc/PID/status: Threads, or VmRSS in KiB.
pub fn status(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_else(|| panic!("no {field}: {text}"))
}
