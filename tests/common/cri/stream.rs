//! Exec and attach: the WebSocket that containerd's streaming server offers beside SPDY, as kubectl uses it.
//! RFC 6455 as far as needed, and Kubernetes' subprotocol v4: a first byte names the stream that a message belongs to.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::super::containerd::PATIENCE;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// An open session.
pub struct Session {
    socket: TcpStream,
    /// When it should long have ended, though it may still be talking.
    deadline: Instant,
    /// What came so far on stdout.
    pub stdout: String,
    /// What came so far on stderr.
    pub stderr: String,
    /// How the program ended: a metav1.Status as JSON, when it did.
    pub status: Option<String>,
}

impl Session {
    /// Opens the URL that Exec or Attach gave.
    pub fn open(url: &str) -> Self {
        let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("an http URL");
        let mut socket = TcpStream::connect(host).expect("the streaming server listens");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // The key is any; that the server knows the protocol shows in its talking it.
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap_or_else(|e| panic!("{url}: {e}: {}", String::from_utf8_lossy(&head)));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{url}: {head}");
        Self {
            socket,
            deadline: Instant::now() + 2 * PATIENCE,
            stdout: String::new(),
            stderr: String::new(),
            status: None,
        }
    }

    /// Writes to the program's stdin.
    pub fn write(&mut self, text: &str) {
        self.send(STDIN, text.as_bytes());
    }

    /// Tells the terminal's size.
    pub fn resize(&mut self, width: u16, height: u16) {
        self.send(RESIZE, format!("{{\"Width\":{width},\"Height\":{height}}}").as_bytes());
    }

    /// Reads until stdout has `text`.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        while !self.stdout.contains(text) {
            assert!(self.receive(), "the session ended without {text:?}: {:?} {:?}", self.stdout, self.status);
        }
    }

    /// Reads to the session's end.
    pub fn finish(mut self) -> Self {
        while self.receive() {}
        self
    }

    /// A client's frame is masked (RFC 6455 section 5.3); a mask of zeroes is one.
    fn send(&mut self, channel: u8, data: &[u8]) {
        let length = u8::try_from(data.len() + 1).ok().filter(|length| *length < 126).expect("a short message");
        let mut frame = vec![0x82, 0x80 | length, 0, 0, 0, 0, channel];
        frame.extend(data);
        self.socket.write_all(&frame).unwrap();
    }

    /// Takes the next frame; false at the end.
    fn receive(&mut self) -> bool {
        assert!(Instant::now() < self.deadline, "the session does not end: {:?} {:?}", self.stdout, self.stderr);
        let mut head = [0; 2];
        match self.socket.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the session says nothing: {:?}", self.stdout)
            }
            Err(_) => return false,
        }
        let length = match head[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(self.bytes())),
            127 => u64::from_be_bytes(self.bytes()),
            short => short.into(),
        };
        let mut data = vec![0; usize::try_from(length).unwrap()];
        self.socket.read_exact(&mut data).unwrap();
        // Opcode 8 closes. A message without content opens a channel.
        if head[0] & 0x0f == 8 {
            return false;
        }
        let Some((channel, data)) = data.split_first() else { return true };
        let text = String::from_utf8_lossy(data);
        match *channel {
            STDOUT => self.stdout.push_str(&text),
            STDERR => self.stderr.push_str(&text),
            ERROR if !text.is_empty() => self.status = Some(text.into_owned()),
            _ => {}
        }
        true
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }
}
