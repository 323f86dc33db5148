//! A container's process is born as a copy of the shim, which holds the environments and specifications of all its
//! containers: nothing of another one's may be left in it where somebody can look.

use common::attacker::{watch, with_ptrace};
use common::block_on;
use common::bundle::Bundle;
use common::memory::occurrences;
use common::stdio::Io;
use common::world::{SOON, World};
use serde_json::json;

/// Set in a container or a hook whose program is this test binary: what it is to try, and on what.
const ATTACK: &str = "DRAY_TEST_ATTACK";

/// What is searched for, in pieces: whole it must be nowhere but where it is a secret.
fn secret(of: &str) -> String {
    format!("{}{}:{of}:{}", "SEC", "RET", std::process::id())
}

/// A container with secrets wherever a specification has room for one.
fn secretive(bundle: Bundle) -> Bundle {
    let own = |place: &str| secret(&format!("{}-{place}", bundle.id));
    let [env, args, annotation, hook, name] = ["env", "args", "annotation", "hook", "name"].map(own);
    bundle.edit(|spec| {
        spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("X={env}")));
        spec["process"]["args"] = json!(["sh", "-c", "while :; do sleep 1000; done", args]);
        spec["annotations"] = json!({ "x": annotation });
        // Large, as some are: it need not lie where small values do.
        spec["annotations"]["y"] = json!(format!("{}{annotation}", " ".repeat(300_000)));
        let entry = json!([{"path": "/bin/true", "args": ["true", name], "env": [format!("X={hook}")]}]);
        spec["hooks"] = json!({"createRuntime": entry, "startContainer": entry, "poststop": entry});
    })
}

/// Of the containers `ids` and of the execs of `one`.
fn secrets(ids: &[&str]) -> Vec<String> {
    let places = ["env", "args", "annotation", "hook", "name"];
    let of = |id: &&str| places.map(|place| secret(&format!("{id}-{place}")));
    let execs = ["exec-ended", "exec-registered"].map(secret);
    ids.iter().flat_map(of).chain(execs).collect()
}

#[test]
fn a_created_init_holds_nothing_of_another_container() {
    block_on(async {
        let (world, one) = World::running("one", secretive).await;
        let exec = |which: &str| {
            let mut process = one.process(&["true"]);
            process["env"].as_array_mut().unwrap().push(json!(format!("X={}", secret(which))));
            process
        };
        world.exec_to_exit("one", "ended", &exec("exec-ended"), &Io::null()).await.unwrap();
        world.exec("one", "registered", &exec("exec-registered"), &Io::null()).await.unwrap();
        let created = secretive(Bundle::new(&world.scratch, "created"));
        world.create(&created, &Io::null()).await.unwrap();

        let two = secretive(Bundle::new(&world.scratch, "two"));
        let init = world.create(&two, &Io::null()).await.unwrap().pid;
        let found: Vec<_> =
            secrets(&["one", "created"]).into_iter().filter(|secret| occurrences(init, secret) != 0).collect();
        assert!(found.is_empty(), "{found:?}");
        // The search finds what is there: its own, and in the shim what it is still to need.
        for own in ["two-env", "two-args", "two-hook"].map(secret) {
            assert_ne!(occurrences(init, &own), 0, "{own}");
        }
        let shim = world.pid().await.unwrap() as u32;
        assert_ne!(occurrences(shim, &secret("exec-registered")), 0);

        // Nor what the shim was started with, of which everybody could read the command line.
        for file in ["cmdline", "environ"] {
            let read = |pid: u32| std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(read(shim).iter().any(|&byte| byte != 0), "{file}");
            assert!(read(init).iter().all(|&byte| byte == 0), "{file}");
        }

        // It becomes what it was to become all the same.
        world.start("two", "").await.unwrap();
        let environment = std::fs::read(format!("/proc/{init}/environ")).unwrap();
        assert!(String::from_utf8_lossy(&environment).contains(&secret("two-env")));
        for id in ["two", "created", "one"] {
            world.end(id).await;
        }
        world.close().await;
    });
}

/// The bundle with this very binary in it, and CAP_SYS_PTRACE.
fn with_attacker(bundle: Bundle) -> Bundle {
    let exe = std::env::current_exe().expect("own path");
    let mount = json!({"destination": "/attacker", "type": "bind", "source": exe, "options": ["rbind", "ro"]});
    with_ptrace(bundle.mount(mount))
}

