//! A cgroup below a container's own, which somebody has made there, for one more process of it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::hierarchy::{Hierarchy, Version};
use super::{Cgroup, Joins};
use crate::error::{Error, Kind, Result};

/// Where, from the container's cgroup on: by controller, or for all of them under the name "".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below(BTreeMap<String, PathBuf>);

impl Below {
    /// From words `PATH` (one, and no other) or `CONTROLLER[,CONTROLLER...]:PATH`, as runc's `--cgroup` has them; `None` for
    /// no words.
    ///
    /// # Errors
    /// `InvalidArgument`, in runc's words.
    pub fn parse(words: &[String]) -> Result<Option<Self>> {
        let wrong = |text: String| Err(Error::new(Kind::InvalidArgument, text));
        let mut all = BTreeMap::new();
        for word in words {
            let Some((controllers, path)) = word.split_once(':') else {
                if words.len() != 1 {
                    return wrong(format!("invalid --cgroup argument: {word} (missing <controller>: prefix)"));
                }
                all.insert(String::new(), below(word)?);
                break;
            };
            if path.contains(':') {
                return wrong(format!("invalid --cgroup argument: {word}"));
            }
            for controller in controllers.split(',') {
                if controller.is_empty() {
                    return wrong(format!("invalid --cgroup argument: {word} (empty <controller> prefix)"));
                }
                if all.insert(controller.to_owned(), below(path)?).is_some() {
                    let text =
                        format!("invalid --cgroup argument(s): controller {controller} specified multiple times");
                    return wrong(text);
                }
            }
        }
        Ok((!all.is_empty()).then_some(Self(all)))
    }

    /// The path for one hierarchy.
    fn of(&self, hierarchy: &Hierarchy) -> Option<&Path> {
        let named = |name: &str| if name.is_empty() { true } else { hierarchy.has(name) };
        self.0.iter().find(|(name, _)| named(name)).map(|(_, path)| path.as_path())
    }
}

/// A path that does not lead out, relative.
fn below(path: &str) -> Result<PathBuf> {
    let mut below = PathBuf::new();
    for component in Path::new(path).components() {
        let inside = match component {
            Component::Normal(name) => {
                below.push(name);
                true
            }
            Component::ParentDir => below.pop(),
            _ => true,
        };
        if !inside {
            return Err(Error::new(Kind::InvalidArgument, format!("{path} is not a sub cgroup path")));
        }
    }
    Ok(below)
}

impl Cgroup {
    /// As [`Cgroup::joins`], for a process that is to be `below`.
    ///
    /// # Errors
    /// `InvalidArgument` for a controller that is not there; when there is no such cgroup.
    pub fn joins_below(&self, below: &Below) -> Result<Joins> {
        let version = self.hierarchies.version();
        for name in below.0.keys().filter(|name| !name.is_empty()) {
            if version == Version::V2 || !self.hierarchies.v1.iter().any(|hierarchy| hierarchy.has(name)) {
                let text = format!("unknown controller {name} in SubCgroupPaths");
                return Err(Error::new(Kind::InvalidArgument, text));
            }
        }
        let path = |hierarchy: &Hierarchy| match below.of(hierarchy) {
            // Beside controllers of v1 this one limits nothing: who makes cgroups below may do without it.
            Some(path) if hierarchy.is_unified() && version == Version::V1 => {
                let path = self.path.join(path);
                if hierarchy.dir(&path).is_dir() { path } else { self.path.clone() }
            }
            Some(path) => self.path.join(path),
            None => self.path.clone(),
        };
        self.joins_at(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> std::result::Result<Vec<(String, PathBuf)>, String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let below = Below::parse(&words).map_err(|e| e.to_string())?;
        Ok(below.map(|below| below.0.into_iter().collect()).unwrap_or_default())
    }

    #[test]
    fn words_are_runcs() {
        let pair = |name: &str, path: &str| (name.to_owned(), PathBuf::from(path));
        assert_eq!(parsed(&[]), Ok(vec![]));
        assert_eq!(parsed(&["/a/./b/../c/"]), Ok(vec![pair("", "a/c")]));
        let three = parsed(&["cpu,memory:a", "pids:b"]);
        assert_eq!(three, Ok(vec![pair("cpu", "a"), pair("memory", "a"), pair("pids", "b")]));
        for (words, why) in [
            (&["a", "b"][..], "(missing <controller>: prefix)"),
            (&["cpu:a:b"], "invalid --cgroup argument: cpu:a:b"),
            (&["cpu,:a"], "(empty <controller> prefix)"),
            (&["cpu:a", "cpu:b"], "controller cpu specified multiple times"),
            (&["a/../../b"], "is not a sub cgroup path"),
            (&[".."], "is not a sub cgroup path"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
