//! What this version does not implement is refused by its name, through the real Create, and leaves nothing.

use std::fs;

use common::block_on;
use common::container::Host;
use serde_json::{Value, json};
use ttrpc::Code;

/// Some of each kind; spec/validate/refused.rs tests the whole list.
#[test]
fn fields_that_are_not_implemented_are_refused_before_any_effect() {
    for (field, value) in [("process.commandLine", json!("x")), ("process.user.username", json!("x"))] {
        refused_without_effect(&[field], |spec| {
            let pointed = field.split('.').fold(&mut *spec, |at, key| &mut at[key]);
            *pointed = value;
        });
    }
}

#[test]
fn kinds_that_are_not_implemented_are_refused_by_their_place() {
    let mount = json!({"destination": "/x", "source": "/tmp", "options": ["rbind", "iversion"]});
    refused_without_effect(&["mounts[7]", "iversion"], |spec| spec["mounts"].as_array_mut().unwrap().push(mount));
}

/// No cgroup, mount, process or state (`Host::refused`), and the snapshot as it was: nothing was even begun.
fn refused_without_effect(words: &[&str], change: impl FnOnce(&mut Value)) {
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").edit(change);
        host.refused(&bundle).await.names(Code::UNIMPLEMENTED, words);
        let snapshot = host.scratch.dir().join("snapshots/one");
        for dir in ["fs", "work"] {
            // A mounted overlay would have made its work directory.
            assert_eq!(fs::read_dir(snapshot.join(dir)).unwrap().count(), 0, "{words:?}: {dir}");
        }
    });
}
