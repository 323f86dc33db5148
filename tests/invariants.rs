//! The invariants under which a single-threaded shim may fork its containers' processes (src/sys/fork.rs, src/init), as
//! they show from outside: in /proc of the real processes, and to a container that attacks.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::bundle::Bundle;
use common::driver::{Shim, await_exit, open_pid};
use common::events::EventSink;
use common::scratch::Scratch;
use common::stdio::Io;
use common::user::{apart, as_user};
use common::victim::{Victim, long_directory, wrapped};
use common::{block_on, seccomp, shim_binary};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

/// A whole life: the exit status, and what it wrote.
async fn run(shim: &Shim, bundle: &Bundle) -> (u32, String, String) {
    let id = bundle.id.as_str();
    let mut io = Io::fifos(bundle.scratch(), &format!("run-{id}"));
    shim.create(bundle, &io).await.unwrap();
    let waiting = shim.spawn_wait(id, "").await;
    shim.start(id, "").await.unwrap();
    let status = waiting.await.unwrap().unwrap().exit_status;
    let output = (io.stdout(SOON).await.unwrap(), io.stderr(SOON).await.unwrap());
    shim.delete(id, "").await.unwrap();
    (status, output.0, output.1)
}

/// An exec's exit status and what it wrote to stdout and stderr.
async fn exec(shim: &Shim, bundle: &Bundle, exec_id: &str, args: &[&str]) -> (u32, String, String) {
    exec_process(shim, bundle, exec_id, &bundle.process(args)).await
}

/// The same of any process. Deleted when everything is read, as clients do: what nobody has read goes with it.
async fn exec_process(shim: &Shim, bundle: &Bundle, exec_id: &str, process: &Value) -> (u32, String, String) {
    let id = bundle.id.as_str();
    let mut io = Io::fifos(bundle.scratch(), &format!("exec-{exec_id}"));
    shim.exec(id, exec_id, process, &io).await.unwrap();
    let waiting = shim.spawn_wait(id, exec_id).await;
    shim.start(id, exec_id).await.unwrap();
    let status = waiting.await.unwrap().unwrap().exit_status;
    let output = (io.stdout(SOON).await.unwrap(), io.stderr(SOON).await.unwrap());
    shim.delete(id, exec_id).await.unwrap();
    (status, output.0, output.1)
}

/// A field of /proc/pid/status.
fn status_field(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).split_once(':').unwrap().1.trim().to_owned()
}

fn signals(pid: i32, field: &str) -> u64 {
    u64::from_str_radix(&status_field(pid, field), 16).unwrap()
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

// One thread.

#[test]
fn the_shim_has_one_thread_whatever_it_is_asked() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
        let shim = Shim::start(&shim_binary(), &bundle, &sink).await.unwrap();
        let pid = shim.pid().await.unwrap();
        let one = |after: &str| assert_eq!(status_field(pid, "Threads"), "1", "after {after}");
        one("the start");
        shim.create(&bundle, &Io::fifos(&scratch, "one")).await.unwrap();
        one("create");
        shim.start("one", "").await.unwrap();
        one("start");
        assert_eq!(exec(&shim, &bundle, "probe", &["true"]).await.0, 0);
        one("exec");
        let failing = Bundle::new(&scratch, "failing").args(&["/no/such/program"]);
        shim.create(&failing, &Io::null()).await.unwrap_err();
        one("a create that failed");
        let again = shim.reconnect().await.unwrap();
        again.connect("one").await.unwrap();
        one("a reconnect");
        let requests = (0..200).map(|number| {
            let task = again.clone();
            async move {
                if number % 2 == 0 { task.state("one", "").await.map(drop) } else { task.pids("one").await.map(drop) }
            }
        });
        let answers = futures::future::join_all(requests).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        one("200 requests at once");
        let waiting = shim.spawn_wait("one", "").await;
        shim.kill("one", "", 9, false).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
        one("kill");
        shim.delete("one", "").await.unwrap();
        one("delete");
    });
}

// The executable is sealed (CVE-2019-5736).

