//! process.scheduler, ioPriority, execCPUAffinity; linux.personality; domainname: from the kernel's own files, inside.

mod common;

use std::fs;
use std::path::Path;

use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, refused, run_script};
use serde_json::{Value, json};
use ttrpc::Code;

/// nice, rt_priority and policy in /proc/PID/stat (proc_pid_stat(5)).
fn scheduling(stat: &str) -> [i64; 3] {
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split_whitespace().collect();
    // The first behind the name is number 3.
    [19, 40, 41].map(|number| fields[number - 3].parse().unwrap())
}

/// Runs a container of this scheduler, with a share of real time where the kernel shares that out.
fn scheduled_run(args: &[&str], scheduler: Value) -> Vec<String> {
    block_on(async {
        let host = Host::new();
        let bundle = with_real_time(&host).args(args).edit(|spec| spec["process"]["scheduler"] = scheduler);
        host.run(&bundle).await.lines()
    })
}

fn with_real_time(host: &Host) -> Bundle {
    let parent = Path::new("/sys/fs/cgroup/cpu").join(host.scratch.namespace());
    let shares = parent.with_file_name("cpu.rt_runtime_us").exists();
    if shares {
        fs::create_dir_all(&parent).unwrap();
        fs::write(parent.join("cpu.rt_runtime_us"), "20000").unwrap();
    }
    host.bundle("one").edit(|spec| {
        if shares {
            spec["linux"]["resources"]["cpu"] = json!({"realtimeRuntime": 10000});
        }
    })
}

fn scheduled(scheduler: Value) -> [i64; 3] {
    scheduling(&scheduled_run(&["cat", "/proc/self/stat"], scheduler)[0])
}

#[test]
fn the_scheduler_is_the_specifications() {
    assert_eq!(scheduled(Value::Null), [0, 0, 0]);
    assert_eq!(scheduled(json!({"policy": "SCHED_OTHER", "nice": 7})), [7, 0, 0]);
    assert_eq!(scheduled(json!({"policy": "SCHED_OTHER", "nice": -7})), [-7, 0, 0]);
    assert_eq!(scheduled(json!({"policy": "SCHED_BATCH", "nice": 3})), [3, 0, 3]);
    assert_eq!(scheduled(json!({"policy": "SCHED_IDLE"}))[2], 5);
    assert_eq!(scheduled(json!({"policy": "SCHED_FIFO", "priority": 10}))[1..], [10, 1]);
    assert_eq!(scheduled(json!({"policy": "SCHED_RR", "priority": 11}))[1..], [11, 2]);
    let deadline =
        json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 50_000_000, "period": 100_000_000});
    assert_eq!(scheduled(deadline)[2], 6);
}

/// With the flag, a child is of the ordinary policy again.
#[test]
fn the_flags_of_a_scheduler_are_set() {
    let policies = |flags: Value| {
        let script = "cat /proc/$$/stat; cat /proc/self/stat; true";
        let scheduler = json!({"policy": "SCHED_FIFO", "priority": 5, "flags": flags});
        let lines = scheduled_run(&["sh", "-c", script], scheduler);
        [&lines[0], &lines[1]].map(|stat| scheduling(stat)[2])
    };
    assert_eq!(policies(json!([])), [1, 1]);
    assert_eq!(policies(json!(["SCHED_FLAG_RESET_ON_FORK"])), [1, 0]);
}

#[test]
fn an_exec_has_the_containers_scheduler_or_its_own() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
            spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
            spec["linux"]["personality"] = json!({"domain": "LINUX32"});
        });
        let container = host.start(&bundle).await;
        let mut process = bundle.process(&["sh", "-c", "cat /proc/$$/stat; ionice -p $$; uname -m"]);
        process["scheduler"] = Value::Null;
        process["ioPriority"] = Value::Null;
        let seen = container.exec("a", &process).await.lines();
        assert_eq!((scheduling(&seen[0]), seen[1].trim()), ([5, 0, 3], "idle"), "{seen:?}");
        assert_eq!(seen[2], machine_of_32_bits());
        process["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 9});
        process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 2});
        let seen = container.exec("b", &process).await.lines();
        assert_eq!((scheduling(&seen[0]), seen[1].trim()), ([9, 0, 0], "best-effort: prio 2"), "{seen:?}");
        container.end().await;
    });
}

