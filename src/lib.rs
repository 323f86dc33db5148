//! dray: a containerd shim v2 that runs containers itself.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod engine;
pub mod error;
pub mod init;
pub mod shim;
pub mod spec;
pub mod sys;
