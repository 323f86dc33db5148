//! linux.memoryPolicy: the policy that the kernel shows of a process's memory, of init and of execs.

use common::container::{Host, refused, run};
use common::{block_on, linux, skipped};
use serde_json::{Value, json};
use ttrpc::Code;

/// The second column of /proc/self/numa_maps, the same for all memory without a policy of its own.
const POLICY: [&str; 3] = ["sed", r"s/^[0-9a-f]* \([^ ]*\).*/\1/;q", "/proc/self/numa_maps"];

fn has_numa(name: &str) -> bool {
    let has = std::path::Path::new("/proc/self/numa_maps").exists();
    if !has {
        skipped(name, "this kernel has no memory policies");
    }
    has
}

fn seen(policy: Value) -> String {
    run(|bundle| bundle.args(&POLICY).edit(|spec| spec["linux"]["memoryPolicy"] = policy)).ok().trim().to_string()
}

/// Proves: linux.memoryPolicy.mode={MPOL_DEFAULT,MPOL_LOCAL,MPOL_BIND,MPOL_INTERLEAVE,MPOL_PREFERRED}
/// Proves: linux.memoryPolicy.nodes, linux.memoryPolicy.flags=MPOL_F_STATIC_NODES
#[test]
fn memory_is_of_the_specifications_policy() {
    if !has_numa("memory_is_of_the_specifications_policy") {
        return;
    }
    assert_eq!(seen(Value::Null), "default");
    assert_eq!(seen(json!({"mode": "MPOL_DEFAULT"})), "default");
    assert_eq!(seen(json!({"mode": "MPOL_LOCAL"})), "local");
    for (mode, name) in [("MPOL_BIND", "bind"), ("MPOL_INTERLEAVE", "interleave"), ("MPOL_PREFERRED", "prefer")] {
        assert_eq!(seen(json!({"mode": mode, "nodes": "0"})), format!("{name}:0"));
    }
    // Nodes that are not there are left out.
    let flags = json!(["MPOL_F_STATIC_NODES"]);
    assert_eq!(seen(json!({"mode": "MPOL_BIND", "nodes": "0,1023", "flags": flags})), "bind=static:0");
}

/// Of a kernel that knows them; those that do not say so (5.15 and 6.9 brought the modes, 5.12 the flag).
///
/// Proves: linux.memoryPolicy.mode={MPOL_PREFERRED_MANY,MPOL_WEIGHTED_INTERLEAVE}
/// Proves: linux.memoryPolicy.flags={MPOL_F_RELATIVE_NODES,MPOL_F_NUMA_BALANCING}
#[test]
fn later_modes_and_flags_are_the_kernels() {
    if !has_numa("later_modes_and_flags_are_the_kernels") {
        return;
    }
    let bind = |flag: &str| json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]});
    for (policy, since, shown) in [
        (json!({"mode": "MPOL_PREFERRED_MANY", "nodes": "0"}), (5, 15), &["prefer (many):0"] as &[&str]),
        (json!({"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0"}), (6, 9), &["weighted interleave:0"]),
        (bind("MPOL_F_RELATIVE_NODES"), (5, 10), &["bind=relative:0"]),
        // Not every kernel that has it shows it.
        (bind("MPOL_F_NUMA_BALANCING"), (5, 12), &["bind=balancing:0", "bind:0"]),
    ] {
        if linux() >= since {
            let policy = policy.clone();
            let seen = numa_maps(policy);
            assert!(shown.iter().any(|shown| seen.contains(&format!(" {shown} "))), "{shown:?}: {seen}");
        } else {
            let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["memoryPolicy"] = policy));
            refusal.names(Code::INVALID_ARGUMENT, &["linux.memoryPolicy", "set_mempolicy"]);
        }
    }
}

/// The first line that the kernel shows: a mode's name may have blanks.
fn numa_maps(policy: Value) -> String {
    let command = ["head", "-n1", "/proc/self/numa_maps"];
    run(|bundle| bundle.args(&command).edit(|spec| spec["linux"]["memoryPolicy"] = policy)).ok()
}

#[test]
fn an_exec_has_the_containers_memory_policy() {
    if !has_numa("an_exec_has_the_containers_memory_policy") {
        return;
    }
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]);
        let bundle = bundle.edit(|spec| spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"}));
        let container = host.start(&bundle).await;
        assert_eq!(container.exec("a", &bundle.process(&POLICY)).await.ok(), "bind:0\n");
        container.end().await;
    });
}

#[test]
fn a_policy_that_cannot_be_is_refused() {
    for (policy, words) in [
        (json!({"mode": "MPOL_BIND"}), ["linux.memoryPolicy.nodes", "needs some"]),
        (json!({"mode": "MPOL_ELSEWHERE"}), ["linux.memoryPolicy.mode", "MPOL_ELSEWHERE"]),
        // As many as there can be, and none of them there.
        (json!({"mode": "MPOL_BIND", "nodes": "32000"}), ["linux.memoryPolicy", "set_mempolicy"]),
    ] {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["linux"]["memoryPolicy"] = policy));
        refusal.names(Code::INVALID_ARGUMENT, &words);
    }
}
