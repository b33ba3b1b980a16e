//! What trees, users and groups have used, and whether they may use more.
//!
//! Promise: an account's count is the sum over the inodes that are charged to it, after every operation, and in every commit.
//! Why it holds: an operation moves an inode and its charge while it holds the gate; a cut, which holds the gate alone, puts
//! the counts that changed, as they are then, into the batch that it cuts. So a commit has whole operations and their counts,
//! and there is nothing that could drift (`docs/decisions/quotas-are-counted-in-the-commit.md`). Over a limit, nothing is charged:
//! looking and charging are one step under one lock, and an operation that is given up gives its charge back.
//! Called by: `op` (charges), `log` (stores), `start` (loads), `fs` and `check` (limits, trees, recounts).
//! Takes: its own lock, last, for memory work only. On failure: `OverQuota`, which says whose; nothing was charged.

use super::batch::Batch;
use super::op::Op;
use super::shared::Shared;
use super::{Vault, VaultFault};
use crate::base::id::Ino;
use crate::base::lock::{Held, Shared as _};
use crate::format::inode::Inode;
use crate::format::quota::{Account, Charge, Entry, Limits, QuotaState, Tree, Used, Walk, state_key};
use crate::format::record::Record;
use crate::format::{Malformed, key};
use crate::index::Index;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// An account may not use that much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverQuota {
    /// Whose limit it is.
    pub account: Account,
}

/// Whether limits count for a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// What makes an account use more than its hard limit is refused.
    WithinLimits,
    /// It is charged in any case: what is only counted otherwise, or given back.
    Always,
}

/// An account, for whoever shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountReport {
    /// Which.
    pub account: Account,
    /// What it has used.
    pub used: Used,
    /// What it may use.
    pub limits: Limits,
    /// Of a tree, the rest that is said of it.
    pub tree: Option<Tree>,
}

impl AccountReport {
    /// Whether it has used more than a soft limit.
    pub fn is_over_soft(&self) -> bool {
        let Limits { soft_bytes, soft_inodes, .. } = self.limits;
        soft_bytes.is_some_and(|limit| self.used.bytes > u128::from(limit))
            || soft_inodes.is_some_and(|limit| self.used.inodes > limit)
    }
    /// Whether it has used all that a hard limit gives it.
    pub fn is_full(&self) -> bool {
        let Limits { bytes, inodes, .. } = self.limits;
        bytes.is_some_and(|limit| self.used.bytes >= u128::from(limit))
            || inodes.is_some_and(|limit| self.used.inodes >= limit)
    }
}

/// Inodes counted at a time, with the gate held.
const RECOUNT_INODES: usize = 256;

/// A count, in the making: between a charge and what it is charged against it may be below zero in a damaged vault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    bytes: i128,
    inodes: i64,
}

impl Sum {
    fn add(&mut self, other: Sum, sign: i8) {
        // Counts come from the disk: wrong ones must not wrap.
        self.bytes = self.bytes.saturating_add(other.bytes.saturating_mul(i128::from(sign)));
        self.inodes = self.inodes.saturating_add(other.inodes.saturating_mul(i64::from(sign)));
    }
    fn used(self) -> Used {
        Used { bytes: self.bytes.max(0) as u128, inodes: self.inodes.max(0) as u64 }
    }
}

type Sums = BTreeMap<Account, Sum>;

/// A second count beside the first: all inodes up to a number, by the index, and every operation on these since.
#[derive(Default)]
struct Recount {
    up_to: Ino,
    sums: Sums,
}

/// All accounts.
#[derive(Default)]
struct Ledger {
    state: QuotaState,
    trees: BTreeMap<u32, Tree>,
    /// Of users and groups.
    limits: BTreeMap<Account, Limits>,
    sums: Sums,
    /// Whose count is not in the log as it is.
    changed: BTreeSet<Account>,
    /// Whether `state` is not there as it is.
    state_changed: bool,
    recount: Option<Recount>,
}

/// What is shared of it.
#[derive(Default)]
pub struct Quotas {
    ledger: Mutex<Ledger>,
    /// Whether anything at all is counted; becomes so only while the gate is held alone, or before anything runs.
    counts: AtomicBool,
    /// One recount at a time.
    recounting: Mutex<()>,
}

/// What an operation has charged: given back unless the operation becomes visible.
pub struct Charges<'a> {
    quotas: &'a Quotas,
    done: Vec<(Ino, Option<Charge>, Option<Charge>)>,
}

