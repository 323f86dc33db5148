//! `dray install`

mod binary;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::Global;
use super::host::containerd::{Containerd, is_among};
use super::host::docker::{self, Docker};
use super::host::{Edit, RUNTIME_CLASS, SHIM, containerd_config, docker_config, replace};
use crate::error::{Context, Error, Kind, Os, Result};
use binary::Binary;

/// Puts the binary in place, and tells containerd, Docker and Kubernetes of it.
///
/// The binary is copied to DIR/containerd-shim-dray-v2, by a rename, so that shims that run keep theirs, and DIR/dray is a link
/// to it. What belongs into the configuration of containerd's CRI plugin and of Docker is printed, or added with --write: at the
/// end of the file, between marks, everything else byte by byte as it was. Nothing is done where one of the files cannot be
/// understood, and a second call changes nothing. Neither daemon is restarted.
///
/// With --uninstall what was done is undone: the entries are taken out, files that were made are removed, then the link and the
/// binary. An entry that somebody has changed is left, with a warning.
///
/// `ctr`, nerdctl and `docker run --runtime io.containerd.dray.v2` need the binary alone, on containerd's PATH.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dray install                              the binary, and what to write where
  dray install --write                      all of it
  dray install --write --config /etc/containerd/config.toml --runtime-class dray.yaml
  dray install --uninstall")]
pub struct Install {
    /// Where the binary and the link go: a directory on containerd's PATH
    #[arg(long, short, value_name = "DIR", default_value = "/usr/local/bin")]
    directory: PathBuf,
    /// Add the entries to the files, rather than print them
    #[arg(long)]
    write: bool,
    /// Undo it
    #[arg(long, conflicts_with = "write")]
    uninstall: bool,
    /// A configuration of containerd, or of Docker where its name ends in .json, and no other; more than once for several
    /// [default: containerd's own and Docker's, where they are installed]
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Write the manifest of Kubernetes' RuntimeClass to this file
    #[arg(long, value_name = "FILE")]
    runtime_class: Option<PathBuf>,
}

