//! What containerd says to the action `start`, and the words in which it understands the answer: three dialects, by its
//! version.
//!
//! | containerd | says it by | answer |
//! |---|---|---|
//! | 1.6 | flags, environment; runtime options on stdin | the address |
//! | 1.7 to 2.2 | the same, and MAX_SHIM_VERSION in the environment | JSON of version 2 |
//! | 2.3 and later | `BootstrapParams` on stdin | `BootstrapResult` |
//!
//! 2.0 to 2.2 would take a version 3 too, but cannot be told from 1.7, which refuses it. With version 2 they ask for a
//! `start` for each container of a pod, and all is as with 1.7.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use containerd_shim::Flags;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Enum, Message};

use crate::error::{Error, Kind, Os, Result};

use super::TTRPC_ADDRESS;
use super::address::Speaks;

/// The most that is read of stdin; containerd's own shim reads as much.
const MAX_INPUT: u64 = 10 << 20;

/// How the answer is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The address alone.
    Plain,
    /// `{"version": 2, "address": "unix://...", "protocol": "ttrpc"}`
    Json,
    /// A `BootstrapResult`.
    Protobuf,
}

/// A call of `start`.
#[derive(Debug)]
pub struct Call {
    /// How to answer it.
    pub dialect: Dialect,
    /// What may be runtime options: at most one is.
    pub options: Vec<Any>,
    /// Where the socket is to be, if not at the usual place.
    pub socket_dir: Option<PathBuf>,
    /// containerd's own address, which is part of the socket's name.
    pub containerd: String,
    /// Where events go.
    pub events: Option<String>,
    /// Whether to log everything.
    pub debug: bool,
}

impl Call {
    /// Reads flags, environment and `input`, which is what stdin had.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters that are for another shim.
    pub fn read(flags: &Flags, env: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Self> {
        if let Some(params) = bootstrap_params(flags, input)? {
            return Ok(Self::bootstrapped(flags, params, env(TTRPC_ADDRESS)));
        }
        let options = match input {
            [] => Vec::new(),
            input => vec![any(input)?],
        };
        let versions = env("MAX_SHIM_VERSION").and_then(|version| version.trim().parse::<u32>().ok());
        Ok(Self {
            dialect: if versions.is_some_and(|newest| newest >= 2) { Dialect::Json } else { Dialect::Plain },
            options,
            socket_dir: None,
            containerd: or(flags.address.clone(), env("GRPC_ADDRESS")).unwrap_or_default(),
            events: env(TTRPC_ADDRESS),
            debug: flags.debug,
        })
    }

    fn bootstrapped(flags: &Flags, params: BootstrapParams, events: Option<String>) -> Self {
        // The enumeration is open: what lies between two levels is compared by number.
        let verbose = params.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG.value();
        Self {
            dialect: Dialect::Protobuf,
            options: params.extensions.into_iter().filter_map(|extension| extension.value.into_option()).collect(),
            socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from),
            containerd: or(params.containerd_grpc_address, Some(flags.address.clone())).unwrap_or_default(),
            events: or(params.containerd_ttrpc_address, events),
            debug: flags.debug || verbose,
        }
    }
}

fn or(text: String, other: Option<String>) -> Option<String> {
    if text.is_empty() { other } else { Some(text) }
}

/// `BootstrapParams`, if that is what `input` is. `Any` decodes as one as well, its type's name as the instance's id: the
/// flags tell them apart, as they do in containerd (pkg/shim/compat.go).
fn bootstrap_params(flags: &Flags, input: &[u8]) -> Result<Option<BootstrapParams>> {
    let Ok(params) = BootstrapParams::parse_from_bytes(input) else { return Ok(None) };
    if params.instance_id == flags.id && params.namespace == flags.namespace {
        return Ok(Some(params));
    }
    let BootstrapParams { instance_id, namespace, .. } = params.clone();
    // With more in it than an `Any` has, it is no options either.
    if params == (BootstrapParams { instance_id, namespace, ..Default::default() }) {
        return Ok(None);
    }
    let text = format!(
        "the parameters on stdin are for {}/{}, the flags for {}/{}",
        params.namespace, params.instance_id, flags.namespace, flags.id
    );
    Err(Error::new(Kind::InvalidArgument, text))
}

