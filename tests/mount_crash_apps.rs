//! `kill -9` under programs that know what they were promised: sqlite in both of its journal modes, and git.
//!
//! Method: each writes until the daemon is killed and notes outside what was acknowledged; the vault is mounted again, and
//! the programs' own checkers judge what is there. `STRONGROOM_CRASH_ROUNDS` and `STRONGROOM_SEEDS` ask for more.
//! Promise: sqlite finds its database whole and has every row that it was told is committed; `git fsck --strict` finds
//! nothing, and every commit that was synced after its command came back is in the history. How long it took to be mounted again is said.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{TestVault, output, run, say_times, setting};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// No mount after a kill may take longer, however slow the machine.
const MOUNT_MOST: Duration = Duration::from_secs(30);

/// The numbers of what was acknowledged, ascending; kept outside the vault.
type Acknowledged = Mutex<Vec<u64>>;

/// What was acknowledged and is not there.
fn lost(acknowledged: &Acknowledged, there: &str) -> Vec<u64> {
    let there: BTreeSet<u64> = there.lines().filter_map(|l| l.trim().parse().ok()).collect();
    acknowledged.lock().unwrap().iter().copied().filter(|n| !there.contains(n)).collect()
}

fn sqlite(db: &Path, script: &str) -> String {
    run(Command::new("sqlite3").args(["-batch", "-bail"]).arg(db).arg(script))
}

/// When the daemon is killed, and when its programs are to end.
#[derive(Default)]
struct End {
    killed: AtomicBool,
    stop: AtomicBool,
}

/// How a database keeps its journal.
#[derive(Clone, Copy, PartialEq)]
enum Journal {
    Wal,
    /// A commit is the removal of a file and the fsync of its directory. Where the directory does not open any more, as here when
    /// the dead mount is taken away, sqlite (3.40) leaves that fsync out and says that it is committed: seen under strace, unlink = 0,
    /// open = ENOENT, and the row's number. So nothing counts that is said once the daemon is being killed.
    Rollback,
}

/// Inserts one row after the other, each committed when sqlite says its number; gives up with the first error.
fn insert(db: &Path, journal: Journal, from: u64, acknowledged: &Acknowledged, end: &End) {
    let mut shell = Command::new("sqlite3");
    let piped = shell.args(["-batch", "-bail"]).arg(db).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell: Child = piped.stderr(Stdio::null()).spawn().expect("sqlite3 is installed (see .ci/setup)");
    let (mut to, mut from_it) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
    let mut ask = |line: &str| {
        let mut answer = String::new();
        let asked = writeln!(to, "{line}").and_then(|()| to.flush());
        asked.and_then(|()| from_it.read_line(&mut answer)).map(|n| (n, answer.trim().to_owned()))
    };
    let _ = ask("PRAGMA synchronous=EXTRA; SELECT 'begun';");
    for n in from.. {
        let done = ask(&format!("INSERT INTO t VALUES({n}, hex(randomblob({}))); SELECT {n};", 50 + n % 4000));
        match done {
            Ok(_) if journal == Journal::Rollback && end.killed.load(SeqCst) => break,
            Ok((_, answer)) if answer == n.to_string() => acknowledged.lock().unwrap().push(n),
            _ => break,
        }
        if end.stop.load(SeqCst) {
            break;
        }
    }
    drop(to);
    let _ = shell.kill();
    let _ = shell.wait();
}

fn git(repository: &Path, arguments: &[&str]) -> Command {
    let mut c = Command::new("git");
    c.arg("-C").arg(repository).args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.fsync=all"]);
    c.args(["-c", "core.fsyncMethod=fsync", "-c", "gc.auto=0", "-c", "commit.gpgSign=false"]).args(arguments);
    c
}

