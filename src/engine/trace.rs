//! Where the time of operations went: the last of them, step by step, kept always and at next to no cost.
//!
//! An operation goes through steps one after the other, so that a step is known by the moment at which it begins: one look
//! at the clock, which mostly is no system call. The steps of the child that becomes the container's process come from
//! memory that it shares with us ([`crate::sys::stamps`]). They are whatever was written there, and a program of the container
//! may have done that: they are believed as far as they lie in the operation and in their order.
//!
//! What is over is packed: some 200 bytes for an operation of fifty steps.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::Path;
use std::rc::{Rc, Weak};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind as ErrorKind, Result};
use crate::init::plan::Plan;
use crate::init::steps;
use crate::sys::ns::Namespace;
use crate::sys::stamps::{Clock, Pages, ROOM, Stamps};

use super::Engine;

/// How many operations are kept.
pub const KEPT: usize = 32;

/// The file of a child that outlives who has born it, in the container's state directory.
const STAMPS: &str = "stamps";

/// How much of an id is kept. Clients' ids are shorter.
const LONGEST_ID: usize = 256;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// From the request to a container whose init waits.
    Create,
    /// From there to its program.
    Start,
    /// From the request for a further process to its program.
    Exec,
    /// All that is taken away at the end.
    Delete,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It failed.
    Failed,
    /// It is not over.
    UnderWay,
}

/// Who did a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// The shim, or a command of the command line.
    Shim,
    /// The child that becomes the container's process.
    Child,
}

/// One step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Its name; of the child's those of `init/steps.rs`.
    pub step: String,
    /// Who did it.
    pub who: Who,
    /// Nanoseconds from the beginning of the operation to that of the step.
    pub start_ns: u64,
    /// How long it took.
    pub took_ns: u64,
    /// It consists of waiting for the other side, or for the client.
    pub waits: bool,
}

/// One operation, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What was done.
    pub kind: Kind,
    /// The container's id.
    pub container: String,
    /// The exec's; empty for what concerns the container's init.
    pub exec: String,
    /// The wall clock at its beginning, in microseconds since 1970.
    pub began_us: u64,
    /// How long it took; up to now where it is not over.
    pub took_ns: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// Its steps: ours in order, then the child's.
    pub steps: Vec<Span>,
}

/// What is told of several, as a document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operations {
    /// The oldest first.
    pub operations: Vec<Operation>,
}

impl Span {
    /// It waits for whoever asked for the operation: nobody here is slow.
    pub fn waits_for_client(&self) -> bool {
        self.who == Who::Shim && self.step == STEPS[Step::Client as usize].1
    }

    /// When it was over, as [`Span::start_ns`].
    pub fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.took_ns)
    }
}

impl Operations {
    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Numbers, and names that are UTF-8: it cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Of such a document.
    ///
    /// # Errors
    /// `Internal` where it is none.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text).map_err(|e| Error::new(ErrorKind::Internal, format!("a trace: {e}")))
    }
}

macro_rules! our_steps {
    ($($step:ident $name:literal,)*) => {
        /// What is done on this side of the fork.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step { $(#[doc = $name] $step,)* }
        const STEPS: &[(Step, &str)] = &[$((Step::$step, $name),)*];
    };
}

our_steps! {
    Judging "judging the specification",
    Taking "taking the state directory",
    Listener "looking for the seccomp listener",
    Mounting "mounting the rootfs",
    Stdio "opening stdio",
    Cgroup "making the cgroup and its limits",
    Planning "planning",
    Forking "forking",
    Joining "joining the cgroup",
    Settling "having systemd make the cgroup",
    Adjusting "writing the OOM score and the id maps",
    Waiting "waiting for the child",
    Devices "moving network devices",
    Sources "opening the host's sources",
    Hooks "running the hooks of create",
    Saving "saving the state",
    Client "waiting for the client to start it",
    Releasing "releasing it",
    HandingOver "handing the filter to the listener",
    Announcing "announcing it",
    Poststart "running the poststart hooks",
    GivingUp "undoing it",
    Ending "waiting for its end",
    Draining "draining its output",
    Removing "removing what is left",
}

impl Step {
    fn waits(self) -> bool {
        matches!(self, Self::Waiting | Self::Client | Self::Ending)
    }

    /// The child has ended or become the program when this begins.
    fn is_after_the_child(self) -> bool {
        matches!(self, Self::Saving | Self::Announcing | Self::GivingUp)
    }
}

/// The last operations of an engine.
#[derive(Clone, Default)]
pub struct Traces(Rc<RefCell<Ring>>);

/// An operation that is not over. At its end, with the last reference, it is kept.
pub struct UnderWay {
    traces: Traces,
    about: About,
    outcome: Cell<Outcome>,
    marks: RefCell<Vec<(Step, u64)>>,
    child: RefCell<Option<Rc<Stamps>>>,
}

#[derive(Clone)]
struct About {
    kind: Kind,
    container: String,
    exec: String,
    wall: u64,
    began: u64,
}

