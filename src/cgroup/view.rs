//! What a container sees of its cgroups when its specification mounts them (type `cgroup`).

use std::path::PathBuf;

use super::Cgroup;
use super::hierarchy::{Hierarchy, Version};

/// One v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The name that the hierarchy's directory has on the host, and has in the container: `cpu,cpuacct`.
    pub directory_name: String,
    /// Its controllers, `cpu` and `cpuacct`; empty for a named hierarchy.
    pub controllers: Vec<String>,
    /// What cgroup's fsconfig(2) takes to mount it.
    pub options: Vec<(String, Option<String>)>,
    /// The container's own directory in it.
    pub directory: PathBuf,
}

/// The unified hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnifiedView {
    /// Where the host has it.
    pub mount: PathBuf,
    /// The container's own directory in it.
    pub directory: PathBuf,
    /// That, from `mount`.
    pub path: PathBuf,
}

impl Cgroup {
    /// The unified hierarchy, where the host has one, and whether that is where its controllers are.
    pub fn unified_view(&self) -> Option<(UnifiedView, Version)> {
        let hierarchy = self.hierarchies.unified.as_deref()?;
        let (mount, directory) = (hierarchy.mount.clone(), hierarchy.dir(&self.path));
        let view = UnifiedView { mount, directory, path: self.path.clone() };
        Some((view, self.hierarchies.version()))
    }

    /// The v1 hierarchies, in the order of the host's mounts.
    pub fn v1_views(&self) -> Vec<View> {
        self.hierarchies.v1.iter().map(|hierarchy| view(hierarchy, hierarchy.dir(&self.path))).collect()
    }
}

fn view(hierarchy: &Hierarchy, directory: PathBuf) -> View {
    let directory_name = hierarchy.mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (controllers, options) = match hierarchy.name.strip_prefix("name=") {
        Some(name) => (vec![], vec![("none".to_owned(), None), ("name".to_owned(), Some(name.to_owned()))]),
        None => {
            let controllers: Vec<String> = hierarchy.name.split(',').map(str::to_owned).collect();
            let options = controllers.iter().map(|controller| (controller.clone(), None)).collect();
            (controllers, options)
        }
    };
    View { directory_name, controllers, options, directory }
}
