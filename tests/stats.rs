//! Stats on either version of cgroups: the kernel's numbers, all of them, and what asking for them costs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::{by_systemd, is_v2};
use common::stdio::Io;
use common::world::{World, descriptors, refused, status, until};
use containerd_shim_protos::cgroups::metrics::Metrics as V1;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as V2;
use containerd_shim_protos::protobuf::reflect::ReflectValueRef;
use containerd_shim_protos::protobuf::{Message, MessageDyn};
use serde_json::json;
use ttrpc::Code;

/// Either message.
enum Metrics {
    V1(Box<V1>),
    V2(Box<V2>),
}

async fn metrics(world: &World) -> Metrics {
    let any = world.stats("one").await.unwrap().stats.unwrap();
    let value = &any.value;
    match is_v2() {
        false => {
            assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
            Metrics::V1(Box::new(V1::parse_from_bytes(value).unwrap()))
        }
        true => {
            assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
            Metrics::V2(Box::new(V2::parse_from_bytes(value).unwrap()))
        }
    }
}

/// The numbers of a message by their names.
fn numbers(message: &dyn MessageDyn) -> BTreeMap<String, u64> {
    let descriptor = message.descriptor_dyn();
    let number = |field: &containerd_shim_protos::protobuf::reflect::FieldDescriptor| {
        if !field.is_singular() {
            return None;
        }
        match field.get_singular_field_or_default(message) {
            ReflectValueRef::U64(number) => Some((field.name().to_owned(), number)),
            _ => None,
        }
    };
    descriptor.fields().filter_map(|field| number(&field)).collect()
}

/// A file of the container's cgroup, in whichever hierarchy has it.
fn file(bundle: &Bundle, name: &str) -> Option<String> {
    let paths: Vec<PathBuf> = bundle.cgroups().into_iter().map(|dir| dir.join(name)).collect();
    paths.iter().find_map(|path| fs::read_to_string(path).ok())
}

fn number(bundle: &Bundle, name: &str) -> u64 {
    match file(bundle, name).unwrap_or_else(|| "0".into()).trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap(),
    }
}

/// The lines of a flat keyed file.
fn flat(bundle: &Bundle, name: &str) -> BTreeMap<String, u64> {
    let text = file(bundle, name).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(key, value)| (key.to_owned(), value.parse().unwrap())).collect()
}

/// Something to count of everything that can be counted, in a container that then stands still: no number changes.
async fn frozen() -> (World, Bundle) {
    // Written out by the container itself: the kernel would do it at a moment of its own, and a loop device's pages are
    // charged to the cgroup for which it writes.
    let script = "dd if=/dev/zero of=/tmp/file bs=1M count=4 conv=fsync 2>/dev/null; cat /tmp/file > /dev/null
        dd if=/dev/zero of=/dev/shm/file bs=64k count=20 2>/dev/null; sleep 0.01 & wait
        n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; touch /tmp/ready; exec sleep 1000";
    let (world, bundle) = World::running("one", |bundle| {
        bundle.script(script).edit(|spec| {
            spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
            spec["linux"]["resources"]["pids"] = json!({"limit": 20});
        })
    })
    .await;
    let ready = bundle.rootfs_dir().join("tmp/ready");
    until("it has done something", || ready.exists()).await;
    world.pause("one").await.unwrap();
    (world, bundle)
}

/// The lines of the files whose every line is in the message, before and after it was asked for: what stands still does not
/// change them, but the kernel does, which writes back what is dirty and adds up in batches.
struct Around {
    memory: BTreeMap<String, u64>,
    /// The most memory there has been.
    peak: u64,
    cpu: BTreeMap<String, u64>,
    /// How many lines there are of devices, of which one more may be written to.
    devices: usize,
}

