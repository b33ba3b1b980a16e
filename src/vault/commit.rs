//! How a batch that was cut gets into the log: its data, its records, its commit, and one flush.
//!
//! Promise (I6): the commit frame comes last, names only frames that precede it, and is written only after the batch before
//! was flushed and read back right, so that recovery can tell rot from a torn or failed tail. What is begun here and does
//! not come to its end is begun again from the batch, which is kept.
//! Called by: `log`. On failure: `Trouble`.

use super::VaultFault;
use super::flusher::Flush;
use super::log::{LOOK, Log};
use super::moves::Moves;
use super::place::Place;
use super::sealer::{Job, seal_here, seal_metadata};
use super::state::BatchEvent;
use super::trouble::Trouble;
use super::verifier::{Commit, ToVerify};
use super::writer::Writer;
use crate::base::id::CommitSeq;
use crate::base::limits::{CHUNK_BYTES, RECORDS_FRAME_BYTES};
use crate::base::lock::Held;
use crate::buffer::{FileBuffer, Piece};
use crate::format::extent::Extent;
use crate::format::frame::Kind;
use crate::format::record::{self, Counters, Record};
use crate::format::segment::LogPosition;
use crate::seal::Chain;
use crate::segment::SegmentContext;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A commit with no more unsealed data than this is sealed by the log itself: handing it over would cost more.
const SEAL_HERE_BYTES: usize = 96 << 10;

impl Log {
    /// Makes a batch that was cut durable: its data, its records, its commit, one flush.
    pub(super) fn commit(&mut self, at: usize) -> Result<(), Trouble> {
        let s = Arc::clone(&self.shared);
        let cut = &self.cuts[at];
        let (number, touched, outstanding) = (cut.number, cut.touched.clone(), Arc::clone(&cut.outstanding));
        let (mut early, counters, urgent, began) = (cut.records.clone(), cut.counters, cut.urgent, cut.began);
        let (wants_checkpoint, cleaned) = (cut.checkpoint, cut.cleaned.clone());
        self.seal_rest(number, &touched, &outstanding)?;
        let tail = early.pop().map_or_else(Vec::new, |last| last.to_vec());
        for bytes in early {
            outstanding.fetch_add(1, SeqCst);
            s.to_sealers(Job::Records { bytes, outstanding: Arc::clone(&outstanding) });
        }
        self.await_jobs(&outstanding)?;
        let mut derived = data_records(&touched, number, &s.moves);
        cleaned.records(&mut derived);
        self.await_durable(number - 1)?;
        self.append_commit(tail, &derived, counters)?;
        self.write_group()?;
        let Some(w) = &self.writer else {
            return Err(self.trouble(&VaultFault::Failed("a commit was written to no segment".into())));
        };
        let (replay_from, end_bytes) = (w.segment.context.id, w.position);
        let by_path = wants_checkpoint && w.is_comparable;
        self.written.push((Arc::clone(&w.segment), None));
        let left = self.left.iter().map(|(_, segment)| Arc::clone(segment)).collect();
        let written = std::mem::take(&mut self.written);
        let mut flush = Flush::of(written, self.generation, s.place()).and_names_of(left, by_path);
        let flushed = Arc::clone(&flush.outcome);
        // Where a flush has a deadline, another thread runs it: this one must be able to turn away from it.
        if urgent && !self.shared.places.has(Place::Emergency) {
            flush.run(&s);
            flushed.wait(|| None)?;
        } else {
            // No one waits for it here: the log goes on writing meanwhile. The flusher outlives the log; see `Vault::close`.
            self.ends.flushes.send(flush);
        }
        let cut = &mut self.cuts[at];
        (cut.position, cut.segment, cut.end_bytes) = (self.position, replay_from, end_bytes);
        // A cut that is in the log was sealed before.
        cut.state = cut.state.after(BatchEvent::Written).unwrap_or(cut.state);
        let (generation, position) = (self.generation, self.position);
        let checkpoint = wants_checkpoint.then_some(replay_from);
        let commit = Commit { generation, number, position, counters, derived, cleaned, flushed, checkpoint, began };
        let _ = self.ends.verify.send(ToVerify::Commit(Box::new(commit)));
        Ok(())
    }

