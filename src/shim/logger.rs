//! The shim's log: logrus text lines into the bundle's `log` fifo, which containerd copies into its own log.
//!
//! A log line is never worth a wait: what does not fit is lost. The fifo is opened for both directions, so that neither
//! the open nor a write depends on a reader: what is logged while containerd restarts is in the fifo when it is back.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::pipe::PIPE_BUF;

use super::logrus;

/// Writes to a fifo, or nowhere.
pub struct Logger {
    fifo: Option<OwnedFd>,
    /// The shim's id, on each line; containerd's log has those of every shim.
    id: String,
    level: LevelFilter,
}

impl Logger {
    /// A logger into the fifo at `path`. Without it (the file is absent, or of another type) lines go nowhere.
    pub fn open(path: &Path, id: &str, debug: bool) -> Self {
        let level = if debug { LevelFilter::Debug } else { LevelFilter::Info };
        Self { fifo: open_fifo(path), id: id.to_owned(), level }
    }

    /// A logger to stderr: of an action, whose stderr containerd puts into its own log (`delete`: "cleanup warnings").
    pub fn stderr(id: &str) -> Self {
        let stderr = rustix::stdio::stderr().try_clone_to_owned().ok();
        Self { fifo: stderr, id: id.to_owned(), level: LevelFilter::Warn }
    }

    /// Makes it the process's logger. The first call wins; returns whether this was it.
    pub fn install(self) -> bool {
        let level = self.level;
        let first = log::set_boxed_logger(Box::new(self)).is_ok();
        if first {
            log::set_max_level(level);
        }
        first
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record) {
        let Some(fifo) = self.fifo.as_ref().filter(|_| self.enabled(record.metadata())) else { return };
        let line = logrus::line(SystemTime::now(), record.level(), &record.args().to_string(), &self.id, PIPE_BUF);
        // One write of at most PIPE_BUF bytes is not mixed with other shims' lines, and is made whole or (EAGAIN, a full
        // fifo) not at all. There is nobody to tell of a failure.
        let _ = rustix::io::write(fifo, line.as_bytes());
    }

    fn flush(&self) {}
}

fn open_fifo(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Fifo).then_some(fd)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::Level;

    use super::logrus::{CUT, Rfc3339};
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;

    use super::*;

    fn line(at: SystemTime, level: Level, message: &str, id: &str) -> String {
        logrus::line(at, level, message, id, PIPE_BUF)
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn fifo(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("dray-log-{name}-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    fn log(logger: &Logger, level: Level, message: &str) {
        logger.log(&Record::builder().level(level).args(format_args!("{message}")).build());
    }

    /// What is in the fifo now.
    fn read(mut fifo: &File) -> String {
        let mut buffer = vec![0; 1 << 17];
        let n = fifo.read(&mut buffer).unwrap_or(0);
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn dates() {
        // Of date(1): `date -u -d DATE +%s`.
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(Rfc3339(at(seconds)).to_string(), date);
        }
        assert!(Rfc3339(at(1) + Duration::from_nanos(7)).to_string().ends_with(":01.000000007Z"));
    }

    #[test]
    fn lines_are_logrus_text() {
        let time = "time=\"1970-01-01T00:00:00.000000000Z\"";
        assert_eq!(line(at(0), Level::Info, "started", "a"), format!("{time} level=info msg=started id=a\n"));
        assert_eq!(line(at(0), Level::Warn, "a b", ""), format!("{time} level=warning msg=\"a b\"\n"));
        // logrus's text for the same in Go.
        let hostile = "x\" level=fatal\nmsg=\\\u{1b}[0m\u{e9}\u{202e}\t";
        let expected = r#"msg="x\" level=fatal\nmsg=\\\x1b[0mé\u202e\t" id="a=b""#;
        assert_eq!(line(at(0), Level::Error, hostile, "a=b"), format!("{time} level=error {expected}\n"));
    }

    #[test]
    fn a_long_line_is_cut_at_pipe_buf() {
        for message in ["x".repeat(9000), "\u{e9}\n\"".repeat(3000), "y ".repeat(2500)] {
            let line = line(at(0), Level::Info, &message, "id");
            assert!(line.len() <= PIPE_BUF && line.len() > PIPE_BUF - 16, "{}", line.len());
            assert!(line.ends_with("...\" id=id\n"), "{}", &line[4000..]);
            assert!(!line.contains("\\...") || line.contains("\\\\..."), "cut within an escape");
        }
        // The longest that fits is not cut, and one byte more is.
        let room = PIPE_BUF - line(at(0), Level::Info, " ", "id").len();
        assert!(!line(at(0), Level::Info, &" ".repeat(room + 1), "id").contains(CUT));
        assert!(line(at(0), Level::Info, &" ".repeat(room + 2), "id").contains(CUT));
    }

    #[test]
    fn lines_wait_for_a_reader_and_a_full_fifo_stops_nobody() {
        let path = fifo("full");
        let logger = Logger::open(&path, "id", false);
        log(&logger, Level::Info, "nobody reads yet");
        // Far more than the fifo takes: a blocking write would never return.
        for _ in 0..10_000 {
            log(&logger, Level::Info, "and nobody comes");
        }
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let text = read(&reader);
        assert!(text.lines().next().unwrap().contains("nobody reads yet"));
        assert!(text.ends_with("id=id\n"), "only whole lines");
        drop(reader);
        log(&logger, Level::Info, "the reader has left");
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        assert!(read(&reader).contains("the reader has left"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn debug_lines_only_when_asked_for() {
        let path = fifo("debug");
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        log(&Logger::open(&path, "", false), Level::Debug, "no");
        log(&Logger::open(&path, "", true), Level::Debug, "yes");
        let text = read(&reader);
        assert!(text.contains("level=debug msg=yes") && !text.contains("msg=no"), "{text}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_not_a_fifo_is_not_written() {
        let path = std::env::temp_dir().join(format!("dray-log-file-{}", std::process::id()));
        log(&Logger::open(&path, "", false), Level::Info, "absent");
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        log(&Logger::open(&path, "", false), Level::Info, "a file");
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        std::fs::remove_file(&path).unwrap();
    }
}
