//! SCMP_ACT_NOTIFY: calls of a container that a listener answers, seen from inside and by the listener.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::container::{Container, Ended, Host, refused};
use common::driver::code;
use common::listener::{Answer, Call, Listener};
use common::stdio::Io;
use common::world::descriptors;
use serde_json::{Value, json};
use ttrpc::Code;

const METADATA: &str = "opaque: \"data\"\n";

/// A profile that has a listener answer what is done with these calls, and allows the rest.
fn notify(listener: &Listener, names: &[&str]) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": listener.path,
        "listenerMetadata": METADATA,
    })
}

fn set(spec: &mut Value, profile: Value, no_new_privileges: bool, uid: u32) {
    spec["linux"]["seccomp"] = profile;
    spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
    spec["process"]["user"] = json!({"uid": uid, "gid": uid});
    spec["annotations"] = json!({"dev.example": "yes"});
}

/// mkdir fails with an errno that no file system has.
fn no_medium(_: Call) -> Answer {
    Answer::Errno(libc::ENOMEDIUM)
}

const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];
const REFUSED: &str = "mkdir: can't create directory '/tmp/x': No medium found\n";

/// Each of the ways in which a filter is loaded, in init and in an exec; what the listener is told; and that neither the
/// program nor the shim has the descriptor afterwards.
/// Proves: linux.seccomp.{listenerPath,listenerMetadata}, linux.seccomp.syscalls.action=SCMP_ACT_NOTIFY
#[test]
fn a_listener_answers_init_and_execs() {
    const SCRIPT: &str =
        "mkdir /tmp/x; for fd in /proc/$$/fd/*; do readlink $fd | grep anon; done; grep Seccomp: /proc/self/status";
    for (no_new_privileges, uid, mapped) in
        [(true, 0, 0), (true, 1000, 0), (false, 0, 0), (false, 1000, 0), (false, 0, 7000)]
    {
        let check = |ended: &Ended| {
            assert_eq!(ended.stderr, REFUSED, "{ended:#?}");
            assert!(ended.stdout.starts_with("Seccomp:\t2\n"), "{ended:#?}");
        };
        block_on(async {
            let host = Host::new();
            let listener = Listener::start(host.scratch.dir(), no_medium);
            let profile = notify(&listener, &MKDIR);
            let mut bundle = host.bundle("one").script(&format!("{SCRIPT}; echo done; sleep 1000"));
            if mapped != 0 {
                bundle = bundle.user_namespace(mapped);
            }
            let bundle = bundle.edit(|spec| set(spec, profile, no_new_privileges, uid));
            let mut container = host.start(&bundle).await;
            container.says("done").await;
            let shim = container.shim.pid().await.expect("pid of the shim");
            let before = descriptors(shim);
            check(&container.exec_script("again", SCRIPT).await);
            assert_eq!(descriptors(shim), before);
            let links = fs::read_dir(format!("/proc/{shim}/fd")).expect("descriptors of the shim");
            let links = links.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            assert_eq!(links.filter(|link| link.to_string_lossy().contains("seccomp")).count(), 0);

            let messages = listener.messages();
            assert_eq!(messages.len(), 2, "{messages:#?}");
            let state = |status: &str| {
                json!({
                    "ociVersion": messages[0]["ociVersion"], "id": "one", "status": status, "pid": container.pid,
                    "bundle": bundle.dir(), "annotations": {"dev.example": "yes"},
                })
            };
            let message = |pid: &Value, status: &str| {
                json!({
                    "ociVersion": messages[0]["ociVersion"], "fds": ["seccompFd"], "pid": pid, "metadata": METADATA,
                    "state": state(status),
                })
            };
            assert_eq!(messages[0], message(&json!(container.pid), "creating"));
            assert_eq!(messages[1], message(&messages[1]["pid"], "running"));
            assert!(messages[1]["pid"].as_u64().is_some_and(|pid| pid > 1 && pid != u64::from(container.pid)));
            assert!(messages[0]["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")));
            container.end().await;
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
    }
}

/// The listener does for the container what the container may not do, and says that it was done.
#[test]
fn a_call_is_done_by_the_listener() {
    block_on(async {
        let host = Host::new();
        let listener = Listener::start(host.scratch.dir(), |call| {
            fs::create_dir(format!("/proc/{}/root/made-by-the-listener", call.pid)).expect("mkdir");
            Answer::Value(0)
        });
        let profile = notify(&listener, &MKDIR);
        let bundle = host.bundle("one").script("mkdir /x && ls -d /x /made-by-the-listener");
        let ended = host.run(&bundle.edit(|spec| set(spec, profile, true, 0))).await;
        assert_eq!((ended.status, ended.stdout.as_str()), (1, "/made-by-the-listener\n"), "{ended:#?}");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// Every call, execve(2) among them: of those that precede it none is made once the filter is there. (runc cannot: it
/// refuses such a profile, and one that notifies of write(2).)
#[test]
fn all_calls_may_be_notified() {
    for no_new_privileges in [true, false] {
        block_on(async {
            let host = Host::new();
            let listener = Listener::start(host.scratch.dir(), |_| Answer::Continue);
            let profile = json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": listener.path});
            let bundle = host.bundle("one").args(&["echo", "hello"]);
            let ended = host.run(&bundle.edit(|spec| set(spec, profile, no_new_privileges, 0))).await;
            assert_eq!(ended.ok(), "hello\n");
            let numbers: Vec<_> = listener.calls().iter().map(|call| call.number).collect();
            // What the C library may do to make room for the arguments is not the child's word to anyone.
            let memory = [libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap];
            let first = numbers.iter().find(|number| !memory.contains(number));
            assert_eq!(first, Some(&libc::SYS_execve), "{numbers:?}");
            assert!(numbers.contains(&libc::SYS_write));
            assert!(listener.messages()[0].get("metadata").is_none());
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
    }
}

/// With all flags at once, of which two have rules of their own beside a listener.
#[test]
fn flags_go_with_a_listener() {
    block_on(async {
        let host = Host::new();
        let listener = Listener::start(host.scratch.dir(), no_medium);
        let mut profile = notify(&listener, &MKDIR);
        let flag = |name: &str| format!("SECCOMP_FILTER_FLAG_{name}");
        let mut flags = vec![flag("TSYNC"), flag("LOG"), flag("SPEC_ALLOW")];
        if common::linux() >= (5, 19) {
            flags.push(flag("WAIT_KILLABLE_RECV"));
        }
        profile["flags"] = json!(flags);
        let bundle = host.bundle("one").script("mkdir /tmp/x");
        let ended = host.run(&bundle.edit(|spec| set(spec, profile, true, 0))).await;
        assert_eq!((ended.status, ended.stderr.as_str()), (1, REFUSED));
    });
}

#[test]
fn a_call_that_nobody_answers_any_more_is_not_there() {
    block_on(async {
        let host = Host::new();
        let listener = Listener::start(host.scratch.dir(), |_| Answer::Leave);
        let profile = notify(&listener, &MKDIR);
        let bundle = host.bundle("one").script("mkdir /tmp/x; mkdir /tmp/y");
        let ended = host.run(&bundle.edit(|spec| set(spec, profile, true, 0))).await;
        let missing = |name: &str| format!("mkdir: can't create directory '/tmp/{name}': Function not implemented\n");
        assert_eq!(ended.stderr, missing("x") + &missing("y"));
        assert_eq!(listener.calls().len(), 1);
    });
}

/// Killed while it waits for an answer: init, and an exec alone.
#[test]
fn who_waits_for_an_answer_can_be_killed() {
    block_on(async {
        let host = Host::new();
        let listener = Listener::start(host.scratch.dir(), |_| Answer::Never);
        let profile = notify(&listener, &MKDIR);
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| set(spec, profile.clone(), true, 0));
        let container = host.start(&bundle).await;
        let mut io = Io::fifos(bundle.scratch(), "exec");
        container.shim.exec("one", "waits", &bundle.process(&["mkdir", "/tmp/x"]), &io).await.expect("exec");
        container.shim.start("one", "waits").await.expect("start of exec");
        listener.is_asked().await;
        container.shim.kill("one", "waits", libc::SIGKILL, false).await.expect("kill");
        assert_eq!(container.shim.wait("one", "waits").await.expect("wait").exit_status, 128 + 9);
        io.stdout(Duration::from_secs(60)).await.expect("stdout");
        container.shim.delete("one", "waits").await.expect("delete");
        container.end().await;

        let bundle = host.bundle("two").args(&["mkdir", "/tmp/x"]).edit(|spec| set(spec, profile, true, 0));
        let asked = listener.calls().len();
        let container = host.start(&bundle).await;
        let pid = container.pid;
        while listener.calls().len() == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(listener.calls().last().map(|call| call.pid), Some(pid));
        container.end().await;
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// execve(2) itself waits for the listener: Start has not answered, and Kill works.
#[test]
fn who_waits_in_execve_can_be_killed() {
    block_on(async {
        let host = Host::new();
        let listener = Listener::start(host.scratch.dir(), |_| Answer::Never);
        let profile = notify(&listener, &["execve"]);
        let bundle = host.bundle("one").edit(|spec| set(spec, profile, true, 0));
        let container = host.create(&bundle).await;
        let killed = async {
            listener.is_asked().await;
            container.shim.kill("one", "", libc::SIGKILL, false).await.expect("kill");
        };
        let (started, ()) = futures::join!(container.shim.start("one", ""), killed);
        // It ended on its way: which of the two is seen first is the kernel's matter.
        drop(started);
        assert_eq!(container.shim.wait("one", "").await.expect("wait").exit_status, 128 + 9);
        container.shim.delete("one", "").await.expect("delete");
        container.shim.shutdown_and_wait(Duration::from_secs(60)).await.expect("shutdown");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

#[test]
fn a_path_without_a_socket_fails_create_by_its_name() {
    for (path, words) in [("/run/dray-no-such-listener", "no such file"), ("/etc/passwd", "is not a socket")] {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
            "listenerPath": path,
        });
        let refusal = refused(|bundle| bundle.edit(|spec| set(spec, profile, true, 0)));
        refusal.names(Code::FAILED_PRECONDITION, &["linux.seccomp.listenerPath", path, words]);
    }
}

#[test]
fn what_a_profile_must_not_have_is_refused_by_its_name() {
    let rule = json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]);
    for (profile, words) in [
        (json!({"syscalls": rule}), "linux.seccomp.listenerPath is required"),
        (json!({"syscalls": rule, "listenerPath": "run/x"}), "linux.seccomp.listenerPath is not an absolute path"),
        (json!({"listenerMetadata": "x"}), "linux.seccomp.listenerMetadata"),
    ] {
        let mut profile = profile;
        profile["defaultAction"] = json!("SCMP_ACT_ALLOW");
        refused(|bundle| bundle.edit(|spec| set(spec, profile, true, 0))).names(Code::INVALID_ARGUMENT, &[words]);
    }
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rule, "listenerPath": "/run/x"});
    let hooked = |bundle: Bundle| {
        bundle.edit(|spec| {
            set(spec, profile, true, 0);
            spec["hooks"] = json!({"startContainer": [{"path": "/bin/true"}]});
        })
    };
    refused(hooked).names(Code::UNIMPLEMENTED, &["hooks.startContainer", "SCMP_ACT_NOTIFY"]);
}

/// A socket is there and nobody listens: start fails, the program has not run, and delete leaves nothing.
#[test]
fn a_listener_that_is_gone_fails_start_by_its_path() {
    block_on(async {
        let host = Host::new();
        let path = host.scratch.dir().join("gone.sock");
        drop(UnixListener::bind(&path).expect("bind"));
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}],
            "listenerPath": path,
        });
        let shared = host.scratch.dir().join("shared");
        fs::create_dir(&shared).expect("mkdir");
        let mount = json!({"destination": "/shared", "source": shared, "type": "bind", "options": ["rbind"]});
        let bundle = host.bundle("one").mount(mount).script("echo > /shared/ran");
        let bundle = bundle.edit(|spec| set(spec, profile, true, 0));
        let container = host.create(&bundle).await;
        let error = container.shim.start("one", "").await.expect_err("started");
        let text = error.to_string();
        assert_eq!(code(&error), Some(Code::FAILED_PRECONDITION), "{text}");
        for words in ["linux.seccomp.listenerPath", &path.to_string_lossy(), "connection refused"] {
            assert!(text.to_lowercase().contains(&words.to_lowercase()), "{text}");
        }
        container.shim.wait("one", "").await.expect("wait");
        container.shim.delete("one", "").await.expect("delete");
        container.shim.shutdown_and_wait(Duration::from_secs(60)).await.expect("shutdown");
        assert_eq!(fs::read_dir(&shared).expect("shared").count(), 0, "it ran");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// The same for an exec: the container goes on.
#[test]
fn a_listener_that_is_gone_fails_an_exec_and_not_the_container() {
    block_on(async {
        let host = Host::new();
        let listener = Listener::start(host.scratch.dir(), no_medium);
        let profile = notify(&listener, &MKDIR);
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| set(spec, profile, false, 0));
        let container: Container = host.start(&bundle).await;
        let away = listener.path.with_extension("away");
        fs::rename(&listener.path, &away).expect("rename");
        let refusal = container.exec_refused("none", &bundle.process(&["true"])).await;
        let path = listener.path.to_string_lossy();
        refusal.names(Code::FAILED_PRECONDITION, &["linux.seccomp.listenerPath", &path]);
        fs::rename(&away, &listener.path).expect("rename");
        let ended = container.exec_script("again", "mkdir /tmp/x").await;
        assert_eq!((ended.status, ended.stderr.as_str()), (1, REFUSED));
        container.end().await;
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// One that accepts no connection: the shim goes on with its other work, and gives up.
#[test]
fn a_listener_that_accepts_nothing_does_not_stop_the_shim() {
    block_on(async {
        let host = Host::new();
        let path = host.scratch.dir().join("deaf.sock");
        let _deaf = UnixListener::bind(&path).expect("bind");
        // As many as may wait; the next one would.
        let mut waiting = Vec::new();
        loop {
            let socket = rustix::net::socket_with(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK,
                None,
            );
            let socket = socket.expect("socket");
            let address = rustix::net::SocketAddrUnix::new(&path).expect("address");
            match rustix::net::connect(&socket, &address) {
                Ok(()) => waiting.push(UnixStream::from(socket)),
                Err(e) => break assert_eq!(e, rustix::io::Errno::AGAIN),
            }
        }
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}],
            "listenerPath": path,
        });
        let bundle = host.bundle("one").edit(|spec| set(spec, profile, true, 0));
        let container = host.create(&bundle).await;
        let asked = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let before = Instant::now();
                container.shim.state("one", "").await.expect("state");
                assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
            }
        };
        let task = container.shim.within(Duration::from_secs(60));
        let (started, ()) = futures::join!(task.start("one", ""), asked);
        let text = started.expect_err("started").to_string();
        assert!(text.contains("linux.seccomp.listenerPath") && text.contains("deaf.sock"), "{text}");
        container.shim.wait("one", "").await.expect("wait");
        container.shim.delete("one", "").await.expect("delete");
        container.shim.shutdown_and_wait(Duration::from_secs(60)).await.expect("shutdown");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}
