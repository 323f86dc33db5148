//! Who a process of a container is: what the specification says in numbers, and nothing that it does not say.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use ttrpc::Code;

use common::block_on;
use common::bundle::Bundle;
use common::container::{Host, refused, run};

const INHERITABLE: [&str; 3] = ["grep", "CapInh", "/proc/self/status"];
const NONE: &str = "CapInh:\t0000000000000000\n";

/// CVE-2022-24769: moby gave its containers inheritable capabilities, with which a program that has some in its file gains
/// them for a user who has none. Here a set that the specification does not have is empty.
#[test]
fn cve_2022_24769_a_container_has_no_inheritable_capabilities() {
    for uid in [0, 1000] {
        let user = json!({"uid": uid, "gid": uid});
        let ended = run(|bundle| bundle.args(&INHERITABLE).edit(|spec| spec["process"]["user"] = user));
        assert_eq!(ended.ok(), NONE, "user {uid}");
    }
}

/// CVE-2022-29162: the same of runc's exec, where it was given capabilities of its own.
#[test]
fn cve_2022_29162_an_exec_has_no_inheritable_capabilities() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let all = bundle.spec()["process"]["capabilities"].clone();
        let one = json!({"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]});
        for (number, (uid, capabilities)) in
            [(0, &all), (0, &one), (1000, &all), (1000, &one), (0, &Value::Null)].into_iter().enumerate()
        {
            let mut process = bundle.process(&INHERITABLE);
            process["user"] = json!({"uid": uid, "gid": uid});
            process["capabilities"] = capabilities.clone();
            let ended = container.exec(&format!("e{number}"), &process).await;
            assert_eq!(ended.ok(), NONE, "user {uid} with {capabilities}");
        }
        container.end().await;
    });
}

/// What an image may have in place of its users' names, each of which would make a root of 1, 4711 or "root".
fn hostile(etc: &Path, what: &str) {
    let passwd = etc.join("passwd");
    fs::remove_file(&passwd).unwrap();
    match what {
        "names" => fs::write(&passwd, "1:x:0:0::/:\n4711:x:0:0::/:\n1000:x:0:0::/:\nroot:x:0:0::/:\n").unwrap(),
        "overflow" => fs::write(&passwd, format!("u:x:{}:0::/wrapped:\n", (1u64 << 32) + 1)).unwrap(),
        // A gigabyte without a newline, in no block.
        "huge" => fs::File::create(&passwd).unwrap().set_len(1 << 30).unwrap(),
        "fifo" => nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        "directory" => fs::create_dir(&passwd).unwrap(),
        "circle" => symlink("passwd", &passwd).unwrap(),
        target => symlink(target, &passwd).unwrap(),
    }
    fs::write(etc.join("group"), "1:x:0:\n1000:x:0:\n").unwrap();
}

