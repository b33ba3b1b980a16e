//! The log: puts sealed frames in order, packs them into groups, writes them, and commits.
//!
//! Promise (I6): a commit names only frames that precede it in the log; it is followed by one device flush, and only then
//! handed to the verifier, which answers the fsyncs. One thread, so the log has one order. A batch is kept here, records and
//! all, until it is at rest: what holds it may fail, and it is then written again (`failover`).
//! Called by: its own thread, fed by `sealer`, woken by `op` and `sync`. Takes: the gate alone, for the moment of a cut.
//! On failure: `Trouble`; the segment is not written to again, the log begins anew.

use super::batch::Cut;
use super::flusher::{Flush, Flushes};
use super::place::Place;
use super::quota::Quotas;
use super::sealer::{Sealed, seal_metadata};
use super::segments::OpenSegment;
use super::shared::Shared;
use super::state::{BatchEvent, BatchState, Event};
use super::step::Actor;
use super::trouble::{self, Trouble};
use super::verifier::{Sample, ToVerify};
use super::writer::Writer;
use super::{VaultFault, totals};
use crate::base::id::SegmentId;
use crate::base::limits::{CHECKPOINT_ENTRIES, CHECKPOINT_LOG_BYTES};
use crate::base::lock::{Held, Shared as _};
use crate::format::frame::Kind;
use crate::format::record::Counters;
use crate::format::segment::{LogPosition, Start};
use crate::seal::{Chain, Compressor};
use crate::segment::{SealedFrames, SegmentContext};
use crossbeam_channel::{Receiver, Sender, select};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

/// Longest wait before looking whether something went wrong.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// The part of the flush interval for which no operation must have come for the batch to be ended: 0.2 s of 5 s. What a
/// program wrote and then waits for is durable soon; one flush for each such pause is what it costs.
const QUIET_PART: u32 = 25;

/// What the log is connected to.
pub struct Ends {
    pub sealed: Receiver<Sealed>,
    pub wake: Receiver<()>,
    pub verify: Sender<ToVerify>,
    pub prepare: Sender<SegmentId>,
    pub flushes: Flushes,
}

/// The log thread's own state.
pub struct Log {
    pub(super) shared: Arc<Shared>,
    pub(super) ends: Ends,
    pub(super) compressor: Compressor,
    pub(super) writer: Option<Writer>,
    /// Sealed frames that came before their turn.
    pub(super) early: BTreeMap<u64, Sealed>,
    pub(super) next_turn: u64,
    /// Restarts so far.
    pub(super) generation: u64,
    /// The newest commit written.
    pub(super) position: LogPosition,
    /// The newest commit at rest.
    pub(super) durable: LogPosition,
    /// The segment that it is in, if it was written since the mount.
    pub(super) durable_segment: SegmentId,
    /// Where it ends there.
    pub(super) durable_end: u64,
    pub(super) chain: Chain,
    pub(super) frames: u32,
    /// Whether the next segment voids what earlier ones hold behind `position`.
    pub(super) restarts: bool,
    /// Segments written to since the last flush; with the length of those that are full.
    pub(super) written: Vec<(Arc<OpenSegment>, Option<u64>)>,
    /// Segments left for the next one, with the newest batch that may have data in them, until that batch is durable.
    pub(super) left: Vec<(u64, Arc<OpenSegment>)>,
    /// Batches that were cut and are not yet at rest, oldest first.
    pub(super) cuts: VecDeque<Cut>,
    /// What was tried since a batch last came to rest.
    pub(super) tried: super::failover::Tried,
    /// Wait before the next probe, while no place takes the log and nothing comes to rest.
    pub(super) probe_pause: Duration,
    /// Set while no place takes the log.
    pub(super) waiting: Option<super::failover::Waiting>,
    /// Commits that the last step of a segment held.
    small_commits: u32,
    groups: u64,
    ended: bool,
}

impl Log {
    /// Goes on after `position`.
    pub fn new(shared: Arc<Shared>, ends: Ends, position: LogPosition) -> Self {
        Log {
            shared,
            ends,
            compressor: Compressor::new(),
            writer: None,
            early: BTreeMap::new(),
            next_turn: 0,
            generation: 0,
            position,
            durable: position,
            durable_segment: SegmentId::default(),
            durable_end: 0,
            chain: Chain::after(&position.chain),
            frames: 0,
            restarts: false,
            written: Vec::new(),
            left: Vec::new(),
            cuts: VecDeque::new(),
            tried: super::failover::Tried::default(),
            probe_pause: Duration::ZERO,
            waiting: None,
            small_commits: 0,
            groups: 0,
            ended: false,
        }
    }

    /// Works until the vault is closing and everything is committed, or it is given up.
    pub fn run(mut self) {
        while !self.ended {
            self.turn();
        }
        // Workers find the queue's end gone, and wait for nobody.
    }

