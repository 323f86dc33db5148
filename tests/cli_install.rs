//! `dray install`: the binary, the entries of the daemons' configurations, and that all of it can be undone.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::containerd::version::{V1_6, V1_7, V2_1, Version};
use common::scratch::Scratch;
use serde_json::{Value, json};

const SHIM: &str = "containerd-shim-dray-v2";

/// A directory for the binary, and one for files of configuration.
struct Place {
    scratch: Scratch,
    bin: PathBuf,
}

impl Place {
    fn new() -> Self {
        let scratch = Scratch::new();
        let bin = scratch.dir().join("bin");
        fs::create_dir(&bin).unwrap();
        Self { scratch, bin }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.scratch.dir().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, args: &[&str], configs: &[&Path]) -> Command {
        let mut command = Command::new(common::shim_binary());
        command.arg0("dray").arg("install").arg("--directory").arg(&self.bin).args(args).stdin(Stdio::null());
        for config in configs {
            command.arg("--config").arg(config);
        }
        command
    }

    fn run(&self, args: &[&str], configs: &[&Path]) -> Output {
        self.command(args, configs).output().unwrap()
    }

    /// Its stdout and what it warns of.
    fn ok(&self, args: &[&str], configs: &[&Path]) -> (String, String) {
        let output = self.run(args, configs);
        let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8(text.clone()).unwrap());
        assert!(output.status.success(), "{error}");
        // Where the binary goes is on no containerd's PATH here.
        let known = |line: &&str| !line.ends_with("is not on this containerd's PATH");
        (out, error.lines().filter(known).map(|line| format!("{line}\n")).collect())
    }

    fn fails(&self, args: &[&str], configs: &[&Path]) -> String {
        let output = self.run(args, configs);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    fn has_nothing(&self) -> bool {
        fs::read_dir(&self.bin).unwrap().next().is_none()
    }

    /// The names of all files, hidden ones too, with those of a write that was broken off.
    fn names(&self) -> Vec<String> {
        let all = fs::read_dir(self.scratch.dir()).unwrap();
        let mut names: Vec<_> = all.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Inode, and times of the last changes: of what nobody has touched they stay.
fn identity(path: &Path) -> (u64, i64, i64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.ino(), metadata.mtime_nsec(), metadata.ctime_nsec())
}

const V1: &str = "# of old\n\n[plugins]\n  [plugins.cri]\n    sandbox_image = \"x\" # a comment\n";
const V2: &str = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"";
const V3: &str =
    "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = 'runc' # kept\n";
const DOCKER: &str = "{\n    \"log-driver\": \"local\",\n    \"runtimes\": { \"kata\": { \"runtimeType\": \"io.containerd.kata.v2\" } }\n}\n";

#[test]
fn the_binary_is_replaced_by_a_new_file_and_has_a_link() {
    let place = Place::new();
    let (shim, link) = (place.bin.join(SHIM), place.bin.join("dray"));
    fs::write(&shim, "an older one, which runs").unwrap();
    let older = fs::File::open(&shim).unwrap();
    let config = place.file("config.toml", V2);
    let (said, warned) = place.ok(&[], &[&config]);
    assert!(said.starts_with(&format!("replaced {}\nlinked {}\n", shim.display(), link.display())), "{said}");
    assert_eq!(warned, "");
    // Who runs the older one goes on with that.
    assert_eq!(std::io::read_to_string(&older).unwrap(), "an older one, which runs");
    assert_eq!(fs::read(&shim).unwrap(), fs::read(common::shim_binary()).unwrap());
    assert_eq!(fs::metadata(&shim).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(SHIM));
    let version = Command::new(&link).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("dray version "));
    // Without --write files are left as they are, and it is said what belongs into them.
    assert_eq!(text(&config), V2);
    for word in ["config.toml (--write does it)", "runtime_type = \"io.containerd.dray.v2\"", "kind: RuntimeClass"] {
        assert!(said.contains(word), "{said}");
    }
    // A second time there is nothing to do. By the installed one too.
    let before = [&shim, &link, &config].map(|path| identity(path));
    place.ok(&[], &[&config]);
    let again =
        Command::new(&link).arg("install").arg("--directory").arg(&place.bin).arg("--config").arg(&config).output();
    assert!(again.unwrap().status.success());
    assert_eq!([&shim, &link, &config].map(|path| identity(path)), before);
    let (said, _) = place.ok(&["--uninstall"], &[&config]);
    assert_eq!(said, format!("removed {}\nremoved {}\n", shim.display(), link.display()));
    assert!(place.has_nothing());
    assert_eq!(place.ok(&["--uninstall"], &[&config]), Default::default());
}

