//! The same through a real shim: what it does not refuse it has to make and to take away again, and whatever it is sent, it
//! goes on answering those who ask properly.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::api::Status;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use serde_json::{Value, json};

use crate::json::{self, Seeds};
use crate::parsers::{generic, stdins};
use crate::rng::Rng;
use crate::{Rounds, TEXT, bytes, corpus, documents};
use common::block_on;
use common::bundle::Bundle;
use common::driver::{StartOptions, TASK_V2, TASK_V3, code, parse_reply, runc_options, start_action};
use common::events::EventSink;
use common::scratch::{Scratch, mounts_below};
use common::shim_binary;
use common::stdio::Io;
use common::world::{World, descriptors, leftovers, status, until};

/// How long the well-behaved may wait meanwhile, beside other tests.
const SERVED: Duration = Duration::from_secs(5);

/// How much more memory the shim may have at the end than when it was warm, in KiB. The crowd takes the most, in small pieces
/// that the allocator keeps.
const GROWTH: u64 = 4 << 10;

/// A shim with one container that sleeps, and what it has.
struct Shim {
    world: World,
    one: Bundle,
    pid: i32,
    before: Option<(usize, u64)>,
    /// How often in a row it was much larger than then.
    large: u32,
}

impl Shim {
    async fn new() -> Shim {
        let (world, one) = World::running("one", |bundle| bundle.args(&["sleep", "1000"])).await;
        let pid = world.pid().await.unwrap();
        // Whose first opens directories that stay open.
        world.stats("one").await.unwrap();
        Shim { world, one, pid, before: None, large: 0 }
    }

    /// It is the same process, has one thread, and answers.
    async fn lives(&self, after: &str) {
        let other = self.world.within(SERVED);
        let asked = Instant::now();
        assert_eq!(other.status("one", "").await.unwrap_or_else(|e| panic!("{after}: {e}")), Status::RUNNING);
        assert!(asked.elapsed() < SERVED, "{after}: {:?}", asked.elapsed());
        assert_eq!(status(self.pid, "Threads"), 1, "{after}");
    }

