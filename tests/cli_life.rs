//! `dray create`, `start`, `run`, `kill` and `delete`: their flags, their words and their exit statuses, by what they do to a
//! container and leave of it.

#![allow(unsafe_code)] // A system call that no crate wraps.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::attacker::with_ptrace;
use common::bundle::Bundle;
use common::dray::{Dray, fails, ok, text, wait_until};
use common::driver::{await_exit, open_pid};
use common::memory::occurrences;
use common::pty::Client;
use common::rootless::{Cgroups, Ids, rootless};
use common::world::{World, leftovers};
use common::{block_on, patience};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};
use serde_json::{Value, json};

const SLEEP: [&str; 2] = ["sleep", "1000"];

fn sleeping(dray: &Dray, id: &str) -> Bundle {
    dray.bundle(id).args(&SLEEP)
}

/// Nothing of the container is there: no state, mount, cgroup or process.
#[track_caller]
fn nothing_left(dray: &Dray) {
    let states: Vec<_> = fs::read_dir(dray.root()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(states.is_empty(), "{states:?}");
    wait_until("the end of its processes", || dray.scratch().shims().is_empty());
    assert_eq!(leftovers(dray.scratch()), [""; 0]);
}

fn alive(pid: i32) -> bool {
    open_pid(pid).is_some_and(|pidfd| await_exit(&pidfd, Duration::ZERO).is_err())
}

#[track_caller]
fn dies(pid: i32) {
    wait_until("the end of the container", || !alive(pid));
}

fn stat(pid: i32, field: usize) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit(')').next().unwrap().split_whitespace().nth(field - 3).unwrap().to_owned()
}

/// What is in a file of the container's.
fn inside(bundle: &Bundle, path: &str) -> String {
    fs::read_to_string(bundle.rootfs_dir().join(path)).unwrap_or_default()
}

/// Creates it with its streams in files, whose paths are returned.
#[track_caller]
fn created(dray: &Dray, bundle: &Bundle, flags: &[&str]) -> PathBuf {
    let out = dray.scratch().dir().join(format!("{}.out", bundle.id));
    let mut command = dray.command(&["create"]);
    command.args(flags).arg(&bundle.id).current_dir(bundle.dir());
    let output = command.stdout(File::create(&out).unwrap()).stderr(Stdio::piped()).spawn().unwrap();
    // Its container has the same stderr, and may live on.
    let mut output = output;
    let status = output.wait().unwrap();
    if !status.success() {
        let mut error = String::new();
        output.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        panic!("create: {error}");
    }
    out
}

fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
}

/// One descriptor and the text that it comes with.
fn receive(listener: &UnixListener) -> (String, OwnedFd) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(patience(Duration::from_secs(20)))).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let message = recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(all) = message {
            fds.extend(all);
        }
    }
    assert_eq!(fds.len(), 1);
    (String::from_utf8_lossy(&name[..message.bytes]).into_owned(), fds.remove(0))
}

#[test]
fn run_is_the_program_in_the_foreground() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("cat; echo out; echo err >&2; exit 7");
    let mut command = dray.command(&["run", "one"]);
    let mut child = command
        .current_dir(bundle.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(text(&output.stdout), "in\nout\n");
    assert!(text(&output.stderr).ends_with("err\n"), "{}", text(&output.stderr));
    nothing_left(&dray);
}

#[test]
fn a_signal_that_ends_the_program_is_its_status() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("kill -KILL $$").without_namespace("pid");
    assert_eq!(dray.run_in(bundle.dir(), &["run", "one"]).status.code(), Some(137));
    nothing_left(&dray);
}

/// The streams are the caller's own, and not copies of what they say.
#[test]
fn the_callers_streams_are_the_containers() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    let out = created(&dray, &bundle, &[]);
    let pid = dray.pid("one");
    assert_eq!(fs::read_link(format!("/proc/{pid}/fd/1")).unwrap(), out);
    assert_eq!(fs::read_link(format!("/proc/{pid}/fd/0")).unwrap(), Path::new("/dev/null"));
    ok(&dray.run(&["start", "one"]));
    wait_until("its program", || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "sleep\n");
    assert_eq!(fs::metadata(format!("/proc/{pid}/fd/1")).unwrap().ino(), fs::metadata(&out).unwrap().ino());
}

/// As with runc: a program that is not root may open /dev/stdout.
#[test]
fn streams_become_the_users() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("echo again > /proc/self/fd/1 && echo good");
    let bundle = bundle.edit(|spec| spec["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    let mut command = dray.command(&["run", "one"]);
    let output = command.current_dir(bundle.dir()).output().unwrap();
    assert_eq!(ok(&output), "again\ngood\n");
}

#[test]
fn a_created_container_waits_for_start_without_its_creator() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("echo ran > /ran; exec sleep 1000");
    created(&dray, &bundle, &[]);
    let pid = dray.pid("one");
    let saved = dray.saved("one");
    assert!(!alive(saved["owner"]["pid"].as_i64().unwrap() as i32), "the creator has exited");
    std::thread::sleep(Duration::from_millis(300));
    assert!(alive(pid) && inside(&bundle, "ran").is_empty(), "not started");
    // A session of its own: what is sent to the caller's terminal is not for it.
    assert_eq!(stat(pid, 6), pid.to_string());
    let fifo = dray.state_dir("one").join("exec.fifo");
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    let copy = dray.state_dir("one").join("config.json");
    assert_eq!(fs::read(&copy).unwrap(), fs::read(bundle.dir().join("config.json")).unwrap());
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    // From here on the bundle's may be gone.
    fs::remove_file(bundle.dir().join("config.json")).unwrap();
    ok(&dray.run(&["start", "one"]));
    wait_until("its program", || inside(&bundle, "ran") == "ran\n");
    assert_eq!(dray.pid("one"), pid);
    assert!(alive(pid) && !fifo.exists());
    ok(&dray.run(&["delete", "-f", "one"]));
    dies(pid);
    nothing_left(&dray);
}

/// Nothing of who has created it: neither its environment and command line, which programs in the container may read, nor
/// ways to the host.
#[test]
fn a_created_init_has_nothing_of_its_creators() {
    let dray = Dray::new();
    let bundle = with_ptrace(dray.bundle("one").args(&SLEEP));
    // Whole they are in no memory but where they are secrets.
    let [variable, word] = ["variable", "word"].map(|of| format!("{}{}-{of}-{}", "SEC", "RET", std::process::id()));
    let pid_file = dray.scratch().dir().join(&word);
    let mut create = dray.command(&["create", "--pid-file"]);
    create.arg(&pid_file).arg("one").env("X", &variable).current_dir(bundle.dir());
    ok(&dray.finish(&mut create));
    let pid = dray.pid("one");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    for file in ["/proc/1/environ", "/proc/1/cmdline"] {
        let read = ok(&dray.run(&["exec", "one", "cat", file]));
        assert!(!read.is_empty() && read.bytes().all(|byte| byte == 0), "{file}: {read}");
    }
    assert_eq!([&variable, &word].map(|secret| occurrences(pid as u32, secret)), [0, 0]);

    let link = |fd: &str| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().to_string_lossy().into_owned();
    let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut others: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    others.retain(|name| !["0", "1", "2"].contains(&name.as_str()));
    let mut others: Vec<_> = others.iter().map(|fd| link(fd)).collect();
    others.sort();
    // What it waits for, and the way on which its creator has let it go.
    assert!(others.len() == 2 && others[0].ends_with("/exec.fifo") && others[1].starts_with("socket:"), "{others:?}");
    ok(&dray.run(&["start", "one"]));
}