    /// One turn; what goes wrong in it makes the log begin anew. Says whether there was something to do.
    fn turn(&mut self) -> bool {
        if let Some(waiting) = self.waiting.take() {
            self.wait_on(waiting);
            // Without threads, there is nothing to do here but for time to pass.
            return self.waiting.is_none();
        }
        match self.try_turn() {
            Ok(did) => did,
            Err(trouble) => {
                // Not to be acknowledged by anyone, whoever found it out.
                self.shared.raise(trouble.clone());
                self.begin_anew(&trouble);
                true
            }
        }
    }

    /// The log's end: what is not at rest now stays in its buffers.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.shared.log_ended.store(true, SeqCst);
        let _ = self.ends.verify.send(ToVerify::Stop);
    }

    fn try_turn(&mut self) -> Result<bool, Trouble> {
        let mut got = None;
        if self.shared.stepper.is_none() {
            let wait = if self.unwritten().is_some() { Duration::ZERO } else { self.time_to_turn() };
            select! {
                recv(self.ends.sealed) -> job => got = job.ok(),
                recv(self.ends.wake) -> _ => {}
                default(wait) => {}
            }
        } else {
            let _ = self.ends.wake.try_recv();
        }
        self.look()?;
        let mut did = false;
        while let Some(job) = got.take().or_else(|| self.ends.sealed.try_recv().ok()) {
            self.accept(job)?;
            did = true;
        }
        self.forget_durable();
        if self.shared.home_wanted.load(SeqCst) && self.cuts.is_empty() {
            self.go_home();
            did = true;
        }
        // Read before the cut: what comes after it is in the next batch, and closing waits for nothing new.
        let closing = self.shared.closing.load(SeqCst);
        let due = self.unwritten().is_none() && self.time_to_turn().is_zero();
        if due {
            self.cut();
        }
        while let Some(at) = self.unwritten() {
            self.commit(at)?;
            did = true;
        }
        if closing && !due && self.shared.batch.held().is_empty() && self.cuts.is_empty() {
            let last = self.writer.take().map(|w| (Arc::clone(&w.segment), Some(w.position)));
            self.written.extend(last);
            let mut flush = Flush::of(std::mem::take(&mut self.written), self.generation, self.shared.place());
            flush.run(&self.shared);
            self.end();
            did = true;
        }
        Ok(did)
    }

    /// The oldest batch that was cut and is not in the log.
    fn unwritten(&self) -> Option<usize> {
        self.cuts.iter().position(|c| c.state == BatchState::Sealed)
    }

    /// Forgets batches that have come to rest.
    pub(super) fn forget_durable(&mut self) {
        let durable = self.shared.progress.held().durable;
        while let Some(cut) = self.cuts.pop_front_if(|c| c.number <= durable) {
            (self.durable, self.durable_segment, self.durable_end) = (cut.position, cut.segment, cut.end_bytes);
            (self.tried, self.probe_pause) = (super::failover::Tried::default(), Duration::ZERO);
            let matched =
                if self.shared.place() == Place::Emergency { BatchEvent::MatchedAway } else { BatchEvent::Matched };
            debug_assert!(
                cut.state.after(BatchEvent::Flushed).and_then(|s| s.after(matched)).is_ok(),
                "at rest only in order"
            );
        }
        self.left.retain(|(batch, _)| *batch > durable);
    }

    /// Refuses to go on with a generation that has failed.
    pub(super) fn look(&self) -> Result<(), Trouble> {
        if self.shared.progress.has_given_up() {
            return Err(self.trouble(&VaultFault::Failed("the vault was given up".into())));
        }
        match &*self.shared.trouble.held() {
            Some(trouble) => Err(trouble.clone()),
            None => Ok(()),
        }
    }

    /// A fault while writing, as trouble.
    pub(super) fn trouble(&self, fault: &VaultFault) -> Trouble {
        let kind = trouble::kind_of_fault(fault);
        Trouble { generation: self.generation, place: self.shared.place(), kind, why: fault.cause().into() }
    }

    /// The same as `time_to_cut`; but before going home, what was cut must come to rest.
    fn time_to_turn(&self) -> Duration {
        let leaving = self.shared.home_wanted.load(SeqCst) && !self.cuts.is_empty();
        if leaving { LOOK } else { self.time_to_cut() }
    }

    /// How long until the batch is to be ended; zero when it is now.
    fn time_to_cut(&self) -> Duration {
        let s = &self.shared;
        let long = Duration::from_secs(1);
        let began = s.batch.held().began;
        if s.checkpoint_wanted.load(SeqCst) && !s.checkpoint_running.load(SeqCst) && s.takes_checkpoints() {
            return Duration::ZERO;
        }
        let Some(began) = began else { return long };
        if s.cut_wanted.load(SeqCst) || s.pressed.load(Relaxed) || s.closing.load(SeqCst) {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(s.last_op_ms.load(Relaxed));
        due(began, last, s.flush_interval).saturating_sub(s.world.elapsed()).min(long)
    }

    /// Puts sealed frames in order and into the log.
    pub(super) fn accept(&mut self, job: Sealed) -> Result<(), Trouble> {
        if job.generation != self.generation {
            self.send_again(job);
            return Ok(());
        }
        self.early.insert(job.turn, job);
        while let Some(job) = self.early.remove(&self.next_turn) {
            self.next_turn += 1;
            self.append(job)?;
        }
        Ok(())
    }

    fn append(&mut self, job: Sealed) -> Result<(), Trouble> {
        let position = match self.add(&job.context, &job.frames) {
            Ok(position) => position,
            Err(trouble) => {
                // It is not in the log, and on its way no more.
                self.consume(job);
                return Err(trouble);
            }
        };
        if let Some((chunk, mut run)) = job.chunk {
            run.position_bytes = position;
            if self.is_sampled()
                && let Some(w) = &mut self.writer
            {
                w.sample(Sample { chunk: Arc::clone(&chunk), run: run.clone() });
            }
            chunk.place(run);
        }
        let used = job.frames.bytes.len() as u64;
        self.shared.cursor.settle(job.context.id, job.set_aside, used);
        self.shared.sealed_pool.put(job.frames.bytes);
        drop(job.room);
        job.outstanding.fetch_sub(1, SeqCst);
        Ok(())
    }

    /// Whether what the group being filled holds is to be opened again when it is read back.
    fn is_sampled(&self) -> bool {
        let percent = u64::from(self.shared.verify_open_percent);
        self.groups * percent / 100 != (self.groups + 1) * percent / 100
    }

    /// Adds frames to the group being filled, beginning a new group or segment where needed; gives their position.
    pub(super) fn add(&mut self, context: &Arc<SegmentContext>, frames: &SealedFrames) -> Result<u64, Trouble> {
        if self.writer.as_ref().is_none_or(|w| w.segment.context.id != context.id) {
            self.begin_segment(context)?;
        }
        if self.writer.as_ref().is_some_and(|w| !w.fits(frames)) {
            self.write_group()?;
        }
        let w = self.writer.as_mut().expect("a segment was begun above");
        let position = w.add(frames);
        for (slot, tag) in frames.tags() {
            self.chain.add(context.id, slot, tag);
        }
        self.frames += frames.entries.len() as u32;
        Ok(position)
    }

    pub(super) fn begin_segment(&mut self, context: &Arc<SegmentContext>) -> Result<(), Trouble> {
        self.write_group()?;
        let s = Arc::clone(&self.shared);
        if let Some(old) = self.writer.take() {
            // Its frames may be named by the next commit, which flushes it too.
            self.written.push((Arc::clone(&old.segment), Some(old.position)));
            // Chunks of every batch up to the one that fills may lie in it.
            self.left.push((*s.gate.shared(), Arc::clone(&old.segment)));
        }
        if context.id.0 <= s.newest_begun.load(SeqCst) {
            let why = format!("segment {} was to be begun a second time", context.id);
            return Err(self.trouble(&VaultFault::Failed(why.into())));
        }
        let begun = Writer::begin(&s, context, s.place(), self.small_commits);
        if begun.is_err() && s.place() == Place::Emergency {
            // Nothing was written to it, and nobody shall look for it.
            s.places.came_home(context.id);
        }
        // Begun or not: no other will be begun under this number.
        s.newest_begun.store(context.id.0, SeqCst);
        let writer = begun.map_err(|fault| self.trouble(&fault))?;
        s.direct.store(writer.segment.file.is_direct(), Relaxed);
        s.segments.begin(&writer.segment);
        self.writer = Some(writer);
        if s.place() == Place::Primary {
            let _ = self.ends.prepare.try_send(SegmentId(context.id.0 + 1));
        }
        let plain = Start { after: self.position, restarts: std::mem::take(&mut self.restarts) }.encode();
        let slot = context.take_writer_slot();
        let start = seal_metadata(context, &mut self.compressor, Kind::Start, slot, &plain, &s.stats);
        self.add(context, &start)?;
        Ok(())
    }

    /// Writes the group being filled, if there is anything in it, and gives it to the verifier.
    pub(super) fn write_group(&mut self) -> Result<(), Trouble> {
        let Some(w) = &mut self.writer else { return Ok(()) };
        match w.write_group(&self.shared) {
            Ok(None) => Ok(()),
            Ok(Some(written)) => {
                self.groups += 1;
                self.small_commits = w.step_commits;
                self.shared.verifying.fetch_add(1, Relaxed);
                // A verifier that is gone has given the vault up already.
                let _ = self.ends.verify.send(w.to_verify(self.generation, written));
                Ok(())
            }
            Err(fault) => {
                let (id, at) = (w.segment.context.id, w.position);
                let mut trouble = self.trouble(&fault);
                trouble.why = format!("segment {id}, byte {at}: {}", fault.cause()).into();
                Err(trouble)
            }
        }
    }

    /// Cuts the batch that is filling.
    fn cut(&mut self) {
        let s = Arc::clone(&self.shared);
        let began = s.world.elapsed();
        let urgent = s.cut_wanted.swap(false, SeqCst) || s.closing.load(SeqCst);
        s.pressed.store(false, Relaxed);
        let checkpoint = self.checkpoint_due();
        s.happened(Event::Cut, "");
        let mut gate = s.gate.alone();
        if s.progress.has_given_up() {
            // An operation that broke off half-way may have a half in this batch.
            return;
        }
        let number = *gate;
        *gate += 1;
        let mut batch = std::mem::take(&mut *s.batch.held());
        if checkpoint || s.totals_wanted.swap(false, SeqCst) {
            totals::store(&s, &mut batch);
        }
        Quotas::store(&s, &mut batch);
        s.in_flight.held().insert(number, batch.touched.clone());
        let counters = Counters {
            next_ino: s.next_ino.load(Relaxed),
            next_cookie: s.next_cookie.load(Relaxed),
            inodes: s.inodes.load(Relaxed).max(0) as u64,
        };
        if checkpoint {
            s.index.seal_direct();
        }
        drop(gate);
        self.cuts.push_back(Cut {
            number,
            state: BatchState::Filling.after(BatchEvent::Seal).unwrap_or(BatchState::Sealed),
            records: batch.records.into_iter().map(Arc::new).collect(),
            touched: batch.touched,
            cleaned: batch.cleaned,
            outstanding: batch.outstanding,
            counters,
            checkpoint,
            urgent,
            began,
            position: LogPosition::START,
            segment: SegmentId::default(),
            end_bytes: 0,
        });
    }

    fn checkpoint_due(&self) -> bool {
        let s = &self.shared;
        // Its index lies in the backing directory.
        if s.checkpoint_running.load(SeqCst) || !s.takes_checkpoints() || s.progress.is_stopped() {
            return false;
        }
        let due = s.checkpoint_wanted.swap(false, SeqCst)
            || s.index.overlay_entries() >= CHECKPOINT_ENTRIES
            || s.index.overlay_bytes() as u64 >= s.shares.overlay_bytes
            || s.log_since_checkpoint.load(Relaxed) >= CHECKPOINT_LOG_BYTES;
        if due {
            s.checkpoint_running.store(true, SeqCst);
        }
        due
    }

    /// The next sealed frames, waited for a while.
    pub(super) fn next_sealed(&self) -> Option<Sealed> {
        if let Ok(job) = self.ends.sealed.try_recv() {
            return Some(job);
        }
        if self.shared.stepper.is_some() {
            self.shared.pause(LOOK);
            return self.ends.sealed.try_recv().ok();
        }
        select! {
            recv(self.ends.sealed) -> job => job.ok(),
            // A job that was dropped unsealed says so only by its count.
            recv(self.ends.wake) -> _ => None,
            default(LOOK) => None,
        }
    }
}

