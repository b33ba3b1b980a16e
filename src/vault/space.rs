//! Knows how much room a place has, so that nobody who serves the kernel asks the disk.
//!
//! Promise: `room` and `fresh_room` answer from memory. They wait for the disk at most `PATIENCE`, and not at all while an
//! earlier question is unanswered for longer than that. What the log has written since the question counts as used.
//! An old answer does not know what other programs have taken: only `settled_room` may admit data by one, of a hanging disk.
//! Called by: `shared` (admission, `statfs`), `room`, background work (`look`). Takes: its own lock, never across the disk.
//! On failure: the backing directory's last answer stays; an emergency directory that does not answer has no room.

use super::place::{Place, Places};
use crate::backing::Space;
use crate::base::lock::Held;
use crate::base::world::World;
use crossbeam_channel::{Receiver, Sender};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Age up to which an answer serves.
const FRESH: Duration = Duration::from_millis(50);
/// Age from which on the next answer is asked for, so that whoever asks often waits for none. (Without this, 76 of 100 fsyncs on a
/// busy machine waited for the thread that asks.)
const AHEAD: Duration = Duration::from_millis(25);
/// Longest wait for an answer on a thread that serves the kernel. A disk that is well answers in microseconds.
const PATIENCE: Duration = Duration::from_millis(5);
/// A question that is unanswered for longer means that the disk hangs, and not that this machine is busy.
const HANGING: Duration = Duration::from_secs(1);
/// Longest wait for a disk that does not answer when the vault is closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// The room of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// As its filesystem says.
    Known(Space),
    /// Its filesystem does not say.
    Unknown,
    /// It could not be asked.
    Unreachable,
}

impl Room {
    /// Whether so many bytes fit, as far as anyone knows; `need` is told the size of the filesystem.
    pub fn fits(self, need: impl FnOnce(u64) -> u64) -> bool {
        match self {
            Room::Known(space) => need(space.total_bytes) <= space.free_bytes,
            // The write itself will tell.
            Room::Unknown => true,
            Room::Unreachable => false,
        }
    }

    /// The numbers, if there are any.
    pub fn space(self) -> Option<Space> {
        match self {
            Room::Known(space) => Some(space),
            Room::Unknown | Room::Unreachable => None,
        }
    }
}

struct Known {
    room: Room,
    /// When the question was put that `room` answers.
    asked_at: Option<Duration>,
    /// What the log had written then.
    written_before: u64,
    /// When the question was put that has no answer yet.
    pending_since: Option<Duration>,
}

/// What is known of the room in one place.
pub struct SpaceWatch {
    place: Place,
    places: Arc<Places>,
    world: Arc<dyn World>,
    known: Mutex<Known>,
    answered: Condvar,
    /// To the thread that asks; `None` in a vault without threads, where the disk is asked at once.
    questions: Mutex<Option<Sender<()>>>,
    written: AtomicU64,
}

impl SpaceWatch {
    /// Of a place that has not been asked yet; `questions` goes to the thread that runs `answer`.
    pub fn new(
        place: Place,
        places: Arc<Places>,
        world: Arc<dyn World>,
        questions: Option<Sender<()>>,
    ) -> Arc<SpaceWatch> {
        let unasked = if place == Place::Primary { Room::Unknown } else { Room::Unreachable };
        let known = Known { room: unasked, asked_at: None, written_before: 0, pending_since: None };
        let (known, questions, written) = (Mutex::new(known), Mutex::new(questions), AtomicU64::new(0));
        Arc::new(SpaceWatch { place, places, world, known, answered: Condvar::new(), questions, written })
    }

    /// Answers questions until the watch is closed: the life of its thread.
    pub fn answer(&self, questions: &Receiver<()>) {
        for () in questions {
            self.look();
        }
    }

