//! The streams of containers and execs through containerd's fifos: nothing lost, and nobody held up.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::block_on;
use common::bundle::Bundle;
use common::driver::open_pid;
use common::stdio::Io;
use common::world::{SOON, World, until};
use containerd_shim_protos::api::Status;
use serde_json::json;

/// Bytes without a period that a page, a pipe or a buffer could have.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Reads to the end; returns the length, and where it first differs from `block` again and again.
fn compare(path: String, block: &[u8]) -> (usize, Option<usize>) {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 100_000];
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            return (length, None);
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let expected = &block[length % block.len()..];
            let same = rest.len().min(expected.len());
            if rest[..same] != expected[..same] {
                return (length, Some(length));
            }
            length += same;
            rest = &rest[same..];
        }
    }
}

#[test]
fn a_gigabyte_arrives_as_it_was_written() {
    block_on(async {
        let block = noise((64 << 20) + 13);
        let (world, bundle) = World::with("one", |bundle| {
            let data = bundle.scratch().dir().join("data");
            fs::create_dir(&data).unwrap();
            fs::write(data.join("block"), &block).unwrap();
            let options = ["rbind", "ro"];
            bundle
                .mount(json!({"destination": "/data", "type": "bind", "source": data, "options": options}))
                .script("for i in $(seq 16); do cat /data/block; done; cat /data/block >&2")
        })
        .await;
        let io = Io::fifos_unread(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        let readers = [&io.stdout, &io.stderr].map(|path| {
            let (path, block) = (path.clone(), block.clone());
            std::thread::spawn(move || compare(path, &block))
        });
        world.start("one", "").await.unwrap();
        assert_eq!(world.within(Duration::from_secs(120)).wait("one", "").await.unwrap().exit_status, 0);
        let [out, err] = readers.map(|reader| reader.join().unwrap());
        assert_eq!(out, (16 * block.len(), None));
        assert_eq!(err, (block.len(), None));
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn a_reader_that_goes_and_comes_back_misses_nothing() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.script("seq 1 100000; sleep 0.3; seq 100001 110000")).await;
        let io = Io::fifos_unread(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        let waiting = world.spawn_wait("one", "").await;
        let path = io.stdout.clone();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            for length in [1, 4096, 70_001, 200_000] {
                let mut part = vec![0; length];
                File::open(&path).unwrap().read_exact(&mut part).unwrap();
                all.extend(part);
                std::thread::sleep(Duration::from_millis(100));
            }
            File::open(&path).unwrap().read_to_end(&mut all).unwrap();
            all
        });
        world.start("one", "").await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 0);
        let all = String::from_utf8(reader.join().unwrap()).unwrap();
        let expected: String = (1..=110_000).map(|n| format!("{n}\n")).collect();
        assert!(all == expected, "{} bytes of {}", all.len(), expected.len());
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn a_reader_that_comes_after_the_exit_finds_everything() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.script("seq 1 10000")).await;
        let io = Io::fifos_unread(&world.scratch, "one");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let path = io.stdout.clone();
        let text = std::thread::spawn(move || fs::read_to_string(path).unwrap());
        until("the end of the stream", || text.is_finished()).await;
        assert_eq!(text.join().unwrap().lines().count(), 10_000);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

#[test]
fn a_stream_that_nobody_reads_holds_up_neither_exit_nor_delete() {
    block_on(async {
        for private in [true, false] {
            let (world, bundle) = World::with("one", |b| {
                let b = if private { b } else { b.without_namespace("pid") };
                b.script("yes & yes >&2 & sleep 0.3; exit 4")
            })
            .await;
            world.create(&bundle, &Io::fifos_unread(&world.scratch, "one")).await.unwrap();
            world.start("one", "").await.unwrap();
            assert_eq!(world.wait("one", "").await.unwrap().exit_status, 4);
            world.sink.wait_topic("exit", "one", SOON).await.unwrap();
            let since = Instant::now();
            let deleting = tokio::spawn({
                let task = world.within(Duration::from_secs(60));
                async move { task.delete("one", "").await }
            });
            let quick = world.within(Duration::from_secs(2));
            assert_eq!(quick.status("one", "").await.unwrap(), Status::STOPPED);
            deleting.await.unwrap().unwrap();
            // containerd's own shim waits 10 s for readers; more than that would be felt as a hang.
            assert!(since.elapsed() < Duration::from_secs(25), "{:?}", since.elapsed());
            world.close().await;
        }
    });
}

