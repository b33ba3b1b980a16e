//! A backing directory on a small disk that is filled to the last block.
//!
//! Method: ext4 in a file of its own, filled by eight writers from inside and by somebody else from outside.
//! `STRONGROOM_FULL_MIB` is its size.
//! Promise: every write is refused with ENOSPC (by `write`, `fsync` or `close`) or its bytes are there whole; deleting,
//! truncating and renaming always work, and what they free can be written to again with no remount; with an emergency
//! directory nothing is refused until that is full too, and everything comes home by itself. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::disk::Disk;
use common::rng::Rng;
use common::stream::stream;
use common::{TestVault, eventually, setting};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const WRITERS: u64 = 8;
const MIB: u64 = 1 << 20;
/// Most time until what was freed can be written to.
const ROOM: Duration = Duration::from_secs(20);
/// Most time for what takes a moment, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most time to come home.
const HEALING: Duration = Duration::from_secs(90);

/// Closes it and says what that came to.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was ours and is nobody's now.
    if unsafe { libc::close(file.into_raw_fd()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes a file of stream `id`; every second one is synced, every one is closed.
fn put(dir: &Path, id: u64, len: u64) -> io::Result<()> {
    let mut file = File::create(dir.join(format!("file-{id}")))?;
    let written = file.write_all(&stream(id, 0, len));
    let synced = written.and_then(|()| if id.is_multiple_of(2) { file.sync_all() } else { Ok(()) });
    let closed = close(file);
    synced.and(closed)
}

/// A file that was taken, and its length.
type Taken = (u64, u64);

/// Eight writers until each was refused a few times in a row; gives what was taken.
fn fill_from_inside(dir: &Path, first: u64) -> Vec<Taken> {
    let one = |writer: u64| {
        let (mut rng, mut taken, mut refused, mut n) = (Rng(writer + 1), Vec::new(), 0, 0);
        while refused < 3 {
            let (id, len) = ((first + writer) << 32 | n, 1 + rng.below(3 * MIB));
            n += 1;
            match put(dir, id, len) {
                Ok(()) => {
                    taken.push((id, len));
                    refused = 0;
                }
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "writer {writer}: {e}");
                    refused += 1;
                }
            }
        }
        taken
    };
    std::thread::scope(|s| {
        let all: Vec<_> = (0..WRITERS).map(|writer| s.spawn(move || one(writer))).collect();
        all.into_iter().flat_map(|t| t.join().unwrap()).collect()
    })
}

fn total(taken: &[Taken]) -> u64 {
    taken.iter().map(|t| t.1).sum()
}

/// What was taken and is not there whole.
fn faults(dir: &Path, taken: &[Taken]) -> Vec<String> {
    let one = |&(id, len): &Taken| match fs::read(dir.join(format!("file-{id}"))) {
        Ok(bytes) if bytes == stream(id, 0, len) => None,
        Ok(bytes) => Some(format!("file-{id}: {} bytes, not the {len} that were taken", bytes.len())),
        Err(e) => Some(format!("file-{id}: {e}")),
    };
    taken.iter().filter_map(one).collect()
}

fn delete(dir: &Path, taken: &mut Vec<Taken>, keep: impl Fn(usize) -> bool) {
    let mut n = 0;
    taken.retain(|(id, _)| {
        n += 1;
        let keep = keep(n);
        if !keep {
            fs::remove_file(dir.join(format!("file-{id}"))).unwrap();
        }
        keep
    });
}

