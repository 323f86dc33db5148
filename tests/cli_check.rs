//! `dray check`: what it says of this host is what the kernel's own files say, and what is taken away is missed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::dray::Dray;
use common::scratch::Scratch;
use common::seccomp::{OLD, missing, take_away};
use serde_json::Value;

/// What it has found.
struct Report {
    document: Value,
    status: Option<i32>,
}

impl Report {
    fn of(output: Output) -> Self {
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.is_empty(), "{error}");
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(document["ok"], output.status.code() == Some(0), "{document}");
        Self { document, status: output.status.code() }
    }

    fn all(&self) -> &[Value] {
        self.document["findings"].as_array().expect("findings")
    }

    fn get(&self, name: &str) -> &Value {
        let found = self.all().iter().find(|finding| finding["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {:#}", self.document))
    }

    fn has(&self, name: &str) -> bool {
        self.get(name)["present"].as_bool().expect("present")
    }

    fn found(&self, name: &str) -> &str {
        self.get(name)["found"].as_str().expect("found")
    }

    /// The names of what is not there.
    fn absent(&self) -> BTreeSet<&str> {
        let absent = self.all().iter().filter(|finding| finding["present"] == false);
        absent.map(|finding| finding["name"].as_str().unwrap()).collect()
    }

    /// What is to be added to the file `config`.
    fn configuration(&self, config: &str) -> &Value {
        let all = self.document["configuration"].as_array().expect("configuration");
        all.iter().find(|one| one["file"] == config).unwrap_or_else(|| panic!("no {config} in {:#}", self.document))
    }
}

fn check() -> Command {
    let mut command = Command::new(common::shim_binary());
    command.arg0("dray").args(["check", "--json"]).stdin(Stdio::null());
    command
}

fn here() -> Report {
    Report::of(check().output().unwrap())
}

/// In bash as root of other namespaces, after `script`; `$1` is `dir`.
fn after(unshare: &[&str], script: &str, dir: &Path) -> Report {
    let script = format!("set -e; {script}; shift; exec -a dray \"$@\" check --json");
    let mut command = Command::new("unshare");
    command.args(unshare).args(["bash", "-c", &script, "bash"]).arg(dir).arg(common::shim_binary());
    Report::of(command.stdin(Stdio::null()).output().unwrap())
}

