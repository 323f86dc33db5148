//! linux.netDevices: the host's network devices in a container, seen from inside.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use common::block_on;
use common::bundle::Bundle;
use common::container::{Ended, Host, refused};
use common::stdio::Io;
use common::world::World;
use serde_json::{Value, json};
use ttrpc::Code;

/// Runs ip(8), which a test's own part in this is left to.
fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split_whitespace()).output().expect("ip(8), of iproute2, is needed");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// One of this process's own.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether this kernel has no pairs of devices, which the test `name` needs.
fn lacks_pairs(name: &str) -> bool {
    let device = format!("d{}p{}", std::process::id(), number());
    let made = Command::new("ip").args(["link", "add", &device, "type", "veth"]).output().expect("ip(8) of iproute2");
    let text = String::from_utf8_lossy(&made.stderr);
    if made.status.success() {
        ip(&format!("link delete {device}"));
        return false;
    }
    assert!(text.contains("Unknown device type") || text.contains("not supported"), "{text}");
    common::skipped(name, "this kernel has no veth devices");
    true
}

fn is_here(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// A pair of devices of the host's under names of its own; taken away at the end, if it is there still.
struct Pair {
    /// The one that is to be moved.
    moved: String,
    /// Its peer, which stays.
    stays: String,
}

impl Pair {
    fn new() -> Pair {
        let number = number();
        let name = |end: &str| format!("d{}{end}{number}", std::process::id());
        let pair = Pair { moved: name("m"), stays: name("s") };
        ip(&format!("link add {} type veth peer name {}", pair.moved, pair.stays));
        pair
    }

    /// Set up, with addresses of all kinds: of these two stay with it.
    fn with_addresses() -> Pair {
        let pair = Pair::new();
        let moved = &pair.moved;
        ip(&format!("link set {moved} address 02:00:00:00:12:34 mtu 1345 up"));
        ip(&format!("link set {} up", pair.stays));
        ip(&format!("address add 192.0.2.7/25 broadcast 192.0.2.127 dev {moved}"));
        ip(&format!("address add 2001:db8::7/65 dev {moved} nodad"));
        // Not global, or not for ever.
        ip(&format!("address add 198.51.100.1/24 scope link dev {moved}"));
        ip(&format!("address add 203.0.113.1/24 valid_lft 1000 preferred_lft 1000 dev {moved}"));
        pair
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.moved, &self.stays] {
            if is_here(name) {
                let _ = Command::new("ip").args(["link", "delete", name]).status();
            }
        }
    }
}

fn with(devices: Value) -> impl FnOnce(Bundle) -> Bundle {
    |bundle| bundle.edit(|spec| spec["linux"]["netDevices"] = devices)
}

/// A network namespace for a container to join: that of a process which does nothing.
struct Netns(Child);

