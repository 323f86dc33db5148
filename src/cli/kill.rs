//! `dray kill`

use std::process::ExitCode;
use std::rc::Rc;

use clap::Args;

use super::target::{self, Found};
use super::{Global, runtime};
use crate::engine::Engine;
use crate::engine::container::Container;
use crate::engine::lifecycle::State;
use crate::error::{Error, Kind, Result};
use crate::sys::pidfd;

const SIGKILL: u32 = libc::SIGKILL as u32;

/// Sends a signal to a container.
#[derive(Debug, Args)]
pub struct Kill {
    /// Send it to all processes in the container, and not to its init alone
    #[arg(short, long)]
    all: bool,
    /// The container.
    pub id: String,
    /// The signal, by its name or its number.
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

/// Runs it.
///
/// # Errors
/// In runc's words where it does not run.
pub fn run(global: &Global, args: Kill) -> Result<ExitCode> {
    let signal = number(&args.signal)?;
    let found = target::find(global, &args.id)?;
    let id = &args.id;
    target::with_engine(global, found, async |found, engine, mut signals| {
        // Not locked: who has it locked may wait for what is to be killed. Its init is known by its pidfd, and its cgroup by
        // its inode.
        match runtime::unless_ended(&mut signals, found.shim()).await? {
            Some(client) => {
                let killed = runtime::unless_ended(&mut signals, client.kill(id, "", signal, args.all)).await;
                killed.map_err(not_running)?;
            }
            None if signal == SIGKILL && end_maker(&found)? => {}
            None => {
                let container = adopt(&engine, &found)?;
                let killed = match args.all {
                    true => engine.kill_everyone(id, signal),
                    false if container.init.state() == State::Stopped => {
                        Err(Error::new(Kind::NotFound, format!("container {id}")))
                    }
                    false => engine.kill(id, "", signal),
                };
                killed.map_err(not_running)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A container without a process is ended by whoever makes it or has it restored, who undoes it then. False where there is
/// none such.
fn end_maker(found: &Found) -> Result<bool> {
    let Some(saved) = found.state.load()?.filter(|saved| saved.by_command && saved.init.is_none()) else {
        return Ok(false);
    };
    let maker = saved.owner.open().filter(|maker| !pidfd::has_exited(maker));
    maker
        .as_ref()
        .map_or(Ok(false), |maker| pidfd::kill(maker, libc::SIGTERM as u32).map(|()| true).map_err(not_running))
}

/// Somebody may be about to remove it.
fn adopt(engine: &Rc<Engine>, found: &Found) -> Result<Rc<Container>> {
    engine.adopt(&found.state).map_err(|e| match found.living_init() {
        Some(_) => e,
        None => not_running(Error::new(Kind::NotFound, format!("container {}", found.saved.id))),
    })
}

/// What has ended is not running, in runc's words.
fn not_running(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => error.context("container not running"),
        _ => error,
    }
}

/// The names of 1 to 31, as kill(1) has them, and a second name for some.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const OTHER_NAMES: [(&str, &str); 4] = [("IOT", "ABRT"), ("CLD", "CHLD"), ("POLL", "IO"), ("UNUSED", "SYS")];

/// The real-time signals that a program can have: libc keeps the first two.
const REAL_TIME: std::ops::RangeInclusive<u32> = 34..=64;

/// The number of a signal: a number, or a name with SIG before it or without.
///
/// # Errors
/// `InvalidArgument`, in runc's words.
fn number(text: &str) -> Result<u32> {
    let unknown = || Error::new(Kind::InvalidArgument, format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<u32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let name = OTHER_NAMES.iter().find(|(other, _)| *other == name).map_or(name, |(_, name)| name);
    let plain = NAMES.iter().position(|known| *known == name).map(|at| at as u32 + 1);
    let from = |prefix: &str, of: fn(u32) -> Option<u32>| match name.strip_prefix(prefix)? {
        "" => of(0),
        rest => of(rest.trim_start_matches(['+', '-']).parse().ok()?),
    };
    let real_time = || {
        from("RTMIN", |n| REAL_TIME.start().checked_add(n))
            .or_else(|| from("RTMAX", |n| REAL_TIME.end().checked_sub(n)))
    };
    plain.or_else(|| real_time().filter(|number| REAL_TIME.contains(number))).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libc's numbers, not our table's.
    #[test]
    fn signals_have_names_and_numbers() {
        let known = [
            ("KILL", libc::SIGKILL),
            ("SIGTERM", libc::SIGTERM),
            ("sigusr1", libc::SIGUSR1),
            ("WINCH", libc::SIGWINCH),
            ("CHLD", libc::SIGCHLD),
            ("SIGCLD", libc::SIGCHLD),
            ("SYS", libc::SIGSYS),
            ("STKFLT", libc::SIGSTKFLT),
            ("IOT", libc::SIGABRT),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("9", 9),
            ("64", 64),
            ("0", 0),
        ];
        for (text, meant) in known {
            assert_eq!(number(text).unwrap(), meant as u32, "{text}");
        }
        for bad in ["", "SIG", "NOPE", "65", "-1", "RTMIN+31", "RTMAX-x", "9x"] {
            let error = number(bad).unwrap_err().to_string();
            assert_eq!(error, format!("unknown signal {bad:?}"));
        }
    }
}
