//! A copy of the shim's executable that an attack may destroy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::scratch::Scratch;
use super::shim_binary;

pub struct Victim {
    pub path: PathBuf,
    pub content: Vec<u8>,
}

impl Victim {
    /// In a directory of this name in the scratch directory.
    pub fn new(scratch: &Scratch, directory: &str) -> Victim {
        let path = scratch.dir().join(directory).join("containerd-shim-dray-v2");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        install(&shim_binary(), &path);
        Victim { content: fs::read(&path).unwrap(), path }
    }

    #[track_caller]
    pub fn is_whole(&self) {
        assert!(fs::read(&self.path).unwrap() == self.content, "the host's executable was overwritten");
    }
}

/// A path for which fsconfig(2) has no room: a shim there is sealed in memory.
pub fn long_directory() -> String {
    ["long".repeat(30), "path".repeat(30), "here".repeat(30)].join("/")
}

/// A program that becomes the shim after `preparation`, in shell.
pub fn wrapped(scratch: &Scratch, preparation: &str) -> PathBuf {
    let path = scratch.dir().join("wrapped-shim");
    let text = format!("#!/bin/sh\n{preparation}\nexec {} \"$@\"\n", shim_binary().display());
    executable(&path, &text);
    path
}

/// A program of this text.
pub fn executable(path: &Path, text: &str) {
    let source = path.with_extension("text");
    fs::write(&source, text).unwrap();
    install(&source, path);
}

/// Another process writes it: a descriptor of ours, open for writing, may be in a child that another test has just forked,
/// and the file cannot be executed until that child closes it.
pub fn install(source: &Path, path: &Path) {
    let status = Command::new("install").args(["-m", "755"]).arg(source).arg(path).status();
    assert!(status.unwrap().success(), "install {}", path.display());
}
