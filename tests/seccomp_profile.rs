//! linux.seccomp: profiles as the kernel applies them, to an init, to an exec, and to this test's own threads.
#![allow(unsafe_code)]

use common::block_on;
use common::container::{Ended, Host, refused, run, run_script};
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
/// Proves: linux.seccomp.syscalls.{names,errnoRet}, linux.seccomp.syscalls.action=SCMP_ACT_ERRNO
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
/// Proves: linux.seccomp.defaultAction, linux.seccomp.syscalls.action=SCMP_ACT_ALLOW
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

/// Proves: linux.seccomp.syscalls.action={SCMP_ACT_KILL_PROCESS,SCMP_ACT_KILL,SCMP_ACT_KILL_THREAD,SCMP_ACT_TRAP}
#[test]
fn killing_actions_end_the_process_by_sigsys() {
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        let profile = lenient(json!([{"names": ["mkdir", "mkdirat"], "action": action}]));
        let ended = run_script("exec mkdir /tmp/x", |spec| set(spec, profile, true, 0));
        assert_eq!(ended.status, 128 + 31, "{action}");
    }
}

/// What this binary is to do in a container: the variable that says so to it.
const TASK: &str = "DRAY_TEST_SECCOMP";

/// Runs this binary in a container under a profile.
fn run_this(task: &str, profile: Value) -> Ended {
    let exe = std::env::current_exe().expect("own path");
    run(|bundle| {
        bundle
            .mount(json!({"destination": "/program", "type": "bind", "source": exe, "options": ["rbind", "ro"]}))
            .args(&["/program", "--exact", "inside_the_container", "--ignored", "--nocapture", "--test-threads=1"])
            .edit(|spec| {
                set(spec, profile, true, 0);
                spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("{TASK}={task}")));
            })
    })
}

/// Not a test: what the containers of the others run.
#[test]
#[ignore = "the program of the other tests' containers"]
fn inside_the_container() {
    match std::env::var(TASK).as_deref() {
        Ok("thread") => inside::risk_a_thread(|| println!("answer {}", inside::getpriority())),
        Ok("trap") => inside::be_trapped(),
        Ok("trace") => inside::trace_a_child(),
        #[cfg(target_arch = "x86_64")]
        Ok("i386") => inside::risk_a_thread(|| println!("answer {}", inside::getpriority_of_i386(9))),
        Ok(task) => panic!("unknown task {task}"),
        Err(_) => {}
    }
}

/// A process of several threads: one action ends all of it, and the other the thread that makes the call.
#[test]
fn a_thread_or_the_whole_process_is_killed() {
    let profile = |action: &str| lenient(json!([{"names": ["getpriority"], "action": action}]));
    let ended = run_this("thread", profile("SCMP_ACT_KILL_PROCESS"));
    assert!(ended.status == 128 + 31 && !ended.stdout.contains("survived"), "{ended:#?}");
    for action in ["SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL"] {
        let ended = run_this("thread", profile(action));
        let survived = ended.stdout.contains("survived") && !ended.stdout.contains("answer");
        assert!(ended.status == 0 && survived, "{action}: {ended:#?}");
    }
}

/// SIGSYS tells its handler which call it was.
#[test]
fn a_trap_is_a_signal_that_can_be_handled() {
    let ended = run_this("trap", lenient(json!([{"names": ["getpriority"], "action": "SCMP_ACT_TRAP"}])));
    let meant = format!("trapped {} as 1\n", libc::SYS_getpriority);
    assert!(ended.status == 0 && ended.stdout.contains(&meant), "{ended:#?}");
}

/// A tracer hears of the call with the number of the profile; without one the call is not there.
#[test]
fn a_trace_goes_to_the_tracer() {
    for (number, told) in [(json!(1234), 1234), (json!(null), libc::EPERM)] {
        let rule = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_TRACE", "errnoRet": number}]);
        let ended = run_this("trace", lenient(rule.clone()));
        assert!(ended.status == 0 && ended.stdout.contains(&format!("traced {told}\n")), "{ended:#?}");
        let ended = run_script("mkdir /tmp/x", |spec| set(spec, lenient(rule), true, 0));
        assert_eq!(ended.stderr, "mkdir: can't create directory '/tmp/x': Function not implemented\n");
    }
}

