//! The mount API of Linux 5.2 and later: a file system or a clone of a tree is made detached, given its attributes,
//! and attached to a descriptor. No path is resolved twice, and nobody sees a mount before its flags are on.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::error::{Error, Kind, Os, Result};

use super::{mount_flags, path};

/// linux/mount.h; rustix and libc have no name for it.
const MOVE_MOUNT_SET_GROUP: u32 = 0x100;

/// A file system being configured (fsopen(2)).
#[derive(Debug)]
pub struct FileSystem {
    fd: OwnedFd,
    kind: String,
}

impl FileSystem {
    /// A new instance of the file system `kind`.
    pub fn open(kind: &str) -> Result<Self> {
        let fd = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).os(|| format!("fsopen {kind}"))?;
        Ok(Self { fd, kind: kind.to_owned() })
    }

    /// Sets an option, `size=65536k` as (`size`, `Some("65536k")`), `noswap` as (`noswap`, `None`).
    ///
    /// # Errors
    /// Names the option; with the kernel's own words, where it left any in the context's log.
    pub fn set(&self, key: &str, value: Option<&str>) -> Result<()> {
        let result = match value {
            Some(value) => rustix::mount::fsconfig_set_string(&self.fd, key, value),
            None => rustix::mount::fsconfig_set_flag(&self.fd, key),
        };
        let option = || value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
        result.os(|| format!("fsconfig {} {}", self.kind, option())).map_err(|e| self.explain(e))
    }

    /// Makes the superblock and a detached mount of it with the attributes `attrs` (MOUNT_ATTR_*).
    pub fn mount(&self, attrs: u64) -> Result<Mount> {
        let create = rustix::mount::fsconfig_create(&self.fd);
        create.os(|| format!("fsconfig {} create", self.kind)).map_err(|e| self.explain(e))?;
        let attrs = MountAttrFlags::from_bits_retain(attrs as u32);
        rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
            .map(Mount)
            .os(|| format!("fsmount {}", self.kind))
    }

    /// Whether the file system is one that takes its options as mount(2) does, a page of text: whatever is set is gathered,
    /// and looked at when it is made. overlayfs is so before Linux 6.5.
    ///
    /// Such a one takes no descriptors and says so whatever the option is; others say what is wrong with this one.
    pub fn is_of_text(&self) -> bool {
        rustix::mount::fsconfig_set_fd(&self.fd, "source", &self.fd) == Err(rustix::io::Errno::OPNOTSUPP)
    }

    /// Adds what the kernel wrote about the failure ("e overlay: No changes allowed in reconfigure").
    fn explain(&self, error: Error) -> Error {
        let mut log = [0u8; 512];
        match rustix::io::read(&self.fd, &mut log) {
            Ok(n) if n > 2 => error.context(String::from_utf8_lossy(&log[2..n]).trim_end().to_owned()),
            _ => error,
        }
    }
}

/// A mount by descriptor: detached until [`Mount::attach`], usable as the root of its tree before and after.
#[derive(Debug)]
pub struct Mount(OwnedFd);

