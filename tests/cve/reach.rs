//! What of the host is within a container's reach: its cgroups, its devices, the shim's socket.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::Message;
use serde_json::{Value, json};

use common::attacker::attacker;
use common::bundle::Bundle;
use common::container::Host;
use common::driver::{Shim, StartOptions, TASK_V2};
use common::events::EventSink;
use common::scratch::Scratch;
use common::stdio::Io;
use common::user::as_user;
use common::world::{SOON, World};
use common::{block_on, shim_binary};

/// Inside: every file below a directory that can be opened for writing, and every directory's name.
pub fn list_writable(directory: &str) {
    let mut left = vec![PathBuf::from(directory)];
    let mut files = 0;
    while let Some(path) = left.pop() {
        let entries: Vec<PathBuf> =
            fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        println!("\n> directory {}", path.display());
        if fs::create_dir(path.join("made-by-the-attacker")).is_ok() {
            println!("\n> writable {}", path.display());
        }
        for path in entries {
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => left.push(path),
                Ok(meta) if meta.is_file() => {
                    files += 1;
                    if OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).is_ok() {
                        println!("\n> writable {}", path.display());
                    }
                }
                _ => {}
            }
        }
    }
    println!("\n> files {files}");
}

/// CVE-2023-25809: without a cgroup namespace of its own a container saw the host's cgroups at /sys/fs/cgroup, and could
/// write to them. Here a mount of type cgroup is read-only where it is to be, all of it, and shows the container's own
/// directories; without one there is nothing.
#[test]
fn cve_2023_25809_no_cgroup_file_of_the_hosts_can_be_written() {
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]});
    let host_sys = json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]});
    // Root of a user namespace that is the host's is as able as root without one, where files are concerned.
    for (mounted, namespace, user) in
        [(true, false, false), (true, true, false), (true, false, true), (false, false, false)]
    {
        block_on(async {
            let host = Host::new();
            let other = host.bundle("neighbour").args(&["sleep", "1000"]);
            let other = host.start(&other).await;
            let mut bundle = attacker(Bundle::new(&host.scratch, "one"), "writable /sys/fs/cgroup");
            if user {
                bundle = bundle.without_namespace("network").user_namespace(0).edit(|spec| {
                    let mounts = spec["mounts"].as_array_mut().unwrap();
                    *mounts.iter_mut().find(|mount| mount["destination"] == "/sys").unwrap() = host_sys.clone();
                });
            }
            bundle = bundle.edit(|spec| {
                if mounted {
                    spec["mounts"].as_array_mut().unwrap().push(cgroup.clone());
                }
                if namespace {
                    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
                }
            });
            let case = format!("mounted: {mounted}, namespace: {namespace}, user: {user}");
            let mut io = Io::fifos(&host.scratch, "one");
            other.shim.create(&bundle, &io).await.unwrap();
            let waiting = other.shim.spawn_wait("one", "").await;
            other.shim.start("one", "").await.unwrap();
            waiting.await.unwrap().unwrap();
            let output = io.stdout(SOON).await.unwrap();
            other.shim.delete("one", "").await.unwrap();
            other.end().await;
            let lines: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("> ")).collect();
            let writable: Vec<_> = lines.iter().filter(|line| line.starts_with("writable")).collect();
            assert!(writable.is_empty(), "{case}: {writable:#?}");
            assert!(!lines.iter().any(|line| line.contains("neighbour")), "{case}: {lines:#?}");
            let files: usize = lines.last().unwrap().strip_prefix("files ").unwrap().parse().unwrap();
            assert_eq!(files > 20, mounted, "{case}: {files} files");
        });
    }
}

/// A request that the task service answers, in ttrpc's frame.
fn request() -> Vec<u8> {
    let request = ttrpc::Request { service: TASK_V2.to_string(), method: "State".to_string(), ..Default::default() };
    let payload = request.write_to_bytes().unwrap();
    [&(payload.len() as u32).to_be_bytes()[..], &1u32.to_be_bytes(), &[1, 0], &payload].concat()
}

/// Whether somebody answers there.
fn is_answered(path: &str) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(SOON))?;
    // A connection that was closed already may say so here.
    let _ = stream.write_all(&request());
    match stream.read(&mut [0; 16]) {
        Ok(read) => Ok(read > 0),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(false),
        Err(e) => Err(e),
    }
}

