//! What a client, a bundle or a stranger on the socket can get wrong: a clear error, nothing left, nobody harmed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::scratch::mounts_below;
use common::stdio::Io;
use common::world::{SOON, World, descriptors, leftovers, refused, status, until};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::types::mount::Mount;
use serde_json::json;
use ttrpc::Code;

/// No mount point.
const NONE: [std::path::PathBuf; 0] = [];

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

/// Nothing of the container that was refused is left, and the one that runs does so still.
async fn harmless(world: &World, bundle: &Bundle) {
    assert_eq!(mounts_below(bundle.dir()), NONE);
    assert_eq!(bundle.cgroups().len(), 0);
    assert!(!Path::new("/run/dray").join(world.scratch.namespace()).join(&bundle.id).exists());
    assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
}

#[test]
fn a_config_that_is_none() {
    block_on(async {
        let (world, _one) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        let bundle = Bundle::new(&world.scratch, "two");
        let good = bundle.spec().to_string();
        let before = descriptors(shim);
        let deep = "[".repeat(100_000);
        for (text, words) in [
            ("", &["config.json"][..]),
            ("{\"ociVersion\":", &["config.json", "line 1"]),
            ("null", &["config.json"]),
            ("[]", &["config.json"]),
            ("\0\u{1}garbage", &["config.json"]),
            (&deep, &["config.json"]),
            ("{}", &["ociVersion"]),
            (&good.replace("\"args\":[\"true\"]", "\"args\":\"true\""), &["process.args"]),
            (&good.replace("\"args\":[\"true\"]", "\"args\":[]"), &["process.args"]),
            (&good.replace("\"cwd\":\"/\"", "\"cwd\":7"), &["process.cwd"]),
            (&good.replace("\"cwd\":\"/\"", "\"cwd\":\"relative\""), &["process.cwd"]),
            (&good.replace("\"uid\":0", "\"uid\":-1"), &["process.user"]),
            (&good.replace("\"CAP_KILL\"", "7"), &["process.capabilities"]),
            (&good.replace("\"type\":\"uts\"", "\"type\":\"nonsense\""), &["nonsense"]),
        ] {
            assert_ne!(text, good, "{words:?}");
            bundle.write_config(text.as_bytes());
            let words: Vec<_> = words.iter().copied().chain(["container two"]).collect();
            refused(world.create(&bundle, &Io::null()).await, Code::INVALID_ARGUMENT, &words);
            harmless(&world, &bundle).await;
        }
        let config = bundle.dir().join("config.json");
        fs::File::options().write(true).open(&config).unwrap().set_len(1 << 40).unwrap();
        refused(world.create(&bundle, &Io::null()).await, Code::INVALID_ARGUMENT, &["container two", "MiB"]);
        // A fifo without a writer, a directory, a link into the void, nothing at all.
        fs::remove_file(&config).unwrap();
        nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused(world.create(&bundle, &Io::null()).await, Code::INVALID_ARGUMENT, &["config.json", "regular file"]);
        fs::remove_file(&config).unwrap();
        fs::create_dir(&config).unwrap();
        refused(world.create(&bundle, &Io::null()).await, Code::INVALID_ARGUMENT, &["config.json", "regular file"]);
        fs::remove_dir(&config).unwrap();
        std::os::unix::fs::symlink("/nowhere", &config).unwrap();
        refused(world.create(&bundle, &Io::null()).await, Code::NOT_FOUND, &["config.json"]);
        fs::remove_file(&config).unwrap();
        refused(world.create(&bundle, &Io::null()).await, Code::NOT_FOUND, &["container two", "config.json"]);
        harmless(&world, &bundle).await;
        assert_eq!(descriptors(shim), before);

        bundle.write_config(good.as_bytes());
        world.run(&bundle).await;
        world.end("two").await;
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_program_that_cannot_be_run_fails_the_create_by_its_name() {
    block_on(async {
        let (world, _one) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        let before = descriptors(shim);
        for (program, word) in [
            ("no-such-program", "executable file not found"),
            ("/bin/no-such-program", "no such file"),
            ("/etc/passwd", "permission denied"),
            ("/etc", "is a directory"),
            ("/etc/passwd/x", "not a directory"),
        ] {
            for private in [true, false] {
                let bundle = Bundle::new(&world.scratch, &format!("c{}", nanos())).args(&[program]);
                let bundle = if private { bundle } else { bundle.without_namespace("pid") };
                let error = world.create(&bundle, &Io::null()).await.unwrap_err().to_string();
                for word in [word, program, &bundle.id, "OCI runtime create failed"] {
                    assert!(error.contains(word), "no {word:?} in: {error}");
                }
                harmless(&world, &bundle).await;
            }
        }
        assert_eq!(descriptors(shim), before);
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// A name that no other has.
fn nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

/// Only execve(2) itself can tell: then the start fails, and the container has ended.
#[test]
fn a_program_that_the_kernel_refuses_fails_the_start() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.plain_rootfs().args(&["/bin/odd"])).await;
        let odd = bundle.rootfs_dir().join("bin/odd");
        fs::write(&odd, "not a program").unwrap();
        fs::set_permissions(&odd, fs::Permissions::from_mode(0o755)).unwrap();
        world.create(&bundle, &Io::null()).await.unwrap();
        let error = world.start("one", "").await.unwrap_err().to_string();
        assert!(error.contains("container one") && error.contains("exec format error"), "{error}");
        world.wait("one", "").await.unwrap();
        assert_eq!(world.status("one", "").await.unwrap(), Status::STOPPED);
        world.delete("one", "").await.unwrap();
        world.sink.wait_topic("delete", "one", SOON).await.unwrap();
        assert_eq!(world.sink.topics("one"), ["create", "exit", "delete"]);
        world.close().await;
    });
}

#[test]
fn an_id_that_is_a_path_or_nothing() {
    block_on(async {
        let (world, _one) = World::running("one", sleeping).await;
        let bundle = Bundle::new(&world.scratch, "two");
        let parent = Path::new("/run/dray").join(world.scratch.namespace());
        let entries = || fs::read_dir(&parent).unwrap().count();
        let before = entries();
        for id in ["", ".", "..", "../x", "a/b", "/abs", "a\0b", &"x".repeat(256)] {
            let request = containerd_shim_protos::api::CreateTaskRequest {
                id: id.into(),
                ..world.request_for(&bundle, &Io::null())
            };
            refused(
                world.task.call::<_, containerd_shim_protos::api::CreateTaskResponse>("Create", &request).await,
                Code::INVALID_ARGUMENT,
                &["id"],
            );
            assert_eq!(entries(), before, "{id:?}");
        }
        harmless(&world, &bundle).await;
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_bundle_a_rootfs_or_a_fifo_that_is_not_there() {
    block_on(async {
        let (world, _one) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        let before = descriptors(shim);
        let bundle = Bundle::new(&world.scratch, "two");
        let with = |change: &dyn Fn(&mut containerd_shim_protos::api::CreateTaskRequest)| {
            let mut request = world.request_for(&bundle, &Io::null());
            change(&mut request);
            world.create_request(request)
        };
        refused(with(&|r| r.bundle = "/nonexistent".into()).await, Code::NOT_FOUND, &["two", "/nonexistent"]);
        refused(with(&|r| r.bundle = "relative".into()).await, Code::INVALID_ARGUMENT, &["relative", "absolute"]);
        refused(with(&|r| r.bundle.clear()).await, Code::INVALID_ARGUMENT, &["bundle"]);
        refused(with(&|r| r.stdout = "/nonexistent".into()).await, Code::NOT_FOUND, &["two", "stdout", "/nonexistent"]);
        refused(with(&|r| r.stdin = "/nonexistent".into()).await, Code::NOT_FOUND, &["two", "stdin", "/nonexistent"]);
        refused(with(&|r| r.stderr = "/dev/null".into()).await, Code::INVALID_ARGUMENT, &["stderr", "not a fifo"]);
        refused(
            with(&|r| r.checkpoint = "/nonexistent".into()).await,
            Code::NOT_FOUND,
            &["two", "no checkpoint", "/nonexistent"],
        );
        let mount = |kind: &str, options: &[&str]| Mount {
            type_: kind.into(),
            source: "/nonexistent".into(),
            options: options.iter().map(|&option| option.into()).collect(),
            ..Mount::default()
        };
        for (mount, words) in [
            (mount("overlay", &["lowerdir=/nonexistent", "upperdir=/x", "workdir=/y"]), &["rootfs mount 0"][..]),
            (mount("bind", &["rbind"]), &["rootfs mount 0", "/nonexistent"]),
            (mount("nfs", &[]), &["rootfs mount 0", "nfs"]),
        ] {
            let error = with(&|r| r.rootfs = vec![mount.clone()]).await.unwrap_err().to_string();
            for word in words.iter().chain(&["container two"]) {
                assert!(error.contains(word), "no {word:?} in: {error}");
            }
            harmless(&world, &bundle).await;
        }
        // The second mount fails when the first is there.
        let error = with(&|r| r.rootfs.push(mount("bind", &["rbind"]))).await.unwrap_err().to_string();
        assert!(error.contains("rootfs mount 1"), "{error}");
        harmless(&world, &bundle).await;
        fs::remove_dir(bundle.rootfs_dir()).unwrap();
        let error = with(&|_| ()).await.unwrap_err().to_string();
        assert!(error.contains("rootfs"), "{error}");
        harmless(&world, &bundle).await;
        assert_eq!(descriptors(shim), before);
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_bundle_that_vanishes() {
    block_on(async {
        // With a rootfs of its own all of it can go; with a mount in it, all but that.
        for plain in [true, false] {
            for started in [true, false] {
                let (world, bundle) = World::with("one", |b| sleeping(if plain { b.plain_rootfs() } else { b })).await;
                world.create(&bundle, &Io::null()).await.unwrap();
                if started {
                    world.start("one", "").await.unwrap();
                }
                match plain {
                    true => fs::remove_dir_all(bundle.dir()).unwrap(),
                    false => ["config.json", "log", "address"]
                        .iter()
                        .for_each(|file| fs::remove_file(bundle.dir().join(file)).unwrap()),
                }
                if started {
                    world.kill("one", "", libc::SIGKILL, false).await.unwrap();
                    world.wait("one", "").await.unwrap();
                }
                assert_eq!(world.delete("one", "").await.unwrap().exit_status, 137, "plain {plain}");
                world.close().await;
            }
        }
    });
}

#[test]
fn an_exec_that_cannot_be() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        let before = descriptors(shim);
        for spec in [
            json!(null),
            json!([]),
            json!("true"),
            json!({}),
            json!({"args": "true", "cwd": "/"}),
            json!({"args": [], "cwd": "/"}),
            json!({"args": ["true"]}),
            json!({"args": ["true"], "cwd": "relative"}),
            json!({"args": ["true"], "cwd": "/", "user": {"uid": "root"}}),
            json!({"args": ["a\0b"], "cwd": "/"}),
        ] {
            let exec = world.exec("one", "x", &spec, &Io::null()).await;
            refused(exec, Code::INVALID_ARGUMENT, &["container one", "exec x"]);
            refused(world.state("one", "x").await, Code::NOT_FOUND, &["exec x"]);
        }
        let request = containerd_shim_protos::api::ExecProcessRequest {
            id: "one".into(),
            exec_id: "x".into(),
            ..Default::default()
        };
        let answer = world.call_raw("Exec", request.write_to_bytes().unwrap()).await;
        refused(answer, Code::INVALID_ARGUMENT, &["container one", "exec x"]);

        // These are right in form. Their start fails, and its reason is told.
        let mut lost = Io::null();
        lost.stdout = "/nonexistent".into();
        let process = bundle.process(&["true"]);
        let mut nowhere = process.clone();
        nowhere["cwd"] = json!("/nowhere");
        for (number, (process, io, word)) in [
            (&bundle.process(&["no-such-program"]), &Io::null(), "no-such-program"),
            (&bundle.process(&["/etc"]), &Io::null(), "is a directory"),
            (&process, &lost, "/nonexistent"),
            (&nowhere, &Io::null(), "/nowhere"),
        ]
        .into_iter()
        .enumerate()
        {
            let exec = format!("x{number}");
            world.exec("one", &exec, process, io).await.unwrap();
            let waiting = world.spawn_wait("one", &exec).await;
            let error = world.start("one", &exec).await.unwrap_err().to_string();
            assert!(error.contains(&exec) && error.contains(word), "no {word:?} in: {error}");
            waiting.await.unwrap().unwrap();
            world.delete("one", &exec).await.unwrap();
        }
        assert!(world.sink.events().iter().all(|event| event.topic != "/tasks/exec-started"));
        until("descriptors as before", || descriptors(shim) <= before + 1).await; // One to containerd.
        assert_eq!(world.exec_to_exit("one", "x", &process, &Io::null()).await.unwrap().exit_status, 0);
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// A ttrpc frame's header: length, stream, type, flags.
fn frame(length: u32, stream: u32, kind: u8, flags: u8) -> Vec<u8> {
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, flags]].concat()
}

fn request(service: &str, method: &str, payload: &[u8]) -> Vec<u8> {
    let request = ttrpc::Request {
        service: service.into(),
        method: method.into(),
        payload: payload.into(),
        timeout_nano: 1_000_000_000,
        ..Default::default()
    };
    request.write_to_bytes().unwrap()
}

/// What a stranger may send. None of it is a request that could be answered but with an error.
fn garbage() -> Vec<Vec<u8>> {
    let framed = |kind, body: &[u8]| [frame(body.len() as u32, 1, kind, 0), body.to_vec()].concat();
    let noise: Vec<u8> = (0..5000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let service = common::driver::TASK_V2;
    vec![
        Vec::new(),
        vec![0],
        noise.clone(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame(100, 1, 1, 0),
        [frame(100, 1, 1, 0), vec![7; 50]].concat(),
        frame(u32::MAX, 1, 1, 0),
        frame((4 << 20) + 1, 1, 1, 0),
        framed(2, &request(service, "State", b"")),
        framed(3, b"data of no stream"),
        framed(0x77, &request(service, "State", b"")),
        [frame(0, 0, 1, 0), frame(0, 2, 1, 0)].concat(),
        framed(1, &noise),
        framed(1, &request(service, "Create", &noise)),
        framed(1, &request(service, "Create", b"")),
        framed(1, &request(service, "Shutdown", &noise)),
        framed(1, &request(service, "Exec", b"\x0a\xff\xff\xff\xff\x0f")),
        framed(1, &request("", "", b"")),
        framed(1, &request(service, "\n\"", b"")),
    ]
}

#[test]
fn garbage_on_the_socket_harms_nobody() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        let path = world.address.strip_prefix("unix://").unwrap().to_string();
        let waiting = world.spawn_wait("one", "").await;
        let fire = async || {
            let mut open = Vec::new();
            for round in 0..200 {
                let kinds = garbage();
                let mut stream = UnixStream::connect(&path).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
                // It may hang up in the middle.
                let _ = stream.write_all(&kinds[round % kinds.len()]);
                match round % 20 {
                    // Some stay, silent, while others go on.
                    0..5 => open.push(stream),
                    5 => drop(stream.read(&mut [0; 100])),
                    _ => {}
                }
                assert_eq!(world.within(Duration::from_secs(5)).status("one", "").await.unwrap(), Status::RUNNING);
            }
        };
        fire().await;
        let before = descriptors(shim);
        let memory = status(shim, "VmRSS");
        fire().await;
        until("descriptors as before", || descriptors(shim) <= before).await;
        let grown = status(shim, "VmRSS").saturating_sub(memory);
        assert!(grown < 1024, "200 connections cost {grown} KiB");
        assert_eq!(world.pid().await.unwrap(), shim);
        let exit = world.exec_to_exit("one", "x", &bundle.process(&["true"]), &Io::null()).await.unwrap();
        assert_eq!(exit.exit_status, 0);
        assert!(!waiting.is_finished());
        assert_eq!(world.end("one").await, 137);
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        world.close().await;
    });
}

#[test]
fn a_client_that_hangs_up_in_the_middle_of_a_create() {
    block_on(async {
        let (world, bundle) = World::with("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        world.run(&bundle).await;
        world.end("one").await;
        let before = descriptors(shim);
        let mut completed = 0;
        for round in 0..30 {
            let task = world.reconnect().await.unwrap();
            let request = world.request_for(&bundle, &Io::null());
            let creating = tokio::spawn(async move { task.create_request(request).await });
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            std::thread::sleep(Duration::from_micros(100 * round));
            creating.abort(); // With it goes the connection.
            let _ = creating.await;
            // The request has been carried out, or has never been: in either case the id can be used.
            match world.create(&bundle, &Io::null()).await {
                Ok(_) => {}
                Err(e) => {
                    assert!(e.to_string().contains("already exists"), "{e}");
                    completed += 1;
                    let deadline = std::time::Instant::now() + SOON;
                    while world.state("one", "").await.is_err() {
                        assert!(std::time::Instant::now() < deadline, "neither made nor unmade");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            world.start("one", "").await.unwrap();
            assert_eq!(world.end("one").await, 137);
            let left = leftovers(&world.scratch);
            assert!(left.len() == 1 && left[0].starts_with("shim"), "{left:?}");
        }
        assert!(completed > 0, "no create was under way when its client left");
        until("descriptors as before", || descriptors(shim) <= before).await;
        world.close().await;
    });
}
