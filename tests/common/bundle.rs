//! Bundles as containerd makes them: config.json by `ctr run`'s defaults, a rootfs of busybox, the log fifo.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use containerd_shim_protos::api::Mount;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::fs::OFlags;
use serde_json::{Value, json};

use super::cgroup;
use super::scratch::{Scratch, cgroup_mounts};

/// One container's bundle below a scratch directory, which removes it.
pub struct Bundle {
    /// The container's id.
    pub id: String,
    /// What Create asks the shim to mount on rootfs/: one overlay, unless a test changes it.
    pub rootfs: Vec<Mount>,
    scratch: Scratch,
    dir: PathBuf,
    spec: Value,
    busybox: Arc<Busybox>,
    log: File,
}

impl Bundle {
    /// A bundle that runs `true` by ctr's default specification on an overlay of busybox.
    pub fn new(scratch: &Scratch, id: &str) -> Bundle {
        let dir = scratch.dir().join("bundles").join(id);
        fs::create_dir_all(dir.join("rootfs")).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
        fs::set_permissions(dir.join("rootfs"), fs::Permissions::from_mode(0o711)).expect("chmod rootfs");
        let busybox = Busybox::get();
        let rootfs = vec![overlay(&busybox.0, &scratch.dir().join("snapshots").join(id))];
        let spec = ctr_spec(&cgroup::cgroups_path(scratch.namespace(), id));
        let log = log_fifo(&dir.join("log"));
        let bundle = Bundle { id: id.to_string(), rootfs, scratch: scratch.clone(), dir, spec, busybox, log };
        bundle.edit(|_| ())
    }

    /// The command, looked up in the PATH of the specification.
    pub fn args(self, args: &[&str]) -> Bundle {
        self.edit(|spec| spec["process"]["args"] = json!(args))
    }

    /// A shell script as the command.
    pub fn script(self, script: &str) -> Bundle {
        self.args(&["sh", "-c", script])
    }

    /// Without the namespace of this type: the container shares the host's.
    pub fn without_namespace(self, kind: &str) -> Bundle {
        self.edit(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != kind);
        })
    }

    /// With a user namespace whose root and the ids after it are the host's from `outside` on. The rootfs is root's.
    pub fn user_namespace(self, outside: u32) -> Bundle {
        let upper = self.scratch.dir().join("snapshots").join(&self.id).join("fs");
        chown(&upper, Some(outside), Some(outside)).unwrap_or_else(|e| panic!("chown {}: {e}", upper.display()));
        self.edit(|spec| {
            spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
            for field in ["uidMappings", "gidMappings"] {
                spec["linux"][field] = json!([{"containerID": 0, "hostID": outside, "size": 65536}]);
            }
        })
    }

    /// Another mount, after those of the default.
    pub fn mount(self, mount: Value) -> Bundle {
        self.edit(|spec| spec["mounts"].as_array_mut().expect("mounts").push(mount))
    }

    /// With its own cgroups to be seen at /sys/fs/cgroup: v1's below a directory for each hierarchy, v2's files right there.
    pub fn cgroup_view(self) -> Bundle {
        let view = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]});
        self.mount(view).edit(|spec| {
            // Without a namespace of its own it would be somewhere below.
            if cgroup::is_v2() {
                spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "cgroup"}));
            }
        })
    }

    /// Any other change of the specification.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Bundle {
        change(&mut self.spec);
        self.write_config(self.spec.to_string().as_bytes());
        self
    }

    /// A config.json that need not be one.
    pub fn write_config(&self, text: &[u8]) {
        fs::write(self.dir.join("config.json"), text).expect("write config.json");
    }

    /// busybox copied into rootfs/ and no mount in the request, as a client with its own rootfs does it.
    pub fn plain_rootfs(mut self) -> Bundle {
        let copied = Command::new("cp").arg("-a").arg(self.busybox.0.join(".")).arg(self.rootfs_dir()).status();
        assert!(copied.expect("cp").success(), "copy of the rootfs");
        self.rootfs.clear();
        self
    }

    /// The lower directory of its overlay: busybox, which is everybody's.
    pub fn busybox(&self) -> &Path {
        &self.busybox.0
    }

    /// The specification as it stands.
    pub fn spec(&self) -> &Value {
        &self.spec
    }

    /// The bundle's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the rootfs is mounted.
    pub fn rootfs_dir(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The scratch directory that it lies in.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The container's cgroup in each hierarchy where it exists.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let path = cgroup::path_of(self.spec["linux"]["cgroupsPath"].as_str().unwrap_or_default());
        let dirs = cgroup_mounts().into_iter().map(|root| root.join(&path));
        dirs.filter(|dir| path != Path::new("") && dir.is_dir()).collect()
    }

    /// The file of this name in its cgroup, in whichever hierarchy has it.
    #[track_caller]
    pub fn cgroup_file(&self, name: &str) -> PathBuf {
        cgroup::file(&self.cgroups(), name)
    }

    /// The content of that file.
    #[track_caller]
    pub fn knob(&self, name: &str) -> String {
        cgroup::read(&self.cgroup_file(name))
    }

    /// What the shim has written to its log since the last call. A test that never calls it is a log that nobody reads.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        let _ = (&self.log).read_to_end(&mut text); // Ends with WouldBlock: we hold a writing end as well.
        String::from_utf8_lossy(&text).into_owned()
    }

    /// An exec's process: the container's own with other arguments, as `ctr task exec` makes it.
    pub fn process(&self, args: &[&str]) -> Value {
        let mut process = self.spec["process"].clone();
        process["args"] = json!(args);
        process
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("shim log of {}:\n{}", self.id, self.log());
        }
    }
}

