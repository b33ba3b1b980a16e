//! What programs do to files that must never be half: mail is delivered, editors save, a database's writer is killed.
//!
//! Method: deliverers, readers and expungers share a mail directory, and editors save in each of the ways that vim and emacs
//! have, while others look; every message and version says what it must be. Then the daemon is killed (`kill -9`) in
//! the middle of it, and what was acknowledged is looked for. A writer of sqlite's is itself killed, again and again.
//! Promise: who looks sees the old or the new, whole; what was fsynced, and renamed after, is there after a crash.
//! `STRONGROOM_HABIT_ROUNDS` and `STRONGROOM_SEEDS=5` ask for more and others.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::tools::on_path;
use common::{TestVault, run, setting};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

fn rounds() -> u64 {
    setting("STRONGROOM_HABIT_ROUNDS", 4, 3)
}

fn seed() -> u64 {
    std::env::var("STRONGROOM_SEEDS").ok().and_then(|s| s.split(',').next()?.parse().ok()).unwrap_or(1)
}

/// A text that says its number and its length, and ends in its own checksum.
fn text(number: u64) -> Vec<u8> {
    let mut rng = Rng(number);
    let len = 20 + rng.below(30_000) as usize;
    let mut all = format!("{number} {len}\n").into_bytes();
    all.extend(rng.text(len));
    let sum = crc32fast::hash(&all);
    all.extend(format!("\n{sum:08x}\n").into_bytes());
    all
}

