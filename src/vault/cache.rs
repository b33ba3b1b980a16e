//! Decoded frames, kept for a while.
//!
//! Promise: a frame is read and opened by one thread at a time; others that want it wait for that one; the cache's size
//! stays within its share. Called by: `read` (readers and read-ahead). Takes: its own lock, never across a read.
//! Cannot fail; a reader whose frame did not open tells so itself.

use crate::base::id::{Ino, SegmentId};
use crate::base::lock::Held;
use crate::base::sync::{Condvar, Mutex, PoisonError};
use crate::segment::FrameAt;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::HashSet;
use std::sync::Arc;

/// Which frame: all that an extent says of it and that opening it binds. An extent that names another file's frame, or says
/// another length of it, must not find it here any more than it could open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameKey {
    segment: SegmentId,
    position_bytes: u64,
    ino: Ino,
    offset_bytes: u64,
    plain_len_bytes: u32,
}

impl FrameKey {
    /// The key of a frame in a segment.
    pub fn of(segment: SegmentId, at: &FrameAt) -> FrameKey {
        let FrameAt { position_bytes, ino, offset_bytes, plain_len_bytes, .. } = *at;
        FrameKey { segment, position_bytes, ino, offset_bytes, plain_len_bytes }
    }

    /// The segment it lies in.
    pub fn segment(&self) -> SegmentId {
        self.segment
    }
}

/// A decoded frame.
pub type Plain = Arc<Vec<u8>>;

#[derive(Clone)]
struct Bytes;

impl Weighter<FrameKey, Plain> for Bytes {
    fn weight(&self, _: &FrameKey, plain: &Plain) -> u64 {
        plain.capacity() as u64 + 128
    }
}

/// The cache.
pub struct FrameCache {
    frames: Cache<FrameKey, Plain, Bytes>,
    loading: Mutex<HashSet<FrameKey>>,
    loaded: Condvar,
}

impl FrameCache {
    /// An empty cache of so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let items = (bytes / (64 << 10)).max(16) as usize;
        FrameCache {
            frames: Cache::with_weighter(items, bytes, Bytes),
            loading: Mutex::default(),
            loaded: Condvar::new(),
        }
    }

    /// Changes how many bytes it may hold; what is beyond is let go of.
    pub fn set_limit(&self, bytes: u64) {
        self.frames.set_capacity(bytes);
    }

    /// Most that it may hold.
    pub fn limit_bytes(&self) -> u64 {
        self.frames.capacity()
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.frames.weight()
    }

    /// Gets all the frames, or claims those that are missing and that no one else is loading; waits when the only missing
    /// ones are being loaded by others.
    pub fn claim(&self, keys: &[FrameKey], got: &mut [Option<Plain>]) -> Vec<FrameKey> {
        let mut loading = self.loading.held();
        loop {
            let mut mine = Vec::new();
            let mut wait = false;
            for (key, place) in keys.iter().zip(got.iter_mut()) {
                if place.is_some() {
                    continue;
                }
                *place = self.frames.get(key);
                if place.is_none() {
                    if loading.contains(key) {
                        wait = true;
                    } else if !mine.contains(key) {
                        mine.push(*key);
                    }
                }
            }
            if !mine.is_empty() || !wait {
                loading.extend(mine.iter().copied());
                return mine;
            }
            loading = self.loaded.wait(loading).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Of the given frames, claims those that are neither here nor being loaded.
    pub fn claim_missing(&self, keys: &[FrameKey]) -> Vec<FrameKey> {
        let mut loading = self.loading.held();
        keys.iter().copied().filter(|k| self.frames.get(k).is_none() && loading.insert(*k)).collect()
    }

    /// Keeps a loaded frame.
    pub fn keep(&self, key: FrameKey, plain: Plain) {
        self.frames.insert(key, plain);
    }

    /// Ends the claim on frames, whether they were loaded or not.
    pub fn release(&self, keys: &[FrameKey]) {
        let mut loading = self.loading.held();
        keys.iter().for_each(|k| {
            loading.remove(k);
        });
        drop(loading);
        self.loaded.notify_all();
    }

    /// Forgets a frame that a sequential reader has consumed.
    pub fn forget(&self, key: &FrameKey) {
        self.frames.remove(key);
    }
}
