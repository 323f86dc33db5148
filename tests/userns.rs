//! User namespaces: new ones with mappings, joined ones, and what a container in one has and has not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, namespace_of};
use common::containerd::Containerd;
use common::driver::runc_options;
use common::mountinfo::MountLine;
use common::stdio::Io;
use common::world::{SOON, World};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use ttrpc::Code;

/// The container's root, and how many ids it has.
const ROOT: u32 = 100_000;
const COUNT: u32 = 65_536;

fn maps(outside: u32) -> Value {
    json!([{"containerID": 0, "hostID": outside, "size": COUNT}])
}

fn userns(bundle: Bundle) -> Bundle {
    bundle.user_namespace(ROOT)
}

type Change<'a> = &'a dyn Fn(&mut Value);

/// Runs a script as root of a user namespace; asserts that nothing is left.
fn run_script(script: &str, change: impl FnOnce(Bundle) -> Bundle) -> common::container::Ended {
    common::container::run(|bundle| change(userns(bundle)).script(script))
}

/// All capabilities that there are.
fn all_capabilities(spec: &mut Value) {
    let names = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
                 NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT \
                 SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
                 AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ \
                 PERFMON BPF CHECKPOINT_RESTORE";
    let all: Vec<_> = names.split_whitespace().map(|name| format!("CAP_{name}")).collect();
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(all);
    }
}

/// Proves: linux.uidMappings.{containerID,hostID,size}, linux.gidMappings
#[test]
fn ids_are_the_mappings() {
    let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; cat /proc/self/setgroups; id -u; id -g; id -G; \
                  echo x > /new; stat -c %u:%g /new /etc";
    block_on(async {
        let host = Host::new();
        let bundle = userns(host.bundle("one")).script(script).edit(|spec| {
            spec["linux"]["uidMappings"] = json!([
                {"containerID": 0, "hostID": ROOT, "size": 1000},
                {"containerID": 1000, "hostID": 5000, "size": 1},
            ]);
        });
        let container = host.create(&bundle).await;
        assert_ne!(container.namespace("user"), namespace_of("self", "user"));
        let status = container.proc("status");
        assert!(status.contains(&format!("\nUid:\t{0}\t{0}\t{0}\t{0}\n", ROOT)), "{status}");
        assert!(status.contains(&format!("\nGid:\t{0}\t{0}\t{0}\t{0}\n", ROOT)), "{status}");
        // /etc is the image's, of the host's root, who is nobody here.
        let expected = format!(" 0 {ROOT} 1000\n 1000 5000 1\n 0 {ROOT} {COUNT}\nallow\n0\n0\n0\n0:0\n65534:65534\n");
        assert_eq!(container.run().await.ok(), expected);
        let made = fs::metadata(host.scratch.dir().join("snapshots/one/fs/new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (ROOT, ROOT));
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

#[test]
fn a_user_with_groups_is_mapped() {
    let script =
        "id -u; id -g; id -G; echo x > /dev/stderr; echo y > /proc/self/fd/1; stat -L -c %u:%g /proc/self/fd/1";
    let ended = run_script(script, |bundle| {
        bundle.edit(|spec| spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 8]}))
    });
    // By their paths too: the pipes are the user's, as the host sees him.
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("1000\n1001\n1001 7 8\ny\n1000:1001\n", "x\n"));
}

/// Each namespace that is made is the user namespace's: what only its owner may do can be done.
#[test]
fn root_has_its_own_namespaces_and_nothing_of_the_hosts() {
    let kernel_before = fs::read_to_string("/proc/sys/kernel/printk").unwrap();
    let script = "grep ^CapEff /proc/self/status; hostname inside && hostname; ip link set lo down && echo link
        mount -t tmpfs x /tmp && echo mounted; mount -t proc p /home && echo proc; echo 1 > /proc/sys/net/ipv4/ip_forward && echo net
        mknod /run/n c 1 3 2>/dev/null || echo no node; (echo 1 1 1 1 > /proc/sys/kernel/printk) 2>/dev/null || echo no kernel
        (echo h > /proc/sysrq-trigger) 2>/dev/null || echo no sysrq; (cat /proc/kcore | head -c 1) 2>/dev/null || echo no kcore
        chroot /proc/1/root true && echo own; ls /proc/1/cwd/ >/dev/null && echo cwd";
    let ended = run_script(script, |bundle| {
        bundle.edit(all_capabilities).edit(|spec| {
            spec["linux"]["readonlyPaths"] = json!([]);
            spec["linux"]["maskedPaths"] = json!([]);
        })
    });
    let expected =
        "CapEff:\t000001ffffffffff\ninside\nlink\nmounted\nproc\nnet\nno node\nno kernel\nno sysrq\nown\ncwd\n";
    assert_eq!(ended.stdout.replace("no kcore\n", ""), expected, "{ended:#?}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/printk").unwrap(), kernel_before);
}

