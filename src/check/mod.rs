//! Looks a whole vault over and lists what is wrong: names, inodes, extents, segments, and every byte if asked to.
//!
//! Promise: nothing is changed but what any mount changes (the lease, the recovered tail, the checkpoint). An empty list
//! means that everything looked at agrees with everything else. What is *found* is a `Finding`; that it could not *look*
//! is an error. Memory: some 60 bytes per inode, a little per segment, and at most `FINDINGS_MAX` findings.
//! How: one pass over each kind of key, in pages; what one kind says of another is compared when both have been seen.
//! Called by: `cli::check`, tests. Takes: the vault's lock, as a mount does.
//! On failure: why the vault did not open, or the backing directory's error.

mod data;
mod finding;
mod names;
mod nodes;
mod places;
mod survey;

pub use finding::{Finding, Place};

use crate::backing::Backing;
use crate::base::world::World;
use crate::seal::Unlock;
use crate::vault::{Locked, OpenFault, OpenOptions, VaultFault, lock};
use std::io;
use std::sync::Arc;
use survey::Survey;

/// Findings listed; the rest is counted. A vault with more damage than this is not understood line by line.
const FINDINGS_MAX: usize = 10_000;

/// Looks a vault over, with `read_data` down to every byte of every file.
///
/// `progress` is told bytes read of bytes in all; without `read_data` index entries seen, of nobody knows how many (0).
pub fn check(
    backing: &Arc<dyn Backing>,
    unlock: &Unlock,
    world: &Arc<dyn World>,
    read_data: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Finding>, OpenFault> {
    check_locked(lock(Arc::clone(backing))?, unlock, world, read_data, progress)
}

/// The same for a vault whose lock is held already.
pub fn check_locked(
    locked: Locked,
    unlock: &Unlock,
    world: &Arc<dyn World>,
    read_data: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Finding>, OpenFault> {
    let backing = Arc::clone(locked.backing());
    let options = OpenOptions { workers: 1, read_only: true, ..OpenOptions::default() };
    let vault = locked.open(unlock, &options, Arc::clone(world))?;
    let mut survey = Survey::new(&vault, &*backing, progress);
    let looked = survey.run(read_data);
    let mut findings = survey.finish();
    match looked {
        // The rest of the index is out of reach; what was found until then holds.
        Err(VaultFault::Index(why)) => findings.push(Finding::IndexUnreadable { why: why.to_string() }),
        other => other.map_err(could_not_look)?,
    }
    vault.close().map_err(could_not_look)?;
    Ok(findings)
}

fn could_not_look(fault: VaultFault) -> OpenFault {
    match fault {
        VaultFault::Backing(e) => OpenFault::Backing(match e.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(e.kind(), e.to_string()),
        }),
        other => OpenFault::Damaged(other.to_string()),
    }
}
