//! Copies that share what is at rest: what they cost, that neither file knows of the other, and what `check` and a scrub say of them.
//!
//! Method: a vault on a disk in memory, driven through `fs`. What is on record of shared data is ruined behind the vault's back.
//! Promise: a copy writes no data; overwriting, cutting or deleting either file leaves the other; a frame that is lost is named
//! with every path that shares it; whatever is ruined on record is found, and mended from the log or, without it, in place.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/damage.rs"]
mod damage;
#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use damage::*;
use rng::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use strongroom::backing::{Backing, Cache, MemoryBacking, Open};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::check::{Finding, Owner, Share, repair};
use strongroom::format::extent::Extent;
use strongroom::format::holders::{Holder, Holders};
use strongroom::format::key;
use strongroom::fs::{Caller, FileSystem, FsFault, FsOptions, STORAGE_NAME, SetAttr, WriteHow};
use strongroom::vault::{CreateOptions, ScrubState, Vault, create, lock};

const HOW: WriteHow = WriteHow { drop_set_id: false, stamp: true };

fn mounted(disk: &MemoryBacking) -> FileSystem {
    FileSystem::new(opened(disk), FsOptions::default()).unwrap()
}

fn content(fs: &FileSystem, ino: Ino) -> Vec<u8> {
    let mut out = Vec::new();
    fs.read(ino, 0, fs.getattr(ino).unwrap().size as usize, &mut out).unwrap();
    out
}

fn copied(fs: &FileSystem, from: Ino, name: &str) -> Ino {
    let ino = file(fs, ROOT_INO, name, b"");
    let size = fs.getattr(from).unwrap().size;
    assert_eq!(fs.copy_file_range(from, 0, ino, 0, size, HOW).unwrap(), size);
    ino
}

fn logged(fs: &FileSystem) -> u64 {
    fs.vault().stats().log_bytes.get()
}

fn settle(fs: &FileSystem) {
    fs.sync_wait().unwrap();
    // Its end is after everything before it was taken in.
    fs.vault().checkpoint().unwrap();
}

