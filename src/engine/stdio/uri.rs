//! What containerd's stream URIs ask for.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::engine::events::StdioUris;
use crate::error::{Context, Error, Kind, Result};

/// Where one stream goes. The relay knows one variant from another only when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nowhere: `/dev/null`.
    Null,
    /// A named pipe that containerd or its client made and opens at the other end.
    Fifo(PathBuf),
    /// To something that we start, and that reads the process's pipe itself.
    Log(Log),
}

/// What reads a process's output in our place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Log {
    /// A file, to be appended to.
    File(PathBuf),
    /// A program.
    Binary(Binary),
}

/// A logger, as containerd starts one (containerd: cmd/containerd-shim-runc-v2/process/io_util.go).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    /// Its executable.
    pub path: CString,
    /// Key and value of each query parameter, as two arguments.
    pub args: Vec<CString>,
    /// `KEY=value` of each query parameter `env.KEY`.
    pub env: Vec<CString>,
    /// It says itself that it is ready, by a byte; else the end of CONTAINER_WAIT is enough.
    pub says_ready: bool,
}

impl Target {
    /// Reads `uri`: empty, an absolute path, `fifo:///path`, `file:///path`, `binary:///path?key=value` or `binary-v2:` (containerd:
    /// core/runtime/v2/README.md, "I/O").
    ///
    /// # Errors
    /// `Unimplemented` for another scheme, by its name; `InvalidArgument` for a path that is not absolute. The query is in
    /// none of them: there may be a secret among a logger's arguments.
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let shown = uri.split(['?', '#']).next().unwrap_or_default();
        let invalid = |what: &str| Error::new(Kind::InvalidArgument, format!("stream {shown}: {what}"));
        let (scheme, rest) = match uri.split_once("://") {
            None if uri.is_empty() => return Ok(Self::Null),
            None => ("fifo", uri),
            Some(parts) => parts,
        };
        if !["fifo", "file", "binary", "binary-v2"].contains(&scheme) {
            let text = format!("stream {shown}: scheme {scheme} is not supported");
            return Err(Error::new(Kind::Unimplemented, text));
        }
        if !rest.starts_with('/') {
            return Err(invalid("not an absolute path"));
        }
        if scheme == "fifo" {
            return Ok(Self::Fifo(rest.into()));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path, false).ok_or_else(|| invalid("not a URI's path"))?;
        if scheme == "file" {
            return Ok(Self::Log(Log::File(OsString::from_vec(path.into_bytes()).into())));
        }
        let (args, env) = parameters(query).ok_or_else(|| invalid("its query cannot be decoded"))?;
        Ok(Self::Log(Log::Binary(Binary { path, args, env, says_ready: scheme == "binary-v2" })))
    }

    /// Where stdout and stderr go. A logger of stdout's gets a stderr too that nobody wants elsewhere, as from containerd's
    /// own shim, which looks at stdout's URI alone.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub(super) fn outputs(uris: &StdioUris) -> Result<(Self, Self)> {
        let stdout = Self::parse(&uris.stdout).context(|| "stdout")?;
        let stderr = match (&stdout, Self::parse(&uris.stderr).context(|| "stderr")?) {
            (Self::Log(Log::Binary(_)), Self::Null) => stdout.clone(),
            (_, stderr) => stderr,
        };
        Ok((stdout, stderr))
    }
}

/// A logger's arguments and environment. Of a key that is there twice the first value counts, as for containerd, whose
/// order of the keys is any; ours is the URI's.
fn parameters(query: &str) -> Option<(Vec<CString>, Vec<CString>)> {
    let (mut args, mut env): (Vec<CString>, Vec<CString>) = Default::default();
    let mut seen = BTreeSet::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key, true)?, decode(value, true)?);
        if !seen.insert(key.clone()) {
            continue;
        }
        match key.as_bytes().strip_prefix(b"env.") {
            // These two are not the client's to set.
            Some(b"CONTAINER_ID" | b"CONTAINER_NAMESPACE") => {}
            Some(name) => env.push(CString::new([name, b"=", value.as_bytes()].concat()).ok()?),
            None => args.extend([key, value]),
        }
    }
    Some((args, env))
}

