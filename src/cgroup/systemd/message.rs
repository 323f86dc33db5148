//! D-Bus messages: calls made into bytes, and what comes back out of them. Pure.

use std::borrow::Cow;

use super::wire::{FIXED, Reader, Writer, frame};
use crate::error::{Error, Kind, Result};

/// Types of a message ("Message Types").
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
/// The type that nobody has asked for.
pub const SIGNAL: u8 = 4;

/// Codes of the header's fields ("Header Fields").
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// A method call.
#[derive(Debug)]
pub struct Call {
    /// Whose method.
    pub destination: &'static str,
    /// Of which object.
    pub path: Cow<'static, str>,
    /// Of which interface.
    pub interface: &'static str,
    /// Its name.
    pub member: &'static str,
    /// The types of its arguments.
    pub signature: &'static str,
    /// Its arguments.
    pub body: Vec<u8>,
}

impl Call {
    /// The message, under a number of the caller's that is not 0, by which its answer is known.
    pub fn encode(&self, serial: u32) -> Vec<u8> {
        let mut w = Writer::default();
        w.byte(b'l');
        w.byte(CALL);
        w.byte(0); // No flags: an answer is wanted.
        w.byte(1);
        w.u32(self.body.len() as u32);
        w.u32(serial);
        w.array(8, |w| {
            let mut field = |code: u8, kind: &str, value: &str| {
                w.structure(|w| {
                    w.byte(code);
                    w.variant(kind, |w| if kind == "g" { w.signature(value) } else { w.string(value) });
                });
            };
            field(PATH, "o", &self.path);
            field(DESTINATION, "s", self.destination);
            field(INTERFACE, "s", self.interface);
            field(MEMBER, "s", self.member);
            if !self.signature.is_empty() {
                field(SIGNATURE, "g", self.signature);
            }
        });
        w.align(8);
        let mut bytes = w.into_bytes();
        bytes.extend(&self.body);
        bytes
    }
}

/// A message that was received. What it does not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    kind: u8,
    reply_serial: u32,
    path: String,
    interface: String,
    member: String,
    error_name: String,
    /// Who sent it: the bus says so. Empty without a bus.
    pub sender: String,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// Of all the bytes of one, as [`frame`] counts them.
    ///
    /// # Errors
    /// For what is no message.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = |why: &str| Error::new(Kind::Internal, format!("garbled D-Bus message: {why}"));
        let fixed = bytes.first_chunk::<FIXED>().ok_or_else(|| wrong("it is too short"))?;
        let (kind, length) = frame(fixed)?;
        if length != bytes.len() {
            return Err(wrong("it is of another length than it says"));
        }
        let mut message = Self { kind, ..Self::default() };
        let mut all = Reader::new(bytes);
        for _ in 0..3 {
            all.u32()?;
        }
        let mut fields = all.array(8)?;
        while !fields.is_empty() {
            fields.align(8)?;
            let (code, signature) = (fields.byte()?, fields.signature()?);
            let text = match (code, signature) {
                (REPLY_SERIAL, "u") => {
                    message.reply_serial = fields.u32()?;
                    continue;
                }
                (PATH, "o") => &mut message.path,
                (INTERFACE, "s") => &mut message.interface,
                (MEMBER, "s") => &mut message.member,
                (ERROR_NAME, "s") => &mut message.error_name,
                (SENDER, "s") => &mut message.sender,
                (SIGNATURE, "g") => {
                    message.signature = fields.signature()?.to_owned();
                    continue;
                }
                (_, other) => {
                    fields.skip(other)?;
                    continue;
                }
            };
            *text = fields.string()?.to_owned();
        }
        all.align(8)?;
        message.body = bytes[all.position()..].to_vec();
        Ok(message)
    }

    /// What it answers to the call `serial`: its body, or the error that it tells. `None` where it is not an answer to it.
    pub fn answer(&self, serial: u32) -> Option<Result<&Self, Refusal>> {
        match self.kind {
            RETURN | ERROR if self.reply_serial != serial => None,
            RETURN => Some(Ok(self)),
            ERROR => {
                let text = if self.signature.starts_with('s') { Reader::new(&self.body).string().ok() } else { None };
                let text = text.unwrap_or_default().to_owned();
                Some(Err(Refusal { name: self.error_name.clone(), text }))
            }
            _ => None,
        }
    }

    /// A reader of its body, where that is of these types.
    ///
    /// # Errors
    /// Where it is of others.
    pub fn body(&self, signature: &str) -> Result<Reader<'_>> {
        if self.signature != signature {
            let text = format!("D-Bus: an answer of types {:?}, where {signature:?} is expected", self.signature);
            return Err(Error::new(Kind::Internal, text));
        }
        Ok(Reader::new(&self.body))
    }

    /// Whether it is this signal.
    pub fn is_signal(&self, path: &str, interface: &str, member: &str) -> bool {
        self.kind == SIGNAL && (&*self.path, &*self.interface, &*self.member) == (path, interface, member)
    }
}

/// What a peer says instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error's name, `org.freedesktop.systemd1.NoSuchUnit`.
    pub name: String,
    /// Its words.
    pub text: String,
}

impl Refusal {
    /// There is a unit of this name.
    pub fn is_exists(&self) -> bool {
        self.name == "org.freedesktop.systemd1.UnitExists"
    }

