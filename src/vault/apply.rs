//! Applies a commit's data records to the derived keys of the index.
//!
//! Promise (I5): extents, allocated bytes, segment counters and totals are a function of the commits alone: run time and
//! recovery call this same code in commit order. A change of one extent is atomic for readers. Runs that more than one place
//! holds are counted by `sharing`, at the end; the others here, as they go by.
//! Called by: `verifier` (a commit just verified), `recover` (a commit read back). Takes: the index's overlay lock.
//! On failure: an index that cannot be read or holds what cannot be.

use super::shared::DeadRange;
use super::sharing::Sharing;
use super::{VaultFault, moved};
use crate::base::id::{Ino, SegmentId};
use crate::base::limits::{CHUNK_BYTES, FILE_BYTES_MAX};
use crate::format::extent::{Extent, Run, RunFrame};
use crate::format::key;
use crate::format::record::Record;
use crate::format::segment::SegmentInfo;
use crate::format::wire::Reader;
use crate::index::Index;
use std::collections::BTreeMap;

/// Extents looked up at first: mostly one or two are hit …
const SCAN_FIRST: usize = 4;
/// … and at a time when there are more.
const SCAN_MOST: usize = 256;

/// Epoch, salt and key of a segment that the index does not know yet.
pub(super) type NewSegment<'a> = &'a dyn Fn(SegmentId) -> Result<SegmentInfo, VaultFault>;

/// Deltas of one commit, stored at its end.
pub struct Applier<'a> {
    index: &'a Index,
    new_segment: NewSegment<'a>,
    allocated: BTreeMap<Ino, i64>,
    sharing: Sharing<'a>,
    count: Count,
}

/// What a commit changes about segments.
#[derive(Default)]
pub(super) struct Count {
    /// Sealed bytes installed, and the change of those alive.
    segments: BTreeMap<SegmentId, (i64, i64)>,
    /// What died.
    dead: Vec<DeadRange>,
}

pub(super) type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Applies the Install and Punch records of a stream; gives the change of the vault's allocated bytes.
pub fn apply(
    index: &Index,
    new_segment: NewSegment<'_>,
    records: &[u8],
    dead: &mut Vec<DeadRange>,
) -> Result<i64, VaultFault> {
    let sharing = Sharing::before(index, records)?;
    let mut a = Applier { index, new_segment, allocated: BTreeMap::new(), sharing, count: Count::default() };
    let (mut r, mut moves) = (Reader::new(records), false);
    while !r.is_empty() {
        match Record::decode(&mut r)? {
            Record::Install { ino, offset_bytes, extent } => a.install(ino, offset_bytes, &Extent::decode(extent)?)?,
            Record::Punch { ino, from_bytes, to_bytes } => a.punch(ino, from_bytes, to_bytes)?,
            Record::Move { .. } | Record::Forget { .. } => moves = true,
            Record::Put { .. } | Record::Delete { .. } => {}
        }
    }
    let sum = a.finish(dead)?;
    if moves {
        moved::apply(index, new_segment, records, dead)?;
    }
    Ok(sum)
}

/// Where the run of an extent begins in its file, if no more than one place holds it.
fn run_start(offset: u64, extent: &Extent) -> u64 {
    offset.saturating_sub(u64::from(extent.skip_bytes))
}

pub(super) fn same_run(a: &Run, b: &Run) -> bool {
    a.segment == b.segment && a.position_bytes == b.position_bytes
}

impl Count {
    /// Frames of a run, a bit each, are held that were not.
    pub(super) fn born(&mut self, run: &Run, frames: u32) {
        if frames != 0 {
            let sealed: u64 = frames_in(run, frames).map(|f| u64::from(f.sealed_len_bytes)).sum();
            let counters = self.segments.entry(run.segment).or_default();
            counters.0 += sealed as i64;
            counters.1 += sealed as i64;
        }
    }

    /// Frames of a run, a bit each, are held no more.
    pub(super) fn died(&mut self, run: &Run, frames: u32) {
        for frame in frames_in(run, frames) {
            let sealed = u64::from(frame.sealed_len_bytes);
            let (from, to) = (frame.position_bytes, frame.position_bytes + sealed);
            self.segments.entry(run.segment).or_default().1 -= sealed as i64;
            match self.dead.last_mut() {
                Some(last) if last.segment == run.segment && last.to == from => last.to = to,
                _ => self.dead.push(DeadRange { segment: run.segment, from, to }),
            }
        }
    }
}

