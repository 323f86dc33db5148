//! systemd's cgroup driver: a container is a scope of systemd's. Where systemd does not run, only that it is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::bundle::Bundle;
use common::driver::{Shim, StartOptions, open_pid, runc_options};
use common::events::EventSink;
use common::scratch::Scratch;
use common::stdio::Io;
use common::world::{World, leftovers, refused, status, until};
use common::{block_on, shim_binary, skipped};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;
use rustix::net::getpeername;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use serde_json::{Value, json};
use ttrpc::Code;

/// A guest without hardware virtualisation is slow.
const LONG: Duration = Duration::from_secs(90);

const ROOT: &str = "/sys/fs/cgroup";

/// False, and said, where the test cannot run.
fn systemd(name: &str) -> bool {
    let runs = Path::new("/run/systemd/system").is_dir();
    if !runs {
        skipped(name, "systemd does not run here");
    }
    runs
}

/// A shim, and a container of it that is to be a unit: its own slice, its own name.
struct Host {
    world: World,
    bundle: Bundle,
    slice: String,
    unit: String,
}

impl Host {
    async fn new(change: impl FnOnce(Bundle) -> Bundle) -> Host {
        Host::with(StartOptions::default(), change).await
    }

    async fn with(options: StartOptions, change: impl FnOnce(Bundle) -> Bundle) -> Host {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let name = scratch.namespace().replace(['-', '.'], "_");
        let slice = format!("draytest-{name}.slice");
        let path = format!("{slice}:{name}:one");
        let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
        let bundle = change(bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path)));
        let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.expect("start action");
        Host { world: World { shim, sink, scratch }, bundle, slice, unit: format!("{name}-one.scope") }
    }

    async fn run(&self) -> u32 {
        self.world.shim.within(LONG).create(&self.bundle, &Io::null()).await.expect("create");
        self.world.start("one", "").await.expect("start").pid
    }

    async fn create_fails(&self, code: Code, words: &[&str]) {
        refused(self.world.shim.within(LONG).create(&self.bundle, &Io::null()).await, code, words);
        assert_eq!(self.unit_is(), "not-found inactive");
        assert!(!self.directory().exists());
    }

    /// The cgroup of the unit, in the unified hierarchy.
    fn directory(&self) -> PathBuf {
        Path::new(ROOT).join("draytest.slice").join(&self.slice).join(&self.unit)
    }

    fn file(&self, name: &str) -> String {
        let path = self.directory().join(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
    }

    fn unit_is(&self) -> String {
        let shown = show(&self.unit, &["LoadState", "ActiveState"]);
        format!("{} {}", shown["LoadState"], shown["ActiveState"])
    }

    async fn end(self) {
        self.world.end("one").await;
        assert_eq!(self.unit_is(), "not-found inactive");
        assert!(!self.directory().exists());
        self.world.close().await;
    }
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().expect("systemctl");
    assert!(output.status.success(), "systemctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Properties as systemd itself tells them.
fn show(unit: &str, names: &[&str]) -> BTreeMap<String, String> {
    let list = names.join(",");
    let text = systemctl(&["show", unit, "-p", &list]);
    let mut shown = BTreeMap::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        // A list of devices has a line each.
        let all: &mut String = shown.entry(key.to_owned()).or_default();
        all.push_str(value);
        all.push('\n');
    }
    shown.into_iter().map(|(key, value)| (key, value.trim_end().to_owned())).collect()
}

#[track_caller]
fn shows(unit: &str, wanted: &[(&str, &str)]) {
    let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    let shown = show(unit, &names);
    for (name, value) in wanted {
        assert_eq!(shown.get(*name).map(String::as_str), Some(*value), "{name} of {unit}");
    }
}

fn with_resources(resources: Value) -> impl FnOnce(Bundle) -> Bundle {
    move |bundle| {
        bundle.edit(|spec| {
            let own = spec["linux"]["resources"].as_object_mut().expect("resources");
            own.extend(resources.as_object().expect("an object").clone());
        })
    }
}

const PROPERTIES: &[(&str, &str)] = &[
    ("MemoryMax", "134217728"),
    ("MemoryLow", "67108864"),
    ("TasksMax", "64"),
    ("CPUQuotaPerSecUSec", "500ms"),
    ("CPUQuotaPeriodUSec", "50ms"),
    ("AllowedCPUs", "0"),
];

const FILES: &[(&str, &str)] = &[
    ("memory.max", "134217728"),
    ("memory.low", "67108864"),
    ("pids.max", "64"),
    ("cpu.max", "25000 50000"),
    ("cpuset.cpus", "0"),
];

fn resources() -> Value {
    json!({
        "memory": {"limit": 128 << 20, "reservation": 64 << 20},
        "pids": {"limit": 64},
        "cpu": {"quota": 25000, "period": 50000, "cpus": "0", "shares": 512},
    })
}

#[test]
fn a_container_is_a_scope_that_keeps_its_limits() {
    if !systemd("a container is a scope that keeps its limits") {
        return;
    }
    block_on(async {
        let host = Host::new(with_resources(resources())).await;
        let shim = host.world.pid().await.unwrap();
        let pid = host.run().await;
        shows(
            &host.unit,
            &[
                ("ActiveState", "active"),
                ("Slice", &host.slice),
                ("Delegate", "yes"),
                ("Transient", "yes"),
                ("DefaultDependencies", "no"),
                ("Description", "dray container one"),
                ("CollectMode", "inactive-or-failed"),
                ("MemoryAccounting", "yes"),
                ("TasksAccounting", "yes"),
                ("CPUAccounting", "yes"),
                ("IOAccounting", "yes"),
                ("DevicePolicy", "strict"),
            ],
        );
        let devices = &show(&host.unit, &["DeviceAllow"])["DeviceAllow"];
        for device in ["/dev/char/1:3 rwm", "char-pts rwm", "block-* m"] {
            assert!(devices.contains(device), "{device} in {devices}");
        }
        let weight = host.file("cpu.weight");
        let kept = || {
            shows(&host.unit, PROPERTIES);
            shows(&host.unit, &[("CPUWeight", &weight)]);
            for (file, value) in FILES {
                assert_eq!(host.file(file), *value, "{file}");
            }
            assert_eq!(host.file("cpu.weight"), weight);
        };
        assert_ne!(weight, "100", "the usual one");
        kept();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.trim().ends_with(&format!("/draytest.slice/{}/{}", host.slice, host.unit)), "{cgroup}");
        // One thread, and no connection but containerd's: the streams of the container are null.
        assert_eq!((status(shim, "Threads"), connections(shim)), (1, vec![]));
        systemctl(&["daemon-reload"]);
        kept();
        // An exec is in it too.
        let io = Io::fifos(&host.world.scratch, "exec");
        let process = host.bundle.process(&["sleep", "1000"]);
        host.world.exec("one", "in", &process, &io).await.unwrap();
        let exec = host.world.start("one", "in").await.unwrap().pid;
        assert!(host.file("cgroup.procs").lines().any(|line| line == exec.to_string()));
        host.world.kill("one", "in", libc::SIGKILL, false).await.unwrap();
        host.end().await;
    });
}

