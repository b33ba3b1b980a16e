//! Changes in front of the table, ordered: one map that grows and, before it, maps that are sealed and wait for the table.
//!
//! Promise: the newest change of a key wins, a removal hides; sealed maps never change, so they are read without a lock.
//! Called by: `index::Index`, which holds the lock. Cannot fail.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

/// Longest key kept inside the tree's node: most keys are 9 or 17 bytes, and not following a pointer for each comparison
/// halves a look-up among 400,000.
const INLINE_BYTES: usize = 22;

/// What an entry costs beside its heap bytes: key and value words in nodes that are two thirds full.
const ENTRY_OVERHEAD_BYTES: usize = 64;
/// What the allocator adds to each block.
const HEAP_OVERHEAD_BYTES: usize = 16;
/// More sealed maps than this are merged: each one is another place to look.
const SEALED_MAX: usize = 4;

/// A key, ordered as its bytes are.
#[derive(Clone)]
pub(super) enum Key {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Heap(Box<[u8]>),
}

impl Key {
    pub(super) fn new(key: Vec<u8>) -> Key {
        if key.len() > INLINE_BYTES {
            return Key::Heap(key.into_boxed_slice());
        }
        let mut bytes = [0; INLINE_BYTES];
        bytes[..key.len()].copy_from_slice(&key);
        Key::Inline { len: key.len() as u8, bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Key::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Key::Heap(bytes) => bytes,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Key::Inline { .. } => 0,
            Key::Heap(bytes) => bytes.len() + HEAP_OVERHEAD_BYTES,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}
impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.bytes() == other.bytes()
    }
}
impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

/// A value, or that there is none any more.
pub(super) type Value = Option<Box<[u8]>>;

fn value_bytes(value: &Value) -> usize {
    value.as_ref().filter(|v| !v.is_empty()).map_or(0, |v| v.len() + HEAP_OVERHEAD_BYTES)
}

/// Changes by key, and what they weigh.
#[derive(Default, Clone)]
pub(super) struct Map {
    entries: BTreeMap<Key, Value>,
    bytes: usize,
}

impl Map {
    pub(super) fn put(&mut self, key: Key, value: Value) {
        let (key_bytes, added) = (key.heap_bytes(), value_bytes(&value));
        match self.entries.insert(key, value) {
            Some(old) => self.bytes = self.bytes + added - value_bytes(&old),
            None => self.bytes += ENTRY_OVERHEAD_BYTES + key_bytes + added,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the map says of a key, itself.
    pub(super) fn entry(&self, key: &[u8]) -> Option<&Value> {
        self.entries.get(key)
    }

    pub(super) fn take_out(&mut self, key: &[u8]) {
        if let Some((key, old)) = self.entries.remove_entry(key) {
            self.bytes -= ENTRY_OVERHEAD_BYTES + key.heap_bytes() + value_bytes(&old);
        }
    }

    pub(super) fn iter(&self) -> btree_map::Iter<'_, Key, Value> {
        self.entries.iter()
    }

    fn upward(&self, from: &[u8]) -> btree_map::Range<'_, Key, Value> {
        self.entries.range::<[u8], _>((Bound::Included(from), Bound::Unbounded))
    }

    fn downward(&self, before: &[u8]) -> std::iter::Rev<btree_map::Range<'_, Key, Value>> {
        self.entries.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(before))).rev()
    }
}

/// The changes of one class of keys.
#[derive(Default)]
pub(super) struct Overlay {
    pub(super) mutable: Map,
    /// Oldest first.
    pub(super) sealed: Vec<Arc<Map>>,
}

