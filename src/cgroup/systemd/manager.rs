//! What systemd's manager is asked and tells (org.freedesktop.systemd1(5)), and the bus that may be between. Pure.

use std::borrow::Cow;

use super::message::{Call, Message};
use super::property::Property;
use super::unit::Unit;
use super::wire::Writer;
use crate::error::{Error, Kind, Result};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SCOPE: &str = "org.freedesktop.systemd1.Scope";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// A unit that is in the way is replaced by nothing: a job that is, is.
const MODE: &str = "replace";

fn manager(member: &'static str, signature: &'static str, arguments: impl FnOnce(&mut Writer)) -> Call {
    call(SYSTEMD, MANAGER_PATH, MANAGER, member, signature, arguments)
}

fn call(
    destination: &'static str,
    path: impl Into<Cow<'static, str>>,
    interface: &'static str,
    member: &'static str,
    signature: &'static str,
    arguments: impl FnOnce(&mut Writer),
) -> Call {
    let mut w = Writer::default();
    arguments(&mut w);
    Call { destination, path: path.into(), interface, member, signature, body: w.into_bytes() }
}

/// The first call on a bus, which gives the connection its name there.
pub fn hello() -> Call {
    call(BUS, BUS_PATH, BUS, "Hello", "", |_| {})
}

/// Has the bus pass on what systemd says about the end of jobs of `unit`.
pub fn match_jobs(unit: &str) -> Call {
    let rule = format!(
        "type='signal',sender='{SYSTEMD}',path='{MANAGER_PATH}',interface='{MANAGER}',member='JobRemoved',arg2='{unit}'"
    );
    call(BUS, BUS_PATH, BUS, "AddMatch", "s", |w| w.string(&rule))
}

/// Has systemd send signals to the bus at all.
pub fn subscribe() -> Call {
    manager("Subscribe", "", |_| {})
}

/// Asks for a property of the manager: [`text_of`] the answer.
pub fn get(property: &str) -> Call {
    property_of(MANAGER_PATH, MANAGER, property)
}

fn property_of(object: impl Into<Cow<'static, str>>, interface: &str, property: &str) -> Call {
    call(SYSTEMD, object, "org.freedesktop.DBus.Properties", "Get", "ss", |w| {
        w.string(interface);
        w.string(property);
    })
}

/// Asks for the object that a unit is: [`object_of`] the answer.
pub fn unit(name: &str) -> Call {
    manager("GetUnit", "s", |w| w.string(name))
}

/// Asks for the slice of the scope that is this object: [`text_of`] the answer.
pub fn slice_of(object: String) -> Call {
    property_of(object, SCOPE, "Slice")
}

/// Makes a unit with these properties and starts it: [`object_of`] the answer.
pub fn start(unit: &Unit, properties: &[Property]) -> Call {
    manager("StartTransientUnit", "ssa(sv)a(sa(sv))", |w| {
        w.string(&unit.name);
        w.string(MODE);
        Property::write_all(properties, w);
        w.array(8, |_| {}); // No other units with it.
    })
}

/// Stops a unit: [`object_of`] the answer.
pub fn stop(unit: &str) -> Call {
    manager("StopUnit", "ss", |w| {
        w.string(unit);
        w.string(MODE);
    })
}

/// Has a unit that has failed forgotten.
pub fn reset_failed(unit: &str) -> Call {
    manager("ResetFailedUnit", "s", |w| w.string(unit))
}

/// Changes properties of a unit, until it goes.
pub fn set(unit: &str, properties: &[Property]) -> Call {
    manager("SetUnitProperties", "sba(sv)", |w| {
        w.string(unit);
        w.u32(1);
        Property::write_all(properties, w);
    })
}

/// Moves processes into the cgroup of a unit (since systemd 233).
pub fn attach(unit: &str, pid: u32) -> Call {
    manager("AttachProcessesToUnit", "ssau", |w| {
        w.string(unit);
        w.string(""); // Its own cgroup, and none below.
        w.array(4, |w| w.u32(pid));
    })
}

/// The job that a [`start`] or a [`stop`] has begun, or the object that a [`unit`] is.
///
/// # Errors
/// When it is an answer to something else.
pub fn object_of(answer: &Message) -> Result<String> {
    Ok(answer.body("o")?.string()?.to_owned())
}