/// To which of systemd's sockets and the bus's a process is connected. The kernel tells it to who has the socket alone.
fn connections(pid: i32) -> Vec<String> {
    let process = open_pid(pid).expect("the shim");
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let numbers = links.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let sockets = numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok());
    let peers = sockets.filter_map(|socket| getpeername(&socket).ok().flatten()).map(|peer| format!("{peer:?}"));
    peers.filter(|peer| peer.contains("systemd") || peer.contains("dbus")).collect()
}

#[test]
fn an_update_is_the_units_and_the_files() {
    if !systemd("an update is the units and the files") {
        return;
    }
    block_on(async {
        let host = Host::new(with_resources(resources())).await;
        host.run().await;
        let shim = host.world.shim.within(LONG);
        let change = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 33333, "period": 100_000},
            "pids": {"limit": 99},
        });
        shim.update("one", &change).await.unwrap();
        // Rounded up where systemd has hundredths only, exact in the file.
        let properties = [
            ("MemoryMax", "67108864"),
            ("TasksMax", "99"),
            ("CPUQuotaPerSecUSec", "340ms"),
            ("CPUQuotaPeriodUSec", "100ms"),
            ("MemoryLow", "67108864"),
            ("AllowedCPUs", "0"),
        ];
        shows(&host.unit, &properties);
        assert_eq!(host.file("memory.max"), "67108864");
        assert_eq!(host.file("cpu.max"), "33333 100000");
        assert_eq!(host.file("pids.max"), "99");
        // The kernel refuses CPUs that there are not, after systemd has taken them: all is as before.
        let wrong = json!({"pids": {"limit": 7}, "memory": {"limit": 32 << 20}, "cpu": {"cpus": "4000"}});
        let error = shim.update("one", &wrong).await.expect_err("CPUs that there are not");
        println!("{error}");
        shows(&host.unit, &properties);
        assert_eq!(host.file("memory.max"), "67108864");
        assert_eq!((host.file("pids.max"), host.file("cpu.max")), ("99".into(), "33333 100000".into()));
        assert_eq!(host.file("cpuset.cpus"), "0");
        // Another limit leaves the quota as it is.
        shim.update("one", &json!({"pids": {"limit": 98}})).await.unwrap();
        assert_eq!((host.file("pids.max"), host.file("cpu.max")), ("98".into(), "33333 100000".into()));
        systemctl(&["daemon-reload"]);
        shows(&host.unit, &properties[..1]);
        let kept = [("memory.max", "67108864"), ("memory.low", "67108864"), ("pids.max", "98"), ("cpuset.cpus", "0")];
        for (file, value) in kept {
            assert_eq!(host.file(file), value, "{file}");
        }
        // What systemd can keep of it.
        assert_eq!(host.file("cpu.max"), "34000 100000");
        // Many at once: the unit and the files are of one mind.
        let limits = [11, 12, 13, 14];
        let updates = limits.map(|limit| {
            let task = host.world.shim.within(LONG);
            tokio::spawn(async move { task.update("one", &json!({"pids": {"limit": limit}})).await })
        });
        for update in updates {
            update.await.unwrap().unwrap();
        }
        shows(&host.unit, &[("TasksMax", &host.file("pids.max"))]);
        assert_eq!(status(host.world.pid().await.unwrap(), "Threads"), 1);
        host.end().await;
    });
}

