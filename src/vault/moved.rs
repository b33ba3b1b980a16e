//! Applies a commit's Move and Forget records: what lay in frames of an old run lies in a new one from then on.
//!
//! Promise (I5): as with `apply`, the index after it is a function of the commits alone. It comes after all Installs and
//! Punches of its commit, so it finds who holds the old run by then, and only who does: what was overwritten since the frames
//! were sealed again stays overwritten. An extent moves if all that it needs of its run was moved, else it stays where it is, and
//! with it the old segment. Every extent of a run, and who shares it, changes at one moment for readers.
//! Called by: `apply`. Takes: nothing but what the index does. On failure: the index's fault; `apply`'s caller takes all back.

use super::VaultFault;
use super::apply::{NewSegment, counted, extents_between, known_segment, read_u64};
use super::shared::DeadRange;
use super::sharing::TOTAL;
use crate::base::id::{Ino, SegmentId};
use crate::base::limits::CHUNK_BYTES;
use crate::format::extent::{Extent, Origin, Run};
use crate::format::holders::{Holder, Holders};
use crate::format::key;
use crate::format::record::Record;
use crate::format::wire::Reader;
use crate::index::Index;
use std::collections::BTreeMap;

/// Applies the moves of a stream, in order.
pub fn apply(
    index: &Index,
    new_segment: NewSegment<'_>,
    records: &[u8],
    dead: &mut Vec<DeadRange>,
) -> Result<(), VaultFault> {
    let mut r = Reader::new(records);
    while !r.is_empty() {
        match Record::decode(&mut r)? {
            Record::Move { segment, position_bytes, first_frame, extent } => {
                let to = Extent::decode(extent)?;
                Move { from: (segment, position_bytes), first_frame, to }.apply(index, new_segment, dead)?;
            }
            Record::Forget { segment } => {
                let known = known_segment(index, segment)?;
                // Where records were lost, something may be named in it yet: then that is all that says so.
                if known.is_some_and(|info| info.live_bytes == 0) {
                    index.change(vec![(key::segment(segment), None)]);
                }
            }
            Record::Put { .. } | Record::Delete { .. } | Record::Install { .. } | Record::Punch { .. } => {}
        }
    }
    Ok(())
}

/// One Move record.
pub struct Move {
    /// The old run: its segment, and its position there.
    pub from: (SegmentId, u64),
    /// The first of its frames that were sealed again.
    pub first_frame: u32,
    /// The whole of the new run.
    pub to: Extent,
}

impl Move {
    /// Where an extent of the old run lies in the new one; `None` if it needs more than was moved.
    pub fn moved(&self, old: &Extent) -> Option<Extent> {
        if (old.run.segment, old.run.position_bytes) != self.from {
            return None;
        }
        let before = self.first_frame.checked_shl(u32::from(old.run.unit_log2))?;
        let skip_bytes = old.skip_bytes.checked_sub(before)?;
        let inside = skip_bytes.checked_add(old.len_bytes)? <= self.to.run.plain_len_bytes;
        let copied = old.copied.map(|o| Origin { start_bytes: o.start_bytes + u64::from(before), ..o });
        inside.then(|| Extent { len_bytes: old.len_bytes, skip_bytes, run: self.to.run.clone(), copied })
    }