fn room_comes(dir: &Path, id: u64, len: u64) {
    let begun = std::time::Instant::now();
    while let Err(e) = put(dir, id, len) {
        assert!(begun.elapsed() < ROOM, "no room {ROOM:?} after it was made: {e}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn eight_writers_fill_it_and_deleting_makes_room() {
    let disk = Disk::ext4(setting("STRONGROOM_FULL_MIB", 200, 200));
    let mut v = TestVault::init_on(&disk);
    // Each writer is refused a few times, and nobody makes room meanwhile.
    v.options = vec!["full-deadline=0.2".into()];
    v.mount();
    let all = disk.free_bytes();
    let mut taken = fill_from_inside(&v.mnt, 0);
    assert!(total(&taken) > all / 2, "{} MiB were taken of {}", total(&taken) / MIB, all / MIB);
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "live");
    // What takes no room works on a full disk.
    fs::rename(v.path(format!("file-{}", taken[0].0)), v.path("renamed")).unwrap();
    let cut = File::options().write(true).open(v.path("renamed")).unwrap();
    cut.set_len(1000).unwrap();
    cut.sync_all().unwrap();
    drop(cut);
    taken.remove(0);
    delete(&v.mnt, &mut taken, |n| n % 3 != 0);
    room_comes(&v.mnt, 1 << 50, 2 * MIB);
    taken.push((1 << 50, 2 * MIB));
    // To the brim once more, and once more after that.
    taken.extend(fill_from_inside(&v.mnt, 100));
    delete(&v.mnt, &mut taken, |n| n % 2 != 0);
    room_comes(&v.mnt, 2 << 50, MIB);
    taken.push((2 << 50, MIB));
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "live, after more");
    assert!(!v.states().iter().any(|s| s == "error"), "{:?}", v.states());
    v.kill9();
    v.mount();
    // What was closed and not synced may be lost to a kill, and only that.
    let synced: Vec<Taken> = taken.iter().copied().filter(|t| t.0 % 2 == 0).collect();
    assert_eq!(faults(&v.mnt, &synced), Vec::<String>::new(), "after a kill");
    v.umount();
    v.check();
    v.mount();
    assert_eq!(faults(&v.mnt, &synced), Vec::<String>::new(), "after a clean unmount");
    assert_eq!(fs::read(v.path("renamed")).unwrap().len(), 1000);
    v.umount();
}

#[test]
fn a_disk_filled_by_somebody_else_lets_us_delete() {
    let disk = Disk::ext4(setting("STRONGROOM_FULL_MIB", 200, 200));
    let v = TestVault::init_on(&disk);
    v.mount();
    let mut taken: Vec<Taken> = (0..40).map(|id| (id, 1 + id * 40_000)).collect();
    for (id, len) in &taken {
        put(&v.mnt, *id, *len).unwrap();
    }
    fs::create_dir(v.path("dir")).unwrap();
    let filler = disk.fill(0);
    assert!(disk.free_bytes() < 64 << 10, "the filler left {} bytes", disk.free_bytes());

    let small_changes = |taken: &mut Vec<Taken>| {
        let at = |n: u64| v.path(format!("file-{n}"));
        let (a, b) = (taken.pop().unwrap(), taken.pop().unwrap());
        fs::remove_file(at(a.0)).unwrap();
        File::open(&v.mnt).unwrap().sync_all().unwrap();
        fs::rename(at(b.0), v.path("dir/moved")).unwrap();
        let moved = File::options().write(true).open(v.path("dir/moved")).unwrap();
        moved.set_len(10).unwrap();
        moved.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        moved.sync_all().unwrap();
    };
    small_changes(&mut taken);
    let refused = put(&v.mnt, 1000, MIB).expect_err("there is no room for it");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    let _ = fs::remove_file(v.path("file-1000"));
    small_changes(&mut taken);
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "live");
    assert!(!v.states().iter().any(|s| s == "error"), "{:?}", v.states());
    v.umount();
    v.check();

    // A vault on a full disk can be mounted, and made smaller.
    let second = disk.fill(0);
    v.mount();
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "mounted on a full disk");
    small_changes(&mut taken);
    small_changes(&mut taken);
    v.umount();
    v.check();
    v.mount();
    for path in [filler, second] {
        fs::remove_file(path).unwrap();
    }
    room_comes(&v.mnt, 2000, MIB);
    taken.push((2000, MIB));
    v.umount();
    v.check();
    v.mount();
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "at the end");
}

