//! Makes a vault.
//!
//! Promise: everything is synced before the header gets its name, so a half-made vault cannot be taken for one.
//! Called by: `cli::init`. On failure: `NotEmpty`, or the disk's error; what was made is left for a person to look at.

use super::{CreateOptions, OpenFault, header_file, root};
use crate::backing::Backing;
use crate::base::id::{Epoch, Generation, VaultId};
use crate::base::world::World;
use crate::format::leases::Leases;
use crate::format::root::Root;
use crate::format::segment::LogPosition;
use crate::seal::{NewVault, Unlock, VaultKeys, create_header, header_mark, open_header, preferred_suite};
use crate::segment::SNAPSHOTS;
use std::sync::Arc;

/// What a directory may hold and still count as empty: a fresh filesystem's own.
const TOLERATED: &str = "lost+found";

/// Makes a vault in an empty directory.
pub fn create(
    backing: &Arc<dyn Backing>,
    unlock: &Unlock,
    options: &CreateOptions,
    world: &Arc<dyn World>,
) -> Result<(), OpenFault> {
    if backing.list("")?.iter().any(|name| name != TOLERATED) {
        return Err(OpenFault::NotEmpty);
    }
    let mut id = [0; 16];
    world.fill(&mut id);
    let new = NewVault {
        vault: VaultId(id),
        suite: options.suite.unwrap_or_else(preferred_suite),
        compression: options.compression,
        quota_bytes: options.quota_bytes,
        quota_inodes: options.quota_inodes,
        argon2: options.argon2,
    };
    let (header, master) = create_header(&**world, &new, unlock, options.recovery.as_ref())?;
    let values = open_header(&header, &Unlock::Master(master.clone()))?.0;
    backing.make_dir("segments")?;
    backing.make_dir("index")?;
    backing.make_dir(SNAPSHOTS)?;
    let first = Root {
        generation: Generation(1),
        epoch: Epoch(0),
        covered: LogPosition::START,
        index_file: 0,
        clean: true,
        header: Some(header_mark(&values, &master)),
        emergency: String::new(),
        other_leases: Leases::default(),
    };
    root::write(&**backing, &first, &VaultKeys::first(master.clone()), new.vault, &**world)?;
    backing.sync_dir("segments")?;
    backing.sync_dir("index")?;
    backing.sync_dir(SNAPSHOTS)?;
    backing.sync_dir("")?;
    header_file::store(&**backing, &header)?;
    Ok(())
}
