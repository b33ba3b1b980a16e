//! Attacks a vault in a real directory, with names in it, by taking its files away one by one.
//!
//! Method: build a tree over several mounts, so that each file's data lies in a segment of its own; for each file of the
//! backing directory and each damage take a copy, let `check` look, then open it and read everything by name.
//! Promise: the vault opens; what lay in the damaged file is an error or right, never other bytes; all else reads right; and
//! `check`, which changed nothing, had named exactly the paths that cannot be read, each with what mends it.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use strongroom::backing::{Backing, DirBacking};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::check::{Share, check};
use strongroom::fs::{Caller, FileSystem, FsFault, FsOptions, WriteHow};
use strongroom::seal::Unlock;
use strongroom::vault::{self, CreateOptions, OpenOptions};

const LEASES: u64 = 3;

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![3; 32]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn backing(dir: &Path) -> Arc<dyn Backing> {
    Arc::new(DirBacking::open(dir).unwrap())
}

fn opened(dir: &Path) -> FileSystem {
    let options = OpenOptions { workers: 1, ..OpenOptions::default() };
    let vault =
        vault::open(backing(dir), &unlock(), &options, world()).expect("one damaged file keeps no vault closed");
    FileSystem::new(vault, FsOptions::default()).unwrap()
}

/// Bytes that do not compress, of their own for each file.
fn body(n: u64) -> Vec<u8> {
    let mut state = n + 1;
    let mut step = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..300_000 + n).map(|_| step()).collect()
}

fn directory(n: u64) -> String {
    format!("in segment {n}")
}

fn lookup(fs: &FileSystem, n: u64) -> Result<Ino, FsFault> {
    let dir = fs.lookup(ROOT_INO, directory(n).as_bytes())?.ino;
    Ok(fs.lookup(dir, b"file")?.ino)
}

/// Writes the file of segment `n`.
fn write(fs: &FileSystem, n: u64) {
    let dir = fs.mkdir(&Caller::default(), ROOT_INO, directory(n).as_bytes(), 0o755).unwrap().ino;
    let ino = fs.mknod(&Caller::default(), dir, b"file", 0o644, 0).unwrap().ino;
    fs.write(ino, 0, &body(n), WriteHow::default()).unwrap();
    fs.sync_wait().unwrap();
}

/// Whether the file of segment `n` reads right; an error is none, other bytes end the test.
fn reads(fs: &FileSystem, n: u64, say: &str) -> bool {
    let read = |n| {
        let (ino, mut out) = (lookup(fs, n)?, Vec::new());
        fs.read(ino, 0, fs.getattr(ino)?.size as usize, &mut out)?;
        Ok::<_, FsFault>(out)
    };
    match read(n) {
        Ok(found) => {
            assert!(found == body(n), "{say}: the file of segment {n} reads wrong");
            true
        }
        Err(_) => false,
    }
}

fn copied(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(from, dir.path());
    dir
}

/// Every file below a directory with its content, the lock left out.
fn everything(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut all, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(at) = todo.pop() {
        for path in fs::read_dir(at).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
            } else if !path.ends_with("lock") {
                all.push((path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn any_one_file_lost_or_overwritten_is_named_by_the_paths_it_costs() {
    let whole = tempfile::tempdir().unwrap();
    vault::create(&backing(whole.path()), &unlock(), &CreateOptions::default(), &world()).unwrap();
    for n in 1..=LEASES {
        let fs = opened(whole.path());
        write(&fs, n);
        fs.vault().close().unwrap();
    }
    let (mut segments, mut costly) = (0, 0);
    for (path, bytes) in everything(whole.path()) {
        let noise: Vec<u8> = body(99).into_iter().cycle().take(bytes.len()).collect();
        let damages: [(&str, Option<&[u8]>); 4] = [
            ("deleted", None),
            ("emptied", Some(b"")),
            ("cut in half", Some(&bytes[..bytes.len() / 2])),
            ("overwritten", Some(&noise)),
        ];
        let segment = path.strip_prefix("segments").ok();
        let segment = segment.map(|name| u64::from_str_radix(name.to_str().unwrap(), 16).unwrap());
        segments += u64::from(segment.is_some());
        for (what, damage) in damages {
            let say = format!("{} {what}", path.display());
            let dir = copied(whole.path());
            match damage {
                None => fs::remove_file(dir.path().join(&path)).unwrap(),
                Some(bytes) => fs::write(dir.path().join(&path), bytes).unwrap(),
            }
            let before = everything(dir.path());
            let found = check(&backing(dir.path()), &unlock(), &world(), Share::All, &|_, _| {})
                .unwrap_or_else(|e| panic!("{say}: check: {e}"));
            assert!(everything(dir.path()) == before, "{say}: check changed something");
            let named: BTreeSet<Vec<u8>> = found.iter().filter_map(|f| f.place()?.path).collect();
            for finding in &found {
                assert!(!finding.mend("VAULT").is_empty(), "{say}: {finding}");
            }

            let fs = opened(dir.path());
            for n in 1..=LEASES {
                let right = reads(&fs, n, &say);
                assert!(right || segment == Some(n), "{say}: the file of segment {n} is lost");
                let name = format!("/{}/file", directory(n)).into_bytes();
                assert_eq!(named.contains(&name), !right, "{say}: check found {found:?}");
            }
            costly += u64::from(!named.is_empty());
            write(&fs, 9);
            fs.vault().close().unwrap();
            drop(fs);
            assert!(reads(&opened(dir.path()), 9, &say), "{say}: what is written afterwards stays");
        }
    }
    assert_eq!(segments, LEASES);
    assert!(costly >= 3 * LEASES, "the damage to {segments} segments was felt {costly} times");
}

#[test]
fn a_whole_directory_that_is_lost_is_made_anew() {
    let whole = tempfile::tempdir().unwrap();
    vault::create(&backing(whole.path()), &unlock(), &CreateOptions::default(), &world()).unwrap();
    let fs = opened(whole.path());
    write(&fs, 1);
    fs.vault().close().unwrap();
    drop(fs);
    for lost in ["index", "snapshots"] {
        let dir = copied(whole.path());
        fs::remove_dir_all(dir.path().join(lost)).unwrap();
        let fs = opened(dir.path());
        assert!(reads(&fs, 1, lost), "without {lost}");
        write(&fs, 2);
        fs.vault().close().unwrap();
        drop(fs);
        let again = opened(dir.path());
        assert!(reads(&again, 1, lost) && reads(&again, 2, lost));
    }
}