#[test]
fn what_the_reserve_gave_taken_by_somebody_else_heals_when_there_is_room() {
    let disk = Disk::ext4(100);
    let v = TestVault::init_on(&disk);
    v.mount();
    let taken: Vec<Taken> = (0..20).map(|id| (id * 2, 1 + id * 40_000)).collect();
    for (id, len) in &taken {
        put(&v.mnt, *id, *len).unwrap();
    }
    let mut fillers = Vec::new();
    // Each time the vault finds a little room, somebody takes it.
    let mut made = 0;
    for n in 0..400 {
        fillers.push(disk.fill(0));
        let dir = v.path(format!("dir-{n}"));
        let done = fs::create_dir(&dir).and_then(|()| File::open(&dir)?.sync_all());
        made = n;
        if done.is_err() && fillers.len() > 8 {
            break;
        }
    }
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "after {made} rounds");
    for path in fillers {
        fs::remove_file(path).unwrap();
    }
    eventually("well again", HEALING, || ["ready", "writing"].contains(&v.state().as_str()));
    room_comes(&v.mnt, 5000, MIB);
    v.umount();
    v.check();
    v.mount();
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "at the end");
    assert_eq!(faults(&v.mnt, &[(5000, MIB)]), Vec::<String>::new());
}

fn segments_away(place: &Path) -> usize {
    let vaults = fs::read_dir(place).into_iter().flatten().flatten();
    vaults.map(|e| fs::read_dir(e.path().join("segments")).map_or(0, Iterator::count)).sum()
}

fn with_emergency(disk: &Disk, away: &Disk) -> TestVault {
    let mut v = TestVault::init_on(disk);
    v.options = vec![format!("emergency-dir={}", away.at.display())];
    v.mount();
    v
}

fn comes_home(v: &TestVault, away: &Disk, taken: &[Taken]) {
    eventually("coming home", HEALING, || ["ready", "writing"].contains(&v.state().as_str()));
    eventually("nothing left elsewhere", HEALING, || segments_away(&away.at) == 0);
    assert_eq!(faults(&v.mnt, taken), Vec::<String>::new(), "at home");
    v.umount();
    v.check();
    v.mount();
    assert_eq!(faults(&v.mnt, taken), Vec::<String>::new(), "after a clean unmount");
}

#[test]
fn with_an_emergency_disk_nothing_is_refused_until_that_is_full_too() {
    let (disk, away) = (Disk::ext4(220), Disk::ext4(100));
    let v = with_emergency(&disk, &away);
    let filler = disk.fill(80 * MIB);
    let room = disk.free_bytes() + away.free_bytes();
    let taken = fill_from_inside(&v.mnt, 0);
    assert!(total(&taken) > room / 10 * 6, "{} MiB were taken of {}", total(&taken) / MIB, room / MIB);
    assert!(segments_away(&away.at) > 0);
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "both places full");
    fs::remove_file(filler).unwrap();
    comes_home(&v, &away, &taken);
}

#[test]
fn with_both_disks_full_deleting_makes_room_and_everything_comes_home() {
    let (disk, away) = (Disk::ext4(100), Disk::ext4(64));
    let v = with_emergency(&disk, &away);
    let mut taken = fill_from_inside(&v.mnt, 0);
    assert!(segments_away(&away.at) > 0, "it went away for room");
    delete(&v.mnt, &mut taken, |n| n % 4 == 0);
    room_comes(&v.mnt, 1 << 50, MIB);
    taken.push((1 << 50, MIB));
    comes_home(&v, &away, &taken);
}

/// A number of `/.storage/metrics`.
fn metric(v: &TestVault, name: &str) -> u64 {
    let text = v.storage("metrics");
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_else(|| panic!("no metric {name}")) as u64
}

fn available(path: &Path) -> u64 {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut s = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a terminated string, and room for the answer.
    assert_eq!(unsafe { libc::statvfs(path.as_ptr(), s.as_mut_ptr()) }, 0);
    // SAFETY: the call succeeded, so it is filled.
    let s = unsafe { s.assume_init() };
    s.f_bavail * s.f_frsize
}

/// Bytes that no codec makes smaller.
fn noise(id: u64, from: u64, len: u64) -> Vec<u8> {
    let (first, last) = (from / 4096, (from + len).div_ceil(4096));
    let all: Vec<u8> = (first..last).flat_map(|page| Rng((id + 1) << 32 | (page + 1)).bytes(4096)).collect();
    let skip = (from % 4096) as usize;
    all[skip..skip + len as usize].to_vec()
}

