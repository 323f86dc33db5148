//! What Docker, nerdctl and the CRI plugin put into a specification by default, and with `--privileged`: documents as they
//! write them (tests/data), run for real. ctr's are those of tests/ctr_options.rs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::on;
use common::container::{Container, Ended, Host, namespace_of};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

const DOCKER: &str = include_str!("data/docker-default.json");
const DOCKER_PRIVILEGED: &str = include_str!("data/docker-privileged.json");
const NERDCTL: &str = include_str!("data/nerdctl-default.json");
const CRI_SANDBOX: &str = include_str!("data/cri-sandbox.json");
const CRI_CONTAINER: &str = include_str!("data/cri-container.json");
const CRI_PRIVILEGED: &str = include_str!("data/cri-privileged.json");

/// chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
/// audit_write, setfcap.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";
const CAP_SYS_RESOURCE: u64 = 1 << 24;
const NO_CAPABILITIES: &str = "0000000000000000";

/// What a daemon has prepared: files to be bound, a volume that is shared, the namespaces of a pod.
struct Prepared {
    host: Host,
    sandbox: Child,
}

impl Prepared {
    fn new() -> Prepared {
        let host = Host::new();
        let files = host.scratch.dir().join("files");
        for directory in ["shm", "serviceaccount"] {
            fs::create_dir_all(files.join(directory)).unwrap();
        }
        for (name, text) in [
            ("resolv.conf", "nameserver 192.0.2.53\n"),
            ("hostname", "web\n"),
            ("hosts", "192.0.2.1 web\n"),
            ("termination-log", ""),
            ("serviceaccount/token", "secret\n"),
        ] {
            fs::write(files.join(name), text).unwrap();
        }
        let shared = host.scratch.dir().join("shared");
        fs::create_dir(&shared).unwrap();
        mount(Some("tmpfs"), &shared, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        let sleep = ["--net", "--uts", "--ipc", "sh", "-c", "hostname web; exec sleep 1000"];
        let sandbox = Command::new("unshare").args(sleep).stdin(Stdio::null()).spawn().expect("unshare");
        let prepared = Prepared { host, sandbox };
        let own = namespace_of("self", "net");
        let comm = format!("/proc/{}/comm", prepared.sandbox.id());
        let ready = || prepared.sandbox_has("net") != own && fs::read_to_string(&comm).unwrap() == "sleep\n";
        for _ in 0..1000 {
            if ready() {
                return prepared;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no sandbox");
    }

    fn sandbox_has(&self, namespace: &str) -> String {
        namespace_of(&self.sandbox.id().to_string(), namespace)
    }

    fn shared(&self) -> PathBuf {
        self.host.scratch.dir().join("shared")
    }

    /// A bundle with the document in place of ctr's.
    fn bundle(&self, document: &str) -> Bundle {
        let text = document
            .replace("@NAMESPACE@", self.host.scratch.namespace())
            .replace("@FILES@", self.host.scratch.dir().join("files").to_str().unwrap())
            .replace("@SHARED@", self.shared().to_str().unwrap())
            .replace("@SANDBOX@", &format!("/proc/{}/ns", self.sandbox.id()));
        let mut spec: Value = serde_json::from_str(&text).expect("a document of tests/data");
        if spec["linux"]["seccomp"] == "@SECCOMP@" {
            spec["linux"]["seccomp"] = serde_json::from_str(include_str!("data/seccomp-default.json")).unwrap();
        }
        if let Some(score) = spec["process"]["oomScoreAdj"].as_i64() {
            spec["process"]["oomScoreAdj"] = json!(possible_score(score));
        }
        if spec["linux"]["devices"] == "@DEVICES@" {
            spec["linux"]["devices"] = host_devices().into_values().collect();
        }
        assert!(!spec.to_string().contains('@'), "{spec}");
        self.host.bundle("one").edit(|own| *own = spec)
    }

    async fn run(&self, document: &str, script: &str) -> Ended {
        let ended = self.host.run(&self.bundle(document).script(script)).await;
        assert_eq!(self.left(), [""; 0], "{ended:?}");
        ended
    }

    /// But for the volume, which is ours.
    fn left(&self) -> Vec<String> {
        let volume = format!("mount {}", self.shared().display());
        self.host.scratch.leftovers().into_iter().filter(|line| *line != volume).collect()
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = self.sandbox.kill();
        let _ = self.sandbox.wait();
        let _ = umount2(&self.shared(), MntFlags::MNT_DETACH);
    }
}

/// The host's devices by their paths, as containerd (oci.HostDevices) and Docker list them for a privileged container.
fn host_devices() -> BTreeMap<PathBuf, Value> {
    fn add(directory: &Path, devices: &mut BTreeMap<PathBuf, Value>) {
        const NOT: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let letter = match kind {
                _ if kind.is_dir() => {
                    if !NOT.iter().any(|name| path.ends_with(name)) {
                        add(&path, devices);
                    }
                    continue;
                }
                _ if path.ends_with("console") => continue,
                _ if kind.is_char_device() => "c",
                _ if kind.is_block_device() => "b",
                _ if kind.is_fifo() => "p",
                _ => continue,
            };
            let stat = entry.metadata().unwrap();
            let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
            let device = json!({
                "path": path, "type": letter, "major": major, "minor": minor,
                "fileMode": stat.mode() & 0o7777, "uid": stat.uid(), "gid": stat.gid(),
            });
            devices.insert(path, device);
        }
    }
    let mut devices = BTreeMap::new();
    add(Path::new("/dev"), &mut devices);
    devices
}

/// All that there are to give: the shim's.
fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("CapBnd");
    u64::from_str_radix(bounding.trim(), 16).unwrap()
}

/// What a daemon gives a privileged container: all that it has, and those that wrote the documents had no
/// CAP_SYS_RESOURCE.
fn privileged_capabilities() -> String {
    format!("{:016x}", own_capabilities() & !CAP_SYS_RESOURCE)
}

/// Lower than it is a score becomes only with CAP_SYS_RESOURCE.
fn possible_score(wanted: i64) -> i64 {
    let own: i64 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    match own_capabilities() & CAP_SYS_RESOURCE {
        0 => wanted.max(own),
        _ => wanted,
    }
}

/// Lines of `name value`, which every script prints.
fn facts(text: &str) -> BTreeMap<&str, &str> {
    text.lines().map(|line| line.split_once(' ').unwrap_or((line, ""))).collect()
}

/// Who a process is: identity, capabilities, filter, score.
const WHO: &str = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|Groups):' /proc/self/status | tr -d ':' | tr '\\t' ' '
    echo id $(id -u):$(id -g)
    echo oom $(cat /proc/self/oom_score_adj)
    echo hostname $(hostname)
