//! The parsers and judges in this process, by the functions that the shim calls before it does anything.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use containerd_shim::Flags;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;
use dray::cgroup::{self, Hierarchies};
use dray::engine::events::{RootfsMount, StdioUris};
use dray::engine::state::StateDir;
use dray::engine::{rootfs, stdio::Stdio};
use dray::error::{Error, Result};
use dray::init::{plan, seccomp};
use dray::shim::{dialect, options, toml};
use dray::spec::hooks::{self, Point};
use dray::spec::{id_map, load, validate};
use dray::sys::path::Root;
use serde_json::Value;

use crate::json::{self, Seeds};
use crate::rng::Rng;
use crate::{Rounds, bytes, corpus, documents, judged};

/// A directory of this test's own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("dray-fuzz.{}.{name}", std::process::id()));
        fs::create_dir_all(&path).expect("mkdir");
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn told(result: Result<()>) -> std::result::Result<(), String> {
    result.map_err(|e: Error| e.to_string())
}

/// All that Create does before its first effect. Seccomp profiles are compiled where they are small: some have hundreds of
/// rules, and this is to be many documents.
fn config(bundle: &Path, hierarchies: &Hierarchies) -> Result<()> {
    let spec = load::load(bundle, &mut Vec::new())?;
    load::annotations(bundle)?;
    validate::validate(&spec)?;
    id_map::new_maps(&spec)?;
    let linux = spec.linux().as_ref();
    cgroup::cgroup_path(linux.and_then(|linux| linux.cgroups_path().as_deref()), "id")?;
    if let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) {
        cgroup::check(hierarchies, resources)?;
    }
    if let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref())
        && profile.syscalls().as_ref().is_none_or(|rules| rules.len() < 20)
    {
        seccomp::compile(profile)?;
    }
    if let Some(process) = spec.process() {
        plan::process(process, linux)?;
    }
    plan::create(&spec, bundle, &load::rootfs(bundle, &spec), &plan::Cgroups::default(), plan::joined(&spec)?)?;
    plan::namespace_flags(&spec);
    hooks::hooks(Point::Poststop, hooks::entries(&spec, Point::Poststop))?;
    Ok(())
}

#[test]
fn specifications() {
    let directory = Directory::new("config");
    let hierarchies = Hierarchies::discover().expect("cgroups");
    let seeds = Seeds::new(documents());
    let file = directory.0.join("config.json");
    let mut accepted = 0;
    let mut one = |seed: u64, text: &[u8]| {
        fs::write(&file, text).expect("write");
        judged("config", seed, text, || {
            let result = config(&directory.0, &hierarchies);
            accepted += u32::from(result.is_ok());
            told(result)
        });
    };
    corpus("config").iter().for_each(|text| one(0, text));
    for (seed, mut rng) in Rounds::new("config", 100) {
        let document = seeds.mutated(&mut rng);
        one(seed, &json::mutated_text(&mut rng, &document));
    }
    assert!(accepted > 0, "the mutations leave nothing that is accepted");
}

#[test]
fn processes_resources_and_states() {
    let directory = Directory::new("process");
    let state = StateDir::new(&directory.0, "n", "id").expect("a name");
    fs::create_dir_all(state.path()).expect("mkdir");
    let pieces = |pointer: &str| documents().iter().filter_map(|d| d.pointer(pointer).cloned()).collect::<Vec<Value>>();
    let saved = r#"{"version":1,"id":"a","bundle":"/b","owner":{"pid":7,"start_time":9},"init":{"pid":8,"start_time":9},
        "rootfs":"/r","cgroup":"/c","cgroup_inode":3,"resctrl":["/x"]}"#;
    let saved = Seeds::new(vec![serde_json::from_str(saved).expect("JSON")]);
    let (processes, resources) = (Seeds::new(pieces("/process")), Seeds::new(pieces("/linux/resources")));
    let process = |text: &[u8]| -> Result<()> {
        let mut process = load::load_process(text, &mut Vec::new())?;
        process.set_terminal(Some(false));
        validate::validate_process(&process)?;
        plan::process(&process, None).map(drop)
    };
    let resource = |text: &[u8]| validate::validate_resources(&load::load_resources(text)?);
    for text in corpus("process") {
        judged("process", 0, &text, || told(process(&text)));
    }
    for (seed, mut rng) in Rounds::new("process", 50) {
        let text = processes.mutated(&mut rng);
        let text = json::mutated_text(&mut rng, &text);
        judged("process", seed, &text, || told(process(&text)));
        let text = resources.mutated(&mut rng);
        let text = json::mutated_text(&mut rng, &text);
        judged("resources", seed, &text, || told(resource(&text)));
        let text = saved.mutated(&mut rng);
        let text = json::mutated_text(&mut rng, &text);
        fs::write(state.path().join("state.json"), &text).expect("write");
        judged("state", seed, &text, || told(state.load().map(drop)));
    }
    bytes_of_start(&directory.0);
}

