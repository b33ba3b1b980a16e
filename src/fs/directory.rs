//! Listing directories, and what the filesystem has room for.
//!
//! Promise: a listing goes by cookies, which a name keeps, so entries made or removed meanwhile make no other entry
//! appear twice or be left out. Called by: `fuse`, tests. On failure: the entries given so far hold.

use super::attr::Attr;
use super::name::kind_of;
use super::storage::{self, FIRST_FILE, STORAGE_INO};
use super::{FileSystem, FsFault};
use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::{BLOCK_BYTES, NAME_BYTES_MAX};
use crate::format::inode::CookieEntry;
use crate::format::key;

/// Entries read from the index at a time.
const LIST_ENTRIES: usize = 128;
/// Offsets of `.` and `..`, and of `.storage` in a listing of the root that shows it. All offsets are small numbers, since
/// programs of 32 bits keep them in 31.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
const STORAGE_OFFSET: u64 = 3;
/// An entry's offset is its cookie and this; the first cookie of a vault is 3.
const COOKIE_OFFSET: u64 = 1;
/// Bytes of free room taken for one more inode, where no quota says how many there may be.
const BYTES_PER_INODE: u64 = 256;
/// Most inodes that are shown where no quota says how many there may be: as many as ext4 can have. A program of 32 bits gets
/// no answer from `statfs` when there are more.
const INODES_SHOWN_MAX: u64 = u32::MAX as u64;

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode.
    pub ino: Ino,
    /// File type bits of the mode, shifted down by 12 (`d_type`).
    pub kind: u8,
    /// Where to go on after this entry.
    pub offset: u64,
    /// The name.
    pub name: Vec<u8>,
    /// Attributes, where asked for.
    pub attr: Option<Attr>,
}

/// Room, as `statfs` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Unit of the blocks, in bytes.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
    /// Longest name.
    pub name_bytes_max: u32,
}

impl FileSystem {
    /// Lists a directory from `offset` (0: the start) until `take` says that it did not take the entry.
    pub fn readdir(&self, ino: Ino, offset: u64, mut take: impl FnMut(&DirEntry) -> bool) -> Result<(), FsFault> {
        self.list(ino, offset, false, &mut take)
    }

    /// The same with attributes; for each entry taken, `.` and `..` aside, the caller owes a `forget`.
    pub fn readdirplus(&self, ino: Ino, offset: u64, mut take: impl FnMut(&DirEntry) -> bool) -> Result<(), FsFault> {
        self.list(ino, offset, true, &mut take)
    }