#[test]
fn devices_are_nodes_of_the_containers_own() {
    let status = |path: &str| fs::metadata(path).map(|m| (m.mode(), m.uid(), m.gid(), m.rdev(), m.ino())).unwrap();
    let before = ["/dev/null", "/dev/zero", "/dev/tty"].map(status);
    let script = "cd /dev; stat -c '%n %A %t:%T %u:%g' null zero full random urandom tty own pipe; echo x > null
        head -c 4 zero | wc -c; head -c 4 random | wc -c; (echo x > full) 2>/dev/null || echo full
        chmod 600 null; chown 5:5 null; stat -c '%a %u:%g' null; readlink ptmx; cat /proc/timer_list | wc -c";
    let change = |spec: &mut Value| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o622, "uid": 7},
        ]);
    };
    let expected = "null crw-rw-rw- 1:3 0:0\nzero crw-rw-rw- 1:5 0:0\nfull crw-rw-rw- 1:7 0:0\nrandom crw-rw-rw- 1:8 0:0\n\
                    urandom crw-rw-rw- 1:9 0:0\ntty crw-rw-rw- 5:0 0:0\nown crw-r----- 1:5 7:8\npipe prw--w--w- 0:0 7:0\n\
                    4\n4\nfull\n600 5:5\npts/ptmx\n0\n";
    // Also where root of the container is root of the host, and might change what is the host's.
    for outside in [ROOT, 0] {
        let ended = common::container::run(|bundle| bundle.user_namespace(outside).edit(change).script(script));
        assert_eq!(ended.ok(), expected, "{outside}");
        assert_eq!(["/dev/null", "/dev/zero", "/dev/tty"].map(status), before, "{outside}");
    }
}

