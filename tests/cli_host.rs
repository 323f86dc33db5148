//! What the command line says of itself: its specification to begin with, features, version, completions and manual pages.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::dray::Dray;
use common::scratch::Scratch;
use serde_json::{Value, json};

fn dray(args: &[&str]) -> Command {
    let mut command = Command::new(common::shim_binary());
    command.arg0("dray").args(args).stdin(Stdio::null());
    command
}

fn ok(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{:?}: {error}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn run(args: &[&str]) -> String {
    ok(dray(args).output().expect("dray"))
}

/// A program of this machine, if it has it.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").expect("PATH");
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists())
}

/// What a program says of `text` on its stdin.
fn judged(program: &Path, args: &[&str], text: &str) -> Output {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    let text = text.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("wait");
    let _ = writer.join().expect("writer");
    output
}

fn document(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("config.json")).expect("JSON")
}

const VERBS: [&str; 22] = [
    "create",
    "start",
    "run",
    "exec",
    "kill",
    "delete",
    "state",
    "list",
    "ps",
    "pause",
    "resume",
    "update",
    "events",
    "spec",
    "features",
    "checkpoint",
    "restore",
    "check",
    "trace",
    "install",
    "completions",
    "man",
];

/// What the specification has that runc's has not, and why is said by `dray spec --help`.
fn as_runc_has_it(mut ours: Value, runcs: &Value) -> Value {
    assert_eq!(ours["hostname"], "dray");
    ours["hostname"] = json!("runc");
    assert_eq!(ours["ociVersion"], "1.3.0");
    ours["ociVersion"] = runcs["ociVersion"].clone();
    // None since runc 1.2.
    assert_eq!(ours["process"]["capabilities"].get("ambient"), None);
    if let Some(ambient) = runcs["process"]["capabilities"].get("ambient") {
        ours["process"]["capabilities"]["ambient"] = ambient.clone();
    }
    let masked = ours["linux"]["maskedPaths"].as_array_mut().expect("maskedPaths");
    assert_eq!(masked.pop(), Some(json!("/sys/devices/virtual/powercap")));
    ours
}

#[test]
fn the_specification_to_begin_with_is_runcs() {
    let Some(runc) = program("runc") else {
        return common::skipped("the_specification_to_begin_with_is_runcs", "no runc");
    };
    let scratch = Scratch::new();
    for (name, flags) in [("root", &["spec"][..]), ("rootless", &["spec", "--rootless"])] {
        let dirs = ["ours", "runcs"].map(|whose| scratch.dir().join(format!("{name}-{whose}")));
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        assert_eq!(ok(dray(flags).current_dir(&dirs[0]).output().unwrap()), "");
        ok(Command::new(&runc).args(flags).current_dir(&dirs[1]).output().unwrap());
        let [ours, runcs] = dirs.each_ref().map(|dir| document(&dir.join("config.json")));
        assert_eq!(as_runc_has_it(ours, &runcs), runcs, "{name}");
        // People edit it: the order and the layout are runc's too.
        let lines = dirs.map(|dir| {
            let text = fs::read_to_string(dir.join("config.json")).unwrap();
            let other =
                |line: &&str| ["ociVersion", "hostname", "powercap", "scsi"].iter().any(|word| line.contains(word));
            text.lines().filter(|line| !other(line)).map(str::to_owned).collect::<Vec<_>>()
        });
        let ambient = lines[1].iter().position(|line| line.contains("\"ambient\""));
        let without = |lines: &[String]| match ambient {
            Some(at) => [&lines[..at - 1], &lines[at + 5 - 1..]].concat(),
            None => lines.to_vec(),
        };
        assert_eq!(lines[0], without(&lines[1]), "{name}");
    }
}

