//! linux.seccomp: the rules for a profile. What becomes of one is `init`'s.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall, Spec,
};

use super::hooks::{Point, entries};
use super::validate::{absolute, invalid, unsupported};
use crate::error::{Context, Result};

/// The number of arguments that a system call has (syscall(2)).
const ARGUMENTS: usize = 6;

/// MAX_ERRNO of linux/err.h: more the kernel cannot return.
const MAX_ERRNO: u32 = 4095;

/// The longest path of a socket: `sun_path` of unix(7) and its NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// Every action that a profile can have.
pub const ACTIONS: &[LinuxSeccompAction] = {
    use LinuxSeccompAction::*;
    &[
        ScmpActKill,
        ScmpActKillThread,
        ScmpActKillProcess,
        ScmpActTrap,
        ScmpActErrno,
        ScmpActNotify,
        ScmpActTrace,
        ScmpActLog,
        ScmpActAllow,
    ]
};

/// Every operator.
pub const OPERATORS: &[LinuxSeccompOperator] = {
    use LinuxSeccompOperator::*;
    &[ScmpCmpNe, ScmpCmpLt, ScmpCmpLe, ScmpCmpEq, ScmpCmpGe, ScmpCmpGt, ScmpCmpMaskedEq]
};

/// Every flag.
pub const FLAGS: &[LinuxSeccompFilterFlag] = {
    use LinuxSeccompFilterFlag::*;
    &[SeccompFilterFlagLog, SeccompFilterFlagTsync, SeccompFilterFlagSpecAllow, SeccompFilterFlagWaitKillableRecv]
};

/// Every architecture that has a name; which of them libseccomp knows is its own matter.
pub const ARCHS: &[Arch] = {
    use Arch::*;
    &[
        ScmpArchNative,
        ScmpArchX86,
        ScmpArchX86_64,
        ScmpArchX32,
        ScmpArchArm,
        ScmpArchAarch64,
        ScmpArchMips,
        ScmpArchMips64,
        ScmpArchMips64n32,
        ScmpArchMipsel,
        ScmpArchMipsel64,
        ScmpArchMipsel64n32,
        ScmpArchPpc,
        ScmpArchPpc64,
        ScmpArchPpc64le,
        ScmpArchS390,
        ScmpArchS390x,
        ScmpArchParisc,
        ScmpArchParisc64,
        ScmpArchRiscv64,
        ScmpArchLoongarch64,
        ScmpArchM68k,
        ScmpArchSh,
        ScmpArchSheb,
    ]
};

/// Whether some calls are for a listener to answer.
pub fn notifies(profile: &LinuxSeccomp) -> bool {
    let listed = profile.syscalls().iter().flatten().map(LinuxSyscall::action);
    listed.chain([profile.default_action()]).any(|action| action == LinuxSeccompAction::ScmpActNotify)
}

/// Judges what a profile asks of the rest of the specification.
///
/// # Errors
/// `Unimplemented` for hooks that would run under a filter with a listener: each would have to be handed one of its own.
pub(super) fn in_spec(spec: &Spec) -> Result<()> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    match profile.is_some_and(notifies) && !entries(spec, Point::StartContainer).is_empty() {
        true => Err(unsupported("hooks.startContainer together with SCMP_ACT_NOTIFY in linux.seccomp")),
        false => Ok(()),
    }
}

/// Judges a profile.
pub(super) fn validate(profile: &LinuxSeccomp) -> Result<()> {
    listener(profile)?;
    let default = (profile.default_action(), profile.default_errno_ret());
    action(default, "defaultErrnoRet").context(|| "linux.seccomp")?;
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        syscall(rule).context(|| format!("linux.seccomp.syscalls[{index}]"))?;
    }
    Ok(())
}

/// The path is the host's, where the shim connects to it. Without an action that needs one it is unused, and passes.
///
/// Of what runc refuses for its own sake, notification of write(2) and by default, nothing is refused here: the child
/// makes no call between the load of the filter and its execve.
fn listener(profile: &LinuxSeccomp) -> Result<()> {
    let path = profile.listener_path().as_ref().filter(|path| !path.as_os_str().is_empty());
    let Some(path) = path else {
        if profile.listener_metadata().as_ref().is_some_and(|data| !data.is_empty()) {
            return Err(invalid("linux.seccomp.listenerMetadata needs linux.seccomp.listenerPath"));
        }
        return match notifies(profile) {
            true => Err(invalid("linux.seccomp.listenerPath is required for SCMP_ACT_NOTIFY")),
            false => Ok(()),
        };
    };
    absolute("linux.seccomp.listenerPath", path)?;
    match path.as_os_str().len() > LONGEST_SOCKET_PATH {
        true => {
            Err(invalid(format!("linux.seccomp.listenerPath is longer than {LONGEST_SOCKET_PATH} bytes: {path:?}")))
        }
        false => Ok(()),
    }
}

fn syscall(rule: &LinuxSyscall) -> Result<()> {
    action((rule.action(), rule.errno_ret()), "errnoRet")?;
    if rule.names().is_empty() || rule.names().iter().any(String::is_empty) {
        return Err(invalid("names is required, with the names of system calls"));
    }
    match rule.args().iter().flatten().find(|arg| arg.index() >= ARGUMENTS) {
        Some(arg) => Err(invalid(format!("args: a system call has no argument {}", arg.index()))),
        None => Ok(()),
    }
}

