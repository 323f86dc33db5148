//! Who the process is and what it starts with: limits, ids, capabilities, working directory, program, streams.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::cred::Capabilities;
use crate::sys::{cred, exec};

use super::identity_plan::Rlimit;
use super::kept::Kept;
use super::plan::Streams;
use super::steps::Born;
use super::{seccomp, treatment};

/// A session keyring of its own, unless it is to stay in the shim's.
pub fn session_keyring(born: &mut Born<'_>) -> Result<()> {
    if born.plan.process.session_keyring { cred::new_session_keyring() } else { Ok(()) }
}

/// Sets the resource limits, while there may still be a capability to raise them with.
///
/// # Errors
/// As runc: a limit that cannot be had is an error, EPERM where a hard limit would rise without CAP_SYS_RESOURCE.
pub fn limits(born: &mut Born<'_>) -> Result<()> {
    match born.plan.has_last_part() {
        true => raise_limits(born),
        false => set_limits(&born.plan.process.rlimits),
    }
}

fn set_limits(limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        cred::set_rlimit(limit.resource, limit.soft, limit.hard).context(|| limit.name.clone())?;
    }
    Ok(())
}

/// Raises the resource limits that are to be higher, while that is still allowed. To lower them is the last process's: a
/// hop needs a process and a descriptor more than what it leads to.
fn raise_limits(born: &mut Born<'_>) -> Result<()> {
    for limit in &born.plan.process.rlimits {
        cred::make_room(OWN, limit.resource, limit.hard).context(|| limit.name.clone())?;
    }
    Ok(())
}

/// The caller, for prlimit(2).
const OWN: u32 = 0;

/// Sets those that are not higher than they were.
pub fn lower_limits(kept: &mut Kept) -> Result<()> {
    set_limits(&kept.limits)
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
    cred::set_ids(process.uid, process.gid, process.groups.as_deref())?;
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
    // What is still to be done may take some more.
    let permitted = process.capabilities.permitted | seccomp::needed(born.plan) | treatment::needed(born.plan);
    cred::set_capabilities(&Capabilities { permitted, ..process.capabilities })
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

/// Finds the program. As the user that will run it, in the working directory: create fails where start would.
pub fn find_program(born: &mut Born<'_>) -> Result<()> {
    if born.plan.has_last_part() {
        return Ok(());
    }
    born.program = program(&born.plan.process.args, &born.plan.process.env)?;
    Ok(())
}

/// The same in the container's pid namespace, where its /proc/self is somebody.
pub fn find_program_last(kept: &mut Kept) -> Result<()> {
    kept.program = program(&kept.args, &kept.env)?;
    Ok(())
}

/// Finds the program as execvp(3) would, but in absolute directories only, by the PATH of the process's own environment, as its own user.
///
/// The messages are Go's exec.LookPath's, which moby and others match to tell 126 from 127.
fn program(args: &[CString], env: &[CString]) -> Result<CString> {
    let name = &args[0];
    if name.as_bytes().contains(&b'/') {
        return check(name).map_err(|e| exec_error(name, e));
    }
    let path = env.iter().rev().find_map(|var| var.as_bytes().strip_prefix(b"PATH="));
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
            Ok(found) => return Ok(found),
            Err(e) if e.errno() == Some(libc::EACCES) => denied = Some(e),
            Err(_) => {}
        }
    }
    match denied {
        Some(e) => Err(exec_error(name, e)),
        None => Err(not_found(name, "executable file not found in $PATH")),
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