fn executable(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
fn what_it_says_is_what_the_kernel_says() {
    let report = here();
    assert_eq!(report.status, Some(0), "{:#}", report.document);
    assert_eq!(report.document["dray"], env!("CARGO_PKG_VERSION"));
    for finding in report.all() {
        let areas = ["kernel", "privileges", "cgroups", "security", "programs", "daemons"];
        assert!(areas.contains(&finding["area"].as_str().unwrap()), "{finding}");
        // Each absence has its price, in a sentence, and nothing else has one.
        assert_eq!(finding["present"] == true, finding.get("cost").is_none(), "{finding}");
    }
    assert_eq!(report.found("Linux"), file("/proc/sys/kernel/osrelease"));
    assert_eq!(report.found("user.max_user_namespaces"), file("/proc/sys/user/max_user_namespaces"));
    for (kind, name) in [("mnt", "mount"), ("pid", "pid"), ("user", "user"), ("time", "time"), ("cgroup", "cgroup")] {
        let has = Path::new("/proc/self/ns").join(kind).exists();
        assert_eq!(report.has(&format!("{name} namespaces")), has, "{name}");
    }
    let status = file("/proc/self/status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
    for (number, name) in [(21, "CAP_SYS_ADMIN"), (24, "CAP_SYS_RESOURCE"), (7, "CAP_SETUID"), (12, "CAP_NET_ADMIN")] {
        assert_eq!(report.has(name), effective & (1 << number) != 0, "{name}");
    }
    let filters = file("/proc/sys/kernel/seccomp/actions_avail");
    assert_eq!(report.has("seccomp notify"), filters.contains("user_notif"));
    assert_eq!(
        report.has("overlay"),
        file("/proc/filesystems").contains("overlay") || report.found("overlay").contains("module")
    );
    assert_eq!(report.has("systemd"), Path::new("/run/systemd/system").is_dir());
    let mounts = file("/proc/self/mounts");
    let v2 = file("/proc/self/cgroup").lines().all(|line| line.starts_with("0::") || line.contains(":name="));
    assert_eq!(report.found("hierarchy") == "v2", v2);
    for controller in ["memory", "pids", "cpuset", "hugetlb", "rdma"] {
        let there = match v2 {
            true => file("/sys/fs/cgroup/cgroup.controllers").split(' ').any(|name| name == controller),
            false => mounts.lines().any(|line| {
                let fields: Vec<_> = line.split(' ').collect();
                fields[2] == "cgroup" && fields[3].split(',').any(|name| name == controller)
            }),
        };
        assert_eq!(report.has(controller), there, "{controller}");
    }
    // Of the freezer and devices on v2 there is nothing to be mounted.
    assert_eq!(report.all().iter().any(|finding| finding["name"] == "device programs"), v2);
}

#[test]
fn for_people_there_is_a_line_each_and_a_sentence_for_what_is_absent() {
    // The daemons that run here come and go with other tests.
    let attempt = |_| {
        let before = here();
        let output = Command::new(common::shim_binary()).arg0("dray").arg("check").output().unwrap();
        let after = here();
        (before.all() == after.all()).then(|| (String::from_utf8(output.stdout).unwrap(), after))
    };
    let (text, report) = (0..20).find_map(attempt).expect("two reports alike");
    for finding in report.all() {
        let name = finding["name"].as_str().unwrap();
        let mark = if finding["present"] == true { "  yes  " } else { "  no   " };
        let at = text.find(&format!("\n{mark}{name} ")).or_else(|| text.find(&format!("\n{mark}{name}\n")));
        let rest = &text[at.unwrap_or_else(|| panic!("no {mark}{name} in {text}"))..];
        if let Some(cost) = finding.get("cost").and_then(Value::as_str) {
            assert_eq!(rest.lines().nth(2).unwrap().trim(), cost);
        }
    }
    assert!(text.ends_with("\nall that containers need is there\n"), "{text}");
}

#[test]
fn capabilities_that_are_taken_away_are_missed() {
    let without = |names: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", names, "bash", "-c", "exec -a dray \"$@\" check --json", "bash"]);
        Report::of(command.arg(common::shim_binary()).output().unwrap())
    };
    let plain = here();
    let raw = without("-net_raw,-sys_nice");
    assert_eq!(raw.status, Some(0));
    let more: Vec<_> = raw.absent().difference(&plain.absent()).copied().collect();
    assert_eq!(more, ["CAP_NET_RAW", "CAP_SYS_NICE"]);
    let admin = without("-sys_admin");
    assert_eq!(admin.status, Some(1));
    for name in ["CAP_SYS_ADMIN", "fsopen, fsmount", "mount namespaces", "pid namespaces"] {
        assert!(!admin.has(name) && admin.get(name)["needed"] == true, "{name}");
    }
    assert!(admin.found("mount namespaces").contains("operation not permitted"));
    // Of those that have one already nobody is root of the host.
    let user = Report::of(check().uid(1234).gid(1234).output().unwrap());
    assert!(!user.has("root of the host") && user.status == Some(1));
}

#[test]
fn system_calls_that_are_taken_away_are_missed() {
    let plain = here();
    let without = |calls: Vec<common::seccomp::Refused>| {
        // The filter is this thread's and its children's.
        let thread = std::thread::spawn(move || {
            take_away(&calls);
            here()
        });
        thread.join().unwrap()
    };
    let old = without(OLD.to_vec());
    let more: BTreeSet<_> = old.absent().difference(&plain.absent()).copied().collect();
    let mut wanted = BTreeSet::from(["clone3", "clone into a cgroup", "close_range", "mount_setattr"]);
    wanted.extend(["idmapped mounts", "idmapped tmpfs"]);
    wanted.retain(|name| plain.has(name));
    assert_eq!(more, wanted);
    assert_eq!(old.status, Some(0));
    assert!(old.found("clone3").contains("function not implemented"), "{}", old.found("clone3"));
    let calls =
        [libc::SYS_openat2, libc::SYS_pidfd_send_signal, libc::SYS_fsmount, libc::SYS_set_mempolicy, libc::SYS_seccomp];
    let bare = without(calls.map(missing).to_vec());
    for (name, needed) in [
        ("openat2", true),
        ("pidfd", true),
        ("fsopen, fsmount", true),
        ("memory policies", false),
        ("seccomp filters", false),
    ] {
        assert!(!bare.has(name), "{name}");
        assert_eq!(bare.get(name)["needed"], needed, "{name}");
    }
    assert_eq!(bare.status, Some(1));
}

