//! HOME, which the specification does not have and every program expects.
//!
//! Docker, nerdctl and the CRI plugin leave it to the runtime: runc and crun set it where the process's environment has
//! none, by the user's entry in the container's passwd(5).

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use crate::error::Result;
use crate::sys::path::{self, Root};

use super::steps::Born;

/// The most that is read of the file: it is the image's, and may be of any size.
const LONGEST: u64 = 4 << 20;

/// The length of a path with its NUL (limits.h): a name of a directory is no longer, nor is an environment to be filled.
const PATH_MAX: usize = libc::PATH_MAX as usize;

/// Finds the home directory of the user that the process is to have, unless its environment says one.
pub fn find(born: &mut Born<'_>) -> Result<()> {
    let process = &born.plan.process;
    if given(&process.env) {
        return Ok(());
    }
    // As for runc, "/" where there is no such user, no such file, or none that can be read.
    let directory = read(process.uid).unwrap_or_default().unwrap_or_else(|| b"/".to_vec());
    born.home = CString::new([b"HOME=", directory.as_slice()].concat()).ok();
    Ok(())
}

/// The environment with HOME, where it was found. An empty one, which was taken for none, goes.
pub fn environment(env: &[CString], home: Option<CString>) -> Vec<CString> {
    let kept = |variable: &&CString| home.is_none() || !variable.as_bytes().starts_with(b"HOME=");
    let mut all: Vec<_> = env.iter().filter(kept).cloned().collect();
    all.extend(home);
    all
}

/// The last of a name is the one that counts, as for PATH.
fn given(env: &[CString]) -> bool {
    let last = env.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"HOME="));
    last.is_some_and(|value| !value.is_empty())
}

fn read(uid: u32) -> Result<Option<Vec<u8>>> {
    let (root, passwd) = (Root::open(Path::new("/"))?, Path::new("etc/passwd"));
    // Before it is opened, which of a device is an act.
    if !is_of_an_image(root.resolve(passwd)?)? {
        return Ok(None);
    }
    // Not to wait for a writer where it is a fifo, nor to get a controlling terminal.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open_file(passwd, flags)?;
    // And after: the container of an exec may have exchanged it.
    match is_of_an_image(&file)? {
        true => Ok(home_of(uid, BufReader::new(File::from(file).take(LONGEST)))),
        false => Ok(None),
    }
}

/// A link may lead it into /proc, where this process, which still is a copy of the shim and as able as that, has the
/// shim's environment for a file, and the host its log.
fn is_of_an_image(file: impl AsFd) -> Result<bool> {
    let is_file = FileType::from_raw_mode(path::stat(&file)?.st_mode) == FileType::RegularFile;
    Ok(is_file && !path::is_of_kernel(file)?)
}

/// The home directory of the first entry with this uid: `name:password:uid:gid:comment:home:shell`.
fn home_of(uid: u32, passwd: impl BufRead) -> Option<Vec<u8>> {
    let entry = |line: Vec<u8>| {
        let mut fields = line.split(|&byte| byte == b':').skip(2);
        let number: u32 = OsStr::from_bytes(fields.next()?).to_str()?.parse().ok()?;
        (number == uid).then(|| fields.nth(2).map(<[u8]>::to_vec))?
    };
    passwd
        .split(b'\n')
        .map_while(std::io::Result::ok)
        .find_map(entry)
        .filter(|home| (1..PATH_MAX).contains(&home.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_of_the_uid_counts() {
        let passwd = "# a comment\nroot:x:0:0:root:/root:/bin/sh\nsh:ort:7\n\nuser:x:1000:1000::/home/user:\n\
            bare:x:2:2::/bare\nother:x:1000:1000::/other:\nhomeless:x:5:5:::/bin/sh\nodd:x:-1:0::/odd:\nlast:x:9:9::/last";
        let home = |uid| home_of(uid, passwd.as_bytes()).map(|home| String::from_utf8(home).unwrap());
        assert_eq!(home(0).as_deref(), Some("/root"));
        assert_eq!(home(1000).as_deref(), Some("/home/user"));
        assert_eq!(home(2).as_deref(), Some("/bare"));
        assert_eq!(home(9).as_deref(), Some("/last"));
        assert_eq!([home(5), home(7), home(8), home(u32::MAX)], [None, None, None, None]);
    }

    #[test]
    fn an_empty_home_is_none_and_goes() {
        let env = |words: &[&str]| words.iter().map(|word| CString::new(*word).unwrap()).collect::<Vec<_>>();
        assert!(given(&env(&["A=b", "HOME=/x"])) && given(&env(&["HOME=", "HOME=/x"])));
        assert!(!given(&env(&["HOMELESS=/x"])) && !given(&env(&["HOME=/x", "HOME="])) && !given(&[]));
        let home = CString::new("HOME=/root").unwrap();
        assert_eq!(environment(&env(&["HOME=", "A=b"]), Some(home)), env(&["A=b", "HOME=/root"]));
        assert_eq!(environment(&env(&["HOME=/x", "A=b"]), None), env(&["HOME=/x", "A=b"]));
    }
}