/// What the host has on a mount stays on it; what the specification asks for comes on top.
#[test]
fn bind_mounts_keep_the_flags_of_their_sources() {
    block_on(async {
        let host = Host::new();
        let volume = HostMount::new(&host, "volume", "nosuid,nodev,noexec");
        let locked = HostMount::new(&host, "locked", "ro");
        // Nobody but the host's root may come near it.
        fs::set_permissions(volume.0.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
        let bind = |destination: &str, source: &Path, options: Value| json!({"destination": destination, "type": "bind", "source": source, "options": options});
        let script = "for d in vol ro file locked; do grep \" /$d \" /proc/self/mountinfo | cut -d' ' -f6; done
            cat /vol/file /file; mount -o remount,bind,exec,suid,dev /vol 2>/dev/null || echo locked
            mount -o remount,bind,rw /locked 2>/dev/null || echo locked";
        let bundle = userns(host.bundle("one"))
            .edit(all_capabilities)
            .mount(bind("/vol", &volume.0, json!(["rbind", "rprivate"])))
            .mount(bind("/ro", &volume.0, json!(["rbind", "ro"])))
            .mount(bind("/file", &volume.0.join("file"), json!(["bind"])))
            .mount(bind("/locked", &locked.0, json!(["rbind"])))
            .script(script);
        let out = host.run(&bundle).await.ok();
        let expected = "rw,nosuid,nodev,noexec,relatime\nro,nosuid,nodev,noexec,relatime\nrw,nosuid,nodev,noexec,relatime\n\
                        ro,relatime\nhello\nhello\nlocked\nlocked\n";
        assert_eq!(out, expected);
        // To ask for less is an error, and not a wish that is passed over.
        let bundle = userns(host.bundle("two")).mount(bind("/locked", &locked.0, json!(["rbind", "rw"])));
        let refusal = host.refused(&bundle).await;
        assert!(refusal.message.contains("/locked") && refusal.message.contains("cannot clear"), "{refusal:?}");
        // Nor to uncover what is below a mount.
        let parent = volume.0.parent().unwrap();
        let bundle = userns(host.bundle("four")).mount(bind("/parent", parent, json!(["bind"])));
        let refusal = host.refused(&bundle).await;
        assert!(refusal.message.contains("/parent") && refusal.message.contains("by rbind"), "{refusal:?}");
        let bundle = userns(host.bundle("three")).mount(bind("/x", Path::new("/no/such/source"), json!(["rbind"])));
        host.refused(&bundle)
            .await
            .names(Code::INVALID_ARGUMENT, &["opening the host's sources", "/x", "/no/such/source"]);
    });
}

/// A tmpfs of the host's with a file in it, until it is dropped.
struct HostMount(PathBuf);

impl HostMount {
    fn new(host: &Host, name: &str, options: &str) -> HostMount {
        let path = host.scratch.dir().join("private").join(name);
        fs::create_dir_all(&path).unwrap();
        let mount = |options: &str| {
            let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status().unwrap();
            assert!(done.success());
        };
        mount("mode=755");
        fs::write(path.join("file"), "hello\n").unwrap();
        mount(&format!("remount,{options}"));
        HostMount(path)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// More than one message takes.
#[test]
fn three_hundred_binds_arrive_in_their_order() {
    block_on(async {
        let host = Host::new();
        let mut bundle = userns(host.bundle("one")).script("cat /m/*/name");
        let mounts: Vec<_> = (100..400).map(|n| host.scratch.dir().join("sources").join(n.to_string())).collect();
        bundle = bundle.edit(|spec| {
            for source in &mounts {
                fs::create_dir_all(source).unwrap();
                let name = source.file_name().unwrap().to_str().unwrap();
                fs::write(source.join("name"), format!("{name}\n")).unwrap();
                let mount = json!({"destination": format!("/m/{name}"), "source": source, "options": ["rbind"]});
                spec["mounts"].as_array_mut().unwrap().push(mount);
            }
        });
        let expected: String = (100..400).map(|n| format!("{n}\n")).collect();
        assert_eq!(host.run(&bundle).await.ok(), expected);
    });
}

#[test]
fn the_root_can_be_read_only_and_the_bundle_closed() {
    block_on(async {
        let host = Host::new();
        let bundle = userns(host.bundle("one")).edit(|spec| spec["root"]["readonly"] = json!(true));
        let bundle =
            bundle.script("touch /x 2>/dev/null || echo read-only; touch /run/x && echo run; pwd; ls /dev/shm | wc -l");
        fs::set_permissions(bundle.dir(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(host.run(&bundle).await.ok(), "read-only\nrun\n/\n0\n");
    });
}

fn no_pivot_root() -> Any {
    let options = containerd_shim_protos::shim::oci::Options { no_pivot_root: true, ..Default::default() };
    Any { value: options.write_to_bytes().unwrap(), ..runc_options("") }
}

#[test]
fn the_mounts_are_those_of_the_specification_alone() {
    for no_pivot in [false, true] {
        block_on(async {
            let scratch = common::scratch::Scratch::new();
            let sink = common::events::EventSink::start(&scratch);
            let bundle = userns(Bundle::new(&scratch, "one")).script("cat /proc/self/mountinfo");
            let options = common::driver::StartOptions { options: no_pivot.then(no_pivot_root), ..Default::default() };
            let shim = common::driver::Shim::start_with(&common::shim_binary(), &bundle, &sink, options).await.unwrap();
            let mut io = Io::fifos(&scratch, "one");
            shim.create(&bundle, &io).await.unwrap();
            shim.start("one", "").await.unwrap();
            assert_eq!(shim.within(SOON).wait("one", "").await.unwrap().exit_status, 0);
            let text = io.stdout(SOON).await.unwrap();
            shim.delete("one", "").await.unwrap();
            let lines: Vec<MountLine> = common::mountinfo::parse(&text);
            assert!(lines.iter().any(|line| line.point == "/dev/pts" && line.fstype == "devpts"), "{text}");
            // Without pivot_root the host's are there, out of sight: all of those that can be seen lie below "/".
            let known = ["/proc", "/dev", "/sys", "/run"];
            for line in &lines {
                let below = known.iter().any(|known| Path::new(&line.point).starts_with(known));
                assert!(below || line.point == "/", "{}: {text}", line.point);
            }
        });
    }
}

/// A hard limit that this process could not give itself, where it has CAP_SYS_RESOURCE; else the one that it has.
fn high_limit() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let may_raise = u64::from_str_radix(effective, 16).unwrap() & 1 << 24 != 0;
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(1 << 20);
    if may_raise { now + 1 } else { now }
}

#[test]
fn limits_sysctls_and_the_host_name_are_set() {
    let script = "ulimit -H -n; ulimit -S -n; ulimit -c; cat /proc/sys/net/ipv4/ping_group_range; hostname; \
                  cat /proc/self/oom_score_adj; stat -c %u:%g /dev /dev/mqueue /dev/pts /dev/shm | uniq -c | tr -s ' '";
    let ended = run_script(script, |bundle| {
        bundle.edit(|spec| {
            spec["hostname"] = json!("mapped");
            spec["process"]["oomScoreAdj"] = json!(321);
            spec["process"]["rlimits"] = json!([
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": high_limit()},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ]);
            spec["linux"]["sysctl"] = json!({"net.ipv4.ping_group_range": "0 100"});
        })
    });
    assert_eq!(ended.ok(), format!("{}\n100\n0\n0\t100\nmapped\n321\n 4 0:0\n", high_limit()));
}

#[test]
fn an_exec_joins_the_user_namespace() {
    block_on(async {
        let host = Host::new();
        let bundle = userns(host.bundle("one")).args(&["sleep", "1000"]).edit(|spec| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        });
        let container = host.start(&bundle).await;
        let script = "id -u; id -G; cat /proc/self/uid_map | tr -s ' '; for n in user pid mnt net ipc uts cgroup; do \
                      [ \"$(readlink /proc/self/ns/$n)\" = \"$(readlink /proc/1/ns/$n)\" ] && echo $n; done; ulimit -H -n";
        let mut process = bundle.process(&["sh", "-c", script]);
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": high_limit()}]);
        let out = container.exec("root", &process).await.ok();
        assert_eq!(out, format!("0\n0\n 0 {ROOT} {COUNT}\nuser\npid\nmnt\nnet\nipc\nuts\ncgroup\n{}\n", high_limit()));
        process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7]});
        process["args"] =
            json!(["sh", "-c", "id -u; id -G; stat -L -c %u:%g /proc/self/fd/2; echo y > /proc/self/fd/1"]);
        assert_eq!(container.exec("user", &process).await.ok(), "1000\n1001 7\n1000:1001\ny\n");
        process["user"] = json!({"uid": COUNT, "gid": 0});
        let refusal = container.exec_refused("unmapped", &process).await;
        refusal.names(Code::INVALID_ARGUMENT, &["process.user.uid: 65536 is not mapped"]);
        // The shim came home.
        let shim = container.shim.pid().await.unwrap();
        assert_eq!(namespace_of(&shim.to_string(), "mnt"), namespace_of("self", "mnt"));
        container.end().await;
    });
}

#[test]
fn a_terminal_is_its_users() {
    block_on(async {
        let script = "tty; stat -c '%u:%g %a' $(tty); echo mine > /dev/console; echo too > /dev/tty; stty size";
        let (world, bundle) = World::with("one", |bundle| {
            userns(bundle).script(&format!("{script}; exec sleep 1000")).edit(|spec| {
                spec["process"]["terminal"] = json!(true);
                spec["process"]["consoleSize"] = json!({"width": 81, "height": 26});
            })
        })
        .await;
        let mut io = Io::terminal(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        let text = io.stdout_with("26 81", SOON).await.unwrap();
        assert_eq!(text.trim(), "/dev/pts/0\r\n0:5 620\r\nmine\r\ntoo\r\n26 81");
        let mut process = bundle.process(&["sh", "-c", "tty; stat -c '%u:%g %a' $(tty); echo too > /dev/tty"]);
        process["user"] = json!({"uid": 1000, "gid": 1000});
        let mut io = Io::terminal(&world.scratch, "exec");
        world.exec("one", "exec", &process, &io).await.unwrap();
        world.start("one", "exec").await.unwrap();
        world.within(SOON).wait("one", "exec").await.unwrap();
        assert_eq!(io.stdout(SOON).await.unwrap().trim(), "/dev/pts/1\r\n1000:5 620\r\ntoo");
        world.delete("one", "exec").await.unwrap();
        world.end("one").await;
        world.close().await;
    });
}

/// What the CRI plugin asks for: the pod's user, network, ipc and uts namespaces by path, pid and mount new.
#[test]
fn a_container_joins_the_user_namespace_of_a_pod() {
    block_on(async {
        let host = Host::new();
        let pod = userns(host.bundle("pod")).args(&["sleep", "1000"]);
        let pod = host.start(&pod).await;
        let join = |spec: &mut Value, joined: &[&str], new: &[&str]| {
            let name = |kind: &str| if kind == "network" { "net" } else { kind }.to_string();
            let path = |kind: &&str| json!({"type": kind, "path": format!("/proc/{}/ns/{}", pod.pid, name(kind))});
            let mut all: Vec<_> = joined.iter().map(path).collect();
            all.extend(new.iter().map(|kind| json!({"type": kind})));
            spec["linux"]["namespaces"] = json!(all);
        };
        let script = "echo $$; id -u; cat /proc/self/uid_map | tr -s ' '; stat -c %U:%t:%T /dev/null; mount -t proc p /home && echo proc";
        for (id, joined, new, said) in [
            ("pod", &["user", "network", "ipc", "uts"][..], &["pid", "mount"][..], None),
            // With the pod's own maps said again, and the host's namespaces beside it.
            ("maps", &["user", "network"], &["pid", "mount", "ipc", "uts"], Some(maps(ROOT))),
        ] {
            let other_host = Host::new();
            let bundle = userns(other_host.bundle(id)).edit(all_capabilities).script(script).edit(|spec| {
                join(spec, joined, new);
                spec["linux"]["uidMappings"] = said.clone().unwrap_or(json!([]));
                spec["linux"]["gidMappings"] = said.unwrap_or(json!([]));
            });
            let container = other_host.create(&bundle).await;
            for name in ["user", "net"] {
                assert_eq!(container.namespace(name), pod.namespace(name), "{id}: {name}");
            }
            for name in ["pid", "mnt"] {
                assert_ne!(container.namespace(name), pod.namespace(name), "{id}: {name}");
                assert_ne!(container.namespace(name), namespace_of("self", name), "{id}: {name}");
            }
            assert_eq!(container.run().await.ok(), format!("1\n0\n 0 {ROOT} {COUNT}\nroot:1:3\nproc\n"), "{id}");
            assert_eq!(other_host.scratch.leftovers(), [""; 0]);
        }
        // A network namespace of the host's, which nobody in the user namespace may enter: it is joined before.
        let other_host = Host::new();
        let net = other_host.bundle("net").args(&["sleep", "1000"]);
        let net = other_host.start(&net).await;
        let third_host = Host::new();
        let bundle = userns(third_host.bundle("foreign")).script("echo $$").edit(|spec| {
            join(spec, &["user"], &["mount", "pid", "ipc", "uts"]);
            let path = format!("/proc/{}/ns/net", net.pid);
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "network", "path": path}));
            spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
        });
        let container = third_host.create(&bundle).await;
        assert_eq!(container.namespace("user"), pod.namespace("user"));
        assert_eq!(container.namespace("net"), net.namespace("net"));
        assert_eq!(container.run().await.ok(), "1\n");
        net.end().await;
        // The pid namespace too (shareProcessNamespace), with an exec into it.
        let other_host = Host::new();
        let bundle = userns(other_host.bundle("shared")).args(&["sleep", "1000"]).edit(|spec| {
            join(spec, &["user", "network", "ipc", "uts", "pid"], &["mount"]);
            spec["linux"]["uidMappings"] = json!([]);
            spec["linux"]["gidMappings"] = json!([]);
        });
        let shared = other_host.start(&bundle).await;
        let out = shared.exec_script("in", "id -u; ps -o args | grep -c '[s]leep 1000'").await.ok();
        assert_eq!(out, "0\n2\n");
        shared.end().await;
        pod.end().await;
    });
}