impl Around {
    fn now(bundle: &Bundle) -> Around {
        let io = file(bundle, "io.stat").unwrap_or_default();
        let v1 = file(bundle, "blkio.throttle.io_serviced_recursive").unwrap_or_default();
        let devices = io.lines().filter(|line| line.contains("rbytes")).count()
            + v1.lines().filter(|line| line.split(' ').count() == 3).count();
        let peak = number(bundle, "memory.peak").max(number(bundle, "memory.max_usage_in_bytes"));
        Around { memory: flat(bundle, "memory.stat"), peak, cpu: flat(bundle, "cpu.stat"), devices }
    }
}

/// Asserts that each field is the line of its name, or what `differs` says; as it was before, after, or in between.
fn same(
    told: &BTreeMap<String, u64>,
    around: [&BTreeMap<String, u64>; 2],
    differs: impl Fn(&str, &BTreeMap<String, u64>) -> Option<u64>,
) {
    for (name, &told) in told {
        let wanted = around.map(|lines| differs(name, lines).or_else(|| lines.get(name).copied()).unwrap_or(0));
        let (least, most) = (wanted[0].min(wanted[1]), wanted[0].max(wanted[1]));
        // Per-processor counts that the kernel adds up in batches, and its own work for the cgroup go on for a moment.
        let near = told.saturating_add(1 << 20) >= least && told <= most.saturating_add(1 << 20);
        assert!((least..=most).contains(&told) || (near && most > 0), "{name}: told {told}, is {wanted:?}");
    }
    let told_none = |name: &String| told.get(name) == Some(&0);
    let none: Vec<_> = around[0].keys().filter(|name| told_none(name) && around.iter().all(|l| l[*name] > 0)).collect();
    assert!(none.is_empty(), "not told: {none:?} of {around:?}");
}

#[test]
fn every_number_of_the_message_is_the_kernels() {
    block_on(async {
        let (world, bundle) = frozen().await;
        let before = Around::now(&bundle);
        let told = metrics(&world).await;
        let around = [&before, &Around::now(&bundle)];
        match told {
            Metrics::V1(told) => v1(&told, around, &bundle),
            Metrics::V2(told) => v2(&told, around, &bundle),
        }
        world.end("one").await;
        world.close().await;
    });
}

fn v1(told: &V1, around: [&Around; 2], bundle: &Bundle) {
    same(&numbers(&*told.memory), around.map(|around| &around.memory), |name, stat| {
        let line = match name.strip_prefix("total_").unwrap_or(name) {
            "pg_pg_in" => "pgpgin",
            "pg_pg_out" => "pgpgout",
            "pg_fault" => "pgfault",
            "pg_maj_fault" => "pgmajfault",
            "hierarchical_swap_limit" => "hierarchical_memsw_limit",
            _ => return None,
        };
        let total = if name.starts_with("total_") { "total_" } else { "" };
        stat.get(&format!("{total}{line}")).copied()
    });
    assert!(told.memory.total_cache > 1 << 20 && told.memory.pg_fault > 0, "{told}");
    assert_eq!(told.memory.usage.limit, 64 << 20);
    assert!((around[0].peak..=around[1].peak).contains(&told.memory.usage.max), "{told}");
    assert_eq!(told.memory.kernel.max, number(bundle, "memory.kmem.max_usage_in_bytes"));
    for (prefix, entry) in [("memory", &told.memory.usage), ("memory.kmem", &told.memory.kernel)] {
        assert_eq!(entry.failcnt, number(bundle, &format!("{prefix}.failcnt")));
    }
    assert_eq!(numbers(&*told.memory_oom_control), flat(bundle, "memory.oom_control"));
    assert_eq!((told.pids.current, told.pids.limit), (1, 20));
    assert_eq!(told.cpu.usage.total, number(bundle, "cpuacct.usage"));
    let devices = around[0].devices..=around[1].devices;
    assert!(devices.contains(&told.blkio.io_serviced_recursive.len()), "{devices:?} {told}");
}

