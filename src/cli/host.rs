//! The daemons of this host that can run containers by us: which there are, how they are told of us, and the files in which
//! they are told.

pub mod containerd;
pub mod containerd_config;
pub mod docker;
pub mod docker_config;
pub mod process;
pub mod program;
pub mod replace;

/// The file name by which containerd finds the shim.
pub const SHIM: &str = "containerd-shim-dray-v2";

/// The runtime, as containerd names it.
pub const RUNTIME: &str = "io.containerd.dray.v2";

/// Of the runtime in the configuration of the CRI plugin and in Docker's, and of the RuntimeClass.
pub const HANDLER: &str = "dray";

/// What Kubernetes is told: a pod with `runtimeClassName: dray` is run by the handler of that name (kubernetes: Runtime Class).
pub const RUNTIME_CLASS: &str = "\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: dray
handler: dray
";

/// What becomes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// It says already what it is to say.
    Nothing,
    /// This is to be its text.
    Write(String),
    /// It is to be no more.
    Remove,
    /// It says something else in that place, which is left as it is: why.
    Leave(String),
}