#[test]
fn a_specification_that_is_there_is_not_overwritten() {
    let scratch = Scratch::new();
    let file = scratch.dir().join("config.json");
    fs::write(&file, "mine").unwrap();
    for flags in [["spec", "--bundle"], ["spec", "-bundle"], ["spec", "-b"]] {
        let output = dray(&flags).arg(scratch.dir()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*error), (Some(1), "dray: File config.json exists. Remove it first\n"));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    // A link that leads nowhere is there too.
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(scratch.dir().join("elsewhere"), &file).unwrap();
    assert!(!dray(&["spec", "-b"]).arg(scratch.dir()).output().unwrap().status.success());
    assert!(!scratch.dir().join("elsewhere").exists());
    let output = dray(&["spec", "-b", "/nonexistent"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("/nonexistent/config.json: no such file"), "{error}");
}

#[test]
fn a_rootless_specification_is_for_its_user() {
    let scratch = Scratch::new();
    fs::set_permissions(scratch.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = dray(&["spec", "--rootless", "-b"]);
    command.arg(scratch.dir()).uid(1234).gid(2345);
    ok(command.output().unwrap());
    let spec = document(&scratch.dir().join("config.json"));
    let mapping = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 1 }]);
    assert_eq!((&spec["linux"]["uidMappings"], &spec["linux"]["gidMappings"]), (&mapping(1234), &mapping(2345)));
}

/// The features of `dray features` are those that containerd is told, and have runc's members.
#[test]
fn features_are_the_specifications_document() {
    let text = run(&["features"]);
    assert!(text.starts_with("{\n    \"") && text.ends_with("}\n"), "{text}");
    let ours: Value = serde_json::from_str(&text).unwrap();
    let info = Command::new(common::shim_binary()).arg("-info").stdin(Stdio::null()).output().unwrap();
    let info = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(info.contains(&ours.to_string()), "{info}");
    assert_eq!(ours["potentiallyUnsafeConfigAnnotations"], json!(["org.systemd.property."]));
    let Some(runc) = program("runc") else {
        return common::skipped("features_are_the_specifications_document", "no runc");
    };
    let runcs: Value = serde_json::from_str(&ok(Command::new(runc).arg("features").output().unwrap())).unwrap();
    for list in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/archs",
    ] {
        let all = |document: &Value| -> Vec<Value> { document.pointer(list).unwrap().as_array().unwrap().clone() };
        // `iversion` is refused, and the others are options of the file systems that have them, not of all.
        let other = ["iversion", "acl", "noacl"].map(Value::from);
        let lacks = |word: &Value| !all(&ours).contains(word) && !other.contains(word);
        let lacks: Vec<_> = all(&runcs).into_iter().filter(lacks).collect();
        assert_eq!(lacks, [Value::Null; 0], "{list}");
    }
}

#[test]
fn the_version_is_told_as_runc_tells_it() {
    for flag in ["--version", "-v", "-version"] {
        let text = run(&[flag]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("dray version {}", env!("CARGO_PKG_VERSION")));
        assert_eq!(lines[1], "spec: 1.3.0");
        let version = lines[2].strip_prefix("libseccomp: ").expect("libseccomp");
        assert!(version.split('.').count() == 3 && version.starts_with("2."), "{version}");
        assert_eq!(lines.len(), 3);
    }
}

/// Every shell that is here takes what is made for it; and bash, asked, completes by it.
#[test]
fn completions_are_what_the_shells_take() {
    for (shell, program_name, args) in [
        ("bash", "bash", &["-n"][..]),
        ("zsh", "zsh", &["-n"]),
        ("fish", "fish", &["--no-execute"]),
        ("elvish", "elvish", &["-compileonly", "/dev/stdin"]),
        ("powershell", "pwsh", &["-NoProfile", "-Command", "[ScriptBlock]::Create($input)"]),
    ] {
        let text = run(&["completions", shell]);
        assert!(VERBS.iter().all(|verb| text.contains(verb)) && text.contains("log-format"), "{shell}");
        match program(program_name) {
            Some(program) => {
                let output = judged(&program, args, &text);
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success() && error.is_empty(), "{shell}: {error}");
            }
            None => common::skipped("completions_are_what_the_shells_take", &format!("no {program_name}")),
        }
    }
    let ask = "COMP_WORDS=(dray comp); COMP_CWORD=1; _dray dray comp dray; echo \"${COMPREPLY[@]}\"";
    let asked = judged(&program("bash").expect("bash"), &[], &format!("{}\n{ask}\n", run(&["completions", "bash"])));
    assert_eq!(ok(asked).trim(), "completions");
    let unknown = dray(&["completions", "cmd"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).starts_with("dray: invalid value 'cmd'"));
}

