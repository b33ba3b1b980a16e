//! What is done about derived keys where the log cannot give them anew: extents and counts, in place.
//!
//! Promise (I5): a count becomes what the extents add up to. Of two extents that claim the same bytes the newer has them, as
//! when it was installed. An extent that makes no sense cannot become a hole, for zeros would be invented bytes: its range,
//! as far as it can have reached, becomes one that reads as an error (`vault::lost_extent`), until it is written over.
//! Called by: `repair`. On failure: the vault's fault.

use super::finding::Finding;
use super::sharing;
use super::survey::each_entry;
use crate::base::id::Ino;
use crate::base::limits::{CHUNK_BYTES, FILE_BYTES_MAX};
use crate::format::extent::Extent;
use crate::format::inode::Inode;
use crate::format::key::{self, is_derived};
use crate::format::segment::SegmentInfo;
use crate::vault::{Vault, VaultFault, lost_extent};
use std::collections::{BTreeMap, BTreeSet};

/// Holes of a file are given up as lost up to this much together: each chunk takes an extent. In a file with larger holes,
/// nobody can say which of them once were data.
const GAPS_MAX: u64 = 1 << 30;

/// Keys to set, and what is said of each finding that they mend.
#[derive(Default)]
pub struct Plan {
    /// The keys.
    pub changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// By the place of the finding in the list.
    pub did: Vec<(usize, String)>,
}

/// Whether a finding says that derived keys are not what the log makes of them.
pub fn is_about(finding: &Finding) -> bool {
    use Finding::*;
    match finding {
        StrayEntry { key, .. } => is_derived(key),
        WithoutInode { what, .. } => *what == "bytes at rest",
        ExtentMalformed { .. }
        | ExtentsOverlap { .. }
        | ExtentMisplaced { .. }
        | ExtentBeyondEnd { .. }
        | Allocated { .. }
        | TotalBytes { .. }
        | HoldersWrong { .. }
        | SharedCount { .. }
        | SegmentUnknown { .. }
        | SegmentLive { .. }
        | SegmentOverfull { .. } => true,
        _ => false,
    }
}