/// Runtime options, what `start` reads from stdin, URIs of streams, mounts of a request, and paths below a root.
fn bytes_of_start(directory: &Path) {
    let root = directory.join("root");
    fs::create_dir_all(root.join("a/b")).expect("mkdir");
    std::os::unix::fs::symlink("../../..", root.join("a/up")).expect("symlink");
    std::os::unix::fs::symlink("a/loop", root.join("a/loop")).expect("symlink");
    let inside = fs::canonicalize(&root).expect("root");
    let root = Root::open(&root).expect("root");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let flags = Flags { id: "abc".into(), namespace: "ns".into(), address: "/c.sock".into(), ..Default::default() };
    for text in corpus("toml") {
        judged("toml", 0, &text, || told(toml::parse(&String::from_utf8_lossy(&text)).map(drop)));
    }
    for text in corpus("uri") {
        judged("uri", 0, &text, || runtime.block_on(async { told(open(&String::from_utf8_lossy(&text))) }));
    }
    for (seed, mut rng) in Rounds::new("start", 40) {
        let stdin = rng.pick(&stdins("abc", "ns")).clone();
        let stdin = bytes::mutate(&mut rng, &stdin);
        let call = || dialect::Call::read(&flags, |name| (name == "MAX_SHIM_VERSION").then(|| "2".into()), &stdin);
        judged("stdin", seed, &stdin, || {
            told(call().and_then(|call| options::decode(options::find(&call.options)).map(drop)))
        });
        let text = bytes::mutate_text(&mut rng, TOML);
        judged("toml", seed, text.as_bytes(), || told(toml::parse(&text).map(drop)));
        let any = generic(&bytes::mutate_text(&mut rng, TOML));
        judged("options", seed, &any.value, || told(options::decode(Some(&any)).map(drop)));
        let text = rng.pick(&URIS).to_string();
        let text = bytes::mutate_text(&mut rng, &text);
        judged("uri", seed, text.as_bytes(), || runtime.block_on(async { told(open(&text)) }));
        let mounts = [mount(&mut rng), mount(&mut rng)];
        judged("mounts", seed, format!("{mounts:?}").as_bytes(), || told(rootfs::plan(&mounts).map(drop)));
        let path = bytes::mutate_text(&mut rng, "/a/up/../b/./up/up/a/loop/x");
        judged("path", seed, path.as_bytes(), || {
            let Ok(found) = root.resolve(Path::new(&path)) else { return Ok(()) };
            let found = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).expect("readlink");
            assert!(found.starts_with(&inside), "{path:?} leads out: {}", found.display());
            Ok(())
        });
    }
}

const TOML: &str = "# options\nBinaryName = \"\"\nIoGid = 1_000 # group\nRoot = '/a\\b'\r\nNoPivotRoot=true\n\"CriuPath\" = \"a#\\\"b\"";

const URIS: [&str; 7] = [
    "/nonexistent/fifo",
    "fifo:///nonexistent/fifo?x=y#z",
    "file:///tmp/a%20b%2Fc?max-size=1",
    "binary:///bin/logger?key=value&env.HOME=%2Froot&key=again&flag",
    "binary-v2:///bin/logger?a=b+c%26",
    "",
    "ftp://host/path",
];

/// Opens the streams, and starts nothing of what they name.
fn open(uri: &str) -> Result<()> {
    let uris = StdioUris { stdin: String::new(), stdout: uri.into(), stderr: uri.into(), terminal: false };
    Stdio::open(&uris, 0, 0).map(drop)?;
    Stdio::open_terminal(&StdioUris { terminal: true, ..uris }).map(drop)
}

fn mount(rng: &mut Rng) -> RootfsMount {
    let kind = *rng.pick(&["overlay", "bind", "tmpfs", "ext4", "", "X"]);
    let words = [
        "lowerdir=/a:/b\\:c::/d",
        "upperdir=/u,v",
        "workdir=/w",
        "ro",
        "rbind",
        "loop",
        "uidmap=0:1:2",
        "gidmap=0:1:2,5:6:7",
        "size=1",
        "X-containerd.mkfs.size=1",
        "rshared",
        "index=off",
        "shared",
        "nosuid",
        "userxattr",
        "lowerdir+=/x",
    ];
    let options = (0..rng.below(6)).map(|_| rng.pick(&words).to_string()).collect::<Vec<_>>();
    let options =
        options.iter().map(|word| if rng.one_in(3) { bytes::mutate_text(rng, word) } else { word.clone() }).collect();
    RootfsMount { kind: kind.into(), source: "/nonexistent".into(), target: bytes::mutate_text(rng, "a/b"), options }
}

/// The bytes that daemons write to the stdin of `start`.
pub fn stdins(id: &str, namespace: &str) -> Vec<Vec<u8>> {
    let runc = oci::Options { no_pivot_root: true, io_uid: 7, root: "/r".into(), ..Default::default() };
    let runc = Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: runc.write_to_bytes().expect("encode"),
        ..Default::default()
    };
    let generic = generic(TOML);
    let params = BootstrapParams {
        instance_id: id.into(),
        namespace: namespace.into(),
        containerd_ttrpc_address: "unix:///t".into(),
        extensions: vec![Extension { value: Some(runc.clone()).into(), ..Default::default() }],
        ..Default::default()
    };
    let encoded = [runc.write_to_bytes(), generic.write_to_bytes(), params.write_to_bytes()];
    encoded.into_iter().map(|bytes| bytes.expect("encode")).collect()
}

/// runtimeoptions.v1.Options with a TOML text.
pub fn generic(toml: &str) -> Any {
    let mut value = vec![10, 1, b'x', 26];
    let mut length = toml.len();
    while length >= 0x80 {
        value.push(length as u8 | 0x80);
        length >>= 7;
    }
    value.push(length as u8);
    value.extend(toml.as_bytes());
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() }
}
