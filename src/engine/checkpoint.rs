//! Checkpoint: the processes of a running container written to images, by CRIU.
//!
//! Beside CRIU's own there is runc's `descriptors.json` among the images ([`super::descriptors`]), by which a restore knows
//! which of the container's open files are its standard streams.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, Kind, Os, Result};
use crate::init::plan::Streams;
use crate::spec::load;
use crate::spec::namespaces::namespace;
use crate::spec::net_devices::net_devices;
use crate::sys::path::mount_id;
use crate::sys::{null, path};

use super::Engine;
use super::container::Container;
use super::create::cgroup_views;
use super::criu::{self, Notification, Places, Settings, wire};
use super::descriptors;
use super::events::Event;
use super::lifecycle::{FreezerState, State};
use super::remains::KILL_BOUND;
use super::state::StateDir;

/// The name of the log, which runc's clients know.
const LOG: &str = "dump.log";

/// How long a look at its mounts may take.
const LOOK_BOUND: Duration = Duration::from_secs(10);

/// How the images are to be made.
#[derive(Debug, Default)]
pub struct Request {
    /// The container.
    pub id: String,
    /// What a restore has, too.
    pub settings: Settings,
    /// The images of an earlier pre-dump, by a path from those of this one.
    pub parent: Option<String>,
    /// The container ends with it.
    pub exit: bool,
    /// Its memory alone, and it runs on.
    pub pre_dump: bool,
    /// TCP connections that are being made are passed over.
    pub skip_in_flight: bool,
    /// Memory goes to this server (address, port).
    pub page_server: Option<(String, u16)>,
    /// Is told by a NUL byte that memory can be asked for.
    pub status: Option<OwnedFd>,
}

/// The namespaces that CRIU is to leave empty, by the names of the specification. As with runc that is always so of the
/// network's: its devices are made by others.
///
/// # Errors
/// `InvalidArgument` for another.
pub fn empty_namespaces<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<()> {
    match names.into_iter().find(|name| *name != "network") {
        Some(name) => Err(Error::new(Kind::InvalidArgument, format!("namespace {name:?} is not supported"))),
        None => Ok(()),
    }
}

/// Refuses a path to earlier images that CRIU would not find from the new ones. In runc's words.
///
/// # Errors
/// `InvalidArgument`.
pub fn judge_parent(images: &Path, parent: &str) -> Result<()> {
    let wrong = |text: String| Err(Error::new(Kind::InvalidArgument, text));
    if Path::new(parent).components().next() == Some(Component::RootDir) {
        return wrong("--parent-path must be relative".to_owned());
    }
    let path = images.join(parent);
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => wrong(format!("invalid --parent-path: stat {}: not a directory", path.display())),
        // It is seen from the images, whose directory may have to be made yet.
        Err(_) if !images.exists() && images.parent().is_some_and(|above| normal(&above.join("x").join(parent))) => {
            Ok(())
        }
        Err(e) => wrong(format!("invalid --parent-path: stat {}: {e}", path.display())),
    }
}

/// Whether a path is one of a directory, by its words where a part of it is not there.
fn normal(path: &Path) -> bool {
    let mut words = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(words.pop()),
            part => words.push(part),
        }
    }
    words.is_dir()
}

/// CLONE_NEWNET.
pub(super) const EMPTY: u32 = libc::CLONE_NEWNET as u32;

/// A container whose processes CRIU has in its hands.
struct Frozen<'c>(&'c Cell<bool>);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Engine {
    /// Writes the images of a container.
    ///
    /// # Errors
    /// `FailedPrecondition` for one that does not run, or where there is no CRIU; what CRIU says, and then the container
    /// runs on as it did.
    pub async fn checkpoint(self: Rc<Self>, request: Request) -> Result<()> {
        let container = self.container(&request.id)?;
        let name = |e: Error| e.context(format!("container {}: checkpoint", container.id));
        self.judge_checkpoint(&container).map_err(name)?;
        let _frozen = Frozen(&container.in_checkpoint);
        container.in_checkpoint.set(true);
        self.write_images(&container, &request).await.map_err(name)?;
        if request.exit && !request.pre_dump {
            // CRIU has killed it.
            let ended = tokio::time::timeout(KILL_BOUND, container.init.wait()).await;
            ended.map(drop).unwrap_or_else(|_| log::warn!("{}: it has been dumped and does not end", container.init));
        }
        let path = request.settings.images.to_string_lossy().into_owned();
        self.emit(Event::Checkpointed { id: container.id.clone(), path });
        Ok(())
    }

