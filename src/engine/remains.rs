//! What is left of a container, and its removal: one order for a delete, a create that failed, a shim that died and the
//! leftover of a create that nobody finished.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup::{Cgroup, Hierarchies, Removed, resctrl};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::pidfd;

use super::Engine;
use super::hooks::Poststop;
use super::place::Scope;
use super::ready::watch;
use super::rootfs;
use super::state::{Identity, Saved, StateDir};
use super::systemd::{STOP_BOUND, STOP_BOUND_HERE};

/// How long a cgroup may take to become empty after SIGKILL: longer only for tasks that the kernel will not let go
/// (state D). What is left then is said, and can be deleted later.
pub const KILL_BOUND: Duration = Duration::from_secs(5);

/// How long the removal of a cgroup with very many below it may take.
const REMOVE_BOUND: Duration = Duration::from_secs(60);

/// Before another attempt to remove one, at first.
const SHORT_PAUSE: Duration = Duration::from_micros(200);

/// How long a shim that has been killed may take to be gone. containerd gives the action `delete` 5 s in all.
const DYING_BOUND: Duration = Duration::from_secs(2);

/// How long an unmount may take: it writes out what the container has written.
const UNMOUNT_BOUND: Duration = Duration::from_secs(60);

/// What a container is made of outside of its processes. Each part is removed once; a removal that fails can be done again.
#[derive(Default)]
pub struct Remains {
    /// Its cgroup: ours, made by mkdir or by systemd.
    pub cgroup: Option<Cgroup>,
    /// The unit that it is, with its cgroup; that too where it is not sure to have come to be ours.
    pub scope: Option<(Scope, Cgroup)>,
    /// Its groups in the resctrl file system.
    pub resctrl: Vec<PathBuf>,
    /// Which directory the cgroup is, where another process has made it: its path may become another container's.
    pub cgroup_inode: Option<u64>,
    /// Kill what is in the cgroup: set where no pid namespace does it.
    pub kill: bool,
    /// The directory on which its root file system was mounted by us.
    pub rootfs: Option<PathBuf>,
    /// The child that mounts something there, where nobody waits for it any more.
    pub mounting: Option<OwnedFd>,
    /// The hooks to be run when it is gone.
    pub poststop: Option<Poststop>,
    /// Its state.
    pub state: Option<StateDir>,
}

/// Where an unmount may block, and a hook be waited for.
pub enum Unmount<'a> {
    /// In this process, which has nothing else to do: the action `delete`.
    Here,
    /// In a child of the shim.
    Beside(&'a Engine),
}

impl Unmount<'_> {
    /// How long to wait for a child that mounts still.
    fn bound(&self) -> Duration {
        match self {
            Self::Here => DYING_BOUND,
            Self::Beside(_) => UNMOUNT_BOUND,
        }
    }

    /// How long systemd may take to stop a unit.
    fn stop_bound(&self) -> Duration {
        match self {
            Self::Here => STOP_BOUND_HERE,
            Self::Beside(_) => STOP_BOUND,
        }
    }

    async fn rootfs(&self, target: &Path) -> Result<()> {
        match self {
            Self::Here => rootfs::unmount(target),
            Self::Beside(engine) => {
                engine.in_child("unmounting the rootfs", UNMOUNT_BOUND, || rootfs::unmount(target)).await
            }
        }
    }
}

impl Remains {
    /// Removes, in order: what still runs in the cgroup, the cgroup, the mounts; runs the poststop hooks; removes the state.
    ///
    /// # Errors
    /// Says what could not be removed; that, and what comes after it, is still in `self`.
    pub async fn remove(&mut self, unmount: Unmount<'_>) -> Result<()> {
        if let (true, Some(cgroup)) = (self.kill, &self.cgroup) {
            kill_all(cgroup, KILL_BOUND).await?;
        }
        if let Some((scope, cgroup)) = &self.scope {
            // What runs in one that is not sure to be ours is another's: systemd refuses a name that is taken.
            if self.cgroup.is_some() || !cgroup.populated()? {
                let stopped = scope.stop(cgroup, unmount.stop_bound()).await;
                // The unit ends by itself, too, when systemd sees that there is nothing in it any more.
                cgroup.remove()?;
                stopped?;
            }
            self.scope = None;
        }
        if let Some(cgroup) = &self.cgroup {
            remove_cgroup(cgroup, self.kill).await?;
            self.cgroup = None;
        }
        resctrl::remove(&self.resctrl)?;
        self.resctrl.clear();
        if let Some(target) = &self.rootfs {
            // It has been killed, and mounts all the same where the kernel has begun to.
            if let Some(mounting) = &self.mounting {
                let mounting = mounting.try_clone().os(|| "dup")?;
                if !ended(mounting, unmount.bound()).await? {
                    let text =
                        format!("what is being mounted on {} can be neither mounted nor given up", target.display());
                    return Err(Error::new(Kind::DeadlineExceeded, text));
                }
                self.mounting = None;
            }
            unmount.rootfs(target).await?;
            self.rootfs = None;
        }
        if let Some(poststop) = &mut self.poststop {
            poststop.run(self.state.as_ref(), &unmount).await;
            self.poststop = None;
        }
        if let Some(state) = &self.state {
            state.remove()?;
            self.state = None;
        }
        Ok(())
    }
}

