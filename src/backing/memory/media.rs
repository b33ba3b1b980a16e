//! What a power cut may leave: what was synced, and of every change since then any part that the given fate says.
//!
//! Promise: as cruel as POSIX allows, and no more. A change of a file is at rest once `sync_data` of that file returned, one
//! of a directory once `sync_dir` returned; a file's sync does not make its name durable, a directory's not what its files
//! hold. Until then each change is lost, kept or torn by itself, in any subset, so in any order: bytes without the
//! growth of the file that was to show them, growth without the bytes (zeros), a hole or room taken in advance, a name made,
//! removed or renamed. A sector of 512 bytes is never mixed: it is as one of the writes left it, or as it was synced. A rename is
//! one step. A sync that fails loses some of what it was to make durable for good: the page cache goes on showing it, no later
//! sync writes it, and who reads past the cache does not see it.
//! Called by: `memory` for each call, `cuts` for each cut. Cannot fail.

use super::blocks::{ALL_SECTORS, Blocks, Patch};
use crate::base::limits::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A file, whatever it is called.
pub type FileId = u64;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir,
    /// A file.
    File(FileId),
}

/// A call that changes the disk.
#[derive(Debug, Clone)]
pub enum Change {
    /// Bytes, and the length that they need.
    Write { file: FileId, patches: Arc<[Patch]>, end: u64 },
    /// Another length.
    SetLen { file: FileId, len: u64 },
    /// Room in advance.
    Preallocate { file: FileId, len: u64 },
    /// Whole blocks given back.
    Punch { file: FileId, from_block: u64, to_block: u64 },
    /// Everything written to the file is at rest.
    SyncData { file: FileId },
    /// Some of it reached the disk, as coins say; the rest never will, though the page cache shows it.
    SyncFailed { file: FileId, coins: u64 },
    /// Names that stand for something else now, all at once; at rest when the directories are synced.
    Names { dirs: BTreeSet<String>, now: Vec<(String, Option<Node>)> },
    /// The names in the directory are at rest.
    SyncDir { path: String },
    /// A bit that changed by itself, at rest.
    Flip { file: FileId, byte: u64, mask: u8 },
    /// Nothing: a sync that lied, a call that failed.
    Nothing,
}

/// What becomes of a change that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// As if it had not been made.
    Lost,
    /// It is there.
    Kept,
    /// Pieces of it are there: each as a coin thrown with `coins` says. What cannot be torn is lost or kept by such a coin, and so
    /// is the growth that a write needs.
    Torn {
        /// Size of a piece: a sector of 512, or a block of 4096.
        unit_bytes: usize,
        /// What the coins are thrown with.
        coins: u64,
    },
}

impl Fate {
    fn piece(self, number: u64) -> bool {
        match self {
            Fate::Lost => false,
            Fate::Kept => true,
            Fate::Torn { coins, .. } => mix(coins ^ mix(number)) & 1 == 1,
        }
    }
    /// The sectors of a block that are kept.
    fn sectors(self, block: u64) -> u8 {
        match self {
            Fate::Torn { unit_bytes, .. } if unit_bytes < BLOCK_BYTES => {
                (0..8).filter(|s| self.piece(block * 8 + s)).fold(0, |mask, s| mask | 1 << s)
            }
            _ if self.piece(block * 8) => ALL_SECTORS,
            _ => 0,
        }
    }
    fn whole(self) -> bool {
        self.piece(u64::MAX)
    }
}

/// A change whose fate is asked for.
#[derive(Debug)]
pub struct Unsynced<'a> {
    /// Its number among the calls.
    pub call: usize,
    /// What it touches.
    pub path: &'a str,
    /// Whether it is a change of names.
    pub of_names: bool,
    /// Whether it can be torn.
    pub is_write: bool,
}

/// The end of splitmix64 (Steele and others, 2014): spreads a number over all bits.
pub fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug, Clone)]
struct Pending {
    call: usize,
    change: Change,
}

#[derive(Debug, Clone, Default)]
struct MediaFile {
    durable: Blocks,
    pending: Vec<Pending>,
}

#[derive(Debug, Clone)]
struct PendingNames {
    call: usize,
    unsynced_dirs: BTreeSet<String>,
    now: Vec<(String, Option<Node>)>,
}

/// The disk as it is at rest, and what is on its way there.
#[derive(Debug, Clone, Default)]
pub struct Media {
    files: BTreeMap<FileId, MediaFile>,
    names: BTreeMap<String, Node>,
    pending: Vec<PendingNames>,
}

