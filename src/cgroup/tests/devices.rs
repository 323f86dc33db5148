//! Device rules, against what the kernel then answers.

use rustix::fs::{AtFlags, FileType, makedev, mknodat, unlinkat};

use super::*;

/// No device has these numbers, so that what is allowed fails with ENXIO, and what is not, before that, with EPERM.
const MAJOR: u32 = 240;

/// Which of r, w, m the calling thread, which lives in the cgroup, has of a device.
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

/// Rules as "allow type major:minor access", and what is then had of `c 240:1 c 240:2 b 240:1 b 241:1`. Making nodes is
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
];

fn rules(text: &str) -> LinuxResources {
    let rule = |rule: &str| {
        let (allow, rest) = rule.split_at(1);
        let words: Vec<&str> = rest.split([' ', ':']).collect();
        let number = |word: &str| word.parse::<i64>().unwrap_or(-1);
        let [kind, major, minor, access] = words[..] else { panic!("{rule}") };
        serde_json::json!({
            "allow": allow == "+", "type": kind, "major": number(major), "minor": number(minor), "access": access,
        })
    };
    let rules: Vec<_> = text.split(',').filter(|part| !part.is_empty()).map(rule).collect();
    serde_json::from_value(serde_json::json!({ "devices": rules })).unwrap()
}

#[test]
fn what_the_rules_say_is_what_the_kernel_answers() {
    let scratch = Scratch::new();
    let cgroup = scratch.create();
    let dir = std::env::temp_dir().join(format!("dray-test-nodes-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let devices = [('c', MAJOR, 1), ('c', MAJOR, 2), ('b', MAJOR, 1), ('b', MAJOR + 1, 1)];
    for (kind, major, minor) in devices {
        let typ = if kind == 'b' { FileType::BlockDevice } else { FileType::CharacterDevice };
        let path = dir.join(format!("{kind}-{major}-{minor}"));
        mknodat(CWD, &path, typ, Mode::from_raw_mode(0o600), makedev(major, minor)).unwrap();
    }
    // In a v1 hierarchy a thread can be where the other threads of its process are not.
    let tasks = scratch.dir("devices", "c").join("tasks");
    let answers: Vec<String> = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            std::fs::write(&tasks, "0").unwrap();
            let answers = CASES.iter().map(|(text, _)| {
                cgroup.apply(&rules(text)).unwrap();
                devices.map(|(kind, major, minor)| access(&dir, kind, major, minor)).join(" ")
            });
            answers.collect()
        });
        thread.join().unwrap()
    });
    std::fs::remove_dir_all(&dir).unwrap();
    for ((rules, expected), answer) in CASES.iter().zip(answers) {
        assert_eq!(answer, *expected, "{rules}");
    }
}