/// The process that stays beside its container in the foreground keeps no more of its environment than it reads.
#[test]
fn behind_the_seal_is_but_the_environment_that_is_read() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("echo up > /up; exec sleep 1000");
    let mut run = dray.command(&["run", "one"]);
    run.env("X", "secret").env("XDG_RUNTIME_DIR", "/run/nowhere").current_dir(bundle.dir());
    let mut running = run.stdout(Stdio::null()).spawn().unwrap();
    wait_until("its program", || !inside(&bundle, "up").is_empty());
    let environment = fs::read(format!("/proc/{}/environ", running.id())).unwrap();
    let names = text(&environment);
    let mut names: Vec<_> = names.split_terminator('\0').filter_map(|text| Some(text.split_once('=')?.0)).collect();
    names.retain(|name| !name.starts_with("DBUS_") && !name.starts_with("RUST_"));
    assert_eq!(names, ["PATH", "XDG_RUNTIME_DIR"]);
    ok(&dray.run(&["kill", "one", "KILL"]));
    assert_eq!(running.wait().unwrap().code(), Some(137));
}

#[test]
fn start_is_for_what_is_created() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    created(&dray, &bundle, &[]);
    ok(&dray.run(&["start", "one"]));
    let again = fails(&dray.run(&["start", "one"]), 1);
    assert!(again.starts_with("dray: ") && again.contains("cannot start an already running container"), "{again}");
    let pid = dray.pid("one");
    ok(&dray.run(&["kill", "one", "KILL"]));
    dies(pid);
    let stopped = fails(&dray.run(&["start", "one"]), 1);
    assert!(stopped.contains("cannot start a container that has stopped"), "{stopped}");
    let none = fails(&dray.run(&["start", "none"]), 1);
    assert!(none.contains("container does not exist"), "{none}");
}

/// What fails on the way is told by start, although it was created by another process.
#[test]
fn start_tells_why_the_program_does_not_run() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").args(&["/bin/none"]);
    fs::write(bundle.rootfs_dir().join("bin/none"), "not a program").unwrap();
    fs::set_permissions(bundle.rootfs_dir().join("bin/none"), fs::Permissions::from_mode(0o755)).unwrap();
    created(&dray, &bundle, &[]);
    let error = fails(&dray.run(&["start", "one"]), 1);
    assert!(error.contains("exec: \"/bin/none\"") && error.contains("exec format error"), "{error}");
    dies(dray.pid("one"));
    ok(&dray.run(&["delete", "one"]));
    nothing_left(&dray);
}

#[test]
fn run_detached_leaves_it_running() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    let pid_file = dray.scratch().dir().join("pid");
    let args = ["run", "--detach", "--bundle", bundle.dir().to_str().unwrap(), "--pid-file"];
    let mut command = dray.command(&args);
    ok(&dray.finish(command.arg(&pid_file).arg("one")));
    let pid = dray.pid("one");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid.to_string());
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "sleep\n", "start has been waited for");
    let taken = fails(&dray.run_in(bundle.dir(), &["run", "-d", "one"]), 1);
    assert!(taken.contains("container with given ID already exists"), "{taken}");
    assert!(alive(pid));
    ok(&dray.run(&["kill", "one", "9"]));
    dies(pid);
    let taken = fails(&dray.run_in(bundle.dir(), &["run", "-d", "one"]), 1);
    assert!(taken.contains("already exists"), "also when it has stopped: {taken}");
    ok(&dray.run(&["delete", "one"]));
    nothing_left(&dray);
}

#[test]
fn keep_leaves_it_to_be_deleted() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").args(&["true"]);
    ok(&dray.run_in(bundle.dir(), &["run", "--keep", "one"]));
    assert!(dray.state_dir("one").exists());
    ok(&dray.run(&["delete", "one"]));
    nothing_left(&dray);
}

#[test]
fn signals_to_a_foreground_run_are_the_programs() {
    let dray = Dray::new();
    let script = "trap 'echo usr >> /got' USR1; trap 'exit 5' TERM; echo on > /got; while :; do sleep 0.05; done";
    let bundle = dray.bundle("one").script(script);
    let mut run = dray.command(&["run", "one"]).current_dir(bundle.dir()).spawn().unwrap();
    wait_until("its traps", || inside(&bundle, "got") == "on\n");
    kill_process(Pid::from_child(&run), Signal::USR1).unwrap();
    wait_until("the signal", || inside(&bundle, "got") == "on\nusr\n");
    kill_process(Pid::from_child(&run), Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(5));
    nothing_left(&dray);
}

/// Others may see to the container of a run that waits for it.
#[test]
fn a_foreground_run_ends_with_a_container_that_is_deleted() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    let mut run = dray.command(&["run", "one"]).current_dir(bundle.dir()).spawn().unwrap();
    let running = || {
        dray.state_dir("one").join("state.json").exists()
            && dray.saved("one")["init"]["pid"]
                .as_i64()
                .is_some_and(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n"))
    };
    wait_until("its start", running);
    let refused = fails(&dray.run(&["delete", "one"]), 1);
    assert!(refused.contains("cannot delete container one that is not stopped: running"), "{refused}");
    ok(&dray.run(&["delete", "--force", "one"]));
    assert_eq!(run.wait().unwrap().code(), Some(137));
    nothing_left(&dray);
}

#[test]
fn the_terminals_master_goes_to_the_console_socket() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("tty; read line; echo got $line; exec sleep 1000");
    let bundle = bundle.edit(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({"width": 91, "height": 31});
    });
    let path = dray.scratch().dir().join("tty");
    let listener = UnixListener::bind(&path).unwrap();
    for verb in [["create", "--console-socket"].as_slice(), &["run", "-d", "--console-socket"]] {
        let mut command = dray.command(verb);
        ok(&dray.finish(command.arg(&path).arg("one").current_dir(bundle.dir())));
        let (name, master) = receive(&listener);
        assert_eq!(name, "/dev/ptmx", "as runc names it");
        let size = rustix::termios::tcgetwinsize(&master).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (91, 31));
        if verb[0] == "create" {
            ok(&dray.run(&["start", "one"]));
        }
        rustix::io::write(&master, b"words\n").unwrap();
        let (mut seen, mut master) = (String::new(), File::from(master));
        wait_until("its answer", || {
            let mut buffer = [0; 256];
            let length = master.read(&mut buffer).unwrap();
            seen.push_str(&text(&buffer[..length]));
            seen.contains("got words")
        });
        assert!(seen.contains("/dev/pts/0"), "{seen}");
        ok(&dray.run(&["delete", "-f", "one"]));
    }
    nothing_left(&dray);
}