";

/// What protects the host in an ordinary container, each by trying: a line says `kept` or that it does not hold.
const PROTECTED: &str = "
    kept() { if sh -c \"$2\" >/dev/null 2>&1; then echo $1 open; else echo $1 kept; fi; }
    kept sysctl 'echo $(cat /proc/sys/vm/swappiness) >/proc/sys/vm/swappiness'
    kept sys 'grep -q \"^[^ ]* /sys [^ ]* rw\" /proc/mounts'
    kept keys 'grep -q . /proc/keys'
    kept firmware 'ls /sys/firmware | grep -q .'
    kept mount 'mount -t tmpfs tmpfs /tmp'
    kept device 'mknod /tmp/mem c 1 2 && ! : </tmp/mem 2>&1 | grep -q -i permitted && ! (: </tmp/mem) 2>&1 | grep -q permitted'
    kept cgroup 'mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x'
";

/// Every protection of `PROTECTED`.
const KEPT: [&str; 7] = ["sysctl", "sys", "keys", "firmware", "mount", "device", "cgroup"];

#[track_caller]
fn assert_facts(ended: &Ended, wanted: &[(&str, &str)]) {
    let found = facts(&ended.stdout);
    for (name, value) in wanted {
        assert_eq!(found.get(name).map(|value| value.trim()), Some(*value), "{name}: {ended:#?}");
    }
}

#[track_caller]
fn assert_kept(ended: &Ended) {
    assert_facts(ended, &KEPT.map(|name| (name, "kept")));
}

#[test]
fn docker_by_default() {
    block_on(async {
        let prepared = Prepared::new();
        let script = "
            echo shm $(df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2)
            echo port $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)
            echo resolv $(cat /etc/resolv.conf)
            echo 192.0.2.9 other >>/etc/hosts && echo hosts written
            echo powercap $(ls /sys/devices/virtual/powercap 2>/dev/null)
            echo dev $(ls /dev)";
        let ended = prepared.run(DOCKER, &[WHO, PROTECTED, script].concat()).await;
        assert_kept(&ended);
        assert_facts(
            &ended,
            &[
                ("CapEff", DEFAULT_CAPABILITIES),
                ("CapBnd", DEFAULT_CAPABILITIES),
                ("NoNewPrivs", "0"),
                ("Seccomp", "2"),
                ("Groups", "0 10"),
                ("id", "0:0"),
                ("oom", "0"),
                ("hostname", "0123456789ab"),
                ("shm", "65536"),
                ("port", "0"),
                ("resolv", "nameserver 192.0.2.53"),
                ("hosts", "written"),
                ("powercap", ""),
                ("dev", "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"),
            ],
        );
        let hosts = fs::read_to_string(prepared.host.scratch.dir().join("files/hosts")).unwrap();
        assert_eq!(hosts, "192.0.2.1 web\n192.0.2.9 other\n");
    });
}

