//! Large vectors, used again.
//!
//! Promise: a vector from here has the pool's capacity and no content. Why: on machines whose memory is lazily
//! backed, a fresh 128 KiB costs more in page faults than the copy into it; and one that is freed leaves a hole in the heap
//! that the next smaller block spoils for its like, so that a pool that lets many go makes the heap grow (measured: by half
//! of a small budget). So it keeps all that it may, and gives them back when others need the room (`leave`).
//! Called by: `buffer::file`, `vault` (sealer, who reserves room, pressure, housekeeper). Takes: its own lock. Cannot fail.

use crate::base::lock::Held;
use crate::base::sync::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The free list; clones share it.
#[derive(Clone)]
pub struct Pool {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    each_bytes: usize,
    most: Arc<AtomicUsize>,
}

impl Pool {
    /// Vectors of `each_bytes`; keeps at most `most_bytes` of unused ones.
    #[must_use]
    pub fn new(each_bytes: usize, most_bytes: u64) -> Self {
        Pool { free: Arc::default(), each_bytes, most: Arc::new(((most_bytes / each_bytes as u64) as usize).into()) }
    }

    /// An empty vector with the pool's capacity.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        self.free.held().pop().unwrap_or_else(|| Vec::with_capacity(self.each_bytes))
    }

    /// Changes how many bytes of unused vectors are kept; those beyond are let go of.
    pub fn keep(&self, most_bytes: u64) {
        let most = (most_bytes / self.each_bytes as u64) as usize;
        self.most.store(most, Relaxed);
        self.leave(most_bytes);
    }

    /// Lets go of the unused vectors beyond so many bytes, this once.
    pub fn leave(&self, most_bytes: u64) {
        let most = (most_bytes / self.each_bytes as u64) as usize;
        let mut free = self.free.held();
        if free.len() <= most {
            return;
        }
        // Freed without the lock.
        let gone = free.split_off(most);
        drop(free);
        drop(gone);
    }

    /// Takes a vector back, if it is one of the pool's size.
    pub fn put(&self, mut v: Vec<u8>) {
        if v.capacity() == self.each_bytes {
            v.clear();
            let mut free = self.free.held();
            if free.len() < self.most.load(Relaxed) {
                free.push(v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unused(pool: &Pool) -> usize {
        pool.free.held().len()
    }

    #[test]
    fn it_keeps_what_it_may_and_leaves_what_it_is_told_to() {
        let pool = Pool::new(1000, 4000);
        let vectors: Vec<_> = (0..6).map(|_| pool.take()).collect();
        vectors.into_iter().for_each(|v| pool.put(v));
        assert_eq!(unused(&pool), 4);
        pool.put(Vec::with_capacity(999));
        assert_eq!((pool.take().capacity(), unused(&pool)), (1000, 3), "no vector of another size");
        pool.leave(2999);
        assert_eq!(unused(&pool), 2);
        pool.leave(9000);
        (0..3).for_each(|_| pool.put(Vec::with_capacity(1000)));
        assert_eq!(unused(&pool), 4, "what it may keep is as before");
        pool.keep(1000);
        pool.put(Vec::with_capacity(1000));
        assert_eq!(unused(&pool), 1);
    }
}
