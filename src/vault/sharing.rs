//! Counts the frames of runs that more than one place holds: what a copy shares dies with the last that lets go of it.
//!
//! Promise (I5): whatever the order of a commit's records, a frame of a shared run is counted once: what was held before the
//! commit is compared with what is held after it. So a commit that overwrites the original and lays the copy kills nothing.
//! How: a shared run has its holders on record (format.md §5), each with the frames it holds; so one look says what was held,
//! and after the commit only those that it touched are looked at again. A run that this commit is the first to share is
//! known before its first record is applied, and its one holder is noted then. Vaults without copies pay one look a commit.
//! Called by: `apply`. Takes: nothing but what the index does. On failure: the index's fault; `apply`'s caller takes all back.

use super::VaultFault;
use super::apply::{Changes, Count, extents_between, read_u64, same_run};
use crate::base::id::{Ino, SegmentId};
use crate::format::extent::{Extent, Run, is_copied};
use crate::format::holders::{Holder, Holders};
use crate::format::key;
use crate::format::record::Record;
use crate::format::wire::Reader;
use crate::index::Index;
use std::collections::{BTreeMap, BTreeSet};

/// The total of runs with holders on record.
pub const TOTAL: &str = "shared";

/// A run that more than one place holds, before the commit or by it.
struct SharedRun {
    run: Run,
    before: Holders,
    on_record: bool,
    touched: BTreeSet<Holder>,
}

/// The shared runs that a commit touches.
pub struct Sharing<'a> {
    index: &'a Index,
    total: u64,
    runs: BTreeMap<(SegmentId, u64), SharedRun>,
}

impl<'a> Sharing<'a> {
    /// As the index stands before a commit's records are applied.
    pub fn before(index: &'a Index, records: &[u8]) -> Result<Self, VaultFault> {
        let total = read_u64(index, &key::total(TOTAL))?;
        let mut sharing = Sharing { index, total, runs: BTreeMap::new() };
        let mut r = Reader::new(records);
        while !r.is_empty() {
            if let Record::Install { extent, .. } = Record::decode(&mut r)?
                && is_copied(extent)
            {
                sharing.name(&Extent::decode(extent)?)?;
            }
        }
        Ok(sharing)
    }

    /// A copy names a run: from here on it is a shared one.
    fn name(&mut self, extent: &Extent) -> Result<(), VaultFault> {
        let Some(origin) = extent.copied else { return Ok(()) };
        if !self.is_known(&extent.run)? {
            let mut before = Holders { origin, all: Vec::new() };
            let only = Holder::at(origin);
            before.set(only, self.held_by(only, &extent.run)?);
            self.note(&extent.run, before, false);
        }
        Ok(())
    }

    fn note(&mut self, run: &Run, before: Holders, on_record: bool) {
        let shared = SharedRun { run: run.clone(), before, on_record, touched: BTreeSet::new() };
        self.runs.insert((run.segment, run.position_bytes), shared);
    }

    /// Whether a run is a shared one; looked up once.
    fn is_known(&mut self, run: &Run) -> Result<bool, VaultFault> {
        if self.runs.contains_key(&(run.segment, run.position_bytes)) {
            return Ok(true);
        }
        if self.total == 0 {
            return Ok(false);
        }
        let Some(v) = self.index.get(&key::holders(run.segment, run.position_bytes))? else { return Ok(false) };
        self.note(run, Holders::decode(&v)?, true);
        Ok(true)
    }

    /// An extent is laid, cut or taken away. Whether its run is shared: then it is counted here and nowhere else.
    pub fn touch(&mut self, ino: Ino, offset: u64, extent: &Extent) -> Result<bool, VaultFault> {
        let known = self.is_known(&extent.run)?;
        if let Some(shared) = self.runs.get_mut(&(extent.run.segment, extent.run.position_bytes)) {
            shared.touched.insert(Holder::of(ino, offset, extent));
        }
        Ok(known)
    }

    /// Counts, with all records applied; gives what is to be set.
    pub fn after(&self, count: &mut Count) -> Result<Changes, VaultFault> {
        let (mut changes, mut total) = (Changes::new(), self.total);
        for ((segment, position), shared) in &self.runs {
            let SharedRun { run, before, on_record, touched } = shared;
            let mut after = before.clone();
            for holder in touched {
                after.set(*holder, self.held_by(*holder, run)?);
            }
            let (was, is) = (before.frames(), after.frames());
            count.born(run, is & !was);
            count.died(run, was & !is);
            let k = key::holders(*segment, *position);
            match (on_record, after.is_shared()) {
                (false, false) => {}
                (true, true) if after == *before => {}
                (_, true) => changes.push((k, Some(after.encode()))),
                (true, false) => changes.push((k, None)),
            }
            total = (total + u64::from(after.is_shared())).saturating_sub(u64::from(*on_record));
        }
        if total != self.total {
            changes.push((key::total(TOTAL), (total > 0).then(|| total.to_le_bytes().to_vec())));
        }
        Ok(changes)
    }

    /// The frames of a run that a holder's extents lie in, as the index stands.
    fn held_by(&self, holder: Holder, run: &Run) -> Result<u32, VaultFault> {
        let (from, to) = holder.range(run.plain_len_bytes);
        let all = extents_between(self.index, holder.ino, from, to)?;
        let its = all.iter().filter(|(at, e)| same_run(&e.run, run) && Holder::of(holder.ino, *at, e) == holder);
        Ok(its.fold(0, |frames, (_, e)| frames | e.frames_touched()))
    }
}

#[cfg(test)]
mod tests;
