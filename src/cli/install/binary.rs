//! The binary and the link to it in a directory.

use std::fs::{File, Permissions};
use std::io::Seek;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::super::NAME;
use super::super::host::{SHIM, replace};
use crate::engine::state;
use crate::error::{Error, Kind, Os, Result};

/// This program, whatever its file is called.
const OURS: &str = "/proc/self/exe";

/// What a directory has of us.
pub struct Binary {
    dir: PathBuf,
    shim: PathBuf,
    link: PathBuf,
    /// The file of the shim is this program's, byte by byte.
    is_current: bool,
    /// `dray` leads to it.
    is_linked: bool,
}

impl Binary {
    /// Looks at `dir`.
    ///
    /// # Errors
    /// That it is no directory.
    pub fn in_directory(dir: &Path) -> Result<Self> {
        let (shim, link) = (dir.join(SHIM), dir.join(NAME));
        let metadata = std::fs::metadata(dir).os(|| format!("stat {}", dir.display()))?;
        if !metadata.is_dir() {
            return Err(Error::new(Kind::InvalidArgument, format!("{} is not a directory", dir.display())));
        }
        let is_linked = std::fs::read_link(&link).is_ok_and(|target| target == Path::new(SHIM) || target == shim);
        Ok(Self { dir: dir.to_owned(), is_current: is_ours(&shim)?, is_linked, shim, link })
    }

    /// # Errors
    /// `AlreadyExists` where something else has one of the names.
    pub fn refuse_others(&self) -> Result<()> {
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        let other = match () {
            () if is_there(&self.link) && !self.is_linked => &self.link,
            () if is_there(&self.shim) && !self.shim.is_file() => &self.shim,
            () => return Ok(()),
        };
        Err(Error::new(Kind::AlreadyExists, format!("{} is there, and is something else", other.display())))
    }

    /// Puts both in place; returns what was changed, and how.
    pub fn install(&self) -> Result<Vec<(&Path, &'static str)>> {
        let _lock = replace::lock(&self.dir)?;
        // Another installation may have been faster.
        let now = Self::in_directory(&self.dir)?;
        now.refuse_others()?;
        let mut changes: Vec<(&Path, _)> = Vec::new();
        if !now.is_current {
            let was_there = self.shim.exists();
            let mut ours = open(Path::new(OURS))?;
            replace::new_file(&self.shim, |file| {
                std::io::copy(&mut ours, file).os(|| format!("copy to {}", self.shim.display()))?;
                file.set_permissions(Permissions::from_mode(0o755)).os(|| "fchmod")
            })?;
            changes.push((&self.shim, if was_there { "replaced" } else { "installed" }));
        }
        if !now.is_linked {
            symlink(SHIM, &self.link).os(|| format!("symlink {}", self.link.display()))?;
            changes.push((&self.link, "linked"));
        }
        Ok(changes)
    }

    /// Removes both; returns what was removed. What cannot be told to be ours is left.
    pub fn uninstall(&self) -> Result<Vec<&Path>> {
        let _lock = replace::lock(&self.dir)?;
        let mut removed = Vec::new();
        let remove = |path: &Path| std::fs::remove_file(path).os(|| format!("unlink {}", path.display()));
        let has_shim = self.shim.symlink_metadata().is_ok();
        // Another version's was put there with its link.
        if has_shim && (self.is_current || self.is_linked) {
            if let Some(container) = a_container() {
                log::warn!("{} is still there: containerd needs {SHIM} to clean up after it", container.display());
            }
            remove(&self.shim)?;
            removed.push(&*self.shim);
        } else if has_shim {
            log::warn!("{} is left as it is: it is another program, without a link {NAME}", self.shim.display());
        }
        if self.is_linked {
            remove(&self.link)?;
            removed.push(&*self.link);
        } else if self.link.symlink_metadata().is_ok() {
            log::warn!("{} is left as it is: it is something else", self.link.display());
        }
        Ok(removed)
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).os(|| format!("open {}", path.display()))
}

/// Whether `path` is an executable file with our own text.
fn is_ours(path: &Path) -> Result<bool> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(false) };
    let (mut ours, length) = (open(Path::new(OURS))?, std::fs::metadata(OURS).os(|| "stat /proc/self/exe")?);
    if !metadata.is_file() || metadata.len() != length.len() || metadata.mode() & 0o7777 != 0o755 {
        return Ok(false);
    }
    ours.rewind().os(|| "lseek")?;
    let read = |path: &Path| std::fs::read(path).os(|| format!("read {}", path.display()));
    Ok(read(Path::new(OURS))? == read(path)?)
}

/// The state of any container of ours.
fn a_container() -> Option<PathBuf> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(Path::new(state::ROOT))
        .flat_map(|namespace| entries(&namespace).collect::<Vec<_>>())
        .find(|dir| dir.is_dir())
}
