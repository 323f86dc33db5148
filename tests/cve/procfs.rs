//! What is written to or read from /proc is a procfs: not an image's, a volume's or another container's idea of one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ttrpc::Code;

use common::attacker::with_capability;
use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, refused, run};
use common::driver::{Shim, StartOptions};
use common::events::EventSink;
use common::scratch::Scratch;
use common::shim_binary;
use common::stdio::Io;
use common::world::SOON;

/// What differs from busybox in the image of the bundle "one".
fn image(host: &Host) -> PathBuf {
    host.scratch.dir().join("snapshots/one/fs")
}

fn tmpfs(destination: &str) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"})
}

fn bind(source: &Path, destination: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]})
}

/// CVE-2019-16884: a volume of the image's on /proc took AppArmor's label for its own file. Here nothing but proc is
/// mounted on /proc, before it or after it, and nothing inside.
#[test]
fn cve_2019_16884_mounts_on_proc_and_inside_are_refused() {
    let outside = Scratch::new();
    let (dir, file) = (outside.dir(), outside.dir().join("file"));
    fs::write(&file, "").unwrap();
    let mounts = [
        tmpfs("/proc"),
        bind(dir, "/proc"),
        bind(dir, "//proc/."),
        bind(dir, "/link"),
        tmpfs("/proc/sys"),
        tmpfs("/proc/../proc/sys"),
        tmpfs("/link/sys"),
        bind(&file, "/proc/self/attr/current"),
        bind(&file, "/proc/self/attr/exec"),
        bind(dir, "/proc/self"),
        bind(dir, "/proc/1"),
        bind(&file, "/proc/sys/kernel/core_pattern"),
    ];
    for mount in &mounts {
        let destination = mount["destination"].as_str().unwrap();
        for first in [false, true] {
            // Before proc is mounted, what is inside or behind the link is but the image's own directory.
            if first && destination != "/proc" {
                continue;
            }
            block_on(async {
                let host = Host::new();
                let bundle = host.bundle("one").edit(|spec| {
                    let mounts = spec["mounts"].as_array_mut().unwrap();
                    mounts.insert(if first { 0 } else { mounts.len() }, mount.clone());
                });
                symlink("/proc", image(&host).join("link")).unwrap();
                let refusal = host.refused(&bundle).await;
                refusal.names(Code::INVALID_ARGUMENT, &["mounting", destination, "proc"]);
            });
        }
    }
}

/// CVE-2023-28642: with a /proc that is a link into a volume, and mounts in a certain order, runc wrote AppArmor's label
/// into the volume. Here the link is refused whatever is mounted, in whatever order.
#[test]
fn cve_2023_28642_no_order_of_mounts_makes_a_link_be_proc() {
    for before in [true, false] {
        for source in ["tmpfs", "volume", "proc"] {
            block_on(async {
                let host = Host::new();
                let volume = host.scratch.dir().join("volume");
                fs::create_dir_all(volume.join("proc/self/attr")).unwrap();
                let mount = match source {
                    "tmpfs" => tmpfs("/data"),
                    "volume" => bind(&volume, "/data"),
                    _ => json!({"destination": "/data/proc", "type": "proc", "source": "proc"}),
                };
                let bundle = host.bundle("one").plain_rootfs().edit(|spec| {
                    let mounts = spec["mounts"].as_array_mut().unwrap();
                    mounts.insert(if before { 0 } else { mounts.len() }, mount);
                });
                fs::remove_dir(bundle.rootfs_dir().join("proc")).unwrap();
                symlink("data/proc", bundle.rootfs_dir().join("proc")).unwrap();
                let refusal = host.refused(&bundle).await;
                assert!(refusal.message.contains("/proc"), "{source}, before: {before}: {refusal:?}");
            });
        }
    }
}

/// CVE-2025-52881: what an image has at /proc, and what another container of the same mount namespace has mounted there,
/// took runc's writes elsewhere, to /proc/sysrq-trigger or core_pattern of the host. Here sysctls go to a procfs that is
/// mounted nowhere, and what is the host's is refused by its name.
#[test]
fn cve_2025_52881_sysctls_go_to_the_true_procfs() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").script("cat /real/sys/net/ipv4/ip_default_ttl").edit(|spec| {
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "77"});
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/proc");
            mounts.push(json!({"destination": "/real", "type": "bind", "source": "/proc", "options": ["bind"]}));
            spec["linux"]["maskedPaths"] = json!([]);
            spec["linux"]["readonlyPaths"] = json!([]);
        });
        let fake = image(&host).join("proc/sys/net/ipv4");
        fs::create_dir_all(&fake).unwrap();
        fs::write(fake.join("ip_default_ttl"), "untouched").unwrap();
        assert_eq!(host.run(&bundle).await.ok(), "77\n");
        assert_eq!(fs::read_to_string(fake.join("ip_default_ttl")).unwrap(), "untouched");
    });
    let core_pattern = || fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = core_pattern();
    for name in ["kernel.core_pattern", "net/../kernel/core_pattern", "net/../../sysrq-trigger", "net//../kernel/x"] {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["sysctl"] = json!({name: "|/evil"})));
        refusal.names(Code::INVALID_ARGUMENT, &["linux.sysctl", name]);
    }
    assert_eq!(core_pattern(), before);
}