    /// Seals what the batch's files still have open.
    fn seal_rest(
        &mut self,
        number: u64,
        touched: &[Arc<FileBuffer>],
        outstanding: &Arc<AtomicU64>,
    ) -> Result<(), Trouble> {
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
        let mut here = here.into_iter();
        while let Some(chunk) = here.next() {
            let shared = Arc::clone(&self.shared);
            let sealed = seal_here(&shared, &mut self.compressor, chunk, Arc::clone(outstanding));
            if let Err(trouble) = self.accept(sealed) {
                // What was sealed and not yet on its way counts as lost with the rest.
                for chunk in here {
                    chunk.lose();
                    outstanding.fetch_sub(1, SeqCst);
                }
                return Err(trouble);
            }
        }
        Ok(())
    }

    /// Waits until a batch is flushed and verified. A commit follows only then, so that recovery may conclude from a commit
    /// that holds that what precedes it once held too: it tells rot from a torn or failed tail.
    fn await_durable(&self, batch: u64) -> Result<(), Trouble> {
        let mut progress = self.shared.progress.held();
        while progress.durable < batch {
            self.look()?;
            progress = self.shared.await_progress(progress, LOOK);
        }
        Ok(())
    }

    /// Takes sealed frames until all jobs of the batch are in the log.
    fn await_jobs(&mut self, outstanding: &AtomicU64) -> Result<(), Trouble> {
        while outstanding.load(SeqCst) > 0 {
            if let Some(job) = self.next_sealed() {
                self.accept(job)?;
            }
            self.look()?;
        }
        // The wake-up may have been for something else: it must not be lost.
        self.shared.wake_log();
        Ok(())
    }

    /// Appends what is left of the records, then the commit frame itself.
    fn append_commit(&mut self, mut tail: Vec<u8>, derived: &[u8], counters: Counters) -> Result<(), Trouble> {
        let shared = Arc::clone(&self.shared);
        let context = shared.cursor.for_writer(self.next_turn);
        // Later batches' chunks may be on their way in a newer segment: the log is still in the older one.
        let context = match &self.writer {
            Some(w) if self.cursor_is_ahead(&context) => Arc::clone(&w.segment.context),
            _ => context,
        };
        if self.writer.as_ref().is_none_or(|w| w.segment.context.id != context.id) {
            self.begin_segment(&context)?;
        }
        let mut rest = derived;
        // Derived records come last; the commit frame holds what fits.
        while tail.len() + rest.len() > RECORDS_FRAME_BYTES + CHUNK_BYTES {
            let mut piece = std::mem::take(&mut tail);
            let cut = record_boundary(rest, RECORDS_FRAME_BYTES).map_err(|fault| self.trouble(&fault))?;
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
        if let Some(w) = &mut self.writer {
            w.step_commits += 1;
        }
        shared.stats.commits.add(1);
        Ok(())
    }

    fn cursor_is_ahead(&self, context: &SegmentContext) -> bool {
        let behind = |w: &Writer| w.segment.context.id < context.id;
        // With nothing on its way, the newer segment may be begun now.
        self.writer.as_ref().is_some_and(behind) && self.shared.cursor.turns_taken() != self.next_turn
    }

    fn add_metadata(&mut self, context: &Arc<SegmentContext>, kind: Kind, plain: &[u8]) -> Result<(), Trouble> {
        let shared = Arc::clone(&self.shared);
        let slot = context.take_writer_slot();
        let frames = seal_metadata(context, &mut self.compressor, kind, slot, plain, &shared.stats);
        self.add(context, &frames)?;
        shared.cursor.settle(context.id, 0, frames.bytes.len() as u64);
        Ok(())
    }
}

/// The Install and Punch records of a cut batch, all of whose chunks are in the log.
fn data_records(touched: &[Arc<FileBuffer>], number: u64, moves: &Moves) -> Vec<u8> {
    let mut out = Vec::new();
    for file in touched {
        for piece in file.pieces(number) {
            match piece {
                Piece::Hole(from_bytes, to_bytes) => {
                    Record::Punch { ino: file.ino, from_bytes, to_bytes }.encode_to(&mut out);
                }
                Piece::Data(offset_bytes, len_bytes, chunk, skip_bytes) => {
                    let run = chunk.placed().expect("every chunk of a cut batch was awaited");
                    let extent = Extent { len_bytes, skip_bytes, run, copied: None }.encode();
                    Record::Install { ino: file.ino, offset_bytes, extent: &extent }.encode_to(&mut out);
                }
                Piece::Copied(offset_bytes, extent) => {
                    let extent = moves.translated(extent, number);
                    Record::Install { ino: file.ino, offset_bytes, extent: &extent.encode() }.encode_to(&mut out);
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