/// What to set for these findings. Counts that hang on what is set here come with the next survey.
pub fn plan(vault: &Vault, findings: &[Finding]) -> Result<Plan, VaultFault> {
    let mut plan = Plan::default();
    let (mut files, mut gaps, mut beyond) = (BTreeSet::new(), BTreeSet::new(), false);
    let mut runs = BTreeSet::new();
    // The segment that the vault writes now, since it was opened: no extent can lie there or further on yet.
    let newest = vault.gauges().segments;
    // While extents are not what they should be, what was counted of them is not, either.
    let is_extent = |f: &Finding| {
        matches!(
            f,
            Finding::ExtentMalformed { .. }
                | Finding::ExtentMisplaced { .. }
                | Finding::ExtentsOverlap { .. }
                | Finding::HoldersWrong { .. }
        )
    };
    let extents_first = findings.iter().any(is_extent);
    for (i, finding) in findings.iter().enumerate().filter(|(_, f)| is_extent(f) == extents_first) {
        let did = match finding {
            Finding::ExtentMalformed { at, .. } | Finding::ExtentMisplaced { at, .. } => {
                files.insert(at.ino);
                "it reads as an error now, until it is written over".to_owned()
            }
            Finding::ExtentsOverlap { at, .. } => {
                files.insert(at.ino);
                "the newer of the two has it".to_owned()
            }
            Finding::HoldersWrong { segment, position_bytes, .. } => {
                runs.insert((*segment, *position_bytes));
                "looked for in all files".to_owned()
            }
            Finding::SharedCount { counted, .. } => {
                let value = (*counted > 0).then(|| counted.to_le_bytes().to_vec());
                plan.changes.insert(key::total("shared"), value);
                "counted anew".to_owned()
            }
            Finding::StrayEntry { key, .. } if is_derived(key) => {
                plan.changes.insert(key.clone(), None);
                "removed it".to_owned()
            }
            Finding::WithoutInode { ino, what: "bytes at rest" } => {
                plan.changes.insert(key::allocated(*ino), None);
                "removed the count".to_owned()
            }
            // Extents are gone, and what they held must not read as zeros.
            Finding::Allocated { at, stored, counted } if stored > counted && has_gaps(vault, at.ino)? => {
                files.insert(at.ino);
                gaps.insert(at.ino);
                "what is missing lies in its holes: they read as an error now, until they are written over".to_owned()
            }
            Finding::Allocated { at, counted, .. } => {
                let value = (*counted > 0).then(|| counted.to_le_bytes().to_vec());
                plan.changes.insert(key::allocated(at.ino), value);
                "counted anew".to_owned()
            }
            Finding::TotalBytes { counted, .. } => {
                plan.changes.insert(key::total("bytes"), Some(counted.to_le_bytes().to_vec()));
                "counted anew".to_owned()
            }
            Finding::SegmentUnknown { segment } if segment.0 >= newest => {
                beyond = true;
                "it was never begun: what is said to lie in it reads as an error now, until it is written over"
                    .to_owned()
            }
            Finding::SegmentUnknown { segment } => {
                let info = vault.segment_as_found(*segment)?;
                plan.changes.insert(key::segment(*segment), Some(info.encode()));
                "looked it up in its file".to_owned()
            }
            Finding::SegmentLive { segment, counted, .. } => {
                plan.segment(vault, &key::segment(*segment), |info| info.live_bytes = *counted)?;
                "counted anew".to_owned()
            }
            Finding::SegmentOverfull { segment, live_bytes, .. } => {
                plan.segment(vault, &key::segment(*segment), |info| {
                    info.data_bytes = info.data_bytes.max(*live_bytes).max(info.live_bytes);
                })?;
                "at least as much was put there".to_owned()
            }
            _ => continue,
        };
        plan.did.push((i, did));
    }
    if beyond {
        each_entry(vault, &[key::EXTENT], |k, value| {
            if let (Ok((_, ino, _)), Ok(extent)) = (key::split(k), Extent::decode(value))
                && extent.run.segment.0 >= newest
            {
                files.insert(Ino(ino));
            }
            Ok(())
        })?;
    }
    if !runs.is_empty() {
        plan.changes.extend(sharing::on_record(vault, &runs)?);
    }
    for ino in files {
        plan.file(vault, ino, gaps.contains(&ino))?;
    }
    Ok(plan)
}

impl Plan {
    fn segment(&mut self, vault: &Vault, key: &[u8], change: impl FnOnce(&mut SegmentInfo)) -> Result<(), VaultFault> {
        let pending = self.changes.get(key).cloned().flatten();
        let stored = pending.map_or_else(|| vault.get(key), |value| Ok(Some(value)))?;
        if let Some(mut info) = stored.and_then(|value| SegmentInfo::decode(&value).ok()) {
            change(&mut info);
            self.changes.insert(key.to_vec(), Some(info.encode()));
        }
        Ok(())
    }

    /// Lays a file's extents out anew: nothing twice, and what makes no sense as what it is, lost.
    fn file(&mut self, vault: &Vault, ino: Ino, gaps_are_lost: bool) -> Result<(), VaultFault> {
        let stored = stored(vault, ino)?;
        let size = size(vault, ino)?;
        let mut after = laid_out(&stored, size.unwrap_or(u64::MAX));
        if gaps_are_lost {
            for (from, to) in gaps(&after, size.unwrap_or(0)) {
                let chunk = CHUNK_BYTES as u64;
                for n in from / chunk..to.div_ceil(chunk) {
                    let (a, b) = (from.max(n * chunk), to.min((n + 1) * chunk));
                    after.insert(a, lost_extent(a, (b - a) as u32));
                }
            }
        }
        for (offset, _) in &stored {
            self.changes.insert(key::extent(ino, *offset), None);
        }
        for (offset, extent) in after {
            self.changes.insert(key::extent(ino, offset), Some(extent.encode()));
        }
        Ok(())
    }
}

