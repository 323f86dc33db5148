//! What Create mounts for the root file system: overlays of many layers, several mounts, file systems on devices.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::bundle::Bundle;
use common::container::Host;
use common::mountinfo::at;
use common::scratch::mounts_below;
use common::seccomp::{LINUX_5_10, Refused, take_away};
use common::stdio::Io;
use common::world::{World, refused, until};
use common::{block_on, linux, skipped};
use containerd_shim_protos::api::Mount;
use serde_json::json;
use ttrpc::Code;

fn mount_of(kind: &str, source: &Path, options: &[&str]) -> Mount {
    Mount {
        type_: kind.into(),
        source: source.to_str().unwrap().into(),
        options: options.iter().map(|option| option.to_string()).collect(),
        ..Mount::default()
    }
}

/// As long as containerd's own below its root, and shorter by what they have in common.
fn snapshots(host: &Host) -> PathBuf {
    host.scratch.dir().join("io.containerd.snapshotter.v1.overlayfs/snapshots")
}

/// Layers in these directories, the top one first: each has a file of its own, and all have one in which each says its
/// number.
fn layers(directories: &[PathBuf]) {
    for (number, directory) in directories.iter().enumerate() {
        fs::create_dir_all(directory.join("layers")).unwrap();
        fs::write(directory.join(format!("layers/{number}")), "").unwrap();
        fs::write(directory.join("top"), format!("{number}\n")).unwrap();
    }
}

/// Puts layers on busybox, by the option as a snapshotter writes it: ':' is escaped in none of its paths.
fn stacked(mut bundle: Bundle, directories: &[PathBuf]) -> Bundle {
    layers(directories);
    let all = directories.iter().map(PathBuf::as_path).chain([bundle.busybox()]);
    let all: Vec<_> = all.map(|path| path.to_str().unwrap().replace('\\', "\\\\").replace(':', "\\:")).collect();
    bundle.rootfs[0].options.retain(|option| !option.starts_with("lowerdir="));
    bundle.rootfs[0].options.push(format!("lowerdir={}", all.join(":")));
    bundle
}

fn numbered(host: &Host, count: usize) -> Vec<PathBuf> {
    (0..count).map(|number| snapshots(host).join(number.to_string()).join("fs")).collect()
}

const COUNT: &str = "set -- /layers/*; echo $#; read top </top; echo $top; echo x >/written";

/// That the container sees all layers in their order, and writes to none of them.
async fn all_are_there(host: &Host, bundle: Bundle, directories: &[PathBuf]) {
    let bundle = stacked(bundle, directories).script(COUNT);
    let seen = host.run(&bundle).await.ok();
    assert_eq!(seen, format!("{}\n0\n", directories.len()));
    let upper = host.scratch.dir().join("snapshots/one/fs");
    assert_eq!(fs::read_to_string(upper.join("written")).unwrap(), "x\n");
    assert_eq!(host.scratch.leftovers(), [""; 0]);
}

#[test]
fn an_overlay_may_have_as_many_layers_as_the_kernel_takes() {
    block_on(async {
        // With busybox below, 500 are the most.
        for count in [30, 200, 499] {
            let host = Host::new();
            all_are_there(&host, host.bundle("one"), &numbered(&host, count)).await;
        }
    });
}

#[test]
fn more_layers_than_that_are_refused_with_both_numbers() {
    block_on(async {
        let host = Host::new();
        let bundle = stacked(host.bundle("one"), &numbered(&host, 500));
        host.refused(&bundle).await.names(Code::INVALID_ARGUMENT, &["501 lower directories", "500"]);
    });
}

#[test]
fn a_layer_that_is_missing_is_named() {
    block_on(async {
        for count in [3, 200] {
            let host = Host::new();
            let directories = numbered(&host, count);
            let bundle = stacked(host.bundle("one"), &directories);
            fs::remove_dir_all(&directories[1]).unwrap();
            let refusal = host.refused(&bundle).await;
            assert!(refusal.message.contains("rootfs mount 0") && refusal.message.contains("overlay"), "{refusal:?}");
            // mount(2) says no more than that there is none.
            let named = refusal.message.contains(directories[1].to_str().unwrap());
            assert_eq!(named, count == 200, "{refusal:?}");
        }
    });
}

