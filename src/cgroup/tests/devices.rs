//! Device rules, against what the kernel then answers: by v1's list, and by a program in the cgroup2 tree.

use std::ffi::CStr;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{ChildStdin, ChildStdout};

use oci_spec::runtime::LinuxDeviceCgroup;
use rustix::fs::{AtFlags, FileType, makedev, mknodat, unlinkat};

use super::super::device_filter::filter;
use super::super::device_program::device_program;
use super::*;
use crate::sys::bpf::Program;

/// No device has these numbers, so that what is allowed fails with ENXIO, and what is not, before that, with EPERM.
const MAJOR: u32 = 240;

/// Those that are asked for.
const DEVICES: [(char, u32, u32); 4] = [('c', MAJOR, 1), ('c', MAJOR, 2), ('b', MAJOR, 1), ('b', MAJOR + 1, 1)];

/// Which of r, w, m the calling process has of a device.
fn access(dir: &Path, kind: char, major: u32, minor: u32) -> String {
    let typ = if kind == 'b' { FileType::BlockDevice } else { FileType::CharacterDevice };
    let device = makedev(major, minor);
    let path = dir.join(format!("{kind}-{major}-{minor}"));
    let opens = |flags| match open(&path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) {
        Err(Errno::PERM) => false,
        Ok(_) | Err(Errno::NXIO | Errno::NODEV) => true,
        Err(e) => panic!("{}: {e}", path.display()),
    };
    let (read, write) = (opens(OFlags::RDONLY), opens(OFlags::WRONLY));
    assert_eq!(opens(OFlags::RDWR), read && write, "{} for both", path.display());
    let again = path.with_extension("m");
    let make = match mknodat(CWD, &again, typ, Mode::from_raw_mode(0o600), device) {
        Ok(()) => {
            unlinkat(CWD, &again, AtFlags::empty()).unwrap();
            true
        }
        Err(Errno::PERM) => false,
        Err(e) => panic!("mknod {}: {e}", again.display()),
    };
    [(read, 'r'), (write, 'w'), (make, 'm')].into_iter().filter(|(has, _)| *has).map(|(_, letter)| letter).collect()
}

/// Rules that both versions can hold, as "allow type major:minor access", and what is then had of `c 240:1 c 240:2 b 240:1 b 241:1`. Making nodes is
/// in the default rules, which come last, and cannot be taken away.
const CASES: &[(&str, &str)] = &[
    ("", "m m m m"),
    ("+a *:* rwm", "rwm rwm rwm rwm"),
    ("+a *:* rwm,-a *:* rwm", "m m m m"),
    ("+c *:* rwm", "rwm rwm m m"),
    ("+b *:* r", "m m rm rm"),
    ("+c 240:* rw", "rwm rwm m m"),
    ("+c *:1 w", "wm m m m"),
    ("+c 240:1 r", "rm m m m"),
    ("+c 240:1 r,+c 240:1 w", "rwm m m m"),
    ("+c 240:1 rw,-c 240:1 w", "rm m m m"),
    ("+c 240:1 rw,+c 240:2 rw,-c 240:* r", "wm wm m m"),
    ("+c 240:1 rw,+b 240:1 rw,-a 240:1 rwm", "m m m m"),
    ("+a 240:1 r", "rm m rm m"),
    ("+a 240:* rw", "rwm rwm rwm m"),
    ("+a *:1 r", "rm m rm rm"),
    ("+a *:* rw", "rwm rwm rwm rwm"),
    ("+a *:* rwm,-c 240:1 rw", "m rwm rwm rwm"),
    ("+a *:* rwm,-c 240:1 w", "rm rwm rwm rwm"),
    ("+a *:* rwm,-b *:* rw", "rwm rwm m m"),
    ("+a *:* rwm,-b 240:* rw,+b 240:* r", "rwm rwm rm rwm"),
    ("+a *:* rwm,-c 240:1 rw,+c 240:1 rw", "rwm rwm rwm rwm"),
    ("+c 240:1 rw,+a *:* rwm,-a *:* rwm,+b 240:1 r", "m m rm m"),
    // Reading by one rule, writing by another, and both at once then too.
    ("+c 240:* r,+c 240:1 w", "rwm rm m m"),
    ("+c 240:* r,+c *:1 w,+b *:1 r,+b 240:* w", "rwm rm rwm rm"),
];

