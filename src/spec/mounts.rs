//! What an entry of `mounts` is: the file system that it makes, or a bind of what is there, and where it goes.

use super::id_map::IdMaps;
use super::mount_options::MountOptions;
use super::namespaces::{Namespace, namespace};
use super::validate::{invalid, no_nul, unsupported};
use crate::error::{Context, Result};
use libc::MOUNT_ATTR_RDONLY;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use std::path::{Component, Path, PathBuf};

/// What a mount makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// What is at `source` already; from the bundle where it is relative.
    Bind,
    /// Nothing: what is mounted at the destination already is changed, as by mount(8) with `remount,bind`.
    Remount,
    /// `proc`, of the container's PID namespace.
    Proc,
    /// `sysfs`, of the container's network namespace.
    Sysfs,
    /// `tmpfs`.
    Tmpfs,
    /// `devpts`.
    Devpts,
    /// `mqueue`, of the container's IPC namespace.
    Mqueue,
    /// `cgroup`: the container's view of its own cgroups, whatever the host's version is.
    Cgroup,
    /// `cgroup2`: the unified hierarchy alone.
    Cgroup2,
    /// Any other file system that the kernel has (runtime-spec: config.md, "Mounts": those of /proc/filesystems).
    Other,
}

const KINDS: &[(&str, MountKind)] = &[
    ("bind", MountKind::Bind),
    ("proc", MountKind::Proc),
    ("sysfs", MountKind::Sysfs),
    ("tmpfs", MountKind::Tmpfs),
    ("devpts", MountKind::Devpts),
    ("mqueue", MountKind::Mqueue),
    ("cgroup", MountKind::Cgroup),
    ("cgroup2", MountKind::Cgroup2),
];

/// The types that there are, by name.
pub fn types() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

impl MountKind {
    /// The kind of a mount; `None` for one without a type, and for a type that is not supported. With the options `bind` or `rbind` the type is a
    /// dummy (runtime-spec, "Mounts": often `none`); the type `bind` is a bind without the option, too.
    pub fn of(mount: &Mount, options: &MountOptions) -> Option<Self> {
        if options.remount {
            return Some(Self::Remount);
        }
        if options.bind {
            return Some(Self::Bind);
        }
        let typ = mount.typ().as_deref()?;
        match typ {
            "" | "none" => None,
            _ => Some(KINDS.iter().find(|(name, _)| *name == typ).map_or(Self::Other, |(_, kind)| *kind)),
        }
    }
}

/// Where a mount goes, from the container's root, by its words alone: the specification wants it absolute; a relative
/// one, which runc too accepts, is meant from `/`.
pub fn destination(mount: &Mount) -> PathBuf {
    Path::new("/").join(mount.destination())
}

/// Whether the container is to divide its own cgroup: in a new cgroup namespace, with the hierarchy writable at /sys/fs/cgroup
/// (runtime-spec: config-linux.md, "Cgroup ownership").
pub fn gives_cgroup(spec: &Spec) -> bool {
    let new = |namespace: Namespace<'_>| namespace.path.is_none();
    let writable = |mount: &Mount| {
        let Ok(options) = MountOptions::parse(mount.options().as_deref().unwrap_or_default()) else { return false };
        matches!(MountKind::of(mount, &options), Some(MountKind::Cgroup | MountKind::Cgroup2))
            && destination(mount).components().eq(Path::new("/sys/fs/cgroup").components())
            && options.top().set & MOUNT_ATTR_RDONLY == 0
    };
    namespace(spec, LinuxNamespaceType::Cgroup).is_some_and(new) && spec.mounts().iter().flatten().any(writable)
}

/// Whose the files of a bind mount are seen to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMapping {
    /// From the file system's ids to the host's; `None` for the mapping of the container's user namespace.
    pub maps: Option<IdMaps>,
    /// For the mounts below it too.
    pub recursive: bool,
}

