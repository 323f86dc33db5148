//! What making a container takes of the container's own limits: next to nothing. It is one process from its birth on, in its
//! cgroup from its first step, and what it touches of its copy of the shim's memory is charged to the container.

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::on;
use common::stdio::Io;
use common::world::World;
use serde_json::json;

/// One MiB. runc 1.1 needs more than two. The program is in memory already: were busybox read for this container its 2 MB
/// would be charged to it, and then the kernel kills a bare clone and execve too.
const MEMORY: u64 = 1 << 20;

fn knob(bundle: &Bundle, file: &str) -> u64 {
    bundle.knob(file).parse().unwrap()
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
    world.create(&bundle, &Io::null()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(
        (knob(&bundle, "pids.max"), knob(&bundle, on("memory.limit_in_bytes", "memory.max"))),
        (1, MEMORY),
        "{what}"
    );
    assert_eq!(knob(&bundle, "pids.current"), 1, "{what}");
    // memory.peak is there since Linux 5.19.
    let peak = knob(&bundle, on("memory.max_usage_in_bytes", "memory.peak"));
    println!("{what}: {} KiB until it was created", peak >> 10);
    // The kernel charges in batches; a page more or less is not to matter.
    assert!(peak <= MEMORY / 4 * 3, "{what}: {} KiB until it was created", peak >> 10);
    let waiting = world.spawn_wait("one", "").await;
    world.start("one", "").await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 0, "{what}");
    world.delete("one", "").await.unwrap();
    world.close().await;
}

#[test]
fn a_container_of_one_process_and_one_mebibyte_starts() {
    block_on(async {
        runs("by default", |bundle| bundle).await;
        runs("in a user namespace", |bundle| bundle.user_namespace(300_000)).await;
        runs("without a pid namespace", |bundle| bundle.without_namespace("pid")).await;
        runs("with privileges to gain", |bundle| bundle.edit(|spec| spec["process"]["noNewPrivileges"] = json!(false)))
            .await;
    });
}
