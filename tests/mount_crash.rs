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

use common::aio::Aio;
use common::rng::Rng;
use common::stream::{stream, stream_fault};
use common::{TestVault, eventually, needs_root, say_times, setting, shell};
use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
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

/// Does one thing, kills the daemon at once, and looks whether it is there after the next mount.
fn outlives_a_kill(v: &TestVault, what: &str, act: impl FnOnce(), is_there: impl FnOnce() -> bool) {
    act();
    v.kill9();
    v.mount();
    assert!(is_there(), "{what}: it had returned, and is lost");
}

#[test]
fn with_dirsync_every_change_of_a_directory_is_durable_when_it_returns() {
    let v = TestVault::mounted_with(&["dirsync", "flush-interval=600"]);
    let p = |name: &str| v.path(name);
    fs::write(p("old"), "content").unwrap();
    File::open(p("old")).unwrap().sync_all().unwrap();
    outlives_a_kill(&v, "mkdir", || fs::create_dir(p("d")).unwrap(), || p("d").is_dir());
    outlives_a_kill(&v, "creat", || drop(File::create(p("d/new")).unwrap()), || p("d/new").is_file());
    outlives_a_kill(&v, "symlink", || std::os::unix::fs::symlink("x", p("s")).unwrap(), || p("s").is_symlink());
    outlives_a_kill(&v, "link", || fs::hard_link(p("old"), p("d/l")).unwrap(), || p("d/l").is_file());
    let renamed = || p("d/r").is_file() && !p("old").exists();
    outlives_a_kill(&v, "rename", || fs::rename(p("old"), p("d/r")).unwrap(), renamed);
    outlives_a_kill(&v, "unlink", || fs::remove_file(p("d/l")).unwrap(), || !p("d/l").exists());
    outlives_a_kill(&v, "mkfifo", || drop(shell(&v.mnt, "mkfifo fifo", &[""])), || p("fifo").exists());
    fs::create_dir(p("e")).unwrap();
    outlives_a_kill(&v, "rmdir", || fs::remove_dir(p("e")).unwrap(), || !p("e").exists());
    v.umount();
    v.check();
}

#[test]
fn with_sync_every_change_is_durable_when_it_returns() {
    let v = TestVault::mounted_with(&["sync", "flush-interval=600"]);
    let p = |name: &str| v.path(name);
    let content = |name: &str| fs::read(p(name)).unwrap_or_default();
    let open = |how: &mut OpenOptions| how.read(true).write(true).open(p("f")).unwrap();
    outlives_a_kill(&v, "creat", || drop(File::create(p("f")).unwrap()), || p("f").is_file());
    // The file stays open: nothing is written back for its close.
    let mut f = open(&mut OpenOptions::new());
    outlives_a_kill(&v, "write", || f.write_all(&[b'a'; 300_000]).unwrap(), || content("f") == [b'a'; 300_000]);
    let f = open(&mut OpenOptions::new());
    outlives_a_kill(&v, "pwrite", || f.write_all_at(b"b", 9).unwrap(), || content("f")[9] == b'b');
    let f = open(&mut OpenOptions::new());
    outlives_a_kill(&v, "ftruncate", || f.set_len(5000).unwrap(), || content("f").len() == 5000);
    let f = open(&mut OpenOptions::new());
    let allocate = || {
        // SAFETY: plain numbers, and a descriptor that lives through the call.
        assert_eq!(unsafe { libc::fallocate(f.as_raw_fd(), 0, 0, 9000) }, 0);
    };
    outlives_a_kill(&v, "fallocate", allocate, || content("f").len() == 9000);
    let f = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(p("f")).unwrap();
    let written = || content("f")[..8192] == [7; 8192];
    outlives_a_kill(&v, "direct, asynchronous", || Aio::new().write(&f, &[(0, 4096, 7), (4096, 4096, 7)]), written);
    let mode = || fs::metadata(p("f")).unwrap().permissions().mode() & 0o777 == 0o640;
    outlives_a_kill(&v, "chmod", || fs::set_permissions(p("f"), fs::Permissions::from_mode(0o640)).unwrap(), mode);
    let stamped = || fs::metadata(p("f")).unwrap().mtime() == 86_400;
    outlives_a_kill(&v, "utimes", || drop(shell(&v.mnt, "touch -d @86400 f", &[""])), stamped);
    let set = || drop(shell(&v.mnt, "setfattr -n user.k -v value f", &[""]));
    let value = || shell(&v.mnt, "getfattr --only-values -n user.k f", &[""]).contains("value");
    outlives_a_kill(&v, "setxattr", set, value);
    outlives_a_kill(&v, "copy", || assert_eq!(fs::copy(p("f"), p("g")).unwrap(), 9000), || content("g").len() == 9000);
    outlives_a_kill(&v, "rename", || fs::rename(p("f"), p("h")).unwrap(), || p("h").is_file() && !p("f").exists());
    outlives_a_kill(&v, "unlink", || fs::remove_file(p("h")).unwrap(), || !p("h").exists());
    v.umount();
    v.check();
}

