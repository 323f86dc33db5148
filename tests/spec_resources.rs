//! linux.resources: in the files of the container's cgroup, as the container itself sees them, and by their effect.

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

/// Proves: linux.cgroupsPath, linux.resources.memory.{limit,reservation,swap,swappiness}
/// Proves: linux.resources.cpu.{shares,quota,period,cpus,mems}
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

/// Proves: linux.resources.pids.limit
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

/// The numbers of the device that the files below `path` are on, where that is a disk of its own.
fn disk_of(path: &std::path::Path) -> Option<(u32, u32)> {
    let device = rustix::fs::stat(path).unwrap().st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::exists(format!("/sys/dev/block/{major}:{minor}/queue")).unwrap().then_some((major, minor))
}

/// Proves: linux.resources.cpu.{burst,idle}, linux.resources.memory.kernelTCP, linux.resources.blockIO.weight
/// Proves: linux.resources.blockIO.{throttleReadBpsDevice,throttleReadIOPSDevice}
/// Proves: linux.resources.blockIO.{throttleWriteBpsDevice,throttleWriteIOPSDevice}
/// Proves: linux.resources.blockIO.throttle*.{major,minor,rate}
#[test]
fn the_container_sees_its_bursts_idleness_weights_and_rates() {
    block_on(async {
        let host = Host::new();
        let Some((major, minor)) = disk_of(host.scratch.dir()) else {
            eprintln!("SKIPPED: the tests' directory is not on a disk of its own");
            return;
        };
        let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
        let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]});
        let script = "cd /sys/fs/cgroup; cat */cpu.cfs_quota_us */cpu.cfs_burst_us */cpu.idle */blkio.bfq.weight \
                      */blkio.throttle.*_device */memory.kmem.tcp.limit_in_bytes";
        let bundle = host.bundle("one").mount(cgroup).script(script).edit(|spec| {
            let resources = &mut spec["linux"]["resources"];
            resources["cpu"] = json!({"quota": 30000, "period": 60000, "burst": 20000, "idle": 1});
            resources["memory"] = json!({"kernelTCP": 8388608, "checkBeforeUpdate": true, "useHierarchy": true});
            resources["blockIO"] = json!({
                "weight": 321, "throttleReadBpsDevice": rate(1), "throttleReadIOPSDevice": rate(2),
                "throttleWriteBpsDevice": rate(3), "throttleWriteIOPSDevice": rate(4),
            });
        });
        let line = |rate: u64| format!("{major}:{minor} {rate}");
        let rates = [line(1), line(2), line(3), line(4)];
        let expected =
            [&["30000", "20000", "1", "321"].map(String::from)[..], &rates, &["8388608".to_string()]].concat();
        assert_eq!(host.run(&bundle).await.lines(), expected);
    });
}

/// With the container's own view of its cgroups.
fn with_view(bundle: Bundle) -> Bundle {
    bundle.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}))
}

/// Weights of devices are BFQ's, those of leaves were CFQ's, which no supported kernel has: where there are none for this
/// disk, the error has the file.
///
/// Proves: linux.resources.blockIO.leafWeight, linux.resources.blockIO.weightDevice.{major,minor,weight,leafWeight}
#[test]
fn weights_of_devices_are_in_the_files_or_refused() {
    block_on(async {
        let host = Host::new();
        let (major, minor) = disk_of(host.scratch.dir()).unwrap_or((7, 0));
        let of_device = |field: &str| json!({"weightDevice": [{"major": major, "minor": minor, field: 432}]});
        for (id, io, file) in [
            ("weight", of_device("weight"), "weight_device"),
            ("leaf", of_device("leafWeight"), "leaf_weight_device"),
            ("leaves", json!({"leafWeight": 432}), "leaf_weight"),
        ] {
            let bundle = with_view(host.bundle(id)).script(&format!("cat /sys/fs/cgroup/blkio/blkio*.{file}"));
            let bundle = bundle.edit(|spec| spec["linux"]["resources"]["blockIO"] = io);
            match host.try_run(&bundle).await {
                Ok(ended) => assert!(ended.ok().contains("432"), "{file}"),
                Err(error) => assert!(error.contains(file) && error.contains("432"), "{file}: {error}"),
            }
        }
    });
}