impl Mount {
    /// A detached copy of the mount at `path` below `dir` (a bind mount); with `recursive`, of the whole tree there.
    pub fn clone_path(dir: Option<BorrowedFd<'_>>, path: &Path, recursive: bool) -> Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        if path.as_os_str().is_empty() {
            flags |= OpenTreeFlags::AT_EMPTY_PATH;
        }
        rustix::mount::open_tree(dir.unwrap_or(CWD), path, flags)
            .map(Self)
            .os(|| format!("open_tree {}", path.display()))
    }

    /// A detached copy of what `fd` names.
    pub fn clone_fd(fd: BorrowedFd<'_>, recursive: bool) -> Result<Self> {
        Self::clone_path(Some(fd), Path::new(""), recursive)
    }

    /// Attaches it on what `target` names.
    pub fn attach(&self, target: BorrowedFd<'_>) -> Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&self.0, "", target, "", flags).os(|| "move_mount")
    }

    /// Attaches it on what `target` names with the attributes `set` and without those in `clear` (MOUNT_ATTR_*).
    ///
    /// The attributes are on before anyone can see the mount, except on kernels without mount_setattr(2) (Linux 5.12).
    pub fn attach_with(&self, target: BorrowedFd<'_>, set: u64, clear: u64) -> Result<()> {
        match self.set_attributes(set, clear, 0, false) {
            Err(e) if e.errno() == Some(libc::ENOSYS) => {
                self.attach(target)?;
                self.remount(set, clear)
            }
            other => other.and_then(|()| self.attach(target)),
        }
    }

    /// Changes the attributes of this mount where it is attached.
    pub fn restrict(&self, set: u64, clear: u64) -> Result<()> {
        match self.set_attributes(set, clear, 0, false) {
            Err(e) if e.errno() == Some(libc::ENOSYS) => self.remount(set, clear),
            other => other,
        }
    }

    /// Changes the attributes of this mount, attached or not, and of all that is mounted below it (mount_setattr(2) with
    /// AT_RECURSIVE).
    ///
    /// # Errors
    /// `Unimplemented` before Linux 5.12: mount(2) changes one mount at a time, and a tree that is half done is not what was
    /// asked for.
    pub fn restrict_tree(&self, set: u64, clear: u64) -> Result<()> {
        self.set_attributes(set, clear, 0, true).map_err(|e| match e.errno() {
            Some(libc::ENOSYS) => {
                e.with_kind(Kind::Unimplemented).context("attributes of a whole tree can be set from Linux 5.12 on")
            }
            _ => e,
        })
    }

    /// Changes the propagation of this attached mount: one of MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE.
    pub fn propagate(&self, flag: u64, recursive: bool) -> Result<()> {
        match self.set_attributes(0, 0, flag, recursive) {
            Err(e) if e.errno() == Some(libc::ENOSYS) => {
                propagation(Path::new(&self.proc_path()), flag | if recursive { libc::MS_REC } else { 0 })
            }
            other => other,
        }
    }

    /// Makes the private mount `other` a peer of this one (MOVE_MOUNT_SET_GROUP, Linux 5.15).
    fn share_with(&self, other: &Mount) -> Result<()> {
        let set_group = MoveMountFlags::from_bits_retain(MOVE_MOUNT_SET_GROUP);
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH | set_group;
        rustix::mount::move_mount(&self.0, "", &other.0, "", flags).os(|| "move_mount MOVE_MOUNT_SET_GROUP")
    }

    /// Gives the files of this detached mount the owners that the user namespace `users` maps theirs to (MOUNT_ATTR_IDMAP,
    /// Linux 5.12); with `recursive`, of the whole tree there.
    ///
    /// # Errors
    /// `Unimplemented` where this kernel cannot, or not with that file system.
    pub fn map_ids(&self, users: BorrowedFd<'_>, recursive: bool) -> Result<()> {
        let userns_fd = users.as_raw_fd() as u64;
        let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
        self.setattr(&attr, recursive).os(|| "mount_setattr MOUNT_ATTR_IDMAP").map_err(|e| match e.errno() {
            Some(libc::ENOSYS | libc::EINVAL) => e
                .with_kind(Kind::Unimplemented)
                .context("owners can be mapped from Linux 5.12 on, of tmpfs from 6.3 on"),
            _ => e,
        })
    }

    fn set_attributes(&self, set: u64, clear: u64, propagation: u64, recursive: bool) -> Result<()> {
        if set | clear | propagation == 0 {
            return Ok(());
        }
        let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
        self.setattr(&attr, recursive).os(|| "mount_setattr")
    }

    /// mount_setattr(2).
    fn setattr(&self, attr: &libc::mount_attr, recursive: bool) -> std::io::Result<()> {
        let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: the empty path and `attr` outlive the call, whose last argument is the size of the latter.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                flags,
                std::ptr::from_ref(attr),
                size_of::<libc::mount_attr>(),
            )
        };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// mount(2) with MS_REMOUNT|MS_BIND on this attached mount.
    fn remount(&self, set: u64, clear: u64) -> Result<()> {
        let now = rustix::fs::fstatvfs(&self.0).os(|| "fstatvfs")?.f_flag;
        let flags = mount_flags::of_remount(now, set, clear);
        rustix::mount::mount_remount(self.proc_path().as_str(), flags, c"").os(|| "mount remount")
    }

    /// The host's procfs: used before the container's root is entered only.
    fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

impl AsFd for Mount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Mount {
    /// `fd` is a handle on the root of a mount.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Mount> for OwnedFd {
    fn from(mount: Mount) -> Self {
        mount.0
    }
}

/// Changes the propagation of the mount at `path`: MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, with MS_REC.
pub fn propagation(path: &Path, flags: u64) -> Result<()> {
    let flags = MountPropagationFlags::from_bits_retain(flags as u32);
    rustix::mount::mount_change(path, flags).os(|| format!("mount propagation {}", path.display()))
}

