//! Old segments are emptied and removed, and nothing that anybody holds goes with them.
//!
//! Method: a random program on a vault on a disk in memory and on files in memory beside it, opened anew time and again, so that
//! there are many small segments; the cleaner is asked to clean all the time. After each life the contents are compared, `check`
//! must find nothing, and an index made anew from what is left must say the same.
//! Promise: a file reads as it was written, whatever moves meanwhile; what the segments take stays in proportion to what is alive.
//! `STRONGROOM_SEEDS=n` runs n seeds, `STRONGROOM_SEED=s` one.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/damage.rs"]
mod damage;
#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use damage::{Plant, checked, copy, fresh, opened, unlock, world};
use rng::Rng;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use strongroom::backing::{Backing, Cache, MemoryBacking, Open};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::check::{Owner, Share, repair};
use strongroom::format::key;
use strongroom::fs::{Caller, FileSystem, FsOptions, SetAttr, WriteHow};
use strongroom::vault::{Choose, Content, OpenOptions, lock};

const HOW: WriteHow = WriteHow { drop_set_id: false, stamp: true };
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Longest wait for the cleaner.
const PATIENCE: Duration = Duration::from_secs(60);

fn mounted(disk: &MemoryBacking) -> FileSystem {
    let options = OpenOptions {
        clean_bytes: Some(64 << 10),
        flush_interval: Duration::from_millis(20),
        ..OpenOptions::default()
    };
    let vault = lock(Arc::new(disk.clone())).unwrap().open(&unlock(), &options, world()).unwrap();
    FileSystem::new(vault, FsOptions::default()).unwrap()
}

fn segments(disk: &MemoryBacking) -> Vec<(String, u64)> {
    let taken = |name: &String| {
        disk.open(&format!("segments/{name}"), Open::Read, Cache::Buffered).map_or(0, |f| f.taken_bytes().unwrap())
    };
    disk.list("segments").unwrap().into_iter().map(|name| (name.clone(), taken(&name))).collect()
}

/// Content of both kinds: what shrinks, and what does not.
fn some(rng: &mut Rng, len: usize) -> Vec<u8> {
    if rng.below(2) == 0 {
        rng.bytes(len)
    } else {
        let word = rng.bytes(40);
        word.iter().copied().cycle().take(len).collect()
    }
}

/// What the files should hold.
type Model = BTreeMap<&'static str, Vec<u8>>;

fn found(fs: &FileSystem, name: &str) -> Option<Ino> {
    fs.lookup(ROOT_INO, name.as_bytes()).ok().map(|attr| attr.ino)
}

fn step(fs: &FileSystem, model: &mut Model, rng: &mut Rng) {
    let name = NAMES[rng.below(NAMES.len() as u64) as usize];
    let ino = found(fs, name).unwrap_or_else(|| damage::file(fs, ROOT_INO, name, b""));
    let is = model.entry(name).or_default();
    match rng.below(12) {
        0..=5 => {
            let (at, len) = (rng.below(600_000) as usize, 1 + rng.below(200_000) as usize);
            let bytes = some(rng, len);
            fs.write(ino, at as u64, &bytes, HOW).unwrap();
            is.resize(is.len().max(at + len), 0);
            is[at..at + len].copy_from_slice(&bytes);
        }
        6 | 7 => {
            let other = NAMES[rng.below(NAMES.len() as u64) as usize];
            if other == name || is.is_empty() {
                return;
            }
            let from = rng.below(is.len() as u64);
            let (len, to_at) = (1 + rng.below(is.len() as u64 - from), rng.below(400_000));
            let to = found(fs, other).unwrap_or_else(|| damage::file(fs, ROOT_INO, other, b""));
            let bytes = is[from as usize..][..len as usize].to_vec();
            let done = fs.copy_file_range(ino, from, to, to_at, len, HOW).unwrap() as usize;
            let there = model.entry(other).or_default();
            there.resize(there.len().max(to_at as usize + done), 0);
            there[to_at as usize..][..done].copy_from_slice(&bytes[..done]);
        }
        8 => {
            let size = rng.below(600_000);
            fs.setattr(&Caller::default(), ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
            is.resize(size as usize, 0);
        }
        9 => {
            fs.unlink(ROOT_INO, name.as_bytes()).unwrap();
            model.remove(name);
        }
        10 => fs.sync_wait().unwrap(),
        _ => fs.vault().checkpoint().unwrap(),
    }
}

fn compare(fs: &FileSystem, model: &Model, what: &str) {
    for name in NAMES {
        let is = found(fs, name).map(|ino| {
            let mut out = Vec::new();
            fs.read(ino, 0, fs.getattr(ino).unwrap().size as usize, &mut out).unwrap();
            out
        });
        assert!(is.as_ref() == model.get(name), "{what}: {name} is not what was written");
    }
}

/// What a random program left: the disk, what should be on it, bytes moved and segments removed.
struct Left {
    disk: MemoryBacking,
    model: Model,
    moved: u64,
    removed: u64,
}

fn run(seed: u64, lives: u32) -> Left {
    let mut rng = Rng(seed);
    let disk = fresh();
    let (mut model, mut moved, mut removed) = (Model::new(), 0, 0);
    for life in 0..lives {
        let fs = mounted(&disk);
        for i in 0..60 {
            step(&fs, &mut model, &mut rng);
            if i % 8 == 0 {
                fs.vault().clean();
                std::thread::sleep(Duration::from_millis(rng.below(60)));
            }
            if i % 16 == 0 {
                compare(&fs, &model, &format!("seed {seed}, life {life}, step {i}"));
            }
        }
        compare(&fs, &model, &format!("seed {seed}, life {life}"));
        moved += fs.vault().stats().moved_bytes.get();
        removed += fs.vault().stats().segments_removed.get();
        let errors = fs.vault().stats().errors();
        assert!(errors.is_empty(), "seed {seed}, life {life}: {errors:?}");
        fs.vault().close().unwrap();
        drop(fs);
        assert_eq!(checked(&copy(&disk), true), [], "seed {seed}, life {life}");
    }
    Left { disk, model, moved, removed }
}

#[test]
fn files_read_as_they_were_written_whatever_moves() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let seeds = match number("STRONGROOM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("STRONGROOM_SEEDS").unwrap_or(6),
    };
    let (mut moved, mut removed) = (0, 0);
    for seed in seeds {
        let left = run(seed, 8);
        (moved, removed) = (moved + left.moved, removed + left.removed);
    }
    assert!(moved > 1 << 20 && removed > 10, "{moved} bytes moved and {removed} segments removed: too few to tell");
}

