//! The states of a batch and of the vault, and the one function that changes each.
//!
//! Promise: a state changes only through `after`, which spells every refusal out: a new state or event breaks the build
//! where someone must think. Every transition of the vault is counted and timed. No state but `Closed` is a trap: for each
//! there is an event that leads back to `Ready`, and someone who sends it when the cause is gone.
//! Called by: `log`, `verifier`, `checkpoint`, `op`, `open` through `Shared::happened`. Cannot fail: a refused event changes
//! nothing and is told to whoever sent it.

use std::fmt;
use std::time::Duration;

/// What is true of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchState {
    /// Operations still join it; only memory has it.
    Filling,
    /// It was cut: nothing joins it any more, and it is not yet all in the log.
    Sealed,
    /// Its commit is written and not yet flushed. Nothing of it may be trusted after a crash.
    Flushing,
    /// Flushed, and not yet all read back.
    Verifying,
    /// On stable media in the backing directory, verified; its fsyncs are answered.
    Retired,
    /// On stable media in the emergency directory, verified; its fsyncs are answered.
    Saved,
    /// What holds it failed: its buffers are whole, and it will be written again in another segment.
    Failed,
}

/// What happens to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchEvent {
    /// The cut.
    Seal,
    /// Its commit was written.
    Written,
    /// The device was flushed.
    Flushed,
    /// All of it was read back right, from the backing directory.
    Matched,
    /// The same, from the emergency directory.
    MatchedAway,
    /// A write, flush or read-back failed.
    Fault,
    /// It is to be written again.
    Retry,
}

/// An event that does not fit a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused<S, E> {
    /// Where it met.
    pub state: S,
    /// What came.
    pub event: E,
}

impl<S: fmt::Debug, E: fmt::Debug> fmt::Display for Refused<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} does not follow on {:?}", self.event, self.state)
    }
}

impl BatchState {
    /// ```text
    /// Filling --Seal--> Sealed --Written--> Flushing --Flushed--> Verifying --Matched--> Retired
    ///                    ^ |                   |                      |-------MatchedAway--> Saved
    ///                    | +------Fault--------+---------Fault--------+--Fault--> Failed
    ///                    +---------------------------Retry---------------------------+
    /// ```
    pub fn after(self, event: BatchEvent) -> Result<BatchState, Refused<BatchState, BatchEvent>> {
        use BatchEvent::*;
        use BatchState::*;
        match (self, event) {
            (Filling, Seal) | (Failed, Retry) => Ok(Sealed),
            (Sealed, Written) => Ok(Flushing),
            (Flushing, Flushed) => Ok(Verifying),
            (Verifying, Matched) => Ok(Retired),
            (Verifying, MatchedAway) => Ok(Saved),
            (Sealed | Flushing | Verifying | Failed, Fault) => Ok(Failed),
            (Filling, Written | Flushed | Matched | MatchedAway | Fault | Retry)
            | (Sealed, Seal | Flushed | Matched | MatchedAway | Retry)
            | (Flushing, Seal | Written | Matched | MatchedAway | Retry)
            | (Verifying, Seal | Written | Flushed | Retry)
            | (Failed, Seal | Written | Flushed | Matched | MatchedAway)
            | (Retired | Saved, Seal | Written | Flushed | Matched | MatchedAway | Fault | Retry) => {
                Err(Refused { state: self, event })
            }
        }
    }
}

/// What is true of the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Being opened: paths checked, log recovered, a test write made. Nothing is served yet.
    Init = 0,
    /// All that was acknowledged is at rest and verified.
    Ready = 1,
    /// There are buffered changes, no older than the flush interval.
    Writing = 2,
    /// A batch is on its way to the device.
    Flushing = 3,
    /// A batch is flushed and being read back.
    Verifying = 4,
    /// The backing directory has failed: the log goes on in the emergency directory, and fsync is answered from there.
    Backup = 5,
    /// What a crash or a failure left elsewhere is being brought home; everything works.
    Recovering = 6,
    /// No place takes the log: reads go on, writers and fsync get an error, buffers are kept, probing goes on.
    Error = 7,
    /// At an end.
    Closed = 8,
    /// There is no room for new data: it is refused with ENOSPC. Reads, deletes, fsyncs and commits work, as long as the room that
    /// was kept for them is enough; if somebody else took it, buffers are kept and probing goes on, as in `Error`.
    Full = 9,
}

