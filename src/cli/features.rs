//! `dray features`

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use super::Global;
use crate::error::{Error, Kind, Os, Result};
use crate::init::seccomp;
use crate::spec::features::features;

/// Prints what this runtime can do, as the runtime specification has it.
///
/// The document is that of the runtime specification (features.md), the same that containerd gets: mount options, namespaces,
/// hooks, capabilities, cgroups, seccomp. It says what this program implements; what the kernel of this host lacks is said
/// by `dray check`.
#[derive(Debug, Args)]
pub struct Features {}

/// Runs it.
///
/// # Errors
/// That nobody reads it.
pub fn run(_global: &Global, _args: Features) -> Result<ExitCode> {
    let mut text = Vec::new();
    // Four spaces, as runc.
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    features(&seccomp::abilities())
        .serialize(&mut serializer)
        .map_err(|e| Error::new(Kind::Internal, format!("features: {e}")))?;
    text.push(b'\n');
    std::io::stdout().write_all(&text).os(|| "write stdout")?;
    Ok(ExitCode::SUCCESS)
}