/// In lowerdir ':' is between layers, in a string of options ',' is between those, and '\\' takes the meaning of both.
#[test]
fn paths_of_layers_may_have_any_characters() {
    block_on(async {
        for more in [0, 100] {
            let host = Host::new();
            let odd = snapshots(&host).join(r"a:b,c\d e");
            // Longer than what fsconfig(2) takes.
            let long = snapshots(&host).join("long".repeat(40)).join("name".repeat(40));
            let mut directories = vec![odd.join("fs"), long];
            directories.extend(numbered(&host, more));
            let mut bundle = host.bundle("one");
            let (upper, work) = (odd.join("upper"), odd.join("work"));
            for directory in [&upper, &work] {
                fs::create_dir_all(directory).unwrap();
            }
            bundle.rootfs[0].options = ["upperdir", "workdir"]
                .iter()
                .zip([&upper, &work])
                .map(|(key, path)| {
                    format!("{key}={}", path.to_str().unwrap().replace('\\', "\\\\").replace(':', "\\:"))
                })
                .collect();
            let bundle = stacked(bundle, &directories).script(COUNT);
            assert_eq!(host.run(&bundle).await.ok(), format!("{}\n0\n", directories.len()), "{more}");
            assert_eq!(fs::read_to_string(upper.join("written")).unwrap(), "x\n", "{more}");
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        }
    });
}

#[test]
fn options_are_those_asked_for_however_many_layers_there_are() {
    // Linux 5.11
    let userxattr = (linux() >= (5, 11)).then_some("userxattr");
    block_on(async {
        for count in [2, 200] {
            let host = Host::new();
            let mut bundle = host.bundle("one");
            bundle.rootfs[0].options.extend(["nosuid", "noatime", "volatile"].map(String::from));
            bundle.rootfs[0].options.extend(userxattr.map(String::from));
            let bundle = stacked(bundle, &numbered(&host, count));
            let container = host.create(&bundle).await;
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let rootfs = at(&table, bundle.rootfs_dir().to_str().unwrap());
            assert!(rootfs.has(&["nosuid", "noatime", "rw"]), "{rootfs:?}");
            assert_eq!((rootfs.fstype.as_str(), rootfs.source.as_str()), ("overlay", "overlay"));
            let options: Vec<_> = rootfs.super_options.split(',').collect();
            assert!(
                userxattr.is_none_or(|option| options.contains(&option)) && rootfs.super_options.contains("volatile"),
                "{rootfs:?}"
            );
            container.run().await.ok();
        }
    });
}

/// Without upper directory, as a container with a read-only snapshot has it.
#[test]
fn a_view_of_many_layers_is_read_only() {
    block_on(async {
        let host = Host::new();
        let mut bundle = host.bundle("one");
        bundle.rootfs[0].options = vec!["ro".into()];
        let bundle = stacked(bundle, &numbered(&host, 200)).script(COUNT);
        let ended = host.run(&bundle).await;
        assert_eq!(ended.stdout, "200\n0\n");
        assert!(ended.stderr.contains("/written: Read-only file system"), "{ended:?}");
    });
}

const NO_NEW_CALLS: [Refused; 2] = [
    Refused { call: libc::SYS_fsopen, with: None, errno: libc::EPERM },
    Refused { call: libc::SYS_fsconfig, with: None, errno: libc::EPERM },
];

/// As overlayfs is before Linux 6.5: it takes text alone, and finds when it is made that the layers are no options it knows
/// (EINVAL, but that would take away every other file system: EPERM is what a shim can be without them for).
/// The bits tell apart linux/mount.h's FSCONFIG_CMD_CREATE, 6, and FSCONFIG_SET_FD, 5, and let FSCONFIG_SET_STRING, 1, be.
const OF_TEXT: [Refused; 2] = [
    Refused { call: libc::SYS_fsconfig, with: Some((1, 2)), errno: libc::EPERM },
    Refused { call: libc::SYS_fsconfig, with: Some((1, 4)), errno: libc::EOPNOTSUPP },
];

