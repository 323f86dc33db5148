//! /dev, device rules, masked and read-only paths.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::block_on;
use common::container::{Host, refused, run_script};
use common::scratch::cgroup_mounts;
use serde_json::{Value, json};
use ttrpc::Code;

#[test]
fn the_default_devices_have_their_numbers_and_modes() {
    let out = run_script("cd /dev; stat -c '%n %A %t:%T %u:%g' null zero full random urandom tty", |_| ()).ok();
    let expected = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];
    let mut expected: Vec<_> = expected.map(|(name, minor)| format!("{name} crw-rw-rw- 1:{minor} 0:0")).into();
    expected.push("tty crw-rw-rw- 5:0 0:0".to_string());
    assert_eq!(out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_default_devices_work() {
    let script = "echo x > /dev/null; head -c 4 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c; \
                  head -c 8 /dev/random | wc -c; echo x > /dev/full; : < /dev/null";
    let ended = run_script(script, |_| ());
    assert_eq!(ended.stdout, " 00 00 00 00\n8\n8\n", "{ended:#?}");
    assert!(ended.stderr.contains("No space left on device"), "{ended:#?}");
}

#[test]
fn the_links_of_dev_lead_to_the_processes_own_files() {
    let script = "cd /dev; for l in fd stdin stdout stderr ptmx; do echo $l $(readlink $l); done; \
                  echo through > /dev/stderr; ls /dev/fd/ | head -3 | tr '\\n' ' '";
    let ended = run_script(script, |_| ());
    let links =
        "fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\nptmx pts/ptmx\n";
    assert_eq!((ended.stdout, ended.stderr), (format!("{links}0 1 2 "), "through\n".to_string()));
}

/// Proves: linux.devices.{path,type,major,minor,fileMode,uid,gid}
#[test]
fn listed_devices_are_made_as_listed() {
    let out = run_script("umask; cd /dev; stat -c '%n %A %t:%T %u:%g' some/where/c b p null plain", |spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/some/where/c", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/dev/b", "type": "b", "major": 7, "minor": 300, "fileMode": 0o600, "uid": 0, "gid": 6},
            {"path": "/dev/p", "type": "p", "fileMode": 0o622},
            // A default one, listed: the list wins.
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
            {"path": "/dev/plain", "type": "u", "major": 1, "minor": 5},
        ]);
    });
    let expected = "0022\nsome/where/c crw-r----- a:c8 7:8\nb brw------- 7:12c 0:6\np prw--w--w- 0:0 0:0\n\
                    null crw------- 1:3 0:0\nplain crw-rw-rw- 1:5 0:0\n";
    assert_eq!(out.ok(), expected);
}

/// A node by mknod gives nothing: the devices controller decides. 1:2 (once /dev/kmem) and 10:1 have no driver, so that
/// what is allowed answers ENXIO or ENODEV, and what is not EPERM.
/// Proves: linux.resources.devices.{allow,type,major,minor}
#[test]
fn a_device_that_is_not_allowed_cannot_be_opened() {
    // 120 to 127 are no driver's (devices.txt: local and experimental use).
    let script = "cd /run; mknod denied c 1 2; mknod zero c 1 5; mknod disk b 7 0; mknod listed c 120 1; \
                  for d in denied zero disk listed; do head -c 1 $d | wc -c; done";
    let ended = run_script(script, |spec| {
        let rule = json!({"allow": true, "type": "c", "major": 120, "minor": 1, "access": "rw"});
        spec["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
    });
    assert_eq!(ended.stdout, "0\n1\n0\n0\n", "{ended:#?}");
    let complaints: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(complaints.len(), 3, "{ended:#?}");
    assert_eq!(complaints[..2], ["head: denied: Operation not permitted", "head: disk: Operation not permitted"]);
    assert!(complaints[2].starts_with("head: listed: No such device"), "{ended:#?}");
}

/// Proves: linux.resources.devices.access
#[test]
fn access_is_what_the_rule_says() {
    // /dev/kmsg's number is for reading only here: 1:11.
    let script = "cd /run; mknod k c 1 11; : < k && echo read; : > k";
    let ended = run_script(script, |spec| {
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"});
        spec["linux"]["resources"]["devices"].as_array_mut().unwrap().push(rule);
        let capabilities = &mut spec["process"]["capabilities"];
        ["bounding", "permitted", "effective"]
            .into_iter()
            .for_each(|set| capabilities[set].as_array_mut().unwrap().push(json!("CAP_SYSLOG")));
    });
    assert_eq!(ended.stdout, "read\n", "{ended:#?}");
    assert!(ended.stderr.contains("can't create k: Operation not permitted"), "{ended:#?}");
}

/// Without any rule too: the devices of the host are closed by default.
#[test]
fn without_resources_devices_are_denied() {
    let script = "cd /run; mknod denied c 1 2; head -c 1 denied; head -c 1 /dev/zero | wc -c";
    let ended = run_script(script, |spec| spec["linux"]["resources"] = Value::Null);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("1\n", "head: denied: Operation not permitted\n"));
}