/// The strongest attacker is root on the host: what it cannot do to the file that runs, no container can.
#[test]
fn nobody_can_write_to_the_file_that_runs() {
    // overlayfs' own characters in the path; what separates options, which an overlayfs that has them as text does not
    // take; a path for which fsconfig(2) has no room.
    let long = long_directory();
    for (directory, in_memory) in
        [("plain", false), (r"a:b\c", false), ("a,b", common::linux() < (6, 5)), (long.as_str(), true)]
    {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let victim = Victim::new(&scratch, directory);
            let bundle = Bundle::new(&scratch, "one");
            let shim = Shim::start(&victim.path, &bundle, &sink).await.unwrap();
            let exe = format!("/proc/{}/exe", shim.pid().await.unwrap());
            let link = fs::read_link(&exe).unwrap();
            assert_eq!(link.starts_with("/memfd:containerd-shim-dray-v2 (deleted)"), in_memory, "{}", link.display());
            assert!(fs::read(&exe).unwrap() == victim.content, "something else runs");
            let running = overwrite(Path::new(&exe)).unwrap_err();
            // "Text file busy" would end with the last process that runs the file.
            let held = fs::File::open(&exe).unwrap();
            shim.kill_shim().await.unwrap();
            let held = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
            let dead = overwrite(Path::new(&held)).unwrap_err();
            match in_memory {
                true => assert_eq!(dead.kind(), ErrorKind::PermissionDenied, "{directory}: {dead}"),
                false => {
                    assert_eq!(dead.kind(), ErrorKind::ReadOnlyFilesystem, "{directory}: {dead}");
                    assert_eq!(running.kind(), ErrorKind::ReadOnlyFilesystem, "{directory}: {running}");
                }
            }
            victim.is_whole();
        });
    }
}

fn overwrite(path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_at(b"#!evil", 0).map(drop)
}

#[test]
fn a_server_that_is_not_sealed_refuses() {
    let mut command = std::process::Command::new(shim_binary());
    let output = command.args(["-namespace", "x", "-id", "x", "-address", "x"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("left behind by the action start"), "{text}");
}

// Nobody looks into the shim, or into a child of it that is not yet a program.

/// What of a process the caller can get at.
fn secrets(pid: i32) -> Vec<&'static str> {
    let path = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let mut got: Vec<&str> = ["environ", "maps", "mem", "auxv"]
        .into_iter()
        .filter(|name| {
            fs::File::open(path(name)).is_ok_and(|mut file| {
                let read = file.read(&mut [0]);
                *name == "mem" || read.is_ok_and(|n| n > 0)
            })
        })
        .collect();
    got.extend(["exe", "root", "cwd", "fd/0"].into_iter().filter(|name| fs::read_link(path(name)).is_ok()));
    got
}

/// Between its change of ids and its execve an init has its container's user and capabilities, and the shim's memory.
#[test]
fn a_created_container_shows_nothing_to_its_own_user() {
    for uid in [0, 1000] {
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]).edit(|spec| {
                spec["process"]["user"] = json!({"uid": uid, "gid": uid});
                spec["process"]["capabilities"] = json!({});
            });
            let shim = Shim::start(&shim_binary(), &bundle, &sink).await.unwrap();
            let pid = shim.create(&bundle, &Io::null()).await.unwrap().pid as i32;
            assert_eq!(as_user(uid, || secrets(pid)), [""; 0], "created, uid {uid}");
            shim.start("one", "").await.unwrap();
            // Its own user looks into the program: so the same look would have seen the init.
            let all = ["environ", "maps", "mem", "auxv", "exe", "root", "cwd", "fd/0"];
            assert_eq!(as_user(uid, || secrets(pid)), all, "running, uid {uid}");
        });
    }
}