    /// Asks the disk, on this thread.
    pub fn look(&self) -> Room {
        let (asked_at, written_before) = (self.world.elapsed(), self.written.load(SeqCst));
        let answer = match self.places.of(self.place).and_then(|backing| backing.space()) {
            Ok(Some(space)) => Room::Known(space),
            Ok(None) => Room::Unknown,
            Err(_) => Room::Unreachable,
        };
        let mut known = self.known.held();
        if known.asked_at.is_none_or(|before| before <= asked_at) {
            known.asked_at = Some(asked_at);
            // A backing directory that fails is for the log to find out, by writing.
            if answer != Room::Unreachable || self.place == Place::Emergency {
                (known.room, known.written_before) = (answer, written_before);
            }
        }
        if known.pending_since.is_some_and(|since| since <= asked_at) {
            known.pending_since = None;
        }
        self.answered.notify_all();
        self.charged(&known)
    }

    /// The room, without waiting for a disk that does not answer. The answer may be old: file data is not admitted by it.
    pub fn room(&self) -> Room {
        self.room_within(PATIENCE).0
    }

    /// The room, if the disk said so just now; never waits for a disk that does not answer.
    pub fn fresh_room(&self) -> Option<Room> {
        let (room, is_fresh) = self.room_within(PATIENCE);
        is_fresh.then_some(room)
    }

    /// The room as the disk said just now, or, if the disk hangs, as it said last. Waits until that is known.
    pub fn settled_room(&self) -> Room {
        self.room_within(HANGING).0
    }

    /// The room, and whether the disk said so just now; waits until the question is unanswered for so long.
    fn room_within(&self, most: Duration) -> (Room, bool) {
        let now = self.world.elapsed();
        let is_fresh = |known: &Known| known.asked_at.is_some_and(|at| now.saturating_sub(at) < FRESH);
        let known = self.known.held();
        if is_fresh(&known) {
            let room = self.charged(&known);
            if known.asked_at.is_some_and(|at| now.saturating_sub(at) >= AHEAD) {
                drop(self.ask(known, now));
            }
            return (room, true);
        }
        let Some(mut known) = self.ask(known, now) else { return (self.look(), true) };
        while let Some(since) = known.pending_since.filter(|since| *since <= now) {
            let left = most.saturating_sub(self.world.elapsed().saturating_sub(since));
            if left.is_zero() {
                break;
            }
            known = self.answered.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        (self.charged(&known), is_fresh(&known))
    }

    /// The room as of now, waited for, but no longer than `most`: for whoever would be refused otherwise.
    pub fn room_now(&self, most: Duration) -> Room {
        let now = self.world.elapsed();
        let mut known = self.known.held();
        while known.asked_at.is_none_or(|at| at < now) {
            known = match self.ask(known, self.world.elapsed()) {
                Some(known) => known,
                None => return self.look(),
            };
            let left = most.saturating_sub(self.world.elapsed().saturating_sub(now));
            if left.is_zero() {
                break;
            }
            known = self.answered.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.charged(&known)
    }

    /// What is known is old: room was given back, or taken by something else than the log's groups.
    pub fn forget(&self) {
        self.known.held().asked_at = None;
    }

    /// The log has written so many bytes; to be called when they are written, and before their buffers are given back.
    pub fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, SeqCst);
    }

    /// Ends the thread that asks; says whether it has nothing to wait for.
    pub fn close(&self) -> bool {
        self.questions.held().take();
        let known = self.known.held();
        let waited = self.answered.wait_timeout_while(known, CLOSE_PATIENCE, |known| known.pending_since.is_some());
        waited.unwrap_or_else(PoisonError::into_inner).0.pending_since.is_none()
    }

    /// Puts the question, if it is not put already; `None` if there is nobody to ask.
    fn ask<'a>(&'a self, mut known: MutexGuard<'a, Known>, now: Duration) -> Option<MutexGuard<'a, Known>> {
        if known.pending_since.is_none() {
            let questions = self.questions.held();
            // One question waits at most, so there is room for it.
            questions.as_ref()?.try_send(()).ok();
            known.pending_since = Some(now);
        }
        Some(known)
    }

    fn charged(&self, known: &Known) -> Room {
        let since = self.written.load(SeqCst) - known.written_before;
        match known.room {
            Room::Known(space) => Room::Known(Space { free_bytes: space.free_bytes.saturating_sub(since), ..space }),
            other => other,
        }
    }
}
