//! stdout: documents and tables in the forms in which Go's encoders and runc write them.

use std::io::Write;

use clap::ValueEnum;
use serde::Serialize;

use crate::error::{Error, Kind, Os, Result};

/// runc's `--format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a terminal.
    #[default]
    Table,
    /// For a program.
    Json,
}

/// The narrowest column, and what is between two.
const COLUMN: (usize, usize) = (12, 3);

/// Writes `text` as it is.
///
/// # Errors
/// The system's.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).os(|| "write stdout")
}

/// A document on one line, with its end.
///
/// # Errors
/// `Internal` for what JSON cannot say.
pub fn line(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document).map(|text| text + "\n").map_err(not_json)
}

/// A document over several lines, without the end of the last.
///
/// # Errors
/// `Internal` for what JSON cannot say.
pub fn pretty(document: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(document).map_err(not_json)
}

fn not_json(error: serde_json::Error) -> Error {
    Error::new(Kind::Internal, error.to_string())
}

/// A table as Go's text/tabwriter aligns runc's: all but the last column are filled up.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(|column| (widest(column) + COLUMN.1).max(COLUMN.0)).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row[..N - 1].iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(&row[N - 1]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_as_runcs() {
        let row = |a: &str, b: &str, c: &str| [a.to_owned(), b.to_owned(), c.to_owned()];
        let rows = [row("ID", "BUNDLE", "OWNER"), row("rc1", "/tmp/verbs/b", "root")];
        let wanted = "ID          BUNDLE         OWNER\nrc1         /tmp/verbs/b   root\n";
        assert_eq!(table(&rows), wanted);
    }
}