fn set_size(fs: &FileSystem, ino: Ino, size: u64) {
    fs.setattr(&Caller::default(), ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
}

#[test]
fn a_copy_writes_no_data_and_neither_file_knows_of_the_other() {
    let disk = fresh();
    let fs = mounted(&disk);
    let mut a_is = Rng(1).bytes(3_000_000);
    let a = file(&fs, ROOT_INO, "a", &a_is);
    settle(&fs);
    let before = logged(&fs);
    let b = copied(&fs, a, "b");
    let mut b_is = a_is.clone();
    assert!(content(&fs, b) == b_is, "before it is at rest");
    assert_eq!(fs.getattr(b).unwrap().size, 3_000_000);
    settle(&fs);
    assert!(logged(&fs) - before < 100_000, "{} bytes were written", logged(&fs) - before);
    assert!(content(&fs, b) == b_is);
    assert_eq!(fs.getattr(b).unwrap().blocks, 3_000_000u64.div_ceil(512));
    for (ino, is, seed) in [(a, &mut a_is, 3), (b, &mut b_is, 4)] {
        let new = Rng(seed).bytes(200_000);
        fs.write(ino, 100_000 * seed, &new, HOW).unwrap();
        is[100_000 * seed as usize..][..200_000].copy_from_slice(&new);
    }
    set_size(&fs, a, 2_000_000);
    a_is.truncate(2_000_000);
    settle(&fs);
    assert!(content(&fs, a) == a_is && content(&fs, b) == b_is);
    fs.vault().close().unwrap();
    drop(fs);
    assert_eq!(checked(&copy(&disk), true), []);
    for gone in ["a", "b"] {
        let disk = copy(&disk);
        let fs = mounted(&disk);
        fs.unlink(ROOT_INO, gone.as_bytes()).unwrap();
        settle(&fs);
        let (left, is) = if gone == "a" { (b, &b_is) } else { (a, &a_is) };
        assert!(content(&fs, left) == *is);
        fs.vault().close().unwrap();
        drop(fs);
        assert_eq!(checked(&disk, true), []);
        let fs = mounted(&disk);
        fs.unlink(ROOT_INO, if gone == "a" { b"b" } else { b"a" }).unwrap();
        settle(&fs);
        assert!(fs.vault().scan(&[key::HOLDERS], &[], 1).unwrap().is_empty(), "nothing is shared any more");
        assert_eq!(fs.vault().get(&key::total("shared")).unwrap(), None);
    }
}

#[test]
fn what_is_still_buffered_is_copied_too_and_much_of_it_is_brought_to_rest_first() {
    for (len, most) in [(300_000, 700_000), (6_000_000, 7_000_000)] {
        let fs = mounted(&fresh());
        let (bytes, before) = (Rng(2).bytes(len), logged(&fs));
        let a = file(&fs, ROOT_INO, "a", &bytes);
        let b = copied(&fs, a, "b");
        fs.write(a, 10, b"overwritten", HOW).unwrap();
        assert!(content(&fs, b) == bytes);
        settle(&fs);
        assert!(content(&fs, b) == bytes);
        assert!(logged(&fs) - before < most, "{} bytes were written", logged(&fs) - before);
    }
}

#[test]
fn what_cannot_be_copied_is_refused_as_the_kernel_refuses_it() {
    let fs = mounted(&fresh());
    let a = file(&fs, ROOT_INO, "a", &[1; 5000]);
    let errno = |result: Result<u64, FsFault>| result.unwrap_err().errno();
    assert_eq!(errno(fs.copy_file_range(a, 0, a, 4999, 5000, HOW)), libc::EINVAL, "the ranges overlap");
    assert_eq!(errno(fs.copy_file_range(a, 100, a, 0, 101, HOW)), libc::EINVAL);
    assert_eq!(fs.copy_file_range(a, 100, a, 0, 100, HOW).unwrap(), 100);
    assert_eq!(fs.copy_file_range(a, 5000, a, 0, 100, HOW).unwrap(), 0, "from its end on there is nothing");
    assert_eq!(errno(fs.copy_file_range(a, 0, a, i64::MAX as u64, 1, HOW)), libc::EFBIG);
    assert_eq!(errno(fs.copy_file_range(a, 0, ROOT_INO, 0, 1, HOW)), libc::EISDIR);
    let storage = fs.lookup(ROOT_INO, STORAGE_NAME).unwrap().ino;
    let status = fs.lookup(storage, b"status").unwrap().ino;
    assert_eq!(errno(fs.copy_file_range(status, 0, a, 0, 1, HOW)), libc::EOPNOTSUPP, "the kernel reads it instead");
    assert_eq!(errno(fs.copy_file_range(a, 0, status, 0, 1, HOW)), libc::EOPNOTSUPP);
}

#[test]
fn copies_count_against_the_quota_as_what_was_written_does() {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let options = CreateOptions { quota_bytes: Some(2_500_000), ..CreateOptions::default() };
    create(&backing, &unlock(), &options, &world()).unwrap();
    let fs = mounted(&disk);
    let a = file(&fs, ROOT_INO, "a", &Rng(3).bytes(1_000_000));
    let b = copied(&fs, a, "b");
    let c = file(&fs, ROOT_INO, "c", b"");
    let errno = |result: Result<u64, FsFault>| result.unwrap_err().errno();
    assert_eq!(errno(fs.copy_file_range(a, 0, c, 0, 1_000_000, HOW)), libc::ENOSPC);
    settle(&fs);
    assert_eq!(errno(fs.copy_file_range(a, 0, c, 0, 1_000_000, HOW)), libc::ENOSPC);
    assert_eq!(fs.copy_file_range(a, 0, b, 0, 1_000_000, HOW).unwrap(), 1_000_000, "over what it has already");
    fs.unlink(ROOT_INO, b"a").unwrap();
    settle(&fs);
    assert_eq!(fs.copy_file_range(b, 0, c, 0, 1_000_000, HOW).unwrap(), 1_000_000);
    settle(&fs);
    assert_eq!(fs.vault().usage().bytes, 2_000_000);
}

// ---------------------------------------------------------------------------------------------------------------------

/// A vault in which `/a` is shared by `/b`, from its middle on by `/c`, and by itself.
fn shared_vault() -> (MemoryBacking, Ino, Ino, Ino) {
    let disk = fresh();
    let fs = mounted(&disk);
    let a = file(&fs, ROOT_INO, "a", &Rng(9).bytes(400_000));
    settle(&fs);
    let b = copied(&fs, a, "b");
    let c = file(&fs, ROOT_INO, "c", b"");
    assert_eq!(fs.copy_file_range(a, 150_000, c, 0, 200_000, HOW).unwrap(), 200_000);
    assert_eq!(fs.copy_file_range(a, 0, a, 400_000, 70_000, HOW).unwrap(), 70_000);
    fs.write(b, 5000, &[7; 20_000], HOW).unwrap();
    settle(&fs);
    fs.vault().close().unwrap();
    drop(fs);
    assert_eq!(checked(&copy(&disk), true), []);
    (disk, a, b, c)
}

fn extents(vault: &Vault, ino: Ino) -> Vec<(u64, Extent)> {
    let all = vault.scan(&key::prefix(key::EXTENT, ino.0), &[], 1000).unwrap();
    all.iter().map(|(k, v)| (key::tail_u64(key::split(k).unwrap().2).unwrap(), Extent::decode(v).unwrap())).collect()
}

#[test]
fn a_lost_frame_is_named_with_every_path_that_shares_it() {
    let (disk, a, ..) = shared_vault();
    let vault = opened(&disk);
    let (_, extent) = extents(&vault, a).into_iter().find(|(at, _)| *at == 262_144).unwrap();
    vault.close().unwrap();
    let segment = disk.open(&format!("segments/{:016x}", extent.run.segment.0), Open::Write, Cache::Buffered).unwrap();
    let mut byte = [0];
    segment.read_at(&mut byte, extent.run.position_bytes + 9).unwrap();
    segment.write_all_at(&[byte[0] ^ 1], extent.run.position_bytes + 9).unwrap();
    segment.sync_data().unwrap();
    let hurt: BTreeSet<_> = ["/a", "/b", "/c"].map(str::to_owned).into();
    let shown = |path: Option<Vec<u8>>| String::from_utf8(path.expect("it has a path")).unwrap();
    let found = checked(&copy(&disk), true);
    assert!(found.iter().all(|f| matches!(f, Finding::Unreadable { .. })), "{found:#?}");
    assert_eq!(found.into_iter().map(|f| shown(f.place().unwrap().path)).collect::<BTreeSet<_>>(), hurt);
    let fs = mounted(&disk);
    fs.vault().scrub(Some(0)).unwrap();
    let report = loop {
        let report = fs.vault().scrub_report().unwrap();
        if report.state != ScrubState::Running {
            break report;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!((report.state, report.mark.damaged), (ScrubState::Done, 3));
    assert_eq!(report.hurt.iter().map(|h| shown(h.path.clone())).collect::<BTreeSet<_>>(), hurt);
    let mut ranges: Vec<_> = report.hurt.iter().map(|h| (h.from_bytes, h.to_bytes)).collect();
    ranges.sort_unstable();
    let c_has = 262_144 - 150_000;
    assert_eq!(ranges, [(c_has, c_has + 16_384), (262_144, 278_528), (262_144, 278_528)]);
}

type Ruin = fn(&Vault, (Vec<u8>, Holders)) -> (Vec<u8>, Option<Vec<u8>>);

#[test]
fn whatever_is_ruined_on_record_of_shared_data_is_found_and_mended() {
    let (whole, ..) = shared_vault();
    let wrong = "holders-wrong";
    let ruins: [(&str, Ruin); 8] = [
        (wrong, |_, (k, _)| (k, None)),
        (wrong, |_, (k, mut h)| {
            h.all[0].1 ^= 1 << 7;
            (k, Some(h.encode()))
        }),
        (wrong, |_, (k, mut h)| {
            h.all.remove(1);
            (k, Some(h.encode()))
        }),
        (wrong, |_, (k, mut h)| {
            h.set(Holder { ino: Ino(1), place: 131_072 }, 1);
            (k, Some(h.encode()))
        }),
        (wrong, |_, (k, mut h)| {
            h.origin.start_bytes += 131_072;
            (k, Some(h.encode()))
        }),
        (wrong, |_, (mut k, h)| {
            *k.last_mut().unwrap() ^= 1;
            (k, Some(h.encode()))
        }),
        ("stray-entry", |_, (k, _)| (k, Some(b"nonsense".to_vec()))),
        ("shared-count", |_, _| (key::total("shared"), Some(99u64.to_le_bytes().to_vec()))),
    ];
    for (n, (kind, ruin)) in ruins.into_iter().enumerate() {
        for log_is_whole in [true, false] {
            let disk = copy(&whole);
            let vault = opened(&disk);
            let (k, v) = vault.scan(&[key::HOLDERS], &[], 10).unwrap()[1].clone();
            let change = ruin(&vault, (k, Holders::decode(&v).unwrap()));
            vault.set_derived(vec![change]).unwrap();
            vault.close().unwrap();
            drop(vault);
            let kinds: BTreeSet<_> = checked(&copy(&disk), false).iter().map(Finding::kind).collect();
            assert!(kinds.contains(kind), "ruin {n}: {kinds:?}");
            if !log_is_whole {
                // A commit that the index covers is lost from the log: it cannot be made anew.
                let path = "segments/0000000000000001";
                let segment = disk.open(path, Open::Write, Cache::Buffered).unwrap();
                segment.write_all_at(&[0; 8192], segment.len().unwrap() - 8192).unwrap();
                segment.sync_data().unwrap();
            }
            let again = || lock(Arc::new(disk.clone()));
            let (owner, share) = (Owner::default(), Share::Nothing);
            let done = repair(again().unwrap(), &again, &unlock(), &world(), owner, share, &|_, _| ()).unwrap();
            assert!(done.mended.iter().any(|m| m.finding.kind() == kind), "ruin {n}: {:#?}", done.mended);
            let from_the_log = done.mended.iter().any(|m| m.did.contains("from the log"));
            assert_eq!(from_the_log, log_is_whole, "ruin {n}: {:#?}", done.mended);
            assert_eq!(done.left, [], "ruin {n}");
            assert_eq!(checked(&copy(&disk), false), [], "ruin {n}: a second look");
        }
    }
}

/// A commit that cuts an extent between two look-ups of a copy showed its rest twice: the copy was longer than what was asked
/// for, and so was the file (found by fsx, profile copy, after some 150,000 operations).
#[test]
fn a_copy_beside_commits_is_as_long_as_what_was_asked_for() {
    let fs = mounted(&fresh());
    let is = Rng(8).bytes(128 << 10);
    let a = file(&fs, ROOT_INO, "a", &is);
    let b = file(&fs, ROOT_INO, "b", b"");
    settle(&fs);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // One extent, whole; then its first half lies elsewhere, and its second half begins at a key of its own.
                fs.write(a, 0, &is, HOW).unwrap();
                fs.sync_wait().unwrap();
                fs.write(a, 0, &is[..64 << 10], HOW).unwrap();
                fs.sync_wait().unwrap();
            }
        });
        let began = std::time::Instant::now();
        let mut longest = 0;
        while began.elapsed() < Duration::from_secs(3) && longest <= 32 << 10 {
            longest = fs.copy_file_range(a, 64 << 10, b, 0, 32 << 10, HOW).unwrap().max(longest);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!((longest, fs.getattr(b).unwrap().size), (32 << 10, 32 << 10));
        assert!(content(&fs, b) == is[64 << 10..96 << 10]);
    });
}
