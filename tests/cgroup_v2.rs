//! What a container sees and does of the unified hierarchy: mounts of it, files by their names, cgroups below its own, and
//! places where cgroup2 takes no process. Where the host's controllers are cgroup v1's, as far as its unified tree goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use common::block_on;
use common::bundle::Bundle;
use common::container::Host;
use serde_json::json;
use ttrpc::Code;

/// Where the unified hierarchy is, and whether the controllers are in it.
fn unified() -> Option<(PathBuf, bool)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |line: &&str| line.contains(" - cgroup2 ");
    let place = PathBuf::from(table.lines().find(of)?.split(' ').nth(4)?);
    let v2 = !table.lines().any(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup ")));
    Some((place, v2))
}

/// Where the controllers are in the unified hierarchy.
fn v2(test: &str) -> Option<PathBuf> {
    let place = unified().filter(|(_, v2)| *v2).map(|(place, _)| place);
    if place.is_none() {
        common::skipped(test, "the controllers of this host are cgroup v1's");
    }
    place
}

fn options() -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().find(|line| line.contains(" - cgroup2 ")).unwrap().split(" - ").nth(1).unwrap().to_owned()
}

fn with_view(bundle: Bundle, typ: &str, options: &[&str], own_namespace: bool) -> Bundle {
    let mount = json!({"destination": "/sys/fs/cgroup", "type": typ, "source": "cgroup", "options": options});
    bundle.mount(mount).edit(|spec| {
        if own_namespace {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        }
    })
}

fn types(v2: bool) -> &'static [&'static str] {
    if v2 { &["cgroup", "cgroup2"] } else { &["cgroup2"] }
}

/// Its own cgroup at the top in a namespace of its own, and where /proc/self/cgroup says without one. Written to it can be
/// only as far as its own goes, and that with `rw`.
///
/// Proves: mounts.type=cgroup2
#[test]
fn a_mount_of_the_unified_hierarchy_shows_the_own_cgroup_and_nothing_else_can_be_written_to() {
    let Some((_, v2)) = unified() else { return common::skipped("cgroup2 mounts", "no unified hierarchy is mounted") };
    let before = options();
    for typ in types(v2) {
        for (own_namespace, mode) in [(true, "ro"), (true, "rw"), (false, "ro"), (false, "rw")] {
            block_on(async {
                let host = Host::new();
                let bundle = with_view(host.bundle("one"), typ, &["nosuid", mode], own_namespace);
                // Where it is, whether it is there, what it may, and where it ends up.
                let script = "own=$(grep ^0:: /proc/self/cgroup | cut -d: -f3); echo $own; cd /sys/fs/cgroup/$own || exit 1; \
                              grep -c . cgroup.procs; mkdir below 2>&1; mkdir /sys/fs/cgroup/dray-not-ours 2>&1; \
                              [ ! -d below ] || echo 0 > below/cgroup.procs; grep ^0:: /proc/self/cgroup; \
                              cat cgroup.controllers memory.max 2>/dev/null; rmdir /sys/fs/cgroup/dray-not-ours 2>/dev/null; true";
                let ended = host.run(&bundle.script(script)).await;
                let what = format!("{typ} {mode} own namespace: {own_namespace}: {ended:#?}");
                let mut lines = ended.stdout.lines();
                let path = format!("/{}/one", host.scratch.namespace());
                let own = if own_namespace { "/" } else { &path };
                assert_eq!(lines.next(), Some(own), "{what}");
                // The shell, and grep.
                assert_eq!(lines.next(), Some("2"), "{what}");
                let (ro, top) = (mode == "ro", own_namespace && mode == "rw");
                let refusals = ended.stdout.matches("Read-only file system").count();
                assert_eq!(refusals, usize::from(ro) + usize::from(!top), "{what}");
                let below = format!("0::{}/below", own.trim_end_matches('/'));
                assert_eq!(ended.stdout.lines().any(|line| line == below), !ro, "{what}");
                if v2 {
                    assert!(ended.stdout.contains("memory") && ended.stdout.ends_with("max\n"), "{what}");
                }
                assert_eq!(host.scratch.leftovers(), [""; 0], "{what}");
            });
        }
    }
    // They are the one hierarchy's: a mount of it from the host's cgroup namespace would change them for all.
    assert_eq!(options(), before);
}

