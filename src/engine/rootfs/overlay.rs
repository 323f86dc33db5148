//! An overlay of any number of layers.
//!
//! mount(2) takes one page of options, which paths of a snapshotter fill with some fifty layers. Beyond, there are two
//! ways: fsconfig(2) takes the layers one by one from Linux 6.8 on ("lowerdir+"); before, the layers' paths are made
//! short by being relative to the directory that most of them have in common (containerd: compactLowerdirOption).
//!
//! Paths are written in three ways. In lowerdir ':' is between layers, in a string of options ',' is between these, and
//! '\' before one of the three takes its meaning; the other directories are unescaped in the same way. Only lowerdir+
//! takes a path as it is.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Context, Error, Kind, Os, Result};
use crate::spec::mount_options::MountOptions;
use crate::sys::mount::{FileSystem, Mount};

/// mount(2) takes one page of data, its final NUL included.
const MAX_DATA: usize = 4095;

/// OVL_MAX_STACK of the kernel's fs/overlayfs.
const MAX_LAYERS: usize = 500;

/// fsconfig(2) takes strings of 255 bytes.
const MAX_STRING: usize = 255;

/// Options whose values are paths, in which a comma is no separator: every element of a request's list is one option.
const PATHS: &[&str] = &["lowerdir", "upperdir", "workdir"];

/// An overlay's options.
#[derive(Debug)]
pub(super) struct Overlay {
    layers: Vec<Layer>,
    /// All but lowerdir, in the order given; paths in them are escaped.
    others: Vec<(String, Option<String>)>,
    /// The whole as mount(2) takes it.
    data: String,
}

/// One lower directory.
#[derive(Debug, PartialEq, Eq)]
struct Layer {
    path: String,
    /// After "::": it holds only what others refer to.
    data_only: bool,
}

impl Overlay {
    /// Of the options of an overlay, out of which lowerdir is taken.
    ///
    /// # Errors
    /// `InvalidArgument` for more layers than an overlay can have.
    pub(super) fn plan(options: &mut MountOptions) -> Result<Self> {
        for (key, value) in &mut options.data {
            if let (true, Some(value)) = (PATHS.contains(&key.as_str()), value) {
                *value = escape_commas(value);
            }
        }
        let data = options.data_string();
        let is_lower = |(key, value): &(String, Option<String>)| key == "lowerdir" && value.is_some();
        // The last one counts, in mount(2) too.
        let lower = options.data.iter().rfind(|option| is_lower(option)).and_then(|(_, value)| value.clone());
        let others = options.data.iter().filter(|option| !is_lower(option)).cloned().collect();
        let layers = split(lower.as_deref().unwrap_or_default());
        if layers.len() > MAX_LAYERS {
            let text = format!("an overlay of {} lower directories: it can have {MAX_LAYERS}", layers.len());
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        Ok(Self { layers, others, data })
    }

    /// Every directory that it is made of.
    pub(super) fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let layers = self.layers.iter().map(|layer| PathBuf::from(&layer.path));
        let others = self.others.iter().filter(|(key, _)| PATHS.contains(&key.as_str()));
        layers.chain(others.filter_map(|(_, value)| Some(unescape(value.as_deref()?).into())))
    }

    /// Whether mount(2) takes it as it is: one system call, instead of one for each layer and option.
    pub(super) fn fits(&self) -> bool {
        self.data.len() <= MAX_DATA
    }

    /// For mount(2).
    pub(super) fn data(&self) -> &str {
        &self.data
    }

    /// The layers' paths, and the other options for mount(2).
    ///
    /// # Errors
    /// `Unimplemented` for layers that hold data alone.
    pub(super) fn parts(&self) -> Result<(Vec<&str>, String)> {
        if self.layers.iter().any(|layer| layer.data_only) {
            return Err(Error::new(Kind::Unimplemented, "data-only layers with uidmap and gidmap are not supported"));
        }
        let options = MountOptions { data: self.others.clone(), ..MountOptions::default() };
        Ok((self.layers.iter().map(|layer| layer.path.as_str()).collect(), options.data_string()))
    }

