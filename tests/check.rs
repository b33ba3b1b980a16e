//! Method: make a healthy vault through the filesystem, on a disk in memory; plant one damage at a time, for each kind of
//! finding there is; and run random programs, some of which end in a power cut.
//! Promise: `check` finds nothing in a healthy vault, whatever was done to it through the filesystem, and names what is
//! damaged in a damaged one.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/damage.rs"]
mod damage;
#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use damage::*;
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strongroom::backing::{Backing, Cache, Fate, MemoryBacking, Open, read_file};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::check::{Finding, Owner, Repaired, Share, check, rebuild, repair};
use strongroom::format::inode::Inode;
use strongroom::format::key;
use strongroom::format::quota::{Limits, QuotaState, state_key};
use strongroom::fs::{Caller, Fallocate, FileSystem, FsFault, FsOptions, RenameHow, SetAttr, WriteHow, XattrHow};
use strongroom::vault::{LOCK, OpenFault, lock};

#[test]
fn a_healthy_vault_has_no_findings() {
    let disk = copy(&healthy().disk);
    assert_eq!(checked(&disk, false), []);
    assert_eq!(checked(&disk, true), []);
    let vault = opened(&disk);
    drop(FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap());
    vault.close().unwrap();
    assert_eq!(checked(&disk, true), [], "after a mount has removed what was unlinked while in use");
}

#[test]
fn a_vault_that_was_never_mounted_has_no_findings() {
    assert_eq!(checked(&fresh(), true), []);
}

/// Every file of a disk but the lock, whole.
fn files(disk: &MemoryBacking) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in ["", "segments/", "index/", "snapshots/"] {
        for name in disk.list(dir.trim_end_matches('/')).unwrap() {
            if ![LOCK, "segments", "index", "snapshots"].contains(&name.as_str()) {
                let path = format!("{dir}{name}");
                let bytes = read_file(disk, &path, 1 << 30).unwrap();
                all.push((path, bytes));
            }
        }
    }
    all
}

#[test]
fn looking_changes_no_byte_on_disk() {
    let disk = copy(&healthy().disk);
    let before = files(&disk);
    assert!(before.len() >= 5, "{:?}", before.iter().map(|(path, _)| path).collect::<Vec<_>>());
    assert_eq!(checked(&disk, true), []);
    assert!(files(&disk) == before);
    // Nor after a crash, when there is a tail to take in …
    let vault = opened(&disk);
    let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
    file(&fs, ROOT_INO, "late", &Rng(3).text(300_000));
    fs.sync_wait().unwrap();
    let cut = copy(&disk);
    trim(&cut);
    let before = files(&cut);
    assert_eq!(checked(&cut, true), []);
    assert!(files(&cut) == before);
    // … nor when the index is lost.
    for name in cut.list("index").unwrap() {
        cut.remove(&format!("index/{name}")).unwrap();
    }
    let before = files(&cut);
    assert_eq!(checked(&cut, true).iter().map(Finding::kind).collect::<Vec<_>>(), ["index-lost"]);
    assert!(files(&cut) == before);
}

#[test]
fn the_parts_of_the_data_together_find_what_reading_all_finds() {
    let Healthy { b, .. } = *healthy();
    let disk = damaged(|p| {
        let all = p.extents(b);
        let (_, extent) = all.iter().find(|(at, _)| *at >= 256 << 10).unwrap();
        let path = format!("segments/{:016x}", extent.run.segment.0);
        p.disk.flip_bit(&path, (extent.run.position_bytes + 100) * 8);
    });
    let backing: Arc<dyn Backing> = Arc::new(disk);
    let found = |share: Share| check(&backing, &unlock(), &world(), share, &|_, _| ()).unwrap();
    let all = found(Share::All);
    assert_eq!(all.len(), 1);
    let parts: Vec<Finding> = (1..=3).flat_map(|part| found(Share::Part { part, of: 3 })).collect();
    assert_eq!(parts, all);
    assert_eq!(found(Share::Percent(100.0)), all);
    assert_eq!(found(Share::Percent(1e-9)), []);
}

// ---------------------------------------------------------------------------------------------------------------------
// One damage at a time.

/// Kinds of findings that tests have planted.
fn kind(f: &Finding) -> String {
    format!("{f:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// Every kind there is, by the source.
fn kinds() -> BTreeSet<String> {
    let source = include_str!("../src/check/finding.rs");
    let body = source.split_once("pub enum Finding {").unwrap().1.split_once("\n}").unwrap().0;
    let variants = body.lines().map(|l| l.strip_prefix("    ").unwrap_or(l));
    let variants = variants.filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase()));
    variants.map(|l| l.chars().take_while(|c| c.is_alphanumeric()).collect()).collect()
}

