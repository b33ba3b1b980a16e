//! Random reads and writes of one file, in every way that a program has, as fsx knows them.
//!
//! Method: one fsx for each profile and seed, all at once on one mount; it checks every read against what it wrote. Each
//! file is then compared with what the same profile and seed leave on the disk's own filesystem, after the vault was
//! mounted anew. In half of the rounds the daemon is killed (`kill -9`) right after the files were fsynced, while
//! others of the same kind are in the middle of their work.
//! Promise: a file reads as it was written, whatever the order of reads, writes, mappings, truncations, holes and copies;
//! after an fsync also when the daemon is killed.
//! `STRONGROOM_FSX_OPS` (operations of each fsx), `STRONGROOM_FSX_ROUNDS` and `STRONGROOM_SEEDS=5` (the first round's seed) ask for more
//! or other programs; with many, `STRONGROOM_TEST_SECONDS_MAX` and `STRONGROOM_COMMAND_SECONDS_MAX` for the time that they take.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::tools::cargo_tool;
use common::{TestVault, output, setting};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// What is done to a file: its largest length, the largest operation, to what it is aligned, and how often each is done.
struct Profile {
    name: &'static str,
    file_bytes_max: u64,
    operation_bytes_max: u64,
    align: u64,
    weights: &'static [(&'static str, u32)],
}

const PLAIN: &[(&str, u32)] = &[("read", 10), ("write", 10), ("truncate", 5), ("fsync", 1), ("fdatasync", 1)];

const PROFILES: [Profile; 8] = [
    Profile {
        name: "plain",
        file_bytes_max: 256 << 10,
        operation_bytes_max: 64 << 10,
        align: 1,
        weights: &[("mapread", 0), ("mapwrite", 0)],
    },
    Profile {
        name: "mmap",
        file_bytes_max: 256 << 10,
        operation_bytes_max: 64 << 10,
        align: 1,
        weights: &[("mapread", 10), ("mapwrite", 10), ("invalidate", 1)],
    },
    Profile {
        name: "reopen",
        file_bytes_max: 256 << 10,
        operation_bytes_max: 64 << 10,
        align: 1,
        weights: &[("mapread", 5), ("mapwrite", 5), ("close_open", 5), ("posix_fadvise", 2), ("sendfile", 2)],
    },
    Profile {
        name: "punch",
        file_bytes_max: 256 << 10,
        operation_bytes_max: 64 << 10,
        align: 1,
        weights: &[("mapread", 5), ("mapwrite", 5), ("close_open", 2), ("punch_hole", 5), ("posix_fallocate", 3)],
    },
    Profile {
        name: "copy",
        file_bytes_max: 256 << 10,
        operation_bytes_max: 64 << 10,
        align: 1,
        weights: &[("mapread", 5), ("mapwrite", 5), ("close_open", 2), ("copy_file_range", 8), ("punch_hole", 2)],
    },
    Profile {
        name: "large",
        file_bytes_max: 32 << 20,
        operation_bytes_max: 256 << 10,
        align: 1,
        weights: &[("mapread", 5), ("mapwrite", 5), ("close_open", 2)],
    },
    Profile {
        name: "small",
        file_bytes_max: 20_000,
        operation_bytes_max: 700,
        align: 1,
        weights: &[("mapread", 5), ("mapwrite", 5), ("close_open", 3)],
    },
    Profile {
        name: "aligned",
        file_bytes_max: 1 << 20,
        operation_bytes_max: 128 << 10,
        align: 4096,
        weights: &[("mapread", 5), ("mapwrite", 5), ("close_open", 2), ("punch_hole", 3)],
    },
];

impl Profile {
    /// The fsx that does it, in a directory of its own, where it also leaves what it has to say of a failure.
    fn command(&self, dir: &Path, seed: u64, operations: Option<u64>) -> Command {
        fs::create_dir_all(dir).unwrap();
        let (path, artifacts) = (self.file(dir, seed), Path::new(env!("CARGO_TARGET_TMPDIR")).join("fsx-failures"));
        fs::create_dir_all(&artifacts).unwrap();
        let mut text = format!(
            "flen = {}\n[opsize]\nmax = {}\nmin = 0\nalign = {}\n[weights]\n",
            self.file_bytes_max, self.operation_bytes_max, self.align
        );
        for (what, weight) in PLAIN.iter().chain(self.weights) {
            text += &format!("{what} = {weight}\n");
        }
        let config = artifacts.join(format!("{}.toml", self.name));
        // Whole at any moment: others read it at the same time.
        let own = artifacts.join(format!("{}-{}-{seed}.new", self.name, dir.to_string_lossy().len()));
        fs::write(&own, text).unwrap();
        fs::rename(&own, &config).unwrap();
        let mut c = Command::new(cargo_tool("fsx"));
        c.args(["-q", "-q", "-S", &seed.to_string(), "-f"]).arg(config).arg("-P").arg(artifacts);
        if let Some(n) = operations {
            c.args(["-N", &n.to_string()]);
        }
        c.arg(path);
        c
    }

