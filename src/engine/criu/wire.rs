//! CRIU's messages, as many of them and as much of each as is used here (criu: images/rpc.proto), in protobuf's encoding.
//!
//! They are few and flat; a library for them would be the shim's, which has one for containerd's.

use crate::error::{Error, Kind, Result};

/// What is asked for (`criu_req_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Writes a process tree to images.
    Dump = 1,
    /// Makes a process tree of images.
    Restore = 2,
    /// Writes its memory, and lets it run.
    PreDump = 4,
}

/// The type of a notification, and of the answer to one.
const NOTIFY: u64 = 6;

/// What becomes of the cgroups that the images tell of (`criu_cg_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupsMode {
    /// Nothing.
    Ignore = 0,
    /// Their limits are restored where we made them.
    Soft = 3,
    /// Their limits are always restored.
    Full = 4,
    /// They must be as they were.
    Strict = 5,
    /// As CRIU has it.
    #[default]
    Default = 6,
}

impl CgroupsMode {
    /// By the name that runc has for it; empty for the default.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::Default),
            "soft" => Some(Self::Soft),
            "full" => Some(Self::Full),
            "strict" => Some(Self::Strict),
            "ignore" => Some(Self::Ignore),
            _ => None,
        }
    }
}

impl CgroupsMode {
    /// The same name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::Soft => "soft",
            Self::Full => "full",
            Self::Strict => "strict",
            Self::Ignore => "ignore",
        }
    }
}

/// What is to be done how (`criu_opts`).
#[derive(Debug, Default)]
pub struct Options {
    /// The directory of the images, by its number among our descriptors.
    pub images: i32,
    /// The directory of the log, in the same way.
    pub work: i32,
    /// The root of the process tree, of a dump.
    pub pid: Option<i32>,
    /// It lives on after its dump.
    pub leave_running: bool,
    /// Sockets to processes outside are let be.
    pub ext_unix_sk: bool,
    /// TCP connections are taken along.
    pub tcp_established: bool,
    /// Those that are being made are passed over.
    pub tcp_skip_in_flight: bool,
    /// They are closed.
    pub tcp_close: bool,
    /// Devices are found by their path where the number has changed.
    pub evasive_devices: bool,
    /// The session or the process group is led by a process outside.
    pub shell_job: bool,
    /// File locks are taken along.
    pub file_locks: bool,
    /// How much is logged.
    pub log_level: i32,
    /// Where, in the work directory.
    pub log_file: String,
    /// Memory goes to this server, or is had from this one (address, port).
    pub page_server: Option<(String, u16)>,
    /// The directory that is the tree's root.
    pub root: Option<String>,
    /// The images before these, by a path from them.
    pub parent: Option<String>,
    /// Follow changes of the memory, for images after these.
    pub track_mem: bool,
    /// Parts of earlier images that later ones replace are given back.
    pub auto_dedup: bool,
    /// A file that is open and removed may be given a name beside where it was.
    pub link_remap: bool,
    /// Mounts from outside: by mount point and name at a dump, by name and source at a restore.
    pub mounts: Vec<(String, String)>,
    /// Where each hierarchy (its controllers) has the tree's cgroup.
    pub cgroup_roots: Vec<(String, String)>,
    /// The restored root is our child and not CRIU's.
    pub sibling: bool,
    /// What is to be had from CRIU's own descriptors: name and number.
    pub inherited: Vec<(String, i32)>,
    /// What to do about cgroups.
    pub cgroups_mode: CgroupsMode,
    /// What is not of the tree (criu(8), `--external`).
    pub external: Vec<String>,
    /// Namespaces whose content is not looked at (CLONE_NEW* bits).
    pub empty_ns: u32,
    /// Namespaces to join: kind and path.
    pub joined: Vec<(String, String)>,
    /// The directory of the cgroup to freeze.
    pub freeze_cgroup: Option<String>,
    /// Pages are asked for as they are needed.
    pub lazy_pages: bool,
    /// A file of options, read after these.
    pub config_file: Option<String>,
    /// Another profile of the security module.
    pub lsm_profile: Option<String>,
    /// Another context of mounts.
    pub lsm_mount_context: Option<String>,
}

/// What CRIU says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    kind: u64,
    /// It has been done, or goes well.
    pub success: bool,
    /// The name of a notification (criu(8), `--action-script`).
    pub notification: Option<String>,
    /// The root of the tree that is being restored, or has been.
    pub pid: Option<i32>,
    /// Why it has failed.
    pub errno: Option<i32>,
    /// The same in words.
    pub words: Option<String>,
}

impl Message {
    /// It waits for an answer.
    pub fn is_notification(&self) -> bool {
        self.kind == NOTIFY
    }
}