#[test]
fn each_planted_damage_is_found_and_named() {
    let mut seen = BTreeSet::new();
    for Damage { want, exactly, plant } in damages(healthy()) {
        let found = after(plant);
        match exactly {
            true => assert_eq!(found, want),
            false => assert!(found.contains(&want[0]), "{:?} is not in {found:#?}", want[0]),
        }
        seen.extend(if exactly { found } else { want }.iter().map(kind));
    }
    // Planted in tests of their own; the last needs an index too large for opening it to notice: which of its pages are read
    // first is the database's to decide.
    seen.extend(["SegmentShort", "Unreadable", "IndexUnreadable", "RootsLost", "RecordsLost"].map(str::to_owned));
    // `planted_names_…` in this file, and `tests/io_errors.rs`.
    seen.extend(["StrayFile", "FileUnread", "RangeUnread"].map(str::to_owned));
    assert_eq!(seen, kinds(), "every kind of finding has its mutant");
}

#[test]
fn a_segment_that_was_cut_off_is_found_short() {
    let Healthy { b, .. } = *healthy();
    let found = after(|p| {
        let path = format!("segments/{:016x}", p.extents(b)[0].1.run.segment.0);
        p.disk.open(&path, Open::Write, Cache::Buffered).unwrap().set_len(8192).unwrap();
    });
    assert!(found.iter().any(|f| matches!(f, Finding::SegmentShort { len_bytes: 8192, .. })), "{found:?}");
}

#[test]
fn where_the_log_cannot_give_the_index_anew_it_is_mended_in_place() {
    let Healthy { sub, b, b_bytes, .. } = *healthy();
    let whole = readable(&copy(&healthy().disk));
    let (_, was) = whole.iter().find(|(ino, _)| *ino == b).unwrap();
    let derived = |f: &Finding| {
        let kinds = ["extent-", "extents-", "allocated", "total-bytes", "segment-live", "segment-over", "segment-unk"];
        kinds.iter().any(|k| f.kind().starts_with(k))
    };
    let mut planted = 0;
    for Damage { want, plant, .. } in damages(healthy()).into_iter().filter(|d| d.want.iter().any(derived)) {
        planted += 1;
        let disk = damaged(|p| {
            plant(p);
            // A record that no log has: recovery refuses to go past it, so there is no rebuilding.
            let total = p.vault.get(&key::total("bytes")).unwrap().unwrap();
            let mut op = p.vault.begin();
            op.put(key::total("bytes"), total);
            op.commit();
        });
        let again = copy(&disk);
        let refused = rebuild(lock(Arc::new(again)).unwrap(), &unlock(), &world(), Share::Nothing, &|_, _| ());
        assert!(matches!(refused, Err(OpenFault::Damaged(_))), "{want:?}");
        let Repaired { mended, left } = repaired(&disk);
        assert!(!mended.is_empty() && left.iter().all(Finding::is_loss), "{want:?}: {left:#?} after {mended:#?}");
        assert_eq!(checked(&disk, true), left, "{want:?}: a second look");
        // Each byte reads as it was written, or not at all.
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        let mut lost_bytes = 0;
        for at in (0..b_bytes).step_by(1000) {
            let mut out = Vec::new();
            match fs.read(b, at as u64, 1000, &mut out) {
                Ok(()) => assert!(out == was[at..at + 1000], "{want:?}: byte {at} reads otherwise than it was written"),
                Err(fault) => {
                    assert_eq!(fault.errno(), libc::EIO, "{want:?}");
                    lost_bytes += 1000;
                }
            }
        }
        assert_eq!(lost_bytes == 0, left.is_empty(), "{want:?}: {left:?}");
        let all_gone = matches!(want[..], [Finding::Allocated { counted: 0, .. }]);
        assert!(all_gone || lost_bytes <= 128 << 10, "{want:?}: {lost_bytes} bytes were given up");
        // What is lost can be written over, and deleted.
        fs.write(b, 0, b"restored", WriteHow::default()).unwrap();
        fs.sync_wait().unwrap();
        fs.unlink(sub, b"b.bin").unwrap();
        fs.sync_wait().unwrap();
        drop(fs);
        vault.close().unwrap();
        assert_eq!(checked(&disk, true), [], "{want:?}: with the file deleted");
    }
    assert!(planted >= 9, "{planted}");
}

/// Repairs, and says what is wrong with that: anything left but losses, or a second look that differs.
fn wrong_with_repair(disk: &MemoryBacking) -> Result<Vec<Finding>, String> {
    let again = || lock(Arc::new(disk.clone()));
    let done = repair(again().unwrap(), &again, &unlock(), &world(), Owner::default(), Share::All, &|_, _| ());
    let Repaired { mended, left } = done.map_err(|fault| format!("not repaired: {fault}"))?;
    if !left.iter().all(Finding::is_loss) {
        return Err(format!("left {left:?} after {mended:?}"));
    }
    let second = checked(disk, true);
    if second == left {
        Ok(left)
    } else {
        Err(format!("a second look finds {second:?}, not {left:?}, after {mended:?}"))
    }
}

