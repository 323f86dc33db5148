//! What cgroup2 has and v1 has not. Where the controllers are v1's, that needs no controller is tested in the unified tree
//! of the hybrid host.

use super::*;

/// As on a host whose controllers are in the unified tree, however it is here.
fn v2(scratch: &Scratch) -> Hierarchies {
    Hierarchies::new(Vec::new(), scratch.all.unified.as_deref().cloned()).unwrap()
}

fn create(scratch: &Scratch, below: &str) -> Cgroup {
    Cgroup::create(&v2(scratch), &scratch.at(below)).unwrap()
}

fn skipped(scratch: &Scratch) -> bool {
    let v1 = !scratch.is_v2();
    if v1 {
        eprintln!("SKIPPED: this host's controllers are cgroup v1's");
    }
    v1
}

#[test]
fn every_controller_comes_down_to_the_cgroup() {
    let scratch = Scratch::new();
    create(&scratch, "a/b/c");
    let top = read(&scratch.all.unified.as_ref().unwrap().mount, "cgroup.controllers");
    assert_eq!(read(&scratch.unified("a/b/c"), "cgroup.controllers"), top);
    assert_eq!(read(&scratch.unified("a/b/c"), "cgroup.subtree_control"), "");
}

#[test]
fn what_the_top_has_not_is_refused_by_its_name_before_any_effect() {
    let dir = std::env::temp_dir().join(format!("dray-test-top-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("cgroup.controllers"), "cpu memory\n").unwrap();
    let top = Hierarchies::unified_at(&dir);
    assert_eq!(top.version(), Version::V2);
    check(&top, &resources(r#"{"memory":{"limit":4096},"cpu":{"shares":2},"pids":{"limit":-1}}"#)).unwrap();
    check(&top, &resources(r#"{"unified":{"memory.high":"1","cgroup.max.depth":"1"}}"#)).unwrap();
    for (json, words) in [
        (r#"{"pids":{"limit":3}}"#, "controller pids, pids.max \"3\": this host's controllers are: cpu memory"),
        (r#"{"cpu":{"cpus":"0"}}"#, "controller cpuset, cpuset.cpus"),
        (r#"{"unified":{"misc.max":"a 1"}}"#, "controller misc, misc.max"),
    ] {
        let e = check(&top, &resources(json)).unwrap_err();
        assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains(words), "{e}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn files_by_their_names() {
    let scratch = Scratch::new();
    if skipped(&scratch) {
        return;
    }
    let cgroup = scratch.create();
    let seen = |file| read(&scratch.unified("c"), file);
    let json = r#"{"memory":{"limit":67108864},"unified":{"memory.high":"33554432","memory.max":"50331648",
        "cpu.weight":"77","cgroup.max.depth":"3","pids.max":"9"}}"#;
    cgroup.apply(&resources(json)).unwrap();
    let files = ["memory.high", "memory.max", "cpu.weight", "cgroup.max.depth", "pids.max"].map(seen);
    assert_eq!(files, ["33554432", "50331648", "77", "3", "9"]);
    // Taken back where a later one is refused: none of them stays.
    let e =
        cgroup.update(&resources(r#"{"unified":{"cpu.weight":"88","memory.high":"max","pids.max":"x"}}"#)).unwrap_err();
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("write \"x\""), "{e}");
    assert_eq!(["cpu.weight", "memory.high", "pids.max"].map(seen), ["77", "33554432", "9"]);
    let e = cgroup.update(&resources(r#"{"unified":{"memory.current":"1"}}"#)).unwrap_err();
    assert!(e.kind() == Kind::InvalidArgument && e.to_string().contains("memory.current"), "{e}");
}

#[test]
fn a_cpuset_can_be_given_back() {
    let scratch = Scratch::new();
    if skipped(&scratch) {
        return;
    }
    let cgroup = scratch.create();
    cgroup.apply(&resources(r#"{"cpu":{"cpus":"0"}}"#)).unwrap();
    assert_eq!(read(&scratch.unified("c"), "cpuset.cpus"), "0");
    cgroup.update(&resources(r#"{"unified":{"cpuset.cpus":""}}"#)).unwrap();
    assert_eq!(read(&scratch.unified("c"), "cpuset.cpus"), "");
}

/// A cgroup with processes of its own hands down what threads can have, and nothing else.
#[test]
fn below_a_cgroup_with_processes_limits_are_had_or_refused_with_its_name() {
    let scratch = Scratch::new();
    if skipped(&scratch) {
        return;
    }
    let parent = scratch.unified("p");
    create(&scratch, "p/none").remove().unwrap();
    std::fs::write(parent.join("cgroup.subtree_control"), "-cpuset -cpu -io -memory -hugetlb -pids -rdma -misc")
        .unwrap_or_else(|_| {
            let words = read(&parent, "cgroup.subtree_control");
            words
                .split(' ')
                .for_each(|c| std::fs::write(parent.join("cgroup.subtree_control"), format!("-{c}")).unwrap());
        });
    let sitting = Outsider(sleeper(std::slice::from_ref(&parent)));

    // Without limits, a container like any other.
    let cgroup = create(&scratch, "p/c");
    cgroup.apply(&LinuxResources::default()).unwrap();
    assert_eq!(read(&scratch.unified("p/c"), "cgroup.type"), "domain");
    for json in [r#"{"memory":{"limit":67108864}}"#, r#"{"cpu":{"shares":512},"memory":{"limit":67108864}}"#] {
        let e = cgroup.apply(&resources(json)).unwrap_err();
        assert_eq!(e.kind(), Kind::FailedPrecondition, "{e}");
        let text = e.to_string();
        assert!(text.contains("has processes of its own") && text.contains(&*parent.to_string_lossy()), "{text}");
        assert_eq!(read(&parent, "cgroup.subtree_control"), "", "nothing has changed");
    }
    assert!(cgroup.remove().unwrap());

    // Those that threads can have.
    let cgroup = create(&scratch, "p/c");
    cgroup.apply(&resources(r#"{"pids":{"limit":20},"cpu":{"shares":512}}"#)).unwrap();
    assert_eq!(
        ["cgroup.type", "pids.max", "cpu.weight"].map(|f| read(&scratch.unified("p/c"), f)),
        ["threaded", "20", "59"]
    );
    lives_and_dies(&cgroup, &scratch.unified("p/c"));
    // A second one finds it so.
    let second = create(&scratch, "p/d/e");
    assert_eq!(["p/d", "p/d/e"].map(|below| read(&scratch.unified(below), "cgroup.type")), ["threaded", "threaded"]);
    let e = second.apply(&resources(r#"{"memory":{"limit":67108864}}"#)).unwrap_err();
    assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("p"), "{e}");
    lives_and_dies(&second, &scratch.unified("p/d/e"));
    drop(sitting);
}

/// Found, frozen, killed and removed.
fn lives_and_dies(cgroup: &Cgroup, dir: &Path) {
    let child = sleeper(&[dir.to_owned()]);
    assert!(cgroup.populated().unwrap());
    assert_eq!(cgroup.procs().unwrap(), [child.id()]);
    until("frozen", || cgroup.freeze().unwrap());
    cgroup.unfreeze().unwrap();
    assert_eq!(cgroup.kill().unwrap(), Killed::Members(1));
    ended(child);
    until("removed", || cgroup.remove().unwrap());
}

/// On a hybrid host too: its unified tree has no controllers, and threaded cgroups all the same.
#[test]
fn below_a_threaded_cgroup_it_is_a_threaded_one() {
    let scratch = Scratch::new();
    for below in ["t", "t/u"] {
        std::fs::create_dir_all(scratch.unified(below)).unwrap();
    }
    std::fs::write(scratch.unified("t/u").join("cgroup.type"), "threaded").unwrap();
    let cgroup = create(&scratch, "t/u/v/c");
    for below in ["t/u/v", "t/u/v/c"] {
        assert_eq!(read(&scratch.unified(below), "cgroup.type"), "threaded");
    }
    lives_and_dies(&cgroup, &scratch.unified("t/u/v/c"));
}

/// As a systemd or a docker in it leaves a container: its cgroup takes no process any more.
#[test]
fn a_process_joins_where_the_init_has_moved() {
    let scratch = Scratch::new();
    if skipped(&scratch) {
        return;
    }
    let cgroup = scratch.create();
    let dir = scratch.unified("c");
    let below = dir.join("init.scope");
    std::fs::create_dir(&below).unwrap();
    let init = Outsider(sleeper(std::slice::from_ref(&dir)));
    let place = |joins: Joins| {
        let fd = joins.unified.unwrap();
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    };
    assert_eq!(place(cgroup.joins_beside(init.0.id()).unwrap()), dir);
    std::fs::write(below.join("cgroup.procs"), init.0.id().to_string()).unwrap();
    // Moved, and yet not divided: the container's own.
    assert_eq!(place(cgroup.joins_beside(init.0.id()).unwrap()), dir);
    std::fs::write(dir.join("cgroup.subtree_control"), "+memory").unwrap();
    assert_eq!(place(cgroup.joins_beside(init.0.id()).unwrap()), below);
    // As found at the second look, if it is so only after the first.
    std::fs::write(dir.join("cgroup.subtree_control"), "-memory").unwrap();
    std::fs::write(dir.join("cgroup.procs"), init.0.id().to_string()).unwrap();
    let one_more = Outsider::new();
    let mut looks = 0;
    let born = |joins: Joins| {
        looks += 1;
        if looks == 1 {
            std::fs::write(below.join("cgroup.procs"), init.0.id().to_string()).unwrap();
            std::fs::write(dir.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        let procs = place(joins).join("cgroup.procs");
        std::fs::write(procs, one_more.0.id().to_string()).os(|| "write cgroup.procs")
    };
    cgroup.beside(init.0.id(), born).unwrap();
    assert_eq!(looks, 2);
    assert!(read(&below, "cgroup.procs").lines().any(|pid| pid == one_more.0.id().to_string()));
    // Not without end, and not for other errors.
    for (errno, tries) in [(libc::EBUSY, 2), (libc::ENODEV, 1)] {
        looks = 0;
        let fails = |_| {
            looks += 1;
            Err::<(), _>(Error::os(errno, "clone3"))
        };
        assert_eq!(cgroup.beside(init.0.id(), fails).unwrap_err().errno(), Some(errno));
        assert_eq!(looks, tries);
    }
    drop(one_more);
    // Not where somebody else has moved it.
    let outside = Outsider::new();
    assert_eq!(place(cgroup.joins_beside(outside.0.id()).unwrap()), dir);
    // What is below is the container's all the same.
    assert_eq!(cgroup.procs().unwrap(), [init.0.id()]);
    assert_eq!(cgroup.kill().unwrap(), Killed::Tree);
    until("removed", || cgroup.remove().unwrap());
}
