//! The capabilities by their numbers.

use oci_spec::runtime::Capability::{self, *};

/// Every capability that this program knows, in the kernel's order: the place is the number (linux/capability.h).
pub const CAPABILITIES: [Capability; 41] = [
    Chown,
    DacOverride,
    DacReadSearch,
    Fowner,
    Fsetid,
    Kill,
    Setgid,
    Setuid,
    Setpcap,
    LinuxImmutable,
    NetBindService,
    NetBroadcast,
    NetAdmin,
    NetRaw,
    IpcLock,
    IpcOwner,
    SysModule,
    SysRawio,
    SysChroot,
    SysPtrace,
    SysPacct,
    SysAdmin,
    SysBoot,
    SysNice,
    SysResource,
    SysTime,
    SysTtyConfig,
    Mknod,
    Lease,
    AuditWrite,
    AuditControl,
    Setfcap,
    MacOverride,
    MacAdmin,
    Syslog,
    WakeAlarm,
    BlockSuspend,
    AuditRead,
    Perfmon,
    Bpf,
    CheckpointRestore,
];

/// The bit of a capability; none for one that a newer version of the types may bring.
pub fn bit(capability: &Capability) -> u64 {
    CAPABILITIES.iter().position(|known| known == capability).map_or(0, |number| 1 << number)
}
