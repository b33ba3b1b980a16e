//! Attacks a vault by taking its files away, one kind at a time: the roots, the header, the lock.
//!
//! Method: build a vault on a disk in memory, with several leases and segments, damage what a test names, open it again
//! and compare every byte. Promise: losing a file that has a copy changes nothing that a user sees; losing what has none is
//! refused with a sentence that names what mends it, and that mends it; nothing ever reads wrong.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/small.rs"]
mod small;

use small::{body, check_all, has, made, opened, overwrite, try_open, unlock, world, write};
use std::sync::Arc;
use strongroom::backing::{Backing, Cache, Fate, MemoryBacking, Open, read_file};
use strongroom::base::id::Ino;
use strongroom::format::key;
use strongroom::vault::{CreateOptions, HEADER, HEADER_COPY, LOCK, OpenFault, OpenOptions, Vault, create};

const ROOTS: [&str; 2] = ["root.a", "root.b"];

/// A vault of `leases` leases, each with one file; with `crash` the last of them ended by a power cut.
fn built(leases: u64, crash: bool) -> MemoryBacking {
    let disk = made();
    for lease in 0..leases {
        let vault = opened(&disk);
        write(&vault, 10 + lease);
        vault.sync_wait().unwrap();
        if (1..3).contains(&lease) {
            vault.snapshot().unwrap();
        }
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

/// What befalls a file.
const DAMAGES: [(&str, fn(&MemoryBacking, &str)); 6] = [
    ("deleted", |disk, path| {
        disk.remove(path).unwrap();
        disk.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir)).unwrap();
    }),
    ("emptied", |disk, path| overwrite(disk, path, b"")),
    ("cut in half", |disk, path| {
        let bytes = read_file(disk, path, 1 << 30).unwrap();
        overwrite(disk, path, &bytes[..bytes.len() / 2]);
    }),
    ("overwritten", |disk, path| {
        let len = read_file(disk, path, 1 << 30).unwrap().len();
        overwrite(disk, path, &noise(len));
    }),
    ("overwritten in its second half", |disk, path| {
        let mut bytes = read_file(disk, path, 1 << 30).unwrap();
        let half = bytes.len() / 2;
        let len = bytes.len();
        bytes[half..].copy_from_slice(&noise(len - half));
        overwrite(disk, path, &bytes);
    }),
    ("zeroed", |disk, path| {
        let len = read_file(disk, path, 1 << 30).unwrap().len();
        overwrite(disk, path, &vec![0; len]);
    }),
];

fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| step()).collect()
}

/// Every file of a backing directory.
fn files(disk: &MemoryBacking) -> Vec<String> {
    let below = |dir: &str| disk.list(dir).unwrap().into_iter().map(move |n| format!("{dir}/{n}")).collect::<Vec<_>>();
    let dirs = ["segments", "index", "snapshots"];
    let top = disk.list("").unwrap().into_iter().filter(|name| !dirs.contains(&name.as_str()));
    top.chain(dirs.iter().flat_map(|dir| below(dir))).collect()
}

#[test]
fn any_one_file_lost_or_overwritten_costs_only_what_lay_in_it() {
    const LEASES: u64 = 4;
    for crash in [false, true] {
        let whole = built(LEASES, crash);
        let all = files(&whole);
        assert!(all.iter().filter(|path| path.starts_with("segments/")).count() as u64 >= LEASES, "{all:?}");
        assert!(all.len() as u64 > 4 + LEASES, "{all:?}");
        for path in &all {
            for (what, damage) in DAMAGES {
                let disk = whole.copy();
                damage(&disk, path);
                let say = format!("{path} {what}, crash {crash}");
                // A lease's file lies in its segment.
                let lost = path.strip_prefix("segments/").map(|n| 9 + u64::from_str_radix(n, 16).unwrap());
                for round in 0..2 {
                    let vault = opened_or_mended(&disk, &say);
                    for ino in 10..10 + LEASES {
                        if Some(ino) == lost {
                            // Right, or an error, or (as of before the last commit) not there: never other bytes.
                            let (want, mut got) = (body(ino), Vec::new());
                            if vault.read(&vault.file(Ino(ino)), 0, want.len(), &mut got).is_ok() {
                                assert!(got == want || got.iter().all(|b| *b == 0), "{say}: inode {ino} reads wrong");
                            }
                        } else {
                            assert!(has(&vault, ino), "{say}, round {round}: inode {ino} is lost");
                        }
                    }
                    write(&vault, 20 + round);
                    vault.sync_wait().unwrap();
                    assert!(has(&vault, 20 + round), "{say}");
                    vault.close().unwrap_or_else(|e| panic!("{say}: {e}"));
                }
            }
        }
    }
}

/// Opens a vault; if it is refused, the sentence must name a command, and what that command does must help.
fn opened_or_mended(disk: &MemoryBacking, say: &str) -> Arc<Vault> {
    match try_open(disk, &OpenOptions::default()) {
        Ok(vault) => vault,
        Err(fault) => {
            assert!(fault.to_string().contains("strongroom check"), "{say}: {fault}");
            let mending = OpenOptions { rebuild_roots: true, ..OpenOptions::default() };
            try_open(disk, &mending).unwrap_or_else(|e| panic!("{say}: mending it: {e}"))
        }
    }
}

#[test]
fn damage_anywhere_in_the_index_is_an_error_at_most_and_the_log_makes_it_anew() {
    const ENTRIES: u64 = 4000;
    let value = |n: u64| n.to_le_bytes().repeat(8);
    let disk = built(1, false);
    {
        let vault = opened(&disk);
        let mut op = vault.begin();
        (1000..1000 + ENTRIES).for_each(|n| op.put(key::inode(Ino(n)), value(n)));
        op.commit();
        vault.close().unwrap();
    }
    let path = format!("index/{}", disk.list("index").unwrap()[0]);
    let index = read_file(&disk, &path, 1 << 30).unwrap();
    let pages = index.len() / 4136;
    assert!(pages > 100, "{pages} pages");
    let (mut errors, mut rebuilt) = (0, 0);
    for at in (0..index.len()).step_by(5 * 4136 + 100) {
        let disk = disk.copy();
        let mut bytes = index.clone();
        let end = (at + 4136).min(bytes.len());
        bytes[at..end].copy_from_slice(&noise(end - at));
        overwrite(&disk, &path, &bytes);
        // Every entry is right, or an error.
        let right = |vault: &Vault| {
            (1000..1000 + ENTRIES).all(|n| match vault.get(&key::inode(Ino(n))) {
                Ok(found) => {
                    assert_eq!(found, Some(value(n)), "byte {at}: entry {n} reads wrong");
                    true
                }
                Err(_) => false,
            })
        };
        let vault = opened_or_mended(&disk, &format!("the index damaged at {at}"));
        rebuilt += u64::from(vault.index_lost().is_some());
        let whole = right(&vault);
        errors += u64::from(!whole);
        // Closing may have to write where it cannot read.
        let closed = vault.close();
        drop(vault);
        if !whole || closed.is_err() {
            let anew = OpenOptions { rebuild_index: true, ..OpenOptions::default() };
            let vault = try_open(&disk, &anew).unwrap_or_else(|e| panic!("byte {at}: {e}"));
            assert!(right(&vault), "byte {at}: rebuilt, and not whole");
            check_all(&vault, 1);
            vault.close().unwrap();
        }
    }
    assert!(errors + rebuilt > 10, "the damage was not felt: {errors} errors, {rebuilt} rebuilt at once");
}