fn frames_in(run: &Run, frames: u32) -> impl Iterator<Item = RunFrame> + '_ {
    run.frames().enumerate().filter(move |(i, _)| frames & (1 << i) != 0).map(|(_, frame)| frame)
}

impl Applier<'_> {
    fn install(&mut self, ino: Ino, offset: u64, extent: &Extent) -> Result<(), VaultFault> {
        // What is stored is inside its file: everyone who reads extents leans on it.
        if extent.origin(ino, offset).is_none() || offset > FILE_BYTES_MAX - u64::from(extent.len_bytes) {
            return Err(VaultFault::Index("an extent reaches outside its file".into()));
        }
        let mut changes = self.clear(ino, offset, offset + u64::from(extent.len_bytes))?;
        changes.push((key::extent(ino, offset), Some(extent.encode())));
        let shared = self.sharing.touch(ino, offset, extent)?;
        if !shared {
            let before = self.live_frames(ino, run_start(offset, extent), &extent.run)?;
            self.count.born(&extent.run, extent.frames_touched() & !before);
        }
        self.index.change(changes);
        *self.allocated.entry(ino).or_default() += i64::from(extent.len_bytes);
        Ok(())
    }

    fn punch(&mut self, ino: Ino, from: u64, to: u64) -> Result<(), VaultFault> {
        let changes = self.clear(ino, from, to)?;
        if !changes.is_empty() {
            self.index.change(changes);
        }
        Ok(())
    }

    /// What it takes to make `[from, to)` a hole; counts what dies by it.
    fn clear(&mut self, ino: Ino, from: u64, to: u64) -> Result<Changes, VaultFault> {
        let mut changes = Changes::new();
        let mut hit = Vec::new();
        let prefix = key::prefix(key::EXTENT, ino.0);
        if let Some((k, v)) = self.index.scan_last_before(&prefix, &key::extent(ino, from))? {
            hit.push((key::tail_u64(key::split(&k)?.2)?, Extent::decode(&v)?));
        }
        hit.append(&mut extents_between(self.index, ino, from, to)?);
        let mut runs: Vec<(u64, Run, u32)> = Vec::new();
        for (at, extent) in hit {
            let end = at + u64::from(extent.len_bytes);
            let (a, b) = (at.max(from), end.min(to));
            if a >= b {
                continue;
            }
            *self.allocated.entry(ino).or_default() -= (b - a) as i64;
            changes.push((key::extent(ino, at), None));
            let mut kept = 0;
            for (keep_from, keep_to) in [(at, a), (b, end)] {
                if keep_from < keep_to {
                    let rest = extent.part((keep_from - at) as u32, (keep_to - keep_from) as u32);
                    kept |= rest.frames_touched();
                    changes.push((key::extent(ino, keep_from), Some(rest.encode())));
                }
            }
            if self.sharing.touch(ino, at, &extent)? {
                continue;
            }
            let lost = extent.frames_touched() & !kept;
            // Two extents of one run may share a frame: it dies once. A run lies within one chunk of its file, and extents
            // come in order, so only the last few can be of the same.
            let (start, chunk) = (run_start(at, &extent), at / CHUNK_BYTES as u64);
            let mut recent = runs.iter_mut().rev().take_while(|(s, ..)| s / CHUNK_BYTES as u64 == chunk);
            match recent.find(|(_, run, _)| same_run(run, &extent.run)) {
                Some((_, _, all)) => *all |= lost,
                None => runs.push((start, extent.run, lost)),
            }
        }
        for (start, run, lost) in runs {
            self.bury(ino, start, &run, lost, from, to)?;
        }
        Ok(changes)
    }

    /// Counts the frames in `lost` as dead, except those that another extent outside `[from, to)` still needs.
    fn bury(&mut self, ino: Ino, start: u64, run: &Run, lost: u32, from: u64, to: u64) -> Result<(), VaultFault> {
        let mut needed = 0;
        let all_cleared = from <= start && start + u64::from(run.plain_len_bytes) <= to;
        let others = if all_cleared { Vec::new() } else { self.extents_of_run(ino, start, run)? };
        for (at, other) in others {
            let end = at + u64::from(other.len_bytes);
            for (a, b) in [(at, end.min(from)), (at.max(to), end)] {
                if a < b {
                    needed |= other.part((a - at) as u32, (b - a) as u32).frames_touched();
                }
            }
        }
        self.count.died(run, lost & !needed);
        Ok(())
    }

    /// Frames of a run that extents of its file need as the index stands.
    fn live_frames(&self, ino: Ino, start: u64, run: &Run) -> Result<u32, VaultFault> {
        Ok(self.extents_of_run(ino, start, run)?.iter().fold(0, |mask, (_, e)| mask | e.frames_touched()))
    }

    fn extents_of_run(&self, ino: Ino, start: u64, run: &Run) -> Result<Vec<(u64, Extent)>, VaultFault> {
        let mut all = extents_between(self.index, ino, start, start + u64::from(run.plain_len_bytes))?;
        all.retain(|(_, extent)| same_run(&extent.run, run));
        Ok(all)
    }

    fn finish(mut self, dead: &mut Vec<DeadRange>) -> Result<i64, VaultFault> {
        let mut changes = self.sharing.after(&mut self.count)?;
        dead.append(&mut self.count.dead);
        let mut sum = 0;
        for (ino, delta) in self.allocated.into_iter().filter(|(_, d)| *d != 0) {
            let k = key::allocated(ino);
            let now = read_u64(self.index, &k)?.checked_add_signed(delta);
            let now = now.ok_or(VaultFault::Index("allocated bytes below zero".into()))?;
            changes.push((k, (now > 0).then(|| now.to_le_bytes().to_vec())));
            sum += delta;
        }
        for (id, (data, live)) in self.count.segments {
            changes.push(counted(self.index, self.new_segment, id, data, live)?);
        }
        let k = key::total("bytes");
        let total = read_u64(self.index, &k)?.checked_add_signed(sum);
        let total = total.ok_or(VaultFault::Index("total of bytes below zero".into()))?;
        changes.push((k, Some(total.to_le_bytes().to_vec())));
        self.index.change(changes);
        Ok(sum)
    }
}

