//! Inodes in use: their attributes in memory, each held while anyone needs it.
//!
//! Promise: at most one `Node` per inode is in the table, and while it is there its attributes are the truth; each
//! change of them is part of an operation of the vault that is committed before the lock is let go.
//! Locks: a node's `state` is taken after the namespace lock and before `Vault::begin`; more than one `state` at a time
//! is held only by who holds the namespace lock, so no two threads can wait for each other. A shard's lock is taken
//! last and held for a map operation only. Called by: the rest of `fs`. On failure: the vault's fault, nothing changed.

use super::xattr::Xattrs;
use super::{FileSystem, FsFault};
use crate::base::id::Ino;
use crate::base::lock::Held;
use crate::format::inode::{Inode, NameEntry};
use crate::format::key;
use crate::vault::{Admit, FileBuffer, Op, Vault};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

/// Entries per read of a range of the index.
const SCAN_ENTRIES: usize = 256;
/// Link count of a directory without subdirectories: its name and its own `.`.
const DIRECTORY_LINKS_MIN: u32 = 2;

/// What changes about an inode.
pub(super) struct State {
    pub(super) inode: Inode,
    /// What there is of extended attributes; `None` until someone asks.
    pub(super) xattrs: Option<Xattrs>,
}

/// An inode in use.
pub(super) struct Node {
    pub(super) ino: Ino,
    state: Mutex<State>,
    /// Look-ups the kernel has not forgotten, plus operations at work on it.
    pub(super) holds: AtomicU64,
    /// Whether anyone was at work on it since the table last looked.
    pub(super) used: AtomicBool,
    /// It has no name any more, because this mount removed the last one or the index lists it as an orphan. A stored
    /// link count of 0 alone does not say so: it may be wrong. Never taken back.
    pub(super) gone: AtomicBool,
    /// Someone removes, or has removed, what is stored of it.
    purged: AtomicBool,
    file: OnceLock<Arc<FileBuffer>>,
}

impl Node {
    fn new(ino: Ino, state: State, gone: bool) -> Node {
        let gone = AtomicBool::new(gone);
        Node {
            ino,
            state: Mutex::new(state),
            holds: AtomicU64::new(1),
            used: AtomicBool::new(false),
            gone,
            purged: AtomicBool::new(false),
            file: OnceLock::new(),
        }
    }
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.held()
    }
    /// Whether a name leads to it. Waits for an operation that is about to remove the last one.
    pub(super) fn has_name(&self) -> bool {
        let _state = self.state.held();
        !self.gone.load(SeqCst)
    }
    /// Whether its names must be counted, because the stored count says that there are none.
    fn has_unknown_links(&self) -> bool {
        let state = self.state.held();
        state.inode.nlink == 0 && !self.gone.load(SeqCst)
    }
    /// Whether what is stored of it is being removed, or has been.
    pub(super) fn is_purged(&self) -> bool {
        self.purged.load(SeqCst)
    }
    pub(super) fn inode(&self) -> Inode {
        self.state.held().inode
    }
    pub(super) fn file(&self, vault: &Vault) -> &Arc<FileBuffer> {
        self.file.get_or_init(|| vault.file(self.ino))
    }
}

/// A hold on a node for the length of an operation. Declare it before the guards of its `state`.
pub(super) struct Pin<'a> {
    fs: &'a FileSystem,
    node: Arc<Node>,
}

impl Pin<'_> {
    /// Leaves a hold behind, for the kernel to forget.
    pub(super) fn keep(&self) {
        self.node.holds.fetch_add(1, SeqCst);
    }
}

impl Deref for Pin<'_> {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.fs.release(&self.node, 1);
    }
}