    fn judge_checkpoint(&self, container: &Container) -> Result<()> {
        let refuse = |why: &str| Err(Error::new(Kind::FailedPrecondition, why));
        match container.init.state() {
            State::Running if container.init_reaped.get() => return refuse("it has stopped"),
            State::Running => {}
            State::Stopped => return refuse("it has stopped"),
            State::Creating | State::Created | State::Starting => return refuse("it has not been started"),
        }
        container.refuse_in_checkpoint()?;
        if self.own.rootless {
            return refuse("CRIU needs to be root on the host, and we are in a user namespace alone");
        }
        if container.has_starting_execs() {
            return refuse("a process is being started in it");
        }
        Ok(())
    }

    async fn write_images(&self, container: &Container, request: &Request) -> Result<()> {
        let settings = &request.settings;
        request.parent.as_deref().map_or(Ok(()), |parent| judge_parent(&settings.images, parent))?;
        let program = criu::program(settings.program.as_deref())?;
        let state = StateDir::new(&self.state_root, &self.namespace, &container.id)?;
        let spec = load::load(&spec_directory(container, &state), &mut Vec::new())?;
        if !net_devices(&spec)?.is_empty() {
            return Err(Error::new(Kind::Unimplemented, "linux.netDevices: CRIU takes no network devices along"));
        }
        if !criu::mounts::has_own(&spec) {
            return Err(Error::new(
                Kind::Unimplemented,
                "its mount namespace is not its own, which CRIU cannot restore",
            ));
        }
        let names = streams_of(container, &state)?;
        let init = container.init.pid();
        let mounts = match request.pre_dump {
            true => Vec::new(),
            false => self.mounts_of(container, &spec, init).await?,
        };
        if container.init.state() != State::Running || container.init_reaped.get() {
            return Err(Error::new(Kind::FailedPrecondition, "it has stopped"));
        }
        criu::make_directory(&settings.images)?;
        if !request.pre_dump {
            descriptors::write(&settings.images, &names)?;
        }
        let (own, kept) = (state.path().join("criu-work"), container.bundle.join("criu-dump.log"));
        let places = Places::make(settings, &own, LOG, kept)?;
        let (options, _opened) = places.open(None)?;
        let options = wire::Options {
            pid: Some(init as i32),
            root: Some(load::rootfs(&container.bundle, &spec).to_string_lossy().into_owned()),
            mounts,
            external: external(&spec, &names)?,
            leave_running: !request.exit,
            tcp_skip_in_flight: request.skip_in_flight,
            empty_ns: EMPTY,
            page_server: request.page_server.clone(),
            track_mem: request.parent.is_some(),
            parent: request.parent.clone(),
            freeze_cgroup: container.cgroup.freezer().map(|path| path.to_string_lossy().into_owned()),
            config_file: criu::config_file(&spec),
            ..settings.with(options)
        };
        let what = if request.pre_dump { wire::Request::PreDump } else { wire::Request::Dump };
        let nothing = || null::open(rustix::fs::OFlags::RDWR);
        let criu = self.run_criu(&program, [nothing()?, nothing()?, nothing()?], Vec::new(), || Ok(()))?;
        let mut status = request.status.as_ref();
        let heard = async |notification: Notification| {
            if let ("status-ready", Some(status)) = (notification.name.as_str(), status.take()) {
                rustix::io::write(status, &[0]).os(|| "write to the status descriptor")?;
            }
            Ok(())
        };
        let log = places.log();
        let asked = criu.ask(what, &options, &log, heard).await.map(drop);
        if asked.is_err() && container.freezer.get() == FreezerState::Thawed {
            // A CRIU that has been killed leaves it as it is, and nobody would take that for a pause to be resumed.
            container.cgroup.unfreeze().unwrap_or_else(|e| log::error!("{}: {e}", container.init));
        }
        places.done(asked)
    }

    /// Its mounts as CRIU is told of them. They are looked up in the tree of the container, which may be on a server that does
    /// not answer: by a child.
    async fn mounts_of(&self, container: &Container, spec: &Spec, init: u32) -> Result<Vec<(String, String)>> {
        let cgroups = cgroup_views(&container.cgroup);
        let mut answer = File::from(memfd_create("mounts", MemfdFlags::CLOEXEC).os(|| "memfd_create mounts")?);
        let encoding = |e: serde_json::Error| Error::new(Kind::Internal, e.to_string());
        let look = || {
            let found = criu::mounts::of_dump(spec, &container.bundle, init, &cgroups)?;
            let text = serde_json::to_vec(&found).map_err(encoding)?;
            (&answer).write_all(&text).os(|| "write to memfd mounts")
        };
        self.in_child_at("looking for its mounts", LOOK_BOUND, None, &[answer.as_fd()], look).await?;
        let mut text = Vec::new();
        answer.rewind().and_then(|()| answer.read_to_end(&mut text)).os(|| "read memfd mounts")?;
        serde_json::from_slice(&text).map_err(encoding)
    }
}