/// What the index says of a segment.
pub(super) fn known_segment(index: &Index, id: SegmentId) -> Result<Option<SegmentInfo>, VaultFault> {
    Ok(index.get(&key::segment(id))?.map(|v| SegmentInfo::decode(&v)).transpose()?)
}

/// What the index is to say of a segment with so many more bytes of data in it, and so many more alive.
pub(super) fn counted(
    index: &Index,
    new_segment: NewSegment<'_>,
    id: SegmentId,
    data: i64,
    live: i64,
) -> Result<(Vec<u8>, Option<Vec<u8>>), VaultFault> {
    let k = key::segment(id);
    let mut info = match known_segment(index, id)? {
        Some(info) => info,
        None => new_segment(id)?,
    };
    info.data_bytes = info.data_bytes.saturating_add_signed(data);
    let live = info.live_bytes.checked_add_signed(live);
    info.live_bytes = live.ok_or(VaultFault::Index("a segment's live bytes below zero".into()))?;
    Ok((k, Some(info.encode())))
}

/// The extents of a file that begin in `[from, to)`, in order.
pub(super) fn extents_between(index: &Index, ino: Ino, from: u64, to: u64) -> Result<Vec<(u64, Extent)>, VaultFault> {
    let mut all = Vec::new();
    let (mut next, end, mut limit) = (key::extent(ino, from), key::extent(ino, to), SCAN_FIRST);
    loop {
        let found = index.scan_below(&key::prefix(key::EXTENT, ino.0), &next, Some(&end), limit)?;
        let full = found.len() == limit;
        limit = SCAN_MOST;
        for (k, v) in found {
            let at = key::tail_u64(key::split(&k)?.2)?;
            if at >= to {
                return Ok(all);
            }
            next = [&k[..], &[0]].concat();
            all.push((at, Extent::decode(&v)?));
        }
        if !full {
            return Ok(all);
        }
    }
}

/// A number of the index, 0 if it is not there.
pub fn read_u64(index: &Index, k: &[u8]) -> Result<u64, VaultFault> {
    match index.get(k)? {
        Some(v) => match v.try_into() {
            Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
            Err(_) => Err(VaultFault::Index("a counter is not eight bytes".into())),
        },
        None => Ok(0),
    }
}
