//! A table that forgets: for tests of the layers above.
//!
//! Promise: as every table's, but nothing is durable. Called by: tests. On failure: fails when told to.

use super::table::{Changes, Entry, Frozen, IndexFault, Table, not_beyond};
use crate::base::lock::Shared;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The table.
#[derive(Default)]
pub struct MemoryTable {
    map: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
    fail_applies: AtomicU64,
}

impl MemoryTable {
    /// The next `n` applies fail with EIO and change nothing.
    pub fn fail_next_applies(&self, n: u64) {
        self.fail_applies.store(n, SeqCst);
    }
}

impl Table for MemoryTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        Ok(self.map.shared().get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit_count: usize) -> Result<Vec<Entry>, IndexFault> {
        let map = self.map.shared();
        let range = map.range::<[u8], _>((Bound::Included(from.max(prefix)), Bound::Unbounded));
        let mine = range.take_while(|(k, _)| k.starts_with(prefix)).take(limit_count);
        Ok(mine.map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn scan_last_before(&self, prefix: &[u8], before: &[u8]) -> Result<Option<Entry>, IndexFault> {
        let (map, before) = (self.map.shared(), not_beyond(prefix, before));
        let mut below = map.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(before.as_slice())));
        Ok(below.next_back().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())))
    }

    fn freeze(&self) -> Result<Box<dyn Frozen>, IndexFault> {
        Ok(Box::new(FrozenMap(self.map.shared().clone())))
    }

    fn apply(&self, changes: &mut Changes<'_>) -> Result<(), IndexFault> {
        if self.fail_applies.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(std::io::Error::from_raw_os_error(libc::EIO).into());
        }
        let mut map = self.map.alone();
        for (key, value) in changes {
            match value {
                Some(value) => drop(map.insert(key.to_vec(), value.to_vec())),
                None => drop(map.remove(key)),
            }
        }
        Ok(())
    }
}

/// A copy of all entries.
struct FrozenMap(BTreeMap<Vec<u8>, Vec<u8>>);

impl Frozen for FrozenMap {
    fn scan(&self, from: &[u8], limit_count: usize) -> Result<Vec<Entry>, IndexFault> {
        let range = self.0.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        Ok(range.take(limit_count).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}
