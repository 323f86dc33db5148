//! `-info`: what this runtime is and can do, for containerd 2.0 and later.

use std::io::Write;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::error::{Error, Kind, Os, Result};
use crate::init::seccomp;
use crate::spec::features::features;

use super::{RUNTIME, VERSION, dialect};

/// The type of a features document, which is JSON (containerd: typeurl's registration of the specification's types).
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints the answer to runtime options on stdin, of which there may be none.
pub fn print() -> Result<()> {
    let input = dialect::read_stdin()?;
    let options = if input.is_empty() { None } else { Some(dialect::any(&input)?) };
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion { version: VERSION.to_owned(), ..Default::default() }).into(),
        options: options.into(),
        features: Some(Any {
            type_url: FEATURES.to_owned(),
            value: features(&seccomp::abilities()).to_string().into_bytes(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    std::io::stdout().write_all(&bytes).os(|| "write stdout")
}
