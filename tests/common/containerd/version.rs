//! The containerds that the tests drive, each of which `scripts/daemons` has fetched, or has said why not.

use std::path::{Path, PathBuf};

/// A containerd by its version.
pub struct Version {
    /// The module of its tests: the column of the table that `scripts/test` makes.
    pub module: &'static str,
    /// The variable that has its directory, or why there is none.
    variable: &'static str,
    /// The version of its configuration's format.
    pub(super) config: u32,
}

pub const V1_6: Version = Version { module: "containerd_1_6", variable: "DRAY_CONTAINERD_1_6", config: 2 };
pub const V1_7: Version = Version { module: "containerd_1_7", variable: "DRAY_CONTAINERD_1_7", config: 2 };
pub const V2_1: Version = Version { module: "containerd_2_1", variable: "DRAY_CONTAINERD_2_1", config: 3 };

impl Version {
    /// Its `bin` directory, or why there is none.
    pub fn bin(&self) -> Result<PathBuf, String> {
        let value = super::variable(self.variable);
        if value.starts_with('/') { Ok(Path::new(&value).join("bin")) } else { Err(value) }
    }

    /// Whether `ctr image import` would give the work to the transfer service, which unpacks for its own snapshotter only.
    pub fn has_transfer(&self) -> bool {
        self.variable != V1_6.variable
    }

    /// A configuration that keeps it in `dir`, without CRI and what only CRI needs: that listens at paths and ports of its own.
    pub fn config(&self, dir: &Path, address: &str) -> String {
        let disabled = [
            "grpc.v1.cri",
            "cri.v1.images",
            "cri.v1.runtime",
            "podsandbox.controller.v1.podsandbox",
            "nri.v1.nri",
            "snapshotter.v1.aufs",
            "snapshotter.v1.blockfile",
            "snapshotter.v1.btrfs",
            "snapshotter.v1.devmapper",
            "snapshotter.v1.erofs",
            "snapshotter.v1.zfs",
        ];
        let disabled = disabled.map(|plugin| format!("\"io.containerd.{plugin}\"")).join(", ");
        let (config, dir) = (self.config, dir.display());
        format!(
            r#"version = {config}
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [{disabled}]
[grpc]
  address = "{address}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
"#
        )
    }
}

/// How a scenario drives its containerd.
pub trait Driven {
    /// Starts one whose programs are in `bin`; `test` is the scenario's name, with its module.
    fn start(version: &'static Version, bin: PathBuf, test: String) -> Self;
}

/// Runs a scenario on this containerd, if that is there.
pub fn on<D: Driven>(version: &'static Version, scenario: &str, run: impl FnOnce(D)) {
    let name = format!("{}::{scenario}", version.module);
    match version.bin() {
        Ok(bin) => run(D::start(version, bin, name)),
        Err(why) => crate::skipped(&name, &why),
    }
}

/// Makes a test of each scenario, a `fn(Containerd)` or one of what drives it otherwise, for each containerd: `containerd_1_7::a_scenario`.
#[macro_export]
macro_rules! on_each_containerd {
    ($($scenario:ident),* $(,)?) => {
        $crate::on_each_containerd!(@ containerd_1_6 V1_6 $($scenario)*);
        $crate::on_each_containerd!(@ containerd_1_7 V1_7 $($scenario)*);
        $crate::on_each_containerd!(@ containerd_2_1 V2_1 $($scenario)*);
    };
    (@ $module:ident $version:ident $($scenario:ident)*) => {
        mod $module {
            use $crate::containerd::version::{$version, on};
            $(#[test]
            fn $scenario() {
                on(&$version, stringify!($scenario), super::$scenario);
            })*
        }
    };
}