/// The last operation's time is kept in these units.
const CLOCK: Duration = Duration::from_millis(1);

/// When a batch is ended that nobody waits for: when its oldest change is half the interval old, for the kernel may have
/// had it for the other half; and before that, once no operation has come for a while. `last`: when the last one came.
fn due(began: Duration, last: Duration, flush_interval: Duration) -> Duration {
    let oldest = began + flush_interval / 2;
    // What only the cleaner has put into it is in no hurry.
    if last + CLOCK <= began { oldest } else { oldest.min(last + flush_interval / QUIET_PART) }
}

impl Actor for Log {
    fn step(&mut self) -> bool {
        !self.ended && self.turn()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_ended_when_operations_pause_and_at_half_the_interval_at_the_latest() {
        let (ms, interval) = (Duration::from_millis, Duration::from_secs(5));
        assert_eq!(due(ms(1000), ms(1000), interval), ms(1200));
        assert_eq!(due(ms(1000), ms(2000), interval), ms(2200));
        assert_eq!(due(ms(1000), ms(3499), interval), ms(3500));
        assert_eq!(due(ms(1000), ms(999), interval), ms(3500), "only the cleaner has written");
        assert_eq!(due(ms(0), ms(0), Duration::from_secs(600)), ms(24_000));
    }
}
