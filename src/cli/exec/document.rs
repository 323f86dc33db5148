//! The process that an exec is to be, as a document: the container's own `process` with what the flags say, or what a file
//! says.

use std::path::Path;

use serde_json::{Value, json};

use super::Exec;
use crate::error::{Error, Kind, Os, Result};

/// No document of a process is longer.
const MOST: u64 = 16 << 20;

/// The document of `--process`.
///
/// # Errors
/// That it cannot be read, or is none.
pub fn read(path: &Path) -> Result<Value> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, MOST), &mut text));
    read.os(|| format!("open {}", path.display()))?;
    let mut process = parse(&text, path)?;
    judge(&process)?;
    // Whoever has no terminal says nothing.
    process["terminal"] = (process["terminal"] == json!(true)).into();
    Ok(process)
}

/// The `process` of the specification in `directory`, changed by the flags.
///
/// # Errors
/// For a flag that says nothing that can be.
pub fn of_flags(directory: &Path, flags: &Exec) -> Result<Value> {
    let path = directory.join("config.json");
    let text = std::fs::read(&path).os(|| format!("open {}", path.display()))?;
    let mut process = parse(&text, &path)?["process"].take();
    if !process.is_object() {
        return Err(invalid(format!("{}: it has no process", path.display())));
    }
    apply(&mut process, flags)?;
    judge(&process)?;
    Ok(process)
}

fn parse(text: &[u8], path: &Path) -> Result<Value> {
    serde_json::from_slice(text).map_err(|e| invalid(format!("{}: {e}", path.display())))
}

fn apply(process: &mut Value, flags: &Exec) -> Result<()> {
    let words = flags.args.iter().map(|word| word.to_str().map(Value::from));
    process["args"] = words.collect::<Option<Vec<_>>>().ok_or_else(|| invalid("an argument is not UTF-8"))?.into();
    // Another shell's words: those of the specification's are not the ones to be executed.
    process.as_object_mut().map(|process| process.remove("commandLine"));
    process["terminal"] = flags.tty.into();
    for (key, flag) in
        [("cwd", &flags.cwd), ("apparmorProfile", &flags.apparmor), ("selinuxLabel", &flags.process_label)]
    {
        if let Some(value) = flag.as_deref().filter(|value| !value.is_empty()) {
            process[key] = value.into();
        }
    }
    if flags.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    append(&mut process["env"], &flags.env);
    add_capabilities(process, &flags.cap);
    if let Some(user) = flags.user.as_deref().filter(|user| !user.is_empty()) {
        let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        for (key, id) in [("gid", gid), ("uid", Some(uid))] {
            let Some(id) = id else { continue };
            let number: u32 = id.parse().map_err(|e| invalid(format!("bad {key}: {id:?}: {e}")))?;
            process["user"][key] = number.into();
        }
    }
    for gid in &flags.additional_gids {
        let number = u32::try_from(*gid);
        let number = number.map_err(|_| invalid(format!("additional-gids must be a positive number {gid}")))?;
        append(&mut process["user"]["additionalGids"], &[number]);
    }
    Ok(())
}

fn append<T: Clone + Into<Value>>(list: &mut Value, more: &[T]) {
    if more.is_empty() {
        return;
    }
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(more.iter().cloned().map(Into::into));
    }
}

/// Ambient ones have to be inheritable, which runc leaves as they are (CVE-2022-29162).
fn add_capabilities(process: &mut Value, more: &[String]) {
    for capability in more {
        let inheritable = process["capabilities"]["inheritable"].as_array();
        let ambient = inheritable.is_some_and(|all| all.contains(&json!(capability)));
        for set in ["bounding", "effective", "permitted"].into_iter().chain(ambient.then_some("ambient")) {
            append(&mut process["capabilities"][set], std::slice::from_ref(capability));
        }
    }
}

/// What runc says before it does anything.
fn judge(process: &Value) -> Result<()> {
    let cwd = process["cwd"].as_str().unwrap_or_default();
    if cwd.is_empty() {
        return Err(invalid("Cwd property must not be empty"));
    }
    if !cwd.starts_with('/') {
        return Err(invalid("Cwd must be an absolute path"));
    }
    match process["args"].as_array().is_none_or(Vec::is_empty) {
        true => Err(invalid("args must not be empty")),
        false => Ok(()),
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        exec: Exec,
    }

    fn process(flags: &str) -> Result<Value> {
        let args = std::iter::once("exec").chain(flags.split_whitespace()).chain(["--", "id", "ls", "-t"]);
        let mut process = json!({ "cwd": "/", "args": ["sh"], "env": ["A=1"], "terminal": true, "user": { "uid": 5 },
            "capabilities": { "bounding": ["CAP_KILL"], "inheritable": ["CAP_CHOWN"] } });
        apply(&mut process, &Command::try_parse_from(args).unwrap().exec)?;
        Ok(process)
    }

    #[test]
    fn flags_change_the_containers_process() {
        let plain = process("").unwrap();
        assert_eq!(
            plain,
            json!({ "cwd": "/", "args": ["ls", "-t"], "env": ["A=1"], "terminal": false, "user": { "uid": 5 },
            "capabilities": { "bounding": ["CAP_KILL"], "inheritable": ["CAP_CHOWN"] } })
        );
        let all = process(
            "-t --cwd /tmp -e B=2 --env C -u 7:8 -g 1 --additional-gids 2 --apparmor p --process-label l --no-new-privs \
             -c CAP_CHOWN --cap CAP_FOWNER",
        );
        let both = json!(["CAP_CHOWN", "CAP_FOWNER"]);
        assert_eq!(
            all.unwrap(),
            json!({ "cwd": "/tmp", "args": ["ls", "-t"], "env": ["A=1", "B=2", "C"], "terminal": true,
                "user": { "uid": 7, "gid": 8, "additionalGids": [1, 2] }, "apparmorProfile": "p", "selinuxLabel": "l",
                "noNewPrivileges": true, "capabilities": { "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_FOWNER"],
                    "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"], "effective": both, "permitted": both } })
        );
        for (flags, why) in [("-u a", "bad uid"), ("-u 1:b", "bad gid"), ("-g -1", "must be a positive number")] {
            let error = process(flags).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_process_has_a_directory_and_words() {
        let judged = |process: Value| judge(&process).map_err(|e| e.to_string());
        assert_eq!(judged(json!({ "cwd": "/", "args": ["a"] })), Ok(()));
        assert_eq!(judged(json!({ "args": ["a"] })).unwrap_err(), "Cwd property must not be empty");
        assert_eq!(judged(json!({ "cwd": "a", "args": ["a"] })).unwrap_err(), "Cwd must be an absolute path");
        assert_eq!(judged(json!({ "cwd": "/", "args": [] })).unwrap_err(), "args must not be empty");
    }
}
