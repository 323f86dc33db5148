//! D-Bus's wire format ("Marshaling (Wire Format)" in the D-Bus specification), as far as systemd's messages need it: little
//! endian, as every host is that this is made for. Pure.
//!
//! What is read comes from a socket: every length is held against what is there before anything is taken by it.

use crate::error::{Error, Kind, Result};

/// The first bytes of a message: all of a fixed size.
pub const FIXED: usize = 16;

/// The largest message that is read. What we ask for has answers of some hundred bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The largest that there can be, by the specification.
const MAX_LENGTH: usize = 128 << 20;

/// Values in their order, each aligned as the format wants it.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// What has been written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Bytes of zero up to the next multiple of `to`.
    pub fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// `y`
    pub fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    /// `u`
    pub fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    /// `t`
    pub fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// `s` and `o`. A string with a NUL in it would be cut by who reads it: callers see to it that there is none.
    pub fn string(&mut self, value: &str) {
        self.u32(value.len() as u32);
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// `g`
    pub fn signature(&mut self, value: &str) {
        self.0.push(value.len() as u8);
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// `a`, of elements that are aligned to `to`: its length does not count the padding before the first.
    pub fn array(&mut self, to: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(to);
        let start = self.0.len();
        elements(self);
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// `r`: a struct is aligned to 8 whatever is in it.
    pub fn structure(&mut self, fields: impl FnOnce(&mut Self)) {
        self.align(8);
        fields(self);
    }

    /// `v`
    pub fn variant(&mut self, signature: &str, value: impl FnOnce(&mut Self)) {
        self.signature(signature);
        value(self);
    }
}

/// Reads what a [`Writer`] writes.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn garbled(why: &str) -> Error {
    Error::new(Kind::Internal, format!("garbled D-Bus message: {why}"))
}

impl<'a> Reader<'a> {
    /// Of bytes that begin at a multiple of 8 in their message.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// How far it has come.
    pub fn position(&self) -> usize {
        self.at
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| garbled("it is too short for what is in it"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Padding, which must be there and be zero.
    pub fn align(&mut self, to: usize) -> Result<()> {
        let padding = self.take(self.at.next_multiple_of(to) - self.at)?;
        if padding.iter().any(|byte| *byte != 0) { Err(garbled("padding that is not zero")) } else { Ok(()) }
    }

    /// `y`
    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// `u`
    pub fn u32(&mut self) -> Result<u32> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// `s` and `o`
    pub fn string(&mut self) -> Result<&'a str> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    /// `g`
    pub fn signature(&mut self) -> Result<&'a str> {
        let length = self.byte()? as usize;
        self.text(length)
    }

    fn text(&mut self, length: usize) -> Result<&'a str> {
        let (bytes, end) = (self.take(length)?, self.byte()?);
        if end != 0 || bytes.contains(&0) {
            return Err(garbled("a string with a NUL in it, or none at its end"));
        }
        std::str::from_utf8(bytes).map_err(|_| garbled("a string that is not UTF-8"))
    }

    /// `a`, of elements that are aligned to `to`: a reader of the elements alone, which keeps their place in the message.
    pub fn array(&mut self, to: usize) -> Result<Reader<'a>> {
        let length = self.u32()? as usize;
        self.align(to)?;
        let start = self.at;
        self.take(length)?;
        Ok(Reader { bytes: &self.bytes[..self.at], at: start })
    }

    /// A value of one of the simple types, as they are in a message's header.
    pub fn skip(&mut self, signature: &str) -> Result<()> {
        match signature {
            "y" => self.byte().map(drop),
            "u" | "i" | "b" => self.u32().map(drop),
            "s" | "o" => self.string().map(drop),
            "g" => self.signature().map(drop),
            _ => Err(garbled("a header field of a type that no field has")),
        }
    }
}

