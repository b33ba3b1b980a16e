//! Rename: move, replace, exchange.
//!
//! Promise: the new name leads to the old inode or to the new one at every moment, also after a crash; a directory never
//! becomes its own ancestor. A replaced name keeps its place in the directory's order, and so does a name changed
//! within a directory, so that a listing at work sees neither twice. What is left of a name for an overlay (a whiteout)
//! comes into being with the move. Called by: `fuse`, tests.
//! On failure: nothing was changed.

use super::name::{kind_of, put_name};
use super::node::{Pin, is};
use super::{Caller, FileSystem, FsFault};
use crate::base::id::{Ino, ROOT_INO};
use crate::base::lock::Held;
use crate::base::world::Time;
use crate::format::inode::{Inode, NameEntry};
use crate::format::key;
use crate::vault::Admit;
use std::sync::atomic::Ordering::SeqCst;

/// What becomes of an existing new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameHow {
    /// It is replaced.
    Replace,
    /// It is an error.
    NoReplace,
    /// It must exist, and gets the old name.
    Exchange,
    /// It is replaced, or may not exist, and under the old name stands what an overlay takes for "nothing here": a
    /// character device 0:0 of this user's.
    Whiteout {
        /// Who made it.
        by: Caller,
        /// Whether an existing new name is replaced.
        replace: bool,
    },
}

impl RenameHow {
    /// Reads the flags of a system call by someone; `None` for what is not offered.
    #[must_use]
    pub fn from_flags(flags: u32, by: &Caller) -> Option<RenameHow> {
        const WHITEOUT_NOREPLACE: u32 = libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE;
        match flags {
            0 => Some(RenameHow::Replace),
            libc::RENAME_NOREPLACE => Some(RenameHow::NoReplace),
            libc::RENAME_EXCHANGE => Some(RenameHow::Exchange),
            libc::RENAME_WHITEOUT => Some(RenameHow::Whiteout { by: *by, replace: true }),
            WHITEOUT_NOREPLACE => Some(RenameHow::Whiteout { by: *by, replace: false }),
            _ => None,
        }
    }
}

/// A name and the inode it leads to.
type Named<'a> = (NameEntry, Pin<'a>);

