//! What a mount answers while its disk does not.
//!
//! Method: a filesystem on a disk in memory of which one kind of call at a time does not end, while a program writes, syncs and
//! deletes, so that background work runs into that call. Promise: `/.storage`, `stat`, look-ups, cached reads and small
//! writes are answered while the call is still held, and everything goes on when it ends.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/held.rs"]
mod held;

use held::{CALLS, Call, Gate, HeldDisk};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use strongroom::backing::{Backing, MemoryBacking};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::fs::{Caller, FileSystem, FsOptions, WriteFrom, WriteHow};
use strongroom::seal::Unlock;
use strongroom::vault::{CreateOptions, EmergencyDir, OpenOptions, create, open};

/// How long an answer is waited for; the call is held for as long as that takes.
const ANSWER: Duration = Duration::from_secs(20);
const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
/// Made once in the life of a mount, or when a segment is full.
const RARE: [Call; 2] = [Call::MakeDir, Call::SetLen];
/// The files that are there when a call is held, and read before.
const CACHED: u64 = 20;

/// A disk of which the calls of the chosen kind stop at the gate.
struct Stage {
    disk: MemoryBacking,
    gate: Gate,
    chosen: Arc<Mutex<Option<Call>>>,
}

impl Stage {
    fn new(disk: &MemoryBacking) -> Stage {
        Stage { disk: disk.clone(), gate: Gate::default(), chosen: Arc::default() }
    }

    fn backing(&self) -> Arc<dyn Backing> {
        let (gate, chosen) = (self.gate.clone(), Arc::clone(&self.chosen));
        let before = move |call, _: &str| {
            let is_held = *chosen.lock().unwrap() == Some(call);
            if is_held {
                gate.pass();
            }
        };
        Arc::new(HeldDisk::new(&self.disk, before))
    }
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn fresh() -> MemoryBacking {
    let disk = MemoryBacking::default();
    create(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &unlock(), &CreateOptions::default(), &world()).unwrap();
    disk
}

fn mounted(stage: &Stage, emergency: Option<EmergencyDir>) -> Arc<FileSystem> {
    let options = OpenOptions { emergency, budget_bytes: 32 << 20, workers: 2, ..OpenOptions::default() };
    let vault = open(stage.backing(), &unlock(), &options, world()).unwrap();
    Arc::new(FileSystem::new(vault, FsOptions::default()).unwrap())
}

fn body(n: u64) -> Vec<u8> {
    (0..30_000u64).map(|i| (i.wrapping_mul(n + 3) >> 3) as u8).collect()
}

fn make(fs: &FileSystem, name: &str, data: &[u8]) -> Ino {
    let ino = fs.mknod(&ROOT, ROOT_INO, name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap().ino;
    fs.write(ino, 0, data, WriteHow { drop_set_id: false, stamp: true }).unwrap();
    ino
}

fn read(fs: &FileSystem, ino: Ino, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    fs.read(ino, 0, len, &mut out).unwrap();
    out
}

/// The names in `/.storage` that can be read.
fn storage_names(fs: &FileSystem) -> Vec<Vec<u8>> {
    let dir = fs.lookup(ROOT_INO, b".storage").unwrap().ino;
    let mut names = Vec::new();
    fs.readdir(dir, 0, |entry| {
        names.push(entry.name.to_vec());
        true
    })
    .unwrap();
    names.retain(|name| !name.starts_with(b".") && name != b"control");
    assert!(names.len() > 10, "{names:?}");
    names
}

/// Asks, on a thread of its own as the kernel would, for everything that needs no disk; gives what has been answered.
fn ask(fs: &Arc<FileSystem>, files: &[(Ino, u64)], round: u64) -> Receiver<&'static str> {
    let (fs, files, (answer, answers)) = (Arc::clone(fs), files.to_vec(), channel());
    std::thread::spawn(move || {
        let dir = fs.lookup(ROOT_INO, b".storage").unwrap().ino;
        for name in storage_names(&fs) {
            let file = fs.lookup(dir, &name).unwrap();
            let mut text = Vec::new();
            fs.read(file.ino, 0, 1 << 20, &mut text).unwrap();
            assert_eq!(text.len() as u64, file.size, "{}", name.escape_ascii());
            fs.forget(file.ino, 1);
        }
        answer.send("/.storage").unwrap();
        fs.statfs().unwrap();
        answer.send("statfs").unwrap();
        for (ino, n) in files {
            assert_eq!(fs.getattr(ino).unwrap().size, 30_000);
            assert_eq!(fs.lookup(ROOT_INO, format!("cached-{n}").as_bytes()).unwrap().ino, ino);
            fs.forget(ino, 1);
            assert_eq!(read(&fs, ino, 30_000), body(n));
        }
        answer.send("stat, look-ups and cached reads").unwrap();
        let name = format!("new-{round}");
        let ino = make(&fs, &name, b"a few bytes");
        assert_eq!(read(&fs, ino, 11), b"a few bytes");
        fs.unlink(ROOT_INO, name.as_bytes()).unwrap();
        fs.forget(ino, 1);
        answer.send("a new small file").unwrap();
    });
    answers
}

fn answered(answers: &Receiver<&'static str>, held: &str) {
    for what in ["/.storage", "statfs", "stat, look-ups and cached reads", "a new small file"] {
        let told = answers.recv_timeout(ANSWER);
        assert_eq!(told, Ok(what), "{held} is held up, and with it {what}");
    }
}

/// Writes, syncs, stores checkpoints and snapshots, and deletes, until it is told to stop.
fn work(fs: &FileSystem, stop: &AtomicBool, rounds: &AtomicU64) {
    let control = |order: &[u8]| {
        let dir = fs.lookup(ROOT_INO, b".storage").unwrap().ino;
        let file = fs.lookup(dir, b"control").unwrap().ino;
        fs.write(file, 0, order, WriteHow::default()).unwrap();
        fs.forget(file, 1);
    };
    let mut noise = 1u64;
    while !stop.load(SeqCst) {
        let round = rounds.fetch_add(1, SeqCst);
        let data: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (noise >> 56) as u8
        })
        .take(1 << 20)
        .collect();
        let name = format!("work-{round}");
        let ino = make(fs, &name, &data);
        fs.sync_wait().unwrap();
        control(b"checkpoint");
        fs.unlink(ROOT_INO, name.as_bytes()).unwrap();
        fs.forget(ino, 1);
        control(b"checkpoint");
        control(b"snapshot");
    }
}

