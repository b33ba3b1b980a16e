//! What an open vault answers about itself: how full, what is in force, what it did, what is not safe yet.
//!
//! Promise: each answer is made at once, from what is in memory, and waits for no disk (a directory's path is looked up in the index);
//! no content, no keys, and no names but in that path.
//! Called by: `fs::render`, `cli`. On failure: an old number, or none.

use super::paths;
use super::place::Place;
use super::rekey::under_old_keys;
use super::shared::Shared;
use super::state::{Held as HeldState, State};
use super::totals::{self, Totals};
use super::{Gauges, Usage, Vault};
use crate::backing::Space;
use crate::base::choice::Verify;
use crate::base::id::{Ino, KeyNumber};
use crate::base::lock::Held;
use crate::format::inode::Inode;
use crate::format::key;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a count of what lies under old keys is believed.
const COUNT_AGAIN: Duration = Duration::from_secs(30);
/// Longest wait at closing for a count under way, on a disk that does not answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What lies under old keys, counted by a thread of its own: the count opens every segment.
#[derive(Default)]
pub struct LeftToRekey {
    /// The key in force at the last count, when that began, and the segments and bytes that were under other keys.
    counted: Mutex<Option<(KeyNumber, Duration, (u64, u64))>>,
    counting: Mutex<Option<JoinHandle<()>>>,
}

impl LeftToRekey {
    /// What the last count under the key in force gave, however old; has it counted anew from time to time.
    fn get(self: &Arc<Self>, shared: &Arc<Shared>) -> Option<(u64, u64)> {
        let (key, now) = (shared.segments.keys().number(), shared.world.elapsed());
        let counted = |this: &Self| this.counted.held().filter(|(of, ..)| *of == key);
        let is_fresh = counted(self).is_some_and(|(_, at, _)| now.saturating_sub(at) < COUNT_AGAIN);
        if !is_fresh && shared.stepper.is_some() {
            self.count(shared);
        } else if !is_fresh {
            self.count_beside(shared);
        }
        counted(self).map(|(.., left)| left)
    }

    fn count_beside(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut counting = self.counting.held();
        if counting.as_ref().is_some_and(|thread| !thread.is_finished()) || shared.closing.load(SeqCst) {
            return;
        }
        let (this, shared) = (Arc::clone(self), Arc::clone(shared));
        let count = move || this.count(&shared);
        // Without a thread there is no number, and the next who asks tries again.
        *counting = std::thread::Builder::new().name("rekey-left".to_owned()).spawn(count).ok();
    }

    fn count(&self, shared: &Shared) {
        let (key, now) = (shared.segments.keys().number(), shared.world.elapsed());
        match under_old_keys(&*shared.backing, key) {
            Ok(left) => *self.counted.held() = Some((key, now, left)),
            Err(e) => log::warn!("counting what lies under old keys: {e}"),
        }
    }

    /// Waits for a count under way, so that nothing of the backing directory is open when closing has ended.
    pub fn close(&self) {
        let Some(thread) = self.counting.held().take() else { return };
        let until = Instant::now() + CLOSE_PATIENCE;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

impl Vault {
    /// How often each state was entered since the mount, and how long it was held.
    pub fn states(&self) -> [HeldState; State::ALL.len()] {
        self.shared.machine.held().held(self.shared.world.elapsed())
    }

    /// Every counter since the vault was made, as far as earlier mounts stored theirs.
    pub fn totals(&self) -> Totals {
        totals::now(&self.shared)
    }

    /// Files with changes that are not at rest, those of which writes are held until there is room included.
    pub fn unsaved(&self) -> Vec<Ino> {
        let s = &self.shared;
        let durable = s.progress.held().durable;
        let mut all: Vec<Ino> =
            s.in_flight.held().range(durable + 1..).flat_map(|(_, files)| files).map(|f| f.ino).collect();
        all.extend(s.batch.held().touched.iter().map(|f| f.ino));
        all.extend(s.stats.unwritten.held_files());
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Files that lack bytes which the kernel's cache handed over and which were refused, and how many each: where no `fsync` is
    /// known to have said so. A file that was removed lacks nothing.
    pub fn refused(&self) -> Vec<(Ino, u64)> {
        let mut all = self.shared.stats.unwritten.refused();
        all.retain(|(ino, _)| match self.get(&key::inode(*ino)) {
            Ok(Some(inode)) => Inode::decode(&inode).map_or(true, |inode| inode.nlink > 0),
            Ok(None) => false,
            Err(_) => true,
        });
        all
    }

    /// Segments that are under an old key, and their bytes; `None` if no rekey is unfinished, or nobody has counted yet. The count
    /// is made in the background, for it opens each segment.
    pub fn left_to_rekey(&self) -> Option<(u64, u64)> {
        if !self.has_old_keys() {
            return None;
        }
        self.left_to_rekey.get(&self.shared)
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
    #[must_use]
    pub fn usage(&self) -> Usage {
        let s = &self.shared;
        let less_the_reserve = |space: Space| Space { free_bytes: self.room_bytes(space), ..space };
        Usage {
            bytes: s.allocated.load(Relaxed) + s.dirty.used_bytes(),
            quota_bytes: s.quota_bytes,
            inodes: s.inodes.load(Relaxed).max(0) as u64,
            quota_inodes: s.quota_inodes,
            backing: s.space.room().space().map(less_the_reserve),
        }
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

    /// Which older state of the vault is shown, where a copy is looked at that is behind what is remembered.
    pub fn older_state(&self) -> Option<&str> {
        self.shared.pins.older()
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
