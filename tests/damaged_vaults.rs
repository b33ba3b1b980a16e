//! Opens damaged vaults that were stored once and for all: one of each kind of finding.
//!
//! Method: `tests/vaults/damaged/base` is a small healthy vault, as it lay on disk; `KIND.patch` beside it says which bytes of it to
//! change, so that `check` finds that kind. Whoever changes the disk format leaves them as they are, and adds others: what
//! was damaged then must be found, and mended, for ever.
//! Promise: each patched vault gives its finding, repair leaves nothing but losses, and what is not lost reads as it did.
//!
//! `STRONGROOM_DAMAGE=write cargo test --test damaged_vaults` stores them anew, from the damages of `common/damage.rs`; with `add` it
//! leaves what is there, and stores patches of the base for kinds that have none.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/damage.rs"]
mod damage;
#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use damage::*;
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use strongroom::backing::{Backing, Cache, MemoryBacking, Open, read_file};
use strongroom::base::id::ROOT_INO;
use strongroom::check::{Finding, Owner, Repaired, Share, check, repair};
use strongroom::fs::{FileSystem, FsOptions, WriteHow};
use strongroom::vault::{OpenFault, lock};

/// Where they are; their key file is 64 times the byte 7.
const DIR: &str = "tests/vaults/damaged";
/// All of them together may not take more.
const BYTES_MAX: u64 = 1_200_000;
/// Kinds without a vault here, and why.
const WITHOUT: [(&str, &str); 4] = [
    ("stray-file", "somebody planted it: a repair leaves it where it is"),
    ("index-unreadable", "which pages are read when a vault is opened is for the database to decide"),
    ("file-unread", "an error of the disk is no damage that could be stored"),
    ("range-unread", "an error of the disk is no damage that could be stored"),
];

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(DIR)
}

/// A vault's files by path, without the lock.
type Files = BTreeMap<String, Vec<u8>>;

fn files(disk: &MemoryBacking) -> Files {
    let mut all = Files::new();
    for dir in ["", "segments/", "index/", "snapshots/"] {
        for name in disk.list(dir.trim_end_matches('/')).unwrap() {
            if !["segments", "index", "snapshots", "lock"].contains(&name.as_str()) {
                let path = format!("{dir}{name}");
                let bytes = read_file(disk, &path, 1 << 30).unwrap();
                all.insert(path, bytes);
            }
        }
    }
    all
}

fn disk(files: &Files) -> MemoryBacking {
    let disk = MemoryBacking::default();
    disk.make_dir("segments").unwrap();
    disk.make_dir("index").unwrap();
    disk.make_dir("snapshots").unwrap();
    for (path, bytes) in files {
        let file = disk.open(path, Open::Create, Cache::Buffered).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
    }
    for dir in ["", "segments", "index", "snapshots"] {
        disk.sync_dir(dir).unwrap();
    }
    disk
}