impl FileSystem {
    /// Renames.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        how: RenameHow,
    ) -> Result<(), FsFault> {
        let parent = self.directory_to_change(parent, name, false)?;
        let new_parent = self.directory_to_change(new_parent, new_name, true)?;
        self.writable()?;
        let from = self.pin_dir(parent)?;
        let to = self.pin_dir(new_parent)?;
        loop {
            let before = self.changes.load(SeqCst);
            let source = self.resolve(parent, name)?.ok_or(FsFault::NoEntry)?;
            let target = self.resolve(new_parent, new_name)?;
            if let Some((_, pin)) = &target {
                self.prepare_purge(pin)?;
            }
            let target_has_entries = || match &target {
                Some((_, pin)) if is(&pin.inode(), libc::S_IFDIR) => self.has_entries(pin.ino),
                _ => Ok(false),
            };
            let mut has_entries = target_has_entries()?;

            let _namespace = self.namespace.held();
            if self.changes.load(SeqCst) != before {
                if self.find(parent, name)? != Some(source.0)
                    || self.find(new_parent, new_name)? != target.as_ref().map(|t| t.0)
                {
                    continue;
                }
                has_entries = target_has_entries()?;
            }
            if self.may_rename(&from, &source, &to, target.as_ref().map(|t| (t, has_entries)), how)? {
                self.met_by_rename(&to, &source.1);
                match (&target, how) {
                    (Some(target), RenameHow::Exchange) => {
                        self.met_by_rename(&from, &target.1);
                        self.exchange((&from, name, &source), (&to, new_name, target));
                    }
                    _ => {
                        let leaves = match how {
                            RenameHow::Whiteout { by, .. } => Some(by),
                            RenameHow::Replace | RenameHow::NoReplace | RenameHow::Exchange => None,
                        };
                        self.replace((&from, name, &source), (&to, new_name, target.as_ref()), leaves.as_ref())?;
                    }
                }
                self.changes.fetch_add(1, SeqCst);
            }
            return Ok(());
        }
    }

    /// Whether there is anything to do; under the namespace lock. With the target: whether it has entries.
    fn may_rename(
        &self,
        from: &Pin<'_>,
        source: &Named<'_>,
        to: &Pin<'_>,
        target: Option<(&Named<'_>, bool)>,
        how: RenameHow,
    ) -> Result<bool, FsFault> {
        if !to.has_name() {
            return Err(FsFault::NoEntry);
        }
        match (how, target) {
            (RenameHow::NoReplace | RenameHow::Whiteout { replace: false, .. }, Some(_)) => {
                return Err(FsFault::Exists);
            }
            (RenameHow::Exchange, None) => return Err(FsFault::NoEntry),
            // Two names of one file: POSIX wants both left alone.
            (_, Some(((_, pin), _))) if pin.ino == source.1.ino => return Ok(false),
            (RenameHow::Whiteout { .. }, _) => self.vault.admit(1)?,
            (RenameHow::Replace | RenameHow::NoReplace | RenameHow::Exchange, _) => {}
        }
        if from.ino != to.ino {
            self.may_come(source.1.ino, &source.1.inode(), &to.inode())?;
            if let (RenameHow::Exchange, Some(((_, target), _))) = (how, target) {
                self.may_come(target.ino, &target.inode(), &from.inode())?;
            }
        }
        let source_is_dir = is(&source.1.inode(), libc::S_IFDIR);
        if source_is_dir && from.ino != to.ino && self.is_within(to.ino, source.1.ino)? {
            return Err(FsFault::Invalid);
        }
        let Some(((_, target), has_entries)) = target else { return Ok(true) };
        let target_inode = target.inode();
        let target_is_dir = is(&target_inode, libc::S_IFDIR);
        if how == RenameHow::Exchange {
            if target_is_dir && from.ino != to.ino && self.is_within(from.ino, target.ino)? {
                return Err(FsFault::Invalid);
            }
            return Ok(true);
        }
        match (source_is_dir, target_is_dir) {
            (true, false) => Err(FsFault::NotDirectory),
            (false, true) => Err(FsFault::IsDirectory),
            (true, true) if has_entries => Err(FsFault::NotEmpty),
            (true, true) | (false, false) => Ok(true),
        }
    }

    /// Whether `dir` is `ancestor` or lies below it.
    fn is_within(&self, dir: Ino, ancestor: Ino) -> Result<bool, FsFault> {
        let mut at = dir;
        while at != ROOT_INO {
            if at == ancestor {
                return Ok(true);
            }
            at = self.pin(at)?.inode().parent;
        }
        Ok(ancestor == ROOT_INO)
    }

    fn replace(
        &self,
        old: (&Pin<'_>, &[u8], &Named<'_>),
        new: (&Pin<'_>, &[u8], Option<&Named<'_>>),
        leaves: Option<&Caller>,
    ) -> Result<(), FsFault> {
        let (from, name, (entry, moved)) = old;
        let (to, new_name, target) = new;
        let same_dir = from.ino == to.ino;
        let cookie = match target {
            Some((replaced, _)) => replaced.cookie,
            None if same_dir => entry.cookie,
            None => self.vault.next_cookie(),
        };
        let mut from_state = from.state();
        let mut to_state = (!same_dir).then(|| to.state());
        let mut moved_state = moved.state();
        let mut target_state = target.map(|(_, pin)| pin.state());
        let now = self.now();
        let is_dir = is(&moved_state.inode, libc::S_IFDIR);

        let mut op = self.vault.begin();
        let left = leaves.map(|by| self.whiteout(&from_state.inode, by, now));
        if let Some((ino, inode)) = &left {
            op.charge(*ino, None, Some(inode), Admit::WithinLimits)?;
        }
        op.delete(key::name(from.ino, name));
        if entry.cookie != cookie {
            op.delete(key::cookie(from.ino, entry.cookie));
        }
        put_name(&mut op, to.ino, new_name, NameEntry { ino: entry.ino, cookie, kind: entry.kind });
        if let (Some((_, pin)), Some(state)) = (target, target_state.as_deref_mut()) {
            state.inode.ctime = now;
            self.drop_name(&mut op, pin, state);
        }
        moved_state.inode.ctime = now;
        if is_dir {
            moved_state.inode.parent = to.ino;
        }
        Self::store(&mut op, moved.ino, &moved_state);

        let f = &mut from_state.inode;
        match left {
            Some((ino, inode)) => {
                op.put(key::inode(ino), inode.encode());
                op.inodes(1);
                let cookie = self.vault.next_cookie();
                put_name(&mut op, from.ino, name, NameEntry { ino, cookie, kind: kind_of(inode.mode) });
            }
            None => f.size = f.size.saturating_sub(1),
        }
        // Counts come from the disk: a wrong one is for `check` to find, and must not wrap.
        f.nlink = f.nlink.saturating_sub(u32::from(is_dir));
        (f.mtime, f.ctime) = (now, now);
        let t = &mut to_state.as_deref_mut().unwrap_or(&mut *from_state).inode;
        t.size = t.size.saturating_add(u64::from(target.is_none()));
        // A directory that came in place of one that went: as many subdirectories as before.
        t.nlink = t.nlink.saturating_add(u32::from(is_dir && target.is_none()));
        (t.mtime, t.ctime) = (now, now);
        Self::store(&mut op, from.ino, &from_state);
        if let Some(state) = &to_state {
            Self::store(&mut op, to.ino, state);
        }
        op.commit();
        Ok(())
    }

    /// Nobody knows the inode before the operation is visible, so it needs no node.
    fn whiteout(&self, above: &Inode, by: &Caller, now: Time) -> (Ino, Inode) {
        let inode = Inode {
            mode: libc::S_IFCHR,
            uid: by.uid,
            gid: if above.mode & libc::S_ISGID != 0 { above.gid } else { by.gid },
            nlink: 1,
            rdev: 0,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: Ino(0),
            tree: above.tree,
        };
        (self.vault.next_ino(), inode)
    }

    fn exchange(&self, one: (&Pin<'_>, &[u8], &Named<'_>), two: (&Pin<'_>, &[u8], &Named<'_>)) {
        let (one_dir, one_name, (one_entry, one_pin)) = one;
        let (two_dir, two_name, (two_entry, two_pin)) = two;
        let same_dir = one_dir.ino == two_dir.ino;
        let mut one_dir_state = one_dir.state();
        let mut two_dir_state = (!same_dir).then(|| two_dir.state());
        let mut one_state = one_pin.state();
        let mut two_state = two_pin.state();
        let now = self.now();

        let mut op = self.vault.begin();
        let swapped = |ino, mode, cookie| NameEntry { ino, cookie, kind: kind_of(mode) };
        put_name(&mut op, one_dir.ino, one_name, swapped(two_pin.ino, two_state.inode.mode, one_entry.cookie));
        put_name(&mut op, two_dir.ino, two_name, swapped(one_pin.ino, one_state.inode.mode, two_entry.cookie));
        let (one_is_dir, two_is_dir) = (is(&one_state.inode, libc::S_IFDIR), is(&two_state.inode, libc::S_IFDIR));
        if one_is_dir {
            one_state.inode.parent = two_dir.ino;
        }
        if two_is_dir {
            two_state.inode.parent = one_dir.ino;
        }
        (one_state.inode.ctime, two_state.inode.ctime) = (now, now);
        Self::store(&mut op, one_pin.ino, &one_state);
        Self::store(&mut op, two_pin.ino, &two_state);

        let d = &mut one_dir_state.inode;
        (d.mtime, d.ctime) = (now, now);
        if let Some(state) = &mut two_dir_state {
            d.nlink = d.nlink.saturating_add(u32::from(two_is_dir)).saturating_sub(u32::from(one_is_dir));
            let d = &mut state.inode;
            d.nlink = d.nlink.saturating_add(u32::from(one_is_dir)).saturating_sub(u32::from(two_is_dir));
            (d.mtime, d.ctime) = (now, now);
            Self::store(&mut op, two_dir.ino, state);
        }
        Self::store(&mut op, one_dir.ino, &one_dir_state);
        op.commit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_flags_are_taken() {
        let by = Caller { uid: 1, gid: 2, umask: 0 };
        let read = |flags| RenameHow::from_flags(flags, &by);
        assert_eq!(read(libc::RENAME_EXCHANGE), Some(RenameHow::Exchange));
        assert_eq!(read(libc::RENAME_WHITEOUT), Some(RenameHow::Whiteout { by, replace: true }));
        assert_eq!(read(libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE), None);
        assert_eq!(read(libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT), None);
    }
}
