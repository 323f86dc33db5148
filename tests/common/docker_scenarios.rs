//! What every client with docker's command line is to do with containers of ours: `docker` and `nerdctl` go through it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use super::containerd::{eventually, text};
use super::docker_cli::{Cli, sh};
use super::pty::Client;

/// Hands the names of the scenarios here, and of `$more`, which not every client passes, to the macro `$tests`, which makes a
/// test of each.
#[macro_export]
macro_rules! each_scenario {
    ($tests:ident $($more:ident)*) => {
        $tests! {
            run_prints_the_output_and_returns_the_status
            run_passes_stdin_on_to_its_end
            logs_of_a_detached_container
            run_in_a_terminal
            exec_in_a_terminal
            exec_has_the_user_directory_and_environment_it_asks_for
            stop_lets_it_end_by_itself_or_kills_it
            kill_sends_the_signal_that_is_asked_for
            networks_none_and_the_hosts
            $($more)*
        }
    };
}

/// Says when it is ready, and what it does about SIGTERM. `sleep` in the background: a trap waits for the foreground.
const HANDLES_TERM: &str = "trap 'echo told; exit 42' TERM; echo ready; sleep 1000 & while :; do wait; done";
/// Says its size with what it is told.
const SAYS_ITS_SIZE: &str = "trap 'echo caught' INT; tty; test -t 0 && test -t 1 && test -t 2 && echo terminals
    while :; do read line && echo got $line $(stty size) && [ $line = end ] && exit 9; done";

pub fn run_prints_the_output_and_returns_the_status(cli: &Cli) {
    let output = cli.run(&[], &sh("echo out; echo err >&2; exit 7"));
    assert_eq!((output.status.code(), &*text(&output.stdout), &*text(&output.stderr)), (Some(7), "out\n", "err\n"));
    assert_eq!(cli.run_ok(&[], &["seq", "20000"]).lines().count(), 20000);
    assert_eq!(
        cli.run(&[], &sh("kill -9 $$; sleep 1; exit 1")).status.code(),
        Some(1),
        "init cannot be killed from within"
    );
    assert_eq!(cli.run_ok(&["--env", "A=b c", "--workdir", "/tmp"], &sh("echo $A; pwd")), "b c\n/tmp\n");
}

pub fn run_passes_stdin_on_to_its_end(cli: &Cli) {
    let mut run = cli.run_attached(&["--interactive"], &sh("wc -c; echo end"));
    let mut stdin = run.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&[b'x'; 1_000_000]).unwrap());
    let output = run.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!((output.status.code(), &*text(&output.stdout)), (Some(0), "1000000\nend\n"), "{output:?}");
}

pub fn logs_of_a_detached_container(cli: &Cli) {
    let script = "echo one; echo two >&2; while ! test -e /go; do sleep 0.05; done; echo three";
    let container = cli.detached("logs", &[], &sh(script));
    assert!(eventually(|| container.logs() == "one\n"));
    let both = cli.call(&["logs", "logs"]);
    assert_eq!((&*text(&both.stdout), &*text(&both.stderr)), ("one\n", "two\n"));
    let mut follower = cli.bounded(&["logs", "--follow", "logs"]);
    let mut follower =
        follower.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("one"));
    container.exec_ok(&[], &["touch", "/go"]);
    assert_eq!((lines.next().as_deref(), lines.next()), (Some("three"), None));
    assert!(follower.wait().unwrap().success());
    assert_eq!(container.ok(&["wait"]), "0\n");
    assert_eq!(container.logs(), "one\nthree\n");
    container.remove();
}

pub fn run_in_a_terminal(cli: &Cli) {
    let args = cli.run_args(&["--rm", "--interactive", "--tty", "--name", "terminal"], &["sh", "-c", SAYS_ITS_SIZE]);
    let mut run = Client::new(&cli.command(&args));
    run.shows("/dev/pts/0\r");
    run.shows("terminals\r");
    run.has_size((91, 37), "hello\r", "got hello 37 91\r");
    run.types("\x03");
    run.shows("caught\r");
    run.types("end\r");
    assert_eq!(run.ends(), Some(9));
    run.shows("got end 37 91\r");
}

pub fn exec_in_a_terminal(cli: &Cli) {
    let container = cli.detached("exec-tty", &[], &["sleep", "1000"]);
    let mut exec =
        Client::new(&cli.command(&["exec", "--interactive", "--tty", "exec-tty", "sh", "-c", SAYS_ITS_SIZE]));
    exec.shows("/dev/pts/0\r");
    exec.shows("terminals\r");
    exec.has_size((77, 33), "hello\r", "got hello 33 77\r");
    exec.types("\x03");
    exec.shows("caught\r");
    exec.types("end\r");
    assert_eq!(exec.ends(), Some(9));
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
    container.remove();
}