#[test]
fn errors_are_those_of_the_profile_and_else_eperm() {
    let stderr = |profile: Value| run_script("mkdir /tmp/x", |spec| set(spec, profile, true, 0)).stderr;
    let rule = |errno: Value| json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]);
    let said = |text: &str| format!("mkdir: can't create directory '/tmp/x': {text}\n");
    assert_eq!(stderr(lenient(rule(json!(libc::ENOMEDIUM)))), said("No medium found"));
    assert_eq!(stderr(lenient(rule(json!(null)))), said("Operation not permitted"));
    // Of all calls but those that it takes to say so.
    let calls = json!([
        "execve",
        "write",
        "exit_group",
        "arch_prctl",
        "brk",
        "mprotect",
        "mmap",
        "set_tid_address",
        "fork",
        "vfork",
        "clone",
        "wait4",
        "rt_sigprocmask",
        "rt_sigaction",
        "rt_sigreturn",
        "getpid",
        "getppid"
    ]);
    let strict = |errno: Value| {
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno,
            "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}]})
    };
    for (errno, text) in [(json!(libc::ENOMEDIUM), "No medium found"), (json!(null), "Operation not permitted")] {
        let text = said(text);
        let stderr = stderr(strict(errno));
        assert!(stderr.ends_with(&text), "{stderr}");
    }
}

/// What is only logged is done; and with every flag that there is.
#[test]
fn logged_calls_are_done_and_flags_are_taken() {
    let profile = |default: &str| {
        let mut flags = vec!["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
        flags.push("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV");
        json!({"defaultAction": default, "flags": flags,
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_LOG"}]})
    };
    for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"] {
        let ended = run_script("mkdir /tmp/x && ls -d /tmp/x && grep Seccomp: /proc/self/status", |spec| {
            set(spec, profile(default), true, 0);
        });
        assert_eq!(ended.ok(), "/tmp/x\nSeccomp:\t2\n", "{default}");
    }
}

/// The kernel is given the flags of the profile, and without any SPEC_ALLOW, as runc has it.
#[test]
fn flags_are_the_profiles() {
    let bits = |flags: Value, action: &str| {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "listenerPath": "/run/x",
            "syscalls": [{"names": ["mkdir"], "action": action}]});
        seccomp::compile(&serde_json::from_value(profile).expect("profile")).expect("compile").flags
    };
    const TSYNC: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
    const LOG: u32 = libc::SECCOMP_FILTER_FLAG_LOG as u32;
    const SPEC_ALLOW: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
    const LISTENER: u32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
    const TSYNC_ESRCH: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH as u32;
    const KILLABLE: u32 = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32;
    let flag = |name: &str| format!("SECCOMP_FILTER_FLAG_{name}");
    let (errno, notify) = ("SCMP_ACT_ERRNO", "SCMP_ACT_NOTIFY");
    assert_eq!(bits(json!(null), errno), SPEC_ALLOW);
    assert_eq!(bits(json!([]), errno), 0);
    assert_eq!(bits(json!([flag("LOG"), flag("TSYNC")]), errno), LOG | TSYNC);
    assert_eq!(bits(json!([flag("SPEC_ALLOW")]), errno), SPEC_ALLOW);
    assert_eq!(bits(json!([flag("WAIT_KILLABLE_RECV")]), errno), 0);
    assert_eq!(bits(json!(null), notify), SPEC_ALLOW | LISTENER);
    assert_eq!(bits(json!([flag("TSYNC")]), notify), TSYNC | TSYNC_ESRCH | LISTENER);
    if common::linux() >= (5, 19) {
        assert_eq!(bits(json!([flag("WAIT_KILLABLE_RECV")]), notify), KILLABLE | LISTENER);
    }
}

/// A call by another architecture's entry is judged by that one's number, where the profile lists the architecture; else
/// who makes it is killed.
#[test]
#[cfg(target_arch = "x86_64")]
fn calls_of_a_listed_architecture_are_judged_and_others_kill() {
    let profile = |archs: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": archs,
            "syscalls": [{"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EDOM}]})
    };
    for archs in [json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]), json!(["SCMP_ARCH_X86", "SCMP_ARCH_X32"])] {
        let ended = run_this("i386", profile(archs));
        if ended.stdout.contains(&format!("answer {}\n", -libc::ENOSYS)) {
            return common::skipped("calls_of_a_listed_architecture", "this kernel runs no programs of i386");
        }
        assert!(ended.stdout.contains(&format!("answer {}\n", -libc::EDOM)), "{ended:#?}");
    }
    for archs in [json!(null), json!([]), json!(["SCMP_ARCH_X86_64"]), json!(["SCMP_ARCH_X32"])] {
        let ended = run_this("i386", profile(archs));
        assert!(ended.stdout.contains("survived") && !ended.stdout.contains("answer"), "{ended:#?}");
    }
}

/// What this binary does as a container's program.
mod inside {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::time::Duration;

    pub fn getpriority() -> libc::c_long {
        // SAFETY: takes no pointer.
        unsafe { libc::syscall(libc::SYS_getpriority, 9, 0) }
    }