#[test]
fn a_terminal_and_a_console_socket_go_together() {
    let dray = Dray::new();
    let plain = sleeping(&dray, "plain");
    let terminal = sleeping(&dray, "tty").edit(|spec| spec["process"]["terminal"] = json!(true));
    let socket = dray.scratch().dir().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap();
    for verb in [["create"].as_slice(), &["run", "-d"]] {
        let args = |more: &[&'static str]| [verb, more].concat();
        let error = fails(&dray.run_in(terminal.dir(), &args(&["tty"])), 1);
        assert!(error.contains("cannot allocate tty"), "{error}");
        let mut command = dray.command(verb);
        command.args(["--console-socket", socket, "plain"]).current_dir(plain.dir());
        let error = fails(&dray.finish(&mut command), 1);
        assert!(error.contains("cannot use console socket"), "{error}");
    }
    let mut command = dray.command(&["run", "--console-socket", socket, "tty"]);
    let error = fails(&dray.finish(command.current_dir(terminal.dir())), 1);
    assert!(error.contains("cannot use console socket"), "{error}");
    let mut command = dray.command(&["create", "--console-socket", "/nowhere/at/all", "tty"]);
    let error = fails(&dray.finish(command.current_dir(terminal.dir())), 1);
    assert!(error.contains("--console-socket: connect /nowhere/at/all"), "{error}");
    nothing_left(&dray);
}

#[test]
fn a_foreground_run_is_in_the_callers_terminal() {
    let dray = Dray::new();
    let script = "echo ready; while read line; do test \"$line\" = end && exit 9; stty size; done";
    let bundle = dray.bundle("one").script(script).edit(|spec| spec["process"]["terminal"] = json!(true));
    let run = dray.command(&["run", "-b", bundle.dir().to_str().unwrap(), "one"]);
    // The shell tells what has become of its terminal.
    let mut shell = Command::new("sh");
    let quoted: Vec<_> =
        std::iter::once(run.get_program()).chain(run.get_args()).map(|arg| arg.to_str().unwrap()).collect();
    let script = format!(
        "stty -a | grep -o '.isig\\|.icanon\\|.echo ' > $0.before; {}; echo status=$?; stty -a | grep -o '.isig\\|.icanon\\|.echo ' > $0.after; echo over",
        quoted.join(" ")
    );
    let modes = dray.scratch().dir().join("modes");
    shell.args(["-c", &script, modes.to_str().unwrap()]);
    let mut client = Client::new(&shell);
    client.shows("ready");
    client.has_size((101, 41), "size\n", "41 101");
    client.types("end\n");
    client.shows("status=9");
    client.shows("over");
    client.ends();
    let mode = |name: &str| fs::read_to_string(modes.with_extension(name)).unwrap();
    assert!(mode("before").contains("icanon"), "{}", mode("before"));
    assert_eq!(mode("after"), mode("before"));
    nothing_left(&dray);
}

/// The caller takes one line and no more (`| head -1`): the terminal is hung up, the program ends, and so does the run.
#[test]
fn a_terminal_whose_caller_takes_no_more_is_hung_up() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").args(&["yes", "abcdefgh"]).edit(|spec| spec["process"]["terminal"] = json!(true));
    let mut command = dray.command(&["run", "-b", bundle.dir().to_str().unwrap(), "one"]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 10];
    run.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"abcdefgh\r\n");
    let ended = await_exit(&open_pid(run.id() as i32).unwrap(), patience(Duration::from_secs(20)));
    if ended.is_err() {
        let _ = run.kill();
    }
    let output = run.wait_with_output().unwrap();
    ended.unwrap();
    // Its write has failed: as the first of a pid namespace it is not ended by SIGHUP.
    fails(&output, 1);
    nothing_left(&dray);
}

/// Raw: what is typed is the container's terminal's to echo, and ^C its program's.
#[test]
fn control_characters_are_the_containers() {
    let dray = Dray::new();
    let bundle =
        dray.bundle("one").script("trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done");
    let bundle = bundle.edit(|spec| spec["process"]["terminal"] = json!(true));
    let run = dray.command(&["run", "-b", bundle.dir().to_str().unwrap(), "one"]);
    let mut client = Client::new(&run);
    client.shows("ready");
    client.types("\x03");
    client.shows("interrupted");
    assert_eq!(client.ends(), Some(3));
    nothing_left(&dray);
}

#[test]
fn the_pidfd_goes_to_its_socket() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    let path = dray.scratch().dir().join("pidfd");
    let listener = UnixListener::bind(&path).unwrap();
    let args = ["run", "-d", "--pidfd-socket", path.to_str().unwrap(), "one"];
    ok(&dray.run_in(bundle.dir(), &args));
    let (name, pidfd) = receive(&listener);
    assert_eq!(name, "standard");
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    assert!(info.contains(&format!("Pid:\t{}\n", dray.pid("one"))), "{info}");
    pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    dies(dray.pid("one"));
}

/// Whoever waits for a file finds the pid in it; where it cannot be written there is no container.
#[test]
fn a_pid_file_that_cannot_be_written_is_the_end_of_the_container() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    for verb in [["create"].as_slice(), &["run"], &["run", "-d"]] {
        let mut command = dray.command(verb);
        let output = dray.finish(command.args(["--pid-file", "/nowhere/pid", "one"]).current_dir(bundle.dir()));
        let error = fails(&output, 1);
        assert!(error.contains("--pid-file"), "{error}");
        nothing_left(&dray);
    }
}

/// Runs a shell that has what `script` opens, and becomes `dray` with these arguments.
fn with_descriptors(dray: &Dray, bundle: &Bundle, script: &str, args: &[&str]) -> std::process::Output {
    let command = dray.command(args);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{script}; exec \"$0\" \"$@\"")).arg(command.get_program()).args(command.get_args());
    dray.finish(shell.current_dir(bundle.dir()).stdin(Stdio::null()))
}

