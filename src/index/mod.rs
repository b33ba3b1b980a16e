//! Where each thing is: an ordered space of keys, made of a durable table and the changes in front of it.
//!
//! Promise: a reader sees the newest change of each key, and all of one `change` or nothing of it. What `apply_sealed`
//! acknowledged survives a power cut; everything else is gone with the process and comes back from the log.
//! Why it holds: a change lives in the overlay until the table has made it durable, and readers look at the overlay
//! first and at the table after, so that nothing is missed while it moves from one to the other.
//! Called by: `vault`, `fs`, `check`. Takes: the overlay's lock for memory work only, never across the disk.
//! On failure: the sealed changes stay and are applied with the next attempt; a damaged table says so, and its caller
//! rebuilds it from the log.

mod memory;
mod overlay;
mod pages;
mod redb_table;
mod table;

pub use memory::MemoryTable;
pub use redb_table::RedbTable;
pub use table::{Changes, Entry, Frozen, IndexFault, Table};

use crate::base::lock::{Held, Shared};
use crate::format::key::is_derived;
use overlay::{Key, Map, Merge, Overlay, Value, Window};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

/// Changes fetched at once while merging; doubled with each round, so that a range full of removals costs few rounds.
const WINDOW_COUNT_MIN: usize = 16;
const WINDOW_COUNT_MAX: usize = 4096;

#[derive(Default)]
struct Overlays {
    direct: Overlay,
    derived: Overlay,
    /// What the derived overlay held of each key changed since `begin_undoable`.
    undo: Option<BTreeMap<Vec<u8>, Option<Value>>>,
}

impl Overlays {
    fn of(&self, key: &[u8]) -> &Overlay {
        if is_derived(key) { &self.derived } else { &self.direct }
    }

    /// Those that may hold keys with `prefix`: the first byte of a key decides its class.
    fn touching(&self, prefix: &[u8]) -> ([&Overlay; 2], usize) {
        if prefix.is_empty() { ([&self.direct, &self.derived], 2) } else { ([self.of(prefix), &self.direct], 1) }
    }
}

/// The index.
pub struct Index {
    /// Gives way to a copy of itself when the vault gets another key.
    table: RwLock<Arc<dyn Table>>,
    overlays: RwLock<Overlays>,
    /// One apply at a time.
    applying: Mutex<()>,
    /// Odd while the table is being changed; it only grows.
    applies: AtomicU64,
}

/// A copy of the table that may take its place.
#[must_use]
pub struct Move<'a> {
    index: &'a Index,
    to: Box<dyn Table>,
    _one: MutexGuard<'a, ()>,
}

impl Move<'_> {
    /// From now on the copy is the table. Who reads the old one just now finds the same there.
    pub fn finish(self) {
        *self.index.table.alone() = Arc::from(self.to);
    }
}

/// Entries that are looked up at a time …
const COPIED_COUNT: usize = 1000;
/// … and bytes of them that are copied in one transaction.
const COPIED_BYTES: usize = 4 << 20;

/// Copies all entries that `scan` gives, from a key on and at most so many at a time, into an empty table.
pub fn copy(scan: impl Fn(&[u8], usize) -> Result<Vec<Entry>, IndexFault>, to: &dyn Table) -> Result<(), IndexFault> {
    let (mut next, mut gathered, mut bytes) = (Vec::new(), Vec::new(), 0);
    loop {
        let page = scan(&next, COPIED_COUNT)?;
        let ended = page.is_empty();
        if let Some((last, _)) = page.last() {
            next = [&last[..], &[0]].concat();
        }
        bytes += page.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        gathered.extend(page);
        if bytes >= COPIED_BYTES || ended && !gathered.is_empty() {
            to.apply(&mut gathered.iter().map(|(k, v): &Entry| (&k[..], Some(&v[..]))))?;
            gathered.clear();
            bytes = 0;
        }
        if ended {
            return Ok(());
        }
    }
}

