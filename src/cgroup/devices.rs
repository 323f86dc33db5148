//! The rules of `linux.resources.devices`, for cgroups of both versions, and of the v1 `devices` controller: to lines for
//! `devices.deny` and `devices.allow`. Pure.
//!
//! The kernel keeps a default (allow or deny all) and a list of exceptions to it. It silently ignores a rule that
//! would punch a hole into an exception with wildcards (`allow c *:* rwm`, then `deny c 1:3 w`), and access would
//! stay open that the specification closes. Hence the rules are first reduced here to the state that they ask for, a
//! hole is an error as in runc, and what is written is that state alone: one line for the default and one for each
//! exception.

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::knobs::Knob;
use crate::error::{Error, Kind, Result};

/// What runc allows in every container, after the specification's own rules so that these cannot take it away
/// (libcontainer/specconv `AllowedDevices`): images and their tools rely on it. The /dev/console of a container is a
/// pty, so `c 5:1`, the host's console, is not here.
const DEFAULT_ALLOW: &[(char, Option<u32>, Option<u32>, &str)] = &[
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"),    // null
    ('c', Some(1), Some(8), "rwm"),    // random
    ('c', Some(1), Some(7), "rwm"),    // full
    ('c', Some(5), Some(0), "rwm"),    // tty
    ('c', Some(1), Some(5), "rwm"),    // zero
    ('c', Some(1), Some(9), "rwm"),    // urandom
    ('c', Some(136), None, "rwm"),     // pts
    ('c', Some(5), Some(2), "rwm"),    // ptmx
    ('c', Some(10), Some(200), "rwm"), // net/tun
];

/// Which devices a rule speaks of. `None` is any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Devices {
    /// `b` or `c`.
    pub(super) kind: char,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl Devices {
    pub(super) fn covers(&self, other: &Devices) -> bool {
        let covers = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.kind == other.kind && covers(self.major, other.major) && covers(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Devices) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }

    /// What is of both, where they overlap.
    fn and(&self, other: &Devices) -> Devices {
        Devices { kind: self.kind, major: self.major.or(other.major), minor: self.minor.or(other.minor) }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        write!(f, "{} {}:{}", self.kind, number(self.major), number(self.minor))
    }
}

/// A set of `r`, `w`, `m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(pub(super) u8);

impl Access {
    pub(super) const READ: Access = Access(1);
    pub(super) const WRITE: Access = Access(2);
    pub(super) const MAKE: Access = Access(4);
    pub(super) const ALL: Access = Access(7);
    const LETTERS: [(u8, char); 3] = [(1, 'r'), (2, 'w'), (4, 'm')];

    pub(super) fn parse(text: &str) -> Option<Access> {
        let bits = text
            .chars()
            .try_fold(0, |bits, c| Self::LETTERS.iter().find(|(_, letter)| *letter == c).map(|(bit, _)| bits | bit))?;
        (bits != 0).then_some(Access(bits))
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::LETTERS.iter().filter(|(bit, _)| self.0 & bit != 0).try_for_each(|(_, letter)| write!(f, "{letter}"))
    }
}

/// One rule: what is said of the access to these devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) allow: bool,
    kinds: &'static [char],
    major: Option<u32>,
    minor: Option<u32>,
    pub(super) access: Access,
}

impl Rule {
    fn parse(rule: &LinuxDeviceCgroup) -> Result<Self> {
        let access = Access::parse(rule.access().as_deref().unwrap_or_default())
            .ok_or_else(|| invalid(format!("rule \"{rule}\": access must be made of r, w and m")))?;
        let (major, minor) = (number(rule, rule.major())?, number(rule, rule.minor())?);
        let kinds: &[char] = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => &['b', 'c'],
            LinuxDeviceType::B => &['b'],
            LinuxDeviceType::C => &['c'],
            LinuxDeviceType::U | LinuxDeviceType::P => {
                return Err(invalid(format!("rule \"{rule}\": the type must be a, b or c")));
            }
        };
        Ok(Self { allow: rule.allow(), kinds, major, minor, access })
    }

    /// The devices that it speaks of, by their kind.
    pub(super) fn devices(&self) -> impl Iterator<Item = Devices> {
        self.kinds.iter().map(|&kind| Devices { kind, major: self.major, minor: self.minor })
    }

    /// Whether nothing that was said before it counts any more.
    fn is_of_all(&self) -> bool {
        (self.kinds.len(), self.major, self.minor, self.access) == (2, None, None, Access::ALL)
    }
}

