//! What making a container takes of the container's own limits: next to nothing. It is one process from its birth on, in its
//! cgroup from its first step, and what it touches of its copy of the shim's memory is charged to the container.

mod common;

use std::fs;
use std::os::fd::AsFd;

use common::block_on;
use common::bundle::Bundle;
use common::stdio::Io;
use common::world::World;
use rustix::fs::{Advice, fadvise};
use serde_json::json;

/// One MiB, where runc 1.1 needs more than two for the same, and the bare clone and execve of the program a quarter.
const MEMORY: u64 = 1 << 20;

fn knob(bundle: &Bundle, file: &str) -> u64 {
    let path = bundle.cgroups().into_iter().map(|dir| dir.join(file)).find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("no {file}"));
    fs::read_to_string(&path).unwrap().trim().parse().unwrap()
}

fn least(bundle: Bundle) -> Bundle {
    bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": MEMORY, "swap": MEMORY});
        spec["linux"]["resources"]["pids"] = json!({"limit": 1});
    })
}

/// Creates and starts it; `true` has to say so.
async fn runs(what: &str, change: impl FnOnce(Bundle) -> Bundle) {
    let (world, bundle) = World::with("one", |bundle| change(least(bundle))).await;
    if bundle.rootfs.is_empty() {
        forget(&bundle);
    }
    world.create(&bundle, &Io::null()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((knob(&bundle, "pids.max"), knob(&bundle, "memory.limit_in_bytes")), (1, MEMORY), "{what}");
    assert_eq!(knob(&bundle, "pids.current"), 1, "{what}");
    let peak = knob(&bundle, "memory.max_usage_in_bytes");
    println!("{what}: {} KiB until it was created", peak >> 10);
    // The kernel charges in batches; a page more or less is not to matter.
    assert!(peak <= MEMORY / 4 * 3, "{what}: {} KiB until it was created", peak >> 10);
    let waiting = world.spawn_wait("one", "").await;
    world.start("one", "").await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 0, "{what}");
    world.delete("one", "").await.unwrap();
    world.close().await;
}

/// Has the kernel forget what it has read of the program: it is this container then for which it is read again.
fn forget(bundle: &Bundle) {
    let program = fs::File::open(bundle.rootfs_dir().join("bin/busybox")).unwrap();
    program.sync_all().unwrap();
    fadvise(program.as_fd(), 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn a_container_of_one_process_and_one_mebibyte_starts() {
    block_on(async {
        runs("by default", |bundle| bundle).await;
        runs("with a program that has to be read", Bundle::plain_rootfs).await;
        runs("in a user namespace", |bundle| bundle.user_namespace(300_000)).await;
        runs("without a pid namespace", |bundle| bundle.without_namespace("pid")).await;
        runs("with privileges to gain", |bundle| bundle.edit(|spec| spec["process"]["noNewPrivileges"] = json!(false)))
            .await;
    });
}
