//! `dray man`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_mangen::Man as Page;

use super::Global;
use crate::error::{Os, Result};

/// Writes the manual pages.
///
/// There is one of dray(8), and one of each verb, dray-run(8). Without a directory the first is printed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dray man | man -l -
  dray man --directory /usr/local/share/man/man8")]
pub struct Man {
    /// Where to write all of them, a file each
    #[arg(long, short, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Print the page of this verb
    #[arg(conflicts_with = "directory")]
    verb: Option<String>,
}

/// Of the manual: what is for root.
const SECTION: &str = "8";

/// Runs it.
///
/// # Errors
/// That they cannot be written; `NotFound` for a verb that is none.
pub fn run(_global: &Global, args: Man) -> Result<ExitCode> {
    let pages = pages()?;
    match args.directory {
        Some(directory) => {
            for (name, page) in pages {
                let path = directory.join(format!("{name}.{SECTION}"));
                std::fs::write(&path, page).os(|| format!("write {}", path.display()))?;
            }
        }
        None => {
            let name = args.verb.map_or_else(|| super::NAME.to_owned(), |verb| format!("{}-{verb}", super::NAME));
            let page = pages.iter().find(|(other, _)| *other == name);
            let none = || crate::error::Error::new(crate::error::Kind::NotFound, format!("no manual page {name}"));
            std::io::stdout().write_all(&page.ok_or_else(none)?.1).os(|| "write stdout")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Their names, and what is in them.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut command = super::command().disable_help_flag(true);
    command.build();
    let verbs = command.get_subcommands().map(|verb| (format!("{}-{}", super::NAME, verb.get_name()), verb.clone()));
    let all = verbs.collect::<Vec<_>>().into_iter().chain([(super::NAME.to_owned(), command)]);
    all.map(|(name, command)| page(&name, command).map(|page| (name, page))).collect()
}

fn page(name: &str, command: Command) -> Result<Vec<u8>> {
    let title = name.to_uppercase();
    let source = format!("{} {}", super::NAME, env!("CARGO_PKG_VERSION"));
    // The name with a dash is what man(1) looks for.
    let page = Page::new(command.display_name(name.to_owned()));
    let page = page.title(title).section(SECTION).source(source).manual("System Administration");
    let mut text = Vec::new();
    page.render(&mut text).os(|| format!("manual page {name}"))?;
    // What stands below the help gets the name that sections of a manual have (man-pages(7)).
    let text = String::from_utf8_lossy(&text);
    let text = ["Examples:", "Example:"]
        .iter()
        .fold(text.into_owned(), |text, word| text.replace(&format!(".SH EXTRA\n{word}\n"), ".SH EXAMPLES\n"));
    Ok(text.into_bytes())
}
