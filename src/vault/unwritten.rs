//! Bytes that the kernel's cache handed over and the vault does not have: held writes, and refused bytes.
//!
//! Promise: such bytes are in one of the two lists from the moment they come until they are written, replaced or cut off, or until
//! an FSYNC shows that the kernel has reported the loss. The kernel sends none while an error waits to be reported for that file
//! (`fsync` then fails without asking), so one that comes says that some program's `fsync` was told. A failing `close` shows nothing.
//! Called by: `fuse` (changes), `report` (reads). Takes: its own lock, for a look at a table. Cannot fail.

use crate::base::id::Ino;
use crate::base::lock::Held;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// Held and refused bytes, by inode. Memory: some 100 bytes for each file of which bytes were refused.
#[derive(Debug, Default)]
pub struct Unwritten {
    held_bytes: AtomicU64,
    is_any_refused: AtomicBool,
    held: Mutex<HashMap<Ino, u64>>,
    refused: Mutex<HashMap<Ino, Refused>>,
}

#[derive(Debug, Default)]
struct Refused {
    /// In order, apart from each other.
    ranges: Vec<Range<u64>>,
    /// An FSYNC shows nothing any more: the kernel has forgotten the error, or `umount` was told of it.
    is_final: bool,
}

impl Refused {
    fn remove(&mut self, gone: &Range<u64>) {
        let left = |r: &Range<u64>| [r.start..r.end.min(gone.start), r.start.max(gone.end)..r.end];
        self.ranges = self.ranges.iter().flat_map(left).filter(|r| r.start < r.end).collect();
    }

    fn add(&mut self, mut new: Range<u64>) {
        let touches = |r: &Range<u64>, new: &Range<u64>| r.start <= new.end && new.start <= r.end;
        for r in self.ranges.iter().filter(|r| touches(r, &new)).cloned().collect::<Vec<_>>() {
            new = r.start.min(new.start)..r.end.max(new.end);
        }
        self.ranges.retain(|r| !touches(r, &new));
        let at = self.ranges.partition_point(|r| r.start < new.start);
        self.ranges.insert(at, new);
    }

    fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.start).sum()
    }
}

impl Unwritten {
    /// Counts a write as held.
    pub fn hold(&self, ino: Ino, bytes: u64) {
        *self.held.held().entry(ino).or_default() += bytes;
        self.held_bytes.fetch_add(bytes, SeqCst);
    }

    /// Ends that, once it is written or refused.
    pub fn let_go(&self, ino: Ino, bytes: u64) {
        let mut held = self.held.held();
        if let Some(of) = held.get_mut(&ino) {
            *of = of.saturating_sub(bytes);
            if *of == 0 {
                held.remove(&ino);
            }
        }
        self.held_bytes.fetch_sub(bytes, SeqCst);
    }

    /// Bytes that are held now.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(SeqCst)
    }

    /// The files that they belong to.
    pub fn held_files(&self) -> Vec<Ino> {
        self.held.held().keys().copied().collect()
    }

    /// Notes bytes that the kernel is told were not written.
    pub fn refuse(&self, ino: Ino, offset: u64, bytes: u64) {
        self.refused.held().entry(ino).or_default().add(offset..offset.saturating_add(bytes));
        self.is_any_refused.store(true, SeqCst);
    }

    /// Notes that a range was written.
    pub fn wrote(&self, ino: Ino, offset: u64, bytes: u64) {
        self.remove(ino, offset..offset.saturating_add(bytes));
    }

    /// Notes that a file was made this long: what lay behind that is nobody's any more.
    pub fn cut(&self, ino: Ino, len: u64) {
        self.remove(ino, len..u64::MAX);
    }

    /// Notes an FSYNC of a file.
    pub fn synced(&self, ino: Ino) {
        self.change(|refused| {
            if refused.get(&ino).is_some_and(|of| !of.is_final) {
                refused.remove(&ino);
            }
        });
    }

    /// Has FSYNC show nothing for what was refused of a file so far.
    pub fn keep(&self, ino: Ino) {
        self.change(|refused| {
            if let Some(of) = refused.get_mut(&ino) {
                of.is_final = true;
            }
        });
    }

    /// The files that lack refused bytes, and how many each.
    pub fn refused(&self) -> Vec<(Ino, u64)> {
        let mut all: Vec<_> = self.refused.held().iter().map(|(ino, of)| (*ino, of.bytes())).collect();
        all.sort_unstable();
        all
    }

    fn remove(&self, ino: Ino, gone: Range<u64>) {
        self.change(|refused| {
            if let Some(of) = refused.get_mut(&ino) {
                of.remove(&gone);
                if of.ranges.is_empty() {
                    refused.remove(&ino);
                }
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<Ino, Refused>)) {
        // Every write passes here.
        if self.is_any_refused.load(SeqCst) {
            let mut refused = self.refused.held();
            change(&mut refused);
            self.is_any_refused.store(!refused.is_empty(), SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ino = Ino(7);

    #[test]
    fn what_is_written_or_cut_off_is_lacking_no_more_and_nothing_counts_twice() {
        let u = Unwritten::default();
        for (offset, bytes) in [(100, 50), (0, 10), (120, 80), (300, 1), (200, 0)] {
            u.refuse(A, offset, bytes);
        }
        assert_eq!(u.refused(), [(A, 111)]);
        u.wrote(A, 110, 10);
        u.wrote(Ino(8), 0, 1000);
        assert_eq!(u.refused(), [(A, 101)]);
        u.cut(A, 150);
        assert_eq!(u.refused(), [(A, 50)]);
        u.wrote(A, 0, 1000);
        assert_eq!(u.refused(), []);
    }

    #[test]
    fn an_fsync_that_comes_ends_it_unless_it_shows_nothing() {
        let u = Unwritten::default();
        u.refuse(A, 0, 1);
        u.synced(A);
        assert_eq!(u.refused(), []);
        u.refuse(A, 0, 1);
        u.keep(A);
        u.synced(A);
        assert_eq!(u.refused(), [(A, 1)]);
        u.cut(A, 0);
        assert_eq!(u.refused(), []);
    }

    #[test]
    fn held_bytes_are_counted_until_they_are_let_go() {
        let u = Unwritten::default();
        u.hold(A, 5);
        u.hold(A, 6);
        u.let_go(A, 5);
        assert_eq!((u.held_bytes(), u.held_files()), (6, vec![A]));
        u.let_go(A, 6);
        assert_eq!((u.held_bytes(), u.held_files()), (0, vec![]));
    }
}
