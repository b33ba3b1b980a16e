//! Attacks a vault by damaging each of its files in turn, in several ways, and then does what it is told.
//!
//! Method: build a vault of several leases through the filesystem, with files written, overwritten, punched and deleted, closed or cut off
//! by a power cut; delete, empty, halve, blank or fill with noise each backing file, alone, and each one together with the
//! index; look, and run the commands that the findings or the refusal name.
//! Promise: those commands work, and after them a look finds nothing or only losses, each named by path; a file that is
//! not named reads as it was written last, or, where the newest commits themselves were lost, as it was written before:
//! never as anything else.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strongroom::backing::{Backing, Cache, MemoryBacking, Open, read_file};
use strongroom::base::id::ROOT_INO;
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::check::{Finding, Owner, Repaired, Share, check, rebuild, repair};
use strongroom::fs::{Caller, Fallocate, FileSystem, FsOptions, WriteHow};
use strongroom::seal::Unlock;
use strongroom::vault::{CreateOptions, OpenFault, OpenOptions, create, lock, open};

const FILES: usize = 6;

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

/// What each file held after each commit, oldest first; `None` while it was not there.
type Versions = BTreeMap<String, Vec<Option<Vec<u8>>>>;

struct Built {
    disk: MemoryBacking,
    versions: Versions,
}

fn mounted(disk: &MemoryBacking) -> FileSystem {
    let options = OpenOptions { budget_bytes: 16 << 20, workers: 1, ..OpenOptions::default() };
    let vault = open(Arc::new(disk.clone()), &unlock(), &options, world()).unwrap();
    FileSystem::new(vault, FsOptions::default()).unwrap()
}

fn unmount(fs: FileSystem) {
    let vault = Arc::clone(fs.vault());
    drop(fs);
    vault.close().unwrap();
}

/// Takes the room off that segments were given in advance: copies are faster without.
fn trim(disk: &MemoryBacking) {
    for name in disk.list("segments").unwrap() {
        let path = format!("segments/{name}");
        let bytes = read_file(disk, &path, 1 << 30).unwrap();
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        let file = disk.open(&path, Open::Write, Cache::Buffered).unwrap();
        file.set_len(used.next_multiple_of(4096) as u64).unwrap();
        file.sync_data().unwrap();
    }
}

fn built(cut: bool) -> Built {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    let mut rng = Rng(11);
    let mut versions = Versions::new();
    let mut now: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for lease in 0..3 {
        let fs = mounted(&disk);
        for commit in 0..3 {
            for n in 0..FILES {
                let name = format!("f{n}");
                match (fs.lookup(ROOT_INO, name.as_bytes()), (n + lease * 2 + commit) % 5) {
                    (Err(_), _) => {
                        let ino = fs.mknod(&Caller::default(), ROOT_INO, name.as_bytes(), 0o644, 0).unwrap().ino;
                        let len = 20_000 + n * 60_000;
                        let data = if n % 2 == 0 { rng.bytes(len) } else { rng.text(len) };
                        fs.write(ino, 0, &data, WriteHow::default()).unwrap();
                        now.insert(name, data);
                    }
                    (Ok(attr), 0) => {
                        let data = rng.bytes(9000);
                        fs.write(attr.ino, 5000, &data, WriteHow::default()).unwrap();
                        now.get_mut(&name).unwrap()[5000..14_000].copy_from_slice(&data);
                    }
                    (Ok(attr), 1) => {
                        fs.fallocate(attr.ino, 4096, 8192, Fallocate::PunchHole).unwrap();
                        now.get_mut(&name).unwrap()[4096..12_288].fill(0);
                    }
                    (Ok(_), 2) => {
                        fs.unlink(ROOT_INO, name.as_bytes()).unwrap();
                        now.remove(&name);
                    }
                    (Ok(_), _) => {}
                }
            }
            fs.sync_wait().unwrap();
            for n in 0..FILES {
                let name = format!("f{n}");
                versions.entry(name.clone()).or_default().push(now.get(&name).cloned());
            }
        }
        if cut && lease == 2 {
            let disk = disk.crash(|_, _| true);
            trim(&disk);
            return Built { disk: disk.crash(|_, _| true), versions };
        }
        unmount(fs);
    }
    trim(&disk);
    Built { disk: disk.crash(|_, _| true), versions }
}

