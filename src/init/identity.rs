//! Who the process is and what it starts with: limits, ids, capabilities, working directory, program, streams.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::{cred, exec};

use super::plan::Streams;
use super::seccomp;
use super::steps::Born;

/// A session keyring of its own, unless it is to stay in the shim's.
pub fn session_keyring(born: &mut Born<'_>) -> Result<()> {
    if born.plan.process.session_keyring { cred::new_session_keyring() } else { Ok(()) }
}

/// Sets the resource limits, while there may still be a capability to raise them with.
///
/// # Errors
/// As runc: a limit that cannot be had is an error, EPERM where a hard limit would rise without CAP_SYS_RESOURCE.
pub fn limits(born: &mut Born<'_>) -> Result<()> {
    for limit in &born.plan.process.rlimits {
        cred::set_rlimit(limit.resource, limit.soft, limit.hard).context(|| limit.name.clone())?;
    }
    Ok(())
}

/// Ids, capabilities and working directory, in the one order in which each is still allowed.
pub fn change(born: &mut Born<'_>) -> Result<()> {
    let process = &born.plan.process;
    cred::set_umask(process.umask);
    cred::limit_bounding(process.capabilities.bounding)?;
    // As root first: a directory that the user may not enter is still what the specification asks for. Where root is
    // refused (a root-squashing file system) the user may be allowed.
    let entered = match chdir(&process.cwd) {
        Err(e) if matches!(e.errno(), Some(libc::EACCES | libc::EPERM)) => false,
        other => other.map(|()| true)?,
    };
    cred::keep_capabilities(true)?;
    cred::set_ids(process.uid, process.gid, &process.groups)?;
    cred::keep_capabilities(false)?;
    // Changing ids undid both (prctl(2)). Until execve we are still a copy of the shim, and not to be looked into.
    cred::not_dumpable()?;
    cred::die_with_parent(true)?;
    if !entered {
        chdir(&process.cwd)?;
    }
    inside_the_root(&process.cwd)?;
    if process.no_new_privileges {
        cred::no_new_privileges()?;
    }
    match &born.plan.seccomp {
        // To load it takes one more (`seccomp::load_filter`).
        Some(_) if !process.no_new_privileges => cred::set_capabilities(&seccomp::with_admin(&process.capabilities)),
        _ => cred::set_capabilities(&process.capabilities),
    }
}

fn chdir(path: &Path) -> Result<()> {
    rustix::process::chdir(path).os(|| format!("chdir {}", path.display())).map_err(|e| match e.errno() {
        Some(libc::ENOENT | libc::ENOTDIR) => e.with_kind(Kind::InvalidArgument),
        _ => e,
    })
}

/// A working directory that was reached through a descriptor of the host's has no path here (CVE-2024-21626): getcwd(2)
/// fails, or marks it as unreachable.
fn inside_the_root(path: &Path) -> Result<()> {
    let cwd = rustix::process::getcwd(Vec::new()).os(|| "getcwd")?;
    if cwd.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidArgument, format!("{} is outside of the container's root", path.display())))
}

/// Finds the program as execvp(3) would, but in absolute directories only, by the PATH of the process's own environment, as its own user.
///
/// The messages are Go's exec.LookPath's, which moby and others match to tell 126 from 127.
pub fn find_program(born: &mut Born<'_>) -> Result<()> {
    let process = &born.plan.process;
    let name = process.args[0].clone();
    if name.as_bytes().contains(&b'/') {
        born.program = check(&name).map_err(|e| exec_error(&name, e))?;
        return Ok(());
    }
    let path = process.env.iter().rev().find_map(|var| var.as_bytes().strip_prefix(b"PATH="));
    let mut denied = None;
    for dir in path.unwrap_or_default().split(|&byte| byte == b':') {
        // Not from the working directory, for which an empty entry stands too: it may be a volume that others write to
        // (Go: exec.ErrDot).
        let dir = Path::new(OsStr::from_bytes(dir));
        if !dir.is_absolute() {
            continue;
        }
        let Ok(candidate) = CString::new(dir.join(OsStr::from_bytes(name.as_bytes())).into_os_string().as_bytes())
        else {
            continue;
        };
        match check(&candidate) {
            Ok(found) => {
                born.program = found;
                return Ok(());
            }
            Err(e) if e.errno() == Some(libc::EACCES) => denied = Some(e),
            Err(_) => {}
        }
    }
    match denied {
        Some(e) => Err(exec_error(&name, e)),
        None => Err(not_found(&name, "executable file not found in $PATH")),
    }
}

fn check(path: &CString) -> Result<CString> {
    let shown = path.to_string_lossy();
    let stat = rustix::fs::stat(path.as_c_str()).os(|| format!("stat {shown}"))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        return Err(Error::os(libc::EISDIR, &shown));
    }
    match exec::is_executable(path) {
        Ok(()) => Ok(path.clone()),
        // As Go says it: the words "permission denied" right behind the name.
        Err(e) if e.errno() == Some(libc::EACCES) => Err(Error::os(libc::EACCES, "access")),
        Err(e) => Err(e),
    }
}

/// An error about the program itself: `exec: "name": cause`. The specification is at fault, not the shim.
pub fn exec_error(name: &CString, error: Error) -> Error {
    let kind = match error.errno() {
        Some(
            libc::ENOENT
            | libc::EACCES
            | libc::EISDIR
            | libc::ENOEXEC
            | libc::ENOTDIR
            | libc::ELOOP
            | libc::ENAMETOOLONG,
        ) => Kind::InvalidArgument,
        _ => error.kind(),
    };
    error.context(format!("exec: {:?}", name.to_string_lossy())).with_kind(kind)
}

fn not_found(name: &CString, why: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("exec: {:?}: {why}", name.to_string_lossy()))
}

/// 0, 1 and 2. The originals are close-on-exec.
pub fn stdio(born: &mut Born<'_>) -> Result<()> {
    let terminal = born.console.take();
    let [stdin, stdout, stderr] = match (&born.plan.streams, &terminal) {
        (Streams::Pipes(pipes), _) => pipes.each_ref(),
        (Streams::Terminal(_), Some(terminal)) => [terminal; 3],
        (Streams::Terminal(_), None) => return Err(Error::new(Kind::Internal, "no terminal was made")),
    };
    rustix::stdio::dup2_stdin(stdin).os(|| "dup2 stdin")?;
    rustix::stdio::dup2_stdout(stdout).os(|| "dup2 stdout")?;
    rustix::stdio::dup2_stderr(stderr).os(|| "dup2 stderr")
}
