//! cgroup2's controllers: a cgroup has those that each one above it hands down.

use std::path::Path;

use rustix::fs::CWD;

use super::file;
use super::hierarchy::Hierarchy;
use crate::error::{Os, Result};

/// Hands down to the cgroup `path` every controller that the root of `unified` has.
///
/// # Errors
/// What the kernel says: EBUSY where a cgroup above has processes of its own.
pub(super) fn enable_above(unified: &Hierarchy, path: &Path) -> Result<()> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    let mut buf = Vec::new();
    while let Some(level) = above.pop() {
        let dir = unified.dir(level);
        let name = dir.join("cgroup.controllers");
        let has: Vec<String> = words(file::read(CWD, &name, &mut buf).os(|| format!("read {}", name.display()))?);
        let name = dir.join("cgroup.subtree_control");
        let hands_down = words(file::read(CWD, &name, &mut buf).os(|| format!("read {}", name.display()))?);
        let missing: Vec<String> = has.iter().filter(|c| !hands_down.contains(c)).map(|c| format!("+{c}")).collect();
        if !missing.is_empty() {
            file::write(&dir, "cgroup.subtree_control", &missing.join(" "))?;
        }
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}
