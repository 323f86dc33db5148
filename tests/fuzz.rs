//! Documents, messages and bytes that nobody in their senses would send: no panic, no leak, no growth, an answer in time.
//!
//! What is sent is made of the documents in tests/data by mutations (tests/fuzz/). A run is the same for the same seed, as
//! far as its time reaches. Inputs that once found a fault are in tests/data/fuzz and are tried first.
//!
//! - `DRAY_FUZZ_SECONDS`: how long all of it takes together, 20 by default. With more of it more is tried.
//! - `DRAY_FUZZ_SEED`: the first seed, 1 by default. Each input has the next; a failure names its own, by which it is tried
//!   first.

#[path = "fuzz/bytes.rs"]
mod bytes;
#[path = "fuzz/json.rs"]
mod json;
#[path = "fuzz/parsers.rs"]
mod parsers;
#[path = "fuzz/rng.rs"]
mod rng;
#[path = "fuzz/shim.rs"]
mod shim;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rng::Rng;
use serde_json::Value;

/// How long one input of a few KB may take, in an unoptimised build and beside other tests.
const EACH: Duration = Duration::from_secs(2);
/// And a MiB more of it.
const MIB: Duration = Duration::from_secs(4);
/// The longest error: containerd logs it, hands it to its client and puts it into a status.
const TEXT: usize = 8 << 10;
/// Among how many the time is divided.
const PARTS: u32 = 4;

/// Directory of the documents that everything is made of.
fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Specifications as containerd, Docker and nerdctl write them, and one with every field.
fn documents() -> Vec<Value> {
    let names = ["", "fuzz"].map(|sub| fs::read_dir(data().join(sub)).expect("tests/data").flatten());
    let mut paths: Vec<PathBuf> = names.into_iter().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let json = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let parsed = json.filter_map(|path| serde_json::from_slice(&fs::read(path).expect("read")).ok());
    let documents: Vec<Value> = parsed.filter(|document: &Value| document.get("ociVersion").is_some()).collect();
    assert!(documents.len() > 5, "{paths:?}");
    documents
}

/// The inputs that found a fault in `what` once.
fn corpus(what: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(data().join("fuzz")).expect("tests/data/fuzz").flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{what}-")));
    ours.map(|entry| fs::read(entry.path()).expect("read")).collect()
}

/// The inputs of one part, as long as its time reaches.
struct Rounds {
    what: &'static str,
    seed: u64,
    until: Instant,
    done: u64,
}

impl Rounds {
    /// `share` is how much of a part's time this has, of 100.
    fn new(what: &'static str, share: u32) -> Rounds {
        let number = |name: &str, otherwise: u64| {
            let value = std::env::var(name).ok();
            value.map_or(otherwise, |value| value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
        };
        let seed = number("DRAY_FUZZ_SEED", 1);
        let time = Duration::from_secs(number("DRAY_FUZZ_SECONDS", 20)) / PARTS * share / 100;
        println!("{what}: from DRAY_FUZZ_SEED={seed} for {time:?}");
        Rounds { what, seed, until: Instant::now() + time, done: 0 }
    }
}

impl Iterator for Rounds {
    type Item = (u64, Rng);

    fn next(&mut self) -> Option<(u64, Rng)> {
        // A machine that is busy tries some as well.
        if self.done >= 20 && Instant::now() > self.until {
            println!("{}: {} inputs", self.what, self.done);
            return None;
        }
        let seed = self.seed + self.done;
        self.done += 1;
        Some((seed, Rng::new(seed)))
    }
}

/// Runs one input through `work`, whose error is what a client would be told.
fn judged(what: &str, seed: u64, input: &[u8], work: impl FnOnce() -> Result<(), String>) {
    let shown = || {
        let path = std::env::temp_dir().join(format!("dray-fuzz-{what}-{seed}"));
        let _ = fs::write(&path, input);
        format!("{what}: DRAY_FUZZ_SEED={seed}, input in {}", path.display())
    };
    let began = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| panic!("{}: a panic", shown()));
    let took = began.elapsed();
    let bound = EACH + MIB * (input.len() >> 20) as u32;
    assert!(took < bound, "{}: {} bytes took {took:?}", shown(), input.len());
    if let Err(text) = done {
        assert!(text.len() <= TEXT, "{}: an error of {} bytes: {:.300}", shown(), text.len(), text);
        assert!(text.len() > 8 && text.contains([' ', ':']), "{}: an error that says nothing: {text:?}", shown());
    }
}
