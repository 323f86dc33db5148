//! A verb's process: what it has to be for the engine, and the engine in it.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;

use futures::future::{Either, select};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::global::{self, Global, NAMESPACE, Rootless};
use crate::engine::{Engine, host};
use crate::error::{Error, Kind, Result};
use crate::sys::{exec, seal};

/// Signals that this process is sent, but for those of its children.
pub type Signals = UnboundedReceiver<i32>;

/// What is read of the environment behind the seal: where hooks and CRIU find their programs, where systemd can be spoken to
/// and containers' states are, and the sockets that systemd has opened (sd_listen_fds(3)).
const VARIABLES: [&str; 8] = [
    "PATH",
    "XDG_RUNTIME_DIR",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "DBUS_SESSION_BUS_ADDRESS",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "RUST_BACKTRACE",
];

/// Executes this program anew from behind a seal, unless it is, by the same arguments and descriptors, and what it needs of the
/// environment: for a verb that gives birth to a process of a container (CVE-2019-5736). To be called before there is any
/// effect.
///
/// The rest of the operator's environment is no container's to see, of which this process and its children are in reach.
///
/// # Errors
/// When no seal is to be had.
pub fn seal() -> Result<()> {
    if seal::is_sealed()? {
        return Ok(());
    }
    let empty = global::default_root().map(|root| root.join(".sealed")).ok();
    let sealed = seal::own_executable(empty.as_deref())?;
    let nul = |_| Error::new(Kind::InvalidArgument, "an argument has a NUL byte");
    let args = std::env::args_os().map(|arg| CString::new(arg.into_vec())).collect::<Result<Vec<_>, _>>();
    let given = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let variable = |(name, value): (&&str, OsString)| CString::new([name.as_bytes(), value.as_bytes()].join(&b'='));
    let env = given.map(variable).collect::<Result<Vec<_>, _>>();
    exec::execve_fd(sealed.as_fd(), &args.map_err(nul)?, &env.map_err(nul)?).map(drop)
}

/// The place of a container to be: the directory of all namespaces, and its own.
///
/// # Errors
/// As [`Global::place`].
pub fn new_place(global: &Global) -> Result<(PathBuf, String)> {
    let (root, namespace) = global.place()?;
    Ok((root, namespace.unwrap_or_else(|| NAMESPACE.to_owned())))
}

/// Does `work` with an engine for the containers in `namespace` below `root`. Where `subreaper`, the orphans of what it starts
/// are its own to wait for.
///
/// # Errors
/// What `work` says; that there can be no engine here.
pub fn run<T>(
    global: &Global,
    (root, namespace): (&Path, &str),
    subreaper: bool,
    work: impl AsyncFnOnce(Rc<Engine>, Signals) -> Result<T>,
) -> Result<T> {
    if !rustix::process::geteuid().is_root() {
        let text = "it must be run by root, or by root of a user namespace (unshare -r), as a rootless podman runs it";
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    host::begin()?;
    host::guard(subreaper)?;
    host::log_panics();
    host::block_on(async {
        let engine = engine(global, root, namespace)?;
        let (sender, signals) = mpsc::unbounded_channel();
        let on = move |_: &Rc<Engine>, number| {
            // Nobody listens where nothing is to be done about it.
            let _ = sender.send(number);
        };
        tokio::task::spawn_local(host::read_signals(engine.clone(), on)?);
        work(engine, signals).await
    })
}

fn engine(global: &Global, root: &Path, namespace: &str) -> Result<Rc<Engine>> {
    let without_cgroups = match global.rootless {
        Rootless::Auto => None,
        Rootless::True => Some(true),
        Rootless::False => Some(false),
    };
    Engine::new_with(namespace, root.to_owned(), Box::new(|_| ()), without_cgroups)
}

/// Does `work`, which is dropped at a signal that asks for an end: for what leaves nothing half done, or what can be done again.
///
/// # Errors
/// What `work` says; that it was given up.
pub async fn unless_ended<T>(signals: &mut Signals, work: impl Future<Output = Result<T>>) -> Result<T> {
    match select(pin!(work), pin!(asked_to_end(signals))).await {
        Either::Left((done, _)) => done,
        Either::Right((signal, _)) => Err(given_up(signal)),
    }
}

/// What a verb says that has been asked to end.
pub fn given_up(signal: i32) -> Error {
    Error::new(Kind::Unavailable, format!("given up at signal {signal}"))
}

/// The first signal that asks for an end.
pub async fn asked_to_end(signals: &mut Signals) -> i32 {
    loop {
        match signals.recv().await {
            Some(signal) if is_an_end(signal) => return signal,
            Some(_) => {}
            // As long as the engine lives they are read.
            None => std::future::pending().await,
        }
    }
}

/// Whether a signal is about this process's own streams and sockets, and none of a container's business.
pub fn is_of_our_own(signal: i32) -> bool {
    matches!(signal, libc::SIGWINCH | libc::SIGPIPE | libc::SIGURG | libc::SIGTTIN | libc::SIGTTOU)
}

/// Whether a signal asks a verb to give up.
pub fn is_an_end(signal: i32) -> bool {
    matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)
}
