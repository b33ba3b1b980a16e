//! Names: look them up, make them, take them away.
//!
//! Promise: a name and the inode it leads to appear and disappear together; a look-up beside a rename over the name
//! finds the old or the new inode, never neither. Called by: `fuse`, tests. On failure: nothing was changed.

use super::acl::{self, Which};
use super::attr::Attr;
use super::node::{Pin, State, is};
use super::storage::is_storage;
use super::xattr::{Xattrs, known};
use super::{Caller, FileSystem, FsFault};
use crate::base::id::Ino;
use crate::base::limits::{LINKS_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX};
use crate::base::lock::Held;
use crate::base::world::Time;
use crate::format::inode::{CookieEntry, Inode, NameEntry};
use crate::format::key;
use crate::vault::{Admit, Op};
use std::sync::atomic::Ordering::SeqCst;

/// How often a name that leads to no inode is looked up again before it is called damage: the inode may just have been
/// replaced, and then the name leads elsewhere.
const RESOLVE_TRIES: usize = 4;

/// The file type bits of a mode, as names carry them.
pub(super) fn kind_of(mode: u32) -> u8 {
    ((mode & libc::S_IFMT) >> 12) as u8
}

/// Refuses what cannot be a name.
pub(super) fn check_name(name: &[u8]) -> Result<(), FsFault> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsFault::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(FsFault::Invalid);
    }
    Ok(())
}

impl FileSystem {
    /// What a name in a directory leads to.
    pub(super) fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<NameEntry>, FsFault> {
        match self.vault.get(&key::name(dir, name))? {
            Some(value) => Ok(Some(NameEntry::decode(&value)?)),
            None => Ok(None),
        }
    }

    /// The same, and holds the inode.
    pub(super) fn resolve(&self, dir: Ino, name: &[u8]) -> Result<Option<(NameEntry, Pin<'_>)>, FsFault> {
        for _ in 0..RESOLVE_TRIES {
            let Some(entry) = self.find(dir, name)? else { return Ok(None) };
            match self.pin(entry.ino) {
                // The state's lock waits for an unlink that is just at work; then the name is gone or leads elsewhere.
                Ok(pin) if pin.has_name() => return Ok(Some((entry, pin))),
                Ok(_) | Err(FsFault::NoEntry) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(FsFault::index("a name leads to no inode"))
    }

    pub(super) fn pin_dir(&self, ino: Ino) -> Result<Pin<'_>, FsFault> {
        let pin = self.pin(ino)?;
        if is(&pin.inode(), libc::S_IFDIR) { Ok(pin) } else { Err(FsFault::NotDirectory) }
    }

    /// Looks a name up; the caller owes a `forget` for it.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsFault> {
        self.lookup_by(0, parent, name)
    }

    /// Looks a name up for a process; the caller owes a `forget` for it.
    pub fn lookup_by(&self, process: u32, parent: Ino, name: &[u8]) -> Result<Attr, FsFault> {
        if let Some(attr) = self.storage_lookup(process, parent, name) {
            return attr;
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(FsFault::NameTooLong);
        }
        let pin = match name {
            // By these a file is found again whose handle someone kept; of a file only the first is asked for.
            b"." => Some(self.pin(parent)?).filter(|pin| pin.has_name()).ok_or(FsFault::NoEntry)?,
            b".." => self.pin(self.pin_dir(parent)?.inode().parent)?,
            _ => self.resolve(self.pin_dir(parent)?.ino, name)?.ok_or(FsFault::NoEntry)?.1,
        };
        let attr = self.attr_of(&pin)?;
        pin.keep();
        Ok(attr)
    }

