//! A client that takes docker's command line: `docker` with a daemon of the test's, or `nerdctl` with a containerd of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::containerd::{cgroup_hierarchies, describe, eventually, pids, text, variable};

/// How a client is called, and where the containers that it makes are to be found.
pub struct Cli {
    /// The program and its global options.
    pub program: Vec<String>,
    /// What it has in its environment beside the test's.
    pub env: Vec<(String, PathBuf)>,
    /// The runtime's name.
    pub runtime: String,
    /// The image: busybox with all its applets.
    pub image: String,
    /// Options of every `run`.
    pub options: Vec<String>,
    /// Whether `run` is without a network where its options have none.
    pub without_network: bool,
    /// The containerd namespace of the containers.
    pub namespace: String,
    /// containerd's socket.
    pub address: String,
    /// The parent of the containers' cgroups, in every hierarchy; begins with '/'.
    pub cgroup: String,
}

/// The words of a command that a shell runs.
pub fn sh(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

impl Cli {
    /// The client with these arguments, to be run by the test in its own way.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(args).stdin(Stdio::null());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The same, for what is to end by itself: it has `PATIENCE` and more for that.
    pub fn bounded(&self, args: &[&str]) -> Command {
        let client = self.command(args);
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120"]).arg(client.get_program()).args(client.get_args());
        command.envs(self.env.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        command
    }

    /// Runs the client to its end.
    pub fn call(&self, args: &[&str]) -> Output {
        self.bounded(args).output().expect("timeout")
    }

    /// The same, which must succeed; returns its output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        text(&output.stdout)
    }

    /// Makes the image: the one layer of DRAY_IMAGE, an OCI layout that is unpacked in a directory.
    pub fn import(&self, dir: &Path) {
        let layout = dir.join("layout");
        fs::create_dir(&layout).unwrap();
        let tar = Command::new("tar").arg("-C").arg(&layout).arg("-xf").arg(variable("DRAY_IMAGE")).status().unwrap();
        assert!(tar.success(), "tar");
        let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"));
        let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let manifest = read(blob(&read(layout.join("index.json"))["manifests"][0]["digest"]));
        let layer = blob(&manifest["layers"][0]["digest"]);
        let changes = ["--change", "ENV PATH=/bin:/usr/bin", "--change", "CMD [\"/bin/sh\"]"];
        self.ok(&[&["import"], &changes[..], &[layer.to_str().unwrap(), &self.image]].concat());
        fs::remove_dir_all(layout).unwrap();
    }

    /// The words of a `run`: mostly without a network, for nothing of the machine's is to be changed.
    pub fn run_args<'a>(&'a self, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["run"];
        args.extend(self.options.iter().map(String::as_str));
        if !options.contains(&"--runtime") {
            args.extend(["--runtime", &self.runtime]);
        }
        if self.without_network && !options.contains(&"--network") {
            args.extend(["--network", "none"]);
        }
        args.extend(options);
        args.push(&self.image);
        args.extend(command);
        args
    }

    /// `run --rm OPTIONS IMAGE COMMAND`: runs a container to its end.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.call(&self.run_args(&[&["--rm"], options].concat(), command))
    }

    /// The same, which must succeed; returns its output.
    #[track_caller]
    pub fn run_ok(&self, options: &[&str], command: &[&str]) -> String {
        let output = self.run(options, command);
        assert!(output.status.success(), "run {options:?} {command:?}: {output:?}");
        text(&output.stdout)
    }

    /// The same in the background, with pipes at its stdin, stdout and stderr.
    pub fn run_attached(&self, options: &[&str], command: &[&str]) -> Child {
        let mut client = self.bounded(&self.run_args(&[&["--rm"], options].concat(), command));
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client")
    }

    /// `run --detach --name NAME OPTIONS IMAGE COMMAND`; returns the container.
    #[track_caller]
    pub fn detached(&self, name: &str, options: &[&str], command: &[&str]) -> Container<'_> {
        let id = self.ok(&self.run_args(&[&["--detach", "--name", name], options].concat(), command));
        Container { cli: self, name: name.to_string(), id: id.trim().to_string() }
    }

    /// The same, for a container that says "ready" when it is.
    #[track_caller]
    pub fn ready(&self, name: &str, options: &[&str], command: &[&str]) -> Container<'_> {
        let container = self.detached(name, options, command);
        let ready = eventually(|| container.logs().contains("ready"));
        assert!(ready, "{name} is not ready: {:?}", container.logs());
        container
    }
}