    /// Nothing of what was tried is left, but for memory.
    async fn is_clean(&mut self, after: &str) {
        let state = Path::new("/run/dray").join(self.world.scratch.namespace());
        until(&format!("{after}: no child but one"), || children(self.pid) == 1).await;
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "{after}");
        let mounts = mounts_below(self.world.scratch.dir());
        assert_eq!(mounts, [self.one.rootfs_dir()], "{after}");
        let cgroups = self.world.scratch.leftovers().into_iter().filter(|left| left.starts_with("cgroup "));
        let others: Vec<_> = cgroups.filter(|left| !left.ends_with("/one")).collect();
        assert_eq!(others, [""; 0], "{after}");
        // What came first brings buffers and a connection to containerd with it.
        let (most, memory) = *self.before.get_or_insert((descriptors(self.pid) + 1, status(self.pid, "VmRSS")));
        until(&format!("{after}: no more than {most} descriptors"), || descriptors(self.pid) <= most).await;
        // A frame of some MiB stays until what was allocated after it goes; what is lost stays for good.
        let grown = status(self.pid, "VmRSS").saturating_sub(memory);
        self.large = if grown < GROWTH { 0 } else { self.large + 1 };
        assert!(self.large < 4, "{after}: grown by {grown} KiB");
    }

    /// Takes away a container that was accepted, in whatever state it is.
    async fn remove(&self, id: &str, after: &str) {
        let _ = self.world.resume(id).await;
        let _ = self.world.kill(id, "", libc::SIGKILL, false).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(e) = self.world.delete(id, "").await {
            if code(&e) == Some(ttrpc::Code::NOT_FOUND) {
                return;
            }
            assert!(Instant::now() < deadline, "{after}: {e}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn close(self) {
        assert_eq!(self.world.end("one").await, 137);
        self.world.close().await;
    }
}

fn children(pid: i32) -> usize {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
    list.split_whitespace().count()
}

fn refusal<T>(answer: ttrpc::Result<T>, after: &str) -> bool {
    let Err(error) = answer else { return false };
    assert!(code(&error).is_some(), "{after}: not an answer: {error}");
    let text = error.to_string();
    assert!(text.len() < TEXT && !text.contains("panicked"), "{after}: {text:.500}");
    true
}

#[test]
fn bundles() {
    block_on(async {
        let mut shim = Shim::new().await;
        let bundle = Bundle::new(&shim.world.scratch, "two");
        let mut documents = documents();
        documents.extend(vec![bundle.spec().clone(); 20]);
        let seeds = Seeds::new(documents);
        let mut accepted = 0;
        for (seed, mut rng) in Rounds::new("bundle", 100) {
            let after = format!("bundle: DRAY_FUZZ_SEED={seed}");
            let mut document = seeds.mutated(&mut rng);
            tame(&mut document, &bundle);
            bundle.write_config(&json::text(&document));
            let created = shim.world.create(&bundle, &Io::null()).await;
            if !refusal(created, &after) {
                accepted += 1;
                let started = shim.world.start("two", "").await;
                refusal(started, &after);
                shim.remove("two", &after).await;
            }
            shim.lives(&after).await;
            if seed % 8 == 0 {
                shim.is_clean(&after).await;
            }
        }
        assert!(accepted > 0, "the mutations leave nothing that is accepted");
        println!("bundle: {accepted} accepted");
        shim.is_clean("bundles").await;
        shim.close().await;
    });
}

/// Keeps a document from reaching what is not this test's: host paths to bind or to be the root, other cgroups, programs of
/// the host's, its network devices.
fn tame(document: &mut Value, bundle: &Bundle) {
    let ours = bundle.scratch().dir().to_str().unwrap();
    let replace = |value: Option<&mut Value>, keep: &dyn Fn(&str) -> bool, with: &str| {
        if let Some(value) = value.filter(|value| value.as_str().is_some_and(|text| !keep(text))) {
            *value = json!(with);
        }
    };
    replace(document.pointer_mut("/root/path"), &|path| path.is_empty() || path.contains('\0'), "rootfs");
    let cgroups = bundle.spec()["linux"]["cgroupsPath"].as_str().unwrap();
    replace(document.pointer_mut("/linux/cgroupsPath"), &|path| path.contains('\0'), cgroups);
    if let Some(linux) = document.get_mut("linux").and_then(Value::as_object_mut) {
        linux.entry("cgroupsPath").or_insert(json!(cgroups));
        if linux.get("netDevices").is_some_and(Value::is_object) {
            linux.insert("netDevices".into(), json!({"drayfuzz0": {"name": "eth7"}}));
        }
        for namespace in linux.get_mut("namespaces").and_then(Value::as_array_mut).into_iter().flatten() {
            replace(namespace.get_mut("path"), &|path| path.is_empty(), "/nonexistent/ns");
        }
    } else if document.is_object() {
        document["linux"] = json!({"cgroupsPath": cgroups});
    }
    for mount in document.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        let none = format!("{ours}/nonexistent");
        replace(mount.get_mut("source"), &|path| !path.starts_with('/') && !path.contains(".."), &none);
    }
    for hooks in document.get_mut("hooks").and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut()) {
        for hook in hooks.as_array_mut().into_iter().flatten() {
            replace(hook.get_mut("path"), &|_| false, "/bin/true");
        }
    }
    if let Some(args) = document.pointer_mut("/process/args").and_then(Value::as_array_mut) {
        replace(args.first_mut(), &|_| false, "true");
    }
}