impl<'a> Charges<'a> {
    /// Nothing yet.
    pub(super) fn none(quotas: &'a Quotas) -> Charges<'a> {
        Charges { quotas, done: Vec::new() }
    }
    /// It is visible.
    pub(super) fn keep(&mut self) {
        self.done.clear();
    }
}

impl Drop for Charges<'_> {
    fn drop(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let mut ledger = self.quotas.ledger.held();
        for (ino, before, after) in self.done.drain(..).rev() {
            // Nothing is refused that is given back.
            let _ = ledger.charge(ino, after, before, Admit::Always);
        }
    }
}

impl Ledger {
    /// The tree and those around it, innermost first.
    fn around(&self, tree: u32) -> impl Iterator<Item = u32> + '_ {
        let up = |n: &u32| self.trees.get(n).map(|tree| tree.parent).filter(|&parent| parent != 0);
        // Damage could make a ring of them.
        std::iter::successors(Some(tree).filter(|&n| n != 0), up).take(self.trees.len() + 1)
    }

    /// Everyone who is charged.
    fn accounts(&self, charge: &Charge, owners: bool) -> Vec<Account> {
        let owners = owners.then_some([Account::User(charge.uid), Account::Group(charge.gid)]);
        self.around(charge.tree).map(Account::Tree).chain(owners.into_iter().flatten()).collect()
    }

    fn limits(&self, account: Account) -> Limits {
        match account {
            Account::Tree(n) => self.trees.get(&n).map_or(Limits::default(), |tree| tree.limits),
            Account::User(_) | Account::Group(_) => self.limits.get(&account).copied().unwrap_or_default(),
        }
    }

    /// What changes for whom when an inode was charged as `before` and is as `after`.
    fn deltas(&self, before: Option<Charge>, after: Option<Charge>, owners: bool) -> Sums {
        let mut deltas = Sums::new();
        for (charge, sign) in [(before, -1), (after, 1)] {
            let Some(charge) = charge else { continue };
            for account in self.accounts(&charge, owners) {
                let one = Sum { bytes: i128::from(charge.bytes), inodes: 1 };
                deltas.entry(account).or_default().add(one, sign);
            }
        }
        deltas.retain(|_, delta| *delta != Sum::default());
        deltas
    }

    fn charge(
        &mut self,
        ino: Ino,
        before: Option<Charge>,
        after: Option<Charge>,
        admit: Admit,
    ) -> Result<(), OverQuota> {
        let deltas = self.deltas(before, after, self.state.owners);
        if admit == Admit::WithinLimits {
            for (&account, delta) in &deltas {
                let (limits, mut then) = (self.limits(account), self.sums.get(&account).copied().unwrap_or_default());
                then.add(*delta, 1);
                let over = |then: i128, limit: Option<u64>| limit.is_some_and(|limit| then > i128::from(limit));
                if delta.bytes > 0 && over(then.bytes, limits.bytes)
                    || delta.inodes > 0 && over(i128::from(then.inodes), limits.inodes)
                {
                    return Err(OverQuota { account });
                }
            }
        }
        for (account, delta) in deltas {
            self.sums.entry(account).or_default().add(delta, 1);
            self.changed.insert(account);
        }
        if self.recount.as_ref().is_some_and(|recount| ino <= recount.up_to) {
            self.recharge(before, after);
        }
        Ok(())
    }

    /// The same in the second count, which counts everyone.
    fn recharge(&mut self, before: Option<Charge>, after: Option<Charge>) {
        let deltas = self.deltas(before, after, true);
        let Some(recount) = &mut self.recount else { return };
        for (account, delta) in deltas {
            recount.sums.entry(account).or_default().add(delta, 1);
        }
    }

    /// Puts a tree into another one, with all that is charged to it.
    fn put_into(&mut self, number: u32, parent: u32) {
        let (old, new): (Vec<u32>, Vec<u32>) = (self.around(number).skip(1).collect(), self.around(parent).collect());
        let Some(tree) = self.trees.get_mut(&number) else { return };
        tree.parent = parent;
        for (n, sign) in old.into_iter().map(|n| (n, -1)).chain(new.into_iter().map(|n| (n, 1))) {
            let (above, it) = (Account::Tree(n), Account::Tree(number));
            let sum = self.sums.get(&it).copied().unwrap_or_default();
            self.sums.entry(above).or_default().add(sum, sign);
            self.changed.insert(above);
            if let Some(recount) = &mut self.recount {
                let sum = recount.sums.get(&it).copied().unwrap_or_default();
                recount.sums.entry(above).or_default().add(sum, sign);
            }
        }
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::State(state) => self.state = state,
            Entry::Tree(n, tree) => drop(self.trees.insert(n, tree)),
            Entry::Limits(account, limits) => drop(self.limits.insert(account, limits)),
            Entry::Used(account, used) => {
                let bytes = i128::try_from(used.bytes).unwrap_or(i128::MAX / 2);
                self.sums.insert(account, Sum { bytes, inodes: i64::try_from(used.inodes).unwrap_or(i64::MAX / 2) });
            }
        }
    }

    fn counts(&self) -> bool {
        self.state.owners || !self.trees.is_empty() || self.recount.is_some()
    }

    fn report(&self) -> Vec<AccountReport> {
        let trees = self.trees.keys().map(|&n| Account::Tree(n));
        let all: BTreeSet<Account> =
            trees.chain(self.limits.keys().copied()).chain(self.sums.keys().copied()).collect();
        all.into_iter().map(|account| self.report_of(account)).collect()
    }

    fn report_of(&self, account: Account) -> AccountReport {
        AccountReport {
            account,
            used: self.sums.get(&account).copied().unwrap_or_default().used(),
            limits: self.limits(account),
            tree: if let Account::Tree(n) = account { self.trees.get(&n).copied() } else { None },
        }
    }

    /// Counts that changed, as records; what nobody uses and nothing is said of is forgotten.
    fn store(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut changes = Vec::new();
        if std::mem::take(&mut self.state_changed) {
            changes.push((state_key(), Some(self.state.encode())));
        }
        for account in std::mem::take(&mut self.changed) {
            let sum = self.sums.get(&account).copied().unwrap_or_default();
            if sum != Sum::default() {
                changes.push((account.used_key(), Some(sum.used().encode())));
                continue;
            }
            self.sums.remove(&account);
            changes.push((account.used_key(), None));
            // A tree that has ended, and of which nothing is open any more.
            if let Account::Tree(n) = account
                && self.trees.get(&n).is_some_and(|tree| tree.root == Ino(0) && tree.walk == Walk::Done)
            {
                self.trees.remove(&n);
                changes.push((account.limits_key(), None));
            }
        }
        changes
    }
}

