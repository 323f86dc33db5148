//! Containers of a rootless containerd: the shim is root of a user namespace, and on the host a user like others.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use common::bundle::Bundle;
use common::cgroup::is_v2;
use common::container::{Host, refused as refused_create, run, run_script};
use common::containerd::Containerd;
use common::containerd::version::{Driven, Version};
use common::rootless::{Cgroups, INSIDE, Ids, LOCKED, rootless};
use common::scratch::{cgroup_mounts, remove_cgroup};
use common::stdio::Io;
use common::user::as_user;
use common::world::{Bystander, SOON, World, refused};
use common::{block_on, linux, shim_binary, skipped};
use containerd_shim_protos::api;
use serde_json::{Value, json};
use ttrpc::Code;

/// Wants more memory than a container of 16 MiB has, at once.
const HOG: &str = "dd if=/dev/zero of=/dev/null count=1 bs=64M 2>/dev/null";

/// A devpts whose terminals' group is the root's, who is all that there is where one id is mapped.
fn no_tty_group(spec: &mut Value) {
    for mount in spec["mounts"].as_array_mut().unwrap() {
        mount["options"].as_array_mut().unwrap().retain(|option| option != "gid=5");
    }
}

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"]).edit(no_tty_group)
}

/// With the pid namespace of the place, whose procfs it can only bind.
fn without_pid_namespace(bundle: Bundle) -> Bundle {
    bundle.without_namespace("pid").edit(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        let proc = mounts.iter_mut().find(|mount| mount["type"] == "proc").unwrap();
        *proc = json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
        for paths in ["maskedPaths", "readonlyPaths"] {
            spec["linux"][paths] = json!([]);
        }
    })
}

fn with_limits(spec: &mut Value) {
    spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    spec["linux"]["resources"]["pids"] = json!({"limit": 8});
}

/// A file of the container's cgroup, in whichever hierarchy has it.
fn knob(bundle: &Bundle, file: &str) -> String {
    let paths: Vec<PathBuf> = bundle.cgroups().into_iter().map(|dir| dir.join(file)).collect();
    let path = paths.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{file}: {paths:?}"));
    fs::read_to_string(path).unwrap().trim().to_string()
}

/// The user of a process, as this place sees it.
fn uid_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn exec_status(world: &World, bundle: &Bundle, exec: &str, script: &str) -> u32 {
    let process = bundle.process(&["sh", "-c", script]);
    world.exec_to_exit("one", exec, &process, &Io::null()).await.unwrap().exit_status
}

/// The whole of a life, wherever it is.
fn lives() {
    block_on(async {
        let script = "echo out; echo err >&2; read line; echo $line; id -u; cat /proc/self/uid_map; exit 7";
        let (world, bundle) = World::with("one", |bundle| bundle.script(script).edit(no_tty_group)).await;
        let mut io = Io::fifos(&world.scratch, "one").with_stdin(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        let waiting = world.spawn_wait("one", "").await;
        let pid = world.start("one", "").await.unwrap().pid;
        assert_eq!(uid_of(pid), 0);
        assert_eq!(world.pids("one").await.unwrap(), [pid]);
        fs::write(&io.stdin, "in\n").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 7);
        let map = fs::read_to_string("/proc/self/uid_map").unwrap();
        assert_eq!(io.stdout(SOON).await.unwrap(), format!("out\nin\n0\n{map}"));
        assert_eq!(io.stderr(SOON).await.unwrap(), "err\n");
        assert_eq!(world.delete("one", "").await.unwrap().exit_status, 7);
        world.close().await;

        let (world, bundle) = World::running("one", sleeping).await;
        assert_eq!(exec_status(&world, &bundle, "e", "exit 3").await, 3);
        let exec = bundle.process(&["sleep", "1000"]);
        world.exec("one", "killed", &exec, &Io::null()).await.unwrap();
        let waiting = world.spawn_wait("one", "killed").await;
        world.start("one", "killed").await.unwrap();
        world.kill("one", "killed", libc::SIGTERM, false).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 128 + libc::SIGTERM as u32);
        world.delete("one", "killed").await.unwrap();
        assert_eq!(world.status("one", "").await.unwrap(), api::Status::RUNNING);
        assert_eq!(world.end("one").await, 128 + libc::SIGKILL as u32);
        world.close().await;
    });
}