impl Remains {
    /// Whether what is at the cgroup's path now is the container's.
    ///
    /// # Errors
    /// For one that cannot be looked at.
    pub fn has_its_cgroup(&self) -> Result<bool> {
        match (&self.cgroup, self.cgroup_inode) {
            (Some(cgroup), Some(ours)) => Ok(cgroup.inode()? == Some(ours)),
            _ => Ok(true),
        }
    }

    /// Takes what the state on disk tells of.
    ///
    /// # Errors
    /// For a cgroup that cannot be looked at.
    pub(super) fn of_saved(&mut self, hierarchies: &Hierarchies, saved: &Saved) -> Result<()> {
        self.rootfs = saved.rootfs.clone();
        self.mounting = saved.mounting.and_then(|mounting| mounting.open());
        self.resctrl = saved.resctrl.clone();
        self.poststop = saved.poststop.clone();
        if let Some(cgroup) = cgroup_of(hierarchies, saved)? {
            self.scope = saved.scope.clone().map(|scope| (scope, cgroup.clone()));
            self.cgroup = Some(cgroup);
            self.cgroup_inode = saved.cgroup_inode;
            self.kill = true;
            return Ok(());
        }
        // Create would have refused what cannot be opened, had it come so far.
        let Some(Ok(cgroup)) = saved.cgroup.as_ref().map(|path| Cgroup::open(hierarchies, path)) else { return Ok(()) };
        match (&saved.scope, saved.cgroup_inode) {
            // Its unit may have stayed behind its cgroup, or have been asked for and not have come to be.
            (Some(scope), ours) if ours.is_none() || cgroup.inode()?.is_none() => {
                self.scope = Some((scope.clone(), cgroup));
            }
            // It may not have come to be; if it has, there is nothing in it.
            (None, None) => self.cgroup = Some(cgroup),
            _ => {}
        }
        Ok(())
    }
}

/// The cgroup that is sure to be a saved container's; none where it is gone. Another container may have been given the path
/// since: its cgroup is another directory.
///
/// # Errors
/// For one that cannot be looked at, or would be the runtime's own.
pub fn cgroup_of(hierarchies: &Hierarchies, saved: &Saved) -> Result<Option<Cgroup>> {
    let (Some(path), Some(ours)) = (&saved.cgroup, saved.cgroup_inode) else { return Ok(None) };
    let cgroup = Cgroup::open(hierarchies, path)?;
    Ok((cgroup.inode()? == Some(ours)).then_some(cgroup))
}

/// Removes what the state on disk tells of a container whose shim is dead: at containerd's `delete` action, and when its
/// id is to be used again. Returns the pid that its init had. The caller has the state locked.
///
/// # Errors
/// `FailedPrecondition` when the container's shim lives.
pub async fn remove_saved(hierarchies: &Hierarchies, state: &StateDir, unmount: Unmount<'_>) -> Result<Option<i32>> {
    let Some(saved) = state.load()? else {
        // An aborted create, from before it did anything.
        state.remove_aborted()?;
        return Ok(None);
    };
    // Our own entry is that of a create in this very process: the caller decides before it comes here. One that the command
    // line has made is nobody's.
    if saved.owner.pid != std::process::id() as i32 && !saved.by_command {
        refuse_living(&saved.owner, &unmount).await?;
    }
    let init = saved.init.and_then(|init| init.open());
    match init.as_ref().map(|init| pidfd::kill(init, libc::SIGKILL as u32)) {
        Some(Err(e)) if e.kind() != Kind::NotFound => return Err(e),
        _ => {}
    }
    let mut remains = Remains { state: Some(state.clone()), ..Remains::default() };
    remains.of_saved(hierarchies, &saved)?;
    // It has been killed with its shim, or is now.
    if let Some(mounting) = &remains.mounting {
        let _ = pidfd::kill(mounting, libc::SIGKILL as u32);
    }
    if let Some(init) = init {
        // It may have been paused, and in the v1 freezer it would not die.
        if let (true, Some(cgroup)) = (remains.kill, &remains.cgroup) {
            cgroup.thaw()?;
        }
        ended(init, KILL_BOUND).await?;
    }
    remains.remove(unmount).await?;
    Ok(saved.init.map(|init| init.pid))
}

