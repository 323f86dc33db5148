//! Daemons that run here, by what /proc says of them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A running program.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number here.
    pub pid: u32,
    /// The file that it was started from, which may be another by now.
    pub exe: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
}

impl Process {
    /// All with this name (proc_pid_comm(5)) whose root directory is ours: those of other containers are configured there.
    pub fn named(name: &str) -> Vec<Self> {
        let mut pids: Vec<u32> = std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        pids.into_iter().filter_map(|pid| Self::with(pid, name)).collect()
    }

    fn with(pid: u32, name: &str) -> Option<Self> {
        let file = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
        if file("comm")?.trim_ascii_end() != name.as_bytes() || !has_our_root(pid) {
            return None;
        }
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let exe = exe.as_os_str().as_bytes();
        let exe = PathBuf::from(OsStr::from_bytes(exe.strip_suffix(b" (deleted)").unwrap_or(exe)));
        let args = file("cmdline")?;
        let args = args.strip_suffix(b"\0").unwrap_or(&args).split(|byte| *byte == 0).skip(1);
        Some(Self { pid, exe, args: args.map(|arg| OsStr::from_bytes(arg).to_owned()).collect() })
    }

    /// Its executable, also where its file has been replaced.
    pub fn image(&self) -> PathBuf {
        format!("/proc/{}/exe", self.pid).into()
    }

    /// What a variable of its first environment says.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        let name = format!("{name}=");
        let mut all = environment.split(|byte| *byte == 0);
        all.find_map(|line| line.strip_prefix(name.as_bytes())).map(|value| OsStr::from_bytes(value).to_owned())
    }

    /// A path that one of the flags `names` says, from where it was started.
    pub fn path_of(&self, names: &[&str]) -> Option<PathBuf> {
        let path = value(&self.args, names)?;
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", self.pid)).unwrap_or_else(|_| "/".into());
        Some(cwd.join(path))
    }
}

/// The value of a flag: `--config FILE`, `--config=FILE`, with one dash or two.
pub fn value(args: &[OsString], names: &[&str]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        let Some(bytes) = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")) else { continue };
        for name in names {
            match bytes.strip_prefix(name.as_bytes()) {
                Some([]) => return args.next().map(PathBuf::from),
                Some([b'=', value @ ..]) => return Some(Path::new(OsStr::from_bytes(value)).to_owned()),
                _ => {}
            }
        }
    }
    None
}

fn has_our_root(pid: u32) -> bool {
    let root = |path: &str| std::fs::metadata(path).map(|root| (root.dev(), root.ino())).ok();
    let ours = root("/");
    ours.is_some() && root(&format!("/proc/{pid}/root/")) == ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let says = |args: &str| {
            let args: Vec<_> = args.split(' ').map(OsString::from).collect();
            value(&args, &["config", "c"]).map(|path| path.to_str().unwrap().to_owned())
        };
        for args in ["--config /a", "-config /a", "-l info -c /a", "--config=/a", "--configs x -c=/a"] {
            assert_eq!(says(args).as_deref(), Some("/a"), "{args}");
        }
        assert_eq!(says("--log-level config"), None);
    }

    #[test]
    fn we_are_found_ourselves() {
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let all = Process::named(comm.trim_end());
        let us = all.iter().find(|process| process.pid == std::process::id()).unwrap();
        assert_eq!(us.exe, std::env::current_exe().unwrap());
        assert_eq!(us.args, std::env::args_os().skip(1).collect::<Vec<_>>());
        assert_eq!(us.variable("PATH"), std::env::var_os("PATH"));
    }
}
