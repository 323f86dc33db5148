//! What holds of a container holds of it once it is restored, too; and a restore that fails is nobody else's trouble.
//!
//! See tests/checkpoint.rs for where CRIU does anything.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::skipped_on_v1;
use common::criu::usable;
use common::dray::{Dray, fails, ok, text, wait_until};
use common::driver::{await_exit, open_pid};
use common::skipped;
use common::stdio::Io;
use common::world::{SOON, World, living};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::json;

/// CRIU takes its time in an emulated guest.
const LONG: Duration = Duration::from_secs(60);

/// Where the images go.
fn images(dray: &Dray) -> String {
    dray.scratch().dir().join("images").to_str().expect("UTF-8").to_owned()
}

/// What a restore takes for images, until it has CRIU.
fn no_images(dray: &Dray) -> String {
    let images = images(dray);
    fs::create_dir(&images).unwrap();
    fs::write(Path::new(&images).join("descriptors.json"), "[]").unwrap();
    images
}

/// Writes it to images, with which it ends.
#[track_caller]
fn dump(dray: &Dray, bundle: &Bundle) {
    ok(&dray.run_in(bundle.dir(), &["checkpoint", "--image-path", &images(dray), &bundle.id]));
}

#[track_caller]
fn restore(dray: &Dray, bundle: &Bundle) {
    ok(&dray.run_in(bundle.dir(), &["restore", "-d", "--image-path", &images(dray), &bundle.id]));
}

/// What a script prints in the container.
#[track_caller]
fn inside(dray: &Dray, bundle: &Bundle, script: &str) -> String {
    let output = dray.run(&["exec", &bundle.id, "sh", "-c", script]);
    ok(&output) + &text(&output.stderr)
}

#[test]
fn a_restore_that_fails_kills_nobody_in_the_scope_of_another() {
    let name = "a_restore_that_fails_kills_nobody_in_the_scope_of_another";
    if !Path::new("/run/systemd/system").is_dir() {
        return skipped(name, "systemd does not run here");
    }
    let (one, two) = (Dray::new(), Dray::new());
    let path = format!("system.slice:{}:one", one.scratch().namespace().replace(['-', '.'], "_"));
    let with = |dray: &Dray| {
        dray.bundle("one").args(&["sleep", "1000"]).edit(|spec| spec["linux"]["cgroupsPath"] = json!(path))
    };
    let (a, b) = (with(&one), with(&two));
    one.started(&a);
    let victim = [open_pid(one.pid("one")).unwrap()];
    let images = no_images(&two);
    for (criu, word) in [("/bin/true", "processes in"), ("no-such-criu", "not found")] {
        let args = ["--criu", criu, "restore", "-d", "--image-path", &images, "one"];
        let said = fails(&two.run_in(b.dir(), &args), 1);
        assert!(said.contains(word), "{said}");
        // What is killed is gone when the restore has returned.
        assert_eq!(living(&victim), 1, "after: {said}");
    }
}

#[test]
fn a_shim_that_dies_before_a_restore_kills_nobody_in_the_scope_of_another() {
    let name = "a_shim_that_dies_before_a_restore_kills_nobody_in_the_scope_of_another";
    if !Path::new("/run/systemd/system").is_dir() {
        return skipped(name, "systemd does not run here");
    }
    let dray = Dray::new();
    let path = format!("system.slice:{}:one", dray.scratch().namespace().replace(['-', '.'], "_"));
    let with = |bundle: Bundle| bundle.args(&["sleep", "1000"]).edit(|spec| spec["linux"]["cgroupsPath"] = json!(path));
    dray.started(&with(dray.bundle("one")));
    let victim = [open_pid(dray.pid("one")).unwrap()];
    block_on(async {
        let (world, bundle) = World::with("one", with).await;
        let mut request = world.request_for(&bundle, &Io::null());
        request.checkpoint = no_images(&dray);
        world.create_request(request).await.unwrap();
        let shim = open_pid(world.pid().await.unwrap()).unwrap();
        pidfd_send_signal(&shim, Signal::KILL).unwrap();
        await_exit(&shim, SOON).unwrap();
        world.delete_action().unwrap();
        assert_eq!(living(&victim), 1);
    });
    ok(&dray.run(&["delete", "--force", "one"]));
}

