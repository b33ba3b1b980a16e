//! Gives findings their paths, once all is found.
//!
//! Promise: memory and time by the number of findings and the size of the directories concerned, not of the vault: each
//! such directory is read once. Called by: `survey`. On failure: what cannot be named keeps its inode number.

use super::finding::Finding;
use super::nodes::Nodes;
use super::survey::each_entry;
use crate::base::id::{Ino, ROOT_INO};
use crate::format::inode::NameEntry;
use crate::format::key;
use crate::vault::{Vault, VaultFault};
use std::collections::{BTreeMap, BTreeSet};

/// Fills in the paths.
pub fn name_places(vault: &Vault, nodes: &Nodes, findings: &mut [Finding]) {
    let mut wanted: BTreeMap<Ino, BTreeSet<Ino>> = BTreeMap::new();
    for place in findings.iter_mut().filter_map(Finding::place_mut) {
        let mut at = place.ino;
        // Up to the root, or to where someone has been before.
        while let Some(home) = home(nodes, at) {
            if !wanted.entry(home).or_default().insert(at) {
                break;
            }
            at = home;
        }
    }
    let mut names = BTreeMap::new();
    for (dir, mut inside) in wanted {
        // A fault here was told by the survey; the inode numbers stand.
        let _ = each_entry(vault, &key::prefix(key::NAME, dir.0), |name, value| {
            if let (Ok((_, _, name)), Ok(entry)) = (key::split(name), NameEntry::decode(value))
                && inside.remove(&entry.ino)
            {
                names.insert(entry.ino, name.to_vec());
            }
            Ok::<(), VaultFault>(())
        });
    }
    for place in findings.iter_mut().filter_map(Finding::place_mut) {
        place.path = path(nodes, &names, place.ino);
    }
}

/// The directory that an inode's first name is in.
fn home(nodes: &Nodes, ino: Ino) -> Option<Ino> {
    nodes.get(ino).filter(|n| ino != ROOT_INO && n.home.0 != 0).map(|n| n.home)
}

fn path(nodes: &Nodes, names: &BTreeMap<Ino, Vec<u8>>, ino: Ino) -> Option<Vec<u8>> {
    if ino == ROOT_INO {
        return nodes.get(ino).map(|_| b"/".to_vec());
    }
    let mut parts = Vec::new();
    let mut at = ino;
    while at != ROOT_INO {
        parts.push(names.get(&at)?);
        // More steps than names: a cycle.
        if parts.len() > names.len() {
            return None;
        }
        at = home(nodes, at)?;
    }
    Some(parts.iter().rev().flat_map(|part| [b"/", &part[..]].concat()).collect())
}