    fn list(
        &self,
        ino: Ino,
        mut offset: u64,
        plus: bool,
        take: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), FsFault> {
        if ino == STORAGE_INO {
            return self.list_storage(offset, plus, take);
        }
        let dir = self.pin_dir(ino)?;
        if offset == 0 {
            self.touch_atime(&dir);
        }
        let inode = dir.inode();
        for (at, name, which) in [(DOT, b".".to_vec(), ino), (DOT_DOT, b"..".to_vec(), inode.parent)] {
            if offset < at {
                // The kernel looks at no attributes of these two but the type.
                let attr = plus.then(|| self.attr_from(which, &inode, 8));
                if !take(&DirEntry { ino: which, kind: kind_of(inode.mode), offset: at, name, attr }) {
                    return Ok(());
                }
                offset = at;
            }
        }
        if ino == ROOT_INO
            && self.options.show_storage
            && offset < STORAGE_OFFSET
            && let Some(name) = &self.storage.name
            // Where a program has a directory of that name, it was listed above.
            && self.find(ROOT_INO, name)?.is_none()
        {
            let entry = DirEntry {
                ino: STORAGE_INO,
                kind: kind_of(libc::S_IFDIR),
                offset: STORAGE_OFFSET,
                name: name.clone(),
                attr: self.storage_attr(STORAGE_INO).transpose()?.filter(|_| plus),
            };
            if !take(&entry) {
                return Ok(());
            }
            offset = STORAGE_OFFSET;
        }
        let prefix = key::prefix(key::COOKIE, ino.0);
        loop {
            let next_cookie = (offset + 1).saturating_sub(COOKIE_OFFSET);
            let entries = self.vault.scan(&prefix, &key::cookie(ino, next_cookie), LIST_ENTRIES)?;
            let last = entries.len() < LIST_ENTRIES;
            for (stored_key, value) in entries {
                let at = key::tail_u64(key::split(&stored_key)?.2)?.saturating_add(COOKIE_OFFSET);
                let CookieEntry { ino, kind, name } = CookieEntry::decode(&value)?;
                if !self.give(DirEntry { ino, kind, offset: at, name, attr: None }, plus, take)? {
                    return Ok(());
                }
                offset = at;
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Gives one entry, with attributes if wanted; false when it was not taken.
    fn give(&self, mut entry: DirEntry, plus: bool, take: &mut dyn FnMut(&DirEntry) -> bool) -> Result<bool, FsFault> {
        if !plus {
            return Ok(take(&entry));
        }
        let pin = match self.pin(entry.ino) {
            Ok(pin) => pin,
            // Removed since the names were read.
            Err(FsFault::NoEntry) => return Ok(true),
            Err(fault) => return Err(fault),
        };
        entry.attr = Some(self.attr_of(&pin)?);
        // Before the reply can reach the kernel, and with it a forget.
        pin.keep();
        let taken = take(&entry);
        if !taken {
            self.forget(entry.ino, 1);
        }
        Ok(taken)
    }

    fn list_storage(&self, offset: u64, plus: bool, take: &mut dyn FnMut(&DirEntry) -> bool) -> Result<(), FsFault> {
        let dir = kind_of(libc::S_IFDIR);
        let own = self.storage_attr(STORAGE_INO).transpose()?.filter(|_| plus);
        for (at, name, ino) in [(DOT, b".".to_vec(), STORAGE_INO), (DOT_DOT, b"..".to_vec(), ROOT_INO)] {
            if offset < at && !take(&DirEntry { ino, kind: dir, offset: at, name, attr: own }) {
                return Ok(());
            }
        }
        for (i, name) in storage::FILES.iter().enumerate() {
            let at = FIRST_FILE + i as u64;
            if offset >= at {
                continue;
            }
            let mut entry = DirEntry {
                ino: Ino(STORAGE_INO.0 + at),
                kind: kind_of(libc::S_IFREG),
                offset: at,
                name: name.as_bytes().to_vec(),
                attr: None,
            };
            if plus {
                let attr = self.lookup(STORAGE_INO, name.as_bytes())?;
                (entry.ino, entry.attr) = (attr.ino, Some(attr));
            }
            if !take(&entry) {
                if plus {
                    self.forget(entry.ino, 1);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// The same for an inode: of the limits of the trees around it, and the vault's, that which leaves least counts.
    pub fn statfs_at(&self, ino: Ino) -> Result<Space, FsFault> {
        let mut space = self.statfs()?;
        if !self.vault.counts_quotas() || self.storage_attr(ino).is_some() {
            return Ok(space);
        }
        let block = u128::from(space.block_bytes);
        for tree in self.vault.trees_around(self.pin(ino)?.inode().tree) {
            if let Some(limit) = tree.limits.bytes {
                let left = u128::from(limit).saturating_sub(tree.used.bytes) / block;
                if left <= u128::from(space.blocks_free) {
                    space.blocks_free = left as u64;
                    let all = u128::from(limit).max(tree.used.bytes).div_ceil(block);
                    space.blocks = u64::try_from(all).unwrap_or(u64::MAX);
                }
            }
            if let Some(limit) = tree.limits.inodes {
                let left = limit.saturating_sub(tree.used.inodes);
                if left <= space.inodes_free {
                    (space.inodes_free, space.inodes) = (left, limit.max(tree.used.inodes));
                }
            }
        }
        Ok(space)
    }

    /// How much there is and how much is left: the vault's quotas where it has them, else the backing filesystem's room.
    pub fn statfs(&self) -> Result<Space, FsFault> {
        let usage = self.vault.usage();
        let block = BLOCK_BYTES as u64;
        // Neither the backing filesystem nor a quota says how much there is: zeros, as that filesystem answers itself, which `df`
        // shows as unknown.
        if usage.backing.is_none() && usage.quota_bytes.is_none() {
            let (inodes, inodes_free) =
                usage.quota_inodes.map_or((0, 0), |quota| (quota, quota.saturating_sub(usage.inodes)));
            return Ok(Space {
                block_bytes: BLOCK_BYTES as u32,
                blocks: 0,
                blocks_free: 0,
                inodes,
                inodes_free,
                name_bytes_max: NAME_BYTES_MAX as u32,
            });
        }
        let room = usage.backing.map_or(u64::MAX, |space| space.free_bytes);
        let free = usage.quota_bytes.map_or(room, |quota| quota.saturating_sub(usage.bytes).min(room));
        let total = usage.quota_bytes.unwrap_or(usage.bytes + free).max(usage.bytes);
        let inodes_free = match usage.quota_inodes {
            Some(quota) => quota.saturating_sub(usage.inodes),
            // Where only the quota says how much there is, it stands for the room.
            None => {
                let room = usage.backing.map_or(free, |space| space.free_bytes);
                (room / BYTES_PER_INODE).min(INODES_SHOWN_MAX.saturating_sub(usage.inodes))
            }
        };
        Ok(Space {
            block_bytes: BLOCK_BYTES as u32,
            blocks: total.div_ceil(block),
            blocks_free: free / block,
            inodes: usage.quota_inodes.unwrap_or(usage.inodes + inodes_free).max(usage.inodes),
            inodes_free,
            name_bytes_max: NAME_BYTES_MAX as u32,
        })
    }
}