#[test]
fn a_read_only_root_is_read_only_again() {
    if !usable("a_read_only_root_is_read_only_again") {
        return;
    }
    let dray = Dray::new();
    let bundle = dray.bundle("one").args(&["sleep", "1000"]).edit(|spec| spec["root"]["readonly"] = json!(true));
    dray.started(&bundle);
    let look = "touch /written; grep -cE '^[^ ]+ [^ ]+ [^ ]+ [^ ]+ / ro,' /proc/self/mountinfo";
    let output = dray.run(&["exec", "one", "sh", "-c", look]);
    assert_eq!(ok(&output), "1\n");
    assert!(text(&output.stderr).contains("Read-only file system"), "{output:?}");
    dump(&dray, &bundle);
    restore(&dray, &bundle);
    assert_eq!(inside(&dray, &bundle, look), format!("1\n{}", text(&output.stderr)));
    assert!(!bundle.rootfs_dir().join("written").exists());
}

/// Capabilities, seccomp, no_new_privs of its init.
fn privileges(dray: &Dray, bundle: &Bundle) -> String {
    inside(dray, bundle, "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/1/status")
}

#[test]
fn what_restricts_a_process_restricts_it_again() {
    if !usable("what_restricts_a_process_restricts_it_again") {
        return;
    }
    let dray = Dray::new();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSPC}]});
    let strict = dray.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["linux"]["seccomp"] = profile;
    });
    dray.started(&strict);
    let before = privileges(&dray, &strict);
    assert!(before.contains("NoNewPrivs:\t1\n") && before.contains("Seccomp:\t2\n"), "{before}");
    dump(&dray, &strict);
    restore(&dray, &strict);
    assert_eq!(privileges(&dray, &strict), before);
    ok(&dray.run(&["delete", "--force", "one"]));

    // Images of a process that was less restricted than this specification has it.
    let spec = strict.spec().clone();
    let lax = strict.edit(|spec| {
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["linux"].as_object_mut().expect("linux").remove("seccomp");
    });
    fs::remove_dir_all(images(&dray)).unwrap();
    dray.started(&lax);
    assert!(privileges(&dray, &lax).contains("NoNewPrivs:\t0\n"));
    dump(&dray, &lax);
    let restored = || dray.run_in(lax.dir(), &["restore", "-d", "--image-path", &images(&dray), "one"]);
    lax.write_config(spec.to_string().as_bytes());
    let said = fails(&restored(), 1);
    assert!(said.contains("seccomp") && !dray.state_dir("one").exists(), "{said}");
    let mut fewer = lax.spec().clone();
    fewer["process"]["capabilities"] = json!({"bounding": ["CAP_KILL"]});
    lax.write_config(fewer.to_string().as_bytes());
    let said = fails(&restored(), 1);
    assert!(said.contains("capabilities") && !dray.state_dir("one").exists(), "{said}");
    lax.write_config(lax.spec().to_string().as_bytes());
    ok(&restored());
    // It is what it was.
    assert!(privileges(&dray, &lax).contains("NoNewPrivs:\t0\n"));
}

/// A key in a session keyring of the calling thread's own, which only who has that keyring sees.
#[allow(unsafe_code)]
fn secret_of_the_session(name: &std::ffi::CStr) {
    const JOIN_SESSION_KEYRING: i32 = 1;
    const SETPERM: i32 = 5;
    const SESSION_KEYRING: i32 = -3;
    const POSSESSOR_ALL: u32 = 0x3f00_0000;
    // SAFETY: the strings end with NUL, and the payload is as long as it is said to be.
    unsafe {
        assert!(libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) > 0);
        let key = libc::syscall(libc::SYS_add_key, c"user".as_ptr(), name.as_ptr(), c"x".as_ptr(), 1, SESSION_KEYRING);
        assert!(key > 0);
        assert_eq!(libc::syscall(libc::SYS_keyctl, SETPERM, key, POSSESSOR_ALL), 0);
    }
}

