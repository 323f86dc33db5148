//! Reading a bundle's `config.json`, and the process document of an exec.
//!
//! What it costs, with containerd 1.6's default document of 2.7 KB and in an unoptimised build, so at most: 0.2 ms
//! for [`load`], of which the parse is 0.1 ms; 0.03 ms for an exec's document. The ignored test at the end measures.
//! The `oci-spec` crate has one regular expression, for `execCPUAffinity`, and compiles it only when that field has a
//! value.

use super::locate;
use super::validate::{invalid, unsupported};
use crate::error::{Error, Kind, Os, Result};
use oci_spec::runtime::{Capability, LinuxResources, Process, Spec};
use rustix::fs::{FileType, Mode, OFlags};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest `config.json` that is read, in bytes. Real ones are a few KB, some hundred with a large seccomp
/// profile or many mounts: the bound only keeps a wrong file from becoming the shim's memory.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads `<bundle>/config.json`. `NotFound` when the bundle or the file is missing, `InvalidArgument` when the file
/// is not what it should be, with the line, the column and the path of the value at fault.
///
/// Capabilities that nobody knows are left out, and in `unknown`: they are to be warned of, the specification says
/// (config.md, "capabilities"), and not an error.
pub fn load(bundle: &Path, unknown: &mut Vec<String>) -> Result<Spec> {
    load_kept(bundle, unknown).map(|(spec, _)| spec)
}

/// The same with the document itself, for who keeps a copy.
///
/// # Errors
/// As [`load`].
pub fn load_kept(bundle: &Path, unknown: &mut Vec<String>) -> Result<(Spec, Vec<u8>)> {
    let path = bundle.join("config.json");
    let json = read(bundle, &path)?;
    let name = path.to_string_lossy();
    let spec = parse(&json, &name).or_else(|error| amended(&json, &name, "/process", unknown, error))?;
    refuse_what_the_types_drop(&json)?;
    Ok((spec, json))
}

/// Parses the process document of an exec: the `process` object of `config.json`, as JSON. `unknown` is as for [`load`].
pub fn load_process(json: &[u8], unknown: &mut Vec<String>) -> Result<Process> {
    const NAME: &str = "the process document";
    parse(json, NAME).or_else(|error| amended(json, NAME, "", unknown, error))
}

/// Parses the resources of an update: an object like `linux.resources` of `config.json`, as JSON.
pub fn load_resources(json: &[u8]) -> Result<LinuxResources> {
    parse(json, "the resources document")
}

/// The annotations of `<bundle>/config.json`, and nothing else of it: for what has to be known before the container.
pub fn annotations(bundle: &Path) -> Result<HashMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Annotated {
        annotations: Option<HashMap<String, String>>,
    }
    let path = bundle.join("config.json");
    let annotated: Annotated = parse(&read(bundle, &path)?, &path.to_string_lossy())?;
    Ok(annotated.annotations.unwrap_or_default())
}

/// The container's root file system: `root.path`, from the bundle where it is relative. Empty where there is no `root`,
/// which `validate` refuses.
pub fn rootfs(bundle: &Path, spec: &Spec) -> PathBuf {
    spec.root().as_ref().map(|root| bundle.join(root.path())).unwrap_or_default()
}

/// Opens a file to be read, in a directory of somebody else's, with `more` flags; returns its size in bytes, too.
///
/// # Errors
/// What open(2) says; `InvalidArgument` for what is no regular file.
pub fn open_regular(path: &Path, more: OFlags) -> Result<(File, u64)> {
    // O_NONBLOCK: opening a fifo would wait for a writer, and with it every container of this shim.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | more;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).os(|| format!("open {}", path.display()))?);
    let stat = rustix::fs::fstat(&file).os(|| format!("fstat {}", path.display()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(invalid(format!("{} is not a regular file", path.display())));
    }
    Ok((file, u64::try_from(stat.st_size).unwrap_or(0)))
}

fn read(bundle: &Path, path: &Path) -> Result<Vec<u8>> {
    let (file, size) = open_regular(path, OFlags::empty()).map_err(|error| why_not_opened(bundle, error))?;
    let mut json = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 20) + 1);
    // Bounded by what is read and not by st_size: a file can grow.
    (&file).take(MAX_CONFIG_BYTES + 1).read_to_end(&mut json).os(|| format!("read {}", path.display()))?;
    if json.len() as u64 > MAX_CONFIG_BYTES {
        return Err(invalid(format!("{} is larger than {} MiB", path.display(), MAX_CONFIG_BYTES >> 20)));
    }
    Ok(json)
}

