//! linux.seccomp: the rules for a profile. What becomes of one is `init`'s.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use super::validate::{invalid, unsupported};
use crate::error::{Context, Result};

/// The number of arguments that a system call has (syscall(2)).
const ARGUMENTS: usize = 6;

/// MAX_ERRNO of linux/err.h: more the kernel cannot return.
const MAX_ERRNO: u32 = 4095;

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
    use serde_json::{Value, json};

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
