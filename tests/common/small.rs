//! Small vaults on a disk in memory, driven by the vault's own face: for tests that damage or exchange their files.
//!
//! Promise: file `n` holds `body(n)` and nothing else; every function fails the test rather than give half an answer.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;
use strongroom::backing::{Backing, Cache, MemoryBacking, Open};
use strongroom::base::id::Ino;
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::format::key;
use strongroom::seal::Unlock;
use strongroom::vault::{CreateOptions, OpenFault, OpenOptions, Vault, create, open};

pub fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

pub fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

pub fn made() -> MemoryBacking {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    disk
}

pub fn try_open(disk: &MemoryBacking, options: &OpenOptions) -> Result<Arc<Vault>, OpenFault> {
    open(Arc::new(disk.clone()), &unlock(), options, world())
}

pub fn opened(disk: &MemoryBacking) -> Arc<Vault> {
    try_open(disk, &OpenOptions::default()).unwrap()
}

pub fn body(ino: u64) -> Vec<u8> {
    (0..20_000 + ino * 1000).map(|i| (i * ino / 3) as u8).collect()
}

pub fn write(vault: &Vault, ino: u64) {
    let (file, data) = (vault.file(Ino(ino)), body(ino));
    let room = vault.reserve(&file, 0, data.len() as u64).unwrap();
    let mut op = vault.begin();
    op.write(&file, 0, &data, room);
    op.put(key::inode(Ino(ino)), data.len().to_le_bytes().to_vec());
    op.commit();
}

/// Whether a file is there; if it is, all of it must be.
pub fn has(vault: &Vault, ino: u64) -> bool {
    let there = vault.get(&key::inode(Ino(ino))).unwrap().is_some();
    let (want, mut got) = (body(ino), Vec::new());
    vault.read(&vault.file(Ino(ino)), 0, want.len(), &mut got).unwrap();
    assert!(if there { got == want } else { got.iter().all(|b| *b == 0) }, "inode {ino}");
    there
}

/// Files 10, 11, … must all be there.
pub fn check_all(vault: &Vault, files: u64) {
    (10..10 + files).for_each(|ino| assert!(has(vault, ino), "inode {ino} is lost"));
}

pub fn overwrite(disk: &MemoryBacking, path: &str, bytes: &[u8]) {
    let file = match disk.open(path, Open::Write, Cache::Buffered) {
        Ok(file) => file,
        Err(_) => disk.open(path, Open::Create, Cache::Buffered).unwrap(),
    };
    file.set_len(0).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir)).unwrap();
}
