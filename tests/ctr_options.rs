//! What the options of `ctr run` ask for, as the container and the kernel see it.

use common::containerd::{Containerd, cgroup_value, eventually, text};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

common::on_each_containerd! {
    by_default_the_namespaces_are_new,
    the_host_s_network_and_one_by_path_are_joined,
    limits_are_those_of_the_cgroup,
    a_number_of_cpus_is_a_quota_and_a_pids_limit_holds,
    the_process_has_its_directory_environment_limits_and_privileges,
    capabilities_are_added_and_dropped,
    a_user_has_its_ids_and_no_capabilities,
    bind_mounts_are_there_and_read_only_where_asked,
    the_root_is_writable_and_read_only_where_asked,
    the_default_mounts_have_their_types_and_options,
    masked_paths_are_empty_and_read_only_paths_refuse,
    devices_are_the_default_ones_and_those_asked_for,
    a_cgroup_mount_shows_the_container_its_own,
    a_hostname_of_the_specification_is_set_in_the_container_alone,
    oom_score_and_resource_limits_are_the_specification_s,
    an_unknown_namespace_is_refused_by_its_name,
    the_default_seccomp_profile_is_applied,
}

fn sh(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

/// The fields of a /proc/PID/status, by name.
fn status(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}

/// A field that is a set of capabilities or signals.
fn bits(text: &str, set: &str) -> u64 {
    u64::from_str_radix(status(text)[set], 16).unwrap()
}

const CAP_CHOWN: u64 = 1 << 0;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_BOOT: u64 = 1 << 22;
/// ctr's default: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
/// sys_chroot, mknod, audit_write, setfcap.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

fn by_default_the_namespaces_are_new(containerd: Containerd) {
    let script =
        "for n in ipc mnt net pid uts cgroup; do readlink /proc/self/ns/$n; done; echo pid $$; cat /proc/net/dev";
    let output = containerd.run_ok("namespaces", &[], &sh(script));
    let mut lines = output.lines();
    for ns in ["ipc", "mnt", "net", "pid", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{ns}")).unwrap();
        let line = lines.next().unwrap();
        assert!(line.starts_with(&format!("{ns}:[")) && line != own.to_str().unwrap(), "{line}");
    }
    // ctr's default specification has no cgroup namespace.
    assert_eq!(lines.next().unwrap(), fs::read_link("/proc/self/ns/cgroup").unwrap().to_str().unwrap());
    assert_eq!(lines.next(), Some("pid 1"));
    let interfaces: Vec<_> = lines.filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    assert_eq!(interfaces, ["lo"]);
    containerd.assert_nothing_left();
}

fn the_host_s_network_and_one_by_path_are_joined(containerd: Containerd) {
    // ctr binds both into a container with the host's network; an image of Debian has no hosts before its first boot.
    if !std::path::Path::new("/etc/hosts").exists() {
        return containerd.skip("this machine has no /etc/hosts");
    }
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let output = containerd.run_ok("host", &["--net-host"], &["readlink", "/proc/self/ns/net"]);
    assert_eq!(output.trim(), own.to_str().unwrap());
    let mut other = Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", other.id());
    assert!(eventually(|| fs::read_link(&path).unwrap() != own));
    let output =
        containerd.run_ok("path", &["--with-ns", &format!("network:{path}")], &["readlink", "/proc/self/ns/net"]);
    assert_eq!(output.trim(), fs::read_link(&path).unwrap().to_str().unwrap());
    let _ = other.kill();
    let _ = other.wait();
    // A namespace that is not there is an error that names it.
    let output = containerd.run("gone", &["--with-ns", "network:/no/such/ns"], &["true"]);
    assert!(!output.status.success() && text(&output.stderr).contains("/no/such/ns"), "{output:?}");
    containerd.assert_nothing_left();
}

fn limits_are_those_of_the_cgroup(containerd: Containerd) {
    let options =
        ["--memory-limit", "67108864", "--cpu-quota", "50000", "--cpu-period", "200000", "--cpu-shares", "512"];
    containerd.run_detached("limited", &options, &["sleep", "1000"]);
    let cgroup = containerd.cgroup_of("limited");
    assert_eq!(cgroup_value(&cgroup, "memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    let quota = cgroup_value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max");
    let period = cgroup_value(&cgroup, "cpu", "cpu.cfs_period_us", "cpu.max");
    assert!(quota == "50000" && period == "200000" || quota == "50000 200000", "{quota} {period}");
    // runc's conversion of shares to a weight, for which 1024 are 100.
    let shares = cgroup_value(&cgroup, "cpu", "cpu.shares", "cpu.weight");
    assert!(["512", "59"].contains(&&*shares), "{shares}");
    let init = containerd.task("limited").unwrap().pid.to_string();
    for controller in ["memory", "cpu", "pids", "freezer", "devices"] {
        let procs = cgroup_value(&cgroup, controller, "cgroup.procs", "cgroup.procs");
        assert_eq!(procs, init, "{controller}");
    }
    containerd.remove("limited");
    // 256 MB are more than it may have: the kernel kills it.
    let hog = "x=$(head -c 268435456 /dev/zero | tr '\\0' x); echo survived";
    let output = containerd.run("hog", &["--memory-limit", "16777216"], &sh(hog));
    assert!(!output.status.success() && !text(&output.stdout).contains("survived"), "{output:?}");
    containerd.assert_nothing_left();
}

fn a_number_of_cpus_is_a_quota_and_a_pids_limit_holds(containerd: Containerd) {
    containerd.run_detached("cpus", &["--cpus", "0.5"], &["sleep", "1000"]);
    let quota = cgroup_value(&containerd.cgroup_of("cpus"), "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(["50000", "50000 100000"].contains(&&*quota), "{quota}");
    containerd.remove("cpus");
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo all";
    let options = containerd.config("pids", &sh(script), |spec| spec["linux"]["resources"]["pids"]["limit"] = 5.into());
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let output = containerd.run("pids", &options, &[]);
    assert!(text(&output.stderr).contains("can't fork") && !text(&output.stdout).contains("all"), "{output:?}");
    containerd.assert_nothing_left();
}

fn the_process_has_its_directory_environment_limits_and_privileges(containerd: Containerd) {
    let options = ["--cwd", "/tmp", "--env", "ONE=1", "--env", "TWO=2 words"];
    let output =
        containerd.run_ok("plain", &options, &sh("pwd; echo $ONE,$TWO,$PATH; umask; ulimit -n; cat /proc/self/status"));
    let (head, rest) = output.split_at(output.find("Name:").unwrap());
    assert_eq!(head, "/tmp\n1,2 words,/bin:/usr/bin\n0022\n1024\n");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(bits(rest, set), DEFAULT_CAPABILITIES, "{set}");
    }
    assert_eq!((bits(rest, "CapInh"), bits(rest, "CapAmb")), (0, 0));
    let fields = status(rest);
    assert_eq!((fields["NoNewPrivs"], fields["Uid"], fields["Groups"]), ("1", "0\t0\t0\t0", "0"));
    let output = containerd.run_ok("privileges", &["--allow-new-privs"], &["cat", "/proc/self/status"]);
    assert_eq!(status(&output)["NoNewPrivs"], "0");
    // Nothing of the shim's signal set-up is inherited: what it blocks and ignores would surprise every program. A shell
    // ignores some of its own, and glibc's posix_spawn, by which a containerd may have been started, signals 32 and 33.
    let ignored = bits(&output, "SigIgn") & !(0b11 << 31);
    assert_eq!((status(&output)["SigBlk"], ignored), ("0000000000000000", 0));
    containerd.assert_nothing_left();
}

fn capabilities_are_added_and_dropped(containerd: Containerd) {
    let options = ["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SYS_BOOT", "--cap-drop", "CAP_CHOWN"];
    let output = containerd.run_ok("caps", &options, &["cat", "/proc/self/status"]);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let expected = (DEFAULT_CAPABILITIES | CAP_SYS_ADMIN | CAP_SYS_BOOT) & !CAP_CHOWN;
        assert_eq!(bits(&output, set), expected, "{set}");
    }
    let output = containerd.run("chown", &["--cap-drop", "CAP_CHOWN"], &["chown", "5", "/tmp"]);
    assert!(!output.status.success(), "{output:?}");
    containerd.assert_nothing_left();
}

fn a_user_has_its_ids_and_no_capabilities(containerd: Containerd) {
    let script = "id -u; id -g; id -G; touch /new 2>/dev/null || echo refused; cat /proc/self/status";
    let options = containerd.config("user", &sh(script), |spec| {
        spec["process"]["user"] =
            serde_json::json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o77 });
    });
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let output = containerd.run_ok("user", &options, &[]);
    let (head, rest) = output.split_at(output.find("Name:").unwrap());
    assert_eq!(head, "1000\n1001\n1001 5 6\nrefused\n");
    assert_eq!((bits(rest, "CapEff"), bits(rest, "CapPrm")), (0, 0));
    assert_eq!((status(rest)["Umask"], bits(rest, "CapBnd")), ("0077", DEFAULT_CAPABILITIES));
    containerd.assert_nothing_left();
}

