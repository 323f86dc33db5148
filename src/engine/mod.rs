//! Containers: their lifecycle, and every operation on them.

pub mod events;
pub mod stdio;