/// A file's extents; `None` for one that makes no sense.
fn stored(vault: &Vault, ino: Ino) -> Result<Vec<(u64, Option<Extent>)>, VaultFault> {
    let (mut stored, newest) = (Vec::new(), vault.gauges().segments);
    each_entry(vault, &key::prefix(key::EXTENT, ino.0), |k, value| {
        let (_, _, rest) = key::split(k)?;
        // A key that has no offset is a stray entry of its own.
        if let Ok(offset) = key::tail_u64(rest) {
            stored.push((
                offset,
                Extent::decode(value).ok().filter(|e| is_placed(offset, e) && e.run.segment.0 < newest),
            ));
        }
        Ok(())
    })?;
    Ok(stored)
}

/// How long a file is; `None` if it has no attributes that make sense.
fn size(vault: &Vault, ino: Ino) -> Result<Option<u64>, VaultFault> {
    let inode = vault.get(&key::inode(ino))?.and_then(|value| Inode::decode(&value).ok());
    Ok(inode.map(|inode| inode.size.min(FILE_BYTES_MAX)))
}

/// The ranges below `size` that no extent covers.
fn gaps(extents: &BTreeMap<u64, Extent>, size: u64) -> Vec<(u64, u64)> {
    let mut at = 0;
    let ends = extents.iter().map(|(from, e)| (*from, from + u64::from(e.len_bytes))).chain([(size, size)]);
    let before = |(from, to): (u64, u64)| {
        let gap = (at, from.min(size));
        at = at.max(to);
        gap
    };
    ends.map(before).filter(|(a, b)| a < b).collect()
}

/// Whether there are holes that can have been data once.
fn has_gaps(vault: &Vault, ino: Ino) -> Result<bool, VaultFault> {
    let size = size(vault, ino)?.unwrap_or(0);
    let gaps = gaps(&laid_out(&stored(vault, ino)?, size), size);
    Ok((1..=GAPS_MAX).contains(&gaps.iter().map(|(a, b)| b - a).sum()))
}

/// Whether an extent can have been sealed there.
fn is_placed(offset: u64, extent: &Extent) -> bool {
    let chunk = CHUNK_BYTES as u64;
    let whole_in_chunk = |start: u64| u64::from(extent.run.plain_len_bytes) <= chunk - start % chunk;
    offset <= FILE_BYTES_MAX - u64::from(extent.len_bytes)
        // A copy may lie anywhere: what it was sealed for was looked at when it was decoded.
        && (extent.copied.is_some() || extent.origin(Ino(0), offset).is_some_and(|o| whole_in_chunk(o.start_bytes)))
}

/// The extents of a file of `size` bytes without overlaps and without nonsense; `None` is an extent that makes no sense. One
/// that does counts even beyond the end.
fn laid_out(stored: &[(u64, Option<Extent>)], size: u64) -> BTreeMap<u64, Extent> {
    let mut after: BTreeMap<u64, Extent> = BTreeMap::new();
    let mut good: Vec<(u64, &Extent)> = stored.iter().filter_map(|(at, e)| Some((*at, e.as_ref()?))).collect();
    // Oldest first: the log only grows, so what lies further on in it came later. Of a copy nobody can say when it was laid: it
    // counts as old as what it shares.
    good.sort_by_key(|(at, e)| (e.run.segment, e.run.position_bytes, *at));
    for (at, extent) in good {
        lay(&mut after, at, extent.clone());
    }
    for (at, _) in stored.iter().filter(|(at, e)| e.is_none() && *at < size.min(FILE_BYTES_MAX)) {
        // As far as it can have reached: to what follows, and not beyond its chunk.
        let chunk = CHUNK_BYTES as u64;
        let covered = after.range(..=*at).next_back().is_some_and(|(from, e)| from + u64::from(e.len_bytes) > *at);
        let next = after.range(at + 1..).next().map_or(u64::MAX, |(next, _)| *next);
        let end = ((at / chunk + 1) * chunk).min(next).min(size).min(FILE_BYTES_MAX);
        if !covered {
            after.insert(*at, lost_extent(*at, (end - at) as u32));
        }
    }
    after
}

