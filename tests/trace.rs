//! Where the time of operations went: what the shim tells of them, and how `dray trace` shows it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::attacker::{attack, with_ptrace};
use common::bundle::Bundle;
use common::dray::{Dray, fails, ok};
use common::stdio::Io;
use common::world::{World, descriptors, refused, status, until};
use common::{block_on, shim_binary};
use containerd_shim_protos::api::StateRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use dray::engine::trace::{KEPT, Kind, Operation, Operations, Outcome, Span, Who};
use dray::init::steps;
use serde_json::{Value, json};
use ttrpc::Code;

/// Our own service on the shim's socket.
const SERVICE: &str = "dray.v1.Shim";

/// A second, which no other step comes near on a machine that is busy with other tests.
const SLOW: u64 = 1_000_000_000;

/// All that the shim tells of a container, or of an exec.
async fn asked(world: &World, id: &str, exec: &str) -> ttrpc::Result<Vec<Operation>> {
    let request = StateRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
    let answer: Any = world.service(SERVICE).call("Trace", &request).await?;
    Ok(Operations::from_json(&answer.value).expect("JSON").operations)
}

/// The same, of which everything that must be true of any trace is.
async fn traced(world: &World, id: &str, exec: &str) -> Vec<Operation> {
    let all = asked(world, id, exec).await.expect("Trace");
    all.iter().for_each(sound);
    all
}

/// Ours go from one to the next without a gap, the child's too once it has begun, and nothing lies outside.
#[track_caller]
fn sound(operation: &Operation) {
    let (ours, childs): (Vec<_>, Vec<_>) = operation.steps.iter().partition(|step| step.who == Who::Shim);
    assert_eq!(ours[0].start_ns, 0, "{operation:#?}");
    assert_eq!(ours.last().unwrap().end_ns(), operation.took_ns, "{operation:#?}");
    for steps in [ours, childs] {
        for pair in steps.windows(2) {
            assert_eq!(pair[0].end_ns(), pair[1].start_ns, "{operation:#?}");
        }
        assert!(steps.iter().all(|step| step.end_ns() <= operation.took_ns), "{operation:#?}");
    }
}

/// The last operation of a kind.
#[track_caller]
fn last(all: &[Operation], kind: Kind) -> &Operation {
    all.iter().rfind(|operation| operation.kind == kind).unwrap_or_else(|| panic!("no {kind:?} in {all:#?}"))
}

fn names(operation: &Operation, who: Who) -> Vec<&str> {
    operation.steps.iter().filter(|step| step.who == who).map(|step| step.step.as_str()).collect()
}

#[track_caller]
fn step<'a>(operation: &'a Operation, name: &str) -> &'a Span {
    operation.steps.iter().find(|step| step.step == name).unwrap_or_else(|| panic!("no {name:?} in {operation:#?}"))
}

/// The command line, by its name, for this world's containers.
fn dray(world: &World, args: &[&str]) -> Output {
    let root = Path::new("/run/dray").join(world.scratch.namespace());
    let mut command = Command::new(shim_binary());
    command.arg0("dray").arg("--root").arg(root).args(args).stdin(Stdio::null());
    command.output().expect("dray")
}

#[track_caller]
fn shown(world: &World, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = dray(world, args);
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("UTF-8")
}