/// Names the bundle where that is what is missing: containerd removes a bundle as a whole.
fn why_not_opened(bundle: &Path, error: Error) -> Error {
    match error.errno() {
        Some(libc::ENOENT) => match rustix::fs::stat(bundle).os(|| format!("bundle {}", bundle.display())) {
            Err(missing) if missing.errno() == Some(libc::ENOENT) => missing.with_kind(Kind::NotFound),
            _ => error.with_kind(Kind::NotFound),
        },
        Some(libc::ENOTDIR | libc::ELOOP | libc::ENXIO) => error.with_kind(Kind::InvalidArgument),
        _ => error,
    }
}

fn parse<T: DeserializeOwned>(json: &[u8], name: &str) -> Result<T> {
    parse_placed(json, name, true)
}

fn parse_placed<T: DeserializeOwned>(json: &[u8], name: &str, lines: bool) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let cause = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
        let path = match cause.starts_with("missing field") {
            true => locate::path_around(json, line, column),
            false => locate::path_at(json, line, column),
        };
        let separator = if path.is_empty() { "" } else { ": " };
        let place = if lines { format!("line {line}, column {column}: ") } else { String::new() };
        invalid(format!("{name}: {place}{path}{separator}{cause}"))
    })
}

/// The flags of a scheduler that the crate's types spell otherwise than the specification does.
pub(super) const RESPELLED: [(&str, &str); 2] =
    [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];

/// A second try at a document that was refused, with what the types refuse and the specification does not put right in the
/// process at `process`. `error` is returned where there was nothing of that kind.
fn amended<T: DeserializeOwned>(
    json: &[u8],
    name: &str,
    process: &str,
    unknown: &mut Vec<String>,
    error: Error,
) -> Result<T> {
    let Ok(mut document) = serde_json::from_slice::<serde_json::Value>(json) else { return Err(error) };
    let before = document.clone();
    let flags = document.pointer_mut(&format!("{process}/scheduler/flags")).and_then(|flags| flags.as_array_mut());
    for flag in flags.into_iter().flatten() {
        if let Some((_, types)) = RESPELLED.iter().find(|(ours, _)| flag == ours) {
            *flag = (*types).into();
        }
    }
    let sets = document.pointer_mut(&format!("{process}/capabilities")).and_then(|sets| sets.as_object_mut());
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(|set| set.as_array_mut()) {
        set.retain(|capability| match capability.as_str() {
            Some(name) if serde_json::from_value::<Capability>(capability.clone()).is_err() => {
                if !unknown.iter().any(|known| known == name) {
                    unknown.push(name.to_owned());
                }
                false
            }
            _ => true,
        });
    }
    // Who writes by runc's types leaves out what is 0, and who writes by hand what runc does without.
    if let Some(process) = document.pointer_mut(process).and_then(|process| process.as_object_mut()) {
        let user = process.entry("user").or_insert_with(|| serde_json::json!({}));
        if let Some(user) = user.as_object_mut() {
            for id in ["uid", "gid"] {
                user.entry(id).or_insert_with(|| 0.into());
            }
        }
    }
    if document == before {
        return Err(error);
    }
    // From text again, for the place of what else is wrong: as a path, since the lines are others now.
    parse_placed(document.to_string().as_bytes(), name, false)
}

