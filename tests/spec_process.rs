//! process: who a container's init is and what it starts with, read from its own files in /proc.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::container::{Ended, Host, refused, run, run_script};
use common::{block_on, skipped};
use serde_json::{Value, json};
use ttrpc::Code;

/// CAP_SYS_RESOURCE, which a machine inside a container may lack: hard limits then cannot rise.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// The fields of /proc/self/status that start with these words, of a program that is init itself: what a shell starts
/// has been through another execve.
fn status(words: &str, change: impl FnOnce(&mut Value)) -> Vec<String> {
    let ended = run(|bundle| bundle.args(&["grep", "-E", &format!("^({words})"), "/proc/self/status"]).edit(change));
    ended.lines().iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// CapInh, CapPrm, CapEff, CapBnd, CapAmb.
fn capabilities(change: impl FnOnce(&mut Value)) -> [u64; 5] {
    let lines = status("Cap", change);
    let names = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
    std::array::from_fn(|index| {
        let hex = lines[index].strip_prefix(names[index]).unwrap_or_else(|| panic!("{lines:?}"));
        u64::from_str_radix(hex.trim(), 16).unwrap()
    })
}

fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & CAP_SYS_RESOURCE != 0
}

fn set_user(spec: &mut Value, user: Value) {
    spec["process"]["user"] = user;
}

/// Proves: process.capabilities.{bounding,effective,inheritable,permitted,ambient}
#[test]
fn capabilities_are_those_of_the_five_sets() {
    // The fourteen of ctr's and Docker's default.
    const DEFAULT: u64 = 0xa804_25fb;
    const BIND: u64 = 1 << 10;
    assert_eq!(capabilities(|_| ()), [0, DEFAULT, DEFAULT, DEFAULT, 0]);
    assert_eq!(capabilities(|spec| spec["process"]["capabilities"] = Value::Null), [0; 5]);
    assert_eq!(capabilities(|spec| spec["process"]["capabilities"] = json!({})), [0; 5]);
    let unprivileged = |spec: &mut Value| set_user(spec, json!({"uid": 1000, "gid": 1000}));
    assert_eq!(capabilities(unprivileged), [0, 0, 0, DEFAULT, 0]);
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    let ambient = capabilities(|spec| {
        unprivileged(spec);
        for set in ["permitted", "effective", "inheritable", "ambient"] {
            spec["process"]["capabilities"][set] = one.clone();
        }
    });
    assert_eq!(ambient, [BIND, BIND, BIND, DEFAULT, BIND]);
    let inheritable = capabilities(|spec| spec["process"]["capabilities"]["inheritable"] = one.clone());
    assert_eq!(inheritable, [BIND, DEFAULT, DEFAULT, DEFAULT, 0]);
    let bounding_only = capabilities(|spec| {
        unprivileged(spec);
        spec["process"]["capabilities"] = json!({"bounding": one.clone()});
    });
    assert_eq!(bounding_only, [0, 0, 0, BIND, 0]);
}

/// Whoever asks for all gets what there is, and a word in the log.
#[test]
fn a_capability_that_cannot_be_granted_is_a_warning() {
    if has_sys_resource() {
        return skipped("a_capability_that_cannot_be_granted_is_a_warning", "this machine has all of them");
    }
    block_on(async {
        let host = Host::new();
        let more = json!(["CAP_CHOWN", "CAP_SYS_RESOURCE"]);
        let command = ["grep", "^Cap", "/proc/self/status"];
        let bundle = host.bundle("one").args(&command).edit(|spec| {
            for set in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
                spec["process"]["capabilities"][set] = more.clone();
            }
        });
        let lines = host.run(&bundle).await.lines();
        assert!(lines.len() == 5 && lines.iter().all(|line| line.ends_with("\t0000000000000001")), "{lines:?}");
        let log = bundle.log();
        let told = log.lines().filter(|line| line.contains("level=warn") && line.contains("CAP_SYS_RESOURCE"));
        assert_eq!(told.count(), 1, "{log}");
    });
}

#[test]
fn a_capability_not_held_has_no_effect() {
    let ended = run_script("chown 1:1 /etc/passwd; hostname x", |spec| {
        spec["process"]["capabilities"] = json!({"bounding": [], "permitted": [], "effective": []});
    });
    assert!(ended.stderr.contains("chown: /etc/passwd: Operation not permitted"), "{ended:#?}");
    assert!(ended.stderr.contains("hostname: sethostname: Operation not permitted"), "{ended:#?}");
}

