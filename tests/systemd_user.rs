//! systemd's cgroup driver for who is rootless: a container is a scope of the user's own systemd. Where systemd does not
//! run, and on v1, where it gives no user a controller, the tests are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::bundle::Bundle;
use common::driver::{Shim, StartOptions, runc_options};
use common::events::EventSink;
use common::rootless::{Cgroups, Ids, rootless};
use common::scratch::Scratch;
use common::stdio::Io;
use common::world::{World, leftovers, refused};
use common::{block_on, shim_binary, skipped};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;
use serde_json::json;
use ttrpc::Code;

/// A guest without hardware virtualisation is slow.
const LONG: Duration = Duration::from_secs(90);

/// False, and said, where the test cannot run.
fn systemd(name: &str) -> bool {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let runs = Path::new("/run/systemd/system").is_dir();
    match (runs, v2) {
        (true, true) => return true,
        (false, _) => skipped(name, "systemd does not run here"),
        (true, false) => skipped(name, "the controllers are not cgroup2's"),
    }
    false
}

/// A container that sleeps, whose terminals' group is one that is mapped.
fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"]).edit(|spec| {
        for mount in spec["mounts"].as_array_mut().expect("mounts") {
            mount["options"].as_array_mut().expect("options").retain(|option| option != "gid=5");
        }
    })
}

/// A shim, and a container of it that is to be a unit.
struct Host {
    world: World,
    bundle: Bundle,
    unit: String,
}

impl Host {
    /// At `path`, in which NAME is the container's own name.
    async fn new(path: &str, options: StartOptions, change: impl FnOnce(Bundle) -> Bundle) -> Host {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let name = scratch.namespace().replace(['-', '.'], "_");
        let unit = if path.is_empty() { "dray-one.scope".to_owned() } else { format!("dray-{name}.scope") };
        let bundle = change(sleeping(Bundle::new(&scratch, "one")));
        let bundle = bundle.edit(|spec| spec["linux"]["cgroupsPath"] = path.replace("NAME", &name).into());
        let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.expect("start action");
        Host { world: World { shim, sink, scratch }, bundle, unit }
    }

    async fn run(&self) -> u32 {
        self.world.shim.within(LONG).create(&self.bundle, &Io::null()).await.expect("create");
        self.world.start("one", "").await.expect("start").pid
    }