/// The message that asks for something.
pub fn request(what: Request, options: &Options) -> Vec<u8> {
    let mut request = Writer::default();
    request.number(1, what as i64);
    request.message(2, options.encode());
    request.0
}

/// The answer to a notification.
pub fn notified(success: bool) -> Vec<u8> {
    let mut answer = Writer::default();
    answer.number(1, NOTIFY as i64);
    answer.number(3, i64::from(success));
    answer.0
}

impl Options {
    fn encode(&self) -> Writer {
        let mut to = Writer::default();
        to.number(1, self.images.into());
        self.pid.iter().for_each(|pid| to.number(2, (*pid).into()));
        let flags = [
            (3, self.leave_running),
            (4, self.ext_unix_sk),
            (5, self.tcp_established),
            (6, self.evasive_devices),
            (7, self.shell_job),
            (8, self.file_locks),
            // We are told of what it does, and asked.
            (12, true),
            (15, self.track_mem),
            (16, self.auto_dedup),
            (18, self.link_remap),
            // What versions before the modes know.
            (24, self.cgroups_mode != CgroupsMode::Ignore),
            (26, self.sibling),
            (46, self.tcp_skip_in_flight),
            (48, self.lazy_pages),
            // Masters of terminals are outside.
            (50, true),
            (52, self.tcp_close),
        ];
        flags.into_iter().filter(|(_, set)| *set).for_each(|(field, _)| to.number(field, 1));
        to.number(9, self.log_level.into());
        to.text(10, &self.log_file);
        if let Some((address, port)) = &self.page_server {
            let mut server = Writer::default();
            server.text(1, address);
            server.number(2, (*port).into());
            to.message(11, server);
        }
        to.number(17, self.work.into());
        let texts = [
            (13, &self.root),
            (14, &self.parent),
            (44, &self.freeze_cgroup),
            (51, &self.config_file),
            (53, &self.lsm_profile),
            (63, &self.lsm_mount_context),
        ];
        for (field, text) in texts {
            text.iter().for_each(|text| to.text(field, text));
        }
        for (field, pairs) in [(23, &self.mounts), (25, &self.cgroup_roots), (39, &self.joined)] {
            pairs.iter().for_each(|(key, value)| to.message(field, pair(key, |to| to.text(2, value))));
        }
        for (key, number) in &self.inherited {
            to.message(27, pair(key, |to| to.number(2, (*number).into())));
        }
        to.number(34, self.cgroups_mode as i64);
        self.external.iter().for_each(|external| to.text(37, external));
        to.number(38, self.empty_ns.into());
        to
    }
}

fn pair(key: &str, value: impl FnOnce(&mut Writer)) -> Writer {
    let mut pair = Writer::default();
    pair.text(1, key);
    value(&mut pair);
    pair
}

/// Protobuf's wire types that these messages have.
const VARINT: u64 = 0;
const LENGTH: u64 = 2;

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A negative one has all of its 64 bits, whatever the type of the field.
    fn number(&mut self, field: u64, value: i64) {
        self.varint(field << 3 | VARINT);
        self.varint(value as u64);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: Writer) {
        self.bytes(field, &message.0);
    }
}

/// A field's content.
enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
}