/// With the shim's own user and all its capabilities but CAP_SYS_PTRACE, of which the shim here has none either.
#[test]
fn the_shim_shows_nothing_to_root_without_cap_sys_ptrace() {
    apart(|| {
        rustix::thread::remove_capability_from_bounding_set(CapabilitySet::SYS_PTRACE).unwrap();
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
            let shim = Shim::start(&shim_binary(), &bundle, &sink).await.unwrap();
            let pid = shim.pid().await.unwrap();
            let mut other = std::process::Command::new("/bin/busybox").args(["sleep", "1000"]).spawn().unwrap();
            let (of_shim, of_other) = apart(|| {
                let mut sets = rustix::thread::capabilities(None).unwrap();
                sets.effective.remove(CapabilitySet::SYS_PTRACE);
                sets.permitted.remove(CapabilitySet::SYS_PTRACE);
                rustix::thread::set_capabilities(None, sets).unwrap();
                (secrets(pid), secrets(other.id() as i32))
            });
            other.kill().unwrap();
            other.wait().unwrap();
            // Since Linux 6.14 CAP_PERFMON and CAP_SYS_ADMIN are enough to read these three of any process.
            let of_shim: Vec<_> =
                of_shim.into_iter().filter(|name| !["environ", "maps", "auxv"].contains(name)).collect();
            assert_eq!(of_shim, [""; 0]);
            assert_eq!(of_other.len(), 8, "the look itself sees but {of_other:?}");
            assert_eq!(as_user(1000, || secrets(pid)), [""; 0]);
        });
    });
}

// Signals.

/// std installs handlers for SIGSEGV and SIGBUS, which tell of a stack overflow: they write to no descriptor that is
/// watched, and a child resets them. Nothing else may be handled.
#[test]
fn the_shim_blocks_all_signals_and_handles_none() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
        let binary = wrapped(&scratch, "trap '' HUP INT USR1");
        let shim = Shim::start(&binary, &bundle, &sink).await.unwrap();
        let pid = shim.pid().await.unwrap();
        let std_handlers = bit(libc::SIGSEGV) | bit(libc::SIGBUS);
        assert_eq!(signals(pid, "SigCgt") & !std_handlers, 0);
        // 32 and 33 are libc's own, which it neither blocks nor uses in a process without threads.
        let unblockable = bit(libc::SIGKILL) | bit(libc::SIGSTOP) | bit(32) | bit(33);
        assert_eq!(signals(pid, "SigBlk") | unblockable, u64::MAX);
        assert_eq!(signals(pid, "SigIgn"), bit(libc::SIGPIPE));
        let init = shim.create(&bundle, &Io::null()).await.unwrap().pid as i32;
        for field in ["SigBlk", "SigIgn", "SigCgt"] {
            assert_eq!(signals(init, field), 0, "{field} of a created init");
        }
    });
}

#[test]
fn a_program_starts_with_default_signals() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let grep = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"];
        let clean: String = ["Blk", "Ign", "Cgt"].map(|set| format!("Sig{set}:\t{:016x}\n", 0)).concat();
        let binary = wrapped(&scratch, "trap '' HUP INT QUIT PIPE USR1 TERM CHLD");
        let init = Bundle::new(&scratch, "init").args(&grep);
        let shim = Shim::start(&binary, &init, &sink).await.unwrap();
        assert_eq!(run(&shim, &init).await.1, clean);
        let sleeper = Bundle::new(&scratch, "sleeper").args(&["sleep", "1000"]);
        shim.create(&sleeper, &Io::null()).await.unwrap();
        shim.start("sleeper", "").await.unwrap();
        assert_eq!(exec(&shim, &sleeper, "signals", &grep).await.1, clean);
        // With SIGPIPE ignored it would write for ever, or complain.
        let (status, stdout, stderr) = exec(&shim, &sleeper, "yes", &["sh", "-c", "yes | head -n 1"]).await;
        assert_eq!((status, stdout.as_str(), stderr.as_str()), (0, "y\n", ""));
    });
}

// Descriptors.

#[test]
fn a_container_sees_no_descriptor_of_the_shim() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        // Descriptors that containerd might leak into the shim, none of them close-on-exec.
        let own = scratch.dir().display();
        let binary = wrapped(&scratch, &format!("exec 7<{own} 8</etc/passwd 9>>{own}/leaked"));
        let other = Bundle::new(&scratch, "other").args(&["sleep", "1000"]);
        let shim = Shim::start(&binary, &other, &sink).await.unwrap();
        let io = Io::fifos(&scratch, "other").with_stdin(&scratch, "other");
        shim.create(&other, &io).await.unwrap();
        shim.start("other", "").await.unwrap();

        let list = ["ls", "/proc/self/fd"];
        let one = Bundle::new(&scratch, "one").args(&list);
        let mut io = Io::fifos(&scratch, "one");
        let init = shim.create(&one, &io).await.unwrap().pid as i32;
        parked_descriptors(init);
        let waiting = shim.spawn_wait("one", "").await;
        shim.start("one", "").await.unwrap();
        waiting.await.unwrap().unwrap();
        // 3 is the directory that ls itself reads.
        assert_eq!(io.stdout(SOON).await.unwrap(), "0\n1\n2\n3\n");
        assert_eq!(exec(&shim, &other, "ls", &list).await.1, "0\n1\n2\n3\n");
    });
}