/// The arguments by which this binary does what `ATTACK` says.
const ATTACKER: [&str; 5] = ["/attacker", "--exact", "inside_the_container", "--ignored", "--nocapture"];

/// Not a test: what the containers of the others run.
#[test]
#[ignore = "the program of the other tests' containers"]
fn inside_the_container() {
    let Ok(attack) = std::env::var(ATTACK) else { return };
    match attack.split(' ').collect::<Vec<_>>()[..] {
        // The needle comes in pieces: this attack's own specification is in that memory too.
        ["init", own, id, place, pid, report] => {
            let needle = format!("{}{}:{id}-{place}:{pid}", "SEC", "RET");
            let text = format!("own={} secret={}", occurrences(1, own), occurrences(1, &needle));
            std::fs::write(report, text).unwrap();
        }
        ["newcomers", id, place, pid] => {
            let needle = format!("{}{}:{id}-{place}:{pid}", "SEC", "RET");
            watch(|pid| {
                let Some(form) = form(pid) else { return false };
                let caught = form != FORM || occurrences(pid, &needle) != 0 || is_by_name_the_shim(pid);
                if caught {
                    println!("{pid}: {form}");
                }
                caught
            });
        }
        ["forge"] => watch(|pid| forge_birth(pid) > 0),
        _ => panic!("unknown attack {attack}"),
    }
}

/// A startContainer hook runs beside its container's init, which has not become its program.
#[test]
fn a_hook_of_start_finds_nothing_of_another_container_in_init() {
    block_on(async {
        let (world, _one) = World::running("one", secretive).await;
        let report = world.scratch.dir().join("report");
        std::fs::create_dir(&report).unwrap();
        let bind = json!({"destination": "/report", "type": "bind", "source": report, "options": ["rbind", "rw"]});
        for (id, place) in [("two", "env"), ("three", "annotation"), ("four", "name")] {
            let attack = format!("{ATTACK}=init --exact one {place} {} /report/text", std::process::id());
            let hook = json!([{"path": ATTACKER[0], "args": ATTACKER, "env": [attack]}]);
            let two = with_attacker(Bundle::new(&world.scratch, id)).mount(bind.clone());
            let two = two.args(&["sleep", "1000"]).edit(|spec| spec["hooks"] = json!({"startContainer": hook}));
            world.run(&two).await;
            let text = std::fs::read_to_string(report.join("text")).unwrap();
            assert!(text.ends_with(" secret=0") && !text.starts_with("own=0 "), "{place}: {text}");
            world.end(id).await;
        }
        world.end("one").await;
        world.close().await;
    });
}

/// What a process of the newcomers is to be, as `form` tells.
const FORM: &str = "/tmp, Uid: 1000 1000 1000 1000, Gid: 1000 1000 1000 1000, CapPrm: 0000000000000000";

/// Where a process is, who, and what it may; none when it is gone, or a thread of another.
fn form(pid: u32) -> Option<String> {
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let own = field("Tgid:")? == format!("Tgid: {pid}");
    own.then(|| Some(format!("{}, {}, {}, {}", cwd.display(), field("Uid:")?, field("Gid:")?, field("CapPrm:")?)))?
}

/// Whether its command line is that of the shim's server, which names its socket and namespace.
fn is_by_name_the_shim(pid: u32) -> bool {
    let read = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&read).split('\0').any(|word| word == "-namespace")
}

