//! Quota trees, and the limits of trees, users and groups.
//!
//! Promise: an inode is charged to the tree of the directory that it is in, for it takes its number over when it is made, and no
//! operation takes it into another tree; only a tree's root has another number than the directory around it. A limit on a
//! directory with content gives what lies below the tree's number one by one, each with its charge in one operation, so that
//! every moment's counts are right; what a crash interrupts is gone on with at the next mount.
//! A file with names inside and outside belongs to the tree in which it was met first.
//! Called by: `name`, `rename`, `node` (may it come, has it ended), `storage` (orders), `cli::quota`, tests.
//! Takes: the namespace lock for each inode that it tags. On failure: a fault; a walk that could not go on is remembered.

use super::node::is;
use super::{FileSystem, FsFault};
use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::NAME_BYTES_MAX;
use crate::base::lock::Held;
use crate::format::inode::{Inode, NameEntry};
use crate::format::key;
use crate::format::quota::{Account, Limits, Tree, Walk};
use crate::vault::{Admit, Op};

/// Names read at a time.
const WALK_NAMES: usize = 128;

/// What is to become of limits: `None` leaves one as it is, `Some(None)` takes it away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitChange {
    /// Most bytes.
    pub bytes: Option<Option<u64>>,
    /// Most inodes.
    pub inodes: Option<Option<u64>>,
    /// Bytes from which on it is told.
    pub soft_bytes: Option<Option<u64>>,
    /// Inodes from which on it is told.
    pub soft_inodes: Option<Option<u64>>,
}

/// Whose limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitOf {
    /// Of all in a directory.
    Tree(Ino),
    /// Of all that a user owns.
    User(u32),
    /// Of all that belongs to a group.
    Group(u32),
}

impl LimitChange {
    /// What becomes of limits.
    #[must_use]
    pub fn of(&self, limits: Limits) -> Limits {
        Limits {
            bytes: self.bytes.unwrap_or(limits.bytes),
            inodes: self.inodes.unwrap_or(limits.inodes),
            soft_bytes: self.soft_bytes.unwrap_or(limits.soft_bytes),
            soft_inodes: self.soft_inodes.unwrap_or(limits.soft_inodes),
        }
    }
}

/// What a step of a walk came to.
enum Step {
    /// A directory: what is in it comes next.
    Into(Ino),
    Done,
}

impl FileSystem {
    /// Refuses to take an inode into a directory of another tree.
    pub(super) fn may_come(&self, ino: Ino, inode: &Inode, dir: &Inode) -> Result<(), FsFault> {
        if inode.tree == dir.tree || self.tree_begun_at(ino, inode).is_some_and(|(_, tree)| tree.parent == dir.tree) {
            return Ok(());
        }
        Err(FsFault::OtherTree)
    }

    /// The tree that begins with an inode.
    fn tree_begun_at(&self, ino: Ino, inode: &Inode) -> Option<(u32, Tree)> {
        if inode.tree == 0 {
            return None;
        }
        self.vault.tree(inode.tree).filter(|tree| tree.root == ino).map(|tree| (inode.tree, tree))
    }

    /// A directory loses its name: with it ends the tree that begins there, as far as names go.
    pub(super) fn end_tree(&self, op: &mut Op<'_>, ino: Ino, inode: &Inode) {
        if let Some((number, _)) = self.tree_begun_at(ino, inode) {
            op.change_tree(number, |tree| {
                (tree.root, tree.limits, tree.walk) = (Ino(0), Limits::default(), Walk::Done)
            });
        }
    }

    /// Changes limits. Of a directory: it begins a tree if there was none, and ends it if no limit is left; with all that
    /// lies below, that takes as long as walking through it. Of a user or group: the first time, all inodes are counted.
    pub fn set_limits(&self, of: LimitOf, change: &LimitChange) -> Result<(), FsFault> {
        self.writable()?;
        let _one = self.walks.held();
        self.finish_walks()?;
        match of {
            LimitOf::Tree(dir) => self.limit_tree(dir, change),
            LimitOf::User(uid) => self.limit_owner(Account::User(uid), change),
            LimitOf::Group(gid) => self.limit_owner(Account::Group(gid), change),
        }
    }

