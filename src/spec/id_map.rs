//! The ids of a user namespace and those of the host: `linux.uidMappings` and `linux.gidMappings` (user_namespaces(7)).

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Process, Spec};
use std::fmt::Write;

use super::mount_options::MountOptions;
use super::namespaces::namespace;
use super::validate::invalid;
use crate::error::{Context, Result};

/// The most lines that the kernel takes (UID_GID_MAP_MAX_EXTENTS, Linux 4.15).
const MAX_EXTENTS: usize = 340;

/// A map is written at once and must be shorter than a page, of which 4096 bytes is the smallest.
const MAX_TEXT: usize = 4095;

/// A range of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Extent {
    inside: u32,
    outside: u32,
    count: u32,
}

/// The user ids, or the group ids, of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap(Vec<Extent>);

/// Both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// User ids.
    pub uids: IdMap,
    /// Group ids.
    pub gids: IdMap,
}

impl IdMap {
    fn of(field: &str, listed: &[LinuxIdMapping]) -> Result<Self> {
        let extent = |mapping: &LinuxIdMapping| Extent {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            count: mapping.size(),
        };
        let map = Self(listed.iter().map(extent).collect());
        map.judge(field)?;
        Ok(map)
    }

    /// Reads the kernel's own text, of /proc/PID/uid_map; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let extent = |line: &str| {
            let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
            let extent = Extent { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? };
            numbers.next().is_none().then_some(extent)
        };
        text.lines().map(extent).collect::<Option<_>>().map(Self)
    }

    /// What is written to /proc/PID/uid_map.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Extent { inside, outside, count } in &self.0 {
            let _ = writeln!(text, "{inside} {outside} {count}"); // A string takes everything.
        }
        text
    }

    /// The host's id for one of the namespace.
    pub fn host(&self, id: u32) -> Option<u32> {
        let found = self.0.iter().find(|extent| id >= extent.inside && id - extent.inside < extent.count)?;
        Some(found.outside + (id - found.inside))
    }

    fn judge(&self, field: &str) -> Result<()> {
        if self.0.len() > MAX_EXTENTS {
            return Err(invalid(format!("{field} has {} entries: the kernel takes {MAX_EXTENTS}", self.0.len())));
        }
        for (index, extent) in self.0.iter().enumerate() {
            let field = format!("{field}[{index}]");
            if extent.count == 0 {
                return Err(invalid(format!("{field}.size is 0")));
            }
            for (name, first) in [("containerID", extent.inside), ("hostID", extent.outside)] {
                // The last number is no id: it is -1, "none".
                if first.checked_add(extent.count).is_none() {
                    return Err(invalid(format!("{field}: {name} {first} and size {} are too large", extent.count)));
                }
            }
            let overlaps = |a: u32, b: u32, count: u32| a < b + count && b < a + extent.count;
            for (other, earlier) in self.0[..index].iter().enumerate() {
                if overlaps(extent.inside, earlier.inside, earlier.count) {
                    return Err(invalid(format!("{field} overlaps with [{other}] in the container's ids")));
                }
                if overlaps(extent.outside, earlier.outside, earlier.count) {
                    return Err(invalid(format!("{field} overlaps with [{other}] in the host's ids")));
                }
            }
        }
        match self.text().len() {
            length if length > MAX_TEXT => {
                Err(invalid(format!("{field} is too long: {length} bytes, of which the kernel takes {MAX_TEXT}")))
            }
            _ => Ok(()),
        }
    }

    fn sorted(&self) -> Vec<Extent> {
        let mut extents = self.0.clone();
        extents.sort_unstable();
        extents
    }
}

impl IdMaps {
    /// Those of the specification, judged by themselves; both empty where it has none.
    fn of(spec: &Spec) -> Result<Self> {
        let linux = spec.linux().as_ref();
        let uids = linux.and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
        let gids = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
        Ok(Self { uids: IdMap::of("linux.uidMappings", uids)?, gids: IdMap::of("linux.gidMappings", gids)? })
    }

    /// Those of a mount, by which its files get other owners; `None` where it has none. An empty list is none
    /// (runtime-spec 1.2: "allow empty mappings for [r]idmap").
    ///
    /// # Errors
    /// `InvalidArgument` for mappings that are wrong in themselves, and for one without the other.
    pub fn of_mount(mount: &Mount) -> Result<Option<Self>> {
        let uids = mount.uid_mappings().as_deref().unwrap_or_default();
        let gids = mount.gid_mappings().as_deref().unwrap_or_default();
        match (uids, gids) {
            ([], []) => Ok(None),
            ([], _) => Err(invalid("gidMappings needs uidMappings")),
            (_, []) => Err(invalid("uidMappings needs gidMappings")),
            _ => Ok(Some(Self { uids: IdMap::of("uidMappings", uids)?, gids: IdMap::of("gidMappings", gids)? })),
        }
    }