impl IdMapping {
    /// That of a mount, where it is to have one: by its mappings, by the options `idmap` and `ridmap`, or both.
    ///
    /// # Errors
    /// What [`IdMaps::of_mount`] says.
    pub fn of(mount: &Mount, options: &MountOptions) -> Result<Option<Self>> {
        let maps = IdMaps::of_mount(mount)?;
        let wanted = maps.is_some() || options.idmap.is_some();
        Ok(wanted.then_some(Self { maps, recursive: options.idmap == Some(true) }))
    }
}

/// The rules for one entry of `mounts`, of a container in a user namespace of its own or not. The caller's context says
/// which.
pub(super) fn validate(mount: &Mount, user_namespace: bool) -> Result<()> {
    no_nul("destination", mount.destination())?;
    // A file system mounted on the root would hide the root and, with it, every mount before it.
    if !mount.destination().components().any(|component| matches!(component, Component::Normal(_))) {
        return Err(invalid(format!("the destination {:?} is not a path below the root", mount.destination())));
    }
    let words = mount.options().as_deref().unwrap_or_default();
    words.iter().try_for_each(|word| no_nul("options", word))?;
    let options = MountOptions::parse(words).context(|| "options")?;
    mount.typ().iter().try_for_each(|typ| no_nul("type", typ))?;
    let kind = MountKind::of(mount, &options);
    match kind {
        Some(MountKind::Bind) => validate_bind(mount, &options)?,
        Some(MountKind::Remount) => no_parameters(&options, "a remount, which is of the mount alone")?,
        Some(_) => mount.source().iter().try_for_each(|source| no_nul("source", source))?,
        None => {
            return Err(match mount.typ().as_deref() {
                None | Some("" | "none") => invalid("a mount without a type needs the option bind or rbind"),
                Some(typ) => unsupported(format_args!("the type {typ:?}")),
            });
        }
    }
    if options.tmpcopyup && kind != Some(MountKind::Tmpfs) {
        return Err(invalid("options: tmpcopyup is for a tmpfs"));
    }
    match IdMapping::of(mount, &options)? {
        None => Ok(()),
        // The kernel maps a mount before it is anywhere, and a new file system's ids are the container's already.
        Some(_) if kind != Some(MountKind::Bind) => Err(invalid("idmap and uidMappings are for bind mounts")),
        Some(IdMapping { maps: None, .. }) if !user_namespace => {
            Err(invalid("options: idmap needs uidMappings and gidMappings, or a user namespace in linux.namespaces"))
        }
        Some(_) => Ok(()),
    }
}

fn validate_bind(mount: &Mount, options: &MountOptions) -> Result<()> {
    match mount.source() {
        Some(source) if !source.as_os_str().is_empty() => no_nul("source", source)?,
        _ => return Err(invalid("a bind mount needs a source")),
    }
    no_parameters(options, "a bind mount")
}

