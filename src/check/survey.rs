//! The order of the survey, and what its passes share.
//!
//! Promise: every key of the index is looked at once at least, in pages; a pass may rely on those before it.
//! Called by: `check`. On failure: the vault's fault; what was found until then is kept.

use super::finding::{Finding, Place};
use super::nodes::{DIRECTORY, Node, Nodes};
use super::quota::Charged;
use super::share::{Chosen, Share};
use super::{FINDINGS_MAX, places};
use crate::base::id::{Ino, ROOT_INO};
use crate::format::inode::Inode;
use crate::format::key;
use crate::format::segment::Covered;
use crate::vault::{Vault, VaultFault};

/// Entries per read of a range of the index.
const PAGE_ENTRIES: usize = 512;
/// Every kind of key, ascending.
const KINDS: [u8; 13] = [
    key::ALLOCATED,
    key::COOKIE,
    key::EXTENT,
    key::HOLDERS,
    key::INODE,
    key::TARGET,
    key::NAME,
    key::ORPHAN,
    key::QUOTA,
    key::SEGMENT,
    key::TOTAL,
    key::SETTING,
    key::XATTR,
];

/// A survey under way.
pub struct Survey<'a> {
    pub vault: &'a Vault,
    pub nodes: Nodes,
    /// What inodes are charged with.
    pub charged: Charged,
    pub chosen: Chosen,
    /// Whether any run is on record as shared.
    pub any_shared: bool,
    progress: &'a dyn Fn(u64, u64),
    /// Bytes to read, if data is to be read.
    total_bytes: Option<u64>,
    read_bytes: u64,
    entries: u64,
    findings: Vec<Finding>,
    more: u64,
}