#[test]
fn namespaces_that_are_switched_off_and_hierarchies_that_are_gone_are_missed() {
    let scratch = Scratch::new();
    // The number is of each user namespace.
    let none =
        after(&["--user", "--map-root-user", "--mount"], "echo 0 >/proc/sys/user/max_user_namespaces", scratch.dir());
    assert!(!none.has("user namespaces") && !none.has("user.max_user_namespaces") && !none.has("root of the host"));
    assert_eq!(none.found("user.max_user_namespaces"), "0");
    assert!(none.has("mount namespaces") && none.has("fsopen, fsmount") && none.has("open_tree, move_mount"));
    let bare = after(&["--mount"], "umount -R /sys/fs/cgroup", scratch.dir());
    assert!(!bare.has("hierarchy") && bare.status == Some(1), "{:#}", bare.document);
    assert_eq!(bare.get("hierarchy")["needed"], true);
    let memory = "for dir in $(awk '$3 == \"cgroup\" && $4 ~ /(^|,)memory(,|$)/ { print $2 }' /proc/self/mounts); do umount \"$dir\"; done";
    let without = after(&["--mount"], memory, scratch.dir());
    if without.found("hierarchy") != "v2" {
        assert!(!without.has("memory") && without.has("pids") && without.status == Some(0));
    }
}

#[test]
fn nothing_of_the_attempts_stays() {
    let scratch = Scratch::new();
    let script = r#"
        shot() { cat /proc/self/mountinfo; find /sys/fs/cgroup -maxdepth 1; for pid in /proc/[0-9]*; do cat "$pid/comm"; done 2>/dev/null; ls -l /proc/self/ns; }
        shot >"$1/before"
        (exec -a dray "$2" check --json) >/dev/null
        shot >"$1/after"
        diff "$1/before" "$1/after""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", script, "bash"]);
    let output = command.arg(scratch.dir()).arg(common::shim_binary()).output().unwrap();
    // The numbers of processes are not compared, nor is the line of the link to their own directory.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{output:?}");
    assert!(fs::read_to_string(scratch.dir().join("after")).unwrap().contains(" / / "));
}

/// An unusual machine: its containerd, CRIU and Docker are programs of ours.
fn machine(scratch: &Scratch, programs: &[(&str, &str)], etc: &str) -> Report {
    let dir = scratch.dir();
    let path = dir.join("path");
    let _ = fs::create_dir(&path);
    for (name, script) in programs {
        executable(&path.join(name), script);
    }
    let script = format!(
        "systemd=$(readlink -f /lib/systemd/system/containerd.service); [ ! -e \"$systemd\" ] || mount --bind /dev/null \"$systemd\"; \
         mkdir -p \"$1/etc\"; mount --bind \"$1/etc\" /etc/containerd; {etc}; PATH=\"$1/path:$PATH\""
    );
    after(&["--mount", "--pid", "--fork", "--mount-proc"], &script, dir)
}