#[test]
fn a_life_without_any_cgroup() {
    rootless(Ids::Many, Cgroups::Denied, lives);
}

#[test]
fn a_life_with_one_id() {
    rootless(Ids::One, Cgroups::Denied, lives);
}

#[test]
fn a_life_in_a_delegated_cgroup() {
    rootless(Ids::Many, Cgroups::Delegated, lives);
}

/// Each limit that is asked for is named once; what needs a cgroup is refused, and nothing pretends to have been done.
#[test]
fn what_cannot_be_done_without_a_cgroup_is_said() {
    rootless(Ids::Many, Cgroups::Denied, || {
        block_on(async {
            let (world, bundle) = World::with("one", |bundle| sleeping(bundle).edit(with_limits)).await;
            world.run(&bundle).await;
            assert_eq!(bundle.cgroups(), [""; 0].map(PathBuf::from));
            let log = bundle.log();
            let memory = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
            for said in ["without any cgroup", "could not be made: ", "permission denied", memory, "pids.max"] {
                assert_eq!(log.matches(said).count(), 1, "{said:?} in {log}");
            }
            assert!(!log.contains("devices."), "{log}");
            assert!(exec_status(&world, &bundle, "e", "true").await == 0 && bundle.log().is_empty());
            refused(world.pause("one").await, Code::FAILED_PRECONDITION, &["freezer"]);
            refused(
                world.update("one", &json!({"pids": {"limit": 50}})).await,
                Code::FAILED_PRECONDITION,
                &["pids.max"],
            );
            refused(world.stats("one").await, Code::NOT_FOUND, &["one"]);
            assert_eq!(world.status("one", "").await.unwrap(), api::Status::RUNNING);
            world.end("one").await;
            world.close().await;
        });
    });
}

