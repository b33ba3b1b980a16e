//! Writes and reads the two roots (format.md §2).
//!
//! Promise: roots are written alternately, so that a torn write leaves the other; what is read back was written with the
//! key. Called by: `create`, `open`, `checkpoint`, `close`. On failure: no root holds → `Damaged`.

use crate::backing::{Backing, Cache, Open};
use crate::base::id::VaultId;
use crate::base::world::World;
use crate::format::root::{MAGIC, PLAIN_BYTES, ROOT_BYTES, ROOT_VERSION, Root};
use crate::seal::MasterKey;
use std::io;

const NONCE: std::ops::Range<usize> = 8..32;
const SEALED: std::ops::Range<usize> = 32..32 + PLAIN_BYTES;
const TAG: std::ops::Range<usize> = SEALED.end..SEALED.end + 16;

/// The names of the two files.
pub const NAMES: [&str; 2] = ["root.a", "root.b"];

/// The bytes of a root file.
fn seal(root: &Root, master: &MasterKey, vault: VaultId, world: &dyn World) -> Vec<u8> {
    let mut b = vec![0; ROOT_BYTES];
    b[..4].copy_from_slice(&MAGIC);
    b[4..6].copy_from_slice(&ROOT_VERSION.to_le_bytes());
    let mut nonce = [0; 24];
    world.fill(&mut nonce);
    b[NONCE].copy_from_slice(&nonce);
    b[SEALED].copy_from_slice(&root.encode());
    let (aad, rest) = b.split_at_mut(NONCE.start);
    let sealed = &mut rest[SEALED.start - NONCE.start..SEALED.end - NONCE.start];
    let tag = master.pages(vault, "root", &[0; 16]).seal(aad, &nonce, sealed);
    b[TAG].copy_from_slice(&tag);
    b
}

fn open(b: &[u8], master: &MasterKey, vault: VaultId) -> Option<Root> {
    if b.len() != ROOT_BYTES || b[..4] != MAGIC || b[4..6] != ROOT_VERSION.to_le_bytes() {
        return None;
    }
    let mut plain = b[SEALED].to_vec();
    let (nonce, tag) = (b[NONCE].try_into().ok()?, b[TAG].try_into().ok()?);
    master.pages(vault, "root", &[0; 16]).open(&b[..NONCE.start], nonce, &mut plain, tag).ok()?;
    Root::decode(&plain).ok()
}

/// Writes a root in the place that its generation says, and syncs it.
pub fn write(
    backing: &dyn Backing,
    root: &Root,
    master: &MasterKey,
    vault: VaultId,
    world: &dyn World,
) -> io::Result<()> {
    let name = NAMES[(root.generation.0 % 2) as usize];
    let (file, new) = match backing.open(name, Open::Write, Cache::Buffered) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => (backing.open(name, Open::Create, Cache::Buffered)?, true),
        other => (other?, false),
    };
    file.write_all_at(&seal(root, master, vault, world), 0)?;
    file.sync_data()?;
    if new { backing.sync_dir("") } else { Ok(()) }
}

/// The newest root that holds.
pub fn read(backing: &dyn Backing, master: &MasterKey, vault: VaultId) -> io::Result<Option<Root>> {
    let mut newest: Option<Root> = None;
    for name in NAMES {
        let root = match crate::backing::read_file(backing, name, ROOT_BYTES) {
            Ok(bytes) => open(&bytes, master, vault),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
            Err(e) => return Err(e),
        };
        newest = newest.into_iter().chain(root).max_by_key(|r| r.generation);
    }
    Ok(newest)
}
