//! linux.rootfsPropagation and the propagation of single mounts: what is mounted on one side and seen on the other.

use std::fs;
use std::path::{Path, PathBuf};

use common::block_on;
use common::bundle::Bundle;
use common::container::{Container, Host};
use common::mountinfo::{at, parse};
use common::scratch::mounts_below;
use common::stdio::Io;
use common::world::{SOON, World};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

/// A directory of the host's, on a mount of its own that is shared with whoever has a copy of it.
fn volume(host: &Host, name: &str) -> PathBuf {
    let path = host.scratch.dir().join(name);
    fs::create_dir(&path).unwrap();
    mount_tmpfs(&path);
    mount(None::<&str>, &path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    fs::create_dir(path.join("ours")).unwrap();
    fs::create_dir(path.join("theirs")).unwrap();
    path
}

fn mount_tmpfs(path: &Path) {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn unmount(path: &Path) {
    umount2(path, MntFlags::MNT_DETACH).unwrap();
}

fn bind(source: &Path, options: &[&str]) -> Value {
    json!({"destination": "/vol", "type": "bind", "source": source, "options": options})
}

/// That may mount, and sleeps.
fn privileged(host: &Host, propagation: Option<&str>, mount: Value) -> Bundle {
    let bundle = host.bundle("one").args(&["sleep", "1000"]).mount(mount);
    bundle.edit(|spec| {
        let admin = json!(["CAP_SYS_ADMIN"]);
        spec["process"]["capabilities"] = json!({"bounding": admin, "effective": admin, "permitted": admin});
        spec["linux"]["rootfsPropagation"] = json!(propagation);
    })
}

/// Where a mount of the container's and one of the host's in the volume are seen: by the host, by the container.
async fn spreads(container: &Container<'_>, volume: &Path) -> (bool, bool) {
    container.exec_script("mount", "mount -t tmpfs tmpfs /vol/theirs && touch /vol/theirs/x").await.ok();
    let out = volume.join("theirs/x").exists();
    mount_tmpfs(&volume.join("ours"));
    fs::write(volume.join("ours/x"), "").unwrap();
    let seen = container.exec_script("look", "test -e /vol/ours/x && echo seen; umount /vol/theirs").await.ok();
    assert!(!volume.join("theirs/x").exists(), "an unmount goes where the mount went");
    unmount(&volume.join("ours"));
    (out, seen == "seen\n")
}

/// Proves: mounts.options={shared,rshared,rslave,private,rprivate}
#[test]
fn a_volume_is_shared_as_it_and_the_rootfs_ask() {
    // What Docker, CRI (None, HostToContainer, Bidirectional) and ctr write; and what contradicts itself.
    type Case<'a> = (Option<&'a str>, &'a [&'a str], (bool, bool));
    let cases: &[Case] = &[
        (None, &["rbind"], (false, true)),
        (None, &["rbind", "rprivate"], (false, false)),
        (None, &["rbind", "rslave"], (false, true)),
        (None, &["rbind", "rshared"], (true, true)),
        (None, &["bind", "shared"], (true, true)),
        (Some(""), &["rbind"], (false, true)),
        (Some("rslave"), &["rbind", "rslave"], (false, true)),
        (Some("rslave"), &["rbind", "rprivate"], (false, false)),
        (Some("slave"), &["rbind", "private"], (false, false)),
        (Some("shared"), &["rbind", "rshared"], (true, true)),
        (Some("shared"), &["rbind", "rprivate"], (false, false)),
        (Some("rshared"), &["rbind", "rshared"], (true, true)),
        (Some("rshared"), &["rbind", "rslave"], (false, true)),
        (Some("rshared"), &["rbind", "rprivate"], (false, false)),
        (Some("rshared"), &["rbind"], (true, true)),
        (Some("private"), &["rbind", "rshared"], (true, true)),
        (Some("rprivate"), &["rbind", "rshared"], (true, true)),
        (Some("unbindable"), &["rbind", "rshared"], (true, true)),
    ];
    block_on(async {
        for (rootfs, options, wanted) in cases {
            let host = Host::new();
            let volume = volume(&host, "volume");
            let bundle = privileged(&host, *rootfs, bind(&volume, options));
            let container = host.start(&bundle).await;
            assert_eq!(spreads(&container, &volume).await, *wanted, "{rootfs:?} {options:?}");
            container.end().await;
            unmount(&volume);
            assert_eq!(host.scratch.leftovers(), [""; 0], "{rootfs:?} {options:?}");
        }
    });
}

