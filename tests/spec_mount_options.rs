//! mounts[].options: every word, as the kernel shows the mount in the container's own mountinfo, or by what it does.

use std::fs;
use std::path::Path;

use common::block_on;
use common::container::{Host, run};
use common::mountinfo::{MountLine, at};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

/// The lines of tmpfs mounts, one for each list of options.
fn lines(lists: &[&[&str]]) -> Vec<MountLine> {
    let ended = run(|bundle| {
        let tmpfs = |index: usize, options: &[&str]| json!({"destination": format!("/t{index}"), "type": "tmpfs", "source": "tmpfs", "options": options});
        let all = lists.iter().enumerate().map(|(index, options)| tmpfs(index, options));
        all.fold(bundle, |bundle, mount| bundle.mount(mount)).args(&["cat", "/proc/self/mountinfo"])
    });
    let table = ended.ok();
    (0..lists.len()).map(|index| at(&table, &format!("/t{index}"))).collect()
}

/// Proves: mounts.options={ro,rw,nosuid,suid,nodev,dev,noexec,exec,nodiratime,diratime,nosymfollow,symfollow}
/// Proves: mounts.options={noatime,atime,relatime,norelatime,strictatime,nostrictatime}
#[test]
fn attributes_are_set_and_unset() {
    // What is asked for, what the mount has, and what it has not.
    let cases: &[(&[&str], &[&str], &[&str])] = &[
        (&[], &["rw", "relatime"], &["nosuid", "nodev", "noexec", "nodiratime", "nosymfollow"]),
        (&["ro"], &["ro"], &[]),
        (&["ro", "rw"], &["rw"], &[]),
        (&["nosuid"], &["nosuid"], &["nodev"]),
        (&["nosuid", "suid"], &[], &["nosuid"]),
        (&["nodev"], &["nodev"], &["noexec"]),
        (&["nodev", "dev"], &[], &["nodev"]),
        (&["noexec"], &["noexec"], &["nosuid"]),
        (&["noexec", "exec"], &[], &["noexec"]),
        (&["nodiratime"], &["nodiratime", "relatime"], &[]),
        (&["nodiratime", "diratime"], &["relatime"], &["nodiratime"]),
        (&["nosymfollow"], &["nosymfollow"], &[]),
        (&["nosymfollow", "symfollow"], &[], &["nosymfollow"]),
        (&["noatime"], &["noatime"], &["relatime"]),
        (&["noatime", "atime"], &["relatime"], &["noatime"]),
        (&["noatime", "relatime"], &["relatime"], &["noatime"]),
        (&["noatime", "norelatime"], &["noatime"], &["relatime"]),
        (&["strictatime"], &[], &["relatime", "noatime"]),
        (&["strictatime", "nostrictatime"], &["relatime"], &[]),
    ];
    let seen = lines(&cases.iter().map(|(options, ..)| *options).collect::<Vec<_>>());
    for ((options, has, has_not), line) in cases.iter().zip(seen) {
        assert!(line.has(has) && !has_not.iter().any(|word| line.has(&[word])), "{options:?}: {line:?}");
    }
}

/// Of the file system, not of the mount.
///
/// Proves: mounts.options={sync,async,dirsync,mand,nomand,lazytime,nolazytime,defaults,silent,loud,noiversion}
#[test]
fn flags_of_the_file_system_are_set_and_unset() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &[]),
        (&["defaults"], &[]),
        (&["sync"], &["sync"]),
        (&["sync", "async"], &[]),
        (&["dirsync"], &["dirsync"]),
        (&["mand"], &["mand"]),
        (&["mand", "nomand"], &[]),
        (&["lazytime"], &["lazytime"]),
        (&["lazytime", "nolazytime"], &[]),
        // Nothing to be seen, nor to be handed to the file system, which would not know them.
        (&["silent", "loud", "noiversion", "defaults"], &[]),
    ];
    let seen = lines(&cases.iter().map(|(options, _)| *options).collect::<Vec<_>>());
    for ((options, has), line) in cases.iter().zip(seen) {
        let words: Vec<_> = line.super_options.split(',').collect();
        let found = ["sync", "dirsync", "mand", "lazytime"].into_iter().filter(|word| words.contains(word));
        assert_eq!(found.collect::<Vec<_>>(), *has, "{options:?}: {line:?}");
    }
}

