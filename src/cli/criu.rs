//! What `checkpoint` and `restore` have in common: runc's flags for CRIU.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Global;
use crate::engine::checkpoint::empty_namespaces;
use crate::engine::criu::Settings;
use crate::engine::criu::wire::CgroupsMode;
use crate::error::{Error, Kind, Os, Result};

/// Where images are where nobody says it: in the caller's directory, as runc has it.
const IMAGES: &str = "checkpoint";

/// Flags of both verbs.
#[derive(Debug, Args)]
pub struct Criu {
    /// Directory of the images [default: ./checkpoint]
    #[arg(long, value_name = "DIR")]
    pub image_path: Option<PathBuf>,
    /// Directory of CRIU's log and other files of the way
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Take TCP connections along
    #[arg(long)]
    pub tcp_established: bool,
    /// Close TCP connections
    #[arg(long)]
    pub tcp_close: bool,
    /// Let sockets to processes outside be
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Take a session or a process group of a process outside
    #[arg(long)]
    pub shell_job: bool,
    /// Take file locks along
    #[arg(long)]
    pub file_locks: bool,
    /// What to do about cgroups: soft, full, strict or ignore
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub manage_cgroups_mode: String,
    /// Leave a namespace empty: network, which always is
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<String>,
    /// Give back what later images replace
    #[arg(long)]
    pub auto_dedup: bool,
    /// Keep files that are open and removed, by a name beside where they were
    #[arg(long)]
    pub link_remap: bool,
    /// Have memory asked for as it is needed
    #[arg(long)]
    pub lazy_pages: bool,
}

impl Criu {
    /// What they ask for.
    ///
    /// # Errors
    /// `InvalidArgument`, in runc's words.
    pub fn settings(&self, global: &Global) -> Result<Settings> {
        empty_namespaces(self.empty_ns.iter().map(String::as_str))?;
        let wrong = || Error::new(Kind::InvalidArgument, "Invalid manage-cgroups-mode value");
        Ok(Settings {
            images: absolute(self.image_path.as_deref().unwrap_or(Path::new(IMAGES)))?,
            work: self.work_path.as_deref().map(absolute).transpose()?,
            open_tcp: self.tcp_established,
            close_tcp: self.tcp_close,
            external_unix_sockets: self.ext_unix_sk,
            terminal: self.shell_job,
            file_locks: self.file_locks,
            cgroups: CgroupsMode::of(&self.manage_cgroups_mode).ok_or_else(wrong)?,
            auto_dedup: self.auto_dedup,
            link_remap: self.link_remap,
            lazy_pages: self.lazy_pages,
            program: global.criu.clone(),
        })
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).os(|| format!("{}", path.display()))
}
