//! What a hostile container, image or specification must not get.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::attacker::{attack, attacker, watch, with_ptrace};
use common::bundle::Bundle;
use common::driver::{Shim, StartOptions, await_exit, open_pid, start_action};
use common::events::EventSink;
use common::scratch::Scratch;
use common::stdio::Io;
use common::{block_on, shim_binary};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

/// Runs the bundle's container to its end; gives its output.
async fn output_of(bundle: &Bundle, sink: &EventSink) -> String {
    let mut io = Io::fifos(bundle.scratch(), &bundle.id);
    let shim = Shim::start(&shim_binary(), bundle, sink).await.expect("start action");
    shim.create(bundle, &io).await.unwrap();
    let waiting = shim.spawn_wait(&bundle.id, "").await;
    shim.start(&bundle.id, "").await.unwrap();
    waiting.await.unwrap().unwrap();
    let (out, err) = (io.stdout(SOON).await.unwrap(), io.stderr(SOON).await.unwrap());
    shim.delete(&bundle.id, "").await.unwrap();
    shim.shutdown_and_wait(SOON).await.unwrap();
    out + &err
}

/// Not a test: what the containers of the others run.
#[test]
#[ignore = "the program of the other tests' containers"]
fn inside_the_container() {
    let Some(attack) = attack() else { return };
    let words: Vec<&str> = attack.iter().map(String::as_str).collect();
    match words[..] {
        ["mountinfo", needle] => watch(|pid| {
            // The space behind it is the table's.
            std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))
                .is_ok_and(|text| text.contains(&format!("{needle} ")))
        }),
        ["root", secret] => watch(|pid| std::fs::metadata(format!("/proc/{pid}/root{secret}")).is_ok()),
        ["kill"] => watch(|pid| {
            let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let own = std::path::Path::new(&format!("/proc/self/task/{pid}")).exists();
            !own && rustix::process::kill_process(process, rustix::process::Signal::KILL).is_ok()
        }),
        ["exe"] => watch(is_seen_as_the_shim),
        ["keyring"] => println!("keyring={}", session_keyring()),
        _ => panic!("unknown attack {attack:?}"),
    }
}

/// Looks at it until it may, or it is gone: then it must be its program, the image's.
fn is_seen_as_the_shim(pid: u32) -> bool {
    let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
    let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(process, rustix::process::Signal::CONT);
    while proc.exists() {
        match std::fs::read_link(proc.join("exe")) {
            // A thread of our own is seen by its number too.
            Ok(exe) => return !exe.ends_with("busybox") && !exe.ends_with("attacker"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return false,
            Err(_) => {}
        }
    }
    false
}

fn session_keyring() -> i64 {
    // KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING, without making one.
    #[allow(unsafe_code)]
    // SAFETY: numbers only.
    unsafe {
        libc::syscall(libc::SYS_keyctl, 0, -3, 0)
    }
}

/// Execs again and again beside an attacker, who says how many processes he has caught.
async fn exec_beside(bundle: &Bundle, sink: &EventSink) -> String {
    let mut io = Io::fifos(bundle.scratch(), &bundle.id);
    let shim = Shim::start(&shim_binary(), bundle, sink).await.expect("start action");
    shim.create(bundle, &io).await.unwrap();
    let waiting = shim.spawn_wait(&bundle.id, "").await;
    shim.start(&bundle.id, "").await.unwrap();
    io.stdout_with("watching", SOON).await.unwrap();
    let process = bundle.process(&["/bin/true"]);
    for number in 0..100 {
        let exec = format!("probe{number}");
        shim.exec_to_exit(&bundle.id, &exec, &process, &Io::null()).await.unwrap();
    }
    std::fs::write(bundle.rootfs_dir().join("stop"), "").unwrap();
    waiting.await.unwrap().unwrap();
    let text = io.stdout(SOON).await.unwrap() + &io.stderr(SOON).await.unwrap();
    shim.delete(&bundle.id, "").await.unwrap();
    assert!(text.contains("seen=") && !text.contains("seen=0 "), "the attacker saw nobody: {text}");
    text
}

/// An exec's process is in the container's pid namespace from its birth. Were it in the host's mount namespace then,
/// any process of the container could read the host's mounts in its /proc/PID/mountinfo, which asks for no permission.
#[test]
fn an_exec_on_its_way_shows_nothing_of_the_hosts_mounts() {
    for user in [false, true] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            // The mount point of the rootfs is in the host's table alone.
            let needle = scratch.dir().join("bundles/one/rootfs");
            let bundle = attacker(Bundle::new(&scratch, "one"), &format!("mountinfo {}", needle.display()));
            let bundle = if user { bundle.user_namespace(100_000) } else { bundle };
            let text = exec_beside(&bundle, &sink).await;
            assert!(text.contains("caught=0"), "{text}");
        });
    }
}

