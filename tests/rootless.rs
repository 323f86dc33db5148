//! Containers of a rootless containerd: the shim is root of a user namespace, and on the host a user like others.

mod common;

use common::bundle::Bundle;
use common::rootless::{Cgroups, Ids, rootless};
use common::stdio::Io;
use common::world::{SOON, World};
use common::block_on;

#[test]
fn a_container_runs_without_any_cgroup() {
    rootless(Ids::Many, Cgroups::Denied, || {
        block_on(async {
            let (world, bundle) = World::with("one", |b: Bundle| b.script("id -u; cat /proc/self/uid_map; ls -l /dev /sys/fs/cgroup; exit 7")).await;
            let mut io = Io::fifos(&world.scratch, "one");
            world.create(&bundle, &io).await.unwrap_or_else(|e| panic!("{e}\n{}", bundle.log()));
            let waiting = world.spawn_wait("one", "").await;
            world.start("one", "").await.unwrap();
            assert_eq!(waiting.await.unwrap().unwrap().exit_status, 7);
            println!("{}", io.stdout(SOON).await.unwrap());
            println!("{}", io.stderr(SOON).await.unwrap());
            println!("LOG {}", bundle.log());
            world.delete("one", "").await.unwrap();
            world.close().await;
        });
    });
}
