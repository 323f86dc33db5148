//! What is known of a cgroup's kills when it is gone, and its count with it: systemd removes a scope's as soon as nobody is in
//! it, which may be before the count of the last kill has been read.
//!
//! memory.events of those above has it too, but also that of their other cgroups: what that was is noted while the cgroup's own
//! count can still be read, and what has come since is probably its own. Those above may be gone as well, and on v1 they count
//! their own alone: the last to ask is the whole host.

use std::cell::RefCell;
use std::path::PathBuf;

use rustix::fs::CWD;

use super::limit::line;
use crate::cgroup::hierarchy::Version;
use crate::cgroup::{Cgroup, file};

/// The counts of those above a cgroup.
#[derive(Debug)]
pub(super) struct Others {
    /// From the parent's to the host's.
    files: Vec<PathBuf>,
    /// What each had counted when it was last looked at, without the cgroup's own.
    kills: RefCell<Vec<Option<u64>>>,
}

impl Others {
    /// Of a cgroup in which nothing has been killed.
    pub(super) fn of(cgroup: &Cgroup) -> Self {
        let above = line(cgroup).skip(1).filter(|_| cgroup.hierarchies.version() == Version::V2);
        let files = above.map(|(_, dir)| dir.join("memory.events")).chain(["/proc/vmstat".into()]).collect();
        let others = Self { files, kills: RefCell::default() };
        others.kills.replace(others.look(0));
        others
    }

    /// What each has counted now, without the `own` kills of the cgroup.
    pub(super) fn look(&self, own: u64) -> Vec<Option<u64>> {
        let mut buf = Vec::new();
        let mut count = |path| file::number(file::read(CWD, path, &mut buf).ok()?, "oom_kill");
        self.files.iter().map(|path| count(path)?.checked_sub(own)).collect()
    }

    /// That is what has been counted elsewhere.
    pub(super) fn note(&self, kills: Vec<Option<u64>>) {
        self.kills.replace(kills);
    }

    /// How many kills more than the `own` that are known may have been the cgroup's, which is gone. The nearest that is still
    /// there knows best.
    pub(super) fn missed(&self, own: u64) -> u64 {
        let (before, now) = (self.kills.borrow(), self.look(own));
        let mut both = before.iter().zip(now).filter_map(|(before, now)| now?.checked_sub((*before)?));
        both.next().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counts(PathBuf);

    impl Counts {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("dray-test-others-{name}-{}", std::process::id()));
            std::fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn write(&self, name: &str, kills: u64) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, format!("oom 7\noom_kill {kills}\noom_group_kill 9\n")).unwrap();
            path
        }
    }

    impl Drop for Counts {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_has_been_counted_elsewhere_is_not_the_cgroups() {
        let counts = Counts::new("elsewhere");
        let files = vec![counts.write("parent", 3), counts.write("host", 10)];
        let others = Others { files, kills: RefCell::default() };
        others.note(others.look(0));
        assert_eq!(others.missed(0), 0);
        // One of its own that it knows of, and two elsewhere; then one that it does not know of.
        counts.write("parent", 6);
        assert_eq!(others.missed(1), 2, "not noted yet");
        others.note(others.look(1));
        assert_eq!(others.missed(1), 0);
        counts.write("parent", 7);
        assert_eq!(others.missed(1), 1);
        // The host's are anyone's.
        counts.write("host", 50);
        assert_eq!(others.missed(1), 1);
    }

    #[test]
    fn the_nearest_that_is_there_is_asked() {
        let counts = Counts::new("nearest");
        let files = vec![counts.write("parent", 3), counts.write("above", 5), counts.write("host", 10)];
        let others = Others { files: files.clone(), kills: RefCell::default() };
        others.note(others.look(0));
        counts.write("above", 6);
        counts.write("host", 12);
        assert_eq!(others.missed(0), 0);
        std::fs::remove_file(&files[0]).unwrap();
        assert_eq!(others.missed(0), 1);
        // Made again meanwhile, under the same name: it has counted less than it had.
        counts.write("above", 0);
        assert_eq!(others.missed(0), 2);
        std::fs::remove_file(&files[1]).unwrap();
        std::fs::remove_file(&files[2]).unwrap();
        assert_eq!(others.missed(0), 0);
    }
}
