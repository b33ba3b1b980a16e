//! Figures, on demand: `cargo test --release --lib index::bench -- --ignored --nocapture`. They assert nothing.

use super::*;
use crate::backing::{Backing, DirBacking};
use crate::base::id::Ino;
use crate::base::world::RealWorld;
use crate::format::key;
use std::time::{Duration, Instant};

const FILES: u64 = 100_000;

fn each(what: &str, count: u64, took: Duration) {
    log_line(&format!("{what:<44} {:8.3} µs", took.as_secs_f64() * 1e6 / count as f64));
}

#[expect(clippy::print_stdout, reason = "a bench's figures are its result")]
fn log_line(line: &str) {
    println!("{line}");
}

fn file(n: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let parent = Ino(1 + n / 1000);
    let name = format!("file-number-{n}.txt").into_bytes();
    vec![
        (key::inode(Ino(n + 1000)), Some(vec![1; 72])),
        (key::name(parent, &name), Some(vec![2; 17])),
        (key::cookie(parent, n), Some([&[3; 9][..], &name].concat())),
        (key::inode(parent), Some(vec![4; 72])),
    ]
}

/// Pseudo-random order of the files.
fn shuffled(n: u64) -> u64 {
    n.wrapping_mul(48_271) % FILES
}

fn timed(what: &str, count: u64, mut work: impl FnMut(u64)) {
    let begun = Instant::now();
    (0..count).for_each(&mut work);
    each(what, count, begun.elapsed());
}

fn looks(index: &Index, where_: &str) {
    timed(&format!("{where_}: get of an inode"), FILES, |n| {
        assert!(index.get(&key::inode(Ino(shuffled(n) + 1000))).unwrap().is_some());
    });
    timed(&format!("{where_}: get of a name"), FILES, |n| {
        let n = shuffled(n);
        let name = format!("file-number-{n}.txt");
        assert!(index.get(&key::name(Ino(1 + n / 1000), name.as_bytes())).unwrap().is_some());
    });
    timed(&format!("{where_}: get of nothing"), FILES, |n| {
        assert!(index.get(&key::name(Ino(1 + n / 1000), b"missing")).unwrap().is_none());
    });
    timed(&format!("{where_}: last_before"), FILES / 4, |n| {
        let n = shuffled(n);
        let parent = key::prefix(key::COOKIE, 1 + n / 1000);
        assert!(index.scan_last_before(&parent, &key::cookie(Ino(1 + n / 1000), n + 1)).unwrap().is_some());
    });
    timed(&format!("{where_}: scan of 1000 names"), FILES / 1000, |d| {
        assert_eq!(index.scan(&key::prefix(key::NAME, 1 + d), b"", 1000).unwrap().len(), 1000);
    });
}

fn filled(table: Box<dyn Table>) -> Index {
    let index = Index::new(table);
    timed("overlay: create (4 puts, 2 gets)", FILES, |n| {
        let changes = file(n);
        assert!(index.get(&changes[1].0).unwrap().is_none());
        let _ = index.get(&changes[3].0).unwrap();
        index.change(changes);
    });
    log_line(&format!("overlay: {} entries, {} bytes", index.overlay_entries(), index.overlay_bytes()));
    looks(&index, "overlay");
    index
}

#[test]
#[ignore = "figures, not assertions"]
fn figures_of_the_overlay() {
    filled(Box::new(MemoryTable::default()));
    for threads in [1, 2, 24] {
        let index = Index::new(Box::new(MemoryTable::default()));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for t in 0..threads {
                let index = &index;
                scope.spawn(move || {
                    for n in (t..FILES).step_by(threads as usize) {
                        let changes = file(n);
                        let _ = index.get(&changes[1].0).unwrap();
                        let _ = index.get(&changes[3].0).unwrap();
                        index.change(changes);
                    }
                });
            }
        });
        each(&format!("overlay: create, {threads} threads"), FILES, begun.elapsed());
    }
}

#[test]
#[ignore = "figures, not assertions"]
fn figures_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(dir.path()).unwrap());
    let world = Arc::new(RealWorld::default());
    let cache = 32 << 20;
    let begun = Instant::now();
    let table = RedbTable::create(&backing, "index", redb_tests::key(1), world.clone(), cache).unwrap();
    each("table: creation", 1, begun.elapsed());
    let index = filled(Box::new(table));
    index.seal_direct();
    let (keys, begun) = (index.overlay_entries() as u64, Instant::now());
    index.apply_sealed(&[]).unwrap();
    log_line(&format!("apply of {keys} keys: {:?}", begun.elapsed()));
    each("apply, per key", keys, begun.elapsed());
    looks(&index, "table");
    for n in 0..1000 {
        index.change(file(shuffled(n)));
    }
    index.seal_direct();
    let begun = Instant::now();
    index.apply_sealed(&[]).unwrap();
    log_line(&format!("apply of 1000 scattered files changed: {:?}", begun.elapsed()));
    index.change(file(1));
    index.seal_direct();
    let begun = Instant::now();
    index.apply_sealed(&[]).unwrap();
    log_line(&format!("apply of one file changed: {:?}", begun.elapsed()));
    let len = std::fs::metadata(dir.path().join("index")).unwrap().len();
    log_line(&format!("file: {} MiB", len >> 20));
    std::fs::copy(dir.path().join("index"), dir.path().join("crashed")).unwrap();
    // Else opening would have to sync the whole copy.
    std::fs::File::open(dir.path().join("crashed")).unwrap().sync_all().unwrap();
    let begun = Instant::now();
    let crashed = RedbTable::open(&backing, "crashed", redb_tests::key(1), world.clone(), cache).unwrap();
    log_line(&format!("opening after a crash: {:?}", begun.elapsed()));
    let index = Index::new(Box::new(crashed));
    looks(&index, "table, after a crash");
    let begun = Instant::now();
    drop(index);
    log_line(&format!("closing: {:?}", begun.elapsed()));
    let begun = Instant::now();
    let again = RedbTable::open(&backing, "crashed", redb_tests::key(1), world, cache).unwrap();
    log_line(&format!("opening after a clean close: {:?}", begun.elapsed()));
    drop(again);
}
