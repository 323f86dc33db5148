//! The command line, as containerd writes it: Go's flags, then an action.

use std::ffi::OsString;

use containerd_shim::Flags;

use crate::error::{Error, Kind, Result};

/// A flag of containerd's own shim, for its profiler, which is a service that this one does not have.
const DEBUG_SOCKET: [&str; 2] = ["-debug-socket", "--debug-socket"];

/// Parses the arguments, without the program's name.
///
/// # Errors
/// `InvalidArgument` for a flag that is not known.
pub fn parse(args: &[OsString]) -> Result<Flags> {
    // The crate knows all the flags but this one, and refuses what it does not know.
    let mut known = Vec::with_capacity(args.len());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.to_str().map(|arg| arg.split_once('=').map_or((arg, None), |(name, value)| (name, Some(value)))) {
            Some((name, None)) if DEBUG_SOCKET.contains(&name) => drop(args.next()),
            Some((name, Some(_))) if DEBUG_SOCKET.contains(&name) => {}
            _ => known.push(arg),
        }
    }
    containerd_shim::parse(&known).map_err(|e| Error::new(Kind::InvalidArgument, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Flags> {
        parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn both_forms_of_each_flag_are_known() {
        for line in [
            "-namespace n -id i -debug -socket /s -debug-socket /d -bundle /b -address /a -publish-binary /c delete",
            "--namespace=n --id=i --debug=true --socket=/s --debug-socket=/d --bundle=/b --address=/a delete",
        ] {
            let flags = parsed(line).unwrap();
            assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.debug), ("n", "i", true));
            assert_eq!((flags.socket.as_str(), flags.bundle.as_str(), flags.address.as_str()), ("/s", "/b", "/a"));
            assert_eq!(flags.action, "delete");
        }
        assert_eq!(parsed("-frobnicate x start").unwrap_err().kind(), Kind::InvalidArgument);
    }
}
