//! The life of a process of a container: which states there are and what leads from one to the next.
//!
//! ```text
//!   init:  Creating --created--> Created --start--> Starting --executed--> Running --exited--> Stopped
//!                                   ^                  |                                          ^
//!                                   +---start failed---+        (Created, Starting) --exited------+
//!   exec:  Added ------------------start--------> Starting ...
//! ```
//!
//! Only the reaper says `Exited`, so a signal sent changes nothing here by itself.
//!
//! Beside it the whole container has a freezer, which stands still what runs:
//!
//! ```text
//!   Thawed --pause--> Freezing --frozen--> Frozen --resume--> Thawed
//!                        +------failed, resume------------------^
//! ```

use crate::error::{Error, Kind, Result};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Init: being made, not to be seen yet.
    Creating,
    /// Init: made, parked right before its execve. Exec: recorded, no process yet.
    Created,
    /// On its way to execve.
    Starting,
    /// The container's program runs.
    Running,
    /// Its exit has been seen.
    Stopped,
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Init is parked.
    Created,
    /// A client wants it to run.
    Start,
    /// execve has succeeded.
    Executed,
    /// execve, or the way to it, has failed.
    StartFailed,
    /// The reaper has its exit status.
    Exited,
    /// A client wants it gone.
    Delete,
}

impl State {
    /// The state after `event`, or why it cannot happen now. `Delete` leaves the state: what is deleted has none.
    ///
    /// # Errors
    /// `FailedPrecondition`, in runc's words where clients know them.
    pub fn after(self, event: Event) -> Result<State> {
        use Event as E;
        use State as S;
        match (self, event) {
            (S::Creating, E::Created) => Ok(S::Created),
            (S::Created, E::Start) => Ok(S::Starting),
            (S::Starting, E::Executed) => Ok(S::Running),
            (S::Starting, E::StartFailed) => Ok(S::Created),
            (S::Creating | S::Created | S::Starting | S::Running, E::Exited) => Ok(S::Stopped),
            (S::Created | S::Stopped, E::Delete) => Ok(self),
            (S::Creating, E::Start | E::Delete) => Err(refuse("the container is being created")),
            (S::Starting, E::Start) => Err(refuse("it is being started")),
            (S::Running, E::Start) => Err(refuse("cannot start an already running process")),
            (S::Stopped, E::Start) => Err(refuse("cannot start a container that has stopped")),
            (S::Starting | S::Running, E::Delete) => Err(refuse("cannot delete a running process")),
            (_, E::Created | E::Executed | E::StartFailed | E::Exited) => {
                Err(Error::new(Kind::Internal, format!("{event:?} of a process that is {self:?}")))
            }
        }
    }
}

/// Whether a container stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreezerState {
    /// It runs.
    #[default]
    Thawed,
    /// A Pause waits until all of it stands still.
    Freezing,
    /// All of it stands still.
    Frozen,
}

/// What happens to the freezer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezerEvent {
    /// A client wants it to stand still.
    Pause,
    /// It does.
    Frozen,
    /// It does not in time.
    Failed,
    /// A client wants it to run, or to die.
    Resume,
}

impl FreezerState {
    /// The state after `event`, or why it cannot happen now.
    ///
    /// # Errors
    /// `FailedPrecondition`.
    pub fn after(self, event: FreezerEvent) -> Result<FreezerState> {
        use FreezerEvent as E;
        use FreezerState as F;
        match (self, event) {
            (F::Thawed, E::Pause) => Ok(F::Freezing),
            (F::Freezing, E::Frozen) => Ok(F::Frozen),
            (F::Freezing, E::Failed) | (F::Freezing | F::Frozen, E::Resume) => Ok(F::Thawed),
            (F::Freezing, E::Pause) => Err(refuse("the container is being paused")),
            (F::Frozen, E::Pause) => Err(refuse("the container is paused already")),
            (F::Thawed, E::Resume) => Err(refuse("the container is not paused")),
            (_, E::Frozen | E::Failed) => {
                Err(Error::new(Kind::Internal, format!("{event:?} of a freezer that is {self:?}")))
            }
        }
    }
}

fn refuse(why: &str) -> Error {
    Error::new(Kind::FailedPrecondition, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 5] = [State::Creating, State::Created, State::Starting, State::Running, State::Stopped];
    const EVENTS: [Event; 6] =
        [Event::Created, Event::Start, Event::Executed, Event::StartFailed, Event::Exited, Event::Delete];

    /// The whole table, a row a state and a column an event, as it is meant: any change shows here.
    #[test]
    fn every_state_and_every_event() {
        use State::*;
        let meant: [[Option<State>; 6]; 5] = [
            // Created     Start           Executed       StartFailed    Exited         Delete
            [Some(Created), None, None, None, Some(Stopped), None],
            [None, Some(Starting), None, None, Some(Stopped), Some(Created)],
            [None, None, Some(Running), Some(Created), Some(Stopped), None],
            [None, None, None, None, Some(Stopped), None],
            [None, None, None, None, None, Some(Stopped)],
        ];
        for (state, row) in STATES.into_iter().zip(meant) {
            for (event, after) in EVENTS.into_iter().zip(row) {
                assert_eq!(state.after(event).ok(), after, "{state:?} {event:?}");
            }
        }
    }

    /// The same for the freezer.
    #[test]
    fn every_state_and_every_event_of_the_freezer() {
        use FreezerState::*;
        let events = [FreezerEvent::Pause, FreezerEvent::Frozen, FreezerEvent::Failed, FreezerEvent::Resume];
        let meant: [(FreezerState, [Option<FreezerState>; 4]); 3] = [
            //         Pause           Frozen        Failed        Resume
            (Thawed, [Some(Freezing), None, None, None]),
            (Freezing, [None, Some(Frozen), Some(Thawed), Some(Thawed)]),
            (Frozen, [None, None, None, Some(Thawed)]),
        ];
        for (state, row) in meant {
            for (event, after) in events.into_iter().zip(row) {
                let got = state.after(event);
                assert_eq!(got.as_ref().ok(), after.as_ref(), "{state:?} {event:?}");
                let clients = matches!(event, FreezerEvent::Pause | FreezerEvent::Resume);
                let refused = got.err().map(|e| e.kind() == Kind::FailedPrecondition);
                assert!(refused.is_none_or(|refused| refused == clients), "{state:?} {event:?}");
            }
        }
    }

    /// What a client asked for wrongly is its own fault; an exit seen twice would be ours.
    #[test]
    fn refusals_say_whose_fault_it_is() {
        for state in STATES {
            for event in EVENTS {
                let Err(error) = state.after(event) else { continue };
                let clients = matches!(event, Event::Start | Event::Delete);
                assert_eq!(error.kind() == Kind::FailedPrecondition, clients, "{state:?} {event:?}");
            }
        }
    }
}
