//! Update, Stats and the OOM event: what the kernel is told of a running container's limits, and what it tells.

use std::fs;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::{is_v2, on, skipped_on_v2};
use common::stdio::Io;
use common::world::{SOON, World, refused, status, until};
use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message, MessageField};
use rustix::fs::inotify;
use serde_json::{Value, json};
use ttrpc::Code;

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

/// With a memory limit of 16 MiB, swap included.
fn limited(bundle: Bundle) -> Bundle {
    bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20}))
}

/// Wants more than that, at once.
const HOG: &str = "dd if=/dev/zero of=/dev/null count=1 bs=64M 2>/dev/null";

fn knob(bundle: &Bundle, file: &str) -> String {
    bundle.knob(file)
}

fn number(bundle: &Bundle, file: &str) -> u64 {
    knob(bundle, file).parse().unwrap()
}

/// The file of a limit in the container's cgroup.
fn memory() -> &'static str {
    on("memory.limit_in_bytes", "memory.max")
}

fn shares() -> &'static str {
    on("cpu.shares", "cpu.weight")
}

async fn exec_status(world: &World, bundle: &Bundle, exec: &str, script: &str) -> u32 {
    let process = bundle.process(&["sh", "-c", script]);
    world.exec_to_exit("one", exec, &process, &Io::null()).await.unwrap().exit_status
}

#[test]
fn an_update_is_in_the_files_and_takes_effect() {
    block_on(async {
        let (world, bundle) = World::with("one", sleeping).await;
        world.create(&bundle, &Io::null()).await.unwrap();
        // Before the start too.
        world.update("one", &json!({"pids": {"limit": 50}})).await.unwrap();
        assert_eq!(knob(&bundle, "pids.max"), "50");
        world.start("one", "").await.unwrap();
        let all = json!({
            "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20},
            "cpu": {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0"},
        });
        world.update("one", &all).await.unwrap();
        // v1's swap is that of memory and swap together. Shares become a weight.
        let v1 = [
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "67108864"),
            ("memory.soft_limit_in_bytes", "33554432"),
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "20000"),
            ("cpu.cfs_period_us", "50000"),
        ];
        let v2 = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.low", "33554432"),
            ("cpu.weight", "59"),
            ("cpu.max", "20000 50000"),
        ];
        for (file, value) in on(&v1[..], &v2).iter().chain(&[("cpuset.cpus", "0"), ("pids.max", "50")]) {
            assert_eq!(knob(&bundle, file), *value, "{file}");
        }
        assert_eq!(exec_status(&world, &bundle, "fits", "grep -q 'Cpus_allowed_list:.0$' /proc/self/status").await, 0);
        assert_eq!(exec_status(&world, &bundle, "small", "dd if=/dev/zero of=/dev/null count=1 bs=32M").await, 0);
        // Down and up: each needs the other order of memory and swap.
        for limit in [16 << 20, 256 << 20, 16 << 20] {
            world.update("one", &json!({"memory": {"limit": limit, "swap": limit}})).await.unwrap();
            assert_eq!(number(&bundle, memory()), limit);
            assert_eq!(number(&bundle, on("memory.memsw.limit_in_bytes", "memory.swap.max")), on(limit, 0));
            assert_eq!(knob(&bundle, shares()), on("512", "59"), "what is not given stays");
        }
        assert_eq!(exec_status(&world, &bundle, "big", "exec dd if=/dev/zero of=/dev/null count=1 bs=32M").await, 137);
        // One for init, one for the shell, one for the sleep (and, before it, for who gives birth to the shell): no other.
        world.update("one", &json!({"pids": {"limit": 3}})).await.unwrap();
        assert_ne!(exec_status(&world, &bundle, "forks", "sleep 2 & /bin/true & wait $!; exit $?").await, 0);
        world.update("one", &json!({"pids": {"limit": -1}, "cpu": {"quota": -1}})).await.unwrap();
        assert_eq!(exec_status(&world, &bundle, "again", "/bin/true & wait $!; exit $?").await, 0);
        assert_eq!(knob(&bundle, "pids.max"), "max");
        // The period is not given, and stays.
        assert_eq!(knob(&bundle, on("cpu.cfs_quota_us", "cpu.max")), on("-1", "max 50000"));
        // A paused one too.
        world.pause("one").await.unwrap();
        world.update("one", &json!({"cpu": {"shares": 100}})).await.unwrap();
        assert_eq!(knob(&bundle, shares()), on("100", "17"));
        world.resume("one").await.unwrap();
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn an_update_that_is_refused_changes_nothing() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| limited(sleeping(bundle))).await;
        let swap = on("memory.memsw.limit_in_bytes", "memory.swap.max");
        let files = [memory(), swap, shares(), "cpuset.cpus", "pids.max"];
        let before = files.map(|file| knob(&bundle, file));
        let with = |field: &str, value: Value| {
            let mut resources = json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "cpu": {"shares": 99}});
            let mut at = &mut resources;
            for key in field.split('.') {
                at = &mut at[key];
            }
            *at = value;
            resources
        };
        for (resources, code, word) in [
            // No unified hierarchy that limits on v1, no such controller on v2.
            (
                with("unified", json!({"none.high": "1"})),
                Code::FAILED_PRECONDITION,
                on("linux.resources.unified", "controller none"),
            ),
            (with("memory.swappiness", json!(101)), Code::INVALID_ARGUMENT, "linux.resources.memory.swappiness"),
            (with("memory.limit", json!("much")), Code::INVALID_ARGUMENT, "memory.limit"),
            // Refused by the kernel, after the memory limits have been written.
            (with("cpu.cpus", json!("4095")), Code::INVALID_ARGUMENT, "cpuset.cpus"),
        ] {
            refused(world.update("one", &resources).await, code, &["one", word]);
            assert_eq!(files.map(|file| knob(&bundle, file)), before, "{resources}");
        }
        let request = |type_url: &str, value: &[u8]| UpdateTaskRequest {
            id: "one".into(),
            resources: MessageField::some(Any { type_url: type_url.into(), value: value.into(), ..Default::default() }),
            ..Default::default()
        };
        let name = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
        let broken = world.call::<_, Empty>("Update", &request(name, b"{\"memory\": {")).await;
        refused(broken, Code::INVALID_ARGUMENT, &["one", "line 1"]);
        let windows = name.replace("Linux", "Windows");
        refused(
            world.call::<_, Empty>("Update", &request(&windows, b"{}")).await,
            Code::INVALID_ARGUMENT,
            &["Windows"],
        );
        // Annotations are taken and ignored, as by containerd's own shim.
        let annotations = [("a".to_string(), "b".to_string())].into();
        let request = UpdateTaskRequest { id: "one".into(), annotations, ..Default::default() };
        world.call::<_, Empty>("Update", &request).await.unwrap();
        refused(world.update("none", &json!({})).await, Code::NOT_FOUND, &["none"]);
        assert_eq!(files.map(|file| knob(&bundle, file)), before);
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        world.wait("one", "").await.unwrap();
        refused(world.update("one", &json!({})).await, Code::FAILED_PRECONDITION, &["one", "stopped"]);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// cgroup v1 checks by itself, v2 leaves that to the shim: nobody is killed for it, and what is used stays usable. (A file in memory, without swap, is
