//! Fails every read of the disk in turn while a vault is opened, checked, repaired, rebuilt, scrubbed and rekeyed.
//!
//! Method: a vault with two snapshots, copies that share data, and commits that no checkpoint covers; once with its index and once
//! without. The n-th read fails with EIO, for every n; then every read of one file fails, for every file.
//! Promise: an I/O error is never called damage: no `Damaged`, no exit code 8, no finding but that something could not be read. A look
//! leaves every byte as it was. After anything else, once the error has gone, the vault holds all that it held.
//!
//! `STRONGROOM_IO_ERRORS=1` tries every n; otherwise the first forty, and every eleventh after that.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/rekeyed.rs"]
mod rekeyed;

use rekeyed::{closed, files, first, holds_all, mounted, noise, world};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use strongroom::backing::{Backing, Effect, Fault, Kind, MemoryBacking, read_file};
use strongroom::check::{Finding, Owner, Share, check, rebuild, repair, scrub_media};
use strongroom::fs::{FileSystem, FsOptions};
use strongroom::vault::{HeaderTexts, OpenFault, OpenOptions, RekeyFault, ScrubState, lock};

/// Kinds of findings that say no more than that the disk did not give something.
const UNREAD: [&str; 2] = ["file-unread", "range-unread"];

/// A vault that was killed: its last commits are in the log alone.
fn killed() -> &'static MemoryBacking {
    static KILLED: OnceLock<MemoryBacking> = OnceLock::new();
    KILLED.get_or_init(|| {
        let disk = rekeyed::made();
        let fs = mounted(&disk, &first()).unwrap();
        rekeyed::write(&fs, "late", 0, &noise(9, 150_000));
        fs.sync_wait().unwrap();
        rekeyed::write(&fs, "late", 70_000, &noise(10, 50_000));
        rekeyed::write(&fs, "later", 0, b"in the log alone");
        fs.sync_wait().unwrap();
        let left = disk.copy();
        closed(fs);
        trimmed(&left);
        left
    })
}

/// Takes the room off that segments were given in advance: copies are faster without.
fn trimmed(disk: &MemoryBacking) {
    use strongroom::backing::{Cache, Open};
    for name in disk.list("segments").unwrap() {
        let path = format!("segments/{name}");
        let bytes = read_file(disk, &path, 1 << 30).unwrap();
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1).next_multiple_of(4096);
        let file = disk.open(&path, Open::Write, Cache::Buffered).unwrap();
        file.set_len(used as u64).unwrap();
        file.sync_data().unwrap();
    }
}

fn without_index() -> MemoryBacking {
    let disk = killed().copy();
    for name in disk.list("index").unwrap() {
        disk.remove(&format!("index/{name}")).unwrap();
    }
    disk.sync_dir("index").unwrap();
    disk
}

type Files = BTreeMap<String, Vec<u8>>;

fn all_bytes(disk: &MemoryBacking) -> Files {
    rekeyed::all_files(disk).into_iter().map(|path| (path.clone(), rekeyed::bytes(disk, &path))).collect()
}

fn backing(disk: &MemoryBacking) -> Arc<dyn Backing> {
    Arc::new(disk.clone())
}

/// What came of it: what was found, or why it could not be looked at.
type Outcome = Result<Vec<Finding>, OpenFault>;

fn judge(case: &str, outcome: &Outcome) {
    match outcome {
        Ok(findings) => {
            let wrong: Vec<_> = findings.iter().filter(|f| !UNREAD.contains(&f.kind())).collect();
            assert!(wrong.is_empty(), "{case}: an I/O error is told as {wrong:?}");
        }
        Err(fault) => {
            // `cli::exit` makes code 13 of it, or 10 for `check` and `scrub`.
            assert!(matches!(fault, OpenFault::Backing(_)), "{case}: an I/O error is told as {fault:?}: {fault}");
        }
    }
}

/// All that the vault held is there, byte for byte, and `check` is content.
fn holds(case: &str, disk: &MemoryBacking) {
    let fs = mounted(disk, &first()).unwrap_or_else(|fault| panic!("{case}: it does not open any more: {fault}"));
    let mut late = noise(9, 150_000);
    late[70_000..120_000].copy_from_slice(&noise(10, 50_000));
    assert!(rekeyed::read(&fs, "late") == Some(late), "{case}: late");
    assert!(rekeyed::read(&fs, "later").as_deref() == Some(b"in the log alone"), "{case}: later");
    for (name, body) in files() {
        assert!(rekeyed::read(&fs, name) == Some(body), "{case}: {name}");
    }
    closed(fs);
    assert_eq!(check(&backing(disk), &first(), &world(), true, &|_, _| {}).unwrap(), [], "{case}");
}

