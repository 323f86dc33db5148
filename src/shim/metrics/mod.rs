//! A container's numbers in containerd's messages.

mod v1;
mod v2;

use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::cgroup::stats::Stats as Cgroup;
use crate::engine::stats::Stats;

use super::service::any;

/// The message of the host's cgroup version, under its name as containerd's typeurl has it.
pub fn message(stats: Stats) -> ttrpc::Result<Any> {
    match stats.cgroup {
        Cgroup::V1(cgroup) => any("io.containerd.cgroups.v1.Metrics", &v1::message(*cgroup, stats.network)),
        Cgroup::V2(cgroup) => any("io.containerd.cgroups.v2.Metrics", &v2::message(*cgroup, stats.network)),
    }
}