#[test]
fn versions_of_programs_are_what_they_say() {
    let scratch = Scratch::new();
    fs::create_dir_all("/etc/containerd").unwrap();
    let said = machine(
        &scratch,
        &[
            ("containerd", "echo containerd github.com/containerd/containerd/v2 2.3.1 abc"),
            (
                "criu",
                "case $1 in --version) echo Version: 4.9;; check) echo 'Error (a.c:1): no soft dirty'; exit 1;; esac",
            ),
            ("dockerd", "echo Docker version 19.03.1, build x"),
            ("newuidmap", ""),
            ("newgidmap", ""),
        ],
        ":",
    );
    assert_eq!(said.status, Some(0));
    assert!(said.found("criu").starts_with("4.9 (") && said.has("newuidmap"));
    assert_eq!((said.has("criu check"), said.found("criu check")), (false, "Error (a.c:1): no soft dirty"));
    assert!(
        said.has("containerd") && said.found("containerd").starts_with("2.3.1 (not running), "),
        "{}",
        said.found("containerd")
    );
    assert!(!said.has("containerd's shim"));
    assert!(!said.has("Docker") && said.found("Docker").starts_with("19.03.1, "));
    let entry = &said.configuration("/etc/containerd/config.toml")["entry"];
    assert_eq!(
        entry,
        "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dray]\n  runtime_type = \"io.containerd.dray.v2\"\n"
    );
    // One that is older, with a configuration of its own, the shim beside it.
    fs::write(
        scratch.dir().join("etc/config.toml"),
        "[plugins.cri.containerd.runtimes.dray]\nruntime_type = 'io.containerd.dray.v2'\n",
    )
    .unwrap();
    let programs = [
        ("containerd", "echo containerd github.com/containerd/containerd v1.5.9 abc"),
        ("containerd-shim-dray-v2", ""),
        ("criu", "[ $1 = --version ] && echo Version: 3.17 || echo Looks good."),
    ];
    let older = machine(&scratch, &programs, ":");
    assert!(!older.has("containerd") && older.has("containerd's shim") && older.has("criu check"));
    assert_eq!(older.found("containerd's shim"), scratch.dir().join("path/containerd-shim-dray-v2").to_str().unwrap());
    let configuration = older.configuration("/etc/containerd/config.toml");
    assert_eq!(configuration["present"], true);
    assert!(configuration["entry"].as_str().unwrap().starts_with("[plugins.cri.containerd.runtimes.dray]\n"));
    // A file that containerd would not start with is told, as Docker's.
    fs::write(scratch.dir().join("etc/config.toml"), "version = [").unwrap();
    let broken = machine(&scratch, &[], ":");
    assert!(broken.found("containerd's configuration").contains("/etc/containerd/config.toml: not TOML: line 1"));
    assert_eq!(broken.status, Some(0));
}