/// Does `attach`, which mounts something on `target`, so that the peers of the mount there do not see it: a shared mount has
/// none meanwhile, and gets them back (MOVE_MOUNT_SET_GROUP, Linux 5.15). What they mount in that moment does not come to
/// it. On an older kernel it becomes a slave of theirs for good with `hide`, else they see what is mounted.
///
/// Looks at /proc, the host's.
pub fn attach_unseen(target: BorrowedFd<'_>, hide: bool, attach: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(mount) = shared_mount_of(target)? else { return attach() };
    let Some(peer) = spare_peer(&mount)? else {
        if hide {
            mount.propagate(libc::MS_SLAVE, false)?;
        }
        return attach();
    };
    mount.propagate(libc::MS_PRIVATE, false)?;
    let attached = attach();
    peer.share_with(&mount).and(attached)
}

/// The mount that `target` is on, where that is a shared one.
fn shared_mount_of(target: BorrowedFd<'_>) -> Result<Option<Mount>> {
    let table = "/proc/self/mountinfo";
    let id = path::mount_id(target)?;
    let table = std::fs::read_to_string(table).os(|| format!("read {table}"))?;
    let Some(point) = shared_mount(&table, id) else { return Ok(None) };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mount = rustix::fs::open(&point, flags, Mode::empty()).os(|| format!("open {}", point.display()))?;
    // The path is what it was called a moment ago.
    if path::mount_id(&mount)? != id {
        return Err(Error::os(libc::EAGAIN, format!("finding the mount at {}", point.display())));
    }
    Ok(Some(Mount(mount)))
}

/// A copy of a shared mount that keeps its peers for it; `None` where the kernel cannot give them back, which is tried with
/// another copy.
fn spare_peer(mount: &Mount) -> Result<Option<Mount>> {
    let (peer, tried) = (Mount::clone_fd(mount.as_fd(), false)?, Mount::clone_fd(mount.as_fd(), false)?);
    let shared = tried.propagate(libc::MS_PRIVATE, false).and_then(|()| peer.share_with(&tried));
    match shared {
        // mount_setattr(2), which makes a mount private that is nowhere, is older than the other.
        Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::ENOSYS | libc::ENOENT)) => Ok(None),
        other => other.map(|()| Some(peer)),
    }
}

/// What is mounted where `path` leads, for an error's sake: "nfs4 on /srv". Looks at /proc, the host's.
pub fn kind_at(path: &Path) -> Option<String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let id = path::mount_id(rustix::fs::open(path, flags, Mode::empty()).ok()?).ok()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.split(' ').next().is_some_and(|own| own.parse() == Ok(id)))?;
    let (left, right) = line.split_once(" - ")?;
    Some(format!("{} on {}", right.split(' ').next()?, unescape(left.split(' ').nth(4)?).display()))
}

/// The mount point of the mount `id`, where mountinfo has it as a shared one.
fn shared_mount(mountinfo: &str, id: u64) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let own = fields.next()?.parse() == Ok(id);
        let point = fields.nth(3)?;
        let shared = fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        (own && shared).then(|| unescape(point))
    })
}

/// mount(2), for file systems of the host's that containerd asks for by path: options as one string.
pub fn mount(source: &str, target: &Path, kind: &str, flags: u64, data: &str) -> Result<()> {
    let flags = MountFlags::from_bits_retain(flags as u32);
    let what = || format!("mount {kind} on {}", target.display());
    let data = CString::new(data).map_err(|_| Error::os(libc::EINVAL, what()))?;
    rustix::mount::mount(source, target, kind, flags, data.as_c_str()).os(what)
}

/// Takes away what is mounted at `path`, at once for everyone (MNT_DETACH), following no link there.
///
/// # Errors
/// EINVAL when nothing is mounted there, ENOENT when the path is gone.
pub fn detach(path: &Path) -> Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(path, flags).os(|| format!("umount2 {}", path.display()))
}

/// Makes the mount `root` this mount namespace's root, and lets go of everything else (pivot_root(2), NOTES on
/// `pivot_root(".", ".")`).
///
/// What it replaces is the caller's root. In a chroot that is not the namespace's, which would stay, with all that is on it,
/// and be where the next setns(2) leads: an exec's, or that of a process of the container with CAP_SYS_ADMIN. So the
/// caller leaves its chroot first, by entering its own namespace.
pub fn pivot_root(root: BorrowedFd<'_>) -> Result<()> {
    super::ns::enter_own_mount_namespace()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).os(|| "open /")?;
    rustix::process::fchdir(root).os(|| "fchdir rootfs")?;
    rustix::process::pivot_root(".", ".").os(|| "pivot_root")?;
    // The old root is stacked on the new one now. "." still is the new one for mount(2), though not for umount2(2):
    // from there the container's mounts, not the host's, would lose the propagation that they were given.
    rustix::process::fchdir(&old).os(|| "fchdir old root")?;
    // It must not take the host's mounts with it.
    propagation(Path::new("."), libc::MS_SLAVE | libc::MS_REC)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).os(|| "umount2 old root")?;
    rustix::process::chdir("/").os(|| "chdir /")
}

