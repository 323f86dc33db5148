//! linux.seccomp: each action, operator and flag of a profile by what it does to a program in a container.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::container::{Ended, run};
use common::skipped;
use serde_json::{Value, json};

/// What a script does under a profile, with or without the privileges that loading it would take.
fn under(profile: &Value, script: &str) -> Ended {
    run(|bundle| {
        bundle.script(script).edit(|spec| {
            spec["linux"]["seccomp"] = profile.clone();
            spec["process"]["noNewPrivileges"] = json!(true);
        })
    })
}

fn of_mkdir(action: &str) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}]})
}

const MKDIR: &str = "mkdir /tmp/made; ls /tmp; grep ^Seccomp: /proc/self/status";

/// A call that is logged is done; one that is to be traced, and has no tracer, is not there (seccomp(2)).
///
/// Proves: linux.seccomp.syscalls.action={SCMP_ACT_LOG,SCMP_ACT_TRACE,SCMP_ACT_ALLOW,SCMP_ACT_ERRNO}
#[test]
fn actions_that_kill_nobody_do_what_they_say() {
    assert_eq!(under(&of_mkdir("SCMP_ACT_LOG"), MKDIR).ok(), "made\nSeccomp:\t2\n");
    assert_eq!(under(&of_mkdir("SCMP_ACT_ALLOW"), MKDIR).ok(), "made\nSeccomp:\t2\n");
    for (action, why) in [("SCMP_ACT_TRACE", "Function not implemented"), ("SCMP_ACT_ERRNO", "Operation not permitted")]
    {
        let ended = under(&of_mkdir(action), MKDIR);
        let complaint = format!("mkdir: can't create directory '/tmp/made': {why}\n");
        assert_eq!((&*ended.stdout, ended.stderr), ("Seccomp:\t2\n", complaint), "{action}");
    }
}

/// Of a call that the profile does not list.
///
/// Proves: linux.seccomp.{defaultAction,defaultErrnoRet}
#[test]
fn the_default_has_an_errno_of_its_own() {
    // What busybox cannot do without.
    let calls = ["execve", "write", "exit_group", "arch_prctl", "brk", "mprotect", "mmap", "set_tid_address", "getuid"];
    let profile = |errno: Value| {
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno,
            "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}]})
    };
    for (errno, text) in
        [(json!(libc::EDOM), "Numerical argument out of domain"), (Value::Null, "Operation not permitted")]
    {
        let ended = run(|bundle| {
            bundle.args(&["mkdir", "/tmp/made"]).edit(|spec| {
                spec["linux"]["seccomp"] = profile(errno);
                spec["process"]["noNewPrivileges"] = json!(true);
            })
        });
        assert!(ended.status == 1 && ended.stderr.contains(text), "{ended:#?}");
    }
}

/// renice(1) calls setpriority(which, who, nice).
///
/// Proves: linux.seccomp.syscalls.args.{index,value,valueTwo}
/// Proves: linux.seccomp.syscalls.args.op={SCMP_CMP_NE,SCMP_CMP_LT,SCMP_CMP_LE,SCMP_CMP_EQ,SCMP_CMP_GE,SCMP_CMP_GT}
/// Proves: linux.seccomp.syscalls.args.op=SCMP_CMP_MASKED_EQ
#[test]
fn an_argument_is_compared_by_each_operator() {
    for (op, value, two, refused) in [
        ("SCMP_CMP_NE", 5, 0, &[4u8, 6] as &[u8]),
        ("SCMP_CMP_LT", 5, 0, &[4]),
        ("SCMP_CMP_LE", 5, 0, &[4, 5]),
        ("SCMP_CMP_EQ", 5, 0, &[5]),
        ("SCMP_CMP_GE", 5, 0, &[5, 6]),
        ("SCMP_CMP_GT", 5, 0, &[6]),
        // The mask is the first value.
        ("SCMP_CMP_MASKED_EQ", 6, 4, &[4, 5]),
    ] {
        let args = json!([{"index": 2, "value": value, "valueTwo": two, "op": op}]);
        let rule = json!([{"names": ["setpriority"], "action": "SCMP_ACT_ERRNO", "args": args}]);
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rule});
        let ended = under(&profile, "for n in 4 5 6; do renice $n -p $$ 2>/dev/null && echo $n; done; true");
        let done: Vec<u8> = ended.ok().lines().map(|line| line.parse().unwrap()).collect();
        let expected: Vec<u8> = [4, 5, 6].into_iter().filter(|nice| !refused.contains(nice)).collect();
        assert_eq!(done, expected, "{op}");
    }
}

