//! Finds where a file's data and holes lie, in whole blocks, without reading any of the data.
//!
//! Promise: a block that holds any byte of data counts as data.
//! Why it holds: the buffers are asked before the index, and a range is in the index before it leaves the buffers. A commit may
//! move data between two look-ups, so the index is asked until it gives the same answer twice (as in `read`). An answer is used
//! again only while the file's buffers count no change; all else that happens to a file moves data and makes no holes.
//! Called by: `fs`. Takes: its own lock, and a file's, each for a moment. On failure: the index's fault.

use super::shared::Shared;
use super::{Vault, VaultFault};
use crate::base::id::Ino;
use crate::base::limits::BLOCK_BYTES;
use crate::base::lock::Held;
use crate::buffer::FileBuffer;
use crate::format::extent::Extent;
use crate::format::key;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes mapped first. Each map that follows on another takes four times as many, so that neither a file in small pieces nor
/// one of few pieces far apart takes long. (With 1 MiB first, a single `lseek` in a file of 10,000 islands decoded 130 extents.)
const FIRST_BYTES: u64 = 64 << 10;
const GROWTH: u64 = 4;
/// A map of more pieces is not followed by a longer one, and no map takes many more extents from the index.
const PIECES_MOST: usize = 1024;
/// Extents looked up at first, and at most, at a time.
const SCAN: (usize, usize) = (8, 256);
/// Files whose last map is remembered: programs that go through sparse files, at a time.
const FILES_REMEMBERED: usize = 16;

/// Where data lies in a part of a file.
struct Map {
    from: u64,
    to: u64,
    /// Whole blocks, ascending; ranges neither touch nor overlap.
    data: Vec<(u64, u64)>,
    /// Pieces that it was made of.
    pieces: usize,
    /// The file's changes when it was made.
    changes: u64,
}

impl Map {
    /// The first range of data that does not end before `at` or there.
    fn data_after(&self, at: u64) -> Option<(u64, u64)> {
        self.data.get(self.data.partition_point(|&(_, end)| end <= at)).copied()
    }

    /// How long the next map is to be, of a reader that goes on behind this one.
    fn next_len_bytes(&self) -> u64 {
        let len = self.to - self.from;
        if self.pieces < PIECES_MOST { len.saturating_mul(GROWTH) } else { len }
    }
}

/// The last map of each of some files, the latest first. (Without them each `lseek` in a file of 10,000 islands looked up and
/// decoded the same extents four times over, which took 60 µs of its 100.)
#[derive(Default)]
pub(super) struct Maps(Mutex<VecDeque<(Weak<FileBuffer>, Arc<Map>)>>);

impl Maps {
    /// The last map of a file, if the file is as it was.
    fn last(&self, file: &Arc<FileBuffer>) -> Option<Arc<Map>> {
        // While a weak reference is held, no other file gets its address.
        let is_of = |(of, _): &&(Weak<FileBuffer>, Arc<Map>)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(file));
        let map = self.0.held().iter().find(is_of).map(|(_, map)| Arc::clone(map))?;
        file.is_unchanged(map.changes).then_some(map)
    }

    fn remember(&self, file: &Arc<FileBuffer>, map: &Arc<Map>) {
        let mut all = self.0.held();
        all.retain(|(of, _)| of.strong_count() > 0 && !std::ptr::eq(of.as_ptr(), Arc::as_ptr(file)));
        all.push_front((Arc::downgrade(file), Arc::clone(map)));
        all.truncate(FILES_REMEMBERED);
    }
}

impl Vault {
    /// The first byte of data in `[from, to)`; `from` itself if its block holds data.
    pub fn next_data(&self, file: &Arc<FileBuffer>, from: u64, to: u64) -> Result<Option<u64>, VaultFault> {
        let mut at = from;
        while at < to {
            let map = self.map(file, at, to)?;
            if let Some((start, _)) = map.data_after(at) {
                return Ok(Some(start.max(from)));
            }
            at = map.to;
        }
        Ok(None)
    }

    /// The first byte of a hole in `[from, to)`, or `to`.
    pub fn next_hole(&self, file: &Arc<FileBuffer>, from: u64, to: u64) -> Result<u64, VaultFault> {
        let mut at = from;
        while at < to {
            let map = self.map(file, at, to)?;
            match map.data_after(at) {
                Some((start, end)) if start <= at => at = end,
                _ => return Ok(at),
            }
        }
        Ok(to)
    }

    /// A map that begins at `at` or before, and ends behind it: no further than the block that `to` ends in.
    fn map(&self, file: &Arc<FileBuffer>, at: u64, to: u64) -> Result<Arc<Map>, VaultFault> {
        let last = self.maps.last(file);
        let mut len = FIRST_BYTES;
        if let Some(last) = last {
            if (last.from..last.to).contains(&at) {
                return Ok(last);
            }
            if at >= last.to && at - last.to < last.to - last.from {
                len = last.next_len_bytes();
            }
        }
        let from = at / BLOCK * BLOCK;
        let end = to.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
        let map = Arc::new(make(&self.shared, file, from, from.saturating_add(len).min(end))?);
        self.maps.remember(file, &map);
        Ok(map)
    }
}