/// One commit after the other, each of a changed and a new file.
fn commit(repository: &Path, from: u64, acknowledged: &Acknowledged, end: &End) {
    for n in from.. {
        let write = |name: String, text: String| fs::write(repository.join(name), text);
        if write("changed".into(), format!("{n}\n")).is_err()
            || write(format!("new-{}", n % 50), "x".repeat(n as usize % 5000)).is_err()
        {
            return;
        }
        let message = format!("commit {n}");
        for arguments in [&["add", "-A"][..], &["commit", "-q", "--allow-empty", "-m", &message]] {
            if !output(&mut git(repository, arguments)).status.success() {
                return;
            }
        }
        // git writes what it is to sync (`core.fsync`), and the name of the branch's file last, by a rename that it does not sync.
        if File::open(repository).and_then(|dir| dir.sync_all()).is_err() {
            return;
        }
        acknowledged.lock().unwrap().push(n);
        if end.stop.load(SeqCst) {
            return;
        }
    }
}

#[test]
fn databases_and_repositories_survive_kill_9() {
    let v = TestVault::mounted();
    let seed = std::env::var("STRONGROOM_SEEDS").ok().and_then(|s| s.split(',').next()?.parse().ok()).unwrap_or(1);
    let mut rng = Rng(seed);
    // In a directory: what a program makes by path after the kill must not land in the bare mountpoint.
    let apps = v.path("apps");
    fs::create_dir(&apps).unwrap();
    let (wal, rollback, repository) = (apps.join("wal.db"), apps.join("rollback.db"), apps.join("repository"));
    sqlite(&wal, "PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER PRIMARY KEY, x TEXT);");
    sqlite(&rollback, "PRAGMA journal_mode=DELETE; CREATE TABLE t(n INTEGER PRIMARY KEY, x TEXT);");
    fs::create_dir(&repository).unwrap();
    run(&mut git(&repository, &["init", "-q"]));
    run(Command::new("sync").arg("-f").arg(&v.mnt));
    let done: [Acknowledged; 3] = Default::default();
    let mut took = Vec::new();
    for round in 0..setting("STRONGROOM_CRASH_ROUNDS", 5, 5) {
        let end = End::default();
        let life = Duration::from_millis(300 + rng.below(1700));
        // What was made and not acknowledged must not be in the way: each round has numbers of its own.
        let first = round * 1_000_000 + 1;
        std::thread::scope(|s| {
            let (end, done) = (&end, &done);
            let (wal, rollback, repository) = (&wal, &rollback, &repository);
            s.spawn(move || insert(wal, Journal::Wal, first, &done[0], end));
            s.spawn(move || insert(rollback, Journal::Rollback, first, &done[1], end));
            s.spawn(move || commit(repository, first, &done[2], end));
            std::thread::sleep(life);
            end.killed.store(true, SeqCst);
            v.kill9();
            end.stop.store(true, SeqCst);
        });
        let begun = Instant::now();
        v.mount();
        took.push(begun.elapsed());
        assert!(took[took.len() - 1] < MOUNT_MOST, "mounting took {:?}", took[took.len() - 1]);
        let when = format!("seed {seed}, round {round}, killed after {life:?}");
        for (db, done) in [(&wal, &done[0]), (&rollback, &done[1])] {
            assert_eq!(sqlite(db, "PRAGMA integrity_check;").trim(), "ok", "{when}: {}", db.display());
            let there = sqlite(db, "SELECT n FROM t;");
            assert_eq!(lost(done, &there), Vec::<u64>::new(), "{when}: {}", db.display());
        }
        // What a killed command leaves is taken away as people do; then nothing may be wrong.
        for lock in ["index.lock", "HEAD.lock", "refs/heads/master.lock", "refs/heads/main.lock"] {
            let _ = fs::remove_file(repository.join(".git").join(lock));
        }
        if !done[2].lock().unwrap().is_empty() {
            run(&mut git(&repository, &["fsck", "--strict", "--no-dangling"]));
            let there = run(&mut git(&repository, &["log", "--format=%s"])).replace("commit ", "");
            assert_eq!(lost(&done[2], &there), Vec::<u64>::new(), "{when}: commits");
        }
    }
    assert!(done.iter().all(|d| !d.lock().unwrap().is_empty()), "nothing was acknowledged before any kill");
    say_times(took);
}

#[test]
fn a_lost_number_is_found() {
    let acknowledged = Mutex::new(vec![1, 2, 5]);
    assert_eq!(lost(&acknowledged, "1\n2\n3\n5\n"), Vec::<u64>::new());
    assert_eq!(lost(&acknowledged, "1\n5\n"), [2]);
}
