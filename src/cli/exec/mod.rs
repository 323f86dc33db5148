//! `dray exec`
//!
//! In the container of a living shim the shim gives birth to the process ([`through`]), so that containerd hears of it and it
//! is reaped, as an exec of containerd's. What the shim's protocol has no words for (to be left alone with the caller's own
//! streams, descriptors beside those, somebody else's end of its terminal, a pidfd, a cgroup below the container's, a
//! container that is paused) is done as in a container that has no shim: this process gives birth to it, with the engine.

mod document;
mod through;

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use clap::Args;
use futures::future::{Either, select};
use serde_json::{Value, json};

use super::making::{Streamed, descriptors, listening, streams, tell};
use super::run::{foreground, wait};
use super::runtime::{Signals, asked_to_end, given_up, unless_ended};
use super::target::{self, Found, Owner};
use super::trace::Tracing;
use super::{Global, runtime, sockets};
use crate::cgroup::Below;
use crate::engine::Engine;
use crate::engine::adopt::Status;
use crate::engine::exec::Apart;
use crate::engine::handed::Handed;
use crate::error::{Context, Error, Kind, Result};

/// The process has no other name: an engine of this process has no other exec.
const EXEC: &str = "exec";

/// Starts a further process in a container.
#[derive(Debug, Args)]
pub struct Exec {
    /// Unix socket that the master of the process's terminal is sent to
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Unix socket that a pidfd of the process is sent to
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// A further variable of the environment; may be said again
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, and group where one is said
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// A further group; may be said again
    #[arg(short = 'g', long, value_name = "GID", allow_negative_numbers = true)]
    additional_gids: Vec<i64>,
    /// File with the process, an object like `process` of config.json; the flags for it are not looked at then
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Leave it behind, running
    #[arg(short, long)]
    detach: bool,
    /// File to write its pid to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Let it gain no privileges
    #[arg(long)]
    no_new_privs: bool,
    /// A further capability; may be said again
    #[arg(short, long, value_name = "CAP_NAME")]
    cap: Vec<String>,
    /// How many descriptors, from 3 on, it gets
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// A cgroup below the container's, which is there; on v1 for each of these controllers
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    cgroup: Vec<String>,
    /// Also in a container that is paused: it runs when that is resumed
    #[arg(long)]
    ignore_paused: bool,
    #[command(flatten)]
    tracing: Tracing,
    /// The container
    id: String,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    args: Vec<std::ffi::OsString>,
}

/// Runs it; the status is the program's, where that is waited for.
///
/// # Errors
/// In runc's words: "cannot exec in a stopped container", "executable file not found in $PATH".
pub fn run(global: &Global, args: Exec) -> Result<ExitCode> {
    let found = target::find(global, &args.id)?;
    let below = Below::parse(&args.cgroup)?;
    if args.process.is_none() && args.args.is_empty() {
        return Err(failed(Error::new(Kind::InvalidArgument, "process args cannot be empty")));
    }
    let by_shim = found.is_a_shims() && !args.is_apart(&found)?;
    if !by_shim {
        runtime::seal()?;
    }
    target::with_engine(global, found, async |found, engine, signals| {
        let done = match by_shim {
            true => args.by_shim(&found, signals).await,
            false => args.by_us(found, engine, below, signals).await,
        };
        done.map_err(failed)
    })
}

fn failed(error: Error) -> Error {
    error.context("exec failed")
}

impl Exec {
    /// Whether a shim cannot be asked for it.
    fn is_apart(&self, found: &Found) -> Result<bool> {
        let paused = self.ignore_paused && found.status_without_shim()? == Status::Paused;
        let sockets = self.console_socket.is_some() || self.pidfd_socket.is_some();
        Ok(paused || sockets || self.detach || self.preserve_fds > 0 || !self.cgroup.is_empty())
    }

    /// What it is to be.
    fn document(&self, found: &Found) -> Result<Value> {
        match &self.process {
            Some(path) => document::read(path),
            None => document::of_flags(found.config_dir(), self),
        }
    }

    fn judge(&self, status: Status) -> Result<()> {
        let refused = |text: &str| Err(Error::new(Kind::FailedPrecondition, text));
        match status {
            Status::Stopped => refused("cannot exec in a stopped container"),
            Status::Creating => refused("cannot exec in a container that is being created"),
            Status::Paused if !self.ignore_paused => {
                refused("cannot exec in a paused container (use --ignore-paused to override)")
            }
            _ => Ok(()),
        }
    }

    async fn by_shim(&self, found: &Found, signals: Signals) -> Result<ExitCode> {
        let gone = || Error::new(Kind::Unavailable, format!("container {}: its shim has ended just now", self.id));
        let client = found.shim().await?.ok_or_else(gone)?;
        self.judge(found.status().await?)?;
        let (document, pid_file) = (self.document(found)?, self.pid_file.as_deref());
        through::run(&client, found, document, pid_file, &self.tracing, signals).await
    }

    async fn by_us(
        self,
        found: Found,
        engine: std::rc::Rc<Engine>,
        below: Option<Below>,
        mut signals: Signals,
    ) -> Result<ExitCode> {
        let living_shim = found.is_a_shims();
        let target = if living_shim { None } else { Some(unless_ended(&mut signals, found.clone().open()).await?) };
        let (found, lock) = match target.map(|target| (target.found, target.owner)) {
            Some((found, Owner::Nobody(lock))) => (found, Some(lock)),
            // It has been made again meanwhile, by a shim.
            Some((found, Owner::Shim(_))) => (found, None),
            None => (found, None),
        };
        self.judge(unless_ended(&mut signals, found.status()).await?)?;
        let process = self.document(&found)?;
        let pidfd_socket = self.pidfd_socket.as_deref().map(sockets::connect).transpose();
        let pidfd_socket = pidfd_socket.context(|| "--pidfd-socket")?;
        let Streamed { streams, terminal } =
            streams(self.console_socket.as_deref(), process["terminal"] == json!(true), self.detach)?;
        let (listening, env) = listening()?;
        let handed = Handed { streams: Some(streams), descriptors: descriptors(listening, self.preserve_fds)?, env };
        // A process of its own: it may take as long as the container is paused, and a resume needs the lock.
        drop(lock);
        engine.adopt_beside_owner(&found.state)?;
        let apart = Apart { handed, even_if_paused: self.ignore_paused, below };
        engine.exec_apart(&self.id, EXEC, process.to_string().as_bytes(), apart)?;
        let started = {
            let starting = pin!(engine.clone().start(self.id.clone(), EXEC.to_owned()));
            match select(starting, pin!(asked_to_end(&mut signals))).await {
                Either::Left((started, _)) => started,
                // It need not come to its end: the container may be paused.
                Either::Right((signal, _)) => {
                    let process = engine.process(&self.id, EXEC)?;
                    process.give_up_birth();
                    let _ = process.signal(libc::SIGKILL as u32);
                    Err(given_up(signal))
                }
            }
        };
        self.tracing.show(engine.traced(&self.id, Some(EXEC)).unwrap_or_default());
        started?;
        let process = engine.process(&self.id, EXEC)?;
        if let Err(error) = tell(&process, pidfd_socket.as_ref(), self.pid_file.as_deref()) {
            let _ = process.signal(libc::SIGKILL as u32);
            return Err(error);
        }
        if self.detach {
            return Ok(ExitCode::SUCCESS);
        }
        let foreground = foreground(terminal)?;
        Ok(ExitCode::from(wait(&process, foreground, &mut signals).await))
    }
}
