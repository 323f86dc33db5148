//! The CRI plugin of a containerd of the test's own, driven over its gRPC API as the kubelet drives it: pods, their
//! containers, and what is left of them. Requests are JSON in the words of the CRI, as crictl takes them.

// Each test binary has this module for itself and uses its part of it.
#![allow(dead_code)]

pub mod grpc;
pub mod stream;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::containerd::version::{Driven, Version};
use super::containerd::{Containerd, IMAGE, eventually, text};
use grpc::{Client, Status};

/// A command that does nothing and ends at SIGTERM, though it is its namespace's init.
pub const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A containerd with its CRI plugin.
pub struct Cri {
    /// The daemon.
    pub containerd: Containerd,
    client: Client,
}

/// A pod that runs, with the configuration that each of its containers' creation repeats.
pub struct Pod {
    /// Its sandbox.
    pub id: String,
    config: Value,
}

/// What ExecSync answered.
#[derive(Debug, PartialEq)]
pub struct Output {
    /// The exit status.
    pub code: i32,
    /// The whole stdout.
    pub stdout: String,
    /// The whole stderr.
    pub stderr: String,
}

impl Driven for Cri {
    fn start(version: &'static Version, bin: PathBuf, test: String) -> Self {
        // The namespace in which the plugin has its containers.
        let containerd = Containerd::start_with(version, bin, test, Some("k8s.io"), configuration);
        let client = Client::new(Path::new(&containerd.address()));
        let cri = Self { containerd, client };
        cri.wait_until_ready();
        cri
    }
}

impl Cri {
    /// Waits until the plugin is there, has its network, and knows the imported images, of which events tell it.
    pub fn wait_until_ready(&self) {
        let has_image = |image: &str| {
            let status = self.try_call("ImageStatus", &json!({"image": {"image": image}}));
            status.is_ok_and(|status| !status["image"].is_null())
        };
        let is_ready = || {
            let status = self.try_call("Status", &json!({})).ok()?;
            let conditions = status["status"]["conditions"].as_array()?.clone();
            // A third is that containerd has nothing to say about its configuration.
            let is_true = |name| conditions.iter().any(|it| it["type"] == name && it["status"] == true);
            (is_true("RuntimeReady") && is_true("NetworkReady")).then_some(())
        };
        assert!(
            eventually(|| is_ready().is_some() && has_image(IMAGE) && has_image(PAUSE_IMAGE)),
            "the CRI plugin is not ready: {:?}",
            self.try_call("Status", &json!({}))
        );
    }

