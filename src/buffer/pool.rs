//! Large vectors, used again.
//!
//! Promise: a vector from here has the pool's capacity and no content. Why: on machines whose memory is lazily
//! backed, a fresh 128 KiB costs more in page faults than the copy into it. Called by: `buffer::file`, `vault::sealer`.
//! Cannot fail.

use crate::base::lock::Held;
use crate::base::sync::Mutex;
use std::sync::Arc;

/// The free list; clones share it.
#[derive(Clone)]
pub struct Pool {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    each_bytes: usize,
    most: usize,
}

impl Pool {
    /// Vectors of `each_bytes`; keeps at most `most_bytes` of unused ones.
    #[must_use]
    pub fn new(each_bytes: usize, most_bytes: u64) -> Self {
        Pool { free: Arc::default(), each_bytes, most: (most_bytes / each_bytes as u64) as usize }
    }

    /// An empty vector with the pool's capacity.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        self.free.held().pop().unwrap_or_else(|| Vec::with_capacity(self.each_bytes))
    }

    /// Takes a vector back, if it is one of the pool's size.
    pub fn put(&self, mut v: Vec<u8>) {
        if v.capacity() == self.each_bytes {
            v.clear();
            let mut free = self.free.held();
            if free.len() < self.most {
                free.push(v);
            }
        }
    }
}
