//! Programs that are called where a client asks for what they do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::Global;
use super::super::host::containerd::VERSION_BOUND;
use super::super::host::program::ask;
use super::absent;
use super::finding::Area::Programs;
use super::finding::Report;
use crate::error::{Context, Result};
use crate::sys::exec::{find, may_execute};

/// How long `criu check` may take: it tries what it needs.
const CHECK_BOUND: Duration = Duration::from_secs(30);

/// Looks for them.
pub fn look(report: &mut Report, global: &Global) {
    let criu = path_of(global.criu.as_deref().unwrap_or(Path::new("criu")));
    let cost = "checkpoint and restore are refused";
    let says = criu.clone().and_then(|criu| version(&criu));
    let answers = says.is_ok();
    report.want(Programs, "criu", says, cost);
    if let (Ok(criu), true) = (criu, answers) {
        let cost = "a checkpoint or a restore may fail on this kernel";
        report.want(Programs, "criu check", check(&criu), cost);
    }
    let maps = ["newuidmap", "newgidmap"].map(|name| path_of(Path::new(name)));
    let [uids, gids] = maps.map(|path| path.map(|path| path.display().to_string()));
    let cost = "users without privileges get a user namespace with one id alone, by the programs that make one (rootlesskit, podman)";
    report.want(Programs, "newuidmap", uids.and_then(|uids| gids.map(|_| uids)), cost);
}

/// Of a name, by PATH; of a path, that.
fn path_of(name: &Path) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = match name.components().count() {
        1 => find(name, &path),
        _ => std::path::absolute(name).ok().filter(|name| may_execute(name)),
    };
    found.ok_or_else(|| absent(format!("no {}", name.display())))
}

fn version(criu: &Path) -> Result<String> {
    let answer = ask(criu, &["--version"], VERSION_BOUND).context(|| format!("{} --version", criu.display()))?;
    let version = answer.text.lines().find_map(|line| line.strip_prefix("Version:"));
    match version {
        Some(version) if answer.is_success() => Ok(format!("{} ({})", version.trim(), criu.display())),
        _ => Err(absent(format!("{} does not say its version", criu.display()))),
    }
}

fn check(criu: &Path) -> Result<String> {
    let answer = ask(criu, &["check"], CHECK_BOUND).context(|| "criu check")?;
    if answer.is_success() {
        return Ok(answer.text.trim().lines().next_back().unwrap_or_default().to_owned());
    }
    // Its first error is the reason of the others; those of its helpers say no more than that they failed.
    let error = answer.text.lines().find(|line| line.starts_with("Error") && !line.contains("exited, status"));
    Err(absent(error.unwrap_or("it says no, and not why").to_owned()))
}
