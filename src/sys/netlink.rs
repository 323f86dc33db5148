//! Network devices and their addresses by rtnetlink(7), as far as moving a device to another network namespace needs it.
//!
//! Messages are made and read by hand: the numbers are few, in the byte order of the machine, and aligned to 4 bytes.

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send, socket_with};

use crate::error::{Error, Kind, Os, Result};

/// More than any message of the kernel's to us: it makes those of a dump no longer than 32 KiB.
const LONGEST: usize = 64 * 1024;

/// How often a list is asked for again that changed while it was told.
const TRIES: usize = 16;

/// IFA_F_* (linux/if_addr.h) that say how an address is to be used. The others tell what has become of it.
const KEPT_FLAGS: u32 = libc::IFA_F_NODAD
    | libc::IFA_F_HOMEADDRESS
    | libc::IFA_F_MANAGETEMPADDR
    | libc::IFA_F_NOPREFIXROUTE
    | libc::IFA_F_MCAUTOJOIN;

/// IFA_RT_PRIORITY and IFA_PROTO (linux/if_addr.h), from Linux 4.18 and 5.18.
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;

/// linux/if_link.h
const IFLA_PARENT_DEV_NAME: u16 = 56;

/// An rtnetlink socket. It is of the network namespace in which it was opened, wherever its process goes.
#[derive(Debug)]
pub struct Route {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: i32,
    /// Its name there.
    pub name: String,
    /// IFF_UP: it has been set up.
    pub up: bool,
    /// Its hardware address; empty where it has none.
    pub hardware: Vec<u8>,
    /// The device of the machine's that it is of ("0000:00:03.0"); none of one that is software. From Linux 5.14 on.
    pub parent: Option<Vec<u8>>,
}

/// An address of a device, as RTM_NEWADDR takes it but for the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// It is anybody's to use, and for ever: global and permanent. Those of the link alone are the kernel's to make or of
    /// use there alone, and those with a lifetime are the network's to give again.
    pub lasting: bool,
    family: u8,
    prefix: u8,
    scope: u8,
    attributes: Vec<u8>,
}

