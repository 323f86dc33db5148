//! containerd: which one runs or would run here, its version, its configuration, and where it looks for shims.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{Process, value};
use super::{SHIM, containerd_config, program};
use crate::error::Result;
use crate::sys::exec;

/// Its file of configuration, where no flag names another.
const CONFIG: &str = "/etc/containerd/config.toml";

/// Where systemd looks for its unit, the first that has one.
const UNITS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The PATH that systemd gives to a service (systemd.exec(5)).
const SYSTEMD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is below the directory of its `opt` plugin, where the configuration names no other (containerd: `ctr install`).
const OPT: &str = "/opt/containerd";

/// How long a program may take to say its version.
pub const VERSION_BOUND: Duration = Duration::from_secs(10);

/// A containerd of this host.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// None where it does not run.
    pub pid: Option<u32>,
    /// Its program.
    pub exe: PathBuf,
    /// As it says it.
    pub version: Option<Version>,
    /// Its file of configuration, which need not be there.
    pub config: PathBuf,
    path: OsString,
}

/// `1.6.20~ds1`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// All of it.
    pub text: String,
    /// Its first two numbers.
    pub numbers: (u32, u32),
}

impl Version {
    /// The third word of `containerd github.com/containerd/containerd v1.7.24 88bf19b2105c8b17560993bee28a01ddc2f97182`.
    fn parse(answer: &str) -> Option<Self> {
        let text = answer.split_ascii_whitespace().nth(2)?.trim_start_matches('v');
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
        let numbers = (numbers.next()??, numbers.next()??);
        Some(Self { text: text.to_owned(), numbers })
    }
}

impl Containerd {
    /// Those that run, else the one that is installed.
    pub fn all() -> Vec<Self> {
        let running: Vec<_> = Process::named("containerd").into_iter().filter_map(Self::running).collect();
        if running.is_empty() { Self::installed().into_iter().collect() } else { running }
    }

    /// The one that the host is configured for: that of systemd's unit, or of the usual file. Others, which programs start for
    /// themselves, are theirs.
    pub fn main(all: &[Self]) -> Option<&Self> {
        let usual = Self::usual_config();
        all.iter().find(|containerd| containerd.config == usual && !containerd.is_generated())
    }

    /// That one's file.
    pub fn usual_config() -> PathBuf {
        config_of(&unit())
    }

    fn running(process: Process) -> Option<Self> {
        // `containerd config dump` and the like are no daemons.
        if !is_daemon(&process.args) {
            return None;
        }
        Some(Self {
            pid: Some(process.pid),
            version: version(&process.image()),
            config: process.path_of(&["config", "c"]).unwrap_or_else(|| CONFIG.into()),
            path: process.variable("PATH").unwrap_or_default(),
            exe: process.exe,
        })
    }

    fn installed() -> Option<Self> {
        let unit = unit();
        let our_path = std::env::var_os("PATH").unwrap_or_default();
        let config = config_of(&unit);
        let of_unit = unit.command.first().map(PathBuf::from).filter(|exe| exec::may_execute(exe));
        let (exe, path) = match of_unit {
            Some(exe) => (exe, unit.path.unwrap_or_else(|| SYSTEMD_PATH.into())),
            None => (exec::find("containerd", &our_path)?, our_path),
        };
        Some(Self { pid: None, version: version(&exe), exe, config, path })
    }

    /// Its text of configuration; `None` where there is no such file.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn configuration(&self) -> Result<Option<String>> {
        super::replace::read(&self.config)
    }

    /// Whether the file is made again, by whoever starts it, each time that it starts, as dockerd does.
    pub fn is_generated(&self) -> bool {
        ["/run", "/var/run"].iter().any(|dir| self.config.starts_with(dir))
    }

    /// The version of the configuration's format for which a new file is written.
    pub fn format(&self) -> u32 {
        match &self.version {
            Some(version) if version.numbers.0 >= 2 => 3,
            _ => 2,
        }
    }

    /// Whether its CRI plugin takes `runtime_path`.
    pub fn takes_paths(&self) -> bool {
        self.version.as_ref().is_some_and(|version| version.numbers >= (1, 7))
    }

    /// The directories in which it looks for a shim (containerd: core/runtime/v2, resolveRuntimePath): PATH, which its `opt`
    /// plugin begins with a directory of its own, and the one that its own program is in.
    pub fn directories(&self) -> Vec<PathBuf> {
        let text = self.configuration().ok().flatten();
        let opt = text.as_deref().and_then(containerd_config::opt).unwrap_or_else(|| OPT.into());
        let own = self.exe.parent().map(Path::to_owned);
        [opt.join("bin")].into_iter().chain(std::env::split_paths(&self.path)).chain(own).collect()
    }

    /// The shim that it would start.
    pub fn shim(&self) -> Option<PathBuf> {
        let all = self.directories().into_iter().map(|dir| dir.join(SHIM));
        all.into_iter().find(|file| file.is_absolute() && exec::may_execute(file))
    }
}

