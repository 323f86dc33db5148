//! The rules of `linux.resources` for block devices, huge pages, network and RDMA.
//!
//! What of it goes into one line of a control file must be one word there: a line break or a blank would make it another
//! line or another value.

use super::{MAX_MAJOR, MAX_MINOR, invalid, number};
use crate::error::{Context, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxHugepageLimit, LinuxInterfacePriority, LinuxResources};

pub(super) fn validate(resources: &LinuxResources) -> Result<()> {
    resources.block_io().as_ref().map_or(Ok(()), block_io).context(|| "linux.resources.blockIO")?;
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        hugepages(limit).context(|| format!("linux.resources.hugepageLimits[{index}]"))?;
    }
    let network = resources.network().as_ref().and_then(|network| network.priorities().as_deref());
    for (index, priority) in network.unwrap_or_default().iter().enumerate() {
        interface(priority).context(|| format!("linux.resources.network.priorities[{index}]"))?;
    }
    for (name, limits) in resources.rdma().iter().flatten() {
        let field = || format!("linux.resources.rdma[{name:?}]");
        if !is_word(name) {
            return Err(invalid(format!("{}: no name of a device", field())));
        }
        if (limits.hca_handles(), limits.hca_objects()) == (None, None) {
            return Err(invalid(format!("{}: hcaHandles or hcaObjects is required", field())));
        }
    }
    Ok(())
}

fn block_io(io: &LinuxBlockIo) -> Result<()> {
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let field = || format!("weightDevice[{index}]");
        device_number(device.major(), device.minor()).context(field)?;
        if (device.weight(), device.leaf_weight()) == (None, None) {
            return Err(invalid("weight or leafWeight is required")).context(field);
        }
    }
    for (name, devices) in [
        ("throttleReadBpsDevice", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", io.throttle_write_iops_device()),
    ] {
        for (index, device) in devices.iter().flatten().enumerate() {
            device_number(device.major(), device.minor()).context(|| format!("{name}[{index}]"))?;
        }
    }
    Ok(())
}

fn device_number(major: i64, minor: i64) -> Result<()> {
    number("major", major, 0, MAX_MAJOR).and_then(|()| number("minor", minor, 0, MAX_MINOR))
}

/// The schema's `^[1-9][0-9]*[KMG]B$`; that the host has such pages is judged where they are limited.
fn hugepages(limit: &LinuxHugepageLimit) -> Result<()> {
    let size = limit.page_size();
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or_default();
    if !digits.starts_with(|first: char| ('1'..='9').contains(&first)) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid(format!("pageSize is no size like 64KB, 2MB, 1GB: {size:?}")));
    }
    match limit.limit() {
        bytes @ ..0 => Err(invalid(format!("limit is negative: {bytes}"))),
        _ => Ok(()),
    }
}

/// netdevice(7): IFNAMSIZ with its NUL.
const LONGEST_INTERFACE: usize = 15;

fn interface(priority: &LinuxInterfacePriority) -> Result<()> {
    let name = priority.name();
    match is_word(name) && name.len() <= LONGEST_INTERFACE {
        true => Ok(()),
        false => Err(invalid(format!("name is no interface's: {name:?}"))),
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::super::validate_resources;
    use crate::error::Kind;
    use serde_json::{Value, json};

    fn judge(resources: &Value) -> crate::error::Result<()> {
        validate_resources(&serde_json::from_value(resources.clone()).unwrap())
    }

    #[test]
    fn what_is_within_the_rules_passes() {
        for resources in [
            json!({ "blockIO": { "weight": 10, "weightDevice": [{ "major": 8, "minor": 0, "leafWeight": 10 }] } }),
            json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 4095, "minor": 1048575, "rate": 0 }] } }),
            json!({ "hugepageLimits": [{ "pageSize": "64KB", "limit": 0 }, { "pageSize": "1GB", "limit": 1 }] }),
            json!({ "network": { "classID": 1, "priorities": [{ "name": "a23456789012345", "priority": 1 }] } }),
            json!({ "rdma": { "mlx5_1": { "hcaHandles": 0 }, "mlx5_2": { "hcaObjects": 1 } } }),
        ] {
            judge(&resources).unwrap_or_else(|error| panic!("{resources}: {error}"));
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused_and_named() {
        let throttle = |name: &str| json!({ "blockIO": { name: [{ "major": 4096, "minor": 0, "rate": 1 }] } });
        let size = |size: &str| json!({ "hugepageLimits": [{ "pageSize": size, "limit": 1 }] });
        let interface = |name: &str| json!({ "network": { "priorities": [{ "name": name, "priority": 1 }] } });
        let rdma = |name: &str| json!({ "rdma": { name: { "hcaHandles": 1 } } });
        for (resources, words) in [
            (
                json!({ "blockIO": { "weightDevice": [{ "major": 8, "minor": -1, "weight": 1 }] } }),
                "blockIO: weightDevice[0]: minor",
            ),
            (
                json!({ "blockIO": { "weightDevice": [{ "major": 8, "minor": 0 }] } }),
                "weightDevice[0]: weight or leafWeight",
            ),
            (throttle("throttleReadBpsDevice"), "linux.resources.blockIO: throttleReadBpsDevice[0]: major"),
            (throttle("throttleWriteBpsDevice"), "throttleWriteBpsDevice[0]: major"),
            (throttle("throttleReadIOPSDevice"), "throttleReadIOPSDevice[0]: major"),
            (throttle("throttleWriteIOPSDevice"), "throttleWriteIOPSDevice[0]: major"),
            (size("2M"), "linux.resources.hugepageLimits[0]: pageSize"),
            (size("0MB"), "pageSize"),
            (size("MB"), "pageSize"),
            (size("../2MB"), "pageSize"),
            (size("2 MB"), "pageSize"),
            (json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": -1 }] }), "limit is negative"),
            (interface(""), "linux.resources.network.priorities[0]: name"),
            (interface("lo 1\neth0"), "priorities[0]: name"),
            (interface("a234567890123456"), "priorities[0]: name"),
            (rdma(""), "linux.resources.rdma"),
            (rdma("a b"), "linux.resources.rdma[\"a b\"]"),
            (json!({ "rdma": { "a": {} } }), "linux.resources.rdma[\"a\"]: hcaHandles or hcaObjects"),
        ] {
            let error = judge(&resources).expect_err(&resources.to_string());
            assert_eq!(error.kind(), Kind::InvalidArgument, "{resources}: {error}");
            assert!(error.to_string().contains(words), "{resources}: {error}");
        }
    }
}
