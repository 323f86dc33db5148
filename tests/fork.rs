//! The fork and the child's first steps, called directly: what holds of them whatever the shim does around them.
//!
//! Each test runs in a process of its own with one thread, which it may kill or put under a filter.
#![allow(unsafe_code)] // signal(2), and pidfd_getfd(2) to look at an invariant with another one taken out of play.

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use common::bundle::Bundle;
use common::memory::occurrences;
use common::scratch::{Scratch, mounts_below};
use common::seccomp;
use dray::engine::Engine;
use dray::engine::create::Request;
use dray::engine::events::{RootfsMount, StdioUris};
use dray::error::{Error, Kind};
use dray::init::plan::{Plan, Process, Streams, Work};
use dray::init::sync::{Heard, Hold, ParentEnd};
use dray::sys::fork::{Child, PANICKED, exit_now, fork, fork_inside, hop};
use dray::sys::ns::{self, Namespace};
use dray::sys::spawn::{Program, spawn};
use dray::sys::userns;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(10);

/// Has this program end at once.
const EXIT: &str = "--exit";

const TESTS: &[(&str, fn())] = &[
    ("a_panic_in_a_forked_child_ends_it_alone", a_panic_in_a_forked_child_ends_it_alone),
    ("a_panic_in_a_step_becomes_an_error_record", a_panic_in_a_step_becomes_an_error_record),
    ("a_panic_in_create_undoes_the_container", a_panic_in_create_undoes_the_container),
    ("a_child_resets_the_signals_that_its_parent_ignores", a_child_resets_the_signals_that_its_parent_ignores),
    ("a_child_leaves_without_its_parents_destructors", a_child_leaves_without_its_parents_destructors),
    ("a_child_has_but_the_descriptors_of_its_plan", a_child_has_but_the_descriptors_of_its_plan),
    ("a_child_has_but_the_descriptors_of_its_plan_on_old_kernels", old_kernel_closes_too),
    ("the_death_of_its_parent_kills_a_waiting_child", the_death_of_its_parent_kills_a_waiting_child),
    ("the_end_of_the_socket_ends_a_parked_child", the_end_of_the_socket_ends_a_parked_child),
    ("a_parked_child_has_forgotten_its_parents_memory", a_parked_child_has_forgotten_its_parents_memory),
    ("who_hops_is_our_child_and_tells_us_so", who_hops_is_our_child_and_tells_us_so),
    ("who_hops_and_cannot_be_told_of_ends", who_hops_and_cannot_be_told_of_ends),
    ("clone_serves_where_clone3_is_missing", clone_serves_where_clone3_is_missing),
    ("a_child_is_born_inside_of_a_joined_user_namespace", a_child_is_born_inside_of_a_joined_user_namespace),
    ("a_cgroup_that_takes_no_birth_is_left_to_the_child", a_cgroup_that_takes_no_birth_is_left_to_the_child),
    ("each_seal_holds_where_mfd_exec_is_missing", each_seal_holds_where_mfd_exec_is_missing),
    ("a_program_is_given_what_it_is_given_and_no_more", a_program_is_given_what_it_is_given_and_no_more),
    ("a_program_that_cannot_be_executed_says_why", a_program_that_cannot_be_executed_says_why),
    ("a_program_is_not_executed_when_its_parent_is_gone", a_program_is_not_executed_when_its_parent_is_gone),
];

