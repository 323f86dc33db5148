//! tmpcopyup: a tmpfs that begins with a copy of what it covers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use common::block_on;
use common::bundle::Bundle;
use common::container::Host;
use common::mountinfo::at;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use rustix::fs::XattrFlags;
use serde_json::{Value, json};

/// Where a bundle's overlay keeps what differs from busybox: files put here are the image's.
fn image(host: &Host) -> PathBuf {
    host.scratch.dir().join("snapshots/one/fs")
}

fn copied(destination: &str, options: &[&str]) -> Value {
    let options = [&["tmpcopyup"], options].concat();
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// A file of the image's with everything that it may have.
fn file(path: &Path, content: &str, mode: u32, owner: u32) {
    fs::write(path, content).unwrap();
    chown(path, Some(owner), Some(owner + 1)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// One of each kind, in /data of the image.
fn kinds(host: &Host) -> PathBuf {
    let data = image(host).join("data");
    fs::create_dir_all(data.join("a/b/c")).unwrap();
    file(&data.join("plain"), "content\n", 0o640, 1000);
    file(&data.join("a/b/c/setuid"), &"x".repeat(3_000_000), 0o4755, 7);
    file(&data.join("empty"), "", 0, 0);
    fs::set_permissions(data.join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    chown(data.join("a"), Some(5), Some(6)).unwrap();
    symlink("/etc/passwd", data.join("absolute")).unwrap();
    symlink("../../nowhere", data.join("dangling")).unwrap();
    std::os::unix::fs::lchown(data.join("dangling"), Some(8), Some(9)).unwrap();
    drop(UnixListener::bind(data.join("socket")).unwrap());
    mkfifo(&data.join("fifo"), Mode::from_bits_truncate(0o622)).unwrap();
    fs::set_permissions(data.join("fifo"), fs::Permissions::from_mode(0o622)).unwrap();
    fs::set_permissions(data.join("socket"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o751)).unwrap();
    data
}

const LOOK: &str =
    "cd /data; find . | sort | xargs stat -c '%n %F %a %u:%g %s' | sed 's/ directory \\(.*\\) .*/ directory \\1/'";

/// Proves: mounts.options=tmpcopyup
#[test]
fn all_that_was_there_is_in_the_tmpfs_and_the_image_stays_as_it_was() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one");
        let data = kinds(&host);
        mknod(&data.join("device"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3)).unwrap();
        let script = format!(
            "{LOOK}; stat -c %t:%T device; readlink absolute; readlink dangling; cat plain; tr -d x < a/b/c/setuid | wc -c
            echo changed > plain; touch a/new; rm fifo; cat /proc/self/mountinfo >&2"
        );
        let ended = host.run(&bundle.mount(copied("/data", &["size=8m", "nosuid", "noatime"])).script(&script)).await;
        let expected = "\
. directory 751 0:0
./a directory 755 5:6
./a/b directory 1777 0:0
./a/b/c directory 755 0:0
./a/b/c/setuid regular file 4755 7:8 3000000
./absolute symbolic link 777 0:0 11
./dangling symbolic link 777 8:9 13
./device character special file 600 0:0 0
./empty regular empty file 0 0:1 0
./fifo fifo 622 0:0 0
./plain regular file 640 1000:1001 8
./socket socket 755 0:0 0
1:3
/etc/passwd
../../nowhere
content
0
";
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
        let line = at(&ended.stderr, "/data");
        assert!(line.fstype == "tmpfs" && line.has(&["rw", "nosuid", "noatime"]), "{line:?}");
        assert!(line.super_options.contains("size=8192k"), "{line:?}");
        assert_eq!(fs::read_to_string(data.join("plain")).unwrap(), "content\n");
        assert!(!data.join("a/new").exists() && data.join("fifo").exists());
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// A capability of a file's, by which it would run with more or less than in the image.
#[test]
fn extended_attributes_are_copied() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one");
        let data = image(&host).join("data");
        fs::create_dir(&data).unwrap();
        file(&data.join("ping"), "", 0o755, 3);
        // VFS_CAP_REVISION_2 with the effective bit, CAP_NET_RAW (linux/capability.h).
        let words = [0x0200_0001u32, 1 << 13, 0, 0, 0];
        let capability: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        rustix::fs::setxattr(data.join("ping"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        let bundle = bundle.mount(copied("/data", &[])).args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let inside = format!("/proc/{}/root/data/ping", container.pid);
        let mut found = [0; 64];
        let length = rustix::fs::getxattr(&inside, "security.capability", &mut found).unwrap();
        assert_eq!(found[..length], capability);
        assert_eq!(fs::metadata(&inside).unwrap().uid(), 3);
        container.end().await;
    });
}

/// It is complete when it is seen, and stays so: also one that nothing can be written to.
#[test]
fn a_read_only_one_is_filled_all_the_same() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one");
        kinds(&host);
        let script = "cat /data/plain; touch /data/x; mount | grep -c ' /data '";
        let ended = host.run(&bundle.mount(copied("/data", &["ro", "mode=700", "uid=4"])).script(script)).await;
        assert_eq!(
            (ended.stdout.as_str(), ended.stderr.as_str()),
            ("content\n1\n", "touch: /data/x: Read-only file system\n")
        );
    });
}

