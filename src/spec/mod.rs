//! The OCI runtime specification: what a bundle's `config.json` says, read and judged before anything is done about it.
//!
//! Nothing here has an effect on the system; the one system object it touches is the file that it reads.
//!
//! - [`load`]: `config.json`, or an exec's process, into the types of the `oci-spec` crate; errors that say where.
//! - [`validate`]: every rule a specification must satisfy, and the list of what is not implemented, refused by name.
//! - [`namespaces`]: which namespaces a container makes and which it joins, and what follows from that.
//! - [`net_devices`]: network devices of the host's that become the container's.
//! - [`mounts`]: what each entry of `mounts` is, and where it goes.
//! - [`mount_options`]: the words of a mount's options, as the kernel's attributes, flags and file system parameters.
//! - [`memory_policy`]: the nodes of memory.
//! - [`capabilities`]: their numbers.
//! - [`features`]: what of all this there is, for whoever asks; [`implemented`]: the same, field by field.
//! - [`hooks`]: programs of the specification's own, and the state that they are told.
//! - [`scheduling`]: scheduler, disk priority, CPUs and personality of a process; [`number_list`] of CPUs and nodes.
//! - [`sysctl`]: kernel parameters, where they are of a namespace.
//! - [`time`]: the clocks of a time namespace.
//! - `seccomp`: the rules for a profile.
//!
//! A caller loads, validates, and from then on may rely on every rule that `validate` names: `init` and `cgroup` do not
//! check again what can be known from the document alone.

mod locate;

pub mod capabilities;
pub mod features;
pub mod hooks;
pub mod id_map;
pub mod implemented;
pub mod load;
pub mod memory_policy;
pub mod mount_options;
pub mod mounts;
pub mod namespaces;
pub mod net_devices;
pub mod number_list;
pub mod scheduling;
pub mod seccomp;
pub mod sysctl;
pub mod time;
pub mod validate;
