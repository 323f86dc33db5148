//! Limits beyond memory, cpu and pids. A controller that the host has not is played by a directory of plain files: what is
//! written into them is what the kernel would get, one write(2) after the other.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
    let apply = |json: &str| cgroup.update(&resources(json));
    let max = |quota: &str, burst: &str| {
        assert_rows(
            &scratch,
            &[
                ("cpu", ("cpu.cfs_quota_us", quota), ("cpu.max", &format!("{quota} 50000"))),
                ("cpu", ("cpu.cfs_burst_us", burst), ("cpu.max.burst", burst)),
            ],
        );
    };
    apply(r#"{"cpu":{"quota":20000,"period":50000,"burst":20000}}"#).unwrap();
    max("20000", "20000");
    // Up and down again: a burst is at most the quota at any time.
    for burst in ["40000", "10000", "30000"] {
        apply(&format!(r#"{{"cpu":{{"quota":{burst},"period":50000,"burst":{burst}}}}}"#)).unwrap();
        max(burst, burst);
    }
    let e = apply(r#"{"cpu":{"burst":30001}}"#).unwrap_err();
    let file = scratch.one("cpu.cfs_burst_us", "cpu.max.burst");
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains(file), "{e}");
    // Each of the pair alone leaves the other.
    apply(r#"{"cpu":{"burst":0,"quota":15000}}"#).unwrap();
    max("15000", "0");
    apply(r#"{"cpu":{"period":60000}}"#).unwrap();
    assert_rows(&scratch, &[("cpu", ("cpu.cfs_period_us", "60000"), ("cpu.max", "15000 60000"))]);
    apply(r#"{"cpu":{"shares":500,"idle":1}}"#).unwrap();
    assert_rows(&scratch, &[("cpu", ("cpu.idle", "1"), ("cpu.idle", "1"))]);
    let e = apply(r#"{"cpu":{"shares":600}}"#).unwrap_err();
    assert!(e.to_string().contains(scratch.one("cpu.shares", "cpu.weight")), "{e}");
    apply(r#"{"cpu":{"shares":600,"idle":0}}"#).unwrap();
    assert_rows(
        &scratch,
        &[("cpu", ("cpu.shares", "600"), ("cpu.weight", "66")), ("cpu", ("cpu.idle", "0"), ("cpu.idle", "0"))],
    );
    let e = apply(r#"{"cpu":{"idle":2}}"#).unwrap_err();
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("cpu.idle"), "{e}");
}

/// The period cannot go down before the quota does, and the burst between them does not change that.
#[test]
fn a_period_and_a_quota_within_the_parents_are_changed_with_the_burst() {
    let scratch = Scratch::new();
    if scratch.is_v2() {
        return; // v2 has no such rule.
    }
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
    if scratch.is_v2() {
        return; // Told by the specification alone there.
    }
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
    let used = || scratch.seen("memory", "memory.usage_in_bytes", "memory.current").parse::<u64>().unwrap();
    until("it uses it", || used() > 33_554_432);
    for check in scratch.one(&["true", "false"][..], &["true"]) {
        let low = format!(
            r#"{{"memory":{{"limit":4194304,"swap":4194304,"checkBeforeUpdate":{check}}},"pids":{{"limit":9}}}}"#
        );
        let e = cgroup.update(&resources(&low)).unwrap_err();
        let file = scratch.one("memory.limit_in_bytes", "memory.max");
        assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains(file), "{e}");
        assert_rows(
            &scratch,
            &[
                ("memory", ("memory.limit_in_bytes", "134217728"), ("memory.max", "134217728")),
                ("memory", ("memory.memsw.limit_in_bytes", "134217728"), ("memory.swap.max", "0")),
                ("pids", ("pids.max", "max"), ("pids.max", "max")),
            ],
        );
    }
    let kills = scratch.seen("memory", "memory.oom_control", "memory.events");
    assert!(kills.contains("oom_kill 0"), "{kills}");
    assert!(child.0.try_wait().unwrap().is_none());
    assert_eq!(cgroup.kill().unwrap(), Killed::Tree);
}

#[test]
fn limits_of_block_devices_are_in_the_kernels_files() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let (major, minor) = disk();
    let throttle = |rates: [u64; 4]| {
        let names = ["ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS"].into_iter().zip(rates);
        let fields: Vec<String> = names
            .map(|(name, rate)| {
                format!(r#""throttle{name}Device":[{{"major":{major},"minor":{minor},"rate":{rate}}}]"#)
            })
            .collect();
        fields.join(",")
    };
    let keys = ["rbps", "wbps", "riops", "wiops"];
    let files = ["read_bps", "write_bps", "read_iops", "write_iops"];
    // Of each rate, what there is of it.
    let set = || -> Vec<String> {
        let of = |(key, file): (&str, &str)| match scratch.is_v2() {
            true => {
                let text = read(&scratch.dir("io", "c"), "io.max");
                let line = text.lines().find_map(|line| line.strip_prefix(&format!("{major}:{minor} ")));
                let word = line.unwrap_or("").split(' ').find_map(|word| word.strip_prefix(&format!("{key}=")));
                word.filter(|rate| *rate != "max").unwrap_or("").to_owned()
            }
            false => {
                let text = read(&scratch.dir("blkio", "c"), &format!("blkio.throttle.{file}_device"));
                text.strip_prefix(&format!("{major}:{minor} ")).unwrap_or("").to_owned()
            }
        };
        keys.into_iter().zip(files).map(of).collect()
    };
    cgroup.apply(&resources(&format!(r#"{{"blockIO":{{{}}}}}"#, throttle([1 << 20, 2 << 20, 30, 40])))).unwrap();
    assert_eq!(set(), ["1048576", "2097152", "30", "40"]);

    // Refused at its last write: all is as it was, the lines of each device too.
    cgroup.update(&resources(&format!(r#"{{"blockIO":{{{}}}}}"#, throttle([0, 0, 30, 40])))).unwrap();
    assert_eq!(set(), ["", "", "30", "40"]);
    let mut failing = throttle([5 << 20, 6 << 20, 70, 80]);
    failing.truncate(failing.rfind(",\"throttleWriteIOPS").unwrap());
    let failing = format!(r#"{{"cpu":{{"cpus":"0","quota":7000}},"blockIO":{{{failing},{NO_DEVICE}}}}}"#);
    let e = cgroup.update(&resources(&failing)).unwrap_err();
    let line = scratch.one("\"4095:1 1\"", "\"4095:1 wiops=1\"");
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains(line), "{e}");
    assert_eq!(set(), ["", "", "30", "40"]);
    let above = read(&scratch.dir("cpuset", ""), "cpuset.cpus");
    assert_rows(
        &scratch,
        &[
            ("cpu", ("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 100000")),
            ("cpuset", ("cpuset.cpus", &above), ("cpuset.cpus", "")),
        ],
    );
}

#[test]
fn weights_of_block_devices_are_bfqs() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    if scratch.is_v2() {
        return weights_of_v2(&scratch, &cgroup);
    }
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

/// BFQ's where it is, and else those of io.cost, on its scale.
fn weights_of_v2(scratch: &Scratch, cgroup: &Cgroup) {
    let (major, minor) = disk();
    let bfq = scratch.dir("io", "c").join("io.bfq.weight").exists();
    let (file, weight, other) = if bfq { ("io.bfq.weight", 321, 500) } else { ("io.weight", 3142, 4950) };
    let device = format!(r#""weightDevice":[{{"major":{major},"minor":{minor},"weight":500}}]"#);
    cgroup.apply(&resources(r#"{"blockIO":{"weight":321}}"#)).unwrap();
    let seen = || read(&scratch.dir("io", "c"), file);
    assert_eq!(seen(), format!("default {weight}"));
    let refused = cgroup.update(&resources(&format!(r#"{{"blockIO":{{{device}}}}}"#)));
    // A device has one if BFQ schedules it, or while io.cost is switched on for it.
    let qos = scratch.of("io").mount.join("io.cost.qos");
    if bfq || std::fs::write(&qos, format!("{major}:{minor} enable=1")).is_err() {
        return;
    }
    let e = refused.unwrap_err();
    assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("io.weight"), "{e}");
    cgroup.update(&resources(&format!(r#"{{"blockIO":{{{device}}}}}"#))).unwrap();
    let lines = format!("default {weight}\n{major}:{minor} {other}");
    assert_eq!(seen(), lines);
    // Taken back.
    let failing = device.replace("500", "700");
    let e = cgroup.update(&resources(&format!(r#"{{"blockIO":{{"weight":10,{failing},{NO_DEVICE}}}}}"#))).unwrap_err();
    assert!(e.to_string().contains("4095:1"), "{e}");
    assert_eq!(seen(), lines);
    std::fs::write(&qos, format!("{major}:{minor} enable=0")).unwrap();
}

/// Devices of RDMA and miscellaneous resources are few: what is told of them is that the kernel has been asked.
fn rest_of_v2(scratch: &Scratch, cgroup: &Cgroup) {
    let huge = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;
    check(&scratch.all, &resources(huge)).unwrap();
    cgroup.apply(&resources(huge)).unwrap();
    let seen = ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"].map(|file| read(&scratch.dir("hugetlb", "c"), file));
    assert_eq!(seen, ["4194304", "4194304"]);
    for (json, file, value) in [
        (r#"{"rdma":{"none":{"hcaHandles":3}}}"#, "rdma.max", "none hca_handle=3"),
        (r#"{"unified":{"misc.max":"none 3"}}"#, "misc.max", "none 3"),
        (r#"{"unified":{"io.latency":"4095:1 target=3"}}"#, "io.latency", "4095:1 target=3"),
    ] {
        let text = cgroup.apply(&resources(json)).unwrap_err().to_string();
        assert!(text.contains(file) && text.contains(value), "{text}");
    }
}

#[test]
fn huge_pages_network_and_rdma_are_written_where_their_controllers_are() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    if scratch.is_v2() {
        return rest_of_v2(&scratch, &cgroup);
    }
    drop(cgroup);
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
            without.apply(&resources(json)).map(drop),
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

/// Of what is looked at for another reason the bell is still to tell.
#[test]
fn the_bell_of_lack_of_memory_rings_on_until_it_is_looked_at() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let limits =
        scratch.one(r#"{"memory":{"limit":8388608,"swap":8388608}}"#, r#"{"memory":{"limit":8388608,"swap":8388608}}"#);
    cgroup.apply(&resources(limits)).unwrap();
    let watch = cgroup.watch_oom().unwrap().unwrap();
    let (bell, kind) = match watch.bell().unwrap() {
        Bell::Eventfd(bell) => (bell, PollFlags::IN),
        Bell::Events(bell) => (bell, PollFlags::PRI),
    };
    let rings = || poll(&mut [PollFd::new(&bell, kind)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1;
    watch.look().unwrap();
    assert!(!rings());
    let hog = "exec dd if=/dev/zero of=/dev/null count=1 bs=64M 2>/dev/null";
    ended(spawn_in(&[scratch.dir("memory", "c")], hog));
    until("it rings", rings);
    // The kernel rings once in 10 ms: not before the last.
    std::thread::sleep(Duration::from_millis(100));
    watch.note_others(0);
    assert_eq!(watch.missed(0).unwrap(), None, "it is there");
    assert!(rings(), "nobody has looked");
    assert_eq!(watch.look().unwrap().unwrap().kills, 1);
}
