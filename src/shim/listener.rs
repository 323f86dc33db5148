//! The server's connections: accepted here rather than by the ttrpc crate, to look at who is calling.

use std::io;
use std::time::Duration;

use futures::Stream;
use tokio::net::{UnixListener, UnixStream};

/// How long to wait when there is no descriptor for a connection: the listener stays readable, and accept(2) would be
/// called as fast as the processor can.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The connections of processes of our own user; others are closed without an answer. The socket's mode says the same,
/// but a descriptor can be handed on (CVE-2020-15257).
pub fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> + Send {
    futures::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_ours(&stream) => return Some((Ok(stream), listener)),
                Ok(_) => log::warn!("refused a connection of another user"),
                Err(e) => {
                    log::error!("accept: {e}");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    })
}

fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}