/// A program that does not answer is not waited for, and is gone.
#[test]
fn a_program_that_does_not_answer_is_ended() {
    let scratch = Scratch::new();
    let (path, mark) = (scratch.dir().join("path"), scratch.dir().join("mark"));
    fs::create_dir(&path).unwrap();
    executable(&path.join("criu"), &format!("sleep 1000 & echo $$ $! >'{}'; wait", mark.display()));
    executable(&path.join("dockerd"), "kill -9 $$");
    let began = Instant::now();
    let all = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let report = Report::of(check().env("PATH", all).output().unwrap());
    assert!(began.elapsed() < common::patience(Duration::from_secs(60)), "{:?}", began.elapsed());
    assert!(!report.has("criu") && report.found("criu").contains("no answer"), "{}", report.found("criu"));
    assert!(!report.has("Docker") && report.found("Docker").starts_with("of an unknown version"));
    let until = Instant::now() + common::patience(Duration::from_secs(20));
    for pid in fs::read_to_string(mark).unwrap().split_ascii_whitespace() {
        while fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.contains("sleep") || line.contains("criu"))
        {
            assert!(Instant::now() < until, "{pid} is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A containerd that runs: by its own environment, executable and flags.
struct Running(Child);

impl Running {
    fn start(dir: &Path, path: &str) -> Self {
        let config = dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\n  address = \"{0}/c.sock\"\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{0}/opt\"\n",
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/bin/containerd");
        // Relative, as a unit with a WorkingDirectory may have it.
        command.args(["--log-level", "error", "-c", "config.toml"]).current_dir(dir).env("PATH", path);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = Self(child);
        let until = Instant::now() + common::patience(Duration::from_secs(60));
        while !dir.join("c.sock").exists() {
            assert!(Instant::now() < until, "containerd does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_containerd_that_runs_is_asked_for_its_own_path() {
    if !Path::new("/usr/bin/containerd").exists() {
        return common::skipped("a_containerd_that_runs_is_asked_for_its_own_path", "no /usr/bin/containerd");
    }
    let scratch = Scratch::new();
    let dirs: Vec<PathBuf> = ["with", "without", "opt"].map(|name| scratch.dir().join(name)).into();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let shims = scratch.dir().join("shims");
    fs::create_dir(&shims).unwrap();
    executable(&shims.join("containerd-shim-dray-v2"), "");
    let found = |dir: &Path, path: &str| {
        let running = Running::start(dir, path);
        let report = here();
        let pid = format!("(pid {}), /usr/bin/containerd", running.0.id());
        let at = report
            .all()
            .iter()
            .position(|finding| finding["name"] == "containerd" && finding["found"].as_str().unwrap().ends_with(&pid));
        let at = at.unwrap_or_else(|| panic!("no {pid} in {:#}", report.document));
        let config = report.configuration(dir.join("config.toml").to_str().unwrap());
        assert_eq!(
            (&config["present"], config["daemon"].as_str().unwrap().ends_with(&format!("(pid {})", running.0.id()))),
            (&Value::from(false), true)
        );
        let shim = &report.all()[at + 1];
        assert_eq!(shim["name"], "containerd's shim");
        (shim["present"].as_bool().unwrap(), shim["found"].as_str().unwrap().to_owned())
    };
    let shim = shims.join("containerd-shim-dray-v2").display().to_string();
    assert_eq!(found(&dirs[0], &format!("/nonexistent:{}:/usr/bin", shims.display())), (true, shim));
    let (there, why) = found(&dirs[1], "/usr/bin");
    assert!(!there && why.ends_with("/opt/bin, /usr/bin"), "{why}");
    // The directory of the opt plugin is put before its PATH by containerd itself.
    let bin = dirs[2].join("opt/bin");
    fs::create_dir_all(&bin).unwrap();
    executable(&bin.join("containerd-shim-dray-v2"), "");
    assert_eq!(found(&dirs[2], "/usr/bin"), (true, bin.join("containerd-shim-dray-v2").display().to_string()));
}

/// What is said to be needed is what a container fails without, and what is not is not.
#[test]
fn what_is_needed_is_what_containers_fail_without() {
    let dray = Dray::new();
    let bundle = dray.bundle("plain");
    fs::remove_file(bundle.dir().join("config.json")).unwrap();
    assert!(dray.command(&["spec"]).current_dir(bundle.dir()).status().unwrap().success());
    let config = bundle.dir().join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["true"]);
    fs::write(&config, spec.to_string()).unwrap();
    let report = here();
    let names = ["sys_admin", "sys_chroot", "setgid", "setpcap", "mknod", "net_admin"];
    for name in names.into_iter().chain(["setuid", "kill", "chown", "sys_ptrace", "sys_nice", "bpf"]) {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", &format!("-{name}")]).arg(dray.scratch().dir().join("dray"));
        command.arg("--root").arg(dray.root()).args(["run", name]).current_dir(bundle.dir());
        let output = command.stdin(Stdio::null()).output().unwrap();
        let needed = report.get(&format!("CAP_{}", name.to_uppercase()))["needed"] == true;
        assert_eq!(needed, !output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(needed, names.contains(&name), "{name}");
    }
}

/// One in a container is configured there, and has another PATH.
#[test]
fn a_containerd_with_another_root_is_not_told_of() {
    let scratch = Scratch::new();
    let named = r#"printf containerd >/proc/self/comm; : >"$MARK"; read line"#;
    let start = |script: &str, mark: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", script, "bash"]);
        let child = command.arg(scratch.dir()).arg(named).stdin(Stdio::piped()).spawn().unwrap();
        let running = Running(child);
        let until = Instant::now() + common::patience(Duration::from_secs(30));
        while !mark.exists() {
            assert!(Instant::now() < until, "it does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        // Each program becomes the next: the number is one.
        let pid = running.0.id();
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "containerd\n");
        let told = here().document.to_string().contains(&format!("(pid {pid})"));
        drop(running);
        told
    };
    let bare = scratch.dir().join("mark");
    // Their only flag has a value, as a daemon's.
    let ours = format!("export MARK='{}'; exec bash -c \"$2\"", bare.display());
    assert!(start(&ours, &bare));
    let other = "mkdir -p \"$1/root/bin\" \"$1/root/proc\"; cp \"$(command -v busybox)\" \"$1/root/bin/busybox\"; \
         mount -t proc proc \"$1/root/proc\"; ln -s busybox \"$1/root/bin/sh\"; MARK=/mark exec chroot \"$1/root\" /bin/sh -c \"$2\"";
    assert!(!start(other, &scratch.dir().join("root/mark")));
}
