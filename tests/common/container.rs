//! One container's life for tests that look at it from inside: run to the end, kept running for execs, or refused.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::bundle::Bundle;
use super::driver::{Shim, StartOptions, code, runc_options};
use super::events::EventSink;
use super::scratch::Scratch;
use super::stdio::Io;
use super::{block_on, shim_binary};

/// Bound of every wait. Far above what anything takes: the machine may be busy.
const BOUND: Duration = Duration::from_secs(60);

/// What a process left.
#[derive(Debug)]
pub struct Ended {
    pub status: u32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Its stdout, where it succeeded without a complaint.
    pub fn ok(self) -> String {
        assert!(self.status == 0 && self.stderr.is_empty(), "{self:#?}");
        self.stdout
    }

    /// The same by lines.
    pub fn lines(self) -> Vec<String> {
        self.ok().lines().map(str::to_string).collect()
    }
}

/// Why a Create failed.
#[derive(Debug)]
pub struct Refusal {
    pub code: ttrpc::Code,
    pub message: String,
}

impl Refusal {
    /// Asserts on the code (not for another shim than ours) and that the message has all the words.
    pub fn names(self, code: ttrpc::Code, words: &[&str]) {
        let as_told = std::env::var_os("DRAY_TEST_SHIM").is_some() || self.code == code;
        assert!(as_told && words.iter().all(|word| self.message.contains(word)), "{code:?} {words:?}: {self:#?}");
    }
}

/// Where a container lives. A second one that lives at the same time needs a host of its own: the end of a `Shim` takes
/// with it whatever shim there still is in its scratch directory.
pub struct Host {
    pub scratch: Scratch,
    pub sink: EventSink,
}

impl Host {
    pub fn new() -> Host {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        Host { scratch, sink }
    }

    pub fn bundle(&self, id: &str) -> Bundle {
        Bundle::new(&self.scratch, id)
    }

    async fn shim(&self, bundle: &Bundle) -> Shim {
        let options = std::env::var_os("DRAY_TEST_SHIM").map(|_| runc_options(""));
        let options = StartOptions { options, ..StartOptions::default() };
        Shim::start_with(&shim_binary(), bundle, &self.sink, options).await.expect("start action")
    }

    /// Runs a container to its end and deletes it.
    pub async fn run(&self, bundle: &Bundle) -> Ended {
        self.create(bundle).await.run().await
    }

    /// Creates a container.
    pub async fn create<'b>(&self, bundle: &'b Bundle) -> Container<'b> {
        let shim = self.shim(bundle).await;
        let io = Io::fifos(&self.scratch, &bundle.id);
        let pid = must(shim.within(BOUND).create(bundle, &io).await, "create").pid;
        Container { bundle, shim, io, pid }
    }

    /// The same for one that may be refused.
    pub async fn try_run(&self, bundle: &Bundle) -> Result<Ended, String> {
        let shim = self.shim(bundle).await;
        let io = Io::fifos(&self.scratch, &bundle.id);
        let created = shim.within(BOUND).create(bundle, &io).await.map_err(|e| e.to_string())?;
        Ok(Container { bundle, shim, io, pid: created.pid }.run().await)
    }

    /// Creates and starts a container.
    pub async fn start<'b>(&self, bundle: &'b Bundle) -> Container<'b> {
        let container = self.create(bundle).await;
        must(container.shim.start(&bundle.id, "").await, "start");
        container
    }

    /// Creates a container that must not come to be; asserts that nothing of it is left, and that the shim lives.
    pub async fn refused(&self, bundle: &Bundle) -> Refusal {
        let before = self.scratch.leftovers();
        let shim = self.shim(bundle).await;
        let error = match shim.within(BOUND).create(bundle, &Io::null()).await {
            Ok(created) => panic!("{}: created, pid {}", bundle.spec(), created.pid),
            Err(error) => error,
        };
        let state = Path::new("/run/dray").join(self.scratch.namespace()).join(&bundle.id);
        assert!(!state.exists(), "{} after {error}", state.display());
        must(shim.shutdown_and_wait(BOUND).await, "shutdown");
        assert_eq!(self.scratch.leftovers(), before, "left by what was refused: {error}");
        Refusal { code: code(&error).unwrap_or(ttrpc::Code::OK), message: error.to_string() }
    }
}

/// A created container.
pub struct Container<'b> {
    pub bundle: &'b Bundle,
    pub shim: Shim,
    pub pid: u32,
    io: Io,
}