/// Undoes a URI's escapes (RFC 3986, 2.1); in a query '+' is a blank. `None` for what is no escape, and for a NUL.
fn decode(text: &str, in_query: bool) -> Option<CString> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (hex(bytes.next()?)? << 4) | hex(bytes.next()?)?,
            b'+' if in_query => b' ',
            other => other,
        });
    }
    CString::new(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(uri: &str) -> Binary {
        match Target::parse(uri).unwrap() {
            Target::Log(Log::Binary(binary)) => binary,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_path_and_a_fifo_uri_are_the_same() {
        assert_eq!(Target::parse("/run/x").unwrap(), Target::Fifo("/run/x".into()));
        assert_eq!(Target::parse("fifo:///run/x").unwrap(), Target::Fifo("/run/x".into()));
        assert_eq!(Target::parse("").unwrap(), Target::Null);
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        for scheme in ["npipe", "ttrpc+unix", "binary-v3"] {
            let e = Target::parse(&format!("{scheme}:///x?token=secret")).unwrap_err();
            assert_eq!(e.kind(), Kind::Unimplemented);
            assert!(e.to_string().contains(&format!("scheme {scheme} ")), "{e}");
            assert!(!e.to_string().contains("secret"), "{e}");
        }
    }

    #[test]
    fn a_path_must_be_absolute() {
        for uri in ["x", "fifo://x/y", "fifo://", "file://x/y", "file://", "binary://x?y=/z", "binary-v2://"] {
            assert_eq!(Target::parse(uri).unwrap_err().kind(), Kind::InvalidArgument, "{uri}");
        }
    }

    #[test]
    fn a_file_has_a_decoded_path() {
        let file = |path: &str| Target::Log(Log::File(path.into()));
        assert_eq!(Target::parse("file:///var/log/a%20b+c?x=y#z").unwrap(), file("/var/log/a b+c"));
        for uri in ["file:///%", "file:///%4", "file:///%zz", "file:///a%00b"] {
            assert_eq!(Target::parse(uri).unwrap_err().kind(), Kind::InvalidArgument, "{uri}");
        }
    }

    #[test]
    fn a_logger_has_the_arguments_and_the_environment_of_its_query() {
        let logger = binary("binary:///bin/l%20g?a=1&b=x+y%26z&c&=d&a=2&env.K=v%3D1&env.CONTAINER_ID=no&&#x");
        assert_eq!(logger.path.as_c_str(), c"/bin/l g");
        let args = [c"a", c"1", c"b", c"x y&z", c"c", c"", c"", c"d"];
        assert_eq!(logger.args, args.map(CString::from));
        assert_eq!(logger.env, [CString::from(c"K=v=1")]);
        assert!(!logger.says_ready && binary("binary-v2:///x").says_ready);
        let e = Target::parse("binary:///x?token=secret%").unwrap_err();
        assert!(e.kind() == Kind::InvalidArgument && !e.to_string().contains("secret"), "{e}");
    }

    /// A request may have 4 MiB, and all containers of the shim wait for its parse.
    #[test]
    fn many_arguments_take_no_longer_than_they_have_to() {
        let query: String = (0..100_000).map(|n| format!("k{n}=1&")).collect();
        let began = std::time::Instant::now();
        assert_eq!(binary(&format!("binary:///x?{query}")).args.len(), 200_000);
        // Some hundred ms; minutes, were each compared with all before it.
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn a_logger_of_stdout_gets_a_stderr_that_goes_nowhere_else() {
        let outputs = |stdout: &str, stderr: &str| {
            let uris = StdioUris { stdout: stdout.into(), stderr: stderr.into(), ..Default::default() };
            Target::outputs(&uris).unwrap()
        };
        let (stdout, stderr) = outputs("binary:///x", "");
        assert_eq!(stdout, stderr);
        assert_eq!(outputs("binary:///x", "/y").1, Target::Fifo("/y".into()));
        assert_eq!(outputs("file:///x", "").1, Target::Null);
        assert_eq!(outputs("", "binary:///x").0, Target::Null);
    }
}
