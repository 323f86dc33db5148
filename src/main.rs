//! The one binary: containerd's shim, by whatever name it is executed.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    dray::shim::main(&args)
}