fn stored_base() -> Files {
    let mut all = Files::new();
    for sub in ["", "segments/", "index/"] {
        for entry in fs::read_dir(dir().join("base").join(sub)).expect("the base vault is there") {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let path = format!("{sub}{}", entry.file_name().to_str().unwrap());
                all.insert(path, fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

// ---------------------------------------------------------------------------------------------------------------------
// Patches. Numbers are little-endian. One change behind the other: a letter, the path (length in 1 byte, text), then
// `w`: where (8), how many (4), these bytes; `l`: the file's new length (8), a file that is not there being made; `r`: nothing, the file
// is removed.

/// Equal bytes between two changes that are not worth a change of their own.
const GAP_BYTES: usize = 24;

fn patch(before: &Files, after: &Files) -> Vec<u8> {
    let mut out = Vec::new();
    let begin = |out: &mut Vec<u8>, what: u8, path: &str| {
        out.extend([what, path.len() as u8]);
        out.extend(path.as_bytes());
    };
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        begin(&mut out, b'r', path);
    }
    for (path, new) in after {
        let old = before.get(path).map_or(&[][..], |old| old);
        if old.len() != new.len() || !before.contains_key(path) {
            begin(&mut out, b'l', path);
            out.extend((new.len() as u64).to_le_bytes());
        }
        let differs = |i: usize| old.get(i).copied().unwrap_or(0) != new[i];
        let mut i = 0;
        while let Some(from) = (i..new.len()).find(|&i| differs(i)) {
            let mut to = from + 1;
            while let Some(next) = (to..new.len().min(to + GAP_BYTES)).find(|&i| differs(i)) {
                to = next + 1;
            }
            begin(&mut out, b'w', path);
            out.extend((from as u64).to_le_bytes());
            out.extend(((to - from) as u32).to_le_bytes());
            out.extend(&new[from..to]);
            i = to;
        }
    }
    out
}

fn patched(base: &Files, mut patch: &[u8]) -> Files {
    let mut files = base.clone();
    fn take<'a>(patch: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, rest) = patch.split_at(n);
        *patch = rest;
        head
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b));
    while !patch.is_empty() {
        let (what, len) = (take(&mut patch, 1)[0], take(&mut patch, 1)[0]);
        let path = String::from_utf8(take(&mut patch, len.into()).to_vec()).unwrap();
        match what {
            b'r' => drop(files.remove(&path)),
            b'l' => files.entry(path).or_default().resize(number(take(&mut patch, 8)), 0),
            b'w' => {
                let (at, n) = (number(take(&mut patch, 8)), number(take(&mut patch, 4)));
                files.get_mut(&path).unwrap()[at..at + n].copy_from_slice(take(&mut patch, n));
            }
            other => panic!("no change is called {other}"),
        }
    }
    files
}

#[test]
fn a_patch_makes_of_one_vault_the_other() {
    let mut rng = Rng(1);
    let make = |rng: &mut Rng| -> Files {
        let names = ["a", "segments/b", "index/c"].into_iter();
        let mut all: Files = names.map(|n| (n.to_owned(), rng.bytes(300))).collect();
        all.values_mut().for_each(|bytes| bytes.truncate(200 + rng.below(100) as usize));
        all
    };
    for _ in 0..50 {
        let (mut a, mut b) = (make(&mut rng), make(&mut rng));
        a.remove(*rng.pick(&["a", "none"]));
        b.remove(*rng.pick(&["index/c", "none"]));
        let mut c = a.clone();
        c.values_mut().for_each(|bytes| bytes[rng.below(200) as usize] ^= 1);
        for (x, y) in [(&a, &b), (&a, &c), (&b, &a), (&a, &a)] {
            assert!(patched(x, &patch(x, y)) == *y);
        }
        assert!(patch(&a, &c).len() < 100, "a flipped byte takes no more than it must");
    }
}

// ---------------------------------------------------------------------------------------------------------------------

fn found(disk: &MemoryBacking, share: Share) -> Result<Vec<Finding>, OpenFault> {
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    check(&backing, &unlock(), &world(), share, &|_, _| ())
}

/// The kinds found, that of a refusal to open included.
fn kinds_found(disk: &MemoryBacking) -> BTreeSet<&'static str> {
    match found(disk, Share::All) {
        Ok(found) => found.iter().map(Finding::kind).collect(),
        Err(OpenFault::RootsLost) => BTreeSet::from(["roots-lost"]),
        Err(fault) => panic!("it neither opens nor says what is lost: {fault}"),
    }
}