/// Nothing that holds data is gone or changed; where only the look is to have taken place, nothing at all.
fn untouched(case: &str, before: &Files, disk: &MemoryBacking, all: bool) {
    let after = all_bytes(disk);
    for (path, bytes) in before {
        // A segment that was prepared and never begun is removed by every mount.
        let holds_data = path.starts_with("segments/") && bytes.iter().any(|b| *b != 0);
        if all || holds_data || path.starts_with("snapshots/") {
            assert!(after.get(path) == Some(bytes), "{case}: {path} was changed");
        }
    }
    assert!(!all || after.len() == before.len(), "{case}: there are other files than before");
}

/// How much of an operation may change the disk.
#[derive(Clone, Copy, PartialEq)]
enum Changes {
    /// None of it.
    Nothing,
    /// Where it failed, no segment and no snapshot; where it succeeded, whatever it is for.
    WhereItSucceeds,
    /// What is dead may go, and segments and snapshots may be replaced by others that hold the same.
    Tidies,
}

/// Runs an operation with the n-th read failing, for every n, then with each file failing.
fn attack(what: &str, disk: &MemoryBacking, changes: Changes, run: impl Fn(&MemoryBacking) -> Outcome + Sync) {
    let before = all_bytes(disk);
    let one = |case: &str, fault: Fault| {
        let disk = disk.copy();
        disk.plant(fault);
        let outcome = run(&disk);
        let struck = disk.struck() > 0;
        disk.lift_all();
        judge(case, &outcome);
        match changes {
            Changes::Nothing => untouched(case, &before, &disk, true),
            Changes::WhereItSucceeds | Changes::Tidies => {
                if changes == Changes::WhereItSucceeds && outcome.is_err() {
                    untouched(case, &before, &disk, false);
                }
                holds(case, &disk);
            }
        }
        struck
    };
    let eio = |calls| Fault::of(calls, Effect::Error(libc::EIO));
    assert!(!one(&format!("{what}, no fault"), eio(&[Kind::Read]).on("nowhere")));
    let every = std::env::var_os("STRONGROOM_IO_ERRORS").is_some();
    std::thread::scope(|scope| {
        for lane in 0..2u64 {
            let one = &one;
            scope.spawn(move || {
                for times in [1, u64::MAX] {
                    let mut n = lane;
                    while one(&format!("{what}, read {n} of {times}"), eio(&[Kind::Read]).after(n).times(times)) {
                        // The first ones are of the header, the roots, the index and the log; what follows is much alike.
                        n += if every || n < 40 && times == 1 { 2 } else { 2 * 11 };
                    }
                }
            });
        }
    });
    for path in before.keys() {
        let (read, opened) = (&[Kind::Read][..], &[Kind::Open][..]);
        let both: &[_] = if every {
            &[read, opened]
        } else if what.contains("without") {
            &[opened]
        } else {
            &[read]
        };
        for calls in both {
            one(&format!("{what}, every {calls:?} of {path}"), eio(calls).on(path));
        }
    }
    for dir in ["segments", "snapshots"] {
        one(&format!("{what}, {dir} cannot be listed"), eio(&[Kind::List]).on(dir));
    }
}

fn both(what: &str, changes: Changes, run: impl Fn(&MemoryBacking) -> Outcome + Sync) {
    attack(&format!("{what} with the index"), killed(), changes, &run);
    attack(&format!("{what} without the index"), &without_index(), changes, &run);
}

#[test]
fn an_open_calls_no_io_error_damage() {
    both("open", Changes::WhereItSucceeds, |disk| {
        let fs = mounted(disk, &first())?;
        // What fails now is a mount's to answer: nothing is damaged by it, and what it closes with is in the log.
        let _ = fs.vault().close();
        Ok(Vec::new())
    });
}

#[test]
fn a_check_calls_no_io_error_damage_and_writes_nothing() {
    let disk = killed();
    let seen = Mutex::new(BTreeSet::new());
    attack("check", disk, Changes::Nothing, |disk| {
        let found = check(&backing(disk), &first(), &world(), true, &|_, _| {})?;
        seen.lock().unwrap().extend(found.iter().map(Finding::kind));
        Ok(found)
    });
    assert_eq!(seen.into_inner().unwrap(), BTreeSet::from(UNREAD), "each kind must have been found");
    let disk = without_index();
    let lost = |f: &Finding| f.kind() == "index-lost";
    attack("check without the index", &disk, Changes::Nothing, |disk| {
        // That the index is missing is so, whatever else fails.
        let found = check(&backing(disk), &first(), &world(), true, &|_, _| {})?;
        Ok(found.into_iter().filter(|f| !lost(f)).collect())
    });
}

