//! Looks a whole vault over and lists what is wrong: names, inodes, extents, segments, and as much of the data as asked.
//!
//! Promise: looking changes nothing but the `lock` file: the vault is opened in a shadow of its directory, where the lease, the
//! recovered tail and the checkpoint that any mount writes stay in memory. An empty list means that everything looked at
//! agrees with everything else. What is *found* is a `Finding`; that it could not *look* is an error, or, of one file or range
//! among many, a finding that says no more than that (`Finding::is_unread`). Memory: some 60
//! bytes per inode, a little per segment, at most `FINDINGS_MAX` findings, and what recovery writes: little, unless the
//! index is lost, for then it is rebuilt in memory.
//! How: one pass over each kind of key, in pages; what one kind says of another is compared when both have been seen.
//! Called by: `cli::check`, tests. Takes: the vault's lock, as a mount does.
//! On failure: why the vault did not open, or the backing directory's error.

mod advice;
mod damage;
mod data;
mod derived;
mod finding;
mod media;
mod mender;
mod names;
mod nodes;
mod places;
mod quota;
mod repair;
mod share;
mod sharing;
mod survey;

pub use damage::Damage;
pub use finding::{Finding, Place};
pub use media::{Media, scrub_media};
pub use mender::Owner;
pub use repair::{Mended, Repaired, rebuild, repair};
pub use share::Share;

use crate::backing::Backing;
use crate::base::world::World;
use crate::seal::Unlock;
use crate::segment::snapshot_path;
use crate::vault::{Locked, OpenFault, OpenOptions, Spoiled, SpoiledSnapshot, Vault, VaultFault, lock};
use nodes::Nodes;
use std::sync::Arc;
use survey::Survey;

/// Findings listed; the rest is counted. A vault with more damage than this is not understood line by line.
const FINDINGS_MAX: usize = 10_000;

/// Looks a vault over, with `read_data` down to the bytes of every file, or a share of them.
///
/// `progress` is told bytes read of bytes in all; without `read_data` index entries seen, of nobody knows how many (0).
pub fn check(
    backing: &Arc<dyn Backing>,
    unlock: &Unlock,
    world: &Arc<dyn World>,
    read_data: impl Into<Share>,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Finding>, OpenFault> {
    check_locked(lock(Arc::clone(backing))?, unlock, world, read_data.into(), progress)
}

/// The same for a vault whose lock is held already.
pub fn check_locked(
    locked: Locked,
    unlock: &Unlock,
    world: &Arc<dyn World>,
    read_data: Share,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Finding>, OpenFault> {
    let copies = locked.spoiled_copies(unlock)?;
    let locked = locked.shadow();
    let options = OpenOptions { workers: 1, read_only: true, ..OpenOptions::default() };
    let vault = match locked.open(unlock, &options, Arc::clone(world)) {
        Err(OpenFault::Index(why)) => {
            return Ok(copies.into_iter().map(copy_finding).chain([Finding::IndexUnreadable { why }]).collect());
        }
        opened => opened?,
    };
    let (mut findings, _) = look(&vault, read_data, progress)?;
    if let Some(unread) = unread_index(vault.close())?
        && !findings.iter().any(is_unread_index)
    {
        findings.push(unread);
    }
    Ok(copies.into_iter().map(copy_finding).chain(findings).collect())
}

/// Makes a finding of an index that does not read: the rest of it is out of reach, and what was found until then holds.
fn unread_index(did: Result<(), VaultFault>) -> Result<Option<Finding>, OpenFault> {
    match did {
        Err(VaultFault::Index(why)) => Ok(Some(Finding::IndexUnreadable { why: why.to_string() })),
        other => Ok(other.map(|()| None)?),
    }
}

fn is_unread_index(finding: &Finding) -> bool {
    matches!(finding, Finding::IndexUnreadable { .. })
}

/// Looks an open vault over.
fn look(vault: &Vault, read_data: Share, progress: &dyn Fn(u64, u64)) -> Result<(Vec<Finding>, Nodes), OpenFault> {
    let mut survey = Survey::new(vault, read_data, progress);
    if let Some(why) = vault.index_lost() {
        survey.found(Finding::IndexLost { why: why.to_owned() });
    }
    if vault.lost_records() > 0 {
        survey.found(Finding::RecordsLost { frames: vault.lost_records() });
    }
    for file in vault.stray_files()? {
        survey.found(Finding::StrayFile { file });
    }
    let looked = unread_index(survey.run());
    // As much of them as of the data: nothing but their beginning, or all.
    for SpoiledSnapshot { number, why, is_unread } in vault.spoiled_snapshots(read_data != Share::Nothing)? {
        survey.found(match is_unread {
            true => Finding::FileUnread { file: snapshot_path(number), why },
            false => Finding::SnapshotSpoiled { commit: number, why },
        });
    }
    let (mut findings, nodes) = survey.finish();
    findings.extend(looked?);
    Ok((findings, nodes))
}

/// What a look at the files that are kept twice has found.
fn copy_finding(Spoiled { file, unread }: Spoiled) -> Finding {
    match unread {
        Some(why) => Finding::FileUnread { file: file.to_owned(), why },
        None => Finding::CopySpoiled { file },
    }
}
