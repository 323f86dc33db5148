//! Mutations of JSON documents that know what one is: most come through the parser and fail, if at all, at the rules.

use serde_json::{Map, Value, json};

use super::bytes;
use super::rng::Rng;

/// What is written as it is, in place of a string of this form: what serde_json's own values cannot be.
const RAW: &str = "@raw:";

/// Documents of which pieces are taken, one for the other.
pub struct Seeds {
    documents: Vec<Value>,
    /// Every value of every document by the key under which it is.
    values: Vec<(String, Value)>,
}

impl Seeds {
    pub fn new(documents: Vec<Value>) -> Seeds {
        let mut values = Vec::new();
        documents.iter().for_each(|document| collect(document, &mut values));
        Seeds { documents, values }
    }

    /// A document, changed in one place or a few.
    pub fn mutated(&self, rng: &mut Rng) -> Value {
        let mut document = rng.pick(&self.documents).clone();
        let more = [0, 0, 0, 1, 2, 4];
        for _ in 0..=*rng.pick(&more) {
            let count = count(&document);
            // Nearer to the leaves than to the root, which has few.
            let at = rng.below(count);
            change(rng, &mut document, at, self);
        }
        document
    }
}

/// The text of a document, with its raw pieces.
pub fn text(document: &Value) -> Vec<u8> {
    let text = document.to_string();
    let mark = format!("\"{RAW}");
    let mut pieces = text.split(&mark);
    let mut out = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        // Nothing raw has a ';' but at its end.
        let (raw, rest) = piece.split_once(";\"").unwrap_or((piece, ""));
        out.push_str(&raw.replace("\\\"", "\""));
        out.push_str(rest);
    }
    out.into_bytes()
}

/// The text of a document, and in one case of four no longer one.
pub fn mutated_text(rng: &mut Rng, document: &Value) -> Vec<u8> {
    let text = text(document);
    if rng.one_in(4) { bytes::mutate(rng, &text) } else { text }
}

fn collect(value: &Value, values: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                values.push((key.clone(), value.clone()));
                collect(value, values);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, values)),
        _ => {}
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(count).sum(),
        Value::Array(list) => list.iter().map(count).sum(),
        _ => 0,
    }
}

/// Changes the value that is the `at`th of a walk.
fn change(rng: &mut Rng, value: &mut Value, mut at: usize, seeds: &Seeds) {
    if at == 0 {
        return replace(rng, value, seeds);
    }
    at -= 1;
    match value {
        Value::Object(map) => {
            for child in map.values_mut() {
                let size = count(child);
                if at < size {
                    return change(rng, child, at, seeds);
                }
                at -= size;
            }
        }
        Value::Array(list) => {
            for child in list {
                let size = count(child);
                if at < size {
                    return change(rng, child, at, seeds);
                }
                at -= size;
            }
        }
        _ => {}
    }
}

fn replace(rng: &mut Rng, value: &mut Value, seeds: &Seeds) {
    match value {
        Value::Object(map) if !rng.one_in(4) => change_object(rng, map, seeds),
        Value::Array(list) if !rng.one_in(4) => change_array(rng, list, seeds),
        Value::String(text) if !rng.one_in(3) => *value = string(rng, text),
        Value::Number(_) if !rng.one_in(3) => *value = number(rng),
        Value::Bool(flag) if rng.one_in(2) => *flag = !*flag,
        _ => *value = anything(rng, seeds),
    }
}

fn change_object(rng: &mut Rng, map: &mut Map<String, Value>, seeds: &Seeds) {
    let keys: Vec<String> = map.keys().cloned().collect();
    match rng.below(5) {
        0 | 1 if !keys.is_empty() => drop(map.remove(rng.pick(&keys))),
        // The same key twice.
        2 if !keys.is_empty() => {
            let key = rng.pick(&keys);
            let (first, second) = (map[key].to_string(), if rng.one_in(2) { map[key].clone() } else { number(rng) });
            if !first.contains([';', '\\']) && !second.to_string().contains([';', '\\']) {
                map.insert(key.clone(), json!(format!("{RAW}{first},\"{key}\":{second};")));
            }
        }
        _ => {
            let (key, value) = rng.pick(&seeds.values).clone();
            map.insert(key, if rng.one_in(4) { anything(rng, seeds) } else { value });
        }
    }
}

fn change_array(rng: &mut Rng, list: &mut Vec<Value>, seeds: &Seeds) {
    let at = rng.below(list.len());
    match rng.below(5) {
        0 if !list.is_empty() => drop(list.remove(at)),
        1 if !list.is_empty() => list.push(list[at].clone()),
        2 if !list.is_empty() => {
            let times = if rng.one_in(10) { 3000 } else { rng.below(40) };
            let again = list[at].clone();
            list.extend(std::iter::repeat_n(again, times));
        }
        3 if !list.is_empty() => {
            let other = rng.below(list.len());
            list.swap(at, other);
        }
        _ => list.push(anything(rng, seeds)),
    }
}

fn string(rng: &mut Rng, text: &str) -> Value {
    let whole = [
        "",
        "/",
        ".",
        "..",
        "../..",
        "/..",
        "\0",
        "a\0b",
        "a\nb",
        "-1",
        "0",
        "4294967296",
        "18446744073709551616",
        " ",
        "%s%n",
        "/proc/self/exe",
        "/dev",
        "/proc",
        "/sys",
        "\u{202e}x",
        "r\u{e9}",
        "0-99999999999",
        "0-,1",
        "all",
        "none",
        ":",
        "=",
        "rw,ro",
        "rbind",
    ];
    match rng.below(4) {
        0 => json!(rng.pick(&whole)),
        1 => {
            let longest = if rng.one_in(20) { 19 } else { 13 };
            json!("a".repeat(1 << rng.below(longest)))
        }
        _ => json!(bytes::mutate_text(rng, text).replace(RAW, "")),
    }
}

fn number(rng: &mut Rng) -> Value {
    let raw = [
        "1e999",
        "-1e999",
        "0.1",
        "1e3",
        "-0",
        "18446744073709551616",
        "-9223372036854775809",
        "0e0",
        "00",
        "1.",
        "0x1",
    ];
    match rng.below(6) {
        0 => json!(format!("{RAW}{};", rng.pick(&raw))),
        1 => json!(-(rng.below(3) as i64)),
        2 => json!(rng.pick(&[
            u64::MAX,
            i64::MAX as u64,
            u32::MAX.into(),
            i32::MAX as u64,
            1 << 32,
            1 << 31,
            65536,
            65535
        ])),
        3 => json!(i64::MIN),
        4 => json!(rng.below(3)),
        _ => json!(rng.next() >> rng.below(64)),
    }
}

fn anything(rng: &mut Rng, seeds: &Seeds) -> Value {
    match rng.below(9) {
        0 => Value::Null,
        1 => json!(rng.one_in(2)),
        2 => number(rng),
        3 => string(rng, "text"),
        4 => json!([]),
        5 => json!({}),
        6 => {
            let depth = [10, 120, 130, 20_000][rng.below(4)];
            let (open, close) = if rng.one_in(2) { ("[", "]") } else { ("{\"a\":", "}") };
            json!(format!("{RAW}{}1{};", open.repeat(depth), close.repeat(depth)))
        }
        _ => rng.pick(&seeds.values).1.clone(),
    }
}
