//! The log: puts sealed frames in order, packs them into groups, writes them, and commits.
//!
//! Promise (I6): a commit names only frames that precede it in the log; it is followed by one device flush, and only then
//! handed to the verifier, which answers the fsyncs. One thread, so the log has one order.
//! Called by: its own thread, fed by `sealer`, woken by `op` and `sync`. Takes: the gate alone, for the moment of a cut.
//! On failure: the vault fails (`Shared::fail`): the segment is not written to again, the buffers stay.

use super::VaultFault;
use super::flusher::Flush;
use super::sealer::{Job, Sealed, seal_here, seal_metadata};
use super::segments::OpenSegment;
use super::shared::Shared;
use super::verifier::{Commit, ToVerify};
use crate::backing::{AlignedBuf, Cache, Open};
use crate::base::id::CommitSeq;
use crate::base::limits::{
    ALLOCATE_STEP_BYTES, BLOCK_BYTES, CHECKPOINT_ENTRIES, CHECKPOINT_LOG_BYTES, CHUNK_BYTES, GROUP_BYTES_MAX,
    RECORDS_FRAME_BYTES, ZERO_STEP_BYTES, ZERO_STEP_COMMITS,
};
use crate::base::lock::{Held, Shared as _};
use crate::buffer::Piece;
use crate::format::extent::Extent;
use crate::format::frame::Kind;
use crate::format::record::{self, Counters, Record};
use crate::format::segment::LogPosition;
use crate::seal::{Chain, Compressor};
use crate::segment::{GroupBuilder, SegmentContext, path};
use crossbeam_channel::{Receiver, Sender, select};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A commit with no more unsealed data than this is sealed by the log itself: handing it over would cost more.
const SEAL_HERE_BYTES: usize = 96 << 10;

struct Writing {
    segment: Arc<OpenSegment>,
    position: u64,
    /// Room taken for the file so far.
    allocated: u64,
    /// Where the next look at how small the commits are is due.
    step_end: u64,
    /// Commits since the last look.
    step_commits: u32,
    next_group: u32,
    builder: GroupBuilder,
}

impl Writing {
    /// Takes room for a group of `len` bytes; where commits are small, fills it with zeros. Gives the commits counted.
    fn make_room(&mut self, len: u64) -> Result<u32, VaultFault> {
        let end = self.position + len;
        let file = &self.segment.file;
        if end > self.step_end {
            self.step_end = end.max(self.position + ZERO_STEP_BYTES);
            while self.allocated < self.step_end {
                self.allocated += ALLOCATE_STEP_BYTES;
                file.preallocate(self.allocated)?;
            }
            if self.step_commits >= ZERO_STEP_COMMITS {
                let mut zeros = AlignedBuf::with_capacity((self.step_end - self.position) as usize);
                zeros.set_len(zeros.capacity());
                file.write_all_at(&zeros, self.position)?;
                file.sync_data()?;
            }
            return Ok(std::mem::take(&mut self.step_commits));
        }
        Ok(self.step_commits)
    }
}

/// The log thread's own state.
pub struct Log {
    shared: Arc<Shared>,
    sealed: Receiver<Sealed>,
    wake: Receiver<()>,
    verify: Sender<ToVerify>,
    prepare: Sender<crate::base::id::SegmentId>,
    compressor: Compressor,
    writing: Option<Writing>,
    waiting: BTreeMap<u64, Sealed>,
    next_turn: u64,
    position: LogPosition,
    chain: Chain,
    frames: u32,
    /// Segments written to since the last flush; with the length of those that are full.
    written: Vec<(Arc<OpenSegment>, Option<u64>)>,
    flusher: Sender<Flush>,
    /// Commits that the last step of a segment held.
    small_commits: u32,
}

impl Log {
    /// Goes on after `position`.
    pub fn new(
        shared: Arc<Shared>,
        sealed: Receiver<Sealed>,
        wake: Receiver<()>,
        verify: Sender<ToVerify>,
        prepare: Sender<crate::base::id::SegmentId>,
        flusher: Sender<Flush>,
        position: LogPosition,
    ) -> Self {
        let chain = Chain::after(&position.chain);
        let (compressor, waiting) = (Compressor::new(), BTreeMap::new());
        let (writing, next_turn, frames, small_commits) = (None, 0, 0, 0);
        let written = Vec::new();
        Log {
            shared,
            sealed,
            wake,
            verify,
            prepare,
            compressor,
            writing,
            waiting,
            next_turn,
            position,
            chain,
            frames,
            written,
            flusher,
            small_commits,
        }
    }

