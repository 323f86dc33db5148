//! What a container can do to a directory that it shares with one which is being created: two names in it are exchanged
//! without a pause, a directory or a file of the container's for a link to something of the host's.
//!
//! Whether a create fails meanwhile is its own affair; what it does not do is follow the link out of the container.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};
use ttrpc::Code;

use common::attacker::attacker;
use common::block_on;
use common::bundle::Bundle;
use common::container::Host;
use common::driver::code;
use common::mountinfo::{MountLine, parse};
use common::scratch::mounts_below;
use common::stdio::Io;
use common::world::{World, until};

/// What a container would have of the host's, were something of its own to lead there.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// Inside: exchanges two names for as long as it lives.
pub fn exchange(directory: &str, one: &str, other: &str) {
    let (one, other) = (Path::new(directory).join(one), Path::new(directory).join(other));
    fs::write("/racing", "").unwrap();
    loop {
        renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
    }
}

/// A shim with a container that exchanges two names in a directory of the host's.
struct Race {
    world: World,
    racer: Bundle,
}

impl Race {
    /// In `directory`, a path in the scratch directory that `fill` makes and which the racer has at /vol.
    async fn start(directory: &str, one: &str, other: &str, fill: impl FnOnce(&Path, &Path)) -> Race {
        let (world, racer) = World::with("racer", |bundle| {
            let scratch = bundle.scratch().dir().to_owned();
            let (volume, outside) = (scratch.join(directory), scratch.join("outside"));
            fs::create_dir_all(&volume).unwrap();
            fs::create_dir(&outside).unwrap();
            // For the root of a user namespace too.
            fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
            fill(&volume, &outside);
            let bind = json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", "rw"]});
            attacker(bundle.mount(bind), &format!("exchange /vol {one} {other}"))
        })
        .await;
        let race = Race { world, racer };
        race.world.run(&race.racer).await;
        let racing = race.racer.rootfs_dir().join("racing");
        until("the racer", || racing.exists()).await;
        race
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.scratch.dir().join(name)
    }

    /// A bind of the directory.
    fn volume(&self, destination: &str) -> Value {
        json!({"destination": destination, "type": "bind", "source": self.path("volume"), "options": ["rbind", "rw"]})
    }

    /// Creates and removes the container time and again; looks at each that could be created, and at the host. Says how
    /// many there were.
    async fn rounds(&self, count: usize, bundle: &Bundle, terminal: bool, mut look: impl FnMut(u32)) -> usize {
        let mut io = Io::null();
        io.terminal = terminal;
        let (mut created, mut refusals) = (0, BTreeSet::new());
        for _ in 0..count {
            match self.world.create(bundle, &io).await {
                Ok(answer) => {
                    look(answer.pid);
                    self.world.end(&bundle.id).await;
                    created += 1;
                }
                Err(e) => {
                    assert!(code(&e).is_some(), "{e}");
                    refusals.insert(e.to_string());
                }
            }
            let outside = self.path("outside");
            let made: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(made, [""; 0].map(PathBuf::from), "made on the host");
            assert_eq!(mounts_below(&outside), [""; 0].map(PathBuf::from), "mounted on the host");
        }
        println!("{created} of {count} created; refused: {refusals:#?}");
        created
    }

    async fn end(self) {
        self.world.end("racer").await;
        self.world.close().await;
    }
}

/// The mounts of a container.
fn mounts_of(pid: u32) -> Vec<MountLine> {
    parse(&fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap())
}

fn without_dev(spec: &mut Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
}

fn unmasked(spec: &mut Value) {
    spec["linux"]["maskedPaths"] = json!([]);
}

fn here_and_a_link_outside(volume: &Path, outside: &Path) {
    fs::create_dir(volume.join("here")).unwrap();
    symlink(outside, volume.join("there")).unwrap();
}

/// CVE-2021-30465: runc resolved a mount's target and mounted on the path that came of it, in which a link had been put
/// meanwhile: the mount was on the host's tree. Here the target is resolved once, in-root, and mounted on by descriptor:
/// each mount is in the container, wherever.
#[test]
fn cve_2021_30465_no_target_that_is_exchanged_takes_a_mount_to_the_host() {
    block_on(async {
        let race = Race::start("volume", "here", "there", |volume, outside| {
            // Where the link leads there is what is mounted on.
            let trap = outside.with_file_name("trap");
            fs::create_dir_all(trap.join("sub")).unwrap();
            fs::write(trap.join("file"), "").unwrap();
            fs::create_dir(volume.join("here")).unwrap();
            symlink(trap, volume.join("there")).unwrap();
        })
        .await;
        let file = race.path("payload-file");
        fs::write(&file, "").unwrap();
        let bundle = Bundle::new(&race.world.scratch, "victim")
            .mount(race.volume("/vol"))
            .mount(json!({"destination": "/vol/here/sub", "type": "tmpfs", "source": "payload"}))
            .mount(json!({"destination": "/vol/here/file", "source": file, "options": ["bind"]}));
        let created = race
            .rounds(80, &bundle, false, |pid| {
                let mounts = mounts_of(pid);
                let inside = mounts.iter().filter(|m| m.source == "payload" || m.root.ends_with("/payload-file"));
                assert_eq!(inside.count(), 2, "a mount is not in the container: {mounts:#?}");
            })
            .await;
        assert!(created > 0);
        race.end().await;
    });
}

