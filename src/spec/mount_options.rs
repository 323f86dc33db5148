//! A mount's options: the words of fstab(5), as the runtime specification's table "Linux mount options" lists them.
//!
//! The kernel takes them in four different places, so that is what they are sorted into: attributes of the mount
//! (mount_setattr(2), fsmount(2)), flags and parameters of the file system (fsconfig(2)), and propagation. A few are not
//! the kernel's but a runtime's own: `idmap`, `tmpcopyup` and the attributes of a whole tree (`rro`).
//!
//! `ro` is an attribute of the mount and never a flag of the file system: a proc, sysfs or mqueue of a namespace that
//! the container shares with the host is the host's own file system, and must not become read-only for the host.
//!
//! Later words win: `ro,rw` is `rw`. Only `bind` and `rbind` do not contradict: with both, the bind is recursive; and so it
//! is with `idmap` and `ridmap`. The attributes of a tree win over those of its top, wherever they stand, as with runc.

use crate::error::{Error, Kind, Result};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

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

/// Attributes of a mount, `MOUNT_ATTR_*`, as mount_setattr(2) takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// To set: `attr_set`, and the attributes of fsmount(2).
    pub set: u64,
    /// To clear: `attr_clr`. Holds the whole `MOUNT_ATTR__ATIME` where an access time mode is asked for, which the kernel
    /// demands since the mode is a number and not bits.
    pub clear: u64,
}

impl Attributes {
    /// Whether nothing is to be changed: a bind mount keeps the attributes of its source.
    pub fn is_empty(self) -> bool {
        self.set | self.clear == 0
    }

    /// These and then `later`, which win.
    pub fn then(self, later: Self) -> Self {
        Self { set: self.set & !later.clear | later.set, clear: self.clear & !later.set | later.clear }
    }

    fn apply(&mut self, attribute: Attribute) {
        let bits = |attr: MountAttrFlags| u64::from(attr.bits());
        let atime = |mode| Self { set: bits(mode), clear: ATIME };
        *self = self.then(match attribute {
            Attribute::Set(attr) => Self { set: bits(attr), clear: 0 },
            Attribute::Clear(attr) => Self { set: 0, clear: bits(attr) },
            Attribute::Atime(mode) => atime(mode),
            // "Not this mode" leaves another one that was asked for; else it is the kernel's default that is wanted.
            Attribute::NotAtime(mode) if self.atime().is_none_or(|now| now == mode) => {
                atime(MountAttrFlags::MOUNT_ATTR_RELATIME)
            }
            Attribute::NotAtime(_) | Attribute::Nothing => Self::default(),
        });
    }

    /// The access time mode that was asked for, if one was.
    fn atime(self) -> Option<MountAttrFlags> {
        let mode = MountAttrFlags::from_bits_retain((self.set & ATIME) as u32);
        (self.clear & ATIME != 0).then_some(mode)
    }
}

/// A mount's options, sorted by where the kernel takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Attributes of the mount alone.
    pub attrs: Attributes,
    /// Attributes of the mount and of all that is mounted below it (`rro`).
    pub recursive: Attributes,
    /// `bind` or `rbind`: the source is a path, and the mount's type is a dummy.
    pub bind: bool,
    /// `rbind`: with the mounts below the source.
    pub recursive_bind: bool,
    /// `remount`: what is mounted at the destination already gets the attributes and the propagation.
    pub remount: bool,
    /// `idmap` or `ridmap`: the owners of a bind's files are mapped; and whether those of the mounts below as well.
    pub idmap: Option<bool>,
    /// `tmpcopyup`: a tmpfs begins with a copy of what it covers.
    pub tmpcopyup: bool,
    /// The propagation, and whether it is for the mounts below as well (`rshared`).
    pub propagation: Option<(Propagation, bool)>,
    /// Flags of the file system, as fsconfig(2) `FSCONFIG_SET_FLAG` names them.
    pub sb_flags: Vec<&'static str>,
    /// Parameters of the file system, in the order given: `size=64k`, or a bare word such as devpts' `newinstance`.
    pub data: Vec<(String, Option<String>)>,
}

/// What the word of an attribute does.
#[derive(Clone, Copy)]
enum Attribute {
    Set(MountAttrFlags),
    Clear(MountAttrFlags),
    /// An access time mode is set...
    Atime(MountAttrFlags),
    /// ...or unset, if it is this one.
    NotAtime(MountAttrFlags),
    Nothing,
}

