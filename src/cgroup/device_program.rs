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

#[cfg(test)]
mod tests {
    use super::super::devices::{Devices, device_knobs};
    use super::super::knobs::Knob;
    use super::*;
    use crate::error::Kind;

    /// Rules as "+c 1:3 rw,-a *:* rwm".
    fn rules(text: &str) -> Vec<LinuxDeviceCgroup> {
        let rule = |rule: &str| {
            let (sign, rest) = rule.split_at(1);
            let words: Vec<&str> = rest.split([' ', ':']).collect();
            let number = |word: &str| word.parse::<i64>().unwrap_or(-1);
            serde_json::from_value(serde_json::json!({
                "allow": sign == "+", "type": words[0], "access": words[3],
                "major": number(words[1]), "minor": number(words[2]),
            }))
            .unwrap()
        };
        text.split(',').filter(|part| !part.is_empty()).map(rule).collect()
    }

    fn program(text: &str) -> Vec<Instruction> {
        device_program(&rules(text)).unwrap()
    }

    /// What the kernel would get of a program, and how many instructions that takes (RFC 9669).
    fn run(program: &[Instruction], context: [u32; 3]) -> (u32, usize) {
        let mut registers = [0xdead_beef_u32; 6];
        let (mut at, mut steps) = (0usize, 0);
        loop {
            let Instruction { code, registers: names, offset, immediate } = program[at];
            let (to, from) = (usize::from(names & 15), usize::from(names >> 4));
            let immediate = immediate.cast_unsigned();
            let mut jump = 0;
            match code {
                0x61 => {
                    assert_eq!(from, 1, "what is read is the context");
                    registers[to] = context[offset as usize / 4];
                }
                0xb4 => registers[to] = immediate,
                0xbc => registers[to] = registers[from],
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0x05 => jump = offset,
                0x56 if registers[to] != immediate => jump = offset,
                0x56 => {}
                0x95 => return (registers[0], steps + 1),
                _ => panic!("instruction {code:#x}"),
            }
            at = at.checked_add_signed(isize::from(jump)).unwrap() + 1;
            steps += 1;
        }
    }

    /// Whether it lets somebody do all of `access` (of "rwm").
    fn allows(program: &[Instruction], device: Devices, access: &str) -> bool {
        let bit = |letter| match letter {
            'm' => MAKE,
            'r' => READ,
            _ => WRITE,
        };
        let bits = access.chars().fold(0, |bits, letter| bits | bit(letter));
        let kind = if device.kind == 'b' { 1 } else { 2 };
        run(program, [bits << 16 | kind, device.major.unwrap(), device.minor.unwrap()]).0 == 1
    }

    fn device(kind: char, major: u32, minor: u32) -> Devices {
        Devices { kind, major: Some(major), minor: Some(minor) }
    }

    const REQUESTS: [&str; 5] = ["r", "w", "m", "rw", ""];

    /// The meaning of the rules, read off them.
    fn should_allow(rules: &[Rule], device: Devices, access: &str) -> bool {
        access.chars().all(|letter| {
            let bit = Access::parse(&letter.to_string()).unwrap().0;
            let speaks = |rule: &&Rule| rule.access.0 & bit != 0 && rule.devices().any(|of| of.covers(&device));
            rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
        })
    }

    /// What v1's controller answers with these lines in it (linux: security/device_cgroup.c).
    fn v1_allows(lines: &[Knob], device: Devices, access: &str) -> bool {
        let by_default = lines[0].file == "devices.allow";
        let speaks_of_it = |value: &str| {
            let words: Vec<&str> = value.split([' ', ':']).collect();
            let is = |word: &str, number: Option<u32>| word == "*" || word.parse().ok() == number;
            let of = words[0].starts_with(device.kind) && is(words[1], device.major) && is(words[2], device.minor);
            let has = |letter: char| words[3].contains(letter);
            of && if by_default { access.chars().any(has) } else { access.chars().all(has) }
        };
        lines[1..].iter().any(|line| speaks_of_it(&line.value)) != by_default
    }

    #[test]
    fn the_default_rules_make_a_small_program() {
        let program = program("");
        assert!(program.len() < 50, "{}", program.len());
        assert!(allows(&program, device('c', 1, 3), "rwm") && allows(&program, device('c', 136, 77), "rw"));
        assert!(allows(&program, device('b', 8, 0), "m") && !allows(&program, device('b', 8, 0), "r"));
        assert!(!allows(&program, device('c', 5, 1), "r") && !allows(&program, device('b', 1, 3), "r"));
    }

