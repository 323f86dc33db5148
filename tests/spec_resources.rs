//! linux.resources: in the files of the container's cgroup, as the container itself sees them, and by their effect.

use std::fs;
use std::path::PathBuf;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::{is_v2, number_of, on, path_of};
use common::container::{Host, refused};
use common::world::until;
use serde_json::json;
use ttrpc::Code;

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
        // v1's swap is that of memory and swap together. Shares become a weight (runc's conversion: 1024 are 100).
        let v1 = [
            ("memory.limit_in_bytes", "67108864"),
            ("memory.soft_limit_in_bytes", "33554432"),
            ("memory.memsw.limit_in_bytes", "134217728"),
            ("memory.swappiness", "10"),
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "25000"),
            ("cpu.cfs_period_us", "50000"),
        ];
        let v2 = [
            ("memory.max", "67108864"),
            ("memory.low", "33554432"),
            ("memory.swap.max", "67108864"),
            ("cpu.weight", "59"),
            ("cpu.max", "25000 50000"),
        ];
        let both = [("cpuset.cpus", "0"), ("cpuset.mems", "0"), ("pids.max", "42")];
        for (file, value) in on(&v1[..], &v2).iter().chain(&both) {
            assert_eq!(bundle.knob(file), *value, "{file}");
        }
        let status = container.proc("status");
        assert!(status.contains("\nCpus_allowed_list:\t0\n"), "{status}");
        let path = path_of(bundle.spec()["linux"]["cgroupsPath"].as_str().unwrap());
        for line in container.proc("cgroup").lines() {
            assert!(line.ends_with(&format!(":/{}", path.display())), "{line}");
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
        assert_eq!(bundle.knob("pids.max"), "max");
        assert_eq!(bundle.knob(on("cpu.cfs_quota_us", "cpu.max")), on("-1", "max 100000"));
        assert_eq!(bundle.knob(on("cpu.shares", "cpu.weight")), on("1024", "100"));
        let memory = bundle.knob(on("memory.limit_in_bytes", "memory.max"));
        assert!(memory == "max" || memory.parse::<u64>().unwrap() > 1 << 60, "{memory}");
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
        until("it is throttled", || number_of(&bundle.knob("cpu.stat"), "nr_throttled") > 0).await;
        container.end().await;
    });
}

#[test]
fn a_limit_that_the_kernel_refuses_fails_the_create() {
    for (controller, value, words) in [
        ("cpu", json!({"cpus": "4095"}), "cpuset.cpus"),
        ("cpu", json!({"quota": 1}), on("cpu.cfs_quota_us", "cpu.max")),
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
            return common::skipped("rates of block devices", "the tests' directory is not on a disk of its own");
        };
        let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
        let v1 = "cd /sys/fs/cgroup; cat */cpu.cfs_quota_us */cpu.cfs_burst_us */cpu.idle */blkio.bfq.weight \
                  */blkio.throttle.*_device */memory.kmem.tcp.limit_in_bytes";
        // The weight is BFQ's own where it runs, else io.cost's on another scale: 1 + (321 - 10) * 9999 / 990.
        let v2 = "cd /sys/fs/cgroup; cat cpu.max cpu.max.burst cpu.idle; \
                  grep -qx 'default 3142' io.weight || grep -qx '\\(default \\)\\?321' io.bfq.weight || echo no weight; cat io.max";
        let bundle = host.bundle("one").cgroup_view().script(on(v1, v2)).edit(|spec| {
            let resources = &mut spec["linux"]["resources"];
            resources["cpu"] = json!({"quota": 30000, "period": 60000, "burst": 20000, "idle": 1});
            resources["memory"] = json!({"kernelTCP": 8388608, "checkBeforeUpdate": true, "useHierarchy": true});
            resources["blockIO"] = json!({
                "weight": 321, "throttleReadBpsDevice": rate(2 << 30), "throttleReadIOPSDevice": rate(3 << 20),
                "throttleWriteBpsDevice": rate(4 << 30), "throttleWriteIOPSDevice": rate(5 << 20),
            });
        });
        let line = |rate: u64| format!("{major}:{minor} {rate}");
        // None at which it would have to wait for its own program.
        let rates = [line(2 << 30), line(3 << 20), line(4 << 30), line(5 << 20)];
        let v1 = [&["30000", "20000", "1", "321"].map(String::from)[..], &rates, &["8388608".to_string()]].concat();
        let rates =
            format!("{major}:{minor} rbps={} wbps={} riops={} wiops={}", 2u64 << 30, 4u64 << 30, 3 << 20, 5 << 20);
        let v2 = ["30000 60000", "20000", "1", &rates].map(String::from).to_vec();
        assert_eq!(host.run(&bundle).await.lines(), on(v1, v2));
    });
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
        for (id, io, v1, v2) in [
            ("weight", of_device("weight"), "blkio/blkio*.weight_device", "io*.weight"),
            ("leaf", of_device("leafWeight"), "blkio/blkio*.leaf_weight_device", "leafWeight"),
            ("leaves", json!({"leafWeight": 432}), "blkio/blkio*.leaf_weight", "leafWeight"),
        ] {
            let files = on(v1, v2);
            let bundle = host.bundle(id).cgroup_view().script(&format!("cat /sys/fs/cgroup/{files}"));
            let bundle = bundle.edit(|spec| spec["linux"]["resources"]["blockIO"] = io);
            match host.try_run(&bundle).await {
                // io.cost's: 1 + (432 - 10) * 9999 / 990.
                Ok(ended) => assert!(["432", "4263"].iter().any(|weight| ended.stdout.contains(weight)), "{ended:?}"),
                // Of leaves there are none in v2, whatever the value.
                Err(error) => {
                    let file = files.split('*').next_back().unwrap();
                    let value = on("432", if id == "weight" { "4" } else { "cgroup v1" });
                    assert!(error.contains(file) && error.contains(value), "{file}: {error}");
                }
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
        // v2 has neither file: it counts all memory, and always that of what is below.
        let script =
            on("cd /sys/fs/cgroup/memory; cat memory.kmem.limit_in_bytes memory.use_hierarchy", "echo none; echo 1");
        let bundle = host.bundle("one").cgroup_view().script(script).edit(|spec| {
            spec["linux"]["resources"]["memory"] = json!({"kernel": 8388608, "useHierarchy": true});
        });
        let lines = host.run(&bundle).await.lines();
        let log = bundle.log();
        let told = log.lines().filter(|line| line.contains("level=warn") && line.contains("memory.kernel")).count();
        assert_eq!(told, usize::from(lines[0] != "8388608"), "{lines:?}: {log}");
        assert_eq!(lines[1], "1");
        // Unasked, too.
        let script = on("cat /sys/fs/cgroup/memory/memory.use_hierarchy", "echo 1");
        let bundle = host.bundle("two").cgroup_view().script(script);
        assert_eq!(host.run(&bundle).await.ok(), "1\n");
        assert!(!bundle.log().contains("memory.kernel"));
    });
}