/// CVE-2024-45310: runc made the missing directories of a target by path, after it had looked at it. Here each is made by
/// descriptor, below what was resolved in-root, and no link that appears there is followed.
#[test]
fn cve_2024_45310_no_directory_or_file_is_made_on_the_host() {
    block_on(async {
        let race = Race::start("volume", "here", "there", here_and_a_link_outside).await;
        let file = race.path("file");
        fs::write(&file, "").unwrap();
        let bundle = Bundle::new(&race.world.scratch, "victim")
            .mount(race.volume("/vol"))
            .mount(json!({"destination": "/vol/here/a/b/c", "type": "tmpfs", "source": "tmpfs"}))
            .mount(json!({"destination": "/vol/here/d/file", "source": file, "options": ["bind"]}))
            .edit(|spec| {
                spec["process"]["cwd"] = json!("/vol/here/e/f/g");
                spec["linux"]["devices"] = json!([{"path": "/vol/here/h/null", "type": "c", "major": 1, "minor": 3}]);
            });
        let created = race.rounds(60, &bundle, false, |_| ()).await;
        assert!(created > 0);
        race.end().await;
    });
}

/// What may be in the place of a null device.
const OTHERS: [&str; 3] = ["a link", "a file", "another device"];

fn make_other(path: &Path, other: &str) {
    match other {
        "a link" => symlink(CORE_PATTERN, path).unwrap(),
        "a file" => fs::write(path, "").unwrap(),
        _ => mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap(),
    }
}

/// CVE-2025-31133: runc covered masked files with whatever was at the container's /dev/null: a link to a file in /proc
/// made that writable. Here it is the null device by what the descriptor says that is then bound, or there is no container.
#[test]
fn cve_2025_31133_what_covers_a_masked_file_is_the_null_device() {
    let masked = ["/proc/keys", "/proc/kcore", "/proc/timer_list"];
    let masked: Vec<_> = masked.into_iter().filter(|path| Path::new(path).exists()).collect();
    assert!(!masked.is_empty());
    let null = |path: &Path| mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    for other in OTHERS {
        block_on(async {
            let race = Race::start("volume", "null", "other", |volume, _| {
                null(&volume.join("null"));
                make_other(&volume.join("other"), other);
            })
            .await;
            let bundle = Bundle::new(&race.world.scratch, "victim").edit(without_dev).edit(|spec| {
                spec["mounts"].as_array_mut().unwrap().push(race.volume("/dev"));
                spec["linux"]["maskedPaths"] = json!(masked);
            });
            let created = race
                .rounds(50, &bundle, false, |pid| {
                    for path in &masked {
                        let cover = fs::symlink_metadata(format!("/proc/{pid}/root{path}")).unwrap();
                        let is_null = cover.file_type().is_char_device() && cover.rdev() == makedev(1, 3);
                        assert!(is_null, "{other}: {path} is {cover:?}");
                    }
                })
                .await;
            assert!(created > 0, "{other}");
            race.end().await;
        });
    }
}

/// CVE-2025-31133, in an image without a mount on /dev: what it has in the place of a default device is not taken for that.
#[test]
fn cve_2025_31133_an_image_with_another_dev_null_is_refused() {
    for other in OTHERS {
        block_on(async {
            let host = Host::new();
            let bundle = host.bundle("one").plain_rootfs().edit(without_dev);
            make_other(&bundle.rootfs_dir().join("dev/null"), other);
            host.refused(&bundle)
                .await
                .names(Code::INVALID_ARGUMENT, &["making devices", "/dev/null", "something else"]);
        });
    }
}

/// CVE-2025-52565: runc bound the terminal onto the container's /dev/console by path: a link there took it to a file in
/// /proc. Here the slave is opened through its master, and bound onto what a descriptor says is no link.
#[test]
fn cve_2025_52565_the_console_is_bound_on_nothing_but_dev_console() {
    block_on(async {
        let race = Race::start("volume", "console", "other", |volume, _| {
            fs::write(volume.join("console"), "").unwrap();
            symlink(CORE_PATTERN, volume.join("other")).unwrap();
        })
        .await;
        let bundle = Bundle::new(&race.world.scratch, "victim").edit(without_dev).edit(unmasked).edit(|spec| {
            spec["process"]["terminal"] = json!(true);
            let devpts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                        "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]});
            spec["mounts"].as_array_mut().unwrap().extend([race.volume("/dev"), devpts]);
        });
        let created = race
            .rounds(50, &bundle, true, |pid| {
                let mounts = mounts_of(pid);
                let terminals: Vec<_> = mounts.iter().filter(|mount| mount.fstype == "devpts").collect();
                // A name that is exchanged later takes its mount along.
                let in_dev = terminals.iter().all(|mount| mount.point.starts_with("/dev/"));
                assert!(terminals.len() == 2 && in_dev, "{mounts:#?}");
            })
            .await;
        assert!(created > 0);
        race.end().await;
    });
}

