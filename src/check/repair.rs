//! Mends what was found: looks, mends, looks again, until nothing is left that can be mended.
//!
//! Promise: afterwards a look finds nothing, or only what is lost. What is mended is what a later look no longer finds, so
//! nothing is believed for having been tried. The order: open the vault, by stronger means where it does not open; where
//! derived keys are wrong, the index anew from the log, which is the truth of them (I5); where the log has lost segments
//! that this needs, derived keys in place; then inodes, names, the nameless, counts, each on a survey of its own.
//! Called by: `cli::check`, tests. Takes: the vault's lock, which is let go of and taken again where the vault is reopened.
//! On failure: why the vault could not be opened, or went on failing; what was mended until then stays mended.

use super::finding::Finding;
use super::mender::{Mender, Owner, PHASE_LAST, phase};
use super::share::Share;
use super::{copy_finding, derived, is_unread_index, look, unread_index};
use crate::base::world::World;
use crate::seal::Unlock;
use crate::vault::{Locked, OpenFault, OpenOptions, ROOTS, SpoiledSnapshot, Vault};
use std::sync::Arc;

/// Surveys at most; each mends at least one kind of finding, so that many is a fault of ours.
const ROUNDS_MAX: usize = 40;

/// A finding that is no longer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// What it was.
    pub finding: Finding,
    /// What was done about it.
    pub did: String,
}

/// What became of a vault.
#[derive(Debug, Default)]
pub struct Repaired {
    /// In the order in which it was done.
    pub mended: Vec<Mended>,
    /// What a look finds now.
    pub left: Vec<Finding>,
}

/// A repair under way.
struct Repair<'a> {
    again: &'a dyn Fn() -> Result<Locked, OpenFault>,
    unlock: &'a Unlock,
    world: &'a Arc<dyn World>,
    owner: Owner,
    read_data: Share,
    progress: &'a dyn Fn(u64, u64),
    /// What the first look found.
    first: Vec<Finding>,
    /// Files kept twice that could not be read.
    unread: Vec<Finding>,
    done: Repaired,
}

/// Mends what can be mended, taking the lock again with `again` where the vault has to be reopened; with `read_data` also says at last what does not read.
pub fn repair(
    locked: Locked,
    again: &dyn Fn() -> Result<Locked, OpenFault>,
    unlock: &Unlock,
    world: &Arc<dyn World>,
    owner: Owner,
    read_data: Share,
    progress: &dyn Fn(u64, u64),
) -> Result<Repaired, OpenFault> {
    let (first, unread, done) = (Vec::new(), Vec::new(), Repaired::default());
    let mut repair = Repair { again, unlock, world, owner, read_data, progress, first, unread, done };
    for spoiled in locked.spoiled_copies(unlock)? {
        // A header that could not be read is left alone, and looked at once more at the end.
        if spoiled.unread.is_none() || ROOTS.contains(&spoiled.file) {
            repair.note(copy_finding(spoiled), "written anew from its copy");
        } else {
            repair.unread.push(copy_finding(spoiled));
        }
    }
    let vault = repair.open(locked)?;
    let vault = repair.derive_anew(vault)?;
    repair.run(&vault)?;
    vault.close()?;
    Ok(repair.done)
}

