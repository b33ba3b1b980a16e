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
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const WRITERS: u64 = 8;
const MIB: u64 = 1 << 20;
/// Most time until what was freed can be written to.
const ROOM: Duration = Duration::from_secs(20);
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
    let v = TestVault::init_on(&disk);
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
