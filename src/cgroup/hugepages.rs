//! The sizes of huge pages that this host has.

use std::path::Path;
use std::sync::OnceLock;

use oci_spec::runtime::LinuxResources;

use crate::error::{Error, Kind, Os, Result};

const SIZES: &str = "/sys/kernel/mm/hugepages";

/// Refuses a limit for pages of a size that there is not.
///
/// # Errors
/// `InvalidArgument`, with the sizes that there are.
pub(super) fn check(resources: &LinuxResources) -> Result<()> {
    check_in(Path::new(SIZES), resources)
}

fn check_in(dir: &Path, resources: &LinuxResources) -> Result<()> {
    let limits = resources.hugepage_limits().as_deref().unwrap_or_default();
    if limits.is_empty() {
        return Ok(());
    }
    let sizes = sizes(dir)?;
    match limits.iter().position(|limit| !sizes.contains(limit.page_size())) {
        None => Ok(()),
        Some(index) => {
            let (size, known) = (limits[index].page_size(), sizes.join(", "));
            let text = format!("linux.resources.hugepageLimits[{index}]: no pages of {size} here, but of: {known}");
            Err(Error::new(Kind::InvalidArgument, text))
        }
    }
}

/// All of them, for reading: looked for once, as they are the kernel's from its boot on.
pub(super) fn known() -> &'static [String] {
    static KNOWN: OnceLock<Vec<String>> = OnceLock::new();
    KNOWN.get_or_init(|| sizes(Path::new(SIZES)).unwrap_or_default())
}

/// As the hugetlb controller names them, after `hugepages-2048kB` and the like.
fn sizes(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        // A kernel without any.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.os(|| format!("read directory {}", dir.display()))?,
    };
    let mut sizes: Vec<u64> = entries
        .filter_map(|entry| {
            entry.ok()?.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    let name = |kib: u64| match kib {
        1_048_576.. => format!("{}GB", kib >> 20),
        1024.. => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    };
    Ok(sizes.into_iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sizes_that_the_host_has_can_be_limited() {
        let dir = std::env::temp_dir().join(format!("dray-test-hugepages-{}", std::process::id()));
        for kib in ["64", "2048", "32768", "1048576", "16777216"] {
            std::fs::create_dir_all(dir.join(format!("hugepages-{kib}kB"))).unwrap();
        }
        let judge = |dir: &Path, sizes: &[&str]| {
            let limits: Vec<_> = sizes.iter().map(|s| serde_json::json!({ "pageSize": s, "limit": 1 })).collect();
            let resources = serde_json::json!({ "hugepageLimits": limits });
            check_in(dir, &serde_json::from_value(resources).unwrap())
        };
        judge(&dir, &["64KB", "2MB", "32MB", "1GB", "16GB"]).unwrap();
        for unknown in ["1MB", "2048KB", "2M", "2mb", "", "1024MB", "../x"] {
            let error = judge(&dir, &["2MB", unknown]).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            let text = error.to_string();
            assert!(text.contains("hugepageLimits[1]") && text.contains("64KB, 2MB, 32MB, 1GB, 16GB"), "{text}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(judge(&dir, &["2MB"]).unwrap_err().kind(), Kind::InvalidArgument);
        judge(&dir, &[]).unwrap();
    }
}
