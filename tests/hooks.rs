//! Hooks: when each is run, where, with what, and what becomes of the container when one fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, namespace_of};
use common::driver::{await_exit, open_pid};
use common::stdio::Io;
use common::world::{SOON, World, leftovers, refused, status, until};
use containerd_shim_protos::api::Status;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::{Value, json};
use ttrpc::Code;

const CREATE: [&str; 3] = ["prestart", "createRuntime", "createContainer"];
const ALL: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that is a script of the shell, wherever it is run.
fn sh(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script]})
}

/// Adds a hook of a kind; the container has the scratch directory's `shared` as /shared, where anyone may write.
fn with_hook(bundle: Bundle, kind: &str, hook: Value) -> Bundle {
    let dir = shared(&bundle);
    let bundle = match dir.exists() {
        true => bundle,
        false => {
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
            bundle.mount(json!({"destination": "/shared", "type": "bind", "source": dir, "options": ["rbind"]}))
        }
    };
    bundle.edit(|spec| match spec["hooks"][kind].as_array_mut() {
        Some(list) => list.push(hook),
        None => spec["hooks"][kind] = json!([hook]),
    })
}

fn shared(bundle: &Bundle) -> PathBuf {
    bundle.scratch().dir().join("shared")
}

/// The same directory as a hook of this kind sees it.
fn seen(bundle: &Bundle, kind: &str) -> String {
    if kind == "startContainer" { "/shared".to_owned() } else { shared(bundle).display().to_string() }
}

/// A poststop hook that leaves a line.
fn with_poststop(bundle: Bundle) -> Bundle {
    let script = format!("echo poststop >> {}/order", shared(&bundle).display());
    with_hook(bundle, "poststop", sh(&script))
}