    fn limit_owner(&self, account: Account, change: &LimitChange) -> Result<(), FsFault> {
        self.vault.count_owners()?;
        let known = self.vault.accounts().into_iter().find(|a| a.account == account);
        let mut op = self.vault.begin();
        op.limit_owner(account, change.of(known.map_or(Limits::default(), |a| a.limits)));
        op.commit();
        Ok(())
    }

    fn limit_tree(&self, dir: Ino, change: &LimitChange) -> Result<(), FsFault> {
        let pin = self.pin_dir(dir)?;
        {
            let _namespace = self.namespace.held();
            let inode = pin.inode();
            if !pin.has_name() {
                return Err(FsFault::NoEntry);
            }
            let known = self.tree_begun_at(dir, &inode);
            let limits = change.of(known.map_or(Limits::default(), |(_, tree)| tree.limits));
            match known {
                Some((number, _)) => {
                    let mut op = self.vault.begin();
                    let walk = if limits.is_none() { Walk::Untagging } else { Walk::Done };
                    op.change_tree(number, |tree| (tree.limits, tree.walk) = (limits, walk));
                    op.commit();
                }
                None if limits.is_none() => {}
                None => {
                    self.vault.begin_counting();
                    let mut op = self.vault.begin();
                    op.begin_tree(dir, inode.tree, limits)?;
                    op.commit();
                }
            }
        }
        self.finish_walks()
    }

    /// Goes on with every walk that has begun. Called by who holds `walks`, or before anyone else is at work.
    pub(super) fn finish_walks(&self) -> Result<(), FsFault> {
        for (number, tree) in self.vault.trees() {
            match tree.walk {
                Walk::Done => {}
                Walk::Tagging => {
                    let tagged = self.tag_below(number, &tree);
                    *self.renamed_meanwhile.held() = None;
                    tagged?;
                }
                Walk::Untagging => self.untag(number, &tree)?,
            }
        }
        Ok(())
    }

