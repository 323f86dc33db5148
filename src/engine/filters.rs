//! Compiled seccomp filters: the containers of a pod mostly have the same profile, and compiling one takes milliseconds.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::{Rc, Weak};

use oci_spec::runtime::LinuxSeccomp;

use crate::error::{Error, Kind, Result};
use crate::init::seccomp;
use crate::sys::seccomp::Filter;

/// Filters by their profiles, as long as a container has them.
#[derive(Default)]
pub(super) struct Filters {
    /// With keys of this process's own, and two of them: nobody can make a profile whose hash is that of another.
    hashers: [RandomState; 2],
    known: RefCell<HashMap<[u64; 2], Weak<Filter>>>,
}

impl Filters {
    /// The filter of a profile.
    ///
    /// # Errors
    /// What [`seccomp::compile`] says.
    pub fn get(&self, profile: &LinuxSeccomp) -> Result<Rc<Filter>> {
        let text = serde_json::to_vec(profile).map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
        let key = [self.hashers[0].hash_one(&text), self.hashers[1].hash_one(&text)];
        if let Some(filter) = self.known.borrow().get(&key).and_then(Weak::upgrade) {
            return Ok(filter);
        }
        let filter = Rc::new(seccomp::compile(profile)?);
        let mut known = self.known.borrow_mut();
        known.retain(|_, filter| filter.strong_count() > 0);
        known.insert(key, Rc::downgrade(&filter));
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_filter_is_shared_while_somebody_has_it() {
        let profile = |errno: i32| -> LinuxSeccomp {
            let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
            serde_json::from_value(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })).unwrap()
        };
        let filters = Filters::default();
        let one = filters.get(&profile(1)).unwrap();
        assert!(Rc::ptr_eq(&one, &filters.get(&profile(1)).unwrap()));
        let other = filters.get(&profile(2)).unwrap();
        assert!(!Rc::ptr_eq(&one, &other) && *one != *other);
        drop(other);
        let again = filters.get(&profile(3)).unwrap();
        assert_eq!(filters.known.borrow().len(), 2, "the one that nobody has is forgotten");
        assert_eq!(Rc::strong_count(&again), 1, "the cache keeps none alive");
    }
}