impl Overlay {
    /// The newest change of a key; `None` if the table decides.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Value> {
        self.newest_first().find_map(|map| map.entries.get(key))
    }

    /// Every map, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Map> {
        std::iter::once(&self.mutable).chain(self.sealed.iter().rev().map(|map| &**map))
    }

    /// Seals what has changed since the last time.
    pub(super) fn seal(&mut self) {
        if self.mutable.is_empty() {
            return;
        }
        let map = std::mem::take(&mut self.mutable);
        if self.sealed.len() < SEALED_MAX {
            return self.sealed.push(Arc::new(map));
        }
        // Only when the table refuses for long. If it is reading this map, it keeps the old one and we make another.
        if let Some(last) = self.sealed.last_mut() {
            let last = Arc::make_mut(last);
            map.entries.into_iter().for_each(|(key, value)| last.put(key, value));
        }
    }

    /// Takes out the sealed maps that the table has now; the caller drops them where nobody waits.
    pub(super) fn take_applied(&mut self, applied: &[Arc<Map>]) -> Vec<Arc<Map>> {
        self.sealed.extract_if(.., |map| applied.iter().any(|a| Arc::ptr_eq(a, map))).collect()
    }

    pub(super) fn entries(&self) -> usize {
        self.newest_first().map(|map| map.entries.len()).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.newest_first().map(|map| map.bytes).sum()
    }
}

/// Entries of several ordered sources as one: of equal keys only the first source's.
pub(super) struct Merge<I: Iterator> {
    sources: Vec<Peekable<I>>,
    order: Ordering,
}

impl<'a, V: 'a, I: Iterator<Item = (&'a [u8], V)>> Merge<I> {
    /// Sources in ascending order, the newest first.
    pub(super) fn ascending(sources: impl Iterator<Item = I>) -> Self {
        Merge { sources: sources.map(Iterator::peekable).collect(), order: Ordering::Less }
    }

    fn descending(sources: impl Iterator<Item = I>) -> Self {
        Merge { sources: sources.map(Iterator::peekable).collect(), order: Ordering::Greater }
    }
}

impl<'a, V: 'a, I: Iterator<Item = (&'a [u8], V)>> Iterator for Merge<I> {
    type Item = (&'a [u8], V);

    fn next(&mut self) -> Option<(&'a [u8], V)> {
        let mut best: Option<(usize, &'a [u8])> = None;
        for (at, source) in self.sources.iter_mut().enumerate() {
            if let Some(&(key, _)) = source.peek()
                && best.is_none_or(|(_, least)| key.cmp(least) == self.order)
            {
                best = Some((at, key));
            }
        }
        let (at, key) = best?;
        let taken = self.sources[at].next();
        for older in &mut self.sources[at + 1..] {
            older.next_if(|(k, _)| *k == key);
        }
        taken
    }
}

/// Some of an overlay's changes in a range.
pub(super) struct Window {
    pub(super) entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Whether there is nothing beyond them in the range.
    pub(super) complete: bool,
}

fn window<'a>(changes: impl Iterator<Item = (&'a [u8], &'a Value)>, most: usize) -> Window {
    let mut changes = changes;
    let owned = |(key, value): (&[u8], &Value)| (key.to_vec(), value.as_ref().map(|v| v.to_vec()));
    let entries: Vec<_> = changes.by_ref().take(most).map(owned).collect();
    Window { complete: entries.len() < most, entries }
}

/// The first changes with `prefix`, not below `from` and below `before`, ascending.
pub(super) fn first_from(
    overlays: &[&Overlay],
    prefix: &[u8],
    from: &[u8],
    before: Option<&[u8]>,
    most: usize,
) -> Window {
    let from = from.max(prefix);
    let sources = overlays.iter().flat_map(|o| o.newest_first()).map(|m| m.upward(from).map(|(k, v)| (k.bytes(), v)));
    let within = |k: &[u8]| k.starts_with(prefix) && before.is_none_or(|end| k < end);
    window(Merge::ascending(sources).take_while(|(k, _)| within(k)), most)
}

/// The last changes with `prefix`, below `before`, descending. `before` must not lie above the prefix's own keys.
pub(super) fn last_before(overlays: &[&Overlay], prefix: &[u8], before: &[u8], most: usize) -> Window {
    let maps = overlays.iter().flat_map(|o| o.newest_first());
    let sources = maps.map(|m| m.downward(before).map(|(k, v)| (k.bytes(), v)));
    window(Merge::descending(sources).take_while(|(k, _)| k.starts_with(prefix)), most)
}
