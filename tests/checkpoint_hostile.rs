//! Checkpoints of containers, and into directories, that mean harm; and a CRIU that is none.
//!
//! What is looked at is done before and after CRIU, so that a script in its place does: it is of no use on many kernels.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use common::block_on;
use common::bundle::Bundle;
use common::cgroup::is_v2;
use common::driver::{Shim, StartOptions};
use common::events::EventSink;
use common::fuse::Fuse;
use common::scratch::Scratch;
use common::stdio::Io;
use common::world::{SOON, World, refused, until};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use serde_json::json;
use ttrpc::Code;

/// A CRIU that says nothing and ends.
const ENDS: &str = "exit 1";

fn images(world: &World) -> PathBuf {
    world.scratch.dir().join("images")
}

fn exit() -> CheckpointOptions {
    CheckpointOptions { exit: true, ..Default::default() }
}

/// A shim to which `script` is CRIU: there `$0` is in the scratch directory's `bin`.
async fn with_criu(script: &str, change: impl FnOnce(Bundle) -> Bundle) -> (World, Bundle) {
    let scratch = Scratch::new();
    let sink = EventSink::start(&scratch);
    let bundle = change(Bundle::new(&scratch, "one"));
    let bin = scratch.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("criu"), format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(bin.join("criu"), fs::Permissions::from_mode(0o755)).unwrap();
    let env = vec![("PATH", format!("{}:/usr/bin:/bin", bin.display()))];
    let options = StartOptions { env, ..Default::default() };
    let shim = Shim::start_with(&common::shim_binary(), &bundle, &sink, options).await.unwrap();
    (World { shim, sink, scratch }, bundle)
}

/// Two binds, `/a/x` and `/b/x`, with these options.
fn two_binds(bundle: Bundle, script: &str, a: &[&str], b: &[&str]) -> Bundle {
    let bind = |bundle: Bundle, name: &str, options: &[&str]| {
        let source = bundle.scratch().dir().join(name);
        fs::create_dir(&source).unwrap();
        let destination = format!("/{name}/x");
        bundle.mount(json!({"destination": destination, "type": "bind", "source": source, "options": options}))
    };
    let bundle = bind(bind(bundle, "a", a), "b", b);
    bundle.script(&format!("{script}; touch /done; sleep 1000"))
}

/// With no more than default capabilities, a container exchanges the directories that its mounts are in: at a restore a
/// source that is to be read would be shown with the attributes of the one that may be written to.
#[test]
fn a_mount_that_has_taken_the_place_of_a_restricted_one_is_not_dumped_as_it() {
    let exchange = "mv /a /c && mv /b /a && mv /c /b";
    let link = "mv /a /c && ln -s b /a";
    for (script, restriction) in [(exchange, "ro"), (link, "ro"), (exchange, "nosuid"), (exchange, "noexec")] {
        block_on(async {
            let with = |bundle| two_binds(bundle, script, &["rbind", restriction], &["rbind", "rw"]);
            let (world, bundle) = with_criu(ENDS, with).await;
            world.run(&bundle).await;
            until("the mounts are exchanged", || bundle.rootfs_dir().join("done").exists()).await;
            let said = world.checkpoint_with("one", &images(&world), exit()).await;
            refused(said, Code::FAILED_PRECONDITION, &["one", "/a/x", restriction]);
            assert!(!images(&world).exists());
            assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
            world.end("one").await;
            world.close().await;
        });
    }
}

/// What a later entry makes of a mount counts, and where nobody says `ro`, a bind of what is read-only on the host is so.
#[test]
fn what_later_entries_and_the_host_restrict_counts_too() {
    let exchange = "mv /a /c && mv /b /a && mv /c /b";
    block_on(async {
        let with = |bundle: Bundle| {
            let remount = json!({"destination": "/a/x", "options": ["remount", "bind", "ro"]});
            two_binds(bundle, exchange, &["rbind"], &["rbind"]).mount(remount)
        };
        let (world, one) = with_criu(ENDS, with).await;
        world.run(&one).await;
        until("the mounts are exchanged", || one.rootfs_dir().join("done").exists()).await;
        let said = world.checkpoint_with("one", &images(&world), exit()).await;
        refused(said, Code::FAILED_PRECONDITION, &["one", "/a/x", "ro"]);
        world.end("one").await;

        let source = world.scratch.dir().join("a");
        let mount = |words: &[&str]| {
            let mut command = std::process::Command::new("mount");
            assert!(command.args(words).arg(&source).status().unwrap().success());
        };
        mount(&["--bind", source.to_str().unwrap()]);
        mount(&["-o", "remount,bind,ro"]);
        fs::remove_dir(world.scratch.dir().join("b")).unwrap();
        let two = Bundle::new(&world.scratch, "two");
        let bind = json!({"destination": "/a/x", "type": "bind", "source": source, "options": ["rbind"]});
        let own = json!({"destination": "/b/x", "type": "tmpfs", "source": "tmpfs"});
        let two = two.script(&format!("{exchange}; touch /done; sleep 1000")).mount(bind).mount(own);
        world.run(&two).await;
        until("the mounts are exchanged", || two.rootfs_dir().join("done").exists()).await;
        let said = world.checkpoint_with("two", &images(&world), exit()).await;
        assert!(std::process::Command::new("umount").arg(&source).status().unwrap().success());
        refused(said, Code::FAILED_PRECONDITION, &["two", "/a/x", "ro"]);
        world.end("two").await;
        world.close().await;
    });
}