    /// Where a symbolic link leads.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsFault> {
        if is_storage(ino) {
            return Err(FsFault::Invalid);
        }
        let pin = self.pin(ino)?;
        if !is(&pin.inode(), libc::S_IFLNK) {
            return Err(FsFault::Invalid);
        }
        self.vault.get(&key::target(ino))?.ok_or(FsFault::index("a link has no target"))
    }

    /// Makes a regular file or a special one; the caller owes a `forget` for it.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr, FsFault> {
        let mode = match mode & libc::S_IFMT {
            0 => mode | libc::S_IFREG,
            libc::S_IFREG | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK => mode,
            _ => return Err(FsFault::Invalid),
        };
        let rdev = if matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) { rdev } else { 0 };
        let parent = self.directory_to_change(parent, name, true)?;
        self.make(caller, parent, name, mode, rdev, None)
    }

    /// Makes a directory; the caller owes a `forget` for it.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, FsFault> {
        let parent = self.directory_to_change(parent, name, true)?;
        self.make(caller, parent, name, libc::S_IFDIR | (mode & 0o7777), 0, None)
    }

    /// Makes a symbolic link; the caller owes a `forget` for it.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr, FsFault> {
        if target.is_empty() {
            return Err(FsFault::NoEntry);
        }
        if target.len() > SYMLINK_BYTES_MAX {
            return Err(FsFault::NameTooLong);
        }
        let parent = self.directory_to_change(parent, name, true)?;
        self.make(caller, parent, name, libc::S_IFLNK | 0o777, 0, Some(target))
    }

    /// Makes an inode of any type and its name, which is not one of ours; the caller owes a `forget` for it.
    pub(super) fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
        target: Option<&[u8]>,
    ) -> Result<Attr, FsFault> {
        self.writable()?;
        let dir = self.pin_dir(parent)?;
        self.load_xattrs(&dir)?;
        let before = self.changes.load(SeqCst);
        let taken = self.find(parent, name)?.is_some();
        if !taken {
            // With no lock held, for it may wait: with one, room is only asked for.
            self.vault.make_room(0)?;
        }

        let namespace = self.namespace.held();
        let taken = if self.changes.load(SeqCst) == before { taken } else { self.find(parent, name)?.is_some() };
        if taken {
            return Err(FsFault::Exists);
        }
        let (above, given, compression) = {
            let mut state = dir.state();
            let State { inode, xattrs } = &mut *state;
            let default = known(xattrs).given_on().filter(|_| self.options.acl);
            let given = acl::inherit(default, mode, caller.umask);
            (*inode, given, known(xattrs).compression())
        };
        if !dir.has_name() {
            return Err(FsFault::NoEntry);
        }
        self.vault.admit(1)?;
        let mode = given.mode;
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        let set_gid = above.mode & libc::S_ISGID != 0;
        let (ino, cookie) = (self.vault.next_ino(), self.vault.next_cookie());
        let mut inode = Inode {
            mode: if set_gid && is_dir { mode | libc::S_ISGID } else { mode },
            uid: caller.uid,
            gid: if set_gid { above.gid } else { caller.gid },
            nlink: if is_dir { 2 } else { 1 },
            rdev,
            size: target.map_or(0, |t| t.len() as u64),
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: Time::default(),
            parent: if is_dir { parent } else { Ino(0) },
            tree: above.tree,
        };
        let pin = self.pin_new(ino, inode);
        {
            let mut dir_state = dir.state();
            let mut state = pin.state();
            let now = self.now();
            (inode.atime, inode.mtime, inode.ctime, inode.btime) = (now, now, now, now);
            state.inode = inode;
            let mut op = self.vault.begin();
            op.charge(ino, None, Some(&inode), Admit::WithinLimits)?;
            put_name(&mut op, parent, name, NameEntry { ino, cookie, kind: kind_of(mode) });
            let xattrs = state.xattrs.get_or_insert_with(Xattrs::default);
            xattrs.set_acl(&mut op, ino, Which::Access, given.access);
            xattrs.set_acl(&mut op, ino, Which::Default, given.default);
            // What has contents, or will have such in it; of links and devices Linux allows no attributes of users.
            let has_contents = is_dir || mode & libc::S_IFMT == libc::S_IFREG;
            if let Some(how) = compression.filter(|_| has_contents) {
                xattrs.inherit_compression(&mut op, ino, how);
            }
            Self::store(&mut op, ino, &state);
            if let Some(target) = target {
                op.put(key::target(ino), target.to_vec());
            }
            op.inodes(1);
            let d = &mut dir_state.inode;
            d.size = d.size.saturating_add(1);
            d.nlink = d.nlink.saturating_add(u32::from(is_dir));
            (d.mtime, d.ctime) = (now, now);
            Self::store(&mut op, parent, &dir_state);
            op.commit();
        }
        self.changes.fetch_add(1, SeqCst);
        drop(namespace);
        pin.keep();
        Ok(self.attr_from(ino, &inode, if is_dir { 8 } else { 0 }))
    }

    /// Gives an inode one more name; the caller owes a `forget` for it.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsFault> {
        if is_storage(ino) {
            return Err(FsFault::NotPermitted);
        }
        let parent = self.directory_to_change(parent, name, true)?;
        self.writable()?;
        let dir = self.pin_dir(parent)?;
        let pin = self.pin(ino)?;
        self.count_unknown_links(&pin)?;
        self.find(parent, name)?;
        {
            let _namespace = self.namespace.held();
            if self.find(parent, name)?.is_some() {
                return Err(FsFault::Exists);
            }
            let inode = pin.inode();
            if is(&inode, libc::S_IFDIR) {
                return Err(FsFault::NotPermitted);
            }
            if !pin.has_name() || !dir.has_name() {
                return Err(FsFault::NoEntry);
            }
            if inode.nlink >= LINKS_MAX {
                return Err(FsFault::TooManyLinks);
            }
            self.may_come(ino, &inode, &dir.inode())?;
            self.vault.admit(0)?;
            let cookie = self.vault.next_cookie();
            let mut dir_state = dir.state();
            let mut state = pin.state();
            let now = self.now();
            let mut op = self.vault.begin();
            put_name(&mut op, parent, name, NameEntry { ino, cookie, kind: kind_of(inode.mode) });
            state.inode.nlink += 1;
            state.inode.ctime = now;
            Self::store(&mut op, ino, &state);
            let d = &mut dir_state.inode;
            d.size = d.size.saturating_add(1);
            (d.mtime, d.ctime) = (now, now);
            Self::store(&mut op, parent, &dir_state);
            op.commit();
            self.changes.fetch_add(1, SeqCst);
        }
        let attr = self.attr_of(&pin)?;
        pin.keep();
        Ok(attr)
    }

    /// Takes a name away from what is not a directory.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsFault> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsFault> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: Ino, name: &[u8], want_dir: bool) -> Result<(), FsFault> {
        let parent = self.directory_to_change(parent, name, false)?;
        self.writable()?;
        let dir = self.pin_dir(parent)?;
        loop {
            let before = self.changes.load(SeqCst);
            let (entry, pin) = self.resolve(parent, name)?.ok_or(FsFault::NoEntry)?;
            self.prepare_purge(&pin)?;
            let mut has_entries = want_dir && self.has_entries(pin.ino)?;

            let _namespace = self.namespace.held();
            if self.changes.load(SeqCst) != before {
                if self.find(parent, name)? != Some(entry) {
                    continue;
                }
                has_entries = want_dir && self.has_entries(pin.ino)?;
            }
            let inode = pin.inode();
            match (is(&inode, libc::S_IFDIR), want_dir) {
                (true, false) => return Err(FsFault::IsDirectory),
                (false, true) => return Err(FsFault::NotDirectory),
                (true, true) if has_entries => return Err(FsFault::NotEmpty),
                (true, true) | (false, false) => {}
            }
            let mut dir_state = dir.state();
            let mut state = pin.state();
            let now = self.now();
            let mut op = self.vault.begin();
            op.delete(key::name(parent, name));
            op.delete(key::cookie(parent, entry.cookie));
            state.inode.ctime = now;
            self.drop_name(&mut op, &pin, &mut state);
            let d = &mut dir_state.inode;
            d.size = d.size.saturating_sub(1);
            // The count comes from the disk: a wrong one is for `check` to find, and never below none.
            d.nlink = d.nlink.saturating_sub(u32::from(want_dir));
            (d.mtime, d.ctime) = (now, now);
            Self::store(&mut op, parent, &dir_state);
            op.commit();
            self.changes.fetch_add(1, SeqCst);
            return Ok(());
        }
    }
}

/// Writes a name and its place in the directory's order.
pub(super) fn put_name(op: &mut Op<'_>, parent: Ino, name: &[u8], entry: NameEntry) {
    op.put(key::name(parent, name), entry.encode());
    let listed = CookieEntry { ino: entry.ino, kind: entry.kind, name: name.to_vec() };
    op.put(key::cookie(parent, entry.cookie), listed.encode());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_else() {
        assert!(check_name(&[b'a'; 255]).is_ok());
        assert_eq!(check_name(&[b'a'; 256]).map_err(|e| e.errno()), Err(libc::ENAMETOOLONG));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(check_name(bad).map_err(|e| e.errno()), Err(libc::EINVAL));
        }
    }
}