#[test]
fn what_is_not_ours_is_neither_replaced_nor_removed() {
    let place = Place::new();
    let (shim, link) = (place.bin.join(SHIM), place.bin.join("dray"));
    let config = place.file("config.toml", V2);
    fs::write(&link, "another program").unwrap();
    assert!(place.fails(&["--write"], &[&config]).contains("/dray is there, and is something else"));
    assert!(!shim.exists());
    assert_eq!(text(&config), V2);
    fs::write(&shim, "another shim").unwrap();
    let (said, warned) = place.ok(&["--uninstall"], &[&config]);
    assert_eq!((&*said, warned.matches("is left as it is").count()), ("", 2), "{warned}");
    assert_eq!((&*text(&link), &*text(&shim)), ("another program", "another shim"));
    fs::remove_file(&link).unwrap();
    symlink("/bin/true", &link).unwrap();
    place.fails(&[], &[&config]);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("/bin/true"));
    let missing =
        Command::new(common::shim_binary()).arg0("dray").args(["install", "--directory", "/nonexistent"]).output();
    assert!(String::from_utf8_lossy(&missing.unwrap().stderr).starts_with("dray: stat /nonexistent: no such file"));
}

/// Each format has its table; everything else of the file stays, and comes back.
#[test]
fn entries_are_added_once_and_taken_out_again() {
    let place = Place::new();
    let files = [("one", V1), ("two.toml", V2), ("three.toml", V3), ("docker.json", DOCKER)];
    let paths = files.map(|(name, text)| place.file(name, text));
    let configs = paths.each_ref().map(PathBuf::as_path);
    place.ok(&["--write"], &configs);
    let tables =
        ["[plugins.cri.", "[plugins.\"io.containerd.grpc.v1.cri\".", "[plugins.'io.containerd.cri.v1.runtime'."];
    for ((path, (_, before)), table) in paths.iter().zip(files).zip(tables) {
        let after = text(path);
        let added = after.strip_prefix(before).unwrap_or_else(|| panic!("{after}"));
        assert!(
            added.contains(&format!("{table}containerd.runtimes.dray]\n  runtime_type = \"io.containerd.dray.v2\"\n")),
            "{added}"
        );
    }
    let docker: Value = serde_json::from_str(&text(configs[3])).unwrap();
    assert_eq!(
        docker["runtimes"],
        json!({ "dray": { "runtimeType": "io.containerd.dray.v2" }, "kata": { "runtimeType": "io.containerd.kata.v2" } })
    );
    assert_eq!(docker["log-driver"], "local");
    let before = configs.map(identity);
    place.ok(&["--write"], &configs);
    assert_eq!(configs.map(identity), before);
    place.ok(&["--uninstall"], &configs);
    for (path, (_, before)) in paths.iter().zip(files) {
        assert_eq!(text(path), before);
    }
    assert_eq!(place.names(), ["bin", "docker.json", "one", "three.toml", "two.toml"]);
}

#[test]
fn a_file_keeps_its_mode_owner_attributes_and_link() {
    let place = Place::new();
    let file = place.file("real.toml", V2);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&file, Some(1234), Some(2345)).unwrap();
    rustix::fs::setxattr(&file, "user.mark", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    let link = place.scratch.dir().join("config.toml");
    symlink("real.toml", &link).unwrap();
    place.ok(&["--write"], &[&link]);
    assert!(text(&file).contains("runtimes.dray") && fs::symlink_metadata(&link).unwrap().is_symlink());
    for _ in 0..2 {
        let metadata = fs::metadata(&file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o640, 1234, 2345));
        let mut mark = [0; 16];
        let length = rustix::fs::getxattr(&file, "user.mark", &mut mark).unwrap();
        assert_eq!(&mark[..length], b"kept");
        place.ok(&["--uninstall"], &[&link]);
    }
    assert_eq!(text(&file), V2);
    // A link that leads nowhere is no place for a new file.
    fs::remove_file(&file).unwrap();
    assert!(place.fails(&["--write"], &[&link]).contains("config.toml: no such file"));
    assert!(!file.exists() && place.has_nothing());
}

