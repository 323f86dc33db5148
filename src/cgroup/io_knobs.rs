//! Block devices, huge pages, network and RDMA of `linux.resources`, as [`Knob`]s. Pure.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxHugepageLimit, LinuxNetwork, LinuxRdma};

use super::knobs::Knob;

/// Weights and rates. The kernel (since 5.0) has its weights from BFQ alone, under BFQ's name; a leaf's, which were
/// CFQ's, nowhere.
pub(super) fn block_io_knobs(io: &LinuxBlockIo, knobs: &mut Vec<Knob>) {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        knobs.push(Knob::new("blkio", "blkio.weight", weight).also("blkio.bfq.weight"));
    }
    if let Some(weight) = io.leaf_weight().filter(|weight| *weight != 0) {
        knobs.push(Knob::new("blkio", "blkio.leaf_weight", weight));
    }
    for device in io.weight_device().iter().flatten() {
        let of = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let knob = Knob::new("blkio", "blkio.weight_device", of(weight)).also("blkio.bfq.weight_device");
            knobs.push(knob.reset("default"));
        }
        if let Some(weight) = device.leaf_weight().filter(|weight| *weight != 0) {
            knobs.push(Knob::new("blkio", "blkio.leaf_weight_device", of(weight)).reset("0"));
        }
    }
    for (file, devices) in [
        ("blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            // A rate of 0 takes the limit away.
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            knobs.push(Knob::new("blkio", file, value).reset("0"));
        }
    }
}

/// Of each size twice, as runc: what is mapped, and what is reserved. The first alone would be a SIGBUS for a process
/// that was promised the pages by its mmap(2); the second fails that mmap.
pub(super) fn hugepage_knobs(limits: &[LinuxHugepageLimit], knobs: &mut Vec<Knob>) {
    for limit in limits {
        let (size, bytes) = (limit.page_size(), limit.limit());
        knobs.push(Knob::new("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), bytes));
        knobs.push(Knob::new("hugetlb", format!("hugetlb.{size}.rsvd.limit_in_bytes"), bytes).optional(true));
    }
}

/// The mark of its packets for the host's traffic control, and their priority on each of the host's interfaces.
pub(super) fn network_knobs(network: &LinuxNetwork, knobs: &mut Vec<Knob>) {
    if let Some(id) = network.class_id().filter(|id| *id != 0) {
        knobs.push(Knob::new("net_cls", "net_cls.classid", id));
    }
    for interface in network.priorities().iter().flatten() {
        let value = format!("{} {}", interface.name(), interface.priority());
        knobs.push(Knob::new("net_prio", "net_prio.ifpriomap", value).reset("0"));
    }
}

/// Sorted, so that it is the same each time.
pub(super) fn rdma_knobs(devices: &HashMap<String, LinuxRdma>, knobs: &mut Vec<Knob>) {
    let mut devices: Vec<_> = devices.iter().collect();
    devices.sort_unstable_by_key(|(name, _)| *name);
    for (name, limits) in devices {
        let handles = limits.hca_handles().map(|n| format!(" hca_handle={n}"));
        let objects = limits.hca_objects().map(|n| format!(" hca_object={n}"));
        let value = [Some(name.clone()), handles, objects].into_iter().flatten().collect::<String>();
        knobs.push(Knob::new("rdma", "rdma.max", value).reset("hca_handle=max hca_object=max"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::Version;
    use super::super::knobs::limit_knobs;
    use oci_spec::runtime::LinuxResources;

    /// "file value" of each knob.
    fn from(json: &str) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let knobs = limit_knobs(&resources, Version::V1).unwrap();
        knobs
            .iter()
            .map(|knob| format!("{} {}", knob.files().map(|(file, _)| file).collect::<Vec<_>>().join("|"), knob.value))
            .collect()
    }

    #[test]
    fn block_io() {
        let all = r#"{"blockIO":{"weight":500,"leafWeight":300,
            "weightDevice":[{"major":8,"minor":0,"weight":600,"leafWeight":400},{"major":8,"minor":16,"weight":10}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576},{"major":8,"minor":16,"rate":0}],
            "throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":2}],
            "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":3}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":4}]}}"#;
        let lines = [
            "blkio.weight|blkio.bfq.weight 500",
            "blkio.leaf_weight 300",
            "blkio.weight_device|blkio.bfq.weight_device 8:0 600",
            "blkio.leaf_weight_device 8:0 400",
            "blkio.weight_device|blkio.bfq.weight_device 8:16 10",
            "blkio.throttle.read_bps_device 8:0 1048576",
            "blkio.throttle.read_bps_device 8:16 0",
            "blkio.throttle.write_bps_device 8:0 2",
            "blkio.throttle.read_iops_device 8:0 3",
            "blkio.throttle.write_iops_device 8:0 4",
        ];
        assert_eq!(from(all), lines);
        assert_eq!(from(r#"{"blockIO":{"weight":0,"leafWeight":0,"weightDevice":[]}}"#), [""; 0]);
    }

    #[test]
    fn huge_pages_network_and_rdma() {
        assert_eq!(
            from(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304},{"pageSize":"1GB","limit":0}]}"#),
            [
                "hugetlb.2MB.limit_in_bytes 4194304",
                "hugetlb.2MB.rsvd.limit_in_bytes 4194304",
                "hugetlb.1GB.limit_in_bytes 0",
                "hugetlb.1GB.rsvd.limit_in_bytes 0",
            ]
        );
        assert_eq!(
            from(
                r#"{"network":{"classID":1048577,
                "priorities":[{"name":"lo","priority":7},{"name":"eth0","priority":0}]}}"#
            ),
            ["net_cls.classid 1048577", "net_prio.ifpriomap lo 7", "net_prio.ifpriomap eth0 0"]
        );
        assert_eq!(from(r#"{"network":{"classID":0,"priorities":[]}}"#), [""; 0]);
        assert_eq!(
            from(
                r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},
                "mlx4_0":{"hcaObjects":0},"rxe3":{"hcaHandles":4}}}"#
            ),
            [
                "rdma.max mlx4_0 hca_object=0",
                "rdma.max mlx5_1 hca_handle=3 hca_object=10000",
                "rdma.max rxe3 hca_handle=4",
            ]
        );
    }
}
