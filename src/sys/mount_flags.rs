//! The attributes of a mount under the names that mount(2) and statfs(2) have for them: for kernels without
//! mount_setattr(2) (before Linux 5.12), and for file systems that are mounted by mount(2).

use rustix::fs::StatVfsMountFlags;
use rustix::mount::MountFlags;

/// linux/statfs.h; libc and rustix have no name for it.
const ST_NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);

/// One flag under its three names: mount_setattr(2), statfs(2), mount(2).
const FLAGS: &[(u64, StatVfsMountFlags, MountFlags)] = &[
    (libc::MOUNT_ATTR_RDONLY, StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
    (libc::MOUNT_ATTR_NOSUID, StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
    (libc::MOUNT_ATTR_NODEV, StatVfsMountFlags::NODEV, MountFlags::NODEV),
    (libc::MOUNT_ATTR_NOEXEC, StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    (libc::MOUNT_ATTR_NODIRATIME, StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
    (libc::MOUNT_ATTR_NOSYMFOLLOW, ST_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
];

/// The flags of a file system, by fsconfig(2) and by mount(2).
const SB_FLAGS: &[(&str, MountFlags)] = &[
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("lazytime", MountFlags::LAZYTIME),
];

/// For a new mount with the attributes `set` (MOUNT_ATTR_*) of a file system with the flags `sb`, by their names.
pub fn of_new(set: u64, sb: &[&str]) -> MountFlags {
    let sb = SB_FLAGS.iter().filter(|(name, _)| sb.contains(name)).fold(MountFlags::empty(), |all, (_, ms)| all | *ms);
    sb | changed(StatVfsMountFlags::RELATIME, set, 0)
}

/// For MS_REMOUNT|MS_BIND, which replaces all of a mount's flags: those that it has `now`, but for `clear`, and `set`
/// (MOUNT_ATTR_*).
pub fn of_remount(now: StatVfsMountFlags, set: u64, clear: u64) -> MountFlags {
    MountFlags::BIND | changed(now, set, clear)
}

fn changed(now: StatVfsMountFlags, set: u64, clear: u64) -> MountFlags {
    let stays = |(attr, st, _): &&(u64, StatVfsMountFlags, MountFlags)| {
        set & attr != 0 || (now.contains(*st) && clear & attr == 0)
    };
    FLAGS.iter().filter(stays).fold(atime(now, set, clear), |all, (_, _, ms)| all | *ms)
}

/// The access time mode is a number and not bits: `set` has it if `clear` has the mask. The default is relatime, and a mount
/// with neither that nor noatime is strictatime.
fn atime(now: StatVfsMountFlags, set: u64, clear: u64) -> MountFlags {
    let asked = (clear | set) & libc::MOUNT_ATTR__ATIME != 0;
    let (none, always) = match asked {
        true => (set & libc::MOUNT_ATTR_NOATIME != 0, set & libc::MOUNT_ATTR_STRICTATIME != 0),
        false => (now.contains(StatVfsMountFlags::NOATIME), !now.contains(StatVfsMountFlags::RELATIME)),
    };
    match (none, always) {
        (true, _) => MountFlags::NOATIME,
        (false, true) => MountFlags::STRICTATIME,
        (false, false) => MountFlags::RELATIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_mount_has_what_is_set_and_relatime() {
        let cases: &[(u64, &[&str], MountFlags)] = &[
            (0, &[], MountFlags::RELATIME),
            (libc::MOUNT_ATTR_RDONLY, &[], MountFlags::RDONLY | MountFlags::RELATIME),
            (libc::MOUNT_ATTR_NOATIME, &["sync"], MountFlags::NOATIME | MountFlags::SYNCHRONOUS),
            (libc::MOUNT_ATTR_STRICTATIME, &["dirsync"], MountFlags::STRICTATIME | MountFlags::DIRSYNC),
            (0, &["lazytime"], MountFlags::RELATIME | MountFlags::LAZYTIME),
            (
                libc::MOUNT_ATTR_NOSYMFOLLOW | libc::MOUNT_ATTR_NODIRATIME,
                &["mand"],
                MountFlags::NOSYMFOLLOW
                    | MountFlags::NODIRATIME
                    | MountFlags::PERMIT_MANDATORY_FILE_LOCKING
                    | MountFlags::RELATIME,
            ),
        ];
        for (set, sb, flags) in cases {
            assert_eq!(of_new(*set, sb), *flags, "{set:#x} {sb:?}");
        }
    }

    #[test]
    fn a_remount_keeps_what_the_mount_has_but_for_what_is_named() {
        use StatVfsMountFlags as St;
        let now = St::RDONLY | St::NOSUID | St::NOATIME | ST_NOSYMFOLLOW;
        let kept = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOSYMFOLLOW;
        let (mode, noatime) = (libc::MOUNT_ATTR__ATIME, MountFlags::NOATIME);
        let cases = [
            (now, 0, 0, kept | noatime),
            (now, libc::MOUNT_ATTR_NODEV, 0, kept | noatime | MountFlags::NODEV),
            (now, 0, libc::MOUNT_ATTR_RDONLY, (kept - MountFlags::RDONLY) | noatime),
            (now, 0, libc::MOUNT_ATTR_NOSYMFOLLOW, (kept - MountFlags::NOSYMFOLLOW) | noatime),
            (now, libc::MOUNT_ATTR_STRICTATIME, mode, kept | MountFlags::STRICTATIME),
            (now, 0, mode, kept | MountFlags::RELATIME),
            (St::RELATIME, libc::MOUNT_ATTR_NOEXEC, 0, MountFlags::BIND | MountFlags::RELATIME | MountFlags::NOEXEC),
            (St::RELATIME, libc::MOUNT_ATTR_NOATIME, mode, MountFlags::BIND | noatime),
            // Neither of them: strictatime, which must not become the default by being left out.
            (St::empty(), 0, 0, MountFlags::BIND | MountFlags::STRICTATIME),
            (St::NODIRATIME, 0, 0, MountFlags::BIND | MountFlags::STRICTATIME | MountFlags::NODIRATIME),
        ];
        for (now, set, clear, flags) in cases {
            assert_eq!(of_remount(now, set, clear), flags, "{now:?} {set:#x} {clear:#x}");
        }
    }
}
