//! The root file system's mounts, as containerd's Create request asks for them: made on the bundle's directory, in the
//! host's mount namespace, where others expect to find them (a snapshotter's cleanup, `nerdctl cp`).

mod idmap;
mod overlay;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::mount_options::{self, MountOptions};
use crate::sys::mount::{self, Mount};
use crate::sys::path::{self, Root};
use crate::sys::{loop_device, mount_flags};

use super::Engine;
use super::events::RootfsMount;
use idmap::IdMaps;
use overlay::Overlay;

/// File systems of snapshotters that are on a device, or on a file of the option `loop`: mounting one reads the device
/// and may wait for it.
const ON_DEVICES: &[&str] = &["ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "erofs", "squashfs"];

/// How long a mount that waits for a device may take.
const MOUNT_BOUND: Duration = Duration::from_secs(60);

/// One mount, judged.
#[derive(Debug)]
pub struct Planned {
    source: String,
    /// Below the rootfs; empty for itself.
    target: PathBuf,
    options: MountOptions,
    ids: Option<IdMaps>,
    how: How,
}

#[derive(Debug)]
enum How {
    Bind,
    Overlay(Overlay),
    Tmpfs,
    /// A file system of this type, from a device or (`file`) from a file by a loop device.
    Device {
        kind: &'static str,
        file: bool,
    },
}

/// Judges a request's mounts, before any effect.
///
/// # Errors
/// `Unimplemented` for a type or option that is not supported, by its name; `InvalidArgument` for one that cannot be.
pub fn plan(mounts: &[RootfsMount]) -> Result<Vec<Planned>> {
    let each = |(index, mount)| plan_one(mount).context(|| format!("rootfs mount {index}"));
    mounts.iter().enumerate().map(each).collect()
}

fn plan_one(mount: &RootfsMount) -> Result<Planned> {
    let unsupported = |what: String| Error::new(Kind::Unimplemented, format!("{what} is not supported"));
    // These are for containerd's mount manager, which takes them away as it does what they say.
    if let Some(word) = mount.options.iter().find(|word| word.starts_with("X-containerd.")) {
        return Err(unsupported(format!("the option {word:?} of type {:?}", mount.kind)));
    }
    // And these for a specification's.
    if let Some(word) = mount.options.iter().find(|word| mount_options::is_runtimes(word)) {
        return Err(unsupported(format!("the option {word:?} of a mount of the rootfs")));
    }
    let mut options = MountOptions::parse(&mount.options)?;
    let ids = IdMaps::take(&mut options)?;
    let how = match mount.kind.as_str() {
        // As with `mounts` of a specification, the type does not matter then.
        _ if options.bind => How::Bind,
        "bind" => How::Bind,
        "overlay" => How::Overlay(Overlay::plan(&mut options)?),
        "tmpfs" => How::Tmpfs,
        kind => match ON_DEVICES.iter().find(|known| **known == kind) {
            Some(kind) => {
                let before = options.data.len();
                options.data.retain(|(key, value)| !(key == "loop" && value.is_none()));
                How::Device { kind, file: options.data.len() < before }
            }
            None => return Err(unsupported(format!("type {kind:?}"))),
        },
    };
    match (&ids, &how) {
        (Some(_), How::Overlay(overlay)) => drop(overlay.parts()?),
        (Some(_), How::Tmpfs | How::Device { .. }) => {
            return Err(unsupported(format!("the option uidmap of type {:?}", mount.kind)));
        }
        _ => {}
    }
    Ok(Planned { source: mount.source.clone(), target: mount.target.clone().into(), options, ids, how })
}

impl Engine {
    /// Makes all mounts on `rootfs`, in order. What may wait for a device or a server does so in a child, which is told to
    /// `note` before it can, and its end after: given up, it may mount all the same.
    ///
    /// # Errors
    /// Names the mount; those made stay, for the caller to take away with [`unmount`].
    pub(super) async fn mount_rootfs(&self, mounts: &[Planned], rootfs: &Path, note: Note<'_>) -> Result<()> {
        let mut beside = false;
        for (index, mount) in mounts.iter().enumerate() {
            // What is mounted on one that may wait may itself have to, to find its place.
            beside = beside || mount.may_wait();
            let mounted = match beside {
                true => self.mount_beside(mount, rootfs, note).await,
                false => match mount.mount_here(rootfs) {
                    // It changes its working directory, and a child has one of its own.
                    Err(e) if overlay::is_too_old(&e) => self.mount_beside(mount, rootfs, note).await,
                    done => done,
                },
            };
            mounted.context(|| format!("rootfs mount {index}"))?;
        }
        Ok(())
    }

    async fn mount_beside(&self, mount: &Planned, rootfs: &Path, note: Note<'_>) -> Result<()> {
        let begun = |pid, pidfd| note(Some((pid, pidfd)));
        self.in_child_noted("mounting the rootfs", MOUNT_BOUND, begun, || mount.mount_in_child(rootfs)).await?;
        note(None)
    }
}

/// Is told of a child that mounts, by its pid and pidfd, and of its end.
pub(super) type Note<'a> = &'a mut dyn FnMut(Option<(i32, OwnedFd)>) -> Result<()>;

impl Planned {
    /// Whether mounting it may wait for a device or a server (a layer on a FUSE that has stopped answering), or needs a
    /// process of its own anyway: mapped, it makes a user namespace, and of an overlay the layers are in a mount namespace.
    fn may_wait(&self) -> bool {
        self.ids.is_some()
            || match &self.how {
                How::Bind => !path::is_at_hand(Path::new(&self.source)),
                How::Overlay(overlay) => !overlay.directories().all(|directory| path::is_at_hand(&directory)),
                How::Tmpfs => false,
                How::Device { .. } => true,
            }
    }

    /// # Errors
    /// One of which [`overlay::is_too_old`] is true, for what has to be done in a child.
    fn mount_here(&self, rootfs: &Path) -> Result<()> {
        match &self.how {
            How::Bind => self.bind(rootfs),
            How::Tmpfs => self.file_system("tmpfs", &self.source, rootfs),
            How::Overlay(overlay) if overlay.fits() => self.file_system("overlay", &self.source, rootfs),
            How::Overlay(overlay) => self.layer_by_layer(overlay, rootfs),
            How::Device { kind, file } => self.device(kind, *file, rootfs),
        }
    }

    /// Runs in a process of its own.
    fn mount_in_child(&self, rootfs: &Path) -> Result<()> {
        match &self.how {
            How::Overlay(overlay) if self.ids.is_some() => self.mapped(overlay, rootfs),
            How::Overlay(overlay) => match self.mount_here(rootfs) {
                Err(e) if overlay::is_too_old(&e) => self.relative(overlay, rootfs),
                done => done,
            },
            _ => self.mount_here(rootfs),
        }
    }

    /// Does `attach` with the target's path, which leads nowhere else however the file systems mounted before it have
    /// links there.
    fn at_target(&self, rootfs: &Path, attach: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if self.target.as_os_str().is_empty() {
            return attach(rootfs);
        }
        let target = Root::open(rootfs)?.resolve(&self.target).context(|| self.target.display().to_string())?;
        attach(Path::new(&format!("/proc/self/fd/{}", target.as_raw_fd())))
    }

    fn bind(&self, rootfs: &Path) -> Result<()> {
        let tree = Mount::clone_path(None, Path::new(&self.source), self.options.recursive_bind)?;
        if let Some(ids) = &self.ids {
            ids.apply(&tree, self.options.recursive_bind)?;
        }
        self.at_target(rootfs, |target| {
            let target = Root::open(target)?;
            tree.attach_with(target.as_fd(), self.options.attrs.set, self.options.attrs.clear)
        })?;
        self.propagate(rootfs)
    }

    fn ms_flags(&self) -> u64 {
        u64::from(mount_flags::of_new(self.options.attrs.set, &self.options.sb_flags).bits())
    }

    /// By mount(2), which is one system call.
    fn file_system(&self, kind: &str, source: &str, rootfs: &Path) -> Result<()> {
        match &self.how {
            How::Overlay(overlay) => self.mount(kind, source, overlay.data(), rootfs),
            _ => self.mount(kind, source, &self.options.data_string(), rootfs),
        }
    }

    fn mount(&self, kind: &str, source: &str, data: &str, rootfs: &Path) -> Result<()> {
        let flags = self.ms_flags();
        self.at_target(rootfs, |target| mount::mount(source, target, kind, flags, data))?;
        self.propagate(rootfs)
    }

    fn layer_by_layer(&self, overlay: &Overlay, rootfs: &Path) -> Result<()> {
        let mount = overlay.mount(&self.source, &self.options)?;
        self.at_target(rootfs, |target| mount.attach(Root::open(target)?.as_fd()))?;
        self.propagate(rootfs)
    }

    /// Runs in a process of its own.
    fn mapped(&self, overlay: &Overlay, rootfs: &Path) -> Result<()> {
        let Some(ids) = &self.ids else { return Ok(()) };
        let (layers, data) = overlay.parts()?;
        let flags = self.ms_flags();
        // The target in this mount namespace and, wherever our root is in it, by this path.
        self.at_target(rootfs, |target| {
            let target = Root::open(target)?;
            let mount = ids.overlay(&self.source, &layers, flags, &data, rootfs)?;
            mount.attach(target.as_fd())?;
            let Some((kind, recursive)) = self.options.propagation else { return Ok(()) };
            mount.propagate(u64::from(kind.flag().bits()), recursive)
        })
    }

    /// Runs in a process of its own.
    fn relative(&self, overlay: &Overlay, rootfs: &Path) -> Result<()> {
        let (directory, data) = overlay.relative()?;
        rustix::process::chdir(&directory).os(|| format!("chdir {}", directory.display()))?;
        self.mount("overlay", &self.source, &data, rootfs).map_err(|e| match overlay.missing() {
            Some(layer) if e.errno() == Some(libc::ENOENT) => e.context(layer.to_owned()),
            _ => e,
        })
    }

    /// Runs in a process of its own.
    fn device(&self, kind: &str, file: bool, rootfs: &Path) -> Result<()> {
        if !file {
            return self.file_system(kind, &self.source, rootfs);
        }
        let readonly = self.options.attrs.set & libc::MOUNT_ATTR_RDONLY != 0;
        // Its descriptor is what keeps it until the file system does; then the last unmount frees it.
        let device = loop_device::attach(Path::new(&self.source), readonly)?;
        self.file_system(kind, &device.path, rootfs)
    }

    /// Looks the target up again: it is the mount now.
    fn propagate(&self, rootfs: &Path) -> Result<()> {
        let Some((kind, recursive)) = self.options.propagation else { return Ok(()) };
        let root = Root::open(rootfs)?;
        let mount = match self.target.as_os_str().is_empty() {
            true => root.as_fd().try_clone_to_owned().os(|| "dup")?,
            false => root.resolve(&self.target)?,
        };
        Mount::from(mount).propagate(u64::from(kind.flag().bits()), recursive)
    }
}

/// Takes away everything that is mounted on `target`, however deep it is stacked.
pub fn unmount(target: &Path) -> Result<()> {
    loop {
        match mount::detach(target) {
            Ok(()) => {}
            Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::ENOENT)) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(kind: &str, options: &[&str]) -> Result<Planned> {
        let options = options.iter().map(|word| word.to_string()).collect();
        let mount = RootfsMount { kind: kind.into(), source: "source".into(), target: String::new(), options };
        plan(&[mount]).map(|mut mounts| mounts.remove(0))
    }

    #[test]
    fn what_is_not_supported_is_refused_with_type_and_option() {
        for (kind, options, words) in [
            ("fuse3.stargz", &[][..], "type \"fuse3.stargz\" is not supported"),
            ("mkfs/ext4", &["X-containerd.mkfs.size=1"], "X-containerd.mkfs.size=1"),
            ("ext4", &["X-containerd.mkfs.fs=ext4"], "\"X-containerd.mkfs.fs=ext4\" of type \"ext4\""),
            ("tmpfs", &["uidmap=0:100000:65536", "gidmap=0:1:1"], "uidmap of type \"tmpfs\""),
            ("bind", &["rbind", "rro"], "\"rro\" of a mount of the rootfs"),
            ("tmpfs", &["tmpcopyup"], "\"tmpcopyup\" of a mount of the rootfs"),
            ("overlay", &["lowerdir=/a::/b", "uidmap=0:1:1", "gidmap=0:1:1"], "data-only layers with uidmap"),
        ] {
            let error = judge(kind, options).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
            let text = error.to_string();
            assert!(text.starts_with("rootfs mount 0: ") && text.contains(words), "{text}");
        }
    }

    #[test]
    fn loop_is_not_the_file_systems_option() {
        let planned = judge("ext4", &["ro", "loop", "noload"]).unwrap();
        assert!(matches!(planned.how, How::Device { kind: "ext4", file: true }));
        assert_eq!(planned.options.data_string(), "noload");
        let planned = judge("ext4", &["loopback"]).unwrap();
        assert!(matches!(planned.how, How::Device { kind: "ext4", file: false }));
    }
}