    /// Judges the ids of a process by their being mapped.
    ///
    /// # Errors
    /// `InvalidArgument`, which names the id.
    pub fn judge_process(&self, process: &Process) -> Result<()> {
        let user = process.user();
        mapped(&self.uids, "process.user.uid", user.uid())?;
        mapped(&self.gids, "process.user.gid", user.gid())?;
        let mut groups = user.additional_gids().iter().flatten();
        groups.try_for_each(|gid| mapped(&self.gids, "process.user.additionalGids", *gid))
    }
}

fn mapped(map: &IdMap, field: &str, id: u32) -> Result<()> {
    match map.host(id) {
        Some(_) => Ok(()),
        None => Err(invalid(format!("{field}: {id} is not mapped in the container's user namespace"))),
    }
}

/// The maps of the container's user namespace as far as the document tells: `None` where it has none of its own, or joins
/// one, whose maps are what they are.
///
/// # Errors
/// `InvalidArgument` for mappings that are wrong in themselves, missing, or there without a user namespace.
pub fn new_maps(spec: &Spec) -> Result<Option<IdMaps>> {
    let maps = IdMaps::of(spec)?;
    let listed = [("linux.uidMappings", &maps.uids), ("linux.gidMappings", &maps.gids)];
    match namespace(spec, LinuxNamespaceType::User) {
        None => match listed.iter().find(|(_, map)| !map.0.is_empty()) {
            Some((field, _)) => Err(invalid(format!("{field} needs a user namespace in linux.namespaces"))),
            None => Ok(None),
        },
        Some(user) if user.path.is_some() => Ok(None),
        Some(_) => match listed.iter().find(|(_, map)| map.0.is_empty()) {
            Some((field, _)) => Err(invalid(format!("{field} is required for a new user namespace"))),
            None => Ok(Some(maps)),
        },
    }
}

/// Judges what the document says of a container that joins a user namespace with the maps `found`.
///
/// # Errors
/// `InvalidArgument` where it says other maps, as in runc, or has ids that are not mapped there.
pub fn judge_joined(spec: &Spec, found: &IdMaps) -> Result<()> {
    let said = IdMaps::of(spec)?;
    for (field, said, found) in
        [("linux.uidMappings", said.uids, &found.uids), ("linux.gidMappings", said.gids, &found.gids)]
    {
        if !said.0.is_empty() && said.sorted() != found.sorted() {
            let found = found.text().trim_end().replace('\n', ", ");
            return Err(invalid(format!("{field} is not what the joined user namespace has: {found}")));
        }
    }
    judge_ids(spec, found)
}