/// Refuses what the kernel would ignore without a word, as the file system is mounted already.
fn no_parameters(options: &MountOptions, what: &str) -> Result<()> {
    let named = options.data.first().map(|(key, _)| key.as_str()).or(options.sb_flags.first().copied());
    match named {
        Some(name) => Err(invalid(format!("options: {name:?} is a file system's, and does nothing for {what}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::json;

    fn mount(json: serde_json::Value) -> Mount {
        serde_json::from_value(json).unwrap()
    }

    fn kind(json: serde_json::Value) -> Option<MountKind> {
        let mount = mount(json);
        MountKind::of(&mount, &MountOptions::parse(mount.options().clone().unwrap_or_default()).unwrap())
    }

    #[test]
    fn the_bind_option_outranks_the_type() {
        assert_eq!(kind(json!({ "destination": "/x", "type": "none", "options": ["rbind"] })), Some(MountKind::Bind));
        assert_eq!(kind(json!({ "destination": "/x", "type": "tmpfs", "options": ["bind"] })), Some(MountKind::Bind));
        assert_eq!(kind(json!({ "destination": "/x", "options": ["bind"] })), Some(MountKind::Bind));
        assert_eq!(kind(json!({ "destination": "/x", "type": "bind" })), Some(MountKind::Bind));
        assert_eq!(kind(json!({ "destination": "/x", "type": "cgroup" })), Some(MountKind::Cgroup));
        let remount = json!({ "destination": "/x", "type": "bind", "options": ["bind", "remount"] });
        assert_eq!(kind(remount), Some(MountKind::Remount));
        assert_eq!(kind(json!({ "destination": "/x", "type": "ext4" })), Some(MountKind::Other));
        assert_eq!(kind(json!({ "destination": "/x", "type": "cgroup2" })), Some(MountKind::Cgroup2));
    }

    #[test]
    fn a_cgroup_is_given_with_a_namespace_and_a_writable_mount() {
        let gives = |mount: serde_json::Value, namespace: serde_json::Value| {
            let spec = json!({ "ociVersion": "1.0.0", "mounts": [mount], "linux": { "namespaces": [namespace] } });
            gives_cgroup(&serde_json::from_value(spec).unwrap())
        };
        let mount =
            |typ: &str, place: &str, options: &[&str]| json!({ "destination": place, "type": typ, "options": options });
        let place = "/sys/fs/cgroup";
        let own = || json!({ "type": "cgroup" });
        assert!(gives(mount("cgroup", place, &["rw"]), own()) && gives(mount("cgroup2", "sys/fs/cgroup/", &[]), own()));
        assert!(!gives(mount("cgroup", place, &["rw"]), json!({ "type": "cgroup", "path": "/proc/1/ns/cgroup" })));
        assert!(!gives(mount("cgroup", place, &["rw"]), json!({ "type": "pid" })));
        for (typ, at, options) in
            [("cgroup", place, &["ro"][..]), ("cgroup", place, &["rro"]), ("tmpfs", place, &[]), ("cgroup", "/x", &[])]
        {
            assert!(!gives(mount(typ, at, options), own()), "{typ} {at} {options:?}");
        }
    }

    #[test]
    fn a_relative_destination_is_from_the_root() {
        assert_eq!(destination(&mount(json!({ "destination": "a/b" }))), Path::new("/a/b"));
        assert_eq!(destination(&mount(json!({ "destination": "/a/b" }))), Path::new("/a/b"));
    }

    #[test]
    fn rules_of_one_mount() {
        let bad = [
            (json!({ "destination": "", "type": "tmpfs" }), Kind::InvalidArgument, "destination"),
            (json!({ "destination": "/", "type": "tmpfs" }), Kind::InvalidArgument, "destination"),
            (json!({ "destination": "/../.", "type": "tmpfs" }), Kind::InvalidArgument, "destination"),
            (json!({ "destination": "/a\u{0}", "type": "tmpfs" }), Kind::InvalidArgument, "destination"),
            (json!({ "destination": "/a", "type": "tmpfs", "source": "a\u{0}" }), Kind::InvalidArgument, "source"),
            (
                json!({ "destination": "/a", "type": "tmpfs", "options": ["mode=\u{0}"] }),
                Kind::InvalidArgument,
                "options",
            ),
            (json!({ "destination": "/a", "type": "bind" }), Kind::InvalidArgument, "source"),
            (json!({ "destination": "/a", "options": ["bind"], "source": "" }), Kind::InvalidArgument, "source"),
            (
                json!({ "destination": "/a", "options": ["bind", "size=1"], "source": "/" }),
                Kind::InvalidArgument,
                "size",
            ),
            (json!({ "destination": "/a", "options": ["bind", "sync"], "source": "/" }), Kind::InvalidArgument, "sync"),
            (json!({ "destination": "/a" }), Kind::InvalidArgument, "bind"),
            (json!({ "destination": "/a", "type": "none" }), Kind::InvalidArgument, "bind"),
            (json!({ "destination": "/a", "type": "e\u{0}" }), Kind::InvalidArgument, "type"),
            (json!({ "destination": "/a", "type": "tmpfs", "options": ["iversion"] }), Kind::Unimplemented, "iversion"),
            (json!({ "destination": "/a", "options": ["remount", "size=1"] }), Kind::InvalidArgument, "size"),
            (json!({ "destination": "/a", "options": ["remount", "sync"] }), Kind::InvalidArgument, "sync"),
            (
                json!({ "destination": "/a", "type": "proc", "options": ["tmpcopyup"] }),
                Kind::InvalidArgument,
                "tmpcopyup",
            ),
        ];
        for (json, kind, names) in bad {
            let error = validate(&mount(json.clone()), true).expect_err(&json.to_string());
            assert_eq!(error.kind(), kind, "{json}");
            assert!(error.to_string().contains(names), "{json}: {error}");
        }
        let good = [
            json!({ "destination": "a", "type": "tmpfs", "options": ["size=1", "sync"] }),
            json!({ "destination": "/a/../b", "type": "proc", "uidMappings": [] }),
            json!({ "destination": "/a", "source": "relative", "options": ["rbind", "ro", "rprivate", "rro"] }),
            json!({ "destination": "/a", "type": "tmpfs", "options": ["tmpcopyup", "rnosuid"] }),
            json!({ "destination": "/a", "options": ["remount", "ro"] }),
        ];
        for json in good {
            validate(&mount(json), false).unwrap();
        }
    }

    #[test]
    fn owners_are_mapped_by_mappings_or_by_those_of_the_user_namespace() {
        let bind = |options: serde_json::Value, uids: serde_json::Value, gids: serde_json::Value| {
            mount(json!({ "destination": "/a", "source": "/b", "type": "bind", "options": options,
                          "uidMappings": uids, "gidMappings": gids }))
        };
        let none = json!([]);
        let one = json!([{ "containerID": 0, "hostID": 5, "size": 1 }]);
        let empty = json!([{ "containerID": 0, "hostID": 5, "size": 0 }]);
        let mapping = |mount: &Mount| {
            let options = MountOptions::parse(mount.options().clone().unwrap()).unwrap();
            IdMapping::of(mount, &options).unwrap().map(|mapping| (mapping.maps.is_some(), mapping.recursive))
        };
        for (options, maps, wanted) in [
            (json!(["rbind"]), &none, None),
            (json!(["rbind"]), &one, Some((true, false))),
            (json!(["rbind", "idmap"]), &one, Some((true, false))),
            (json!(["rbind", "ridmap"]), &one, Some((true, true))),
            (json!(["rbind", "idmap"]), &none, Some((false, false))),
            (json!(["rbind", "ridmap"]), &none, Some((false, true))),
        ] {
            let mount = bind(options, maps.clone(), maps.clone());
            assert_eq!(mapping(&mount), wanted, "{mount:?}");
            validate(&mount, true).unwrap();
            // Without a user namespace the mapping is the mount's own or nobody's.
            assert_eq!(validate(&mount, false).is_ok(), wanted.is_none_or(|(own, _)| own), "{mount:?}");
        }
        let options = || json!(["bind", "idmap"]);
        for (mount, words) in [
            (bind(options(), one.clone(), none.clone()), "uidMappings needs gidMappings"),
            (bind(options(), none.clone(), one.clone()), "gidMappings needs uidMappings"),
            (bind(options(), one.clone(), empty), "gidMappings[0].size is 0"),
            (mount(json!({ "destination": "/a", "type": "tmpfs", "options": ["idmap"] })), "for bind mounts"),
            (mount(json!({ "destination": "/a", "options": ["bind", "remount", "ridmap"] })), "for bind mounts"),
            (
                mount(json!({ "destination": "/a", "type": "tmpfs", "uidMappings": one, "gidMappings": one })),
                "for bind mounts",
            ),
        ] {
            let error = validate(&mount, true).expect_err(words);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }
}
