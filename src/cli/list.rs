//! `dray list`

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Global;
use super::output::{self, Format};
use super::status::Shown;
use super::target::{self, Found};
use crate::engine::host;
use crate::error::Result;

/// Lists containers.
#[derive(Debug, Args)]
pub struct List {
    /// How
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Print ids alone
    #[arg(short, long)]
    quiet: bool,
}

/// runc's member, and what runc has not.
#[derive(Serialize)]
struct Member {
    #[serde(flatten)]
    shown: Shown,
    namespace: String,
    /// The living shim that owns it.
    shim: Option<Shim>,
}

#[derive(Serialize)]
struct Shim {
    id: String,
    pid: i32,
}

/// Runs it.
///
/// # Errors
/// When the directory of containers cannot be read.
pub fn run(global: &Global, args: List) -> Result<ExitCode> {
    let all = target::all(global)?;
    if args.quiet {
        output::print(&all.iter().map(|found| format!("{}\n", found.saved.id)).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let members = host::block_on(async {
        let mut members = Vec::new();
        for found in all {
            members.extend(member(found).await);
        }
        Ok(members)
    })?;
    output::print(&match args.format {
        Format::Table => table(&members),
        // Go's of a slice that nothing was appended to.
        Format::Json if members.is_empty() => "null\n".to_owned(),
        Format::Json => output::line(&members)?,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `None` for one of which nothing can be said: a fault of one is none of the others'.
async fn member(found: Found) -> Option<Member> {
    let status = match found.status().await {
        Ok(status) => Ok(status),
        Err(e) => {
            log::warn!("{e}");
            found.status_without_shim()
        }
    };
    let status = status.inspect_err(|e| log::warn!("container {}: {e}", found.saved.id)).ok()?;
    let mut shown = found.shown(status);
    shown.owner = found.owner_name();
    let owned = found.is_a_shims();
    let shim = found.saved.shim.filter(|_| owned).map(|id| Shim { id, pid: found.saved.owner.pid });
    Some(Member { shown, namespace: found.namespace, shim })
}

fn table(members: &[Member]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER", "NAMESPACE", "SHIM"].map(str::to_owned);
    let row = |Member { shown, namespace, shim }: &Member| {
        let shim = shim.as_ref().map_or("-".to_owned(), |shim| format!("{} ({})", shim.id, shim.pid));
        let bundle = shown.bundle.display().to_string();
        let (pid, status, created) = (shown.pid.to_string(), shown.status.to_owned(), shown.created.to_string());
        [shown.id.clone(), pid, status, bundle, created, shown.owner.clone(), namespace.clone(), shim]
    };
    let rows: Vec<_> = std::iter::once(head).chain(members.iter().map(row)).collect();
    output::table(&rows)
}