    fn apply(&self, index: &Index, new_segment: NewSegment<'_>, dead: &mut Vec<DeadRange>) -> Result<(), VaultFault> {
        let is_whole = self.to.skip_bytes == 0 && self.to.len_bytes == self.to.run.plain_len_bytes;
        let Some(origin) = self.to.copied.filter(|_| is_whole) else {
            return Err(VaultFault::Index("a move is not to the whole of a run, sealed for some place".into()));
        };
        let old_key = key::holders(self.from.0, self.from.1);
        let shared = index.get(&old_key)?.map(|v| Holders::decode(&v)).transpose()?;
        let (mut changes, mut stay, mut moved) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let (mut old_run, mut was) = (None, 0);
        for (ino, at, extent) in self.held(index, origin, shared.as_ref())? {
            was |= extent.frames_touched();
            match self.moved(&extent) {
                Some(new) if new.origin(ino, at) == Some(origin) => {
                    *moved.entry(Holder::of(ino, at, &new)).or_insert(0) |= new.frames_touched();
                    changes.push((key::extent(ino, at), Some(new.encode())));
                }
                Some(_) => {
                    return Err(VaultFault::Index("a move is sealed for another place than what it moves".into()));
                }
                None => *stay.entry(Holder::of(ino, at, &extent)).or_insert(0) |= extent.frames_touched(),
            }
            old_run = Some(extent.run);
        }
        let all = |held: &BTreeMap<Holder, u32>| held.values().fold(0, |frames, held| frames | held);
        let (stays, born) = (all(&stay), all(&moved));
        if let Some(shared) = shared {
            let mut total = read_u64(index, &key::total(TOTAL))?;
            let left = Holders { origin: shared.origin, all: stay.into_iter().collect() };
            let new = Holders { origin, all: moved.into_iter().collect() };
            let mut set = |k, holders: &Holders| {
                let is_shared = holders.is_shared();
                total += u64::from(is_shared);
                changes.push((k, is_shared.then(|| holders.encode())));
            };
            set(old_key, &left);
            if born != 0 {
                set(key::holders(self.to.run.segment, self.to.run.position_bytes), &new);
            }
            total = total.saturating_sub(1);
            changes.push((key::total(TOTAL), (total > 0).then(|| total.to_le_bytes().to_vec())));
        }
        if let Some(run) = old_run {
            let died = sealed_bytes(&run, was & !stays);
            let lived = sealed_bytes(&self.to.run, born);
            // Both may be one segment.
            changes.push(counted(index, new_segment, self.from.0, 0, -died)?);
            index.change(changes);
            index.change(vec![counted(index, new_segment, self.to.run.segment, lived, lived)?]);
        }
        // What was overwritten while it was sealed again is of no use to anyone.
        for (_, frame) in self.to.run.frames().enumerate().filter(|(i, _)| born & (1 << i) == 0) {
            let to = frame.position_bytes + u64::from(frame.sealed_len_bytes);
            dead.push(DeadRange { segment: self.to.run.segment, from: frame.position_bytes, to });
        }
        Ok(())
    }

    /// The extents that lie in the old run.
    fn held(
        &self,
        index: &Index,
        origin: Origin,
        shared: Option<&Holders>,
    ) -> Result<Vec<(Ino, u64, Extent)>, VaultFault> {
        let mut all = Vec::new();
        let mut add = |ino, from, to, holder: Option<Holder>| -> Result<(), VaultFault> {
            for (at, extent) in extents_between(index, ino, from, to)? {
                let its = (extent.run.segment, extent.run.position_bytes) == self.from
                    && holder.is_none_or(|holder| Holder::of(ino, at, &extent) == holder);
                if its {
                    all.push((ino, at, extent));
                }
            }
            Ok(())
        };
        match shared {
            // A run never crosses a chunk's boundary, and nothing holds it but the place that it was sealed for.
            None => {
                let chunk = origin.start_bytes / CHUNK_BYTES as u64 * CHUNK_BYTES as u64;
                add(origin.ino, chunk, chunk.saturating_add(CHUNK_BYTES as u64), None)?;
            }
            Some(holders) => {
                for (holder, _) in &holders.all {
                    let (from, to) = holder.range(CHUNK_BYTES as u32);
                    add(holder.ino, from, to, Some(*holder))?;
                }
            }
        }
        Ok(all)
    }
}

fn sealed_bytes(run: &Run, frames: u32) -> i64 {
    let lens = run.sealed_lens.iter().enumerate();
    lens.filter(|(i, _)| frames & (1 << i) != 0).map(|(_, len)| i64::from(*len)).sum()
}
