//! How containerd starts a shim and what it tells it: the dialects of `start`, groups of containers, `-info`, flags, and
//! runtime options, each by the effect that the kernel shows.
#![allow(unsafe_code)] // Two system calls that no crate wraps.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::bundle::Bundle;
use common::driver::{Shim, StartOptions, TASK_V3, parse_reply, start_action};
use common::events::EventSink;
use common::scratch::{Scratch, cgroup_mounts};
use common::stdio::Io;
use common::world::{SOON, World, all_gone, hold, leftovers, living, refused, until};
use common::{block_on, seccomp, shim_binary};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use serde_json::{Value, json};
use ttrpc::Code;

const GROUP: &str = "io.containerd.runc.v2.group";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

fn json_dialect() -> StartOptions {
    StartOptions { env: vec![("MAX_SHIM_VERSION", "2".into())], ..Default::default() }
}

/// What containerd 2.3 writes to stdin for this bundle.
fn params(bundle: &Bundle, sink: &EventSink) -> BootstrapParams {
    BootstrapParams {
        instance_id: bundle.id.clone(),
        namespace: bundle.scratch().namespace().to_string(),
        containerd_version: "v2.3.0".into(),
        containerd_ttrpc_address: format!("unix://{}", sink.address().display()),
        containerd_grpc_address: bundle.scratch().grpc_address().to_str().unwrap().into(),
        containerd_binary: "/bin/true".into(),
        ..Default::default()
    }
}

fn protobuf_dialect(params: &BootstrapParams) -> StartOptions {
    StartOptions {
        stdin: Some(params.write_to_bytes().unwrap()),
        // It is to be taken from the parameters.
        env: vec![("MAX_SHIM_VERSION", "2".into()), ("TTRPC_ADDRESS", "/nonexistent".into())],
        ..Default::default()
    }
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.into(), value, ..Default::default() }
}

fn runc(options: &Options) -> Any {
    any("containerd.runc.v1.Options", options.write_to_bytes().unwrap())
}

/// runtimeoptions.v1.Options with this config_body.
fn toml(text: &str) -> Any {
    any("runtimeoptions.v1.Options", [&[26, text.len() as u8], text.as_bytes()].concat())
}

fn annotated(bundle: Bundle, annotations: Value) -> Bundle {
    bundle.edit(|spec| spec["annotations"] = annotations)
}

/// The reply's text.
fn reply(bundle: &Bundle, sink: &EventSink, options: &StartOptions) -> Vec<u8> {
    let output = start_action(&shim_binary(), bundle, sink, options).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    output.stdout
}

#[test]
fn each_containerd_is_answered_in_its_dialect() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b).await;
        let address = world.address.clone();
        assert_eq!(reply(&bundle, &world.sink, &StartOptions::default()), address.as_bytes());
        let text = reply(&bundle, &world.sink, &json_dialect());
        let wanted = json!({"version": 2, "address": address, "protocol": "ttrpc"});
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), wanted);
        let protobuf = protobuf_dialect(&params(&bundle, &world.sink));
        assert_eq!(parse_reply(&reply(&bundle, &world.sink, &protobuf)).unwrap(), (address.clone(), 3));
        assert_eq!(world.scratch.shims().len(), 1, "one server for all");

        // The server may be older than the binary that is asked: its own version is answered.
        let record = format!("{}.dray", address.strip_prefix("unix://").unwrap());
        fs::write(&record, r#"{"version":2,"protocol":"ttrpc"}"#).unwrap();
        assert_eq!(parse_reply(&reply(&bundle, &world.sink, &protobuf)).unwrap(), (address, 2));
        world.close().await;
        assert!(!fs::exists(record).unwrap(), "the record is left");
    });
}

#[test]
fn parameters_of_another_shim_are_refused() {
    let scratch = Scratch::new();
    let sink = EventSink::start(&scratch);
    let bundle = Bundle::new(&scratch, "one");
    let other = BootstrapParams { instance_id: "two".into(), ..params(&bundle, &sink) };
    let output = start_action(&shim_binary(), &bundle, &sink, &protobuf_dialect(&other)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("two") && text.contains("one"), "{text}");
    assert!(scratch.shims().is_empty());
}