/// The host's root is told, and by an error (`tests/spec_resources.rs` has the controllers).
#[test]
fn to_the_hosts_root_what_cannot_be_limited_is_an_error() {
    let resources = |spec: &mut Value| {
        spec["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "3MB", "limit": 1}]);
    };
    refused_create(|bundle| bundle.edit(resources)).names(Code::INVALID_ARGUMENT, &["3MB"]);
}

#[test]
fn limits_hold_in_a_delegated_cgroup() {
    rootless(Ids::Many, Cgroups::Delegated, || {
        block_on(async {
            let (world, bundle) = World::with("one", |bundle| sleeping(bundle).edit(with_limits)).await;
            world.run(&bundle).await;
            assert_eq!(bundle.log(), "");
            assert_eq!(exec_status(&world, &bundle, "hog", HOG).await, 137);
            let forks = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; wait";
            assert_eq!(exec_status(&world, &bundle, "forks", forks).await, 2, "more processes than are allowed");
            world.update("one", &json!({"pids": {"limit": 50}})).await.unwrap();
            assert_eq!(knob(&bundle, "pids.max"), "50");
            world.pause("one").await.unwrap();
            assert_eq!(world.status("one", "").await.unwrap(), api::Status::PAUSED);
            world.resume("one").await.unwrap();
            world.stats("one").await.unwrap();
            world.end("one").await;
            world.close().await;
        });
    });
}

#[test]
fn a_processor_limit_holds_in_a_delegated_cgroup() {
    rootless(Ids::Many, Cgroups::Delegated, || {
        block_on(async {
            let cpu = |spec: &mut Value| {
                spec["linux"]["resources"]["cpu"] = json!({"quota": 2000, "period": 20000, "shares": 512});
            };
            let (world, bundle) = World::with("one", |bundle| sleeping(bundle).edit(cpu)).await;
            world.run(&bundle).await;
            assert_eq!(bundle.log(), "");
            assert_eq!(
                exec_status(&world, &bundle, "busy", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").await,
                0
            );
            let stat = knob(&bundle, "cpu.stat");
            let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap();
            assert_ne!(throttled, "0", "{stat}");
            world.end("one").await;
            world.close().await;
        });
    });
}

/// A container without a pid namespace, whose init has left a process behind.
async fn leaves_a_process(world: &World, bundle: &Bundle) -> u32 {
    world.run(bundle).await;
    let mut left = 0;
    let file = bundle.rootfs_dir().join("left");
    common::world::until("a process of init's", || {
        left = fs::read_to_string(&file).ok().and_then(|pid| pid.trim().parse().ok()).unwrap_or(0);
        left != 0
    })
    .await;
    left
}

fn leaving(bundle: Bundle) -> Bundle {
    without_pid_namespace(sleeping(bundle)).script("sleep 1000 & echo $! >/left; exec sleep 1000")
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Nothing holds such a container together: its init is killed, and the log says that this is all.
#[test]
fn without_a_cgroup_and_a_pid_namespace_init_alone_is_killed() {
    rootless(Ids::Many, Cgroups::Denied, || {
        block_on(async {
            let (world, bundle) = World::with("one", leaving).await;
            let left = leaves_a_process(&world, &bundle).await;
            drop(bundle.log());
            assert_eq!(world.end("one").await, 137);
            assert!(bundle.log().contains("only its init can be killed"));
            assert!(is_alive(left));
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(left as i32).unwrap(),
                rustix::process::Signal::KILL,
            )
            .unwrap();
            world.close().await;
        });
    });
}

fn is_killed_whole() {
    block_on(async {
        let (world, bundle) = World::with("one", leaving).await;
        let left = leaves_a_process(&world, &bundle).await;
        assert_eq!(world.end("one").await, 137);
        assert!(!is_alive(left));
        world.close().await;
    });
}

#[test]
fn in_a_delegated_cgroup_all_of_a_container_is_killed() {
    rootless(Ids::Many, Cgroups::Delegated, is_killed_whole);
}

/// Of a hybrid host's hierarchies a user may have been given the unified one alone: no limits, but all the rest.
#[test]
fn what_has_been_delegated_of_a_hybrid_host_is_used() {
    if is_v2() {
        return skipped("what_has_been_delegated_of_a_hybrid_host_is_used", "the host has one hierarchy");
    }
    rootless(Ids::Many, Cgroups::Unified, || {
        is_killed_whole();
        block_on(async {
            let (world, bundle) = World::with("one", |bundle| sleeping(bundle).edit(with_limits)).await;
            world.run(&bundle).await;
            let log = bundle.log();
            assert!(log.contains("memory.limit_in_bytes, memory.memsw.limit_in_bytes, pids.max"), "{log}");
            assert!(
                log.contains("could not be made: cpu") && !log.contains("cgroup2") && !log.contains("without any"),
                "{log}"
            );
            world.pause("one").await.unwrap();
            refused(world.update("one", &json!({"pids": {"limit": 5}})).await, Code::FAILED_PRECONDITION, &["pids"]);
            world.resume("one").await.unwrap();
            world.end("one").await;
            world.close().await;
        });
    });
}

/// The directory is the host's, and so is what is in it: it is neither used nor taken for a container's of the same path.
#[test]
fn a_cgroup_of_somebody_else_is_left_alone() {
    const PATH: &str = "/dray-rootless-others";
    let mut other = std::env::var_os(INSIDE).is_none().then(Bystander::new);
    let dirs: Vec<PathBuf> = cgroup_mounts().iter().map(|root| root.join(&PATH[1..])).collect();
    if let Some(other) = &other {
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        // A new v1 cpuset takes nobody.
        let takes: Vec<_> = dirs.iter().filter(|dir| !dir.join("cpuset.cpus").exists()).collect();
        other.join(&takes);
    }
    rootless(Ids::Many, Cgroups::Denied, || {
        let script = "cat /proc/self/cgroup; sleep 1000";
        let at = |bundle: Bundle| bundle.edit(|spec| spec["linux"]["cgroupsPath"] = PATH.into());
        block_on(async {
            let host = Host::new();
            let bundle = at(without_pid_namespace(host.bundle("one"))).script(script);
            let mut container = host.start(&bundle).await;
            container.says("::/").await;
            assert!(!container.proc("cgroup").contains(PATH));
            container.end().await;
        });
        survives_its_shim(at);
    });
    if let Some(other) = &mut other {
        assert!(other.is_alive());
        drop(std::mem::replace(other, Bystander::new()));
        dirs.iter().for_each(|dir| remove_cgroup(dir));
    }
}

fn survives_its_shim(change: impl FnOnce(Bundle) -> Bundle) {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| change(sleeping(bundle))).await;
        let pid = world.pids("one").await.unwrap()[0];
        world.kill_shim().await.unwrap();
        let deleted = world.shim.delete_action().unwrap();
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
        assert!(!is_alive(pid));
        assert_eq!(common::world::leftovers(&world.scratch), [""; 0]);
        drop(bundle);
    });
}

