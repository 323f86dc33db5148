//! The known ways out of a container, each tried on the shim: what other runtimes have had a CVE for, named after it.
//!
//! What a container cannot do by itself is done by this binary, which is then its program (`inside_the_container`).
//! CVE-2016-9962 is in tests/security.rs, with the other attacks on an exec that is on its way.

#[path = "cve/descriptors.rs"]
mod descriptors;
#[path = "cve/executable.rs"]
mod executable;
#[path = "cve/identity.rs"]
mod identity;
#[path = "cve/procfs.rs"]
mod procfs;
#[path = "cve/races.rs"]
mod races;
#[path = "cve/reach.rs"]
mod reach;

use common::attacker::attack;

/// Not a test: what the containers of the others run.
#[test]
#[ignore = "the program of the other tests' containers"]
fn inside_the_container() {
    let Some(attack) = attack() else { return };
    let words: Vec<&str> = attack.iter().map(String::as_str).collect();
    match words[..] {
        ["descriptors"] => descriptors::list(),
        ["executables"] => executable::overwrite_all(),
        ["exchange", directory, one, other] => races::exchange(directory, one, other),
        ["writable", directory] => reach::list_writable(directory),
        _ => panic!("unknown attack {attack:?}"),
    }
}