/// what the kernel cannot take back.)
///
/// Proves: linux.resources.memory.checkBeforeUpdate
#[test]
fn a_limit_below_what_is_used_is_refused_and_kills_nobody() {
    block_on(async {
        let script = "dd if=/dev/zero of=/dev/shm/file bs=1M count=24 2>/dev/null; touch /tmp/ready; exec sleep 1000";
        let (world, bundle) = World::running("one", |bundle| {
            let bundle = bundle.script(script);
            bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swappiness": 0}))
        })
        .await;
        until("the file is there", || bundle.rootfs_dir().join("tmp/ready").exists()).await;
        // Unasked, v2 takes it, and kills.
        for check in on(&[true, false][..], &[true]) {
            let limit = json!({"memory": {"limit": 8 << 20, "checkBeforeUpdate": check}});
            refused(world.update("one", &limit).await, Code::FAILED_PRECONDITION, &[memory()]);
            assert_eq!(number(&bundle, memory()), 64 << 20);
        }
        assert_eq!(exec_status(&world, &bundle, "look", "cat /dev/shm/file > /dev/null").await, 0);
        world.update("one", &json!({"memory": {"limit": 32 << 20, "checkBeforeUpdate": true}})).await.unwrap();
        assert_eq!(number(&bundle, memory()), 32 << 20);
        world.end("one").await;
        world.close().await;
    });
}

