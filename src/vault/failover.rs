//! Begins the log anew after a failure: in a new segment, elsewhere if need be, with everything that is not yet at rest.
//!
//! Promise: nothing acknowledged depends on the segment that failed; what was acknowledged before lies behind an earlier
//! flush and read-back, and is left alone; everything later is still in its buffers, and is written again, in the same
//! order. A failed write, flush or read-back is never tried again on the same file.
//! How: the verifier is heard out (what is good may still come to rest), jobs of cut batches are let arrive and dropped, a
//! place is chosen, the cursor begins a new segment, and every chunk that had been in the failed one goes to the workers again.
//! Called by: `log`. Takes: the gate alone, for the moment of the restart.
//! On failure: no place takes the log: state `error`, until a probe says that one does.

use super::log::Log;
use super::place::{Place, remove_if_there};
use super::sealer::{Job, Sealed};
use super::state::{BatchEvent, BatchState, Event};
use super::trouble::{Kind, Trouble};
use super::verifier::ToVerify;
use super::writer::is_full;
use crate::base::id::SegmentId;
use crate::base::limits::{ALLOCATE_STEP_BYTES, CLOSE_DEADLINE};
use crate::base::lock::{Held, Shared as _};
use crate::seal::Chain;
use crate::segment::path;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// First wait between two probes while no place takes the log; doubled up to …
const PROBE_FIRST: Duration = Duration::from_millis(100);
/// … this.
const PROBE_MOST: Duration = Duration::from_secs(5);
/// How long a stuck verifier is waited for beyond the deadline of a flush.
const VERIFIER_GRACE: Duration = Duration::from_secs(5);

/// What was tried since a batch last came to rest.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tried {
    /// New segments in the backing directory.
    primary: u32,
    /// New segments in the emergency directory.
    emergency: u32,
}

/// The wait while no place takes the log.
pub struct Waiting {
    /// Whether it was for want of room.
    full: bool,
    /// When the next probe is due.
    until: Duration,
}

impl Log {
    /// Takes trouble up.
    pub(super) fn begin_anew(&mut self, trouble: &Trouble) {
        let s = Arc::clone(&self.shared);
        if s.progress.has_given_up() {
            return self.end();
        }
        s.stats.error(s.world.now(), trouble.to_string());
        s.stats.segments_abandoned.add(1);
        self.hear_the_verifier_out(trouble);
        // It may have met worse.
        let worse = s.trouble.held().clone();
        let trouble = worse.as_ref().unwrap_or(trouble);
        if s.progress.has_given_up() {
            return self.end();
        }
        if trouble.kind == Kind::Stalled {
            self.ends.flushes.begin_anew();
        }
        if trouble.kind == Kind::Full && trouble.place == Place::Primary {
            s.note_refusal();
        }
        self.forget_durable();
        self.abandon();
        for cut in &mut self.cuts {
            // Whatever state it was in, what holds it failed, and its buffers are whole.
            cut.state = cut.state.after(BatchEvent::Fault).unwrap_or(BatchState::Failed);
        }
        self.drain();
        match self.choose(trouble) {
            Some(place) => {
                s.away_for_room.store(trouble.kind == Kind::Full, SeqCst);
                self.restart(place);
            }
            None => {
                s.nowhere(&trouble.to_string(), trouble.kind == Kind::Full);
                // Longer each time that a place took a test write and then not the rest.
                self.probe_pause = (self.probe_pause * 2).clamp(PROBE_FIRST, PROBE_MOST);
                let until = s.world.elapsed() + self.probe_pause;
                self.waiting = Some(Waiting { full: trouble.kind == Kind::Full, until });
            }
        }
    }

    /// What the verifier was given before the trouble may be good, and then it comes to rest.
    fn hear_the_verifier_out(&mut self, trouble: &Trouble) {
        let s = Arc::clone(&self.shared);
        let (tell, told) = crossbeam_channel::bounded(1);
        let _ = self.ends.verify.send(ToVerify::Barrier(tell));
        if s.stepper.is_some() {
            while told.try_recv().is_err() && !s.progress.has_given_up() {
                s.pause(Duration::from_millis(1));
            }
        } else if trouble.kind == Kind::Stalled {
            // It may hang on the same device.
            if told.recv_timeout(s.flush_deadline + VERIFIER_GRACE).is_err() {
                s.give_up("the backing directory does not answer: neither a flush nor a read-back ends");
            }
        } else {
            // Its end is not waited for if it has gone: then the vault was given up.
            let _ = told.recv();
        }
    }

