//! How a file's contents are compressed, as the attribute `user.strongroom.compression` says.
//!
//! Method: the same well compressible bytes are written in directories with different choices; the daemon's own counters say by which
//! codec chunks were sealed and how large they came out, and the backing directory agrees.
//! Promise: a choice holds for what is written after it, in the directory, in all that is made below it, and across mounts; a word
//! that is none is refused.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, output, run};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

const NAME: &str = "user.strongroom.compression";
const BYTES: usize = 4 << 20;

fn choose(path: &Path, word: &str) {
    run(Command::new("setfattr").args(["-n", NAME, "-v", word]).arg(path));
}

fn chosen(path: &Path) -> Option<String> {
    let out = output(Command::new("getfattr").args(["--only-values", "-n", NAME]).arg(path));
    out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
}

/// What was sealed so far: bytes, and chunks by codec.
fn sealed(v: &TestVault) -> [u64; 4] {
    let stats: serde_json::Value = serde_json::from_str(&v.storage("stats.json")).unwrap();
    ["sealed_bytes", "chunks_zstd", "chunks_lz4", "chunks_raw"].map(|name| stats["counters"][name].as_u64().unwrap())
}

/// Writes a file, and says what that sealed.
fn write(v: &TestVault, name: &str) -> [u64; 4] {
    let before = sealed(v);
    // No two chunks are the same, and each is far smaller when it is compressed.
    let bytes: Vec<u8> = (0..BYTES).map(|i| if i % 64 == 0 { (i / 64 % 251) as u8 } else { b'x' }).collect();
    fs::write(v.path(name), &bytes).unwrap();
    File::open(v.path(name)).unwrap().sync_all().unwrap();
    assert!(fs::read(v.path(name)).unwrap() == bytes);
    let after = sealed(v);
    [0, 1, 2, 3].map(|i| after[i] - before[i])
}

/// By which codec alone a file was sealed, and whether that made it smaller.
fn codec(v: &TestVault, name: &str) -> &'static str {
    let [bytes, zstd, lz4, raw] = write(v, name);
    let small = bytes < BYTES as u64 / 4;
    match (zstd > 0, lz4 > 0, raw > 0, small) {
        (true, false, false, true) => "zstd",
        (false, true, false, true) => "lz4",
        (false, false, true, false) => "none",
        other => panic!("{name}: {other:?}, {bytes} bytes"),
    }
}

fn backing_bytes(v: &TestVault) -> u64 {
    use std::os::unix::fs::MetadataExt;
    v.order("checkpoint").unwrap();
    v.segments().iter().map(|path| path.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn a_directory_says_how_what_is_made_below_it_is_compressed() {
    let v = TestVault::mounted_with(&["compression=zstd"]);
    for dir in ["raw/deep", "quick"] {
        fs::create_dir_all(v.path(dir)).unwrap();
    }
    assert_eq!(codec(&v, "plain"), "zstd");
    choose(&v.path("raw"), "none");
    choose(&v.path("quick"), "lz4");
    assert_eq!(codec(&v, "raw/file"), "none");
    assert_eq!(codec(&v, "quick/file"), "lz4");
    // What was there before has no choice of its own; what is made from now on gets it, also further down.
    assert_eq!((chosen(&v.path("raw/deep")), chosen(&v.path("raw/file"))), (None, Some("none".to_owned())));
    assert_eq!(codec(&v, "raw/deep/file"), "zstd");
    fs::create_dir_all(v.path("raw/new/below")).unwrap();
    assert_eq!(chosen(&v.path("raw/new/below")).as_deref(), Some("none"));
    assert_eq!(codec(&v, "raw/new/below/file"), "none");
    // A file that moves takes it along; one's own choice counts, from then on; without one it is the vault's again.
    fs::rename(v.path("raw/file"), v.path("moved")).unwrap();
    assert_eq!(codec(&v, "moved"), "none");
    choose(&v.path("moved"), "lz4");
    assert_eq!(codec(&v, "moved"), "lz4");
    run(Command::new("setfattr").args(["-x", NAME]).arg(v.path("moved")));
    assert_eq!(codec(&v, "moved"), "zstd");

    // Another mount with another choice for the vault: what was chosen stays chosen.
    let mut v = v;
    v.umount();
    v.options = vec!["compression=none".to_owned()];
    v.mount();
    assert_eq!(codec(&v, "plain"), "none");
    assert_eq!(codec(&v, "quick/file"), "lz4");
    assert_eq!(codec(&v, "quick/another"), "lz4");
    choose(&v.path("raw/new"), "zstd");
    assert_eq!(codec(&v, "raw/new/file"), "zstd");
    assert_eq!(codec(&v, "raw/new/below/file"), "none", "a choice that was inherited is one's own");
    v.umount();
    v.check();
}

#[test]
fn what_is_stored_raw_takes_its_room_in_the_backing_directory() {
    let v = TestVault::mounted_with(&["compression=zstd"]);
    fs::create_dir(v.path("raw")).unwrap();
    choose(&v.path("raw"), "none");
    let start = backing_bytes(&v);
    for i in 0..24 {
        write(&v, &format!("file-{i}"));
    }
    let small = backing_bytes(&v);
    for i in 0..24 {
        write(&v, &format!("raw/file-{i}"));
    }
    let large = backing_bytes(&v);
    let plain = 24 * BYTES as u64;
    assert!(small - start < plain && large - small >= plain * 3 / 4, "{start}, {small}, {large}");
}

#[test]
fn a_word_that_is_no_choice_is_refused() {
    let v = TestVault::mounted();
    fs::create_dir(v.path("dir")).unwrap();
    fs::write(v.path("dir/file"), "text").unwrap();
    choose(&v.path("dir"), "none");
    for word in ["gzip", "", "None", "zstd\n"] {
        for path in ["dir", "dir/file"] {
            let mut set = Command::new("setfattr");
            let out = output(set.args(["-n", NAME, "-v", word]).arg(v.path(path)).env("LC_ALL", "C"));
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(!out.status.success() && said.contains("Invalid argument"), "{word:?}: {said}");
        }
    }
    assert_eq!(chosen(&v.path("dir")).as_deref(), Some("none"), "it stays as it was");
    assert_eq!(chosen(&v.path("dir/file")), None);
    // Links and devices have no contents, and Linux lets them have no such attributes.
    std::os::unix::fs::symlink("file", v.path("dir/link")).unwrap();
    run(Command::new("mkfifo").arg(v.path("dir/fifo")));
    let listed =
        run(Command::new("getfattr").args(["-h", "-d", "-m", "-"]).args([v.path("dir/link"), v.path("dir/fifo")]));
    assert_eq!(listed, "");
}
