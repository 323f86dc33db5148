//! Where an error goes: to stderr as `dray: …`, and to `--log` in runc's format, which is logrus'.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::global::{Global, LogFormat};
use crate::error::{Error, Kind, Os, Result};
use crate::shim::logrus;

/// What the log facade writes to.
struct Logger {
    file: Option<(File, LogFormat)>,
}

/// Opens `--log`. Warnings go there, or to stderr.
///
/// # Errors
/// That it cannot be opened.
pub fn set_up(global: &Global) -> Result<()> {
    let open = |path: &std::path::PathBuf| {
        let file = File::options().append(true).create(true).mode(0o644).custom_flags(libc::O_CLOEXEC).open(path);
        file.os(|| format!("--log: open {}", path.display())).map(|file| (file, global.log_format))
    };
    let file = global.log.as_ref().map(open).transpose()?;
    log::set_boxed_logger(Box::new(Logger { file })).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    log::set_max_level(if global.debug { LevelFilter::Debug } else { LevelFilter::Warn });
    Ok(())
}

/// Tells of a failure; returns `status`.
pub fn fail(error: &Error, status: u8) -> ExitCode {
    log::error!("{error}");
    if log::max_level() == LevelFilter::Off {
        let _ = writeln!(std::io::stderr(), "{}: {error}", super::NAME);
    }
    ExitCode::from(status)
}

/// What clap says of arguments that cannot be, or for `--help` and `--version`.
pub fn usage(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    let _ = match error.use_stderr() {
        true => write!(std::io::stderr(), "{}: {}", super::NAME, text.strip_prefix("error: ").unwrap_or(&text)),
        false => write!(std::io::stdout(), "{text}"),
    };
    ExitCode::from(u8::from(error.use_stderr()))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level();
        let text = record.args().to_string();
        let shown = printable(&text);
        // Errors go to both, all else to one, as with runc.
        let _ = match (level, &self.file) {
            (Level::Error, _) => writeln!(std::io::stderr(), "{}: {shown}", super::NAME),
            (_, None) => writeln!(std::io::stderr(), "{}: {}: {shown}", super::NAME, logrus::name(level)),
            _ => Ok(()),
        };
        if let Some((file, format)) = &self.file {
            let _ = (&*file).write_all(line(*format, level, &text).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// What a program of a container may have had a part in does not steer the operator's terminal.
fn printable(text: &str) -> String {
    let show = |c: char| match c.is_control() && c != '\n' && c != '\t' {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(show).collect()
}

/// One line, written at once: others may append to the same file.
fn line(format: LogFormat, level: Level, text: &str) -> String {
    let now = SystemTime::now();
    match format {
        LogFormat::Text => logrus::line(now, level, text, "", usize::MAX),
        LogFormat::Json => {
            let time = logrus::Rfc3339(now).to_string();
            format!("{}\n", serde_json::json!({"level": logrus::name(level), "msg": text, "time": time}))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_steered() {
        assert_eq!(printable("a\tb\nc \u{1b}[2Jd\u{9b}e é"), "a\tb\nc \\u{1b}[2Jd\\u{9b}e é");
    }

    #[test]
    fn lines_are_logrus() {
        let text = line(LogFormat::Text, Level::Error, "container \"a\": gone\n");
        assert!(
            text.starts_with("time=\"20") && text.ends_with(" level=error msg=\"container \\\"a\\\": gone\\n\"\n"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, Level::Error, "gone")).unwrap();
        assert_eq!((json["level"].as_str(), json["msg"].as_str()), (Some("error"), Some("gone")));
    }
}
