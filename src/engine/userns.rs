//! The shim's part of a container's user namespace: its maps, and what only the host's root can do for a process in it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use oci_spec::runtime::Spec;

use crate::error::{Context, Error, Kind, Os, Result};
use crate::init::identity_plan::Rlimit;
use crate::init::plan::{Create, Plan};
use crate::init::sources::Sources;
use crate::spec::id_map::{self, IdMap, IdMaps};
use crate::sys::ns::{self, Birthplace, Namespace};
use crate::sys::{cred, userns};

use super::Engine;
use super::container::Process;
use super::create::sync_of;

/// How long the sources of bind mounts may take to be opened: one may be a server's that does not answer.
const SOURCES_BOUND: Duration = Duration::from_secs(60);

/// The maps of the user namespace that a container is to be in; `None` where that is the shim's.
///
/// # Errors
/// `InvalidArgument` where the one that is `joined` does not suit the specification.
pub(super) fn maps(spec: &Spec, joined: &[(Namespace, OwnedFd)]) -> Result<Option<IdMaps>> {
    let Some((_, joined)) = joined.iter().find(|(kind, _)| *kind == Namespace::User) else {
        return id_map::new_maps(spec);
    };
    let texts = userns::maps(joined.as_fd()).context(|| "the user namespace to join")?;
    let [uids, gids] = texts.map(|text| {
        IdMap::parse(&text).ok_or_else(|| Error::new(Kind::Internal, format!("not a map of ids: {text:?}")))
    });
    let maps = IdMaps { uids: uids?, gids: gids? };
    id_map::judge_joined(spec, &maps)?;
    Ok(Some(maps))
}

/// Opens a user namespace for each mapping of a mount's owners. That of the container's own user namespace is had from it,
/// and is what most mounts ask for, as containerd's CRI does.
///
/// # Errors
/// What the kernel says of a mapping, with the mount.
pub(super) fn map_owners(create: &mut Create, own: Option<&IdMaps>) -> Result<()> {
    let joined = create.joined.iter().find(|(kind, _)| *kind == Namespace::User).map(|(_, joined)| joined);
    let joined = joined.map(|joined| joined.try_clone().map(Rc::new).os(|| "dup")).transpose()?;
    let mut made: Vec<(IdMaps, Rc<OwnedFd>)> = Vec::new();
    for mount in create.rootfs.iter_mut().flat_map(|rootfs| &mut rootfs.mounts) {
        let Some(mapped) = &mut mount.mapped else { continue };
        let other = mapped.mapping.maps.as_ref().filter(|maps| Some(*maps) != own);
        mapped.users = match other {
            None => joined.clone(),
            Some(maps) => Some(match made.iter().find(|(known, _)| known == maps) {
                Some((_, users)) => users.clone(),
                None => {
                    let users = userns::with_maps(&maps.uids.text(), &maps.gids.text());
                    let users = Rc::new(users.context(|| mount.destination.display().to_string())?);
                    made.push((maps.clone(), users.clone()));
                    users
                }
            }),
        };
    }
    Ok(())
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
        let path = PathBuf::from(format!("/proc/{}/ns/user", init.child_pid()));
        let users = sources.want_users().then(|| ns::open_path(Namespace::User, &path)).transpose()?;
        let users = users.as_ref().map(AsFd::as_fd);
        let keep: Vec<_> = sources.users().chain(users).chain([sync.get_ref().as_fd()]).collect();
        let work = || sources.send(sync.get_ref(), users);
        self.in_child_at(what, SOURCES_BOUND, Some(place), &keep, work).await
    }
}