/// The CRI plugin sends all of the specification's resources.
#[test]
fn device_rules_are_updated_where_they_differ() {
    block_on(async {
        if skipped_on_v2("device_rules_are_updated_where_they_differ", "it looks at v1's list, see spec_devices") {
            return;
        }
        let (world, bundle) = World::running("one", sleeping).await;
        let deny = bundle.cgroup_file("devices.deny");
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, &deny, inotify::WatchFlags::MODIFY).unwrap();
        let written = || rustix::io::read(&watch, &mut [0; 4096]).is_ok();
        let devices = bundle.spec()["linux"]["resources"]["devices"].clone();
        let before = knob(&bundle, "devices.list");
        world.update("one", &json!({"devices": devices, "cpu": {"shares": 77}})).await.unwrap();
        assert!(!written(), "everything was denied for a moment");
        assert_eq!(knob(&bundle, "devices.list"), before);
        assert_eq!(knob(&bundle, "cpu.shares"), "77");
        let mut more = devices.clone();
        more.as_array_mut().unwrap().push(json!({"allow": true, "type": "b", "major": 7, "access": "r"}));
        world.update("one", &json!({"devices": more})).await.unwrap();
        assert!(written());
        let list = knob(&bundle, "devices.list");
        assert!(list.lines().any(|line| line == "b 7:* r"), "{list}");
        world.update("one", &json!({"cpu": {"shares": 78}})).await.unwrap();
        assert_eq!(knob(&bundle, "devices.list"), list, "what is not given stays");
        world.update("one", &json!({"devices": devices})).await.unwrap();
        assert!(!knob(&bundle, "devices.list").contains("b 7:"));
        world.end("one").await;
        world.close().await;
    });
}

async fn metrics(world: &World) -> Metrics {
    let any = world.stats("one").await.unwrap().stats.unwrap();
    assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
    Metrics::parse_from_bytes(&any.value).unwrap()
}

#[test]
fn stats_are_the_kernels_numbers() {
    if skipped_on_v2("stats_are_the_kernels_numbers", "of v1's files; tests/stats.rs has both versions") {
        return;
    }
    block_on(async {
        let busy = "dd if=/dev/zero of=/tmp/file bs=1M count=8 2>/dev/null; while :; do :; done";
        let (world, bundle) = World::running("one", |bundle| {
            limited(bundle.script(busy)).edit(|spec| {
                spec["linux"]["resources"]["cpu"] = json!({"quota": 5000, "period": 50000});
                spec["linux"]["resources"]["pids"] = json!({"limit": 20});
            })
        })
        .await;
        until("it is throttled", || !knob(&bundle, "cpu.stat").contains("nr_throttled 0\n")).await;
        let user = || knob(&bundle, "cpuacct.stat").lines().next().and_then(|line| line[5..].parse().ok()).unwrap_or(0);
        until("it has ticked", || user() > 9).await;
        // Each number lies between what the file says before and after.
        let numbers = || {
            let stat = |file: &str, key: &str| -> u64 {
                let text = knob(&bundle, file);
                let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
                line.unwrap_or_else(|| panic!("{key} in {text}")).parse().unwrap()
            };
            [
                number(&bundle, "cpuacct.usage"),
                10_000_000 * stat("cpuacct.stat", "user"),
                10_000_000 * stat("cpuacct.stat", "system"),
                stat("cpu.stat", "nr_periods"),
                stat("cpu.stat", "nr_throttled"),
                stat("cpu.stat", "throttled_time"),
                number(&bundle, "memory.max_usage_in_bytes"),
                number(&bundle, "memory.failcnt"),
                stat("memory.stat", "hierarchical_memory_limit"),
                stat("memory.stat", "hierarchical_memsw_limit"),
                stat("memory.stat", "total_pgfault"),
                number(&bundle, "memory.memsw.limit_in_bytes"),
                number(&bundle, "pids.current"),
                number(&bundle, "pids.max"),
            ]
        };
        let before = numbers();
        let seen = metrics(&world).await;
        let after = numbers();
        let (usage, throttling) = (&seen.cpu.usage, &seen.cpu.throttling);
        let memory = &seen.memory;
        let told = [
            usage.total,
            usage.user,
            usage.kernel,
            throttling.periods,
            throttling.throttled_periods,
            throttling.throttled_time,
            memory.usage.max,
            memory.usage.failcnt,
            memory.hierarchical_memory_limit,
            memory.hierarchical_swap_limit,
            memory.total_pg_fault,
            memory.swap.limit,
            seen.pids.current,
            seen.pids.limit,
        ];
        for (index, number) in told.into_iter().enumerate() {
            assert!((before[index]..=after[index]).contains(&number), "{index}: {before:?} {told:?} {after:?}");
        }
        assert!(usage.total > 0 && usage.per_cpu.iter().sum::<u64>() > 0 && told[4] > 0, "{told:?}");
        assert_eq!((memory.usage.limit, seen.pids.limit), (16 << 20, 20));
        assert!(memory.usage.usage > 0 && memory.usage.usage <= memory.usage.limit);
        assert_eq!(seen.memory_oom_control.oom_kill, 0);
        until("it has used more", || number(&bundle, "cpuacct.usage") > usage.total + 1_000_000).await;
        assert!(metrics(&world).await.cpu.usage.total > usage.total);
        let shim = world.pid().await.unwrap();
        assert_eq!(status(shim, "Threads"), 1);
        refused(world.stats("none").await, Code::NOT_FOUND, &["none"]);
        world.end("one").await;
        refused(world.stats("one").await, Code::NOT_FOUND, &["one"]);
        world.close().await;
    });
}

