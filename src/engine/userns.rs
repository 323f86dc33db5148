//! The shim's part of a container's user namespace: its maps, and what only the host's root can do for a process in it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::{Context, Error, Kind, Result};
use crate::init::identity_plan::Rlimit;
use crate::init::plan::Plan;
use crate::init::sources::Sources;
use crate::spec::id_map::{self, IdMap, IdMaps};
use crate::spec::namespaces::namespace;
use crate::sys::ns::{self, Birthplace, Namespace};
use crate::sys::{cred, userns};

use super::Engine;
use super::container::Process;
use super::create::sync_of;

/// How long the sources of bind mounts may take to be opened: one may be a server's that does not answer.
const SOURCES_BOUND: Duration = Duration::from_secs(60);

/// The user namespace that a container is to join by its path; `None` where it joins none.
///
/// # Errors
/// `InvalidArgument` where the path leads to no user namespace.
pub(super) fn joined(spec: &Spec) -> Result<Option<OwnedFd>> {
    let path = namespace(spec, LinuxNamespaceType::User).and_then(|namespace| namespace.path);
    path.map(|path| ns::open_path(Namespace::User, path)).transpose()
}

/// The maps of the user namespace that a container is to be in; `None` where that is the shim's.
///
/// # Errors
/// `InvalidArgument` where the `joined` one does not suit the specification.
pub(super) fn maps(spec: &Spec, joined: Option<&OwnedFd>) -> Result<Option<IdMaps>> {
    let Some(joined) = joined else { return id_map::new_maps(spec) };
    let texts = userns::maps(joined.as_fd()).context(|| "the user namespace to join")?;
    let [uids, gids] = texts.map(|text| {
        IdMap::parse(&text).ok_or_else(|| Error::new(Kind::Internal, format!("not a map of ids: {text:?}")))
    });
    let maps = IdMaps { uids: uids?, gids: gids? };
    id_map::judge_joined(spec, &maps)?;
    Ok(Some(maps))
}

/// What the shim does to a child in a user namespace before it lets go of it.
#[derive(Default)]
pub(super) struct Outside {
    /// The maps of the namespace that was made with it.
    maps: Option<IdMaps>,
    /// Its limits, which it may not raise itself.
    limits: Vec<Rlimit>,
}

impl Outside {
    /// For the process of `plan`; `maps` are those of its user namespace. Nothing where it has none.
    pub fn of(plan: &Plan, maps: Option<&IdMaps>) -> Self {
        let Some(maps) = maps else { return Self::default() };
        let made = plan.clone_flags() & Namespace::User.flag() != 0;
        Self { maps: made.then(|| maps.clone()), limits: plan.process.rlimits.clone() }
    }

    /// Does it.
    pub fn apply(&self, pid: u32) -> Result<()> {
        if let Some(maps) = &self.maps {
            userns::write_maps(pid, &maps.uids.text(), &maps.gids.text())?;
        }
        for limit in &self.limits {
            cred::make_room(pid, limit.resource, limit.hard).context(|| limit.name.clone())?;
        }
        Ok(())
    }
}

impl Engine {
    /// Opens what the init of a new container wants of the host, in its mount namespace, and sends it.
    pub(super) async fn send_sources(&self, init: &Process, sources: &Sources) -> Result<()> {
        let sync = sync_of(init)?;
        let child = init.child_pidfd()?;
        let place = Birthplace { target: child.as_fd(), flags: Namespace::Mount.flag(), home: &self.home };
        let what = "opening the host's sources";
        let work = || sources.send(sync.get_ref());
        self.in_child_at(what, SOURCES_BOUND, Some(place), &[sync.get_ref().as_fd()], work).await
    }
}
