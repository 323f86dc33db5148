//! The operator's face: runc's command line over the same engine.
//!
//! A verb has a file. `global` has what is said before the verb, `args` lets Go's way of writing flags pass, [`report`] has
//! the two places of an error, `target` finds a container that this program or a shim has made, `status` says what it is like,
//! and `output` how that is printed.

mod args;
mod check;
mod checkpoint;
mod completions;
mod console;
mod create;
mod criu;
mod delete;
mod events;
mod exec;
mod features;
mod global;
mod host;
mod install;
mod kill;
mod list;
mod making;
mod man;
mod output;
mod pause;
mod ps;
pub mod report;
mod restore;
mod resume;
mod run;
mod runtime;
mod sockets;
mod spec;
mod start;
mod state;
mod stats;
mod status;
mod target;
mod trace;
mod update;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::Result;
use global::Global;

/// The name by which the binary is this command line, and not the shim.
pub const NAME: &str = "dray";

/// Runs containers by the Open Container Initiative's runtime specification, as runc does.
#[derive(Debug, Parser)]
#[command(name = NAME, version = global::version(), disable_version_flag = true, disable_help_subcommand = true)]
#[command(after_help = global::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

// What a verb does is said at its arguments.
#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Create),
    Start(start::Start),
    Run(run::Run),
    Exec(exec::Exec),
    Kill(kill::Kill),
    Delete(delete::Delete),
    State(state::State),
    List(list::List),
    Ps(ps::Ps),
    Pause(pause::Pause),
    Resume(resume::Resume),
    Update(update::Update),
    Events(events::Events),
    Spec(spec::Spec),
    Features(features::Features),
    Checkpoint(checkpoint::Checkpoint),
    Restore(restore::Restore),
    Check(check::Check),
    Trace(trace::Trace),
    Install(install::Install),
    Completions(completions::Completions),
    Man(man::Man),
}

/// The parser, for what is made from it.
fn command() -> clap::Command {
    Cli::command()
}

/// Runs the binary as `dray`; `args` with the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli =
        match command().try_get_matches_from(args::from_go(&command(), args)).and_then(|m| Cli::from_arg_matches(&m)) {
            Ok(cli) => cli,
            Err(error) => return report::usage(&error),
        };
    let failed = cli.verb.status_of_failure();
    if let Err(error) = report::set_up(&cli.global) {
        return report::fail(&error, failed);
    }
    cli.verb.run(&cli.global).unwrap_or_else(|error| report::fail(&error, failed))
}

impl Verb {
    fn run(self, global: &Global) -> Result<ExitCode> {
        match self {
            Self::Create(args) => create::run(global, args),
            Self::Start(args) => start::run(global, args),
            Self::Run(args) => run::run(global, args),
            Self::Exec(args) => exec::run(global, args),
            Self::Kill(args) => kill::run(global, args),
            Self::Delete(args) => delete::run(global, args),
            Self::State(args) => state::run(global, args),
            Self::List(args) => list::run(global, args),
            Self::Ps(args) => ps::run(global, args),
            Self::Pause(args) => pause::run(global, args),
            Self::Resume(args) => resume::run(global, args),
            Self::Update(args) => update::run(global, args),
            Self::Events(args) => events::run(global, args),
            Self::Spec(args) => spec::run(global, args),
            Self::Features(args) => features::run(global, args),
            Self::Checkpoint(args) => checkpoint::run(global, args),
            Self::Restore(args) => restore::run(global, args),
            Self::Check(args) => check::run(global, args),
            Self::Trace(args) => trace::run(global, args),
            Self::Install(args) => install::run(global, args),
            Self::Completions(args) => completions::run(global, args),
            Self::Man(args) => man::run(global, args),
        }
    }

    /// What runc exits with when it could not do this: an exec's own status may be any up to 254.
    fn status_of_failure(&self) -> u8 {
        match self {
            Self::Exec(_) => 255,
            _ => 1,
        }
    }
}