fn bind_mounts_are_there_and_read_only_where_asked(containerd: Containerd) {
    let (read, write) = (containerd.dir.join("read"), containerd.dir.join("write"));
    for dir in [&read, &write] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("file"), "from the host\n").unwrap();
    }
    let file = read.join("file");
    let mounts = [
        format!("type=bind,src={},dst=/read,options=rbind:ro", read.display()),
        format!("type=bind,src={},dst=/some/deep/write,options=rbind:rw", write.display()),
        // A file onto a file that is not in the image.
        format!("type=bind,src={},dst=/etc/one,options=bind:ro", file.display()),
    ];
    let script = "cat /read/file /some/deep/write/file /etc/one
        (echo no >/read/file) 2>/dev/null || echo read-only
        (echo no >/etc/one) 2>/dev/null || echo read-only
        echo from the container >/some/deep/write/file";
    let options = ["--mount", &*mounts[0], "--mount", &*mounts[1], "--mount", &*mounts[2]];
    let output = containerd.run_ok("mounts", &options, &sh(script));
    assert_eq!(output, "from the host\n".repeat(3) + "read-only\nread-only\n");
    assert_eq!(fs::read_to_string(write.join("file")).unwrap(), "from the container\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "from the host\n");
    containerd.assert_nothing_left();
    // A source that is not there is an error that names it.
    let output =
        containerd.run("no-source", &["--mount", "type=bind,src=/no/such/dir,dst=/x,options=rbind"], &["true"]);
    assert!(!output.status.success() && text(&output.stderr).contains("/no/such/dir"), "{output:?}");
    containerd.assert_nothing_left();
}