#[test]
fn execs_and_frames() {
    block_on(async {
        let mut shim = Shim::new().await;
        let seeds = Seeds::new(vec![shim.one.process(&["true"]), documents()[0]["process"].clone()]);
        let mut accepted = 0;
        for (seed, mut rng) in Rounds::new("exec", 40) {
            let after = format!("exec: DRAY_FUZZ_SEED={seed}");
            let mut process = seeds.mutated(&mut rng);
            if let Some(args) = process.get_mut("args").and_then(Value::as_array_mut).filter(|args| !args.is_empty()) {
                args[0] = json!("true");
            }
            let text = json::mutated_text(&mut rng, &process);
            if !refusal(exec(&shim, &text).await, &after) {
                accepted += 1;
                if !refusal(shim.world.start("one", "x").await, &after) {
                    let _ = shim.world.kill("one", "x", libc::SIGKILL, false).await;
                }
                shim.world.wait("one", "x").await.unwrap();
                shim.world.delete("one", "x").await.unwrap();
            }
            shim.lives(&after).await;
            if seed % 16 == 0 {
                shim.is_clean(&after).await;
            }
        }
        assert!(accepted > 0, "the mutations leave nothing that is accepted");
        println!("exec: {accepted} accepted");
        shim.is_clean("execs").await;
        frames(&mut shim).await;
        shim.close().await;
    });
}

async fn exec(shim: &Shim, text: &[u8]) -> ttrpc::Result<Vec<u8>> {
    let spec = Any { type_url: "x/Process".into(), value: text.to_vec(), ..Default::default() };
    let request = api::ExecProcessRequest {
        id: "one".into(),
        exec_id: "x".into(),
        spec: MessageField::some(spec),
        ..Default::default()
    };
    shim.world.call_raw("Exec", request.write_to_bytes().unwrap()).await
}

/// Connections that send what is no request, or is one of something mutated, stay, stop half-way, or go.
async fn frames(shim: &mut Shim) {
    let path = shim.world.address.strip_prefix("unix://").unwrap().to_string();
    let bundle = Bundle::new(&shim.world.scratch, "two");
    let requests = requests(shim, &bundle);
    let mut open: Vec<UnixStream> = Vec::new();
    let (mut inputs, mut tried) = (corpus("frame"), 0_u32);
    for (seed, mut rng) in Rounds::new("frame", 60) {
        let after = format!("frame: DRAY_FUZZ_SEED={seed}");
        let input = inputs.pop().unwrap_or_else(|| stream(&mut rng, &requests));
        let mut stream = UnixStream::connect(&path).unwrap_or_else(|e| panic!("{after}: {e}"));
        stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        stream.set_write_timeout(Some(SERVED)).unwrap();
        let cut = rng.below(input.len() + 1);
        match rng.below(6) {
            // In two pieces, with others in between.
            0 => {
                let _ = stream.write_all(&input[..cut]);
                shim.lives(&after).await;
                let _ = stream.write_all(&input[cut..]);
            }
            // What comes last never does.
            1 => drop(stream.write_all(&input[..cut])),
            2 => {
                let _ = stream.write_all(&input);
                let _ = stream.shutdown(Shutdown::Write);
            }
            _ => drop(stream.write_all(&input)), // It may hang up in the middle.
        }
        match rng.below(4) {
            0 => open.push(stream),
            1 => drop(stream.read(&mut [0; 4096])),
            _ => {}
        }
        if open.len() > 40 {
            open.clear();
        }
        shim.lives(&after).await;
        tried += 1;
        if tried.is_multiple_of(64) {
            open.clear();
            remove_made(shim, &after).await;
            shim.is_clean(&after).await;
        }
    }
    drop(open);
    remove_made(shim, "frames").await;
    // A crowd that says nothing, and leaves.
    for _ in 0..3 {
        let crowd: Vec<_> = (0..300).map(|_| UnixStream::connect(&path).unwrap()).collect();
        shim.lives("a crowd").await;
        drop(crowd);
    }
    shim.is_clean("frames").await;
}

/// A mutated Create may have been one under any id, and a mutated Exec of "one" an exec.
async fn remove_made(shim: &Shim, after: &str) {
    // What is still on its way: requests are carried out to their end.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let state = Path::new("/run/dray").join(shim.world.scratch.namespace());
        let names = fs::read_dir(&state).unwrap().flatten().map(|entry| entry.file_name().into_string());
        let made: Vec<String> = names.map(|name| name.expect("UTF-8")).filter(|name| name != "one").collect();
        if made.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{after}: {made:?}");
        for id in made {
            shim.remove(&id, after).await;
        }
    }
}

