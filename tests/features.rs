//! The proof that every feature has a test: what the program says that it implements (`dray::spec::implemented`, of which
//! the features document is a part) and what the tests say that they prove are the same list.
//!
//! A test that looks at the effect of a field from inside a container says so right above itself:
//!
//! ```text
//! /// Proves: root.readonly, mounts.options={ro,rw}
//! #[test]
//! ```
//!
//! in one line or several. `a{b,c}d` stands for `abd, acd`. Nothing stands for names that are not written out: a new
//! option, operator or field is to be missed here until there is a test of it.
//!
//! And the tests that README's tables name are tests that there are.
//!
//! DRAY_TESTS names another directory with tests (`scripts/check --self-test`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use dray::init::seccomp::abilities;
use dray::spec::features::features;
use dray::spec::implemented::names;

/// The name with which a line of a test's comment begins.
const PROVES: &str = "Proves:";

/// What is wrong with the list `implemented`, by the tests in `files` (name and text): one line for each thing.
fn faults(implemented: &BTreeSet<String>, files: &[(String, String)]) -> Vec<String> {
    let mut proved: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    for (file, text) in files {
        for claim in claims(text) {
            match claim {
                Ok((line, name)) => drop(proved.insert(name, format!("{file}:{line}"))),
                Err((line, why)) => faults.push(format!("{file}:{line}: {why}")),
            }
        }
    }
    let unknown = proved.iter().filter(|(name, _)| !implemented.contains(*name));
    faults.extend(unknown.map(|(name, place)| format!("{place}: {name} is nothing that is implemented")));
    let missing = implemented.iter().filter(|name| !proved.contains_key(*name));
    faults.extend(missing.map(|name| format!("{name} is implemented, and no test proves it")));
    faults
}

/// The line of a claim with the name that it claims to prove, or why it is none.
type Claim = Result<(usize, String), (usize, String)>;

fn claims(text: &str) -> Vec<Claim> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mut claims = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(list) = line.strip_prefix("///").and_then(|text| text.trim().strip_prefix(PROVES)) else { continue };
        let number = index + 1;
        match expand(list) {
            _ if !is_of_a_test(&lines[number..]) => {
                claims.push(Err((number, "stands above no test that is always run".to_owned())));
            }
            Some(names) => claims.extend(names.into_iter().map(|name| Ok((number, name)))),
            None => claims.push(Err((number, format!("is no list of names: {}", list.trim())))),
        }
    }
    claims
}

/// Whether what follows a comment's line is the rest of the comment, and a test that is not ignored.
fn is_of_a_test(rest: &[&str]) -> bool {
    let end = rest.iter().position(|line| !line.starts_with("///") && !line.starts_with("#["));
    let (above, below) = rest.split_at(end.unwrap_or(rest.len()));
    let attributes: Vec<_> = above.iter().filter(|line| line.starts_with("#[")).collect();
    let is_fn = below.first().is_some_and(|line| line.starts_with("fn ") || line.starts_with("pub fn "));
    is_fn && attributes.contains(&&"#[test]") && !attributes.iter().any(|line| line.starts_with("#[ignore"))
}

/// The names of a list, braces written out; `None` for what is none.
fn expand(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        // The next comma that is outside of braces.
        let mut inside = false;
        let end = rest.find(|c| {
            inside = if inside { c != '}' } else { c == '{' };
            c == ',' && !inside
        });
        let (item, next) = end.map_or((rest, ""), |end| (&rest[..end], &rest[end + 1..]));
        names.extend(braces(item.trim())?);
        rest = next.trim_start();
    }
    let is_name = |name: &String| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || "{},".contains(c));
    (!names.is_empty() && names.iter().all(is_name)).then_some(names)
}

fn braces(item: &str) -> Option<Vec<String>> {
    let Some((before, rest)) = item.split_once('{') else { return Some(vec![item.to_owned()]) };
    let (inside, after) = rest.split_once('}')?;
    let all = inside.split(',').map(|word| braces(&format!("{before}{}{after}", word.trim())));
    Some(all.collect::<Option<Vec<_>>>()?.concat())
}

/// Every source below a directory, by its path.
fn sources(dir: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push((path.display().to_string(), fs::read_to_string(&path).expect("read")));
        }
    }
    files
}

