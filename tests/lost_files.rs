//! Attacks a vault by taking its files away, one kind at a time: the roots, the header, the lock.
//!
//! Method: build a vault on a disk in memory, with several leases and segments, damage what a test names, open it again
//! and compare every byte. Promise: losing a file that has a copy changes nothing that a user sees; losing what has none is
//! refused with a sentence that names what mends it, and that mends it; nothing ever reads wrong.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;
use strongroom::backing::{Backing, Cache, Fate, MemoryBacking, Open, read_file};
use strongroom::base::id::Ino;
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::format::key;
use strongroom::seal::Unlock;
use strongroom::vault::{CreateOptions, HEADER, HEADER_COPY, LOCK, OpenFault, OpenOptions, Vault, create, open};

const ROOTS: [&str; 2] = ["root.a", "root.b"];

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn try_open(disk: &MemoryBacking, options: &OpenOptions) -> Result<Arc<Vault>, OpenFault> {
    open(Arc::new(disk.clone()), &unlock(), options, world())
}

fn opened(disk: &MemoryBacking) -> Arc<Vault> {
    try_open(disk, &OpenOptions::default()).unwrap()
}

fn body(ino: u64) -> Vec<u8> {
    (0..20_000 + ino * 1000).map(|i| (i * ino / 3) as u8).collect()
}

fn write(vault: &Vault, ino: u64) {
    let (file, data) = (vault.file(Ino(ino)), body(ino));
    let room = vault.reserve(&file, 0, data.len() as u64).unwrap();
    let mut op = vault.begin();
    op.write(&file, 0, &data, room);
    op.put(key::inode(Ino(ino)), data.len().to_le_bytes().to_vec());
    op.commit();
}

fn check_all(vault: &Vault, files: u64) {
    for ino in 10..10 + files {
        let (want, mut got) = (body(ino), Vec::new());
        vault.read(&vault.file(Ino(ino)), 0, want.len(), &mut got).unwrap();
        assert!(got == want, "inode {ino}");
    }
}

/// A vault of `leases` leases, each with one file; with `crash` the last of them ended by a power cut.
fn built(leases: u64, crash: bool) -> MemoryBacking {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    for lease in 0..leases {
        let vault = opened(&disk);
        write(&vault, 10 + lease);
        vault.sync_wait().unwrap();
        if crash && lease == leases - 1 {
            return disk.crash(|_, _| false);
        }
        vault.close().unwrap();
    }
    disk.crash(|_, _| false)
}

fn overwrite(disk: &MemoryBacking, path: &str, bytes: &[u8]) {
    let file = disk.open(path, Open::Write, Cache::Buffered).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
}

#[test]
fn either_root_is_enough_and_comes_back() {
    for crash in [false, true] {
        for name in ROOTS {
            let disk = built(3, crash);
            disk.remove(name).unwrap();
            disk.sync_dir("").unwrap();
            let vault = opened(&disk);
            check_all(&vault, 3);
            drop(vault);
            let other = if name == ROOTS[0] { ROOTS[1] } else { ROOTS[0] };
            overwrite(&disk, other, b"gone");
            check_all(&opened(&disk), 3);
        }
    }
}

#[test]
fn without_roots_the_vault_is_refused_by_name_and_mended_when_asked() {
    for crash in [false, true] {
        for index_too in [false, true] {
            let disk = built(3, crash);
            overwrite(&disk, ROOTS[0], &[0xa5; 4096]);
            disk.remove(ROOTS[1]).unwrap();
            if index_too {
                for name in disk.list("index").unwrap() {
                    disk.remove(&format!("index/{name}")).unwrap();
                }
            }
            let refused = try_open(&disk, &OpenOptions::default()).map(|_| ()).unwrap_err();
            assert!(matches!(refused, OpenFault::RootsLost), "{refused}");
            assert!(refused.to_string().contains("strongroom check --repair"), "{refused}");
            let mending = OpenOptions { rebuild_roots: true, ..OpenOptions::default() };
            let vault = try_open(&disk, &mending).unwrap();
            check_all(&vault, 3);
            assert!(vault.gauges().epoch > 3, "a lease that wrote a segment was given out again");
            write(&vault, 13);
            vault.close().unwrap();
            drop(vault);
            check_all(&opened(&disk), 4);
        }
    }
}

/// What a file may be overwritten with.
const RUBBLE: [&[u8]; 4] = [b"", b"format = 1\n", &[0xff; 600], &[b'#'; 100_000]];

#[test]
fn either_header_is_enough_and_comes_back() {
    for name in [HEADER, HEADER_COPY] {
        let disk = built(2, false);
        let good = read_file(&disk, HEADER, 1 << 16).unwrap();
        assert_eq!(read_file(&disk, HEADER_COPY, 1 << 16).unwrap(), good);
        let mut changed = good.clone();
        let digit = String::from_utf8(good.clone()).unwrap().find("created = ").unwrap() + 10;
        changed[digit] ^= 1;
        for damage in RUBBLE.iter().copied().chain([&changed[..], &good[..good.len() / 2]]).map(Some).chain([None]) {
            match damage {
                Some(bytes) => overwrite(&disk, name, bytes),
                None => disk.remove(name).unwrap(),
            }
            check_all(&opened(&disk), 2);
            let after = disk.crash(|_, _| false);
            for name in [HEADER, HEADER_COPY] {
                assert!(read_file(&after, name, 1 << 16).unwrap() == good, "{name} did not come back");
            }
        }
    }
    let disk = built(1, false);
    disk.remove(HEADER).unwrap();
    disk.remove(HEADER_COPY).unwrap();
    assert!(matches!(try_open(&disk, &OpenOptions::default()), Err(OpenFault::NotAVault)));
}

#[test]
fn what_is_in_the_lock_file_does_not_matter() {
    let disk = built(2, true);
    for bytes in RUBBLE {
        disk.remove(LOCK).ok();
        let file = disk.open(LOCK, Open::Create, Cache::Buffered).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        check_all(&opened(&disk), 2);
    }
    disk.remove(LOCK).unwrap();
    check_all(&opened(&disk), 2);
}

#[test]
fn a_half_made_vault_is_no_vault() {
    let disk = MemoryBacking::default();
    disk.record();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    let (mut cuts, mut whole) = (disk.cuts(), 0);
    loop {
        for coins in 0..6 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            match try_open(&after, &OpenOptions::default()) {
                Ok(vault) => {
                    whole += 1;
                    vault.close().unwrap();
                }
                Err(fault) => assert!(matches!(fault, OpenFault::NotAVault), "cut {}: {fault}", cuts.cut()),
            }
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(whole >= 6, "at least after the last call it is a vault");
}