/// Removes the other containers of the dead shim `id`: containerd asks for the removal of a pod's shim by its id alone,
/// where it has given it containers without another `start` (containerd: ShimManager.Start of a task in a sandbox).
///
/// Those of a shim that lives are left alone: the id may be a new one's.
///
/// # Errors
/// The first; the others are removed all the same.
pub async fn remove_siblings(hierarchies: &Hierarchies, state: &StateDir, id: &str) -> Result<()> {
    let mut first = Ok(());
    for sibling in state.neighbours().iter().filter(|sibling| sibling.path() != state.path()) {
        // Its own `delete` may be under way.
        let Some(_lock) = sibling.lock()? else { continue };
        let removed = match sibling.load() {
            Ok(Some(saved)) if is_of_shim(&saved, id) && !saved.owner.is_alive() => {
                let removed = remove_saved(hierarchies, sibling, Unmount::Here).await;
                removed.map(drop).context(|| format!("container {} of the same shim", saved.id))
            }
            // What cannot be read is another's trouble.
            _ => Ok(()),
        };
        first = first.and(removed);
    }
    first
}

fn is_of_shim(saved: &Saved, id: &str) -> bool {
    match &saved.shim {
        // The command line's, whatever its bundle says.
        _ if saved.by_command => false,
        Some(shim) => shim == id,
        // A state without it is of a version before it: containerd 2.0 and later write the same into the bundle.
        None => std::fs::read_to_string(saved.bundle.join("sandbox")).is_ok_and(|sandbox| sandbox.trim() == id),
    }
}

/// containerd calls `delete` when the shim's socket closes, which a killed process does before it is gone.
async fn refuse_living(owner: &Identity, unmount: &Unmount<'_>) -> Result<()> {
    let Some(pidfd) = owner.open() else { return Ok(()) };
    let bound = match unmount {
        Unmount::Here => DYING_BOUND,
        Unmount::Beside(_) => Duration::ZERO,
    };
    if ended(pidfd, bound).await? {
        return Ok(());
    }
    Err(Error::new(Kind::FailedPrecondition, format!("its shim, process {}, is alive", owner.pid)))
}

/// Waits for a process's end; false at the bound.
async fn ended(pidfd: OwnedFd, bound: Duration) -> Result<bool> {
    if pidfd::has_exited(&pidfd) {
        return Ok(true);
    }
    let exited = watch(pidfd, tokio::io::Interest::READABLE)?;
    Ok(tokio::time::timeout(bound, exited.readable()).await.is_ok())
}

/// SIGKILL for everything in the cgroup and below it, again and again until it is empty.
///
/// # Errors
/// `DeadlineExceeded` with the pids that are left at the bound.
pub async fn kill_all(cgroup: &Cgroup, bound: Duration) -> Result<()> {
    let what = || format!("killing cgroup {}", cgroup.path().display());
    let deadline = Instant::now() + bound;
    let mut pause = Duration::from_micros(500);
    while cgroup.populated().context(what)? {
        cgroup.kill().context(what)?;
        if Instant::now() >= deadline {
            let left = cgroup.procs().unwrap_or_default();
            return Err(
                Error::new(Kind::DeadlineExceeded, format!("processes {left:?} are still there")).context(what())
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// rmdir says EBUSY for a moment after the last process has been reaped: the kernel takes it out of its cgroup later.
/// Where it may be killed, so is who was born in it since: an exec that was on its way.
async fn remove_cgroup(cgroup: &Cgroup, kill: bool) -> Result<()> {
    let what = || format!("removing cgroup {}", cgroup.path().display());
    let end = Instant::now() + REMOVE_BOUND;
    let mut deadline = Instant::now() + KILL_BOUND;
    let mut pause = SHORT_PAUSE;
    loop {
        match cgroup.remove_some().context(what)? {
            Removed::All => return Ok(()),
            Removed::Below(0) if kill => drop(cgroup.kill().context(what)?),
            Removed::Below(0) => {}
            // There are many, and others have their turn between.
            Removed::Below(_) => (deadline, pause) = (Instant::now() + KILL_BOUND, SHORT_PAUSE),
        }
        if Instant::now() >= deadline.min(end) {
            let left = cgroup.procs().unwrap_or_default();
            return Err(Error::new(Kind::DeadlineExceeded, format!("busy, with processes {left:?}")).context(what()));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a shim that was killed has left is known by its state alone.
    #[test]
    fn the_resctrl_groups_of_a_dead_shims_container_are_removed() {
        let root = std::env::temp_dir().join(format!("dray-test-remains-{}", std::process::id()));
        let groups = [root.join("one/mon_groups"), root.join("one")];
        std::fs::create_dir_all(&groups[0]).unwrap();
        let state = StateDir::new(&root.join("state"), "default", "one").unwrap();
        // This process is the owner, and not asked whether it lives.
        let saved = Saved { resctrl: groups.into(), ..Saved::new("one", &root).unwrap() };
        state.take(&saved).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(remove_saved(&Hierarchies::discover().unwrap(), &state, Unmount::Here)).unwrap();
        assert!(!root.join("one").exists() && !state.path().exists());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