#[test]
fn what_a_killed_shim_leaves_is_removed() {
    rootless(Ids::Many, Cgroups::Delegated, || survives_its_shim(|bundle| bundle));
}

#[test]
fn what_a_killed_shim_leaves_is_removed_without_a_cgroup() {
    rootless(Ids::Many, Cgroups::Denied, || survives_its_shim(|bundle| bundle));
}

/// Nobody makes a device in a user namespace: they are the host's, if those are the same.
#[test]
fn devices_are_the_hosts() {
    rootless(Ids::Many, Cgroups::Denied, || {
        let device = |path: &str, minor: u32| json!({"path": path, "type": "c", "major": 1, "minor": minor});
        let listed = |device: Value| move |spec: &mut Value| spec["linux"]["devices"] = json!([device]);
        let script = "for d in null zero full random urandom tty; do stat -c '%n %t:%T' /dev/$d; done
            echo x >/dev/null && head -c 2 /dev/zero | wc -c
            mknod /dev/made c 1 3 2>/dev/null || echo none is made";
        let capable = |spec: &mut Value| {
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set].as_array_mut().unwrap().push("CAP_MKNOD".into());
            }
        };
        let numbers = ["null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"];
        let expected: Vec<String> = numbers.iter().map(|line| format!("/dev/{line}")).collect();
        let lines = run(|bundle| bundle.script(script).edit(capable).edit(listed(device("/dev/zero", 5)))).lines();
        assert_eq!(lines, [expected, vec!["2".into(), "none is made".into()]].concat());

        let missing = refused_create(|bundle| bundle.edit(listed(device("/dev/not/there", 3))));
        missing.names(Code::INTERNAL, &["/dev/not/there", "rootless"]);
        let other = refused_create(|bundle| bundle.edit(listed(device("/dev/full", 3))));
        other.names(Code::INVALID_ARGUMENT, &["/dev/full", "another device"]);
    });
}

/// And it cannot change them: they are not its own.
#[test]
fn the_hosts_devices_keep_their_modes() {
    rootless(Ids::Many, Cgroups::Denied, || {
        let before = fs::metadata("/dev/null").unwrap();
        let ended = run_script("chmod 600 /dev/null; chown 1:1 /dev/null; true", |_| ());
        assert_eq!(ended.stderr.matches("Operation not permitted").count(), 2, "{ended:?}");
        let after = fs::metadata("/dev/null").unwrap();
        assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
    });
}

/// The host's root makes nodes that are the container's own.
#[test]
fn to_the_hosts_root_devices_are_not_the_hosts() {
    let of_host = rustix::fs::stat("/dev/null").unwrap();
    let script = "stat -c '%t:%T %d:%i' /dev/null; grep -c ' /dev/null ' /proc/self/mountinfo; true";
    let lines = run_script(script, |_| ()).lines();
    assert!(lines[0].starts_with("1:3 ") && lines[1] == "0", "{lines:?}");
    assert_ne!(lines[0], format!("1:3 {}:{}", of_host.st_dev, of_host.st_ino));
}

