//! cgroup2's controllers: a cgroup has those that each one above it hands down. And the types of cgroups, which that
//! depends on (Linux: cgroup-v2.rst, "Controlling Controllers" and "Threads").
//!
//! A cgroup that has processes of its own hands down nothing, but for controllers that can tell threads apart: what is
//! below it is of one threaded tree with it then.

use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::file;
use super::hierarchy::Hierarchy;
use crate::error::{Os, Result};

/// Those that a threaded cgroup can have.
const THREADED: [&str; 4] = ["cpu", "cpuset", "perf_event", "pids"];

const CONTROLLERS: &str = "cgroup.controllers";
const SUBTREE: &str = "cgroup.subtree_control";
const TYPE: &str = "cgroup.type";

/// Hands down to the cgroup `path` what the cgroups above it have, as far as they can without a change of their type, and
/// as far as the caller may: one that hands down all that it has is not written to. What a container cannot do without is
/// asked for by [`require`].
///
/// # Errors
/// For a cgroup that cannot be read; not for a controller that is not to be had.
pub(super) fn enable_above(unified: &Hierarchy, path: &Path) -> Result<()> {
    for dir in above(unified, path) {
        let hands_down = words(&dir, SUBTREE)?;
        let missing: Vec<String> = words(&dir, CONTROLLERS)?.into_iter().filter(|c| !hands_down.contains(c)).collect();
        if missing.is_empty() {
            continue;
        }
        let all: Vec<String> = missing.iter().map(|controller| format!("+{controller}")).collect();
        match hand_down(&dir, &all.join(" ")) {
            // It has processes: handed down one by one, those for threads would make what is below a part of its tree.
            Ok(()) | Err(Errno::BUSY) => {}
            // One of them that this kernel does not let go down at this time (cpu, while there are realtime processes).
            Err(_) => all.iter().for_each(|one| hand_down(&dir, one).unwrap_or_default()),
        }
    }
    Ok(())
}

/// Sees to it that the cgroup `path`, which has no processes yet, has all of `controllers`. Where one above it has processes
/// of its own, and all of them can be had by threads, it becomes a threaded one.
///
/// # Errors
/// As [`enable_above`]. `Ok(Some)` is the first that is not to be had, and why: with the cgroup where it stops.
pub(super) fn require<'c>(
    unified: &Hierarchy,
    path: &Path,
    controllers: &[&'c str],
) -> Result<Option<(&'c str, String)>> {
    let has = words(&unified.dir(path), CONTROLLERS)?;
    let threaded = controllers.iter().all(|controller| THREADED.contains(controller));
    for controller in controllers.iter().filter(|controller| !has.iter().any(|c| c == **controller)) {
        let why = match bring_down(unified, path, controller, threaded)? {
            None => make_usable(unified, path)?,
            why => why,
        };
        if let Some(why) = why {
            return Ok(Some((controller, why)));
        }
    }
    Ok(None)
}

fn bring_down(unified: &Hierarchy, path: &Path, controller: &str, threaded: bool) -> Result<Option<String>> {
    for dir in above(unified, path) {
        let place = || format!("cgroup {}", dir.display());
        if !words(&dir, CONTROLLERS)?.iter().any(|c| c == controller) {
            let why =
                if is_threaded(&dir)? { ", which is of a threaded tree, cannot have it" } else { " does not have it" };
            return Ok(Some(place() + why));
        }
        if words(&dir, SUBTREE)?.iter().any(|c| c == controller) {
            continue;
        }
        if !threaded && THREADED.contains(&controller) && has_processes(&dir)? && !path_is_root(&dir, unified) {
            // It would be handed down, and what is below could then have nothing else.
            return Ok(Some(place() + NO_INTERNAL));
        }
        match hand_down(&dir, &format!("+{controller}")) {
            Ok(()) => {}
            Err(Errno::BUSY) => return Ok(Some(place() + NO_INTERNAL)),
            Err(Errno::OPNOTSUPP) => return Ok(Some(place() + " is of a threaded tree")),
            Err(e) => return Ok(Some(format!("{} does not hand it down: {e}", place()))),
        }
    }
    Ok(None)
}

const NO_INTERNAL: &str = " has processes of its own, and so hands down none";

/// A cgroup below a threaded one takes no process before it is made threaded too; so are those between, if need be. Says
/// why, where that cannot be.
pub(super) fn make_usable(unified: &Hierarchy, path: &Path) -> Result<Option<String>> {
    let mut buf = Vec::new();
    let leaf = unified.dir(path);
    // Which is nearly always so.
    if !kind(&leaf, &mut buf)?.contains("invalid") {
        return Ok(None);
    }
    for dir in above(unified, path).skip(1).chain([leaf]) {
        if !kind(&dir, &mut buf)?.contains("invalid") {
            continue;
        }
        match file::open_write(CWD, dir.join(TYPE)).and_then(|fd| file::write_fd(fd, "threaded")) {
            Ok(()) => {}
            Err(e) => {
                return Ok(Some(format!("cgroup {} is below a threaded one, and cannot be one: {e}", dir.display())));
            }
        }
    }
    Ok(None)
}

/// Whether what is in the cgroup is elsewhere: it hands controllers down, and takes no process for itself.
pub(super) fn is_divided(unified: &Hierarchy, path: &Path) -> Result<bool> {
    let mut buf = Vec::new();
    let file = unified.dir(path).join(SUBTREE);
    match file::read(CWD, &file, &mut buf) {
        Ok(text) => Ok(!text.trim().is_empty()),
        Err(Errno::NOENT | Errno::NODEV) => Ok(false),
        Err(e) => Err(e).os(|| format!("read {}", file.display())),
    }
}

/// What the top of the hierarchy has, as it is mounted: no cgroup can have more.
pub(super) fn of_top(unified: &Hierarchy) -> Result<Vec<String>> {
    words(&unified.mount, CONTROLLERS)
}

/// The directories above `path`, the root's first.
fn above(unified: &Hierarchy, path: &Path) -> impl Iterator<Item = PathBuf> {
    let above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.into_iter().rev().map(|level| unified.dir(level))
}

fn path_is_root(dir: &Path, unified: &Hierarchy) -> bool {
    dir == unified.dir(Path::new("/"))
}

fn hand_down(dir: &Path, controllers: &str) -> rustix::io::Result<()> {
    file::write_fd(file::open_write(CWD, dir.join(SUBTREE))?, controllers)
}

fn has_processes(dir: &Path) -> Result<bool> {
    let mut buf = Vec::new();
    match file::read(CWD, dir.join("cgroup.procs"), &mut buf) {
        Ok(text) => Ok(!text.is_empty()),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e).os(|| format!("read {}", dir.join("cgroup.procs").display())),
    }
}

fn is_threaded(dir: &Path) -> Result<bool> {
    let mut buf = Vec::new();
    kind(dir, &mut buf).map(|kind| kind.contains("threaded"))
}

/// `domain`, `domain threaded`, `domain invalid`, `threaded`; empty for the root.
fn kind<'b>(dir: &Path, buf: &'b mut Vec<u8>) -> Result<&'b str> {
    super::read_or_gone(&dir.join(TYPE), buf).map(str::trim_end)
}

fn words(dir: &Path, name: &str) -> Result<Vec<String>> {
    let mut buf = Vec::new();
    let file = dir.join(name);
    let text = file::read(CWD, &file, &mut buf).os(|| format!("read {}", file.display()))?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}