#[test]
fn preserved_descriptors_are_the_containers() {
    let dray = Dray::new();
    let file = dray.scratch().dir().join("file");
    fs::write(&file, "from the host\n").unwrap();
    let bundle =
        dray.bundle("one").script("cat <&4; cat <&5 2>&1 | head -c 0; test -e /proc/self/fd/5 && echo five; true");
    let open = format!("exec 3<{0} 4<{0} 5<{0}", file.display());
    let output = with_descriptors(&dray, &bundle, &open, &["run", "--preserve-fds", "2", "one"]);
    assert_eq!(ok(&output), "from the host\n", "the third was not asked for");
    let output = with_descriptors(&dray, &bundle, &open, &["run", "one"]);
    assert!(!text(&output.stdout).contains("host"), "none was asked for: {}", text(&output.stdout));
    let error = fails(&with_descriptors(&dray, &bundle, &open, &["run", "--preserve-fds", "9", "one"]), 1);
    assert!(error.contains("unable to stat preserved-fd 3 (of 9)"), "{error}");
    nothing_left(&dray);
    // Through a created container's wait too.
    let output = with_descriptors(&dray, &bundle, &open, &["create", "--preserve-fds", "2", "one"]);
    ok(&output);
    let pid = dray.pid("one");
    assert_eq!(fs::read_link(format!("/proc/{pid}/fd/4")).unwrap(), file);
    assert_ne!(fs::read_link(format!("/proc/{pid}/fd/5")).ok(), Some(file));
}

#[test]
fn the_sockets_that_systemd_has_opened_are_the_containers() {
    let dray = Dray::new();
    let file = dray.scratch().dir().join("file");
    fs::write(&file, "from the host\n").unwrap();
    let bundle = dray.bundle("one").script("echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; cat <&3");
    let open = format!("exec 3<{} 4</dev/null; export LISTEN_FDS=1 LISTEN_FDNAMES=web LISTEN_PID=", file.display());
    let ours = format!("{open}$$");
    assert_eq!(ok(&with_descriptors(&dray, &bundle, &ours, &["run", "one"])), "1 1 web\nfrom the host\n");
    let both = ["run", "--preserve-fds", "1", "one"];
    assert_eq!(ok(&with_descriptors(&dray, &bundle, &ours, &both)), "1 1 web\nfrom the host\n");
    let output = with_descriptors(&dray, &bundle, &format!("{open}1"), &["run", "one"]);
    assert!(!text(&output.stdout).contains("host"), "another's: {}", text(&output.stdout));
}

#[test]
fn kill_takes_names_and_numbers() {
    let dray = Dray::new();
    let traps = "trap 'echo hup >> /got' HUP; trap 'echo usr2 >> /got' USR2; trap 'echo term >> /got' TERM";
    let bundle = dray.bundle("one").script(&format!("{traps}; echo on > /got; while :; do sleep 0.05; done"));
    dray.started(&bundle);
    wait_until("its traps", || inside(&bundle, "got") == "on\n");
    let mut got = String::from("on\n");
    for (args, line) in [(["HUP"].as_slice(), "hup\n"), (&["SIGUSR2"], "usr2\n"), (&["1"], "hup\n"), (&[], "term\n")] {
        ok(&dray.run(&[["kill", "one"].as_slice(), args].concat()));
        got.push_str(line);
        wait_until(line, || inside(&bundle, "got") == got);
    }
    let error = fails(&dray.run(&["kill", "one", "NOPE"]), 1);
    assert!(error.contains("unknown signal \"NOPE\""), "{error}");
    let pid = dray.pid("one");
    ok(&dray.run(&["kill", "one", "kill"]));
    dies(pid);
    let error = fails(&dray.run(&["kill", "one"]), 1);
    assert!(error.contains("container not running"), "{error}");
    let error = fails(&dray.run(&["kill", "none"]), 1);
    assert!(error.contains("container does not exist"), "{error}");
}

#[test]
fn kill_all_reaches_every_process() {
    let dray = Dray::new();
    let child = "trap 'echo child >> /got' USR1; echo on >> /got; while :; do sleep 0.05; done";
    let script = format!("trap 'echo init >> /got' USR1; sh -c \"{child}\" & while :; do sleep 0.05; done");
    let bundle = dray.bundle("one").script(&script);
    dray.started(&bundle);
    wait_until("the child", || inside(&bundle, "got") == "on\n");
    ok(&dray.run(&["kill", "one", "USR1"]));
    wait_until("init", || inside(&bundle, "got") == "on\ninit\n");
    ok(&dray.run(&["kill", "--all", "one", "USR1"]));
    wait_until("both", || {
        let got = inside(&bundle, "got");
        got.matches("init").count() == 2 && got.matches("child").count() == 1
    });
}

/// Without a pid namespace of its own nothing but the cgroup holds it together.
#[test]
fn kill_all_of_a_container_that_has_stopped_is_no_error() {
    let dray = Dray::new();
    dray.started(&sleeping(&dray, "one"));
    ok(&dray.run(&["kill", "one", "KILL"]));
    wait_until("its end", || text(&dray.run(&["state", "one"]).stdout).contains("stopped"));
    for signal in ["0", "KILL", "TERM"] {
        ok(&dray.run(&["kill", "--all", "one", signal]));
    }
    fails(&dray.run(&["kill", "one", "TERM"]), 1);
    ok(&dray.run(&["delete", "one"]));
    nothing_left(&dray);
}

#[test]
fn kill_and_delete_end_all_of_a_container_without_a_pid_namespace() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("sleep 1000 & echo $! > /child; exec sleep 1000").without_namespace("pid");
    dray.started(&bundle);
    wait_until("the child", || inside(&bundle, "child").ends_with('\n'));
    let child: i32 = inside(&bundle, "child").trim().parse().unwrap();
    ok(&dray.run(&["kill", "one", "KILL"]));
    dies(child);
    ok(&dray.run(&["delete", "one"]));
    dray.started(&bundle);
    wait_until("the child", || {
        inside(&bundle, "child").trim().parse().is_ok_and(|pid: i32| pid != child && alive(pid))
    });
    let child: i32 = inside(&bundle, "child").trim().parse().unwrap();
    // Init alone: what it has left is killed by delete.
    kill_process(Pid::from_raw(dray.pid("one")).unwrap(), Signal::KILL).unwrap();
    dies(dray.pid("one"));
    ok(&dray.run(&["delete", "one"]));
    dies(child);
    nothing_left(&dray);
}

#[test]
fn delete_is_for_what_has_stopped_or_not_started() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    created(&dray, &bundle, &[]);
    let pid = dray.pid("one");
    ok(&dray.run(&["delete", "one"]));
    dies(pid);
    nothing_left(&dray);
    dray.started(&bundle);
    let pid = dray.pid("one");
    let error = fails(&dray.run(&["delete", "one"]), 1);
    assert!(error.contains("cannot delete container one that is not stopped: running"), "{error}");
    assert!(alive(pid));
    ok(&dray.run(&["delete", "--force", "one"]));
    dies(pid);
    nothing_left(&dray);
    let error = fails(&dray.run(&["delete", "one"]), 1);
    assert!(error.contains("container does not exist"), "{error}");
    ok(&dray.run(&["delete", "-f", "one"]));
}

