//! Docker: whether it is here, and its file of configuration.

use std::path::{Path, PathBuf};

use super::containerd::VERSION_BOUND;
use super::process::Process;
use super::program;
use crate::sys::exec;

/// Its file of configuration, where no flag names another.
pub const CONFIG: &str = "/etc/docker/daemon.json";

/// The oldest that takes a runtime by containerd's name for it (moby: `runtimeType`).
pub const OLDEST: (u32, u32) = (23, 0);

/// Docker's daemon.
#[derive(Clone, Debug)]
pub struct Docker {
    /// Its program.
    pub exe: PathBuf,
    /// Its version and the first two numbers of that.
    pub version: Option<(String, (u32, u32))>,
    /// Its file of configuration, which need not be there.
    pub config: PathBuf,
}

impl Docker {
    /// The one that runs, else the one that is installed.
    pub fn find() -> Option<Self> {
        let running = Process::named("dockerd").into_iter().next();
        let config = running.as_ref().and_then(|process| process.path_of(&["config-file"]));
        let (exe, image) = match running {
            Some(process) => (process.exe.clone(), process.image()),
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let usual = ["/usr/bin/dockerd", "/usr/sbin/dockerd"].map(PathBuf::from);
                let found = exec::find("dockerd", &path);
                let exe = found.or_else(|| usual.into_iter().find(|exe| exec::may_execute(exe)))?;
                (exe.clone(), exe)
            }
        };
        Some(Self { exe, version: version(&image), config: config.unwrap_or_else(|| CONFIG.into()) })
    }
}

/// `Docker version 28.5.2+dfsg4, build 89c5e8f`
fn version(exe: &Path) -> Option<(String, (u32, u32))> {
    let answer = program::ask(exe, &["--version"], VERSION_BOUND).ok().filter(program::Answer::is_success)?;
    let text = answer.text.split_ascii_whitespace().nth(2)?.trim_end_matches(',').to_owned();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    let numbers = (numbers.next()??, numbers.next()??);
    Some((text, numbers))
}
