//! The inodes in use: those at work or worked with lately as nodes, the rest of what the kernel remembers as a number each.
//!
//! Promise: a node is in the table while anyone is at work on it, and once only. The kernel may remember millions of inodes; what
//! it does not touch is let go of here, down to how many look-ups it will forget one day, so that memory stays bounded. A node that
//! is let go of is read from the index again, for everything in it is stored (the root of an empty vault mounted for reading only
//! is not, and the root stays).
//! Takes: a shard's lock, for a map operation only. Called by: `node`. Cannot fail.

use super::node::Node;
use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::{NODES_MAX, NODES_MIN, NODES_PER_BUDGET_BYTES};
use crate::base::lock::Held;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

const SHARDS: usize = 64;
/// Most nodes looked at for letting go each time that one comes.
const LOOKS: usize = 8;

/// One part of the table.
#[derive(Default)]
pub(super) struct Shard {
    nodes: HashMap<u64, Arc<Node>>,
    /// Look-ups that the kernel has not forgotten, of inodes without a node.
    remembered: HashMap<u64, u64>,
    /// Who came when, oldest first; some have gone since.
    line: VecDeque<u64>,
    /// Nodes dropped so far: an inode read before a drop may be older than what the dropped node held.
    pub(super) drops: u64,
    most: usize,
}

/// All inodes in use.
pub(super) struct Nodes {
    shards: Vec<Mutex<Shard>>,
}

impl Nodes {
    /// As many nodes as a byte budget allows.
    pub(super) fn within(budget_bytes: u64) -> Nodes {
        Nodes::new((budget_bytes / NODES_PER_BUDGET_BYTES).clamp(NODES_MIN, NODES_MAX) as usize)
    }

    /// At most so many nodes beside those at work.
    pub(super) fn new(most: usize) -> Nodes {
        let most = most / SHARDS;
        Nodes { shards: (0..SHARDS).map(|_| Mutex::new(Shard { most, ..Shard::default() })).collect() }
    }

    /// The part that an inode belongs to.
    pub(super) fn shard(&self, ino: Ino) -> MutexGuard<'_, Shard> {
        self.shards[(ino.0 as usize) % SHARDS].held()
    }

    /// Inodes in use, as nodes or not.
    pub(super) fn count(&self) -> usize {
        let of = |s: &Shard| s.nodes.len() + s.remembered.len();
        self.shards.iter().map(|s| of(&s.held())).sum()
    }
}

impl Shard {
    /// A node, if there is one.
    pub(super) fn get(&self, ino: Ino) -> Option<&Arc<Node>> {
        self.nodes.get(&ino.0)
    }

    /// Puts a node in, with the look-ups that were remembered of it.
    pub(super) fn insert(&mut self, node: &Arc<Node>) {
        let ino = node.ino.0;
        if let Some(lookups) = self.remembered.remove(&ino) {
            node.holds.fetch_add(lookups, SeqCst);
        }
        self.nodes.insert(ino, Arc::clone(node));
        self.line.push_back(ino);
        self.let_go();
    }

    /// Takes a node out, if it is still the one.
    pub(super) fn remove(&mut self, node: &Arc<Node>) {
        if self.nodes.get(&node.ino.0).is_some_and(|n| Arc::ptr_eq(n, node)) {
            self.nodes.remove(&node.ino.0);
            self.drops += 1;
        }
    }

    /// The kernel forgets `count` look-ups of an inode that has no node.
    pub(super) fn forget(&mut self, ino: Ino, count: u64) {
        if let Some(lookups) = self.remembered.get_mut(&ino.0) {
            *lookups = lookups.saturating_sub(count);
            if *lookups == 0 {
                self.remembered.remove(&ino.0);
            }
        }
    }

    /// While there are too many: whoever has stood in line longest and was not used meanwhile goes.
    fn let_go(&mut self) {
        for _ in 0..LOOKS {
            let too_many = self.nodes.len() > self.most;
            // Those who have gone by themselves leave their place in the line behind.
            if !too_many && self.line.len() <= 2 * self.nodes.len() + LOOKS {
                return;
            }
            let Some(ino) = self.line.pop_front() else { return };
            let Some(node) = self.nodes.get(&ino) else { continue };
            // Each operation has a share of it, taken under this lock; without one nobody is at work.
            let idle = Arc::strong_count(node) == 1 && !node.gone.load(SeqCst) && ino != ROOT_INO.0;
            if node.used.swap(false, Relaxed) || !too_many || !idle {
                self.line.push_back(ino);
                continue;
            }
            let lookups = node.holds.load(SeqCst);
            self.nodes.remove(&ino);
            self.drops += 1;
            if lookups > 0 {
                self.remembered.insert(ino, lookups);
            }
        }
    }
}