    /// A property as the user's systemd tells it.
    fn shown(&self, property: &str) -> String {
        let args = ["--user", "show", &self.unit, "--value", "--property", property];
        let output = Command::new("systemctl").args(args).output().expect("systemctl");
        assert!(output.status.success(), "{property}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[track_caller]
    fn shows(&self, wanted: &[(&str, &str)]) {
        for (name, value) in wanted {
            assert_eq!(self.shown(name), *value, "{name}");
        }
    }

    fn directory(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(self.shown("ControlGroup").trim_start_matches('/'))
    }

    async fn exec(&self, exec: &str, script: &str) -> u32 {
        let process = self.bundle.process(&["sh", "-c", script]);
        self.world.exec_to_exit("one", exec, &process, &Io::null()).await.expect(exec).exit_status
    }

    async fn end(self) {
        let directory = self.directory();
        assert!(directory.exists());
        self.world.end("one").await;
        self.shows(&[("LoadState", "not-found"), ("ActiveState", "inactive")]);
        assert!(!directory.exists());
        self.world.close().await;
    }
}

fn with_limits(bundle: Bundle) -> Bundle {
    bundle.edit(|spec| {
        let resources = spec["linux"]["resources"].as_object_mut().expect("resources");
        resources.insert("memory".into(), json!({"limit": 16 << 20, "swap": 16 << 20}));
        resources.insert("pids".into(), json!({"limit": 32}));
        resources.insert("cpu".into(), json!({"quota": 50000, "period": 100_000}));
    })
}

/// Wants more memory than a container of 16 MiB has, at once.
const HOG: &str = "dd if=/dev/zero of=/dev/null count=1 bs=64M 2>/dev/null";

#[test]
fn a_rootless_container_is_a_scope_of_the_users_systemd() {
    if !systemd("a rootless container is a scope of the user's systemd") {
        return;
    }
    rootless(Ids::Many, Cgroups::Systemd, || {
        block_on(async {
            let host = Host::new("user.slice:dray:NAME", StartOptions::default(), with_limits).await;
            let pid = host.run().await;
            assert_eq!(host.bundle.log(), "");
            host.shows(&[
                ("ActiveState", "active"),
                ("Slice", "user.slice"),
                ("Delegate", "yes"),
                ("Transient", "yes"),
            ]);
            let directory = host.directory();
            let file = |name: &str| fs::read_to_string(directory.join(name)).expect(name).trim().to_owned();
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert!(cgroup.trim().ends_with(&format!("/user.slice/{}", host.unit)), "{cgroup}");
            let kept = |memory: &str, tasks: &str| {
                host.shows(&[("MemoryMax", memory), ("TasksMax", tasks), ("CPUQuotaPerSecUSec", "500ms")]);
                assert_eq!((file("memory.max"), file("pids.max")), (memory.to_owned(), tasks.to_owned()));
                assert_eq!(file("cpu.max"), "50000 100000");
            };
            kept("16777216", "32");
            let reloaded = Command::new("systemctl").args(["--user", "daemon-reload"]).status().expect("systemctl");
            assert!(reloaded.success());
            kept("16777216", "32");
            // An exec is in it, and held by its limits.
            assert_eq!(host.exec("hog", HOG).await, 137);
            assert_eq!(host.exec("less", "true").await, 0);
            let change = json!({"memory": {"limit": 128 << 20, "swap": 128 << 20}, "pids": {"limit": 9}});
            host.world.shim.within(LONG).update("one", &change).await.unwrap();
            kept("134217728", "9");
            assert_eq!(host.exec("no-hog", HOG).await, 0);
            host.world.pause("one").await.unwrap();
            assert_eq!(file("cgroup.freeze"), "1");
            host.world.resume("one").await.unwrap();
            host.end().await;
        });
    });
}

fn forced() -> StartOptions {
    let options = oci::Options { systemd_cgroup: true, ..Default::default() };
    let any = runc_options("");
    StartOptions { options: Some(Any { value: options.write_to_bytes().unwrap(), ..any }), ..StartOptions::default() }
}

/// With root alone, as a user has it who has no ids beside.
#[test]
fn a_container_that_names_no_place_is_in_the_users_slice() {
    if !systemd("a container that names no place is in the user's slice") {
        return;
    }
    rootless(Ids::One, Cgroups::Systemd, || {
        block_on(async {
            let host = Host::new("", forced(), |bundle| bundle).await;
            host.run().await;
            host.shows(&[("ActiveState", "active"), ("Slice", "user.slice")]);
            host.end().await;
        });
    });
}

/// systemd moves an exec too, which we may not do: the machine's does so for the user's.
#[test]
fn a_shim_in_a_session_has_processes_moved() {
    if !systemd("a shim in a session has processes moved") {
        return;
    }
    rootless(Ids::Many, Cgroups::Session, || {
        block_on(async {
            let host = Host::new("user.slice:dray:NAME", StartOptions::default(), with_limits).await;
            host.run().await;
            let process = host.bundle.process(&["sleep", "1000"]);
            host.world.exec("one", "in", &process, &Io::null()).await.unwrap();
            let exec = host.world.start("one", "in").await.unwrap().pid;
            let cgroup = fs::read_to_string(format!("/proc/{exec}/cgroup")).unwrap();
            assert!(cgroup.trim().ends_with(&format!("/user.slice/{}", host.unit)), "{cgroup}");
            host.world.kill("one", "in", libc::SIGKILL, false).await.unwrap();
            assert_eq!(host.exec("hog", HOG).await, 137);
            host.end().await;
        });
    });
}

#[test]
fn what_a_killed_rootless_shim_leaves_is_removed() {
    if !systemd("what a killed rootless shim leaves is removed") {
        return;
    }
    rootless(Ids::Many, Cgroups::Systemd, || {
        block_on(async {
            let host = Host::new("user.slice:dray:NAME", StartOptions::default(), |bundle| bundle).await;
            host.run().await;
            let directory = host.directory();
            host.world.kill_shim().await.unwrap();
            assert_eq!(host.world.delete_action().unwrap().exit_status, 137);
            host.shows(&[("LoadState", "not-found")]);
            assert!(!directory.exists());
            assert_eq!(leftovers(&host.world.scratch), [""; 0]);
        });
    });
}

/// There is the machine's systemd, and it is not this user's.
#[test]
fn a_user_without_a_systemd_is_told() {
    if !systemd("a user without a systemd is told") {
        return;
    }
    rootless(Ids::Many, Cgroups::Systemd, || {
        block_on(async {
            let nowhere =
                StartOptions { env: vec![("XDG_RUNTIME_DIR", "/tmp/none".into())], ..StartOptions::default() };
            let host = Host::new("user.slice:dray:NAME", nowhere, |bundle| bundle).await;
            let created = host.world.shim.within(LONG).create(&host.bundle, &Io::null()).await;
            refused(created, Code::UNAVAILABLE, &["one", "connecting", &host.unit, "/tmp/none/systemd/private"]);
            host.world.close().await;
        });
    });
}
