//! Large vectors, used again.
//!
//! Promise: a vector from here has the pool's capacity and no content. Why: on machines whose memory is lazily
//! backed, a fresh 128 KiB costs more in page faults than the copy into it. Called by: `buffer::file`, `vault::sealer`.
//! Cannot fail.

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
        let mut free = self.free.held();
        let beyond = most.min(free.len());
        // Freed without the lock.
        let gone = free.split_off(beyond);
        free.shrink_to_fit();
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
