//! A verb's process: what it has to be for the engine, and the engine in it.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
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

/// Executes this program anew from behind a seal, unless it is, by the same arguments, environment and descriptors: for a verb
/// that gives birth to a process of a container (CVE-2019-5736). To be called before there is any effect.
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
    let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([name.into_vec(), value.into_vec()].join(&b'='))
    };
    let env = std::env::vars_os().map(variable).collect::<Result<Vec<_>, _>>();
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

/// Whether a signal asks a verb to give up.
fn is_an_end(signal: i32) -> bool {
    matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)
}
