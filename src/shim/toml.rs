//! The bit of TOML that a table of runtime options is: one `key = value` a line, with a word, a number or a string.
//!
//! Not by the `toml` crate, by which `dray install` reads containerd's configuration: its pages would be in the memory of every
//! shim, for a dozen keys. What this does not know (tables, arrays, dates, strings of several lines) no option has, and is an
//! error.

use std::collections::BTreeSet;

use crate::error::{Context, Error, Kind, Result};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `true`, `false`
    Boolean(bool),
    /// `-1`, `1_000`
    Integer(i64),
    /// `"a\tb"`, `'a\b'`
    String(String),
}

/// The lines' keys and values, in their order.
///
/// # Errors
/// `InvalidArgument`, with the number of the line.
pub fn parse(text: &str) -> Result<Vec<(String, Value)>> {
    let mut pairs: Vec<(String, Value)> = Vec::new();
    let mut keys = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = pair(line).context(|| format!("TOML, line {}", index + 1))?;
        if !keys.insert(key.clone()) {
            return Err(wrong(&format!("{key} is there twice"))).context(|| format!("TOML, line {}", index + 1));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

fn wrong(why: &str) -> Error {
    Error::new(Kind::InvalidArgument, why.to_owned())
}

fn pair(line: &str) -> Result<(String, Value)> {
    let (key, value) = line.split_once('=').ok_or_else(|| wrong(&format!("not a key and a value: {line:?}")))?;
    let key = key.trim();
    let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if bare.is_empty() || !bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        return Err(wrong(&format!("not a plain key: {key:?}")));
    }
    let (value, rest) = value_at(value.trim_start())?;
    match rest.trim_start() {
        rest if rest.is_empty() || rest.starts_with('#') => Ok((bare.to_owned(), value)),
        rest => Err(wrong(&format!("{bare}: not understood: {rest:?}"))),
    }
}

/// The value with which `text` begins, and what comes after it.
fn value_at(text: &str) -> Result<(Value, &str)> {
    if let Some(text) = text.strip_prefix('"') {
        return basic_string(text);
    }
    if let Some(text) = text.strip_prefix('\'') {
        let (string, rest) = text.split_once('\'').ok_or_else(|| wrong("a string without an end"))?;
        return Ok((Value::String(string.to_owned()), rest));
    }
    let end = text.find(|c: char| c.is_whitespace() || c == '#').unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let value = match word {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        number => {
            let not = |_| wrong(&format!("not a value that an option has: {number:?}"));
            Value::Integer(number.replace('_', "").parse().map_err(not)?)
        }
    };
    Ok((value, rest))
}

fn basic_string(text: &str) -> Result<(Value, &str)> {
    let mut string = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((Value::String(string), &text[at + 1..])),
            '\\' => string.push(match characters.next() {
                Some((_, escaped @ ('"' | '\\'))) => escaped,
                Some((_, 't')) => '\t',
                Some((_, 'n')) => '\n',
                _ => return Err(wrong("a string with an escape that is not known")),
            }),
            other => string.push(other),
        }
    }
    Err(wrong("a string without an end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_writes_is_read() {
        let text = "# options\nBinaryName = \"\"\n  IoGid = 1_000 # group\nRoot = '/a\\b'\r\nNoPivotRoot=true\n\n\"Path\" = \"a#\\\"b\"";
        let string = |text: &str| Value::String(text.to_owned());
        let wanted = [
            ("BinaryName", string("")),
            ("IoGid", Value::Integer(1000)),
            ("Root", string("/a\\b")),
            ("NoPivotRoot", Value::Boolean(true)),
            ("Path", string("a#\"b")),
        ];
        assert_eq!(parse(text).unwrap(), wanted.map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(parse("").unwrap(), []);
    }

    /// A file of options may have a MiB, and all containers of the shim wait for its parse.
    #[test]
    fn many_lines_take_no_longer_than_they_have_to() {
        let text: String = (0..100_000).map(|n| format!("k{n}=1\n")).collect();
        let began = std::time::Instant::now();
        assert_eq!(parse(&text).unwrap().len(), 100_000);
        // Some hundred ms; minutes, were each compared with all before it.
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn all_else_is_an_error_with_its_line() {
        for bad in [
            "[table]",
            "a",
            "a = ",
            "a = [1]",
            "a = 1 2",
            "a = \"x",
            "a = 'x",
            "a = \"\"\"x\"\"\"",
            "a = \"\\u0041\"",
            "a.b = 1",
            "a = 1.5",
            "b = 1\nb = 2",
        ] {
            let error = parse(&format!("\n{bad}")).expect_err(bad);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            let line = 1 + bad.lines().count();
            assert!(error.to_string().starts_with(&format!("TOML, line {line}: ")), "{bad}: {error}");
        }
    }
}