/// A directory without a state, of a create that did not come so far.
#[test]
fn delete_takes_away_what_an_aborted_create_has_left() {
    let dray = Dray::new();
    fs::create_dir_all(dray.state_dir("one")).unwrap();
    fs::write(dray.state_dir("one").join(".state.json.new"), "{").unwrap();
    ok(&dray.run(&["delete", "one"]));
    nothing_left(&dray);
    fails(&dray.run(&["delete", "one"]), 1);
}

#[test]
fn hooks_are_run_by_the_verb_whose_they_are() {
    let dray = Dray::new();
    let log = dray.scratch().dir().join("hooks");
    let says = |what: &str| hook(&format!("cat > {0}.{what}; echo {what} >> {0}", log.display()));
    let bundle = sleeping(&dray, "one").edit(|spec| {
        spec["hooks"] = json!({
            "createRuntime": says("createRuntime"),
            "createContainer": says("createContainer"),
            "startContainer": hook("cat > /state; echo startContainer > /hook"),
            "poststart": says("poststart"),
            "poststop": says("poststop"),
        });
    });
    let so_far = || fs::read_to_string(&log).unwrap();
    created(&dray, &bundle, &[]);
    assert_eq!(so_far(), "createRuntime\ncreateContainer\n");
    assert_eq!(inside(&bundle, "hook"), "");
    ok(&dray.run(&["start", "one"]));
    assert_eq!(inside(&bundle, "hook"), "startContainer\n");
    assert_eq!(so_far(), "createRuntime\ncreateContainer\npoststart\n");
    let state = |what: &str| -> Value { serde_json::from_slice(&fs::read(log.with_extension(what)).unwrap()).unwrap() };
    let pid = dray.pid("one");
    assert_eq!((&state("poststart")["pid"], &state("poststart")["status"]), (&json!(pid), &json!("running")));
    ok(&dray.run(&["delete", "-f", "one"]));
    assert_eq!(so_far(), "createRuntime\ncreateContainer\npoststart\npoststop\n");
    assert_eq!(state("poststop")["status"], json!("stopped"));
    nothing_left(&dray);
}

#[test]
fn a_hook_of_start_that_fails_ends_the_container() {
    let dray = Dray::new();
    for point in ["startContainer", "poststart"] {
        let bundle = sleeping(&dray, point).edit(|spec| spec["hooks"][point] = hook("echo because >&2; exit 3"));
        created(&dray, &bundle, &[]);
        let pid = dray.pid(point);
        let error = fails(&dray.run(&["start", point]), 1);
        assert!(error.contains(point) && error.contains("because"), "{error}");
        dies(pid);
        ok(&dray.run(&["delete", point]));
    }
    nothing_left(&dray);
}

/// Whatever is wrong with a bundle, and whoever asks: an error, in words, and no container.
#[test]
fn a_bundle_that_cannot_be_is_refused_and_leaves_nothing() {
    let dray = Dray::new();
    let good = || {
        sleeping(&dray, &format!("b{}", fs::read_dir(dray.scratch().dir().join("bundles")).map_or(0, Iterator::count)))
    };
    let none = good();
    fs::remove_file(none.dir().join("config.json")).unwrap();
    let bad = good();
    bad.write_config(b"{\"ociVersion\": \"1.0.2\", ");
    let empty = good();
    empty.write_config(b"");
    let rootless = good().edit(|spec| spec["root"]["path"] = json!("nowhere"));
    let programless = good().args(&["nothing-of-that-name"]);
    let pathless = good().args(&["/nothing/of/that/name"]);
    let denied = good().args(&["/etc/passwd"]);
    let hooked = good().edit(|spec| spec["hooks"] = json!({"createRuntime": hook("echo no >&2; exit 1")}));
    let inside = good().edit(|spec| spec["hooks"] = json!({"createContainer": hook("exit 1")}));
    let limited = good().edit(|spec| spec["linux"]["resources"]["cpu"] = json!({"cpus": "100000"}));
    let mounted =
        good().mount(json!({"destination": "/x", "type": "bind", "source": "/nowhere/at/all", "options": ["bind"]}));
    let escaping = good().mount(json!({"destination": "/../../x", "type": "nosuchfs", "source": "x"}));
    let wrong = [
        (&none, "no such file or directory"),
        (&bad, "config.json"),
        (&empty, "config.json"),
        (&rootless, "nowhere"),
        (&programless, "executable file not found in $PATH"),
        (&pathless, "no such file or directory"),
        (&denied, "permission denied"),
        (&hooked, "createRuntime"),
        (&inside, "createContainer"),
        (&limited, "cpuset"),
        (&mounted, "/nowhere/at/all"),
        (&escaping, "nosuchfs"),
    ];
    for (bundle, word) in wrong {
        for verb in [["create"].as_slice(), &["run"], &["run", "-d"]] {
            let output = dray.run_in(bundle.dir(), &[verb, &[&bundle.id]].concat());
            let error = fails(&output, 1);
            assert!(error.lines().last().unwrap().starts_with("dray: ") && error.contains(word), "{word}: {error}");
            nothing_left(&dray);
        }
    }
    let bundle = good();
    for id in ["", "..", "a/b", "a b"] {
        let error = fails(&dray.run_in(bundle.dir(), &["create", id]), 1);
        assert!(error.contains("invalid id format"), "{error}");
    }
    nothing_left(&dray);
}

/// Who hands a listener its descriptor has to be there when the program starts.
#[test]
fn a_listener_for_seccomp_is_no_creates() {
    let dray = Dray::new();
    let notify = json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"});
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/none", "syscalls": [notify]});
    let bundle = sleeping(&dray, "one").edit(|spec| spec["linux"]["seccomp"] = profile);
    let error = fails(&dray.run_in(bundle.dir(), &["create", "one"]), 1);
    assert!(error.contains("linux.seccomp.listenerPath") && error.contains("run does it"), "{error}");
    // That has looked for it.
    let error = fails(&dray.run_in(bundle.dir(), &["run", "one"]), 1);
    assert!(error.contains("/run/none"), "{error}");
    nothing_left(&dray);
}