#[test]
fn every_feature_has_a_test_and_every_test_a_feature() {
    let named = std::env::var_os("DRAY_TESTS").map(PathBuf::from);
    let dir = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    let mut files = sources(&dir);
    // This one tells of claims, and makes none.
    files.retain(|(path, _)| !path.ends_with("/features.rs"));
    assert!(!files.is_empty(), "{}: no tests", dir.display());
    let faults = faults(&names(&features(&abilities())), &files);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The last column of README's tables of the command line, of limits and of CVEs. A `*` stands for the rest of a name.
#[test]
fn readme_names_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README");
    let files = [sources(&root.join("tests")), sources(&root.join("src"))].concat();
    let tests: BTreeSet<&str> = files.iter().flat_map(|(_, text)| tests_of(text)).collect();
    for (title, prefix, least) in
        [("## The command line\n", "", 35), ("## Limits\n", "", 20), ("## Security\n", "cve_", 20)]
    {
        let section = readme.split_once(title).unwrap_or_else(|| panic!("no {title}")).1;
        let section = section.split("\n## ").next().expect("one at least");
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        let cells = rows.map(|row| row.trim_end_matches([' ', '|']).rsplit(" | ").next().expect("a cell"));
        let named: Vec<_> = cells.map(|cell| cell.split('`').skip(1).step_by(2).collect::<Vec<_>>()).collect();
        assert!(named.len() >= least, "{title}: {} rows", named.len());
        for (row, named) in named.iter().enumerate() {
            assert!(!named.is_empty(), "{title}: no test in row {row}");
            for name in named.iter().map(|name| format!("{prefix}{name}")) {
                let is_there = match name.strip_suffix('*') {
                    Some(begin) => tests.iter().any(|test| test.starts_with(begin)),
                    None => tests.contains(&*name),
                };
                assert!(is_there, "{title}: there is no test {name}");
            }
        }
    }
}

/// The names of the functions right below a `#[test]`.
fn tests_of(text: &str) -> Vec<&str> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let below = |index: usize| lines[index + 1..].iter().find(|line| !line.starts_with("#["));
    let tests = lines.iter().enumerate().filter(|(_, line)| **line == "#[test]");
    tests
        .filter_map(|(index, _)| below(index)?.trim_start_matches("pub ").strip_prefix("fn ")?.split('(').next())
        .collect()
}

#[test]
fn names_are_written_out() {
    let expanded = |list| expand(list).map(|names| names.join(" "));
    assert_eq!(expanded("a.b, c=d").as_deref(), Some("a.b c=d"));
    assert_eq!(expanded(" a={b, c},d.{e,f}.g ,").as_deref(), Some("a=b a=c d.e.g d.f.g"));
    assert_eq!(expanded("{a,b}.{c,d}").as_deref(), Some("a.c a.d b.c b.d"));
    for wrong in ["", "a b", "a{b", "a{b,}c, }", "{a,,b}{"] {
        assert_eq!(expanded(wrong), None, "{wrong}");
    }
}

/// Each fault in a source that has one.
#[test]
fn faults_are_told() {
    let implemented: BTreeSet<_> = ["a.b", "c=d"].map(str::to_owned).into();
    let told = |text: &str| faults(&implemented, &[("t.rs".to_owned(), text.replace("Claims:", PROVES))]);
    let good = "/// Of it.\n/// Claims: a.b\n/// Claims: c=d\n#[test]\nfn f() {}\n";
    assert_eq!(told(good), [""; 0]);
    assert_eq!(told(&good.replace("    ", "").replace("\n", "\n    ")), [""; 0], "in a module");
    assert_eq!(told(&good.replace("c=d", "c=d, x")), ["t.rs:3: x is nothing that is implemented"]);
    assert_eq!(told(&good.replace("a.b", "c=d")), ["a.b is implemented, and no test proves it"]);
    let nowhere = "stands above no test that is always run";
    for (text, line) in [
        (good.replace("#[test]\n", ""), 2),
        (good.replace("#[test]\n", "#[test]\n#[ignore = \"x\"]\n"), 2),
        (good.replace("#[test]\n", "\n#[test]\n"), 2),
        (good.replace("fn f", "const F"), 2),
    ] {
        let told = told(&text);
        assert_eq!(told[0], format!("t.rs:{line}: {nowhere}"), "{text}");
        assert!(told.contains(&"a.b is implemented, and no test proves it".to_owned()));
    }
    assert!(told("/// Claims: a b\n#[test]\nfn f() {}\n")[0].starts_with("t.rs:1: is no list of names"));
}