/// One that is over.
struct Over {
    about: About,
    took: u64,
    outcome: Outcome,
    /// The container is gone, or has never been.
    gone: bool,
    packed: Box<[u8]>,
}

#[derive(Default)]
struct Ring {
    over: VecDeque<Over>,
    under_way: Vec<Weak<UnderWay>>,
    pages: Pages,
}

impl Traces {
    /// Where a child of a container is to leave its moments. Without them the container is as good.
    pub(super) fn stamps(&self, container: &str, plan: &Plan) -> Option<Rc<Stamps>> {
        self.0.borrow_mut().pages.stamps(container, clock(plan.changes_time())).ok().map(Rc::new)
    }

    /// An operation begins, with its first step.
    pub fn begin(&self, kind: Kind, container: &str, exec: &str, first: Step) -> Rc<UnderWay> {
        let began = Clock::Monotonic.now();
        let about = About { kind, container: short(container), exec: short(exec), wall: Clock::Real.now(), began };
        let mut marks = Vec::with_capacity(16);
        marks.push((first, began));
        let under_way = Rc::new(UnderWay {
            traces: self.clone(),
            about,
            outcome: Cell::new(Outcome::Failed),
            marks: RefCell::new(marks),
            child: RefCell::default(),
        });
        self.0.borrow_mut().under_way.push(Rc::downgrade(&under_way));
        under_way
    }

    /// The operations of a container, or of one of its execs alone, the oldest first.
    pub fn of(&self, container: &str, exec: Option<&str>) -> Vec<Operation> {
        let (container, exec) = (short(container), exec.map(short));
        let asked =
            |about: &About| about.container == container && exec.as_ref().is_none_or(|exec| *exec == about.exec);
        let ring = self.0.borrow();
        let over = ring.over.iter().filter(|over| asked(&over.about)).map(Over::tell);
        let under_way: Vec<_> = ring.under_way.iter().filter_map(Weak::upgrade).collect();
        let under_way = under_way.iter().filter(|under_way| asked(&under_way.about)).map(|under_way| under_way.tell());
        over.chain(under_way).collect()
    }
}

/// Not longer than is kept of an id.
fn short(id: &str) -> String {
    id[..id.floor_char_boundary(LONGEST_ID)].to_owned()
}

impl UnderWay {
    /// The step before is over, and this one begins.
    pub fn at(&self, step: Step) {
        self.marks.borrow_mut().push((step, Clock::Monotonic.now()));
    }

    /// It has a child, which leaves its moments there.
    pub fn child(&self, stamps: Option<Rc<Stamps>>) {
        self.child.replace(stamps);
    }

    /// It was done.
    pub fn done(&self) {
        self.outcome.set(Outcome::Done);
    }

    fn over(&self, outcome: Outcome) -> Over {
        let ended = Clock::Monotonic.now();
        let stamps = self.child.borrow().as_ref().map_or([0; ROOM], |stamps| stamps.read());
        let gone = self.about.kind == Kind::Delete || (self.about.kind, outcome) == (Kind::Create, Outcome::Failed);
        let packed = pack(self.about.began, &self.marks.borrow(), believed(&stamps, self.about.began, ended));
        Over { about: self.about.clone(), took: ended - self.about.began, outcome, gone, packed }
    }

    fn tell(&self) -> Operation {
        self.over(Outcome::UnderWay).tell()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let over = self.over(self.outcome.get());
        let mut ring = self.traces.0.borrow_mut();
        ring.under_way.retain(|under_way| under_way.strong_count() != 0);
        // Of what nobody has wanted to be started in the end there is nothing to tell.
        if self.marks.borrow().last().is_some_and(|(step, _)| *step == Step::Client) {
            return;
        }
        ring.keep(over);
    }
}

impl Ring {
    /// Of the oldest the first that goes is none by which a container that is there was made and started: its probes would
    /// have it forgotten in a minute.
    fn keep(&mut self, over: Over) {
        if over.about.kind == Kind::Delete && over.outcome == Outcome::Done {
            let same = self.over.iter_mut().filter(|old| old.about.container == over.about.container);
            same.for_each(|old| old.gone = true);
        }
        if self.over.len() >= KEPT {
            let stays = |old: &Over| !old.gone && matches!(old.about.kind, Kind::Create | Kind::Start);
            let first = self.over.iter().position(|old| !stays(old)).unwrap_or_default();
            self.over.remove(first);
        }
        self.over.push_back(over);
    }
}

