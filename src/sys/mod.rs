//! The kernel: thin wrappers whose errors print as the call that failed and its object. The only unsafe code.
//!
//! What rustix and nix wrap well is used from there; here are the calls they lack, and the few places where several
//! calls make one operation that must not be taken apart (a fork, a seal, a resolution inside a root). A system call
//! newer than Linux 5.10 has its fallback here, next to the call.
#![allow(unsafe_code)]

pub mod bpf;
pub mod cred;
pub mod exec;
pub mod fd;
pub mod fork;
pub mod loop_device;
pub mod lsm;
pub mod mailbox;
pub mod memory;
pub mod mount;
pub mod mount_flags;
pub mod net;
pub mod netlink;
pub mod ns;
pub mod null;
pub mod path;
pub mod pidfd;
pub mod probe;
pub mod sched;
pub mod seal;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod stamps;
pub mod tty;
pub mod userns;