/// Proves: process.user.{uid,gid,additionalGids}
#[test]
fn user_group_and_supplementary_groups_are_set() {
    let ids = status("Uid|Gid|Groups", |spec| {
        set_user(spec, json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 1002]}));
    });
    assert_eq!(ids, ["Uid: 1000 1000 1000 1000", "Gid: 1001 1001 1001 1001", "Groups: 5 1002"]);
    // None of the shim's own.
    assert_eq!(status("Groups", |_| ()), ["Groups:"]);
}

/// Files are made with it, by the shell itself and not only by what it shows.
/// Proves: process.user.umask
#[test]
fn the_umask_is_the_specifications_or_0022() {
    let script = "umask; touch /run/x; stat -c %a /run/x";
    assert_eq!(run_script(script, |_| ()).ok(), "0022\n644\n");
    let user = json!({"uid": 0, "gid": 0, "umask": 0o077});
    assert_eq!(run_script(script, |spec| set_user(spec, user)).ok(), "0077\n600\n");
}

/// Proves: process.rlimits.{type,soft,hard}
#[test]
fn limits_are_set_soft_and_hard() {
    let limits = run(|bundle| {
        bundle.args(&["cat", "/proc/self/limits"]).edit(|spec| {
            spec["process"]["rlimits"] = json!([
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_NPROC", "soft": 1234, "hard": 1234},
                {"type": "RLIMIT_FSIZE", "soft": 65536, "hard": 131072},
                {"type": "RLIMIT_STACK", "soft": 1048576, "hard": 2097152},
            ]);
        })
    });
    let limits = limits.ok();
    for (name, soft, hard) in [
        ("Max open files", "100", "200"),
        ("Max core file size", "0", "0"),
        ("Max processes", "1234", "1234"),
        ("Max file size", "65536", "131072"),
        ("Max stack size", "1048576", "2097152"),
    ] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [soft, hard], "{name}");
    }
}

#[test]
fn a_limit_that_cannot_be_had_is_an_error_with_its_name() {
    if has_sys_resource() {
        let name = "a_limit_that_cannot_be_had_is_an_error_with_its_name";
        return skipped(name, "with CAP_SYS_RESOURCE every limit can be had");
    }
    let refusal = refused(|bundle| {
        let more = json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1048575}]);
        bundle.edit(|spec| spec["process"]["rlimits"] = more)
    });
    assert!(refusal.message.contains("RLIMIT_NOFILE"), "{refusal:?}");
    assert!(refusal.message.contains("not permitted"), "{refusal:?}");
}

#[test]
fn impossible_limits_are_refused() {
    let limit = |soft: u32, hard: u32| json!({"type": "RLIMIT_CPU", "soft": soft, "hard": hard});
    for (limits, words) in [(json!([limit(2, 1)]), "larger"), (json!([limit(1, 1), limit(1, 1)]), "twice")] {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["process"]["rlimits"] = limits));
        refusal.names(Code::INVALID_ARGUMENT, &["RLIMIT_CPU", words]);
    }
}

/// Proves: process.oomScoreAdj
#[test]
fn the_oom_score_adjustment_is_the_specifications_or_0() {
    let adjustment = |value: Value| {
        let command = &["cat", "/proc/self/oom_score_adj"];
        run(|bundle| bundle.args(command).edit(|spec| spec["process"]["oomScoreAdj"] = value)).ok()
    };
    assert_eq!(adjustment(json!(567)), "567\n");
    assert_eq!(adjustment(Value::Null), "0\n");
    let refusal = refused(|bundle| bundle.edit(|spec| spec["process"]["oomScoreAdj"] = json!(1001)));
    refusal.names(Code::INVALID_ARGUMENT, &["oomScoreAdj", "1001"]);
    if has_sys_resource() {
        // With it, what the shim itself may not be given otherwise.
        assert_eq!(adjustment(json!(-500)), "-500\n");
    } else {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["process"]["oomScoreAdj"] = json!(-500)));
        assert!(refusal.message.contains("oom_score_adj"), "{refusal:?}");
    }
}