/// What a flag changes is the kernel's log, or seen by a listener, other threads, or a processor of another time: here
/// that the profile with it holds. One that this kernel does not know would be an error of seccomp(2).
///
/// Proves: linux.seccomp.flags={SECCOMP_FILTER_FLAG_LOG,SECCOMP_FILTER_FLAG_TSYNC}
/// Proves: linux.seccomp.flags={SECCOMP_FILTER_FLAG_SPEC_ALLOW,SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV}
#[test]
fn a_profile_holds_with_each_flag() {
    for flag in ["LOG", "TSYNC", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"] {
        let mut profile = of_mkdir("SCMP_ACT_ERRNO");
        profile["flags"] = json!([format!("SECCOMP_FILTER_FLAG_{flag}")]);
        let ended = under(&profile, MKDIR);
        assert!(ended.stdout == "Seccomp:\t2\n" && ended.stderr.contains("not permitted"), "{flag}: {ended:#?}");
    }
}

/// An i386 program: its exit status is the errno of getppid(2), number 64 there.
fn i386_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    let code = [
        &[0xb8u8, 64, 0, 0, 0, 0xcd, 0x80] as &[u8], // getppid()
        &[0xf7, 0xd8, 0x89, 0xc3],                   // ebx = -eax
        &[0xb8, 1, 0, 0, 0, 0xcd, 0x80],             // exit(ebx)
    ]
    .concat();
    let size = 84 + code.len() as u32;
    let mut program = b"\x7fELF\x01\x01\x01".to_vec();
    program.resize(16, 0);
    // An executable of EM_386: entry, program header; then the header of all of it, readable and executable.
    program.extend([2, 0, 3, 0]);
    program.extend([1, BASE + 84, 52, 0, 0].map(u32::to_le_bytes).as_flattened());
    program.extend([52u16, 32, 1, 0, 0, 0].map(u16::to_le_bytes).as_flattened());
    program.extend([1, 0, BASE, BASE, size, size, 5, 0x1000].map(u32::to_le_bytes).as_flattened());
    program.extend(code);
    program
}

/// A call of an architecture that the profile does not have is the end of who makes it; of one that it has, the rules hold.
///
/// Proves: linux.seccomp.architectures
#[test]
fn the_rules_are_for_the_architectures_of_the_profile() {
    if cfg!(not(target_arch = "x86_64")) {
        return skipped("the_rules_are_for_the_architectures_of_the_profile", "the program is i386's");
    }
    let status = |architectures: Value| {
        let ended = run(|bundle| {
            let bundle = bundle.plain_rootfs().args(&["/i386"]).edit(|spec| {
                spec["process"]["noNewPrivileges"] = json!(true);
                if architectures.is_array() {
                    let rule = json!([{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 33}]);
                    spec["linux"]["seccomp"] =
                        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rule});
                }
            });
            let program = bundle.rootfs_dir().join("i386");
            fs::write(&program, i386_program()).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            bundle
        });
        ended.status
    };
    if fs::read("/proc/sys/abi/ia32_emulation").is_ok_and(|text| text.starts_with(b"0")) {
        return skipped("the_rules_are_for_the_architectures_of_the_profile", "this kernel runs no i386 programs");
    }
    assert_eq!(status(Value::Null), 0);
    assert_eq!(status(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])), 33);
    assert_eq!(status(json!(["SCMP_ARCH_X86_64"])), 128 + libc::SIGSYS as u32);
}
