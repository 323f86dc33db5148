//! linux.netDevices: network devices of the host's that become the container's.

use std::collections::HashSet;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::namespaces::namespace;
use super::validate::invalid;
use crate::error::Result;

/// The longest name of a device, without its NUL (IFNAMSIZ of linux/if.h).
const LONGEST: usize = 15;

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name where the shim is.
    pub host: String,
    /// The name that it is to have; with `%d` in it the kernel finds a number that is free.
    pub name: String,
}

impl NetDevice {
    /// Its name is the kernel's to complete.
    pub fn is_template(&self) -> bool {
        self.name.contains('%')
    }
}

/// The specification's devices, in the order of their names, since the document has none.
///
/// # Errors
/// `InvalidArgument`, naming the device, for a name that the kernel would not take, two devices of one name, and where the
/// container has no network namespace: they are the host's already.
pub fn net_devices(spec: &Spec) -> Result<Vec<NetDevice>> {
    let listed = spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref());
    let mut devices = Vec::new();
    for (host, device) in listed.into_iter().flatten() {
        let given = device.name().as_deref().filter(|name| !name.is_empty());
        let name = given.unwrap_or(host);
        is_name(host).map_err(|why| invalid(format!("linux.netDevices: {host:?} is no name of a device: {why}")))?;
        let wrong = |why: &str| invalid(format!("linux.netDevices[{host}].name: {name:?} is none: {why}"));
        match given {
            // Of one that is not given a percent sign is what it is called already.
            Some(name) => is_name(name).and_then(|()| is_template(name)).map_err(wrong)?,
            None if name.contains('%') => return Err(wrong("the kernel would take it for a template")),
            None => {}
        }
        devices.push(NetDevice { host: host.clone(), name: name.to_owned() });
    }
    devices.sort_by(|a, b| a.host.cmp(&b.host));
    let mut taken = HashSet::new();
    if let Some(twice) = devices.iter().find(|device| !device.is_template() && !taken.insert(&device.name)) {
        return Err(invalid(format!("linux.netDevices: two devices are to be called {:?}", twice.name)));
    }
    match namespace(spec, LinuxNamespaceType::Network) {
        None if !devices.is_empty() => Err(invalid("linux.netDevices needs a network namespace in linux.namespaces")),
        _ => Ok(devices),
    }
}

/// By dev_valid_name() of the kernel (net/core/dev.c).
fn is_name(name: &str) -> std::result::Result<(), &'static str> {
    match name {
        "" => Err("it is empty"),
        "." | ".." => Err("it is a directory"),
        _ if name.len() > LONGEST => Err("it is longer than 15 bytes"),
        _ if name.contains(['/', ':', '\0']) => Err("it has one of / : NUL in it"),
        _ if name.contains(|letter: char| letter.is_ascii_whitespace() || letter == '\x0b') => {
            Err("it has a blank in it")
        }
        _ => Ok(()),
    }
}

/// One `%d` and no other percent sign, or none at all: what dev_alloc_name() takes.
fn is_template(name: &str) -> std::result::Result<(), &'static str> {
    match name.split_once('%') {
        None => Ok(()),
        Some((_, rest)) if rest.starts_with('d') && !rest.contains('%') => Ok(()),
        Some(_) => Err("a template has one %d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::{Value, json};

    fn devices(namespaces: Value, devices: Value) -> Result<Vec<NetDevice>> {
        let linux = json!({ "namespaces": namespaces, "netDevices": devices });
        net_devices(&serde_json::from_value(json!({ "ociVersion": "1.3.0", "linux": linux })).unwrap())
    }

    fn judge(listed: Value) -> Result<Vec<NetDevice>> {
        devices(json!([{ "type": "network" }]), listed)
    }

    #[test]
    fn devices_keep_their_names_or_are_given_others() {
        let listed = json!({ "b": { "name": "eth%d" }, "a": {}, "c": { "name": "" }, "d": { "name": "eth%d" } });
        let names: Vec<_> = judge(listed).unwrap().into_iter().map(|device| (device.host, device.name)).collect();
        let meant = [("a", "a"), ("b", "eth%d"), ("c", "c"), ("d", "eth%d")];
        assert_eq!(names, meant.map(|(host, name)| (host.to_owned(), name.to_owned())));
        assert_eq!(judge(json!({ "a": { "name": "b" }, "b": { "name": "a" } })).unwrap().len(), 2);
        assert_eq!(judge(json!({ "fifteen-letters": {} })).unwrap().len(), 1);
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused_and_named() {
        for name in ["", ".", "..", "sixteen--letters", "a/b", "a b", "a:b", "a\tb", "a\0b"] {
            let error = judge(json!({ name: {} })).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with(&format!("linux.netDevices: {name:?} is no name")), "{error}");
            if name.is_empty() {
                continue;
            }
            let error = judge(json!({ "dev": { "name": name } })).unwrap_err();
            assert!(error.to_string().starts_with(&format!("linux.netDevices[dev].name: {name:?} is none")), "{error}");
        }
        for name in ["a%s", "a%", "%d%d", "a%%d"] {
            assert!(judge(json!({ "dev": { "name": name } })).unwrap_err().to_string().contains("one %d"), "{name}");
        }
        assert!(judge(json!({ "a%d": {} })).unwrap_err().to_string().contains("template"));
    }

    #[test]
    fn two_of_one_name_and_a_container_of_the_hosts_network_are_refused() {
        for twice in [json!({ "a": { "name": "x" }, "b": { "name": "x" } }), json!({ "a": {}, "b": { "name": "a" } })] {
            assert!(judge(twice).unwrap_err().to_string().contains("two devices are to be called"));
        }
        let error = devices(json!([{ "type": "mount" }]), json!({ "a": {} })).unwrap_err();
        assert!(error.to_string().contains("needs a network namespace"), "{error}");
        devices(json!([{ "type": "mount" }]), json!({})).unwrap();
    }
}