/// Its path may lead to another one by the time that it is joined.
#[test]
fn the_user_namespace_that_is_joined_is_the_one_that_was_judged() {
    block_on(async {
        let (first_host, second_host) = (Host::new(), Host::new());
        let first = userns(first_host.bundle("first")).args(&["sleep", "1000"]);
        let second = second_host.bundle("second").user_namespace(3 * ROOT).args(&["sleep", "1000"]);
        let (first, second) = (first_host.start(&first).await, second_host.start(&second).await);
        let (world, bundle) = World::with("one", |bundle| userns(bundle).args(&["sleep", "1000"])).await;
        let link = world.scratch.dir().join("user");
        let path = |pid: u32| format!("/proc/{pid}/ns/user");
        std::os::unix::fs::symlink(path(first.pid), &link).unwrap();
        let bundle = bundle.edit(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            *namespaces.iter_mut().find(|namespace| namespace["type"] == "user").unwrap() =
                json!({"type": "user", "path": link});
        });
        // A logger is started in between, and waited for.
        let logger = world.scratch.dir().join("logger");
        let swap = format!("/bin/busybox ln -sfn {} {}", path(second.pid), link.display());
        fs::write(&logger, format!("#!/bin/busybox sh\n{swap}\nexec 5>&-; exec /bin/busybox cat <&3\n")).unwrap();
        fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
        let mut io = Io::null();
        io.stdout = format!("binary://{}", logger.display());
        let pid = world.create(&bundle, &io).await.unwrap().pid;
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(&path(second.pid)));
        assert_eq!(namespace_of(&pid.to_string(), "user"), first.namespace("user"));
        world.end("one").await;
        world.close().await;
        first.end().await;
        second.end().await;
    });
}