/// Its root, who is nobody on the host, divides it; its limits are not its own to change.
#[test]
fn in_a_user_namespace_its_root_owns_the_cgroup_and_not_its_limits() {
    let Some(_) = v2("delegated cgroups") else { return };
    block_on(async {
        let host = Host::new();
        let bundle = with_view(host.bundle("one"), "cgroup", &["rw"], true).user_namespace(100_000).edit(|spec| {
            spec["linux"]["resources"]["pids"] = json!({"limit": 50});
        });
        let script = "cd /sys/fs/cgroup; mkdir below && echo 0 > below/cgroup.procs && echo +pids > cgroup.subtree_control && \
                      echo 20 > below/pids.max && cat below/pids.max; echo 60 > pids.max; cat pids.max";
        let ended = host.run(&bundle.script(script)).await;
        assert_eq!(ended.stdout, "20\n50\n", "{ended:#?}");
        assert!(ended.stderr.contains("pids.max"), "{ended:#?}");
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

#[test]
fn files_by_their_names_are_seen_from_inside() {
    let Some(_) = v2("unified") else { return };
    block_on(async {
        let host = Host::new();
        let files = json!({"memory.high": "33554432", "cpu.weight": "77", "cgroup.max.depth": "5"});
        let bundle = with_view(host.bundle("one"), "cgroup", &["ro"], true);
        let bundle = bundle.edit(|spec| spec["linux"]["resources"]["unified"] = files);
        let script = "cd /sys/fs/cgroup; cat memory.high cpu.weight cgroup.max.depth";
        assert_eq!(host.run(&bundle.script(script)).await.ok(), "33554432\n77\n5\n");
        for (files, code, words) in [
            (json!({"nothing.max": "1"}), Code::FAILED_PRECONDITION, &["controller nothing", "memory"][..]),
            (json!({"memory.nothing": "1"}), Code::FAILED_PRECONDITION, &["memory.nothing"]),
            (json!({"memory.max": "x"}), Code::INVALID_ARGUMENT, &["memory.max", "x"]),
            (json!({"../memory.max": "1"}), Code::INVALID_ARGUMENT, &["unified", "../memory.max"]),
            (json!({"cgroup.procs": "1"}), Code::INVALID_ARGUMENT, &["unified", "cgroup.procs"]),
        ] {
            let host = Host::new();
            let bundle = host.bundle("one").edit(|spec| spec["linux"]["resources"]["unified"] = files);
            host.refused(&bundle).await.names(code, words);
        }
    });
}

/// As a systemd or a docker in it does: init moves down, and the cgroup hands controllers down, which then takes no process.
#[test]
fn an_exec_goes_where_the_init_of_a_divided_cgroup_is() {
    let Some(place) = v2("nested cgroups") else { return };
    block_on(async {
        let host = Host::new();
        let script = "cd /sys/fs/cgroup; mkdir -p init other/deep; echo 0 > init/cgroup.procs; \
                      echo '+memory +pids' > cgroup.subtree_control; \
                      sh -c 'echo 0 > other/deep/cgroup.procs; exec sleep 1000' & echo ready; exec sleep 1000";
        let bundle = with_view(host.bundle("one"), "cgroup", &["rw"], true).script(script);
        let mut container = host.start(&bundle).await;
        container.says("ready").await;
        let own = place.join(host.scratch.namespace()).join("one");
        assert!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap().contains("memory"));
        let seen =
            container.exec_script("probe", "grep ^0:: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs").await.ok();
        assert_eq!(seen, "0::/init\n");
        // All of it stands still, goes on, and ends.
        container.shim.pause("one").await.unwrap();
        assert!(fs::read_to_string(own.join("other/deep/cgroup.events")).unwrap().contains("frozen 1"));
        container.shim.resume("one").await.unwrap();
        container.end().await;
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}

/// A cgroup with a process of its own, ended and removed when dropped.
struct Populated(PathBuf, Child);

impl Populated {
    fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let join = "echo 0 > \"$0/cgroup.procs\" && exec sleep 1000";
        let child = Command::new("/bin/sh").args(["-c", join]).arg(dir).spawn().unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        while fs::read_to_string(&comm).unwrap() != "sleep\n" {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Self(dir.to_owned(), child)
    }
}

impl Drop for Populated {
    fn drop(&mut self) {
        self.1.kill().unwrap();
        self.1.wait().unwrap();
        common::scratch::remove_cgroup(&self.0);
    }
}

/// cgroup2 hands down nothing from a cgroup with processes, but for what threads can have.
#[test]
fn below_a_cgroup_with_processes_a_container_runs_as_far_as_it_can() {
    let Some(place) = v2("threaded cgroups") else { return };
    block_on(async {
        let host = Host::new();
        let parent = format!("{}/parent", host.scratch.namespace());
        let _sitting = Populated::new(&place.join(&parent));
        let below = |bundle: Bundle| bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(format!("/{parent}/one")));
        // No limits; and what ctr asks for by default.
        let bundle = below(with_view(host.bundle("plain"), "cgroup", &["ro"], true));
        let bundle = bundle.edit(|spec| spec["linux"]["resources"] = json!({}));
        assert_eq!(host.run(&bundle.script("cat /sys/fs/cgroup/cgroup.type")).await.ok(), "domain\n");

        let memory = below(host.bundle("memory"));
        let memory = memory.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 64 << 20}));
        let words = ["controller memory", &parent, "processes of its own"];
        let refusal = {
            let host = Host::new();
            let bundle = host.bundle("two").edit(|spec| *spec = memory.spec().clone());
            host.refused(&bundle).await
        };
        refusal.names(Code::FAILED_PRECONDITION, &words);

        let bundle = below(with_view(host.bundle("one"), "cgroup", &["ro"], true));
        let bundle =
            bundle.edit(|spec| spec["linux"]["resources"] = json!({"pids": {"limit": 20}, "cpu": {"shares": 512}}));
        let bundle = bundle.args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let seen = container.exec_script("probe", "cd /sys/fs/cgroup; cat cgroup.type pids.max cpu.weight").await.ok();
        assert_eq!(seen, "threaded\n20\n59\n");
        let pids = container.shim.pids("one").await.unwrap();
        assert_eq!(pids.len(), 1, "{pids:?}");
        container.end().await;
    });
}