/// In a running container that may mount: real proc at /real, and at /proc one of links, to the file `sink`.
const FALSE_PROC: &str = "mkdir /real; mount -t proc proc /real; mount -t tmpfs tmpfs /proc
    mkdir -p /proc/self /proc/sys/net/ipv4
    for file in self/oom_score_adj self/attr sys/net/ipv4/ip_default_ttl; do ln -s /sink /proc/$file; done
    for pid in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do ln -s self /proc/$pid; done
    echo untouched > /sink; echo ready; sleep 1000";

/// CVE-2025-52881, by the tmpfs of links over /proc: for an exec into the container that has it, and for a container that
/// joins its mount namespace.
#[test]
fn cve_2025_52881_links_that_are_mounted_on_proc_take_no_write() {
    block_on(async {
        let host = Host::new();
        let bundle = with_capability(host.bundle("one"), "CAP_SYS_ADMIN").script(FALSE_PROC);
        let mut container = host.start(&bundle).await;
        container.says("ready").await;
        let sink = || fs::read_to_string(bundle.rootfs_dir().join("sink")).unwrap();
        assert_eq!(sink(), "untouched\n");

        let mut process = bundle.process(&["sh", "-c", "read -r score < /real/self/oom_score_adj; echo $score"]);
        process["oomScoreAdj"] = json!(567);
        assert_eq!(container.exec("x", &process).await.ok(), "567\n");

        let joined = json!({"type": "mount", "path": format!("/proc/{}/ns/mnt", container.pid)});
        let other = host.bundle("two").script("sleep 1000").edit(|spec| {
            spec["process"]["oomScoreAdj"] = json!(568);
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "77"});
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            *namespaces.iter_mut().find(|namespace| namespace["type"] == "mount").unwrap() = joined;
            for field in ["maskedPaths", "readonlyPaths"] {
                spec["linux"][field] = json!([]);
            }
        });
        let pid = container.shim.create(&other, &Io::null()).await.unwrap().pid;
        container.shim.start("two", "").await.unwrap();
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "568\n");
        let mut io = Io::fifos(&host.scratch, "look");
        let look = bundle.process(&["cat", "/real/sys/net/ipv4/ip_default_ttl"]);
        container.shim.exec_to_exit("two", "look", &look, &io).await.unwrap();
        assert_eq!(io.stdout(SOON).await.unwrap(), "77\n");
        assert_eq!(sink(), "untouched\n");
        container.shim.kill("two", "", libc::SIGKILL, true).await.unwrap();
        container.shim.wait("two", "").await.unwrap();
        container.shim.delete("two", "").await.unwrap();
        container.end().await;
    });
}

/// The image's /etc/passwd, in which HOME is looked up as root and by a copy of the shim, is read if it is a file of the
/// image's: not one of proc, where it would be the shim's environment or the host's log.
#[test]
fn home_is_not_read_from_proc() {
    let home = |link: &str, hostname: &str| {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = Bundle::new(&scratch, "one").plain_rootfs().script("echo $HOME").edit(|spec| {
                spec["process"]["env"] = json!(["PATH=/bin"]);
                spec["hostname"] = json!(hostname);
            });
            let etc = bundle.rootfs_dir().join("etc");
            fs::rename(etc.join("passwd"), etc.join("other")).unwrap();
            symlink(link, etc.join("passwd")).unwrap();
            // The shim's environment has it.
            let path = format!("{}:\nroot:x:0:0::/of/the/shim:\n", std::env::var("PATH").unwrap());
            let options = StartOptions { env: vec![("PATH", path)], ..StartOptions::default() };
            let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.unwrap();
            let mut io = Io::fifos(&scratch, "one");
            shim.create(&bundle, &io).await.unwrap();
            let waiting = shim.spawn_wait("one", "").await;
            shim.start("one", "").await.unwrap();
            waiting.await.unwrap().unwrap();
            let seen = io.stdout(SOON).await.unwrap();
            shim.delete("one", "").await.unwrap();
            seen
        })
    };
    assert_eq!(home("other", "name"), "/root\n");
    for link in ["/proc/self/environ", "/proc/thread-self/environ", "../proc/self/environ"] {
        assert_eq!(home(link, "name"), "/\n", "{link}");
    }
    // Any file of proc's, were it one that anybody may read.
    assert_eq!(home("/proc/sys/kernel/hostname", "x:x:0:0::/named:"), "/\n");
}

/// A name of a directory is no longer than a path may be: the image's file is not to fill the environment.
#[test]
fn home_is_no_longer_than_a_path() {
    let home = |length: usize| {
        run(|bundle| {
            let bundle = bundle.plain_rootfs().script("echo ${#HOME}").edit(|spec| {
                spec["process"]["env"] = json!(["PATH=/bin"]);
            });
            let entry = format!("root:x:0:0::/{}:\n", "x".repeat(length - 1));
            fs::write(bundle.rootfs_dir().join("etc/passwd"), entry).unwrap();
            bundle
        })
        .ok()
    };
    assert_eq!([home(1000), home(1 << 20)], ["1000\n", "1\n"]);
}
