//! Where a container's cgroup is: the rules of `linux.cgroupsPath`. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::systemd::Unit;
use crate::error::{Error, Kind, Result};

/// Where a container's cgroup is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A cgroup that we make, by its path from the root of every hierarchy.
    Path(PathBuf),
    /// One that systemd makes, for a unit.
    Unit(Unit),
}

/// The place of the container `id` by its `cgroupsPath`: systemd's where that has its form, `slice:prefix:name`, or
/// where `by_systemd` is asked for, which takes that form alone.
///
/// # Errors
/// Those of [`cgroup_path`] and [`Unit::parse`].
pub fn place(cgroups_path: Option<&Path>, id: &str, by_systemd: bool, default_slice: &str) -> Result<Place> {
    let given = cgroups_path.filter(|path| !path.as_os_str().is_empty());
    match given {
        Some(path) if by_systemd || is_systemd(path.as_os_str()) => {
            let text = path.to_str().ok_or_else(|| invalid(path, "not UTF-8"))?;
            let unit = Unit::parse(text, default_slice);
            let why = "SystemdCgroup is set in the runtime options, and so it is not a path";
            unit.map(Place::Unit).map_err(|e| if is_systemd(path.as_os_str()) { e } else { e.context(why) })
        }
        None if by_systemd => Unit::of_id(id, default_slice).map(Place::Unit),
        given => cgroup_path(given, id).map(Place::Path),
    }
}

/// The cgroup of the container `id`, as an absolute path from the root of every hierarchy as it is mounted.
///
/// Without `cgroupsPath` (or with an empty one) it is `/<id>`, runc's choice. The runtime specification leaves to the
/// runtime what a relative path is relative to: here, the root, so that a path means the same cgroup wherever the
/// caller itself lives.
///
/// # Errors
/// `InvalidArgument` for the root, for `..`, and for names that no cgroup can have.
fn cgroup_path(cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf> {
    let given = match cgroups_path {
        Some(path) => path,
        None if id.contains('/') => return Err(invalid(Path::new(id), "a container id is one name")),
        None => Path::new(id),
    };
    let mut path = PathBuf::from("/");
    for component in given.components() {
        match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => return Err(invalid(given, "\"..\" is not allowed")),
            Component::Normal(name) => {
                // mkdir would refuse these too, but with an EINVAL that says nothing, and after the first effects.
                if name.len() > 255 || name.as_bytes().iter().any(|b| matches!(b, b'\n' | 0)) {
                    return Err(invalid(given, "no cgroup can have this name"));
                }
                path.push(name);
            }
        }
    }
    if path == Path::new("/") {
        return Err(invalid(given, "the root cgroup belongs to no container"));
    }
    Ok(path)
}

/// `slice:prefix:name`: containerd, nerdctl and docker send it whenever the parent is a slice, whatever the runtime's
/// options say.
fn is_systemd(path: &OsStr) -> bool {
    let parts: Vec<&[u8]> = path.as_bytes().split(|b| *b == b':').collect();
    parts.len() == 3 && parts[0].ends_with(b".slice")
}

fn invalid(path: &Path, why: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("cgroupsPath {:?}: {why}", path.as_os_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(given: &str) -> Result<PathBuf> {
        match place(Some(Path::new(given)), "id", false, "system.slice")? {
            Place::Path(path) => Ok(path),
            Place::Unit(unit) => panic!("{unit:?}"),
        }
    }

    #[test]
    fn no_path_is_the_id_at_the_root() {
        assert_eq!(cgroup_path(None, "abc").unwrap(), Path::new("/abc"));
        assert_eq!(path("").unwrap(), Path::new("/id"));
        assert_eq!(cgroup_path(None, "a/b").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(cgroup_path(None, "..").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(cgroup_path(None, "").unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn absolute_and_relative_are_taken_from_the_root() {
        assert_eq!(path("/default/abc").unwrap(), Path::new("/default/abc"));
        assert_eq!(path("default//./abc/").unwrap(), Path::new("/default/abc"));
        assert_eq!(path("/a:b/c").unwrap(), Path::new("/a:b/c"));
        assert_eq!(path("/kube.slice/x:y:z").unwrap(), Path::new("/kube.slice/x:y:z"));
    }

    #[test]
    fn root_and_escapes_are_refused() {
        for bad in ["/", "//", ".", "/..", "a/../..", "/a/../b", "..", "/a\nb", "/a\0b", &"x".repeat(256)] {
            assert_eq!(path(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn the_systemd_form_is_a_unit() {
        let unit = |given: &str, forced| match place(Some(Path::new(given)), "id", forced, "system.slice") {
            Ok(Place::Unit(unit)) => Ok(format!("{} {}", unit.slice, unit.name)),
            Ok(Place::Path(path)) => panic!("{path:?}"),
            Err(e) => Err(e),
        };
        assert_eq!(unit("a.slice:cri-containerd:abc", false).unwrap(), "a.slice cri-containerd-abc.scope");
        assert_eq!(unit(":cri:abc", true).unwrap(), "system.slice cri-abc.scope");
        assert_eq!(unit("", true).unwrap(), "system.slice dray-id.scope");
        // Two colons alone do not make it one.
        assert!(path("system:cri:abc").is_ok());
        for (given, forced) in [("a--b.slice:cri:abc", false), ("/a/b", true), ("a:b:c", true)] {
            let error = unit(given, forced).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{given}");
            assert!(error.to_string().contains(given), "{error}");
            assert_eq!(error.to_string().contains("SystemdCgroup"), forced, "{error}");
        }
    }
}
