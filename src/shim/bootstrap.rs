//! The actions `start` and `delete`: containerd executes the binary, reads what it prints, and waits for its end.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use containerd_shim::Flags;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::cgroup::{self, Hierarchies};
use crate::engine::remains::{Unmount, remove_saved, remove_siblings};
use crate::engine::state::{self, StateDir};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::load;
use crate::sys::fork::exit_now;
use crate::sys::{cred, exec, seal, signal, userns};

use super::TTRPC_ADDRESS;
use super::address::{self, Address, Bound, Speaks};
use super::daemon::{BINARY, BUNDLE, LISTENER};
use super::dialect::{self, Call};
use super::logger::Logger;
use super::options::{self, Options};

/// How a container whose shim has died is said to have ended: 128 + SIGKILL.
const KILLED: u32 = 137;

/// The annotations that put containers into one shim, the first that is there: containerd's own shim goes by the same.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// `start`: leaves a server behind, or finds the one of the container's group, and prints its address.
///
/// The socket listens before the server runs, so containerd may connect at once and nobody waits for the server. All of
/// stdout and stderr is the reply (containerd reads them as one): nothing else may be written.
pub fn start(flags: &Flags) -> Result<()> {
    require_id(flags)?;
    let env = |name: &str| std::env::var(name).ok();
    let call = Call::read(flags, env, &dialect::read_stdin()?)?;
    let options = match call.dialect {
        dialect::Dialect::Protobuf => options::decode(options::find(&call.options))?,
        _ => options::decode(call.options.first())?,
    };
    let address = address_of(flags, &call);
    let speaks = match address.bind()? {
        Bound::Taken(speaks) => speaks,
        Bound::Listening(listener) => {
            let left = prepare(&options).and_then(|()| leave_server(flags, &call, listener.into()));
            if left.is_err() {
                address.remove()?;
            }
            left.context(|| "starting the server")?;
            Speaks::own()
        }
    };
    std::fs::write(address::FILE, address.uri()).os(|| format!("write {}", address::FILE))?;
    let reply = dialect::reply(call.dialect, address.uri(), speaks)?;
    std::io::stdout().write_all(&reply).os(|| "write stdout")
}

fn address_of(flags: &Flags, call: &Call) -> Address {
    if !flags.socket.is_empty() {
        return Address::at(&flags.socket);
    }
    let directory = call.socket_dir.as_deref().unwrap_or(Path::new(address::DIRECTORY));
    // A bundle without a configuration, or with a bad one, is Create's to judge.
    let annotations = load::annotations(Path::new(".")).unwrap_or_default();
    let group = GROUPS.iter().find_map(|name| annotations.get(*name).filter(|group| !group.is_empty()));
    Address::of(directory, &call.containerd, &flags.namespace, group.unwrap_or(&flags.id))
}

/// What the server inherits of this process.
fn prepare(options: &Options) -> Result<()> {
    raise_oom_score()?;
    if let Some(value) = std::env::var_os("SCHED_CORE").filter(|value| !value.is_empty()) {
        // As Go's strconv.ParseBool has it.
        match value.to_str() {
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => cred::new_scheduling_cookie()?,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => {}
            _ => return Err(Error::new(Kind::InvalidArgument, format!("SCHED_CORE is {value:?}"))),
        }
    }
    match &options.shim_cgroup {
        Some(path) => cgroup::join(&Hierarchies::discover()?, path).context(|| "ShimCgroup"),
        None => Ok(()),
    }
}

/// Before containerd, by whom all shims are found again, the kernel should kill one of those: one more than its score.
///
/// Where that would need a capability (CAP_SYS_RESOURCE) or containerd cannot be seen, the score stays what it is.
fn raise_oom_score() -> Result<()> {
    let containerd = nix::unistd::getppid();
    let Ok(score) = std::fs::read_to_string(format!("/proc/{containerd}/oom_score_adj")) else { return Ok(()) };
    let Ok(score) = score.trim().parse::<i32>() else { return Ok(()) };
    let path = "/proc/self/oom_score_adj";
    match std::fs::write(path, (score + 1).min(1000).to_string()) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        written => written.os(|| format!("write {path}")),
    }
}

