//! Reads back what the log wrote, and retires what is proven.
//!
//! Promise (I2): a batch is acknowledged, and its extents named by the index, only after each of its groups was read back
//! from the device and found equal to what was sent there, and the device was flushed. In log order, so batches retire in
//! order. Of a share of the groups each data frame is also opened and compared with the plaintext, which is still there.
//! Called by: its own thread, fed by `log`. Takes: nothing while reading.
//! On failure: a group that differs or cannot be read stops its generation (`Trouble`): nothing of it is acknowledged from
//! then on. A batch that is at rest and cannot be taken into the index, because that cannot be read at the moment, keeps its
//! buffers and is tried again.

use super::apply::apply;
use super::checkpoint::ToHousekeeper;
use super::flusher::Flushed;
use super::moves::Cleaned;
use super::segments::OpenSegment;
use super::shared::Shared;
use super::state::Event;
use super::step::Actor;
use super::trouble::{Kind, Trouble, kind_of};
use super::{VaultFault, segment_info};
use crate::backing::AlignedBuf;
use crate::base::choice::Verify;
use crate::base::id::SegmentId;
use crate::base::limits::GROUP_BYTES_MAX;
use crate::base::lock::{Held, Shared as _};
use crate::buffer::Chunk;
use crate::format::extent::Run;
use crate::format::record::Counters;
use crate::format::segment::LogPosition;
use crate::segment::{FrameAt, open_frames};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long until what could not be taken into the index is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// A chunk whose frames are to be opened after the read-back, and where they are.
pub struct Sample {
    pub chunk: Arc<Chunk>,
    pub run: Run,
}

/// What the log hands over, in its order.
pub enum ToVerify {
    /// A group just written.
    Group { generation: u64, segment: Arc<OpenSegment>, position: u64, image: AlignedBuf, samples: Vec<Sample> },
    /// A commit whose groups precede it here.
    Commit(Box<Commit>),
    /// Answered when everything before it has been dealt with.
    Barrier(Sender<()>),
    /// Nothing more will come.
    Stop,
}

/// A commit on its way to retirement.
pub struct Commit {
    pub generation: u64,
    pub number: u64,
    pub position: LogPosition,
    pub counters: Counters,
    pub derived: Vec<u8>,
    /// What the cleaner had put into it.
    pub cleaned: Cleaned,
    /// Its device flush.
    pub flushed: Arc<Flushed>,
    /// Set when the direct overlay was sealed at its cut: the first segment to replay after the checkpoint.
    pub checkpoint: Option<SegmentId>,
    pub began: Duration,
}

/// The verifier.
pub struct Verifier {
    shared: Arc<Shared>,
    from_log: Receiver<ToVerify>,
    housekeeper: Sender<ToHousekeeper>,
    back: AlignedBuf,
    /// The newest generation that has failed here.
    failed: Option<u64>,
    /// Without threads: read back, and its flush has not ended. Waiting here would hold up the log, whose step would lie on this
    /// one's stack, and which writes no commit before the one before it is durable.
    unflushed: Option<(Commit, Duration)>,
    /// At rest, and not yet in the index.
    unapplied: VecDeque<Commit>,
    again_at: Duration,
    /// Whether it was told that the index does not take them at the moment.
    told: bool,
    ended: bool,
}

impl Verifier {
    /// One with nothing to do.
    pub fn new(shared: Arc<Shared>, from_log: Receiver<ToVerify>, housekeeper: Sender<ToHousekeeper>) -> Verifier {
        let back = AlignedBuf::with_capacity(GROUP_BYTES_MAX);
        let (failed, unflushed, unapplied, again_at) = (None, None, VecDeque::new(), Duration::ZERO);
        Verifier {
            shared,
            from_log,
            housekeeper,
            back,
            failed,
            unflushed,
            unapplied,
            again_at,
            told: false,
            ended: false,
        }
    }