/// Judges every id in the document that is one of the container's.
pub(super) fn judge_ids(spec: &Spec, maps: &IdMaps) -> Result<()> {
    // Whoever makes the container is its root.
    mapped(&maps.uids, "linux.uidMappings", 0)?;
    mapped(&maps.gids, "linux.gidMappings", 0)?;
    spec.process().as_ref().map_or(Ok(()), |process| maps.judge_process(process))?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())
            .context(|| format!("mounts[{index}]: options"))?;
        for (key, value) in &options.data {
            let Some(id) = value.as_ref().and_then(|value| value.parse().ok()) else { continue };
            match key.as_str() {
                "uid" => mapped(&maps.uids, &format!("mounts[{index}]: uid"), id)?,
                "gid" => mapped(&maps.gids, &format!("mounts[{index}]: gid"), id)?,
                _ => {}
            }
        }
    }
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    for (index, device) in devices.iter().enumerate() {
        mapped(&maps.uids, &format!("linux.devices[{index}].uid"), device.uid().unwrap_or(0))?;
        mapped(&maps.gids, &format!("linux.devices[{index}].gid"), device.gid().unwrap_or(0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::{Value, json};

    fn spec(namespaces: Value, uids: Value, gids: Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "process": { "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "linux": { "namespaces": namespaces, "uidMappings": uids, "gidMappings": gids },
        }))
        .unwrap()
    }

    type Change<'a> = &'a dyn Fn(&mut Value);

    fn one(inside: u32, outside: u32, count: u32) -> Value {
        json!({ "containerID": inside, "hostID": outside, "size": count })
    }

    fn new() -> Value {
        json!([{ "type": "user" }])
    }

    #[test]
    fn ids_are_mapped_at_the_ends_of_each_range_and_not_past_them() {
        let maps = new_maps(&spec(new(), json!([one(0, 1000, 1), one(10, 5000, 5)]), json!([one(0, 0, u32::MAX)])));
        let maps = maps.unwrap().unwrap();
        let host = [0, 1, 9, 10, 14, 15].map(|id| maps.uids.host(id));
        assert_eq!(host, [Some(1000), None, None, Some(5000), Some(5004), None]);
        assert_eq!((maps.gids.host(u32::MAX - 1), maps.gids.host(u32::MAX)), (Some(u32::MAX - 1), None));
        assert_eq!(maps.uids.text(), "0 1000 1\n10 5000 5\n");
        assert_eq!(
            IdMap::parse("         0       1000          1\n        10       5000          5\n"),
            Some(maps.uids)
        );
        assert_eq!(IdMap::parse("0 0 4294967295\n"), Some(maps.gids));
        for text in ["0 0", "0 0 1 1", "x 0 1", "\n"] {
            assert_eq!(IdMap::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn maps_that_no_kernel_takes_are_refused() {
        let many = |count: u32| Value::from((0..count).map(|n| one(n * 2, n * 2, 1)).collect::<Vec<_>>());
        let good = json!([one(0, 0, 1)]);
        for (uids, gids, words) in [
            (json!([]), good.clone(), "linux.uidMappings is required"),
            (good.clone(), Value::Null, "linux.gidMappings is required"),
            (json!([one(0, 0, 0)]), good.clone(), "linux.uidMappings[0].size is 0"),
            (json!([one(0, 1, u32::MAX)]), good.clone(), "linux.uidMappings[0]: hostID 1"),
            (json!([one(2, 0, u32::MAX - 1)]), good.clone(), "linux.uidMappings[0]: containerID 2"),
            (good.clone(), json!([one(0, 0, 10), one(9, 20, 1)]), "linux.gidMappings[1] overlaps with [0] in the cont"),
            (good.clone(), json!([one(0, 5, 10), one(20, 0, 6)]), "linux.gidMappings[1] overlaps with [0] in the host"),
            (many(341), good.clone(), "linux.uidMappings has 341 entries"),
            (
                Value::from((0..340).map(|n| one(n, 1_000_000_000 + n, 1)).collect::<Vec<_>>()),
                good.clone(),
                "linux.uidMappings is too long",
            ),
        ] {
            let error = new_maps(&spec(new(), uids.clone(), gids.clone())).expect_err(words);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        new_maps(&spec(new(), many(340), good)).unwrap();
    }

    #[test]
    fn maps_and_namespace_go_together() {
        let (none, all) = (json!([]), json!([one(0, 0, 10)]));
        let mount = json!([{ "type": "mount" }]);
        assert_eq!(new_maps(&spec(mount.clone(), none.clone(), none.clone())).unwrap(), None);
        for (uids, gids, field) in [(&all, &none, "linux.uidMappings"), (&none, &all, "linux.gidMappings")] {
            let error = new_maps(&spec(mount.clone(), uids.clone(), gids.clone())).unwrap_err();
            assert_eq!(error.to_string(), format!("{field} needs a user namespace in linux.namespaces"));
        }
        let joined = |uids: &Value| spec(json!([{ "type": "user", "path": "/u" }]), uids.clone(), none.clone());
        assert_eq!(new_maps(&joined(&all)).unwrap(), None);
        let found = new_maps(&spec(new(), json!([one(5, 50, 5), one(0, 10, 5)]), all.clone())).unwrap().unwrap();
        judge_joined(&joined(&none), &found).unwrap();
        judge_joined(&joined(&json!([one(0, 10, 5), one(5, 50, 5)])), &found).unwrap();
        let error = judge_joined(&joined(&all), &found).unwrap_err().to_string();
        assert!(error.contains("linux.uidMappings is not what") && error.contains("5 50 5, 0 10 5"), "{error}");
    }

    #[test]
    fn every_id_of_the_document_has_to_be_mapped() {
        let all = || json!([one(0, 100, 10)]);
        let judge = |change: Change<'_>| {
            let mut document = serde_json::to_value(spec(new(), all(), all())).unwrap();
            document["mounts"] = json!([{ "destination": "/a", "type": "tmpfs", "options": ["gid=9", "uid=9"] }]);
            change(&mut document);
            let spec: Spec = serde_json::from_value(document).unwrap();
            judge_ids(&spec, &new_maps(&spec).unwrap().unwrap())
        };
        judge(&|_| ()).unwrap();
        let device = |id: &str| json!([{ "path": "/d", "type": "c", "major": 1, "minor": 3, id: 10 }]);
        let cases: [(Change<'_>, &str); 8] = [
            (&|spec| spec["process"]["user"]["uid"] = json!(10), "process.user.uid: 10 "),
            (&|spec| spec["process"]["user"]["gid"] = json!(10), "process.user.gid: 10 "),
            (&|spec| spec["process"]["user"]["additionalGids"] = json!([1, 10]), "process.user.additionalGids: 10 "),
            (&|spec| spec["mounts"][0]["options"] = json!(["uid=10"]), "mounts[0]: uid: 10 "),
            (&|spec| spec["mounts"][0]["options"] = json!(["gid=10"]), "mounts[0]: gid: 10 "),
            (&|spec| spec["linux"]["devices"] = device("uid"), "linux.devices[0].uid: 10 "),
            (&|spec| spec["linux"]["devices"] = device("gid"), "linux.devices[0].gid: 10 "),
            (&|spec| spec["linux"]["uidMappings"] = json!([one(1, 100, 10)]), "linux.uidMappings: 0 "),
        ];
        for (change, words) in cases {
            let error = judge(change).expect_err(words);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }
}
