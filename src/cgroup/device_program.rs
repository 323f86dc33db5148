//! The rules of `linux.resources.devices` as a device program for cgroup2. Pure.
//!
//! Rules count in their order and each of reading, writing and making nodes by itself: what the last rule says that
//! speaks of the device and of this access is the answer, and a request for several is granted when all are. That is what
//! v1's list says where it can say it; here a hole in an exception with wildcards is as good as any other rule.
//!
//! The program does not go through the rules. It holds the answers: for devices of two known numbers, else for those of
//! a known major, else of a known minor, else for the others. Whatever is no different from what follows it is left out, so
//! that rules which mean the same make the same program. Nothing learned of one device goes with the next test, so that the
//! kernel's verifier, which follows every path, has no more to do than there are instructions.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::LinuxDeviceCgroup;

use super::devices::{Access, Rule, in_order, invalid};
use crate::error::Result;
use crate::sys::bpf::Instruction;

/// How many pairs of a rule's major and another rule's minor are looked at.
const MAX_PAIRS: usize = 1 << 16;

/// The instructions that answer as `rules` and the default rules of every container say.
///
/// # Errors
/// `InvalidArgument` for a rule that is none, and for more devices than a program has room for (some five thousand).
pub(super) fn device_program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>> {
    let rules = in_order(rules)?;
    let block = code(&Said::of('b', &rules).answers()?)?;
    let character = code(&Said::of('c', &rules).answers()?)?;
    let mut program = PROLOGUE.to_vec();
    if block != character {
        program.push(unless(TYPE, TYPE_BLOCK, block.len())?);
        program.extend(block);
    }
    program.extend(character);
    Ok(program)
}

/// A major and a minor number. `None` is any, and of a device one that no rule knows.
type Numbers = (Option<u32>, Option<u32>);

/// What the rules say of one kind of devices: for each access the place of the last rule of these numbers, and whether it
/// allows.
struct Said(BTreeMap<Numbers, [Option<(usize, bool)>; 3]>);

impl Said {
    fn of(kind: char, rules: &[Rule]) -> Self {
        let mut said = BTreeMap::new();
        for (place, rule) in rules.iter().enumerate() {
            for devices in rule.devices().filter(|devices| devices.kind == kind) {
                let last: &mut [_; 3] = said.entry((devices.major, devices.minor)).or_default();
                let spoken_of = last.iter_mut().enumerate().filter(|(bit, _)| rule.access.0 & 1 << bit != 0);
                spoken_of.for_each(|(_, last)| *last = Some((place, rule.allow)));
            }
        }
        Self(said)
    }

    /// What is had of a device.
    fn answer(&self, (major, minor): Numbers) -> Access {
        let speak_of_it = [(major, minor), (major, None), (None, minor), (None, None)];
        let said: Vec<_> = speak_of_it.iter().filter_map(|numbers| self.0.get(numbers)).collect();
        let allowed = |bit: &usize| said.iter().filter_map(|last| last[*bit]).max().is_some_and(|(_, allow)| allow);
        Access((0..3).filter(allowed).fold(0, |bits, bit| bits | 1 << bit))
    }

    fn answers(&self) -> Result<Answers> {
        let numbers = || self.0.keys().copied();
        let majors: Vec<u32> = numbers().filter(|n| n.1.is_none()).filter_map(|n| n.0).collect();
        let minors: Vec<u32> = numbers().filter(|n| n.0.is_none()).filter_map(|n| n.1).collect();
        if majors.len().saturating_mul(minors.len()) > MAX_PAIRS {
            return Err(invalid("too many majors and minors with wildcards".to_owned()));
        }
        let others = self.answer((None, None));
        let mut answers = Answers { majors: BTreeMap::new(), minors: BTreeMap::new(), others };
        for &major in &majors {
            let all = Some(self.answer((Some(major), None))).filter(|answer| *answer != others);
            answers.majors.insert(major, Major { minors: BTreeMap::new(), all });
        }
        let of_minors = minors.iter().map(|&minor| (minor, self.answer((None, Some(minor)))));
        answers.minors = of_minors.filter(|(_, answer)| *answer != others).collect();
        let pairs = majors.iter().flat_map(|&major| minors.iter().map(move |&minor| (major, minor)));
        let known = numbers().filter_map(|(major, minor)| major.zip(minor));
        for (major, minor) in known.chain(pairs).collect::<BTreeSet<_>>() {
            let answer = self.answer((Some(major), Some(minor)));
            let of_major = answers.majors.entry(major).or_default();
            if answer != of_major.all.or(answers.minors.get(&minor).copied()).unwrap_or(others) {
                of_major.minors.insert(minor, answer);
            }
        }
        answers.majors.retain(|_, major| major.all.is_some() || !major.minors.is_empty());
        Ok(answers)
    }
}

