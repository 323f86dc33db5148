//! Limits beyond memory, cpu and pids. A controller that the host has not is played by a directory of plain files: what is
//! written into them is what the kernel would get, one write(2) after the other.

use super::*;

/// Fails after everything else has been written: no host has the device.
const NO_DEVICE: &str = r#""throttleWriteIOPSDevice":[{"major":4095,"minor":1,"rate":1}]"#;

/// `major:minor` of a disk, of which the kernel takes limits.
fn disk() -> (u64, u64) {
    let (major, minor, _) = stats::block_devices().into_iter().next().expect("a block device in /proc/partitions");
    (major, minor)
}

/// A directory of plain files in the place of the scratch cgroup's `c` in the hierarchy of `controller`.
struct Plain(PathBuf);

impl Plain {
    fn new(scratch: &Scratch, controller: &str, files: &[&str]) -> (Self, Cgroup) {
        let mount = std::env::temp_dir().join(format!("dray-test-{controller}-{}", std::process::id()));
        let dir = mount.join(scratch.at("c").strip_prefix("/").unwrap());
        std::fs::create_dir_all(&dir).unwrap();
        files.iter().for_each(|file| std::fs::write(dir.join(file), "").unwrap());
        (Self(mount.clone()), Cgroup { hierarchies: scratch.all.with(controller, &mount), path: scratch.at("c") })
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn cpu_limits_beyond_the_quota_are_in_the_kernels_files() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let seen = |file| read(&scratch.dir("cpu", "c"), file);
    let apply = |json: &str| cgroup.update(&resources(json));
    apply(r#"{"cpu":{"quota":20000,"period":50000,"burst":20000}}"#).unwrap();
    assert_eq!(seen("cpu.cfs_burst_us"), "20000");
    // Up and down again: a burst is at most the quota at any time.
    for burst in [40000, 10000, 30000] {
        apply(&format!(r#"{{"cpu":{{"quota":{burst},"period":50000,"burst":{burst}}}}}"#)).unwrap();
        assert_eq!((seen("cpu.cfs_quota_us"), seen("cpu.cfs_burst_us")), (burst.to_string(), burst.to_string()));
    }
    let e = apply(r#"{"cpu":{"burst":30001}}"#).unwrap_err();
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("cpu.cfs_burst_us"), "{e}");
    apply(r#"{"cpu":{"burst":0,"shares":500,"idle":1}}"#).unwrap();
    assert_eq!((seen("cpu.cfs_burst_us"), seen("cpu.idle")), ("0".into(), "1".into()));
    let e = apply(r#"{"cpu":{"shares":600}}"#).unwrap_err();
    assert!(e.to_string().contains("cpu.shares"), "{e}");
    apply(r#"{"cpu":{"shares":600,"idle":0}}"#).unwrap();
    assert_eq!((seen("cpu.shares"), seen("cpu.idle")), ("600".into(), "0".into()));
    let e = apply(r#"{"cpu":{"idle":2}}"#).unwrap_err();
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("cpu.idle"), "{e}");
}

/// The period cannot go down before the quota does, and the burst between them does not change that.
#[test]
fn a_period_and_a_quota_within_the_parents_are_changed_with_the_burst() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    std::fs::write(scratch.dir("cpu", "").join("cpu.cfs_quota_us"), "50000").unwrap();
    for (quota, period) in [(50000, 100_000), (25000, 50000), (50000, 100_000)] {
        let cpu = format!(r#"{{"cpu":{{"quota":{quota},"period":{period},"burst":20000}}}}"#);
        cgroup.update(&resources(&cpu)).unwrap();
        let seen = ["cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us"]
            .map(|file| read(&scratch.dir("cpu", "c"), file));
        assert_eq!(seen, [quota.to_string(), period.to_string(), "20000".into()]);
    }
    let e = cgroup.update(&resources(r#"{"cpu":{"quota":50001}}"#)).unwrap_err();
    assert_eq!(e.kind(), Kind::InvalidArgument);
}

/// The kernels of 5.16 and later have no such limit any more, which is a warning.
#[test]
fn memory_of_the_kernel_is_limited_or_the_limit_is_told_to_be_ignored() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let seen = |file| read(&scratch.dir("memory", "c"), file);
    let unlimited = seen("memory.kmem.tcp.limit_in_bytes");
    cgroup.apply(&resources(r#"{"memory":{"kernelTCP":8388608,"useHierarchy":true}}"#)).unwrap();
    assert_eq!((seen("memory.kmem.tcp.limit_in_bytes"), seen("memory.use_hierarchy")), ("8388608".into(), "1".into()));
    cgroup.apply(&resources(r#"{"memory":{"kernelTCP":-1,"kernel":-1}}"#)).unwrap();
    assert_eq!(seen("memory.kmem.tcp.limit_in_bytes"), unlimited);
    let kernel = resources(r#"{"memory":{"kernel":8388608}}"#);
    cgroup.apply(&kernel).unwrap();
    let ignored = cgroup.ignored(&kernel).unwrap();
    assert_eq!(ignored.is_empty(), seen("memory.kmem.limit_in_bytes") == "8388608");
    assert!(ignored.iter().all(|text| text.starts_with("linux.resources.memory.kernel: ")));
    assert_eq!(cgroup.ignored(&resources(r#"{"memory":{"kernel":-1,"kernelTCP":1}}"#)).unwrap(), [""; 0]);
}

/// What `checkBeforeUpdate` asks for: v1 does it unasked.
#[test]
fn a_limit_below_what_is_used_is_refused_and_kills_nobody() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    cgroup.apply(&resources(r#"{"memory":{"limit":134217728,"swap":134217728}}"#)).unwrap();
    // Holds a line of 32 MiB.
    let mut child = Outsider(spawn_in(&scratch.existing("c"), "(head -c 33554432 /dev/zero; sleep 1000) | tail -n 1"));
    let seen = |file| read(&scratch.dir("memory", "c"), file);
    until("it uses it", || seen("memory.usage_in_bytes").parse::<u64>().unwrap() > 33_554_432);
    for check in ["true", "false"] {
        let low = format!(
            r#"{{"memory":{{"limit":4194304,"swap":4194304,"checkBeforeUpdate":{check}}},"pids":{{"limit":9}}}}"#
        );
        let e = cgroup.update(&resources(&low)).unwrap_err();
        assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("memory.limit_in_bytes"), "{e}");
        let limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"].map(seen);
        assert_eq!(limits, ["134217728", "134217728"]);
    }
    assert!(seen("memory.oom_control").ends_with("oom_kill 0"));
    assert!(child.0.try_wait().unwrap().is_none());
    assert_eq!(cgroup.kill().unwrap(), Killed::Tree);
}

#[test]
fn limits_of_block_devices_are_in_the_kernels_files() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let (major, minor) = disk();
    let seen = |file| read(&scratch.dir("blkio", "c"), file);
    let throttle = |rates: [u64; 4]| {
        let names = ["ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS"].into_iter().zip(rates);
        let fields: Vec<String> = names
            .map(|(name, rate)| {
                format!(r#""throttle{name}Device":[{{"major":{major},"minor":{minor},"rate":{rate}}}]"#)
            })
            .collect();
        fields.join(",")
    };
    let files = ["read_bps", "write_bps", "read_iops", "write_iops"].map(|n| format!("blkio.throttle.{n}_device"));
    let set = || files.each_ref().map(|file| seen(file));
    cgroup.apply(&resources(&format!(r#"{{"blockIO":{{{}}}}}"#, throttle([1 << 20, 2 << 20, 30, 40])))).unwrap();
    let line = |rate: u64| format!("{major}:{minor} {rate}");
    assert_eq!(set(), [line(1 << 20), line(2 << 20), line(30), line(40)]);

    // Refused at its last write: all is as it was, the lines of each device too.
    cgroup.update(&resources(&format!(r#"{{"blockIO":{{{}}}}}"#, throttle([0, 0, 30, 40])))).unwrap();
    assert_eq!(set(), ["".into(), "".into(), line(30), line(40)]);
    let mut failing = throttle([5 << 20, 6 << 20, 70, 80]);
    failing.truncate(failing.rfind(",\"throttleWriteIOPS").unwrap());
    let failing = format!(r#"{{"pids":{{"limit":9}},"blockIO":{{{failing},{NO_DEVICE}}}}}"#);
    let e = cgroup.update(&resources(&failing)).unwrap_err();
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("\"4095:1 1\""), "{e}");
    assert_eq!(set(), ["".into(), "".into(), line(30), line(40)]);
    assert_eq!(read(&scratch.dir("pids", "c"), "pids.max"), "max");
}

#[test]
fn weights_of_block_devices_are_bfqs() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    if !scratch.dir("blkio", "c").join("blkio.bfq.weight").exists() {
        eprintln!("SKIPPED: this kernel has no BFQ");
        return;
    }
    let seen = |file| read(&scratch.dir("blkio", "c"), file);
    cgroup.apply(&resources(r#"{"blockIO":{"weight":321}}"#)).unwrap();
    assert_eq!(seen("blkio.bfq.weight"), "321");
    let e = cgroup.apply(&resources(r#"{"blockIO":{"weight":1001}}"#)).unwrap_err();
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("\"1001\""), "{e}");
    let e = cgroup.apply(&resources(r#"{"blockIO":{"leafWeight":300}}"#)).unwrap_err();
    assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("blkio.leaf_weight"), "{e}");

    // A kernel with the older name: that is the one.
    let (_plain, plain) = Plain::new(&scratch, "blkio", &["blkio.weight", "blkio.bfq.weight", "blkio.weight_device"]);
    let device = r#""weightDevice":[{"major":8,"minor":0,"weight":600}]"#;
    plain.apply(&resources(&format!(r#"{{"blockIO":{{"weight":500,{device}}}}}"#))).unwrap();
    let dir = plain.v1_dir("blkio").unwrap();
    let files = ["blkio.weight", "blkio.bfq.weight", "blkio.weight_device"].map(|file| read(&dir, file));
    assert_eq!(files, ["500", "", "8:0 600"]);
}

#[test]
fn huge_pages_network_and_rdma_are_written_where_their_controllers_are() {
    let scratch = Scratch::new();
    drop(scratch.create());
    for (controller, file, json, written) in [
        ("net_cls", "net_cls.classid", r#"{"network":{"classID":1048577}}"#, "1048577"),
        (
            "net_prio",
            "net_prio.ifpriomap",
            r#"{"network":{"priorities":[{"name":"lo","priority":7},{"name":"eth0","priority":0}]}}"#,
            "lo 7eth0 0",
        ),
        (
            "rdma",
            "rdma.max",
            r#"{"rdma":{"b":{"hcaHandles":3,"hcaObjects":4},"a":{"hcaObjects":5}}}"#,
            "a hca_object=5b hca_handle=3 hca_object=4",
        ),
        (
            "hugetlb",
            "hugetlb.2MB.limit_in_bytes",
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
            "4194304",
        ),
    ] {
        let (_plain, cgroup) = Plain::new(&scratch, controller, &[file]);
        check(&cgroup.hierarchies, &resources(json)).unwrap();
        cgroup.apply(&resources(json)).unwrap();
        assert_eq!(read(&cgroup.v1_dir(controller).unwrap(), file), written);

        // Without it: before any effect, by its name.
        let without = Cgroup { hierarchies: scratch.all.without(controller), path: scratch.at("c") };
        for refused in [
            check(&without.hierarchies, &resources(json)),
            without.apply(&resources(json)),
            without.update(&resources(json)),
        ] {
            let e = refused.unwrap_err();
            assert_eq!(e.kind(), Kind::FailedPrecondition, "{e}");
            assert!(e.to_string().contains(&format!("controller {controller}, {file} \"")), "{e}");
        }
    }
    let (_plain, cgroup) =
        Plain::new(&scratch, "hugetlb", &["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"]);
    let limit = |size: &str| resources(&format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":6291456}}]}}"#));
    cgroup.apply(&limit("2MB")).unwrap();
    assert_eq!(read(&cgroup.v1_dir("hugetlb").unwrap(), "hugetlb.2MB.rsvd.limit_in_bytes"), "6291456");
    for refused in [check(&cgroup.hierarchies, &limit("3MB")), cgroup.update(&limit("3MB"))] {
        let e = refused.unwrap_err();
        assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("3MB"), "{e}");
    }
}