#[test]
fn groups_are_set_where_they_can_be() {
    let groups = |spec: &mut Value| spec["process"]["user"]["additionalGids"] = json!([0, 7, 8]);
    rootless(Ids::Many, Cgroups::Denied, || {
        assert_eq!(run_script("id -G", groups).ok(), "0 7 8\n");
    });
}

/// setgroups(2) is denied to everybody there, as in runc's case: a container is better without than not at all.
#[test]
fn groups_that_nobody_may_set_are_said() {
    rootless(Ids::One, Cgroups::Denied, || {
        block_on(async {
            let host = Host::new();
            let groups = |spec: &mut Value| spec["process"]["user"]["additionalGids"] = json!([0, 7]);
            let bundle = host.bundle("one").script("id -G; sleep 1000").edit(no_tty_group).edit(groups);
            let mut container = host.start(&bundle).await;
            container.says("0\n").await;
            let log = bundle.log();
            assert!(log.contains("groups") && log.contains("[7]"), "{log}");
            assert_eq!(container.exec_script("e", "id -G").await.ok(), "0\n");
            container.end().await;
        });
    });
}

#[test]
fn a_user_that_is_not_mapped_is_an_error() {
    rootless(Ids::One, Cgroups::Denied, || {
        let user = |spec: &mut Value| spec["process"]["user"] = json!({"uid": 1000, "gid": 0});
        let error = refused_create(|bundle| bundle.edit(no_tty_group).edit(user));
        error.names(Code::INTERNAL, &["setresuid 1000"]);
        // The default of a terminal's group, as clients for a rootless place leave it out.
        refused_create(|bundle| bundle).names(Code::INTERNAL, &["/dev/pts", "gid= must be mapped"]);
    });
}

/// It has its own root, in whose user namespace everything is one level deeper.
#[test]
fn a_user_namespace_in_the_user_namespace() {
    for cgroups in [Cgroups::Denied, Cgroups::Delegated] {
        rootless(Ids::Many, cgroups, || {
            block_on(async {
                let host = Host::new();
                let script = "id -u; cat /proc/self/uid_map; stat -c %t:%T /dev/null; echo ready; sleep 1000";
                let bundle = host.bundle("one").user_namespace(100_000).script(script);
                let mut container = host.start(&bundle).await;
                container.says("0\n         0     100000      65536\n1:3\nready\n").await;
                assert_eq!(uid_of(container.pid), 100_000);
                let inside = container.exec_script("e", "id -u; echo >/dev/null; touch /mine").await;
                assert_eq!(inside.ok(), "0\n");
                container.end().await;
                assert_eq!(host.scratch.leftovers(), [""; 0]);
            });
        });
    }
}

/// Flags of a mount that came from the host are locked: a bind of it keeps them, and cannot be without.
#[test]
fn locked_flags_of_mounts_are_kept() {
    rootless(Ids::Many, Cgroups::Denied, || {
        let source = LOCKED.to_str().unwrap();
        let bind = |options: &'static [&'static str]| {
            move |bundle: Bundle| {
                let mount = json!({"destination": "/there", "type": "bind", "source": source, "options": options});
                bundle.mount(mount).script("grep ' /there ' /proc/self/mountinfo | cut -d ' ' -f 6")
            }
        };
        assert_eq!(run(bind(&["rbind", "ro"])).ok(), "ro,nosuid,nodev,noexec,relatime\n");
        assert_eq!(run(bind(&["bind"])).ok(), "rw,nosuid,nodev,noexec,relatime\n");
        refused_create(bind(&["rbind", "suid"])).names(Code::INTERNAL, &["/there", "a flag"]);
    });
}

