//! What commits leave behind is given back, on a real mount.
//!
//! Method: a file of 1 MiB that a program writes to and fsyncs, block by block, as databases do; then `clean`, as a person asks for
//! it, beside a program that goes on. What the backing directory takes is asked of its filesystem.
//! Promise: the room comes back while everything goes on, nothing is lost by it, and the vault is sound afterwards.
//! `STRONGROOM_CLEAN_COMMITS=n` makes n commits.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, setting};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that a directory's files take.
fn taken_bytes(dir: &Path) -> u64 {
    let taken = |entry: fs::DirEntry| {
        let meta = entry.metadata().unwrap();
        if meta.is_dir() { taken_bytes(&entry.path()) } else { meta.blocks() * 512 }
    };
    // What is removed at this moment takes nothing.
    fs::read_dir(dir).unwrap().filter_map(Result::ok).filter(|e| e.path().exists()).map(taken).sum()
}

/// Writes a block and fsyncs it.
fn commit(file: &File, is: &mut [u8], n: u64) {
    let at = (n * 7919 % 256 * 4096) as usize;
    is[at..at + 4096].fill(n as u8);
    file.write_all_at(&is[at..at + 4096], at as u64).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn the_room_of_old_commits_comes_back_beside_whatever_goes_on() {
    let v = TestVault::mounted();
    let commits = setting("STRONGROOM_CLEAN_COMMITS", 4000, 1500);
    let database = v.path("database");
    let mut is: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&database, &is).unwrap();
    let file = File::options().write(true).open(&database).unwrap();
    (0..commits).for_each(|n| commit(&file, &mut is, n));
    let segments = v.vault.join("segments");
    // What is written at the moment is not old.
    drop(file);
    v.remount();
    let before = taken_bytes(&segments);
    assert!(before > commits * 4096, "{before} bytes for {commits} commits: nothing to give back");
    let file = File::options().write(true).open(&database).unwrap();
    v.order("clean").unwrap();
    let (began, mut n) = (Instant::now(), commits);
    let first = segments.join("0000000000000001");
    while first.exists() && began.elapsed() < Duration::from_secs(60) {
        commit(&file, &mut is, n);
        n += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!first.exists(), "after {n} commits the first segment is there yet: {}", v.storage("errors"));
    assert!(v.storage("metrics").contains("strongroom_segments_removed"), "it is counted");
    assert!(fs::read(&database).unwrap() == is);
    drop(file);
    v.remount();
    assert!(fs::read(&database).unwrap() == is);
    let after = taken_bytes(&segments);
    assert!(after < before / 2, "{before} bytes before, {after} after");
    v.umount();
    v.check();
}
