//! Security labels: the AppArmor profile and the SELinux context that a process has from its execve on, and the context
//! of a container's own file systems.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Process};
use rustix::fs::{Mode, OFlags, XattrFlags};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::mount_options::MountOptions;
use crate::sys::lsm::Lsm;
use crate::sys::mount::{FileSystem, Mount};
use crate::sys::path::{self, Root};

use super::plan::{MountPlan, Source};
use super::steps::Born;

/// What a process is to be labelled with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    apparmor: Option<String>,
    selinux: Option<String>,
}

/// What one label takes: the files below /proc/PID that it may be written to, of which the first that is there, and the
/// text.
type Write = (&'static [&'static str], String);

impl Labels {
    /// Of a process. A label of a module that is not `enabled` is an error and not a process without it, as with runc.
    ///
    /// # Errors
    /// `FailedPrecondition`, with the field's name.
    pub fn of(process: &Process, enabled: impl Fn(Lsm) -> bool) -> Result<Self> {
        Ok(Self {
            apparmor: asked("process.apparmorProfile", process.apparmor_profile(), Lsm::AppArmor, &enabled)?,
            selinux: asked("process.selinuxLabel", process.selinux_label(), Lsm::SeLinux, &enabled)?,
        })
    }

    /// With the container's for what an exec's own document does not say.
    pub fn or(self, container: &Self) -> Self {
        Self {
            apparmor: self.apparmor.or_else(|| container.apparmor.clone()),
            selinux: self.selinux.or_else(|| container.selinux.clone()),
        }
    }

    fn writes(&self) -> impl Iterator<Item = Write> {
        // Behind another module `attr/exec` is that one's; before Linux 5.8 it is the only one.
        let apparmor = |profile: &String| (["attr/apparmor/exec", "attr/exec"].as_slice(), format!("exec {profile}"));
        let selinux = |label: &String| (["attr/exec"].as_slice(), label.clone());
        self.apparmor.iter().map(apparmor).chain(self.selinux.iter().map(selinux))
    }
}

/// The context of the file systems that are made for a container.
///
/// # Errors
/// As of [`Labels::of`]: the kernel knows no option of that name without SELinux.
pub fn mount_label(linux: &Linux, enabled: impl Fn(Lsm) -> bool) -> Result<Option<String>> {
    asked("linux.mountLabel", linux.mount_label(), Lsm::SeLinux, enabled)
}

fn asked(field: &str, label: &Option<String>, lsm: Lsm, enabled: impl Fn(Lsm) -> bool) -> Result<Option<String>> {
    let Some(label) = label.as_ref().filter(|label| !label.is_empty()) else { return Ok(None) };
    match enabled(lsm) {
        true => Ok(Some(label.clone())),
        false => {
            let text = format!("{field} {label:?}: {} is not enabled on this host", lsm.name());
            Err(Error::new(Kind::FailedPrecondition, text))
        }
    }
}

/// The option by which SELinux labels a whole file system (mount(8), "context").
pub const CONTEXT: &str = "context";

/// Labels what is made for the container alone. Not proc and sysfs, whose labels are the kernel's, nor what is bound, nor
/// the queues of the host's ipc namespace, where the container has that (`host_ipc`).
pub(super) fn label_mount(mount: &mut MountPlan, label: Option<&str>, host_ipc: bool) {
    match mount.source {
        Source::FileSystem { kind: "mqueue", .. } if host_ipc => return,
        Source::FileSystem { kind: "tmpfs" | "devpts" | "mqueue", .. } | Source::Other(..) | Source::CgroupV1(_) => {}
        _ => return,
    }
    // What the mount says itself wins.
    if !mount.options.data.iter().any(|(key, _)| key == CONTEXT) {
        mount.options.data.extend(label.map(|label| (CONTEXT.to_owned(), Some(label.to_owned()))));
    }
}

/// The context that a mount is to have.
pub(super) fn context(options: &MountOptions) -> Option<&str> {
    options.data.iter().find(|(key, _)| key == CONTEXT).and_then(|(_, value)| value.as_deref())
}

