//! One byte of a segment is changed: the file it belongs to answers EIO, every other file is right, and it is said.
//!
//! Method: files of many sizes; with the vault unmounted, one byte at a random place is flipped; mounted, everything is
//! read and compared; then the byte is flipped back, and everything must be right again.
//! Promise: damage is never wrong data, never more than the frame it hit, never silent.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{TestVault, setting};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const FILES: u64 = 150;

fn content(n: u64) -> Vec<u8> {
    let mut rng = Rng(n + 1000);
    let len = match n % 5 {
        0 => rng.below(100),
        1 => rng.below(5_000),
        2 => rng.below(70_000),
        _ => rng.below(700_000),
    } as usize;
    if n.is_multiple_of(2) { rng.bytes(len) } else { rng.text(len) }
}

fn name(n: u64) -> String {
    format!("dir-{}/file-{n}", n % 7)
}

/// What reading everything showed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    wrong: Vec<String>,
    refused: Vec<u64>,
}

fn read_all(root: &Path) -> Read {
    let mut seen = Read::default();
    for n in 0..FILES {
        let want = content(n);
        match fs::read(root.join(name(n))) {
            Ok(got) if got == want => {}
            Ok(got) => {
                seen.wrong.push(format!("{}: {} bytes instead of {}, or other ones", name(n), got.len(), want.len()))
            }
            Err(e) if e.raw_os_error() == Some(libc::EIO) => seen.refused.push(n),
            Err(e) => seen.wrong.push(format!("{}: {e}", name(n))),
        }
    }
    seen
}

fn fill(root: &Path) {
    for n in 0..FILES {
        let path = root.join(name(n));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content(n)).unwrap();
    }
}

/// Changes bytes of a file in place, through to the disk.
fn change(path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
    let f = OpenOptions::new().write(true).open(path)?;
    f.write_all_at(bytes, at)?;
    f.sync_all()
}

fn bytes_at(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut b = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut b, at).unwrap();
    b
}

/// A block of a segment that holds something: (segment, position of the block).
fn a_written_block(v: &TestVault, rng: &mut Rng) -> (PathBuf, u64) {
    let segments = v.segments();
    assert!(!segments.is_empty(), "the vault has no segments");
    for _ in 0..1_000_000 {
        let segment = rng.pick(&segments);
        let blocks = fs::metadata(segment).unwrap().len() / 4096;
        if blocks == 0 {
            continue;
        }
        let at = rng.below(blocks) * 4096;
        if bytes_at(segment, at, 4096).iter().any(|&b| b != 0) {
            return (segment.clone(), at);
        }
    }
    panic!("no written block was found in {segments:?}");
}

#[test]
fn one_flipped_byte_costs_at_most_the_file_it_lies_in() {
    let v = TestVault::mounted();
    fill(&v.mnt);
    v.remount();
    assert_eq!(read_all(&v.mnt), Read::default(), "before any damage");
    v.umount();
    let seed = setting("STRONGROOM_SEED", 11, 11);
    let mut rng = Rng(seed);
    let mut hit = 0;
    let trials = setting("STRONGROOM_DAMAGE_TRIALS", 16, 10);
    for trial in 0..trials {
        let (segment, block) = a_written_block(&v, &mut rng);
        let at = block + rng.below(4096);
        let was = bytes_at(&segment, at, 1);
        change(&segment, at, &[was[0] ^ (1 << rng.below(8))]).unwrap();
        let place = format!("seed {seed}, trial {trial}: {} at {at}", segment.display());

        v.mount();
        let seen = read_all(&v.mnt);
        assert_eq!(seen.wrong, Vec::<String>::new(), "{place}: wrong bytes, or another answer than EIO");
        assert!(seen.refused.len() <= 1, "{place}: one byte cost {} files: {:?}", seen.refused.len(), seen.refused);
        if let Some(&n) = seen.refused.first() {
            hit += 1;
            let errors = v.storage("errors");
            assert!(!errors.trim().is_empty(), "{place}: a read failed and /.storage/errors is empty");
            assert!(
                !errors.contains(&name(n)) && !errors.contains("file-"),
                "{place}: the errors tell a name: {errors}"
            );
            // The rest of the file is still there: only what the frame held is refused.
            let want = content(n);
            let file = File::open(v.path(name(n))).unwrap();
            let (mut right, mut refused) = (0, 0);
            for (piece, want) in want.chunks(4096).enumerate() {
                let mut got = vec![0; want.len()];
                match file.read_exact_at(&mut got, piece as u64 * 4096) {
                    Ok(()) => {
                        assert!(got == want, "{place}: wrong bytes in piece {piece}");
                        right += 1;
                    }
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{place}");
                        refused += 1;
                    }
                }
            }
            assert!(refused > 0 && refused * 4096 <= (128 << 10) + 4096, "{place}: {refused} refused, {right} right");
            // A damaged file can be replaced and taken away.
            fs::write(v.path("replacement"), "whole").unwrap();
        }
        v.umount();

        change(&segment, at, &was).unwrap();
    }
    assert!(hit > 0, "no flip in {trials} hit a file's data: nothing was tried");
    v.mount();
    assert_eq!(read_all(&v.mnt), Read::default(), "with every byte flipped back");
}

#[test]
fn a_lost_block_in_every_segment_is_never_wrong_data() {
    let v = TestVault::mounted();
    fill(&v.mnt);
    v.umount();
    let mut rng = Rng(5);
    for _ in 0..6 {
        let (segment, block) = a_written_block(&v, &mut rng);
        change(&segment, block, &rng.bytes(4096)).unwrap();
    }
    v.mount();
    let seen = read_all(&v.mnt);
    assert_eq!(seen.wrong, Vec::<String>::new());
    assert!(seen.refused.len() <= 12, "six blocks cost {} files", seen.refused.len());
    for &n in &seen.refused {
        fs::write(v.path(name(n)), content(n)).unwrap_or_else(|e| panic!("a damaged file cannot be written anew: {e}"));
    }
    v.remount();
    assert_eq!(read_all(&v.mnt), Read::default(), "after the damaged files were written anew");
}

#[test]
fn the_comparison_sees_one_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    assert_eq!(read_all(dir.path()), Read::default());
    let path = dir.path().join(name(4));
    change(&path, 17, &[content(4)[17] ^ 1]).unwrap();
    assert_eq!(read_all(dir.path()).wrong.len(), 1);
}