/// A proper request of each kind, none of which does "one" any harm.
fn requests(shim: &Shim, bundle: &Bundle) -> Vec<(&'static str, Vec<u8>)> {
    fn encode(message: impl Message) -> Vec<u8> {
        message.write_to_bytes().expect("encode")
    }
    let (id, x) = ("two".to_string(), "x".to_string());
    let any = |url: &str, value: String| {
        let any = Any { type_url: url.into(), value: value.into_bytes(), ..Default::default() };
        MessageField::some(any)
    };
    let process =
        any("types.containerd.io/opencontainers/runtime-spec/1/Process", shim.one.process(&["true"]).to_string());
    let resources =
        any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", "{\"pids\":{\"limit\":5}}".into());
    let create = shim.world.request_for(bundle, &Io::null());
    let with = |options: Any| encode(api::CreateTaskRequest { options: MessageField::some(options), ..create.clone() });
    let mut all = vec![
        ("Create", encode(create.clone())),
        ("Create", with(runc_options(""))),
        ("Create", with(generic("NoPivotRoot = true"))),
        ("Start", encode(api::StartRequest { id: id.clone(), exec_id: x.clone(), ..Default::default() })),
        ("Start", encode(api::StartRequest { id: id.clone(), ..Default::default() })),
        ("Kill", encode(api::KillRequest { id: id.clone(), signal: 15, all: true, ..Default::default() })),
        ("Delete", encode(api::DeleteRequest { id: id.clone(), exec_id: x.clone(), ..Default::default() })),
        ("Delete", encode(api::DeleteRequest { id: id.clone(), ..Default::default() })),
        ("Pause", encode(api::PauseRequest { id: id.clone(), ..Default::default() })),
        ("Resume", encode(api::ResumeRequest { id: id.clone(), ..Default::default() })),
        (
            "Checkpoint",
            encode(api::CheckpointTaskRequest { id: id.clone(), path: "/nowhere".into(), ..Default::default() }),
        ),
        ("Update", encode(api::UpdateTaskRequest { id: id.clone(), resources, ..Default::default() })),
        ("Shutdown", encode(api::ShutdownRequest { id: id.clone(), now: true, ..Default::default() })),
        ("Exec", encode(api::ExecProcessRequest { id, exec_id: x.clone(), spec: process, ..Default::default() })),
    ];
    // These only look.
    for id in ["one".to_string(), "two".to_string(), "i".repeat(1 << 20), "../one".to_string()] {
        all.extend([
            ("State", encode(api::StateRequest { id: id.clone(), exec_id: x.clone(), ..Default::default() })),
            ("Wait", encode(api::WaitRequest { id: id.clone(), ..Default::default() })),
            ("Pids", encode(api::PidsRequest { id: id.clone(), ..Default::default() })),
            ("Stats", encode(api::StatsRequest { id: id.clone(), ..Default::default() })),
            ("Connect", encode(api::ConnectRequest { id: id.clone(), ..Default::default() })),
            ("CloseIO", encode(api::CloseIORequest { id: id.clone(), stdin: true, ..Default::default() })),
            ("ResizePty", encode(api::ResizePtyRequest { id, width: u32::MAX, height: 1, ..Default::default() })),
        ]);
    }
    all
}