impl Netns {
    fn new() -> Netns {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        // SAFETY: one system call between fork and execve.
        unsafe {
            sleep.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        // It returns when sleep has been executed, and so after the unshare.
        Netns(sleep.spawn().expect("sleep"))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }

    /// ip(8) in it.
    fn ip(&self, line: &str) -> String {
        let net = format!("--net={}", self.path().display());
        let output =
            Command::new("nsenter").args([&net, "ip"]).args(line.split_whitespace()).output().expect("nsenter");
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn join(bundle: Bundle, netns: &Path) -> Bundle {
    bundle.edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.iter_mut().find(|entry| entry["type"] == "network").expect("network")["path"] = json!(netns);
    })
}

/// What busybox' ip shows of a device by itself, and what of it is what is to be kept.
const LOOK: &str = "ip -o link show dev $D; ip -o -4 address show dev $D; ip -o -6 address show dev $D scope global; \
     cat /sys/class/net/$D/mtu /sys/class/net/$D/address; ls /sys/class/net";

fn looked(ended: &Ended, name: &str) {
    let text = &ended.stdout;
    assert!(ended.status == 0 && ended.stderr.is_empty(), "{ended:#?}");
    let links = text.lines().next().unwrap_or_default();
    assert!(links.contains("<BROADCAST,MULTICAST,UP,LOWER_UP") || links.contains(",UP"), "{links}");
    let addresses: Vec<_> = text.lines().filter(|line| line.contains(" inet")).collect();
    assert_eq!(addresses.len(), 2, "{text}");
    assert!(addresses[0].contains(" inet 192.0.2.7/25 brd 192.0.2.127 scope global"), "{text}");
    assert!(addresses[0].trim_end().trim_end_matches('\\').contains(&format!("scope global {name}")), "{text}");
    assert!(addresses[1].contains(" inet6 2001:db8::7/65 scope global"), "{text}");
    let rest: Vec<_> = text.lines().skip_while(|line| *line != "1345").collect();
    assert_eq!(rest[..2], ["1345", "02:00:00:00:12:34"], "{text}");
    let mut names = rest[2..].to_vec();
    names.sort_unstable();
    let mut meant = [name, "lo"];
    meant.sort_unstable();
    assert_eq!(names, meant, "{text}");
}

/// Proves: linux.netDevices.*.name
#[test]
fn a_device_is_moved_with_its_addresses_and_set_up() {
    if lacks_pairs("a_device_is_moved_with_its_addresses_and_set_up") {
        return;
    }
    for (name, user_namespace) in [(None, false), (Some("eth0"), false), (Some("eth%d"), false), (Some("eth0"), true)] {
        let pair = Pair::with_addresses();
        block_on(async {
            let host = Host::new();
            let device = name.map_or(json!({}), |name| json!({"name": name}));
            let inside = name.map_or(pair.moved.clone(), |name| name.replace("%d", "0"));
            let mut bundle = host.bundle("one");
            if user_namespace {
                bundle = bundle.user_namespace(7000);
            }
            let bundle = with(json!({&pair.moved: device}))(bundle.script(&format!("D={inside}; {LOOK}")));
            let container = host.create(&bundle).await;
            assert!(!is_here(&pair.moved) && is_here(&pair.stays));
            looked(&container.run().await, &inside);
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
        // A virtual device ends with its namespace, and its peer with it.
        let ended = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            !is_here(&pair.stays)
        });
        assert!(ended && !is_here(&pair.moved));
    }
}

/// Packets go through it: the container's other end answers.
#[test]
fn a_container_is_reached_through_its_device() {
    if lacks_pairs("a_container_is_reached_through_its_device") {
        return;
    }
    let pair = Pair::new();
    ip(&format!("address add 192.0.2.129/30 dev {}", pair.moved));
    ip(&format!("address add 192.0.2.130/30 dev {}", pair.stays));
    ip(&format!("link set {} up", pair.stays));
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").script("ping -c 1 -W 30 192.0.2.130 >/dev/null && echo answered");
        let bundle = with(json!({&pair.moved: {"name": "eth0"}}))(bundle);
        assert_eq!(host.run(&bundle).await.ok(), "answered\n");
    });
}

/// Kernel parameters of a device are set when it is there.
#[test]
fn a_sysctl_may_be_a_devices() {
    if lacks_pairs("a_sysctl_may_be_a_devices") {
        return;
    }
    let pair = Pair::new();
    let ended = common::container::run(|bundle| {
        let bundle = bundle.script("cat /proc/sys/net/ipv4/conf/eth0/forwarding");
        with(json!({&pair.moved: {"name": "eth0"}}))(bundle)
            .edit(|spec| spec["linux"]["sysctl"] = json!({"net.ipv4.conf.eth0.forwarding": "1"}))
    });
    assert_eq!(ended.ok(), "1\n");
}