/// What the specification (1.3) has and the crate's types have not, or under another name, and so would drop without a
/// word.
/// `validate` cannot see it, or it would be refused there.
#[derive(serde::Deserialize)]
struct Dropped {
    freebsd: Option<IgnoredAny>,
    linux: Option<DroppedLinux>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct DroppedLinux {
    intel_rdt: Option<DroppedRdt>,
}

/// Both are deprecated for `enableMonitoring`.
#[derive(serde::Deserialize)]
struct DroppedRdt {
    #[serde(rename = "enableCMT")]
    enable_cmt: Option<bool>,
    #[serde(rename = "enableMBM")]
    enable_mbm: Option<bool>,
}

fn refuse_what_the_types_drop(json: &[u8]) -> Result<()> {
    let dropped = parse::<Dropped>(json, "config.json")?;
    let rdt = dropped.linux.and_then(|linux| linux.intel_rdt);
    let asked = |of: fn(&DroppedRdt) -> Option<bool>| rdt.as_ref().and_then(of) == Some(true);
    for (field, asked) in [
        ("freebsd", dropped.freebsd.is_some()),
        ("linux.intelRdt.enableCMT", asked(|rdt| rdt.enable_cmt)),
        ("linux.intelRdt.enableMBM", asked(|rdt| rdt.enable_mbm)),
    ] {
        if asked {
            return Err(unsupported(field));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const CTR: &str = include_str!("../../tests/data/ctr-default.json");

    fn load(bundle: &Path) -> Result<Spec> {
        super::load(bundle, &mut Vec::new())
    }

    fn load_process(json: &[u8]) -> Result<Process> {
        super::load_process(json, &mut Vec::new())
    }

    /// A bundle's directory, removed at the end.
    struct Bundle(PathBuf);

    impl Bundle {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("dray-spec-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn with_config(name: &str, json: &str) -> Self {
            let bundle = Self::new(name);
            std::fs::write(bundle.0.join("config.json"), json).unwrap();
            bundle
        }

        fn refusal(&self) -> Error {
            load(&self.0).expect_err("load")
        }
    }

    impl Drop for Bundle {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn reads_what_containerd_writes() {
        let bundle = Bundle::with_config("ctr", CTR);
        let spec = load(&bundle.0).unwrap();
        assert_eq!(spec.process().as_ref().unwrap().args().as_ref().unwrap(), &["/bin/sh", "-c", "echo hi"]);
        assert_eq!(rootfs(&bundle.0, &spec), Path::new("/rootfs"));
        let relative = serde_json::from_str(r#"{ "ociVersion": "1.0.0", "root": { "path": "r" } }"#).unwrap();
        assert_eq!(rootfs(&bundle.0, &relative), bundle.0.join("r"));
    }

    /// Each that the specification has, so that an update of the types that spells one otherwise is seen.
    #[test]
    fn a_schedulers_flags_are_the_specifications() {
        let names = [
            "RESET_ON_FORK",
            "RECLAIM",
            "DL_OVERRUN",
            "KEEP_POLICY",
            "KEEP_PARAMS",
            "UTIL_CLAMP_MIN",
            "UTIL_CLAMP_MAX",
        ];
        for (bit, name) in names.iter().enumerate() {
            let scheduler = format!(r#"{{ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_{name}"] }}"#);
            let process = format!(
                r#"{{ "args": ["a"], "cwd": "/", "user": {{ "uid": 0, "gid": 0 }}, "scheduler": {scheduler} }}"#
            );
            let numbers = |process: &Process| {
                crate::spec::scheduling::scheduler(process.scheduler().as_ref().unwrap()).unwrap().flags
            };
            assert_eq!(numbers(&load_process(process.as_bytes()).unwrap()), 1 << bit, "{name}");
            let bundle = Bundle::with_config("flags", &format!(r#"{{ "ociVersion": "1.2.0", "process": {process} }}"#));
            assert_eq!(numbers(load(&bundle.0).unwrap().process().as_ref().unwrap()), 1 << bit, "{name}");
        }
        let unknown =
            br#"{ "args": ["a"], "cwd": "/", "scheduler": { "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_X"] } }"#;
        let error = load_process(unknown).unwrap_err().to_string();
        assert!(error.contains("scheduler.flags[0]") && error.contains("SCHED_FLAG_X"), "{error}");
    }

    #[test]
    fn a_missing_bundle_and_a_missing_file_are_not_found_by_their_name() {
        let missing = Path::new("/nonexistent/bundle");
        let error = load(missing).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(error.to_string(), "bundle /nonexistent/bundle: no such file or directory");

        let bundle = Bundle::new("empty");
        let error = bundle.refusal();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains(&format!("{}/config.json", bundle.0.display())), "{error}");
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_and_never_waited_for() {
        let bundle = Bundle::new("fifo");
        let path = bundle.0.join("config.json");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = std::thread::spawn({
            let bundle = bundle.0.clone();
            move || load(&bundle).unwrap_err()
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while !refused.is_finished() {
            assert!(Instant::now() < deadline, "load waits for a writer of the fifo");
            std::thread::sleep(Duration::from_millis(5));
        }
        let error = refused.join().unwrap();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("config.json is not a regular file"), "{error}");

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(bundle.refusal().to_string().contains("is not a regular file"));
    }

    #[test]
    fn a_file_beyond_the_bound_is_refused() {
        let bundle = Bundle::with_config("large", "");
        let path = bundle.0.join("config.json");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(MAX_CONFIG_BYTES + 1).unwrap();
        let error = bundle.refusal();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("is larger than 16 MiB"), "{error}");
        file.set_len(MAX_CONFIG_BYTES).unwrap();
        assert!(!bundle.refusal().to_string().contains("larger"), "the bound itself is within");
    }

    #[test]
    fn what_does_not_parse_is_named_by_its_place() {
        let cases = [
            ("", "line 1, column 0: EOF while parsing"),
            ("{\"ociVersion\": \"1.0.0\",\n \"root\": [", "line 2, column 10: root"),
            (&CTR.replace("\"CAP_FSETID\"", "7"), "process.capabilities.bounding[2]: invalid type: integer `7`"),
            (&CTR.replace("RLIMIT_NOFILE", "RLIMIT_LUCK"), "process.rlimits[0].type: unknown variant `RLIMIT_LUCK`"),
            (&CTR.replace("\"uts\"", "\"moon\""), "linux.namespaces[2].type: unknown variant `moon`"),
            (&CTR.replace("\"uid\":0", "\"uid\":-1"), "process.user.uid: invalid value: integer `-1`"),
            (
                &CTR.replace("\"gid\":0", "\"gid\":0,\"additionalGids\":[1,-1,3]"),
                "process.user.additionalGids[1]: invalid value: integer `-1`",
            ),
            (&CTR.replace("\"cwd\":\"/\",", ""), "process: missing field `cwd`"),
            (&CTR.replace("{\"destination\":\"/dev\",", "{"), "mounts[1]: missing field `destination`"),
            (&format!("{CTR}x"), "trailing characters"),
        ];
        for (index, (json, names)) in cases.into_iter().enumerate() {
            let bundle = Bundle::with_config(&format!("bad{index}"), json);
            let error = bundle.refusal();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("{}/config.json: line ", bundle.0.display())), "{text}");
            assert!(text.contains(names), "{text}");
            assert!(!text.contains(" at line "), "the place is there once: {text}");
        }
    }

    /// By the path and the value, whichever of the two judges it.
    #[test]
    fn unknown_values_of_known_fields_are_named() {
        let rule = |key: &str| {
            let mut rule = serde_json::json!({ "names": ["mkdir"], "action": "SCMP_ACT_LOG" });
            rule[key] = serde_json::json!("SCMP_MOON");
            serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })
        };
        let arg = serde_json::json!([{ "index": 0, "value": 1, "op": "SCMP_MOON" }]);
        let allow = "SCMP_ACT_ALLOW";
        for (field, value, place) in [
            ("/linux/seccomp", serde_json::json!({ "defaultAction": "SCMP_MOON" }), "linux.seccomp.defaultAction"),
            ("/linux/seccomp", rule("action"), "linux.seccomp.syscalls[0].action"),
            (
                "/linux/seccomp",
                serde_json::json!({ "defaultAction": allow, "syscalls": [{ "names": ["a"], "action": allow, "args": arg }] }),
                "linux.seccomp.syscalls[0].args[0].op",
            ),
            (
                "/linux/seccomp",
                serde_json::json!({ "defaultAction": allow, "architectures": ["SCMP_ARCH_X86", "SCMP_MOON"] }),
                "linux.seccomp.architectures[1]",
            ),
            (
                "/linux/seccomp",
                serde_json::json!({ "defaultAction": allow, "flags": ["SCMP_MOON"] }),
                "linux.seccomp.flags[0]",
            ),
            (
                "/process/rlimits",
                serde_json::json!([{ "type": "RLIMIT_MOON", "soft": 1, "hard": 1 }]),
                "process.rlimits[0].type",
            ),
            ("/linux/namespaces", serde_json::json!([{ "type": "MOON" }]), "linux.namespaces[0].type"),
            ("/linux/rootfsPropagation", serde_json::json!("MOON"), "linux.rootfsPropagation"),
            ("/process/scheduler", serde_json::json!({ "policy": "SCHED_MOON" }), "process.scheduler.policy"),
            (
                "/process/ioPriority",
                serde_json::json!({ "class": "IOPRIO_CLASS_MOON", "priority": 1 }),
                "process.ioPriority.class",
            ),
            ("/linux/devices", serde_json::json!([{ "path": "/a", "type": "MOON" }]), "linux.devices[0].type"),
            (
                "/linux/resources/devices",
                serde_json::json!([{ "allow": true, "type": "MOON", "access": "r" }]),
                "linux.resources.devices[0].type",
            ),
            ("/linux/personality", serde_json::json!({ "domain": "MOON" }), "linux.personality.domain"),
            ("/linux/memoryPolicy", serde_json::json!({ "mode": "MPOL_MOON", "nodes": "0" }), "linux.memoryPolicy"),
        ] {
            let mut document: serde_json::Value = serde_json::from_str(CTR).unwrap();
            let (parent, key) = field.rsplit_once('/').unwrap();
            document.pointer_mut(parent).unwrap()[key] = value;
            let bundle = Bundle::with_config("moon", &document.to_string());
            let judged = load(&bundle.0).and_then(|spec| super::super::validate::validate(&spec).map(drop));
            let error = judged.expect_err(field);
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            let text = error.to_string();
            assert!(text.contains(place) && text.contains("MOON"), "{place}: {text}");
        }
    }

    #[test]
    fn capabilities_that_nobody_knows_are_left_out_and_told() {
        let bundle = Bundle::with_config("fly", &CTR.replace("CAP_FSETID", "CAP_FLY"));
        let mut unknown = Vec::new();
        let spec = super::load(&bundle.0, &mut unknown).unwrap();
        assert_eq!(unknown, ["CAP_FLY"]);
        let counts = |spec: &Spec| {
            let sets = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
            [sets.bounding(), sets.effective(), sets.permitted()].map(|set| set.as_ref().unwrap().len())
        };
        let all = counts(&serde_json::from_str(CTR).unwrap());
        assert_eq!(counts(&spec), all.map(|count| count - 1));

        let json =
            r#"{"args":["a"],"cwd":"/","user":{"uid":1,"gid":2},"capabilities":{"ambient":["CAP_KILL","x",""]}}"#;
        let mut unknown = Vec::new();
        let process = super::load_process(json.as_bytes(), &mut unknown).unwrap();
        assert_eq!(unknown, ["x", ""]);
        assert_eq!(process.capabilities().as_ref().unwrap().ambient().as_ref().unwrap().len(), 1);
        // What else is wrong is still told, by its path.
        let error = load_process(json.replace("\"gid\":2", "\"gid\":-2").as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "the process document: user.gid: invalid value: integer `-2`, expected u32");
    }

    #[test]
    fn a_section_that_the_types_do_not_have_is_refused() {
        let bundle = Bundle::with_config("bsd", &CTR.replacen('{', "{\"freebsd\":{\"jail\":{}},", 1));
        let error = bundle.refusal();
        assert_eq!(error.kind(), Kind::Unimplemented);
        assert!(error.to_string().starts_with("freebsd is not supported"), "{error}");
        for field in ["enableCMT", "enableMBM"] {
            let with = |value: bool| {
                let mut document: serde_json::Value = serde_json::from_str(CTR).unwrap();
                document["linux"]["intelRdt"] = serde_json::json!({ field: value });
                document.to_string()
            };
            let error = Bundle::with_config(field, &with(true)).refusal();
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().starts_with(&format!("linux.intelRdt.{field} is not supported")), "{error}");
            load(&Bundle::with_config(field, &with(false)).0).unwrap();
        }
    }

    #[test]
    fn who_names_no_user_means_root() {
        for (user, ids) in [("", (0, 0)), (r#","user":{}"#, (0, 0)), (r#","user":{"uid":7}"#, (7, 0))] {
            let process = load_process(format!(r#"{{"args":["ps"],"cwd":"/"{user}}}"#).as_bytes()).unwrap();
            assert_eq!((process.user().uid(), process.user().gid()), ids, "{user}");
        }
        let error = load_process(br#"{"args":["ps"],"cwd":"/","user":"root"}"#).unwrap_err().to_string();
        assert!(error.contains("user"), "{error}");
    }

    #[test]
    fn an_exec_is_read_by_the_same_rules() {
        let json = br#"{"args":["ps"],"cwd":"/","user":{"uid":1,"gid":2},"rlimits":[{"type":"RLIMIT_LUCK"}]}"#;
        let error = load_process(json).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        let text = error.to_string();
        assert!(text.starts_with("the process document: line 1, column "), "{text}");
        assert!(text.contains("rlimits[0].type: unknown variant `RLIMIT_LUCK`"), "{text}");

        let process = load_process(br#"{"args":["ps"],"cwd":"/","user":{"uid":1,"gid":2}}"#).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1, 2));
    }

    /// Not a test: `cargo test --release --lib what_the_parse_costs -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures, and asserts nothing"]
    fn what_the_parse_costs() {
        let bundle = Bundle::with_config("cost", CTR);
        let process = serde_json::to_vec(load(&bundle.0).unwrap().process()).unwrap();
        let mean = |name: &str, work: &dyn Fn()| {
            let start = Instant::now();
            (0..1000).for_each(|_| work());
            println!("{name}: {:?}", start.elapsed() / 1000);
        };
        mean("load", &|| drop(std::hint::black_box(load(&bundle.0))));
        mean("parse", &|| drop(std::hint::black_box(parse::<Spec>(CTR.as_bytes(), ""))));
        mean("second pass", &|| drop(std::hint::black_box(refuse_what_the_types_drop(CTR.as_bytes()))));
        mean("process", &|| drop(std::hint::black_box(load_process(&process))));
        let spec = load(&bundle.0).unwrap();
        mean("validate", &|| drop(std::hint::black_box(super::super::validate::validate(&spec))));
    }
}