fn order(bundle: &Bundle) -> Vec<String> {
    let text = fs::read_to_string(shared(bundle).join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn say(bundle: &Bundle, line: &str) {
    let file = fs::OpenOptions::new().append(true).create(true).open(shared(bundle).join("order"));
    std::io::Write::write_all(&mut file.unwrap(), format!("{line}\n").as_bytes()).unwrap();
}

fn read(bundle: &Bundle, name: &str) -> String {
    let path = shared(bundle).join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Records what a hook is given, below `seen`, under its kind.
fn recorder(bundle: &Bundle, kind: &str) -> String {
    let rootfs = bundle.rootfs_dir();
    let (rootfs, dir) = (rootfs.display(), seen(bundle, kind));
    format!(
        "at={dir}/{kind}; echo {kind} >> {dir}/order; cat > $at.state; pwd > $at.cwd; umask > $at.umask; \
         tr '\\0' '\\n' < /proc/self/environ > $at.env; \
         for ns in mnt net pid ipc uts; do readlink /proc/self/ns/$ns; done > $at.ns; \
         ls /proc/self/fd > $at.fd; \
         grep -E '^Sig(Blk|Ign)' /proc/self/status | tr -d '\\t\\n' > $at.signals; \
         pid=$(sed -n 's/.*\"pid\":\\([0-9]*\\).*/\\1/p' $at.state); \
         if [ -n \"$pid\" ]; then readlink /proc/$pid/ns/net; fi > $at.pidnet; \
         for dir in /proc/$pid/root{rootfs}/proc/1 {rootfs}/proc/1 /proc/1; do [ -d $dir ] && echo yes || echo no; done > $at.see"
    )
}

/// Proves: hooks.{prestart,createRuntime,createContainer,startContainer,poststart,poststop}, hooks.*.{path,args,env}
#[test]
fn all_six_in_their_order_and_each_in_its_place() {
    block_on(async {
        let (world, bundle) = World::with("one", |mut bundle| {
            for kind in ALL {
                let script = recorder(&bundle, kind);
                bundle = with_hook(bundle, kind, sh(&script));
            }
            // Second ones, and what the program has done before a poststart hook can be done.
            let dir = shared(&bundle);
            let second = format!("echo createRuntime2 >> {}/order", dir.display());
            bundle = with_hook(bundle, "createRuntime", sh(&second));
            let second =
                format!("while ! [ -e {}/main ]; do sleep 0.1; done; echo poststart2 >> {0}/order", dir.display());
            bundle = with_hook(bundle, "poststart", sh(&second));
            let script = "while read x; do :; done < /proc/self/status; echo > /shared/main; exec sleep 1000";
            bundle.script(script).edit(|spec| {
                spec["annotations"] = json!({"a.b/c": "\"d\"\n"});
                spec["process"]["cwd"] = json!("/tmp");
                spec["process"]["env"] = json!(["PATH=/usr/bin:/bin", "OWN=1"]);
                spec["hooks"]["createRuntime"][0]["env"] = json!(["PATH=/usr/bin:/bin", "HOOK=2"]);
            })
        })
        .await;
        let pid = world.create(&bundle, &Io::null()).await.unwrap().pid;
        say(&bundle, "created");
        let container: Vec<_> =
            ["mnt", "net", "pid", "ipc", "uts"].map(|name| namespace_of(&pid.to_string(), name)).into();
        world.start("one", "").await.unwrap();
        say(&bundle, "started");
        world.exec_to_exit("one", "x", &bundle.process(&["true"]), &Io::null()).await.unwrap();
        assert_eq!(status(world.pid().await.unwrap(), "Threads"), 1);
        world.end("one").await;
        say(&bundle, "deleted");
        let wanted = [
            "prestart",
            "createRuntime",
            "createRuntime2",
            "createContainer",
            "created",
            "startContainer",
            "poststart",
            "poststart2",
            "started",
            "poststop",
            "deleted",
        ];
        assert_eq!(order(&bundle), wanted);

        let host: Vec<_> = ["mnt", "net", "pid", "ipc", "uts"].map(|name| namespace_of("self", name)).into();
        for kind in ALL {
            let inside = matches!(kind, "createContainer" | "startContainer");
            let lines = |what: &str| -> Vec<String> {
                read(&bundle, &format!("{kind}.{what}")).lines().map(str::to_owned).collect()
            };
            let mut state: Value = serde_json::from_str(&read(&bundle, &format!("{kind}.state"))).unwrap();
            let told = state.as_object_mut().unwrap().remove("pid");
            let wanted_pid = match kind {
                "poststop" => None,
                _ if inside => Some(json!(1)),
                _ => Some(json!(pid)),
            };
            assert_eq!(told, wanted_pid, "{kind}");
            let wanted = match kind {
                "startContainer" => "created",
                "poststart" => "running",
                "poststop" => "stopped",
                _ => "creating",
            };
            let wanted = json!({"ociVersion": "1.3.0", "id": "one", "status": wanted, "bundle": bundle.dir(),
                "annotations": {"a.b/c": "\"d\"\n"}});
            assert_eq!(state, wanted, "{kind}");

            assert_eq!(lines("ns"), if inside { &container[..] } else { &host[..] }, "{kind}");
            let cwd = match kind {
                "createContainer" => bundle.rootfs_dir(),
                "startContainer" => "/tmp".into(),
                _ => bundle.dir().to_owned(),
            };
            assert_eq!(lines("cwd"), [cwd.display().to_string()], "{kind}");
            assert_eq!(lines("umask"), ["0022"], "{kind}");
            // The last is of the directory that is listed.
            assert_eq!(lines("fd"), ["0", "1", "2", "3"], "{kind}");
            let signals = lines("signals").concat();
            assert_eq!(signals, "SigBlk:0000000000000000SigIgn:0000000000000000", "{kind}");
            let env = lines("env");
            let own = ["PATH=/usr/bin:/bin", "OWN=1"];
            match kind {
                "createRuntime" => assert_eq!(env, ["PATH=/usr/bin:/bin", "HOOK=2"], "{kind}"),
                _ if inside => assert_eq!(env, own, "{kind}"),
                _ => assert_eq!(env, [format!("PATH={}", std::env::var("PATH").unwrap())], "{kind}"),
            }
            match kind {
                "createContainer" | "startContainer" | "poststop" => {}
                _ => assert_eq!(lines("pidnet"), [container[1].clone()], "{kind}"),
            }
            // The mounts are made and the root is not entered; in the namespace of the mounts; in the root.
            let see = match kind {
                "prestart" | "createRuntime" => ["yes", "no", "yes"],
                "createContainer" => ["no", "yes", "yes"],
                _ => ["no", "no", "yes"],
            };
            assert_eq!(lines("see"), see, "{kind}");
        }
        world.close().await;
    });
}

/// It is the container's file: it has what the container's process has, and no more.
#[test]
fn a_start_container_hook_has_the_rights_of_the_process() {
    let look = "(id -u; id -g; grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Groups)' /proc/self/status; mkdir /tmp/$0)";
    for (uid, no_new_privileges) in [(0, true), (0, false), (1000, true), (1000, false)] {
        block_on(async {
            let host = Host::new();
            let bundle = with_hook(host.bundle("one"), "startContainer", sh(&format!("{look} > /shared/hook 2>&1; :")));
            let bundle = bundle.script(&format!("{look} > /shared/main 2>&1")).edit(|spec| {
                spec["process"]["user"] = json!({"uid": uid, "gid": uid, "additionalGids": [7]});
                spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
                spec["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
                });
            });
            let ended = host.run(&bundle).await;
            let (hook, main) = (read(&bundle, "hook"), read(&bundle, "main"));
            assert_eq!(hook, main, "{uid} {no_new_privileges} {ended:?}");
            assert!(hook.contains("Seccomp:\t2") && hook.contains("No space left"), "{hook}");
        });
    }
}

#[test]
fn a_container_without_proc_has_start_container_hooks_too() {
    block_on(async {
        let host = Host::new();
        let bundle = with_hook(host.bundle("one"), "startContainer", sh("echo yes > /shared/hook"));
        let bundle = bundle.edit(|spec| {
            spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "proc");
            spec["linux"]["maskedPaths"] = json!([]);
            spec["linux"]["readonlyPaths"] = json!([]);
        });
        assert_eq!(host.run(&bundle).await.status, 0);
        assert_eq!(read(&bundle, "hook"), "yes\n");
    });
}

/// How hooks fail, and what is said of it.
fn failures(dir: &str, nap: &str) -> Vec<(Value, Code, Vec<String>)> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mut late = sh(&format!("echo waiting; sleep {nap} & echo x > {dir}/late; wait"));
    late["timeout"] = json!(1);
    vec![
        (sh("echo this is why >&2; exit 3"), Code::INTERNAL, words(&["/bin/sh: exit status 3", "this is why"])),
        (sh("kill -9 $$"), Code::INTERNAL, words(&["/bin/sh: killed by signal 9"])),
        (json!({"path": "/no/such"}), Code::INVALID_ARGUMENT, words(&["/no/such", "no such file"])),
        (late, Code::DEADLINE_EXCEEDED, words(&["killed at its timeout of 1 s", "waiting"])),
        // Of a mebibyte the end is told.
        (
            sh("head -c 1048576 /dev/zero | tr '\\0' x; echo the end; exit 4"),
            Code::INTERNAL,
            words(&["exit status 4", "xxxx", "the end"]),
        ),
    ]
}

