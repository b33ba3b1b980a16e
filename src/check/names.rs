//! Names, listings, links, and what else belongs to inodes: what each says must be what the others say.
//!
//! Promise: a tree without findings can be walked from the root to every inode, each directory lists exactly its names,
//! and every count of links and entries is right. An inode that lost its last name while in use, and waits for the next
//! mount to remove it, is no damage. Called by: `survey`, after the table of inodes is full.
//! On failure: the vault's fault.

use super::finding::{Finding, Place};
use super::nodes::{DIRECTORY, LINK, Walk};
use super::survey::Survey;
use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::NAME_BYTES_MAX;
use crate::format::inode::{CookieEntry, NameEntry};
use crate::format::key;
use crate::vault::VaultFault;

impl Survey<'_> {
    /// Looks at all keys that hang on inodes but data; gives the greatest cookie in use.
    pub fn names(&mut self) -> Result<u64, VaultFault> {
        self.each(key::NAME, |s, parent, name, value| s.name(Ino(parent), name, value))?;
        let mut newest = 0;
        self.each(key::COOKIE, |s, parent, rest, value| {
            let Ok(cookie) = key::tail_u64(rest) else {
                s.stray(&[&key::prefix(key::COOKIE, parent), rest].concat(), "index key tail");
                return Ok(());
            };
            newest = newest.max(cookie);
            s.listed(Ino(parent), cookie, value)
        })?;
        self.each(key::ORPHAN, |s, ino, _, _| {
            // One without an inode harms nobody: the next mount removes it.
            if let Some(node) = s.nodes.get_mut(Ino(ino)) {
                node.orphan = true;
            }
            Ok(())
        })?;
        self.each(key::TARGET, |s, number, _, value| {
            let ino = Ino(number);
            s.belongs(ino, "a link's target", LINK);
            if let Some(node) = s.nodes.get_mut(ino).filter(|n| n.kind == LINK) {
                node.has_target = true;
                let (stored, counted) = (node.size, value.len() as u64);
                if stored != counted {
                    s.found(Finding::TargetLength { at: Place::of(ino), stored, counted });
                }
            }
            Ok(())
        })?;
        let mut last = None;
        self.each(key::XATTR, |s, number, _, _| {
            if Some(number) != last && s.nodes.get(Ino(number)).is_none() {
                s.found(Finding::WithoutInode { ino: Ino(number), what: "extended attributes" });
            }
            last = Some(number);
            Ok(())
        })?;
        Ok(newest)
    }

    fn name(&mut self, parent: Ino, name: &[u8], value: &[u8]) -> Result<(), VaultFault> {
        let (dir, name_vec) = (Place::of(parent), name.to_vec());
        let entry = match NameEntry::decode(value) {
            Ok(entry) => entry,
            Err(e) => {
                self.count_entry(parent, false);
                self.found(Finding::NameMalformed { dir, name: name_vec, why: e.what });
                return Ok(());
            }
        };
        if !is_name(name) {
            self.found(Finding::NameInvalid { dir: dir.clone(), name: name_vec.clone() });
        }
        let is_dir = match self.nodes.get_mut(entry.ino) {
            Some(node) => {
                node.names = node.names.saturating_add(1);
                let node = *node;
                if node.names == 1 {
                    self.nodes.get_mut(entry.ino).expect("just seen").home = parent;
                } else if node.kind == DIRECTORY {
                    self.found(Finding::NamedTwice { at: Place::of(entry.ino) });
                }
                if node.kind != 0 && node.kind != entry.kind {
                    self.found(Finding::NameType { dir: dir.clone(), name: name_vec.clone() });
                }
                if node.kind == DIRECTORY && node.parent != parent && entry.ino != ROOT_INO {
                    let at = Place::of(entry.ino);
                    self.found(Finding::ParentPointer { at, stored: node.parent, found: parent });
                }
                // The root has no name.
                if entry.ino == ROOT_INO {
                    self.found(Finding::NamedTwice { at: Place::of(ROOT_INO) });
                }
                if node.kind == 0 { entry.kind == DIRECTORY } else { node.kind == DIRECTORY }
            }
            None => {
                self.found(Finding::NameOfNothing { dir: dir.clone(), name: name_vec.clone(), ino: entry.ino });
                entry.kind == DIRECTORY
            }
        };
        if !self.count_entry(parent, is_dir) {
            self.found(Finding::NameOutsideDirectory { dir: dir.clone(), name: name_vec.clone() });
        }
        match self.vault.get(&key::cookie(parent, entry.cookie))?.map(|v| CookieEntry::decode(&v)) {
            // Told when the listing is looked at.
            Some(Err(_)) => {}
            Some(Ok(line)) if line.name == name => {
                if (line.ino, line.kind) != (entry.ino, entry.kind) {
                    self.found(Finding::ListedOtherwise { dir, name: name_vec });
                }
            }
            Some(Ok(_)) | None => self.found(Finding::NotListed { dir, name: name_vec }),
        }
        Ok(())
    }

    /// Counts a name in its directory; says whether that is one.
    fn count_entry(&mut self, dir: Ino, is_dir: bool) -> bool {
        match self.nodes.get_mut(dir) {
            Some(node) if node.kind == DIRECTORY || node.kind == 0 => {
                node.entries += 1;
                node.subdirs = node.subdirs.saturating_add(u32::from(is_dir));
                true
            }
            Some(_) | None => false,
        }
    }

    /// A line of a listing. Where name and line lead to each other, what else they say was compared at the name.
    fn listed(&mut self, parent: Ino, cookie: u64, value: &[u8]) -> Result<(), VaultFault> {
        let dir = Place::of(parent);
        let line = match CookieEntry::decode(value) {
            Ok(line) => line,
            Err(e) => {
                self.found(Finding::ListingMalformed { dir, cookie, why: e.what });
                return Ok(());
            }
        };
        match self.vault.get(&key::name(parent, &line.name))?.map(|v| NameEntry::decode(&v)) {
            Some(Err(_)) => {}
            Some(Ok(entry)) if entry.cookie == cookie => {}
            Some(Ok(_)) | None => self.found(Finding::ListedWithoutName { dir, name: line.name }),
        }
        Ok(())
    }

    /// Compares what was counted with what inodes say of themselves, and finds what the root does not lead to.
    pub fn tree(&mut self) {
        for i in 0..self.nodes.count() {
            let node = self.nodes.all()[i];
            let at = Place::of(node.ino);
            if node.kind == 0 {
                continue;
            }
            let is_root = node.ino == ROOT_INO;
            if node.kind == DIRECTORY && node.size != node.entries {
                self.found(Finding::EntryCount { at: at.clone(), stored: node.size, counted: node.entries });
            }
            if node.kind == LINK && !node.has_target {
                self.found(Finding::TargetMissing { at: at.clone() });
            }
            if is_root && node.parent != ROOT_INO {
                self.found(Finding::ParentPointer { at: at.clone(), stored: node.parent, found: ROOT_INO });
            }
            let counted = match node.kind {
                DIRECTORY => 2 + u64::from(node.subdirs),
                _ => u64::from(node.names),
            };
            match (node.names > 0 || is_root, node.orphan, node.nlink) {
                // Removed while in use: the next mount ends it.
                (false, true, 0) => {}
                (_, true, 1..) => self.found(Finding::OrphanInUse { at }),
                (false, false, _) => self.found(Finding::Nameless { at }),
                (true, _, stored) if u64::from(stored) != counted => {
                    self.found(Finding::LinkCount { at, stored, counted });
                }
                (true, _, _) => {}
            }
        }
        for i in 0..self.nodes.count() {
            if self.nodes.all()[i].kind == DIRECTORY {
                self.walk_up(i);
            }
        }
    }

    /// Follows a directory's names upwards; where that ends anywhere but at the root, another finding says why.
    fn walk_up(&mut self, mut i: usize) {
        let mut way = Vec::new();
        loop {
            match self.nodes.all()[i].walk {
                Walk::Done => break,
                Walk::Now => {
                    self.found(Finding::Cycle { at: Place::of(self.nodes.all()[i].ino) });
                    break;
                }
                Walk::No => {}
            }
            self.nodes.at(i).walk = Walk::Now;
            way.push(i);
            let node = self.nodes.all()[i];
            match self.nodes.position(node.home) {
                Some(up) if node.ino != ROOT_INO => i = up,
                Some(_) | None => break,
            }
        }
        for i in way {
            self.nodes.at(i).walk = Walk::Done;
        }
    }
}

/// Whether a file may be called so.
fn is_name(name: &[u8]) -> bool {
    let dots = name == b"." || name == b"..";
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !dots && !name.contains(&b'/') && !name.contains(&0)
}
