//! CVE-2019-5736: the runtime's own file on the host, overwritten by way of /proc/PID/exe.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::json;

use common::attacker::{attacker, watch_newcomers, with_ptrace};
use common::block_on;
use common::bundle::Bundle;
use common::driver::{Shim, code};
use common::events::EventSink;
use common::scratch::Scratch;
use common::stdio::Io;
use common::victim::{Victim, executable, long_directory};
use common::world::{SOON, until};

async fn appears(path: &Path) {
    until(&path.display().to_string(), || path.exists()).await;
}

/// CVE-2019-5736: the container executes the shim's own file as its program, holds it open, and writes to it when
/// nobody runs it any more, the shim neither. The one that is executed waits for options on its stdin, which does not end.
#[test]
fn cve_2019_5736_an_exec_of_proc_self_exe_cannot_be_overwritten() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let victim = Victim::new(&scratch, "plain");
        let marks = scratch.dir().join("marks");
        fs::create_dir(&marks).unwrap();
        let bind = json!({"destination": "/marks", "type": "bind", "source": marks, "options": ["rbind", "rw"]});
        let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]).mount(bind);
        let shim = Shim::start(&victim.path, &bundle, &sink).await.unwrap();
        shim.create(&bundle, &Io::null()).await.unwrap();
        shim.start("one", "").await.unwrap();

        let process = bundle.process(&["/proc/self/exe", "-info"]);
        let io = Io::fifos_unread(&scratch, "copy").with_stdin(&scratch, "copy");
        shim.exec("one", "copy", &process, &io).await.unwrap();
        shim.start("one", "copy").await.unwrap();
        let attack = r#"
            for process in /proc/[0-9]*; do
                case $(readlink $process/exe) in *containerd-shim*) found=$process ;; esac
            done
            exec 9<$found/exe || exit
            (echo evil >$found/exe) 2>/dev/null && echo while it runs >>/marks/written
            kill -9 ${found#/proc/}
            touch /marks/held
            until [ -e /marks/alone ]; do sleep 0.1; done
            (echo evil >/proc/self/fd/9) 2>/dev/null && echo afterwards >>/marks/written
            touch /marks/tried"#;
        shim.exec("one", "attack", &bundle.process(&["sh", "-c", attack]), &Io::null()).await.unwrap();
        shim.start("one", "attack").await.unwrap();
        appears(&marks.join("held")).await;
        shim.kill_shim().await.unwrap();
        fs::write(marks.join("alone"), "").unwrap();
        appears(&marks.join("tried")).await;
        let written = fs::read_to_string(marks.join("written")).unwrap_or_default();
        assert_eq!(written, "", "the container wrote to the shim's file");
        victim.is_whole();
    });
}

/// CVE-2019-5736, as an entrypoint and as the interpreter of one: the shim runs in the container, from behind its seal.
#[test]
fn cve_2019_5736_an_entrypoint_of_proc_self_exe_is_the_sealed_shim() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let victim = Victim::new(&scratch, "plain");
        let itself = Bundle::new(&scratch, "itself").args(&["/proc/self/exe"]).plain_rootfs();
        let script = Bundle::new(&scratch, "script").args(&["/entrypoint"]).plain_rootfs();
        executable(&script.rootfs_dir().join("entrypoint"), "#!/proc/self/exe\n");
        let shim = Shim::start(&victim.path, &itself, &sink).await.unwrap();
        for bundle in [&itself, &script] {
            let id = bundle.id.as_str();
            let mut io = Io::fifos(&scratch, id);
            let init = shim.create(bundle, &io).await.unwrap().pid;
            // Root of the host may not write to what it is already, and will be once more: "Text file busy" would be an
            // answer for as long as it runs only.
            let exe = format!("/proc/{init}/exe");
            let error = OpenOptions::new().write(true).open(&exe).expect_err("opened for writing");
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{id}: {error}");
            let waiting = shim.spawn_wait(id, "").await;
            shim.start(id, "").await.unwrap();
            let status = waiting.await.unwrap().unwrap().exit_status;
            let stderr = io.stderr(SOON).await.unwrap();
            shim.delete(id, "").await.unwrap();
            // It was the shim, which says that it is nothing here.
            assert!(status == 1 && stderr.starts_with("containerd-shim-dray-v2: "), "{status} {stderr}");
        }
        victim.is_whole();
        assert_eq!(shim.pids("itself").await.map_err(|e| code(&e)), Err(Some(ttrpc::Code::NOT_FOUND)));
    });
}

/// CVE-2019-5736, by a container that lies in wait: every process that enters it is stopped, its executable opened, and
/// written to then and when nobody runs it any more. Until its execve an exec is the shim's own sealed file, which takes
/// no write: behind an overlay, and in memory.
#[test]
fn cve_2019_5736_no_executable_of_an_exec_can_be_overwritten() {
    for directory in ["plain", &long_directory()] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let victim = Victim::new(&scratch, directory);
            let bundle = attacker(with_ptrace(Bundle::new(&scratch, "one")), "executables");
            let shim = Shim::start(&victim.path, &bundle, &sink).await.unwrap();
            shim.create(&bundle, &Io::null()).await.unwrap();
            shim.start("one", "").await.unwrap();
            let inside = bundle.rootfs_dir();
            appears(&inside.join("watching")).await;
            // On a busy machine it sees few of them before their execve.
            for number in 0..1500 {
                if number >= 60 && inside.join("caught").exists() {
                    break;
                }
                let process = bundle.process(&["/bin/true"]);
                shim.exec_to_exit("one", &format!("e{number}"), &process, &Io::null()).await.unwrap();
            }
            fs::write(inside.join("stop"), "").unwrap();
            appears(&inside.join("stopped")).await;
            shim.kill_shim().await.unwrap();
            fs::write(inside.join("alone"), "").unwrap();
            appears(&inside.join("tried")).await;
            let tried = fs::read_to_string(inside.join("tried")).unwrap();
            assert!(tried.ends_with(" written: 0") && !tried.starts_with("held: 0 "), "{directory}: {tried}");
            victim.is_whole();
        });
    }
}

/// Inside: holds the executables of all that appear, but its own and the image's, and writes to them.
pub fn overwrite_all() {
    let (mut held, mut written) = (Vec::new(), 0);
    let is_shim = |path: &str| fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("containerd-shim"));
    // What it is that was opened: a process that was the shim may have become its program, which is the container's.
    let of_shim = |file: &File| is_shim(&format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mut write = |path: &str| {
        let opened = OpenOptions::new().write(true).open(path).ok().filter(of_shim);
        written += u32::from(opened.is_some_and(|mut file| file.write_all(b"#!evil").is_ok()));
    };
    fs::write("/watching", "").unwrap();
    watch_newcomers(|pid| {
        let exe = format!("/proc/{pid}/exe");
        if is_shim(&exe) {
            held.extend(File::open(&exe).ok().filter(of_shim));
            if held.len() == 1 {
                fs::write("/caught", "").unwrap();
            }
            write(&exe);
        }
    });
    fs::write("/stopped", "").unwrap();
    while !Path::new("/alone").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for file in &held {
        write(&format!("/proc/self/fd/{}", file.as_raw_fd()));
    }
    // At once: who waits for it reads it.
    fs::write("/trying", format!("held: {} written: {written}", held.len())).unwrap();
    fs::rename("/trying", "/tried").unwrap();
}