/// What happens to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It may be served, with nothing to bring home.
    Opened,
    /// It may be served, and something is to be brought home.
    OpenedAway,
    /// An operation changed something.
    Changed,
    /// A batch was cut.
    Cut,
    /// A batch was flushed.
    Flushed,
    /// A batch was verified and others are buffered.
    Settled,
    /// A batch was verified and nothing else is buffered.
    Idle,
    /// The backing directory failed, and the emergency directory is to take the log.
    Away,
    /// No place takes the log.
    Nowhere,
    /// The backing directory takes the log again.
    Back,
    /// Everything is home.
    Home,
    /// New data finds no room, or no place takes the log for want of room.
    NoRoom,
    /// New data finds room again.
    Room,
    /// The end.
    Close,
}

impl State {
    /// Every state, in order of its number.
    pub const ALL: [State; 10] = {
        use State::*;
        [Init, Ready, Writing, Flushing, Verifying, Backup, Recovering, Error, Closed, Full]
    };

    /// The word shown to people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Init => "init",
            State::Ready => "ready",
            State::Writing => "writing",
            State::Flushing => "flushing",
            State::Verifying => "verifying",
            State::Backup => "backup",
            State::Recovering => "recovering",
            State::Error => "error",
            State::Closed => "closed",
            State::Full => "full",
        }
    }

    /// Whether it is one of the four of ordinary work, which follow each other many times a second: the history shows
    /// them as one.
    #[must_use]
    pub fn is_work(self) -> bool {
        matches!(self, State::Ready | State::Writing | State::Flushing | State::Verifying)
    }

    /// ```text
    /// Init --> Ready --Changed--> Writing --Cut--> Flushing --Flushed--> Verifying --Idle--> Ready
    ///   |        \________________________ Away | Nowhere | NoRoom _______/
    ///   +--> Recovering <--Back-- Backup <--Away-- (work, Full, Recovering, Error)
    ///            |  ^--Back-- Error <--Nowhere-- (work, Full, Backup, Recovering)
    ///            |            Full <--NoRoom-- (work, Backup, Recovering, Error)
    ///            +--Home--> Ready         Full --Room--> Ready           Close leads from every state to Closed
    /// ```
    /// Under way elsewhere (Backup, Recovering, Error) and while Full the words of ordinary work change nothing.
    pub fn after(self, event: Event) -> Result<State, Refused<State, Event>> {
        use Event::*;
        use State::*;
        match (self, event) {
            (Init, Opened) | (Recovering, Home) | (Full, Room) => Ok(Ready),
            (Init, OpenedAway) => Ok(Recovering),
            (Ready, Changed) | (Verifying | Flushing, Settled) => Ok(Writing),
            (Ready | Writing | Verifying, Cut) => Ok(Flushing),
            (Flushing, Flushed) => Ok(Verifying),
            (Writing | Flushing | Verifying, Idle) => Ok(Ready),
            (Ready | Writing | Flushing | Verifying | Backup | Recovering | Error | Full, NoRoom) => Ok(Full),
            (Writing | Flushing | Verifying, Changed)
            | (Flushing, Cut)
            | (Verifying | Writing | Ready, Flushed)
            | (Writing, Settled)
            | (Ready, Settled | Idle) => Ok(self),
            (Backup | Recovering | Error | Full, Changed | Cut | Flushed | Settled | Idle)
            | (Ready | Writing | Flushing | Verifying | Backup | Recovering | Error, Room) => Ok(self),
            (Ready | Writing | Flushing | Verifying | Recovering | Error | Full, Away) => Ok(Backup),
            (Ready | Writing | Flushing | Verifying | Recovering | Backup | Full, Nowhere) => Ok(Error),
            (Backup, Away) | (Error, Nowhere) => Ok(self),
            (Ready | Writing | Flushing | Verifying | Backup | Error | Recovering | Full, Back) => Ok(Recovering),
            (Init | Ready | Writing | Flushing | Verifying | Backup | Recovering | Error | Full, Close) => Ok(Closed),
            (Init, Changed | Cut | Flushed | Settled | Idle | Away | Nowhere | Back | Home | NoRoom | Room)
            | (Ready | Writing | Flushing | Verifying | Backup | Error | Full, Home)
            | (Ready | Writing | Flushing | Verifying | Backup | Recovering | Error | Full, Opened | OpenedAway)
            | (
                Closed,
                Opened | OpenedAway | Changed | Cut | Flushed | Settled | Idle | Away | Nowhere | Back | Home | NoRoom
                | Room | Close,
            ) => Err(Refused { state: self, event }),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How often a state was entered, and how long it was held in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Times entered.
    pub entered: u64,
    /// Time in it, the present stay included.
    pub time: Duration,
}

/// The vault's state and what is known of its past.
#[derive(Debug)]
pub struct Machine {
    state: State,
    since: Duration,
    held: [Held; State::ALL.len()],
}

impl Machine {
    /// In `Init`, since `now`.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        let mut held = [Held::default(); State::ALL.len()];
        held[State::Init as usize].entered = 1;
        Machine { state: State::Init, since: now, held }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes an event in; gives the state before and after, if it changed.
    pub fn take(&mut self, event: Event, now: Duration) -> Result<Option<(State, State)>, Refused<State, Event>> {
        let (before, after) = (self.state, self.state.after(event)?);
        if before == after {
            return Ok(None);
        }
        self.held[before as usize].time += now.saturating_sub(self.since);
        self.held[after as usize].entered += 1;
        (self.state, self.since) = (after, now);
        Ok(Some((before, after)))
    }

    /// Counts and times of every state as of `now`.
    #[must_use]
    pub fn held(&self, now: Duration) -> [Held; State::ALL.len()] {
        let mut all = self.held;
        all[self.state as usize].time += now.saturating_sub(self.since);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 14] = {
        use Event::*;
        [Opened, OpenedAway, Changed, Cut, Flushed, Settled, Idle, Away, Nowhere, Back, Home, NoRoom, Room, Close]
    };

    #[test]
    fn only_closed_is_a_trap() {
        for from in State::ALL {
            let mut reached = vec![from];
            let mut next = 0;
            while next < reached.len() {
                for event in EVENTS.into_iter().filter(|e| *e != Event::Close) {
                    if let Ok(to) = reached[next].after(event)
                        && !reached.contains(&to)
                    {
                        reached.push(to);
                    }
                }
                next += 1;
            }
            assert_eq!(reached.contains(&State::Ready), from != State::Closed, "{from}");
        }
    }

    #[test]
    fn a_batch_is_trusted_only_after_flush_and_match() {
        use BatchEvent::*;
        let walk = |events: &[BatchEvent]| events.iter().try_fold(BatchState::Filling, |s, e| s.after(*e));
        assert_eq!(walk(&[Seal, Written, Flushed, Matched]), Ok(BatchState::Retired));
        assert_eq!(walk(&[Seal, Written, Fault, Retry, Written, Flushed, MatchedAway]), Ok(BatchState::Saved));
        assert!(walk(&[Seal, Written, Matched]).is_err(), "matched before it was flushed");
        assert!(walk(&[Seal, Written, Flushed, Matched, Fault]).is_err(), "what is at rest does not fail any more");
    }

    #[test]
    fn a_failure_and_its_end_read_in_order() {
        use Event::*;
        let mut machine = Machine::new(Duration::ZERO);
        let mut words = Vec::new();
        for (second, event) in [Opened, Changed, Cut, Away, Changed, Cut, Back, Home, Close].into_iter().enumerate() {
            if let Ok(Some((_, after))) = machine.take(event, Duration::from_secs(second as u64)) {
                words.push(after.word());
            }
        }
        assert_eq!(words, ["ready", "writing", "flushing", "backup", "recovering", "ready", "closed"]);
        let held = machine.held(Duration::from_secs(100));
        assert_eq!(held[State::Backup as usize], Held { entered: 1, time: Duration::from_secs(3) });
        assert_eq!(held[State::Ready as usize].entered, 2);
        assert!(machine.take(Changed, Duration::from_secs(101)).is_err(), "closed is closed");
    }
}