/// Processes whose arguments have this word.
fn running(word: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let cmdlines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let cmdlines = cmdlines.map(|text| String::from_utf8_lossy(&text).replace('\0', " "));
    cmdlines.filter(|text| text.split(' ').any(|arg| arg == word)).collect()
}

/// Proves: hooks.*.timeout
#[test]
fn a_hook_of_create_that_fails_leaves_nothing() {
    block_on(async {
        for kind in CREATE {
            for private in [true, false] {
                for at in 0..failures("", "").len() {
                    let mut expected = None;
                    let (world, bundle) = World::with("one", |bundle| {
                        let dir = seen(&bundle, kind);
                        let (hook, code, words) = failures(&dir, "1000.5").swap_remove(at);
                        expected = Some((code, words));
                        let bundle = with_hook(bundle, kind, sh("exit 0"));
                        let bundle = with_hook(bundle, kind, hook);
                        let bundle = with_poststop(with_hook(bundle, kind, sh(&format!("echo after >> {dir}/order"))));
                        if private { bundle } else { bundle.without_namespace("pid") }
                    })
                    .await;
                    let (code, words) = expected.unwrap();
                    let place = format!("hooks.{kind}[1]: ");
                    let words: Vec<_> = words.iter().map(String::as_str).chain([place.as_str()]).collect();
                    let error = world.create(&bundle, &Io::null()).await;
                    if let Err(e) = &error {
                        assert!(e.to_string().len() < 5000, "{} bytes", e.to_string().len());
                    }
                    refused(error, code, &words);
                    let left = leftovers(&world.scratch);
                    assert!(left.len() == 1 && left[0].starts_with("shim"), "{kind} {words:?}: {left:?}");
                    assert_eq!(order(&bundle), ["poststop"], "{kind} {words:?}");
                    assert_eq!(running("1000.5"), [""; 0], "{kind} {words:?}");
                    // The id is free again.
                    let good = bundle.edit(|spec| spec["hooks"] = json!({}));
                    world.run(&good).await;
                    world.end("one").await;
                    world.close().await;
                }
            }
        }
    });
}

