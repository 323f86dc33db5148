//! Becoming another program, and finding it.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

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

/// Whether there is a file there that the caller may execute.
pub fn may_execute(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    path.is_file() && CString::new(path.as_os_str().as_bytes()).is_ok_and(|path| is_executable(&path).is_ok())
}

/// The first executable file of this name in the directories `path`, as execvp(3) has them, separated by colons; but for those
/// that are seen from the working directory.
pub fn find(name: impl AsRef<Path>, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(&name)).find(|file| file.is_absolute() && may_execute(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_executed_is_found() {
        let dir = std::env::temp_dir().join(format!("dray-find.{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a/sh")).unwrap();
        std::fs::create_dir_all(dir.join("b")).unwrap();
        std::fs::write(dir.join("b/sh"), "").unwrap();
        let path = format!("{0}/a:{0}/b:relative::/bin", dir.display());
        let found = find("sh", OsStr::new(&path));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.as_deref(), Some(Path::new("/bin/sh")));
    }
}