#[test]
fn a_file_that_was_made_is_removed_again() {
    let place = Place::new();
    let [containerd, docker, class] = ["etc/containerd/config.toml", "etc/docker/daemon.json", "dray.yaml"]
        .map(|name| place.scratch.dir().join(name));
    let class_flag = ["--runtime-class", class.to_str().unwrap()];
    let (said, _) = place.ok(&[&["--write"][..], &class_flag].concat(), &[&containerd, &docker]);
    assert!(!said.contains("RuntimeClass") && text(&class).contains("\nhandler: dray\n"), "{said}");
    assert!(text(&containerd).contains("\nversion = ") && text(&docker).contains("io.containerd.dray.v2"));
    for path in [&containerd, &docker, &class] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o644);
    }
    // One that others have written to since stays, without what we wrote.
    fs::write(&containerd, text(&containerd) + "[debug]\n").unwrap();
    place.ok(&[&["--uninstall"][..], &class_flag].concat(), &[&containerd, &docker]);
    assert!(text(&containerd).ends_with("version = 2\n[debug]\n"), "{}", text(&containerd));
    assert!(!docker.parent().unwrap().exists() && !class.exists() && place.has_nothing());
}

#[test]
fn an_entry_that_somebody_has_changed_is_left_with_a_warning() {
    let place = Place::new();
    let (config, docker) = (place.file("config.toml", V2), place.file("daemon.json", "{}"));
    let class = place.scratch.dir().join("class.yaml");
    let class_flag = ["--runtime-class", class.to_str().unwrap()];
    place.ok(&[&["--write"][..], &class_flag].concat(), &[&config, &docker]);
    fs::write(&config, text(&config).replace("# END dray", "  snapshotter = \"x\"\n# END dray")).unwrap();
    fs::write(&docker, text(&docker).replace(".v2\"", ".v2\", \"options\": {}")).unwrap();
    fs::write(&class, text(&class) + "overhead: {}\n").unwrap();
    let before = [&config, &docker, &class].map(|path| text(path));
    let (_, warned) = place.ok(&[&["--uninstall"][..], &class_flag].concat(), &[&config, &docker]);
    assert_eq!(warned.matches("is left as it is").count(), 3, "{warned}");
    assert_eq!([&config, &docker, &class].map(|path| text(path)), before);
    assert!(place.has_nothing());
    // Nor is one by our name that leads elsewhere taken over.
    fs::write(&docker, "{\"runtimes\":{\"dray\":{\"path\":\"/x\"}}}").unwrap();
    let (_, warned) = place.ok(&["--write"], &[&docker]);
    assert!(warned.contains("its runtime \"dray\" is another one"), "{warned}");
    assert_eq!(text(&docker), "{\"runtimes\":{\"dray\":{\"path\":\"/x\"}}}");
}

