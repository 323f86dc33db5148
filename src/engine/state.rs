//! The state of a container on disk: what another process needs to find and to remove it.
//!
//! `<root>/<namespace>/<id>/state.json`, replaced by rename, so that a reader sees one version or the other and a shim
//! killed in mid-write leaves the one before. It is written before each step that it describes, so that whatever a shim
//! leaves behind when it is killed is in it. Every version ever released stays readable: fields are added with a default.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Os, Result};
use crate::sys::pidfd;

use super::hooks::Poststop;
use super::options::Options;
use super::place::Scope;

/// Where the state of all containers is kept.
pub const ROOT: &str = "/run/dray";

/// The version that this program writes.
const VERSION: u32 = 1;

/// How often a directory is made again for which the last container of the namespace, another shim's, has just removed
/// the parent.
const TRIES: usize = 1000;

const FILE: &str = "state.json";

/// The next one, while it is written.
const NEW: &str = ".state.json.new";

/// A copy of the specification, of a container that the command line has made: the bundle may change, or go.
pub const CONFIG: &str = "config.json";

/// By which a created container of the command line's is let go.
pub const FIFO: &str = "exec.fifo";

/// Between two looks at a lock that another has.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Version of this document.
    pub version: u32,
    /// Container.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// The process that owns it: the shim.
    pub owner: Identity,
    /// The id under which containerd knows the shim: that of the pod's first container, where there are several.
    #[serde(default)]
    pub shim: Option<String>,
    /// The socket of the shim's task service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// When it was begun to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<SystemTime>,
    /// Its init, from `created` on.
    #[serde(default)]
    pub init: Option<Identity>,
    /// Where its root file system was mounted, when we mounted it.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// The child that mounts something there, where that may take long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounting: Option<Identity>,
    /// Its cgroup, from the root of each hierarchy.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Which directory it is ([`crate::cgroup::Cgroup::inode`]), once our init is in it. Only then is it sure to be ours;
    /// before, nothing of ours can be in it but a child that ends with its shim, and nothing in it may be killed.
    #[serde(default)]
    pub cgroup_inode: Option<u64>,
    /// The unit of systemd's that its cgroup is, from before systemd is asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Its groups in the resctrl file system, to be removed in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resctrl: Vec<PathBuf>,
    /// The hooks to be run when all of it is gone, once there is something that they may have to undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poststop: Option<Poststop>,
    /// What CRIU calls the standard streams that its init was given; none where it has a terminal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<String>,
    /// The command line has made it: nobody owns it once it is made, whoever has the directory locked may do with it what is
    /// to be done, and its specification is beside this document.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by_command: bool,
    /// What it was asked to be beside its specification.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: Options,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A process, for all time: the pid with the time of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its pid in the host's pid namespace.
    pub pid: i32,
    /// Clock ticks after boot (proc(5)).
    pub start_time: u64,
}

impl Identity {
    /// Of a living process.
    pub fn of(pid: i32) -> Result<Self> {
        Ok(Self { pid, start_time: pidfd::start_time(pid)? })
    }

    /// Is it alive still? A zombie is not, whoever has yet to wait for it.
    pub fn is_alive(&self) -> bool {
        self.open().is_some_and(|pidfd| !pidfd::has_exited(&pidfd))
    }

    /// A pidfd of it, if there still is a process of this identity.
    pub fn open(&self) -> Option<std::os::fd::OwnedFd> {
        let pidfd = pidfd::open(self.pid).ok()?;
        // The pidfd is held: if the start time matches now, it is of the one that is meant, and stays so.
        pidfd::start_time(self.pid).is_ok_and(|start_time| start_time == self.start_time).then_some(pidfd)
    }
}

impl Saved {
    /// Of a container about to be made by this process.
    pub fn new(id: &str, bundle: &Path) -> Result<Self> {
        Ok(Self {
            version: VERSION,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            owner: Identity::of(std::process::id() as i32)?,
            shim: None,
            socket: None,
            created: Some(SystemTime::now()),
            init: None,
            rootfs: None,
            mounting: None,
            cgroup: None,
            cgroup_inode: None,
            scope: None,
            resctrl: Vec::new(),
            poststop: None,
            descriptors: Vec::new(),
            by_command: false,
            options: Options::default(),
        })
    }

    /// Whether the shim that has made it lives: then all that is to be done with it is that one's to do.
    pub fn has_living_shim(&self) -> bool {
        !self.by_command && self.owner.is_alive()
    }
}