fn version(exe: &Path) -> Option<Version> {
    let answer = program::ask(exe, &["--version"], VERSION_BOUND).ok().filter(program::Answer::is_success)?;
    Version::parse(&answer.text)
}

/// Without a verb. Each of its flags but those that print something has a value.
fn is_daemon(args: &[OsString]) -> bool {
    let mut args = args.iter().filter_map(|arg| arg.to_str());
    while let Some(arg) = args.next() {
        match arg {
            "-v" | "--version" | "-version" | "-h" | "--help" | "-help" => return false,
            flag if !flag.starts_with('-') => return false,
            flag if !flag.contains('=') => drop(args.next()),
            _ => {}
        }
    }
    true
}

fn unit() -> Unit {
    let text = UNITS.iter().find_map(|dir| std::fs::read_to_string(format!("{dir}/containerd.service")).ok());
    text.as_deref().map(Unit::parse).unwrap_or_default()
}

fn config_of(unit: &Unit) -> PathBuf {
    value(&unit.command, &["config", "c"]).unwrap_or_else(|| CONFIG.into())
}

/// What a unit file says of what is executed (systemd.service(5)).
#[derive(Debug, Default)]
struct Unit {
    command: Vec<OsString>,
    path: Option<OsString>,
}

impl Unit {
    fn parse(text: &str) -> Self {
        let mut unit = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
            let value = value.trim();
            match key.trim() {
                "ExecStart" => {
                    let command = value.trim_start_matches(['@', '-', ':', '+', '!']).split_ascii_whitespace();
                    unit.command = command.map(OsString::from).collect();
                }
                "Environment" => {
                    let path = value.trim_matches('"').strip_prefix("PATH=");
                    unit.path = path.map(OsString::from).or(unit.path);
                }
                _ => {}
            }
        }
        unit
    }
}

impl Containerd {
    /// `containerd 1.6.20~ds1 (pid 812)`
    pub fn name(&self) -> String {
        let version = self.version.as_ref().map_or("of an unknown version", |version| &version.text);
        match self.pid {
            Some(pid) => format!("containerd {version} (pid {pid})"),
            None => format!("containerd {version} (not running)"),
        }
    }
}

/// Whether `dir` is one of `dirs`, by whatever name.
pub fn is_among(dir: &Path, dirs: &[PathBuf]) -> bool {
    let real = |dir: &Path| std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let dir = real(dir);
    dirs.iter().any(|other| real(other) == dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_builds_are_read() {
        let numbers = |answer: &str| Version::parse(answer).map(|version| version.numbers);
        assert_eq!(
            numbers("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n"),
            Some((1, 6))
        );
        assert_eq!(numbers("containerd containerd.io v2.1.0-rc.1 061792f"), Some((2, 1)));
        assert_eq!(numbers("containerd github.com/containerd/containerd/v2 2.1.9+ds1 x"), Some((2, 1)));
        assert_eq!(numbers("containerd"), None);
        assert_eq!(numbers("containerd x unknown y"), None);
    }

    #[test]
    fn a_verb_is_no_daemon() {
        let daemon = |args: &str| is_daemon(&args.split_ascii_whitespace().map(OsString::from).collect::<Vec<_>>());
        assert!(daemon("") && daemon("--config /a -l info") && daemon("--config=/a"));
        assert!(
            !daemon("config dump") && !daemon("-c /a config default") && !daemon("--version") && !daemon("publish")
        );
    }

    #[test]
    fn a_unit_says_what_is_executed_and_by_which_path() {
        let unit = Unit::parse(
            "[Service]\nExecStartPre=-/sbin/modprobe overlay\nEnvironment=\"PATH=/opt/bin:/bin\"\nEnvironment=A=b\n\
             ExecStart=-/usr/local/bin/containerd --config /etc/x.toml\n",
        );
        assert_eq!(unit.command[0], "/usr/local/bin/containerd");
        assert_eq!(value(&unit.command, &["config"]).as_deref(), Some(Path::new("/etc/x.toml")));
        assert_eq!(unit.path.unwrap(), "/opt/bin:/bin");
    }
}