/// Rules that v1 has no list for: exceptions to exceptions.
const HOLES: &[(&str, &str)] = &[
    ("+c 240:* rw,-c 240:1 w", "rm rwm m m"),
    ("+c *:* rwm,-c 240:1 rw", "m rwm m m"),
    ("+c *:* rwm,-c 240:* rw,+c 240:1 r", "rm m m m"),
    ("+c *:* rw,-c *:1 w,+c 240:* w,-c 240:1 r", "wm rwm m m"),
    ("+a *:* rwm,-c 240:* rw,+c 240:1 r", "rm m rwm rwm"),
    ("+a *:* rwm,-b 240:* rw,+b *:1 r", "rwm rwm rm rwm"),
    ("+a *:* rw,-a 240:* rw,+a *:1 w", "wm m wm rwm"),
    // The default rules come last.
    ("+a *:* rwm,-c 1:* rwm", "rwm rwm rwm rwm"),
];

fn listed(text: &str) -> Vec<LinuxDeviceCgroup> {
    let rule = |rule: &str| {
        let (allow, rest) = rule.split_at(1);
        let words: Vec<&str> = rest.split([' ', ':']).collect();
        let number = |word: &str| word.parse::<i64>().unwrap_or(-1);
        let [kind, major, minor, access] = words[..] else { panic!("{rule}") };
        let (major, minor) = (number(major), number(minor));
        let rule = serde_json::json!({
            "allow": allow == "+", "type": kind, "major": major, "minor": minor, "access": access,
        });
        serde_json::from_value(rule).unwrap()
    };
    text.split(',').filter(|part| !part.is_empty()).map(rule).collect()
}

/// A process in a cgroup, which says what it has of [`DEVICES`]: this test program again, for [`inside`] alone.
struct Inside {
    child: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    nodes: PathBuf,
}

const NODES: &str = "DRAY_TEST_NODES";

impl Inside {
    fn new(cgroup: &Path) -> Self {
        Self::through(&[], cgroup)
    }

    /// As what the program `through` runs.
    fn through(through: &[&str], cgroup: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let nodes = std::env::temp_dir().join(format!("dray-test-nodes-{}-{next}", std::process::id()));
        std::fs::create_dir(&nodes).unwrap();
        let null = ('c', 1, 3);
        for (kind, major, minor) in DEVICES.into_iter().chain([null]) {
            let typ = if kind == 'b' { FileType::BlockDevice } else { FileType::CharacterDevice };
            let path = nodes.join(format!("{kind}-{major}-{minor}"));
            mknodat(CWD, &path, typ, Mode::from_raw_mode(0o600), makedev(major, minor)).unwrap();
        }
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo 0 > \"$1/cgroup.procs\" && shift && exec \"$@\"", "sh"])
            .arg(cgroup)
            .args(through)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "cgroup::tests::devices::inside", "--nocapture", "--test-threads=1"])
            .env(NODES, &nodes)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let asks = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, asks, answers, nodes }
    }

    fn ask(&mut self, what: &str) {
        self.asks.write_all(format!("{what}\n").as_bytes()).unwrap();
    }

    #[track_caller]
    fn answer(&mut self) -> String {
        let lines = self.answers.by_ref().map(|line| line.unwrap());
        // The test program has to say something too.
        lines.filter_map(|line| Some(line.split_once("answer: ")?.1.to_owned())).next().expect("it has panicked")
    }

    #[track_caller]
    fn accesses(&mut self) -> String {
        self.ask("accesses");
        self.answer()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        std::fs::remove_dir_all(&self.nodes).unwrap();
    }
}

/// Not a test, but what [`Inside`] runs.
#[test]
fn inside() {
    let Some(nodes) = std::env::var_os(NODES) else { return };
    let nodes = Path::new(&nodes);
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "accesses" => {
                let accesses = DEVICES.map(|(kind, major, minor)| access(nodes, kind, major, minor));
                println!("answer: {}", accesses.join(" "));
            }
            "filter" => {
                let e = filter(std::io::stdin().as_fd(), &[]).unwrap_err();
                println!("answer: {:?} {:?} {e}", e.kind(), e.errno());
            }
            "go on" => {
                println!("answer: begun");
                let opens = |name| open(nodes.join(name), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty());
                let (mut opened, mut denied) = (0, 0);
                while !nodes.join("stop").exists() {
                    opened += usize::from(opens("c-1-3").is_ok());
                    denied += usize::from(matches!(opens("c-240-1"), Err(Errno::PERM)));
                    opened -= usize::from(opens("c-1-3").is_err());
                }
                println!("answer: {opened} {denied}");
            }
            other => panic!("{other}"),
        }
    }
}

