//! What is done about each finding: names, listings, inodes, links. What is derived is `derived`'s.
//!
//! Promise: nothing is invented: attributes that are gone become the narrowest that work, and are said; bytes that are
//! gone stay gone. Nothing readable is dropped: what lost its name goes to `/lost+found/#INODE`, and an inode of which
//! only data is left comes back as a file as long as its data. Each finding is mended by one operation of the vault, logged
//! as any other: a crash shows all of it or nothing, and a rebuild of the index has it too.
//! Called by: `repair`, one phase at a time, each on a survey of its own. On failure: the vault's fault.

use super::finding::Finding;
use super::nodes::{DIRECTORY, LINK, Nodes};
use super::survey::each_entry;
use crate::base::id::{Ino, ROOT_INO};
use crate::format::extent::Extent;
use crate::format::inode::{CookieEntry, Inode, NameEntry};
use crate::format::key::{self, is_derived};
use crate::format::quota::Used;
use crate::vault::{Vault, VaultFault};
use std::collections::BTreeMap;

/// The name of the directory for what lost its own.
const LOST_FOUND: &[u8] = b"lost+found";
/// The first cookie that a name may have: those below mean the start, `.` and `..`.
const COOKIE_MIN: u64 = 3;

/// Who owns what has to be made anew.
#[derive(Debug, Clone, Copy, Default)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// At work on the findings of one survey.
pub struct Mender<'a> {
    pub vault: &'a Vault,
    pub nodes: &'a Nodes,
    pub owner: Owner,
    /// Where the directory for what lost its name is, and its name.
    lost_found: Option<(Ino, Vec<u8>)>,
    /// The names that lead to inodes of the findings.
    names: BTreeMap<Ino, Vec<(Ino, Vec<u8>)>>,
    /// What the operation at hand will set and remove.
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    inodes: i64,
    punch: Option<Ino>,
}

/// The greatest that `phase` gives.
pub const PHASE_LAST: u8 = 4;

/// In this order: inodes first, then the names that lead to them, then what no name leads to, then what is counted, then quotas.
pub fn phase(finding: &Finding) -> Option<u8> {
    use Finding::*;
    match finding {
        StrayEntry { key, .. } if is_derived(key) => None,
        NoRoot
        | StrayEntry { .. }
        | InodeMalformed { .. }
        | WithoutInode { .. }
        | WrongType { .. }
        | NumberInUse { .. } => Some(0),
        NameMalformed { .. }
        | NameInvalid { .. }
        | NameOutsideDirectory { .. }
        | NameOfNothing { .. }
        | NameType { .. }
        | NotListed { .. }
        | ListedOtherwise { .. }
        | ListingMalformed { .. }
        | ListedWithoutName { .. }
        | NamedTwice { .. } => Some(1),
        Cycle { .. } | Nameless { .. } => Some(2),
        EntryCount { .. }
        | LinkCount { .. }
        | OrphanInUse { .. }
        | ParentPointer { .. }
        | TargetLength { .. }
        | ExtentBeyondEnd { .. }
        | TreeNumber { .. }
        | InodeCount { .. } => Some(3),
        QuotaCount { .. } => Some(4),
        // Derived, lost, or about the index as a whole.
        IndexUnreadable { .. }
        | IndexLost { .. }
        | CopySpoiled { .. }
        | SnapshotSpoiled { .. }
        | RootsLost
        | RecordsLost { .. }
        | TargetMissing { .. }
        | ExtentMalformed { .. }
        | ExtentsOverlap { .. }
        | ExtentMisplaced { .. }
        | Allocated { .. }
        | TotalBytes { .. }
        | HoldersWrong { .. }
        | SharedCount { .. }
        | SegmentUnknown { .. }
        | SegmentLive { .. }
        | SegmentOverfull { .. }
        | SegmentMissing { .. }
        | SegmentShort { .. }
        | DataLost { .. }
        | Unreadable { .. }
        | StrayFile { .. }
        | FileUnread { .. }
        | RangeUnread { .. }
        | More { .. } => None,
    }
}