/// Puts an extent over whatever its range held.
fn lay(extents: &mut BTreeMap<u64, Extent>, at: u64, extent: Extent) {
    let end = at + u64::from(extent.len_bytes);
    let hit: Vec<u64> = extents
        .range(..end)
        .rev()
        .take(CHUNK_BYTES)
        .take_while(|(from, _)| *from + CHUNK_BYTES as u64 > at)
        .filter(|(from, e)| *from + u64::from(e.len_bytes) > at)
        .map(|(from, _)| *from)
        .collect();
    for from in hit {
        let Some(old) = extents.remove(&from) else { continue };
        let old_end = from + u64::from(old.len_bytes);
        for (a, b) in [(from, old_end.min(at)), (from.max(end), old_end)] {
            if a < b {
                extents.insert(a, old.part((a - from) as u32, (b - a) as u32));
            }
        }
    }
    extents.insert(at, extent);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::choice::Codec;
    use crate::base::id::{SegmentId, Slot};
    use crate::format::extent::Run;
    use crate::vault::NOWHERE;

    fn extent(position_bytes: u64, len_bytes: u32) -> Extent {
        let run = Run {
            segment: SegmentId(1),
            position_bytes,
            slot: Slot(0),
            codec: Codec::Raw,
            unit_log2: 16,
            plain_len_bytes: len_bytes,
            sealed_lens: vec![len_bytes + 16],
        };
        Extent { len_bytes, skip_bytes: 0, run, copied: None }
    }

    fn shown(after: &BTreeMap<u64, Extent>) -> Vec<(u64, u32, u32, u64)> {
        after.iter().map(|(at, e)| (*at, e.len_bytes, e.skip_bytes, e.run.position_bytes)).collect()
    }

    #[test]
    fn of_what_is_stored_twice_the_newer_counts() {
        let stored = [(0, Some(extent(500, 100))), (50, Some(extent(900, 10))), (90, Some(extent(100, 100)))];
        let after = laid_out(&stored, u64::MAX);
        assert_eq!(shown(&after), [(0, 50, 0, 500), (50, 10, 0, 900), (60, 40, 60, 500), (100, 90, 10, 100)]);
    }

    #[test]
    fn nonsense_reads_as_an_error_as_far_as_it_can_have_reached() {
        let stored = [(0, None), (5000, Some(extent(0, 100))), (131_000, None), (200_000, None)];
        let after = laid_out(&stored, u64::MAX);
        let lost: Vec<_> =
            after.iter().filter(|(_, e)| e.run.segment == NOWHERE).map(|(at, e)| (*at, e.len_bytes)).collect();
        assert_eq!(lost, [(0, 5000), (131_000, 72), (200_000, 62_144)]);
        assert_eq!(laid_out(&stored, 131_010).last_key_value().map(|(at, e)| (*at, e.len_bytes)), Some((131_000, 10)));
        for (at, extent) in &after {
            assert_eq!(Extent::decode(&extent.encode()).as_ref(), Ok(extent), "at {at}");
            assert!(is_placed(*at, extent));
        }
    }

    #[test]
    fn layers_in_any_order_end_as_a_plain_array_does() {
        let mut seed = 7u64;
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for _ in 0..200 {
            let mut stored: Vec<(u64, Option<Extent>)> = Vec::new();
            let mut model = vec![0u64; 2000];
            for position in 1..12 {
                let (at, len) = (below(1500), 1 + below(400));
                stored.push((at, Some(extent(position * 1000, len as u32))));
                model[at as usize..(at + len) as usize].fill(position * 1000);
            }
            let mut got = vec![0u64; 2000];
            for (at, e) in laid_out(&stored, u64::MAX) {
                let range = at as usize..at as usize + e.len_bytes as usize;
                assert!(got[range.clone()].iter().all(|p| *p == 0), "nothing twice");
                got[range].fill(e.run.position_bytes);
            }
            assert_eq!(got, model);
        }
    }
}
