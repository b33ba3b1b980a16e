//! Quotas: what is on record for trees, users and groups, against what all inodes add up to.
//!
//! Promise: without findings, every count is the sum over the inodes that are charged to it, every directory carries the number of
//! the tree that it lies in, and no inode the number of a tree that is not on record. While a tree is being given its number, or
//! is giving it up, inodes with the one and the other are no damage: the next mount goes on with it. A file may carry the
//! number of another tree than its directory's: it had a name there once.
//! Called by: `survey` (adds each inode, then compares). On failure: the vault's fault.

use super::finding::{Finding, Place};
use super::nodes::{DIRECTORY, Nodes};
use super::survey::{Survey, each_entry};
use crate::base::id::{Ino, ROOT_INO};
use crate::format::inode::Inode;
use crate::format::key;
use crate::format::quota::{Account, Charge, Entry, QuotaState, Tree, Used, Walk};
use crate::vault::VaultFault;
use std::collections::BTreeMap;

/// What inodes add up to, by the number that they carry, and by owner and group.
#[derive(Default)]
pub struct Charged(BTreeMap<Account, Used>);

impl Charged {
    /// One more inode.
    pub fn add(&mut self, inode: &Inode) {
        let charge = Charge::from(inode);
        for account in [Account::Tree(charge.tree), Account::User(charge.uid), Account::Group(charge.gid)] {
            let used = self.0.entry(account).or_default();
            used.bytes += u128::from(charge.bytes);
            used.inodes += 1;
        }
    }
}

/// What is on record.
#[derive(Default)]
struct Record {
    state: QuotaState,
    trees: BTreeMap<u32, Tree>,
    used: BTreeMap<Account, Used>,
}

impl Record {
    /// The tree and those around it; `None` if that does not end.
    fn around(&self, tree: u32) -> Option<Vec<u32>> {
        let (mut at, mut all) = (tree, Vec::new());
        while at != 0 {
            all.push(at);
            at = self.trees.get(&at)?.parent;
            if all.len() > self.trees.len() {
                return None;
            }
        }
        Some(all)
    }

    /// The tree that a number stands for while walks are under way: one that is being made or unmade is that around it.
    fn settled(&self, mut tree: u32) -> u32 {
        for _ in 0..=self.trees.len() {
            match self.trees.get(&tree) {
                Some(t) if t.walk != Walk::Done => tree = t.parent,
                Some(_) | None => break,
            }
        }
        tree
    }

    /// The number that an inode should carry, if it carries a wrong one.
    fn should_carry(&self, nodes: &Nodes, at: usize) -> Option<u32> {
        let node = nodes.all()[at];
        let around = match nodes.get(node.home) {
            Some(dir) if node.ino != ROOT_INO => dir.tree,
            Some(_) | None => 0,
        };
        let known = |n: u32| n == 0 || self.trees.contains_key(&n);
        let begins = self
            .trees
            .get(&node.tree)
            .is_some_and(|tree| tree.root == node.ino && self.settled(tree.parent) == self.settled(around));
        let right = self.settled(node.tree) == self.settled(around) || begins;
        match (known(node.tree), node.kind == DIRECTORY && (node.names > 0 || node.ino == ROOT_INO)) {
            (false, _) => Some(if known(around) { around } else { 0 }),
            (true, true) if !right && known(around) => Some(around),
            (true, _) => None,
        }
    }
}

impl Survey<'_> {
    /// Compares what is on record with what was added up. After names.
    pub fn quotas(&mut self) -> Result<(), VaultFault> {
        let record = self.on_record()?;
        for at in 0..self.nodes.count() {
            let node = self.nodes.all()[at];
            if let Some(expected) = record.should_carry(&self.nodes, at).filter(|_| node.kind != 0) {
                self.found(Finding::TreeNumber { at: Place::of(node.ino), stored: node.tree, expected });
            }
        }
        let mut counted: BTreeMap<Account, Used> = BTreeMap::new();
        for (&account, used) in &self.charged.0 {
            let charged = match account {
                Account::Tree(n) => record.around(n).unwrap_or_default().into_iter().map(Account::Tree).collect(),
                Account::User(_) | Account::Group(_) if record.state.owners => vec![account],
                Account::User(_) | Account::Group(_) => Vec::new(),
            };
            for account in charged {
                let sum = counted.entry(account).or_default();
                sum.bytes += used.bytes;
                sum.inodes += used.inodes;
            }
        }
        let mut all: Vec<Account> = counted.keys().chain(record.used.keys()).copied().collect();
        all.sort_unstable();
        all.dedup();
        for account in all {
            let of = |counts: &BTreeMap<Account, Used>| counts.get(&account).copied().unwrap_or_default();
            let (stored, counted) = (of(&record.used), of(&counted));
            if stored != counted {
                self.found(Finding::QuotaCount { account, stored, counted });
            }
        }
        Ok(())
    }

    /// What is on record, as far as it makes sense.
    fn on_record(&mut self) -> Result<Record, VaultFault> {
        let (mut record, mut wrong) = (Record::default(), Vec::new());
        each_entry(self.vault, &[key::QUOTA], |k, value| {
            match Entry::decode(k, value) {
                Ok(Entry::State(state)) => record.state = state,
                Ok(Entry::Tree(n, tree)) => drop(record.trees.insert(n, tree)),
                Ok(Entry::Used(account, used)) => drop(record.used.insert(account, used)),
                Ok(Entry::Limits(..)) => {}
                Err(e) => wrong.push((k.to_vec(), e.what)),
            }
            Ok(())
        })?;
        for (n, tree) in &record.trees {
            let k = Account::Tree(*n).limits_key();
            if record.around(*n).is_none() {
                wrong.push((k, "quota tree in trees that are not there"));
            } else if tree.root != Ino(0) && !self.begins(*n, tree) {
                wrong.push((k, "quota tree without its directory"));
            }
        }
        for (k, why) in wrong {
            self.stray(&k, why);
        }
        Ok(record)
    }

    /// Whether a tree's root is a directory with its number; while numbers are given or taken, with that of the tree around it.
    fn begins(&self, number: u32, tree: &Tree) -> bool {
        let carries = |n: u32| n == number || tree.walk != Walk::Done && n == tree.parent;
        self.nodes.get(tree.root).is_some_and(|node| matches!(node.kind, 0 | DIRECTORY) && carries(node.tree))
    }
}
