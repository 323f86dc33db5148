//! The one binary: containerd's shim, and by the name of `dray` the operator's command line.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name);
    match name.is_some_and(|name| name == dray::cli::NAME) {
        true => dray::cli::main(args),
        false => dray::shim::main(args.get(1..).unwrap_or_default()),
    }
}