#[test]
fn asynchronous_direct_writes_with_o_dsync_are_durable_when_they_are_done() {
    let v = TestVault::mounted_with(&["flush-interval=600"]);
    let path = v.path("f");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    for (flags, byte) in [(libc::O_DSYNC, 2), (libc::O_SYNC, 3)] {
        let f = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | flags).open(&path).unwrap();
        let act = || Aio::new().write(&f, &[(0, 64 << 10, byte), (512 << 10, 64 << 10, byte)]);
        outlives_a_kill(&v, "O_DSYNC", act, || {
            let all = fs::read(&path).unwrap_or_default();
            all.len() == 1 << 20 && all[..64 << 10].iter().chain(&all[512 << 10..576 << 10]).all(|b| *b == byte)
        });
    }
}

/// Commits since the mount.
fn commits(v: &TestVault) -> u64 {
    let metrics = v.storage("metrics");
    let line = metrics.lines().find(|l| l.starts_with("strongroom_commits")).expect("commits are counted");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn what_was_copied_is_durable_soon_after_sync() {
    // Nobody waits for 50 s: what is durable before is so because nothing more came.
    let v = TestVault::mounted_with(&["flush-interval=100"]);
    let data = stream(1, 0, 3_000_000);
    fs::write(v.path("f"), &data).unwrap();
    // SAFETY: a descriptor that lives through the call.
    assert_eq!(unsafe { libc::syncfs(File::open(&v.mnt).unwrap().as_raw_fd()) }, 0);
    assert!(v.pending() > 0, "it was durable at once: nothing is shown");
    eventually("a pause is followed by a commit", Duration::from_secs(35), || v.pending() == 0);
    let before = commits(&v);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(commits(&v), before, "one pause is one commit");
    v.kill9();
    v.mount();
    assert!(fs::read(v.path("f")).unwrap() == data);
}

#[test]
fn a_file_that_stays_open_is_handed_over() {
    let v = TestVault::mounted_with(&["flush-interval=2"]);
    // The second write begins a page: the kernel then hands each byte over once, so the count says what has come.
    let (first, more) = (732 * 4096, 4096 + 8);
    let data = stream(1, 0, (first + more) as u64);
    let mut f = File::create(v.path("f")).unwrap();
    f.write_all(&data[..first]).unwrap();
    // The kernel alone would keep it for 30 s and more. Half of the interval is over when it comes; then it is committed.
    std::thread::sleep(Duration::from_secs(1));
    let came = |bytes: usize| {
        handed_over(&v) >= bytes as u64 && v.storage("buffers").contains("pending_bytes") && v.pending() == 0
    };
    eventually("it is handed over and durable", Duration::from_secs(20), || came(first));
    // A stopped daemon answers no write: whoever asked for it waits with it, and with nobody else.
    f.write_all(&data[first..]).unwrap();
    // SAFETY: signals to the daemon this test started.
    unsafe { libc::kill(v.pid(), libc::SIGSTOP) };
    std::thread::sleep(Duration::from_secs(2));
    // SAFETY: as above.
    unsafe { libc::kill(v.pid(), libc::SIGCONT) };
    eventually("what came meanwhile, too", Duration::from_secs(20), || came(first + more));
    v.kill9();
    drop(f);
    v.mount();
    assert!(fs::read(v.path("f")).unwrap() == data);
    v.umount();
    v.check();
}

/// Bytes that the kernel has handed over since the mount.
fn handed_over(v: &TestVault) -> u64 {
    let metrics = v.storage("metrics");
    let line = metrics.lines().find(|l| l.starts_with("strongroom_written_bytes")).expect("they are counted");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn handing_over_does_not_keep_the_mount_busy() {
    needs_root("unmount by itself");
    // A round every tenth of a second.
    let v = TestVault::mounted_with(&["flush-interval=0.2"]);
    let path = CString::new(v.mnt.as_os_str().as_bytes()).unwrap();
    let f = v.path("f");
    let begun = Instant::now();
    let (mut asked, mut busy) = (0, 0);
    while begun.elapsed() < Duration::from_secs(3) {
        fs::write(&f, [7; 100_000]).unwrap();
        for _ in 0..50 {
            // Marks an unused mount and says EAGAIN; one that is in use is EBUSY. Looking at it takes the mark away.
            // SAFETY: a zero-terminated string that outlives the call.
            assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_EXPIRE) }, -1);
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN) => {}
                // Whoever looks a path up in it uses it for some microseconds.
                Some(libc::EBUSY) => busy += 1,
                e => panic!("{e:?}"),
            }
            fs::metadata(&f).unwrap();
            asked += 1;
        }
    }
    assert!(asked > 100 && busy * 20 < asked, "the mount was in use at {busy} of {asked} questions");
    v.umount();
}