    /// Calls a method of the runtime service.
    pub fn try_call(&self, method: &str, request: &Value) -> Result<Value, Status> {
        self.client.call(method, request)
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn call(&self, method: &str, request: &Value) -> Value {
        self.try_call(method, request).unwrap_or_else(|e| panic!("{method} {request}: {e:?}"))
    }

    /// Runs a pod: one with a network namespace of its own, but for what `config` says over it.
    #[track_caller]
    pub fn run_pod(&self, name: &str, config: Value) -> Pod {
        self.run_pod_by("", name, config)
    }

    /// The same, by a runtime handler other than the default.
    #[track_caller]
    pub fn run_pod_by(&self, handler: &str, name: &str, config: Value) -> Pod {
        let pod = self.try_run_pod_by(handler, name, config);
        pod.unwrap_or_else(|e| panic!("RunPodSandbox {name}: {e:?}"))
    }

    /// The same, which may be refused.
    pub fn try_run_pod_by(&self, handler: &str, name: &str, config: Value) -> Result<Pod, Status> {
        let mut whole = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "default"},
            "hostname": name,
            "log_directory": self.logs().join(name),
            "linux": {
                "cgroup_parent": self.containerd.cgroup,
                "security_context": {"namespace_options": {"network": "POD", "pid": "CONTAINER", "ipc": "POD"}},
            },
        });
        merge(&mut whole, config);
        fs::create_dir_all(self.logs().join(name)).unwrap();
        let reply = self.try_call("RunPodSandbox", &json!({"config": whole, "runtime_handler": handler}))?;
        let id = reply["pod_sandbox_id"].as_str().unwrap().to_string();
        self.containerd.expect_id(&id);
        Ok(Pod { id, config: whole })
    }

    /// Creates a container that runs `command` in a shell, but for what `config` says over it.
    #[track_caller]
    pub fn create(&self, pod: &Pod, name: &str, command: &str, config: Value) -> String {
        let mut whole = json!({
            "metadata": {"name": name},
            "image": {"image": IMAGE},
            "command": ["sh", "-c", command],
            "log_path": format!("{name}.log"),
            "linux": {"security_context": {"namespace_options": {"pid": "CONTAINER"}}},
        });
        merge(&mut whole, config);
        let request = json!({"pod_sandbox_id": pod.id, "config": whole, "sandbox_config": pod.config});
        let id = self.call("CreateContainer", &request)["container_id"].as_str().unwrap().to_string();
        self.containerd.expect_id(&id);
        id
    }

    /// Creates and starts it.
    #[track_caller]
    pub fn run(&self, pod: &Pod, name: &str, command: &str, config: Value) -> String {
        let id = self.create(pod, name, command, config);
        self.call("StartContainer", &json!({"container_id": id}));
        id
    }

    /// The status of a container.
    #[track_caller]
    pub fn status(&self, id: &str) -> Value {
        self.call("ContainerStatus", &json!({"container_id": id}))["status"].take()
    }

    /// Waits until it has exited; returns its status.
    #[track_caller]
    pub fn wait(&self, id: &str) -> Value {
        let exited = eventually(|| self.status(id)["state"] == "CONTAINER_EXITED");
        assert!(exited, "{id} does not exit: {}", self.status(id));
        self.status(id)
    }

    /// Runs a container to its end, which must be a good one; returns the content of its log without the tags.
    #[track_caller]
    pub fn output(&self, pod: &Pod, name: &str, command: &str, config: Value) -> String {
        let id = self.run(pod, name, command, config);
        let status = self.wait(&id);
        let log = self.finished_log(&status);
        assert_eq!(status["exit_code"], 0, "{name}: {command}: {log:?}");
        log.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// ExecSync without a time limit.
    #[track_caller]
    pub fn exec(&self, id: &str, command: &[&str]) -> Output {
        self.try_exec(id, command, 0).unwrap_or_else(|e| panic!("{command:?}: {e:?}"))
    }

    /// ExecSync with a limit in seconds, 0 for none.
    pub fn try_exec(&self, id: &str, command: &[&str], timeout: u32) -> Result<Output, Status> {
        let request = json!({"container_id": id, "cmd": command, "timeout": timeout});
        let reply = self.client.call_message("ExecSync", &request)?;
        let bytes = |name| text(&grpc::bytes_of(&*reply, name));
        Ok(Output { code: grpc::number_of(&*reply, "exit_code"), stdout: bytes("stdout"), stderr: bytes("stderr") })
    }

    /// ExecSync of a shell's script that must succeed; returns its stdout.
    #[track_caller]
    pub fn sh(&self, id: &str, script: &str) -> String {
        let output = self.exec(id, &["sh", "-c", script]);
        assert!(output.code == 0 && output.stderr.is_empty(), "{script}: {output:?}");
        output.stdout.trim_end().to_string()
    }

    /// A session of Exec, with stdin, and with stderr unless it has a terminal.
    #[track_caller]
    pub fn exec_stream(&self, id: &str, command: &[&str], tty: bool) -> stream::Session {
        let request =
            json!({"container_id": id, "cmd": command, "tty": tty, "stdin": true, "stdout": true, "stderr": !tty});
        stream::Session::open(self.call("Exec", &request)["url"].as_str().unwrap())
    }

    /// A session of Attach.
    #[track_caller]
    pub fn attach(&self, id: &str, tty: bool) -> stream::Session {
        let request = json!({"container_id": id, "tty": tty, "stdin": true, "stdout": true, "stderr": !tty});
        stream::Session::open(self.call("Attach", &request)["url"].as_str().unwrap())
    }

    /// The lines of a container's log by its status, each with the stream that it came from. A line that was cut where
    /// a buffer ended is put together (CRI: `TIME STREAM P|F CONTENT`).
    pub fn log_lines(&self, status: &Value) -> Vec<(String, String)> {
        log_lines(Path::new(status["log_path"].as_str().unwrap()))
    }

    /// The same of one that has exited: containerd says so before it has written the last lines.
    #[track_caller]
    pub fn finished_log(&self, status: &Value) -> Vec<(String, String)> {
        let path = Path::new(status["log_path"].as_str().unwrap());
        assert!(eventually(|| !self.containerd.has_open(path)), "{} is not closed", path.display());
        log_lines(path)
    }

    /// The pid of a container's init.
    #[track_caller]
    pub fn pid(&self, id: &str) -> u32 {
        self.containerd.task(id).unwrap_or_else(|| panic!("no task {id}")).pid
    }

    /// Stops and removes the pod with its containers, as the kubelet does, and sees that nothing is left of any.
    #[track_caller]
    pub fn remove_all(&self, pods: &[Pod]) {
        for pod in pods {
            self.call("StopPodSandbox", &json!({"pod_sandbox_id": pod.id}));
            self.call("RemovePodSandbox", &json!({"pod_sandbox_id": pod.id}));
        }
        assert_eq!(self.call("ListContainers", &json!({}))["containers"], json!([]));
        assert_eq!(self.call("ListPodSandbox", &json!({}))["items"], json!([]));
        self.containerd.assert_nothing_left();
    }

    fn logs(&self) -> PathBuf {
        self.containerd.dir.join("logs")
    }
}