impl<'a> Mender<'a> {
    /// Nothing done yet; it will be asked to mend these findings only.
    pub fn new(vault: &'a Vault, nodes: &'a Nodes, owner: Owner, todo: &[&Finding]) -> Result<Mender<'a>, VaultFault> {
        // One scan of all names for all findings that need one.
        let mut names: BTreeMap<Ino, Vec<(Ino, Vec<u8>)>> = todo.iter().filter_map(|f| wants_names(f)).collect();
        if !names.is_empty() {
            each_entry(vault, &[key::NAME], |k, value| {
                if let (Ok((_, dir, name)), Ok(entry)) = (key::split(k), NameEntry::decode(value))
                    && let Some(known) = names.get_mut(&entry.ino)
                {
                    known.push((Ino(dir), name.to_vec()));
                }
                Ok(())
            })?;
        }
        Ok(Mender { vault, nodes, owner, lost_found: None, names, pending: BTreeMap::new(), inodes: 0, punch: None })
    }

    /// Mends one finding; says what was done, or `None` if it turned out that nothing need be.
    pub fn mend(&mut self, finding: &Finding) -> Result<Option<String>, VaultFault> {
        self.vault.admit_change()?;
        let did = self.plan(finding)?;
        if self.pending.is_empty() && self.punch.is_none() {
            return Ok(did);
        }
        let hole = self.punch.take().map(|ino| self.vault.file(ino));
        let mut op = self.vault.begin();
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => op.put(key, value),
                None => op.delete(key),
            }
        }
        op.inodes(std::mem::take(&mut self.inodes));
        if let Some(file) = &hole {
            op.punch(file, 0, u64::MAX);
        }
        op.commit();
        Ok(did)
    }

    fn plan(&mut self, finding: &Finding) -> Result<Option<String>, VaultFault> {
        use Finding::*;
        let did = match finding {
            NoRoot => {
                self.make_directory(ROOT_INO, ROOT_INO)?;
                "made a root directory".to_owned()
            }
            StrayEntry { key, .. } => {
                self.delete(key.clone());
                "removed it".to_owned()
            }
            InodeMalformed { at, .. } => return self.rebuild(at.ino).map(Some),
            // There is no inode 0, and never was: nothing is anybody's there.
            WithoutInode { ino: Ino(0), what: "data" } => {
                self.punch = Some(Ino(0));
                "removed the data, which no file had".to_owned()
            }
            WithoutInode { ino: Ino(0), .. } => {
                for kind in [key::XATTR, key::TARGET] {
                    for key in self.keys(&key::prefix(kind, 0))? {
                        self.delete(key);
                    }
                }
                "removed them".to_owned()
            }
            // With another finding, or the one before.
            WithoutInode { ino, .. } if self.get(&key::inode(*ino))?.is_some() => return Ok(None),
            WithoutInode { ino, what: "extended attributes" } if self.names_of(*ino).is_empty() => {
                for key in self.keys(&key::prefix(key::XATTR, ino.0))? {
                    self.delete(key);
                }
                "removed them".to_owned()
            }
            WithoutInode { ino, .. } => return self.rebuild(*ino).map(Some),
            WrongType { at, what: "data" } => {
                self.punch = Some(at.ino);
                "removed the data, which no program could read".to_owned()
            }
            WrongType { at, .. } => {
                self.delete(key::target(at.ino));
                "removed the target".to_owned()
            }
            NumberInUse { what, used, .. } => {
                let (ino, cookie) = if *what == "inode" { (*used, 0) } else { (0, *used) };
                self.vault.raise_numbers(ino, cookie);
                // A commit carries the numbers: something must be in it.
                if let Some(root) = self.vault.get(&key::inode(ROOT_INO))? {
                    self.put(key::inode(ROOT_INO), root);
                }
                "numbers above it are given out from now on".to_owned()
            }
            NameMalformed { dir, name, .. } => self.name_malformed(dir.ino, name)?,
            NameOfNothing { ino, .. } if self.get(&key::inode(*ino))?.is_some() => return Ok(None),
            // With its inode back, the rest of it keeps its name.
            NameOfNothing { ino, .. } if ino.0 > 0 && self.has(key::NAME, *ino)? => {
                return self.rebuild(*ino).map(Some);
            }
            NameInvalid { dir, name } | NameOfNothing { dir, name, .. } => {
                self.remove_name(dir.ino, name)?;
                "removed the name".to_owned()
            }
            NameOutsideDirectory { dir, name } => match self.inode(dir.ino)? {
                None if dir.ino.0 == 0 => {
                    self.remove_name(dir.ino, name)?;
                    "removed the name".to_owned()
                }
                Some(inode) if kind_of(&inode) == DIRECTORY => return Ok(None),
                Some(_) => {
                    self.remove_name(dir.ino, name)?;
                    "removed the name".to_owned()
                }
                // Names were in it, so it was a directory; with it back, what is in it keeps its names.
                None => return self.rebuild(dir.ino).map(Some),
            },
            NameType { dir, name } => {
                let Some(entry) = self.entry(dir.ino, name)? else { return Ok(None) };
                let kind = self.nodes.get(entry.ino).map_or(entry.kind, |n| n.kind);
                self.put_name(dir.ino, name, NameEntry { kind, ..entry })?;
                "the name says its inode's type now".to_owned()
            }
            NotListed { dir, name } | ListedOtherwise { dir, name } => {
                let Some(entry) = self.entry(dir.ino, name)? else { return Ok(None) };
                self.put_name(dir.ino, name, entry)?;
                "it is listed as it is".to_owned()
            }
            ListingMalformed { dir, cookie, .. } => {
                self.delete(key::cookie(dir.ino, *cookie));
                "removed the line".to_owned()
            }
            ListedWithoutName { dir, name } => return self.listed_without_name(dir.ino, name),
            NamedTwice { at } => return self.named_twice(at.ino),
            Cycle { at } => {
                if let Some((dir, name)) = self.names_of(at.ino).pop() {
                    self.remove_name(dir, &name)?;
                }
                self.take_in(at.ino)?
            }
            Nameless { at } => self.take_in(at.ino)?,
            EntryCount { at, counted, .. } => {
                return self.correct(at.ino, |inode| inode.size = *counted, "entries counted anew");
            }
            LinkCount { at, counted, .. } => {
                let links = u32::try_from(*counted).unwrap_or(u32::MAX);
                return self.correct(at.ino, |inode| inode.nlink = links, "links counted anew");
            }
            OrphanInUse { at } => {
                self.delete(key::orphan(at.ino));
                "it is no longer marked for removal".to_owned()
            }
            ParentPointer { at, found, .. } => {
                return self.correct(at.ino, |inode| inode.parent = *found, "'..' leads to where its name is");
            }
            TargetLength { at, counted, .. } => {
                return self.correct(at.ino, |inode| inode.size = *counted, "its size is its target's length");
            }
            ExtentBeyondEnd { at, end_bytes, .. } => {
                let grow = |inode: &mut Inode| inode.size = inode.size.max(*end_bytes);
                return self.correct(at.ino, grow, "the file reaches as far as its data");
            }
            InodeCount { stored, counted } => {
                self.inodes = *counted as i64 - *stored as i64;
                // As above: a count alone is no change.
                if let Some(root) = self.vault.get(&key::inode(ROOT_INO))? {
                    self.put(key::inode(ROOT_INO), root);
                }
                "inodes counted anew".to_owned()
            }
            TreeNumber { at, expected, .. } => {
                let carry = |inode: &mut Inode| inode.tree = *expected;
                return self.correct(at.ino, carry, "it carries the number of the tree it lies in");
            }
            QuotaCount { account, counted, .. } => {
                let value = (*counted != Used::default()).then(|| counted.encode());
                self.pending.insert(account.used_key(), value);
                "counted anew".to_owned()
            }
            _ => return Ok(None),
        };
        Ok(Some(did))
    }

    // -----------------------------------------------------------------------------------------------------------------
    // The keys, as the operation at hand will leave them.

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, VaultFault> {
        match self.pending.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.vault.get(key),
        }
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.pending.insert(key, Some(value));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.pending.insert(key, None);
    }

    /// Attributes that make sense.
    fn inode(&self, ino: Ino) -> Result<Option<Inode>, VaultFault> {
        Ok(self.get(&key::inode(ino))?.and_then(|value| Inode::decode(&value).ok()))
    }

    fn entry(&self, dir: Ino, name: &[u8]) -> Result<Option<NameEntry>, VaultFault> {
        Ok(self.get(&key::name(dir, name))?.and_then(|value| NameEntry::decode(&value).ok()))
    }

    fn line(&self, dir: Ino, cookie: u64) -> Result<Option<CookieEntry>, VaultFault> {
        Ok(self.get(&key::cookie(dir, cookie))?.and_then(|value| CookieEntry::decode(&value).ok()))
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<Vec<u8>>, VaultFault> {
        let mut keys = Vec::new();
        each_entry(self.vault, prefix, |key, _| {
            keys.push(key.to_vec());
            Ok(())
        })?;
        Ok(keys)
    }

    /// Whether anything of this kind is stored for an inode.
    fn has(&self, kind: u8, ino: Ino) -> Result<bool, VaultFault> {
        Ok(!self.vault.scan(&key::prefix(kind, ino.0), &[], 1)?.is_empty())
    }

    fn correct(&mut self, ino: Ino, change: impl FnOnce(&mut Inode), did: &str) -> Result<Option<String>, VaultFault> {
        let Some(mut inode) = self.inode(ino)? else { return Ok(None) };
        change(&mut inode);
        self.put(key::inode(ino), inode.encode());
        Ok(Some(did.to_owned()))
    }

    /// Names that lead to an inode, in the order of their directories, as they were before the first was mended.
    fn names_of(&self, ino: Ino) -> Vec<(Ino, Vec<u8>)> {
        self.names.get(&ino).cloned().unwrap_or_default()
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Names.

    /// Sets a name and its line in the listing; where the line is another name's, or none can be, at a new place.
    fn put_name(&mut self, dir: Ino, name: &[u8], mut entry: NameEntry) -> Result<(), VaultFault> {
        let taken = self.line(dir, entry.cookie)?.is_some_and(|line| {
            line.name != name && self.entry(dir, &line.name).is_ok_and(|e| e.is_some_and(|e| e.cookie == entry.cookie))
        });
        if taken || entry.cookie < COOKIE_MIN {
            entry.cookie = self.vault.next_cookie();
        }
        let line = CookieEntry { ino: entry.ino, kind: entry.kind, name: name.to_vec() };
        self.put(key::name(dir, name), entry.encode());
        self.put(key::cookie(dir, entry.cookie), line.encode());
        Ok(())
    }

    /// Takes a name away, and counts in its directory and its inode what goes with it.
    fn remove_name(&mut self, dir: Ino, name: &[u8]) -> Result<(), VaultFault> {
        let entry = self.entry(dir, name)?;
        self.delete(key::name(dir, name));
        let mut is_dir = false;
        if let Some(entry) = entry {
            if self.line(dir, entry.cookie)?.is_some_and(|line| line.name == name) {
                self.delete(key::cookie(dir, entry.cookie));
            }
            is_dir = self.nodes.get(entry.ino).map_or(entry.kind, |n| n.kind) == DIRECTORY;
            if !is_dir {
                self.correct(entry.ino, |inode| inode.nlink = inode.nlink.saturating_sub(1), "")?;
            }
        }
        if self.nodes.get(dir).is_some_and(|n| n.kind == DIRECTORY) {
            self.correct(
                dir,
                |d| {
                    d.size = d.size.saturating_sub(1);
                    d.nlink = d.nlink.saturating_sub(u32::from(is_dir)).max(2);
                },
                "",
            )?;
        }
        Ok(())
    }

    /// What a listing says of a name is as good as the name; without one it leads nowhere.
    fn name_malformed(&mut self, dir: Ino, name: &[u8]) -> Result<String, VaultFault> {
        let mut found = None;
        each_entry(self.vault, &key::prefix(key::COOKIE, dir.0), |k, value| {
            if let (Ok((_, _, rest)), Ok(line)) = (key::split(k), CookieEntry::decode(value))
                && let Ok(cookie) = key::tail_u64(rest)
                && line.name == name
            {
                found = Some(NameEntry { ino: line.ino, cookie, kind: line.kind });
            }
            Ok(())
        })?;
        match found.filter(|entry| self.nodes.get(entry.ino).is_some()) {
            Some(entry) => {
                self.put_name(dir, name, entry)?;
                Ok("it leads to what the listing of its directory says".to_owned())
            }
            None => {
                self.remove_name(dir, name)?;
                Ok("removed the name".to_owned())
            }
        }
    }

    fn listed_without_name(&mut self, dir: Ino, name: &[u8]) -> Result<Option<String>, VaultFault> {
        let (mut stale, mut back) = (Vec::new(), None);
        let entry = self.entry(dir, name)?;
        each_entry(self.vault, &key::prefix(key::COOKIE, dir.0), |k, value| {
            if let (Ok((_, _, rest)), Ok(line)) = (key::split(k), CookieEntry::decode(value))
                && let Ok(cookie) = key::tail_u64(rest)
                && line.name == name
                && entry.is_none_or(|e| e.cookie != cookie)
            {
                // The name itself is lost, and nothing else leads to the inode: then the line tells what it was called.
                let alone = self.nodes.get(line.ino).is_some_and(|n| n.names == 0 && !n.orphan);
                match entry {
                    None if alone && back.is_none() => {
                        back = Some(NameEntry { ino: line.ino, cookie, kind: line.kind })
                    }
                    _ => stale.push(k.to_vec()),
                }
            }
            Ok(())
        })?;
        stale.into_iter().for_each(|k| self.delete(k));
        if let Some(entry) = back {
            self.put_name(dir, name, entry)?;
            return Ok(Some("the name is there again".to_owned()));
        }
        Ok(Some("removed the line".to_owned()))
    }

    /// A directory keeps the name that its `..` agrees with, else the first; the root has none.
    fn named_twice(&mut self, ino: Ino) -> Result<Option<String>, VaultFault> {
        let mut names = self.names_of(ino);
        let Some(inode) = self.inode(ino)? else { return Ok(None) };
        if ino != ROOT_INO && !names.is_empty() {
            let keep = names.iter().position(|(dir, _)| *dir == inode.parent).unwrap_or(0);
            names.remove(keep);
        }
        for (dir, name) in &names {
            self.remove_name(*dir, name)?;
        }
        Ok((!names.is_empty()).then(|| "removed the names that are too many".to_owned()))
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Inodes.

    fn make_directory(&mut self, ino: Ino, parent: Ino) -> Result<(), VaultFault> {
        let entries = self.keys(&key::prefix(key::NAME, ino.0))?.len() as u64;
        let inode = Inode { nlink: 2, size: entries, parent, ..self.bare(libc::S_IFDIR | 0o700) };
        self.make(ino, inode)
    }

    /// Attributes of which nothing is known but the type.
    fn bare(&self, mode: u32) -> Inode {
        let now = self.vault.world().now();
        let Owner { uid, gid } = self.owner;
        let (atime, mtime, ctime, btime) = (now, now, now, now);
        Inode { mode, uid, gid, nlink: 0, rdev: 0, size: 0, atime, mtime, ctime, btime, parent: Ino(0), tree: 0 }
    }

    fn make(&mut self, ino: Ino, inode: Inode) -> Result<(), VaultFault> {
        if self.get(&key::inode(ino))?.is_none() {
            self.inodes += 1;
        }
        self.put(key::inode(ino), inode.encode());
        Ok(())
    }

    /// An inode anew, out of what is stored for it: its type by its data, else by its name.
    fn rebuild(&mut self, ino: Ino) -> Result<String, VaultFault> {
        let names = self.names_of(ino);
        let by_name = match names.first() {
            Some((dir, name)) => self.entry(*dir, name)?.map_or(0, |entry| entry.kind),
            None => 0,
        };
        let has_data = self.has(key::EXTENT, ino)?;
        let target = self.get(&key::target(ino))?;
        let is_dir = ino == ROOT_INO || self.has(key::NAME, ino)? || (by_name == DIRECTORY && !has_data);
        let (what, inode) = if is_dir {
            self.make_directory(ino, names.first().map_or(ROOT_INO, |(dir, _)| *dir))?;
            ("directory", None)
        } else if let Some(target) = target.filter(|_| by_name == LINK || !has_data) {
            ("symbolic link", Some(Inode { size: target.len() as u64, ..self.bare(libc::S_IFLNK | 0o777) }))
        } else {
            ("file", Some(Inode { size: self.data_end(ino)?, ..self.bare(libc::S_IFREG | 0o600) }))
        };
        if let Some(inode) = inode {
            self.make(ino, Inode { nlink: names.len() as u32, ..inode })?;
        }
        Ok(format!("made it anew as a {what} of its owner alone, with what is stored for it"))
    }

    /// Where a file's data ends, as far as it makes sense.
    fn data_end(&self, ino: Ino) -> Result<u64, VaultFault> {
        let mut end = 0;
        each_entry(self.vault, &key::prefix(key::EXTENT, ino.0), |k, value| {
            if let (Ok((_, _, rest)), Ok(extent)) = (key::split(k), Extent::decode(value))
                && let Ok(offset) = key::tail_u64(rest)
            {
                end = end.max(offset.saturating_add(u64::from(extent.len_bytes)));
            }
            Ok(())
        })?;
        Ok(end)
    }

    /// Gives an inode that no name leads to the name `/lost+found/#INODE`.
    fn take_in(&mut self, ino: Ino) -> Result<String, VaultFault> {
        let Some(inode) = self.inode(ino)? else { return Ok("left alone: it is not there".to_owned()) };
        let (dir, place) = self.lost_found()?;
        let mut name = format!("#{ino}").into_bytes();
        while self.get(&key::name(dir, &name))?.is_some() {
            name.push(b'+');
        }
        let kind = kind_of(&inode);
        let entry = NameEntry { ino, cookie: self.vault.next_cookie(), kind };
        self.put_name(dir, &name, entry)?;
        let is_dir = kind == DIRECTORY;
        self.correct(dir, |d| (d.size, d.nlink) = (d.size + 1, d.nlink + u32::from(is_dir)), "")?;
        self.correct(ino, |i| if is_dir { i.parent = dir } else { i.nlink = 1 }, "")?;
        if self.get(&key::orphan(ino))?.is_some() {
            self.delete(key::orphan(ino));
        }
        let [place, name] = [&place, &name].map(|part| String::from_utf8_lossy(part));
        Ok(format!("it is /{place}/{name} now"))
    }

    /// The directory for what lost its name, and what it is called; made if it is not there.
    fn lost_found(&mut self) -> Result<(Ino, Vec<u8>), VaultFault> {
        if let Some(known) = &self.lost_found {
            return Ok(known.clone());
        }
        let mut name = LOST_FOUND.to_vec();
        let ino = loop {
            match self.entry(ROOT_INO, &name)? {
                Some(entry) if self.nodes.get(entry.ino).is_some_and(|n| n.kind == DIRECTORY) => break entry.ino,
                // Someone's file: it keeps its name.
                Some(_) => name.push(b'+'),
                None => {
                    let ino = self.vault.next_ino();
                    self.make_directory(ino, ROOT_INO)?;
                    let entry = NameEntry { ino, cookie: self.vault.next_cookie(), kind: DIRECTORY };
                    self.put_name(ROOT_INO, &name, entry)?;
                    self.correct(ROOT_INO, |root| (root.size, root.nlink) = (root.size + 1, root.nlink + 1), "")?;
                    break ino;
                }
            }
        };
        Ok(self.lost_found.insert((ino, name)).clone())
    }
}

fn kind_of(inode: &Inode) -> u8 {
    ((inode.mode & libc::S_IFMT) >> 12) as u8
}

/// The inode whose names it takes to mend a finding.
fn wants_names(finding: &Finding) -> Option<(Ino, Vec<(Ino, Vec<u8>)>)> {
    use Finding::*;
    let ino = match finding {
        NoRoot => ROOT_INO,
        InodeMalformed { at, .. } | NamedTwice { at } | Cycle { at } => at.ino,
        WithoutInode { ino, .. } | NameOfNothing { ino, .. } => *ino,
        NameOutsideDirectory { dir, .. } => dir.ino,
        _ => return None,
    };
    Some((ino, Vec::new()))
}
