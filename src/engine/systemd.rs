//! systemd, asked for what a container needs of it: a scope with its first process, other limits, its end.
//!
//! Every step has a bound: a systemd that is away, or does not answer, is an error of this one operation. A connection is
//! made for an operation and closed with it, so that an idle shim has none.

mod bus;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::Version;
use crate::cgroup::systemd::message::Refusal;
use crate::cgroup::systemd::{Host, Property, Unit, manager};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::userns::Own;

use bus::{Address, Bus};

/// How long systemd may take to answer: it has one thread, and answers nobody while it starts a unit or reloads them all.
const ANSWER_BOUND: Duration = Duration::from_secs(30);

/// How long a job may take: systemd may have others that it does first.
const JOB_BOUND: Duration = Duration::from_secs(30);

/// How long all of a removal may take. containerd gives the action `delete` 5 s in all.
pub(super) const STOP_BOUND: Duration = Duration::from_secs(10);
pub(super) const STOP_BOUND_HERE: Duration = Duration::from_secs(2);

/// There is a systemd on this machine, and it is process 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Which systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Instance {
    /// The machine's.
    System,
    /// The one of the user as whom the shim runs.
    User,
}

impl Instance {
    /// The one that makes units for us: the machine's for its root, to which whoever is rootless is a user like others.
    pub fn of(own: Own) -> Self {
        if own.rootless { Self::User } else { Self::System }
    }

    /// Whether its units can have rules for devices: those are for the host's root to set.
    pub fn limits_devices(self) -> bool {
        self == Self::System
    }

    /// The slice of containers that name none, as with runc.
    pub fn default_slice(self) -> &'static str {
        match self {
            Self::System => crate::cgroup::systemd::unit::SYSTEM_SLICE,
            Self::User => crate::cgroup::systemd::unit::USER_SLICE,
        }
    }
}

/// Refuses a machine without systemd, before there is anything to be undone.
///
/// # Errors
/// `FailedPrecondition`.
pub fn require() -> Result<()> {
    if Path::new(BOOTED).is_dir() {
        return Ok(());
    }
    let text = format!("the systemd cgroup driver is asked for, and systemd does not run here ({BOOTED} is not there)");
    Err(Error::new(Kind::FailedPrecondition, text))
}

/// The manager of units, connected for one unit.
pub struct Manager {
    bus: Bus,
    unit: String,
    /// systemd's version.
    version: u32,
    /// The cgroup below which its units' are.
    pub cgroup: PathBuf,
    proc_devices: String,
}

impl Manager {
    /// Connects.
    ///
    /// # Errors
    /// `Unavailable`, `DeadlineExceeded`, with the unit's name.
    pub async fn connect(instance: Instance, unit: &str) -> Result<Self> {
        let addresses = bus::addresses(instance, |name| std::env::var_os(name));
        Self::connect_to(addresses.context(|| step(unit, "connecting"))?, unit, ANSWER_BOUND).await
    }

    async fn connect_to(addresses: Vec<Address>, unit: &str, bound: Duration) -> Result<Self> {
        let connect = async {
            let mut bus = Bus::connect(addresses, unit).await?;
            let version = bus.call(&manager::get("Version")).await?.map_err(Refusal::into_error)?;
            bus.trust(&version);
            bus.subscribe().await?;
            let cgroup = bus.call(&manager::get("ControlGroup")).await?.map_err(Refusal::into_error)?;
            Ok((bus, manager::text_of(&version)?, manager::text_of(&cgroup)?))
        };
        let (bus, version, cgroup) = within(bound, connect).await.context(|| step(unit, "connecting"))?;
        let number = manager::version(&version);
        let number = number.ok_or_else(|| Error::new(Kind::Internal, format!("systemd's version is {version:?}")))?;
        let proc_devices = std::fs::read_to_string("/proc/devices").os(|| "read /proc/devices")?;
        Ok(Self { bus, unit: unit.to_owned(), version: number, cgroup: cgroup.into(), proc_devices })
    }