/// In the container's cgroup, where no pid namespace ends it.
#[test]
fn what_a_failed_hook_in_the_container_has_left_behind_is_ended() {
    block_on(async {
        let host = Host::new();
        let hook = sh("setsid sleep 1000.625 & exit 7");
        let bundle = with_hook(host.bundle("one"), "createContainer", hook).without_namespace("pid");
        host.refused(&bundle).await.names(Code::INTERNAL, &["exit status 7"]);
        assert_eq!(running("1000.625"), [""; 0]);
    });
}

/// What was created before the hooks are reached is undone without them (runtime.md, "Lifecycle").
#[test]
fn a_create_that_fails_before_its_hooks_runs_none() {
    block_on(async {
        let host = Host::new();
        let mut bundle = with_poststop(host.bundle("one"));
        for kind in CREATE {
            let script = format!("echo {kind} >> {}/order", shared(&bundle).display());
            bundle = with_hook(bundle, kind, sh(&script));
        }
        let bundle =
            bundle.mount(json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}));
        host.refused(&bundle).await;
        assert_eq!(order(&bundle), [""; 0]);
        // And one that fails after them.
        let bundle = bundle.edit(|spec| drop(spec["mounts"].as_array_mut().unwrap().pop())).args(&["/no/such"]);
        host.refused(&bundle).await;
        assert_eq!(order(&bundle), ["prestart", "createRuntime", "createContainer", "poststop"]);
    });
}

#[test]
fn a_start_container_hook_that_fails_fails_the_start() {
    block_on(async {
        for private in [true, false] {
            for at in 0..failures("", "").len() {
                let (_, code, words) = failures("/shared", "1000.75").swap_remove(at);
                let (world, bundle) = World::with("one", |bundle| {
                    let bundle = with_hook(bundle, "startContainer", failures("/shared", "1000.75").swap_remove(at).0);
                    let bundle = with_poststop(bundle).script("echo main >> /shared/order");
                    if private { bundle } else { bundle.without_namespace("pid") }
                })
                .await;
                world.create(&bundle, &Io::null()).await.unwrap();
                let words: Vec<_> = words.iter().map(String::as_str).chain(["hooks.startContainer[0]: "]).collect();
                refused(world.start("one", "").await, code, &words);
                world.wait("one", "").await.unwrap();
                assert_eq!(order(&bundle), [""; 0]);
                world.delete("one", "").await.unwrap();
                assert_eq!(order(&bundle), ["poststop"]);
                assert_eq!(running("1000.75"), [""; 0], "{words:?}");
                world.close().await;
            }
        }
    });
}