fn the_root_is_writable_and_read_only_where_asked(containerd: Containerd) {
    let script = "touch /new 2>/dev/null && echo written; cut -d' ' -f2,4 /proc/mounts | grep '^/ '; touch /dev/shm/x";
    let output = containerd.run_ok("writable", &[], &sh(script));
    assert!(output.starts_with("written\n/ rw,"), "{output}");
    let output = containerd.run_ok("read-only", &["--read-only"], &sh(script));
    assert!(output.starts_with("/ ro,"), "{output}");
    // A directory of the host's, which no snapshot covers.
    let rootfs = containerd.rootfs_dir();
    let output = containerd.run_ok(
        "rootfs",
        &["--rootfs", "--env", "PATH=/bin"],
        &[&[rootfs.to_str().unwrap()], &sh(script)[..]].concat(),
    );
    assert!(output.starts_with("written\n"), "{output}");
    assert!(rootfs.join("new").exists());
    containerd.assert_nothing_left();
    // What was mounted in it went with the container.
    assert!(!rootfs.join("proc/self").exists() && rootfs.join("bin/sh").exists());
}

/// /proc/mounts by mount point: type and options.
fn mounts(table: &str) -> BTreeMap<&str, (&str, Vec<&str>)> {
    let words = |line| str::split(line, ' ').collect::<Vec<&str>>();
    table.lines().map(words).map(|w| (w[1], (w[2], w[3].split(',').collect()))).collect()
}

fn the_default_mounts_have_their_types_and_options(containerd: Containerd) {
    let output = containerd.run_ok("mounts", &[], &["cat", "/proc/mounts"]);
    let mounts = mounts(&output);
    let expected = [
        ("/proc", "proc", "rw,nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "rw,nosuid,size=65536k,mode=755"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec,gid=5,mode=620,ptmxmode=666"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec,size=65536k"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/run", "tmpfs", "rw,nosuid,size=65536k,mode=755"),
        ("/proc/sys", "proc", "ro,nosuid,nodev,noexec"),
    ];
    for (point, kind, options) in expected {
        let (has_kind, has) = mounts.get(point).unwrap_or_else(|| panic!("no {point} in\n{output}"));
        let missing: Vec<_> = options.split(',').filter(|option| !has.contains(option)).collect();
        assert!(*has_kind == kind && missing.is_empty(), "{point}: {has_kind} {has:?} lacks {missing:?}");
    }
    // No mount of the host's is seen: all are on paths of the specification's.
    let known = ["/", "/proc", "/dev", "/sys", "/run"];
    let strange: Vec<_> = mounts
        .keys()
        .filter(|point| !known.iter().any(|k| *point == k || (*k != "/" && point.starts_with(&format!("{k}/")))))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    containerd.assert_nothing_left();
}

fn masked_paths_are_empty_and_read_only_paths_refuse(containerd: Containerd) {
    let script =
        "wc -c </proc/keys; wc -c </proc/timer_list; ls /sys/firmware /proc/acpi 2>/dev/null | grep -v : | tr -d '\\n'
        for f in /proc/sys/kernel/domainname /proc/sysrq-trigger; do (echo x >$f) 2>/dev/null || echo refused; done";
    assert_eq!(containerd.run_ok("masked", &[], &sh(script)), "0\n0\nrefused\nrefused\n");
    containerd.assert_nothing_left();
}

