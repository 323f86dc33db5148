//! linux.seccomp: profiles as the kernel applies them, to an init, to an exec, and to this test's own threads.
#![allow(unsafe_code)]

mod common;

use common::block_on;
use common::container::{Ended, Host, refused, run_script};
use dray::init::seccomp;
use serde_json::{Value, json};
use ttrpc::Code;

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// A profile that allows everything but what `syscalls` says.
fn lenient(syscalls: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls})
}

fn no_mkdir() -> Value {
    lenient(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSPC}]))
}

fn set(spec: &mut Value, profile: Value, no_new_privileges: bool, uid: u32) {
    spec["linux"]["seccomp"] = profile;
    spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
    spec["process"]["user"] = json!({"uid": uid, "gid": uid});
}

/// Each of the four ways in which a filter is loaded, in init and in an exec; and that what loading took is not kept.
#[test]
fn init_and_execs_are_under_the_profile() {
    const SCRIPT: &str = "mkdir /tmp/x; grep -E '^(Seccomp|NoNewPrivs|CapPrm|CapEff):' /proc/self/status";
    for (no_new_privileges, uid) in [(true, 0), (true, 1000), (false, 0), (false, 1000)] {
        let check = |ended: &Ended| {
            assert_eq!(ended.stderr, "mkdir: can't create directory '/tmp/x': No space left on device\n");
            let field = |name: &str| {
                let line = ended.stdout.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("{ended:#?}")).trim().to_owned()
            };
            assert_eq!(field("Seccomp:"), "2");
            assert_eq!(field("NoNewPrivs:"), u8::from(no_new_privileges).to_string());
            for set in ["CapPrm:", "CapEff:"] {
                let bits = u64::from_str_radix(&field(set), 16).unwrap();
                assert_eq!(bits & CAP_SYS_ADMIN, 0, "{ended:#?}");
                assert_eq!(bits != 0, uid == 0, "{ended:#?}");
            }
        };
        block_on(async {
            let host = Host::new();
            let script = format!("{SCRIPT}; echo done; sleep 1000");
            let bundle = host.bundle("one").script(&script).edit(|spec| set(spec, no_mkdir(), no_new_privileges, uid));
            let mut container = host.start(&bundle).await;
            container.says("done").await;
            check(&container.exec_script("again", SCRIPT).await);
            container.end().await;
            // The same of init itself.
            let bundle = host.bundle("two").script(SCRIPT).edit(|spec| set(spec, no_mkdir(), no_new_privileges, uid));
            check(&host.run(&bundle).await);
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
    }
}

/// An ambient capability outlives the loading of the filter, which takes another one.
#[test]
fn ambient_capabilities_stay() {
    let ended = run_script("grep -E '^Cap(Prm|Eff|Amb):' /proc/self/status", |spec| {
        set(spec, no_mkdir(), false, 1000);
        for kind in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
            spec["process"]["capabilities"][kind] = json!(["CAP_NET_BIND_SERVICE"]);
        }
    });
    let bits = |line: &str| line.split_whitespace().nth(1).map(|hex| u64::from_str_radix(hex, 16).unwrap());
    assert_eq!(ended.lines().iter().map(|line| bits(line)).collect::<Vec<_>>(), [Some(1 << 10); 3]);
}

/// Of what the shim's child itself calls nothing comes after the filter but execve.
#[test]
fn a_profile_need_not_know_the_set_up() {
    // What busybox cannot do without.
    let calls = ["execve", "write", "exit_group", "arch_prctl", "brk", "mprotect", "mmap", "set_tid_address"];
    for no_new_privileges in [true, false] {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}],
        });
        block_on(async {
            let host = Host::new();
            let bundle = host.bundle("one").args(&["echo", "hello"]);
            assert_eq!(host.run(&bundle.edit(|spec| set(spec, profile, no_new_privileges, 0))).await.ok(), "hello\n");
        });
    }
}

/// An exec comes into the container with the filter loaded, where that is possible: here it is not, or not quite.
#[test]
fn a_profile_need_not_know_the_birth_of_an_exec() {
    let calls = ["execve", "write", "exit_group", "arch_prctl", "brk", "mprotect", "mmap", "set_tid_address"];
    let of_sleep =
        ["clock_nanosleep", "getuid", "prctl", "readlink", "rseq", "set_robust_list", "prlimit64", "getrandom"];
    let listed = [&calls[..], &of_sleep].concat();
    let sparse = json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [{"names": listed, "action": "SCMP_ACT_ALLOW"}],
    });
    let without = |call: &str| lenient(json!([{"names": [call], "action": "SCMP_ACT_KILL_PROCESS"}]));
    let clone = json!([{"names": ["clone"], "action": "SCMP_ACT_KILL_PROCESS",
        "args": [{"index": 0, "value": libc::CLONE_PARENT, "valueTwo": libc::CLONE_PARENT, "op": "SCMP_CMP_MASKED_EQ"}]}]);
    for profile in [sparse, without("setsid"), without("sendmsg"), without("faccessat2"), lenient(clone)] {
        for no_new_privileges in [true, false] {
            block_on(async {
                let host = Host::new();
                let bundle = host.bundle("one").args(&["sleep", "1000"]);
                let bundle = bundle.edit(|spec| set(spec, profile.clone(), no_new_privileges, 0));
                let container = host.start(&bundle).await;
                assert_eq!(container.exec("echo", &container.bundle.process(&["echo", "hello"])).await.ok(), "hello\n");
                container.end().await;
            });
        }
    }
}

