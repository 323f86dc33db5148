//! Finds a container that this program or a shim has made, and says who is to change it.
//!
//! A container of a living shim is changed by that shim, which is asked over its socket: it knows what is on its way, and
//! containerd hears of it. One that nobody owns any more is changed by this process, which has it locked meanwhile. So is one
//! that a `dray run` in the foreground waits for, whose container other calls change without it, as with runc.

use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::engine::Engine;
use crate::engine::state::{Saved, StateDir};
use crate::error::{Error, Kind, Os, Result};
use crate::shim::client::Client;

use super::Global;
use super::runtime::{self, Signals};

/// How long it is waited for others who are at work on a container: one who makes it may take its time.
const LOCK_BOUND: Duration = Duration::from_secs(10);

/// A container as its state on disk has it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its namespace.
    pub namespace: String,
    /// Its directory.
    pub state: StateDir,
    /// What was there when it was read.
    pub saved: Saved,
}

/// A container that is to be changed.
pub struct Target {
    /// The container.
    pub found: Found,
    /// Who does it.
    pub owner: Owner,
}

/// Who changes a container.
pub enum Owner {
    /// A living shim.
    Shim(Client),
    /// This process: nobody else while this is held.
    Nobody(File),
}

/// The container `id`, to be looked at.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for an id that several namespaces have.
pub fn find(global: &Global, id: &str) -> Result<Found> {
    let (root, namespace) = global.place()?;
    search(&root, namespace, id)
}

fn search(root: &Path, namespace: Option<String>, id: &str) -> Result<Found> {
    // Also where there is no namespace to look into: a bad id is one.
    StateDir::new(root, super::global::NAMESPACE, id)?;
    let mut all = Vec::new();
    for namespace in namespaces(root, namespace)? {
        let state = StateDir::new(root, &namespace, id)?;
        all.extend(state.load()?.map(|saved| Found { namespace, state, saved }));
    }
    let one = all.pop().ok_or_else(|| missing(id))?;
    if let Some(other) = all.pop() {
        let (root, a, b) = (root.display(), other.namespace, one.namespace);
        let text =
            format!("container {id} is in the namespaces {a} and {b}: say --root {root}/{a} or --root {root}/{b}");
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    Ok(one)
}

/// All containers, by namespace and id. One whose state cannot be read is warned of.
///
/// # Errors
/// When the directory of them cannot be read; one that is not there has none.
pub fn all(global: &Global) -> Result<Vec<Found>> {
    let (root, namespace) = global.place()?;
    let mut all = Vec::new();
    for namespace in namespaces(&root, namespace)? {
        for id in directories(&root.join(&namespace))? {
            let loaded = StateDir::new(&root, &namespace, &id).and_then(|state| Ok((state.load()?, state)));
            match loaded {
                Ok((Some(saved), state)) => all.push(Found { namespace: namespace.clone(), state, saved }),
                // On its way to be a container, or not to be one any more.
                Ok((None, _)) => {}
                Err(e) => log::warn!("container {id}: {e}"),
            }
        }
    }
    Ok(all)
}

/// Does `work` on the container `id`, which is in the engine where nobody owns it.
///
/// # Errors
/// As [`find`]'s and [`Found::open`]'s; that it cannot be adopted; what `work` says.
pub fn change<T>(
    global: &Global,
    id: &str,
    work: impl AsyncFnOnce(Target, Rc<Engine>, Signals) -> Result<T>,
) -> Result<T> {
    with_engine(global, find(global, id)?, async |found, engine, mut signals| {
        let target = runtime::unless_ended(&mut signals, found.open()).await?;
        if let Owner::Nobody(_) = target.owner {
            engine.adopt(&target.found.state)?;
        }
        work(target, engine, signals).await
    })
}

/// Does `work` on a container that was found, with an engine for its namespace.
///
/// # Errors
/// As [`runtime::run`]'s.
pub fn with_engine<T>(
    global: &Global,
    found: Found,
    work: impl AsyncFnOnce(Found, Rc<Engine>, Signals) -> Result<T>,
) -> Result<T> {
    let (root, namespace) = (global.place()?.0, found.namespace.clone());
    runtime::run(global, (&root, &namespace), false, async move |engine, signals| work(found, engine, signals).await)
}

impl Found {
    /// The living shim that owns it.
    ///
    /// # Errors
    /// `Unavailable` when it lives and does not answer.
    pub async fn shim(&self) -> Result<Option<Client>> {
        let owner = &self.saved.owner;
        if !self.is_a_shims() {
            return Ok(None);
        }
        let name = |e: Error| e.context(format!("container {}: shim of pid {}", self.saved.id, owner.pid));
        let unsaid = || name(Error::new(Kind::Unavailable, "its state does not say where it listens"));
        let socket = self.saved.socket.as_ref().ok_or_else(unsaid)?;
        match Client::connect(socket, &self.namespace, owner).await {
            // It has ended since: what it left behind is nobody's.
            Err(_) if !owner.is_alive() => Ok(None),
            connected => connected.map(Some).map_err(name),
        }
    }

    /// Whether the shim that made it lives.
    pub fn is_a_shims(&self) -> bool {
        self.saved.shim.is_some() && self.saved.owner.is_alive()
    }

    /// Makes sure of who is to change it.
    ///
    /// # Errors
    /// `NotFound` when it has gone since; `Unavailable` when its shim lives and does not answer.
    pub async fn open(mut self) -> Result<Target> {
        loop {
            if let Some(client) = self.shim().await? {
                return Ok(Target { found: self, owner: Owner::Shim(client) });
            }
            let gone = || missing(&self.saved.id);
            let lock = self.state.lock_within(LOCK_BOUND).await?.ok_or_else(gone)?;
            // It may have been removed while we waited for the lock, and made again by somebody else.
            self.saved = self.state.load()?.ok_or_else(gone)?;
            if !self.is_a_shims() {
                return Ok(Target { found: self, owner: Owner::Nobody(lock) });
            }
        }
    }
}

/// In runc's words, which its callers look for.
pub fn missing(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("container {id}: container does not exist"))
}

