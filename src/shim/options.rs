//! containerd's runtime options: by what type they come, and what becomes of each.
//!
//! The CRI plugin and `ctr` send `containerd.runc.v1.Options` to a runtime called `io.containerd.runc.v2`, and
//! `runtimeoptions.v1.Options` to any other: a path of a TOML file, or the text of one. The fields have the same numbers
//! and other meanings, so the type is always looked at. For what Go clients of containerd 1.x set one by one (`ctr run` with
//! `--uidmap` says whose the pipes are) a runtime of another name gets `containerd.linux.runc.CreateOptions`.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message, rt};
use containerd_shim_protos::shim::oci;

use crate::engine::options::Options as Container;
use crate::error::{Context, Error, Kind, Os, Result};

use super::toml::{self, Value};

/// What the options ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Of the container.
    pub container: Container,
    /// The cgroup in which the shim itself is to run.
    pub shim_cgroup: Option<PathBuf>,
    /// Where CRIU's log of a restore goes.
    pub criu_work: Option<PathBuf>,
}

/// Type names, without the host that some put before them.
const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";
const LEGACY: &str = "containerd.linux.runc.CreateOptions";

/// The largest file of options that is read.
const MAX_FILE: u64 = 1 << 20;

/// Those of a request; the defaults where it has none.
///
/// # Errors
/// `InvalidArgument` for a type or a value that is not known, `Unimplemented` for what dray does not do: nothing that
/// would make another container is passed over.
pub fn decode(any: Option<&Any>) -> Result<Options> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
        return Ok(Options::default());
    };
    let what = || format!("runtime options of type {:?}", any.type_url);
    let options = match name(any) {
        RUNC => oci::Options::parse_from_bytes(&any.value).map_err(|e| invalid(e.to_string())),
        GENERIC => generic(&any.value),
        LEGACY => legacy(&any.value).map_err(|e| invalid(e.to_string())),
        _ => Err(invalid(format!("not known: {RUNC}, {GENERIC} and {LEGACY} are"))),
    };
    options.and_then(judge).context(what)
}

/// Those among the extensions of a `start`, which may hold anything.
pub fn find(extensions: &[Any]) -> Option<&Any> {
    extensions.iter().find(|any| matches!(name(any), RUNC | GENERIC | LEGACY))
}

fn name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, why)
}

/// What each asks for. The rest changes nothing that a container sees:
/// - `root` is where runc keeps its state; ours is below /run/dray, by namespace and id;
/// - `criu_image_path` is containerd's: what it is of, a Create with a checkpoint, says it itself;
/// - `task_api_address` and `task_api_version` tell containerd, not the shim, to use one that runs already.
fn judge(options: oci::Options) -> Result<Options> {
    if !matches!(options.binary_name.as_str(), "" | "runc" | "crun") {
        return Err(Error::new(
            Kind::Unimplemented,
            format!(
                "BinaryName {:?}: dray runs containers itself, and no other program in its place; for that one set \
                 runtime_type to io.containerd.runc.v2 without a runtime_path, or to its own shim's name",
                options.binary_name
            ),
        ));
    }
    let id = |id: u32| (id != 0).then_some(id);
    Ok(Options {
        container: Container {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            systemd_cgroup: options.systemd_cgroup,
            io_uid: id(options.io_uid),
            io_gid: id(options.io_gid),
        },
        shim_cgroup: (!options.shim_cgroup.is_empty()).then(|| options.shim_cgroup.into()),
        criu_work: (!options.criu_work_path.is_empty()).then(|| options.criu_work_path.into()),
    })
}

