//! Caches how much room a place has, so that threads which serve the kernel never wait for `statfs` of a slow disk.
//!
//! Promise: `room` and `fresh_room` wait for the disk at most `PATIENCE`, and not at all while an earlier question has been
//! unanswered for longer. Bytes that the log has written since the last answer count as used. An old answer does not
//! include what other programs have taken, so only `settled_room` admits data by one, and only if the disk hangs.
//! Room that the log has taken for its segments and not yet written to counts as free, for data goes there first.
//! Called by: `shared` (admission, `statfs`), `room`, background work (`look`). Takes: its own lock, never across the disk.
//! On failure: the primary keeps its last answer; an emergency directory that does not answer has no room.

use super::place::{Place, Places};
use super::reserve_bytes;
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

/// With less than this part of its reserve really free, a place has no room, whatever the log has taken ahead: the index
/// needs room, too.
const REALLY_FREE_PART: u64 = 2;
/// How often the disk is asked again where the log takes room meanwhile.
const LOOKS_MOST: usize = 4;

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

/// Room that the log has taken and not written to.
#[derive(Clone, Copy, Default)]
struct Ahead {
    /// In the segment being written.
    open_bytes: u64,
    /// For the next segment.
    prepared_bytes: u64,
}

impl Ahead {
    /// What counts as free beside `free` bytes of a filesystem of `total` bytes.
    fn counts(self, free: u64, total: u64) -> u64 {
        if free < reserve_bytes(total) / REALLY_FREE_PART {
            return 0;
        }
        // The log gives the next segment's room back if it needs it for the one being written.
        self.open_bytes + self.prepared_bytes
    }
}

struct Known {
    room: Room,
    /// Room that the log had taken ahead at that time, which `room` does not include.
    ahead: Ahead,
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
    /// Room in the segment being written that is taken and not written to.
    open_bytes: AtomicU64,
    /// What that segment may still take.
    rest_bytes: AtomicU64,
    /// Room taken for the next segment.
    prepared_bytes: AtomicU64,
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
        let known =
            Known { room: unasked, ahead: Ahead::default(), asked_at: None, written_before: 0, pending_since: None };
        let (known, questions, answered) = (Mutex::new(known), Mutex::new(questions), Condvar::new());
        let (written, open_bytes, rest_bytes, prepared_bytes) = Default::default();
        Arc::new(SpaceWatch {
            place,
            places,
            world,
            known,
            answered,
            questions,
            written,
            open_bytes,
            rest_bytes,
            prepared_bytes,
        })
    }

    /// Asks the disk for each question until the watch is closed. This is all that its thread runs.
    pub fn answer(&self, questions: &Receiver<()>) {
        for () in questions {
            self.look();
        }
    }

    /// Asks the disk on this thread, and may therefore wait for it.
    pub fn look(&self) -> Room {
        let asked_at = self.world.elapsed();
        let (mut written_before, mut ahead, mut answer) = self.ask_disk();
        for _ in 1..LOOKS_MOST {
            // What was taken in between is in neither number.
            let now = self.ahead();
            if now.open_bytes + now.prepared_bytes <= ahead.open_bytes + ahead.prepared_bytes {
                break;
            }
            (written_before, ahead, answer) = self.ask_disk();
        }
        let mut known = self.known.held();
        if known.asked_at.is_none_or(|before| before <= asked_at) {
            known.asked_at = Some(asked_at);
            // The log finds out by writing whether the primary has failed; until then its last answer stays.
            if answer != Room::Unreachable || self.place == Place::Emergency {
                (known.room, known.ahead, known.written_before) = (answer, ahead, written_before);
            }
        }
        if known.pending_since.is_some_and(|since| since <= asked_at) {
            known.pending_since = None;
        }
        self.answered.notify_all();
        self.charged(&known)
    }

    /// Asks the disk, and says what the log had written and taken ahead before.
    fn ask_disk(&self) -> (u64, Ahead, Room) {
        // In this order, what the log writes or takes meanwhile makes the room smaller, never larger.
        let written = self.written.load(SeqCst);
        let ahead = self.ahead();
        let answer = match self.places.of(self.place).and_then(|backing| backing.space()) {
            Ok(Some(space)) => Room::Known(space),
            Ok(None) => Room::Unknown,
            Err(_) => Room::Unreachable,
        };
        (written, ahead, answer)
    }

    fn ahead(&self) -> Ahead {
        Ahead { open_bytes: self.open_bytes.load(SeqCst), prepared_bytes: self.prepared_bytes.load(SeqCst) }
    }

    /// Returns the room for what is not the log, without waiting for a hanging disk.
    pub fn room_beside_log(&self) -> Room {
        let _ = self.room_within(PATIENCE);
        let known = self.known.held();
        SpaceWatch::less(known.room, Ahead::default(), self.written.load(SeqCst) - known.written_before)
    }

    /// Notes how much of the room taken for the segment being written is not written to, and how much more it may take.
    /// Call it before `wrote`.
    pub fn set_open_ahead(&self, bytes: u64, rest_bytes: u64) {
        self.open_bytes.store(bytes, SeqCst);
        self.rest_bytes.store(rest_bytes, SeqCst);
    }

    /// What the segment being written may still take before the next one is begun.
    pub fn rest_bytes(&self) -> u64 {
        self.rest_bytes.load(SeqCst)
    }

    /// Room that is taken for the next segment.
    pub fn prepared_bytes(&self) -> u64 {
        self.prepared_bytes.load(SeqCst)
    }

    /// Notes how much room is taken for the next segment, which nobody has begun.
    pub fn set_prepared(&self, bytes: u64) {
        self.prepared_bytes.store(bytes, SeqCst);
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
        SpaceWatch::less(known.room, known.ahead, since)
    }

    fn less(room: Room, ahead: Ahead, written: u64) -> Room {
        let Room::Known(space) = room else { return room };
        let free_bytes = space.free_bytes + ahead.counts(space.free_bytes, space.total_bytes);
        Room::Known(Space { free_bytes: free_bytes.saturating_sub(written), ..space })
    }
}