    /// A detached mount, made of one layer after the other.
    ///
    /// # Errors
    /// One of which [`is_too_old`] is true, where the kernel does not know how.
    pub(super) fn mount(&self, source: &str, options: &MountOptions) -> Result<Mount> {
        let fs = FileSystem::open("overlay").map_err(too_old)?;
        // Before Linux 6.5 overlayfs takes any option, until there is a page of them, and finds in the end that it does
        // not know them.
        let made = self.configure(&fs, source, options).and_then(|()| fs.mount(options.attrs.set));
        made.map_err(|e| if fs.is_of_text() { too_old(e) } else { e })
    }

    fn configure(&self, fs: &FileSystem, source: &str, options: &MountOptions) -> Result<()> {
        for (index, layer) in self.layers.iter().enumerate() {
            let key = if layer.data_only { "datadir+" } else { "lowerdir+" };
            let set = set_path(fs, key, &layer.path, &layer.path);
            // With the first one the kernel says whether it has the option.
            set.map_err(|e| if index == 0 { too_old(e) } else { e })?;
        }
        if !source.is_empty() {
            fs.set("source", Some(source))?;
        }
        for flag in &options.sb_flags {
            fs.set(flag, None)?;
        }
        for (key, value) in &self.others {
            match value {
                Some(value) if PATHS.contains(&key.as_str()) => set_path(fs, key, value, &unescape(value))?,
                value => fs.set(key, value.as_deref())?,
            }
        }
        Ok(())
    }

    /// The directory that layers have in common, and the options for mount(2) with it as the working directory.
    ///
    /// # Errors
    /// `Unimplemented` where they still are more than mount(2) takes.
    pub(super) fn relative(&self) -> Result<(PathBuf, String)> {
        let common = self.common_directory();
        let mut lower = String::new();
        for (index, layer) in self.layers.iter().enumerate() {
            lower.push_str(match (index, layer.data_only) {
                (0, _) => "",
                (_, false) => ":",
                (_, true) => "::",
            });
            let path = Path::new(&layer.path);
            // The directory itself has no path from there, and what is elsewhere keeps its own.
            let path = path.strip_prefix(&common).ok().filter(|path| !path.as_os_str().is_empty()).unwrap_or(path);
            lower.push_str(&escape_commas(&escape(&path.to_string_lossy())));
        }
        let mut options = MountOptions { data: self.others.clone(), ..MountOptions::default() };
        options.data.push(("lowerdir".into(), Some(lower)));
        let data = options.data_string();
        if data.len() > MAX_DATA {
            let text = format!(
                "an overlay of {} lower directories: its options are {} bytes, relative to {} still {}; mount(2) takes \
                 {MAX_DATA}, and more only Linux 6.8 and later",
                self.layers.len(),
                self.data.len(),
                common.display(),
                data.len(),
            );
            return Err(Error::new(Kind::Unimplemented, text));
        }
        Ok((common, data))
    }

    /// A layer that is not there, of which mount(2) says no more than that something is not.
    pub(super) fn missing(&self) -> Option<&str> {
        self.layers.iter().map(|layer| layer.path.as_str()).find(|path| !Path::new(path).exists())
    }

    /// The directory to which paths must be relative to be short: not that of all layers, of which one may be elsewhere.
    fn common_directory(&self) -> PathBuf {
        let mut saved: BTreeMap<&Path, usize> = BTreeMap::new();
        for layer in &self.layers {
            for directory in Path::new(&layer.path).ancestors().skip(1) {
                // Its length with the '/' after it.
                *saved.entry(directory).or_default() += directory.join("").as_os_str().len();
            }
        }
        let best = saved.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(directory, _)| directory);
        best.unwrap_or(Path::new("/")).to_owned()
    }
}

/// Whether the error means that the kernel has no layers one by one: tried otherwise, it may work.
pub(super) fn is_too_old(error: &Error) -> bool {
    error.kind() == Kind::Unimplemented
}

/// ENOSYS and EPERM are a sandbox's without the calls, EINVAL is an overlayfs without the option.
fn too_old(error: Error) -> Error {
    match error.errno() {
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL) => error.with_kind(Kind::Unimplemented),
        _ => error,
    }
}

