//! What a cgroup has used, in the kernel's numbers. Files that this kernel has not, or whose controller the cgroup has not,
//! are passed over: what they would have told is 0, empty or `None`.

pub mod v1;
pub mod v2;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::{Errno, retry_on_intr};

use super::Cgroup;
use super::hierarchy::Version;
use crate::error::{Error, Kind, Os, Result};

/// The whole, by the version of the host's hierarchies.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// Controllers in v1 hierarchies.
    V1(Box<v1::Stats>),
    /// Controllers in the unified one.
    V2(Box<v2::Stats>),
}

/// The directories of a cgroup, kept open: a reading of them looks up no path. One for each v1 hierarchy that has numbers
/// (seven at most), or the one of cgroup2. They do not keep the cgroup from being removed, and never mean another one of the
/// same path.
#[derive(Debug)]
pub struct Source {
    version: Version,
    /// With the controllers of it, as in /proc/self/cgroup.
    dirs: Vec<(Box<str>, OwnedFd)>,
    /// For messages.
    path: Box<str>,
}

impl Cgroup {
    /// Opens what [`Source::read`] reads.
    ///
    /// # Errors
    /// `NotFound` when the cgroup is gone.
    pub fn open_stats(&self) -> Result<Source> {
        let version = self.hierarchies.version();
        let has_numbers = |controllers: &str| controllers.split(',').any(|name| v1::CONTROLLERS.contains(&name));
        let all = self.hierarchies.all();
        let hierarchies = all.filter(|hierarchy| match version {
            Version::V1 => has_numbers(&hierarchy.name),
            Version::V2 => hierarchy.is_unified(),
        });
        let mut dirs = Vec::new();
        for hierarchy in hierarchies {
            let dir = hierarchy.dir(&self.path);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match open(&dir, flags, Mode::empty()) {
                Ok(fd) => dirs.push((hierarchy.name.as_str().into(), fd)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e).os(|| format!("open {}", dir.display())),
            }
        }
        let source = Source { version, dirs, path: self.path.to_string_lossy().into() };
        if source.dirs.is_empty() { Err(source.gone()) } else { Ok(source) }
    }
}

impl Cgroup {
    /// A file of `controller` as it is; empty where this host or this cgroup has none.
    ///
    /// # Errors
    /// The system's.
    pub fn text(&self, controller: &str, name: &str) -> Result<String> {
        let Some(dir) = self.dir_of(controller) else { return Ok(String::new()) };
        let dir = match open(&dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        {
            Err(Errno::NOENT) => return Ok(String::new()),
            dir => dir.os(|| format!("open {}", self.path.display()))?,
        };
        let mut files = Files { dir: dir.as_fd(), buf: &mut Vec::new(), found: false };
        Ok(files.text(name)?.unwrap_or_default().to_owned())
    }
}

impl Source {
    /// Reads them.
    ///
    /// # Errors
    /// `NotFound` when the cgroup is gone.
    pub fn read(&self) -> Result<Stats> {
        let mut buf = Vec::with_capacity(ROOM);
        let mut found = false;
        let mut stats = match self.version {
            Version::V1 => Stats::V1(Box::default()),
            Version::V2 => Stats::V2(Box::default()),
        };
        for (controllers, dir) in &self.dirs {
            let mut files = Files { dir: dir.as_fd(), buf: &mut buf, found: false };
            match &mut stats {
                Stats::V1(stats) => controllers.split(',').try_for_each(|name| stats.read(name, &mut files))?,
                Stats::V2(stats) => stats.read(&mut files)?,
            }
            found |= files.found;
        }
        // In the directory of a removed cgroup there are no files.
        if found { Ok(stats) } else { Err(self.gone()) }
    }

    fn gone(&self) -> Error {
        Error::new(Kind::NotFound, format!("cgroup {} is gone", self.path))
    }
}

/// More than any of these files has, but for those of a host with very many block devices.
const ROOM: usize = 16 << 10;

/// A directory's files, one at a time, all by one buffer.
struct Files<'a> {
    dir: BorrowedFd<'a>,
    buf: &'a mut Vec<u8>,
    /// There was one.
    found: bool,
}