/// Runtime options as they are on stdin.
///
/// # Errors
/// `InvalidArgument` for what is no `Any`.
pub fn any(input: &[u8]) -> Result<Any> {
    let wrong = |e| Error::new(Kind::InvalidArgument, format!("stdin has no runtime options: {e}"));
    Any::parse_from_bytes(input).map_err(wrong)
}

/// What stdin has, where it is not an operator's terminal.
pub fn read_stdin() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_INPUT).read_to_end(&mut input).os(|| "read stdin")?;
    }
    Ok(input)
}

/// The answer: a server that speaks so is at this address.
pub fn reply(dialect: Dialect, uri: String, speaks: Speaks) -> Result<Vec<u8>> {
    let internal = |e: String| Error::new(Kind::Internal, e);
    match dialect {
        Dialect::Plain => Ok(uri.into_bytes()),
        Dialect::Json => {
            let version = speaks.version.min(2);
            let reply = serde_json::json!({ "version": version, "address": uri, "protocol": speaks.protocol });
            serde_json::to_vec(&reply).map_err(|e| internal(e.to_string()))
        }
        Dialect::Protobuf => {
            let version = i32::try_from(speaks.version).unwrap_or(i32::MAX);
            let result = BootstrapResult { version, address: uri, protocol: speaks.protocol, ..Default::default() };
            result.write_to_bytes().map_err(|e| internal(e.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;

    fn flags() -> Flags {
        Flags { id: "abc".into(), namespace: "k8s.io".into(), address: "/c.sock".into(), ..Default::default() }
    }

    fn params() -> BootstrapParams {
        let any = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![8, 1], ..Default::default() };
        BootstrapParams {
            instance_id: "abc".into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "unix:///t".into(),
            extensions: vec![Extension { value: Some(any).into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn options() -> Vec<u8> {
        params().extensions[0].value.write_to_bytes().unwrap()
    }

    #[test]
    fn each_daemon_is_known_by_what_it_says() {
        let none = |_: &str| None;
        let newer = |name: &str| (name == "MAX_SHIM_VERSION").then(|| "2".to_owned());
        for (input, options_there) in [(Vec::new(), 0), (options(), 1)] {
            let call = Call::read(&flags(), none, &input).unwrap();
            assert_eq!((call.dialect, call.options.len()), (Dialect::Plain, options_there));
            assert_eq!(call.containerd, "/c.sock");
            assert_eq!(Call::read(&flags(), newer, &input).unwrap().dialect, Dialect::Json);
        }
        let call = Call::read(&flags(), newer, &params().write_to_bytes().unwrap()).unwrap();
        assert_eq!((call.dialect, call.options.len()), (Dialect::Protobuf, 1));
        assert_eq!((call.events.as_deref(), call.containerd.as_str()), (Some("unix:///t"), "/c.sock"));
    }

    #[test]
    fn parameters_of_another_shim_and_garbage_are_refused() {
        let other = BootstrapParams { instance_id: "other".into(), ..params() };
        for input in [other.write_to_bytes().unwrap(), b"\xff\xff\xff".to_vec()] {
            let error = Call::read(&flags(), |_| None, &input).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }
    }

    #[test]
    fn a_level_beyond_debug_is_debug() {
        for (level, debug) in [(-8, true), (-4, true), (-5, true), (-3, false), (0, false), (8, false)] {
            let log_level = containerd_shim_protos::protobuf::EnumOrUnknown::from_i32(level);
            let params = BootstrapParams { log_level, ..params() };
            let call = Call::read(&flags(), |_| None, &params.write_to_bytes().unwrap()).unwrap();
            assert_eq!(call.debug, debug, "{level}");
        }
    }
}
