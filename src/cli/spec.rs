//! `dray spec`

mod document;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::cgroup::{Hierarchies, Version};
use crate::error::{Error, Kind, Os, Result};
use document::{Document, User};

/// Writes a specification to begin with.
///
/// It is config.json of a bundle whose root file system is in rootfs/: `sh` on a terminal, with few capabilities, a read-only
/// root and namespaces of its own. To be edited: arguments, environment, mounts. One that is there is not overwritten.
///
/// It is runc's but for: the version of the specification, which is the one that dray implements; the host name; no ambient
/// capabilities, which runc has not had since 1.2 either; and /sys/devices/virtual/powercap, which is masked as containerd and
/// Docker do (CVE-2020-8694).
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  mkdir -p web/rootfs && tar -C web/rootfs -xf image.tar
  dray spec -b web && dray run -b web web")]
pub struct Spec {
    /// The bundle: the directory to write config.json to [default: the current one]
    #[arg(long, short, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// For a container that a user without privileges makes: with a user namespace in which that user is root
    #[arg(long)]
    rootless: bool,
}

/// Its name in a bundle.
const NAME: &str = "config.json";

/// Runs it.
///
/// # Errors
/// `AlreadyExists`; that it cannot be written.
pub fn run(_global: &Global, args: Spec) -> Result<ExitCode> {
    let bundle = args.bundle.as_deref().unwrap_or(Path::new("."));
    let user = args
        .rootless
        .then(|| User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() });
    // On cgroup2 a container's own is the root of what it sees; on v1 runc leaves the host's, for older programs.
    let cgroup_namespace = Hierarchies::discover().is_ok_and(|hierarchies| hierarchies.version() == Version::V2);
    write(&bundle.join(NAME), &Document { user, cgroup_namespace }.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = match File::create_new(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::new(Kind::AlreadyExists, format!("File {NAME} exists. Remove it first")));
        }
        made => made.os(|| format!("create {}", path.display()))?,
    };
    let written = file.write_all(text.as_bytes()).os(|| format!("write {}", path.display()));
    if written.is_err() {
        // Half a document is none; and it would be in the way of the next attempt.
        let _ = std::fs::remove_file(path);
    }
    written
}