#[test]
fn what_only_the_hosts_root_may_mount_is_an_error_that_says_why() {
    rootless(Ids::Many, Cgroups::Denied, || {
        // A procfs shows a pid namespace, which must be of our user namespace.
        let error = refused_create(|bundle| bundle.without_namespace("pid"));
        error.names(Code::INTERNAL, &["/proc", "pid namespace"]);
        if linux() >= (5, 12) {
            let mount = json!({"destination": "/mnt", "type": "bind", "source": "/usr", "options": ["rbind", "idmap"],
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 1, "size": 10}]});
            let error = refused_create(|bundle| bundle.mount(mount)).message;
            assert!(error.contains("/mnt") && error.contains("MOUNT_ATTR_IDMAP"), "{error}");
        }
    });
}

/// As with runc: these would need a capability of the host's.
#[test]
fn limits_and_scores_that_only_the_hosts_root_may_set_are_errors() {
    rootless(Ids::Many, Cgroups::Denied, || {
        let score = |value: i32| move |spec: &mut Value| spec["process"]["oomScoreAdj"] = value.into();
        refused_create(|bundle| bundle.edit(score(-500))).names(Code::INTERNAL, &["-500", "oom_score_adj"]);
        assert_eq!(run_script("cat /proc/self/oom_score_adj", score(500)).ok(), "500\n");
        let limit = |spec: &mut Value| {
            spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30}]);
        };
        refused_create(|bundle| bundle.edit(limit)).names(Code::INTERNAL, &["RLIMIT_NOFILE"]);
    });
}

/// What is the container's own namespaces' is its root's to set, here too.
#[test]
fn names_parameters_and_filters_are_set() {
    rootless(Ids::Many, Cgroups::Denied, || {
        let script = "hostname; cat /proc/sys/net/ipv4/ip_forward; ip link show lo | grep -c LOWER_UP; \
            grep Seccomp: /proc/self/status; chmod 600 /etc/passwd";
        let ended = run_script(script, |spec| {
            spec["hostname"] = "deep".into();
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
        });
        assert_eq!(ended.stdout, "deep\n1\n1\nSeccomp:\t2\n");
        assert!(ended.stderr.contains("not supported"), "{ended:?}");
    });
}

/// The shim could leave its pid and time namespaces, which are the host's, and not come back.
#[test]
fn new_and_joined_namespaces_that_the_shim_may_not_come_back_from() {
    rootless(Ids::Many, Cgroups::Denied, || {
        let time = |spec: &mut Value| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
            spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}});
        };
        let uptime = run_script("cut -d . -f 1 /proc/uptime", time).ok();
        assert!(uptime.trim().parse::<u64>().unwrap() > 1_000_000, "{uptime}");
        let before = |spec: &mut Value| {
            time(spec);
            spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": -1_000_000_000, "nanosecs": 0}});
        };
        refused_create(|bundle| bundle.edit(before)).names(Code::INVALID_ARGUMENT, &["linux.timeOffsets"]);

        block_on(async {
            let (first, second) = (Host::new(), Host::new());
            let bundle = first.bundle("one").args(&["sleep", "1000"]);
            let container = first.start(&bundle).await;
            let joins = |spec: &mut Value| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
                let pid = namespaces.iter_mut().find(|namespace| namespace["type"] == "pid").unwrap();
                pid["path"] = format!("/proc/{}/ns/pid", container.pid).into();
            };
            // With a hook, which is told its pid, it is born there at once; else last of all.
            let hook = |spec: &mut Value| spec["hooks"]["createContainer"] = json!([{"path": "/bin/true"}]);
            let both = |spec: &mut Value| {
                joins(spec);
                hook(spec);
            };
            for (id, change) in [("two", &joins as &dyn Fn(&mut Value)), ("three", &both)] {
                let bundle = second.bundle(id).script("readlink /proc/self/ns/pid; cat /proc/1/comm").edit(change);
                assert_eq!(second.run(&bundle).await.lines(), [container.namespace("pid"), "sleep".into()]);
            }
            container.end().await;
        });
    });
}