#[test]
fn an_oom_kill_is_told_before_the_exit_each_time() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| limited(bundle.script(&format!("exec {HOG}")))).await;
        for round in 0..10 {
            world.create(&bundle, &Io::null()).await.unwrap();
            let waiting = world.spawn_wait("one", "").await;
            world.start("one", "").await.unwrap();
            assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
            world.delete("one", "").await.unwrap();
            let rounds = [["create", "start", "oom", "exit", "delete"]; 10][..=round].concat();
            let complete = |events: &[common::events::Event]| events.len() >= rounds.len();
            world.sink.wait_for(complete, SOON).await.unwrap();
            assert_eq!(world.sink.topics("one"), rounds);
        }
        assert!(world.sink.events().iter().all(|event| event.fault.is_none()));
        world.close().await;
    });
}

#[test]
fn an_oom_kill_that_ends_neither_init_nor_exec_is_told() {
    block_on(async {
        let script = format!("(sleep 0.2; {HOG}) & sleep 1000");
        let (world, bundle) = World::running("one", |bundle| limited(bundle.script(&script))).await;
        world.sink.wait_topic("oom", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "start", "oom"]);

        for round in 0..20 {
            let exec = format!("round{round}");
            assert_eq!(exec_status(&world, &bundle, &exec, &format!("{HOG}; exit 3")).await, 3);
        }
        let of_round = ["exec-added", "exec-started", "oom", "exit"];
        let wanted = [&["create", "start", "oom"], &[of_round; 20].concat()[..]].concat();
        world.sink.wait_for(|events| events.len() >= wanted.len(), SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), wanted);
        let told = wanted;

        // An exec's own process, and a child of one that ends in another way.
        assert_eq!(exec_status(&world, &bundle, "itself", &format!("exec {HOG}")).await, 137);
        assert_eq!(exec_status(&world, &bundle, "child", &format!("({HOG}); exit 3")).await, 3);
        assert_eq!(exec_status(&world, &bundle, "fine", "exit 0").await, 0);
        let of_execs = ["exec-added", "exec-started", "oom", "exit"];
        let wanted = [&told[..], &of_execs[..], &of_execs, &["exec-added", "exec-started", "exit"]].concat();
        world.sink.wait_for(|events| events.len() >= wanted.len(), SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), wanted);

        // One that a client has killed is none.
        world.end("one").await;
        world.sink.wait_topic("delete", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), [&wanted[..], &["exit", "delete"]].concat());
        world.close().await;
    });
}

/// The counter of a directory has the victims of that directory alone.
#[test]
fn a_victim_in_a_cgroup_below_is_told() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| limited(sleeping(bundle))).await;
        let below = bundle.cgroup_file(memory()).with_file_name("below");
        fs::create_dir(&below).unwrap();
        let go = bundle.rootfs_dir().join("tmp/go");
        let script = format!("until [ -e /tmp/go ]; do sleep 0.01; done; exec {HOG}");
        world.exec("one", "e", &bundle.process(&["sh", "-c", &script]), &Io::null()).await.unwrap();
        let waiting = world.spawn_wait("one", "e").await;
        let pid = world.start("one", "e").await.unwrap().pid;
        fs::write(below.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(&go, "").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        world.sink.wait_topic("exit", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "start", "exec-added", "exec-started", "oom", "exit"]);
        world.end("one").await;
        world.close().await;
    });
}

/// Where the killer is disabled, what wants memory waits, and a client must hear of it. Of v2 it cannot be asked.
/// Proves: linux.resources.memory.disableOOMKiller
#[test]
fn a_container_that_is_stuck_without_memory_is_told() {
    block_on(async {
        if is_v2() {
            let (world, bundle) = World::with("one", |bundle| {
                bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"disableOOMKiller": true}))
            })
            .await;
            let words = ["linux.resources.memory.disableOOMKiller", "cgroup v1"];
            refused(world.create(&bundle, &Io::null()).await, Code::FAILED_PRECONDITION, &words);
            return world.close().await;
        }
        let (world, _bundle) = World::running("one", |bundle| {
            // Again and again: memory that is wanted in a system call is refused, and only a page fault waits for it.
            let bundle = limited(bundle.script(&format!("sleep 0.2; while :; do ({HOG}); done")));
            bundle.edit(|spec| spec["linux"]["resources"]["memory"]["disableOOMKiller"] = json!(true))
        })
        .await;
        world.sink.wait_topic("oom", "one", SOON).await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}