#[test]
fn a_blocked_writer_can_be_killed() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.args(&["cat", "/dev/zero"])).await;
        world.create(&bundle, &Io::fifos_unread(&world.scratch, "one")).await.unwrap();
        world.start("one", "").await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn what_an_exec_leaves_behind_with_its_streams_does_not_keep_the_exec() {
    block_on(async {
        let (world, bundle) = World::running("one", |b| b.args(&["sleep", "1000"])).await;
        let mut io = Io::fifos(&world.scratch, "x");
        let process = bundle.process(&["sh", "-c", "sleep 1000 & echo said"]);
        world.exec("one", "x", &process, &io).await.unwrap();
        world.start("one", "x").await.unwrap();
        assert_eq!(world.wait("one", "x").await.unwrap().exit_status, 0);
        io.stdout_with("said\n", SOON).await.unwrap();
        world.within(Duration::from_secs(25)).delete("one", "x").await.unwrap();
        assert_eq!(io.stdout(SOON).await.unwrap(), "said\n");
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.args(&["sleep", "1000"])).await;
        let path = bundle.dir().join("log");
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut log = OpenOptions::new().read(true).write(true).custom_flags(nonblock).open(path).unwrap();
        // Full to the last byte.
        for chunk in [4096, 1] {
            while log.write(&vec![b'.'; chunk]).is_ok() {}
        }
        world.run(&bundle).await;
        let shim = open_pid(world.pid().await.unwrap()).unwrap();
        let ask = || rustix::process::pidfd_send_signal(&shim, rustix::process::Signal::USR1).unwrap();
        for _ in 0..50 {
            ask();
            let quick = world.within(Duration::from_secs(2));
            assert_eq!(quick.status("one", "").await.unwrap(), Status::RUNNING);
        }
        let exit = world.exec_to_exit("one", "x", &bundle.process(&["true"]), &Io::null()).await.unwrap();
        assert_eq!(exit.exit_status, 0);
        // Read again, it says again what there is.
        let mut old = vec![0; 1 << 20];
        while log.read(&mut old).is_ok() {}
        ask();
        let mut text = String::new();
        until("the state in the log", || {
            text.push_str(&bundle.log());
            text.contains("container one: Running")
        })
        .await;
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn stdin_ends_when_it_is_closed_and_not_before() {
    block_on(async {
        let (world, bundle) = World::running("c", |b| b.args(&["sleep", "1000"])).await;
        let input: String = (0..40_000).map(|n| format!("line {n}\n")).collect();
        let second = Bundle::new(&world.scratch, "one").args(&["cat"]);
        for (id, exec) in [("one", ""), ("c", "x")] {
            let name = format!("{id}{exec}");
            let mut io = Io::fifos(&world.scratch, &name).with_stdin(&world.scratch, &name);
            match exec {
                "" => drop(world.create(&second, &io).await.unwrap()),
                _ => world.exec(id, exec, &bundle.process(&["cat"]), &io).await.unwrap(),
            }
            world.start(id, exec).await.unwrap();
            // Two clients one after the other: the first one's end is not the stream's.
            let (first, rest) = input.split_at(1000);
            write_all(&mut io, first).await;
            io.stdout_with(first, SOON).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(world.status(id, exec).await.unwrap(), Status::RUNNING);
            write_all(&mut io, rest).await;
            // What has been written and not yet read comes before the end.
            world.close_io(id, exec).await.unwrap();
            assert_eq!(world.wait(id, exec).await.unwrap().exit_status, 0);
            assert!(io.stdout(SOON).await.unwrap() == input);
            world.delete(id, exec).await.unwrap();
        }
        assert_eq!(world.end("c").await, 137);
        world.close().await;
    });
}

/// As a client of its own, which closes its end afterwards.
async fn write_all(io: &mut Io, text: &str) {
    let mut file = io.open_stdin(SOON).await.unwrap();
    let mut rest = text.as_bytes();
    let deadline = Instant::now() + SOON;
    while !rest.is_empty() {
        assert!(Instant::now() < deadline, "stdin takes nothing");
        match file.write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(e) => panic!("stdin: {e}"),
        }
    }
}

#[test]
fn stdout_and_stderr_are_two_streams_or_one() {
    block_on(async {
        let (world, bundle) = World::running("one", |b| b.args(&["sleep", "1000"])).await;
        let process = bundle.process(&["sh", "-c", "for i in 1 2 3; do echo out; echo err >&2; done"]);
        let mut two = Io::fifos(&world.scratch, "two");
        assert_eq!(world.exec_to_exit("one", "two", &process, &two).await.unwrap().exit_status, 0);
        assert_eq!(two.stdout(SOON).await.unwrap(), "out\n".repeat(3));
        assert_eq!(two.stderr(SOON).await.unwrap(), "err\n".repeat(3));

        let mut one = Io::fifos(&world.scratch, "one");
        one.stderr = one.stdout.clone();
        assert_eq!(world.exec_to_exit("one", "x", &process, &one).await.unwrap().exit_status, 0);
        let mut lines: Vec<_> = one.stdout(SOON).await.unwrap().lines().map(String::from).collect();
        lines.sort();
        assert_eq!(lines, ["err", "err", "err", "out", "out", "out"]);

        // Only one of them is wanted.
        let mut half = Io::fifos(&world.scratch, "half");
        half.stderr.clear();
        assert_eq!(world.exec_to_exit("one", "y", &process, &half).await.unwrap().exit_status, 0);
        assert_eq!(half.stdout(SOON).await.unwrap(), "out\n".repeat(3));
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// A container could change the owner, the size or the flags of a fifo for everyone who has it.
#[test]
fn a_process_is_never_given_the_fifos() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.args(&["sleep", "1000"])).await;
        let io = Io::fifos(&world.scratch, "one").with_stdin(&world.scratch, "one");
        let pid = world.create(&bundle, &io).await.unwrap().pid;
        world.start("one", "").await.unwrap();
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut fds: Vec<_> = fds.map(|fd| (fd.file_name(), fs::read_link(fd.path()).unwrap())).collect();
        fds.sort();
        assert_eq!(fds.len(), 3, "{fds:?}");
        for (number, target) in fds {
            assert!(target.to_string_lossy().starts_with("pipe:["), "{number:?} {target:?}");
            assert!(!target.starts_with(Path::new("/")));
        }
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// The client's end of a fifo, which has it open and does not read yet.
fn open_end(path: &str) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

/// containerd's clients open their ends in the background, and give up one that is not open when they hear of an exit.
#[test]
fn a_process_is_born_when_its_outputs_have_readers() {
    block_on(async {
        let (world, bundle) = World::with("one", |b| b.script("echo out; echo err >&2")).await;
        let io = Io::fifos_unread(&world.scratch, "one");
        let mut create = Box::pin(world.create(&bundle, &io));
        let early = Duration::from_millis(300);
        let _out = open_end(&io.stdout);
        assert!(tokio::time::timeout(early, &mut create).await.is_err(), "born without a reader of stderr");
        assert!(bundle.cgroups().is_empty());
        let _err = open_end(&io.stderr);
        create.await.unwrap();
        assert_eq!(world.end("one").await, 137);

        // One without a client lives all the same.
        let io = Io::fifos_unread(&world.scratch, "two");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        assert_eq!(world.wait("one", "").await.unwrap().exit_status, 0);
        world.delete("one", "").await.unwrap();
        world.close().await;
    });
}

/// They close their ends, too, when they hear of an exit.
#[test]
fn an_exit_is_told_when_what_was_written_has_been_read() {
    block_on(async {
        let (world, bundle) = World::running("one", |b| b.args(&["sleep", "1000"])).await;
        let process = bundle.process(&["sh", "-c", "echo hello; exit 3"]);
        let run = async |exec: &str, io: &Io| {
            world.exec("one", exec, &process, io).await.unwrap();
            let pid = world.start("one", exec).await.unwrap().pid;
            until("the process's end", || !fs::exists(format!("/proc/{pid}")).unwrap()).await;
            Instant::now()
        };
        let io = Io::fifos_unread(&world.scratch, "read");
        let (mut out, _err) = (open_end(&io.stdout), open_end(&io.stderr));
        run("read", &io).await;
        let mut wait = Box::pin(world.wait("one", "read"));
        let early = Duration::from_millis(300);
        assert!(tokio::time::timeout(early, &mut wait).await.is_err(), "told with its output unread");
        assert_eq!(world.sink.topics("one"), ["create", "start", "exec-added", "exec-started"]);
        let mut text = [0; 6];
        out.read_exact(&mut text).unwrap();
        assert_eq!((&text, wait.await.unwrap().exit_status), (b"hello\n", 3));

        // A client that does not read is not waited for without end, and one that is gone not at all.
        let io = Io::fifos_unread(&world.scratch, "stuck");
        let ends = [open_end(&io.stdout), open_end(&io.stderr)];
        run("stuck", &io).await;
        assert_eq!(world.wait("one", "stuck").await.unwrap().exit_status, 3);
        drop(ends);
        let io = Io::fifos_unread(&world.scratch, "gone");
        let ended = run("gone", &io).await;
        assert_eq!(world.wait("one", "gone").await.unwrap().exit_status, 3);
        assert!(ended.elapsed() < Duration::from_millis(1500), "it was waited for {:?}", ended.elapsed());
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}