impl Quotas {
    /// As the index has them. What makes no sense is for `check` to find, and counts as not there.
    pub(super) fn load(index: &Index) -> Result<Quotas, VaultFault> {
        let (mut ledger, mut from) = (Ledger::default(), vec![key::QUOTA]);
        loop {
            let page = index.scan(&[key::QUOTA], &from, 256)?;
            for (k, value) in &page {
                match Entry::decode(k, value) {
                    Ok(entry) => ledger.take(entry),
                    Err(Malformed { what }) => log::error!("an entry about quotas makes no sense: {what}"),
                }
            }
            match page.into_iter().nth(255) {
                Some((last, _)) => from = [&last[..], &[0]].concat(),
                None => break,
            }
        }
        // No number is given out twice, whatever became of the state.
        let newest = ledger.trees.keys().last().map_or(0, |n| n.saturating_add(1));
        ledger.state.next_tree = ledger.state.next_tree.max(newest);
        let counts = ledger.counts().into();
        Ok(Quotas { ledger: Mutex::new(ledger), counts, recounting: Mutex::default() })
    }

    /// Puts the counts that changed into a batch that is being cut; the gate is held alone.
    pub(super) fn store(shared: &Shared, batch: &mut Batch) {
        let quotas = &shared.quotas;
        if !quotas.counts.load(SeqCst) {
            return;
        }
        let changes = quotas.ledger.held().store();
        for (key, value) in &changes {
            batch.record(&match value {
                Some(value) => Record::Put { key, value },
                None => Record::Delete { key },
            });
        }
        shared.index.change(changes);
    }

    fn charge(
        &self,
        done: &mut Charges<'_>,
        ino: Ino,
        before: Option<Charge>,
        after: Option<Charge>,
        admit: Admit,
    ) -> Result<(), OverQuota> {
        // Most vaults count nothing, and most operations move nothing.
        if before == after || !self.counts.load(SeqCst) {
            return Ok(());
        }
        self.ledger.held().charge(ino, before, after, admit)?;
        done.done.push((ino, before, after));
        Ok(())
    }
}

