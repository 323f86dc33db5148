//! CVE-2024-21626: a directory of the host's, reached through a descriptor that the runtime has open.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use serde_json::json;

use common::attacker::{attacker, attacking_process, with_capability};
use common::block_on;
use common::bundle::Bundle;
use common::container::Host;
use common::driver::Shim;
use common::events::EventSink;
use common::scratch::Scratch;
use common::stdio::Io;
use common::victim::wrapped;
use common::world::{SOON, World};
use ttrpc::Code;

/// Inside: what every descriptor is, without the one by which a directory of them is read.
pub fn list() {
    for fd in 0..1024 {
        let path = format!("/proc/self/fd/{fd}");
        let Ok(link) = fs::read_link(&path) else { continue };
        let kind = fs::metadata(&path).map_or("gone", |meta| match meta.file_type() {
            kind if kind.is_char_device() => "device",
            kind if kind.is_fifo() => "fifo",
            kind if kind.is_dir() => "directory",
            _ => "other",
        });
        println!("\n> {fd} {kind} {}", link.display());
    }
    println!("\n> cwd {}", std::env::current_dir().unwrap().display());
    println!("end");
}

fn listed(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| Some(line.trim_end().strip_prefix("> ")?.to_owned())).collect()
}

/// A shim that has inherited directories of the host's, none of them close-on-exec, and has a container with streams, one
/// in a user namespace and one that is created only: their fifos, pidfds and sockets are open.
async fn crowded() -> (World, Vec<Bundle>) {
    let scratch = Scratch::new();
    let sink = EventSink::start(&scratch);
    let binary = wrapped(&scratch, "exec 6</run 7</ 8</etc 9>>/dev/null");
    let volume = scratch.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    let sleeping = |id| {
        Bundle::new(&scratch, id)
            .args(&["sleep", "1000"])
            .mount(json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind"]}))
    };
    let others = vec![sleeping("first"), sleeping("mapped").user_namespace(100_000), sleeping("parked")];
    let shim = Shim::start(&binary, &others[0], &sink).await.unwrap();
    for other in &others {
        let io = Io::fifos(&scratch, &other.id).with_stdin(&scratch, &other.id);
        shim.create(other, &io).await.unwrap();
    }
    shim.start("first", "").await.unwrap();
    shim.start("mapped", "").await.unwrap();
    let mut io = Io::terminal(&scratch, "first-exec");
    shim.exec("first", "shell", &others[0].process(&["sh", "-c", "echo ready; sleep 1000"]), &io).await.unwrap();
    shim.start("first", "shell").await.unwrap();
    io.stdout_with("ready", SOON).await.unwrap();
    (World { shim, sink, scratch }, others)
}

/// runc left a descriptor of the host's cgroups open at execve, which was a way to the host's root. Here a program has
/// 0, 1 and 2, whatever else the shim is doing, and none of them is a directory.
#[test]
fn cve_2024_21626_a_program_has_its_three_streams_and_no_directory() {
    block_on(async {
        let (world, others) = crowded().await;
        for terminal in [false, true] {
            let id = if terminal { "terminal" } else { "pipes" };
            let bundle = attacker(Bundle::new(&world.scratch, id), "descriptors")
                .edit(|spec| spec["process"]["terminal"] = json!(terminal));
            let new_io = |name: &str| match terminal {
                true => Io::terminal(&world.scratch, name),
                false => Io::fifos(&world.scratch, name),
            };
            let expected = |lines: Vec<String>, what: &str| {
                let kinds: Vec<&str> = lines.iter().map(|line| line.rsplit_once(' ').unwrap().0).collect();
                let wanted = match terminal {
                    true => ["0 device", "1 device", "2 device", "cwd"],
                    false => ["0 device", "1 fifo", "2 fifo", "cwd"],
                };
                assert_eq!(kinds, wanted, "{id}, {what}: {lines:#?}");
                assert_eq!(lines[3], "cwd /", "{id}, {what}");
                assert!(!terminal || lines[..3].iter().all(|line| line.contains("/dev/pts/")), "{id}: {lines:#?}");
            };
            let mut io = new_io(&bundle.id);
            world.create(&bundle, &io).await.unwrap();
            let waiting = world.spawn_wait(id, "").await;
            world.start(id, "").await.unwrap();
            waiting.await.unwrap().unwrap();
            expected(listed(&io.stdout(SOON).await.unwrap()), "init");
            world.delete(id, "").await.unwrap();

            // The same program as an exec beside one that sleeps.
            let id = format!("{id}-sleeping");
            let sleeping = attacker(Bundle::new(&world.scratch, &id), "descriptors").args(&["sleep", "1000"]);
            world.create(&sleeping, &Io::null()).await.unwrap();
            world.start(&id, "").await.unwrap();
            let mut io = new_io(&format!("{id}-exec"));
            world.exec(&id, "x", &attacking_process(&sleeping, "descriptors"), &io).await.unwrap();
            let waiting = world.spawn_wait(&id, "x").await;
            world.start(&id, "x").await.unwrap();
            waiting.await.unwrap().unwrap();
            expected(listed(&io.stdout(SOON).await.unwrap()), "exec");
            world.delete(&id, "x").await.unwrap();
            world.end(&id).await;
        }
        for other in &others {
            world.end(&other.id).await;
        }
        world.close().await;
    });
}

/// The working directory, by a descriptor that the shim or its child may have, in words and by a link of the image's or of
/// a running container's: it is the container's own root, or there is no such process.
#[test]
fn cve_2024_21626_no_descriptor_of_the_shims_is_a_working_directory() {
    block_on(async {
        let (world, others) = crowded().await;
        let mut tries = Vec::new();
        for fd in 3..=16 {
            tries.extend(
                [format!("/proc/self/fd/{fd}"), format!("/proc/1/fd/{fd}/../../.."), format!("/link{fd}")].map(Some),
            );
        }
        let look = ["sh", "-c", "ls -d boot lib ../../../../../boot ../../../../../lib"];
        let sleeping = Bundle::new(&world.scratch, "sleeping").plain_rootfs().args(&["sleep", "1000"]);
        let one = Bundle::new(&world.scratch, "one").plain_rootfs().args(&look);
        for fd in 3..=16 {
            for bundle in [&sleeping, &one] {
                std::os::unix::fs::symlink(
                    format!("/proc/self/fd/{fd}"),
                    bundle.rootfs_dir().join(format!("link{fd}")),
                )
                .unwrap();
            }
        }
        world.run(&sleeping).await;
        let mut one = one;
        for (number, cwd) in tries.into_iter().flatten().enumerate() {
            one = one.edit(|spec| spec["process"]["cwd"] = json!(cwd));
            if world.create(&one, &Io::null()).await.is_ok() {
                let waiting = world.spawn_wait("one", "").await;
                // ls finds nothing of the host's: 1.
                world.start("one", "").await.unwrap();
                assert_eq!(waiting.await.unwrap().unwrap().exit_status, 1, "{cwd}");
                world.delete("one", "").await.unwrap();
            }
            let exec = format!("e{number}");
            let mut process = sleeping.process(&look);
            process["cwd"] = json!(cwd);
            world.exec("sleeping", &exec, &process, &Io::null()).await.unwrap();
            if world.start("sleeping", &exec).await.is_ok() {
                assert_eq!(world.wait("sleeping", &exec).await.unwrap().exit_status, 1, "exec in {cwd}");
            }
            world.delete("sleeping", &exec).await.unwrap();
        }
        world.end("sleeping").await;
        for other in &others {
            world.end(&other.id).await;
        }
        world.close().await;
    });
}

/// Holds a directory that is nowhere any more: its path is none of the container's, as one of the host's would be.
const HOLD_A_DIRECTORY: &str =
    "mkdir /m; mount -t tmpfs t /m; exec 7</m; umount -l /m; ln -s /proc/1/fd/7 /link; echo ready; sleep 1000";

/// Whatever way leads there: a working directory that getcwd(2) has no path of is refused, for an exec and for the init of
/// a container that shares the pid namespace.
#[test]
fn cve_2024_21626_a_working_directory_outside_of_the_root_is_refused() {
    block_on(async {
        let host = Host::new();
        let bundle = with_capability(host.bundle("one"), "CAP_SYS_ADMIN").script(HOLD_A_DIRECTORY);
        let mut container = host.start(&bundle).await;
        container.says("ready").await;
        for (exec, cwd) in [("a", "/link"), ("b", "/proc/1/fd/7"), ("c", "/proc/1/fd/7/.")] {
            let mut process = bundle.process(&["true"]);
            process["cwd"] = json!(cwd);
            let refusal = container.exec_refused(exec, &process).await;
            refusal.names(Code::INVALID_ARGUMENT, &[cwd, "outside of the container's root"]);
        }
        let pid_namespace = format!("/proc/{}/ns/pid", container.pid);
        let other = host.bundle("two").edit(|spec| {
            spec["process"]["cwd"] = json!("/proc/1/fd/7");
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            *namespaces.iter_mut().find(|namespace| namespace["type"] == "pid").unwrap() =
                json!({"type": "pid", "path": pid_namespace});
        });
        let error = container.shim.create(&other, &Io::null()).await.expect_err("created");
        assert!(error.to_string().contains("/proc/1/fd/7"), "{error}");
        container.end().await;
    });
}