impl Container {
    /// Refuses what is not to be done while CRIU reads its memory.
    ///
    /// # Errors
    /// `FailedPrecondition`.
    pub(super) fn refuse_in_checkpoint(&self) -> Result<()> {
        match self.in_checkpoint.get() {
            true => Err(Error::new(Kind::FailedPrecondition, "a checkpoint of it is being made")),
            false => Ok(()),
        }
    }
}

/// Where the container's config.json is.
fn spec_directory<'c>(container: &'c Container, state: &'c StateDir) -> PathBuf {
    match state.path().join("config.json").exists() {
        true => state.path().to_owned(),
        false => container.bundle.clone(),
    }
}

/// What the standard streams of its init are.
fn streams_of(container: &Container, state: &StateDir) -> Result<Vec<String>> {
    let saved = state.load()?.map(|saved| saved.descriptors).unwrap_or_default();
    if !saved.is_empty() {
        return Ok(saved);
    }
    // Of a version that did not note them, or of a terminal. One that it has closed has no name.
    let name = |number| match std::fs::read_link(format!("/proc/{}/fd/{number}", container.init.pid())) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        link => Ok(link.os(|| format!("readlink fd {number}"))?.to_string_lossy().into_owned()),
    };
    (0..3).map(name).collect()
}

/// The names that CRIU has for the standard streams of a process to be, in runc's form where runc has one. None for those
/// of a terminal, which is the container's.
pub(super) fn names_of(streams: &Streams) -> Vec<String> {
    match streams {
        Streams::Terminal(_) => Vec::new(),
        Streams::Pipes(ends) => ends.iter().map(|end| name_of(end).unwrap_or_default()).collect(),
    }
}

/// As CRIU has it: `pipe:[INODE]`, `tty[RDEV:DEV]`, `file[MOUNT:INODE]` (criu(8), `--external`, `--inherit-fd`).
fn name_of(end: &OwnedFd) -> Result<String> {
    use rustix::fs::FileType;
    let stat = path::stat(end)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => format!("pipe:[{}]", stat.st_ino),
        FileType::Socket => format!("socket:[{}]", stat.st_ino),
        _ if rustix::termios::isatty(end) => format!("tty[{:x}:{:x}]", stat.st_rdev, stat.st_dev),
        _ => format!("file[{:x}:{:x}]", mount_id(end.as_fd())?, stat.st_ino),
    })
}

/// What is not the container's: what it was given as its streams, and the namespaces that it was put into.
fn external(spec: &Spec, streams: &[String]) -> Result<Vec<String>> {
    let given = streams.iter().filter(|name| name.starts_with("file[") || name.starts_with("tty["));
    let mut all: Vec<String> = given.cloned().collect();
    all.dedup();
    for (typ, kind, key) in EXTERNAL_NAMESPACES {
        if let Some(path) = namespace(spec, *typ).and_then(|namespace| namespace.path) {
            let stat = rustix::fs::stat(path).os(|| format!("stat {}", path.display()))?;
            all.push(format!("{kind}[{}]:{key}", stat.st_ino));
        }
    }
    Ok(all)
}

/// The namespaces that CRIU does not look into where they are others', and what it is told them by; runc's names.
pub(super) const EXTERNAL_NAMESPACES: &[(LinuxNamespaceType, &str, &str)] =
    &[(LinuxNamespaceType::Network, "net", "extRootNetNS"), (LinuxNamespaceType::Pid, "pid", "extRootPidNS")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_a_directory_seen_from_the_images() {
        let dir = std::env::temp_dir().join(format!("dray-parent-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("before")).unwrap();
        std::fs::write(dir.join("file"), "").unwrap();
        judge_parent(&dir.join("images"), "../before").unwrap();
        assert!(!dir.join("images").exists());
        std::fs::create_dir(dir.join("images")).unwrap();
        judge_parent(&dir.join("images"), "../before").unwrap();
        for (bad, word) in [("/before", "relative"), ("../none", "--parent-path"), ("../file", "not a directory")] {
            assert!(judge_parent(&dir.join("images"), bad).unwrap_err().to_string().contains(word), "{bad}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
