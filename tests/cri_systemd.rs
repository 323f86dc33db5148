//! Pods whose cgroups systemd makes, by containerd's CRI plugin: as a kubelet has them whose cgroup driver is `systemd`.
//! Where systemd does not run, and on v1, the tests are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::cri::{Cri, IDLE, SYSTEMD};
use serde_json::{Value, json};

common::on_each_containerd! {
    containers_are_scopes_in_the_slice_of_their_pod,
    a_runtime_for_systemd_takes_slices_alone,
    ctr_names_a_slice_too,
}

/// False, and said, where the test cannot run.
fn systemd(cri: &Cri) -> bool {
    let why = match Path::new("/run/systemd/system").is_dir() {
        false => "systemd does not run here",
        true if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() => "the controllers are not cgroup2's",
        true => return true,
    };
    cri.containerd.skip(why);
    false
}

/// A slice of the test's own, in others as a pod's is in the kubelet's.
struct Slice {
    name: String,
}

impl Slice {
    fn new(cri: &Cri) -> Self {
        let name = cri.containerd.cgroup.trim_start_matches('/').replace(['-', '.'], "_");
        Self { name: format!("draytest-besteffort-pod{name}.slice") }
    }

    /// As the kubelet writes it.
    fn path(&self) -> String {
        format!("/draytest.slice/draytest-besteffort.slice/{}", self.name)
    }

    fn directory(&self, unit: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(&self.path()[1..]).join(unit)
    }
}

/// The kubelet's work.
impl Drop for Slice {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.name]).status();
    }
}

/// A property of a unit, as systemd itself tells it.
fn shown(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl").args(["show", unit, "--value", "--property", property]).output().unwrap();
    assert!(output.status.success(), "{unit} {property}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn unit_of(id: &str) -> String {
    format!("cri-containerd-{id}.scope")
}

fn containers_are_scopes_in_the_slice_of_their_pod(cri: Cri) {
    if !systemd(&cri) {
        return;
    }
    let slice = Slice::new(&cri);
    // By the form of the path alone, and as the runtime's options say.
    for handler in ["", SYSTEMD] {
        let pod = cri.run_pod_by(handler, "pod", json!({"linux": {"cgroup_parent": slice.path()}}));
        let resources = json!({"cpu_period": "100000", "cpu_quota": "50000", "cpu_shares": "512",
            "memory_limit_in_bytes": "134217728", "cpuset_cpus": "0"});
        let id = cri.run(&pod, "container", IDLE, json!({"linux": {"resources": resources}}));
        let units = [unit_of(&pod.id), unit_of(&id)];
        for (unit, pid) in units.iter().zip([cri.pid(&pod.id), cri.pid(&id)]) {
            assert_eq!((shown(unit, "ActiveState"), shown(unit, "Slice")), ("active".into(), slice.name.clone()));
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            assert_eq!(cgroup.trim(), format!("0::{}/{unit}", slice.path()));
        }
        let unit = &units[1];
        let file = |name: &str| fs::read_to_string(slice.directory(unit).join(name)).unwrap().trim().to_owned();
        assert_eq!((file("memory.max"), shown(unit, "MemoryMax")), ("134217728".into(), "134217728".into()));
        assert_eq!((file("cpu.max"), shown(unit, "CPUQuotaPerSecUSec")), ("50000 100000".into(), "500ms".into()));
        assert_eq!((file("cpuset.cpus"), file("cpu.weight")), ("0".into(), shown(unit, "CPUWeight")));

        // An exec is in it, by what it sees itself: its cgroup namespace begins there.
        assert_eq!(cri.sh(&id, "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max"), "0::/\n134217728");

        let resources = json!({"cpu_period": "100000", "cpu_quota": "20000", "memory_limit_in_bytes": "201326592"});
        cri.call("UpdateContainerResources", &json!({"container_id": id, "linux": resources}));
        assert_eq!((file("memory.max"), shown(unit, "MemoryMax")), ("201326592".into(), "201326592".into()));
        assert_eq!((file("cpu.max"), shown(unit, "CPUQuotaPerSecUSec")), ("20000 100000".into(), "200ms".into()));

        let stats = cri.call("ContainerStats", &json!({"container_id": id}))["stats"].take();
        let number = |value: &Value| value["value"].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let memory = number(&stats["memory"]["working_set_bytes"]);
        assert!((1..201_326_592).contains(&memory), "{stats}");
        assert!(number(&stats["cpu"]["usage_core_nano_seconds"]) > 0, "{stats}");

        cri.remove_all(&[pod]);
        for unit in &units {
            assert_eq!((shown(unit, "LoadState"), shown(unit, "ActiveState")), ("not-found".into(), "inactive".into()));
            assert!(!slice.directory(unit).exists());
        }
        let mut left = fs::read_dir(slice.directory("")).unwrap().flatten();
        assert!(!left.any(|entry| entry.path().is_dir()), "{}", slice.path());
    }
}

/// It tells that the option has come here.
fn a_runtime_for_systemd_takes_slices_alone(cri: Cri) {
    let Err(refused) = cri.try_run_pod_by(SYSTEMD, "pod", json!({})) else { panic!("a path without a slice") };
    let said = format!("{refused:?}");
    assert!(["SystemdCgroup", "slice:prefix:name"].iter().all(|word| said.contains(word)), "{said}");
    cri.remove_all(&[]);
}

/// With `--runc-systemd-cgroup` too, which is for a runtime of runc's name alone.
fn ctr_names_a_slice_too(cri: Cri) {
    if !systemd(&cri) {
        return;
    }
    let slice = Slice::new(&cri);
    let forced: &[&str] = &["--runtime", "io.containerd.runc.v2", "--runc-systemd-cgroup"];
    for (id, options) in [("plain", &[][..]), ("forced", forced)] {
        let (containerd, place) = (&cri.containerd, format!("{}:ctr:{id}", slice.name));
        let limited = [options, &["--cgroup", &place, "--memory-limit", "134217728"]].concat();
        let pid = containerd.run_detached(id, &limited, &["sleep", "1000"]);
        let unit = format!("ctr-{id}.scope");
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(cgroup.trim(), format!("0::{}/{unit}", slice.path()));
        assert_eq!(shown(&unit, "MemoryMax"), "134217728");
        let output = containerd.exec(id, "in", &[], &["cat", "/proc/self/cgroup"]);
        assert!(output.status.success() && output.stdout.ends_with(format!("/{unit}\n").as_bytes()), "{output:?}");
        containerd.remove(id);
        containerd.assert_nothing_left();
        assert_eq!(shown(&unit, "LoadState"), "not-found");
    }
}