/// CVE-2026-30892: crun took the user of an exec for another, and ran it as root. Here ids are numbers of the
/// specification's, the image's files have no say, and what is no number, or one that setresuid(2) takes for "as it is",
/// is refused.
#[test]
fn cve_2026_30892_an_exec_has_the_ids_of_its_numbers() {
    for what in ["names", "overflow", "huge", "fifo", "directory", "circle", "/proc/kmsg", "/dev/zero"] {
        block_on(async {
            let host = Host::new();
            let bundle = host.bundle("one").plain_rootfs().args(&["sleep", "1000"]);
            hostile(&bundle.rootfs_dir().join("etc"), what);
            let container = host.start(&bundle).await;
            for (number, (user, wanted)) in [
                (json!({"uid": 1, "gid": 1}), [[1; 4], [1; 4]].concat()),
                (json!({"uid": 1, "gid": 2}), [[1; 4], [2; 4]].concat()),
                (json!({"uid": 4711, "gid": 1000, "additionalGids": [1]}), [&[4711; 4][..], &[1000; 4], &[1]].concat()),
                (json!({"uid": 4294967294u32, "gid": 0}), [[4294967294; 4], [0; 4]].concat()),
            ]
            .into_iter()
            .enumerate()
            {
                let mut process =
                    bundle.process(&["sed", "-n", "s/^\\(Uid\\|Gid\\|Groups\\):\t//p", "/proc/self/status"]);
                process["user"] = user.clone();
                let seen = container.exec(&format!("e{number}"), &process).await.ok();
                let seen: Vec<_> = seen.split_whitespace().map(|id| id.parse::<u32>().unwrap()).collect();
                assert_eq!(seen, wanted, "{what}: {user}");
            }
            container.end().await;
        });
    }
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let mut named = bundle.process(&["id"]);
        named["user"]["username"] = json!("root");
        container.exec_refused("named", &named).await.names(Code::UNIMPLEMENTED, &["process.user.username"]);
        for (number, (field, id)) in ["uid", "gid"]
            .into_iter()
            .flat_map(|field| {
                [json!(-1), json!(u32::MAX), json!(1u64 << 32), json!((1u64 << 32) + 1), json!("1"), json!(0.5)]
                    .map(|id| (field, id))
            })
            .enumerate()
        {
            let mut process = bundle.process(&["id"]);
            process["user"][field] = id.clone();
            let refusal = container.exec_refused(&format!("r{number}"), &process).await;
            assert!(refusal.message.contains("user"), "{field} {id}: {refusal:?}");
            assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{field} {id}: {refusal:?}");
        }
        container.end().await;
    });
}

fn maps(count: u32) -> Value {
    json!((0..count).map(|n| json!({"containerID": n, "hostID": 100_000 + n, "size": 1})).collect::<Vec<_>>())
}

fn user_namespace(bundle: Bundle, maps: Value) -> Bundle {
    bundle.user_namespace(100_000).edit(|spec| {
        spec["linux"]["uidMappings"] = maps.clone();
        spec["linux"]["gidMappings"] = maps;
    })
}

/// CVE-2021-43784: lengths of 16 bits in what runc told its child: paths of namespaces or maps of more than 64 KiB had
/// their end read as further settings. Here the child has its plan from its parent's memory; what no kernel takes is
/// refused by its name, and what is large is whole.
#[test]
fn cve_2021_43784_what_is_too_long_is_refused_and_never_cut() {
    // Of a length that is the first path's where it is cut to 16 bits.
    let tail = "/proc/self/ns/net";
    for kept in ["/proc/self/ns/net", "/proc/1/ns/net"] {
        let long = format!("{kept}{}{tail}", "/".repeat((1 << 16) - tail.len()));
        let refusal = refused(|bundle| {
            bundle.edit(|spec| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
                let network = namespaces.iter_mut().find(|namespace| namespace["type"] == "network").unwrap();
                network["path"] = json!(long);
            })
        });
        refusal.names(Code::INVALID_ARGUMENT, &["net namespace path"]);
    }
    for count in [341, 5000, 70_000] {
        let refusal = refused(|bundle| user_namespace(bundle, maps(count)));
        refusal.names(Code::INVALID_ARGUMENT, &["linux.uidMappings", "entries"]);
    }
    let numbers = json!([{"containerID": 1u64 << 32, "hostID": 0, "size": 1}]);
    refused(|bundle| user_namespace(bundle, numbers)).names(Code::INVALID_ARGUMENT, &["Mappings", "4294967296"]);

    // As many as there may be, with an argument and a variable of nearly 128 KiB, of which the kernel takes no longer ones.
    let large = "x".repeat((1 << 17) - 100);
    let seen = run(|bundle| {
        let bundle =
            user_namespace(bundle, maps(150)).script("wc -l < /proc/self/uid_map; id -u; echo ${#0} ${#LARGE}");
        bundle.edit(|spec| {
            spec["process"]["args"].as_array_mut().unwrap().push(json!(large));
            spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("LARGE={large}")));
        })
    });
    assert_eq!(seen.ok(), format!("150\n0\n{0} {0}\n", large.len()));
    // And the child's own words: an error of any length has its beginning.
    let refusal = refused(|bundle| bundle.args(&[&format!("/missing/{large}")]));
    refusal.names(Code::INVALID_ARGUMENT, &["/missing/xxxx"]);
}