/// Only calls `write`, on file after file in turn, until one is refused; gives what each took, and the refusal.
fn write_only(files: &mut [File], most_bytes: u64) -> (Vec<u64>, Option<io::Error>) {
    let mut taken = vec![0; files.len()];
    while taken.iter().sum::<u64>() < most_bytes {
        for (id, file) in files.iter_mut().enumerate() {
            let piece = noise(id as u64, taken[id], MIB);
            match file.write(&piece) {
                Ok(n) => taken[id] += n as u64,
                Err(e) => return (taken, Some(e)),
            }
        }
    }
    (taken, None)
}

fn holds(path: &Path, id: u64, len: u64) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, len, "{}", path.display());
    assert!(bytes == noise(id, 0, len), "{}: not what was written", path.display());
}

#[test]
fn a_program_that_only_writes_is_told_and_nothing_that_was_taken_is_dropped() {
    let disk = Disk::ext4(1200);
    let v = TestVault::init_on(&disk);
    disk.take_all_but(360 * MIB);
    v.mount();
    let fits = available(&v.mnt);
    assert!(fits > 64 * MIB, "the test has {} MiB", fits / MIB);
    for name in ["a", "b"] {
        fs::write(v.path(name), "").unwrap();
    }
    let mut files: Vec<File> = ["a", "b"].map(|n| File::options().write(true).open(v.path(n)).unwrap()).into();
    let (taken, refused) = write_only(&mut files, fits + 64 * MIB);
    let refused = refused.unwrap_or_else(|| panic!("{taken:?} bytes were taken, {fits} fit, and no write was refused"));
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    // Neither closed nor synced: it says so all the same.
    eventually("full", PATIENCE, || v.state() == "full");
    assert!(v.storage("errors").contains("no room for new data"), "{}", v.storage("errors"));
    assert!(metric(&v, "strongroom_refused_for_room_total") > 0);
    assert_eq!(v.storage("errors").lines().count(), 1, "{}", v.storage("errors"));
    // What takes no room goes on, and nothing runs in circles.
    fs::metadata(v.path("a")).unwrap();
    assert_eq!(fs::read_dir(&v.mnt).unwrap().count(), 2);
    let work = || metric(&v, "strongroom_commits_total") + metric(&v, "strongroom_snapshot_failures_total");
    std::thread::sleep(Duration::from_secs(2));
    let (before, since) = (work(), Instant::now());
    let mut taken = taken;
    for n in 0..20 {
        // What is buffered may take less room in the log than it was counted for.
        let id = n % 2;
        if let Ok(len) = files[id].write(&noise(id as u64, taken[id], 4096)) {
            taken[id] += len as u64;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // Going in circles it was eleven a second.
    let (done, took) = (work() - before, since.elapsed());
    assert!(done < 4 * took.as_secs(), "{done} commits and failed snapshots in {took:?} with nothing to do");
    // Room was kept for what the kernel had taken.
    for (id, file) in files.iter().enumerate() {
        file.sync_all().unwrap_or_else(|e| panic!("file {id}: {e}"));
    }
    assert_eq!(metric(&v, "strongroom_refused_cached_bytes_total"), 0);
    holds(&v.path("a"), 0, taken[0]);
    holds(&v.path("b"), 1, taken[1]);
    // Deleting helps at once: `df` says so without anybody writing, and a small write works. On a machine with nothing else to do
    // it takes one second, and not two.
    drop(files);
    fs::remove_file(v.path("a")).unwrap();
    let begun = Instant::now();
    eventually("df is true", PATIENCE, || available(&v.mnt) > taken[0] / 2);
    while let Err(e) = put(&v.mnt, 7, 4096) {
        assert!(begun.elapsed() < PATIENCE, "a small write after deleting: {e}");
        std::thread::sleep(Duration::from_millis(20));
    }
    eventually("no longer full", PATIENCE, || v.state() != "full");
    v.umount();
    v.check();
    v.mount();
    holds(&v.path("b"), 1, taken[1]);
    assert!(!v.states().iter().any(|s| s == "error"), "{:?}", v.states());
}

#[test]
fn what_a_lone_writer_fills_a_small_disk_with_is_saved() {
    let disk = Disk::ext4(300);
    let v = TestVault::init_on(&disk);
    v.mount();
    // One piece over and over: making others would take longer than writing them.
    let (mut file, piece, mut taken) = (File::create(v.path("a")).unwrap(), noise(0, 0, MIB), 0);
    let refused = loop {
        match file.write(&piece) {
            Ok(n) => taken += n,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    // The kernel has accepted less than there was room for.
    file.sync_all().unwrap();
    assert_eq!(metric(&v, "strongroom_refused_cached_bytes_total"), 0);
    let bytes = fs::read(v.path("a")).unwrap();
    assert_eq!(bytes.len(), taken);
    assert!(bytes.chunks(piece.len()).all(|part| *part == piece[..part.len()]), "not what was written");
}

/// Reads a file of stream `id` that the kernel has in its cache from the daemon.
fn reads_uncached(path: &Path, id: u64, len: u64) {
    let mut file = File::open(path).unwrap();
    // SAFETY: the descriptor is the file's.
    let done = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(done, 0, "dropping the pages of {}", path.display());
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == stream(id, 0, len), "{}", path.display());
}

/// A number of `/.storage/buffers`.
fn buffered(v: &TestVault, name: &str) -> u64 {
    v.storage("buffers").lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
}

/// Runs a command whose first write into a page cache waits if the dirty limit is reached. The kernel lets a program dirty some pages
/// before it waits, but charges those that a program dirtied before its end to the next one on the same processor.
fn as_a_writer_that_waits(v: &TestVault, command: &mut Command) -> std::process::Output {
    let on_one_processor = |of: &Command| {
        let mut on_one = Command::new("taskset");
        on_one.args(["-c", "0"]).arg(of.get_program()).args(of.get_args());
        on_one
    };
    let mut few_pages = Command::new("dd");
    few_pages.args(["if=/dev/zero", "bs=4k", "count=20", "status=none"]);
    few_pages.arg(format!("of={}", v.outside("few-pages").display()));
    common::run(&mut on_one_processor(&few_pages));
    common::output(&mut on_one_processor(command))
}

#[test]
fn what_the_kernel_hands_over_to_a_full_disk_is_held_until_there_is_room() {
    let disk = Disk::ext4(100);
    let mut v = TestVault::init_on(&disk);
    // Far more than everything beside the held write takes.
    let deadline = Duration::from_secs(120);
    v.options = vec![format!("full-deadline={}", deadline.as_secs())];
    v.mount();
    for id in [0, 2] {
        put(&v.mnt, id, MIB).unwrap();
    }
    // More requests than the kernel has under way in the background.
    let len = 16 * MIB;
    let open = |path: &Path| {
        let file = File::create(path).unwrap();
        file.sync_all().unwrap();
        file
    };
    // One call of `write`: before the next one to this file, the kernel asks. What it takes is refused by nobody yet.
    fs::write(v.outside("noise"), noise(1, 0, len)).unwrap();
    drop(open(&v.path("held")));
    // A process of its own: each command that one with the file open starts would wait, since `exec` closes its copy of the descriptor.
    let mut write_and_sync = Command::new("dd");
    write_and_sync.args(["bs=64M", "conv=notrunc,fsync", "status=none"]);
    write_and_sync.arg(format!("if={}", v.outside("noise").display())).arg(format!("of={}", v.path("held").display()));
    // From now on nothing that is handed over finds room, however soon the kernel does that.
    let filler = disk.fill(0);
    let begun = Instant::now();
    let mut syncing = write_and_sync.spawn().unwrap();
    eventually("full", PATIENCE, || v.state() == "full");
    eventually("held", PATIENCE, || buffered(&v, "held_bytes") > 0);
    // Everybody else is served meanwhile: also by the kernel's background requests, of which it has only so many.
    fs::metadata(v.path("held")).unwrap();
    reads_uncached(&v.path("file-2"), 2, MIB);
    // Past the page cache: what is held fills the kernel's dirty limit for the mount, and a write into its cache waits for that.
    let control = File::options().write(true).custom_flags(libc::O_DIRECT).open(v.path(".storage/control"));
    control.and_then(|mut control| control.write_all(b"flush")).expect("an order");
    assert!(v.storage("status").contains("full"));
    // So do our own commands.
    for (args, answer) in [
        (&["quota", "set", "--user", "1", "--inodes", "9"][..], ""),
        (&["quota", "check"], "accounts were counted anew"),
        (&["scrub", "--rate", "0"], "all data was read: clean"),
    ] {
        let asked = Instant::now();
        let out = as_a_writer_that_waits(&v, Command::new(common::strongroom()).args(args).arg(&v.mnt));
        assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains(answer), "{args:?}: {out:?}");
        // It takes a moment. Through the page cache, `quota set` took 29 s.
        assert!(asked.elapsed() < PATIENCE / 2, "{args:?} waited for what is held: {:?}", asked.elapsed());
    }
    fs::create_dir(v.path("dir")).expect_err("a new directory takes room");
    fs::remove_file(v.path("file-0")).unwrap();
    reads_uncached(&v.path("file-2"), 2, MIB);
    assert!(begun.elapsed() < deadline / 2, "something waited for what is held: {:?}", begun.elapsed());
    assert!(syncing.try_wait().unwrap().is_none(), "there is no room, and somebody may make some");
    fs::remove_file(filler).unwrap();
    assert!(syncing.wait().unwrap().success(), "there is room again");
    holds(&v.path("held"), 1, len);

    // Nobody makes room: after the deadline it is refused, and whoever syncs is told.
    v.umount();
    v.options = vec!["full-deadline=1".into()];
    v.mount();
    let mut file = open(&v.path("refused"));
    let filler = disk.fill(0);
    let refused =
        file.write_all(&noise(3, 0, len)).and_then(|()| file.sync_all()).expect_err("there is no room for it");
    drop(file);
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    assert!(metric(&v, "strongroom_refused_cached_bytes_total") > 0);
    eventually("the loss is named", PATIENCE, || v.storage("errors").contains("the file lacks them"));
    fs::remove_file(v.path("refused")).unwrap();
    fs::remove_file(filler).unwrap();
    room_comes(&v.mnt, 3, MIB);
    holds(&v.path("held"), 1, len);
    assert!(!v.states().iter().any(|s| s == "error"), "{:?}", v.states());
    v.umount();
    v.check();
}

/// A shared mapping of a file that nobody has open.
struct Mapping(*mut libc::c_void, usize);

impl Mapping {
    /// Makes a file of so many bytes, and maps it.
    fn of_new(path: &Path, bytes: u64) -> Mapping {
        let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        file.set_len(bytes).unwrap();
        file.sync_all().unwrap();
        let (len, access) = (bytes as usize, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping of a file that is this long.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Mapping(at, len)
    }

    fn fill(&self, id: u64) {
        let bytes = noise(id, 0, self.1 as u64);
        // SAFETY: both are this long, and nobody else uses the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast(), self.1) };
    }
}

// SAFETY: nobody but its owner uses it.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn umount_says(v: &TestVault) -> (Option<i32>, String) {
    let out = common::output(Command::new(common::strongroom()).arg("umount").arg(&v.mnt));
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_mapping_that_no_room_was_found_for_is_named_by_umount() {
    let disk = Disk::ext4(100);
    let mut v = TestVault::init_on(&disk);
    v.options = vec!["full-deadline=1.5".into(), "flush-interval=0.4".into()];
    v.mount();
    let len = 4 * MIB;
    let names = ["mapped", "removed", "cut", "synced", "synced\n2"];
    let maps = names.map(|name| Mapping::of_new(&v.path(name), len));
    // Of one, control characters in the path are not shown as they are.
    let synced = ["synced", "synced\n2"].map(|name| File::options().write(true).open(v.path(name)).unwrap());
    let filler = disk.fill(0);
    // The kernel lets whoever fills a mapping wait while its pages are held.
    let filling = std::thread::spawn(move || maps.iter().enumerate().for_each(|(id, map)| map.fill(id as u64)));
    // While they are held, they are not safe, and nothing says that they are.
    eventually("held bytes count as pending", PATIENCE, || {
        let held = buffered(&v, "held_bytes");
        held > 0 && buffered(&v, "pending_bytes") >= held
    });
    eventually("their file is unsaved", PATIENCE, || v.storage("unsaved").lines().any(|line| line == "/mapped"));
    eventually("they are not yet safe", PATIENCE, || v.storage("status").contains("MiB of what the kernel has handed"));
    filling.join().unwrap();
    for file in &synced {
        assert!(file.sync_all().is_err(), "there is no room for it");
    }
    let shown = |name: &str| format!("/{} (inode ", name.replace('\n', "\\n"));
    eventually("all are refused", PATIENCE, || {
        names.iter().all(|name| v.storage("unsaved").contains(&shown(name))) && v.pending() == 0
    });
    for name in names {
        eventually("the error list has the path", PATIENCE, || v.storage("errors").contains(&shown(name)));
    }
    fs::remove_file(v.path("removed")).unwrap();
    File::options().write(true).open(v.path("cut")).unwrap().set_len(0).unwrap();
    let unsaved = v.storage("unsaved");
    assert!(!unsaved.contains("/removed (inode") && !unsaved.contains("/cut (inode"), "{unsaved}");
    // A mount that stays because it is in use forgets nothing.
    assert_eq!(umount_says(&v).0, Some(11), "it is open");
    drop(synced);
    fs::remove_file(filler).unwrap();
    let (code, said) = umount_says(&v);
    assert_eq!(code, Some(12), "{said}");
    assert!(
        said.contains("not saved: /mapped (inode ") && said.contains(&format!("): {len} bytes were refused")),
        "{said}"
    );
    // The others are gone, empty, or were told by fsync.
    assert!(!["/removed", "/cut", "/synced"].iter().any(|name| said.contains(name)), "{said}");
    assert!(!v.is_mounted());
    v.check();
    v.mount();
    assert_eq!(v.storage("unsaved"), "");
    v.umount();
}

#[test]
fn a_hard_quota_set_on_a_live_mount_is_told_by_write() {
    let v = TestVault::mounted();
    fs::create_dir(v.path("dir")).unwrap();
    let quota = 16 * MIB;
    let mut set = Command::new(common::strongroom());
    common::run(set.args(["quota", "set"]).arg(&v.mnt).arg("--tree").arg(v.path("dir")).args(["--bytes", "16M"]));
    let mut files = vec![File::create(v.path("dir/file")).unwrap()];
    let (taken, refused) = write_only(&mut files, quota + 64 * MIB);
    let refused = refused.unwrap_or_else(|| panic!("{taken:?} bytes were taken and no write was refused"));
    assert_eq!(refused.raw_os_error(), Some(libc::EDQUOT), "{refused}");
    // Outside nobody notices.
    put(&v.mnt, 2, 4 * MIB).unwrap();
    assert_ne!(v.state(), "full");
}

/// Beside what was taken before, writes until the backing filesystem refuses more, although it shows free bytes; deletes most
/// of it; gives what is left.
fn refuses_although_bytes_are_free(disk: &Disk, v: &TestVault, mut taken: Vec<Taken>) -> Vec<Taken> {
    let (all, mut id) = (disk.free_bytes(), 1 << 40);
    let refused = loop {
        // Each is synced.
        id += 2;
        match put(&v.mnt, id, 3 * MIB) {
            Ok(()) => taken.push((id, 3 * MIB)),
            Err(e) => break e,
        }
        assert!(total(&taken) < all, "nothing was refused");
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "{refused}");
    assert!(disk.free_bytes() > 16 * MIB, "{} bytes are free: it is an ordinary full disk", disk.free_bytes());
    eventually("full", PATIENCE, || v.state() == "full");
    assert_eq!(faults(&v.mnt, &taken), Vec::<String>::new(), "live");
    // What takes no room works.
    let (id, _) = taken.pop().unwrap();
    fs::rename(v.path(format!("file-{id}")), v.path("renamed")).unwrap();
    let cut = File::options().write(true).open(v.path("renamed")).unwrap();
    cut.set_len(1000).unwrap();
    cut.sync_all().unwrap();
    delete(&v.mnt, &mut taken, |n| n % 4 == 0);
    File::open(&v.mnt).unwrap().sync_all().unwrap();
    taken
}

fn is_whole_and_was_no_fault(v: &TestVault, taken: &[Taken]) {
    assert_eq!(faults(&v.mnt, taken), Vec::<String>::new(), "live, at the end");
    assert!(!v.states().iter().any(|s| s == "error"), "{:?}", v.states());
    v.umount();
    v.check();
    v.mount();
    assert_eq!(faults(&v.mnt, taken), Vec::<String>::new(), "after a clean unmount");
    assert_eq!(fs::read(v.path("renamed")).unwrap().len(), 1000);
}

#[test]
fn a_backing_filesystem_without_inodes_is_a_full_disk_until_it_has_some() {
    let disk = Disk::ext4_of_few_files(400, 64);
    let v = TestVault::init_on(&disk);
    v.mount();
    // From when there is no inode, the first look of the vault may refuse data.
    let before: Vec<_> = (1..6).map(|id| (id, MIB)).collect();
    for (id, len) in &before {
        put(&v.mnt, *id, *len).unwrap();
    }
    let others: Vec<_> = (0..)
        .map(|n| disk.at.join(format!("other-{n}")))
        .take_while(|path| match File::create(path) {
            Ok(_) => true,
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => false,
            Err(e) => panic!("{}: {e}", path.display()),
        })
        .collect();
    let mut taken = refuses_although_bytes_are_free(&disk, &v, before);
    for other in others {
        fs::remove_file(other).unwrap();
    }
    room_comes(&v.mnt, 1 << 50, MIB);
    taken.push((1 << 50, MIB));
    eventually("no longer full", PATIENCE, || v.state() != "full");
    is_whole_and_was_no_fault(&v, &taken);
}

fn fallocate(file: &File, mode: i32, len: u64) -> Option<i32> {
    // SAFETY: the descriptor is the file's.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, i64::try_from(len).unwrap()) };
    (done != 0).then(|| io::Error::last_os_error().raw_os_error().unwrap())
}

#[test]
fn fallocate_refuses_what_cannot_fit() {
    let disk = Disk::ext4(100);
    let v = TestVault::init_on(&disk);
    v.mount();
    let free = available(&v.mnt);
    let file = File::create(v.path("file")).unwrap();
    for mode in [0, libc::FALLOC_FL_KEEP_SIZE] {
        assert_eq!(fallocate(&file, mode, 2 * free), Some(libc::ENOSPC), "mode {mode}: twice what is free");
        assert_eq!(file.metadata().unwrap().len(), 0, "what is refused changes nothing");
    }
    assert_eq!(fallocate(&file, 0, free / 2), None);
    // What is there already needs no room.
    put(&v.mnt, 1, free / 2).unwrap();
    let written = File::options().write(true).open(v.path("file-1")).unwrap();
    assert_eq!(fallocate(&written, 0, free / 2 + 4096), None);
    assert_ne!(v.state(), "full", "there is room, though not for everything");
    drop((file, written));
    v.umount();

    let v = TestVault::init_with(&["--quota", "16M"]);
    v.mount();
    let file = File::create(v.path("file")).unwrap();
    assert_eq!(fallocate(&file, 0, 17 * MIB), Some(libc::ENOSPC), "beyond the vault's quota");
    fs::create_dir(v.path("dir")).unwrap();
    let mut set = Command::new(common::strongroom());
    common::run(set.args(["quota", "set"]).arg(&v.mnt).arg("--tree").arg(v.path("dir")).args(["--bytes", "1M"]));
    let file = File::create(v.path("dir/file")).unwrap();
    assert_eq!(fallocate(&file, 0, 2 * MIB), Some(libc::EDQUOT), "beyond the tree's quota");
    // Limits of trees, users and groups count sizes, which this does not change.
    assert_eq!(fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 2 * MIB), None);
    assert_eq!(fallocate(&file, 0, MIB / 2), None);
}