pub fn exec_has_the_user_directory_and_environment_it_asks_for(cli: &Cli) {
    let container = cli.detached("exec", &["--env", "A=run"], &["sleep", "1000"]);
    assert_eq!(container.exec_ok(&[], &sh("echo $A; id -u; pwd")), "run\n0\n/\n");
    let options = ["--env", "A=exec", "--user", "1000:2000", "--workdir", "/tmp"];
    assert_eq!(container.exec_ok(&options, &sh("echo $A; id -u; id -g; pwd")), "exec\n1000\n2000\n/tmp\n");
    let output = container.exec(&[], &sh("echo out; echo err >&2; exit 9"));
    assert_eq!((output.status.code(), &*text(&output.stdout), &*text(&output.stderr)), (Some(9), "out\n", "err\n"));
    assert_eq!(container.exec(&[], &sh("kill -9 $$")).status.code(), Some(137));
    let mut cat = cli.bounded(&["exec", "--interactive", "exec", "cat"]);
    let mut cat = cat.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert_eq!(text(&cat.wait_with_output().unwrap().stdout), "through\n");
    // It is in the container: the same namespaces, the same cgroup.
    for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let link = format!("/proc/self/ns/{namespace}");
        let init = std::fs::read_link(format!("/proc/{}/ns/{namespace}", container.pid())).unwrap();
        assert_eq!(Path::new(container.exec_ok(&[], &["readlink", &link]).trim()), init);
    }
    let cgroup = |of: &str| container.exec_ok(&[], &["cat", &format!("/proc/{of}/cgroup")]);
    assert_eq!(cgroup("self"), cgroup("1"));
    container.remove();
}

pub fn stop_lets_it_end_by_itself_or_kills_it(cli: &Cli) {
    let polite = cli.ready("polite", &[], &sh(HANDLES_TERM));
    polite.ok(&["stop", "-t", "60"]);
    assert_eq!(polite.inspect("{{.State.Status}} {{.State.ExitCode}}"), "exited 42");
    assert_eq!(polite.logs(), "ready\ntold\n");
    polite.remove();
    let deaf = cli.ready("deaf", &[], &sh("trap '' TERM; echo ready; while :; do sleep 0.1; done"));
    deaf.ok(&["stop", "-t", "1"]);
    assert_eq!(deaf.inspect("{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    deaf.remove();
}

pub fn kill_sends_the_signal_that_is_asked_for(cli: &Cli) {
    let script = "trap 'echo usr1' USR1; trap 'exit 5' HUP; echo ready; while :; do sleep 0.05; done";
    let container = cli.ready("kill", &[], &sh(script));
    container.ok(&["kill", "--signal", "USR1"]);
    assert!(eventually(|| container.logs() == "ready\nusr1\n"), "{}", container.logs());
    container.ok(&["kill", "--signal", "HUP"]);
    assert_eq!(container.ok(&["wait"]), "5\n");
    container.ok(&["start"]);
    assert!(eventually(|| container.logs().matches("ready").count() == 2));
    container.ok(&["kill"]);
    assert_eq!(container.ok(&["wait"]), "137\n");
    container.remove();
}

pub fn stats_tell_what_it_uses(cli: &Cli) {
    // 8 MiB in a shell's variable.
    let script = "x=$(head -c 8388608 /dev/zero | tr '\\0' x); echo ready; sleep 1000; true";
    let container = cli.ready("stats", &[], &sh(script));
    let line = cli.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "stats"]);
    let number: String = line.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let used: f64 = number.parse().unwrap_or_else(|e| panic!("{line:?}: {e}"));
    assert!((8.0..1000.0).contains(&used) && line.starts_with(&format!("{number}MiB / ")), "{line:?}");
    // The shell, and the sleep that it waits for.
    assert!(line.ends_with(" 2\n"), "{line:?}");
    container.remove();
}

pub fn networks_none_and_the_hosts(cli: &Cli) {
    let links = |output: String| {
        output
            .lines()
            .filter(|line| line.contains(": <"))
            .map(|line| line.split(": ").nth(1).unwrap().to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(links(cli.run_ok(&["--network", "none"], &["ip", "link"])).first().map(String::as_str), Some("lo"));
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    let seen =
        |network: &str| cli.run_ok(&["--network", network], &["readlink", "/proc/self/ns/net"]).trim().to_string();
    assert_eq!(Path::new(&seen("host")), host);
    assert_ne!(Path::new(&seen("none")), host);
}
