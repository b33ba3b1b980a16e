//! Moves under way: frames that are being sealed again, and who may still name the old ones.
//!
//! Promise: whatever names frames at rest while they move finds them. An Install that is logged behind a Move names the new
//! place, though the copy was laid when only the old one was known; and the old frames stay until no buffer names them.
//! How: a batch's Installs are translated by the moves of the batches before it. A move is forgotten only when the batch that
//! was filling when the index learnt of it has come to rest: what was looked up earlier has been laid in it or before. What was
//! looked up and not yet laid is looked up again: `seen` changes whenever that is needed.
//! Called by: `cleaner` (begins moves), `commit` (records, translation), `verifier` (applied), `copy` (what it looked up),
//! `failover` (chunks). Takes: its own lock, for memory only. Cannot fail.

use super::moved::Move;
use crate::base::id::SegmentId;
use crate::base::lock::Held;
use crate::buffer::Chunk;
use crate::format::extent::{Extent, Origin};
use crate::format::record::Record;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Frames of a run that are sealed again.
pub struct Moving {
    /// The old run: its segment, and its position there.
    pub from: (SegmentId, u64),
    /// The first of its frames.
    pub first_frame: u32,
    /// Their plaintext, on its way; the address that it is sealed for is the old one's.
    pub chunk: Arc<Chunk>,
}

impl Moving {
    /// The move, once the log has placed its frames.
    fn placed(&self) -> Option<Move> {
        let run = self.chunk.placed()?;
        let copied = Some(Origin { ino: self.chunk.ino, start_bytes: self.chunk.offset_bytes });
        let to = Extent { len_bytes: run.plain_len_bytes, skip_bytes: 0, run, copied };
        Some(Move { from: self.from, first_frame: self.first_frame, to })
    }

    /// Appends its record. Its batch was cut, and its chunk is in the log.
    fn record(&self, out: &mut Vec<u8>) {
        let Move { from: (segment, position_bytes), first_frame, to } =
            self.placed().expect("every chunk of a cut batch was awaited");
        Record::Move { segment, position_bytes, first_frame, extent: &to.encode() }.encode_to(out);
    }
}

/// What a batch says about segments.
#[derive(Default, Clone)]
pub struct Cleaned {
    /// Moves.
    pub moving: Vec<Arc<Moving>>,
    /// Segments that are about to be removed.
    pub forgotten: Vec<SegmentId>,
}

impl Cleaned {
    /// The chunks of its moves.
    pub fn chunks(&self) -> impl Iterator<Item = Arc<Chunk>> + '_ {
        self.moving.iter().map(|one| Arc::clone(&one.chunk))
    }

    /// Bytes of plaintext that its moves hold.
    pub fn bytes(&self) -> u64 {
        self.moving.iter().map(|one| one.chunk.data().len() as u64).sum()
    }

    /// Appends its records: they come last of their batch's.
    pub fn records(&self, out: &mut Vec<u8>) {
        self.moving.iter().for_each(|one| one.record(out));
        self.forgotten.iter().for_each(|&segment| Record::Forget { segment }.encode_to(out));
    }
}

enum Stage {
    Moving(Arc<Moving>),
    /// The index knows it.
    Moved(Move),
}

impl Stage {
    /// Where an extent is behind it, if that is known.
    fn moved(&self, old: &Extent) -> Option<Extent> {
        match self {
            Stage::Moving(moving) => moving.placed()?.moved(old),
            Stage::Moved(moved) => moved.moved(old),
        }
    }
}

#[derive(Default)]
struct Known {
    /// By old run, each with its batch.
    by_run: BTreeMap<(SegmentId, u64), Vec<(u64, Stage)>>,
    /// For each batch with moves that the index knows of: the newest batch that may name the old frames.
    named_until: BTreeMap<u64, u64>,
}

/// All moves that matter.
#[derive(Default)]
pub struct Moves {
    known: Mutex<Known>,
    seen: AtomicU64,
}

impl Moves {
    /// Takes in the moves of a batch that is filling.
    pub fn begin(&self, batch: u64, moving: &[Arc<Moving>]) {
        let mut known = self.known.held();
        for one in moving {
            known.by_run.entry(one.from).or_default().push((batch, Stage::Moving(Arc::clone(one))));
        }
    }

    /// Changes whenever what was looked up and not yet laid may name frames that have moved.
    pub fn seen(&self) -> u64 {
        self.seen.load(SeqCst)
    }

    /// The index is about to learn of a batch's moves, or has just learnt of them.
    pub fn change(&self) {
        self.seen.fetch_add(1, SeqCst);
    }

    /// The index knows the moves of `batch`; `filling` is the batch that fills now.
    pub fn applied(&self, batch: u64, filling: u64) {
        self.change();
        let mut known = self.known.held();
        known.named_until.insert(batch, filling);
        // Their bytes are at rest, and given back.
        for (_, stage) in known.by_run.values_mut().flatten().filter(|(of, _)| *of == batch) {
            if let Stage::Moving(moving) = stage
                && let Some(moved) = moving.placed()
            {
                *stage = Stage::Moved(moved);
            }
        }
    }

    /// Batches up to `batch` have come to rest: forgets moves that nothing names any more.
    pub fn retired(&self, batch: u64) {
        let mut known = self.known.held();
        let Known { by_run, named_until } = &mut *known;
        let gone: Vec<u64> = named_until.iter().filter(|(_, until)| **until <= batch).map(|(of, _)| *of).collect();
        if gone.is_empty() {
            return;
        }
        // Before they are forgotten: whoever looked something up in a buffer, and translates it afterwards, looks again.
        self.change();
        named_until.retain(|of, _| !gone.contains(of));
        by_run.retain(|_, moving| {
            moving.retain(|(of, _)| !gone.contains(of));
            !moving.is_empty()
        });
    }

    /// What an extent of frames at rest is, behind the moves of all batches before `batch`.
    pub fn translated(&self, extent: Extent, batch: u64) -> Extent {
        self.through(extent, |of, _| of < batch)
    }

    /// What an extent that a buffer names is, behind the moves that the index knows of.
    pub fn in_force(&self, extent: Extent) -> Extent {
        self.through(extent, |of, known| known.named_until.contains_key(&of))
    }

    fn through(&self, mut extent: Extent, counts: impl Fn(u64, &Known) -> bool) -> Extent {
        let known = self.known.held();
        // Each step leads to a newer segment.
        while let Some(all) = known.by_run.get(&(extent.run.segment, extent.run.position_bytes)) {
            let mut due = all.iter().filter(|(of, _)| counts(*of, &known));
            let Some(next) = due.find_map(|(_, stage)| stage.moved(&extent)) else { break };
            extent = next;
        }
        extent
    }
}

/// The ranges of frames in a mask, each as long as it can be.
pub fn ranges(frames: u32) -> impl Iterator<Item = Range<u32>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = frames.checked_shr(at).filter(|left| *left != 0)?;
        let from = at + left.trailing_zeros();
        let to = from + (frames >> from).trailing_ones();
        at = to;
        Some(from..to)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_bits_of_a_mask() {
        for (mask, want) in [
            (0, &[][..]),
            (1, &[(0, 1)]),
            (0b1011_0110, &[(1, 3), (4, 6), (7, 8)]),
            (u32::MAX, &[(0, 32)]),
            (1 << 31, &[(31, 32)]),
        ] {
            assert_eq!(ranges(mask).map(|r| (r.start, r.end)).collect::<Vec<_>>(), want, "{mask:b}");
        }
    }
}
