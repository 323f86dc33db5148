//! The server: one thread that owns the containers.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::Flags;
use nix::sys::signal::Signal;
use tokio::net::UnixListener;
use tokio::sync::Notify;

use crate::engine::{Engine, host, state};
use crate::error::{Context, Error, Kind, Os, Result};
use crate::sys::{cred, fd, seal};

use super::address::Address;
use super::listener::connections;
use super::logger::Logger;
use super::publisher::Publisher;
use super::service::{self, Task};

/// How long the end of the server waits for events that containerd has not taken.
const FLUSH_BOUND: Duration = Duration::from_secs(3);

/// How long an answer that is on its way out may take when the server ends.
const ANSWER_BOUND: Duration = Duration::from_millis(20);

/// Serves until the last container is gone and containerd has asked to shut down.
///
/// # Errors
/// When it was not started by the action `start`, and so has no socket.
pub fn run(flags: &Flags) -> Result<()> {
    host::begin()?;
    if !seal::is_sealed()? {
        return Err(Error::new(
            Kind::FailedPrecondition,
            "the server is left behind by the action start, not executed",
        ));
    }
    let number = std::env::var(LISTENER).ok().and_then(|number| number.parse().ok()).unwrap_or(-1);
    let socket = fd::inherited(number).context(|| "no socket from the action start")?;
    host::guard(true)?;
    cred::set_name(c"dray-shim")?;
    log_to(flags);
    host::block_on(serve(flags, socket))
}

/// The log goes to the fifo in the bundle that containerd reads, and so does a panic's place.
fn log_to(flags: &Flags) {
    let bundle = std::env::var(BUNDLE).unwrap_or_default();
    Logger::open(&Path::new(&bundle).join("log"), &flags.id, flags.debug).install();
    host::log_panics();
}

/// The environment variable in which `start` passes the number of the descriptor of the listening socket.
pub const LISTENER: &str = "DRAY_LISTENER";

/// The environment variable in which `start` passes the bundle directory in which it was executed.
pub const BUNDLE: &str = "DRAY_BUNDLE";

/// The environment variable in which `start` passes the path of the binary.
pub const BINARY: &str = "DRAY_BINARY";

async fn serve(flags: &Flags, socket: OwnedFd) -> Result<()> {
    let (publisher, publishing) = Publisher::new(std::env::var(super::TTRPC_ADDRESS).ok(), &flags.namespace);
    tokio::task::spawn_local(publishing);
    let events = publisher.clone();
    let engine = Engine::new(&flags.namespace, state::ROOT.into(), Box::new(move |event| events.publish(event)))?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    let address = Address::of_listener(&listener)?;
    engine.serve_as(&flags.id, address.path());
    let end = Arc::new(End::new(address));
    let (task, requests) = Task::new(end.clone());
    tokio::task::spawn_local(service::run(requests, engine.clone()));
    let ending = end.clone();
    tokio::task::spawn_local(host::read_signals(engine, move |engine, number| on_signal(engine, &ending, number))?);

    listener.set_nonblocking(true).os(|| "fcntl F_SETFL")?;
    let listener = UnixListener::from_std(listener).os(|| "epoll_ctl")?;
    let listener = ttrpc::r#async::transport::Listener::new(connections(listener));
    let mut server = service::register(ttrpc::r#async::Server::new().add_listener(listener), task);
    server.start().await.map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
    log::debug!("serving {}", flags.id);

    end.asked.notified().await;
    publisher.flush(FLUSH_BOUND).await;
    // The answer to Shutdown is among what the connections still have to write.
    tokio::time::sleep(ANSWER_BOUND).await;
    Ok(())
}

/// The end of the server.
pub struct End {
    address: Address,
    asked: Notify,
}

impl End {
    /// Of the server at `address`.
    pub fn new(address: Address) -> Self {
        Self { address, asked: Notify::new() }
    }

    /// Ends it, unless there are containers. From here on no container is created, and the address is given up: a `start`
    /// for the same id (Docker's restart) binds anew, and does not join a shim that is ending.
    pub fn unless_used(&self, engine: &Engine) {
        if !engine.close() {
            return;
        }
        self.address.remove().unwrap_or_else(|e| log::error!("{e}"));
        self.asked.notify_one();
    }
}

/// An operator's wishes.
fn on_signal(engine: &Rc<Engine>, end: &End, number: i32) {
    match Signal::try_from(number) {
        Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)) if engine.is_empty() => {
            log::info!("{signal}, and no container: ending");
            end.unless_used(engine);
        }
        Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)) => log::info!("{signal} ignored: there are containers"),
        Ok(Signal::SIGUSR1) => engine.dump().iter().for_each(|line| log::info!("{line}")),
        _ => {}
    }
}