/// What one other word does.
#[derive(Clone, Copy)]
enum Word {
    Bind { recursive: bool },
    Remount,
    IdMap { recursive: bool },
    TmpCopyUp,
    Propagation(Propagation, bool),
    SbFlag(&'static str),
    NotSbFlag(&'static str),
    Nothing,
    Unsupported,
}

const ATIME: u64 = MountAttrFlags::MOUNT_ATTR__ATIME.bits() as u64;

/// The attributes: the word for a mount alone, that for the whole tree, and what it does.
#[rustfmt::skip]
const ATTRIBUTES: &[(&str, &str, Attribute)] = {
    use Attribute::*;
    type A = MountAttrFlags;
    &[
        ("ro", "rro", Set(A::MOUNT_ATTR_RDONLY)),                     ("rw", "rrw", Clear(A::MOUNT_ATTR_RDONLY)),
        ("nosuid", "rnosuid", Set(A::MOUNT_ATTR_NOSUID)),             ("suid", "rsuid", Clear(A::MOUNT_ATTR_NOSUID)),
        ("nodev", "rnodev", Set(A::MOUNT_ATTR_NODEV)),                ("dev", "rdev", Clear(A::MOUNT_ATTR_NODEV)),
        ("noexec", "rnoexec", Set(A::MOUNT_ATTR_NOEXEC)),             ("exec", "rexec", Clear(A::MOUNT_ATTR_NOEXEC)),
        ("nodiratime", "rnodiratime", Set(A::MOUNT_ATTR_NODIRATIME)),
        ("diratime", "rdiratime", Clear(A::MOUNT_ATTR_NODIRATIME)),
        ("nosymfollow", "rnosymfollow", Set(A::MOUNT_ATTR_NOSYMFOLLOW)),
        ("symfollow", "rsymfollow", Clear(A::MOUNT_ATTR_NOSYMFOLLOW)),

        ("noatime", "rnoatime", Atime(A::MOUNT_ATTR_NOATIME)),        ("atime", "ratime", NotAtime(A::MOUNT_ATTR_NOATIME)),
        ("strictatime", "rstrictatime", Atime(A::MOUNT_ATTR_STRICTATIME)),
        ("nostrictatime", "rnostrictatime", NotAtime(A::MOUNT_ATTR_STRICTATIME)),
        ("relatime", "rrelatime", Atime(A::MOUNT_ATTR_RELATIME)),
        // The kernel has no mode that this could mean: relatime is what a mount without a mode has.
        ("norelatime", "rnorelatime", Nothing),
    ]
};

/// Every other word of the specification's table. What is in neither is a parameter of the file system.
#[rustfmt::skip]
const WORDS: &[(&str, Word)] = {
    use Word::*;
    use self::Propagation as P;
    &[
        ("defaults", Nothing),

        ("bind", Bind { recursive: false }),          ("rbind", Bind { recursive: true }),
        ("remount", Remount),
        ("idmap", IdMap { recursive: false }),        ("ridmap", IdMap { recursive: true }),
        ("tmpcopyup", TmpCopyUp),
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
        // A flag of mount(2) that fsconfig(2) has not, and only file systems on disks heed.
        ("iversion", Unsupported),
    ]
};

/// The words that are supported, for the features document.
pub fn supported() -> impl Iterator<Item = &'static str> {
    let attributes = ATTRIBUTES.iter().flat_map(|(own, recursive, _)| [*own, *recursive]);
    let others = WORDS.iter().filter(|(_, word)| !matches!(word, Word::Unsupported)).map(|(text, _)| *text);
    attributes.chain(others)
}

/// Whether a word is for the mounts of a specification alone, and means nothing to mount(8) or containerd.
pub fn is_runtimes(word: &str) -> bool {
    let own = |known: Word| matches!(known, Word::Remount | Word::IdMap { .. } | Word::TmpCopyUp);
    WORDS.iter().any(|(text, known)| *text == word && own(*known))
        || ATTRIBUTES.iter().any(|(_, recursive, _)| *recursive == word)
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
            if let Some((own, _, attribute)) = ATTRIBUTES.iter().find(|(own, tree, _)| [*own, *tree].contains(&word)) {
                let attrs = if word == *own { &mut options.attrs } else { &mut options.recursive };
                attrs.apply(*attribute);
                continue;
            }
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
            Word::Bind { recursive } => {
                self.bind = true;
                self.recursive_bind |= recursive;
            }
            Word::Remount => self.remount = true,
            Word::IdMap { recursive } => self.idmap = Some(recursive || self.idmap == Some(true)),
            Word::TmpCopyUp => self.tmpcopyup = true,
            Word::Propagation(propagation, recursive) => self.propagation = Some((propagation, recursive)),
            Word::SbFlag(flag) if self.sb_flags.contains(&flag) => {}
            Word::SbFlag(flag) => self.sb_flags.push(flag),
            Word::NotSbFlag(flag) => self.sb_flags.retain(|set| *set != flag),
            Word::Nothing | Word::Unsupported => {}
        }
    }

    /// The attributes of the mount itself: its own and then, like runc, those of the tree.
    pub fn top(&self) -> Attributes {
        self.attrs.then(self.recursive)
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
            assert_eq!((options.attrs.set, options.attrs.clear), (*set, *clear), "{words}");
            assert_eq!(!options.attrs.is_empty(), set | clear != 0, "{words}");
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
            assert_eq!((options.attrs.set, options.attrs.clear), (*set, *clear), "{words}");
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
        assert_eq!(devpts.attrs.set, NOSUID);
    }

    #[test]
    fn a_recursive_word_is_for_the_tree_and_wins_over_the_tops() {
        // The words of the specification's table, in pairs that undo each other.
        let cases: &[(&str, u64, u64)] = &[
            ("rro", RDONLY, 0),
            ("rrw", 0, RDONLY),
            ("rnosuid", NOSUID, 0),
            ("rsuid", 0, NOSUID),
            ("rnodev", NODEV, 0),
            ("rdev", 0, NODEV),
            ("rnoexec", NOEXEC, 0),
            ("rexec", 0, NOEXEC),
            ("rnodiratime", NODIRATIME, 0),
            ("rdiratime", 0, NODIRATIME),
            ("rnosymfollow", NOSYMFOLLOW, 0),
            ("rsymfollow", 0, NOSYMFOLLOW),
            ("rnoatime", NOATIME, ATIME_MODE),
            ("ratime", 0, ATIME_MODE),
            ("rrelatime", 0, ATIME_MODE),
            ("rnorelatime", 0, 0),
            ("rstrictatime", STRICTATIME, ATIME_MODE),
            ("rnostrictatime", 0, ATIME_MODE),
            ("rnoatime,rstrictatime,rro,rrw", STRICTATIME, ATIME_MODE | RDONLY),
        ];
        for (words, set, clear) in cases {
            let options = parse(words);
            assert_eq!((options.recursive.set, options.recursive.clear), (*set, *clear), "{words}");
            assert!(options.attrs.is_empty(), "{words}");
        }
        let tops: &[(&str, u64, u64)] = &[
            ("ro,rnosuid", RDONLY | NOSUID, 0),
            ("ro,rrw", 0, RDONLY),
            ("rrw,ro", 0, RDONLY),
            ("rro,rw,nodev", RDONLY | NODEV, 0),
            ("strictatime,rnoatime", NOATIME, ATIME_MODE),
            ("rrelatime,noatime", 0, ATIME_MODE),
            ("noatime,rro", NOATIME | RDONLY, ATIME_MODE),
        ];
        for (words, set, clear) in tops {
            assert_eq!(parse(words).top(), Attributes { set: *set, clear: *clear }, "{words}");
        }
    }

    #[test]
    fn a_runtimes_own_words() {
        let idmaps = [("ro", None), ("idmap", Some(false)), ("ridmap", Some(true)), ("ridmap,idmap", Some(true))];
        for (words, idmap) in idmaps {
            assert_eq!(parse(words).idmap, idmap, "{words}");
        }
        assert!(parse("tmpcopyup").tmpcopyup && parse("bind,remount").remount);
        let runtimes: Vec<_> = supported().filter(|word| is_runtimes(word)).collect();
        assert_eq!(runtimes.len(), ATTRIBUTES.len() + 4, "{runtimes:?}");
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_word() {
        let error = MountOptions::parse(["nosuid", "iversion"]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented);
        assert!(error.to_string().contains(" iversion "), "{error}");
        assert!(supported().all(|word| word != "iversion"));
    }

    #[test]
    fn the_tables_name_no_word_twice() {
        let words = || ATTRIBUTES.iter().flat_map(|(a, b, _)| [a, b]).chain(WORDS.iter().map(|(word, _)| word));
        for (at, word) in words().enumerate() {
            assert!(words().take(at).all(|earlier| earlier != word), "{word}");
        }
    }
}