/// Every file of the vault but the lock, on which nothing depends.
fn all_files(disk: &MemoryBacking) -> Vec<String> {
    let mut all = Vec::new();
    for dir in ["", "segments/", "index/", "snapshots/"] {
        let names = disk.list(dir.trim_end_matches('/')).unwrap().into_iter();
        all.extend(
            names
                .filter(|n| !["segments", "index", "snapshots", "lock"].contains(&n.as_str()))
                .map(|n| format!("{dir}{n}")),
        );
    }
    all
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    Delete,
    Empty,
    Halve,
    Blank,
    Noise,
    NoiseInside,
}

fn harm(disk: &MemoryBacking, path: &str, how: Harm) {
    let len = read_file(disk, path, 1 << 30).unwrap().len();
    let noise = Rng(3).bytes(len);
    let file = disk.open(path, Open::Write, Cache::Buffered).unwrap();
    match how {
        Harm::Delete => disk.remove(path).unwrap(),
        Harm::Empty => file.set_len(0).unwrap(),
        Harm::Halve => file.set_len(len as u64 / 2 / 4096 * 4096).unwrap(),
        Harm::Blank => file.write_all_at(&vec![0; len], 0).unwrap(),
        Harm::Noise => file.write_all_at(&noise, 0).unwrap(),
        Harm::NoiseInside => file.write_all_at(&noise[len / 3..len / 3 + len.min(5000) / 4], len as u64 / 3).unwrap(),
    }
}

/// Does what is advised until nothing but losses is left; gives these, and whether records were lost on the way.
fn obey(disk: &MemoryBacking, case: &str) -> (Vec<Finding>, bool) {
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let again = || lock(Arc::new(disk.clone()));
    let mut records_lost = false;
    for _ in 0..4 {
        let advice: BTreeSet<String> = match check(&backing, &unlock(), &world(), true, &|_, _| ()) {
            Ok(found) if found.iter().all(Finding::is_loss) => return (found, records_lost),
            Ok(found) => {
                records_lost |= found.iter().any(|f| f.kind() == "records-lost");
                found.iter().filter(|f| !f.is_loss()).map(|f| f.mend("VAULT")).collect()
            }
            Err(fault) => {
                records_lost |= matches!(fault, OpenFault::Damaged(_) | OpenFault::RootsLost);
                BTreeSet::from([fault.to_string()])
            }
        };
        for sentence in advice {
            if sentence.contains("strongroom check --rebuild") {
                rebuild(again().unwrap(), &unlock(), &world(), Share::Nothing, &|_, _| ())
                    .unwrap_or_else(|e| panic!("{case}: '{sentence}' was advised, and: {e}"));
            } else {
                assert!(sentence.contains("strongroom check --repair"), "{case}: nothing to do about: {sentence}");
                let done =
                    repair(again().unwrap(), &again, &unlock(), &world(), Owner::default(), Share::All, &|_, _| ());
                let Repaired { mended, .. } =
                    done.unwrap_or_else(|e| panic!("{case}: '{sentence}' was advised, and: {e}"));
                records_lost |= mended.iter().any(|m| m.finding.kind() == "records-lost");
            }
        }
    }
    panic!("{case}: advice without end: {:#?}", check(&backing, &unlock(), &world(), true, &|_, _| ()));
}

/// How many files read as last written, and how many older.
#[derive(Debug, Default)]
struct Tally {
    newest: usize,
    older: usize,
    lost: usize,
}

fn compare(disk: &MemoryBacking, versions: &Versions, losses: &[Finding], older_allowed: bool, case: &str) -> Tally {
    let named: BTreeSet<Vec<u8>> = losses.iter().filter_map(|f| f.place()?.path).collect();
    let fs = mounted(disk);
    let mut tally = Tally::default();
    for (name, known) in versions {
        let mut bytes = Vec::new();
        let found = match fs.lookup(ROOT_INO, name.as_bytes()) {
            Err(fault) => {
                assert_eq!(fault.errno(), libc::ENOENT, "{case}: {name}");
                None
            }
            Ok(attr) => match fs.read(attr.ino, 0, 1 << 20, &mut bytes) {
                Ok(()) => Some(bytes),
                Err(fault) => {
                    assert_eq!(fault.errno(), libc::EIO, "{case}: {name}");
                    assert!(named.contains(format!("/{name}").as_bytes()), "{case}: {name} is lost, and not named");
                    tally.lost += 1;
                    continue;
                }
            },
        };
        match known.iter().rev().position(|v| *v == found) {
            Some(0) => tally.newest += 1,
            Some(_) if older_allowed => tally.older += 1,
            Some(back) => panic!("{case}: {name} reads as {back} commits before"),
            None if found.is_none() => panic!("{case}: {name} was always there"),
            None => panic!("{case}: {name} reads as it never was"),
        }
    }
    // The vault works.
    fs.mknod(&Caller::default(), ROOT_INO, b"after", 0o644, 0).unwrap();
    fs.sync_wait().unwrap();
    unmount(fs);
    tally
}

