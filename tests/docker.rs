//! Containers of ours under Docker: `docker run --runtime io.containerd.dray.v2`, and what its users do with them.
//!
//! What is expected is what Docker does with runc: DRAY_RUNTIME=io.containerd.runc.v2 runs the tests against that.

/// Debian's docker.io 28.5, with containerd 2.1.
mod docker_28 {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use common::containerd::{eventually, text};
    use common::docker::Docker;
    use common::docker_cli::sh;
    use common::docker_scenarios as scenarios;
    use common::pty::Client;
    use common::skipped;

    const SLEEP: &[&str] = &["sleep", "1000"];

    fn name(test: &str) -> String {
        format!("docker_28::{test}")
    }

    /// The daemon that the tests share; a test without one is over, and said to be skipped.
    fn shared(test: &str) -> Option<Arc<Docker>> {
        Docker::shared(&name(test))
    }

    macro_rules! scenarios {
        ($($test:ident)*) => {
            $(#[test]
            fn $test() {
                let Some(docker) = shared(stringify!($test)) else { return };
                scenarios::$test(&docker.cli);
            })*
        };
    }

    common::each_scenario!(scenarios stats_tell_what_it_uses);

    /// 125 is Docker's own, 126 a program that cannot be run, 127 one that is not there. dockerd tells them by the words of
    /// the runtime's message (moby: daemon/errors.go).
    #[test]
    fn exit_codes_125_126_and_127() {
        let Some(docker) = shared("exit_codes_125_126_and_127") else { return };
        let cli = &docker.cli;
        fs::write(docker.dir.join("not-executable"), "#!/bin/sh\n").unwrap();
        let volume = format!("{}:/file", docker.dir.join("not-executable").display());
        let onto_a_file = format!("{}:/etc/passwd", docker.dir.display());
        let run: [(&[&str], &[&str], i32); 12] = [
            (&[], &["/nope"], 127),
            (&[], &["nope"], 127),
            (&[], &[""], 127),
            (&[], &["/etc"], 126),
            (&[], &["/etc/passwd"], 126),
            (&["--volume", &volume], &["/file"], 126),
            (&["--volume", &onto_a_file], &["true"], 125),
            (&["--no-such-flag"], &["true"], 125),
            (&["--runtime", "nosuch"], &["true"], 125),
            (&["--user", "nosuch"], &["true"], 125),
            (&["--sysctl", "net.ipv4.nosuch=1"], &["true"], 127),
            (&[], &["sh", "-c", "exit 125"], 125),
        ];
        for (options, command, code) in run {
            let output = cli.run(options, command);
            assert_eq!(output.status.code(), Some(code), "run {options:?} {command:?}: {output:?}");
            assert!(output.stdout.is_empty() && (!output.stderr.is_empty() || command.len() > 1), "{output:?}");
        }
        let container = cli.detached("codes", &["--volume", &volume], SLEEP);
        let exec: [(&[&str], &[&str], i32); 8] = [
            (&[], &["/nope"], 127),
            (&[], &["nope"], 127),
            (&[], &[""], 127),
            (&[], &["/etc"], 126),
            (&[], &["/file"], 126),
            (&["--workdir", "/nope"], &["true"], 127),
            (&["--user", "nosuch"], &["true"], 1),
            (&[], &["sh", "-c", "exit 127"], 127),
        ];
        for (options, command, code) in exec {
            let output = container.exec(options, command);
            assert_eq!(output.status.code(), Some(code), "exec {options:?} {command:?}: {output:?}");
        }
        // A container that could not be started says so.
        let args = cli.run_args(&["--detach", "--name", "never"], &["nope"]);
        assert_eq!(cli.call(&args).status.code(), Some(127));
        let state = cli.ok(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", "never"]);
        assert!(state.starts_with("created 127 ") && state.contains("executable file not found in $PATH"), "{state}");
        cli.ok(&["rm", "never"]);
        container.remove();
    }

    #[test]
    fn restart_by_hand_and_by_policy() {
        let Some(docker) = shared("restart_by_hand_and_by_policy") else { return };
        let script = "trap 'exit 0' TERM; echo ready; sleep 1000 & while :; do wait; done";
        let container = docker.cli.ready("restart", &[], &sh(script));
        let first = container.pid();
        container.ok(&["restart", "-t", "60"]);
        assert!(eventually(|| container.logs() == "ready\nready\n"));
        assert_ne!(container.pid(), first);
        container.remove();
        let failing = docker.cli.detached("policy", &["--restart", "on-failure:2"], &sh("echo again; exit 3"));
        failing.until("{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "exited 3 2");
        assert_eq!(failing.logs(), "again\n".repeat(3));
        failing.remove();
    }

    #[test]
    fn pause_stops_all_of_it_until_unpause() {
        let Some(docker) = shared("pause_stops_all_of_it_until_unpause") else { return };
        let container = docker.cli.ready("pause", &[], &sh("echo ready; while :; do echo x; sleep 0.02; done"));
        container.ok(&["pause"]);
        assert_eq!(container.inspect("{{.State.Status}}"), "paused");
        // What it wrote before arrives; after that there is no more.
        let mut before = container.logs();
        let still = eventually(|| {
            std::thread::sleep(std::time::Duration::from_secs(1));
            std::mem::replace(&mut before, container.logs()) == before
        });
        assert!(still, "it goes on");
        let refused = container.exec(&[], &["true"]);
        assert!(!refused.status.success() && text(&refused.stderr).contains("paused"), "{refused:?}");
        container.ok(&["unpause"]);
        assert!(eventually(|| container.logs().len() > before.len()));
        container.exec_ok(&[], &["true"]);
        // One that is paused can be killed too.
        container.ok(&["pause"]);
        container.remove();
    }

    #[test]
    fn update_changes_the_limits_of_a_running_container() {
        let Some(docker) = shared("update_changes_the_limits_of_a_running_container") else { return };
        let options =
            ["--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "20", "--cpu-shares", "200"];
        let container = docker.cli.detached("update", &options, SLEEP);
        let limits = || {
            [
                container.cgroup_value("memory", "memory.limit_in_bytes", "memory.max"),
                container.cgroup_value("pids", "pids.max", "pids.max"),
                container.cgroup_value("cpu", "cpu.cfs_quota_us", "cpu.max").split(' ').next().unwrap().to_string(),
            ]
        };
        assert_eq!(limits(), ["67108864", "20", "50000"]);
        container.ok(&["update", "--memory", "100m", "--memory-swap", "100m", "--cpus", "0.7", "--pids-limit", "33"]);
        assert_eq!(limits(), ["104857600", "33", "70000"]);
        let file = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max";
        let inside = container.exec_ok(&[], &sh(&format!("cat {file} 2>/dev/null; true")));
        assert_eq!(inside.trim(), "104857600");
        container.ok(&["update", "--cpuset-cpus", "0"]);
        assert_eq!(
            container.exec_ok(&[], &["grep", "Cpus_allowed_list", "/proc/self/status"]),
            "Cpus_allowed_list:\t0\n"
        );
        // Last: those that were there first stay.
        let forks = "for i in $(seq 40); do sleep 1000 >/dev/null 2>&1 & done; wait";
        let output = container.exec(&[], &sh(forks));
        assert!(text(&output.stderr).contains("can't fork"), "40 processes are too many: {output:?}");
        container.remove();
    }

    #[test]
    fn an_oom_kill_is_told() {
        let Some(docker) = shared("an_oom_kill_is_told") else { return };
        let eats = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}";
        let container = docker.cli.detached("oom", &["--memory", "20m", "--memory-swap", "20m"], &sh(eats));
        container.until("{{.State.Status}}", "exited");
        assert_eq!(container.inspect("{{.State.OOMKilled}} {{.State.ExitCode}}"), "true 137");
        container.remove();
        let container = docker.cli.detached("no-oom", &["--memory", "20m", "--memory-swap", "20m"], &sh("exit 137"));
        container.until("{{.State.Status}}", "exited");
        assert_eq!(container.inspect("{{.State.OOMKilled}} {{.State.ExitCode}}"), "false 137");
        container.remove();
    }

    #[test]
    fn top_cp_and_diff() {
        let Some(docker) = shared("top_cp_and_diff") else { return };
        let container = docker.cli.detached("files", &[], SLEEP);
        let top = container.ok(&["top"]);
        let processes: Vec<_> = top.lines().skip(1).collect();
        assert_eq!(processes.len(), 1, "{top}");
        assert!(
            processes[0].contains(&format!(" {} ", container.pid())) && processes[0].ends_with("sleep 1000"),
            "{top}"
        );
        container.exec_ok(&[], &sh("echo inside > /home/new; rm /etc/group"));
        assert_eq!(
            container.ok(&["diff"]).lines().collect::<std::collections::BTreeSet<_>>(),
            ["A /home/new", "C /etc", "C /home", "D /etc/group"].into()
        );
        let file = docker.dir.join("copied");
        docker.cli.ok(&["cp", "files:/home/new", file.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "inside\n");
        fs::write(&file, "outside\n").unwrap();
        docker.cli.ok(&["cp", file.to_str().unwrap(), "files:/home/other"]);
        assert_eq!(container.exec_ok(&[], &["cat", "/home/other"]), "outside\n");
        container.remove();
    }

    #[test]
    fn attach_and_detach_by_keys() {
        let Some(docker) = shared("attach_and_detach_by_keys") else { return };
        let script = "while read line; do echo got $line; [ $line = end ] && exit 4; done";
        let container = docker.cli.detached("attach", &["--interactive", "--tty"], &sh(script));
        let mut client = Client::new(&docker.cli.command(&["attach", "attach"]));
        client.types("one\r");
        client.shows("got one\r");
        client.types("\x10\x11");
        client.ends();
        assert_eq!(container.inspect("{{.State.Running}}"), "true");
        let mut client = Client::new(&docker.cli.command(&["attach", "attach"]));
        client.types("end\r");
        assert_eq!(client.ends(), Some(4));
        assert_eq!(container.inspect("{{.State.ExitCode}}"), "4");
        container.remove();
    }

    #[test]
    fn users_capabilities_seccomp_and_privileges() {
        let Some(docker) = shared("users_capabilities_seccomp_and_privileges") else { return };
        let fields = |options: &[&str]| {
            let status = docker.cli.run_ok(options, &["cat", "/proc/self/status"]);
            let wanted = ["Uid", "Gid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"];
            let line = |name| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap();
            wanted.map(|name| line(name).split('\t').next().unwrap().to_string())
        };
        // Docker's default: 14 capabilities, its seccomp profile.
        assert_eq!(fields(&[]), ["0", "0", "00000000a80425fb", "00000000a80425fb", "0", "2"]);
        let user = ["1000", "2000", "0000000000000000", "00000000a80425fb", "0", "2"];
        assert_eq!(fields(&["--user", "1000:2000"]), user);
        assert_eq!(fields(&["--cap-drop", "ALL", "--cap-add", "CHOWN"])[2], "0000000000000001");
        assert_eq!(fields(&["--cap-add", "NET_ADMIN"])[2], "00000000a80435fb");
        assert_eq!(fields(&["--security-opt", "no-new-privileges"])[4..], ["1", "2"]);
        assert_eq!(fields(&["--security-opt", "seccomp=unconfined"])[4..], ["0", "0"]);
        let privileged = fields(&["--privileged"]);
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        assert_eq!(privileged[2..], [own, own, "0", "0"]);
        // Docker's profile refuses it to those without CAP_SYS_ADMIN; without the profile the user namespace may be had.
        let keys = |options: &[&str]| docker.cli.run(options, &sh("unshare --mount true")).status.success();
        assert!(!keys(&[]));
        assert!(keys(&["--privileged"]));
        assert_eq!(
            docker.cli.run_ok(&["--user", "user", "--group-add", "3000"], &["id"]),
            "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra),3000\n"
        );
    }

    /// The specification that Docker writes has none: it is the runtime's to find, by the user's entry in /etc/passwd.
    #[test]
    fn home_is_that_of_the_user() {
        let Some(docker) = shared("home_is_that_of_the_user") else { return };
        let home = |options: &[&str]| docker.cli.run_ok(options, &sh("echo $HOME"));
        assert_eq!(home(&[]), "/root\n");
        assert_eq!(home(&["--user", "user"]), "/home\n");
        assert_eq!(home(&["--user", "4711"]), "/\n");
        assert_eq!(home(&["--env", "HOME=/elsewhere"]), "/elsewhere\n");
        let container = docker.cli.detached("home", &[], SLEEP);
        assert_eq!(container.exec_ok(&[], &sh("echo $HOME")), "/root\n");
        assert_eq!(container.exec_ok(&["--user", "1000"], &sh("echo $HOME")), "/home\n");
        container.remove();
    }

    #[test]
    fn volumes_tmpfs_devices_and_a_read_only_root() {
        let Some(docker) = shared("volumes_tmpfs_devices_and_a_read_only_root") else { return };
        let cli = &docker.cli;
        let dir = docker.dir.join("volume");
        fs::create_dir(&dir).unwrap();
        let bind = |mode: &str| format!("{}:/volume{mode}", dir.display());
        cli.run_ok(&["--volume", &bind("")], &sh("echo from inside > /volume/file"));
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "from inside\n");
        let read_only = cli.run(&["--volume", &bind(":ro")], &sh("cat /volume/file && echo x > /volume/file"));
        assert_eq!((&*text(&read_only.stdout), read_only.status.code()), ("from inside\n", Some(1)));
        assert!(text(&read_only.stderr).contains("Read-only file system"), "{read_only:?}");
        let named = ["--volume", "dray-test-volume:/volume"];
        cli.run_ok(&named, &sh("echo kept > /volume/file"));
        assert_eq!(cli.run_ok(&named, &["cat", "/volume/file"]), "kept\n");
        cli.ok(&["volume", "rm", "dray-test-volume"]);
        let script = "touch /x 2>/dev/null || echo read-only; touch /t/x && stat -f -c '%b %S' /t";
        let tmpfs = ["--read-only", "--tmpfs", "/t:size=1m"];
        assert_eq!(cli.run_ok(&tmpfs, &sh(script)), "read-only\n256 4096\n");
        // Not one of those that every container has.
        if Path::new("/dev/fuse").exists() {
            let script = "(: </dev/mine) && echo can be read; (: >/dev/mine) 2>/dev/null || echo not written";
            let device = ["--device", "/dev/fuse:/dev/mine:r"];
            assert_eq!(cli.run_ok(&device, &sh(script)), "can be read\nnot written\n");
        }
        assert_eq!(cli.run_ok(&["--shm-size", "8m"], &sh("stat -f -c '%b %S' /dev/shm")), "2048 4096\n");
        assert_eq!(
            cli.run(&[], &sh("mknod /tmp/x b 254 0 && cat /tmp/x")).status.code(),
            Some(1),
            "the disk is not its"
        );
    }

    /// What is mounted below an rshared volume inside is seen by another that has it as rslave.
    #[test]
    fn mounts_in_a_shared_volume_are_seen_elsewhere() {
        let Some(docker) = shared("mounts_in_a_shared_volume_are_seen_elsewhere") else { return };
        let dir = docker.dir.join("shared");
        fs::create_dir(&dir).unwrap();
        let mount = |args: &[&str]| {
            let done = std::process::Command::new("mount").args(args).arg(&dir).output().unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        mount(&["-t", "tmpfs", "tmpfs"]);
        mount(&["--make-shared"]);
        let volume = |mode: &str| format!("{}:/volume:{mode}", dir.display());
        let slave = docker.cli.detached("slave", &["--volume", &volume("rslave")], SLEEP);
        let private = docker.cli.detached("private", &["--volume", &volume("rprivate")], SLEEP);
        let script = "mkdir /volume/sub; mount -t tmpfs tmpfs /volume/sub; echo told > /volume/sub/file; echo ready; exec sleep 1000";
        let shared = docker.cli.ready("shared", &["--privileged", "--volume", &volume("rshared")], &sh(script));
        assert_eq!(fs::read_to_string(dir.join("sub/file")).unwrap(), "told\n");
        assert_eq!(slave.exec_ok(&[], &["cat", "/volume/sub/file"]), "told\n");
        assert_eq!(private.exec(&[], &["cat", "/volume/sub/file"]).status.code(), Some(1));
        [slave, private, shared].into_iter().for_each(|container| container.remove());
        for dir in [dir.join("sub"), dir] {
            assert!(std::process::Command::new("umount").arg(dir).status().unwrap().success());
        }
    }

    #[test]
    fn namespaces_of_the_host_or_of_another_container() {
        let Some(docker) = shared("namespaces_of_the_host_or_of_another_container") else { return };
        let other = docker.cli.detached("other", &["--ipc", "shareable"], SLEEP);
        let of = |pid: &str, namespace: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        let init = other.pid().to_string();
        for (option, namespace) in
            [("--network", "net"), ("--pid", "pid"), ("--ipc", "ipc"), ("--uts", "uts"), ("--cgroupns", "cgroup")]
        {
            let seen = |value: &str| {
                let link = docker.cli.run_ok(&[option, value], &["readlink", &format!("/proc/self/ns/{namespace}")]);
                Path::new(link.trim()).to_owned()
            };
            assert_eq!(seen("host"), of("self", namespace), "{option} host");
            if !matches!(option, "--uts" | "--cgroupns") {
                assert_eq!(seen("container:other"), of(&init, namespace), "{option} container:other");
            }
            let private = docker.cli.run_ok(&[], &["readlink", &format!("/proc/self/ns/{namespace}")]);
            let known = [of("self", namespace), of(&init, namespace)];
            // Docker's default on version 1 of cgroups is the host's cgroup namespace.
            assert!(namespace == "cgroup" || !known.iter().any(|known| known == Path::new(private.trim())), "{option}");
        }
        // Its processes are the other's too, and end with it.
        let visitor = docker.cli.detached("visitor", &["--pid", "container:other"], &["sleep", "2000"]);
        assert!(other.exec_ok(&[], &["ps"]).contains("sleep 2000"));
        // Without an init of its own to take its orphans, all of it is killed.
        let host = docker.cli.ready("host-pid", &["--pid", "host"], &sh("sleep 3000 & echo ready; wait"));
        let pids = host.ok(&["top"]).lines().skip(1).count();
        assert_eq!(pids, 2);
        host.remove();
        other.ok(&["kill"]);
        visitor.until("{{.State.Status}} {{.State.ExitCode}}", "exited 137");
        visitor.remove();
        other.remove();
    }

    #[test]
    fn containers_on_a_bridge_reach_each_other() {
        let Some(docker) = Docker::bridged(&name("containers_on_a_bridge_reach_each_other")) else { return };
        let serve = "echo ready; while :; do echo served | nc -l -p 80; done";
        let server = docker.cli.ready("server", &[], &sh(serve));
        let address = server.inspect("{{.NetworkSettings.IPAddress}}");
        assert!(
            server.exec_ok(&[], &["ip", "addr", "show", "eth0"]).contains(&format!("inet {address}/")),
            "{address}"
        );
        assert!(server.exec_ok(&[], &["cat", "/etc/hosts"]).contains(&address));
        assert_eq!(docker.cli.run_ok(&[], &sh(&format!("nc {address} 80 </dev/null"))), "served\n");
        let joined = ["--network", "container:server"];
        assert!(docker.cli.run_ok(&joined, &["ip", "addr"]).contains(&format!("inet {address}/")));
        server.remove();
    }

    #[test]
    fn host_names_limits_sysctls_and_the_oom_score() {
        let Some(docker) = shared("host_names_limits_sysctls_and_the_oom_score") else { return };
        let run = |options: &[&str], script: &str| docker.cli.run_ok(options, &sh(script));
        assert_eq!(run(&["--hostname", "named"], "hostname; cat /etc/hostname"), "named\nnamed\n");
        assert_eq!(run(&["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn"), "100\n200\n");
        let sysctls = ["--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.shmmax=1234567"];
        let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax";
        assert_eq!(run(&sysctls, script), "1\n1234567\n");
        assert_eq!(run(&["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj"), "500\n");
        assert_eq!(run(&["--cpuset-cpus", "0"], "grep Cpus_allowed_list /proc/self/status"), "Cpus_allowed_list:\t0\n");
        let hidden = "head -c 1 /proc/kcore | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -vc :; (echo 1 > /proc/sys/kernel/shmmax) 2>/dev/null || echo read-only";
        assert!(
            run(&[], hidden).starts_with("0\n") && run(&[], hidden).ends_with("read-only\n"),
            "{}",
            run(&[], hidden)
        );
    }

    #[test]
    fn health_checks_are_execs() {
        let Some(docker) = shared("health_checks_are_execs") else { return };
        let options = ["--health-cmd", "test -e /healthy", "--health-interval", "1s", "--health-retries", "1"];
        let container = docker.cli.detached("health", &options, SLEEP);
        container.until("{{.State.Health.Status}}", "unhealthy");
        container.exec_ok(&[], &["touch", "/healthy"]);
        container.until("{{.State.Health.Status}}", "healthy");
        container.remove();
    }

    #[test]
    fn an_init_of_dockers_reaps_orphans() {
        let Some(docker) = shared("an_init_of_dockers_reaps_orphans") else { return };
        if !docker.has_init() {
            return skipped(&name("an_init_of_dockers_reaps_orphans"), "there is no tini");
        }
        // The shell's end leaves its child to init.
        let container =
            docker.cli.ready("init", &["--init"], &sh("(sleep 0.1 & echo $! >/orphan); echo ready; exec sleep 1000"));
        assert_eq!(container.exec_ok(&[], &["cat", "/proc/1/comm"]), "docker-init\n");
        let orphan = "test -s /orphan && ! test -e /proc/$(cat /orphan)";
        assert!(eventually(|| container.exec(&[], &sh(orphan)).status.success()), "a zombie");
        assert_eq!(container.ok(&["stop", "-t", "60"]), "init\n");
        assert_eq!(container.inspect("{{.State.ExitCode}}"), "143");
        container.remove();
    }

    /// To a runtime that is not runc Docker hands on no table of options but the path of a file (moby: internal/shimopts).
    #[test]
    fn a_runtime_of_daemon_json_has_options() {
        let Some(docker) = shared("a_runtime_of_daemon_json_has_options") else { return };
        if docker.cli.runtime.starts_with("io.containerd.runc.") {
            return skipped(&name("a_runtime_of_daemon_json_has_options"), "to runc Docker gives other options");
        }
        let run =
            |runtime: &str| docker.cli.run(&["--runtime", runtime], &["stat", "-L", "-c", "%u", "/proc/self/fd/1"]);
        // IoUid: whose the pipes are.
        assert_eq!(text(&run("configured").stdout), "1234\n");
        assert_eq!(text(&run(&docker.cli.runtime).stdout), "0\n");
        let refusing = run("refusing");
        assert_eq!(refusing.status.code(), Some(125), "{refusing:?}");
        assert!(text(&refusing.stderr).contains("BinaryName"), "{refusing:?}");
    }

    #[test]
    fn containers_outlive_dockerd_and_containerd() {
        let Some(mut docker) = Docker::start(&name("containers_outlive_dockerd_and_containerd")) else { return };
        let script = "trap 'exit 6' TERM; echo ready; while :; do echo alive; sleep 0.1; done";
        let id = docker.cli.ready("outlives", &[], &sh(script)).id;
        let init = docker.cli.ok(&["inspect", "--format", "{{.State.Pid}}", &id]).trim().to_string();
        let alive =
            || fs::read_to_string(format!("/proc/{init}/status")).is_ok_and(|status| !status.contains("State:\tZ"));
        let lives_on = |docker: &Docker| {
            assert!(alive());
            let state = || docker.cli.ok(&["inspect", "--format", "{{.State.Status}} {{.State.Pid}}", "outlives"]);
            assert_eq!(state().trim(), format!("running {init}"));
            // dockerd connects to a new containerd when it likes.
            assert!(eventually(|| docker.cli.call(&["exec", "outlives", "true"]).status.success()));
            let logs = || docker.cli.ok(&["logs", "outlives"]).len();
            let before = logs();
            assert!(eventually(|| logs() > before), "nothing more in the log");
        };
        docker.stop_dockerd();
        assert!(alive());
        docker.start_dockerd();
        lives_on(&docker);
        docker.kill_containerd();
        assert!(alive());
        docker.start_containerd();
        lives_on(&docker);
        docker.kill_containerd();
        docker.stop_dockerd();
        assert!(alive());
        docker.start_containerd();
        docker.start_dockerd();
        lives_on(&docker);
        docker.cli.ok(&["stop", "-t", "60", "outlives"]);
        let code = docker.cli.ok(&["inspect", "--format", "{{.State.ExitCode}}", "outlives"]);
        assert_eq!(code, "6\n");
        docker.cli.ok(&["rm", "outlives"]);
    }

    /// Of one that ends while nobody looks, what is known of its end is known after.
    #[test]
    fn a_container_that_ends_without_dockerd_has_ended_when_it_is_back() {
        let test = "a_container_that_ends_without_dockerd_has_ended_when_it_is_back";
        let Some(mut docker) = Docker::start(&name(test)) else { return };
        let script = "echo ready; while ! test -e /volume/go; do sleep 0.05; done; exit 8";
        let volume = format!("{}:/volume", docker.dir.display());
        docker.cli.ready("ends", &["--volume", &volume], &sh(script));
        docker.stop_dockerd();
        fs::write(docker.dir.join("go"), "").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(1));
        docker.start_dockerd();
        let state = || docker.cli.ok(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "ends"]);
        assert!(eventually(|| state() == "exited 8\n"), "{}", state());
        docker.cli.ok(&["rm", "ends"]);
    }
}
