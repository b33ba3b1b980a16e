//! What is alive in one segment: the runs that some file still holds, found by going through the segment's own directories.
//!
//! Promise: a run that is held at every moment of the walk, by the place that it was sealed for or by a copy, is found, unless
//! the group that it lies in does not hold; what is found was held at some moment. So whoever relies on there being nothing asks
//! when no buffer can name the segment any more. Cost: a look-up for each frame of data, and reading what the file holds.
//! Called by: `cleaner`. Takes: nothing; the disk and the index are read with no lock held.
//! On failure: the disk's or the index's fault; of a frame that does not open, `None` for its plaintext.

use super::apply::{extents_between, same_run};
use super::shared::Shared;
use super::{VaultFault, read};
use crate::backing::{Cache, Open};
use crate::base::id::{SegmentId, Slot};
use crate::base::limits::CHUNK_BYTES;
use crate::format::extent::{Extent, Origin, Run};
use crate::format::frame::Kind;
use crate::format::holders::Holders;
use crate::format::key;
use crate::segment::{Walk, WalkedFrame, path};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Holders looked up at a time.
const SCAN: usize = 512;

/// A run that is held.
pub struct Occupant {
    /// The run.
    pub run: Run,
    /// What it was sealed for.
    pub origin: Origin,
    /// Its frames that are held, a bit each.
    pub frames: u32,
}

/// A walk through the occupants of a segment.
pub struct Occupants {
    id: SegmentId,
    walk: Walk,
    /// Runs that copies share, by position.
    shared_runs: BTreeMap<u64, Holders>,
    /// The frames of the group at hand.
    frames: BTreeMap<Slot, WalkedFrame>,
    found: VecDeque<Occupant>,
    ended: bool,
    read_bytes: u64,
}

impl Occupants {
    /// Begins at the segment's first group.
    pub fn of(shared: &Shared, id: SegmentId) -> Result<Occupants, VaultFault> {
        let file = shared.backing.open(&path(id), Open::Read, Cache::Direct)?;
        let segments = &shared.segments;
        let walk = Walk::new(file, id, segments.suite, segments.vault);
        let (mut shared_runs, prefix) = (BTreeMap::new(), key::prefix(key::HOLDERS, id.0));
        let mut next = prefix.clone();
        loop {
            let page = shared.index.scan(&prefix, &next, SCAN)?;
            let Some((last, _)) = page.last() else { break };
            next = [&last[..], &[0]].concat();
            for (k, v) in &page {
                shared_runs.insert(key::tail_u64(key::split(k)?.2)?, Holders::decode(v)?);
            }
        }
        let (frames, found) = (BTreeMap::new(), VecDeque::new());
        Ok(Occupants { id, walk, shared_runs, frames, found, ended: false, read_bytes: 0 })
    }

    /// The segment.
    pub fn segment(&self) -> SegmentId {
        self.id
    }

    /// Bytes of the segment gone through since this was asked last.
    pub fn read_bytes(&mut self) -> u64 {
        let at = self.walk.position_bytes();
        at - std::mem::replace(&mut self.read_bytes, at)
    }

    /// The next occupant; looks through one group more if need be. `Some(None)`: there was none in it.
    pub fn next(&mut self, shared: &Shared) -> Result<Option<Option<Occupant>>, VaultFault> {
        if self.found.is_empty() && !self.ended {
            self.look(shared)?;
        }
        let next = self.found.pop_front();
        Ok((next.is_some() || !self.ended).then_some(next))
    }

    /// Looks through the next group.
    fn look(&mut self, shared: &Shared) -> Result<(), VaultFault> {
        let group = self.walk.next(&shared.segments.keys())?;
        self.frames.clear();
        let Some(group) = group else {
            self.ended = true;
            return Ok(());
        };
        let mut covered = 0;
        for frame in group.frames.iter().filter(|frame| frame.entry.kind == Kind::Data) {
            self.frames.insert(frame.entry.slot, *frame);
            if frame.position_bytes < covered {
                continue;
            }
            let occupant = match self.shared_runs.get(&frame.position_bytes) {
                Some(holders) => held_by(shared, self.id, frame.position_bytes, holders)?,
                None => held_at_home(shared, self.id, frame)?,
            };
            if let Some(occupant) = occupant {
                covered = occupant.run.position_bytes + occupant.run.sealed_len_bytes();
                self.found.push_back(occupant);
            }
        }
        Ok(())
    }

    /// The plaintext of frames of an occupant that was found last; `None` if one of them does not open.
    pub fn open(&mut self, occupant: &Occupant, frames: Range<u32>) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        for i in frames {
            let frame = self.frames.get(&Slot(occupant.run.slot.0 + i))?;
            self.walk.open(frame, &mut plain).ok()?;
        }
        Some(plain)
    }
}

/// The run of a frame, if the place that it was sealed for holds it.
fn held_at_home(shared: &Shared, id: SegmentId, frame: &WalkedFrame) -> Result<Option<Occupant>, VaultFault> {
    let (ino, from) = (frame.entry.ino, frame.entry.offset_bytes);
    let to = from.saturating_add(u64::from(frame.entry.plain_len_bytes));
    for (at, extent) in read::extents(shared, ino, from, to)? {
        let run = &extent.run;
        let has = run.segment == id && run.frames().any(|f| f.position_bytes == frame.position_bytes);
        let Some(origin) = extent.origin(ino, at).filter(|_| has) else { continue };
        let end = origin.start_bytes.saturating_add(u64::from(run.plain_len_bytes));
        let all = extents_between(&shared.index, ino, origin.start_bytes, end)?;
        let its = all.iter().filter(|(_, e)| same_run(&e.run, run));
        let frames = its.fold(extent.frames_touched(), |frames, (_, e)| frames | e.frames_touched());
        return Ok(Some(Occupant { run: extent.run, origin, frames }));
    }
    Ok(None)
}

/// A run that copies share, if anyone holds it.
fn held_by(
    shared: &Shared,
    id: SegmentId,
    position_bytes: u64,
    holders: &Holders,
) -> Result<Option<Occupant>, VaultFault> {
    let mut found: Option<(Extent, u32)> = None;
    for (holder, _) in &holders.all {
        let (from, to) = holder.range(CHUNK_BYTES as u32);
        for (_, extent) in extents_between(&shared.index, holder.ino, from, to)? {
            if (extent.run.segment, extent.run.position_bytes) == (id, position_bytes) {
                let frames = found.as_ref().map_or(0, |(_, frames)| *frames) | extent.frames_touched();
                found = Some((extent, frames));
            }
        }
    }
    Ok(found.map(|(extent, frames)| Occupant { run: extent.run, origin: holders.origin, frames }))
}