/// As cargo's harness prints it, whose lines scripts/test counts; of its arguments the filter alone is understood.
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == EXIT) {
        return ExitCode::SUCCESS;
    }
    if let [flag, name] = args.as_slice()
        && flag == "--child"
    {
        TESTS.iter().find(|(known, _)| known == name).expect("a test of this name").1();
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let (mut passed, mut failed) = (0, 0);
    for (name, _) in TESTS.iter().filter(|(name, _)| chosen(name)) {
        let this = std::env::current_exe().expect("current_exe");
        let status = Command::new(this).args(["--child", name]).status().expect("spawn a test");
        let (word, count) = if status.success() { ("ok", &mut passed) } else { ("FAILED", &mut failed) };
        println!("test {name} ... {word}");
        *count += 1;
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A first process of a container that is the host in every respect.
fn plan(args: &[&str]) -> Plan {
    let null = || OwnedFd::from(fs::OpenOptions::new().read(true).write(true).open("/dev/null").expect("/dev/null"));
    let process = Process {
        args: args.iter().map(|arg| std::ffi::CString::new(*arg).unwrap()).collect(),
        env: vec![c"PATH=/bin:/usr/bin".to_owned()],
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: Some(Vec::new()),
        umask: 0o022,
        capabilities: Default::default(),
        rlimits: Vec::new(),
        no_new_privileges: false,
        session_keyring: true,
        handed: 0,
        treatment: Default::default(),
        console_size: None,
    };
    let work = Work::Create(Box::default());
    let streams = Streams::Pipes([null(), null(), null()]);
    Plan { work, process, streams, cgroup_files: Vec::new(), hold: Hold::Socket, seccomp: None }
}

/// A child that has done all but become its program.
fn parked(plan: &Plan) -> (Child, ParentEnd) {
    let (child, sync) = dray::init::spawn(plan, None, None, None).unwrap();
    sync.go().unwrap();
    match hear(&sync) {
        Heard::Ready => (child, sync),
        other => panic!("{other:?} instead of being ready"),
    }
}

fn hear(sync: &ParentEnd) -> Heard {
    let deadline = Instant::now() + SOON;
    loop {
        match sync.receive().unwrap() {
            Heard::Nothing => assert!(Instant::now() < deadline, "the child says nothing"),
            other => return other,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn status(child: &Child) -> WaitStatus {
    waitpid(Pid::from_raw(child.pid), None).unwrap()
}

fn exited(child: &Child, code: i32) {
    assert_eq!(status(child), WaitStatus::Exited(Pid::from_raw(child.pid), code));
}

/// Waits for the end of a process that need not be a child.
fn gone(pidfd: &OwnedFd, what: &str) {
    let deadline = Instant::now() + SOON;
    while !dray::sys::pidfd::has_exited(pidfd) {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_panic_in_a_forked_child_ends_it_alone() {
    std::panic::set_hook(Box::new(|_| ()));
    let child = fork(0, None, None, |_| panic!("on purpose")).unwrap();
    exited(&child, PANICKED);
}

/// A plan without arguments, which no validated specification has, makes a step of the child's panic.
fn a_panic_in_a_step_becomes_an_error_record() {
    std::panic::set_hook(Box::new(|_| ()));
    let (child, sync) = dray::init::spawn(&plan(&[]), None, None, None).unwrap();
    sync.go().unwrap();
    let Heard::Failed(error) = hear(&sync) else { panic!("no failure") };
    let text = error.to_string();
    assert!(text.starts_with("finding the program: panic: ") && text.contains("out of bounds"), "{text}");
    exited(&child, 1);
    // The parent is none the worse for it.
    let (child, sync) = parked(&plan(&["true"]));
    sync.release().unwrap();
    assert!(matches!(hear(&sync), Heard::Executed));
    exited(&child, 0);
}

/// In a runtime that cannot watch descriptors the first attempt to do so panics: for a stream's fifo before there is a
/// process, and for the socket of one that has just been born.
fn a_panic_in_create_undoes_the_container() {
    std::panic::set_hook(Box::new(|_| ()));
    for streams in [true, false] {
        let scratch = Scratch::new();
        let bundle = Bundle::new(&scratch, "one");
        let state = scratch.dir().join("state");
        let stdout = if streams { common::stdio::Io::fifos_unread(&scratch, "one").stdout } else { String::new() };
        let engine = Engine::new(scratch.namespace(), state.clone(), Box::new(|_| ())).unwrap();
        let request = Request {
            id: "one".to_owned(),
            bundle: bundle.dir().to_owned(),
            rootfs: bundle.rootfs.iter().cloned().map(mount).collect(),
            stdio: StdioUris { stdout, ..StdioUris::default() },
            options: Default::default(),
            command: None,
            restore: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let error = tokio::task::LocalSet::new().block_on(&runtime, async {
            let reaping = engine.clone();
            tokio::task::spawn_local(async move {
                loop {
                    reaping.reap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            let error = engine.clone().create(request).await.unwrap_err();
            tokio::time::sleep(Duration::from_millis(100)).await;
            error
        });
        assert_eq!((error.kind(), error.to_string().contains("panicked")), (Kind::Internal, true), "{error}");
        assert!(engine.is_empty(), "the id is still taken");
        assert!(bundle.cgroups().is_empty(), "{:?}", bundle.cgroups());
        assert!(mounts_below(scratch.dir()).is_empty(), "{:?}", mounts_below(scratch.dir()));
        assert!(!state.join(scratch.namespace()).exists(), "state is left");
        assert_eq!(waitpid(None, None).unwrap_err(), nix::errno::Errno::ECHILD, "a child is left");
    }
}

/// A shell with these descriptors from 0 on.
fn shell(script: &str, fds: Vec<OwnedFd>) -> Program {
    Program {
        path: c"/bin/busybox".to_owned(),
        args: [c"sh", c"-c"].map(Into::into).into_iter().chain([std::ffi::CString::new(script).unwrap()]).collect(),
        env: vec![c"ONE=1".to_owned()],
        fds,
        cwd: Some(c"/proc".to_owned()),
        die_with_parent: false,
    }
}

/// The descriptors are given crosswise: 0 is the write end's number, and one of the shim's own stays behind.
fn a_program_is_given_what_it_is_given_and_no_more() {
    dray::sys::signal::block_all().unwrap();
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let null = || OwnedFd::from(fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap());
    let (mut output, write) = std::io::pipe().unwrap();
    let _other = null();
    let script = "echo $ONE $PWD; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/$$/fd; \
        [ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo leads";
    let spawned = spawn(&shell(script, vec![null(), write.into()])).unwrap();
    exited(&spawned.child, 0);
    assert!(spawned.refused().is_none());
    let mut text = String::new();
    // The program's own copies are gone with it: what is left of the write end is ours, dropped with the call.
    output.read_to_string(&mut text).unwrap();
    let zero = "0000000000000000";
    assert_eq!(text, format!("1 /proc\nSigBlk:\t{zero}\nSigIgn:\t{zero}\n0\n1\n2\nleads\n"));
}

fn a_program_that_cannot_be_executed_says_why() {
    for (path, errno) in [(c"/nowhere/at-all", libc::ENOENT), (c"/etc/passwd", libc::EACCES)] {
        let program = Program { path: path.to_owned(), ..shell("", Vec::new()) };
        let spawned = spawn(&program).unwrap();
        exited(&spawned.child, 127);
        let error = spawned.refused().unwrap();
        assert_eq!(error.errno(), Some(errno), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

fn mount(mount: containerd_shim_protos::api::Mount) -> RootfsMount {
    RootfsMount { kind: mount.type_, source: mount.source, target: mount.target, options: mount.options }
}

/// All of them, libc's own two as well, which libc's signal(2) does not touch.
fn a_child_resets_the_signals_that_its_parent_ignores() {
    let ignore = [libc::SIG_IGN as u64, 0, 0, 0];
    for number in 1..=64 {
        // SAFETY: SIG_IGN runs nothing; the array is as large as the kernel's structure, and outlives the call.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, ignore.as_ptr(), std::ptr::null_mut::<u8>(), 8usize) };
    }
    dray::sys::signal::block_all().unwrap();
    let field = |pid: i32, name: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    };
    assert_eq!(field(std::process::id() as i32, "SigIgn").count_ones(), 62, "all but SIGKILL and SIGSTOP");
    // While the parent ignores SIGCHLD, nobody is to be waited for.
    let (child, _sync) = parked(&plan(&["sleep", "1000"]));
    for name in ["SigIgn", "SigBlk", "SigCgt"] {
        assert_eq!(field(child.pid, name), 0, "{name}");
    }
}

/// The values that the parent's frames hold are the parent's to drop: in a child that would undo them a second time.
fn a_child_leaves_without_its_parents_destructors() {
    struct Noisy(OwnedFd);
    impl Drop for Noisy {
        fn drop(&mut self) {
            let _ = rustix::io::write(&self.0, b"dropped ");
        }
    }
    std::panic::set_hook(Box::new(|_| ()));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let noisy = Noisy(writer.into());
    for panics in [false, true] {
        let child = fork(0, None, None, |_| if panics { panic!("on purpose") } else { exit_now(0) }).unwrap();
        status(&child);
    }
    let (child, sync) = dray::init::spawn(&plan(&[]), None, None, None).unwrap();
    sync.go().unwrap();
    assert!(matches!(hear(&sync), Heard::Failed(_)));
    status(&child);
    drop(noisy);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "dropped ", "once, by the parent");
}

fn a_child_has_but_the_descriptors_of_its_plan() {
    // What no list knows of: neither close-on-exec nor ours.
    let (reader, writer) = std::io::pipe().unwrap();
    let high = rustix::io::fcntl_dupfd_cloexec(&reader, 500).unwrap();
    for fd in [reader.as_fd(), writer.as_fd(), high.as_fd()] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    }
    let plan = plan(&["sleep", "1000"]);
    let Streams::Pipes(pipes) = &plan.streams else { panic!("a terminal") };
    for fd in pipes {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    }
    let (child, sync) = parked(&plan);
    let links = descriptors(child.pid);
    // 0 to 2 and the way to the parent: not those of which it has made the former.
    let (sockets, others): (Vec<_>, Vec<_>) = links.iter().partition(|link| link.starts_with("socket:"));
    assert_eq!((sockets.len(), others.len()), (1, 3), "{links:?}");
    assert!(others.iter().all(|link| *link == "/dev/null"), "{links:?}");
    sync.release().unwrap();
    assert!(matches!(hear(&sync), Heard::Executed));
    assert_eq!(descriptors(child.pid), ["/dev/null"; 3]);
    kill(Pid::from_raw(child.pid), Signal::SIGKILL).unwrap();
    status(&child);
}

fn old_kernel_closes_too() {
    for refused in [seccomp::LINUX_5_10, seccomp::OLD] {
        seccomp::take_away(refused);
        a_child_has_but_the_descriptors_of_its_plan();
    }
}

fn descriptors(pid: i32) -> Vec<String> {
    let dir = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut links: Vec<String> =
        dir.map(|entry| fs::read_link(entry.unwrap().path()).unwrap().to_string_lossy().into_owned()).collect();
    links.sort();
    links
}

/// A parent, a child of it that waits for it, and the parent's end of their socket, which we hold as well.
fn parent_and_child(uid: u32, go: bool) -> (Child, OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut plan = plan(&["sleep", "1000"]);
    plan.process.uid = uid;
    let parent = fork(0, None, None, |_| {
        let (child, sync) = if go { parked(&plan) } else { dray::init::spawn(&plan, None, None, None).unwrap() };
        (&writer).write_all(&[child.pid.to_le_bytes(), sync.as_raw_fd().to_le_bytes()].concat()).unwrap();
        loop {
            std::thread::sleep(SOON);
        }
    })
    .unwrap();
    drop(writer);
    let (child, socket) = told(reader);
    let stolen = steal(&parent.pidfd, socket);
    (parent, dray::sys::pidfd::open(child).unwrap(), stolen)
}

fn told(mut reader: PipeReader) -> (i32, i32) {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).unwrap();
    let number = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(0), number(4))
}

/// Another process's open file: held by us as well, it does not close with that process.
fn steal(pidfd: &OwnedFd, number: i32) -> OwnedFd {
    // SAFETY: it touches no memory, and the descriptor that it returns is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0);
        assert!(fd >= 0, "pidfd_getfd: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd as i32)
    }
}

/// By the signal alone: the socket stays open. A change of ids clears it, and must not leave it so.
fn the_death_of_its_parent_kills_a_waiting_child() {
    for (uid, go) in [(0, false), (0, true), (1000, true)] {
        let (parent, child, held) = parent_and_child(uid, go);
        // Time for the child to get to its wait: before that, the socket's end is what ends it.
        wait_until_blocked(&child);
        kill(Pid::from_raw(parent.pid), Signal::SIGKILL).unwrap();
        status(&parent);
        gone(&child, "the waiting child has outlived its parent");
        drop(held);
    }
}

fn wait_until_blocked(pidfd: &OwnedFd) {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim();
    let deadline = Instant::now() + SOON;
    // recvfrom(2), in which the child waits for a word.
    let call = libc::SYS_recvfrom.to_string();
    while fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().split(' ').next() != Some(call.as_str()) {
        assert!(Instant::now() < deadline, "the child does not wait");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// By the socket alone: the parent lives.
fn the_end_of_the_socket_ends_a_parked_child() {
    let (child, sync) = parked(&plan(&["sleep", "1000"]));
    drop(sync);
    gone(&child.pidfd, "the parked child waits for a release that cannot come");
    exited(&child, 1);
}

/// In large values and in small ones, living and freed, on the stack above the child's frames and below.
fn a_parked_child_has_forgotten_its_parents_memory() {
    dray::sys::memory::in_one_heap().unwrap();
    let secret = |place: &str| format!("{}:{place}:{}", ["SEC", "RET"].concat(), std::process::id()).into_bytes();
    let large = [vec![b' '; 1 << 20], secret("large")].concat();
    let small = [vec![b' '; 100], secret("small")].concat();
    drop([vec![b' '; 1 << 20], secret("freed")].concat());
    let mut above = [0u8; 64];
    let text = secret("above");
    above[..text.len()].copy_from_slice(&text);
    #[inline(never)]
    fn leave_below(depth: usize, text: &[u8]) {
        let mut below = [0u8; 4096];
        below[..text.len()].copy_from_slice(text);
        match std::hint::black_box(depth) {
            0 => {}
            depth => leave_below(depth - 1, text),
        }
        std::hint::black_box(&mut below);
    }
    leave_below(64, &secret("below"));
    let (child, sync) = parked(&plan(&["true", "kept"]));
    std::hint::black_box((&large, &small, &above));
    let own = std::process::id();
    for place in ["large", "small", "freed", "above", "below"] {
        let needle = String::from_utf8(secret(place)).unwrap();
        assert_ne!(occurrences(own, &needle), 0, "{place}: not even in the parent");
        assert_eq!(occurrences(child.pid as u32, &needle), 0, "{place}");
    }
    assert_ne!(occurrences(child.pid as u32, "kept"), 0);
    // What we were started with.
    for (file, word) in [("cmdline", "/fork-"), ("environ", "PATH=")] {
        let read = |pid: u32| fs::read(format!("/proc/{pid}/{file}")).unwrap();
        assert!(String::from_utf8_lossy(&read(own)).contains(word), "{file}: not even in the parent");
        assert!(read(child.pid as u32).iter().all(|&byte| byte == 0), "{file}");
    }
    sync.release().unwrap();
    assert!(matches!(hear(&sync), Heard::Executed));
    exited(&child, 0);
}

/// The first process of a new pid namespace, of which the one that has made the namespace tells.
fn who_hops_is_our_child_and_tells_us_so() {
    let (ours, theirs) = dray::init::sync::pair().unwrap();
    let maker = fork(0, None, None, |birth| {
        ns::unshare(Namespace::Pid.flag()).unwrap();
        hop(birth, |child| theirs.born(child)).unwrap();
        exit_now(std::process::id() as i32 + 6)
    })
    .unwrap();
    let Heard::Born { by, child } = hear(&ours) else { panic!("nobody is born") };
    assert_eq!(by, maker.pid);
    assert_ne!(child.pid, maker.pid);
    gone(&child.pidfd, "it does not end");
    exited(&child, 7);
    exited(&maker, 0);
    // Whoever else says so says who it is.
    theirs.born(&child).unwrap();
    let Heard::Born { by, .. } = hear(&ours) else { panic!("nobody is born") };
    assert_eq!(by, std::process::id() as i32);
}

/// Nobody would wait for it, nor know that it runs.
fn who_hops_and_cannot_be_told_of_ends() {
    let (ours, theirs) = dray::init::sync::pair().unwrap();
    let maker = fork(0, None, None, |birth| {
        ns::unshare(Namespace::Pid.flag()).unwrap();
        // A maker that is killed here leaves the same.
        let tell = |child: &_| theirs.born(child).and(Err(Error::new(Kind::Internal, "the shim is gone")));
        hop(birth, tell).unwrap();
        exit_now(7)
    })
    .unwrap();
    let Heard::Born { child, .. } = hear(&ours) else { panic!("nobody is born") };
    gone(&child.pidfd, "it goes on");
    exited(&child, 0);
    exited(&maker, 0);
}

fn clone_serves_where_clone3_is_missing() {
    seccomp::take_away(seccomp::OLD);
    let child = fork(0, None, None, |birth| exit_now(if birth.in_cgroup { 1 } else { 7 })).unwrap();
    assert!(fs::read_to_string(format!("/proc/self/fdinfo/{}", child.pidfd.as_raw_fd())).unwrap().contains("Pid:"));
    exited(&child, 7);
    let flags = libc::CLONE_NEWPID as u64;
    let child = fork(flags, None, None, |_| exit_now(std::process::id() as i32)).unwrap();
    exited(&child, 1);
}

/// With a pid namespace that is the user namespace's: it may mount a procfs of it. With clone3 and with clone.
fn a_child_is_born_inside_of_a_joined_user_namespace() {
    let holder = fork(libc::CLONE_NEWUSER as u64, None, None, |_| {
        loop {
            std::thread::park();
        }
    });
    let holder = holder.unwrap();
    let path = format!("/proc/{}/ns/user", holder.pid);
    let joined = [(Namespace::User, ns::open_path(Namespace::User, path.as_ref()).unwrap())];
    assert_eq!(userns::maps(joined[0].1.as_fd()).unwrap(), ["", ""]);
    userns::write_maps(holder.pid as u32, "0 1000 10\n", "0 2000 10\n").unwrap();
    let maps = userns::maps(joined[0].1.as_fd()).unwrap();
    let words = maps.each_ref().map(|text| text.split_whitespace().collect::<Vec<_>>());
    assert_eq!(words, [["0", "1000", "10"], ["0", "2000", "10"]]);

    let wanted = fs::read_link(&path).unwrap();
    for old in [false, true] {
        if old {
            seccomp::take_away(seccomp::OLD);
        }
        let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
        let child = fork_inside(&joined, None, flags, None, |birth| {
            let here = fs::read_link("/proc/self/ns/user").unwrap();
            let proc = dray::sys::mount::mount("proc", "/proc".as_ref(), "proc", 0, "");
            let right = birth.joined && std::process::id() == 1 && here == wanted && proc.is_ok();
            exit_now(if right { 7 } else { 1 })
        });
        let child = child.unwrap();
        assert!(fs::read_to_string(format!("/proc/self/fdinfo/{}", child.pidfd.as_raw_fd())).unwrap().contains("Pid:"));
        exited(&child, 7);
        // Into one's own nobody can go.
        let own = [(Namespace::User, ns::open_path(Namespace::User, "/proc/self/ns/user".as_ref()).unwrap())];
        let error = fork_inside(&own, None, flags, None, |_| exit_now(0)).unwrap_err();
        assert_eq!((error.errno(), error.to_string().contains("setns user")), (Some(libc::EINVAL), true), "{error}");
        // Helpers leave nothing to be waited for.
        let other = waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).unwrap();
        assert_eq!(other, WaitStatus::StillAlive);
    }
    kill(Pid::from_raw(holder.pid), Signal::SIGKILL).unwrap();
    status(&holder);
}

/// A domain below a threaded one takes no process (cgroups(7), "domain invalid"): the child hears that it was not born
/// there.
fn a_cgroup_that_takes_no_birth_is_left_to_the_child() {
    let Some(root) = unified() else { return println!("SKIPPED: no unified cgroup tree") };
    let cgroup = std::path::Path::new(&root).join(format!("dray-test.{}.fork", std::process::id()));
    struct Cgroups<'a>(&'a std::path::Path);
    impl Drop for Cgroups<'_> {
        fn drop(&mut self) {
            for below in ["threaded", "invalid", ""] {
                let _ = fs::remove_dir(self.0.join(below));
            }
        }
    }
    let _cleanup = Cgroups(&cgroup);
    for directory in ["", "threaded", "invalid"] {
        fs::create_dir(cgroup.join(directory)).unwrap();
    }
    let birth_in = |path: &std::path::Path| {
        let directory = OwnedFd::from(fs::File::open(path).unwrap());
        fork(0, None, Some(directory.as_fd()), |birth| exit_now(i32::from(birth.in_cgroup)))
    };
    let born_in = |path: &std::path::Path| status(&birth_in(path).unwrap());
    let WaitStatus::Exited(_, 1) = born_in(&cgroup) else { panic!("not born in a cgroup that takes it") };
    // One that hands controllers down takes nobody in any way. Where they are v1's there are none.
    let hands_down = |path: &std::path::Path| fs::write(path.join("cgroup.subtree_control"), "+memory");
    if hands_down(std::path::Path::new(&root)).and_then(|()| hands_down(&cgroup)).is_ok() {
        assert_eq!(birth_in(&cgroup).unwrap_err().errno(), Some(libc::EBUSY));
        fs::write(cgroup.join("cgroup.subtree_control"), "-memory").unwrap();
    }
    fs::write(cgroup.join("threaded/cgroup.type"), "threaded").unwrap();
    let WaitStatus::Exited(_, 0) = born_in(&cgroup.join("invalid")) else { panic!("born where no process may be") };
    // Nor where the call is missing.
    seccomp::take_away(seccomp::OLD);
    let WaitStatus::Exited(_, 0) = born_in(&cgroup) else { panic!("clone cannot do that") };
}

/// The mount point of cgroup v2.
fn unified() -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(str::to_owned)
}

fn each_seal_holds_where_mfd_exec_is_missing() {
    seccomp::take_away(seccomp::OLD);
    // A directory that cannot be made leaves the memfd.
    let sealed = dray::sys::seal::own_executable(None).unwrap();
    let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
    assert!(fs::read_link(&path).unwrap().to_string_lossy().starts_with("/memfd:"));
    let written = fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"x"));
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EPERM));
    let args = ["fork", EXIT].map(|arg| std::ffi::CString::new(arg).unwrap());
    let child = fork(0, None, None, |_| {
        let _ = dray::sys::exec::execve_fd(sealed.as_fd(), &args, &[]);
        exit_now(9)
    });
    exited(&child.unwrap(), 0);
}

/// The signal that kills it with its parent is asked for by the child, for which the parent may be too quick.
fn a_program_is_not_executed_when_its_parent_is_gone() {
    let scratch = Scratch::new();
    let mark = scratch.dir().join("lived");
    let script = format!("sleep 1; echo >> {}", mark.display());
    let args = ["/bin/sh", "-c", &script].map(|arg| std::ffi::CString::new(arg).unwrap());
    let program = Program {
        path: c"/bin/sh".to_owned(),
        args: args.to_vec(),
        env: vec![c"PATH=/bin:/usr/bin".to_owned()],
        fds: Vec::new(),
        cwd: None,
        die_with_parent: true,
    };
    for _ in 0..100 {
        let parent = fork(0, None, None, |_| {
            let _spawned = spawn(&program);
            exit_now(0)
        });
        waitpid(Pid::from_raw(parent.unwrap().pid), None).unwrap();
    }
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(fs::read_to_string(&mark).unwrap_or_default().len(), 0, "programs without a parent");
}
