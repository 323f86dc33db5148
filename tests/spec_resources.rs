//! linux.resources: memory, cpu and pids, in the files of the container's cgroup and by their effect.

mod common;

use std::fs;
use std::path::PathBuf;

use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, refused};
use serde_json::json;
use ttrpc::Code;

/// A file of the container's cgroup, in whichever hierarchy has it.
fn knob(bundle: &Bundle, file: &str) -> String {
    let paths: Vec<PathBuf> = bundle.cgroups().into_iter().map(|dir| dir.join(file)).collect();
    let path = paths.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{file}: {paths:?}"));
    fs::read_to_string(path).unwrap().trim().to_string()
}

#[test]
fn limits_are_in_the_files_of_the_cgroup() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
            let resources = &mut spec["linux"]["resources"];
            resources["memory"] =
                json!({"limit": 67108864, "reservation": 33554432, "swap": 134217728, "swappiness": 10});
            resources["cpu"] = json!({"shares": 512, "quota": 25000, "period": 50000, "cpus": "0", "mems": "0"});
            resources["pids"] = json!({"limit": 42});
        });
        // Before anything of the container runs.
        let container = host.create(&bundle).await;
        for (file, value) in [
            ("memory.limit_in_bytes", "67108864"),
            ("memory.soft_limit_in_bytes", "33554432"),
            ("memory.memsw.limit_in_bytes", "134217728"),
            ("memory.swappiness", "10"),
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "25000"),
            ("cpu.cfs_period_us", "50000"),
            ("cpuset.cpus", "0"),
            ("cpuset.mems", "0"),
            ("pids.max", "42"),
        ] {
            assert_eq!(knob(&bundle, file), value, "{file}");
        }
        let status = container.proc("status");
        assert!(status.contains("\nCpus_allowed_list:\t0\n"), "{status}");
        for line in container.proc("cgroup").lines() {
            assert!(line.ends_with(&format!("/{}/one", host.scratch.namespace())), "{line}");
        }
        container.end().await;
        assert_eq!(bundle.cgroups(), [""; 0].map(PathBuf::from));
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

#[test]
fn without_limits_there_are_none() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").edit(|spec| spec["linux"]["resources"]["pids"] = json!({"limit": -1}));
        let container = host.create(&bundle).await;
        assert_eq!(knob(&bundle, "pids.max"), "max");
        assert_eq!(knob(&bundle, "cpu.cfs_quota_us"), "-1");
        assert_eq!(knob(&bundle, "cpu.shares"), "1024");
        assert!(knob(&bundle, "memory.limit_in_bytes").parse::<u64>().unwrap() > 1 << 60);
        container.run().await.ok();
    });
}

#[test]
fn a_fork_above_the_pids_limit_fails() {
    block_on(async {
        let host = Host::new();
        let bundle = host
            .bundle("one")
            .edit(|spec| spec["linux"]["resources"]["pids"] = json!({"limit": 4}))
            .script("for i in 1 2 3 4 5 6; do sleep 1000 & echo $i; done");
        let ended = host.run(&bundle).await;
        // The shell and three more.
        assert_eq!(ended.stdout, "1\n2\n3\n", "{ended:#?}");
        assert!(ended.stderr.contains("can't fork: Resource temporarily unavailable"), "{ended:#?}");
    });
}

#[test]
fn an_allocation_above_the_memory_limit_is_killed() {
    block_on(async {
        let host = Host::new();
        let limit = |bundle: Bundle| {
            let memory = json!({"limit": 16 << 20, "swap": 16 << 20});
            bundle.edit(|spec| spec["linux"]["resources"]["memory"] = memory)
        };
        let dd = |size| ["dd", "if=/dev/zero", "of=/dev/null", "count=1", size];
        let within = limit(host.bundle("within")).args(&dd("bs=4M"));
        assert_eq!(host.run(&within).await.status, 0);
        let above = limit(host.bundle("above")).args(&dd("bs=64M"));
        assert_eq!(host.run(&above).await.status, 137);
    });
}

#[test]
fn a_cpu_quota_throttles() {
    block_on(async {
        let host = Host::new();
        let bundle = host
            .bundle("one")
            .edit(|spec| spec["linux"]["resources"]["cpu"] = json!({"quota": 2000, "period": 100000}))
            .script("while :; do :; done");
        let container = host.start(&bundle).await;
        let throttled = || {
            let stat = knob(&bundle, "cpu.stat");
            let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap_or("0").to_string();
            line.parse::<u64>().unwrap()
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while throttled() == 0 {
            assert!(std::time::Instant::now() < deadline, "{}", knob(&bundle, "cpu.stat"));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        container.end().await;
    });
}

#[test]
fn a_limit_that_the_kernel_refuses_fails_the_create() {
    for (controller, value, words) in [
        ("cpu", json!({"cpus": "4095"}), "cpuset.cpus"),
        ("cpu", json!({"quota": 1}), "cpu.cfs_quota_us"),
        ("memory", json!({"limit": 1048576, "swap": 524288}), "memory"),
    ] {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["resources"][controller] = value));
        assert!(refusal.message.contains(words), "{refusal:?}");
    }
    let refusal =
        refused(|bundle| bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"swappiness": 101})));
    refusal.names(Code::INVALID_ARGUMENT, &["linux.resources.memory.swappiness", "101"]);
}
