//! Attributes: reading and changing them.
//!
//! Promise: a shrunk file keeps nothing of what was cut off, so that growing it again shows zeros; every change moves
//! the change time. Called by: `fuse`, tests. On failure: nothing was changed.

use super::node::{Node, State, is};
use super::storage::STORAGE_INO;
use super::storage::is_storage;
use super::xattr::known;
use super::{Atime, Caller, FileSystem, FsFault};
use crate::base::id::Ino;
use crate::base::limits::{FILE_BYTES_MAX, LINKS_MAX};
use crate::base::world::Time;
use crate::format::inode::Inode;
use crate::format::key;
use crate::vault::Admit;
use std::cell::LazyCell;
use std::sync::atomic::Ordering::SeqCst;

/// What `stat` shows of a directory, whatever it holds.
const DIRECTORY_BYTES: u64 = 4096;
/// Seconds after which a read moves even an access time that is newer than the last change.
const RELATIME_SECONDS: i64 = 24 * 3600;

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a special file.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that are not holes, in units of 512.
    pub blocks: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// Whether it changes only through this filesystem, so that the kernel may keep it (false for `/.storage`).
    pub cacheable: bool,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This moment.
    At(Time),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits (a type is ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Last change of attributes; the present unless told.
    pub ctime: Option<Time>,
    /// Whether the set-id bits of a file must go because of who asks; they also go with a change of owner.
    pub drop_set_id: bool,
    /// Whether they stay although the owner changes.
    pub keep_set_id: bool,
}

/// The mode after a write or change of owner by someone who may not keep the set-id bits.
pub(super) fn without_set_id(mode: u32) -> u32 {
    let mut mode = mode & !libc::S_ISUID;
    // Without group execution, S_ISGID means mandatory locking, not a privilege.
    if mode & libc::S_IXGRP != 0 {
        mode &= !libc::S_ISGID;
    }
    mode
}

impl FileSystem {
    pub(super) fn attr_of(&self, node: &Node) -> Result<Attr, FsFault> {
        let inode = node.inode();
        // Bytes written but not yet in the size are no one's to see; an empty file needs no look at the index.
        let blocks = match inode.mode & libc::S_IFMT {
            libc::S_IFREG => self.vault.allocated(node.file(&self.vault))?.div_ceil(512),
            libc::S_IFDIR => DIRECTORY_BYTES / 512,
            _ => 0,
        };
        let attr = self.attr_from(node.ino, &inode, blocks);
        // A stored count of 0 of a file that has a name is wrong: there is one at least.
        Ok(if attr.nlink == 0 && node.has_name() { Attr { nlink: 1, ..attr } } else { attr })
    }

