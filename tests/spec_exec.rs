//! A further process: its identity is its own process document's, its namespaces and cgroups are init's.

use common::block_on;
use common::container::Host;
use serde_json::{Value, json};
use ttrpc::Code;

/// Its birth takes a process and a descriptor more than it is to have.
#[test]
fn an_exec_may_have_the_least_of_limits() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let mut process = bundle.process(&["sh", "-c", "ulimit -n; ulimit -u"]);
        process["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3}, {"type": "RLIMIT_NPROC", "soft": 1, "hard": 1},
        ]);
        process["user"] = json!({"uid": 4711, "gid": 4711});
        process["capabilities"] = json!({});
        assert_eq!(container.exec("limited", &process).await.ok(), "3\n1\n");
        container.end().await;
    });
}

#[test]
fn an_exec_is_in_the_namespaces_and_cgroups_of_init() {
    for own_cgroup_namespace in [false, true] {
        block_on(async {
            let host = Host::new();
            let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
                if own_cgroup_namespace {
                    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
                }
            });
            let container = host.start(&bundle).await;
            let script = "for n in pid ipc uts mnt net cgroup user; do readlink /proc/self/ns/$n; done; \
                          grep -v '^0::' /proc/self/cgroup";
            let seen = container.exec_script("probe", script).await.ok();
            let names = ["pid", "ipc", "uts", "mnt", "net", "cgroup", "user"];
            let namespaces: Vec<_> = names.iter().map(|name| container.namespace(name)).collect();
            let (links, cgroups) = seen.split_at(seen.match_indices('\n').nth(6).unwrap().0 + 1);
            assert_eq!(links.lines().collect::<Vec<_>>(), namespaces);
            let root =
                if own_cgroup_namespace { "/".to_string() } else { format!("/{}/one", host.scratch.namespace()) };
            assert!(cgroups.lines().count() > 5, "{cgroups}");
            assert!(cgroups.lines().all(|line| line.rsplit(':').next() == Some(&root)), "{cgroups}");
            container.end().await;
            assert_eq!(host.scratch.leftovers(), [""; 0]);
        });
    }
}

/// The unified hierarchy of a hybrid host too, in which the container is killed.
#[test]
fn an_exec_is_seen_in_the_cgroups_from_outside() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let read = "read line < /run/fifo; grep -c . /proc/self/cgroup";
        container.exec_script("make", "mkfifo /run/fifo").await.ok();
        let process = bundle.process(&["sh", "-c", read]);
        container.shim.exec("one", "probe", &process, &common::stdio::Io::null()).await.unwrap();
        let pid = container.shim.start("one", "probe").await.unwrap().pid;
        let of = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(of(pid), of(container.pid));
        container.end().await;
    });
}

#[test]
fn an_execs_identity_is_its_own() {
    block_on(async {
        let host = Host::new();
        // A container that is nobody and may nothing, and an exec that differs in each respect.
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
            spec["process"]["user"] = json!({"uid": 65534, "gid": 65534, "umask": 0o077});
            spec["process"]["capabilities"] = Value::Null;
            spec["process"]["oomScoreAdj"] = json!(321);
        });
        let container = host.start(&bundle).await;
        let mut process = bundle.process(&[]);
        process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7], "umask": 0o27});
        let set = json!(["CAP_NET_RAW", "CAP_CHOWN"]);
        process["capabilities"] =
            json!({"bounding": set, "permitted": set, "effective": set, "inheritable": set, "ambient": ["CAP_CHOWN"]});
        process["noNewPrivileges"] = json!(false);
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]);
        process["env"] = json!(["PATH=/bin", "ONLY=this"]);
        process["cwd"] = json!("/home");
        let mut run = async |exec: &str, args: Value, change: &dyn Fn(&mut Value)| {
            process["args"] = args;
            let mut changed = process.clone();
            change(&mut changed);
            container.exec(exec, &changed).await.ok()
        };
        let status = run(
            "status",
            json!(["grep", "-E", "^(Uid|Gid|Groups|Cap|NoNew|Umask|SigBlk|SigIgn)", "/proc/self/status"]),
            &|_| (),
        )
        .await;
        let status: Vec<_> = status.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let (both, chown, none) = ("0000000000002001", "0000000000000001", "0000000000000000");
        let expected = [
            "Umask: 0027".to_string(),
            "Uid: 1000 1000 1000 1000".to_string(),
            "Gid: 1001 1001 1001 1001".to_string(),
            "Groups: 7".to_string(),
            format!("SigBlk: {none}"),
            format!("SigIgn: {none}"),
            format!("CapInh: {both}"),
            format!("CapPrm: {chown}"),
            format!("CapEff: {chown}"),
            format!("CapBnd: {both}"),
            format!("CapAmb: {chown}"),
            "NoNewPrivs: 0".to_string(),
        ];
        assert_eq!(status, expected);
        assert_eq!(
            run("env", json!(["cat", "/proc/self/environ"]), &|_| ()).await,
            "PATH=/bin\0ONLY=this\0HOME=/home\0"
        );
        assert_eq!(run("cwd", json!(["sh", "-c", "pwd; ulimit -Sn; ulimit -Hn"]), &|_| ()).await, "/home\n77\n88\n");
        assert_eq!(run("fds", json!(["ls", "/proc/self/fd"]), &|_| ()).await, "0\n1\n2\n3\n");
        let nnp = |process: &mut Value| process["noNewPrivileges"] = json!(true);
        assert_eq!(run("nnp", json!(["grep", "NoNew", "/proc/self/status"]), &nnp).await, "NoNewPrivs:\t1\n");
        let oom = json!(["cat", "/proc/self/oom_score_adj"]);
        let own = |process: &mut Value| process["oomScoreAdj"] = json!(654);
        assert_eq!(run("oom-own", oom.clone(), &own).await, "654\n");
        let unset = |process: &mut Value| drop(process.as_object_mut().unwrap().remove("oomScoreAdj"));
        assert_eq!(run("oom-unset", oom, &unset).await, "321\n");
        container.end().await;
    });
}

#[test]
fn an_exec_that_cannot_be_is_an_error_and_no_harm() {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]);
        let container = host.start(&bundle).await;
        let with = |key: &str, value: Value| {
            let mut process = bundle.process(&["true"]);
            process[key] = value;
            process
        };
        let missing = bundle.process(&["missing"]);
        container
            .exec_refused("a", &missing)
            .await
            .names(Code::INVALID_ARGUMENT, &["exec: \\\"missing\\\"", "not found in $PATH"]);
        container.exec_refused("b", &with("cwd", json!("/no/such"))).await.names(Code::INVALID_ARGUMENT, &["/no/such"]);
        container
            .exec_refused("c", &with("cwd", json!("/etc/passwd")))
            .await
            .names(Code::INVALID_ARGUMENT, &["/etc/passwd"]);
        let label = with("commandLine", json!("x"));
        container.exec_refused("d", &label).await.names(Code::UNIMPLEMENTED, &["process.commandLine"]);
        let relative = with("cwd", json!("x"));
        container.exec_refused("e", &relative).await.names(Code::INVALID_ARGUMENT, &["process.cwd"]);
        assert_eq!(container.exec_script("after", "echo lives").await.ok(), "lives\n");
        // The client has been told of each; the log is for what nobody is told.
        let log = bundle.log();
        assert!(!log.contains("level=error"), "{log}");
        container.end().await;
        assert_eq!(host.scratch.leftovers(), [""; 0]);
    });
}
