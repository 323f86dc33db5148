//! Docker's daemon.json: the entry of a runtime, put in and taken out as text. What else is there keeps its order and its
//! layout; taking out gives back the file byte by byte.

use serde_json::{Value, json};

use super::{Edit, HANDLER, RUNTIME};
use crate::error::{Error, Kind, Result};

const RUNTIMES: &str = "runtimes";

/// The entry itself, `depth` objects deep.
fn entry(depth: usize) -> String {
    let outer = "  ".repeat(depth);
    format!("\n{outer}\"{HANDLER}\": {{\n{outer}  \"runtimeType\": \"{RUNTIME}\"\n{outer}}}")
}

/// The member `runtimes` of the whole.
fn runtimes() -> String {
    format!("\n  \"{RUNTIMES}\": {{{}\n  }}", entry(2))
}

/// A file that was not there before. No empty object becomes this one by an entry: it would be taken for one that was made.
pub fn made() -> String {
    format!("{{ \"{RUNTIMES}\": {{ \"{HANDLER}\": {{ \"runtimeType\": \"{RUNTIME}\" }} }} }}\n")
}

fn parse(text: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(text).map_err(|e| invalid(format!("not JSON: {e}")))?;
    match value.get(RUNTIMES) {
        _ if !value.is_object() => Err(invalid("not a JSON object")),
        None | Some(Value::Object(_)) => Ok(value),
        Some(_) => Err(invalid(format!("its {RUNTIMES:?} are no object"))),
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, why)
}

/// Whether `text` has our entry, by whoever it was written.
pub fn has_entry(text: &str) -> Result<bool> {
    parse(text).map(|value| value[RUNTIMES][HANDLER]["runtimeType"] == RUNTIME)
}

/// The file with the entry. An empty one is none, as to Docker.
///
/// # Errors
/// `InvalidArgument` where the text is not JSON or no configuration.
pub fn with_entry(text: Option<&str>) -> Result<Edit> {
    let Some(text) = text else { return Ok(Edit::Write(made())) };
    let value = parse(text)?;
    if has_entry(text)? {
        return Ok(Edit::Nothing);
    }
    if value[RUNTIMES].get(HANDLER).is_some() {
        return Ok(Edit::Leave(format!("its runtime {HANDLER:?} is another one")));
    }
    let root = text.find('{').unwrap_or_default();
    let (open, member, end) = match member(text, root, RUNTIMES) {
        Some(open) => (open, entry(2), "\n  "),
        None => (root, runtimes(), "\n"),
    };
    let (before, after) = text.split_at(open + 1);
    let end = if after.trim_start().starts_with('}') { end } else { "," };
    let new = format!("{before}{member}{end}{after}");
    // What the scan below does not know, the parser does.
    let mut wanted = value;
    wanted[RUNTIMES][HANDLER] = json!({ "runtimeType": RUNTIME });
    match parse(&new) {
        Ok(now) if now == wanted => Ok(Edit::Write(new)),
        _ => Err(invalid("cannot be added to: the entry has to be put there by hand")),
    }
}

/// The file without the entry that [`with_entry`] has put there.
///
/// # Errors
/// `InvalidArgument` where the text is not JSON or no configuration.
pub fn without_entry(text: Option<&str>) -> Result<Edit> {
    let Some(text) = text else { return Ok(Edit::Nothing) };
    if text == made() {
        return Ok(Edit::Remove);
    }
    let value = parse(text)?;
    let Some(ours) = value[RUNTIMES].get(HANDLER) else { return Ok(Edit::Nothing) };
    if *ours != json!({ "runtimeType": RUNTIME }) {
        return Ok(Edit::Leave(format!(
            "its runtime {HANDLER:?} has been changed, or was not put there by `dray install`"
        )));
    }
    let root = text.find('{').unwrap_or_default();
    let whole = [(Some(root), runtimes(), "\n"), (member(text, root, RUNTIMES), entry(2), "\n  ")];
    for (open, member, end) in whole {
        let Some(open) = open else { continue };
        let (before, after) = text.split_at(open + 1);
        let Some(after) = after.strip_prefix(&member) else { continue };
        if let Some(rest) = after.strip_prefix(',').or_else(|| after.strip_prefix(end)) {
            return Ok(Edit::Write(format!("{before}{rest}")));
        }
    }
    Ok(Edit::Leave(format!("its runtime {HANDLER:?} is written in another way than `dray install` does")))
}

