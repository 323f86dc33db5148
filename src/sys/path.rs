//! Paths inside a container's root file system: resolved once, in-root, by the kernel, and used by descriptor after.
//!
//! A path of a specification meets a rootfs that its image's author controls: a symbolic link there, or one exchanged
//! for a directory in mid-flight, must never lead out of it (CVE-2019-19921, CVE-2021-30465, CVE-2024-45310). So no
//! operation takes the same path twice, and each goes through openat2(2) with RESOLVE_IN_ROOT, under which `..` and
//! absolute links stay inside, and RESOLVE_NO_MAGICLINKS.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Kind, Os, Result};

/// An O_PATH handle: names a file, can be neither read nor written.
const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// How often a resolution that the kernel could not vouch for (a concurrent rename: EAGAIN) is tried again. A rootfs
/// that is being renamed faster than this is an attack, and the answer to it an error.
const TRIES: usize = 128;

/// How many links to nothing are followed on the way to one path: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// A directory that no path below it can leave.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// The root file system at `path` (a path of the host's, resolved as such).
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path) -> Result<Self> {
        rustix::fs::openat(CWD, path, HANDLE | OFlags::DIRECTORY, Mode::empty())
            .map(Self)
            .os(|| format!("open {}", path.display()))
    }

    /// The root file system that `fd` refers to: a detached mount, or a directory.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// A handle on `path`, links followed inside the root.
    ///
    /// # Errors
    /// ENOENT and the rest of what openat2(2) says.
    pub fn resolve(&self, path: &Path) -> Result<OwnedFd> {
        self.openat2(path, HANDLE, ResolveFlags::empty())
    }

    /// A handle on `path` in which no component may be a symbolic link: for what must be where the specification says
    /// and nowhere else (/dev of CVE-2026-41579, /proc and /sys of CVE-2019-19921).
    pub fn resolve_no_links(&self, path: &Path) -> Result<OwnedFd> {
        self.openat2(path, HANDLE, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens the file at `path`, links followed inside the root.
    ///
    /// # Errors
    /// What openat2(2) says.
    pub fn open_file(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        self.openat2(path, flags | OFlags::CLOEXEC, ResolveFlags::empty())
    }

    /// Opens `path` where nothing on the way leads elsewhere: neither a link nor a mount, be it of the same file system
    /// (CVE-2025-52881).
    pub fn open_beneath(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        self.openat2(path, flags | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
    }

    /// A handle on the directory `path`, made with its parents (mode 0755) where missing.
    ///
    /// What exists is resolved in-root, links followed, those to nothing too; below the first missing component
    /// everything is made by descriptor, one name at a time, and no link is followed: a link that appears there was put
    /// there in a race.
    ///
    /// # Errors
    /// ENOTDIR where something else is in the way; EINVAL for `..` below a missing component.
    pub fn mkdir_all(&self, path: &Path) -> Result<OwnedFd> {
        let (mut dir, missing) = self.deepest(path)?;
        for name in missing {
            dir = self.make_child(&dir, &name, path)?;
        }
        Ok(dir)
    }

    /// A handle on the file `path`, made empty with its parents where missing: the target of a file's bind mount. A link
    /// to nothing is followed to where it leads, as by [`Root::mkdir_all`].
    ///
    /// # Errors
    /// As of [`Root::mkdir_all`]; ELOOP where a link has appeared in a race.
    pub fn create_file(&self, path: &Path) -> Result<OwnedFd> {
        match self.resolve(path) {
            Err(e) if e.errno() == Some(libc::ENOENT) => {}
            other => return other,
        }
        let (mut dir, mut missing) = self.deepest(path)?;
        let name = missing.pop().ok_or_else(|| not_a_name(path))?;
        for parent in missing {
            dir = self.make_child(&dir, &parent, path)?;
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir, &name, flags, Mode::from(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::os(e, format!("openat {}", path.display()))),
        }
        let file = rustix::fs::openat(&dir, &name, HANDLE | OFlags::NOFOLLOW, Mode::empty())
            .os(|| format!("openat {}", path.display()))?;
        match FileType::from_raw_mode(stat(&file)?.st_mode) {
            FileType::Symlink => Err(Error::os(libc::ELOOP, format!("openat {}", path.display()))),
            _ => Ok(file),
        }
    }

    /// The directory that holds `path`'s last component, made where missing, and that component's name.
    pub fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p std::ffi::OsStr)> {
        let name = path.file_name().ok_or_else(|| not_a_name(path))?;
        Ok((self.mkdir_all(path.parent().unwrap_or(Path::new("/")))?, name))
    }

    /// The deepest existing directory on the way to `path`, and the names missing below it.
    ///
    /// A link whose target is missing is followed by its text, as runc does (an image's /var/lock -> /run/lock): the
    /// path that results is resolved in-root like any other.
    fn deepest(&self, path: &Path) -> Result<(OwnedFd, Vec<PathBuf>)> {
        let mut existing = path.to_owned();
        let mut missing = Vec::new();
        let mut links = 0;
        loop {
            match self.openat2(&existing, HANDLE | OFlags::DIRECTORY, ResolveFlags::empty()) {
                Ok(dir) => {
                    missing.reverse();
                    return Ok((dir, missing));
                }
                Err(e) if e.errno() == Some(libc::ENOENT) => {}
                Err(e) => return Err(e),
            }
            let parent = existing.parent().unwrap_or(Path::new("/"));
            if let Some(target) = self.link_target(&existing)? {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::os(libc::ELOOP, format!("mkdir {}", path.display())));
                }
                existing = parent.join(target);
                continue;
            }
            match existing.components().next_back() {
                Some(Component::Normal(name)) => missing.push(PathBuf::from(name)),
                _ => return Err(Error::os(libc::EINVAL, format!("mkdir {}", path.display()))),
            }
            existing = parent.to_owned();
        }
    }

    /// What the link at `path` says; `None` where there is none.
    fn link_target(&self, path: &Path) -> Result<Option<PathBuf>> {
        let link = match self.openat2(path, HANDLE | OFlags::NOFOLLOW, ResolveFlags::empty()) {
            Ok(link) => link,
            Err(e) if e.errno() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        if FileType::from_raw_mode(stat(&link)?.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let target = rustix::fs::readlinkat(&link, "", Vec::new()).os(|| format!("readlinkat {}", path.display()))?;
        Ok(Some(PathBuf::from(OsStr::from_bytes(target.as_bytes()))))
    }

    fn make_child(&self, dir: &OwnedFd, name: &Path, whole: &Path) -> Result<OwnedFd> {
        match rustix::fs::mkdirat(dir, name, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::os(e, format!("mkdirat {}", whole.display()))),
        }
        let flags = HANDLE | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        rustix::fs::openat(dir, name, flags, Mode::empty()).os(|| format!("openat {}", whole.display()))
    }

    fn openat2(&self, path: &Path, flags: OFlags, more: ResolveFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        // "" names nothing to openat2; it is how a specification may spell the root.
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        for _ in 1..TRIES {
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other.os(|| format!("openat2 {}", path.display())),
            }
        }
        Err(Error::os(libc::EAGAIN, format!("openat2 {}", path.display())))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// fstat(2) on a handle.
pub fn stat(fd: impl AsFd) -> Result<Stat> {
    rustix::fs::fstat(fd).os(|| "fstat")
}

/// True for a directory.
pub fn is_dir(fd: impl AsFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(stat(fd)?.st_mode) == FileType::Directory)
}