/// Links of the image lead nowhere else: neither the destination nor what is below it. What is mounted there is copied.
#[test]
fn no_link_leads_out_and_mounts_are_copied_with_the_rest() {
    block_on(async {
        let host = Host::new();
        let outside = host.scratch.dir().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "of the host\n").unwrap();
        let bundle = host.bundle("one");
        let inside = image(&host).join(outside.strip_prefix("/").unwrap());
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join("own"), "of the image\n").unwrap();
        // To the host's directory, if it were followed as the host; so are both below it.
        symlink(&outside, image(&host).join("data")).unwrap();
        symlink(&outside, inside.join("directory")).unwrap();
        symlink(outside.join("secret"), inside.join("file")).unwrap();
        let hosts = host.scratch.dir().join("hosts");
        fs::write(&hosts, "bound\n").unwrap();
        let bundle = bundle
            .mount(json!({"destination": "/data/hosts", "source": hosts, "options": ["bind"]}))
            .mount(copied("/data", &[]))
            .script("cd /data; find . | sort; cat own hosts; echo new > hosts; cat file; cat directory/secret");
        let ended = host.run(&bundle).await;
        assert_eq!(ended.stdout, ".\n./directory\n./file\n./hosts\n./own\nof the image\nbound\n", "{ended:?}");
        assert_eq!(ended.stderr.matches("No such file").count(), 2, "{ended:?}");
        assert_eq!(fs::read_to_string(&hosts).unwrap(), "bound\n");
    });
}

#[test]
fn one_that_is_too_small_is_an_error_that_names_the_file() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").mount(copied("/data", &["size=1m"]));
        kinds(&host);
        let refusal = host.refused(&bundle).await;
        for words in ["/data: tmpcopyup", "a: b: c: setuid", "no space left"] {
            assert!(refusal.message.contains(words), "{words}: {refusal:?}");
        }
    });
}

#[test]
fn what_is_not_there_is_nothing_to_copy() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").mount(copied("/new/directory", &[]));
        let out = host.run(&bundle.script("stat -c %a /new/directory; ls -A /new/directory")).await.ok();
        assert_eq!(out, "1777\n");
    });
}

/// Owners are those that the user namespace sees; a device cannot be made there, which is an error.
#[test]
fn in_a_user_namespace_what_it_may_make_is_copied() {
    const ROOT: u32 = 100_000;
    block_on(async {
        for device in [false, true] {
            let host = Host::new();
            let bundle = host.bundle("one").user_namespace(ROOT).mount(copied("/data", &["size=8m"]));
            let data = kinds(&host);
            // What nobody may read is not read: root here is nobody to the host's files.
            fs::remove_file(data.join("empty")).unwrap();
            fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
            for (path, owner) in [("plain", ROOT + 3), ("a", ROOT), ("a/b", ROOT + 1)] {
                chown(data.join(path), Some(owner), Some(owner)).unwrap();
            }
            if device {
                mknod(&data.join("device"), SFlag::S_IFCHR, Mode::empty(), makedev(1, 3)).unwrap();
                let refusal = host.refused(&bundle).await;
                assert!(refusal.message.contains("tmpcopyup: device: mknodat"), "{refusal:?}");
                continue;
            }
            let script =
                "cd /data; stat -c '%n %a %u:%g' plain a a/b a/b/c/setuid fifo; echo x > a/b/new && cat a/b/new";
            let expected =
                "plain 640 3:3\na 755 0:0\na/b 1777 1:1\na/b/c/setuid 4755 65534:65534\nfifo 622 65534:65534\nx\n";
            assert_eq!(host.run(&bundle.script(script)).await.ok(), expected);
        }
    });
}

/// As deep as directories may be, and no endless descent.
#[test]
fn a_tree_that_is_deeper_than_a_path_is_refused() {
    block_on(async {
        let host = Host::new();
        let bundle: Bundle = host.bundle("one").mount(copied("/data", &[]));
        let data = image(&host).join("data");
        fs::create_dir(&data).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let mut at = rustix::fs::open(&data, flags, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", flags, rustix::fs::Mode::empty()).unwrap();
        }
        let refusal = host.refused(&bundle).await;
        assert!(refusal.message.contains("tmpcopyup"), "{refusal:?}");
        let removed = std::process::Command::new("rm").arg("-rf").arg(&data).status().unwrap();
        assert!(removed.success());
    });
}