    /// Works until the vault is closing and everything is committed.
    pub fn run(mut self) {
        let result = self.work();
        if let Err(fault) = result {
            self.shared.fail(&fault.to_string());
            // Workers and the verifier must not wait for us: take what comes until all are gone.
            while self.sealed.recv_timeout(Duration::from_millis(200)).is_ok() || !self.shared.closing.load(SeqCst) {}
        }
        let _ = self.verify.send(ToVerify::Stop);
    }

    fn work(&mut self) -> Result<(), VaultFault> {
        loop {
            let wait = self.time_to_cut();
            let mut got = None;
            select! {
                recv(self.sealed) -> job => got = job.ok(),
                recv(self.wake) -> _ => {}
                default(wait) => {}
            }
            self.shared.check_failed()?;
            while let Some(job) = got.take().or_else(|| self.sealed.try_recv().ok()) {
                self.accept(job)?;
            }
            // Read before the cut: what comes after it is in the next batch, and closing waits for nothing new.
            let closing = self.shared.closing.load(SeqCst);
            if self.time_to_cut().is_zero() {
                self.commit()?;
            } else if closing && self.shared.batch.held().is_empty() {
                let last = self.writing.take().map(|w| (w.segment, Some(w.position)));
                self.written.extend(last);
                let flush = Flush::of(std::mem::take(&mut self.written));
                flush.run(&self.shared);
                return flush.outcome.wait().map_err(VaultFault::Failed);
            }
        }
    }

    /// How long until a cut is due; zero when it is.
    fn time_to_cut(&self) -> Duration {
        let s = &self.shared;
        let long = Duration::from_secs(1);
        let began = s.batch.held().began;
        if s.checkpoint_wanted.load(SeqCst) && !s.checkpoint_running.load(SeqCst) {
            return Duration::ZERO;
        }
        let Some(began) = began else { return long };
        if s.cut_wanted.load(SeqCst) || s.pressed.load(Relaxed) || s.closing.load(SeqCst) {
            return Duration::ZERO;
        }
        (began + s.flush_interval).saturating_sub(s.world.elapsed()).min(long)
    }

    /// Puts sealed frames in order and into the log.
    fn accept(&mut self, job: Sealed) -> Result<(), VaultFault> {
        self.waiting.insert(job.turn, job);
        while let Some(job) = self.waiting.remove(&self.next_turn) {
            self.next_turn += 1;
            self.append(job)?;
        }
        Ok(())
    }

    fn append(&mut self, job: Sealed) -> Result<(), VaultFault> {
        let position = self.add(&job.context, &job.frames)?;
        if let Some((chunk, mut run)) = job.chunk {
            run.position_bytes = position;
            chunk.place(run);
        }
        let used = job.frames.bytes.len() as u64;
        self.shared.cursor.settle(job.context.id, job.set_aside, used);
        self.shared.sealed_pool.put(job.frames.bytes);
        job.outstanding.fetch_sub(1, SeqCst);
        Ok(())
    }

    /// Adds frames to the group being filled, beginning a new group or segment where needed; gives their position.
    fn add(&mut self, context: &Arc<SegmentContext>, frames: &crate::segment::SealedFrames) -> Result<u64, VaultFault> {
        if self.writing.as_ref().is_none_or(|w| w.segment.context.id != context.id) {
            self.begin_segment(context)?;
        }
        let full = |w: &Writing| !w.builder.fits(frames.entries.len(), frames.bytes.len());
        if self.writing.as_ref().is_some_and(full) {
            self.write_group()?;
        }
        let w = self.writing.as_mut().expect("a segment was begun above");
        let position = w.position + w.builder.add(frames);
        for (slot, tag) in frames.tags() {
            self.chain.add(context.id, slot, tag);
        }
        self.frames += frames.entries.len() as u32;
        Ok(position)
    }