/// Labels the root of a mount that takes no context as an option, as runc does.
pub(super) fn label_root(mount: &Mount, label: &str) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, ".", flags, Mode::empty()).os(|| "openat")?;
    rustix::fs::fsetxattr(&root, "security.selinux", label.as_bytes(), XattrFlags::empty())
        .os(|| format!("fsetxattr security.selinux {label:?}"))
}

/// Has the kernel label this process at its execve. The startContainer hooks, which it runs before, run as the container
/// does.
pub fn set(born: &mut Born<'_>) -> Result<()> {
    let labels = &born.plan.process.treatment.labels;
    if *labels == Labels::default() {
        return Ok(());
    }
    let own = PathBuf::from(rustix::process::getpid().as_raw_nonzero().to_string());
    write(&proc()?, &own, labels)
}

/// A procfs on which nothing can be mounted: with a file of the image's in place of the right one the process would have
/// no label (CVE-2019-16884, CVE-2025-52881).
fn proc() -> Result<Root> {
    let private = || {
        let fs = FileSystem::open("proc")?;
        fs.set("subset", Some("pid"))?;
        fs.mount(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC)
    };
    match private() {
        Ok(mount) => Ok(Root::from_fd(mount.into())),
        // In a user namespace where something is mounted on /proc none is to be had that shows it. The container's own will
        // do, if it is one: what is opened in it is opened past everything that is mounted there.
        Err(e) if e.errno() == Some(libc::EPERM) => {
            let root = Root::open(Path::new("/"))?.resolve_no_links(Path::new("proc"))?;
            match path::is_procfs(&root)? && path::stat(&root)?.st_ino == PROC_ROOT_INO {
                true => Ok(Root::from_fd(root)),
                false => Err(Error::new(Kind::InvalidArgument, "the container's /proc is no procfs")),
            }
        }
        Err(e) => Err(e),
    }
}

/// linux/proc_fs.h
const PROC_ROOT_INO: u64 = 1;