/// One message of the kernel's.
struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Route {
    /// Opens one in the caller's network namespace.
    pub fn open() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None);
        let socket = socket.os(|| "socket NETLINK_ROUTE")?;
        bind(&socket, &SocketAddrNetlink::new(0, 0)).os(|| "bind NETLINK_ROUTE")?;
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// All devices.
    pub fn links(&self) -> Result<Vec<Link>> {
        let all = self.dump(libc::RTM_GETLINK, &interface(0, 0, 0), "RTM_GETLINK")?;
        all.iter().filter(|message| message.kind == libc::RTM_NEWLINK).map(|message| link(&message.body)).collect()
    }

    /// The device called `name`, if there is one.
    pub fn link(&self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// The addresses of a device, but for those that the kernel gives it by itself when it is set up.
    pub fn addresses(&self, index: i32) -> Result<Vec<Address>> {
        let all = self.dump(libc::RTM_GETADDR, &address_header(0, 0, 0, 0), "RTM_GETADDR")?;
        let all = all.iter().filter(|message| message.kind == libc::RTM_NEWADDR);
        Ok(all.filter_map(|message| address(&message.body, index)).collect())
    }

    /// Gives a device an address.
    pub fn add_address(&self, index: i32, address: &Address) -> Result<()> {
        let mut body = address_header(address.family, address.prefix, address.scope, index).to_vec();
        body.extend(&address.attributes);
        self.request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body, "RTM_NEWADDR")
    }

    /// Sets a device up.
    pub fn set_up(&self, index: i32) -> Result<()> {
        let up = libc::IFF_UP as u32;
        self.request(libc::RTM_NEWLINK, 0, &interface(index, up, up), "RTM_NEWLINK up")
    }

    /// Moves a device into the network namespace `to`, where it is called `name`. It is down then and has no address left;
    /// its hardware address and MTU it keeps.
    ///
    /// # Errors
    /// EEXIST for a name that is taken there; the device may have been moved all the same, under the name that it had
    /// (the kernel renames it in a second step).
    pub fn move_to(&self, index: i32, to: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut body = interface(index, 0, 0).to_vec();
        attribute(&mut body, libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        attribute(&mut body, libc::IFLA_NET_NS_FD, &to.as_raw_fd().to_ne_bytes());
        self.request(libc::RTM_NEWLINK, 0, &body, "RTM_NEWLINK to another network namespace")
    }

    /// Asks for something to be done, and waits until it is.
    fn request(&self, kind: u16, flags: libc::c_int, body: &[u8], what: &str) -> Result<()> {
        self.send(kind, flags | libc::NLM_F_ACK, body, what)?;
        for message in self.receive(what)? {
            if message.kind == libc::NLMSG_ERROR as u16 {
                return status(&message.body, what);
            }
        }
        Err(nonsense(what))
    }

    /// Asks for a list.
    fn dump(&self, kind: u16, body: &[u8], what: &str) -> Result<Vec<Message>> {
        for _ in 0..TRIES {
            self.send(kind, libc::NLM_F_DUMP, body, what)?;
            let mut all = Vec::new();
            let last = loop {
                let more = self.receive(what)?;
                let last = |message: &&Message| {
                    [libc::NLMSG_DONE, libc::NLMSG_ERROR].contains(&libc::c_int::from(message.kind))
                };
                let last = more.iter().find(last).map(|message| status(&message.body, what));
                all.extend(more);
                if let Some(status) = last {
                    break status;
                }
            };
            last?;
            if all.iter().all(|message| i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0) {
                return Ok(all);
            }
        }
        Err(Error::new(Kind::Unavailable, format!("{what}: the list changes all the time")))
    }

    fn send(&self, kind: u16, flags: libc::c_int, body: &[u8], what: &str) -> Result<()> {
        self.sequence.set(self.sequence.get() + 1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        message.extend(self.sequence.get().to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty()).map(drop).os(|| format!("send {what}"))
    }

    /// The next messages; those that answer an earlier request are left out.
    fn receive(&self, what: &str) -> Result<Vec<Message>> {
        let mut buffer = vec![0; LONGEST];
        let length = loop {
            let got = rustix::io::retry_on_intr(|| recvfrom(&self.socket, &mut buffer[..], RecvFlags::TRUNC));
            let (_, length, sender) = got.os(|| format!("recvfrom {what}"))?;
            // Who has CAP_NET_ADMIN in the namespace may send here too, and say that it is an answer.
            let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
            if sender.is_some_and(|sender| sender.pid() == 0) {
                break length;
            }
        };
        let mut rest = buffer.get(..length).ok_or_else(|| nonsense(what))?;
        let mut all = Vec::new();
        while !rest.is_empty() {
            let length = number(rest, 0).map(u32::from_ne_bytes).ok_or_else(|| nonsense(what))? as usize;
            let body = rest.get(HEADER..length).ok_or_else(|| nonsense(what))?.to_vec();
            let kind = u16::from_ne_bytes(number(rest, 4).ok_or_else(|| nonsense(what))?);
            let flags = u16::from_ne_bytes(number(rest, 6).ok_or_else(|| nonsense(what))?);
            if number(rest, 8) == Some(self.sequence.get().to_ne_bytes()) {
                all.push(Message { kind, flags, body });
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(all)
    }
}

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// `struct ifinfomsg`.
fn interface(index: i32, flags: u32, change: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&change.to_ne_bytes());
    body
}

/// `struct ifaddrmsg`; the flags are an attribute's.
fn address_header(family: u8, prefix: u8, scope: u8, index: i32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, 0, scope, a, b, c, d]
}

/// Appends a `struct rtattr` and its value.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes of a message, behind its fixed part.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(number(rest, 0)?) as usize;
        let kind = u16::from_ne_bytes(number(rest, 2)?) & libc::NLA_TYPE_MASK as u16;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn link(body: &[u8]) -> Result<Link> {
    let what = "RTM_NEWLINK";
    let index = i32::from_ne_bytes(number(body, 4).ok_or_else(|| nonsense(what))?);
    let flags = u32::from_ne_bytes(number(body, 8).ok_or_else(|| nonsense(what))?);
    let up = flags & libc::IFF_UP as u32 != 0;
    let mut link = Link { index, name: String::new(), up, hardware: Vec::new(), parent: None };
    for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
        match kind {
            libc::IFLA_IFNAME => link.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into(),
            libc::IFLA_ADDRESS => link.hardware = value.to_vec(),
            IFLA_PARENT_DEV_NAME => link.parent = Some(value.to_vec()),
            _ => {}
        }
    }
    Ok(link)
}