/// Its end may be seen by the shim before it knows that it was born; it is told of as any other.
#[test]
fn the_end_of_an_exec_that_is_killed_at_its_birth_is_told() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = attacker(Bundle::new(&scratch, "one"), "kill");
        let mut io = Io::fifos(&scratch, "one");
        let shim = Shim::start(&shim_binary(), &bundle, &sink).await.unwrap();
        shim.create(&bundle, &io).await.unwrap();
        let ended = shim.spawn_wait("one", "").await;
        shim.start("one", "").await.unwrap();
        io.stdout_with("watching", SOON).await.unwrap();
        let mut killed = 0;
        for number in 0..100 {
            let exec = format!("probe{number}");
            shim.exec("one", &exec, &bundle.process(&["true"]), &Io::null()).await.unwrap();
            let waiting = shim.spawn_wait("one", &exec).await;
            let pid = shim.start("one", &exec).await.unwrap().pid;
            let status = waiting.await.unwrap().unwrap().exit_status;
            assert!(pid != 0 && (status == 0 || status == 137), "{pid} {status}");
            killed += u32::from(status == 137);
            shim.delete("one", &exec).await.unwrap();
        }
        std::fs::write(bundle.rootfs_dir().join("stop"), "").unwrap();
        ended.await.unwrap().unwrap();
        assert_ne!(killed, 0, "the attacker was too slow");
    });
}

/// CAP_SYS_PTRACE opens /proc/PID/root of a process that is not dumpable too: it must be the container's root already.
#[test]
fn an_exec_on_its_way_is_no_way_to_the_hosts_files() {
    for user in [false, true] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = with_ptrace(Bundle::new(&scratch, "one"));
            let bundle = if user { bundle.user_namespace(100_000) } else { bundle };
            let secret = scratch.dir().join("bundles/one/config.json");
            let bundle = attacker(bundle, &format!("root {}", secret.display()));
            let text = exec_beside(&bundle, &sink).await;
            assert!(text.contains("caught=0"), "{text}");
        });
    }
}

/// Root of the container has the same uid, and what is dumpable is its to read: the shim's memory, for one (CVE-2016-9962).
#[test]
fn cve_2016_9962_an_exec_on_its_way_cannot_be_looked_into() {
    for user in [false, true] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = attacker(Bundle::new(&scratch, "one"), "exe");
            // There CAP_SYS_PTRACE is of no help: the memory is still of the shim's user namespace.
            let bundle = if user { with_ptrace(bundle).user_namespace(100_000) } else { bundle };
            let text = exec_beside(&bundle, &sink).await;
            assert!(text.contains("caught=0"), "{text}");
        });
    }
}

/// root of a container may change the mode of whatever it holds a descriptor of and root owns: that must not be the
/// host's /dev/null.
#[test]
fn an_absent_stream_is_not_the_hosts_null_device() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one").script("stat -L -c '%t:%T %d:%i' /proc/self/fd/0");
        let text = output_of(&bundle, &sink).await;
        let host = std::fs::metadata("/dev/null").unwrap();
        let (kind, file) = text.trim().split_once(' ').unwrap_or_else(|| panic!("{text}"));
        assert_eq!(kind, "1:3", "not a null device");
        assert_ne!(file, format!("{}:{}", host.dev(), host.ino()), "the host's");
    });
}

/// Keys of the host's session, and of other containers', are possessed by who shares the session keyring.
#[test]
fn each_container_has_a_session_keyring_of_its_own() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let host = format!("keyring={}", session_keyring());
        let mut seen = vec![host];
        for id in ["one", "two"] {
            let text = output_of(&attacker(Bundle::new(&scratch, id), "keyring"), &sink).await;
            let line = text.lines().find_map(|line| line.find("keyring=").map(|at| line[at..].to_owned()));
            let line = line.unwrap_or_else(|| panic!("{text}"));
            assert!(!seen.contains(&line), "{line} is shared: {seen:?}");
            seen.push(line);
        }
    });
}

/// Without PATH there is nowhere to look, and the working directory may be anybody's volume (Go's exec.ErrDot).
#[test]
fn a_program_is_not_taken_from_the_working_directory() {
    for path in [None, Some("PATH="), Some("PATH=:/nowhere"), Some("PATH=.:/nowhere")] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = Bundle::new(&scratch, "one").args(&["true"]).edit(|spec| {
                spec["process"]["cwd"] = json!("/bin");
                spec["process"]["env"] = json!(path.into_iter().collect::<Vec<_>>());
            });
            let shim = Shim::start(&shim_binary(), &bundle, &sink).await.expect("start action");
            let error = shim.create(&bundle, &Io::null()).await.expect_err(&format!("{path:?}: it was found"));
            assert!(error.to_string().contains("executable file not found in $PATH"), "{path:?}: {error}");
        });
    }
}

/// A child that dies without a word (here: its memory limit is too low for it) has not been created.
#[test]
fn an_init_that_dies_on_its_way_is_not_created() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one")
            .edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 4096, "swap": 4096}));
        let shim = Shim::start(&shim_binary(), &bundle, &sink).await.expect("start action");
        let error = shim.create(&bundle, &Io::null()).await.expect_err("created");
        eprintln!("{error}");
        shim.shutdown_and_wait(SOON).await.unwrap();
        assert_eq!(scratch.leftovers(), [""; 0]);
    });
}