fn v2(told: &V2, around: [&Around; 2], bundle: &Bundle) {
    assert!((around[0].peak..=around[1].peak).contains(&told.memory.max_usage), "{told}");
    same(&numbers(&*told.memory), around.map(|around| &around.memory), |name, stat| {
        let line = match name {
            "usage" => "memory.current",
            "usage_limit" => "memory.max",
            "max_usage" => return Some(told.memory.max_usage),
            "swap_usage" => "memory.swap.current",
            "swap_limit" => "memory.swap.max",
            "swap_max_usage" => "memory.swap.peak",
            "workingset_refault" | "workingset_activate" => {
                return Some(stat[&format!("{name}_anon")] + stat[&format!("{name}_file")]);
            }
            _ => return None,
        };
        Some(number(bundle, line))
    });
    assert!(told.memory.shmem > 1 << 20 && told.memory.file > 1 << 20 && told.memory.pgfault > 0, "{told}");
    assert_eq!(told.memory.usage_limit, 64 << 20);
    let events = flat(bundle, "memory.events");
    assert_eq!(events.len(), 6, "{events:?}");
    assert_eq!(numbers(&*told.memory_events), events);
    same(&numbers(&*told.cpu), around.map(|around| &around.cpu), |_, _| None);
    assert!(told.cpu.usage_usec > 0);
    assert_eq!((told.pids.current, told.pids.limit), (1, 20));
    for (psi, name) in
        [(&told.cpu.psi, "cpu.pressure"), (&told.memory.psi, "memory.pressure"), (&told.io.psi, "io.pressure")]
    {
        let text = file(bundle, name).filter(|text| !text.is_empty());
        assert_eq!(psi.is_some(), text.is_some(), "{name}");
        let total = text.as_deref().and_then(|text| text.lines().next()?.rsplit_once("total=")?.1.parse().ok());
        assert_eq!(psi.as_ref().map(|psi| psi.some.total), total, "{name}");
    }
    let devices = around[0].devices..=around[1].devices;
    assert!(devices.contains(&told.io.usage.len()), "{devices:?} {told}");
    let sizes: Vec<&str> = told.hugetlb.iter().map(|entry| &*entry.pagesize).collect();
    assert_eq!(sizes.contains(&"2MB"), file(bundle, "hugetlb.2MB.current").is_some());
    assert!(told.hugetlb.iter().all(|entry| entry.max == number(bundle, &format!("hugetlb.{}.max", entry.pagesize))));
}

#[test]
fn asking_again_opens_nothing_that_stays() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        let shim = world.pid().await.unwrap();
        let before = descriptors(shim);
        world.stats("one").await.unwrap();
        let kept = descriptors(shim) - before;
        // Of the seven controllers with numbers, or one for all.
        let most = if is_v2() { 1 } else { 7 };
        assert!((1..=most).contains(&kept), "{kept} descriptors");
        let memory = status(shim, "VmRSS");
        for _ in 0..200 {
            world.stats("one").await.unwrap();
        }
        assert_eq!(descriptors(shim), before + kept);
        let grown = status(shim, "VmRSS") - memory;
        assert!(grown <= 64, "{grown} KiB");

        // They are in nobody's way, and mean no other cgroup of the same path.
        world.kill("one", "", libc::SIGKILL, false).await.unwrap();
        world.wait("one", "").await.unwrap();
        if !by_systemd() {
            // Which removes it at once.
            world.stats("one").await.unwrap();
        }
        let dirs = bundle.cgroups();
        let remove = |dir: &PathBuf| fs::remove_dir(dir).is_ok() || !dir.exists();
        until("the cgroup is removed", || dirs.iter().all(remove)).await;
        refused(world.stats("one").await, Code::NOT_FOUND, &["one", "gone"]);
        if !by_systemd() {
            dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
            refused(world.stats("one").await, Code::NOT_FOUND, &["one", "gone"]);
        }
        world.delete("one", "").await.unwrap();
        assert!(descriptors(shim) < before, "those of the container are closed");
        world.close().await;
    });
}