/// Of a created init: its streams and the way to the shim, and nothing else.
fn parked_descriptors(init: i32) {
    let link = |fd: &str| fs::read_link(format!("/proc/{init}/fd/{fd}")).unwrap().to_string_lossy().into_owned();
    let names = fs::read_dir(format!("/proc/{init}/fd")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut others: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    others.retain(|name| !["0", "1", "2"].contains(&name.as_str()));
    let others: Vec<_> = others.iter().map(|fd| link(fd)).collect();
    assert!(others.len() == 1 && others[0].starts_with("socket:"), "{others:?}");
    assert!(link("1").starts_with("pipe:") && link("2").starts_with("pipe:") && link("1") != link("2"));
}

// What the program starts with.

#[test]
fn umask_and_limits_are_the_specifications() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let binary = wrapped(&scratch, "umask 007; ulimit -S -c 0");
        let script = "umask; ulimit -S -n; ulimit -H -n; ulimit -S -c";
        let plain = Bundle::new(&scratch, "plain").script(script);
        let shim = Shim::start(&binary, &plain, &sink).await.unwrap();
        assert_eq!(run(&shim, &plain).await.1, "0022\n1024\n1024\n0\n");
        let set = Bundle::new(&scratch, "set").script(script).edit(|spec| {
            spec["process"]["user"]["umask"] = json!(0o27);
            spec["process"]["rlimits"] = json!([
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_CORE", "soft": 2048, "hard": 4096},
            ]);
        });
        assert_eq!(run(&shim, &set).await.1, "0027\n100\n200\n4\n");
    });
}

/// The shim's own is what containerd gave to the shim: no container's.
#[test]
fn oom_score_adj_is_the_specifications() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let read = ["cat", "/proc/self/oom_score_adj"];
        let none = Bundle::new(&scratch, "none").args(&read);
        let shim = Shim::start(&shim_binary(), &none, &sink).await.unwrap();
        let own = format!("/proc/{}/oom_score_adj", shim.pid().await.unwrap());
        // The lowest that the shim has ever had is the one that it was started with.
        let lowest: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        // Below what it once was nobody goes without CAP_SYS_RESOURCE, which root here may lack.
        let capable = rustix::thread::capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE);
        fs::write(&own, "300").unwrap();
        let unset = if capable || lowest <= 0 { 0 } else { 300 };
        assert_eq!(run(&shim, &none).await.1, format!("{unset}\n"));
        let raised = Bundle::new(&scratch, "raised").args(&read).edit(|s| s["process"]["oomScoreAdj"] = json!(500));
        assert_eq!(run(&shim, &raised).await.1, "500\n");

        let marker = scratch.dir().join("ran");
        let bind = json!({"destination": "/mark", "type": "bind", "source": scratch.dir(), "options": ["rbind", "rw"]});
        let lowered =
            Bundle::new(&scratch, "lowered").mount(bind).script("touch /mark/ran; cat /proc/self/oom_score_adj");
        let lowered = lowered.edit(|spec| spec["process"]["oomScoreAdj"] = json!(-500));
        if capable {
            assert_eq!(run(&shim, &lowered).await.1, "-500\n");
        } else {
            let error = shim.create(&lowered, &Io::null()).await.unwrap_err().to_string();
            assert!(error.contains("oom_score_adj"), "{error}");
            assert!(!marker.exists(), "the program ran");
            assert!(lowered.cgroups().is_empty() && common::scratch::mounts_below(lowered.dir()).is_empty());
        }
        // An exec has its container's, or its own.
        let sleeper = Bundle::new(&scratch, "sleeper").args(&["sleep", "1000"]);
        let sleeper = sleeper.edit(|spec| spec["process"]["oomScoreAdj"] = json!(400));
        shim.create(&sleeper, &Io::null()).await.unwrap();
        shim.start("sleeper", "").await.unwrap();
        let mut process = sleeper.process(&read);
        let inherited = process.as_object_mut().unwrap().remove("oomScoreAdj");
        assert!(inherited.is_some());
        assert_eq!(exec_process(&shim, &sleeper, "inherited", &process).await.1, "400\n");
        process["oomScoreAdj"] = json!(600);
        assert_eq!(exec_process(&shim, &sleeper, "own", &process).await.1, "600\n");
    });
}