/// Opened as containerd opens it: with both ends, so that the shim meets neither ENXIO nor EPIPE.
fn log_fifo(path: &Path) -> File {
    mkfifo(path, Mode::from_bits_truncate(0o700)).unwrap_or_else(|e| panic!("mkfifo {}: {e}", path.display()));
    let nonblock = OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(true).write(true).custom_flags(nonblock).open(path).expect("open log fifo")
}

/// The request of containerd's overlayfs snapshotter for a container's rootfs.
fn overlay(lower: &Path, snapshot: &Path) -> Mount {
    let [upper, work] = ["fs", "work"].map(|name| snapshot.join(name));
    for dir in [&upper, &work] {
        fs::create_dir_all(dir).unwrap_or_else(|e| panic!("mkdir {}: {e}", dir.display()));
    }
    Mount {
        type_: "overlay".to_string(),
        source: "overlay".to_string(),
        options: vec![
            "index=off".to_string(),
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={}", lower.display()),
        ],
        ..Mount::default()
    }
}

/// The lower directory of all bundles of this process: busybox with its applets, removed with the last of them.
struct Busybox(PathBuf);

impl Busybox {
    fn get() -> Arc<Busybox> {
        static SHARED: Mutex<Weak<Busybox>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let busybox = Arc::new(Busybox::make());
            *shared = Arc::downgrade(&busybox);
            busybox
        })
    }

    fn make() -> Busybox {
        // A number, as the one before may still be on its way out in another thread.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("dray-test.{}.lower{number}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for dir in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
            fs::create_dir_all(root.join(dir)).unwrap_or_else(|e| panic!("mkdir {}: {e}", root.display()));
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod tmp");
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
        let binary = "/bin/busybox";
        // Not by ourselves: a child that another test forks meanwhile would hold it open for writing, and nobody could
        // execute it for that time (ETXTBSY).
        let copied = Command::new("cp").arg(binary).arg(root.join("bin/busybox")).status();
        assert!(copied.expect("cp").success(), "{binary} (busybox-static) is missing");
        let list = Command::new(binary).arg("--list").output().expect("busybox --list");
        for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).expect("applet");
        }
        Busybox(root)
    }
}

impl Drop for Busybox {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What `ctr run` of containerd 1.6 writes for an image of busybox.
fn ctr_spec(cgroups_path: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    let allowed = |major: u32, minor: Option<u32>| {
        let mut rule = json!({"allow": true, "type": "c", "major": major, "access": "rwm"});
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    let mut devices = vec![json!({"allow": false, "access": "rwm"})];
    devices.extend([3, 8, 7].map(|minor| allowed(1, Some(minor))));
    devices.extend(
        [(5, Some(0)), (1, Some(5)), (1, Some(9)), (5, Some(1)), (136, None), (5, Some(2))].map(|(a, b)| allowed(a, b)),
    );
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
        ],
        "linux": {
            "resources": {"devices": devices},
            "cgroupsPath": cgroups_path,
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
