//! cgroup2's controllers: a cgroup has those that each one above it hands down.

use std::path::Path;

use rustix::fs::CWD;

use super::file;
use super::hierarchy::Hierarchy;
use super::rootless::is_denied;
use crate::error::{Os, Result};

/// Hands down to the cgroup `path` every controller that the root of `unified` has. Who is `rootless` may not above what
/// it has been given, where it finds them enabled or does without.
///
/// # Errors
/// What the kernel says: EBUSY where a cgroup above has processes of its own.
pub(super) fn enable_above(unified: &Hierarchy, path: &Path, rootless: bool) -> Result<()> {
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
            match file::write(&dir, "cgroup.subtree_control", &missing.join(" ")) {
                Err(e) if rootless && is_denied(&e) => {}
                written => written?,
            }
        }
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}
