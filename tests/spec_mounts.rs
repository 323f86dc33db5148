//! mounts: each type with its options, seen in the container's own mountinfo.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use common::block_on;
use common::cgroup::skipped_on_v2;
use common::container::{Host, run, run_script};
use common::mountinfo::at;
use common::scratch::cgroup_mounts;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use ttrpc::Code;

const MOUNTINFO: &str = "cat /proc/self/mountinfo";

fn add(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

/// A mount of ctr's default with other options.
fn with_options(spec: &mut Value, destination: &str, options: &[&str]) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    let mount = mounts.iter_mut().find(|mount| mount["destination"] == destination).unwrap();
    mount["options"] = json!(options);
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

/// A directory of the host's with a file in it.
fn host_dir(host: &Host, name: &str) -> PathBuf {
    let dir = host.scratch.dir().join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), format!("of {name}\n")).unwrap();
    dir
}

/// Proves: mounts.type={proc,tmpfs,devpts,mqueue,sysfs}, mounts.{destination,source}
#[test]
fn the_default_mounts_have_their_types_and_options() {
    let table = run_script(MOUNTINFO, |_| ()).ok();
    for (point, fstype, source, words) in [
        ("/proc", "proc", "proc", &["rw", "nosuid", "nodev", "noexec"] as &[&str]),
        ("/dev", "tmpfs", "tmpfs", &["rw", "nosuid"]),
        ("/dev/pts", "devpts", "devpts", &["rw", "nosuid", "noexec"]),
        ("/dev/shm", "tmpfs", "shm", &["rw", "nosuid", "nodev", "noexec"]),
        ("/dev/mqueue", "mqueue", "mqueue", &["rw", "nosuid", "nodev", "noexec"]),
        ("/sys", "sysfs", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
        ("/run", "tmpfs", "tmpfs", &["rw", "nosuid"]),
    ] {
        let line = at(&table, point);
        assert_eq!((line.fstype.as_str(), line.source.as_str()), (fstype, source), "{line:?}");
        assert!(line.has(words), "{line:?}");
    }
    // strictatime is the lack of the default's word; devices work on /dev.
    let dev = at(&table, "/dev");
    assert!(!dev.has(&["relatime"]) && !dev.has(&["nodev"]), "{dev:?}");
    assert!(dev.super_options.contains("size=65536k") && dev.super_options.contains("mode=755"), "{dev:?}");
}

#[test]
fn proc_sysfs_and_mqueue_are_the_containers_own() {
    let script = "ls -d /proc/[0-9]* | head -1; ls /sys/class/net; ls /dev/mqueue | wc -l; echo x > /sys/x";
    let ended = run_script(script, |_| ());
    // Some kernels put tunnels into every network namespace, never an eth0.
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert!(lines[0] == "/proc/1" && lines.contains(&"lo") && !ended.stdout.contains("eth"), "{ended:#?}");
    assert_eq!(lines.last(), Some(&"0"), "{ended:#?}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended:#?}");
}

#[test]
fn a_tmpfs_has_its_size_mode_and_flags() {
    let script = "cat /proc/self/mountinfo; stat -c %a /t 1>&2; dd if=/dev/zero of=/t/big bs=1k count=200 2>/dev/null; \
                  stat -c %s /t/big >&2; touch /r/x";
    let ended = run_script(script, |spec| {
        let options = ["size=128k", "mode=1750", "noexec", "nosuid", "nodev", "noatime"];
        add(spec, json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options}));
        add(spec, json!({"destination": "/r", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}));
    });
    let line = at(&ended.stdout, "/t");
    assert!(line.has(&["rw", "noexec", "nosuid", "nodev", "noatime"]), "{line:?}");
    assert!(line.super_options.contains("size=128k"), "{line:?}");
    let line = at(&ended.stdout, "/r");
    assert!(line.has(&["ro"]) && line.super_options.starts_with("rw"), "{line:?}");
    assert_eq!(ended.stderr, "1750\n131072\ntouch: /r/x: Read-only file system\n");
}

