//! The trace of a container of the command line's: a file beside its state.

use crate::engine::state::StateDir;
use crate::engine::trace::{Operation, Operations};
use crate::error::{Os, Result};

/// The file's name.
const FILE: &str = "trace.json";

/// What is there.
///
/// # Errors
/// When it cannot be read; one that is not there is empty.
pub fn load(state: &StateDir) -> Result<Vec<Operation>> {
    let path = state.path().join(FILE);
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Operations::from_json(&text.os(|| format!("read {}", path.display()))?)
            .map(|all| all.operations)
            .map_err(|e| e.context(path.display().to_string())),
    }
}