/// A limit for the kernel's own memory, which newer ones take and do not keep: then the log says so, as runc's does. What
/// is in a cgroup below the container's counts as its own.
///
/// Proves: linux.resources.memory.{kernel,useHierarchy}
#[test]
fn memory_of_the_kernel_is_limited_or_the_log_says_so() {
    block_on(async {
        let host = Host::new();
        let script = "cd /sys/fs/cgroup/memory; cat memory.kmem.limit_in_bytes memory.use_hierarchy";
        let bundle = with_view(host.bundle("one")).script(script).edit(|spec| {
            spec["linux"]["resources"]["memory"] = json!({"kernel": 8388608, "useHierarchy": true});
        });
        let lines = host.run(&bundle).await.lines();
        let log = bundle.log();
        let told = log.lines().filter(|line| line.contains("level=warn") && line.contains("memory.kernel")).count();
        assert_eq!(told, usize::from(lines[0] != "8388608"), "{lines:?}: {log}");
        assert_eq!(lines[1], "1");
        // Unasked, too.
        let bundle = with_view(host.bundle("two")).script("cat /sys/fs/cgroup/memory/memory.use_hierarchy");
        assert_eq!(host.run(&bundle).await.ok(), "1\n");
        assert!(!bundle.log().contains("memory.kernel"));
    });
}

#[test]
fn a_rate_of_writing_is_kept() {
    block_on(async {
        let host = Host::new();
        let Some((major, minor)) = disk_of(host.scratch.dir()) else {
            eprintln!("SKIPPED: the tests' directory is not on a disk of its own");
            return;
        };
        let direct = "dd if=/dev/zero of=/file bs=256k count=12 oflag=direct 2>/dev/null";
        let bundle = host.bundle("one").script(&format!("{direct} && echo done")).edit(|spec| {
            let devices = json!([{"major": major, "minor": minor, "rate": 1 << 20}]);
            spec["linux"]["resources"]["blockIO"] = json!({"throttleWriteBpsDevice": devices});
        });
        let before = std::time::Instant::now();
        assert_eq!(host.run(&bundle).await.ok(), "done\n");
        // 3 MiB at 1 MiB/s; the first part of a second may be had at once.
        assert!(before.elapsed() > std::time::Duration::from_millis(1500), "{:?}", before.elapsed());
    });
}

/// Where the host has the controller, the container sees its limits there.
///
/// Proves: linux.resources.hugepageLimits.{pageSize,limit}, linux.resources.network.classID, linux.resources.unified
/// Proves: linux.resources.network.priorities.{name,priority}, linux.resources.rdma.{hcaHandles,hcaObjects}
/// Proves: linux.intelRdt.{closID,schemata,l3CacheSchema,memBwSchema,enableMonitoring}
#[test]
fn what_this_host_cannot_limit_is_refused_by_name_before_any_effect() {
    let mounted = |controller: &str| {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
        cgroups
            .lines()
            .any(|line| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|n| n == controller)))
    };
    for (controller, field, value, file, shown) in [
        ("hugetlb", "hugepageLimits", json!([{"pageSize": "2MB", "limit": 4 << 20}]), "2MB.limit_in_bytes", "4194304"),
        ("net_cls", "network", json!({"classID": 65537}), "classid", "65537"),
        ("net_prio", "network", json!({"priorities": [{"name": "lo", "priority": 3}]}), "ifpriomap", "lo 3"),
        ("rdma", "rdma", json!({"mlx5_1": {"hcaHandles": 1, "hcaObjects": 2}}), "max", "hca_handle=1 hca_object=2"),
    ] {
        let change = |bundle: Bundle| bundle.edit(|spec| spec["linux"]["resources"][field] = value);
        if mounted(controller) {
            let script = format!("cat /sys/fs/cgroup/{controller}/{controller}.{file}");
            let ended = block_on(async {
                let host = Host::new();
                host.try_run(&with_view(change(host.bundle("one"))).script(&script)).await
            });
            match ended {
                Ok(ended) => assert!(ended.ok().contains(shown), "{controller}"),
                // Of a device or page size that this host has not.
                Err(error) => assert!(error.contains(file) || error.contains(field), "{controller}: {error}"),
            }
        } else {
            let refusal = refused(change);
            refusal.names(Code::FAILED_PRECONDITION, &[&format!("controller {controller}"), "not mounted"]);
        }
    }
    let unified = json!({"memory.high": "1"});
    let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["resources"]["unified"] = unified));
    refusal.names(Code::FAILED_PRECONDITION, &["linux.resources.unified"]);
    if !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - resctrl ") {
        for rdt in [
            json!({"closID": "x"}),
            json!({"schemata": ["L3:0=f"]}),
            json!({"l3CacheSchema": "L3:0=f"}),
            json!({"memBwSchema": "MB:0=50"}),
            json!({"enableMonitoring": true}),
        ] {
            let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["intelRdt"] = rdt));
            refusal.names(Code::FAILED_PRECONDITION, &["linux.intelRdt", "no resctrl"]);
        }
    }
    let odd = json!([{"pageSize": "3MB", "limit": 1}]);
    let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["resources"]["hugepageLimits"] = odd));
    refusal.names(Code::INVALID_ARGUMENT, &["linux.resources.hugepageLimits[0]", "3MB"]);
    let shares = json!({"shares": 1});
    let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["resources"]["cpu"] = shares));
    refusal.names(Code::INVALID_ARGUMENT, &["linux.resources.cpu.shares"]);
}