/// What became of an attempt to make a container's directory.
#[derive(Debug)]
pub enum Taken {
    /// It is made, with the state given. Locked until this is dropped.
    Ours(File),
    /// It has a state already. Locked until this is dropped: what is a dead shim's may be removed.
    Theirs(File),
    /// Somebody makes or removes it at this moment.
    Busy,
}

/// A container's directory.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory of the container `id` in `namespace` below `root`; both are checked to be names and not paths.
    pub fn new(root: &Path, namespace: &str, id: &str) -> Result<Self> {
        check_name("namespace", namespace)?;
        check_name("id", id)?;
        Ok(Self(root.join(namespace).join(id)))
    }

    /// Makes it, with its first state in it, unless there is a state in it already. Whoever makes or removes it has it
    /// locked: a directory without a state is nobody's, and of two who make it at once one finds the other's state.
    pub fn take(&self, saved: &Saved) -> Result<Taken> {
        for _ in 0..TRIES {
            if !self.make()? {
                continue;
            }
            match self.lock_by(FlockOperation::NonBlockingLockExclusive) {
                Err(e) if e.errno() == Some(libc::EWOULDBLOCK) => return Ok(Taken::Busy),
                // Removed before it was locked.
                Ok(None) => {}
                Ok(Some(lock)) => {
                    self.refuse_strangers()?;
                    if self.0.join(FILE).exists() {
                        return Ok(Taken::Theirs(lock));
                    }
                    return self.save(saved).map(|()| Taken::Ours(lock));
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::os(libc::ENOENT, format!("mkdir {}", self.0.display())))
    }

    /// Makes the directory; false where its parent was not there. It may be there already.
    fn make(&self) -> Result<bool> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let parent = self.0.parent().unwrap_or(Path::new("/"));
        match builder.create(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                match builder.recursive(true).create(parent) {
                    // Made and removed by others, in the midst of it.
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
                    made => made.os(|| format!("mkdir {}", parent.display())).map(|()| false),
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(true),
            made => made.os(|| format!("mkdir {}", self.0.display())).map(|()| true),
        }
    }

    /// What is in a directory that others can write to is not our word: who may choose the hooks that are run at a delete is
    /// root. One that is not there is nobody's.
    ///
    /// # Errors
    /// `FailedPrecondition` for a directory that is another's, or that others can write to.
    fn refuse_strangers(&self) -> Result<()> {
        let stat = match std::fs::symlink_metadata(&self.0) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            stat => stat.os(|| format!("stat {}", self.0.display()))?,
        };
        let own = [0, rustix::process::geteuid().as_raw()].contains(&stat.uid());
        if stat.is_dir() && own && stat.mode() & 0o022 == 0 {
            return Ok(());
        }
        let text = format!("{} is not a directory of ours alone", self.0.display());
        Err(Error::new(Kind::FailedPrecondition, text))
    }

    /// Replaces the state.
    pub fn save(&self, saved: &Saved) -> Result<()> {
        let path = self.0.join(FILE);
        let new = self.0.join(NEW);
        let text = serde_json::to_vec(saved).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&new).os(|| format!("open {}", new.display()))?;
        file.write_all(&text).os(|| format!("write {}", new.display()))?;
        // No fsync: it describes processes and mounts, which do not outlive the machine either.
        std::fs::rename(&new, &path).os(|| format!("rename {}", path.display()))
    }

    /// Reads the state; `None` where there is none, or a half-made directory without one.
    ///
    /// # Errors
    /// `Internal` for a document that no version of this program wrote.
    pub fn load(&self) -> Result<Option<Saved>> {
        let path = self.0.join(FILE);
        self.refuse_strangers()?;
        let text = match std::fs::read(&path) {
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.os(|| format!("read {}", path.display()))?,
        };
        let wrong = |why: String| Error::new(Kind::Internal, format!("{}: {why}", path.display()));
        let saved: Saved = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if saved.version > VERSION {
            return Err(wrong(format!("version {} is newer than this program's, {VERSION}", saved.version)));
        }
        Ok(Some(saved))
    }

    /// Those of all containers of this one's namespace.
    pub fn neighbours(&self) -> Vec<StateDir> {
        let entries = self.0.parent().map(std::fs::read_dir).and_then(|entries| entries.ok());
        entries.into_iter().flatten().flatten().map(|entry| Self(entry.path())).collect()
    }

    /// Keeps others who lock it out, until what it returns is dropped; waits for them. `None` where it is not there.
    pub fn lock(&self) -> Result<Option<File>> {
        self.lock_by(FlockOperation::LockExclusive)
    }

    /// The same for who has a loop to go on with, at most for `bound`.
    ///
    /// # Errors
    /// `Unavailable` at the bound.
    pub async fn lock_within(&self, bound: Duration) -> Result<Option<File>> {
        let deadline = Instant::now() + bound;
        loop {
            match self.lock_by(FlockOperation::NonBlockingLockExclusive) {
                Err(e) if e.errno() == Some(libc::EWOULDBLOCK) && Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(e) if e.errno() == Some(libc::EWOULDBLOCK) => {
                    let text = format!("{}: another process is at work on it", self.0.display());
                    return Err(Error::new(Kind::Unavailable, text));
                }
                locked => return locked,
            }
        }
    }

    fn lock_by(&self, lock: FlockOperation) -> Result<Option<File>> {
        loop {
            let file = match File::open(&self.0) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other.os(|| format!("open {}", self.0.display()))?,
            };
            rustix::fs::flock(&file, lock).os(|| format!("flock {}", self.0.display()))?;
            // Whoever had it locked may have removed it, and somebody made it again.
            let inode = |metadata: std::fs::Metadata| metadata.ino();
            if file.metadata().ok().map(inode) == std::fs::metadata(&self.0).ok().map(inode) {
                return Ok(Some(file));
            }
        }
    }

    /// Removes it with all that is in it, the state last, and the namespace's directory if it was the last.
    pub fn remove(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path),
                _ if entry.file_name() == FILE => continue,
                _ => std::fs::remove_file(&path),
            };
            gone(removed, || format!("unlink {}", path.display()))?;
        }
        gone(std::fs::remove_file(self.0.join(FILE)), || format!("unlink {}/{FILE}", self.0.display()))?;
        self.remove_empty()
    }

    /// Removes one in which there is no state: at most the beginning of a first one. A directory of that name which is none of
    /// ours has something in it.
    ///
    /// # Errors
    /// `FailedPrecondition` where there is more.
    pub fn remove_aborted(&self) -> Result<()> {
        self.refuse_strangers()?;
        gone(std::fs::remove_file(self.0.join(NEW)), || format!("unlink {}/{NEW}", self.0.display()))?;
        self.remove_empty().map_err(|e| match e.errno() {
            Some(libc::ENOTEMPTY) => e.context("not a container's directory").with_kind(Kind::FailedPrecondition),
            _ => e,
        })
    }

    fn remove_empty(&self) -> Result<()> {
        gone(std::fs::remove_dir(&self.0), || format!("rmdir {}", self.0.display()))?;
        if let Some(parent) = self.0.parent() {
            let _ = std::fs::remove_dir(parent);
        }
        Ok(())
    }

    /// Keeps a copy of the specification.
    pub fn keep_config(&self, text: &[u8]) -> Result<()> {
        let path = self.0.join(CONFIG);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.as_mut().map_err(|e| std::io::Error::from(e.kind())).and_then(|file| file.write_all(text));
        written.os(|| format!("write {}", path.display()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// What somebody else has removed is removed.
fn gone(removed: std::io::Result<()>, what: impl FnOnce() -> String) -> Result<()> {
    match removed {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.os(what),
    }
}

/// An id becomes a file name here and a cgroup's below; containerd's own are stricter still (its identifiers package).
fn check_name(what: &str, name: &str) -> Result<()> {
    let bad = name.is_empty() || name.len() > 255 || name == "." || name == ".." || name.contains(['/', '\0']);
    if bad { Err(Error::new(Kind::InvalidArgument, format!("{what} {name:?} is not a name"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("dray-state-{name}-{}", std::process::id()))
    }

    #[test]
    fn ids_cannot_leave_the_directory() {
        for bad in ["", ".", "..", "a/b", "../a", "a\0b"] {
            assert_eq!(StateDir::new(Path::new("/x"), "default", bad).unwrap_err().kind(), Kind::InvalidArgument);
            assert_eq!(StateDir::new(Path::new("/x"), bad, "id").unwrap_err().kind(), Kind::InvalidArgument);
        }
    }

    #[test]
    fn saved_is_loaded_and_a_second_take_finds_it() {
        let root = scratch("save");
        let dir = StateDir::new(&root, "default", "a").unwrap();
        assert_eq!(dir.load().unwrap(), None);
        let saved = Saved { cgroup: Some("/a".into()), ..Saved::new("a", Path::new("/b")).unwrap() };
        assert!(matches!(dir.take(&saved).unwrap(), Taken::Ours(_)));
        assert_eq!(dir.load().unwrap(), Some(saved.clone()));
        let theirs = dir.take(&saved).unwrap();
        assert!(matches!(theirs, Taken::Theirs(_)));
        assert!(matches!(dir.take(&saved).unwrap(), Taken::Busy));
        drop(theirs);
        assert!(saved.owner.is_alive());
        assert!(!Identity { start_time: 1, ..saved.owner }.is_alive(), "a reused pid is someone else");
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!root.join("default").exists());
        std::fs::remove_dir(root).unwrap();
    }

    /// Of a create that was killed before it had a state.
    #[test]
    fn a_directory_without_a_state_is_nobodys() {
        let root = scratch("half");
        let dir = StateDir::new(&root, "default", "a").unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        std::fs::write(dir.path().join(".state.json.new"), "half").unwrap();
        assert_eq!(dir.load().unwrap(), None);
        let saved = Saved::new("a", Path::new("/b")).unwrap();
        assert!(matches!(dir.take(&saved).unwrap(), Taken::Ours(_)));
        assert_eq!(dir.load().unwrap(), Some(saved));
        std::fs::remove_dir_all(root).unwrap();
    }

    /// `delete` with the root or the id mistyped takes away nothing of anybody's.
    #[test]
    fn a_directory_with_more_in_it_is_none_of_ours() {
        let root = scratch("more");
        let dir = StateDir::new(&root, "home", "data").unwrap();
        std::fs::create_dir_all(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("letter"), "dear").unwrap();
        let error = dir.remove_aborted().unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert!(dir.path().join("sub").exists() && dir.path().join("letter").exists());
        std::fs::remove_dir_all(root).unwrap();
    }

    /// What others have made, or can change, is neither believed nor filled.
    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let root = scratch("others");
        let dir = StateDir::new(&root, "default", "a").unwrap();
        let saved = Saved::new("a", Path::new("/b")).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        std::fs::write(dir.path().join(FILE), serde_json::to_vec(&saved).unwrap()).unwrap();
        assert_eq!(dir.load().unwrap(), Some(saved.clone()));
        let refused = |dir: &StateDir| {
            assert_eq!(dir.load().unwrap_err().kind(), Kind::FailedPrecondition);
            assert_eq!(dir.take(&saved).unwrap_err().kind(), Kind::FailedPrecondition);
        };
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        refused(&dir);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
            refused(&dir);
        }
        std::fs::remove_dir_all(root).unwrap();
    }

    /// Many at once, and one that takes away what it finds: none is ever in a directory that is another's.
    #[test]
    fn of_many_who_take_it_at_once_one_has_it() {
        let root = scratch("race");
        let dir = StateDir::new(&root, "default", "a").unwrap();
        let taker = |number: usize| {
            let (dir, mut taken) = (dir.clone(), 0);
            let saved = Saved { shim: Some(number.to_string()), ..Saved::new("a", Path::new("/b")).unwrap() };
            while taken < 200 {
                match dir.take(&saved).unwrap() {
                    Taken::Ours(lock) => {
                        drop(lock);
                        assert_eq!(dir.load().unwrap().as_ref(), Some(&saved), "{number}");
                        // As a delete of another process does, which finds its owner dead.
                        let lock = dir.lock().unwrap();
                        assert_eq!(dir.load().unwrap().as_ref(), Some(&saved), "{number}");
                        dir.remove().unwrap();
                        drop(lock);
                        taken += 1;
                    }
                    Taken::Theirs(lock) => drop(lock),
                    Taken::Busy => {
                        std::thread::yield_now();
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || taker(number));
            }
        });
        let _ = std::fs::remove_dir_all(root);
    }

    /// The first version as it was released. It must stay readable for ever.
    #[test]
    fn version_1_is_readable() {
        let root = scratch("v1");
        let dir = StateDir::new(&root, "default", "a").unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let v1 = r#"{"version":1,"id":"a","bundle":"/b","owner":{"pid":7,"start_time":9}}"#;
        std::fs::write(dir.path().join(FILE), v1).unwrap();
        let saved = dir.load().unwrap().unwrap();
        assert_eq!((saved.owner.pid, saved.init, saved.cgroup), (7, None, None));
        std::fs::write(dir.path().join(FILE), v1.replace(":1,", ":2,")).unwrap();
        assert!(dir.load().unwrap_err().to_string().contains("newer"));
        std::fs::remove_dir_all(root).unwrap();
    }
}