/// `runtimeoptions.v1.Options`, of which the protos crate has no type: type_url 1, config_path 2, config_body 3.
fn generic(bytes: &[u8]) -> Result<oci::Options> {
    let (mut path, mut body) = (String::new(), Vec::new());
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut read = || {
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                // The number, and a length (2): 2 << 3 | 2, 3 << 3 | 2.
                18 => path = input.read_string()?,
                26 => body = input.read_bytes()?,
                tag => rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(())
    };
    read().map_err(|e: containerd_shim_protos::protobuf::Error| invalid(e.to_string()))?;
    if !path.is_empty() {
        body = read_file(Path::new(&path))?;
    }
    let text = String::from_utf8(body).map_err(|_| invalid("the TOML text is not UTF-8"))?;
    let mut options = oci::Options::default();
    for (key, value) in toml::parse(&text)? {
        set(&mut options, &key, value)?;
    }
    Ok(options)
}

/// `containerd.linux.runc.CreateOptions`, of which the protos crate has no type either. Its other fields are of a checkpoint.
fn legacy(bytes: &[u8]) -> containerd_shim_protos::protobuf::Result<oci::Options> {
    let mut options = oci::Options::default();
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // The number, and a varint (0) or a length (2).
        match (tag >> 3, tag & 7) {
            (1, 0) => options.no_pivot_root = input.read_bool()?,
            (8, 0) => options.no_new_keyring = input.read_bool()?,
            (9, 2) => options.shim_cgroup = input.read_string()?,
            (10, 0) => options.io_uid = input.read_uint32()?,
            (11, 0) => options.io_gid = input.read_uint32()?,
            (12, 2) => options.criu_work_path = input.read_string()?,
            _ => rt::skip_field_for_tag(tag, &mut input)?,
        }
    }
    Ok(options)
}

/// Sets one, by the name that containerd's configuration has for it.
fn set(options: &mut oci::Options, key: &str, value: Value) -> Result<()> {
    match (key, value) {
        ("NoPivotRoot", Value::Boolean(value)) => options.no_pivot_root = value,
        ("NoNewKeyring", Value::Boolean(value)) => options.no_new_keyring = value,
        ("SystemdCgroup", Value::Boolean(value)) => options.systemd_cgroup = value,
        ("ShimCgroup", Value::String(value)) => options.shim_cgroup = value,
        ("BinaryName", Value::String(value)) => options.binary_name = value,
        ("IoUid", Value::Integer(value)) => options.io_uid = id(key, value)?,
        ("IoGid", Value::Integer(value)) => options.io_gid = id(key, value)?,
        // See `judge`.
        ("CriuWorkPath", Value::String(value)) => options.criu_work_path = value,
        ("Root" | "CriuPath" | "CriuImagePath" | "TaskApiAddress", Value::String(_)) => {}
        ("TaskApiVersion", Value::Integer(_)) => {}
        ("TypeUrl", Value::String(_)) => {}
        (key, value) => return Err(invalid(format!("not an option: {key} = {value:?}"))),
    }
    Ok(())
}