#[test]
fn a_rate_of_writing_is_kept() {
    block_on(async {
        let host = Host::new();
        let Some((major, minor)) = disk_of(host.scratch.dir()) else {
            return common::skipped("a rate of writing", "the tests' directory is not on a disk of its own");
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
        let v1 = fs::read_to_string("/proc/self/cgroup").unwrap();
        let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let named = |line: &str| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|n| n == controller));
        v1.lines().any(named) || v2.split_whitespace().any(|name| name == controller)
    };
    let pages = on("2MB.limit_in_bytes", "2MB.max");
    for (controller, field, value, file, shown) in [
        ("hugetlb", "hugepageLimits", json!([{"pageSize": "2MB", "limit": 4 << 20}]), pages, "4194304"),
        ("net_cls", "network", json!({"classID": 65537}), "classid", "65537"),
        ("net_prio", "network", json!({"priorities": [{"name": "lo", "priority": 3}]}), "ifpriomap", "lo 3"),
        ("rdma", "rdma", json!({"mlx5_1": {"hcaHandles": 1, "hcaObjects": 2}}), "max", "hca_handle=1 hca_object=2"),
    ] {
        let change = |bundle: Bundle| bundle.edit(|spec| spec["linux"]["resources"][field] = value);
        if mounted(controller) {
            let dir = if is_v2() { "" } else { controller };
            let script = format!("cat /sys/fs/cgroup/{dir}/{controller}.{file}");
            let ended = block_on(async {
                let host = Host::new();
                host.try_run(&change(host.bundle("one")).cgroup_view().script(&script)).await
            });
            match ended {
                Ok(ended) => assert!(ended.ok().contains(shown), "{controller}"),
                // Of a device or page size that this host has not.
                Err(error) => assert!(error.contains(file) || error.contains(field), "{controller}: {error}"),
            }
        } else {
            // What v2 never has is refused by its field.
            let (field, controller) = (format!("linux.resources.{field}"), format!("controller {controller}"));
            let words = on([controller.as_str(), "not mounted"], [field.as_str(), "cgroup v1"]);
            refused(change).names(Code::FAILED_PRECONDITION, &words);
        }
    }
    let unified = json!({"memory.high": "33554432"});
    let change = |bundle: Bundle| bundle.edit(|spec| spec["linux"]["resources"]["unified"] = unified);
    match is_v2() {
        false => refused(change).names(Code::FAILED_PRECONDITION, &["linux.resources.unified"]),
        true => block_on(async {
            let host = Host::new();
            let bundle = change(host.bundle("one")).cgroup_view().script("cat /sys/fs/cgroup/memory.high");
            assert_eq!(host.run(&bundle).await.ok(), "33554432\n");
        }),
    }
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