/// The number of a whole text.
fn number(text: &[u8]) -> Option<u64> {
    let (body, sum) = text.split_at(text.len().checked_sub(10)?);
    let whole = sum == format!("\n{:08x}\n", crc32fast::hash(body)).as_bytes();
    let first = std::str::from_utf8(body.split(|b| *b == b' ').next()?).ok()?;
    first.parse().ok().filter(|_| whole)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

// ---------------------------------------------------------------------------------------------------------------------
// Mail.

/// What is known outside of a mail directory.
#[derive(Default)]
struct Mail {
    next: AtomicU64,
    delivered: Mutex<BTreeSet<u64>>,
    /// Taken away, or about to be.
    expunged: Mutex<BTreeSet<u64>>,
}

/// Delivers: a file in `tmp`, synced, linked or renamed into `new`, which is synced.
fn deliver(dir: &Path, mail: &Mail, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(SeqCst) {
        let n = mail.next.fetch_add(1, SeqCst);
        let (tmp, new) = (dir.join(format!("tmp/{n}")), dir.join(format!("new/{n}")));
        let mut f = OpenOptions::new().write(true).create_new(true).open(&tmp)?;
        f.write_all(&text(n))?;
        f.sync_all()?;
        if n.is_multiple_of(2) {
            fs::rename(&tmp, &new)?;
        } else {
            fs::hard_link(&tmp, &new)?;
            fs::remove_file(&tmp)?;
        }
        sync_dir(&dir.join("new"))?;
        mail.delivered.lock().unwrap().insert(n);
    }
    Ok(())
}

/// Reads what is new and moves it to `cur`, now and then with another flag, or takes it away.
fn read_mail(dir: &Path, mail: &Mail, stop: &AtomicBool, seed: u64) -> io::Result<()> {
    let mut rng = Rng(seed);
    while !stop.load(SeqCst) {
        for entry in fs::read_dir(dir.join("new"))? {
            let (path, name) = {
                let e = entry?;
                (e.path(), e.file_name().into_string().unwrap())
            };
            let Ok(read) = fs::read(&path) else { continue };
            assert_eq!(number(&read), name.parse().ok(), "a message in new is not whole: {} bytes", read.len());
            // Another reader may have been quicker.
            let _ = fs::rename(&path, dir.join(format!("cur/{name}:2,S")));
        }
        for entry in fs::read_dir(dir.join("cur"))? {
            let (path, name) = {
                let e = entry?;
                (e.path(), e.file_name().into_string().unwrap())
            };
            let n: u64 = name.split(':').next().unwrap().parse().unwrap();
            match rng.below(12) {
                0 => {
                    mail.expunged.lock().unwrap().insert(n);
                    let _ = fs::remove_file(path);
                }
                1 => drop(fs::rename(path, dir.join(format!("cur/{n}:2,FS")))),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Everything that is wrong with a mail directory at rest.
fn mail_faults(dir: &Path, mail: &Mail) -> Vec<String> {
    let mut found = Vec::new();
    let mut there = BTreeSet::new();
    for sub in ["new", "cur"] {
        for entry in fs::read_dir(dir.join(sub)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let n: u64 = name.split(':').next().unwrap().parse().unwrap();
            if number(&fs::read(entry.path()).unwrap()) != Some(n) {
                found.push(format!("{sub}/{name} is not whole"));
            }
            if !there.insert(n) {
                found.push(format!("message {n} is there twice"));
            }
        }
    }
    let expunged = mail.expunged.lock().unwrap();
    for n in mail.delivered.lock().unwrap().iter().filter(|n| !there.contains(n) && !expunged.contains(n)) {
        found.push(format!("message {n} was delivered and is gone"));
    }
    found
}

#[test]
fn mail_is_delivered_once_and_whole() {
    let v = TestVault::mounted();
    let dir = v.path("mail");
    for sub in ["tmp", "new", "cur"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    sync_dir(&v.mnt).unwrap();
    let (mail, mut rng) = (Mail::default(), Rng(seed()));
    for round in 0..rounds() {
        let (stop, life) = (AtomicBool::new(false), Duration::from_millis(500 + rng.below(1500)));
        let killed = round % 2 == 0;
        std::thread::scope(|s| {
            for worker in 0..4u64 {
                let (dir, mail, stop) = (&dir, &mail, &stop);
                // Each ends at the first error, which is the dead mount's.
                s.spawn(move || {
                    let ended = if worker < 3 { deliver(dir, mail, stop) } else { read_mail(dir, mail, stop, worker) };
                    assert!(ended.is_ok() || killed, "worker {worker}: {ended:?}");
                });
            }
            std::thread::sleep(life);
            if killed {
                v.kill9();
            }
            stop.store(true, SeqCst);
        });
        if killed {
            v.mount();
        }
        let found = mail_faults(&dir, &mail);
        assert!(found.is_empty(), "seed {}, round {round}, killed {killed} after {life:?}: {found:#?}", seed());
    }
    assert!(mail.delivered.lock().unwrap().len() > 20 && !mail.expunged.lock().unwrap().is_empty(), "little was tried");
    v.checked_remount();
    assert_eq!(mail_faults(&dir, &mail), Vec::<String>::new());
}

// ---------------------------------------------------------------------------------------------------------------------
// Editors.

/// How an editor saves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Save {
    /// A temporary file, synced, over the old one (`:set backupcopy=no nobackup` of some, and most desktop programs).
    Replace,
    /// The old one becomes the backup by a rename, a new one is made in its place (emacs, vim with `backupcopy=no`).
    RenameBackup,
    /// The backup is a link, and a temporary file goes over the old name.
    LinkBackup,
    /// The backup is a copy, the file is written in place (vim with `backupcopy=yes`).
    CopyBackup,
}

const SAVES: [Save; 4] = [Save::Replace, Save::RenameBackup, Save::LinkBackup, Save::CopyBackup];

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut f = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    f.write_all(bytes)?;
    f.sync_all()
}

/// Saves version `n`; when it comes back, the version is on stable media under the file's name.
fn save(dir: &Path, how: Save, n: u64) -> io::Result<()> {
    let (file, backup, new) = (dir.join("file"), dir.join("file~"), dir.join(".file.new"));
    match how {
        Save::Replace => {
            write_new(&new, &text(n))?;
            fs::rename(&new, &file)?;
        }
        Save::RenameBackup => {
            fs::rename(&file, &backup)?;
            let mut f = OpenOptions::new().write(true).create_new(true).open(&file)?;
            f.write_all(&text(n))?;
            f.sync_all()?;
        }
        Save::LinkBackup => {
            match fs::remove_file(&backup) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            fs::hard_link(&file, &backup)?;
            write_new(&new, &text(n))?;
            fs::rename(&new, &file)?;
        }
        Save::CopyBackup => {
            fs::copy(&file, &backup)?;
            File::open(&backup)?.sync_all()?;
            // The backup's name, too, before the file is no longer whole.
            sync_dir(dir)?;
            write_new(&file, &text(n))?;
        }
    }
    sync_dir(dir)
}

/// What is wrong with a saved file: the newest whole version under its name, or under its backup's where a save may have
/// been interrupted, is older than what was acknowledged, or newer than what was begun.
fn save_fault(dir: &Path, how: Save, acknowledged: u64, begun: u64) -> Option<String> {
    let whole = |name: &str| fs::read(dir.join(name)).ok().and_then(|b| number(&b));
    let (file, backup) = (whole("file"), whole("file~"));
    let in_place = matches!(how, Save::RenameBackup | Save::CopyBackup) && begun > acknowledged;
    let newest = if in_place { file.max(backup) } else { file };
    match newest {
        Some(n) if (acknowledged..=begun).contains(&n) => None,
        _ => Some(format!(
            "{how:?}: file holds {file:?}, its backup {backup:?}; {acknowledged} was saved, {begun} begun"
        )),
    }
}

#[test]
fn a_saved_file_is_old_or_new_and_whole() {
    let v = TestVault::mounted();
    let mut rng = Rng(seed());
    let dirs: Vec<_> = SAVES.iter().map(|how| v.path(format!("{how:?}"))).collect();
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
        write_new(&dir.join("file"), &text(0)).unwrap();
        sync_dir(dir).unwrap();
    }
    sync_dir(&v.mnt).unwrap();
    let done: Vec<[AtomicU64; 2]> = SAVES.iter().map(|_| Default::default()).collect();
    for round in 0..rounds() {
        let stop = AtomicBool::new(false);
        let life = Duration::from_millis(300 + rng.below(1200));
        std::thread::scope(|s| {
            for ((how, dir), [acknowledged, begun]) in SAVES.iter().zip(&dirs).zip(&done) {
                let stop = &stop;
                s.spawn(move || {
                    while !stop.load(SeqCst) {
                        let n = begun.fetch_add(1, SeqCst) + 1;
                        if save(dir, *how, n).is_err() {
                            return;
                        }
                        acknowledged.store(n, SeqCst);
                    }
                });
                // Who looks meanwhile sees a whole version, and none that was saved before an acknowledged one.
                if [Save::Replace, Save::LinkBackup].contains(how) {
                    s.spawn(move || {
                        while !stop.load(SeqCst) {
                            let before = acknowledged.load(SeqCst);
                            let Ok(bytes) = fs::read(dir.join("file")) else { continue };
                            let seen = number(&bytes);
                            assert!(
                                seen >= Some(before),
                                "{how:?}: seen {seen:?} ({} bytes) after {before}",
                                bytes.len()
                            );
                        }
                    });
                }
            }
            std::thread::sleep(life);
            v.kill9();
            stop.store(true, SeqCst);
        });
        v.mount();
        for ((how, dir), [acknowledged, begun]) in SAVES.iter().zip(&dirs).zip(&done) {
            let found = save_fault(dir, *how, acknowledged.load(SeqCst), begun.load(SeqCst));
            assert_eq!(found, None, "seed {}, round {round}, killed after {life:?}", seed());
            // As a person would: what was interrupted is saved anew.
            write_new(&dir.join("file"), &text(begun.load(SeqCst))).unwrap();
            sync_dir(dir).unwrap();
            acknowledged.store(begun.load(SeqCst), SeqCst);
        }
    }
    assert!(done.iter().all(|[a, _]| a.load(SeqCst) > 5), "little was saved");
    v.umount();
    v.check();
}

#[test]
fn vim_saves_in_each_of_its_ways() {
    let v = TestVault::mounted();
    let vim = on_path("vim");
    let dir = v.path("texts");
    fs::create_dir(&dir).unwrap();
    let ways =
        ["nobackup nowritebackup", "backup backupcopy=no", "backup backupcopy=yes", "writebackup backupcopy=auto"];
    for (n, way) in ways.iter().enumerate() {
        let file = dir.join(format!("text-{n}"));
        fs::write(&file, "one\ntwo\nthree\n".repeat(2000)).unwrap();
        fs::hard_link(&file, dir.join(format!("link-{n}"))).unwrap();
        for edit in ["%s/two/TWO/", "$d", "1m$"] {
            let mut c = Command::new(&vim);
            c.args(["-N", "-u", "NONE", "-i", "NONE", "-es", "--cmd", &format!("set {way} fsync directory=.")]);
            run(c.args(["-c", edit, "-c", "wq"]).arg(&file).env("TERM", "dumb"));
        }
        let want = "one\nTWO\nthree\n".repeat(2000);
        let want = want.strip_prefix("one\n").unwrap().strip_suffix("three\n").unwrap().to_owned() + "one\n";
        assert!(fs::read_to_string(&file).unwrap() == want, "vim, set {way}");
    }
    let swap =
        fs::read_dir(&dir).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().contains(".sw")).count();
    assert_eq!(swap, 0, "vim left a swap file");
    v.checked_remount();
    assert_eq!(fs::read(dir.join("text-0")).unwrap(), fs::read(dir.join("text-2")).unwrap());
}

// ---------------------------------------------------------------------------------------------------------------------
// A database's writer.

#[test]
fn sqlite_keeps_its_database_when_its_writers_are_killed() {
    let v = TestVault::mounted();
    let ask = |db: &Path, sql: &str| {
        run(Command::new("sqlite3").args(["-batch", "-bail", "-cmd", ".timeout 60000"]).arg(db).arg(sql))
            .trim()
            .to_owned()
    };
    let mut rng = Rng(seed());
    for mode in ["wal", "delete", "truncate", "persist"] {
        let db = v.path(format!("{mode}.db"));
        assert_eq!(
            ask(&db, &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(n INTEGER PRIMARY KEY, x TEXT);")),
            mode
        );
        let mut last = 0;
        for round in 0..rounds() {
            let mut shell = Command::new(on_path("sqlite3"));
            let piped = shell.args(["-batch", "-bail"]).arg(&db).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut shell = piped.stderr(Stdio::null()).spawn().unwrap();
            let (mut to, mut from) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
            let feeder = std::thread::spawn(move || {
                // Journal modes but WAL are each connection's own.
                let _ = writeln!(to, "PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL;");
                for n in last + 1.. {
                    if writeln!(to, "INSERT INTO t VALUES({n}, hex(randomblob({}))); SELECT {n};", 50 + n % 3000)
                        .is_err()
                    {
                        return;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(150 + rng.below(400)));
            shell.kill().unwrap();
            shell.wait().unwrap();
            feeder.join().unwrap();
            let mut line = String::new();
            while from.read_line(&mut line).unwrap_or(0) > 0 {
                last = line.trim().parse().unwrap_or(last);
                line.clear();
            }
            let when = format!("{mode}, seed {}, round {round}, {last} acknowledged", seed());
            assert_eq!(ask(&db, "PRAGMA integrity_check;"), "ok", "{when}");
            let there = ask(&db, "SELECT count(*) = max(n), max(n) FROM t;");
            let top: u64 = there
                .strip_prefix("1|")
                .unwrap_or_else(|| panic!("{when}: rows are missing: {there}"))
                .parse()
                .unwrap();
            assert!(top >= last, "{when}: {top} rows");
            last = top;
        }
        assert!(last > 5, "{mode}: little was written");
    }
    v.checked_remount();
    for mode in ["wal", "delete", "truncate", "persist"] {
        assert_eq!(ask(&v.path(format!("{mode}.db")), "PRAGMA integrity_check;"), "ok", "{mode}, mounted anew");
    }
}

#[test]
fn half_a_text_a_lost_message_and_an_old_version_are_found() {
    let whole = text(7);
    assert_eq!(number(&whole), Some(7));
    for wrong in [&whole[..whole.len() - 1], &whole[1..], b"", b"7 3\n"] {
        assert_eq!(number(wrong), None);
    }
    let mut changed = whole.clone();
    changed[15] ^= 1;
    assert_eq!(number(&changed), None);

    let dir = tempfile::tempdir().unwrap();
    for sub in ["new", "cur"] {
        fs::create_dir(dir.path().join(sub)).unwrap();
    }
    let mail = Mail::default();
    mail.delivered.lock().unwrap().insert(7);
    assert_eq!(mail_faults(dir.path(), &mail).len(), 1, "a lost message");
    fs::write(dir.path().join("new/7"), &whole).unwrap();
    assert_eq!(mail_faults(dir.path(), &mail), Vec::<String>::new());
    fs::write(dir.path().join("cur/7:2,S"), &whole[..9]).unwrap();
    assert_eq!(mail_faults(dir.path(), &mail).len(), 2, "half a message, and there twice");

    fs::write(dir.path().join("file"), &whole).unwrap();
    assert_eq!(save_fault(dir.path(), Save::Replace, 7, 8), None);
    assert!(save_fault(dir.path(), Save::Replace, 8, 8).is_some(), "an older version");
    assert!(save_fault(dir.path(), Save::Replace, 5, 6).is_some(), "a version that was never begun");
    fs::write(dir.path().join("file"), &whole[..50]).unwrap();
    fs::write(dir.path().join("file~"), &whole).unwrap();
    assert_eq!(save_fault(dir.path(), Save::CopyBackup, 7, 8), None, "an interrupted save in place");
    assert!(save_fault(dir.path(), Save::CopyBackup, 7, 7).is_some(), "half a file after its save was acknowledged");
}
