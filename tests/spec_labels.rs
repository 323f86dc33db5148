//! process.apparmorProfile, process.selinuxLabel, linux.mountLabel: on a host without the module refused, never left out; with
//! AppArmor or SELinux (tests/data/selinux.conf is a policy that will do) they are what the container runs under. What
//! would be written is seen by the unit tests of init/label.rs.

use std::io::Write;
use std::process::{Command, Stdio};

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

/// A profile in the kernel that lets a process do everything but write below /kept; until it is dropped.
struct Profile(String);

impl Profile {
    /// `None`, said loudly, where there is nothing to load one into or with.
    fn load(test: &str, suffix: &str) -> Option<Profile> {
        if !has_apparmor() {
            skipped(test, "AppArmor is not enabled");
            return None;
        }
        let profile = Profile(format!("dray-test-{}-{suffix}", std::process::id()));
        if let Err(e) = profile.parser("--replace") {
            skipped(test, &format!("apparmor_parser, which loads profiles: {e}"));
            return None;
        }
        Some(profile)
    }

    fn parser(&self, action: &str) -> std::io::Result<()> {
        let text = format!(
            "profile {} flags=(attach_disconnected) {{\n file,\n capability,\n network,\n mount,\n signal,\n ptrace,\n \
             change_profile,\n deny /kept/** w,\n}}\n",
            self.0
        );
        let mut parser =
            Command::new("apparmor_parser").arg(action).arg("--skip-cache").stdin(Stdio::piped()).spawn()?;
        parser.stdin.take().expect("piped").write_all(text.as_bytes())?;
        assert!(parser.wait()?.success(), "apparmor_parser {action}:\n{text}");
        Ok(())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove").expect("apparmor_parser --remove");
    }
}

/// What the kernel says a process is under, and what it is let do.
const LOOK: &str =
    "cat /proc/self/attr/current; mkdir -p /kept; echo a 2>/dev/null > /kept/x && echo written || echo denied";

#[test]
fn a_container_and_its_execs_run_under_the_apparmor_profile() {
    let test = "a_container_and_its_execs_run_under_the_apparmor_profile";
    let (Some(first), Some(second)) = (Profile::load(test, "first"), Profile::load(test, "second")) else { return };
    block_on(async {
        let host = Host::new();
        let under = |profile: &str| {
            let profile = profile.to_owned();
            move |spec: &mut serde_json::Value| spec["process"]["apparmorProfile"] = json!(profile)
        };
        // With a user that has no capabilities, and with what a seccomp profile lets do alone, as Docker has it.
        for (uid, new_privileges) in [(0, true), (0, false), (1000, true)] {
            let bundle = host.bundle(&format!("run-{uid}-{new_privileges}")).edit(under(&first.0)).edit(|spec| {
                spec["process"]["user"]["uid"] = json!(uid);
                spec["process"]["noNewPrivileges"] = json!(!new_privileges);
                spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
            });
            let bundle = bundle.script("cat /proc/self/attr/current");
            assert_eq!(host.run(&bundle).await.ok(), format!("{} (enforce)\n", first.0), "{uid} {new_privileges}");
        }
        let enforced = |profile: &Profile| format!("{} (enforce)\ndenied\n", profile.0);
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(under(&first.0));
        let container = host.start(&bundle).await;
        assert_eq!(container.proc("attr/current"), format!("{} (enforce)\n", first.0));
        // An exec that says nothing has the container's, and one that says something has its own.
        assert_eq!(container.exec_script("a", LOOK).await.ok(), enforced(&first));
        let mut process = bundle.process(&["sh", "-c", LOOK]);
        process["apparmorProfile"] = json!(second.0);
        assert_eq!(container.exec("b", &process).await.ok(), enforced(&second));
        process["apparmorProfile"] = json!("unconfined");
        assert_eq!(container.exec("c", &process).await.ok(), "unconfined\nwritten\n");
        process["apparmorProfile"] = json!("dray-test-no-such");
        container.exec_refused("d", &process).await.names(Code::INTERNAL, &["dray-test-no-such"]);
        container.end().await;
        let unknown = host.bundle("two").edit(under("dray-test-no-such"));
        host.refused(&unknown).await.names(Code::INTERNAL, &["dray-test-no-such"]);
    });
}

/// What distributions' policies have for containers (container-selinux).
const CONTAINER: &str = "system_u:system_r:container_t:s0:c1,c2";
const CONTAINER_FILE: &str = "system_u:object_r:container_file_t:s0:c1,c2";

/// Whether the policy that is loaded knows a context (selinuxfs' `context`).
fn knows(context: &str) -> bool {
    std::fs::OpenOptions::new()
        .write(true)
        .open("/sys/fs/selinux/context")
        .is_ok_and(|mut file| file.write_all(context.as_bytes()).is_ok())
}

#[test]
fn a_container_its_execs_and_its_mounts_have_the_selinux_contexts() {
    // Without a policy everything is a context.
    if knows("no:such:context:s0") || ![CONTAINER, CONTAINER_FILE].into_iter().all(knows) {
        let why = "no SELinux policy with container_t and container_file_t is loaded";
        return skipped("a_container_its_execs_and_its_mounts_have_the_selinux_contexts", why);
    }
    block_on(async {
        let host = Host::new();
        let bundle = host.bundle("one").args(&["sleep", "1000"]).edit(|spec| {
            spec["process"]["selinuxLabel"] = json!(CONTAINER);
            spec["linux"]["mountLabel"] = json!(CONTAINER_FILE);
        });
        let container = host.start(&bundle).await;
        // Some kernels end it with a NUL.
        let own = |text: String| text.trim_end_matches(['\0', '\n']).to_owned();
        assert_eq!(own(container.proc("attr/current")), CONTAINER);
        assert_eq!(own(container.exec_script("a", "cat /proc/self/attr/current").await.ok()), CONTAINER);
        let other = CONTAINER.replace("c1,c2", "c0");
        let mut process = bundle.process(&["cat", "/proc/self/attr/current"]);
        process["selinuxLabel"] = json!(other);
        assert_eq!(own(container.exec("b", &process).await.ok()), other);
        let table = container.exec_script("c", "cat /proc/self/mounts").await.ok();
        for made in ["tmpfs /dev ", "devpts /dev/pts ", "shm /dev/shm ", "tmpfs /run "] {
            let labelled =
                |line: &str| line.starts_with(made) && line.contains(&format!("context=\"{CONTAINER_FILE}\""));
            assert!(table.lines().any(labelled), "{made}\n{table}");
        }
        // The queues of its ipc namespace were there before the mount, and have no option.
        let queues = format!("/proc/{}/root/dev/mqueue", container.pid);
        let mut context = vec![0; 256];
        let length = rustix::fs::getxattr(queues.as_str(), "security.selinux", &mut context[..]).expect("getxattr");
        assert_eq!(own(String::from_utf8_lossy(&context[..length]).into_owned()), CONTAINER_FILE);
        process["selinuxLabel"] = json!("system_u:system_r:no_such_t:s0");
        container.exec_refused("d", &process).await.names(Code::INTERNAL, &["no_such_t"]);
        container.end().await;
    });
}
