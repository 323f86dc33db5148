//! shim.

pub mod logger;
pub mod publisher;