fn write(proc: &Root, process: &Path, labels: &Labels) -> Result<()> {
    for (files, text) in labels.writes() {
        let open = |file: &&str| proc.open_beneath(&process.join(file), OFlags::WRONLY);
        let mut opened = open(&files[0]);
        for file in &files[1..] {
            if matches!(&opened, Err(e) if e.errno() == Some(libc::ENOENT)) {
                opened = open(file);
            }
        }
        // In one write: the kernel takes each for a whole label.
        let written = opened.and_then(|file| rustix::io::write(&file, text.as_bytes()).os(|| "write"));
        written.context(|| format!("label {text:?}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    fn process(change: Value) -> Process {
        let mut document = json!({ "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        document.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(document).unwrap()
    }

    fn both() -> Process {
        process(json!({ "apparmorProfile": "cri-default", "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2" }))
    }

    #[test]
    fn a_label_without_its_module_is_refused_by_its_name() {
        for (lsm, other, field) in [
            (Lsm::AppArmor, Lsm::SeLinux, "process.apparmorProfile \"cri-default\": AppArmor is not enabled"),
            (Lsm::SeLinux, Lsm::AppArmor, "process.selinuxLabel \"system_u:"),
        ] {
            let error = Labels::of(&both(), |asked| asked == other).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().starts_with(field), "{lsm:?}: {error}");
        }
        let none = process(json!({ "apparmorProfile": "", "selinuxLabel": "" }));
        assert_eq!(Labels::of(&none, |_| unreachable!()).unwrap(), Labels::default());
        let linux: Linux = serde_json::from_value(json!({ "mountLabel": "a:b:c" })).unwrap();
        assert_eq!(mount_label(&linux, |lsm| lsm == Lsm::SeLinux).unwrap().as_deref(), Some("a:b:c"));
        assert!(mount_label(&linux, |_| false).unwrap_err().to_string().starts_with("linux.mountLabel \"a:b:c\""));
    }

    /// A directory that looks like a procfs of a kernel with both modules, then of one with the old file alone.
    #[test]
    fn labels_are_written_where_the_kernel_takes_them() {
        let proc = std::env::temp_dir().join(format!("dray-label-{}", std::process::id()));
        fs::create_dir_all(proc.join("7/attr/apparmor")).unwrap();
        let read = |file: &str| fs::read_to_string(proc.join("7/attr").join(file)).unwrap();
        let touch = |file: &str| fs::write(proc.join("7/attr").join(file), "").unwrap();
        touch("exec");
        touch("apparmor/exec");
        let root = || Root::open(&proc).unwrap();
        let labels = Labels::of(&both(), |_| true).unwrap();
        write(&root(), Path::new("7"), &labels).unwrap();
        assert_eq!(read("apparmor/exec"), "exec cri-default");
        assert_eq!(read("exec"), "system_u:system_r:container_t:s0:c1,c2");
        fs::remove_dir_all(proc.join("7/attr/apparmor")).unwrap();
        touch("exec");
        let exec = process(json!({ "apparmorProfile": "other" }));
        write(&root(), Path::new("7"), &Labels::of(&exec, |_| true).unwrap()).unwrap();
        assert_eq!(read("exec"), "exec other");
        // Not through a link, which an image could lay.
        fs::rename(proc.join("7/attr/exec"), proc.join("7/attr/elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", proc.join("7/attr/exec")).unwrap();
        let error = write(&root(), Path::new("7"), &Labels::of(&exec, |_| true).unwrap()).unwrap_err();
        assert!(error.errno() == Some(libc::ELOOP) && error.to_string().contains("exec other"), "{error}");
        fs::remove_dir_all(&proc).unwrap();
    }

    /// A procfs that the kernel made: without a security module it has the file, and takes nothing. It takes it of the
    /// thread alone whose file it is, which need not be this one.
    #[test]
    fn the_file_is_found_in_a_procfs_of_our_own() {
        let labels = Labels { selinux: Some("a:b:c".into()), ..Labels::default() };
        let own = std::process::id().to_string();
        let error = write(&proc().unwrap(), Path::new(&own), &labels).unwrap_err();
        assert!(matches!(error.errno(), Some(libc::EINVAL | libc::EACCES)), "{error}");
        assert!(error.to_string().starts_with("label \"a:b:c\": write"), "{error}");
    }

    #[test]
    fn file_systems_of_the_containers_own_are_labelled() {
        let labelled_in = |source: Source, words: &[&str], host_ipc| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let mut mount = MountPlan {
                destination: "/x".into(),
                source,
                options: MountOptions::parse(&words).unwrap(),
                mapped: None,
            };
            label_mount(&mut mount, None, false);
            label_mount(&mut mount, Some("a:b:c1,c2"), host_ipc);
            mount.options.data.into_iter().filter(|(key, _)| key == CONTEXT).map(|(_, value)| value).collect::<Vec<_>>()
        };
        let labelled = |source, words| labelled_in(source, words, false);
        let new = |kind| Source::FileSystem { kind, name: kind.to_owned() };
        let ours = [Some("a:b:c1,c2".to_owned())];
        for kind in ["tmpfs", "devpts", "mqueue"] {
            assert_eq!(labelled(new(kind), &["nosuid"]), ours, "{kind}");
        }
        assert_eq!(labelled(Source::CgroupV1(Vec::new()), &[]), ours);
        assert_eq!(labelled(new("tmpfs"), &["context=other"]), [Some("other".to_owned())]);
        for source in [new("proc"), new("sysfs"), Source::Bind("/y".into())] {
            assert_eq!(labelled(source, &[]), []);
        }
        assert_eq!(labelled_in(new("mqueue"), &[], true), []);
        assert_eq!(labelled_in(new("tmpfs"), &[], true), ours);
    }

    /// An exec that says nothing has the container's: without it, it would have none.
    #[test]
    fn an_exec_is_labelled_as_its_container() {
        let container = Labels::of(&both(), |_| true).unwrap();
        let own = Labels::of(&process(json!({ "apparmorProfile": "own" })), |_| true).unwrap();
        let expected = Labels { apparmor: Some("own".into()), ..container.clone() };
        assert_eq!(own.or(&container), expected);
        assert_eq!(Labels::default().or(&container), container);
    }
}
