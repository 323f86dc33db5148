//! process.apparmorProfile, process.selinuxLabel, linux.mountLabel on a host without the module: refused, never left out.
//! What would be written where there is one is seen by the unit tests of init/label.rs.

mod common;

use common::container::{Host, refused};
use common::{block_on, skipped};
use serde_json::json;
use ttrpc::Code;

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

fn has_selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// Proves: process.{apparmorProfile,selinuxLabel}, linux.mountLabel
#[test]
fn labels_of_a_module_that_is_not_there_are_refused() {
    let name = "labels_of_a_module_that_is_not_there_are_refused";
    if has_apparmor() {
        skipped(name, "AppArmor is enabled");
    } else {
        let profile = refused(|bundle| bundle.edit(|spec| spec["process"]["apparmorProfile"] = json!("cri-default")));
        profile
            .names(Code::FAILED_PRECONDITION, &["process.apparmorProfile", "cri-default", "AppArmor is not enabled"]);
    }
    if has_selinux() {
        return skipped(name, "SELinux is enabled");
    }
    let label = "system_u:system_r:container_t:s0";
    let process = refused(|bundle| bundle.edit(|spec| spec["process"]["selinuxLabel"] = json!(label)));
    process.names(Code::FAILED_PRECONDITION, &["process.selinuxLabel", label, "SELinux is not enabled"]);
    let mount = refused(|bundle| bundle.edit(|spec| spec["linux"]["mountLabel"] = json!(label)));
    mount.names(Code::FAILED_PRECONDITION, &["linux.mountLabel", label, "SELinux is not enabled"]);
}

#[test]
fn an_exec_with_such_a_label_is_refused() {
    if has_apparmor() {
        return skipped("an_exec_with_such_a_label_is_refused", "AppArmor is enabled");
    }
    block_on(async {
        let host = Host::new();
        // Empty ones ask for nothing.
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
            spec["process"]["apparmorProfile"] = json!("");
            spec["process"]["selinuxLabel"] = json!("");
            spec["linux"]["mountLabel"] = json!("");
        });
        let container = host.start(&bundle).await;
        let mut process = bundle.process(&["true"]);
        process["apparmorProfile"] = json!("x");
        let refusal = container.exec_refused("a", &process).await;
        refusal.names(Code::FAILED_PRECONDITION, &["process.apparmorProfile", "not enabled"]);
        assert_eq!(container.exec_script("b", "echo lives").await.ok(), "lives\n");
        container.end().await;
    });
}