    /// Attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsFault> {
        if let Some(attr) = self.storage_attr(ino) {
            return attr.map(|attr| Attr { ino: self.shown_ino(ino), ..attr });
        }
        self.attr_of(&*self.pin(ino)?)
    }

    /// Whether an inode is a file with a set-user-ID or set-group-ID bit.
    pub fn has_set_id(&self, ino: Ino) -> bool {
        let bits = |mode: u32| mode & libc::S_IFMT == libc::S_IFREG && mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        !is_storage(ino) && self.pin(ino).is_ok_and(|pin| bits(pin.inode().mode))
    }

    /// Changes attributes.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr, FsFault> {
        if ino == STORAGE_INO {
            // As a program does with the directory that it has there.
            return self.setattr(caller, self.make_own_storage_directory()?, set);
        }
        if let Some(attr) = self.storage_attr(ino) {
            self.storage_setattr(ino, set)?;
            return attr;
        }
        self.writable()?;
        let pin = self.pin(ino)?;
        if let Some(size) = set.size {
            match pin.inode().mode & libc::S_IFMT {
                libc::S_IFREG => {}
                libc::S_IFDIR => return Err(FsFault::IsDirectory),
                _ => return Err(FsFault::Invalid),
            }
            if size > FILE_BYTES_MAX {
                return Err(FsFault::FileTooLarge);
            }
            pin.file(&self.vault);
        }
        if set.mode.is_some() {
            self.load_xattrs(&pin)?;
        }
        {
            let mut state = pin.state();
            // A stamp costs two system calls, and the kernel sends SETATTR with all times before it syncs or removes a file.
            let now = LazyCell::new(|| self.now());
            if set.ctime.is_none() {
                // Here, since an operation that has begun keeps others from theirs.
                LazyCell::force(&now);
            }
            let at = |time| match time {
                SetTime::Now => *now,
                SetTime::At(time) => time,
            };
            let mut op = self.vault.begin();
            let State { inode, xattrs } = &mut *state;
            let mut after = *inode;
            after.uid = set.uid.unwrap_or(after.uid);
            after.gid = set.gid.unwrap_or(after.gid);
            after.size = set.size.unwrap_or(after.size);
            op.charge(ino, Some(inode), Some(&after), Admit::WithinLimits)?;
            if let Some(mode) = set.mode {
                inode.mode = (inode.mode & libc::S_IFMT) | (mode & 0o7777);
                known(xattrs).chmod(&mut op, ino, mode);
            }
            if set.uid.is_some() || set.gid.is_some() {
                inode.uid = set.uid.unwrap_or(inode.uid);
                inode.gid = set.gid.unwrap_or(inode.gid);
                // As Linux does, for root too; a mode given along with the owner is the caller's word.
                if set.mode.is_none() && !set.keep_set_id && !is(inode, libc::S_IFDIR) {
                    inode.mode = without_set_id(inode.mode);
                }
            }
            if let Some(size) = set.size {
                if size < inode.size {
                    op.punch(pin.file(&self.vault), size, u64::MAX);
                }
                inode.size = size;
                if set.mtime.is_none() {
                    inode.mtime = *now;
                }
                if caller.uid != 0 && set.mode.is_none() {
                    inode.mode = without_set_id(inode.mode);
                }
            }
            if set.drop_set_id && is(inode, libc::S_IFREG) {
                inode.mode = without_set_id(inode.mode);
            }
            inode.atime = set.atime.map_or(inode.atime, at);
            inode.mtime = set.mtime.map_or(inode.mtime, at);
            inode.ctime = set.ctime.unwrap_or_else(|| *now);
            op.put(key::inode(ino), inode.encode());
            op.commit();
        }
        self.attr_of(&pin)
    }

    pub(super) fn attr_from(&self, ino: Ino, inode: &Inode, blocks: u64) -> Attr {
        let shown = &self.options.shown;
        Attr {
            ino,
            mode: shown.mode(inode.mode),
            nlink: shown_links(inode),
            uid: shown.uid.unwrap_or(inode.uid),
            gid: shown.gid.unwrap_or(inode.gid),
            rdev: inode.rdev,
            size: if is(inode, libc::S_IFDIR) { DIRECTORY_BYTES } else { inode.size },
            blocks,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
            cacheable: true,
        }
    }

    /// Notes that content was read, as the mount's options say.
    pub(super) fn touch_atime(&self, node: &Node) {
        // A vault that has failed takes in nothing that it could never store.
        if self.options.atime == Atime::Never || self.options.read_only || self.vault.admit(0).is_err() {
            return;
        }
        // A stamp costs two system calls, and most reads move nothing.
        let about_now = self.vault.world().now();
        let mut state = node.state();
        let i = &mut state.inode;
        if is(i, libc::S_IFDIR) && !self.options.dir_atime {
            return;
        }
        let always = self.options.atime == Atime::Always;
        let stale = always
            || i.atime <= i.mtime
            || i.atime <= i.ctime
            || about_now.seconds - i.atime.seconds >= RELATIME_SECONDS;
        if !stale || node.gone.load(SeqCst) {
            return;
        }
        i.atime = self.now();
        let mut op = self.vault.begin();
        op.put(key::inode(node.ino), i.encode());
        op.commit();
    }
}

/// Of a directory with more subdirectories than a file may have names the number is not told, as on ext4: a program of 32
/// bits, whose count has 16, could not look at it at all.
fn shown_links(inode: &Inode) -> u32 {
    const NOT_TOLD: u32 = 1;
    if is(inode, libc::S_IFDIR) && inode.nlink > LINKS_MAX { NOT_TOLD } else { inode.nlink }
}

/// Owner and permissions to be shown instead of those that are stored, for everything there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// Permission bits that files lack; they have all others.
    pub file_mask: Option<u32>,
    /// Permission bits that directories lack; they have all others.
    pub dir_mask: Option<u32>,
}

impl Shown {
    fn mode(&self, mode: u32) -> u32 {
        let mask = match mode & libc::S_IFMT {
            libc::S_IFDIR => self.dir_mask,
            // Nobody looks at those of a link.
            libc::S_IFLNK => None,
            _ => self.file_mask,
        };
        // No set-id bits: they would lend what the owner shown may do, who is not the one stored.
        mask.map_or(mode, |mask| mode & libc::S_IFMT | 0o777 & !mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_says_all_of_what_is_shown() {
        let shown = Shown { file_mask: Some(0o137), dir_mask: Some(0o027), ..Shown::default() };
        assert_eq!(shown.mode(0o104_511), 0o100_640);
        assert_eq!(shown.mode(0o041_700), 0o040_750);
        assert_eq!(shown.mode(0o120_777), 0o120_777);
        assert_eq!(Shown::default().mode(0o104_511), 0o104_511);
    }

    #[test]
    fn a_directory_of_very_many_does_not_tell_how_many() {
        let now = Time::default();
        let of = |mode, nlink| {
            let (size, parent, tree) = (0, Ino(1), 0);
            let times = (now, now, now, now);
            let (atime, mtime, ctime, btime) = times;
            shown_links(&Inode { mode, nlink, uid: 0, gid: 0, rdev: 0, size, atime, mtime, ctime, btime, parent, tree })
        };
        assert_eq!((of(libc::S_IFDIR, 65_000), of(libc::S_IFDIR, 65_001), of(libc::S_IFDIR, 2)), (65_000, 1, 2));
        assert_eq!(of(libc::S_IFREG, 65_000), 65_000);
    }

    #[test]
    fn set_id_bits_go_except_for_mandatory_locking() {
        assert_eq!(without_set_id(0o106_755), 0o100_755);
        assert_eq!(without_set_id(0o106_745), 0o102_745);
    }
}