/// The shim is behind its seal here as elsewhere, and cannot be looked into.
#[test]
fn the_shim_is_sealed_and_not_dumpable() {
    rootless(Ids::One, Cgroups::Denied, || {
        block_on(async {
            let (world, _bundle) = World::running("one", sleeping).await;
            let shim = world.pid().await.unwrap();
            let exe = format!("/proc/{shim}/exe");
            let written = fs::OpenOptions::new().write(true).open(&exe).map(|mut file| {
                use std::io::Write;
                file.write(b"x").is_ok()
            });
            assert!(!matches!(written, Ok(true)), "{exe} was written to");
            assert!(!fs::read_link(&exe).unwrap().starts_with(shim_binary().parent().unwrap()), "not behind a seal");
            world.end("one").await;
            world.close().await;
        });
    });
}

/// Without a user namespace a user gets a word, and not the first of many errors.
#[test]
fn a_user_without_a_namespace_is_told_so() {
    let output = as_user(1000, || {
        let mut command = std::process::Command::new(shim_binary());
        command.args(["-namespace", "default", "-id", "one", "-address", "/none", "start"]).current_dir("/");
        command.output().unwrap()
    });
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("root of a user namespace"), "{output:?}");
}

/// A containerd that is to be started there and not here.
struct Later {
    version: &'static Version,
    bin: PathBuf,
    test: String,
}

impl Driven for Later {
    fn start(version: &'static Version, bin: PathBuf, test: String) -> Self {
        Self { version, bin, test }
    }
}

impl Later {
    fn there(self, ids: Ids, cgroups: Cgroups, scenario: impl FnOnce(Containerd)) {
        rootless(ids, cgroups, || scenario(Containerd::start(self.version, self.bin, self.test)));
    }
}

fn ctr_runs(containerd: &Containerd, first: &str, second: &str, options: &[&str]) {
    let output = containerd.run(first, options, &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    let pid = containerd.run_detached(second, options, &["sleep", "1000"]);
    assert_eq!(uid_of(pid), 0);
    let output = containerd.exec(second, "e", &[], &["sh", "-c", "echo in; exit 3"]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(3), &b"in\n"[..]), "{output:?}");
    containerd.remove(second);
    containerd.assert_nothing_left();
}

/// By `ctr run`'s defaults, with the cgroup that it asks for and without one.
fn a_rootless_daemon_runs_containers(later: Later) {
    later.there(Ids::Many, Cgroups::Denied, |containerd| {
        ctr_runs(&containerd, "a", "b", &[]);
        ctr_runs(&containerd, "c", "d", &["--cgroup", ""]);
    });
}

fn a_rootless_daemon_limits_containers_in_a_delegated_cgroup(later: Later) {
    later.there(Ids::Many, Cgroups::Delegated, |containerd| {
        ctr_runs(&containerd, "a", "b", &["--memory-limit", "67108864"]);
        let output = containerd.run("hog", &["--memory-limit", "16777216"], &["sh", "-c", HOG]);
        assert_eq!(output.status.code(), Some(137), "{output:?}");
        containerd.assert_nothing_left();
    });
}

/// As `unshare -Ur` makes it: without a group for terminals.
fn a_daemon_of_one_id_runs_containers(later: Later) {
    later.there(Ids::One, Cgroups::Denied, |containerd| {
        let script = ["sh", "-c", "echo out; exit 7"];
        let config = containerd.config("a", &script, no_tty_group);
        let output = containerd.run("a", &[config[0].as_str(), config[1].as_str()], &[]);
        assert_eq!((output.status.code(), &*output.stdout), (Some(7), &b"out\n"[..]), "{output:?}");
        containerd.assert_nothing_left();
    });
}

common::on_each_containerd!(
    a_rootless_daemon_runs_containers,
    a_rootless_daemon_limits_containers_in_a_delegated_cgroup,
    a_daemon_of_one_id_runs_containers,
);
