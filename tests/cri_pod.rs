//! Pods, by containerd's CRI plugin: what the kubelet can ask of a pod and its containers, and finds in them. Their life:
//! tests/cri.rs.

use common::containerd::{cgroup_value, eventually};
use common::cri::{BY_PATH, Cri, IDLE, Pod};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

common::on_each_containerd! {
    resources_are_set_and_updated,
    a_container_is_told_its_surroundings,
    containers_of_a_pod_share_what_it_says,
    the_pid_namespace_of_a_pod_or_container_is_shared,
    the_hosts_namespaces_are_joined,
    the_security_context_is_obeyed,
    a_privileged_container_has_the_hosts_devices,
    sysctls_are_the_pods,
    mounts_propagate_as_asked,
    a_read_only_mount_is_so_to_its_depth_where_asked,
    a_pod_may_have_a_user_namespace,
    devices_are_there_as_permitted,
}

/// The link that names a namespace of a process.
fn namespace(pid: u32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().to_str().unwrap().into()
}

/// A namespace of the host's.
fn host(name: &str) -> String {
    namespace(std::process::id(), name)
}

/// A container's part of a configuration: its security context.
fn secured(context: Value) -> Value {
    json!({"linux": {"security_context": context}})
}

/// A line of /proc/self/status in a container.
fn status_of(cri: &Cri, pod: &Pod, name: &str, line: &str, context: Value) -> String {
    let output = cri.output(pod, name, &format!("grep ^{line}: /proc/self/status"), secured(context));
    output.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

fn resources_are_set_and_updated(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let resources = json!({"cpu_period": "100000", "cpu_quota": "50000", "cpu_shares": "512",
        "memory_limit_in_bytes": "134217728", "oom_score_adj": "900", "cpuset_cpus": "0"});
    let id = cri.run(&pod, "container", IDLE, json!({"linux": {"resources": resources}}));
    let cgroup = cri.containerd.cgroup_of(&id);
    let value = |controller, v1, v2| cgroup_value(&cgroup, controller, v1, v2);
    let memory = || value("memory", "memory.limit_in_bytes", "memory.max");
    let quota = || value("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(memory(), "134217728");
    assert!(["50000", "50000 100000"].contains(&&*quota()));
    // runc's formula from shares to weight.
    assert!(["512", "59"].contains(&&*value("cpu", "cpu.shares", "cpu.weight")));
    assert_eq!(value("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(fs::read_to_string(format!("/proc/{}/oom_score_adj", cri.pid(&id))).unwrap().trim(), "900");
    let resources = json!({"cpu_period": "100000", "cpu_quota": "20000", "memory_limit_in_bytes": "201326592"});
    cri.call("UpdateContainerResources", &json!({"container_id": id, "linux": resources}));
    assert_eq!(memory(), "201326592");
    assert!(["20000", "20000 100000"].contains(&&*quota()));
    // Seen from inside, where the hierarchy is mounted read-only.
    let inside = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(cri.sh(&id, inside), "201326592");
    cri.remove_all(&[pod]);
}

fn a_container_is_told_its_surroundings(cri: Cri) {
    let pod = cri.run_pod("surroundings", json!({}));
    let volume = cri.containerd.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content").unwrap();
    let config = json!({
        "command": ["sh"], "args": ["-c", "hostname; cat /etc/hostname; echo $KEY $HOSTNAME; pwd; cat /volume/file; echo;
            echo x >/volume/new && echo yes; echo x 2>/dev/null >/fixed/new || echo no; ls -ld /work | cut -c1; grep -c . /etc/hosts"],
        "working_dir": "/work",
        "envs": [{"key": "KEY", "value": "a value"}],
        "mounts": [{"container_path": "/volume", "host_path": volume},
            {"container_path": "/fixed", "host_path": volume, "readonly": true},
            {"container_path": "/etc/hosts", "host_path": volume.join("file")}],
    });
    let output = cri.output(&pod, "container", "", config);
    assert_eq!(output, "surroundings\nsurroundings\na value surroundings\n/work\ncontent\nyes\nno\nd\n1\n");
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "x\n");
    cri.remove_all(&[pod]);
}

fn containers_of_a_pod_share_what_it_says(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let other = cri.run_pod("other", json!({}));
    let ids = ["one", "two"].map(|name| cri.run(&pod, name, IDLE, json!({})));
    let pids = [&pod.id, &ids[0], &ids[1]].map(|id| cri.pid(id));
    for name in ["net", "ipc", "uts"] {
        let of_pod = namespace(pids[0], name);
        assert_eq!(pids.map(|pid| namespace(pid, name)), [&*of_pod, &*of_pod, &*of_pod], "{name}");
        assert_ne!(of_pod, host(name), "{name}");
        assert_ne!(of_pod, namespace(cri.pid(&other.id), name), "{name}");
    }
    for name in ["pid", "mnt"] {
        let all = pids.map(|pid| namespace(pid, name));
        assert!(
            all[0] != all[1] && all[1] != all[2] && all[0] != all[2] && !all.contains(&host(name)),
            "{name} {all:?}"
        );
    }
    // What is in them: memory, and the network's loopback.
    cri.sh(&ids[0], "echo shared >/dev/shm/file");
    assert_eq!(cri.sh(&ids[1], "cat /dev/shm/file"), "shared");
    cri.sh(&ids[0], "nc -l -p 4711 -e echo by loopback >/dev/null 2>&1 &");
    let connect = "for i in $(seq 100); do nc 127.0.0.1 4711 </dev/null 2>/dev/null && break; sleep 0.1; done";
    assert_eq!(cri.sh(&ids[1], connect), "by loopback");
    cri.remove_all(&[pod, other]);
}

fn the_pid_namespace_of_a_pod_or_container_is_shared(cri: Cri) {
    let options = |pid: &str| json!({"linux": {"security_context": {"namespace_options": {"pid": pid}}}});
    let pod = cri.run_pod("pod", options("POD"));
    let ids = ["one", "two"].map(|name| cri.run(&pod, name, IDLE, options("POD")));
    let of_pod = namespace(cri.pid(&pod.id), "pid");
    assert_eq!(ids.each_ref().map(|id| namespace(cri.pid(id), "pid")), [&*of_pod, &*of_pod]);
    assert!(cri.sh(&ids[0], "cat /proc/1/cmdline | tr '\\0' ' '").contains("sleep 2147483647"));
    // A container's end is the end of all that it started, though the namespace lives on.
    let leaves = cri.run(&pod, "leaves", "sleep 3999 & echo $! >/tmp/pid; exit 0", options("POD"));
    assert_eq!(cri.wait(&leaves)["exit_code"], 0);
    let sleeping = |script: &str| cri.sh(&ids[0], script);
    assert!(eventually(|| !sleeping("ps -o args").contains("sleep 3999")), "{}", sleeping("ps"));
    assert_eq!(cri.sh(&ids[1], "echo alive"), "alive");

    let apart = cri.run_pod("apart", options("CONTAINER"));
    let target = cri.run(&apart, "target", IDLE, options("CONTAINER"));
    // An ephemeral container, for debugging.
    let namespaces = json!({"namespace_options": {"pid": "TARGET", "target_id": target}});
    let debug = cri.run(&apart, "debug", IDLE, secured(namespaces));
    assert_eq!(namespace(cri.pid(&debug), "pid"), namespace(cri.pid(&target), "pid"));
    cri.call("StopContainer", &json!({"container_id": debug, "timeout": "0"}));
    assert_eq!(cri.status(&target)["state"], "CONTAINER_RUNNING");
    cri.remove_all(&[pod, apart]);
}

fn the_hosts_namespaces_are_joined(cri: Cri) {
    let options = json!({"network": "NODE", "pid": "NODE", "ipc": "NODE"});
    let config = json!({"linux": {"security_context": {"namespace_options": options}}});
    let pod = cri.run_pod("pod", json!({"hostname": "", "linux": config["linux"]}));
    let id = cri.run(&pod, "container", "sleep 4999 & exec sleep 4998", config);
    let pid = cri.pid(&id);
    for name in ["net", "pid", "ipc", "uts"] {
        assert_eq!(namespace(pid, name), host(name), "{name}");
    }
    assert_ne!(namespace(pid, "mnt"), host("mnt"));
    // Without a namespace that the kernel would end.
    cri.call("StopContainer", &json!({"container_id": id, "timeout": "0"}));
    assert_eq!(cri.status(&id)["exit_code"], 137);
    cri.remove_all(&[pod]);
}

fn the_security_context_is_obeyed(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    let user = json!({"run_as_user": {"value": "1000"}, "run_as_group": {"value": "2000"}, "supplemental_groups": ["3000", "3001"]});
    let id = cri.run(&pod, "user", IDLE, secured(user));
    assert_eq!(
        cri.sh(&id, "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | xargs; grep CapEff /proc/self/status | cut -f2"),
        "1000\n2000\n2000 3000 3001\n0000000000000000"
    );
    let name = secured(json!({"run_as_username": "user"}));
    assert_eq!(cri.output(&pod, "name", "id -u; id -g", name), "1000\n1000\n");

    // Capabilities by capability.h: NET_RAW is 13, CHOWN 0, SYS_TIME 25.
    let bounding = |name, context| u64::from_str_radix(&status_of(&cri, &pod, name, "CapBnd", context), 16).unwrap();
    let default = bounding("default", json!({}));
    assert!(default & 1 << 13 != 0 && default & 1 << 25 == 0, "{default:x}");
    let capabilities = json!({"capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["CHOWN"]}});
    assert_eq!(bounding("chown", capabilities), 1);
    assert_eq!(status_of(&cri, &pod, "nnp", "NoNewPrivs", json!({"no_new_privs": true})), "1");
    assert_eq!(status_of(&cri, &pod, "privs", "NoNewPrivs", json!({})), "0");

    // 2 is a filter; what Docker's default profile is for: a new user namespace is not to be had.
    let seccomp =
        json!({"seccomp": {"profile_type": "RuntimeDefault"}, "capabilities": {"drop_capabilities": ["ALL"]}});
    assert_eq!(status_of(&cri, &pod, "filtered", "Seccomp", seccomp.clone()), "2");
    let unshare = "unshare -U true 2>&1 || true";
    assert!(cri.output(&pod, "unshare", unshare, secured(seccomp)).contains("Operation not permitted"));
    let unconfined = json!({"seccomp": {"profile_type": "Unconfined"}});
    assert_eq!(status_of(&cri, &pod, "unfiltered", "Seccomp", unconfined), "0");

    let read_only = "echo x 2>/dev/null >/file || echo no; echo x >/dev/shm/file && echo yes";
    assert_eq!(cri.output(&pod, "fixed", read_only, secured(json!({"readonly_rootfs": true}))), "no\nyes\n");
    let paths = json!({"masked_paths": ["/proc/timer_list", "/sys/firmware"], "readonly_paths": ["/proc/sys"]});
    let look =
        "wc -c </proc/timer_list; ls /sys/firmware | wc -l; echo x 2>/dev/null >/proc/sys/kernel/domainname || echo no";
    assert_eq!(cri.output(&pod, "masked", look, secured(paths)), "0\n0\nno\n");
    cri.remove_all(&[pod]);
}

fn a_privileged_container_has_the_hosts_devices(cri: Cri) {
    let pod = cri.run_pod("pod", json!({"linux": {"security_context": {"privileged": true}}}));
    let id = cri.run(&pod, "container", IDLE, secured(json!({"privileged": true})));
    let plain = cri.run(&pod, "plain", IDLE, json!({}));
    let count = |id: &str| cri.sh(id, "ls /dev | wc -l").parse::<u32>().unwrap();
    assert!(count(&id) > count(&plain), "{} {}", count(&id), count(&plain));
    // As much as containerd itself may, which has no more to give.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    assert_eq!(cri.sh(&id, "grep CapEff /proc/self/status | cut -f2"), own);
    // No path is masked, sysfs can be written, devices be opened.
    cri.sh(&id, "test -w /sys && mount -t tmpfs tmpfs /tmp && umount /tmp");
    cri.sh(&id, "mknod /tmp/null c 1 3 && echo x >/tmp/null");
    assert_eq!(cri.sh(&plain, "mount -t tmpfs tmpfs /tmp 2>/dev/null || echo no"), "no");
    cri.remove_all(&[pod]);
}

fn sysctls_are_the_pods(cri: Cri) {
    let sysctls = json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2000", "kernel.shm_rmid_forced": "1"});
    let pod = cri.run_pod("pod", json!({"linux": {"sysctls": sysctls}}));
    let id = cri.run(&pod, "container", IDLE, secured(json!({"run_as_user": {"value": "1000"}})));
    let read = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/shm_rmid_forced";
    assert_eq!(cri.sh(&id, read).split_whitespace().collect::<Vec<_>>(), ["0", "0", "2000", "1"]);
    // What it is for: a user's server at a port of root's, where there is no capability.
    let script = "nc -l -p 80 -e true & sleep 0.3; cat /proc/net/tcp* | grep -c :0050; kill $!";
    assert_eq!(cri.sh(&id, script), "1");
    cri.remove_all(&[pod]);
}

fn mounts_propagate_as_asked(cri: Cri) {
    let volume = cri.containerd.dir.join("volume");
    for name in ["host", "container"] {
        fs::create_dir_all(volume.join(name)).unwrap();
    }
    mount(&["--bind"], &volume, &volume);
    mount(&["--make-shared"], "none", &volume);
    let pod = cri.run_pod("pod", json!({"linux": {"security_context": {"privileged": true}}}));
    let ids = ["PRIVATE", "HOST_TO_CONTAINER", "BIDIRECTIONAL"].map(|name| {
        let propagation = format!("PROPAGATION_{name}");
        let volume = json!({"container_path": "/volume", "host_path": volume, "propagation": propagation});
        let config = json!({"mounts": [volume], "linux": {"security_context": {"privileged": true}}});
        cri.run(&pod, &name.to_lowercase(), IDLE, config)
    });
    mount(&["-t", "tmpfs"], "host", &volume.join("host"));
    let sees = |id: &str, name: &str| cri.sh(id, &format!("grep -c ' /volume/{name} ' /proc/mounts || true"));
    assert_eq!(ids.each_ref().map(|id| sees(id, "host")), ["0", "1", "1"]);
    cri.sh(&ids[2], "mount -t tmpfs container /volume/container");
    assert_eq!(ids.each_ref().map(|id| sees(id, "container")), ["0", "1", "1"]);
    let table = || fs::read_to_string("/proc/self/mounts").unwrap();
    let by_container = volume.join("container");
    assert!(table().contains(by_container.to_str().unwrap()), "{}", table());
    for path in [by_container, volume.join("host"), volume] {
        assert!(Command::new("umount").arg("-l").arg(&path).status().unwrap().success(), "{}", path.display());
    }
    cri.remove_all(&[pod]);
}

/// A feature that the plugin has found in what the shim says of itself (`-info`): it asks those in runc's place alone.
fn offers(cri: &Cri, feature: &str) -> bool {
    let status = cri.call("Status", &json!({}));
    let handlers = status["runtime_handlers"].as_array().unwrap();
    let ours = handlers.iter().find(|handler| handler["name"] == BY_PATH).unwrap_or_else(|| panic!("{status}"));
    ours["features"][feature] == true
}

fn a_read_only_mount_is_so_to_its_depth_where_asked(cri: Cri) {
    if cri.containerd.config_version() < 3 {
        return cri.containerd.skip("its CRI plugin knows no recursive_read_only");
    }
    assert!(offers(&cri, "recursive_read_only_mounts"));
    let volume = cri.containerd.dir.join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    mount(&["-t", "tmpfs"], "below", &volume.join("below"));
    let pod = cri.run_pod_by(BY_PATH, "pod", json!({}));
    let mounts = [("/plain", false), ("/recursive", true)].map(|(path, recursive)| {
        json!({"container_path": path, "host_path": volume, "readonly": true, "recursive_read_only": recursive})
    });
    let id = cri.run(&pod, "container", IDLE, json!({"mounts": mounts}));
    let script = "for f in /plain/x /plain/below/x /recursive/y /recursive/below/y; do touch $f 2>/dev/null && echo $f; done; true";
    let written = cri.sh(&id, script);
    let on_host = volume.join("below/x").exists();
    assert!(Command::new("umount").arg("-l").arg(volume.join("below")).status().unwrap().success());
    assert_eq!((&*written, on_host), ("/plain/below/x", true));
    cri.remove_all(&[pod]);
}

/// As the kubelet asks for it where a pod has `hostUsers: false`: the mapping with the pod, with each container, and with
/// each volume, whose files are then the container's by their owners on the disk.
fn a_pod_may_have_a_user_namespace(cri: Cri) {
    const ROOT: u32 = 1_000_000;
    if cri.containerd.module() == "containerd_1_6" {
        return cri.containerd.skip("its CRI plugin knows no user namespaces");
    }
    // 1.7 has them for what has no volumes.
    let with_volumes = cri.containerd.config_version() >= 3;
    assert!(!with_volumes || offers(&cri, "user_namespaces"));
    let ids = json!([{"host_id": ROOT, "container_id": 0, "length": 65536}]);
    let users = json!({"mode": "POD", "uids": ids, "gids": ids});
    let options = json!({"linux": {"security_context": {"namespace_options": {"userns_options": users}}}});
    let volume = cri.containerd.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    chown(volume.join("file"), Some(7), Some(8)).unwrap();
    let pod = cri.run_pod_by(BY_PATH, "pod", options.clone());
    let mut config = options;
    if with_volumes {
        let mount = json!({"container_path": "/volume", "host_path": volume, "uidMappings": ids, "gidMappings": ids});
        config["mounts"] = json!([mount]);
    }
    let containers = ["one", "two"].map(|name| cri.run(&pod, name, IDLE, config.clone()));
    let pids = [&pod.id, &containers[0], &containers[1]].map(|id| cri.pid(id));
    let of_pod = namespace(pids[0], "user");
    assert_eq!(pids.map(|pid| namespace(pid, "user")), [&*of_pod, &*of_pod, &*of_pod]);
    assert_ne!(of_pod, host("user"));
    let map = fs::read_to_string(format!("/proc/{}/uid_map", pids[1])).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536"]);
    let script = "id -u; echo x > /own; stat -c %u:%g /bin/busybox /own";
    assert_eq!(cri.sh(&containers[0], script), "0\n0:0\n0:0");
    if with_volumes {
        let script = "echo x > /volume/new; stat -c %u:%g /volume /volume/file /volume/new /etc/hosts";
        assert_eq!(cri.sh(&containers[0], script), "0:0\n7:8\n0:0\n0:0");
        assert_eq!(cri.sh(&containers[1], "cat /volume/new"), "x");
        assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0, "on the disk");
    }
    cri.remove_all(&[pod]);
}

fn mount(options: &[&str], source: impl AsRef<Path>, target: &Path) {
    let mut command = Command::new("mount");
    assert!(command.args(options).arg(source.as_ref()).arg(target).status().unwrap().success(), "{command:?}");
}

fn devices_are_there_as_permitted(cri: Cri) {
    let pod = cri.run_pod("pod", json!({}));
    // The kernel's log: there everywhere, and not among the devices that every container may use. SYSLOG is for reading it.
    let run = |name, permissions| {
        let device = json!({"container_path": "/dev/given", "host_path": "/dev/kmsg", "permissions": permissions});
        let capabilities = json!({"capabilities": {"add_capabilities": ["SYSLOG"]}});
        let config = json!({"devices": [device], "linux": {"security_context": capabilities}});
        cri.run(&pod, name, IDLE, config)
    };
    let (reader, writer) = (run("reader", "r"), run("writer", "w"));
    assert_eq!(cri.sh(&reader, "stat -c %t:%T /dev/given"), "1:b");
    // Opened only.
    let opens = |id: &str, redirection: &str| {
        let output = cri.exec(id, &["sh", "-c", &format!("true {redirection} /dev/given")]);
        assert!(output.code == 0 || output.stderr.contains("Operation not permitted"), "{output:?}");
        output.code == 0
    };
    assert_eq!([opens(&reader, "<"), opens(&reader, ">")], [true, false]);
    assert_eq!([opens(&writer, "<"), opens(&writer, ">")], [false, true]);
    // One that is not given.
    let plain = cri.run(&pod, "plain", IDLE, json!({}));
    assert_eq!(cri.sh(&plain, "mknod /tmp/kmsg c 1 11; true 2>/dev/null >/tmp/kmsg || echo no"), "no");
    cri.remove_all(&[pod]);
}