/// True when looking `path` up is certain to wait for nobody but the processor, and what it leads to is on a disk of this
/// machine: neither a server (FUSE, NFS) nor a network is asked, by this call neither. False too for what the kernel has
/// not at hand, for file systems without a device (btrfs, overlay, tmpfs), and before Linux 5.12, which cannot tell.
///
/// Of a fuseblk it is true: its server's device counts as a disk.
pub fn is_at_hand(path: &Path) -> bool {
    let Ok(found) = rustix::fs::openat2(CWD, path, HANDLE, Mode::empty(), ResolveFlags::CACHED) else { return false };
    // Without it a server would be asked for the attributes.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&found, "", flags, rustix::fs::StatxFlags::empty());
    stat.is_ok_and(|stat| stat.stx_dev_major != 0)
}

/// True when `fd` is the root of a mount (statx(2), Linux 5.8).
pub fn is_mount_root(fd: impl AsFd) -> Result<bool> {
    let flags = AtFlags::EMPTY_PATH;
    let statx = rustix::fs::statx(fd, "", flags, rustix::fs::StatxFlags::empty()).os(|| "statx")?;
    Ok(statx.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// True when both name the same file in the same mount (statx(2), Linux 5.8): a bind mount of it elsewhere is another.
pub fn is_same(a: impl AsFd, b: impl AsFd) -> Result<bool> {
    use rustix::fs::{Statx, StatxFlags, statx};
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let place = |of: Statx| (of.stx_mnt_id, of.stx_dev_major, of.stx_dev_minor, of.stx_ino);
    let a = statx(a, "", AtFlags::EMPTY_PATH, wanted).os(|| "statx")?;
    let b = statx(b, "", AtFlags::EMPTY_PATH, wanted).os(|| "statx")?;
    Ok(place(a) == place(b))
}

/// The number of the mount that `fd` is on, as in /proc/self/mountinfo (statx(2), Linux 5.8). No server is asked.
pub fn mount_id(fd: impl AsFd) -> Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let statx = rustix::fs::statx(fd, "", flags, rustix::fs::StatxFlags::MNT_ID).os(|| "statx")?;
    Ok(statx.stx_mnt_id)
}

/// Gives the file that `fd` names another owner, by descriptor.
pub fn chown(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    use rustix::fs::{Gid, Uid};
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH).os(|| "fchownat")
}

