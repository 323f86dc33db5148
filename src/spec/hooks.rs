//! Hooks: programs of the specification's that are run at six points of a container's life, and the state that each is
//! told on its stdin (config.md, "POSIX-platform Hooks"; runtime.md, "Lifecycle" and "State").

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{Hook as Entry, Hooks, Spec};
use serde::{Deserialize, Serialize};

use super::features::OCI_VERSIONS;
use super::validate::{absolute, invalid, no_nul};
use crate::error::Result;

/// When a hook is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// As `CreateRuntime`, before it; deprecated for those who write configurations.
    Prestart,
    /// During create, when namespaces and mounts are made and before the root is entered; in the runtime's namespaces.
    CreateRuntime,
    /// After it; in the container's namespaces, by a path of the host's.
    CreateContainer,
    /// During start; in the container, by a path of its own.
    StartContainer,
    /// When the program runs, before start is answered; in the runtime's namespaces.
    Poststart,
    /// When all of the container is gone, before delete is answered; in the runtime's namespaces.
    Poststop,
}

impl Point {
    /// In the order of a container's life.
    pub const ALL: [Point; 6] = [
        Point::Prestart,
        Point::CreateRuntime,
        Point::CreateContainer,
        Point::StartContainer,
        Point::Poststart,
        Point::Poststop,
    ];

    /// The name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::StartContainer => "startContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }

    /// The container's status as hooks are told it.
    pub fn status(self) -> &'static str {
        match self {
            Point::Prestart | Point::CreateRuntime | Point::CreateContainer => "creating",
            Point::StartContainer => "created",
            Point::Poststart => "running",
            Point::Poststop => "stopped",
        }
    }

    #[allow(deprecated)] // `prestart`: nerdctl and Docker write it still.
    fn entries(self, hooks: &Hooks) -> &Option<Vec<Entry>> {
        match self {
            Point::Prestart => hooks.prestart(),
            Point::CreateRuntime => hooks.create_runtime(),
            Point::CreateContainer => hooks.create_container(),
            Point::StartContainer => hooks.start_container(),
            Point::Poststart => hooks.poststart(),
            Point::Poststop => hooks.poststop(),
        }
    }
}

/// One hook, as values for execve(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// When it is run.
    pub point: Point,
    /// Its place in the list, from 0.
    pub index: usize,
    /// Its program.
    pub path: CString,
    /// Its arguments, its own name the first.
    pub args: Vec<CString>,
    /// All of its environment; none where the specification says nothing of it.
    pub env: Option<Vec<CString>>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// The hooks of a point, as the specification has them.
pub fn entries(spec: &Spec, point: Point) -> &[Entry] {
    spec.hooks().as_ref().and_then(|hooks| point.entries(hooks).as_deref()).unwrap_or_default()
}

/// The hooks of a point, in the order in which they are run.
///
/// # Errors
/// `InvalidArgument` for the first that breaks a rule.
pub fn hooks(point: Point, entries: &[Entry]) -> Result<Vec<Hook>> {
    entries.iter().enumerate().map(|(index, entry)| hook(point, index, entry)).collect()
}

/// Judges the hooks of all points.
pub fn validate(spec: &Spec) -> Result<()> {
    Point::ALL.into_iter().try_for_each(|point| hooks(point, entries(spec, point)).map(drop))
}

fn hook(point: Point, index: usize, entry: &Entry) -> Result<Hook> {
    let field = |name: &str| format!("hooks.{}[{index}].{name}", point.name());
    absolute(&field("path"), entry.path())?;
    let path = c_string(&field("path"), entry.path().as_os_str().as_bytes())?;
    let strings = |name: &str, list: &[String]| -> Result<Vec<CString>> {
        let entries = list.iter().enumerate();
        entries.map(|(at, text)| c_string(&format!("{}[{at}]", field(name)), text.as_bytes())).collect()
    };
    let mut args = strings("args", entry.args().as_deref().unwrap_or_default())?;
    if args.is_empty() {
        args.push(path.clone());
    }
    let env = entry.env().as_deref().map(|env| strings("env", env)).transpose()?;
    let timeout = match entry.timeout() {
        None => None,
        Some(seconds) if seconds > 0 => Some(Duration::from_secs(seconds.unsigned_abs())),
        Some(seconds) => return Err(invalid(format!("{} is not greater than 0: {seconds}", field("timeout")))),
    };
    Ok(Hook { point, index, path, args, env, timeout })
}