fn devices_are_the_default_ones_and_those_asked_for(containerd: Containerd) {
    let script = "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' $d; done
        for l in fd stdin stdout stderr ptmx; do readlink $l; done
        echo gone >null; (echo x >full) 2>/dev/null || echo full; head -c 4 zero | wc -c";
    let output = containerd.run_ok("default", &[], &sh(script));
    let expected = "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\ntty 5:0 666\n\
        /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\nfull\n4\n";
    assert_eq!(output, expected);
    // /dev/kmsg, 1:11, which takes CAP_SYSLOG too: not allowed by default, whoever makes its node; with the option it is.
    let syslog = ["--cap-add", "CAP_SYSLOG"];
    let script = "mknod -m 666 /tmp/k c 1 11 && head -c 0 /tmp/k && echo opened";
    let output = containerd.run("refused", &syslog, &sh(script));
    assert!(!output.status.success() && text(&output.stderr).contains("not permitted"), "{output:?}");
    let script = "stat -c %t:%T /dev/kmsg; exec 3</dev/kmsg && echo opened";
    let output = containerd.run_ok("asked", &[&["--device", "/dev/kmsg"], &syslog[..]].concat(), &sh(script));
    assert_eq!(output, "1:b\nopened\n");
    containerd.assert_nothing_left();
}

fn a_cgroup_mount_shows_the_container_its_own(containerd: Containerd) {
    let options = [
        "--memory-limit",
        "67108864",
        "--mount",
        "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev",
    ];
    // On v2 it is the tree that the cgroup namespace has, and ctr's default specification has none of its own.
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes 2>/dev/null ||
            { cd ./$(cut -d: -f3 /proc/self/cgroup) && cat memory.max; }
        (cd memory 2>/dev/null; mkdir new) 2>/dev/null || echo read-only";
    assert_eq!(containerd.run_ok("cgroup", &options, &sh(script)), "67108864\nread-only\n");
    containerd.assert_nothing_left();
}

fn a_hostname_of_the_specification_is_set_in_the_container_alone(containerd: Containerd) {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let options = containerd.config("host", &["hostname"], |spec| spec["hostname"] = "inside".into());
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    assert_eq!(containerd.run_ok("host", &options, &[]), "inside\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
    containerd.assert_nothing_left();
}

fn oom_score_and_resource_limits_are_the_specification_s(containerd: Containerd) {
    let script = "cat /proc/self/oom_score_adj; ulimit -S -n; ulimit -H -n; ulimit -c";
    let options = containerd.config("limits", &sh(script), |spec| {
        spec["process"]["oomScoreAdj"] = 321.into();
        spec["process"]["rlimits"] = serde_json::json!([
            { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        ]);
    });
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    assert_eq!(containerd.run_ok("limits", &options, &[]), "321\n100\n200\n0\n");
    containerd.assert_nothing_left();
}

fn an_unknown_namespace_is_refused_by_its_name(containerd: Containerd) {
    let options = containerd.config("unknown", &["true"], |spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({ "type": "nosuch" }));
    });
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let output = containerd.run("unknown", &options, &[]);
    assert!(!output.status.success() && text(&output.stderr).contains("nosuch"), "{output:?}");
    containerd.assert_nothing_left();
}

/// containerd's default profile: a container lives under it, and what it forbids is forbidden, with every capability too.
fn the_default_seccomp_profile_is_applied(containerd: Containerd) {
    let script =
        "grep ^Seccomp: /proc/self/status; unshare -m true; mount -t tmpfs x /tmp; ls / >/dev/null && echo fine";
    let output = containerd.run("profiled", &["--seccomp"], &sh(script));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(stdout.contains("Seccomp:\t2\n") && stdout.contains("fine\n"), "{stdout}{stderr}");
    assert!(stderr.contains("unshare: unshare(0x20000): Operation not permitted"), "{stderr}");
    assert!(stderr.contains("mount: permission denied"), "{stderr}");
    // Nobody may do this; without the profile it is the file that is missed.
    for (id, options, words) in [
        ("forbidden", &["--privileged", "--seccomp"][..], "Operation not permitted"),
        ("missing", &["--privileged"], "No such file or directory"),
    ] {
        let stderr = text(&containerd.run(id, options, &["swapoff", "/dev/not-there"]).stderr);
        assert!(stderr.contains(words), "{options:?}: {stderr}");
    }
    containerd.assert_nothing_left();
}