/// The rules of a container in their order, the last word last: the specification's, and those that every container has.
/// What none of them speaks of is denied.
pub(super) fn in_order(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let default = DEFAULT_ALLOW.iter().map(|&(kind, major, minor, access)| {
        let access = Access::parse(access).unwrap_or(Access::ALL);
        Ok(Rule { allow: true, kinds: if kind == 'b' { &['b'] } else { &['c'] }, major, minor, access })
    });
    rules.iter().map(Rule::parse).chain(default).collect()
}

/// What the controller shall hold.
struct Target {
    allow: bool,
    exceptions: BTreeMap<Devices, Access>,
}

impl Target {
    fn apply(&mut self, allow: bool, devices: Devices, access: Access) -> Result<()> {
        if allow != self.allow {
            let had = self.exceptions.entry(devices).or_insert(Access(0));
            had.0 |= access.0;
            return Ok(());
        }
        for (exception, had) in &mut self.exceptions {
            if devices.covers(exception) {
                had.0 &= !access.0;
            } else if devices.overlaps(exception) && had.0 & access.0 != 0 {
                return Err(invalid(format!(
                    "{} {devices} {access}: the v1 devices controller cannot make an exception to \"{exception} {had}\"",
                    if allow { "allow" } else { "deny" },
                )));
            }
        }
        self.exceptions.retain(|_, access| access.0 != 0);
        Ok(())
    }

    /// To open a device for reading and writing at once, the kernel wants one exception that allows both. Where one allows
    /// to read and another to write, what is of both gets its own.
    fn read_and_write(&mut self) {
        const BOTH: u8 = Access::READ.0 | Access::WRITE.0;
        let only = |access: Access| self.exceptions.iter().filter(move |(_, had)| had.0 & BOTH == access.0);
        let pairs = only(Access::READ).flat_map(|(read, _)| only(Access::WRITE).map(move |(write, _)| (read, write)));
        let meet: Vec<Devices> = pairs.filter(|(read, write)| read.overlaps(write)).map(|(r, w)| r.and(w)).collect();
        for devices in meet.into_iter().filter(|_| !self.allow) {
            self.exceptions.entry(devices).or_insert(Access(0)).0 |= BOTH;
        }
    }
}