/// A create in the midst of a hook that does not end.
fn hanging(dray: &Dray, id: &str) -> (Bundle, Child) {
    let mark = dray.scratch().dir().join("hanging");
    let _ = fs::remove_file(&mark);
    let script = format!("touch {}; exec sleep 1000", mark.display());
    let bundle = sleeping(dray, id).edit(|spec| spec["hooks"] = json!({"createRuntime": hook(&script)}));
    let child = dray.command(&["create", id]).current_dir(bundle.dir()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the hook", || mark.exists());
    (bundle, child)
}

#[test]
fn a_create_that_is_told_to_end_undoes_all() {
    let dray = Dray::new();
    let (_bundle, mut create) = hanging(&dray, "one");
    kill_process(Pid::from_child(&create), Signal::TERM).unwrap();
    assert_eq!(create.wait().unwrap().code(), Some(1));
    nothing_left(&dray);
}

#[test]
fn a_create_that_hangs_is_ended_by_a_forced_delete() {
    let dray = Dray::new();
    let (_bundle, mut create) = hanging(&dray, "one");
    ok(&dray.run(&["delete", "--force", "one"]));
    assert_eq!(create.wait().unwrap().code(), Some(1));
    nothing_left(&dray);
}

/// A created container, and a start of it in the midst of a hook that does not end.
fn hanging_start(dray: &Dray, id: &str, point: &str) -> (Bundle, Child) {
    let mark = dray.scratch().dir().join(format!("{id}.hangs"));
    let script = match point {
        "startContainer" => "touch /hangs; exec sleep 1000".to_owned(),
        _ => format!("touch {}; exec sleep 1000", mark.display()),
    };
    let bundle = sleeping(dray, id).edit(|spec| spec["hooks"][point] = hook(&script));
    created(dray, &bundle, &[]);
    let child = dray.command(&["start", id]).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the hook", || mark.exists() || bundle.rootfs_dir().join("hangs").exists());
    (bundle, child)
}

/// It ends by itself, in less time than a lock is waited for by those who may not do without.
#[track_caller]
fn ends(child: &mut Child) -> Option<i32> {
    let mut status = None;
    let what = wait_for(child, &mut status);
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("it does not end: {what}");
    }
    status.unwrap().code()
}

fn wait_for(child: &mut Child, status: &mut Option<std::process::ExitStatus>) -> u32 {
    let deadline = std::time::Instant::now() + patience(Duration::from_secs(20));
    while status.is_none() && std::time::Instant::now() < deadline {
        *status = child.try_wait().unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    child.id()
}

#[test]
fn a_container_whose_start_hangs_can_be_killed() {
    let dray = Dray::new();
    let (_bundle, mut start) = hanging_start(&dray, "one", "startContainer");
    let pid = dray.pid("one");
    let killed = dray.run(&["kill", "one", "KILL"]);
    if !killed.status.success() {
        start.kill().unwrap();
    }
    ok(&killed);
    dies(pid);
    // Whether it was killed as its program, or just before, is not told apart.
    ends(&mut start);
    ok(&dray.run(&["delete", "one"]));
    nothing_left(&dray);
}

#[test]
fn a_container_whose_start_hangs_can_be_deleted() {
    let dray = Dray::new();
    for point in ["startContainer", "poststart"] {
        let (_bundle, mut start) = hanging_start(&dray, point, point);
        let deleted = dray.run(&["delete", "--force", point]);
        if !deleted.status.success() || point == "poststart" {
            start.kill().unwrap();
        }
        ok(&deleted);
        assert_eq!(ends(&mut start).is_some(), point != "poststart");
        nothing_left(&dray);
    }
}

#[test]
fn a_start_that_is_told_to_end_ends_its_container() {
    let dray = Dray::new();
    for (point, signal) in [("startContainer", Signal::TERM), ("poststart", Signal::INT)] {
        let (_bundle, mut start) = hanging_start(&dray, point, point);
        let pid = dray.pid(point);
        kill_process(Pid::from_child(&start), signal).unwrap();
        assert_eq!(ends(&mut start), Some(1));
        dies(pid);
        ok(&dray.run(&["delete", point]));
        nothing_left(&dray);
    }
}

/// What waits for others to let go of a container can be told not to.
#[test]
fn who_waits_for_a_container_can_be_told_to_end() {
    let dray = Dray::new();
    let (_bundle, mut start) = hanging_start(&dray, "one", "startContainer");
    for verb in [["delete"].as_slice(), &["start"], &["pause"], &["update", "--pids-limit", "9"]] {
        let mut child = dray.command(&[verb, &["one"]].concat()).stderr(Stdio::piped()).spawn().unwrap();
        // Its signals are blocked from its first moments on; before, it would end by this one too.
        std::thread::sleep(Duration::from_secs(1));
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(error.contains("given up at signal 15"), "{verb:?}: {error}");
    }
    kill_process(Pid::from_child(&start), Signal::TERM).unwrap();
    assert_eq!(ends(&mut start), Some(1));
}

/// Between the run's create and its program nobody else has anything to start, or to delete.
#[test]
fn a_start_beside_a_run_leaves_its_container_alone() {
    let dray = Dray::new();
    let script = "touch /hangs; while test ! -e /go; do sleep 0.05; done";
    let bundle = dray.bundle("one").args(&["sh", "-c", "exit 7"]);
    let bundle = bundle.edit(|spec| spec["hooks"]["startContainer"] = hook(script));
    let mut run = dray.command(&["run", "one"]).current_dir(bundle.dir()).spawn().unwrap();
    wait_until("the hook", || bundle.rootfs_dir().join("hangs").exists());
    let status = || -> Value { serde_json::from_str(&ok(&dray.run(&["state", "one"]))).unwrap() };
    assert_eq!(status()["status"], "creating");
    let started = dray.run(&["start", "one"]);
    let deleted = dray.run(&["delete", "one"]);
    let error = fails(&started, 1);
    assert!(error.contains("cannot start a container in the creating state"), "{error}");
    assert!(fails(&deleted, 1).contains("not stopped: creating"));
    fs::write(bundle.rootfs_dir().join("go"), "").unwrap();
    assert_eq!(ends(&mut run), Some(7));
    nothing_left(&dray);
}

/// What containerd asks a shim's binary to remove is not the command line's.
#[test]
fn the_action_delete_leaves_the_command_lines_containers_alone() {
    let dray = Dray::new();
    let namespace = dray.scratch().namespace().to_owned();
    let root = Path::new("/run/dray").join(&namespace);
    let run = |args: &[&str], dir: &Path| {
        let mut command = dray.plain();
        dray.finish(command.arg("--root").arg(&root).args(args).current_dir(dir))
    };
    let bundle = sleeping(&dray, "one");
    fs::write(bundle.dir().join("sandbox"), "pod").unwrap();
    ok(&run(&["run", "-d", "one"], bundle.dir()));
    let saved: Value = serde_json::from_slice(&fs::read(root.join("one/state.json")).unwrap()).unwrap();
    let pid = saved["init"]["pid"].as_i64().unwrap() as i32;
    let shim = |id: &str| {
        let mut command = Command::new(common::shim_binary());
        command.args(["-namespace", &namespace, "-id", id, "-address", "/nowhere", "-bundle"]);
        dray.finish(command.arg(dray.scratch().dir()).arg("delete").current_dir(dray.scratch().dir()))
    };
    for id in ["one", "pod"] {
        ok(&shim(id));
        assert!(alive(pid) && root.join("one").exists(), "{id}");
    }
    ok(&run(&["delete", "--force", "one"], bundle.dir()));
    assert!(!root.join("one").exists());
}

#[test]
fn a_create_that_is_killed_can_be_deleted() {
    let dray = Dray::new();
    let (bundle, mut create) = hanging(&dray, "one");
    let pid = dray.pid("one");
    create.kill().unwrap();
    create.wait().unwrap();
    dies(pid);
    let error = fails(&dray.run(&["start", "one"]), 1);
    assert!(error.contains("cannot start a container that has stopped"), "{error}");
    ok(&dray.run(&["delete", "one"]));
    nothing_left(&dray);
    drop(bundle);
}

/// At any moment of its way.
#[test]
fn a_create_that_is_killed_at_any_time_leaves_nothing_that_cannot_be_deleted() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    for round in 0..40 {
        let mut create = dray.command(&["create", "one"]).current_dir(bundle.dir()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(500 + 1500 * round));
        create.kill().unwrap();
        create.wait().unwrap();
        ok(&dray.run(&["delete", "--force", "one"]));
        nothing_left(&dray);
    }
}

