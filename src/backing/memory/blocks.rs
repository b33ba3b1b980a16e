//! A file's bytes as sparse copy-on-write blocks: a clone costs two counters, however long the file.
//!
//! Promise: what is not stored reads as zeros; `put` never changes the length, so that a power cut may keep the bytes of a
//! write and lose the growth. Called by: the rest of `memory`. Cannot fail.

use crate::base::limits::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Smallest unit that a disk writes whole.
pub const SECTOR_BYTES: usize = 512;
/// Sectors of a block, a bit each.
pub const ALL_SECTORS: u8 = 0xff;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// One block.
pub type Block = [u8; BLOCK_BYTES];
/// One block's bytes; `None` for zeros.
pub type Stored = Option<Arc<Block>>;

/// What a write leaves in one block.
#[derive(Debug, Clone)]
pub struct Patch {
    /// The block's number in its file.
    pub block: u64,
    /// The sectors that were written.
    pub sectors: u8,
    /// The block after the write: what the page cache holds is what goes to the disk, earlier writes to the same
    /// sector included.
    pub after: Stored,
}

/// The bytes.
#[derive(Debug, Clone, Default)]
pub struct Blocks {
    len: u64,
    map: Arc<BTreeMap<u64, Arc<Block>>>,
    /// Blocks that take room, a bit each: written ones and those taken in advance.
    held: Arc<Vec<u64>>,
}

impl Blocks {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from `offset`; fewer bytes only at the end.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let n = buf.len().min(usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX));
        for (at, within, len) in pieces(offset, n as u64) {
            let out = &mut buf[(at * BLOCK + within as u64 - offset) as usize..][..len];
            match self.map.get(&at) {
                Some(block) => out.copy_from_slice(&block[within..within + len]),
                None => out.fill(0),
            }
        }
        n
    }

    /// Stores bytes and gives what that left in each block; the length stays.
    pub fn put(&mut self, offset: u64, data: &[u8]) -> Vec<Patch> {
        let mut patches = Vec::new();
        for (block, within, len) in pieces(offset, data.len() as u64) {
            let from = (block * BLOCK + within as u64 - offset) as usize;
            let new = &data[from..from + len];
            if len == BLOCK_BYTES && is_zero(new) {
                self.set(block, None);
            } else {
                let stored = Arc::make_mut(&mut self.map).entry(block).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
                Arc::make_mut(stored)[within..within + len].copy_from_slice(new);
            }
            self.hold(block, block + 1);
            let (first, last) = (within / SECTOR_BYTES, (within + len - 1) / SECTOR_BYTES);
            let sectors = (ALL_SECTORS << first) & (ALL_SECTORS >> (7 - last));
            patches.push(Patch { block, sectors, after: self.map.get(&block).cloned() });
        }
        patches
    }

    /// Stores the given sectors of a patch.
    pub fn lay(&mut self, patch: &Patch, sectors: u8) {
        match sectors & patch.sectors {
            0 => {}
            ALL_SECTORS => {
                self.set(patch.block, patch.after.clone());
                self.hold(patch.block, patch.block + 1);
            }
            some => {
                let map = Arc::make_mut(&mut self.map);
                let stored = Arc::make_mut(map.entry(patch.block).or_insert_with(|| Arc::new([0; BLOCK_BYTES])));
                for sector in (0..8).filter(|s| some & (1 << s) != 0) {
                    let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                    match &patch.after {
                        Some(after) => stored[range.clone()].copy_from_slice(&after[range]),
                        None => stored[range].fill(0),
                    }
                }
                self.hold(patch.block, patch.block + 1);
            }
        }
    }

    /// Makes the file at least so long.
    pub fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Cuts or grows the file; what lay behind the end is gone.
    pub fn set_len(&mut self, len: u64) {
        let (first_gone, within) = (len.div_ceil(BLOCK), (len % BLOCK) as usize);
        if self.map.last_key_value().is_some_and(|(last, _)| *last >= first_gone) {
            Arc::make_mut(&mut self.map).split_off(&first_gone);
        }
        if within > 0
            && self.map.get(&(len / BLOCK)).is_some_and(|b| !is_zero(&b[within..]))
            && let Some(block) = Arc::make_mut(&mut self.map).get_mut(&(len / BLOCK))
        {
            Arc::make_mut(block)[within..].fill(0);
        }
        if self.held.len() as u64 * 64 > first_gone {
            self.release(first_gone, self.held.len() as u64 * 64);
        }
        self.len = len;
    }

    /// Makes the file so long, if it is shorter, and takes room for what it grows by.
    pub fn preallocate(&mut self, len: u64) {
        if self.len < len {
            self.hold(self.len / BLOCK, len.div_ceil(BLOCK));
            self.grow(len);
        }
    }

    /// Makes whole blocks zeros and gives their room back.
    pub fn punch(&mut self, from_block: u64, to_block: u64) {
        if self.map.range(from_block..to_block).next().is_some() {
            Arc::make_mut(&mut self.map).retain(|n, _| !(from_block..to_block).contains(n));
        }
        self.release(from_block, to_block);
    }

    /// Flips one bit.
    pub fn flip(&mut self, byte: u64, mask: u8) {
        let block = Arc::make_mut(&mut self.map).entry(byte / BLOCK).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
        Arc::make_mut(block)[(byte % BLOCK) as usize] ^= mask;
    }

    /// Room taken.
    pub fn held_bytes(&self) -> u64 {
        self.held.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * BLOCK
    }

    /// Room that holding these blocks would take beside what is taken.
    pub fn missing_bytes(&self, from_block: u64, to_block: u64) -> u64 {
        let held = |n: u64| self.held.get((n / 64) as usize).is_some_and(|word| word & (1 << (n % 64)) != 0);
        (from_block..to_block).filter(|n| !held(*n)).count() as u64 * BLOCK
    }

    fn set(&mut self, block: u64, to: Stored) {
        match to {
            Some(bytes) => {
                Arc::make_mut(&mut self.map).insert(block, bytes);
            }
            None if self.map.contains_key(&block) => {
                Arc::make_mut(&mut self.map).remove(&block);
            }
            None => {}
        }
    }

    fn hold(&mut self, from: u64, to: u64) {
        if self.missing_bytes(from, to) > 0 {
            let held = Arc::make_mut(&mut self.held);
            held.resize(held.len().max(to.div_ceil(64) as usize), 0);
            (from..to).for_each(|n| held[(n / 64) as usize] |= 1 << (n % 64));
        }
    }

    fn release(&mut self, from: u64, to: u64) {
        let to = to.min(self.held.len() as u64 * 64);
        if from < to {
            let held = Arc::make_mut(&mut self.held);
            (from..to).for_each(|n| held[(n / 64) as usize] &= !(1 << (n % 64)));
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// A range in pieces that lie in one block each: its number, the offset within, the length.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let (end, mut at) = (offset + len, offset);
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (block, within) = (at / BLOCK, at % BLOCK);
            let len = (BLOCK - within).min(end - at);
            at += len;
            (block, within as usize, len as usize)
        })
    })
}
