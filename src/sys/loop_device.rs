//! Loop devices: a file as a block device, for the mount option `loop` (loop(4)).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Error, Kind, Os, Result};

/// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device. It is free again when nobody has it open or mounted any more.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its node, `/dev/loop0`.
    pub path: String,
    _fd: OwnedFd,
}

/// How often a device that was free may be taken by another before we have it.
const TRIES: u32 = 100;

/// Makes the regular file `file` a block device (LOOP_CONFIGURE, Linux 5.8).
pub fn attach(file: &Path, readonly: bool) -> Result<LoopDevice> {
    let access = if readonly { OFlags::RDONLY } else { OFlags::RDWR };
    let open = |path: &Path| {
        rustix::fs::openat(CWD, path, access | OFlags::CLOEXEC, Mode::empty()).os(|| format!("open {}", path.display()))
    };
    let backing = open(file)?;
    let control = open(Path::new("/dev/loop-control"))?;
    for _ in 0..TRIES {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(std::io::Error::last_os_error()).os(|| "ioctl LOOP_CTL_GET_FREE");
        }
        let path = format!("/dev/loop{number}");
        let device = open(Path::new(&path))?;
        match configure(device.as_fd().as_raw_fd(), backing.as_raw_fd(), file, readonly) {
            Ok(()) => return Ok(LoopDevice { path, _fd: device }),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(e).os(|| format!("ioctl LOOP_CONFIGURE {path} {}", file.display())),
        }
    }
    Err(Error::new(Kind::Internal, "every free loop device is taken before we have it"))
}

fn configure(device: i32, backing: i32, file: &Path, readonly: bool) -> std::io::Result<()> {
    // SAFETY: a struct of integers, for which all zeroes is a value.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = backing as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR | if readonly { LO_FLAGS_READ_ONLY } else { 0 };
    // For losetup(8) to show, with a final NUL.
    let name = std::os::unix::ffi::OsStrExt::as_bytes(file.as_os_str());
    let shown = name.len().min(config.info.file_name.len() - 1);
    config.info.file_name[..shown].copy_from_slice(&name[..shown]);
    // SAFETY: the kernel reads one `struct loop_config`, which has this layout and outlives the call.
    match unsafe { libc::ioctl(device, LOOP_CONFIGURE, &raw const config) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}
