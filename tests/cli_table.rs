//! README's table of the command line against what the program takes and what runc takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use common::dray::Dray;

/// The flags of each verb; those before a verb are of `dray`.
type Flags = BTreeMap<String, BTreeSet<String>>;

/// What runc takes.
fn of_runc() -> Flags {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/runc_flags.txt");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| split(&mut line.split(' '))).collect()
}

fn split<'a>(words: &mut impl Iterator<Item = &'a str>) -> (String, BTreeSet<String>) {
    let verb = words.next().unwrap().to_owned();
    (verb, words.map(str::to_owned).collect())
}

/// What the table says is there, and what it says is not, or does nothing.
fn of_readme() -> (Flags, Flags) {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split_once("## The command line\n").expect("a section").1;
    let section = section.split("\n## ").next().unwrap();
    let (mut there, mut missing) = (Flags::new(), Flags::new());
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let [names, state, ..] = cells[..] else { panic!("a row of fewer cells: {row}") };
        let (verb, flags) = split(&mut names.split('`').skip(1).step_by(2));
        let list =
            if ["not there", "ignored"].iter().any(|word| state.starts_with(word)) { &mut missing } else { &mut there };
        list.entry(verb).or_default().extend(flags);
    }
    (there, missing)
}

/// What the help of the program lists.
fn of_the_program(dray: &Dray, verb: &str) -> BTreeSet<String> {
    let args: &[&str] = if verb == "dray" { &["--help"] } else { &[verb, "--help"] };
    let output = dray.run(args);
    assert!(output.status.success(), "{verb}: {output:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    let words = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags = words
        .flat_map(|line| line.split([' ', ',', '=', '[']).take_while(|word| word.is_empty() || word.starts_with('-')));
    flags.filter(|word| !word.trim_start_matches('-').is_empty()).map(str::to_owned).collect()
}

/// The verbs that the program's help lists.
fn verbs(dray: &Dray) -> BTreeSet<String> {
    let help = String::from_utf8(dray.run(&["--help"]).stdout).unwrap();
    let list = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap().to_owned();
    list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn every_flag_of_runc_is_in_the_table() {
    let (there, missing) = of_readme();
    for (verb, flags) in of_runc() {
        let (there, missing) = (there.get(&verb), missing.get(&verb));
        assert!(there.or(missing).is_some(), "{verb}");
        for flag in flags {
            let listed = |list: Option<&BTreeSet<String>>| list.is_some_and(|list| list.contains(&flag));
            assert!(listed(there) != listed(missing), "{verb} {flag}: it is in the table once");
        }
    }
}

#[test]
fn the_table_is_what_the_program_takes() {
    let dray = Dray::new();
    let (there, missing) = of_readme();
    let verbs: BTreeSet<String> = verbs(&dray).into_iter().chain(["dray".to_owned()]).collect();
    assert_eq!(verbs, there.keys().cloned().collect());
    for verb in &verbs {
        let mut takes = of_the_program(&dray, verb);
        if verb != "dray" {
            for flag in ["-h", "--help"] {
                assert!(takes.remove(flag), "{verb} {flag}");
            }
        }
        assert_eq!(&takes, &there[verb], "{verb}");
        let both: Vec<_> = missing.get(verb).into_iter().flatten().filter(|flag| takes.contains(*flag)).collect();
        assert!(both.is_empty(), "{verb}: there, and said not to be: {both:?}");
    }
}