    /// Its life.
    pub fn run(mut self) {
        while !self.ended {
            // Nothing else has to be looked at from time to time: an idle vault wakes nobody.
            let item = match self.unapplied.is_empty() {
                true => self.from_log.recv().map_err(RecvTimeoutError::from),
                false => self.from_log.recv_timeout(AGAIN),
            };
            match item {
                Ok(item) => self.take(item),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.apply_waiting();
        }
    }

    fn take(&mut self, item: ToVerify) {
        let shared = Arc::clone(&self.shared);
        match item {
            ToVerify::Stop => {
                self.again_at = Duration::ZERO;
                self.apply_waiting();
                self.ended = true;
            }
            // Nobody waits for it if the log has ended.
            ToVerify::Barrier(tell) => drop(tell.send(())),
            ToVerify::Group { generation, segment, position, image, samples } => {
                // What has failed already proves nothing by reading right.
                if self.failed != Some(generation)
                    && let Err(trouble) = self.check_group(generation, &segment, position, &image, &samples)
                {
                    self.fail(trouble);
                }
                drop(samples);
                shared.verifying.fetch_sub(1, Relaxed);
                let mut spare = shared.group_buffers.held();
                // All that there are: one that is freed leaves a hole of just its size, which any smaller block spoils.
                if spare.len() < shared.shares.group_buffers() {
                    spare.push(image);
                }
            }
            ToVerify::Commit(commit) => {
                if self.failed != Some(commit.generation) {
                    self.retire(*commit, shared.world.elapsed());
                }
            }
        }
    }

    fn fail(&mut self, trouble: Trouble) {
        self.failed = Some(trouble.generation);
        self.shared.raise(trouble);
    }

    fn check_group(
        &mut self,
        generation: u64,
        segment: &OpenSegment,
        position: u64,
        image: &AlignedBuf,
        samples: &[Sample],
    ) -> Result<(), Trouble> {
        let shared = &self.shared;
        let place = shared.place();
        let began = Instant::now();
        let back = &mut self.back;
        back.set_len(image.len());
        let got = match shared.verify {
            Verify::Off => return Ok(()),
            Verify::Device => segment.file.read_device(back, position),
            Verify::Cache => segment.file.read_at(back, position),
        };
        let id = segment.context.id;
        let trouble = |kind, what: &dyn std::fmt::Display| {
            let why = format!("segment {id}, byte {position}: {what}").into();
            Trouble { generation, place, kind, why }
        };
        let got = got.map_err(|e: io::Error| trouble(kind_of(&e), &format!("reading back: {e}")))?;
        shared.stats.verify.record(began.elapsed());
        if got != image.len() || back[..] != image[..] {
            shared.stats.verify_mismatches.add(1);
            return Err(trouble(Kind::Mismatch, &"what was read back is not what was written"));
        }
        shared.stats.verified_bytes.add(got as u64);
        for sample in samples {
            if !opens_right(segment, sample, position, back) {
                shared.stats.verify_mismatches.add(1);
                return Err(trouble(Kind::Mismatch, &"a frame does not open to what was sealed in it"));
            }
            shared.stats.opened_chunks.add(1);
        }
        Ok(())
    }

    /// Takes note that a commit is durable; it began to wait for its flush at `began`.
    fn retire(&mut self, commit: Commit, began: Duration) {
        let shared = Arc::clone(&self.shared);
        let place = shared.place();
        let has_other = shared.places.has(super::place::Place::Emergency);
        let generation = commit.generation;
        let late = || {
            let late = has_other && shared.world.elapsed().saturating_sub(began) > shared.flush_deadline;
            let why = "a flush was not over within its deadline";
            late.then(|| Trouble { generation, place, kind: Kind::Stalled, why: why.into() })
        };
        let flushed = match shared.stepper {
            None => Some(commit.flushed.wait(late)),
            Some(_) => commit.flushed.poll(late),
        };
        match flushed {
            None => {
                self.unflushed = Some((commit, began));
                return;
            }
            Some(Err(trouble)) => return self.fail(trouble),
            Some(Ok(())) => {}
        }
        shared.happened(Event::Flushed, "");
        shared.stats.commit.record(shared.world.elapsed().saturating_sub(commit.began));
        // Durable and verified: answer first, the bookkeeping is ours alone.
        shared.answer(commit.number);
        self.unapplied.push_back(commit);
        self.again_at = Duration::ZERO;
        self.apply_waiting();
        // The log forgets what is at rest.
        shared.wake_log();
    }

    /// Takes batches that are at rest into the index, in order.
    fn apply_waiting(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        if shared.progress.has_given_up() {
            // A later batch without an earlier one would be a hole in what the index covers.
            self.unapplied.clear();
        }
        if self.unapplied.is_empty() || shared.world.elapsed() < self.again_at {
            return false;
        }
        while let Some(commit) = self.unapplied.pop_front() {
            match self.apply(&commit) {
                Ok(()) => self.told = false,
                Err(VaultFault::Backing(e)) => {
                    if !std::mem::replace(&mut self.told, true) {
                        let said = format!("taking batch {} into the index: {e}; it is tried again", commit.number);
                        shared.stats.error(shared.world.now(), said);
                    }
                    self.unapplied.push_front(commit);
                    self.again_at = shared.world.elapsed() + AGAIN;
                    return false;
                }
                Err(fault) => {
                    // It is in the log; only opening the vault anew makes the index from it again.
                    shared.give_up(&fault.to_string());
                    self.unapplied.clear();
                }
            }
        }
        true
    }

    fn apply(&self, commit: &Commit) -> Result<(), VaultFault> {
        let shared = &self.shared;
        let mut dead = Vec::new();
        let moves = !commit.cleaned.moving.is_empty();
        if moves {
            shared.moves.change();
        }
        let before = shared.index.begin_undoable();
        let applied = apply(&shared.index, &|id| segment_info(shared, id), &commit.derived, &mut dead);
        let sum = match applied {
            Ok(sum) => {
                shared.index.keep(before);
                sum
            }
            Err(fault) => {
                // Half of a commit's counts would stay wrong for ever.
                shared.index.undo(before);
                return Err(fault);
            }
        };
        if moves {
            let filling = *shared.gate.shared();
            shared.moves.applied(commit.number, filling);
        }
        shared.allocated.fetch_add(sum as u64, Relaxed);
        if !dead.is_empty() {
            shared.room.note_dead(dead.iter().map(|range| range.to - range.from).sum());
            shared.dead.held().append(&mut dead);
            shared.give_back_much();
        }
        let touched = shared.in_flight.held().remove(&commit.number).unwrap_or_default();
        let copied: u64 = touched.iter().map(|file| file.copied_bytes(commit.number)).sum();
        shared.copied.fetch_sub(copied, Relaxed);
        let freed: u64 = touched.iter().map(|file| file.retire(commit.number)).sum();
        shared.dirty.give_back(freed + commit.cleaned.bytes());
        if let Some(replay_from) = commit.checkpoint {
            shared.index.seal_derived();
            let dead = std::mem::take(&mut *shared.dead.held());
            shared.room.clear_dead();
            let (position, counters) = (commit.position, commit.counters);
            // The housekeeper outlives the verifier; see `Vault::close`.
            let _ = self.housekeeper.send(ToHousekeeper::Checkpoint { position, counters, replay_from, dead });
        }
        shared.progress.retired_to(commit.number);
        shared.moves.retired(commit.number);
        let event = if shared.pending_bytes() == 0 { Event::Idle } else { Event::Settled };
        shared.happened(event, "");
        Ok(())
    }
}

impl Actor for Verifier {
    fn step(&mut self) -> bool {
        if self.ended {
            return false;
        }
        if let Some((commit, began)) = self.unflushed.take() {
            self.retire(commit, began);
            return self.unflushed.is_none() || self.apply_waiting();
        }
        match self.from_log.try_recv() {
            Ok(item) => {
                self.take(item);
                true
            }
            Err(_) => self.apply_waiting(),
        }
    }
}

/// Whether the frames of a chunk, as read back, open to its plaintext.
fn opens_right(segment: &OpenSegment, sample: &Sample, position: u64, back: &AlignedBuf) -> bool {
    let Sample { chunk, run } = sample;
    let mut right = true;
    for f in run.frames() {
        let frame = FrameAt {
            position_bytes: f.position_bytes,
            sealed_len_bytes: f.sealed_len_bytes,
            slot: f.slot,
            codec: f.codec,
            plain_len_bytes: f.plain_len_bytes,
            ino: chunk.ino,
            offset_bytes: chunk.offset_bytes + u64::from(f.plain_start_bytes),
        };
        let from = (f.position_bytes - position) as usize;
        let Some(sealed) = back.get(from..from + f.sealed_len_bytes as usize) else { return false };
        let mut sealed = sealed.to_vec();
        let plain_at = f.plain_start_bytes as usize;
        let want = &chunk.data()[plain_at..plain_at + f.plain_len_bytes as usize];
        open_frames(&segment.context, &[frame], f.position_bytes, &mut sealed, |_, plain| {
            right &= plain.is_ok_and(|plain| plain == want);
        });
    }
    right
}
