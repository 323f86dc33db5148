//! The command line as podman's OCI runtime, called by podman and its conmon: what Docker and nerdctl are to do, and podman's own.
//!
//! Debian's podman, with the libraries that it needs, is fetched by scripts/daemons and not installed.

mod podman {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use common::cgroup::is_v2;
    use common::containerd::{IMAGE, eventually, text};
    use common::docker_cli::{Cli, sh};
    use common::scratch::Scratch;
    use common::{docker_scenarios as scenarios, shim_binary, skipped};

    fn with_podman(test: &str, scenario: fn(&Cli)) {
        let test = format!("podman::{test}");
        let Some(usr) = std::env::var_os("DRAY_PODMAN") else {
            return skipped(&test, "DRAY_PODMAN is not set, see scripts/test");
        };
        let usr = PathBuf::from(usr);
        if !usr.is_absolute() {
            return skipped(&test, &usr.to_string_lossy());
        }
        let scratch = Scratch::new();
        let _rubbish = Rubbish(scratch.namespace().to_owned());
        let cli = client(&scratch, &usr);
        cli.import(scratch.dir());
        scenario(&cli);
        cli.ok(&["rm", "--all", "--force", "--time", "0"]);
        // Podman makes one for its monitors, which stays.
        let left: Vec<String> = scratch.leftovers().into_iter().filter(|left| !left.ends_with("/conmon")).collect();
        assert_eq!(left, [""; 0]);
        assert_eq!(fs::read_dir(scratch.dir().join("state")).map_or(0, Iterator::count), 0, "states");
    }

    /// Where a v1 controller is not mounted podman makes plain directories in the place of its cgroups.
    struct Rubbish(String);

    impl Drop for Rubbish {
        fn drop(&mut self) {
            if is_v2() {
                return;
            }
            for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                // Of what is mounted there nothing is removed by this: the files of a cgroup cannot be, a mount point neither.
                if fs::remove_dir_all(entry.path().join(&self.0)).is_ok() {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    /// A podman with a configuration, images and containers of its own.
    fn client(scratch: &Scratch, usr: &std::path::Path) -> Cli {
        let dir = scratch.dir();
        let path = |name: &str| dir.join(name).display().to_string();
        fs::create_dir(dir.join("bin")).unwrap();
        symlink(shim_binary(), dir.join("bin/dray")).unwrap();
        // What a test that fails leaves is to be with the rest of it. (--runtime-flag is unknown to the podman that conmon starts.)
        let dray = format!("#!/bin/sh\nexec {} --root {} \"$@\"\n", path("bin/dray"), path("state"));
        fs::write(dir.join("dray"), dray).unwrap();
        fs::set_permissions(dir.join("dray"), fs::Permissions::from_mode(0o755)).unwrap();
        let env = [
            ("HOME", dir.join("home")),
            ("CONTAINERS_CONF", dir.join("containers.conf")),
            ("CONTAINERS_STORAGE_CONF", dir.join("storage.conf")),
            ("LD_LIBRARY_PATH", usr.join("lib/x86_64-linux-gnu")),
        ];
        // For the podman that conmon starts when a container has ended: without it, others wait for it for 20 s.
        let of_conmon: Vec<String> = env.iter().map(|(name, value)| format!("{name}={}", value.display())).collect();
        // The limits are those that every host has: who may not raise them cannot use podman's own.
        let configuration = format!(
            "[engine]\nconmon_path = [{:?}]\nconmon_env_vars = {of_conmon:?}\nevents_logger = \"file\"\n[containers]\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n",
            usr.join("bin/conmon")
        );
        fs::write(dir.join("containers.conf"), configuration).unwrap();
        let storage =
            format!("[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n", path("images"), path("run"));
        fs::write(dir.join("storage.conf"), storage).unwrap();
        fs::create_dir_all(dir.join("home/.config/containers")).unwrap();
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(dir.join("home/.config/containers/policy.json"), policy).unwrap();
        let global = [
            ["--root", &path("images")],
            ["--runroot", &path("run")],
            ["--tmpdir", &path("tmp")],
            ["--storage-driver", "vfs"],
            ["--cgroup-manager", "cgroupfs"],
        ];
        let program = usr.join("bin/podman").display().to_string();
        Cli {
            program: std::iter::once(program).chain(global.concat().into_iter().map(Into::into)).collect(),
            env: env.map(|(name, value)| (name.into(), value)).into(),
            runtime: path("dray"),
            image: IMAGE.into(),
            options: vec!["--cgroup-parent".into(), format!("/{}", scratch.namespace())],
            without_network: true,
            namespace: scratch.namespace().into(),
            address: String::new(),
            cgroup: format!("/{}", scratch.namespace()),
        }
    }

    /// Its own: what of runc's words it turns into statuses.
    fn exit_codes_125_126_and_127(cli: &Cli) {
        for (program, status) in [("nosuch", 127), ("/no/such", 127), ("/etc/passwd", 126)] {
            assert_eq!(cli.run(&[], &[program]).status.code(), Some(status), "run {program}");
        }
        let container = cli.detached("codes", &[], &["sleep", "1000"]);
        for (program, status) in [("nosuch", 127), ("/no/such", 127), ("/etc/passwd", 126)] {
            assert_eq!(container.exec(&[], &[program]).status.code(), Some(status), "exec {program}");
        }
        container.remove();
    }

    fn pause_stops_all_of_it_until_unpause(cli: &Cli) {
        let container = cli.ready("pause", &[], &sh("echo ready; while :; do echo x >> /n; sleep 0.05; done"));
        let file = || container.inspect("{{.State.Status}}");
        container.ok(&["pause"]);
        assert_eq!(file(), "paused");
        let stat = format!("/proc/{}/stat", container.pid());
        let ticks = || fs::read_to_string(&stat).unwrap().split(' ').nth(13).unwrap().to_owned();
        let before = ticks();
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(ticks(), before);
        container.ok(&["unpause"]);
        let lines = || container.exec_ok(&[], &["wc", "-l", "/n"]);
        let before = lines();
        assert!(eventually(|| lines() != before));
        container.remove();
    }

    fn update_top_and_stats(cli: &Cli) {
        let container = cli.detached("update", &["--memory", "64m"], &["sleep", "1000"]);
        let stats = cli.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "update"]);
        assert!(stats.contains("kB / 67.11MB") && stats.trim_end().ends_with(" 1"), "{stats}");
        container.ok(&["update", "--memory", "96m", "--cpu-shares", "777"]);
        let limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
        assert_eq!(container.exec_ok(&[], &sh(limits)), "100663296\n");
        let top = cli.ok(&["top", "update", "pid", "args"]);
        assert!(top.lines().any(|line| line.starts_with('1') && line.contains("sleep 1000")), "{top}");
        container.remove();
    }

