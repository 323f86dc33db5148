//! The one error type: what kind of failure it is, and the chain of what was being done.
//!
//! A system call's failure is recorded once, by the call's name and its object; each layer above may add what it was
//! doing. It is logged once, at the top, and never wrapped into another error type on the way.

use std::fmt;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means to the caller. Maps to a gRPC code for containerd and to an exit code for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request, the bundle or the specification is wrong: the caller must change it.
    InvalidArgument,
    /// No such container, process or bundle (also a process that has already ended).
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// Right request, wrong state of the container.
    FailedPrecondition,
    /// Not offered by this build.
    Unimplemented,
    /// A bound was reached.
    DeadlineExceeded,
    /// The peer is not there now.
    Unavailable,
    /// A system call failed, or an invariant of ours did not hold.
    Internal,
}

/// A failure: its kind, the errno when a system call said no, and the chain of contexts, outermost first.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: Kind,
    errno: Option<i32>,
    chain: Vec<String>,
}

impl Error {
    /// A failure that is not a system call's.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, errno: None, chain: vec![what.into()] }))
    }

    /// A failed system call: `what` names the call and its object, `openat2 /etc/passwd`.
    pub fn os(errno: impl IntoErrno, what: impl fmt::Display) -> Self {
        let errno = errno.into_errno();
        let text = std::io::Error::from_raw_os_error(errno).to_string();
        // "No such file or directory (os error 2)": the number says nothing to an operator that the words do not.
        let text = text.split(" (os error").next().unwrap_or_default().to_ascii_lowercase();
        Self(Box::new(Inner { kind: Kind::Internal, errno: Some(errno), chain: vec![format!("{what}: {text}")] }))
    }

    /// A panic in our own code, caught where one request ends. The panic hook has logged where it was.
    pub fn panicked() -> Self {
        Self::new(Kind::Internal, "the shim panicked; its log has more")
    }

    /// Says what was being done when this happened.
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.0.chain.insert(0, what.into());
        self
    }

    /// The same failure, as another kind.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same failure with the errno that it came from (used for errors received from a child).
    pub fn with_errno(mut self, errno: Option<i32>) -> Self {
        self.0.errno = errno;
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The errno of the system call at the bottom of the chain, if it was one.
    pub fn errno(&self) -> Option<i32> {
        self.0.errno
    }
}

/// The longest text of an error, in bytes, and how much of it is its end. It goes into a log line, an answer (a ttrpc
/// message has 4 MiB) and a pod's status; what it quotes may be as long as a specification.
const MAX_TEXT: usize = 4096;
const MAX_END: usize = 1024;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.chain.join(": ");
        if text.len() <= MAX_TEXT {
            return f.write_str(&text);
        }
        let start = &text[..text.floor_char_boundary(MAX_TEXT - MAX_END)];
        let end = &text[text.ceil_char_boundary(text.len() - MAX_END)..];
        write!(f, "{start} [{} bytes] {end}", text.len() - start.len() - end.len())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {}

/// The errno types of the crates below, and a bare number.
pub trait IntoErrno {
    /// The number, as errno(3) has it.
    fn into_errno(self) -> i32;
}

impl IntoErrno for i32 {
    fn into_errno(self) -> i32 {
        self
    }
}

impl IntoErrno for rustix::io::Errno {
    fn into_errno(self) -> i32 {
        self.raw_os_error()
    }
}

impl IntoErrno for nix::errno::Errno {
    fn into_errno(self) -> i32 {
        self as i32
    }
}

impl IntoErrno for std::io::Error {
    fn into_errno(self) -> i32 {
        self.raw_os_error().unwrap_or(libc::EIO)
    }
}

/// Adds to a `Result` what [`Error`] offers.
pub trait Context<T> {
    /// Says what was being done, made only on failure.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.context(what()))
    }
}

/// Turns a system call's error into an [`Error`] that names the call and its object.
pub trait Os<T> {
    /// `what` is made only on failure.
    fn os<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: IntoErrno> Os<T> for std::result::Result<T, E> {
    fn os<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::os(e, what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_chain_outermost_first_and_the_call_once() {
        let e = Error::os(libc::ENOENT, "openat2 /x").context("mounting /proc").context("container a");
        assert_eq!(e.to_string(), "container a: mounting /proc: openat2 /x: no such file or directory");
        assert_eq!(e.errno(), Some(libc::ENOENT));
        assert_eq!(e.kind(), Kind::Internal);
    }

    #[test]
    fn a_text_that_quotes_a_whole_document_is_shortened_in_its_middle() {
        let text =
            |length: usize| Error::new(Kind::InvalidArgument, "\u{e9}".repeat(length)).context("start").to_string();
        assert_eq!(text(2000).len(), "start: ".len() + 4000);
        let long = Error::new(Kind::InvalidArgument, format!("{}: the end", "\u{e9}".repeat(1 << 20)));
        let long = long.context("container a").to_string();
        assert!(long.starts_with("container a: \u{e9}") && long.ends_with("\u{e9}: the end"), "{long}");
        assert!(long.contains(" bytes] ") && long.len() < MAX_TEXT + 50, "{}", long.len());
    }
}