#[test]
fn killing_actions_end_the_process_by_sigsys() {
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        let profile = lenient(json!([{"names": ["mkdir", "mkdirat"], "action": action}]));
        let ended = run_script("exec mkdir /tmp/x", |spec| set(spec, profile, true, 0));
        assert_eq!(ended.status, 128 + 31, "{action}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_any_effect() {
    let listed = |action: &str| json!([{"names": ["mkdir"], "action": action}]);
    for (profile, code, words) in [
        (lenient(listed("SCMP_ACT_NOTIFY")), Code::UNIMPLEMENTED, ["linux.seccomp.syscalls[0]", "SCMP_ACT_NOTIFY"]),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}),
            Code::UNIMPLEMENTED,
            ["linux.seccomp.listenerPath", "not supported"],
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}),
            Code::INVALID_ARGUMENT,
            ["linux.seccomp.architectures", "S390X"],
        ),
    ] {
        refused(|bundle| bundle.edit(|spec| set(spec, profile, true, 0))).names(code, &words);
    }
}

/// Loads a profile into a thread of this test and makes calls there: (number, argument) to errno, 0 for success.
fn answers(profile: Value, calls: &[(libc::c_long, [u64; 2])]) -> Vec<i32> {
    let profile = serde_json::from_value(profile).expect("profile");
    let filter = seccomp::compile(&profile).expect("compile");
    let calls = calls.to_vec();
    let thread = std::thread::spawn(move || {
        // SAFETY: sets a flag of this thread.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        filter.load().expect("load");
        let call = |(number, [a, b]): (libc::c_long, [u64; 2])| {
            // SAFETY: of the calls of these tests none takes a pointer, or does anything with these numbers.
            let answer = unsafe { libc::syscall(number, a, b, 0, 0, 0, 0) };
            if answer == -1 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
        };
        calls.into_iter().map(call).collect()
    });
    thread.join().expect("thread")
}

/// getpriority(which, who): answers EINVAL for what is none of 0, 1, 2, unless the profile answers first.
fn judged(args: Value, calls: &[[u64; 2]]) -> Vec<bool> {
    let rule = json!([{"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EDOM, "args": args}]);
    let calls: Vec<_> = calls.iter().map(|args| (libc::SYS_getpriority, *args)).collect();
    answers(lenient(rule), &calls).into_iter().map(|errno| errno == libc::EDOM).collect()
}

#[test]
fn arguments_are_compared_by_each_operator() {
    let arg = |op: &str, value: u64, two: u64| json!([{"index": 0, "value": value, "valueTwo": two, "op": op}]);
    let calls = [[4, 0], [5, 0], [6, 0]];
    for (op, meant) in [
        ("SCMP_CMP_NE", [true, false, true]),
        ("SCMP_CMP_LT", [true, false, false]),
        ("SCMP_CMP_LE", [true, true, false]),
        ("SCMP_CMP_EQ", [false, true, false]),
        ("SCMP_CMP_GE", [false, true, true]),
        ("SCMP_CMP_GT", [false, false, true]),
    ] {
        assert_eq!(judged(arg(op, 5, 0), &calls), meant, "{op}");
    }
    // The mask is the first value.
    assert_eq!(judged(arg("SCMP_CMP_MASKED_EQ", 6, 4), &calls), [true, true, false]);
}

#[test]
fn conditions_on_two_arguments_must_both_hold_and_of_two_on_one_either() {
    let arg = |index: usize, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let calls = [[4, 7], [4, 8], [5, 7], [6, 6]];
    assert_eq!(judged(json!([arg(0, 4), arg(1, 7)]), &calls), [true, false, false, false]);
    assert_eq!(judged(json!([arg(0, 4), arg(0, 5)]), &calls), [true, true, true, false]);
}

/// A C library that asks for a call of tomorrow must hear that there is none, not that it may not.
#[test]
fn calls_newer_than_the_profile_are_not_there() {
    let known = json!([
        {"names": ["getpriority", "munmap", "madvise", "mmap", "mprotect", "sigaltstack", "exit", "exit_group", "futex",
            "rt_sigprocmask", "rseq", "set_robust_list", "sched_yield", "write", "brk", "mremap", "clock_gettime"],
            "action": "SCMP_ACT_ALLOW"},
        // The latest, of Linux 5.9; and two that no libseccomp knows.
        {"names": ["close_range", "call_of_tomorrow", "no_call"], "action": "SCMP_ACT_ALLOW"},
    ]);
    let profile = |default: &str| json!({"defaultAction": default, "syscalls": known.clone()});
    let after = libc::SYS_close_range + 1;
    let x32 = 0x4000_0000;
    let calls = [(libc::SYS_getpriority, [9, 0]), (libc::SYS_getppid, [0, 0]), (after, [0, 0]), (100_000, [0, 0])];
    use libc::{EINVAL, ENOSYS, EPERM};
    assert_eq!(answers(profile("SCMP_ACT_ERRNO"), &calls), [EINVAL, EPERM, ENOSYS, ENOSYS]);
    // With other architectures the same: each has its own latest.
    let mut several = profile("SCMP_ACT_ERRNO");
    several["architectures"] = json!(match std::env::consts::ARCH {
        "x86_64" => ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        _ => ["SCMP_ARCH_NATIVE", "SCMP_ARCH_ARM"],
    });
    assert_eq!(answers(several.clone(), &calls), [EINVAL, EPERM, ENOSYS, ENOSYS]);
    if cfg!(target_arch = "x86_64") {
        let calls = [(x32 + libc::SYS_getppid, [0, 0]), (x32 + 100_000, [0, 0])];
        assert_eq!(answers(several, &calls), [EPERM, ENOSYS]);
    }
    // One that allows by default has nothing to hide.
    let lenient = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EDOM}]});
    assert_eq!(answers(lenient, &[(after, [u64::MAX, 0])]).len(), 1);
}
