//! Terminals of containers and execs: by the task service, and by ctr in a terminal of its own.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::containerd::Containerd;
use common::driver::Shim;
use common::pty::Client;
use common::stdio::Io;
use common::world::{SOON, World, descriptors, refused, until};
use containerd_shim_protos::api::Status;
use serde_json::json;
use ttrpc::Code;

fn terminal(bundle: Bundle) -> Bundle {
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true))
}

fn sleeping(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"])
}

/// Runs a script in a terminal of a running container's; returns the exit status and the output.
async fn exec_script(world: &World, bundle: &Bundle, exec: &str, script: &str) -> (u32, String) {
    let mut io = Io::terminal(&world.scratch, exec);
    let process = bundle.process(&["sh", "-c", script]);
    run_exec(world, &bundle.id, exec, &process, &mut io).await
}

/// The output is read before Delete, with which what nobody has begun to read is gone.
async fn run_exec(world: &World, id: &str, exec: &str, process: &serde_json::Value, io: &mut Io) -> (u32, String) {
    world.exec(id, exec, process, io).await.unwrap();
    world.start(id, exec).await.unwrap();
    let status = ended(world, id, exec).await;
    let output = io.stdout(SOON).await.unwrap();
    world.delete(id, exec).await.unwrap();
    (status, output)
}

/// Starts a script in a terminal; returns when it says "ready".
async fn start_script(world: &World, bundle: &Bundle, exec: &str, script: &str) -> (Io, File) {
    let mut io = Io::terminal(&world.scratch, exec);
    world.exec(&bundle.id, exec, &bundle.process(&["sh", "-c", script]), &io).await.unwrap();
    world.start(&bundle.id, exec).await.unwrap();
    let stdin = io.open_stdin(SOON).await.unwrap();
    io.stdout_with("ready", SOON).await.unwrap();
    (io, stdin)
}

async fn ended(shim: &Shim, id: &str, exec: &str) -> u32 {
    shim.within(SOON).wait(id, exec).await.unwrap().exit_status
}

/// Such an init is born last of all, and has its session, its terminal and its limits from then on.
#[test]
fn an_init_in_a_joined_pid_namespace_has_a_terminal_and_ends_as_any_other() {
    block_on(async {
        let (world, _first) = World::running("first", sleeping).await;
        let path = format!("/proc/{}/ns/pid", world.connect("first").await.unwrap().task_pid);
        let joining = |id: &str| {
            terminal(Bundle::new(&world.scratch, id)).edit(|spec| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "pid");
                namespaces.push(json!({"type": "pid", "path": path}));
            })
        };
        let script =
            "tty; echo to the tty > /dev/tty; echo to the console > /dev/console; ulimit -n; ls /proc/1/ns | wc -l
            [ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo leads; exit 3";
        let bundle = joining("second").script(script);
        let mut io = Io::terminal(&world.scratch, "second");
        world.create(&bundle, &io).await.unwrap();
        world.start("second", "").await.unwrap();
        assert_eq!(ended(&world, "second", "").await, 3);
        let seen = io.stdout(SOON).await.unwrap();
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!(lines[..4], ["/dev/pts/0", "to the tty", "to the console", "1024"], "{seen}");
        assert_eq!((lines[4] == "0", lines[5]), (false, "leads"), "{seen}");
        world.delete("second", "").await.unwrap();

        let failing = joining("failing").args(&["/no/such/program"]);
        let error = world.create(&failing, &Io::terminal(&world.scratch, "failing")).await;
        refused(error, Code::INVALID_ARGUMENT, &["/no/such/program"]);
        let created = joining("created").args(&["sleep", "1000"]);
        let init = world.create(&created, &Io::terminal(&world.scratch, "created")).await.unwrap().pid;
        let init = common::driver::open_pid(init as i32).unwrap();
        world.kill_shim().await.unwrap();
        common::driver::await_exit(&init, SOON).expect("it has outlived the shim unstarted");
    });
}

