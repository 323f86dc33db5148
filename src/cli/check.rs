//! `dray check`

mod cgroups;
mod daemons;
mod finding;
mod kernel;
mod privileges;
mod programs;
mod security;

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::Global;
use crate::error::{Error, Kind, Os, Result};
use finding::Report;

/// Says what this host offers, what it lacks, and what that costs.
///
/// Each feature of the kernel is tried, in a way that leaves nothing behind: a namespace is made by a child that ends, a mount is
/// attached nowhere. Of what is not there one sentence says what cannot be had without it; `NO` is what no container can be run
/// without. At the end are the lines by which containerd's CRI plugin and Docker know the runtime, for the version that was found.
///
/// The exit status is 0 where all that is needed is there, 1 where it is not.
///
/// With --json it is an object: `dray` (this program's version), `ok` (as the exit status), `findings`, a list of objects with
/// `area` (kernel, privileges, cgroups, security, programs, daemons), `name`, `present`, `needed`, `found` (a text) and, of what is
/// absent, `cost`; and `configuration`, a list of objects with `daemon`, `file`, `present` and `entry`. Names and members stay
/// what they are; others may be added.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dray check || exit 1
  dray check --json | jq -r '.findings[] | select(.present | not) | .name'
  dray check --json | jq -r '.configuration[] | select(.present | not) | .entry'")]
pub struct Check {
    /// Print it for programs
    #[arg(long)]
    json: bool,
}

/// Runs it.
///
/// # Errors
/// That nobody reads it: what it looks at may all be missing.
pub fn run(global: &Global, args: Check) -> Result<ExitCode> {
    let mut report = Report::new();
    kernel::look(&mut report);
    privileges::look(&mut report);
    cgroups::look(&mut report);
    security::look(&mut report);
    programs::look(&mut report, global);
    daemons::look(&mut report);
    let text = match args.json {
        true => serde_json::to_string_pretty(&report).map(|text| text + "\n"),
        false => Ok(report.to_string()),
    };
    let text = text.map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    std::io::stdout().write_all(text.as_bytes()).os(|| "write stdout")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is not there, for a [`Report`].
fn absent(why: impl Into<String>) -> Error {
    Error::new(Kind::NotFound, why)
}
