//! The text of the specification to begin with, in the order and the layout in which runc writes it: people edit it.

use std::fmt;

use crate::spec::features::OCI_VERSIONS;

/// Who is root of a container that is made without privileges.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// On the host.
    pub uid: u32,
    /// On the host.
    pub gid: u32,
}

/// Which of the variants.
#[derive(Clone, Copy, Debug)]
pub struct Document {
    /// For who has no privileges.
    pub user: Option<User>,
    /// With a cgroup namespace.
    pub cgroup_namespace: bool,
}

const PROCESS: &str = r#"{
	"terminal": true,
	"user": {
		"uid": 0,
		"gid": 0
	},
	"args": [
		"sh"
	],
	"env": [
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TERM=xterm"
	],
	"cwd": "/",
	"capabilities": {
		"bounding": [
			"CAP_AUDIT_WRITE",
			"CAP_KILL",
			"CAP_NET_BIND_SERVICE"
		],
		"effective": [
			"CAP_AUDIT_WRITE",
			"CAP_KILL",
			"CAP_NET_BIND_SERVICE"
		],
		"permitted": [
			"CAP_AUDIT_WRITE",
			"CAP_KILL",
			"CAP_NET_BIND_SERVICE"
		]
	},
	"rlimits": [
		{
			"type": "RLIMIT_NOFILE",
			"hard": 1024,
			"soft": 1024
		}
	],
	"noNewPrivileges": true
}"#;

/// A mount: where, its type, its source, its options.
type Mount = (&'static str, &'static str, &'static str, &'static [&'static str]);

const MOUNTS: [Mount; 7] = [
    ("/proc", "proc", "proc", &[]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

/// sysfs shows a network namespace, and is mounted by who has power over that: the host's, which a container without privileges
/// keeps, is the host's.
const HOSTS_SYS: Mount = ("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]);

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Deny all; the devices that every container has are allowed by the runtime.
const RESOURCES: &str = r#"{
	"devices": [
		{
			"allow": false,
			"access": "rwm"
		}
	]
}"#;

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = object([("path", quoted("rootfs")), ("readonly", "true".into())]);
        let all = object([
            ("ociVersion", quoted(OCI_VERSIONS.1)),
            ("process", PROCESS.into()),
            ("root", root),
            ("hostname", quoted("dray")),
            ("mounts", array(MOUNTS.iter().map(|mount| self.mount(*mount)))),
            ("linux", self.linux()),
        ]);
        f.write_str(&all)
    }
}

impl Document {
    fn mount(&self, mount: Mount) -> String {
        let (destination, kind, source, options) = match mount {
            ("/sys", ..) if self.user.is_some() => HOSTS_SYS,
            mount => mount,
        };
        // A group that is not mapped cannot own anything.
        let unmapped = |option: &str| self.user.is_some() && option.starts_with("gid=");
        let options: Vec<_> = options.iter().filter(|option| !unmapped(option)).map(|option| quoted(option)).collect();
        let fields = [("destination", quoted(destination)), ("type", quoted(kind)), ("source", quoted(source))];
        let options = (!options.is_empty()).then(|| ("options", array(options)));
        object(fields.into_iter().chain(options))
    }

    fn linux(&self) -> String {
        let mapping = |host: u32| {
            let ids = [("containerID", "0".into()), ("hostID", host.to_string()), ("size", "1".into())];
            array([object(ids)])
        };
        let mut fields = match self.user {
            None => vec![("resources", RESOURCES.into())],
            Some(user) => vec![("uidMappings", mapping(user.uid)), ("gidMappings", mapping(user.gid))],
        };
        fields.push(("namespaces", array(self.namespaces().map(|kind| object([("type", quoted(kind))])))));
        fields.push(("maskedPaths", array(MASKED.map(quoted))));
        fields.push(("readonlyPaths", array(READ_ONLY.map(quoted))));
        object(fields)
    }

    fn namespaces(&self) -> impl Iterator<Item = &'static str> + use<> {
        // Without privileges nobody can make a network for it.
        let (network, user) = if self.user.is_some() { (None, Some("user")) } else { (Some("network"), None) };
        let cgroup = self.cgroup_namespace.then_some("cgroup");
        ["pid"].into_iter().chain(network).chain(["ipc", "uts", "mount"]).chain(cgroup).chain(user)
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn object(fields: impl IntoIterator<Item = (&'static str, String)>) -> String {
    block('{', fields.into_iter().map(|(name, value)| format!("\"{name}\": {value}")), '}')
}

fn array(values: impl IntoIterator<Item = String>) -> String {
    block('[', values.into_iter(), ']')
}

/// Each item on lines of its own, one tab further in.
fn block(open: char, items: impl Iterator<Item = String>, close: char) -> String {
    let items: Vec<_> = items.map(|item| format!("\t{}", item.replace('\n', "\n\t"))).collect();
    format!("{open}\n{}\n{close}", items.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::validate::validate;

    /// What is written is a specification that this runtime takes.
    #[test]
    fn every_variant_is_a_specification_that_is_implemented() {
        for user in [None, Some(User { uid: 1000, gid: 1001 })] {
            for cgroup_namespace in [false, true] {
                let text = Document { user, cgroup_namespace }.to_string();
                let spec: oci_spec::runtime::Spec =
                    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
                validate(&spec).unwrap();
                let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap().len();
                assert_eq!(namespaces, 5 + usize::from(cgroup_namespace));
            }
        }
    }
}
