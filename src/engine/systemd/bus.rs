//! A connection to systemd: directly, or by a message bus. One at a time, for one operation, and closed after it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Instance;
use crate::cgroup::systemd::manager::{self, JobRemoved};
use crate::cgroup::systemd::message::{Call, Message, Refusal, SIGNAL};
use crate::cgroup::systemd::wire::{FIXED, MAX_MESSAGE, frame};
use crate::error::{Error, Kind, Os, Result};

/// The socket of the machine's systemd itself, which is for root alone. systemctl takes it too where it can: there need be
/// no bus.
const PRIVATE: &str = "/run/systemd/private";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// The longest line of an authentication.
const MAX_LINE: usize = 1024;

/// Where a systemd can be spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Of its socket.
    pub path: PathBuf,
    /// A message bus is there, and systemd one of those on it.
    pub bus: bool,
}

/// A connection.
pub(super) struct Bus {
    stream: UnixStream,
    address: Address,
    serial: u32,
    /// The name that systemd has on the bus.
    systemd: String,
    /// The unit whose jobs are of interest.
    unit: String,
    /// The ends of its jobs, as far as they have been told.
    ended: Vec<JobRemoved>,
}

impl Bus {
    /// Connects to the first that can be, and sees to it that the ends of jobs of `unit` are told.
    ///
    /// # Errors
    /// `Unavailable` where there is no systemd; what it says to us. This waits as long as the other side does: the caller
    /// has the bound.
    pub async fn connect(addresses: Vec<Address>, unit: &str) -> Result<Self> {
        let mut first = None;
        for address in addresses {
            match UnixStream::connect(&address.path).await {
                Ok(stream) => {
                    let name = String::new();
                    let unit = unit.to_owned();
                    let mut bus = Self { stream, address, serial: 0, systemd: name, unit, ended: Vec::new() };
                    let greeted = bus.greet().await;
                    greeted.map_err(|e| e.context(bus.address.path.display().to_string()))?;
                    return Ok(bus);
                }
                Err(e) => {
                    let failed = Error::os(e, format!("connect {}", address.path.display()));
                    first.get_or_insert(failed);
                }
            }
        }
        let none = || Error::new(Kind::Unavailable, "there is no address of it");
        Err(first.map_or_else(none, |e| e.with_kind(Kind::Unavailable)))
    }

    async fn greet(&mut self) -> Result<()> {
        // Who we are the other side asks the kernel: so it is right in a user namespace too.
        self.write(b"\0AUTH EXTERNAL\r\n").await?;
        // BEGIN has no answer, and systemd waits for ever for more where it reads a first message together with it. So it
        // goes with a line that has an answer.
        let accepted = match &*self.line().await? {
            "DATA" => {
                self.write(b"DATA\r\nBEGIN\r\n").await?;
                self.line().await?
            }
            // systemd before 246.
            line => {
                self.write(b"NEGOTIATE_UNIX_FD\r\nBEGIN\r\n").await?;
                self.line().await?;
                line.to_owned()
            }
        };
        if !accepted.starts_with("OK ") {
            let text = format!("it does not accept us: {accepted:?}");
            return Err(Error::new(Kind::Unavailable, text));
        }
        if self.address.bus {
            self.call(&manager::hello()).await?.map_err(Refusal::into_error)?;
            self.call(&manager::match_jobs(&self.unit.clone())).await?.map_err(Refusal::into_error)?;
        }
        Ok(())
    }

    /// Has systemd send signals: to the bus it does so only where somebody has asked.
    pub async fn subscribe(&mut self) -> Result<()> {
        match self.address.bus {
            true => self.call(&manager::subscribe()).await?.map(drop).map_err(Refusal::into_error),
            false => Ok(()),
        }
    }

    /// Takes the sender of `answer` for systemd from now on: on a bus, everybody may send us signals.
    pub fn trust(&mut self, answer: &Message) {
        self.systemd.clone_from(&answer.sender);
    }

    /// Calls, and waits for the answer.
    pub async fn call(&mut self, call: &Call) -> Result<Result<Message, Refusal>> {
        self.serial += 1;
        self.write(&call.encode(self.serial)).await?;
        loop {
            let message = self.message().await?;
            match message.answer(self.serial) {
                Some(Ok(_)) => return Ok(Ok(message)),
                Some(Err(refusal)) => return Ok(Err(refusal)),
                None => self.note(&message)?,
            }
        }
    }

    /// Waits for the end of a job of the unit; its result.
    pub async fn end_of(&mut self, job: &str) -> Result<String> {
        loop {
            if let Some(at) = self.ended.iter().position(|ended| ended.job == job) {
                return Ok(self.ended.swap_remove(at).result);
            }
            let message = self.message().await?;
            self.note(&message)?;
        }
    }

