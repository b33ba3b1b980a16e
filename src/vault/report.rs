//! What an open vault answers about itself: how full, what is in force, what it did, what is not safe yet.
//!
//! Promise: each answer is made at once, from what is in memory (what is left to rekey, and a directory's path, are looked up on the
//! disk); no content, no keys, and no names but in that path.
//! Called by: `fs::render`, `cli`. On failure: the backing directory's error, where room is asked for.

use super::paths;
use super::place::Place;
use super::rekey::under_old_keys;
use super::state::{Held as HeldState, State};
use super::totals::{self, Totals};
use super::{Gauges, Usage, Vault, VaultFault, reserve_bytes};
use crate::base::choice::Verify;
use crate::base::id::{Ino, KeyNumber};
use crate::base::lock::Held;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// How long what was seen of segments under old keys is believed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The key in force when it was looked, when that was, and segments and bytes under old ones.
pub type LeftToRekey = Option<(KeyNumber, Duration, (u64, u64))>;

impl Vault {
    /// How often each state was entered since the mount, and how long it was held.
    pub fn states(&self) -> [HeldState; State::ALL.len()] {
        self.shared.machine.held().held(self.shared.world.elapsed())
    }

    /// Every counter since the vault was made, as far as earlier mounts stored theirs.
    pub fn totals(&self) -> Totals {
        totals::now(&self.shared)
    }

    /// Files with changes that are not at rest.
    pub fn unsaved(&self) -> Vec<Ino> {
        let s = &self.shared;
        let durable = s.progress.held().durable;
        let mut all: Vec<Ino> =
            s.in_flight.held().range(durable + 1..).flat_map(|(_, files)| files).map(|f| f.ino).collect();
        all.extend(s.batch.held().touched.iter().map(|f| f.ino));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Segments that are under an old key, and their bytes; nothing if no rekey is unfinished. Looked at from time to time, for
    /// it takes a glance into each segment.
    pub fn left_to_rekey(&self) -> Option<(u64, u64)> {
        let s = &self.shared;
        let (keys, now) = (s.segments.keys(), s.world.elapsed());
        keys.old().next()?;
        let mut known = self.left_to_rekey.held();
        match *known {
            Some((of, at, left)) if of == keys.number() && now.saturating_sub(at) < LOOK_AGAIN => Some(left),
            _ => {
                let left = under_old_keys(&*s.backing, keys.number()).ok()?;
                *known = Some((keys.number(), now, left));
                Some(left)
            }
        }
    }

    /// The path of a directory, without a `/` at its end; `None` if it has none, or its names do not read.
    pub fn path_of_directory(&self, dir: Ino) -> Option<Vec<u8>> {
        paths::of_directory(&self.shared.index, dir)
    }

    /// Whether segments lie in the emergency directory.
    pub fn is_away(&self) -> bool {
        self.shared.away.load(SeqCst) || !self.shared.places.away().is_empty()
    }

    /// What is used of what there is.
    pub fn usage(&self) -> Result<Usage, VaultFault> {
        let s = &self.shared;
        let space = s.space()?;
        Ok(Usage {
            bytes: s.allocated.load(Relaxed) + s.dirty.used_bytes(),
            quota_bytes: s.quota_bytes,
            inodes: s.inodes.load(Relaxed).max(0) as u64,
            quota_inodes: s.quota_inodes,
            backing_free_bytes: space.free_bytes.saturating_sub(reserve_bytes(space.total_bytes)),
            backing_total_bytes: space.total_bytes,
        })
    }

    /// How full everything is.
    pub fn gauges(&self) -> Gauges {
        let s = &self.shared;
        let root = s.root.held().clone();
        let (newest, snapshots_kept) = {
            let snapshots = s.snapshots.held();
            (snapshots.first().map_or((0, 0), |kept| (kept.number.0, kept.len_bytes)), snapshots.len() as u64)
        };
        Gauges {
            budget_bytes: s.shares.budget_bytes,
            dirty_bytes: s.dirty.used_bytes(),
            dirty_limit_bytes: s.dirty.limit_bytes(),
            in_flight_bytes: s.sealed.used_bytes() + (s.verifying.load(Relaxed) << 20),
            cache_bytes: s.cache.bytes(),
            cache_limit_bytes: s.cache.limit_bytes(),
            overlay_entries: s.index.overlay_entries() as u64,
            overlay_bytes: s.index.overlay_bytes() as u64,
            waiting_writers: s.dirty.waiting(),
            over_returned_bytes: s.dirty.over_returned_bytes() + s.sealed.over_returned_bytes(),
            sealer_queue: s.jobs.len() as u64,
            ahead_queue: s.wishes.waiting() as u64,
            log_queue: s.sealed_in.len() as u64,
            verify_queue: s.verifying.load(Relaxed),
            workers: self.workers as u64,
            segments: s.cursor.segment().0,
            epoch: root.epoch.0,
            generation: root.generation.0,
            commit_seq: s.progress.held().durable,
            snapshot_commit: newest.0,
            snapshot_bytes: newest.1,
            snapshots_kept,
        }
    }

    /// What is in force, ready to print.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let s = &self.shared;
        vec![
            ("pid", std::process::id().to_string()),
            ("vault", s.segments.vault.to_string()),
            ("cipher", self.suite.to_string()),
            ("compression", s.compression.to_string()),
            ("verify", s.verify.to_string()),
            ("flush_interval_seconds", s.flush_interval.as_secs_f64().to_string()),
            ("workers", self.workers.to_string()),
            ("budget_bytes", s.shares.budget_bytes.to_string()),
            ("read_only", s.read_only.to_string()),
            ("verify_open_percent", s.verify_open_percent.to_string()),
            (
                "emergency_dir",
                if s.places.has(Place::Emergency) { s.places.emergency_path() } else { "none" }.to_owned(),
            ),
            ("flush_deadline_seconds", s.flush_deadline.as_secs_f64().to_string()),
            ("clean_bytes", s.clean_bytes.map_or_else(|| "off".to_owned(), |bytes| bytes.to_string())),
            ("pins", s.pins.shown()),
        ]
    }

    /// What a read-back reads, in words.
    pub fn verify_source(&self) -> &'static str {
        match (self.shared.verify, self.shared.direct.load(Relaxed)) {
            (Verify::Device, true) => "the device, by direct I/O",
            (Verify::Device, false) => {
                "what is left after sync and dropping the page cache: this filesystem has no direct I/O, and may answer from memory"
            }
            (Verify::Cache, _) => "the page cache: finds our mistakes, not the disk's",
            (Verify::Off, _) => "nothing",
        }
    }
}