/// What one connection sends: one to four frames.
fn stream(rng: &mut Rng, requests: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut sent = Vec::new();
    for at in 0..=rng.below(3) {
        let (method, payload) = rng.pick(requests);
        let payload = if rng.one_in(3) { payload.clone() } else { bytes::mutate(rng, payload) };
        let service = *rng.pick(&[TASK_V2, TASK_V2, TASK_V3, "containerd.runtime.sandbox.v1.Sandbox", ""]);
        let request = ttrpc::Request {
            service: service.into(),
            method: if rng.one_in(10) { bytes::mutate_text(rng, method) } else { method.to_string() },
            payload,
            timeout_nano: *rng.pick(&[0, 0, 1, -1, i64::MAX, 1_000_000_000]),
            ..Default::default()
        };
        let body = request.write_to_bytes().expect("encode");
        let body = if rng.one_in(6) { bytes::mutate(rng, &body) } else { body };
        let length = match rng.below(12) {
            0 => *rng.pick(&[
                0,
                1,
                4 << 20,
                (4 << 20) + 1,
                u32::MAX,
                body.len() as u32 + 1,
                (body.len() as u32).saturating_sub(1),
            ]),
            _ => body.len() as u32,
        };
        // Clients have odd numbers, and each once.
        let number = if rng.one_in(6) { *rng.pick(&[0, 1, 2, u32::MAX, 1 << 31]) } else { at as u32 * 2 + 1 };
        let kind = if rng.one_in(8) { rng.next() as u8 } else { 1 };
        let flags = if rng.one_in(8) { rng.next() as u8 } else { 0 };
        sent.extend([&length.to_be_bytes()[..], &number.to_be_bytes(), &[kind, flags], &body].concat());
    }
    sent
}

/// Without what execve(2) does not take: NUL, and more than 128 KiB.
fn argument(rng: &mut Rng, text: &str) -> String {
    bytes::mutate_text(rng, text).chars().filter(|letter| *letter != '\0').take(30_000).collect()
}

/// The binary's own face: arguments, environment and stdin of `start` and `delete`. What starts a server gives an address, at
/// which one answers; nothing else leaves a process.
#[test]
fn actions() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one");
        let mut started = 0;
        for (seed, mut rng) in Rounds::new("action", 40) {
            let after = format!("action: DRAY_FUZZ_SEED={seed}");
            let mut options = StartOptions::default();
            let stdin = rng.pick(&stdins("one", scratch.namespace())).clone();
            let mut stdin = if rng.one_in(3) { stdin } else { bytes::mutate(&mut rng, &stdin) };
            stdin.truncate(60_000); // It has to fit into the pipe.
            options.stdin = Some(stdin);
            let flags = [
                "-debug",
                "-socket=x",
                "-id=",
                "-bundle",
                "/x",
                "--",
                "-",
                "delete",
                "-info",
                "-namespace=a/b",
                "-v=maybe",
            ];
            for _ in 0..rng.below(3) {
                let flag = rng.pick(&flags).to_string();
                options.flags.push(if rng.one_in(2) { argument(&mut rng, &flag) } else { flag });
            }
            if rng.one_in(2) {
                let version = argument(&mut rng, "2");
                options.env.push(("MAX_SHIM_VERSION", version));
            }
            let output =
                start_action(&shim_binary(), &bundle, &sink, &options).unwrap_or_else(|e| panic!("{after}: {e}"));
            // A panic exits with 101.
            assert!(matches!(output.status.code(), Some(0 | 1)), "{after}: {:?}", output.status);
            assert!(output.stdout.len() < TEXT, "{after}: {} bytes", output.stdout.len());
            match parse_reply(&output.stdout).ok().filter(|_| output.status.success()) {
                Some((address, _)) => {
                    started += 1;
                    let client =
                        ttrpc::asynchronous::Client::connect(&address).await.unwrap_or_else(|e| panic!("{after}: {e}"));
                    let request = ttrpc::Request {
                        service: TASK_V3.into(),
                        method: "Shutdown".into(),
                        timeout_nano: 5_000_000_000,
                        ..Default::default()
                    };
                    client.request(request).await.unwrap_or_else(|e| panic!("{after}: {e}"));
                }
                None => assert!(!output.stdout.is_empty(), "{after}: nothing said"),
            }
            until(&format!("{after}: no process"), || scratch.shims().is_empty()).await;
        }
        assert!(started > 0, "the mutations leave nothing that starts");
        println!("action: {started} started");
        assert_eq!(leftovers(&scratch), [""; 0]);
        drop(sink);
    });
}