/// What stops every process that it may, in the host's pid namespace, stops those that join its user namespace, and
/// never the shim, which waits for one that does.
#[test]
fn a_shim_does_not_wait_for_what_a_container_stops() {
    // No other test's: processes of the same user are in its reach too.
    let own = |bundle: Bundle| bundle.user_namespace(7 * ROOT);
    block_on(async {
        let (world, pod) = World::running("pod", |bundle| {
            let stops = "while :; do kill -STOP -1; done";
            own(bundle).without_namespace("pid").edit(all_capabilities).script(stops).edit(|spec| {
                spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "proc");
                spec["linux"]["maskedPaths"] = json!([]);
                spec["linux"]["readonlyPaths"] = json!([]);
            })
        })
        .await;
        let path = format!("/proc/{}/ns/user", world.state("pod", "").await.unwrap().pid);
        let victim = own(Bundle::new(&world.scratch, "victim")).args(&["sleep", "1000"]).edit(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            *namespaces.iter_mut().find(|namespace| namespace["type"] == "user").unwrap() =
                json!({"type": "user", "path": path});
        });
        for attempt in 0..5 {
            // It may come to be, or not: it is itself among what is stopped.
            let _ = world.within(Duration::from_secs(1)).create(&victim, &Io::null()).await;
            let state = world.within(SOON).state("pod", "").await;
            assert!(state.is_ok(), "attempt {attempt}: {state:?}");
            let _ = world.within(SOON + SOON).delete("victim", "").await;
        }
        world.end(&pod.id).await;
        world.close().await;
    });
}