/// Maps a part of a file, which begins and ends with a block; less of it where it is in many pieces.
fn make(shared: &Shared, file: &FileBuffer, from: u64, to: u64) -> Result<Map, VaultFault> {
    let (mut data, mut gaps, changes) = file.cover(from, to);
    gaps.sort_unstable();
    let (mut end, mut pieces) = (to, data.len());
    for (a, b) in gaps {
        let stop = Stop { least: from + BLOCK, pieces: PIECES_MOST.saturating_sub(pieces) };
        let (found, reached) = extents(shared, file.ino, a, b, &stop)?;
        pieces += found.len();
        data.extend(found);
        if reached < b {
            end = reached;
            break;
        }
    }
    data.sort_unstable();
    let mut whole: Vec<(u64, u64)> = Vec::new();
    for (a, b) in data {
        let (a, b) = (a / BLOCK * BLOCK, b.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX).min(end));
        match whole.last_mut() {
            Some(last) if a <= last.1 => last.1 = last.1.max(b),
            _ if a < b => whole.push((a, b)),
            _ => {}
        }
    }
    Ok(Map { from, to: end, data: whole, pieces, changes })
}

/// Where looking up extents ends early: at the first that lies behind `least`, once there are more than so many.
struct Stop {
    least: u64,
    pieces: usize,
}

/// The parts of `[from, to)` that the index knows, and the block up to which that is all, as of one moment.
fn extents(shared: &Shared, ino: Ino, from: u64, to: u64, stop: &Stop) -> Result<(Vec<(u64, u64)>, u64), VaultFault> {
    let mut found = look(shared, ino, from, to, stop)?;
    loop {
        let again = look(shared, ino, from, to, stop)?;
        let same = again == found;
        found = again;
        if same {
            return Ok(found);
        }
    }
}

/// As `extents`, each look-up as of its own moment.
fn look(shared: &Shared, ino: Ino, from: u64, to: u64, stop: &Stop) -> Result<(Vec<(u64, u64)>, u64), VaultFault> {
    let prefix = key::prefix(key::EXTENT, ino.0);
    let mut out = Vec::new();
    let part = |k: &[u8], v: &[u8]| -> Result<(u64, u64), VaultFault> {
        let at = key::tail_u64(key::split(k)?.2)?;
        Ok((at, at.saturating_add(u64::from(Extent::decode(v)?.len_bytes))))
    };
    let mut add = |(start, end): (u64, u64)| {
        if start.max(from) < end.min(to) {
            out.push((start.max(from), end.min(to)));
        }
        out.len()
    };
    if let Some((k, v)) = shared.index.scan_last_before(&prefix, &key::extent(ino, from))? {
        add(part(&k, &v)?);
    }
    let (mut next, before) = (key::extent(ino, from), key::extent(ino, to));
    let mut count = SCAN.0;
    loop {
        let found = shared.index.scan_below(&prefix, &next, Some(&before), count)?;
        for (k, v) in &found {
            let (start, end) = part(k, v)?;
            if add((start, end)) > stop.pieces && start >= stop.least {
                return Ok((out, start / BLOCK * BLOCK));
            }
        }
        match found.into_iter().nth(count - 1) {
            Some((last, _)) => next = [&last[..], &[0]].concat(),
            None => return Ok((out, to)),
        }
        count = (count * 4).min(SCAN.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(from: u64, to: u64, data: &[(u64, u64)], pieces: usize) -> Map {
        Map { from, to, data: data.to_vec(), pieces, changes: 0 }
    }

    #[test]
    fn data_after_a_byte_is_the_range_around_it_or_the_next() {
        let m = map(0, 100, &[(10, 20), (30, 40)], 2);
        let found = [0, 10, 19, 20, 30, 39, 40].map(|at| m.data_after(at).map(|range| range.0));
        assert_eq!(found, [Some(10), Some(10), Some(10), Some(30), Some(30), Some(30), None]);
    }

    #[test]
    fn maps_grow_until_they_have_many_pieces() {
        assert_eq!(map(BLOCK, 3 * BLOCK, &[], 0).next_len_bytes(), 8 * BLOCK);
        assert_eq!(map(0, 2 * BLOCK, &[], PIECES_MOST).next_len_bytes(), 2 * BLOCK);
        assert_eq!(map(0, u64::MAX, &[], 0).next_len_bytes(), u64::MAX);
    }

    #[test]
    fn a_map_serves_its_own_file_until_that_is_changed() {
        let (maps, pool) = (Maps::default(), crate::buffer::Pool::new(1 << 17, 0));
        let files: Vec<_> = (0..FILES_REMEMBERED + 1).map(|_| Arc::new(FileBuffer::new(Ino(7)))).collect();
        for (n, file) in files.iter().enumerate() {
            maps.remember(file, &Arc::new(map(n as u64, 100, &[], 0)));
        }
        let of = |n: usize| maps.last(&files[n]).map(|map| map.from);
        assert_eq!((of(0), of(1), of(FILES_REMEMBERED)), (None, Some(1), Some(FILES_REMEMBERED as u64)));
        files[1].write(1, 0, b"x", &pool);
        assert_eq!((of(1), of(2)), (None, Some(2)));
        maps.remember(&files[2], &Arc::new(map(50, 100, &[], 0)));
        assert_eq!(of(2), Some(50));
    }
}