/// True when `fd` is on a procfs: its magic number is in no other file system (statfs(2)).
pub fn is_procfs(fd: impl AsFd) -> Result<bool> {
    Ok(rustix::fs::fstatfs(fd).os(|| "fstatfs")?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// True when `fd` is on a file system whose files are the kernel's words: procfs, sysfs (statfs(2)).
pub fn is_of_kernel(fd: impl AsFd) -> Result<bool> {
    /// linux/magic.h
    const SYSFS_MAGIC: rustix::fs::FsWord = 0x6265_6572;
    let magic = rustix::fs::fstatfs(fd).os(|| "fstatfs")?.f_type;
    Ok([rustix::fs::PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&magic))
}

fn not_a_name(path: &Path) -> Error {
    Error::new(Kind::InvalidArgument, format!("{} does not end in a file name", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> (PathBuf, Root) {
        let dir = std::env::temp_dir().join(format!("dray-path-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("root/inside")).unwrap();
        std::fs::create_dir_all(dir.join("outside")).unwrap();
        let root = Root::open(&dir.join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn only_what_is_known_to_be_on_a_disk_is_at_hand() {
        let disk =
            rustix::fs::statx(CWD, "/", AtFlags::empty(), rustix::fs::StatxFlags::empty()).unwrap().stx_dev_major != 0;
        let cached = rustix::fs::openat2(CWD, "/", HANDLE, Mode::empty(), ResolveFlags::CACHED).is_ok();
        assert_eq!(is_at_hand(Path::new("/")), disk && cached);
        for path in ["/proc", "/proc/self/ns", "/dev/shm", "/nonexistent/x", ""] {
            assert!(!is_at_hand(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let (dir, root) = scratch("links");
        symlink("/inside", dir.join("root/absolute")).unwrap();
        symlink("../../../inside", dir.join("root/climbing")).unwrap();
        symlink("../../outside", dir.join("root/escape")).unwrap();
        let inside = stat(root.resolve(Path::new("/inside")).unwrap()).unwrap().st_ino;
        for path in ["/absolute", "/climbing", "inside", "/../../inside", "/absolute/../inside"] {
            assert_eq!(stat(root.resolve(Path::new(path)).unwrap()).unwrap().st_ino, inside, "{path}");
        }
        assert_eq!(root.resolve(Path::new("/escape")).unwrap_err().errno(), Some(libc::ENOENT));
        assert_eq!(root.resolve_no_links(Path::new("/absolute")).unwrap_err().errno(), Some(libc::ELOOP));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn mkdir_all_makes_nothing_outside() {
        let (dir, root) = scratch("mkdir");
        symlink("../outside", dir.join("root/link")).unwrap();
        symlink("/nowhere", dir.join("root/dangling")).unwrap();
        root.mkdir_all(Path::new("/a/b/c")).unwrap();
        assert!(dir.join("root/a/b/c").is_dir());
        symlink("/circle/x", dir.join("root/circle")).unwrap();
        // "../outside" is "/outside" inside the root, which is not there: it is made there.
        root.mkdir_all(Path::new("/link/x")).unwrap();
        assert!(dir.join("root/outside/x").is_dir());
        root.mkdir_all(Path::new("/dangling")).unwrap();
        assert!(dir.join("root/nowhere").is_dir());
        assert_eq!(root.mkdir_all(Path::new("/circle")).unwrap_err().errno(), Some(libc::ELOOP));
        assert!(root.mkdir_all(Path::new("/a/missing/../../../outside/x")).is_err());
        root.create_file(Path::new("/etc/hosts")).unwrap();
        assert!(dir.join("root/etc/hosts").is_file());
        // An image's /etc/resolv.conf is often such a link.
        symlink("../run/resolve/stub", dir.join("root/etc/resolv.conf")).unwrap();
        symlink("../../../outside/file", dir.join("root/etc/escape")).unwrap();
        for (path, made) in [("/etc/resolv.conf", "root/run/resolve/stub"), ("/etc/escape", "root/outside/file")] {
            root.create_file(Path::new(path)).unwrap();
            assert!(dir.join(made).is_file(), "{path}");
        }
        assert_eq!(std::fs::read_dir(dir.join("outside")).unwrap().count(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn magic_links_are_not_followed() {
        let root = Root::open(Path::new("/")).unwrap();
        let error = root.resolve(Path::new("/proc/self/root/etc")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ELOOP), "{error}");
        assert!(is_procfs(root.resolve(Path::new("/proc")).unwrap()).unwrap());
    }

    #[test]
    fn file_systems_of_the_kernels_words_are_known() {
        let root = Root::open(Path::new("/")).unwrap();
        let known = ["/proc/version", "/sys/kernel", "/etc"]
            .map(|path| is_of_kernel(root.resolve(Path::new(path)).unwrap()).unwrap());
        assert_eq!(known, [true, true, false]);
    }
}