fn idle(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

/// Hooks that are scripts of the shell.
fn hooks(bundle: Bundle, scripts: &[(&str, &str)]) -> Bundle {
    let hook = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    bundle.edit(|spec| scripts.iter().for_each(|(kind, script)| spec["hooks"][kind] = hook(script)))
}

#[test]
fn the_steps_are_those_that_were_done_in_their_order() {
    block_on(async {
        let (world, bundle) = World::running("one", idle).await;
        world.exec_to_exit("one", "e", &bundle.process(&["true"]), &Io::null()).await.unwrap();
        let all = traced(&world, "one", "").await;
        let kinds: Vec<_> = all.iter().map(|operation| (operation.kind, operation.outcome)).collect();
        assert_eq!(kinds, [Kind::Create, Kind::Start, Kind::Exec].map(|kind| (kind, Outcome::Done)));

        let create = [
            "judging the specification",
            "taking the state directory",
            "mounting the rootfs",
            "opening stdio",
            "making the cgroup and its limits",
            "planning",
            "forking",
            "joining the cgroup",
            "writing the OOM score and the id maps",
            "waiting for the child",
            "saving the state",
            "announcing it",
        ];
        assert_eq!(names(&all[0], Who::Shim), create);
        let children: Vec<_> = steps::CREATE.iter().map(|step| step.0).chain(["tying it to the shim"]).collect();
        assert_eq!(names(&all[0], Who::Child), children);

        assert_eq!(names(&all[1], Who::Shim), ["releasing it", "waiting for the child", "announcing it"]);
        let children = [
            "running the startContainer hooks",
            "leaving the shim",
            "loading the seccomp filter",
            "executing the program",
        ];
        assert_eq!(names(&all[1], Who::Child), children);

        let exec = [
            "judging the specification",
            "waiting for the client to start it",
            "opening stdio",
            "planning",
            "forking",
            "joining the cgroup",
            "writing the OOM score and the id maps",
            "waiting for the child",
            "announcing it",
        ];
        assert_eq!(names(&all[2], Who::Shim), exec);
        let childs = names(&all[2], Who::Child);
        assert_eq!(childs[..steps::EXEC.len()], steps::EXEC.iter().map(|step| step.0).collect::<Vec<_>>());
        // What the process does when it has been born in the container, in reach of its programs, is there as well.
        let hop = childs.iter().position(|name| *name == "being born in the container's pid namespace").unwrap();
        assert_eq!(childs[hop + 1], "starting a session");
        assert_eq!(childs.last(), Some(&"executing the program"));

        let of_exec = traced(&world, "one", "e").await;
        assert_eq!(of_exec, all[2..]);
        world.end("one").await;
        let delete = traced(&world, "one", "").await;
        let steps = ["waiting for its end", "draining its output", "removing what is left"];
        assert_eq!(names(last(&delete, Kind::Delete), Who::Shim), steps);
        refused(asked(&world, "two", "").await, Code::NOT_FOUND, &["two"]);
        refused(asked(&world, "one", "none").await, Code::NOT_FOUND, &["one", "none"]);
        world.close().await;
    });
}

#[test]
fn what_a_container_has_more_has_steps_of_its_own() {
    block_on(async {
        let (world, _bundle) = World::running("users", |bundle| idle(bundle).user_namespace(100_000)).await;
        let sources = "opening the host's sources";
        step(last(&traced(&world, "users", "").await, Kind::Create), sources);

        let timed = idle(Bundle::new(&world.scratch, "time")).edit(|spec| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
            spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1000}});
        });
        world.run(&timed).await;
        world.exec_to_exit("time", "e", &timed.process(&["true"]), &Io::null()).await.unwrap();
        // Where it is another time, steps are as they are elsewhere.
        let all = traced(&world, "time", "").await;
        for kind in [Kind::Create, Kind::Start, Kind::Exec] {
            let childs = names(last(&all, kind), Who::Child);
            assert!(childs.len() >= 4, "{kind:?}: {childs:?}");
        }
        step(last(&all, Kind::Exec), "executing the program");
        assert!(!names(&all[0], Who::Shim).contains(&sources));

        // A filter that forbids the clock, which then is not looked at, and one that does not.
        for (id, call, end) in [
            ("clock", "clock_gettime", "loading the seccomp filter, and what follows"),
            ("others", "mkdir", "executing the program"),
        ] {
            let filtered = idle(Bundle::new(&world.scratch, id)).edit(|spec| {
                let rule = json!({"names": [call], "action": "SCMP_ACT_KILL_PROCESS"});
                spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
            });
            world.run(&filtered).await;
            let all = traced(&world, id, "").await;
            assert_eq!(names(last(&all, Kind::Start), Who::Child).last(), Some(&end), "{id}");
            world.end(id).await;
        }
        for id in ["time", "users"] {
            world.end(id).await;
        }
        world.close().await;
    });
}

