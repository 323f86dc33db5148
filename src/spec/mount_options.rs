//! A mount's options: the words of fstab(5), as the runtime specification's table "Linux mount options" lists them.
//!
//! The kernel takes them in four different places, so that is what they are sorted into: attributes of the mount
//! (mount_setattr(2), fsmount(2)), flags and parameters of the file system (fsconfig(2)), and propagation.
//!
//! `ro` is an attribute of the mount and never a flag of the file system: a proc, sysfs or mqueue of a namespace that
//! the container shares with the host is the host's own file system, and must not become read-only for the host.
//!
//! Later words win: `ro,rw` is `rw`. Only `bind` and `rbind` do not contradict: with both, the bind is recursive.

use crate::error::{Error, Kind, Result};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};

/// How mounts and unmounts spread between this mount and its peers (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// `shared`: both ways.
    Shared,
    /// `slave`: from the peers only.
    Slave,
    /// `private`: not at all.
    Private,
    /// `unbindable`: not at all, and it cannot be a bind's source.
    Unbindable,
}

impl Propagation {
    /// The flag, for mount(2) and for `propagation` of mount_setattr(2), which takes the same bits.
    pub fn flag(self) -> MountPropagationFlags {
        match self {
            Self::Shared => MountPropagationFlags::SHARED,
            Self::Slave => MountPropagationFlags::DOWNSTREAM,
            Self::Private => MountPropagationFlags::PRIVATE,
            Self::Unbindable => MountPropagationFlags::UNBINDABLE,
        }
    }
}

/// A mount's options, sorted by where the kernel takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `MOUNT_ATTR_*` to set: `attr_set` of mount_setattr(2), and the attributes of fsmount(2).
    pub attr_set: u64,
    /// `MOUNT_ATTR_*` to clear: `attr_clr` of mount_setattr(2). Holds the whole `MOUNT_ATTR__ATIME` where an access
    /// time mode is asked for, which the kernel demands since the mode is a number and not bits.
    pub attr_clr: u64,
    /// `bind` or `rbind`: the source is a path, and the mount's type is a dummy.
    pub bind: bool,
    /// `rbind`: with the mounts below the source.
    pub recursive_bind: bool,
    /// The propagation, and whether it is for the mounts below as well (`rshared`).
    pub propagation: Option<(Propagation, bool)>,
    /// Flags of the file system, as fsconfig(2) `FSCONFIG_SET_FLAG` names them.
    pub sb_flags: Vec<&'static str>,
    /// Parameters of the file system, in the order given: `size=64k`, or a bare word such as devpts' `newinstance`.
    pub data: Vec<(String, Option<String>)>,
}