/// Proves: process.noNewPrivileges
#[test]
fn no_new_privileges_is_set_where_asked_only() {
    for (value, seen) in [(json!(true), "1"), (json!(false), "0"), (Value::Null, "0")] {
        for uid in [0, 1000] {
            let lines = status("NoNewPrivs", |spec| {
                spec["process"]["noNewPrivileges"] = value.clone();
                set_user(spec, json!({"uid": uid, "gid": uid}));
            });
            assert_eq!(lines, [format!("NoNewPrivs: {seen}")], "{value} for {uid}");
        }
    }
}

fn in_cwd(cwd: &str, script: &str) -> Ended {
    run_script(script, |spec| spec["process"]["cwd"] = json!(cwd))
}

/// Proves: process.cwd
#[test]
fn the_working_directory_is_entered_and_made_where_missing() {
    assert_eq!(in_cwd("/home", "pwd").ok(), "/home\n");
    assert_eq!(in_cwd("/made/for/it", "pwd; stat -c %a:%u /made /made/for/it").ok(), "/made/for/it\n755:0\n755:0\n");
    // On a mount of the specification's.
    assert_eq!(in_cwd("/run/made", "stat -f -c %T .").ok(), "tmpfs\n");
}

/// Entered with root's right, as runc does: an image may have its work below a closed directory.
#[test]
fn a_working_directory_that_is_closed_to_the_user_is_entered() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").script("id -u; pwd; ls .").edit(|spec| {
            spec["process"]["cwd"] = json!("/closed");
            set_user(spec, json!({"uid": 1000, "gid": 1000}));
        });
        let closed = host.scratch.dir().join("snapshots/one/fs/closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let ended = host.run(&bundle).await;
        assert_eq!((ended.stdout.as_str(), ended.status), ("1000\n/closed\n", 1), "{ended:#?}");
        assert!(ended.stderr.contains("Permission denied"), "{ended:#?}");
    });
}

#[test]
fn a_working_directory_that_cannot_be_is_refused() {
    for (cwd, words) in [("/etc/passwd", "directory"), ("/etc/passwd/x", "directory"), ("relative", "absolute")] {
        let refusal = refused(|bundle| bundle.edit(|spec| spec["process"]["cwd"] = json!(cwd)));
        assert!(refusal.message.contains(cwd) && refusal.message.contains(words), "{refusal:?}");
    }
}

/// To the byte and in order: nothing of the shim's (NOTIFY_SOCKET, TTRPC_ADDRESS), nothing merged, and HOME alone added
/// where there is none.
/// Proves: process.env
#[test]
fn the_environment_is_the_specifications_alone() {
    let env = ["PATH=/bin", "A=1", "HOME=/of/its/own", "EMPTY=", "A=2", "no equals sign", "UTF8=ä\n"];
    let seen =
        run(|bundle| bundle.args(&["cat", "/proc/self/environ"]).edit(|spec| spec["process"]["env"] = json!(env)));
    assert_eq!(seen.ok(), env.map(|variable| format!("{variable}\0")).concat());
    let none = run(|bundle| {
        bundle.args(&["/bin/cat", "/proc/self/environ"]).edit(|spec| spec["process"]["env"] = Value::Null)
    });
    assert_eq!(none.ok(), "HOME=/root\0");
}

