//! Finds a container that this program or a shim has made.