#[test]
fn a_slow_hook_is_slow_in_its_own_step_alone() {
    let at_create =
        [("createRuntime", "running the hooks of create"), ("createContainer", "running the createContainer hooks")];
    let at_start =
        [("startContainer", "running the startContainer hooks"), ("poststart", "running the poststart hooks")];
    block_on(async {
        let (world, _bundle) = World::running("none", idle).await;
        for (id, slow) in [("one", 0), ("two", 1)] {
            let script = |at| if at == slow { "sleep 1.1" } else { "true" };
            let scripts = [at_create, at_start].concat().into_iter().zip([0, 1, 0, 1]);
            let scripts: Vec<_> = scripts.map(|((kind, _), at)| (kind, script(at))).collect();
            world.run(&hooks(idle(Bundle::new(&world.scratch, id)), &scripts)).await;
            let all = traced(&world, id, "").await;
            for (kind, steps) in [(Kind::Create, at_create), (Kind::Start, at_start)] {
                let operation = last(&all, kind);
                assert!(step(operation, steps[slow].1).took_ns >= SLOW, "{operation:#?}");
                // But for those that wait for it.
                let others = operation.steps.iter().filter(|step| !step.waits && step.step != steps[slow].1);
                others.for_each(|step| assert!(step.took_ns < SLOW, "{step:?}"));
            }
            world.end(id).await;
        }
        world.end("none").await;
        world.close().await;
    });
}