/// Proves: linux.maskedPaths
#[test]
fn masked_files_are_empty_and_masked_directories_cannot_be_written() {
    let script = "cat /etc/secret /proc/timer_list /home/link | wc -c; ls -A /var/secret | wc -l; stat -c %t:%T /etc/secret; \
                  touch /var/secret/x; touch /var/secret/made; ls /home /var; cat /proc/self/mountinfo | grep -c /no/such";
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").script(script).edit(|spec| {
            let masked = spec["linux"]["maskedPaths"].as_array_mut().unwrap();
            masked.extend(
                ["/etc/secret", "/var/secret", "/no/such", "/etc/passwd/below", "/home/link"].map(|path| json!(path)),
            );
        });
        let image = host.scratch.dir().join("snapshots/one/fs");
        for dir in ["etc", "home", "var/secret"] {
            fs::create_dir_all(image.join(dir)).unwrap();
        }
        for file in ["etc/secret", "etc/target", "var/secret/file"] {
            fs::write(image.join(file), "secret\n").unwrap();
        }
        symlink("/etc/target", image.join("home/link")).unwrap();
        let ended = host.run(&bundle).await;
        assert_eq!(ended.stdout, "0\n0\n1:3\n/home:\nlink\n\n/var:\nsecret\n0\n", "{ended:#?}");
        assert_eq!(ended.stderr.matches("Read-only file system").count(), 2, "{ended:#?}");
        assert_eq!(fs::read_to_string(image.join("etc/secret")).unwrap(), "secret\n");
    });
}

/// The node that covers masked files is the container's own: what its root does to it is not done to the host's.
#[test]
fn the_hosts_null_device_keeps_its_owner_and_mode() {
    let status = || fs::metadata("/dev/null").map(|m| (m.mode(), m.uid(), m.gid(), m.rdev())).unwrap();
    let before = status();
    let out = run_script(
        "chmod 600 /proc/timer_list /dev/null; chown 12:34 /proc/timer_list; stat -c %a:%u /dev/null",
        |_| (),
    );
    assert_eq!(out.ok(), "600:12\n");
    // Stdio of an unprivileged user is the shim's /dev/null where the client has none: it must not become the user's.
    let out = run_script("id -u; : < /dev/stdin; chmod 777 /dev/null 2>/dev/null || echo refused", |spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    assert_eq!(out.ok(), "1000\nrefused\n");
    assert_eq!(status(), before);
}

/// Proves: linux.readonlyPaths
#[test]
fn read_only_paths_cannot_be_written_and_missing_ones_are_skipped() {
    let script = "echo 1 > /proc/sys/kernel/panic; touch /home/x; touch /etc/x; echo x >> /etc/group; touch /run/sub/x";
    let ended = run_script(script, |spec| {
        spec["linux"]["readonlyPaths"] =
            json!(["/proc/sys", "/home", "/etc/group", "/no/such", "/etc/passwd/x", "/run"]);
        let tmpfs = json!({"destination": "/run/sub", "type": "tmpfs", "source": "tmpfs"});
        spec["mounts"].as_array_mut().unwrap().push(tmpfs);
    });
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{ended:#?}");
    assert!(lines.iter().all(|line| line.ends_with("Read-only file system")), "{ended:#?}");
    assert!(
        lines[0].contains("panic") && lines[1].contains("/home/x") && lines[2].contains("/etc/group"),
        "{ended:#?}"
    );
}

/// An exception to an exception: v1's list has none, a program of cgroup2 does as it is told.
#[test]
fn rules_that_the_controller_cannot_keep_are_refused() {
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 120, "access": "rwm"},
        {"allow": false, "type": "c", "major": 120, "minor": 3, "access": "w"},
    ]);
    if cgroup_mounts().iter().any(|dir| dir.join("devices.list").exists()) {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["resources"]["devices"] = rules));
        refusal.names(Code::INVALID_ARGUMENT, &["c 120:3", "exception"]);
        return;
    }
    let script = "cd /run; mknod a c 120 3; mknod b c 120 4; (: < a); (: > a); (: <> a); (: <> b)";
    let ended = run_script(script, |spec| spec["linux"]["resources"]["devices"] = rules);
    assert_eq!(had(&ended.stderr), "+--+", "{ended:#?}");
}

/// Of opens of a device that has no driver: a complaint in each line, of that or of a denial.
fn had(complaints: &str) -> String {
    let one = |line: &str| match line.rsplit(": ").next() {
        Some("Operation not permitted") => '-',
        Some("No such device or address") => '+',
        _ => '?',
    };
    complaints.lines().map(one).collect()
}

/// An update gives other rules to what runs, and one without any leaves them.
#[test]
fn rules_follow_an_update() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").script("while :; do sleep 1; done");
        let container = host.start(&bundle).await;
        let rule = |access: &str| json!({"allow": true, "type": "c", "major": 120, "minor": 1, "access": access});
        let mut seen = Vec::new();
        let updates = [
            json!({}),
            json!({"devices": [rule("rw")]}),
            json!({"pids": {"limit": 1000}}),
            json!({"devices": [rule("rw"), {"allow": false, "type": "c", "major": 120, "access": "w"}]}),
            json!({"devices": [{"allow": true, "access": "rwm"}]}),
            json!({"devices": [{"allow": false, "access": "rwm"}]}),
        ];
        for (round, resources) in updates.iter().enumerate() {
            container.shim.update("one", resources).await.unwrap();
            let script = "[ -e /run/c ] || mknod /run/c c 120 1; (: < /run/c); (: > /run/c); echo x > /dev/null";
            seen.push(had(&container.exec_script(&format!("e{round}"), script).await.stderr));
        }
        assert_eq!(seen, ["--", "++", "++", "+-", "++", "--"]);
        container.end().await;
    });
}