#[test]
fn annotations_are_properties() {
    if !systemd("annotations are properties") {
        return;
    }
    block_on(async {
        let annotated = |key: &'static str, value: &'static str| {
            move |bundle: Bundle| {
                bundle.edit(|spec| spec["annotations"][format!("org.systemd.property.{key}")] = json!(value))
            }
        };
        let host =
            Host::new(|bundle| annotated("CollectMode", "'inactive'")(annotated("TimeoutStopSec", "7")(bundle))).await;
        host.run().await;
        shows(&host.unit, &[("TimeoutStopUSec", "7s"), ("CollectMode", "inactive")]);
        host.end().await;
        for (key, value, word) in [("PIDs", "[1]", "PIDs"), ("TimeoutStopSec", "soon", "TimeoutStopSec")] {
            let host = Host::new(annotated(key, value)).await;
            host.create_fails(Code::INVALID_ARGUMENT, &[word]).await;
            host.world.close().await;
        }
        // A property that systemd does not know, or does not let be set, is its to refuse.
        let host = Host::new(annotated("NoSuchThing", "1")).await;
        host.create_fails(Code::INVALID_ARGUMENT, &["starting", &host.unit.clone(), "NoSuchThing"]).await;
        host.world.close().await;
    });
}

#[test]
fn a_create_that_fails_leaves_no_unit() {
    if !systemd("a create that fails leaves no unit") {
        return;
    }
    block_on(async {
        let host = Host::new(|bundle| bundle.args(&["/no/such/program"])).await;
        let created = host.world.shim.within(LONG).create(&host.bundle, &Io::null()).await;
        if created.is_ok() {
            host.world.start("one", "").await.expect_err("no such program");
            host.world.end("one").await;
        }
        assert_eq!(host.unit_is(), "not-found inactive");
        assert!(!host.directory().exists());
        // After the scope is there: a hook says no, and a limit is none that the kernel takes.
        let fails = host.bundle.edit(|spec| {
            spec["process"]["args"] = json!(["true"]);
            spec["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
        });
        let host = Host { bundle: fails, ..host };
        host.create_fails(Code::INTERNAL, &["hook"]).await;
        let host = Host { bundle: host.bundle.edit(|spec| spec["hooks"] = json!({})), ..host };
        let host = Host { bundle: with_resources(json!({"cpu": {"cpus": "4000"}}))(host.bundle), ..host };
        let words = ["one", "cpuset.cpus"];
        let error = host.world.shim.within(LONG).create(&host.bundle, &Io::null()).await.expect_err("no such CPU");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
        assert_eq!(host.unit_is(), "not-found inactive");
        assert_eq!(host.world.scratch.leftovers().len(), 1, "the shim");
        // And the name is free.
        let host = Host { bundle: with_resources(json!({"cpu": {}}))(host.bundle.args(&["sleep", "1000"])), ..host };
        host.run().await;
        host.end().await;
    });
}

#[test]
fn a_taken_unit_is_left_alone() {
    if !systemd("a taken unit is left alone") {
        return;
    }
    block_on(async {
        let first = Host::new(|bundle| bundle).await;
        let pid = first.run().await;
        let path = first.bundle.spec()["linux"]["cgroupsPath"].clone();
        let second = Host::new(|bundle| bundle.edit(|spec| spec["linux"]["cgroupsPath"] = path)).await;
        let created = second.world.shim.within(LONG).create(&second.bundle, &Io::null()).await;
        refused(created, Code::ALREADY_EXISTS, &["one", "starting", &first.unit]);
        // By the action too, for a shim that has been killed on its way, and for one whose unit has gone since; also where
        // that was to be in another slice, of which the cgroup tells nothing.
        let cgroup = |slice: &str| Path::new("/draytest.slice").join(slice).join(&first.unit);
        let (own, other) = (cgroup(&first.slice), cgroup("draytest-other.slice"));
        for (cgroup, inode) in [(&own, json!(null)), (&own, json!(1)), (&other, json!(null)), (&other, json!(1))] {
            let state = json!({
                "version": 1,
                "id": "one",
                "bundle": second.bundle.dir(),
                "owner": {"pid": 1, "start_time": 1},
                "cgroup": cgroup,
                "cgroup_inode": inode,
                "scope": {"unit": first.unit, "instance": "system"},
            });
            let dir = Path::new("/run/dray").join(second.world.scratch.namespace()).join("one");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("state.json"), state.to_string()).unwrap();
            second.world.delete_action().unwrap();
            assert!(!dir.exists());
            assert_eq!(first.unit_is(), "loaded active");
        }
        second.world.close().await;
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(first.unit_is(), "loaded active");
        first.end().await;
    });
}