impl Op<'_> {
    /// Moves an inode's charge: from what it was (`None`: not there) to what it will be. Before anything else is changed.
    pub fn charge(
        &mut self,
        ino: Ino,
        before: Option<&Inode>,
        after: Option<&Inode>,
        admit: Admit,
    ) -> Result<(), OverQuota> {
        let (quotas, charges) = (&self.shared.quotas, &mut self.charges);
        quotas.charge(charges, ino, before.map(Charge::from), after.map(Charge::from), admit)
    }

    /// Begins a tree at a directory, within another or none; gives its number. To be committed. Fails, and changes nothing, if the
    /// numbers of trees are used up, which only damage can have done.
    pub fn begin_tree(&mut self, root: Ino, parent: u32, limits: Limits) -> Result<u32, VaultFault> {
        let (number, tree, state) = {
            let mut ledger = self.shared.quotas.ledger.held();
            let number = ledger.state.next_tree;
            let next = number.checked_add(1);
            let next = next.ok_or_else(|| VaultFault::Index("the numbers of quota trees are used up".into()))?;
            self.has_begun = true;
            ledger.state.next_tree = next;
            let tree = Tree { limits, root, parent, walk: Walk::Tagging };
            ledger.trees.insert(number, tree);
            (number, tree, ledger.state)
        };
        self.put(state_key(), state.encode());
        self.put(Account::Tree(number).limits_key(), tree.encode());
        Ok(number)
    }

    /// Changes what is said of a tree, but for the tree around it. To be committed.
    pub fn change_tree(&mut self, number: u32, change: impl FnOnce(&mut Tree)) {
        self.begin_change();
        let tree = {
            let mut ledger = self.shared.quotas.ledger.held();
            let Some(tree) = ledger.trees.get_mut(&number) else { return };
            let parent = tree.parent;
            change(tree);
            tree.parent = parent;
            let tree = *tree;
            // It is forgotten with the next commit if nobody uses it.
            ledger.changed.insert(Account::Tree(number));
            tree
        };
        self.put(Account::Tree(number).limits_key(), tree.encode());
    }

    /// Puts a tree into another one, or into none (0). To be committed.
    pub fn put_tree_into(&mut self, number: u32, parent: u32) {
        self.begin_change();
        let tree = {
            let mut ledger = self.shared.quotas.ledger.held();
            ledger.put_into(number, parent);
            ledger.trees.get(&number).copied()
        };
        if let Some(tree) = tree {
            self.put(Account::Tree(number).limits_key(), tree.encode());
        }
    }

    /// Says what a user or a group may use. To be committed.
    pub fn limit_owner(&mut self, account: Account, limits: Limits) {
        debug_assert!(!matches!(account, Account::Tree(_)), "a tree's limits are part of the tree");
        self.begin_change();
        {
            let mut ledger = self.shared.quotas.ledger.held();
            if limits.is_none() {
                ledger.limits.remove(&account)
            } else {
                ledger.limits.insert(account, limits)
            };
        }
        if limits.is_none() {
            self.delete(account.limits_key());
        } else {
            self.put(account.limits_key(), limits.encode());
        }
    }
}

impl Vault {
    /// Every account that is counted or limited, in order.
    pub fn accounts(&self) -> Vec<AccountReport> {
        self.shared.quotas.ledger.held().report()
    }

    /// What is said of a tree.
    pub fn tree(&self, number: u32) -> Option<Tree> {
        self.shared.quotas.ledger.held().trees.get(&number).copied()
    }

    /// All trees.
    pub fn trees(&self) -> Vec<(u32, Tree)> {
        self.shared.quotas.ledger.held().trees.iter().map(|(&n, &tree)| (n, tree)).collect()
    }

    /// Whether anything is counted: without, there are no trees.
    pub fn counts_quotas(&self) -> bool {
        self.shared.quotas.counts.load(SeqCst)
    }

    /// Whether users and groups are counted.
    pub fn counts_owners(&self) -> bool {
        self.shared.quotas.ledger.held().state.owners
    }

    /// Whether any account has a hard limit of bytes.
    pub fn limits_bytes(&self) -> bool {
        let ledger = self.shared.quotas.ledger.held();
        let trees = ledger.trees.values().map(|tree| tree.limits);
        trees.chain(ledger.limits.values().copied()).any(|limits| limits.bytes.is_some())
    }

    /// A tree and those around it.
    pub fn trees_around(&self, tree: u32) -> Vec<AccountReport> {
        let ledger = self.shared.quotas.ledger.held();
        ledger.around(tree).map(|n| ledger.report_of(Account::Tree(n))).collect()
    }

