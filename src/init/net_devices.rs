//! Moving the host's network devices into a container's network namespace (runtime-spec: config-linux.md, "Network
//! Devices").
//!
//! It is the shim's work, done by a helper of its own while the container's init waits: in a user namespace init has no
//! rights over the host's devices. A device that cannot be moved in full is moved back with all before it. From then on
//! they are the namespace's: at its end the kernel gives physical devices back and ends the others.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::error::{Context, Error, Kind, Result};
use crate::spec::net_devices::NetDevice;
use crate::sys::netlink::{Address, Link, Route};
use crate::sys::ns::{self, Namespace};

/// Whose the container's network namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The container's alone, of which no process runs yet.
    Container,
    /// One that it joins. Who has CAP_NET_ADMIN there may rename devices, and put others of the same hardware address in
    /// their places.
    Others,
}

/// A network namespace.
struct Side {
    namespace: OwnedFd,
    route: Route,
}

/// A device on its way.
struct Moving<'a> {
    wanted: &'a NetDevice,
    /// What it was on the host.
    link: Link,
    addresses: Vec<Address>,
}

/// Moves all of them into the network namespace of the process `pid`, and the caller with them. To be called by a process
/// that has nothing else to do.
///
/// # Errors
/// With the device's name. All devices are where they were then, as far as the kernel lets them.
pub fn move_all(devices: &[NetDevice], pid: u32, owner: Owner) -> Result<()> {
    let path = |pid: &str| Path::new("/proc").join(pid).join("ns/net");
    let host = Side { namespace: ns::open_path(Namespace::Network, &path("self"))?, route: Route::open()? };
    let inside = ns::open_path(Namespace::Network, &path(&pid.to_string()))?;
    ns::enter(inside.as_fd(), Namespace::Network)?;
    let inside = Side { namespace: inside, route: Route::open()? };
    // Before anything is done to the first.
    let moving = devices.iter().map(|device| find(device, &host, &inside).context(|| name(device)));
    let moving: Vec<_> = moving.collect::<Result<_>>()?;
    for (at, device) in moving.iter().enumerate() {
        let before = inside.route.links()?;
        let Err(error) = move_in(device, &before, &host, &inside) else { continue };
        let error = error.with_kind(Kind::FailedPrecondition).context(name(device.wanted));
        let backwards = moving[..=at].iter().rev().map(|device| move_back(device, &host, &inside, owner));
        return match backwards.filter_map(Result::err).next() {
            None => Err(error),
            Some(stuck) => Err(error.context(format!("({stuck})"))),
        };
    }
    Ok(())
}

fn name(device: &NetDevice) -> String {
    format!("linux.netDevices[{}]", device.host)
}

fn find<'a>(wanted: &'a NetDevice, host: &Side, inside: &Side) -> Result<Moving<'a>> {
    let refuse = |why: String| Error::new(Kind::FailedPrecondition, why);
    let link = host.route.link(&wanted.host)?.ok_or_else(|| refuse("there is no such device".to_owned()))?;
    if !wanted.is_template() && inside.route.link(&wanted.name)?.is_some() {
        return Err(refuse(format!("the container's network namespace has a device called {:?}", wanted.name)));
    }
    let addresses = host.route.addresses(link.index)?;
    Ok(Moving { wanted, link, addresses })
}

fn move_in(device: &Moving<'_>, before: &[Link], host: &Side, inside: &Side) -> Result<()> {
    host.route.move_to(device.link.index, inside.namespace.as_fd(), &device.wanted.name)?;
    // By what is new: a template's name is the kernel's choice, and a number that is taken is changed.
    let all = inside.route.links()?;
    let arrived = |link: &&Link| {
        let new = !before.iter().any(|old| old.index == link.index);
        let named = device.wanted.is_template() || link.name == device.wanted.name;
        new && named && link.hardware == device.link.hardware
    };
    let arrived = all.iter().find(arrived).ok_or_else(|| Error::new(Kind::Internal, "it has not arrived"))?;
    for address in device.addresses.iter().filter(|address| address.lasting) {
        inside.route.add_address(arrived.index, address)?;
    }
    inside.route.set_up(arrived.index)
}

/// To where it was, from wherever it is. From a namespace of others only what is certainly the same: a device of the
/// machine's, by its place on a bus. Another in its place would be somebody's way into the host's network.
fn move_back(device: &Moving<'_>, host: &Side, inside: &Side, owner: Owner) -> Result<()> {
    let certain =
        |link: &Link| owner == Owner::Container || (device.link.parent.is_some() && link.parent == device.link.parent);
    let there = |link: &Link| link.hardware == device.link.hardware;
    if host.route.links()?.iter().any(|link| link.index == device.link.index && there(link)) {
        return Ok(());
    }
    let all = inside.route.links()?;
    let names = [&device.wanted.name, &device.wanted.host];
    let template = device.wanted.name.split('%').next().filter(|_| device.wanted.is_template());
    let called = |link: &Link| names.contains(&&link.name) || template.is_some_and(|head| link.name.starts_with(head));
    let link = all.iter().find(|link| there(link) && called(link) && certain(link));
    let lost = || format!("{} stays in the container's network namespace, or is lost", device.wanted.host);
    let link = link.ok_or_else(|| Error::new(Kind::Internal, lost()))?;
    inside
        .route
        .move_to(link.index, host.namespace.as_fd(), &device.wanted.host)
        .context(|| format!("moving {} back", device.wanted.host))?;
    let Some(link) = host.route.link(&device.wanted.host)? else { return Ok(()) };
    device.addresses.iter().try_for_each(|address| host.route.add_address(link.index, address))?;
    if device.link.up { host.route.set_up(link.index) } else { Ok(()) }
}
