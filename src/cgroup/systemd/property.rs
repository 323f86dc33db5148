//! A unit's properties: a name, and a value of one of the types that systemd has. Pure.

use super::wire::Writer;
use crate::error::{Error, Kind, Result};

/// A value, by its D-Bus type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `au`: pids.
    U32s(Vec<u32>),
    /// `ay`: a mask of CPUs or memory nodes.
    Bytes(Vec<u8>),
    /// `a(ss)`: devices and what they allow.
    Pairs(Vec<(String, String)>),
    /// `a(st)`: devices and their limits.
    Limits(Vec<(String, u64)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::U32s(_) => "au",
            Self::Bytes(_) => "ay",
            Self::Pairs(_) => "a(ss)",
            Self::Limits(_) => "a(st)",
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::Bool(value) => w.u32((*value).into()),
            // Two's complement is the wire's too.
            Self::I32(value) => w.u32(*value as u32),
            Self::U32(value) => w.u32(*value),
            Self::I64(value) => w.u64(*value as u64),
            Self::U64(value) => w.u64(*value),
            Self::Text(value) => w.string(value),
            Self::Texts(values) => w.array(4, |w| values.iter().for_each(|value| w.string(value))),
            Self::U32s(values) => w.array(4, |w| values.iter().for_each(|value| w.u32(*value))),
            Self::Bytes(values) => w.array(1, |w| values.iter().for_each(|value| w.byte(*value))),
            Self::Pairs(pairs) => w.array(8, |w| {
                for (left, right) in pairs {
                    w.structure(|w| {
                        w.string(left);
                        w.string(right);
                    });
                }
            }),
            Self::Limits(limits) => w.array(8, |w| {
                for (device, limit) in limits {
                    w.structure(|w| {
                        w.string(device);
                        w.u64(*limit);
                    });
                }
            }),
        }
    }
}

/// A property of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// As org.freedesktop.systemd1(5) has it.
    pub name: String,
    /// What it shall be.
    pub value: Value,
}

impl Property {
    /// One of this name and value.
    pub fn new(name: &str, value: Value) -> Self {
        Self { name: name.to_owned(), value }
    }

    /// `a(sv)`
    pub fn write_all(properties: &[Property], w: &mut Writer) {
        w.array(8, |w| {
            for property in properties {
                w.structure(|w| {
                    w.string(&property.name);
                    w.variant(property.value.signature(), |w| property.value.write(w));
                });
            }
        });
    }
}

/// Annotations that are properties of the container's unit, as with runc (its docs/systemd.md).
const ANNOTATION: &str = "org.systemd.property.";

/// Those that make the unit a container's, and are ours to say.
const OURS: [&str; 5] = ["Slice", "PIDs", "Delegate", "DefaultDependencies", "ControlGroup"];

/// The property that an annotation asks for; `None` for one that is about something else.
///
/// A name that ends in `Sec` is that of a unit file and has seconds; the property's ends in `USec`.
///
/// # Errors
/// `InvalidArgument`, for a name or a value that is none.
pub fn of_annotation(key: &str, value: &str) -> Result<Option<Property>> {
    let Some(name) = key.strip_prefix(ANNOTATION) else { return Ok(None) };
    let wrong = |why: &str| Error::new(Kind::InvalidArgument, format!("annotation {key} {value:?}: {why}"));
    if name.len() < 3 || !name.chars().all(|c| c.is_ascii_alphabetic()) {
        return Err(wrong("not the name of a unit's property"));
    }
    if OURS.contains(&name) {
        return Err(wrong("this property is the container's own"));
    }
    let parsed = text(value.trim()).ok_or_else(|| {
        wrong("not a value of those that are known: true, 1, uint64 1, 'text', ['text', 'text'] in GVariant's text format")
    })?;
    let seconds = name.strip_suffix("Sec").filter(|name| !name.ends_with('U'));
    let Some(stem) = seconds else { return Ok(Some(Property::new(name, parsed))) };
    let seconds = match parsed {
        Value::I32(n) => u64::try_from(n).ok(),
        Value::I64(n) => u64::try_from(n).ok(),
        Value::U32(n) => Some(n.into()),
        Value::U64(n) => Some(n),
        _ => None,
    };
    let micros = seconds.and_then(|n| n.checked_mul(1_000_000)).ok_or_else(|| wrong("not a number of seconds"))?;
    Ok(Some(Property::new(&format!("{stem}USec"), Value::U64(micros))))
}