/// A container that was started in the background.
pub struct Container<'a> {
    cli: &'a Cli,
    /// As it was asked for.
    pub name: String,
    /// As containerd knows it.
    pub id: String,
}

impl Container<'_> {
    /// `exec OPTIONS NAME COMMAND`.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> Output {
        self.cli.call(&[&["exec"], options, &[&self.name], command].concat())
    }

    /// The same, which must succeed; returns its output.
    #[track_caller]
    pub fn exec_ok(&self, options: &[&str], command: &[&str]) -> String {
        let output = self.exec(options, command);
        assert!(output.status.success(), "exec {options:?} {command:?}: {output:?}");
        text(&output.stdout)
    }

    /// `COMMAND NAME`, which must succeed; returns its output.
    #[track_caller]
    pub fn ok(&self, command: &[&str]) -> String {
        self.cli.ok(&[command, &[&self.name]].concat())
    }

    /// What it has written so far.
    #[track_caller]
    pub fn logs(&self) -> String {
        self.ok(&["logs"])
    }

    /// `inspect --format TEMPLATE`, without the line's end.
    #[track_caller]
    pub fn inspect(&self, template: &str) -> String {
        self.ok(&["inspect", "--format", template]).trim_end().to_string()
    }

    /// Its init, as the machine knows it.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.inspect("{{.State.Pid}}").parse().expect("a pid")
    }

    /// The file of the container's cgroup that has this name in version 1 or, where the controller is not there, in 2.
    #[track_caller]
    pub fn cgroup_value(&self, controller: &str, v1: &str, v2: &str) -> String {
        super::containerd::cgroup_value(&format!("{}/{}", self.cli.cgroup, self.id), controller, v1, v2)
    }

    /// Waits until the template says this.
    #[track_caller]
    pub fn until(&self, template: &str, wanted: &str) {
        let done = eventually(|| self.inspect(template) == wanted);
        assert!(done, "{}: {template} is not {wanted} but {}", self.name, self.inspect(template));
    }

    /// `rm --force NAME`, after which nothing of it is left.
    #[track_caller]
    pub fn remove(self) {
        self.ok(&["rm", "--force"]);
        eventually(|| self.leftovers().is_empty());
        assert_eq!(self.leftovers(), Vec::<String>::new(), "{}", self.name);
    }

    /// What is there of the container: its shim, cgroups, mounts, state, socket.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let is_shim = |pid: &u32| {
            let command = text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
            command.contains("containerd-shim") && command.contains(&self.id)
        };
        left.extend(pids().filter(is_shim).map(describe));
        let cgroup = format!("{}/{}", &self.cli.cgroup[1..], self.id);
        let dirs = cgroup_hierarchies().into_iter().map(|(root, _)| root.join(&cgroup));
        let state = Path::new("/run/dray").join(&self.cli.namespace).join(&self.id);
        let paths = dirs.chain([state, socket(&self.cli.address, &self.cli.namespace, &self.id)]);
        left.extend(paths.filter(|path| path.exists()).map(|path| path.display().to_string()));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&self.id)).map(Into::into));
        left
    }
}

/// The socket of a container's shim (containerd: pkg/shim SocketAddress).
fn socket(address: &str, namespace: &str, id: &str) -> PathBuf {
    let hash = Command::new("sh")
        .args(["-c", "printf %s \"$1\" | sha256sum", "sh", &format!("{address}/{namespace}/{id}")])
        .output()
        .unwrap();
    Path::new("/run/containerd/s").join(&text(&hash.stdout)[..64])
}
