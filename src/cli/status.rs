//! What a container is like now, in runc's words and documents.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::cgroup::{Cgroup, Hierarchies};
use crate::engine::adopt::{self, Status};
use crate::engine::remains;
use crate::engine::state::Identity;
use crate::error::{Error, Kind, Result};
use crate::shim::client;
use crate::shim::logrus::Rfc3339;
use crate::spec::features::OCI_VERSIONS;
use crate::spec::load;

use super::target::Found;

/// A container as runc's `state` prints it, and a member of what `list` prints.
#[derive(Debug, Serialize)]
pub struct Shown {
    #[serde(rename = "ociVersion")]
    oci_version: &'static str,
    /// Its id.
    pub id: String,
    /// Its init; 0 once that has ended.
    pub pid: i32,
    /// Where it is in its life.
    pub status: &'static str,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was made.
    pub created: Created,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// Who has made it; only `list` says so.
    pub owner: String,
}

/// A time as Go's time.RFC3339Nano has it: without the zeros at its end.
#[derive(Clone, Copy, Debug)]
pub struct Created(pub SystemTime);

impl std::fmt::Display for Created {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = Rfc3339(self.0).to_string();
        f.write_str(text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.'))?;
        f.write_str("Z")
    }
}

impl Serialize for Created {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Found {
    /// Where it is in its life: as its shim says, or as the kernel and its directory do.
    ///
    /// # Errors
    /// `Unavailable` when its shim lives and does not answer.
    pub async fn status(&self) -> Result<Status> {
        let Some(shim) = self.shim().await? else { return self.status_without_shim() };
        let state = match shim.state(&self.saved.id, "").await {
            // Not to be seen yet.
            Err(e) if e.kind() == Kind::NotFound && self.saved.init.is_none() => return Ok(Status::Creating),
            state => state?,
        };
        Ok(match state.status {
            client::Status::Created => Status::Created,
            client::Status::Running | client::Status::Pausing => Status::Running,
            client::Status::Paused => Status::Paused,
            client::Status::Stopped => Status::Stopped,
        })
    }

    /// As the kernel and its directory have it.
    ///
    /// # Errors
    /// When this host has no cgroups.
    pub fn status_without_shim(&self) -> Result<Status> {
        Ok(adopt::status_of(&Hierarchies::discover()?, &self.state, &self.saved))
    }

    /// Its init, while it lives.
    pub fn living_init(&self) -> Option<Identity> {
        self.saved.init.filter(Identity::is_alive)
    }

    /// Its cgroup, to be read.
    ///
    /// # Errors
    /// When there are no hierarchies, or the state is damaged.
    pub fn cgroup(&self) -> Result<Option<Cgroup>> {
        remains::cgroup_of(&Hierarchies::discover()?, &self.saved)
    }

    /// The directory of its specification: a copy beside its state, or its bundle.
    pub fn config_dir(&self) -> &Path {
        if self.saved.by_command { self.state.path() } else { &self.saved.bundle }
    }

    /// What `state` and `list` print of it.
    pub fn shown(&self, status: Status) -> Shown {
        let saved = &self.saved;
        let spec = adopt::spec_of(&self.state, &self.saved);
        if let Err(e) = &spec {
            log::debug!("container {}: {e}", saved.id);
        }
        let rootfs = spec.as_ref().ok().map(|spec| load::rootfs(&saved.bundle, spec));
        let annotations = spec.as_ref().ok().and_then(|spec| spec.annotations().clone()).unwrap_or_default();
        let metadata = std::fs::metadata(self.state.path()).ok();
        // A state of before there was such a field: its directory is made once.
        let made = || metadata.as_ref().and_then(|metadata| metadata.created().or(metadata.modified()).ok());
        let pid = if status == Status::Stopped { None } else { saved.init };
        Shown {
            oci_version: OCI_VERSIONS.1,
            id: saved.id.clone(),
            pid: pid.map_or(0, |init| init.pid),
            status: status.name(),
            bundle: saved.bundle.clone(),
            rootfs: rootfs.or_else(|| saved.rootfs.clone()).unwrap_or_else(|| saved.bundle.join("rootfs")),
            created: Created(saved.created.or_else(made).unwrap_or(SystemTime::UNIX_EPOCH)),
            annotations: annotations.into_iter().collect(),
            owner: String::new(),
        }
    }

    /// The user whose directory it is.
    pub fn owner_name(&self) -> String {
        let uid = std::fs::metadata(self.state.path()).map_or(0, |metadata| metadata.uid());
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        user_name(uid, &passwd).unwrap_or_else(|| format!("#{uid}"))
    }
}

/// The name of a user, by passwd(5). No NSS: a static binary cannot load its modules.
fn user_name(uid: u32, passwd: &str) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// In runc's words, which its callers look for.
pub fn not_running(id: &str) -> Error {
    Error::new(Kind::FailedPrecondition, format!("container {id}: container not running"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_go() {
        let at = |nanos| Created(SystemTime::UNIX_EPOCH + Duration::new(1_763_798_400, nanos)).to_string();
        assert_eq!(at(0), "2025-11-22T08:00:00Z");
        assert_eq!(at(120_000_000), "2025-11-22T08:00:00.12Z");
        assert_eq!(at(1), "2025-11-22T08:00:00.000000001Z");
    }

    #[test]
    fn users_have_names() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nodd\nuser:x:1000:1000::/home/user:\n";
        assert_eq!(user_name(0, passwd).as_deref(), Some("root"));
        assert_eq!(user_name(1000, passwd).as_deref(), Some("user"));
        assert_eq!(user_name(7, passwd), None);
    }
}