#[test]
fn what_is_under_way_is_told_and_so_is_what_has_failed() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| {
            let go = bundle.scratch().dir().join("go");
            hooks(idle(bundle), &[("prestart", &format!("while ! [ -e {} ]; do sleep 0.05; done", go.display()))])
        })
        .await;
        let request = world.request_for(&bundle, &Io::null());
        let task = world.task.clone();
        let creating = tokio::spawn(async move { task.create_request(request).await });
        let mut seen = Vec::new();
        for _ in 0..1000 {
            seen = asked(&world, "one", "").await.unwrap_or_default();
            let hooks = |operation: &Operation| {
                names(operation, Who::Shim).last() == Some(&"running the hooks of create")
                    && names(operation, Who::Child).last() == Some(&"waiting for the shim's hooks")
            };
            if seen.first().is_some_and(hooks) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        seen.iter().for_each(sound);
        assert_eq!(last(&seen, Kind::Create).outcome, Outcome::UnderWay, "{seen:#?}");
        assert_eq!(names(&seen[0], Who::Child).last(), Some(&"waiting for the shim's hooks"));
        fs::write(world.scratch.dir().join("go"), "").unwrap();
        creating.await.unwrap().unwrap();
        assert_eq!(last(&traced(&world, "one", "").await, Kind::Create).outcome, Outcome::Done);

        let bad = Bundle::new(&world.scratch, "bad").args(&["/no/such/program"]);
        world.create(&bad, &Io::null()).await.unwrap_err();
        let all = traced(&world, "bad", "").await;
        assert_eq!((all.len(), all[0].outcome), (1, Outcome::Failed));
        assert_eq!(names(&all[0], Who::Child).last(), Some(&"finding the program"));
        assert_eq!(names(&all[0], Who::Shim).last(), Some(&"undoing it"));
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn no_number_of_execs_takes_more_than_its_room() {
    block_on(async {
        let (world, bundle) = World::running("one", idle).await;
        let shim = world.pid().await.unwrap();
        let process = bundle.process(&["true"]);
        let run = async |numbers: std::ops::Range<usize>| {
            for number in numbers {
                world.exec_to_exit("one", &format!("exec-{number}"), &process, &Io::null()).await.unwrap();
            }
        };
        run(0..2 * KEPT).await;
        let (memory, open) = (status(shim, "RssAnon"), descriptors(shim));
        run(2 * KEPT..2 * KEPT + 200).await;
        let more = status(shim, "RssAnon").saturating_sub(memory);
        assert!(more < 128, "{more} KiB more after 200 execs");
        assert_eq!(descriptors(shim), open);
        let all = traced(&world, "one", "").await;
        assert_eq!(all.len(), KEPT);
        // How it came to be is not forgotten for them.
        let kinds = [Kind::Create, Kind::Start, Kind::Exec];
        assert_eq!(all.iter().take(3).map(|operation| operation.kind).collect::<Vec<_>>(), kinds);
        assert_eq!(all.last().unwrap().exec, format!("exec-{}", 2 * KEPT + 199));
        world.end("one").await;
        world.close().await;
    });
}

/// Set in a hook whose program is this test binary.
const ATTACK: &str = "DRAY_TEST_ATTACK";

/// Not a test: what the hooks of the others run.
#[test]
#[ignore = "the program of the other tests' hooks"]
fn inside_the_container() {
    let Some(words) = attack() else { return };
    let [what, report] = &words[..] else { panic!("{words:?}") };
    // Init has not become its program: it waits for this hook.
    let maps = fs::read_to_string("/proc/1/maps").unwrap();
    // The only memory that it shares with anybody, and it is its own container's.
    let shared: Vec<_> = maps.lines().filter(|line| line.contains(" rw-s ")).collect();
    let [line] = shared[..] else { panic!("not one page of stamps: {maps}") };
    let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let forge = |at: u64| match what.as_str() {
        "noise" => at.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        "huge" => u64::MAX - at,
        _ => panic!("unknown attack {what}"),
    };
    let memory = fs::OpenOptions::new().write(true).open("/proc/1/mem").unwrap();
    let page: Vec<u8> = (0..4096 / 8).flat_map(|at| forge(at).to_ne_bytes()).collect();
    memory.write_all_at(&page, start).unwrap();
    fs::write(report, format!("{line}\n")).unwrap();
}

/// A hook of start has the process that will be the container's under its hands, and with it the page of its moments.
#[test]
fn what_a_program_of_the_container_writes_there_is_no_trace() {
    block_on(async {
        let (world, _one) = World::running("one", idle).await;
        // Its child is not its program yet, and has the page of its own.
        let waiting = idle(Bundle::new(&world.scratch, "waiting"));
        world.create(&waiting, &Io::null()).await.unwrap();
        let [one, two] = [traced(&world, "one", "").await, traced(&world, "waiting", "").await];
        let report = world.scratch.dir().join("report");
        fs::create_dir(&report).unwrap();
        let exe = std::env::current_exe().expect("own path");
        for what in ["noise", "huge"] {
            let attack = format!("{ATTACK}={what} /report/{what}");
            let args = ["/attacker", "--exact", "inside_the_container", "--ignored"];
            let hook = json!([{"path": "/attacker", "args": args, "env": [attack]}]);
            let bundle = with_ptrace(idle(Bundle::new(&world.scratch, what)))
                .mount(json!({"destination": "/attacker", "type": "bind", "source": exe, "options": ["rbind", "ro"]}))
                .mount(json!({"destination": "/report", "type": "bind", "source": report, "options": ["rbind", "rw"]}))
                .edit(|spec| spec["hooks"] = json!({"startContainer": hook}));
            world.run(&bundle).await;
            assert!(report.join(what).exists(), "no attack");
            // Sound, as all of them, and of our own words. What was told before is as it was.
            let all = traced(&world, what, "").await;
            let start = last(&all, Kind::Start);
            assert_eq!(start.outcome, Outcome::Done);
            let known = |step: &&str| (0..=steps::EXECUTING_AT).any(|number| steps::name(number) == Some(step));
            let childs = names(start, Who::Child);
            assert!(childs.iter().all(|step| known(&step.trim_end_matches(", and what follows"))), "{childs:?}");
            assert_eq!(traced(&world, "one", "").await, one);
            assert_eq!(traced(&world, "waiting", "").await, two);
            world.end(what).await;
        }
        world.start("waiting", "").await.unwrap();
        let started = traced(&world, "waiting", "").await;
        assert_eq!(names(last(&started, Kind::Start), Who::Child).last(), Some(&"executing the program"));
        world.end("waiting").await;
        world.end("one").await;
        world.close().await;
    });
}

#[test]
fn the_command_line_shows_it_in_four_ways() {
    block_on(async {
        let (world, bundle) = World::running("one", idle).await;
        for number in ["1", "2"] {
            world.exec_to_exit("one", number, &bundle.process(&["true"]), &Io::null()).await.unwrap();
        }
        let table = shown(&world, &["trace", "one"]);
        for line in
            ["create one: ", "start one: ", "exec one 2: ", "making the cgroup and its limits", "the shim alone"]
        {
            assert!(table.contains(line), "{line}: {table}");
        }
        assert!(!table.contains("exec one 1: "), "{table}");

        let json: Value = serde_json::from_str(&shown(&world, &["trace", "--all", "--format", "json", "one"])).unwrap();
        let told = Operations { operations: traced(&world, "one", "").await };
        assert_eq!(json, serde_json::from_slice::<Value>(&told.to_json()).unwrap());

        let chrome = shown(&world, &["trace", "--exec", "1", "--format", "chrome", "one"]);
        let chrome: Value = serde_json::from_str(&chrome).unwrap();
        let events = chrome["traceEvents"].as_array().unwrap();
        let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(complete.len(), told.operations[2].steps.len() + 1);
        assert_eq!(complete[0]["name"], "exec one 1");
        assert!(complete.iter().all(|event| event["ts"].is_f64() && event["dur"].is_f64()), "{complete:?}");

        let file = world.scratch.dir().join("one.svg");
        let path = file.to_str().unwrap();
        assert_eq!(shown(&world, &["trace", "--last", "1", "--format", "svg", "--output", path, "one"]), "");
        let picture = fs::read_to_string(&file).unwrap();
        assert!(picture.starts_with("<?xml") && picture.trim_end().ends_with("</svg>"), "{picture}");
        assert!(picture.contains("executing the program</text>") && !picture.contains("create one"), "{picture}");

        // An exec is shown by its own flag, which takes nothing from the program's words.
        let Output { status, stdout, stderr } = dray(&world, &["exec", "--trace", "one", "echo", "--trace"]);
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success() && stdout == b"--trace\n", "{stderr}");
        assert!(stderr.starts_with("exec one dray-") && stderr.contains("executing the program"), "{stderr}");

        for (args, words) in [
            (&["trace", "none"][..], "container none: container does not exist"),
            (&["trace", "--exec", "3", "one"], "exec 3: no trace of it is kept"),
        ] {
            let Output { status, stderr, .. } = dray(&world, args);
            let stderr = String::from_utf8(stderr).unwrap();
            assert_eq!(status.code(), Some(1), "{stderr}");
            assert!(stderr.starts_with("dray: ") && stderr.contains(words), "{stderr}");
        }
        world.end("one").await;
        world.close().await;
    });
}