    fn note(&mut self, message: &Message) -> Result<()> {
        if message.sender == self.systemd
            && let Some(removed) = manager::job_removed(message)?
            && removed.unit == self.unit
        {
            self.ended.push(removed);
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(closed).os(|| "write to systemd")
    }

    /// A line of the authentication, without its end.
    async fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == MAX_LINE {
                return Err(Error::new(Kind::Internal, "it answers with a line that has no end"));
            }
            // Byte by byte: what comes after the line is not its.
            line.push(self.stream.read_u8().await.map_err(closed).os(|| "read from systemd")?);
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The next message that is not too long to be of interest.
    async fn message(&mut self) -> Result<Message> {
        loop {
            let mut bytes = vec![0; FIXED];
            self.read(&mut bytes).await?;
            let fixed = bytes.first_chunk().ok_or_else(|| Error::new(Kind::Internal, "no message"))?;
            let (kind, length) = frame(fixed)?;
            if length <= MAX_MESSAGE {
                bytes.resize(length, 0);
                self.read(&mut bytes[FIXED..]).await?;
                return Message::decode(&bytes);
            }
            if kind != SIGNAL {
                return Err(Error::new(Kind::Internal, format!("an answer of {length} bytes")));
            }
            // Without a bus we are told everything, and some of it has whole environments in it.
            let mut rest = (&mut self.stream).take((length - FIXED) as u64);
            let passed = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.os(|| "read from systemd")?;
            if passed != (length - FIXED) as u64 {
                return Err(Error::os(libc::ECONNRESET, "read from systemd"));
            }
        }
    }

    async fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.stream.read_exact(bytes).await.map(drop).map_err(closed).os(|| "read from systemd")
    }
}

/// The end of a connection has no errno of its own.
fn closed(e: std::io::Error) -> std::io::Error {
    if e.raw_os_error().is_some() { e } else { std::io::Error::from_raw_os_error(libc::ECONNRESET) }
}

/// Where to look for systemd, in this order. An address that the environment gives counts alone: it is there to be obeyed.
pub(super) fn addresses(instance: Instance, env: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Address>> {
    let direct = |path: PathBuf| Address { path, bus: false };
    let bus = |path: PathBuf| Address { path, bus: true };
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let variable = match instance {
        Instance::System => "DBUS_SYSTEM_BUS_ADDRESS",
        Instance::User => "DBUS_SESSION_BUS_ADDRESS",
    };
    let named = env(variable).map(|text| parse(variable, &text.to_string_lossy())).transpose()?;
    let named = named.into_iter().flatten().map(bus);
    match (instance, env("XDG_RUNTIME_DIR").map(PathBuf::from)) {
        (Instance::System, _) => {
            let named: Vec<_> = named.collect();
            Ok(if named.is_empty() { vec![direct(PRIVATE.into()), bus(SYSTEM_BUS.into())] } else { named })
        }
        // A session has its bus for other things: its address is no wish of whoever runs containers.
        (Instance::User, Some(runtime)) => Ok([direct(runtime.join("systemd/private"))]
            .into_iter()
            .chain(named)
            .chain([bus(runtime.join("bus"))])
            .collect()),
        (Instance::User, None) => Ok(named.collect()),
    }
}

/// The sockets of a list of addresses ("Server Addresses" in the D-Bus specification).
fn parse(name: &str, text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for address in text.split(';').filter_map(|address| address.strip_prefix("unix:")) {
        for (key, value) in address.split(',').filter_map(|pair| pair.split_once('=')) {
            let value = unescape(value);
            match key {
                "path" => paths.push(PathBuf::from(OsString::from_vec(value))),
                "abstract" => paths.push(PathBuf::from(OsString::from_vec([b"\0", &value[..]].concat()))),
                _ => {}
            }
        }
    }
    match paths.is_empty() {
        true => Err(Error::new(Kind::FailedPrecondition, format!("{name} {text:?}: not the address of a Unix socket"))),
        false => Ok(paths),
    }
}

/// `%20` is a space.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| byte == b'%') {
            Some(escaped) => {
                out.push(escaped);
                rest = &tail[2..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(instance: Instance, env: &[(&str, &str)]) -> Vec<(String, bool)> {
        let get = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        let all = addresses(instance, get).unwrap();
        all.into_iter().map(|address| (address.path.to_string_lossy().into_owned(), address.bus)).collect()
    }

    fn rows(rows: &[(&str, bool)]) -> Vec<(String, bool)> {
        rows.iter().map(|(path, bus)| ((*path).to_owned(), *bus)).collect()
    }

    #[test]
    fn an_address_of_the_environment_counts() {
        let usual = rows(&[("/run/systemd/private", false), ("/run/dbus/system_bus_socket", true)]);
        assert_eq!(of(Instance::System, &[]), usual);
        assert_eq!(of(Instance::System, &[("DBUS_SYSTEM_BUS_ADDRESS", "")]), usual);
        let given = "unix:path=/a%20b,guid=12;tcp:host=x;unix:abstract=c";
        assert_eq!(of(Instance::System, &[("DBUS_SYSTEM_BUS_ADDRESS", given)]), rows(&[("/a b", true), ("\0c", true)]));
        let user = [("XDG_RUNTIME_DIR", "/run/user/7"), ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/b")];
        let expected = [("/run/user/7/systemd/private", false), ("/b", true), ("/run/user/7/bus", true)];
        assert_eq!(of(Instance::User, &user), rows(&expected));
        assert_eq!(of(Instance::User, &[]), []);
        assert!(parse("X", "tcp:host=x").is_err());
    }
}
