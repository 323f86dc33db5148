//! A file system whose server can be told to stop answering: what a network's or a lazy snapshotter's looks like in its worst
//! hour. It shows a directory, read-only, and caches nothing, so that every look at it asks (linux/fuse.h, version 7.31).

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Mounted. Its drop ends the server, which fails whatever still waits for an answer, and unmounts.
pub struct Fuse {
    at: PathBuf,
    held: Arc<Mutex<Held>>,
    device: Option<Arc<File>>,
    /// The server ends when this does.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// Answers that are held back.
#[derive(Default)]
struct Held {
    hanging: bool,
    answers: Vec<Vec<u8>>,
}

impl Fuse {
    /// Shows `directory` at `at`, which is made.
    pub fn mount(directory: &Path, at: &Path) -> Fuse {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let device = OpenOptions::new().read(true).write(true).custom_flags(nonblock).open("/dev/fuse");
        let device = Arc::new(device.expect("/dev/fuse: FUSE is needed"));
        fs::create_dir(at).unwrap_or_else(|e| panic!("mkdir {}: {e}", at.display()));
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
        let options = std::ffi::CString::new(options).expect("no NUL");
        mount("dray-test", at, "fuse", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()).expect("mount fuse");
        let held: Arc<Mutex<Held>> = Arc::default();
        let mut server = Server {
            device: device.clone(),
            held: held.clone(),
            nodes: vec![directory.to_path_buf()],
            numbers: HashMap::from([(directory.to_path_buf(), 1)]),
        };
        let (stopped, stop) = std::io::pipe().expect("pipe");
        let thread = std::thread::spawn(move || server.serve(&stopped));
        Fuse { at: at.to_path_buf(), held, device: Some(device), stop: Some(stop), thread: Some(thread) }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// From now on nothing is answered. What is asked is read all the same, so that not even SIGKILL ends the wait.
    pub fn hang(&self) {
        self.held.lock().unwrap().hanging = true;
    }

    /// How many questions are waiting.
    pub fn waiting(&self) -> usize {
        self.held.lock().unwrap().answers.len()
    }

    /// Waits until somebody waits.
    pub async fn until_waited_for(&self) {
        let deadline = Instant::now() + super::patience(Duration::from_secs(20));
        while self.waiting() == 0 {
            assert!(Instant::now() < deadline, "nobody has asked {}", self.at.display());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Answers everything, and goes on doing so.
    pub fn answer(&self) {
        let mut held = self.held.lock().unwrap();
        held.hanging = false;
        for answer in held.answers.drain(..) {
            let _ = self.device.as_deref().expect("open").write(&answer); // Who asked may be gone.
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.answer();
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // With its last descriptor the file system is dead, whoever has it mounted still.
        self.device.take();
    }
}

struct Server {
    device: Arc<File>,
    held: Arc<Mutex<Held>>,
    /// By number less 1.
    nodes: Vec<PathBuf>,
    numbers: HashMap<PathBuf, u64>,
}

/// A question: its header's fields and what comes after it.
struct Question<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl Server {
    /// Until the file system is gone.
    fn serve(&mut self, stopped: &PipeReader) {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let mut fds = [PollFd::new(&*self.device, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
            if poll(&mut fds, None).is_ok() && !fds[1].revents().is_empty() {
                return;
            }
            match (&*self.device).read(&mut buffer) {
                Ok(length) if length >= 40 => self.one(&buffer[..length]),
                // Somebody gave up a question before it was read (ENOENT), or a signal came.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => {}
                _ => return,
            }
        }
    }

    fn one(&mut self, text: &[u8]) {
        let question =
            Question { opcode: u32_at(text, 4), unique: u64_at(text, 8), node: u64_at(text, 16), body: &text[40..] };
        // FORGET, INTERRUPT and BATCH_FORGET have no answer.
        if matches!(question.opcode, 2 | 36 | 42) {
            return;
        }
        let (error, body) = match self.reply(&question) {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let length = 16 + body.len() as u32;
        let answer = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &question.unique.to_ne_bytes(), &body].concat();
        let mut held = self.held.lock().unwrap();
        match held.hanging {
            true => held.answers.push(answer),
            false => drop((&*self.device).write(&answer)),
        }
    }

    fn reply(&mut self, question: &Question<'_>) -> Result<Vec<u8>, i32> {
        let path = self.nodes.get(question.node.wrapping_sub(1) as usize).cloned().unwrap_or_default();
        let errno = |e: std::io::Error| e.raw_os_error().unwrap_or(libc::EIO);
        match question.opcode {
            1 => {
                let name = question.body.split(|byte| *byte == 0).next().unwrap_or_default();
                let path = path.join(std::ffi::OsStr::from_bytes(name));
                let metadata = fs::symlink_metadata(&path).map_err(errno)?;
                let number = self.number(path);
                // Number, generation, and how long both are good for: no time at all.
                Ok([numbers(&[number, 0, 0, 0, 0]), attributes(number, &metadata)].concat())
            }
            3 => {
                let metadata = fs::symlink_metadata(&path).map_err(errno)?;
                Ok([numbers(&[0, 0]), attributes(question.node, &metadata)].concat())
            }
            5 => Ok(fs::read_link(&path).map_err(errno)?.as_os_str().as_bytes().to_vec()),
            // OPEN and OPENDIR, with no handle.
            14 | 27 => Ok(numbers(&[0, 0])),
            15 => {
                let mut data = vec![0; u32_at(question.body, 16) as usize];
                let file = File::open(&path).map_err(errno)?;
                let length = file.read_at(&mut data, u64_at(question.body, 8)).map_err(errno)?;
                data.truncate(length);
                Ok(data)
            }
            17 => Ok([numbers(&[1 << 20, 0, 0, 1 << 10, 0]), words(&[4096, 255, 4096, 0]), vec![0; 24]].concat()),
            // FLUSH, RELEASE and RELEASEDIR.
            18 | 25 | 29 => Ok(Vec::new()),
            26 => {
                // Version, read-ahead, no flags; background and congestion; the largest write; the rest by default.
                Ok([words(&[7, 31, 128 << 10, 0, 12 | 9 << 16, 128 << 10, 1]), vec![0; 36]].concat())
            }
            28 => self.entries(&path, question).map_err(errno),
            _ => Err(libc::ENOSYS),
        }
    }

    fn number(&mut self, path: PathBuf) -> u64 {
        let next = self.nodes.len() as u64 + 1;
        let number = *self.numbers.entry(path.clone()).or_insert(next);
        if number == next {
            self.nodes.push(path);
        }
        number
    }

    fn entries(&mut self, path: &Path, question: &Question<'_>) -> std::io::Result<Vec<u8>> {
        let (offset, size) = (u64_at(question.body, 8), u32_at(question.body, 16) as usize);
        let mut names: Vec<_> = fs::read_dir(path)?.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        let mut data = Vec::new();
        for (index, name) in names.iter().enumerate().skip(offset as usize) {
            let name = name.as_bytes();
            let mut entry = [numbers(&[index as u64 + 1, index as u64 + 1]), words(&[name.len() as u32, 0])].concat();
            entry.extend(name);
            entry.resize(entry.len().next_multiple_of(8), 0);
            if data.len() + entry.len() > size {
                break;
            }
            data.extend(entry);
        }
        Ok(data)
    }
}

fn attributes(number: u64, metadata: &Metadata) -> Vec<u8> {
    let times = [metadata.atime() as u64, metadata.mtime() as u64, metadata.ctime() as u64];
    let first = [&[number, metadata.len(), metadata.blocks()][..], &times].concat();
    let ids = [metadata.mode(), metadata.nlink() as u32, metadata.uid(), metadata.gid(), 0, 4096, 0];
    [numbers(&first), words(&[0, 0, 0]), words(&ids)].concat()
}

fn numbers(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