/// What one word does.
#[derive(Clone, Copy)]
enum Word {
    Set(MountAttrFlags),
    Clear(MountAttrFlags),
    /// An access time mode is set...
    Atime(MountAttrFlags),
    /// ...or unset, if it is this one.
    NotAtime(MountAttrFlags),
    Bind {
        recursive: bool,
    },
    Propagation(Propagation, bool),
    SbFlag(&'static str),
    NotSbFlag(&'static str),
    Nothing,
    Unsupported,
}

/// Every word of the specification's table. What is not here is a parameter of the file system.
#[rustfmt::skip]
const WORDS: &[(&str, Word)] = {
    use Word::*;
    use self::Propagation as P;
    type A = MountAttrFlags;
    &[
        ("defaults", Nothing),
        ("ro", Set(A::MOUNT_ATTR_RDONLY)),               ("rw", Clear(A::MOUNT_ATTR_RDONLY)),
        ("nosuid", Set(A::MOUNT_ATTR_NOSUID)),           ("suid", Clear(A::MOUNT_ATTR_NOSUID)),
        ("nodev", Set(A::MOUNT_ATTR_NODEV)),             ("dev", Clear(A::MOUNT_ATTR_NODEV)),
        ("noexec", Set(A::MOUNT_ATTR_NOEXEC)),           ("exec", Clear(A::MOUNT_ATTR_NOEXEC)),
        ("nodiratime", Set(A::MOUNT_ATTR_NODIRATIME)),   ("diratime", Clear(A::MOUNT_ATTR_NODIRATIME)),
        ("nosymfollow", Set(A::MOUNT_ATTR_NOSYMFOLLOW)), ("symfollow", Clear(A::MOUNT_ATTR_NOSYMFOLLOW)),

        ("noatime", Atime(A::MOUNT_ATTR_NOATIME)),         ("atime", NotAtime(A::MOUNT_ATTR_NOATIME)),
        ("strictatime", Atime(A::MOUNT_ATTR_STRICTATIME)), ("nostrictatime", NotAtime(A::MOUNT_ATTR_STRICTATIME)),
        ("relatime", Atime(A::MOUNT_ATTR_RELATIME)),
        // The kernel has no mode that this could mean: relatime is what a mount without a mode has.
        ("norelatime", Nothing),

        ("bind", Bind { recursive: false }),          ("rbind", Bind { recursive: true }),
        ("shared", Propagation(P::Shared, false)),         ("rshared", Propagation(P::Shared, true)),
        ("slave", Propagation(P::Slave, false)),           ("rslave", Propagation(P::Slave, true)),
        ("private", Propagation(P::Private, false)),       ("rprivate", Propagation(P::Private, true)),
        ("unbindable", Propagation(P::Unbindable, false)), ("runbindable", Propagation(P::Unbindable, true)),

        ("sync", SbFlag("sync")),         ("async", NotSbFlag("sync")),
        ("dirsync", SbFlag("dirsync")),
        ("mand", SbFlag("mand")),         ("nomand", NotSbFlag("mand")),
        ("lazytime", SbFlag("lazytime")), ("nolazytime", NotSbFlag("lazytime")),
        // What the kernel logs about a mount is nothing that a container sees; fsconfig(2) has no such flag.
        ("silent", Nothing), ("loud", Nothing),
        ("noiversion", Nothing),

        ("remount", Unsupported), ("iversion", Unsupported),
        ("tmpcopyup", Unsupported), ("idmap", Unsupported), ("ridmap", Unsupported),
        ("rro", Unsupported),          ("rrw", Unsupported),
        ("rnosuid", Unsupported),      ("rsuid", Unsupported),
        ("rnodev", Unsupported),       ("rdev", Unsupported),
        ("rnoexec", Unsupported),      ("rexec", Unsupported),
        ("rnodiratime", Unsupported),  ("rdiratime", Unsupported),
        ("rnosymfollow", Unsupported), ("rsymfollow", Unsupported),
        ("rnoatime", Unsupported),     ("ratime", Unsupported),
        ("rrelatime", Unsupported),    ("rnorelatime", Unsupported),
        ("rstrictatime", Unsupported), ("rnostrictatime", Unsupported),
    ]
};

/// The words that are supported, for the features document.
pub fn supported() -> impl Iterator<Item = &'static str> {
    WORDS.iter().filter(|(_, word)| !matches!(word, Word::Unsupported)).map(|(text, _)| *text)
}

/// The words for a propagation, of a mount or of the root.
pub fn propagations() -> impl Iterator<Item = &'static str> {
    supported().filter(|word| propagation(word).is_some())
}

/// What a word for a propagation means (`linux.rootfsPropagation` has the same as a mount), and whether it is for the
/// mounts below as well.
pub fn propagation(word: &str) -> Option<(Propagation, bool)> {
    WORDS.iter().find(|(known, _)| *known == word).and_then(|(_, meaning)| match meaning {
        Word::Propagation(propagation, recursive) => Some((*propagation, *recursive)),
        _ => None,
    })
}