/// An errno for an action that has none must be an error, the specification says.
fn action((action, errno): (LinuxSeccompAction, Option<u32>), errno_field: &str) -> Result<()> {
    let most = match action {
        LinuxSeccompAction::ScmpActErrno => MAX_ERRNO,
        LinuxSeccompAction::ScmpActTrace => u16::MAX.into(),
        _ if errno.is_some() => return Err(invalid(format!("{errno_field}: {action} has none"))),
        _ => return Ok(()),
    };
    match errno {
        Some(errno) if errno > most => Err(invalid(format!("{errno_field} is larger than {most}: {errno}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
    use serde_json::{Value, json};

    /// A deserializer that has no data and tells the variants of the enumeration that asks it for some.
    struct Variants<'a>(&'a mut Vec<&'static str>);

    impl<'de> Deserializer<'de> for Variants<'_> {
        type Error = serde_json::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> std::result::Result<V::Value, Self::Error> {
            Err(Self::Error::custom("not an enumeration"))
        }

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _: &'static str,
            variants: &'static [&'static str],
            _: V,
        ) -> std::result::Result<V::Value, Self::Error> {
            self.0.extend(variants);
            Err(Self::Error::custom("no data"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map struct identifier ignored_any
        }
    }

    fn names<T: serde::Serialize>(list: &[T]) -> Vec<Value> {
        let mut names: Vec<_> = list.iter().map(|value| json!(value)).collect();
        names.sort_by_key(Value::to_string);
        names
    }

    fn all<'de, T: Deserialize<'de>>() -> Vec<Value> {
        let mut variants = Vec::new();
        assert!(T::deserialize(Variants(&mut variants)).is_err());
        names(&variants)
    }

    /// An update of the crate that brings new ones fails here.
    #[test]
    fn the_lists_have_all_that_the_types_have() {
        assert_eq!(names(ACTIONS), all::<LinuxSeccompAction>());
        assert_eq!(names(OPERATORS), all::<LinuxSeccompOperator>());
        assert_eq!(names(FLAGS), all::<LinuxSeccompFilterFlag>());
        assert_eq!(names(ARCHS), all::<Arch>());
    }

    fn judge(change: Value) -> Result<()> {
        let mut profile = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        profile.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        validate(&serde_json::from_value(profile).unwrap())
    }

    #[test]
    fn a_listener_has_a_path_and_is_needed_for_notifications() {
        let rule = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]);
        for (change, words) in [
            (json!({ "syscalls": rule }), "listenerPath is required for SCMP_ACT_NOTIFY"),
            (json!({ "syscalls": rule, "listenerPath": "" }), "listenerPath is required for SCMP_ACT_NOTIFY"),
            (json!({ "defaultAction": "SCMP_ACT_NOTIFY" }), "listenerPath is required for SCMP_ACT_NOTIFY"),
            (json!({ "listenerMetadata": "x" }), "listenerMetadata needs linux.seccomp.listenerPath"),
            (json!({ "listenerPath": "run/x" }), "listenerPath is not an absolute path: \"run/x\""),
            (json!({ "listenerPath": "/\0" }), "listenerPath contains a NUL"),
            (json!({ "listenerPath": format!("/{}", "x".repeat(107)) }), "listenerPath is longer than 107 bytes"),
            (
                json!({ "listenerPath": "/x", "defaultAction": "SCMP_ACT_NOTIFY", "defaultErrnoRet": 1 }),
                "defaultErrnoRet: SCMP_ACT_NOTIFY has none",
            ),
        ] {
            let error = judge(change).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(words), "{error}");
        }
        judge(json!({ "listenerPath": "", "listenerMetadata": "", "syscalls": null })).unwrap();
        judge(json!({ "listenerPath": "/run/x", "listenerMetadata": "x" })).unwrap();
        judge(json!({ "listenerPath": format!("/{}", "x".repeat(106)), "syscalls": rule })).unwrap();
        judge(json!({ "listenerPath": "/run/x", "defaultAction": "SCMP_ACT_NOTIFY" })).unwrap();
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        let rule = |rule: Value| json!({ "syscalls": [rule] });
        let args = |index: usize| {
            let arg = json!({ "index": index, "value": 1, "op": "SCMP_CMP_EQ" });
            rule(json!({ "names": ["mkdir"], "action": "SCMP_ACT_LOG", "args": [arg] }))
        };
        let errno = |action: &str, errno: u32| rule(json!({ "names": ["a"], "action": action, "errnoRet": errno }));
        for (change, words) in [
            (json!({ "defaultErrnoRet": 1 }), "defaultErrnoRet: SCMP_ACT_ALLOW has none"),
            (errno("SCMP_ACT_KILL_PROCESS", 1), "errnoRet: SCMP_ACT_KILL_PROCESS has none"),
            (errno("SCMP_ACT_ERRNO", 4096), "errnoRet is larger"),
            (errno("SCMP_ACT_TRACE", 65536), "errnoRet is larger"),
            (rule(json!({ "names": [], "action": "SCMP_ACT_LOG" })), "names"),
            (rule(json!({ "names": [""], "action": "SCMP_ACT_LOG" })), "names"),
            (args(6), "argument 6"),
        ] {
            let error = judge(change).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(words), "{error}");
        }
        judge(args(5)).unwrap();
        judge(errno("SCMP_ACT_ERRNO", 4095)).unwrap();
        judge(errno("SCMP_ACT_TRACE", 65535)).unwrap();
    }
}
