//! Runs that several places share: who holds them, as it is on record and as the extents say.
//!
//! Promise: a shared frame is needed once, whoever holds it; each holder on record has extents, and each place that has extents
//! of a shared run is on record with the very frames. So what dies with the last holder, and only then, is what should.
//! Called by: `data` (as runs go by), `survey`, `derived`. On failure: the vault's fault.

use super::finding::{Finding, Place};
use super::survey::{Survey, each_entry};
use crate::base::id::{Ino, SegmentId};
use crate::base::limits::CHUNK_BYTES;
use crate::format::extent::{Extent, Origin};
use crate::format::holders::{Holder, Holders};
use crate::format::key;
use crate::vault::{Vault, VaultFault};
use std::collections::{BTreeMap, BTreeSet};

/// Extents read at a time while a holder is looked for.
const SCAN: usize = 64;

/// A run: its segment, and where it begins there.
pub type RunPlace = (SegmentId, u64);

impl Survey<'_> {
    /// Of the frames that a place holds of a run, those to be counted with it, and not with another that shares them.
    pub fn own_frames(
        &mut self,
        (segment, position_bytes): RunPlace,
        holder: Holder,
        copied: Option<Origin>,
        frames: u32,
    ) -> Result<u32, VaultFault> {
        let stored = if self.any_shared { self.vault.get(&key::holders(segment, position_bytes))? } else { None };
        let (right, others) = match stored.as_deref().map(Holders::decode) {
            Some(Ok(on_record)) => {
                let its = on_record.all.iter().find(|(h, _)| *h == holder).map(|(_, frames)| *frames);
                let before = on_record.all.iter().take_while(|(h, _)| *h < holder).fold(0, |all, (_, f)| all | f);
                (its == Some(frames) && copied.is_none_or(|origin| origin == on_record.origin), before)
            }
            // Told with the records.
            Some(Err(_)) => (true, 0),
            None => (copied.is_none_or(|origin| Holder::at(origin) == holder), 0),
        };
        if !right {
            self.found(Finding::HoldersWrong { at: Place::of(holder.ino), segment, position_bytes });
        }
        Ok(frames & !others)
    }

    /// Looks at what is on record of shared runs, and at its total.
    pub fn holders(&mut self) -> Result<(), VaultFault> {
        let mut counted = 0;
        self.each(key::HOLDERS, |s, number, rest, value| {
            counted += 1;
            let segment = SegmentId(number);
            let (Ok(position_bytes), Ok(on_record)) = (key::tail_u64(rest), Holders::decode(value)) else {
                s.stray(&[&key::prefix(key::HOLDERS, number), rest].concat(), "holders");
                return Ok(());
            };
            let wrong = |ino| Finding::HoldersWrong { at: Place::of(ino), segment, position_bytes };
            if !on_record.is_shared() {
                s.found(wrong(on_record.origin.ino));
                return Ok(());
            }
            // Those that hold other frames than it says were told with their extents.
            for (holder, _) in &on_record.all {
                if !holds(s.vault, *holder, (segment, position_bytes))? {
                    s.found(wrong(holder.ino));
                }
            }
            Ok(())
        })?;
        let stored = self.number(&key::total("shared"))?;
        if stored != counted {
            self.found(Finding::SharedCount { stored, counted });
        }
        Ok(())
    }
}

/// Whether a holder has any extent of a run.
fn holds(vault: &Vault, holder: Holder, run: RunPlace) -> Result<bool, VaultFault> {
    let (from, to) = holder.range(CHUNK_BYTES as u32);
    let mut next = key::extent(holder.ino, from);
    loop {
        let page = vault.scan(&key::prefix(key::EXTENT, holder.ino.0), &next, SCAN)?;
        for (k, value) in &page {
            let Ok(at) = key::tail_u64(key::split(k)?.2) else { continue };
            if at >= to {
                return Ok(false);
            }
            if Extent::decode(value).is_ok_and(|e| place_of(&e) == run && Holder::of(holder.ino, at, &e) == holder) {
                return Ok(true);
            }
        }
        match page.into_iter().nth(SCAN - 1) {
            Some((last, _)) => next = [&last[..], &[0]].concat(),
            None => return Ok(false),
        }
    }
}

fn place_of(extent: &Extent) -> RunPlace {
    (extent.run.segment, extent.run.position_bytes)
}

/// What should be on record of some runs, as the extents of all files say: the keys to set.
pub fn on_record(vault: &Vault, runs: &BTreeSet<RunPlace>) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>, VaultFault> {
    let mut found: BTreeMap<RunPlace, Holders> = BTreeMap::new();
    each_entry(vault, &[key::EXTENT], |k, value| {
        let ((_, ino, rest), Ok(extent)) = (key::split(k)?, Extent::decode(value)) else { return Ok(()) };
        let (place, ino) = (place_of(&extent), Ino(ino));
        let Ok(at) = key::tail_u64(rest) else { return Ok(()) };
        let Some(origin) = extent.origin(ino, at).filter(|_| runs.contains(&place)) else { return Ok(()) };
        let holders = found.entry(place).or_insert_with(|| Holders { origin, all: Vec::new() });
        if extent.copied.is_some() {
            holders.origin = origin;
        }
        let holder = Holder::of(ino, at, &extent);
        let before = holders.all.iter().find(|(h, _)| *h == holder).map_or(0, |(_, frames)| *frames);
        holders.set(holder, before | extent.frames_touched());
        Ok(())
    })?;
    let value = |run| found.get(run).filter(|holders| holders.is_shared()).map(Holders::encode);
    Ok(runs.iter().map(|run| (key::holders(run.0, run.1), value(run))).collect())
}
