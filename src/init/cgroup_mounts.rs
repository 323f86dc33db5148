//! Mounts of the container's own cgroups: the types `cgroup` and `cgroup2`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::label::CONTEXT;
use super::mounts::{Place, propagate, refuse_by_link, refuse_in_proc};
use super::plan::{CgroupHierarchy, MountPlan, UnifiedCgroup};
use crate::error::{Context, Os, Result};
use crate::sys::mount::{FileSystem, Mount};
use crate::sys::path::Root;

/// What no mount of a cgroup hierarchy is without.
const HIDDEN: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// A tmpfs with a directory for each hierarchy, as runc makes it: in a cgroup namespace of the container's own, the
/// hierarchy as that shows it; else the container's own directory of the host's.
///
/// The unified directory of a hybrid host is not among them, as with runc: it has no controllers there, and its
/// cgroup.kill is how the container is ended.
pub(super) fn cgroup_v1(place: &Place<'_>, plan: &MountPlan, hierarchies: &[CgroupHierarchy]) -> Result<()> {
    let root = place.root;
    let target = root.mkdir_all(&plan.destination)?;
    refuse_by_link(root, plan, &target)?;
    refuse_in_proc(plan, &target, false)?;
    let fs = FileSystem::open("tmpfs")?;
    fs.set("source", Some("tmpfs"))?;
    fs.set("mode", Some("755"))?;
    for (key, value) in plan.options.data.iter().filter(|(key, _)| key == CONTEXT) {
        fs.set(key, value.as_deref())?;
    }
    let attrs = plan.options.top();
    let top = fs.mount(HIDDEN)?;
    place.on(&target, || top.attach(target.as_fd()))?;
    let top_root = Root::from_fd(Mount::from(rustix::io::dup(&top).os(|| "dup")?).into());
    for hierarchy in hierarchies {
        let directory = top_root.mkdir_all(Path::new(&hierarchy.name))?;
        let mount = match &hierarchy.options {
            Some(options) => {
                let fs = FileSystem::open("cgroup")?;
                fs.set("source", Some("cgroup"))?;
                for (key, value) in options {
                    fs.set(key, value.as_deref())?;
                }
                fs.mount(HIDDEN | attrs.set)?
            }
            None => Mount::clone_path(None, &hierarchy.directory, false)?,
        };
        mount.attach_with(directory.as_fd(), HIDDEN | attrs.set, 0).context(|| hierarchy.name.clone())?;
        for link in &hierarchy.links {
            rustix::fs::symlinkat(hierarchy.name.as_str(), &top_root, link.as_str())
                .os(|| format!("symlink {link}"))?;
        }
    }
    top.restrict(attrs.set, attrs.clear)?;
    propagate(&top, &plan.options)
}

/// The unified hierarchy: in a cgroup namespace of the container's own as that shows it, else as the host has it, which the
/// paths in /proc/PID/cgroup are of; read-only then, but for the container's own directory where the mount is not.
pub(super) fn cgroup2(place: &Place<'_>, plan: &MountPlan, unified: &UnifiedCgroup) -> Result<()> {
    let root = place.root;
    let target = root.mkdir_all(&plan.destination)?;
    refuse_by_link(root, plan, &target)?;
    refuse_in_proc(plan, &target, false)?;
    let attrs = HIDDEN | plan.options.top().set;
    if !unified.own_namespace {
        return cgroup2_of_host(place, plan, unified, &target);
    }
    let mount = match new_cgroup2(plan, attrs) {
        // Where the kernel does not give it to this user namespace, the same by another way.
        Err(e) if matches!(e.errno(), Some(libc::EPERM | libc::EBUSY)) => {
            let mount = Mount::clone_path(None, &unified.directory, false)?;
            place.on(&target, || mount.attach_with(target.as_fd(), attrs, 0))?;
            mount
        }
        mount => {
            let mount = mount?;
            place.on(&target, || mount.attach(target.as_fd()))?;
            mount
        }
    };
    propagate(&mount, &plan.options)
}

/// Seen from the cgroup namespace of whoever mounts it. In the host's own that would be more than a look: its options are
/// those of the one hierarchy, and without them delegation (nsdelegate) would be switched off for all.
fn new_cgroup2(plan: &MountPlan, attrs: u64) -> Result<Mount> {
    let fs = FileSystem::open("cgroup2")?;
    fs.set("source", Some("cgroup"))?;
    for (key, value) in plan.options.data.iter().filter(|(key, _)| key != CONTEXT) {
        fs.set(key, value.as_deref())?;
    }
    fs.mount(attrs)
}

fn cgroup2_of_host(place: &Place<'_>, plan: &MountPlan, unified: &UnifiedCgroup, target: &OwnedFd) -> Result<()> {
    let attrs = HIDDEN | plan.options.top().set;
    let tree = Mount::clone_path(None, &unified.mount, false)?;
    place.on(target, || tree.attach_with(target.as_fd(), attrs | libc::MOUNT_ATTR_RDONLY, 0))?;
    if attrs & libc::MOUNT_ATTR_RDONLY == 0 {
        let own = Mount::clone_path(None, &unified.directory, false)?;
        // Its peers, if any, are the host's.
        tree.propagate(libc::MS_PRIVATE, false)?;
        let inside = Root::from_fd(rustix::io::dup(&tree).os(|| "dup")?);
        let directory = inside.resolve_no_links(unified.path.strip_prefix("/").unwrap_or(&unified.path))?;
        own.attach_with(directory.as_fd(), attrs, 0).context(|| unified.path.display().to_string())?;
        propagate(&own, &plan.options)?;
    }
    propagate(&tree, &plan.options)
}