fn address(body: &[u8], index: i32) -> Option<Address> {
    let &[family, prefix, flags, scope, ..] = body else { return None };
    let mut flags = u32::from(flags);
    let (mut kept, mut lifetime) = (Vec::new(), None);
    for (kind, value) in attributes(body.get(8..).unwrap_or_default()) {
        match kind {
            // With 32 bits, of which the header has 8.
            libc::IFA_FLAGS => flags = u32::from_ne_bytes(number(value, 0)?),
            libc::IFA_CACHEINFO => lifetime = Some(value),
            libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST | IFA_RT_PRIORITY | IFA_PROTO => {
                attribute(&mut kept, kind, value);
            }
            // The label has the device's name in it; the rest is what the kernel makes of these.
            _ => {}
        }
    }
    let permanent = flags & libc::IFA_F_PERMANENT != 0;
    if let Some(lifetime) = lifetime.filter(|_| !permanent) {
        attribute(&mut kept, libc::IFA_CACHEINFO, lifetime);
    }
    if flags & KEPT_FLAGS != 0 {
        attribute(&mut kept, libc::IFA_FLAGS, &(flags & KEPT_FLAGS).to_ne_bytes());
    }
    let kernels = i32::from(family) == libc::AF_INET6 && scope == libc::RT_SCOPE_LINK;
    let ours = number(body, 4) == Some(index.to_ne_bytes());
    let lasting = permanent && scope == libc::RT_SCOPE_UNIVERSE;
    (ours && !kernels).then_some(Address { lasting, family, prefix, scope, attributes: kept })
}

/// The number at the head of an error, or of the end of a list: 0 for success.
fn status(body: &[u8], what: &str) -> Result<()> {
    match number(body, 0).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno @ ..0) => Err(Error::os(-errno, what)),
        _ => Err(nonsense(what)),
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn nonsense(what: &str) -> Error {
    Error::new(Kind::Internal, format!("{what}: the kernel's answer is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_there_and_has_its_addresses() {
        let route = Route::open().unwrap();
        let lo = route.link("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.hardware.as_slice()), (1, [0; 6].as_slice()));
        assert!(route.links().unwrap().contains(&lo));
        // They are of the host's scope: none to be taken along.
        assert!(!route.addresses(lo.index).unwrap().iter().any(|address| address.lasting));
        assert_eq!(route.link("no such device").unwrap(), None);
    }

    #[test]
    fn an_error_is_the_kernels() {
        let route = Route::open().unwrap();
        let error = route.set_up(i32::MAX).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
        // And the socket is in step after it.
        assert!(route.link("lo").unwrap().is_some());
    }

    #[test]
    fn only_global_permanent_addresses_last_and_of_their_flags_the_orders() {
        let message = |scope: u8, index: i32, flags: u32| {
            let mut body = address_header(2, 24, scope, index).to_vec();
            attribute(&mut body, libc::IFA_LOCAL, &[10, 0, 0, 1]);
            attribute(&mut body, libc::IFA_LABEL, b"eth0\0");
            attribute(&mut body, libc::IFA_CACHEINFO, &[9; 16]);
            attribute(&mut body, libc::IFA_FLAGS, &flags.to_ne_bytes());
            body
        };
        let permanent = libc::IFA_F_PERMANENT;
        let mut kept = Vec::new();
        attribute(&mut kept, libc::IFA_LOCAL, &[10, 0, 0, 1]);
        let plain = Address { lasting: true, family: 2, prefix: 24, scope: 0, attributes: kept.clone() };
        assert_eq!(address(&message(0, 7, permanent), 7), Some(plain.clone()));
        let of_the_link = Address { lasting: false, scope: 253, ..plain.clone() };
        assert_eq!(address(&message(253, 7, permanent), 7), Some(of_the_link));
        assert_eq!(address(&message(0, 8, permanent), 7), None);
        let lasting = address(&message(0, 7, permanent | libc::IFA_F_TENTATIVE | libc::IFA_F_NOPREFIXROUTE), 7);
        attribute(&mut kept, libc::IFA_FLAGS, &libc::IFA_F_NOPREFIXROUTE.to_ne_bytes());
        assert_eq!(lasting, Some(Address { attributes: kept, ..plain }));
        let passing = address(&message(0, 7, 0), 7).unwrap();
        assert!(!passing.lasting && attributes(&passing.attributes).any(|(kind, _)| kind == libc::IFA_CACHEINFO));
    }

    #[test]
    fn broken_answers_do_no_harm() {
        for length in 0..24 {
            let _ = link(&vec![0xff; length]);
            let _ = address(&vec![0xff; length], 1);
            let _ = attributes(&vec![1; length]).count();
        }
    }
}