// The shim's death.

/// No delete action, nobody else: an init that was never started ends with its shim, by the signal or by the socket.
#[test]
fn an_unstarted_init_ends_with_its_shim() {
    for uid in [0, 1000] {
        for private in [true, false] {
            block_on(async {
                let scratch = Scratch::new();
                let sink = EventSink::start(&scratch);
                let mut bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
                bundle = bundle.edit(|spec| spec["process"]["user"] = json!({"uid": uid, "gid": uid}));
                if !private {
                    bundle = bundle.without_namespace("pid");
                }
                let shim = Shim::start(&shim_binary(), &bundle, &sink).await.unwrap();
                let pid = shim.create(&bundle, &Io::null()).await.unwrap().pid as i32;
                let init = open_pid(pid).unwrap();
                shim.kill_shim().await.unwrap();
                await_exit(&init, SOON).unwrap_or_else(|e| panic!("uid {uid}, private pid namespace {private}: {e}"));
                assert_eq!(shim.delete_action().unwrap().exit_status, 137);
                assert_eq!(scratch.leftovers(), [""; 0]);
            });
        }
    }
}

/// A program that runs has outgrown its shim: it dies by the delete action, not by a signal that it inherited.
#[test]
fn a_running_container_outlives_its_shim() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let bundle = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
        let shim = Shim::start(&shim_binary(), &bundle, &sink).await.unwrap();
        shim.create(&bundle, &Io::null()).await.unwrap();
        let pid = shim.start("one", "").await.unwrap().pid as i32;
        let process = bundle.process(&["sleep", "1001"]);
        shim.exec("one", "other", &process, &Io::null()).await.unwrap();
        let other = shim.start("one", "other").await.unwrap().pid as i32;
        let held: Vec<OwnedFd> = [pid, other].into_iter().map(|pid| open_pid(pid).unwrap()).collect();
        shim.kill_shim().await.unwrap();
        for process in &held {
            assert!(await_exit(process, Duration::from_secs(1)).is_err(), "died with the shim");
        }
        shim.delete_action().unwrap();
        for process in &held {
            await_exit(process, SOON).unwrap();
        }
        assert_eq!(scratch.leftovers(), [""; 0]);
    });
}

// Old kernels and strict sandboxes.

/// What a container needs of the kernel beyond the basics: attributes on binds, masks, a read-only root, a cgroup.
fn demanding(scratch: &Scratch, id: &str) -> Bundle {
    let source = scratch.dir().join(format!("source-{id}"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    let options = json!(["rbind", "ro", "nosuid", "rprivate"]);
    let bundle = Bundle::new(scratch, id);
    bundle
        .mount(json!({"destination": "/mnt", "type": "bind", "source": source, "options": options}))
        .mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}))
        .edit(|spec| spec["root"]["readonly"] = json!(true))
}

/// One line for each thing that holds.
const DEMANDS: &str = r#"
    cat /mnt/file
    touch /mnt/file 2>/dev/null || echo bind read-only
    grep -q ' /mnt [^ ]* ro,nosuid' /proc/self/mounts && echo bind nosuid
    touch /here 2>/dev/null || echo root read-only
    touch /run/here && echo run writable
    (echo h >/proc/sysrq-trigger) 2>/dev/null || echo sysrq read-only
    cat /proc/keys | wc -c
    mkdir /sys/fs/cgroup/memory/x 2>/dev/null || echo cgroup read-only
    ls /proc/self/fd | wc -l"#;
const MET: &str = "content\nbind read-only\nbind nosuid\nroot read-only\nrun writable\nsysrq read-only\n0\n\
                   cgroup read-only\n4\n";