/// Reads what CRIU says (`criu_resp`).
///
/// # Errors
/// `Internal` for what is no such message.
pub fn read(bytes: &[u8]) -> Result<Message> {
    let mut message = Message::default();
    each(bytes, |field, value| {
        match (field, value) {
            (1, Value::Number(kind)) => message.kind = kind,
            (2, Value::Number(success)) => message.success = success != 0,
            (4, Value::Bytes(restored)) => {
                return each(restored, |field, value| {
                    if let (1, Value::Number(pid)) = (field, value) {
                        message.pid = Some(pid as i32);
                    }
                    Some(())
                });
            }
            (5, Value::Bytes(notification)) => {
                return each(notification, |field, value| {
                    match (field, value) {
                        (1, Value::Bytes(name)) => message.notification = Some(text(name)),
                        (2, Value::Number(pid)) => message.pid = Some(pid as i32),
                        _ => {}
                    }
                    Some(())
                });
            }
            (7, Value::Number(errno)) => message.errno = Some(errno as i32),
            (9, Value::Bytes(words)) => message.words = Some(text(words)),
            _ => {}
        }
        Some(())
    })
    .ok_or_else(|| Error::new(Kind::Internal, format!("criu: not a message: {bytes:02x?}")))?;
    Ok(message)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Calls back with each field; `None` where something is not as it must be.
fn each<'m>(mut rest: &'m [u8], mut take: impl FnMut(u64, Value<'m>) -> Option<()>) -> Option<()> {
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let value = match tag & 7 {
            VARINT => Value::Number(varint(&mut rest)?),
            LENGTH => Value::Bytes({
                let length = varint(&mut rest)?.try_into().ok()?;
                cut(&mut rest, length)?
            }),
            // Fixed lengths, of fields that a later version may have.
            1 => cut(&mut rest, 8).map(Value::Bytes)?,
            5 => cut(&mut rest, 4).map(Value::Bytes)?,
            _ => return None,
        };
        take(tag >> 3, value)?;
    }
    Some(())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = *cut(rest, 1)? else { return None };
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn cut<'m>(rest: &mut &'m [u8], length: usize) -> Option<&'m [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// The fields of a message in the order of their numbers: any order is right.
    fn fields(message: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut all = Vec::new();
        each(message, |field, value| {
            let value = match value {
                Value::Number(number) => number.to_be_bytes().to_vec(),
                Value::Bytes(bytes) => bytes.to_vec(),
            };
            all.push((field, value));
            Some(())
        })
        .expect("a message");
        all.sort_by_key(|(field, _)| *field);
        all
    }

    /// Against what Google's encoder makes of CRIU's rpc.proto (3.17) with the same values.
    #[test]
    fn a_request_is_what_protobuf_makes_of_it() {
        let pairs = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        let options = Options {
            images: 300,
            work: 7,
            pid: Some(-1),
            leave_running: true,
            ext_unix_sk: true,
            tcp_established: true,
            tcp_skip_in_flight: true,
            tcp_close: true,
            evasive_devices: true,
            shell_job: true,
            file_locks: true,
            log_level: 4,
            log_file: "restore.log".into(),
            page_server: Some(("::1".into(), 65535)),
            root: Some("/r".into()),
            parent: Some("../p".into()),
            track_mem: true,
            auto_dedup: true,
            link_remap: true,
            mounts: pairs("/a", "/b"),
            cgroup_roots: pairs("cpu,cpuacct", "/x"),
            sibling: true,
            inherited: vec![("pipe:[9]".into(), 1)],
            cgroups_mode: CgroupsMode::Soft,
            external: vec!["file[1a:3]".into(), "net[4]:n".into()],
            empty_ns: 0x4000_0000,
            joined: pairs("ipc", "/i"),
            freeze_cgroup: Some("/f".into()),
            lazy_pages: true,
            config_file: Some("/c".into()),
            lsm_profile: Some("apparmor:p".into()),
            lsm_mount_context: Some("m".into()),
        };
        let meant = bytes(
            "080212d40108ac0210ffffffffffffffffff011801200128013001380140014804520b726573746f72652e6c6f675a090a033a3a3110ff\
             ff0360016a022f7272042e2e2f707801800101880107900101ba01080a022f6112022f62c00101ca01110a0b6370752c6370756163637412022f\
             78d00101da010c0a08706970653a5b395d1001900203aa020a66696c655b31613a335daa02086e65745b345d3a6eb0028080808004ba02\
             090a0369706312022f69e202022f66f002018003019003019a03022f63a00301aa030a61707061726d6f723a70fa03016d",
        );
        let made = fields(&request(Request::Restore, &options));
        let meant = fields(&meant);
        assert_eq!(made[0], meant[0]);
        assert_eq!(fields(&made[1].1), fields(&meant[1].1));
        assert_eq!((made.len(), meant.len()), (2, 2));
    }

    #[test]
    fn what_is_not_set_is_not_sent() {
        let sent = request(Request::Dump, &Options { log_file: "l".into(), ..Options::default() });
        let numbers: Vec<_> = fields(&fields(&sent)[1].1).into_iter().map(|(field, _)| field).collect();
        assert_eq!(numbers, [1, 9, 10, 12, 17, 24, 34, 38, 50]);
    }

    /// By the same encoder.
    #[test]
    fn what_criu_says_is_read() {
        assert_eq!(notified(true), bytes("08061801"));
        let notification = read(&bytes("080610012a120a0c706f73742d726573746f726510f0a204")).unwrap();
        assert!(notification.is_notification());
        assert_eq!((notification.notification.as_deref(), notification.pid), (Some("post-restore"), Some(70000)));
        let restored = read(&bytes("0802100122020805")).unwrap();
        assert_eq!((restored.success, restored.pid, restored.is_notification()), (true, Some(5), false));
        let failed = read(&bytes("080110001a02080138034a026e6f")).unwrap();
        assert_eq!((failed.success, failed.errno, failed.words.as_deref()), (false, Some(3), Some("no")));
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let whole = bytes("080610012a120a0c706f73742d726573746f726510f0a204");
        for end in [1, 3, 5, 7, 10, whole.len() - 1] {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
        assert!(read(&[0x80; 11]).is_err(), "a number without an end");
        assert!(read(&bytes("0b")).is_err(), "a group");
    }
}