/// Makes the mount `root`, which is at `path`, this process's root by moving it onto "/" (chroot(2)): for where
/// pivot_root(2) cannot be, because "/" is the initramfs.
///
/// What it covers stays in the namespace, out of sight. Of that a whole procfs or sysfs is taken away first: with one
/// around, the kernel lets a container that may mount have another, without what masks its own (runc: msMoveRoot). Where
/// they are `locked` (mount_namespaces(7): those of another user namespace's) they are covered instead.
pub fn move_root(root: BorrowedFd<'_>, path: &Path, locked: bool) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").os(|| "read /proc/self/mountinfo")?;
    for point in whole_pseudo_file_systems(&table).filter(|point| !point.starts_with(path)) {
        match detach(&point) {
            Err(e) if locked && e.errno() == Some(libc::EINVAL) => cover(&point)?,
            // It went with one above it.
            Err(e) if !matches!(e.errno(), Some(libc::EINVAL | libc::ENOENT)) => return Err(e),
            _ => {}
        }
    }
    rustix::process::fchdir(root).os(|| "fchdir rootfs")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(root, "", CWD, "/", flags).os(|| "move_mount rootfs to /")?;
    rustix::process::chroot(".").os(|| "chroot rootfs")?;
    rustix::process::chdir("/").os(|| "chdir /")
}

/// Mounts an empty directory on `path`.
fn cover(path: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let point = match rustix::fs::open(path, flags, Mode::empty()) {
        // It went with one above it.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        opened => opened.os(|| format!("open {}", path.display()))?,
    };
    FileSystem::open("tmpfs")?.mount(libc::MOUNT_ATTR_RDONLY)?.attach(point.as_fd())
}

/// Takes away the mount `root` by its descriptor (MNT_DETACH). The working directory is its root then.
pub fn detach_root(root: &Mount) -> Result<()> {
    rustix::process::fchdir(root).os(|| "fchdir")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).os(|| "umount2 .")
}

/// Takes away a mount, of a file too, by its descriptor (MNT_DETACH). Looks at /proc.
pub fn detach_mount(mount: &Mount) -> Result<()> {
    let path = format!("/proc/self/fd/{}", mount.0.as_raw_fd());
    rustix::mount::unmount(&path, UnmountFlags::DETACH).os(|| format!("umount2 {path}"))
}

/// Where mountinfo (proc_pid_mountinfo(5)) has a procfs or sysfs from its root on.
fn whole_pseudo_file_systems(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let whole = root == "/" && matches!(right.split(' ').next(), Some("proc" | "sysfs"));
        whole.then(|| unescape(point))
    })
}

/// Space, tab, newline and backslash are three octal digits there.
fn unescape(field: &str) -> PathBuf {
    let mut parts = field.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => bytes.extend([&[byte], &part.as_bytes()[3..]].concat()),
            None => bytes.extend(part.bytes()),
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pseudo_file_systems_are_found_by_their_true_paths() {
        let table = "21 1 0:20 / /proc rw - proc proc rw\n\
                     22 21 0:20 /sys /proc/sys ro - proc proc rw\n\
                     23 1 0:21 / /a\\040b\\134 rw shared:1 - sysfs sysfs rw\n\
                     24 1 8:1 / / rw - ext4 /dev/proc rw\n";
        let found: Vec<_> = whole_pseudo_file_systems(table).collect();
        assert_eq!(found, [Path::new("/proc"), Path::new("/a b\\")]);
    }

    #[test]
    fn a_shared_mount_is_found_by_its_id() {
        let table = "21 1 0:20 / /a rw,relatime shared:3 master:1 - tmpfs tmpfs rw\n\
                     22 1 0:20 / /b\\040c rw master:1 shared:4 - tmpfs tmpfs rw\n\
                     23 1 0:20 / /d rw master:1 - tmpfs shared:5 rw\n";
        let found = [21, 22, 23, 2].map(|id| shared_mount(table, id));
        assert_eq!(found, [Some("/a".into()), Some("/b c".into()), None, None]);
    }
}
