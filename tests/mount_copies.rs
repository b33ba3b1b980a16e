//! `cp` inside a mount: the real thing, as a person would do it.
//!
//! Method: coreutils' `cp` of a large file on a real mount, whose copies are then overwritten, cut and deleted in turn, over
//! remounts; at last `check --read-data`.
//! Promise: the backing directory does not grow with the copy, and neither file ever shows what was done to the other.
//! Sizes: `STRONGROOM_COPY_MIB` (the file; default 24).

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{TestVault, run, setting};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

fn cp(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--reflink=auto").arg(from).arg(to));
}

/// Bytes that the segments take on the backing filesystem.
fn taken(v: &TestVault) -> u64 {
    v.segments().iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum()
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

#[test]
fn a_large_copy_takes_no_room_and_both_files_are_on_their_own() {
    let v = TestVault::mounted();
    let len = (setting("STRONGROOM_COPY_MIB", 24, 24) << 20) as usize + 5000;
    let mut a_is = Rng(11).bytes(len);
    let (a, b, c) = (v.path("a"), v.path("b"), v.path("c"));
    fs::write(&a, &a_is).unwrap();
    sync(&a);
    let before = taken(&v);
    cp(&a, &b);
    sync(&b);
    // Its commit, in room taken in advance or not.
    assert!(taken(&v) <= before + (2 << 20), "{before} bytes before, {} after", taken(&v));
    let stats = v.storage("stats.json");
    assert!(stats.contains("copy_file_range"), "the kernel asked for a copy");
    let mut b_is = a_is.clone();
    assert!(fs::read(&b).unwrap() == b_is);
    for (path, is, seed) in [(&a, &mut a_is, 5u64), (&b, &mut b_is, 6)] {
        let new = Rng(seed).bytes(700_000);
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(&new, seed * 300_001).unwrap();
        is[seed as usize * 300_001..][..700_000].copy_from_slice(&new);
    }
    v.remount();
    assert!(fs::read(&a).unwrap() == a_is && fs::read(&b).unwrap() == b_is);
    cp(&b, &c);
    OpenOptions::new().write(true).open(&b).unwrap().set_len(len as u64 / 3).unwrap();
    b_is.truncate(len / 3);
    fs::remove_file(&a).unwrap();
    v.remount();
    assert!(fs::read(&b).unwrap() == b_is);
    assert!(fs::read(&c).unwrap()[..len / 3] == b_is && fs::metadata(&c).unwrap().len() == len as u64);
    // Written just now, and not synced: the kernel's cache and our buffers.
    fs::write(&a, &a_is).unwrap();
    cp(&a, &b);
    fs::remove_file(&a).unwrap();
    assert!(fs::read(&b).unwrap() == a_is);
    v.umount();
    v.check();
}