#[test]
fn a_container_lives_under_each_dialect() {
    block_on(async {
        for id in ["json", "protobuf"] {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = Bundle::new(&scratch, id).args(&["sleep", "1000"]);
            let options = if id == "json" { json_dialect() } else { protobuf_dialect(&params(&bundle, &sink)) };
            let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.unwrap();
            let world = World { shim, sink, scratch };
            world.run(&bundle).await;
            world.end(id).await;
            world.sink.wait_topic("delete", id, SOON).await.unwrap();
            world.close().await;
        }
    });
}

#[test]
fn the_socket_is_where_containerd_wants_it_and_goes_with_the_shim() {
    block_on(async {
        for killed in [false, true] {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
            let directory = scratch.dir().join("s");
            let params =
                BootstrapParams { socket_dir: Some(directory.to_str().unwrap().into()), ..params(&bundle, &sink) };
            let options = protobuf_dialect(&params);
            let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.unwrap();
            let path = shim.address.strip_prefix("unix://").unwrap().to_string();
            assert_eq!(Path::new(&path).parent(), Some(directory.as_path()));
            let world = World { shim, sink, scratch };
            world.run(&bundle).await;
            if killed {
                world.kill_shim().await.unwrap();
                world.delete_action().unwrap();
                assert_eq!(leftovers(&world.scratch), [""; 0]);
            } else {
                world.end("one").await;
                let World { shim, .. } = world;
                shim.shutdown_and_wait(SOON).await.unwrap();
            }
            assert_eq!(fs::read_dir(&directory).map_or(0, |entries| entries.count()), 0, "killed: {killed}");
        }
    });
}

#[test]
fn a_group_shares_one_shim_and_its_socket_goes_with_it() {
    block_on(async {
        let pod = |group: Option<&str>, sandbox: &str| match group {
            Some(group) => json!({ GROUP: group, SANDBOX: sandbox }),
            None => json!({ SANDBOX: sandbox }),
        };
        let (world, first) = World::with("one", |b| annotated(b, pod(Some("g"), "x"))).await;
        let bundle = |id, annotations| annotated(Bundle::new(&world.scratch, id).args(&["sleep", "1000"]), annotations);
        let second = bundle("two", pod(Some("g"), "y"));
        for options in [StartOptions::default(), json_dialect(), protobuf_dialect(&params(&second, &world.sink))] {
            assert_eq!(parse_reply(&reply(&second, &world.sink, &options)).unwrap().0, world.address);
        }
        assert_eq!(fs::read_to_string(second.dir().join("address")).unwrap(), world.address);
        // The group's name goes before the sandbox's.
        let other = bundle("three", pod(None, "x"));
        let (address, _) = parse_reply(&reply(&other, &world.sink, &StartOptions::default())).unwrap();
        assert_ne!(address, world.address);
        assert_eq!(world.scratch.shims().len(), 2);

        world.run(&first.args(&["sleep", "1000"])).await;
        world.run(&second).await;
        world.end("one").await;
        world.shutdown("one", false).await.unwrap();
        assert_eq!(world.pids("two").await.unwrap().len(), 1, "its shim is the group's");
        world.end("two").await;
        let socket = world.address.strip_prefix("unix://").unwrap().to_string();
        let World { shim, scratch, sink } = world;
        shim.shutdown_and_wait(SOON).await.unwrap();
        assert!(!fs::exists(&socket).unwrap() && !fs::exists(format!("{socket}.dray")).unwrap());
        let other = address.strip_prefix("unix://").unwrap();
        for path in [other.to_string(), format!("{other}.dray")] {
            fs::remove_file(path).unwrap();
        }
        drop((sink, scratch));
    });
}