/// The directory that a path lies in.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Media {
    /// A disk on which all of this is at rest.
    pub fn at_rest(names: BTreeMap<String, Node>, files: BTreeMap<FileId, Blocks>) -> Media {
        let files = files.into_iter().map(|(id, durable)| (id, MediaFile { durable, pending: Vec::new() })).collect();
        Media { files, names, pending: Vec::new() }
    }

    /// One more call was made.
    pub fn advance(&mut self, call: usize, change: &Change) {
        match change {
            Change::Write { file, .. }
            | Change::SetLen { file, .. }
            | Change::Preallocate { file, .. }
            | Change::Punch { file, .. } => {
                let pending = Pending { call, change: change.clone() };
                self.files.entry(*file).or_default().pending.push(pending);
            }
            Change::SyncData { file } => {
                if let Some(file) = self.files.get_mut(file) {
                    let pending = std::mem::take(&mut file.pending);
                    pending.iter().for_each(|p| apply(&mut file.durable, &p.change, Fate::Kept));
                }
            }
            Change::SyncFailed { file, coins } => {
                if let Some(file) = self.files.get_mut(file) {
                    file.pending.retain(|p| mix(coins ^ p.call as u64) & 1 == 0);
                }
            }
            Change::Names { dirs, now } => {
                self.pending.push(PendingNames { call, unsynced_dirs: dirs.clone(), now: now.clone() });
            }
            Change::SyncDir { path } => self.sync_dir(path),
            Change::Flip { file, byte, mask } => {
                if let Some(file) = self.files.get_mut(file) {
                    file.durable.flip(*byte, *mask);
                }
            }
            Change::Nothing => {}
        }
    }

    fn sync_dir(&mut self, path: &str) {
        let mut unnamed = false;
        for mut p in std::mem::take(&mut self.pending) {
            p.unsynced_dirs.remove(path);
            if p.unsynced_dirs.is_empty() {
                unnamed |= assign(&mut self.names, &p.now);
            } else {
                self.pending.push(p);
            }
        }
        if unnamed {
            let of = |node: &Node| match node {
                Node::File(id) => Some(*id),
                Node::Dir => None,
            };
            let coming = self.pending.iter().flat_map(|p| p.now.iter().filter_map(|(_, node)| node.as_ref()));
            let named: BTreeSet<FileId> = self.names.values().chain(coming).filter_map(of).collect();
            self.files.retain(|id, _| named.contains(id));
        }
    }

    /// What a power cut now leaves: names, and the bytes of the files that have one.
    pub fn after(
        &self,
        fate: &mut dyn FnMut(&Unsynced<'_>) -> Fate,
    ) -> (BTreeMap<String, Node>, BTreeMap<FileId, Blocks>) {
        let mut names = self.names.clone();
        for p in &self.pending {
            let path = p.now.last().map_or("", |(path, _)| path);
            if fate(&Unsynced { call: p.call, path, of_names: true, is_write: false }).whole() {
                assign(&mut names, &p.now);
            }
        }
        let dirs: BTreeSet<String> = names.iter().filter(|(_, n)| **n == Node::Dir).map(|(p, _)| p.clone()).collect();
        names.retain(|path, _| parent(path).is_empty() || dirs.contains(parent(path)));
        let mut files = BTreeMap::new();
        for (path, node) in &names {
            if let Node::File(id) = node {
                files.entry(*id).or_insert_with(|| self.file_after(*id, path, fate));
            }
        }
        (names, files)
    }

    /// What a file holds on the device, past the page cache: all that is at rest or on its way.
    pub fn on_device(&self, id: FileId) -> Blocks {
        self.file_after(id, "", &mut |_| Fate::Kept)
    }

    fn file_after(&self, id: FileId, path: &str, fate: &mut dyn FnMut(&Unsynced<'_>) -> Fate) -> Blocks {
        let Some(file) = self.files.get(&id) else { return Blocks::default() };
        let mut blocks = file.durable.clone();
        for p in &file.pending {
            let is_write = matches!(p.change, Change::Write { .. });
            let fate = fate(&Unsynced { call: p.call, path, of_names: false, is_write });
            apply(&mut blocks, &p.change, fate);
        }
        // Bytes whose growth was lost are not seen.
        blocks.set_len(blocks.len());
        blocks
    }
}

/// Gives names another meaning; tells whether a file may have lost its last one.
fn assign(names: &mut BTreeMap<String, Node>, now: &[(String, Option<Node>)]) -> bool {
    let mut unnamed = false;
    for (path, node) in now {
        let before = match node {
            Some(node) => names.insert(path.clone(), *node),
            None => names.remove(path),
        };
        unnamed |= before.is_some();
    }
    unnamed
}

fn apply(blocks: &mut Blocks, change: &Change, fate: Fate) {
    match change {
        Change::Write { patches, end, .. } => {
            patches.iter().for_each(|patch| blocks.lay(patch, fate.sectors(patch.block)));
            if fate.whole() {
                blocks.grow(*end);
            }
        }
        Change::Punch { from_block, to_block, .. } => match fate {
            Fate::Torn { .. } => {
                (*from_block..*to_block).filter(|b| fate.piece(b * 8)).for_each(|b| blocks.punch(b, b + 1));
            }
            Fate::Kept => blocks.punch(*from_block, *to_block),
            Fate::Lost => {}
        },
        Change::SetLen { len, .. } if fate.whole() => blocks.set_len(*len),
        Change::Preallocate { len, .. } if fate.whole() => blocks.preallocate(*len),
        _ => {}
    }
}