/// The attributes and their mount(2) flags, but for the access time modes.
const ATTRS: &[(MountAttrFlags, MountFlags)] = &[
    (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
    (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
    (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
    (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
    (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
    (MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
];

/// The file system flags and their mount(2) flags.
const SB_FLAGS: &[(&str, MountFlags)] = &[
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("lazytime", MountFlags::LAZYTIME),
];

const ATIME: u64 = MountAttrFlags::MOUNT_ATTR__ATIME.bits() as u64;

/// The three modes, of which mount(2) takes one.
const MS_ATIME: MountFlags = MountFlags::NOATIME.union(MountFlags::RELATIME).union(MountFlags::STRICTATIME);

impl MountOptions {
    /// Sorts the words of `mounts[].options`, or of a mount that containerd asks for. `Unimplemented`, with the word,
    /// for those that are not supported. An empty word is none.
    pub fn parse<I>(words: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut options = Self::default();
        for word in words {
            let word = word.as_ref();
            match WORDS.iter().find(|(known, _)| *known == word) {
                Some((_, Word::Unsupported)) => return Err(unsupported(word)),
                Some((_, known)) => options.apply(*known),
                None if word.is_empty() => {}
                None => options.data.push(match word.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (word.to_owned(), None),
                }),
            }
        }
        Ok(options)
    }

    fn apply(&mut self, word: Word) {
        match word {
            Word::Set(attr) => self.change(u64::from(attr.bits()), 0),
            Word::Clear(attr) => self.change(0, u64::from(attr.bits())),
            Word::Atime(mode) => self.set_atime(mode),
            // "Not this mode" leaves another one that was asked for; else it is the kernel's default that is wanted.
            Word::NotAtime(mode) if self.atime().is_none_or(|now| now == mode) => {
                self.set_atime(MountAttrFlags::MOUNT_ATTR_RELATIME);
            }
            Word::NotAtime(_) | Word::Nothing | Word::Unsupported => {}
            Word::Bind { recursive } => {
                self.bind = true;
                self.recursive_bind |= recursive;
            }
            Word::Propagation(propagation, recursive) => self.propagation = Some((propagation, recursive)),
            Word::SbFlag(flag) if self.sb_flags.contains(&flag) => {}
            Word::SbFlag(flag) => self.sb_flags.push(flag),
            Word::NotSbFlag(flag) => self.sb_flags.retain(|set| *set != flag),
        }
    }

    fn change(&mut self, set: u64, clear: u64) {
        self.attr_set = (self.attr_set | set) & !clear;
        self.attr_clr = (self.attr_clr | clear) & !set;
    }

    fn set_atime(&mut self, mode: MountAttrFlags) {
        self.attr_set = (self.attr_set & !ATIME) | u64::from(mode.bits());
        self.attr_clr |= ATIME;
    }

    /// The access time mode that was asked for, if one was.
    fn atime(&self) -> Option<MountAttrFlags> {
        let mode = MountAttrFlags::from_bits_retain((self.attr_set & ATIME) as u32);
        (self.attr_clr & ATIME != 0).then_some(mode)
    }

    /// Whether an attribute is to be changed: a bind mount without any keeps those of its source.
    pub fn changes_attributes(&self) -> bool {
        self.attr_set | self.attr_clr != 0
    }

    /// For a kernel or seccomp profile without fsopen(2): the flags of mount(2) for a new mount, those of the file
    /// system among them. `MS_BIND` and propagation, which are calls of their own, are not in it.
    pub fn ms_flags(&self) -> MountFlags {
        SB_FLAGS
            .iter()
            .filter(|(word, _)| self.sb_flags.contains(word))
            .fold(self.ms_remount_flags(MountFlags::empty()), |flags, (_, flag)| flags | *flag)
    }

    /// For a kernel without mount_setattr(2) (before 5.12): the flags for `MS_REMOUNT | MS_BIND` (to be added), which
    /// replaces all attributes, so that those the mount has (`current`, as MS_* and not as statvfs(3) numbers them) are
    /// given again.
    pub fn ms_remount_flags(&self, current: MountFlags) -> MountFlags {
        let mut flags = current;
        for (attr, flag) in ATTRS {
            let attr = u64::from(attr.bits());
            flags.set(*flag, (flags.contains(*flag) && self.attr_clr & attr == 0) || self.attr_set & attr != 0);
        }
        if let Some(mode) = self.atime() {
            flags.remove(MS_ATIME);
            flags.insert(match mode {
                MountAttrFlags::MOUNT_ATTR_NOATIME => MountFlags::NOATIME,
                MountAttrFlags::MOUNT_ATTR_STRICTATIME => MountFlags::STRICTATIME,
                _ => MountFlags::RELATIME,
            });
        }
        flags
    }

    /// The parameters as mount(2) takes them, `mode=755,size=65536k`.
    pub fn data_string(&self) -> String {
        let words = self.data.iter().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        });
        words.collect::<Vec<_>>().join(",")
    }
}

fn unsupported(word: &str) -> Error {
    Error::new(Kind::Unimplemented, format!("the mount option {word} is not supported by this version of dray"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The numbers of linux/mount.h, written out: the test is that the words reach the right bits.
    const RDONLY: u64 = 0x1;
    const NOSUID: u64 = 0x2;
    const NODEV: u64 = 0x4;
    const NOEXEC: u64 = 0x8;
    const NOATIME: u64 = 0x10;
    const STRICTATIME: u64 = 0x20;
    const ATIME_MODE: u64 = 0x70;
    const NODIRATIME: u64 = 0x80;
    const NOSYMFOLLOW: u64 = 0x20_0000;

    fn parse(words: &str) -> MountOptions {
        MountOptions::parse(words.split(',')).unwrap()
    }

    #[test]
    fn attribute_words_set_and_clear_their_bit_and_the_last_wins() {
        let cases: &[(&str, u64, u64)] = &[
            ("", 0, 0),
            ("defaults", 0, 0),
            ("ro", RDONLY, 0),
            ("rw", 0, RDONLY),
            ("ro,rw", 0, RDONLY),
            ("rw,ro", RDONLY, 0),
            ("nosuid,noexec,nodev", NOSUID | NOEXEC | NODEV, 0),
            ("suid,exec,dev", 0, NOSUID | NOEXEC | NODEV),
            ("nosuid,suid,nosuid", NOSUID, 0),
            ("nodiratime", NODIRATIME, 0),
            ("diratime", 0, NODIRATIME),
            ("nosymfollow", NOSYMFOLLOW, 0),
            ("symfollow", 0, NOSYMFOLLOW),
            ("silent,loud,noiversion", 0, 0),
        ];
        for (words, set, clear) in cases {
            let options = parse(words);
            assert_eq!((options.attr_set, options.attr_clr), (*set, *clear), "{words}");
            assert_eq!(options.changes_attributes(), set | clear != 0, "{words}");
        }
    }

    #[test]
    fn an_access_time_mode_replaces_the_one_before_and_clears_the_whole_field() {
        let cases: &[(&str, u64, u64)] = &[
            ("noatime", NOATIME, ATIME_MODE),
            ("strictatime", STRICTATIME, ATIME_MODE),
            ("relatime", 0, ATIME_MODE),
            ("noatime,strictatime", STRICTATIME, ATIME_MODE),
            ("strictatime,noatime", NOATIME, ATIME_MODE),
            ("noatime,relatime", 0, ATIME_MODE),
            ("atime", 0, ATIME_MODE),
            ("noatime,atime", 0, ATIME_MODE),
            ("strictatime,atime", STRICTATIME, ATIME_MODE),
            ("nostrictatime", 0, ATIME_MODE),
            ("strictatime,nostrictatime", 0, ATIME_MODE),
            ("noatime,nostrictatime", NOATIME, ATIME_MODE),
            ("norelatime", 0, 0),
            ("noatime,nodiratime,ro", NOATIME | NODIRATIME | RDONLY, ATIME_MODE),
        ];
        for (words, set, clear) in cases {
            let options = parse(words);
            assert_eq!((options.attr_set, options.attr_clr), (*set, *clear), "{words}");
        }
    }

    #[test]
    fn binds_and_propagation() {
        let binds = [("ro", false, false), ("bind", true, false), ("rbind", true, true), ("rbind,bind", true, true)];
        for (words, bind, recursive) in binds {
            let options = parse(words);
            assert_eq!((options.bind, options.recursive_bind), (bind, recursive), "{words}");
        }
        let propagations = [
            ("bind", None),
            ("shared", Some((Propagation::Shared, false))),
            ("rshared", Some((Propagation::Shared, true))),
            ("slave", Some((Propagation::Slave, false))),
            ("rslave", Some((Propagation::Slave, true))),
            ("private", Some((Propagation::Private, false))),
            ("rprivate", Some((Propagation::Private, true))),
            ("unbindable", Some((Propagation::Unbindable, false))),
            ("runbindable", Some((Propagation::Unbindable, true))),
            ("rslave,private", Some((Propagation::Private, false))),
        ];
        for (words, propagation) in propagations {
            assert_eq!(parse(words).propagation, propagation, "{words}");
        }
        let bits = [Propagation::Unbindable, Propagation::Private, Propagation::Slave, Propagation::Shared];
        assert_eq!(bits.map(|p| p.flag().bits()), [1 << 17, 1 << 18, 1 << 19, 1 << 20]);
    }

    #[test]
    fn file_system_flags_and_parameters() {
        assert_eq!(parse("sync,dirsync,lazytime,mand,sync").sb_flags, ["sync", "dirsync", "lazytime", "mand"]);
        assert_eq!(parse("sync,lazytime,mand,async,nolazytime,nomand").sb_flags, [] as [&str; 0]);

        let devpts = parse("nosuid,newinstance,ptmxmode=0666,x=a=b,,size=");
        let owned = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        let data = [
            owned("newinstance", None),
            owned("ptmxmode", Some("0666")),
            owned("x", Some("a=b")),
            owned("size", Some("")),
        ];
        assert_eq!(devpts.data, data);
        assert_eq!(devpts.data_string(), "newinstance,ptmxmode=0666,x=a=b,size=");
        assert_eq!(devpts.attr_set, NOSUID);
    }

    #[test]
    fn mount_flags_for_kernels_without_the_new_calls() {
        let cases = [
            ("", MountFlags::empty()),
            ("ro,nosuid", MountFlags::RDONLY | MountFlags::NOSUID),
            ("nodev,noexec,nodiratime", MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NODIRATIME),
            ("nosymfollow,noatime", MountFlags::NOSYMFOLLOW | MountFlags::NOATIME),
            ("strictatime,rw", MountFlags::STRICTATIME),
            ("relatime", MountFlags::RELATIME),
            ("sync,mand", MountFlags::SYNCHRONOUS | MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
            ("dirsync,lazytime", MountFlags::DIRSYNC | MountFlags::LAZYTIME),
            ("rbind,rshared,size=1", MountFlags::empty()),
        ];
        for (words, flags) in cases {
            assert_eq!(parse(words).ms_flags(), flags, "{words}");
        }
    }

    #[test]
    fn a_remount_keeps_what_the_mount_has_but_for_what_is_named() {
        let current = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOATIME;
        let cases = [
            ("", current),
            ("nodev", current | MountFlags::NODEV),
            ("rw", MountFlags::NOSUID | MountFlags::NOATIME),
            ("suid,ro", MountFlags::RDONLY | MountFlags::NOATIME),
            ("strictatime", MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::STRICTATIME),
            ("atime", MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::RELATIME),
        ];
        for (words, flags) in cases {
            assert_eq!(parse(words).ms_remount_flags(current), flags, "{words}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_word() {
        let recursive = "rro rrw rnosuid rsuid rnodev rdev rnoexec rexec rnodiratime rdiratime rrelatime rnorelatime \
                         rnoatime ratime rstrictatime rnostrictatime rnosymfollow rsymfollow";
        for word in recursive.split(' ').chain(["idmap", "ridmap", "tmpcopyup", "remount", "iversion"]) {
            let error = MountOptions::parse(["nosuid", word]).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented, "{word}");
            assert!(error.to_string().contains(&format!(" {word} ")), "{error}");
        }
    }

    #[test]
    fn the_table_names_no_word_twice() {
        for (at, (word, _)) in WORDS.iter().enumerate() {
            assert!(WORDS[..at].iter().all(|(earlier, _)| earlier != word), "{word}");
        }
    }
}
