//! Bind mounts whose files have other owners: idmap and ridmap, by mappings of their own or of the user namespace.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use common::bundle::Bundle;
use common::container::Host;
use common::mountinfo::at;
use common::seccomp::{missing, take_away};
use common::{block_on, linux, skipped};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use ttrpc::Code;

/// The host's owner of what root of a user namespace has.
const ROOT: u32 = 100_000;

/// The owner of what has none here (proc_sys_kernel(5), overflowuid).
const NOBODY: u32 = 65_534;

/// A directory with a file of each of some owners, and a tmpfs below it with the same, until it is dropped.
struct Volume(PathBuf);

impl Volume {
    fn new(host: &Host, owners: &[(u32, u32)]) -> Volume {
        let top = host.scratch.dir().join("volume");
        fs::create_dir_all(top.join("sub")).unwrap();
        mount(Some("tmpfs"), &top.join("sub"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        for (uid, gid) in owners {
            for dir in [top.clone(), top.join("sub")] {
                let file = dir.join(format!("{uid}"));
                fs::write(&file, "").unwrap();
                chown(&file, Some(*uid), Some(*gid)).unwrap();
            }
        }
        Volume(top)
    }

    fn bind(&self, options: &[&str]) -> Value {
        json!({"destination": "/v", "type": "bind", "source": self.0, "options": options})
    }

    fn owner(&self, file: &str) -> (u32, u32) {
        let data = fs::metadata(self.0.join(file)).unwrap();
        (data.uid(), data.gid())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = umount2(&self.0.join("sub"), MntFlags::MNT_DETACH);
    }
}

/// Says so where a tmpfs, which there is in each volume, cannot have other owners: before Linux 6.3.
fn lacks_mappings(test: &str) -> bool {
    let lacks = linux() < (6, 3);
    if lacks {
        skipped(test, "a tmpfs of this kernel has no mapped owners");
    }
    lacks
}

fn ids(ranges: &[(u32, u32, u32)]) -> Value {
    let range =
        |(inside, outside, size): &(u32, u32, u32)| json!({"containerID": inside, "hostID": outside, "size": size});
    ranges.iter().map(range).collect()
}

fn mapped(mut mount: Value, uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> Value {
    mount["uidMappings"] = ids(uids);
    mount["gidMappings"] = ids(gids);
    mount
}

fn userns(bundle: Bundle) -> Bundle {
    bundle.user_namespace(ROOT)
}

const OWNERS: &str = "cd /v; stat -c %n:%u:%g *[0-9] sub/*";

/// The file system's ids are the mapping's containerIDs and what is seen are its hostIDs; what is written goes back.
/// Proves: mounts.{uidMappings,gidMappings}
#[test]
fn a_mount_may_have_a_mapping_of_its_own() {
    if lacks_mappings("a_mount_may_have_a_mapping_of_its_own") {
        return;
    }
    block_on(async {
        // With the option or without it, of which only the first is a word that older runtimes would stumble over.
        for options in [&["rbind", "idmap"][..], &["bind"], &["rbind", "rro", "rw"], &["rbind", "idmap", "rshared"]] {
            let host = Host::new();
            let volume = Volume::new(&host, &[(1000, 1001), (7, 7)]);
            let mount = mapped(volume.bind(options), &[(1000, 0, 1), (0, 1000, 1)], &[(1001, 5, 1), (0, 0, 1)]);
            let script =
                "cd /v; stat -c %n:%u:%g 1000 7; touch new; chown 1000:0 new 2>/dev/null; stat -c %n:%u:%g new";
            let ended = host.run(&host.bundle("one").mount(mount).script(script)).await;
            let read_only = options.contains(&"rro");
            let new = if read_only { "" } else { "new:1000:0\n" };
            assert_eq!(ended.stdout, format!("1000:0:5\n7:{NOBODY}:{NOBODY}\n{new}"), "{options:?} {ended:?}");
            if !read_only {
                assert_eq!((volume.owner("new"), volume.owner("1000")), ((0, 0), (1000, 1001)), "{options:?}");
            }
            drop(volume);
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        }
    });
}

/// Proves: mounts.options={idmap,ridmap}
#[test]
fn idmap_is_for_the_top_and_ridmap_for_the_tree() {
    if lacks_mappings("idmap_is_for_the_top_and_ridmap_for_the_tree") {
        return;
    }
    block_on(async {
        for (option, below) in [("idmap", "sub/1000:1000:1000"), ("ridmap", "sub/1000:0:0")] {
            let host = Host::new();
            let volume = Volume::new(&host, &[(1000, 1000)]);
            let mount = mapped(volume.bind(&["rbind", option]), &[(1000, 0, 1)], &[(1000, 0, 1)]);
            let out = host.run(&host.bundle("one").mount(mount).script(OWNERS)).await.ok();
            assert_eq!(out, format!("1000:0:0\n{below}\n"), "{option}");
        }
    });
}

/// The files of the host's ids from 0 on are the container's, as they are of its root.
#[test]
fn without_mappings_they_are_those_of_the_new_user_namespace() {
    if lacks_mappings("without_mappings_they_are_those_of_the_new_user_namespace") {
        return;
    }
    block_on(async {
        for (option, below) in [("idmap", NOBODY), ("ridmap", 0)] {
            let host = Host::new();
            let volume = Volume::new(&host, &[(0, 0), (1000, 1001), (70_000, 70_000)]);
            // Nobody but the host's root may come near it.
            fs::set_permissions(host.scratch.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            let script = format!("{OWNERS}; cat /proc/self/mountinfo >&2; touch new");
            let plain = json!({"destination": "/p", "type": "bind", "source": volume.0, "options": ["rbind"]});
            let bundle = userns(host.bundle("one")).mount(volume.bind(&["rbind", option, "nosuid"])).mount(plain);
            let ended = host.run(&bundle.script(&format!("{script}; stat -c %u /p/0 /p/new"))).await;
            let group = if below == 0 { 1001 } else { NOBODY };
            let user = if below == 0 { 1000 } else { NOBODY };
            let expected = format!(
                "0:0:0\n1000:1000:1001\n70000:{NOBODY}:{NOBODY}\nsub/0:{below}:{below}\nsub/1000:{user}:{group}\n\
                 sub/70000:{NOBODY}:{NOBODY}\n{NOBODY}\n{NOBODY}\n"
            );
            assert_eq!(ended.stdout, expected, "{option} {ended:?}");
            assert_eq!(volume.owner("new"), (0, 0), "what its root writes is root's on the disk");
            assert!(at(&ended.stderr, "/v").has(&["nosuid", "idmapped"]), "{ended:?}");
        }
    });
}

#[test]
fn in_a_user_namespace_a_mount_may_have_another_mapping_or_the_same_said_again() {
    if lacks_mappings("in_a_user_namespace_a_mount_may_have_another_mapping_or_the_same_said_again") {
        return;
    }
    block_on(async {
        let host = Host::new();
        let volume = Volume::new(&host, &[(1000, 1000)]);
        let other = mapped(volume.bind(&["rbind", "idmap"]), &[(1000, ROOT + 5, 1)], &[(1000, ROOT + 6, 1)]);
        let same = [(0, ROOT, 65_536)];
        let mut said = mapped(volume.bind(&["rbind"]), &same, &same);
        said["destination"] = json!("/s");
        let file = json!({"destination": "/file", "source": volume.0.join("1000"), "options": ["bind", "idmap", "ro"]});
        let bundle = userns(host.bundle("one")).mount(other).mount(said).mount(file);
        let out = host.run(&bundle.script("stat -c %u:%g /v/1000 /s/1000 /file")).await.ok();
        assert_eq!(out, "5:6\n1000:1000\n1000:1000\n");
    });
}

#[test]
fn without_mappings_they_are_those_of_the_joined_user_namespace() {
    if lacks_mappings("without_mappings_they_are_those_of_the_joined_user_namespace") {
        return;
    }
    block_on(async {
        let owner = Host::new();
        let first = owner.bundle("one");
        let first = userns(first).args(&["sleep", "1000"]);
        let first = owner.start(&first).await;
        let host = Host::new();
        let volume = Volume::new(&host, &[(0, 0), (1000, 1001)]);
        let bundle = userns(host.bundle("two")).mount(volume.bind(&["rbind", "idmap"])).script("stat -c %u:%g /v/*0");
        let bundle = bundle.edit(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            let user = namespaces.iter_mut().find(|namespace| namespace["type"] == "user").unwrap();
            user["path"] = json!(format!("/proc/{}/ns/user", first.pid));
        });
        assert_eq!(host.run(&bundle).await.ok(), "0:0\n1000:1001\n");
        first.end().await;
    });
}

/// What cannot be mapped is not mounted without a mapping.
#[test]
fn what_cannot_be_mapped_is_refused_by_its_file_system() {
    block_on(async {
        for in_userns in [false, true] {
            let host = Host::new();
            let mount =
                json!({"destination": "/v", "type": "bind", "source": "/sys/class", "options": ["bind", "idmap"]});
            let mount = mapped(mount, &[(0, 5, 1)], &[(0, 5, 1)]);
            let bundle = host.bundle("one").mount(mount);
            let bundle = if in_userns { userns(bundle) } else { bundle };
            let refusal = host.refused(&bundle).await;
            refusal.names(Code::UNIMPLEMENTED, &["/v", "sysfs on /sys", "MOUNT_ATTR_IDMAP", "invalid argument"]);
        }
        // By the kernel's own words: ids that are there twice are ours to refuse, and too many user namespaces are not.
        let host = Host::new();
        let volume = Volume::new(&host, &[]);
        for (mount, words) in [
            (volume.bind(&["bind", "idmap"]), "user namespace"),
            (mapped(volume.bind(&["bind"]), &[(0, 0, 1), (0, 5, 1)], &[(0, 0, 1)]), "uidMappings[1] overlaps"),
            (mapped(volume.bind(&["bind"]), &[(0, 0, 1)], &[]), "uidMappings needs gidMappings"),
        ] {
            let other = Host::new();
            let refusal = other.refused(&other.bundle("one").mount(mount)).await;
            refusal.names(Code::INVALID_ARGUMENT, &["mounts[7]", words]);
        }
    });
}

#[test]
fn an_old_kernel_refuses_mappings_and_does_not_pass_them_over() {
    let apart = std::thread::spawn(|| {
        take_away(&[missing(libc::SYS_mount_setattr)]);
        block_on(async {
            for in_userns in [false, true] {
                let host = Host::new();
                let volume = Volume::new(&host, &[]);
                let bundle = host.bundle("one").mount(mapped(volume.bind(&["rbind"]), &[(0, 5, 1)], &[(0, 5, 1)]));
                let bundle = if in_userns { userns(bundle) } else { bundle };
                let refusal = host.refused(&bundle).await;
                refusal.names(Code::UNIMPLEMENTED, &["/v", "MOUNT_ATTR_IDMAP", "Linux 5.12"]);
            }
        });
    });
    apart.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A mapping costs the shim a process for a moment, which is gone, and a descriptor, which is closed.
#[test]
fn nothing_of_a_mapping_is_left_in_the_shim() {
    if lacks_mappings("nothing_of_a_mapping_is_left_in_the_shim") {
        return;
    }
    block_on(async {
        let host = Host::new();
        let volume = Volume::new(&host, &[(1000, 1000)]);
        let mut bundle = host.bundle("one").args(&["sleep", "1000"]);
        for n in 0..8 {
            let mut mount = mapped(volume.bind(&["bind"]), &[(1000, n, 1)], &[(1000, n, 1)]);
            mount["destination"] = json!(format!("/v{n}"));
            bundle = bundle.mount(mount);
        }
        let container = host.start(&bundle).await;
        let shim = container.shim.pid().await.unwrap();
        let links = |dir: &Path| -> Vec<String> {
            let entries = fs::read_dir(dir).unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
            entries.map(|link| link.to_string_lossy().into_owned()).filter(|link| link.starts_with("user:")).collect()
        };
        for pid in [shim.to_string(), container.pid.to_string()] {
            assert_eq!(links(Path::new(&format!("/proc/{pid}/fd"))), [""; 0], "{pid}");
        }
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        assert_eq!(children.trim(), container.pid.to_string());
        let out = container.exec_script("look", "stat -c %u:%g /v?/1000").await.ok();
        assert_eq!(out, (0..8).map(|n| format!("{n}:{n}\n")).collect::<String>());
        container.end().await;
    });
}
