//! The command line: the binary under test by the name of `dray`, with a scratch `--root`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bundle::Bundle;
use super::scratch::Scratch;

/// A `dray` of its own root. Its drop leaves none of its containers.
pub struct Dray {
    scratch: Scratch,
    binary: PathBuf,
}

impl Dray {
    /// With a new scratch directory, in which root and bundles are.
    pub fn new() -> Dray {
        let scratch = Scratch::new();
        let binary = scratch.dir().join("dray");
        symlink(super::shim_binary(), &binary).expect("link named dray");
        Dray { scratch, binary }
    }

    /// The directory that bundles are made in.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where the containers' states are: `--root`.
    pub fn root(&self) -> PathBuf {
        self.scratch.dir().join("state").join(self.scratch.namespace())
    }

    /// The state directory of a container.
    pub fn state_dir(&self, id: &str) -> PathBuf {
        self.root().join(id)
    }

    /// The document that is kept there.
    pub fn saved(&self, id: &str) -> Value {
        let path = self.state_dir(id).join("state.json");
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The pid of a container's init.
    pub fn pid(&self, id: &str) -> i32 {
        self.saved(id)["init"]["pid"].as_i64().unwrap_or_else(|| panic!("{id} has no init")) as i32
    }

    /// A bundle whose rootfs is a directory of busybox, as one that runc is given.
    pub fn bundle(&self, id: &str) -> Bundle {
        Bundle::new(&self.scratch, id).plain_rootfs()
    }

    /// The command, with `--root` before `args`, in a directory that is no bundle.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(self.root()).args(args).stdin(Stdio::null()).current_dir(self.scratch.dir());
        command
    }

    /// The same without `--root`.
    pub fn plain(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.stdin(Stdio::null()).current_dir(self.scratch.dir());
        command
    }

    /// Runs it to its end and reads what it prints. What stays behind must not have its streams.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("dray")
    }

    /// The same in a bundle. What stays behind may have its streams: they are files.
    pub fn run_in(&self, bundle: &Path, args: &[&str]) -> Output {
        self.finish(self.command(args).current_dir(bundle))
    }

    /// Runs a command to its end, with files for stdout and stderr.
    pub fn finish(&self, command: &mut Command) -> Output {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = |name: &str| {
            let path = self.scratch.dir().join(format!("{name}.{number}"));
            (fs::File::create(&path).expect("create"), path)
        };
        let ((out, out_path), (err, err_path)) = (file("stdout"), file("stderr"));
        let status = command.stdout(out).stderr(err).status().expect("dray");
        Output { status, stdout: fs::read(out_path).unwrap(), stderr: fs::read(err_path).unwrap() }
    }

    /// Makes a container and starts it, in the background.
    #[track_caller]
    pub fn started(&self, bundle: &Bundle) {
        ok(&self.run_in(bundle.dir(), &["run", "-d", &bundle.id]));
    }
}

impl Default for Dray {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Dray {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            let id = entry.file_name().into_string().expect("id");
            let output = self.run(&["delete", "--force", &id]);
            if !output.status.success() {
                eprintln!("cleaning up {id}: {}", text(&output.stderr));
            }
        }
    }
}

/// It has succeeded; returns what is on stdout.
#[track_caller]
pub fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// It has failed with `status`; returns what is on stderr.
#[track_caller]
pub fn fails(output: &Output, status: i32) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{}{stderr}", text(&output.stdout));
    stderr
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until it is so.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + super::patience(Duration::from_secs(20));
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