/// What is had of the devices of one kind: the first that fits.
struct Answers {
    majors: BTreeMap<u32, Major>,
    minors: BTreeMap<u32, Access>,
    others: Access,
}

#[derive(Default)]
struct Major {
    minors: BTreeMap<u32, Access>,
    /// For the other minors; none where the major makes no difference.
    all: Option<Access>,
}

// Registers: the answer; the context, `struct bpf_cgroup_dev_ctx`; and what is read from that.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// linux/bpf.h: BPF_DEVCG_*
const TYPE_BLOCK: u32 = 1;
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

// linux/bpf_common.h and linux/bpf.h
const LOAD: u8 = (libc::BPF_LDX | libc::BPF_W | libc::BPF_MEM) as u8;
const MOVE: u8 = (libc::BPF_ALU | 0xb0 | libc::BPF_K) as u8;
const MOVE_REGISTER: u8 = (libc::BPF_ALU | 0xb0 | libc::BPF_X) as u8;
const AND: u8 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u8;
const SHIFT_RIGHT: u8 = (libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K) as u8;
const GO: u8 = (libc::BPF_JMP | libc::BPF_JA) as u8;
/// Of 32 bits: the operand of 64 would be extended by its sign.
const IF_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

const fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers, offset, immediate: immediate.cast_signed() }
}

/// The context apart; and the answer is no as long as nothing else is said.
const PROLOGUE: [Instruction; 7] = [
    instruction(LOAD, ACCESS | CONTEXT << 4, 0, 0),
    instruction(MOVE_REGISTER, TYPE | ACCESS << 4, 0, 0),
    instruction(AND, TYPE, 0, 0xffff),
    instruction(SHIFT_RIGHT, ACCESS, 0, 16),
    instruction(LOAD, MAJOR | CONTEXT << 4, 4, 0),
    instruction(LOAD, MINOR | CONTEXT << 4, 8, 0),
    instruction(MOVE, ANSWER, 0, 0),
];

/// Answers with what is had.
fn reply(had: Access) -> Vec<Instruction> {
    let yes = instruction(MOVE, ANSWER, 0, 1);
    let exit = instruction(EXIT, 0, 0, 0);
    if had == Access::ALL {
        return vec![yes, exit];
    }
    let bits = [(Access::READ, READ), (Access::WRITE, WRITE), (Access::MAKE, MAKE)];
    let not_had = bits.iter().filter(|(access, _)| had.0 & access.0 == 0).fold(0, |not_had, (_, bit)| not_had | bit);
    vec![instruction(AND, ACCESS, 0, not_had), instruction(IF_NOT_EQUAL, ACCESS, 1, 0), yes, exit]
}

/// Goes over the next `skipped` instructions where the register does not hold `number`.
fn unless(register: u8, number: u32, skipped: usize) -> Result<Instruction> {
    Ok(instruction(IF_NOT_EQUAL, register, offset(skipped)?, number))
}

fn offset(skipped: usize) -> Result<i16> {
    i16::try_from(skipped).map_err(|_| invalid("too many devices for one program".to_owned()))
}

/// One test and its reply for each of the minors.
fn by_minor(minors: &BTreeMap<u32, Access>) -> Result<Vec<Instruction>> {
    let mut code = Vec::new();
    for (&minor, &had) in minors {
        let reply = reply(had);
        code.push(unless(MINOR, minor, reply.len())?);
        code.extend(reply);
    }
    Ok(code)
}

fn code(answers: &Answers) -> Result<Vec<Instruction>> {
    let mut last = by_minor(&answers.minors)?;
    last.extend(reply(answers.others));
    // From the end to the start, for how far it is to the last part is to be known.
    let mut parts = vec![last];
    let mut to_last = 0;
    for (&number, major) in answers.majors.iter().rev() {
        let mut part = by_minor(&major.minors)?;
        match major.all {
            Some(had) => part.extend(reply(had)),
            None => part.push(instruction(GO, 0, offset(to_last)?, 0)),
        }
        part.insert(0, unless(MAJOR, number, part.len())?);
        to_last += part.len();
        parts.push(part);
    }
    Ok(parts.into_iter().rev().flatten().collect())
}