/// containerd 2.x gives a pod's containers to its shim without a `start`, and asks for the removal of the pod's id alone.
#[test]
fn the_removal_of_a_dead_pod_shim_is_that_of_all_its_containers() {
    block_on(async {
        for recorded in [true, false] {
            let sleeping = |b: Bundle| b.args(&["sleep", "1000"]);
            let (world, pod) = World::with("pod", sleeping).await;
            let app = Bundle::new(&world.scratch, "app").args(&["sleep", "1000"]).without_namespace("pid");
            fs::write(app.dir().join("sandbox"), "pod").unwrap();
            // Another's, in the same namespace.
            let beside = Bundle::new(&world.scratch, "beside").args(&["sleep", "1000"]);
            let next = Shim::start(&shim_binary(), &beside, &world.sink).await.unwrap();
            next.create(&beside, &Io::null()).await.unwrap();
            let theirs = hold(&[next.start("beside", "").await.unwrap().pid]);
            let ours = hold(&[world.run(&pod).await, world.run(&app).await]);

            let state = Path::new("/run/dray").join(world.scratch.namespace()).join("app/state.json");
            let mut saved: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
            assert_eq!(saved["shim"], "pod");
            if !recorded {
                // As a version without that field has written it.
                saved.as_object_mut().unwrap().remove("shim");
                fs::write(&state, saved.to_string()).unwrap();
            }
            world.kill_shim().await.unwrap();
            world.delete_action().unwrap();
            all_gone(&ours);
            assert!(app.cgroups().is_empty() && !fs::exists(state).unwrap());
            assert_eq!(living(&theirs), 1, "another shim's");
            assert_eq!(next.pids("beside").await.unwrap().len(), 1);
        }
    });
}

#[test]
fn a_bundle_without_a_start_is_told_which_binary_it_belongs_to() {
    block_on(async {
        let (world, pod) = World::with("pod", |b| b.args(&["sleep", "1000"])).await;
        world.run(&pod).await;
        assert!(!pod.dir().join("shim-binary-path").exists(), "containerd writes that one itself");
        let app = |id, there: Option<&str>| {
            let bundle = Bundle::new(&world.scratch, id).args(&["true"]);
            fs::write(bundle.dir().join("sandbox"), "pod").unwrap();
            if let Some(text) = there {
                fs::write(bundle.dir().join("shim-binary-path"), text).unwrap();
            }
            bundle
        };
        let own = fs::canonicalize(shim_binary()).unwrap();
        for (bundle, wanted) in [(app("a", None), own.to_str().unwrap()), (app("b", Some("/x")), "/x")] {
            world.create(&bundle, &Io::null()).await.unwrap();
            assert_eq!(fs::read_to_string(bundle.dir().join("shim-binary-path")).unwrap(), wanted);
            world.end(&bundle.id).await;
        }
        world.end("pod").await;
        world.close().await;
    });
}

fn info(stdin: &[u8]) -> Output {
    let mut command = Command::new(shim_binary());
    command.arg("-info").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn info_says_what_the_runtime_can_do() {
    let options = runc(&Options { binary_name: "crun".into(), ..Default::default() });
    for stdin in [None, Some(&options)] {
        let output = info(&stdin.map(|any| any.write_to_bytes().unwrap()).unwrap_or_default());
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!(info.name, "io.containerd.dray.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(info.options.as_ref(), stdin);
        assert_eq!(info.features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
        let features: Value = serde_json::from_slice(&info.features.value).unwrap();
        let has = |list: &Value, word: &str| list.as_array().unwrap().contains(&json!(word));
        assert!(has(&features["mountOptions"], "ro") && has(&features["linux"]["namespaces"], "pid"), "{features}");
        assert!(!has(&features["mountOptions"], "iversion"), "{features}");
        let seccomp = &features["linux"]["seccomp"];
        assert!(has(&seccomp["actions"], "SCMP_ACT_ERRNO") && has(&seccomp["operators"], "SCMP_CMP_MASKED_EQ"));
        let native = format!("SCMP_ARCH_{}", std::env::consts::ARCH.to_uppercase());
        assert!(has(&seccomp["archs"], &native) && has(&seccomp["archs"], "SCMP_ARCH_S390X"), "{seccomp}");
        // These are as old as Linux 4.17.
        for flag in ["LOG", "TSYNC", "SPEC_ALLOW"].map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}")) {
            assert!(has(&seccomp["knownFlags"], &flag) && has(&seccomp["supportedFlags"], &flag), "{seccomp}");
        }
        let library = features["annotations"]["io.github.seccomp.libseccomp.version"].as_str().unwrap();
        assert!(library.starts_with("2."), "{library}");
    }
    let output = info(b"\xff\xff");
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn the_flags_of_other_shims_are_understood() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one");
        let socket = scratch.dir().join("the.socket");
        let flags = ["-socket", socket.to_str().unwrap(), "-debug-socket", "/nonexistent/debug", "-bundle", "/x"];
        let options = StartOptions { flags: flags.map(String::from).into(), debug: true, ..Default::default() };
        let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.unwrap();
        assert_eq!(shim.address, format!("unix://{}", socket.display()));
        let mut log = String::new();
        until("debug messages", || {
            log += &bundle.log();
            log.contains("level=debug")
        })
        .await;
        World { shim, sink, scratch }.close().await;
        assert!(!socket.exists());
    });
}