/// An exec's id is its client's to choose.
#[test]
fn a_hostile_id_is_shown_and_does_nothing() {
    let exec = "</text><script>alert(1)</script>&\"\u{1b}[2J\n\u{202e}";
    block_on(async {
        let (world, bundle) = World::running("one", idle).await;
        world.exec_to_exit("one", exec, &bundle.process(&["true"]), &Io::null()).await.unwrap();
        let quiet = |text: &str| !text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
        for format in ["table", "svg"] {
            let text = shown(&world, &["trace", "--format", format, "one"]);
            assert!(quiet(&text), "{text:?}");
            assert!(format == "table" || (text.contains("&lt;script&gt;") && !text.contains("<script")), "{text}");
        }
        for format in ["json", "chrome"] {
            let text = shown(&world, &["trace", "--exec", exec, "--format", format, "one"]);
            let document: Value = serde_json::from_str(&text).unwrap();
            assert!(document.to_string().contains("alert(1)"), "{document}");
        }
        world.end("one").await;
        let gone = || !Path::new("/run/dray").join(world.scratch.namespace()).join("one").exists();
        until("the state is gone", gone).await;
        world.close().await;
    });
}

/// A container that the command line leaves: what is known of it is in its state directory.
#[test]
fn a_container_of_the_command_lines_has_its_trace_beside_its_state() {
    let dray = Dray::new();
    // On a tmpfs, as it mostly is: a child that its creator leaves has its moments there.
    let root = Path::new("/dev/shm").join(dray.scratch().namespace());
    let _removed = Removed { dray: &dray, root: &root };
    let run = |bundle: &Bundle, args: &[&str]| {
        dray.finish(dray.plain().arg("--root").arg(&root).args(args).current_dir(bundle.dir()))
    };
    let slow = hooks(idle(dray.bundle("one")), &[("startContainer", "sleep 1.1")]);
    let silent = ok(&run(&slow, &["create", "one"]));
    assert_eq!(silent, "");
    let created = ok(&run(&slow, &["trace", "one"]));
    assert!(created.contains("create one: ") && !created.contains("start one: "), "{created}");
    let started = run(&slow, &["start", "--trace", "one"]);
    let table = String::from_utf8_lossy(&started.stderr).into_owned();
    ok(&started);
    assert!(table.starts_with("start one: ") && table.contains("executing the program"), "{table}");

    let all = ok(&run(&slow, &["trace", "--all", "--format", "json", "one"]));
    let all = Operations::from_json(all.as_bytes()).unwrap().operations;
    all.iter().for_each(sound);
    assert_eq!(all.iter().map(|operation| operation.kind).collect::<Vec<_>>(), [Kind::Create, Kind::Start]);
    assert!(step(&all[1], "running the startContainer hooks").took_ns >= SLOW);
    let mode = fs::metadata(root.join("one/trace.json")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    ok(&run(&slow, &["delete", "--force", "one"]));
    assert!(!root.join("one").exists());

    let bundle = idle(dray.bundle("two"));
    let picture = dray.scratch().dir().join("two.svg");
    let flag = format!("--trace={}", picture.display());
    ok(&run(&bundle, &["run", &flag, "--detach", "two"]));
    let text = fs::read_to_string(&picture).unwrap();
    assert!(text.contains("create two") && text.contains("start two") && text.contains("</svg>"), "{text}");
    let shown = ok(&run(&bundle, &["trace", "two"]));
    assert!(shown.contains("create two: ") && shown.contains("start two: "), "{shown}");
    let events = dray.scratch().dir().join("exec.json");
    ok(&run(&bundle, &["exec", &format!("--trace={}", events.display()), "two", "true"]));
    let events: Value = serde_json::from_slice(&fs::read(&events).unwrap()).unwrap();
    let executing = |event: &Value| event["name"] == "executing the program" && event["ph"] == "X";
    assert!(events["traceEvents"].as_array().unwrap().iter().any(executing), "{events}");
    ok(&run(&bundle, &["delete", "--force", "two"]));

    // Of what has failed nothing is left but what is shown.
    let bad = dray.bundle("bad").args(&["/no/such/program"]);
    let stderr = fails(&run(&bad, &["run", "-trace", "bad"]), 1);
    assert!(stderr.contains("µs, failed") && stderr.contains("finding the program"), "{stderr}");
    fails(&run(&bad, &["trace", "bad"]), 1);
}

/// Takes away what a test that fails leaves in a root of its own.
struct Removed<'a> {
    dray: &'a Dray,
    root: &'a Path,
}

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root).into_iter().flatten().flatten() {
            let _ =
                self.dray.plain().arg("--root").arg(self.root).args(["delete", "-f"]).arg(entry.file_name()).output();
        }
        let _ = fs::remove_dir_all(self.root);
    }
}
