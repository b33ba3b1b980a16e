//! Copies of ranges of files that share what is at rest, instead of moving it.
//!
//! Promise: a copy shows what the source showed at one moment while it was laid: what was looked up before, with no lock held,
//! is laid only if the source has not changed since. It names only frames of earlier batches, which are at rest: a segment
//! that fails never takes them along. And as what the source shows at that moment is not yet overwritten, whoever overwrites
//! it does so in the same batch or a later one: the frames are alive when the copy's Install is applied (`sharing`).
//! Called by: `fs`. Takes: the gate, shared, and a file's lock while it lays; waits only with neither.
//! On failure: nothing was changed. Bytes that are lost are not copied: they are `Damaged`, as when they are read.

use super::op::{Op, Reservation};
use super::{NOWHERE, Vault, VaultFault, read};
use crate::base::id::Ino;
use crate::base::lock::Held;
use crate::buffer::{FileBuffer, Part, Shown};
use crate::format::extent::Extent;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that are still buffered are copied, up to so many; if there are more, all is brought to rest first.
const BUFFERED_BYTES_MAX: u64 = 4 << 20;
/// Pieces in one copy at most: what a commit says of them must not be without bounds.
const PARTS_MAX: usize = 32_768;

/// What a range of a file shows, to be laid elsewhere.
pub struct Content {
    parts: Vec<Part>,
    changes: u64,
    /// `Moves::seen` before it was looked up.
    seen: u64,
}

/// Room for what a copy takes.
pub struct CopyRoom<'a> {
    pub(super) room: Reservation<'a>,
    promised: Promised<'a>,
}

/// Bytes of files that copies have been promised and that do not yet count as being at rest.
struct Promised<'a> {
    all: &'a AtomicU64,
    bytes: u64,
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
    }
}

impl Content {
    /// Bytes from the beginning of the range: fewer than asked for where there are too many pieces.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.to - part.from).sum()
    }

    fn sum(&self, which: impl Fn(&Shown) -> bool) -> u64 {
        self.parts.iter().filter(|part| which(&part.shown)).map(|part| part.to - part.from).sum()
    }
}

impl Vault {
    /// What `[from, to)` of a file shows, or the beginning of it. Reads the index, and may wait for the disk.
    pub fn content(&self, file: &FileBuffer, from: u64, to: u64) -> Result<Content, VaultFault> {
        let seen = self.shared.moves.seen();
        let (mut parts, mut changes) = file.parts(from, to, BUFFERED_BYTES_MAX);
        if parts.iter().any(|part| matches!(part.shown, Shown::More)) {
            self.sync_and_retire()?;
            (parts, changes) = file.parts(from, to, BUFFERED_BYTES_MAX);
        }
        let charge_max = self.shared.shares.dirty_bytes / 4;
        let (mut known, mut charge) = (Vec::new(), 0);
        for part in parts {
            let begun = known.len();
            match part.shown {
                Shown::More => break,
                Shown::AtRest => {
                    if !self.at_rest(file.ino, part.from, part.to, &mut known)? {
                        break;
                    }
                }
                Shown::Copied(extent, skip) => {
                    // Laid when only another place was known, perhaps.
                    let named = extent.part(skip, (part.to - part.from) as u32);
                    let extent = Arc::new(self.shared.moves.in_force(named));
                    known.push(Part { shown: Shown::Copied(extent, 0), ..part });
                }
                Shown::Hole | Shown::Bytes(_) => known.push(part),
            }
            charge += known[begun..].iter().map(Part::charge_bytes).sum::<u64>();
            if charge > charge_max || known.len() > PARTS_MAX {
                break;
            }
        }
        // Never nothing: one piece passes, whatever it takes.
        let mut charge = 0;
        let mut within = |part: &Part| {
            charge += part.charge_bytes();
            charge <= charge_max
        };
        let fits = known.iter().take(PARTS_MAX).take_while(|part| within(part)).count();
        known.truncate(fits.max(1));
        Ok(Content { parts: known, changes, seen })
    }

