//! What was found of a host, and how it is told.

use std::fmt;

use serde::Serialize;

use crate::error::Result;

/// What it is a part of, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Calls and options of the kernel.
    Kernel,
    /// What this process may do.
    Privileges,
    /// Controllers, and who makes cgroups.
    Cgroups,
    /// Security modules and filters.
    Security,
    /// Programs that are called.
    Programs,
    /// Daemons that call us.
    Daemons,
}

/// One thing that is there or not.
#[derive(Debug, Serialize)]
pub struct Finding {
    area: Area,
    name: String,
    present: bool,
    /// Without it no container runs.
    needed: bool,
    /// What was seen: a version, a number, an error.
    found: String,
    /// What is not to be had without it; of what is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<&'static str>,
}

/// What has to be in a file for a daemon to know of us.
#[derive(Debug, Serialize)]
pub struct Configuration {
    /// `containerd 1.6.20 (pid 812)`
    pub daemon: String,
    /// Its path.
    pub file: String,
    /// It is there.
    pub present: bool,
    /// The lines.
    pub entry: String,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Our version.
    pub dray: &'static str,
    /// All that is needed is there.
    pub ok: bool,
    /// By their areas.
    pub findings: Vec<Finding>,
    /// Of each daemon.
    pub configuration: Vec<Configuration>,
}

impl Report {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self { dray: env!("CARGO_PKG_VERSION"), ok: true, findings: Vec::new(), configuration: Vec::new() }
    }

    /// Without this no container runs.
    pub fn need(&mut self, area: Area, name: &str, found: Result<impl fmt::Display>, cost: &'static str) {
        self.ok &= found.is_ok();
        self.add(area, name, found, cost, true);
    }

    /// Without this something is not to be had: `cost`, a sentence.
    pub fn want(&mut self, area: Area, name: &str, found: Result<impl fmt::Display>, cost: &'static str) {
        self.add(area, name, found, cost, false);
    }

    fn add(&mut self, area: Area, name: &str, found: Result<impl fmt::Display>, cost: &'static str, needed: bool) {
        let (present, found) = match found {
            Ok(found) => (true, found.to_string()),
            Err(error) => (false, error.to_string()),
        };
        let cost = (!present).then_some(cost);
        self.findings.push(Finding { area, name: name.to_owned(), present, needed, found, cost });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or_default();
        let mut area = None;
        for finding in &self.findings {
            if area.replace(finding.area) != Some(finding.area) {
                writeln!(f, "{}", format!("{:?}", finding.area).to_lowercase())?;
            }
            let mark = match (finding.present, finding.needed) {
                (true, _) => "yes",
                (false, false) => "no",
                (false, true) => "NO",
            };
            let line = format!("  {mark:3}  {:width$}  {}", finding.name, finding.found);
            writeln!(f, "{}", line.trim_end())?;
            if let Some(cost) = finding.cost {
                writeln!(f, "         {cost}")?;
            }
        }
        for Configuration { daemon, file, present, entry } in &self.configuration {
            match present {
                true => writeln!(f, "\n{daemon}: the runtime is in {file}")?,
                false => writeln!(f, "\n{daemon}: to be added to {file}:\n\n{}", entry.trim_end())?,
            }
        }
        let end = match self.ok {
            true => "all that containers need is there",
            false => "containers cannot be run: what is marked NO is needed",
        };
        writeln!(f, "\n{end}")
    }
}