/// Linux before 6.8 takes no layers one by one: their paths are relative to what they have in common then. It is tried
/// where a sandbox refuses the calls, and so with a container that needs them for nothing else.
#[test]
fn many_layers_work_without_the_new_calls() {
    without(&NO_NEW_CALLS, many_layers_by_mount);
}

#[test]
fn many_layers_work_with_an_overlayfs_that_takes_a_page_of_options() {
    without(&OF_TEXT, many_layers_by_mount);
}

fn without(calls: &'static [Refused], test: fn()) {
    let apart = std::thread::spawn(move || {
        take_away(calls);
        test();
    });
    apart.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn many_layers_by_mount() {
    block_on(async {
        let bare = |bundle: Bundle| {
            bundle.edit(|spec| {
                spec["mounts"] = json!([]);
                spec["linux"]["maskedPaths"] = json!([]);
            })
        };
        let host = Host::new();
        all_are_there(&host, bare(host.bundle("one")), &numbered(&host, 300)).await;

        let host = Host::new();
        let directories = numbered(&host, 200);
        let bundle = bare(stacked(host.bundle("one"), &directories));
        fs::remove_dir_all(&directories[100]).unwrap();
        let refusal = host.refused(&bundle).await;
        assert!(refusal.message.contains(directories[100].to_str().unwrap()), "{refusal:?}");

        let host = Host::new();
        let scattered = |number| host.scratch.dir().join(format!("{number}-{}", "far".repeat(20)));
        let directories: Vec<_> = (0..200).map(scattered).collect();
        let refusal = host.refused(&bare(stacked(host.bundle("one"), &directories))).await;
        refusal.names(Code::UNIMPLEMENTED, &["201 lower directories", "4095", "Linux 6.8"]);
    });
}

/// The working directory that the relative paths start at is nobody else's.
#[test]
fn the_shim_stays_where_it_is() {
    std::thread::scope(|scope| {
        let apart = scope.spawn(|| {
            take_away(&NO_NEW_CALLS);
            block_on(async {
                let host = Host::new();
                let bundle = stacked(host.bundle("one"), &numbered(&host, 100)).edit(|spec| {
                    spec["mounts"] = json!([]);
                    spec["linux"]["maskedPaths"] = json!([]);
                });
                let container = host.create(&bundle).await;
                let shim = container.shim.pid().await.unwrap();
                assert_eq!(fs::read_link(format!("/proc/{shim}/cwd")).unwrap(), Path::new("/"));
                container.run().await.ok();
            });
        });
        apart.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// The second on a directory of the first, found in it: a link there leads nowhere else.
#[test]
fn several_mounts_are_made_one_after_the_other() {
    block_on(async {
        let host = Host::new();
        let mut bundle = host.bundle("one");
        let below = host.scratch.dir().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("file"), "content\n").unwrap();
        let image = host.scratch.dir().join("snapshots/one/fs");
        fs::create_dir(image.join("data")).unwrap();
        std::os::unix::fs::symlink("/data", image.join("link")).unwrap();
        let mut bind = mount_of("bind", &below, &["rbind", "ro"]);
        bind.target = "/link".into();
        let mut tmpfs = mount_of("tmpfs", Path::new("tmpfs"), &["size=4k", "nosuid", "shared"]);
        tmpfs.target = "home".into();
        bundle.rootfs.extend([bind, tmpfs]);
        let bundle =
            bundle.script("cat /data/file; touch /data/x; grep -c ' /home tmpfs .*nosuid.*size=4k' /proc/mounts");
        let container = host.create(&bundle).await;
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let home = at(&table, bundle.rootfs_dir().join("home").to_str().unwrap());
        assert!(home.propagation.starts_with("shared:"), "{home:?}");
        let ended = container.run().await;
        assert_eq!(ended.stdout, "content\n1\n", "{ended:?}");
        assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// Files that are loop devices.
fn backing_files() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok()).collect()
}

/// As containerd's blockfile snapshotter has it.
#[test]
fn a_file_with_a_file_system_may_be_the_rootfs() {
    if !Path::new("/dev/loop-control").exists() {
        return common::skipped("a_file_with_a_file_system_may_be_the_rootfs", "this kernel has no loop devices");
    }
    block_on(async {
        for readonly in [false, true] {
            let host = Host::new();
            let mut bundle = host.bundle("one");
            let image = host.scratch.dir().join("image");
            let made =
                Command::new("mkfs.ext4").args(["-q", "-d"]).arg(bundle.busybox()).arg(&image).arg("16M").status();
            assert!(made.expect("mkfs.ext4 (e2fsprogs)").success());
            let options: &[&str] = if readonly { &["loop", "ro"] } else { &["loop", "nodiscard"] };
            bundle.rootfs = vec![mount_of("ext4", &image, options)];
            let bundle = bundle.script("grep ' / ' /proc/mounts | cut -d' ' -f3; echo x >/home/x && cat /home/x");
            let ended = host.run(&bundle).await;
            if readonly {
                assert_eq!(ended.stdout, "ext4\n");
                assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
            } else {
                assert_eq!(ended.ok(), "ext4\nx\n");
            }
            assert_eq!(host.scratch.leftovers(), [""; 0]);
            let kept = backing_files().into_iter().filter(|file| Path::new(file.trim()) == image);
            assert_eq!(kept.count(), 0, "the loop device is still there");
        }
    });
}

/// A disk of the host's that takes no write. Its drop lets it have them, and takes it away.
struct Frozen(PathBuf);

impl Frozen {
    fn new(host: &Path, fill: impl FnOnce(&Path)) -> Frozen {
        let (image, disk) = (host.join("disk.img"), host.join("disk"));
        fs::create_dir(&disk).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image).arg("64M"));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk));
        fill(&disk);
        run(Command::new("fsfreeze").arg("-f").arg(&disk));
        Frozen(disk)
    }

    fn thaw(&self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}");
}