    /// Adds what the index says of a range; false if it had to stop before its end.
    fn at_rest(&self, ino: Ino, from: u64, to: u64, parts: &mut Vec<Part>) -> Result<bool, VaultFault> {
        let hole = |from, to| Part { from, to, shown: Shown::Hole };
        let mut next = from;
        for (at, extent) in read::extents(&self.shared, ino, from, to)? {
            // Not before what is known already: an index that is damaged must not make a file longer than it is.
            let (a, b) = (at.max(next), at.saturating_add(u64::from(extent.len_bytes)).min(to));
            if a >= b {
                continue;
            }
            let Some(origin) = extent.origin(ino, at) else {
                return Err(VaultFault::Index("an extent reaches outside its file".into()));
            };
            if next < a {
                parts.push(hole(next, a));
            }
            if extent.run.segment == NOWHERE {
                let position_bytes = extent.run.position_bytes;
                let lost = VaultFault::Damaged { ino, segment: NOWHERE, position_bytes };
                return if parts.is_empty() { Err(lost) } else { Ok(false) };
            }
            let skip_bytes = extent.skip_bytes + (a - at) as u32;
            let part = Extent { len_bytes: (b - a) as u32, skip_bytes, run: extent.run, copied: Some(origin) };
            parts.push(Part { from: a, to: b, shown: Shown::Copied(Arc::new(part), 0) });
            next = b;
        }
        if next < to {
            parts.push(hole(next, to));
        }
        Ok(true)
    }

    /// Room for laying it at `offset` of a file, as `reserve` gives it for a write: of the quota for all that it holds, of the
    /// byte budget for what it takes in memory.
    pub fn reserve_copy(&self, to: &FileBuffer, offset: u64, content: &Content) -> Result<CopyRoom<'_>, VaultFault> {
        let s = &self.shared;
        let charge: u64 = content.parts.iter().map(Part::charge_bytes).sum();
        self.make_room(charge)?;
        let room = self.take_room(charge)?;
        let bytes = content.sum(|shown| matches!(shown, Shown::Copied(..)));
        s.copied.fetch_add(bytes, Relaxed);
        let promised = Promised { all: &s.copied, bytes };
        let Some(quota) = s.quota_bytes.filter(|&quota| self.used_bytes() > quota) else {
            return Ok(CopyRoom { room: Reservation(room), promised });
        };
        // As in `reserve`: exactly, and one at a time.
        drop(room);
        let _alone = s.near_quota.held();
        self.sync_and_retire()?;
        let (data, len) = (content.sum(|shown| !matches!(shown, Shown::Hole)), content.len_bytes());
        let new = data.saturating_sub(read::allocated_between(s, to.ino, offset, offset + len)?);
        if self.used_bytes() - bytes + new > quota {
            return Err(VaultFault::QuotaBytes);
        }
        Ok(CopyRoom { room: Reservation(self.take_room(charge)?), promised })
    }

    /// Bytes that count against the quota: at rest, buffered, and promised to copies.
    pub(super) fn used_bytes(&self) -> u64 {
        let s = &self.shared;
        s.allocated.load(Relaxed).saturating_add(s.dirty.used_bytes()).saturating_add(s.copied.load(Relaxed))
    }
}

impl Op<'_> {
    /// Lays what a range of `from` shows at `offset` of `to`; false, and nothing is done, if it has changed since it was looked
    /// up. The two may be one file.
    pub fn copy(
        &mut self,
        from: &FileBuffer,
        content: &Content,
        to: &Arc<FileBuffer>,
        offset: u64,
        room: CopyRoom<'_>,
    ) -> bool {
        let unchanged = from.is_unchanged(content.changes) && self.shared.moves.seen() == content.seen;
        let Some(first) = content.parts.first().filter(|_| unchanged) else { return false };
        let shift = offset.wrapping_sub(first.from);
        let CopyRoom { room, mut promised } = room;
        // The layer keeps count of them from here on, and gives them back when it retires.
        promised.bytes = 0;
        self.lay(to, &content.parts, shift, room);
        true
    }
}
