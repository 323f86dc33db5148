//! What a container in a user namespace needs of the host and may not reach itself: its root file system, the sources of
//! its bind mounts, and devices.
//!
//! The child is nobody to the host from the moment that it is root of its user namespace: it may not pass through the
//! directories that lead to a bundle or a volume, and mknod(2) is refused. A helper of the shim's opens them for it, with
//! the host's credentials but in the child's mount namespace: what is copied from there keeps the flags that the host has
//! given it (nosuid, nodev, ro and the like) locked, so that the container cannot clear them (mount_namespaces(7)).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::id_map::IdMaps;
use crate::sys::mount::{self, FileSystem, Mount};
use crate::sys::path::{self, Root};

use super::devices::host_node;
use super::mounts;
use super::plan::{Create, Device, Mapped, Source, Work};
use super::steps::Born;
use super::sync::ParentEnd;

/// What is to be opened, in the order in which the child takes it.
#[derive(Debug)]
pub struct Sources {
    rootfs: PathBuf,
    binds: Vec<Bind>,
    /// Their owners are the host's ids.
    devices: Vec<Device>,
    /// They are the host's, bound.
    host_devices: bool,
}

#[derive(Debug)]
struct Bind {
    destination: PathBuf,
    source: PathBuf,
    recursive: bool,
    mapped: Option<Mapped>,
}

/// What has come.
#[derive(Debug, Default)]
pub struct Received(VecDeque<OwnedFd>);

impl Received {
    /// The next one.
    pub fn take(&mut self) -> Result<OwnedFd> {
        self.0.pop_front().ok_or_else(|| Error::new(Kind::Internal, "the shim has sent too few sources"))
    }
}

/// True for a device that only the host can make.
pub fn is_made_by_host(device: &Device) -> bool {
    device.kind != FileType::Fifo
}

impl Sources {
    /// Those of a container in a user namespace with these maps; `None` for one that has no mounts of its own.
    ///
    /// # Errors
    /// When a device's owner is not mapped, which validation sees to.
    pub fn of(create: &Create, maps: &IdMaps) -> Result<Option<Self>> {
        let Some(rootfs) = &create.rootfs else { return Ok(None) };
        let bind = |mount: &super::plan::MountPlan| match &mount.source {
            Source::Bind(source) => Some(Bind {
                destination: mount.destination.clone(),
                source: source.clone(),
                recursive: mount.options.recursive_bind,
                mapped: mount.mapped.clone(),
            }),
            _ => None,
        };
        let outside = |device: &Device| {
            let (uid, gid) = (maps.uids.host(device.uid), maps.gids.host(device.gid));
            let unmapped =
                || Error::new(Kind::InvalidArgument, format!("the owner of {:?} is not mapped", device.path));
            Ok(Device { uid: uid.ok_or_else(unmapped)?, gid: gid.ok_or_else(unmapped)?, ..device.clone() })
        };
        let devices = rootfs.devices.iter().flatten().filter(|device| is_made_by_host(device));
        Ok(Some(Self {
            rootfs: rootfs.path.clone(),
            binds: rootfs.mounts.iter().filter_map(bind).collect(),
            devices: devices.map(outside).collect::<Result<_>>()?,
            host_devices: rootfs.host_devices,
        }))
    }

    /// Whether a mount is to have the owners that the container's own user namespace maps its own to.
    pub fn want_users(&self) -> bool {
        self.binds.iter().any(|bind| bind.mapped.as_ref().is_some_and(|mapped| mapped.users.is_none()))
    }

    /// The user namespaces that have the mappings of mounts, which [`Sources::send`] looks at.
    pub fn users(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.binds.iter().filter_map(|bind| bind.mapped.as_ref()?.users.as_deref()).map(AsFd::as_fd)
    }

    /// Opens all and sends them. To be called in the child's mount namespace, with the host's credentials; `users` is the
    /// child's user namespace, where one is wanted.
    ///
    /// # Errors
    /// With the destination of the mount.
    pub fn send(&self, child: &ParentEnd, users: Option<BorrowedFd<'_>>) -> Result<()> {
        let root = Root::open(&self.rootfs)?;
        let binds = self.binds.iter().map(|bind| {
            mounts::open_source(&bind.source, bind.recursive, bind.mapped.as_ref(), users)
                .map_err(|e| if bind.recursive { e } else { covering(e) })
                .context(|| bind.destination.display().to_string())
        });
        let mut all: Vec<OwnedFd> = binds.map(|mount| mount.map(OwnedFd::from)).collect::<Result<_>>()?;
        all.extend(match self.host_devices {
            false => make_devices(&root, &self.devices).context(|| "devices")?,
            true => self.devices.iter().map(bound_device).collect::<Result<_>>()?,
        });
        let root = root.as_fd().try_clone_to_owned().os(|| "dup")?;
        all.insert(0, root);
        child.sources(&all)
    }
}

/// What mounts cover stays covered in a user namespace's copy of them (mount_namespaces(7)).
fn covering(error: Error) -> Error {
    match error.errno() {
        Some(libc::EINVAL) if error.kind() != Kind::Unimplemented => {
            error.context("in a user namespace a source with mounts below it is bound by rbind, or not at all")
        }
        _ => error,
    }
}

/// Makes the nodes on a tmpfs of their own, which is nowhere when this returns: they are the container's, and no other's.
///
/// runc binds the host's; whose owner and mode are then what they are, and where root of the container is the host's
/// (an identity map) are its to change.
fn make_devices(root: &Root, devices: &[Device]) -> Result<Vec<OwnedFd>> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let fs = FileSystem::open("tmpfs")?;
    fs.set("nr_inodes", Some(&(devices.len() + 1).to_string()))?;
    fs.set("mode", Some("555"))?;
    let store = fs.mount(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    // Before Linux 6.15 nothing can be cloned from a mount that is nowhere.
    store.attach(root.as_fd())?;
    let nodes = devices.iter().enumerate().map(|(index, device)| {
        make_device(&store, &index.to_string(), device).context(|| device.path.display().to_string())
    });
    let nodes = nodes.collect();
    mount::detach_root(&store)?;
    nodes
}

fn bound_device(device: &Device) -> Result<OwnedFd> {
    host_node(device).context(|| device.path.display().to_string())
}

fn make_device(store: &Mount, name: &str, device: &Device) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(device.mode);
    let number = rustix::fs::makedev(device.major, device.minor);
    rustix::fs::mknodat(store, name, device.kind, mode, number).os(|| "mknodat")?;
    let node = Mount::clone_path(Some(store.as_fd()), Path::new(name), false)?;
    path::chown(&node, device.uid, device.gid)?;
    // Whatever the umask has left of it.
    rustix::fs::chmodat(store, name, mode, AtFlags::empty()).os(|| "fchmodat")?;
    Ok(node.into())
}

/// Asks for them and takes them, in a user namespace.
pub fn receive(born: &mut Born<'_>) -> Result<()> {
    let Work::Create(create) = &born.plan.work else { return Ok(()) };
    if let Some(sources) = &create.sources {
        let count = 1 + sources.binds.len() + sources.devices.len();
        born.sources = Some(Received(born.sync.sources(count)?.into()));
    }
    Ok(())
}