#[test]
fn a_user_namespace_that_does_not_suit_is_refused() {
    block_on(async {
        let host = Host::new();
        let pod = userns(host.bundle("pod")).args(&["sleep", "1000"]);
        let pod = host.start(&pod).await;
        let path = format!("/proc/{}/ns/user", pod.pid);
        let other_host = Host::new();
        let refused = async |id: &str, path: &str, change: &dyn Fn(&mut Value), words: &[&str]| {
            let bundle = other_host.bundle(id).edit(|spec| {
                let user = json!({"type": "user", "path": path});
                spec["linux"]["namespaces"].as_array_mut().unwrap().push(user);
                change(spec);
            });
            other_host.refused(&bundle).await.names(Code::INVALID_ARGUMENT, words);
        };
        refused(
            "a",
            &path,
            &|spec| spec["linux"]["uidMappings"] = maps(5),
            &["linux.uidMappings is not what", "0 100000 65536"],
        )
        .await;
        let unmapped = |spec: &mut Value| spec["process"]["user"]["gid"] = json!(COUNT);
        refused("b", &path, &unmapped, &["process.user.gid: 65536 is not mapped"]).await;
        refused("c", "/proc/self/ns/net", &|_| (), &["user namespace path", "another kind"]).await;
        refused("d", "/no/such", &|_| (), &["user namespace path /no/such"]).await;
        // The host's own: the kernel does not let one enter it from itself.
        let bundle = other_host.bundle("e").edit(|spec| {
            let user = json!({"type": "user", "path": "/proc/self/ns/user"});
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(user);
        });
        let refusal = other_host.refused(&bundle).await;
        assert!(refusal.message.contains("setns user"), "{refusal:?}");
        pod.end().await;
    });
}

