//! `linux.memoryPolicy`: on which nodes a container's memory is to be (set_mempolicy(2)).

use super::number_list;
use super::validate::invalid;
use crate::error::Result;
use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode};

/// How many nodes a mode takes.
#[derive(Clone, Copy, PartialEq)]
enum Nodes {
    None,
    Any,
    Some,
}

/// The modes, with linux/mempolicy.h's numbers. That of MPOL_PREFERRED_MANY is known from Linux 5.15 on, that of
/// MPOL_WEIGHTED_INTERLEAVE from 6.9 on.
const MODES: [(Mode, u32, Nodes); 7] = [
    (Mode::MpolDefault, 0, Nodes::None),
    (Mode::MpolPreferred, 1, Nodes::Any),
    (Mode::MpolBind, 2, Nodes::Some),
    (Mode::MpolInterleave, 3, Nodes::Some),
    (Mode::MpolLocal, 4, Nodes::None),
    (Mode::MpolPreferredMany, 5, Nodes::Some),
    (Mode::MpolWeightedInterleave, 6, Nodes::Some),
];

const STATIC_NODES: u32 = 1 << 15;
const RELATIVE_NODES: u32 = 1 << 14;
const NUMA_BALANCING: u32 = 1 << 13;

/// The flags, which go into the mode's number.
const FLAGS: [(Flag, u32); 3] = [
    (Flag::MpolFStaticNodes, STATIC_NODES),
    (Flag::MpolFRelativeNodes, RELATIVE_NODES),
    (Flag::MpolFNumaBalancing, NUMA_BALANCING),
];

/// What set_mempolicy(2) is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// MPOL_* with MPOL_F_*.
    pub mode: u32,
    /// The nodes, as words of a bit mask.
    pub nodes: Vec<u64>,
}

/// The modes that there are, by name.
pub fn modes() -> impl Iterator<Item = String> {
    MODES.iter().map(|(mode, ..)| mode.to_string())
}

/// The flags that there are, by name.
pub fn flags() -> impl Iterator<Item = String> {
    FLAGS.iter().map(|(flag, _)| flag.to_string())
}

/// The numbers, by the rules of set_mempolicy(2). Whether the nodes are there is the kernel's to say.
///
/// # Errors
/// `InvalidArgument` with the field's name.
pub fn memory_policy(spec: &LinuxMemoryPolicy) -> Result<MemoryPolicy> {
    let mode = spec.mode();
    let Some((_, number, takes)) = MODES.iter().find(|(known, ..)| *known == mode) else {
        return Err(invalid(format!("linux.memoryPolicy.mode is not known: {mode}")));
    };
    let asked = spec.flags().iter().flatten();
    let flags =
        FLAGS.iter().filter(|(flag, _)| asked.clone().any(|asked| asked == flag)).fold(0, |bits, (_, bit)| bits | bit);
    let nodes = spec.nodes().as_deref().filter(|nodes| !nodes.is_empty());
    let nodes = nodes.map(|nodes| number_list::mask("linux.memoryPolicy.nodes", nodes)).transpose()?;
    match (takes, &nodes) {
        (Nodes::None, Some(_)) => return Err(invalid(format!("linux.memoryPolicy.nodes: {mode} takes none"))),
        (Nodes::Some, None) => return Err(invalid(format!("linux.memoryPolicy.nodes: {mode} needs some"))),
        _ => {}
    }
    let flag_rule = |broken: bool, why: &str| match broken {
        true => Err(invalid(format!("linux.memoryPolicy.flags: {why}"))),
        false => Ok(()),
    };
    let nodes_flags = STATIC_NODES | RELATIVE_NODES;
    flag_rule(flags & nodes_flags == nodes_flags, "nodes are static or relative, not both")?;
    flag_rule(flags & nodes_flags != 0 && nodes.is_none(), "there are no nodes to be static or relative")?;
    flag_rule(
        flags & NUMA_BALANCING != 0 && !matches!(mode, Mode::MpolBind | Mode::MpolPreferredMany),
        "MPOL_F_NUMA_BALANCING is for MPOL_BIND and MPOL_PREFERRED_MANY",
    )?;
    Ok(MemoryPolicy { mode: number | flags, nodes: nodes.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn judge(document: Value) -> Result<MemoryPolicy> {
        memory_policy(&serde_json::from_value(document).unwrap())
    }

    #[test]
    fn the_numbers_are_the_kernels() {
        let nodes = [None, Some("0"), Some("0"), Some("0"), None, Some("0"), Some("0")];
        for (number, (mode, nodes)) in modes().zip(nodes).enumerate() {
            let policy = judge(json!({ "mode": mode, "nodes": nodes })).unwrap();
            assert_eq!((policy.mode, policy.nodes.len()), (number as u32, usize::from(nodes.is_some())), "{mode}");
        }
        assert_eq!(modes().nth(2).as_deref(), Some("MPOL_BIND"));
        let all = json!(["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING"]);
        let policy = judge(json!({ "mode": "MPOL_BIND", "nodes": "1,1025", "flags": all })).unwrap();
        assert_eq!((policy.mode, policy.nodes[0], policy.nodes[16], policy.nodes.len()), (0xa002, 2, 2, 17));
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        for (mode, nodes, flags, words) in [
            ("MPOL_DEFAULT", "0", json!([]), "nodes: MPOL_DEFAULT takes none"),
            ("MPOL_LOCAL", "0", json!([]), "nodes: MPOL_LOCAL takes none"),
            ("MPOL_BIND", "", json!([]), "nodes: MPOL_BIND needs some"),
            ("MPOL_INTERLEAVE", "x", json!([]), "nodes is not a list"),
            ("MPOL_BIND", "0", json!(["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]), "not both"),
            ("MPOL_PREFERRED", "", json!(["MPOL_F_STATIC_NODES"]), "no nodes"),
            ("MPOL_INTERLEAVE", "0", json!(["MPOL_F_NUMA_BALANCING"]), "MPOL_F_NUMA_BALANCING is for"),
        ] {
            let error = judge(json!({ "mode": mode, "nodes": nodes, "flags": flags })).unwrap_err().to_string();
            assert!(error.starts_with("linux.memoryPolicy.") && error.contains(words), "{error}");
        }
    }
}
