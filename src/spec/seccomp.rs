//! linux.seccomp: the rules for a profile. What becomes of one is `init`'s.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use super::validate::{invalid, unsupported};
use crate::error::{Context, Result};

/// The number of arguments that a system call has (syscall(2)).
const ARGUMENTS: usize = 6;

/// MAX_ERRNO of linux/err.h: more the kernel cannot return.
const MAX_ERRNO: u32 = 4095;

/// Every action that a profile can have; of those that are refused `accepts` is false.
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

/// Whether a rule may have this action.
pub(super) fn accepts(act: LinuxSeccompAction) -> bool {
    action((act, None), "action", "errnoRet").is_ok()
}

/// Judges a profile.
///
/// # Errors
/// `Unimplemented` for notification by a listener.
pub(super) fn validate(profile: &LinuxSeccomp) -> Result<()> {
    if profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Err(unsupported("linux.seccomp.listenerPath"));
    }
    if profile.listener_metadata().as_ref().is_some_and(|data| !data.is_empty()) {
        return Err(unsupported("linux.seccomp.listenerMetadata"));
    }
    let default = (profile.default_action(), profile.default_errno_ret());
    action(default, "defaultAction", "defaultErrnoRet").context(|| "linux.seccomp")?;
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        syscall(rule).context(|| format!("linux.seccomp.syscalls[{index}]"))?;
    }
    Ok(())
}

fn syscall(rule: &LinuxSyscall) -> Result<()> {
    action((rule.action(), rule.errno_ret()), "action", "errnoRet")?;
    if rule.names().is_empty() || rule.names().iter().any(String::is_empty) {
        return Err(invalid("names is required, with the names of system calls"));
    }
    match rule.args().iter().flatten().find(|arg| arg.index() >= ARGUMENTS) {
        Some(arg) => Err(invalid(format!("args: a system call has no argument {}", arg.index()))),
        None => Ok(()),
    }
}

/// An errno for an action that has none must be an error, the specification says.
fn action((action, errno): (LinuxSeccompAction, Option<u32>), field: &str, errno_field: &str) -> Result<()> {
    let most = match action {
        LinuxSeccompAction::ScmpActNotify => return Err(unsupported(format_args!("{field} {action}"))),
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
    fn what_is_not_implemented_is_refused_by_its_name() {
        let rule = json!({ "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] });
        for (change, name) in [
            (json!({ "listenerPath": "/run/x" }), "linux.seccomp.listenerPath is not supported"),
            (json!({ "listenerMetadata": "x" }), "linux.seccomp.listenerMetadata is not supported"),
            (json!({ "defaultAction": "SCMP_ACT_NOTIFY" }), "linux.seccomp: defaultAction SCMP_ACT_NOTIFY is not"),
            (rule, "linux.seccomp.syscalls[0]: action SCMP_ACT_NOTIFY is not"),
        ] {
            let error = judge(change).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().starts_with(name), "{error}");
        }
        judge(json!({ "listenerPath": "", "listenerMetadata": "", "syscalls": null })).unwrap();
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