/// By the kernel's own words; and whatever it is, nothing of the container's set-up appears on the host.
/// Proves: linux.rootfsPropagation={private,rprivate,slave,rslave,shared,rshared,unbindable,runbindable}
#[test]
fn the_root_has_the_propagation_that_is_asked_for() {
    let (nothing, shared): (&[&str], &[&str]) = (&[""], &["shared"]);
    let cases: &[(Option<&str>, &[&str], &[&str])] = &[
        // The root's, and that of the tmpfs that is mounted on it.
        (None, nothing, nothing),
        (Some("private"), nothing, nothing),
        (Some("rprivate"), nothing, nothing),
        (Some("slave"), nothing, nothing),
        (Some("rslave"), nothing, nothing),
        (Some("shared"), shared, nothing),
        (Some("rshared"), shared, shared),
        (Some("unbindable"), &["unbindable"], nothing),
        (Some("runbindable"), &["unbindable"], &["unbindable"]),
    ];
    block_on(async {
        for (word, root, below) in cases {
            let host = Host::new();
            // As below a /run that systemd has made shared: so is what is mounted in it, the rootfs among it.
            let top = volume(&host, "bundles");
            let mount = json!({"destination": "/vol", "type": "tmpfs", "source": "tmpfs"});
            let bundle = privileged(&host, *word, mount);
            let container = host.start(&bundle).await;
            let table = container.exec_script("look", "cat /proc/self/mountinfo").await.ok();
            for (point, wanted) in [("/", root), ("/vol", below)] {
                let found = at(&table, point).propagation;
                let kinds: Vec<_> = found.split(' ').map(|word| word.split(':').next().unwrap()).collect();
                assert_eq!(kinds, *wanted, "{word:?}: {point} {found}");
            }
            let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let rootfs = bundle.rootfs_dir();
            assert_ne!(at(&ours, rootfs.to_str().unwrap()).propagation, "", "the host's is shared");
            let leaked = parse(&ours).into_iter().filter(|line| Path::new(&line.point).starts_with(&rootfs));
            assert_eq!(leaked.count(), 1, "{word:?}: {ours}");
            mount_tmpfs(&rootfs.join("home"));
            let homes = container.exec_script("home", "grep -c ' /home ' /proc/self/mountinfo").await;
            assert_eq!(homes.stdout, "0\n", "{word:?}: what the host mounts in the bundle");
            unmount(&rootfs.join("home"));
            container.end().await;
            unmount(&top);
            assert_eq!(host.scratch.leftovers(), [""; 0], "{word:?}");
        }
    });
}