#[test]
fn keys_of_the_runtimes_session_are_not_the_containers() {
    if !usable("keys_of_the_runtimes_session_are_not_the_containers") {
        return;
    }
    secret_of_the_session(c"dray-test-secret");
    let keys = Command::new("cat").arg("/proc/keys").output().unwrap();
    assert!(text(&keys.stdout).contains("dray-test-secret"), "{}", text(&keys.stdout));
    let dray = Dray::new();
    // Those of an exec would be its own.
    let script = "while :; do cat /proc/keys > /tmp/new; mv /tmp/new /tmp/keys; sleep 0.2; done";
    let bundle = dray.bundle("one").script(script).edit(|spec| spec["linux"]["maskedPaths"] = json!([]));
    let seen = || {
        let path = bundle.rootfs_dir().join("tmp/keys");
        let _ = fs::remove_file(&path);
        wait_until("it has looked", || path.exists());
        fs::read_to_string(path).unwrap()
    };
    dray.started(&bundle);
    let keys = seen();
    assert!(keys.contains("_ses") && !keys.contains("dray-test-secret"), "{keys}");
    dump(&dray, &bundle);
    restore(&dray, &bundle);
    let keys = seen();
    assert!(keys.contains("_ses") && !keys.contains("dray-test-secret"), "{keys}");
}

#[test]
fn one_file_for_both_outputs_is_written_on() {
    if !usable("one_file_for_both_outputs_is_written_on") {
        return;
    }
    let dray = Dray::new();
    let script = "i=0; while :; do i=$((i+1)); echo $i; echo e$i >&2; sleep 0.1; done";
    let bundle = dray.bundle("one").script(script);
    let path = dray.scratch().dir().join("log");
    let log = || fs::read_to_string(&path).unwrap();
    // As a shell has it for `>>log 2>&1`.
    let with_log = |args: &[&str]| {
        let file = fs::File::options().append(true).create(true).open(&path).unwrap();
        let mut command = dray.command(args);
        command.current_dir(bundle.dir()).stdout(file.try_clone().unwrap()).stderr(file);
        assert!(command.status().unwrap().success(), "{}", log());
    };
    with_log(&["run", "-d", "one"]);
    wait_until("it writes", || log().contains("e3\n"));
    dump(&dray, &bundle);
    let before = log();
    with_log(&["restore", "-d", "--image-path", &images(&dray), "one"]);
    let last: u32 = before.lines().filter_map(|line| line.parse().ok()).next_back().unwrap();
    let (number, error) = (format!("\n{}\n", last + 2), format!("\ne{}\n", last + 2));
    wait_until("it writes on", || log().contains(&number) && log().contains(&error));
    assert!(log().starts_with(&before) && log().matches("\n2\n").count() == 1, "{}", log());
}

#[test]
fn a_work_directory_may_be_named_by_an_absolute_link() {
    if !usable("a_work_directory_may_be_named_by_an_absolute_link") {
        return;
    }
    let dray = Dray::new();
    let bundle = dray.bundle("one").args(&["sleep", "1000"]);
    let dir = dray.scratch().dir();
    fs::create_dir(dir.join("real")).unwrap();
    symlink(dir.join("real"), dir.join("link")).unwrap();
    dray.started(&bundle);
    let of = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (images, work) = (of(dir.join("link/images")), of(dir.join("link/work")));
    ok(&dray.run_in(bundle.dir(), &["checkpoint", "--image-path", &images, "--work-path", &work, "one"]));
    ok(&dray.run_in(bundle.dir(), &["restore", "-d", "--image-path", &images, "--work-path", &work, "one"]));
    assert!(dir.join("real/work/restore.log").exists());
    assert_eq!(inside(&dray, &bundle, "echo here"), "here\n");
}