/// What each file reads as, by path from the root; `None` for one that does not read.
fn contents(disk: &MemoryBacking) -> BTreeMap<String, Option<Vec<u8>>> {
    let vault = opened(disk);
    let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
    let mut all = BTreeMap::new();
    for path in ["docs/a.txt", "docs/sparse", "docs/sub/b.bin", "hard", "replaced"] {
        let mut ino = ROOT_INO;
        let there = path.split('/').all(|name| match fs.lookup(ino, name.as_bytes()) {
            Ok(attr) => {
                ino = attr.ino;
                true
            }
            Err(_) => false,
        });
        let mut bytes = Vec::new();
        // The rest of `sparse` is a hole of a terabyte.
        let read = there.then(|| fs.read(ino, 0, 11 << 20, &mut bytes).is_ok());
        if let Some(read) = read {
            all.insert(path.to_owned(), read.then_some(bytes));
        }
    }
    drop(fs);
    vault.close().unwrap();
    all
}

#[test]
fn each_stored_damage_is_found_and_mended() {
    written();
    let base = stored_base();
    assert_eq!(found(&disk(&base), Share::All).unwrap(), [], "the base is healthy");
    let whole = contents(&disk(&base));
    assert_eq!(whole.len(), 5);
    for kind in Finding::KINDS {
        if WITHOUT.iter().any(|(without, _)| without == kind) {
            continue;
        }
        let patch = fs::read(dir().join(format!("{kind}.patch"))).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let disk = disk(&patched(&base, &patch));
        assert!(kinds_found(&disk).contains(kind), "{kind}: found {:?}", kinds_found(&disk));
        let again = || lock(Arc::new(disk.clone()));
        let done = repair(again().unwrap(), &again, &unlock(), &world(), Owner::default(), Share::All, &|_, _| ());
        let Repaired { mended, left } = done.unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert!(left.iter().all(Finding::is_loss), "{kind}: {left:#?} is left");
        assert!(!mended.is_empty() || !left.is_empty(), "{kind}: nothing was done, and nothing is left");
        assert_eq!(found(&disk, Share::All).unwrap(), left, "{kind}: a second look");
        for (path, bytes) in contents(&disk) {
            match bytes {
                Some(bytes) => {
                    let was = whole[&path].as_ref().unwrap();
                    let wrong = bytes.iter().zip(was).position(|(is, was)| is != was);
                    assert_eq!(wrong, None, "{kind}: {path} reads otherwise than it was written");
                }
                None => assert!(!left.is_empty(), "{kind}: {path} does not read, and nothing says so"),
            }
        }
    }
}

#[test]
fn nothing_is_stored_that_is_not_tried() {
    written();
    let mut bytes = 0;
    let mut stored = BTreeSet::new();
    for entry in fs::read_dir(dir()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if let Some(kind) = name.strip_suffix(".patch") {
            bytes += entry.metadata().unwrap().len();
            stored.insert(kind.to_owned());
        }
    }
    bytes += stored_base().values().map(|b| b.len() as u64).sum::<u64>();
    let without: BTreeSet<&str> = WITHOUT.iter().map(|(kind, _)| *kind).collect();
    let tried = Finding::KINDS.iter().filter(|k| !without.contains(*k)).map(|k| (*k).to_owned()).collect();
    assert_eq!(stored, tried);
    assert!(bytes <= BYTES_MAX, "{bytes} bytes are too many for a repository");
}

// ---------------------------------------------------------------------------------------------------------------------
// How they are made.

/// Stores all of it anew, if that was asked for.
fn written() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let how = std::env::var_os("STRONGROOM_DAMAGE");
        if how.as_ref().is_some_and(|how| how == "write") {
            write_all();
        } else if how.is_some_and(|how| how == "add") {
            let base = stored_base();
            let Healthy { docs, sub, b, link, b_bytes, .. } = *tiny();
            let healthy = Healthy { disk: disk(&base), docs, sub, b, link, b_bytes };
            store_missing(&base, Box::leak(Box::new(healthy)));
        }
    });
}

fn write_all() {
    let healthy = tiny();
    let base = files(&healthy.disk);
    fs::remove_dir_all(dir()).ok();
    for sub in ["segments", "index"] {
        fs::create_dir_all(dir().join("base").join(sub)).unwrap();
    }
    for (path, bytes) in &base {
        fs::write(dir().join("base").join(path), bytes).unwrap();
    }
    store_missing(&base, healthy);
}

