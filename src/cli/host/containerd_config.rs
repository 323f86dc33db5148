//! containerd's configuration: the entry by which its CRI plugin knows a runtime, put in and taken out as text.
//!
//! The file is an administrator's, with comments and a layout of its own. So it is parsed to know what it says, and never
//! written from what was parsed: the entry is a block at its end, between two marks, and taking out the block gives back the
//! file byte by byte. What comes of it is parsed again before it is written. A file of its own that is imported would be no
//! safer: before 2.2 containerd takes the section of a plugin from the last file that has one, whole.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Edit, HANDLER, RUNTIME, SHIM};
use crate::error::{Error, Kind, Result};

const BEGIN: &str = "# BEGIN dray: `dray install --uninstall` takes this out";
const END: &str = "# END dray";

/// The first line of a file that was not there before: without it, one that said its version and no more would be taken for one.
const MADE: &str = "# Made by `dray install`, which removes it with --uninstall";

/// The versions of the format: its first, whose plugins have short names; the second, of containerd 1.x; the third, of 2.x,
/// and the fourth, which has the CRI plugin as the third.
const VERSIONS: std::ops::RangeInclusive<i64> = 1..=4;

/// The table of the CRI plugin's runtimes, from `plugins` on.
fn plugin(version: i64) -> &'static str {
    match version {
        1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        _ => "io.containerd.cri.v1.runtime",
    }
}

/// The formats whose tables may have the entry in a file of this version: containerd 2.x reads the CRI plugin's own of its
/// name alone in one of the first, as Docker's packages bring, and takes the others for a file without a runtime.
fn tables(version: i64) -> &'static [i64] {
    match version {
        1 => &[1, 3],
        2 => &[2],
        _ => &[3],
    }
}

/// The entry; with the shim's path where containerd does not look for it there.
pub fn entry(version: i64, runtime_path: Option<&Path>) -> String {
    // As `containerd config default` quotes each.
    let plugin = match version {
        1 => plugin(version).to_owned(),
        2 => format!("\"{}\"", plugin(version)),
        _ => format!("'{}'", plugin(version)),
    };
    let mut text = format!("[plugins.{plugin}.containerd.runtimes.{HANDLER}]\n  runtime_type = \"{RUNTIME}\"\n");
    if let Some(path) = runtime_path {
        text += &format!("  runtime_path = {}\n", string(&path.to_string_lossy()));
    }
    text
}

/// A basic string of TOML.
fn string(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// With what goes before it: the newline ends a last line that had none, and else is an empty line.
fn block(version: i64, runtime_path: Option<&Path>) -> String {
    format!("\n{BEGIN}\n{}{END}\n", entry(version, runtime_path))
}

fn made(version: i64, runtime_path: Option<&Path>) -> String {
    format!("{MADE}\nversion = {version}\n{}", block(version, runtime_path))
}

/// What a file says that matters here.
#[derive(Debug)]
struct Parsed<'t> {
    root: DeTable<'t>,
    version: i64,
}

impl<'t> Parsed<'t> {
    fn new(text: &'t str) -> Result<Self> {
        let root = DeTable::parse(text).map_err(|e| {
            let line =
                e.span().and_then(|span| text.get(..span.start)).map_or(1, |before| 1 + before.matches('\n').count());
            invalid(format!("not TOML: line {line}: {}", e.message().replace('\n', ", ")))
        })?;
        let root = root.into_inner();
        let version = match root.get("version").map(|version| version.get_ref()) {
            None => 1,
            Some(version) => integer(version).ok_or_else(|| invalid("its version is no number"))?,
        };
        // Nobody has given 0 a meaning but the first's.
        let version = version.max(1);
        if !VERSIONS.contains(&version) {
            return Err(invalid(format!("its version is {version}: 1 to {} are known", VERSIONS.end())));
        }
        Ok(Self { root, version })
    }

    fn at<'s>(&'s self, path: &[&str]) -> Option<&'s DeValue<'t>> {
        let (first, rest) = path.split_first()?;
        let first = self.root.get(*first)?.get_ref();
        rest.iter().try_fold(first, |value, name| Some(value.as_table()?.get(*name)?.get_ref()))
    }

    /// The entry, whoever has written it.
    fn entry(&self) -> Option<&DeValue<'t>> {
        let runtimes = |version: &i64| self.at(&["plugins", plugin(*version), "containerd", "runtimes", HANDLER]);
        tables(self.version).iter().find_map(runtimes)
    }

    fn has_our_entry(&self) -> bool {
        let runtime = self.entry().and_then(|entry| entry.as_table()?.get("runtime_type")?.get_ref().as_str());
        runtime == Some(RUNTIME)
    }

    fn strings(&self, name: &str) -> impl Iterator<Item = &str> {
        let all = self.root.get(name).and_then(|all| all.get_ref().as_array()).map(|all| all.iter());
        all.into_iter().flatten().filter_map(|value| value.get_ref().as_str())
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, why)
}