    fn tag_below(&self, number: u32, tree: &Tree) -> Result<(), FsFault> {
        match self.pin(tree.root) {
            Ok(root) => {
                {
                    let _namespace = self.namespace.held();
                    *self.renamed_meanwhile.held() = Some(Vec::new());
                    if root.inode().tree == tree.parent && root.has_name() {
                        self.retag(&root, number);
                    }
                }
                let mut dirs = vec![tree.root];
                loop {
                    while let Some(dir) = dirs.pop() {
                        self.tag_in(dir, tree.parent, number, &mut dirs)?;
                    }
                    let _namespace = self.namespace.held();
                    dirs.extend(self.renamed_meanwhile.held().iter_mut().flat_map(|renamed| renamed.drain(..)));
                    if dirs.is_empty() {
                        self.end_walk(number);
                        return Ok(());
                    }
                }
            }
            // Removed meanwhile.
            Err(FsFault::NoEntry) => {
                self.end_walk(number);
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    fn end_walk(&self, number: u32) {
        let mut op = self.vault.begin();
        op.change_tree(number, |tree| tree.walk = Walk::Done);
        op.commit();
    }

    /// Somebody renames within a directory, or into it. A walk that is at work there goes by the names, and may have passed the new
    /// one: so the inode gets the tree's number now, and a directory is looked into. Under the namespace lock, before the rename.
    pub(super) fn met_by_rename(&self, dir: &super::Pin<'_>, moved: &super::Pin<'_>) {
        let number = dir.inode().tree;
        let walked = (number != 0).then(|| self.vault.tree(number)).flatten().filter(|tree| tree.walk == Walk::Tagging);
        if let Some(tree) = walked
            && let Step::Into(ino) = self.meet(moved, tree.parent, number)
        {
            self.renamed_meanwhile.held().iter_mut().for_each(|renamed| renamed.push(ino));
        }
    }

    /// Tags what is in a directory, which has the number already: what comes into it from now on has it, too.
    fn tag_in(&self, dir: Ino, from: u32, to: u32, dirs: &mut Vec<Ino>) -> Result<(), FsFault> {
        let prefix = key::prefix(key::NAME, dir.0);
        let mut next = prefix.clone();
        loop {
            self.vault.admit_change()?;
            let page = self.vault.scan(&prefix, &next, WALK_NAMES)?;
            for (k, value) in &page {
                let (entry, name) = (NameEntry::decode(value)?, key::split(k)?.2);
                debug_assert!(name.len() <= NAME_BYTES_MAX, "names are checked before they are stored");
                if let Step::Into(dir) = self.tag(dir, name, entry, from, to)? {
                    dirs.push(dir);
                }
            }
            match page.into_iter().nth(WALK_NAMES - 1) {
                Some((last, _)) => next = [&last[..], &[0]].concat(),
                None => return Ok(()),
            }
        }
    }

    fn tag(&self, dir: Ino, name: &[u8], entry: NameEntry, from: u32, to: u32) -> Result<Step, FsFault> {
        let (above, pin) = match (self.pin(dir), self.pin(entry.ino)) {
            (Ok(above), Ok(pin)) => (above, pin),
            (Err(FsFault::NoEntry), _) | (_, Err(FsFault::NoEntry)) => return Ok(Step::Done),
            (Err(fault), _) | (_, Err(fault)) => return Err(fault),
        };
        let _namespace = self.namespace.held();
        // What has gone from here since it was listed is met where it is now, or belongs here no more.
        if above.inode().tree != to || self.find(dir, name)? != Some(entry) {
            return Ok(Step::Done);
        }
        Ok(self.meet(&pin, from, to))
    }

    /// Tags one inode in a directory that has the number. Under the namespace lock.
    fn meet(&self, pin: &super::Pin<'_>, from: u32, to: u32) -> Step {
        let inode = pin.inode();
        let is_dir = is(&inode, libc::S_IFDIR);
        if inode.tree == from {
            self.retag(pin, to);
        } else if let Some((inner, tree)) = self.tree_begun_at(pin.ino, &inode)
            && inode.tree != to
        {
            if tree.parent == from {
                let mut op = self.vault.begin();
                op.put_tree_into(inner, to);
                op.commit();
            }
            return Step::Done;
        } else if inode.tree != to {
            // It has a name elsewhere, and was met there first.
            return Step::Done;
        }
        if is_dir { Step::Into(pin.ino) } else { Step::Done }
    }

    /// Gives an inode a tree's number, and moves its charge. Called with the namespace lock held. Limits do not count: it was there before.
    fn retag(&self, pin: &super::Pin<'_>, to: u32) {
        let mut state = pin.state();
        if pin.is_purged() {
            // It gives its charge back, or has.
            return;
        }
        let after = Inode { tree: to, ..state.inode };
        let mut op = self.vault.begin();
        let _ = op.charge(pin.ino, Some(&state.inode), Some(&after), Admit::Always);
        state.inode = after;
        Self::store(&mut op, pin.ino, &state);
        op.commit();
    }

    /// Gives every inode of a tree the number of the tree around it, wherever it is; then the tree is no more. Not by walking through
    /// the names: what has none, or one elsewhere only, has the number, too.
    fn untag(&self, number: u32, tree: &Tree) -> Result<(), FsFault> {
        for (inner, _) in self.vault.trees().into_iter().filter(|(_, inner)| inner.parent == number) {
            let mut op = self.vault.begin();
            op.put_tree_into(inner, tree.parent);
            op.commit();
        }
        let mut next = key::inode(ROOT_INO);
        loop {
            self.vault.admit_change()?;
            // What is made in a directory that still has the number is a greater inode than all that are there, and comes later.
            let page = self.vault.scan(&[key::INODE], &next, WALK_NAMES)?;
            let Some((last, _)) = page.last() else { break };
            next = [&last[..], &[0]].concat();
            for (k, value) in &page {
                let tagged = Inode::decode(value).is_ok_and(|inode| inode.tree == number);
                if !tagged {
                    continue;
                }
                match self.pin(Ino(key::split(k)?.1)) {
                    Ok(pin) => {
                        let _namespace = self.namespace.held();
                        if pin.inode().tree == number {
                            self.retag(&pin, tree.parent);
                        }
                    }
                    Err(FsFault::NoEntry) => {}
                    Err(fault) => return Err(fault),
                }
            }
        }
        let mut op = self.vault.begin();
        op.change_tree(number, |tree| (tree.root, tree.walk) = (Ino(0), Walk::Done));
        op.commit();
        Ok(())
    }
}
