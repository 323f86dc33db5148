//! `dray trace`: where the time of the last operations on a container went.
//!
//! A living shim is asked. Of a container of the command line's it is in a file beside its state, to which `create`, `start` and
//! `run` add; an exec there is told of by its own `--trace` alone, for there are many of them, and each is to be quick.

mod account;
mod chrome;
mod kept;
mod svg;
mod table;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{Global, target};
use crate::engine::Engine;
use crate::engine::state::StateDir;
use crate::engine::trace::{Kind as Operated, Operation, Operations, Outcome};
use crate::error::{Error, Kind, Os, Result};
use crate::shim::client::Client;

/// Shows where the time of a create, start or exec went.
#[derive(Debug, Args)]
pub struct Trace {
    /// The container.
    pub id: String,
    /// An exec of it, by its id: that alone
    #[arg(long, value_name = "EXEC")]
    pub exec: Option<String>,
    /// The last N operations [default: the last of each kind]
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub last: Option<usize>,
    /// All that are kept
    #[arg(long)]
    pub all: bool,
    /// What to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// File to write to instead of stdout
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How a trace is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines, with a bar for each step.
    #[default]
    Table,
    /// The numbers, as the shim tells them.
    Json,
    /// Chrome's trace event format, for chrome://tracing and Perfetto.
    Chrome,
    /// A picture.
    Svg,
}

/// Of the verbs whose time it is.
#[derive(Debug, Args)]
pub struct Tracing {
    /// Show where the time went, on stderr, or in FILE: a picture (.svg), Chrome's trace events (.json), or a table
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    trace: Option<Option<PathBuf>>,
}

impl Tracing {
    /// Keeps what is known of the operations on the container `id` that this process has done, where they were, and shows it
    /// where that is asked for. Neither changes what comes of them.
    pub fn told<T>(&self, result: Result<T>, engine: &Engine, state: &StateDir, id: &str) -> Result<T> {
        let operations = engine.traced(id, None).unwrap_or_default();
        // Else the state is not there, or another container's.
        if result.is_ok() {
            kept::add(state, operations.clone()).unwrap_or_else(|e| log::debug!("container {id}: trace: {e}"));
        }
        self.show(operations);
        result
    }

    /// Shows the last operation on a container, or on an exec of it, of a shim's that has been asked to do it.
    pub async fn show_last(&self, shim: &Client, id: &str, exec: &str) {
        if self.trace.is_none() {
            return;
        }
        match shim.trace(id, (!exec.is_empty()).then_some(exec)).await {
            Ok(all) => self.show(choose(all, Some(1), false)),
            Err(e) => log::warn!("--trace: {e}"),
        }
    }

    /// Shows operations where that is asked for.
    pub fn show(&self, operations: Vec<Operation>) {
        let shown = match &self.trace {
            None => Ok(()),
            Some(None) => {
                let table = table::of(&operations);
                // Our terminal may be in raw mode, for the container's.
                let table = if std::io::stderr().is_terminal() { table.replace('\n', "\r\n") } else { table };
                std::io::stderr().write_all(table.as_bytes()).os(|| "write stderr")
            }
            Some(Some(path)) => write(Some(path), Format::of(path), operations),
        };
        shown.unwrap_or_else(|e| log::warn!("--trace: {e}"));
    }
}

impl Format {
    /// By a file's name.
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Self::Svg,
            Some("json") => Self::Chrome,
            _ => Self::Table,
        }
    }
}

/// Runs it.
///
/// # Errors
/// `NotFound` where nothing is known of the container, or of the exec.
pub fn run(global: &Global, args: Trace) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().os(|| "epoll_create")?;
    let all = runtime.block_on(known(global, &args.id, args.exec.as_deref()))?;
    let chosen = choose(all, args.last, args.all || args.exec.is_some());
    if chosen.is_empty() {
        let text = format!("container {}: no operation on it is kept", args.id);
        return Err(Error::new(Kind::NotFound, text));
    }
    write(args.output.as_deref(), args.format, chosen)?;
    Ok(ExitCode::SUCCESS)
}

async fn known(global: &Global, id: &str, exec: Option<&str>) -> Result<Vec<Operation>> {
    let found = target::find(global, id)?;
    match found.shim().await? {
        Some(shim) => shim.trace(id, exec).await,
        None => {
            Ok(kept::load(&found.state)?.into_iter().filter(|op| exec.is_none_or(|exec| op.exec == exec)).collect())
        }
    }
}

/// Those that are asked for, the oldest first.
fn choose(mut all: Vec<Operation>, last: Option<usize>, every: bool) -> Vec<Operation> {
    if let Some(last) = last {
        return all.split_off(all.len().saturating_sub(last));
    }
    if !every {
        let kinds: Vec<Operated> = all.iter().map(|operation| operation.kind).collect();
        let mut at = 0;
        all.retain(|operation| {
            at += 1;
            !kinds[at..].contains(&operation.kind)
        });
    }
    all
}

fn write(output: Option<&Path>, format: Format, operations: Vec<Operation>) -> Result<()> {
    let text = text(format, operations);
    match output {
        Some(path) => {
            File::create(path).and_then(|mut file| file.write_all(&text)).os(|| format!("write {}", path.display()))
        }
        None => std::io::stdout().write_all(&text).os(|| "write stdout"),
    }
}

fn text(format: Format, operations: Vec<Operation>) -> Vec<u8> {
    match format {
        Format::Table => table::of(&operations).into_bytes(),
        Format::Chrome => chrome::of(&operations).into_bytes(),
        Format::Svg => svg::of(&operations).into_bytes(),
        Format::Json => [Operations { operations }.to_json(), b"\n".to_vec()].concat(),
    }
}

/// What an operation is called. Ids are anybody's words: nothing in them ends a line or moves a cursor.
fn title(operation: &Operation) -> String {
    let kind = match operation.kind {
        Operated::Create => "create",
        Operated::Start => "start",
        Operated::Exec => "exec",
        Operated::Delete => "delete",
    };
    let exec = if operation.exec.is_empty() { String::new() } else { format!(" {}", plain(&operation.exec)) };
    format!("{kind} {}{exec}", plain(&operation.container))
}

/// Without what a terminal takes for more than a character.
fn plain(text: &str) -> String {
    let escaped = |c: char| if matches!(c, '\'' | '"') { c.to_string() } else { c.escape_debug().to_string() };
    text.chars().map(escaped).collect()
}

/// The same, how long it took and what came of it.
fn headline(operation: &Operation) -> String {
    let outcome = match operation.outcome {
        Outcome::Done => "",
        Outcome::Failed => ", failed",
        Outcome::UnderWay => ", under way",
    };
    format!("{}: {} µs{outcome}", title(operation), micros(operation.took_ns))
}

/// Microseconds, with the first decimal.
fn micros(nanoseconds: u64) -> String {
    let tenths = nanoseconds.saturating_add(50) / 100;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests;
