//! cgroups: which version, which controllers, and who makes them.

use std::path::Path;

use super::absent;
use super::finding::Area::Cgroups;
use super::finding::Report;
use crate::cgroup::{Hierarchies, Version};
use crate::error::Result;
use crate::sys::bpf::{Instruction, Program};

/// What each controller is for, by its name in v1, and in v2 where that is another.
const CONTROLLERS: [(&str, &str, &str); 11] = [
    ("memory", "memory", "linux.resources.memory is refused"),
    ("cpu", "cpu", "linux.resources.cpu is refused, but for cpus and mems"),
    ("cpuset", "cpuset", "linux.resources.cpu.cpus and mems are refused"),
    ("pids", "pids", "linux.resources.pids is refused: nothing bounds the processes of a container"),
    ("blkio", "io", "linux.resources.blockIO is refused"),
    ("hugetlb", "hugetlb", "linux.resources.hugepageLimits is refused"),
    ("rdma", "rdma", "linux.resources.rdma is refused"),
    // Of v1 alone.
    ("devices", "", "linux.resources.devices is refused"),
    ("net_cls", "", "linux.resources.network.classID is refused"),
    ("net_prio", "", "linux.resources.network.priorities are refused"),
    ("freezer", "", "containers cannot be paused"),
];

/// Looks at what is mounted.
pub fn look(report: &mut Report) {
    let hierarchies = Hierarchies::discover();
    let mode = hierarchies.as_ref().map(|all| match (all.version(), all.has_unified()) {
        (Version::V2, _) => "v2",
        (Version::V1, true) => "v1 with cgroup2 beside it (hybrid)",
        (Version::V1, false) => "v1",
    });
    report.need(
        Cgroups,
        "hierarchy",
        mode.map_err(Clone::clone),
        "containers cannot be told from the rest of the host",
    );
    let Ok(hierarchies) = hierarchies else { return };
    let v2 = hierarchies.version() == Version::V2;
    let there = hierarchies.controllers();
    for (v1_name, v2_name, cost) in CONTROLLERS {
        let name = if v2 { v2_name } else { v1_name };
        let has = |all: &Vec<String>| match all.iter().any(|other| other == name) {
            true => Ok(""),
            false => Err(absent(if v2 { "not in cgroup.controllers" } else { "no hierarchy has it" })),
        };
        if !name.is_empty() {
            report.want(Cgroups, name, there.clone().and_then(|all| has(&all)), cost);
        }
    }
    if v2 {
        report.want(Cgroups, "device programs", device_program(), "linux.resources.devices is refused");
    } else {
        let unified = if hierarchies.has_unified() { Ok("") } else { Err(absent("cgroup2 is not mounted")) };
        let cost =
            "OOM kills are counted less exactly, and what is in a container's cgroup is killed process by process";
        report.want(Cgroups, "cgroup2", unified, cost);
    }
    let systemd = match Path::new("/run/systemd/system").is_dir() {
        true => Ok(""),
        false => Err(absent("/run/systemd/system is not there")),
    };
    let cost = "SystemdCgroup, --systemd-cgroup and cgroupsPath of the form slice:prefix:name are refused";
    report.want(Cgroups, "systemd", systemd, cost);
}

/// A program that allows everything, which is attached to nothing.
fn device_program() -> Result<String> {
    // r0 = 1; exit
    let program = [(0xb7, 1), (0x95, 0)];
    let program = program.map(|(code, immediate)| Instruction { code, registers: 0, offset: 0, immediate });
    Program::load(c"dray_check", &program).map(|_| String::new())
}