/// The lines to write, in order. Starts from "deny all" as runc does, also without any rule in the specification.
pub(super) fn device_knobs(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Knob>> {
    let mut target = Target { allow: false, exceptions: BTreeMap::new() };
    for rule in in_order(rules)? {
        if rule.is_of_all() {
            target = Target { allow: rule.allow, exceptions: BTreeMap::new() };
            continue;
        }
        // Not as type a: the kernel takes any line that begins with "a" for all of all devices, numbers and access
        // unread. What the specification says is narrower.
        rule.devices().try_for_each(|devices| target.apply(rule.allow, devices, rule.access))?;
    }
    target.read_and_write();
    let (default, other) =
        if target.allow { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
    let mut knobs = vec![Knob::new("devices", default, "a")];
    knobs.extend(target.exceptions.iter().map(|(d, access)| Knob::new("devices", other, format!("{d} {access}"))));
    Ok(knobs)
}

/// A major or minor number; absent or -1 is any.
fn number(rule: &LinuxDeviceCgroup, n: Option<i64>) -> Result<Option<u32>> {
    match n {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| invalid(format!("rule \"{rule}\": no such device number"))),
    }
}

pub(super) fn invalid(what: String) -> Error {
    Error::new(Kind::InvalidArgument, format!("linux.resources.devices: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    fn rule(allow: bool, typ: LinuxDeviceType, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(typ)
            .major(major)
            .minor(minor)
            .access(access)
            .build()
            .unwrap()
    }

    fn lines(rules: &[LinuxDeviceCgroup]) -> Vec<(String, String)> {
        device_knobs(rules).unwrap().into_iter().map(|k| (k.file.into_owned(), k.value)).collect()
    }

    use LinuxDeviceType::{A, B, C, P};

    #[test]
    fn without_rules_all_is_denied_but_the_default_devices() {
        let lines = lines(&[]);
        assert_eq!(lines[0], ("devices.deny".to_owned(), "a".to_owned()));
        assert_eq!(lines.len(), 1 + DEFAULT_ALLOW.len());
        assert!(lines[1..].iter().all(|(file, _)| file == "devices.allow"));
        for expected in ["c *:* m", "b *:* m", "c 1:3 rwm", "c 136:* rwm", "c 5:2 rwm"] {
            assert!(lines.iter().any(|(_, l)| l == expected), "{expected} in {lines:?}");
        }
        assert!(!lines.iter().any(|(_, l)| l.starts_with("c 5:1 ")));
    }

    #[test]
    fn allow_all_makes_the_default_devices_superfluous() {
        let lines = lines(&[rule(false, A, -1, -1, "rwm"), rule(true, A, -1, -1, "rwm")]);
        assert_eq!(lines, [("devices.allow".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn rules_count_in_their_order() {
        let sda = |allow, access| rule(allow, B, 8, 0, access);
        let has = |rules: &[_], line: &str| lines(rules).iter().any(|(_, l)| l == line);
        assert!(has(&[sda(true, "rw")], "b 8:0 rw"));
        assert!(has(&[sda(true, "rw"), sda(true, "m")], "b 8:0 rwm"));
        assert!(has(&[sda(true, "rw"), sda(false, "w")], "b 8:0 r"));
        assert!(!lines(&[sda(true, "rw"), sda(false, "rwm")]).iter().any(|(_, l)| l.starts_with("b 8:0")));
        // A wildcard takes away what it covers: the kernel would match the very same numbers only.
        assert!(!lines(&[sda(true, "rw"), rule(false, B, 8, -1, "rwm")]).iter().any(|(_, l)| l.starts_with("b 8:0")));
        // All that came before an "a" is gone with it.
        assert!(!lines(&[sda(true, "rw"), rule(false, A, -1, -1, "rwm")]).iter().any(|(_, l)| l.starts_with("b 8:0")));
    }

    #[test]
    fn a_deny_exception_survives_the_default_allow_rules() {
        let lines = lines(&[rule(true, A, -1, -1, "rwm"), rule(false, B, 8, -1, "rwm")]);
        // Making nodes stays allowed (the default rules come last), reading and writing does not.
        let line = |file: &str, rule: &str| (file.to_owned(), rule.to_owned());
        assert_eq!(lines, [line("devices.allow", "a"), line("devices.deny", "b 8:* rw")]);
    }

    #[test]
    fn a_narrow_rule_of_type_a_does_not_open_everything() {
        let lines = lines(&[rule(true, A, 10, 229, "rw")]);
        assert_eq!(lines[0], ("devices.deny".to_owned(), "a".to_owned()));
        for expected in ["b 10:229 rw", "c 10:229 rw"] {
            assert!(lines.iter().any(|(_, l)| l == expected), "{expected} in {lines:?}");
        }
    }

    #[test]
    fn a_hole_in_a_wildcard_is_an_error_and_not_silently_open() {
        let e = device_knobs(&[rule(true, C, -1, -1, "rwm"), rule(false, C, 1, 1, "w")]).unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidArgument);
        assert!(e.to_string().contains("c 1:1 w") && e.to_string().contains("c *:*"), "{e}");
    }

    #[test]
    fn malformed_rules_are_refused() {
        for bad in [
            rule(true, C, 1, 3, ""),
            rule(true, C, 1, 3, "rx"),
            rule(true, P, 1, 3, "r"),
            rule(true, C, -2, 3, "r"),
            rule(true, C, 1, 1 << 40, "r"),
        ] {
            assert_eq!(device_knobs(&[bad]).unwrap_err().kind(), Kind::InvalidArgument);
        }
    }
}