#[test]
fn nerdctl_by_default() {
    block_on(async {
        let prepared = Prepared::new();
        let ended = prepared.run(NERDCTL, &[WHO, PROTECTED, "echo hosts $(cat /etc/hosts)"].concat()).await;
        assert_kept(&ended);
        assert_facts(
            &ended,
            &[
                ("CapEff", DEFAULT_CAPABILITIES),
                ("Seccomp", "2"),
                ("NoNewPrivs", "0"),
                ("Groups", "0 1"),
                ("hostname", "0123456789ab"),
                ("hosts", "192.0.2.1 web"),
            ],
        );
    });
}

#[test]
fn the_sandbox_of_a_pod() {
    block_on(async {
        let prepared = Prepared::new();
        let script = "
            touch /home/x 2>/dev/null || echo root readonly
            touch /dev/shm/x 2>/dev/null || echo shm readonly
            echo port $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)
            echo net $(readlink /proc/self/ns/net)";
        let score = possible_score(-998).to_string();
        let ended = prepared.run(CRI_SANDBOX, &[WHO, PROTECTED, script].concat()).await;
        let net = prepared.sandbox_has("net");
        assert_kept(&ended);
        assert_facts(
            &ended,
            &[
                ("CapEff", NO_CAPABILITIES),
                ("CapBnd", DEFAULT_CAPABILITIES),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
                ("id", "65535:65535"),
                ("oom", &score),
                ("hostname", "web"),
                ("root", "readonly"),
                ("shm", "readonly"),
                ("port", "0"),
                ("net", &net),
            ],
        );
    });
}

#[test]
fn a_container_of_a_pod() {
    block_on(async {
        let prepared = Prepared::new();
        let limits = on(
            "cd /sys/fs/cgroup; echo memory $(cat memory/memory.limit_in_bytes)
            echo quota $(cat cpu/cpu.cfs_quota_us); echo shares $(cat cpu/cpu.shares)",
            "cd /sys/fs/cgroup/$(grep ^0:: /proc/self/cgroup | cut -d: -f3); echo memory $(cat memory.max)
            echo quota $(cut -d' ' -f1 cpu.max); echo shares $(cat cpu.weight)",
        );
        let script = "
            for ns in net uts ipc; do echo $ns $(readlink /proc/self/ns/$ns); done
            echo pid $$
            echo token $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)
            touch /var/run/secrets/kubernetes.io/serviceaccount/x 2>/dev/null || echo account readonly
            echo env $KUBERNETES_SERVICE_HOST";
        let ended = prepared.run(CRI_CONTAINER, &[WHO, PROTECTED, limits, script].concat()).await;
        assert_kept(&ended);
        let [net, uts, ipc] = ["net", "uts", "ipc"].map(|namespace| prepared.sandbox_has(namespace));
        assert_facts(
            &ended,
            &[
                ("CapEff", NO_CAPABILITIES),
                ("CapBnd", DEFAULT_CAPABILITIES),
                ("NoNewPrivs", "0"),
                ("Seccomp", "2"),
                ("Groups", "2000 3000"),
                ("id", "1000:3000"),
                ("oom", "978"),
                ("hostname", "web"),
                ("net", &net),
                ("uts", &uts),
                ("ipc", &ipc),
                ("pid", "1"),
                ("memory", "134217728"),
                ("quota", "50000"),
                ("shares", on("256", "35")),
                ("token", "secret"),
                ("account", "readonly"),
                ("env", "10.96.0.1"),
            ],
        );
    });
}

