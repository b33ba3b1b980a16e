//! One operation of a program, made part of one batch.
//!
//! Promise (I4): after `commit`, readers see the whole operation, and a crash shows all of it or nothing.
//! Why it holds: the gate is held, shared, from `begin` to `commit`, so no cut falls between.
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

/// One operation. Dropping it without `commit` leaves what `write` and `punch` did, and nothing else; what it charged is given
/// back.
pub struct Op<'a> {
    pub(super) shared: &'a Shared,
    /// Before the gate, so that what is given back is given back while it is held.
    pub(super) charges: Charges<'a>,
    batch: RwLockReadGuard<'a, u64>,
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    first_touch: Vec<Arc<FileBuffer>>,
    inodes: i64,
}

impl<'a> Op<'a> {
    pub(super) fn begin(shared: &'a Shared) -> Op<'a> {
        let (batch, charges) = (shared.gate.shared(), Charges::none(&shared.quotas));
        Op { shared, charges, batch, changes: Vec::new(), first_touch: Vec::new(), inodes: 0 }
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
        let done = file.write(*self.batch, offset, data, &self.shared.pool);
        self.shared.stats.written_bytes.add(data.len() as u64);
        self.took(file, done, room);
    }

    /// Lays what was looked up elsewhere; see `copy`.
    pub(super) fn lay(&mut self, file: &Arc<FileBuffer>, parts: &[Part], shift: u64, room: Reservation<'_>) {
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
            let done = file.punch(*self.batch, from, to);
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
        let shared = self.shared;
        self.charges.keep();
        shared.inodes.fetch_add(self.inodes, Relaxed);
        let mut batch = shared.batch.held();
        let first = batch.begin(shared.world.elapsed());
        for (key, value) in &self.changes {
            batch.record(&match value {
                Some(value) => Record::Put { key, value },
                None => Record::Delete { key },
            });
        }
        batch.touched.extend(self.first_touch);
        let pressed = batch.records_bytes > shared.records_limit || shared.dirty.is_half_full();
        // Under the batch's lock, so that the overlay and the log see changes of a key in the same order.
        shared.index.change(self.changes);
        drop(batch);
        drop(self.batch);
        shared.last_op_ms.store(shared.world.elapsed().as_millis() as u64, Relaxed);
        shared.filled(first, pressed);
    }
}