#[test]
fn each_file_in_turn() {
    for cut in [false, true] {
        let Built { disk, versions } = built(cut);
        let files = all_files(&disk);
        assert!(files.len() >= 8, "{files:?}");
        // One that was only prepared holds nothing.
        let begun = |p: &&String| p.starts_with("segments/") && !read_file(&disk, p, 1 << 30).unwrap().is_empty();
        let newest_segment = files.iter().filter(begun).max().unwrap().clone();
        let (mut unhurt, mut lost) = (0, 0);
        for path in &files {
            for how in [Harm::Delete, Harm::Empty, Harm::Halve, Harm::Blank, Harm::Noise, Harm::NoiseInside] {
                let case = format!("{how:?} {path}, {}", if cut { "cut off" } else { "closed" });
                let disk = disk.crash(|_, _| true);
                harm(&disk, path, how);
                let (losses, _) = obey(&disk, &case);
                // What no checkpoint covers yet is in the newest segment alone.
                let older_allowed = cut && *path == newest_segment;
                let tally = compare(&disk, &versions, &losses, older_allowed, &case);
                unhurt += usize::from(tally.lost + tally.older == 0);
                lost += tally.lost;
                assert!(path.starts_with("segments/") || losses.is_empty(), "{case}: {losses:?}");
            }
        }
        assert!(unhurt > 30 && lost > 10, "{unhurt} harms without harm, {lost} files hurt: this tries too little");
    }
}

#[test]
fn each_file_together_with_the_index() {
    let Built { disk, versions } = built(false);
    let mut salvaged = 0;
    for path in all_files(&disk).iter().filter(|path| !path.starts_with("index/")) {
        for how in [Harm::Delete, Harm::Halve, Harm::Noise, Harm::NoiseInside] {
            let case = format!("{how:?} {path}, and no index");
            let disk = disk.crash(|_, _| true);
            for name in disk.list("index").unwrap() {
                disk.remove(&format!("index/{name}")).unwrap();
            }
            harm(&disk, path, how);
            let (losses, records_lost) = obey(&disk, &case);
            let tally = lenient(&disk, &versions, &losses, records_lost, &case);
            salvaged += usize::from(records_lost && tally.newest > 0);
            assert!(path.starts_with("segments/") || tally.newest == FILES, "{case}: {tally:?}");
        }
    }
    assert!(salvaged > 0, "no damaged log was rebuilt from: this tries too little");
}

/// As `compare`; but where records are lost a file may be a mixture of what it was, in pieces that each were written there,
/// and one that was always there may be gone. Bytes that were never written there are as wrong as ever.
fn lenient(disk: &MemoryBacking, versions: &Versions, losses: &[Finding], records_lost: bool, case: &str) -> Tally {
    if !records_lost {
        return compare(disk, versions, losses, false, case);
    }
    let fs = mounted(disk);
    let mut tally = Tally::default();
    for (name, known) in versions {
        let mut bytes = Vec::new();
        let Ok(attr) = fs.lookup(ROOT_INO, name.as_bytes()) else {
            tally.older += 1;
            continue;
        };
        if fs.read(attr.ino, 0, 1 << 20, &mut bytes).is_err() {
            tally.lost += 1;
            continue;
        }
        if known.last().unwrap().as_ref() == Some(&bytes) {
            tally.newest += 1;
            continue;
        }
        tally.older += 1;
        // A hole may stand where nothing had been written as far as the log is left.
        let was = |at: usize, byte: u8| known.iter().flatten().any(|v| v.get(at) == Some(&byte));
        let wrong = bytes.iter().enumerate().find(|&(at, &byte)| byte != 0 && !was(at, byte));
        assert_eq!(wrong, None, "{case}: {name} holds what was never written there");
    }
    unmount(fs);
    tally
}
