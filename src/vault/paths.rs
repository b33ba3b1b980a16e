//! A path for an inode, found by looking through names: for whoever must tell a person which file is meant.
//!
//! Promise: a path that is given led to its inode when it was looked for; an inode without a name has none.
//! Called by: `scrub`, `rekey`, when something is hurt; `report`, for directories. Cost: every name of the vault is looked at once; for a
//! directory, which knows the one above, those beside it and beside each above it.
//! On failure: the index's fault.

use super::VaultFault;
use crate::base::id::{Ino, ROOT_INO};
use crate::format::inode::{Inode, NameEntry};
use crate::format::key;
use crate::index::Index;
use std::collections::{BTreeMap, BTreeSet};

/// Names looked up at a time.
const SCAN: usize = 64;
/// Longest chain of directories that is followed for a path.
const DEPTH_MAX: usize = 4096;

/// Paths of some inodes, from the root; of those that have one.
pub fn of(index: &Index, wanted: &BTreeSet<Ino>) -> Result<BTreeMap<Ino, Vec<u8>>, VaultFault> {
    let mut paths = BTreeMap::new();
    for (ino, (parent, name)) in homes(index, wanted)? {
        if let Some(path) = of_directory(index, parent) {
            paths.insert(ino, [&path[..], b"/", &name[..]].concat());
        }
    }
    Ok(paths)
}

/// A directory and a name in it for each of some inodes, found by looking through all names.
fn homes(index: &Index, wanted: &BTreeSet<Ino>) -> Result<BTreeMap<Ino, (Ino, Vec<u8>)>, VaultFault> {
    let mut homes = BTreeMap::new();
    each(index, &[key::NAME], |parent, name, entry| {
        if wanted.contains(&entry.ino) {
            homes.entry(entry.ino).or_insert_with(|| (parent, name.to_vec()));
        }
        homes.len() == wanted.len()
    })?;
    Ok(homes)
}

/// The path of a directory, without a `/` at its end.
pub fn of_directory(index: &Index, mut at: Ino) -> Option<Vec<u8>> {
    let mut parts = Vec::new();
    while at != ROOT_INO {
        let parent = Inode::decode(&index.get(&key::inode(at)).ok()??).ok()?.parent;
        let mut found = None;
        each(index, &key::prefix(key::NAME, parent.0), |_, name, entry| {
            if entry.ino == at {
                found = Some(name.to_vec());
            }
            found.is_some()
        })
        .ok()?;
        parts.push(found?);
        if parts.len() > DEPTH_MAX {
            return None;
        }
        at = parent;
    }
    Some(parts.iter().rev().flat_map(|part| [b"/", &part[..]].concat()).collect())
}

/// Hands names over, in pages, until it is told that this is enough.
fn each(index: &Index, prefix: &[u8], mut look: impl FnMut(Ino, &[u8], &NameEntry) -> bool) -> Result<(), VaultFault> {
    let mut next = prefix.to_vec();
    loop {
        let found = index.scan(prefix, &next, SCAN)?;
        let Some((last, _)) = found.last() else { return Ok(()) };
        next = [&last[..], &[0]].concat();
        for (k, v) in &found {
            let (_, parent, name) = key::split(k)?;
            if look(Ino(parent), name, &NameEntry::decode(v)?) {
                return Ok(());
            }
        }
    }
}