#[test]
fn what_a_killed_shim_leaves_is_removed() {
    if !systemd("what a killed shim leaves is removed") {
        return;
    }
    block_on(async {
        for own_pids in [true, false] {
            let change = |bundle: Bundle| if own_pids { bundle } else { bundle.without_namespace("pid") };
            let host = Host::new(|bundle| change(bundle.script("sleep 1000 & sleep 1000"))).await;
            host.run().await;
            assert_eq!(host.unit_is(), "loaded active");
            host.world.kill_shim().await.unwrap();
            let deleted = host.world.delete_action().unwrap();
            assert_eq!(deleted.exit_status, 137);
            assert_eq!(host.unit_is(), "not-found inactive");
            assert!(!host.directory().exists());
            assert_eq!(leftovers(&host.world.scratch), [""; 0]);
        }
    });
}

/// In a user namespace of its own, and as one who joins the pid namespace of another, whose birth is in two steps.
#[test]
fn however_it_is_born_it_is_in_its_scope() {
    if !systemd("however it is born it is in its scope") {
        return;
    }
    block_on(async {
        let in_scope = |host: &Host, pid: u32| {
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert!(cgroup.lines().all(|line| line.ends_with(&host.unit)), "{cgroup}");
        };
        let first = Host::new(|bundle| bundle.user_namespace(100_000)).await;
        let pid = first.run().await;
        in_scope(&first, pid);
        let joins = |bundle: Bundle| {
            bundle.user_namespace(100_000).edit(|spec| {
                for namespace in spec["linux"]["namespaces"].as_array_mut().expect("namespaces") {
                    if let Some(name) = namespace["type"].as_str().filter(|name| ["pid", "user"].contains(name)) {
                        namespace["path"] = json!(format!("/proc/{pid}/ns/{name}"));
                    }
                }
                for field in ["uidMappings", "gidMappings"] {
                    spec["linux"].as_object_mut().expect("linux").remove(field);
                }
            })
        };
        let second = Host::new(joins).await;
        let other = second.run().await;
        in_scope(&second, other);
        assert_eq!(second.file("cgroup.procs"), other.to_string(), "and nobody else");
        let process = second.bundle.process(&["true"]);
        assert_eq!(second.world.exec_to_exit("one", "in", &process, &Io::null()).await.unwrap().exit_status, 0);
        second.end().await;
        in_scope(&first, pid);
        first.end().await;
    });
}