/// What the first 16 bytes of a message tell: its type, and how long all of it is.
///
/// # Errors
/// For what is no message of this machine's, and one that is longer than the specification allows.
pub fn frame(fixed: &[u8; FIXED]) -> Result<(u8, usize)> {
    let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
    if fixed[0] != b'l' || fixed[3] != 1 {
        return Err(garbled("not of this machine's byte order, or of another version of the protocol"));
    }
    let (body, fields) = (number(4), number(12));
    match (FIXED + fields).checked_next_multiple_of(8).and_then(|header| header.checked_add(body)) {
        Some(length) if length <= MAX_LENGTH => Ok((fixed[1], length)),
        _ => Err(garbled("too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the specification, "Marshaling (Wire Format)".
    #[test]
    fn values_are_laid_out_as_in_the_specification() {
        let mut w = Writer::default();
        w.string("foo");
        w.string("+");
        w.string("bar");
        assert_eq!(w.into_bytes(), b"\x03\0\0\0foo\0\x01\0\0\0+\0\0\0\x03\0\0\0bar\0");
        let mut w = Writer::default();
        // An array that holds the 64-bit integer 5: the padding is not of its length.
        w.array(8, |w| w.u64(5));
        assert_eq!(w.into_bytes(), b"\x08\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        let mut w = Writer::default();
        w.variant("u", |w| w.u32(7));
        w.structure(|w| w.byte(1));
        assert_eq!(w.into_bytes(), b"\x01u\0\0\x07\0\0\0\x01");
    }

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::default();
        w.byte(9);
        w.string("a b");
        w.array(8, |w| {
            w.structure(|w| w.string("x"));
            w.structure(|w| w.string("yz"));
        });
        w.signature("a(sv)");
        w.u32(u32::MAX);
        let bytes = w.into_bytes();
        let mut r = Reader::new(&bytes);
        assert_eq!((r.byte().unwrap(), r.string().unwrap()), (9, "a b"));
        let mut array = r.array(8).unwrap();
        let mut read = Vec::new();
        while !array.is_empty() {
            array.align(8).unwrap();
            read.push(array.string().unwrap());
        }
        assert_eq!(read, ["x", "yz"]);
        assert_eq!((r.signature().unwrap(), r.u32().unwrap(), r.is_empty()), ("a(sv)", u32::MAX, true));
        // Not a byte less is enough.
        for length in 0..bytes.len() {
            let mut r = Reader::new(&bytes[..length]);
            let all = (|| {
                r.byte()?;
                r.string()?;
                r.array(8)?;
                r.signature()?;
                r.u32()
            })();
            assert!(all.is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_garbled_is_refused() {
        let refused = |bytes: &[u8], read: fn(&mut Reader<'_>) -> Result<()>| {
            assert!(read(&mut Reader::new(bytes)).is_err(), "{bytes:?}");
        };
        refused(b"\xff\xff\xff\xffabc\0", |r| r.string().map(drop));
        refused(b"\xff\xff\xff\x7fabc\0", |r| r.array(8).map(drop));
        refused(b"\x03\0\0\0abcd", |r| r.string().map(drop));
        refused(b"\x03\0\0\0a\0c\0", |r| r.string().map(drop));
        refused(b"\x01\0\0\0\xff\0", |r| r.string().map(drop));
        refused(b"\x01\x02\0\0\0\0\0\0", |r| r.byte().and(r.u32()).map(drop));
        refused(b"\x00\0", |r| r.skip("a{sv}"));
    }

    #[test]
    fn the_length_of_a_message_is_known_by_its_start() {
        let fixed = |order: u8, body: u32, fields: u32| {
            let mut bytes = [order, 4, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
            bytes[4..8].copy_from_slice(&body.to_le_bytes());
            bytes[12..].copy_from_slice(&fields.to_le_bytes());
            frame(&bytes)
        };
        assert_eq!(fixed(b'l', 3, 9).unwrap(), (4, 16 + 16 + 3));
        assert_eq!(fixed(b'l', 0, 0).unwrap(), (4, 16));
        for (order, body, fields) in [(b'B', 0, 0), (b'l', u32::MAX, 0), (b'l', 0, u32::MAX), (b'l', 1 << 27, 1)] {
            assert!(fixed(order, body, fields).is_err(), "{order} {body} {fields}");
        }
    }
}
