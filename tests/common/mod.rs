//! What the rooted tests share.

pub mod containerd;