#[test]
fn the_kernel_kills_the_shim_before_containerd_and_not_its_containers() {
    block_on(async {
        let (world, bundle) = World::running("one", |b| b.args(&["sleep", "1000"])).await;
        let score = |pid: i32| -> i32 {
            fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
        };
        // This process is its containerd.
        let own = score(std::process::id() as i32);
        assert_eq!(score(world.pid().await.unwrap()), (own + 1).min(1000));
        let init = world.state(&bundle.id, "").await.unwrap().pid;
        // Below what it once was nobody goes without CAP_SYS_RESOURCE, which root may lack.
        let capable = rustix::thread::capabilities(None).unwrap();
        let capable = capable.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
        assert!(score(init as i32) == 0 || own > 0 && !capable, "{}", score(init as i32));
        world.end("one").await;
        world.close().await;
    });
}

/// PR_SCHED_CORE_GET of a process; None where the kernel or the machine has no core scheduling.
fn cookie(pid: i32) -> Option<u64> {
    let mut cookie = 0u64;
    // SAFETY: the answer is written to the last argument, which outlives the call.
    let done = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_GET, pid, 0, &raw mut cookie) };
    (done == 0).then_some(cookie)
}

#[test]
fn a_core_is_shared_with_nobody_where_containerd_says_so() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one");
        let with = |value: &str| StartOptions { env: vec![("SCHED_CORE", value.into())], ..Default::default() };
        let output = start_action(&shim_binary(), &bundle, &sink, &with("perhaps")).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains("SCHED_CORE") && text.contains("perhaps"), "{text}");
        let plain = Shim::start_with(&shim_binary(), &bundle, &sink, with("false")).await.unwrap();
        assert!(matches!(cookie(plain.pid().await.unwrap()), None | Some(0)));
        plain.shutdown_and_wait(SOON).await.unwrap();
        if cookie(0).is_none() {
            let output = start_action(&shim_binary(), &bundle, &sink, &with("1")).unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(!output.status.success() && text.contains("PR_SCHED_CORE"), "{text}");
            assert!(scratch.shims().is_empty());
            eprintln!("SKIPPED: this kernel or machine has no core scheduling");
            return;
        }
        let shim = Shim::start_with(&shim_binary(), &bundle, &sink, with("1")).await.unwrap();
        assert!(cookie(shim.pid().await.unwrap()).is_some_and(|cookie| cookie != 0));
        shim.shutdown_and_wait(SOON).await.unwrap();
    });
}

/// A shim whose container `one` runs by these options; they go to `start` and to Create, as containerd sends them.
async fn with_options(options: Any, change: impl FnOnce(Bundle) -> Bundle) -> (World, Bundle) {
    let scratch = Scratch::new();
    let sink = EventSink::start(&scratch);
    let bundle = change(Bundle::new(&scratch, "one"));
    let options = StartOptions { options: Some(options), ..Default::default() };
    let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.unwrap();
    (World { shim, sink, scratch }, bundle)
}

