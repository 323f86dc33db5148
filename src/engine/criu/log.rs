//! What CRIU's log says about why it has failed: the answer itself is mostly an error number.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// As much of a log is read.
const MAX: u64 = 16 << 20;
/// As many of its errors are quoted, the first ones: those after them follow from them.
const LINES: usize = 4;
/// As much of each.
const LENGTH: usize = 300;

/// The log's own `Error` lines, bounded; empty where there are none.
pub(super) fn errors(log: &Path) -> Vec<String> {
    let Ok(file) = std::fs::File::open(log) else { return Vec::new() };
    let lines = BufReader::new(file.take(MAX)).split(b'\n').map_while(Result::ok);
    let lines = lines.filter_map(|line| error(&String::from_utf8_lossy(&line)));
    lines.take(LINES).collect()
}

/// `(00.012345) Error (criu/mount.c:1049): mnt: ...`, without the time.
fn error(line: &str) -> Option<String> {
    let at = line.find("Error (")?;
    let text: String = line[at..].chars().filter(|c| !c.is_control()).take(LENGTH).collect();
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_errors_are_quoted_and_no_more() {
        let path = std::env::temp_dir().join(format!("dray-criu-log-{}", std::process::id()));
        let mut text = String::from("(00.1) Warn  (criu/a.c:1): no\n(00.2)   1: Error (criu/b.c:2): first\u{7}\n");
        text += &format!("(00.3) Error (criu/c.c:3): {}\n", "x".repeat(1000));
        text += &"(00.4) Error (criu/d.c:4): more\n".repeat(1000);
        std::fs::write(&path, &text).unwrap();
        let errors = errors(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(errors.len(), LINES);
        assert_eq!(errors[0], "Error (criu/b.c:2): first");
        assert_eq!(errors[1].len(), LENGTH);
        assert!(super::errors(&path).is_empty());
    }
}
