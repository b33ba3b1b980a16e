//! One operation of a program, made part of one batch.
//!
//! Promise (I4): after `commit`, readers see the whole operation, and a crash shows all of it or nothing.
//! Why it holds: the gate is held, shared, from `begin` to `commit`, so no cut falls between.
//! Why half an operation is never acknowledged: one that had begun to change something and does not reach the end of `commit`,
//! because it panicked, stops the vault for good before it lets go of the gate.
//! Called by: `fs`. Takes: the gate, then a file's lock, then the batch's; waits for nothing else. Cannot fail.

use super::quota::Charges;
use super::sealer::Job;
use super::shared::Shared;
use crate::base::lock::{Held, Shared as _};
use crate::buffer::{FileBuffer, Part, Room, Written};
use crate::format::record::Record;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, RwLockReadGuard};

/// Room in the byte budget for one write; what `Op::write` does not use goes back.
pub struct Reservation<'a>(pub(super) Room<'a>);

/// One operation. Dropping it without `commit` does nothing, and gives back what it charged, as long as it has changed nothing but
/// keys. After a change of buffers or of the accounts of quotas it must be committed: dropping it then stops the vault, for what
/// readers see would never come into the log.
pub struct Op<'a> {
    pub(super) shared: &'a Shared,
    /// Before the gate, so that what is given back is given back while it is held.
    pub(super) charges: Charges<'a>,
    batch: RwLockReadGuard<'a, u64>,
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    first_touch: Vec<Arc<FileBuffer>>,
    inodes: i64,
    /// Whether something outside of this value was changed that only `commit` completes.
    pub(super) has_begun: bool,
    is_complete: bool,
}

impl<'a> Op<'a> {
    pub(super) fn begin(shared: &'a Shared) -> Op<'a> {
        let (batch, charges) = (shared.gate.shared(), Charges::none(&shared.quotas));
        let (changes, first_touch, inodes) = (Vec::new(), Vec::new(), 0);
        Op { shared, charges, batch, changes, first_touch, inodes, has_begun: false, is_complete: false }
    }

    /// Notes that something outside of this value is about to be changed.
    pub(super) fn begin_change(&mut self) {
        self.has_begun = true;
    }

    /// Sets a key.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push((key, Some(value)));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.push((key, None));
    }

    /// Copies data into the file's buffers.
    pub fn write(&mut self, file: &Arc<FileBuffer>, offset: u64, data: &[u8], room: Reservation<'_>) {
        self.begin_change();
        let done = file.write(*self.batch, offset, data, &self.shared.pool);
        self.shared.stats.written_bytes.add(data.len() as u64);
        self.took(file, done, room);
    }

    /// Lays what was looked up elsewhere; see `copy`.
    pub(super) fn lay(&mut self, file: &Arc<FileBuffer>, parts: &[Part], shift: u64, room: Reservation<'_>) {
        self.begin_change();
        let done = file.lay(*self.batch, parts, shift, &self.shared.pool);
        self.took(file, done, room);
    }

    fn took(&mut self, file: &Arc<FileBuffer>, done: Written, room: Reservation<'_>) {
        room.0.spend(done.grown_bytes);
        if done.first {
            self.first_touch.push(Arc::clone(file));
        }
        if !done.full.is_empty() {
            let outstanding = Arc::clone(&self.shared.batch.held().outstanding);
            outstanding.fetch_add(done.full.len() as u64, SeqCst);
            for chunk in done.full {
                self.shared.to_sealers(Job::Chunk { chunk, outstanding: Arc::clone(&outstanding) });
            }
        }
    }

    /// Makes a range a hole; `u64::MAX` for all that follows.
    pub fn punch(&mut self, file: &Arc<FileBuffer>, from: u64, to: u64) {
        if from < to {
            self.begin_change();
            let done = file.punch(*self.batch, from, to);
            self.shared.room.note_freed();
            self.shared.dirty.add(done.grown_bytes);
            if done.first {
                self.first_touch.push(Arc::clone(file));
            }
        }
    }

    /// Counts inodes made (+) or removed (−).
    pub fn inodes(&mut self, delta: i64) {
        self.inodes += delta;
    }

    /// Makes the operation visible.
    pub fn commit(mut self) {
        self.begin_change();
        let shared = self.shared;
        let changes = std::mem::take(&mut self.changes);
        self.charges.keep();
        shared.inodes.fetch_add(self.inodes, Relaxed);
        let mut batch = shared.batch.held();
        let first = batch.begin(shared.world.elapsed());
        for (key, value) in &changes {
            batch.record(&match value {
                Some(value) => Record::Put { key, value },
                None => Record::Delete { key },
            });
        }
        batch.touched.append(&mut self.first_touch);
        let pressed = batch.records_bytes > shared.records_limit || shared.dirty.is_half_full();
        // Under the batch's lock, so that the overlay and the log see changes of a key in the same order.
        shared.index.change(changes);
        drop(batch);
        self.is_complete = true;
        drop(self);
        shared.last_op_ms.store(shared.world.elapsed().as_millis() as u64, Relaxed);
        shared.filled(first, pressed);
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        let panics = std::thread::panicking();
        // Of a panic, what the operation had in hand counts as well: its caller may have changed what goes with it.
        let is_half = self.has_begun || panics && (!self.changes.is_empty() || self.inodes != 0);
        if self.is_complete || !is_half {
            return;
        }
        let inos: Vec<String> = self.first_touch.iter().take(3).map(|file| file.ino.to_string()).collect();
        let which = if inos.is_empty() { "something".to_owned() } else { format!("inode {}", inos.join(", ")) };
        let how = if panics { "panicked" } else { "ended" };
        // Still under the gate: no batch that lacks the other half can be ended, and acknowledged, before this.
        self.shared.give_up(&format!("an operation {how} half-way, when it had begun to change {which}"));
    }
}