#[test]
fn what_cannot_be_understood_stops_all_before_anything_is_done() {
    let place = Place::new();
    let good = place.file("good.toml", V2);
    let fifo = place.scratch.dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let bad = [
        (place.file("bad.toml", "version = 2\n[plugins\n"), "bad.toml: not TOML: line 2: "),
        (place.file("twice.toml", "version = 2\nroot = 1\nroot = 2\n"), "twice.toml: not TOML: line 3: "),
        (place.file("later.toml", "version = 9\n"), "later.toml: its version is 9"),
        (place.file("inline.toml", "version = 2\nplugins = {}\n"), "has to be put there by hand"),
        (place.file("bad.json", "{\"a\": 1,}\n"), "bad.json: not JSON: "),
        (place.file("empty.json", ""), "empty.json: not JSON: "),
        (place.file("list.json", "[]"), "list.json: not a JSON object"),
        (place.scratch.dir().to_owned(), "not a regular file"),
        (fifo, "fifo: not a regular file"),
    ];
    for (path, word) in &bad {
        for args in [&["--write"][..], &[]] {
            let error = place.fails(args, &[&good, path]);
            assert!(error.starts_with("dray: ") && error.contains(word), "{word}: {error}");
            assert!(place.has_nothing() && text(&good) == V2, "{word}");
        }
    }
    fs::write(&bad[0].0, [b'#', 0xff]).unwrap();
    assert!(place.fails(&["--write"], &[&bad[0].0]).contains("not UTF-8"));
    // What is wrong with it is no reason to keep what is right, but nothing is half undone either.
    fs::write(&bad[0].0, "[").unwrap();
    place.ok(&["--write"], &[&good]);
    place.fails(&["--uninstall"], &[&good, &bad[0].0]);
    assert!(text(&good).contains("runtimes.dray") && place.bin.join(SHIM).exists());
}

/// Killed in the middle of a write, or out of space: the old file is there, whole, and the next call goes on.
#[test]
fn a_write_that_is_broken_off_leaves_the_old_file() {
    let place = Place::new();
    let old = format!("version = 2\n{}", "# a long file\n".repeat(10_000));
    let config = place.file("config.toml", &old);
    place.ok(&[], &[&config]);
    let limited = |trap: &str| {
        let script = format!("{trap} ulimit -f 8; exec -a dray \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(common::shim_binary());
        command.arg("install").arg("--directory").arg(&place.bin).arg("--write").arg("--config").arg(&config);
        command.output().unwrap()
    };
    let killed = limited("");
    assert_eq!(killed.status.signal(), Some(libc::SIGXFSZ), "{killed:?}");
    assert_eq!((text(&config), place.names().len()), (old.clone(), 3), "{:?}", place.names());
    let failed = limited("trap '' XFSZ;");
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("file too large"), "{failed:?}");
    assert_eq!((text(&config), place.names()), (old.clone(), vec!["bin".to_owned(), "config.toml".to_owned()]));
    limited("");
    place.ok(&["--write"], &[&config]);
    assert!(text(&config).starts_with(&old) && text(&config).contains("runtimes.dray"));
    assert_eq!(place.names(), ["bin", "config.toml"]);
}

/// Many at a time: each sees the file before or after another, and one entry comes of it.
#[test]
fn installations_at_a_time_make_one_entry() {
    let place = Place::new();
    let config = place.file("config.toml", V2);
    let all: Vec<_> = (0..8)
        .map(|_| place.command(&["--write"], &[&config]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in all {
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || error.contains("has been changed in the meantime"), "{error}");
    }
    assert_eq!(text(&config).matches("runtimes.dray]").count(), 1);
    assert_eq!(fs::read(place.bin.join(SHIM)).unwrap(), fs::read(common::shim_binary()).unwrap());
    let mut names: Vec<_> = fs::read_dir(&place.bin).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [SHIM, "dray"]);
}

#[test]
fn what_may_undo_the_entry_is_warned_of() {
    let place = Place::new();
    let config = place.file(
        "config.toml",
        &format!("{V2}\n[plugins.'io.containerd.grpc.v1.cri'.registry]\n").replacen(
            '\n',
            "\nimports = ['conf.d/*.toml']\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n",
            1,
        ),
    );
    fs::create_dir(place.scratch.dir().join("conf.d")).unwrap();
    place.file("conf.d/x.toml", V2);
    let (_, warned) = place.ok(&["--write"], &[&config]);
    assert!(
        warned.contains("disabled_plugins have the CRI plugin") && warned.contains("conf.d/x.toml, whose section"),
        "{warned}"
    );
    assert!(text(&config).contains("runtimes.dray]"));
}

