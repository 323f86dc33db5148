//! A container's cgroup, whichever version the hierarchy is of that limits it, and whoever made it.
//!
//! Names, values and meanings differ between cgroup v1 and v2; `on` has both, so that one test looks at either.

use std::fs;
use std::path::{Path, PathBuf};

use super::containerd::cgroup_hierarchies;

/// Whether the unified hierarchy has the controllers: no v1 hierarchy has one.
pub fn is_v2() -> bool {
    let named = |controllers: &[String]| controllers.iter().any(|name| name.starts_with("name="));
    let v1 = |(_, controllers): &(PathBuf, Vec<String>)| *controllers != [""] && !named(controllers);
    !cgroup_hierarchies().iter().any(v1)
}

/// What this is with cgroup v1, and with v2.
pub fn on<T>(v1: T, v2: T) -> T {
    if is_v2() { v2 } else { v1 }
}

/// Says that a test cannot run where there is cgroup v2, and returns whether that is so.
pub fn skipped_on_v2(name: &str, why: &str) -> bool {
    if is_v2() {
        super::skipped(name, why);
    }
    is_v2()
}

/// Says that a test cannot run where there is cgroup v1, and returns whether that is so.
pub fn skipped_on_v1(name: &str, why: &str) -> bool {
    if !is_v2() {
        super::skipped(name, why);
    }
    !is_v2()
}

/// Whether containers are made as scopes by systemd (DRAY_CGROUP_DRIVER=systemd), not by paths.
pub fn by_systemd() -> bool {
    std::env::var_os("DRAY_CGROUP_DRIVER").is_some_and(|driver| driver == "systemd")
}

/// The `linux.cgroupsPath` of a container in the cgroups of this containerd namespace.
pub fn cgroups_path(namespace: &str, id: &str) -> String {
    match by_systemd() {
        // The name of a scope is one for the whole system, so its prefix is the namespace.
        true => format!("{namespace}.slice:{namespace}:{id}"),
        false => format!("/{namespace}/{id}"),
    }
}

/// The cgroup in which the containers of this namespace are.
pub fn parent_of(namespace: &str) -> PathBuf {
    if by_systemd() { slice(&format!("{namespace}.slice")) } else { PathBuf::from(namespace) }
}

/// The path below a hierarchy's mount of a `linux.cgroupsPath`: "/a/b" is "a/b", and "a-b.slice:c:d" is
/// "a.slice/a-b.slice/c-d.scope".
pub fn path_of(cgroups_path: &str) -> PathBuf {
    match cgroups_path.split(':').collect::<Vec<_>>()[..] {
        [parent, prefix, name] => slice(parent).join(format!("{prefix}-{name}.scope")),
        _ => PathBuf::from(cgroups_path.trim_start_matches('/')),
    }
}

/// A slice is below that of its name up to the last dash, systemd.slice(5).
fn slice(name: &str) -> PathBuf {
    let stem = name.trim_end_matches(".slice");
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("{}.slice", &stem[..end])).collect()
}

/// The file of this name in whichever of these directories, a container's in each hierarchy, has it.
#[track_caller]
pub fn file(dirs: &[PathBuf], name: &str) -> PathBuf {
    let path = dirs.iter().map(|dir| dir.join(name)).find(|path| path.exists());
    path.unwrap_or_else(|| panic!("no {name} in {dirs:?}"))
}

/// The content of a file, without the end of its last line.
#[track_caller]
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_string()
}

/// The number in a line of a file such as memory.stat or cpu.stat.
#[track_caller]
pub fn number_of(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {key} in {text}"))
}