    fn file(&self, dir: &Path, seed: u64) -> PathBuf {
        dir.join(format!("{}-{seed}", self.name))
    }
}

/// Fsx processes that go on until they are killed; none outlives this.
struct Bystanders(Vec<Child>);

impl Bystanders {
    fn start(dir: &Path) -> Bystanders {
        let start = |p: &Profile| {
            let mut c = p.command(dir, 99, None);
            c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        Bystanders(PROFILES.iter().filter(|p| ["mmap", "copy"].contains(&p.name)).map(start).collect())
    }

    fn end(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.0.clear();
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        self.end();
    }
}

fn must_pass(out: &Output, what: &str) {
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{what}: {}\n{said}\n{complained}", out.status);
}

/// Where two files differ first.
fn difference(left: &Path, right: &Path) -> Option<String> {
    let (a, b) = (fs::read(left).unwrap(), fs::read(right).unwrap());
    if a.len() != b.len() {
        return Some(format!("{}: {} bytes, {}: {} bytes", left.display(), a.len(), right.display(), b.len()));
    }
    let at = a.iter().zip(&b).position(|(x, y)| x != y)?;
    let wrong = a.iter().zip(&b).filter(|(x, y)| x != y).count();
    Some(format!("{}: byte {at} is the first of {wrong} that are not those of {}", left.display(), right.display()))
}

#[test]
fn files_read_as_fsx_wrote_them_also_after_kill_9() {
    let v = TestVault::mounted();
    let operations = setting("STRONGROOM_FSX_OPS", 4000, 1000);
    let first = std::env::var("STRONGROOM_SEEDS").ok().and_then(|s| s.split(',').next()?.parse().ok()).unwrap_or(1);
    let mut all = Vec::new();
    for round in 0..setting("STRONGROOM_FSX_ROUNDS", 2, 2) {
        let seed = first + round;
        let (inside, plain) = (v.path(format!("round-{round}")), v.outside(&format!("round-{round}")));
        let killed = round % 2 == 0;
        let mut bystanders = Bystanders(Vec::new());
        std::thread::scope(|s| {
            for profile in &PROFILES {
                let (inside, plain) = (&inside, &plain);
                s.spawn(move || {
                    let what = format!("fsx, profile {}, seed {seed}", profile.name);
                    must_pass(
                        &output(&mut profile.command(plain, seed, Some(operations))),
                        &format!("{what}, on the disk"),
                    );
                    must_pass(&output(&mut profile.command(inside, seed, Some(operations))), &what);
                    File::open(profile.file(inside, seed)).unwrap().sync_all().unwrap();
                });
            }
            if killed {
                bystanders = Bystanders::start(&v.path("bystanders"));
            }
        });
        if killed {
            // A moment, so that they are at work wherever the others ended.
            std::thread::sleep(std::time::Duration::from_millis(300));
            v.kill9();
            bystanders.end();
            v.mount();
        } else {
            v.remount();
        }
        all.push((seed, inside, plain));
        for (seed, inside, plain) in &all {
            for profile in &PROFILES {
                let found = difference(&profile.file(inside, *seed), &profile.file(plain, *seed));
                let after = if killed { "kill -9" } else { "mounted anew" };
                assert_eq!(found, None, "profile {}, seed {seed}, {operations} operations, {after}", profile.name);
            }
        }
    }
    v.umount();
    v.check();
}

#[test]
fn a_byte_that_another_wrote_is_noticed() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let profile = &PROFILES[0];
    // By fsx, in a file that it is at work on.
    let stop = AtomicBool::new(false);
    // Before the other thread begins: where there is no fsx, nobody would end it.
    let mut fsx = profile.command(dir.path(), 1, Some(20_000));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(SeqCst) {
                // Where most of its reads pass by; and where the file ends before, it is too long.
                if let Ok(file) = File::options().write(true).open(profile.file(dir.path(), 1)) {
                    let _ = file.write_all_at(&[0xee; 500], 60_000);
                }
            }
        });
        let out = output(&mut fsx);
        stop.store(true, SeqCst);
        assert!(!out.status.success(), "fsx did not notice it");
    });
    // By the comparison, in one that it has left.
    for (name, bytes) in [("a", &b"0123456789"[..]), ("b", b"0123456789"), ("c", b"012345678"), ("d", b"0123056789")] {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let against = |name: &str| difference(&dir.path().join(name), &dir.path().join("a"));
    assert_eq!(against("b"), None);
    assert!(against("c").is_some_and(|d| d.contains("9 bytes")));
    assert!(against("d").is_some_and(|d| d.contains("byte 4 is the first of 1")));
}