    #[test]
    fn rules_that_mean_the_same_make_the_same_program() {
        assert_eq!(program("+a *:* rwm").len(), PROLOGUE.len() + 2);
        for (one, other) in [
            ("", "-a *:* rwm"),
            ("+c 240:1 rw", "-a *:* rwm,+c 240:1 r,+b 8:0 r,-b 8:* r,+c 240:1 w"),
            ("+c 240:* rw", "+c 240:1 rw,+c 240:* rw,+c 240:2 w"),
            ("+a *:* rwm", "-c 240:* rw,+a *:* rwm,+c 1:3 r"),
            ("+c 240:1 rw,+c 240:2 r", "+c 240:2 r,+c 240:1 rw"),
        ] {
            assert_eq!(program(one), program(other), "{one} and {other}");
        }
        assert_ne!(program("+c 240:1 rw"), program("+c 240:1 r"));
    }

    #[test]
    fn numbers_above_the_sign_bit_are_numbers_like_others() {
        let program = program("+c 4294967294:4294967295 rw");
        assert!(allows(&program, device('c', u32::MAX - 1, u32::MAX), "rw"));
        assert!(!allows(&program, device('c', u32::MAX, u32::MAX), "rw"));
    }

    /// Rules by chance over a few numbers: the program answers as the rules say, and as v1 wherever that has an answer.
    #[test]
    fn any_rules_are_answered_as_they_are_meant_and_as_v1_does() {
        let mut seed = 1u64;
        let mut chance = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let mut compared = 0;
        for _ in 0..200 {
            let one = |chance: &mut dyn FnMut(u64) -> u64| {
                let number = |n: u64| if n < 2 { "*".to_owned() } else { n.to_string() };
                let kind = ["a", "b", "c", "c"][chance(4) as usize];
                let access = ["rwm", "rwm", "r", "w", "m", "rw", "wm"][chance(7) as usize];
                let sign = if chance(2) == 0 { '+' } else { '-' };
                format!("{sign}{kind} {}:{} {access}", number(chance(5)), number(chance(5)))
            };
            let count = chance(7);
            let text: Vec<String> = (0..count).map(|_| one(&mut chance)).collect();
            let text = text.join(",");
            let (listed, program) = (rules(&text), program(&text));
            let ordered = in_order(&listed).unwrap();
            let lines = device_knobs(&listed).ok();
            for (kind, major, minor) in
                ['b', 'c'].into_iter().flat_map(|k| (1..6).flat_map(move |a| (1..6).map(move |i| (k, a, i))))
            {
                let device = device(kind, major, minor);
                for access in REQUESTS {
                    let answer = allows(&program, device, access);
                    assert_eq!(answer, should_allow(&ordered, device, access), "{text}: {device} {access:?}");
                    if let Some(lines) = &lines {
                        assert_eq!(answer, v1_allows(lines, device, access), "v1, {text}: {device} {access:?}");
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared > 10_000, "{compared}");
    }

    #[test]
    fn what_is_no_rule_or_too_much_is_refused() {
        let kind = |text: &str| device_program(&rules(text)).unwrap_err().kind();
        for bad in ["+c 1:3 x", "+p 1:3 r", "+c 4294967296:1 r"] {
            assert_eq!(kind(bad), Kind::InvalidArgument, "{bad}");
        }
        let many: Vec<String> = (0..20_000).map(|n| format!("+c {n}:1 rw")).collect();
        assert_eq!(kind(&many.join(",")), Kind::InvalidArgument);
        let crossed: Vec<String> = (0..300).flat_map(|n| [format!("+c {n}:* rw"), format!("+c *:{n} r")]).collect();
        assert_eq!(kind(&crossed.join(",")), Kind::InvalidArgument);
    }

    /// What is tested first is what is in front: one device costs a comparison for each major, not for each device.
    #[test]
    fn a_thousand_devices_are_a_thousand_comparisons_at_most() {
        let many: Vec<String> = (0..1000).map(|n| format!("+c {}:{n} rw", 300 + n % 100)).collect();
        let program = program(&many.join(","));
        assert!(program.len() < 6000, "{}", program.len());
        let (answer, steps) = run(&program, [6 << 16 | 2, 399, 999]);
        assert_eq!(answer, 1);
        assert!(steps < 150, "{steps}");
    }
}
