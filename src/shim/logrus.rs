//! The log's lines, as the daemons and runc write them: those of Go's logrus.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use log::Level;

/// Ends a line that had to be cut.
pub const CUT: &str = "...";

/// The name of a level.
pub fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// A line as logrus's text formatter makes it, of at most `most` bytes.
pub fn line(at: SystemTime, level: Level, message: &str, id: &str, most: usize) -> String {
    let level = name(level);
    let mut line = String::with_capacity(128 + message.len());
    let _ = write!(line, "time=\"{}\" level={level} msg=", Rfc3339(at));
    let mut end = String::new();
    if !id.is_empty() {
        end.push_str(" id=");
        quote(id, usize::MAX, &mut end);
    }
    end.push('\n');
    quote(message, most.saturating_sub(line.len() + end.len()), &mut line);
    line + &end
}

/// Appends `value` to `line`, in quotes where logrus puts them and escaped as Go's strconv.Quote does, so that no value
/// can end its field or its line. Takes at most `room` bytes: a longer value is cut between two characters.
fn quote(value: &str, room: usize, line: &mut String) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if value.chars().all(plain) && value.len() <= room {
        return line.push_str(value);
    }
    let start = line.len();
    let mut fits = start + 1;
    line.push('"');
    for c in value.chars() {
        escape(c, line);
        let used = line.len() - start;
        if used + CUT.len() < room {
            fits = line.len();
        } else if used >= room {
            line.truncate(fits);
            line.push_str(CUT);
            break;
        }
    }
    line.push('"');
}

/// Appends one character as strconv.Quote writes it.
fn escape(c: char, line: &mut String) {
    let _ = match c {
        '"' | '\\' => write!(line, "\\{c}"),
        '\n' => write!(line, "\\n"),
        '\r' => write!(line, "\\r"),
        '\t' => write!(line, "\\t"),
        ' '..='~' => write!(line, "{c}"),
        '\0'..='\x7f' => write!(line, "\\x{:02x}", u32::from(c)),
        // std's idea of what can be printed stands in for Go's.
        _ if c.escape_debug().len() == 1 => write!(line, "{c}"),
        '\u{80}'..='\u{ffff}' => write!(line, "\\u{:04x}", u32::from(c)),
        _ => write!(line, "\\U{:08x}", u32::from(c)),
    };
}

/// A point in time as RFC 3339 has it, in UTC, with nine digits after the second.
pub struct Rfc3339(pub SystemTime);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
    }
}

/// The date of the day that is `days` after 1970-01-01, in the Gregorian calendar. Years are counted from March, which puts
/// the leap day at the end, in eras of 400 years (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    // 719468 days from 0000-03-01 to 1970-01-01; an era has 146097.
    let (era, day) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on five months have 153 days.
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, date)
}
