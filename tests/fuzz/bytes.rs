//! Mutations of bytes, whatever they mean.

use super::rng::Rng;

/// Ends, lengths and characters on which parsers stumble.
const PIECES: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\"",
    b"\\",
    b"\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"=",
    b"#",
    b"%",
    b"%00",
    b"%zz",
    b"..",
    b"/",
    b"://",
    b"?",
    b"&",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\\u0000",
    b"\\ud800",
    b"1e999",
    b"-1",
];

/// One to four changes of `input`.
pub fn mutate(rng: &mut Rng, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        let end = (at + 1 + rng.below(16)).min(bytes.len());
        match rng.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at.min(end)..end)),
            2 => {
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again.repeat(1 + rng.below(3)));
            }
            3 => {
                let noise = rng.below(12);
                let noise = rng.bytes(noise);
                bytes.splice(at..at, noise);
            }
            4 if at < bytes.len() => bytes[at] = rng.next() as u8,
            5 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            6 if rng.one_in(20) => drop(bytes.splice(at..at, vec![b'a'; 70_000])),
            _ => {
                let piece = rng.pick(PIECES).to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// The same for text.
pub fn mutate_text(rng: &mut Rng, input: &str) -> String {
    String::from_utf8_lossy(&mutate(rng, input.as_bytes())).into_owned()
}