    /// There is no unit of this name.
    pub fn is_missing(&self) -> bool {
        self.name == "org.freedesktop.systemd1.NoSuchUnit"
    }

    /// As an error of ours.
    pub fn into_error(self) -> Error {
        let kind = match &*self.name {
            "org.freedesktop.systemd1.UnitExists" => Kind::AlreadyExists,
            "org.freedesktop.systemd1.NoSuchUnit" => Kind::NotFound,
            "org.freedesktop.DBus.Error.InvalidArgs" | "org.freedesktop.DBus.Error.PropertyReadOnly" => {
                Kind::InvalidArgument
            }
            "org.freedesktop.DBus.Error.NoReply" | "org.freedesktop.DBus.Error.ServiceUnknown" => Kind::Unavailable,
            _ => Kind::FailedPrecondition,
        };
        let name = self.name.rsplit('.').next().unwrap_or_default();
        Error::new(kind, format!("systemd says: {} ({name})", self.text))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message as a peer would send it.
    pub fn message(kind: u8, fields: &[(u8, &str, &str)], reply_serial: Option<u32>, body: &[u8]) -> Vec<u8> {
        let mut w = Writer::default();
        [b'l', kind, 0, 1].iter().for_each(|byte| w.byte(*byte));
        w.u32(body.len() as u32);
        w.u32(77);
        w.array(8, |w| {
            for (code, kind, value) in fields {
                w.structure(|w| {
                    w.byte(*code);
                    w.variant(kind, |w| if *kind == "g" { w.signature(value) } else { w.string(value) });
                });
            }
            if let Some(serial) = reply_serial {
                w.structure(|w| {
                    w.byte(REPLY_SERIAL);
                    w.variant("u", |w| w.u32(serial));
                });
            }
        });
        w.align(8);
        let mut bytes = w.into_bytes();
        bytes.extend(body);
        bytes
    }

    fn body(text: &str) -> Vec<u8> {
        let mut w = Writer::default();
        w.string(text);
        w.into_bytes()
    }

    #[test]
    fn a_call_is_what_its_decoding_says() {
        let call = Call {
            destination: "org.d",
            path: "/p".into(),
            interface: "org.i",
            member: "M",
            signature: "s",
            body: body("x"),
        };
        let bytes = call.encode(3);
        assert_eq!(frame(bytes.first_chunk().unwrap()).unwrap(), (CALL, bytes.len()));
        let message = Message::decode(&bytes).unwrap();
        assert_eq!((&*message.path, &*message.interface, &*message.member), ("/p", "org.i", "M"));
        assert_eq!(message.body("s").unwrap().string().unwrap(), "x");
        assert!(message.body("u").is_err());
        assert_eq!(message.answer(3), None, "a call is no answer");
    }

    #[test]
    fn an_answer_is_known_by_its_number() {
        let bytes = message(RETURN, &[(SIGNATURE, "g", "s"), (SENDER, "s", ":1.0")], Some(5), &body("yes"));
        let answer = Message::decode(&bytes).unwrap();
        assert_eq!(answer.answer(4), None);
        assert_eq!(answer.answer(5).unwrap().unwrap().body("s").unwrap().string().unwrap(), "yes");
        assert_eq!(answer.sender, ":1.0");
        let name = "org.freedesktop.systemd1.NoSuchUnit";
        let bytes =
            message(ERROR, &[(SIGNATURE, "g", "s"), (ERROR_NAME, "s", name)], Some(5), &body("Unit x not loaded."));
        let refusal = Message::decode(&bytes).unwrap().answer(5).unwrap().unwrap_err();
        assert!(refusal.is_missing() && !refusal.is_exists());
        let error = refusal.into_error();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("Unit x not loaded. (NoSuchUnit)"), "{error}");
    }

    #[test]
    fn a_field_that_is_not_known_is_passed_over() {
        let fields = [(42, "s", "new"), (SIGNATURE, "g", "s"), (MEMBER, "g", "not a string")];
        let decoded = Message::decode(&message(SIGNAL, &fields, None, &body("x"))).unwrap();
        assert_eq!((&*decoded.signature, &*decoded.member), ("s", ""));
    }

    /// Every byte of a good message replaced by every of some, and every length: an error or a message, and never more.
    #[test]
    fn garbled_messages_do_no_harm() {
        let name = "org.freedesktop.systemd1.UnitExists";
        let good = message(ERROR, &[(SIGNATURE, "g", "s"), (ERROR_NAME, "s", name)], Some(5), &body("exists"));
        let look = |bytes: &[u8]| {
            if let Ok(message) = Message::decode(bytes) {
                let _ = message.answer(5);
                let _ = message.body("s").and_then(|mut body| body.string().map(drop));
            }
        };
        for at in 0..good.len() {
            assert!(Message::decode(&good[..at]).is_err(), "cut at {at}");
            for byte in [0, 1, 7, 8, 9, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                look(&bad);
                // With a length that agrees, so that what comes after it is looked at.
                if let Ok((_, length)) = frame(bad.first_chunk().unwrap()) {
                    bad.resize(length.min(4096), byte);
                    look(&bad);
                }
            }
        }
    }
}