fn id(key: &str, value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| invalid(format!("{key}: not an id: {value}")))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("open {}", path.display());
    if !path.is_absolute() {
        return Err(invalid(format!("config_path {} is not absolute", path.display())));
    }
    // Opening a fifo would wait for a writer, and with it every container of this shim.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.os(what).map_err(|e| e.with_kind(Kind::InvalidArgument))?;
    if !file.metadata().os(what)?.is_file() {
        return Err(invalid(format!("{} is not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).os(|| format!("read {}", path.display()))?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(invalid(format!("{} is larger than {} MiB", path.display(), MAX_FILE >> 20))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.to_owned(), value, ..Default::default() }
    }

    fn runc(options: &oci::Options) -> Result<Options> {
        decode(Some(&any(RUNC, options.write_to_bytes().unwrap())))
    }

    /// A message of strings.
    fn strings(fields: &[(u8, &str)]) -> Vec<u8> {
        let field = |(number, text): &(u8, &str)| {
            let length = [text.len() as u8 | 0x80, (text.len() >> 7) as u8];
            [&[number << 3 | 2], &length[..], text.as_bytes()].concat()
        };
        fields.iter().flat_map(field).collect()
    }

    fn toml(text: &str) -> Result<Options> {
        decode(Some(&any(GENERIC, strings(&[(1, "x"), (3, text)]))))
    }

    #[test]
    fn all_types_say_the_same() {
        let all = oci::Options {
            no_pivot_root: true,
            no_new_keyring: true,
            systemd_cgroup: true,
            shim_cgroup: "/shims".into(),
            io_uid: 7,
            binary_name: "crun".into(),
            root: "/run/somewhere".into(),
            criu_work_path: "/work".into(),
            ..Default::default()
        };
        let wanted = Options {
            container: Container {
                no_pivot_root: true,
                no_new_keyring: true,
                systemd_cgroup: true,
                io_uid: Some(7),
                io_gid: None,
            },
            shim_cgroup: Some("/shims".into()),
            criu_work: Some("/work".into()),
        };
        assert_eq!(runc(&all).unwrap(), wanted);
        let text = "NoPivotRoot = true\nNoNewKeyring = true\nShimCgroup = \"/shims\"\nIoUid = 7\nIoGid = 0\n\
                    BinaryName = \"crun\"\nRoot = \"/r\"\nSystemdCgroup = true\nCriuPath = \"\"\nCriuWorkPath = \"/work\"";
        assert_eq!(toml(text).unwrap(), wanted);
        let mut legacy = vec![1 << 3, 1, 8 << 3, 1, 10 << 3, 7, 12 << 3 | 2, 1, b'x', 9 << 3 | 2, 6];
        legacy.extend(b"/shims");
        // In that type systemd's driver is not chosen.
        let container = Container { systemd_cgroup: false, ..wanted.container };
        assert_eq!(
            decode(Some(&any(LEGACY, legacy))).unwrap(),
            Options { container, criu_work: Some("x".into()), ..wanted.clone() }
        );
        assert_eq!(decode(None).unwrap(), Options::default());
        assert_eq!(decode(Some(&Any::new())).unwrap(), Options::default());
        let with_host = any(&format!("type.googleapis.com/{RUNC}"), all.write_to_bytes().unwrap());
        assert_eq!(decode(Some(&with_host)).unwrap(), wanted);
    }

    #[test]
    fn a_file_is_read_where_one_is_named() {
        let path = std::env::temp_dir().join(format!("dray-options-{}.toml", std::process::id()));
        std::fs::write(&path, "IoGid = 5").unwrap();
        let decoded = decode(Some(&any(GENERIC, strings(&[(2, path.to_str().unwrap()), (3, "IoGid = 6")]))));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(decoded.unwrap().container.io_gid, Some(5));
        for bad in ["/nonexistent", "relative", "/dev"] {
            let error = decode(Some(&any(GENERIC, strings(&[(2, bad)])))).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn what_would_make_another_container_is_refused_by_its_name() {
        let binary = |name: &str| runc(&oci::Options { binary_name: name.into(), ..Default::default() });
        assert!(["", "runc", "crun"].iter().all(|name| binary(name).is_ok()));
        let cases = [
            (binary("/usr/bin/nvidia-container-runtime"), Kind::Unimplemented, "nvidia-container-runtime"),
            (toml("BinaryName = \"kata\""), Kind::Unimplemented, "kata"),
            (toml("SystemdCgroup = \"true\""), Kind::InvalidArgument, "SystemdCgroup"),
            (toml("Fancy = true"), Kind::InvalidArgument, "Fancy"),
            (toml("IoUid = -1"), Kind::InvalidArgument, "IoUid"),
            (decode(Some(&any("runhcs.v1.Options", Vec::new()))), Kind::InvalidArgument, "runhcs.v1.Options"),
            (decode(Some(&any(RUNC, vec![0xff]))), Kind::InvalidArgument, RUNC),
            (decode(Some(&any(GENERIC, vec![26, 200]))), Kind::InvalidArgument, GENERIC),
            (decode(Some(&any(LEGACY, vec![80]))), Kind::InvalidArgument, LEGACY),
        ];
        for (result, kind, word) in cases {
            let error = result.expect_err(word);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