    /// What it and this machine know of properties.
    pub fn host(&self, version: Version) -> Host<'_> {
        Host { version, systemd: self.version, proc_devices: &self.proc_devices, block_device: &block_device }
    }

    /// Starts the unit with the process that is among its properties; returns when that is in its cgroup.
    ///
    /// # Errors
    /// `AlreadyExists` where there is such a unit, and only then: of every other error the unit may come to be, still.
    pub async fn start(&mut self, unit: &Unit, properties: &[Property]) -> Result<()> {
        let bus = &mut self.bus;
        let start = async {
            let mut answer = bus.call(&manager::start(unit, properties)).await?;
            if answer.as_ref().is_err_and(Refusal::is_exists) {
                // It may have failed, and stayed behind.
                let _ = bus.call(&manager::reset_failed(&unit.name)).await?;
                answer = bus.call(&manager::start(unit, properties)).await?;
            }
            let job = manager::object_of(&answer.map_err(Refusal::into_error)?)?;
            match &*bus.end_of(&job).await? {
                "done" => Ok(()),
                result => Err(Error::new(Kind::FailedPrecondition, format!("its job ended as {result:?}"))),
            }
        };
        within(JOB_BOUND, start).await.context(|| step(&unit.name, "starting"))
    }

    /// Changes properties, and returns when systemd has written what follows from them.
    ///
    /// # Errors
    /// What it says to one of them: then it has changed none.
    pub async fn set(&mut self, properties: &[Property]) -> Result<()> {
        let (bus, unit) = (&mut self.bus, &self.unit);
        let set = async {
            bus.call(&manager::set(unit, properties)).await?.map_err(Refusal::into_error)?;
            // The files are written after the answer, and before the next call is looked at: what we write ourselves is
            // to come after it.
            bus.call(&manager::get("Version")).await?.map(drop).map_err(Refusal::into_error)
        };
        within(ANSWER_BOUND, set).await.context(|| step(unit, "setting properties of"))
    }

    /// Moves a process into the unit's cgroup, where we may not ourselves.
    ///
    /// # Errors
    /// What it says.
    pub async fn attach(&mut self, pid: u32) -> Result<()> {
        let (bus, unit) = (&mut self.bus, &self.unit);
        let attach = async { bus.call(&manager::attach(unit, pid)).await?.map(drop).map_err(Refusal::into_error) };
        within(ANSWER_BOUND, attach).await.context(|| step(unit, "attaching a process to"))
    }

    /// Whether the unit is there, and its cgroup is to be this one. Its name alone says little: one of the same name may be in
    /// another slice, somebody else's.
    async fn has(&mut self, cgroup: &Path) -> Result<bool> {
        let object = match self.bus.call(&manager::unit(&self.unit)).await? {
            Ok(answer) => manager::object_of(&answer)?,
            Err(refusal) if refusal.is_missing() => return Ok(false),
            Err(refusal) => return Err(refusal.into_error()),
        };
        // One that has gone meanwhile is in no slice, or no object.
        let Ok(answer) = self.bus.call(&manager::slice_of(object)).await? else { return Ok(false) };
        let unit = Unit { name: self.unit.clone(), slice: manager::text_of(&answer)? };
        Ok(unit.path(&self.cgroup).is_ok_and(|path| path == cgroup))
    }

    async fn stop(&mut self, cgroup: &Path) -> Result<()> {
        if !self.has(cgroup).await? {
            return Ok(());
        }
        let (bus, unit) = (&mut self.bus, &self.unit);
        match bus.call(&manager::stop(unit)).await? {
            Ok(answer) => {
                bus.end_of(&manager::object_of(&answer)?).await?;
            }
            Err(refusal) if refusal.is_missing() => {}
            Err(refusal) => return Err(refusal.into_error()),
        }
        // Where it is not one that goes by itself when it has failed. Mostly it is gone.
        let _ = bus.call(&manager::reset_failed(unit)).await?;
        Ok(())
    }
}

/// Stops the unit of this name and cgroup, and has systemd forget it. One that is not there is no error.
///
/// # Errors
/// With the unit's name, at the bound too.
pub async fn stop(instance: Instance, unit: &str, cgroup: &Path, bound: Duration) -> Result<()> {
    let stop = async { Manager::connect(instance, unit).await?.stop(cgroup).await };
    within(bound, stop).await.context(|| step(unit, "stopping"))
}

fn step(unit: &str, doing: &str) -> String {
    format!("systemd: {doing} {unit}")
}

async fn within<T>(bound: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Err(Error::new(Kind::DeadlineExceeded, format!("no answer within {} s", bound.as_secs())));
    tokio::time::timeout(bound, work).await.unwrap_or_else(late)
}

/// The node of a block device, by its number: where udev has made it, else by the kernel's name.
fn block_device(number: &str) -> Option<PathBuf> {
    let path = Path::new("/dev/block").join(number);
    if path.exists() {
        return Some(path);
    }
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).ok()?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let path = Path::new("/dev").join(name);
    path.exists().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody accepts connections, and says nothing.
    #[test]
    fn who_says_nothing_is_waited_for_until_the_bound() {
        let socket = std::env::temp_dir().join(format!("dray-silent-{}", std::process::id()));
        let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let addresses = || vec![Address { path: socket.clone(), bus: false }];
        let connect = |bound| runtime.block_on(Manager::connect_to(addresses(), "a.scope", bound)).err().unwrap();
        let error = connect(Duration::from_secs(1));
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert_eq!(error.to_string(), "systemd: connecting a.scope: no answer within 1 s");
        // Nobody is there any more.
        drop(silent);
        let error = connect(Duration::from_secs(1000));
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        std::fs::remove_file(&socket).unwrap();
    }
}
