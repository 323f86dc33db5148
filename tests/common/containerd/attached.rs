//! Running an attached ctr to its end without losing output.
//!
//! From 1.7 on, ctr closes its ends of the fifos once it knows of the exit, read or not (containerd: pkg/cio, the cancel
//! of copyIO): on a busy machine the last words of a short container are lost, whatever its shim is. So a second reader,
//! which reads nothing before ctr has ended, keeps them.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

/// Runs `ctr`, which makes the fifos of one process below `fifos`.
pub fn run(mut ctr: Command, fifos: &Path) -> Output {
    let ended = AtomicBool::new(false);
    let (mut output, [stdout, stderr]) = scope(|scope| {
        let kept = scope.spawn(|| {
            let mut kept = [None, None];
            while !ended.load(Ordering::Relaxed) && kept.iter().any(Option::is_none) {
                for (kept, suffix) in kept.iter_mut().zip(["-stdout", "-stderr"]) {
                    if kept.is_none() {
                        *kept = open(fifos, suffix);
                    }
                }
                sleep(Duration::from_millis(2));
            }
            kept
        });
        let output = ctr.output().expect("timeout, ctr");
        ended.store(true, Ordering::Relaxed);
        (output, kept.join().unwrap())
    });
    rest(stdout, &mut output.stdout);
    rest(stderr, &mut output.stderr);
    output
}

/// Opens the fifo DIR/SOMETHING/NAME, if it is there already.
fn open(dir: &Path, suffix: &str) -> Option<File> {
    let dirs = fs::read_dir(dir).ok()?.flatten();
    let files = dirs.filter_map(|dir| fs::read_dir(dir.path()).ok()).flat_map(Iterator::flatten);
    let fifo = files.map(|file| file.path()).find(|path| path.to_string_lossy().ends_with(suffix))?;
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(fifo).ok()
}

/// What ctr has not read.
fn rest(fifo: Option<File>, output: &mut Vec<u8>) {
    if let Some(mut fifo) = fifo
        && let Err(e) = fifo.read_to_end(output)
    {
        // What still has a writer has no end, and no more to read.
        assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}");
    }
}