/// GVariant's text format ("GVariant Text Format" in GLib's manual), of the types that properties mostly have.
fn text(value: &str) -> Option<Value> {
    match value {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        _ => {}
    }
    if let Some(inner) = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
        return strings(inner).map(Value::Texts);
    }
    if value.starts_with(['\'', '"']) {
        let (string, rest) = string(value)?;
        return rest.trim().is_empty().then_some(Value::Text(string));
    }
    let (kind, number) = value.split_once(' ').map_or(("int32", value), |(kind, number)| (kind, number.trim()));
    let (negative, digits) = number.strip_prefix('-').map_or((false, number), |digits| (true, digits));
    let magnitude: i128 = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?.into(),
        None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse::<u64>().ok()?.into(),
        None => return None,
    };
    let number = if negative { -magnitude } else { magnitude };
    Some(match kind {
        "int32" | "@i" => Value::I32(number.try_into().ok()?),
        "uint32" | "@u" => Value::U32(number.try_into().ok()?),
        "int64" | "@x" => Value::I64(number.try_into().ok()?),
        "uint64" | "@t" => Value::U64(number.try_into().ok()?),
        _ => return None,
    })
}

fn strings(mut rest: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    loop {
        let (string, after) = string(rest.trim_start())?;
        all.push(string);
        match after.trim_start() {
            "" => return Some(all),
            after => rest = after.strip_prefix(',')?,
        }
    }
}

/// A quoted string, and what comes after it. The escapes are those of its own quote and of the backslash.
fn string(value: &str) -> Option<(String, &str)> {
    let mut chars = value.char_indices();
    let (_, quote) = chars.next().filter(|(_, c)| matches!(c, '\'' | '"'))?;
    let mut out = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.push(chars.next().map(|(_, c)| c).filter(|c| matches!(c, '\\' | '\'' | '"'))?),
            '\0' => return None,
            c if c == quote => return Some((out, &value[at + 1..])),
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotation(name: &str, value: &str) -> Result<Property> {
        of_annotation(&format!("org.systemd.property.{name}"), value).map(Option::unwrap)
    }

    #[test]
    fn annotations_are_properties() {
        for (name, given, property, value) in [
            ("TimeoutStopUSec", "uint64 123456789", "TimeoutStopUSec", Value::U64(123_456_789)),
            ("TimeoutStopSec", "7", "TimeoutStopUSec", Value::U64(7_000_000)),
            ("TimeoutStopSec", "uint64 7", "TimeoutStopUSec", Value::U64(7_000_000)),
            ("CollectMode", "'inactive-or-failed'", "CollectMode", Value::Text("inactive-or-failed".into())),
            (
                "After",
                r#"["a.service", 'b.service']"#,
                "After",
                Value::Texts(vec!["a.service".into(), "b.service".into()]),
            ),
            ("IOAccounting", "false", "IOAccounting", Value::Bool(false)),
            ("Abc", "-0x10", "Abc", Value::I32(-16)),
            ("Abc", "@x -1", "Abc", Value::I64(-1)),
            ("Abc", "uint32 4294967295", "Abc", Value::U32(u32::MAX)),
            ("Description", r"'it\'s'", "Description", Value::Text("it's".into())),
        ] {
            assert_eq!(annotation(name, given).unwrap(), Property::new(property, value), "{name} {given}");
        }
        assert_eq!(of_annotation("io.kubernetes.cri.sandbox-id", "abc").unwrap(), None);
    }

    #[test]
    fn annotations_that_are_no_properties_are_refused() {
        for (name, value) in [
            ("", "1"),
            ("Ab", "1"),
            ("Timeout.Sec", "1"),
            ("Abc", ""),
            ("Abc", "text"),
            ("Abc", "'open"),
            ("Abc", "'a' 'b'"),
            ("Abc", "[]"),
            ("Abc", "['a' 'b']"),
            ("Abc", "['a', 1]"),
            ("Abc", "1.5"),
            ("Abc", "+1"),
            ("Abc", "4294967296"),
            ("Abc", "uint32 -1"),
            ("Abc", "byte 1"),
            ("Abc", "'\0'"),
            ("TimeoutStopSec", "-1"),
            ("TimeoutStopSec", "'1'"),
            ("TimeoutStopSec", "uint64 18446744073709551615"),
            ("PIDs", "1"),
            ("Slice", "'x.slice'"),
        ] {
            let error = annotation(name, value).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{name} {value}");
            assert!(error.to_string().contains(&format!("org.systemd.property.{name}")), "{error}");
        }
    }
}