#[test]
fn what_small_commits_leave_is_given_back() {
    let disk = fresh();
    let mut rng = Rng(7);
    let fs = mounted(&disk);
    let ino = damage::file(&fs, ROOT_INO, "database", &rng.bytes(1 << 20));
    fs.vault().close().unwrap();
    drop(fs);
    for _ in 0..10 {
        let fs = mounted(&disk);
        for _ in 0..40 {
            fs.write(ino, 4096 * rng.below(256), &rng.bytes(4096), HOW).unwrap();
            fs.sync_wait().unwrap();
        }
        fs.vault().close().unwrap();
    }
    let all = || segments(&disk).iter().map(|(_, taken)| taken).sum::<u64>();
    let before = all();
    let fs = mounted(&disk);
    fs.vault().clean();
    let began = Instant::now();
    // Each mount before this began one segment. One that has little to gain stays, as where a mount before this has cleaned (in a
    // slow build it has the time): so it is awaited that all of them take no more than the file.
    let is_old = |name: &str| name < "000000000000000c";
    let old = || segments(&disk).iter().filter(|(name, _)| is_old(name)).map(|(_, taken)| taken).sum::<u64>();
    while old() > 1 << 20 && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    fs.vault().close().unwrap();
    let after = all();
    assert!(
        after < before / 3 * 2 && after < 5 << 19,
        "{before} bytes before and {after} after: {:?}",
        segments(&disk)
    );
    assert_eq!(checked(&disk, true), []);
}

