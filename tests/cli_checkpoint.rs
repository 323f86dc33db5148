//! `dray checkpoint` and `dray restore`: see tests/checkpoint.rs for where CRIU does anything.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::bundle::Bundle;
use common::criu::usable;
use common::dray::{Dray, fails, ok, text, wait_until};
use common::world::World;
use common::{block_on, patience};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

/// Counts in a file that can be read from outside.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.1; done";

fn count(bundle: &Bundle) -> u64 {
    let text = fs::read_to_string(bundle.rootfs_dir().join("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn counts_beyond(bundle: &Bundle, number: u64) {
    wait_until("it counts on", || count(bundle) > number);
}

/// Runs it, with CRIU's log where it fails.
#[track_caller]
fn done(dray: &Dray, bundle: &Bundle, args: &[&str]) {
    let output = dray.run_in(bundle.dir(), args);
    if !output.status.success() {
        let read = |name: &str| fs::read_to_string(bundle.dir().join(name)).unwrap_or_default();
        eprintln!("{}{}", read("criu-dump.log"), read("criu-restore.log"));
    }
    ok(&output);
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn is_gone(dray: &Dray, id: &str) -> bool {
    !dray.state_dir(id).exists()
}

#[test]
fn a_container_is_written_and_made_again() {
    if !usable("a_container_is_written_and_made_again") {
        return;
    }
    let dray = Dray::new();
    let bundle = dray.bundle("one").script(COUNT);
    let images = dray.scratch().dir().join("images");
    dray.started(&bundle);
    counts_beyond(&bundle, 2);
    let running = dray.pid("one");

    done(&dray, &bundle, &["checkpoint", "--leave-running", "--image-path", path(&images), "one"]);
    assert_eq!(dray.pid("one"), running);
    counts_beyond(&bundle, count(&bundle));
    done(&dray, &bundle, &["checkpoint", "--image-path", path(&images), "--work-path", path(&images), "one"]);
    assert!(is_gone(&dray, "one") && images.join("dump.log").exists());
    let before = count(&bundle);

    let pid_file = dray.scratch().dir().join("pid");
    let args = [
        "restore",
        "-d",
        "--bundle",
        path(bundle.dir()),
        "--image-path",
        path(&images),
        "--pid-file",
        path(&pid_file),
        "one",
    ];
    done(&dray, &bundle, &args);
    counts_beyond(&bundle, before);
    assert!(count(&bundle) < before + 1000, "it goes on and does not begin");
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(pid, dray.pid("one").to_string());
    // It is one as any other, and can be written again.
    done(&dray, &bundle, &["checkpoint", "--image-path", path(&images.join("again")), "one"]);
    assert!(is_gone(&dray, "one"));
    // In the foreground, to its end.
    let again = images.join("again");
    let args = ["restore", "--image-path", path(&again), "one"];
    // Files, as its streams were: CRIU puts nothing else in their place.
    let file = |name: &str| fs::File::create(dray.scratch().dir().join(name)).unwrap();
    let mut command = dray.command(&args);
    command.current_dir(bundle.dir()).stdout(file("out")).stderr(file("err"));
    let mut child = command.spawn().unwrap();
    counts_beyond(&bundle, count(&bundle));
    ok(&dray.run(&["kill", "one", "KILL"]));
    assert_eq!(child.wait().unwrap().code(), Some(137));
    assert!(is_gone(&dray, "one"));
}

#[test]
fn memory_is_written_before_the_rest_and_the_rest_after_it() {
    if !usable("memory_is_written_before_the_rest_and_the_rest_after_it") {
        return;
    }
    let dray = Dray::new();
    let bundle = dray.bundle("one").script(COUNT);
    let images = dray.scratch().dir().join("images");
    fs::create_dir(&images).unwrap();
    dray.started(&bundle);
    counts_beyond(&bundle, 1);
    done(&dray, &bundle, &["checkpoint", "--pre-dump", "--image-path", path(&images.join("before")), "one"]);
    counts_beyond(&bundle, count(&bundle));
    assert!(!images.join("before/inventory.img").exists() || !images.join("before/descriptors.json").exists());
    let after = images.join("after");
    done(&dray, &bundle, &["checkpoint", "--parent-path", "../before", "--image-path", path(&after), "one"]);
    assert_eq!(fs::read_link(after.join("parent")).unwrap(), PathBuf::from("../before"));
    let before = count(&bundle);
    done(&dray, &bundle, &["restore", "-d", "--image-path", path(&after), "one"]);
    counts_beyond(&bundle, before);
}

#[test]
fn memory_is_read_as_it_is_needed() {
    if !usable("memory_is_read_as_it_is_needed") {
        return;
    }
    let dray = Dray::new();
    let bundle = dray.bundle("one").script(COUNT);
    let images = dray.scratch().dir().join("images");
    dray.started(&bundle);
    counts_beyond(&bundle, 1);
    done(&dray, &bundle, &["checkpoint", "--image-path", path(&images), "one"]);
    let before = count(&bundle);
    let mut server = Command::new("criu")
        .args(["lazy-pages", "--images-dir", path(&images), "--work-dir", path(&images)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the server listens", || images.join("lazy-pages.socket").exists());
    let lazy = ["restore", "-d", "--lazy-pages", "--image-path", path(&images), "--work-path", path(&images), "one"];
    done(&dray, &bundle, &lazy);
    counts_beyond(&bundle, before);
    // It ends when all is there.
    assert!(server.wait().unwrap().success());
    counts_beyond(&bundle, count(&bundle));
}

/// Without CRIU, too.
#[test]
fn what_cannot_be_is_refused_in_runcs_words() {
    let dray = Dray::new();
    let bundle = dray.bundle("one").args(&["sleep", "1000"]);
    let refused = |args: &[&str], word: &str| {
        let said = fails(&dray.run_in(bundle.dir(), args), 1);
        assert!(said.starts_with("dray: ") && said.contains(word), "{said}");
    };
    refused(&["checkpoint", "one"], "container does not exist");
    dray.started(&bundle);
    refused(&["checkpoint", "--parent-path", "/abs", "one"], "--parent-path must be relative");
    refused(&["checkpoint", "--parent-path", "../none", "one"], "invalid --parent-path");
    refused(&["checkpoint", "--manage-cgroups-mode", "odd", "one"], "Invalid manage-cgroups-mode value");
    refused(&["checkpoint", "--page-server", "odd", "one"], "Use --page-server ADDRESS:PORT");
    refused(&["checkpoint", "--empty-ns", "ipc", "one"], "\"ipc\" is not supported");
    refused(&["checkpoint", "--status-fd", "77", "one"], "invalid --status-fd argument 77");
    refused(&["--criu", "/none/criu", "checkpoint", "one"], "/none/criu");
    refused(&["restore", "--image-path", "/none", "two"], "no checkpoint");
    assert!(dray.pid("one") > 0 && is_gone(&dray, "two"));
    ok(&dray.run(&["delete", "--force", "one"]));
    ok(&dray.run_in(bundle.dir(), &["create", "one"]));
    refused(&["checkpoint", "one"], "Container cannot be checkpointed in created state");
}

#[test]
fn a_container_of_a_shim_is_written_by_the_shim() {
    if !usable("a_container_of_a_shim_is_written_by_the_shim") {
        return;
    }
    block_on(async {
        let (world, bundle) = World::running("one", |bundle| bundle.script(COUNT)).await;
        let dray = Dray::new();
        let (images, id) = (world.scratch.dir().join("images"), bundle.id.clone());
        let root = Path::new("/run/dray").join(world.scratch.namespace());
        let run = |args: Vec<String>| {
            let mut command = dray.plain();
            command.arg("--root").arg(&root).arg("checkpoint").args(args);
            // The shim is another process: it may be waited for here.
            command.output().unwrap()
        };
        let args = |flag: &str| vec![flag.to_owned(), "--image-path".to_owned(), path(&images).to_owned(), id.clone()];
        let said = fails(&run(args("--pre-dump")), 1);
        assert!(said.contains("--pre-dump: its shim lives"), "{said}");
        ok(&run(args("--leave-running")));
        assert!(images.join("inventory.img").exists());
        world.sink.wait_topic("checkpointed", "one", patience(std::time::Duration::from_secs(20))).await.unwrap();
        assert_eq!(world.end("one").await, 137);
        world.close().await;
    });
}

/// The one descriptor that comes.
fn receive(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    rights.expect("a terminal")
}

/// Waits until it answers what is typed.
fn answers(master: OwnedFd, typed: &str, answer: &str) {
    let mut master = File::from(master);
    master.write_all(typed.as_bytes()).unwrap();
    let mut seen = String::new();
    wait_until(answer, || {
        let mut buffer = [0; 256];
        let length = master.read(&mut buffer).unwrap();
        seen.push_str(&text(&buffer[..length]));
        seen.contains(answer)
    });
}

#[test]
fn a_terminal_is_sent_to_whoever_restores_it() {
    if !usable("a_terminal_is_sent_to_whoever_restores_it") {
        return;
    }
    let dray = Dray::new();
    let bundle = dray.bundle("one").script("n=0; while read line; do n=$((n+1)); echo \"<$n $line>\"; done");
    let bundle = bundle.edit(|spec| spec["process"]["terminal"] = json!(true));
    let (socket, images) = (dray.scratch().dir().join("tty"), dray.scratch().dir().join("images"));
    let listener = UnixListener::bind(&socket).unwrap();
    done(&dray, &bundle, &["run", "-d", "--console-socket", path(&socket), "one"]);
    let master = receive(&listener);
    answers(master.try_clone().unwrap(), "a\n", "<1 a>");
    done(&dray, &bundle, &["checkpoint", "--image-path", path(&images), "one"]);
    drop(master);
    done(&dray, &bundle, &["restore", "-d", "--console-socket", path(&socket), "--image-path", path(&images), "one"]);
    answers(receive(&listener), "b\n", "<2 b>");
}
