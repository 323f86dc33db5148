//! Where in a JSON document an error is, as the path of the value: `process.capabilities.bounding[2]`.
//!
//! containerd writes `config.json` as one line, so that a parser's "line 1 column 4242" helps nobody. The parser's
//! types do not know their own path; the document does, and is walked again only when there is an error to explain.

/// One level of nesting, as far as the walk has come.
enum Level {
    /// In an object: the key whose value is being read, and whether the next string is a key.
    Object { key: String, expects_key: bool },
    /// In an array: the index of the element being read.
    Array(usize),
}

/// The path of the value at a parser's `line` (from 1) and `column` (in bytes, from 1; 0 is the end of the line
/// before). Empty for the document itself. The text before that place is well-formed, as it has been parsed.
pub(super) fn path_at(json: &[u8], line: usize, column: usize) -> String {
    render(&levels_at(json, line, column))
}

/// The path of the object or array around that value: of what lacks a field, which is noticed at its end.
pub(super) fn path_around(json: &[u8], line: usize, column: usize) -> String {
    let levels = levels_at(json, line, column);
    render(levels.split_last().map_or(&[], |(_, outer)| outer))
}

fn levels_at(json: &[u8], line: usize, column: usize) -> Vec<Level> {
    let starts = std::iter::once(0).chain(json.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1));
    let start = starts.take(line).last().unwrap_or(0);
    // serde_json has read one byte on when it says where: the comma or bracket after the value at fault.
    let end = (start + column.saturating_sub(1)).min(json.len());
    walk(&json[..end])
}

fn walk(json: &[u8]) -> Vec<Level> {
    let mut levels = Vec::new();
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'{' => levels.push(Level::Object { key: String::new(), expects_key: true }),
            b'[' => levels.push(Level::Array(0)),
            b'}' | b']' => {
                levels.pop();
            }
            b',' => match levels.last_mut() {
                Some(Level::Object { expects_key, .. }) => *expects_key = true,
                Some(Level::Array(index)) => *index += 1,
                None => {}
            },
            b'"' => {
                let text = &json[at + 1..];
                let length = string_length(text);
                if let Some(Level::Object { key, expects_key: expects_key @ true }) = levels.last_mut() {
                    *key = String::from_utf8_lossy(&text[..length]).into_owned();
                    *expects_key = false;
                }
                at += length + 1;
            }
            _ => {}
        }
        at += 1;
    }
    levels
}

/// The length of a string's text up to its closing quote, or to the end where the place is within it.
fn string_length(text: &[u8]) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

fn render(levels: &[Level]) -> String {
    let mut path = String::new();
    for level in levels {
        match level {
            Level::Object { key, .. } if key.is_empty() => {}
            Level::Object { key, .. } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Level::Array(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path of the place marked by `^`, which is not part of the document.
    fn path_of_mark(marked: &str) -> String {
        let before = &marked[..marked.find('^').unwrap()];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1);
        path_at(marked.replace('^', "").as_bytes(), line, column)
    }

    #[test]
    fn names_the_value_at_a_place() {
        let cases = [
            ("{\"ociVersion\": 1^}", "ociVersion"),
            ("{\"a\": {\"b\": [1, 2, {\"c\": tr^ue}]}}", "a.b[2].c"),
            ("{\"a\": {\"b\": 1}, \"d\": [[], [x^", "d[1][0]"),
            ("{\n \"a\": 1,\n \"b\": {\n  \"c\": 5^\n }\n}", "b.c"),
            ("{\"a\": \"x\\\"}],{[\", \"b\": 2^}", "b"),
            ("{\"a\": \"y\\\\\", \"b\": [\"]\", 3^]}", "b[1]"),
            ("[1^", "[0]"),
            ("x^", ""),
        ];
        for (marked, path) in cases {
            assert_eq!(path_of_mark(marked), path, "{marked}");
        }
    }

    #[test]
    fn names_what_is_around_a_value() {
        let json = br#"{"a": [{"b": 1, "c": 2}, {}], "d": 3}"#;
        let end_of = |text: &str| str::from_utf8(json).unwrap().find(text).unwrap() + text.len();
        assert_eq!(path_around(json, 1, end_of("2}")), "a[0]");
        assert_eq!(path_around(json, 1, end_of("{}")), "a[1]");
        assert_eq!(path_around(json, 1, end_of("3}")), "");
        assert_eq!(path_around(json, 1, 0), "");
    }

    #[test]
    fn survives_any_place_in_any_bytes() {
        let junk = b"}}]]\"\\{\"a\":[\"\\";
        for line in 0..4 {
            for column in 0..20 {
                path_at(junk, line, column);
                path_around(junk, line, column);
            }
        }
    }
}