impl Over {
    fn tell(&self) -> Operation {
        let (ours, children) = unpack(&self.packed);
        let ends = |at: usize, all: &[(u8, u64)]| all.get(at + 1).map_or(self.took, |(_, next)| *next);
        let mut steps = Vec::with_capacity(ours.len() + children.len());
        for (at, &(step, start)) in ours.iter().enumerate() {
            let Some(&(step, name)) = STEPS.get(usize::from(step)) else { continue };
            steps.push(span(name.to_owned(), Who::Shim, start, ends(at, &ours), step.waits()));
        }
        // The end of its last step is not the child's to tell.
        let open = children.last().map_or(self.took, |&(_, last)| {
            let after = |&&(step, start): &&(u8, u64)| {
                start >= last && STEPS.get(usize::from(step)).is_some_and(|(step, _)| step.is_after_the_child())
            };
            ours.iter().find(after).map_or(self.took, |(_, start)| *start)
        });
        for (at, &(number, start)) in children.iter().enumerate() {
            let Some(name) = steps::name(number.into()) else { continue };
            let last = at + 1 == children.len();
            // Another operation will tell of its end.
            if last && name == steps::CREATED_AND_WAITING && self.about.kind == Kind::Create {
                continue;
            }
            let end = if last { open } else { ends(at, &children) };
            let waits = steps::WAITS.contains(&name);
            let more = last && self.outcome == Outcome::Done && usize::from(number) != steps::EXECUTING_AT;
            let name = if more { format!("{name}, and what follows") } else { name.to_owned() };
            steps.push(span(name, Who::Child, start, end, waits));
        }
        let About { kind, container, exec, wall, .. } = self.about.clone();
        let (took_ns, outcome) = (self.took, self.outcome);
        Operation { kind, container, exec, began_us: wall / 1000, took_ns, outcome, steps }
    }
}

fn span(step: String, who: Who, start: u64, end: u64, waits: bool) -> Span {
    Span { step, who, start_ns: start, took_ns: end.saturating_sub(start), waits }
}

/// What of a child's moments can be true: from the beginning of the operation on, each after the one before, none to come.
fn believed(stamps: &[u64; ROOM], began: u64, ended: u64) -> impl Iterator<Item = (u8, u64)> {
    let all = (0u8..).zip(stamps.iter().copied()).filter(move |(_, moment)| *moment >= began.max(1));
    all.scan(began, move |last, (number, moment)| {
        (*last..=ended).contains(&moment).then(|| {
            *last = moment;
            (number, moment)
        })
    })
}

/// Numbers of steps with the time since the step before (of the first: since the beginning), ours and then the child's.
fn pack(began: u64, ours: &[(Step, u64)], children: impl Iterator<Item = (u8, u64)>) -> Box<[u8]> {
    let mut packed = vec![ours.len() as u8];
    let mut add = |last: &mut u64, step: u8, moment: u64| {
        packed.push(step);
        put(&mut packed, moment.saturating_sub(*last));
        *last = moment;
    };
    let mut last = began;
    // A byte counts them; there are some twenty.
    ours.iter().take(u8::MAX.into()).for_each(|&(step, moment)| add(&mut last, step as u8, moment));
    let mut last = began;
    children.for_each(|(number, moment)| add(&mut last, number, moment));
    packed.into()
}

/// Both lists, with the times since the beginning.
type Unpacked = (Vec<(u8, u64)>, Vec<(u8, u64)>);

fn unpack(packed: &[u8]) -> Unpacked {
    let (&count, mut rest) = packed.split_first().unwrap_or((&0, &[]));
    let mut next = |at: &mut u64| {
        let (&step, behind) = rest.split_first()?;
        rest = behind;
        *at += take(&mut rest);
        Some((step, *at))
    };
    let (mut at, mut child_at) = (0, 0);
    let ours = (0..count).map_while(|_| next(&mut at)).collect();
    (ours, std::iter::from_fn(|| next(&mut child_at)).collect())
}

/// Seven bits a byte, the lowest first; the eighth says that there are more (LEB128).
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    while let Some((&byte, rest)) = bytes.split_first() {
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 || shift > 56 {
            break;
        }
    }
    number
}

/// Where the child of a plan is to leave its moments when it outlives us.
pub(super) fn stamps_for(plan: &Plan, directory: &Path) -> Option<Rc<Stamps>> {
    Stamps::create(&directory.join(STAMPS), clock(plan.changes_time())).ok().map(Rc::new)
}

/// What a process that we have not born ourselves leaves in `directory`; `namespaces` are the container's.
pub(super) fn stamps_in(directory: &Path, namespaces: u64) -> Option<Rc<Stamps>> {
    let clock = clock(namespaces & Namespace::Time.flag() != 0);
    Stamps::open(&directory.join(STAMPS), clock).ok().map(Rc::new)
}

fn clock(changes_time: bool) -> Clock {
    if changes_time { Clock::Real } else { Clock::Monotonic }
}

impl Engine {
    /// What is known of operations on a container, or of the start of one of its execs alone.
    ///
    /// # Errors
    /// `NotFound` where there is neither a trace nor a container.
    pub fn traced(&self, id: &str, exec: Option<&str>) -> Result<Vec<Operation>> {
        let all = self.traces.of(id, exec);
        match (all.is_empty(), exec) {
            (false, _) => Ok(all),
            (true, None) => self.container(id).map(|_| all),
            (true, Some(exec)) => {
                let text = format!("container {id}: exec {exec}: no trace of it is kept");
                Err(Error::new(ErrorKind::NotFound, text))
            }
        }
    }
}

#[cfg(test)]
mod tests;