/// The victim's rootfs is the directory in which `dev` is exchanged for a link to a directory of the host's.
async fn race_for_dev(user_namespace: bool) {
    let race = Race::start("bundles/victim/rootfs", "dev", "link", |rootfs, outside| {
        symlink(outside, rootfs.join("link")).unwrap();
        fs::create_dir(rootfs.join("dev")).unwrap();
        fs::set_permissions(rootfs.join("dev"), fs::Permissions::from_mode(0o777)).unwrap();
    })
    .await;
    let mut bundle = Bundle::new(&race.world.scratch, "victim").edit(without_dev).edit(unmasked);
    bundle.rootfs.clear();
    let rootfs = bundle.rootfs_dir();
    for entry in fs::read_dir(bundle.busybox()).unwrap().map(|entry| entry.unwrap()) {
        // The racer has it already.
        if entry.file_name() != "dev" {
            let copied = std::process::Command::new("cp").arg("-a").arg(entry.path()).arg(&rootfs).status();
            assert!(copied.unwrap().success());
        }
    }
    if user_namespace {
        bundle = bundle.user_namespace(100_000);
        chown(&rootfs, Some(100_000), Some(100_000)).unwrap();
    }
    let made = |path: &str| json!({"path": path, "type": "c", "major": 1, "minor": 3});
    bundle = bundle.edit(|spec| spec["linux"]["devices"] = json!([made("/dev/a"), made("/dev/b/c")]));
    race.rounds(60, &bundle, false, |_| ()).await;
    race.end().await;
}

/// CVE-2026-41579: runc made the devices of an image whose /dev is a link where the link led, on the host. Here /dev is
/// opened in-root and must be no link, and the nodes are made by descriptor.
#[test]
fn cve_2026_41579_no_device_is_made_on_the_host() {
    for target in ["/etc", "../../../../dev"] {
        an_image_with_a_link(&["dev"], target);
    }
    block_on(race_for_dev(false));
}

/// CVE-2026-47766: the same of crun. In a user namespace, where nodes are bound on files that are made for them.
#[test]
fn cve_2026_47766_no_target_of_a_device_is_made_on_the_host() {
    block_on(race_for_dev(true));
}

/// CVE-2019-19921: runc mounted proc where a link of the image's led, and then trusted what was at /proc. Here proc and
/// sysfs are mounted at their own names or there is no container.
#[test]
fn cve_2019_19921_proc_and_sys_through_a_link_of_the_images_are_refused() {
    for target in ["etc", "/", "/etc", "../../../../proc", "../../../../sys"] {
        an_image_with_a_link(&["proc", "sys"], target);
    }
}

fn an_image_with_a_link(names: &[&str], target: &str) {
    for name in names {
        block_on(async {
            let host = Host::new();
            let bundle = host.bundle("one").plain_rootfs().edit(unmasked);
            let path = bundle.rootfs_dir().join(name);
            fs::remove_dir(&path).unwrap();
            symlink(target, &path).unwrap();
            let refusal = host.refused(&bundle).await;
            assert!(refusal.message.contains(&format!("/{name}")), "{name} -> {target}: {refusal:?}");
        });
    }
}

/// CVE-2023-27561, which was CVE-2019-19921 again: the link leads into a volume, in which another container exchanges what
/// it leads to. Here too the link itself is refused, each time.
#[test]
fn cve_2023_27561_proc_through_a_volume_that_is_exchanged_is_refused() {
    block_on(async {
        let race = Race::start("volume", "here", "there", |volume, _| {
            fs::create_dir_all(volume.join("here/proc/self/attr")).unwrap();
            fs::create_dir_all(volume.join("there/proc")).unwrap();
        })
        .await;
        let bundle = Bundle::new(&race.world.scratch, "victim").plain_rootfs().edit(unmasked).edit(|spec| {
            // Before proc, as with Docker's order of depth it would not be; the attack wants it to be there.
            spec["mounts"].as_array_mut().unwrap().insert(0, race.volume("/vol"));
        });
        fs::remove_dir(bundle.rootfs_dir().join("proc")).unwrap();
        symlink("vol/here/proc", bundle.rootfs_dir().join("proc")).unwrap();
        let created = race.rounds(40, &bundle, false, |_| ()).await;
        assert_eq!(created, 0, "created with a /proc that is not proc");
        race.end().await;
    });
}
