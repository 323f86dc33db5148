//! Which security modules the kernel runs with.

/// A security module that labels processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lsm {
    /// apparmor(7)
    AppArmor,
    /// selinux(8)
    SeLinux,
}

impl Lsm {
    /// As its makers spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AppArmor => "AppArmor",
            Self::SeLinux => "SELinux",
        }
    }
}

/// Whether it is there and switched on.
pub fn enabled(lsm: Lsm) -> bool {
    /// linux/magic.h
    const SELINUX_MAGIC: u32 = 0xf97c_ff8c;
    match lsm {
        Lsm::AppArmor => {
            std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
        }
        Lsm::SeLinux => {
            rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|file_system| file_system.f_type as u32 == SELINUX_MAGIC)
        }
    }
}