/// Runs a program that a test's own part in this is left to.
fn run(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().map_err(|e| format!("{line}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

#[test]
fn interfaces_of_its_own_network_namespace_are_told() {
    block_on(async {
        let (world, _bundle) = World::with("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        world.create(&_bundle, &Io::null()).await.unwrap();
        let pid = world.start("one", "").await.unwrap().pid;
        let (here, there) = (format!("s{}h", std::process::id()), format!("s{}c", std::process::id()));
        if let Err(e) = run(&format!("ip link add {here} type veth peer name {there} netns {pid}")) {
            assert!(e.contains("Unknown device type") || e.contains("not supported"), "{e}");
            common::skipped("interfaces_of_its_own_network_namespace_are_told", "this kernel has no veth devices");
            world.end("one").await;
            return world.close().await;
        }
        run(&format!("ip address add 192.0.2.1/24 dev {here}")).unwrap();
        run(&format!("ip link set {here} up")).unwrap();
        run(&format!("nsenter -t {pid} -n ip link set {there} up")).unwrap();
        let told = async || match metrics(&world).await {
            Metrics::V1(told) => told.network.iter().map(|i| (i.name.clone(), numbers(i))).collect::<Vec<_>>(),
            Metrics::V2(told) => told.network.iter().map(|i| (i.name.clone(), numbers(i))).collect(),
        };
        let stat = |file: &str| {
            let path = format!("/sys/class/net/{here}/statistics/{file}");
            fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap()
        };
        // Nobody answers: each of these is a question to the other end.
        until("something is sent", || {
            let _ = std::net::UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.2:9");
            stat("tx_packets") > 0
        })
        .await;
        let before = [stat("tx_bytes"), stat("tx_packets")];
        let told = told().await;
        let after = [stat("tx_bytes"), stat("tx_packets")];
        assert_eq!(told.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&there], "the loopback interface is none");
        let numbers = &told[0].1;
        for (index, name) in ["rx_bytes", "rx_packets"].into_iter().enumerate() {
            assert!(
                (before[index]..=after[index]).contains(&numbers[name]),
                "{name}: {before:?} {numbers:?} {after:?}"
            );
        }
        assert_eq!(numbers.len(), 8);
        world.end("one").await;
        world.close().await;
    });
}

/// The kernel takes nearly any bytes for the name of an interface, of who may do as he likes in his own network namespace.
#[test]
fn an_interface_of_any_name_keeps_nothing_else_from_being_told() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        let pid = world.run(&bundle).await;
        let odd = OsStr::from_bytes(b"x\xff");
        let rename = |args: &[&OsStr]| {
            let ip = ["-t", &pid.to_string(), "-n", "ip", "link", "set", "lo"].map(OsString::from);
            assert!(Command::new("nsenter").args(ip).args(args).status().unwrap().success());
        };
        rename(&["down".as_ref()]);
        rename(&["name".as_ref(), odd]);
        let names: Vec<String> = match metrics(&world).await {
            Metrics::V1(told) => told.network.iter().map(|i| i.name.clone()).collect(),
            Metrics::V2(told) => told.network.iter().map(|i| i.name.clone()).collect(),
        };
        assert_eq!(names, ["x\u{fffd}"]);
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn interfaces_of_the_host_are_not() {
    block_on(async {
        let (world, _bundle) =
            World::running("one", |bundle| bundle.without_namespace("network").args(&["sleep", "1000"])).await;
        assert!(fs::read_to_string("/proc/net/dev").unwrap().lines().count() > 2);
        match metrics(&world).await {
            Metrics::V1(told) => assert!(told.network.is_empty(), "{told}"),
            Metrics::V2(told) => assert!(told.network.is_empty(), "{told}"),
        }
        world.end("one").await;
        world.close().await;
    });
}