/// What the container and an exec in it, of the same command, write.
async fn outputs(world: &World, bundle: &Bundle) -> [String; 2] {
    let (id, process) = (bundle.id.as_str(), bundle.spec()["process"].clone());
    let mut io = Io::fifos(&world.scratch, "init").with_stdin(&world.scratch, "init");
    world.create(bundle, &io).await.unwrap();
    world.start(id, "").await.unwrap();
    let init = io.stdout_with("end\n", SOON).await.unwrap();
    let mut io = Io::fifos(&world.scratch, "exec").with_stdin(&world.scratch, "exec");
    world.exec(id, "x", &process, &io).await.unwrap();
    world.start(id, "x").await.unwrap();
    let exec = io.stdout_with("end\n", SOON).await.unwrap();
    world.kill(id, "x", libc::SIGKILL, false).await.unwrap();
    world.wait(id, "x").await.unwrap();
    world.delete(id, "x").await.unwrap();
    world.end(id).await;
    [init, exec]
}

#[test]
fn the_pipes_belong_to_whom_the_options_say() {
    block_on(async {
        let script = "stat -L -c %u:%g /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2; echo end; sleep 1000";
        let both = Options { io_uid: 1234, io_gid: 4321, ..Default::default() };
        for (options, owner) in
            [(runc(&both), "1234:4321"), (toml("IoUid = 1234\nIoGid = 4321"), "1234:4321"), (Any::new(), "0:0")]
        {
            let (world, bundle) = with_options(options, |b| b.script(script)).await;
            let wanted = format!("{owner}\n{owner}\n{owner}\nend\n");
            assert_eq!(outputs(&world, &bundle).await, [wanted.clone(), wanted]);
            world.close().await;
        }
    });
}

/// Where pivot_root(2) cannot be: here a filter says so, on a host whose root is the initramfs the kernel.
#[test]
fn the_root_is_moved_where_it_may_not_be_pivoted() {
    std::thread::spawn(|| {
        seccomp::take_away(&[seccomp::Refused { call: libc::SYS_pivot_root, with: None, errno: libc::EINVAL }]);
        block_on(async {
            let script = "ls -d /*; grep -c ' / / ' /proc/self/mountinfo; cat /proc/sys/kernel/ostype; \
                          touch /x; echo end; sleep 1000";
            let moved = Options { no_pivot_root: true, ..Default::default() };
            let (world, bundle) = with_options(runc(&moved), |b| b.script(script)).await;
            let [init, exec] = outputs(&world, &bundle).await;
            let root = "/bin\n/dev\n/etc\n/home\n/proc\n/root\n/run\n/sys\n/tmp\n/usr\n/var\n1\nLinux\nend\n";
            assert_eq!(init, root);
            assert_eq!(exec, root.replace("/usr\n/var\n", "/usr\n/var\n/x\n"));
            world.close().await;

            let (world, bundle) = with_options(Any::new(), |b| b.script(script)).await;
            refused(world.create(&bundle, &Io::null()).await, Code::INTERNAL, &["pivot_root"]);
            world.close().await;
        });
    })
    .join()
    .unwrap();
}

const INSIDE: &str = "BOOTSTRAP_INSIDE";

/// Not a test: what a container of the next one runs.
#[test]
#[ignore = "the program of another test's container"]
fn inside_the_container() {
    if std::env::var_os(INSIDE).is_some() {
        println!("keyring={}", session_keyring());
        println!("end");
        std::thread::sleep(SOON * 10);
    }
}

fn session_keyring() -> i64 {
    // SAFETY: KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING, without making one: numbers only.
    unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }
}

