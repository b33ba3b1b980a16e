//! Which frames of a segment an extent still needs, as the index says: what a rekey must carry over, and what it need not.
//!
//! Promise: every frame that any extent of any file needs is in the answer. Memory: some ten bytes for each such frame, and no
//! more of them than `FRAMES_MAX` but those of one segment; so a large vault is looked through once for each so many frames.
//! Called by: `rekey`, which asks segment by segment, ascending. On failure: the index's fault.

use super::VaultFault;
use crate::base::id::{Ino, SegmentId, Slot};
use crate::format::extent::Extent;
use crate::format::key;
use crate::index::Index;
use std::collections::{BTreeMap, BTreeSet};

/// Extents looked up at a time.
const SCAN: usize = 4096;
/// Most frames that are remembered at a time.
const FRAMES_MAX: usize = 2_000_000;

/// The frames alive in a range of segments.
#[derive(Default)]
pub struct Alive {
    slots: BTreeMap<SegmentId, BTreeSet<Slot>>,
    /// The segments that the answer is about: from the first to before the second.
    about: (SegmentId, SegmentId),
}

impl Alive {
    /// The frames alive in a segment.
    pub fn of(&mut self, index: &Index, id: SegmentId) -> Result<&BTreeSet<Slot>, VaultFault> {
        if id < self.about.0 || id >= self.about.1 {
            *self = Alive::look(index, id, FRAMES_MAX)?;
        }
        Ok(self.slots.entry(id).or_default())
    }

    fn look(index: &Index, from: SegmentId, most: usize) -> Result<Alive, VaultFault> {
        let (mut alive, mut count) = (Alive { slots: BTreeMap::new(), about: (from, SegmentId(u64::MAX)) }, 0);
        each_extent(index, |_, _, extent| {
            let id = extent.run.segment;
            if id < alive.about.0 || id >= alive.about.1 {
                return;
            }
            let slots = alive.slots.entry(id).or_default();
            let before = slots.len();
            slots.extend(needed(extent).map(|(slot, ..)| slot));
            count += slots.len() - before;
            while count > most && alive.slots.len() > 1 {
                let (last, slots) = alive.slots.pop_last().expect("there are two");
                (alive.about.1, count) = (last, count - slots.len());
            }
        })?;
        Ok(alive)
    }
}

/// The frames that an extent needs: each with the first byte and the first byte after of the run that lie in it.
fn needed(extent: &Extent) -> impl Iterator<Item = (Slot, u32, u32)> + '_ {
    let (skip, end) = (extent.skip_bytes, extent.skip_bytes + extent.len_bytes);
    let frames = extent.run.frames().map(|f| (f.slot, f.plain_start_bytes, f.plain_start_bytes + f.plain_len_bytes));
    frames.filter(move |(_, from, to)| *from < end && *to > skip)
}

/// The ranges of files, each with its inode, that lie in some frames.
pub fn ranges(index: &Index, bad: &BTreeSet<(SegmentId, Slot)>) -> Result<Vec<(Ino, u64, u64)>, VaultFault> {
    let mut found = Vec::new();
    each_extent(index, |ino, offset, extent| {
        let (skip, end) = (extent.skip_bytes, extent.skip_bytes + extent.len_bytes);
        for (_, from, to) in needed(extent).filter(|(slot, ..)| bad.contains(&(extent.run.segment, *slot))) {
            let here = |at: u32| offset + u64::from(at.clamp(skip, end) - skip);
            found.push((ino, here(from), here(to)));
        }
    })?;
    Ok(found)
}

fn each_extent(index: &Index, mut look: impl FnMut(Ino, u64, &Extent)) -> Result<(), VaultFault> {
    let mut next = vec![key::EXTENT];
    loop {
        let page = index.scan(&[key::EXTENT], &next, SCAN)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        next = [&last[..], &[0]].concat();
        for (k, v) in &page {
            let (_, ino, rest) = key::split(k)?;
            look(Ino(ino), key::tail_u64(rest)?, &Extent::decode(v)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::choice::Codec;
    use crate::format::extent::Run;
    use crate::index::MemoryTable;

    fn extent(segment: u64, slot: u32, skip: u32, len: u32) -> Extent {
        let run = Run {
            segment: SegmentId(segment),
            position_bytes: 64,
            slot: Slot(slot),
            codec: Codec::Raw,
            unit_log2: 14,
            plain_len_bytes: 50_000,
            sealed_lens: vec![16_400, 16_400, 16_400, 50_000 - 3 * 16_384 + 16],
        };
        Extent { skip_bytes: skip, len_bytes: len, run, copied: None }
    }

    #[test]
    fn frames_that_an_extent_touches_are_alive_and_no_others_however_little_is_remembered() {
        let index = Index::new(Box::new(MemoryTable::default()));
        let put = |ino, offset, extent: Extent| {
            index.change(vec![(key::extent(Ino(ino), offset), Some(extent.encode()))]);
        };
        put(5, 0, extent(1, 0, 0, 16_384));
        put(5, 40_000, extent(1, 0, 40_000, 10_000));
        put(6, 0, extent(2, 8, 16_383, 2));
        put(7, 0, extent(2, 8, 49_999, 1));
        put(7, 131_072, extent(3, 1, 0, 50_000));
        let want = [(1, vec![0, 2, 3]), (2, vec![8, 9, 11]), (3, vec![1, 2, 3, 4]), (4, vec![])];
        for most in [0, 1, 3, 6, 7, 100] {
            let mut alive = Alive::default();
            for (id, slots) in &want {
                if SegmentId(*id) >= alive.about.1 || *id == 1 {
                    alive = Alive::look(&index, SegmentId(*id), most).unwrap();
                }
                let found: Vec<u32> = alive.of(&index, SegmentId(*id)).unwrap().iter().map(|s| s.0).collect();
                assert_eq!(found, *slots, "segment {id}, {most} remembered");
            }
        }
        let bad = BTreeSet::from([(SegmentId(1), Slot(2)), (SegmentId(2), Slot(9))]);
        assert_eq!(ranges(&index, &bad).unwrap(), [(Ino(5), 40_000, 49_152), (Ino(6), 1, 2)]);
    }
}
