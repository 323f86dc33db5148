//! Becoming the container's program.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use crate::error::{Error, Os, Result};

/// execve(2). Returns only to say why not.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Result<Infallible> {
    nix::unistd::execve(path, args, env).os(|| format!("execve {}", path.to_string_lossy()))
}

/// execveat(2) of an open file.
pub fn execve_fd(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Result<Infallible> {
    nix::unistd::execveat(file, c"", args, env, nix::fcntl::AtFlags::AT_EMPTY_PATH).os(|| "execveat")
}

/// May the caller execute `path`, by its effective ids (access(2))?
pub fn is_executable(path: &CStr) -> Result<()> {
    use rustix::fs::{Access, AtFlags, CWD};
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|e| Error::os(e, format!("access {}", path.to_string_lossy())))
}
