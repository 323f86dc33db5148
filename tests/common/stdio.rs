//! containerd's end of a process's stdio: fifos, and readers that collect what comes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::sync::watch;

use super::patience;
use super::scratch::Scratch;

/// The stdio fields of a Create or Exec request. Paths may be set to anything (binary://, file://, a missing fifo).
#[derive(Default)]
pub struct Io {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
    readers: Vec<Reader>,
}

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    eof: bool,
}

struct Reader {
    path: PathBuf,
    captured: watch::Receiver<Captured>,
    thread: Option<JoinHandle<()>>,
}

impl Io {
    /// No stdio at all, as `ctr run --null-io`.
    pub fn null() -> Io {
        Io::default()
    }

    /// Fifos for stdout and stderr with a reader at each; `name` is unique in the scratch directory.
    pub fn fifos(scratch: &Scratch, name: &str) -> Io {
        let mut io = Io::fifos_unread(scratch, name);
        io.readers = [&io.stdout, &io.stderr].map(|path| Reader::start(path.into())).into();
        io
    }

    /// Fifos that the test itself reads, or nobody.
    pub fn fifos_unread(scratch: &Scratch, name: &str) -> Io {
        let make = |kind: &str| fifo(&scratch.dir().join(format!("fifo-{name}-{kind}")));
        Io { stdout: make("stdout"), stderr: make("stderr"), ..Io::default() }
    }

    /// Adds a fifo for stdin.
    pub fn with_stdin(mut self, scratch: &Scratch, name: &str) -> Io {
        self.stdin = fifo(&scratch.dir().join(format!("fifo-{name}-stdin")));
        self
    }

    /// A terminal: stdin and stdout fifos, no stderr, as containerd's clients ask for it.
    pub fn terminal(scratch: &Scratch, name: &str) -> Io {
        let stdout = fifo(&scratch.dir().join(format!("fifo-{name}-stdout")));
        let readers = vec![Reader::start(PathBuf::from(&stdout))];
        Io { stdout, terminal: true, readers, ..Io::default() }.with_stdin(scratch, name)
    }

    /// The client's end of stdin. As containerd's client it waits for the shim to open its own end, which an exec
    /// need not have done when Start is answered.
    pub async fn open_stdin(&self, timeout: Duration) -> io::Result<File> {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let deadline = Instant::now() + patience(timeout);
        loop {
            match OpenOptions::new().write(true).custom_flags(nonblock).open(&self.stdin) {
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                opened => return opened,
            }
        }
    }

    /// All of stdout, at its end; the error shows what came so far.
    pub async fn stdout(&mut self, timeout: Duration) -> Result<String, String> {
        self.readers[0].text(|captured| captured.eof, timeout).await
    }

    /// All of stderr, at its end.
    pub async fn stderr(&mut self, timeout: Duration) -> Result<String, String> {
        self.readers[1].text(|captured| captured.eof, timeout).await
    }

    /// Stdout so far, as soon as it contains `text`.
    pub async fn stdout_with(&mut self, text: &str, timeout: Duration) -> Result<String, String> {
        let has_text = |captured: &Captured| String::from_utf8_lossy(&captured.bytes).contains(text);
        self.readers[0].text(has_text, timeout).await
    }
}

impl Reader {
    fn start(path: PathBuf) -> Reader {
        let (sender, captured) = watch::channel(Captured::default());
        let fifo = path.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            // Waits here until the shim opens the other end.
            if let Ok(mut file) = File::open(&fifo) {
                while let Ok(n @ 1..) = file.read(&mut buffer) {
                    sender.send_modify(|captured| captured.bytes.extend_from_slice(&buffer[..n]));
                }
            }
            sender.send_modify(|captured| captured.eof = true);
        });
        Reader { path, captured, thread: Some(thread) }
    }

    async fn text(&mut self, enough: impl Fn(&Captured) -> bool, timeout: Duration) -> Result<String, String> {
        if let Ok(Ok(captured)) = tokio::time::timeout(patience(timeout), self.captured.wait_for(|c| enough(c))).await {
            return Ok(String::from_utf8_lossy(&captured.bytes).into_owned());
        }
        let so_far = String::from_utf8_lossy(&self.captured.borrow().bytes).into_owned();
        Err(format!("{}: after {timeout:?} only {so_far:?}", self.path.display()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A reader that still waits for a writer, or whose writer lives on, gets its end from us: opening wakes the
        // first, and the second is left to the process's end rather than joined.
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        drop(OpenOptions::new().write(true).custom_flags(nonblock).open(&self.path));
        if let Some(thread) = self.thread.take().filter(|_| self.captured.borrow().eof) {
            let _ = thread.join();
        }
    }
}

fn fifo(path: &Path) -> String {
    mkfifo(path, Mode::from_bits_truncate(0o700)).unwrap_or_else(|e| panic!("mkfifo {}: {e}", path.display()));
    path.to_str().expect("UTF-8 path").to_string()
}