/// The version of the format in which the entry is to be written: that of `text`, but where it is the first, of which a
/// containerd for which new files have the version `format` knows too little. One that is not there yet has that version.
///
/// # Errors
/// `InvalidArgument` for what is no TOML, with its line, or of a version that is not known.
pub fn table(text: Option<&str>, format: u32) -> Result<i64> {
    let format = i64::from(format);
    let version = text.map_or(Ok(format), |text| Parsed::new(text).map(|parsed| parsed.version))?;
    Ok(if version == 1 && format > 2 { format } else { version })
}

/// Whether `text` has our entry, by whoever it was written.
pub fn has_entry(text: &str) -> Result<bool> {
    Parsed::new(text).map(|parsed| parsed.has_our_entry())
}

/// The directory of the `opt` plugin.
pub fn opt(text: &str) -> Option<PathBuf> {
    let parsed = Parsed::new(text).ok()?;
    let plugin = if parsed.version == 1 { "opt" } else { "io.containerd.internal.v1.opt" };
    parsed.at(&["plugins", plugin, "path"])?.as_str().map(PathBuf::from)
}

/// Why an entry in `text`, of the file `path`, may have no effect.
pub fn doubts(path: &Path, text: &str) -> Vec<String> {
    let Ok(parsed) = Parsed::new(text) else { return Vec::new() };
    let mut doubts = Vec::new();
    let disabled = |name: &str| name == "cri" || name == "io.containerd.grpc.v1.cri" || name == plugin(parsed.version);
    if parsed.strings("disabled_plugins").any(disabled) {
        doubts.push("its disabled_plugins have the CRI plugin, which Kubernetes needs".to_owned());
    }
    for import in parsed.strings("imports").flat_map(|import| imported(path, import)) {
        let text = super::replace::read(&import).ok().flatten().unwrap_or_default();
        let has_section = |imported: &Parsed<'_>| imported.at(&["plugins", plugin(imported.version)]).is_some();
        if Parsed::new(&text).is_ok_and(|imported| has_section(&imported)) {
            doubts.push(format!(
                "it imports {}, whose section of the CRI plugin may take the place of this one: say --config {0}",
                import.display()
            ));
        }
    }
    doubts
}

/// The files that an import names: a star may be in the name of a file.
fn imported(parent: &Path, import: &str) -> Vec<PathBuf> {
    let path = parent.parent().unwrap_or(Path::new("/")).join(import);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let Some((start, end)) = name.split_once('*') else { return vec![path] };
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
    let matches = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end))
    };
    let mut files: Vec<_> = files.filter(matches).collect();
    files.sort();
    files
}

/// The file with the entry; `format` is that of one that is not there yet.
///
/// # Errors
/// `InvalidArgument` where the text is no configuration, or cannot be added to.
pub fn with_entry(text: Option<&str>, format: u32, runtime_path: Option<&Path>) -> Result<Edit> {
    let version = table(text, format)?;
    let Some(text) = text else { return Ok(Edit::Write(made(version, runtime_path))) };
    let parsed = Parsed::new(text)?;
    if parsed.has_our_entry() {
        return Ok(Edit::Nothing);
    }
    if parsed.entry().is_some() {
        return Ok(Edit::Leave(format!("its runtime {HANDLER:?} is another one")));
    }
    let new = format!("{text}{}", block(version, runtime_path));
    match Parsed::new(&new) {
        Ok(parsed) if parsed.has_our_entry() => Ok(Edit::Write(new)),
        _ => Err(invalid(
            "its plugins are written in a way that cannot be added to (an inline table?): the entry has to be put there by hand",
        )),
    }
}

