//! Checkpoint and restore by CRIU: what ran goes on where it was, in what is around it now.
//!
//! CRIU is of the machine, and may not be able to do anything with its kernel: these tests are skipped then, with the reason,
//! and run in the guest of `scripts/test --vm`.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::bundle::Bundle;
use common::stdio::Io;
use common::world::{SOON, World, refused, until};
use common::{block_on, skipped};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use serde_json::json;
use ttrpc::Code;

/// CRIU takes its time in an emulated guest.
const LONG: Duration = Duration::from_secs(60);

/// Counts on stdout.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo n$i.; sleep 0.1; done";

/// Whether CRIU does anything here.
fn criu(name: &str) -> bool {
    let why = match Command::new("criu").arg("check").output() {
        Err(e) => format!("criu: {e}"),
        Ok(output) if output.status.success() => return true,
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("criu check: {}", text.lines().filter(|line| line.contains("vdso")).next().unwrap_or(text.trim()))
        }
    };
    skipped(name, &why);
    false
}

fn counting(bundle: Bundle) -> Bundle {
    bundle.script(COUNT)
}

fn images(world: &World) -> PathBuf {
    world.scratch.dir().join("images")
}

fn exit() -> CheckpointOptions {
    CheckpointOptions { exit: true, ..Default::default() }
}

/// The numbers in an output.
fn numbers(output: &str) -> Vec<u64> {
    output.split(['n', '.', '\n', '\r']).filter_map(|word| word.parse().ok()).collect()
}

/// Ends by the checkpoint, and goes on to be deleted.
async fn dump_and_delete(world: &World, id: &str, options: CheckpointOptions) {
    let waiting = world.spawn_wait(id, "").await;
    if let Err(e) = world.within(LONG).checkpoint_with(id, &images(world), options).await {
        let log = std::fs::read_to_string(images(world).join("../bundles").join(id).join("criu-dump.log"));
        panic!("{e}\n{}", log.unwrap_or_default());
    }
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
    world.delete(id, "").await.unwrap();
}

async fn restore(world: &World, bundle: &Bundle, io: &Io) -> u32 {
    let mut request = world.request_for(bundle, io);
    request.checkpoint = images(world).to_str().unwrap().to_owned();
    assert_eq!(world.create_request(request).await.unwrap().pid, 0);
    match world.within(LONG).start(&bundle.id, "").await {
        Ok(started) => started.pid,
        Err(e) => {
            let log = std::fs::read_to_string(bundle.dir().join("criu-restore.log"));
            panic!("{e}\n{}", log.unwrap_or_default());
        }
    }
}

#[test]
fn a_container_goes_on_where_it_was_with_other_pipes() {
    if !criu("a_container_goes_on_where_it_was_with_other_pipes") {
        return;
    }
    block_on(async {
        let (world, bundle) = World::with("one", counting).await;
        let mut io = Io::fifos(&world.scratch, "first");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        io.stdout_with("n3.", SOON).await.unwrap();
        dump_and_delete(&world, "one", exit()).await;
        let before = numbers(&io.stdout(SOON).await.unwrap());

        let mut io = Io::fifos(&world.scratch, "second");
        let pid = restore(&world, &bundle, &io).await;
        assert_ne!(pid, 0);
        let last = *before.last().unwrap();
        io.stdout_with(&format!("n{}.", last + 5), SOON).await.unwrap();
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        assert!(world.pids("one").await.unwrap().contains(&pid));
        assert_eq!(world.end("one").await, 137);
        let after = numbers(&io.stdout(SOON).await.unwrap());
        assert_eq!(after[0], last + 1, "{before:?} {after:?}");
        world.close().await;
    });
}

#[test]
fn null() {
    if !criu("null") {
        return;
    }
    block_on(async {
        let (world, bundle) = World::running("one", counting).await;
        dump_and_delete(&world, "one", exit()).await;
        restore(&world, &bundle, &Io::null()).await;
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}