/// Makes the index anew from the log, then looks.
pub fn rebuild(
    locked: Locked,
    unlock: &Unlock,
    world: &Arc<dyn World>,
    read_data: Share,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Finding>, OpenFault> {
    let options = OpenOptions { rebuild_index: true, read_only: true, ..options() };
    let vault = locked.open(unlock, &options, Arc::clone(world))?;
    let (findings, _) = look(&vault, read_data, progress)?;
    vault.close()?;
    Ok(findings)
}

fn options() -> OpenOptions {
    OpenOptions { workers: 1, ..OpenOptions::default() }
}

impl Repair<'_> {
    fn note(&mut self, finding: Finding, did: &str) {
        self.done.mended.push(Mended { finding, did: did.to_owned() });
    }

    fn try_open(&self, locked: Locked, options: &OpenOptions) -> Result<Arc<Vault>, OpenFault> {
        locked.open(self.unlock, options, Arc::clone(self.world))
    }

    /// Opens the vault with the gentlest means that do.
    fn open(&mut self, locked: Locked) -> Result<Arc<Vault>, OpenFault> {
        let mut means = options();
        let mut opened = self.try_open(locked, &means);
        if let Err(OpenFault::RootsLost) = opened {
            self.note(Finding::RootsLost, "made anew from the log, as far as it goes");
            means.rebuild_roots = true;
            opened = self.try_open((self.again)()?, &means);
        }
        // The log as it is, with another index; then, with the index as it is, what contradicts itself passed over; then both.
        for (rebuild_index, salvage) in [(true, false), (false, true), (true, true)] {
            let Err(OpenFault::Damaged(why) | OpenFault::Index(why)) = &opened else { break };
            log::warn!("the vault does not open: {why}");
            means = OpenOptions { rebuild_index, salvage, ..means };
            opened = self.try_open((self.again)()?, &means);
        }
        let vault = opened?;
        if means.rebuild_index {
            self.note(
                Finding::IndexLost { why: "the vault did not open with it".to_owned() },
                "made anew from the log",
            );
        }
        if let Some(why) = vault.index_lost() {
            self.note(Finding::IndexLost { why: why.to_owned() }, "made anew from the log");
        }
        if vault.lost_records() > 0 {
            let finding = Finding::RecordsLost { frames: vault.lost_records() };
            self.note(finding, "took in what is left, as it will stay");
        }
        Ok(vault)
    }

    /// If derived keys are wrong: the same vault with an index that was made from the log, where that can be had.
    fn derive_anew(&mut self, vault: Arc<Vault>) -> Result<Arc<Vault>, OpenFault> {
        let (before, _) = self.look(&vault, Share::Nothing)?;
        self.first = before.clone();
        let wrong = |f: &Finding| derived::is_about(f) || is_unread_index(f);
        if !before.iter().any(wrong) {
            return Ok(vault);
        }
        // Its last checkpoint may need a page that does not read.
        unread_index(vault.close())?;
        drop(vault);
        let again = |options: OpenOptions| self.try_open((self.again)()?, &options);
        // From all of the log, where it is all there: a snapshot has what the index had when it was taken.
        let vault = match again(OpenOptions { rebuild_index: true, whole_log: true, ..options() }) {
            // The log has lost what this needs: the index as it is knows more.
            Err(OpenFault::Damaged(why) | OpenFault::Index(why)) => {
                log::warn!("the index cannot be made anew from the log: {why}");
                return again(options());
            }
            other => other?,
        };
        let (after, _) = self.look(&vault, Share::Nothing)?;
        for finding in before.into_iter().filter(|f| wrong(f) && !after.contains(f)) {
            self.note(finding, "made the index anew from the log");
        }
        Ok(vault)
    }

    fn look(&self, vault: &Vault, share: Share) -> Result<(Vec<Finding>, super::nodes::Nodes), OpenFault> {
        let (mut findings, nodes) = look(vault, share, self.progress)?;
        // Said when it was opened.
        findings.retain(|f| !matches!(f, Finding::IndexLost { .. } | Finding::RecordsLost { .. }));
        Ok((findings, nodes))
    }

    /// Has another snapshot taken where one does not hold: of the index as it is mended by now. The one that does not hold goes; and
    /// so do all, where counts or extents were wrong: they may have taken that over.
    fn mend_snapshots(&mut self, vault: &Vault) -> Result<(), OpenFault> {
        let mut spoiled = vault.spoiled_snapshots(true)?;
        // One that the disk did not give may be as good as ever: it stays, and is among what is left.
        spoiled.retain(|it| !it.is_unread);
        let wrong = self.done.mended.iter().any(|m| derived::is_about(&m.finding));
        if spoiled.is_empty() && (!wrong || vault.snapshots().is_empty()) {
            return Ok(());
        }
        match vault.replace_snapshots(wrong) {
            Ok(()) => {
                for SpoiledSnapshot { number: commit, why, .. } in spoiled {
                    self.note(Finding::SnapshotSpoiled { commit, why }, "removed, and another one taken");
                }
            }
            // It is among what is left, then.
            Err(fault) => log::warn!("another snapshot of the index: {fault}"),
        }
        Ok(())
    }

    fn run(&mut self, vault: &Vault) -> Result<(), OpenFault> {
        for _ in 0..ROUNDS_MAX {
            let (findings, nodes) = self.look(vault, Share::Nothing)?;
            let plan = derived::plan(vault, &findings)?;
            if !plan.changes.is_empty() {
                vault.set_derived(plan.changes.into_iter().collect())?;
                for (i, did) in plan.did {
                    self.note(findings[i].clone(), &did);
                }
                continue;
            }
            let mut any = false;
            for now in 0..=PHASE_LAST {
                let todo: Vec<&Finding> = findings.iter().filter(|f| phase(f) == Some(now)).collect();
                let mut mender = Mender::new(vault, &nodes, self.owner, &todo)?;
                for finding in todo {
                    if let Some(did) = mender.mend(finding)? {
                        any = true;
                        self.done.mended.push(Mended { finding: finding.clone(), did });
                    }
                }
                // What comes later may look otherwise after this.
                if any {
                    break;
                }
            }
            // Its counts are those that were on record, and the next commit would have them.
            vault.reload_quotas()?;
            // What is punched and counted by it is in the index before anyone looks again.
            vault.sync_wait()?;
            vault.checkpoint()?;
            if !any {
                break;
            }
        }
        self.mend_snapshots(vault)?;
        self.done.left = self.look(vault, self.read_data)?.0;
        self.done.left.append(&mut self.unread);
        let Repaired { mended, left } = &mut self.done;
        mended.retain(|m| !left.contains(&m.finding));
        // A damage is often found in two places, and mended in one.
        for finding in std::mem::take(&mut self.first) {
            let told = left.contains(&finding) || mended.iter().any(|m| m.finding == finding);
            // That the disk gave it the second time is no repair of ours.
            let told = told || finding.is_unread();
            if !told && !matches!(finding, Finding::More { .. }) {
                mended.push(Mended { finding, did: "it came right with the others".to_owned() });
            }
        }
        Ok(())
    }
}