impl FileSystem {
    /// Holds an inode, reading it if it is not in use. `NoEntry` if there is none.
    pub(super) fn pin(&self, ino: Ino) -> Result<Pin<'_>, FsFault> {
        loop {
            let drops = {
                let shard = self.nodes.shard(ino);
                if let Some(node) = shard.get(ino) {
                    node.holds.fetch_add(1, SeqCst);
                    node.used.store(true, Relaxed);
                    return Ok(Pin { fs: self, node: node.clone() });
                }
                shard.drops
            };
            let Some(stored) = self.vault.get(&key::inode(ino))? else { return Err(FsFault::NoEntry) };
            let mut state = State { inode: Inode::decode(&stored)?, xattrs: None };
            let says_none = state.inode.nlink == 0;
            let gone = says_none && self.vault.get(&key::orphan(ino))?.is_some();
            if says_none && !gone && is(&state.inode, libc::S_IFDIR) {
                state.inode.nlink = DIRECTORY_LINKS_MIN;
            }
            let mut shard = self.nodes.shard(ino);
            if shard.drops != drops || shard.get(ino).is_some() {
                continue;
            }
            let node = Arc::new(Node::new(ino, state, gone));
            shard.insert(&node);
            drop(shard);
            let pin = Pin { fs: self, node };
            if says_none && !gone {
                self.report_links(ino, "is kept, for names may lead to it; `strongroom check --repair` counts them");
            }
            return Ok(pin);
        }
    }

    /// Puts a new inode, not yet stored, into the table.
    pub(super) fn pin_new(&self, ino: Ino, inode: Inode) -> Pin<'_> {
        let node = Arc::new(Node::new(ino, State { inode, xattrs: Some(Xattrs::default()) }, false));
        self.nodes.shard(ino).insert(&node);
        Pin { fs: self, node }
    }

    /// The kernel forgets `count` of its look-ups.
    pub fn forget(&self, ino: Ino, count: u64) {
        if self.storage.forget(ino, count) {
            return;
        }
        let node = {
            let mut shard = self.nodes.shard(ino);
            let node = shard.get(ino).cloned();
            if node.is_none() {
                shard.forget(ino, count);
            }
            node
        };
        if let Some(node) = node {
            self.release(&node, count);
        }
    }

    fn release(&self, node: &Arc<Node>, count: u64) {
        {
            let mut shard = self.nodes.shard(node.ino);
            let before = node
                .holds
                .fetch_update(SeqCst, SeqCst, |held| Some(held.saturating_sub(count)))
                .expect("the closure always gives a value");
            if before > count {
                return;
            }
            if !node.gone.load(SeqCst) {
                shard.remove(node);
                return;
            }
        }
        // No name and nobody at work on it. Out of the table only afterwards, so that nobody reads it anew meanwhile.
        if !node.purged.swap(true, SeqCst)
            && let Err(fault) = self.purge(node)
        {
            // Its ORPHAN key stays: the next mount purges it.
            super::errno::answer(&self.vault, "purge", node.ino, &fault);
        }
        let mut shard = self.nodes.shard(node.ino);
        if node.holds.load(SeqCst) == 0 {
            shard.remove(node);
        }
    }

    /// Removes what is stored of an inode that has no name, as an operation of its own.
    fn purge(&self, node: &Node) -> Result<(), FsFault> {
        if self.options.read_only {
            return Ok(());
        }
        self.prepare_purge(node)?;
        let state = node.state();
        let mut op = self.vault.begin();
        self.purge_in(&mut op, node, &state);
        op.delete(key::orphan(node.ino));
        op.commit();
        Ok(())
    }

    /// Reads what `drop_name` will need; may read the index, so with no lock held.
    pub(super) fn prepare_purge(&self, node: &Node) -> Result<(), FsFault> {
        self.count_unknown_links(node)?;
        self.load_xattrs(node)?;
        if is(&node.inode(), libc::S_IFREG) {
            node.file(&self.vault);
        }
        Ok(())
    }

    fn purge_in(&self, op: &mut Op<'_>, node: &Node, state: &State) {
        let ino = node.ino;
        if is(&state.inode, libc::S_IFREG) {
            op.punch(node.file(&self.vault), 0, u64::MAX);
        }
        if is(&state.inode, libc::S_IFLNK) {
            op.delete(key::target(ino));
        }
        for name in state.xattrs.iter().flat_map(Xattrs::names) {
            op.delete(key::xattr(ino, name));
        }
        // What is given back is never refused.
        let _ = op.charge(ino, Some(&state.inode), None, Admit::Always);
        op.delete(key::inode(ino));
        op.inodes(-1);
    }

    /// Counts the names of an inode whose stored count is 0 though it is no orphan, and stores the number. Reads every
    /// name of the vault, so it is done before a name of that inode is added or removed, and not sooner.
    pub(super) fn count_unknown_links(&self, node: &Node) -> Result<(), FsFault> {
        while node.has_unknown_links() {
            let before = self.changes.load(SeqCst);
            let mut links = 0u32;
            self.scan_all(&[key::NAME], |_, entry| {
                links = links.saturating_add(u32::from(NameEntry::decode(entry)?.ino == node.ino));
                Ok(())
            })?;
            let _namespace = self.namespace.held();
            if self.changes.load(SeqCst) != before {
                continue;
            }
            if links == 0 {
                return Err(FsFault::NoEntry);
            }
            let mut state = node.state();
            state.inode.nlink = links;
            let mut op = self.vault.begin();
            op.put(key::inode(node.ino), state.inode.encode());
            op.commit();
            self.report_links(node.ino, &format!("was corrected to {links}, the number of names that lead to it"));
        }
        Ok(())
    }

    fn report_links(&self, ino: Ino, what: &str) {
        let text = format!(
            "inode {ino}: a stored link count of 0, without a record that its last name was removed; it {what}"
        );
        self.vault.stats().error(self.vault.world().now(), text);
    }

    /// Whether the index has a name in a directory. The stored number of entries may be wrong; `rmdir` goes by this.
    pub(super) fn has_entries(&self, dir: Ino) -> Result<bool, FsFault> {
        let names = key::prefix(key::NAME, dir.0);
        Ok(!self.vault.scan(&names, &names, 1)?.is_empty())
    }

    /// Takes one name (a directory: its only one) off an inode, whose pin the caller holds. With the last name it is
    /// removed at once, or marked for removal when nobody uses it any more. Needs `prepare_purge`.
    pub(super) fn drop_name(&self, op: &mut Op<'_>, pin: &Pin<'_>, state: &mut State) {
        let inode = &mut state.inode;
        // A count that says that the name just removed never was proves nothing about other names.
        let is_unknown = inode.nlink == 0;
        inode.nlink = if is(inode, libc::S_IFDIR) { 0 } else { inode.nlink.saturating_sub(1) };
        if inode.nlink > 0 || is_unknown && !is(inode, libc::S_IFDIR) {
            op.put(key::inode(pin.ino), inode.encode());
            return;
        }
        self.end_tree(op, pin.ino, inode);
        pin.gone.store(true, SeqCst);
        // One hold is the caller's. An operation that takes another from now on finds `has_name` false.
        if pin.holds.load(SeqCst) == 1 && !pin.purged.swap(true, SeqCst) {
            self.purge_in(op, pin, state);
        } else {
            op.put(key::inode(pin.ino), state.inode.encode());
            op.put(key::orphan(pin.ino), Vec::new());
        }
    }

    /// Removes the inodes that lost their last name while in use, when a crash came before their end.
    pub(super) fn purge_orphans(&self) -> Result<(), FsFault> {
        let mut orphans = Vec::new();
        self.scan_all(&[key::ORPHAN], |key, _| {
            orphans.push(Ino(key::split(key)?.1));
            Ok(())
        })?;
        for ino in orphans {
            match self.pin(ino) {
                Ok(pin) if !pin.has_name() => drop(pin),
                Err(FsFault::NoEntry) | Ok(_) => {
                    let mut op = self.vault.begin();
                    op.delete(key::orphan(ino));
                    op.commit();
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Every entry under a prefix, in order.
    pub(super) fn scan_all(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), FsFault>,
    ) -> Result<(), FsFault> {
        let mut from = prefix.to_vec();
        loop {
            let entries = self.vault.scan(prefix, &from, SCAN_ENTRIES)?;
            for (key, value) in &entries {
                each(key, value)?;
            }
            match entries.into_iter().nth(SCAN_ENTRIES - 1) {
                Some((mut last, _)) => {
                    last.push(0);
                    from = last;
                }
                None => return Ok(()),
            }
        }
    }
}

/// Whether an inode is of a type (`S_IFREG` …).
pub(super) fn is(inode: &Inode, kind: u32) -> bool {
    inode.mode & libc::S_IFMT == kind
}
