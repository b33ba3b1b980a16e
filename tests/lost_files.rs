//! Attacks a vault by taking its files away, one kind at a time: the roots, the header, the lock.
//!
//! Method: build a vault on a disk in memory, with several leases and segments, damage what a test names, open it again
//! and compare every byte. Promise: losing a file that has a copy changes nothing that a user sees; losing what has none is
//! refused with a sentence that names what mends it, and that mends it; nothing ever reads wrong.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/small.rs"]
mod small;

use small::{check_all, made, opened, overwrite, try_open, unlock, world, write};
use std::sync::Arc;
use strongroom::backing::{Backing, Cache, Fate, MemoryBacking, Open, read_file};
use strongroom::vault::{CreateOptions, HEADER, HEADER_COPY, LOCK, OpenFault, OpenOptions, create};

const ROOTS: [&str; 2] = ["root.a", "root.b"];

/// A vault of `leases` leases, each with one file; with `crash` the last of them ended by a power cut.
fn built(leases: u64, crash: bool) -> MemoryBacking {
    let disk = made();
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