/// One that systemd has ended itself has failed, and stays where it is asked to.
#[test]
fn a_unit_that_has_failed_does_not_stay() {
    if !systemd("a unit that has failed does not stay") {
        return;
    }
    block_on(async {
        let asked = [("RuntimeMaxSec", "1"), ("TimeoutStopSec", "1"), ("CollectMode", "'inactive'")];
        let annotated = |bundle: Bundle| {
            bundle.edit(|spec| {
                for (key, value) in asked {
                    spec["annotations"][format!("org.systemd.property.{key}")] = json!(value);
                }
            })
        };
        let host = Host::new(annotated).await;
        host.world.shim.within(LONG).create(&host.bundle, &Io::null()).await.unwrap();
        let waiting = host.world.shim.within(LONG).spawn_wait("one", "").await;
        host.world.start("one", "").await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        until("the unit has failed", || host.unit_is() == "loaded failed").await;
        host.world.delete("one", "").await.unwrap();
        assert_eq!(host.unit_is(), "not-found inactive");
        host.world.close().await;
    });
}

/// The machine's systemd has v1 hierarchies, and makes the cgroup in some of them.
#[test]
fn on_v1_the_scope_is_in_every_hierarchy() {
    let name = "on v1 the scope is in every hierarchy";
    if !systemd(name) {
        return;
    }
    if !Path::new("/sys/fs/cgroup/systemd").is_dir() {
        return skipped(name, "its hierarchies are not v1's");
    }
    block_on(async {
        let host = Host::new(with_resources(resources())).await;
        let pid = host.run().await;
        let path = format!("/draytest.slice/{}/{}", host.slice, host.unit);
        let joined = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(joined.lines().all(|line| line.ends_with(&path)) && joined.lines().count() > 5, "{joined}");
        shows(
            &host.unit,
            &[("MemoryLimit", "134217728"), ("TasksMax", "64"), ("CPUShares", "512"), ("Delegate", "yes")],
        );
        let dirs: Vec<PathBuf> = common::scratch::cgroup_mounts().iter().map(|root| root.join(&path[1..])).collect();
        let file = |name: &str| {
            let path = dirs.iter().map(|dir| dir.join(name)).find(|path| path.exists());
            fs::read_to_string(path.unwrap_or_else(|| panic!("no {name} in {dirs:?}"))).unwrap().trim().to_owned()
        };
        let limits = || {
            assert_eq!((file("memory.limit_in_bytes"), file("pids.max")), ("134217728".into(), "64".into()));
            assert_eq!((file("cpuset.cpus"), file("cpu.shares")), ("0".into(), "512".into()));
            let devices = file("devices.list");
            assert!(devices.contains("c 1:3 rwm") && !devices.contains("a *:*"), "{devices}");
        };
        limits();
        systemctl(&["daemon-reload"]);
        limits();
        host.world.shim.within(LONG).update("one", &json!({"pids": {"limit": 9}})).await.unwrap();
        shows(&host.unit, &[("TasksMax", "9")]);
        assert_eq!(file("pids.max"), "9");
        host.world.end("one").await;
        assert_eq!(host.unit_is(), "not-found inactive");
        assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
        host.world.close().await;
    });
}

