//! linux.namespaces: mixes of new ones, the host's, and ones joined by path, as the processes in them see them.

use std::collections::HashSet;

use common::block_on;
use common::bundle::Bundle;
use common::container::{Container, Host, namespace_of};
use serde_json::{Value, json};
use ttrpc::Code;

/// The types of the specification and the names in /proc/PID/ns.
const KINDS: [(&str, &str); 8] = [
    ("user", "user"),
    ("pid", "pid"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("network", "net"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// Where a container is to have a namespace from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Origin {
    /// It has no entry.
    Hosts,
    New,
    /// By path: that of a container of the host's user namespace.
    Ordinary,
    /// By path: that of a container in a user namespace of its own.
    Inner,
}

use Origin::{Hosts, Inner, New, Ordinary};

/// What there is for each kind: a mount namespace is required, and an ordinary container has no user namespace.
fn choices(kind: usize) -> &'static [Origin] {
    match KINDS[kind].0 {
        "user" => &[Hosts, New, Inner],
        "mount" => &[New, Ordinary, Inner],
        _ => &[Hosts, New, Ordinary, Inner],
    }
}

type Mix = [Origin; KINDS.len()];

/// Mixes in which every choice for one kind meets every choice for every other.
fn mixes() -> Vec<Mix> {
    let mut unmet = HashSet::new();
    for (a, b) in (0..KINDS.len()).flat_map(|b| (0..b).map(move |a| (a, b))) {
        let pairs = choices(a).iter().flat_map(|x| choices(b).iter().map(move |y| (a, *x, b, *y)));
        unmet.extend(pairs);
    }
    let mut mixes = Vec::new();
    while let Some(&(a, x, b, y)) = unmet.iter().min_by_key(|pair| format!("{pair:?}")) {
        let mut mix: [Option<Origin>; KINDS.len()] = [None; KINDS.len()];
        (mix[a], mix[b]) = (Some(x), Some(y));
        for kind in 0..KINDS.len() {
            // The one that meets most of those that are there already.
            let meets = |from: Origin| {
                let met = |other: usize| match (other < kind, mix[other]) {
                    (_, None) => false,
                    (true, Some(theirs)) => unmet.contains(&(other, theirs, kind, from)),
                    (false, Some(theirs)) => unmet.contains(&(kind, from, other, theirs)),
                };
                (0..KINDS.len()).filter(|other| *other != kind && met(*other)).count()
            };
            let best = choices(kind).iter().copied().max_by_key(|from| meets(*from));
            mix[kind] = mix[kind].or(best);
        }
        let mix = mix.map(|from| from.expect("every kind has a choice"));
        unmet.retain(|(a, x, b, y)| mix[*a] != *x || mix[*b] != *y);
        mixes.push(mix);
    }
    mixes
}

/// Only what every mix may have: of the file systems that show a namespace, the host's proc, as /hostproc.
fn plain(bundle: Bundle) -> Bundle {
    bundle.args(&["sleep", "1000"]).edit(|spec| {
        spec["mounts"] = json!([
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/hostproc", "type": "bind", "source": "/proc", "options": ["bind"]},
        ]);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    })
}

fn set_namespaces(spec: &mut Value, mix: &Mix, path: impl Fn(Origin, &str) -> String) {
    let entry = |((kind, name), from): (&(&str, &str), &Origin)| match from {
        Hosts => None,
        New => Some(json!({"type": kind})),
        _ => Some(json!({"type": kind, "path": path(*from, name)})),
    };
    // The order of the document means nothing: the user namespace, first here, is last there.
    spec["linux"]["namespaces"] = KINDS.iter().zip(mix).rev().filter_map(entry).collect();
}

/// A container that has its own of all kinds, which others join.
async fn donor<'b>(host: &Host, bundle: &'b Bundle) -> Container<'b> {
    let donor = host.start(bundle).await;
    for (_, name) in KINDS.iter().filter(|(kind, _)| *kind != "user") {
        assert_ne!(donor.namespace(name), namespace_of("self", name), "{name}");
    }
    donor
}

fn all_new(bundle: Bundle, user: bool) -> Bundle {
    let bundle = if user { bundle.user_namespace(100_000) } else { bundle };
    let from = if user { New } else { Hosts };
    plain(bundle).edit(|spec| set_namespaces(spec, &[from, New, New, New, New, New, New, New], |_, _| String::new()))
}