    fn begin_segment(&mut self, context: &Arc<SegmentContext>) -> Result<(), VaultFault> {
        self.write_group()?;
        let s = Arc::clone(&self.shared);
        if let Some(old) = self.writing.take() {
            // Its frames may be named by the next commit, which flushes it too.
            self.written.push((old.segment, Some(old.position)));
        }
        if context.id.0 <= s.newest_begun.load(SeqCst) {
            return Err(VaultFault::Failed(format!("segment {} was to be begun a second time", context.id).into()));
        }
        let name = path(context.id);
        // The housekeeper may be making this very file.
        let making = s.making_segment.held();
        let file = match s.backing.open(&name, Open::Write, Cache::Direct) {
            // Prepared by the housekeeper, who may have failed after making it.
            Ok(file) => {
                s.backing.sync_dir("segments")?;
                file
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let file = s.backing.open(&name, Open::Create, Cache::Direct)?;
                file.preallocate(ALLOCATE_STEP_BYTES)?;
                file.sync_data()?;
                s.backing.sync_dir("segments")?;
                file
            }
            Err(e) => return Err(e.into()),
        };
        drop(making);
        let segment = Arc::new(OpenSegment { context: Arc::clone(context), file });
        s.segments.begin(&segment);
        s.newest_begun.store(context.id.0, SeqCst);
        let builder = GroupBuilder::new(context, self.group_buffer());
        // As small as in the segment before, until the first look here.
        let step_commits = self.small_commits;
        let (position, allocated, step_end, next_group) = (0, ALLOCATE_STEP_BYTES, 0, 0);
        self.writing = Some(Writing { segment, position, allocated, step_end, step_commits, next_group, builder });
        let _ = self.prepare.try_send(crate::base::id::SegmentId(context.id.0 + 1));
        let slot = context.take_writer_slot();
        let plain = self.position.encode();
        let start = seal_metadata(context, &mut self.compressor, Kind::Start, slot, &plain, &s.stats);
        self.add(context, &start)?;
        Ok(())
    }

    fn group_buffer(&self) -> AlignedBuf {
        let spare = self.shared.group_buffers.held().pop();
        spare.unwrap_or_else(|| AlignedBuf::with_capacity(GROUP_BYTES_MAX))
    }

    /// Writes the group being filled, if there is anything in it, and gives it to the verifier.
    fn write_group(&mut self) -> Result<(), VaultFault> {
        let next = self.group_buffer();
        let Some(w) = &mut self.writing else { return Ok(()) };
        if w.builder.is_empty() {
            self.shared.group_buffers.held().push(next);
            return Ok(());
        }
        let context = &w.segment.context;
        let builder = std::mem::replace(&mut w.builder, GroupBuilder::new(context, next));
        let image = builder.finish(context, w.next_group);
        let (position, len) = (w.position, image.len() as u64);
        let began = Instant::now();
        self.small_commits = w.make_room(len)?;
        w.segment.file.write_all_at(&image, position)?;
        self.shared.stats.log_write.record(began.elapsed());
        self.shared.stats.log_bytes.add(len);
        self.shared.log_since_checkpoint.fetch_add(len, Relaxed);
        w.position += len;
        w.next_group += 1;
        debug_assert_eq!(w.position % BLOCK_BYTES as u64, 0, "groups begin on blocks");
        self.shared.verifying.fetch_add(1, Relaxed);
        let segment = Arc::clone(&w.segment);
        // A verifier that is gone has failed the vault already.
        let _ = self.verify.send(ToVerify::Group { segment, position, image });
        Ok(())
    }