fn forced(env: Vec<(&'static str, String)>) -> StartOptions {
    let options = oci::Options { systemd_cgroup: true, ..Default::default() };
    let any = runc_options("");
    let options = Any { value: options.write_to_bytes().unwrap(), ..any };
    StartOptions { options: Some(options), env, ..StartOptions::default() }
}

#[test]
fn the_driver_can_be_asked_for() {
    block_on(async {
        let runs = Path::new("/run/systemd/system").is_dir();
        let at =
            |path: &'static str| move |bundle: Bundle| bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path));
        let host = Host::with(forced(vec![]), at("/a/plain/path")).await;
        let words = ["one", "SystemdCgroup", "/a/plain/path", "slice:prefix:name"];
        refused(host.world.create(&host.bundle, &Io::null()).await, Code::INVALID_ARGUMENT, &words);
        host.world.close().await;
        for (options, path) in [(StartOptions::default(), "system.slice:dray:x"), (forced(vec![]), "")] {
            let host = Host::with(options, at(path)).await;
            if !runs {
                let words = ["one", path, "systemd does not run here"];
                refused(host.world.create(&host.bundle, &Io::null()).await, Code::FAILED_PRECONDITION, &words);
                host.world.close().await;
                continue;
            }
            host.run().await;
            let unit = if path.is_empty() { "dray-one.scope" } else { "dray-x.scope" };
            shows(unit, &[("ActiveState", "active"), ("Slice", "system.slice")]);
            host.world.end("one").await;
            shows(unit, &[("LoadState", "not-found")]);
            host.world.close().await;
        }
    });
}

#[test]
fn the_message_bus_is_as_good() {
    if !systemd("the message bus is as good") {
        return;
    }
    block_on(async {
        let address = "unix:path=/run/dbus/system_bus_socket".to_owned();
        let options = StartOptions { env: vec![("DBUS_SYSTEM_BUS_ADDRESS", address)], ..StartOptions::default() };
        let host = Host::with(options, with_resources(resources())).await;
        host.run().await;
        shows(&host.unit, PROPERTIES);
        host.world.shim.within(LONG).update("one", &json!({"pids": {"limit": 9}})).await.unwrap();
        shows(&host.unit, &[("TasksMax", "9")]);
        host.end().await;
    });
}

/// One that is there, and does not answer: src/engine/systemd.rs.
#[test]
fn a_systemd_that_is_away_is_an_error() {
    if !systemd("a systemd that is away is an error") {
        return;
    }
    block_on(async {
        let socket = std::env::temp_dir().join(format!("dray-away-{}", std::process::id()));
        drop(UnixListener::bind(&socket).unwrap());
        let address = format!("unix:path={}", socket.display());
        let options = StartOptions { env: vec![("DBUS_SYSTEM_BUS_ADDRESS", address)], ..StartOptions::default() };
        let host = Host::with(options, |bundle| bundle).await;
        host.create_fails(Code::UNAVAILABLE, &["one", "connecting", &host.unit.clone()]).await;
        fs::remove_file(&socket).unwrap();
        host.create_fails(Code::UNAVAILABLE, &["one", "connecting", "no such file"]).await;
        host.world.close().await;
    });
}

/// Who deletes what is being created need not wait for systemd's word, and is told when there is nothing of it any more: the
/// name is free at once.
#[test]
fn a_create_that_is_given_up_leaves_no_unit() {
    if !systemd("a create that is given up leaves no unit") {
        return;
    }
    block_on(async {
        let socket = std::env::temp_dir().join(format!("dray-given-up-{}", std::process::id()));
        let listener = UnixListener::bind(&socket).unwrap();
        let (connected, connections) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pass_on = |client| connected.send(()).map(|()| lossy(client));
            listener.incoming().flatten().try_for_each(pass_on)
        });
        let address = format!("unix:path={}", socket.display());
        let options = StartOptions { env: vec![("DBUS_SYSTEM_BUS_ADDRESS", address)], ..StartOptions::default() };
        let host = Host::with(options, |bundle| bundle).await;
        let (task, io) = (host.world.shim.within(LONG), Io::null());
        let created = task.create(&host.bundle, &io);
        let given_up = async {
            until("the scope is there", || host.unit_is() == "loaded active").await;
            refused(host.world.shim.within(LONG).delete("one", "").await, Code::NOT_FOUND, &["one"]);
            host.unit_is()
        };
        let (created, unit) = tokio::join!(created, given_up);
        refused(created, Code::UNAVAILABLE, &["one", "deleted while"]);
        assert_eq!(unit, "not-found inactive");
        // The first is for the start. That the unit goes by itself, soon, is not enough.
        assert_eq!(connections.try_iter().count(), 2, "systemd was asked for the unit's end");
        assert!(!host.directory().exists());
        host.world.close().await;
        fs::remove_file(&socket).unwrap();
    });
}

