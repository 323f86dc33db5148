//! containerd's face: how it starts this program and talks to it.
//!
//! containerd executes the binary with an action: [`bootstrap`] answers `start` and `delete`; without an action it is the
//! server, [`daemon`], which `start` has left behind with a listening socket. `service` decodes what comes over that
//! socket and hands it to the engine; [`publisher`] sends the engine's events back, [`logger`] the log. `dialect` and
//! `options` know what the versions of containerd say, and `info` what this one is. [`client`] is for the command line, which
//! asks a living shim for what is to be done to its containers.

mod address;
pub mod bootstrap;
mod checkpoint;
pub mod client;
pub mod daemon;
pub mod dialect;
mod flags;
mod info;
mod listener;
pub mod logger;
pub mod logrus;
pub mod metrics;
pub mod options;
pub mod publisher;
mod service;
pub mod toml;
pub mod trace;

use std::io::Write;
use std::process::ExitCode;

use containerd_shim::Flags;

use crate::error::{Error, Kind, Result};

/// Version, as `-v` prints it.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The name by which containerd finds this runtime.
const RUNTIME: &str = "io.containerd.dray.v2";

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
    let flags = flags::parse(args)?;
    if flags.version {
        println!("containerd-shim-dray-v2:\n  Version:  {VERSION}");
        return Ok(());
    }
    if flags.info {
        return info::print();
    }
    if flags.namespace.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "the flag -namespace is required"));
    }
    if !rustix::process::geteuid().is_root() {
        let text = "it must be run by root, or by root of a user namespace, as a rootless containerd is";
        return Err(Error::new(Kind::FailedPrecondition, text));
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
fn server_args(flags: &Flags, debug: bool) -> Vec<String> {
    let mut args = vec!["containerd-shim-dray-v2".to_owned()];
    for (flag, value) in [("-namespace", &flags.namespace), ("-id", &flags.id), ("-address", &flags.address)] {
        args.extend([flag.to_owned(), value.clone()]);
    }
    if debug {
        args.push("-debug".to_owned());
    }
    args
}