fn c_string(field: &str, text: &[u8]) -> Result<CString> {
    no_nul(field, std::ffi::OsStr::from_bytes(text))?;
    CString::new(text).map_err(|e| invalid(format!("{field}: {e}")))
}

/// What hooks are told of their container, but for what changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its id.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// The specification's annotations.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
}

impl About {
    /// Of a container.
    pub fn new(id: &str, bundle: &Path, spec: &Spec) -> Self {
        let annotations = spec.annotations().clone().unwrap_or_default();
        Self { id: id.to_owned(), bundle: bundle.to_owned(), annotations }
    }

    /// The container's state at `point` as a JSON document. `pid` is its init's, as the hook sees it; a stopped container
    /// has none.
    pub fn state(&self, point: Point, pid: Option<i32>) -> Vec<u8> {
        self.state_as(point.status(), pid).to_string().into_bytes()
    }

    /// The same with any status.
    pub fn state_as(&self, status: &str, pid: Option<i32>) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": OCI_VERSIONS.1,
            "id": self.id,
            "status": status,
            "bundle": self.bundle.to_string_lossy(),
            "annotations": self.annotations,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::{Value, json};

    fn spec(hooks: Value) -> Spec {
        serde_json::from_value(json!({ "ociVersion": "1.0.0", "hooks": hooks })).unwrap()
    }

    #[test]
    fn a_hook_that_breaks_a_rule_is_named() {
        for (hook, names) in [
            (json!({ "path": "bin/x" }), "path is not an absolute path"),
            (json!({ "path": "" }), "path is not an absolute path"),
            (json!({ "path": "/a\0" }), "path contains a NUL"),
            (json!({ "path": "/a", "args": ["a", "b\0"] }), "args[1] contains a NUL"),
            (json!({ "path": "/a", "env": ["A=\0"] }), "env[0] contains a NUL"),
            (json!({ "path": "/a", "timeout": 0 }), "timeout is not greater than 0: 0"),
            (json!({ "path": "/a", "timeout": -1 }), "timeout is not greater than 0: -1"),
        ] {
            for point in Point::ALL {
                let name = point.name();
                let error = validate(&spec(json!({ name: [{ "path": "/good" }, hook.clone()] }))).unwrap_err();
                assert_eq!(error.kind(), Kind::InvalidArgument);
                assert!(error.to_string().starts_with(&format!("hooks.{name}[1].{names}")), "{error}");
            }
        }
    }

    #[test]
    fn what_is_left_out_and_what_is_empty() {
        let spec = spec(json!({ "poststop": [
            { "path": "/a" },
            { "path": "/b", "args": [], "env": [], "timeout": 2 },
            { "path": "/c", "args": ["c", "d"], "env": ["A=1"] },
        ]}));
        let all = hooks(Point::Poststop, entries(&spec, Point::Poststop)).unwrap();
        assert_eq!(all[0].args, [c"/a".to_owned()]);
        assert_eq!((&all[0].env, all[0].timeout), (&None, None));
        assert_eq!(all[1].args, [c"/b".to_owned()]);
        assert_eq!((&all[1].env, all[1].timeout), (&Some(vec![]), Some(Duration::from_secs(2))));
        assert_eq!(all[2].args, [c"c".to_owned(), c"d".to_owned()]);
        assert_eq!(all[2].index, 2);
        assert!(entries(&spec, Point::Prestart).is_empty());
    }

    /// As the specification's document has it: a stopped container has no pid.
    #[test]
    fn the_state_has_a_pid_but_when_it_is_stopped() {
        let about = About { id: "a".into(), bundle: "/b".into(), annotations: [("k".into(), "v".into())].into() };
        let state = |point, pid| serde_json::from_slice::<Value>(&about.state(point, pid)).unwrap();
        let running = json!({ "ociVersion": "1.3.0", "id": "a", "status": "running", "pid": 7, "bundle": "/b",
            "annotations": { "k": "v" } });
        assert_eq!(state(Point::Poststart, Some(7)), running);
        let stopped = state(Point::Poststop, None);
        assert_eq!((stopped["status"].as_str(), stopped.get("pid")), (Some("stopped"), None));
    }
}