    /// Cuts the batch that is filling and makes it durable.
    fn commit(&mut self) -> Result<(), VaultFault> {
        let s = Arc::clone(&self.shared);
        s.committing.store(true, Relaxed);
        let began = s.world.elapsed();
        let urgent = s.cut_wanted.swap(false, SeqCst) || s.closing.load(SeqCst);
        s.pressed.store(false, Relaxed);
        let checkpoint = self.checkpoint_due();
        let (number, batch, counters) = {
            let mut gate = s.gate.alone();
            let number = *gate;
            *gate += 1;
            let batch = std::mem::take(&mut *s.batch.held());
            s.in_flight.held().insert(number, batch.touched.clone());
            let counters = Counters {
                next_ino: s.next_ino.load(Relaxed),
                next_cookie: s.next_cookie.load(Relaxed),
                inodes: s.inodes.load(Relaxed).max(0) as u64,
            };
            if checkpoint {
                s.index.seal_direct();
            }
            (number, batch, counters)
        };
        self.seal_rest(number, &batch.touched, &batch.outstanding)?;
        let (mut tail, mut early) = (Vec::new(), batch.records);
        if let Some(last) = early.pop() {
            tail = last;
        }
        for bytes in early {
            batch.outstanding.fetch_add(1, SeqCst);
            s.to_sealers(Job::Records { bytes, outstanding: Arc::clone(&batch.outstanding) });
        }
        self.await_jobs(&batch.outstanding)?;
        let derived = data_records(&batch.touched, number);
        self.await_durable(number - 1)?;
        self.append_commit(tail, &derived, counters)?;
        self.write_group()?;
        let Some(w) = &self.writing else {
            return Err(VaultFault::Failed("a commit was written to no segment".into()));
        };
        let replay_from = w.segment.context.id;
        self.written.push((Arc::clone(&w.segment), None));
        let flush = Flush::of(std::mem::take(&mut self.written));
        let flushed = Arc::clone(&flush.outcome);
        if urgent {
            flush.run(&s);
            flushed.wait().map_err(VaultFault::Failed)?;
        } else {
            // No one waits for it: the log goes on writing meanwhile. The flusher outlives the log; see `Vault::close`.
            let _ = self.flusher.send(flush);
        }
        let position = self.position;
        let checkpoint = checkpoint.then_some(replay_from);
        let commit = Commit { number, position, counters, derived, flushed, checkpoint, began };
        s.committing.store(false, Relaxed);
        let _ = self.verify.send(ToVerify::Commit(Box::new(commit)));
        Ok(())
    }

