//! A root file system whose layers have other owners than on disk: containerd's options `uidmap=` and `gidmap=`, for a
//! container in a user namespace (containerd: core/mount, prepareIDMappedOverlay).
//!
//! Each lower directory becomes an id-mapped mount (mount_setattr(2), Linux 5.12; below an overlay 5.19). overlayfs wants
//! layers that are mounted where it is mounted, so that they are in a mount namespace of the helper's own, which ends
//! with it; what leaves it is the overlay.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::mount_options::MountOptions;
use crate::sys::mount::{self, FileSystem, Mount};
use crate::sys::ns::{self, Namespace};
use crate::sys::userns;

/// What is written to /proc/PID/uid_map and gid_map.
#[derive(Debug)]
pub(super) struct IdMaps {
    uids: String,
    gids: String,
}

impl IdMaps {
    /// Takes both out of a mount's options.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no map, and for one without the other.
    pub(super) fn take(options: &mut MountOptions) -> Result<Option<Self>> {
        let mut take = |name: &str| {
            let at = options.data.iter().position(|(key, _)| key == name);
            at.and_then(|at| options.data.remove(at).1).map(|value| map(name, &value)).transpose()
        };
        match (take("uidmap")?, take("gidmap")?) {
            (None, None) => Ok(None),
            (Some(uids), Some(gids)) => Ok(Some(Self { uids, gids })),
            _ => Err(Error::new(Kind::InvalidArgument, "the options uidmap and gidmap need each other")),
        }
    }

    /// Maps the ids of a tree.
    pub(super) fn apply(&self, tree: &Mount, recursive: bool) -> Result<()> {
        tree.map_ids(userns::with_maps(&self.uids, &self.gids)?.as_fd(), recursive)
    }

    /// A detached overlay of `layers`, the top one first, whose ids are mapped. `data` are the options but for lowerdir,
    /// and `workplace` any directory that they do not lead to.
    ///
    /// Leaves the root and the working directory of the mount namespace for others.
    pub(super) fn overlay(
        &self,
        source: &str,
        layers: &[&str],
        flags: u64,
        data: &str,
        workplace: &Path,
    ) -> Result<Mount> {
        let users = userns::with_maps(&self.uids, &self.gids)?;
        let path = "/proc/self/ns/mnt";
        let home =
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).os(|| format!("open {path}"))?;
        ns::unshare(Namespace::Mount.flag())?;
        mount::propagation(Path::new("/"), libc::MS_SLAVE | libc::MS_REC)?;
        let trees = layers.iter().map(|layer| {
            let tree = Mount::clone_path(None, Path::new(layer), false)?;
            tree.map_ids(users.as_fd(), false).context(|| (*layer).to_owned())?;
            Ok(tree)
        });
        let trees = trees.collect::<Result<Vec<_>>>()?;
        let tmpfs = FileSystem::open("tmpfs")?.mount(0)?;
        let place =
            rustix::fs::openat(CWD, workplace, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        tmpfs.attach(place.os(|| format!("open {}", workplace.display()))?.as_fd())?;
        rustix::process::fchdir(&tmpfs).os(|| "fchdir tmpfs")?;
        let directory = |name: &str| {
            rustix::fs::mkdirat(&tmpfs, name, Mode::RWXU).os(|| "mkdirat")?;
            rustix::fs::openat(&tmpfs, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).os(|| "openat")
        };
        // The shortest names that there are: mount(2) takes a page of options.
        let names: Vec<_> = (0..trees.len()).map(|number| number.to_string()).collect();
        for (tree, name) in trees.iter().zip(&names) {
            tree.attach(directory(name)?.as_fd())?;
        }
        let merged = "merged";
        directory(merged)?;
        let separator = if data.is_empty() { "" } else { "," };
        let data = format!("{data}{separator}lowerdir={}", names.join(":"));
        mount::mount(source, Path::new(merged), "overlay", flags, &data)?;
        let overlay = Mount::clone_path(None, Path::new(merged), false)?;
        ns::enter(home.as_fd(), Namespace::Mount)?;
        Ok(overlay)
    }
}

/// `container:host:size`, and more of them after commas, as lines.
fn map(name: &str, value: &str) -> Result<String> {
    let wrong = || Error::new(Kind::InvalidArgument, format!("the option {name} is no map of ids: {value:?}"));
    let line = |range: &str| {
        let numbers = range.split(':').map(str::parse::<u32>).collect::<std::result::Result<Vec<_>, _>>();
        match numbers.map_err(|_| wrong())?[..] {
            [container, host, size] if size > 0 => Ok(format!("{container} {host} {size}\n")),
            _ => Err(wrong()),
        }
    };
    value.split(',').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(words: &[&str]) -> Result<Option<IdMaps>> {
        IdMaps::take(&mut MountOptions::parse(words).unwrap())
    }

    #[test]
    fn maps_are_the_kernels_lines() {
        let maps = take(&["gidmap=0:5:1", "ro", "uidmap=0:100000:65536,65536:7:1"]).unwrap().unwrap();
        assert_eq!((maps.uids.as_str(), maps.gids.as_str()), ("0 100000 65536\n65536 7 1\n", "0 5 1\n"));
        assert!(take(&["ro", "index=off"]).unwrap().is_none());
    }

    #[test]
    fn what_is_no_map_is_named() {
        for value in ["", "0", "0:1", "0:1:x", "0:1:2:3", "0:1:0", "-1:0:1", "0:1:2,", "0:4294967296:1"] {
            let error = take(&[&format!("uidmap={value}"), "gidmap=0:1:2"]).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains("uidmap") && error.to_string().contains(value), "{error}");
        }
        assert_eq!(take(&["uidmap=0:1:2"]).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
