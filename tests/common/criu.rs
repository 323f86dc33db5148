//! Whether CRIU does anything on this machine.

use std::process::Command;

use super::skipped;

/// As `criu check` says; where it does not, the test `name` is skipped with its reason.
pub fn usable(name: &str) -> bool {
    let why = match Command::new("criu").arg("check").output() {
        Err(e) => format!("criu: {e}"),
        Ok(output) if output.status.success() => return true,
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let mut errors = text.lines().filter(|line| line.starts_with("Error ("));
            format!("criu check: {}", errors.next_back().unwrap_or(text.trim()))
        }
    };
    skipped(name, &why);
    false
}