/// runc does so too: /tmp stays 1777 when a tmpfs is mounted on it, and one on a new directory is for everyone.
#[test]
fn a_tmpfs_without_a_mode_takes_that_of_the_directory_it_covers() {
    let tmpfs = |destination| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
    let out = run_script("stat -c %a /tmp /home /new", |spec| {
        ["/tmp", "/home", "/new"].into_iter().for_each(|destination| add(spec, tmpfs(destination)));
    });
    assert_eq!(out.ok(), "1777\n755\n1777\n");
}

#[test]
fn a_devpts_has_its_group_and_modes_and_is_where_ptmx_leads() {
    let script = "readlink /dev/ptmx; stat -L -c %a:%t:%T /dev/ptmx; cat /proc/self/mountinfo | grep devpts; \
                  exec 3<>/dev/ptmx; ls -n /dev/pts | grep -v ptmx";
    let out = run_script(script, |spec| {
        with_options(spec, "/dev/pts", &["newinstance", "ptmxmode=0640", "mode=0622", "gid=7", "nosuid"]);
    });
    let out = out.ok();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..2], ["pts/ptmx", "640:5:2"], "{out}");
    let super_options = at(lines[2], "/dev/pts").super_options;
    assert!(["gid=7", "mode=622", "ptmxmode=640"].iter().all(|word| super_options.contains(word)), "{out}");
    // The only terminal there, of an instance of its own.
    let terminal: Vec<_> = lines.last().unwrap().split_whitespace().collect();
    assert_eq!((terminal[0], terminal[3], *terminal.last().unwrap()), ("crw--w--w-", "7", "0"), "{out}");
}

/// Proves: mounts.type=bind, mounts.options={bind,ro,rw}
#[test]
fn binds_of_directories_and_files_show_the_source_and_make_the_destination() {
    block_on(async {
        let host = Host::new();
        let dir = host_dir(&host, "source");
        let script = "cat /a/b/c/file /d/e/file /relative/file && echo written > /a/b/c/new && touch /d/e/file && \
                      stat -c %a /a /d && ! touch /ro/x && ! echo x > /ro-file; cat /proc/self/mountinfo >&2";
        let bundle = host
            .bundle("one")
            .mount(bind(&dir, "/a/b/c", &["rbind", "rw"]))
            .mount(bind(&dir.join("file"), "/d/e/file", &["bind"]))
            .mount(bind(&dir, "/ro", &["bind", "ro", "noexec", "nosuid", "nodev"]))
            .mount(bind(&dir.join("file"), "/ro-file", &["ro"]))
            .mount(bind(Path::new("below-the-bundle"), "/relative", &["bind"]));
        fs::create_dir(bundle.dir().join("below-the-bundle")).unwrap();
        fs::write(bundle.dir().join("below-the-bundle/file"), "of the bundle\n").unwrap();
        let ended = host.run(&bundle.script(script)).await;
        assert_eq!(ended.stdout, "of source\nof source\nof the bundle\n755\n755\n", "{ended:#?}");
        let (complaints, table) = ended.stderr.split_at(ended.stderr.find("\n").unwrap() + 1);
        assert!(complaints.contains("/ro/x: Read-only file system"), "{ended:#?}");
        let table = table.split_once("Read-only file system\n").expect("/ro-file").1;
        assert!(at(table, "/ro").has(&["ro", "noexec", "nosuid", "nodev"]), "{table}");
        assert_eq!(fs::read_to_string(dir.join("new")).unwrap(), "written\n");
    });
}