/// HOME is looked up in a file of the image's, which may be anything: it is never waited for, nor found on the host.
#[test]
fn home_is_that_of_the_users_entry_in_the_images_passwd() {
    let home = |uid: u32, change: &dyn Fn(&Path)| {
        let ended = run(|bundle| {
            let bundle = bundle.plain_rootfs().script("echo $HOME").edit(|spec| {
                set_user(spec, json!({"uid": uid, "gid": 0}));
                spec["process"]["env"] = json!(["PATH=/bin", "HOME="]);
            });
            change(&bundle.rootfs_dir().join("etc"));
            bundle
        });
        ended.ok().trim_end().to_string()
    };
    assert_eq!([home(0, &|_| ()), home(1000, &|_| ()), home(4711, &|_| ())], ["/root", "/home", "/"]);
    assert_eq!(home(0, &|etc| fs::remove_file(etc.join("passwd")).unwrap()), "/");
    // For root alone to read.
    assert_eq!(
        home(1000, &|etc| fs::set_permissions(etc.join("passwd"), Permissions::from_mode(0o600)).unwrap()),
        "/home"
    );
    let linked = |target: &str| {
        home(0, &|etc| {
            fs::rename(etc.join("passwd"), etc.join("other")).unwrap();
            std::os::unix::fs::symlink(target, etc.join("passwd")).unwrap();
        })
    };
    assert_eq!(
        [linked("/etc/other"), linked("../../../etc/other"), linked("passwd"), linked("/dev/zero")],
        ["/root", "/root", "/", "/"]
    );
    let fifo = |etc: &Path| {
        fs::remove_file(etc.join("passwd")).unwrap();
        nix::unistd::mkfifo(&etc.join("passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    assert_eq!(home(0, &fifo), "/");
}

/// 0, 1, 2 and the directory that ls reads; a session of its own; no signal blocked or ignored.
#[test]
fn nothing_else_of_the_shims_is_inherited() {
    assert_eq!(run(|bundle| bundle.args(&["ls", "/proc/self/fd"])).lines(), ["0", "1", "2", "3"]);
    let zero = "0000000000000000";
    let signals = status("SigBlk|SigIgn|SigCgt|ShdPnd", |_| ());
    assert_eq!(
        signals,
        [format!("ShdPnd: {zero}"), format!("SigBlk: {zero}"), format!("SigIgn: {zero}"), format!("SigCgt: {zero}")]
    );
    let stat = run(|bundle| bundle.args(&["cat", "/proc/self/stat"])).ok();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(fields[1..4], ["0", "1", "1"], "parent, group, session: {stat}");
}

/// Proves: process.args
#[test]
fn the_program_is_looked_up_in_the_path_of_its_own_environment() {
    block_on(async {
        let with_programs = |host: &Host, id: &str| {
            let image = host.scratch.dir().join("snapshots").join(id).join("fs");
            for (path, mode) in
                [("first/prog", 0o644), ("second/prog", 0o755), ("third/prog", 0o755), ("work/prog", 0o755)]
            {
                let path = image.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, "#!/bin/sh\necho $0 $1\n").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        };
        for (path, args, seen) in [
            // What is not executable is passed over.
            ("PATH=/none:/first:/second:/third", ["prog", "1"], "/second/prog 1\n"),
            ("PATH=/third:/second", ["prog", "2"], "/third/prog 2\n"),
            ("PATH=/none", ["./prog", "3"], "./prog 3\n"),
            ("PATH=/none", ["/second/prog", "4"], "/second/prog 4\n"),
        ] {
            let host = Host::new();
            let bundle = host.bundle("one").args(&args).edit(|spec| {
                spec["process"]["env"] = json!([path]);
                spec["process"]["cwd"] = json!("/work");
            });
            with_programs(&host, "one");
            assert_eq!(host.run(&bundle).await.ok(), seen);
        }
    });
}

/// At create, by the words that moby and nerdctl tell 126 from 127 by.
#[test]
fn a_program_that_cannot_be_executed_fails_the_create() {
    for (program, words) in [
        ("missing", "executable file not found in $PATH"),
        ("/bin/missing", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "is a directory"),
    ] {
        let refusal = refused(|bundle| bundle.args(&[program, "x"]));
        refusal.names(Code::INVALID_ARGUMENT, &[&format!("exec: \\\"{program}\\\""), words]);
    }
    refused(|bundle| bundle.args(&[])).names(Code::INVALID_ARGUMENT, &["process.args"]);
}

/// Capabilities that nobody knows are warned of and change nothing, of init and of an exec (config.md, "capabilities").
#[test]
fn unknown_capabilities_are_a_warning() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]);
        let bundle = bundle.edit(|spec| {
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_KILL", "CAP_FLY"]);
            }
        });
        let container = host.start(&bundle).await;
        assert!(container.proc("status").contains("CapEff:\t0000000000000020\n"), "{}", container.proc("status"));
        let mut process = bundle.process(&["grep", "CapEff", "/proc/self/status"]);
        process["capabilities"]["effective"] = json!(["CAP_SWIM", "CAP_KILL"]);
        assert_eq!(container.exec("again", &process).await.ok(), "CapEff:\t0000000000000020\n");
        container.end().await;
        let log = bundle.log();
        for words in ["container one: capabilities", "CAP_FLY", "container one: exec again: capabilities", "CAP_SWIM"] {
            assert!(log.contains(words), "{words}: {log}");
        }
    });
}
