//! What an entry of `mounts` is: the file system that it makes, or a bind of what is there, and where it goes.

use super::mount_options::MountOptions;
use super::validate::{invalid, no_nul, unsupported};
use crate::error::{Context, Result};
use oci_spec::runtime::Mount;
use std::path::{Component, Path, PathBuf};

/// What a mount makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// What is at `source` already; from the bundle where it is relative.
    Bind,
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
}

const KINDS: &[(&str, MountKind)] = &[
    ("bind", MountKind::Bind),
    ("proc", MountKind::Proc),
    ("sysfs", MountKind::Sysfs),
    ("tmpfs", MountKind::Tmpfs),
    ("devpts", MountKind::Devpts),
    ("mqueue", MountKind::Mqueue),
    ("cgroup", MountKind::Cgroup),
];

/// The types that there are, by name.
pub fn types() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

impl MountKind {
    /// The kind of a mount; `None` for a type that is not supported. With the options `bind` or `rbind` the type is a
    /// dummy (runtime-spec, "Mounts": often `none`); the type `bind` is a bind without the option, too.
    pub fn of(mount: &Mount, options: &MountOptions) -> Option<Self> {
        if options.bind {
            return Some(Self::Bind);
        }
        let typ = mount.typ().as_deref()?;
        KINDS.iter().find(|(name, _)| *name == typ).map(|(_, kind)| *kind)
    }
}

/// Where a mount goes, from the container's root, by its words alone: the specification wants it absolute; a relative
/// one, which runc too accepts, is meant from `/`.
pub fn destination(mount: &Mount) -> PathBuf {
    Path::new("/").join(mount.destination())
}

/// The rules for one entry of `mounts`. The caller's context says which.
pub(super) fn validate(mount: &Mount) -> Result<()> {
    for (field, mappings) in [("uidMappings", mount.uid_mappings()), ("gidMappings", mount.gid_mappings())] {
        if mappings.as_ref().is_some_and(|mappings| !mappings.is_empty()) {
            return Err(unsupported(field));
        }
    }
    no_nul("destination", mount.destination())?;
    // A file system mounted on the root would hide the root and, with it, every mount before it.
    if !mount.destination().components().any(|component| matches!(component, Component::Normal(_))) {
        return Err(invalid(format!("the destination {:?} is not a path below the root", mount.destination())));
    }
    let words = mount.options().as_deref().unwrap_or_default();
    words.iter().try_for_each(|word| no_nul("options", word))?;
    let options = MountOptions::parse(words).context(|| "options")?;
    match MountKind::of(mount, &options) {
        Some(MountKind::Bind) => validate_bind(mount, &options),
        Some(_) => mount.source().iter().try_for_each(|source| no_nul("source", source)),
        None => Err(match mount.typ().as_deref() {
            None | Some("" | "none") => invalid("a mount without a type needs the option bind or rbind"),
            Some(typ) => unsupported(format_args!("the type {typ:?}")),
        }),
    }
}

fn validate_bind(mount: &Mount, options: &MountOptions) -> Result<()> {
    match mount.source() {
        Some(source) if !source.as_os_str().is_empty() => no_nul("source", source)?,
        _ => return Err(invalid("a bind mount needs a source")),
    }
    // The kernel would ignore them without a word, as the file system is mounted already.
    match (options.data.first(), options.sb_flags.first()) {
        (Some((key, _)), _) => {
            Err(invalid(format!("options: {key:?} is a file system's, and does nothing for a bind mount")))
        }
        (None, Some(flag)) => {
            Err(invalid(format!("options: {flag:?} is a file system's, and does nothing for a bind mount")))
        }
        (None, None) => Ok(()),
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
        assert_eq!(kind(json!({ "destination": "/x", "type": "ext4" })), None);
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
            (json!({ "destination": "/a", "type": "ext4" }), Kind::Unimplemented, "ext4"),
            (json!({ "destination": "/a", "type": "cgroup2" }), Kind::Unimplemented, "cgroup2"),
            (json!({ "destination": "/a", "type": "overlay" }), Kind::Unimplemented, "overlay"),
            (json!({ "destination": "/a", "type": "tmpfs", "options": ["rro"] }), Kind::Unimplemented, "rro"),
        ];
        for (json, kind, names) in bad {
            let error = validate(&mount(json.clone())).expect_err(&json.to_string());
            assert_eq!(error.kind(), kind, "{json}");
            assert!(error.to_string().contains(names), "{json}: {error}");
        }
        let good = [
            json!({ "destination": "a", "type": "tmpfs", "options": ["size=1", "sync"] }),
            json!({ "destination": "/a/../b", "type": "proc", "uidMappings": [] }),
            json!({ "destination": "/a", "source": "relative", "options": ["rbind", "ro", "rprivate"] }),
        ];
        for json in good {
            validate(&mount(json)).unwrap();
        }
    }
}