/// CVE-2020-15257: containerd's shims listened on abstract sockets, which whoever is in the host's network namespace could
/// connect to. Here the socket is a file that root alone may open, in a directory of root's, and a caller of another user
/// who gets there all the same is not answered.
#[test]
fn cve_2020_15257_another_user_does_not_reach_the_shim() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let directory = scratch.dir().join("sockets");
        let path = directory.join("shim").to_str().unwrap().to_owned();
        let options = StartOptions { flags: vec!["-socket".into(), path.clone()], ..StartOptions::default() };
        let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
        // What the caller's mask is must not matter.
        let mask = rustix::process::umask(rustix::fs::Mode::empty());
        let started = Shim::start_with(&shim_binary(), &bundle, &sink, options).await;
        rustix::process::umask(mask);
        let world = World { shim: started.unwrap(), sink, scratch };
        assert_eq!(world.shim.address, format!("unix://{path}"));
        world.run(&bundle).await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(Path::new(&path)), mode(&directory)), (0o600, 0o700));

        // None of the shim's sockets has a name but that.
        let shim = world.pid().await.unwrap();
        let links = fs::read_dir(format!("/proc/{shim}/fd")).unwrap();
        let links = links.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        let inodes: Vec<_> = links
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
            .collect();
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        let names: Vec<_> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|line| line.len() > 7 && inodes.iter().any(|inode| line[6] == inode))
            .map(|line| line[7].to_owned())
            .collect();
        assert!(!names.is_empty() && names.iter().all(|name| *name == path), "{names:?}");

        let denied = |path: &str| as_user(1000, || is_answered(path).map_err(|e| e.kind()));
        assert_eq!(denied(&path), Err(ErrorKind::PermissionDenied));
        // A descriptor of the socket's file that the user has come by.
        let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path).unwrap();
        let by_descriptor = format!("/proc/self/fd/{}", held.as_raw_fd());
        assert_eq!(denied(&by_descriptor), Err(ErrorKind::PermissionDenied));
        assert!(is_answered(&by_descriptor).unwrap());
        // Whoever has opened the way: the peer is looked at.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(denied(&path), Ok(false), "another user is answered");
        assert_eq!(denied(&by_descriptor), Ok(false), "another user is answered");
        assert!(is_answered(&path).unwrap());
        world.end("one").await;
        world.close().await;
    });
}

/// Owner, group, mode and number of the nodes that every container has something to do with.
fn nodes() -> BTreeMap<&'static str, (u32, u32, u32, u64)> {
    let names = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "pts", "pts/ptmx", "."];
    let known = names.iter().filter_map(|name| Some((*name, fs::symlink_metadata(Path::new("/dev").join(name)).ok()?)));
    known.map(|(name, meta)| (name, (meta.uid(), meta.gid(), meta.mode(), meta.rdev()))).collect()
}

fn with_host_dev(spec: &mut Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    mounts.push(json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rw"]}));
    spec["linux"]["maskedPaths"] = json!([]);
}

/// The streams of a process are made its user's, so that it can open them again: but not the host's devices, when a
/// stream is one, whether a process has a terminal or nothing, in a container that has the host's /dev as well.
#[test]
fn the_hosts_device_nodes_keep_their_owner_and_mode() {
    let before = nodes();
    assert!(before.len() > 5);
    for host_dev in [false, true] {
        for terminal in [false, true] {
            block_on(async {
                let user = json!({"uid": 1000, "gid": 1000});
                let (world, bundle) = World::with("one", |bundle| {
                    bundle.args(&["sleep", "1000"]).edit(|spec| {
                        spec["process"]["terminal"] = json!(terminal);
                        spec["process"]["user"] = user.clone();
                        if host_dev {
                            with_host_dev(spec);
                        }
                    })
                })
                .await;
                let mut io = Io::null();
                io.terminal = terminal;
                world.create(&bundle, &io).await.unwrap();
                world.start("one", "").await.unwrap();
                let script = "chmod 777 /dev/null /dev/tty /dev/stdin /dev/stdout; : < /dev/stdin";
                for (number, (uid, terminal)) in
                    [(1000, false), (1000, true), (0, false), (0, true)].into_iter().enumerate()
                {
                    let mut io = Io::null();
                    io.terminal = terminal;
                    // Root of a container that has the host's nodes may do with them what it likes; it is not made to.
                    let mut process = bundle.process(&["sh", "-c", if uid == 0 { "true" } else { script }]);
                    process["user"] = json!({"uid": uid, "gid": uid});
                    world.exec_to_exit("one", &format!("e{number}"), &process, &io).await.unwrap();
                }
                assert_eq!(nodes(), before, "the host's /dev: {host_dev}, a terminal: {terminal}");
                world.end("one").await;
                world.close().await;
            });
        }
    }
    assert_eq!(nodes(), before);
}