    /// Does it in a thread of its own, and waits for that to end, which one that is killed does without a word.
    pub fn risk_a_thread(work: fn()) {
        static THREAD: AtomicI32 = AtomicI32::new(0);
        std::thread::spawn(move || {
            // SAFETY: takes no pointer.
            THREAD.store(unsafe { libc::gettid() }, Ordering::SeqCst);
            work();
        });
        loop {
            std::thread::sleep(Duration::from_millis(5));
            match THREAD.load(Ordering::SeqCst) {
                0 => {}
                thread if std::path::Path::new(&format!("/proc/self/task/{thread}")).exists() => {}
                _ => break,
            }
        }
        println!("survived");
    }

    static TRAPPED: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];

    extern "C" fn trapped(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // `struct siginfo` with `_sigsys` of asm-generic/siginfo.h: three numbers, room to align, the address of the call.
        // SAFETY: the kernel gives a whole one.
        let (code, call) = unsafe { ((*info).si_code, *info.cast::<i32>().add(6)) };
        TRAPPED[0].store(call, Ordering::SeqCst);
        TRAPPED[1].store(code, Ordering::SeqCst);
    }

    pub fn be_trapped() {
        // SAFETY: the handler stores two numbers.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = trapped as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()), 0);
        }
        getpriority();
        println!("trapped {} as {}", TRAPPED[0].load(Ordering::SeqCst), TRAPPED[1].load(Ordering::SeqCst));
    }

    pub fn trace_a_child() {
        let mut command = Command::new("/bin/mkdir");
        // SAFETY: one system call between fork and execve.
        unsafe {
            command.arg("/tmp/traced").pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let child = command.spawn().expect("mkdir").id() as libc::pid_t;
        let wait = || {
            let mut status = 0;
            // SAFETY: waitpid stores one number.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            status
        };
        // Its execve.
        assert!(libc::WIFSTOPPED(wait()));
        let mut told: libc::c_ulong = 0;
        // SAFETY: of a child that has stopped; GETEVENTMSG stores one number.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, libc::PTRACE_O_TRACESECCOMP), 0);
            assert_eq!(libc::ptrace(libc::PTRACE_CONT, child, 0, 0), 0);
            let event = wait() >> 8;
            assert_eq!(event, libc::SIGTRAP | libc::PTRACE_EVENT_SECCOMP << 8);
            assert_eq!(libc::ptrace(libc::PTRACE_GETEVENTMSG, child, 0, &raw mut told), 0);
            assert_eq!(libc::ptrace(libc::PTRACE_CONT, child, 0, 0), 0);
        }
        assert!(libc::WIFEXITED(wait()) && std::path::Path::new("/tmp/traced").is_dir());
        println!("traced {told}");
    }

    /// By the entry of i386: call 96 there.
    #[cfg(target_arch = "x86_64")]
    pub fn getpriority_of_i386(which: u64) -> i32 {
        let mut answer: u64 = 96;
        // SAFETY: takes no pointer; rbx is put back, and r8 to r11, which the entry may clear, are given up.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {which}", "int 0x80", "xchg rbx, {which}",
                which = inout(reg) which => _, inout("rax") answer, in("rcx") 0u64, in("rdx") 0u64,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        answer as i32
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_any_effect() {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]});
    let refusal = refused(|bundle| bundle.edit(|spec| set(spec, profile, true, 0)));
    refusal.names(Code::INVALID_ARGUMENT, &["linux.seccomp.architectures", "S390X"]);
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
    // All 64 bits count: by the upper half, and by the lower one where that is the same.
    const HIGH: u64 = 7 << 32;
    let calls = [[HIGH - 1, 0], [HIGH + 4, 0], [HIGH + 5, 0], [HIGH + 6, 0], [2 * HIGH, 0], [5, 0]];
    for (op, meant) in [
        ("SCMP_CMP_NE", [true, true, false, true, true, true]),
        ("SCMP_CMP_LT", [true, true, false, false, false, true]),
        ("SCMP_CMP_LE", [true, true, true, false, false, true]),
        ("SCMP_CMP_EQ", [false, false, true, false, false, false]),
        ("SCMP_CMP_GE", [false, false, true, true, true, false]),
        ("SCMP_CMP_GT", [false, false, false, true, true, false]),
    ] {
        assert_eq!(judged(arg(op, HIGH + 5, 0), &calls), meant, "{op}");
    }
    let masked = judged(arg("SCMP_CMP_MASKED_EQ", 1 << 32 | 4, 1 << 32 | 4), &calls);
    assert_eq!(masked, [false, true, true, true, false, false]);
    assert_eq!(judged(arg("SCMP_CMP_EQ", u64::MAX, 0), &[[u64::MAX, 0], [u64::from(u32::MAX), 0]]), [true, false]);
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