    /// Leaves the segment, and what was in the log since the last batch came to rest. Segments that were begun since hold
    /// nothing that anyone needs: their room is given back, for it may be what is wanting.
    fn abandon(&mut self) {
        let s = Arc::clone(&self.shared);
        let last = self.writer.take().map(|w| Arc::clone(&w.segment));
        let written = std::mem::take(&mut self.written).into_iter().map(|(segment, _)| segment);
        for segment in written.chain(last) {
            let id = segment.context.id;
            if id > self.durable_segment {
                s.segments.forget_removed(id);
                // Void all the same, if it stays.
                let removed = s.places.of(s.place()).and_then(|backing| remove_if_there(&*backing, &path(id)));
                if removed.is_ok() {
                    s.places.came_home(id);
                }
            } else if id == self.durable_segment {
                let _ = segment.file.set_len(self.durable_end);
            }
        }
        self.left.clear();
        for (_, job) in std::mem::take(&mut self.early) {
            self.consume(job);
        }
    }

    /// Frames that will not be in the log: whoever holds the data knows.
    pub(super) fn consume(&self, job: Sealed) {
        if let Some((chunk, _)) = &job.chunk {
            chunk.lose();
        }
        self.shared.sealed_pool.put(job.frames.bytes);
        job.outstanding.fetch_sub(1, SeqCst);
    }

    /// Frames sealed for a segment that has failed since: sealed again, for the one in force.
    pub(super) fn send_again(&self, job: Sealed) {
        self.shared.sealed_pool.put(job.frames.bytes);
        match job.chunk {
            Some((chunk, _)) => self.shared.to_sealers(Job::Chunk { chunk, outstanding: job.outstanding }),
            // Records are of cut batches, and those were let arrive before the restart.
            None => {
                job.outstanding.fetch_sub(1, SeqCst);
            }
        }
    }

    /// Lets all jobs of cut batches arrive, and drops them.
    fn drain(&mut self) {
        while self.cuts.iter().any(|c| c.outstanding.load(SeqCst) > 0) && !self.shared.progress.has_given_up() {
            if let Some(job) = self.next_sealed() {
                self.consume(job);
            }
        }
    }

    /// Where to go on; `None` if no place that was not tried takes the log.
    fn choose(&mut self, trouble: &Trouble) -> Option<Place> {
        let s = Arc::clone(&self.shared);
        let full_at_home = trouble.kind == Kind::Full && trouble.place == Place::Primary;
        // Where there is another place, the reserve is for the checkpoints that make room at home again.
        let room = full_at_home && !s.places.has(Place::Emergency) && s.promise_reserve();
        let same = match trouble.kind {
            Kind::Full => room,
            // Perhaps a bad spot: a new segment lies elsewhere on the device.
            Kind::Failed | Kind::Mismatch => true,
            Kind::Gone | Kind::Stalled => false,
        };
        let tried = |t: &Tried, p: Place| if p == Place::Primary { t.primary } else { t.emergency };
        let order = [(trouble.place, same), (trouble.place.other(), true)];
        for (place, allowed) in order {
            if allowed && s.places.has(place) && tried(&self.tried, place) == 0 {
                if place == Place::Emergency && trouble.place == Place::Primary {
                    s.happened(Event::Away, &trouble.why);
                }
                match s.probe(place) {
                    Ok(()) => return Some(self.chosen(place)),
                    // A test write is a new file; the segment will be the reserve's.
                    Err(e) if room && place == Place::Primary && is_full(&e) => return Some(self.chosen(place)),
                    Err(e) => s.stats.error(s.world.now(), format!("{}: a test write failed: {e}", place.name())),
                }
            }
        }
        // The last room there is.
        let reserve = full_at_home && s.places.has(Place::Emergency) && s.promise_reserve();
        let takes = |probed: io::Result<()>| probed.is_ok() || probed.is_err_and(|e| is_full(&e));
        (reserve && takes(s.probe(Place::Primary))).then(|| self.chosen(Place::Primary))
    }

    fn chosen(&mut self, place: Place) -> Place {
        match place {
            Place::Primary => self.tried.primary += 1,
            Place::Emergency => self.tried.emergency += 1,
        }
        place
    }

