//! `dray checkpoint`

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use clap::Args;

use super::Global;
use super::criu::Criu;
use super::target::{self, Owner};
use crate::engine::adopt::{Status, status_of};
use crate::engine::checkpoint::{Request, judge_parent};
use crate::error::{Error, Kind, Os, Result};
use crate::sys::fd;

/// Writes the state of a running container to files, by CRIU.
#[derive(Debug, Args)]
pub struct Checkpoint {
    #[command(flatten)]
    criu: Criu,
    /// Images of an earlier pre-dump, by a path from those of this one
    #[arg(long, value_name = "DIR")]
    parent_path: Option<String>,
    /// Let the container run on
    #[arg(long)]
    leave_running: bool,
    /// Pass over TCP connections that are being made
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Descriptor that a NUL byte is written to when memory can be asked for
    #[arg(long, value_name = "FD", default_value_t = -1, hide_default_value = true, allow_hyphen_values = true)]
    status_fd: i32,
    /// ADDRESS:PORT of a server that takes the memory
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    /// Write memory alone, and let the container run on
    #[arg(long)]
    pre_dump: bool,
    /// The container.
    pub id: String,
}

/// Runs it. The container is deleted when its processes have been written, unless it is to run on.
///
/// # Errors
/// As [`crate::engine::Engine::checkpoint`].
pub fn run(global: &Global, args: Checkpoint) -> Result<ExitCode> {
    let found = target::find(global, &args.id)?;
    let request = args.request(global)?;
    let stays = args.leave_running || args.pre_dump;
    target::with_engine(global, found, async |found, engine, _signals| {
        let target = found.open().await?;
        match target.owner {
            Owner::Shim(client) => {
                args.refuse_of_shim()?;
                client.checkpoint(request).await?;
            }
            Owner::Nobody(_lock) => {
                refuse(status_of(engine.hierarchies(), &target.found.state, &target.found.saved))?;
                engine.adopt(&target.found.state)?;
                engine.clone().checkpoint(request).await?;
                if !stays {
                    engine.clone().delete(args.id.clone(), String::new()).await?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// runc's words.
fn refuse(status: Status) -> Result<()> {
    match status {
        Status::Running | Status::Paused => Ok(()),
        other => {
            let text = format!("Container cannot be checkpointed in {} state", other.name());
            Err(Error::new(Kind::FailedPrecondition, text))
        }
    }
}

impl Checkpoint {
    fn request(&self, global: &Global) -> Result<Request> {
        let settings = self.criu.settings(global)?;
        let parent = self.parent_path.clone().filter(|parent| !parent.is_empty());
        parent.as_deref().map_or(Ok(()), |parent| judge_parent(&settings.images, parent))?;
        Ok(Request {
            id: self.id.clone(),
            settings,
            parent,
            exit: !self.leave_running,
            pre_dump: self.pre_dump,
            skip_in_flight: self.tcp_skip_in_flight,
            page_server: self.page_server.as_deref().map(page_server).transpose()?,
            status: self.status()?,
        })
    }

    fn status(&self) -> Result<Option<OwnedFd>> {
        if self.status_fd == -1 {
            return Ok(None);
        }
        let wrong = |why: &str| {
            Error::new(Kind::InvalidArgument, format!("invalid --status-fd argument {}: {why}", self.status_fd))
        };
        let status = fd::inherited(self.status_fd).map_err(|e| wrong(&e.to_string()))?;
        let flags = rustix::fs::fcntl_getfl(&status).os(|| "fcntl F_GETFL")?;
        match flags & rustix::fs::OFlags::RWMODE {
            rustix::fs::OFlags::RDONLY => Err(wrong("not writable")),
            _ => Ok(Some(status)),
        }
    }

    /// What containerd's message for it has no words for.
    fn refuse_of_shim(&self) -> Result<()> {
        let flags = [
            ("--pre-dump", self.pre_dump),
            ("--lazy-pages", self.criu.lazy_pages),
            ("--page-server", self.page_server.is_some()),
            ("--status-fd", self.status_fd != -1),
            ("--auto-dedup", self.criu.auto_dedup),
            ("--link-remap", self.criu.link_remap),
            ("--tcp-skip-in-flight", self.tcp_skip_in_flight),
            ("--tcp-close", self.criu.tcp_close),
        ];
        match flags.into_iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((flag, _)) => {
                let text = format!("container {}: {flag}: its shim lives, and cannot be asked for that", self.id);
                Err(Error::new(Kind::Unimplemented, text))
            }
        }
    }
}

fn page_server(text: &str) -> Result<(String, u16)> {
    let wrong = |text: &str| Error::new(Kind::InvalidArgument, text);
    let usage = "Use --page-server ADDRESS:PORT to specify page server";
    let (address, port) = text.rsplit_once(':').ok_or_else(|| wrong(usage))?;
    // IPv6 has brackets, as in a URL.
    let address = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    if address.is_empty() || port.is_empty() {
        return Err(wrong(usage));
    }
    Ok((address.to_owned(), port.parse().map_err(|_| wrong("Invalid port number"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_is_an_address_and_a_port() {
        assert_eq!(page_server("127.0.0.1:7").unwrap(), ("127.0.0.1".into(), 7));
        assert_eq!(page_server("[::1]:65535").unwrap(), ("::1".into(), 65535));
        for (bad, word) in [("host", "ADDRESS:PORT"), (":1", "ADDRESS:PORT"), ("h:", "ADDRESS:PORT"), ("h:x", "port")] {
            assert!(page_server(bad).unwrap_err().to_string().contains(word), "{bad}");
        }
    }
}
