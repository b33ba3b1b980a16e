//! `kill -9` at a random moment under load: the vault opens by itself, and what was acknowledged is there.
//!
//! Method: writers append a stream that their number determines and fsync it, keeping outside what was acknowledged;
//! others replace a file by rename without any fsync; the daemon is killed, the vault mounted, everything compared, and
//! so on on the same vault: each time the newest rounds, an older one, and at the end all that are left, of which there are
//! never many, for the oldest are deleted. `STRONGROOM_CRASH_ROUNDS` and `STRONGROOM_SEEDS` ask for more. How long it took to
//! be mounted again is said.
//! Promise: fsynced bytes and names are there and right; later ones may be missing, never invented; a file replaced by
//! rename is one of its versions, whole, not older than the last fsync. (A killed process leaves the page cache of the
//! backing disk alone: what a power cut may do is for the tests of `vault` on a disk that forgets.)

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::stream::{stream, stream_fault};
use common::{TestVault, eventually, say_times, setting};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Rounds that are looked at after each kill …
const NEWEST: usize = 3;
/// … and rounds that are kept: the vault must not only grow.
const KEPT: usize = 24;
const APPENDERS: u64 = 6;
const REPLACERS: u64 = 3;

/// A version of a replaced file: it says its number, and every byte follows from it.
fn version(id: u64, number: u64) -> Vec<u8> {
    let len = 100 + Rng(id ^ number).below(60_000);
    let mut v = number.to_le_bytes().to_vec();
    v.extend(stream(id << 32 | number, 0, len));
    v
}

fn version_fault(id: u64, found: &[u8], acknowledged: u64, begun: u64) -> Option<String> {
    let Some(number) = found.get(..8).map(|b| u64::from_le_bytes(b.try_into().unwrap())) else {
        return Some(format!("replaced file {id}: {} bytes", found.len()));
    };
    if number < acknowledged || number > begun {
        return Some(format!("replaced file {id}: version {number}, of {acknowledged} fsynced and {begun} begun"));
    }
    (found != version(id, number)).then(|| format!("replaced file {id}: version {number} is not whole"))
}

/// What the writers of a round have achieved; lives outside the vault.
#[derive(Default)]
struct Achieved {
    acknowledged: AtomicU64,
    begun: AtomicU64,
    marks: AtomicU64,
}

fn append(dir: &Path, id: u64, done: &Achieved, stop: &AtomicBool) -> io::Result<()> {
    let mut rng = Rng(id);
    let mut file = File::create(dir.join(format!("stream-{id}")))?;
    let (mut at, mut mark) = (0, 0);
    while !stop.load(SeqCst) {
        for _ in 0..1 + rng.below(4) {
            let len = 1 + if rng.below(8) == 0 { rng.below(300_000) } else { rng.below(9_000) };
            done.begun.store(at + len, SeqCst);
            file.write_all(&stream(id, at, len))?;
            at += len;
        }
        // A name made and one taken away before the fsync: they are under its promise too.
        mark += 1;
        File::create(dir.join(format!("mark-{id}-{mark}")))?;
        if mark > 1 {
            fs::remove_file(dir.join(format!("mark-{id}-{}", mark - 1)))?;
        }
        if rng.below(2) == 0 {
            file.sync_all()?
        } else {
            file.sync_data()?
        };
        done.acknowledged.store(at, SeqCst);
        done.marks.store(mark, SeqCst);
    }
    Ok(())
}

fn replace(dir: &Path, id: u64, done: &Achieved, stop: &AtomicBool) -> io::Result<()> {
    let (current, new) = (dir.join(format!("current-{id}")), dir.join(format!("new-{id}")));
    let mut number = 0;
    while !stop.load(SeqCst) {
        number += 1;
        done.begun.store(number, SeqCst);
        fs::write(&new, version(id, number))?;
        fs::rename(&new, &current)?;
        if number % 16 == 1 {
            File::open(&current)?.sync_all()?;
            done.acknowledged.store(number, SeqCst);
        }
    }
    Ok(())
}

/// Everything that is wrong in the directory of a round.
fn faults(dir: &Path, appended: &[Achieved], replaced: &[Achieved]) -> Vec<String> {
    let mut found = Vec::new();
    let get = |a: &AtomicU64| a.load(SeqCst);
    for (id, done) in appended.iter().enumerate() {
        match fs::read(dir.join(format!("stream-{id}"))) {
            Ok(bytes) => found.extend(stream_fault(id as u64, &bytes, get(&done.acknowledged), get(&done.begun))),
            Err(_) if get(&done.acknowledged) == 0 => {}
            Err(e) => found.push(format!("stream {id}: {e}")),
        }
        // The mark of the last acknowledged fsync is there, or the next one's, which may have replaced it.
        let mark = get(&done.marks);
        let there = |m: u64| dir.join(format!("mark-{id}-{m}")).exists();
        if mark > 0 && !there(mark) && !there(mark + 1) {
            found.push(format!("the name made before fsync {mark} of stream {id} is gone"));
        }
        if mark > 1 && there(mark - 1) {
            found.push(format!("the name removed before fsync {mark} of stream {id} is back"));
        }
    }
    for (id, done) in replaced.iter().enumerate() {
        match fs::read(dir.join(format!("current-{id}"))) {
            Ok(bytes) => found.extend(version_fault(id as u64, &bytes, get(&done.acknowledged), get(&done.begun))),
            Err(_) if get(&done.acknowledged) == 0 => {}
            Err(e) => found.push(format!("replaced file {id}: {e}")),
        }
    }
    found
}

