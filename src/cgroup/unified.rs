//! `linux.resources.unified`: files of cgroup2 by their names. Pure.

use std::collections::HashMap;

use super::io_knobs_v2::NO_RATES;
use super::knobs::Knob;
use crate::error::{Error, Kind, Result};

/// What of the core's files is a limit. The others are how a container is entered, frozen, killed and divided, which is not
/// for its specification.
const CORE: [&str; 2] = ["cgroup.max.depth", "cgroup.max.descendants"];

/// One write for each line of each file, sorted by their names so that it is the same each time.
///
/// # Errors
/// `InvalidArgument` for what is no name of a controller's file.
pub(super) fn unified_knobs(files: &HashMap<String, String>, knobs: &mut Vec<Knob>) -> Result<()> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort_unstable();
    for (file, text) in files {
        let controller = controller(file)?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if text.contains('\0') {
            return Err(wrong(file, "its value contains a NUL"));
        }
        if lines.is_empty() {
            // The empty list of CPUs: those of the parent. A write of no bytes does not reach the kernel.
            knobs.push(Knob::new(controller.to_owned(), file.clone(), "\n"));
        }
        for line in lines {
            let knob = Knob::new(controller.to_owned(), file.clone(), line);
            knobs.push(match reset(file) {
                Some(reset) if line.contains(' ') => knob.reset(reset),
                _ => knob,
            });
        }
    }
    Ok(())
}

fn controller(file: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match file.split_once('.') {
        Some((controller, rest)) if !controller.is_empty() && !rest.is_empty() && file.chars().all(plain) => {
            if controller == "cgroup" && !CORE.contains(&file) {
                return Err(wrong(file, "of the files of the cgroup itself only its limits can be set"));
            }
            Ok(controller)
        }
        _ => Err(wrong(file, "not the name of a file of a controller")),
    }
}

/// What takes the value of one key away, in the files that have one for each key.
fn reset(file: &str) -> Option<&'static str> {
    match file {
        "io.max" => Some(NO_RATES),
        "io.latency" => Some("target=max"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        "rdma.max" => Some("hca_handle=max hca_object=max"),
        "misc.max" => Some("max"),
        _ => None,
    }
}

fn wrong(file: &str, why: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("linux.resources.unified[{file:?}]: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs(files: &[(&str, &str)]) -> Result<Vec<Knob>> {
        let files = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        let mut knobs = Vec::new();
        unified_knobs(&files, &mut knobs).map(|()| knobs)
    }

    #[test]
    fn files_in_order_and_one_write_for_each_line() {
        let knobs = knobs(&[
            ("memory.high", "4096"),
            ("io.max", "8:0 rbps=1\n8:16 wbps=2\n"),
            ("cpuset.cpus", ""),
            ("cgroup.max.depth", "3"),
            ("hugetlb.2MB.max", "0"),
            ("cpu.max", "1000 2000"),
        ]);
        let knobs = knobs.unwrap();
        let lines: Vec<_> = knobs.iter().map(|k| (&*k.controller, &*k.file, &*k.value, k.reset)).collect();
        let expected = [
            ("cgroup", "cgroup.max.depth", "3", None),
            ("cpu", "cpu.max", "1000 2000", None),
            ("cpuset", "cpuset.cpus", "\n", None),
            ("hugetlb", "hugetlb.2MB.max", "0", None),
            ("io", "io.max", "8:0 rbps=1", Some(NO_RATES)),
            ("io", "io.max", "8:16 wbps=2", Some(NO_RATES)),
            ("memory", "memory.high", "4096", None),
        ];
        assert_eq!(lines, expected);
        assert!(knobs.iter().all(|knob| !knob.optional));
    }

    #[test]
    fn what_is_no_controllers_file_is_refused_by_its_name() {
        for file in [
            "",
            "memory",
            ".max",
            "memory.",
            "../x/memory.max",
            "memory.max/x",
            "memory.max\n",
            "memory max.x",
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.freeze",
            "cgroup.kill",
            "cgroup.type",
        ] {
            let error = knobs(&[("pids.max", "1"), (file, "1")]).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(&format!("unified[{file:?}]")), "{error}");
        }
        assert!(knobs(&[("memory.max", "1\0")]).is_err());
    }
}