/// The lines of a log file, in the order in which they began.
pub fn log_lines(path: &Path) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    // Of each stream, the line that goes on: the other's may come between its parts.
    let mut unfinished: HashMap<String, usize> = HashMap::new();
    for line in fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).lines() {
        let [_time, stream, tag, content] = line.splitn(4, ' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        let index = unfinished.remove(stream).unwrap_or_else(|| {
            lines.push((stream.into(), String::new()));
            lines.len() - 1
        });
        lines[index].1.push_str(content);
        if tag == "P" {
            unfinished.insert(stream.into(), index);
        }
    }
    lines
}

/// The image that holds a pod's namespaces, in DRAY_IMAGE.
const PAUSE_IMAGE: &str = "localhost/pause:latest";

/// RFC 7386: objects are merged, anything else is replaced.
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

/// A network plugin that needs nothing of the host: loopback is brought up, and the address is told though no interface
/// has it. The plugin interface is an environment and JSON (CNI: SPEC.md).
const CNI_PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD)
    busybox nsenter --net="$CNI_NETNS" busybox ip link set lo up
    echo "{\"cniVersion\":\"0.3.1\",\"interfaces\":[{\"name\":\"$CNI_IFNAME\",\"sandbox\":\"$CNI_NETNS\"}],"
    echo "\"ips\":[{\"version\":\"4\",\"interface\":0,\"address\":\"198.51.100.2/24\"}]}" ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
"#;

fn network(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    // containerd calls `loopback` beside the plugins of the list.
    for name in ["loopback", "silent"] {
        fs::write(dir.join("bin").join(name), CNI_PLUGIN).unwrap();
        fs::set_permissions(dir.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::create_dir_all(dir.join("conf")).unwrap();
    let list = json!({"cniVersion": "0.3.1", "name": "silent", "plugins": [{"type": "silent"}]});
    fs::write(dir.join("conf/silent.conflist"), list.to_string()).unwrap();
}

/// The handler that is named by a path, as the configuration of other runtimes in runc's place is.
pub const BY_PATH: &str = "by-path";

/// Another one, in runc's place by its name, which is to have systemd make the cgroups: the CRI plugin has this option for
/// runc alone.
pub const SYSTEMD: &str = "systemd";

/// containerd's configuration. In version 3 the plugin is three plugins.
fn configuration(containerd: &Containerd) -> String {
    let dir = containerd.dir.display();
    network(&containerd.dir.join("cni"));
    let (address, snapshotter, runtime) = (containerd.address(), containerd.snapshotter, &containerd.runtime);
    let shim = super::shim_binary();
    fs::create_dir_all(containerd.dir.join("shims")).unwrap();
    symlink(&shim, containerd.dir.join("shims/containerd-shim-runc-v2")).unwrap();
    let shim = shim.display();
    let own = format!("snapshotter = \"{snapshotter}\"");
    let bin = format!("\"{dir}/cni/bin\"");
    let (version, images, cri, sandbox_image, own, bin_dirs) = if containerd.config_version() < 3 {
        let sandbox_image = format!("sandbox_image = \"{PAUSE_IMAGE}\"");
        (2, String::new(), "io.containerd.grpc.v1.cri", sandbox_image, own, format!("bin_dir = {bin}"))
    } else {
        let images = format!(
            r#"[plugins."io.containerd.cri.v1.images"]
  {own}
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
# It would listen at a path of the machine's.
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#
        );
        (3, images, "io.containerd.cri.v1.runtime", String::new(), String::new(), format!("bin_dirs = [{bin}]"))
    };
    format!(
        r#"version = {version}
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{address}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
{images}
[plugins."{cri}"]
  {sandbox_image}
  disable_apparmor = true
  # Who has no CAP_SYS_RESOURCE cannot give a pod the score that a kubelet asks for.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."{cri}".cni]
  {bin_dirs}
  conf_dir = "{dir}/cni/conf"
[plugins."{cri}".containerd]
  {own}
  default_runtime_name = "tested"
[plugins."{cri}".containerd.runtimes.tested]
  runtime_type = "{runtime}"
[plugins."{cri}".containerd.runtimes.{BY_PATH}]
  runtime_type = "io.containerd.runc.v2"
  runtime_path = "{shim}"
[plugins."{cri}".containerd.runtimes.{SYSTEMD}]
  runtime_type = "io.containerd.runc.v2"
[plugins."{cri}".containerd.runtimes.{SYSTEMD}.options]
  SystemdCgroup = true
"#
    )
}