/// A bus between that loses the answer to StartTransientUnit, and all after it. The scope comes to be.
#[test]
fn a_job_whose_end_is_not_told_is_undone() {
    if !systemd("a job whose end is not told is undone") {
        return;
    }
    block_on(async {
        let socket = std::env::temp_dir().join(format!("dray-lossy-{}", std::process::id()));
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(lossy));
        let address = format!("unix:path={}", socket.display());
        let options = StartOptions { env: vec![("DBUS_SYSTEM_BUS_ADDRESS", address)], ..StartOptions::default() };
        let host = Host::with(options, |bundle| bundle).await;
        let (task, io) = (host.world.shim.within(LONG), Io::null());
        let created = task.create(&host.bundle, &io);
        let seen = until("the scope is there", || host.unit_is() == "loaded active");
        let (created, ()) = tokio::join!(created, seen);
        refused(created, Code::DEADLINE_EXCEEDED, &["one", "starting", &host.unit]);
        assert_eq!(host.unit_is(), "not-found inactive");
        assert!(!host.directory().exists());
        host.world.close().await;
        fs::remove_file(&socket).unwrap();
    });
}

fn lossy(client: UnixStream) {
    let bus = UnixStream::connect("/run/dbus/system_bus_socket").unwrap();
    let (mut from_client, mut to_bus) = (client.try_clone().unwrap(), bus.try_clone().unwrap());
    let (mut from_bus, mut to_client) = (bus, client);
    let lost = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let loses = lost.clone();
    std::thread::spawn(move || {
        let mut buf = [0; 65536];
        while let Ok(n @ 1..) = from_client.read(&mut buf) {
            if buf[..n].windows(18).any(|window| window == b"StartTransientUnit") {
                loses.store(true, std::sync::atomic::Ordering::SeqCst);
            }
            if to_bus.write_all(&buf[..n]).is_err() {
                return;
            }
        }
        let _ = to_bus.shutdown(std::net::Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut buf = [0; 65536];
        while let Ok(n @ 1..) = from_bus.read(&mut buf) {
            let passes = !lost.load(std::sync::atomic::Ordering::SeqCst);
            if passes && to_client.write_all(&buf[..n]).is_err() {
                return;
            }
        }
    });
}