/// Where the object that is the value of `name` begins, in the object that begins at `open` of a valid document; the last one,
/// as for every parser, where there are several.
fn member(text: &str, open: usize, name: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut found = None;
    let mut at = skip_space(bytes, open + 1);
    while *bytes.get(at)? == b'"' {
        let end = skip_value(bytes, at);
        let key: String = serde_json::from_str(text.get(at..end)?).ok()?;
        let colon = skip_space(bytes, end);
        let value = skip_space(bytes, colon + 1);
        if key == name {
            found = Some(value);
        }
        let comma = skip_space(bytes, skip_value(bytes, value));
        at = skip_space(bytes, comma + 1);
        if *bytes.get(comma)? != b',' {
            break;
        }
    }
    found
}

fn skip_space(bytes: &[u8], at: usize) -> usize {
    let space = bytes.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_whitespace());
    at + space.count()
}

/// The end of the value that begins at `at`.
fn skip_value(bytes: &[u8], mut at: usize) -> usize {
    let (mut depth, mut in_string) = (0, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 0 => depth -= 1,
            // Of what is around a number or a word.
            b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
        if depth == 0 && !in_string && matches!(byte, b'"' | b'}' | b']') {
            return at;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 11] = [
        "{}",
        "{}\n",
        "{ }\n",
        "{\n}\n",
        "{\"debug\":true}",
        "{\n    \"log-driver\": \"json-file\",\n    \"a\": [1, {\"runtimes\": 5}]\n}\n",
        "{\"runtimes\":{}}",
        "{\"runtimes\" : { } , \"b\" : null}",
        "{\n\t\"a\": \"}\\\"{\", \"runtimes\": {\n\t\t\"kata\": { \"runtimeType\": \"io.containerd.kata.v2\" }\n\t}\n}",
        "{\"x\\u0022\": -1e5, \"runt\\u0069mes\": {\"a\": {\"path\": \"/b\"}}}",
        " \r\n{\"n\":1,\"runtimes\":{\"b\":{\"path\":\"c\"}}}\r\n",
    ];

    #[test]
    fn what_is_put_in_is_there_once_and_comes_out_again() {
        for file in FILES {
            let Edit::Write(new) = with_entry(Some(file)).unwrap() else { panic!("{file}") };
            assert!(has_entry(&new).unwrap() && !has_entry(file).unwrap(), "{new}");
            assert_eq!(with_entry(Some(&new)).unwrap(), Edit::Nothing);
            assert_eq!(without_entry(Some(&new)).unwrap(), Edit::Write(file.to_owned()), "{new}");
            assert_eq!(without_entry(Some(file)).unwrap(), Edit::Nothing);
        }
        let Edit::Write(made) = with_entry(None).unwrap() else { panic!() };
        assert_eq!(without_entry(Some(&made)).unwrap(), Edit::Remove);
    }

    #[test]
    fn an_entry_of_somebody_elses_is_left() {
        let other = "{\"runtimes\":{\"dray\":{\"path\":\"/x\"}}}";
        assert!(matches!(with_entry(Some(other)).unwrap(), Edit::Leave(_)));
        assert!(matches!(without_entry(Some(other)).unwrap(), Edit::Leave(_)));
        let by_hand = format!("{{\"runtimes\":{{\"dray\":{{\"runtimeType\":\"{RUNTIME}\"}}}}}}");
        assert_eq!(with_entry(Some(&by_hand)).unwrap(), Edit::Nothing);
        assert!(matches!(without_entry(Some(&by_hand)).unwrap(), Edit::Leave(_)));
        let options = format!("{{\"runtimes\":{{\"dray\":{{\"runtimeType\":\"{RUNTIME}\",\"options\":{{}}}}}}}}");
        assert!(matches!(without_entry(Some(&options)).unwrap(), Edit::Leave(_)));
    }

    /// Runtimes that an administrator adds behind ours stay.
    #[test]
    fn what_comes_later_is_kept() {
        let Edit::Write(new) = with_entry(Some("{\"a\":1}")).unwrap() else { panic!() };
        let later = new.replace("\n    }\n  }", "\n    },\n    \"kata\": {}\n  }");
        let Edit::Write(rest) = without_entry(Some(&later)).unwrap() else { panic!("{later}") };
        assert_eq!(serde_json::from_str::<Value>(&rest).unwrap(), json!({ "a": 1, "runtimes": { "kata": {} } }));
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for (file, word) in
            [("", "not JSON"), ("{\"a\":1,}", "line 1"), ("[]", "object"), ("{\"runtimes\":[]}", "runtimes")]
        {
            let error = with_entry(Some(file)).expect_err(file);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