/// A container's own protection is none of the host's: not what it masks, nor what it makes read-only, nor its console.
#[test]
fn what_covers_a_part_of_a_shared_volume_stays_in_the_container() {
    block_on(async {
        let host = Host::new();
        let volume = volume(&host, "volume");
        // A mount of its own in the volume, which is a peer of the host's too.
        mount_tmpfs(&volume.join("theirs"));
        for directory in ["masked", "fixed", "theirs/masked", "theirs/sub"] {
            fs::create_dir(volume.join(directory)).unwrap();
            fs::write(volume.join(directory).join("host"), "").unwrap();
        }
        fs::write(volume.join("file"), "host\n").unwrap();
        fs::write(volume.join("theirs/sub/file"), "host\n").unwrap();
        let before = mounts_below(&volume);
        let bundle = privileged(&host, Some("rshared"), bind(&volume, &["rbind", "rshared"])).edit(|spec| {
            let linux = &mut spec["linux"];
            linux["maskedPaths"] = json!(["/vol/file", "/vol/masked", "/vol/theirs/masked", "/vol/theirs/sub/file"]);
            linux["readonlyPaths"] = json!(["/vol/fixed"]);
        });
        let container = host.start(&bundle).await;
        assert_eq!(mounts_below(&volume), before, "what the host sees");
        let script = "cat /vol/file /vol/theirs/sub/file; ls /vol/masked /vol/theirs/masked; ls /vol/fixed
            touch /vol/fixed/x; touch /vol/x";
        let seen = container.exec_script("look", script).await;
        assert_eq!(seen.stdout, "/vol/masked:\n\n/vol/theirs/masked:\nhost\n", "{seen:?}");
        assert!(seen.stderr.contains("/vol/fixed/x: Read-only") && volume.join("x").exists(), "{seen:?}");
        // What the host mounts there is still the container's to see.
        mount_tmpfs(&volume.join("ours"));
        fs::write(volume.join("ours/x"), "").unwrap();
        assert_eq!(container.exec_script("ours", "ls /vol/ours").await.ok(), "x\n");
        unmount(&volume.join("ours"));
        container.end().await;
        unmount(&volume.join("theirs"));
        unmount(&volume);
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// What a specification mounts into a shared volume is the container's; and the volume is shared as ever.
#[test]
fn what_is_mounted_into_a_shared_volume_stays_in_the_container() {
    for rootfs in [None, Some("rshared"), Some("private")] {
        block_on(async {
            let host = Host::new();
            let volume = volume(&host, "volume");
            // A mount of its own in the volume, which is a peer of the host's too.
            mount_tmpfs(&volume.join("theirs"));
            mount(None::<&str>, &volume.join("theirs"), None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
            for directory in ["a", "b", "theirs/a", "theirs/sub", "masked"] {
                fs::create_dir(volume.join(directory)).unwrap();
            }
            fs::write(volume.join("a/host"), "").unwrap();
            let before = mounts_below(&volume);
            let other = host.scratch.dir().join("other");
            fs::create_dir(&other).unwrap();
            fs::write(other.join("bound"), "").unwrap();
            let at = |destination: &str| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"});
            let bound = |destination: &str, options: &[&str]| json!({"destination": destination, "source": other, "options": options});
            let bundle = privileged(&host, rootfs, bind(&volume, &["rbind", "rshared"]))
                .mount(at("/vol/a"))
                .mount(bound("/vol/b", &["rbind", "ro"]))
                .mount(at("/vol/theirs/a"))
                .mount(bound("/vol/theirs/a/b", &["bind", "rprivate"]))
                .edit(|spec| spec["linux"]["maskedPaths"] = json!(["/vol/masked"]));
            let container = host.start(&bundle).await;
            assert_eq!(mounts_below(&volume), before, "{rootfs:?}: what the host sees");
            let look = "ls /vol/a /vol/b /vol/theirs/a/b; touch /vol/a/x /vol/theirs/a/x";
            let seen = container.exec_script("look", look).await.ok();
            assert_eq!(seen, "/vol/a:\n\n/vol/b:\nbound\n\n/vol/theirs/a/b:\nbound\n", "{rootfs:?}");
            assert!(!volume.join("a/x").exists() && volume.join("a/host").exists());
            let table = container.exec_script("table", "cat /proc/self/mountinfo").await.ok();
            let groups = |table: &str, point: &Path| peers(table, point.to_str().unwrap());
            let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
            for (inside, outside) in [("/vol", volume.clone()), ("/vol/theirs", volume.join("theirs"))] {
                assert_eq!(groups(&table, Path::new(inside)), groups(&ours, &outside), "{rootfs:?}: {inside}: peers");
            }
            // Both ways, also on a mount into which something was mounted, and on one that is masked in part.
            container.exec_script("out", "mount -t tmpfs tmpfs /vol/theirs/sub && touch /vol/theirs/sub/x").await.ok();
            assert!(volume.join("theirs/sub/x").exists(), "{rootfs:?}");
            mount_tmpfs(&volume.join("ours"));
            fs::write(volume.join("ours/x"), "").unwrap();
            assert_eq!(container.exec_script("in", "ls /vol/ours").await.ok(), "x\n", "{rootfs:?}");
            container.end().await;
            for path in ["ours", "theirs/sub", "theirs", ""] {
                unmount(&volume.join(path));
            }
            assert_eq!(host.scratch.leftovers(), [""; 0], "{rootfs:?}");
        });
    }
}

/// The peer group of a mount.
fn peers(table: &str, point: &str) -> String {
    at(table, point).propagation
}

/// Before Linux 5.15 the peers of a mount cannot be given back: the specification's mounts are seen by them, as with runc, and
/// what covers a part of the volume is hidden at the price of what the container mounts there.
#[test]
fn an_old_kernel_hides_masks_still() {
    use common::seccomp::{missing_flag, take_away};
    let apart = std::thread::spawn(|| {
        // MOVE_MOUNT_SET_GROUP
        take_away(&[missing_flag(libc::SYS_move_mount, 4, 0x100)]);
        block_on(async {
            let host = Host::new();
            let volume = volume(&host, "volume");
            fs::create_dir(volume.join("masked")).unwrap();
            fs::write(volume.join("masked/host"), "").unwrap();
            let tmpfs = json!({"destination": "/vol/ours", "type": "tmpfs", "source": "tmpfs"});
            let bundle = privileged(&host, None, bind(&volume, &["rbind", "rshared"])).mount(tmpfs);
            let bundle = bundle.edit(|spec| spec["linux"]["maskedPaths"] = json!(["/vol/masked"]));
            let container = host.start(&bundle).await;
            assert_eq!(mounts_below(&volume), [volume.clone(), volume.join("ours")]);
            assert_eq!(container.exec_script("look", "ls /vol/masked").await.ok(), "");
            container.end().await;
            unmount(&volume.join("ours"));
            unmount(&volume);
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
    });
    apart.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn the_console_of_a_container_is_not_the_hosts() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| {
            b.script("stat -c %t:%T /dev/console").edit(|spec| spec["process"]["terminal"] = json!(true))
        })
        .await;
        let dev = world.scratch.dir().join("dev");
        fs::create_dir(&dev).unwrap();
        mount_tmpfs(&dev);
        mount(None::<&str>, &dev, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        fs::create_dir(dev.join("pts")).unwrap();
        let bundle = bundle.edit(|spec| {
            let bind = json!({"destination": "/dev", "type": "bind", "source": dev, "options": ["rbind", "rshared"]});
            spec["linux"]["maskedPaths"] = json!([]);
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| {
                !mount["destination"].as_str().unwrap().starts_with("/dev/") || mount["type"] == "devpts"
            });
            *mounts.iter_mut().find(|mount| mount["destination"] == "/dev").unwrap() = bind;
        });
        let mut io = Io::terminal(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        // Nor what the specification itself mounts there: the host's terminals stay the host's.
        let seen = mounts_below(&dev);
        let waiting = world.spawn_wait("one", "").await;
        world.start("one", "").await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 0);
        assert_eq!(io.stdout(SOON).await.unwrap(), "88:0\r\n");
        world.delete("one", "").await.unwrap();
        unmount(&dev);
        assert_eq!(seen, [dev]);
        world.close().await;
    });
}
