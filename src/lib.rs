//! dray: a containerd shim v2 that runs containers itself.
//!
//! containerd starts one `containerd-shim-dray-v2` a pod or container and speaks the ttrpc task service to it. The shim
//! turns each request into operations on namespaces, mounts and cgroups in its own process, as libcontainer does inside
//! runc; no runtime is executed.
//!
//! # The process model
//!
//! The action `start` binds the socket, seals the executable ([`sys::seal`]) and leaves the server behind
//! ([`shim::bootstrap`]). The server is one thread ([`shim::daemon`]): a tokio current-thread loop that never blocks for
//! long. Every process of a container is born by one clone3 from it ([`sys::fork`]), sets itself up by straight-line code
//! ([`init::steps`]) and becomes its program by execve. Two have another process between: one that joins a user namespace
//! may have a helper at its birth ([`sys::fork::fork_inside`]); an exec, as who else joins a pid namespace, is set up outside
//! of that, unseen by those in it, and born there when it is as it is to be ([`sys::fork::hop`]). Forking without a following
//! execve of our own is sound because:
//!
//! 1. the process has one thread at every fork, checked there;
//! 2. the executable is sealed (CVE-2019-5736);
//! 3. the server is not dumpable: nobody but root reads its memory, nor that of a child before its execve; and before
//!    programs of a container can come near one it forgets what it has of the server's ([`sys::memory`]);
//! 4. signals are read from a descriptor; there is no handler for a child to inherit ([`sys::signal`]);
//! 5. a child's first act is to close every descriptor that is not its own, and no destructor runs there ([`sys::fd`]);
//! 6. a child's code cannot return or unwind into the parent's; in the parent, a panic is the error of one request;
//! 7. that code has no access to tokio, the log or the engine: the layers below see to it;
//! 8. a child's signal dispositions, mask, umask, limits and OOM score are the specification's ([`init::identity`]);
//! 9. an unstarted child ends with the shim ([`init::sync`]); that of `dray create` lives on when it is said to be created.
//!
//! The command line's process is the same for as long as it lives ([`cli`], `runtime`), and begins by executing itself sealed.
//!
//! Each has its test (`tests/invariants.rs`) or its rule (`scripts/check`).
//!
//! # Layers
//!
//! ```text
//! main -> shim | cli -> engine -> init, cgroup -> spec, sys -> error
//! ```
//!
//! - [`shim`]: containerd's face. The only one that knows protobuf.
//! - [`cli`]: the operator's face: runc's command line over the same engine.
//! - [`engine`]: containers, their lifecycle, and every operation on them. Waits, by tokio; nothing below does.
//! - [`init`]: a process of a container, from the specification to execve.
//! - [`cgroup`]: a container's cgroups. `init` and `cgroup` do not know each other.
//! - [`spec`]: the OCI runtime specification, loaded and judged. Pure.
//! - [`sys`]: the kernel. The only unsafe code.
//! - [`error`]: the one error type.
//!
//! `scripts/check` verifies these edges.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod cli;
pub mod engine;
pub mod error;
pub mod init;
pub mod shim;
pub mod spec;
pub mod sys;
