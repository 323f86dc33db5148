//! What is said before the verb.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{ArgAction, Args, ValueEnum};

use crate::engine::state;
use crate::error::{Error, Kind, Result};
use crate::init::seccomp;
use crate::spec::features::OCI_VERSIONS;

/// After the name, line by line as runc prints it: scripts take the first line apart.
pub fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let (own, spec) = (env!("CARGO_PKG_VERSION"), OCI_VERSIONS.1);
        format!("version {own}\nspec: {spec}\nlibseccomp: {}", seccomp::library_version())
    });
    &TEXT
}

/// Under the help.
pub const EXAMPLES: &str = "\
Examples:
  dray check                      what this host offers, and what to write into containerd's configuration
  dray install --write            put the binary in place and tell containerd and Docker of it
  dray spec && dray run -d web    a bundle of a directory with a rootfs/, and a container of it
  dray list                       all containers, those of containerd among them
  dray exec -t web sh             a further process

One dash is as good as two, as in scripts written for runc. What went wrong is on stderr, and in --log.";

/// The namespace of the containers that this command line makes, where `--root` does not say otherwise.
pub const NAMESPACE: &str = "cli";

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time="…" level=… msg="…"`
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// runc's `--rootless`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    /// As the user namespace and the rights on cgroups say.
    #[default]
    Auto,
    /// Failing to write cgroups is no error.
    True,
    /// It is.
    False,
}

/// Flags before the verb.
#[derive(Debug, Args)]
pub struct Global {
    /// Directory of the containers' states: only those in it are seen [default: those of all namespaces in /run/dray, or in
    /// $XDG_RUNTIME_DIR/dray for who is not root]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// File that is appended to: warnings instead of stderr, errors beside it
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Log what is of use to who looks for a fault
    #[arg(long)]
    pub debug: bool,
    /// Have systemd make the cgroups: cgroupsPath is SLICE:PREFIX:NAME
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Whether cgroups that cannot be written to are left alone
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub rootless: Rootless,
    /// CRIU's program, where it is not on the PATH (deprecated in runc)
    #[arg(long, value_name = "PATH")]
    pub criu: Option<PathBuf>,
    /// Print the version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

impl Global {
    /// The directory of all namespaces, and the namespace that is asked for, where one is: `--root` is that of one, in which
    /// there is a directory a container, as runc's is.
    ///
    /// # Errors
    /// `InvalidArgument` for a root that is no directory's name.
    pub fn place(&self) -> Result<(PathBuf, Option<String>)> {
        let Some(root) = &self.root else { return Ok((default_root()?, None)) };
        let root = std::path::absolute(root)
            .map_err(|e| Error::new(Kind::InvalidArgument, format!("--root {}: {e}", root.display())))?;
        let name = root.file_name().and_then(|name| name.to_str());
        match (root.parent(), name) {
            (Some(parent), Some(name)) => Ok((parent.to_owned(), Some(name.to_owned()))),
            _ => Err(Error::new(Kind::InvalidArgument, format!("--root {}: not a directory's name", root.display()))),
        }
    }
}

/// Where states are, where nothing else is said.
pub fn default_root() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() && !crate::sys::userns::own()?.rootless {
        return Ok(state::ROOT.into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute());
    let missing = || Error::new(Kind::InvalidArgument, "XDG_RUNTIME_DIR is not set: say --root");
    Ok(Path::new(&runtime.ok_or_else(missing)?).join("dray"))
}
