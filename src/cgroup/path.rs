//! Where a container's cgroup is: the rules of `linux.cgroupsPath`. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The cgroup of the container `id`, as an absolute path from the root of every hierarchy as it is mounted.
///
/// Without `cgroupsPath` (or with an empty one) it is `/<id>`, runc's choice. The runtime specification leaves to the
/// runtime what a relative path is relative to: here, the root, so that a path means the same cgroup wherever the
/// caller itself lives.
///
/// # Errors
/// `InvalidArgument` for the root, for `..`, and for names that no cgroup can have; `Unimplemented` for systemd's
/// `slice:prefix:name`.
pub fn cgroup_path(cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf> {
    let given = match cgroups_path {
        Some(path) if !path.as_os_str().is_empty() => path,
        _ if id.contains('/') => return Err(invalid(Path::new(id), "a container id is one name")),
        _ => Path::new(id),
    };
    if is_systemd(given.as_os_str()) {
        return Err(Error::new(
            Kind::Unimplemented,
            format!("cgroupsPath {}: the systemd cgroup driver is not offered by this build", given.display()),
        ));
    }
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
        cgroup_path(Some(Path::new(given)), "id")
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
    fn the_systemd_form_is_refused_by_name() {
        let e = path("system.slice:cri-containerd:abc").unwrap_err();
        assert_eq!(e.kind(), Kind::Unimplemented);
        assert!(e.to_string().contains("systemd"), "{e}");
        // Two colons alone do not make it one.
        assert!(path("system:cri:abc").is_ok());
    }
}
