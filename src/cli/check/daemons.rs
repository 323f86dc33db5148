//! The daemons that call us: which there are, and whether they know of us.

use super::super::host::containerd::Containerd;
use super::super::host::docker::{Docker, OLDEST};
use super::super::host::{SHIM, containerd_config, docker_config, replace};
use super::absent;
use super::finding::Area::Daemons;
use super::finding::{Configuration, Report};
use crate::error::{Context, Result};

/// Looks for them.
pub fn look(report: &mut Report) {
    let all = Containerd::all();
    if all.is_empty() {
        let cost = "nothing but this command line runs containers by dray: ctr, nerdctl, Docker and Kubernetes need containerd";
        report.want(Daemons, "containerd", Err::<&str, _>(absent("neither running nor installed")), cost);
    }
    for containerd in &all {
        let found = match &containerd.version {
            Some(version) if version.numbers >= (1, 6) => Ok(found(containerd)),
            _ => Err(absent(found(containerd))),
        };
        report.want(Daemons, "containerd", found, "from 1.6 on it was tested with this shim");
        let shim = containerd.shim().map(|shim| shim.display().to_string());
        let cost = "it starts no container by dray: `dray install`, to a directory on its PATH";
        report.want(Daemons, "containerd's shim", shim.ok_or_else(|| nowhere(containerd)), cost);
        match configured(containerd) {
            Ok(configuration) => report.configuration.push(configuration),
            Err(error) => {
                let cost = "containerd does not start with it, and `dray install --write` refuses it";
                report.want(Daemons, "containerd's configuration", Err::<&str, _>(error), cost);
            }
        }
    }
    if let Some(docker) = Docker::find() {
        docker_of(report, &docker);
    }
}

fn found(containerd: &Containerd) -> String {
    let name = containerd.name();
    format!("{}, {}", name.strip_prefix("containerd ").unwrap_or(&name), containerd.exe.display())
}

fn nowhere(containerd: &Containerd) -> crate::error::Error {
    let mut dirs = Vec::new();
    for dir in containerd.directories() {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    absent(format!("no {SHIM} in {}", dirs.join(", ")))
}

fn configured(containerd: &Containerd) -> Result<Configuration> {
    let file = containerd.config.display().to_string();
    let judge = || {
        let text = containerd.configuration()?;
        let version = containerd_config::table(text.as_deref(), containerd.format())?;
        let present = text.as_deref().map_or(Ok(false), containerd_config::has_entry)?;
        Ok((version, present))
    };
    let (version, present) = judge().context(|| file.clone())?;
    Ok(Configuration { daemon: containerd.name(), file, present, entry: containerd_config::entry(version, None) })
}

fn docker_of(report: &mut Report, docker: &Docker) {
    let text = docker.version.as_ref().map_or("of an unknown version", |(text, _)| text);
    let text = format!("{text}, {}", docker.exe.display());
    let found = match &docker.version {
        Some((_, numbers)) if *numbers >= OLDEST => Ok(text),
        _ => Err(absent(text)),
    };
    report.want(Daemons, "Docker", found, "from 23.0 on it takes runtimes by containerd's names for them");
    let file = docker.config.display().to_string();
    let present = replace::read(&docker.config)
        .and_then(|text| text.as_deref().map_or(Ok(false), docker_config::has_entry))
        .context(|| file.clone());
    match present {
        Ok(present) => report.configuration.push(Configuration {
            daemon: "Docker".to_owned(),
            file,
            present,
            entry: docker_config::made(),
        }),
        Err(error) => {
            let cost = "Docker does not start with it, and `dray install --write` refuses it";
            report.want(Daemons, "Docker's configuration", Err::<&str, _>(error), cost);
        }
    }
}