#[test]
fn whatever_call_of_the_disk_is_held_up_the_rest_of_the_mount_answers() {
    let stage = Stage::new(&fresh());
    let fs = mounted(&stage, None);
    let files: Vec<_> = (0..CACHED).map(|n| (make(&fs, &format!("cached-{n}"), &body(n)), n)).collect();
    fs.sync_wait().unwrap();
    for (ino, n) in &files {
        assert_eq!(read(&fs, *ino, 30_000), body(*n), "into the cache");
    }
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let worker = {
        let (fs, stop, rounds) = (Arc::clone(&fs), Arc::clone(&stop), Arc::clone(&rounds));
        std::thread::spawn(move || work(&fs, &stop, &rounds))
    };
    let mut reached = Vec::new();
    for (round, call) in CALLS.into_iter().enumerate() {
        let shut = stage.gate.shut();
        *stage.chosen.lock().unwrap() = Some(call);
        let most = if RARE.contains(&call) { Duration::from_millis(100) } else { ANSWER };
        if stage.gate.has_visitor(most) {
            reached.push(call);
        }
        let answers = ask(&fs, &files, round as u64);
        answered(&answers, &format!("{call:?}"));
        *stage.chosen.lock().unwrap() = None;
        drop(shut);
        let before = rounds.load(SeqCst);
        while rounds.load(SeqCst) == before {
            assert!(!worker.is_finished(), "work does not go on after {call:?}: {:?}", fs.vault().stats().errors());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    stop.store(true, SeqCst);
    worker.join().unwrap();
    for call in CALLS.into_iter().filter(|call| !RARE.contains(call)) {
        assert!(reached.contains(&call), "{call:?} was held, and nobody made it: nothing was tried");
    }
    assert!(fs.vault().stats().errors().is_empty(), "{:?}", fs.vault().stats().errors());
    fs.vault().close().unwrap();
}

#[test]
fn what_the_kernel_hands_over_is_not_admitted_by_an_old_answer() {
    let stage = Stage::new(&fresh());
    let fs = mounted(&stage, None);
    let ino = make(&fs, "file", b"the disk is asked for its room");
    let how = WriteHow { drop_set_id: false, stamp: true };
    // Older than what counts as just now.
    std::thread::sleep(Duration::from_millis(200));
    let shut = stage.gate.shut();
    *stage.chosen.lock().unwrap() = Some(Call::Space);
    let refused =
        fs.write_from(WriteFrom::Cache, ino, 0, &body(1), how).expect_err("nobody knows whether there is room");
    assert!(refused.is_no_room(), "{refused:?}");
    assert!(stage.gate.has_visitor(ANSWER), "the disk was asked");
    // Whoever may wait goes on by the old answer, once it is plain that the disk hangs.
    fs.write_from(WriteFrom::HeldCache, ino, 0, &body(1), how).unwrap();
    *stage.chosen.lock().unwrap() = None;
    drop(shut);
    let sure = || fs.write_from(WriteFrom::Cache, ino, 0, &body(2), how).is_ok();
    let until = std::time::Instant::now() + ANSWER;
    while !sure() {
        assert!(std::time::Instant::now() < until, "the disk answers again, and nothing is admitted");
    }
    assert_eq!(read(&fs, ino, 30_000), body(2));
    fs.vault().close().unwrap();
}