impl Files<'_> {
    /// `None` where there is no such file, or it has nothing to tell: NODEV when the cgroup is going, OPNOTSUPP for
    /// memory.memsw without swap accounting and for pressure that is switched off, INVAL for what needs another I/O
    /// scheduler.
    fn text(&mut self, name: &str) -> Result<Option<&str>> {
        match self.read(name) {
            Ok(()) => self.found = true,
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP | Errno::INVAL) => return Ok(None),
            Err(e) => return Err(e).os(|| format!("read {name}")),
        }
        std::str::from_utf8(self.buf).map(Some).map_err(|_| Errno::ILSEQ).os(|| format!("read {name}"))
    }

    fn read(&mut self, name: &str) -> rustix::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.dir, name, flags, Mode::empty())?;
        self.buf.clear();
        loop {
            self.buf.reserve(ROOM);
            let room = self.buf.capacity() - self.buf.len();
            let read = retry_on_intr(|| rustix::io::read(&fd, rustix::buffer::spare_capacity(self.buf)))?;
            // The kernel makes the text of such a file in one piece (a seq_file of one record), so a read that has not filled
            // its room was the last: no other call for the end of file.
            if read < room {
                return Ok(());
            }
        }
    }

    /// 0 without the file, and for a file without a number.
    fn number(&mut self, name: &str) -> Result<u64> {
        Ok(self.text(name)?.and_then(|text| text.trim_end().parse().ok()).unwrap_or(0))
    }
}

/// A structure with the numbers of a flat keyed file, one line for each field of that name.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($field:ident)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(#[doc = concat!("Its line `", stringify!($field), "`.")] pub $field: u64,)*
        }

        impl $name {
            /// Lines of other names are passed over: a later kernel has more.
            pub(super) fn of(text: &str) -> Self {
                let mut counters = Self::default();
                for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
                    let field = match key {
                        $(stringify!($field) => &mut counters.$field,)*
                        _ => continue,
                    };
                    *field = value.parse().unwrap_or(0);
                }
                counters
            }
        }
    };
}
use counters;

/// Objects of an RDMA device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rdma {
    /// Its name.
    pub device: String,
    /// HCA handles; `u32::MAX` for a limit that is none.
    pub handles: u32,
    /// HCA objects; the same.
    pub objects: u32,
}

/// `mlx5_0 hca_handle=2 hca_object=max`
fn rdma(text: Option<&str>) -> Vec<Rdma> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let mut entry = Rdma { device: words.next()?.to_owned(), ..Rdma::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(u32::MAX);
            match key {
                "hca_handle" => entry.handles = value,
                "hca_object" => entry.objects = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.unwrap_or_default().lines().filter_map(entry).collect()
}

/// The names of the host's block devices, by their numbers: /proc/partitions.
pub fn block_devices() -> Vec<(u64, u64, String)> {
    let text = std::fs::read_to_string("/proc/partitions").unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((major, minor, words.nth(1)?.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustix::fs::CWD;

    use super::*;

    /// A directory with these files, as one of a cgroup.
    pub(super) struct Directory(PathBuf);

    impl Directory {
        pub(super) fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path = std::env::temp_dir().join(format!("dray-test-stats-{name}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            files.iter().for_each(|(file, text)| std::fs::write(path.join(file), text).unwrap());
            Self(path)
        }

        /// As the only one of a source.
        pub(super) fn source(&self, version: Version, controllers: &str) -> Source {
            let fd = super::super::file::open_dir(CWD, &self.0).unwrap();
            Source { version, dirs: vec![(controllers.into(), fd)], path: "/here".into() }
        }
    }

    impl Source {
        pub(super) fn with_files<T>(&self, read: impl FnOnce(&mut Files) -> T) -> T {
            read(&mut Files { dir: self.dirs[0].1.as_fd(), buf: &mut Vec::new(), found: false })
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_directory_without_files_is_one_of_a_removed_cgroup() {
        let empty = Directory::new("none", &[]);
        for (version, controllers) in [(Version::V1, "cpu,cpuacct"), (Version::V2, "")] {
            let gone = empty.source(version, controllers).read().unwrap_err();
            assert_eq!(gone.kind(), Kind::NotFound);
            assert!(gone.to_string().contains("/here"), "{gone}");
        }
    }

    #[test]
    fn a_file_longer_than_the_room_is_read_to_its_end() {
        let line = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n";
        let long = line.repeat(ROOM / line.len() * 5 / 2);
        // One that fills the room exactly is read on too.
        let exact = format!("{}\n", " ".repeat(ROOM - 1));
        let dir = Directory::new("long", &[("io.stat", &long), ("exact", &exact)]);
        let source = dir.source(Version::V2, "");
        let Stats::V2(stats) = source.read().unwrap() else { unreachable!() };
        assert_eq!(stats.io.len(), ROOM / line.len() * 5 / 2);
        assert_eq!(source.with_files(|files| files.text("exact").unwrap().map(str::len)), Some(ROOM));
    }
}