impl Container<'_> {
    /// From created to deleted.
    pub async fn run(mut self) -> Ended {
        let id = self.bundle.id.clone();
        let waiting = self.shim.within(BOUND).spawn_wait(&id, "").await;
        must(self.shim.start(&id, "").await, "start");
        let status = must(must(waiting.await, "wait"), "wait").exit_status;
        let stdout = must(self.io.stdout(BOUND).await, "stdout");
        let stderr = must(self.io.stderr(BOUND).await, "stderr");
        must(self.shim.within(BOUND).delete(&id, "").await, "delete");
        must(self.shim.shutdown_and_wait(BOUND).await, "shutdown");
        Ended { status, stdout, stderr }
    }

    /// The end of a started container's stdout so far, as soon as `text` is in it.
    pub async fn says(&mut self, text: &str) {
        must(self.io.stdout_with(text, BOUND).await, "stdout");
    }

    /// Runs a further process to its end and deletes it. `exec` is an id of its own.
    pub async fn exec(&self, exec: &str, process: &Value) -> Ended {
        let id = &self.bundle.id;
        let mut io = Io::fifos(self.bundle.scratch(), &format!("{id}-{exec}"));
        must(self.shim.exec(id, exec, process, &io).await, "exec");
        let waiting = self.shim.within(BOUND).spawn_wait(id, exec).await;
        must(self.shim.start(id, exec).await, "start of exec");
        let status = must(must(waiting.await, "wait"), "wait").exit_status;
        let stdout = must(io.stdout(BOUND).await, "stdout");
        let stderr = must(io.stderr(BOUND).await, "stderr");
        must(self.shim.delete(id, exec).await, "delete of exec");
        Ended { status, stdout, stderr }
    }

    /// A script as a further process.
    pub async fn exec_script(&self, exec: &str, script: &str) -> Ended {
        self.exec(exec, &self.bundle.process(&["sh", "-c", script])).await
    }

    /// A further process that must not come to be: the error of its Start, or of Exec itself.
    pub async fn exec_refused(&self, exec: &str, process: &Value) -> Refusal {
        let id = &self.bundle.id;
        let error = match self.shim.exec(id, exec, process, &Io::null()).await {
            Err(error) => error,
            Ok(_) => {
                let error = self.shim.start(id, exec).await.expect_err("the exec started");
                must(self.shim.delete(id, exec).await, "delete of exec");
                error
            }
        };
        Refusal { code: code(&error).unwrap_or(ttrpc::Code::OK), message: error.to_string() }
    }

    /// What the kernel shows of init: a file below its directory in /proc.
    pub fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.pid);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// The namespace of init, by its name in /proc/PID/ns.
    pub fn namespace(&self, name: &str) -> String {
        namespace_of(&self.pid.to_string(), name)
    }

    /// Kills and deletes it.
    pub async fn end(self) {
        let id = &self.bundle.id;
        must(self.shim.kill(id, "", libc::SIGKILL, true).await, "kill");
        must(self.shim.within(BOUND).wait(id, "").await, "wait");
        must(self.shim.within(BOUND).delete(id, "").await, "delete");
        must(self.shim.shutdown_and_wait(BOUND).await, "shutdown");
    }
}

/// A process's namespace; `pid` may be "self".
pub fn namespace_of(pid: &str, name: &str) -> String {
    let path = format!("/proc/{pid}/ns/{name}");
    let link = std::fs::read_link(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    link.to_string_lossy().into_owned()
}

/// Runs one container, changed from ctr's default, to its end; asserts that nothing of it is left.
pub fn run(change: impl FnOnce(Bundle) -> Bundle) -> Ended {
    block_on(async {
        let host = Host::new();
        let ended = host.run(&change(host.bundle("one"))).await;
        assert_eq!(host.scratch.leftovers(), [""; 0], "{ended:#?}");
        ended
    })
}

/// Runs a script in a container whose specification is changed.
pub fn run_script(script: &str, change: impl FnOnce(&mut Value)) -> Ended {
    run(|bundle| bundle.edit(change).script(script))
}

/// One container, changed from ctr's default, that must not come to be.
pub fn refused(change: impl FnOnce(Bundle) -> Bundle) -> Refusal {
    block_on(async {
        let host = Host::new();
        host.refused(&change(host.bundle("one"))).await
    })
}

fn must<T, E: Debug>(result: Result<T, E>, what: &str) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e:?}"))
}