fn store_missing(base: &Files, healthy: &'static Healthy) {
    let store = |kind: &str, after: &Files| {
        let path = dir().join(format!("{kind}.patch"));
        if !path.exists() && kinds_found(&disk(after)).contains(kind) {
            fs::write(path, patch(base, after)).unwrap();
        }
    };
    for (kind, change) in raw_damages() {
        let mut after = base.clone();
        change(&mut after, healthy);
        store(kind, &after);
    }
    for Damage { want, plant, .. } in damages(healthy) {
        let disk = copy(&healthy.disk);
        let p = Plant { vault: opened(&disk), disk };
        plant(&p);
        // Closed already by one that hurts files at rest: those are made above.
        if p.vault.sync_wait().is_err() {
            continue;
        }
        let cut = p.disk.crash(|_, _| true);
        trim(&cut);
        let now = files(&cut);
        p.vault.close().unwrap();
        // As little as shows it: new segments alone, if the damage lies in the log; else the index with them.
        let with = |taken: &[&str]| {
            let mut after = base.clone();
            for (path, bytes) in now.iter().filter(|(path, _)| taken.iter().any(|t| path.starts_with(t))) {
                after.insert(path.clone(), bytes.clone());
            }
            after.retain(|_, bytes| !bytes.is_empty());
            after
        };
        for finding in &want {
            store(finding.kind(), &with(&["segments/"]));
            store(finding.kind(), &with(&["segments/", "index/"]));
        }
    }
}

type Change = fn(&mut Files, &Healthy);

/// The segment of the base that holds its data.
const SEGMENT: &str = "segments/0000000000000001";

/// What happens to files at rest.
fn raw_damages() -> Vec<(&'static str, Change)> {
    fn rot(files: &mut Files, path: &str, at: usize) {
        files.get_mut(path).unwrap()[at] ^= 1;
    }
    vec![
        ("copy-spoiled", |files, _| rot(files, "root.a", 100)),
        ("snapshot-spoiled", |files, _| drop(files.insert("snapshots/0000000000000001".to_owned(), vec![0x5a; 4096]))),
        ("roots-lost", |files, _| ["root.a", "root.b"].iter().for_each(|root| rot(files, root, 100))),
        ("index-lost", |files, _| files.retain(|path, _| !path.starts_with("index/"))),
        ("segment-missing", |files, _| drop(files.remove(SEGMENT))),
        ("data-lost", |files, _| drop(files.remove(SEGMENT))),
        ("segment-short", |files, _| files.get_mut(SEGMENT).unwrap().truncate(8192)),
        ("unreadable", |files, healthy| {
            let p = Plant { vault: opened(&copy(&healthy.disk)), disk: fresh() };
            let run = p.extents(healthy.b)[0].1.run.clone();
            rot(files, SEGMENT, run.position_bytes as usize + 50);
        }),
        ("records-lost", |files, healthy| {
            // Three commits that no checkpoint covers, and the second of them rots.
            let disk = copy(&healthy.disk);
            let vault = opened(&disk);
            let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
            let mut ends = Vec::new();
            for name in ["one", "two", "three"] {
                let ino = file(&fs, ROOT_INO, name, name.as_bytes());
                fs.write(ino, 100, name.as_bytes(), WriteHow::default()).unwrap();
                fs.sync_wait().unwrap();
                let cut = disk.crash(|_, _| true);
                trim(&cut);
                ends.push(cut);
            }
            let after = self::files(&ends[2]);
            let (newest, bytes) = after.iter().rfind(|(p, b)| p.starts_with("segments/") && !b.is_empty()).unwrap();
            let first_end = self::files(&ends[0])[newest].len();
            let mut bytes = bytes.clone();
            bytes[first_end + 40..first_end + 400].fill(0x5a);
            files.insert(newest.clone(), bytes);
        }),
    ]
}
