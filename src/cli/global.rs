//! What is said before the verb.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, ValueEnum};

use crate::engine::state;
use crate::error::{Error, Kind, Result};

/// After the name, as runc prints it.
pub const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

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