/// Changes of derived keys that may still be taken back.
#[must_use]
pub struct Undoable(());

impl Index {
    /// An index over a table, with nothing in front of it.
    #[must_use]
    pub fn new(table: Box<dyn Table>) -> Self {
        let table = RwLock::new(Arc::from(table));
        Index { table, overlays: RwLock::default(), applying: Mutex::new(()), applies: AtomicU64::new(0) }
    }

    fn table(&self) -> Arc<dyn Table> {
        Arc::clone(&self.table.shared())
    }

    /// The newest value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        if let Some(value) = self.overlays.shared().of(key).get(key) {
            return Ok(value.as_ref().map(|v| v.to_vec()));
        }
        self.table().get(key)
    }

    /// What the newest checkpoint has of a key.
    pub fn stored(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        self.table().get(key)
    }

    /// Entries whose keys begin with `prefix` and are not below `from`, ascending, at most `limit_count`.
    ///
    /// A scan that needs several rounds (it met many removals) is not one moment: each round is. What moves to a higher
    /// key meanwhile is not missed.
    pub fn scan(&self, prefix: &[u8], from: &[u8], limit_count: usize) -> Result<Vec<Entry>, IndexFault> {
        self.scan_below(prefix, from, None, limit_count)
    }

    /// The same of keys below `before`. Where much behind it was removed, not looking there is what makes it fast.
    pub fn scan_below(
        &self,
        prefix: &[u8],
        from: &[u8],
        before: Option<&[u8]>,
        limit_count: usize,
    ) -> Result<Vec<Entry>, IndexFault> {
        let mut found: Vec<Entry> = Vec::new();
        let mut cursor = from.max(prefix).to_vec();
        let mut batch = limit_count.clamp(WINDOW_COUNT_MIN, WINDOW_COUNT_MAX);
        while found.len() < limit_count {
            let (window, stored) = self.at_one_moment(
                |overlays| {
                    let (touching, count) = overlays.touching(prefix);
                    overlay::first_from(&touching[..count], prefix, &cursor, before, batch)
                },
                |_| self.table().scan(prefix, &cursor, batch),
            )?;
            let mut stored = stored;
            let mut complete = stored.len() < batch;
            let below = before.map_or(stored.len(), |end| stored.partition_point(|(key, _)| key.as_slice() < end));
            complete |= below < stored.len();
            stored.truncate(below);
            let horizon = lesser(
                stored.last().filter(|_| !complete).map(|(key, _)| key.as_slice()),
                window.entries.last().filter(|_| !window.complete).map(|(key, _)| key.as_slice()),
            )
            .map(<[u8]>::to_vec);
            merge_window(window, stored, horizon.as_deref(), |entry| found.push(entry));
            let Some(mut last) = horizon else { break };
            last.push(0);
            cursor = last;
            batch = (batch * 2).min(WINDOW_COUNT_MAX);
        }
        found.truncate(limit_count);
        Ok(found)
    }

    /// The entry with the greatest key below `before` that begins with `prefix`, as of one moment.
    ///
    /// Changes of one `change` may take an entry away and put its rest behind a higher key: looking for the one, then for
    /// the other at a later moment, would miss both. So where the changes looked at do not decide, more of them are
    /// looked at anew, all at once.
    pub fn scan_last_before(&self, prefix: &[u8], before: &[u8]) -> Result<Option<Entry>, IndexFault> {
        let before = table::not_beyond(prefix, before);
        let mut batch = 4;
        loop {
            let (window, stored) = self.at_one_moment(
                |overlays| {
                    let (touching, count) = overlays.touching(prefix);
                    overlay::last_before(&touching[..count], prefix, &before, batch)
                },
                |window| self.last_stored_unchanged(prefix, &before, window),
            )?;
            let lowest = window.entries.last().filter(|_| !window.complete).map(|(key, _)| key.clone());
            let changed = window.entries.into_iter().find_map(|(key, value)| Some((key, value?)));
            let last = stored.into_iter().chain(changed).max_by(|a, b| a.0.cmp(&b.0));
            // Below the lowest change looked at, another may hide what the table has.
            match lowest {
                Some(lowest) if last.as_ref().is_none_or(|(key, _)| *key < lowest) => batch *= 4,
                _ => return Ok(last),
            }
        }
    }

    /// The last entry of the table below `before` of which the window knows no change.
    fn last_stored_unchanged(
        &self,
        prefix: &[u8],
        before: &[u8],
        window: &Window,
    ) -> Result<Option<Entry>, IndexFault> {
        let mut below = before.to_vec();
        loop {
            match self.table().scan_last_before(prefix, &below)? {
                // Descending, as the window is.
                Some((key, _)) if window.entries.binary_search_by(|(k, _)| key.cmp(k)).is_ok() => below = key,
                found => return Ok(found),
            }
        }
    }

    /// Puts (`Some`) and removes (`None`) keys, all at once for every reader; of a key given twice the last counts.
    pub fn change(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        // What allocates is done before the lock is taken.
        let ready: Vec<(bool, Key, Value)> = changes
            .into_iter()
            .map(|(key, value)| (is_derived(&key), Key::new(key), value.map(Vec::into_boxed_slice)))
            .collect();
        let mut overlays = self.overlays.alone();
        let Overlays { derived: now, undo, .. } = &mut *overlays;
        if let Some(undo) = undo {
            for (_, key, _) in ready.iter().filter(|(derived, ..)| *derived) {
                undo.entry(key.bytes().to_vec()).or_insert_with(|| now.mutable.entry(key.bytes()).cloned());
            }
        }
        for (derived, key, value) in ready {
            if derived { &mut overlays.derived } else { &mut overlays.direct }.mutable.put(key, value);
        }
    }

    /// Changes of derived keys from here on can be taken back. Whoever calls it is the only one that changes or seals these.
    pub fn begin_undoable(&self) -> Undoable {
        self.overlays.alone().undo = Some(BTreeMap::new());
        Undoable(())
    }

    /// They stand.
    pub fn keep(&self, _: Undoable) {
        self.overlays.alone().undo = None;
    }

    /// They are taken back.
    pub fn undo(&self, _: Undoable) {
        let mut overlays = self.overlays.alone();
        for (key, before) in overlays.undo.take().into_iter().flatten() {
            match before {
                Some(value) => overlays.derived.mutable.put(Key::new(key), value),
                None => overlays.derived.mutable.take_out(&key),
            }
        }
    }

    /// Seals the changes of direct keys: the next `apply_sealed` takes them.
    pub fn seal_direct(&self) {
        self.overlays.alone().direct.seal();
    }

    /// Seals the changes of derived keys: the next `apply_sealed` takes them.
    pub fn seal_derived(&self) {
        self.overlays.alone().derived.seal();
    }

    /// Makes everything sealed, and the `extra` entries, durable in one transaction of the table, then forgets it here.
    ///
    /// Reads and changes go on meanwhile. An extra entry wins over a sealed change of the same key.
    pub fn apply_sealed(&self, extra: &[(Vec<u8>, Vec<u8>)]) -> Result<(), IndexFault> {
        let _one = self.applying.held();
        let sealed: Vec<Arc<Map>> = {
            let overlays = self.overlays.shared();
            overlays.direct.sealed.iter().chain(&overlays.derived.sealed).rev().cloned().collect()
        };
        if sealed.is_empty() && extra.is_empty() {
            return Ok(());
        }
        let extra: BTreeMap<&[u8], &[u8]> = extra.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
        type Source<'a> = Box<dyn Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + 'a>;
        let first: Source = Box::new(extra.iter().map(|(k, v)| (*k, Some(*v))));
        let rest = sealed.iter().map(|m| Box::new(m.iter().map(|(k, v)| (k.bytes(), v.as_deref()))) as Source);
        let mut changes = Merge::ascending(std::iter::once(first).chain(rest));

        self.applies.fetch_add(1, SeqCst);
        let result = self.table().apply(&mut changes);
        let forgotten = result.is_ok().then(|| {
            let mut overlays = self.overlays.alone();
            (overlays.direct.take_applied(&sealed), overlays.derived.take_applied(&sealed))
        });
        self.applies.fetch_add(1, SeqCst);
        // Freeing 400,000 entries takes a while; nobody waits for it here.
        drop(forgotten);
        result
    }

    /// The table as of now, without what is in front of it, to be read while it goes on.
    pub fn freeze(&self) -> Result<Box<dyn Frozen>, IndexFault> {
        let _one = self.applying.held();
        self.table().freeze()
    }

    /// Copies what the table holds into another, empty one, to go on with that. Nothing is applied until the answer is dropped:
    /// changes gather in front of the table meanwhile, and readers see no difference.
    pub fn begin_move(&self, to: Box<dyn Table>) -> Result<Move<'_>, IndexFault> {
        let one = self.applying.held();
        let from = self.table();
        copy(|next, count| from.scan(&[], next, count), &*to)?;
        Ok(Move { index: self, to, _one: one })
    }

    /// The table writes nothing any more, not even when it is dropped.
    pub fn put_away(&self) {
        let _one = self.applying.held();
        self.table().put_away();
    }

    /// Goes on with the table's file as its path leads to it now: the directory was opened anew.
    pub fn reopen(&self) -> Result<(), IndexFault> {
        self.table().reopen()
    }

    /// Changes that the table does not have yet.
    #[must_use]
    pub fn overlay_entries(&self) -> usize {
        let overlays = self.overlays.shared();
        overlays.direct.entries() + overlays.derived.entries()
    }

    /// Memory they take.
    #[must_use]
    pub fn overlay_bytes(&self) -> usize {
        let overlays = self.overlays.shared();
        overlays.direct.bytes() + overlays.derived.bytes()
    }

    /// Looks at the overlay, then at the table, and again if an apply got between the two.
    ///
    /// The overlay seen is older than the table seen. That is right while the table can only have got what that overlay
    /// has too: an apply under way at the start (odd) took what was sealed then; one begun since may hold newer changes.
    fn at_one_moment<T>(
        &self,
        look: impl Fn(&Overlays) -> Window,
        ask: impl Fn(&Window) -> Result<T, IndexFault>,
    ) -> Result<(Window, T), IndexFault> {
        loop {
            let begun = self.applies.load(SeqCst);
            let window = look(&self.overlays.shared());
            let stored = ask(&window)?;
            if self.applies.load(SeqCst) <= begun + (begun & 1) {
                return Ok((window, stored));
            }
        }
    }
}

/// The lesser of two bounds, where `None` is no bound.
fn lesser<'a>(a: Option<&'a [u8]>, b: Option<&'a [u8]>) -> Option<&'a [u8]> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Gives the entries up to `horizon` of stored entries under a window of changes.
fn merge_window(window: Window, stored: Vec<Entry>, horizon: Option<&[u8]>, mut give: impl FnMut(Entry)) {
    let within = |key: &[u8]| horizon.is_none_or(|end| key <= end);
    let mut stored = stored.into_iter().take_while(|(key, _)| within(key)).peekable();
    for (key, value) in window.entries.into_iter().take_while(|(key, _)| within(key)) {
        while let Some(entry) = stored.next_if(|(k, _)| *k < key) {
            give(entry);
        }
        stored.next_if(|(k, _)| *k == key);
        if let Some(value) = value {
            give((key, value));
        }
    }
    stored.for_each(give);
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod redb_tests;
#[cfg(test)]
mod tests;