/// With v1 no container is given its cgroup to divide.
#[test]
fn a_cgroup_that_was_its_own_to_divide_is_so_again() {
    let name = "a_cgroup_that_was_its_own_to_divide_is_so_again";
    if skipped_on_v1(name, "cgroups are delegated with v2 alone") || !usable(name) {
        return;
    }
    const USER: u32 = 1000;
    let dray = Dray::new();
    let view = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]});
    let bundle = dray.bundle("one").args(&["sleep", "1000"]).mount(view).edit(|spec| {
        spec["process"]["user"] = json!({"uid": USER, "gid": USER});
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    });
    let owners = || {
        let of = |path: PathBuf| path.metadata().unwrap().uid();
        let names = ["cgroup.procs", "cgroup.subtree_control", "memory.max"];
        [of(bundle.cgroups()[0].clone())].into_iter().chain(names.map(|name| of(bundle.cgroup_file(name)))).collect()
    };
    dray.started(&bundle);
    let before: Vec<u32> = owners();
    assert_eq!(before, [USER, USER, USER, 0]);
    dump(&dray, &bundle);
    restore(&dray, &bundle);
    assert_eq!(owners(), before);
    assert_eq!(inside(&dray, &bundle, "mkdir /sys/fs/cgroup/below && echo made; id -u"), format!("made\n{USER}\n"));
}

#[test]
fn the_lack_of_memory_of_a_restored_container_is_told() {
    if !usable("the_lack_of_memory_of_a_restored_container_is_told") {
        return;
    }
    block_on(async {
        const LIMIT: u64 = 16 << 20;
        let limited = |bundle: Bundle| {
            bundle.args(&["sleep", "1000"]).edit(|spec| {
                spec["linux"]["resources"]["memory"] = json!({"limit": LIMIT, "swap": LIMIT});
            })
        };
        let (world, bundle) = World::running("one", limited).await;
        let images = world.scratch.dir().join("images");
        let waiting = world.spawn_wait("one", "").await;
        let exit = CheckpointOptions { exit: true, ..Default::default() };
        if let Err(e) = world.within(LONG).checkpoint_with("one", &images, exit).await {
            panic!("{e}\n{}", fs::read_to_string(bundle.dir().join("criu-dump.log")).unwrap_or_default());
        }
        waiting.await.unwrap().unwrap();
        world.delete("one", "").await.unwrap();

        let mut request = world.request_for(&bundle, &Io::null());
        request.checkpoint = images.to_str().unwrap().to_owned();
        world.create_request(request).await.unwrap();
        if let Err(e) = world.within(LONG).start("one", "").await {
            panic!("{e}\n{}", fs::read_to_string(bundle.dir().join("criu-restore.log")).unwrap_or_default());
        }
        assert!(!world.sink.topics("one").contains(&"oom".to_owned()));
        let hog = bundle.process(&["sh", "-c", "exec dd if=/dev/zero of=/dev/null count=1 bs=64M"]);
        let exited = world.within(LONG).exec_to_exit("one", "hog", &hog, &Io::null()).await.unwrap();
        assert_eq!(exited.exit_status, 137);
        world.sink.wait_topic("oom", "one", SOON).await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// Without CRIU, too.
#[test]
fn devices_of_the_hosts_are_refused_before_anything_is_done() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").args(&["sleep", "1000"]);
    let with_device = {
        let mut spec = bundle.spec().clone();
        spec["linux"]["netDevices"] = json!({"dray-test0": {}});
        spec.to_string()
    };
    let refused = |verb: &[&str], images: &str| {
        let args = [&["--criu", "/bin/true"], verb, &["--image-path", images, "one"]].concat();
        let said = fails(&dray.run_in(bundle.dir(), &args), 1);
        assert!(said.contains("linux.netDevices"), "{said}");
    };
    dray.started(&bundle);
    // As if it had been made with one.
    fs::write(dray.state_dir("one").join("config.json"), &with_device).unwrap();
    let images = images(&dray);
    refused(&["checkpoint"], &images);
    assert_eq!(living(&[open_pid(dray.pid("one")).unwrap()]), 1);
    assert!(!Path::new(&images).exists());
    ok(&dray.run(&["delete", "--force", "one"]));

    bundle.write_config(with_device.as_bytes());
    refused(&["restore", "-d"], &no_images(&dray));
    assert!(!dray.state_dir("one").exists());
}
