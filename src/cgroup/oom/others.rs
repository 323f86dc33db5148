//! What is known of a cgroup's kills when it is gone, and its count with it: systemd removes a scope's as soon as nobody is in
//! it, which may be before the count of the last kill has been read.
//!
//! memory.events of those above has it too, but also that of their other cgroups: what that was is noted while the cgroup's own
//! count can still be read, and what has come since is probably its own. Those above may be gone as well, and on v1 they count
//! their own alone: the last to ask is the whole host.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, stat};

use super::limit::line;
use crate::cgroup::hierarchy::Version;
use crate::cgroup::{Cgroup, file};

/// The counts of those above a cgroup.
#[derive(Debug)]
pub(super) struct Others {
    /// The cgroup's own count, where a look at it is one read.
    own: Option<PathBuf>,
    /// From the parent's to the host's.
    files: Vec<PathBuf>,
    /// What each had counted when it was last looked at, without the cgroup's own.
    kills: RefCell<Vec<Option<Count>>>,
}

/// What a file has counted, and which one of its name that was: one above may have been removed and made again.
#[derive(Clone, Copy, Debug)]
struct Count {
    inode: u64,
    kills: u64,
}

impl Others {
    /// Of a cgroup in which nothing has been killed.
    pub(super) fn of(cgroup: &Cgroup) -> Self {
        let mut counts = line(cgroup)
            .filter(|_| cgroup.hierarchies.version() == Version::V2)
            .map(|(_, dir)| dir.join(super::EVENTS));
        let others = Self {
            own: counts.next(),
            files: counts.chain(["/proc/vmstat".into()]).collect(),
            kills: RefCell::default(),
        };
        others.note(0);
        others
    }

    /// Takes note of what has been counted elsewhere, where `own` is what has been seen of the cgroup's own.
    pub(super) fn note(&self, own: u64) {
        let kills = self.look(own);
        // One that comes in between would be taken for another's, for ever. (On v1 the look is a walk, which a container makes
        // as long as it likes: there it may be, if it is the last.) By a file of our own: who reads the watch's stops its bell.
        if self.own.as_ref().is_none_or(|path| count(path).is_some_and(|count| count.kills == own)) {
            self.kills.replace(kills);
        }
    }

    /// What each has counted now, without the `own` kills of the cgroup.
    fn look(&self, own: u64) -> Vec<Option<Count>> {
        let without = |count: Count| Some(Count { kills: count.kills.checked_sub(own)?, ..count });
        self.files.iter().map(|path| count(path).and_then(without)).collect()
    }

    /// How many kills more than the `own` that are known may have been the cgroup's, which is gone. The nearest that is still
    /// there knows best.
    pub(super) fn missed(&self, own: u64) -> u64 {
        let (before, now) = (self.kills.borrow(), self.look(own));
        let both = before.iter().zip(now).filter_map(|(before, now)| (*before).zip(now));
        let mut same = both.filter(|(before, now)| before.inode == now.inode);
        same.next().map_or(0, |(before, now)| now.kills.saturating_sub(before.kills))
    }
}

/// `None` where the file is gone.
fn count(path: &Path) -> Option<Count> {
    let inode = stat(path).ok()?.st_ino;
    let kills = file::number(file::read(CWD, path, &mut Vec::new()).ok()?, "oom_kill")?;
    Some(Count { inode, kills })
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

        fn replace(&self, name: &str, kills: u64) {
            std::fs::rename(self.write("new", kills), self.0.join(name)).unwrap();
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
        let own = Some(counts.write("own", 0));
        let others = Others { own, files, kills: RefCell::default() };
        others.note(0);
        assert_eq!(others.missed(0), 0);
        // One of its own that it knows of, and two elsewhere; then one that it does not know of.
        counts.write("parent", 6);
        assert_eq!(others.missed(1), 2, "not noted yet");
        others.note(1);
        assert_eq!(others.missed(1), 2, "it had counted another number");
        counts.write("own", 1);
        others.note(1);
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
        let others = Others { own: None, files: files.clone(), kills: RefCell::default() };
        others.note(0);
        counts.write("above", 6);
        counts.write("host", 12);
        assert_eq!(others.missed(0), 0);
        std::fs::remove_file(&files[0]).unwrap();
        assert_eq!(others.missed(0), 1);
        // Made again meanwhile, under the same name.
        counts.replace("above", 5);
        assert_eq!(others.missed(0), 2);
        std::fs::remove_file(&files[1]).unwrap();
        std::fs::remove_file(&files[2]).unwrap();
        assert_eq!(others.missed(0), 0);
    }
}