/// CVE-2019-5736: what is still this program in a container is not the host's file.
#[test]
fn the_executable_is_sealed() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one");
    created(&dray, &bundle, &[]);
    let exe = format!("/proc/{}/exe", dray.pid("one"));
    let (sealed, host) = (fs::metadata(&exe).unwrap(), fs::metadata(common::shim_binary()).unwrap());
    assert_eq!(sealed.len(), host.len());
    assert_ne!((sealed.dev(), sealed.ino()), (host.dev(), host.ino()));
    let status = fs::read_to_string(format!("/proc/{}/status", dray.pid("one"))).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
}

/// Nobody but root looks into it, nor into what it has left of this program.
#[test]
fn what_waits_is_not_dumpable() {
    let dray = Dray::new();
    let bundle = sleeping(&dray, "one").edit(|spec| spec["process"]["user"] = json!({"uid": 1000, "gid": 1000}));
    created(&dray, &bundle, &[]);
    let owner = fs::metadata(format!("/proc/{}/environ", dray.pid("one"))).unwrap().uid();
    assert_eq!(owner, 0, "its /proc files would be its user's");
}

#[test]
fn the_session_keyring_is_its_own_unless_asked() {
    let dray = Dray::new();
    let exe = std::env::current_exe().unwrap();
    let inside = |id: &str, flags: &[&str]| {
        let bundle = dray
            .bundle(id)
            .mount(json!({"destination": "/exe", "type": "bind", "source": exe, "options": ["rbind", "ro"]}))
            .args(&["/exe", "--exact", "inside_the_container", "--ignored", "--nocapture"])
            .edit(|spec| spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("{INSIDE}=1"))));
        let mut command = dray.command(&["run"]);
        let output = ok(&dray.finish(command.args(flags).arg(id).current_dir(bundle.dir())));
        let said = output.lines().find_map(|line| line.split("keyring=").nth(1)).expect("a keyring");
        said.parse::<i64>().unwrap()
    };
    assert_eq!(inside("callers", &["--no-new-keyring"]), session_keyring());
    assert_ne!(inside("own", &[]), session_keyring());
}

const INSIDE: &str = "CLI_LIFE_INSIDE";

/// Not a test: what a container of the one above runs.
#[test]
#[ignore = "the program of another test's container"]
fn inside_the_container() {
    if std::env::var_os(INSIDE).is_some() {
        println!("keyring={}", session_keyring());
    }
}

fn session_keyring() -> i64 {
    // SAFETY: KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING, without making one: numbers only.
    unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }
}

#[test]
fn no_pivot_does_without_pivot_root() {
    let dray = Dray::new();
    let script = "ls / | head -1; cat /proc/self/mountinfo | wc -l";
    let bundle = dray.bundle("one").script(script);
    let pivoted = ok(&dray.run_in(bundle.dir(), &["run", "one"]));
    let moved = ok(&dray.run_in(bundle.dir(), &["run", "--no-pivot", "one"]));
    assert_eq!(pivoted.lines().next(), moved.lines().next());
    let trace = |flags: &[&str]| {
        let command = dray.command(&["run"]);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", "trace=pivot_root", "-o"]).arg(dray.scratch().dir().join("trace"));
        strace.arg(command.get_program()).args(command.get_args()).args(flags).arg("one").current_dir(bundle.dir());
        if strace.stdin(Stdio::null()).output().is_err() {
            common::skipped("no_pivot_does_without_pivot_root", "no strace");
            return None;
        }
        Some(fs::read_to_string(dray.scratch().dir().join("trace")).unwrap().contains("pivot_root("))
    };
    if let (Some(with), Some(without)) = (trace(&[]), trace(&["--no-pivot"])) {
        assert!(with && !without);
    }
}

/// Orphans of the container's are the run's to wait for, unless they are left to the caller.
#[test]
fn no_subreaper_leaves_orphans_to_the_caller() {
    let dray = Dray::new();
    for (flags, of_run) in [([].as_slice(), true), (&["--no-subreaper"], false)] {
        let script = "(sleep 1000 & echo $! > /orphan); exec sleep 1000";
        let id = if of_run { "of-run" } else { "left" };
        let bundle = dray.bundle(id).script(script).without_namespace("pid");
        let mut command = dray.command(&["run"]);
        let mut run = command.args(flags).arg(id).current_dir(bundle.dir()).spawn().unwrap();
        wait_until("the orphan", || {
            let pid = inside(&bundle, "orphan").trim().parse::<i32>();
            pid.is_ok_and(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n"))
        });
        let orphan: i32 = inside(&bundle, "orphan").trim().parse().unwrap();
        assert_eq!(stat(orphan, 4) == run.id().to_string(), of_run);
        ok(&dray.run(&["delete", "-f", id]));
        run.wait().unwrap();
    }
    nothing_left(&dray);
}

/// Where no root is said it is in the namespace of the command line, and found there.
#[test]
fn the_default_root_has_a_namespace_of_its_own() {
    let dray = Dray::new();
    let id = dray.scratch().namespace().to_owned();
    let bundle = sleeping(&dray, "bundle");
    let mut command = dray.plain();
    ok(&dray.finish(command.args(["run", "-d", &id]).current_dir(bundle.dir())));
    let state = Path::new("/run/dray/cli").join(&id);
    assert!(state.join("state.json").exists());
    ok(&dray.plain().args(["kill", &id, "KILL"]).output().unwrap());
    ok(&dray.plain().args(["delete", "--force", &id]).output().unwrap());
    assert!(!state.exists());
}

/// A shim has died, and its container has not.
#[test]
fn a_dead_shims_container_is_ours_to_kill_and_delete() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| bundle.args(&SLEEP)).await;
        world.create(&bundle, &common::stdio::Io::null()).await.unwrap();
        let pid = world.start("one", "").await.unwrap().pid as i32;
        let dray = Dray::new();
        let root = Path::new("/run/dray").join(world.scratch.namespace());
        let run = |args: &[&str]| {
            let mut command = dray.plain();
            command.arg("--root").arg(&root).args(args).output().unwrap()
        };
        world.kill_shim().await.unwrap();
        assert!(alive(pid));
        let error = fails(&run(&["delete", "one"]), 1);
        assert!(error.contains("not stopped: running"), "{error}");
        ok(&run(&["kill", "one", "KILL"]));
        dies(pid);
        ok(&run(&["delete", "one"]));
        assert_eq!(leftovers(&world.scratch), [""; 0]);
        assert!(!root.join("one").exists());
    });
}