#[test]
fn a_poststart_hook_that_fails_stops_the_container() {
    block_on(async {
        for private in [true, false] {
            let (world, bundle) = World::with("one", |bundle| {
                let dir = shared(&bundle);
                let script = format!("while ! [ -e {}/main ]; do sleep 0.1; done; echo no; exit 5", dir.display());
                let bundle = with_hook(bundle, "poststart", sh(&script));
                let bundle = with_poststop(bundle).script("sleep 1000 & echo > /shared/main; sleep 1000");
                if private { bundle } else { bundle.without_namespace("pid") }
            })
            .await;
            world.create(&bundle, &Io::null()).await.unwrap();
            let words = ["hooks.poststart[0]: /bin/sh: exit status 5; it said: no"];
            refused(world.start("one", "").await, Code::INTERNAL, &words);
            // No waiting here: it has been stopped.
            assert_eq!(world.state("one", "").await.unwrap().status.enum_value(), Ok(Status::STOPPED));
            assert_eq!(world.wait("one", "").await.unwrap().exit_status, 137);
            world.delete("one", "").await.unwrap();
            assert_eq!(order(&bundle), ["poststop"]);
            world.close().await;
        }
    });
}

#[test]
fn a_poststop_hook_that_fails_is_a_warning() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| {
            let bundle = with_hook(bundle, "poststop", sh("echo alas; exit 6"));
            let bundle = with_hook(bundle, "poststop", json!({"path": "/no/such"}));
            let gone = format!("! [ -e {} ]", bundle.rootfs_dir().join("bin").display());
            with_poststop(with_hook(bundle, "poststop", sh(&gone)))
        })
        .await;
        world.run(&bundle).await;
        world.end("one").await;
        assert_eq!(order(&bundle), ["poststop"]);
        let log = bundle.log();
        assert!(log.contains("level=warning") && log.contains("exit status 6; it said: alas"), "{log}");
        assert!(log.contains("hooks.poststop[1]: /no/such"), "{log}");
        // The third has seen the mounts gone.
        assert!(!log.contains("hooks.poststop[2]"), "{log}");
        world.close().await;
    });
}

