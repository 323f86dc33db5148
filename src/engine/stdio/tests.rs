//! The streams of a pretended process, with real fifos: the test holds the process's ends and the client's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use super::*;

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);

/// A directory with fifos, removed with it.
struct Fifos(PathBuf);

impl Fifos {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("dray-stdio-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        for fifo in ["in", "out", "err"] {
            nix::unistd::mkfifo(&dir.join(fifo), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().into()
    }

    fn reader(&self, name: &str) -> File {
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(self.0.join(name)).unwrap()
    }

    /// Needs a reader: ours.
    fn writer(&self, name: &str) -> File {
        File::options().write(true).custom_flags(libc::O_NONBLOCK).open(self.0.join(name)).unwrap()
    }

    fn output(&self) -> (Rc<Stdio>, File) {
        let uris = StdioUris { stdout: self.path("out"), ..Default::default() };
        let (stdio, ends) = Stdio::open(&uris, 0, 0).unwrap();
        stdio.start();
        (Rc::new(stdio), File::from(ends.stdout))
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The daemon's loop.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// Waits for `f`, which looks at something that the loop brings about.
async fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(start.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What is to be read now: Some(0) is the end of file.
fn read_now(file: &mut File, buffer: &mut Vec<u8>) -> Option<usize> {
    let mut chunk = [0; 65536];
    match file.read(&mut chunk) {
        Ok(n) => {
            buffer.extend_from_slice(&chunk[..n]);
            Some(n)
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
        Err(e) => panic!("{e}"),
    }
}

async fn read_to_end(file: &mut File) -> Vec<u8> {
    let mut all = Vec::new();
    until("end of file", || {
        loop {
            match read_now(file, &mut all) {
                Some(0) => return Some(()),
                Some(_) => {}
                None => return None,
            }
        }
    })
    .await;
    all
}

/// Writes more than the fifo takes but not more than the process's pipe takes too: no write blocks this thread, which
/// is the relay's as well.
async fn write_beyond_the_fifo(process: &mut File, data: &[u8]) {
    for part in data.chunks(50_000) {
        process.write_all(part).unwrap();
        tokio::time::sleep(SHORT).await;
    }
}

/// A cheap sequence in which a lost, doubled or moved byte shows.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

fn thread_cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

#[test]
fn two_hundred_megabytes_arrive_intact() {
    let fifos = Fifos::new("big");
    // Sizes around a page, where the relay changes between copying and splicing, and beyond a pipe.
    let sizes = [1, 100, 4095, 4096, 4097, 10_000, 65_536, 200_000];
    let block = noise(sizes.iter().sum());
    let rounds = 200_000_000 / block.len();
    let path = fifos.path("out");
    let (expected, rounds_of_it) = (block.clone(), rounds);
    let client = std::thread::spawn(move || {
        let mut file = File::open(path).unwrap();
        let mut got = vec![0; expected.len()];
        for round in 0..rounds_of_it {
            file.read_exact(&mut got).unwrap();
            assert!(got == expected, "round {round}");
        }
        assert_eq!(file.read(&mut got).unwrap(), 0);
    });
    run(async {
        let (stdio, mut process) = fifos.output();
        let writer = std::thread::spawn(move || {
            for _ in 0..rounds {
                let mut rest = &block[..];
                for size in sizes {
                    process.write_all(&rest[..size]).unwrap();
                    rest = &rest[size..];
                }
            }
        });
        assert!(stdio.drained(Duration::from_secs(60)).await);
        writer.join().unwrap();
        // In its own time: the loop has to see that all is read.
        while !client.is_finished() {
            tokio::time::sleep(SHORT).await;
        }
        client.join().unwrap();
    });
}

#[test]
fn a_reader_that_leaves_and_comes_back_loses_nothing() {
    let fifos = Fifos::new("back");
    run(async {
        let (stdio, mut process) = fifos.output();
        let mut got = Vec::new();
        let mut client = fifos.reader("out");
        process.write_all(b"one").unwrap();
        until("first", || read_now(&mut client, &mut got)).await;
        drop(client);
        let data = noise(100_000);
        write_beyond_the_fifo(&mut process, &data).await;
        tokio::time::sleep(SHORT).await;
        let mut client = fifos.reader("out");
        drop(process);
        let rest = read_to_end(&mut client).await;
        assert_eq!(got, b"one");
        assert!(rest == data, "{} of {} bytes", rest.len(), data.len());
        assert!(stdio.drained(LONG).await);
    });
}

#[test]
fn a_full_fifo_uses_up_the_bound_and_no_cpu() {
    let fifos = Fifos::new("full");
    run(async {
        let (stdio, mut process) = fifos.output();
        write_beyond_the_fifo(&mut process, &noise(100_000)).await;
        drop(process);
        let (start, cpu) = (Instant::now(), thread_cpu());
        assert!(!stdio.drained(Duration::from_millis(500)).await);
        assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
        let cpu = thread_cpu() - cpu;
        assert!(cpu < Duration::from_millis(5), "{cpu:?}");
        // At the bound everything is closed, so nobody has the fifo open to write.
        tokio::task::yield_now().await;
        let e = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifos.path("out")).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENXIO));
    });
}

#[test]
fn short_lines_fill_a_fifo_by_bytes_and_not_by_slots() {
    let fifos = Fifos::new("lines");
    run(async {
        let (stdio, mut process) = fifos.output();
        for i in 0..500 {
            writeln!(process, "line {i}").unwrap();
            // Let the relay see each line on its own.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        drop(process);
        assert!(stdio.drained(LONG).await);
        let mut client = fifos.reader("out");
        let lines = read_to_end(&mut client).await;
        assert_eq!(lines.iter().filter(|b| **b == b'\n').count(), 500);
    });
}

#[test]
fn the_reader_sees_the_end() {
    let fifos = Fifos::new("end");
    run(async {
        let (stdio, mut process) = fifos.output();
        let mut client = fifos.reader("out");
        process.write_all(b"bye").unwrap();
        tokio::time::sleep(SHORT).await;
        drop(process);
        let start = Instant::now();
        assert_eq!(read_to_end(&mut client).await, b"bye");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(stdio.drained(SHORT).await);
    });
}

#[test]
fn what_nobody_has_read_waits_for_a_late_reader_and_delays_no_exit() {
    let fifos = Fifos::new("late");
    run(async {
        let (stdio, mut process) = fifos.output();
        process.write_all(b"last words").unwrap();
        drop(process);
        let start = Instant::now();
        assert!(stdio.drained(LONG).await);
        assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(250)).await;
        let mut client = fifos.reader("out");
        assert_eq!(read_to_end(&mut client).await, b"last words");
    });
}

#[test]
fn a_drop_lets_go_of_what_nobody_reads() {
    let fifos = Fifos::new("drop");
    run(async {
        let (stdio, mut process) = fifos.output();
        process.write_all(b"unread").unwrap();
        drop(process);
        assert!(stdio.drained(LONG).await);
        drop(stdio);
        tokio::task::yield_now().await;
        let mut client = fifos.reader("out");
        assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    });
}

#[test]
fn a_process_left_behind_with_the_pipe_uses_up_the_bound() {
    let fifos = Fifos::new("left");
    run(async {
        let uris = StdioUris { stdin: fifos.path("in"), stdout: fifos.path("out"), ..Default::default() };
        let (stdio, ends) = Stdio::open(&uris, 0, 0).unwrap();
        stdio.start();
        let mut client = fifos.reader("out");
        assert!(!stdio.drained(SHORT).await);
        // The client is not kept waiting by what is left, nor fooled by a stdin that nobody will read.
        assert_eq!(read_to_end(&mut client).await, b"");
        let stdin = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(fifos.path("in")).unwrap();
        assert_eq!((&stdin).read(&mut [0]).unwrap(), 0, "someone still has stdin open to write");
        drop(ends);
    });
}

#[test]
fn one_fifo_for_both_outputs_ends_with_the_second() {
    let fifos = Fifos::new("both");
    run(async {
        let uris = StdioUris { stdout: fifos.path("out"), stderr: fifos.path("out"), ..Default::default() };
        let (stdio, ends) = Stdio::open(&uris, 0, 0).unwrap();
        stdio.start();
        let (mut out, mut err) = (File::from(ends.stdout), File::from(ends.stderr));
        let mut client = fifos.reader("out");
        out.write_all(b"out").unwrap();
        drop(out);
        tokio::time::sleep(SHORT).await;
        err.write_all(b"err").unwrap();
        tokio::time::sleep(SHORT).await;
        let mut got = Vec::new();
        read_now(&mut client, &mut got);
        assert_eq!(got, b"outerr");
        assert_eq!(read_now(&mut client, &mut got), None, "the end came before stderr's");
        assert_eq!(stdio.outputs.unfinished.get(), 1);
        drop(err);
        assert_eq!(read_to_end(&mut client).await, b"");
        assert!(stdio.drained(LONG).await);
    });
}

/// Our own read end is nobody who reads, whichever of the two streams has ended.
#[test]
fn one_fifo_for_both_outputs_that_nobody_reads_delays_no_exit() {
    let fifos = Fifos::new("both-unread");
    run(async {
        let uris = StdioUris { stdout: fifos.path("out"), stderr: fifos.path("out"), ..Default::default() };
        for ends_first in [0, 1, 2] {
            let (stdio, ends) = Stdio::open(&uris, 0, 0).unwrap();
            stdio.start();
            let mut processes = vec![File::from(ends.stdout), File::from(ends.stderr)];
            processes.iter_mut().for_each(|end| end.write_all(b"unread").unwrap());
            if ends_first < processes.len() {
                drop(processes.remove(ends_first));
            }
            tokio::time::sleep(SHORT).await;
            assert!(stdio.is_delivered(), "{ends_first}");
            // A client is one all the same.
            let mut client = fifos.reader("out");
            assert!(!stdio.is_delivered(), "{ends_first}");
            let mut got = Vec::new();
            until("all has come", || {
                read_now(&mut client, &mut got);
                (got.len() == 12).then_some(())
            })
            .await;
            assert!(stdio.is_delivered(), "{ends_first}");
            drop(processes);
            assert_eq!(read_to_end(&mut client).await, b"");
        }
    });
}

#[test]
fn stdin_ends_after_close_and_the_last_client() {
    let fifos = Fifos::new("in");
    run(async {
        let uris = StdioUris { stdin: fifos.path("in"), ..Default::default() };
        let (stdio, ends) = Stdio::open(&uris, 0, 0).unwrap();
        stdio.start();
        let mut process = File::from(ends.stdin);
        nonblocking(&process.try_clone().unwrap().into()).unwrap();
        let mut got = Vec::new();
        let mut client = fifos.writer("in");
        client.write_all(b"hello ").unwrap();
        drop(client);
        until("input", || read_now(&mut process, &mut got)).await;
        // A client that leaves is not the end.
        tokio::time::sleep(SHORT).await;
        assert_eq!(read_now(&mut process, &mut got), None);

        let mut client = fifos.writer("in");
        stdio.close_stdin();
        tokio::time::sleep(SHORT).await;
        assert_eq!(read_now(&mut process, &mut got), None, "a client still has it open");
        let data = noise(60_000);
        client.write_all(&data).unwrap();
        drop(client);
        let rest = read_to_end(&mut process).await;
        assert_eq!(got, b"hello ");
        assert!(rest == data, "{} bytes", rest.len());
    });
}

#[test]
fn a_client_learns_that_the_process_has_closed_its_stdin() {
    let fifos = Fifos::new("epipe");
    run(async {
        let uris = StdioUris { stdin: fifos.path("in"), ..Default::default() };
        let (stdio, ends) = Stdio::open(&uris, 0, 0).unwrap();
        stdio.start();
        drop(ends);
        let mut client = fifos.writer("in");
        client.write_all(b"x").unwrap();
        let e = until("EPIPE", || client.write_all(b"y").err()).await;
        assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
        assert!(stdio.drained(SHORT).await, "stdin is not waited for");
    });
}

#[test]
fn idle_streams_cost_no_cpu() {
    let fifos = Fifos::new("idle");
    run(async {
        let uris = StdioUris { stdin: fifos.path("in"), stdout: fifos.path("out"), ..Default::default() };
        let (stdio, mut ends) = Stdio::open(&uris, 0, 0).unwrap();
        stdio.start();
        let mut out = File::from(std::mem::replace(&mut ends.stdout, crate::sys::null::open(OFlags::WRONLY).unwrap()));
        let mut client = fifos.reader("out");
        out.write_all(b"x").unwrap();
        until("output", || read_now(&mut client, &mut Vec::new())).await;
        // A client that has left the output, and one that says nothing on stdin.
        drop(client);
        let _silent = fifos.writer("in");
        stdio.close_stdin();
        let cpu = thread_cpu();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let cpu = thread_cpu() - cpu;
        assert!(cpu < Duration::from_millis(5), "{cpu:?}");
    });
}

#[test]
fn a_client_that_comes_after_the_last_has_left_is_no_busy_loop() {
    let fifos = Fifos::new("after");
    run(async {
        let (input, output) = (Fifo::open(fifos.0.join("in").as_ref()).unwrap(), pipe().unwrap());
        let (fifo, pipe) =
            (watch(input.read, Interest::READABLE).unwrap(), watch(output.1, Interest::WRITABLE).unwrap());
        drop(input.write);
        // The loop has the hang-up; before the relay looks, the next client is there.
        fifo.readable().await.unwrap().retain_ready();
        let _next = fifos.writer("in");
        assert!(tokio::time::timeout(SHORT, relay::relay(&fifo, &pipe)).await.is_ok());
    });
}

#[test]
fn the_process_gets_blocking_pipes_of_its_own_user() {
    let fifos = Fifos::new("ends");
    run(async {
        let uris = StdioUris { stdin: fifos.path("in"), stderr: fifos.path("err"), ..Default::default() };
        let (_stdio, ends) = Stdio::open(&uris, 1234, 5678).unwrap();
        let root = rustix::process::geteuid().is_root();
        for (end, access) in [(&ends.stdin, OFlags::RDONLY), (&ends.stderr, OFlags::WRONLY)] {
            assert_eq!(rustix::fs::fcntl_getfl(end).unwrap() & (OFlags::ACCMODE | OFlags::NONBLOCK), access);
            let stat = File::from(end.try_clone().unwrap()).metadata().unwrap();
            assert!(!root || (stat.uid(), stat.gid()) == (1234, 5678));
        }
        // Nobody asked for stdout: the host's null device, with its own owner.
        let null = File::from(ends.stdout).metadata().unwrap();
        assert_eq!((null.rdev(), null.uid()), (rustix::fs::makedev(1, 3), 0));
        for fd in [ends.stdin.as_fd(), ends.stderr.as_fd()] {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    });
}

#[test]
fn what_is_not_a_fifo_is_refused() {
    let fifos = Fifos::new("refused");
    std::fs::write(fifos.path("file"), "").unwrap();
    run(async {
        let kind = |uris: StdioUris| {
            let e = Stdio::open(&uris, 0, 0).err().unwrap();
            (e.kind(), e.to_string())
        };
        let (k, text) = kind(StdioUris { stdout: fifos.path("file"), ..Default::default() });
        assert_eq!(k, Kind::InvalidArgument);
        assert!(text.starts_with("stdout: ") && text.ends_with("file: not a fifo"), "{text}");
        let (k, text) = kind(StdioUris { stdin: fifos.path("absent"), ..Default::default() });
        assert_eq!(k, Kind::NotFound);
        assert!(text.contains("absent"), "{text}");
        let (k, _) = kind(StdioUris { stdin: "/dev/null".into(), ..Default::default() });
        assert_eq!(k, Kind::InvalidArgument);
        assert_eq!(kind(StdioUris { stderr: "npipe:///x".into(), ..Default::default() }).0, Kind::Unimplemented);
        assert_eq!(kind(StdioUris { stdin: "file:///x".into(), ..Default::default() }).0, Kind::InvalidArgument);
    });
}