/// A mount below the source comes with rbind and not with bind, and ro is for the top alone, as with runc.
/// Proves: mounts.options=rbind
#[test]
fn a_recursive_bind_brings_what_is_mounted_below() {
    block_on(async {
        let host = Host::new();
        let dir = host_dir(&host, "source");
        fs::create_dir(dir.join("sub")).unwrap();
        let none = None::<&str>;
        mount(Some("tmpfs"), &dir.join("sub"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        fs::write(dir.join("sub/mounted"), "").unwrap();
        let bundle = host
            .bundle("one")
            .mount(bind(&dir, "/all", &["rbind", "ro"]))
            .mount(bind(&dir, "/one", &["bind"]))
            .script("ls /all/sub /one/sub; touch /all/sub/written; touch /all/x");
        let ended = host.run(&bundle).await;
        let submount = dir.join("sub/written").exists();
        nix::mount::umount(&dir.join("sub")).unwrap();
        assert_eq!(ended.stdout, "/all/sub:\nmounted\n\n/one/sub:\n", "{ended:#?}");
        assert_eq!(ended.stderr, "touch: /all/x: Read-only file system\n");
        assert!(submount);
    });
}

#[test]
fn a_missing_source_is_refused_with_its_path() {
    let refusal = common::container::refused(|bundle| bundle.mount(bind(Path::new("/no/such"), "/x", &["rbind"])));
    refusal.names(Code::INVALID_ARGUMENT, &["mounting", "/x", "/no/such", "no such file"]);
}

/// What is mounted on the host below a bind's source after the start: a slave's container sees it, a private one's does
/// not, and a shared one's mounts are seen by the host.
#[test]
fn propagation_is_what_the_mount_says() {
    block_on(async {
        let host = Host::new();
        let dir = host_dir(&host, "source");
        let none = None::<&str>;
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(none, &dir, none, MsFlags::MS_SHARED, none).unwrap();
        for name in ["late", "inner"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        let bundle = host
            .bundle("one")
            .mount(bind(&dir, "/private", &["rbind", "rprivate"]))
            .mount(bind(&dir, "/slave", &["rbind", "rslave"]))
            .mount(bind(&dir, "/shared", &["rbind", "shared"]))
            .args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        mount(Some("tmpfs"), &dir.join("late"), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let table = container.proc("mountinfo");
        container.end().await;
        nix::mount::umount(&dir.join("late")).unwrap();
        nix::mount::umount(&dir).unwrap();
        let propagation = |point| at(&table, point).propagation;
        assert_eq!(propagation("/private"), "");
        assert!(propagation("/slave").starts_with("master:"), "{table}");
        assert!(propagation("/shared").starts_with("shared:"), "{table}");
        let late = |point: &str| common::mountinfo::parse(&table).iter().any(|line| line.point == point);
        assert_eq!([late("/private/late"), late("/slave/late"), late("/shared/late")], [false, true, true], "{table}");
    });
}

const CGROUP: &str = r#"{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}"#;

/// A directory for each hierarchy; each shows the container's own cgroup at its top, with or without a cgroup namespace.
/// What is not in the list of known types is the kernel's to know (runtime-spec: config.md, "Mounts").
#[test]
fn any_file_system_of_the_kernels_is_mounted_with_its_parameters() {
    for user_namespace in [false, true] {
        block_on(async {
            let host = Host::new();
            let [lower, upper, work] = ["lower", "upper", "work"].map(|name| host_dir(&host, name));
            fs::write(lower.join("below"), "below\n").unwrap();
            fs::remove_file(work.join("file")).unwrap();
            let mut bundle = host.bundle("one");
            if user_namespace {
                bundle = bundle.user_namespace(100_000);
                for path in [&lower, &upper, &work] {
                    std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
                }
            }
            let layers = [("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)];
            let mut options: Vec<_> = layers.map(|(key, path)| format!("{key}={}", path.display())).into();
            options.push("nosuid".into());
            let bundle = bundle.edit(|spec| {
                add(spec, json!({"destination": "/o", "type": "overlay", "source": "layers", "options": options}));
                add(spec, json!({"destination": "/r", "type": "ramfs", "options": ["mode=751", "ro"]}));
            });
            let script = "cat /o/below /o/file; echo new > /o/new; touch /r/x; stat -c %a /r; cat /proc/self/mountinfo";
            let ended = host.run(&bundle.script(script)).await;
            assert_eq!(ended.stderr, "touch: /r/x: Read-only file system\n", "{ended:#?}");
            assert!(ended.stdout.starts_with("below\nof upper\n751\n"), "{ended:#?}");
            let table: String = ended.stdout.split_inclusive('\n').skip(3).collect();
            let (overlay, ram) = (at(&table, "/o"), at(&table, "/r"));
            assert_eq!(
                (overlay.fstype.as_str(), overlay.source.as_str(), ram.fstype.as_str()),
                ("overlay", "layers", "ramfs")
            );
            assert!(overlay.has(&["rw", "nosuid"]) && ram.has(&["ro"]), "{ended:#?}");
            assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "new\n");
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
    }
}

/// One of which the kernel knows nothing, a parameter that it does not know, and what needs the host's root.
#[test]
fn a_file_system_that_cannot_be_mounted_is_named() {
    block_on(async {
        let refused = async |user_namespace: bool, mount: Value| {
            let host = Host::new();
            let mut bundle = host.bundle("one");
            if user_namespace {
                bundle = bundle.user_namespace(100_000);
            }
            host.refused(&bundle.edit(|spec| add(spec, mount))).await
        };
        let none = refused(false, json!({"destination": "/x", "type": "no-such-fs", "source": "x"})).await;
        none.names(Code::INVALID_ARGUMENT, &["mounts[7]", "fsopen no-such-fs", "no such device"]);
        let word = refused(false, json!({"destination": "/x", "type": "overlay", "options": ["no-such-word"]})).await;
        assert!(["/x", "overlay no-such-word"].iter().all(|text| word.message.contains(text)), "{word:?}");
        let host_s = refused(true, json!({"destination": "/x", "type": "securityfs", "source": "x"})).await;
        assert!(["/x", "securityfs"].iter().all(|text| host_s.message.contains(text)), "{host_s:?}");
    });
}

/// Proves: mounts.type=cgroup
#[test]
fn a_cgroup_mount_shows_the_containers_own_cgroups() {
    if skipped_on_v2("a_cgroup_mount_shows_the_containers_own_cgroups", "of v1's many; tests/cgroup_v2.rs has v2's one")
    {
        return;
    }
    for own_namespace in [false, true] {
        block_on(async {
            let host = Host::new();
            let script = "cd /sys/fs/cgroup; for d in *; do [ -L $d ] || [ ! -e $d/tasks ] || echo $d $(wc -l < $d/tasks); \
                          done; mkdir pids/x; touch x; cat pids/pids.max; cat /proc/self/mountinfo >&2";
            let bundle = host.bundle("one").mount(serde_json::from_str(CGROUP).unwrap()).edit(|spec| {
                spec["linux"]["resources"]["pids"] = json!({"limit": 77});
                if own_namespace {
                    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
                }
            });
            let ended = host.run(&bundle.script(script)).await;
            let mut hierarchies: Vec<_> = ended.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
            let mut expected: Vec<_> = cgroup_mounts()
                .into_iter()
                .filter(|root| root.join("tasks").exists())
                .map(|root| root.file_name().unwrap().to_str().unwrap().to_string())
                .collect();
            expected.sort();
            hierarchies.sort();
            // The shell itself, and the substitution's subshell with wc: nobody else.
            assert!(hierarchies.iter().all(|(_, tasks)| ["1", "2", "3"].contains(tasks)), "{ended:#?}");
            assert_eq!(hierarchies.iter().map(|(name, _)| *name).collect::<Vec<_>>(), expected, "{ended:#?}");
            assert!(ended.stdout.ends_with("77\n"), "{ended:#?}");
            assert_eq!(ended.stderr.matches("Read-only file system").count(), 2, "{ended:#?}");
            let table = ended.stderr.rsplit_once("Read-only file system\n").unwrap().1;
            let line = at(table, "/sys/fs/cgroup/pids");
            assert!(line.has(&["ro", "nosuid", "nodev", "noexec"]), "{line:?}");
            let root = format!("/{}/one", host.scratch.namespace());
            assert_eq!(line.root, if own_namespace { "/" } else { &root }, "{table}");
        });
    }
}

/// The mode of what is made for a mount does not depend on the shim's umask.
#[test]
fn a_mount_point_is_made_with_0755_and_its_file_with_0644() {
    block_on(async {
        let host = Host::new();
        let dir = host_dir(&host, "source");
        let bundle = host.bundle("one").mount(bind(&dir, "/made/dir", &["bind"])).mount(bind(
            &dir.join("file"),
            "/made/file",
            &["bind"],
        ));
        host.run(&bundle).await.ok();
        let upper = host.scratch.dir().join("snapshots/one/fs/made");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode(&upper), mode(&upper.join("dir")), mode(&upper.join("file"))], [0o755, 0o755, 0o644]);
    });
}

/// What is mounted later hides what is below, and is mounted into what came before.
#[test]
fn mounts_stack_in_their_order() {
    let tmpfs = |destination| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
    let ended = run(|bundle| {
        let hidden = bundle.mount(tmpfs("/a/hidden")).mount(tmpfs("/a"));
        hidden.mount(tmpfs("/b")).mount(tmpfs("/b/seen")).script("ls /a /b")
    });
    assert_eq!(ended.ok(), "/a:\n\n/b:\nseen\n");
}

/// A socket, a fifo and a device are bound as what they are; a link as what it leads to, as mount(2) has it.
#[test]
fn any_kind_of_file_may_be_bound() {
    block_on(async {
        let host = Host::new();
        let dir = host_dir(&host, "source");
        let log = UnixDatagram::bind(dir.join("socket")).unwrap();
        mkfifo(&dir.join("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
        symlink("file", dir.join("to-file")).unwrap();
        symlink(".", dir.join("to-directory")).unwrap();
        let mut bundle = host.bundle("one");
        for name in ["socket", "fifo", "to-file", "to-directory"] {
            bundle = bundle.mount(bind(&dir.join(name), &format!("/m/{name}"), &["rbind", "rprivate"]));
        }
        let bundle = bundle.mount(bind(Path::new("/dev/zero"), "/m/device", &["bind", "ro"])).mount(bind(
            &dir.join("socket"),
            "/dev/log",
            &["bind"],
        ));
        // Held open, so that the container's echo finds a reader.
        let mut fifo = OpenOptions::new().read(true).write(true).open(dir.join("fifo")).unwrap();
        let script = "cd /m; stat -c '%n %F' *; cat to-file to-directory/file; head -c 3 device | wc -c
            echo through > fifo; logger from inside";
        let out = host.run(&bundle.script(script)).await.ok();
        let kinds =
            "device character special file\nfifo fifo\nsocket socket\nto-directory directory\nto-file regular file\n";
        assert_eq!(out, format!("{kinds}of source\nof source\n3\n"));
        let mut said = [0; 256];
        log.set_nonblocking(true).unwrap();
        let length = log.recv(&mut said).unwrap();
        assert!(String::from_utf8_lossy(&said[..length]).contains("from inside"));
        let mut line = [0; 8];
        fifo.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"through\n");
    });
}

/// A link of the image's, to a file or a directory, there or not, is where it leads to inside.
#[test]
fn a_destination_that_is_a_link_is_what_it_leads_to_inside() {
    block_on(async {
        let host = Host::new();
        let dir = host_dir(&host, "source");
        let image = host.scratch.dir().join("snapshots/one/fs");
        let bundle = host
            .bundle("one")
            .mount(bind(&dir.join("file"), "/links/file", &["bind"]))
            .mount(bind(&dir.join("file"), "/links/no-file", &["bind"]))
            .mount(bind(&dir, "/links/directory", &["rbind"]))
            .mount(bind(&dir, "/links/no-directory/below", &["rbind"]))
            .script("cut -d' ' -f5 /proc/self/mountinfo | grep ^/to; cat /links/file /links/no-file /to/there/file");
        for path in ["links", "to/there"] {
            fs::create_dir_all(image.join(path)).unwrap();
        }
        fs::write(image.join("to/file"), "").unwrap();
        for (name, target) in [
            ("file", "/to/file"),
            ("no-file", "../../../../to/made/file"),
            ("directory", "../to/there"),
            ("no-directory", "/to/nowhere"),
        ] {
            symlink(target, image.join("links").join(name)).unwrap();
        }
        let out = host.run(&bundle).await.ok();
        let points = "/to/file\n/to/made/file\n/to/there\n/to/nowhere/below\n";
        assert_eq!(out, format!("{points}{}", "of source\n".repeat(3)));
        assert!(image.join("to/made/file").is_file() && image.join("links/no-file").is_symlink());
    });
}