#[test]
fn the_session_keyring_is_the_shim_s_where_the_options_say() {
    block_on(async {
        let host = format!("keyring={}", session_keyring());
        let exe = std::env::current_exe().unwrap();
        for kept in [true, false] {
            let options = runc(&Options { no_new_keyring: kept, ..Default::default() });
            let (world, bundle) = with_options(options, |b| {
                b.mount(json!({"destination": "/exe", "type": "bind", "source": exe, "options": ["rbind", "ro"]}))
                    .args(&["/exe", "--exact", "inside_the_container", "--ignored", "--nocapture"])
                    .edit(|spec| spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("{INSIDE}=1"))))
            })
            .await;
            for output in outputs(&world, &bundle).await {
                assert!(output.contains("keyring="), "{output}");
                assert_eq!(output.lines().any(|line| line.ends_with(&host)), kept, "{output} and {host}");
            }
            world.close().await;
        }
    });
}

#[test]
fn the_shim_runs_in_the_cgroup_of_the_options() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one");
        let path = format!("/{}/shims", scratch.namespace());
        let options = runc(&Options { shim_cgroup: path.clone(), ..Default::default() });
        let options = StartOptions { options: Some(options), ..Default::default() };
        let output = start_action(&shim_binary(), &bundle, &sink, &options).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains("ShimCgroup") && text.contains(&path), "{text}");
        assert!(scratch.shims().is_empty());

        // Not in cpuset, which takes nobody without CPUs of its own.
        let mounts = cgroup_mounts();
        let in_some = |name: &str| mounts.iter().find(|mount| mount.ends_with(name)).expect("a v1 hierarchy");
        let dirs = ["pids", "memory"].map(|name| in_some(name).join(path.trim_start_matches('/')));
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        let shim = Shim::start_with(&shim_binary(), &bundle, &sink, options).await.unwrap();
        let own = fs::read_to_string(format!("/proc/{}/cgroup", shim.pid().await.unwrap())).unwrap();
        for name in ["pids", "memory"] {
            assert!(own.lines().any(|line| line.ends_with(&format!(":{name}:{path}"))), "{own}");
        }
        let world = World { shim, sink, scratch };
        // The container has its own all the same.
        world.run(&bundle.args(&["true"])).await;
        world.end("one").await;
        let World { shim, sink, scratch } = world;
        shim.shutdown_and_wait(SOON).await.unwrap();
        dirs.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
        assert_eq!(leftovers(&scratch), [""; 0]);
        drop(sink);
    });
}

#[test]
fn options_that_ask_for_another_runtime_are_refused_at_start_and_at_create() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b).await;
        for (options, code, word) in [
            (runc(&Options { binary_name: "/usr/bin/kata".into(), ..Default::default() }), Code::UNIMPLEMENTED, "kata"),
            (toml("Sandbox = \"vm\""), Code::INVALID_ARGUMENT, "Sandbox"),
            (any("runhcs.v1.Options", Vec::new()), Code::INVALID_ARGUMENT, "runhcs.v1.Options"),
        ] {
            let mut request = world.request_for(&bundle, &Io::null());
            request.options = Some(options.clone()).into();
            refused(world.create_request(request).await, code, &[word]);

            let fresh = Bundle::new(&world.scratch, &format!("start-{}", word.replace('.', "-")));
            let options = StartOptions { options: Some(options), ..Default::default() };
            let output = start_action(&shim_binary(), &fresh, &world.sink, &options).unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(!output.status.success() && text.contains(word), "{text}");
            fs::remove_dir_all(fresh.dir()).unwrap();
        }
        assert_eq!(world.scratch.shims().len(), 1);
        // With containerd 2.3 the options are one extension of several.
        let others = any("containerd.io/something.v1.Else", vec![1]);
        let wrong = runc(&Options { binary_name: "kata".into(), ..Default::default() });
        let extensions = |list: &[&Any]| -> Vec<Extension> {
            list.iter().map(|any| Extension { value: Some((*any).clone()).into(), ..Default::default() }).collect()
        };
        let with = |list: &[&Any]| {
            protobuf_dialect(&BootstrapParams { extensions: extensions(list), ..params(&bundle, &world.sink) })
        };
        let output = start_action(&shim_binary(), &bundle, &world.sink, &with(&[&others, &wrong])).unwrap();
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stdout).contains("kata"));
        reply(&bundle, &world.sink, &with(&[&others]));
        assert!(world.service(TASK_V3).connect("one").await.is_ok());
        world.close().await;
    });
}
