//! Looking into the memory of a process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// How often `needle` is in the memory of a process, all of it that was ever written to.
pub fn occurrences(pid: u32, needle: &str) -> usize {
    let (Ok(maps), Ok(memory)) =
        (fs::read_to_string(format!("/proc/{pid}/maps")), File::open(format!("/proc/{pid}/mem")))
    else {
        return 0;
    };
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').unwrap();
        let (start, end) = (number(start), number(rest.split(' ').next().unwrap()));
        let mut bytes = vec![0; (end - start) as usize];
        let mut length = 0;
        while let Ok(n @ 1..) = memory.read_at(&mut bytes[length..], start + length as u64) {
            length += n;
        }
        found += bytes[..length].windows(needle.len()).filter(|window| *window == needle.as_bytes()).count();
    }
    found
}
