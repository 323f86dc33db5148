//! The root file system: what Create mounts, read-only roots, the pivot, and images that try to lead out of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, refused, run, run_script};
use common::mountinfo::{at, parse};
use containerd_shim_protos::api::Mount;
use serde_json::{Value, json};
use ttrpc::Code;

/// Where a bundle's overlay keeps what differs from busybox: files put here are the image's.
fn image(host: &Host) -> PathBuf {
    host.scratch.dir().join("snapshots/one/fs")
}

fn tmpfs(destination: &str) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"})
}

/// Makes the bundle's rootfs a bind of a directory, as a native snapshotter has it.
fn bind_rootfs(host: &Host, options: &[&str]) -> (Bundle, PathBuf) {
    let mut bundle = host.bundle("one").plain_rootfs();
    let image = host.scratch.dir().join("image");
    fs::rename(bundle.rootfs_dir(), &image).unwrap();
    fs::create_dir(bundle.rootfs_dir()).unwrap();
    bundle.rootfs = vec![Mount {
        type_: "bind".into(),
        source: image.to_str().unwrap().into(),
        options: options.iter().map(|option| option.to_string()).collect(),
        ..Mount::default()
    }];
    (bundle, image)
}

#[test]
fn an_overlay_takes_writes_in_its_upper_directory() {
    block_on(async {
        let host = Host::new();
        let bundle =
            host.bundle("one").script("stat -f -c %T / >&2; echo x > /written; grep ' / / ' /proc/self/mountinfo");
        let ended = host.run(&bundle).await;
        assert_eq!(at(&ended.stdout, "/").fstype, "overlay");
        assert_eq!(fs::read_to_string(image(&host).join("written")).unwrap(), "x\n");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

#[test]
fn a_bind_may_be_the_rootfs_writable_or_not() {
    block_on(async {
        let host = Host::new();
        let (bundle, image) = bind_rootfs(&host, &["rbind", "rw"]);
        host.run(&bundle.script("echo x > /written")).await.ok();
        assert_eq!(fs::read_to_string(image.join("written")).unwrap(), "x\n");
        assert_eq!(host.scratch.leftovers(), [""; 0]);

        let host = Host::new();
        let (bundle, image) = bind_rootfs(&host, &["rbind", "ro"]);
        let ended = host.run(&bundle.script("touch /written")).await;
        assert_eq!((ended.status, ended.stderr.as_str()), (1, "touch: /written: Read-only file system\n"));
        assert!(!image.join("written").exists());
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// Proves: root.path
#[test]
fn a_directory_without_any_mount_may_be_the_rootfs() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").plain_rootfs().script("echo x > /written");
        host.run(&bundle).await.ok();
        assert_eq!(fs::read_to_string(bundle.rootfs_dir().join("written")).unwrap(), "x\n");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// Proves: root.readonly
#[test]
fn a_read_only_root_is_so_inside_only_and_not_for_what_is_mounted_on_it() {
    block_on(async {
        let host = Host::new();
        let bundle = host
            .bundle("one")
            .edit(|spec| spec["root"]["readonly"] = json!(true))
            .mount(tmpfs("/made/for/it"))
            .script("touch /run/x /made/for/it/x && touch /x");
        let container = host.create(&bundle).await;
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(at(&table, bundle.rootfs_dir().to_str().unwrap()).has(&["rw"]), "{table}");
        let ended = container.run().await;
        assert_eq!((ended.status, ended.stderr.as_str()), (1, "touch: /x: Read-only file system\n"));
    });
}

#[test]
fn other_rootfs_mounts_are_refused() {
    for (kind, option) in [("fuse3.stargz", "ro"), ("mkfs/ext4", "ro"), ("overlay", "X-containerd.dmverity=1")] {
        let refusal = refused(|mut bundle| {
            bundle.rootfs.insert(0, bundle.rootfs[0].clone());
            bundle.rootfs[1].type_ = kind.into();
            bundle.rootfs[1].options.push(option.into());
            bundle
        });
        refusal.names(Code::UNIMPLEMENTED, &["rootfs mount 1", kind, "not supported"]);
    }
}

/// Nothing is mounted inside but what the specification says, and the root has nothing but the image's entries.
#[test]
fn nothing_of_the_hosts_tree_is_left_inside() {
    let out = run_script("cat /proc/self/mountinfo; echo; ls -a /; ls -a /..", |_| ()).ok();
    let (table, listing) = out.split_once("\n\n").unwrap();
    let mut points: Vec<_> = parse(table).into_iter().map(|line| line.point).collect();
    points.retain(|point| !point.starts_with("/proc/") && !point.starts_with("/sys/"));
    points.sort();
    assert_eq!(points, ["/", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/run", "/sys"]);
    let entries = ".\n..\nbin\ndev\netc\nhome\nproc\nroot\nrun\nsys\ntmp\nusr\nvar\n";
    assert_eq!(listing, format!("{entries}{entries}"));
}

/// Links of the image that lead to the host are links inside: absolute ones, and relative ones that climb.
#[test]
fn destinations_through_links_stay_inside() {
    for absolute in [true, false] {
        block_on(async {
            let host = Host::new();
            let outside = host.scratch.dir().join("outside");
            fs::create_dir(&outside).unwrap();
            let bundle = host.bundle("one");
            let link = if absolute {
                outside.clone()
            } else {
                Path::new("../../../../../..").join(outside.strip_prefix("/").unwrap())
            };
            symlink(&link, image(&host).join("data")).unwrap();
            let inside = image(&host).join(outside.strip_prefix("/").unwrap());
            fs::create_dir_all(&inside).unwrap();
            let file = host.scratch.dir().join("file");
            fs::write(&file, "").unwrap();
            let bundle = bundle
                .mount(tmpfs("/data/sub"))
                .mount(json!({"destination": "/data/file", "source": file, "options": ["bind"]}))
                .edit(|spec| {
                    spec["linux"]["devices"] = json!([{"path": "/data/null", "type": "c", "major": 1, "minor": 3}]);
                    spec["process"]["cwd"] = json!("/data/cwd");
                })
                .script("grep -o '/outside/[a-z]*' /proc/self/mountinfo; pwd -P");
            let seen = host.run(&bundle).await.ok();
            let mounts = format!("/outside/sub\n/outside/file\n{}/cwd\n", outside.display());
            assert_eq!(seen, mounts, "{link:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{link:?}");
            let mut made: Vec<_> = fs::read_dir(&inside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            made.sort();
            assert_eq!(made, ["cwd", "file", "null", "sub"], "{link:?}");
        });
    }
}

/// The same where the link's target is missing inside: it is made there, as runc does, and never on the host.
#[test]
fn dangling_links_are_followed_inside() {
    for destination in ["/data", "/data/below", "/again"] {
        block_on(async {
            let host = Host::new();
            let outside = host.scratch.dir().join("outside");
            fs::create_dir(&outside).unwrap();
            let bundle = host
                .bundle("one")
                .mount(tmpfs(destination))
                .script("grep -o ' /[a-z0-9./-]*/outside[a-z/]*' /proc/self/mountinfo");
            symlink(Path::new("../../../..").join(outside.strip_prefix("/").unwrap()), image(&host).join("data"))
                .unwrap();
            symlink("data/more", image(&host).join("again")).unwrap();
            let seen = host.run(&bundle).await.ok();
            let below = destination.strip_prefix("/data").unwrap_or("/more");
            assert_eq!(seen, format!(" {}{below}\n", outside.display()));
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        });
    }
}

#[test]
fn links_in_a_circle_are_an_error() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").mount(tmpfs("/data/x"));
        symlink("circle", image(&host).join("data")).unwrap();
        symlink("data/x", image(&host).join("circle")).unwrap();
        let refusal = host.refused(&bundle).await;
        assert!(refusal.message.contains("/data/x: too many levels of symbolic links"), "{refusal:?}");
    });
}

/// An image's /etc/resolv.conf often is a link to what only a running systemd makes; the file that is bound there is
/// what a reader gets.
#[test]
fn a_file_is_bound_over_a_dangling_link() {
    block_on(async {
        let host = Host::new();
        let file = host.scratch.dir().join("resolv.conf");
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let mount = json!({"destination": "/etc/resolv.conf", "source": file, "options": ["bind", "ro"]});
        let bundle = host.bundle("one").mount(mount).script("cat /etc/resolv.conf");
        fs::create_dir(image(&host).join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", image(&host).join("etc/resolv.conf")).unwrap();
        assert_eq!(host.run(&bundle).await.ok(), "nameserver 192.0.2.1\n");
    });
}

/// lxcfs' files, and a second proc on top of the first.
#[test]
fn the_files_of_lxcfs_and_a_second_proc_may_be_mounted() {
    block_on(async {
        let host = Host::new();
        let file = host.scratch.dir().join("cpuinfo");
        fs::write(&file, "of lxcfs\n").unwrap();
        let bundle = host
            .bundle("one")
            .mount(json!({"destination": "/proc", "type": "proc", "source": "proc"}))
            .mount(json!({"destination": "/proc/cpuinfo", "source": file, "options": ["bind"]}))
            .script("cat /proc/cpuinfo; grep -c ' /proc ' /proc/self/mountinfo");
        assert_eq!(host.run(&bundle).await.ok(), "of lxcfs\n2\n");
    });
}

#[test]
fn a_dev_of_the_image_without_a_mount_is_filled() {
    let out = run(|bundle| {
        bundle
            .edit(|spec| {
                spec["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"))
            })
            .script("stat -c '%n %F %t:%T' /dev/null /dev/tty; readlink /dev/fd")
    });
    assert_eq!(out.ok(), "/dev/null character special file 1:3\n/dev/tty character special file 5:0\n/proc/self/fd\n");
}