/// Random ruin of single keys: gone, garbled, or those of another; some behind the log's back, some through it.
#[test]
fn whatever_keys_are_ruined_repair_leaves_nothing_but_losses() {
    let seeds: u64 = std::env::var("STRONGROOM_REPAIRS").ok().map_or(60, |n| n.parse().unwrap());
    let mut wrong = Vec::new();
    for seed in 1..=seeds {
        let mut rng = Rng(seed);
        let disk = damaged(|p| {
            if rng.below(2) == 0 {
                // No rebuilding from the log, then.
                let mut op = p.vault.begin();
                op.put(key::total("x"), Vec::new());
                op.delete(key::total("x"));
                op.commit();
                p.vault.sync_wait().unwrap();
            }
            let all = p.vault.scan(&[], &[], 100_000).unwrap();
            let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
            for _ in 0..1 + rng.below(8) {
                let (k, v) = rng.pick(&all).clone();
                if k == key::total("log") {
                    continue;
                }
                let (other_key, other) = rng.pick(&all).clone();
                match rng.below(6) {
                    0 | 1 => drop(changes.insert(k, None)),
                    2 => {
                        let mut v = v;
                        if !v.is_empty() {
                            let at = rng.below(v.len() as u64) as usize;
                            v[at] ^= 1 << rng.below(8);
                        }
                        changes.insert(k, Some(v));
                    }
                    3 => drop(changes.insert(k, Some(rng.bytes(20)))),
                    4 if other_key[0] == k[0] => drop(changes.insert(k, Some(other))),
                    _ => {
                        let mut k = k;
                        let at = 1 + rng.below(k.len() as u64 - 1) as usize;
                        k[at] ^= 1 << rng.below(3);
                        changes.insert(k, Some(v));
                    }
                }
            }
            // A vault does not run, let alone close, over a total that is no number.
            let total =
                |k: &[u8], v: &Option<Vec<u8>>| k == key::total("bytes") && v.as_ref().is_some_and(|v| v.len() != 8);
            changes.retain(|k, v| *k != key::total("log") && !total(k, v));
            p.change(changes.into_iter().collect());
        });
        if let Err(why) = wrong_with_repair(&disk) {
            wrong.push(format!("seed {seed}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Several of the planted damages at once.
#[test]
fn damages_that_meet_are_mended_too() {
    let seeds: u64 = std::env::var("STRONGROOM_REPAIRS").ok().map_or(60, |n| n.parse().unwrap());
    let all = damages(healthy());
    // What hurts files at rest, or takes the vault away from whoever comes after.
    let at_rest = ["index-lost", "copy-spoiled", "more", "segment-missing", "segment-short", "data-lost"];
    let all: Vec<&Damage> = all.iter().filter(|d| !at_rest.contains(&d.want[0].kind())).collect();
    for seed in 1..=seeds {
        let mut rng = Rng(seed);
        let mut planted = Vec::new();
        let disk = damaged(|p| {
            for _ in 0..2 + rng.below(3) {
                let damage = *rng.pick(&all);
                // One may have taken away what the next would hurt.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (damage.plant)(p))).is_ok() {
                    planted.push(&damage.want[0]);
                }
            }
        });
        if let Err(why) = wrong_with_repair(&disk) {
            panic!("seed {seed}, with {planted:#?}: {why}");
        }
    }
}

/// The power is cut in the middle of repairs, at calls of the disk here and there: the next repair ends what the first began.
#[test]
fn a_repair_that_is_cut_off_is_done_again() {
    let cuts_each: u64 = std::env::var("STRONGROOM_REPAIR_CUTS").ok().map_or(1, |n| n.parse().unwrap());
    let whole = readable(&copy(&healthy().disk));
    let mut rng = Rng(17);
    for Damage { want, plant, .. } in damages(healthy()) {
        // Ten thousand entries more take their time.
        if want[0].kind() == "more" {
            continue;
        }
        let disk = damaged(plant);
        disk.record();
        let Repaired { left, .. } = repaired(&disk);
        let calls = disk.calls();
        for _ in 0..cuts_each {
            let cut = rng.below(calls as u64 + 1) as usize;
            let mut coins = Rng(rng.next());
            let image = disk.image_after(cut, &mut |_| match coins.below(3) {
                0 => Fate::Lost,
                1 => Fate::Kept,
                _ => Fate::Torn { unit_bytes: 512, coins: coins.next() },
            });
            let again = wrong_with_repair(&image).unwrap_or_else(|why| panic!("{want:?}, cut at {cut}: {why}"));
            assert!(again.len() <= left.len(), "{want:?}, cut at {cut} of {calls}: {again:?} is lost, and was not");
            for (ino, is) in readable(&image) {
                let Some((_, was)) = whole.iter().find(|(i, _)| *i == ino) else { continue };
                let wrong = is.iter().zip(was).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{want:?}, cut at {cut}: inode {ino} reads otherwise than it was written");
            }
        }
    }
}

#[test]
fn roots_that_are_both_lost_are_made_anew() {
    let disk = copy(&healthy().disk);
    let whole = readable(&disk);
    for root in ["root.a", "root.b"] {
        disk.flip_bit(root, 500);
    }
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let refused = check(&backing, &unlock(), &world(), false, &|_, _| ());
    assert!(matches!(refused, Err(OpenFault::RootsLost)));
    let Repaired { mended, left } = repaired(&disk);
    assert_eq!(mended.iter().map(|m| m.finding.kind()).collect::<Vec<_>>(), ["roots-lost"]);
    assert_eq!((left, checked(&disk, true)), (Vec::new(), Vec::new()));
    assert!(readable(&disk) == whole);
}

/// What must read as it was, by inode: files, and where the tests hurt none of them.
fn readable(disk: &MemoryBacking) -> Vec<(Ino, Vec<u8>)> {
    let vault = opened(disk);
    let mut all = Vec::new();
    for (k, v) in vault.scan(&[key::INODE], &[], 1000).unwrap() {
        let (ino, Ok(inode)) = (Ino(key::split(&k).unwrap().1), Inode::decode(&v)) else { continue };
        let (mut out, len) = (Vec::new(), inode.size.min(11 << 20) as usize);
        if inode.mode & libc::S_IFMT == libc::S_IFREG && vault.read(&vault.file(ino), 0, len, &mut out).is_ok() {
            all.push((ino, out));
        }
    }
    vault.close().unwrap();
    all
}

fn repaired(disk: &MemoryBacking) -> Repaired {
    let again = || lock(Arc::new(disk.clone()));
    repair(again().unwrap(), &again, &unlock(), &world(), Owner::default(), Share::All, &|_, _| ())
        .expect("it opens for repair")
}

#[test]
fn each_planted_damage_is_mended_or_said_to_be_lost() {
    let whole = readable(&copy(&healthy().disk));
    for Damage { want, plant, .. } in damages(healthy()) {
        let disk = damaged(plant);
        let first = checked(&disk, false);
        let Repaired { mended, left } = repaired(&disk);
        let lost = |f: &Finding| f.is_loss();
        assert!(left.iter().all(lost), "{want:?}: left {left:?} after {mended:?}");
        assert!(!mended.is_empty() || want.iter().all(lost), "{want:?}: nothing was done");
        for finding in first.iter().filter(|f| !lost(f) && !matches!(f, Finding::More { .. })) {
            assert!(mended.iter().any(|m| m.finding == *finding), "{finding:?} is not among {mended:#?}");
        }
        assert_eq!(checked(&disk, true), left, "{want:?}: a second look");
        // No byte was invented or lost by it: what reads, reads as before, and what should, does.
        let now = readable(&disk);
        let hurt = !left.is_empty();
        for (ino, was) in &whole {
            match now.iter().find(|(i, _)| i == ino) {
                Some((_, is)) => assert_eq!(
                    is.iter().zip(was).position(|(a, b)| a != b),
                    None,
                    "{want:?}: inode {ino} reads otherwise than it was written"
                ),
                None => assert!(hurt, "{want:?}: inode {ino} does not read any more after {mended:#?}"),
            }
        }
        // And the vault works.
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        file(&fs, ROOT_INO, "after", b"life goes on");
        drop(fs);
        vault.close().unwrap();
        // `/used` was unlinked in use; the mount has removed it, and what of it was lost with it.
        let again = checked(&disk, true);
        assert!(again.iter().all(lost) && again.len() <= left.len(), "{want:?}: {again:#?}");
        // A rebuild from the log agrees, where the log is whole.
        let locked = lock(Arc::new(disk.clone())).unwrap();
        match rebuild(locked, &unlock(), &world(), Share::All, &|_, _| ()) {
            Ok(found) => assert!(found.iter().all(lost) && found.len() <= again.len(), "{want:?}: {found:#?}"),
            Err(fault) => assert!(hurt && matches!(fault, OpenFault::Damaged(_)), "{want:?}: {fault}"),
        }
    }
}

#[test]
fn a_flipped_bit_is_found_only_by_reading_and_named_to_the_frame() {
    let Healthy { b, .. } = *healthy();
    let disk = damaged(|p| {
        let all = p.extents(b);
        let (_, extent) = all.iter().find(|(at, _)| *at >= 256 << 10).unwrap();
        let path = format!("segments/{:016x}", extent.run.segment.0);
        p.disk.flip_bit(&path, (extent.run.position_bytes + 100) * 8);
    });
    assert_eq!(checked(&disk, false), []);
    let read = checked(&disk, true);
    let [Finding::Unreadable { at, from_bytes, to_bytes, why }] = &read[..] else { panic!("found {read:#?}") };
    assert_eq!(*at, place(b, "/docs/sub/b.bin"));
    assert_eq!((*from_bytes, *to_bytes), (256 << 10, (256 << 10) + (16 << 10)), "one raw frame");
    assert!(why.contains("does not open"), "{why}");
}

#[test]
fn data_that_lies_in_a_missing_segment_does_not_read() {
    let disk = damaged(|p| {
        for name in p.disk.list("segments").unwrap() {
            p.disk.remove(&format!("segments/{name}")).unwrap();
        }
    });
    let read = checked(&disk, true);
    let hurt: BTreeSet<&[u8]> = read
        .iter()
        .filter_map(|f| match f {
            Finding::Unreadable { at, .. } => at.path.as_deref(),
            _ => None,
        })
        .collect();
    assert_eq!(hurt, BTreeSet::from([&b"/hard"[..], b"/docs/sub/b.bin", b"/docs/sparse", b"/replaced"]));
}

#[test]
fn a_damaged_index_is_found_and_mended_and_never_a_panic() {
    let disk = &healthy().disk;
    let [name] = &disk.list("index").unwrap()[..] else { panic!("one index file") };
    let path = format!("index/{name}");
    let pages = disk.open(&path, Open::Read, Cache::Buffered).unwrap().len().unwrap() / 4096;
    assert!(pages >= 10);
    for page in 0..pages {
        let hurt = copy(disk);
        hurt.flip_bit(&path, (page * 4096 + 1000) * 8);
        let found = checked(&hurt, false);
        assert!(found.iter().all(|f| f.kind().starts_with("index-")), "page {page}: {found:?}");
        let Repaired { mended, left } = repaired(&hurt);
        assert!(
            left.is_empty() && mended.is_empty() == found.is_empty(),
            "page {page}: left {left:?} after {mended:?}"
        );
        assert_eq!(checked(&hurt, true), [], "page {page}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Random programs.

/// A name that a program made, and what it leads to.
#[derive(Clone)]
struct Made {
    dir: Ino,
    name: Vec<u8>,
    ino: Ino,
    is_dir: bool,
}

/// What a program knows of its tree; it may be wrong after a refusal, which is part of the program.
struct Program<'a> {
    fs: &'a FileSystem,
    rng: &'a mut Rng,
    made: Vec<Made>,
    /// Look-ups not yet forgotten.
    held: Vec<Ino>,
    /// Names to make at most: few files are written to the more often.
    most: usize,
    /// Whether nobody else is at work: then what is in use may be forgotten, too. A kernel never does that.
    alone: bool,
}

impl Program<'_> {
    fn dir(&mut self) -> Ino {
        let dirs: Vec<Ino> = self.made.iter().filter(|m| m.is_dir).map(|m| m.ino).collect();
        if dirs.is_empty() || self.rng.below(3) == 0 { ROOT_INO } else { *self.rng.pick(&dirs) }
    }
    fn any(&mut self) -> Option<Made> {
        if self.made.is_empty() { None } else { Some(self.rng.pick(&self.made).clone()) }
    }
    fn file(&mut self) -> Option<Ino> {
        self.any().filter(|m| !m.is_dir).map(|m| m.ino)
    }
    fn name(&mut self) -> Vec<u8> {
        format!("n{}", self.rng.below(40)).into_bytes()
    }
    fn data(&mut self) -> Vec<u8> {
        let most = *self.rng.pick(&[100u64, 5000, 70_000, 400_000]);
        let len = 1 + self.rng.below(most) as usize;
        if self.rng.below(2) == 0 { self.rng.bytes(len) } else { self.rng.text(len) }
    }
    fn offset(&mut self) -> u64 {
        let most = *self.rng.pick(&[1u64, 4096, 150_000, 1_000_000, 1 << 33]);
        self.rng.below(most)
    }

    fn make(&mut self) -> Result<(), FsFault> {
        if self.made.len() >= self.most {
            return Ok(());
        }
        let (dir, name, caller) = (self.dir(), self.name(), Caller::default());
        let (attr, is_dir) = match self.rng.below(6) {
            0 | 1 => (self.fs.mkdir(&caller, dir, &name, 0o755)?, true),
            2 => (self.fs.symlink(&caller, dir, &name, b"some/where")?, false),
            _ => (self.fs.mknod(&caller, dir, &name, 0o644, 0)?, false),
        };
        self.held.push(attr.ino);
        self.made.push(Made { dir, name, ino: attr.ino, is_dir });
        Ok(())
    }

    fn step(&mut self) -> Result<(), FsFault> {
        let caller = Caller::default();
        match self.rng.below(23) {
            0..4 => self.make()?,
            4..8 => {
                let (Some(ino), offset, data) = (self.file(), self.offset(), self.data()) else { return Ok(()) };
                self.fs.write(ino, offset, &data, WriteHow { stamp: true, drop_set_id: false })?;
            }
            8 => {
                let (Some(ino), size) = (self.file(), self.offset()) else { return Ok(()) };
                self.fs.setattr(&caller, ino, &SetAttr { size: Some(size), ..SetAttr::default() })?;
            }
            9 => {
                let what = *self.rng.pick(&[Fallocate::PunchHole, Fallocate::ZeroRange, Fallocate::ZeroKeepSize]);
                let (Some(ino), offset, len) = (self.file(), self.offset(), 1 + self.offset()) else { return Ok(()) };
                self.fs.fallocate(ino, offset, len, what)?;
            }
            10 | 11 => {
                let Some(m) = self.any() else { return Ok(()) };
                if m.is_dir {
                    self.fs.rmdir(m.dir, &m.name)?
                } else {
                    self.fs.unlink(m.dir, &m.name)?
                }
                self.made.retain(|o| (o.dir, &o.name) != (m.dir, &m.name));
            }
            12 | 13 => {
                let Some(m) = self.any() else { return Ok(()) };
                let (dir, name) = match (self.rng.below(2), self.any()) {
                    (0, Some(other)) => (other.dir, other.name),
                    _ => (self.dir(), self.name()),
                };
                let how = *self.rng.pick(&[RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]);
                self.fs.rename(m.dir, &m.name, dir, &name, how)?;
                let at = |made: &[Made], d, n: &[u8]| made.iter().position(|o| (o.dir, &o.name[..]) == (d, n));
                let (from, to) = (at(&self.made, m.dir, &m.name), at(&self.made, dir, &name));
                match (from, to, how) {
                    (Some(from), Some(to), _) if self.made[from].ino == self.made[to].ino => {}
                    (Some(from), Some(to), RenameHow::Exchange) => {
                        let (a, b) = (self.made[from].clone(), self.made[to].clone());
                        (self.made[from].ino, self.made[from].is_dir) = (b.ino, b.is_dir);
                        (self.made[to].ino, self.made[to].is_dir) = (a.ino, a.is_dir);
                    }
                    (Some(from), to, _) => {
                        (self.made[from].dir, self.made[from].name) = (dir, name);
                        if let Some(to) = to {
                            self.made.remove(to);
                        }
                    }
                    (None, ..) => {}
                }
            }
            14 => {
                let (Some(ino), dir, name) = (self.file(), self.dir(), self.name()) else { return Ok(()) };
                self.held.push(self.fs.link(ino, dir, &name)?.ino);
                self.made.push(Made { dir, name, ino, is_dir: false });
            }
            15 => {
                let (Some(m), name) = (self.any(), format!("user.{}", self.rng.below(4))) else { return Ok(()) };
                match self.rng.below(3) {
                    0 => self.fs.removexattr(m.ino, name.as_bytes())?,
                    _ => self.fs.setxattr(m.ino, name.as_bytes(), &name.repeat(9).into_bytes(), XattrHow::Set)?,
                }
            }
            16 | 17 => {
                for _ in 0..self.held.len() / 2 {
                    let i = self.rng.below(self.held.len() as u64) as usize;
                    if self.alone || self.made.iter().all(|m| m.ino != self.held[i]) {
                        self.fs.forget(self.held.swap_remove(i), 1);
                    }
                }
            }
            20..23 => {
                let (Some(from), Some(to), at, offset) = (self.file(), self.file(), self.offset(), self.offset())
                else {
                    return Ok(());
                };
                let most = *self.rng.pick(&[100u64, 70_000, 1 << 33]);
                self.fs.copy_file_range(from, at, to, offset, 1 + self.rng.below(most), WriteHow::default())?;
            }
            18 => self.fs.sync_wait()?,
            _ if self.rng.below(5) == 0 => self.fs.vault().checkpoint()?,
            _ => {
                let (Some(ino), offset) = (self.file(), self.offset()) else { return Ok(()) };
                self.fs.read(ino, offset, 100_000, &mut Vec::new())?;
            }
        }
        Ok(())
    }
}

/// Runs a program over a few mounts of one disk; the last may end in a power cut. Gives the disk as it is then.
fn ran(seed: u64, steps: u64) -> MemoryBacking {
    let mut disk = fresh();
    let mut rng = Rng(seed);
    let (mut made, most) = (Vec::new(), *rng.pick(&[4, 40]));
    for mount in 0..3 {
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        let mut program = Program { fs: &fs, rng: &mut rng, made, held: Vec::new(), most, alone: true };
        for step in 0..steps {
            if let Err(fault) = program.step() {
                assert_ne!(fault.errno(), libc::EIO, "seed {seed}, mount {mount}, step {step}: {fault:?}");
            }
        }
        made = program.made;
        if rng.below(2) == 0 {
            let mut keep = Rng(seed);
            disk = disk.crash(|_, _| keep.below(2) == 0);
            // What was lost is not in the program's memory any more, either: it begins anew.
            made.clear();
            drop(fs);
        } else {
            drop(fs);
            vault.close().unwrap();
        }
    }
    disk
}

#[test]
fn whatever_the_filesystem_was_asked_to_do_there_are_no_findings() {
    for seed in 1..=40 {
        let disk = ran(seed, 150);
        assert_eq!(checked(&disk, true), [], "seed {seed}");
        for name in disk.list("index").unwrap() {
            disk.remove(&format!("index/{name}")).unwrap();
        }
        let found: Vec<_> = checked(&disk, true).iter().map(Finding::kind).collect();
        assert_eq!(found, ["index-lost"], "seed {seed}, with the index rebuilt from the log");
    }
}

#[test]
fn nor_after_several_threads_at_once() {
    for seed in 1..=10 {
        let disk = fresh();
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        std::thread::scope(|threads| {
            for thread in 0..3u64 {
                let fs = &fs;
                threads.spawn(move || {
                    let mut rng = Rng(seed * 100 + thread);
                    let mut program =
                        Program { fs, rng: &mut rng, made: Vec::new(), held: Vec::new(), most: 30, alone: false };
                    for step in 0..200 {
                        if let Err(fault) = program.step() {
                            assert_ne!(
                                fault.errno(),
                                libc::EIO,
                                "seed {seed}, thread {thread}, step {step}: {fault:?}"
                            );
                        }
                    }
                    program.held.iter().for_each(|&ino| fs.forget(ino, 1));
                });
            }
        });
        drop(fs);
        vault.close().unwrap();
        assert_eq!(checked(&disk, true), [], "seed {seed}");
    }
}

#[test]
fn planted_names_of_segments_and_indexes_are_named_and_harm_nothing() {
    let planted = ["segments/ffffffffffffffff", "segments/0001000000000001", "index/ffffffffffffffff"];
    let stray = planted.map(|file| Finding::StrayFile { file: file.to_owned() });
    let disk = copy(&tiny().disk);
    for path in planted {
        let file = disk.open(path, Open::Create, Cache::Buffered).unwrap();
        file.write_all_at(&[0x5a; 5000], 0).unwrap();
        file.sync_data().unwrap();
    }
    ["segments", "index"].iter().for_each(|dir| disk.sync_dir(dir).unwrap());
    let sorted = |mut found: Vec<Finding>| {
        found.sort_by_key(|f| f.to_string());
        found
    };
    assert_eq!(sorted(checked(&disk, true)), sorted(stray.to_vec()));
    // The log goes on, through several segments and mounts; an index that is made anew has a number as well.
    for roots_lost in [false, true] {
        if roots_lost {
            ["root.a", "root.b"].iter().for_each(|name| disk.remove(name).unwrap());
        }
        let again = || lock(Arc::new(disk.clone()));
        let done = repair(again().unwrap(), &again, &unlock(), &world(), Owner::default(), Share::Nothing, &|_, _| ());
        assert_eq!(
            sorted(done.unwrap().left),
            sorted(stray.to_vec()),
            "a repair removes no file that it does not know"
        );
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        file(&fs, ROOT_INO, &format!("after {roots_lost}"), &Rng(3).text(100_000));
        fs.sync_wait().unwrap();
        assert!(vault.gauges().segments < 100);
        drop(fs);
        vault.close().unwrap();
    }
    planted.iter().for_each(|path| disk.remove(path).unwrap());
    assert_eq!(checked(&disk, true), []);
}

#[test]
fn wrong_numbers_on_the_disk_wrap_nowhere() {
    // A directory with subdirectories that says it has none, and one with all links that a number can count.
    let (docs, sub) = (healthy().docs, healthy().sub);
    let disk = damaged(|p| {
        p.inode(docs, |inode| (inode.nlink, inode.size) = (0, u64::MAX));
        p.inode(ROOT_INO, |inode| (inode.nlink, inode.size) = (u32::MAX, u64::MAX));
    });
    let vault = opened(&disk);
    let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
    let links = |ino| Inode::decode(&vault.get(&key::inode(ino)).unwrap().unwrap()).unwrap().nlink;
    fs.rename(docs, b"sub", ROOT_INO, b"sub", RenameHow::NoReplace).unwrap();
    assert_eq!(links(ROOT_INO), u32::MAX);
    let empty = dir(&fs, sub, "empty");
    file(&fs, ROOT_INO, "plain", b"");
    fs.rename(ROOT_INO, b"plain", sub, b"empty", RenameHow::Exchange).unwrap();
    assert_eq!(fs.lookup(ROOT_INO, b"plain").unwrap().ino, empty);
    assert_eq!(links(ROOT_INO), u32::MAX);
    file(&fs, ROOT_INO, "one more", b"");
    fs.rmdir(ROOT_INO, b"plain").unwrap();
    // Numbers of quota trees that are used up.
    let mut op = vault.begin();
    op.put(state_key(), QuotaState { owners: false, next_tree: u32::MAX }.encode());
    op.commit();
    vault.reload_quotas().unwrap();
    assert!(vault.begin().begin_tree(docs, 0, Limits::default()).is_err(), "and nothing is changed");
    fs.sync_wait().unwrap();
    drop(fs);
    vault.close().unwrap();
    let again = || lock(Arc::new(disk.clone()));
    let done = repair(again().unwrap(), &again, &unlock(), &world(), Owner::default(), Share::Nothing, &|_, _| ());
    assert_eq!(done.unwrap().left, [], "what was wrong before is mended as ever");
}

/// Everything below a directory as programs see it: paths, with the content of regular files.
fn seen(fs: &FileSystem, dir: Ino, path: &str, all: &mut BTreeMap<String, Vec<u8>>) {
    let mut entries = Vec::new();
    fs.readdir(dir, 0, |entry| {
        entries.push(entry.clone());
        true
    })
    .unwrap();
    for entry in entries.into_iter().filter(|e| e.name != b"." && e.name != b"..") {
        let path = format!("{path}/{}", String::from_utf8(entry.name.clone()).unwrap());
        let attr = fs.lookup(dir, &entry.name).unwrap_or_else(|fault| panic!("{path}: {fault:?}"));
        assert!(attr.nlink > 0, "{path}: shown as removed");
        let mut data = Vec::new();
        match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => seen(fs, attr.ino, &path, all),
            libc::S_IFREG => fs.read(attr.ino, 0, 600_000, &mut data).unwrap(),
            _ => {}
        }
        fs.forget(attr.ino, 1);
        all.insert(path, data);
    }
}

#[test]
fn a_link_count_of_0_removes_nothing_that_a_name_leads_to() {
    let all_of = |fs: &FileSystem| {
        let mut all = BTreeMap::new();
        seen(fs, ROOT_INO, "", &mut all);
        all
    };
    let mounted = |disk: &MemoryBacking| {
        let vault = opened(disk);
        (Arc::clone(&vault), FileSystem::new(vault, FsOptions::default()).unwrap())
    };
    let (vault, fs) = mounted(&copy(&healthy().disk));
    let want = all_of(&fs);
    drop(fs);
    vault.close().unwrap();
    let &Healthy { docs, sub, b, link, .. } = healthy();
    let mut a = Ino(0);
    let disk = damaged(|p| {
        a = p.entry(ROOT_INO, b"hard").ino;
        [docs, sub, a, b, link, ROOT_INO].into_iter().for_each(|ino| p.inode(ino, |inode| inode.nlink = 0));
    });
    for read_only in [true, false] {
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions { read_only, ..FsOptions::default() }).unwrap();
        for _ in 0..2 {
            assert!(all_of(&fs) == want, "each look forgets what it found");
        }
        assert!(vault.stats().errors().iter().any(|line| line.text.contains("a stored link count of 0")));
        drop(fs);
        vault.close().unwrap();
    }
    // One of two names goes: the other still leads to the file. Then the last one goes, and the file with it.
    let (vault, fs) = mounted(&disk);
    fs.link(a, sub, b"third").unwrap();
    fs.forget(a, 1);
    fs.unlink(ROOT_INO, b"hard").unwrap();
    fs.rename(ROOT_INO, b"replaced", sub, b"third", RenameHow::Replace).unwrap();
    let attr = fs.lookup(docs, b"a.txt").unwrap();
    assert_eq!((attr.ino, attr.nlink), (a, 1));
    fs.forget(a, 1);
    assert!(all_of(&fs)["/docs/a.txt"] == want["/docs/a.txt"]);
    fs.unlink(docs, b"a.txt").unwrap();
    fs.unlink(sub, b"b.bin").unwrap();
    fs.unlink(ROOT_INO, b"link").unwrap();
    assert!(matches!(fs.getattr(a).unwrap_err().errno(), libc::ENOENT));
    fs.sync_wait().unwrap();
    drop(fs);
    vault.close().unwrap();
    let counts = |f: &Finding| matches!(f, Finding::LinkCount { at, .. } if [docs, sub, ROOT_INO].contains(&at.ino));
    assert!(
        checked(&disk, true).iter().all(counts),
        "what is left is for `check --repair`: {:?}",
        checked(&disk, true)
    );
}

#[test]
fn a_directory_that_says_it_is_empty_is_removed_only_if_no_name_is_in_it() {
    let &Healthy { docs, sub, .. } = healthy();
    let disk = damaged(|p| [docs, sub].into_iter().for_each(|ino| p.inode(ino, |inode| inode.size = 0)));
    let vault = opened(&disk);
    let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
    assert_eq!(fs.rmdir(docs, b"sub").unwrap_err().errno(), libc::ENOTEMPTY);
    dir(&fs, ROOT_INO, "empty");
    let over = fs.rename(ROOT_INO, b"empty", ROOT_INO, b"docs", RenameHow::Replace);
    assert_eq!(over.unwrap_err().errno(), libc::ENOTEMPTY);
    fs.unlink(sub, b"b.bin").unwrap();
    fs.rmdir(docs, b"sub").unwrap();
    drop(fs);
    vault.close().unwrap();
}
