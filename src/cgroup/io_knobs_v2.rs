//! Block devices and huge pages of `linux.resources`, as cgroup2's [`Knob`]s. Pure.

use oci_spec::runtime::{LinuxBlockIo, LinuxHugepageLimit};

use super::knobs::Knob;
use crate::error::{Error, Kind, Result};

/// Takes all rates of a device away.
pub(super) const NO_RATES: &str = "rbps=max wbps=max riops=max wiops=max";

/// What the specification's weights may be.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Weights are BFQ's own where it has its file, and those of the io.cost model elsewhere, which has them on another scale.
pub(super) fn io_knobs(io: &LinuxBlockIo, knobs: &mut Vec<Knob>) -> Result<()> {
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        knobs.push(Knob::new("io", "io.bfq.weight", weight).also_as("io.weight", converted(weight)?));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let of = |weight: u32| format!("{}:{} {weight}", device.major(), device.minor());
            let knob = Knob::new("io", "io.bfq.weight", of(weight.into()));
            knobs.push(knob.also_as("io.weight", of(converted(weight)?)).reset("default"));
        }
    }
    for (key, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            // A rate of 0 takes the limit away, as with v1.
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            // What a write does not name stays.
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            knobs.push(Knob::new("io", "io.max", value).reset(NO_RATES));
        }
    }
    Ok(())
}

/// From 10..1000 to 1..10000, as runc and crun have it.
fn converted(weight: u16) -> Result<u32> {
    if !WEIGHTS.contains(&weight) {
        let text =
            format!("linux.resources.blockIO: a weight is not in {}..{}: {weight}", WEIGHTS.start(), WEIGHTS.end());
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    Ok(1 + (u32::from(weight) - 10) * 9999 / 990)
}

/// Of each size twice, as for v1.
pub(super) fn hugepage_knobs(limits: &[LinuxHugepageLimit], knobs: &mut Vec<Knob>) {
    for limit in limits {
        let (size, bytes) = (limit.page_size(), limit.limit());
        knobs.push(Knob::new("hugetlb", format!("hugetlb.{size}.max"), bytes));
        knobs.push(Knob::new("hugetlb", format!("hugetlb.{size}.rsvd.max"), bytes).optional(true));
    }
}

#[cfg(test)]
mod tests {
    use super::super::knobs_v2::limit_knobs;
    use super::*;

    /// "file value" of each knob, for each file that may be there.
    fn from(json: &str) -> Vec<String> {
        let knobs = limit_knobs(&serde_json::from_str(json).unwrap()).unwrap();
        let lines =
            |knob: &Knob| knob.files().map(|(file, value)| format!("{file} {value}")).collect::<Vec<_>>().join("|");
        knobs.iter().map(lines).collect()
    }

    #[test]
    fn weights_and_rates() {
        let all = r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":1000},
            {"major":8,"minor":16,"weight":10}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576},{"major":8,"minor":16,"rate":0}],
            "throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":2}],
            "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":3}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":4}]}}"#;
        let lines = [
            "io.bfq.weight 500|io.weight 4950",
            "io.bfq.weight 8:0 1000|io.weight 8:0 10000",
            "io.bfq.weight 8:16 10|io.weight 8:16 1",
            "io.max 8:0 rbps=1048576",
            "io.max 8:16 rbps=max",
            "io.max 8:0 wbps=2",
            "io.max 8:0 riops=3",
            "io.max 8:0 wiops=4",
        ];
        assert_eq!(from(all), lines);
        for weight in ["9", "1001"] {
            let json = format!(r#"{{"blockIO":{{"weight":{weight}}}}}"#);
            let error = limit_knobs(&serde_json::from_str(&json).unwrap()).unwrap_err();
            assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains(weight), "{error}");
        }
    }

    #[test]
    fn huge_pages_and_rdma() {
        assert_eq!(
            from(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304},{"pageSize":"1GB","limit":0}]}"#),
            ["hugetlb.2MB.max 4194304", "hugetlb.2MB.rsvd.max 4194304", "hugetlb.1GB.max 0", "hugetlb.1GB.rsvd.max 0"]
        );
        let rdma = r#"{"rdma":{"b":{"hcaHandles":3,"hcaObjects":4},"a":{"hcaObjects":5}}}"#;
        assert_eq!(from(rdma), ["rdma.max a hca_object=5", "rdma.max b hca_handle=3 hca_object=4"]);
    }
}