/// The value of a property that is a string.
///
/// # Errors
/// When it is none.
pub fn text_of(answer: &Message) -> Result<String> {
    let mut body = answer.body("v")?;
    match body.signature()? {
        "s" => Ok(body.string()?.to_owned()),
        other => {
            Err(Error::new(Kind::Internal, format!("D-Bus: a property of type {other:?}, where a string is expected")))
        }
    }
}

/// The end of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRemoved {
    /// The job, as [`object_of`] has it.
    pub job: String,
    /// The unit's name.
    pub unit: String,
    /// `done`, or how else it ended: `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
    pub result: String,
}

/// What a message tells of the end of a job; `None` for one that is about something else.
///
/// # Errors
/// When it is garbled.
pub fn job_removed(message: &Message) -> Result<Option<JobRemoved>> {
    if !message.is_signal(MANAGER_PATH, MANAGER, "JobRemoved") {
        return Ok(None);
    }
    let mut body = message.body("uoss")?;
    body.u32()?;
    let mut next = || body.string().map(str::to_owned);
    Ok(Some(JobRemoved { job: next()?, unit: next()?, result: next()? }))
}

/// The number of a version as systemd's manager tells it: `252.38-1~deb12u1`, `v247.3-7+deb11u4`.
pub fn version(text: &str) -> Option<u32> {
    let digits = text.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::message::{SIGNAL, tests::message};
    use super::super::property::Value;
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("252.38-1~deb12u1"), Some(252));
        assert_eq!(version("v247.3-7+deb11u4"), Some(247));
        assert_eq!(version("257"), Some(257));
        assert_eq!(version(""), None);
    }

    #[test]
    fn the_end_of_a_job_is_told_by_a_signal() {
        let fields =
            [(1, "o", MANAGER_PATH), (2, "s", MANAGER), (3, "s", "JobRemoved"), (8, "g", "uoss"), (7, "s", ":1.2")];
        let mut w = Writer::default();
        w.u32(9);
        ["/job/9", "x.scope", "done"].iter().for_each(|text| w.string(text));
        let body = w.into_bytes();
        let signal = Message::decode(&message(SIGNAL, &fields, None, &body)).unwrap();
        let told = JobRemoved { job: "/job/9".into(), unit: "x.scope".into(), result: "done".into() };
        assert_eq!(job_removed(&signal).unwrap(), Some(told));
        let other = Message::decode(&message(SIGNAL, &[fields[0], fields[1], (3, "s", "JobNew")], None, &[])).unwrap();
        assert_eq!(job_removed(&other).unwrap(), None);
        for length in 0..body.len() {
            let garbled = Message::decode(&message(SIGNAL, &fields, None, &body[..length])).unwrap();
            assert!(job_removed(&garbled).is_err(), "{length}");
        }
    }

    /// The bytes that sd-bus (busctl of systemd 252) makes of the same call, all types of values among its arguments.
    #[test]
    fn arguments_are_laid_out_as_sd_bus_does() {
        let unit = Unit { name: "x.scope".into(), slice: "a.slice".into() };
        let properties = [
            Property::new("Delegate", Value::Bool(true)),
            Property::new("PIDs", Value::U32s(vec![1, 2])),
            Property::new("After", Value::Texts(vec!["a".into(), "bcd".into()])),
            Property::new("AllowedCPUs", Value::Bytes(vec![3, 0, 255])),
            Property::new(
                "DeviceAllow",
                Value::Pairs(vec![("/dev/null".into(), "rw".into()), ("char-*".into(), "m".into())]),
            ),
            Property::new("IOReadBandwidthMax", Value::Limits(vec![("/dev/sda".into(), 5), ("/x".into(), u64::MAX)])),
            Property::new("Abc", Value::I32(-2)),
            Property::new("Defg", Value::I64(-3)),
            Property::new("DeviceAllow", Value::Pairs(vec![])),
            Property::new("TasksMax", Value::U64(7)),
            Property::new("Slice", Value::Text("a.slice".into())),
            Property::new("Hi", Value::U32(8)),
        ];
        let call = start(&unit, &properties);
        let golden = include_bytes!("start.golden");
        assert_eq!(call.body, golden, "{}", String::from_utf8_lossy(&call.body));
    }
}