/// A living one is asked: containerd hears of it.
#[test]
fn a_living_shim_is_asked() {
    block_on(async {
        let (world, bundle) = World::with("one", |bundle| bundle.args(&SLEEP)).await;
        world.create(&bundle, &common::stdio::Io::null()).await.unwrap();
        let pid = world.start("one", "").await.unwrap().pid as i32;
        let dray = Dray::new();
        let root = Path::new("/run/dray").join(world.scratch.namespace());
        let run = |args: &[&str]| {
            let mut command = dray.plain();
            command.arg("--root").arg(&root).args(args).output().unwrap()
        };
        let error = fails(&run(&["delete", "one"]), 1);
        assert!(error.contains("not stopped: running"), "{error}");
        ok(&run(&["kill", "one", "KILL"]));
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 137, "the shim has seen it");
        dies(pid);
        ok(&run(&["delete", "one"]));
        assert!(world.state("one", "").await.is_err(), "the shim has deleted it");
        assert_eq!(leftovers(&world.scratch).iter().filter(|left| !left.starts_with("shim")).count(), 0);
    });
}

/// Root of a user namespace alone, with cgroups of its own and without any.
fn lives_rootless() {
    let dray = Dray::new();
    let no_tty_group = |spec: &mut Value| {
        for mount in spec["mounts"].as_array_mut().unwrap() {
            mount["options"].as_array_mut().unwrap().retain(|option| option != "gid=5");
        }
    };
    let bundle = dray.bundle("one").script("cat /proc/self/uid_map; id -u; exit 7").edit(no_tty_group);
    let output = dray.run_in(bundle.dir(), &["run", "one"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("{}0\n", fs::read_to_string("/proc/self/uid_map").unwrap()));
    let bundle = sleeping(&dray, "two").edit(no_tty_group);
    created(&dray, &bundle, &[]);
    ok(&dray.run(&["start", "two"]));
    let pid = dray.pid("two");
    ok(&dray.run(&["kill", "two", "KILL"]));
    dies(pid);
    ok(&dray.run(&["delete", "two"]));
    nothing_left(&dray);
}

#[test]
fn a_life_of_the_rootless_without_cgroups() {
    rootless(Ids::One, Cgroups::Denied, lives_rootless);
}

#[test]
fn a_life_of_the_rootless_in_a_delegated_cgroup() {
    rootless(Ids::Many, Cgroups::Delegated, lives_rootless);
}

/// `--rootless` says whether cgroups that are not ours to write to are an error.
#[test]
fn rootless_decides_about_cgroups_that_are_denied() {
    rootless(Ids::One, Cgroups::Denied, || {
        let dray = Dray::new();
        let bundle = dray.bundle("one").args(&["true"]).edit(|spec| {
            for mount in spec["mounts"].as_array_mut().unwrap() {
                mount["options"].as_array_mut().unwrap().retain(|option| option != "gid=5");
            }
        });
        let run = |when: &str| dray.run_in(bundle.dir(), &["--rootless", when, "run", "one"]);
        ok(&run("true"));
        ok(&run("auto"));
        let error = fails(&run("false"), 1);
        assert!(error.contains("cgroup"), "{error}");
        nothing_left(&dray);
    });
}

#[test]
fn who_is_not_root_is_told_so() {
    let dray = Dray::new();
    let bundle = dray.bundle("one");
    let command = dray.command(&["run", "-b", bundle.dir().to_str().unwrap(), "one"]);
    fs::set_permissions(dray.scratch().dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut su = Command::new("setpriv");
    su.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    let error = fails(&dray.finish(&mut su), 1);
    assert!(error.contains("it must be run by root"), "{error}");
    nothing_left(&dray);
}

#[test]
fn systemd_makes_the_cgroup_where_it_is_asked() {
    const NAME: &str = "systemd_makes_the_cgroup_where_it_is_asked";
    let dray = Dray::new();
    let unit = format!("dray-test-{}", std::process::id());
    let bundle = sleeping(&dray, "one");
    let bundle = bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(format!("system.slice:{unit}:one")));
    let output = dray.run_in(bundle.dir(), &["--systemd-cgroup", "run", "-d", "one"]);
    if !Path::new("/run/systemd/system").is_dir() {
        let error = fails(&output, 1);
        assert!(error.contains("systemd"), "{error}");
        nothing_left(&dray);
        return common::skipped(NAME, "systemd does not run here: only that it is refused");
    }
    ok(&output);
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", dray.pid("one"))).unwrap();
    assert!(cgroup.contains(&format!("/system.slice/{unit}-one.scope")), "{cgroup}");
    let is_active = || {
        let unit = format!("{unit}-one.scope");
        Command::new("systemctl").args(["is-active", "--quiet", &unit]).status().unwrap().success()
    };
    assert!(is_active());
    ok(&dray.run(&["delete", "-f", "one"]));
    assert!(!is_active());
    nothing_left(&dray);
}

/// The root mistyped, or the id: what lies there is somebody's.
#[test]
fn delete_takes_nothing_that_is_no_containers() {
    let dray = Dray::new();
    let home = dray.scratch().dir().join("home");
    fs::create_dir_all(home.join("data/sub")).unwrap();
    for id in [&["data"][..], &["--force", "data"]] {
        let args = [&["--root", home.to_str().unwrap(), "delete"], id].concat();
        let error = fails(&dray.plain().args(&args).output().unwrap(), 1);
        assert!(error.contains("container data") && error.contains("not a container's directory"), "{error}");
    }
    assert!(home.join("data/sub").is_dir());
}

#[test]
fn a_wrong_flag_is_told_once() {
    let dray = Dray::new();
    let error = fails(&dray.run(&["create", "--nonsense", "one"]), 1);
    assert!(error.starts_with("dray: unexpected argument"), "{error}");
}

#[test]
fn errors_are_in_the_log_too() {
    let dray = Dray::new();
    let log = dray.scratch().dir().join("log");
    let args = ["--log", log.to_str().unwrap(), "--log-format", "json", "start", "none"];
    let error = fails(&dray.run(&args), 1);
    let line: Value = serde_json::from_str(fs::read_to_string(&log).unwrap().trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(error, format!("dray: {}\n", line["msg"].as_str().unwrap()));
}
