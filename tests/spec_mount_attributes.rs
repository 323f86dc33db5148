//! Attributes of mounts: those of a whole tree (rro and the like), remount, and kernels without mount_setattr(2).

use std::fs;
use std::path::{Path, PathBuf};

use common::block_on;
use common::bundle::Bundle;
use common::container::{Ended, Host};
use common::mountinfo::{at, parse};
use common::seccomp::{Refused, missing, take_away};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use ttrpc::Code;

/// The host's owner of what root of a user namespace has.
const ROOT: u32 = 100_000;

const POINTS: [&str; 3] = ["/t", "/t/sub", "/t/sub/deep"];

/// A tmpfs of the host's with one below it and one below that, all with these flags, until it is dropped.
struct Tree(PathBuf);

impl Tree {
    fn new(host: &Host, flags: MsFlags) -> Tree {
        let top = host.scratch.dir().join("tree");
        for path in [top.clone(), top.join("sub"), top.join("sub/deep")] {
            fs::create_dir(&path).unwrap();
            mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        for path in [top.clone(), top.join("sub"), top.join("sub/deep")] {
            let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
            mount(None::<&str>, &path, None::<&str>, remount, None::<&str>).unwrap();
        }
        Tree(top)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

fn remount(destination: &str, options: &[&str]) -> Value {
    let options = [&["bind", "remount"], options].concat();
    json!({"destination": destination, "type": "none", "options": options})
}

/// The options that each mount of the tree has inside, as its mountinfo says them.
fn options_of(ended: &Ended) -> Vec<Vec<String>> {
    let words = |point: &&str| at(&ended.stdout, point).options.split(',').map(str::to_string).collect();
    POINTS.iter().map(words).collect()
}

/// Runs `cat mountinfo` with the tree bound by these options.
async fn seen(flags: MsFlags, options: &[&str], change: impl FnOnce(Bundle) -> Bundle) -> Vec<Vec<String>> {
    let host = Host::new();
    let tree = Tree::new(&host, flags);
    let bundle = change(host.bundle("one")).mount(bind(&tree.0, "/t", &[&["rbind"], options].concat()));
    let ended = host.run(&bundle.script("cat /proc/self/mountinfo")).await;
    drop(tree);
    assert_eq!(host.scratch.leftovers(), [""; 0]);
    options_of(&ended)
}

/// Proves: mounts.options={rro,rrw,rnosuid,rsuid,rnodev,rdev,rnoexec,rexec,rnodiratime,rdiratime,rnosymfollow,rsymfollow}
/// Proves: mounts.options={rnoatime,ratime,rrelatime,rnorelatime,rstrictatime,rnostrictatime}
#[test]
fn a_recursive_word_is_for_every_mount_of_the_tree() {
    let all = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NODIRATIME;
    // Of nix, which has no name for it: linux/mount.h.
    let nosymfollow = MsFlags::from_bits_retain(256);
    let (none, relatime) = (MsFlags::empty(), MsFlags::MS_RELATIME);
    type Case<'a> = (MsFlags, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
    let cases: &[Case] = &[
        // The host's flags, the options, what each of the three mounts then has, and what none has.
        (none, &["rro"], &["ro", "relatime"], &["rw"]),
        (none, &["rnosuid", "rnodev", "rnoexec"], &["rw", "nosuid", "nodev", "noexec"], &["ro"]),
        (none, &["rnodiratime", "rnosymfollow"], &["nodiratime", "nosymfollow", "relatime"], &[]),
        (none, &["rnoatime"], &["noatime"], &["relatime"]),
        (none, &["rstrictatime"], &["rw"], &["relatime", "noatime"]),
        (all, &["rrw"], &["rw", "nosuid", "nodev", "noexec", "nodiratime"], &["ro"]),
        (all, &["rsuid", "rdev", "rexec", "rdiratime"], &["ro"], &["nosuid", "nodev", "noexec", "nodiratime"]),
        (relatime | nosymfollow, &["rsymfollow"], &["relatime"], &["nosymfollow"]),
        (MsFlags::MS_NOATIME, &["rrelatime"], &["relatime"], &["noatime"]),
        (MsFlags::MS_NOATIME, &["ratime"], &["relatime"], &["noatime"]),
        (MsFlags::MS_STRICTATIME, &["rnostrictatime"], &["relatime"], &["noatime"]),
        (MsFlags::MS_NOATIME, &["rnorelatime"], &["noatime"], &["relatime"]),
        // Those of the tree win over those of the top, wherever they stand.
        (none, &["ro", "rrw"], &["rw"], &["ro"]),
        (none, &["rro", "rw"], &["ro"], &["rw"]),
    ];
    block_on(async {
        for (flags, options, all, no) in cases {
            for (words, point) in seen(*flags, options, |bundle| bundle).await.iter().zip(POINTS) {
                let has = |word: &&&str| words.iter().any(|own| own == **word);
                assert!(all.iter().all(|word| has(&word)), "{options:?}: {point}: {words:?}");
                assert!(!no.iter().any(|word| has(&word)), "{options:?}: {point}: {words:?}");
            }
        }
    });
}

/// The plain words are for the top alone, also beside those of the tree.
#[test]
fn a_plain_word_beside_a_recursive_one_is_for_the_top() {
    block_on(async {
        let words = seen(MsFlags::empty(), &["ro", "rnosuid", "noexec"], |bundle| bundle).await;
        let joined: Vec<_> = words.iter().map(|words| words.join(",")).collect();
        assert_eq!(joined, ["ro,nosuid,noexec,relatime", "rw,nosuid,relatime", "rw,nosuid,relatime"]);
    });
}

/// By writing: nothing below can be written, nor made writable by who may mount; the host still can; and what the
/// specification mounts on it is as that says.
#[test]
fn nothing_below_a_recursively_read_only_mount_can_be_written() {
    block_on(async {
        let host = Host::new();
        let tree = Tree::new(&host, MsFlags::empty());
        fs::create_dir(tree.0.join("own")).unwrap();
        let script = "for d in /t /t/sub /t/sub/deep; do touch $d/x 2>/dev/null || echo $d; done; touch /t/own/x";
        let bundle = host
            .bundle("one")
            .mount(bind(&tree.0, "/t", &["rbind", "rprivate", "rro"]))
            .mount(tmpfs("/t/own", &[]))
            .script(script);
        let out = host.run(&bundle).await.ok();
        fs::write(tree.0.join("sub/deep/written"), "").unwrap();
        drop(tree);
        assert_eq!(out, "/t\n/t/sub\n/t/sub/deep\n");
    });
}

/// There is nothing below a new file system: for it they are what the plain words are.
#[test]
fn a_new_file_system_takes_recursive_words_for_itself() {
    let ended = common::container::run(|bundle| {
        let bundle = bundle.mount(tmpfs("/n", &["rro", "rnosuid", "rnoexec", "rnoatime"])).edit(|spec| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.iter_mut().find(|mount| mount["destination"] == "/dev").unwrap()["options"] = json!(["rro"]);
        });
        bundle.script("cat /proc/self/mountinfo; touch /dev/x; echo x > /dev/null")
    });
    assert!(at(&ended.stdout, "/n").has(&["ro", "nosuid", "noexec", "noatime"]), "{ended:#?}");
    assert!(at(&ended.stdout, "/dev").has(&["ro"]), "{ended:#?}");
    assert_eq!(ended.stderr, "touch: /dev/x: Read-only file system\n");
}

#[test]
fn in_a_user_namespace_a_tree_is_restricted_and_never_loosened() {
    block_on(async {
        let userns = |bundle: Bundle| bundle.user_namespace(ROOT);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        for words in seen(flags, &["rro", "rnoexec"], userns).await {
            assert_eq!(words.join(","), "ro,nosuid,nodev,noexec,noatime");
        }
        for (option, top) in
            [("rsuid", "suid"), ("rdev", "dev"), ("ratime", "relatime"), ("rstrictatime", "strictatime")]
        {
            for word in [option, top] {
                let host = Host::new();
                let tree = Tree::new(&host, flags);
                let bundle = userns(host.bundle("one")).mount(bind(&tree.0, "/t", &["rbind", word]));
                let refusal = host.refused(&bundle).await;
                assert!(
                    refusal.message.contains("/t") && refusal.message.contains("cannot clear"),
                    "{word}: {refusal:?}"
                );
            }
        }
    });
}

/// Proves: mounts.options=remount
#[test]
fn a_remount_changes_the_mount_that_is_there() {
    let ended = common::container::run(|bundle| {
        bundle
            .mount(tmpfs("/a", &["size=64k", "noatime"]))
            .mount(tmpfs("/a/b", &[]))
            .mount(remount("/a", &["ro", "nosuid"]))
            .mount(tmpfs("/c", &["noexec"]))
            .mount(tmpfs("/c/d", &["noexec"]))
            .mount(remount("/c", &["ro"]))
            .mount(remount("/c", &["rw", "rexec"]))
            .mount(remount("/dev", &["ro"]))
            .mount(remount("/dev", &["noexec"]))
            .script("cat /proc/self/mountinfo; touch /a/x; touch /a/b/x /c/x; touch /dev/x; echo x > /dev/null")
    });
    let options = |point| at(&ended.stdout, point).options;
    let found = ["/a", "/a/b", "/c", "/c/d", "/dev"].map(options);
    assert_eq!(found, ["ro,nosuid,noatime", "rw,relatime", "rw,relatime", "rw,relatime", "ro,nosuid,noexec"]);
    let once = |point: &str| parse(&ended.stdout).iter().filter(|line| line.point == point).count() == 1;
    assert!(once("/a") && at(&ended.stdout, "/a").super_options.contains("size=64k"), "{ended:#?}");
    assert_eq!(ended.stderr, "touch: /a/x: Read-only file system\ntouch: /dev/x: Read-only file system\n");
}

/// An image that has a link where nothing is mounted leads no change to another mount.
#[test]
fn a_remount_of_what_is_not_there_is_refused() {
    block_on(async {
        for (destination, code, words) in [
            ("/home", Code::INVALID_ARGUMENT, "nothing is mounted there"),
            ("/no/such", Code::UNKNOWN, "no such file"),
            ("/link", Code::UNKNOWN, "symbolic link"),
        ] {
            let host = Host::new();
            let bundle = host.bundle("one").mount(remount(destination, &["rw"]));
            std::os::unix::fs::symlink("sys", host.scratch.dir().join("snapshots/one/fs/link")).unwrap();
            let refusal = host.refused(&bundle).await;
            assert!(refusal.message.contains(destination) && refusal.message.contains(words), "{refusal:?}");
            assert!(code == Code::UNKNOWN || refusal.code == code, "{refusal:?}");
        }
    });
}

/// Linux before 5.12.
const NO_SETATTR: [Refused; 1] = [missing(libc::SYS_mount_setattr)];

fn without_setattr(test: fn()) {
    let apart = std::thread::spawn(move || {
        take_away(&NO_SETATTR);
        test();
    });
    apart.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn an_old_kernel_refuses_what_is_for_a_tree_and_does_not_do_half_of_it() {
    without_setattr(|| {
        block_on(async {
            let host = Host::new();
            let tree = Tree::new(&host, MsFlags::empty());
            for mount in [bind(&tree.0, "/t", &["rbind", "rro"]), remount("/sys", &["rnosuid"])] {
                let host = Host::new();
                let destination = mount["destination"].as_str().unwrap().to_string();
                let refusal = host.refused(&host.bundle("one").mount(mount)).await;
                refusal.names(Code::UNIMPLEMENTED, &["mounting", &destination, "mount_setattr", "Linux 5.12"]);
            }
            // Where the tree is one mount, it is what the plain word is.
            let bundle = host.bundle("two").mount(tmpfs("/n", &["rro"])).script("touch /n/x");
            assert_eq!(host.run(&bundle).await.stderr, "touch: /n/x: Read-only file system\n");
        });
    });
}

/// By mount(2), which replaces all flags: those of the source are given again, the access time mode among them.
#[test]
fn an_old_kernel_keeps_the_flags_of_a_source_but_for_what_is_named() {
    without_setattr(|| {
        let nosymfollow = MsFlags::from_bits_retain(256);
        let cases = [
            (MsFlags::MS_STRICTATIME, "nosuid", "rw,nosuid"),
            (MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME, "ro", "ro,noatime,nodiratime"),
            (MsFlags::MS_NOATIME, "strictatime", "rw"),
            (MsFlags::MS_NOATIME, "relatime", "rw,relatime"),
            (MsFlags::MS_RELATIME | nosymfollow, "noexec", "rw,noexec,relatime,nosymfollow"),
            (MsFlags::MS_RELATIME | nosymfollow, "symfollow", "rw,relatime"),
            (MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "rw", "rw,nodev,relatime"),
        ];
        block_on(async {
            for (flags, word, wanted) in cases {
                let words = seen(flags, &[word], |bundle| bundle).await;
                assert_eq!(words[0].join(","), wanted, "{flags:?} {word}");
            }
            // What is locked too (mount_namespaces(7)): leaving it out would be EPERM.
            for flags in [MsFlags::MS_NOATIME, MsFlags::MS_STRICTATIME] {
                let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                let words = seen(flags, &["ro"], |bundle| bundle.user_namespace(ROOT)).await;
                let atime = if flags.contains(MsFlags::MS_NOATIME) { ",noatime" } else { "" };
                assert_eq!(words[0].join(","), format!("ro,nosuid,nodev{atime}"));
            }
        });
    });
}