/// Nothing is kept from a privileged container: capabilities, devices, kernel parameters, /sys, mounts, which are seen on
/// the host where they are made in a shared volume.
async fn has_everything(prepared: &Prepared, document: &str, volume: &str) {
    let devices =
        "cd /dev; find . -type c -o -type b -o -type p | sort | while read f; do stat -c '%n %A %t:%T %u:%g' $f; done";
    let bundle = prepared.bundle(document).args(&["sleep", "1000"]);
    let container = prepared.host.start(&bundle).await;
    let script = format!(
        "{WHO}{PROTECTED}
        echo masks $(grep -E ' /(proc|sys)/' /proc/self/mountinfo | grep -v -c ' /sys/fs/cgroup')
        mount -t tmpfs tmpfs {volume}/inner 2>/dev/null || mkdir {volume}/inner && mount -t tmpfs tmpfs {volume}/inner
        touch {volume}/inner/x && echo volume mounted"
    );
    let ended = container.exec_script("all", &script).await;
    assert_facts(&ended, &KEPT.map(|name| (name, "open")));
    assert_facts(
        &ended,
        &[
            ("CapEff", &privileged_capabilities()),
            ("CapBnd", &privileged_capabilities()),
            ("NoNewPrivs", "0"),
            ("Seccomp", "0"),
            ("masks", "0"),
            ("volume", "mounted"),
        ],
    );
    assert!(prepared.shared().join("inner/x").exists(), "the mount is not seen on the host");
    compare_devices(&container, devices).await;
    container.exec_script("undo", &format!("umount {volume}/inner")).await.ok();
    assert!(!prepared.shared().join("inner/x").exists());
    container.end().await;
    assert_eq!(prepared.left(), [""; 0]);
}

async fn compare_devices(container: &Container<'_>, script: &str) {
    let mut ours: Vec<_> = host_devices()
        .into_iter()
        // The container has a devpts of its own.
        .filter(|(path, _)| path != Path::new("/dev/ptmx"))
        .map(|(path, device)| {
            let mode = device["fileMode"].as_u64().unwrap();
            let bits = (0..9).rev().map(|bit| if mode >> bit & 1 == 1 { ['x', 'w', 'r'][bit % 3] } else { '-' });
            let name = path.strip_prefix("/dev").unwrap().display().to_string();
            let (major, minor) = (device["major"].as_u64().unwrap(), device["minor"].as_u64().unwrap());
            let letter = device["type"].as_str().unwrap();
            let bits: String = bits.collect();
            format!("./{name} {letter}{bits} {major:x}:{minor:x} {}:{}", device["uid"], device["gid"])
        })
        .collect();
    let theirs = container.exec_script("devices", script).await.ok();
    let mut theirs: Vec<_> = theirs.lines().filter(|line| !line.starts_with("./pts/")).map(String::from).collect();
    ours.sort();
    theirs.sort();
    assert!(ours.len() > 6, "{ours:?}");
    assert_eq!(theirs, ours);
}

#[test]
fn docker_privileged() {
    block_on(async {
        has_everything(&Prepared::new(), DOCKER_PRIVILEGED, "/var/lib/shared").await;
    });
}

#[test]
fn a_privileged_container_of_a_pod() {
    block_on(async {
        has_everything(&Prepared::new(), CRI_PRIVILEGED, "/var/lib/kubelet").await;
    });
}