/// A cgroup of the cgroup2 tree alone, whose only bounds are those of a program.
fn unified(scratch: &Scratch) -> (PathBuf, OwnedFd) {
    let dir = scratch.unified("c");
    std::fs::create_dir_all(&dir).unwrap();
    let fd = file::open_dir(CWD, &dir).unwrap();
    (dir, fd)
}

#[test]
fn what_the_rules_say_is_what_v1_answers() {
    let scratch = Scratch::new();
    if scratch.all.version() == Version::V2 {
        return;
    }
    let cgroup = scratch.create();
    let mut inside = Inside::new(&scratch.dir("devices", "c"));
    for (text, expected) in CASES {
        let resources = serde_json::json!({ "devices": listed(text) });
        cgroup.apply(&serde_json::from_value(resources).unwrap()).unwrap();
        assert_eq!(inside.accesses(), *expected, "{text}");
    }
}

#[test]
fn what_the_rules_say_is_what_a_program_answers() {
    let scratch = Scratch::new();
    let (dir, fd) = unified(&scratch);
    let mut inside = Inside::new(&dir);
    assert_eq!(inside.accesses(), "rwm rwm rwm rwm", "without a program");
    for (text, expected) in CASES.iter().chain(HOLES) {
        filter(fd.as_fd(), &listed(text)).unwrap();
        assert_eq!(inside.accesses(), *expected, "{text}");
        assert_eq!(Program::attached(fd.as_fd()).unwrap().len(), 1);
    }
    assert!(HOLES.iter().all(|(text, _)| super::super::devices::device_knobs(&listed(text)).is_err()));
}

#[test]
fn a_program_is_replaced_without_a_moment_that_denies_or_allows_all() {
    let scratch = Scratch::new();
    let (dir, fd) = unified(&scratch);
    let mut inside = Inside::new(&dir);
    let rules = [listed("+b 240:1 r"), listed("+a *:* rwm,-c 240:1 rw")];
    filter(fd.as_fd(), &rules[0]).unwrap();
    inside.ask("go on");
    assert_eq!(inside.answer(), "begun");
    for round in 1..=1000 {
        filter(fd.as_fd(), &rules[round % 2]).unwrap();
    }
    std::fs::write(inside.nodes.join("stop"), "").unwrap();
    let answer = inside.answer();
    let (opened, denied) = answer.split_once(' ').unwrap();
    assert_eq!(opened, denied, "of as many attempts");
    assert!(opened.parse::<usize>().unwrap() > 100, "{answer}");
}

fn ids(fd: &OwnedFd) -> Vec<String> {
    let id = |program: &Program| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd())).unwrap();
        info.lines().find(|line| line.starts_with("prog_id:")).unwrap().to_owned()
    };
    Program::attached(fd.as_fd()).unwrap().iter().map(id).collect()
}

#[test]
fn the_same_rules_again_change_nothing() {
    let scratch = Scratch::new();
    let (_, fd) = unified(&scratch);
    filter(fd.as_fd(), &listed("+c 240:1 rw")).unwrap();
    let before = ids(&fd);
    filter(fd.as_fd(), &listed("+c 240:1 r,+c 240:1 w")).unwrap();
    assert_eq!(ids(&fd), before);
    filter(fd.as_fd(), &listed("+c 240:1 r")).unwrap();
    assert_ne!(ids(&fd), before);
}

#[test]
fn a_program_of_somebody_else_stays_and_counts() {
    const OTHER: &CStr = c"sd_devices";
    let scratch = Scratch::new();
    let (dir, fd) = unified(&scratch);
    let mut inside = Inside::new(&dir);
    let others = Program::load(OTHER, &device_program(&listed("+a *:* rwm,-c 240:2 w")).unwrap()).unwrap();
    others.attach(fd.as_fd()).unwrap();
    let other = ids(&fd);
    for (rules, expected) in
        [("+c 240:* rw", "rwm rm m m"), ("+c 240:* w", "wm m m m"), ("+a *:* rwm", "rwm rm rwm rwm")]
    {
        filter(fd.as_fd(), &listed(rules)).unwrap();
        assert_eq!(inside.accesses(), expected, "{rules}");
        let now = ids(&fd);
        assert_eq!((now.len(), &now[..1]), (2, &other[..]), "{rules}");
    }
}