/// By what they do, of binds as of file systems; the link's own directory is followed where that is not denied.
#[test]
fn attributes_do_what_they_say() {
    block_on(async {
        let host = Host::new();
        let dir = host.scratch.dir().join("source");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("program"), "#!/bin/sh\necho run\n").unwrap();
        fs::set_permissions(dir.join("program"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("program", dir.join("link")).unwrap();
        let bind = |name: &str, options: &[&str]| {
            let options = [&["bind"], options].concat();
            json!({"destination": format!("/{name}"), "type": "bind", "source": dir, "options": options})
        };
        let script = "for d in plain noexec nosymfollow ro nodev; do echo $d; $d/program; $d/link; touch $d/x; \
                      mknod -m 666 /run/$d c 1 3; done 2>&1; cd /null; mknod n c 1 3 && echo > n";
        let tmpfs = json!({"destination": "/null", "type": "tmpfs", "source": "tmpfs", "options": ["nodev"]});
        let bundle = host.bundle("one").script(script).edit(|spec| spec["process"]["cwd"] = json!("/"));
        let bundle = bundle
            .mount(bind("plain", &[]))
            .mount(bind("noexec", &["noexec"]))
            .mount(bind("nosymfollow", &["nosymfollow"]))
            .mount(bind("ro", &["ro"]))
            .mount(bind("nodev", &["nodev"]))
            .mount(tmpfs);
        let ended = host.run(&bundle).await;
        let expected = "plain\nrun\nrun\nnoexec\nsh: noexec/program: Permission denied\nsh: noexec/link: Permission denied\n\
                        nosymfollow\nrun\nsh: nosymfollow/link: Too many levels of symbolic links\nro\nrun\nrun\n\
                        touch: ro/x: Read-only file system\nnodev\nrun\nrun\n";
        let said = ended.stdout.replace("sh: can't execute", "sh:");
        assert_eq!(said, expected, "{ended:#?}");
        assert!(ended.stderr.contains("can't create n: Permission denied"), "{ended:#?}");
    });
}

/// What is below the source of a bind that asks for a propagation, and what of it can be bound again.
///
/// Proves: mounts.options={private,rprivate,slave,rslave,shared,rshared,unbindable,runbindable}
#[test]
fn a_propagation_is_of_the_top_or_of_all() {
    block_on(async {
        let host = Host::new();
        let top = host.scratch.dir().join("top");
        let below = top.join("below");
        let tmpfs = |path: &Path| {
            fs::create_dir(path).unwrap();
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            mount(None::<&str>, path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        };
        tmpfs(&top);
        tmpfs(&below);
        let words = ["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
        let bind = |word: &str| -> Value {
            json!({"destination": format!("/{word}"), "type": "bind", "source": top, "options": ["rbind", word]})
        };
        let bundle = words.iter().fold(host.bundle("one"), |bundle, word| bundle.mount(bind(word)));
        let table = host.run(&bundle.args(&["cat", "/proc/self/mountinfo"])).await;
        umount2(&below, MntFlags::MNT_DETACH).unwrap();
        umount2(&top, MntFlags::MNT_DETACH).unwrap();
        let table = table.ok();
        let kinds = |point: String| -> String {
            let line = at(&table, &point);
            line.propagation.split(' ').map(|word| word.split(':').next().unwrap()).collect::<Vec<_>>().join(" ")
        };
        // Without a word for all, what is below is a slave of the host's, as everything that comes from there.
        for (word, of_top, of_below) in [
            ("private", "", "master"),
            ("rprivate", "", ""),
            ("slave", "master", "master"),
            ("rslave", "master", "master"),
            ("unbindable", "unbindable", "master"),
            ("runbindable", "unbindable", "unbindable"),
        ] {
            assert_eq!(
                (kinds(format!("/{word}")), kinds(format!("/{word}/below"))),
                (of_top.into(), of_below.into()),
                "{word}"
            );
        }
        for word in ["shared", "rshared"] {
            assert!(kinds(format!("/{word}")).starts_with("shared"), "{word}: {table}");
        }
        assert!(kinds("/rshared/below".into()).starts_with("shared"), "{table}");
    });
}
