//! `dray run`

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;

use super::console::{Console, Raw};
use super::making::{Making, Terminal};
use super::trace::Tracing;
use super::{Global, runtime};
use crate::engine::Engine;
use crate::engine::container::Process;
use crate::engine::state::{Identity, StateDir};
use crate::error::{Error, Kind, Result};

/// How long the removal of a container may have to wait for others who are at work on it.
const LOCK_BOUND: Duration = Duration::from_secs(60);

/// Makes a container and starts its program.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    making: Making,
    #[command(flatten)]
    stay: Stay,
    #[command(flatten)]
    tracing: Tracing,
    /// The container's id.
    pub id: String,
}

/// Runs it; the status is the program's, where that is waited for.
///
/// # Errors
/// As [`Engine::create`] and [`Engine::start`]. Then nothing of the container is left.
pub fn run(global: &Global, args: Run) -> Result<ExitCode> {
    runtime::seal()?;
    let (request, terminal) = args.making.request(global, &args.id, args.stay.detach, false)?;
    let (root, namespace) = runtime::new_place(global)?;
    let state = StateDir::new(&root, &namespace, &args.id)?;
    runtime::run(global, (&root, &namespace), !args.stay.no_subreaper, async |engine, mut signals| {
        let started = async {
            let init = args.making.make(&engine, request, &mut signals).await?;
            let foreground = foreground(terminal)?;
            if let Err(error) = engine.clone().start(args.id.clone(), String::new()).await {
                remove(&engine, &state, &init).await.unwrap_or_else(|e| log::error!("{e}"));
                return Err(error);
            }
            Ok((init, foreground))
        };
        let started = started.await;
        let (init, foreground) = args.tracing.told(started, &engine, &state, &args.id)?;
        args.stay.until_its_end(&engine, &state, &init, foreground, &mut signals).await
    })
}

/// Flags of the verbs that start what they make: how long they stay with it.
#[derive(Debug, Args)]
pub struct Stay {
    /// Leave the container behind, running
    #[arg(short, long)]
    pub detach: bool,
    /// Do not delete the container when its program has ended
    #[arg(long)]
    keep: bool,
    /// Leave the orphans of the container to the caller
    #[arg(long)]
    pub no_subreaper: bool,
}

impl Stay {
    /// Stays with a container that has been started until its program has ended, and deletes it, unless it is to be left. The
    /// exit status is the program's, where that was waited for.
    ///
    /// # Errors
    /// That it could not be deleted.
    pub async fn until_its_end(
        &self,
        engine: &Rc<Engine>,
        state: &StateDir,
        init: &Process,
        foreground: Option<Foreground>,
        signals: &mut runtime::Signals,
    ) -> Result<ExitCode> {
        if self.detach {
            return Ok(ExitCode::SUCCESS);
        }
        let status = wait(init, foreground, signals).await;
        if !self.keep {
            remove(engine, state, init).await?;
        }
        Ok(ExitCode::from(status))
    }
}

/// The container's terminal, and the caller's.
pub struct Foreground {
    console: Rc<Console>,
    raw: Option<Raw>,
}

/// Of a process that has one, from its birth on.
///
/// # Errors
/// When it is not there, or the caller's cannot be made raw.
pub fn foreground(terminal: Terminal) -> Result<Option<Foreground>> {
    let Terminal::Ours(mut master) = terminal else { return Ok(None) };
    let missing = |_| Error::new(Kind::Internal, "the container has not sent its terminal");
    let console = Console::new(master.try_recv().map_err(missing)?)?;
    Ok(Some(Foreground { console, raw: Raw::of_ours()? }))
}

/// Waits for the program's end; what this process is sent is the program's. Returns its exit status.
pub async fn wait(init: &Process, foreground: Option<Foreground>, signals: &mut runtime::Signals) -> u8 {
    let relays = foreground.as_ref().map(|foreground| {
        tokio::task::spawn_local(foreground.console.clone().relay_input());
        tokio::task::spawn_local(foreground.console.clone().relay_output())
    });
    let forward = async {
        while let Some(signal) = signals.recv().await {
            match (signal, &foreground) {
                (libc::SIGWINCH, Some(foreground)) => foreground.console.follow_size(),
                (signal, _) if runtime::is_of_our_own(signal) => {}
                // It may have ended meanwhile.
                (signal, _) => drop(init.signal(signal as u32)),
            }
        }
    };
    let exit = match futures::future::select(std::pin::pin!(init.wait()), std::pin::pin!(forward)).await {
        futures::future::Either::Left((exit, _)) => exit,
        // They are read as long as there is a loop.
        futures::future::Either::Right(((), exit)) => exit.await,
    };
    if let (Some(foreground), Some(output)) = (foreground, relays) {
        // Whoever has no patience with a caller who does not take it may still end this.
        let (finish, impatient) = (foreground.console.finish(output), runtime::asked_to_end(signals));
        futures::future::select(std::pin::pin!(finish), std::pin::pin!(impatient)).await;
        drop(foreground.raw);
    }
    exit.status as u8
}

/// Deletes the container, unless somebody else has: its id may be another's by now.
pub(super) async fn remove(engine: &Rc<Engine>, state: &StateDir, init: &Process) -> Result<()> {
    let Some(_lock) = state.lock_within(LOCK_BOUND).await? else { return Ok(()) };
    let own = Identity::of(std::process::id() as i32)?;
    match state.load()? {
        Some(saved) if saved.owner == own => {}
        _ => return Ok(()),
    }
    engine.clone().delete(init.container.clone(), String::new()).await.map(drop)
}