/// In one that is joined a template finds a free number; the device stays when the container goes.
#[test]
fn a_joined_namespace_keeps_its_devices() {
    if lacks_pairs("a_joined_namespace_keeps_its_devices") {
        return;
    }
    let netns = Netns::new();
    let (first, second) = (Pair::with_addresses(), Pair::new());
    netns.ip("link add eth0 type veth peer name other");
    block_on(async {
        let host = Host::new();
        let devices = json!({&first.moved: {"name": "eth%d"}, &second.moved: {"name": "eth%d"}});
        let bundle = with(devices)(join(host.bundle("one"), &netns.path())).script("ls /sys/class/net");
        let mut names = host.run(&bundle).await.lines();
        names.sort_unstable();
        assert_eq!(names, ["eth0", "eth1", "eth2", "lo", "other"]);
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
    let address = netns.ip("-o -4 address show");
    assert!(address.contains("inet 192.0.2.7/25 brd 192.0.2.127 scope global eth"), "{address}");
    assert!(is_here(&first.stays) && is_here(&second.stays));
}

/// An init that joins a pid namespace is born last of all: it is its maker who has the network namespace meanwhile.
#[test]
fn an_init_in_a_joined_pid_namespace_has_its_devices() {
    if lacks_pairs("an_init_in_a_joined_pid_namespace_has_its_devices") {
        return;
    }
    let pair = Pair::with_addresses();
    block_on(async {
        let (world, first) = World::with("first", |bundle| bundle.args(&["sleep", "1000"])).await;
        let path = format!("/proc/{}/ns/pid", world.run(&first).await);
        let bundle = Bundle::new(&world.scratch, "second").args(&["sleep", "1000"]).edit(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
            namespaces.push(json!({"type": "pid", "path": path}));
        });
        let init = world.create(&with(json!({&pair.moved: {"name": "eth7"}}))(bundle), &Io::null()).await.unwrap().pid;
        let table = fs::read_to_string(format!("/proc/{init}/net/dev")).unwrap();
        assert!(table.contains("eth7:") && !is_here(&pair.moved), "{table}");
        world.start("second", "").await.unwrap();
        world.end("second").await;
        world.end("first").await;
        world.close().await;
    });
}

/// The second of two cannot be had: the first is where it was and as it was.
#[test]
fn what_fails_moves_nothing() {
    if lacks_pairs("what_fails_moves_nothing") {
        return;
    }
    let netns = Netns::new();
    netns.ip("link add eth0 type veth peer name eth1");
    let pair = Pair::with_addresses();
    let here = || {
        let link = ip(&format!("-o link show dev {}", pair.moved));
        let link = ["UP", "mtu 1345", "02:00:00:00:12:34"].map(|word| link.contains(word));
        let addresses = ip(&format!("-o address show dev {}", pair.moved));
        let words = |line: &str| {
            line.split_whitespace().skip(2).take_while(|word| *word != "valid_lft").collect::<Vec<_>>().join(" ")
        };
        let mut addresses: Vec<_> = addresses.lines().map(words).filter(|line| !line.contains("fe80:")).collect();
        addresses.sort_unstable();
        (link, addresses)
    };
    let before = here();
    assert_eq!((before.0, before.1.len()), ([true; 3], 4), "{before:?}");
    let moved = pair.moved.as_str();
    // Names that are judged first: no such device, a name that is taken.
    let missing = refused(with(json!({moved: {}, "zz-no-such": {}})));
    missing.names(Code::FAILED_PRECONDITION, &["linux.netDevices[zz-no-such]", "no such device"]);
    assert_eq!(here(), before);
    let taken = refused(|bundle| join(with(json!({moved: {"name": "eth0"}}))(bundle), &netns.path()));
    taken.names(Code::FAILED_PRECONDITION, &[&format!("linux.netDevices[{moved}]"), "has a device called"]);
    assert_eq!(here(), before);
    // One that the kernel never moves: found out when the first is there already.
    let lo = refused(with(json!({moved: {"name": "eth7"}, "lo": {"name": "zz0"}})));
    lo.names(Code::FAILED_PRECONDITION, &["linux.netDevices[lo]", "RTM_NEWLINK"]);
    assert_eq!(here(), before);
}

#[test]
fn what_cannot_be_is_refused_before_any_effect() {
    if lacks_pairs("what_cannot_be_is_refused_before_any_effect") {
        return;
    }
    for (devices, words) in [
        (json!({"a/b": {}}), "is no name of a device"),
        (json!({"a": {"name": "sixteen--letters"}}), "linux.netDevices[a].name"),
        (json!({"a": {"name": "x"}, "b": {"name": "x"}}), "two devices are to be called"),
    ] {
        refused(with(devices)).names(Code::INVALID_ARGUMENT, &[words]);
    }
    let hosts = |bundle: Bundle| with(json!({"a": {}}))(bundle.without_namespace("network"));
    refused(hosts).names(Code::INVALID_ARGUMENT, &["linux.netDevices needs a network namespace"]);
    // By a path, the same.
    let pair = Pair::new();
    let ours = |bundle: Bundle| join(with(json!({&pair.moved: {}}))(bundle), Path::new("/proc/self/ns/net"));
    refused(ours).names(Code::INVALID_ARGUMENT, &["linux.netDevices", "is the host's"]);
    assert!(is_here(&pair.moved));
    assert!(fs::metadata("/proc/self/ns/net").is_ok());
}
