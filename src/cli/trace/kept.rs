//! The trace of a container of the command line's: a file beside its state.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::engine::state::StateDir;
use crate::engine::trace::{KEPT, Operation, Operations};
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

/// Adds to it; the oldest are forgotten. Two that add at once may lose each other's.
///
/// # Errors
/// When it cannot be written, as where the container is gone.
pub fn add(state: &StateDir, more: Vec<Operation>) -> Result<()> {
    let mut operations = load(state).unwrap_or_default();
    operations.extend(more);
    operations.drain(..operations.len().saturating_sub(KEPT));
    let new = state.path().join(format!(".{FILE}.{}", std::process::id()));
    let file = File::options().write(true).create_new(true).mode(0o600).open(&new);
    let written = file.and_then(|mut file| file.write_all(&Operations { operations }.to_json()));
    let replaced = written.and_then(|()| std::fs::rename(&new, state.path().join(FILE)));
    replaced.os(|| format!("write {}", new.display())).inspect_err(|_| drop(std::fs::remove_file(&new)))
}
