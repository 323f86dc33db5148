//! A command-line client in a terminal of the test's.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::containerd::eventually;

/// A terminal of the test's, and a client in it.
pub struct Client {
    child: Child,
    master: OwnedFd,
    output: Arc<Mutex<String>>,
}

impl Client {
    /// Runs a command in a new terminal, of 80 columns and 24 lines.
    pub fn new(client: &Command) -> Client {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(client.get_program()).args(client.get_args());
        command.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let client = Client { child: command.spawn().expect("setsid"), master, output: Arc::default() };
        client.resize(80, 24);
        let (mut reader, output) = (File::from(client.master.try_clone().unwrap()), client.output.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                output.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        client
    }

    /// The terminal's new size, of which the client is told by SIGWINCH.
    pub fn resize(&self, width: u16, height: u16) {
        tcsetwinsize(&self.master, Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    /// Types a text.
    pub fn types(&self, text: &str) {
        rustix::io::write(&self.master, text.as_bytes()).unwrap();
    }

    /// Resizes the terminal and types a line, again and again until there is the answer: the size takes its way through
    /// three processes, and a client misses the changes before it has its handler of SIGWINCH.
    #[track_caller]
    pub fn has_size(&self, (width, height): (u16, u16), line: &str, answer: &str) {
        let mut pause = 0;
        let answered = eventually(|| {
            if pause == 0 {
                self.resize(width - 1, height);
                self.resize(width, height);
                self.types(line);
            }
            pause = (pause + 1) % 20;
            self.output.lock().unwrap().contains(answer)
        });
        assert!(answered, "no {answer:?} in {:?}", self.output.lock().unwrap());
    }

    /// Waits until the text is on the screen.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        let shown = eventually(|| self.output.lock().unwrap().contains(text));
        assert!(shown, "no {text:?} in {:?}", self.output.lock().unwrap());
    }

    /// What was on the screen so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits for its end; returns its exit code.
    #[track_caller]
    pub fn ends(&mut self) -> Option<i32> {
        let ended = eventually(|| self.child.try_wait().unwrap().is_some());
        assert!(ended, "it does not end: {:?}", self.output.lock().unwrap());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