#[test]
fn what_was_fsynced_survives_kill_9_at_any_moment() {
    let v = TestVault::mounted();
    let seed = std::env::var("STRONGROOM_SEEDS").ok().and_then(|s| s.split(',').next()?.parse().ok()).unwrap_or(1);
    let mut rng = Rng(seed);
    let mut acknowledged_rounds = 0;
    let mut kept: VecDeque<(PathBuf, Vec<Achieved>, Vec<Achieved>)> = VecDeque::new();
    let mut took = Vec::new();
    for round in 0..setting("STRONGROOM_CRASH_ROUNDS", 5, 5) {
        let dir = v.path(format!("round-{round}"));
        fs::create_dir(&dir).unwrap();
        let appended: Vec<Achieved> = (0..APPENDERS).map(|_| Achieved::default()).collect();
        let replaced: Vec<Achieved> = (0..REPLACERS).map(|_| Achieved::default()).collect();
        let stop = AtomicBool::new(false);
        let life = Duration::from_millis(100 + rng.below(2400));
        std::thread::scope(|s| {
            for (id, done) in appended.iter().enumerate() {
                let (dir, stop) = (&dir, &stop);
                s.spawn(move || append(dir, id as u64, done, stop));
            }
            for (id, done) in replaced.iter().enumerate() {
                let (dir, stop) = (&dir, &stop);
                s.spawn(move || replace(dir, id as u64, done, stop));
            }
            std::thread::sleep(life);
            // Each writer ends at the first error that the dead mount answers.
            v.kill9();
            stop.store(true, SeqCst);
        });
        acknowledged_rounds += u64::from(appended.iter().any(|a| a.acknowledged.load(SeqCst) > 0));
        let begun = Instant::now();
        v.mount();
        took.push(begun.elapsed());
        let older = (!kept.is_empty()).then(|| rng.below(kept.len() as u64) as usize);
        kept.push_back((dir, appended, replaced));
        let newest = kept.len().saturating_sub(NEWEST)..kept.len();
        for (dir, appended, replaced) in newest.chain(older).map(|i| &kept[i]) {
            let found = faults(dir, appended, replaced);
            assert!(found.is_empty(), "seed {seed}, round {round}, killed after {life:?}: {found:#?}");
        }
        // It works on: the crash is over when it can be written and is at rest.
        let after = format!("round-{round}/after");
        fs::write(v.path(&after), "after the crash").unwrap();
        File::open(v.path(&after)).unwrap().sync_all().unwrap();
        eventually("ready after recovery", Duration::from_secs(15), || v.storage("state").trim() == "ready");
        if round % 2 == 1 {
            // A second crash right after recovery, with nothing going on, costs nothing either.
            v.kill9();
            v.mount();
        }
        if kept.len() > KEPT
            && let Some((dir, ..)) = kept.pop_front()
        {
            fs::remove_dir_all(dir).unwrap();
        }
    }
    assert!(acknowledged_rounds > 0, "no fsync was acknowledged before any kill: nothing was tried");
    v.remount();
    for (dir, appended, replaced) in &kept {
        assert_eq!(faults(dir, appended, replaced), Vec::<String>::new(), "after a clean unmount");
    }
    say_times(took);
}

#[test]
fn unsynced_bytes_older_than_the_flush_interval_survive_kill_9() {
    let v = TestVault::mounted();
    let bytes = stream(77, 0, 3 << 20);
    fs::write(v.path("unsynced"), &bytes).unwrap();
    eventually("pending 0", Duration::from_secs(6), || v.pending() == 0);
    v.kill9();
    v.mount();
    assert!(fs::read(v.path("unsynced")).unwrap() == bytes, "pending said 0, and bytes are gone");
}

#[test]
fn the_checker_catches_what_a_crash_must_not_do() {
    let good = stream(3, 0, 50_000);
    assert_eq!(stream_fault(3, &good, 50_000, 50_000), None);
    assert_eq!(stream_fault(3, &good[..40_000], 40_000, 50_000), None);
    let mut hole = good.clone();
    hole[40_960..45_056].fill(0);
    assert_eq!(stream_fault(3, &hole, 40_960, 50_000), None);
    assert!(stream_fault(3, &hole, 40_961, 50_000).is_some(), "a hole where bytes had been fsynced");
    assert!(stream_fault(3, &good[..40_000], 40_001, 50_000).is_some(), "a lost fsync");
    assert!(stream_fault(3, &good, 40_000, 49_999).is_some(), "bytes nobody wrote");
    for at in [0, 4095, 49_999] {
        let mut wrong = good.clone();
        wrong[at] ^= 0x40;
        assert!(stream_fault(3, &wrong, 10, 50_000).is_some(), "byte {at} is wrong");
    }
    let v = version(5, 9);
    assert_eq!(version_fault(5, &v, 9, 9), None);
    assert!(version_fault(5, &v, 10, 12).is_some(), "an older version than the fsynced one");
    assert!(version_fault(5, &v[..v.len() - 1], 3, 12).is_some(), "half a version");
    assert!(version_fault(5, b"", 0, 12).is_some(), "an empty file in place of a version");

    let dir = tempfile::tempdir().unwrap();
    let done = Achieved::default();
    fs::write(dir.path().join("stream-0"), stream(0, 0, 100)).unwrap();
    done.acknowledged.store(100, SeqCst);
    done.begun.store(100, SeqCst);
    done.marks.store(2, SeqCst);
    assert_eq!(faults(dir.path(), std::slice::from_ref(&done), &[]).len(), 1, "a lost name");
    fs::write(dir.path().join("mark-0-2"), "").unwrap();
    assert_eq!(faults(dir.path(), std::slice::from_ref(&done), &[]), Vec::<String>::new());
    fs::write(dir.path().join("mark-0-1"), "").unwrap();
    assert_eq!(faults(dir.path(), std::slice::from_ref(&done), &[]).len(), 1, "a name that came back");
}
