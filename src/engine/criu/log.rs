//! What CRIU's log says about why it has failed: the answer itself is mostly an error number.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::{Os, Result};
use crate::spec::load;

/// As much of a log is read and copied, in bytes, of its end: it has no bound, as CRIU tells all that it does, and is read in
/// the loop that other containers wait for.
const MAX: u64 = 1 << 20;
/// As many of its errors are quoted, the first ones: those after them follow from them.
const LINES: usize = 4;
/// As much of each.
const LENGTH: usize = 300;

/// The log's own `Error` lines, bounded; empty where there are none.
pub(super) fn errors(log: &Path) -> Vec<String> {
    let Ok(end) = end(log) else { return Vec::new() };
    let lines = BufReader::new(end).split(b'\n').map_while(std::result::Result::ok);
    let lines = lines.filter_map(|line| error(&String::from_utf8_lossy(&line)));
    lines.take(LINES).collect()
}

/// Moves a log to `kept`; its end alone where that is on another file system.
///
/// # Errors
/// What the kernel says.
pub(super) fn keep(log: &Path, kept: &Path) -> Result<()> {
    match std::fs::rename(log, kept) {
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {}
        renamed => return renamed.os(|| format!("rename {} to {}", log.display(), kept.display())),
    }
    let mut end = end(log)?;
    let _ = std::fs::remove_file(kept); // Mostly there is none; the open tells what else there is.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = rustix::fs::open(kept, flags, Mode::from(0o600)).os(|| format!("open {}", kept.display()))?;
    std::io::copy(&mut end, &mut File::from(copy)).map(drop).os(|| format!("write {}", kept.display()))
}

/// The end of a log, which is a file in a directory of the caller's.
fn end(log: &Path) -> Result<impl Read> {
    let (mut file, size) = load::open_regular(log, OFlags::NOFOLLOW)?;
    file.seek(SeekFrom::Start(size.saturating_sub(MAX))).os(|| format!("lseek {}", log.display()))?;
    Ok(file.take(MAX))
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
    #[test]
    fn of_a_long_log_the_end_is_read_and_of_a_fifo_nothing() {
        let path = std::env::temp_dir().join(format!("dray-criu-long-{}", std::process::id()));
        let long = "(00.1) pie: much is said\n".repeat(2 * MAX as usize / 20);
        std::fs::write(&path, format!("(00.0) Error (criu/a.c:1): early\n{long}(00.2) Error (criu/b.c:2): late\n"))
            .unwrap();
        let found = errors(&path);
        let kept = Path::new("/dev/shm").join(path.file_name().unwrap());
        std::fs::write(&kept, "of before").unwrap();
        keep(&path, &kept).unwrap();
        let text = std::fs::read_to_string(&kept).unwrap();
        let _ = std::fs::remove_file(&path);
        std::fs::remove_file(&kept).unwrap();
        assert_eq!(found, ["Error (criu/b.c:2): late"]);
        // All of it where both are on one file system.
        assert!(text.ends_with("late\n") && !text.contains("of before"));
        assert!(text.len() as u64 <= MAX || text.contains("early"), "{}", text.len());
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let found = errors(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found, [""; 0]);
    }
}