/// What a hook leaves behind with its stdout open is not waited for, and lives on.
#[test]
fn a_hook_that_leaves_something_behind_is_done() {
    block_on(async {
        let (world, bundle) = World::with("one", |mut bundle| {
            for kind in ["createRuntime", "createContainer", "startContainer"] {
                // Nothing that is still to be executed: its files go away with the old root.
                let seen = seen(&bundle, kind);
                let script = format!("exec 3<>{seen}/{kind}; read line <&3 & echo $! > {seen}/{kind}.pid");
                bundle = with_hook(bundle, kind, sh(&script));
            }
            bundle.args(&["sleep", "1000"])
        })
        .await;
        for kind in ["createRuntime", "createContainer", "startContainer"] {
            mkfifo(&shared(&bundle).join(kind), Mode::S_IRWXU).unwrap();
        }
        world.run(&bundle).await;
        let left = read(&bundle, "createRuntime.pid").trim().parse().unwrap();
        let left = open_pid(left).expect("what the hook has left behind");
        assert!(await_exit(&left, Duration::ZERO).is_err());
        // The hooks themselves have been reaped, and may be in the cgroup for a moment yet.
        let since = Instant::now();
        while world.pids("one").await.unwrap().len() > 3 && since.elapsed() < SOON {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(world.pids("one").await.unwrap().len(), 3);
        world.end("one").await;
        pidfd_send_signal(&left, Signal::KILL).unwrap();
        await_exit(&left, SOON).unwrap();
        world.close().await;
    });
}

/// A pipe holds 64 KiB: whoever does not read the state must not hold up anybody.
#[test]
fn a_state_larger_than_a_pipe_is_read_or_not() {
    block_on(async {
        let (world, bundle) = World::with("one", |mut bundle| {
            for kind in ["createRuntime", "createContainer", "startContainer", "poststop"] {
                bundle = with_hook(bundle, kind, sh("exit 0"));
                let script = format!("wc -c > {}/{kind}.size", seen(&bundle, kind));
                bundle = with_hook(bundle, kind, sh(&script));
            }
            bundle.edit(|spec| spec["annotations"] = json!({"large": "x".repeat(200 * 1024)}))
        })
        .await;
        world.run(&bundle).await;
        world.end("one").await;
        for kind in ["createRuntime", "createContainer", "startContainer", "poststop"] {
            let size: usize = read(&bundle, &format!("{kind}.size")).trim().parse().unwrap();
            assert!(size > 200 * 1024, "{kind}: {size}");
        }
        world.close().await;
    });
}

#[test]
fn the_shim_answers_while_hooks_run() {
    block_on(async {
        let (world, one) = World::running("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        let mut two = Bundle::new(&world.scratch, "two").args(&["sleep", "1000"]);
        for kind in ALL {
            let dir = seen(&two, kind);
            let script = format!("echo > {dir}/{kind}.on; while ! [ -e {dir}/{kind}.go ]; do sleep 0.1; done");
            two = with_hook(two, kind, sh(&script));
        }
        let at = async |kind: &str| {
            let on = shared(&two).join(format!("{kind}.on"));
            until(kind, || on.exists()).await;
            let answer = world.within(Duration::from_secs(5));
            assert_eq!(answer.state("one", "").await.unwrap().status.enum_value(), Ok(Status::RUNNING), "{kind}");
            let state = answer.state("two", "").await;
            let again = if CREATE.contains(&kind) { None } else { Some(answer.delete("two", "").await) };
            assert_eq!(status(world.pid().await.unwrap(), "Threads"), 1);
            fs::write(shared(&two).join(format!("{kind}.go")), "").unwrap();
            (state.map(|state| state.status.enum_value().unwrap()), again)
        };
        let creating = async { world.create(&two, &Io::null()).await.unwrap() };
        let looking = async {
            for kind in CREATE {
                refused(at(kind).await.0, Code::NOT_FOUND, &["two"]);
            }
        };
        futures::join!(creating, looking);
        let starting = async { world.start("two", "").await.unwrap() };
        let looking = async {
            for (kind, status) in [("startContainer", Status::CREATED), ("poststart", Status::RUNNING)] {
                let (state, deleted) = at(kind).await;
                assert_eq!(state.unwrap(), status);
                refused(deleted.unwrap(), Code::FAILED_PRECONDITION, &["two"]);
            }
        };
        futures::join!(starting, looking);
        let ending = world.end("two");
        let looking = async {
            let (state, deleted) = at("poststop").await;
            assert_eq!(state.unwrap(), Status::STOPPED);
            refused(deleted.unwrap(), Code::FAILED_PRECONDITION, &["two"]);
        };
        futures::join!(ending, looking);
        world.end(&one.id).await;
        world.close().await;
    });
}

/// Init is what runs them. Where no pid namespace ends what they have started, the end of init does, by the cgroup.
#[test]
fn a_start_container_hook_ends_with_init() {
    block_on(async {
        for private in [true, false] {
            let (world, bundle) = World::with("one", |bundle| {
                let script = "sleep 1000.875 & echo > /shared/on; sleep 1000.875; true";
                let bundle = with_hook(bundle, "startContainer", sh(script));
                if private { bundle } else { bundle.without_namespace("pid") }
            })
            .await;
            let pid = world.create(&bundle, &Io::null()).await.unwrap().pid;
            let init = open_pid(pid as i32).unwrap();
            // One that is killed on its way to its program is as good as one that is killed in it.
            let starting = async { drop(world.start("one", "").await) };
            let killing = async {
                until("the hook", || shared(&bundle).join("on").exists()).await;
                pidfd_send_signal(&init, Signal::KILL).unwrap();
            };
            futures::join!(starting, killing);
            until("the hook's end", || running("1000.875").is_empty()).await;
            world.wait("one", "").await.unwrap();
            world.delete("one", "").await.unwrap();
            world.close().await;
        }
    });
}

/// A hook that says so and waits, by a program of its own and beside another.
fn waits(bundle: &Bundle, seconds: &str) -> String {
    format!("sleep {seconds} & echo > {}/on; sleep {seconds}", shared(bundle).display())
}

/// As containerd does when its client has given up waiting for Create.
#[test]
fn a_delete_gives_up_a_create_that_waits_for_a_hook() {
    block_on(async {
        for kind in CREATE {
            let (world, bundle) = World::with("one", |bundle| {
                let script = format!("{}; true", waits(&bundle, "1000.375"));
                with_poststop(with_hook(bundle, kind, sh(&script)))
            })
            .await;
            let creating = async {
                refused(world.create(&bundle, &Io::null()).await, Code::UNAVAILABLE, &["one", "deleted while"]);
            };
            let deleting = async {
                until(kind, || shared(&bundle).join("on").exists()).await;
                refused(world.delete("one", "").await, Code::NOT_FOUND, &["one"]);
                assert_eq!(order(&bundle), ["poststop"], "{kind}");
            };
            futures::join!(creating, deleting);
            until("the hook's end", || running("1000.375").is_empty()).await;
            let left = leftovers(&world.scratch);
            assert!(left.len() == 1 && left[0].starts_with("shim"), "{kind}: {left:?}");
            let good = bundle.edit(|spec| spec["hooks"] = json!({}));
            world.run(&good).await;
            world.end("one").await;
            world.close().await;
        }
    });
}

/// An exit is told while a hook that follows the start is still there.
#[test]
fn a_program_that_ends_before_its_poststart_hook() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| {
            let dir = shared(&bundle).display().to_string();
            with_hook(bundle, "poststart", sh(&format!("while ! [ -e {dir}/go ]; do sleep 0.1; done")))
        })
        .await;
        world.create(&bundle, &Io::null()).await.unwrap();
        let starting = async { world.start("one", "").await.unwrap() };
        let waiting = async {
            assert_eq!(world.wait("one", "").await.unwrap().exit_status, 0);
            fs::write(shared(&bundle).join("go"), "").unwrap();
        };
        futures::join!(starting, waiting);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

async fn kill_shim(world: &World) {
    let shim = open_pid(world.pid().await.unwrap()).unwrap();
    pidfd_send_signal(&shim, Signal::KILL).unwrap();
    await_exit(&shim, SOON).unwrap();
}

/// What containerd does when the connection breaks, twice.
fn deleted(world: &World) {
    for _ in 0..2 {
        assert_eq!(world.delete_action().unwrap().exit_status, 137);
        let since = Instant::now();
        while !leftovers(&world.scratch).is_empty() && since.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(leftovers(&world.scratch), [""; 0]);
    }
}

#[test]
fn poststop_hooks_of_a_dead_shim_run_once() {
    block_on(async {
        for running in [false, true] {
            let (world, bundle) = World::with("one", |bundle| {
                let bundle = bundle.args(&["sleep", "1000"]);
                let script =
                    format!("[ $(pwd) = {} ] && cat > {}/state", bundle.dir().display(), shared(&bundle).display());
                let bundle = with_hook(bundle, "poststop", sh(&script)).edit(|spec| {
                    spec["annotations"] = json!({"a": "b"});
                });
                with_poststop(bundle)
            })
            .await;
            world.create(&bundle, &Io::null()).await.unwrap();
            if running {
                world.start("one", "").await.unwrap();
            }
            kill_shim(&world).await;
            assert_eq!(order(&bundle), [""; 0]);
            deleted(&world);
            assert_eq!(order(&bundle), ["poststop"]);
            let state: Value = serde_json::from_str(&read(&bundle, "state")).unwrap();
            assert_eq!((&state["status"], &state["annotations"]["a"]), (&json!("stopped"), &json!("b")));
        }
    });
}

/// A hook dies with the shim, and what hooks did is undone once.
#[test]
fn a_shim_that_dies_at_a_hook_of_create() {
    block_on(async {
        for private in [true, false] {
            for kind in CREATE {
                let (world, bundle) = World::with("one", |bundle| {
                    let script = format!("{}; true", waits(&bundle, "1000.25"));
                    let bundle = with_poststop(with_hook(bundle, kind, sh(&script)));
                    if private { bundle } else { bundle.without_namespace("pid") }
                })
                .await;
                let creating = async {
                    world.create(&bundle, &Io::null()).await.expect_err("the shim is dead");
                };
                let killing = async {
                    until(kind, || shared(&bundle).join("on").exists()).await;
                    kill_shim(&world).await;
                };
                futures::join!(creating, killing);
                deleted(&world);
                assert_eq!(order(&bundle), ["poststop"], "{kind}");
                until("the hook's end", || running("1000.25").is_empty()).await;
            }
        }
    });
}

/// The one that was begun goes on by itself, and the delete action runs the others.
#[test]
fn a_shim_that_dies_at_a_poststop_hook() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| {
            let dir = shared(&bundle).display().to_string();
            let first = format!(
                "echo first >> {dir}/order; while ! [ -e {dir}/go ]; do sleep 0.1; done; echo; echo end >> {dir}/order"
            );
            with_poststop(with_hook(bundle, "poststop", sh(&first)))
        })
        .await;
        world.run(&bundle).await;
        world.wait("one", "").await.unwrap();
        let deleting = async {
            world.delete("one", "").await.expect_err("the shim is dead");
        };
        let killing = async {
            until("the first hook", || order(&bundle) == ["first"]).await;
            kill_shim(&world).await;
        };
        futures::join!(deleting, killing);
        world.delete_action().unwrap();
        assert_eq!(order(&bundle), ["first", "poststop"]);
        fs::write(shared(&bundle).join("go"), "").unwrap();
        until("the end of the first hook", || order(&bundle) == ["first", "poststop", "end"]).await;
        deleted(&world);
        assert_eq!(order(&bundle), ["first", "poststop", "end"]);
    });
}