    /// No place takes the log: reads go on, writers and fsync get an error, buffers are kept, and probing goes on.
    pub(super) fn wait_on(&mut self, mut waiting: Waiting) {
        let s = Arc::clone(&self.shared);
        // Workers must not be held up by a full queue.
        let job = if s.stepper.is_some() { self.ends.sealed.try_recv().ok() } else { self.next_sealed() };
        if let Some(job) = job {
            self.consume(job);
        }
        if s.progress.has_given_up() {
            return self.end();
        }
        if s.world.elapsed() >= waiting.until {
            let since = *s.closing_since.held();
            let late = |since| s.world.elapsed().saturating_sub(since) > CLOSE_DEADLINE;
            // A place may take test writes, and nothing else, for ever.
            if s.closing.load(SeqCst) && since.is_none_or(late) {
                return self.end();
            }
            // What is waiting, and as much again for what it takes beside.
            let need = if waiting.full { 2 * s.pending_bytes() + ALLOCATE_STEP_BYTES } else { 0 };
            for place in [Place::Primary, Place::Emergency] {
                if s.places.has(place) && s.places.has_room(place, need) && s.probe(place).is_ok() {
                    self.tried = Tried::default();
                    let place = self.chosen(place);
                    s.away_for_room.store(waiting.full, SeqCst);
                    self.restart(place);
                    // Written again at once, though no one asks for it: that is how it heals.
                    s.pressed.store(true, Relaxed);
                    if self.cuts.is_empty() && s.batch.held().is_empty() {
                        s.well_again();
                    }
                    return;
                }
            }
            self.probe_pause = (self.probe_pause * 2).clamp(PROBE_FIRST, PROBE_MOST);
            waiting.until = s.world.elapsed() + self.probe_pause;
        }
        self.waiting = Some(waiting);
    }

    /// A new generation, in a new segment of `place`, that voids what the failed one left.
    fn restart(&mut self, place: Place) {
        let s = Arc::clone(&self.shared);
        // No operation is under way while it is held: every file with a layer of the filling batch is on its list.
        let gate = s.gate.alone();
        let was_away = s.away.swap(place == Place::Emergency, SeqCst);
        let above = s.newest_begun.load(SeqCst).max(s.prepared.load(SeqCst));
        let (generation, first) = s.cursor.restart(SegmentId(above));
        if place == Place::Primary {
            // Whatever lies in the emergency directory below it is finished.
            s.home_below.store(first.0, SeqCst);
        }
        self.generation = generation;
        s.begin_generation(generation);
        (self.next_turn, self.frames, self.restarts) = (0, 0, true);
        self.position = self.durable;
        *s.committed.held() = self.durable;
        self.chain = Chain::after(&self.durable.chain);
        let filling = {
            let batch = s.batch.held();
            (*gate, batch.touched.clone(), batch.cleaned.clone(), Arc::clone(&batch.outstanding))
        };
        let cuts = self.cuts.iter();
        let cut = cuts.map(|c| (c.number, c.touched.clone(), c.cleaned.clone(), Arc::clone(&c.outstanding)));
        let again: Vec<_> = cut.chain([filling]).collect();
        for (number, touched, cleaned, outstanding) in again {
            for chunk in touched.iter().flat_map(|file| file.chunks(number)).chain(cleaned.chunks()) {
                if chunk.send_again() {
                    outstanding.fetch_add(1, SeqCst);
                    s.to_sealers(Job::Chunk { chunk, outstanding: Arc::clone(&outstanding) });
                }
            }
        }
        for cut in &mut self.cuts {
            cut.state = cut.state.after(BatchEvent::Retry).unwrap_or(BatchState::Sealed);
            // What it takes to answer those who wait must not wait itself.
            cut.urgent = true;
        }
        drop(gate);
        if was_away && place == Place::Primary {
            s.happened(Event::Back, "the backing directory takes the log again");
            s.bring_home.store(true, SeqCst);
        }
        s.stats.restarts.add(1);
        s.wake_log();
    }

    /// The backing directory is well again, and everything cut is at rest: goes on there, and has the rest brought home.
    pub(super) fn go_home(&mut self) {
        let s = Arc::clone(&self.shared);
        s.home_wanted.store(false, SeqCst);
        if !s.away.load(SeqCst) {
            return;
        }
        self.abandon();
        self.tried = Tried::default();
        self.restart(Place::Primary);
    }
}
