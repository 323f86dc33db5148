//! What happens to containers, as values. The engine emits them in the order in which they are true; the shim's
//! publisher turns them into containerd's messages. No protobuf here.

use std::time::SystemTime;

/// One mount of the root file system, as containerd's Create request carries it (containerd: api/types/mount.proto).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RootfsMount {
    /// File system type, `overlay` or `bind`.
    pub kind: String,
    /// Source of the mount.
    pub source: String,
    /// Target below the root file system's directory; mostly empty.
    pub target: String,
    /// Options in fstab(5) form.
    pub options: Vec<String>,
}

/// Where a process's standard streams go: containerd's URIs; an empty string is /dev/null.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StdioUris {
    /// Path of a fifo to read from.
    pub stdin: String,
    /// Path of a fifo to write to.
    pub stdout: String,
    /// Path of a fifo to write to.
    pub stderr: String,
    /// One pseudo-terminal instead of three pipes.
    pub terminal: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The exit status, or 128 + signal number.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// An event of a container's life (containerd: api/events/task.proto).
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// /tasks/create
    Create {
        /// Container.
        id: String,
        /// Its bundle directory.
        bundle: String,
        /// The mounts of its root file system.
        rootfs: Vec<RootfsMount>,
        /// Its streams.
        stdio: StdioUris,
        /// Its init, in the shim's pid namespace.
        pid: u32,
    },
    /// /tasks/start
    Start {
        /// Container.
        id: String,
        /// Its init.
        pid: u32,
    },
    /// /tasks/exit
    Exit {
        /// Container.
        container: String,
        /// The exec's id, or the container's for init.
        id: String,
        /// The process that ended.
        pid: u32,
        /// How.
        exit: Exit,
    },
    /// /tasks/delete
    Delete {
        /// Container.
        id: String,
        /// The init that it had.
        pid: u32,
        /// How that ended.
        exit: Exit,
    },
    /// /tasks/paused
    Paused {
        /// Container.
        id: String,
    },
    /// /tasks/resumed
    Resumed {
        /// Container.
        id: String,
    },
    /// /tasks/checkpointed
    Checkpointed {
        /// Container.
        id: String,
        /// The directory of the images.
        path: String,
    },
    /// /tasks/oom
    Oom {
        /// Container.
        container: String,
    },
    /// /tasks/exec-added
    ExecAdded {
        /// Container.
        container: String,
        /// The exec's id.
        exec: String,
    },
    /// /tasks/exec-started
    ExecStarted {
        /// Container.
        container: String,
        /// The exec's id.
        exec: String,
        /// Its process.
        pid: u32,
    },
}