/// Proves: process.terminal, process.consoleSize.{width,height}
#[test]
fn an_init_has_a_terminal_of_the_containers_own_which_is_its_console() {
    block_on(async {
        let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo three
            stat -c '%t:%T %u:%g %a' /dev/pts/0 /dev/console; ls /dev/pts | tr '\\n' ' '; echo
            echo to the console > /dev/console; echo to the tty > /dev/tty; exit 3";
        let (world, bundle) = World::with("one", |b| {
            terminal(b.script(script)).edit(|spec| {
                spec["process"]["consoleSize"] = json!({ "height": 33, "width": 99 });
            })
        })
        .await;
        let mut io = Io::terminal(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        assert!(world.state("one", "").await.unwrap().terminal);
        world.start("one", "").await.unwrap();
        assert_eq!(ended(&world, "one", "").await, 3);
        let expected = "/dev/pts/0\n33 99\nthree\n88:0 0:5 620\n88:0 0:5 620\n0 ptmx \nto the console\nto the tty\n";
        assert_eq!(io.stdout(SOON).await.unwrap(), expected.replace('\n', "\r\n"));
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn an_exec_has_a_terminal_where_its_request_says_so() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let script = "tty; stat -c '%t:%T' $(tty); test -e /dev/console || echo no console";
        let (status, output) = exec_script(&world, &bundle, "x", script).await;
        assert_eq!((status, &*output), (0, "/dev/pts/0\r\n88:0\r\nno console\r\n"));

        let mut process = bundle.process(&["sh", "-c", "tty"]);
        process["terminal"] = json!(true);
        let mut pipes = Io::fifos(&world.scratch, "y");
        assert_eq!(run_exec(&world, "one", "y", &process, &mut pipes).await, (1, "not a tty\n".to_string()));
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_terminal_has_the_size_that_it_is_given_at_any_time() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| terminal(b.script("stty size; sleep 1000"))).await;
        let mut init = Io::terminal(&world.scratch, "one");
        world.create(&bundle, &init).await.unwrap();
        world.resize_pty("one", "", 81, 26).await.unwrap();
        world.start("one", "").await.unwrap();
        init.stdout_with("26 81\r\n", SOON).await.unwrap();

        let script = "trap 'stty size; exit 5' WINCH; stty size; echo ready; while :; do sleep 0.02; done";
        let mut io = Io::terminal(&world.scratch, "x");
        world.exec("one", "x", &bundle.process(&["sh", "-c", script]), &io).await.unwrap();
        world.resize_pty("one", "x", 132, 43).await.unwrap();
        world.start("one", "x").await.unwrap();
        assert_eq!(io.stdout_with("ready", SOON).await.unwrap(), "43 132\r\nready\r\n");
        refused(world.resize_pty("one", "x", 65536, 24).await, Code::INVALID_ARGUMENT, &["65536"]);
        world.resize_pty("one", "x", 100, 50).await.unwrap();
        assert_eq!(ended(&world, "one", "x").await, 5);
        assert_eq!(io.stdout(SOON).await.unwrap(), "43 132\r\nready\r\n50 100\r\n");
        refused(world.resize_pty("one", "x", 80, 24).await, Code::FAILED_PRECONDITION, &["stopped", "exec x"]);
        world.delete("one", "x").await.unwrap();
        refused(world.resize_pty("one", "x", 80, 24).await, Code::NOT_FOUND, &["exec x"]);
        assert_eq!(world.end("one").await, 137);
        world.close().await;

        // Without a terminal there is nothing to resize, which is no error.
        let (world, _bundle) = World::running("one", sleeping).await;
        world.resize_pty("one", "", 80, 24).await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn what_is_typed_reaches_the_program_and_control_c_the_foreground() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let script = "trap 'echo caught' INT; echo ready; /bin/sleep 1000; read line; echo got $line; exit 7";
        let (mut io, mut stdin) = start_script(&world, &bundle, "x", script).await;
        // The sleep ends by it, and the shell's trap runs. One that comes before the sleep is there has to wait for it.
        let since = Instant::now();
        while io.stdout_with("caught", Duration::from_millis(500)).await.is_err() {
            assert!(since.elapsed() < SOON, "{:?}", io.stdout_with("", SOON).await);
            stdin.write_all(b"\x03").unwrap();
        }
        stdin.write_all(b"hello\r").unwrap();
        assert_eq!(ended(&world, "one", "x").await, 7);
        let output = io.stdout(SOON).await.unwrap();
        // The signal goes out before the echo of what sends it: either may be first.
        let rest = output.replace("^C", "");
        assert!(rest.len() < output.len() && rest == "ready\r\ncaught\r\nhello\r\ngot hello\r\n", "{output:?}");
        world.delete("one", "x").await.unwrap();

        let (_io, mut stdin) = start_script(&world, &bundle, "y", "echo ready; exec sleep 1000").await;
        stdin.write_all(b"\x03").unwrap();
        assert_eq!(ended(&world, "one", "y").await, 130);
        world.delete("one", "y").await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_client_may_leave_and_another_come() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let script = "echo ready; read a; echo first $a; read b; echo second $b; sleep 0.3; echo last";
        let (mut io, mut stdin) = start_script(&world, &bundle, "x", script).await;
        stdin.write_all(b"1\n").unwrap();
        io.stdout_with("first 1", SOON).await.unwrap();
        drop(stdin);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(world.status("one", "x").await.unwrap(), Status::RUNNING);
        io.open_stdin(SOON).await.unwrap().write_all(b"2\n").unwrap();
        // And even the end of stdin is no end of the session.
        world.close_io("one", "x").await.unwrap();
        assert_eq!(ended(&world, "one", "x").await, 0);
        assert!(io.stdout(SOON).await.unwrap().ends_with("second 2\r\nlast\r\n"));
        world.delete("one", "x").await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn ten_megabytes_come_and_go_as_they_are() {
    block_on(async {
        const LINES: u32 = 1_400_000;
        let (world, bundle) = World::running("one", sleeping).await;
        let (status, output) = exec_script(&world, &bundle, "out", &format!("seq {LINES}")).await;
        assert_eq!(status, 0);
        let mut lines = output.split_terminator("\r\n");
        assert!((1..=LINES).all(|n| lines.next() == Some(&*n.to_string())), "{} bytes", output.len());
        assert_eq!((lines.next(), output.ends_with("\r\n")), (None, true));

        // The other way through a terminal that changes nothing, faster than it is read.
        let sent: Vec<u8> = (0..10 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let script = format!("stty raw -echo; echo ready; head -c {} | sha256sum", sent.len());
        let (mut io, stdin) = start_script(&world, &bundle, "in", &script).await;
        let flags = rustix::fs::fcntl_getfl(&stdin).unwrap();
        rustix::fs::fcntl_setfl(&stdin, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
        let sum = sha256(&sent);
        let writer = std::thread::spawn(move || { stdin }.write_all(&sent).unwrap());
        assert_eq!(ended(&world, "one", "in").await, 0);
        writer.join().unwrap();
        let output = io.stdout(SOON).await.unwrap();
        assert!(output.contains(&sum), "{output:?} without {sum}");
        world.delete("one", "in").await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

fn sha256(bytes: &[u8]) -> String {
    let file = std::env::temp_dir().join(format!("dray-terminal-{}", std::process::id()));
    fs::write(&file, bytes).unwrap();
    let output = Command::new("sha256sum").arg(&file).output().unwrap();
    fs::remove_file(file).unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_string()
}

#[test]
fn the_last_line_arrives_and_no_descriptor_stays() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let shim = world.pid().await.unwrap();
        exec_script(&world, &bundle, "warm", "true").await;
        let before = descriptors(shim);
        for n in 0..30 {
            let answer = exec_script(&world, &bundle, &format!("x{n}"), "seq 200; echo last").await;
            assert!(answer.1.ends_with("\r\n200\r\nlast\r\n"), "{n}: {answer:?}");
        }
        // The end of a stream without a reader is looked for now and then.
        until("the descriptors that there were", || descriptors(shim) == before).await;
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_terminal_is_its_users() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let mut io = Io::terminal(&world.scratch, "x");
        let script = "stat -c '%u:%g %a' $(tty); echo by name >$(tty); echo by /dev/tty >/dev/tty; id -u";
        let mut process = bundle.process(&["sh", "-c", script]);
        process["user"] = json!({ "uid": 1000, "gid": 1001 });
        process["capabilities"] = json!({});
        let expected = "1000:5 620\r\nby name\r\nby /dev/tty\r\n1000\r\n";
        assert_eq!(run_exec(&world, "one", "x", &process, &mut io).await, (0, expected.to_string()));
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// Its stream ends with it: a client waits for that end, and for as long as somebody in the background has the terminal.
#[test]
fn what_an_exec_leaves_behind_in_its_terminal_does_not_keep_it() {
    block_on(async {
        let (world, bundle) = World::running("one", sleeping).await;
        let mut io = Io::terminal(&world.scratch, "x");
        let process = bundle.process(&["sh", "-c", "trap '' HUP; sleep 1000 & echo said"]);
        world.exec("one", "x", &process, &io).await.unwrap();
        world.start("one", "x").await.unwrap();
        assert_eq!(ended(&world, "one", "x").await, 0);
        let since = Instant::now();
        assert_eq!(io.stdout(SOON).await.unwrap(), "said\r\n");
        world.delete("one", "x").await.unwrap();
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// An init system closes its console and opens it again.
#[test]
fn a_terminal_that_is_closed_and_opened_again_goes_on() {
    block_on(async {
        let script =
            "echo first; exec <&- >&- 2>&-; sleep 0.5; echo second >/dev/console; sleep 0.5; echo last >/dev/tty";
        let (world, bundle) = World::with("one", |b| terminal(b.script(script))).await;
        let mut io = Io::terminal(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        assert_eq!(ended(&world, "one", "").await, 0);
        assert_eq!(io.stdout(SOON).await.unwrap(), "first\r\nsecond\r\nlast\r\n");
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn a_terminal_without_streams_holds_nobody_up() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| terminal(b.script("seq 100000; exit 6"))).await;
        let mut io = Io::null();
        io.terminal = true;
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        assert_eq!(ended(&world, "one", "").await, 6);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    block_on(async {
        for asked in [true, false] {
            let (world, bundle) = World::with("one", |b| if asked { b } else { terminal(b) }).await;
            let io = if asked { Io::terminal(&world.scratch, "one") } else { Io::null() };
            refused(
                world.create(&bundle, &io).await,
                Code::INVALID_ARGUMENT,
                &["process.terminal", &asked.to_string()],
            );
            world.close().await;
        }
        // Somebody else's pty is not taken: without a devpts of its own there is none.
        let no_devpts = |b: Bundle| {
            terminal(b).edit(|spec| {
                spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev/pts");
            })
        };
        let (world, bundle) = World::with("one", no_devpts).await;
        let error = world.create(&bundle, &Io::terminal(&world.scratch, "one")).await.unwrap_err();
        assert!(error.to_string().contains("making the terminal") && error.to_string().contains("/dev/pts"), "{error}");
        world.close().await;

        // An image's link at /dev/console leads nowhere.
        let (world, bundle) = World::with("one", |b| {
            let b = terminal(b).plain_rootfs().edit(|spec| {
                spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
            });
            let dev = b.rootfs_dir().join("dev");
            fs::create_dir_all(&dev).unwrap();
            fs::write(b.rootfs_dir().join("victim"), "untouched").unwrap();
            std::os::unix::fs::symlink("/victim", dev.join("console")).unwrap();
            b
        })
        .await;
        let error = world.create(&bundle, &Io::terminal(&world.scratch, "one")).await.unwrap_err();
        assert!(error.to_string().contains("/dev/console"), "{error}");
        assert_eq!(fs::read_to_string(bundle.rootfs_dir().join("victim")).unwrap(), "untouched");
        world.close().await;
    });
}

common::on_each_containerd! { ctr_run_in_a_terminal, ctr_exec_and_attach_in_a_terminal }

/// Says what it is told, and its size with it.
const SHELL: [&str; 3] = [
    "sh",
    "-c",
    "trap 'echo caught' INT; tty; test -t 0 && echo ready
    while :; do read line && echo got $line $(stty size) && [ $line = end ] && exit 9; done",
];

fn ctr_run_in_a_terminal(containerd: Containerd) {
    let args = containerd.run_args("tty", &["--rm", "--tty"], &SHELL);
    let mut ctr = Client::new(&containerd.command(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    ctr.shows("/dev/pts/0\r");
    ctr.has_size((91, 37), "hello\r", "got hello 37 91\r");
    ctr.has_size((120, 40), "hello\r", "got hello 40 120\r");
    ctr.types("\x03");
    ctr.shows("caught\r");
    ctr.types("end\r");
    assert_eq!(ctr.ends(), Some(9));
    ctr.shows("got end 40 120\r");
    containerd.assert_nothing_left();
}

fn ctr_exec_and_attach_in_a_terminal(containerd: Containerd) {
    let args = containerd.run_args("host", &["--detach", "--tty"], &SHELL);
    let mut run = Client::new(&containerd.command(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    assert_eq!(run.ends(), Some(0), "{}", run.output());

    let exec = ["task", "exec", "--tty", "--exec-id", "x", "host", "sh", "-c", "tty; while read a; do stty size; done"];
    let mut exec = Client::new(&containerd.command(&exec));
    exec.shows("/dev/pts/1\r");
    exec.has_size((77, 33), "go\r", "33 77\r");
    exec.types("\x03");
    assert_eq!(exec.ends(), Some(130));

    let mut attach = Client::new(&containerd.command(&["task", "attach", "host"]));
    attach.types("again\r");
    attach.shows("got again");
    attach.types("end\r");
    assert_eq!(attach.ends(), Some(9));
    // The client that ended it may have deleted the task.
    if containerd.task("host").is_some() {
        containerd.delete_task("host");
    }
    containerd.ctr_ok(&["container", "delete", "host"]);
    containerd.assert_nothing_left();
}