/// One page a verb, of which groff has nothing to complain.
#[test]
fn manual_pages_are_set_without_a_warning() {
    let scratch = Scratch::new();
    let dir = scratch.dir().join("man8");
    let missing = dray(&["man", "--directory"]).arg(&dir).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    fs::create_dir(&dir).unwrap();
    ok(dray(&["man", "--directory"]).arg(&dir).output().unwrap());
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut wanted: Vec<_> = VERBS.iter().map(|verb| format!("dray-{verb}.8")).chain(["dray.8".to_owned()]).collect();
    wanted.sort();
    assert_eq!(names, wanted);
    for name in names {
        let page = fs::read_to_string(dir.join(&name)).unwrap();
        let title = name.strip_suffix(".8").unwrap();
        assert!(
            page.contains(&format!(".TH {} 8 ", title.to_uppercase().replace('-', "\\-")))
                || page.contains(&format!(".TH {} 8 ", title.to_uppercase())),
            "{page}"
        );
        assert_eq!(run(&[&["man"], &title.strip_prefix("dray-").map_or(vec![], |verb| vec![verb])[..]].concat()), page);
        let Some(groff) = program("groff") else {
            return common::skipped("manual_pages_are_set_without_a_warning", "no groff");
        };
        let set = judged(&groff, &["-Kutf8", "-man", "-Tutf8", "-ww", "-rLL=100n", "-P-cbou"], &page);
        // Both margins are straight: there may be more than one space between words.
        let text = String::from_utf8_lossy(&set.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(set.status.success() && set.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&set.stderr));
        assert!(
            text.contains("SYNOPSIS") && !text.contains("EXTRA") && text.contains(&title.replace("dray-", "dray ")),
            "{text}"
        );
    }
    assert_eq!(dray(&["man", "nothing"]).output().unwrap().status.code(), Some(1));
}

#[test]
fn a_reader_that_goes_away_is_an_error_and_no_panic() {
    for args in [&["features"][..], &["completions", "bash"], &["man"], &["check"], &["check", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = dray(args).stdout(writer).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*error), (Some(1), "dray: write stdout: broken pipe\n"), "{args:?}");
    }
}

/// What is written is run, as it is: with a terminal, and nothing but a root file system added.
#[test]
fn the_specification_to_begin_with_runs() {
    let Some(script) = program("script") else {
        return common::skipped("the_specification_to_begin_with_runs", "no script(1), which gives it a terminal");
    };
    let dray = Dray::new();
    let bundle = dray.bundle("web");
    fs::remove_file(bundle.dir().join("config.json")).unwrap();
    ok(dray.command(&["spec"]).current_dir(bundle.dir()).output().unwrap());
    let binary = dray.scratch().dir().join("dray");
    let line =
        format!("cd {} && {} --root {} run web", bundle.dir().display(), binary.display(), dray.root().display());
    let said = judged(
        &script,
        &["-qec", &line, "/dev/null"],
        "echo of $(hostname) $((6 * 7)); tty; mount | grep -c cgroup; exit 3\n",
    );
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(3), "{text}");
    assert!(text.contains("of dray 42") && text.contains("/dev/pts/0") && !dray.state_dir("web").exists(), "{text}");
}
