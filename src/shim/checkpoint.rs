//! What containerd asks of a checkpoint, and of a restore: its messages, as the engine's requests.

use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, UnknownValueRef};
use containerd_shim_protos::shim::oci::CheckpointOptions;

use crate::engine::checkpoint::{self, Request};
use crate::engine::criu::Settings;
use crate::engine::criu::wire::CgroupsMode;
use crate::engine::restore;
use crate::error::{Context, Error, Kind, Result};

/// Type names, without the host that some put before them: what containerd sends to its own runtime's name, and Go clients
/// of containerd 1.x to any other. Their fields have the same numbers.
const TYPES: [&str; 2] = ["containerd.runc.v1.CheckpointOptions", "containerd.linux.runc.CheckpointOptions"];

/// A request for a checkpoint.
///
/// # Errors
/// `InvalidArgument` for options of a type or with values that are not known, and without a place for the images.
pub fn request(request: CheckpointTaskRequest) -> Result<Request> {
    let options = decode(request.options.as_ref()).context(|| format!("container {}: checkpoint", request.id))?;
    checkpoint::empty_namespaces(options.empty_namespaces.iter().map(String::as_str))?;
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let invalid = |what: String| Error::new(Kind::InvalidArgument, what);
    let parent = parent_path(&options).and_then(text);
    // containerd reads the images where it has asked for them, whatever the options say.
    let images = text(request.path).or_else(|| text(options.image_path));
    let cgroups = CgroupsMode::of(&options.cgroups_mode);
    Ok(Request {
        id: request.id,
        parent,
        exit: options.exit,
        settings: Settings {
            images: images.ok_or_else(|| invalid("checkpoint: no path for the images".to_owned()))?.into(),
            work: text(options.work_path).map(Into::into),
            open_tcp: options.open_tcp,
            external_unix_sockets: options.external_unix_sockets,
            terminal: options.terminal,
            file_locks: options.file_locks,
            cgroups: cgroups.ok_or_else(|| invalid(format!("checkpoint: cgroups_mode {:?}", options.cgroups_mode)))?,
            ..Settings::default()
        },
        ..Request::default()
    })
}

fn decode(any: Option<&Any>) -> Result<CheckpointOptions> {
    let Some(any) = any.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
        return Ok(CheckpointOptions::default());
    };
    let invalid = |what: String| Error::new(Kind::InvalidArgument, what);
    match any.type_url.rsplit('/').next() {
        Some(name) if TYPES.contains(&name) => {
            CheckpointOptions::parse_from_bytes(&any.value).map_err(|e| invalid(format!("{name}: {e}")))
        }
        _ => Err(invalid(format!("options of type {:?}, not {}", any.type_url, TYPES[0]))),
    }
}

/// `parent_path`, of containerd's later versions, which the protos crate has not.
const PARENT_PATH: u32 = 10;

fn parent_path(options: &CheckpointOptions) -> Option<String> {
    match options.special_fields.unknown_fields().get(PARENT_PATH) {
        Some(UnknownValueRef::LengthDelimited(path)) => Some(String::from_utf8_lossy(path).into_owned()),
        _ => None,
    }
}

/// The message that asks a shim for a checkpoint.
pub fn message(request: Request) -> CheckpointTaskRequest {
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let settings = request.settings;
    let mut options = CheckpointOptions {
        exit: request.exit,
        open_tcp: settings.open_tcp,
        external_unix_sockets: settings.external_unix_sockets,
        terminal: settings.terminal,
        file_locks: settings.file_locks,
        cgroups_mode: settings.cgroups.name().to_owned(),
        work_path: settings.work.map(text).unwrap_or_default(),
        ..CheckpointOptions::default()
    };
    if let Some(parent) = request.parent {
        options.special_fields.mut_unknown_fields().add_length_delimited(PARENT_PATH, parent.into_bytes());
    }
    // Into memory: it does not fail.
    let value = options.write_to_bytes().unwrap_or_default();
    let options = Some(Any { type_url: TYPES[0].to_owned(), value, ..Any::default() }).into();
    CheckpointTaskRequest { id: request.id, path: text(settings.images), options, ..Default::default() }
}

/// A request for a restore, of a Create that names a checkpoint. What the processes may have beside them was allowed, or
/// not, when they were written.
pub fn restore(images: String, work: Option<std::path::PathBuf>) -> Option<restore::Request> {
    (!images.is_empty()).then(|| restore::Request {
        settings: Settings {
            images: images.into(),
            work,
            open_tcp: true,
            external_unix_sockets: true,
            file_locks: true,
            ..Settings::default()
        },
        ..restore::Request::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(options: &CheckpointOptions, name: &str, path: &str) -> Result<Request> {
        let options = Any { type_url: name.into(), value: options.write_to_bytes().unwrap(), ..Any::default() };
        let options = Some(options).into();
        request(CheckpointTaskRequest { id: "one".into(), path: path.into(), options, ..Default::default() })
    }

    #[test]
    fn options_are_read_by_either_name() {
        let mut options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            terminal: true,
            cgroups_mode: "strict".into(),
            image_path: "/options".into(),
            work_path: "/work".into(),
            empty_namespaces: vec!["network".into()],
            ..Default::default()
        };
        options.special_fields.mut_unknown_fields().add_length_delimited(10, b"../before".to_vec());
        for name in [TYPES[0].to_owned(), format!("types.containerd.io/{}", TYPES[1])] {
            let read = with(&options, &name, "/asked").unwrap();
            let settings = read.settings;
            assert_eq!((read.exit, read.parent.as_deref()), (true, Some("../before")));
            assert_eq!((settings.open_tcp, settings.terminal, settings.file_locks), (true, true, false));
            assert_eq!(settings.cgroups, CgroupsMode::Strict);
            assert_eq!((settings.images.to_str(), settings.work.unwrap().to_str()), (Some("/asked"), Some("/work")));
            assert_eq!(with(&options, &name, "").unwrap().settings.images.to_str(), Some("/options"));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let none = CheckpointOptions::default();
        let bad = |options: &CheckpointOptions, name: &str, path: &str, word: &str| {
            let error = with(options, name, path).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(word), "{error}");
        };
        bad(&none, "containerd.runc.v1.Options", "/p", "containerd.runc.v1.Options");
        bad(&none, TYPES[0], "", "no path");
        bad(&CheckpointOptions { cgroups_mode: "odd".into(), ..none.clone() }, TYPES[0], "/p", "odd");
        bad(&CheckpointOptions { empty_namespaces: vec!["ipc".into()], ..none }, TYPES[0], "/p", "ipc");
    }

    #[test]
    fn what_is_asked_of_a_shim_is_what_it_reads() {
        let asked = Request {
            id: "one".into(),
            parent: Some("../before".into()),
            exit: true,
            settings: Settings {
                images: "/images".into(),
                work: Some("/work".into()),
                open_tcp: true,
                file_locks: true,
                cgroups: CgroupsMode::Full,
                ..Settings::default()
            },
            ..Request::default()
        };
        let words = format!("{asked:?}");
        assert_eq!(format!("{:?}", request(message(asked)).unwrap()), words);
    }

    #[test]
    fn a_create_without_a_checkpoint_is_no_restore() {
        assert!(restore(String::new(), None).is_none());
        assert_eq!(restore("/images".into(), None).unwrap().settings.images.to_str(), Some("/images"));
    }
}
