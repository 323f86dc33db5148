//! `dray completions`

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use clap_complete::{Generator, Shell};

use super::Global;
use crate::error::{Os, Result};

/// Prints what a shell needs to complete this command line.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dray completions bash >/usr/share/bash-completion/completions/dray
  dray completions zsh >/usr/local/share/zsh/site-functions/_dray
  dray completions fish >/usr/share/fish/vendor_completions.d/dray.fish")]
pub struct Completions {
    /// Whose
    #[arg(value_enum)]
    shell: Name,
}

/// A shell, by its name.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "lower")]
enum Name {
    Bash,
    Zsh,
    Fish,
    Elvish,
    PowerShell,
}

/// Runs it.
///
/// # Errors
/// That nobody reads it.
pub fn run(_global: &Global, args: Completions) -> Result<ExitCode> {
    let shell = match args.shell {
        Name::Bash => Shell::Bash,
        Name::Zsh => Shell::Zsh,
        Name::Fish => Shell::Fish,
        Name::Elvish => Shell::Elvish,
        Name::PowerShell => Shell::PowerShell,
    };
    let mut command = super::command();
    command.set_bin_name(super::NAME);
    command.build();
    // Its own way panics where stdout is closed.
    let mut text = Vec::new();
    shell.generate(&command, &mut text);
    std::io::stdout().write_all(&text).os(|| "write stdout")?;
    Ok(ExitCode::SUCCESS)
}
