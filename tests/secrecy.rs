//! A container's process is born as a copy of the shim, which holds the environments and specifications of all its
//! containers: nothing of another one's may be left in it where somebody can look.

mod common;

use common::block_on;
use common::bundle::Bundle;
use common::memory::occurrences;
use common::stdio::Io;
use common::world::World;
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
    bundle.mount(json!({"destination": "/attacker", "type": "bind", "source": exe, "options": ["rbind", "ro"]})).edit(
        |spec| {
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
            }
        },
    )
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