/// Each of them, and of each kind of rule, in what the kernel's verifier is ready to follow.
#[test]
fn thousands_of_rules_are_one_program() {
    let scratch = Scratch::new();
    let (dir, fd) = unified(&scratch);
    let mut inside = Inside::new(&dir);
    let many = |rule: &dyn Fn(u32) -> String| (1000..4000).map(rule).collect::<Vec<_>>().join(",");
    for (before, others, after, expected) in [
        ("+c 240:1 r", many(&|n| format!("+c {n}:{n} r")), "+c 240:2 w", "rm wm m m"),
        ("+c 240:1 r", many(&|n| format!("+c {}:{n} r", n % 60)), "+c 240:2 w", "rm wm m m"),
        ("+c *:1 r", many(&|n| format!("+c *:{n} r")), "+b *:1 w", "rm m wm wm"),
        ("+c 240:* r", many(&|n| format!("+c {n}:* r")), "+c 240:2 w", "rm rwm m m"),
        ("+a *:* rwm", many(&|n| format!("-a {n}:{n} rw")), "-a 240:* r", "wm wm wm rwm"),
        ("+c 240:* rw", many(&|n| format!("+c *:{n} r")), "-c 240:1 w", "rm rwm m m"),
        (
            "+c *:* r",
            many(&|n| if n % 2 == 0 { format!("+c {n}:1 w") } else { format!("+c *:{n} w") }),
            "",
            "rm rm m m",
        ),
    ] {
        let rules = listed(&[before, &others, after].join(","));
        let size = device_program(&rules).unwrap().len();
        filter(fd.as_fd(), &rules).unwrap_or_else(|e| panic!("{size} instructions: {e}"));
        assert_eq!(inside.accesses(), expected, "{size} instructions");
    }
}

/// A rootless shim gives up its rules by what this says, and names it.
#[test]
fn without_the_right_the_error_says_so() {
    let scratch = Scratch::new();
    let (dir, _) = unified(&scratch);
    let mut inside = Inside::through(&["unshare", "--user", "--map-root-user"], &dir);
    inside.ask("filter");
    let answer = inside.answer();
    assert!(answer.starts_with("FailedPrecondition Some(1) linux.resources.devices: "), "{answer}");
    assert!(answer.contains("CAP_BPF") && answer.contains("BPF_PROG_LOAD"), "{answer}");
}

#[test]
fn what_is_no_cgroup_has_no_program() {
    let root = file::open_dir(CWD, "/").unwrap();
    let e = filter(root.as_fd(), &[]).unwrap_err();
    assert_eq!((e.kind(), e.errno()), (Kind::FailedPrecondition, Some(libc::EBADF)), "{e}");
}

/// A host whose controllers are cgroup2's.
fn v2(scratch: &Scratch) -> Hierarchies {
    Hierarchies { v1: [].into(), unified: scratch.all.unified.clone() }
}

fn only_devices(rules: &str) -> LinuxResources {
    serde_json::from_value(serde_json::json!({ "devices": listed(rules) })).unwrap()
}

#[test]
fn on_cgroup2_all_of_it_is_by_a_program() {
    let scratch = Scratch::new();
    let cgroup = Cgroup::create(&v2(&scratch), &scratch.at("c")).unwrap();
    let (dir, fd) = unified(&scratch);
    cgroup.apply(&LinuxResources::default()).unwrap();
    let mut inside = Inside::new(&dir);
    assert_eq!(inside.accesses(), "m m m m", "without rules too");
    cgroup.update(&only_devices("+c 240:* rw,-c 240:1 w")).unwrap();
    assert_eq!(inside.accesses(), "rm rwm m m");
    let before = ids(&fd);
    for (changes_nothing, kind) in [("", None), ("+c 1:3 x", Some(Kind::InvalidArgument))] {
        assert_eq!(cgroup.update(&only_devices(changes_nothing)).err().map(|e| e.kind()), kind);
        assert_eq!(ids(&fd), before, "{changes_nothing}");
    }
}

#[test]
fn rules_are_looked_at_before_there_is_a_cgroup() {
    let scratch = Scratch::new();
    let v2 = v2(&scratch);
    check(&v2, &only_devices("+c 240:* rw,-c 240:1 w")).unwrap();
    for bad in ["+c 240:1 x", "+p 240:1 r", "+c 4294967296:1 r"] {
        assert_eq!(check(&v2, &only_devices(bad)).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
    }
}
