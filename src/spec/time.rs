//! `linux.timeOffsets`: the clocks of a time namespace that a container makes.

use super::namespaces::namespace;
use super::validate::invalid;
use crate::error::Result;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::fmt::Write;

/// The clocks that a time namespace has its own of (time_namespaces(7)).
const CLOCKS: [&str; 2] = ["monotonic", "boottime"];

const NANOSECONDS: u32 = 1_000_000_000;

/// What is to be written to /proc/PID/timens_offsets, which may be nothing; `None` where no time namespace is made.
///
/// # Errors
/// `InvalidArgument` for offsets that no namespace of the container's own takes, and for unknown clocks.
pub fn offsets(spec: &Spec) -> Result<Option<String>> {
    let asked = spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref()).filter(|all| !all.is_empty());
    let own = namespace(spec, LinuxNamespaceType::Time);
    let Some(asked) = asked else {
        return Ok(own.filter(|namespace| namespace.path.is_none()).map(|_| String::new()));
    };
    match own {
        None => return Err(invalid("linux.timeOffsets needs a time namespace in linux.namespaces")),
        Some(own) if own.path.is_some() => {
            return Err(invalid("linux.timeOffsets: the time namespace is one that is joined, and has its own"));
        }
        Some(_) => {}
    }
    if let Some(clock) = asked.keys().find(|clock| !CLOCKS.contains(&clock.as_str())) {
        return Err(invalid(format!("linux.timeOffsets: {clock:?} is not one of {CLOCKS:?}")));
    }
    let mut text = String::new();
    for clock in CLOCKS {
        let Some(offset) = asked.get(clock) else { continue };
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanoseconds >= NANOSECONDS {
            return Err(invalid(format!("linux.timeOffsets.{clock}.nanosecs is a second or more: {nanoseconds}")));
        }
        let _ = writeln!(text, "{clock} {seconds} {nanoseconds}");
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn judge(namespaces: Value, clocks: Value) -> Result<Option<String>> {
        let linux = json!({ "namespaces": namespaces, "timeOffsets": clocks });
        offsets(&serde_json::from_value(json!({ "ociVersion": "1.1.0", "linux": linux })).unwrap())
    }

    #[test]
    fn offsets_are_those_of_a_new_namespace() {
        let new = json!([{ "type": "time" }]);
        let joined = json!([{ "type": "time", "path": "/proc/1/ns/time" }]);
        assert_eq!(judge(json!([]), Value::Null).unwrap(), None);
        assert_eq!(judge(joined.clone(), json!({})).unwrap(), None);
        assert_eq!(judge(new.clone(), json!({})).unwrap().as_deref(), Some(""));
        let both = json!({ "boottime": { "nanosecs": 999_999_999 }, "monotonic": { "secs": -5 } });
        let text = "monotonic -5 0\nboottime 0 999999999\n";
        assert_eq!(judge(new.clone(), both.clone()).unwrap().as_deref(), Some(text));
        for (namespaces, clocks, words) in [
            (json!([]), both.clone(), "needs a time namespace"),
            (joined, both, "is one that is joined"),
            (new.clone(), json!({ "realtime": {} }), "\"realtime\" is not one of"),
            (new, json!({ "boottime": { "nanosecs": 1_000_000_000 } }), "linux.timeOffsets.boottime.nanosecs"),
        ] {
            let error = judge(namespaces, clocks).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