    fn checkpoint_due(&self) -> bool {
        let s = &self.shared;
        if s.checkpoint_running.load(SeqCst) {
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

    /// Seals what the batch's files still have open.
    fn seal_rest(
        &mut self,
        number: u64,
        touched: &[Arc<crate::buffer::FileBuffer>],
        outstanding: &Arc<AtomicU64>,
    ) -> Result<(), VaultFault> {
        let mut here = Vec::new();
        let mut here_bytes = 0;
        for file in touched {
            for chunk in file.seal_open(number, &self.shared.pool) {
                outstanding.fetch_add(1, SeqCst);
                here_bytes += chunk.data().len();
                here.push(chunk);
            }
            // Too much for one thread: the workers take it, and what comes after it.
            if here_bytes > SEAL_HERE_BYTES {
                for chunk in here.drain(..) {
                    self.shared.to_sealers(Job::Chunk { chunk, outstanding: Arc::clone(outstanding) });
                }
            }
        }
        for chunk in here {
            let shared = Arc::clone(&self.shared);
            let sealed = seal_here(&shared, &mut self.compressor, chunk, Arc::clone(outstanding));
            self.accept(sealed)?;
        }
        Ok(())
    }

    /// Waits until a batch is flushed and verified. A commit follows only then, so that recovery may conclude from a commit
    /// that holds that what precedes it once held too: it tells rot from a torn or failed tail.
    fn await_durable(&self, batch: u64) -> Result<(), VaultFault> {
        let mut progress = self.shared.progress.held();
        while progress.durable < batch {
            self.shared.check_failed()?;
            let wait = self.shared.progressed.wait_timeout(progress, Duration::from_millis(50));
            progress = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Takes sealed frames until all jobs of the batch are in the log.
    fn await_jobs(&mut self, outstanding: &AtomicU64) -> Result<(), VaultFault> {
        while outstanding.load(SeqCst) > 0 {
            let mut got = None;
            select! {
                recv(self.sealed) -> job => got = job.ok(),
                // A job that was dropped unsealed says so only by its count.
                recv(self.wake) -> _ => {}
                default(Duration::from_millis(50)) => self.shared.check_failed()?,
            }
            if let Some(job) = got {
                self.accept(job)?;
            }
        }
        // The wake-up may have been for something else: it must not be lost.
        self.shared.wake_log();
        Ok(())
    }

    /// Appends what is left of the records, then the commit frame itself.
    fn append_commit(&mut self, mut tail: Vec<u8>, derived: &[u8], counters: Counters) -> Result<(), VaultFault> {
        let shared = Arc::clone(&self.shared);
        let context = shared.cursor.for_writer(self.next_turn);
        // Later batches' chunks may be on their way in a newer segment: the log is still in the older one.
        let context = match &self.writing {
            Some(w) if self.cursor_is_ahead(&context) => Arc::clone(&w.segment.context),
            _ => context,
        };
        if self.writing.as_ref().is_none_or(|w| w.segment.context.id != context.id) {
            self.begin_segment(&context)?;
        }
        let mut rest = derived;
        // Derived records come last; the commit frame holds what fits.
        while tail.len() + rest.len() > RECORDS_FRAME_BYTES + CHUNK_BYTES {
            let mut piece = std::mem::take(&mut tail);
            let cut = record_boundary(rest, RECORDS_FRAME_BYTES)?;
            piece.extend_from_slice(&rest[..cut]);
            rest = &rest[cut..];
            self.add_metadata(&context, Kind::Records, &piece)?;
        }
        tail.extend_from_slice(rest);
        let seq = CommitSeq(self.position.seq.0 + 1);
        let commit = record::Commit { seq, frames: self.frames, chain: self.chain.value(), counters, records: &tail };
        let (plain, chain) = (commit.encode(), commit.chain);
        self.position = LogPosition { seq, chain };
        *shared.committed.held() = self.position;
        self.chain = Chain::after(&chain);
        self.add_metadata(&context, Kind::Commit, &plain)?;
        self.frames = 0;
        if let Some(w) = &mut self.writing {
            w.step_commits += 1;
        }
        shared.stats.commits.add(1);
        Ok(())
    }

    fn cursor_is_ahead(&self, context: &SegmentContext) -> bool {
        let behind = |w: &Writing| w.segment.context.id < context.id;
        // With nothing on its way, the newer segment may be begun now.
        self.writing.as_ref().is_some_and(behind) && self.shared.cursor.turns_taken() != self.next_turn
    }

    fn add_metadata(&mut self, context: &Arc<SegmentContext>, kind: Kind, plain: &[u8]) -> Result<(), VaultFault> {
        let shared = Arc::clone(&self.shared);
        let slot = context.take_writer_slot();
        let frames = seal_metadata(context, &mut self.compressor, kind, slot, plain, &shared.stats);
        self.add(context, &frames)?;
        shared.cursor.settle(context.id, 0, frames.bytes.len() as u64);
        Ok(())
    }
}

/// The Install and Punch records of a cut batch, all of whose chunks are in the log.
fn data_records(touched: &[Arc<crate::buffer::FileBuffer>], number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for file in touched {
        for piece in file.pieces(number) {
            match piece {
                Piece::Hole(from_bytes, to_bytes) => {
                    Record::Punch { ino: file.ino, from_bytes, to_bytes }.encode_to(&mut out);
                }
                Piece::Data(offset_bytes, len_bytes, chunk, skip_bytes) => {
                    let run = chunk.placed().expect("every chunk of a cut batch was awaited").clone();
                    let extent = Extent { len_bytes, skip_bytes, run }.encode();
                    Record::Install { ino: file.ino, offset_bytes, extent: &extent }.encode_to(&mut out);
                }
            }
        }
    }
    out
}

/// The end of the last whole record within `most` bytes (or of the first, if that is longer).
fn record_boundary(records: &[u8], most: usize) -> Result<usize, VaultFault> {
    let mut r = crate::format::wire::Reader::new(records);
    let mut end = 0;
    while !r.is_empty() {
        Record::decode(&mut r)?;
        let here = records.len() - r.rest().len();
        if here > most && end > 0 {
            break;
        }
        end = here;
    }
    Ok(end)
}