fn works_without(refused: &'static [seccomp::Refused], directory: &str) {
    apart(|| {
        seccomp::take_away(refused);
        block_on(async {
            let scratch = Scratch::new();
            let sink = EventSink::start(&scratch);
            let victim = Victim::new(&scratch, directory);
            let first = demanding(&scratch, "first").script(DEMANDS);
            let shim = Shim::start(&victim.path, &first, &sink).await.unwrap();
            assert_ne!(signals(shim.pid().await.unwrap(), "Seccomp"), 0, "no filter on the shim");
            let (status, stdout, stderr) = run(&shim, &first).await;
            assert_eq!((status, stdout.as_str(), stderr.as_str()), (0, MET, ""));
            // Without a /proc of its own as well.
            let bare = demanding(&scratch, "bare").script("echo bare").edit(|spec| {
                spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
            });
            assert_eq!(run(&shim, &bare).await, (0, "bare\n".to_owned(), String::new()));

            // Ended by its cgroup, in which all of it must be.
            let group = demanding(&scratch, "group").without_namespace("pid").script("sleep 1000 & sleep 1000");
            shim.create(&group, &Io::null()).await.unwrap();
            let pid = shim.start("group", "").await.unwrap().pid as i32;
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let own = format!("/{}/group", scratch.namespace());
            let unified = cgroups.lines().find(|line| line.starts_with("0::"));
            assert!(unified.is_none_or(|line| line.ends_with(&own)), "{cgroups}");
            assert_eq!(exec(&shim, &group, "probe", &["sh", "-c", DEMANDS]).await.1, MET);
            let waiting = shim.spawn_wait("group", "").await;
            shim.kill("group", "", 9, false).await.unwrap();
            assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
            shim.delete("group", "").await.unwrap();
            shim.shutdown_and_wait(SOON).await.unwrap();
            assert_eq!(scratch.leftovers(), [""; 0]);
        });
    });
}

#[test]
fn all_works_where_newer_system_calls_are_missing() {
    works_without(seccomp::OLD, "plain");
}

#[test]
fn all_works_from_a_sealed_copy_where_newer_system_calls_are_missing() {
    works_without(seccomp::OLD, &["long".repeat(40), "path".repeat(40)].join("/"));
}

#[test]
fn all_works_where_flags_are_those_of_linux_5_10() {
    works_without(seccomp::LINUX_5_10, "plain");
}

// Where a container's processes come to be.

/// pivot_root(2) replaces the root of the caller. In a chroot that is not the root of the mount namespace, to which an
/// exec's setns(2) leads: it would find itself on the host.
#[test]
fn in_the_container_of_a_shim_in_a_chroot_all_are_in_its_rootfs() {
    block_on(async {
        let scratch = Scratch::new();
        let sink = EventSink::start(&scratch);
        let root = scratch.dir().join("chroot");
        fs::create_dir(&root).unwrap();
        let enter = format!(
            "exec unshare -m sh -c 'mount --make-rprivate / && mount --rbind / {root} && exec chroot {root} \
             sh -c \"cd \\\"\\$0\\\" && exec {shim} \\\"\\$@\\\"\" \"$@\"' sh \"$PWD\" \"$@\"",
            root = root.display(),
            shim = shim_binary().display(),
        );
        let shim_path = wrapped(&scratch, &enter);
        let one = Bundle::new(&scratch, "one").args(&["sleep", "1000"]);
        let shim = Shim::start(&shim_path, &one, &sink).await.unwrap();
        shim.create(&one, &Io::null()).await.unwrap();
        let pid = shim.start("one", "").await.unwrap().pid;
        let of_init = fs::metadata(format!("/proc/{pid}/root/")).map(|root| root.ino()).unwrap();
        let (status, stdout, stderr) = exec(&shim, &one, "x", &["sh", "-c", "stat -c %i /; mount"]).await;
        assert_eq!((status, stderr.as_str()), (0, ""));
        assert!(stdout.starts_with(&format!("{of_init}\n")), "{of_init}: {stdout}");
        assert!(!stdout.contains(root.to_str().unwrap()), "the host's mounts are there: {stdout}");
    });
}