/// Whoever is killed in the middle of a mount may still bring it to its end, long after.
#[test]
fn a_mount_that_is_given_up_is_taken_away_once_it_is_there() {
    if !Path::new("/dev/loop-control").exists() {
        let name = "a_mount_that_is_given_up_is_taken_away_once_it_is_there";
        return common::skipped(name, "this kernel has no loop devices");
    }
    block_on(async {
        let (world, mut bundle) = World::with("one", |bundle| bundle.args(&["true"])).await;
        let good = bundle.rootfs.clone();
        let disk = Frozen::new(world.scratch.dir(), |disk| {
            run(Command::new("mkfs.ext4").args(["-q", "-d"]).arg(bundle.busybox()).arg(disk.join("image")).arg("16M"));
        });
        let image = disk.0.join("image");
        bundle.rootfs = vec![mount_of("ext4", &image, &["loop"])];
        let creating = async {
            refused(world.create(&bundle, &Io::null()).await, Code::UNAVAILABLE, &["deleted while"]);
        };
        let deleting = async {
            let is_attached = || backing_files().iter().any(|file| Path::new(file.trim()) == image);
            until("the loop device", is_attached).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let thawing = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                disk.thaw();
            };
            let (deleted, ()) = futures::join!(world.delete("one", ""), thawing);
            refused(deleted, Code::NOT_FOUND, &["one"]);
            until("the loop device's end", || !is_attached()).await;
        };
        futures::join!(creating, deleting);
        assert!(mounts_below(&bundle.rootfs_dir()).is_empty());
        drop(disk);
        bundle.rootfs = good;
        world.run(&bundle).await;
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn a_device_that_is_none_is_an_error_that_names_it() {
    block_on(async {
        let host = Host::new();
        let mut bundle = host.bundle("one");
        let image = host.scratch.dir().join("image");
        fs::write(&image, vec![0; 65536]).unwrap();
        for (source, options, words) in [
            (&image, &["loop"][..], &["mount ext4 on"][..]),
            (&host.scratch.dir().join("nothing"), &["loop"], &["nothing"]),
            (&host.scratch.dir().join("nothing"), &[], &["mount ext4 on"]),
        ] {
            bundle.rootfs = vec![mount_of("ext4", source, options)];
            let refusal = host.refused(&bundle).await;
            assert!(refusal.message.contains("rootfs mount 0"), "{refusal:?}");
            assert!(words.iter().all(|word| refusal.message.contains(word)), "{refusal:?}");
        }
        let kept = backing_files().into_iter().filter(|file| Path::new(file.trim()) == image);
        assert_eq!(kept.count(), 0, "the loop device is still there");
    });
}

/// As containerd 2.x has them for a container in a user namespace: the container of this test is in none, and sees the
/// owners that the host sees.
#[test]
fn owners_of_layers_are_mapped_where_that_is_asked_for() {
    if linux() < (5, 19) {
        return skipped(
            "owners_of_layers_are_mapped_where_that_is_asked_for",
            "layers with mapped ids are Linux 5.19's",
        );
    }
    block_on(async {
        for count in [2, 200] {
            let host = Host::new();
            let mut bundle = host.bundle("one");
            let ids = ["uidmap=0:100000:65536", "gidmap=0:200000:1000,1000:7:1", "nosuid"];
            bundle.rootfs[0].options.extend(ids.map(String::from));
            let directories = numbered(&host, count);
            let bundle = stacked(bundle, &directories);
            chown(directories[1].join("layers/1"), Some(5), Some(1000)).unwrap();
            let script = "stat -c %u:%g /top /layers/1 /bin/busybox; echo x >/written; stat -c %u:%g /written";
            let bundle = bundle.script(&format!("{script}; {COUNT}"));
            let container = host.create(&bundle).await;
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let rootfs = at(&table, bundle.rootfs_dir().to_str().unwrap());
            assert!(rootfs.fstype == "overlay" && rootfs.has(&["nosuid"]), "{rootfs:?}");
            let seen = container.run().await.ok();
            let wanted = "100000:200000\n100005:7\n100000:200000\n0:0\n";
            assert_eq!(seen, format!("{wanted}{count}\n0\n"));
            assert_eq!(fs::metadata(directories[0].join("top")).unwrap().uid(), 0, "on disk nothing has changed");
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        }
    });
}

#[test]
fn owners_of_a_bind_are_mapped_where_that_is_asked_for() {
    if linux() < (5, 12) {
        return skipped(
            "owners_of_a_bind_are_mapped_where_that_is_asked_for",
            "mounts with mapped ids are Linux 5.12's",
        );
    }
    block_on(async {
        let host = Host::new();
        let mut bundle = host.bundle("one");
        let below = with_mapped_bind(&host, &mut bundle);
        fs::write(below.join("file"), "").unwrap();
        let seen = host.run(&bundle.script("stat -c %u:%g /home/file")).await;
        assert_eq!(seen.ok(), "100000:200000\n");
        assert_eq!(host.scratch.leftovers(), [""; 0]);

        let host = Host::new();
        let mut bundle = host.bundle("one");
        bundle.rootfs[0].options.extend(["uidmap=0:1:2:3", "gidmap=0:1:1"].map(String::from));
        host.refused(&bundle).await.names(Code::INVALID_ARGUMENT, &["uidmap", "0:1:2:3"]);
        // Twice the same id: the kernel's to refuse, and nothing is left.
        let host = Host::new();
        let mut bundle = host.bundle("one");
        bundle.rootfs[0].options.extend(["uidmap=0:1:1,0:5:1", "gidmap=0:1:1"].map(String::from));
        let refusal = host.refused(&bundle).await;
        assert!(refusal.message.contains("uid_map"), "{refusal:?}");
    });
}

#[test]
fn owners_that_this_kernel_cannot_map_are_refused() {
    without(LINUX_5_10, || {
        block_on(async {
            let host = Host::new();
            let mut bundle = host.bundle("one");
            with_mapped_bind(&host, &mut bundle);
            host.refused(&bundle).await.names(Code::UNIMPLEMENTED, &["rootfs mount 1", "IDMAP", "Linux 5.12"]);
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
    });
}

/// A directory bound on /home, with other owners.
fn with_mapped_bind(host: &Host, bundle: &mut Bundle) -> PathBuf {
    let below = host.scratch.dir().join("below");
    fs::create_dir(&below).unwrap();
    let mut bind = mount_of("bind", &below, &["rbind", "uidmap=0:100000:65536", "gidmap=0:200000:65536"]);
    bind.target = "home".into();
    bundle.rootfs.push(bind);
    below
}
