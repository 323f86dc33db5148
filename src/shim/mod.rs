//! containerd's face: how it starts this program and talks to it.
//!
//! containerd executes the binary with an action: [`bootstrap`] answers `start` and `delete`; without an action it is the
//! server, [`daemon`], which `start` has left behind with a listening socket. `service` decodes what comes over that
//! socket and hands it to the engine; [`publisher`] sends the engine's events back, [`logger`] the log.

mod address;
pub mod bootstrap;
pub mod daemon;
mod listener;
pub mod logger;
pub mod metrics;
pub mod publisher;
mod service;

use std::io::Write;
use std::process::ExitCode;

use containerd_shim::Flags;

use crate::error::{Error, Kind, Result};

/// Version, as `-v` prints it.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a failed action exits with; containerd's own shim does the same.
const FAILED: u8 = 1;

/// Runs the binary as containerd's shim, `args` without the program's name.
pub fn main(args: &[std::ffi::OsString]) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what a failed action has written.
            let _ = writeln!(std::io::stderr(), "containerd-shim-dray-v2: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(args: &[std::ffi::OsString]) -> Result<()> {
    let flags = containerd_shim::parse(args).map_err(|e| Error::new(Kind::InvalidArgument, e.to_string()))?;
    if flags.version {
        println!("containerd-shim-dray-v2:\n  Version:  {VERSION}");
        return Ok(());
    }
    if flags.namespace.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "the flag -namespace is required"));
    }
    match flags.action.as_str() {
        "start" => bootstrap::start(&flags),
        "delete" => bootstrap::delete(&flags),
        "" => daemon::run(&flags),
        other => Err(Error::new(Kind::InvalidArgument, format!("unknown action {other:?}"))),
    }
}

/// The environment variable in which containerd passes the address for events.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// The arguments with which `start` executes the server.
fn server_args(flags: &Flags) -> Vec<String> {
    let mut args = vec!["containerd-shim-dray-v2".to_owned()];
    for (flag, value) in [("-namespace", &flags.namespace), ("-id", &flags.id), ("-address", &flags.address)] {
        args.extend([flag.to_owned(), value.clone()]);
    }
    if flags.debug {
        args.push("-debug".to_owned());
    }
    args
}