/// Of the host's namespaces the kernel shows nothing to a user namespace.
#[test]
fn the_file_systems_of_the_hosts_namespaces_are_refused() {
    for (namespace, mount) in [("network", "sysfs"), ("pid", "proc"), ("ipc", "mqueue")] {
        block_on(async {
            let host = Host::new();
            let bundle = userns(host.bundle("one")).without_namespace(namespace);
            let refusal = host.refused(&bundle).await;
            let words = format!("{mount} needs a {namespace} namespace");
            assert!(refusal.message.contains(&words), "{refusal:?}");
        });
    }
}

/// Before any effect: nothing of the rootfs is mounted.
#[test]
fn mappings_that_are_wrong_are_refused_by_their_names() {
    let one = |inside: u32, outside: u32, size: u32| json!([{"containerID": inside, "hostID": outside, "size": size}]);
    let cases: [(Change<'_>, &str); 7] = [
        (&|spec| spec["linux"]["uidMappings"] = json!([]), "linux.uidMappings is required"),
        (&|spec| spec["linux"]["gidMappings"] = json!([]), "linux.gidMappings is required"),
        (&|spec| spec["linux"]["gidMappings"] = one(0, 5, 0), "linux.gidMappings[0].size is 0"),
        (&|spec| spec["linux"]["gidMappings"] = one(0, 5, 5), "mounts[2]: gid: 5 is not mapped"),
        (&|spec| spec["linux"]["uidMappings"] = one(1, 5, 5), "linux.uidMappings: 0 is not mapped"),
        (&|spec| spec["process"]["user"]["additionalGids"] = json!([70000]), "process.user.additionalGids: 70000"),
        (&|spec| spec["linux"]["namespaces"].as_array_mut().unwrap().truncate(5), "needs a user namespace"),
    ];
    for (change, words) in cases {
        block_on(async {
            let host = Host::new();
            let bundle = userns(host.bundle("one")).edit(|spec| change(spec));
            host.refused(&bundle).await.names(Code::INVALID_ARGUMENT, &[words]);
            assert_eq!(fs::read_dir(host.scratch.dir().join("snapshots/one/work")).unwrap().count(), 0, "{words}");
        });
    }
}

#[test]
fn it_is_killed_paused_measured_and_limited_like_any_other() {
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| userns(bundle).args(&["sleep", "1000"])).await;
        world.pause("one").await.unwrap();
        world.resume("one").await.unwrap();
        world.update("one", &json!({"pids": {"limit": 20}})).await.unwrap();
        assert!(!bundle.cgroups().is_empty());
        assert_eq!(world.pids("one").await.unwrap().len(), 1);
        assert!(!world.stats("one").await.unwrap().stats.value.is_empty());
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// seccomp, with and without noNewPrivileges, by root and by a user.
#[test]
fn a_seccomp_filter_is_loaded() {
    for (nnp, uid) in [(true, 0), (false, 0), (false, 1000)] {
        let ended = run_script("grep ^Seccomp: /proc/self/status; mkdir /run/x 2>&1", |bundle| {
            bundle.edit(|spec| {
                spec["process"]["noNewPrivileges"] = json!(nnp);
                spec["process"]["user"] = json!({"uid": uid, "gid": 0});
                spec["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
                });
            })
        });
        assert!(
            ended.stdout.starts_with("Seccomp:\t2\n") && ended.stdout.contains("not implemented"),
            "{nnp} {uid}: {ended:#?}"
        );
    }
}

common::on_each_containerd! { ctr_runs_execs_and_deletes_a_container_with_mappings }

/// ctr remaps the snapshot, and asks for the namespace.
fn ctr_runs_execs_and_deletes_a_container_with_mappings(containerd: Containerd) {
    let options = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let script = "id -u; stat -c %u:%g /bin /; echo x > /etc/new && cat /etc/new; cat /proc/self/uid_map | tr -s ' '";
    let output = containerd.run_ok("one", &options, &["sh", "-c", script]);
    assert_eq!(output, "0\n0:0\n0:0\nx\n 0 100000 65536\n");
    containerd.run_detached("two", &options, &["sleep", "1000"]);
    let output = containerd.exec("two", "in", &[], &["sh", "-c", "id -u; echo x > /etc/x && cat /etc/x"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\nx\n", "{output:?}");
    containerd.remove("two");
    containerd.assert_nothing_left();
}