impl<'a> Survey<'a> {
    /// Nothing looked at yet.
    pub fn new(vault: &'a Vault, share: Share, progress: &'a dyn Fn(u64, u64)) -> Survey<'a> {
        let (nodes, total_bytes, findings) = (Nodes::default(), None, Vec::new());
        let chosen = Chosen::new(share, vault.world());
        Survey {
            vault,
            nodes,
            charged: Charged::default(),
            chosen,
            any_shared: false,
            progress,
            total_bytes,
            read_bytes: 0,
            entries: 0,
            findings,
            more: 0,
        }
    }

    /// Looks at everything.
    pub fn run(&mut self) -> Result<(), VaultFault> {
        let usage = self.vault.usage();
        let share = self.chosen.share();
        self.total_bytes = (share != Share::Nothing).then_some(share.of_bytes(usage.bytes));
        self.strays()?;
        self.inodes()?;
        if usage.inodes != self.nodes.count() as u64 {
            self.found(Finding::InodeCount { stored: usage.inodes, counted: self.nodes.count() as u64 });
        }
        let newest_cookie = self.names()?;
        self.numbers(newest_cookie)?;
        self.tree();
        self.quotas()?;
        self.any_shared = !self.vault.scan(&[key::HOLDERS], &[], 1)?.is_empty();
        let segments = self.extents()?;
        self.holders()?;
        self.segments(segments)?;
        if share != Share::Nothing {
            self.read_data()?;
        }
        Ok(())
    }

    /// All findings, with their paths, and what is known of the inodes.
    pub fn finish(mut self) -> (Vec<Finding>, Nodes) {
        places::name_places(self.vault, &self.nodes, &mut self.findings);
        if self.more > 0 {
            self.findings.push(Finding::More { count: self.more });
        }
        (self.findings, self.nodes)
    }

    /// Notes a finding.
    pub fn found(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX { self.findings.push(finding) } else { self.more += 1 }
    }

    /// Notes an entry of the index that makes no sense.
    pub fn stray(&mut self, key: &[u8], why: &'static str) {
        self.found(Finding::StrayEntry { key: key.to_vec(), why });
    }

    /// Something was stored for an inode: a finding if there is no such inode. An inode whose attributes make no sense
    /// was told already, and may be of any type.
    pub fn belongs(&mut self, ino: Ino, what: &'static str, kind: u8) {
        match self.nodes.get(ino).map(|n| n.kind) {
            None => self.found(Finding::WithoutInode { ino, what }),
            Some(0) => {}
            Some(is) if is == kind => {}
            Some(_) => self.found(Finding::WrongType { at: Place::of(ino), what }),
        }
    }

    /// Every entry of a numbered kind: number, rest of the key, value. Keys too short for one are findings.
    pub fn each(
        &mut self,
        kind: u8,
        mut look: impl FnMut(&mut Self, u64, &[u8], &[u8]) -> Result<(), VaultFault>,
    ) -> Result<(), VaultFault> {
        let vault = self.vault;
        each_entry(vault, &[kind], |key, value| {
            self.entries += 1;
            if self.entries.is_multiple_of(PAGE_ENTRIES as u64) {
                self.tell();
            }
            match key::split(key) {
                Ok((_, number, rest)) => look(self, number, rest, value),
                Err(e) => {
                    self.stray(key, e.what);
                    Ok(())
                }
            }
        })
    }

    /// More bytes were read.
    pub fn read(&mut self, bytes: u64) {
        self.read_bytes += bytes;
        self.tell();
    }

    fn tell(&self) {
        match self.total_bytes {
            Some(total) => (self.progress)(self.read_bytes, total.max(self.read_bytes)),
            None => (self.progress)(self.entries, 0),
        }
    }

    /// Keys of kinds that there are not.
    fn strays(&mut self) -> Result<(), VaultFault> {
        let mut from = Vec::new();
        while let Some((key, _)) = self.vault.scan(&[], &from, 1)?.pop() {
            match key.first() {
                Some(kind) if KINDS.contains(kind) => from = vec![kind + 1],
                _ => {
                    self.stray(&key, "kind of key");
                    from = [&key[..], &[0]].concat();
                }
            }
        }
        Ok(())
    }

    fn inodes(&mut self) -> Result<(), VaultFault> {
        self.each(key::INODE, |s, number, rest, value| {
            let ino = Ino(number);
            if !rest.is_empty() || number == 0 {
                s.stray(&[&key::inode(ino), rest].concat(), "index key tail");
                return Ok(());
            }
            let mut node = Node { ino, ..Node::default() };
            match Inode::decode(value).map(|i| (i, kind_of(i.mode))) {
                Ok((i, Some(kind))) => {
                    s.charged.add(&i);
                    node.tree = i.tree;
                    (node.kind, node.nlink, node.size, node.parent) = (kind, i.nlink, i.size, i.parent)
                }
                Ok((i, None)) => {
                    // Whoever recounts goes by what can be read of it.
                    s.charged.add(&i);
                    s.found(Finding::InodeMalformed { at: Place::of(ino), why: "file type" });
                }
                Err(e) => s.found(Finding::InodeMalformed { at: Place::of(ino), why: e.what }),
            }
            s.nodes.push(node);
            Ok(())
        })?;
        // A vault that was never mounted has no inodes at all; the first mount makes the root.
        match self.nodes.get(ROOT_INO) {
            Some(root) if root.kind == DIRECTORY || root.kind == 0 => {}
            None if self.nodes.count() == 0 => {}
            Some(_) | None => self.found(Finding::NoRoot),
        }
        Ok(())
    }

    /// Numbers that are given out next must be beyond those in use.
    fn numbers(&mut self, newest_cookie: u64) -> Result<(), VaultFault> {
        let Some(value) = self.vault.get(&key::total("log"))? else { return Ok(()) };
        let Ok(Covered { counters: next, .. }) = Covered::decode(&value) else {
            self.stray(&key::total("log"), "covered position");
            return Ok(());
        };
        let newest_ino = self.nodes.last().map_or(0, |n| n.ino.0);
        for (what, next, used) in [("inode", next.next_ino, newest_ino), ("cookie", next.next_cookie, newest_cookie)] {
            if used >= next {
                self.found(Finding::NumberInUse { what, next, used });
            }
        }
        Ok(())
    }
}

/// The file type of a mode as names carry it; `None` for one that does not exist.
fn kind_of(mode: u32) -> Option<u8> {
    match mode & libc::S_IFMT {
        libc::S_IFREG
        | libc::S_IFDIR
        | libc::S_IFLNK
        | libc::S_IFCHR
        | libc::S_IFBLK
        | libc::S_IFIFO
        | libc::S_IFSOCK => Some(((mode & libc::S_IFMT) >> 12) as u8),
        _ => None,
    }
}

/// Every entry under a prefix, in order, page by page.
pub fn each_entry(
    vault: &Vault,
    prefix: &[u8],
    mut look: impl FnMut(&[u8], &[u8]) -> Result<(), VaultFault>,
) -> Result<(), VaultFault> {
    let mut from = prefix.to_vec();
    loop {
        let page = vault.scan(prefix, &from, PAGE_ENTRIES)?;
        for (key, value) in &page {
            look(key, value)?;
        }
        match page.into_iter().nth(PAGE_ENTRIES - 1) {
            Some((mut last, _)) => {
                last.push(0);
                from = last;
            }
            None => return Ok(()),
        }
    }
}