/// Sets a directory by its path, or where that is too long by a descriptor's.
fn set_path(fs: &FileSystem, key: &str, value: &str, path: &str) -> Result<()> {
    if value.len() <= MAX_STRING {
        return fs.set(key, Some(value));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty()).os(|| format!("open {path}"))?;
    let value = format!("/proc/self/fd/{}", directory.as_raw_fd());
    fs.set(key, Some(&value)).context(|| path.to_owned())
}

/// The layers of lowerdir, unescaped.
fn split(lower: &str) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut data_only = false;
    for field in split_unescaped(lower) {
        if field.is_empty() {
            data_only = true;
        } else {
            layers.push(Layer { path: unescape(field), data_only });
        }
    }
    layers
}

fn split_unescaped(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |letter| {
        let separator = letter == ':' && !escaped;
        escaped = letter == '\\' && !escaped;
        separator
    })
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        plain.push(if letter == '\\' { letters.next().unwrap_or(letter) } else { letter });
    }
    plain
}

fn escape(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:")
}

/// Those that are not yet.
fn escape_commas(value: &str) -> String {
    let mut escaped = false;
    let mut text = String::with_capacity(value.len());
    for letter in value.chars() {
        if letter == ',' && !escaped {
            text.push('\\');
        }
        text.push(letter);
        escaped = letter == '\\' && !escaped;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Overlay {
        Overlay::plan(&mut MountOptions::parse(options).unwrap()).unwrap()
    }

    fn layer(path: &str, data_only: bool) -> Layer {
        Layer { path: path.into(), data_only }
    }

    #[test]
    fn layers_are_between_colons_that_are_not_escaped() {
        let found = overlay(&["lowerdir=/0", "index=off", r"lowerdir=/a\:b:/c\\:/d,e::/f"]);
        let layers = [layer("/a:b", false), layer(r"/c\", false), layer("/d,e", false), layer("/f", true)];
        assert_eq!(found.layers, layers);
        assert_eq!(found.others, [("index".to_string(), Some("off".to_string()))]);
    }

    #[test]
    fn commas_in_paths_are_escaped_once_and_elsewhere_not() {
        let found = overlay(&["userxattr", "upperdir=/a,b", r"workdir=/c\,d\\,e", "lowerdir=/f,g:/h", "x=1,2"]);
        assert_eq!(found.data(), r"userxattr,upperdir=/a\,b,workdir=/c\,d\\\,e,lowerdir=/f\,g:/h,x=1,2");
        assert!(found.fits());
    }

    #[test]
    fn relative_paths_start_at_what_the_layers_have_in_common() {
        for (lower, common, relative) in [
            ("/s/snapshots/1/fs:/s/snapshots/20/fs", "/s/snapshots", "1/fs:20/fs"),
            (r"/s/1/a\:b,c:/s/12::/s/3", "/s", r"1/a\:b\,c:12::3"),
            ("/a:/b", "/", "a:b"),
            ("/a/b:/a", "/a", "b:/a"),
            ("/s/1:/other/busybox:/s/2:/s/3", "/s", "1:/other/busybox:2:3"),
            ("/snapshots/old/1:/snapshots/new/2:/x", "/snapshots", "old/1:new/2:/x"),
            ("/a/b", "/a", "b"),
            ("/ab/x:/a/x", "/ab", "x:/a/x"),
        ] {
            let (directory, data) =
                overlay(&[&format!("lowerdir={lower}"), "upperdir=/u"]).relative().expect("short enough");
            assert_eq!(
                (directory.to_str().unwrap(), data),
                (common, format!("upperdir=/u,lowerdir={relative}")),
                "{lower}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_either_way_is_refused_with_its_numbers() {
        let layers = |count| (0..count).map(|n| format!("/snapshots/{}/{n}", "x".repeat(20))).collect::<Vec<_>>();
        let far: Vec<_> = layers(200).into_iter().enumerate().map(|(n, path)| format!("/{n}{path}")).collect();
        let error = overlay(&[&format!("lowerdir={}", far.join(":"))]).relative().unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented);
        assert!(error.to_string().contains("200 lower") && error.to_string().contains("takes 4095"), "{error}");

        let options = MountOptions::parse([format!("lowerdir={}", layers(501).join(":"))]);
        let error = Overlay::plan(&mut options.unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("501 lower directories: it can have 500"), "{error}");
    }
}