/// The links of init, by its pid, and of an exec, by what it reads inside.
async fn links(container: &Container<'_>) -> [Vec<String>; 2] {
    let init = KINDS.map(|(_, name)| container.namespace(name)).into();
    let names = KINDS.map(|(_, name)| name).join(" ");
    let script = format!("cd /hostproc/self/ns; for name in {names}; do readlink $name; done");
    [init, container.exec_script("look", &script).await.lines()]
}

/// Proves: linux.namespaces.type={pid,ipc,uts,network,mount,cgroup,time,user}, linux.namespaces.path
#[test]
fn every_mix_of_namespaces_is_what_it_says() {
    block_on(async {
        let (ordinary_host, inner_host) = (Host::new(), Host::new());
        let ordinary = all_new(ordinary_host.bundle("ordinary"), false);
        let inner = all_new(inner_host.bundle("inner"), true);
        let ordinary = donor(&ordinary_host, &ordinary).await;
        let inner = donor(&inner_host, &inner).await;
        let mixes = mixes();
        println!("{} mixes", mixes.len());
        for mix in &mixes {
            let host = Host::new();
            let bundle = host.bundle("one");
            let bundle = if mix[0] == Hosts { bundle } else { bundle.user_namespace(100_000) };
            let bundle = plain(bundle).edit(|spec| {
                let pid = |from| if from == Ordinary { ordinary.pid } else { inner.pid };
                set_namespaces(spec, mix, |from, name| format!("/proc/{}/ns/{name}", pid(from)));
                if mix[0] == Inner {
                    spec["linux"]["uidMappings"] = Value::Null;
                    spec["linux"]["gidMappings"] = Value::Null;
                }
            });
            let container = host.start(&bundle).await;
            let own = format!("/{}/one", host.scratch.namespace());
            for line in container.proc("cgroup").lines() {
                assert!(line.ends_with(&own), "{mix:?}: {line}");
            }
            for links in links(&container).await {
                for ((kind, name), (from, link)) in KINDS.iter().zip(mix.iter().zip(&links)) {
                    let others = [namespace_of("self", name), ordinary.namespace(name), inner.namespace(name)];
                    let meant = match from {
                        Hosts => link == &others[0],
                        Ordinary => link == &others[1],
                        Inner => link == &others[2],
                        New => !others.contains(link),
                    };
                    assert!(meant, "{mix:?}: {kind}: {link}, of host, ordinary and inner {others:?}");
                }
            }
            container.end().await;
            assert_eq!(host.scratch.leftovers(), [""; 0], "{mix:?}");
        }
        // The donors have not been changed by their guests.
        for (donor, own) in [(&ordinary, false), (&inner, true)] {
            let [init, exec] = links(donor).await;
            assert_eq!(init, exec);
            assert_eq!(init[0] != namespace_of("self", "user"), own);
        }
        ordinary.end().await;
        inner.end().await;
    });
}

/// The specification's own list, of one kind and path.
fn with(bundle: Bundle, kind: &str, path: &str) -> Bundle {
    bundle.edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != kind);
        namespaces.insert(0, json!({"type": kind, "path": path}));
    })
}

/// Whatever the kind; and nothing of the rootfs has been mounted, in which an overlay would have made a directory.
#[test]
fn nonsense_is_refused_by_its_place_before_any_effect() {
    block_on(async {
        for (index, (kind, name)) in KINDS.into_iter().enumerate() {
            let of_another_kind = format!("/proc/self/ns/{}", KINDS[(index + 1) % KINDS.len()].1);
            for (path, why) in [
                (&*of_another_kind, "is a namespace of another kind"),
                ("/etc/passwd", "is not a namespace"),
                ("/proc/self/ns", "is not a namespace"),
                ("/no/such", "No such file"),
                ("relative/path", "not an absolute path"),
            ] {
                let host = Host::new();
                let refusal = host.refused(&with(host.bundle("one"), kind, path)).await;
                refusal.names(Code::INVALID_ARGUMENT, &["linux.namespaces[0].path", path, why]);
                let work = host.scratch.dir().join("snapshots/one/work");
                assert_eq!(std::fs::read_dir(work).unwrap().count(), 0, "{kind}: {path}");
            }
            let host = Host::new();
            let twice = with(host.bundle("one"), kind, &format!("/proc/self/ns/{name}")).edit(|spec| {
                spec["linux"]["namespaces"].as_array_mut().unwrap().insert(1, json!({"type": kind}));
            });
            host.refused(&twice).await.names(Code::INVALID_ARGUMENT, &["linux.namespaces[1]", kind, "twice"]);
        }
    });
}