/// The namespaces to look into: the one that is asked for, or all. containerd's names do not begin with a dot; what does is the
/// shims' own.
pub fn namespaces(root: &Path, asked: Option<String>) -> Result<Vec<String>> {
    match asked {
        Some(namespace) => Ok(vec![namespace]),
        None => Ok(directories(root)?.into_iter().filter(|name| !name.starts_with('.')).collect()),
    }
}

/// Names of the directories in one, sorted; none where it is not there.
fn directories(path: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.os(|| format!("opendir {}", path.display()))?,
    };
    let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let mut names: Vec<_> =
        entries.flatten().filter(is_dir).filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    /// Flags before the verb as they come.
    fn global(root: &Path) -> Global {
        let args = ["dray", "--root", root.to_str().unwrap(), "state", "id"];
        Cli::try_parse_from(args).unwrap().global
    }

    #[test]
    fn a_container_is_found_by_its_state() {
        let root = std::env::temp_dir().join(format!("dray-target-{}", std::process::id()));
        let of = |namespace: &str, id: &str| StateDir::new(&root, namespace, id).unwrap();
        for (namespace, id) in [("a", "one"), ("b", "two"), ("a", "both"), ("b", "both"), (".own", "one")] {
            of(namespace, id).take(&Saved::new(id, Path::new("/b")).unwrap()).unwrap();
        }
        std::fs::create_dir(root.join("a/half")).unwrap();
        std::fs::create_dir(root.join("a/bad")).unwrap();
        std::fs::write(root.join("a/bad/state.json"), "{").unwrap();

        let here = global(&root.join("a"));
        assert_eq!(find(&here, "one").unwrap().namespace, "a");
        for missing in ["two", "half"] {
            let error = find(&here, missing).unwrap_err();
            assert_eq!(error.to_string(), format!("container {missing}: container does not exist"));
        }
        assert_eq!(find(&here, "bad").unwrap_err().kind(), Kind::Internal);
        assert_eq!(find(&here, "../b/two").unwrap_err().kind(), Kind::InvalidArgument);
        let ids: Vec<_> = all(&here).unwrap().into_iter().map(|found| found.saved.id).collect();
        assert_eq!(ids, ["both", "one"]);

        assert_eq!(search(&root, None, "one").unwrap().namespace, "a");
        assert_eq!(search(&root, None, "two").unwrap().namespace, "b");
        let error = search(&root, None, "both").unwrap_err().to_string();
        assert!(error.contains("namespaces a and b"), "{error}");
        assert_eq!(search(&root.join("none"), None, "../one").unwrap_err().kind(), Kind::InvalidArgument);
        assert!(all(&global(&root.join("none"))).unwrap().is_empty());
        std::fs::remove_dir_all(root).unwrap();
    }
}
