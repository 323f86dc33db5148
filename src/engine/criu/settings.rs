//! What is asked of CRIU by a checkpoint and a restore alike, and the directories of both.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::OFlags;

use super::log;
use super::wire::{CgroupsMode, Options};
use crate::error::{Context, Os, Result};
use crate::sys::path::Root;

/// How much CRIU logs: what it does too, as with runc.
const LOG_LEVEL: i32 = 4;

/// Of a checkpoint or of a restore.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Directory of the images; a checkpoint makes it where it is not there.
    pub images: PathBuf,
    /// Directory of the log and of other files of the way; one of ours, for the time, where none is said.
    pub work: Option<PathBuf>,
    /// With TCP connections.
    pub open_tcp: bool,
    /// They are closed.
    pub close_tcp: bool,
    /// With sockets to processes outside.
    pub external_unix_sockets: bool,
    /// With a session or a process group of a process outside.
    pub terminal: bool,
    /// With file locks.
    pub file_locks: bool,
    /// What to do about cgroups.
    pub cgroups: CgroupsMode,
    /// Of a checkpoint: what of the parent's images these replace is given back. Of a restore: what is read of the images.
    pub auto_dedup: bool,
    /// Files that are open and removed are kept by a name beside where they were.
    pub link_remap: bool,
    /// Memory is given out as it is asked for.
    pub lazy_pages: bool,
    /// CRIU's program.
    pub program: Option<PathBuf>,
}

impl Settings {
    /// What they are in CRIU's words, beside `options`.
    pub(in super::super) fn with(&self, options: Options) -> Options {
        Options {
            ext_unix_sk: self.external_unix_sockets,
            tcp_established: self.open_tcp,
            tcp_close: self.close_tcp,
            shell_job: self.terminal,
            file_locks: self.file_locks,
            cgroups_mode: self.cgroups,
            auto_dedup: self.auto_dedup,
            link_remap: self.link_remap,
            lazy_pages: self.lazy_pages,
            ..options
        }
    }
}

/// The directories of one request, and its log.
pub(in super::super) struct Places {
    images: PathBuf,
    work: PathBuf,
    log: &'static str,
    /// The work directory is ours, and goes; the log of a failure is kept elsewhere.
    own: Option<Own>,
}

/// A work directory of ours.
struct Own {
    /// Where the log of a failure is kept.
    kept: PathBuf,
    /// By it that directory is told from another of its name: the container may be deleted while CRIU is at work, and its id
    /// be another's, who has one too.
    handle: OwnedFd,
}

/// What CRIU has by our descriptors, which are to be open until it has answered.
pub(in super::super) type Opened = [OwnedFd; 2];

impl Places {
    /// Makes the work directory where it is not there: that of the caller, or `own`, of which the log of a failure goes to
    /// `kept`.
    pub(in super::super) fn make(settings: &Settings, own: &Path, log: &'static str, kept: PathBuf) -> Result<Self> {
        let Settings { images, work, .. } = settings;
        let work_path = work.as_deref().unwrap_or(own);
        make_directory(work_path)?;
        let own = match work {
            Some(_) => None,
            None => Some(Own { kept, handle: open_directory(work_path)? }),
        };
        Ok(Self { images: images.clone(), work: work_path.to_owned(), log, own })
    }

    /// What a request says of them, which CRIU finds by our numbers of them.
    ///
    /// As `process` sees them, where that is in another mount namespace: CRIU mounts in its work directory, which has to be
    /// in its own. Links on the way there, absolute ones too, are followed in that one.
    pub(in super::super) fn open(&self, process: Option<u32>) -> Result<(Options, Opened)> {
        let root = process.map(|pid| Root::open(Path::new(&format!("/proc/{pid}/root")))).transpose()?;
        let open = |path: &Path| match &root {
            Some(root) => root.open_file(path, OFlags::RDONLY | OFlags::DIRECTORY),
            None => open_directory(path),
        };
        let [images, work] = [open(&self.images)?, open(&self.work)?];
        let options = Options {
            images: images.as_raw_fd(),
            work: work.as_raw_fd(),
            log_level: LOG_LEVEL,
            log_file: self.log.to_owned(),
            ..Options::default()
        };
        Ok((options, [images, work]))
    }

