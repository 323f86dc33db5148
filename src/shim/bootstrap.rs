//! The actions `start` and `delete`: containerd executes the binary, reads what it prints, and waits for its end.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use containerd_shim::Flags;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::cgroup::Hierarchies;
use crate::engine::remains::{Unmount, remove_saved};
use crate::engine::state::{self, StateDir};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::fork::exit_now;
use crate::sys::{cred, exec, seal, signal};

use super::TTRPC_ADDRESS;
use super::address::{self, Address, Bound};
use super::daemon::{BUNDLE, LISTENER};

/// How a container whose shim has died is said to have ended: 128 + SIGKILL.
const KILLED: u32 = 137;

/// `start`: leaves a server behind, and prints its address.
///
/// The socket listens before the server runs, so containerd may connect at once and nobody waits for the server. All of
/// stdout and stderr is the reply (containerd reads them as one): nothing else may be written.
pub fn start(flags: &Flags) -> Result<()> {
    require_id(flags)?;
    let address = Address::of(&flags.address, &flags.namespace, &flags.id);
    if let Bound::Listening(listener) = address.bind()? {
        let left = leave_server(flags, listener.into());
        if left.is_err() {
            address.remove()?;
        }
        left.context(|| "starting the server")?;
    }
    std::fs::write(address::FILE, address.uri()).os(|| format!("write {}", address::FILE))?;
    print!("{}", address.uri());
    std::io::stdout().flush().os(|| "write stdout")
}

/// Forks the server. It runs from a sealed copy of the executable, and has nothing of ours but the socket.
fn leave_server(flags: &Flags, listener: OwnedFd) -> Result<()> {
    let empty = Path::new(state::ROOT).join(".sealed");
    let sealed = seal::own_executable(&empty)?;
    let strings = |list: Vec<String>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let nul = |_| Error::new(Kind::InvalidArgument, "an argument has a NUL byte");
    let args = strings(super::server_args(flags)).map_err(nul)?;
    let bundle = std::env::current_dir().os(|| "getcwd")?;
    // Its number stays what it is: a fixed one might be that of a descriptor which is still needed.
    let mut env = vec![format!("{BUNDLE}={}", bundle.display()), format!("{LISTENER}={}", listener.as_raw_fd())];
    env.extend(std::env::var(TTRPC_ADDRESS).map(|value| format!("{TTRPC_ADDRESS}={value}")));
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
    let state = StateDir::new(Path::new(state::ROOT), &flags.namespace, &flags.id)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().os(|| "epoll_create")?;
    let hierarchies = Hierarchies::discover()?;
    let pid = runtime
        .block_on(remove_saved(&hierarchies, &state, Unmount::Here))
        .context(|| format!("container {}", flags.id))?;
    Address::of(&flags.address, &flags.namespace, &flags.id).remove_stale()?;
    let mut response = DeleteResponse::new();
    response.pid = pid.unwrap_or_default() as u32;
    response.exit_status = KILLED;
    response.exited_at = MessageField::some(timestamp(SystemTime::now()));
    let bytes = response.write_to_bytes().map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    std::io::stdout().write_all(&bytes).os(|| "write stdout")
}

/// A time as protobuf has it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

fn require_id(flags: &Flags) -> Result<()> {
    match flags.id.as_str() {
        "" => Err(Error::new(Kind::InvalidArgument, "the flag -id is required")),
        _ => Ok(()),
    }
}
