//! process.scheduler, ioPriority, execCPUAffinity; linux.personality; domainname: from the kernel's own files, inside.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::on;
use common::container::{Host, refused, run_script};
use serde_json::{Value, json};
use ttrpc::Code;

/// nice, rt_priority and policy in /proc/PID/stat (proc_pid_stat(5)).
fn scheduling(stat: &str) -> [i64; 3] {
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split_whitespace().collect();
    // The first behind the name is number 3.
    [19, 40, 41].map(|number| fields[number - 3].parse().unwrap())
}

/// Gives the cgroup above the containers' a share of real time, of which theirs may have some; false where the kernel
/// does not share it out.
fn share_real_time(host: &Host) -> bool {
    let parent = Path::new("/sys/fs/cgroup/cpu").join(host.scratch.namespace());
    let shares = parent.with_file_name("cpu.rt_runtime_us").exists();
    if shares {
        fs::create_dir_all(&parent).unwrap();
        fs::write(parent.join("cpu.rt_runtime_us"), "20000").unwrap();
    }
    shares
}

/// A container of this scheduler, with a share of real time where the kernel shares that out.
fn with_scheduler(host: &Host, scheduler: Value) -> Bundle {
    let shares = share_real_time(host);
    host.bundle("one").edit(|spec| {
        spec["process"]["scheduler"] = scheduler;
        if shares {
            spec["linux"]["resources"]["cpu"] = json!({"realtimeRuntime": 10000});
        }
    })
}

fn scheduled_run(args: &[&str], scheduler: Value) -> Vec<String> {
    block_on(async {
        let host = Host::new();
        let bundle = with_scheduler(&host, scheduler).args(args);
        host.run(&bundle).await.lines()
    })
}

/// struct sched_attr of linux/sched/types.h.
#[repr(C)]
#[derive(Debug, Default, PartialEq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// What sched_getattr(2) says of a running init of this scheduler.
fn attributes(scheduler: Value) -> Attributes {
    block_on(async {
        let host = Host::new();
        let bundle = with_scheduler(&host, scheduler).args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let mut found = Attributes::default();
        let size = size_of::<Attributes>();
        // SAFETY: the kernel writes at most `size` bytes there, of numbers.
        let done = unsafe { libc::syscall(libc::SYS_sched_getattr, container.pid, &raw mut found, size, 0) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        container.end().await;
        found
    })
}

fn scheduled(scheduler: Value) -> [i64; 3] {
    scheduling(&scheduled_run(&["cat", "/proc/self/stat"], scheduler)[0])
}

/// Proves: process.scheduler.policy={SCHED_OTHER,SCHED_BATCH,SCHED_IDLE,SCHED_FIFO,SCHED_RR,SCHED_DEADLINE}
/// Proves: process.scheduler.{nice,priority}
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
/// Proves: process.scheduler.flags=SCHED_FLAG_RESET_ON_FORK
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

/// The kernel's numbers, of linux/sched.h.
///
/// Proves: process.scheduler.{runtime,deadline,period}
/// Proves: process.scheduler.flags={SCHED_FLAG_RECLAIM,SCHED_FLAG_DL_OVERRUN}
#[test]
fn a_deadline_has_its_times_and_flags() {
    let deadline = |flags: Value| {
        attributes(json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 50_000_000,
            "period": 100_000_000, "flags": flags}))
    };
    let plain = deadline(json!([]));
    assert_eq!((plain.policy, plain.runtime, plain.deadline, plain.period), (6, 1_000_000, 50_000_000, 100_000_000));
    assert_eq!(plain.flags, 0, "{plain:?}");
    assert_eq!(deadline(json!(["SCHED_FLAG_RECLAIM"])).flags, 0x02);
    // SIGXCPU at an overrun, which a process that sleeps does not have.
    assert_eq!(deadline(json!(["SCHED_FLAG_DL_OVERRUN"])).flags, 0x04);
}

/// What is kept is the shim's own, which is ordinary.
///
/// Proves: process.scheduler.flags={SCHED_FLAG_KEEP_POLICY,SCHED_FLAG_KEEP_PARAMS}
#[test]
fn policy_and_parameters_are_kept_where_that_is_asked_for() {
    let batch = |flags: Value| attributes(json!({"policy": "SCHED_BATCH", "nice": 9, "flags": flags}));
    let seen = |flags| {
        let found = batch(flags);
        (found.policy, found.nice)
    };
    assert_eq!(seen(json!([])), (3, 9));
    assert_eq!(seen(json!(["SCHED_FLAG_KEEP_POLICY"])), (0, 9));
    assert_eq!(seen(json!(["SCHED_FLAG_KEEP_PARAMS"])).1, 0);
}

/// The specification has no field for the utilization itself: it is clamped to 0. A kernel without clamps says so.
///
/// Proves: process.scheduler.flags={SCHED_FLAG_UTIL_CLAMP_MIN,SCHED_FLAG_UTIL_CLAMP_MAX}
#[test]
fn utilization_is_clamped_or_refused() {
    let has_clamps = Path::new("/proc/sys/kernel/sched_util_clamp_min").exists();
    for (flag, clamp) in [("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20), ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40)] {
        let scheduler = json!({"policy": "SCHED_OTHER", "flags": [flag]});
        if has_clamps {
            let found = attributes(scheduler);
            assert_eq!(if clamp == 0x20 { found.util_min } else { found.util_max }, 0, "{flag}: {found:?}");
        } else {
            let refusal = refused(|bundle| bundle.edit(|spec| spec["process"]["scheduler"] = scheduler));
            assert!(refusal.message.contains("sched_setattr"), "{flag}: {refusal:?}");
        }
    }
}

/// In the container's own files, with and without a share of the real time that there is.
///
/// Proves: linux.resources.cpu.{realtimeRuntime,realtimePeriod}
#[test]
fn real_time_is_shared_out_or_refused() {
    block_on(async {
        let host = Host::new();
        let cpu = json!({"realtimeRuntime": 5000, "realtimePeriod": 500_000});
        let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]});
        let script = "cat /sys/fs/cgroup/cpu/cpu.rt_runtime_us /sys/fs/cgroup/cpu/cpu.rt_period_us";
        let bundle = host.bundle("one").script(script).mount(cgroup);
        let bundle = bundle.edit(|spec| spec["linux"]["resources"]["cpu"] = cpu);
        if share_real_time(&host) {
            assert_eq!(host.run(&bundle).await.ok(), "5000\n500000\n");
        } else {
            host.refused(&bundle).await.names(Code::FAILED_PRECONDITION, &[on("cpu.rt_", "realtimeRuntime")]);
        }
    });
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
        let bundle = with_scheduler(&host, Value::Null).args(&["sleep", "1000"]);
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

/// Proves: process.ioPriority.class={IOPRIO_CLASS_BE,IOPRIO_CLASS_RT,IOPRIO_CLASS_IDLE}, process.ioPriority.priority
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

/// Proves: linux.personality.domain={LINUX,LINUX32}
#[test]
fn the_personality_is_the_domains() {
    let machine = |domain: &str| {
        run_script("uname -m", |spec| spec["linux"]["personality"] = json!({"domain": domain})).ok().trim().to_string()
    };
    assert_eq!([machine("LINUX"), machine("LINUX32")], [std::env::consts::ARCH, machine_of_32_bits()]);
}

/// Proves: domainname
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
/// Proves: process.execCPUAffinity.{initial,final}
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

/// Proves: linux.personality.flags
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