    /// The log.
    pub(in super::super) fn log(&self) -> PathBuf {
        self.work.join(self.log)
    }

    /// The request has been answered: says where the log of a failure is, and takes away what is ours.
    pub(in super::super) fn done<T>(self, done: Result<T>) -> Result<T> {
        let log = self.log();
        let Some(Own { kept, handle }) = self.own else { return done.context_of_log(&log) };
        if !is_at(&handle, &self.work) {
            return done;
        }
        let done = match done {
            Err(e) if log.exists() => match log::keep(&log, &kept) {
                Ok(()) => Err(e).context_of_log(&kept),
                Err(_) => Err(e),
            },
            done => done,
        };
        std::fs::remove_dir_all(&self.work).unwrap_or_else(|e| {
            ::log::warn!("rmdir {}: {e}", self.work.display());
        });
        done
    }
}

/// Whether `path` leads to what `handle` is of.
fn is_at(handle: &OwnedFd, path: &Path) -> bool {
    let place = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    match (rustix::fs::fstat(handle), rustix::fs::lstat(path)) {
        (Ok(own), Ok(there)) => place(own) == place(there),
        _ => false,
    }
}

trait ContextOfLog {
    fn context_of_log(self, log: &Path) -> Self;
}

impl<T> ContextOfLog for Result<T> {
    fn context_of_log(self, log: &Path) -> Self {
        if log.exists() { self.context(|| format!("see {}", log.display())) } else { self }
    }
}

/// For whoever is root alone, as runc has it: images hold the memory of programs.
pub(in super::super) fn make_directory(path: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.os(|| format!("mkdir {}", path.display())),
    }
}

/// A directory that is there.
fn open_directory(path: &Path) -> Result<OwnedFd> {
    use rustix::fs::{CWD, Mode, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).os(|| format!("open {}", path.display()))
}

/// CRIU's settings beside the request: those that the annotation `org.criu.config` names, or runc's, whose options some
/// have there; none where the annotation is empty.
pub(in super::super) fn config_file(spec: &Spec) -> Option<String> {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get("org.criu.config"));
    match annotation.map(String::as_str) {
        None => Some("/etc/criu/runc.conf".to_owned()),
        Some("") => None,
        Some(path) => Some(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("dray-criu-places-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn failed() -> Result<()> {
        Err(Error::new(Kind::Internal, "it has failed"))
    }

    #[test]
    fn the_log_of_a_failure_is_kept_and_the_rest_goes() {
        let dir = scratch("kept");
        let (own, kept) = (dir.join("work"), dir.join("kept.log"));
        let places = Places::make(&Settings::default(), &own, "x.log", kept.clone()).unwrap();
        std::fs::write(own.join("x.log"), "why").unwrap();
        std::fs::write(own.join("more"), "").unwrap();
        let error = places.done(failed()).unwrap_err().to_string();
        assert!(error.contains("it has failed") && error.contains("kept.log"), "{error}");
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "why");
        assert!(!own.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_another_container_of_the_id_has_there_stays() {
        let dir = scratch("another");
        let (own, kept) = (dir.join("work"), dir.join("kept.log"));
        let places = Places::make(&Settings::default(), &own, "x.log", kept.clone()).unwrap();
        std::fs::remove_dir(&own).unwrap();
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("x.log"), "theirs").unwrap();
        let error = places.done(failed()).unwrap_err().to_string();
        assert_eq!(error, "it has failed");
        assert_eq!(std::fs::read_to_string(own.join("x.log")).unwrap(), "theirs");
        assert!(!kept.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