    fn a_stopped_container_is_started_again(cli: &Cli) {
        let container = cli.ready("again", &[], &sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"));
        container.ok(&["stop"]);
        container.until("{{.State.Status}} {{.State.ExitCode}}", "exited 3");
        container.ok(&["start"]);
        container.ok(&["kill"]);
        container.until("{{.State.ExitCode}}", "137");
        container.ok(&["restart"]);
        assert_eq!(container.inspect("{{.State.Running}}"), "true");
        container.remove();
    }

    fn namespaces_of_the_host_of_another_and_of_a_user(cli: &Cli) {
        let link = |options: &[&str], kind: &str| cli.run_ok(options, &["readlink", &format!("/proc/self/ns/{kind}")]);
        let own = |kind: &str| format!("{}\n", fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display());
        for kind in ["pid", "uts", "ipc"] {
            let option = format!("--{kind}=host");
            assert_eq!(link(&[&option], kind), own(kind));
            assert_ne!(link(&[], kind), own(kind));
        }
        let container = cli.detached("first", &[], &["sleep", "1000"]);
        let shared = ["--pid=container:first", "--ipc=container:first"];
        for kind in ["pid", "ipc"] {
            assert_eq!(link(&shared, kind), container.exec_ok(&[], &["readlink", &format!("/proc/self/ns/{kind}")]));
        }
        container.remove();
        let maps = ["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"];
        let map = cli.run_ok(&maps, &["cat", "/proc/self/uid_map"]);
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "1000"]);
    }

    fn a_health_check_is_an_exec(cli: &Cli) {
        let options = ["--health-cmd", "test -e /ok", "--health-interval", "disable"];
        let container = cli.detached("health", &options, &["sleep", "1000"]);
        assert_eq!(cli.call(&["healthcheck", "run", "health"]).status.code(), Some(1));
        container.exec_ok(&[], &["touch", "/ok"]);
        cli.ok(&["healthcheck", "run", "health"]);
        container.remove();
    }

    fn a_container_that_is_created_is_attached_to_at_its_start(cli: &Cli) {
        let args = cli.run_args(&["--interactive", "--name", "made"], &sh("read line; echo got $line; exit 4"));
        cli.ok(&[&["create"], &args[1..]].concat());
        let mut start = cli.bounded(&["start", "--attach", "--interactive", "made"]);
        start.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut start = start.spawn().unwrap();
        std::io::Write::write_all(start.stdin.as_mut().unwrap(), b"this\n").unwrap();
        let output = start.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &*text(&output.stdout)), (Some(4), "got this\n"));
        cli.ok(&["rm", "made"]);
    }

    /// What podman asks its runtimes for at first.
    fn it_is_taken_for_a_runtime(cli: &Cli) {
        let info = cli.ok(&["--runtime", &cli.runtime, "info", "--format", "{{.Host.OCIRuntime.Version}}"]);
        let version = Command::new(&cli.runtime).arg("--version").output().unwrap();
        assert_eq!(info.trim(), text(&version.stdout).trim());
    }

    macro_rules! scenarios {
        ($($test:ident)*) => {
            $(#[test]
            fn $test() {
                with_podman(stringify!($test), scenarios::$test);
            })*
        };
    }

    // Of Docker's all but its format of stats.
    common::each_scenario!(scenarios);

    macro_rules! own {
        ($($test:ident)*) => {
            mod own {
                $(#[test]
                fn $test() {
                    super::with_podman(stringify!($test), super::$test);
                })*
            }
        };
    }

    own! {
        exit_codes_125_126_and_127
        pause_stops_all_of_it_until_unpause
        update_top_and_stats
        a_stopped_container_is_started_again
        namespaces_of_the_host_of_another_and_of_a_user
        a_health_check_is_an_exec
        a_container_that_is_created_is_attached_to_at_its_start
        it_is_taken_for_a_runtime
    }
}