#[test]
fn a_repair_drops_nothing_for_an_io_error() {
    both("repair", Changes::Tidies, |disk| {
        let again = || lock(backing(disk));
        let done = repair(lock(backing(disk))?, &again, &first(), &world(), Owner::default(), Share::All, &|_, _| ())?;
        let found = done.mended.into_iter().map(|m| m.finding).chain(done.left);
        Ok(found.filter(|f| f.kind() != "index-lost").collect())
    });
}

#[test]
fn a_rebuild_drops_nothing_for_an_io_error() {
    both("rebuild", Changes::Tidies, |disk| {
        let found = rebuild(lock(backing(disk))?, &first(), &world(), Share::Nothing, &|_, _| ())?;
        Ok(found.into_iter().filter(|f| f.kind() != "index-lost").collect())
    });
}

#[test]
fn a_scrub_calls_no_io_error_damage() {
    let media = |disk: &MemoryBacking, keyed: bool| -> Outcome {
        let opened = HeaderTexts::read(disk)?.unwrap().open(&first())?;
        let key = keyed.then_some((&opened.header, &opened.keys));
        let media = scrub_media(&backing(disk), key, &|_, _| {})?;
        assert_eq!(media.damage, [], "an I/O error is told as damage");
        Ok(Vec::new())
    };
    attack("scrub with the key", killed(), Changes::Nothing, |disk| media(disk, true));
    attack("scrub without the key", killed(), Changes::Nothing, |disk| media(disk, false));
    let disk = killed().copy();
    closed(mounted(&disk, &first()).unwrap());
    for path in disk.list("segments").unwrap().into_iter().map(|name| format!("segments/{name}")) {
        let disk = disk.copy();
        let fs = mounted(&disk, &first()).unwrap();
        disk.plant(Fault::of(&[Kind::Read], Effect::Error(libc::EIO)).on(&path));
        fs.vault().scrub(Some(0)).unwrap();
        let report = loop {
            let report = fs.vault().scrub_report().unwrap();
            if report.state != ScrubState::Running {
                break report;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert_eq!((report.state, report.mark.damaged), (ScrubState::Done, 0), "{path}: {report:?}");
        assert_eq!(fs.vault().stats().damaged_frames.get(), 0, "{path}");
        disk.lift_all();
        closed(fs);
        holds(&path, &disk);
    }
}

#[test]
fn a_rekey_leaves_all_as_it_was_for_an_io_error() {
    let disk = killed().copy();
    closed(mounted(&disk, &first()).unwrap());
    let rekey = |disk: &MemoryBacking| -> Outcome {
        match rekeyed::rekeyed(disk) {
            Ok(report) => {
                assert!(report.log_left_out == 0 && report.hurt.iter().all(|h| h.path.is_some()), "{report:?}")
            }
            Err(RekeyFault::Open(fault)) => return Err(fault),
            Err(other) => panic!("{other}"),
        }
        Ok(Vec::new())
    };
    attack("rekey", &disk, Changes::Tidies, rekey);
    rekeyed::rekeyed(&disk).unwrap();
    holds_all(&disk, &first());
}

#[test]
fn a_read_tries_an_index_that_cannot_be_read_once() {
    // More index than its cache holds.
    let disk = rekeyed::made();
    let fs = mounted(&disk, &first()).unwrap();
    for n in 0..2000 {
        rekeyed::write(&fs, &format!("file number {n}"), 0, b"a byte");
    }
    closed(fs);
    let options = OpenOptions { budget_bytes: 16 << 20, workers: 1, ..OpenOptions::default() };
    let vault = lock(backing(&disk)).unwrap().open(&first(), &options, world()).unwrap();
    let fs = FileSystem::new(vault, FsOptions::default()).unwrap();
    let mut failed = 0;
    for n in 0..2000 {
        let ino = rekeyed::find(&fs, &format!("file number {n}")).unwrap();
        let before = disk.struck();
        disk.plant(Fault::of(&[Kind::Read], Effect::Error(libc::EIO)).on("index"));
        let answer = fs.read(ino, 0, 6, &mut Vec::new()).map_err(|fault| fault.errno());
        disk.lift_all();
        let struck = disk.struck() - before;
        if struck > 0 {
            failed += 1;
            assert_eq!((answer, struck), (Err(libc::EIO), 1), "file number {n}");
        }
        let mut out = Vec::new();
        fs.read(ino, 0, 6, &mut out).unwrap();
        assert_eq!(out, b"a byte", "file number {n}, once the error has gone");
    }
    assert!(failed > 0, "no read needed the index");
    assert_eq!(fs.vault().stats().damaged_frames.get(), 0, "an I/O error is no damage");
    closed(fs);
}