/// Who may look at whatever comes into the container sees it as it is to be, from its first moment.
#[test]
fn an_exec_comes_with_no_more_rights_and_memory_than_it_is_to_have() {
    let allowing = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}, {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    ]});
    for profile in [None, Some(allowing)] {
        block_on(async {
            let (world, _one) = World::running("one", secretive).await;
            let attack = format!("{ATTACK}=newcomers one env {}", std::process::id());
            let two = with_attacker(Bundle::new(&world.scratch, "two")).args(&ATTACKER).edit(|spec| {
                spec["process"]["env"].as_array_mut().unwrap().push(json!(attack));
                spec["process"]["noNewPrivileges"] = json!(profile.is_none());
                spec["linux"]["seccomp"] = json!(profile);
            });
            let mut io = Io::fifos(&world.scratch, "two");
            world.create(&two, &io).await.unwrap();
            let waiting = world.spawn_wait("two", "").await;
            world.start("two", "").await.unwrap();
            io.stdout_with("watching", SOON).await.unwrap();
            let mut process = two.process(&["true"]);
            process["user"] = json!({"uid": 1000, "gid": 1000});
            process["cwd"] = json!("/tmp");
            process["env"] = json!(["PATH=/bin"]);
            process["capabilities"] = json!({});
            for number in 0..50 {
                world.exec_to_exit("two", &format!("probe{number}"), &process, &Io::null()).await.unwrap();
            }
            // Containers that come into its pid namespace, on a kernel that has what it takes.
            let pid = world.connect("two").await.unwrap().task_pid;
            for number in 0..if common::linux() >= (6, 17) { 20 } else { 0 } {
                let mate = Bundle::new(&world.scratch, &format!("mate{number}")).edit(|spec| {
                    spec["process"] = process.clone();
                    spec["process"]["noNewPrivileges"] = json!(profile.is_none());
                    spec["linux"]["seccomp"] = json!(profile);
                    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
                    namespaces.retain(|namespace| namespace["type"] != "pid");
                    namespaces.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")}));
                });
                world.create(&mate, &Io::null()).await.unwrap();
                let ended = world.spawn_wait(&mate.id, "").await;
                world.start(&mate.id, "").await.unwrap();
                assert_eq!(ended.await.unwrap().unwrap().exit_status, 0);
                world.delete(&mate.id, "").await.unwrap();
            }
            std::fs::write(two.rootfs_dir().join("stop"), "").unwrap();
            waiting.await.unwrap().unwrap();
            let text = io.stdout(SOON).await.unwrap();
            assert!(text.contains(" caught=0") && !text.contains("seen=0 "), "{profile:?}: {text}");
            world.delete("two", "").await.unwrap();
            world.end("one").await;
            world.close().await;
        });
    }
}

/// Takes each of a process's sockets, and says on it to the shim that process 1 has been born.
#[allow(unsafe_code)]
fn forge_birth(pid: u32) -> usize {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let Some(process) = common::driver::open_pid(pid as i32) else { return 0 };
    if std::path::Path::new(&format!("/proc/self/task/{pid}")).exists() {
        return 0;
    }
    let ourselves = common::driver::open_pid(std::process::id() as i32).unwrap();
    let mut said = 0;
    for number in 3..64 {
        // SAFETY: it touches no memory, and the descriptor that it returns is new and ours.
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
        if taken < 0 {
            continue;
        }
        // SAFETY: see above.
        let socket = unsafe { OwnedFd::from_raw_fd(taken as i32) };
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [std::os::fd::AsFd::as_fd(&ourselves)];
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        let message = [b'B', 1, 0, 0, 0];
        let sent = rustix::net::sendmsg(
            &socket,
            &[std::io::IoSlice::new(&message)],
            &mut control,
            rustix::net::SendFlags::NOSIGNAL,
        );
        if sent.is_ok() {
            std::fs::write("/said", "").unwrap();
            said += 1;
        }
    }
    said
}

/// What is on its way has a socket to the shim. Whoever takes it has no say in which process the shim takes for the exec's.
#[test]
fn an_exec_is_no_other_process_whatever_is_said_in_the_container() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| {
            with_attacker(bundle).args(&ATTACKER).edit(|spec| {
                spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("{ATTACK}=forge")));
            })
        })
        .await;
        let mut io = Io::fifos(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        let waiting = world.spawn_wait("one", "").await;
        world.start("one", "").await.unwrap();
        io.stdout_with("watching", SOON).await.unwrap();
        // The attacker has less than a millisecond, and needs to win once.
        let (said, mut number) = (bundle.rootfs_dir().join("said"), 0);
        while number < 50 || (number < 2000 && !said.exists()) {
            number += 1;
            let exec = format!("probe{number}");
            world.exec("one", &exec, &bundle.process(&["sleep", "0.01"]), &Io::null()).await.unwrap();
            match world.start("one", &exec).await {
                Ok(started) => assert_ne!(started.pid, 1, "the attacker's word was taken"),
                Err(error) => assert!(error.to_string().contains("not its to tell of"), "{error}"),
            }
            assert_ne!(world.state("one", &exec).await.unwrap().pid, 1);
            world.wait("one", &exec).await.unwrap();
            world.delete("one", &exec).await.unwrap();
        }
        std::fs::write(bundle.rootfs_dir().join("stop"), "").unwrap();
        waiting.await.unwrap().unwrap();
        assert!(said.exists(), "the attacker was too slow: {}", io.stdout(SOON).await.unwrap());
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}