/// What Create's request mounts goes to the bundle's rootfs/, whatever root.path says: it may say "/", and what is
/// mounted there is taken away at the end, until nothing is.
#[test]
fn the_rootfs_is_mounted_in_the_bundle_only() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let elsewhere = scratch.dir().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let bundle = Bundle::new(&scratch, "one").edit(|spec| spec["root"]["path"] = json!(elsewhere));
        let shim = Shim::start(&shim_binary(), &bundle, &sink).await.expect("start action");
        let _ = shim.create(&bundle, &Io::null()).await;
        assert!(!elsewhere.join("bin").exists(), "mounted on root.path");
    });
}

/// A link of the image's must not take a volume to the root itself, whose mounts it would hide and in whose stead it
/// would become read-only, nor the host's /dev to /dev, which is then filled, and its ptmx replaced.
#[test]
fn a_link_leads_no_mount_to_the_root_or_to_dev() {
    for target in ["/", "/dev", "/../dev/."] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let volume = scratch.dir().join("volume");
            std::fs::create_dir(&volume).unwrap();
            std::fs::write(volume.join("ptmx"), "mine").unwrap();
            let bundle = Bundle::new(&scratch, "one")
                .plain_rootfs()
                .mount(json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"]}));
            std::os::unix::fs::symlink(target, bundle.rootfs_dir().join("data")).unwrap();
            let shim = Shim::start(&shim_binary(), &bundle, &sink).await.expect("start action");
            let error = shim.create(&bundle, &Io::null()).await.expect_err(target);
            assert!(error.to_string().contains("through a link"), "{target}: {error}");
            assert_eq!(std::fs::read_to_string(volume.join("ptmx")).unwrap(), "mine");
        });
    }
}

/// Two starts for one id leave one server: what another start has bound, and does not listen on yet, is not stale.
#[test]
fn a_start_does_not_replace_the_socket_of_one_under_way() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;

    let scratch = Scratch::new();
    let sink = block_on(async { EventSink::start(&scratch) });
    let bundle = Bundle::new(&scratch, "one");
    let start = || start_action(&shim_binary(), &bundle, &sink, &StartOptions::default()).expect("start action");
    // Where it will be.
    let reply = start();
    let path = String::from_utf8(reply.stdout).unwrap().trim().trim_start_matches("unix://").to_owned();
    for pid in scratch.shims() {
        let shim = open_pid(pid).expect("a shim");
        rustix::process::pidfd_send_signal(&shim, rustix::process::Signal::KILL).unwrap();
        await_exit(&shim, SOON).unwrap();
    }
    std::fs::remove_file(&path).unwrap();

    // The other start, in the middle.
    let directory = std::fs::File::open(std::path::Path::new(&path).parent().unwrap()).unwrap();
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let other = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(other.as_raw_fd(), &UnixAddr::new(path.as_str()).unwrap()).unwrap();
    let inode = std::fs::symlink_metadata(&path).unwrap().ino();
    std::thread::scope(|scope| {
        let second = scope.spawn(start);
        std::thread::sleep(Duration::from_millis(300));
        listen(&other, Backlog::new(16).unwrap()).unwrap();
        drop(directory);
        let output = second.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });
    let same = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.ino() == inode);
    let shims = scratch.shims().len();
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_file(format!("{path}.dray"));
    assert!(same, "its socket was replaced");
    assert_eq!(shims, 0, "a second server");
}

/// What the image has where the specification mounts, a link to the host's tree among it, leads nowhere but inside.
#[test]
fn links_in_the_image_touch_nothing_of_the_host() {
    for name in ["proc", "sys", "dev", "run", "data"] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let outside = scratch.dir().join("outside");
            std::fs::create_dir(&outside).unwrap();
            let bundle = Bundle::new(&scratch, "one").plain_rootfs().mount(
                json!({"destination": "/data/sub", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]}),
            );
            let link = bundle.rootfs_dir().join(name);
            let _ = std::fs::remove_dir(&link);
            // As a path of the host's, and so deep that no amount of ".." is missing.
            let climbing = format!("{}{}", "../".repeat(32), outside.display());
            std::os::unix::fs::symlink(climbing, &link).unwrap();
            let shim = Shim::start(&shim_binary(), &bundle, &sink).await.expect("start action");
            let created = shim.create(&bundle, &Io::null()).await;
            // Whether it can be created is another matter: proc and sysfs through a link are refused.
            assert!(created.is_err() || !["proc", "sys"].contains(&name), "{name} through a link");
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{name}: made outside");
            assert_eq!(common::scratch::mounts_below(&outside).len(), 0, "{name}: mounted outside");
        });
    }
}

/// A volume that is to hand on its mounts does (kubelet's Bidirectional): leaving the host's tree changes that tree alone.
#[test]
fn a_shared_volume_stays_shared() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one")
            .script("grep ' /data ' /proc/self/mountinfo")
            .mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["rshared"]}));
        let text = output_of(&bundle, &sink).await;
        assert!(text.contains(" shared:"), "{text}");
    });
}