/// A copy that was looked up when the old place was the only one, and is logged behind the move, names the new one.
#[test]
fn what_is_copied_between_any_two_steps_of_a_move_is_found() {
    for seed in 1..=12 {
        let disk = fresh();
        let (mut rng, name) = (Rng(seed), |i: u64| format!("source-{i}"));
        let sources: Vec<Vec<u8>> = (0..8).map(|_| rng.bytes(16 << 10)).collect();
        let fs = mounted(&disk);
        for (i, bytes) in (0..).zip(&sources) {
            let ino = damage::file(&fs, ROOT_INO, &name(i), b"");
            fs.write(ino, 0, bytes, HOW).unwrap();
            fs.sync_wait().unwrap();
        }
        fs.vault().close().unwrap();
        drop(fs);
        // Without threads: nothing happens but by the steps taken here.
        let chance = Mutex::new(Rng(seed));
        let choose: Choose = Arc::new(move |of| chance.lock().unwrap().below(of as u64) as usize);
        let options = OpenOptions { clean_bytes: Some(0), stepped: Some(choose), ..OpenOptions::default() };
        let vault = lock(Arc::new(disk.clone())).unwrap().open(&unlock(), &options, world()).unwrap();
        let fs = FileSystem::new(vault, FsOptions::default()).unwrap();
        fs.vault().clean();
        let (began, mut laid) = (Instant::now(), Vec::new());
        while fs.vault().stats().segments_removed.get() == 0 {
            let errors = fs.vault().stats().errors();
            assert!(errors.is_empty() && began.elapsed() < PATIENCE, "seed {seed}: {errors:?}");
            // While frames are on their way, and as long after that as anything may name the old ones.
            if fs.vault().stats().moved_bytes.get() > 0 && laid.len() < 200 {
                let from = rng.below(8);
                let to = damage::file(&fs, ROOT_INO, &format!("copy-{}", laid.len()), b"");
                let source = found(&fs, &name(from)).unwrap();
                assert_eq!(fs.copy_file_range(source, 0, to, 0, 16 << 10, HOW).unwrap(), 16 << 10);
                laid.push((to, from as usize));
                if rng.below(4) == 0 {
                    fs.sync(Box::new(|_| ()));
                }
            }
            if !fs.vault().step() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(laid.len() > 10, "seed {seed}: {} copies", laid.len());
        fs.vault().checkpoint().unwrap();
        for (n, (to, from)) in laid.iter().enumerate() {
            let mut is = Vec::new();
            fs.read(*to, 0, 16 << 10, &mut is).unwrap();
            assert!(is == sources[*from], "seed {seed}: copy {n} is not as source {from}");
        }
        fs.vault().close().unwrap();
        drop(fs);
        assert_eq!(checked(&disk, true), [], "seed {seed}");
    }
}

/// What was looked up before the index learnt of a move, and is laid after it, would name what is about to go: it is looked up anew.
#[test]
fn what_was_looked_up_before_a_move_is_not_laid_after_it() {
    let disk = fresh();
    let fs = mounted(&disk);
    let ino = damage::file(&fs, ROOT_INO, "source", &Rng(1).bytes(16 << 10));
    fs.vault().close().unwrap();
    drop(fs);
    let options = OpenOptions { clean_bytes: Some(0), stepped: Some(Arc::new(|_| 0)), ..OpenOptions::default() };
    let vault = lock(Arc::new(disk.clone())).unwrap().open(&unlock(), &options, world()).unwrap();
    let (source, target) = (vault.file(ino), vault.file(Ino(1000)));
    let stale = vault.content(&source, 0, 16 << 10).unwrap();
    let lay = |content: &Content| {
        let room = vault.reserve_copy(&target, 0, content).unwrap();
        // Dropped without a commit: what is laid is of no matter.
        vault.begin().copy(&source, content, &target, 0, room)
    };
    vault.clean();
    let began = Instant::now();
    while vault.stats().segments_removed.get() == 0 {
        assert!(began.elapsed() < PATIENCE, "{:?}", vault.stats().errors());
        if !vault.step() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(!lay(&stale), "it names a segment that is gone");
    assert!(lay(&vault.content(&source, 0, 16 << 10).unwrap()), "looked up anew it does");
}

/// The log does not begin at its beginning any more: what is lost or wrong of the index comes from the snapshots.
#[test]
fn an_index_that_is_lost_or_wrong_is_made_anew_without_what_was_removed() {
    let Left { disk, model, removed, .. } = run(3, 5);
    assert!(removed > 0);
    let lost = copy(&disk);
    for name in lost.list("index").unwrap() {
        lost.remove(&format!("index/{name}")).unwrap();
    }
    let fs = mounted(&lost);
    compare(&fs, &model, "the index was lost");
    assert!(fs.vault().stats().history().iter().any(|line| line.text.contains("made anew from the snapshot")));
    fs.vault().close().unwrap();
    drop(fs);
    assert_eq!(checked(&lost, true), []);

    let wrong = copy(&disk);
    let plant = Plant { vault: opened(&wrong), disk: wrong.clone() };
    plant.change(vec![(key::total("bytes"), Some(7u64.to_le_bytes().to_vec()))]);
    plant.vault.close().unwrap();
    drop(plant);
    assert_ne!(checked(&copy(&wrong), false), []);
    let again = || lock(Arc::new(wrong.clone()));
    let (owner, share) = (Owner::default(), Share::Nothing);
    let done = repair(again().unwrap(), &again, &unlock(), &world(), owner, share, &|_, _| ()).unwrap();
    assert!(done.left.is_empty() && !done.mended.is_empty(), "{done:?}");
    assert_eq!(checked(&copy(&wrong), true), []);
    compare(&mounted(&wrong), &model, "a count was wrong");
}

/// Where nothing is alive, nothing is moved, and no other checkpoint comes: the snapshots are enough.
#[test]
fn segments_of_nothing_but_commits_go_as_soon_as_the_snapshots_are_there() {
    let disk = fresh();
    let fs = mounted(&disk);
    let ino = damage::file(&fs, ROOT_INO, "database", &[1; 8192]);
    for n in 0..20 {
        fs.write(ino, 0, &[n; 8192], HOW).unwrap();
        fs.sync_wait().unwrap();
    }
    fs.vault().close().unwrap();
    drop(fs);
    let fs = mounted(&disk);
    // Alive in this mount's segment alone.
    fs.write(ino, 0, &[99; 8192], HOW).unwrap();
    fs.sync_wait().unwrap();
    fs.vault().clean();
    let began = Instant::now();
    while fs.vault().stats().segments_removed.get() == 0 && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((fs.vault().stats().segments_removed.get(), fs.vault().stats().moved_bytes.get()), (1, 0));
}