    /// Begins to count: from the moment that the first tree is begun, so under the gate, alone.
    pub fn begin_counting(&self) {
        let _gate = self.shared.gate.alone();
        self.shared.quotas.counts.store(true, SeqCst);
    }

    /// Begins to count users and groups, if that has not begun: one count of all inodes, beside whatever is at work.
    pub fn count_owners(&self) -> Result<(), VaultFault> {
        if self.counts_owners() {
            return Ok(());
        }
        self.recount(|ledger, counted| {
            // In the same commit as the counts: without it, they mean nothing.
            (ledger.state.owners, ledger.state_changed) = (true, true);
            for (account, sum) in counted.into_iter().filter(|(account, _)| !matches!(account, Account::Tree(_))) {
                ledger.sums.insert(account, sum);
                ledger.changed.insert(account);
            }
        })?;
        // A batch with nothing else in it is not cut.
        let mut op = self.begin();
        op.put(state_key(), self.shared.quotas.ledger.held().state.encode());
        op.commit();
        Ok(())
    }

    /// Counts all inodes anew, beside whatever is at work, and gives every account whose count is another: (account, on record,
    /// counted).
    pub fn recount_quotas(&self) -> Result<Vec<(Account, Used, Used)>, VaultFault> {
        self.recount(|ledger, counted| {
            let owners = ledger.state.owners;
            let is_counted = |account: &Account| owners || matches!(account, Account::Tree(_));
            let of = |sums: &Sums, account| sums.get(&account).copied().unwrap_or_default().used();
            let all: BTreeSet<Account> = ledger.sums.keys().chain(counted.keys()).copied().filter(is_counted).collect();
            let pairs = all.into_iter().map(|account| (account, of(&ledger.sums, account), of(&counted, account)));
            pairs.filter(|(_, stored, counted)| stored != counted).collect()
        })
    }

    /// Takes counts, trees and limits from the index anew: for whoever has mended them there, with nobody else at work.
    pub fn reload_quotas(&self) -> Result<(), VaultFault> {
        let s = &self.shared;
        let _gate = s.gate.alone();
        let loaded = Quotas::load(&s.index)?;
        let mut ledger = s.quotas.ledger.held();
        std::mem::swap(&mut *ledger, &mut *loaded.ledger.held());
        s.quotas.counts.store(ledger.counts(), SeqCst);
        Ok(())
    }

    /// The second count, page by page: who holds the gate alone sees what all operations have left, so an inode counts as
    /// it is when its page comes, and from then on moves with its operations. At the end, still under the gate, `then`.
    fn recount<T>(&self, then: impl FnOnce(&mut Ledger, Sums) -> T) -> Result<T, VaultFault> {
        let s = &self.shared;
        let _one = s.quotas.recounting.held();
        {
            let _gate = s.gate.alone();
            s.quotas.ledger.held().recount = Some(Recount::default());
            s.quotas.counts.store(true, SeqCst);
        }
        let finished = loop {
            let _gate = s.gate.alone();
            match self.recount_page() {
                Ok(true) => {}
                // What has come since has a greater number, and whoever comes waits at the gate.
                last => {
                    break last.map(|_| {
                        let mut ledger = s.quotas.ledger.held();
                        let sums = ledger.recount.take().map(|recount| recount.sums).unwrap_or_default();
                        then(&mut ledger, sums)
                    });
                }
            }
        };
        s.quotas.ledger.held().recount = None;
        finished
    }

    /// Counts some more inodes, the gate held alone; says whether there may be more. It may read the index from disk while
    /// operations wait, as an operation under the namespace lock may.
    fn recount_page(&self) -> Result<bool, VaultFault> {
        let s = &self.shared;
        let from = s.quotas.ledger.held().recount.as_ref().map_or(Ino(0), |r| r.up_to);
        let page = s.index.scan(&[key::INODE], &key::inode(Ino(from.0 + 1)), RECOUNT_INODES)?;
        let mut ledger = s.quotas.ledger.held();
        for (k, value) in &page {
            let ino = key::split(k)?.1;
            // What makes no sense is for `check` to find; it is charged to nobody.
            if let Ok(inode) = Inode::decode(value) {
                ledger.recharge(None, Some(Charge::from(&inode)));
            }
            if let Some(recount) = &mut ledger.recount {
                recount.up_to = Ino(ino);
            }
        }
        Ok(page.len() == RECOUNT_INODES)
    }
}