/// The file without the entry that [`with_entry`] has put there.
///
/// # Errors
/// `InvalidArgument` where the text is no configuration.
pub fn without_entry(text: Option<&str>) -> Result<Edit> {
    let Some(text) = text else { return Ok(Edit::Nothing) };
    let parsed = Parsed::new(text)?;
    let Some(at) = text.find(&format!("\n{BEGIN}\n")) else {
        return Ok(match parsed.entry() {
            Some(_) => Edit::Leave(format!("its runtime {HANDLER:?} was not put there by `dray install`")),
            None => Edit::Nothing,
        });
    };
    let changed = || Ok(Edit::Leave(format!("what is between `{BEGIN}` and `{END}` has been changed")));
    let path = parsed.entry().and_then(|entry| entry.as_table()?.get("runtime_path")?.get_ref().as_str());
    let path = path.filter(|path| path.ends_with(SHIM)).map(Path::new);
    let mut blocks = tables(parsed.version).iter().map(|version| block(*version, path));
    let Some(rest) = blocks.find_map(|block| text[at..].strip_prefix(&block)) else { return changed() };
    if text == made(parsed.version, path) {
        return Ok(Edit::Remove);
    }
    Ok(Edit::Write(format!("{}{rest}", &text[..at])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 9] = [
        "",
        "# nothing but a comment",
        "version = 2\n",
        "version = 3\n\n[grpc]\n  address = \"/x\" # ours\n\n\n",
        "version = 0x2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = 'x'",
        "disabled_plugins = [\"cri\"]\r\n[plugins.cri]\r\n",
        "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".sandbox_image = \"a\"\n",
        "version = 4\n[[a]]\nb = \"\"\"\n# BEGIN dray\n\"\"\"\n",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes.runc.runtime_type = \"x\"\n",
    ];

    fn written(edit: Edit) -> String {
        match edit {
            Edit::Write(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_put_in_is_there_once_and_comes_out_again() {
        for path in [None, Some(Path::new("/o\"pt/containerd-shim-dray-v2"))] {
            for file in FILES {
                let new = written(with_entry(Some(file), 2, path).unwrap_or_else(|e| panic!("{e}: {file}")));
                assert!(new.starts_with(file) && has_entry(&new).unwrap() && !has_entry(file).unwrap(), "{new}");
                assert_eq!(table(Some(file), 2).unwrap(), table(Some(&new), 2).unwrap());
                assert_eq!(with_entry(Some(&new), 3, None).unwrap(), Edit::Nothing);
                assert_eq!(without_entry(Some(&new)).unwrap(), Edit::Write(file.to_owned()), "{new}");
                assert_eq!(without_entry(Some(file)).unwrap(), Edit::Nothing);
            }
            let made = written(with_entry(None, 3, path).unwrap());
            assert_eq!(table(Some(&made), 2).unwrap(), 3);
            assert_eq!(without_entry(Some(&made)).unwrap(), Edit::Remove);
        }
        assert_eq!(without_entry(None).unwrap(), Edit::Nothing);
    }

    /// containerd 2.x reads its own table in a file of the first format, and not that format's.
    #[test]
    fn a_file_of_the_first_format_has_the_table_of_the_containerd_that_reads_it() {
        let old = "disabled_plugins = [\"cri\"]\n";
        for (format, name) in [(2, "[plugins.cri."), (3, "[plugins.'io.containerd.cri.v1.runtime'.")] {
            let new = written(with_entry(Some(old), format, None).unwrap());
            assert!(new.contains(name), "{new}");
            assert_eq!(without_entry(Some(&new)).unwrap(), Edit::Write(old.into()));
            // By another containerd too.
            assert_eq!(with_entry(Some(&new), 5 - format, None).unwrap(), Edit::Nothing);
        }
    }

    /// What an administrator adds behind the block stays.
    #[test]
    fn what_comes_later_is_kept() {
        let new = written(with_entry(Some("version = 2\n"), 2, None).unwrap());
        let later = format!("{new}[debug]\nlevel = \"info\"\n");
        assert_eq!(
            without_entry(Some(&later)).unwrap(),
            Edit::Write("version = 2\n[debug]\nlevel = \"info\"\n".into())
        );
    }

    #[test]
    fn an_entry_of_somebody_elses_is_left() {
        let plain = entry(2, None);
        let own = format!("version = 2\n{plain}");
        assert_eq!(with_entry(Some(&own), 2, None).unwrap(), Edit::Nothing);
        assert!(matches!(without_entry(Some(&own)).unwrap(), Edit::Leave(_)));
        let other = own.replace(RUNTIME, "io.containerd.runc.v2");
        assert!(matches!(with_entry(Some(&other), 2, None).unwrap(), Edit::Leave(_)));
        let new = written(with_entry(Some("version = 2\n"), 2, None).unwrap());
        for changed in
            [new.replace(END, "  snapshotter = \"x\"\n# END dray"), new.replace(RUNTIME, "other"), new.replace(END, "")]
        {
            assert!(matches!(without_entry(Some(&changed)).unwrap(), Edit::Leave(_)), "{changed}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        for (file, word) in [
            ("version = 2\n[plugins\n", "line 2"),
            ("version = 2\na = 1\na = 2\n", "line 3"),
            ("version = 5\n", "version is 5"),
            ("version = \"2\"\n", "version is no number"),
            ("version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\" = { containerd = { } }\n", "by hand"),
        ] {
            let error = with_entry(Some(file), 2, None).expect_err(file);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(without_entry(Some("[")).is_err());
    }

    #[test]
    fn what_may_undo_the_entry_is_told() {
        let dir = std::env::temp_dir().join(format!("dray-imports.{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("a.toml"), "version = 2\n[debug]\nlevel = 'x'\n").unwrap();
        std::fs::write(dir.join("b.toml"), format!("version = 2\n{}", entry(2, None).replace(HANDLER, "runc")))
            .unwrap();
        let main = dir.join("config");
        let doubts = |text: &str| doubts(&main, text);
        let none = doubts("version = 2\nimports = ['./a.toml', '/nonexistent/*.toml']\n");
        let some = doubts("version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\nimports = ['*.toml']\n");
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(none, [""; 0]);
        assert_eq!(some.len(), 2, "{some:?}");
        assert!(some[0].contains("disabled_plugins") && some[1].contains("/b.toml"), "{some:?}");
    }
}