/// Neither goes with a process to its child: an exec's is set in the one that it has at last.
#[test]
fn an_exec_has_a_scheduler_that_is_not_inherited() {
    block_on(async {
        let host = Host::new();
        let bundle = with_real_time(&host).args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let mut process = container.bundle.process(&["cat", "/proc/self/stat"]);
        for (exec, policy, scheduler) in [
            (
                "deadline",
                6,
                json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 50_000_000, "period": 100_000_000}),
            ),
            ("reset", 1, json!({"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]})),
        ] {
            process["scheduler"] = scheduler;
            let seen = container.exec(exec, &process).await.lines();
            assert_eq!(scheduling(&seen[0])[2], policy, "{exec}");
        }
        container.end().await;
    });
}

#[test]
fn the_io_priority_is_the_specifications() {
    for (class, priority, seen) in [
        ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"),
        ("IOPRIO_CLASS_RT", 1, "realtime: prio 1"),
        ("IOPRIO_CLASS_IDLE", 0, "idle"),
    ] {
        let ended = run_script("ionice -p $$", |spec| {
            spec["process"]["ioPriority"] = json!({"class": class, "priority": priority});
        });
        assert_eq!(ended.ok().trim(), seen);
    }
}

/// What uname(2) says of this machine in the domain LINUX32.
fn machine_of_32_bits() -> &'static str {
    if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" }
}

#[test]
fn the_personality_is_the_domains() {
    let machine = |domain: &str| {
        run_script("uname -m", |spec| spec["linux"]["personality"] = json!({"domain": domain})).ok().trim().to_string()
    };
    assert_eq!([machine("LINUX"), machine("LINUX32")], [std::env::consts::ARCH, machine_of_32_bits()]);
}

#[test]
fn the_domain_name_is_set_in_the_new_namespace_alone() {
    let path = "/proc/sys/kernel/domainname";
    let before = std::fs::read_to_string(path).unwrap();
    let name = "d".repeat(64);
    let ended = run_script(&format!("cat {path}"), |spec| spec["domainname"] = json!(name));
    assert_eq!(ended.ok(), format!("{name}\n"));
    assert_eq!(std::fs::read_to_string(path).unwrap(), before);
}

/// Init is where it was: the field is for execs. What is there for all CPUs and what is there for one differs only
/// where there are two.
#[test]
fn an_exec_runs_on_the_cpus_that_it_is_given() {
    let cpus = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap_or_else(|| panic!("{status}")).trim().to_string()
    };
    if cpus(&std::fs::read_to_string("/proc/self/status").unwrap()) == "0" {
        return common::skipped("an_exec_runs_on_the_cpus_that_it_is_given", "there is one CPU");
    }
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
            spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
        });
        let container = host.start(&bundle).await;
        let all = cpus(&container.proc("status"));
        assert!(all.starts_with("0-"), "{all}");
        let mut process = bundle.process(&["cat", "/proc/self/status"]);
        let mut seen = async |exec: &str, affinity: Value| {
            process["execCPUAffinity"] = affinity;
            cpus(&container.exec(exec, &process).await.ok())
        };
        // The container's own, the exec's own, and nothing.
        assert_eq!(seen("a", Value::Null).await, "1");
        assert_eq!(seen("b", json!({"final": "0"})).await, "0");
        assert_eq!(seen("c", json!({"initial": "1", "final": "0"})).await, "0");
        // What is left of it in the cpuset is the kernel's to say.
        let initial = seen("d", json!({"initial": "1"})).await;
        assert!(initial == "1" || initial == all, "{initial}");
        let mut beyond = bundle.process(&["true"]);
        beyond["execCPUAffinity"] = json!({"final": "4000"});
        container.exec_refused("e", &beyond).await.names(Code::INVALID_ARGUMENT, &["process.execCPUAffinity.final"]);
        container.end().await;
    });
}

#[test]
fn what_no_kernel_takes_is_refused_by_name() {
    for (field, value, words) in [
        ("scheduler", json!({"policy": "SCHED_FIFO"}), "process.scheduler.priority"),
        ("scheduler", json!({"policy": "SCHED_NONE"}), "SCHED_NONE"),
        ("scheduler", json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NONE"]}), "SCHED_FLAG_NONE"),
        ("ioPriority", json!({"class": "IOPRIO_CLASS_NONE"}), "IOPRIO_CLASS_NONE"),
        ("execCPUAffinity", json!({"initial": "a"}), "execCPUAffinity"),
    ] {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["process"][field] = value));
        refusal.names(Code::INVALID_ARGUMENT, &[words]);
    }
    let refusal =
        refused(|bundle| bundle.edit(|spec| spec["linux"]["personality"] = json!({"domain": "LINUX", "flags": ["X"]})));
    refusal.names(Code::UNIMPLEMENTED, &["linux.personality.flags", "X"]);
}
