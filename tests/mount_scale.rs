//! Very many files: made, listed, looked at, mounted again and deleted, in bounded memory.
//!
//! Method: files in up to 1000 directories are made by two threads, every name is listed, every file is asked for its attributes
//! by name, the vault is mounted anew and its daemon killed, and everything is deleted; how long each took is said, and how much
//! memory the daemon ever held. The vault is opened by a key file.
//! Promise: a vault's memory is bounded by its budget, not by how many files it holds; all of them are there, whatever the order
//! in which they are asked for, and nothing is left of them at the end.
//! `STRONGROOM_SCALE_FILES=1000000` is what a vault is meant for; with the default the budget is small, so that the files
//! do not fit in it either.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{BESIDE_BUDGET_BYTES, TestVault, memory_high_water_bytes, setting};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const DIRECTORIES_MAX: u64 = 1000;

/// The files that are to be there.
struct Files {
    count: u64,
    directories: u64,
}

impl Files {
    fn directory(&self, root: &Path, n: u64) -> PathBuf {
        root.join(format!("directory-{:04}", n % self.directories))
    }

    fn path(&self, root: &Path, n: u64) -> PathBuf {
        self.directory(root, n).join(format!("file-{:08x}-{n}", Rng(n).next() as u32))
    }

    /// Most are empty; each hundredth has its number in it.
    fn content(n: u64) -> String {
        if n.is_multiple_of(100) { n.to_string() } else { String::new() }
    }

    /// Does something for each file, two threads sharing the directories.
    fn each(&self, root: &Path, what: impl Fn(u64, &Path) + Sync) {
        std::thread::scope(|s| {
            for half in 0..2 {
                let what = &what;
                s.spawn(move || {
                    for directory in (0..self.directories).filter(|d| d % 2 == half) {
                        for n in (directory..self.count).step_by(self.directories as usize) {
                            what(n, &self.path(root, n));
                        }
                    }
                });
            }
        });
    }

    /// Names that are listed, and what is wrong with them.
    fn listed(&self, root: &Path) -> Vec<String> {
        let (mut found, mut seen) = (Vec::new(), 0);
        for directory in 0..self.directories {
            let mut numbers: Vec<u64> = fs::read_dir(self.directory(root, directory))
                .unwrap()
                .map(|e| e.unwrap().file_name().to_str().unwrap().rsplit('-').next().unwrap().parse().unwrap())
                .collect();
            seen += numbers.len() as u64;
            numbers.sort_unstable();
            let want: Vec<u64> = (directory..self.count).step_by(self.directories as usize).collect();
            if numbers != want {
                found.push(format!("directory {directory}: {} names listed, {} are there", numbers.len(), want.len()));
            }
        }
        if seen != self.count {
            found.push(format!("{seen} names are listed in all, of {}", self.count));
        }
        found
    }
}

fn timed<T>(what: &str, then: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = then();
    eprintln!("{what}: {:.2?}", begun.elapsed());
    result
}

#[test]
fn memory_is_bounded_by_the_budget_and_not_by_the_files() {
    let count = setting("STRONGROOM_SCALE_FILES", 100_000, 20_000);
    let files = Files { count, directories: DIRECTORIES_MAX.min(count / 20) };
    // The default of a large machine, or as little as there may be.
    let budget = if count >= 1_000_000 { 256 * MIB } else { 32 * MIB };
    let mut v = TestVault::init_keyed();
    v.options = vec![format!("budget={budget}")];
    timed("mount, empty", || v.mount());
    // Told at the end, so that a run at full size says everything that it measured.
    let over = Mutex::new(Vec::new());
    let within = |when: &str| {
        let high = memory_high_water_bytes(v.pid());
        eprintln!("  VmHWM {} MiB {when}, budget {} MiB", high / MIB, budget / MIB);
        if high > budget + BESIDE_BUDGET_BYTES {
            over.lock().unwrap().push(format!("{} MiB held {when}, budget {} MiB", high / MIB, budget / MIB));
        }
    };
    let root = v.path("root");
    fs::create_dir(&root).unwrap();
    for n in 0..files.directories {
        fs::create_dir(files.directory(&root, n)).unwrap();
    }
    timed(&format!("create {count}"), || {
        files.each(&root, |n, path| fs::write(path, Files::content(n)).unwrap());
    });
    within("after creating");
    assert_eq!(timed("list, as created", || files.listed(&root)), Vec::<String>::new());
    let look = |what: &str| {
        timed(what, || {
            files.each(&root, |n, path| assert_eq!(fs::metadata(path).unwrap().len(), Files::content(n).len() as u64));
        });
    };
    look("stat, as created");
    within("after looking");
    timed("umount", || v.umount());

    timed("mount", || v.mount());
    assert_eq!(timed("list, mounted anew", || files.listed(&root)), Vec::<String>::new());
    look("stat, mounted anew");
    within("after listing and looking, mounted anew");
    v.kill9();
    timed("mount after kill -9", || v.mount());
    // In no order that anything is stored in.
    let mut rng = Rng(7);
    for _ in 0..count.min(5000) {
        let n = rng.below(count) / 100 * 100;
        assert_eq!(fs::read_to_string(files.path(&root, n)).unwrap(), Files::content(n));
    }
    timed("delete", || files.each(&root, |_, path| fs::remove_file(path).unwrap()));
    within("after deleting");
    for n in 0..files.directories {
        fs::remove_dir(files.directory(&root, n)).unwrap();
    }
    timed("umount, deleted", || v.umount());
    timed("mount, deleted", || v.mount());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    v.umount();
    v.check();
    assert_eq!(over.into_inner().unwrap(), Vec::<String>::new(), "VmHWM may be the budget and 64 MiB");
}

#[test]
fn a_missing_name_and_a_high_water_mark_are_seen() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let files = Files { count: 60, directories: 3 };
    for n in 0..3 {
        fs::create_dir(files.directory(dir.path(), n)).unwrap();
    }
    files.each(dir.path(), |n, path| fs::write(path, Files::content(n)).unwrap());
    assert_eq!(files.listed(dir.path()), Vec::<String>::new());
    fs::remove_file(files.path(dir.path(), 31)).unwrap();
    assert_eq!(files.listed(dir.path()).len(), 2, "a lost name");
    fs::rename(files.path(dir.path(), 33), files.directory(dir.path(), 1).join("file-0-31")).unwrap();
    assert_eq!(files.listed(dir.path()).len(), 2, "a name in another's place");

    let before = memory_high_water_bytes(std::process::id() as i32);
    let held = vec![1u8; 80 << 20];
    std::thread::sleep(Duration::from_millis(1));
    assert!(held.iter().step_by(4096).map(|b| u64::from(*b)).sum::<u64>() > 0);
    assert!(memory_high_water_bytes(std::process::id() as i32) >= before + 40 * MIB);
}