#[test]
fn mounts_with_the_attributes_that_are_asked_for_are_dumped() {
    block_on(async {
        let with = |bundle| two_binds(bundle, "true", &["rbind", "ro", "noexec"], &["rbind", "rw"]).cgroup_view();
        let (world, one) = with_criu(ENDS, with).await;
        world.run(&one).await;
        let said = world.checkpoint_with("one", &images(&world), exit()).await;
        refused(said, Code::INTERNAL, &["one", "without an answer"]);
        world.end("one").await;
        world.close().await;
    });
}

/// A directory that was there before may hold what one waits for, or a link to what is root's; and so may the images, which
/// are unpacked from a layer of anybody's.
#[test]
fn a_fifo_or_a_link_among_the_images_stops_nobody_and_leads_nowhere() {
    let one = |bundle: Bundle| bundle.args(&["sleep", "1000"]);
    block_on(async {
        let (world, bundle) = with_criu(ENDS, one).await;
        world.run(&bundle).await;
        let (images, precious) = (images(&world), world.scratch.dir().join("precious"));
        fs::create_dir(&images).unwrap();
        let there = images.join("descriptors.json");
        fs::write(&precious, "kept").unwrap();
        let fifo = || nix::unistd::mkfifo(&there, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (link, make) in [(false, &fifo as &dyn Fn()), (true, &|| symlink(&precious, &there).unwrap())] {
            make();
            let said = world.within(SOON).checkpoint_with("one", &images, exit()).await;
            refused(said, Code::INTERNAL, &["one", "without an answer"]);
            assert!(fs::symlink_metadata(&there).unwrap().is_file(), "link {link}");
            fs::remove_file(&there).unwrap();
        }
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");

        // A restore is refused before there is anything of it.
        let two = one(Bundle::new(&world.scratch, "two"));
        for make in [&fifo as &dyn Fn(), &|| symlink("/dev/zero", &there).unwrap()] {
            make();
            let mut request = world.request_for(&two, &Io::null());
            request.checkpoint = images.to_str().unwrap().to_owned();
            let said = world.within(SOON).create_request(request).await;
            refused(said, Code::INVALID_ARGUMENT, &["two", "descriptors.json"]);
            fs::remove_file(&there).unwrap();
        }
        assert_eq!(world.status("one", "").await.unwrap(), Status::RUNNING);
        world.end("one").await;
        world.close().await;
    });
}

/// The destinations of its mounts are on a server that does not answer: others of the shim are served, and in time the
/// checkpoint is given up.
#[test]
fn a_checkpoint_of_what_is_on_a_hanging_server_holds_up_itself_alone() {
    block_on(async {
        let (world, one) = with_criu(ENDS, |bundle| bundle.args(&["sleep", "1000"])).await;
        world.run(&one).await;
        let fuse = Fuse::mount(one.busybox(), &world.scratch.dir().join("fuse"));
        let bind = json!({"destination": "/data", "type": "bind", "source": fuse.path(), "options": ["rbind"]});
        let source = world.scratch.dir().join("source");
        fs::create_dir(&source).unwrap();
        let below = json!({"destination": "/data/bin", "type": "bind", "source": source, "options": ["rbind"]});
        let two = Bundle::new(&world.scratch, "two").args(&["sleep", "1000"]).mount(bind).mount(below);
        world.run(&two).await;
        fuse.hang();
        let dumping = world.reconnect().await.unwrap().within(Duration::from_secs(60));
        let path = images(&world);
        let dumping = tokio::spawn(async move { dumping.checkpoint_with("two", &path, exit()).await });
        fuse.until_waited_for().await;
        let other = world.reconnect().await.unwrap().within(Duration::from_secs(2));
        for _ in 0..20 {
            assert_eq!(other.status("one", "").await.unwrap(), Status::RUNNING);
            assert_eq!(other.status("two", "").await.unwrap(), Status::RUNNING);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        refused(dumping.await.unwrap(), Code::DEADLINE_EXCEEDED, &["two", "mounts"]);
        fuse.answer();
        world.end("two").await;
        world.end("one").await;
        drop(fuse);
        world.close().await;
    });
}

#[test]
fn a_terminals_program_may_have_closed_its_streams() {
    block_on(async {
        let with = |bundle: Bundle| {
            let bundle = bundle.script("exec <&- 2>&-; touch /done; exec sleep 1000");
            bundle.edit(|spec| spec["process"]["terminal"] = json!(true))
        };
        let (world, bundle) = with_criu(ENDS, with).await;
        let io = Io::terminal(&world.scratch, "io");
        world.create(&bundle, &io).await.unwrap();
        world.start("one", "").await.unwrap();
        until("they are closed", || bundle.rootfs_dir().join("done").exists()).await;
        let said = world.checkpoint_with("one", &images(&world), exit()).await;
        refused(said, Code::INTERNAL, &["one", "without an answer"]);
        let text = fs::read_to_string(images(&world).join("descriptors.json")).unwrap();
        let names: Vec<String> = serde_json::from_str(&text).unwrap();
        assert!(names.len() == 3 && names[1].starts_with("/dev/"), "{text}");
        assert_eq!((names[0].as_str(), names[2].as_str()), ("", ""));
        world.end("one").await;
        world.close().await;
    });
}

/// What a CRIU leaves behind that is killed on its way: the cgroup frozen, without a pause of ours.
const FREEZES: &str = r#"read directory value < "$0.freezes"
echo "$value" > "$directory"; exit 1"#;

#[test]
fn what_criu_has_frozen_does_not_stay_so() {
    block_on(async {
        let (world, bundle) = with_criu(FREEZES, |bundle| bundle.args(&["sleep", "1000"])).await;
        world.run(&bundle).await;
        let (name, frozen, thawed) =
            if is_v2() { ("cgroup.freeze", "1", "0") } else { ("freezer.state", "FROZEN", "THAWED") };
        let file = bundle.cgroup_file(name);
        fs::write(world.scratch.dir().join("bin/criu.freezes"), format!("{} {frozen}\n", file.display())).unwrap();
        let said = world.checkpoint_with("one", &images(&world), exit()).await;
        refused(said, Code::INTERNAL, &["one", "without an answer"]);
        assert_eq!(bundle.knob(name).trim(), thawed);
        // One that was paused before stays so.
        world.pause("one").await.unwrap();
        let said = world.checkpoint_with("one", &images(&world), exit()).await;
        refused(said, Code::INTERNAL, &["one", "without an answer"]);
        assert_eq!(bundle.knob(name).trim(), frozen);
        world.resume("one").await.unwrap();
        // And it dies, whoever has frozen it.
        fs::write(&file, frozen).unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

#[test]
fn a_request_that_is_too_long_is_told_as_that() {
    block_on(async {
        let long = format!("/{}", "x".repeat(1 << 20));
        let with = |bundle: Bundle| {
            bundle.args(&["sleep", "1000"]).edit(|spec| spec["annotations"] = json!({"org.criu.config": long}))
        };
        // It waits to be asked.
        let (world, bundle) = with_criu("read line <&3; exit 1", with).await;
        world.run(&bundle).await;
        let said = world.checkpoint_with("one", &images(&world), exit()).await;
        refused(said, Code::INTERNAL, &["one", "too long", "sendmsg to criu"]);
        world.end("one").await;
        world.close().await;
    });
}

/// The images are moved about, and are only of use with the earlier ones beside them.
#[test]
fn earlier_images_are_those_beside_the_new_ones() {
    block_on(async {
        let (world, bundle) = with_criu(ENDS, |bundle| bundle.args(&["sleep", "1000"])).await;
        world.run(&bundle).await;
        let parent = |path: &str| {
            let mut options = exit();
            // `parent_path`.
            options.special_fields.mut_unknown_fields().add_length_delimited(10, path.as_bytes().to_vec());
            options
        };
        let absolute = world.scratch.dir().to_str().unwrap();
        for (path, word) in [(absolute, "relative"), ("../none", "../none")] {
            let said = world.checkpoint_with("one", &images(&world), parent(path)).await;
            refused(said, Code::INVALID_ARGUMENT, &["one", "parent", word]);
            assert!(!images(&world).exists());
        }
        let said = world.checkpoint_with("one", &images(&world), parent("../bin")).await;
        refused(said, Code::INTERNAL, &["one", "without an answer"]);
        world.end("one").await;
        world.close().await;
    });
}
