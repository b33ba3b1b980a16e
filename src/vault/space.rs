//! Caches how much room a place has, so that threads which serve the kernel never wait for `statfs` of a slow disk.
//!
//! Promise: `room` and `fresh_room` wait for the disk at most `PATIENCE`, and not at all while an earlier question has been
//! unanswered for longer. Bytes that the log has written since the last answer count as used. An old answer does not
//! include what other programs have taken, so only `settled_room` admits data by one, and only if the disk hangs.
//! Called by: `shared` (admission, `statfs`), `room`, background work (`look`). Takes: its own lock, never across the disk.
//! On failure: the primary keeps its last answer; an emergency directory that does not answer has no room.

use super::place::{Place, Places};
use crate::backing::Space;
use crate::base::lock::Held;
use crate::base::world::World;
use crossbeam_channel::{Receiver, Sender};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An answer is fresh up to this age.
const FRESH: Duration = Duration::from_millis(50);
/// The next question is put when an answer has this age, so that a thread that asks often need not wait. (Without this,
/// 76 of 100 fsyncs on a busy machine waited for the thread that asks the disk.)
const AHEAD: Duration = Duration::from_millis(25);
/// Longest wait for an answer on a thread that serves the kernel. A healthy disk answers in microseconds.
const PATIENCE: Duration = Duration::from_millis(5);
/// After this time without an answer the disk hangs; before, the machine may just be busy.
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
    /// Whether there is room for `need(size)` bytes in a filesystem of that size. Unknown room counts as enough.
    pub fn fits(self, need: impl FnOnce(u64) -> u64) -> bool {
        match self {
            Room::Known(space) => need(space.total_bytes) <= space.free_bytes,
            // The write reports it if there is none.
            Room::Unknown => true,
            Room::Unreachable => false,
        }
    }

    /// The numbers of the filesystem, if it gives any.
    pub fn space(self) -> Option<Space> {
        match self {
            Room::Known(space) => Some(space),
            Room::Unknown | Room::Unreachable => None,
        }
    }
}

struct Known {
    room: Room,
    /// When the question that led to `room` was put.
    asked_at: Option<Duration>,
    /// Bytes that the log had written at that time.
    written_before: u64,
    /// When the question that has no answer yet was put.
    pending_since: Option<Duration>,
}

/// The room in one place, as last asked.
pub struct SpaceWatch {
    place: Place,
    places: Arc<Places>,
    world: Arc<dyn World>,
    known: Mutex<Known>,
    answered: Condvar,
    /// Wakes the thread that asks the disk. `None` in a vault without threads: the caller then asks the disk itself.
    questions: Mutex<Option<Sender<()>>>,
    written: AtomicU64,
}

impl SpaceWatch {
    /// Begins without an answer; `questions` goes to the thread that runs `answer`.
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

    /// Asks the disk for each question until the watch is closed. This is all that its thread runs.
    pub fn answer(&self, questions: &Receiver<()>) {
        for () in questions {
            self.look();
        }
    }

    /// Asks the disk on this thread, and may therefore wait for it.
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
            // The log finds out by writing whether the primary has failed; until then its last answer stays.
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

    /// Returns the room without waiting for a hanging disk. The answer may be old, so it must not admit file data.
    pub fn room(&self) -> Room {
        self.room_within(PATIENCE).0
    }

    /// Returns the room if a fresh answer is there; does not wait for a hanging disk.
    pub fn fresh_room(&self) -> Option<Room> {
        let (room, is_fresh) = self.room_within(PATIENCE);
        is_fresh.then_some(room)
    }

    /// Returns a fresh answer, or the last one if the disk hangs. Waits up to `HANGING` to know which.
    pub fn settled_room(&self) -> Room {
        self.room_within(HANGING).0
    }

    /// Returns the room and whether the answer is fresh; waits until a question has been unanswered for `most`.
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

    /// Asks for the room as of now and waits for the answer, at most `most`. Used before a request is refused for want
    /// of room, so that room which was freed a moment ago is seen.
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

    /// Makes the last answer old: room was given back, or taken by something other than the log's groups.
    pub fn forget(&self) {
        self.known.held().asked_at = None;
    }

    /// Counts bytes that the log has written. Call it after the write and before their buffers are given back.
    pub fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, SeqCst);
    }

    /// Ends the thread that asks the disk. False if it still waits for the disk after `CLOSE_PATIENCE`.
    pub fn close(&self) -> bool {
        self.questions.held().take();
        let known = self.known.held();
        let waited = self.answered.wait_timeout_while(known, CLOSE_PATIENCE, |known| known.pending_since.is_some());
        waited.unwrap_or_else(PoisonError::into_inner).0.pending_since.is_none()
    }

    /// Puts a question unless one is pending; `None` if there is no thread that asks the disk.
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