/// Forks the server. It runs from a sealed copy of the executable, and has nothing of ours but the socket.
fn leave_server(flags: &Flags, call: &Call, listener: OwnedFd) -> Result<()> {
    let empty = Path::new(state::ROOT).join(".sealed");
    let sealed = seal::own_executable(Some(&empty))?;
    let strings = |list: Vec<String>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let nul = |_| Error::new(Kind::InvalidArgument, "an argument has a NUL byte");
    let args = strings(super::server_args(flags, call.debug)).map_err(nul)?;
    let bundle = std::env::current_dir().os(|| "getcwd")?;
    // Its number stays what it is: a fixed one might be that of a descriptor which is still needed.
    let mut env = vec![format!("{BUNDLE}={}", bundle.display()), format!("{LISTENER}={}", listener.as_raw_fd())];
    env.extend(call.events.iter().map(|address| format!("{TTRPC_ADDRESS}={address}")));
    // A server's own link is into the seal.
    let binary = std::fs::read_link("/proc/self/exe").os(|| "readlink /proc/self/exe")?;
    env.push(format!("{BINARY}={}", binary.display()));
    // For hooks; and where systemd can be spoken to.
    for name in ["PATH", "DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"] {
        env.extend(std::env::var(name).map(|value| format!("{name}={value}")));
    }
    let env = strings(env).map_err(nul)?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").os(|| "open /dev/null")?;
    // The pipe closes when the server has been executed, or brings the reason why not: containerd would else find a
    // socket on which nobody ever answers.
    let (failed, failure) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).os(|| "pipe2")?;
    crate::sys::fork::fork(0, None, None, |_| {
        // Whatever else containerd or its starter has leaked to us.
        let keep = [sealed.as_fd(), listener.as_fd(), null.as_fd(), failure.as_fd()];
        let become_server = || {
            crate::sys::fd::close_all_but(&keep)?;
            become_server(&sealed, &listener, null.as_fd(), &args, &env)
        };
        let error = match become_server() {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let _ = rustix::io::write(&failure, error.to_string().as_bytes());
        exit_now(1)
    })?;
    drop(failure);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::fs::File::from(failed), &mut text).os(|| "read pipe")?;
    if text.is_empty() { Ok(()) } else { Err(Error::new(Kind::Internal, text)) }
}

fn become_server(
    sealed: &OwnedFd,
    listener: &OwnedFd,
    null: std::os::fd::BorrowedFd<'_>,
    args: &[CString],
    env: &[CString],
) -> Result<std::convert::Infallible> {
    cred::new_session()?;
    signal::reset()?;
    rustix::process::chdir("/").os(|| "chdir /")?;
    crate::sys::fd::survive_exec(listener.as_fd())?;
    rustix::stdio::dup2_stdin(null).os(|| "dup2 stdin")?;
    rustix::stdio::dup2_stdout(null).os(|| "dup2 stdout")?;
    rustix::stdio::dup2_stderr(null).os(|| "dup2 stderr")?;
    exec::execve_fd(sealed.as_fd(), args, env)
}

/// `delete`: containerd calls it when it has lost the shim. Whatever the state on disk tells of is removed, and the
/// answer is that the container was killed.
///
/// # Errors
/// When something could not be removed: containerd keeps the bundle then.
pub fn delete(flags: &Flags) -> Result<()> {
    require_id(flags)?;
    Logger::stderr(&flags.id).install();
    let state = StateDir::new(Path::new(state::ROOT), &flags.namespace, &flags.id)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().os(|| "epoll_create")?;
    let hierarchies = Hierarchies::discover()?.rootless(userns::own()?.rootless);
    let removed = runtime.block_on(async {
        // containerd may ask for a container, and for the pod whose shim had it, at the same time.
        let own = match state.lock()? {
            // No shim had it: containerd has been refused the id, or asks for what it has never made.
            Some(_lock) if state.load()?.is_some_and(|saved| saved.by_command) => {
                log::warn!("container {} is the command line's, and is left alone", flags.id);
                None
            }
            Some(_lock) => remove_saved(&hierarchies, &state, Unmount::Here).await?,
            // Nothing is left; what is there in a moment is a new container's.
            None => None,
        };
        remove_siblings(&hierarchies, &state, &flags.id).await?;
        Ok(own)
    });
    let pid = removed.map_err(|e: Error| e.context(format!("container {}", flags.id)))?;
    let bundle = if flags.bundle.is_empty() { "." } else { flags.bundle.as_str() };
    let usual = || Address::of(Path::new(address::DIRECTORY), &flags.address, &flags.namespace, &flags.id);
    // The bundle's may be of a group, or in another directory.
    Address::left_in(Path::new(bundle)).unwrap_or_else(usual).remove_stale()?;
    let mut response = DeleteResponse::new();
    response.pid = pid.unwrap_or_default() as u32;
    response.exit_status = KILLED;
    response.exited_at = MessageField::some(SystemTime::now().into());
    let bytes = response.write_to_bytes().map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    std::io::stdout().write_all(&bytes).os(|| "write stdout")
}

fn require_id(flags: &Flags) -> Result<()> {
    match flags.id.as_str() {
        "" => Err(Error::new(Kind::InvalidArgument, "the flag -id is required")),
        _ => Ok(()),
    }
}