/// A file, and what becomes of it.
struct Plan {
    path: PathBuf,
    old: Option<String>,
    edit: Edit,
    /// Whose it is.
    whose: String,
    /// What is to be added, for who does it by hand.
    entry: String,
    doubts: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// `InvalidArgument` for a file that is no configuration; what a step says.
pub fn run(_global: &Global, args: Install) -> Result<ExitCode> {
    // All of them are understood before any is changed.
    let plans = args.plans()?;
    let binary = Binary::in_directory(&args.directory)?;
    match args.uninstall {
        true => uninstall(&binary, plans)?,
        false => args.install(&binary, plans)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Install {
    fn install(&self, binary: &Binary, plans: Vec<Plan>) -> Result<()> {
        binary.refuse_others()?;
        let changes = binary.install()?;
        for (path, change) in &changes {
            say(&format!("{change} {}", path.display()))?;
        }
        if changes.is_empty() {
            say(&format!("{} has this version", self.directory.display()))?;
        }
        for plan in plans {
            // A file of its own was asked for.
            if self.write || Some(&plan.path) == self.runtime_class.as_ref() {
                plan.apply()?;
            } else {
                plan.print()?;
            }
        }
        if self.runtime_class.is_none() {
            say(&format!(
                "\nKubernetes, for pods with runtimeClassName: dray, by kubectl apply -f:\n\n{RUNTIME_CLASS}"
            ))?;
        }
        Ok(())
    }

    fn plans(&self) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        let containerds = Containerd::all();
        let docker = Docker::find();
        if self.config.is_empty() {
            // What is undone may have been uninstalled itself since.
            let main = Containerd::main(&containerds);
            if main.is_some() || self.uninstall {
                plans.push(self.containerd(&Containerd::usual_config(), main)?);
            }
            let config = docker.as_ref().map(|docker| &*docker.config);
            if let Some(config) = config.or(self.uninstall.then_some(Path::new(docker::CONFIG))) {
                plans.push(self.docker(config, docker.as_ref())?);
            }
        }
        // A file that is named twice is edited once.
        for path in self.config.iter().collect::<BTreeSet<_>>() {
            plans.push(match path.extension().is_some_and(|extension| extension == "json") {
                true => self.docker(path, docker.as_ref())?,
                false => {
                    let whose = containerds.iter().find(|containerd| containerd.config == *path);
                    self.containerd(path, whose.or_else(|| Containerd::main(&containerds)))?
                }
            });
        }
        plans.extend(self.runtime_class.as_deref().map(|path| self.runtime_class(path)).transpose()?);
        Ok(plans)
    }

    fn containerd(&self, path: &Path, containerd: Option<&Containerd>) -> Result<Plan> {
        let old = replace::read(path)?;
        let format = containerd.map_or(2, Containerd::format);
        let read = old.as_deref().filter(|_| !self.uninstall);
        let mut doubts = read.map(|old| containerd_config::doubts(path, old)).unwrap_or_default();
        let mut runtime_path = None;
        let away = |containerd: &&Containerd| !is_among(&self.directory, &containerd.directories());
        if let Some(containerd) = containerd.filter(|containerd| !self.uninstall && away(containerd)) {
            let shim = std::path::absolute(self.directory.join(SHIM)).os(|| "getcwd")?;
            match containerd.takes_paths() {
                true => runtime_path = Some(shim),
                false => doubts.push(format!("{} is not on this containerd's PATH", self.directory.display())),
            }
        }
        let what = || path.display().to_string();
        let version = containerd_config::table(old.as_deref(), format).context(what)?;
        let edit = match self.uninstall {
            false => containerd_config::with_entry(old.as_deref(), format, runtime_path.as_deref()),
            true => containerd_config::without_entry(old.as_deref()),
        };
        Ok(Plan {
            edit: edit.context(what)?,
            whose: containerd.map_or_else(|| "containerd".to_owned(), Containerd::name),
            entry: containerd_config::entry(version, runtime_path.as_deref()),
            path: path.to_owned(),
            old,
            doubts,
        })
    }

    fn docker(&self, path: &Path, docker: Option<&Docker>) -> Result<Plan> {
        let old = replace::read(path)?;
        let edit = match self.uninstall {
            false => docker_config::with_entry(old.as_deref()),
            true => docker_config::without_entry(old.as_deref()),
        };
        let version = docker.and_then(|docker| docker.version.as_ref());
        let old_docker = version.filter(|(_, numbers)| *numbers < docker::OLDEST);
        Ok(Plan {
            edit: edit.context(|| path.display().to_string())?,
            whose: version.map_or_else(|| "Docker".to_owned(), |(text, _)| format!("Docker {text}")),
            entry: docker_config::made(),
            path: path.to_owned(),
            old,
            doubts: old_docker.map(|_| "a Docker before 23.0 knows no runtimeType".to_owned()).into_iter().collect(),
        })
    }

    fn runtime_class(&self, path: &Path) -> Result<Plan> {
        let old = replace::read(path)?;
        let edit = match (old.as_deref(), self.uninstall) {
            (None, false) => Edit::Write(RUNTIME_CLASS.to_owned()),
            (Some(RUNTIME_CLASS), true) => Edit::Remove,
            (None, true) | (Some(RUNTIME_CLASS), false) => Edit::Nothing,
            (Some(_), _) => Edit::Leave("it is another manifest".to_owned()),
        };
        let (whose, entry) = ("Kubernetes".to_owned(), RUNTIME_CLASS.to_owned());
        Ok(Plan { path: path.to_owned(), old, edit, whose, entry, doubts: Vec::new() })
    }
}

fn uninstall(binary: &Binary, plans: Vec<Plan>) -> Result<()> {
    for plan in plans {
        plan.apply()?;
    }
    for path in binary.uninstall()? {
        say(&format!("removed {}", path.display()))?;
    }
    Ok(())
}

impl Plan {
    fn apply(self) -> Result<()> {
        let path = self.path.display();
        match &self.edit {
            Edit::Nothing => {}
            Edit::Write(new) => {
                replace::write(&self.path, self.old.as_deref(), new)?;
                say(&format!("changed {path} ({}): it takes effect when that is restarted", self.whose))?;
            }
            Edit::Remove => {
                replace::remove(&self.path, self.old.as_deref().unwrap_or_default())?;
                say(&format!("removed {path} ({})", self.whose))?;
            }
            Edit::Leave(why) => log::warn!("{path} is left as it is: {why}"),
        }
        if let Edit::Write(_) | Edit::Nothing = self.edit {
            self.warn();
        }
        Ok(())
    }

    fn warn(&self) {
        for doubt in &self.doubts {
            log::warn!("{}: {doubt}", self.path.display());
        }
    }

    fn print(self) -> Result<()> {
        let (path, whose) = (self.path.display(), &self.whose);
        say(&match &self.edit {
            Edit::Nothing => format!("\n{whose}: {path} has the entry"),
            Edit::Leave(why) => format!("\n{whose}: {path}: {why}"),
            _ => format!("\n{whose}: to be added to {path} (--write does it):\n\n{}", self.entry.trim_end()),
        })?;
        self.warn();
        Ok(())
    }
}

/// A pipe that nobody reads any more is no reason to stop halfway.
fn say(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Error::new(Kind::Internal, format!("write stdout: {e}"))),
    }
}
