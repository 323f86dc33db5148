//! `dray restore`

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Args;
use futures::future::{Either, select};

use super::criu::Criu;
use super::making::{Making, write_pid};
use super::run::{Stay, foreground, remove};
use super::{Global, runtime};
use crate::engine::Engine;
use crate::engine::restore::Request;
use crate::engine::state::StateDir;
use crate::error::{Context, Kind, Result};

/// Makes a container from a checkpoint.
#[derive(Debug, Args)]
pub struct Restore {
    #[command(flatten)]
    criu: Criu,
    /// Directory of the bundle [default: the current directory]
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Unix socket that the master of the container's terminal is sent to
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File to write the pid of the container's init to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    #[command(flatten)]
    stay: Stay,
    /// Change the root without pivot_root(2): CRIU sees to it
    #[arg(long)]
    no_pivot: bool,
    /// Profile of the security module, TYPE:NAME, instead of that in the images
    #[arg(long, value_name = "PROFILE")]
    lsm_profile: Option<String>,
    /// Context of mounts instead of that in the images
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
    /// The container's id.
    pub id: String,
}

/// Runs it; the status is the program's, where that is waited for.
///
/// # Errors
/// As [`crate::engine::Engine::create`] and [`crate::engine::Engine::start`]. Then nothing of the container is left.
pub fn run(global: &Global, args: Restore) -> Result<ExitCode> {
    runtime::seal()?;
    let making = Making {
        bundle: args.bundle.clone(),
        console_socket: args.console_socket.clone(),
        pidfd_socket: None,
        // There is none before the start.
        pid_file: None,
        no_pivot: args.no_pivot,
        no_new_keyring: false,
        preserve_fds: 0,
    };
    let (mut request, terminal) = making.request(global, &args.id, args.stay.detach, false)?;
    request.restore = Some(Request {
        settings: args.criu.settings(global)?,
        lsm_profile: args.lsm_profile.clone(),
        lsm_mount_context: args.lsm_mount_context.clone(),
    });
    let (root, namespace) = runtime::new_place(global)?;
    let state = StateDir::new(&root, &namespace, &args.id)?;
    runtime::run(global, (&root, &namespace), !args.stay.no_subreaper, async |engine, mut signals| {
        let init = making.make(&engine, request, &mut signals).await?;
        let started = start(&engine, &args.id, &mut signals).await;
        let told = started.and_then(|pid| {
            args.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, pid)).context(|| "--pid-file")
        });
        let foreground = match told.and_then(|()| foreground(terminal)) {
            Ok(foreground) => foreground,
            Err(error) => {
                let _ = init.signal(libc::SIGKILL as u32); // It may never have been.
                if init.pid() != 0 {
                    init.wait().await;
                }
                remove(&engine, &state, &init).await.unwrap_or_else(|e| log::error!("{e}"));
                return Err(error);
            }
        };
        args.stay.until_its_end(&engine, &state, &init, foreground, &mut signals).await
    })
}

/// Has it restored. CRIU may take for ever: at a signal that asks for an end it is given up.
async fn start(engine: &Rc<Engine>, id: &str, signals: &mut runtime::Signals) -> Result<u32> {
    let starting = pin!(engine.clone().start(id.to_owned(), String::new()));
    let (signal, starting) = match select(starting, pin!(runtime::asked_to_end(signals))).await {
        Either::Left((started, _)) => return started,
        Either::Right(given_up) => given_up,
    };
    match engine.kill(id, "", libc::SIGKILL as u32) {
        Err(e) if e.kind() != Kind::NotFound => log::error!("{e}"),
        _ => {}
    }
    // It may have come to its end all the same.
    let _ = starting.await;
    Err(runtime::given_up(signal).context(format!("container {id}")))
}