/// Without --config: the daemons' own files, those of the daemons that are installed.
#[test]
fn the_daemons_files_are_found() {
    let place = Place::new();
    let dir = place.scratch.dir();
    for name in ["upper", "work", "path"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    for (name, says) in [("containerd", "containerd x 2.1.4 y"), ("dockerd", "Docker version 28.5.2, build x")] {
        let program = place.file(&format!("path/{name}"), &format!("#!/bin/sh\necho '{says}'\n"));
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // An /etc of its own, in which neither is configured, no unit of containerd's, and no process of others.
    let script = "set -e; mount -t overlay -o lowerdir=/etc,upperdir=\"$1/upper\",workdir=\"$1/work\" overlay /etc; \
         rm -rf /etc/containerd /etc/docker; mount --bind /dev/null \"$(readlink -f /lib/systemd/system/containerd.service)\" 2>/dev/null || :; \
         PATH=\"$1/path:$PATH\"; shift; exec -a dray \"$@\"";
    let run = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", script, "bash"]);
        command.arg(dir).arg(common::shim_binary()).arg("install").arg("--directory").arg(&place.bin).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&[]);
    assert!(said.contains("containerd 2.1.4 (not running): to be added to /etc/containerd/config.toml"), "{said}");
    assert!(said.contains("Docker 28.5.2: to be added to /etc/docker/daemon.json"), "{said}");
    // Off its PATH it is named by its path, from 1.7 on.
    assert!(said.contains(&format!("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dray]\n  runtime_type = \"io.containerd.dray.v2\"\n  runtime_path = \"{}/{SHIM}\"\n", place.bin.display())), "{said}");
    let upper = |name: &str| dir.join("upper").join(name);
    assert!(!upper("containerd/config.toml").exists());
    run(&["--write"]);
    assert!(text(&upper("containerd/config.toml")).contains("\nversion = 3\n"));
    assert!(text(&upper("docker/daemon.json")).contains("io.containerd.dray.v2"));
}

/// The containerds themselves read what was written.
fn accepted_by(version: &Version) {
    let name = format!("{}::what_is_written_is_what_it_reads", version.module);
    let bin = match version.bin() {
        Ok(bin) => bin,
        Err(why) => return common::skipped(&name, &why),
    };
    let place = Place::new();
    let containerd = bin.join("containerd");
    let default = Command::new(&containerd).args(["config", "default"]).output().unwrap();
    let default = place.file("default.toml", &String::from_utf8(default.stdout).unwrap());
    // As it says its version itself.
    let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", containerd.display());
    let named = place.file("containerd", &script);
    fs::set_permissions(&named, fs::Permissions::from_mode(0o755)).unwrap();
    let [one, two, made] =
        [place.file("one.toml", V1), place.file("two.toml", V2), place.scratch.dir().join("made.toml")];
    for config in [&default, &one, &two, &made] {
        // Nobody else's containerd runs, and the one that is installed is this one.
        let script = "systemd=$(readlink -f /lib/systemd/system/containerd.service); [ ! -e \"$systemd\" ] || mount --bind /dev/null \"$systemd\"; \
             PATH=\"$1:$PATH\"; shift; exec -a dray \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", script, "bash"]);
        command.arg(place.scratch.dir()).arg(common::shim_binary()).arg("install").arg("--directory").arg(&place.bin);
        let output = command.arg("--write").arg("--config").arg(config).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let dump = Command::new(&containerd).arg("--config").arg(config).args(["config", "dump"]).output().unwrap();
        let dumped = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let at = dumped.find(".containerd.runtimes.dray]").unwrap_or_else(|| panic!("{}: {dumped}", config.display()));
        let table = dumped[at..].split("\n\n").next().unwrap();
        assert!(
            table.contains("runtime_type = 'io.containerd.dray.v2'")
                || table.contains("runtime_type = \"io.containerd.dray.v2\""),
            "{table}"
        );
    }
}

mod containerd_1_6 {
    #[test]
    fn what_is_written_is_what_it_reads() {
        super::accepted_by(&super::V1_6);
    }
}

mod containerd_1_7 {
    #[test]
    fn what_is_written_is_what_it_reads() {
        super::accepted_by(&super::V1_7);
    }
}

mod containerd_2_1 {
    #[test]
    fn what_is_written_is_what_it_reads() {
        super::accepted_by(&super::V2_1);
    }
}