/// Its shim had no `delete` action: the next container of the id clears up, hooks included.
#[test]
fn the_next_container_of_an_id_runs_the_hooks_of_the_last() {
    block_on(async {
        let (world, bundle) = World::with("one", with_poststop).await;
        world.create(&bundle, &Io::null()).await.unwrap();
        kill_shim(&world).await;
        let next = common::driver::Shim::start(&common::shim_binary(), &bundle, &world.sink).await.unwrap();
        next.create(&bundle, &Io::null()).await.unwrap();
        assert_eq!(order(&bundle), ["poststop"]);
        next.kill("one", "", libc::SIGKILL, false).await.unwrap();
        next.wait("one", "").await.unwrap();
        next.delete("one", "").await.unwrap();
        assert_eq!(order(&bundle), ["poststop", "poststop"]);
        next.shutdown_and_wait(SOON).await.unwrap();
    });
}

#[test]
fn a_hook_that_cannot_be_is_refused_before_anything_is_done() {
    block_on(async {
        for kind in ALL {
            let host = Host::new();
            let bundle = host.bundle("one").edit(|spec| {
                spec["hooks"][kind] = json!([{"path": "/bin/true"}, {"path": "bin/true"}]);
            });
            host.refused(&bundle).await.names(Code::INVALID_ARGUMENT, &[&format!("hooks.{kind}[1].path"), "absolute"]);
            assert!(!Path::new(&bundle.rootfs_dir().join("bin")).exists());
        }
    });
}
